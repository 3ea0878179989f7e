//! Tables for one operation, too large for memory: in a file of the state folder, thrown away afterwards.

use super::{ManifestError, page_rows, remove, signed, unsigned};
use crate::model::{FilePath, Root, RootPath, Sha256};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::path::{Path, PathBuf};

/// A database that nobody needs after a crash.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) connection: Connection,
    path: PathBuf,
}

impl Scratch {
    pub(super) fn make(path: &Path, tables: &str) -> Result<Self, ManifestError> {
        remove(path)?;
        let make = || {
            let connection = Connection::open(path)?;
            super::compile_once(&connection)?;
            connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -8192; PRAGMA temp_store = FILE;")?;
            connection.execute_batch(tables)?;
            Ok(connection)
        };
        let connection = make().map_err(|source| ManifestError::Sqlite { action: "make", path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    pub(super) fn failed(&self) -> impl Fn(rusqlite::Error) -> ManifestError + use<> {
        let path = self.path.clone();
        move |source| ManifestError::Sqlite { action: "use", path: path.clone(), source }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(remove(&self.path));
    }
}

/// An object that the manifest expects in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedObject {
    /// Its key.
    pub key: String,
    /// Its size.
    pub size_bytes: u64,
    /// Of its bytes.
    pub sha256: Sha256,
}

/// All objects that any version of any path needs, and all dumps, by key.
#[derive(Debug)]
pub struct Expected(Scratch);

impl Expected {
    /// Collects them from the manifest in the file `manifest`, using a file at `path`. It takes its time.
    ///
    /// # Errors
    /// SQLite's.
    pub fn collect(manifest: &Path, path: &Path) -> Result<Self, ManifestError> {
        let scratch = Scratch::make(
            path,
            "CREATE TABLE expected(key TEXT PRIMARY KEY, size INTEGER NOT NULL, sha256 BLOB NOT NULL) STRICT, WITHOUT ROWID;
             CREATE TABLE absent(key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;",
        )?;
        let failed = scratch.failed();
        scratch.connection.execute("ATTACH ?1 AS manifest", [manifest.to_string_lossy()]).map_err(&failed)?;
        // Folder by folder in the order of their paths, so keys arrive nearly sorted. Left to itself, SQLite goes along one of the indexes of hashes: keys
        // come in no order, and each of them is another page of the table to be read and written.
        scratch
            .connection
            .execute_batch(
                "BEGIN;
                 INSERT OR IGNORE INTO expected
                   SELECT coalesce(v.key, CASE f.external WHEN '' THEN 'library/' WHEN '%config' THEN 'config/' WHEN '%postgres' THEN 'postgres/'
                                     ELSE 'external/' || f.external || '/' END
                            || CASE f.path WHEN '' THEN '' ELSE f.path || '/' END || v.name), v.size, v.sha256
                     FROM manifest.folder f CROSS JOIN manifest.version v ON v.folder = f.id ORDER BY f.external, f.path;
                 INSERT OR IGNORE INTO expected
                   SELECT key, json_extract(fact, '$.size'), unhex(json_extract(fact, '$.sha256')) FROM manifest.dump WHERE pruned IS NULL;
                 COMMIT;
                 DETACH manifest;",
            )
            .map_err(&failed)?;
        Ok(Self(scratch))
    }

    /// How many there are, and their size.
    ///
    /// # Errors
    /// SQLite's.
    pub fn totals(&self) -> Result<(u64, u64), ManifestError> {
        self.0
            .connection
            .query_row("SELECT count(*), coalesce(sum(size), 0) FROM expected", [], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?))))
            .map_err(self.0.failed())
    }

