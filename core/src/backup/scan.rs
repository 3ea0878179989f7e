//! Comparing the library with the manifest while walking it: what differs goes into the queue.

use super::claim::May;
use super::{BackupError, Done, Item, OpenSource};
use crate::event::{Event, Monitor};
use crate::library::scope::Scope;
use crate::library::tree::Tree;
use crate::library::walk::{self, Visitor};
use crate::model::{FilePath, FileTimes, Part, Root, RootPath};
use crate::repository::log::Tally;
use crate::repository::manifest::{Lookup, ManifestError, StandingFolder};
use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Files between two events for the bars.
const FILES_PER_EVENT: u64 = 1_000;
/// Or so much time, where files come slowly. Not after each folder: Immich makes 65,536 of them for each user.
const EVENT_EVERY: Duration = Duration::from_millis(100);

/// Folders that are asked for in one transaction: each begins and ends with locks of files. The state that it sees is a moment old; what a run stores
/// meanwhile lies in folders that the walk has passed.
const FOLDERS_PER_TRANSACTION: u32 = 64;

/// Folders that could not be read and are remembered one by one; with more than that nothing is taken for gone.
const FAILED_FOLDERS_MAX: usize = 10_000;

/// What a walk needs.
#[derive(Debug, Clone)]
pub(super) struct Scan {
    pub(super) sources: Vec<OpenSource>,
    pub(super) scope: Arc<Scope>,
    pub(super) walkers: NonZeroUsize,
    pub(super) rehash: Option<Part>,
    pub(super) manifest: PathBuf,
    pub(super) halt: CancellationToken,
    /// Count everything beside the walk: the queue holds the walk back, and nobody would know how much is to come.
    pub(super) count: bool,
    /// Only the folders of this part are looked into; the others are passed through.
    pub(super) shard: Option<Part>,
}

impl Scan {
    /// Whether the files of this folder are the walk's own.
    fn owns(&self, root: &Root, folder: &str) -> bool {
        owns(self.shard, root, folder)
    }
}

/// Whether a folder falls into a shard's part: by the SHA-256 of its name in the manifest, so that it is the same shard in each run.
pub(super) fn owns(shard: Option<Part>, root: &Root, folder: &str) -> bool {
    shard.is_none_or(|part| part.has(&format!("{}/{folder}", root.name_in_manifest())))
}

/// What a walk has seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) files: Tally,
    pub(super) unchanged: Tally,
    /// How many of the files are Immich's own.
    pub(super) of_immich: u64,
    folders: Bits,
    failed: Failed,
}

/// Folders that could not be read.
#[derive(Debug, Default)]
struct Failed {
    folders: BTreeSet<(Root, String)>,
    too_many: bool,
}

/// A set of folder numbers, one bit each.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn place(number: i64) -> (usize, u64) {
        let number = u64::try_from(number).unwrap_or(0);
        (usize::try_from(number / 64).unwrap_or(0), 1 << (number % 64))
    }

    fn add(&mut self, number: i64) {
        let (word, bit) = Self::place(number);
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }

    fn has(&self, number: i64) -> bool {
        let (word, bit) = Self::place(number);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine |= theirs;
        }
    }
}

impl Seen {
    pub(super) fn merge(&mut self, other: Self) {
        for (mine, theirs) in [(&mut self.files, other.files), (&mut self.unchanged, other.unchanged)] {
            mine.merge(theirs);
        }
        self.of_immich += other.of_immich;
        self.folders.merge(&other.folders);
        self.failed.too_many |= other.failed.too_many;
        for folder in other.failed.folders {
            self.failed.add(folder);
        }
    }

    /// Whether the walk has read this folder of the manifest.
    pub(super) fn has_folder(&self, number: i64) -> bool {
        self.folders.has(number)
    }

    /// Whether the walk has read all folders up to this number.
    pub(super) fn has_all_folders(&self, last: i64) -> bool {
        (1..=last).all(|number| self.has_folder(number))
    }

