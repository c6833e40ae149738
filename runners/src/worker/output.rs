//! A wrapped command's output back into bytes.
//!
//! Here: [`Decoder`], which takes both outputs as they come: the lines of `wrap`, the report of the command's pid and
//! its exit code. Not here: the events that carry them (`sse`).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::shell::{Report, ReportReader, StartedProcess};

/// The longest line: twice what is read at once, and the mark.
const LINE_LIMIT_BYTES: usize = 128 * 1024;

/// Output that no script of ours wrote.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum OutputFault {
    /// A line does not end.
    #[error("the Worker changed the command's output: a line is longer than any that was written")]
    LongLine,
    /// A line of ours holds what it cannot.
    #[error("the Worker changed the command's output: a line of it is no base64")]
    Line,
}

/// Takes a wrapped command's outputs.
#[derive(Debug)]
pub(super) struct Decoder {
    mark: Vec<u8>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    report: ReportReader,
    exit: ExitReader,
}

impl Decoder {
    pub(super) fn new(nonce: &str) -> Self {
        Self {
            mark: format!("{nonce} ").into_bytes(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            report: ReportReader::new(nonce),
            exit: ExitReader::new(nonce),
        }
    }

    /// Takes a piece of the Worker's stdout and adds what the command wrote.
    pub(super) fn stdout(&mut self, piece: &[u8], decoded: &mut Vec<u8>) -> Result<(), OutputFault> {
        lines(&mut self.stdout, piece, &self.mark, decoded)
    }

    /// Takes a piece of the Worker's stderr and adds what the command wrote.
    pub(super) fn stderr(&mut self, piece: &[u8], decoded: &mut Vec<u8>) -> Result<(), OutputFault> {
        let mut bytes = Vec::new();
        lines(&mut self.stderr, piece, &self.mark, &mut bytes)?;
        let passed = self.report.feed(bytes.into());
        self.exit.feed(&passed, decoded);
        Ok(())
    }

    /// Ends the search for marks and adds what was held back for it to the stderr.
    pub(super) fn finish(&mut self, decoded: &mut Vec<u8>) {
        let held: Bytes = self.report.finish();
        self.exit.feed(&held, decoded);
        decoded.append(&mut self.exit.held);
    }

    /// Whether the report is still awaited.
    pub(super) fn is_searching(&self) -> bool {
        self.report.is_searching()
    }

    /// The command's process, once it is known.
    pub(super) fn process(&self) -> Option<StartedProcess> {
        match self.report.report() {
            Some(Report::Started(process)) => Some(process.clone()),
            Some(Report::NoDirectory) | None => None,
        }
    }

    /// The command's exit code, once it has ended.
    pub(super) fn exit(&self) -> Option<i32> {
        self.exit.code
    }
}

/// Decodes the whole lines of `held` and `piece`. Lines without the mark are a profile's, and dropped.
fn lines(held: &mut Vec<u8>, piece: &[u8], mark: &[u8], decoded: &mut Vec<u8>) -> Result<(), OutputFault> {
    let mut rest = piece;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        if held.is_empty() {
            line_of(line, mark, decoded)?;
        } else {
            held.extend_from_slice(line);
            line_of(&std::mem::take(held), mark, decoded)?;
        }
    }
    if held.len() + rest.len() > LINE_LIMIT_BYTES {
        return Err(OutputFault::LongLine);
    }
    held.extend_from_slice(rest);
    Ok(())
}

fn line_of(line: &[u8], mark: &[u8], decoded: &mut Vec<u8>) -> Result<(), OutputFault> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(line) = line.strip_prefix(mark) else {
        return Ok(());
    };
    if let Some(text) = line.strip_prefix(b"b ") {
        return STANDARD.decode_vec(text, decoded).map_err(|_| OutputFault::Line);
    }
    let text = line.strip_prefix(b"h ").ok_or(OutputFault::Line)?;
    for pair in text.chunks(2) {
        let byte = std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
            .and_then(|pair| u8::from_str_radix(pair, 16).ok())
            .ok_or(OutputFault::Line)?;
        decoded.push(byte);
    }
    Ok(())
}

