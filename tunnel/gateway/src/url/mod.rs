//! The request target as Paperclip's own gateway reads it: by the WHATWG URL rules, against `http://127.0.0.1`.
//!
//! Here: that parse, for the drop-in role only, as far as an HTTP caller can reach it. Not here: our own role, which
//! hands the target on as it came; whether a path is allowed, which the host decides on what it gets.

use std::net::Ipv6Addr;

/// What the peer keeps of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// `pathname`: led by `/`, dot segments resolved, percent-encoded.
    pub(crate) path: String,
    /// `search`: empty, or led by `?` and not only that.
    pub(crate) query: String,
}

/// The target is no URL of a kind that is relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoUrl;

/// Reads the target of a request, one character a byte.
///
/// Linear in the target's length.
///
/// # Errors
///
/// [`NoUrl`] where the peer finds none either, for schemes other than those with an authority (`foo:`, `file:`), and
/// for a host in the target that is not ASCII.
///
/// # Source
///
/// WHATWG URL, section 4.4 (basic URL parser), from "scheme start state" with a special base without a path.
pub(crate) fn parse(target: &[u8]) -> Result<Parsed, NoUrl> {
    let characters: Vec<char> = target.iter().map(|byte| char::from(*byte)).collect();
    let trimmed = characters.as_slice().trim_with(|character| character <= ' ');
    let input: Vec<char> = trimmed
        .iter()
        .copied()
        .filter(|character| !matches!(character, '\t' | '\n' | '\r'))
        .collect();
    let rest = behind_origin(&input)?;
    let fragment = rest
        .iter()
        .position(|character| *character == '#')
        .unwrap_or(rest.len());
    let rest = rest.get(..fragment).unwrap_or_default();
    let mark = rest
        .iter()
        .position(|character| *character == '?')
        .unwrap_or(rest.len());
    let (path, query) = rest.split_at_checked(mark).unwrap_or((rest, &[]));
    Ok(Parsed {
        path: pathname(path),
        query: search(query.get(1..).unwrap_or_default()),
    })
}

/// Slices without the characters at both ends that `drop` names.
trait TrimWith {
    fn trim_with(&self, drop: impl Fn(char) -> bool) -> &Self;
}

impl TrimWith for [char] {
    fn trim_with(&self, drop: impl Fn(char) -> bool) -> &Self {
        let from = self
            .iter()
            .position(|character| !drop(*character))
            .unwrap_or(self.len());
        let to = self
            .iter()
            .rposition(|character| !drop(*character))
            .map_or(from, |last| last + 1);
        self.get(from..to).unwrap_or_default()
    }
}

fn is_slash(character: char) -> bool {
    matches!(character, '/' | '\\')
}

/// What stands behind scheme and authority.
fn behind_origin(input: &[char]) -> Result<&[char], NoUrl> {
    let slashes = |text: &[char]| text.iter().take_while(|character| is_slash(**character)).count();
    let Some((scheme, rest)) = scheme(input) else {
        // Relative: two slashes of either kind open an authority.
        return if slashes(input) >= 2 {
            behind_authority(input)
        } else {
            Ok(input)
        };
    };
    match scheme.as_str() {
        // The base's own scheme: without two slashes, what follows is relative.
        "http" if slashes(rest) >= 2 => behind_authority(rest),
        "http" => Ok(rest),
        "https" | "ws" | "wss" | "ftp" => behind_authority(rest),
        _ => Err(NoUrl),
    }
}

/// The lower-case scheme and what follows its colon.
fn scheme(input: &[char]) -> Option<(String, &[char])> {
    let colon = input.iter().position(|character| *character == ':')?;
    let name = input.get(..colon)?;
    let sound = name.first()?.is_ascii_alphabetic()
        && name
            .iter()
            .all(|character| character.is_ascii_alphanumeric() || matches!(character, '+' | '-' | '.'));
    sound.then_some((
        name.iter().map(char::to_ascii_lowercase).collect(),
        input.get(colon + 1..)?,
    ))
}

/// What stands behind the authority, however many slashes lead it; the authority must be sound.
fn behind_authority(input: &[char]) -> Result<&[char], NoUrl> {
    let from = input
        .iter()
        .position(|character| !is_slash(*character))
        .unwrap_or(input.len());
    let input = input.get(from..).unwrap_or_default();
    let end = input
        .iter()
        .position(|character| is_slash(*character) || matches!(character, '?' | '#'))
        .unwrap_or(input.len());
    let (authority, rest) = input.split_at_checked(end).unwrap_or((input, &[]));
    let at = authority
        .iter()
        .rposition(|character| *character == '@')
        .map_or(0, |at| at + 1);
    let host_and_port: String = authority.iter().skip(at).collect();
    let (host, port) = match host_and_port.strip_prefix('[') {
        Some(bracketed) => {
            let (address, port) = bracketed.split_once(']').ok_or(NoUrl)?;
            address.parse::<Ipv6Addr>().map_err(|_| NoUrl)?;
            (
                None,
                port.strip_prefix(':')
                    .or(port.is_empty().then_some(""))
                    .ok_or(NoUrl)?,
            )
        }
        None => {
            let (host, port) = host_and_port.split_once(':').unwrap_or((&host_and_port, ""));
            (Some(host), port)
        }
    };
    if let Some(host) = host {
        check_host(host)?;
    }
    let sound_port = port.bytes().all(|byte| byte.is_ascii_digit())
        && (port.is_empty() || number(port, 10).is_some_and(|port| port <= 65_535));
    if sound_port { Ok(rest) } else { Err(NoUrl) }
}

