//! One lease of the book, in our hands alone.
//!
//! Here: [`Entry`], and how its folder is named. Not here: who gets one ([`super::LeaseBook`]).

use std::fs::File;
use std::io;
use std::path::PathBuf;

use runners::provider::Lease;
use sha2::{Digest as _, Sha256};

use super::{BookError, Grasp, LeaseBook, RECORD};
use crate::leases::record::{LeaseRecord, Stage};
use crate::session::state::{io_error, sync_folder, write_whole};

/// One lease of the book, in our hands alone.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(super) book: LeaseBook,
    pub(super) name: String,
    pub(crate) record: LeaseRecord,
    /// Unlocked when dropped, and by the system when the process is killed.
    pub(super) held: File,
}

impl Entry {
    /// Where a session on this lease is written down.
    pub(crate) fn session_folder(&self) -> PathBuf {
        self.folder().join("session")
    }

    /// The name of this entry.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The book that it stands in.
    pub(in crate::leases) fn book(&self) -> &LeaseBook {
        &self.book
    }

    /// Writes down what [`Self::record`] says now.
    ///
    /// # Errors
    ///
    /// [`BookError::State`]; what stood there before stands there still.
    pub(crate) fn write(&mut self) -> Result<(), BookError> {
        let folder = self.folder();
        let text = serde_json::to_vec_pretty(&self.record)
            .map_err(|error| io_error(&folder, io::Error::from(error)))?;
        Ok(write_whole(&folder, RECORD, &text)?)
    }

    /// The provider has named its lease: from now on nobody else can take one of that name.
    ///
    /// # Errors
    ///
    /// [`BookError::Taken`] where another session has it; ours is then not the one to give it back.
    pub(crate) async fn named(&mut self, lease: Lease) -> Result<(), BookError> {
        let book = self.book.clone();
        let _book = book.lock().await?;
        let name = name_of(&self.record, &lease.id);
        if name != self.name {
            match book.grasp(&name)? {
                Grasp::Nothing => {}
                Grasp::InUse => return Err(book.taken(&name, &self.record.provider, &lease.id)),
                // What a killed process owed of it is ours to give back now.
                Grasp::Ours(_left) => book.remove(&name)?,
            }
            let (from, to) = (self.folder(), book.folder.join(&name));
            std::fs::rename(&from, &to).map_err(|error| io_error(&to, error))?;
            self.name = name;
            sync_folder(&book.folder)?;
        }
        self.record.lease = Some(lease);
        self.record.stage = Stage::Held;
        self.write()
    }

    /// Nothing is owed any more.
    ///
    /// # Errors
    ///
    /// [`BookError`]; it will then be found again by a successor, and the provider asked once more.
    pub(crate) async fn strike(self) -> Result<(), BookError> {
        let Self { book, name, held, .. } = self;
        let _book = book.lock().await?;
        let removed = book.remove(&name);
        drop(held);
        removed
    }

    fn folder(&self) -> PathBuf {
        self.book.folder.join(&self.name)
    }
}

/// A provider's ids may hold anything; a file name may not.
pub(super) fn name_of(record: &LeaseRecord, id: &str) -> String {
    let digest = Sha256::new()
        .chain_update(record.account.as_bytes())
        .chain_update([0])
        .chain_update(id.as_bytes())
        .finalize();
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{hex}", record.provider)
}
