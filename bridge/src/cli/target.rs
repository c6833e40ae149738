//! Reads TARGET: where the agent runs.
//!
//! Here: `ssh://user@host[:port][/dir]`, `[user@]ALIAS`, `local` and the `KEY:` of every provider, refused with a reason
//! where they are anything else. Not here: what ssh_config makes of an alias (`runners`), which kinds of target a tunnel
//! serves (`placing.rs`), which providers there are (`runners::provider`).

use std::net::Ipv6Addr;
use std::path::PathBuf;

use runners::provider;

use crate::app::{ProviderConfig, ProviderTarget, SshTarget, TargetSpec};
use crate::secrets::Secrets;

/// Why a TARGET was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// Nothing there.
    #[error("the target is empty; give {}", kinds())]
    Empty,
    /// A scheme nobody serves.
    #[error("`{scheme}` is not a kind of target; give {kinds}", scheme = .0, kinds = kinds())]
    Scheme(String),
    /// A provider's key with slashes.
    #[error("a provider's target has no slashes: write `{0}:` for a new lease, or `{0}:ID`")]
    ProviderUrl(&'static str),
    /// A password stands in the URL.
    #[error(
        "a password in the target is not accepted: it would stand in the process list; use a key (--identity FILE) or an SSH agent"
    )]
    Password,
    /// A part holds what it must not. The offending text is not repeated where it could be a secret.
    #[error("the {part} in the target {fault}")]
    Part {
        /// Which part.
        part: &'static str,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// The port is no port.
    #[error("the port in the target must be 1 to 65535")]
    Port,
    /// `alias:22` or the like.
    #[error("an ssh_config alias takes no port or directory; write ssh://user@host:port/dir instead")]
    AliasWithMore,
}

/// Longest id of a lease in bytes.
const MAX_ID_BYTES: usize = 512;

/// What can be given.
fn kinds() -> String {
    let providers: String = provider::PROVIDERS
        .iter()
        .map(|provider| format!(", `{}:[ID]`", provider.key))
        .collect();
    format!("ssh://user@host[:port][/dir], an ssh_config alias{providers}, or `local`")
}

/// Reads TARGET.
///
/// The identities and known hosts of the result are empty: they are options of their own.
///
/// - `ssh://user@host[:port][/dir]`: user and dir may be percent-encoded, an IPv6 address stands in brackets. `/dir` is
///   absolute; `/~/dir` is below the home folder; `/` alone is the home folder.
/// - `[user@]ALIAS`: a `Host` of ssh_config or a plain host name.
/// - `local`: this machine.
/// - `KEY:` and `KEY:ID`: a provider's sandbox, a new one or the one of that lease. Its configuration is an option.
///
/// # Errors
///
/// [`TargetError`]: says what is wrong and what is accepted.
pub fn parse(text: &str) -> Result<TargetSpec, TargetError> {
    if text.is_empty() {
        return Err(TargetError::Empty);
    }
    if text == "local" {
        return Ok(TargetSpec::Local);
    }
    if let Some(rest) = text.strip_prefix("ssh://") {
        return ssh_url(rest).map(TargetSpec::Ssh);
    }
    if let Some((scheme, rest)) = text.split_once(':') {
        if let Some(spec) = provider::find(scheme) {
            return lease(spec, rest).map(TargetSpec::Provider);
        }
        let plain = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if rest.starts_with("//") {
            return Err(TargetError::Scheme(if plain {
                format!("{scheme}://")
            } else {
                "that".into()
            }));
        }
        // `host:22` and `host:/dir` are what people write for an alias.
        let like_an_alias =
            rest.starts_with('/') || rest.bytes().next().is_some_and(|byte| byte.is_ascii_digit());
        if plain && !like_an_alias {
            return Err(TargetError::Scheme(format!("{scheme}:")));
        }
    }
    alias(text).map(TargetSpec::Ssh)
}

fn lease(spec: &'static provider::ProviderSpec, id: &str) -> Result<ProviderTarget, TargetError> {
    if id.starts_with("//") {
        return Err(TargetError::ProviderUrl(spec.key));
    }
    if id.len() > MAX_ID_BYTES || id.starts_with('-') || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TargetError::Part {
            part: "lease's id",
            fault: "is too long, begins with `-`, or holds something other than visible ASCII",
        });
    }
    Ok(ProviderTarget {
        spec,
        id: Some(id.to_owned()).filter(|id| !id.is_empty()),
        probed: false,
        leases: PathBuf::new(),
        config: ProviderConfig::default(),
        secrets: Secrets::default(),
        environment_id: None,
        issue_id: None,
        company_id: None,
    })
}

