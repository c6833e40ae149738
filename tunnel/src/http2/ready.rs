//! The READY gate: the one line on a gateway's stdout that says that its listener is bound.
//!
//! Here: finding that line among whatever a terminal, a profile or a wrapper may print, without a clock and without IO.
//! Not here: how long to wait, and what follows the line (`preface`).

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};

/// READY must end within so many bytes; the largest frame of the codec and some room for noise.
pub const NOISE_LIMIT_BYTES: usize = 262_144 + 4_096;

/// What the gate makes of what it has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Not there yet.
    Waiting,
    /// The gateway is ready; what came behind the line belongs to the connection.
    Accepted {
        /// The bytes behind the line feed.
        rest: Bytes,
    },
    /// It will not become ready.
    Failed(ReadyFault),
}

/// Why a gateway does not become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyFault {
    /// Too many other bytes: [`NOISE_LIMIT_BYTES`].
    Contaminated,
    /// Somebody else's READY: it repeats another nonce.
    NonceMismatch,
}

/// Takes chunks of a gateway's stdout until READY; then it is spent.
#[derive(Debug)]
pub struct ReadyGate {
    nonce: String,
    /// What follows the last line feed that was dealt with.
    held: BytesMut,
    /// Bytes of `held` that are known to hold no line feed.
    scanned: usize,
    /// Bytes of the lines that were skipped, line feeds and all.
    consumed: usize,
}

impl ReadyGate {
    /// A gate for the gateway that was given this nonce.
    #[must_use]
    pub fn new(nonce: impl Into<String>) -> Self {
        Self {
            nonce: nonce.into(),
            held: BytesMut::new(),
            scanned: 0,
            consumed: 0,
        }
    }

    /// Takes one chunk. After anything but [`Ready::Waiting`] the gate must not be fed again.
    pub fn feed(&mut self, chunk: &[u8]) -> Ready {
        self.held.extend_from_slice(chunk);
        while let Some(at) = self.next_line_end() {
            if self.consumed.saturating_add(at) > NOISE_LIMIT_BYTES {
                return Ready::Failed(ReadyFault::Contaminated);
            }
            let line = self.held.split_to(at);
            let _ = self.held.split_to(1);
            self.scanned = 0;
            self.consumed = self.consumed.saturating_add(at).saturating_add(1);
            match nonce_of(&line) {
                Some(nonce) if nonce == self.nonce => {
                    return Ready::Accepted {
                        rest: self.held.split().freeze(),
                    };
                }
                Some(_) => return Ready::Failed(ReadyFault::NonceMismatch),
                None if self.consumed > NOISE_LIMIT_BYTES => {
                    return Ready::Failed(ReadyFault::Contaminated);
                }
                None => {}
            }
        }
        if self.consumed.saturating_add(self.held.len()) > NOISE_LIMIT_BYTES {
            return Ready::Failed(ReadyFault::Contaminated);
        }
        Ready::Waiting
    }

    fn next_line_end(&mut self) -> Option<usize> {
        let unscanned = self.held.get(self.scanned..).unwrap_or_default();
        let found = unscanned.iter().position(|byte| *byte == b'\n');
        match found {
            Some(at) => Some(self.scanned + at),
            None => {
                self.scanned = self.held.len();
                None
            }
        }
    }
}

/// The nonce of the READY frame on this line, if there is one.
///
/// Terminals put escape sequences in front of a line, so a line that is no frame as a whole is read once more from its
/// first brace on.
fn nonce_of(line: &[u8]) -> Option<String> {
    ready_nonce(line).or_else(|| {
        let brace = line.iter().position(|byte| *byte == b'{')?;
        if brace == 0 {
            return None;
        }
        ready_nonce(line.get(brace..)?)
    })
}

