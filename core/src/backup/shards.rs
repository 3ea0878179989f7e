//! One run by several processes: each takes the folders that fall into its part, and the log is all that they share. Shard 0 dumps the database before
//! any of them walks; whoever sees in the log that all are done makes the snapshot.

use super::database::Kept;
use super::stopped::Gathered;
use super::turn::LOOK_EVERY;
use super::{BackupError, Database, Ending, Item, Run};
use crate::budget::{CHECKPOINT_FILES_MAX, CHECKPOINT_INTERVAL, DEAD_AFTER};
use crate::crash::crash_point;
use crate::event::Event;
use crate::library::read::look;
use crate::listing::list_dump;
use crate::model::{FilePath, Part, Root, RunId};
use crate::repository::log::{DumpFact, Fact, PathFact, ShardDone};
use crate::repository::manifest::{Lookup, Manifest, Unseen};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a shard knows of the database before it walks.
enum Dumped {
    /// None was asked for.
    None,
    Kept(Box<Kept>),
    Interrupted,
}

/// How the run ended, if it is over: another shard has done the rest.
pub(super) fn how_it_ended(manifest: &Manifest, run: RunId) -> Result<Option<Ending>, BackupError> {
    let Some(row) = manifest.run(run)? else { return Ok(None) };
    match row.outcome.as_deref() {
        Some("snapshot") => Ok(Some(Ending::Shard { waiting_for: Vec::new() })),
        Some("withheld") => Ok(Some(Ending::Withheld { reason: row.reason.unwrap_or_default() })),
        Some("died") => Err(BackupError::RunIsOver { run: run.to_string() }),
        _ => Ok(None),
    }
}

