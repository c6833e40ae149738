//! A caller's body on an HTTP/2 stream, with its time limits.
//!
//! Here: how long a body may pause and how long it may take. Only waiting for the caller counts as a pause: while
//! nobody reads, because the upstream is slow, the clock of the pause stands. Not here: its size, which is judged with
//! the callback; the windows bound what is held unread.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use crate::BodyError;

/// Between two pieces of a body.
const PAUSE_LIMIT: Duration = Duration::from_secs(30);
/// From its head to its end.
const WHOLE_LIMIT: Duration = Duration::from_secs(480);

/// A body that breaks off rather than wait for ever. Trailers are dropped.
#[derive(Debug)]
pub(crate) struct TimedBody<B> {
    inner: B,
    until: Instant,
    /// Running while a piece is waited for.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<B> TimedBody<B> {
    pub(crate) fn new(inner: B) -> Self {
        Self {
            inner,
            until: Instant::now() + WHOLE_LIMIT,
            waiting: None,
        }
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                self.waiting = None;
                Poll::Ready(match frame {
                    Some(Ok(frame)) if frame.is_data() => Some(Ok(frame)),
                    Some(Ok(_)) | None => None,
                    Some(Err(error)) => Some(Err(error.into())),
                })
            }
            Poll::Pending => {
                let until = self.until.min(Instant::now() + PAUSE_LIMIT);
                let waiting = self
                    .waiting
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                match waiting.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => Poll::Ready(Some(Err("the body came too slowly".into()))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream::{self, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    /// Pieces with pauses of so many seconds in front of them.
    fn pieces(pauses: Vec<u64>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let pieces = stream::iter(pauses).then(|pause| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                Ok(Frame::data(Bytes::from_static(b"x")))
            })
        });
        StreamBody::new(Box::pin(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_too_long_breaks_off() {
        let body = TimedBody::new(pieces(vec![29, 31]));
        let started = Instant::now();

        let error = body.collect().await.unwrap_err();

        assert_eq!(error.to_string(), "the body came too slowly");
        assert_eq!(started.elapsed().as_secs(), 59);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_ends_with_the_time_for_the_whole() {
        let started = Instant::now();

        let broken = TimedBody::new(pieces(vec![20; 30])).collect().await;

        assert!(broken.is_err());
        assert_eq!(started.elapsed(), WHOLE_LIMIT);
        let whole = TimedBody::new(pieces(vec![20; 20])).collect().await.unwrap();
        assert_eq!(whole.to_bytes().len(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_is_no_pause_of_the_caller() {
        let mut body = TimedBody::new(pieces(vec![1, 1]));
        body.frame().await.unwrap().unwrap();

        tokio::time::sleep(Duration::from_secs(120)).await;

        assert!(body.frame().await.unwrap().is_ok());
        assert!(body.frame().await.is_none());
    }
}
