//! The value of `ProxyJump`; pure.

use super::{check_name, check_user};

/// One host on the way; its other settings are looked up by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JumpHost {
    /// Name, alias or address.
    pub host: String,
    /// Login name, if given.
    pub user: Option<String>,
    /// Port, if given.
    pub port: Option<u16>,
}

/// Reads `[user@]host[:port]` or `ssh://[user@]host[:port]`, several with commas; `None` for `none`.
///
/// # Errors
///
/// What is wrong, for the line's error.
pub fn parse(text: &str) -> Result<Option<Vec<JumpHost>>, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    let hosts: Option<Vec<JumpHost>> = text.split(',').map(parse_one).collect();
    hosts.map(Some).ok_or_else(|| {
        format!("ProxyJump {text:?} is not a list of [user@]host[:port], an address with colons in []")
    })
}

fn parse_one(text: &str) -> Option<JumpHost> {
    let text = match text.strip_prefix("ssh://") {
        Some(uri) => uri.strip_suffix('/').unwrap_or(uri),
        None => text,
    };
    let (user, place) = match text.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, text),
    };
    let (host, port_text) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            match rest {
                "" => (host, None),
                rest => (host, Some(rest.strip_prefix(':')?)),
            }
        }
        // More than one colon without brackets is a bare IPv6 address.
        None => match place.split_once(':') {
            Some((host, port)) if !port.contains(':') => (host, Some(port)),
            _ => (place, None),
        },
    };
    let port = match port_text {
        Some(text) => Some(port(text)?),
        None => None,
    };
    check_name("jump host", host).ok()?;
    if let Some(user) = user {
        check_user(user).ok()?;
    }
    Some(JumpHost {
        host: host.to_owned(),
        user: user.map(str::to_owned),
        port,
    })
}

/// A port in digits, 1 to 65535.
#[must_use]
pub fn port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|port| *port != 0)
}
