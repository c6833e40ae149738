//! A store that does what a test says, and tells what it was asked.
//!
//! Here: [`Fake`], for tests of what stands on a store. It keeps nothing: what a store promises is shown by the conformance
//! suite (`tests/tests/store/`).

use std::collections::BTreeMap;
use std::sync::Mutex;

use tokio::sync::Semaphore;

use super::*;

/// What a call does; without a word, [`Does::Yes`].
#[derive(Clone, Debug)]
pub(crate) enum Does {
    Yes,
    No,
    Fails,
    /// Waits for a permit, and then says so.
    Waits(Arc<Semaphore>, bool),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Fake {
    shared: bool,
    daemon: Uuid,
    does: Mutex<BTreeMap<&'static str, Does>>,
    asked: Mutex<Vec<(&'static str, String)>>,
}

impl Fake {
    /// As several daemons have it.
    pub(crate) fn shared() -> Arc<Self> {
        Self::new(true)
    }

    /// As one daemon has it for itself.
    pub(crate) fn alone() -> Arc<Self> {
        Self::new(false)
    }

    fn new(shared: bool) -> Arc<Self> {
        Arc::new(Self {
            shared,
            daemon: Uuid::now_v7(),
            does: Mutex::default(),
            asked: Mutex::default(),
        })
    }

    /// From now on this call does that.
    pub(crate) fn does(&self, call: &'static str, does: Does) {
        self.does.lock().unwrap().insert(call, does);
    }

    /// From now on this call waits for a permit of the semaphore, and then says yes, or no.
    pub(crate) fn waits(&self, call: &'static str, yes: bool) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.does(call, Does::Waits(Arc::clone(&gate), yes));
        gate
    }

    /// What was said with each of these calls.
    pub(crate) fn asked(&self, call: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        let those = asked.iter().filter(|(asked, _)| *asked == call);
        those.map(|(_, said)| said.clone()).collect()
    }

    /// A claim of this daemon on some session.
    pub(crate) fn claim(&self) -> Claim {
        Claim {
            session: Uuid::now_v7(),
            daemon: self.daemon,
            fence: Fence(1),
        }
    }

    fn reply<'a, T: Send + 'a>(
        &'a self,
        call: &'static str,
        said: String,
        answer: impl FnOnce(bool) -> T + Send + 'a,
    ) -> Reply<'a, T> {
        Box::pin(async move {
            self.asked.lock().unwrap().push((call, said));
            let does = self.does.lock().unwrap().get(call).cloned();
            match does.unwrap_or(Does::Yes) {
                Does::Yes => Ok(answer(true)),
                Does::No => Ok(answer(false)),
                Does::Fails => Err(StoreError::Closed),
                Does::Waits(gate, yes) => {
                    gate.acquire().await.unwrap().forget();
                    Ok(answer(yes))
                }
            }
        })
    }

    fn nothing<'a, T: Default + Send + 'a>(&'a self, call: &'static str) -> Reply<'a, T> {
        self.reply(call, String::new(), |_| T::default())
    }
}

