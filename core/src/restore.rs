//! Bringing a snapshot back: a plan first, then every byte verified while it is written.

pub mod compose;
mod database;

pub use database::{DatabasePlan, DatabaseReport, DumpSource, PreparedDatabase, prepare_database};

use crate::budget::{CHUNK_BYTES, NAMED_MAX, QUEUE_PATHS_PER_WORKER, STREAM_BYTES, TRANSFER_BYTES_MAX, WRITTEN_BYTES_MAX, WRITTEN_FILES_MAX};
use crate::crash::crash_point;
use crate::database::dump::DumpError;
use crate::database::inventory::InventoryError;
use crate::database::load::LoadError;
use crate::database::raw;
use crate::event::{Event, Monitor, Phase};
use crate::library::{layout, scope::Patterns};
use crate::model::{ExternalName, FilePath, Root, RootPath, Sha256Counter};
use crate::repository::fetch::Fetcher;
use crate::repository::key::Key;
use crate::repository::log::{Tally, Unread};
use crate::repository::manifest::{Chosen, FileRow, Lookup, Manifest, ManifestError, SnapshotRow};
use crate::repository::store::StoreError;
use crate::repository::workers::Workers;
use crate::repository::{OpenError, Session};
use crate::target::{Found, NewFile, Target};
use crate::task::{blocking, joined};
use crate::told::told;
use futures_util::TryStreamExt as _;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The snapshot.
    pub snapshot: SnapshotRow,
    /// Where the media location goes; external libraries go to `external/<name>` below it. `None`: neither comes back.
    pub to: Option<PathBuf>,
    /// External libraries that go elsewhere.
    pub externals: BTreeMap<ExternalName, PathBuf>,
    /// Folders that are mounted inside the media location: files below that path go there.
    pub mounts: Vec<(RootPath, PathBuf)>,
    /// Where the stack's configuration goes. Where nothing is said, it is left alone, unless `paths` names it: then it goes to `config` below `to`.
    pub config_to: Option<PathBuf>,
    /// Where PostgreSQL's folder goes; as for the configuration, `postgres` below `to`.
    pub postgres_to: Option<PathBuf>,
    /// Only what these match; all, where there are none.
    pub paths: Patterns,
    /// Only these files, in place of all that stands in the snapshot.
    pub chosen: Option<Arc<Chosen>>,
    /// Replace files that differ.
    pub overwrite: bool,
    /// Files that are written at once.
    pub workers: Workers,
}

impl Plan {
    /// Whether only a part of the snapshot is wanted.
    fn is_part(&self) -> bool {
        !self.paths.is_empty() || self.chosen.is_some()
    }
}

/// What a restore will do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Files to be written.
    pub write: Tally,
    /// Of these, files that replace one that differs.
    pub replace: u64,
    /// Files that are there already, byte for byte.
    pub right: Tally,
    /// Files that differ from what is there.
    pub differ: u64,
    /// The first of them.
    pub differing: Vec<FilePath>,
    /// Files beside the libraries that are left alone: the stack's configuration.
    pub config_left: Tally,
    /// Likewise: PostgreSQL's folder.
    pub postgres_left: Tally,
    /// Room left at the target, in bytes.
    pub free_bytes: u64,
}

/// What a restore did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What it was to do.
    pub preview: Preview,
    /// Files written.
    pub written: Tally,
    /// Files that could not be written, or not be read from the repository.
    pub failed: u64,
    /// Of these, files whose objects are missing or damaged.
    pub damaged: u64,
    /// The first of them.
    pub failures: Vec<Unread>,
    /// `.immich` markers that were made.
    pub markers: u64,
    /// Asked to stop before the end.
    pub interrupted: bool,
}

