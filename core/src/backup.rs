//! A run: everything that is new in the library goes into the repository, and a snapshot says so.

mod checkpoint;
mod claim;
mod contents;
mod database;
mod downtime;
mod dry_run;
mod preflight;
mod reconcile;
mod scan;
mod send;
mod shards;
pub mod stage;
mod stopped;
mod turn;
mod unnamed;

pub use crate::repository::log::Counts;
pub use database::Database;
pub use downtime::{Downtime, DowntimeError, Up};
pub use preflight::{PreflightError, refuse_overlap};
pub use stage::StageError;
pub use turn::open;

use self::claim::May;
use self::stage::Stage;
use self::stopped::Gathered;
use self::unnamed::Unnamed;
use crate::budget::CHECKPOINT_INTERVAL;
use crate::crash::crash_point;
use crate::database::DatabaseError;
use crate::database::dump::DumpError;
use crate::database::inventory::{Inventory, InventoryError};
use crate::event::{Event, Monitor, Phase};
use crate::library::read::{LiveFile, ReadError};
use crate::library::scope::Scope;
use crate::library::tree::Tree;
use crate::listing::ListError;
use crate::model::{Class, ExternalName, FilePath, FileTimes, Part, Root, RootPath, RunId, Sample, decode_text};
use crate::prove::ProveError;
use crate::repository::key::Key;
use crate::repository::log::{DumpFact, Ended, Fact, Head, LogError, ManifestCopy, Outcome, RunStarted, SnapshotFact, SourceRoot, Totals, Unread};
use crate::repository::manifest::{CurrentFile, ManifestError};
use crate::repository::store::{Attributes, Created, Kind, StoreError, stream_file};
use crate::repository::workers::Workers;
use crate::repository::{OpenError, Session};
use crate::stack::discover::Known;
use crate::told::told;
use crate::verdict::Proof;
use jiff::Timestamp;
use std::borrow::Cow;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A folder to back up.
#[derive(Debug, Clone)]
pub struct Source {
    /// As what it is kept.
    pub root: Root,
    /// Where it lies.
    pub path: PathBuf,
    /// For an external library: where Immich's server sees it, if that is elsewhere.
    pub server_path: Option<Vec<u8>>,
    /// Folders on this machine that Immich's server sees inside of it: files below that path lie there, and what the root itself has at that path is hidden.
    pub mounts: Vec<(RootPath, PathBuf)>,
}

/// What a run is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The media location, and external libraries.
    pub sources: Vec<Source>,
    /// The database; `None` where the files alone are backed up.
    pub database: Option<Database>,
    /// What of them is taken.
    pub scope: Scope,
    /// Files that are sent at once.
    pub workers: Workers,
    /// Threads that walk.
    pub walkers: NonZeroUsize,
    /// Reads so many unchanged files again, to find damage at the source.
    pub rehash: Option<Sample>,
    /// The run whose withheld snapshot was meant.
    pub accept: Option<RunId>,
    /// External libraries that are no longer there and may be archived.
    pub drop_externals: Vec<ExternalName>,
    /// Go on though a marker that stood there last time is missing.
    pub ignore_missing_markers: bool,
    /// A name for the snapshot.
    pub label: Option<String>,
    /// Immich's version, where anything told.
    pub immich_version: Option<String>,
    /// Name of this machine.
    pub host: String,
    /// How long to wait for another run.
    pub wait: Duration,
    /// Do not wait for another writer's unfinished run.
    pub take_over: bool,
    /// The shard of a run in several that this is; `None` where one process does all of it.
    pub shard: Option<Shard>,
    /// Stops Immich for the run; `None` where it goes on meanwhile. Not with [`Self::shard`].
    pub downtime: Option<Arc<dyn Downtime>>,
    /// Where the stopped library is copied to, so that Immich is up again before anything is sent. Only with [`Self::downtime`].
    pub stage: Option<PathBuf>,
}

/// One of several processes, on machines of their own perhaps, that make one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which one, of how many: it takes the folders whose names fall into this part.
    pub part: Part,
    /// The run: the same for all of them, and never used before.
    pub run: RunId,
}

