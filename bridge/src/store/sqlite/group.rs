//! Writes of the ledger, committed together.
//!
//! An entry is waited for by its callback, so it is committed at once, with all others that came meanwhile. What became
//! of a callback is waited for by nobody: it gathers for [`GATHER`], or until somebody waits for the disk anyhow. One
//! statement writes all rows of a kind, so that a row among many costs little more than its bytes. Not here: what is
//! written (`ledger.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::log::Log;
use super::{Writer, read_error};
use crate::store::StoreError;

/// Callers that wait; more of them wait for a place.
const QUEUE: usize = 1_024;
/// Of one transaction, so that other writers get their turn.
const TOGETHER: usize = 256;
/// What nobody waits for is written so much later at most.
const GATHER: Duration = Duration::from_millis(10);
/// Commits that wait for the disk begin so far from each other at least, so that under a load more of them share one: the
/// disk and the file system's journal have as much work with a commit of one row as of many.
const APART: Duration = Duration::from_millis(5);

/// What is written. Each kind has one statement, which takes its rows as an array of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A callback is about to be sent.
    Entry,
    /// What became of it.
    Outcome,
    /// Whether the answer reached its caller.
    Delivery,
}

impl Kind {
    fn statements(self) -> &'static Statements {
        match self {
            Self::Entry => &super::ledger::ENTER,
            Self::Outcome => &super::ledger::SETTLE,
            Self::Delivery => &super::ledger::DELIVER,
        }
    }
}

/// Writes the rows of an array of JSON.
#[derive(Debug)]
pub(super) struct Statements {
    /// Says how many it wrote.
    pub(super) counting: &'static str,
    /// Returns the request ids of those that it wrote.
    pub(super) naming: &'static str,
}

/// Commits writes of one kind in the order in which they came.
#[derive(Debug)]
pub(super) struct Group {
    queue: mpsc::Sender<Write>,
    _task: AbortOnDropHandle<()>,
}

