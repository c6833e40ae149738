//! Heads between the relay's JSON and HTTP.
//!
//! Here: a request head as a callback, an answer's head as JSON, and what may not go further than one hop. The Worker's
//! runtime holds a field as one character a byte, and so do these heads. Not here: any judgement of what they say.

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::frame::{RequestHead, ResponseHead};

/// Fields of one connection, which are the next one's own business.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A request head that cannot be acted on; what is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// A request head in the form of a callback.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) target: Bytes,
    pub(super) host: Bytes,
    pub(super) headers: HeaderMap,
    /// The body's length, where the caller declared it.
    pub(super) declared: Option<u64>,
}

/// Takes a request head apart.
///
/// # Errors
///
/// [`Malformed`] where method, `Host`, a field or the declared length is none.
pub(super) fn read(head: RequestHead) -> Result<Asked, Malformed> {
    let method =
        Method::from_bytes(head.method.as_bytes()).map_err(|_| Malformed("its method is no token"))?;
    let mut target = head.path;
    if !head.query.is_empty() && !head.query.starts_with('?') {
        target.push('?');
    }
    target.push_str(&head.query);
    let mut headers = HeaderMap::with_capacity(head.headers.len());
    for (name, value) in &head.headers {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| Malformed("a field's name is no token"))?;
        if name == header::HOST || HOP_BY_HOP.contains(&name) {
            continue;
        }
        let value = one_byte_each(value)
            .and_then(|bytes| HeaderValue::from_bytes(&bytes).ok())
            .ok_or(Malformed("a field's value holds what no field can"))?;
        headers
            .try_append(name, value)
            .map_err(|_| Malformed("it has too many fields"))?;
    }
    let host = one_byte_each(&head.host).ok_or(Malformed("its host is none"))?;
    Ok(Asked {
        method,
        target: target.into_bytes().into(),
        host: host.into(),
        declared: declared(&headers)?,
        headers,
    })
}

fn one_byte_each(text: &str) -> Option<Vec<u8>> {
    text.chars()
        .map(|character| u8::try_from(character).ok())
        .collect()
}

fn declared(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => length
            .to_str()
            .ok()
            .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or(Malformed("its declared length is no number")),
        (Some(_), Some(_)) => Err(Malformed("its length is declared twice")),
    }
}

/// The head of an answer.
///
/// - `length`: that of the body, where it is known.
pub(super) fn write(parts: &Parts, length: Option<u64>) -> ResponseHead {
    let mut headers: Vec<(String, String)> = parts
        .headers
        .iter()
        .filter(|(name, _)| !HOP_BY_HOP.contains(name))
        .map(|(name, value)| {
            let value = value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
            (name.as_str().to_owned(), value)
        })
        .collect();
    let bodiless = parts.status.is_informational() || matches!(parts.status.as_u16(), 204 | 304);
    if let Some(length) = length
        && !bodiless
        && !parts.headers.contains_key(header::CONTENT_LENGTH)
    {
        headers.push((header::CONTENT_LENGTH.as_str().to_owned(), length.to_string()));
    }
    ResponseHead {
        status: parts.status.as_u16(),
        headers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(path: &str, query: &str, headers: &[(&str, &str)]) -> RequestHead {
        RequestHead {
            method: "PATCH".into(),
            path: path.into(),
            query: query.into(),
            host: "relay.example:8443".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            received: 0,
            deadline: None,
            run: None,
        }
    }

    #[test]
    fn target_host_and_fields_are_those_of_the_caller() {
        let asked = read(head(
            "/api/%2F",
            "a=%20&b",
            &[
                ("X-A", "1"),
                ("x-a", "caf\u{e9}"),
                ("Host", "other"),
                ("Te", "trailers"),
            ],
        ))
        .unwrap();

        assert_eq!(asked.method, Method::PATCH);
        assert_eq!(asked.target, "/api/%2F?a=%20&b");
        assert_eq!(asked.host, "relay.example:8443");
        let values: Vec<&[u8]> = asked
            .headers
            .get_all("x-a")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(values, [&b"1"[..], b"caf\xe9"]);
        assert_eq!(asked.headers.len(), 2);
        assert_eq!(read(head("/", "?a", &[])).unwrap().target, "/?a");
    }

    #[test]
    fn a_head_that_is_none_is_malformed() {
        for fields in [
            [("a b", "1")],
            [("a", "line\nend")],
            [("a", "\u{100}")],
            [("content-length", "-1")],
            [("content-length", "")],
            [("content-length", "5, 5")],
        ] {
            assert!(read(head("/", "", &fields)).is_err(), "{fields:?}");
        }
        let twice = [("content-length", "5"), ("Content-Length", "5")];
        assert!(read(head("/", "", &twice)).is_err());
        let mut bad = head("/", "", &[]);
        bad.method = "GE T".into();
        assert!(read(bad).is_err());
    }

    #[test]
    fn an_answer_tells_its_length_where_it_is_known() {
        let parts = |status: u16| {
            let response = http::Response::builder()
                .status(status)
                .header("connection", "close")
                .header("x", &b"\xe9"[..]);
            response.body(()).unwrap().into_parts().0
        };

        let written = write(&parts(200), Some(5));
        assert_eq!(
            written.headers,
            [
                ("x".to_owned(), "\u{e9}".to_owned()),
                ("content-length".to_owned(), "5".to_owned())
            ]
        );
        assert_eq!(write(&parts(204), Some(0)).headers.len(), 1);
    }
}
