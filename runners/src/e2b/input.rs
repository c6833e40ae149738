//! A process's stdin: one call a piece, one at a time.
//!
//! Bytes carry no place, so a piece whose fate is unknown is never sent again.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::envd::{CALL_LIMIT, CallFault, Envd};

/// Bytes a call: base64 adds a third, and what stands between may refuse more than half a megabyte.
pub(super) const INPUT_LIMIT_BYTES: usize = 256 * 1024;
/// The call is answered when the program has read enough, which it may do when it likes.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Pauses before a piece that was certainly not taken is sent again.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// What became of input.
#[derive(Debug)]
pub(super) enum Taken {
    /// It was taken, or nobody is there to take it: then the end of the process says the rest.
    Yes,
    /// Nobody knows.
    Unknown(String),
}

/// Gives the process of this tag one piece.
pub(super) async fn send(envd: &Envd, tag: &str, piece: &[u8]) -> Taken {
    let request = json!({"process": {"tag": tag}, "input": {"stdin": STANDARD.encode(piece)}});
    for pause in PAUSES {
        match envd.process("SendInput", &request, PATIENCE).await {
            Err(CallFault::NotDone(_)) => tokio::time::sleep(pause).await,
            other => return read(other),
        }
    }
    read(envd.process("SendInput", &request, PATIENCE).await)
}

/// Ends its input. Can be said twice, so it is.
pub(super) async fn close(envd: &Envd, tag: &str) -> Taken {
    let request = json!({"process": {"tag": tag}});
    for pause in PAUSES {
        match envd.process("CloseStdin", &request, CALL_LIMIT).await {
            Err(CallFault::NotDone(_) | CallFault::Unknown(_)) => tokio::time::sleep(pause).await,
            other => return read(other),
        }
    }
    read(envd.process("CloseStdin", &request, CALL_LIMIT).await)
}

fn read(answer: Result<(), CallFault>) -> Taken {
    match answer {
        // A process that ended, or closed its stdin, needs no more of it.
        Ok(()) | Err(CallFault::Rpc(_)) => Taken::Yes,
        Err(fault) => Taken::Unknown(fault.to_string()),
    }
}
