//! How often the store was asked, what came of it, and how long the ledger took.
//!
//! Here: [`StoreFigures`], counted by either database in the same place: around a call's deadline. Not here: how a scrape
//! reads them (`telemetry/metrics/`).

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use super::error::StoreError;
use crate::telemetry::metrics::Buckets;

/// What is counted of one store. Clones count together.
#[derive(Clone, Debug)]
pub struct StoreFigures {
    pub(crate) calls: Family<CallLabels, Counter>,
    pub(crate) ledger_seconds: Family<StepLabels, Buckets>,
    /// Those of `calls`, so that a call looks for nothing.
    counted: Arc<[[Counter; ENDS.len()]; 2]>,
    dispatch: Buckets,
    settle: Buckets,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct CallLabels {
    access: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct StepLabels {
    step: &'static str,
}

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Which write of the ledger is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The entry before a callback is sent.
    Dispatch,
    /// What became of it.
    Settle,
}

/// What a call comes to, in the order of their counters.
const ENDS: [&str; 5] = ["ok", "late", "unreachable", "full", "failed"];

/// Where a call stands in [`ENDS`]. That a session is there already is an answer.
fn end<T>(done: &Result<T, StoreError>) -> usize {
    match done {
        Ok(_) | Err(StoreError::Exists(_)) => 0,
        Err(StoreError::Deadline { .. }) => 1,
        Err(StoreError::Unreachable(_)) => 2,
        Err(StoreError::Full(_)) => 3,
        Err(
            StoreError::Url(_)
            | StoreError::Folder(_)
            | StoreError::InUse(_)
            | StoreError::Newer { .. }
            | StoreError::Schema(_)
            | StoreError::Damaged(_)
            | StoreError::Busy(_)
            | StoreError::Row { .. }
            | StoreError::Backup(_)
            | StoreError::Closed
            | StoreError::Database(_),
        ) => 4,
    }
}

impl Default for StoreFigures {
    fn default() -> Self {
        let calls = Family::<CallLabels, Counter>::default();
        let counted = ["read", "write"]
            .map(|access| ENDS.map(|outcome| calls.get_or_create(&CallLabels { access, outcome }).clone()));
        let ledger_seconds = Family::<StepLabels, Buckets>::default();
        let step = |step| ledger_seconds.get_or_create(&StepLabels { step }).clone();
        Self {
            dispatch: step("dispatch"),
            settle: step("settle"),
            calls,
            ledger_seconds,
            counted: Arc::new(counted),
        }
    }
}

impl StoreFigures {
    /// Counts what a call comes to.
    pub(super) async fn counting<T>(
        &self,
        access: Access,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let done = call.await;
        let [read, write] = &*self.counted;
        let ends = match access {
            Access::Read => read,
            Access::Write => write,
        };
        if let Some(counter) = ends.get(end(&done)) {
            counter.inc();
        }
        done
    }

    /// Measures how long a write of the ledger takes, whatever comes of it.
    pub(super) async fn measuring<T>(&self, step: Step, write: impl Future<Output = T>) -> T {
        let began = Instant::now();
        let done = write.await;
        let buckets = match step {
            Step::Dispatch => &self.dispatch,
            Step::Settle => &self.settle,
        };
        buckets.observe(began.elapsed());
        done
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_call_is_counted_once_under_what_it_came_to() {
        let figures = StoreFigures::default();
        let late = || StoreError::Deadline {
            call: "x",
            limit: Duration::ZERO,
        };
        let count = |access, outcome| figures.calls.get_or_create(&CallLabels { access, outcome }).get();

        for _ in 0..2 {
            figures.counting(Access::Write, async { Ok(true) }).await.unwrap();
        }
        let refused = figures.counting(Access::Write, async { Err::<(), _>(late()) });
        refused.await.unwrap_err();
        let read = figures.counting(Access::Read, async { Err::<(), _>(StoreError::Closed) });
        read.await.unwrap_err();

        assert_eq!((count("write", "ok"), count("write", "late")), (2, 1));
        assert_eq!((count("read", "ok"), count("read", "failed")), (0, 1));
    }
}
