//! What somebody asks who looks around: the timeline, what came and went, the files of one folder.

use super::question::{FILE_COLUMNS, FileRow, RunRow, STANDS, SnapshotRow, converted, file_row, from_json, snapshot_row};
use super::tree::Version;
use super::{Manifest, ManifestError, SCHEMA_VERSION, connect_reader, signed, unsigned};
use crate::model::{Root, RunId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};
use std::path::Path;

/// Paths that went or changed are counted up to here.
pub const CHANGES_COUNTED_MAX: u64 = 100_000;

/// A run, and the snapshot that it committed.
#[derive(Debug, Clone, PartialEq)]
pub struct TimelineRow {
    /// The log entry with which it began.
    pub first_entry: u64,
    /// The run.
    pub run: RunRow,
    /// Its snapshot.
    pub snapshot: Option<SnapshotRow>,
}

/// How two snapshots differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Paths that the second has not any more.
    pub went: u64,
    /// Paths that hold other content in the second.
    pub changed: u64,
    /// Whether there were more than [`CHANGES_COUNTED_MAX`], so that these are only the first.
    pub is_cut: bool,
}

/// How large the backup was once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeAt {
    /// The log entry of the snapshot.
    pub sequence: u64,
    /// When it was committed.
    pub taken_at: Timestamp,
    /// Files that stood in it.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
}

/// A file of a folder as a snapshot has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// What stands there; where nothing does, what stood there last.
    pub file: FileRow,
    /// Whether it stands in the snapshot.
    pub stands: bool,
    /// Whether it stands, unchanged, now.
    pub stands_now: bool,
}

impl Manifest {
    /// Opens the manifest at `path` for reading, beside one who may be writing. `None` where there is none, or none of this version's schema.
    ///
    /// # Errors
    /// SQLite's.
    pub fn open_if_there(path: &Path) -> Result<Option<Self>, ManifestError> {
        if !path.exists() {
            return Ok(None);
        }
        let failed = |source| ManifestError::Sqlite { action: "open", path: path.to_owned(), source };
        let connection = connect_reader(path).map_err(failed)?;
        match connection.query_row("SELECT version FROM manifest_metadata", [], |row| row.get::<_, i64>(0)).optional() {
            Ok(Some(SCHEMA_VERSION)) => Self::with(connection, path).map(Some),
            Ok(_) => Ok(None),
            // Created, but never filled; or of a schema so old that it had no such column.
            Err(error) if error.to_string().contains("no such") => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The newest runs that began before log entry `before`, newest first, each with its snapshot.
    ///
    /// # Errors
    /// SQLite's.
    pub fn timeline(&self, before: u64, limit: u32) -> Result<Vec<TimelineRow>, ManifestError> {
        let failed = self.failed("read");
        let sql = "SELECT r.id, r.writer, r.last_entry_at, r.last_entry, r.outcome, r.reason, coalesce(r.gone, 0), coalesce(r.changed, 0), r.fact, r.first_entry, s.sequence, s.fact
                     FROM (SELECT id, first_entry FROM run WHERE first_entry < ?1 ORDER BY first_entry DESC LIMIT ?2) page
                     JOIN run r ON r.id = page.id LEFT JOIN snapshot s ON s.id = r.id ORDER BY page.first_entry DESC";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let rows = query.query_map(params![signed(before), limit], |row| {
            let id: RunId = converted(0, row.get::<_, String>(0)?.parse())?;
            let snapshot = match row.get::<_, Option<i64>>(10)? {
                Some(sequence) => Some(SnapshotRow { sequence: unsigned(sequence), id, fact: from_json(row, 11)? }),
                None => None,
            };
            let run = RunRow {
                id,
                writer: converted(1, row.get::<_, String>(1)?.parse())?,
                last_entry_at: converted(2, row.get::<_, String>(2)?.parse())?,
                last_entry: unsigned(row.get(3)?),
                outcome: row.get(4)?,
                reason: row.get(5)?,
                withheld: (unsigned(row.get(6)?), unsigned(row.get(7)?)),
                started: from_json(row, 8)?,
            };
            Ok(TimelineRow { first_entry: unsigned(row.get(9)?), run, snapshot })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// The snapshot `id`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn snapshot(&self, id: RunId) -> Result<Option<SnapshotRow>, ManifestError> {
        let sql = "SELECT sequence, id, fact FROM snapshot WHERE id = ?1";
        self.connection.query_row(sql, [id.to_string()], snapshot_row).optional().map_err(self.failed("read"))
    }

    /// The snapshot before the one that log entry `sequence` commits: its entry and its files.
    ///
    /// # Errors
    /// SQLite's.
    pub fn size_before(&self, sequence: u64) -> Result<Option<SizeAt>, ManifestError> {
        let sql = "SELECT sequence, taken_at, files, bytes FROM snapshot WHERE sequence < ?1 ORDER BY sequence DESC LIMIT 1";
        self.connection.query_row(sql, [signed(sequence)], size_at).optional().map_err(self.failed("read"))
    }

    /// How large each snapshot was, oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn sizes(&self) -> Result<Vec<SizeAt>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT sequence, taken_at, files, bytes FROM snapshot ORDER BY sequence").map_err(&failed)?;
        query.query_map([], size_at).and_then(Iterator::collect).map_err(&failed)
    }

    /// How the snapshot of log entry `to` differs from that of `from`, by what ended in between: what came is what the totals do not explain otherwise.
    ///
    /// # Errors
    /// SQLite's.
    pub fn changes_between(&self, from: u64, to: u64) -> Result<Changes, ManifestError> {
        // What ended is in an index; each is followed by what stands there later, in the order of the key.
        let sql = "SELECT count(*), coalesce(sum(later IS NULL), 0), coalesce(sum(later <> sha256), 0) FROM (
                     SELECT v.sha256, (SELECT w.sha256 FROM version w WHERE w.folder = v.folder AND w.name = v.name AND w.since > v.since AND w.since <= ?2
                                         AND (w.until IS NULL OR w.until > ?2)) AS later
                       FROM version v WHERE v.until > ?1 AND v.until <= ?2 AND v.since <= ?1 LIMIT ?3)";
        let row = self.connection.prepare_cached(sql).and_then(|mut query| {
            query.query_row(params![signed(from), signed(to), signed(CHANGES_COUNTED_MAX)], |row| {
                let count = unsigned(row.get(0)?);
                Ok(Changes { went: unsigned(row.get(1)?), changed: unsigned(row.get(2)?), is_cut: count == CHANGES_COUNTED_MAX })
            })
        });
        row.map_err(self.failed("read"))
    }

