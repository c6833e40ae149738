//! What a command in a sandbox is given: one set for every kind of target.

use std::collections::BTreeMap;

use tunnel::wire::names::variable;

use crate::session::state::SessionRecord;

/// What of a session its agent is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told<'a> {
    pub(super) url: &'a str,
    /// `None` where only the agent knows it.
    pub(super) token: Option<&'a str>,
    pub(super) run_id: &'a str,
    pub(super) tunnel: &'a str,
    /// The directory of a `queue_v1`.
    pub(super) queue: Option<&'a str>,
}

/// What the agent of a session that is not back yet was told, without its token; `None` where that was not written down.
pub(crate) fn of_record(record: &SessionRecord) -> Option<BTreeMap<String, String>> {
    Some(variables(Told {
        url: record.url.as_deref()?,
        token: None,
        run_id: &record.run_id,
        tunnel: &record.tunnel,
        queue: record.queue_directory.as_deref(),
    }))
}

/// The variables of a session, all of them named `PAPERCLIP_*`. Nothing of the daemon's own environment is among them.
pub(super) fn variables(told: Told<'_>) -> BTreeMap<String, String> {
    [
        ("PAPERCLIP_API_URL", Some(told.url)),
        ("PAPERCLIP_API_KEY", told.token),
        ("PAPERCLIP_RUN_ID", Some(told.run_id)),
        ("PAPERCLIP_API_BRIDGE_MODE", Some(told.tunnel)),
        (variable::QUEUE_DIR, told.queue),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_of_its_session_and_of_nothing_else() {
        let told = Told {
            url: "http://127.0.0.1:1",
            token: Some("pcb_x"),
            run_id: "r",
            tunnel: "queue_v1",
            queue: Some("/q"),
        };

        let names: Vec<_> = variables(told).into_keys().collect();

        assert_eq!(
            names,
            [
                "PAPERCLIP_API_BRIDGE_MODE",
                "PAPERCLIP_API_KEY",
                "PAPERCLIP_API_URL",
                "PAPERCLIP_BRIDGE_QUEUE_DIR",
                "PAPERCLIP_RUN_ID"
            ]
        );
        let without = Told {
            token: None,
            queue: None,
            ..told
        };
        assert_eq!(variables(without).len(), 3);
    }
}
