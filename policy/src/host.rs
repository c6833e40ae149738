//! Which `Host` a callback may name.
//!
//! Here: [`HostPins`]. A browser page in the sandbox that rebinds its own name to 127.0.0.1 sends that
//! name as `Host`; pinning refuses it (421). Not here: the listener itself.

use alloc::sync::Arc;

/// The names of one listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPins(Pins);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pins {
    Port(u16),
    Unix,
    /// Name and port; without the port that the scheme has by itself.
    Name(Arc<str>),
}

impl HostPins {
    /// The names of a loopback listener on `port`.
    #[must_use]
    pub const fn tcp(port: u16) -> Self {
        Self(Pins::Port(port))
    }

    /// The names of a listener on a unix socket.
    #[must_use]
    pub const fn unix() -> Self {
        Self(Pins::Unix)
    }

    /// The one name of a listener that is reached under `url`: `https://NAME`, or another scheme and a port.
    ///
    /// What is no such URL has no name, and admits nothing.
    #[must_use]
    pub fn url(url: &str) -> Self {
        let (scheme, rest) = url.split_once("://").unwrap_or_default();
        let name = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let own = if scheme.eq_ignore_ascii_case("https") {
            ":443"
        } else {
            ":80"
        };
        Self(Pins::Name(name.strip_suffix(own).unwrap_or(name).into()))
    }

    /// Whether `host`, the value of the only `Host` header, is one of this listener's names.
    ///
    /// Exactly `127.0.0.1:PORT`, `localhost:PORT` (in any case) or `[::1]:PORT`; without port where PORT
    /// is 80, the default of http. On a unix socket `localhost` alone. Under a URL its name in any case.
    #[must_use]
    pub fn admits(&self, host: &[u8]) -> bool {
        let port = match &self.0 {
            Pins::Port(port) => *port,
            Pins::Unix => return host.eq_ignore_ascii_case(b"localhost"),
            Pins::Name(name) => return !name.is_empty() && host.eq_ignore_ascii_case(name.as_bytes()),
        };
        let Some((name, rest)) = split_name(host) else {
            return false;
        };
        let own_name = name == b"127.0.0.1" || name == b"[::1]" || name.eq_ignore_ascii_case(b"localhost");
        own_name
            && if rest.is_empty() {
                port == 80
            } else {
                is_port(rest, port)
            }
    }
}

/// The name, and the port with its colon.
fn split_name(host: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = match host {
        [b'[', ..] => host.iter().position(|byte| *byte == b']')? + 1,
        _ => host.iter().position(|byte| *byte == b':').unwrap_or(host.len()),
    };
    host.split_at_checked(end)
}

/// Whether `text` is `:` and `port` in its only spelling, without sign or leading zero.
fn is_port(text: &[u8], port: u16) -> bool {
    let Some(digits) = text.strip_prefix(b":") else {
        return false;
    };
    if !digits.iter().all(u8::is_ascii_digit) || digits.first() == Some(&b'0') {
        return false;
    }
    core::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<u16>().ok())
        == Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tcp_listener_has_three_names_with_its_port() {
        let pins = HostPins::tcp(40123);

        for host in [
            "127.0.0.1:40123",
            "localhost:40123",
            "LocalHost:40123",
            "[::1]:40123",
        ] {
            assert!(pins.admits(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "localhost",
            "127.0.0.1",
            "[::1]",
            ":40123",
            "localhost:",
            "localhost:40124",
            "localhost:040123",
            "localhost:+40123",
            "localhost:105659",
            "localhost.:40123",
            " localhost:40123",
            "localhost:40123 ",
            "127.0.0.2:40123",
            "127.1:40123",
            "0.0.0.0:40123",
            "::1:40123",
            "[::1",
            "[::1]40123",
            "[0:0:0:0:0:0:0:1]:40123",
            "user@localhost:40123",
            "localhost:40123,evil.example",
            "evil.example:40123",
        ] {
            assert!(!pins.admits(host.as_bytes()), "{host:?}");
        }
    }

    #[test]
    fn the_port_may_be_left_out_only_when_it_is_80() {
        assert!(HostPins::tcp(80).admits(b"localhost"));
        assert!(HostPins::tcp(80).admits(b"[::1]:80"));
        assert!(!HostPins::tcp(443).admits(b"localhost"));
    }

    #[test]
    fn a_url_has_the_one_name_in_it() {
        let rows = [
            ("https://Relay.Example", "relay.example", "relay.example:443"),
            ("https://relay.example:443/", "RELAY.example", "localhost"),
            (
                "https://relay.example:8443",
                "relay.example:8443",
                "relay.example",
            ),
            ("http://127.0.0.1:8787", "127.0.0.1:8787", "127.0.0.1"),
            ("http://relay.test:80", "relay.test", "relay.test.evil"),
        ];
        for (url, good, bad) in rows {
            assert!(HostPins::url(url).admits(good.as_bytes()), "{url} {good}");
            assert!(!HostPins::url(url).admits(bad.as_bytes()), "{url} {bad}");
        }
        for url in ["", "relay.example", "https://"] {
            assert!(!HostPins::url(url).admits(b""), "{url}");
        }
    }

    #[test]
    fn a_unix_socket_is_localhost_alone() {
        assert!(HostPins::unix().admits(b"localhost"));
        for host in [&b"localhost:80"[..], b"127.0.0.1", b"", b"[::1]"] {
            assert!(!HostPins::unix().admits(host));
        }
    }
}
