//! A second opinion on where HTTP/1 messages begin and end.
//!
//! Here: RFC 9112 as directly as it reads, on the whole input at once. It stops at the first thing that two readers
//! could take differently; what lies behind cannot be a message of anybody.

/// One request as the agent meant it.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case, values without blanks around them.
    fields: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    /// The input holds the body to its end.
    pub(crate) whole: bool,
}

impl Message {
    /// Whether the session's token and Host stand in it, once each.
    pub(crate) fn may_call(&self) -> bool {
        let tokens = values(&self.fields, "authorization");
        let hosts = values(&self.fields, "host");
        let token = matches!(tokens.as_slice(), [one] if is_token(one));
        let host = matches!(hosts.as_slice(), [one] if is_host(one));
        token && host
    }
}

/// The session's token, as `authorization` says it.
pub(crate) fn is_token(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value);
    let scheme_and_token = text.split_once(' ');
    scheme_and_token
        .is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && token == super::TOKEN)
}

/// A name of the session's own listener.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let text = String::from_utf8_lossy(value).to_ascii_lowercase();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|name| text == format!("{name}:{}", super::PORT))
}

pub(crate) fn values<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Vec<&'a [u8]> {
    fields
        .iter()
        .filter(|(have, _)| have == name)
        .map(|(_, value)| value.as_slice())
        .collect()
}

/// All messages up to the first ambiguity, the last one perhaps with a cut body.
pub(crate) fn messages(mut data: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    loop {
        data = data.strip_prefix(b"\r\n").unwrap_or(data);
        let Some((lines, behind)) = section(data) else {
            return found;
        };
        let Some((mut message, body)) = head(&lines) else {
            return found;
        };
        let rest = match body {
            Body::Length(length) => match usize::try_from(length)
                .ok()
                .and_then(|length| behind.split_at_checked(length))
            {
                Some((body, rest)) => {
                    message.body = body.to_vec();
                    Some(rest)
                }
                None => {
                    message.body = behind.to_vec();
                    None
                }
            },
            Body::Chunked => chunks(behind, &mut message.body),
        };
        message.whole = rest.is_some();
        found.push(message);
        match rest {
            Some(rest) => data = rest,
            None => return found,
        }
    }
}

/// Lines up to an empty one, each ended by CR LF, and what follows; `None` if there is no empty line.
pub(crate) fn section(data: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let mut lines = Vec::new();
    let mut rest = data;
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n")?;
        let (line, behind) = rest.split_at(end);
        rest = behind.get(2..)?;
        if line.is_empty() {
            return Some((lines, rest));
        }
        lines.push(line);
    }
}

enum Body {
    Length(u64),
    Chunked,
}

fn head(lines: &[&[u8]]) -> Option<(Message, Body)> {
    let (first, field_lines) = lines.split_first()?;
    let words: Vec<&str> = std::str::from_utf8(first).ok()?.split(' ').collect();
    let [method, target, "HTTP/1.1" | "HTTP/1.0"] = words.as_slice() else {
        return None;
    };
    if !is_token_text(method.as_bytes()) || target.is_empty() {
        return None;
    }
    let fields: Vec<(String, Vec<u8>)> = field_lines
        .iter()
        .map(|line| field(line))
        .collect::<Option<_>>()?;
    let lengths = values(&fields, "content-length");
    let codings = values(&fields, "transfer-encoding");
    let body = match (lengths.as_slice(), codings.as_slice()) {
        ([], []) => Body::Length(0),
        ([length], []) if length.iter().all(u8::is_ascii_digit) => {
            Body::Length(std::str::from_utf8(length).ok()?.parse().ok()?)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Body::Chunked,
        _ => return None,
    };
    let (method, target) = ((*method).to_owned(), (*target).to_owned());
    Some((
        Message {
            method,
            target,
            fields,
            body: Vec::new(),
            whole: false,
        },
        body,
    ))
}

/// `name: value`, the name in lower case.
pub(crate) fn field(line: &[u8]) -> Option<(String, Vec<u8>)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at(colon);
    let value = value.get(1..)?.trim_ascii();
    let plain = value
        .iter()
        .all(|byte| *byte == b'\t' || !byte.is_ascii_control());
    (is_token_text(name) && plain)
        .then(|| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
}

/// RFC 9110 section 5.6.2.
fn is_token_text(text: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(allowed)
}

/// Reads chunks into `body`; what follows them, or `None` where they are cut or malformed.
pub(crate) fn chunks<'a>(mut data: &'a [u8], body: &mut Vec<u8>) -> Option<&'a [u8]> {
    loop {
        let end = data.windows(2).position(|two| two == b"\r\n")?;
        let (line, behind) = data.split_at(end);
        let digits = line.split(|byte| *byte == b';').next()?;
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        let size = usize::from_str_radix(digits, 16).ok()?;
        data = behind.get(2..)?;
        if size == 0 {
            let (trailers, rest) = section(data)?;
            trailers
                .iter()
                .map(|line| field(line))
                .collect::<Option<Vec<_>>>()?;
            return Some(rest);
        }
        let chunk = data.get(..size);
        body.extend_from_slice(chunk.unwrap_or(data));
        data = data.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_follow_each_other_and_end_at_the_first_ambiguity() {
        let data = b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 2\r\n\r\nhiPOST /c HTTP/1.1\r\n\
            Transfer-Encoding: chunked\r\n\r\n2;x\r\nab\r\n1\r\nc\r\n0\r\nT: 1\r\n\r\nGET /d HTTP/1.1\r\n\
            Content-Length: 1\r\nContent-Length: 1\r\n\r\nGET /e HTTP/1.1\r\n\r\n";

        let found = messages(data);

        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.target.as_str(), one.body.as_slice(), one.whole))
            .collect();
        assert_eq!(
            seen,
            [("/a", &b""[..], true), ("/b", b"hi", true), ("/c", b"abc", true)]
        );
    }

    #[test]
    fn a_cut_body_is_not_whole() {
        let found = messages(b"POST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nhi");

        assert!(matches!(found.as_slice(), [one] if !one.whole && one.body == b"hi"));
    }
}
