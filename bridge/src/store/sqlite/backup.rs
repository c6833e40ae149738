//! A copy of the store while it is in use.
//!
//! `VACUUM INTO` reads in one transaction, so the copy is of one moment, and it waits for no writer.

use std::path::Path;
use std::time::Duration;

use sqlx::{Connection as _, SqliteConnection};

use super::{FILE, SqliteStore, at, read_error};
use crate::store::StoreError;

/// A large store on a slow disk.
pub(super) const LIMIT: Duration = Duration::from_mins(10);

impl SqliteStore {
    pub(super) async fn copy_to(&self, file: &Path) -> Result<(), StoreError> {
        // A connection of its own: the readers are for those who wait.
        backup_folder(self.folder.path(), file).await
    }
}

/// Copies the store of this state folder into a new file, whether or not a daemon has it open.
pub(in crate::store) async fn backup_folder(folder: &Path, file: &Path) -> Result<(), StoreError> {
    let store = folder.join(FILE);
    let fault =
        |what: &Path, why: &dyn std::fmt::Display| StoreError::Backup(format!("{}: {why}", what.display()));
    if !store.try_exists().map_err(|error| fault(&store, &error))? {
        return Err(fault(&store, &"there is no store"));
    }
    if file.try_exists().map_err(|error| fault(file, &error))? {
        return Err(fault(file, &"it is there already; give a new name"));
    }
    let beside = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // For nobody else to read, and removed where the copy does not come to its end.
    let copy = tempfile::NamedTempFile::new_in(beside).map_err(|error| fault(beside, &error))?;
    let name = copy
        .path()
        .to_str()
        .ok_or_else(|| fault(beside, &"its name is not UTF-8"))?;

    let mut source = SqliteConnection::connect_with(&at(&store).read_only(true))
        .await
        .map_err(read_error)?;
    let copied = sqlx::query("VACUUM INTO $1")
        .bind(name)
        .execute(&mut source)
        .await;
    copied.map_err(read_error)?;
    source.close().await.map_err(read_error)?;

    let (file, folder) = (file.to_owned(), beside.to_owned());
    let kept = tokio::task::spawn_blocking(move || {
        copy.as_file().sync_all()?;
        copy.persist_noclobber(&file)?;
        std::fs::File::open(folder)?.sync_all()
    });
    let kept = kept
        .await
        .map_err(|error| StoreError::Backup(error.to_string()))?;
    kept.map_err(|error| StoreError::Backup(error.to_string()))
}