    /// What the object `key` should hold; `None` where no version needs it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn content_of(&self, key: &str) -> Result<Option<Sha256>, ManifestError> {
        self.0.connection.query_row("SELECT sha256 FROM expected WHERE key = ?1", [key], |row| row.get(0).map(Sha256)).optional().map_err(self.0.failed())
    }

    /// Notes that a listing has passed where this one should have been.
    ///
    /// # Errors
    /// SQLite's.
    pub fn note_absent(&self, key: &str) -> Result<(), ManifestError> {
        let insert = self.0.connection.prepare_cached("INSERT OR IGNORE INTO absent(key) VALUES (?1)");
        insert.and_then(|mut insert| insert.execute([key])).map(drop).map_err(self.0.failed())
    }

    /// The object `key`, if it was noted as absent: it is not any more.
    ///
    /// # Errors
    /// SQLite's.
    pub fn take_absent(&self, key: &str) -> Result<Option<ExpectedObject>, ManifestError> {
        let failed = self.0.failed();
        let taken = self.0.connection.prepare_cached("DELETE FROM absent WHERE key = ?1").and_then(|mut delete| delete.execute([key])).map_err(&failed)?;
        if taken == 0 {
            return Ok(None);
        }
        let select = "SELECT size, sha256 FROM expected WHERE key = ?1";
        let object = |row: &rusqlite::Row<'_>| Ok(ExpectedObject { key: key.to_owned(), size_bytes: unsigned(row.get(0)?), sha256: Sha256(row.get(1)?) });
        self.0.connection.query_row(select, [key], object).optional().map_err(failed)
    }

    /// The next ones noted as absent after `after`; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn absent_page(&self, after: &str) -> Result<Vec<ExpectedObject>, ManifestError> {
        self.objects("SELECT key, size, sha256 FROM absent JOIN expected USING (key) WHERE key > ?1 ORDER BY key LIMIT ?2", after)
    }

    /// The next ones after `after`, in the order of their keys' bytes; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn page(&self, after: &str) -> Result<Vec<ExpectedObject>, ManifestError> {
        self.objects("SELECT key, size, sha256 FROM expected WHERE key > ?1 ORDER BY key LIMIT ?2", after)
    }

    fn objects(&self, query: &str, after: &str) -> Result<Vec<ExpectedObject>, ManifestError> {
        let failed = self.0.failed();
        let mut query = self.0.connection.prepare_cached(query).map_err(&failed)?;
        let rows = query.query_map(params![after, page_rows()], |row| {
            Ok(ExpectedObject { key: row.get(0)?, size_bytes: unsigned(row.get(1)?), sha256: Sha256(row.get(2)?) })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }
}

/// Files that a walk did not see.
#[derive(Debug)]
pub struct Unseen(Scratch);

impl Unseen {
    /// An empty set in a file at `path`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn new(path: &Path) -> Result<Self, ManifestError> {
        let tables =
            "CREATE TABLE unseen(external TEXT, path TEXT, size INTEGER NOT NULL, sha256 BLOB NOT NULL, PRIMARY KEY (external, path)) STRICT, WITHOUT ROWID;
             CREATE INDEX unseen_by_content ON unseen(sha256); BEGIN;";
        Scratch::make(path, tables).map(Self)
    }

    /// Adds one, with what the repository has of it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn add(&self, file: &FilePath, size_bytes: u64, content: &Sha256) -> Result<(), ManifestError> {
        self.0
            .connection
            .prepare_cached("INSERT OR IGNORE INTO unseen(external, path, size, sha256) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut insert| insert.execute(params![file.root.name_in_manifest(), file.path.as_str(), signed(size_bytes), content.0]))
            .map(drop)
            .map_err(self.0.failed())
    }

    /// Takes one out: it was seen after all.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remove(&self, file: &FilePath) -> Result<(), ManifestError> {
        self.0
            .connection
            .prepare_cached("DELETE FROM unseen WHERE external = ?1 AND path = ?2")
            .and_then(|mut delete| delete.execute(params![file.root.name_in_manifest(), file.path.as_str()]))
            .map(drop)
            .map_err(self.0.failed())
    }

    /// How many have this content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_of(&self, content: &Sha256) -> Result<u64, ManifestError> {
        self.0
            .connection
            .prepare_cached("SELECT count(*) FROM unseen WHERE sha256 = ?1")
            .and_then(|mut query| query.query_row([content.0], |row| row.get(0)))
            .map(unsigned)
            .map_err(self.0.failed())
    }

    /// Each distinct content among them, a page after `after`, in order.
    ///
    /// # Errors
    /// SQLite's.
    pub fn contents(&self, after: Option<&Sha256>) -> Result<Vec<Sha256>, ManifestError> {
        let failed = self.0.failed();
        let mut query =
            self.0.connection.prepare_cached("SELECT DISTINCT sha256 FROM unseen WHERE ?1 IS NULL OR sha256 > ?1 ORDER BY sha256 LIMIT ?2").map_err(&failed)?;
        let rows = query.query_map(params![after.map(|content| content.0), page_rows()], |row| row.get(0).map(Sha256));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// Those with this content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn with_content(&self, content: &Sha256) -> Result<Vec<FilePath>, ManifestError> {
        let failed = self.0.failed();
        let mut query = self.0.connection.prepare_cached("SELECT external, path FROM unseen WHERE sha256 = ?1").map_err(&failed)?;
        let rows = query.query_map([content.0], |row| parsed(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// The next ones after `after`; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn page(&self, after: Option<&FilePath>) -> Result<Vec<(FilePath, u64, Sha256)>, ManifestError> {
        let failed = self.0.failed();
        // Not one query with `OR`: it would pass over all the rows before, on every page.
        let condition = if after.is_some() { "(external, path) > (?1, ?2)" } else { "?1 IS NULL AND ?2 IS NULL" };
        let sql = format!("SELECT external, path, size, sha256 FROM unseen WHERE {condition} ORDER BY external, path LIMIT ?3");
        let mut query = self.0.connection.prepare_cached(&sql).map_err(&failed)?;
        let (external, path) = (after.map(|file| file.root.name_in_manifest()), after.map(|file| file.path.as_str()));
        let rows = query.query_map(params![external, path, page_rows()], |row| {
            let (external, path): (String, String) = (row.get(0)?, row.get(1)?);
            let file = parsed(&external, &path)?;
            Ok((file, unsigned(row.get(2)?), Sha256(row.get(3)?)))
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }
}

fn parsed(external: &str, path: &str) -> rusqlite::Result<FilePath> {
    let file = Root::from_name_in_manifest(external).and_then(|root| Ok(FilePath { root, path: RootPath::parse(path)? }));
    file.map_err(|error| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error)))
}