/// Why a run stopped.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// Found before anything was touched.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The repository's log or the local state failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// An object could not be stored.
    #[error("cannot go on storing files")]
    Store(#[from] StoreError),
    /// Another run has the repository.
    #[error("another run has the repository: {who}")]
    Busy {
        /// Which, and since when.
        who: String,
    },
    /// Nothing was found in the library.
    #[error("{root} at `{}` holds no file", .path.display())]
    Empty {
        /// Which.
        root: Root,
        /// Where.
        path: PathBuf,
    },
    /// The database could not be reached.
    #[error("cannot dump the database")]
    Database(#[from] DatabaseError),
    /// The database could not be dumped.
    #[error("cannot dump the database")]
    NoDump(#[from] DumpError),
    /// What was dumped is not whole, or cannot be kept.
    #[error("cannot use the dump of the database")]
    Dump(#[from] InventoryError),
    /// Immich could not be stopped or started.
    #[error("cannot stop and start Immich")]
    Downtime(#[from] DowntimeError),
    /// What has to be sent could not be copied.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The proof could not be made.
    #[error("cannot prove the backup")]
    Prove(#[from] ProveError),
    /// Asked to stop while it waited.
    #[error("interrupted while waiting for another run")]
    Interrupted,
    /// Its run has another number of shards.
    #[error("run {run} was begun with {of} shards, and this is one of {mine}")]
    OtherShards {
        /// The run.
        run: String,
        /// Its number of shards; 1 where it has none.
        of: u64,
        /// The number that this one was given.
        mine: u64,
    },
    /// The store takes whatever is written last.
    #[error("the store at `{url}` cannot keep several writers apart: it has no conditional writes")]
    ShardsNeedConditions {
        /// Where.
        url: String,
    },
    /// Its run is over, without a snapshot.
    #[error("run {run} is over: another run has begun since")]
    RunIsOver {
        /// The run.
        run: String,
    },
    /// What the run's dump names could not be read again.
    #[error("cannot go on from the dump that the run has taken")]
    DumpOfRun(#[from] ListError),
}

impl From<ManifestError> for BackupError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl BackupError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Preflight(error) => Some(error.hint()),
            Self::Open(error) => error.hint(),
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::Busy { .. } => Some("wait longer with --wait, or, if you know that it is dead, use --take-over".to_owned()),
            Self::Empty { .. } => Some("check that it is mounted, and that --library (UPLOAD_LOCATION) names Immich's media location".to_owned()),
            Self::Database(error) => Some(format!("{}nothing of the library was touched; --no-database backs up the files alone", sentence(error.hint()))),
            Self::NoDump(error) => Some(format!("{}nothing of the library was touched; --no-database backs up the files alone", sentence(error.hint()))),
            Self::Dump(error) => Some(format!("{}nothing of it was stored; run again", sentence(error.hint()))),
            Self::Downtime(error) => error.hint.clone(),
            Self::Stage(error) => Some(error.hint().to_owned()),
            Self::Prove(error) => error.hint(),
            Self::OtherShards { .. } => Some("give each shard the same N in --shard I/N, and a new run a --run-id of its own".to_owned()),
            Self::ShardsNeedConditions { .. } => Some("run one `backup` without --shard; docs/stores.md says which stores have conditional writes".to_owned()),
            Self::RunIsOver { .. } => Some("start all shards again with a --run-id of their own; what this one has stored is not sent again".to_owned()),
            Self::DumpOfRun(error) => error.hint(),
            Self::Interrupted => None,
        }
    }
}

/// A hint, to be followed by another.
fn sentence(hint: Option<impl AsRef<str>>) -> String {
    hint.map_or_else(String::new, |hint| format!("{}; ", hint.as_ref()))
}

/// The external libraries of the newest snapshot: what they are kept under, and where Immich's server saw them.
///
/// # Errors
/// SQLite's.
pub fn known_externals(session: &Session) -> Result<Vec<Known>, BackupError> {
    let Some(latest) = session.manifest.latest_snapshot()? else { return Ok(Vec::new()) };
    let roots = session.manifest.run_started(latest.id)?.map(|started| started.roots).unwrap_or_default();
    let known = |root: SourceRoot| {
        let text = root.server_path.unwrap_or(root.path);
        let bytes = decode_text(&text).map_or_else(|| text.as_bytes().to_vec(), Cow::into_owned);
        Some(Known { name: root.external?, server_path: PathBuf::from(OsString::from_vec(bytes)) })
    };
    Ok(roots.into_iter().filter_map(known).collect())
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With a snapshot.
    Snapshot,
    /// A tripwire withheld the snapshot.
    Withheld {
        /// What tripped it, in words.
        reason: String,
    },
    /// It was asked to stop.
    Interrupted,
    /// Nothing was to be done.
    DryRun,
    /// A shard has done its part. Whoever ends last makes the snapshot.
    Shard {
        /// The shards that are not done yet; none where another one is making the snapshot, or has made it.
        waiting_for: Vec<u64>,
    },
}

/// What a run did, and what it found wrong.
#[derive(Debug, Clone)]
pub struct Report {
    /// The run; also the snapshot's id.
    pub run: RunId,
    /// How it ended.
    pub ending: Ending,
    /// What it did.
    pub counts: Counts,
    /// What stands now.
    pub totals: Totals,
    /// The first files and folders that could not be read.
    pub unread: Vec<Unread>,
    /// The first files that are damaged at the source, probably.
    pub bit_rot: Vec<FilePath>,
    /// The first files that contradict what Immich recorded of them.
    pub doubtful: Vec<FilePath>,
    /// The dump of the database; `None` where none was asked for.
    pub dump: Option<DumpFact>,
    /// What the dump names, compared with what is stored; `None` where there is no dump, or one that is not Immich's.
    pub proof: Option<Proof>,
    /// Assets outside of what is backed up that the user said to leave out.
    pub ignored: u64,
    /// How long Immich was down, from the first stop until all of it was up and healthy; `None` where it was not stopped.
    pub downtime: Option<Duration>,
    /// Immich was stopped and is not up again.
    pub not_up: Option<NotUp>,
}

/// Why Immich is not up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotUp {
    /// What went wrong, and the chain of causes.
    pub problem: String,
    /// What the user can do about it.
    pub hint: Option<String>,
}

impl Report {
    /// That of a process that found nothing left to do.
    fn of_nothing(run: RunId, ending: Ending, session: &Session) -> Self {
        Self {
            run,
            ending,
            counts: Counts::default(),
            totals: session.manifest.totals(),
            unread: Vec::new(),
            bit_rot: Vec::new(),
            doubtful: Vec::new(),
            dump: None,
            proof: None,
            ignored: 0,
            downtime: None,
            not_up: None,
        }
    }

    /// Whether everything that should be in the backup is.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let proven = match (&self.dump, &self.proof) {
            // A dump that is not Immich's proves nothing.
            (Some(_), None) => false,
            (_, proof) => proof.as_ref().is_none_or(|proof| proof.is_complete_inside() && proof.outside <= self.ignored),
        };
        self.counts.unread == 0 && self.counts.bit_rot == 0 && self.counts.doubtful == 0 && proven
    }
}

