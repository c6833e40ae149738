//! The schema's versions, and bringing a store up to the newest.
//!
//! Here: how migrations are carried in the program, and what is said of a store that does not fit. The SQL is in
//! `migrations/`, a file a version; each runs in a transaction together with the note that it ran. A file that was
//! released is never changed. Not here: the databases.

use sqlx::SqlSafeStr as _;
use sqlx::migrate::{Migrate, MigrateError, Migration, MigrationType, Migrator};

use super::error::StoreError;

/// One version of the schema: its number, its name and its SQL.
pub(super) type Version = (i64, &'static str, &'static str);

/// Brings what the connection leads to up to the newest version.
pub(super) async fn migrate<C: Migrate>(
    connection: &mut C,
    versions: &[Version],
    read: fn(sqlx::Error) -> StoreError,
) -> Result<(), StoreError> {
    let migrations = versions.iter().map(|&(number, name, sql)| {
        Migration::new(
            number,
            name.into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    });
    let known = versions.iter().map(|version| version.0).max().unwrap_or(0);
    let migrator = Migrator::with_migrations(migrations.collect());
    let Err(error) = migrator.run_direct(None, connection, false).await else {
        return Ok(());
    };
    let told = error.to_string();
    if let MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) = error {
        return Err(read(error));
    }
    if let MigrateError::VersionMissing(found) = error
        && found > known
    {
        return Err(StoreError::Newer { found, known });
    }
    Err(StoreError::Schema(told))
}
