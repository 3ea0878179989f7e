//! What is asked of the manifest: a method for each question.

use super::super::key;
use super::super::log::{Drilled, DumpFact, EpochFact, RunStarted, SnapshotFact};
use super::{Manifest, ManifestError, page_rows, signed, unsigned};
use crate::budget::MANIFEST_PAGE_ROWS;
use crate::model::{Digests, FilePath, FileTimes, Root, RootPath, RunId, Sha1, Sha256, WriterId};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

/// What the repository has of a path now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentFile {
    /// Of its content.
    pub digests: Digests,
    /// Its size.
    pub size_bytes: u64,
    /// When it was modified last.
    pub mtime_ns: i64,
    /// When it was changed last; `None` where that was too young to be trusted.
    pub ctime_ns: Option<i64>,
    /// Its permission bits.
    pub mode: u32,
    /// Whether its object is known to be missing or damaged.
    pub damaged: bool,
    /// Its object, where it is not the path's home.
    pub key: Option<String>,
    /// The store's tag of its object.
    pub etag: Option<String>,
}

impl CurrentFile {
    /// Whether the file system says nothing that differs.
    #[must_use]
    pub fn is_unchanged(&self, times: &FileTimes) -> bool {
        !self.damaged && self.size_bytes == times.size_bytes && self.mtime_ns == times.mtime_ns && self.ctime_ns == Some(times.ctime_ns)
    }
}

/// An object that holds some content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredContent {
    /// Its key.
    pub key: String,
    /// The store's tag of it.
    pub etag: Option<String>,
}

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    /// Where it stood.
    pub file: FilePath,
    /// Of its content.
    pub digests: Digests,
    /// Its size.
    pub size_bytes: u64,
    /// When it was modified last.
    pub mtime_ns: i64,
    /// Its permission bits.
    pub mode: u32,
    /// The object that holds it.
    pub key: String,
    /// Whether that object is known to be missing or damaged.
    pub damaged: bool,
}

/// A snapshot, as the log tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SnapshotRow {
    /// The log entry that commits it.
    pub sequence: u64,
    /// Its run.
    pub id: RunId,
    /// All else.
    pub fact: SnapshotFact,
}

/// A run, as the log tells of it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunRow {
    /// The run.
    pub id: RunId,
    /// The state folder it wrote from.
    pub writer: WriterId,
    /// When it last wrote to the log, by its own clock.
    pub last_entry_at: Timestamp,
    /// The last log entry it wrote.
    pub last_entry: u64,
    /// `snapshot`, `interrupted`, `withheld`, `failed`, `died`; `None` while it may be running.
    pub outcome: Option<String>,
    /// What stopped it.
    pub reason: Option<String>,
    /// Where a tripwire withheld its snapshot: how many originals were gone, and how many changed.
    pub withheld: (u64, u64),
    /// How it began.
    pub started: RunStarted,
}

/// A dump, as the log tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DumpRow {
    /// The log entry that says so.
    pub sequence: u64,
    /// Whether it was pruned since.
    pub pruned: bool,
    /// All else.
    pub fact: DumpFact,
}

/// A drill, as the log tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrillRow {
    /// The log entry that says so.
    pub sequence: u64,
    /// All else.
    pub fact: Drilled,
}

/// A repair of the log, as the log tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochRow {
    /// The epoch that it began.
    pub number: u32,
    /// The log entry that opens it.
    pub sequence: u64,
    /// The state folder that wrote it.
    pub writer: WriterId,
    /// All else.
    pub fact: EpochFact,
}

/// A look at the objects themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// When it began.
    pub at: Timestamp,
    /// It looked at one of so many parts.
    pub parts: u64,
    /// Which.
    pub part: u64,
    /// The last log entry whose objects were looked at.
    pub covers: u64,
    /// Objects that were right.
    pub objects: u64,
    /// Objects that were not.
    pub damaged: u64,
}

pub(super) const FILE_COLUMNS: &str = "v.name, v.sha256, v.sha1, v.size, v.mtime_ns, v.mode, v.key, v.damaged IS NOT NULL";
/// What stands in the snapshot of log entry `?1`.
pub(super) const STANDS: &str = "v.since <= ?1 AND (v.until IS NULL OR v.until > ?1)";

/// The object of a version, from its `key` column and its place.
pub(super) fn object_key(key: Option<String>, file: &FilePath) -> String {
    key.or_else(|| key::home(file).map(|home| home.to_string())).unwrap_or_default()
}