    /// Whether nothing can be said of this folder, because it or one above it could not be read.
    pub(super) fn is_unknown(&self, root: &Root, folder: &str) -> bool {
        if self.failed.too_many {
            return true;
        }
        let mut folder = folder;
        loop {
            if self.failed.folders.contains(&(root.clone(), folder.to_owned())) {
                return true;
            }
            match folder.rsplit_once('/') {
                Some((above, _)) => folder = above,
                None if folder.is_empty() => return false,
                None => folder = "",
            }
        }
    }
}

impl Failed {
    fn add(&mut self, folder: (Root, String)) {
        if self.folders.len() < FAILED_FOLDERS_MAX {
            self.folders.insert(folder);
        } else {
            self.too_many = true;
        }
    }
}

/// Walks all sources. What differs goes to `items`, what cannot be read or is not seen any more to `done`.
pub(super) fn scan(scan: &Scan, items: &mpsc::Sender<Item>, done: &mpsc::Sender<Done>, monitor: &Arc<dyn Monitor>) -> Result<Seen, BackupError> {
    let finished = AtomicBool::new(!scan.count);
    std::thread::scope(|scope| {
        let (finished, monitor) = (&finished, monitor);
        scope.spawn(move || count(scan, finished, monitor.as_ref()));
        let seen = scan_sources(scan, items, done, monitor);
        finished.store(true, Ordering::Relaxed);
        seen
    })
}

fn scan_sources(scan: &Scan, items: &mpsc::Sender<Item>, done: &mpsc::Sender<Done>, monitor: &Arc<dyn Monitor>) -> Result<Seen, BackupError> {
    let mut seen = Seen::default();
    for open in &scan.sources {
        let mut visitors = (0..scan.walkers.get())
            .map(|_| {
                Ok(Scanner {
                    root: open.source.root.clone(),
                    tree: Arc::clone(&open.tree),
                    lookup: Lookup::open(&scan.manifest)?,
                    scan,
                    items,
                    done,
                    monitor: monitor.as_ref(),
                    stack: Vec::new(),
                    seen: Seen::default(),
                    reported: (Tally::default(), Tally::default()),
                    reported_at: Instant::now(),
                    folders_asked: 0,
                })
            })
            .collect::<Result<Vec<_>, ManifestError>>()?;
        walk::walk(&open.tree, &mut visitors);
        for mut visitor in visitors {
            visitor.report();
            seen.merge(visitor.seen);
        }
    }
    monitor.emit(Event::WalkFinished { files: seen.files.files, bytes: seen.files.bytes });
    Ok(seen)
}

/// A walk that ends this soon needs no counting.
const COUNT_AFTER: Duration = Duration::from_secs(2);

/// Counts what belongs to the backup, unless the walk has finished first.
fn count(scan: &Scan, finished: &AtomicBool, monitor: &dyn Monitor) {
    let began = Instant::now();
    while began.elapsed() < COUNT_AFTER && !finished.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut files = Tally::default();
    for open in &scan.sources {
        let mut counter = [Counter { root: &open.source.root, scan, finished, files: Tally::default(), owned: Vec::new() }];
        walk::walk(&open.tree, &mut counter);
        let [counter] = counter;
        files.merge(counter.files);
    }
    if !finished.load(Ordering::Relaxed) {
        monitor.emit(Event::Counted { files: files.files, bytes: files.bytes });
    }
}

struct Counter<'a> {
    root: &'a Root,
    scan: &'a Scan,
    finished: &'a AtomicBool,
    files: Tally,
    /// Of the folders being read, the innermost last: whether their files count.
    owned: Vec<bool>,
}

impl Visitor for Counter<'_> {
    fn enter(&mut self, folder: &str) -> bool {
        let skipped = RootPath::parse(folder).is_ok_and(|path| self.scan.scope.skips_folder(&FilePath { root: self.root.clone(), path }));
        let enters = !skipped && !self.finished.load(Ordering::Relaxed) && !self.scan.halt.is_cancelled();
        if enters {
            self.owned.push(self.scan.owns(self.root, folder));
        }
        enters
    }

    fn wants_files(&self) -> bool {
        self.owned.last().copied().unwrap_or(true)
    }

    fn file(&mut self, folder: &str, name: &str, times: FileTimes) -> bool {
        if self.scan.scope.takes(&FilePath { root: self.root.clone(), path: RootPath::in_folder(folder, name) }) {
            self.files.add(times.size_bytes);
        }
        !self.finished.load(Ordering::Relaxed) && !self.scan.halt.is_cancelled()
    }

    // What is wrong is said by the walk itself.
    fn special(&mut self, _: &str, _: &str, _: &'static str) {}

    fn failed(&mut self, _: &str, _: Option<&str>, _: &io::Error) {}

    fn leave(&mut self, _: &str, _: bool) {
        self.owned.pop();
    }
}

