//! One request through the queue, as far as both roles do the same.
//!
//! Here: reading the caller's body within its bounds, and waiting for the response. Not here: the order of checks, and
//! what is answered when something fails (`ours.rs`, `peer.rs`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time::Instant;

use super::directory::{Directory, OpenResponse, PutFault};
use super::ledger::{NoRoom, Share};
use crate::caller::{CallerBody, CallerBodyError};

/// From here on a file is written or read beside the loop that serves everyone.
const LARGE: usize = 256 * 1024;

/// Why there is no body.
#[derive(Debug)]
pub(super) enum BodyFault {
    /// More than the limit.
    TooLarge,
    /// The ledger is full.
    NoRoom,
    /// The caller's side.
    Caller(CallerBodyError),
}

/// Reads a body of at most `limit` bytes; each chunk is in `share` before it is kept, and the whole once more.
pub(super) async fn read_body(
    mut body: CallerBody,
    limit: u64,
    share: &mut Share,
) -> Result<Bytes, BodyFault> {
    let full = |NoRoom| BodyFault::NoRoom;
    let mut whole = BytesMut::new();
    let mut length = 0_u64;
    while let Some(frame) = body.frame().await {
        let Ok(chunk) = frame.map_err(BodyFault::Caller)?.into_data() else {
            continue;
        };
        let more = chunk.len() as u64;
        length = length.saturating_add(more);
        if length > limit {
            return Err(BodyFault::TooLarge);
        }
        share.take(more).map_err(full)?;
        whole.extend_from_slice(&chunk);
    }
    share.take(length).map_err(full)?;
    Ok(whole.freeze())
}

/// Puts a request into the queue.
pub(super) async fn put(directory: &Arc<Directory>, id: &str, bytes: Vec<u8>) -> Result<(), PutFault> {
    if bytes.len() < LARGE {
        return directory.put_request(id, &bytes);
    }
    let (directory, id) = (Arc::clone(directory), id.to_owned());
    tokio::task::spawn_blocking(move || directory.put_request(&id, &bytes))
        .await
        .unwrap_or_else(|error| Err(PutFault::Unwritten(io::Error::other(error))))
}

/// Reads a response that was opened; none when it changed meanwhile.
pub(super) async fn read(response: OpenResponse) -> io::Result<Option<Vec<u8>>> {
    if usize::try_from(response.size).is_ok_and(|size| size < LARGE) {
        return response.read();
    }
    tokio::task::spawn_blocking(move || response.read())
        .await
        .map_err(io::Error::other)?
}

/// Waits until the response is there or `deadline` has passed; `pace` says how long after how long to look again.
pub(super) async fn wait(
    directory: &Arc<Directory>,
    id: &str,
    deadline: Instant,
    pace: impl Fn(Duration) -> Duration,
) -> io::Result<Option<OpenResponse>> {
    let started = Instant::now();
    loop {
        if let Some(response) = directory.response(id)? {
            return Ok(Some(response));
        }
        let now = Instant::now();
        if now >= deadline {
            return Ok(None);
        }
        let next = now + pace(now - started);
        tokio::time::sleep_until(next.min(deadline)).await;
    }
}
