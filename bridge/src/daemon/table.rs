//! The table of sessions: those that live, and for a while those that have ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::entry::Entry;

/// Sessions that have ended and can be asked about, at most.
pub(super) const MOST_ENDED: usize = 1024;

/// Sessions by their names, which are in the order of their making.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) living: BTreeMap<Uuid, Arc<Entry>>,
    /// The longest ended first.
    pub(super) ended: VecDeque<(Instant, Arc<Entry>)>,
}

impl Table {
    /// Drops what has ended too long ago, or is too much.
    pub(super) fn forget_old(&mut self, keep: Duration) {
        let now = Instant::now();
        while let Some((since, _)) = self.ended.front()
            && (self.ended.len() > MOST_ENDED || now.duration_since(*since) > keep)
        {
            self.ended.pop_front();
        }
    }
}
