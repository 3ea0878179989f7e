//! Applying log entries, one transaction each.

use super::super::log::{Claimed, Damaged, Entry, Fact, Head, Header, Outcome, PathFact, Pruned, Relocated, RunStarted, StoredFact};
use super::question::Verification;
use super::removable::{is_needed, versions_in};
use super::shards::claim_row;
use super::{Manifest, ManifestError, signed};
use crate::library::layout::class_of;
use crate::model::{Class, FilePath, Root};
use rusqlite::{CachedStatement, Connection, OptionalExtension as _, params};
use std::collections::HashMap;

/// Ids of folders met lately; forgotten when there are too many.
#[derive(Debug, Default)]
pub(super) struct FolderCache(HashMap<(Root, String), i64>);

const FOLDERS_CACHED_MAX: usize = 8_192;

/// What was not understood while applying.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Facts of a kind that this program does not know.
    pub unknown_facts: u64,
}

impl Manifest {
    /// Applies the entry after [`Manifest::head`]: all of it, or nothing.
    ///
    /// # Errors
    /// SQLite's, or a fact that contradicts what stands.
    pub fn apply(&mut self, entry: &Entry) -> Result<Applied, ManifestError> {
        self.apply_parts(&entry.header, &entry.facts, &entry.head())
    }

    /// Applies facts that were committed as the entry `head`, with this header.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn apply_parts(&mut self, header: &Header, facts: &[Fact], head: &Head) -> Result<Applied, ManifestError> {
        let failed = self.failed("write");
        let before = self.totals;
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(&failed)?;
        let applied = self.apply_in_transaction(header, facts, head);
        let result = match applied {
            Ok(applied) => self.connection.execute_batch("COMMIT").map(|()| applied).map_err(&failed),
            Err(error) => Err(error),
        };
        if result.is_err() {
            // The transaction ends here or with the connection; either way nothing of it stays.
            drop(self.connection.execute_batch("ROLLBACK"));
            self.totals = before;
            self.folders.0.clear();
        } else {
            self.head = *head;
        }
        result
    }

    fn apply_in_transaction(&mut self, header: &Header, facts: &[Fact], head: &Head) -> Result<Applied, ManifestError> {
        let mut applied = Applied::default();
        self.beat(header).map_err(self.failed("write"))?;
        for fact in facts {
            if *fact == Fact::Unknown {
                applied.unknown_facts += 1;
            }
            self.apply_fact(header, fact).map_err(|error| match error {
                // A CHECK that fails means that the log is wrong, not the disk.
                rusqlite::Error::SqliteFailure(e, what) if e.code == rusqlite::ErrorCode::ConstraintViolation => {
                    ManifestError::Contradiction { sequence: header.sequence, what: what.unwrap_or_else(|| e.to_string()) }
                }
                error => self.failed("write")(error),
            })?;
        }
        let totals = serde_json::to_string(&self.totals).unwrap_or_default();
        self.connection
            .prepare_cached("UPDATE manifest_metadata SET last_sequence = ?1, last_sha256 = ?2, totals = ?3, last_epoch = ?4")
            .and_then(|mut update| update.execute(params![signed(head.sequence), head.sha256.0, totals, head.epoch]))
            .map_err(self.failed("write"))?;
        Ok(applied)
    }

    /// Every entry of a run is its heartbeat.
    fn beat(&self, header: &Header) -> rusqlite::Result<()> {
        let Some(run) = header.run else { return Ok(()) };
        let (run, at) = (run.to_string(), header.written_at.to_string());
        self.connection.prepare_cached("UPDATE run SET last_entry = ?2, last_entry_at = ?3 WHERE id = ?1")?.execute(params![
            run,
            signed(header.sequence),
            at
        ])?;
        self.connection.prepare_cached("UPDATE shard SET last_entry_at = ?3 WHERE run = ?1 AND writer = ?2")?.execute(params![
            run,
            header.writer.to_string(),
            at
        ])?;
        Ok(())
    }

    fn apply_fact(&mut self, header: &Header, fact: &Fact) -> rusqlite::Result<()> {
        let sequence = signed(header.sequence);
        match fact {
            Fact::Stored(stored) => self.store(sequence, stored),
            Fact::Archived(archived) => self.archive(sequence, archived),
            Fact::RunStarted(started) => {
                let Some(run) = header.run else { return Ok(()) };
                let id = run.to_string();
                // A shard of a run that others have begun, or that was started again: what it ended with is past, unless the run itself is over.
                let again = "UPDATE run SET
                    outcome = CASE WHEN outcome IN ('failed', 'interrupted') THEN NULL ELSE outcome END,
                    reason = CASE WHEN outcome IS NULL OR outcome IN ('failed', 'interrupted') THEN NULL ELSE reason END
                  WHERE id = ?1";
                if self.connection.execute(again, [&id])? > 0 {
                    return self.begin_shard(header, started);
                }
                // Whoever begins has made sure that no other run is alive. One of shards could be taken up again after it had failed: not any more.
                self.connection.execute(
                    "UPDATE run SET outcome = 'died' WHERE outcome IS NULL OR (outcome IN ('failed', 'interrupted') AND json_extract(fact, '$.shard') IS NOT NULL)",
                    [],
                )?;
                self.connection.execute_batch("DELETE FROM shard; DELETE FROM claim; DELETE FROM remainder;")?;
                self.connection.execute(
                    "INSERT INTO run(id, writer, first_entry, last_entry, started_at, last_entry_at, fact) VALUES (?1, ?2, ?3, ?3, ?4, ?5, ?6)",
                    params![id, header.writer.to_string(), sequence, started.at.to_string(), header.written_at.to_string(), json(started)],
                )?;
                self.begin_shard(header, started)
            }
            Fact::Snapshot(snapshot) => {
                let Some(run) = header.run else { return Ok(()) };
                if self.is_replaced(&run.to_string())? {
                    return Ok(());
                }
                let all = snapshot.totals.all();
                // The first snapshot of a run counts.
                let added = self.connection.execute(
                    "INSERT OR IGNORE INTO snapshot(sequence, id, taken_at, label, files, bytes, fact) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                    params![sequence, run.to_string(), snapshot.taken_at.to_string(), snapshot.label, signed(all.files), signed(all.bytes), json(snapshot)],
                )?;
                if added > 0 {
                    self.connection.execute(
                        "UPDATE manifest_metadata SET last_backup = ?1, immich_version = coalesce(?2, immich_version)",
                        params![snapshot.taken_at.to_string(), snapshot.immich_version],
                    )?;
                    self.connection.execute("UPDATE run SET outcome = 'snapshot', reason = NULL WHERE id = ?1", [run.to_string()])?;
                    if self.newest_run()?.is_none() {
                        self.connection.execute_batch("DELETE FROM shard; DELETE FROM claim; DELETE FROM remainder;")?;
                    }
                }
                Ok(())
            }
            Fact::RunEnded(ended) => {
                let Some(run) = header.run else { return Ok(()) };
                if let Some(shard) = ended.shard {
                    // The run goes on without it. Why it ended is of interest should nobody start it again.
                    let reason = ended.reason.as_ref().map(|reason| format!("shard {} of {}: {reason}", shard.part, shard.of));
                    self.connection.execute("UPDATE run SET reason = ?2 WHERE id = ?1 AND outcome IS NULL", params![run.to_string(), reason])?;
                    return Ok(());
                }
                let outcome = match ended.outcome {
                    Outcome::Interrupted => "interrupted",
                    Outcome::Withheld => "withheld",
                    Outcome::Failed => "failed",
                };
                self.connection.execute(
                    "UPDATE run SET outcome = ?2, reason = ?3, gone = ?4, changed = ?5 WHERE id = ?1 AND outcome IS NULL",
                    params![run.to_string(), outcome, ended.reason, ended.gone.map(signed), ended.changed.map(signed)],
                )?;
                Ok(())
            }
            Fact::Manifest(copy) => {
                self.connection.execute(
                    "INSERT OR REPLACE INTO manifest_copy(key, sequence, sha256, rows) VALUES (?1, ?2, ?3, ?4)",
                    params![copy.key, signed(copy.sequence), copy.sha256.0, signed(copy.rows)],
                )?;
                Ok(())
            }
            Fact::Dump(dump) => {
                self.connection.execute(
                    "INSERT OR REPLACE INTO dump(key, sequence, taken_at, run, fact) VALUES (?1, ?2, ?3, ?4, ?5)",
                    params![dump.key, sequence, dump.taken_at.to_string(), header.run.map(|run| run.to_string()), json(dump)],
                )?;
                Ok(())
            }
            Fact::Doubtful(doubtful) => self.doubt(sequence, doubtful),
            Fact::Drilled(drilled) => {
                self.connection.execute(
                    "INSERT OR REPLACE INTO drill(sequence, at, fact) VALUES (?1, ?2, ?3)",
                    params![sequence, drilled.at.to_string(), json(drilled)],
                )?;
                Ok(())
            }
            Fact::Pruned(pruned) => self.prune(sequence, pruned),
            Fact::Listed(listed) => {
                let look = Verification { at: listed.at, parts: 1, part: 0, covers: listed.sequence, objects: listed.objects, damaged: listed.damaged };
                self.verified(sequence, "listed", &look)
            }
            Fact::Read(read) => {
                let (parts, part) = (read.sample.of, read.sample.part);
                self.verified(sequence, "read", &Verification { at: read.at, parts, part, covers: read.sequence, objects: read.objects, damaged: read.damaged })
            }
            Fact::Damaged(damaged) => self.damage(sequence, damaged),
            Fact::Sound(sound) => {
                self.connection.execute("DELETE FROM damage WHERE key = ?1", [&sound.key])?;
                self.mark(&sound.key, None)
            }
            Fact::Epoch(epoch) => {
                // Only the first entry of an epoch can open it.
                self.connection.execute(
                    "INSERT OR IGNORE INTO epoch(number, sequence, writer, fact) SELECT ?1, ?2, ?3, ?4 WHERE ?1 > 0",
                    params![header.epoch, sequence, header.writer.to_string(), json(epoch)],
                )?;
                Ok(())
            }
            Fact::Relocated(relocated) => self.relocate(relocated),
            Fact::Claimed(claimed) => self.claim(header, claimed),
            Fact::Left(left) => {
                let Some(run) = header.run else { return Ok(()) };
                let file = left.file();
                self.connection.prepare_cached("INSERT OR IGNORE INTO remainder(run, external, path) VALUES (?1, ?2, ?3)")?.execute(params![
                    run.to_string(),
                    file.root.name_in_manifest(),
                    file.path.as_str()
                ])?;
                Ok(())
            }
            Fact::ShardDone(done) => {
                let Some(run) = header.run else { return Ok(()) };
                self.connection
                    .execute("UPDATE shard SET fact = ?3 WHERE run = ?1 AND part = ?2", params![run.to_string(), signed(done.shard.part), json(done)])?;
                Ok(())
            }
            Fact::Unknown => Ok(()),
        }
    }

    fn begin_shard(&self, header: &Header, started: &RunStarted) -> rusqlite::Result<()> {
        let (Some(run), Some(shard)) = (header.run, started.shard) else { return Ok(()) };
        self.connection.execute(
            "INSERT INTO shard(run, part, writer, last_entry_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (run, part) DO UPDATE SET writer = excluded.writer, last_entry_at = excluded.last_entry_at",
            params![run.to_string(), signed(shard.part), header.writer.to_string(), header.written_at.to_string()],
        )?;
        Ok(())
    }

    /// Whether this is a run of shards that another run has replaced: what its shards have left was forgotten, so it can have no snapshot any more.
    fn is_replaced(&self, run: &str) -> rusqlite::Result<bool> {
        let sql = "SELECT outcome IS 'died' AND json_extract(fact, '$.shard') IS NOT NULL FROM run WHERE id = ?1";
        Ok(self.connection.query_row(sql, [run], |row| row.get(0)).optional()?.unwrap_or(false))
    }

    /// The first shard that claims something has it.
    fn claim(&self, header: &Header, claimed: &Claimed) -> rusqlite::Result<()> {
        if header.run.map(|run| run.to_string()) != self.newest_run()? {
            // Of a run that is over.
            return Ok(());
        }
        let file = claimed.file();
        let (kind, value) = claim_row(claimed.what);
        self.connection.prepare_cached("INSERT OR IGNORE INTO claim(kind, value, part, external, path) VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            kind,
            value,
            signed(claimed.shard.part),
            file.root.name_in_manifest(),
            file.path.as_str()
        ])?;
        Ok(())
    }

    fn newest_run(&self) -> rusqlite::Result<Option<String>> {
        self.connection.prepare_cached("SELECT id FROM run WHERE outcome IS NULL ORDER BY first_entry DESC LIMIT 1")?.query_row([], |row| row.get(0)).optional()
    }

    fn verified(&self, sequence: i64, kind: &str, look: &Verification) -> rusqlite::Result<()> {
        // Nobody can have looked at what came after: a fact that says so is not believed.
        let covers = signed(look.covers).min(sequence);
        self.connection.execute(
            "INSERT OR REPLACE INTO verification(sequence, kind, at, parts, part, covers, objects, damaged) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![sequence, kind, look.at.to_string(), signed(look.parts), signed(look.part), covers, signed(look.objects), signed(look.damaged)],
        )?;
        Ok(())
    }

    fn damage(&self, sequence: i64, damaged: &Damaged) -> rusqlite::Result<()> {
        self.connection.execute("INSERT OR REPLACE INTO damage(key, since, problem) VALUES (?1, ?2, ?3)", params![damaged.key, sequence, damaged.problem])?;
        self.mark(&damaged.key, Some(sequence))
    }

    /// All that lay in one object lies in another from now on. What was said of the first stays said: nobody takes it up.
    fn relocate(&mut self, relocated: &Relocated) -> rusqlite::Result<()> {
        let same = "sha256 = ?2 AND size = ?3";
        let content = (relocated.sha256.0, signed(relocated.size));
        self.connection.execute(
            &format!("UPDATE version SET key = ?4, damaged = NULL WHERE key = ?1 AND {same}"),
            params![relocated.key, content.0, content.1, relocated.to],
        )?;
        let Some(file) = file_at_home(&relocated.key) else { return Ok(()) };
        let (folder, name) = file.path.split();
        self.connection.execute(
            &format!(
                "UPDATE version SET key = ?4, damaged = NULL
                  WHERE key IS NULL AND name = ?6 AND folder = (SELECT id FROM folder WHERE external = ?1 AND path = ?5) AND {same}"
            ),
            params![file.root.name_in_manifest(), content.0, content.1, relocated.to, folder, name],
        )?;
        Ok(())
    }

    /// Marks every version whose content lies in the object `key`.
    fn mark(&self, key: &str, damaged: Option<i64>) -> rusqlite::Result<()> {
        self.connection.execute("UPDATE version SET damaged = ?2 WHERE key = ?1", params![key, damaged])?;
        let Some(file) = file_at_home(key) else { return Ok(()) };
        let (folder, name) = file.path.split();
        self.connection.execute(
            "UPDATE version SET damaged = ?4 WHERE key IS NULL AND name = ?3 AND folder = (SELECT id FROM folder WHERE external = ?1 AND path = ?2)",
            params![file.root.name_in_manifest(), folder, name, damaged],
        )?;
        Ok(())
    }

    fn folder_id(&mut self, root: &Root, path: &str) -> rusqlite::Result<i64> {
        let key = (root.clone(), path.to_owned());
        if let Some(id) = self.folders.0.get(&key) {
            return Ok(*id);
        }
        let found = folder_id(&self.connection, root, path)?;
        let id = match found {
            Some(id) => id,
            None => {
                self.connection.prepare_cached("INSERT INTO folder(external, path) VALUES (?1, ?2)")?.execute(params![root.name_in_manifest(), path])?;
                self.connection.last_insert_rowid()
            }
        };
        if self.folders.0.len() >= FOLDERS_CACHED_MAX {
            self.folders.0.clear();
        }
        self.folders.0.insert(key, id);
        Ok(id)
    }

    fn store(&mut self, sequence: i64, stored: &StoredFact) -> rusqlite::Result<()> {
        let file = stored.file();
        let (folder, name) = file.path.split();
        let folder = self.folder_id(&file.root, folder)?;
        let class = class_of(&file);
        let previous = Standing::find(&self.connection, folder, name)?;
        if let Some(previous) = &previous {
            if previous.is_same(stored) {
                // Nothing that a restore brings back differs: the row stays, with the new time.
                self.connection.prepare_cached("UPDATE version SET ctime_ns = ?4 WHERE folder = ?1 AND name = ?2 AND since = ?3")?.execute(params![
                    folder,
                    name,
                    previous.since,
                    stored.ctime_ns
                ])?;
                return Ok(());
            }
            self.end(folder, name, previous.since, sequence)?;
            self.totals.of_mut(class).remove(previous.size);
        }
        self.totals.of_mut(class).add(stored.size);
        self.insert(folder, name, (sequence, None), stored)
    }

    /// Content that never stands: a version without length.
    fn doubt(&mut self, sequence: i64, stored: &StoredFact) -> rusqlite::Result<()> {
        let file = stored.file();
        let (folder, name) = file.path.split();
        let folder = self.folder_id(&file.root, folder)?;
        let known = self
            .connection
            .prepare_cached("SELECT EXISTS (SELECT 1 FROM version WHERE folder = ?1 AND name = ?2 AND sha256 = ?3)")?
            .query_row(params![folder, name, stored.sha256.0], |row| row.get::<_, bool>(0))?;
        if known { Ok(()) } else { self.insert(folder, name, (sequence, Some(sequence)), stored) }
    }

    fn insert(&self, folder: i64, name: &str, (since, until): (i64, Option<i64>), stored: &StoredFact) -> rusqlite::Result<()> {
        let mut insert: CachedStatement<'_> = self.connection.prepare_cached(
            "INSERT INTO version(folder, name, since, sha256, sha1, size, mtime_ns, ctime_ns, mode, key, etag, damaged, until)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, (SELECT since FROM damage WHERE key = ?12), ?13)",
        )?;
        let home = super::super::key::home(&stored.file()).map(|key| key.to_string());
        insert.execute(params![
            folder,
            name,
            since,
            stored.sha256.0,
            stored.sha1.0,
            signed(stored.size),
            stored.mtime_ns,
            stored.ctime_ns,
            stored.mode,
            stored.key,
            stored.etag,
            stored.key.as_ref().or(home.as_ref()),
            until,
        ])?;
        Ok(())
    }

    fn prune(&self, sequence: i64, pruned: &Pruned) -> rusqlite::Result<()> {
        if let Some(up_to) = pruned.removed_up_to {
            // Nobody can have removed what is given up later: a fact that says so is not believed.
            self.connection.execute("DELETE FROM pruned WHERE sequence <= ?1", [signed(up_to).min(sequence - 1)])?;
        }
        pruned.keys.iter().try_for_each(|key| self.forget(sequence, key))
    }

    /// Forgets what lies in the object `key`, but for dumps: that they were there stays known. Only what Immich can make again and what stands no more
    /// is ever forgotten, whatever the log says.
    fn forget(&self, sequence: i64, key: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached("INSERT OR REPLACE INTO pruned(key, sequence) VALUES (?1, ?2)")?.execute(params![key, sequence])?;
        self.connection.prepare_cached("UPDATE dump SET pruned = ?2 WHERE key = ?1")?.execute(params![key, sequence])?;
        self.connection.prepare_cached("DELETE FROM manifest_copy WHERE key = ?1")?.execute([key])?;
        let mut delete = self.connection.prepare_cached("DELETE FROM version WHERE folder = ?1 AND name = ?2 AND since = ?3")?;
        let mut page = versions_in(&self.connection, key, None)?;
        while let Some(last) = page.last() {
            for version in page.iter().filter(|version| !version.stands && class_of(&version.file) == Class::Derived) {
                delete.execute(params![version.folder, version.file.path.split().1, version.since])?;
            }
            page = versions_in(&self.connection, key, Some(last))?;
        }
        if !is_needed(&self.connection, key)? {
            self.connection.prepare_cached("DELETE FROM damage WHERE key = ?1")?.execute([key])?;
        }
        Ok(())
    }

    fn archive(&mut self, sequence: i64, archived: &PathFact) -> rusqlite::Result<()> {
        let file = archived.file();
        let (folder, name) = file.path.split();
        let Some(folder) = folder_id(&self.connection, &file.root, folder)? else { return Ok(()) };
        if let Some(previous) = Standing::find(&self.connection, folder, name)? {
            self.end(folder, name, previous.since, sequence)?;
            self.totals.of_mut(class_of(&file)).remove(previous.size);
        }
        Ok(())
    }

    /// Ends the version that stands. One that began in the same entry was never part of a snapshot.
    fn end(&self, folder: i64, name: &str, since: i64, sequence: i64) -> rusqlite::Result<()> {
        let sql = if since == sequence {
            "DELETE FROM version WHERE folder = ?1 AND name = ?2 AND since = ?3 AND ?4 > 0"
        } else {
            "UPDATE version SET until = ?4 WHERE folder = ?1 AND name = ?2 AND since = ?3"
        };
        self.connection.prepare_cached(sql)?.execute(params![folder, name, since, sequence])?;
        Ok(())
    }
}

