//! Single files of a snapshot, chosen one by one: too many for memory, so in a file of the state folder.

use super::question::{FILE_COLUMNS, STANDS, converted, file_row};
use super::scratch::Scratch;
use super::{FileRow, Manifest, ManifestError, page_rows, signed, unsigned};
use crate::model::{Digests, FilePath, Root, RootPath, Sha1, Sha256};
use crate::repository::log::Tally;
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Files that were chosen, each path once, in the order in which they were.
#[derive(Debug)]
pub struct Chosen {
    scratch: Mutex<Scratch>,
    path: PathBuf,
    files: Tally,
}

/// Files that are being chosen.
#[derive(Debug)]
pub struct Choosing {
    scratch: Scratch,
    path: PathBuf,
    files: Tally,
}

impl Choosing {
    /// None yet, in a file at `path`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(path: &Path) -> Result<Self, ManifestError> {
        let tables = "CREATE TABLE chosen(
                        number INTEGER PRIMARY KEY, external TEXT NOT NULL, path TEXT NOT NULL, sha256 BLOB NOT NULL, sha1 BLOB NOT NULL, size INTEGER NOT NULL,
                        mtime_ns INTEGER NOT NULL, mode INTEGER NOT NULL, key TEXT NOT NULL, damaged INTEGER NOT NULL, UNIQUE (external, path)) STRICT;
                      BEGIN;";
        Ok(Self { scratch: Scratch::make(path, tables)?, path: path.to_owned(), files: Tally::default() })
    }

    /// Adds one, unless its path was chosen before.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add(&mut self, row: &FileRow) -> Result<(), ManifestError> {
        let insert =
            "INSERT OR IGNORE INTO chosen(external, path, sha256, sha1, size, mtime_ns, mode, key, damaged) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        let values = params![
            row.file.root.name_in_manifest(),
            row.file.path.as_str(),
            row.digests.sha256.0,
            row.digests.sha1.0,
            signed(row.size_bytes),
            row.mtime_ns,
            row.mode,
            row.key,
            row.damaged
        ];
        let added = self.scratch.connection.prepare_cached(insert).and_then(|mut insert| insert.execute(values)).map_err(self.scratch.failed())?;
        if added > 0 {
            self.files.add(row.size_bytes);
        }
        Ok(())
    }

    /// Those that were chosen.
    ///
    /// # Errors
    /// SQLite's.
    pub fn finish(self) -> Result<Chosen, ManifestError> {
        self.scratch.connection.execute_batch("COMMIT").map_err(self.scratch.failed())?;
        Ok(Chosen { scratch: Mutex::new(self.scratch), path: self.path, files: self.files })
    }
}

fn chosen_row(row: &Row<'_>) -> rusqlite::Result<FileRow> {
    let (external, path): (String, String) = (row.get(0)?, row.get(1)?);
    Ok(FileRow {
        file: FilePath { root: converted(0, Root::from_name_in_manifest(&external))?, path: converted(1, RootPath::parse(&path))? },
        digests: Digests { sha256: Sha256(row.get(2)?), sha1: Sha1(row.get(3)?) },
        size_bytes: unsigned(row.get(4)?),
        mtime_ns: row.get(5)?,
        mode: row.get(6)?,
        key: row.get(7)?,
        damaged: row.get(8)?,
    })
}

impl Chosen {
    /// How many there are, and their size.
    #[must_use]
    pub fn files(&self) -> Tally {
        self.files
    }

    /// Shows each of them. May be called from several threads, one after the other.
    ///
    /// # Errors
    /// SQLite's, or what `show` returns.
    pub fn each<E: From<ManifestError>>(&self, mut show: impl FnMut(FileRow) -> Result<(), E>) -> Result<(), E> {
        let mut last = 0_i64;
        loop {
            let page = self.page(&mut last)?;
            if page.is_empty() {
                return Ok(());
            }
            for row in page {
                show(row)?;
            }
        }
    }

    fn page(&self, last: &mut i64) -> Result<Vec<FileRow>, ManifestError> {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |connection: &Connection| {
            let mut query = connection.prepare_cached(
                "SELECT external, path, sha256, sha1, size, mtime_ns, mode, key, damaged, number FROM chosen WHERE number > ?1 ORDER BY number LIMIT ?2",
            )?;
            let rows = query.query_map(params![*last, page_rows()], |row| Ok((chosen_row(row)?, row.get::<_, i64>(9)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        };
        let page = read(&scratch.connection).map_err(|source| ManifestError::Sqlite { action: "read", path: self.path.clone(), source })?;
        if let Some((_, number)) = page.last() {
            *last = *number;
        }
        Ok(page.into_iter().map(|(row, _)| row).collect())
    }
}

impl Manifest {
    /// What stood at `file` in the snapshot of log entry `sequence`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn file_in(&self, sequence: u64, file: &FilePath) -> Result<Option<FileRow>, ManifestError> {
        let (folder, name) = file.path.split();
        let sql =
            format!("SELECT {FILE_COLUMNS} FROM version v JOIN folder f ON f.id = v.folder WHERE f.external = ?2 AND f.path = ?3 AND v.name = ?4 AND {STANDS}");
        let values = params![signed(sequence), file.root.name_in_manifest(), folder, name];
        let query = self.connection.prepare_cached(&sql);
        query.and_then(|mut query| query.query_row(values, |row| file_row(row, &file.root, folder)).optional()).map_err(self.failed("read"))
    }

    /// A file with this content that stood in the snapshot of log entry `sequence`; a whole one before one that is known to be damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn file_with_sha1(&self, sequence: u64, sha1: &Sha1) -> Result<Option<FileRow>, ManifestError> {
        let failed = self.failed("read");
        for damaged in ["v.damaged IS NULL", "v.damaged IS NOT NULL"] {
            // No order is asked for: where the same content stands at many paths, one of them will do.
            let sql = format!(
                "SELECT {FILE_COLUMNS}, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder
                  WHERE substr(v.sha1, 1, 8) = substr(?2, 1, 8) AND v.sha1 = ?2 AND {damaged} AND {STANDS} LIMIT 1"
            );
            let mut query = self.connection.prepare_cached(&sql).map_err(&failed)?;
            let found = query.query_row(params![signed(sequence), sha1.0], |row| {
                let (external, folder): (String, String) = (row.get(8)?, row.get(9)?);
                file_row(row, &converted(0, Root::from_name_in_manifest(&external))?, &folder)
            });
            if let Some(found) = found.optional().map_err(&failed)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}