impl Run<'_> {
    /// Does this shard's part; and the rest of the run, should it be the last.
    pub(super) async fn work_on_shard(&mut self, shard: Part) -> Result<Ending, BackupError> {
        if let Some(ending) = how_it_ended(&self.session.manifest, self.id)? {
            return Ok(ending);
        }
        // Others may have begun at the same time.
        self.check_shards(shard)?;
        let dump = match Box::pin(self.dump_of_shards(shard)).await? {
            Dumped::Interrupted => return self.interrupted().await,
            Dumped::None => None,
            Dumped::Kept(dump) => Some(*dump),
        };
        if let Some(dump) = &dump {
            self.check_scope(&dump.names)?;
            self.inventory = Some(Arc::clone(&dump.names.inventory));
            self.assets = Some(dump.names.assets);
        }
        let is_done = |done: &ShardDone| done.shard == shard;
        if self.session.manifest.shards_done(self.id)?.iter().any(is_done) {
            if let Some(ending) = self.wait_for_end(shard).await? {
                return Ok(ending);
            }
        } else {
            let unseen = self.store_all(self.plan.rehash, None).await?;
            if self.stop.is_cancelled() {
                return self.interrupted().await;
            }
            let unseen = self.look_again(unseen).await?;
            if self.stop.is_cancelled() {
                return self.interrupted().await;
            }
            self.leave(&unseen).await?;
            self.say_done(shard).await?;
        }
        if let Some(ending) = how_it_ended(&self.session.manifest, self.id)? {
            return Ok(ending);
        }
        // As of this shard's own entry: only the last one's has all the others before it.
        let waiting_for = self.waiting_for(shard)?;
        if !waiting_for.is_empty() {
            return Ok(Ending::Shard { waiting_for });
        }
        let done = self.session.manifest.shards_done(self.id)?;
        Box::pin(self.end_all(done, dump)).await
    }

    fn waiting_for(&self, shard: Part) -> Result<Vec<u64>, BackupError> {
        let done = self.session.manifest.shards_done(self.id)?;
        Ok((0..shard.of).filter(|part| done.iter().all(|done| done.shard.part != *part)).collect())
    }

    /// This shard was done before it was started again. Whoever was the last ends the run, unless it died at that: then nothing is heard of it.
    async fn wait_for_end(&mut self, shard: Part) -> Result<Option<Ending>, BackupError> {
        let mut told = false;
        loop {
            self.session.refresh(self.monitor.as_ref()).await?;
            if let Some(ending) = how_it_ended(&self.session.manifest, self.id)? {
                return Ok(Some(ending));
            }
            if !self.waiting_for(shard)?.is_empty() || self.plan.take_over {
                return Ok(None);
            }
            let last = self.session.manifest.run(self.id)?.map_or(Timestamp::UNIX_EPOCH, |run| run.last_entry_at);
            if Duration::try_from(Timestamp::now().duration_since(last)).is_ok_and(|silent| silent > DEAD_AFTER) {
                return Ok(None);
            }
            if !told {
                told = true;
                self.monitor.emit(Event::Waiting { what: "all shards are done, and one of them makes the snapshot".to_owned() });
            }
            tokio::select! {
                () = self.stop.cancelled() => return self.interrupted().await.map(Some),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// How the run ended, if it is over by now: another one has begun, or another shard has made the snapshot.
    pub(super) async fn ended_meanwhile(&mut self) -> Result<Option<Ending>, BackupError> {
        if self.plan.shard.is_none() {
            return Ok(None);
        }
        self.session.refresh(self.monitor.as_ref()).await?;
        how_it_ended(&self.session.manifest, self.id)
    }

    /// Two writers of the log are kept apart by conditional writes alone.
    pub(super) async fn check_store_of_shards(&mut self) -> Result<(), BackupError> {
        self.session.begin_writing().await?;
        let store = self.session.store();
        if store.capabilities().conditional_create { Ok(()) } else { Err(BackupError::ShardsNeedConditions { url: store.url().to_owned() }) }
    }

    /// Each shard has to know the same number of them.
    pub(super) fn check_shards(&self, shard: Part) -> Result<(), BackupError> {
        let begun = self.session.manifest.run(self.id)?.map(|run| run.started.shard.map_or(1, |first| first.of));
        match begun {
            Some(of) if of != shard.of => Err(BackupError::OtherShards { run: self.id.to_string(), of, mine: shard.of }),
            _ => Ok(()),
        }
    }

    /// The run's dump: taken by shard 0, and waited for by the others, since files that a dump names have to be walked after it.
    async fn dump_of_shards(&mut self, shard: Part) -> Result<Dumped, BackupError> {
        let Some(database) = &self.plan.database else { return Ok(Dumped::None) };
        let taken = match self.session.manifest.dump_of_run(self.id)? {
            Some(taken) => taken,
            None if shard.part == 0 => {
                let Some(in_hand) = Box::pin(self.take_dump(database)).await? else { return Ok(Dumped::Interrupted) };
                return Ok(Dumped::Kept(Box::new(self.keep(in_hand).await?)));
            }
            None => match self.wait_for_dump().await? {
                Some(taken) => taken,
                None => return Ok(Dumped::Interrupted),
            },
        };
        self.read_back(database, taken).await
    }

    async fn read_back(&mut self, database: &Database, taken: DumpFact) -> Result<Dumped, BackupError> {
        let (store, file, locations) = (Arc::clone(&self.session.repository.store), self.session.state.own_file("inventory.db"), self.locations(database));
        let (monitor, stop) = (Arc::clone(self.monitor), self.stop.clone());
        let listing = async move { list_dump(store, file, taken, locations, monitor.as_ref(), &stop).await };
        match self.alive_while(Box::pin(listing)).await {
            Ok(listing) => Ok(Dumped::Kept(Box::new(Kept::read_back(listing)))),
            Err(_) if self.stop.is_cancelled() => Ok(Dumped::Interrupted),
            Err(error) => Err(error.into()),
        }
    }

    /// `None` where it was asked to stop.
    async fn wait_for_dump(&mut self) -> Result<Option<DumpFact>, BackupError> {
        let (began, mut beat, mut told) = (Timestamp::now(), Instant::now(), false);
        loop {
            self.session.refresh(self.monitor.as_ref()).await?;
            if let Some(taken) = self.session.manifest.dump_of_run(self.id)? {
                return Ok(Some(taken));
            }
            if how_it_ended(&self.session.manifest, self.id)?.is_some() {
                return Err(BackupError::RunIsOver { run: self.id.to_string() });
            }
            // Shard 0 says now and then that it is alive, once it has begun.
            let heard = self.session.manifest.shard_seen_at(self.id, 0)?.map_or(began, |at| at.max(began));
            let silent = Duration::try_from(Timestamp::now().duration_since(heard)).unwrap_or_default();
            let left = self.plan.wait.saturating_sub(silent);
            if left.is_zero() {
                return Err(BackupError::Busy { who: "shard 0 has not dumped the database, and says nothing".to_owned() });
            }
            if !told {
                told = true;
                self.monitor.emit(Event::Waiting { what: "shard 0 is to dump the database before the library is walked".to_owned() });
            }
            if beat.elapsed() > CHECKPOINT_INTERVAL {
                // The run is not dead while one of its shards waits.
                self.commit(&[]).await?;
                beat = Instant::now();
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(LOOK_EVERY.min(left)) => {}
            }
        }
    }

    /// Leaves what was not seen to the one that ends the run: it may have moved to where another shard sees it.
    async fn leave(&mut self, unseen: &Unseen) -> Result<(), BackupError> {
        let mut last = None;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { return Ok(()) };
            last = Some(end.clone());
            let facts: Vec<_> = page.iter().map(|(file, ..)| Fact::Left(PathFact::new(file))).collect();
            self.commit(&facts).await?;
        }
    }

    async fn say_done(&mut self, shard: Part) -> Result<(), BackupError> {
        let facts = |files: &[FilePath]| files.iter().map(PathFact::new).collect();
        let done = ShardDone {
            shard,
            counts: self.counts.clone(),
            seen_of_immich: self.seen_of_immich,
            slipped: self.slipped,
            rehashed: self.rehashed,
            unread: self.unread.clone(),
            bit_rot: facts(&self.bit_rot),
            doubtful: facts(&self.doubtful),
        };
        crash_point!("before a shard is done");
        self.commit(&[Fact::ShardDone(Box::new(done))]).await
    }

    /// All shards are done: what they left is looked at, and from there on it is a run as any.
    async fn end_all(&mut self, done: Vec<ShardDone>, dump: Option<Kept>) -> Result<Ending, BackupError> {
        self.shard = None;
        crash_point!("all shards done, run not ended");
        // What others had on its way when this shard looked is named by now.
        self.unnamed = Arc::default();
        self.take_over(done);
        self.refuse_empty()?;
        let unseen = Unseen::new(&self.session.state.scratch("unseen.db"))?;
        let lookup = Lookup::open(self.session.manifest.path())?;
        let mut found = Vec::new();
        let mut beat = Instant::now();
        let mut last: Option<FilePath> = None;
        loop {
            let page = self.session.manifest.remainder_page(self.id, last.as_ref())?;
            let Some(end) = page.last() else { break };
            last = Some(end.clone());
            if beat.elapsed() > CHECKPOINT_INTERVAL {
                self.commit(&[]).await?;
                beat = Instant::now();
            }
            // Where another run has replaced this one, what was left is forgotten, and looks like the end of it.
            if let Some(ending) = how_it_ended(&self.session.manifest, self.id)? {
                return Ok(ending);
            }
            for file in page {
                self.look_at_left(file, &lookup, &unseen, &mut found)?;
                if found.len() >= CHECKPOINT_FILES_MAX {
                    self.store_found(std::mem::take(&mut found), &unseen).await?;
                }
            }
        }
        self.store_found(found, &unseen).await?;
        let unseen = self.look_again(unseen).await?;
        let started_at = self.session.manifest.run(self.id)?.map_or_else(Timestamp::now, |run| run.started.at);
        let unseen = (!self.stop.is_cancelled()).then_some(unseen);
        self.conclude(started_at, Gathered { dump, unseen, held_still: false, stage: None }).await
    }

    /// What of one path is to be done. A new one that is gone may have moved to where the walk has been.
    fn look_at_left(&mut self, file: FilePath, lookup: &Lookup, unseen: &Unseen, found: &mut Vec<Item>) -> Result<(), BackupError> {
        if self.add_unseen(unseen, &file)? {
            return Ok(());
        }
        let Some(tree) = self.tree_of(&file.root) else { return Ok(()) };
        let times: io::Result<_> = {
            let (folder, path) = tree.at(&file.path);
            look(folder, &path)
        };
        match times {
            Ok(Some(times)) => {
                let current = lookup.current_of(&file)?;
                found.push(Item::found(file, tree, &times, current));
            }
            Ok(None) => self.slipped += 1,
            Err(error) => self.note_unread(file.to_string(), error.to_string()),
        }
        Ok(())
    }

    /// Speaks for all shards from here on.
    fn take_over(&mut self, done: Vec<ShardDone>) {
        self.counts = super::Counts::default();
        (self.seen_of_immich, self.slipped) = (0, 0);
        for files in [&mut self.bit_rot, &mut self.doubtful] {
            files.clear();
        }
        self.unread.clear();
        let mut rehashed = done.iter().map(|done| done.rehashed);
        let first = rehashed.next().flatten();
        self.rehashed = first.filter(|first| rehashed.all(|part| part == Some(*first)));
        let mut unread = BTreeSet::new();
        for shard in done {
            self.counts.merge(&shard.counts);
            self.seen_of_immich += shard.seen_of_immich;
            self.slipped += shard.slipped;
            for one in shard.unread {
                // A folder that several shards could not pass through is one.
                if unread.insert(one.path.clone()) {
                    self.unread.push(one);
                } else {
                    self.counts.unread = self.counts.unread.saturating_sub(1);
                }
            }
            self.bit_rot.extend(shard.bit_rot.iter().map(PathFact::file));
            self.doubtful.extend(shard.doubtful.iter().map(PathFact::file));
        }
        self.unread.truncate(crate::budget::NAMED_MAX);
        for files in [&mut self.bit_rot, &mut self.doubtful] {
            files.truncate(crate::budget::NAMED_MAX);
        }
        // PostgreSQL's folder and a stopped stack are not for shards.
        debug_assert!(self.tree_of(&Root::Postgres).is_none(), "a shard reads no folder of PostgreSQL");
    }
}