/// The version of a path that stands now.
struct Standing {
    since: i64,
    size: u64,
    sha256: [u8; 32],
    mtime_ns: i64,
    mode: u32,
    key: Option<String>,
}

impl Standing {
    fn find(connection: &Connection, folder: i64, name: &str) -> rusqlite::Result<Option<Self>> {
        connection
            .prepare_cached("SELECT since, size, sha256, mtime_ns, mode, key FROM version WHERE folder = ?1 AND name = ?2 AND until IS NULL")?
            .query_row(params![folder, name], |row| {
                Ok(Self {
                    since: row.get(0)?,
                    size: super::unsigned(row.get(1)?),
                    sha256: row.get(2)?,
                    mtime_ns: row.get(3)?,
                    mode: row.get(4)?,
                    key: row.get(5)?,
                })
            })
            .optional()
    }

    fn is_same(&self, stored: &StoredFact) -> bool {
        self.sha256 == stored.sha256.0 && self.mtime_ns == stored.mtime_ns && self.mode == stored.mode && self.key == stored.key
    }
}

pub(super) fn folder_id(connection: &Connection, root: &Root, path: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached("SELECT id FROM folder WHERE external = ?1 AND path = ?2")?
        .query_row(params![root.name_in_manifest(), path], |row| row.get(0))
        .optional()
}

/// The file whose home the object `key` is.
pub(super) fn file_at_home(key: &str) -> Option<FilePath> {
    let (root, path) = match key.split_once('/')? {
        ("library", path) => (Root::Library, path),
        ("external", rest) => {
            let (name, path) = rest.split_once('/')?;
            (Root::External(name.parse().ok()?), path)
        }
        ("config", path) => (Root::Config, path),
        ("postgres", path) => (Root::Postgres, path),
        _ => return None,
    };
    Some(FilePath { root, path: crate::model::RootPath::parse(path).ok()? })
}

fn json<T: serde::Serialize>(fact: &T) -> String {
    serde_json::to_string(fact).unwrap_or_default()
}
