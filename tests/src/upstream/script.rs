//! What the upstream can be told to do with a request: a list of steps.
//!
//! A step sends bytes exactly as given, so an answer can be wrong in every way. Read next: [`super`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;

/// One thing to do.
#[derive(Clone, Debug)]
pub enum Step {
    /// Read the request's body to its end.
    ReadBody,
    /// Read this much of the request's body, or what there is of it.
    ReadSome(usize),
    /// Send these bytes.
    Send(Bytes),
    /// Let time pass.
    Wait(Duration),
    /// Do nothing more for as long as the connection lives.
    Stall,
    /// Go on once the test adds a permit; one permit a request.
    Hold(Arc<Semaphore>),
    /// Close in order.
    Close,
    /// Close with a TCP reset.
    Reset,
}

/// Steps in order. After the last, what is left of the body is read and the connection waits for the next request.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The steps.
    pub steps: Vec<Step>,
}

impl Script {
    /// Exactly these steps.
    pub fn steps(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            steps: steps.into_iter().collect(),
        }
    }

    /// Reads the body, then sends these bytes.
    pub fn raw(answer: impl Into<Bytes>) -> Self {
        Self::steps([Step::ReadBody, Step::Send(answer.into())])
    }

    /// A JSON answer of declared length.
    pub fn json(status: u16, body: &str) -> Self {
        Self::answer(status, &[("content-type", "application/json")], body.as_bytes())
    }

    /// An answer of declared length with these headers.
    pub fn answer(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut bytes = head(status, headers);
        bytes += &format!("content-length: {}\r\n\r\n", body.len());
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(body);
        Self::raw(bytes)
    }

    /// An answer without any body or length, such as 204 and 304.
    pub fn bodiless(status: u16, headers: &[(&str, &str)]) -> Self {
        Self::raw(head(status, headers) + "\r\n")
    }

    /// A chunked answer.
    pub fn chunked(status: u16, content_type: &str, chunks: &[&[u8]]) -> Self {
        let headers = [("content-type", content_type), ("transfer-encoding", "chunked")];
        let mut bytes = (head(status, &headers) + "\r\n").into_bytes();
        for chunk in chunks {
            bytes.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n\r\n");
        Self::raw(bytes)
    }

    /// An event stream: its head at once, then one event for each permit, without end.
    pub fn events(permits: &Arc<Semaphore>, events: &[&str]) -> Self {
        let headers = [
            ("content-type", "text/event-stream"),
            ("transfer-encoding", "chunked"),
        ];
        let mut steps = vec![
            Step::ReadBody,
            Step::Send(Bytes::from(head(200, &headers) + "\r\n")),
        ];
        for event in events {
            let text = format!("data: {event}\n\n");
            steps.push(Step::Hold(Arc::clone(permits)));
            steps.push(Step::Send(Bytes::from(format!("{:x}\r\n{text}\r\n", text.len()))));
        }
        steps.push(Step::Stall);
        Self { steps }
    }

    /// Reads the whole request and closes without an answer.
    pub fn close_without_answer() -> Self {
        Self::steps([Step::ReadBody, Step::Close])
    }

    /// Reads the head and nothing of the body, and never answers.
    pub fn stall_before_body() -> Self {
        Self::steps([Step::Stall])
    }

    /// Reads the request and never answers.
    pub fn stall_before_answer() -> Self {
        Self::steps([Step::ReadBody, Step::Stall])
    }

    /// Sends the head of an answer of 10 bytes and never its body.
    pub fn stall_after_head() -> Self {
        Self::raw(
            head(
                200,
                &[("content-type", "application/json"), ("content-length", "10")],
            ) + "\r\n",
        )
        .then(Step::Stall)
    }

    /// Answers as soon as the head is there, reads nothing of the body, and closes.
    pub fn early(status: u16, body: &str) -> Self {
        let mut script = Self::answer(
            status,
            &[("content-type", "application/json"), ("connection", "close")],
            body.as_bytes(),
        );
        script.steps.retain(|step| !matches!(step, Step::ReadBody));
        script.then(Step::Close)
    }

    /// The same, `delay` later.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        let place = usize::from(matches!(self.steps.first(), Some(Step::ReadBody)));
        self.steps.insert(place, Step::Wait(delay));
        self
    }

    /// The same, once the test has given a permit.
    #[must_use]
    pub fn held(mut self, permits: &Arc<Semaphore>) -> Self {
        let place = usize::from(matches!(self.steps.first(), Some(Step::ReadBody)));
        self.steps.insert(place, Step::Hold(Arc::clone(permits)));
        self
    }

    /// The same, and then one more step.
    #[must_use]
    pub fn then(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Only the first `count` bytes of what would be sent; then the connection is closed in order.
    #[must_use]
    pub fn cut_after(self, count: usize) -> Self {
        self.cut(count, Step::Close)
    }

    /// Only the first `count` bytes of what would be sent; then the connection is reset.
    #[must_use]
    pub fn reset_after(self, count: usize) -> Self {
        self.cut(count, Step::Reset)
    }

    fn cut(self, count: usize, end: Step) -> Self {
        let mut left = count;
        let mut steps = vec![];
        for step in self.steps {
            let Step::Send(bytes) = step else {
                steps.push(step);
                continue;
            };
            let part = bytes.slice(..bytes.len().min(left));
            left -= part.len();
            steps.push(Step::Send(part));
        }
        steps.push(end);
        Self { steps }
    }
}

fn head(status: u16, headers: &[(&str, &str)]) -> String {
    let mut text = format!("HTTP/1.1 {status} Scripted\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text
}

/// A script and what it is for.
#[derive(Debug)]
pub(crate) struct Rule {
    method: String,
    path: String,
    script: Script,
    times: Option<usize>,
}

impl Rule {
    pub(crate) fn new(method: &str, path: &str, script: Script, times: Option<usize>) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            script,
            times,
        }
    }

    pub(crate) fn fits(&self, method: &str, target: &str) -> bool {
        let path = target.split('?').next().unwrap_or(target);
        self.method == method && self.path == path && self.times != Some(0)
    }

    pub(crate) fn take(&mut self) -> Script {
        self.times = self.times.map(|times| times.saturating_sub(1));
        self.script.clone()
    }
}
