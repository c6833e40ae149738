//! Writes of the ledger, committed together.
//!
//! Callers that write at the same moment share a transaction, and with it the wait for the disk: at durability `fsync`
//! that wait is most of what an entry costs. A caller alone is committed at once, without a transaction around it. Not
//! here: what is written.

use sqlx::SqlitePool;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use super::{Query, read_error};
use crate::store::StoreError;

/// Callers that wait; more of them wait for a place.
const QUEUE: usize = 1_024;
/// Of one transaction, so that other writers get their turn.
const TOGETHER: usize = 64;

/// Commits writes in the order in which they came, as many at a time as there are.
#[derive(Debug)]
pub(super) struct Group {
    queue: mpsc::Sender<Write>,
    _task: AbortOnDropHandle<()>,
}

struct Write {
    query: Query<'static>,
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Group {
    /// Starts the task that commits; it ends with this value.
    pub(super) fn start(writer: SqlitePool) -> Self {
        let (queue, writes) = mpsc::channel(QUEUE);
        Self {
            queue,
            _task: AbortOnDropHandle::new(tokio::spawn(commit_all(writer, writes))),
        }
    }

    /// Carries out what writes at most one row; whether it did. On the disk, as far as durability says, when it returns.
    ///
    /// Where the caller goes away before its turn, nothing is written.
    pub(super) async fn write_one(&self, query: Query<'static>) -> Result<bool, StoreError> {
        let (answer, answered) = oneshot::channel();
        let queued = self.queue.send(Write { query, answer }).await;
        queued.map_err(|_| StoreError::Closed)?;
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

async fn commit_all(writer: SqlitePool, mut writes: mpsc::Receiver<Write>) {
    let mut batch = Vec::new();
    while writes.recv_many(&mut batch, TOGETHER).await > 0 {
        let (queries, callers): (Vec<_>, Vec<_>) = batch
            .drain(..)
            .filter(|write| !write.answer.is_closed())
            .map(|write| (write.query, write.answer))
            .unzip();
        match commit(&writer, queries).await {
            Ok(answers) => {
                for (caller, answer) in callers.into_iter().zip(answers) {
                    // Whoever does not wait any more has seen its deadline pass.
                    let _gone = caller.send(answer);
                }
            }
            Err(error) => {
                for caller in callers {
                    let _gone = caller.send(Err(error.clone()));
                }
            }
        }
    }
}

/// An answer for each; an error where nothing was committed.
async fn commit(
    writer: &SqlitePool,
    queries: Vec<Query<'static>>,
) -> Result<Vec<Result<bool, StoreError>>, StoreError> {
    if queries.len() < 2 {
        let mut answers = Vec::new();
        for query in queries {
            let done = query.execute(writer).await.map_err(read_error)?;
            answers.push(Ok(done.rows_affected() == 1));
        }
        return Ok(answers);
    }
    let mut together = writer.begin_with("BEGIN IMMEDIATE").await.map_err(read_error)?;
    let mut answers = Vec::with_capacity(queries.len());
    for query in queries {
        answers.push(match query.execute(&mut *together).await {
            Ok(done) => Ok(done.rows_affected() == 1),
            // A row that is there already undoes its own statement and nothing of the others.
            Err(error) if is_there_already(&error) => Err(read_error(error)),
            Err(error) => return Err(read_error(error)),
        });
    }
    together.commit().await.map_err(read_error)?;
    Ok(answers)
}

fn is_there_already(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .is_some_and(|error| error.is_unique_violation())
}
