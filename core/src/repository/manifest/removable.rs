//! What a prune asks: which objects nothing needs any more, and which were given up but may still be there.

use super::apply::file_at_home;
use super::question::{converted, object_key};
use super::scratch::Scratch;
use super::{Manifest, ManifestError, SnapshotRow, page_rows, signed, unsigned};
use crate::model::{FilePath, Root, RootPath, Sha256};
use crate::repository::log::Tally;
use rusqlite::{Connection, params};
use std::path::Path;

/// A version of a path, as far as pruning asks.
pub(super) struct VersionIn {
    /// The folder's number.
    pub(super) folder: i64,
    /// Whose version.
    pub(super) file: FilePath,
    /// The log entry that stored it.
    pub(super) since: i64,
    /// Whether it stands now.
    pub(super) stands: bool,
}

/// The versions whose content lies in the object `key`, after `last`, in order, a page of them; empty at the end.
pub(super) fn versions_in(connection: &Connection, key: &str, last: Option<&VersionIn>) -> rusqlite::Result<Vec<VersionIn>> {
    let row = |row: &rusqlite::Row<'_>| Ok(VersionIn { folder: row.get(0)?, since: row.get(1)?, stands: row.get(2)?, file: file_at(row, 3)? });
    let columns = "SELECT v.folder, v.since, v.until IS NULL, f.external, f.path, v.name FROM version v JOIN folder f ON f.id = v.folder";
    let (folder, name, since) = last.map_or((i64::MIN, "", 0), |last| (last.folder, last.file.path.split().1, last.since));
    let by_key = format!("{columns} WHERE v.key = ?1 AND (v.folder, v.name, v.since) > (?2, ?3, ?4) ORDER BY v.folder, v.name, v.since LIMIT ?5");
    let mut found: Vec<_> =
        connection.prepare_cached(&by_key)?.query_map(params![key, folder, name, since, page_rows()], row)?.collect::<rusqlite::Result<_>>()?;
    if last.is_none()
        && let Some(home) = file_at_home(key)
    {
        let (folder, name) = home.path.split();
        let at_home = format!("{columns} WHERE v.key IS NULL AND f.external = ?1 AND f.path = ?2 AND v.name = ?3");
        let versions =
            connection.prepare_cached(&at_home)?.query_map(params![home.root.name_in_manifest(), folder, name], row)?.collect::<rusqlite::Result<Vec<_>>>()?;
        // The page goes on after its last one: the few of the path that is at home there come first.
        found.splice(0..0, versions);
    }
    Ok(found)
}

/// Whether anything that is known still lies in the object `key`.
pub(super) fn is_needed(connection: &Connection, key: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM dump WHERE key = ?1 AND pruned IS NULL) OR EXISTS (SELECT 1 FROM manifest_copy WHERE key = ?1)
                   OR EXISTS (SELECT 1 FROM version WHERE key = ?1)";
    if connection.prepare_cached(sql)?.query_row([key], |row| row.get(0))? {
        return Ok(true);
    }
    let Some(file) = file_at_home(key) else { return Ok(false) };
    let (folder, name) = file.path.split();
    let sql =
        "SELECT EXISTS (SELECT 1 FROM version v JOIN folder f ON f.id = v.folder WHERE v.key IS NULL AND f.external = ?1 AND f.path = ?2 AND v.name = ?3)";
    connection.prepare_cached(sql)?.query_row(params![file.root.name_in_manifest(), folder, name], |row| row.get(0))
}

