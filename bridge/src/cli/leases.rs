//! `paperclip-bridge leases`: what is held and owed at providers.
//!
//! Here: `ls`, `reap` and `forget`, over the book of one state folder, which sessions may be using at the same time. Not
//! here: the book and what is done with its entries (`leases/`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::cli::exit::{Exit, Failure};
use crate::cli::provider_options::{ProviderOptions, state_folder};
use crate::cli::stdio::{print, print_json};
use crate::leases::{BookError, GaveBack, LeaseBook, LeaseRecord, Line, Reaped, Reaper, Stage, Which};
use crate::secrets::Secrets;

/// What can be done with leases.
#[derive(Debug, Subcommand)]
pub(crate) enum LeasesCommand {
    /// List what is held and owed
    Ls(BookOptions),
    /// Try now to give back everything that no running session holds; ends with 1 while something is still owed
    Reap(Box<ReapArguments>),
    /// Strike an entry off although its provider has not confirmed anything: you have looked there yourself
    Forget(ForgetArguments),
}

/// Which book, and how it is shown.
#[derive(Args, Debug)]
pub(crate) struct BookOptions {
    /// The state folder of the sessions [default: $XDG_STATE_HOME/paperclip-bridge]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// A JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Arguments of `leases reap`.
#[derive(Args, Debug)]
pub(crate) struct ReapArguments {
    /// Only leases of this provider
    #[arg(value_name = "KEY")]
    provider_key: Option<String>,

    #[command(flatten)]
    book: BookOptions,

    #[command(flatten)]
    provider: ProviderOptions,
}

/// Arguments of `leases forget`.
#[derive(Args, Debug)]
pub(crate) struct ForgetArguments {
    /// The entry's name, as `leases ls` shows it
    #[arg(value_name = "ENTRY")]
    entry: String,

    #[command(flatten)]
    book: BookOptions,
}

/// Carries out one of them.
///
/// # Errors
///
/// Code 3 for a folder or an entry that cannot be used; 2 for options that do not fit.
pub(crate) async fn run(app: &App, command: LeasesCommand) -> Result<Exit, Failure> {
    match command {
        LeasesCommand::Ls(options) => list(&options).await,
        LeasesCommand::Reap(arguments) => reap(app, &arguments).await,
        LeasesCommand::Forget(arguments) => forget(&arguments).await,
    }
}

async fn list(options: &BookOptions) -> Result<Exit, Failure> {
    let lines = match options.book()? {
        Some(book) => book.lines().await.map_err(unusable)?,
        None => Vec::new(),
    };
    if options.json {
        print_json(&json!({ "leases": lines.iter().map(line_as_json).collect::<Vec<_>>() }))?;
    } else {
        print(&lines_as_text(&lines))?;
    }
    Ok(Exit::Ok)
}

async fn reap(app: &App, arguments: &ReapArguments) -> Result<Exit, Failure> {
    let reaped = match arguments.book.book()? {
        Some(book) => {
            let lines = book.lines().await.map_err(unusable)?;
            arguments.check(&lines)?;
            let reaper = arguments.reaper(app, book)?;
            let key = arguments.provider_key.as_deref();
            reaper
                .pass(Which::All { provider: key }, &CancellationToken::new())
                .await
                .map_err(unusable)?
        }
        None => Vec::new(),
    };
    if arguments.book.json {
        print_json(&json!({ "leases": reaped.iter().map(reaped_as_json).collect::<Vec<_>>() }))?;
    } else {
        print(&reaped.iter().map(reaped_as_text).collect::<String>())?;
    }
    let owed = reaped
        .iter()
        .any(|one| matches!(one.outcome, GaveBack::Owed { .. }));
    Ok(if owed { Exit::Failed } else { Exit::Ok })
}

async fn forget(arguments: &ForgetArguments) -> Result<Exit, Failure> {
    let forgotten = match arguments.book.book()? {
        Some(book) => book.forget(&arguments.entry).await.map_err(unusable)?,
        None => false,
    };
    if !forgotten {
        return Err(Failure::new(
            Exit::Configuration,
            format!(
                "there is no entry {:?} that no running session holds",
                arguments.entry
            ),
        )
        .hint("`paperclip-bridge leases ls` shows the entries"));
    }
    if arguments.book.json {
        print_json(&json!({ "forgotten": arguments.entry }))?;
    }
    Ok(Exit::Ok)
}

impl BookOptions {
    /// `None` where no lease was ever written down.
    fn book(&self) -> Result<Option<LeaseBook>, Failure> {
        LeaseBook::existing(&state_folder(self.state_dir.as_deref())?).map_err(unusable)
    }
}

impl ReapArguments {
    /// Fields mean something to one provider only.
    fn check(&self, lines: &[Line]) -> Result<(), Failure> {
        let providers: BTreeSet<_> = lines
            .iter()
            .filter_map(|line| line.record.as_ref().ok())
            .map(|record| record.provider.as_str())
            .collect();
        if self.provider.are_given() && self.provider_key.is_none() && providers.len() > 1 {
            return Err(Failure::new(
                Exit::Usage,
                "there are leases of several providers; name the one that --provider and --provider-config are for: leases reap KEY",
            ));
        }
        Ok(())
    }

