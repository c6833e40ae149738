//! What must hold beyond a key by itself: between keys, and in texts with a grammar of their own.
//!
//! Here: each such rule once; none connects, resolves or opens anything. Not here: types and bounds (`schema`), whether
//! files and secrets are there (`config check`).

use policy::{Mistake, Pack, PackChoice, PolicyFile, Rules};
use runners::provider::nearest;
use serde_json::Value;

use super::Config;
use super::mistake::ConfigMistake;
use super::model::{ControlAddress, StoreConfig, TargetConfig, TunnelName};
use super::origin::{Origin, Tree};
use crate::app::TargetSpec;
use crate::cli::target;
use crate::upstream::{UpstreamError, UpstreamSettings};

pub(super) fn check(config: &Config, tree: &Tree) -> Vec<ConfigMistake> {
    let mut found = Found {
        tree,
        mistakes: Vec::new(),
    };
    found.upstreams(config);
    found.targets(config);
    found.control(config);
    found.policy(config);
    found.limits(config);
    found.store(&config.store);
    found.mutations(config);
    found.mistakes
}

struct Found<'t> {
    tree: &'t Tree,
    mistakes: Vec<ConfigMistake>,
}

impl Found<'_> {
    fn mistake(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        let key = key.into();
        self.mistakes.push(ConfigMistake {
            origin: self.tree.origins.of(&key),
            key,
            problem: problem.into(),
        });
    }

    fn name(&mut self, key: &str, name: &str) {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let begins = name.starts_with(|first: char| first.is_ascii_alphanumeric());
        if !begins || name.len() > 64 || !name.bytes().all(plain) {
            self.mistake(
                key,
                "has a name that is no plain word: letters, digits, `-` and `_`, at most 64",
            );
        }
    }

    fn upstreams(&mut self, config: &Config) {
        for (name, upstream) in &config.upstreams {
            let key = format!("upstreams.{name}");
            self.name(&key, name);
            match UpstreamSettings::parse(&upstream.url, None) {
                Ok(_) => {}
                Err(UpstreamError::Url(why)) => {
                    self.mistake(format!("{key}.url"), format!("cannot be used: {why}"))
                }
                Err(UpstreamError::CaFile { .. } | UpstreamError::NoRoots) => {
                    self.mistake(format!("{key}.url"), "cannot be used");
                }
            }
            if upstream.deadlines.head > upstream.deadlines.total {
                self.mistake(
                    format!("{key}.deadlines.head"),
                    "must be at most `deadlines.total`",
                );
            }
        }
    }

    fn targets(&mut self, config: &Config) {
        for (name, target) in &config.targets {
            let key = format!("targets.{name}");
            self.name(&key, name);
            // Also one that has a mistake of its own is there.
            let named = self.tree.values.get("upstreams").and_then(Value::as_object);
            let upstreams = || named.into_iter().flatten().map(|(name, _)| name.as_str());
            if let Some(upstream) = &target.upstream
                && !upstreams().any(|name| name == upstream)
            {
                let advice = match nearest(upstream, upstreams()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", upstreams().collect::<Vec<_>>().join(", ")),
                };
                self.mistake(format!("{key}.upstream"), format!("names no upstream; {advice}"));
            }
            if name == "local" && target.target != "local" {
                self.mistake(key.clone(), "would hide the target `local`; give it another name");
            }
            self.target(&key, target);
        }
    }

    fn target(&mut self, key: &str, target: &TargetConfig) {
        // What is no target was told already.
        let Ok(spec) = target::parse(&target.target) else {
            return;
        };
        let (served, kind): (&[TunnelName], _) = match &spec {
            TargetSpec::Local => (&[TunnelName::Local], "`local` takes auto or local"),
            TargetSpec::Ssh(_) => (
                &[TunnelName::SshReverse, TunnelName::Http2, TunnelName::Queue],
                "an SSH target takes auto, ssh-reverse, http2_v1 or queue_v1",
            ),
            TargetSpec::Provider(_) => (
                &[TunnelName::Http2, TunnelName::Queue, TunnelName::Worker],
                "a provider's target takes auto, http2_v1, queue_v1 or worker",
            ),
        };
        if target.tunnel != TunnelName::Auto && !served.contains(&target.tunnel) {
            self.mistake(
                format!("{key}.tunnel"),
                format!("does not fit the target: {kind}"),
            );
        }
        if matches!(spec, TargetSpec::Ssh(_)) {
            return;
        }
        for (field, given) in [
            ("identities", !target.identities.is_empty()),
            ("known_hosts", target.known_hosts.is_some()),
            ("allow_exposed_forward", target.allow_exposed_forward),
        ] {
            if given {
                self.mistake(format!("{key}.{field}"), "is for SSH targets only");
            }
        }
    }

    fn control(&mut self, config: &Config) {
        let control = &config.listeners.control;
        let tls = control.certificate.is_some() && control.key.is_some();
        let authentication = control.token.is_some() || control.client_ca.is_some();
        match &control.address {
            Some(ControlAddress::Tcp(_)) if !tls || !authentication => self.mistake(
                "listeners.control.address",
                "is TCP, which needs TLS (`certificate` and `key`) and authentication (`token` or `client_ca`) beside it",
            ),
            Some(ControlAddress::Tcp(_)) => {}
            Some(ControlAddress::Unix(_)) | None => {
                for (field, given) in [
                    ("certificate", control.certificate.is_some()),
                    ("key", control.key.is_some()),
                    ("token", control.token.is_some()),
                    ("client_ca", control.client_ca.is_some()),
                ] {
                    if given {
                        self.mistake(format!("listeners.control.{field}"), "is for an address with tcp: only");
                    }
                }
            }
        }
    }

    fn policy(&mut self, config: &Config) {
        let policy = &config.policy;
        let mut packs = policy.packs.as_ref().map(|_| Vec::new());
        for (index, name) in policy.packs.iter().flatten().enumerate() {
            match Pack::named(name) {
                Some(pack) => packs.iter_mut().for_each(|packs| packs.push(pack)),
                None => {
                    let known = Pack::all().iter().map(Pack::name).collect::<Vec<_>>().join(", ");
                    self.mistake(
                        format!("policy.packs[{index}]"),
                        format!("is no pack; there are {known}"),
                    );
                }
            }
        }
        if policy.file.is_some() && policy.rules.is_some() {
            self.mistake(
                "policy.rules",
                "cannot stand beside `policy.file`; put the rules into one of them",
            );
        }
        if let Some(text) = &policy.rules {
            let read = PolicyFile::parse(text).and_then(|file| {
                let choice = file.pack().unwrap_or(PackChoice::Pack(Pack::newest()));
                Rules::compile(&packs.unwrap_or_else(|| choice.packs()), Some(&file))
            });
            for mistake in read.err().iter().flatten() {
                self.inside("policy.rules", mistake);
            }
        }
    }

    /// A mistake in a text that is itself a value: at the file's own line where it has one.
    fn inside(&mut self, key: &str, mistake: &Mistake) {
        let (line, message) = (mistake.line, &mistake.message);
        let begins = self.tree.text_lines.get(key);
        match (self.tree.origins.of(key), begins) {
            (Origin::File { path, .. }, Some(begins)) => self.mistakes.push(ConfigMistake {
                origin: Origin::File {
                    path,
                    line: begins + line - 1,
                },
                key: key.to_owned(),
                problem: format!("has a mistake: {message}"),
            }),
            _ => self.mistake(key, format!("has a mistake in its line {line}: {message}")),
        }
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        if limits.bytes.session < limits.max_body {
            self.mistake("limits.bytes.session", "must be at least `limits.max_body`");
        }
        if limits.bytes.process < limits.bytes.session {
            self.mistake("limits.bytes.process", "must be at least `limits.bytes.session`");
        }
        if limits.concurrency.process < limits.concurrency.session {
            self.mistake(
                "limits.concurrency.process",
                "must be at least `limits.concurrency.session`",
            );
        }
    }

    fn store(&mut self, store: &StoreConfig) {
        let url = store.url.as_deref().unwrap_or("sqlite:");
        let postgres = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme));
        match postgres {
            // Neither the URL nor a part of it is repeated.
            Some(rest) if has_password(rest) => {
                self.mistake(
                    "store.url",
                    "holds a password; give a reference to it in `store.password`",
                );
            }
            Some(_) => {}
            None if url.starts_with("sqlite:") => {
                if store.password.is_some() {
                    self.mistake("store.password", "is for a PostgreSQL store only");
                }
            }
            None => self.mistake("store.url", "must begin with sqlite: or postgres://"),
        }
    }

    fn mutations(&mut self, config: &Config) {
        for (index, template) in config.mutations.mint_except.iter().enumerate() {
            if !template.starts_with('/') {
                self.mistake(
                    format!("mutations.mint_except[{index}]"),
                    "must be a route template that begins with /",
                );
            }
        }
    }
}

fn has_password(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let user = authority.rsplit_once('@').map_or("", |(user, _)| user);
    let query = rest.split_once('?').map_or("", |(_, query)| query);
    user.contains(':') || query.to_ascii_lowercase().contains("password")
}
