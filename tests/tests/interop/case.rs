//! The requests of `requests.toml`, read strictly.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use paperclip_bridge_tests::peer::{Release, Transport};
use paperclip_bridge_tests::{Script, upstream::Step};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    request: Vec<Case>,
}

/// One request and what the upstream does with it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) id: String,
    #[serde(default = "get")]
    pub(crate) method: String,
    target: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    body_base64: Option<String>,
    #[serde(default)]
    body_size: Option<usize>,
    #[serde(default)]
    multipart: Option<usize>,
    #[serde(default)]
    chunked: bool,
    #[serde(default = "bearer")]
    authorization: String,
    #[serde(default)]
    pub(crate) group: Option<String>,
    #[serde(default)]
    pub(crate) together: Option<String>,
    #[serde(default)]
    answer: Answer,
    peer: Option<String>,
    peer_queue: Option<String>,
    peer_707: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    status: Option<u16>,
    headers: Option<Vec<(String, String)>>,
    body: Option<String>,
    body_base64: Option<String>,
    body_size: Option<usize>,
    #[serde(default)]
    chunked: bool,
    #[serde(default)]
    bodiless: bool,
    #[serde(default)]
    delay_ms: u64,
    ends: Option<Ends>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Ends {
    /// The connection, before an answer.
    Before,
    /// The connection, inside the answer's body.
    Inside,
}

fn get() -> String {
    "GET".to_owned()
}

fn bearer() -> String {
    "Bearer {token}".to_owned()
}

/// Every request of the list.
pub(crate) fn all() -> Vec<Case> {
    let file: File = toml::from_str(include_str!("requests.toml")).expect("requests.toml is well-formed");
    let ids: BTreeSet<&str> = file.request.iter().map(|case| case.id.as_str()).collect();
    assert_eq!(
        ids.len(),
        file.request.len(),
        "an id occurs twice in requests.toml"
    );
    file.request
}

impl Case {
    /// What no other request's target holds.
    pub(crate) fn mark(&self) -> String {
        format!("at-{}-end", self.id)
    }

    pub(crate) fn target(&self) -> String {
        self.target.replace("{id}", &self.mark())
    }

    /// Nothing else may be under way beside it: where the upstream ends the connection, a host that keeps
    /// connections could take another request to it just then; and large bodies fill the session memory of the
    /// peer's HTTP/2 host, which then refuses other streams.
    pub(crate) fn alone(&self) -> bool {
        let large = |size: Option<usize>| size.is_some_and(|size| size > 100_000);
        self.answer.ends.is_some() || large(self.body_size) || large(self.answer.body_size)
    }

    /// What the peer's own pair is known to do: status and requests at the upstream.
    pub(crate) fn peer(&self, transport: Transport, release: Release) -> Option<&str> {
        let newest = match transport {
            Transport::Http2 => self.peer.as_ref(),
            Transport::Queue => self.peer_queue.as_ref().or(self.peer.as_ref()),
        };
        let known = match release {
            Release::R916 => newest,
            Release::R707 => self.peer_707.as_ref().or(newest),
        };
        known.map(String::as_str)
    }

    /// The request's bytes.
    pub(crate) fn bytes(&self, host: &str, token: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", self.method, self.target());
        let authorization = self.authorization.replace("{token}", token);
        if !authorization.is_empty() {
            head += &format!("Authorization: {authorization}\r\n");
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let typed = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        if self.multipart.is_some() && !typed {
            head += "Content-Type: multipart/form-data; boundary=interop\r\n";
        }
        let body = self.body();
        if self.chunked {
            head += "Transfer-Encoding: chunked\r\n";
        } else if !body.is_empty() || !matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE") {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        if !self.chunked {
            bytes.extend_from_slice(&body);
            return bytes;
        }
        for chunk in body.chunks(50_000) {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        bytes
    }

    fn body(&self) -> Vec<u8> {
        if let Some(size) = self.multipart {
            let mut body =
                b"--interop\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.bin\"\r\n\
                Content-Type: application/octet-stream\r\n\r\n"
                    .to_vec();
            // Every byte value, so that any text decoding on the way would show.
            body.extend((0..=u8::MAX).cycle().take(size));
            body.extend_from_slice(b"\r\n--interop--\r\n");
            return body;
        }
        bytes_of(self.body.as_deref(), self.body_base64.as_deref(), self.body_size).unwrap_or_default()
    }

    /// What the upstream does.
    pub(crate) fn script(&self) -> Script {
        let answer = &self.answer;
        let status = answer.status.unwrap_or(200);
        let default = [("content-type".to_owned(), "application/json".to_owned())];
        let headers: Vec<(&str, &str)> = answer
            .headers
            .as_deref()
            .unwrap_or(if answer.bodiless { &[] } else { &default })
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let body = bytes_of(
            answer.body.as_deref(),
            answer.body_base64.as_deref(),
            answer.body_size,
        )
        .unwrap_or_else(|| br#"{"ok":true}"#.to_vec());
        if matches!(answer.ends, Some(Ends::Before)) {
            return Script::close_without_answer();
        }
        let script = if answer.bodiless {
            Script::bodiless(status, &headers)
        } else if answer.chunked {
            Script::chunked(status, "application/json", &[&body])
        } else {
            Script::answer(status, &headers, &body)
        };
        if matches!(answer.ends, Some(Ends::Inside)) {
            return cut_inside(script, body.len());
        }
        if answer.delay_ms == 0 {
            return script;
        }
        script.after(Duration::from_millis(answer.delay_ms))
    }
}

/// All of the head and half of the body.
fn cut_inside(script: Script, body: usize) -> Script {
    let sent = |step: &Step| match step {
        Step::Send(bytes) => bytes.len(),
        Step::ReadBody
        | Step::ReadSome(_)
        | Step::Wait(_)
        | Step::Stall
        | Step::Hold(_)
        | Step::Close
        | Step::Reset => 0,
    };
    let whole: usize = script.steps.iter().map(sent).sum();
    script.cut_after(whole - body / 2)
}

fn bytes_of(text: Option<&str>, base64: Option<&str>, size: Option<usize>) -> Option<Vec<u8>> {
    if let Some(text) = text {
        return Some(text.as_bytes().to_vec());
    }
    if let Some(base64) = base64 {
        return Some(STANDARD.decode(base64).expect("requests.toml holds good base64"));
    }
    // A JSON string of exactly this size.
    size.map(|size| {
        let mut body = vec![b'a'; size];
        body[0] = b'"';
        body[size - 1] = b'"';
        body
    })
}
