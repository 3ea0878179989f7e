//! From the queue to the log: workers store, and one hand writes down what is durable.

use super::claim::claim;
use super::scan::{Scan, Seen, owns, scan};
use super::send::{Beyond, Shared, StoredFile, store_one};
use super::stage::{Stage, replay};
use super::{BackupError, Done, Item, Run};
use crate::budget::{CHECKPOINT_FILES_MAX, CHECKPOINT_INTERVAL, NAMED_MAX, QUEUE_PATHS_PER_WORKER};
use crate::crash::crash_point;
use crate::event::{Event, Phase, Stored};
use crate::library::walk::SYMBOLIC_LINK;
use crate::model::{FilePath, Part, Root, Sample};
use crate::repository::log::{Fact, PathFact, Tally};
use crate::repository::manifest::{Lookup, Unseen};
use crate::task::joined;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is said of a symbolic link.
pub(super) const LINK_IS_NOT_FOLLOWED: &str =
    "it is a symbolic link, and what it points to is not backed up; use a bind mount, or include its target by --external";

/// Runs that are looked through for one that died.
const RUNS_LOOKED_AT_MAX: u32 = 1_000;

/// Outcomes that wait for the one who writes the log: the workers go on while a checkpoint waits for the disk.
const DONE_QUEUED_MAX: usize = CHECKPOINT_FILES_MAX;

/// Puts files into the queue, from a thread of its own; what it returns is given to the caller in the end.
pub(super) type Feed<T> = Box<dyn FnOnce(mpsc::Sender<Item>, mpsc::Sender<Done>) -> Result<T, BackupError> + Send>;

