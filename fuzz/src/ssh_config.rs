//! `ssh_config` files.
//!
//! Laws: resolving ends, after a bounded number of reads, however files include each other; an error names a line that
//! exists; what it gives is fit to connect with; a `ProxyCommand` or a `Match exec` that applies is always an error,
//! and `ProxyCommand none` in front of everything means that no later one counts.
//!
//! The text is the user's file; a line `--- PATH` begins another one.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use runners::ssh::config::{ConfigError, ConfigFiles, HostSettings, Resolver, pattern};

const USER: &str = "/home/op/.ssh/config";
const SYSTEM: &str = "/etc/ssh/ssh_config";
const ALIASES: [&str; 3] = ["web", "db.example.com", "10.0.0.1"];
/// As the resolver promises: hosts in a row.
const MOST_HOSTS: usize = 8;
/// Two passes over at most 1024 files and one too many, for each host in a row and the one that is too many.
const MOST_READS: usize = 2 * 1025 * (MOST_HOSTS + 1);

/// Takes the bytes as configuration files.
///
/// # Panics
///
/// On a broken law.
pub fn ssh_config(data: &[u8]) {
    let files = Memory::cut(data);
    for alias in ALIASES {
        let found = resolve(&files, alias);
        assert_eq!(
            resolve(&files, alias),
            found,
            "two readings of the same files differ"
        );
        match &found {
            Ok(route) => fit_to_connect(route),
            Err(error) => names_a_line(error, &files),
        }
        for in_front in [
            "ProxyCommand nc %h %p".to_owned(),
            "Match exec true".to_owned(),
            format!("Match originalhost {alias} exec \"test -e /x\""),
            format!("Match !exec true host *\nHost {alias}"),
            format!("Host {alias}\nproxycommand=sh -c x\nHost *"),
        ] {
            let ran = resolve(&files.with_in_front(&in_front), alias);
            assert!(ran.is_err(), "{in_front:?} was passed over: {ran:?}");
        }
        let direct = resolve(&files.with_in_front("ProxyCommand none"), alias);
        match direct {
            Ok(route) => assert_eq!(route.len(), 1, "a proxy although `none` came first"),
            Err(error) => assert!(!error.message.contains("ProxyCommand would apply"), "{error}"),
        }
    }
}

type Found = Result<Vec<HostSettings>, ConfigError>;

fn resolve(files: &Memory, alias: &str) -> Found {
    let resolver = Resolver {
        home: PathBuf::from("/home/op"),
        local_user: "op".to_owned(),
        user_config: Some(PathBuf::from(USER)),
        system_config: Some(PathBuf::from(SYSTEM)),
    };
    files.reads.set(0);
    let found = resolver.resolve_route_with(files, alias, None, None);
    assert!(files.reads.get() <= MOST_READS, "{} reads", files.reads.get());
    found
}

fn fit_to_connect(route: &[HostSettings]) {
    assert!(
        (1..=MOST_HOSTS).contains(&route.len()),
        "{} hosts in a row",
        route.len()
    );
    for host in route {
        let bad = |letter: char| letter.is_control() || letter.is_whitespace() && letter.is_ascii();
        assert!(
            !host.host.is_empty() && !host.host.contains(bad) && !host.host.starts_with('-'),
            "{host:?}"
        );
        assert!(
            !host.user.is_empty() && !host.user.chars().any(char::is_control),
            "{host:?}"
        );
        assert!(!host.user.starts_with('-'), "{host:?}");
        assert_ne!(host.port, 0);
        assert!(
            host.proxy_jump.is_empty(),
            "a hop is still to be looked up: {host:?}"
        );
        assert_eq!(host.host, host.host.to_ascii_lowercase());
    }
}

fn names_a_line(error: &ConfigError, files: &Memory) {
    assert!(!error.message.is_empty());
    let Some(at) = &error.at else { return };
    let text = files
        .texts
        .get(Path::new(&*at.file))
        .map(Vec::as_slice)
        .unwrap_or_default();
    let lines = text.split(|byte| *byte == b'\n').count();
    assert!(
        (1..=lines).contains(&at.line),
        "{error} in a file of {lines} lines"
    );
}

/// Files without a disk.
#[derive(Debug)]
struct Memory {
    texts: BTreeMap<PathBuf, Vec<u8>>,
    reads: Cell<usize>,
}

impl Memory {
    fn cut(data: &[u8]) -> Self {
        let mut texts: BTreeMap<PathBuf, Vec<u8>> = BTreeMap::new();
        let mut path = PathBuf::from(USER);
        texts.insert(path.clone(), Vec::new());
        for line in data.split_inclusive(|byte| *byte == b'\n') {
            match line
                .strip_prefix(b"--- ")
                .and_then(|name| std::str::from_utf8(name.trim_ascii()).ok())
            {
                Some(name) if !name.is_empty() => {
                    path = PathBuf::from(name);
                    texts.entry(path.clone()).or_default();
                }
                _ => texts.entry(path.clone()).or_default().extend_from_slice(line),
            }
        }
        Self {
            texts,
            reads: Cell::new(0),
        }
    }

    fn with_in_front(&self, lines: &str) -> Self {
        let mut texts = self.texts.clone();
        let user = texts.entry(PathBuf::from(USER)).or_default();
        *user = [lines.as_bytes(), b"\n", user].concat();
        Self {
            texts,
            reads: Cell::new(0),
        }
    }
}

impl ConfigFiles for Memory {
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.reads.set(self.reads.get() + 1);
        if path.ends_with("unreadable") {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(self.texts.get(path).cloned())
    }

    fn expand(&self, pattern: &Path) -> Vec<PathBuf> {
        let wanted = pattern.display().to_string();
        if !wanted.contains(['*', '?']) {
            return vec![pattern.to_path_buf()];
        }
        let fits = |path: &&PathBuf| pattern::matches(&wanted, &path.display().to_string());
        self.texts.keys().filter(fits).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_cut_into_files() {
        let files = Memory::cut(b"Include inc\n--- /home/op/.ssh/inc\nHost web\n  HostName a.example\n");

        let route = resolve(&files, "web").expect("a good configuration");

        assert_eq!(route.first().map(|host| host.host.as_str()), Some("a.example"));
        assert_eq!(files.reads.get(), 3);
    }
}
