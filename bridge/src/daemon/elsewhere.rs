//! Sessions that this process does not have and the store knows: those of other daemons, and of earlier processes.
//!
//! Here: how they are shown, and that they are to end. Not here: how they are taken over (`holding.rs`).

use uuid::Uuid;

use super::asked::Kept;
use super::{Daemon, SessionShown, SessionState, Traffic, time};
use crate::store::{SessionRow, StoreError};

impl Daemon {
    /// A session as it is written down; `None` where there is none, or nothing of it can be read.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn elsewhere(&self, id: Uuid) -> Result<Option<SessionShown>, StoreError> {
        let Some(store) = self.store() else {
            return Ok(None);
        };
        Ok(store.session(id).await?.as_ref().and_then(shown))
    }

    /// Has a session end that this process does not have; `None` where there is none.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn revoke_elsewhere(&self, id: Uuid) -> Result<Option<SessionShown>, StoreError> {
        if let Some(store) = self.store() {
            store.revoke(id).await?;
        }
        self.elsewhere(id).await
    }
}

fn shown(row: &SessionRow) -> Option<SessionShown> {
    let kept: Kept = serde_json::from_value(row.request.clone()).ok()?;
    let state = SessionState::ALL
        .into_iter()
        .find(|state| state.name() == row.state)?;
    let since = row.ended_at.or(row.ready_at).unwrap_or(row.created_at);
    let owner = row.hold.owner.filter(|_| row.ended_at.is_none());
    Some(SessionShown {
        session: row.id.to_string(),
        state,
        reason: row.reason.clone(),
        detail: owner.map(|owner| {
            let to_end = if row.revoked { ", and it is to end" } else { "" };
            format!(
                "the daemon {owner} serves it, under fence {}{to_end}",
                row.hold.fence
            )
        }),
        since: time(since),
        target: row.target.clone(),
        tunnel: row.tunnel.clone(),
        url: row.url.clone(),
        run_id: row.run_id.clone(),
        agent_id: row.agent_id.clone(),
        company_id: row.company_id.clone(),
        issue_id: row.issue_id.clone(),
        environment_id: row.environment_id.clone(),
        lease: None,
        traffic: Traffic::default(),
        last_callback_at: None,
        ladder: Vec::new(),
        uid: kept.uid,
        created_at: time(row.created_at),
        expires_at: time(kept.expires),
        heartbeat_ms: kept
            .heartbeat
            .map(|heartbeat| u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX)),
        open_outcomes: 0,
    })
}