/// The file of a row whose columns from `first` on are external library, folder and name.
fn file_at(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<FilePath> {
    let (external, folder, name): (String, String, String) = (row.get(first)?, row.get(first + 1)?, row.get(first + 2)?);
    let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
    Ok(FilePath { root: converted(first, Root::from_name_in_manifest(&external))?, path: converted(first + 1, RootPath::parse(&path))? })
}

/// What an old snapshot will lack.
#[derive(Debug, Clone, PartialEq)]
pub struct Lacking {
    /// The snapshot.
    pub snapshot: SnapshotRow,
    /// Files that it held.
    pub files: Tally,
}

/// Objects that hold nothing but what Immich can make again and what stands nowhere.
#[derive(Debug)]
pub struct Removable(Scratch);

impl Removable {
    /// Collects them from `manifest`, using a file at `path`. An object is among them if all that ever lay in it was `is_derived` and stands no more, and
    /// its content neither stands anywhere nor ever was that of a file which is not `is_derived`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn collect(manifest: &Manifest, path: &Path, is_derived: impl Fn(&FilePath) -> bool) -> Result<Self, ManifestError> {
        let scratch = Scratch::make(
            path,
            "CREATE TABLE gone(key TEXT NOT NULL, sha256 BLOB NOT NULL, size INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER NOT NULL) STRICT;
             CREATE INDEX gone_by_key ON gone(key);
             CREATE INDEX gone_by_content ON gone(sha256);
             CREATE TABLE span(since INTEGER, until INTEGER, files INTEGER NOT NULL, bytes INTEGER NOT NULL, PRIMARY KEY (since, until)) STRICT, WITHOUT ROWID;
             BEGIN;",
        )?;
        let removable = Self(scratch);
        removable.add_gone(manifest, &is_derived)?;
        removable.drop_needed(manifest, &is_derived)?;
        let sum = "INSERT INTO span SELECT since, until, count(*), sum(size) FROM gone GROUP BY since, until; COMMIT;";
        removable.0.connection.execute_batch(sum).map_err(removable.0.failed())?;
        Ok(removable)
    }

    fn add_gone(&self, manifest: &Manifest, is_derived: &impl Fn(&FilePath) -> bool) -> Result<(), ManifestError> {
        let (failed, failed_here) = (manifest.failed("read"), self.0.failed());
        let sql = "SELECT f.external, f.path, v.name, v.key, v.sha256, v.size, v.since, v.until FROM version v JOIN folder f ON f.id = v.folder
                    WHERE v.until IS NOT NULL";
        let mut query = manifest.connection.prepare(sql).map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        let mut insert = self.0.connection.prepare("INSERT INTO gone(key, sha256, size, since, until) VALUES (?1, ?2, ?3, ?4, ?5)").map_err(&failed_here)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let file = file_at(row, 0).map_err(&failed)?;
            if !is_derived(&file) {
                continue;
            }
            let values =
                || Ok((object_key(row.get(3)?, &file), row.get::<_, [u8; 32]>(4)?, row.get::<_, i64>(5)?, row.get::<_, i64>(6)?, row.get::<_, i64>(7)?));
            let (key, sha256, size, since, until) = values().map_err(&failed)?;
            insert.execute(params![key, sha256, size, since, until]).map_err(&failed_here)?;
        }
        Ok(())
    }

    /// One content after the other, each looked up once.
    fn drop_needed(&self, manifest: &Manifest, is_derived: &impl Fn(&FilePath) -> bool) -> Result<(), ManifestError> {
        let failed = self.0.failed();
        let mut after = Vec::new();
        loop {
            let mut query = self.0.connection.prepare_cached("SELECT DISTINCT sha256 FROM gone WHERE sha256 > ?1 ORDER BY sha256 LIMIT ?2").map_err(&failed)?;
            let rows = query.query_map(params![after, page_rows()], |row| row.get(0).map(Sha256));
            let page: Vec<Sha256> = rows.and_then(Iterator::collect).map_err(&failed)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.0.to_vec();
            for content in page {
                if is_content_needed(manifest, &content, is_derived)? {
                    let sql = "DELETE FROM gone WHERE key IN (SELECT key FROM gone WHERE sha256 = ?1)";
                    self.0.connection.prepare_cached(sql).and_then(|mut delete| delete.execute([content.0])).map_err(&failed)?;
                }
            }
        }
    }

    /// How many objects there are, and their size.
    ///
    /// # Errors
    /// SQLite's.
    pub fn objects(&self) -> Result<Tally, ManifestError> {
        self.tally("SELECT count(*), coalesce(sum(size), 0) FROM (SELECT max(size) AS size FROM gone GROUP BY key)", [])
    }

    /// How many versions of files lie in them, and their size.
    ///
    /// # Errors
    /// SQLite's.
    pub fn files(&self) -> Result<Tally, ManifestError> {
        self.tally("SELECT coalesce(sum(files), 0), coalesce(sum(bytes), 0) FROM span", [])
    }

    /// What the snapshots of `manifest` will lack, oldest first; those that will lack nothing are left out.
    ///
    /// # Errors
    /// SQLite's.
    pub fn lacking(&self, manifest: &Manifest) -> Result<Vec<Lacking>, ManifestError> {
        let mut lacking = Vec::new();
        for snapshot in manifest.snapshots()? {
            let sql = "SELECT coalesce(sum(files), 0), coalesce(sum(bytes), 0) FROM span WHERE since <= ?1 AND until > ?1";
            let files = self.tally(sql, [signed(snapshot.sequence)])?;
            if files.files > 0 {
                lacking.push(Lacking { snapshot, files });
            }
        }
        Ok(lacking)
    }

    /// The keys after `after`, in order, a page of them; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn page(&self, after: &str) -> Result<Vec<String>, ManifestError> {
        let failed = self.0.failed();
        let mut query = self.0.connection.prepare_cached("SELECT DISTINCT key FROM gone WHERE key > ?1 ORDER BY key LIMIT ?2").map_err(&failed)?;
        query.query_map(params![after, page_rows()], |row| row.get(0)).and_then(Iterator::collect).map_err(&failed)
    }

    fn tally(&self, sql: &str, values: impl rusqlite::Params) -> Result<Tally, ManifestError> {
        let row = self.0.connection.query_row(sql, values, |row| Ok(Tally { files: unsigned(row.get(0)?), bytes: unsigned(row.get(1)?) }));
        row.map_err(self.0.failed())
    }
}

