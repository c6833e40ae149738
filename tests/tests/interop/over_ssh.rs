//! A few requests of the list with the sandbox behind a real SSH server: `queue_v1`, the one transport that the peer
//! has there. The same baseline and the same table of differences as in `list.rs`.

use paperclip_bridge_tests::peer::{Release, Transport, installed};
use paperclip_bridge_tests::{can_run, sshd};

use crate::case::{self, Case};
use crate::compare::{differences, judge, wanted};
use crate::list::{all, unlike_what_is_known};
use crate::pair::{Pair, Whose};

use Whose::{Ours, Theirs};

/// One of each kind; the peer needs more than a second for each.
const REQUESTS: [&str; 10] = [
    "get",
    "query-encoded",
    "post-utf8",
    "status-204",
    "status-404",
    "etag",
    "answer-64k",
    "multipart",
    "denied-post",
    "token-wrong",
];

/// The peer's own pair first.
const PAIRS: [Pair; 4] = [
    over_ssh(Theirs, Theirs),
    over_ssh(Theirs, Ours),
    over_ssh(Ours, Theirs),
    over_ssh(Ours, Ours),
];

const fn over_ssh(host: Whose, gateway: Whose) -> Pair {
    Pair::new(host, gateway, Transport::Queue, Release::R916).over_ssh()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_an_ssh_server_the_queue_differs_from_the_peers_only_as_it_does_elsewhere() {
    if !can_run(sshd::here().and_then(|()| installed().map(drop))) {
        return;
    }
    let cases: Vec<Case> = case::all()
        .into_iter()
        .filter(|case| REQUESTS.contains(&case.id.as_str()))
        .collect();
    assert_eq!(
        cases.len(),
        REQUESTS.len(),
        "requests.toml lacks one of the names"
    );
    let rows = wanted();

    let runs = all(&PAIRS, &cases).await;

    let mut report = unlike_what_is_known(&runs[..1], &cases);
    let (_, theirs) = &runs[0];
    for (pair, observed) in &runs[1..] {
        let (unwanted, _) = judge(&rows, *pair, &differences(theirs, observed));
        report.extend(
            unwanted
                .iter()
                .map(|difference| format!("{}: {difference}", pair.name())),
        );
    }
    assert!(report.is_empty(), "{}", report.join("\n"));
}