/// A folder being read: what the manifest has of it, and how many of its files there were met.
struct Frame {
    standing: Option<StandingFolder>,
    met: u64,
    /// Its files are another shard's: only its subfolders are wanted.
    passed_through: bool,
}

struct Scanner<'a> {
    root: Root,
    tree: Arc<Tree>,
    lookup: Lookup,
    scan: &'a Scan,
    items: &'a mpsc::Sender<Item>,
    done: &'a mpsc::Sender<Done>,
    monitor: &'a dyn Monitor,
    stack: Vec<Frame>,
    seen: Seen,
    /// What the bars know already: files, unchanged ones.
    reported: (Tally, Tally),
    reported_at: Instant,
    /// In the transaction that is open.
    folders_asked: u32,
}

impl Scanner<'_> {
    fn file_path(&self, folder: &str, name: &str) -> FilePath {
        FilePath { root: self.root.clone(), path: RootPath::in_folder(folder, name) }
    }

    fn is_passing_through(&self) -> bool {
        self.stack.last().is_some_and(|frame| frame.passed_through)
    }

    fn report(&mut self) {
        let (files, unchanged) = self.reported;
        if self.seen.files != files {
            self.monitor.emit(Event::FilesSeen {
                files: self.seen.files.files - files.files,
                bytes: self.seen.files.bytes - files.bytes,
                unchanged_files: self.seen.unchanged.files - unchanged.files,
                unchanged_bytes: self.seen.unchanged.bytes - unchanged.bytes,
            });
            self.reported = (self.seen.files, self.seen.unchanged);
        }
        self.reported_at = Instant::now();
    }

    /// Ends the transaction: always before waiting for anything.
    fn leave_manifest(&mut self) -> bool {
        self.folders_asked = 0;
        let left = self.lookup.leave();
        self.check(left).is_some()
    }

    /// Sends; `false` where nobody wants any more. No transaction is held open meanwhile.
    fn tell(&self, done: Done) -> bool {
        let left = self.lookup.leave();
        self.done.blocking_send(done).is_ok() && self.check(left).is_some()
    }

    /// A manifest that cannot be read ends the run.
    fn check<T>(&self, result: Result<T, ManifestError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                // Where nobody listens any more, the run has ended already.
                drop(self.done.blocking_send(Done::Fatal(error.into())));
                self.scan.halt.cancel();
                None
            }
        }
    }

    /// What the repository has at `name`: `Err` where the run is over.
    fn current(&mut self, name: &str) -> Result<Option<crate::repository::manifest::CurrentFile>, ()> {
        let Some(standing) = self.stack.last().and_then(|frame| frame.standing.as_ref()) else { return Ok(None) };
        let current = match &standing.files {
            Some(files) => files.get(name).cloned(),
            None => {
                let current = self.lookup.enter().and_then(|()| self.lookup.current(standing.number, name));
                self.check(current).ok_or(())?
            }
        };
        if current.is_some()
            && let Some(frame) = self.stack.last_mut()
        {
            frame.met += 1;
        }
        Ok(current)
    }

    /// Names of the folder that stand in the manifest and are not on disk, or not wanted any more.
    fn find_unseen(&mut self, folder: &str, number: i64) -> Result<(), ManifestError> {
        let mut after = String::new();
        loop {
            let names = self.lookup.names(number, &after)?;
            let Some(last) = names.last() else { return Ok(()) };
            last.clone_into(&mut after);
            for name in names {
                let file = self.file_path(folder, &name);
                let (root, path) = self.tree.at(&file.path);
                let there = crate::library::read::look(root, &path);
                let gone = !self.scan.scope.takes(&file) || matches!(there, Ok(None));
                if gone && !self.tell(Done::Vanished(file)) {
                    return Ok(());
                }
            }
        }
    }
}

