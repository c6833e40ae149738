//! The parse against a table, and against Node's own `new URL()` where there is a Node.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;

fn told(target: &str) -> String {
    parse(target.as_bytes()).map_or_else(
        |NoUrl| "none".to_owned(),
        |parsed| format!("{} {}", parsed.path, parsed.query),
    )
}

#[test]
fn targets_become_what_the_published_gateway_makes_of_them() {
    for (target, expected) in [
        ("/api/agents/me", "/api/agents/me "),
        ("/a/./b/../c", "/a/c "),
        ("/a/%2e/b/%2E%2e/c/.%2e", "/a/ "),
        ("/a\\..\\..\\b", "/b "),
        ("/a\tb\nc", "/abc "),
        ("http://example.com:8080/x?y#z", "/x ?y"),
        ("HTTP:/x", "/x "),
        ("https:x/y", "/y "),
        ("//x/y", "/y "),
        ("///x/y", "/y "),
        ("//", "none"),
        ("/a?", "/a "),
        ("/a??", "/a ??"),
        ("/a#b?c", "/a "),
        ("*", "/* "),
        ("", "/ "),
        ("?q", "/ ?q"),
        (
            "/a b\"<>`{}^|é?'\"<>`{}|",
            "/a%20b%22%3C%3E%60%7B%7D%5E|%C3%83%C2%A9 ?%27%22%3C%3E`{}|",
        ),
        ("/a//b/", "/a//b/ "),
        ("/..//x", "//x "),
        ("/%zz%", "/%zz% "),
        ("http://256.1.1.1/", "none"),
        ("http://a b/", "none"),
        ("http://h:65536/", "none"),
        ("mailto:x", "none"),
        ("//caf\u{e9}/", "none"),
    ] {
        assert_eq!(told(target), expected, "{target:?}");
    }
}

/// A generator that needs no crate: the same targets in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn target(&mut self) -> String {
        const STARTS: [&str; 14] = [
            "/",
            "/",
            "/",
            "/",
            "/api/",
            "//",
            "\\",
            "\\\\/",
            "http://127.0.0.1",
            "http:",
            "HTTPS://u:p@Ex%41mple.com:0443",
            "ws:/",
            "",
            " /",
        ];
        const PIECES: [&str; 46] = [
            "a", "api", "/", "/", "\\", ".", "..", "/../", "/./", "%2e", "%2E%2e", ".%2e", "%", "%zz", "%00",
            "?", "?", "#", "&x=1", "=", ";", ":", "@", "'", "\"", "<", ">", "`", "{", "}", "|", "^", "[",
            "]", "~", "+", "\t", "\n", "\r", "\u{1}", "\u{7f}", "\u{e9}", "\u{ff}", "!$()*,", "1.2", "0x1",
        ];
        let mut target = STARTS[self.below(STARTS.len())].to_owned();
        for _ in 0..self.below(9) {
            target.push_str(PIECES[self.below(PIECES.len())]);
        }
        target
    }
}

/// What `new URL()` of the `node` on the path says of each target.
fn node_says(targets: &[String]) -> Option<Vec<String>> {
    const SCRIPT: &str = r#"
        const targets = JSON.parse(require("fs").readFileSync(0, "utf8"));
        console.log(JSON.stringify(targets.map((target) => {
            try { const url = new URL(target, "http://127.0.0.1"); return `${url.pathname} ${url.search}`; } catch { return "none"; }
        })));
    "#;
    let mut node = Command::new("node")
        .args(["-e", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = node.stdin.take().unwrap();
    input.write_all(&serde_json::to_vec(targets).unwrap()).unwrap();
    drop(input);
    let output = node.wait_with_output().unwrap();
    assert!(output.status.success(), "node failed");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn generated_targets_are_read_as_node_reads_them() {
    let mut dice = Dice(7);
    let targets: Vec<String> = (0..20_000).map(|_| dice.target()).collect();
    let Some(expected) = node_says(&targets) else {
        let must =
            std::env::vars().any(|(name, value)| name == "PAPERCLIP_BRIDGE_TESTS_MUST_RUN" && value == "1");
        assert!(!must, "no node on the path, and this test must run");
        println!("SKIPPED: generated_targets_are_read_as_node_reads_them (no node on the path)");
        return;
    };
    let mut differing = Vec::new();
    let mut read = 0;
    for (target, expected) in targets.iter().zip(&expected) {
        // One character a byte, as Node gives a target to its handler.
        let bytes: Vec<u8> = target
            .chars()
            .map(|character| u8::try_from(u32::from(character)).unwrap())
            .collect();
        let ours = parse(&bytes).map(|parsed| format!("{} {}", parsed.path, parsed.query));
        let same = match &ours {
            // Releases of Node differ on `^` in a path.
            Ok(ours) => ours.replace("%5E", "^") == expected.replace("%5E", "^"),
            Err(NoUrl) => expected == "none" || is_known_refusal(target),
        };
        read += usize::from(ours.is_ok());
        if !same {
            differing.push(format!("{target:?}: node {expected:?}, ours {ours:?}"));
        }
    }
    assert!(read > 10_000, "only {read} targets were read");
    assert!(
        differing.is_empty(),
        "{} differ:\n{}",
        differing.len(),
        differing.join("\n")
    );
}

/// What we refuse and Node does not: other schemes, and a host that is not ASCII.
fn is_known_refusal(target: &str) -> bool {
    let other_scheme =
        target.starts_with(|first: char| first.is_ascii_alphabetic()) && !target.contains("127.0.0.1");
    other_scheme || !target.is_ascii()
}