impl Run<'_> {
    /// Walks everything and stores what is new; or stores what a walk has found and copied into a stage. Returns the paths that were not seen.
    pub(super) async fn store_all(&mut self, rehash: Option<Sample>, staged: Option<(&Stage, Seen, Option<Part>)>) -> Result<Unseen, BackupError> {
        let part = match &staged {
            Some((.., part)) => *part,
            None => rehash.map_or(Ok(None), |sample| self.next_part(sample))?,
        };
        self.rehashed = self.rehashed.or(part);
        self.slipped = 0;
        let plan = Scan { count: self.session.manifest.latest_snapshot()?.is_none(), ..self.scan(self.sources.clone(), part)? };
        let halt = plan.halt.clone();
        // A second walk finds these again.
        self.counts.unchanged = Tally::default();
        self.counts.special = 0;
        self.counts.unread = 0;
        self.unread.clear();
        self.counts.doubtful = 0;
        self.doubtful.clear();
        let unseen = Unseen::new(&self.session.state.scratch("unseen.db"))?;
        let last_folder = self.session.manifest.last_folder()?;
        self.monitor.emit(Event::PhaseStarted { phase: Phase::Store, total_files: None, total_bytes: None });
        let monitor = Arc::clone(self.monitor);
        let feed: Feed<Seen> = match staged {
            None => Box::new(move |items, done| scan(&plan, &items, &done, &monitor)),
            Some((stage, seen, _)) => {
                let (list, again) = (stage.list(), self.replay());
                Box::new(move |items, done| replay(&list, &again, seen, &items, &done, monitor.as_ref()))
            }
        };
        let seen = self.store(feed, halt, &unseen).await?;
        self.counts.seen = seen.files;
        self.seen_of_immich = seen.of_immich;
        self.counts.unchanged.merge(seen.unchanged);
        self.monitor.emit(Event::PhaseFinished { phase: Phase::Store });
        if !self.stop.is_cancelled() {
            self.add_unvisited(&seen, last_folder, &unseen)?;
        }
        Ok(unseen)
    }

    /// Whether a run since the last snapshot died, or failed, after it may have stored what it could not announce any more.
    fn may_find_more(&self) -> Result<bool, BackupError> {
        let before = self.session.manifest.runs(RUNS_LOOKED_AT_MAX)?.into_iter().filter(|run| run.id != self.id);
        let mut outcomes = before.map(|run| run.outcome).take_while(|outcome| outcome.as_deref() != Some("snapshot"));
        if outcomes.any(|outcome| !matches!(outcome.as_deref(), Some("interrupted" | "withheld"))) {
            return Ok(true);
        }
        // What the entries spoke of that a repair of the log has rejected is there still.
        let snapshot = self.session.manifest.latest_snapshot()?.map_or(0, |snapshot| snapshot.sequence);
        Ok(self.session.manifest.epochs()?.last().is_some_and(|repair| repair.sequence > snapshot))
    }

    /// The part of a sample that comes after the one that was read last; none before the first snapshot: all has just been read.
    pub(super) fn next_part(&self, sample: Sample) -> Result<Option<Part>, BackupError> {
        // By the last snapshot, not by what was stored since: all shards of a run take the same part.
        let Some(last) = self.session.manifest.latest_snapshot()? else { return Ok(None) };
        let of = sample.parts(last.fact.totals.all().files);
        let part = self.session.manifest.last_rehashed_of(of)?.map_or(0, |last| (last + 1) % of);
        Ok(Some(Part { of, part }))
    }

    /// Files of folders that the walk did not come to: they were removed, or are not wanted any more. Folders with numbers after `last_folder`
    /// were met by this walk for the first time.
    fn add_unvisited(&self, seen: &Seen, last_folder: i64, unseen: &Unseen) -> Result<(), BackupError> {
        if self.shard.is_none() && seen.has_all_folders(last_folder) {
            return Ok(());
        }
        let manifest = &self.session.manifest;
        let lookup = Lookup::open(manifest.path())?;
        let mut folders = manifest.folders();
        loop {
            let page = folders.next_page()?;
            if page.is_empty() {
                return Ok(());
            }
            for (number, root, folder) in page {
                let passed = number > last_folder || seen.has_folder(number) || !owns(self.shard, &root, &folder);
                if passed || seen.is_unknown(&root, &folder) || self.stays(&root) {
                    continue;
                }
                self.add_folder(&lookup, (number, &root, &folder), unseen)?;
            }
        }
    }

    /// Whether what stands below `root` stays as it is: the configuration, in a run that was not given any, and what this run has taken already of
    /// PostgreSQL's folder.
    fn stays(&self, root: &Root) -> bool {
        (*root == Root::Config && self.tree_of(root).is_none()) || (*root == Root::Postgres && self.has_postgres)
    }

    /// Notes everything that stands below `root`.
    pub(super) fn add_all_of(&self, root: &Root, unseen: &Unseen) -> Result<(), BackupError> {
        let lookup = Lookup::open(self.session.manifest.path())?;
        let mut folders = self.session.manifest.folders();
        loop {
            let page = folders.next_page()?;
            if page.is_empty() {
                return Ok(());
            }
            for (number, _, folder) in page.into_iter().filter(|(_, of, _)| of == root) {
                self.add_folder(&lookup, (number, root, &folder), unseen)?;
            }
        }
    }

    fn add_folder(&self, lookup: &Lookup, (number, root, folder): (i64, &Root, &str), unseen: &Unseen) -> Result<(), BackupError> {
        let mut after = String::new();
        loop {
            let names = lookup.names(number, &after)?;
            let Some(last) = names.last() else { return Ok(()) };
            last.clone_into(&mut after);
            for name in names {
                self.add_unseen(unseen, &FilePath { root: root.clone(), path: crate::model::RootPath::in_folder(folder, &name) })?;
            }
        }
    }

    /// Notes that a file was not seen; `false` where nothing was ever stored of it.
    pub(super) fn add_unseen(&self, unseen: &Unseen, file: &FilePath) -> Result<bool, BackupError> {
        let Some(standing) = self.session.manifest.standing(file)? else { return Ok(false) };
        unseen.add(file, standing.size_bytes, &standing.digests.sha256)?;
        Ok(true)
    }

    /// Stores what `feed` puts into the queue, and writes checkpoints. Cancelling `halt` ends it soon, with a last checkpoint.
    pub(super) async fn store<T: Send + 'static>(&mut self, feed: Feed<T>, halt: CancellationToken, unseen: &Unseen) -> Result<T, BackupError> {
        let workers = self.plan.workers.count(self.session.store());
        let (items, queue) = mpsc::channel(workers.saturating_mul(QUEUE_PATHS_PER_WORKER));
        let (done, mut outcomes) = mpsc::channel(DONE_QUEUED_MAX);
        let there = Beyond {
            unnamed: self.may_find_more()?.then(|| Arc::clone(&self.unnamed)),
            damaged: !self.session.manifest.damaged_objects()?.is_empty(),
            claimed: self.session.manifest.has_claims()?,
        };
        let store = Arc::clone(&self.session.repository.store);
        let shared = Arc::new(Shared::new(store, self.session.manifest.path(), halt.clone(), there, self.inventory.clone())?);
        let (fed, result) = oneshot::channel();
        let feeder_done = done.clone();
        std::thread::spawn(move || {
            // Nobody waits for the result where the run has failed.
            drop(fed.send(feed(items, feeder_done)));
        });
        let queue = match self.shard {
            None => queue,
            Some(shard) => {
                let (claimed, dispatched) = mpsc::channel(workers.saturating_mul(QUEUE_PATHS_PER_WORKER));
                tokio::spawn(claim(Arc::clone(&shared), shard, workers, queue, claimed, done.clone()));
                dispatched
            }
        };
        let dispatcher = tokio::spawn(dispatch(Arc::clone(&shared), queue, done, workers, Arc::clone(self.monitor)));
        let mut checkpoint = Checkpoint::new();
        let mut fatal = None;
        loop {
            match tokio::time::timeout_at(checkpoint.due, outcomes.recv()).await {
                Ok(None) => break,
                Ok(Some(Done::Fatal(error))) => {
                    halt.cancel();
                    fatal.get_or_insert(error);
                }
                Ok(Some(Done::Claim(asked))) => {
                    // Where the run has failed, nobody gets an answer, and nothing more is stored.
                    if fatal.is_none()
                        && let Err(error) = self.claim(asked).await
                    {
                        halt.cancel();
                        fatal = Some(error);
                    }
                }
                Ok(Some(outcome)) => self.take(outcome, &mut checkpoint, unseen)?,
                Err(_) => {}
            }
            if fatal.is_some() {
                checkpoint.due = Instant::now() + CHECKPOINT_INTERVAL;
            } else if checkpoint.stored.len() + checkpoint.left.len() >= CHECKPOINT_FILES_MAX || Instant::now() >= checkpoint.due {
                let written = self.write(&mut checkpoint, &shared).await;
                if let Err(error) = written {
                    halt.cancel();
                    fatal = Some(error);
                }
            }
        }
        joined(dispatcher.await);
        if !checkpoint.stored.is_empty() || !checkpoint.left.is_empty() {
            let written = self.write(&mut checkpoint, &shared).await;
            fatal = fatal.or(written.err());
        }
        match (fatal, result.await) {
            (Some(error), _) => Err(error),
            (None, Ok(result)) => result,
            (None, Err(_)) => std::panic::resume_unwind(Box::new("the walk ended without a result")),
        }
    }

    fn take(&mut self, outcome: Done, checkpoint: &mut Checkpoint, unseen: &Unseen) -> Result<(), BackupError> {
        match outcome {
            Done::Stored(stored) => {
                // A path that was missed by the walk and came back is not gone.
                unseen.remove(&stored.fact.file())?;
                checkpoint.stored.push(*stored);
            }
            Done::Same { file, size_bytes } => {
                unseen.remove(&file)?;
                self.counts.unchanged.add(size_bytes);
            }
            Done::Left => {}
            Done::Vanished(file) => {
                if !self.add_unseen(unseen, &file)? {
                    self.slipped += 1;
                }
            }
            Done::Slipped => self.slipped += 1,
            Done::Unread { path, problem } => self.note_unread(path, problem),
            Done::Special { file, kind } => {
                self.counts.special += 1;
                if kind == SYMBOLIC_LINK {
                    self.note_unread(file.to_string(), LINK_IS_NOT_FOLLOWED.to_owned());
                } else {
                    self.monitor.emit(Event::SpecialSkipped { path: file, kind: kind.into() });
                }
            }
            Done::BitRot(file) => {
                self.monitor.emit(Event::BitRotSuspected { path: file.clone() });
                self.counts.bit_rot += 1;
                if self.bit_rot.len() < NAMED_MAX {
                    self.bit_rot.push(file);
                }
            }
            Done::Postponed(file) => checkpoint.left.push(file),
            // Answered by who calls this.
            Done::Claim(_) => {}
            Done::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    /// One barrier, one entry. With nothing to say it is a heartbeat.
    async fn write(&mut self, checkpoint: &mut Checkpoint, shared: &Shared) -> Result<(), BackupError> {
        let Checkpoint { stored, left, .. } = std::mem::replace(checkpoint, Checkpoint::new());
        if !stored.is_empty() {
            crash_point!("before the barrier");
            self.session.store().sync().await?;
            crash_point!("barrier done");
        }
        let fact = |stored: &StoredFile| if stored.doubtful { Fact::Doubtful(stored.fact.clone()) } else { Fact::Stored(stored.fact.clone()) };
        let facts: Vec<_> = stored.iter().map(fact).chain(left.iter().map(|file| Fact::Left(PathFact::new(file)))).collect();
        self.commit(&facts).await?;
        crash_point!("checkpoint in the log");
        shared.contents.committed(stored.iter().map(|stored| stored.fact.sha256));
        shared.contents.committed_sizes(&stored.iter().map(|stored| stored.fact.size).collect());
        for stored in stored {
            self.count(&stored);
            if stored.doubtful {
                self.note_doubtful(stored.fact.file());
                continue;
            }
            self.monitor.emit(Event::FileStored {
                path: stored.fact.file(),
                how: stored.how,
                size_bytes: stored.fact.size,
                class: stored.class,
                changed: stored.changed,
            });
        }
        Ok(())
    }

    fn count(&mut self, stored: &StoredFile) {
        let size = stored.fact.size;
        match stored.how {
            _ if stored.doubtful => {}
            Stored::Touched => self.counts.touched.add(size),
            Stored::Known if !stored.changed => self.counts.known.add(size),
            _ if stored.changed => self.counts.changed.add(size),
            _ => self.counts.new.add(size),
        }
        match stored.how {
            Stored::Sent => self.counts.sent.add(size),
            Stored::Adopted => self.counts.adopted.add(size),
            Stored::Known | Stored::Touched => {}
        }
    }
}

/// What is stored and not yet in the log.
struct Checkpoint {
    stored: Vec<StoredFile>,
    /// Paths that another shard's end has to be waited for.
    left: Vec<FilePath>,
    due: Instant,
}

impl Checkpoint {
    fn new() -> Self {
        Self { stored: Vec::with_capacity(CHECKPOINT_FILES_MAX), left: Vec::new(), due: Instant::now() + CHECKPOINT_INTERVAL }
    }
}

/// Drains the queue with at most `workers` files in hand. Dropped, or halted, nothing new is begun.
async fn dispatch(shared: Arc<Shared>, mut queue: mpsc::Receiver<Item>, done: mpsc::Sender<Done>, workers: usize, monitor: Arc<dyn crate::event::Monitor>) {
    let mut storing = JoinSet::new();
    let (mut more, mut halted) = (true, false);
    while more || !storing.is_empty() {
        tokio::select! {
            Some(ended) = storing.join_next() => {
                if done.send(joined(ended)).await.is_err() {
                    return;
                }
            }
            () = shared.halt.cancelled(), if !halted => {
                halted = true;
                queue.close();
            }
            item = queue.recv(), if more && storing.len() < workers => match item {
                // What was queued when the run was halted is left for the next one.
                Some(item) if !halted => {
                    storing.spawn(store_one(Arc::clone(&shared), item, Arc::clone(&monitor)));
                }
                Some(_) => {}
                None => more = false,
            },
        }
    }
}