/// A host name or an IPv4 address in any of its spellings.
fn check_host(raw: &str) -> Result<(), NoUrl> {
    let host = percent_decoded(raw).ok_or(NoUrl)?;
    let forbidden = |byte: u8| !matches!(byte, 0x21..=0x7e) || b"#/:<>?@[\\]^|%".contains(&byte);
    if host.is_empty() || host.bytes().any(forbidden) {
        return Err(NoUrl);
    }
    let labels = host.strip_suffix('.').unwrap_or(&host);
    let last = labels.rsplit('.').next().unwrap_or_default();
    let numeric =
        last.bytes().all(|byte| byte.is_ascii_digit()) && !last.is_empty() || ipv4_number(last).is_some();
    if numeric && !is_ipv4(labels) {
        Err(NoUrl)
    } else {
        Ok(())
    }
}

/// The host with its percent escapes resolved, where that leaves ASCII.
fn percent_decoded(raw: &str) -> Option<String> {
    let bytes = raw.as_bytes();
    let mut out = String::with_capacity(raw.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escape = raw
            .get(at + 1..at + 3)
            .filter(|pair| *byte == b'%' && pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let (value, length) = escape
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .map_or((*byte, 1), |value| (value, 3));
        if !value.is_ascii() {
            return None;
        }
        out.push(char::from(value));
        at += length;
    }
    Some(out)
}

fn is_ipv4(labels: &str) -> bool {
    let parts: Vec<Option<u64>> = labels.split('.').map(ipv4_number).collect();
    let Some((last, leading)) = parts.split_last() else {
        return false;
    };
    let room = match parts.len() {
        1 => u64::from(u32::MAX),
        2 => 0x00ff_ffff,
        3 => 0xffff,
        4 => 0xff,
        _ => return false,
    };
    leading
        .iter()
        .all(|part| part.is_some_and(|number| number <= 255))
        && last.is_some_and(|number| number <= room)
}

/// A part of an IPv4 address: decimal, octal after `0`, hexadecimal after `0x`.
fn ipv4_number(part: &str) -> Option<u64> {
    if part.is_empty() {
        return None;
    }
    if let Some(hexadecimal) = part.strip_prefix("0x").or_else(|| part.strip_prefix("0X")) {
        return if hexadecimal.is_empty() {
            Some(0)
        } else {
            number(hexadecimal, 16)
        };
    }
    match part.strip_prefix('0') {
        Some("") | None => number(part, 10),
        Some(octal) => number(octal, 8),
    }
}

/// A number of digits only; what does not fit is larger than any bound it is compared with.
fn number(digits: &str, radix: u32) -> Option<u64> {
    let sound = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    sound.then(|| u64::from_str_radix(digits, radix).unwrap_or(u64::MAX))
}

/// The path with its dot segments resolved: led by `/`, separated by `/`, percent-encoded.
fn pathname(raw: &[char]) -> String {
    // One leading separator opens the path; without it the path is relative to the root, which comes to the same.
    let raw = raw
        .strip_prefix(&['/'])
        .or(raw.strip_prefix(&['\\']))
        .unwrap_or(raw);
    let mut segments: Vec<String> = Vec::new();
    let mut pieces = raw.split(|character| is_slash(*character)).peekable();
    while let Some(piece) = pieces.next() {
        let last = pieces.peek().is_none();
        let mut segment = String::with_capacity(piece.len());
        for character in piece {
            push_encoded(&mut segment, *character, |byte| {
                byte == b' ' || b"\"#<>?^`{}".contains(&byte)
            });
        }
        match dots(&segment) {
            Dots::Two => {
                segments.pop();
                if last {
                    segments.push(String::new());
                }
            }
            Dots::One if last => segments.push(String::new()),
            Dots::One => {}
            Dots::None => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

enum Dots {
    One,
    Two,
    None,
}

fn dots(segment: &str) -> Dots {
    match segment.to_ascii_lowercase().replace("%2e", ".").as_str() {
        "." => Dots::One,
        ".." => Dots::Two,
        _ => Dots::None,
    }
}

fn search(raw: &[char]) -> String {
    if raw.is_empty() {
        return String::new();
    }
    let mut query = String::from("?");
    for character in raw {
        push_encoded(&mut query, *character, |byte| {
            byte == b' ' || b"\"#<>'".contains(&byte)
        });
    }
    query
}

/// Appends a character, percent-encoded where it is a control character, not ASCII, or in the set.
fn push_encoded(out: &mut String, character: char, in_set: impl Fn(u8) -> bool) {
    for byte in character.encode_utf8(&mut [0; 4]).bytes() {
        if matches!(byte, 0x20..=0x7e) && !in_set(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests;
