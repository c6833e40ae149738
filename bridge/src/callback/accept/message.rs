//! Step 1 for what came as a message: an HTTP/2 stream of a gateway, or a file of a queue.

use std::sync::Arc;

use http::{Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use tunnel::{AgentMessage, MessageBody};

use crate::session::Session;

/// Answers one callback that a gateway has taken apart.
pub(crate) async fn message(message: AgentMessage, session: Arc<Session>) -> Response<MessageBody> {
    drop((message, session));
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
}
