//! The manifest: a SQLite database made by applying the log. Losing it costs time, never data. All SQL is here and below.

mod apply;
mod browse;
mod chosen;
mod copy;
mod held;
mod lookup;
mod question;
mod removable;
mod scratch;
mod select;
mod shards;
mod standing;
mod tree;

pub use apply::Applied;
pub use browse::{CHANGES_COUNTED_MAX, Changes, ListedFile, SizeAt, TimelineRow};
pub use chosen::{Choosing, Chosen};
pub use copy::unpack;
pub use held::Held;
pub use lookup::{Lookup, StandingFolder};
pub use question::{CurrentFile, DrillRow, DumpRow, EpochRow, FileRow, Folders, RunRow, SnapshotRow, StoredContent, Verification};

pub use removable::{Lacking, Removable};
pub use scratch::{Expected, ExpectedObject, Unseen};
pub use select::{SelectError, Selector};
pub use standing::{KeptContent, StandingFile, StandingFiles, Whereabouts};
pub use tree::{Below, FolderTree, FoundFolder, TREE_FOLDERS_MAX, TREE_VERSIONS_MAX, TreeError};

use super::log::{Head, Totals};
use crate::budget::{MANIFEST_PAGE_ROWS, ONE_SHOT_BYTES_MAX, SQLITE_READER_CACHE_BYTES, SQLITE_WRITER_CACHE_BYTES};
use crate::model::{RepositoryId, Sha256};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The version of the schema. A local manifest of another version is made anew; a copy of another version is not used.
pub const SCHEMA_VERSION: i64 = 5;

const SCHEMA: &str = include_str!("manifest/schema.sql");

/// What went wrong with the local manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// SQLite failed: no room, no rights, a damaged file.
    #[error("cannot {action} the manifest `{}`", .path.display())]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The log states what cannot be.
    #[error("log entry {sequence} states what cannot be: {what}")]
    Contradiction {
        /// The entry.
        sequence: u64,
        /// What.
        what: String,
    },
    /// A copy could not be packed or unpacked.
    #[error("cannot {action} the manifest's copy at `{}`", .path.display())]
    Copy {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl ManifestError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        use rusqlite::ErrorCode::{CannotOpen, DatabaseCorrupt, DiskFull, NotADatabase, PermissionDenied, ReadOnly, SystemIoFailure};
        let full = |source: &std::io::Error| matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded);
        match self {
            Self::Sqlite { source, .. } => match source.sqlite_error_code()? {
                DiskFull | SystemIoFailure => {
                    Some("make room in the state folder, or give --state-dir another one; the repository is whole, and the next run goes on")
                }
                CannotOpen | PermissionDenied | ReadOnly => Some("give --state-dir (IMMICH_BACKUP_STATE_DIR) a folder that this user may write to"),
                DatabaseCorrupt | NotADatabase => {
                    Some("it is damaged, and only a cache: the next `backup` makes it anew from the log; anything else does once it is removed")
                }
                _ => None,
            },
            Self::Copy { source, .. } if full(source) => Some("make room in the state folder, or give --state-dir another one"),
            Self::Copy { .. } | Self::Contradiction { .. } => None,
        }
    }

    /// Whether throwing the local manifest away and making it anew from the log would help.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match self {
            Self::Sqlite { source, .. } => matches!(source.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase)),
            Self::Contradiction { .. } | Self::Copy { .. } => false,
        }
    }
}

/// The manifest, open for writing (by the one who holds the state folder's lock) or for reading.
#[derive(Debug)]
pub struct Manifest {
    connection: Connection,
    path: PathBuf,
    head: Head,
    totals: Totals,
    folders: apply::FolderCache,
}

/// Look-up indexes: in the local file only, not in copies.
fn local_indexes() -> String {
    format!(
        "CREATE INDEX IF NOT EXISTS version_by_content ON version(substr(sha256, 1, 8));
         CREATE INDEX IF NOT EXISTS version_by_sha1 ON version(substr(sha1, 1, 8));
         CREATE INDEX IF NOT EXISTS version_by_key ON version(key) WHERE key IS NOT NULL;
         CREATE INDEX IF NOT EXISTS version_by_size ON version(size) WHERE size > {ONE_SHOT_BYTES_MAX};
         CREATE INDEX IF NOT EXISTS version_by_end ON version(until) WHERE until IS NOT NULL;"
    )
}

fn cache_pragma(bytes: usize) -> String {
    // Negative: in KiB.
    format!("-{}", bytes / 1_024)
}

