//! The Host that a client insists on, before anything is sent.
//!
//! Here: [`insist_on_host`] and the derivation of the default from a base URL ([`host_header`]). A wrong or hostile URL
//! then costs no request and no bearer. Not here: the connection, which must go to the same URL and follow no redirect.

use alloc::borrow::ToOwned as _;
use alloc::string::String;

use thiserror::Error;

use super::fields::is_host;

/// Why nothing may be sent to a URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum HostRefusal {
    /// Not `https://` or `http://` with a plain host, or with something that hides the host, such as a user name.
    #[error(
        "the URL must be https://HOST or https://HOST:PORT with a path behind it, without user or password"
    )]
    NotAUrl,
    /// It goes elsewhere.
    #[error("the URL goes to {found}, but `expectedHostHeader` is {expected}; nothing was sent")]
    Mismatch {
        /// What the configuration says.
        expected: String,
        /// What the URL says.
        found: String,
    },
}

impl HostRefusal {
    /// A stable name for logs and errors.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "host_header_mismatch"
    }
}

/// The `Host` field of requests to `url`: lower case, the scheme's own port dropped.
///
/// # Errors
///
/// [`HostRefusal::NotAUrl`].
///
/// ```
/// use policy::envelope::host_header;
///
/// assert_eq!(host_header("https://Bridge.Example.dev:443/base?x").as_deref(), Ok("bridge.example.dev"));
/// assert!(host_header("https://bridge.example.dev@evil.example/").is_err());
/// ```
pub fn host_header(url: &str) -> Result<String, HostRefusal> {
    let (scheme, rest) = url.split_once("://").ok_or(HostRefusal::NotAUrl)?;
    let own_port = match scheme.to_ascii_lowercase().as_str() {
        "https" => "443",
        "http" => "80",
        _ => return Err(HostRefusal::NotAUrl),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // Everything that some reader takes for another end of the host is no byte of one.
    if !is_host(authority) {
        return Err(HostRefusal::NotAUrl);
    }
    let (name, port) = split_port(authority)?;
    let mut header = name.to_ascii_lowercase();
    if let Some(port) = port.filter(|port| *port != own_port) {
        header.push(':');
        header.push_str(port);
    }
    Ok(header)
}

/// Checks that requests to `url` name the host that the configuration expects, and returns it.
///
/// # Errors
///
/// [`HostRefusal`]; nothing may then be sent.
pub fn insist_on_host(url: &str, expected: &str) -> Result<String, HostRefusal> {
    let found = host_header(url)?;
    if found == expected.to_ascii_lowercase() {
        Ok(found)
    } else {
        Err(HostRefusal::Mismatch {
            expected: expected.to_owned(),
            found,
        })
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), HostRefusal> {
    let (name, rest) = match authority.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']').ok_or(HostRefusal::NotAUrl)?;
            // The two brackets.
            authority.split_at_checked(end + 2).ok_or(HostRefusal::NotAUrl)?
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let bracketed = name.starts_with('[');
    let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let plain = !name.contains(['[', ']', ':']) && !name.is_empty();
    let address = inner.is_some_and(|inner| !inner.is_empty() && !inner.contains(['[', ']']));
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        None => return Err(HostRefusal::NotAUrl),
        Some(port) => {
            let spelled_once = !port.starts_with('0') && port.bytes().all(|byte| byte.is_ascii_digit());
            if !spelled_once || port.parse::<u16>().is_err() {
                return Err(HostRefusal::NotAUrl);
            }
            Some(port)
        }
    };
    if bracketed && address || !bracketed && plain {
        Ok((name, port))
    } else {
        Err(HostRefusal::NotAUrl)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_host_is_that_of_the_base_url() {
        for (url, host) in [
            ("https://Bridge.Example.dev", "bridge.example.dev"),
            ("HTTPS://bridge.example.dev:443/", "bridge.example.dev"),
            ("https://bridge.example.dev:80", "bridge.example.dev:80"),
            ("http://127.0.0.1:8787/base/", "127.0.0.1:8787"),
            ("http://localhost:80?x", "localhost"),
            ("http://[::1]:8787#x", "[::1]:8787"),
            ("http://[::1]", "[::1]"),
        ] {
            assert_eq!(host_header(url).as_deref(), Ok(host), "{url}");
        }
    }

    #[test]
    fn a_url_that_hides_its_host_is_refused() {
        for url in [
            "",
            "bridge.example.dev",
            "//bridge.example.dev",
            "ftp://bridge.example.dev",
            "https://",
            "https:///path",
            "https://:443",
            "https://bridge.example.dev:",
            "https://bridge.example.dev:0443",
            "https://bridge.example.dev:+1",
            "https://bridge.example.dev:65536",
            "https://bridge.example.dev:1:2",
            "https://me@bridge.example.dev",
            "https://bridge.example.dev:pw@evil.example",
            "https://bridge.example.dev\\@evil.example",
            "https://bridge.example.dev%2eevil.example",
            "https://bridge.example.dev evil.example",
            "https://bridgé.example.dev",
            "https://[::1",
            "https://[]",
            "https://[::1]x",
            "https://::1",
        ] {
            assert_eq!(host_header(url), Err(HostRefusal::NotAUrl), "{url}");
        }
    }

    #[test]
    fn nothing_is_sent_to_another_host_than_the_expected_one() {
        let expected = "Bridge.example.dev";
        assert!(insist_on_host("https://bridge.Example.dev:443/x", expected).is_ok());

        for url in [
            "https://bridge.example.dev.",
            "https://bridge.example.dev:8443",
            "https://evil.example/bridge.example.dev",
            "https://bridge.example.dev.evil.example",
            "http://bridge.example.dev:443",
        ] {
            let refused = insist_on_host(url, expected).expect_err("another host");
            assert!(matches!(refused, HostRefusal::Mismatch { .. }), "{url}");
            assert_eq!(refused.code(), "host_header_mismatch");
        }
    }
}
