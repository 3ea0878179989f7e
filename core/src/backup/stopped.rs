//! A run that stops Immich: what is done while it is down, and that it is up again on every way out.

use super::checkpoint::Feed;
use super::database::{InHand, Kept};
use super::scan::{Scan, Seen};
use super::stage::{self, Job, Leftover, Replay, Stage};
use super::{BackupError, Ending, NotUp, OpenSource, Run};
use crate::budget::STAGE_THREADS_MAX;
use crate::crash::crash_point;
use crate::database::raw;
use crate::event::Event;
use crate::model::{Part, Root};
use crate::repository::log::Tally;
use crate::repository::manifest::Unseen;
use crate::task::{blocking, joined};
use crate::told::told;
use futures_util::FutureExt as _;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;

/// What the library was like when it was walked, and the dump that goes with it.
pub(super) struct Gathered {
    pub(super) dump: Option<Kept>,
    /// `None` where the run was asked to stop.
    pub(super) unseen: Option<Unseen>,
    /// Immich was stopped while the library was walked: nothing can have moved behind the walk's back.
    pub(super) held_still: bool,
    /// To be removed once the snapshot is committed.
    pub(super) stage: Option<Stage>,
}

/// What lies in a stage.
struct InStage {
    stage: Stage,
    seen: Seen,
    copied: Tally,
}