pub(super) fn converted<T, E: std::error::Error + Send + Sync + 'static>(column: usize, result: Result<T, E>) -> rusqlite::Result<T> {
    result.map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error)))
}

pub(super) fn file_row(row: &Row<'_>, root: &Root, folder: &str) -> rusqlite::Result<FileRow> {
    let name: String = row.get(0)?;
    // What a copy of the manifest says is no more to be trusted than the log: parse, never assume.
    let whole = if folder.is_empty() { name } else { format!("{folder}/{name}") };
    let file = FilePath { root: root.clone(), path: converted(0, RootPath::parse(&whole))? };
    Ok(FileRow {
        digests: Digests { sha256: Sha256(row.get(1)?), sha1: Sha1(row.get(2)?) },
        size_bytes: unsigned(row.get(3)?),
        mtime_ns: row.get(4)?,
        mode: row.get(5)?,
        key: object_key(row.get(6)?, &file),
        damaged: row.get(7)?,
        file,
    })
}

/// A folder of the manifest: its row, root and path.
type Folder = (i64, Root, String);

/// Folders in the order of their paths, and what stands in each, a page at a time.
#[derive(Debug)]
pub struct Folders<'a> {
    manifest: &'a Manifest,
    last: Option<(String, String)>,
}

impl Folders<'_> {
    /// The next folders; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn next_page(&mut self) -> Result<Vec<Folder>, ManifestError> {
        let failed = self.manifest.failed("read");
        let (external, path) = self.last.clone().map_or((None, None), |(external, path)| (Some(external), Some(path)));
        // Not one query with `OR`: it would pass over all the folders before, on every page.
        let after = if self.last.is_some() { "(external, path) > (?1, ?2)" } else { "?1 IS NULL AND ?2 IS NULL" };
        let sql = format!("SELECT id, external, path FROM folder WHERE {after} ORDER BY external, path LIMIT ?3");
        let mut query = self.manifest.connection.prepare_cached(&sql).map_err(&failed)?;
        let rows = query.query_map(params![external, path, page_rows()], |row| {
            let external: String = row.get(1)?;
            Ok((row.get(0)?, converted(1, Root::from_name_in_manifest(&external))?, row.get(2)?))
        });
        let page: Vec<Folder> = rows.and_then(Iterator::collect).map_err(&failed)?;
        if let Some((_, root, path)) = page.last() {
            self.last = Some((root.name_in_manifest().to_owned(), path.clone()));
        }
        Ok(page)
    }
}