/// One open source.
#[derive(Debug, Clone)]
struct OpenSource {
    source: Source,
    tree: Arc<Tree>,
}

/// What all parts of a run share.
struct Run<'a> {
    session: &'a mut Session,
    plan: &'a Plan,
    sources: Vec<OpenSource>,
    scope: Scope,
    monitor: &'a Arc<dyn Monitor>,
    /// Set when the user asks to stop.
    stop: &'a CancellationToken,
    id: RunId,
    counts: Counts,
    unread: Vec<Unread>,
    bit_rot: Vec<FilePath>,
    doubtful: Vec<FilePath>,
    /// How many of the files that the walk saw are Immich's own.
    seen_of_immich: u64,
    /// How many assets the run's dump names; `None` where there is no dump.
    assets: Option<u64>,
    /// What the run's dump says, while files are stored.
    inventory: Option<Arc<Mutex<Inventory>>>,
    /// What runs that died have stored and not announced.
    unnamed: Arc<Unnamed>,
    /// Files and folders that the walk met, and that were gone before they could be read or were ever stored.
    slipped: u64,
    /// Immich is stopped, or half so.
    is_down: bool,
    /// How long Immich was down.
    downtime: Option<Duration>,
    /// Why Immich is not up again.
    not_up: Option<NotUp>,
    /// PostgreSQL's folder, as it was while PostgreSQL was stopped, is stored: it stands, and is not looked at any more.
    has_postgres: bool,
    /// Which unchanged files are read again.
    rehashed: Option<crate::model::Part>,
    /// What the snapshot says of the database.
    settled: Settled,
    /// The part of the folders that this shard takes; `None` where all are taken, also once all shards are done.
    shard: Option<Part>,
}