impl Run<'_> {
    /// Does all of the run's work; Immich is up again in the end, whatever that end is.
    pub(super) async fn work(&mut self) -> Result<Ending, BackupError> {
        if self.plan.downtime.is_none() {
            return Box::pin(self.work_through()).await;
        }
        let worked = AssertUnwindSafe(Box::pin(self.work_through())).catch_unwind().await;
        self.up_again().await;
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Starts Immich again, if it was stopped and is not up yet. What goes wrong is told at once and in the end; what is stored is as good as before.
    pub(super) async fn up_again(&mut self) {
        let Some(downtime) = self.plan.downtime.as_ref().filter(|_| self.is_down) else { return };
        match downtime.up_again().await {
            Ok(up) => {
                (self.is_down, self.not_up, self.downtime) = (false, None, Some(up.downtime));
                self.monitor.emit(Event::ImmichUp { downtime_ms: u64::try_from(up.downtime.as_millis()).unwrap_or(u64::MAX) });
            }
            Err(error) => {
                let not_up = NotUp { problem: told(&error), hint: error.hint };
                let hint = not_up.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
                self.monitor.emit(Event::Warned { message: format!("IMMICH IS NOT UP AGAIN: {}{hint}", not_up.problem) });
                self.not_up = Some(not_up);
            }
        }
    }

    /// Stops all but the database.
    async fn go_down(&mut self) -> Result<(), BackupError> {
        let Some(downtime) = &self.plan.downtime else { return Ok(()) };
        // Before it is tried: half a stop has to be undone as well.
        self.is_down = true;
        Ok(downtime.database_alone().await?)
    }

    /// Stops the database too, if its folder is to be read. Where it cannot be, it is left out.
    async fn stop_database(&mut self) -> Result<(), BackupError> {
        let Some(folder) = self.sources.iter().find(|open| open.source.root == Root::Postgres).map(|open| open.source.path.clone()) else { return Ok(()) };
        let Some(downtime) = &self.plan.downtime else { return Ok(()) };
        downtime.all_stopped().await?;
        let problem = match blocking(move || raw::is_running(&folder)).await {
            Ok(false) => return Ok(()),
            Ok(true) => "postmaster.pid is there: PostgreSQL runs, or did not end in an orderly way".to_owned(),
            Err(error) => error.to_string(),
        };
        self.leave_postgres(&problem);
        Ok(())
    }

    /// From here on PostgreSQL's folder is not part of this run.
    fn leave_postgres(&mut self, problem: &str) {
        self.sources.retain(|open| open.source.root != Root::Postgres);
        self.monitor.emit(Event::Warned { message: format!("PostgreSQL's raw folder is left out: {problem}; the dump does not need it") });
    }

    /// Whether somebody started something while it was to be down. What was read of live files is as good as ever; of a database's it is not.
    async fn was_disturbed(&self) -> bool {
        let Some(downtime) = &self.plan.downtime else { return false };
        let message = match downtime.still_down().await {
            Ok(true) => return false,
            Ok(false) => "something of the stack was started by somebody else while it was to be down: the library is treated as one in use".to_owned(),
            Err(error) => format!("nobody knows whether the stack was down all the time: {}", told(&error)),
        };
        self.monitor.emit(Event::Warned { message });
        true
    }

    /// Dumps, walks and stores: Immich is down for all of it, if it is to be stopped.
    pub(super) async fn gather(&mut self) -> Result<Gathered, BackupError> {
        if self.plan.downtime.is_some()
            && let Some(stage) = &self.plan.stage
        {
            return Box::pin(self.gather_staged(stage)).await;
        }
        let interrupted = |dump| Ok(Gathered { dump, unseen: None, held_still: false, stage: None });
        self.go_down().await?;
        // The database first: files that it names may be there later still, the other way round they would be lacking.
        let mut dump = None;
        if let Some(database) = &self.plan.database {
            let Some(taken) = Box::pin(self.take_dump(database)).await? else { return interrupted(None) };
            dump = Some(self.use_dump(taken).await?);
        }
        self.stop_database().await?;
        let mut unseen = self.store_all(self.plan.rehash, None).await?;
        if self.stop.is_cancelled() {
            return interrupted(dump);
        }
        self.refuse_empty()?;
        unseen = self.look_again(unseen).await?;
        let held_still = self.is_down && !self.was_disturbed().await;
        self.settle_postgres(&unseen, !held_still).await?;
        self.up_again().await;
        Ok(Gathered { dump, unseen: Some(unseen), held_still, stage: None })
    }

    /// What the dump names holds for the rest of the run, and the dump is brought into the repository.
    async fn use_dump(&mut self, taken: InHand) -> Result<Kept, BackupError> {
        self.check_scope(&taken.names)?;
        let kept = self.keep(taken).await?;
        self.inventory = Some(Arc::clone(&kept.names.inventory));
        self.assets = Some(kept.names.assets);
        Ok(kept)
    }

    /// PostgreSQL's folder is not looked at any more once the database may run again: what is gone from it is archived here, all of it if it was `disturbed`.
    async fn settle_postgres(&mut self, unseen: &Unseen, disturbed: bool) -> Result<(), BackupError> {
        if self.tree_of(&Root::Postgres).is_none() {
            return Ok(());
        }
        if disturbed {
            self.leave_postgres("it may have changed while it was read");
            return self.add_all_of(&Root::Postgres, unseen);
        }
        self.archive_root(&Root::Postgres, unseen).await?;
        self.sources.retain(|open| open.source.root != Root::Postgres);
        self.has_postgres = true;
        Ok(())
    }

    /// As [`Self::gather`], but Immich is up again before anything is sent.
    async fn gather_staged(&mut self, folder: &Path) -> Result<Gathered, BackupError> {
        let interrupted = |dump| Ok(Gathered { dump, unseen: None, held_still: false, stage: None });
        self.take_up_leftovers(folder).await?;
        if self.stop.is_cancelled() {
            return interrupted(None);
        }
        let part = self.plan.rehash.map_or(Ok(None), |sample| self.next_part(sample))?;
        let scanned = self.scan(self.sources.clone(), None)?;
        let at = folder.to_owned();
        let room = blocking(move || stage::measure(&at, &scanned)).await?;
        if self.stop.is_cancelled() {
            return interrupted(None);
        }
        room.check(folder)?;
        let stage = Stage::make(folder, self.id, self.session.repository.id)?;
        self.go_down().await?;
        self.monitor.emit(Event::StagingStarted { files: room.copies.files, bytes: room.copies.bytes });
        let (taken, in_stage) = self.dump_and_copy(stage, part).await?;
        let taken = match taken {
            Taken::Interrupted => return interrupted(None),
            Taken::None => None,
            Taken::Dump(taken) => Some(*taken),
        };
        let InStage { mut stage, mut seen, mut copied } = in_stage;
        if self.stop.is_cancelled() {
            return interrupted(None);
        }
        self.stop_database().await?;
        let postgres: Vec<_> = self.sources.iter().filter(|open| open.source.root == Root::Postgres).cloned().collect();
        let mut raw = None;
        if !postgres.is_empty() {
            let all = self.copy(stage, postgres, None).await?;
            stage = all.stage;
            copied = Tally { files: copied.files + all.copied.files, bytes: copied.bytes.saturating_add(all.copied.bytes) };
            raw = Some(all.seen);
        }
        if self.stop.is_cancelled() {
            return interrupted(None);
        }
        self.monitor.emit(Event::StagingFinished { files: copied.files, bytes: copied.bytes });
        crash_point!("all copied, Immich not up again");
        let held_still = !self.was_disturbed().await;
        if !held_still && raw.take().is_some() {
            self.leave_postgres("it may have changed while it was copied");
        }
        if let Some(raw) = raw {
            seen.merge(raw);
        }
        self.up_again().await;
        // Immich is up: what follows may take as long as it takes.
        let stage = blocking(move || stage.complete().map(|()| stage)).await?;
        let dump = match taken {
            Some(taken) => Some(self.use_dump(taken).await?),
            None => None,
        };
        let unseen = self.store_all(None, Some((&stage, seen, part))).await?;
        if self.stop.is_cancelled() {
            return interrupted(dump);
        }
        self.refuse_empty()?;
        self.settle_postgres(&unseen, false).await?;
        let unseen = self.look_again(unseen).await?;
        Ok(Gathered { dump, unseen: Some(unseen), held_still, stage: Some(stage) })
    }

    /// What this run walks.
    pub(super) fn scan(&self, sources: Vec<OpenSource>, rehash: Option<Part>) -> Result<Scan, BackupError> {
        Ok(Scan {
            sources,
            scope: Arc::new(self.scope.clone()),
            walkers: self.plan.walkers,
            rehash,
            count: false,
            shard: self.shard,
            manifest: self.session.manifest.path().to_owned(),
            halt: self.stop.child_token(),
        })
    }

    fn job(&self, sources: Vec<OpenSource>, rehash: Option<Part>) -> Result<Job, BackupError> {
        let threads = NonZeroUsize::new(self.plan.workers.local().min(STAGE_THREADS_MAX)).unwrap_or(NonZeroUsize::MIN);
        Ok(Job { scan: self.scan(sources, rehash)?, threads, monitor: Arc::clone(self.monitor) })
    }

    /// Copies what of these has to be sent.
    async fn copy(&mut self, stage: Stage, sources: Vec<OpenSource>, rehash: Option<Part>) -> Result<InStage, BackupError> {
        let job = self.job(sources, rehash)?;
        // Dropped, what waits for it must not leave it copying.
        let _halt = job.scan.halt.clone().drop_guard();
        self.copied(tokio::task::spawn_blocking(move || copy_into(stage, &job))).await
    }

    /// Waits for a copy.
    async fn copied(&mut self, copying: Copying) -> Result<InStage, BackupError> {
        joined(self.alive_while(copying).await)
    }

    /// Dumps and copies at the same time, but for PostgreSQL's folder. Where one fails the other is ended.
    async fn dump_and_copy(&mut self, stage: Stage, part: Option<Part>) -> Result<(Taken, InStage), BackupError> {
        let sources = self.sources.iter().filter(|open| open.source.root != Root::Postgres).cloned().collect();
        let job = self.job(sources, part)?;
        let halt = job.scan.halt.clone();
        let _halt = halt.clone().drop_guard();
        let mut copying: Copying = tokio::task::spawn_blocking(move || copy_into(stage, &job));
        let dumped: Result<Taken, BackupError> = {
            let dumping = async {
                match &self.plan.database {
                    Some(database) => Ok(Box::pin(self.take_dump(database)).await?.map_or(Taken::Interrupted, |taken| Taken::Dump(Box::new(taken)))),
                    None => Ok(Taken::None),
                }
            };
            tokio::pin!(dumping);
            tokio::select! {
                biased;
                dumped = &mut dumping => dumped,
                copied = &mut copying => {
                    // Where it failed the dump is dropped, which ends it.
                    let copied = joined(copied)?;
                    return Ok((dumping.await?, copied));
                }
            }
        };
        if !matches!(dumped, Ok(Taken::None | Taken::Dump(_))) {
            halt.cancel();
        }
        // Its thread uses the stage: that is removed when it has ended.
        let copied = self.copied(copying).await;
        Ok((dumped?, copied?))
    }

    /// Sends what dead runs copied and did not send; then those stages go.
    async fn take_up_leftovers(&mut self, folder: &Path) -> Result<(), BackupError> {
        let repository = self.session.repository.id;
        for leftover in stage::leftovers(folder)? {
            if leftover.is_complete() && leftover.repository() != repository {
                // Its repository's own run takes it up.
                continue;
            }
            let leftover = if leftover.is_complete() { self.take_up(leftover).await? } else { leftover };
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let path = leftover.path().to_owned();
            if let Err(error) = blocking(move || leftover.remove()).await {
                let message = format!("the stage `{}` that a dead run left cannot be removed: {}", path.display(), told(&error));
                self.monitor.emit(Event::Warned { message });
            }
        }
        Ok(())
    }

    async fn take_up(&mut self, leftover: Leftover) -> Result<Leftover, BackupError> {
        let message = format!("run {} died after it had copied what is new to `{}`: that is sent first", leftover.run().short(), leftover.path().display());
        self.monitor.emit(Event::Warned { message });
        let (replay, monitor) = (self.replay(), Arc::clone(self.monitor));
        let unseen = Unseen::new(&self.session.state.scratch("unseen.db"))?;
        let feed: Feed<Leftover> = Box::new(move |items, _done| stage::take_up(&leftover, &replay, &items, monitor.as_ref()).map(|()| leftover));
        self.store(feed, self.stop.child_token(), &unseen).await
    }

    pub(super) fn replay(&self) -> Replay {
        Replay { sources: self.sources.clone(), manifest: self.session.manifest.path().to_owned() }
    }
}

/// A copy under way.
type Copying = tokio::task::JoinHandle<Result<InStage, BackupError>>;

fn copy_into(stage: Stage, job: &Job) -> Result<InStage, BackupError> {
    let (seen, copied) = stage::copy(&stage, job)?;
    Ok(InStage { stage, seen, copied })
}

/// What came of the database while files were copied.
enum Taken {
    /// None was asked for.
    None,
    Dump(Box<InHand>),
    Interrupted,
}
