//! A stand-in for the Paperclip API that writes down what it sees and does what it is told.
//!
//! Here: the listener, its connections and the record. It reads HTTP/1.1 itself, byte by byte, so that it can be
//! as wrong on purpose as a test wants it to be. Not here: what it can be told ([`script`]), and TLS ([`tls`]).

pub mod script;
mod connection;
pub mod tls;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinHandle, JoinSet};

pub use script::{Script, Step};
pub use tls::Authority;

use script::Rule;

/// One request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// Its method.
    pub method: String,
    /// Its target, byte for byte.
    pub target: String,
    /// Its headers in order, names as they came.
    pub headers: Vec<(String, String)>,
    /// What has come of its body so far, after the transfer coding.
    pub body: Vec<u8>,
    /// The body is whole.
    pub whole: bool,
}

impl Seen {
    /// The value of the first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// How often a header of this name came.
    pub fn count(&self, name: &str) -> usize {
        self.headers
            .iter()
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .count()
    }
}

/// What the connections share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    seen: Mutex<Vec<Seen>>,
    rules: Mutex<Vec<Rule>>,
    connections: AtomicUsize,
}

impl Shared {
    fn record(&self, seen: Seen) -> usize {
        let mut record = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        record.push(seen);
        record.len() - 1
    }

    fn add_body(&self, number: usize, bytes: &[u8], whole: bool) {
        let mut record = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut record[number];
        seen.body.extend_from_slice(bytes);
        seen.whole |= whole;
    }

    /// The newest rule that fits; none answers 200 with a small JSON body.
    fn script_for(&self, method: &str, target: &str) -> Script {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let rule = rules.iter_mut().rev().find(|rule| rule.fits(method, target));
        rule.map_or_else(|| Script::json(200, r#"{"ok":true}"#), Rule::take)
    }
}

/// A running upstream. Dropping it ends the listener and cuts every connection.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    authority: Option<Authority>,
    shared: Arc<Shared>,
    serving: Option<JoinHandle<()>>,
    /// While stopped: bound and not listening, so that callers are refused and nobody else is given the port.
    kept: Option<TcpSocket>,
}

impl Upstream {
    /// One that speaks `http://`.
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    /// One that speaks `https://` with a certificate of an authority of its own.
    pub async fn start_tls() -> Self {
        Self::start_with(Some(Authority::new())).await
    }

    async fn start_with(authority: Option<Authority>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("loopback has free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let mut upstream = Self {
            address,
            authority,
            shared: Arc::default(),
            serving: None,
            kept: None,
        };
        upstream.serve(listener);
        upstream
    }

    fn serve(&mut self, listener: TcpListener) {
        let shared = Arc::clone(&self.shared);
        let acceptor = self.authority.as_ref().map(Authority::acceptor);
        self.serving = Some(tokio::spawn(async move {
            // Dropping the set with this task cuts every connection.
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let number = shared.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection::serve(
                    stream,
                    acceptor.clone(),
                    number,
                    Arc::clone(&shared),
                ));
            }
        }));
    }

    /// Ends the listener and cuts every connection; returns once both are done.
    pub async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            drop(serving.await);
            let kept = TcpSocket::new_v4().expect("a socket");
            kept.set_reuseaddr(true).expect("an option of it");
            kept.bind(self.address).expect("the old port is still free");
            self.kept = Some(kept);
        }
    }

    /// Listens again on the same port after [`Self::stop`].
    ///
    /// # Panics
    ///
    /// If somebody else has taken the port meanwhile.
    pub async fn start_again(&mut self) {
        let listener = match self.kept.take() {
            Some(kept) => kept.listen(1024).expect("the port was kept"),
            None => TcpListener::bind(self.address)
                .await
                .expect("the old port is still free"),
        };
        self.serve(listener);
    }

    /// What to do with requests of this method and path (without query), from now on.
    pub fn on(&self, method: &str, path: &str, script: Script) {
        self.add(Rule::new(method, path, script, None));
    }

    /// The same for the next `times` of them only.
    pub fn on_next(&self, times: usize, method: &str, path: &str, script: Script) {
        self.add(Rule::new(method, path, script, Some(times)));
    }

    fn add(&self, rule: Rule) {
        self.shared
            .rules
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(rule);
    }

    /// Everything seen so far, in the order in which the heads came.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How many requests have been seen so far.
    pub fn count(&self) -> usize {
        self.shared
            .seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// What was seen after the first `mark` requests.
    pub fn seen_since(&self, mark: usize) -> Vec<Seen> {
        self.seen().split_off(mark)
    }

    /// How many connections there have been.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// What `--upstream` is given.
    pub fn url(&self) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The authority that signed its certificate, if it speaks TLS.
    pub fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Agent, Broken};

    fn agent(upstream: &Upstream) -> Agent {
        Agent {
            url: upstream.url(),
            token: "t".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_request_is_answered_and_recorded_byte_for_byte() {
        let upstream = Upstream::start().await;

        let answer = agent(&upstream).post("/a%20b?c=%2F", r#"{"x":1}"#).await.unwrap();

        assert_eq!(answer.status, 200);
        let seen = upstream.seen().remove(0);
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str()),
            ("POST", "/a%20b?c=%2F")
        );
        assert_eq!(
            (seen.body.as_slice(), seen.whole),
            (br#"{"x":1}"#.as_slice(), true)
        );
    }

    #[tokio::test]
    async fn a_scripted_cut_is_a_cut_for_the_client() {
        let upstream = Upstream::start().await;
        upstream.on("GET", "/cut", Script::json(200, "0123456789").cut_after(60));
        upstream.on_next(1, "GET", "/close", Script::close_without_answer());

        let agent = agent(&upstream);
        let cut = agent.get("/cut").await;
        let closed = agent.get("/close").await;
        let again = agent.get("/close").await;

        assert!(matches!(cut, Err(Broken::Cut(_))), "{cut:?}");
        assert_eq!(closed, Err(Broken::Closed));
        assert_eq!(again.map(|answer| answer.status), Ok(200));
    }

    #[tokio::test]
    async fn it_takes_chunks_and_sends_chunks() {
        let upstream = Upstream::start().await;
        upstream.on(
            "POST",
            "/c",
            Script::chunked(200, "application/json", &[b"{\"a\":", b"1}"]),
        );
        let mut wire = crate::Wire::connect(&upstream.url()).await.unwrap();

        wire.send(b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            .await
            .unwrap();
        wire.send(b"0\r\n\r\n").await.unwrap();
        let answer = wire.answer("POST").await.unwrap();

        assert_eq!((answer.text().as_str(), answer.chunked), ("{\"a\":1}", true));
        assert_eq!(upstream.seen()[0].body, b"abc");
    }

    #[tokio::test]
    async fn it_comes_back_on_the_same_port() {
        let mut upstream = Upstream::start().await;

        upstream.stop().await;
        let down = agent(&upstream).get("/x").await;
        upstream.start_again().await;
        let up = agent(&upstream).get("/x").await;

        assert!(matches!(down, Err(Broken::Refused(_))), "{down:?}");
        assert_eq!(up.map(|answer| answer.status), Ok(200));
    }
}
