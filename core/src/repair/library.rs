//! Files of the library that are damaged or lost, while the repository has the right bytes: offered, and put in their place without destroying anything.

use super::{RepairError, unread};
use crate::budget::NAMED_MAX;
use crate::database::inventory::Inventory;
use crate::event::{Event, Monitor, Phase};
use crate::library::read::{LiveFile, ReadError};
use crate::library::tree::Tree;
use crate::listing::{self, ListError};
use crate::model::{Class, Content, Digests, FilePath, FileTimes, Hasher, Root, RootPath, Sha256};
use crate::repository::fetch::Fetcher;
use crate::repository::key::Key;
use crate::repository::manifest::{FileRow, Held, Manifest, SnapshotRow};
use crate::repository::store::StoreError;
use crate::repository::{OpenError, Session, without_links};
use crate::target::{NewFile, Target};
use crate::task::blocking;
use crate::verdict::Thing;
use futures_util::TryStreamExt as _;
use rustix::fs::{AtFlags, Stat};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A folder of the machine that is backed up, and folders that are mounted inside of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibrarySource {
    /// What it is.
    pub root: Root,
    /// Where it lies.
    pub path: PathBuf,
    /// Folders that are mounted inside, by their path there.
    pub mounts: Vec<(RootPath, PathBuf)>,
}

/// The open folders.
#[derive(Debug, Default)]
pub(super) struct Roots(BTreeMap<Root, Tree>);

impl Roots {
    pub(super) fn open(sources: &[LibrarySource]) -> Result<Arc<Self>, RepairError> {
        let open = |source: &LibrarySource| Ok((source.root.clone(), Tree::open(&source.path, &source.mounts)?));
        Ok(Arc::new(Self(sources.iter().map(open).collect::<Result<_, RepairError>>()?)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Root, &Tree)> {
        self.0.iter()
    }

    pub(super) fn open_file(&self, file: &FilePath) -> Result<LiveFile, ReadError> {
        let tree = self.0.get(&file.root).ok_or(ReadError::Vanished)?;
        let (folder, path) = tree.at(&file.path);
        LiveFile::open(folder, &path)
    }

    /// What the file holds; `None` where it cannot be read, or does not hold still.
    pub(super) fn hash(&self, file: &FilePath) -> Option<Content> {
        self.open_file(file).ok()?.hash(|| true).ok()
    }

    /// Whether the file holds this content: its size is looked at first.
    pub(super) fn has(&self, file: &FilePath, (sha256, size_bytes): (Sha256, u64)) -> bool {
        let opened = self.open_file(file).ok().filter(|opened| opened.times().size_bytes == size_bytes);
        opened.and_then(|opened| opened.hash(|| true).ok()).is_some_and(|content| content.digests.sha256 == sha256)
    }

    fn stat(&self, file: &FilePath) -> Option<Stat> {
        let (folder, path) = self.0.get(&file.root)?.at(&file.path);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY;
        let opened = parent.map(|parent| crate::library::walk::open_below(folder, parent, flags)).transpose().ok()?;
        rustix::fs::statat(opened.as_ref().unwrap_or(folder), path.file_name()?, AtFlags::SYMLINK_NOFOLLOW).ok()
    }
}

/// What to look for.
#[derive(Debug, Clone, Default)]
pub struct LibraryOptions {
    /// The library, and external ones.
    pub sources: Vec<LibrarySource>,
    /// Read every original, not only those that runs have found.
    pub read_data: bool,
    /// Where damaged bytes are kept; a folder outside of all that is backed up. `None`: in the state folder.
    pub keep_damaged: Option<PathBuf>,
}

/// Why a file is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Healing {
    /// Its content differs from what was stored, though size and time are the same: the disk has lost it.
    BitRot,
    /// Its content contradicts the SHA-1 that Immich recorded, and what is stored does not.
    Contradicts,
    /// Immich's database names it, and it was not there at the last backup, nor is it now.
    Missing,
}

/// What a live file was when it was planned to be replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Live {
    device: u64,
    inode: u64,
    times: FileTimes,
    digests: Digests,
}

impl Live {
    fn of(stat: &Stat, digests: Digests) -> Self {
        Self { device: stat.st_dev, inode: stat.st_ino, times: crate::library::walk::file_times(stat), digests }
    }

