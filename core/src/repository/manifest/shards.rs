//! What the manifest knows of a run in shards, and of what the shards of a dead one were about to store.

use super::super::log::{DumpFact, ShardDone, Subject};
use super::lookup::Lookup;
use super::question::{RunRow, converted, from_json};
use super::{Manifest, ManifestError, page_rows, signed, unsigned};
use crate::model::{FilePath, Root, RootPath, RunId};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, Row, params};

/// The columns `kind` and `value` of a claim.
pub(super) fn claim_row(claim: Subject) -> (i64, i64) {
    match claim {
        Subject::Content(start) => (0, start.0.cast_signed()),
        Subject::Size(bytes) => (1, bytes.cast_signed()),
    }
}

fn file_of(row: &Row<'_>, external: usize, path: usize) -> rusqlite::Result<FilePath> {
    // What a copy of the manifest says is no more to be trusted than the log: parse, never assume.
    let root = converted(external, Root::from_name_in_manifest(&row.get::<_, String>(external)?))?;
    Ok(FilePath { root, path: converted(path, RootPath::parse(&row.get::<_, String>(path)?))? })
}

impl Manifest {
    /// The run `id`, if it has begun.
    ///
    /// # Errors
    /// SQLite's.
    pub fn run(&self, id: RunId) -> Result<Option<RunRow>, ManifestError> {
        Ok(self.runs_where("id = ?1", [id.to_string()])?.pop())
    }

    /// The newest dump that the run `id` has taken.
    ///
    /// # Errors
    /// SQLite's.
    pub fn dump_of_run(&self, id: RunId) -> Result<Option<DumpFact>, ManifestError> {
        let sql = "SELECT fact FROM dump WHERE run = ?1 AND pruned IS NULL ORDER BY sequence DESC LIMIT 1";
        self.connection.query_row(sql, [id.to_string()], |row| from_json(row, 0)).optional().map_err(self.failed("read"))
    }

    /// What the shards of the run `id` did that are done, in their order.
    ///
    /// # Errors
    /// SQLite's.
    pub fn shards_done(&self, id: RunId) -> Result<Vec<ShardDone>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT fact FROM shard WHERE run = ?1 AND fact IS NOT NULL ORDER BY part").map_err(&failed)?;
        let rows = query.query_map([id.to_string()], |row| from_json(row, 0));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// When this shard of the run `id` last wrote to the log, by its own clock; `None` where it has not begun.
    ///
    /// # Errors
    /// SQLite's.
    pub fn shard_seen_at(&self, id: RunId, part: u64) -> Result<Option<Timestamp>, ManifestError> {
        let sql = "SELECT last_entry_at FROM shard WHERE run = ?1 AND part = ?2";
        let row = |row: &Row<'_>| converted(0, row.get::<_, String>(0)?.parse());
        self.connection.query_row(sql, params![id.to_string(), signed(part)], row).optional().map_err(self.failed("read"))
    }

    /// The next paths after `after` that the shards of the run `id` have left to the one that ends it; empty at the end.
    ///
    /// # Errors
    /// SQLite's.
    pub fn remainder_page(&self, id: RunId, after: Option<&FilePath>) -> Result<Vec<FilePath>, ManifestError> {
        let failed = self.failed("read");
        let (external, path) = after.map_or(("", ""), |after| (after.root.name_in_manifest(), after.path.as_str()));
        let sql = "SELECT external, path FROM remainder WHERE run = ?1 AND (external, path) > (?2, ?3) ORDER BY external, path LIMIT ?4";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let rows = query.query_map(params![id.to_string(), external, path, page_rows()], |row| file_of(row, 0, 1));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// Which shard of the newest run claimed this first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn claimed_by(&self, claim: Subject) -> Result<Option<u64>, ManifestError> {
        let mut query = self.connection.prepare_cached("SELECT part FROM claim WHERE kind = ?1 AND value = ?2").map_err(self.failed("read"))?;
        query.query_row(claim_row(claim), |row| row.get(0).map(unsigned)).optional().map_err(self.failed("read"))
    }

    /// Whether the newest run is one of shards that have claimed something.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_claims(&self) -> Result<bool, ManifestError> {
        self.connection.query_row("SELECT EXISTS (SELECT 1 FROM claim)", [], |row| row.get(0)).map_err(self.failed("read"))
    }
}

impl Lookup {
    /// The path for which a shard of the newest run claimed this: its object may be there though no fact says so.
    ///
    /// # Errors
    /// SQLite's.
    pub fn claimed_for(&self, claim: Subject) -> Result<Option<FilePath>, ManifestError> {
        let (kind, value) = claim_row(claim);
        self.ask(|connection| {
            let mut query = connection.prepare_cached("SELECT external, path FROM claim WHERE kind = ?1 AND value = ?2")?;
            query.query_row([kind, value], |row| file_of(row, 0, 1)).optional()
        })
    }
}
