//! What a gateway prints before its connection: the READY line, then the HTTP/2 preface.
//!
//! Laws: the same bytes lead to the same verdict however they are cut; a slow reading of the whole text agrees; READY
//! and the preface come within their limit or not at all, so that noise without end is given up after that much of it;
//! what follows the preface is handed on to the byte.

use serde_json::Value;
use tunnel::http2::preface::{PREFACE, Preface, PrefaceScan};
use tunnel::http2::ready::{NOISE_LIMIT_BYTES, Ready, ReadyFault, ReadyGate};

/// What the gateway was given.
const NONCE: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// This byte stands for much noise, so that short inputs reach the limits.
const MUCH: u8 = 0xfe;
/// How much it stands for.
const NOISE: usize = 44_000;
/// So often at most: more than the limit twice.
const MOST: usize = 14;
/// Longer texts are not cut into single bytes.
const MOST_IN_BYTES: usize = 8192;

/// How a text was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Waiting,
    NotReady(ReadyFault),
    ReadyAndWaiting,
    PrefaceMissing,
    /// From the preface on.
    Connection(Vec<u8>),
}

/// Takes the bytes as what comes out of a gateway.
///
/// # Panics
///
/// On a broken law.
pub fn ready(data: &[u8]) {
    let text = grown(data);
    let shown = || data.escape_ascii().to_string();
    let expected = slow(&text);
    for piece in [text.len().max(1), 977, 1] {
        if piece > 1 || text.len() <= MOST_IN_BYTES {
            let taken = take(&text, piece);
            assert!(
                taken == expected,
                "{} in pieces of {piece}, not {}: {}",
                outline(&taken),
                outline(&expected),
                shown()
            );
        }
    }
    // It takes its time, and what it proves depends on the end of the text only.
    if text.len() <= MOST_IN_BYTES && data.len().is_multiple_of(16) {
        let flood = [&text[..], &vec![b'x'; 2 * NOISE_LIMIT_BYTES + 64]].concat();
        let given_up = take(&flood, 16 * 1024);
        assert!(
            !matches!(given_up, Verdict::Waiting | Verdict::ReadyAndWaiting),
            "noise without end is listened to: {}",
            shown()
        );
    }
}

fn outline(verdict: &Verdict) -> String {
    let text = format!("{verdict:?}");
    text.chars().take(200).collect()
}

fn grown(data: &[u8]) -> Vec<u8> {
    let mut left = MOST;
    let mut text = Vec::with_capacity(data.len());
    for byte in data {
        if *byte == MUCH && left > 0 {
            left -= 1;
            text.resize(text.len() + NOISE, b'x');
        } else {
            text.push(*byte);
        }
    }
    text
}

fn take(text: &[u8], piece: usize) -> Verdict {
    let mut chunks = text.chunks(piece);
    let mut gate = ReadyGate::new(NONCE);
    let rest = loop {
        let Some(chunk) = chunks.next() else {
            return Verdict::Waiting;
        };
        match gate.feed(chunk) {
            Ready::Waiting => {}
            Ready::Accepted { rest } => break rest,
            Ready::Failed(fault) => return Verdict::NotReady(fault),
        }
    };
    let mut scan = PrefaceScan::default();
    let mut verdict = scan.feed(&rest);
    loop {
        match verdict {
            Preface::Found(begin) => {
                let left: Vec<u8> = chunks.flatten().copied().collect();
                return Verdict::Connection([&begin[..], &left].concat());
            }
            Preface::Missing => return Verdict::PrefaceMissing,
            Preface::Waiting => {}
        }
        let Some(chunk) = chunks.next() else {
            return Verdict::ReadyAndWaiting;
        };
        verdict = scan.feed(chunk);
    }
}

fn slow(text: &[u8]) -> Verdict {
    let too_much = Verdict::NotReady(ReadyFault::Contaminated);
    let mut begin = 0;
    while let Some(length) = text[begin..].iter().position(|byte| *byte == b'\n') {
        let end = begin + length;
        if end > NOISE_LIMIT_BYTES {
            return too_much;
        }
        let line = &text[begin..end];
        begin = end + 1;
        let brace = line.iter().position(|byte| *byte == b'{').unwrap_or(0);
        match nonce(line).or_else(|| nonce(&line[brace..])) {
            Some(nonce) if nonce == NONCE => return slow_preface(&text[begin..]),
            Some(_) => return Verdict::NotReady(ReadyFault::NonceMismatch),
            None if begin > NOISE_LIMIT_BYTES => return too_much,
            None => {}
        }
    }
    if text.len() > NOISE_LIMIT_BYTES {
        return too_much;
    }
    Verdict::Waiting
}

fn nonce(line: &[u8]) -> Option<String> {
    let frame: Value = serde_json::from_slice(line).ok()?;
    let keys = frame.as_object()?.len();
    let version = frame["version"].as_f64()?;
    let right = keys == 3 && (version - 2.0).abs() < f64::EPSILON && frame["type"] == "ready";
    frame["nonce"].as_str().filter(|_| right).map(str::to_owned)
}

fn slow_preface(text: &[u8]) -> Verdict {
    let found = (0..text.len()).find(|at| text[*at..].starts_with(PREFACE));
    // The last bytes may still become one.
    let noise = found.unwrap_or_else(|| (text.len() + 1).saturating_sub(PREFACE.len()));
    match found {
        _ if noise > NOISE_LIMIT_BYTES => Verdict::PrefaceMissing,
        Some(at) => Verdict::Connection(text[at..].to_vec()),
        None => Verdict::ReadyAndWaiting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_reading_knows_each_end() {
        let ready = format!("{{\"version\":2,\"type\":\"ready\",\"nonce\":\"{NONCE}\"}}\n");
        let preface = String::from_utf8_lossy(PREFACE);
        let text = |text: &str| slow(text.as_bytes());

        assert_eq!(text("noise\n"), Verdict::Waiting);
        assert_eq!(text(&ready), Verdict::ReadyAndWaiting);
        assert_eq!(
            text(&format!("x{ready}motd{preface}!")),
            Verdict::Connection(format!("{preface}!").into_bytes())
        );
        assert_eq!(
            text(&ready.replace('f', "e")),
            Verdict::NotReady(ReadyFault::NonceMismatch)
        );
        assert_eq!(
            slow(&vec![b'x'; NOISE_LIMIT_BYTES + 1]),
            Verdict::NotReady(ReadyFault::Contaminated)
        );
        let late = format!("{ready}{}{preface}", "x".repeat(NOISE_LIMIT_BYTES + 1));
        assert_eq!(text(&late), Verdict::PrefaceMissing);
    }
}