/// Why a restore stopped. What has been written is whole; the next one skips it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The repository failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The target cannot be used.
    #[error("cannot {action} `{}`", .path.display())]
    Target {
        /// What was being done.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Files are in the way.
    #[error("{count} files at the target differ from the snapshot, the first is `{first}`")]
    Differs {
        /// How many.
        count: u64,
        /// The first.
        first: FilePath,
    },
    /// Not enough room.
    #[error("the target has {free_bytes} bytes left, and {needed_bytes} are needed")]
    NoRoom {
        /// What there is.
        free_bytes: u64,
        /// What it takes.
        needed_bytes: u64,
    },
    /// The media location has a folder where an external library would go.
    #[error("the media location has a folder `external/{name}` of its own, and the external library `{name}` would go there too")]
    SamePlace {
        /// The external library.
        name: ExternalName,
    },
    /// The media location has a folder where something else would go.
    #[error("the media location has a folder `{folder}` of its own, and {root} would go there too")]
    SameFolder {
        /// What would go there.
        root: Root,
        /// The folder.
        folder: &'static str,
    },
    /// The target overlaps with the repository or the state folder.
    #[error("{what} `{}` and the target `{}` lie within one another", .inner.display(), .path.display())]
    Nested {
        /// Repository or state folder.
        what: &'static str,
        /// Where it is.
        inner: PathBuf,
        /// The target.
        path: PathBuf,
    },
    /// Another restore writes to the same folder.
    #[error("another restore writes to `{}`", .path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The database cannot be loaded.
    #[error("cannot restore the database")]
    Load(#[from] LoadError),
    /// It was loaded, and then something went wrong.
    #[error("the database was restored into {target} and is committed, but its rows could not be counted")]
    Uncounted {
        /// The database, as people call it.
        target: String,
        /// Why.
        source: LoadError,
    },
    /// Somebody wrote to it between its dump and its replacement.
    #[error("{target} was written to while it was dumped; nothing was changed")]
    ChangedMeanwhile {
        /// The database, as people call it.
        target: String,
    },
    /// What is in the database cannot be dumped before it is replaced.
    #[error("cannot dump what is in the database now, which has to be done before it is replaced; nothing was changed")]
    Save(#[from] DumpError),
    /// That dump is not whole.
    #[error("the dump of what is in the database now is not whole; nothing was changed")]
    Saved(#[from] InventoryError),
    /// That dump cannot be stored.
    #[error("cannot store the dump of what is in the database now; nothing was changed")]
    Store(#[from] StoreError),
    /// Nothing matches `--path`, or no file of what was found is there.
    #[error("no file of the snapshot matches")]
    NothingMatches,
}

impl From<ManifestError> for RestoreError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl RestoreError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::Target { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room and run the same command again: what is right already is skipped".to_owned())
            }
            Self::Target { .. } => Some("check that it is mounted, and that this user may write there".to_owned()),
            Self::Differs { .. } => Some("nothing was changed; restore to an empty folder, or say --overwrite to replace them (a folder in the place of a file, or a link that leads outside, has to go by hand)".to_owned()),
            Self::NoRoom { .. } => Some("nothing was changed; make room, or take another target".to_owned()),
            Self::SamePlace { name } => Some(format!("nothing was changed; say --external {name}=PATH to put it elsewhere")),
            Self::SameFolder { folder, .. } => Some(format!("nothing was changed; say --{folder}-to DIR to put it elsewhere")),
            Self::Nested { .. } => Some("nothing was changed; take another target".to_owned()),
            Self::Busy { .. } => Some("wait until it has ended, or end it; nothing was changed by this one".to_owned()),
            Self::Load(error) => error.hint(),
            Self::Uncounted { .. } => Some("the files are as they should be; compare the rows yourself, or load again with --replace".to_owned()),
            Self::ChangedMeanwhile { .. } => Some("stop Immich's server, and whatever else uses the database, and run the same command again".to_owned()),
            Self::Save(error) => error.hint().map(Into::into),
            Self::Saved(error) => error.hint().map(Into::into),
            Self::Store(error) => error.hint().map(Into::into),
            Self::NothingMatches => Some("`immich-backup ls` shows what the snapshot holds; `*` stops at `/`, `**` does not".to_owned()),
        }
    }
}

/// How people see the stack's configuration: where it goes below the target, if it goes there.
const CONFIG: &str = "config";
/// Likewise, PostgreSQL's folder.
const POSTGRES: &str = "postgres";

/// A restore that has been planned and can be done.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    targets: Arc<Targets>,
    /// One bit a file of the snapshot, in the manifest's order: it is there already.
    right: Vec<u64>,
    /// Likewise: of those that are there, the ones whose time or permissions differ.
    touch: Vec<u64>,
    /// What is to be written below the media location; external libraries may go to another disk.
    library_bytes: u64,
    /// Clusters in PostgreSQL's folder: paths below it, empty for the folder itself.
    clusters: Vec<String>,
    /// What it will do.
    pub preview: Preview,
}

