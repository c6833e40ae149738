//! A sandbox of a real provider's kind: the provider played on loopback, and the daemon's command lines against it.
//!
//! Here: [`Cloud`], what differs between the providers, and [`Clouded`], one account with one daemon's state folder. Not
//! here: the fakes themselves (the package `fakes`), the provider that was made for tests ([`crate::leased`]).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fakes::FakeE2b;
use fakes::daytona::{self, Daemon, Daytona, Fault, Settings};
use fakes::e2b;
use tempfile::TempDir;

use crate::binary::{Bridge, BridgeCommand, Finished};
use crate::world::{CREDENTIAL, CREDENTIAL_VARIABLE, RUN_ID};
use crate::{Upstream, processes};

/// The variable of the daemon that holds the provider's key.
pub const KEY_VARIABLE: &str = "TEST_CLOUD_KEY";

/// How the tags of E2B's byte streams begin.
const DUPLEX_TAG: &str = "pcb-d-";
/// More calls than any test makes.
const ALWAYS: usize = 10_000;

/// A provider on loopback.
#[derive(Debug)]
pub enum Cloud {
    /// E2B.
    E2b(FakeE2b),
    /// Daytona, with either of its daemons inside sandboxes.
    Daytona(Daytona),
}

impl Cloud {
    /// E2B without sandboxes.
    pub async fn e2b() -> Self {
        Self::E2b(FakeE2b::start().await)
    }

    /// Daytona without sandboxes.
    pub async fn daytona() -> Self {
        Self::Daytona(Daytona::start().await)
    }

    /// The same with the daemon that older sandboxes have.
    pub async fn old_daytona() -> Self {
        let settings = Settings {
            daemon: Daemon::Old,
            ..Settings::default()
        };
        Self::Daytona(Daytona::with(settings).await)
    }