/// Whether a file stands with this content, or ever had it and is not `is_derived`.
fn is_content_needed(manifest: &Manifest, content: &Sha256, is_derived: &impl Fn(&FilePath) -> bool) -> Result<bool, ManifestError> {
    let failed = manifest.failed("read");
    let sql = "SELECT v.until IS NULL, f.external, f.path, v.name FROM version v JOIN folder f ON f.id = v.folder
                WHERE substr(v.sha256, 1, 8) = substr(?1, 1, 8) AND v.sha256 = ?1";
    let mut query = manifest.connection.prepare_cached(sql).map_err(&failed)?;
    let mut rows = query.query([content.0]).map_err(&failed)?;
    while let Some(row) = rows.next().map_err(&failed)? {
        if row.get(0).map_err(&failed)? || !is_derived(&file_at(row, 1).map_err(&failed)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Manifest {
    /// Objects that log entries up to `sequence` gave up and that may still be there, after `after`, in order, a page of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn given_up(&self, sequence: u64, after: &str) -> Result<Vec<String>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT key FROM pruned WHERE sequence <= ?1 AND key > ?2 ORDER BY key LIMIT ?3").map_err(&failed)?;
        query.query_map(params![signed(sequence), after, page_rows()], |row| row.get(0)).and_then(Iterator::collect).map_err(&failed)
    }

    /// How many these are.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_given_up(&self) -> Result<u64, ManifestError> {
        self.connection.query_row("SELECT count(*) FROM pruned", [], |row| row.get(0)).map(unsigned).map_err(self.failed("read"))
    }

    /// Whether any version of a file, a dump or a copy of the manifest lies in the object `key`, as far as the log says.
    ///
    /// # Errors
    /// SQLite's.
    pub fn needs(&self, key: &str) -> Result<bool, ManifestError> {
        is_needed(&self.connection, key).map_err(self.failed("read"))
    }
}