    /// Files of one folder in the snapshot of log entry `sequence`, by name: at most `limit`, after passing over `skip`. With `gone` also what stood there before.
    /// Empty where nothing of the folder was ever stored.
    ///
    /// # Errors
    /// SQLite's.
    pub fn files_in(&self, sequence: u64, root: &Root, folder: &str, gone: bool, skip: u64, limit: u32) -> Result<Vec<ListedFile>, ManifestError> {
        let failed = self.failed("read");
        let past = "v.until <= ?1 AND v.until > v.since AND NOT EXISTS (SELECT 1 FROM version w WHERE w.folder = v.folder AND w.name = v.name
                     AND w.since > v.since AND w.since <= ?1 AND (w.until IS NULL OR w.until > w.since))";
        let which = if gone { format!("v.since <= ?1 AND ({STANDS} OR {past})") } else { STANDS.to_owned() };
        let sql = format!(
            "SELECT {FILE_COLUMNS}, v.until IS NULL OR v.until > ?1, v.until IS NULL FROM version v
              WHERE v.folder = (SELECT id FROM folder WHERE external = ?2 AND path = ?3) AND {which} ORDER BY v.name LIMIT ?4 OFFSET ?5"
        );
        let mut query = self.connection.prepare_cached(&sql).map_err(&failed)?;
        let rows = query.query_map(params![signed(sequence), root.name_in_manifest(), folder, limit, signed(skip)], |row| {
            Ok(ListedFile { file: file_row(row, root, folder)?, stands: row.get(8)?, stands_now: row.get(9)? })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// Shows every version that ever stood, those of a folder one after another, by the folders' numbers.
    ///
    /// # Errors
    /// SQLite's, or what `show` returns.
    pub(super) fn each_version<E: From<ManifestError>>(&self, mut show: impl FnMut(Version) -> Result<(), E>) -> Result<(), E> {
        let failed = self.failed("read");
        // In the order in which the rows lie. What is followed by another version of its path is known when that one comes.
        let sql = "SELECT folder, name, since, until, size, damaged IS NOT NULL FROM version WHERE until IS NULL OR until > since ORDER BY folder, name, since";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        let (mut last, mut last_name): (Option<Version>, Vec<u8>) = (None, Vec::new());
        while let Some(row) = rows.next().map_err(&failed)? {
            let version = (|| {
                let (since, size_bytes) = (unsigned(row.get(2)?), unsigned(row.get(4)?));
                let until = row.get::<_, Option<i64>>(3)?.map(unsigned);
                Ok(Version { folder: row.get(0)?, since, until, next: None, size_bytes, is_damaged: row.get(5)? })
            })();
            let version = version.map_err(&failed)?;
            let name = row.get_ref(1).and_then(|name| name.as_bytes().map_err(rusqlite::Error::from)).map_err(&failed)?;
            if let Some(mut before) = last.take() {
                if before.folder == version.folder && last_name == name {
                    before.next = Some(version.since);
                }
                show(before)?;
            }
            last_name.clear();
            last_name.extend_from_slice(name);
            last = Some(version);
        }
        last.map_or(Ok(()), show)
    }

    /// Shows each folder by its number: that, its root's name, its path.
    ///
    /// # Errors
    /// SQLite's, or what `show` returns.
    pub(super) fn each_folder<E: From<ManifestError>>(&self, mut show: impl FnMut(i64, &str, &str) -> Result<(), E>) -> Result<(), E> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT id, external, path FROM folder ORDER BY id").map_err(&failed)?;
        let mut rows = query.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let text = |column| row.get_ref(column).and_then(|value| value.as_str().map_err(rusqlite::Error::from));
            let (id, root, path) = (|| Ok((row.get(0)?, text(1)?, text(2)?)))().map_err(&failed)?;
            show(id, root, path)?;
        }
        Ok(())
    }

