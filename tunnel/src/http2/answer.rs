//! Answers on their way to a gateway, with a deadline for one that is not taken.
//!
//! Here: the body in pieces, so that little of it lies in the connection's buffers while its window is shut, and the
//! clock that runs while a piece waits. Not here: the channel as a whole, which has a deadline of its own (`channel`).

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::{BodyError, MessageBody};

/// A piece that waits for so long will not be taken any more.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// Handed over at once.
const PIECE_BYTES: usize = 64 * 1024;

tokio::task_local! {
    /// The clock of the stream whose task this is.
    static PACE: Arc<Pace>;
}

/// Runs a stream's task until it ends or its answer stalls. Dropped there, h2 resets the stream.
pub(super) async fn until_stalled(stream: impl Future<Output = ()>) {
    let pace = Arc::new(Pace::default());
    tokio::select! {
        biased;
        () = PACE.scope(Arc::clone(&pace), stream) => {}
        () = pace.stalled() => tracing::debug!("an answer that nobody took is given up"),
    }
}

/// Since when the stream waits for room.
#[derive(Debug, Default)]
struct Pace(Mutex<Option<Instant>>);

impl Pace {
    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves once one piece has waited for the whole limit.
    async fn stalled(&self) {
        loop {
            let since = self.since();
            tokio::time::sleep_until(since.unwrap_or_else(Instant::now) + STALL_LIMIT).await;
            if since.is_some() && self.since() == since {
                return;
            }
        }
    }
}

/// An answer's body in pieces. The task that polls it keeps the clock.
#[derive(Debug)]
pub(super) struct PacedBody {
    inner: MessageBody,
    rest: Bytes,
}

impl PacedBody {
    pub(super) fn new(inner: MessageBody) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
        }
    }
}

/// The clock stands unless a piece is out.
fn note(since: Option<Instant>) {
    // Outside of a stream's task nobody waits.
    let _noted = PACE.try_with(|pace| pace.set(since));
}

impl Body for PacedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let body = self.get_mut();
        // To be asked for more means that there was room for what came before.
        note(None);
        while body.rest.is_empty() {
            match ready!(Pin::new(&mut body.inner).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers are dropped.
                Some(Ok(frame)) => body.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let length = body.rest.len().min(PIECE_BYTES);
        note(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(body.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(rest));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(rest));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn body(bytes: Bytes) -> PacedBody {
        PacedBody::new(Full::new(bytes).map_err(|never| match never {}).boxed_unsync())
    }

    #[tokio::test]
    async fn a_body_goes_in_pieces_and_keeps_its_length_and_bytes() {
        let bytes: Bytes = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
        let mut paced = body(bytes.clone());
        let mut came = Vec::new();

        while let Some(frame) = paced.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES && !piece.is_empty());
            came.extend_from_slice(&piece);
            let left = (bytes.len() - came.len()) as u64;
            assert_eq!(paced.size_hint().exact(), Some(left));
            assert_eq!(paced.is_end_stream(), left == 0);
        }

        assert!(came == bytes);
        assert!(body(Bytes::new()).is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_piece_waits_too_long_is_given_up() {
        let began = Instant::now();

        until_stalled(async {
            let mut paced = body(Bytes::from_static(b"x"));
            tokio::time::sleep(Duration::from_secs(10)).await;
            let _piece = paced.frame().await.unwrap().unwrap();
            std::future::pending::<()>().await;
        })
        .await;

        assert_eq!(began.elapsed(), Duration::from_secs(10) + STALL_LIMIT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_and_a_slow_reader_are_no_stall() {
        let finished = Arc::new(Mutex::new(false));

        until_stalled(async {
            // The handler takes its time, …
            tokio::time::sleep(STALL_LIMIT * 10).await;
            let mut paced = body(Bytes::from(vec![b'x'; 10 * PIECE_BYTES]));
            while paced.frame().await.is_some() {
                // … and so does who reads.
                tokio::time::sleep(STALL_LIMIT - Duration::from_secs(1)).await;
            }
            // The end of the body is no piece that waits.
            tokio::time::sleep(STALL_LIMIT * 2).await;
            *finished.lock().unwrap() = true;
        })
        .await;

        assert!(*finished.lock().unwrap());
    }
}
