//! Policy on the command line: loading it for a session, and `policy check | explain | test`.
//!
//! Here: which file and pack are taken, and how mistakes and verdicts are shown. Not here: what a file means and how it
//! is decided (`policy`); this is the same code that decides callbacks.

use std::fmt;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use clap::{Args, Subcommand};
use policy::{FileLimits, Mistakes, PackChoice, PolicyFile, Rules};
use serde_json::json;

use crate::cli::exit::{Exit, Failure, write_lines};
use crate::cli::stdio::{as_value, print, print_json};

/// Which policy.
#[derive(Args, Debug)]
pub(crate) struct PolicyOptions {
    /// Policy file: what to allow and to deny beside the pack
    #[arg(long = "policy", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Routes of a Paperclip release to start from, or `none` [default: the file's, else the newest]
    #[arg(long, value_name = "NAME", value_parser = pack)]
    pub(crate) pack: Option<PackChoice>,
}

/// A policy that can be used.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What is allowed.
    pub(crate) rules: Arc<Rules>,
    /// Limits that the file sets.
    pub(crate) limits: FileLimits,
}

impl PolicyOptions {
    /// Reads and compiles the policy.
    ///
    /// # Errors
    ///
    /// Code 3 for a file that cannot be read or has mistakes; each is named at its line.
    pub(crate) fn load(&self) -> Result<Loaded, Failure> {
        let text = self.file.as_deref().map(read_text).transpose()?;
        let file = text
            .as_deref()
            .map(PolicyFile::parse)
            .transpose()
            .map_err(|mistakes| self.refused(&mistakes))?;
        let limits = file.as_ref().map(|file| file.limits()).unwrap_or_default();
        let key = (self.pack, text);
        if let Some(rules) = in_use(&key) {
            return Ok(Loaded { rules, limits });
        }
        let rules = Rules::load(self.pack, file.as_ref()).map_err(|mistakes| self.refused(&mistakes))?;
        let rules = Arc::new(rules);
        keep_while_used(key, &rules);
        Ok(Loaded { rules, limits })
    }

    fn refused(&self, mistakes: &Mistakes) -> Failure {
        refused(self.file.as_deref().unwrap_or(Path::new("the pack")), mistakes)
    }
}

impl fmt::Display for PolicyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.pack) {
            (Some(file), _) => write!(f, "{}", file.display()),
            (None, Some(PackChoice::Pack(pack))) => write!(f, "pack {}", pack.name()),
            (None, Some(PackChoice::Empty)) => f.write_str("no pack and no file: everything is denied"),
            (None, None) => write!(f, "pack {}", policy::Pack::newest().name()),
        }
    }
}

/// What rules are compiled from: the pack, and the text of the file.
type Source = (Option<PackChoice>, Option<String>);

/// Compiled rules that somebody uses: many sessions on one policy share them, some 50 KiB.
static IN_USE: Mutex<Vec<(Source, Weak<Rules>)>> = Mutex::new(Vec::new());

fn in_use(source: &Source) -> Option<Arc<Rules>> {
    let compiled = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, rules) = compiled.iter().find(|(of, _)| of == source)?;
    rules.upgrade()
}

fn keep_while_used(source: Source, rules: &Arc<Rules>) {
    let mut compiled = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    compiled.retain(|(of, rules)| *of != source && rules.strong_count() > 0);
    compiled.push((source, Arc::downgrade(rules)));
}

pub(crate) fn pack(name: &str) -> Result<PackChoice, String> {
    PackChoice::named(name)
        .ok_or_else(|| format!("there is no such pack; one of {}", PackChoice::names().join(", ")))
}

/// The name by which `--pack` takes it.
pub(crate) fn pack_name(pack: PackChoice) -> String {
    match pack {
        PackChoice::Pack(pack) => pack.name().to_owned(),
        PackChoice::Empty => "none".to_owned(),
    }
}

/// Largest policy or case file; a thousand rules need a fraction of it.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    use std::io::Read as _;

    let unreadable =
        |error| Failure::new(Exit::Configuration, format!("cannot read {}", path.display())).because(error);
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    // One byte more than allowed tells a file that is too large from one that just fits.
    file.take(MAX_FILE_BYTES + 1)
        .read_to_string(&mut text)
        .map_err(unreadable)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE_BYTES {
        return Err(Failure::new(
            Exit::Configuration,
            format!("{} is larger than 4 MiB", path.display()),
        ));
    }
    Ok(text)
}

pub(crate) fn refused(path: &Path, mistakes: &Mistakes) -> Failure {
    let file = path.display().to_string();
    Failure::new(Exit::Configuration, "the policy is refused").listing(mistakes.in_file(&file).to_string())
}

