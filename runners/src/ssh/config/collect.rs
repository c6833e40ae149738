//! The values that apply to one host: the first one read wins.
//!
//! Here: the walk through files, blocks and includes, and what each keyword takes. Not here: defaults and expansion
//! (the front page does that at the end).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::ConfigFiles;
use super::jump::{self, JumpHost};
use super::lines::{self, Line, Source, Value};
use super::matching::{self, Subject};
use super::{ConfigError, Resolver, expand};

/// Deepest chain of includes, as in OpenSSH.
const MAX_INCLUDE_DEPTH: usize = 16;
/// Most files read for one host: includes fan out.
const MAX_FILES: usize = 1024;
/// Most values of a list keyword, as in OpenSSH.
const MAX_IDENTITIES: usize = 100;

/// How to get to the host, whichever keyword came first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// Directly, said so.
    None,
    /// Through these hosts.
    Jump(Vec<JumpHost>),
    /// By a command, which stands there.
    Command(Source),
}

/// What was read so far.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// `HostName`, not expanded.
    pub host_name: Option<Value>,
    /// `User`.
    pub user: Option<String>,
    /// `Port`.
    pub port: Option<u16>,
    /// `IdentityFile`, all of them.
    pub identity_files: Vec<Value>,
    /// `CertificateFile`, all of them.
    pub certificate_files: Vec<Value>,
    /// `IdentitiesOnly`.
    pub identities_only: Option<bool>,
    /// `IdentityAgent`.
    pub agent: Option<Value>,
    /// `HostKeyAlias`.
    pub host_key_alias: Option<String>,
    /// `ProxyJump` or `ProxyCommand`.
    pub proxy: Option<Proxy>,
    /// `UserKnownHostsFile`.
    pub user_known_hosts_files: Option<Vec<Value>>,
    /// `GlobalKnownHostsFile`.
    pub global_known_hosts_files: Option<Vec<Value>>,
    /// `StrictHostKeyChecking` was seen.
    pub strict: Option<()>,
    /// `ServerAliveInterval`.
    pub keepalive_interval: Option<Duration>,
    /// `ServerAliveCountMax`.
    pub keepalive_count: Option<u32>,
    /// `ConnectTimeout`; `Some(None)` is `none`.
    pub connect_timeout: Option<Option<Duration>>,
    /// Lines that apply and are not followed.
    pub notes: Vec<String>,
}

/// Reads the files for one host.
#[derive(Debug)]
pub struct Collector<'a> {
    resolver: &'a Resolver,
    files: &'a dyn ConfigFiles,
    alias: &'a str,
    final_host: Option<String>,
    files_read: usize,
    noted: BTreeSet<String>,
    /// The result.
    pub collected: Collected,
    /// A `Match final` asks for a second reading.
    pub wants_final_pass: bool,
}

/// Where relative includes of a file are looked up.
#[derive(Clone, Copy)]
struct Place<'a> {
    base: &'a Path,
    depth: usize,
}

impl<'a> Collector<'a> {
    /// Nothing read yet.
    pub fn new(resolver: &'a Resolver, files: &'a dyn ConfigFiles, alias: &'a str) -> Self {
        Self {
            resolver,
            files,
            alias,
            final_host: None,
            files_read: 0,
            noted: BTreeSet::new(),
            collected: Collected::default(),
            wants_final_pass: false,
        }
    }

    /// From now on `Match final` applies, and `Match host` sees `host`.
    pub fn start_final_pass(&mut self, host: String) {
        self.final_host = Some(host);
        self.files_read = 0;
    }

    /// Reads the user's file, then the system's.
    ///
    /// # Errors
    ///
    /// As [`Resolver::resolve`].
    pub fn read_all(&mut self) -> Result<(), ConfigError> {
        let resolver = self.resolver;
        if let Some(path) = &resolver.user_config {
            self.read_file(
                path,
                &mut true,
                Place {
                    base: &resolver.home.join(".ssh"),
                    depth: 0,
                },
            )?;
        }
        if let Some(path) = &resolver.system_config {
            self.read_file(
                path,
                &mut true,
                Place {
                    base: Path::new("/etc/ssh"),
                    depth: 0,
                },
            )?;
        }
        Ok(())
    }

    fn read_file(&mut self, path: &Path, active: &mut bool, place: Place<'_>) -> Result<(), ConfigError> {
        let name = path.display().to_string();
        let at = Source {
            file: name.as_str().into(),
            line: 1,
        };
        self.files_read += 1;
        if self.files_read > MAX_FILES {
            return Err(ConfigError::new(
                Some(&at),
                format!("more than {MAX_FILES} files are included"),
            ));
        }
        let text = match self.files.read(path) {
            Ok(Some(text)) => text,
            Ok(None) => return Ok(()),
            Err(error) => {
                return Err(ConfigError::new(
                    Some(&at),
                    format!("the file cannot be read: {error}"),
                ));
            }
        };
        let lines = lines::parse(&name, &text)?;
        // In a file included from a block that does not apply, no block of its own can apply.
        let may_apply = *active;
        for line in &lines {
            self.read_line(line, active, may_apply, place)?;
        }
        Ok(())
    }

