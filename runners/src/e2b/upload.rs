//! A file into a sandbox: written under a name of its own with the right mode, then renamed.
//!
//! The server writes in place; so the file is made first, empty and with its mode, and nobody sees half of it or reads
//! it before its mode holds.

use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::control::encode;
use super::envd::{CALL_LIMIT, Call, CallFault, Envd};
use super::exec::{execute, tag};
use crate::shell::check_text;
use crate::{Execution, RunnerError};

/// For the bytes alone.
const WRITE_LIMIT: Duration = Duration::from_secs(300);
/// `$1` the file's place, `$2` its name until then, `$3` its mode.
const PREPARE: &str = "umask 077; [ ! -d \"$1\" ] || { echo \"$1 is a folder\" >&2; exit 1; }; \
                       mkdir -p -- \"${2%/*}\" && : >\"$2\" && chmod \"$3\" \"$2\"";
const CHANGE_MODE: &str = "chmod \"$3\" \"$2\"";
const REMOVE: &str = "rm -f -- \"$2\"";
/// The owner must be able to write it, until it is written.
const WRITABLE: u32 = 0o200;

/// Writes `bytes` to `path`, which is absolute.
pub(super) async fn upload(envd: &Envd, path: &str, bytes: Bytes, mode: u32) -> Result<(), RunnerError> {
    check_text("the path", path)?;
    let Some((folder, name)) = path.rsplit_once('/').filter(|_| path.starts_with('/')) else {
        return Err(RunnerError::Invalid(format!(
            "the path {path:?} is not absolute: start it with `/`"
        )));
    };
    if matches!(name, "" | "." | "..") {
        return Err(RunnerError::Invalid(format!("the path {path:?} names no file")));
    }
    let partial = format!("{folder}/{}", tag(".pcb-")?);
    let mode = mode & 0o7777;
    let script =
        async |script: &str, mode: u32| run(envd, script, [path, &partial, &format!("{mode:o}")]).await;
    script(PREPARE, mode | WRITABLE).await?;
    let moved = async {
        write(envd, &partial, bytes)
            .await
            .map_err(|fault| fault.told(&envd.target))?;
        if mode & WRITABLE == 0 {
            script(CHANGE_MODE, mode).await?;
        }
        let request = json!({"source": partial, "destination": path});
        let moved = envd
            .unary("/filesystem.Filesystem/Move", &request, CALL_LIMIT)
            .await;
        moved.map_err(|fault| fault.told(&envd.target))
    };
    let moved = moved.await;
    if moved.is_err()
        && let Err(error) = script(REMOVE, mode).await
    {
        tracing::warn!(target_sandbox = %envd.target, partial, %error, "a part of a file is left behind");
    }
    moved
}

async fn write(envd: &Envd, path: &str, bytes: Bytes) -> Result<(), CallFault> {
    let user = envd.access.control.settings.user.as_deref();
    let user = user.map_or_else(String::new, |user| format!("&username={}", encode(user)));
    envd.send(&Call {
        path: &format!("/files?path={}{user}", encode(path)),
        content_type: "application/octet-stream",
        headers: &[],
        body: bytes,
        limit: WRITE_LIMIT,
    })
    .await
    .map(drop)
}

async fn run(envd: &Envd, script: &str, args: [&str; 3]) -> Result<(), RunnerError> {
    let mut execution = Execution::new("sh", ["-c", script, "sh"].into_iter().chain(args));
    execution.timeout = Some(CALL_LIMIT);
    let result = execute(envd, execution, None).await?;
    if result.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&result.stderr);
    Err(RunnerError::Refused {
        target: envd.target.clone(),
        reason: format!("a file could not be written: {}", said.trim_end()),
    })
}
