//! `envelope sign | verify`: signed requests, one JSON object a line, for auditors.
//!
//! Here: the commands and the loop over lines. In `read` what stands in a line, in `judge` the two answers, in `nonces` the
//! store of used nonces. Not here: what is signed and what is refused (`policy::envelope`); this is the same code that
//! signs the daemon's own requests.

use std::io::{self, BufRead, Read as _};
use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::cli::exit::{Exit, Failure};
use crate::cli::stdio::print_json;

mod read;
mod judge;
mod nonces;

use nonces::NonceStore;

/// Longest line, in bytes: a body of 64 MiB in base64, and room for the rest.
const MAX_LINE_BYTES: usize = 96 * 1024 * 1024;

/// `envelope sign | verify`.
#[derive(Debug, Subcommand)]
pub(crate) enum EnvelopeCommand {
    /// Sign requests read from standard input, one JSON object a line
    #[command(after_long_help = SIGN_HELP)]
    Sign,
    /// Judge signed requests read from standard input, one JSON object a line
    #[command(after_long_help = VERIFY_HELP)]
    Verify {
        /// Where used nonces are kept, for later runs and other processes [default: in memory]
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
    },
}

const VERIFY_HELP: &str = r#"In:
  {"id", "now", "concurrent"?,
   "config": {"keys": {ID: {"key": BASE64, "notBefore"?, "notAfter"?}},
              "allowed_hosts": [HOST], "max_body"?: BYTES, "bearer": TEXT},
   "requests": [{"method", "target", "headers": [[NAME, VALUE]], "trailers"?, "body_b64"?,
                 "chunked"?, "at"?}]}
Out:
  {"id", "verdicts": [{"allow", "status", "code"}]}

`now` is the clock, and a request's `at` is its own. now, at, notBefore and notAfter are
Unix seconds, or RFC 3339 such as "2026-01-01T00:00:00Z"; a notBefore or notAfter of null is
no limit. `max_body` is 10485760 unless given. With "concurrent": true the requests are
judged at once: of equal nonces exactly one passes.
A line that cannot be read gives {"id", "error"}, and the next one goes on. A `config` that
cannot be used says why in "error" and refuses each request with 503.
docs/signed-requests.md has the order of the checks and the codes."#;

const SIGN_HELP: &str = r#"In:
  {"id", "key": BASE64, "key_id", "now", "nonce"?,
   "requests": [{"method", "target", "headers": [[NAME, VALUE]], "body_b64"?, "at"?, "nonce"?}]}
Out:
  {"id", "requests": [{"headers": [[NAME, VALUE]], "string_to_sign"}]}

Of the headers, Host, Content-Type and X-Paperclip-Environment-Id, -Issue-Id and -Run-Id are
signed; those that come out are to be added. now and at are Unix seconds, or RFC 3339 such as
"2026-01-01T00:00:00Z". A nonce is 22 characters of base64url; a fresh one is made for each
request that has none. The key is read from standard input only.
A line that cannot be read gives {"id", "error"}, and the next one goes on."#;

/// Carries out an `envelope` command.
///
/// # Errors
///
/// Code 1 where standard input cannot be read, or standard output not written.
pub(crate) fn run(command: &EnvelopeCommand) -> Result<Exit, Failure> {
    match command {
        EnvelopeCommand::Sign => each_line(judge::sign),
        EnvelopeCommand::Verify { state_dir } => {
            let nonces = NonceStore::new(state_dir.clone());
            each_line(|line| judge::verify(line, &nonces))
        }
    }
}

/// Answers each line as soon as it is read.
fn each_line(answer: impl Fn(&Value) -> Result<Value, String>) -> Result<Exit, Failure> {
    let mut input = io::stdin().lock();
    let unreadable = |error| Failure::new(Exit::Failed, "cannot read standard input").because(error);
    while let Some(line) = next_line(&mut input).map_err(unreadable)? {
        let Line::Whole(line) = line else {
            print_json(
                &json!({ "id": null, "error": format!("the line is longer than {MAX_LINE_BYTES} bytes") }),
            )?;
            continue;
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let (id, answered) = match serde_json::from_slice::<Value>(&line) {
            Ok(value) => (value.get("id").cloned().unwrap_or_default(), answer(&value)),
            // Where, and not what: the line holds keys.
            Err(error) => {
                let place = format!("the line is not JSON, at its character {}", error.column());
                (Value::Null, Err(place))
            }
        };
        let mut answered = answered.unwrap_or_else(|error| json!({ "error": error }));
        if let Some(object) = answered.as_object_mut() {
            object.insert("id".to_owned(), id);
        }
        print_json(&answered)?;
    }
    Ok(Exit::Ok)
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
}

/// The next line, which ends at its line end or with the input.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let most = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX);
    if input.by_ref().take(most + 1).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.len() <= MAX_LINE_BYTES || line.ends_with(b"\n") {
        return Ok(Some(Line::Whole(line)));
    }
    // The rest goes by in pieces.
    loop {
        line.clear();
        let read = input.by_ref().take(64 * 1024).read_until(b'\n', &mut line)?;
        if read == 0 || line.ends_with(b"\n") {
            return Ok(Some(Line::TooLong));
        }
    }
}