/// Where each root goes.
#[derive(Debug)]
struct Targets {
    roots: BTreeMap<Root, Target>,
    /// Folders inside the media location that lie elsewhere, the deepest first.
    mounts: Vec<(RootPath, Target)>,
}

impl Targets {
    fn of(&self, root: &Root) -> Option<&Target> {
        self.roots.get(root)
    }

    /// Where `file` goes: the folder, and its path below that.
    fn place<'a>(&self, file: &'a FilePath) -> Option<(&Target, Cow<'a, RootPath>)> {
        if let (Root::Library, Some(found)) = (&file.root, self.mounts.iter().find_map(|(at, target)| Some((target, file.path.below(at)?)))) {
            return Some((found.0, Cow::Owned(found.1)));
        }
        self.of(&file.root).map(|target| (target, Cow::Borrowed(&file.path)))
    }

    fn all(&self) -> impl Iterator<Item = &Target> {
        self.roots.values().chain(self.mounts.iter().map(|(_, target)| target))
    }
}

fn bit(bits: &[u64], index: usize) -> bool {
    bits.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
}

fn set_bit(bits: &mut Vec<u64>, index: usize) {
    if bits.len() <= index / 64 {
        bits.resize(index / 64 + 1, 0);
    }
    if let Some(word) = bits.get_mut(index / 64) {
        *word |= 1 << (index % 64);
    }
}

/// A row of the snapshot that is wanted, and its place in the manifest's order, or among the chosen ones.
type Row = (usize, FileRow);

/// Hands the wanted rows on, from a thread of its own; ends when nobody wants any more.
fn feed_rows(
    manifest: PathBuf,
    plan: &Plan,
    wanted: impl Fn(&FileRow) -> bool + Send + 'static,
    rows: mpsc::Sender<Row>,
) -> std::thread::JoinHandle<Result<(), ManifestError>> {
    enum Halt {
        Enough,
        Failed(ManifestError),
    }
    impl From<ManifestError> for Halt {
        fn from(error: ManifestError) -> Self {
            Self::Failed(error)
        }
    }
    let (sequence, chosen) = (plan.snapshot.sequence, plan.chosen.clone());
    std::thread::spawn(move || {
        let mut index = 0;
        let feed = |row: FileRow| {
            let sent = !wanted(&row) || rows.blocking_send((index, row)).is_ok();
            index += 1;
            if sent { Ok(()) } else { Err(Halt::Enough) }
        };
        let fed = match chosen {
            Some(chosen) => chosen.each(feed),
            None => Manifest::open_for_reading(&manifest)?.each_file(sequence, feed),
        };
        match fed {
            Ok(()) | Err(Halt::Enough) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
        }
    })
}