    fn read_line(
        &mut self,
        line: &Line,
        active: &mut bool,
        may_apply: bool,
        place: Place<'_>,
    ) -> Result<(), ConfigError> {
        match line.lower_keyword().as_str() {
            "host" => {
                if line.args.is_empty() {
                    return Err(missing(line));
                }
                *active = may_apply && matching::host_line_applies(&line.args, self.alias);
                Ok(())
            }
            "match" => {
                *active = may_apply && self.match_applies(line)?;
                Ok(())
            }
            "include" => self.include(line, *active, place),
            keyword => self.take(keyword, line, *active),
        }
    }

    fn match_applies(&mut self, line: &Line) -> Result<bool, ConfigError> {
        let host = match &self.final_host {
            Some(host) => host.clone(),
            None => expand::host_name(self.collected.host_name.as_ref(), self.alias)?,
        };
        let subject = Subject {
            original_host: self.alias,
            host: &host,
            user: self
                .collected
                .user
                .as_deref()
                .unwrap_or(&self.resolver.local_user),
            local_user: &self.resolver.local_user,
            final_pass: self.final_host.is_some(),
        };
        let verdict = matching::match_line_applies(line, &subject)?;
        self.wants_final_pass |= verdict.wants_final_pass;
        Ok(verdict.applies)
    }

