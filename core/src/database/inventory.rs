//! What a dump names: assets, their files, users, albums, and where each file lies. Read out of the dump's text, kept in a SQLite
//! file for as long as it is asked. All its SQL is here and below.

mod fill;
mod meaning;
mod place;
mod question;
mod sort;
mod tables;

pub(crate) use meaning::matches;
pub use meaning::{FoundAsset, FoundCursor, Kind, Meaning};
pub use question::{Album, AssetAt, Library, Named, NamedCursor, Outside, OutsideCursor, Person, User};

use super::location::Locations;
use super::text::{NotWhole, Scanner, Section, Whole};
use crate::budget::{INVENTORY_CACHE_BYTES, MANIFEST_PAGE_ROWS};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The version of the schema: an inventory of another version is not opened.
const FORMAT: i64 = 1;

const SCHEMA: &str = include_str!("inventory/schema.sql");

/// What went wrong while a dump was read into an inventory, or when it was asked.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// The dump is not whole.
    #[error(transparent)]
    NotWhole(#[from] NotWhole),
    /// SQLite failed: no room, no rights, a damaged file.
    #[error("cannot {action} the inventory `{}`", .path.display())]
    Sqlite {
        /// What was being done.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A file beside it could not be used.
    #[error("cannot {action} `{}`, which an inventory needs", .path.display())]
    File {
        /// What was being done.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was made by another version of this program.
    #[error("the inventory `{}` was made by another version", .path.display())]
    OtherFormat {
        /// Which file.
        path: PathBuf,
    },
}

impl InventoryError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        use rusqlite::ErrorCode::{CannotOpen, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure};
        const ROOM: &str = "make room in the state folder, or give --state-dir another one: an inventory takes about 1 GB for a million assets";
        const RIGHTS: &str = "give --state-dir (IMMICH_BACKUP_STATE_DIR) a folder that this user may write to";
        match self {
            Self::NotWhole(error) => error.hint(),
            Self::Sqlite { source, .. } => match source.sqlite_error_code()? {
                DiskFull | SystemIoFailure => Some(ROOM),
                CannotOpen | PermissionDenied | ReadOnly => Some(RIGHTS),
                _ => None,
            },
            Self::File { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Some(ROOM),
                std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => Some(RIGHTS),
                _ => None,
            },
            Self::OtherFormat { .. } => None,
        }
    }
}

/// What of a dump could not be used, though the dump is whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Note {
    /// A table lacks a column without which it is of no use: it was passed over.
    MissingColumn {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// Rows that make no sense: they were passed over.
    UnreadableRows {
        /// The table.
        table: String,
        /// How many.
        rows: u64,
    },
}

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::MissingColumn { table, column } => write!(f, "table `{table}` of the dump has no column `{column}`, and was passed over"),
            Self::UnreadableRows { table, rows } => write!(f, "{rows} rows of table `{table}` of the dump make no sense, and were passed over"),
        }
    }
}

/// What a dump holds, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether it is a dump of Immich's database: it has a table of assets that can be read.
    pub is_immich: bool,
    /// The database's name, where the dump says it.
    pub database: Option<String>,
    /// Immich's version when the dump was taken: the newest row of `version_history`.
    pub immich_version: Option<String>,
    /// Where the server sees the media location: as the dump says (since 1.137), else what most paths of assets begin with.
    pub media_location: Option<String>,
    /// Whether `media_location` is a guess.
    pub media_location_guessed: bool,
    /// The server was in maintenance mode.
    pub maintenance: bool,
    /// PostgreSQL's version: `15.20 (Debian 15.20-0+deb12u1)`.
    pub server_version: Option<String>,
    /// The version of `pg_dump`.
    pub program_version: Option<String>,
    /// Whether `pg_dumpall` wrote it.
    pub cluster: bool,
    /// Rows of the asset table that could be read.
    pub assets: u64,
    /// Of these, assets in the trash (those whose external file vanished are there too).
    pub trashed: u64,
    /// Of these, assets of external libraries.
    pub external: u64,
    /// Rows of the table of assets' files that could be read.
    pub asset_files: u64,
    /// Users, also deleted ones that are not purged yet.
    pub users: u64,
    /// Albums.
    pub albums: u64,
    /// Persons.
    pub persons: u64,
    /// External libraries.
    pub libraries: u64,
    /// Files that belong to a root: pages of [`Inventory::named_page`].
    pub named: u64,
    /// Files that belong to none: pages of [`Inventory::outside_page`].
    pub outside: u64,
    /// Rows of all tables of the database.
    pub rows_total: u64,
    /// Bytes of the dump's text.
    pub text_bytes: u64,
    /// What could not be used.
    pub notes: Vec<Note>,
}