impl Store for Fake {
    fn kind(&self) -> &'static str {
        "in memory"
    }
    fn is_shared(&self) -> bool {
        self.shared
    }
    fn daemon(&self) -> Uuid {
        self.daemon
    }
    fn figures(&self) -> StoreFigures {
        StoreFigures::default()
    }
    fn ready(&self) -> Reply<'_, ()> {
        self.nothing("ready")
    }
    fn backup<'a>(&'a self, _: &'a Path) -> Reply<'a, ()> {
        self.nothing("backup")
    }

    fn announce<'a>(&'a self, place: &'a DaemonPlace) -> Reply<'a, ()> {
        self.reply("announce", place.address.clone(), drop)
    }
    fn daemons(&self) -> Reply<'_, Vec<DaemonRow>> {
        self.nothing("daemons")
    }
    fn sweep_daemons(&self, _: Duration) -> Reply<'_, u64> {
        self.nothing("sweep_daemons")
    }

    fn create<'a>(&'a self, session: &'a SessionRow, daemon: Uuid, _: Duration) -> Reply<'a, Claim> {
        let claim = Claim {
            session: session.id,
            daemon,
            fence: Fence(1),
        };
        self.reply("create", session.id.to_string(), move |_| claim)
    }
    fn save<'a>(&'a self, claim: &'a Claim, _: &'a SessionRow) -> Reply<'a, bool> {
        self.reply("save", claim.session.to_string(), |yes| yes)
    }
    fn session(&self, _: Uuid) -> Reply<'_, Option<SessionRow>> {
        self.nothing("session")
    }
    fn sessions(&self, _: SessionFilter) -> Reply<'_, Vec<SessionRow>> {
        self.nothing("sessions")
    }
    fn revoke(&self, id: Uuid) -> Reply<'_, bool> {
        self.reply("revoke", id.to_string(), |yes| yes)
    }
    fn listen(&self) -> Option<Hearing> {
        None
    }
    fn revoked(&self, _: Uuid) -> Reply<'_, Vec<Uuid>> {
        self.nothing("revoked")
    }
    fn sweep_sessions(&self, _: Duration) -> Reply<'_, u64> {
        self.nothing("sweep_sessions")
    }

    fn claim(&self, _: Uuid, _: Uuid, _: Duration) -> Reply<'_, Option<Claim>> {
        self.nothing("claim")
    }
    fn resume(&self, _: Uuid, _: Duration) -> Reply<'_, Vec<(Claim, SessionRow)>> {
        self.nothing("resume")
    }
    fn take_over(&self, _: Uuid, _: Duration, _: u32) -> Reply<'_, Vec<(Claim, SessionRow)>> {
        self.nothing("take_over")
    }
    fn renew<'a>(&'a self, claims: &'a [Claim], _: Duration) -> Reply<'a, Vec<Uuid>> {
        let sessions: Vec<_> = claims.iter().map(|claim| claim.session).collect();
        self.reply("renew", format!("{sessions:?}"), |yes| {
            if yes { sessions } else { Vec::new() }
        })
    }
    fn release<'a>(&'a self, claim: &'a Claim) -> Reply<'a, bool> {
        self.reply("release", claim.session.to_string(), |yes| yes)
    }

    fn dispatch<'a>(&'a self, _: &'a Claim, entry: &'a NewEntry) -> Reply<'a, bool> {
        self.reply("dispatch", entry.request_id.to_string(), |yes| yes)
    }
    fn settle<'a>(&'a self, _: &'a Claim, request_id: Uuid, outcome: &'a EntryOutcome) -> Reply<'a, bool> {
        self.reply("settle", format!("{request_id} {}", outcome.name()), |yes| yes)
    }
    fn delivered<'a>(&'a self, _: &'a Claim, request_id: Uuid, whole: bool) -> Reply<'a, bool> {
        self.reply("delivered", format!("{request_id} {whole}"), |yes| yes)
    }
    fn mark_indeterminate<'a>(&'a self, claim: &'a Claim, _: &'a str) -> Reply<'a, u64> {
        self.reply("mark_indeterminate", claim.session.to_string(), |_| 0)
    }
    fn entry(&self, _: Uuid) -> Reply<'_, Option<EntryRow>> {
        self.nothing("entry")
    }
    fn entry_by_key<'a>(&'a self, _: Uuid, _: &'a str) -> Reply<'a, Option<EntryRow>> {
        self.nothing("entry_by_key")
    }
    fn recent_entries(&self, _: Uuid, _: u32) -> Reply<'_, Vec<EntryRow>> {
        self.nothing("recent_entries")
    }
    fn sweep_entries(&self, _: Duration) -> Reply<'_, u64> {
        self.nothing("sweep_entries")
    }

    fn put_lease<'a>(&'a self, _: &'a LeaseRow) -> Reply<'a, ()> {
        self.nothing("put_lease")
    }
    fn leases(&self) -> Reply<'_, Vec<LeaseRow>> {
        self.nothing("leases")
    }
    fn delete_lease<'a>(&'a self, _: &'a str) -> Reply<'a, bool> {
        self.nothing("delete_lease")
    }
    fn put_cleanup<'a>(&'a self, _: &'a CleanupRow) -> Reply<'a, ()> {
        self.nothing("put_cleanup")
    }
    fn cleanups(&self) -> Reply<'_, Vec<CleanupRow>> {
        self.nothing("cleanups")
    }
    fn delete_cleanup<'a>(&'a self, _: &'a str) -> Reply<'a, bool> {
        self.nothing("delete_cleanup")
    }

    fn spend_nonce<'a>(&'a self, _: &'a str, _: &'a str, _: Duration) -> Reply<'a, bool> {
        self.nothing("spend_nonce")
    }
    fn sweep_nonces(&self) -> Reply<'_, u64> {
        self.nothing("sweep_nonces")
    }
    fn put_audit_head<'a>(&'a self, _: &'a AuditHeadRow) -> Reply<'a, bool> {
        self.nothing("put_audit_head")
    }
    fn audit_heads(&self, _: Uuid, _: u32) -> Reply<'_, Vec<AuditHeadRow>> {
        self.nothing("audit_heads")
    }
}