    fn include(&mut self, line: &Line, active: bool, place: Place<'_>) -> Result<(), ConfigError> {
        if line.args.is_empty() {
            return Err(missing(line));
        }
        if place.depth >= MAX_INCLUDE_DEPTH {
            return Err(ConfigError::new(
                Some(&line.at),
                format!(
                    "more than {MAX_INCLUDE_DEPTH} includes inside each other: does a file include itself?"
                ),
            ));
        }
        for pattern in &line.args {
            let pattern = match pattern.strip_prefix('~') {
                Some("") => self.resolver.home.clone(),
                Some(rest) => match rest.strip_prefix('/') {
                    Some(rest) => self.resolver.home.join(rest),
                    None => {
                        return Err(ConfigError::new(
                            Some(&line.at),
                            "only `~/` is understood, not `~user`",
                        ));
                    }
                },
                None => place.base.join(pattern),
            };
            let found: Vec<PathBuf> = self.files.expand(&pattern);
            for path in found {
                // A block that begins in the included file ends with it.
                self.read_file(
                    &path,
                    &mut active.clone(),
                    Place {
                        base: place.base,
                        depth: place.depth + 1,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// Takes one ordinary line. Its value is checked even where it does not apply, as OpenSSH does.
    fn take(&mut self, keyword: &str, line: &Line, active: bool) -> Result<(), ConfigError> {
        let collected = &mut self.collected;
        match keyword {
            "hostname" => first(&mut collected.host_name, one_value(line)?, active),
            "user" => first(&mut collected.user, one(line)?.to_owned(), active),
            "port" => first(&mut collected.port, port(line)?, active),
            "identityfile" => append(&mut collected.identity_files, one_value(line)?, line, active)?,
            "certificatefile" => append(&mut collected.certificate_files, one_value(line)?, line, active)?,
            "identitiesonly" => first(&mut collected.identities_only, yes_no(line)?, active),
            "identityagent" => first(&mut collected.agent, one_value(line)?, active),
            "hostkeyalias" => first(&mut collected.host_key_alias, one(line)?.to_owned(), active),
            "proxyjump" => {
                let jumps =
                    jump::parse(one(line)?).map_err(|reason| ConfigError::new(Some(&line.at), reason))?;
                first(
                    &mut collected.proxy,
                    jumps.map_or(Proxy::None, Proxy::Jump),
                    active,
                );
            }
            "proxycommand" => {
                let proxy = match one(line)? {
                    none if none.eq_ignore_ascii_case("none") => Proxy::None,
                    _ => Proxy::Command(line.at.clone()),
                };
                first(&mut collected.proxy, proxy, active);
            }
            "userknownhostsfile" => first(&mut collected.user_known_hosts_files, all(line)?, active),
            "globalknownhostsfile" => first(&mut collected.global_known_hosts_files, all(line)?, active),
            "stricthostkeychecking" => {
                let strict = strict(line)?;
                if active && !strict && collected.strict.is_none() {
                    collected.notes.push(format!(
                        "{}: StrictHostKeyChecking {} is not followed: host keys are always checked",
                        line.at,
                        one(line)?
                    ));
                }
                first(&mut collected.strict, (), active);
            }
            "serveraliveinterval" => {
                first(
                    &mut collected.keepalive_interval,
                    time(line)?.unwrap_or_default(),
                    active,
                );
            }
            "serveralivecountmax" => first(&mut collected.keepalive_count, number(line)?, active),
            "connecttimeout" => first(&mut collected.connect_timeout, time(line)?, active),
            keyword => {
                if active && self.noted.insert(keyword.to_owned()) {
                    collected
                        .notes
                        .push(format!("{}: {} is not used", line.at, line.keyword));
                }
            }
        }
        Ok(())
    }
}

fn first<T>(slot: &mut Option<T>, value: T, active: bool) {
    if active && slot.is_none() {
        *slot = Some(value);
    }
}

fn append(list: &mut Vec<Value>, value: Value, line: &Line, active: bool) -> Result<(), ConfigError> {
    if !active || list.iter().any(|have| have.text == value.text) {
        return Ok(());
    }
    if list.len() >= MAX_IDENTITIES {
        return Err(ConfigError::new(
            Some(&line.at),
            format!("more than {MAX_IDENTITIES} of {}", line.keyword),
        ));
    }
    list.push(value);
    Ok(())
}

fn missing(line: &Line) -> ConfigError {
    ConfigError::new(Some(&line.at), format!("{} has no value", line.keyword))
}

fn one(line: &Line) -> Result<&str, ConfigError> {
    match line.args.as_slice() {
        [] => Err(missing(line)),
        [value] if value.is_empty() => Err(missing(line)),
        [value] => Ok(value),
        [_, extra, ..] => Err(ConfigError::new(
            Some(&line.at),
            format!("{} takes one value, {extra:?} is too much", line.keyword),
        )),
    }
}

fn one_value(line: &Line) -> Result<Value, ConfigError> {
    Ok(Value {
        text: one(line)?.to_owned(),
        at: Some(line.at.clone()),
    })
}

fn all(line: &Line) -> Result<Vec<Value>, ConfigError> {
    if line.args.is_empty() || line.args.iter().any(String::is_empty) {
        return Err(missing(line));
    }
    if line.args.len() > 1 && line.args.iter().any(|value| value.eq_ignore_ascii_case("none")) {
        return Err(ConfigError::new(
            Some(&line.at),
            format!("{} takes `none` alone", line.keyword),
        ));
    }
    Ok(line
        .args
        .iter()
        .map(|text| Value {
            text: text.clone(),
            at: Some(line.at.clone()),
        })
        .collect())
}

fn bad(line: &Line, wanted: &str) -> ConfigError {
    let value = line.args.join(" ");
    ConfigError::new(
        Some(&line.at),
        format!("{} {value:?} is not {wanted}", line.keyword),
    )
}

fn port(line: &Line) -> Result<u16, ConfigError> {
    jump::port(one(line)?).ok_or_else(|| bad(line, "a port (1 to 65535)"))
}

fn number(line: &Line) -> Result<u32, ConfigError> {
    one(line)?
        .parse()
        .ok()
        .filter(|number| *number <= 1_000_000)
        .ok_or_else(|| bad(line, "a number up to 1000000"))
}

fn yes_no(line: &Line) -> Result<bool, ConfigError> {
    match one(line)?.to_ascii_lowercase().as_str() {
        "yes" | "true" => Ok(true),
        "no" | "false" => Ok(false),
        _ => Err(bad(line, "`yes` or `no`")),
    }
}

fn strict(line: &Line) -> Result<bool, ConfigError> {
    match one(line)?.to_ascii_lowercase().as_str() {
        "yes" | "true" | "ask" => Ok(true),
        "no" | "false" | "off" | "accept-new" => Ok(false),
        _ => Err(bad(line, "`yes`, `no`, `ask` or `accept-new`")),
    }
}

/// Seconds, or a sum of parts such as `1m30s` (sshd_config(5), TIME FORMATS); `None` for `none`.
fn time(line: &Line) -> Result<Option<Duration>, ConfigError> {
    let text = one(line)?;
    if text.eq_ignore_ascii_case("none") {
        return Ok(None);
    }
    parse_time(text)
        .map(Some)
        .ok_or_else(|| bad(line, "a time such as `30`, `30s` or `5m`"))
}

fn parse_time(text: &str) -> Option<Duration> {
    let mut seconds = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(rest.len());
        let (digits, tail) = rest.split_at(end);
        let count: u64 = digits.parse().ok()?;
        let mut tail = tail.chars();
        let unit = match tail.next() {
            None | Some('s' | 'S') => 1,
            Some('m' | 'M') => 60,
            Some('h' | 'H') => 3600,
            Some('d' | 'D') => 86_400,
            Some('w' | 'W') => 604_800,
            Some(_) => return None,
        };
        seconds = seconds.checked_add(count.checked_mul(unit)?)?;
        rest = tail.as_str();
    }
    // OpenSSH keeps it in a C int.
    (!text.is_empty() && i32::try_from(seconds).is_ok()).then(|| Duration::from_secs(seconds))
}
