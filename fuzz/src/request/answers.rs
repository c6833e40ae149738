//! What the agent gets must be whole answers of ours.

use policy::headers::response_header_allowed;

use super::splitter::{self, Message};

/// Beside the listed headers: what hyper writes, and our own.
pub(crate) const OURS: [&str; 5] = [
    "date",
    "connection",
    "transfer-encoding",
    "www-authenticate",
    REQUEST_ID,
];
pub(crate) const REQUEST_ID: &str = "x-paperclip-bridge-request-id";

/// Reads `answers` to their end.
pub(super) fn hold(mut answers: &[u8], messages: &[Message], data: &[u8]) {
    let leaked = answers
        .windows(super::CREDENTIAL.len())
        .any(|text| text == super::CREDENTIAL.as_bytes());
    assert!(
        !leaked || contains(data, super::CREDENTIAL),
        "the real credential went to the agent"
    );
    assert!(
        !contains(answers, "the bridge failed while"),
        "a task of the session panicked"
    );
    let heads_at_most = data.windows(4).filter(|four| four == b"\r\n\r\n").count() + 1;
    let mut count = 0;
    while !answers.is_empty() {
        let asked = messages.get(count);
        let shown = answers.escape_ascii().to_string();
        let (lines, behind) = splitter::section(answers).unwrap_or_else(|| panic!("half an answer: {shown}"));
        let (version, status) = status(lines.first().copied().unwrap_or_default())
            .unwrap_or_else(|| panic!("no status: {shown}"));
        let fields: Option<Vec<_>> = lines.iter().skip(1).map(|line| splitter::field(line)).collect();
        let fields = fields.unwrap_or_else(|| panic!("no header line: {shown}"));
        answers = behind;
        if status < 200 {
            assert_eq!(status, 100, "{shown}");
            continue;
        }
        count += 1;
        for (name, _) in &fields {
            assert!(
                response_header_allowed(name) || OURS.contains(&name.as_str()),
                "{name} came back: {shown}"
            );
        }
        let challenges = splitter::values(&fields, "www-authenticate");
        assert!(
            challenges.iter().all(|challenge| *challenge == b"Bearer"),
            "the upstream's challenge: {shown}"
        );
        let ids = splitter::values(&fields, REQUEST_ID);
        let id = ids
            .first()
            .and_then(|id| std::str::from_utf8(id).ok())
            .and_then(|id| uuid::Uuid::parse_str(id).ok());
        assert!(ids.len() == 1 && id.is_some(), "no request id: {shown}");
        let chunked = !splitter::values(&fields, "transfer-encoding").is_empty();
        assert!(
            !(chunked && version == 0),
            "chunks in an answer of HTTP/1.0: {shown}"
        );
        let rest = body(behind, &fields, status, asked);
        answers = rest.unwrap_or_else(|| panic!("a cut body, or one of no length: {shown}"));
    }
    assert!(
        count <= heads_at_most,
        "{count} answers to at most {heads_at_most} requests"
    );
}

pub(crate) fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|window| window == part.as_bytes())
}

/// `HTTP/1.x NNN reason`, as x and NNN. hyper answers a request of HTTP/1.0 in kind.
fn status(line: &[u8]) -> Option<(u8, u16)> {
    let text = std::str::from_utf8(line).ok()?;
    let (version, rest) = text.strip_prefix("HTTP/1.")?.split_once(' ')?;
    let (digits, _) = rest.split_once(' ')?;
    let version = version.parse().ok().filter(|version| *version < 2)?;
    digits
        .parse()
        .ok()
        .filter(|status| (100..600).contains(status))
        .map(|status| (version, status))
}

/// What follows the body; `None` where it is cut.
fn body<'a>(
    behind: &'a [u8],
    fields: &[(String, Vec<u8>)],
    status: u16,
    asked: Option<&Message>,
) -> Option<&'a [u8]> {
    let lengths = splitter::values(fields, "content-length");
    let codings = splitter::values(fields, "transfer-encoding");
    assert!(lengths.len() + codings.len() <= 1, "two lengths: {fields:?}");
    // Where the splitter gave up before the bridge did, the bytes must tell whether it was a HEAD.
    let nothing = behind.is_empty() || behind.starts_with(b"HTTP/1.");
    let head = asked.is_some_and(|message| message.method == "HEAD");
    if status == 204 || status == 304 || (nothing && (head || asked.is_none())) {
        return Some(behind);
    }
    assert!(!head, "a body behind an answer to HEAD: {fields:?}");
    if !codings.is_empty() {
        return splitter::chunks(behind, &mut Vec::new());
    }
    let length: usize = lengths
        .first()
        .and_then(|text| std::str::from_utf8(text).ok()?.parse().ok())?;
    behind.get(length..)
}