/// What came of the database.
#[derive(Debug, Default)]
struct Settled {
    dump: Option<DumpFact>,
    proof: Option<Proof>,
    ignored: u64,
}

/// Backs up.
///
/// # Errors
/// What stopped the run. All that was stored stays, and the next run takes it up.
pub async fn run(session: &mut Session, plan: &Plan, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, BackupError> {
    let result = Box::pin(attempt(session, plan, monitor, stop)).await;
    if let Err(BackupError::Open(error)) = &result {
        session.discard_if_damaged(error);
    }
    // What a disk that went away makes of a write is told by many names.
    if let Err(BackupError::Store(error) | BackupError::Open(OpenError::Log(LogError::Store(error)))) = &result
        && matches!(error, StoreError::Io { .. } | StoreError::NotFound { .. })
        && let Err(gone @ OpenError::NoRepository { .. }) = session.is_still_there().await
    {
        return Err(gone.into());
    }
    result
}

async fn attempt(session: &mut Session, plan: &Plan, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, BackupError> {
    if let Some(shard) = plan.shard
        && let Some(ending) = shards::how_it_ended(&session.manifest, shard.run)?
    {
        return Ok(Report::of_nothing(shard.run, ending, session));
    }
    preflight::check(session, plan, monitor.as_ref())?;
    turn::wait_for_others(session, plan, monitor.as_ref(), stop).await?;
    // Waiting may have taken a while, and the other run may have changed what is known.
    let sources = preflight::check(session, plan, monitor.as_ref())?;
    let id = plan.shard.map_or_else(RunId::random, |shard| shard.run);
    let mut run = Run {
        session,
        plan,
        sources,
        scope: plan.scope.clone(),
        monitor,
        stop,
        id,
        counts: Counts::default(),
        unread: Vec::new(),
        bit_rot: Vec::new(),
        doubtful: Vec::new(),
        inventory: None,
        unnamed: Arc::default(),
        seen_of_immich: 0,
        assets: None,
        slipped: 0,
        is_down: false,
        downtime: None,
        not_up: None,
        has_postgres: false,
        rehashed: None,
        settled: Settled::default(),
        shard: plan.shard.map(|shard| shard.part),
    };
    if let Some(shard) = plan.shard {
        run.check_store_of_shards().await?;
        run.check_shards(shard.part)?;
    }
    run.start().await?;
    crash_point!("run started");
    let ending = match Box::pin(run.work()).await {
        Ok(ending) => ending,
        Err(error) => {
            // Said so that nobody waits for this run; where even that fails, its silence says it.
            let ended = Ended { outcome: Outcome::Failed, reason: Some(told(&error)), gone: None, changed: None, shard: run.shard };
            if !matches!(error, BackupError::RunIsOver { .. }) {
                drop(run.session.commit(Some(id), &[Fact::RunEnded(ended)], monitor.as_ref()).await);
            }
            return Err(error);
        }
    };
    let totals = run.session.manifest.totals();
    let Settled { dump, proof, ignored } = run.settled;
    Ok(Report {
        run: id,
        ending,
        counts: run.counts,
        totals,
        unread: run.unread,
        bit_rot: run.bit_rot,
        doubtful: run.doubtful,
        dump,
        proof,
        ignored,
        downtime: run.downtime,
        not_up: run.not_up,
    })
}

/// Shows what a run would do, without writing anything.
///
/// # Errors
/// As [`run`].
pub fn dry_run(session: &Session, plan: &Plan, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, BackupError> {
    let sources = preflight::check(session, plan, monitor.as_ref())?;
    dry_run::run(session, plan, &sources, monitor, stop)
}

impl Run<'_> {
    async fn start(&mut self) -> Result<(), BackupError> {
        let text = |bytes: &[u8]| crate::model::encode_segment(bytes).into_owned();
        let roots = self.sources.iter().map(|open| {
            let server_path = self.server_path(&open.source).map(|path| text(&path));
            SourceRoot::new(&open.source.root, text(open.source.path.as_os_str().as_encoded_bytes()), server_path)
        });
        let started = RunStarted { at: Timestamp::now(), host: self.plan.host.clone(), roots: roots.collect(), accepts: self.plan.accept, shard: self.shard };
        self.commit(&[Fact::RunStarted(started)]).await?;
        self.monitor.emit(Event::RunStarted { run: self.id, repository: self.session.repository.id });
        Ok(())
    }

    /// Where Immich's server sees a source, if that was said: what a later proof goes by.
    fn server_path(&self, source: &Source) -> Option<Vec<u8>> {
        match &source.root {
            Root::Library => self.plan.database.as_ref().and_then(|database| database.media_location.clone()).map(String::into_bytes),
            Root::External(_) => source.server_path.clone(),
            Root::Config | Root::Postgres => None,
        }
    }

    /// What `work` returns. Others are told meanwhile that this run is alive: a large database takes longer than their patience.
    async fn alive_while<T>(&mut self, mut work: impl Future<Output = T> + Unpin) -> T {
        loop {
            match tokio::time::timeout(CHECKPOINT_INTERVAL, &mut work).await {
                Ok(done) => return done,
                // What stops the log stops the run later on; now Immich may be down.
                Err(_) => drop(self.commit(&[]).await),
            }
        }
    }

    async fn commit(&mut self, facts: &[Fact]) -> Result<(), BackupError> {
        self.session.commit(Some(self.id), facts, self.monitor.as_ref()).await?;
        Ok(())
    }

    async fn work_through(&mut self) -> Result<Ending, BackupError> {
        if let Some(shard) = self.shard {
            return Box::pin(self.work_on_shard(shard)).await;
        }
        let started_at = Timestamp::now();
        let gathered = Box::pin(self.gather()).await?;
        self.conclude(started_at, gathered).await
    }

    /// From what was gathered to the snapshot: what is gone is weighed and archived, what is there is proven.
    async fn conclude(&mut self, started_at: Timestamp, gathered: Gathered) -> Result<Ending, BackupError> {
        let Gathered { dump, unseen, held_still, stage } = gathered;
        let Some(mut unseen) = unseen else {
            self.up_again().await;
            return self.interrupted().await;
        };
        if !held_still && !self.stop.is_cancelled() && (self.slipped > 0 || !self.lost_originals(&unseen)?.is_empty()) {
            // Moved behind the walk's back, perhaps: Immich's storage template moves files at any time. What has not changed is not read again.
            drop(unseen);
            unseen = self.store_all(None, None).await?;
            unseen = self.look_again(unseen).await?;
            if self.slipped > 0 {
                let message =
                    format!("{} new files or folders went away twice while they were looked at; the next run finds what is left of them", self.slipped);
                self.monitor.emit(Event::Warned { message });
            }
        }
        if self.stop.is_cancelled() {
            return self.interrupted().await;
        }
        if let Some(tripped) = self.tripwire(&unseen)? {
            let reason = tripped.reason.clone();
            let ended =
                Ended { outcome: Outcome::Withheld, reason: Some(tripped.reason), gone: Some(tripped.gone), changed: Some(tripped.changed), shard: None };
            self.commit(&[Fact::RunEnded(ended)]).await?;
            return Ok(Ending::Withheld { reason });
        }
        if let Some(ending) = self.ended_meanwhile().await? {
            return Ok(ending);
        }
        self.archive(&unseen).await?;
        crash_point!("what is gone archived");
        drop(unseen);
        if let (Some(database), Some(dump)) = (&self.plan.database, dump) {
            match Box::pin(self.settle(database, dump)).await {
                Ok(Some(settled)) => self.settled = settled,
                Ok(None) | Err(BackupError::Prove(ProveError::Interrupted)) => return self.interrupted().await,
                Err(error) => return Err(error),
            }
        }
        if let Some(ending) = self.ended_meanwhile().await? {
            return Ok(ending);
        }
        crash_point!("before the snapshot");
        self.commit_snapshot(started_at).await?;
        crash_point!("after the snapshot");
        if self.plan.shard.is_some() && self.session.manifest.latest_snapshot()?.is_none_or(|latest| latest.id != self.id) {
            // Another run has begun in the very moment before: the log does not count it.
            return Err(BackupError::RunIsOver { run: self.id.to_string() });
        }
        self.unnamed.report(self.monitor.as_ref());
        if let Some(Err(error)) = stage.map(Stage::remove) {
            self.monitor.emit(Event::Warned { message: format!("what was copied is in the repository and not needed any more: {}", told(&error)) });
        }
        self.copy_manifest().await?;
        Ok(Ending::Snapshot)
    }

    async fn interrupted(&mut self) -> Result<Ending, BackupError> {
        let ended = Ended { outcome: Outcome::Interrupted, reason: None, gone: None, changed: None, shard: self.shard };
        self.commit(&[Fact::RunEnded(ended)]).await?;
        Ok(Ending::Interrupted)
    }

    /// A first run that finds nothing was given the wrong folder, or one that is not mounted.
    fn refuse_empty(&self) -> Result<(), BackupError> {
        let first = self.session.manifest.latest_snapshot()?.is_none();
        match self.sources.first() {
            Some(open) if first && self.seen_of_immich == 0 => Err(BackupError::Empty { root: open.source.root.clone(), path: open.source.path.clone() }),
            _ => Ok(()),
        }
    }

    async fn commit_snapshot(&mut self, started_at: Timestamp) -> Result<(), BackupError> {
        let snapshot = SnapshotFact {
            started_at,
            taken_at: Timestamp::now(),
            label: self.plan.label.clone(),
            immich_version: self.settled.dump.as_ref().and_then(|dump| dump.immich_version.clone()).or_else(|| self.plan.immich_version.clone()),
            totals: self.session.manifest.totals(),
            sent: self.counts.sent,
            archived: self.counts.archived.files,
            unread_count: self.counts.unread,
            unread: self.unread.clone(),
            bit_rot_count: self.counts.bit_rot,
            bit_rot: self.bit_rot.iter().map(ToString::to_string).collect(),
            rehashed: self.rehashed,
            originals_only: self.scope.originals_only,
            exclude: self.scope.exclude.texts().to_vec(),
            dump: self.settled.dump.as_ref().map(|dump| dump.key.clone()),
            proof: self.settled.proof.clone(),
            ignored: self.settled.ignored,
            doubtful_count: self.counts.doubtful,
            doubtful: self.doubtful.iter().map(ToString::to_string).collect(),
        };
        self.commit(&[Fact::Snapshot(Box::new(snapshot))]).await
    }

    /// Stores a copy of the manifest when the log has grown enough since the last one. A copy that fails costs the next reader time,
    /// never data, and does not fail the run.
    async fn copy_manifest(&mut self) -> Result<(), BackupError> {
        let (head, rows) = (self.session.manifest.head(), self.session.manifest.count_versions()?);
        let copies = self.session.manifest.copies()?;
        let damaged = self.session.manifest.damaged_objects()?;
        // A copy that is known to be damaged is as good as none.
        let last = copies.iter().rfind(|(key, ..)| damaged.iter().all(|(object, _)| object != key));
        let (last_sequence, last_rows) = last.map_or((0, 0), |(_, _, sequence, rows)| (*sequence, *rows));
        let grown = head.sequence >= last_sequence + COPY_AFTER_ENTRIES || rows.saturating_sub(last_rows) * 10 >= rows.max(1);
        if last.is_some() && !grown {
            return Ok(());
        }
        self.monitor.emit(Event::PhaseStarted { phase: Phase::CopyManifest, total_files: None, total_bytes: None });
        match self.store_copy(&head).await {
            Ok(None) => {}
            Ok(Some(fact)) => {
                crash_point!("manifest copy created, not logged");
                if let Err(error) = self.commit(&[Fact::Manifest(fact)]).await {
                    self.monitor.emit(Event::Warned { message: format!("the copy of the manifest could not be announced: {}", told(&error)) });
                }
            }
            Err(error) => self.monitor.emit(Event::Warned { message: format!("no copy of the manifest was stored: {}", told(&error)) }),
        }
        self.monitor.emit(Event::PhaseFinished { phase: Phase::CopyManifest });
        Ok(())
    }

    async fn store_copy(&self, head: &Head) -> Result<Option<ManifestCopy>, BackupError> {
        let (plain, packed) = (self.session.state.scratch("copy.db"), self.session.state.scratch("copy.db.zst"));
        let copy = self.session.manifest.pack(&plain, &packed);
        drop(std::fs::remove_file(&plain));
        let copy = copy?;
        crash_point!("manifest packed, not sent");
        let key = Key::manifest(head.epoch, head.sequence);
        let attributes = Attributes::of(Kind::Manifest, copy.sha256);
        let mut upload = self.session.store().create_streamed(&key, &attributes).await?;
        let sent = stream_file(&packed, upload.as_mut()).await;
        drop(std::fs::remove_file(&packed));
        sent?;
        let created = upload.finish(&copy.sha256).await?;
        self.session.store().sync().await?;
        if created != Created::New {
            return Ok(None);
        }
        self.monitor.emit(Event::ManifestCopied { key: key.to_string(), size_bytes: copy.plain_bytes });
        Ok(Some(ManifestCopy { key: key.to_string(), sha256: copy.sha256, sequence: head.sequence, rows: copy.rows }))
    }

    fn note_doubtful(&mut self, file: FilePath) {
        self.monitor.emit(Event::FileDoubtful { path: file.clone() });
        self.counts.doubtful += 1;
        if self.doubtful.len() < crate::budget::NAMED_MAX {
            self.doubtful.push(file);
        }
    }

    fn note_unread(&mut self, path: String, problem: String) {
        self.monitor.emit(Event::FileFailed { path: path.clone(), problem: problem.clone() });
        self.counts.unread += 1;
        if self.unread.len() < crate::budget::NAMED_MAX {
            self.unread.push(Unread { path, problem });
        }
    }
}

/// The log may grow by this many entries, or the manifest by a tenth, before a new copy is worth it.
const COPY_AFTER_ENTRIES: u64 = 64;

/// What became of one file. Sent to the one who writes the log.
#[derive(Debug)]
enum Done {
    /// It needs nothing after all.
    Same { file: FilePath, size_bytes: u64 },
    /// The run was halted before it was looked at.
    Left,
    /// A fact for the log.
    Stored(Box<send::StoredFile>),
    /// It is not there any more.
    Vanished(FilePath),
    /// A folder was there when its parent was read, and not when it was to be read itself.
    Slipped,
    /// It, or a folder, could not be read.
    Unread { path: String, problem: String },
    /// A link, socket, pipe or device.
    Special { file: FilePath, kind: &'static str },
    /// Its content differs though size and times do not.
    BitRot(FilePath),
    /// It is new, and another shard stores its content.
    Postponed(FilePath),
    /// A shard is about to store these.
    Claim(claim::Asked),
    /// Nothing more can be stored.
    Fatal(BackupError),
}

/// A file that has to be looked into.
#[derive(Debug)]
struct Item {
    file: FilePath,
    /// Where its root lies.
    tree: Arc<Tree>,
    /// A copy that is read in its place.
    copied: Option<stage::Copied>,
    /// What the repository has of it.
    current: Option<CurrentFile>,
    /// Its size when it was walked.
    size_bytes: u64,
    /// Nothing differs; it is read to find damage.
    rehash: bool,
    /// What of it may be stored.
    may: May,
}

impl Item {
    /// A file that was found at its place after the walk.
    fn found(file: FilePath, tree: Arc<Tree>, times: &FileTimes, current: Option<CurrentFile>) -> Self {
        Self { file, tree, copied: None, current, size_bytes: times.size_bytes, rehash: false, may: May::StoreAnything }
    }

    fn class(&self) -> Class {
        crate::library::layout::class_of(&self.file)
    }

    /// Opens it where its bytes lie, and says whether its times are old enough for a later change to show in them.
    fn open(&self) -> Result<(LiveFile, bool), ReadError> {
        if let Some(copied) = &self.copied {
            return copied.open();
        }
        let (folder, path) = self.tree.at(&self.file.path);
        let live = LiveFile::open(folder, &path)?;
        let trusted = send::is_trusted(&live.times());
        Ok((live, trusted))
    }
}
