//! Asking every request of the list through one session, and writing down what both ends saw.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use futures_util::StreamExt as _;
use futures_util::stream::{self, FuturesUnordered};
use paperclip_bridge_tests::Upstream;
use paperclip_bridge_tests::peer::Installed;
use paperclip_bridge_tests::raw::{Answer, Broken, Wire};
use paperclip_bridge_tests::upstream::Seen;

use crate::case::Case;
use crate::pair::Pair;

/// What is compared of one request: a name of what was seen, such as `client.status`, and the value.
pub(crate) type Facts = BTreeMap<String, String>;

/// The facts of every request, by its id.
pub(crate) type Observed = BTreeMap<String, Facts>;

/// How many units (a request, or a group of them) are under way at a time.
const AT_A_TIME: usize = 4;

/// Headers that HTTP itself needs on this hop, or that say only when the answer was made.
const OF_THE_HOP: [&str; 5] = [
    "connection",
    "content-length",
    "date",
    "keep-alive",
    "transfer-encoding",
];

/// Opens a session through the pair, asks everything, and ends it.
pub(crate) async fn observe(pair: Pair, installed: &'static Installed, cases: &[Case]) -> Observed {
    let upstream = Upstream::start().await;
    for case in cases {
        let target = case.target();
        let path = target.split(['?', '#']).next().unwrap_or_default();
        upstream.on(&case.method, path, case.script());
    }
    let open = pair.open(installed, &upstream.url()).await;
    let (alone, usual): (Vec<_>, Vec<_>) = units(cases).into_iter().partition(Unit::alone);
    // The peer logs in five times for a callback and serves one at a time: more would only wait for each other.
    let at_a_time = if pair.ssh { 1 } else { AT_A_TIME };
    let mut answers: Vec<(String, Result<Answer, Broken>)> = stream::iter(usual)
        .map(|unit| ask(unit, &open.url, &open.token))
        .buffer_unordered(at_a_time)
        .collect::<Vec<_>>()
        .await
        .concat();
    for unit in alone {
        answers.extend(ask(unit, &open.url, &open.token).await);
    }
    let _stderr = open.close().await;
    let seen = upstream.seen();
    let mut observed = Observed::new();
    for (id, answer) in answers {
        let case = cases
            .iter()
            .find(|case| case.id == id)
            .expect("each answer has its request");
        let mut facts = Facts::new();
        client(&answer, &mut facts);
        let mark = case.mark();
        let arrived: Vec<&Seen> = seen.iter().filter(|one| one.target.contains(&mark)).collect();
        at_the_upstream(&arrived, &mut facts);
        observed.insert(id, facts);
    }
    observed
}

/// Requests that share a connection, and those that are sent at the same time on connections of their own.
#[derive(Clone, Debug)]
enum Unit<'a> {
    OneConnection(Vec<&'a Case>),
    Together(Vec<&'a Case>),
}

impl Unit<'_> {
    fn alone(&self) -> bool {
        let (Self::OneConnection(cases) | Self::Together(cases)) = self;
        cases.iter().any(|case| case.alone())
    }
}

fn units(cases: &[Case]) -> Vec<Unit<'_>> {
    let mut groups: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    let mut together: BTreeMap<&str, Vec<&Case>> = BTreeMap::new();
    let mut units = vec![];
    for case in cases {
        match (&case.group, &case.together) {
            (Some(name), _) => groups.entry(name).or_default().push(case),
            (None, Some(name)) => together.entry(name).or_default().push(case),
            (None, None) => units.push(Unit::OneConnection(vec![case])),
        }
    }
    units.extend(groups.into_values().map(Unit::OneConnection));
    units.extend(together.into_values().map(Unit::Together));
    units
}

async fn ask(unit: Unit<'_>, url: &str, token: &str) -> Vec<(String, Result<Answer, Broken>)> {
    match unit {
        Unit::OneConnection(cases) => one_connection(cases, url, token).await,
        Unit::Together(cases) => {
            let each: FuturesUnordered<_> = cases
                .into_iter()
                .map(|case| one_connection(vec![case], url, token))
                .collect();
            each.collect::<Vec<_>>().await.concat()
        }
    }
}

async fn one_connection(cases: Vec<&Case>, url: &str, token: &str) -> Vec<(String, Result<Answer, Broken>)> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let bytes: Vec<u8> = cases.iter().flat_map(|case| case.bytes(host, token)).collect();
    let methods: Vec<&str> = cases.iter().map(|case| case.method.as_str()).collect();
    let answers = match Wire::connect(url).await {
        Ok(mut wire) => wire.exchange(&bytes, &methods, false).await,
        Err(broken) => vec![Err(broken)],
    };
    // After the first that is not whole there is no further one.
    let rest = std::iter::repeat_with(|| Err(Broken::Closed));
    cases
        .iter()
        .map(|case| case.id.clone())
        .zip(answers.into_iter().chain(rest))
        .collect()
}

fn client(answer: &Result<Answer, Broken>, facts: &mut Facts) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(broken) => {
            let how = match broken {
                Broken::Refused(_) => "refused",
                Broken::Closed => "closed",
                Broken::Cut(_) => "cut",
                Broken::Malformed(_) => "malformed",
                Broken::TimedOut => "timed out",
            };
            facts.insert("client.status".to_owned(), how.to_owned());
            return;
        }
    };
    facts.insert("client.status".to_owned(), answer.status.to_string());
    headers("client", &answer.headers, facts);
    // An error of the bridge is compared key by key, any other body by its bytes.
    let body = answer.json();
    match body.as_object() {
        Some(object) if answer.status >= 400 => {
            for (key, value) in object {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let text = if key == "request_id" {
                    "…".to_owned()
                } else {
                    text
                };
                facts.insert(format!("client.body.{key}"), text);
            }
        }
        Some(_) | None => {
            facts.insert("client.body".to_owned(), shown(&answer.body));
        }
    }
}

fn at_the_upstream(arrived: &[&Seen], facts: &mut Facts) {
    facts.insert("upstream.requests".to_owned(), arrived.len().to_string());
    let Some(first) = arrived.first() else { return };
    facts.insert("upstream.method".to_owned(), first.method.clone());
    facts.insert("upstream.target".to_owned(), first.target.clone());
    facts.insert("upstream.body".to_owned(), shown(&first.body));
    let framing = match (first.header("content-length"), first.header("transfer-encoding")) {
        (_, Some(_)) => "chunked",
        (Some(_), None) => "length",
        (None, None) => "none",
    };
    facts.insert("upstream.framing".to_owned(), framing.to_owned());
    headers("upstream", &first.headers, facts);
}

fn headers(side: &str, headers: &[(String, String)], facts: &mut Facts) {
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if OF_THE_HOP.contains(&name.as_str()) {
            continue;
        }
        // Names that differ from session to session: that it is there is the fact.
        let varies = name == "x-paperclip-bridge-request-id" || (side == "upstream" && name == "host");
        let value = if varies { "…" } else { value };
        facts
            .entry(format!("{side}.header.{name}"))
            .and_modify(|known| *known += &format!(" | {value}"))
            .or_insert_with(|| value.to_owned());
    }
}

/// Short bodies as text, long ones by size and digest.
fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= 200 {
        return bytes.escape_ascii().to_string();
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes, {:016x}", bytes.len(), hasher.finish())
}