fn ssh_url(rest: &str) -> Result<SshTarget, TargetError> {
    if rest.contains(['?', '#']) {
        return Err(TargetError::Part {
            part: "URL",
            fault: "has a query or a fragment, which mean nothing here",
        });
    }
    let (authority, directory) = match rest.split_once('/') {
        Some((authority, directory)) => (authority, self::directory(directory)?),
        None => (rest, None),
    };
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(self::user(user)?), place),
        None => (None, authority),
    };
    let (host, port) = host_and_port(place)?;
    Ok(target(host, user, port, directory))
}

fn alias(text: &str) -> Result<SshTarget, TargetError> {
    let (user, host) = match text.rsplit_once('@') {
        Some((user, host)) => (Some(self::user(user)?), host),
        None => (None, text),
    };
    if host.contains([':', '/']) {
        return Err(TargetError::AliasWithMore);
    }
    name("host", host)?;
    Ok(target(host.to_owned(), user, None, None))
}

fn target(host: String, user: Option<String>, port: Option<u16>, directory: Option<String>) -> SshTarget {
    SshTarget {
        host,
        user,
        port,
        directory,
        identities: Vec::new(),
        known_hosts: None,
        ssh_config: true,
    }
}

fn user(text: &str) -> Result<String, TargetError> {
    // Before decoding: `%3A` is part of a name, a bare `:` starts a password (RFC 3986 section 3.2.1).
    if text.contains(':') {
        return Err(TargetError::Password);
    }
    let user = percent_decoded("user", text)?;
    name("user", &user)?;
    Ok(user)
}

fn host_and_port(place: &str) -> Result<(String, Option<u16>), TargetError> {
    let (host, port) = if let Some(bracketed) = place.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']').ok_or(TargetError::Part {
            part: "host",
            fault: "opens a bracket that is not closed",
        })?;
        host.parse::<Ipv6Addr>().map_err(|_| TargetError::Part {
            part: "host",
            fault: "has brackets but is not an IPv6 address",
        })?;
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => {
                return Err(TargetError::Part {
                    part: "host",
                    fault: "is followed by something other than `:port`",
                });
            }
        }
    } else {
        match place.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err(TargetError::Part {
                    part: "host",
                    fault: "is an IPv6 address, which needs brackets: ssh://[::1]:22",
                });
            }
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        }
    };
    name("host", host)?;
    let port = match port {
        // `+22` and ` 22` are numbers to some parsers only.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse() {
            Ok(0) | Err(_) => return Err(TargetError::Port),
            Ok(port) => Some(port),
        },
        Some(_) => return Err(TargetError::Port),
        None => None,
    };
    Ok((host.to_owned(), port))
}

/// What follows the first `/`: `None` is the home folder.
fn directory(text: &str) -> Result<Option<String>, TargetError> {
    let decoded = percent_decoded("directory", text)?;
    if decoded.contains(char::is_control) {
        return Err(TargetError::Part {
            part: "directory",
            fault: "holds a control character",
        });
    }
    Ok(match decoded.strip_prefix("~/") {
        _ if decoded.is_empty() || decoded == "~" => None,
        Some("") => None,
        // `./` keeps a name such as `-x` from being an option of `cd`.
        Some(below_home) => Some(format!("./{below_home}")),
        None => Some(format!("/{decoded}")),
    })
}

/// Refuses what `ssh`, a shell or a log could take for something else than a name.
fn name(part: &'static str, text: &str) -> Result<(), TargetError> {
    let fault = if text.is_empty() {
        "is empty"
    } else if text.starts_with('-') {
        "begins with `-`, like an option"
    } else if text.contains(|c: char| c.is_whitespace() || crate::telemetry::escape::turns_the_line(c)) {
        "holds whitespace or a control character"
    } else if (part == "host" && text.contains('\\'))
        || text.contains([
            '/', ':', '@', '"', '\'', '`', '$', '*', '?', '!', ',', ';', '&', '|', '<', '>', '(', ')', '%',
        ]) && !is_ipv6(part, text)
    {
        "holds a character that no such name has"
    } else {
        return Ok(());
    };
    Err(TargetError::Part { part, fault })
}

fn is_ipv6(part: &str, text: &str) -> bool {
    part == "host" && text.parse::<Ipv6Addr>().is_ok()
}