    /// Whether that is this file, untouched. A change of place alone changes its ctime.
    fn is(&self, stat: &Stat, with_ctime: bool) -> bool {
        let times = crate::library::walk::file_times(stat);
        let same = (stat.st_dev, stat.st_ino, times.size_bytes, times.mtime_ns) == (self.device, self.inode, self.times.size_bytes, self.times.mtime_ns);
        same && (!with_ctime || times.ctime_ns == self.times.ctime_ns)
    }
}

/// A file of the library in whose place the right bytes can be put.
#[derive(Debug, Clone, Serialize)]
pub struct SourceFile {
    /// Which.
    pub file: FilePath,
    /// Why.
    pub why: Healing,
    /// Size of the right content, in bytes.
    pub size_bytes: u64,
    /// The object that has it.
    pub key: String,
    /// Modification time of what was stored, in nanoseconds since 1970.
    pub stored_mtime_ns: i64,
    /// That of the live file, where there is one: where it is later, somebody may have edited the file on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_mtime_ns: Option<i64>,
    #[serde(skip)]
    row: FileRow,
    #[serde(skip)]
    live: Option<Live>,
}

/// What healing the library would do.
#[derive(Debug, Clone, Default)]
pub struct Heal {
    /// Each file.
    pub files: Vec<SourceFile>,
    /// Files that runs complained about and that are left alone, with the reason: the first of them.
    pub left: Vec<(String, String)>,
    /// What could not be looked for.
    pub remarks: Vec<String>,
    /// Whether what Immich recorded could not be had, so that less was looked for than was asked.
    pub is_partial: bool,
    /// Where damaged bytes will be kept.
    pub keep_damaged: PathBuf,
    sources: Vec<LibrarySource>,
}

/// What healing the library did.
#[derive(Debug, Default, Serialize)]
pub struct HealReport {
    /// Files that have the right bytes now.
    pub healed: Vec<FilePath>,
    /// Where their damaged bytes are: as many as were damaged, not missing.
    pub kept: Vec<PathBuf>,
    /// Files that could not be healed, and why; they are as they were.
    pub failures: Vec<(String, String)>,
    /// What ended it before all were looked at.
    #[serde(skip)]
    pub ended_by: Option<RepairError>,
}

/// A folder of the state folder.
const KEPT: &str = "damaged";

struct Planner<'a> {
    session: &'a Session,
    snapshot: SnapshotRow,
    roots: Arc<Roots>,
    inventory: Option<Inventory>,
    heal: Heal,
    seen: BTreeSet<FilePath>,
}