impl Manifest {
    /// Opens the manifest at `path` for writing. `None` where there is none, or one of another schema or repository.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open(path: &Path, repository: RepositoryId) -> Result<Option<Self>, ManifestError> {
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| ManifestError::Sqlite { action: "open", path: path.to_owned(), source };
        let connection = connect_writer(path).map_err(failed)?;
        // A copy comes from the store: what somebody defined beside our tables, or in their place, is never asked anything.
        if !is_of_this_schema(&connection).map_err(failed)? {
            return Ok(None);
        }
        let version: Option<i64> = connection.query_row("SELECT version FROM manifest_metadata", [], |row| row.get(0)).optional().map_err(failed)?;
        if version != Some(SCHEMA_VERSION) {
            return Ok(None);
        }
        connection.execute_batch(&local_indexes()).map_err(failed)?;
        let manifest = Self::with(connection, path)?;
        let owner: String = manifest.metadata("repository")?;
        Ok((owner == repository.to_string()).then_some(manifest))
    }

    /// Makes an empty manifest at `path`, in place of whatever was there.
    ///
    /// # Errors
    /// SQLite's, or the file system's.
    pub fn create(path: &Path, repository: RepositoryId, start: &Head) -> Result<Self, ManifestError> {
        remove(path)?;
        let failed = |source| ManifestError::Sqlite { action: "make", path: path.to_owned(), source };
        let connection = connect_writer(path).map_err(failed)?;
        let totals = serde_json::to_string(&Totals::default()).unwrap_or_default();
        let fill = || {
            connection.execute_batch("BEGIN")?;
            connection.execute_batch(SCHEMA)?;
            connection.execute_batch(&local_indexes())?;
            connection.execute(
                "INSERT INTO manifest_metadata(version, repository, last_epoch, last_sequence, last_sha256, totals) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                (SCHEMA_VERSION, repository.to_string(), start.epoch, signed(start.sequence), start.sha256.0, totals),
            )?;
            connection.execute_batch("COMMIT")
        };
        fill().map_err(failed)?;
        Self::with(connection, path)
    }

    /// Opens the manifest at `path` for reading, beside one who may be writing.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open_for_reading(path: &Path) -> Result<Self, ManifestError> {
        let connection = connect_reader(path).map_err(|source| ManifestError::Sqlite { action: "open", path: path.to_owned(), source })?;
        Self::with(connection, path)
    }

    fn with(connection: Connection, path: &Path) -> Result<Self, ManifestError> {
        let row = connection.query_row("SELECT last_epoch, last_sequence, last_sha256, totals FROM manifest_metadata", [], |row| {
            Ok((row.get::<_, u32>(0)?, row.get::<_, i64>(1)?, row.get::<_, [u8; 32]>(2)?, row.get::<_, String>(3)?))
        });
        let (epoch, sequence, sha256, totals) = row.map_err(|source| ManifestError::Sqlite { action: "read", path: path.to_owned(), source })?;
        let head = Head { epoch, sequence: unsigned(sequence), sha256: Sha256(sha256) };
        let totals = serde_json::from_str(&totals).map_err(|error| ManifestError::Sqlite {
            action: "read",
            path: path.to_owned(),
            source: rusqlite::Error::FromSqlConversionFailure(2, rusqlite::types::Type::Text, Box::new(error)),
        })?;
        Ok(Self { connection, path: path.to_owned(), head, totals, folders: apply::FolderCache::default() })
    }

    /// The last log entry that has been applied.
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// What stands now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> ManifestError + use<> {
        let path = self.path.clone();
        move |source| ManifestError::Sqlite { action, path: path.clone(), source }
    }

    fn metadata<T: rusqlite::types::FromSql>(&self, column: &'static str) -> Result<T, ManifestError> {
        self.connection.query_row(&format!("SELECT {column} FROM manifest_metadata"), [], |row| row.get(0)).map_err(self.failed("read"))
    }
}

/// What is defined in a database: kind, name and definition of each table, index, view and trigger.
fn defined(connection: &Connection) -> rusqlite::Result<BTreeSet<(String, String, Option<String>)>> {
    let mut statement = connection.prepare("SELECT type, name, sql FROM sqlite_schema")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// Whether all that [`SCHEMA`] defines is there, and nothing else but the local indexes.
fn is_of_this_schema(connection: &Connection) -> rusqlite::Result<bool> {
    let ours = Connection::open_in_memory()?;
    ours.execute_batch(SCHEMA)?;
    let in_copies = defined(&ours)?;
    ours.execute_batch(&local_indexes())?;
    let found = defined(connection)?;
    Ok(found.is_superset(&in_copies) && found.is_subset(&defined(&ours)?))
}

fn connect_writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    compile_once(&connection)?;
    connection.pragma_update(None, "cache_size", cache_pragma(SQLITE_WRITER_CACHE_BYTES))?;
    // A lost tail of this cache is applied again from the log: what matters is that it stays consistent.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "temp_store", "FILE")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Plans must not depend on the values bound: else SQLite compiles a statement anew each time it is used, which takes longer than running it.
fn compile_once(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    compile_once(&connection)?;
    connection.pragma_update(None, "cache_size", cache_pragma(SQLITE_READER_CACHE_BYTES))?;
    connection.pragma_update(None, "temp_store", "FILE")?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Removes the manifest at `path` and what SQLite keeps beside it.
///
/// # Errors
/// The file system's.
pub fn remove(path: &Path) -> Result<(), ManifestError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ManifestError::Copy { action: "remove", path: name.into(), source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Rows of a page, as SQLite takes it.
fn page_rows() -> i64 {
    signed(MANIFEST_PAGE_ROWS as u64)
}

/// SQLite's integers are signed; sizes and numbers of entries stay far below the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
