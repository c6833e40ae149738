//! Which of the caller's headers go on to the host, and which of the host's to the caller.
//!
//! Here: one rule per role. Our own host filters again and sees everything that is end to end; Paperclip's gets the
//! published few. Not here: `:authority` and the target (`http2/`, `queue/`).

use http::{HeaderMap, HeaderName, HeaderValue, header};
use wire::names;

/// What belongs to one connection only (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What Paperclip's gateway lets through, of a caller's headers.
const ALLOWED: [&str; 5] = [
    "accept",
    "content-type",
    "if-match",
    "if-none-match",
    "x-paperclip-github-capability",
];

/// Takes out what must not leave this connection: hop-by-hop fields and those that `Connection` names.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// A caller's headers as our own host gets them: all that are end to end, but for `expect`, which is answered here, and
/// those named as only this gateway may name them. The token is for the next hop whatever `Connection` names.
pub fn for_our_host(headers: &mut HeaderMap) {
    let token = headers.get(header::AUTHORIZATION).cloned();
    drop_hop_by_hop(headers);
    if let Some(token) = token {
        headers.insert(header::AUTHORIZATION, token);
    }
    headers.remove(header::HOST);
    headers.remove(header::EXPECT);
    let own: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with(names::header::OWN_PREFIX))
        .cloned()
        .collect();
    for name in own {
        headers.remove(name);
    }
}

/// A caller's headers as Paperclip's host gets them: the published few, repeats joined, of `content-type` the first.
pub fn for_peers_host(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    headers
        .keys()
        .filter(|name| ALLOWED.contains(&name.as_str()))
        .filter_map(|name| {
            let values: Vec<&[u8]> = headers
                .get_all(name)
                .iter()
                .map(HeaderValue::as_bytes)
                .take(if name == header::CONTENT_TYPE {
                    1
                } else {
                    usize::MAX
                })
                .collect();
            let value = HeaderValue::from_bytes(&values.join(b", ".as_slice())).ok()?;
            Some((name.clone(), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn our_host_gets_everything_that_is_end_to_end() {
        let mut headers = map(&[
            ("authorization", "Bearer t"),
            ("connection", "close, X-Private, Authorization"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("host", "h"),
            ("expect", "100-continue"),
            ("x-pcbridge-host", "forged"),
            ("cookie", "a=b"),
            ("content-length", "3"),
        ]);

        for_our_host(&mut headers);

        assert_eq!(
            headers,
            map(&[
                ("authorization", "Bearer t"),
                ("cookie", "a=b"),
                ("content-length", "3")
            ])
        );
    }

    #[test]
    fn the_peers_host_gets_the_published_few() {
        let headers = map(&[
            ("accept", "a"),
            ("accept", "b"),
            ("content-type", "text/plain"),
            ("content-type", "text/html"),
            ("cookie", "a=b"),
            ("authorization", "Bearer t"),
            ("x-paperclip-github-capability", "c"),
        ]);

        let passed: HeaderMap = for_peers_host(&headers).into_iter().collect();

        assert_eq!(
            passed,
            map(&[
                ("accept", "a, b"),
                ("content-type", "text/plain"),
                ("x-paperclip-github-capability", "c")
            ])
        );
    }
}
