//! Copying what has to be sent.

use super::list::{self, Line, Staged};
use super::{FILES, LIST, Stage, StageError, place};
use crate::backup::scan::{Scan, Seen, scan};
use crate::backup::{BackupError, Done, Item};
use crate::budget::{QUEUE_PATHS_PER_WORKER, STAGE_THREADS_MAX};
use crate::event::{Event, Monitor, Silent};
use crate::library::read::{CopyError, ReadError};
use crate::repository::log::Tally;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;

/// A file that changes while it is copied is tried so often; then it is read where it lies.
const TRIES_MAX: u32 = 3;
/// The wait before another try.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// Room that is left free on the stage's disk.
const ROOM_KEPT_BYTES: u64 = 64 << 20;

/// What to copy.
pub(in crate::backup) struct Job {
    /// What is walked; its events are not shown.
    pub(in crate::backup) scan: Scan,
    /// Files that are copied at once.
    pub(in crate::backup) threads: NonZeroUsize,
    pub(in crate::backup) monitor: Arc<dyn Monitor>,
}

/// What is to be copied, and what there is room for.
pub(in crate::backup) struct Room {
    pub(in crate::backup) copies: Tally,
    free_bytes: u64,
}

impl Room {
    /// Refuses what does not fit.
    pub(in crate::backup) fn check(&self, stage: &Path) -> Result<(), StageError> {
        let needed_bytes = self.copies.bytes.saturating_add(ROOM_KEPT_BYTES);
        if needed_bytes <= self.free_bytes {
            return Ok(());
        }
        Err(StageError::NoRoom { path: stage.to_owned(), free_bytes: self.free_bytes, needed_bytes })
    }
}