    /// The provider's key in targets.
    pub fn name(&self) -> &'static str {
        match self {
            Self::E2b(_) => "e2b",
            Self::Daytona(_) => "daytona",
        }
    }

    /// The account's API key.
    pub fn key(&self) -> &'static str {
        match self {
            Self::E2b(_) => e2b::API_KEY,
            Self::Daytona(_) => daytona::API_KEY,
        }
    }

    /// What an operator configures a sandbox with, as `NAME=VALUE`.
    pub fn fields(&self) -> Vec<String> {
        let mut fields = match self {
            Self::E2b(fake) => vec![
                format!("apiUrl={}", fake.url()),
                format!("sandboxUrl={}", fake.url()),
            ],
            Self::Daytona(fake) => vec![format!("apiUrl={}", fake.api_url())],
        };
        fields.push(format!("apiKey=env:{KEY_VARIABLE}"));
        fields
    }

    /// Ids of the sandboxes that are there, those at rest too.
    pub fn sandboxes(&self) -> Vec<String> {
        self.states().into_iter().map(|(id, _)| id).collect()
    }

    /// The same, with what the provider says of each.
    pub fn states(&self) -> Vec<(String, String)> {
        match self {
            Self::E2b(fake) => {
                let ids = fake.sandboxes().into_iter();
                let state = |id: &str| fake.detail(id)["state"].as_str().unwrap_or_default().to_owned();
                ids.map(|id| (id.clone(), state(&id))).collect()
            }
            Self::Daytona(fake) => fake.sandboxes(),
        }
    }

    /// Whether anybody asked for a sandbox's end.
    pub fn ended_any(&self) -> bool {
        match self {
            Self::E2b(fake) => fake
                .calls()
                .iter()
                .any(|call| call.method == "DELETE" && call.path.starts_with("/sandboxes/")),
            Self::Daytona(fake) => fake
                .calls()
                .iter()
                .any(|call| call.line.starts_with("DELETE /api/sandbox/")),
        }
    }

    /// From now on nothing is given a byte stream.
    pub fn take_duplex_away(&self) {
        match self {
            Self::E2b(fake) => fake.switches().refuse_tagged(DUPLEX_TAG),
            Self::Daytona(fake) => fake.fail("/process/pty", Fault::Status(403), ALWAYS),
        }
    }

    /// What [`Self::take_duplex_away`] ordered is over.
    pub fn give_duplex_back(&self) {
        match self {
            Self::E2b(fake) => fake.switches().refuse_no_tag(),
            Self::Daytona(fake) => fake.fail_no_more(),
        }
    }

    /// No call is taken, until [`Self::is_there_again`].
    pub fn is_away(&self) {
        match self {
            Self::E2b(fake) => (0..ALWAYS).for_each(|_| fake.switches().fail_next("/", 503)),
            Self::Daytona(fake) => fake.fail("/", Fault::Status(503), ALWAYS),
        }
    }

    /// Calls are taken again.
    pub fn is_there_again(&self) {
        match self {
            Self::E2b(fake) => fake.switches().fail_no_more(),
            Self::Daytona(fake) => fake.fail_no_more(),
        }
    }

    /// How many byte streams were asked for so far.
    pub fn duplexes(&self) -> usize {
        match self {
            Self::E2b(fake) => {
                let starts = fake.calls_to("/Start").into_iter();
                let tagged = |call: &e2b::Call| {
                    call.message()["tag"]
                        .as_str()
                        .is_some_and(|tag| tag.starts_with(DUPLEX_TAG))
                };
                starts.filter(tagged).count()
            }
            Self::Daytona(fake) => fake
                .calls()
                .iter()
                .filter(|call| call.line.starts_with("POST ") && call.line.ends_with("/process/pty"))
                .count(),
        }
    }

    /// Every byte stream of the moment breaks.
    pub fn cut_duplexes(&self) {
        match self {
            Self::E2b(fake) => {
                for id in fake.sandboxes() {
                    fake.drop_streams(&id);
                }
            }
            Self::Daytona(fake) => fake.drop_sockets(),
        }
    }

    /// The next sandbox is made, but nobody hears of it, and who asks for it by its own name hears nothing either.
    pub fn lose_the_next_sandbox(&self) {
        match self {
            Self::E2b(fake) => {
                fake.switches().lose_answer("POST /v2/sandboxes");
                for _ in 0..3 {
                    fake.switches().fail_next("GET /v2/sandboxes", 500);
                }
            }
            Self::Daytona(fake) => {
                fake.fail("POST /api/sandbox", Fault::NoAnswer, 1);
                fake.fail("GET /api/sandbox/paperclip-create-", Fault::Status(500), ALWAYS);
            }
        }
    }

    /// All that [`Self::lose_the_next_sandbox`] ordered is over.
    pub fn lose_no_more(&self) {
        match self {
            Self::E2b(fake) => fake.switches().fail_no_more(),
            // Only the name of the sandbox that is lost is not found.
            Self::Daytona(_) => {}
        }
    }

    /// A sandbox goes, with everything in it.
    pub fn lose(&self, id: &str) {
        match self {
            Self::E2b(fake) => fake.kill_sandbox(id),
            Self::Daytona(fake) => fake.lose(id),
        }
    }

    /// Processes of a sandbox.
    pub fn processes(&self, id: &str) -> Vec<u32> {
        let mark = match self {
            Self::E2b(_) => format!("E2B_SANDBOX_ID={id}"),
            Self::Daytona(_) => format!("DAYTONA_SANDBOX_ID={id}"),
        };
        let marked = |pid: u32| {
            let environment = processes::environment(pid);
            environment
                .split(|byte| *byte == 0)
                .any(|entry| entry == mark.as_bytes())
        };
        let all = processes::all().into_iter().map(|one| one.pid);
        all.filter(|pid| marked(*pid)).collect()
    }

    /// Every call so far as text: request line and body, and those header fields that may be shown.
    pub fn told(&self) -> Vec<String> {
        match self {
            Self::E2b(fake) => {
                let told = |call: e2b::Call| {
                    let body = String::from_utf8_lossy(&call.body).into_owned();
                    format!("{} {}?{} {body}", call.method, call.path, call.query)
                };
                fake.calls().into_iter().map(told).collect()
            }
            Self::Daytona(fake) => {
                let told = |call: daytona::Call| format!("{} {}", call.line, call.body);
                fake.calls().into_iter().map(told).collect()
            }
        }
    }

    /// Names of the header fields that ever carried the key.
    pub fn headers_with_the_key(&self) -> BTreeSet<String> {
        match self {
            Self::E2b(fake) => {
                let fields = fake.calls().into_iter().flat_map(|call| call.headers.clone());
                // `HeaderMap` names a field with several values once.
                fields
                    .filter(|(_, value)| value.to_str().is_ok_and(|value| value.contains(e2b::API_KEY)))
                    .map(|(name, _)| name.map(|name| name.as_str().to_owned()).unwrap_or_default())
                    .collect()
            }
            Self::Daytona(fake) => {
                let fields = fake.calls().into_iter().flat_map(|call| call.headers);
                fields
                    .filter(|field| field.contains(daytona::API_KEY))
                    .filter_map(|field| Some(field.split_once(':')?.0.to_owned()))
                    .collect()
            }
        }
    }
}

