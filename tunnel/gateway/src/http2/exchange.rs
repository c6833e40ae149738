//! One stream: the request goes out, the head of its answer comes in.
//!
//! Here: what both roles do alike, and the ways in which it can fail, told apart by what the host may have done. Not
//! here: how a request is written on the stream and how a failure is worded (`ours.rs`, `peer.rs`).

use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use http_body::Body;

use super::channel::{Stream, Watch};
use super::upload::{Upload, UploadEnd};
use crate::caller::CallerBodyError;
use std::sync::Arc;

/// For the head of an answer, from the request on. The host has nearer deadlines; this one is for a host that forgets.
const ANSWER_DEADLINE: Duration = Duration::from_secs(600);

/// Why there is no answer of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The host certainly did nothing with the request.
    NeverDispatched,
    /// The host ended the stream without an answer and without an error.
    NoHead,
    /// The stream or the channel broke after the request had left.
    Lost,
    /// Nothing came in time.
    Late,
    /// The caller's body failed, and the host was told.
    Caller(CallerBodyError),
}

/// What must stay alive while an answer is read.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) stream: Stream,
    /// Goes on beside the answer; dropped, it stops.
    upload: Option<Upload>,
}

/// Opens a stream, sends `body` into it, and waits for the head of the answer.
pub(super) async fn exchange<B>(
    sender: &SendRequest<Bytes>,
    watch: &Arc<Watch>,
    head: Request<()>,
    body: B,
) -> Result<(Response<RecvStream>, Exchange), Failure>
where
    B: Body<Data = Bytes, Error = CallerBodyError> + Send + Unpin + 'static,
{
    let mut sender = sender
        .clone()
        .ready()
        .await
        .map_err(|_| Failure::NeverDispatched)?;
    let whole = body.is_end_stream();
    let (response, stream) = sender
        .send_request(head, whole)
        .map_err(|_| Failure::NeverDispatched)?;
    // From here to the connection's next turn nothing is awaited, so the watch knows the stream before it leaves.
    let followed = watch.stream(response.stream_id().as_u32());
    let mut exchange = Exchange {
        stream: followed,
        upload: (!whole).then(|| Upload::start(body, stream)),
    };
    let answered = tokio::time::timeout(ANSWER_DEADLINE, exchange.head(response)).await;
    let response = answered.unwrap_or(Err(Failure::Late))?;
    Ok((response, exchange))
}

impl Exchange {
    async fn head(&mut self, mut response: ResponseFuture) -> Result<Response<RecvStream>, Failure> {
        loop {
            let Some(upload) = self.upload.as_mut() else {
                return response.await.map_err(|error| self.failure(&error));
            };
            let ended = tokio::select! {
                // An answer that is there counts, whatever became of the upload.
                biased;
                answered = &mut response => match answered {
                    // Nobody but the upload resets a stream on our side, and then it is at its end.
                    Err(error) if error.is_reset() && !error.is_remote() => upload.await,
                    answered => return answered.map_err(|error| self.failure(&error)),
                },
                ended = &mut *upload => ended,
            };
            self.upload = None;
            if let UploadEnd::Failed(error) = ended {
                return Err(Failure::Caller(error));
            }
        }
    }

    fn failure(&self, error: &h2::Error) -> Failure {
        let reset = error.is_reset() && error.is_remote();
        match error.reason() {
            _ if self.stream.never_dispatched() => Failure::NeverDispatched,
            Some(Reason::REFUSED_STREAM) if reset => Failure::NeverDispatched,
            Some(Reason::NO_ERROR) if reset => Failure::NoHead,
            _ => Failure::Lost,
        }
    }
}
