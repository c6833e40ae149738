//! `bench-relay`: callbacks through a Worker's push relay against the same Worker asking the same API itself.
//!
//! Both ways use the same Worker in its own runtime, the same upstream and the same load, and take turns within one run.
//! The relay's way is longer by the Durable Object, the socket and the daemon with all of its checks; the daemon's side
//! runs in the benchmark itself. Here: options, the turns and the goals. Not here: how load is made
//! (`paperclip_bridge_tests::measure`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use paperclip_bridge_tests::Agent;
use paperclip_bridge_tests::measure::figures::write_goals;
use paperclip_bridge_tests::measure::{Goal, Load, Mode, Sample, median};
use paperclip_bridge_tests::measure::{api, cost, guard};
use paperclip_bridge_tests::relayed::{Relayed, config, provider, scope};
use paperclip_bridge_tests::workerd::{Settings, Workerd, installed};
use paperclip_bridge_tests::world::{CREDENTIAL, RUN_ID};
use serde_json::json;

/// What the test's Worker takes for a wish to ask the API itself.
const DIRECT: &str = "direct";
/// The relay may take that many times as long.
const BOUND: f64 = 3.0;
/// Callers at the same time.
const MANY: usize = 64;

/// Measures the push relay against the Worker asking the API itself, in turn in one run.
#[derive(Debug, Parser)]
#[command(name = "bench-relay")]
struct Options {
    /// Rounds; each figure is the median over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Where the figures go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    // The upstream is started with this one word and needs none of the options.
    if std::env::args().nth(1).as_deref() == Some("upstream") {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        return runtime.block_on(api::serve()).map(|()| ExitCode::SUCCESS);
    }
    guard::guarded(measure(Options::parse()))
}

/// The figures of one way over all rounds, in milliseconds and calls a second.
#[derive(Debug, Default)]
struct Way {
    one: Vec<f64>,
    many: Vec<f64>,
    many_per_second: Vec<f64>,
}

impl Way {
    fn note(&mut self, one: &Sample, many: &Sample) {
        self.one.push(milliseconds(one.percentile(0.5)));
        self.many.push(milliseconds(many.percentile(0.5)));
        self.many_per_second.push(many.per_second());
    }
}

async fn measure(options: Options) -> anyhow::Result<()> {
    cost::inherit_orphans()?;
    installed().map_err(anyhow::Error::msg)?;
    let upstream = api::Api::start().await?;
    let worker = Workerd::start(&settings(upstream.port()));
    let provider = provider(config(&worker, json!({})));
    let lease = provider.acquire(&scope()).await?;
    let relayed = Relayed::open(&provider, &lease, &upstream.url()).await;
    let direct = Agent {
        url: worker.relay_url.clone(),
        token: DIRECT.to_owned(),
    };
    let time = Duration::from_secs_f64(options.seconds);
    let (mut by_relay, mut by_itself) = (Way::default(), Way::default());
    for round in 1..=options.rounds {
        for (agent, way, name) in [
            (&relayed.agent, &mut by_relay, "relay"),
            (&direct, &mut by_itself, "direct"),
        ] {
            writeln!(
                std::io::stderr(),
                "bench-relay: {name}, round {round} of {}",
                options.rounds
            )?;
            // The first calls open connections.
            let warm = Load::small(agent, Mode::KeepAlive, 1).counting(20).run().await;
            warm.with_context(|| format!("the {name} way does not work"))?;
            let one = Load::small(agent, Mode::KeepAlive, 1).lasting(time).run().await?;
            let many = Load::small(agent, Mode::KeepAlive, MANY)
                .lasting(time)
                .run()
                .await?;
            way.note(&one, &many);
        }
    }
    relayed.close().await;
    provider.destroy(&lease).await?;
    let goals = goals(&by_relay, &by_itself);
    let mut text = String::new();
    for (name, way) in [("relay", &by_relay), ("direct", &by_itself)] {
        writeln!(
            text,
            "{name:<8} one at a time p50 {:>8.2} ms   {MANY} at once p50 {:>8.2} ms, {:>7.0} calls a second",
            middle(&way.one),
            middle(&way.many),
            middle(&way.many_per_second)
        )?;
    }
    write_goals(&mut text, &goals)?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    if let Some(file) = &options.json {
        let goals: Vec<_> = goals.iter().map(Goal::json).collect();
        std::fs::write(file, serde_json::to_string_pretty(&json!({ "goals": goals }))?)?;
    }
    Ok(())
}

fn settings(upstream: u16) -> Settings {
    let headers = json!({"authorization": format!("Bearer {CREDENTIAL}"), "x-paperclip-run-id": RUN_ID});
    let variables = BTreeMap::from([
        ("TEST_UPSTREAM".to_owned(), format!("127.0.0.1:{upstream}")),
        ("TEST_UPSTREAM_HEADERS".to_owned(), headers.to_string()),
    ]);
    Settings {
        variables,
        ..Settings::default()
    }
}

fn goals(relay: &Way, direct: &Way) -> Vec<Goal> {
    let goal = |name: &str, ours: &[f64], theirs: &[f64]| {
        let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
        Goal {
            name: name.to_owned(),
            value: median(ratios),
            bound: BOUND,
            sides: [median(ours.iter().copied()), median(theirs.iter().copied())],
            at_least: false,
        }
    };
    vec![
        goal(
            "p50 of a small callback, times the direct way",
            &relay.one,
            &direct.one,
        ),
        goal("the same with 64 at once", &relay.many, &direct.many),
    ]
}

fn middle(values: &[f64]) -> f64 {
    median(values.iter().copied()).unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