/// One account at a provider and one daemon's state folder.
#[derive(Debug)]
pub struct Clouded {
    /// The API.
    pub upstream: Upstream,
    /// The provider.
    pub cloud: Cloud,
    folder: TempDir,
}

impl Clouded {
    /// Nothing acquired yet.
    ///
    /// # Panics
    ///
    /// Where no temporary folder can be made.
    pub async fn at(cloud: Cloud) -> Self {
        Self {
            upstream: Upstream::start().await,
            cloud,
            folder: tempfile::tempdir().expect("a temporary folder can be made"),
        }
    }

    /// The daemon's folder.
    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// `run` or `open` on a sandbox of this provider; an empty `id` is a new one.
    pub fn command(&self, subcommand: &str, id: &str) -> BridgeCommand {
        let target = format!("{}:{id}", self.cloud.name());
        self.with_state([subcommand.to_owned(), target])
            .args(["--upstream", &self.upstream.url(), "--run-id", RUN_ID])
            .args(["--credential".to_owned(), format!("env:{CREDENTIAL_VARIABLE}")])
            .args(
                self.cloud
                    .fields()
                    .into_iter()
                    .flat_map(|field| ["--provider".to_owned(), field]),
            )
            .env(CREDENTIAL_VARIABLE, CREDENTIAL)
    }

    /// `open --json` on a sandbox of this provider.
    ///
    /// # Errors
    ///
    /// How it ended, where it did not open.
    pub async fn open(&self, id: &str, options: &[&str]) -> Result<Bridge, Finished> {
        self.command("open", id)
            .args(["--json", "--until-stdin-closes"])
            .args(options.iter().copied())
            .open()
            .await
    }

    /// `leases` with this argument.
    pub async fn leases(&self, argument: &str) -> Finished {
        self.with_state(["leases".to_owned(), argument.to_owned()])
            .args(["--json"])
            .finish()
            .await
    }

    fn with_state<const N: usize>(&self, arguments: [String; N]) -> BridgeCommand {
        BridgeCommand::new(arguments)
            .args(["--state-dir", &self.state().display().to_string()])
            .env(KEY_VARIABLE, self.cloud.key())
    }

    /// Entries of the daemon's book.
    ///
    /// # Panics
    ///
    /// Where the folder cannot be read.
    pub fn entries(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.state().join("leases"));
        entries
            .into_iter()
            .flatten()
            .map(|entry| entry.expect("the folder can be read").path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// All that the daemon has written into its folder, one after the other.
    ///
    /// # Panics
    ///
    /// Where it cannot be read.
    pub fn written(&self) -> String {
        let mut text = String::new();
        let mut folders = vec![self.state()];
        while let Some(folder) = folders.pop() {
            for path in paths(&folder) {
                if path.is_dir() {
                    folders.push(path);
                } else if path.is_file() {
                    let bytes = std::fs::read(&path).expect("our own file can be read");
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
            }
        }
        text
    }
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder can be read");
    entries
        .map(|entry| entry.expect("the folder can be read").path())
        .collect()
}