impl Manifest {
    /// All folders that ever held a file, in the order of their paths.
    #[must_use]
    pub fn folders(&self) -> Folders<'_> {
        Folders { manifest: self, last: None }
    }

    /// Shows each file of the snapshot that log entry `sequence` commits, folder by folder in the order of paths.
    ///
    /// # Errors
    /// SQLite's, or what `show` returns.
    pub fn each_file<E: From<ManifestError>>(&self, sequence: u64, mut show: impl FnMut(FileRow) -> Result<(), E>) -> Result<(), E> {
        let sql = format!("SELECT {FILE_COLUMNS} FROM version v WHERE v.folder = ?2 AND v.name > ?3 AND {STANDS} ORDER BY v.name LIMIT ?4");
        self.each_page(&sql, sequence, &mut show)
    }

    /// Shows each path that held a file at some time up to log entry `sequence` and holds none there: what it held last.
    ///
    /// # Errors
    /// As [`Self::each_file`].
    pub fn each_archived<E: From<ManifestError>>(&self, sequence: u64, mut show: impl FnMut(FileRow) -> Result<(), E>) -> Result<(), E> {
        let last = "v.since = (SELECT max(w.since) FROM version w WHERE w.folder = v.folder AND w.name = v.name AND w.since <= ?1 AND (w.until IS NULL OR w.until > w.since))";
        let sql = format!("SELECT {FILE_COLUMNS} FROM version v WHERE v.folder = ?2 AND v.name > ?3 AND v.until <= ?1 AND {last} ORDER BY v.name LIMIT ?4");
        self.each_page(&sql, sequence, &mut show)
    }

    fn each_page<E: From<ManifestError>>(&self, sql: &str, sequence: u64, show: &mut impl FnMut(FileRow) -> Result<(), E>) -> Result<(), E> {
        let mut folders = self.folders();
        loop {
            let page = folders.next_page()?;
            if page.is_empty() {
                return Ok(());
            }
            for (id, root, path) in page {
                let mut last = String::new();
                loop {
                    let rows = self.rows(sql, params![signed(sequence), id, last, page_rows()], &root, &path)?;
                    let Some(end) = rows.last() else { break };
                    end.file.path.split().1.clone_into(&mut last);
                    let full = rows.len() == MANIFEST_PAGE_ROWS;
                    for row in rows {
                        show(row)?;
                    }
                    if !full {
                        break;
                    }
                }
            }
        }
    }

    fn rows(&self, sql: &str, values: impl rusqlite::Params, root: &Root, folder: &str) -> Result<Vec<FileRow>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        query.query_map(values, |row| file_row(row, root, folder)).and_then(Iterator::collect).map_err(&failed)
    }

    /// What stands at `file` now.
    ///
    /// # Errors
    /// SQLite's.
    pub fn standing(&self, file: &FilePath) -> Result<Option<FileRow>, ManifestError> {
        let (folder, name) = file.path.split();
        let sql = format!(
            "SELECT {FILE_COLUMNS} FROM version v JOIN folder f ON f.id = v.folder WHERE f.external = ?1 AND f.path = ?2 AND v.name = ?3 AND v.until IS NULL"
        );
        Ok(self.rows(&sql, params![file.root.name_in_manifest(), folder, name], &file.root, folder)?.pop())
    }

    /// What stands at `file` in the snapshot of log entry `sequence`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn standing_at(&self, file: &FilePath, sequence: u64) -> Result<Option<FileRow>, ManifestError> {
        let (folder, name) = file.path.split();
        let sql =
            format!("SELECT {FILE_COLUMNS} FROM version v JOIN folder f ON f.id = v.folder WHERE f.external = ?2 AND f.path = ?3 AND v.name = ?4 AND {STANDS}");
        Ok(self.rows(&sql, params![signed(sequence), file.root.name_in_manifest(), folder, name], &file.root, folder)?.pop())
    }

    /// Whether any file stands below `root`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_files(&self, root: &Root) -> Result<bool, ManifestError> {
        self.connection
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM folder f JOIN version v ON v.folder = f.id WHERE f.external = ?1 AND v.until IS NULL)",
                [root.name_in_manifest()],
                |row| row.get(0),
            )
            .map_err(self.failed("read"))
    }

    /// The external libraries in which files stand.
    ///
    /// # Errors
    /// SQLite's.
    pub fn externals(&self) -> Result<Vec<Root>, ManifestError> {
        let failed = self.failed("read");
        let sql = "SELECT DISTINCT external FROM folder f WHERE substr(external, 1, 1) NOT IN ('', '%') AND EXISTS (SELECT 1 FROM version v WHERE v.folder = f.id AND v.until IS NULL)";
        let mut query = self.connection.prepare(sql).map_err(&failed)?;
        let names = query.query_map([], |row| converted(0, Root::from_name_in_manifest(&row.get::<_, String>(0)?)));
        names.and_then(Iterator::collect).map_err(&failed)
    }

    /// Each path whose content differs from what it was in the snapshot of log entry `sequence`, with that content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn each_changed_since<E: From<ManifestError>>(&self, sequence: u64, mut show: impl FnMut(FilePath, Sha256) -> Result<(), E>) -> Result<(), E> {
        let failed = self.failed("read");
        let sql = "SELECT f.external, f.path, v.name, v.sha256 FROM version v JOIN folder f ON f.id = v.folder
                     JOIN version now ON now.folder = v.folder AND now.name = v.name AND now.until IS NULL
                    WHERE v.until > ?1 AND v.since <= ?1 AND now.sha256 <> v.sha256";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let mut rows = query.query([signed(sequence)]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let file = (|| {
                let (external, folder, name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let root = converted(0, Root::from_name_in_manifest(&external))?;
                Ok((FilePath { root, path: RootPath::in_folder(&folder, &name) }, Sha256(row.get(3)?)))
            })();
            let (file, content) = file.map_err(&failed)?;
            show(file, content)?;
        }
        Ok(())
    }

    /// The newest snapshot that has a proof.
    ///
    /// # Errors
    /// SQLite's.
    pub fn latest_with_proof(&self) -> Result<Option<SnapshotRow>, ManifestError> {
        self.connection
            .query_row(
                "SELECT sequence, id, fact FROM snapshot WHERE json_extract(fact, '$.proof') IS NOT NULL ORDER BY sequence DESC LIMIT 1",
                [],
                snapshot_row,
            )
            .optional()
            .map_err(self.failed("read"))
    }

    /// How many files were found, after the snapshot of log entry `sequence`, to contradict what Immich recorded of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_doubtful_since(&self, sequence: u64) -> Result<u64, ManifestError> {
        self.connection
            .prepare_cached("SELECT count(*) FROM version WHERE until > ?1 AND until = since")
            .and_then(|mut query| query.query_row([signed(sequence)], |row| row.get(0)))
            .map(unsigned)
            .map_err(self.failed("read"))
    }

    /// All snapshots up to log entry `sequence`, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn snapshots(&self) -> Result<Vec<SnapshotRow>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT sequence, id, fact FROM snapshot ORDER BY sequence").map_err(&failed)?;
        query.query_map([], snapshot_row).and_then(Iterator::collect).map_err(&failed)
    }

    /// The newest snapshot.
    ///
    /// # Errors
    /// SQLite's.
    pub fn latest_snapshot(&self) -> Result<Option<SnapshotRow>, ManifestError> {
        self.connection
            .query_row("SELECT sequence, id, fact FROM snapshot ORDER BY sequence DESC LIMIT 1", [], snapshot_row)
            .optional()
            .map_err(self.failed("read"))
    }

    /// The newest snapshot that fits.
    ///
    /// # Errors
    /// SQLite's.
    pub fn newest_snapshot_that(&self, mut fits: impl FnMut(&SnapshotFact) -> bool) -> Result<Option<SnapshotRow>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT sequence, id, fact FROM snapshot ORDER BY sequence DESC").map_err(&failed)?;
        let mut rows = query.query_map([], snapshot_row).map_err(&failed)?;
        rows.find(|row| row.as_ref().map_or(true, |row| fits(&row.fact))).transpose().map_err(&failed)
    }

    /// The newest runs, newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn runs(&self, limit: u32) -> Result<Vec<RunRow>, ManifestError> {
        self.runs_where("true ORDER BY first_entry DESC LIMIT ?1", [limit])
    }

    /// The newest run that was withheld, while no snapshot follows it: it stands until then, whatever else ran.
    ///
    /// # Errors
    /// SQLite's.
    pub fn standing_withheld(&self) -> Result<Option<RunRow>, ManifestError> {
        let condition = "outcome = 'withheld' AND first_entry > coalesce((SELECT max(first_entry) FROM run WHERE outcome = 'snapshot'), 0)
                         ORDER BY first_entry DESC LIMIT 1";
        Ok(self.runs_where(condition, [])?.pop())
    }

    pub(super) fn runs_where(&self, condition: &str, values: impl rusqlite::Params) -> Result<Vec<RunRow>, ManifestError> {
        let failed = self.failed("read");
        let columns = "id, writer, last_entry_at, last_entry, outcome, reason, fact, coalesce(gone, 0), coalesce(changed, 0)";
        let mut query = self.connection.prepare_cached(&format!("SELECT {columns} FROM run WHERE {condition}")).map_err(&failed)?;
        let rows = query.query_map(values, |row| {
            Ok(RunRow {
                id: converted(0, row.get::<_, String>(0)?.parse())?,
                writer: converted(1, row.get::<_, String>(1)?.parse())?,
                last_entry_at: converted(2, row.get::<_, String>(2)?.parse())?,
                last_entry: unsigned(row.get(3)?),
                outcome: row.get(4)?,
                reason: row.get(5)?,
                withheld: (unsigned(row.get(7)?), unsigned(row.get(8)?)),
                started: from_json(row, 6)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// The newest look of `kind` (`listed` or `read`), with at most so many parts.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_verification(&self, kind: &str, parts_max: u64) -> Result<Option<Verification>, ManifestError> {
        self.verification("kind = ?1 AND parts <= ?2 ORDER BY sequence DESC LIMIT 1", params![kind, signed(parts_max)])
    }

    /// The newest reading of one of exactly so many parts.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_reading_of(&self, parts: u64) -> Result<Option<Verification>, ManifestError> {
        self.verification("kind = 'read' AND parts = ?1 ORDER BY sequence DESC LIMIT 1", [signed(parts)])
    }

    fn verification(&self, condition: &str, values: impl rusqlite::Params) -> Result<Option<Verification>, ManifestError> {
        let sql = format!("SELECT at, parts, part, covers, objects, damaged FROM verification WHERE {condition}");
        self.connection.query_row(&sql, values, verification_row).optional().map_err(self.failed("read"))
    }

    /// Every look of `kind` (`listed` or `read`), oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn verifications(&self, kind: &str) -> Result<Vec<Verification>, ManifestError> {
        let failed = self.failed("read");
        let sql = "SELECT at, parts, part, covers, objects, damaged FROM verification WHERE kind = ?1 ORDER BY sequence";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        query.query_map([kind], verification_row).and_then(Iterator::collect).map_err(&failed)
    }

    /// Objects known to be missing or damaged.
    ///
    /// # Errors
    /// SQLite's.
    pub fn damaged_objects(&self) -> Result<Vec<(String, String)>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT key, problem FROM damage ORDER BY key").map_err(&failed)?;
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect).map_err(&failed)
    }

    /// How many contents, and copies of the manifest, are known to be damaged and have no whole object that takes their place.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_lost(&self) -> Result<u64, ManifestError> {
        let sql = "SELECT (SELECT count(DISTINCT v.sha256) FROM version v WHERE EXISTS (SELECT 1 FROM damage) AND v.damaged IS NOT NULL
                             AND NOT EXISTS (SELECT 1 FROM version w
                                              WHERE substr(w.sha256, 1, 8) = substr(v.sha256, 1, 8) AND w.sha256 = v.sha256 AND w.damaged IS NULL))
                        + (SELECT count(*) FROM damage d JOIN manifest_copy c ON c.key = d.key
                            WHERE NOT EXISTS (SELECT 1 FROM manifest_copy later
                                               WHERE later.key > d.key AND later.key NOT IN (SELECT key FROM damage)))
                        + (SELECT count(*) FROM damage d JOIN dump ON dump.key = d.key
                            WHERE dump.pruned IS NULL AND NOT EXISTS (SELECT 1 FROM dump later
                                               WHERE later.pruned IS NULL AND later.taken_at > dump.taken_at AND later.key NOT IN (SELECT key FROM damage)))";
        self.connection.query_row(sql, [], |row| row.get(0)).map(unsigned).map_err(self.failed("read"))
    }

    /// The objects, not known to be damaged, that hold this content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn objects_with(&self, content: &Sha256) -> Result<Vec<StoredContent>, ManifestError> {
        known_content(&self.connection, content).map_err(self.failed("read"))
    }

    /// How many files stand with this content.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_standing(&self, content: &Sha256) -> Result<u64, ManifestError> {
        self.connection
            .prepare_cached("SELECT count(*) FROM version WHERE substr(sha256, 1, 8) = substr(?1, 1, 8) AND sha256 = ?1 AND until IS NULL")
            .and_then(|mut query| query.query_row([content.0], |row| row.get(0)))
            .map(unsigned)
            .map_err(self.failed("read"))
    }

    /// The part that was read again by the last run that read one of so many.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_rehashed_of(&self, parts: u64) -> Result<Option<u64>, ManifestError> {
        self.connection
            .query_row(
                "SELECT json_extract(fact, '$.rehashed.part') FROM snapshot WHERE json_extract(fact, '$.rehashed.of') = ?1 ORDER BY sequence DESC LIMIT 1",
                [signed(parts)],
                |row| row.get(0),
            )
            .optional()
            .map(|part| part.map(unsigned))
            .map_err(self.failed("read"))
    }

    /// What the log said of the manifest's copy `key`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn copies(&self) -> Result<Vec<(String, Sha256, u64, u64)>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT key, sha256, sequence, rows FROM manifest_copy ORDER BY sequence").map_err(&failed)?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, Sha256(row.get(1)?), unsigned(row.get(2)?), unsigned(row.get(3)?))));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// The highest number of a folder. Numbers only grow.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_folder(&self) -> Result<i64, ManifestError> {
        self.connection.query_row("SELECT coalesce(max(id), 0) FROM folder", [], |row| row.get(0)).map_err(self.failed("read"))
    }

    /// All dumps that there are or were, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dumps(&self) -> Result<Vec<DumpRow>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT sequence, pruned IS NOT NULL, fact FROM dump ORDER BY taken_at, key").map_err(&failed)?;
        let rows = query.query_map([], |row| Ok(DumpRow { sequence: unsigned(row.get(0)?), pruned: row.get(1)?, fact: from_json(row, 2)? }));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// The dump in the object `key`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dump(&self, key: &str) -> Result<Option<DumpRow>, ManifestError> {
        self.connection
            .query_row("SELECT sequence, pruned IS NOT NULL, fact FROM dump WHERE key = ?1", [key], |row| {
                Ok(DumpRow { sequence: unsigned(row.get(0)?), pruned: row.get(1)?, fact: from_json(row, 2)? })
            })
            .optional()
            .map_err(self.failed("read"))
    }

    /// The newest drill.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_drill(&self) -> Result<Option<DrillRow>, ManifestError> {
        self.connection
            .query_row("SELECT sequence, fact FROM drill ORDER BY sequence DESC LIMIT 1", [], |row| {
                Ok(DrillRow { sequence: unsigned(row.get(0)?), fact: from_json(row, 1)? })
            })
            .optional()
            .map_err(self.failed("read"))
    }

    /// The repairs of the log, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn epochs(&self) -> Result<Vec<EpochRow>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT number, sequence, writer, fact FROM epoch ORDER BY number").map_err(&failed)?;
        let rows = query.query_map([], |row| {
            Ok(EpochRow {
                number: row.get(0)?,
                sequence: unsigned(row.get(1)?),
                writer: converted(2, row.get::<_, String>(2)?.parse())?,
                fact: from_json(row, 3)?,
            })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// How the run `id` began; `None` where the log does not know it.
    ///
    /// # Errors
    /// SQLite's.
    pub fn run_started(&self, id: RunId) -> Result<Option<RunStarted>, ManifestError> {
        self.connection.query_row("SELECT fact FROM run WHERE id = ?1", [id.to_string()], |row| from_json(row, 0)).optional().map_err(self.failed("read"))
    }

    /// How many versions there are of all paths.
    ///
    /// # Errors
    /// SQLite's.
    pub fn count_versions(&self) -> Result<u64, ManifestError> {
        self.connection.query_row("SELECT count(*) FROM version", [], |row| row.get(0)).map(unsigned).map_err(self.failed("read"))
    }

    /// How many paths are archived, and the size of what they held last.
    ///
    /// # Errors
    /// SQLite's.
    pub fn archived(&self) -> Result<super::super::log::Tally, ManifestError> {
        self.connection
            .query_row("SELECT count(*), coalesce(sum(size), 0) FROM files WHERE archived", [], |row| {
                Ok(super::super::log::Tally { files: unsigned(row.get(0)?), bytes: unsigned(row.get(1)?) })
            })
            .map_err(self.failed("read"))
    }

    /// Immich's version, as the last snapshot that knew it said.
    ///
    /// # Errors
    /// SQLite's.
    pub fn immich_version(&self) -> Result<Option<String>, ManifestError> {
        self.metadata("immich_version")
    }
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    converted(column, serde_json::from_str(&row.get::<_, String>(column)?))
}

fn verification_row(row: &Row<'_>) -> rusqlite::Result<Verification> {
    Ok(Verification {
        at: converted(0, row.get::<_, String>(0)?.parse())?,
        parts: unsigned(row.get(1)?),
        part: unsigned(row.get(2)?),
        covers: unsigned(row.get(3)?),
        objects: unsigned(row.get(4)?),
        damaged: unsigned(row.get(5)?),
    })
}

pub(super) fn snapshot_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    Ok(SnapshotRow { sequence: unsigned(row.get(0)?), id: converted(1, row.get::<_, String>(1)?.parse())?, fact: from_json(row, 2)? })
}