fn thread_joined<T>(result: std::thread::Result<T>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Looks at the target and says what a restore would do. Changes nothing.
///
/// # Errors
/// The target cannot be used, has no room, or holds files that differ and may not be replaced.
pub async fn prepare(session: &Session, plan: Plan, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Prepared, RestoreError> {
    let targets = Arc::new(Targets::open(session, &plan)?);
    let (right, touch, clusters) = (Vec::new(), Vec::new(), Vec::new());
    let mut prepared = Prepared { targets: Arc::clone(&targets), right, touch, library_bytes: 0, clusters, preview: Preview::default(), plan };
    let total = prepared.plan.chosen.as_ref().map_or_else(|| prepared.plan.snapshot.fact.totals.all(), |chosen| chosen.files());
    monitor.emit(Event::PhaseStarted { phase: Phase::Compare, total_files: Some(total.files), total_bytes: None });
    let workers = prepared.plan.workers.local();
    let (sender, mut rows) = mpsc::channel(workers * QUEUE_PATHS_PER_WORKER);
    let (paths, left) = (prepared.plan.paths.clone(), Arc::new(Mutex::new((Tally::default(), Tally::default()))));
    let (wanting, leaving) = (Arc::clone(&targets), Arc::clone(&left));
    let wanted = move |row: &FileRow| {
        let matches = paths.is_empty() || paths.matches(&row.file.to_string());
        let goes = wanting.of(&row.file.root).is_some();
        if matches && !goes {
            let mut left = leaving.lock().unwrap_or_else(PoisonError::into_inner);
            match row.file.root {
                Root::Config => left.0.add(row.size_bytes),
                Root::Postgres => left.1.add(row.size_bytes),
                Root::Library | Root::External(_) => {}
            }
        }
        matches && goes
    };
    let feeder = feed_rows(session.manifest.path().to_owned(), &prepared.plan, wanted, sender);
    let mut comparing = JoinSet::new();
    loop {
        tokio::select! {
            Some(compared) = comparing.join_next() => {
                let (row, found): (Row, io::Result<Found>) = joined(compared);
                prepared.note(row, found)?;
                monitor.emit(Event::ObjectChecked { size_bytes: 0 });
            }
            Some(row) = rows.recv(), if comparing.len() < workers => {
                if stop.is_cancelled() {
                    break;
                }
                let targets = Arc::clone(&targets);
                comparing.spawn_blocking(move || {
                    let found = targets.place(&row.1.file).map_or(Ok(Found::Nothing), |(target, path)| target.compare(&path, &row.1));
                    (row, found)
                });
            }
            else => break,
        }
    }
    drop(rows);
    thread_joined(feeder.join())?;
    (prepared.preview.config_left, prepared.preview.postgres_left) = *left.lock().unwrap_or_else(PoisonError::into_inner);
    monitor.emit(Event::PhaseFinished { phase: Phase::Compare });
    prepared.check()?;
    Ok(prepared)
}

impl Prepared {
    fn note(&mut self, (index, row): Row, found: io::Result<Found>) -> Result<(), RestoreError> {
        if row.file.root == Root::Postgres
            && let Some(cluster) = row.file.path.as_str().strip_suffix(raw::CONTROL)
            && (cluster.is_empty() || cluster.ends_with('/'))
        {
            self.clusters.push(cluster.trim_end_matches('/').to_owned());
        }
        let elsewhere = match &row.file.root {
            Root::Library => self.targets.mounts.iter().any(|(at, _)| row.file.path.below(at).is_some()),
            Root::External(name) => self.plan.externals.contains_key(name),
            Root::Config => self.plan.config_to.is_some(),
            Root::Postgres => self.plan.postgres_to.is_some(),
        };
        if !elsewhere && matches!(found, Ok(Found::Nothing | Found::Different)) {
            self.library_bytes = self.library_bytes.saturating_add(row.size_bytes);
        }
        let preview = &mut self.preview;
        match found {
            Ok(same @ (Found::Same | Found::SameBytes)) => {
                set_bit(&mut self.right, index);
                if same == Found::SameBytes {
                    set_bit(&mut self.touch, index);
                }
                preview.right.add(row.size_bytes);
            }
            Ok(Found::Nothing) => preview.write.add(row.size_bytes),
            Ok(Found::Different) => {
                preview.differ += 1;
                preview.write.add(row.size_bytes);
                if preview.differing.len() < NAMED_MAX {
                    preview.differing.push(row.file);
                }
            }
            Err(source) => return Err(RestoreError::Target { action: "look at", path: row.file.path.to_path(), source }),
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), RestoreError> {
        let preview = &mut self.preview;
        preview.free_bytes = self.targets.free_bytes()?;
        if let (Some(first), false) = (preview.differing.first(), self.plan.overwrite) {
            return Err(RestoreError::Differs { count: preview.differ, first: first.clone() });
        }
        preview.replace = preview.differ;
        if preview.write.files + preview.right.files == 0 && self.plan.is_part() {
            return Err(RestoreError::NothingMatches);
        }
        if self.library_bytes > preview.free_bytes {
            return Err(RestoreError::NoRoom { free_bytes: preview.free_bytes, needed_bytes: self.library_bytes });
        }
        Ok(())
    }

    /// One barrier, then the names: no file is under its name before its bytes are on disk.
    fn publish(&self, written: &mut Written) -> Publishing {
        let Written { files, .. } = std::mem::take(written);
        let (targets, overwrite) = (Arc::clone(&self.targets), self.plan.overwrite);
        tokio::task::spawn_blocking(move || {
            crash_point!("restore: written, not durable");
            targets.sync()?;
            crash_point!("restore: durable, not named");
            Ok(files.into_iter().map(|(row, file)| (row, file.publish(overwrite).map_err(Failure::Target))).collect())
        })
    }

    /// Does it.
    ///
    /// # Errors
    /// The target is full or gone. Files that fail one by one are in the report.
    pub async fn run(self, session: &Session, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, RestoreError> {
        let mut report = Report { preview: self.preview.clone(), ..Report::default() };
        self.targets.make_library()?;
        let _locks = self.targets.lock()?;
        let Tally { files, bytes } = self.preview.write;
        monitor.emit(Event::PhaseStarted { phase: Phase::Write, total_files: Some(files), total_bytes: Some(bytes) });
        let workers = self.plan.workers.count(&*session.repository.store).min(TRANSFER_BYTES_MAX / STREAM_BYTES);
        let writer = Arc::new(Writer {
            fetcher: Fetcher::new(Arc::clone(&session.repository.store)),
            lookup: Mutex::new(Lookup::open(session.manifest.path())?),
            targets: Arc::clone(&self.targets),
            monitor: Arc::clone(monitor),
        });
        let (sender, mut rows) = mpsc::channel(workers * QUEUE_PATHS_PER_WORKER);
        let (paths, wanting) = (self.plan.paths.clone(), Arc::clone(&self.targets));
        let wanted = move |row: &FileRow| (paths.is_empty() || paths.matches(&row.file.to_string())) && wanting.of(&row.file.root).is_some();
        let feeder = feed_rows(session.manifest.path().to_owned(), &self.plan, wanted, sender);
        let mut writing = JoinSet::new();
        let mut written = Written::default();
        let mut publishing: Option<Publishing> = None;
        let mut more = true;
        while more || !writing.is_empty() {
            // One batch at a time waits for the disk, and the next one is written meanwhile.
            if publishing.is_none() && written.is_due() {
                publishing = Some(self.publish(&mut written));
            }
            tokio::select! {
                () = stop.cancelled() => break,
                published = ended(&mut publishing) => report.note_all(published?, monitor.as_ref())?,
                Some(ended) = writing.join_next() => match joined(ended) {
                    (row, Ok(file)) => written.add(row, file),
                    (row, Err(failure)) => report.note(row, Err(failure), monitor.as_ref())?,
                },
                next = rows.recv(), if more && writing.len() < workers && !written.is_due() => {
                    let Some((index, row)) = next else {
                        more = false;
                        continue;
                    };
                    if bit(&self.right, index) && !bit(&self.touch, index) {
                        continue;
                    }
                    if bit(&self.touch, index) {
                        let touched = self.targets.place(&row.file).map_or(Ok(()), |(target, path)| target.touch(&path, &row));
                        touched.map_err(|source| RestoreError::Target { action: "set the time of", path: row.file.path.to_path(), source })?;
                    } else {
                        let writer = Arc::clone(&writer);
                        writing.spawn(async move { (row.clone(), writer.write(&row).await) });
                    }
                }
            }
        }
        // Dropped futures leave no file behind that has its final name.
        writing.shutdown().await;
        if publishing.is_some() {
            report.note_all(ended(&mut publishing).await?, monitor.as_ref())?;
        }
        if !written.files.is_empty() {
            publishing = Some(self.publish(&mut written));
            report.note_all(ended(&mut publishing).await?, monitor.as_ref())?;
        }
        drop(rows);
        thread_joined(feeder.join())?;
        report.interrupted = stop.is_cancelled();
        if !self.plan.is_part() && !report.interrupted {
            report.markers = self.targets.make_markers()?;
        }
        crash_point!("restore: all named");
        self.targets.make_clusters(&self.clusters)?;
        self.targets.sync()?;
        monitor.emit(Event::PhaseFinished { phase: Phase::Write });
        Ok(report)
    }
}

/// Files that are getting their names, and what became of each.
type Publishing = tokio::task::JoinHandle<Result<Vec<(FileRow, Result<(), Failure>)>, RestoreError>>;

/// The end of what is being published, which is taken then; never, where nothing is.
async fn ended(publishing: &mut Option<Publishing>) -> Result<Vec<(FileRow, Result<(), Failure>)>, RestoreError> {
    let Some(running) = publishing else { return std::future::pending().await };
    let published = joined(running.await);
    *publishing = None;
    published
}

/// Files that are written and wait for a barrier before they get their names.
#[derive(Default)]
struct Written {
    files: Vec<(FileRow, NewFile)>,
    bytes: u64,
}

impl Written {
    fn add(&mut self, row: FileRow, file: NewFile) {
        self.bytes = self.bytes.saturating_add(row.size_bytes);
        self.files.push((row, file));
    }

    fn is_due(&self) -> bool {
        self.files.len() >= WRITTEN_FILES_MAX || self.bytes >= WRITTEN_BYTES_MAX
    }
}

/// Why one file could not be restored.
enum Failure {
    /// Its objects are missing or have wrong bytes.
    Damaged(String),
    /// The store did not give it, though it may be there.
    Store(StoreError),
    /// The target refused it.
    Target(io::Error),
}

impl Failure {
    /// Where the medium itself cannot give the bytes, that is damage of the object, as `verify` has it.
    fn of_reading(error: StoreError) -> Self {
        if error.is_of_medium() { Self::Damaged(told(&error)) } else { Self::Store(error) }
    }
}

impl Report {
    fn note_all(&mut self, files: Vec<(FileRow, Result<(), Failure>)>, monitor: &dyn Monitor) -> Result<(), RestoreError> {
        files.into_iter().try_for_each(|(row, published)| self.note(row, published, monitor))
    }

    fn note(&mut self, row: FileRow, written: Result<(), Failure>, monitor: &dyn Monitor) -> Result<(), RestoreError> {
        let problem = match written {
            Ok(()) => {
                self.written.add(row.size_bytes);
                monitor.emit(Event::FileRestored { path: row.file, size_bytes: row.size_bytes });
                return Ok(());
            }
            Err(Failure::Target(source)) if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem) => {
                return Err(RestoreError::Target { action: "write to", path: row.file.path.to_path(), source });
            }
            Err(Failure::Target(error)) => format!("cannot write it: {error}"),
            Err(Failure::Store(error)) => std::error::Error::source(&error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")),
            Err(Failure::Damaged(problem)) => {
                self.damaged += 1;
                problem
            }
        };
        self.failed += 1;
        let path = row.file.to_string();
        monitor.emit(Event::FileFailed { path: path.clone(), problem: problem.clone() });
        if self.failures.len() < NAMED_MAX {
            self.failures.push(Unread { path, problem });
        }
        Ok(())
    }
}

struct Writer {
    fetcher: Fetcher,
    lookup: Mutex<Lookup>,
    targets: Arc<Targets>,
    monitor: Arc<dyn Monitor>,
}

impl Writer {
    /// Writes one file from its object, or from another one with the same content.
    async fn write(self: &Arc<Self>, row: &FileRow) -> Result<NewFile, Failure> {
        let mut first = None;
        if !row.damaged {
            match self.write_from(row, &row.key).await {
                Err(failure @ (Failure::Damaged(_) | Failure::Store(_))) => first = Some(failure),
                other => return other,
            }
        }
        let others = self.lookup.lock().unwrap_or_else(PoisonError::into_inner).objects_with(&row.digests.sha256);
        for other in others.unwrap_or_default() {
            if other.key != row.key
                && let Ok(file) = self.write_from(row, &other.key).await
            {
                return Ok(file);
            }
        }
        Err(first.unwrap_or_else(|| Failure::Damaged(format!("its object `{}` is known to be damaged, and no other holds its content", row.key))))
    }

    /// One bad transfer is no damage: the second reading decides.
    async fn write_from(&self, row: &FileRow, key: &str) -> Result<NewFile, Failure> {
        match self.write_once(row, key).await {
            Err(Failure::Damaged(_)) => self.write_once(row, key).await,
            other => other,
        }
    }

    async fn write_once(&self, row: &FileRow, key: &str) -> Result<NewFile, Failure> {
        let Some((target, path)) = self.targets.place(&row.file) else { return Err(Failure::Target(io::ErrorKind::NotFound.into())) };
        let key = Key::parse(key).map_err(|error| Failure::Damaged(error.to_string()))?;
        let mut pieces = match self.fetcher.fetch(&key, row.size_bytes).await {
            Ok(pieces) => pieces,
            Err(StoreError::NotFound { .. }) => return Err(Failure::Damaged(format!("its object `{key}` is missing"))),
            Err(error) => return Err(Failure::of_reading(error)),
        };
        let mut file = target.begin(&path).map_err(Failure::Target)?;
        let mut hasher = Sha256Counter::default();
        while let Some(piece) = pieces.try_next().await.map_err(Failure::of_reading)? {
            debug_assert!(piece.len() <= CHUNK_BYTES);
            (file, hasher) = blocking(move || {
                hasher.update(&piece);
                file.write(&piece).map(|()| (file, hasher))
            })
            .await
            .map_err(Failure::Target)?;
        }
        let (sha256, size_bytes) = hasher.finish();
        if (sha256, size_bytes) != (row.digests.sha256, row.size_bytes) {
            return Err(Failure::Damaged(format!("its object `{key}` has other bytes than were stored")));
        }
        let row = row.clone();
        let file = blocking(move || file.complete(&row).map(|()| file)).await.map_err(Failure::Target)?;
        self.monitor.emit(Event::BytesSent { bytes: size_bytes });
        Ok(file)
    }
}

impl Targets {
    /// Opens, and where needed makes, the folder of each root that the snapshot has.
    fn open(session: &Session, plan: &Plan) -> Result<Self, RestoreError> {
        let mut targets = BTreeMap::new();
        let open = |path: &Path| Target::open(path).map_err(|source| RestoreError::Target { action: "open", path: path.to_owned(), source });
        // A dry run makes no folder.
        if let Some(to) = &plan.to {
            targets.insert(Root::Library, if to.exists() { open(to)? } else { Target::later(to.clone()) });
        }
        for (root, folder, elsewhere) in [(Root::Config, CONFIG, &plan.config_to), (Root::Postgres, POSTGRES, &plan.postgres_to)] {
            let within = plan.to.as_ref().filter(|_| plan.paths.name(folder)).map(|to| Target::within(to, Path::new(folder)));
            if let Some(target) = elsewhere.clone().map(Target::later).or(within) {
                targets.insert(root, target.private());
            }
        }
        let mut own_external = BTreeSet::new();
        let mut own_folders = BTreeSet::new();
        let mut folders = session.manifest.folders();
        loop {
            let page = folders.next_page()?;
            if page.is_empty() {
                break;
            }
            for (_, root, path) in page {
                if let (Root::External(name), Some(to)) = (&root, &plan.to)
                    && !targets.contains_key(&root)
                {
                    let target = match plan.externals.get(name) {
                        Some(path) => Target::later(path.clone()),
                        None => Target::within(to, &Path::new("external").join(name.as_str())),
                    };
                    targets.insert(root, target);
                } else if root == Root::Library {
                    let (top, inside) = path.split_once('/').unwrap_or((&path, ""));
                    if top == "external" && !inside.is_empty() {
                        own_external.insert(inside.split('/').next().unwrap_or(inside).to_owned());
                    }
                    own_folders.extend([CONFIG, POSTGRES].into_iter().filter(|folder| *folder == top));
                }
            }
        }
        for root in targets.keys() {
            if let Root::External(name) = root
                && own_external.contains(name.as_str())
                && !plan.externals.contains_key(name)
            {
                return Err(RestoreError::SamePlace { name: name.clone() });
            }
        }
        for (root, folder, elsewhere) in [(Root::Config, CONFIG, &plan.config_to), (Root::Postgres, POSTGRES, &plan.postgres_to)] {
            if elsewhere.is_none() && own_folders.contains(folder) && targets.contains_key(&root) {
                return Err(RestoreError::SameFolder { root, folder });
            }
        }
        let mut mounts: Vec<_> = plan.mounts.iter().map(|(at, path)| (at.clone(), Target::later(path.clone()))).collect();
        mounts.sort_by_key(|(at, _)| std::cmp::Reverse(at.as_str().len()));
        let targets = Self { roots: targets, mounts: if plan.to.is_some() { mounts } else { Vec::new() } };
        for target in targets.all() {
            if let Some((what, inner)) = session.overlapping(target.path()) {
                return Err(RestoreError::Nested { what, inner, path: target.path().to_owned() });
            }
        }
        Ok(targets)
    }

    /// A media location alone.
    fn of_media(media: &Path, mounts: &[(RootPath, PathBuf)]) -> Self {
        let mut mounts: Vec<_> = mounts.iter().map(|(at, path)| (at.clone(), Target::later(path.clone()))).collect();
        mounts.sort_by_key(|(at, _)| std::cmp::Reverse(at.as_str().len()));
        Self { roots: BTreeMap::from([(Root::Library, Target::later(media.to_owned()))]), mounts }
    }

    /// Makes the folder of the media location, so that a target that cannot be used stops the restore before any file.
    fn make_library(&self) -> Result<(), RestoreError> {
        let Some(library) = self.of(&Root::Library) else { return Ok(()) };
        library.make().map_err(|source| RestoreError::Target { action: "open", path: library.path().to_owned(), source })
    }

    /// Locks the media location's folder, and those of external libraries that lie elsewhere and are there.
    fn lock(&self) -> Result<Vec<OwnedFd>, RestoreError> {
        let mut locks = Vec::new();
        for target in self.all().filter(|target| target.path().exists()) {
            let failed = |source| RestoreError::Target { action: "lock", path: target.path().to_owned(), source };
            locks.push(target.lock().map_err(failed)?.ok_or_else(|| RestoreError::Busy { path: target.path().to_owned() })?);
        }
        Ok(locks)
    }

    fn free_bytes(&self) -> Result<u64, RestoreError> {
        let Some(library) = self.of(&Root::Library).or_else(|| self.all().next()) else { return Ok(0) };
        library.free_bytes().map_err(|source| RestoreError::Target { action: "measure", path: library.path().to_owned(), source })
    }

    fn make_markers(&self) -> Result<u64, RestoreError> {
        let mut made = 0;
        for marker in layout::markers() {
            let Ok(path) = RootPath::parse(&marker) else { continue };
            let file = FilePath::library(path);
            let Some((target, path)) = self.place(&file) else { continue };
            let failed = |source| RestoreError::Target { action: "make markers in", path: target.path().to_owned(), source };
            made += u64::from(target.make_marker(&path).map_err(failed)?);
        }
        Ok(made)
    }

    /// Makes the folders that PostgreSQL needs and that had no file.
    fn make_clusters(&self, clusters: &[String]) -> Result<(), RestoreError> {
        let Some(target) = self.of(&Root::Postgres) else { return Ok(()) };
        let failed = |source| RestoreError::Target { action: "make folders in", path: target.path().to_owned(), source };
        let within = |cluster: &String| RootPath::parse(cluster).map_or_else(|_| PathBuf::new(), |path| path.to_path());
        clusters.iter().try_for_each(|cluster| target.make_folders(&within(cluster), &raw::FOLDERS)).map_err(failed)
    }

    fn sync(&self) -> Result<(), RestoreError> {
        for target in self.all() {
            target.sync().map_err(|source| RestoreError::Target { action: "flush", path: target.path().to_owned(), source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_are_set_in_any_order_stay_and_take_a_word_for_64() {
        let set = [130, 5, 63, 64, 0, 127];
        let mut bits = Vec::new();
        for index in set {
            set_bit(&mut bits, index);
        }
        assert!((0..300).all(|index| bit(&bits, index) == set.contains(&index)), "{bits:?}");
        assert_eq!(bits.len(), 3);
    }
}