fn percent_decoded(part: &'static str, text: &str) -> Result<String, TargetError> {
    let fault = TargetError::Part {
        part,
        fault: "has a `%` that is not followed by two hexadecimal digits, or is not UTF-8",
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(fault);
        };
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| fault.clone())?);
    }
    String::from_utf8(bytes).map_err(|_| fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ssh_url_is_taken_apart() {
        let full = ssh("ssh://agent@host.example:2222/srv/work%20dir");

        assert_eq!(
            (full.host.as_str(), full.user.as_deref(), full.port),
            ("host.example", Some("agent"), Some(2222))
        );
        assert_eq!(full.directory.as_deref(), Some("/srv/work dir"));
        assert_eq!(ssh("ssh://h").directory, None);
        assert_eq!(ssh("ssh://h/").directory, None);
        assert_eq!(ssh("ssh://h/~/x").directory.as_deref(), Some("./x"));
        assert_eq!(ssh("ssh://h/~").directory, None);
        assert_eq!(ssh("ssh://DOMAIN%5Cme@h").user.as_deref(), Some("DOMAIN\\me"));
    }

    #[test]
    fn an_ipv6_address_stands_in_brackets() {
        let target = ssh("ssh://root@[::1]:22");

        assert_eq!((target.host.as_str(), target.port), ("::1", Some(22)));
        assert!(parse("ssh://root@::1").is_err());
        assert!(parse("ssh://[::1").is_err());
        assert!(parse("ssh://[::1]x").is_err());
        assert!(parse("ssh://[host]").is_err());
    }

    #[test]
    fn an_alias_may_carry_a_user_and_nothing_more() {
        assert_eq!(
            (ssh("build-box").host.as_str(), ssh("build-box").user),
            ("build-box", None)
        );
        assert_eq!(ssh("me@build-box").user.as_deref(), Some("me"));
        assert_eq!(parse("build-box:22").unwrap_err(), TargetError::AliasWithMore);
        assert!(matches!(parse("local"), Ok(TargetSpec::Local)));
        assert_eq!(ssh("ssh://local").host, "local");
    }

    #[test]
    fn a_password_is_refused_and_not_repeated() {
        let error = parse("ssh://me:hunter2@host").unwrap_err();

        assert_eq!(error, TargetError::Password);
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn what_looks_like_an_option_or_hides_something_is_refused() {
        for text in [
            "",
            "-oProxyCommand=x",
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://me@-host",
            "a b",
            "a\nb",
            "ssh://a%0ab@h",
            "ssh://h/%00",
            "ssh://%zz@h",
            "ssh://h:0",
            "ssh://h:65536",
            "ssh://h:+22",
            "ssh://h:",
            "ssh://",
            "ssh://@h",
            "ssh://me@",
            "ssh://h?x",
            "ssh://h#x",
            "h;id",
            "$(id)",
            "`id`",
            "a\u{202e}b",
            "ssh://a@b@c",
        ] {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn every_provider_is_a_kind_of_target() {
        for provider in provider::PROVIDERS {
            let key = provider.key;
            let Ok(TargetSpec::Provider(fresh)) = parse(&format!("{key}:")) else {
                panic!("{key}: is not taken")
            };
            let Ok(TargetSpec::Provider(known)) = parse(&format!("{key}:a/b:c")) else {
                panic!("{key}:ID is not taken")
            };

            assert_eq!((fresh.spec.key, fresh.id), (key, None));
            assert_eq!(known.id.as_deref(), Some("a/b:c"));
            for bad in ["//abc", "-x", "a b", "a\u{202e}b", &"x".repeat(513)] {
                assert!(parse(&format!("{key}:{bad}")).is_err(), "{key}:{bad} was taken");
            }
            assert!(TargetError::Empty.to_string().contains(&format!("`{key}:[ID]`")));
        }
    }

    #[test]
    fn a_kind_that_is_none_is_told_from_an_alias_with_a_port() {
        for (text, scheme) in [
            ("http://host", "http://"),
            ("nobody:abc", "nobody:"),
            ("nobody:", "nobody:"),
        ] {
            assert_eq!(parse(text).unwrap_err(), TargetError::Scheme(scheme.into()));
        }
        for text in ["box:22", "box:/srv"] {
            assert_eq!(parse(text).unwrap_err(), TargetError::AliasWithMore);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_what_is_taken_is_a_plain_name(text in proptest::prelude::any::<String>()) {
            if let Ok(TargetSpec::Ssh(target)) = parse(&text) {
                proptest::prop_assert!(!target.host.starts_with('-') && !target.host.contains(char::is_whitespace));
                proptest::prop_assert!(!target.user.is_some_and(|user| user.starts_with('-') || user.contains(char::is_control)));
            }
        }
    }

    fn ssh(text: &str) -> SshTarget {
        match parse(text) {
            Ok(TargetSpec::Ssh(target)) => target,
            other => panic!("{text}: {other:?}"),
        }
    }
}
