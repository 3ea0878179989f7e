//! What a run asks of the manifest while it walks and sends: connections for its threads, beside the one that writes.

use super::super::key::Key;
use super::apply::folder_id;
use super::question::{CurrentFile, StoredContent, known_content};
use super::removable::is_needed;
use super::{ManifestError, page_rows, signed, unsigned};
use crate::budget::MANIFEST_PAGE_ROWS;
use crate::model::{Digests, FilePath, Root, Sha1, Sha256};
use rusqlite::{Connection, OptionalExtension as _, Row, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// A connection for one thread of a run, beside the one that writes. Sees what was committed when a question is asked.
#[derive(Debug)]
pub struct Lookup {
    connection: Connection,
    path: PathBuf,
}

/// What the manifest has of a folder.
#[derive(Debug)]
pub struct StandingFolder {
    /// Its number.
    pub number: i64,
    /// What stands in it, by name; `None` where that is more than a page.
    pub files: Option<HashMap<String, CurrentFile>>,
}

fn current_file(row: &Row<'_>) -> rusqlite::Result<CurrentFile> {
    Ok(CurrentFile {
        digests: Digests { sha256: Sha256(row.get(0)?), sha1: Sha1(row.get(1)?) },
        size_bytes: unsigned(row.get(2)?),
        mtime_ns: row.get(3)?,
        ctime_ns: row.get(4)?,
        mode: row.get(5)?,
        damaged: row.get(6)?,
        key: row.get(7)?,
        etag: row.get(8)?,
    })
}

impl Lookup {
    /// Opens the manifest at `path`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        let connection = super::connect_reader(path).map_err(|source| ManifestError::Sqlite { action: "open", path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    pub(super) fn ask<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, ManifestError> {
        question(&self.connection).map_err(|source| ManifestError::Sqlite { action: "read", path: self.path.clone(), source })
    }

    /// A folder and what stands in it; `None` where nothing of it was ever stored. One question, however many files.
    ///
    /// # Errors
    /// SQLite's.
    pub fn folder(&self, root: &Root, folder: &str) -> Result<Option<StandingFolder>, ManifestError> {
        self.ask(|connection| {
            let mut query = connection.prepare_cached(
                "SELECT v.sha256, v.sha1, v.size, v.mtime_ns, v.ctime_ns, v.mode, v.damaged IS NOT NULL, v.key, v.etag, v.name, f.id
                   FROM folder f LEFT JOIN version v ON v.folder = f.id AND v.until IS NULL
                  WHERE f.external = ?1 AND f.path = ?2",
            )?;
            let mut rows = query.query(params![root.name_in_manifest(), folder])?;
            let mut found = None;
            while let Some(row) = rows.next()? {
                let standing = match &mut found {
                    Some(standing) => standing,
                    None => found.insert(StandingFolder { number: row.get(10)?, files: Some(HashMap::new()) }),
                };
                // A folder in which nothing stands any more gives one row without a name.
                let Some(name) = row.get::<_, Option<String>>(9)? else { break };
                match &mut standing.files {
                    Some(files) if files.len() < MANIFEST_PAGE_ROWS => drop(files.insert(name, current_file(row)?)),
                    _ => {
                        standing.files = None;
                        break;
                    }
                }
            }
            Ok(found)
        })
    }

    /// Makes the questions that follow cheap and see one state, until [`Self::leave`]. Not to be held while waiting: the writer's journal grows.
    ///
    /// # Errors
    /// SQLite's.
    pub fn enter(&self) -> Result<(), ManifestError> {
        self.ask(|connection| if connection.is_autocommit() { connection.prepare_cached("BEGIN")?.execute([]).map(drop) } else { Ok(()) })
    }

    /// Ends what [`Self::enter`] began.
    ///
    /// # Errors
    /// SQLite's.
    pub fn leave(&self) -> Result<(), ManifestError> {
        self.ask(|connection| if connection.is_autocommit() { Ok(()) } else { connection.prepare_cached("COMMIT")?.execute([]).map(drop) })
    }

    /// What stands at `name` in the folder.
    ///
    /// # Errors
    /// SQLite's.
    pub fn current(&self, folder: i64, name: &str) -> Result<Option<CurrentFile>, ManifestError> {
        self.ask(|connection| {
            connection
                .prepare_cached(
                    "SELECT sha256, sha1, size, mtime_ns, ctime_ns, mode, damaged IS NOT NULL, key, etag FROM version
                      WHERE folder = ?1 AND name = ?2 AND until IS NULL",
                )?
                .query_row(params![folder, name], current_file)
                .optional()
        })
    }

    /// What stands at `file`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn current_of(&self, file: &FilePath) -> Result<Option<CurrentFile>, ManifestError> {
        let (folder, name) = file.path.split();
        match self.ask(|connection| folder_id(connection, &file.root, folder))? {
            Some(folder) => self.current(folder, name),
            None => Ok(None),
        }
    }

    /// How many files stand in the folder.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count(&self, folder: i64) -> Result<u64, ManifestError> {
        self.ask(|connection| {
            connection.prepare_cached("SELECT count(*) FROM version WHERE folder = ?1 AND until IS NULL")?.query_row([folder], |row| row.get(0)).map(unsigned)
        })
    }

    /// Names of files that stand in the folder, after `after`, in order, a page of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn names(&self, folder: i64, after: &str) -> Result<Vec<String>, ManifestError> {
        self.ask(|connection| {
            let mut query = connection.prepare_cached("SELECT name FROM version WHERE folder = ?1 AND name > ?2 AND until IS NULL ORDER BY name LIMIT ?3")?;
            query.query_map(params![folder, after, page_rows()], |row| row.get(0))?.collect()
        })
    }

    /// The objects, not known to be damaged, that hold this content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn objects_with(&self, content: &Sha256) -> Result<Vec<StoredContent>, ManifestError> {
        self.ask(|connection| known_content(connection, content))
    }

    /// Whether any large object has this size.
    ///
    /// # Errors
    /// SQLite's.
    pub fn knows_size(&self, size_bytes: u64) -> Result<bool, ManifestError> {
        let limit = crate::budget::ONE_SHOT_BYTES_MAX;
        self.ask(|connection| {
            connection
                .prepare_cached(&format!("SELECT EXISTS (SELECT 1 FROM version WHERE size = ?1 AND size > {limit})"))?
                .query_row([signed(size_bytes)], |row| row.get(0))
        })
    }

    /// Whether the path ever held anything, so that its home may be taken.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_history(&self, file: &FilePath) -> Result<bool, ManifestError> {
        let (folder, name) = file.path.split();
        self.ask(|connection| {
            let Some(folder) = folder_id(connection, &file.root, folder)? else { return Ok(false) };
            connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM version WHERE folder = ?1 AND name = ?2)")?
                .query_row(params![folder, name], |row| row.get(0))
        })
    }

    /// Whether this content of the path was found before to contradict what Immich recorded of it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_doubtful(&self, file: &FilePath, content: &Sha256) -> Result<bool, ManifestError> {
        let (folder, name) = file.path.split();
        self.ask(|connection| {
            let Some(folder) = folder_id(connection, &file.root, folder)? else { return Ok(false) };
            connection
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM version WHERE folder = ?1 AND name = ?2 AND sha256 = ?3 AND until = since)")?
                .query_row(params![folder, name, content.0], |row| row.get(0))
        })
    }

    /// Whether the object is known to be missing or damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_damaged(&self, key: &Key) -> Result<bool, ManifestError> {
        self.ask(|connection| connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM damage WHERE key = ?1)")?.query_row([key.as_str()], |row| row.get(0)))
    }
    /// Whether the log knows nothing of this object: it names it nowhere, not even as one that is damaged, or that was given up and may be removed
    /// at any time.
    ///
    /// # Errors
    /// SQLite's.
    pub fn is_unnamed(&self, key: &Key) -> Result<bool, ManifestError> {
        self.ask(|connection| {
            let sql = "SELECT EXISTS (SELECT 1 FROM damage WHERE key = ?1) OR EXISTS (SELECT 1 FROM pruned WHERE key = ?1)";
            let is_given_up: bool = connection.prepare_cached(sql)?.query_row([key.as_str()], |row| row.get(0))?;
            Ok(!is_given_up && !is_needed(connection, key.as_str())?)
        })
    }
}
