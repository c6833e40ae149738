//! The channel over a byte stream where the target gives one, else the one that needs none.
//!
//! Here: [`Either`]. A target may declare byte streams and refuse them all the same; that is known only once one is
//! asked for. Not here: the two kinds (`pump.rs`, `batch.rs`).

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::BoxFuture;
use runners::RunnerError;

use super::batch::Batch;
use super::channel::{ChannelFault, OpenQueue, QueueChannel};
use super::pump::Pump;

/// Both ways to one directory.
#[derive(Debug)]
pub(super) struct Either {
    pump: Pump,
    batch: Batch,
    /// A byte stream was refused, and is not asked for again.
    refused: AtomicBool,
}

impl Either {
    pub(super) fn new(pump: Pump, batch: Batch) -> Self {
        Self {
            pump,
            batch,
            refused: AtomicBool::new(false),
        }
    }

    async fn opened(&self) -> Result<OpenQueue, ChannelFault> {
        if self.refused.load(Ordering::Relaxed) {
            return self.batch.open().await;
        }
        match self.pump.open().await {
            Err(ChannelFault::Runner(
                error @ (RunnerError::Refused { .. } | RunnerError::Unsupported(_)),
            )) => {
                tracing::info!(%error, "the queue is served without a byte stream");
                self.refused.store(true, Ordering::Relaxed);
                self.batch.open().await
            }
            other => other,
        }
    }
}

impl QueueChannel for Either {
    fn open(&self) -> BoxFuture<'_, Result<OpenQueue, ChannelFault>> {
        Box::pin(self.opened())
    }
}
