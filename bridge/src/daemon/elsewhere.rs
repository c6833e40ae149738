//! Sessions that this process does not have and the store knows: those of other daemons, and of earlier processes.
//!
//! Here: how they are shown, with the daemon that serves them, and that they are to end. Not here: how they are taken over (`holding/`).

use uuid::Uuid;

use super::asked::Kept;
use super::{Daemon, OwnerShown, SessionShown, SessionState, Traffic, time};
use crate::store::{DaemonRow, SessionRow, Store, StoreError};

impl Daemon {
    /// A session as it is written down; `None` where there is none, or nothing of it can be read, or it has ended for so long
    /// that it is to be forgotten. The store keeps its row longer, for the outcomes of its callbacks.
    ///
    /// # Errors
    ///
    /// The store's.
    pub(crate) async fn elsewhere(&self, id: Uuid) -> Result<Option<SessionShown>, StoreError> {
        let Some(store) = self.store() else {
            return Ok(None);
        };
        let keep = self.settings().keep_ended;
        let known = store.session(id).await?.filter(|row| {
            let ended = row.ended_at.and_then(|ended| ended.elapsed().ok());
            ended.is_none_or(|ended| ended <= keep)
        });
        let Some(row) = known else {
            return Ok(None);
        };
        let owner = match row.hold.owner.filter(|_| row.ended_at.is_none()) {
            Some(owner) => Some(owner_of(store, owner).await?),
            None => None,
        };
        Ok(shown(&row, owner))
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

/// A daemon, as far as the store knows it.
async fn owner_of(store: &dyn Store, id: Uuid) -> Result<OwnerShown, StoreError> {
    let daemons = store.daemons().await?;
    let known = daemons.into_iter().find(|daemon| daemon.id == id);
    let seen_at = known.as_ref().map(|daemon| time(daemon.seen_at));
    let place = known.and_then(|DaemonRow { place, .. }| place);
    Ok(OwnerShown {
        daemon: id.to_string(),
        started_at: place.as_ref().map(|place| time(place.started_at)),
        address: place.as_ref().map(|place| place.address.clone()),
        host: place.as_ref().map(|place| place.host.clone()),
        version: place.map(|place| place.version),
        seen_at,
    })
}

fn shown(row: &SessionRow, owner: Option<OwnerShown>) -> Option<SessionShown> {
    let kept: Kept = serde_json::from_value(row.request.clone()).ok()?;
    let state = SessionState::ALL
        .into_iter()
        .find(|state| state.name() == row.state)?;
    let since = row.ended_at.or(row.ready_at).unwrap_or(row.created_at);
    Some(SessionShown {
        session: row.id.to_string(),
        state,
        reason: row.reason.clone(),
        detail: owner.as_ref().map(|owner| {
            let to_end = if row.revoked { ", and it is to end" } else { "" };
            format!(
                "the daemon {} serves it, under fence {}{to_end}",
                owner.daemon, row.hold.fence
            )
        }),
        owner,
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
        warnings: Vec::new(),
        uid: kept.uid,
        created_at: time(row.created_at),
        expires_at: time(kept.expires),
        heartbeat_ms: kept
            .heartbeat
            .map(|heartbeat| u64::try_from(heartbeat.as_millis()).unwrap_or(u64::MAX)),
        open_outcomes: 0,
    })
}
