//! A benchmark that leaves nothing behind, however it ends.
//!
//! Here: the benchmark runs itself once more as its worker. Where the worker is killed, the guardian ends what it
//! had started; where the guardian is killed, the kernel tells the worker, which ends in order. Not here: what is
//! measured. Read next: [`super::cost`], for whose sake orphans come to the worker first.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use super::cost::inherit_orphans;
use crate::processes;

/// Set for the worker.
const WORKER: &str = "PAPERCLIP_BRIDGE_BENCHMARK_WORKER";

/// How long a worker that was told to end may take.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Runs `work` in a worker process, and ends everything below this one when that is over.
///
/// # Errors
///
/// What `work` fails with, or that no worker can be started.
pub fn guarded(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = if std::env::var_os(WORKER).is_none() {
        runtime.block_on(watch())
    } else {
        runtime.block_on(until_told(work))
    };
    end_descendants();
    // A load that still runs on a thread of its own is not waited for.
    runtime.shutdown_background();
    code
}

async fn watch() -> anyhow::Result<ExitCode> {
    inherit_orphans()?;
    let mut worker = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(WORKER, "1")
        // A signal to the guardian's group, such as the terminal's, reaches the worker through the guardian only.
        .process_group(0)
        .spawn()
        .context("the worker starts")?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let status = tokio::select! {
        status = worker.wait() => status?,
        _ = interrupt.recv() => told_to_end(&mut worker).await?,
        _ = terminate.recv() => told_to_end(&mut worker).await?,
    };
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .map_or(ExitCode::FAILURE, ExitCode::from))
}

async fn told_to_end(worker: &mut tokio::process::Child) -> anyhow::Result<std::process::ExitStatus> {
    if let Some(pid) = worker.id() {
        processes::signal(pid, "TERM");
    }
    if let Ok(ended) = tokio::time::timeout(END_LIMIT, worker.wait()).await {
        return Ok(ended?);
    }
    worker.start_kill()?;
    Ok(worker.wait().await?)
}

async fn until_told(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    set_parent_process_death_signal(Some(Signal::TERM))?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        done = work => done.map(|()| ExitCode::SUCCESS),
        _ = terminate.recv() => anyhow::bail!("told to end before the measuring was over"),
    }
}

/// Kills everything below this process, also what comes to it only when its parent has gone.
fn end_descendants() {
    let started = Instant::now();
    loop {
        let mut left = processes::descendants(std::process::id());
        left.retain(|one| one.state != 'Z');
        if left.is_empty() || started.elapsed() > END_LIMIT {
            return;
        }
        for one in left {
            processes::signal(one.pid, "KILL");
        }
    }
}
