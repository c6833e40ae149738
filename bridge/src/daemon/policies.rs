//! What agents may ask for: the operator's policy, and what sessions add to it.
//!
//! Here: [`ConfiguredPolicy`], read from the configuration, and [`Policies`], which holds one compiled set for each distinct
//! addition, however many sessions have it, and compiles them anew when the operator's policy changes. Not here: what
//! rules mean (`policy`), how a session reads them (`session/live.rs`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use policy::{FileLimits, Mistakes, Mode, Pack, PackChoice, PolicyFile, Rules};
use sha2::{Digest as _, Sha256};

use crate::cli::policies;
use crate::config::Config;
use crate::config::model::PolicyMode;
use crate::config::spelled::size_text;
use crate::session::live::{LiveRules, Ruled};

/// The operator's policy, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfiguredPolicy {
    mode: Mode,
    /// `None`: nobody said which.
    packs: Option<Vec<Pack>>,
    file: Option<PolicyFile>,
}

/// What a session adds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Addition {
    /// Instead of the operator's packs.
    pub(crate) pack: Option<PackChoice>,
    pub(crate) file: Option<Arc<OwnFile>>,
}

/// A session's own rules.
#[derive(Debug)]
pub(crate) struct OwnFile {
    pub(crate) rules: PolicyFile,
    digest: [u8; 32],
}

impl OwnFile {
    /// Reads and checks it. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// What is wrong with it, each mistake at its line.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = policies::read_text(path).map_err(|failure| failure.to_string())?;
        let digest = Sha256::digest(text.as_bytes()).into();
        let rules = PolicyFile::parse(&text).map_err(|mistakes| in_file(path, &mistakes))?;
        Ok(Self { rules, digest })
    }
}

impl ConfiguredPolicy {
    /// The policy of a configuration that is in order by itself. Reads the file that it names.
    ///
    /// # Errors
    ///
    /// Every mistake, one a line.
    pub(crate) fn read(config: &Config) -> Result<Self, String> {
        let wanted = &config.policy;
        let inline = Path::new("policy.rules");
        let (file, path) = match (&wanted.file, &wanted.rules) {
            (Some(path), _) => {
                let text = policies::read_text(path)
                    .map_err(|failure| format!("`policy.file`: {}", one_line(&failure.to_string())))?;
                (Some(text), path.as_path())
            }
            (None, rules) => (rules.clone(), inline),
        };
        let file = file
            .map(|text| PolicyFile::parse(&text))
            .transpose()
            .map_err(|mistakes| in_file(path, &mistakes))?;
        let packs = wanted
            .packs
            .as_ref()
            .map(|names| names.iter().filter_map(|name| Pack::named(name)).collect());
        let policy = Self {
            mode: match wanted.mode {
                PolicyMode::Enforce => Mode::Enforce,
                PolicyMode::Report => Mode::Report,
            },
            packs,
            file,
        };
        if let Some(bytes) = policy.limits().max_body
            && bytes > config.limits.max_body
        {
            let most = size_text(config.limits.max_body);
            return Err(format!(
                "{}: `max_body` in `[limits]` is {bytes} bytes, and `limits.max_body` of the configuration is {most}; raise that, or leave this out",
                path.display()
            ));
        }
        Rules::compile(&policy.packs(None), policy.file.as_ref())
            .map_err(|mistakes| in_file(path, &mistakes))?;
        Ok(policy)
    }

    /// Limits that its rules set.
    pub(crate) fn limits(&self) -> FileLimits {
        self.file.as_ref().map(PolicyFile::limits).unwrap_or_default()
    }

    /// The packs that count where a session chooses this.
    fn packs(&self, chosen: Option<PackChoice>) -> Vec<Pack> {
        if let Some(chosen) = chosen {
            return chosen.packs();
        }
        match (&self.packs, self.file.as_ref().and_then(PolicyFile::pack)) {
            (Some(packs), _) => packs.clone(),
            (None, Some(choice)) => choice.packs(),
            (None, None) => vec![Pack::newest()],
        }
    }