    fn reaper(&self, app: &App, book: LeaseBook) -> Result<Reaper, Failure> {
        // A mistake in the options is told once, and not for each entry.
        self.provider.config()?;
        let (providers, options) = (app.providers.clone(), self.provider.clone());
        let secrets = Secrets::default();
        Ok(Reaper::new(
            book,
            Box::new(move |record| {
                let mut record = record.clone();
                record.config = options
                    .over(record.config)
                    .map_err(|failure| failure.to_string())?;
                providers.of_record(&record, &secrets)
            }),
        ))
    }
}

fn unusable(error: BookError) -> Failure {
    Failure::new(Exit::Configuration, error.to_string())
}

fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "unknown".to_owned(), |at| format!("{at:.0}"))
}

/// What an operator is told of an entry: its stage, unless the process that held it lives no more.
fn stage(record: &LeaseRecord, in_use: bool) -> &'static str {
    match record.stage {
        Stage::Held if !in_use => "left",
        Stage::Acquiring | Stage::Held | Stage::Owed => record.stage.name(),
    }
}

fn record_as_json(record: &LeaseRecord) -> Value {
    json!({
        "provider": record.provider,
        "id": record.id(),
        "borrowed": !record.made,
        "run_id": record.scope.run_id,
        "environment_id": record.scope.environment_id,
        "issue_id": record.scope.issue_id,
        "since": time(record.since),
        "expires_at": record.lease.as_ref().and_then(|lease| lease.expires_at).map(time),
        "attempts": record.debt.attempts,
        "next_attempt": record.debt.next.map(time),
        "last_error": record.debt.last_error,
    })
}

/// One object with the fields of both.
fn together(mut first: Value, second: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut first, second) {
        all.extend(more);
    }
    first
}

fn line_as_json(line: &Line) -> Value {
    let told = match &line.record {
        Ok(record) => together(
            record_as_json(record),
            json!({ "stage": stage(record, line.in_use) }),
        ),
        Err(why) => json!({ "error": why }),
    };
    together(told, json!({ "entry": line.name, "in_use": line.in_use }))
}

fn lines_as_text(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        // A `String` takes every write.
        let _ = match &line.record {
            Ok(record) => {
                let id = record.id().unwrap_or("(not known)");
                let (stage, run) = (stage(record, line.in_use), &record.scope.run_id);
                let debt = match &record.debt.last_error {
                    Some(error) => format!(", {} attempts, the last one: {error}", record.debt.attempts),
                    None => String::new(),
                };
                writeln!(
                    text,
                    "{stage:<10}{}:{id}  run {run}, since {}{debt}  [{}]",
                    record.provider,
                    time(record.since),
                    line.name
                )
            }
            Err(why) => writeln!(text, "unreadable: {why}  [{}]", line.name),
        };
    }
    text
}

fn reaped_as_json(reaped: &Reaped) -> Value {
    let (name, detail) = reaped.outcome.told();
    together(
        reaped.record.as_ref().map_or_else(|| json!({}), record_as_json),
        json!({ "entry": reaped.name, "outcome": name, "detail": detail }),
    )
}

fn reaped_as_text(reaped: &Reaped) -> String {
    let (name, detail) = reaped.outcome.told();
    let what = reaped.record.as_ref().map_or_else(
        || reaped.name.clone(),
        |record| format!("{}:{}", record.provider, record.id().unwrap_or("(not known)")),
    );
    format!("{name:<10}{what}: {detail}\n")
}
