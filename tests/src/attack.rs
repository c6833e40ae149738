//! The table of attacks: raw requests, what must be answered, and what may reach the upstream.
//!
//! Here: the form of `attacks/*.toml` and a runner that works against any session. Not here: the attacks.
//!
//! In a row's `request`, line ends of the file mean nothing and `\r`, `\n`, `\t`, `\0`, `\\` and `\xHH` are bytes.
//! `{token}`, `{host}` and `{port}` are the session's own, `{auth}` is its Host and Authorization lines, and
//! `{repeat N TEXT}` is TEXT as often as that.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::raw::{Agent, Broken, Wire};
use crate::upstream::{Seen, Upstream};
use crate::world::assert_headers;

/// How long a refused connection may stay open: the rest of the request is read and dropped first.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// One file of attacks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    attack: Vec<Attack>,
}

/// One row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attack {
    /// What is tried, as a phrase.
    pub name: String,
    /// The bytes, in the notation of the module.
    pub request: String,
    /// Expected answers in order: `400 malformed_request`, `200`, `400 a|b` for either code, or `closed`.
    pub answers: Vec<String>,
    /// How many requests reach the upstream, exactly.
    #[serde(default)]
    pub reaches: usize,
    /// Text that must not occur in any target or header that reaches the upstream.
    #[serde(default)]
    pub never: Vec<String>,
    /// The connection is closed after the last answer.
    #[serde(default)]
    pub closes: bool,
    /// The caller shuts its sending side after the last byte.
    #[serde(default)]
    pub half_close: bool,
    /// The answers are to HEAD, so they have no body and no code.
    #[serde(default)]
    pub head: bool,
}

/// Every row of the tables in this package.
///
/// # Panics
///
/// With the parser's words where a table is wrong.
pub fn table() -> Vec<Attack> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("attacks");
    let entries = std::fs::read_dir(&folder).expect("the folder of attacks is there");
    let mut files: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let read = |file: &std::path::PathBuf| {
        let text = std::fs::read_to_string(file).expect("a table is text");
        let table: Table =
            toml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        table.attack
    };
    files.iter().flat_map(read).collect()
}

impl Attack {
    /// The bytes for this session.
    ///
    /// # Panics
    ///
    /// With the row's name where the notation is wrong.
    pub fn bytes(&self, agent: &Agent) -> Vec<u8> {
        let host = agent.host();
        let port = host.rsplit(':').next().unwrap_or_default().to_owned();
        let auth = format!("Host: {host}\\r\\nAuthorization: Bearer {}\\r\\n", agent.token);
        let text: String = self.request.lines().collect();
        let text = text
            .replace("{auth}", &auth)
            .replace("{token}", &agent.token)
            .replace("{host}", &host)
            .replace("{port}", &port);
        unescape(&repeat(&text)).unwrap_or_else(|| panic!("{}: bad notation", self.name))
    }

    /// Tries it, and says what came out otherwise than promised.
    ///
    /// # Errors
    ///
    /// What was expected and what happened, as a sentence.
    pub async fn attempt(&self, agent: &Agent, upstream: &Upstream) -> Result<(), String> {
        let mark = upstream.count();
        let mut wire = Wire::connect(&agent.url)
            .await
            .map_err(|broken| format!("connect: {broken:?}"))?;
        let method = if self.head { "HEAD" } else { "POST" };
        let methods = vec![method; self.answers.len()];
        let answers = wire.exchange(&self.bytes(agent), &methods, self.half_close).await;
        for (number, expected) in self.answers.iter().enumerate() {
            let Some(answer) = answers.get(number) else {
                return Err(format!("no answer {number}"));
            };
            let (status, code) = match answer {
                Ok(answer) => (answer.status.to_string(), answer.code()),
                Err(Broken::Closed) => ("closed".to_owned(), String::new()),
                Err(other) => return Err(format!("answer {number}: {other:?}, expected {expected}")),
            };
            if !fits(expected, &status, &code, self.head) {
                return Err(format!("answer {number} is {status} {code}, expected {expected}"));
            }
            if let Ok(answer) = answer
                && answer.header("x-paperclip-bridge-request-id").is_none()
            {
                return Err(format!("answer {number} has no request id"));
            }
        }
        if self.closes && !wire.is_closed_within(CLOSE_LIMIT).await {
            return Err("the connection was not closed, or more was answered".to_owned());
        }
        self.check_upstream(&upstream.seen_since(mark))
    }

