//! A caller's body on its way into a stream.
//!
//! Here: a task per body, at the pace of the host's window, so that an upload goes on while its answer is read. Not
//! here: what its end means for the answer (`exchange.rs`).

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::task::JoinHandle;

use crate::caller::CallerBodyError;

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UploadEnd {
    /// All of it is with the host, or on its way there.
    Whole,
    /// The host wants no more; its answer says why.
    Stopped,
    /// The caller's side failed; the stream was reset.
    Failed(CallerBodyError),
}

/// An upload under way. Dropped, it stops.
#[derive(Debug)]
pub(super) struct Upload {
    task: JoinHandle<UploadEnd>,
}

impl Upload {
    pub(super) fn start<B>(body: B, stream: SendStream<Bytes>) -> Self
    where
        B: Body<Data = Bytes, Error = CallerBodyError> + Send + Unpin + 'static,
    {
        Self {
            task: tokio::spawn(send(body, stream)),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Future for Upload {
    type Output = UploadEnd;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<UploadEnd> {
        let ended = ready!(Pin::new(&mut self.get_mut().task).poll(cx));
        Poll::Ready(ended.unwrap_or(UploadEnd::Failed(CallerBodyError::Broken)))
    }
}

async fn send<B>(mut body: B, mut stream: SendStream<Bytes>) -> UploadEnd
where
    B: Body<Data = Bytes, Error = CallerBodyError> + Unpin,
{
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return UploadEnd::Stopped,
        };
        let data = match frame {
            None => break,
            Some(Err(error)) => {
                stream.send_reset(Reason::CANCEL);
                return UploadEnd::Failed(error);
            }
            // Trailers are dropped.
            Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
        };
        if send_data(&mut stream, data).await.is_none() {
            return UploadEnd::Stopped;
        }
    }
    match stream.send_data(Bytes::new(), true) {
        Ok(()) => UploadEnd::Whole,
        Err(_) => UploadEnd::Stopped,
    }
}

/// Hands over `data` as the window allows; `None` when the host has closed the stream.
async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        let part = data.split_to(room.min(data.len()));
        if !part.is_empty() {
            stream.send_data(part, false).ok()?;
        }
    }
    Some(())
}