/// Strict: version 2, type `ready`, a nonce that is text, and not one key more.
fn ready_nonce(frame: &[u8]) -> Option<String> {
    let mut frame: Map<String, Value> = serde_json::from_slice(frame).ok()?;
    if frame.len() != 3 || frame.get("version")?.as_f64() != Some(2.0) || frame.get("type")? != "ready" {
        return None;
    }
    match frame.remove("nonce")? {
        Value::String(nonce) => Some(nonce),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
    const READY: &str = "{\"version\":2,\"type\":\"ready\",\"nonce\":\"0f1e2d3c4b5a69788796a5b4c3d2e1f0\"}\n";

    fn whole(bytes: &[u8]) -> Ready {
        ReadyGate::new(NONCE).feed(bytes)
    }

    /// The same byte for byte: where the chunks end must not matter.
    fn bytewise(bytes: &[u8]) -> Ready {
        let mut gate = ReadyGate::new(NONCE);
        for (at, byte) in bytes.iter().enumerate() {
            match gate.feed(&[*byte]) {
                Ready::Waiting => {}
                Ready::Accepted { rest } => {
                    assert!(rest.is_empty());
                    let rest = Bytes::copy_from_slice(&bytes[at + 1..]);
                    return Ready::Accepted { rest };
                }
                failed @ Ready::Failed(_) => return failed,
            }
        }
        Ready::Waiting
    }

    fn accepted(rest: &'static str) -> Ready {
        Ready::Accepted {
            rest: Bytes::from_static(rest.as_bytes()),
        }
    }

    #[test]
    fn each_row_of_the_gate_is_as_published_however_the_bytes_are_cut() {
        let other = READY.replace('f', "e");
        let mismatch = Ready::Failed(ReadyFault::NonceMismatch);
        let rows: Vec<(String, Ready)> = vec![
            (READY.to_owned(), accepted("")),
            (format!("{READY}PRI * more"), accepted("PRI * more")),
            (format!("\n\nwelcome\n{READY}"), accepted("")),
            (READY.replace('\n', "\r\n"), accepted("")),
            (format!("\x1b[?2004l\r{READY}"), accepted("")),
            (
                "{ \"nonce\" : \"0f1e2d3c4b5a69788796a5b4c3d2e1f0\", \"type\":\"ready\", \"version\":2.0}\n"
                    .to_owned(),
                accepted(""),
            ),
            // A line that is no frame, then one that is.
            (format!("{{oops\n{READY}"), accepted("")),
            // Another nonce fails at once, also behind noise and behind a brace retry.
            (other.clone(), mismatch.clone()),
            (format!("noise\n\x1b[m{other}{READY}"), mismatch),
            // Noise, not failures: the wrong version, a key too many, two frames on a line, other frames, other types.
            (READY.replace(":2,", ":1,"), Ready::Waiting),
            (READY.replace(":2,", ":\"2\","), Ready::Waiting),
            (READY.replace('}', ",\"port\":1}"), Ready::Waiting),
            (READY.replace("\"ready\"", "\"heartbeat\""), Ready::Waiting),
            (format!("{}{READY}", READY.trim_end()), Ready::Waiting),
            (
                "{\"version\":2,\"type\":\"error\",\"code\":\"x\"}\n".to_owned(),
                Ready::Waiting,
            ),
            (format!("[{}]\n", READY.trim_end()), Ready::Waiting),
            ("null\n".to_owned(), Ready::Waiting),
            (
                READY.replace("\"0f1e2d3c4b5a69788796a5b4c3d2e1f0\"", "7"),
                Ready::Waiting,
            ),
            // Without its line feed it has not ended.
            (READY.trim_end().to_owned(), Ready::Waiting),
            // The preface of HTTP/2 ahead of it is noise like any other.
            (format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n{READY}"), accepted("")),
        ];
        for (bytes, expected) in rows {
            assert_eq!(whole(bytes.as_bytes()), expected, "{bytes:?}");
            assert_eq!(bytewise(bytes.as_bytes()), expected, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_noise_too() {
        let mut bytes = vec![0xff, 0xfe, 0x00];
        bytes.extend_from_slice(READY.as_bytes());

        assert_eq!(whole(&bytes), accepted(""));
    }

    #[test]
    fn ready_ends_within_its_limit_or_not_at_all() {
        // The line feed of READY stands at the limit.
        let noise = NOISE_LIMIT_BYTES - (READY.len() - 1);
        let mut fits = vec![b'x'; noise - 1];
        fits.push(b'\n');
        fits.extend_from_slice(READY.as_bytes());
        let mut over = vec![b'x'; noise];
        over.push(b'\n');
        over.extend_from_slice(READY.as_bytes());

        assert_eq!(whole(&fits), accepted(""));
        assert_eq!(whole(&over), Ready::Failed(ReadyFault::Contaminated));
    }

    #[test]
    fn noise_without_end_is_contamination() {
        let contaminated = Ready::Failed(ReadyFault::Contaminated);

        assert_eq!(whole(&vec![b'x'; NOISE_LIMIT_BYTES]), Ready::Waiting);
        assert_eq!(whole(&vec![b'x'; NOISE_LIMIT_BYTES + 1]), contaminated);
        assert_eq!(whole(&vec![b'\n'; NOISE_LIMIT_BYTES]), Ready::Waiting);
        assert_eq!(whole(&vec![b'\n'; NOISE_LIMIT_BYTES + 1]), contaminated);
        assert_eq!(whole("noise\n".repeat(60_000).as_bytes()), contaminated);
    }

    #[test]
    fn a_deep_nest_of_braces_is_noise_and_no_overflow() {
        let mut bytes = vec![b'{'; 100_000];
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice("[".repeat(100_000).as_bytes());
        bytes.extend_from_slice(b"\n");
        bytes.extend_from_slice(READY.as_bytes());

        assert_eq!(whole(&bytes), accepted(""));
    }
}
