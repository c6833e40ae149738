//! A gateway, a caller, and the host's side of the directory.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use wire::envelope::{EnvelopeBody, RequestEnvelope, ResponseEnvelope};

pub(crate) const TOKEN: &str = "queue-token";
pub(crate) const MAX_BODY: usize = 10_551_296;
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `look` finds something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running gateway and its directory; ended and removed when dropped.
pub(crate) struct Gateway {
    pub(crate) child: Child,
    pub(crate) folder: TempDir,
    pub(crate) port: u16,
}

impl Gateway {
    /// In our own role.
    pub(crate) fn ours(settings: &[(&str, &str)]) -> Self {
        let digest: String = Sha256::digest(TOKEN)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self::start(&[&[("PCBRIDGE_GATEWAY_TOKEN_SHA256", digest.as_str())], settings].concat())
    }

    /// In the drop-in role.
    pub(crate) fn peer(settings: &[(&str, &str)]) -> Self {
        Self::start(&[&[("PAPERCLIP_BRIDGE_TOKEN", TOKEN)], settings].concat())
    }

    fn start(settings: &[(&str, &str)]) -> Self {
        Self::start_as(
            Command::new(env!("CARGO_BIN_EXE_paperclip-bridge-gateway")),
            settings,
        )
    }

    pub(crate) fn start_as(mut command: Command, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("q");
        let child = command
            .env_clear()
            .env("PAPERCLIP_BRIDGE_QUEUE_DIR", &queue)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut gateway = Self {
            child,
            folder,
            port: 0,
        };
        let ready = gateway.queue().join("ready.json");
        let ready = wait_for("ready.json", || std::fs::read(&ready).ok());
        let ready: serde_json::Value = serde_json::from_slice(&ready).unwrap();
        gateway.port = u16::try_from(ready["port"].as_u64().unwrap()).unwrap();
        gateway
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.folder.path().join("q")
    }

    pub(crate) fn host(&self) -> Host {
        Host { queue: self.queue() }
    }

    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the gateway's end", || self.child.try_wait().unwrap())
    }

    /// A call that is answered in a thread of its own.
    pub(crate) fn call(&self, request: Request) -> std::thread::JoinHandle<Answer> {
        let port = self.port;
        std::thread::spawn(move || request.send(port))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// One request of a caller who holds the token, unless it is said otherwise.
#[derive(Clone)]
pub(crate) struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            head: format!("{method} {target} HTTP/1.1\r\nhost: agent.test:4711\r\nconnection: close\r\n"),
            body: Vec::new(),
        }
        .header("authorization", &format!("Bearer {TOKEN}"))
    }

    pub(crate) fn json(method: &str, target: &str, body: &str) -> Self {
        Self::new(method, target)
            .header("content-type", "application/json")
            .body(body.as_bytes())
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub(crate) fn without_token(mut self) -> Self {
        self.head = self.head.replace(TOKEN, "wrong");
        self
    }

    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        let length = body.len().to_string();
        self.header("content-length", &length)
    }

    /// A body whose framing stands in the headers already.
    pub(crate) fn raw_body(mut self, body: &[u8]) -> Self {
        body.clone_into(&mut self.body);
        self
    }

    pub(crate) fn connect(&self, port: u16) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{}\r\n", self.head).as_bytes()).unwrap();
        // The gateway may answer, and close, before it has read it all.
        let _answered_early = stream.write_all(&self.body);
        stream
    }

    pub(crate) fn send(&self, port: u16) -> Answer {
        let mut stream = self.connect(port);
        let mut bytes = Vec::new();
        // A reset behind an answer is as good as an end.
        let _reset = stream.read_to_end(&mut bytes);
        // What comes before it only says to go on.
        let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
        Answer::read(bytes.strip_prefix(go_on.as_slice()).unwrap_or(&bytes))
    }
}

/// What a caller got.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let end = bytes
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {bytes:?}"));
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        Self {
            status,
            headers: headers.collect(),
            body: bytes[end + 4..].to_vec(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self, key: &str) -> serde_json::Value {
        serde_json::from_slice::<serde_json::Value>(&self.body)
            .unwrap_or_else(|_| panic!("no JSON: {self:?}"))[key]
            .clone()
    }
}

/// The host's side of the directory.
#[derive(Clone)]
pub(crate) struct Host {
    queue: PathBuf,
}

impl Host {
    /// The ids of the requests that wait, in the order of their names.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let mut ids: Vec<String> = std::fs::read_dir(self.queue.join("requests"))
            .map(|entries| {
                entries
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect()
            })
            .unwrap_or_default();
        ids.retain(|name| name.ends_with(".json"));
        ids.sort();
        ids.iter()
            .map(|name| name.trim_end_matches(".json").to_owned())
            .collect()
    }

    /// Waits for a request and leaves it where it is, as the published host does.
    pub(crate) fn see(&self) -> RequestEnvelope {
        let id = wait_for("a request", || self.waiting().first().cloned());
        let bytes = std::fs::read(self.request_path(&id)).unwrap();
        RequestEnvelope::parse(&bytes, &id, MAX_BODY).unwrap()
    }

    /// Waits for a request and takes it out of the queue, as our own host does.
    pub(crate) fn claim(&self) -> RequestEnvelope {
        let claimed = self.queue.join("claimed");
        std::fs::create_dir_all(&claimed).unwrap();
        let id = wait_for("a request to claim", || {
            self.waiting()
                .into_iter()
                .find(|id| std::fs::rename(self.request_path(id), claimed.join(id)).is_ok())
        });
        RequestEnvelope::parse(&std::fs::read(claimed.join(&id)).unwrap(), &id, MAX_BODY).unwrap()
    }

    pub(crate) fn request_path(&self, id: &str) -> PathBuf {
        self.queue.join("requests").join(format!("{id}.json"))
    }

    pub(crate) fn response_path(&self, id: &str) -> PathBuf {
        self.queue.join("responses").join(format!("{id}.json"))
    }

    /// Writes an answer as a host does: whole, then renamed.
    pub(crate) fn answer(
        &self,
        id: &str,
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &[u8],
    ) {
        let envelope = ResponseEnvelope {
            id: id.to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            headers: header_map(headers),
            body: EnvelopeBody::Base64(Bytes::copy_from_slice(body)),
            completed_at: "2026-03-04T05:06:07.311Z".to_owned(),
        };
        self.answer_raw(id, &envelope.to_bytes());
    }

    pub(crate) fn answer_raw(&self, id: &str, bytes: &[u8]) {
        let staged = self.response_path(id).with_extension("json.tmp");
        std::fs::write(&staged, bytes).unwrap();
        std::fs::rename(&staged, self.response_path(id)).unwrap();
    }

    pub(crate) fn is_answer_gone(&self, id: &str) -> bool {
        self.response_path(id).symlink_metadata().is_err()
    }
}

fn header_map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// The permission bits of a path.
pub(crate) fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}