impl Visitor for Scanner<'_> {
    fn enter(&mut self, folder: &str) -> bool {
        if self.scan.halt.is_cancelled() {
            return false;
        }
        if !folder.is_empty()
            && let Ok(path) = RootPath::parse(folder)
            && self.scan.scope.skips_folder(&FilePath { root: self.root.clone(), path })
        {
            return false;
        }
        let passed_through = !self.scan.owns(&self.root, folder);
        let standing = if passed_through { Ok(None) } else { self.lookup.enter().and_then(|()| self.lookup.folder(&self.root, folder)) };
        let Some(standing) = self.check(standing) else { return false };
        self.stack.push(Frame { standing, met: 0, passed_through });
        true
    }

    fn wants_files(&self) -> bool {
        !self.is_passing_through()
    }

    fn file(&mut self, folder: &str, name: &str, times: FileTimes) -> bool {
        if self.scan.halt.is_cancelled() {
            return false;
        }
        let file = self.file_path(folder, name);
        if !self.scan.scope.takes(&file) {
            return true;
        }
        let Ok(current) = self.current(name) else { return false };
        self.seen.files.add(times.size_bytes);
        self.seen.of_immich += u64::from(self.root.is_of_immich());
        let unchanged = current.as_ref().is_some_and(|current| current.is_unchanged(&times));
        let rehash = unchanged && self.scan.rehash.is_some_and(|part| part.has(&file.to_string()));
        let mut wanted = true;
        if unchanged && !rehash {
            self.seen.unchanged.add(times.size_bytes);
        } else {
            let item = Item { file, tree: Arc::clone(&self.tree), copied: None, current, size_bytes: times.size_bytes, rehash, may: May::StoreAnything };
            wanted = self.leave_manifest() && self.items.blocking_send(item).is_ok();
        }
        if self.seen.files.files - self.reported.0.files >= FILES_PER_EVENT {
            self.report();
        }
        wanted
    }

    fn special(&mut self, folder: &str, name: &str, kind: &'static str) {
        let file = self.file_path(folder, name);
        if self.scan.scope.takes(&file) {
            self.tell(Done::Special { file, kind });
        }
    }

    fn failed(&mut self, folder: &str, name: Option<&str>, error: &io::Error) {
        // What went away between being found and being looked at may have moved to where the walk has been: one more walk tells.
        if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) && !(folder.is_empty() && name.is_none()) {
            self.tell(Done::Slipped);
            return;
        }
        let path = match name {
            Some(name) => self.file_path(folder, name).to_string(),
            None if folder.is_empty() => self.root.to_string(),
            None => RootPath::parse(folder).map_or_else(|_| folder.to_owned(), |path| FilePath { root: self.root.clone(), path }.to_string()),
        };
        self.seen.failed.add((self.root.clone(), folder.to_owned()));
        // Also of a folder that another shard has: nobody sees what is below it from here.
        self.tell(Done::Unread { path, problem: error.to_string() });
    }

    fn leave(&mut self, folder: &str, whole: bool) {
        let Some(frame) = self.stack.pop() else { return };
        if let (Some(standing), true) = (frame.standing, whole) {
            self.seen.folders.add(standing.number);
            let counted = match &standing.files {
                Some(files) => Ok(files.len() as u64),
                None => self.lookup.enter().and_then(|()| self.lookup.count(standing.number)),
            };
            if let Some(count) = self.check(counted)
                && count != frame.met
            {
                let found = self.find_unseen(folder, standing.number);
                self.check(found);
            }
        }
        self.folders_asked += 1;
        if self.folders_asked >= FOLDERS_PER_TRANSACTION {
            self.leave_manifest();
        }
        if self.reported_at.elapsed() >= EVENT_EVERY {
            self.report();
        }
    }

    fn idle(&mut self) {
        self.leave_manifest();
        self.report();
    }
}
