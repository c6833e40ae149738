//! What lies ready in the sandbox before a command starts: its stdin and its secrets, as files in a private folder.
//!
//! Here: the collecting and the upload. Not here: the command ([`super::runner`]).

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncReadExt as _;

use super::api::Fault;
use super::script;
use super::script::Job;
use super::toolbox::Toolbox;
use crate::shell::CommandParts;
use crate::{Input, RunnerError};

/// Bytes of stdin that one command may be given: it is held whole before it is uploaded.
const STDIN_LIMIT_BYTES: usize = 64 * 1024 * 1024;

/// All of stdin; none where there is none.
pub(super) async fn collect(stdin: Input) -> Result<Option<Bytes>, RunnerError> {
    let too_large = || {
        RunnerError::Invalid(format!(
            "standard input is longer than {STDIN_LIMIT_BYTES} bytes, which is what is uploaded for one command"
        ))
    };
    match stdin {
        Input::None => Ok(None),
        Input::Bytes(bytes) if bytes.len() > STDIN_LIMIT_BYTES => Err(too_large()),
        Input::Bytes(bytes) => Ok(Some(bytes)),
        Input::Stream(mut stream) => {
            let mut whole = BytesMut::new();
            loop {
                match stream.read_buf(&mut whole).await {
                    Ok(0) => return Ok(Some(whole.freeze())),
                    Ok(_) if whole.len() > STDIN_LIMIT_BYTES => return Err(too_large()),
                    Ok(_) => {}
                    Err(source) => {
                        return Err(RunnerError::Io {
                            action: "cannot read what a command's standard input shall be".to_owned(),
                            source,
                        });
                    }
                }
            }
        }
    }
}

/// Writes a command's stdin and secrets where it finds them.
pub(super) async fn stage(
    toolbox: &Toolbox,
    job: &Job,
    parts: &CommandParts<'_>,
    stdin: Option<Bytes>,
) -> Result<(), Fault> {
    let secrets = script::secrets(parts);
    let (input, env) = (job.file("in"), job.file("env"));
    let mut files: Vec<(&str, &[u8])> = vec![];
    if let Some(stdin) = &stdin {
        files.push((&input, stdin));
    }
    if !secrets.is_empty() {
        files.push((&env, secrets.as_bytes()));
    }
    if files.is_empty() {
        return Ok(());
    }
    // Private before anything lies in it.
    toolbox.folder(&job.folder, "700").await?;
    toolbox.upload(&files).await
}

pub(super) async fn discard(toolbox: &Toolbox, job: &Job) {
    if let Err(fault) = toolbox.remove(&job.folder).await {
        tracing::debug!(%fault, "the folder of a command that was not started stays in the sandbox");
    }
}
