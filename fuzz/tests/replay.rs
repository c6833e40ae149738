//! The corpus, and some mutations of it, through every harness in the ordinary test run.
//!
//! The mutations are the same in every run: a broken law prints the input, escaped, to be put into a file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutated inputs a harness.
const MUTATIONS: usize = 2_000;
/// Of a harness of which each input is a connection that ends by itself.
const CONNECTIONS: usize = 1_000;
/// Where the sequence of mutations begins.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
/// Longest mutated input, in bytes.
const MAX_LEN: usize = 4_096;
/// What means something to one of the parsers.
const WORDS: [&str; 65] = [
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    "\0",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "/",
    "//",
    "/../",
    "%2e",
    "%2F",
    "%25",
    "%C3%A9",
    "?",
    "#",
    "0",
    "-1",
    "18446744073709551616",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Host: x\r\n",
    "GET / HTTP/1.1\r\n",
    "0\r\n\r\n",
    "Connection: close\r\n",
    "Expect: 100-continue\r\n",
    "@revoked ",
    "@cert-authority ",
    "*",
    "!",
    "|1|",
    "\"",
    "Match final\n",
    "Include *\n",
    "ProxyJump a,b\n",
    "Host *\n",
    "[[deny]]\n",
    "{x}",
    "--- /x\n",
    "\n\n",
    "<",
    ">",
    ".\n",
    "R a 3\n",
    "<A a>",
    "QUJD",
    "==",
    "\\u0041",
    "{",
    "}",
    "\"id\":\"a\",",
    "null",
    "../",
    ".json",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "f 3 0 1 00000008\n",
    "d 1 e x\n",
    "h 3 e\n",
    ":path: /api/agents/me\n",
    "v1={sig}",
    "X-Paperclip-Run-Id: r1\n",
    "1767225600",
];

#[test]
fn the_target_corpus_and_mutations_of_it_break_no_law() {
    replay("target", paperclip_bridge_fuzz::target);
}

#[test]
fn the_decision_corpus_and_mutations_of_it_break_no_law() {
    replay("decision", paperclip_bridge_fuzz::decision);
}

#[test]
fn the_request_corpus_and_mutations_of_it_break_no_law() {
    replay("request", paperclip_bridge_fuzz::request);
}

#[test]
fn the_ready_corpus_and_mutations_of_it_break_no_law() {
    replay("ready", paperclip_bridge_fuzz::ready);
}

#[test]
fn the_http2_corpus_and_mutations_of_it_break_no_law() {
    replay_some("http2", paperclip_bridge_fuzz::http2, CONNECTIONS);
}

#[test]
fn the_audit_corpus_and_mutations_of_it_break_no_law() {
    replay("audit", paperclip_bridge_fuzz::audit);
}

#[test]
fn the_envelope_corpus_and_mutations_of_it_break_no_law() {
    replay("envelope", paperclip_bridge_fuzz::envelope);
}

#[test]
fn the_corpus_of_signed_requests_and_mutations_of_it_break_no_law() {
    replay("envelope_signed", paperclip_bridge_fuzz::envelope_signed);
}

#[test]
fn the_listing_corpus_and_mutations_of_it_break_no_law() {
    replay("listing", paperclip_bridge_fuzz::listing);
}

#[test]
fn the_journal_corpus_and_mutations_of_it_break_no_law() {
    replay("journal", paperclip_bridge_fuzz::journal);
}

#[test]
fn the_known_hosts_corpus_and_mutations_of_it_break_no_law() {
    replay("known_hosts", paperclip_bridge_fuzz::known_hosts);
}

#[test]
fn the_ssh_config_corpus_and_mutations_of_it_break_no_law() {
    replay("ssh_config", paperclip_bridge_fuzz::ssh_config);
}

#[test]
fn the_connect_frames_corpus_and_mutations_of_it_break_no_law() {
    replay("connect_frames", paperclip_bridge_fuzz::connect_frames);
}

#[test]
fn the_sse_corpus_and_mutations_of_it_break_no_law() {
    replay("sse", paperclip_bridge_fuzz::sse);
}