pub(super) fn known_content(connection: &Connection, content: &Sha256) -> rusqlite::Result<Vec<StoredContent>> {
    let sql = "SELECT f.external, f.path, v.name, v.key, v.etag FROM version v JOIN folder f ON f.id = v.folder
                WHERE substr(v.sha256, 1, 8) = substr(?1, 1, 8) AND v.sha256 = ?1 AND v.damaged IS NULL";
    let mut query = connection.prepare_cached(sql)?;
    let mut rows = query.query([content.0])?;
    let mut found: Vec<StoredContent> = Vec::new();
    // Many paths may share one object, and few objects share one content.
    while let Some(row) = rows.next()? {
        let (external, folder, name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let file = FilePath { root: converted(0, Root::from_name_in_manifest(&external))?, path: RootPath::in_folder(&folder, &name) };
        let stored = StoredContent { key: object_key(row.get(3)?, &file), etag: row.get(4)? };
        if !found.iter().any(|known| known.key == stored.key) {
            found.push(stored);
        }
        if found.len() == OBJECTS_OF_ONE_CONTENT_MAX {
            break;
        }
    }
    Ok(found)
}

/// So many objects of one content are looked at; there is more than one only after damage.
const OBJECTS_OF_ONE_CONTENT_MAX: usize = 8;