/// Says what of the library can be healed. Changes nothing.
///
/// # Errors
/// The repository cannot be asked, or the library cannot be opened.
pub async fn prepare_library(session: &Session, options: LibraryOptions, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Heal, RepairError> {
    let roots = Roots::open(&options.sources)?;
    let keep_damaged = options.keep_damaged.clone().unwrap_or_else(|| session.state.folder().join(KEPT));
    refuse_nested(session, &keep_damaged, &options.sources)?;
    let mut heal = Heal { keep_damaged, sources: options.sources, ..Heal::default() };
    let Some(snapshot) = session.manifest.latest_snapshot()? else {
        heal.remarks.push("there is no snapshot yet: nothing to compare with".to_owned());
        return Ok(heal);
    };
    let (inventory, _dump, _scratch) = match list(session, &snapshot, monitor, stop).await? {
        Ok(listing) => {
            let (inventory, dump, file) = listing.into_parts();
            (Some(inventory), Some(dump), Some(file))
        }
        Err((remark, is_expected)) => {
            heal.remarks.push(remark);
            heal.is_partial = !is_expected;
            (None, None, None)
        }
    };
    let mut planner = Planner { session, snapshot, roots, inventory, heal, seen: BTreeSet::new() };
    monitor.emit(Event::PhaseStarted { phase: Phase::Compare, total_files: None, total_bytes: None });
    planner.complained_about(stop).await?;
    planner.missing(stop)?;
    if options.read_data {
        planner.read_all(monitor, stop).await?;
    }
    monitor.emit(Event::PhaseFinished { phase: Phase::Compare });
    if stop.is_cancelled() { Err(RepairError::Interrupted) } else { Ok(planner.heal) }
}

/// What the snapshot's dump names; a remark where that cannot be had, and whether it was to be expected.
async fn list(
    session: &Session,
    snapshot: &SnapshotRow,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<Result<listing::Listing, (String, bool)>, RepairError> {
    match listing::list(session, snapshot, monitor, stop).await {
        Ok(listing) => Ok(Ok(listing)),
        Err(ListError::Interrupted) => Err(RepairError::Interrupted),
        Err(ListError::Manifest(error)) => Err(error.into()),
        Err(error) => {
            let remark = format!("what Immich recorded is not known, so that only size, time and content are compared: {}", crate::told::told(&error));
            // Whoever backs up no database has no dump, and misses nothing.
            Ok(Err((remark, matches!(error, ListError::NoDump { .. }))))
        }
    }
}

fn refuse_nested(session: &Session, keep: &Path, sources: &[LibrarySource]) -> Result<(), RepairError> {
    let nested = |what: String| RepairError::Nested { path: keep.to_owned(), what };
    let Some(real) = without_links(keep) else { return Ok(()) };
    for source in sources {
        for folder in std::iter::once(&source.path).chain(source.mounts.iter().map(|(_, path)| path)) {
            if without_links(folder).is_some_and(|folder| real.starts_with(folder)) {
                return Err(nested(source.root.to_string()));
            }
        }
    }
    let repository = PathBuf::from(session.store().url());
    if repository.is_dir() && without_links(&repository).is_some_and(|repository| real.starts_with(repository)) {
        return Err(nested("the repository".to_owned()));
    }
    Ok(())
}

/// The files that are shown as `text`: a folder `config` of the media location looks like another root.
fn files_shown_as(text: &str) -> Vec<FilePath> {
    let mut files: Vec<FilePath> = FilePath::from_text(text).into_iter().collect();
    if let Ok(path) = RootPath::parse(text) {
        let file = FilePath::library(path);
        if !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

impl Planner<'_> {
    fn manifest(&self) -> &Manifest {
        &self.session.manifest
    }

    fn leave(&mut self, file: &FilePath, reason: &str) {
        if self.heal.left.len() < NAMED_MAX {
            self.heal.left.push((file.to_string(), reason.to_owned()));
        }
    }

    /// What any run has said of bit rot, and of content that Immich contradicts: it may be so still.
    async fn complained_about(&mut self, stop: &CancellationToken) -> Result<(), RepairError> {
        let snapshots = self.manifest().snapshots()?;
        let texts: BTreeSet<String> = snapshots.into_iter().flat_map(|row| row.fact.bit_rot.into_iter().chain(row.fact.doubtful)).collect();
        for text in texts {
            if stop.is_cancelled() {
                return Ok(());
            }
            let mut standing = Vec::new();
            for file in files_shown_as(&text) {
                standing.extend(self.manifest().standing_at(&file, self.snapshot.sequence)?);
            }
            match (standing.pop(), standing.pop()) {
                (Some(row), None) => self.compare(row, true).await?,
                (Some(row), Some(_)) => self.leave(&row.file, "two files are shown by this name"),
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn recorded(&self, file: &FilePath) -> Result<Option<crate::model::Sha1>, RepairError> {
        let asset = self.inventory.as_ref().map(|inventory| inventory.asset_at(file)).transpose();
        Ok(asset
            .map_err(|error| OpenError::from(StoreError::Io { action: "list", key: "the dump".to_owned(), source: io::Error::other(error) }))?
            .flatten()
            .and_then(|asset| asset.sha1))
    }

    /// Compares what the library has with what stands in the snapshot.
    async fn compare(&mut self, row: FileRow, is_named: bool) -> Result<(), RepairError> {
        let file = row.file.clone();
        if !self.roots.0.contains_key(&file.root) || !self.seen.insert(file.clone()) {
            return Ok(());
        }
        let Some(stat) = self.roots.stat(&file) else { return Ok(()) };
        let times = crate::library::walk::file_times(&stat);
        let recorded = self.recorded(&file)?;
        let is_untouched = (times.size_bytes, times.mtime_ns) == (row.size_bytes, row.mtime_ns);
        if recorded.is_none() && !is_untouched {
            if is_named {
                self.leave(&file, "its size or time is another than at the last backup: the next one looks at it");
            }
            return Ok(());
        }
        let (roots, reading) = (Arc::clone(&self.roots), file.clone());
        let Some(content) = blocking(move || roots.hash(&reading)).await else {
            self.leave(&file, "it cannot be read, or does not hold still");
            return Ok(());
        };
        if content.digests == row.digests {
            return Ok(());
        }
        let why = match recorded {
            Some(sha1) if sha1 == content.digests.sha1 => None,
            Some(sha1) if sha1 == row.digests.sha1 => Some(Healing::Contradicts),
            // Neither is what Immich recorded: nobody knows which is right.
            Some(_) => None,
            None => Some(Healing::BitRot),
        };
        match why {
            Some(why) => self.offer(row, why, Some(Live::of(&stat, content.digests))),
            None => self.leave(&file, "what is stored is not what Immich recorded either, or the live file is right"),
        }
        Ok(())
    }

    fn offer(&mut self, row: FileRow, why: Healing, live: Option<Live>) {
        self.heal.files.push(SourceFile {
            file: row.file.clone(),
            why,
            size_bytes: row.size_bytes,
            key: row.key.clone(),
            stored_mtime_ns: row.mtime_ns,
            live_mtime_ns: live.map(|live| live.times.mtime_ns),
            row,
            live,
        });
    }

    /// What the dump names, what did not stand at the last backup, and what is not there now: if its content is in the repository.
    fn missing(&mut self, stop: &CancellationToken) -> Result<(), RepairError> {
        let Some(inventory) = self.inventory.take() else { return Ok(()) };
        let failed = |error| OpenError::from(StoreError::Io { action: "list", key: "the dump".to_owned(), source: io::Error::other(error) });
        let mut cursor = None;
        loop {
            let (page, next) = inventory.named_page(cursor).map_err(failed)?;
            for named in page {
                if stop.is_cancelled() {
                    return Ok(());
                }
                let is_wanted = matches!(named.thing, Thing::Asset | Thing::Sidecar | Thing::Profile) && !named.offline;
                if !is_wanted || !self.roots.0.contains_key(&named.file.root) || self.roots.stat(&named.file).is_some() {
                    continue;
                }
                if self.manifest().standing_at(&named.file, self.snapshot.sequence)?.is_some() {
                    self.leave(
                        &named.file,
                        "it was there at the last backup, and went since: deleted perhaps; where the next backup calls it missing, it is offered",
                    );
                    continue;
                }
                let Some(held) = self.kept(&named.file, named.sha1)? else { continue };
                if self.seen.insert(named.file.clone()) {
                    self.offer(FileRow { file: named.file, ..held.row }, Healing::Missing, None);
                }
            }
            cursor = next;
            if cursor.is_none() {
                self.inventory = Some(inventory);
                return Ok(());
            }
        }
    }

    /// What the repository has of a file: what Immich recorded, or, where it recorded nothing, what stood there last.
    fn kept(&self, file: &FilePath, sha1: Option<crate::model::Sha1>) -> Result<Option<Held>, RepairError> {
        Ok(match sha1 {
            Some(sha1) => {
                let versions = self.manifest().versions_with_sha1(&sha1)?;
                let whole = || versions.iter().filter(|held| !held.row.damaged);
                whole().find(|held| held.row.file == *file).or_else(|| whole().next()).cloned()
            }
            None => self.manifest().last_version(file)?.filter(|held| !held.row.damaged),
        })
    }

    /// Every original that stands in the snapshot.
    async fn read_all(&mut self, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), RepairError> {
        let mut folders = Vec::new();
        {
            let mut pages = self.manifest().folders();
            loop {
                let page = pages.next_page()?;
                if page.is_empty() {
                    break;
                }
                folders.extend(page.into_iter().map(|(_, root, path)| (root, path)));
            }
        }
        for (root, folder) in folders {
            for row in self.manifest().standing_in(&root, &folder, self.snapshot.sequence)? {
                if stop.is_cancelled() {
                    return Ok(());
                }
                if crate::library::layout::class_of(&row.file) == Class::Original && row.file.root.is_of_immich() {
                    let size_bytes = row.size_bytes;
                    self.compare(row, false).await?;
                    monitor.emit(Event::ObjectChecked { size_bytes });
                }
            }
        }
        Ok(())
    }
}

/// Why one file was not healed.
enum Failure {
    /// It is as it was.
    File(String),
    /// Nothing can be written any more.
    Fatal(RepairError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::File(error.to_string())
    }
}

impl Heal {
    /// Does it: for each file the right bytes are fetched and verified beside it, the damaged ones are kept elsewhere, and the two change places in one step,
    /// if the live file is the planned one still.
    ///
    /// # Errors
    /// The folders cannot be opened, or somebody else writes there. What fails file by file, and what ends it midway, is in the report.
    pub async fn run(&self, session: &Session, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<HealReport, RepairError> {
        let mut report = HealReport::default();
        let roots = Roots::open(&self.sources)?;
        let _locks = self.lock()?;
        let fetcher = Fetcher::new(Arc::clone(&session.repository.store));
        monitor.emit(Event::PhaseStarted { phase: Phase::Write, total_files: Some(self.files.len() as u64), total_bytes: None });
        for planned in &self.files {
            if stop.is_cancelled() {
                report.ended_by = Some(RepairError::Interrupted);
                break;
            }
            match self.heal_one(session, &fetcher, &roots, planned).await {
                Ok(kept) => {
                    report.healed.push(planned.file.clone());
                    report.kept.extend(kept);
                    monitor.emit(Event::FileRestored { path: planned.file.clone(), size_bytes: planned.size_bytes });
                }
                Err(Failure::Fatal(error)) => {
                    report.ended_by = Some(error);
                    break;
                }
                Err(Failure::File(problem)) => {
                    monitor.emit(Event::FileFailed { path: planned.file.to_string(), problem: problem.clone() });
                    report.failures.push((planned.file.to_string(), problem));
                }
            }
        }
        monitor.emit(Event::PhaseFinished { phase: Phase::Write });
        Ok(report)
    }

    /// Keeps others out while files are replaced: two would use the same temporary names, as a restore into the library would.
    fn lock(&self) -> Result<Vec<OwnedFd>, RepairError> {
        let folders = self.sources.iter().flat_map(|source| std::iter::once(&source.path).chain(source.mounts.iter().map(|(_, path)| path)));
        let mut locks = Vec::new();
        let folders: BTreeSet<PathBuf> = folders.map(|path| without_links(path).unwrap_or_else(|| path.clone())).collect();
        for path in folders {
            let failed = |source| RepairError::Folder { action: "lock", path: path.clone(), source };
            let who = || RepairError::Busy { who: format!("another repair or restore writes to `{}`", path.display()) };
            locks.push(Target::later(path.clone()).lock().map_err(failed)?.ok_or_else(who)?);
        }
        Ok(locks)
    }

    /// Where the file goes: the folder of the machine, and its path there.
    fn target(&self, file: &FilePath) -> Option<(Target, RootPath)> {
        let source = self.sources.iter().find(|source| source.root == file.root)?;
        let mut mounts: Vec<_> = source.mounts.iter().filter_map(|(at, folder)| Some((folder, file.path.below(at)?))).collect();
        mounts.sort_by_key(|(_, path)| path.as_str().len());
        let (folder, path) = mounts.into_iter().next().unwrap_or((&source.path, file.path.clone()));
        Some((Target::later(folder.clone()).inheriting(), path))
    }

    async fn heal_one(&self, session: &Session, fetcher: &Fetcher, roots: &Arc<Roots>, planned: &SourceFile) -> Result<Option<PathBuf>, Failure> {
        let Some((target, path)) = self.target(&planned.file) else { return Err(Failure::File("its folder was not given".to_owned())) };
        // A link in the place of a folder is not followed here, wherever it leads: the file was never read through one.
        let is_there = roots.stat(&planned.file);
        match (&planned.live, &is_there) {
            (Some(live), Some(stat)) if live.is(stat, true) => {}
            (None, None) => {}
            _ => return Err(Failure::File("it has changed since it was planned".to_owned())),
        }
        let mut file = fetch(session, fetcher, &target, &path, &planned.row).await?;
        let row = planned.row.clone();
        let file = blocking(move || {
            file.give_to_owner(is_there.as_ref())?;
            file.complete_durably(&row).map(|()| file)
        })
        .await?;
        let Some(live) = planned.live else {
            blocking(move || file.publish_durably()).await?;
            return Ok(None);
        };
        let kept = self.keep(roots, planned, &live).await?;
        if blocking(move || file.exchange(|stat| live.is(stat, false))).await? {
            Ok(Some(kept))
        } else {
            Err(Failure::File("it has changed since it was planned".to_owned()))
        }
    }

    /// Copies the damaged bytes to where they are kept, on disk by then.
    async fn keep(&self, roots: &Arc<Roots>, planned: &SourceFile, live: &Live) -> Result<PathBuf, Failure> {
        let digest = live.digests.sha256.to_string();
        let mut name = planned.file.to_string().replace('/', "%2F");
        // Names of files are short, paths may not be: the digest tells them apart.
        while name.len() > NAME_BYTES_MAX {
            name.pop();
        }
        let kept = self.keep_damaged.join(format!("{name}.{}", digest.get(..16).unwrap_or(&digest)));
        let (folder, reading, file, expected, to) = (self.keep_damaged.clone(), Arc::clone(roots), planned.file.clone(), live.digests, kept.clone());
        let copied = blocking(move || {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let temporary = to.with_added_extension("part");
            drop(std::fs::remove_file(&temporary));
            let mut copy = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
            let mut failed = None;
            let opened = reading.open_file(&file).map_err(|error| io::Error::other(unread(error)))?;
            let read = opened.read_pieces(|piece| {
                failed = copy.write_all(&piece).err();
                failed.is_none()
            });
            if let Some(error) = failed {
                return Err(error);
            }
            let read = read.map_err(|error| io::Error::other(unread(error)))?;
            if read.digests != expected {
                drop(std::fs::remove_file(&temporary));
                return Err(io::Error::other("it has changed since it was planned"));
            }
            copy.sync_all()?;
            std::fs::rename(&temporary, &to)?;
            std::fs::File::open(&folder)?.sync_all()
        });
        match copied.await {
            Ok(()) => Ok(kept),
            Err(source) if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                Err(Failure::Fatal(RepairError::Folder { action: "keep damaged bytes in", path: self.keep_damaged.clone(), source }))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Longest beginning of a path that the name of kept bytes has.
const NAME_BYTES_MAX: usize = 200;

/// The right bytes, whole and verified, under a temporary name beside the file. From its object, or another one with the same content.
async fn fetch(session: &Session, fetcher: &Fetcher, target: &Target, path: &RootPath, row: &FileRow) -> Result<NewFile, Failure> {
    let others = session.manifest.objects_with(&row.digests.sha256).map_err(|error| Failure::Fatal(error.into()))?;
    let keys = std::iter::once(row.key.clone()).chain(others.into_iter().map(|other| other.key).filter(|key| *key != row.key));
    let mut first = None;
    for key in keys {
        match fetch_from(fetcher, target, path, row, &key).await {
            Err(Failure::File(problem)) => drop(first.get_or_insert(problem)),
            other => return other,
        }
    }
    Err(Failure::File(first.unwrap_or_default()))
}

async fn fetch_from(fetcher: &Fetcher, target: &Target, path: &RootPath, row: &FileRow, key: &str) -> Result<NewFile, Failure> {
    let failed = |error: StoreError| Failure::File(crate::told::told(&error));
    let key = Key::parse(key).map_err(|error| Failure::File(error.to_string()))?;
    let mut pieces = fetcher.fetch(&key, row.size_bytes).await.map_err(failed)?;
    let mut file = target.begin(path)?;
    let mut hasher = Hasher::default();
    while let Some(piece) = pieces.try_next().await.map_err(failed)? {
        (file, hasher) = blocking(move || {
            hasher.update(&piece);
            file.write(&piece).map(|()| (file, hasher))
        })
        .await?;
    }
    let content = hasher.finish();
    if content.digests != row.digests || content.size_bytes != row.size_bytes {
        return Err(Failure::File(format!("its object `{key}` has other bytes than were stored")));
    }
    Ok(file)
}
