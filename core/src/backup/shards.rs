//! One run by several processes: each takes the folders that fall into its part, and the log is all that they share. Shard 0 dumps the database before
//! any of them walks; whoever sees in the log that all are done makes the snapshot.

use super::database::Kept;
use super::stopped::Gathered;
use super::turn::LOOK_EVERY;
use super::{BackupError, Database, Ending, Item, Run};
use crate::budget::CHECKPOINT_FILES_MAX;
use crate::event::Event;
use crate::library::read::look;
use crate::listing::list_dump;
use crate::model::{FilePath, Part, Root};
use crate::repository::log::{DumpFact, Fact, PathFact, ShardDone};
use crate::repository::manifest::Unseen;
use jiff::Timestamp;
use std::io;
use std::sync::Arc;
use std::time::Instant;

/// What a shard knows of the database before it walks.
enum Dumped {
    /// None was asked for.
    None,
    Kept(Box<Kept>),
    Interrupted,
}

impl Run<'_> {
    /// Does this shard's part; and the rest of the run, should it be the last.
    pub(super) async fn work_on_shard(&mut self, shard: Part) -> Result<Ending, BackupError> {
        if let Some(ending) = self.how_it_ended()? {
            return Ok(ending);
        }
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
        if !self.session.manifest.shards_done(self.id)?.iter().any(is_done) {
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
        self.session.refresh(self.monitor.as_ref()).await?;
        if let Some(ending) = self.how_it_ended()? {
            return Ok(ending);
        }
        let done = self.session.manifest.shards_done(self.id)?;
        let waiting_for: Vec<_> = (0..shard.of).filter(|part| done.iter().all(|done| done.shard.part != *part)).collect();
        if !waiting_for.is_empty() {
            return Ok(Ending::Shard { waiting_for });
        }
        Box::pin(self.end_all(done, dump)).await
    }

    /// Two writers of the log are kept apart by conditional writes alone.
    pub(super) async fn check_store_of_shards(&mut self) -> Result<(), BackupError> {
        self.session.begin_writing().await?;
        let store = self.session.store();
        if store.capabilities().conditional_create { Ok(()) } else { Err(BackupError::ShardsNeedConditions { url: store.url().to_owned() }) }
    }

    /// How the run ended, if it is over: another shard has done the rest.
    fn how_it_ended(&self) -> Result<Option<Ending>, BackupError> {
        let Some(run) = self.session.manifest.run(self.id)? else { return Ok(None) };
        match run.outcome.as_deref() {
            Some("snapshot") => Ok(Some(Ending::Shard { waiting_for: Vec::new() })),
            Some("withheld") => Ok(Some(Ending::Withheld { reason: run.reason.unwrap_or_default() })),
            Some("died") => Err(BackupError::RunIsOver { run: self.id.to_string() }),
            _ => Ok(None),
        }
    }

    /// Each shard has to know the same number of them.
    fn check_shards(&self, shard: Part) -> Result<(), BackupError> {
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
        let locations = self.locations(database);
        let listing = list_dump(self.session, taken, locations, self.monitor.as_ref(), self.stop).await;
        match listing {
            Ok(listing) => Ok(Dumped::Kept(Box::new(Kept::read_back(listing)))),
            Err(_) if self.stop.is_cancelled() => Ok(Dumped::Interrupted),
            Err(error) => Err(error.into()),
        }
    }

    /// `None` where it was asked to stop.
    async fn wait_for_dump(&mut self) -> Result<Option<DumpFact>, BackupError> {
        let (mut heard, mut since, mut told) = (0, Instant::now(), false);
        loop {
            self.session.refresh(self.monitor.as_ref()).await?;
            if let Some(taken) = self.session.manifest.dump_of_run(self.id)? {
                return Ok(Some(taken));
            }
            let run = self.session.manifest.run(self.id)?;
            if run.as_ref().is_some_and(|run| run.outcome.is_some()) {
                return Err(BackupError::RunIsOver { run: self.id.to_string() });
            }
            // Whoever dumps says now and then that it is alive.
            let last_entry = run.map_or(0, |run| run.last_entry);
            if last_entry != heard {
                (heard, since) = (last_entry, Instant::now());
            }
            let left = self.plan.wait.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Err(BackupError::Busy { who: "shard 0 has not dumped the database, and says nothing".to_owned() });
            }
            if !told {
                told = true;
                self.monitor.emit(Event::Waiting { what: "shard 0 is to dump the database before the library is walked".to_owned() });
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
        self.commit(&[Fact::ShardDone(Box::new(done))]).await
    }

    /// All shards are done: what they left is looked at, and from there on it is a run as any.
    async fn end_all(&mut self, done: Vec<ShardDone>, dump: Option<Kept>) -> Result<Ending, BackupError> {
        self.shard = None;
        // What others had on its way when this shard looked is named by now.
        self.unnamed = Arc::default();
        self.take_over(done);
        self.refuse_empty()?;
        let unseen = Unseen::new(&self.session.state.scratch("unseen.db"))?;
        let mut found = Vec::new();
        let mut last: Option<FilePath> = None;
        loop {
            let page = self.session.manifest.remainder_page(self.id, last.as_ref())?;
            let Some(end) = page.last() else { break };
            last = Some(end.clone());
            for file in page {
                self.look_at_left(file, &unseen, &mut found)?;
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
    fn look_at_left(&mut self, file: FilePath, unseen: &Unseen, found: &mut Vec<Item>) -> Result<(), BackupError> {
        if self.add_unseen(unseen, &file)? {
            return Ok(());
        }
        let Some(tree) = self.tree_of(&file.root) else { return Ok(()) };
        let times: io::Result<_> = {
            let (folder, path) = tree.at(&file.path);
            look(folder, &path)
        };
        match times {
            Ok(Some(times)) => found.push(Item::found(file, tree, &times)),
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
        for mut shard in done {
            self.counts.merge(&shard.counts);
            self.seen_of_immich += shard.seen_of_immich;
            self.slipped += shard.slipped;
            self.unread.append(&mut shard.unread);
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
