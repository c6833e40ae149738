//! `cred:NAME`: a credential that systemd hands to the service (`LoadCredential=` and its kin).
//!
//! systemd lets the service's user in by an access list, which shows as rights of the group; so the group may read
//! here, and nobody else.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::Fault;
use super::file;
use super::place::{Mark, Place, Reading, Surroundings};
use super::reference::Kind;

pub(crate) static KIND: Kind = Kind {
    name: "cred",
    form: "cred:NAME",
    parse,
};

/// Where systemd says that the credentials are.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

/// Nobody but systemd writes there, and only the service reads.
const OTHERS: u32 = 0o026;

fn parse(name: &str) -> Result<Arc<dyn Place>, &'static str> {
    if name.is_empty() || name.contains(['/', '\0']) || matches!(name, "." | "..") {
        return Err("NAME is a credential's name, without a slash");
    }
    Ok(Arc::new(Credential(name.to_owned())))
}

#[derive(Debug)]
struct Credential(String);

impl Credential {
    fn path(&self, around: &Surroundings) -> Option<PathBuf> {
        around
            .variable(FOLDER)
            .map(|folder| PathBuf::from(folder).join(&self.0))
    }
}

impl Place for Credential {
    fn mark(&self, around: &Surroundings) -> Option<Mark> {
        self.path(around).and_then(|path| file::mark(&path))
    }

    fn read<'a>(&'a self, around: &'a Surroundings) -> Reading<'a> {
        let read = match self.path(around) {
            Some(path) => file::read(&path, OTHERS),
            None => Err(Fault::Missing(format!(
                "{FOLDER} is not set: run as a systemd service with LoadCredential={}:PATH",
                self.0
            ))),
        };
        Box::pin(std::future::ready(read))
    }
}
