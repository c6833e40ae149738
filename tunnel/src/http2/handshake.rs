//! From an opened byte stream to the first octet of HTTP/2.
//!
//! Here: the reads and the two time limits around the READY gate and the scan for the preface, and what each failure is
//! called. Not here: opening the stream (`crate::launch`) and serving it (`serve`).

use std::time::Duration;

use bytes::Bytes;
use runners::runner::DuplexStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout_at};

use super::preface::{NOISE_LIMIT_BYTES, Preface, PrefaceScan};
use super::ready::{Ready, ReadyFault, ReadyGate};

/// An orderly end of a channel that is given up takes no longer.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// A byte stream in both directions.
pub(super) type Stream = Box<dyn DuplexStream>;

/// A stream whose other end speaks HTTP/2.
pub(super) struct Established {
    pub(super) stream: Stream,
    /// The preface and whatever came with it.
    pub(super) replay: Bytes,
}

/// Why a channel did not become a connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HandshakeFault {
    #[error("more than {NOISE_LIMIT_BYTES} bytes came before the gateway was ready")]
    Contaminated,
    #[error("a READY line of another start came: something answers in the gateway's place")]
    NonceMismatch,
    #[error("the gateway was not ready within {0:?}")]
    ReadyTimeout(Duration),
    #[error("the gateway ended before it was ready")]
    Exited,
    #[error("the gateway was ready but {0}")]
    PrefaceMissing(String),
}

impl HandshakeFault {
    /// The stable name of the reason for which another tunnel is taken.
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::Contaminated => "contaminated",
            Self::NonceMismatch => "ready_nonce_mismatch",
            Self::ReadyTimeout(_) => "ready_timeout",
            Self::Exited => "ready_invalid",
            Self::PrefaceMissing(_) => "preface_missing",
        }
    }
}

/// Waits for READY and then for the preface, each for at most `limit`; the first counts from `opened`. Writes nothing.
pub(super) async fn establish(
    mut stream: Stream,
    nonce: &str,
    opened: Instant,
    limit: Duration,
) -> Result<Established, HandshakeFault> {
    match shake_hands(&mut stream, nonce, opened, limit).await {
        Ok(replay) => Ok(Established { stream, replay }),
        Err(fault) => {
            close(stream).await;
            Err(fault)
        }
    }
}

async fn shake_hands(
    stream: &mut Stream,
    nonce: &str,
    opened: Instant,
    limit: Duration,
) -> Result<Bytes, HandshakeFault> {
    let mut buffer = vec![0; 16 * 1024];
    let mut gate = ReadyGate::new(nonce);
    let rest = loop {
        let chunk = match timeout_at(opened + limit, read(stream, &mut buffer)).await {
            Ok(Some(chunk)) => chunk,
            Ok(None) => return Err(HandshakeFault::Exited),
            Err(_) => return Err(HandshakeFault::ReadyTimeout(limit)),
        };
        match gate.feed(chunk) {
            Ready::Waiting => {}
            Ready::Accepted { rest } => break rest,
            Ready::Failed(ReadyFault::Contaminated) => return Err(HandshakeFault::Contaminated),
            Ready::Failed(ReadyFault::NonceMismatch) => return Err(HandshakeFault::NonceMismatch),
        }
    };
    let missing = |what: String| Err(HandshakeFault::PrefaceMissing(what));
    let until = Instant::now() + limit;
    let mut scan = PrefaceScan::default();
    let mut found = scan.feed(&rest);
    loop {
        match found {
            Preface::Found(replay) => return Ok(replay),
            Preface::Missing => {
                return missing(format!("sent {NOISE_LIMIT_BYTES} bytes that are not HTTP/2"));
            }
            Preface::Waiting => {}
        }
        found = match timeout_at(until, read(stream, &mut buffer)).await {
            Ok(Some(chunk)) => scan.feed(chunk),
            Ok(None) => return missing("ended before it spoke HTTP/2".to_owned()),
            Err(_) => return missing(format!("did not speak HTTP/2 within {limit:?}")),
        };
    }
}

/// The next bytes; `None` at the end, by whatever way it came.
async fn read<'a>(stream: &mut Stream, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let count = stream.read(buffer).await.ok().filter(|count| *count > 0)?;
    buffer.get(..count)
}

/// End of input, a little time for the gateway to leave by itself, and then the channel is gone.
pub(super) async fn close(mut stream: Stream) {
    let orderly = async {
        let mut buffer = [0; 4096];
        stream.shutdown().await?;
        while stream.read(&mut buffer).await? > 0 {}
        Ok::<(), std::io::Error>(())
    };
    if !matches!(tokio::time::timeout(CLOSE_LIMIT, orderly).await, Ok(Ok(()))) {
        tracing::debug!("a gateway's channel was cut without an orderly end");
    }
}
