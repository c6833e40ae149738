//! Differences between two pairs, and the table of those that are wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use paperclip_bridge_tests::peer::{Release, Transport};
use serde::Deserialize;

use crate::observe::{Facts, Observed};
use crate::pair::{Pair, Whose};

/// One fact that is not as in the peer's own pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) request: String,
    pub(crate) fact: String,
    /// In the peer's own pair; `None` where it is not there.
    pub(crate) theirs: Option<String>,
    /// In the pair that is judged.
    pub(crate) ours: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            request,
            fact,
            theirs,
            ours,
        } = self;
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        write!(
            f,
            "{request}: {fact}: theirs {:?}, ours {:?}",
            word(theirs),
            word(ours)
        )
    }
}

/// Everything in which `ours` differs from `theirs`.
pub(crate) fn differences(theirs: &Observed, ours: &Observed) -> Vec<Difference> {
    let nothing = Facts::new();
    let requests: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    let mut found = vec![];
    for request in requests {
        let left = theirs.get(request).unwrap_or(&nothing);
        let right = ours.get(request).unwrap_or(&nothing);
        let facts: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        for fact in facts {
            if left.get(fact) != right.get(fact) {
                found.push(Difference {
                    request: request.clone(),
                    fact: fact.clone(),
                    theirs: left.get(fact).cloned(),
                    ours: right.get(fact).cloned(),
                });
            }
        }
    }
    found
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    difference: Vec<Wanted>,
}

/// One row of `differences.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    pub(crate) id: String,
    pub(crate) reason: String,
    /// Whose host and gateway must be ours: `host`, `gateway`, `either`, `both`.
    ours: Role,
    /// Only in this transport.
    transport: Option<String>,
    /// Only beside this release.
    release: Option<String>,
    /// Ids of requests; a `*` at the end stands for anything.
    requests: Vec<String>,
    /// Names of facts; likewise.
    facts: Vec<String>,
    /// The value in the peer's pair, where the row holds only for this one.
    from: Option<Vec<String>>,
    /// Our value, where the row holds only for this one.
    to: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    Host,
    Gateway,
    Either,
    Both,
}

/// Every row.
pub(crate) fn wanted() -> Vec<Wanted> {
    let file: File =
        toml::from_str(include_str!("differences.toml")).expect("differences.toml is well-formed");
    let ids: BTreeSet<&str> = file.difference.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(
        ids.len(),
        file.difference.len(),
        "an id occurs twice in differences.toml"
    );
    file.difference
}

impl Wanted {
    /// Its line in docs/compatibility.md.
    pub(crate) fn line(&self) -> String {
        let half = match self.ours {
            Role::Host => "host",
            Role::Gateway => "gateway",
            Role::Either => "either",
            Role::Both => "both",
        };
        let only = [&self.transport, &self.release].into_iter().flatten();
        let place: Vec<&str> = std::iter::once(half).chain(only.map(String::as_str)).collect();
        format!("| `{}` | {} | {} |", self.id, place.join(", "), self.reason)
    }

    fn is_of(&self, pair: Pair) -> bool {
        let (host, gateway) = (pair.host == Whose::Ours, pair.gateway == Whose::Ours);
        let role = match self.ours {
            Role::Host => host,
            Role::Gateway => gateway,
            Role::Either => host || gateway,
            Role::Both => host && gateway,
        };
        role && self
            .transport
            .as_deref()
            .is_none_or(|name| name == pair.transport.name())
            && self
                .release
                .as_deref()
                .is_none_or(|version| version == pair.release.version())
    }

    pub(crate) fn allows(&self, pair: Pair, difference: &Difference) -> bool {
        let value = |wanted: &Option<Vec<String>>, found: &Option<String>| {
            let found = found.as_deref().unwrap_or("-");
            wanted.as_ref().is_none_or(|list| fits(list, found))
        };
        self.is_of(pair)
            && fits(&self.requests, &difference.request)
            && fits(&self.facts, &difference.fact)
            && value(&self.from, &difference.theirs)
            && value(&self.to, &difference.ours)
    }
}

fn fits(patterns: &[String], text: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => text.starts_with(start),
        None => pattern == text,
    })
}

/// What of the differences no row allows, and which rows allowed something.
pub(crate) fn judge<'a>(
    rows: &'a [Wanted],
    pair: Pair,
    found: &[Difference],
) -> (Vec<Difference>, BTreeMap<&'a str, usize>) {
    let mut unwanted = vec![];
    let mut used = BTreeMap::new();
    for difference in found {
        let fitting: Vec<&Wanted> = rows.iter().filter(|row| row.allows(pair, difference)).collect();
        if fitting.is_empty() {
            unwanted.push(difference.clone());
        }
        for row in fitting {
            *used.entry(row.id.as_str()).or_default() += 1;
        }
    }
    (unwanted, used)
}

#[test]
fn a_difference_is_found_and_judged_by_its_row_only() {
    let facts = |status: &str| Facts::from([("client.status".to_owned(), status.to_owned())]);
    let theirs = Observed::from([("a".to_owned(), facts("502")), ("b".to_owned(), facts("502"))]);
    let ours = Observed::from([("a".to_owned(), facts("413")), ("b".to_owned(), facts("200"))]);
    let row = Wanted {
        id: "x".to_owned(),
        reason: String::new(),
        ours: Role::Host,
        transport: None,
        release: None,
        requests: vec!["*".to_owned()],
        facts: vec!["client.status".to_owned()],
        from: Some(vec!["502".to_owned()]),
        to: Some(vec!["413".to_owned()]),
    };
    let pair = Pair::new(Whose::Ours, Whose::Theirs, Transport::Queue, Release::R916);

    let found = differences(&theirs, &ours);
    let rows = [row];
    let (unwanted, used) = judge(&rows, pair, &found);
    let (elsewhere, unused) = judge(&rows, pair.baseline(), &found);

    assert_eq!(found.len(), 2);
    assert_eq!(
        unwanted
            .iter()
            .map(|one| one.request.as_str())
            .collect::<Vec<_>>(),
        ["b"]
    );
    assert_eq!(used, BTreeMap::from([("x", 1)]));
    assert_eq!((elsewhere.len(), unused.len()), (2, 0));
}
