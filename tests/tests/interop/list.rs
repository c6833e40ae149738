//! The list through every pair, judged by what the peer's own pair does.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures_util::future::join_all;
use paperclip_bridge_tests::can_run;
use paperclip_bridge_tests::peer::{Installed, Release, Transport, installed};
use tokio::sync::OnceCell;

use crate::case::{self, Case};
use crate::compare::{Wanted, differences, judge, wanted};
use crate::observe::{Observed, observe};
use crate::pair::{Pair, Whose};

use Release::{R707, R916};
use Transport::{Http2, Queue};
use Whose::{Ours, Theirs};

/// The peer's own pairs.
const BASELINES: [Pair; 3] = [
    Pair::new(Theirs, Theirs, Http2, R916),
    Pair::new(Theirs, Theirs, Queue, R916),
    Pair::new(Theirs, Theirs, Queue, R707),
];

/// Pairs with a half of ours.
const JUDGED: [Pair; 8] = [
    Pair::new(Ours, Theirs, Http2, R916),
    Pair::new(Ours, Theirs, Queue, R916),
    Pair::new(Ours, Theirs, Queue, R707),
    Pair::new(Theirs, Ours, Http2, R916),
    Pair::new(Theirs, Ours, Queue, R916),
    Pair::new(Theirs, Ours, Queue, R707),
    Pair::new(Ours, Ours, Http2, R916),
    Pair::new(Ours, Ours, Queue, R916),
];

#[test]
fn the_list_is_long_enough() {
    assert!(case::all().len() >= 80);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peers_own_pairs_do_what_is_known_of_them() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let cases = case::all();
    let runs = baselines(&cases).await;

    let report = unlike_what_is_known(runs, &cases);

    assert!(report.is_empty(), "{}", report.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_half_of_ours_changes_is_what_is_wanted_and_all_that_is_wanted_is_seen() {
    if !can_run(installed().map(drop)) {
        return;
    }
    let cases = case::all();
    let rows = wanted();
    // For work on one half: `PAPERCLIP_BRIDGE_INTEROP_PAIRS` is a part of the names of the pairs to judge.
    let only = std::env::var("PAPERCLIP_BRIDGE_INTEROP_PAIRS").unwrap_or_default();
    let judged: Vec<Pair> = JUDGED
        .into_iter()
        .filter(|pair| pair.name().contains(&only))
        .collect();
    let (baselines, runs) = tokio::join!(baselines(&cases), all(&judged, &cases));

    let mut report = String::new();
    let mut used: BTreeMap<&str, usize> = BTreeMap::new();
    for (pair, observed) in &runs {
        let baseline = baselines.iter().find(|(one, _)| *one == pair.baseline());
        let (_, theirs) = baseline.expect("each pair has its baseline");
        let (unwanted, allowed) = judge(&rows, *pair, &differences(theirs, observed));
        for (row, count) in allowed {
            *used.entry(row).or_default() += count;
        }
        for difference in unwanted {
            writeln!(report, "{}: {difference}", pair.name()).expect("a string takes text");
        }
    }
    if only.is_empty() {
        for row in rows.iter().filter(|row| !used.contains_key(row.id.as_str())) {
            writeln!(report, "differences.toml: {} matches nothing", row.id).expect("a string takes text");
        }
    }
    assert!(report.is_empty(), "{report}");
}

#[test]
fn the_document_lists_the_wanted_differences_with_their_reasons() {
    let document = include_str!("../../../docs/compatibility.md");
    let (_, table) = document
        .split_once("\n## Wanted differences\n")
        .expect("the document has a section for them");
    let listed: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();

    let lines: Vec<String> = wanted().iter().map(Wanted::line).collect();

    assert_eq!(listed, lines);
}

/// What the peer's own pairs do, asked once for all tests of this process.
async fn baselines(cases: &[Case]) -> &'static [(Pair, Observed)] {
    static ASKED: OnceCell<Vec<(Pair, Observed)>> = OnceCell::const_new();
    ASKED.get_or_init(|| all(&BASELINES, cases)).await
}

/// One line for each request whose status, or number of requests at the upstream, is not what `requests.toml` says.
pub(crate) fn unlike_what_is_known(runs: &[(Pair, Observed)], cases: &[Case]) -> Vec<String> {
    let each = runs
        .iter()
        .flat_map(|(pair, observed)| cases.iter().map(move |case| (pair, case, &observed[&case.id])));
    each.filter_map(|(pair, case, facts)| {
        let requests = &facts["upstream.requests"];
        let mut found = facts["client.status"].clone();
        if requests != "1" {
            found += &format!(", {requests}");
        }
        let known = case.peer(pair.transport, pair.release);
        let line = || format!("{}: {}: known {known:?}, found {found:?}", pair.name(), case.id);
        (known != Some(found.as_str())).then(line)
    })
    .collect()
}

/// What each pair does, all of them at the same time: most of it is waiting.
pub(crate) async fn all(pairs: &[Pair], cases: &[Case]) -> Vec<(Pair, Observed)> {
    let installed: &'static Installed = installed().expect("it was asked for before");
    let each = pairs
        .iter()
        .map(|pair| async move { (*pair, observe(*pair, installed, cases).await) });
    join_all(each).await
}
