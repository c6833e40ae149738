//! Which headers cross the bridge.
//!
//! Here: the two allowlists, the hop-by-hop names, and what a `Connection` header names. Names are in
//! lower case, as the `http` crate keeps them; another spelling is not on any list.
//! Not here: the headers that the daemon itself sets (credential, run id, `host`) after this filter.

use alloc::vec::Vec;

/// Request headers that are forwarded to the upstream, sorted.
pub const REQUEST_HEADERS: [&str; 8] = [
    "accept",
    "content-type",
    "idempotency-key",
    "if-match",
    "if-none-match",
    "traceparent",
    "tracestate",
    "x-paperclip-github-capability",
];

/// Response headers that are relayed to the caller, sorted.
pub const RESPONSE_HEADERS: [&str; 7] = [
    "content-disposition",
    "content-length",
    "content-type",
    "etag",
    "last-modified",
    "retry-after",
    "x-paperclip-bridge-outcome",
];

/// Headers that belong to one connection (RFC 9110 section 7.6.1, RFC 9112 section 9.6 and appendix C.2.2).
pub const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether the request header `name` may be forwarded.
#[must_use]
pub fn request_header_allowed(name: &str) -> bool {
    REQUEST_HEADERS.contains(&name)
}

/// Whether the response header `name` may be relayed.
#[must_use]
pub fn response_header_allowed(name: &str) -> bool {
    RESPONSE_HEADERS.contains(&name)
}

/// Whether `name` speaks about one connection and never crosses a proxy.
#[must_use]
pub fn is_hop_by_hop(name: &str) -> bool {
    HOP_BY_HOP.contains(&name)
}

/// The header names that the `Connection` headers of one message make hop-by-hop.
///
/// ```
/// use policy::headers::ConnectionNamed;
///
/// let named = ConnectionNamed::from_values([&b"close, If-Match"[..]]);
/// assert!(named.drops("if-match"));
/// assert!(!named.drops("accept"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct ConnectionNamed<'a> {
    values: Vec<&'a [u8]>,
}

impl<'a> ConnectionNamed<'a> {
    /// Takes the values of every `Connection` header of the message. No memory is taken for none.
    pub fn from_values(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        Self {
            values: values.into_iter().collect(),
        }
    }

    /// Whether `name` must be dropped because a `Connection` header names it.
    #[must_use]
    pub fn drops(&self, name: &str) -> bool {
        let options = self
            .values
            .iter()
            .flat_map(|value| value.split(|byte| *byte == b','));
        options
            .map(<[u8]>::trim_ascii)
            .any(|option| option.eq_ignore_ascii_case(name.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_credentials_and_identity_are_not_forwarded() {
        for name in [
            "authorization",
            "cookie",
            "host",
            "x-paperclip-run-id",
            "content-length",
            "x-forwarded-for",
        ] {
            assert!(!request_header_allowed(name), "{name}");
        }
        for name in [
            "set-cookie",
            "location",
            "www-authenticate",
            "server",
            "content-encoding",
        ] {
            assert!(!response_header_allowed(name), "{name}");
        }
    }

    #[test]
    fn names_are_compared_in_lower_case_only() {
        assert!(request_header_allowed("if-none-match"));
        assert!(!request_header_allowed("If-None-Match"));
    }

    #[test]
    fn no_hop_by_hop_header_is_on_a_list() {
        for name in HOP_BY_HOP {
            assert!(
                !request_header_allowed(name) && !response_header_allowed(name),
                "{name}"
            );
        }
    }

    #[test]
    fn every_connection_header_is_looked_at() {
        let named = ConnectionNamed::from_values([&b"close"[..], &b" ETag ,, x-a\t"[..]]);

        assert!(named.drops("etag") && named.drops("x-a") && named.drops("close"));
        assert!(!named.drops("eta") && !named.drops("accept"));
    }
}
