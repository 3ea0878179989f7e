//! A stage: a folder on a disk of this machine, into which what has to be sent is copied while Immich is stopped, so that it is up again before anything is
//! sent. Only new and changed files are copied; what a live file's `fstat` said goes into a list.
//!
//! ```text
//! <stage>/immich-backup-stage-<run>/stage.json     whose it is, and whether it is complete; flocked while in use is the folder above it
//! <stage>/immich-backup-stage-<run>/list.ndjson    what the walk of the stopped library found
//! <stage>/immich-backup-stage-<run>/files/3/3141   copies, by number: their names can neither clash nor be too long
//! ```

mod copy;
mod leftover;
mod list;
mod replay;

pub(super) use copy::{Job, copy, measure};
pub use leftover::{Leftover, leftovers};
pub(super) use replay::{Replay, replay, take_up};

use crate::durable::syncfs_is_enough;
use crate::library::read::{LiveFile, ReadError};
use crate::library::walk::open_root;
use crate::model::{FileTimes, RepositoryId, RunId};
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a stage's folder is called, followed by the run.
const PREFIX: &str = "immich-backup-stage-";
/// Says whose it is. Without it nothing is ours, and nothing is removed.
const MARKER: &str = "stage.json";
const LIST: &str = "list.ndjson";
const FILES: &str = "files";
/// The only one that is known.
const FORMAT: u32 = 1;
/// [`MARKER`] is far smaller than this.
const MARKER_BYTES_MAX: u64 = 4 << 10;
/// Copies in one folder.
const FILES_PER_FOLDER: u64 = 1_000;

/// Why nothing can be staged.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// Not enough room for what is to be copied.
    #[error("the stage `{}` has {free_bytes} bytes left, and {needed_bytes} are needed", .path.display())]
    NoRoom {
        /// The stage.
        path: PathBuf,
        /// What there is.
        free_bytes: u64,
        /// What it takes, and what is left free.
        needed_bytes: u64,
    },
    /// The disk filled up in the middle.
    #[error("the stage `{}` is full", .path.display())]
    Full {
        /// The stage.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The file system refused.
    #[error("cannot {action} `{}`", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StageError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoRoom { .. } => {
                "nothing was stopped; make room there, give --stage another disk, or run once without --stage: later runs copy only what is new"
            }
            Self::Full { .. } => "what was copied is removed and Immich is up again; make room there, or give --stage another disk",
            Self::Io { .. } => "check that the disk of --stage is mounted, and that this user may write there",
        }
    }

    /// For errors of writing below `path`.
    fn of_writing(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path: path.clone(), source },
            _ => Self::Io { action: "write to", path: path.clone(), source },
        }
    }
}

/// The content of [`MARKER`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    format: u32,
    run: RunId,
    repository: RepositoryId,
    /// All that the run's snapshot needs is here, and durable.
    complete: bool,
}

/// A stage of this run. Dropped before it is complete, it is removed.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    marker: Marker,
    /// Held while in use.
    _lock: OwnedFd,
    /// Where the copies are.
    files: Arc<OwnedFd>,
}

/// A stage's list and its copies.
#[derive(Debug)]
pub(super) struct Listed {
    path: PathBuf,
    files: Arc<OwnedFd>,
}

/// A copy, and what `fstat` said of the file it was made from.
#[derive(Debug)]
pub(super) struct Copied {
    files: Arc<OwnedFd>,
    number: u64,
    times: FileTimes,
    trusted: bool,
}

impl Copied {
    /// The copy, and whether the times of the original were old enough to be trusted.
    pub(super) fn open(&self) -> Result<(LiveFile, bool), ReadError> {
        Ok((LiveFile::open(&self.files, &place(self.number))?.as_copy_of(self.times)?, self.trusted))
    }
}

/// Where the copy `number` is, below [`FILES`].
fn place(number: u64) -> PathBuf {
    PathBuf::from(format!("{}/{number}", number / FILES_PER_FOLDER))
}

/// Takes the lock of a stage's folder; `None` where somebody has it.
fn lock(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(folder)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Makes the folder `stage` if only it itself is missing: a disk that is not mounted is not made up for.
fn make_base(stage: &Path) -> Result<(), StageError> {
    match std::fs::DirBuilder::new().mode(0o700).create(stage) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(StageError::Io { action: "make", path: stage.to_owned(), source: error }),
        _ => Ok(()),
    }
}

impl Stage {
    /// An empty one for `run`, in the folder `stage`.
    pub(super) fn make(stage: &Path, run: RunId, repository: RepositoryId) -> Result<Self, StageError> {
        make_base(stage)?;
        let path = stage.join(format!("{PREFIX}{run}"));
        let failed = StageError::of_writing(&path);
        let marker = Marker { format: FORMAT, run, repository, complete: false };
        std::fs::DirBuilder::new().mode(0o700).create(&path).map_err(&failed)?;
        let made = || {
            write_marker(&path, &marker)?;
            std::fs::DirBuilder::new().mode(0o700).create(path.join(FILES))?;
            let lock = lock(&path)?.ok_or(io::ErrorKind::WouldBlock)?;
            Ok((lock, open_root(&path.join(FILES))?))
        };
        match made() {
            Ok((lock, files)) => Ok(Self { path: path.clone(), marker, _lock: lock, files: Arc::new(files) }),
            Err(error) => {
                drop(remove(&path));
                Err(failed(error))
            }
        }
    }

    /// Says that it is complete, once everything in it survives a loss of power. Where that cannot be known it stays incomplete: it serves this run, and no
    /// later one.
    pub(super) fn complete(&mut self) -> Result<(), StageError> {
        let failed = StageError::of_writing(&self.path);
        if !syncfs_is_enough(&self.files).map_err(&failed)? {
            return Ok(());
        }
        rustix::fs::syncfs(&self.files).map_err(|error| failed(error.into()))?;
        let marker = Marker { complete: true, ..self.marker.clone() };
        write_marker(&self.path, &marker).map_err(&failed)?;
        self.marker = marker;
        Ok(())
    }

    /// What the replay of the list needs.
    pub(super) fn list(&self) -> Listed {
        Listed { path: self.path.join(LIST), files: Arc::clone(&self.files) }
    }

    /// Removes it.
    pub(super) fn remove(mut self) -> Result<(), StageError> {
        self.marker.complete = true;
        remove(&self.path).map_err(|source| StageError::Io { action: "remove", path: self.path.clone(), source })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.marker.complete {
            // What cannot be removed is found by the next run.
            drop(remove(&self.path));
        }
    }
}

fn write_marker(path: &Path, marker: &Marker) -> io::Result<()> {
    let (to, temporary) = (path.join(MARKER), path.join(format!("{MARKER}.new")));
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(marker)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, &to)?;
    File::open(path)?.sync_all()
}

/// Removes the stage at `path`: what stages have in them, and then the folder, which stays if there is anything else.
fn remove(path: &Path) -> io::Result<()> {
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    // Without its list it is of no use to anybody, wherever this ends; the marker goes last.
    gone(std::fs::remove_file(path.join(LIST)))?;
    gone(std::fs::remove_dir_all(path.join(FILES)))?;
    gone(std::fs::remove_file(path.join(format!("{MARKER}.new"))))?;
    gone(std::fs::remove_file(path.join(MARKER)))?;
    gone(std::fs::remove_dir(path))
}
