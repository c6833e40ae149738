//! `queue_v1`: each request is a file in a directory, and so is its response.
//!
//! Here: the start, the tasks, the end. Read `ours.rs` for requests under our own daemon, `peer.rs` for the drop-in role,
//! `exchange.rs` for what they share, `directory.rs` for the files, `life.rs` for when it ends. Not here: the documents
//! themselves, see `wire::envelope`.

mod directory;
mod exchange;
mod ledger;
mod life;
mod ours;
mod peer;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Response};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::envelope::envelope_limit;

use self::directory::{Directory, Mark};
use self::ledger::Ledger;
use self::life::Abandoned;
use crate::answers::{Refusal, peer_error};
use crate::caller::{CallerRequest, GatewayBody};
use crate::diagnostics::say;
use crate::listen::{self, Answering, Carrier};
use crate::settings::{Role, Settings};

/// A request older than the response deadline and this has no caller any more.
const SWEEP_SLACK: Duration = Duration::from_secs(2);
/// As our own: bytes that bodies may hold at once; more where one body may be large.
const OUR_CEILING: u64 = 256 * 1024 * 1024;
/// As peer: the published ceiling.
const PEER_CEILING: u64 = 1 << 30;
/// As our own: how long answers may still go out once the end was asked for.
const OUR_GRACE: Duration = Duration::from_secs(1);

/// Carries callers' requests through the queue directory.
#[derive(Debug)]
pub struct Queue {
    settings: Arc<Settings>,
    directory: Arc<Directory>,
    ledger: Arc<Ledger>,
    abandoned: Abandoned,
    /// The readiness document that this gateway wrote.
    ready: Option<Mark>,
    /// Cancelled when the end was asked for.
    stop: CancellationToken,
    /// Requests on their way; they end with this.
    tasks: Mutex<JoinSet<()>>,
}

/// The readiness document, its keys in the order in which they are written.
#[derive(Serialize)]
struct Ready<'a> {
    pid: u32,
    host: &'a str,
    port: u16,
    #[serde(rename = "baseUrl")]
    base_url: String,
    #[serde(rename = "startedAt")]
    started_at: String,
}

impl Queue {
    /// Takes the queue directory into use and tells the host where callers are listened to.
    ///
    /// # Errors
    ///
    /// One line on what of the directory cannot be used.
    pub fn start(settings: Arc<Settings>, listening: SocketAddr) -> Result<Arc<Self>, String> {
        let path = &settings.queue_dir;
        let unusable = |error| format!("cannot use the queue directory {}: {error}", path.display());
        let directory = Directory::open(path, settings.role).map_err(unusable)?;
        let ready = directory
            .write_ready(&ready_text(&settings, listening))
            .map_err(unusable)?;
        Ok(Arc::new(Self {
            ledger: Ledger::with_ceiling(ceiling(&settings)),
            directory: Arc::new(directory),
            settings,
            abandoned: Abandoned::default(),
            ready,
            stop: CancellationToken::new(),
            tasks: Mutex::default(),
        }))
    }

    /// Runs `answering` to its end whether or not the caller waits for it, as its file may be with the host.
    fn spawn(&self, answering: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Finished ones are taken out here, so that the set holds no more than the connections do.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(answering);
    }
}

impl Carrier for Queue {
    fn answer(self: Arc<Self>, request: CallerRequest) -> Answering {
        let (mut caller, answered) = oneshot::channel();
        let role = self.settings.role;
        let queue = Arc::downgrade(&self);
        self.spawn(async move {
            // The queue ends its tasks when it is dropped, so that it is there as long as they run.
            let Some(queue) = queue.upgrade() else { return };
            let response = match role {
                Role::Ours => ours::answer(&queue, request, &mut caller).await,
                Role::Peer => peer::answer(&queue, request).await,
            };
            // A caller that has gone needs no answer.
            let _gone = caller.send(response);
        });
        Box::pin(async move { answered.await.unwrap_or_else(|_| ended(role)) })
    }
}

/// What a caller is told whose request was cut off by the gateway's own end.
fn ended(role: Role) -> Response<GatewayBody> {
    const WHY: &str = "the gateway is ending";
    match role {
        Role::Ours => Refusal::Indeterminate(WHY).answer(),
        Role::Peer => peer_error(http::StatusCode::BAD_GATEWAY, WHY),
    }
}

/// Serves callers through the queue directory until it is told to end, or its host has gone.
///
/// # Errors
///
/// One line on what could not be started.
pub async fn serve(listener: TcpListener, settings: Arc<Settings>) -> Result<(), String> {
    let failed = |error| format!("cannot start: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let listening = listener.local_addr().map_err(failed)?;
    let queue = Queue::start(Arc::clone(&settings), listening)?;
    let grace = match settings.role {
        Role::Ours => OUR_GRACE,
        // The published gateway waits for the last connection, and a request takes no longer than this.
        Role::Peer => settings.response_timeout + SWEEP_SLACK,
    };
    let carrier: Arc<dyn Carrier> = Arc::<Queue>::clone(&queue);
    let serving = listen::serve(listener, settings, carrier, queue.stop.clone(), grace);
    let told = async {
        let left = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = life::until_end(&queue) => true,
        };
        queue.stop.cancel();
        left
    };
    let ((), left) = tokio::join!(serving, told);
    if left && let Err(error) = life::remove(&queue) {
        say(format_args!("cannot remove the queue directory: {error}"));
    }
    Ok(())
}

fn ready_text(settings: &Settings, listening: SocketAddr) -> String {
    let (host, port) = (settings.host.as_str(), listening.port());
    let ready = Ready {
        pid: std::process::id(),
        host,
        port,
        base_url: format!("http://{host}:{port}"),
        started_at: now(),
    };
    // Text and numbers always have a JSON form.
    serde_json::to_string(&ready).unwrap_or_default()
}

fn ceiling(settings: &Settings) -> u64 {
    match settings.role {
        Role::Ours => OUR_CEILING.max(settings.max_body.saturating_mul(8)),
        Role::Peer => {
            let limit = usize::try_from(settings.max_body).unwrap_or(usize::MAX);
            let envelope = u64::try_from(envelope_limit(limit)).unwrap_or(u64::MAX);
            let four = envelope
                .saturating_mul(4)
                .saturating_add(settings.max_body.saturating_mul(4));
            four.saturating_mul(4).min(PEER_CEILING)
        }
    }
}

/// A request's name: a random UUID in lower case.
fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Now, as the envelopes say it: ISO 8601, UTC, with milliseconds.
fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

/// Whether a request of this method may be repeated without harm (RFC 9110 section 9.2.1).
fn is_safe(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_written_with_milliseconds_in_utc() {
        let now = super::now();

        assert_eq!(
            (now.len(), now.ends_with('Z'), now.get(19..20)),
            (24, true, Some(".")),
            "{now}"
        );
    }

    #[test]
    fn the_published_ceiling_is_the_published_one() {
        let environment = |limit: &str| {
            let pairs = [
                ("PAPERCLIP_BRIDGE_TOKEN", "t"),
                ("PAPERCLIP_BRIDGE_QUEUE_DIR", "/q"),
                ("PAPERCLIP_BRIDGE_MAX_BODY_BYTES", limit),
            ];
            pairs
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect()
        };
        let ceiling = |limit| super::ceiling(&super::Settings::read(&environment(limit)).unwrap());

        assert_eq!(
            (ceiling("10551296"), ceiling("1000")),
            (1 << 30, 4 * (4 * (6000 + 65_536) + 4000))
        );
    }
}