/// One row.
struct Write {
    kind: Kind,
    request_id: String,
    /// An object of JSON.
    row: String,
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Group {
    /// Starts the task that commits; it ends with this value.
    ///
    /// - `waits`: a commit waits for the disk, so that as much as possible shares it.
    pub(super) fn start(writer: Writer, waits: bool, log: Arc<Log>) -> Self {
        let (queue, writes) = mpsc::channel(QUEUE);
        let task = commit_all(writer, writes, waits, log);
        Self {
            queue,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// Writes at most one row; whether it did. On the disk, as far as durability says, when it returns.
    ///
    /// Where the caller goes away before its turn, nothing is written.
    ///
    /// # Errors
    ///
    /// The store's; nothing is written then.
    pub(super) async fn write_one(
        &self,
        kind: Kind,
        request_id: String,
        row: &(impl Serialize + Sync),
    ) -> Result<bool, StoreError> {
        let row =
            serde_json::to_string(row).map_err(|error| read_error(sqlx::Error::Encode(Box::new(error))))?;
        let (answer, answered) = oneshot::channel();
        let write = Write {
            kind,
            request_id,
            row,
            answer,
        };
        self.queue.send(write).await.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

async fn commit_all(writer: Writer, mut writes: mpsc::Receiver<Write>, waits: bool, log: Arc<Log>) {
    let mut came = Vec::new();
    let mut gathered: Vec<Write> = Vec::new();
    // Made once for what gathers: a timer that is the next to run out costs the thread a wake-up.
    let mut due: Option<Pin<Box<Sleep>>> = None;
    let mut next = Instant::now();
    loop {
        let open = tokio::select! {
            count = writes.recv_many(&mut came, TOGETHER) => count > 0,
            () = until(&mut due) => true,
        };
        if waits && open {
            sleep_until(next).await;
            while came.len() < TOGETHER
                && let Ok(write) = writes.try_recv()
            {
                came.push(write);
            }
        }
        came.retain(|write| !write.answer.is_closed());
        let (mut urgent, later): (Vec<_>, Vec<_>) =
            came.drain(..).partition(|write| write.kind == Kind::Entry);
        gathered.extend(later);
        // Entries are one statement, which needs no transaction around it; they wait for what nobody waits for only where
        // the wait for the disk is most of it.
        let shares = waits && !urgent.is_empty();
        let is_due = due.as_ref().is_some_and(|due| due.is_elapsed());
        if !urgent.is_empty() && !shares {
            write_all(&writer, std::mem::take(&mut urgent), &log).await;
        }
        if shares || is_due || !open || gathered.len() >= TOGETHER {
            urgent.append(&mut gathered);
            next = Instant::now() + APART;
            write_all(&writer, urgent, &log).await;
        }
        due = match (gathered.is_empty(), due) {
            (true, _) => None,
            (false, Some(due)) if !is_due => Some(due),
            (false, _) => Some(Box::pin(sleep(GATHER))),
        };
        if !open {
            return;
        }
    }
}

async fn until(due: &mut Option<Pin<Box<Sleep>>>) {
    match due {
        Some(due) => due.await,
        None => std::future::pending().await,
    }
}

/// Writes all of them, or says to each why it is not written.
async fn write_all(writer: &Writer, writes: Vec<Write>, log: &Log) {
    let mut by_kind: BTreeMap<Kind, Vec<Write>> = BTreeMap::new();
    let count = writes.len();
    for write in writes {
        by_kind.entry(write.kind).or_default().push(write);
    }
    if count == 0 {
        return;
    }
    match commit(writer, &by_kind).await {
        Ok(written) => {
            log.wrote(count);
            for write in by_kind.into_values().flatten() {
                let done = written.contains(&(write.kind, write.request_id));
                // Whoever does not wait any more has seen its deadline pass.
                let _gone = write.answer.send(Ok(done));
            }
        }
        // A row that is there already undoes the statement, and is no fault of the others: each by itself.
        Err(error) if count > 1 && is_there_already(&error) => {
            for (kind, write) in by_kind
                .into_iter()
                .flat_map(|(kind, writes)| writes.into_iter().map(move |write| (kind, write)))
            {
                let alone = BTreeMap::from([(kind, vec![write])]);
                let answer = commit(writer, &alone).await.map_err(read_error);
                log.wrote(1);
                for write in alone.into_values().flatten() {
                    let answer = answer.as_ref();
                    let done = answer.map(|written| written.contains(&(kind, write.request_id)));
                    let _gone = write.answer.send(done.map_err(Clone::clone));
                }
            }
        }
        Err(error) => {
            let error = read_error(error);
            for write in by_kind.into_values().flatten() {
                let _gone = write.answer.send(Err(error.clone()));
            }
        }
    }
}

/// The kinds and request ids of what was written; an error where nothing was.
async fn commit(
    writer: &Writer,
    by_kind: &BTreeMap<Kind, Vec<Write>>,
) -> Result<BTreeSet<(Kind, String)>, sqlx::Error> {
    let mut written = BTreeSet::new();
    if by_kind.len() == 1 {
        // A statement is a transaction.
        let mut connection = writer.lock().await;
        for (kind, writes) in by_kind {
            execute(&mut connection, *kind, writes, &mut written).await?;
        }
        return Ok(written);
    }
    let mut connection = writer.lock().await;
    let mut together = connection.begin_with("BEGIN IMMEDIATE").await?;
    for (kind, writes) in by_kind {
        execute(&mut together, *kind, writes, &mut written).await?;
    }
    together.commit().await?;
    Ok(written)
}

async fn execute(
    connection: &mut SqliteConnection,
    kind: Kind,
    writes: &[Write],
    written: &mut BTreeSet<(Kind, String)>,
) -> Result<(), sqlx::Error> {
    let mut rows = String::from("[");
    for (number, write) in writes.iter().enumerate() {
        if number > 0 {
            rows.push(',');
        }
        rows.push_str(&write.row);
    }
    rows.push(']');
    let statements = kind.statements();
    if let [write] = writes {
        // Each row that is returned wakes this thread by itself.
        let done = sqlx::query(statements.counting).bind(rows).execute(connection);
        if done.await?.rows_affected() == 1 {
            written.insert((kind, write.request_id.clone()));
        }
        return Ok(());
    }
    let done = sqlx::query(statements.naming).bind(rows).fetch_all(connection);
    for row in done.await? {
        written.insert((kind, row.try_get(0)?));
    }
    Ok(())
}

fn is_there_already(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_unique_violation())
}