/// `policy check | explain | test`.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Check policy files and report every mistake at its line
    Check {
        /// Policy file; may be repeated [default: the newest pack alone]
        #[arg(long = "policy", value_name = "FILE")]
        files: Vec<PathBuf>,
        /// Routes of a Paperclip release to check the files with, or `none` [default: the file's, else the newest]
        #[arg(long, value_name = "NAME", value_parser = pack)]
        pack: Option<PackChoice>,
        /// A JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Say what a policy makes of one call, and why; exit code 5 when it is denied
    Explain {
        /// Method of the call, such as GET
        method: String,
        /// Path of the call, as the agent would send it
        path: String,
        #[command(flatten)]
        policy: PolicyOptions,
        /// A JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run a file of calls and expected verdicts; exit code 1 when one comes out otherwise
    Test {
        /// Case file
        #[arg(value_name = "FILE")]
        cases: PathBuf,
        #[command(flatten)]
        policy: PolicyOptions,
        /// A JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// Carries out a `policy` command.
///
/// # Errors
///
/// Code 3 for files that cannot be used.
pub(crate) fn run(command: PolicyCommand) -> Result<Exit, Failure> {
    match command {
        PolicyCommand::Check { files, pack, json } => check(&files, pack, json),
        PolicyCommand::Explain {
            method,
            path,
            policy,
            json,
        } => explain(&method, &path, &policy, json),
        PolicyCommand::Test { cases, policy, json } => test(&cases, &policy, json),
    }
}

fn check(files: &[PathBuf], pack: Option<PackChoice>, json: bool) -> Result<Exit, Failure> {
    let mut ok = true;
    let mut text = String::new();
    let mut entries = Vec::new();
    let options = if files.is_empty() {
        vec![PolicyOptions { file: None, pack }]
    } else {
        files
            .iter()
            .map(|file| PolicyOptions {
                file: Some(file.clone()),
                pack,
            })
            .collect()
    };
    for options in &options {
        let checked = check_one(options);
        ok &= checked.ok;
        // A `String` takes every write.
        let _ = writeln!(text, "{}", checked.text);
        entries.push(checked.json);
    }
    if json {
        print_json(&json!({ "ok": ok, "files": entries }))?
    } else {
        print(&visible(&text).to_string())?
    }
    Ok(if ok { Exit::Ok } else { Exit::Configuration })
}

/// What is known of one policy.
struct Checked {
    ok: bool,
    json: serde_json::Value,
    text: String,
}

fn check_one(options: &PolicyOptions) -> Checked {
    let name = options.to_string();
    let file = match options.file.as_deref().map(read_text).transpose() {
        Ok(text) => text.map(|text| PolicyFile::parse(&text)).transpose(),
        Err(failure) => {
            let text = failure.to_string();
            return Checked {
                ok: false,
                json: json!({ "file": name, "ok": false, "error": text }),
                text,
            };
        }
    };
    match file.and_then(|file| Rules::load(options.pack, file.as_ref())) {
        Ok(rules) => Checked {
            ok: true,
            json: json!({ "file": name, "ok": true, "rules": rules.len() }),
            text: format!("{name}: ok, {} rules", rules.len()),
        },
        Err(mistakes) => {
            let list: Vec<_> = mistakes
                .iter()
                .map(|mistake| json!({ "line": mistake.line, "column": mistake.column, "message": mistake.message }))
                .collect();
            Checked {
                ok: false,
                json: json!({ "file": name, "ok": false, "mistakes": list }),
                text: mistakes.in_file(&name).to_string(),
            }
        }
    }
}

fn explain(method: &str, path: &str, policy: &PolicyOptions, json: bool) -> Result<Exit, Failure> {
    let rules = policy.load()?.rules;
    let now_unix = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
    let explanation = policy::explain::explain(&rules, method, path.as_bytes(), now_unix);
    if json {
        print_json(&as_value(&explanation)?)?
    } else {
        print(&visible(&explanation.to_string()).to_string())?
    }
    Ok(if explanation.is_allowed() {
        Exit::Ok
    } else {
        Exit::Denied
    })
}

fn test(path: &Path, policy: &PolicyOptions, json: bool) -> Result<Exit, Failure> {
    let rules = policy.load()?.rules;
    let results = policy::cases::run_with(&read_text(path)?, Some(&rules)).map_err(|mistakes| {
        Failure::new(Exit::Configuration, "the cases are refused")
            .listing(mistakes.in_file(&path.display().to_string()).to_string())
    })?;
    let failed = results.iter().filter(|result| !result.passed).count();
    if json {
        print_json(
            &json!({ "ok": failed == 0, "passed": results.len() - failed, "failed": failed, "cases": as_value(&results)? }),
        )?;
    } else {
        let mut text = String::new();
        for result in &results {
            // A `String` takes every write.
            let _ = writeln!(text, "{}", visible(&result.to_string()));
        }
        let _ = writeln!(
            text,
            "{} of {} cases as expected",
            results.len() - failed,
            results.len()
        );
        print(&text)?;
    }
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}

/// Text that came from a file or the command line, fit for a terminal.
fn visible(text: &str) -> impl fmt::Display {
    struct Visible(String);
    impl fmt::Display for Visible {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_lines(f, &self.0)
        }
    }
    Visible(text.to_owned())
}