    /// How many objects are known to be missing or damaged, and the last log entry that said so of one: with either, what is marked as damaged has changed.
    ///
    /// # Errors
    /// SQLite's.
    pub fn damage_state(&self) -> Result<(u64, u64), ManifestError> {
        let sql = "SELECT count(*), coalesce(max(since), 0) FROM damage";
        self.connection.query_row(sql, [], |row| Ok((unsigned(row.get(0)?), unsigned(row.get(1)?)))).map_err(self.failed("read"))
    }
}

fn size_at(row: &rusqlite::Row<'_>) -> rusqlite::Result<SizeAt> {
    Ok(SizeAt {
        sequence: unsigned(row.get(0)?),
        taken_at: converted(1, row.get::<_, String>(1)?.parse())?,
        files: unsigned(row.get(2)?),
        bytes: unsigned(row.get(3)?),
    })
}

impl Manifest {
    /// From now on all questions see one state, until this is dropped. Not to be kept: the writer's journal grows meanwhile.
    ///
    /// # Errors
    /// SQLite's.
    pub fn hold_still(&self) -> Result<(), ManifestError> {
        // The first question after this fixes the state.
        let fixed =
            self.connection.execute_batch("BEGIN").and_then(|()| self.connection.query_row("SELECT last_sequence FROM manifest_metadata", [], |_| Ok(())));
        fixed.map_err(self.failed("read"))
    }

    /// The first objects that are known to be missing or damaged: key and problem; and how many there are.
    ///
    /// # Errors
    /// SQLite's.
    pub fn first_damaged(&self, limit: u32) -> Result<(Vec<(String, String)>, u64), ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT key, problem FROM damage ORDER BY key LIMIT ?1").map_err(&failed)?;
        let first = query.query_map([limit], |row| Ok((row.get(0)?, row.get(1)?))).and_then(Iterator::collect).map_err(&failed)?;
        let count = self.connection.query_row("SELECT count(*) FROM damage", [], |row| row.get(0)).map_err(&failed)?;
        Ok((first, unsigned(count)))
    }
}