/// What would have to be copied now, and the room that there is in the folder `stage`.
pub(in crate::backup) fn measure(stage: &Path, scanned: &Scan) -> Result<Room, BackupError> {
    super::make_base(stage)?;
    let found = rustix::fs::statvfs(stage).map_err(|error| StageError::Io { action: "measure", path: stage.to_owned(), source: error.into() })?;
    let mut copies = Tally::default();
    let (items, mut queue) = mpsc::channel::<Item>(QUEUE_PATHS_PER_WORKER);
    let (done, mut outcomes) = mpsc::channel(QUEUE_PATHS_PER_WORKER);
    let quiet: Arc<dyn Monitor> = Arc::new(Silent);
    std::thread::scope(|scope| {
        let walking = scope.spawn(move || scan(scanned, &items, &done, &quiet));
        // What is wrong with the library is said by the walk that counts.
        scope.spawn(move || while outcomes.blocking_recv().is_some() {});
        while let Some(item) = queue.blocking_recv() {
            if !item.rehash {
                copies.add(item.size_bytes);
            }
        }
        walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    Ok(Room { copies, free_bytes: found.f_bavail.saturating_mul(found.f_frsize) })
}

/// Walks, copies what has to be sent, and writes down what else was found. What it copies comes after what is in the stage already.
pub(in crate::backup) fn copy(stage: &Stage, job: &Job) -> Result<(Seen, Tally), BackupError> {
    let failed = StageError::of_writing(&stage.path);
    let file = File::options().create(true).append(true).mode(0o600).open(stage.path.join(LIST)).map_err(&failed)?;
    let copier = Copier { stage, job, list: Mutex::new(BufWriter::new(file)), copied: Mutex::new(Tally::default()), failure: Mutex::new(None) };
    let threads = job.threads.get().min(STAGE_THREADS_MAX);
    let (items, queue) = mpsc::channel::<Item>(threads * QUEUE_PATHS_PER_WORKER);
    let (done, mut outcomes) = mpsc::channel(QUEUE_PATHS_PER_WORKER);
    let queue = Mutex::new(queue);
    let quiet: Arc<dyn Monitor> = Arc::new(Silent);
    let seen = std::thread::scope(|scope| {
        let (copier, queue) = (&copier, &queue);
        let walking = scope.spawn(move || scan(&job.scan, &items, &done, &quiet));
        let copying: Vec<_> = (0..threads).map(|_| scope.spawn(move || copier.work(queue))).collect();
        // The walk must be able to end: what it says is heard to the last.
        let mut fatal = None;
        while let Some(outcome) = outcomes.blocking_recv() {
            if let Some(error) = copier.note(outcome) {
                job.scan.halt.cancel();
                fatal.get_or_insert(error);
            }
        }
        for thread in copying {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        let seen = walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        fatal.map_or(seen, Err)
    });
    let Copier { list, copied, failure, .. } = copier;
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error.into());
    }
    list.into_inner().unwrap_or_else(PoisonError::into_inner).flush().map_err(&failed)?;
    Ok((seen?, copied.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// Numbers of copies; they only have to differ within a stage.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

struct Copier<'a> {
    stage: &'a Stage,
    job: &'a Job,
    list: Mutex<BufWriter<File>>,
    copied: Mutex<Tally>,
    /// The first thing that ends all of it.
    failure: Mutex<Option<StageError>>,
}

impl Copier<'_> {
    fn work(&self, queue: &Mutex<mpsc::Receiver<Item>>) {
        // A thread that fails, or panics, must not leave the walk waiting for room in the queue.
        let _halt = HaltOnPanic(self, queue);
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv();
            let Some(item) = next else { return };
            if self.job.scan.halt.is_cancelled() {
                continue;
            }
            let line = self.copy_one(&item).and_then(|line| line.map_or(Ok(()), |line| self.write(&line)));
            if let Err(error) = line {
                self.fail(error);
            }
        }
    }

    fn fail(&self, error: StageError) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.job.scan.halt.cancel();
    }

    fn write(&self, line: &Line) -> Result<(), StageError> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list::write(&mut *list, line).map_err(StageError::of_writing(&self.stage.path))
    }

    /// What came of a file. `None` where nobody wants to know any more.
    fn copy_one(&self, item: &Item) -> Result<Option<Line>, StageError> {
        let (root, path) = (item.file.root.name_in_manifest().to_owned(), item.file.path.clone());
        let live = |rehash| Some(Line::Live { root: root.clone(), path: path.clone(), size: item.size_bytes, rehash });
        if item.rehash {
            // Nothing differs; it has not to be sent.
            return Ok(live(true));
        }
        for _ in 0..TRIES_MAX {
            match self.try_one(item) {
                Ok(staged) => return Ok(Some(Line::Staged(staged))),
                Err(CopyError::Write(error)) => return Err(StageError::of_writing(&self.stage.path)(error)),
                Err(CopyError::Read(ReadError::Changed)) => std::thread::sleep(TRY_AGAIN_AFTER),
                Err(CopyError::Read(ReadError::Stopped)) => return Ok(None),
                Err(CopyError::Read(ReadError::Vanished | ReadError::NotRegular)) => return Ok(Some(Line::Vanished { root, path })),
                Err(CopyError::Read(ReadError::Io(error))) => {
                    return Ok(Some(Line::Unread { path: item.file.to_string(), problem: error.to_string() }));
                }
            }
        }
        Ok(live(false))
    }

    fn try_one(&self, item: &Item) -> Result<Staged, CopyError> {
        let (live, trusted) = item.open()?;
        let times = live.times();
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let at = self.stage.path.join(FILES).join(place(number));
        let open = || File::options().write(true).create_new(true).mode(0o600).open(&at);
        let made = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::create_dir_all(at.parent().unwrap_or(&at)).and_then(|()| open()),
            other => other,
        };
        let copy = made.map_err(CopyError::Write)?;
        let moved = |bytes| {
            self.job.monitor.emit(Event::BytesStaged { bytes });
            !self.job.scan.halt.is_cancelled()
        };
        if let Err(error) = live.copy_into(&copy, moved) {
            drop(std::fs::remove_file(&at));
            return Err(error);
        }
        self.copied.lock().unwrap_or_else(PoisonError::into_inner).add(times.size_bytes);
        Ok(Staged {
            root: item.file.root.name_in_manifest().to_owned(),
            path: item.file.path.clone(),
            number,
            size: times.size_bytes,
            mtime_ns: times.mtime_ns,
            ctime_ns: times.ctime_ns,
            mode: times.mode,
            trusted,
        })
    }

    /// Writes down what the walk says beside the files that have to be sent; what ends the run is returned.
    fn note(&self, outcome: Done) -> Option<BackupError> {
        let line = match outcome {
            Done::Vanished(file) => Line::Vanished { root: file.root.name_in_manifest().to_owned(), path: file.path },
            Done::Slipped => Line::Slipped {},
            Done::Unread { path, problem } => Line::Unread { path, problem },
            Done::Special { file, kind } => Line::Special { root: file.root.name_in_manifest().to_owned(), path: file.path, kind: kind.to_owned() },
            Done::Fatal(error) => return Some(error),
            // The walk says none of these.
            Done::Same { .. } | Done::Left | Done::Stored(_) | Done::BitRot(_) | Done::Postponed(_) | Done::Claim(_) => return None,
        };
        self.write(&line).err().map(BackupError::from)
    }
}

/// Halts the walk if the thread that holds it panics.
struct HaltOnPanic<'a, 'b>(&'a Copier<'b>, &'a Mutex<mpsc::Receiver<Item>>);

impl Drop for HaltOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.job.scan.halt.cancel();
            self.1.lock().unwrap_or_else(PoisonError::into_inner).close();
        }
    }
}
