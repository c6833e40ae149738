//! Where a store is and how hard it writes.
//!
//! Here: [`StoreSettings`]. Not here: how they are configured (`config.rs`). Read next: `folder.rs`.

use std::fmt;
use std::path::PathBuf;

use super::error::StoreError;
use crate::secrets::Secret;

/// Most connections to a PostgreSQL server.
const CONNECTIONS: u32 = 8;

/// What a store is opened with.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// Which database.
    pub url: StoreUrl,
    /// Of the user on a PostgreSQL server, where the URL does not have it.
    pub password: Option<Secret>,
    /// Most connections to a PostgreSQL server.
    pub connections: u32,
    /// The state folder; one daemon at a time has it, also with PostgreSQL.
    pub folder: PathBuf,
    /// What a power cut may take.
    pub durability: Durability,
}

impl StoreSettings {
    /// What is usual, in this state folder.
    #[must_use]
    pub fn new(url: StoreUrl, folder: PathBuf) -> Self {
        Self {
            url,
            password: None,
            connections: CONNECTIONS,
            folder,
            durability: Durability::default(),
        }
    }
}

/// Which database.
#[derive(Clone, Default)]
pub enum StoreUrl {
    /// A file in the state folder.
    #[default]
    Sqlite,
    /// A server, which several daemons may share. The URL may hold a password.
    Postgres(Secret),
}

/// What a power cut may take. A killed daemon loses nothing at either level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// SQLite: the last 200 ms and what the disk takes. PostgreSQL: nothing, unless the server is set so.
    #[default]
    Write,
    /// Nothing: each commit is on the disk before it is confirmed.
    Fsync,
}

impl StoreUrl {
    /// Reads `sqlite` or `postgres://…`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Url`] for anything else; the text is not repeated, it may hold a password.
    pub fn parse(text: &Secret) -> Result<Self, StoreError> {
        let url = text.expose();
        if url == "sqlite" {
            return Ok(Self::Sqlite);
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.clone()));
        }
        Err(StoreError::Url(
            "it is neither `sqlite` nor `postgres://…`".to_owned(),
        ))
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sqlite => "sqlite",
            Self::Postgres(_) => "postgres://…",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_one_of_two_kinds_and_is_never_repeated() {
        let parse = |text: &str| StoreUrl::parse(&Secret::new(text));

        assert!(matches!(parse("sqlite").unwrap(), StoreUrl::Sqlite));
        let postgres = parse("postgres://me:hidden@host/db").unwrap();
        assert!(matches!(postgres, StoreUrl::Postgres(_)));
        assert!(!format!("{postgres:?}").contains("hidden"));
        let error = parse("mysql://me:hidden@host/db").unwrap_err().to_string();
        assert!(!error.contains("hidden"), "{error}");
    }
}