/// Files beside an inventory while it is made.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Removes the inventory at `path` and what may lie beside it.
fn remove(path: &Path) -> Result<(), InventoryError> {
    for suffix in ["", "-journal", ".paths", ".sorted"] {
        let path = beside(path, suffix);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(InventoryError::File { action: "remove", path, source }),
            _ => {}
        }
    }
    Ok(())
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(30))?;
    // Nobody needs it after a crash. Negative: in KiB.
    connection.execute_batch(&format!(
        "PRAGMA page_size = 8192; PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -{}; PRAGMA temp_store = FILE;",
        INVENTORY_CACHE_BYTES / 1_024
    ))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Takes a dump's text in pieces and makes an [`Inventory`] of it.
#[derive(Debug)]
pub struct Builder {
    scanner: Scanner<fill::Fill>,
    locations: Locations,
}

impl Builder {
    /// Begins an inventory at `path`, in place of whatever is there. `locations` says where the server sees what is backed up; the media location
    /// that the dump names comes before those.
    ///
    /// # Errors
    /// SQLite's, or the file system's.
    pub fn create(path: &Path, locations: Locations) -> Result<Self, InventoryError> {
        Ok(Self { scanner: Scanner::with(fill::Fill::create(path)?), locations })
    }

    /// Takes the next piece of the text, of any size.
    ///
    /// # Errors
    /// The text cannot be a whole dump any more; SQLite's, or the file system's.
    pub fn feed(&mut self, text: &[u8]) -> Result<(), InventoryError> {
        self.scanner.feed(text)
    }

    /// Bytes of text so far.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        self.scanner.text_bytes()
    }

    /// The inventory, once all the text was fed.
    ///
    /// # Errors
    /// The dump is not whole; SQLite's, or the file system's. Nothing is left at the path then.
    pub fn finish(self) -> Result<Inventory, InventoryError> {
        let (whole, fill) = self.scanner.finish_with()?;
        fill.finish(whole, self.locations)
    }
}

/// What a dump names.
#[derive(Debug)]
pub struct Inventory {
    connection: Connection,
    path: PathBuf,
    summary: Summary,
    rows: BTreeMap<String, u64>,
    locations: Locations,
    /// Indexes for finding are made when they are first needed: a backup needs none.
    findable: OnceCell<()>,
}

impl Inventory {
    /// Opens the inventory at `path`, which [`Builder::finish`] made.
    ///
    /// # Errors
    /// SQLite's; another version's inventory.
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        let failed = |source| InventoryError::Sqlite { action: "open", path: path.to_owned(), source };
        if let Err(source) = std::fs::metadata(path) {
            return Err(InventoryError::File { action: "open", path: path.to_owned(), source });
        }
        let connection = connect(path).map_err(failed)?;
        let read = connection.query_row("SELECT format, summary, rows, locations FROM summary", [], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
        });
        let (format, summary, rows, locations) = read.map_err(failed)?;
        let other = |_| InventoryError::OtherFormat { path: path.to_owned() };
        if format != FORMAT {
            return Err(InventoryError::OtherFormat { path: path.to_owned() });
        }
        let summary = serde_json::from_str(&summary).map_err(other)?;
        let rows = serde_json::from_str(&rows).map_err(other)?;
        let locations = serde_json::from_str(&locations).map_err(other)?;
        Ok(Self { connection, path: path.to_owned(), summary, rows, locations, findable: OnceCell::new() })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The dump in numbers.
    #[must_use]
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Rows of each table of Immich's database: by its name, with the schema in front where that is not `public`.
    #[must_use]
    pub fn rows(&self) -> &BTreeMap<String, u64> {
        &self.rows
    }

    /// Where the server sees what is backed up: the dump's own media location comes first.
    #[must_use]
    pub fn locations(&self) -> &Locations {
        &self.locations
    }

    /// Removes its file.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(self) -> Result<(), InventoryError> {
        let Self { connection, path, .. } = self;
        drop(connection);
        remove(&path)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> InventoryError + use<> {
        let path = self.path.clone();
        move |source| InventoryError::Sqlite { action: "read", path: path.clone(), source }
    }
}

/// The section of the dump that is Immich's: the one with the table of assets, else the first.
fn section_of(whole: &Whole) -> Section {
    let is_immich = |section: &&Section| section.tables.keys().any(|table| tables::Table::of(table) == Some(tables::Table::Asset));
    whole.sections.iter().find(is_immich).or_else(|| whole.sections.first()).cloned().unwrap_or_default()
}

/// Rows of a page, as SQLite takes it.
fn page_rows() -> i64 {
    signed(MANIFEST_PAGE_ROWS as u64)
}

/// SQLite's integers are signed; counts stay far below the limit.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