#[test]
fn the_relay_frames_corpus_and_mutations_of_it_break_no_law() {
    replay("relay_frames", paperclip_bridge_fuzz::relay_frames);
}

#[test]
fn the_config_corpus_and_mutations_of_it_break_no_law() {
    replay_some("config", paperclip_bridge_fuzz::config, CONNECTIONS);
}

#[test]
fn the_control_body_corpus_and_mutations_of_it_break_no_law() {
    replay("control_body", paperclip_bridge_fuzz::control_body);
}

#[test]
fn every_corpus_folder_has_a_harness_and_every_harness_a_binary() {
    let folders = names(&crate_folder().join("corpus"));
    let binaries: Vec<String> = names(&crate_folder().join("fuzz_targets"))
        .iter()
        .map(|name| name.trim_end_matches(".rs").to_owned())
        .collect();

    assert_eq!(
        folders,
        [
            "audit",
            "config",
            "connect_frames",
            "control_body",
            "decision",
            "envelope",
            "envelope_signed",
            "http2",
            "journal",
            "known_hosts",
            "listing",
            "ready",
            "relay_frames",
            "request",
            "sse",
            "ssh_config",
            "target"
        ]
    );
    assert_eq!(folders, binaries);
}

fn replay(name: &str, harness: fn(&[u8])) {
    replay_some(name, harness, MUTATIONS);
}

fn replay_some(name: &str, harness: fn(&[u8]), mutations: usize) {
    let folder = crate_folder().join("corpus").join(name);
    let seeds: Vec<(String, Vec<u8>)> = names(&folder)
        .into_iter()
        .map(|file| {
            let bytes = std::fs::read(folder.join(&file)).expect("a seed can be read");
            (file, bytes)
        })
        .collect();
    assert!(
        !seeds.is_empty(),
        "{} is empty: a harness without seeds finds nothing",
        folder.display()
    );
    for (file, bytes) in &seeds {
        run(name, file, bytes, harness);
    }
    let mut dice = Dice(SEED);
    for number in 0..mutations {
        let (file, bytes) = dice.one_of(&seeds);
        let mut mutated = bytes.clone();
        for _ in 0..=dice.below(3) {
            mutate(&mut mutated, &mut dice, &seeds);
        }
        mutated.truncate(MAX_LEN);
        run(name, &format!("mutation {number}, of {file}"), &mutated, harness);
    }
}

fn run(name: &str, what: &str, bytes: &[u8], harness: fn(&[u8])) {
    let held = catch_unwind(AssertUnwindSafe(|| harness(bytes)));
    assert!(
        held.is_ok(),
        "{name}: {what} broke a law: b\"{}\"",
        bytes.escape_ascii()
    );
}

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice, seeds: &[(String, Vec<u8>)]) {
    let at = dice.below(bytes.len() + 1);
    let end = (at + dice.below(16)).min(bytes.len());
    match dice.below(7) {
        0 => {
            let bit = 1_u8 << dice.below(8);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= bit;
            }
        }
        1 => drop(bytes.drain(at..end)),
        2 => {
            let copy = bytes.get(at..end).unwrap_or_default().to_vec();
            bytes.splice(at..at, copy);
        }
        3 => {
            let (_, other) = dice.one_of(seeds);
            let from = dice.below(other.len() + 1);
            let tail = other.get(from..).unwrap_or_default().to_vec();
            bytes.splice(at.., tail);
        }
        4 => {
            let byte = u8::try_from(dice.below(256)).unwrap_or_default();
            bytes.insert(at, byte);
        }
        5 => {
            let word = dice.one_of(&WORDS);
            bytes.splice(at..end, word.bytes());
        }
        _ => {
            let word = dice.one_of(&WORDS);
            bytes.splice(at..at, word.bytes());
        }
    }
}

/// xorshift64: the same sequence everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let limit = u64::try_from(limit.max(1)).unwrap_or(1);
        usize::try_from((self.0 >> 11) % limit).unwrap_or_default()
    }

    fn one_of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        let at = self.below(list.len());
        list.get(at).expect("the list is not empty")
    }
}

fn crate_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the folder can be listed")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .into_string()
                .expect("a name in UTF-8")
        })
        .collect();
    names.sort();
    names
}