    /// Whether anybody may choose this: it only takes away.
    ///
    /// # Errors
    ///
    /// What may be chosen instead.
    pub(crate) fn admits(&self, chosen: PackChoice) -> Result<(), String> {
        let packs = self.packs(None);
        if chosen.packs().iter().all(|chosen| packs.contains(chosen)) {
            return Ok(());
        }
        let names = packs.iter().map(Pack::name).chain(["none"]);
        Err(format!(
            "the configuration has no such pack, and only the daemon's own user may bring one; one of {}",
            names.collect::<Vec<_>>().join(", ")
        ))
    }

    fn with(&self, addition: &Addition) -> Result<Ruled, Mistakes> {
        let own = addition.file.as_ref().map(|own| &own.rules);
        let choice = addition.pack.or_else(|| own.and_then(PolicyFile::pack));
        let rules = Rules::layered(&self.packs(choice), self.file.as_ref(), own)?;
        Ok(Ruled {
            rules,
            mode: self.mode,
        })
    }

    /// Whether every constraint of the session's own has something to narrow.
    fn fits(&self, addition: &Addition) -> Result<(), Mistakes> {
        let Some(own) = &addition.file else { return Ok(()) };
        let choice = addition.pack.or_else(|| own.rules.pack());
        Rules::fits(&self.packs(choice), self.file.as_ref(), &own.rules)
    }
}

