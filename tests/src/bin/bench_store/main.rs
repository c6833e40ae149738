//! `bench-store`: what an entry of the ledger costs before a callback may be dispatched.
//!
//! Here: inserts one after another and by 16 at a time, with and without the outcome, on one thread as in the daemon,
//! on SQLite at both durabilities and on a PostgreSQL cluster of its own. `insert` writes entries until it is done or
//! killed and prints each that was confirmed; a test kills it. Not here: callbacks.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bridge::secrets::Secret;
use bridge::store::{
    self, Claim, Durability, EntryOutcome, Hold, NewEntry, SessionRow, Store, StoreSettings, StoreUrl,
};
use clap::{Parser, Subcommand};
use paperclip_bridge_tests::postgres::{self, Cluster};
use paperclip_bridge_tests::processes::cpu_time;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(3_600);

/// Measures the store's ledger.
#[derive(Debug, Parser)]
#[command(name = "bench-store")]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Where the SQLite files are made, to choose the disk [default: the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write entries into the store of FOLDER and print each that was confirmed
    Insert {
        /// So many
        #[arg(long)]
        count: u32,
        /// The state folder
        folder: PathBuf,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let options = Options::parse();
    match options.command {
        Some(Command::Insert { count, folder }) => insert(count, folder).await,
        None => measure(options).await,
    }
    ExitCode::SUCCESS
}

async fn insert(count: u32, folder: PathBuf) {
    let store = open(StoreUrl::Sqlite, folder, Durability::Write).await;
    let claim = owned(&store).await;
    for _ in 0..count {
        let entry = entry();
        assert!(
            store
                .dispatch(&claim, &entry)
                .await
                .expect("the store takes an entry")
        );
        let mut stdout = std::io::stdout().lock();
        let said = writeln!(stdout, "{}", entry.request_id).and_then(|()| stdout.flush());
        said.expect("standard output takes a line");
    }
}

async fn measure(options: Options) {
    let length = Duration::from_secs_f64(options.seconds);
    println!("store               | what            | at once |  a second |  p50 us |  p99 us | CPU us each");
    for (name, durability) in [
        ("sqlite write", Durability::Write),
        ("sqlite fsync", Durability::Fsync),
    ] {
        let folder = match &options.folder {
            Some(folder) => tempfile::tempdir_in(folder),
            None => tempfile::tempdir(),
        };
        let folder = folder.expect("a temporary folder can be made");
        let store = open(StoreUrl::Sqlite, folder.path().to_owned(), durability).await;
        rows(name, &store, length).await;
    }
    if let Err(missing) = postgres::here() {
        println!("postgres            | not measured: {missing}");
        return;
    }
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let url = StoreUrl::Postgres(Secret::new(cluster.database()));
    let store = open(url, folder.path().to_owned(), Durability::Write).await;
    rows("postgres (own CPU)", &store, length).await;
}

async fn rows(name: &str, store: &Arc<dyn Store>, length: Duration) {
    for at_once in [1, 16] {
        for settled in [false, true] {
            let mut callers = tokio::task::JoinSet::new();
            let (before, started) = (cpu_time(std::process::id()), Instant::now());
            for _ in 0..at_once {
                callers.spawn(call(
                    Arc::clone(store),
                    owned(store).await,
                    settled,
                    started + length,
                ));
            }
            let mut times: Vec<Duration> = callers.join_all().await.into_iter().flatten().collect();
            let (took, cost) = (started.elapsed(), cpu_time(std::process::id()) - before);
            times.sort_unstable();
            let count = times.len();
            let at = |share: f64| times[((count - 1) as f64 * share) as usize].as_micros();
            println!(
                "{name:19} | {:15} | {at_once:7} | {:9.0} | {:7} | {:7} | {:11.1}",
                if settled { "insert, outcome" } else { "insert" },
                count as f64 / took.as_secs_f64(),
                at(0.5),
                at(0.99),
                cost.as_secs_f64() * 1e6 / count as f64,
            );
        }
    }
}

/// How long each took, until the time is over.
async fn call(store: Arc<dyn Store>, claim: Claim, settled: bool, until: Instant) -> Vec<Duration> {
    let answered = EntryOutcome::Answered { status: 201 };
    let mut times = Vec::new();
    while Instant::now() < until {
        let (entry, started) = (entry(), Instant::now());
        assert!(
            store
                .dispatch(&claim, &entry)
                .await
                .expect("the store takes an entry")
        );
        if settled {
            let settled = store.settle(&claim, entry.request_id, &answered).await;
            assert!(settled.expect("the store takes an outcome"));
        }
        times.push(started.elapsed());
    }
    times
}

async fn open(url: StoreUrl, folder: PathBuf, durability: Durability) -> Arc<dyn Store> {
    let settings = StoreSettings {
        durability,
        ..StoreSettings::new(url, folder)
    };
    store::open(settings).await.expect("the store opens")
}

async fn owned(store: &Arc<dyn Store>) -> Claim {
    let session = SessionRow {
        id: Uuid::now_v7(),
        state: "ready".to_owned(),
        reason: None,
        target: "local".to_owned(),
        request: serde_json::json!({}),
        anywhere: true,
        tunnel: None,
        port: None,
        url: None,
        unix_path: None,
        token_sha256: [0; 32],
        run_id: "run".to_owned(),
        agent_id: None,
        company_id: None,
        issue_id: None,
        environment_id: None,
        upstream: "default".to_owned(),
        created_at: std::time::SystemTime::now(),
        ready_at: None,
        heartbeat_at: None,
        expires_at: None,
        ended_at: None,
        revoked: false,
        hold: Hold::default(),
    };
    let created = store.create(&session, store.daemon(), LEASE).await;
    created.expect("the store takes a session")
}

fn entry() -> NewEntry {
    NewEntry {
        request_id: Uuid::now_v7(),
        idempotency_key: Some(Uuid::now_v7().to_string()),
        method: "POST".to_owned(),
        route: "/api/issues/{id}/comments".to_owned(),
        path: "/api/issues/0198b2c4/comments".to_owned(),
    }
}