/// Takes `pcb NONCE exit N` out of a command's stderr.
#[derive(Debug)]
struct ExitReader {
    mark: Vec<u8>,
    held: Vec<u8>,
    code: Option<i32>,
}

impl ExitReader {
    fn new(nonce: &str) -> Self {
        Self {
            mark: format!("pcb {nonce} exit ").into_bytes(),
            held: Vec::new(),
            code: None,
        }
    }

    fn feed(&mut self, piece: &[u8], decoded: &mut Vec<u8>) {
        if self.code.is_some() {
            decoded.extend_from_slice(piece);
            return;
        }
        self.held.extend_from_slice(piece);
        let found = self
            .held
            .windows(self.mark.len())
            .position(|window| window == self.mark);
        let Some(at) = found else {
            let kept = (0..self.mark.len().min(self.held.len() + 1))
                .rev()
                .find(|length| {
                    self.mark
                        .get(..*length)
                        .is_some_and(|start| self.held.ends_with(start))
                })
                .unwrap_or(0);
            decoded.extend(self.held.drain(..self.held.len() - kept));
            return;
        };
        decoded.extend(self.held.drain(..at));
        let Some(end) = self.held.iter().position(|byte| *byte == b'\n') else {
            return;
        };
        let line: Vec<u8> = self.held.drain(..=end).collect();
        let number = line
            .get(self.mark.len()..end)
            .and_then(|text| std::str::from_utf8(text).ok());
        self.code = number.and_then(|text| text.parse().ok());
        decoded.append(&mut self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: &str = "00ff";

    fn decoded(lines: &[&str], piece: usize) -> Result<(Vec<u8>, Option<i32>), OutputFault> {
        let mut decoder = Decoder::new(MARK);
        let mut stderr = Vec::new();
        let text = lines.join("");
        for piece in text.as_bytes().chunks(piece) {
            decoder.stderr(piece, &mut stderr)?;
        }
        decoder.finish(&mut stderr);
        Ok((stderr, decoder.exit()))
    }

    fn line(text: &str) -> String {
        format!("{MARK} b {}\n", STANDARD.encode(text))
    }

    #[test]
    fn report_and_exit_are_taken_out_wherever_the_pieces_are_cut() {
        let lines = [
            line("a profile's word\npcb 00ff 77 group 5\n"),
            "noise of a shell\n".to_owned(),
            line("one p"),
            line("pcb 00ff exi"),
            line("t 42\n"),
            line("late\n"),
        ];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();

        for piece in [1, 3, 10, 1000] {
            let (stderr, exit) = decoded(&lines, piece).unwrap();

            assert_eq!(String::from_utf8_lossy(&stderr), "a profile's word\none plate\n");
            assert_eq!(exit, Some(42));
        }
    }

    #[test]
    fn what_only_looks_like_the_mark_is_output() {
        let (stderr, exit) = decoded(&[&line("pcb 00ff exit"), &line("ed pcb 00ff exit x\n")], 9).unwrap();

        assert_eq!(String::from_utf8_lossy(&stderr), "pcb 00ff exited ");
        assert_eq!(exit, None);
    }

    #[test]
    fn hex_is_read_too_and_what_is_neither_is_a_fault() {
        assert_eq!(decoded(&["00ff h 00ff0a\r\n"], 4).unwrap().0, b"\x00\xff\n");
        for bad in ["00ff b !\n", "00ff h 0\n", "00ff h +1\n", "00ff x 00\n"] {
            assert_eq!(decoded(&[bad], 100), Err(OutputFault::Line), "{bad}");
        }
        let long = "x".repeat(LINE_LIMIT_BYTES + 1);
        assert_eq!(decoded(&[&long], 4096), Err(OutputFault::LongLine));
    }
}