/// Sessions that add the same have the same rules.
type Key = (Option<&'static str>, Option<[u8; 32]>);

impl Addition {
    fn key(&self) -> Key {
        let pack = self.pack.map(|choice| match choice {
            PackChoice::Pack(pack) => pack.name(),
            PackChoice::Empty => "none",
        });
        (pack, self.file.as_ref().map(|own| own.digest))
    }
}

/// The compiled policies of all sessions.
#[derive(Debug)]
pub(crate) struct Policies {
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    configured: Arc<ConfiguredPolicy>,
    compiled: BTreeMap<Key, (Addition, LiveRules)>,
}

impl Policies {
    pub(crate) fn new(configured: Arc<ConfiguredPolicy>) -> Self {
        Self {
            held: Mutex::new(Held {
                configured,
                compiled: BTreeMap::new(),
            }),
        }
    }

    /// The rules of a session that adds this, now and after every change. Takes some milliseconds where it is the first.
    ///
    /// # Errors
    ///
    /// What of the session's own rules does not fit the operator's, each at its line.
    pub(crate) fn of(&self, addition: Addition) -> Result<LiveRules, Mistakes> {
        let mut held = self.held();
        if let Some((_, rules)) = held.compiled.get(&addition.key()) {
            return Ok(rules.clone());
        }
        held.configured.fits(&addition)?;
        let rules = LiveRules::new(held.configured.with(&addition)?);
        // Whoever made them before has no session any more.
        held.compiled.retain(|_, (_, rules)| rules.is_shared());
        held.compiled.insert(addition.key(), (addition, rules.clone()));
        Ok(rules)
    }

    /// From the next callback on this is the operator's policy, in every session. Constraints of sessions that have nothing
    /// to narrow any more narrow nothing.
    ///
    /// # Errors
    ///
    /// A pack that cannot be read, which tests exclude; nothing has changed then.
    pub(crate) fn follow(&self, configured: Arc<ConfiguredPolicy>) -> Result<(), Mistakes> {
        let mut held = self.held();
        if *held.configured == *configured {
            return Ok(());
        }
        held.compiled.retain(|_, (_, rules)| rules.is_shared());
        let compiled: Result<Vec<_>, _> = held
            .compiled
            .values()
            .map(|(addition, rules)| Ok((rules, configured.with(addition)?)))
            .collect();
        // All are made before the first is swapped.
        for (rules, ruled) in compiled? {
            rules.swap(ruled);
        }
        held.configured = configured;
        Ok(())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_file(path: &Path, mistakes: &Mistakes) -> String {
    mistakes.in_file(&path.display().to_string()).to_string()
}

fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use policy::{Ask, Ruling, Target};

    use super::*;
    use crate::config::LoadOptions;

    fn configured(text: &str) -> Arc<ConfiguredPolicy> {
        let options = LoadOptions::default();
        let loaded = Config::of_text(text, Path::new("bridge.toml"), &options).unwrap();
        Arc::new(ConfiguredPolicy::read(&loaded.config).unwrap())
    }

    fn own(text: &str) -> Addition {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("own.toml");
        std::fs::write(&file, text).unwrap();
        Addition {
            pack: None,
            file: Some(Arc::new(OwnFile::read(&file).unwrap())),
        }
    }

    fn allows(rules: &LiveRules, method: &str, path: &str) -> bool {
        let target = Target::parse(path.as_bytes()).unwrap();
        let ask = Ask {
            method,
            target: &target,
            now_unix: 0,
        };
        let now = rules.load();
        matches!(now.rules.decide_in(now.mode, &ask), Ruling::Allow(_))
    }

    const QUIET: &str = "[policy]\nrules = '''\n[[deny]]\nmethod = \"GET\"\npath = \"/api/agents/me\"\n'''\n";
    const OWN: &str = "[constrain]\nissue = \"PAP-1\"\n[[allow]]\nmethod = \"GET\"\npath = \"/api/own\"\n";

    #[test]
    fn sessions_that_add_the_same_share_one_set_and_a_change_reaches_each_with_what_it_adds() {
        let policies = Policies::new(Arc::default());
        let plain = policies.of(Addition::default()).unwrap();
        let (one, other) = (policies.of(own(OWN)).unwrap(), policies.of(own(OWN)).unwrap());
        assert_eq!(policies.held().compiled.len(), 2);
        assert!(allows(&plain, "GET", "/api/agents/me") && allows(&one, "GET", "/api/agents/me"));

        policies.follow(configured(QUIET)).unwrap();

        for rules in [&plain, &one, &other] {
            assert!(!allows(rules, "GET", "/api/agents/me"));
            assert!(allows(rules, "GET", "/api/issues/PAP-1"));
        }
        assert!(allows(&plain, "GET", "/api/issues/PAP-2") && !allows(&plain, "GET", "/api/own"));
        assert!(!allows(&one, "GET", "/api/issues/PAP-2") && allows(&one, "GET", "/api/own"));
        policies.follow(Arc::default()).unwrap();
        assert!(allows(&other, "GET", "/api/agents/me") && !allows(&other, "GET", "/api/issues/PAP-2"));
    }

    #[test]
    fn what_nobody_has_any_more_is_forgotten() {
        let policies = Policies::new(Arc::default());
        drop(policies.of(own(OWN)).unwrap());

        let _plain = policies.of(Addition::default()).unwrap();

        assert_eq!(policies.held().compiled.len(), 1);
    }

    #[test]
    fn constraints_that_fit_nothing_any_more_hold_no_policy_back() {
        let policies = Policies::new(Arc::default());
        let narrow = policies.of(own(OWN)).unwrap();

        policies.follow(configured("[policy]\npacks = []\n")).unwrap();

        assert!(!allows(&narrow, "GET", "/api/issues/PAP-1") && allows(&narrow, "GET", "/api/own"));
        let mistakes = policies.of(own("[constrain]\nissue = \"PAP-2\"\n")).unwrap_err();
        assert!(mistakes.to_string().contains("issue"), "{mistakes}");
    }

    #[test]
    fn a_pack_that_the_configuration_does_not_have_is_not_for_everybody() {
        let only = configured("[policy]\npacks = [\"paperclip-2026.707\", \"paperclip-2026.722\"]\n");
        let pack = |name: &str| PackChoice::named(name).unwrap();

        assert!(only.admits(pack("paperclip-2026.707")).is_ok() && only.admits(pack("none")).is_ok());
        let refused = only.admits(pack("paperclip-2026.916")).unwrap_err();
        assert!(
            refused.contains("paperclip-2026.707, paperclip-2026.722, none"),
            "{refused}"
        );
        assert!(
            ConfiguredPolicy::default()
                .admits(pack("paperclip-2026.916"))
                .is_ok()
        );
        assert!(
            ConfiguredPolicy::default()
                .admits(pack("paperclip-2026.707"))
                .is_err()
        );
    }

    #[test]
    fn rules_may_not_raise_the_limit_of_the_configuration() {
        let text = "[limits]\nmax_body = \"1KiB\"\n[policy]\nrules = '''\n[limits]\nmax_body = 2048\n'''\n";
        let loaded = Config::of_text(text, Path::new("bridge.toml"), &LoadOptions::default()).unwrap();

        let refused = ConfiguredPolicy::read(&loaded.config).unwrap_err();

        assert!(refused.contains("2048") && refused.contains("1KiB"), "{refused}");
    }
}