    fn check_upstream(&self, seen: &[Seen]) -> Result<(), String> {
        if seen.len() != self.reaches {
            let what: Vec<_> = seen
                .iter()
                .map(|one| format!("{} {}", one.method, one.target))
                .collect();
            return Err(format!(
                "{} requests reached the upstream instead of {}: {what:?}",
                seen.len(),
                self.reaches
            ));
        }
        assert_headers(seen);
        let lines = seen
            .iter()
            .map(|one| format!("{} {:?}\n", one.target, one.headers));
        let everything = lines.collect::<String>().to_ascii_lowercase();
        match self
            .never
            .iter()
            .find(|text| everything.contains(&text.to_ascii_lowercase()))
        {
            Some(text) => Err(format!("{text:?} reached the upstream")),
            None => Ok(()),
        }
    }
}

fn fits(expected: &str, status: &str, code: &str, head: bool) -> bool {
    match expected.split_once(' ') {
        Some((wanted, codes)) => wanted == status && (head || codes.split('|').any(|one| one == code)),
        None => expected.split('|').any(|one| one == status),
    }
}

fn repeat(text: &str) -> String {
    let Some((before, rest)) = text.split_once("{repeat ") else {
        return text.to_owned();
    };
    let (inside, after) = rest.split_once('}').expect("a repeat ends with }");
    let (count, what) = inside.split_once(' ').expect("a repeat has a count and a text");
    let count = count.parse().expect("a repeat counts in digits");
    format!("{before}{}{}", what.repeat(count), repeat(after))
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![];
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (letter, after) = rest.split_first()?;
        rest = after;
        bytes.push(match letter {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
                rest = &rest[2..];
                u8::from_str_radix(digits, 16).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_table_has_at_least_eighty_attacks_under_names_of_their_own() {
        let table = table();
        let names: HashSet<_> = table.iter().map(|attack| attack.name.as_str()).collect();

        assert!(table.len() >= 80, "{}", table.len());
        assert_eq!(names.len(), table.len());
    }

    #[test]
    fn every_row_has_bytes_and_an_expectation() {
        let agent = Agent {
            url: "http://127.0.0.1:9".to_owned(),
            token: "pcb_x".to_owned(),
        };

        for attack in table() {
            let bytes = attack.bytes(&agent);

            assert!(!bytes.is_empty() && !attack.answers.is_empty(), "{}", attack.name);
            assert!(
                !bytes.windows(7).any(|seven| seven == b"{token}"),
                "{}",
                attack.name
            );
            for answer in &attack.answers {
                let status = answer.split([' ', '|']).next().unwrap();
                assert!(
                    status == "closed" || status.parse::<u16>().is_ok(),
                    "{}: {answer}",
                    attack.name
                );
            }
        }
    }

    #[test]
    fn the_notation_means_bytes() {
        assert_eq!(unescape(r"a\r\n\xff\0\\").unwrap(), b"a\r\n\xff\0\\");
        assert_eq!(repeat("a{repeat 3 bc}d{repeat 2 e}"), "abcbcbcdee");
        assert_eq!(unescape(r"\q"), None);
    }

    #[tokio::test]
    async fn a_server_that_lets_everything_through_fails_the_table() {
        let upstream = Upstream::start().await;
        let agent = Agent {
            url: upstream.url(),
            token: "pcb_x".to_owned(),
        };
        let attack = table()
            .into_iter()
            .find(|attack| attack.answers == ["403 route_not_allowed"])
            .unwrap();

        let said = attack.attempt(&agent, &upstream).await;

        assert!(said.unwrap_err().contains("expected 403 route_not_allowed"));
    }
}
