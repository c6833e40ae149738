//! One callback of the relay, from its head to the end of its answer.
//!
//! Here: the answer in pieces, each within the credit of its stream and of the connection, and the deadlines. An answer
//! that breaks is reset, never ended. Not here: the table of streams (`serve`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use super::credit::SendCredit;
use super::frame::{Frame, ResetCode};
use super::head;
use crate::MessageBody;

/// A piece that nobody takes for so long is given up, and the answer with it.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Where one stream's answer goes.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) stream: u32,
    pub(super) bodies: mpsc::Sender<Frame>,
    pub(super) own: Arc<SendCredit>,
    pub(super) connection: Arc<SendCredit>,
    /// The longest piece that the Worker takes.
    pub(super) piece: usize,
}

/// Why an answer is not whole.
struct Broken(ResetCode, String);

impl Answer {
    /// Waits for the answer, `deadline` at most, and sends it.
    ///
    /// Dropping the future drops the callback. The peer is then told by whoever dropped it.
    pub(super) async fn send(self, answered: BoxFuture<'static, Response<MessageBody>>, deadline: Duration) {
        let sent = match tokio::time::timeout(deadline, answered).await {
            Ok(response) => self.response(response).await,
            Err(_) => Err(Broken(
                ResetCode::Timeout,
                format!("no answer within {} s", deadline.as_secs()),
            )),
        };
        if let Err(Broken(code, text)) = sent {
            tracing::debug!(stream = self.stream, text, "an answer broke");
            self.put(Frame::Reset {
                stream: self.stream,
                code,
                text,
            })
            .await;
        }
    }

    async fn response(&self, response: Response<MessageBody>) -> Result<(), Broken> {
        let (parts, mut body) = response.into_parts();
        let end = body.is_end_stream();
        self.put(Frame::ResponseHead {
            stream: self.stream,
            end,
            head: head::write(&parts, body.size_hint().exact()),
        })
        .await;
        if end {
            return Ok(());
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Broken(ResetCode::Internal, error.to_string()))?;
            // Trailers are dropped.
            if let Ok(mut bytes) = frame.into_data() {
                while !bytes.is_empty() {
                    self.piece(&mut bytes, body.is_end_stream()).await?;
                }
            }
            if body.is_end_stream() {
                return Ok(());
            }
        }
        self.put(Frame::Data {
            stream: self.stream,
            end: true,
            bytes: Bytes::new(),
        })
        .await;
        Ok(())
    }

    /// Sends as much of `bytes` as there is credit for.
    async fn piece(&self, bytes: &mut Bytes, last: bool) -> Result<(), Broken> {
        let sent = async {
            let wanted = u32::try_from(bytes.len().min(self.piece)).unwrap_or(u32::MAX);
            let own = self.own.take(wanted).await?;
            let granted = u32::try_from(own.num_permits()).unwrap_or(u32::MAX);
            let mut connection = self.connection.take(granted).await?;
            // Both credits are kept until there is a place: dropped here, they are nobody's loss.
            let place = self.bodies.reserve().await.ok()?;
            let length = connection.num_permits();
            let mut own = own;
            if let Some(used) = own.split(length) {
                used.forget();
            }
            if let Some(used) = connection.split(length) {
                used.forget();
            }
            let piece = bytes.split_to(length.min(bytes.len()));
            place.send(Frame::Data {
                stream: self.stream,
                end: last && bytes.is_empty(),
                bytes: piece,
            });
            Some(())
        };
        match tokio::time::timeout(STALL_LIMIT, sent).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err(Broken(ResetCode::Internal, "the connection is over".to_owned())),
            Err(_) => Err(Broken(
                ResetCode::Timeout,
                format!("nobody took the answer for {} s", STALL_LIMIT.as_secs()),
            )),
        }
    }

    async fn put(&self, frame: Frame) {
        // Without a receiver the connection is over, and everybody with it.
        let _gone = self.bodies.send(frame).await;
    }
}
