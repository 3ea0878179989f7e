//! The state folder of one repository on this machine: the manifest, who writes, what was seen, and the lock.

use super::log::Head;
use crate::crash::crash_point;
use crate::model::{RepositoryId, Sha256, WriterId};
use rustix::fs::FlockOperation;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}` in the state folder", .path.display())]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl StateError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self.source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Some("give --state-dir (IMMICH_BACKUP_STATE_DIR) a folder that this user may write to")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Some("make room there, or give --state-dir another folder; about 400 bytes a file are needed")
            }
            _ => None,
        }
    }
}

/// The state folder of one repository.
#[derive(Debug, Clone)]
pub struct StateFolder {
    path: PathBuf,
}

/// The file below `base` that says which repository was at `url`.
#[must_use]
pub fn place_of(base: &Path, url: &str) -> PathBuf {
    let name = Sha256::of(url.as_bytes()).to_string();
    base.join("places").join(name.get(..16).unwrap_or(&name))
}

/// Held while this process is the one that writes; freed with it, whatever happens.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

/// Counts the files of [`StateFolder::own_file`].
static FILES: AtomicU64 = AtomicU64::new(0);

/// A file that goes, with what SQLite keeps beside it, when this goes.
#[derive(Debug)]
pub struct ScratchFile(PathBuf);

impl std::ops::Deref for ScratchFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFile {
    fn drop(&mut self) {
        // What cannot be removed is written over by the next run, or swept by the next process.
        drop(super::manifest::remove(&self.0));
    }
}

/// Folders from which this process has removed what others left.
static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The file that [`StateFolder::accept_epoch`] writes.
const ACCEPTED: &str = "accepted-epochs.json";
/// The file that [`StateFolder::keep_identity`] writes.
pub const IDENTITY: &str = "format.json";

/// Comes before the process's number in the names of [`StateFolder::own_scratch`].
const OWN: &str = "-pid";

impl StateFolder {
    /// The folder of `repository` below `base`; made where it is missing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(base: &Path, repository: RepositoryId) -> Result<Self, StateError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let path = base.join(repository.to_string());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(|source| StateError { action: "make", path: path.clone(), source })?;
        let state = Self { path };
        // Once: what this process has there later is in use.
        if SWEPT.lock().unwrap_or_else(PoisonError::into_inner).insert(state.path.clone()) {
            state.sweep();
        }
        Ok(state)
    }

    /// Remembers below `base` that this repository was at `url`, so that a new one is not made there by mistake.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn remember(base: &Path, url: &str, repository: RepositoryId) -> Result<(), StateError> {
        if Self::remembered(base, url) == Some(repository) {
            return Ok(());
        }
        let path = place_of(base, url);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap_or(base))?;
            std::fs::write(&path, repository.to_string())
        };
        write().map_err(|source| StateError { action: "write", path: path.clone(), source })
    }

    /// The repository that was at `url` when it was used from here last.
    #[must_use]
    pub fn remembered(base: &Path, url: &str) -> Option<RepositoryId> {
        std::fs::read_to_string(place_of(base, url)).ok()?.parse().ok()
    }

    /// The file that lists the uploads to an object store which were begun from here and not ended.
    #[must_use]
    pub fn uploads(&self) -> PathBuf {
        self.path.join("uploads.ndjson")
    }

    /// Takes the lock, if nobody holds it.
    ///
    /// # Errors
    /// The lock's file cannot be made.
    pub fn try_lock(&self) -> Result<Option<StateLock>, StateError> {
        let path = self.path.join("lock");
        let failed = |source| StateError { action: "lock", path: path.clone(), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// The id that entries written from this folder bear; made the first time.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn writer(&self) -> Result<WriterId, StateError> {
        if let Some(writer) = self.read("writer")?.and_then(|text| text.parse().ok()) {
            return Ok(writer);
        }
        let writer = WriterId::random();
        self.replace("writer", &writer.to_string())?;
        Ok(writer)
    }

    /// The highest entry of the log ever seen from here.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn seen(&self) -> Result<Option<Head>, StateError> {
        Ok(self.read("seen.json")?.and_then(|text| serde_json::from_str(&text).ok()))
    }

    /// The highest entry of the log ever seen from the state folder of the manifest at `manifest`; `None` also where that cannot be read.
    #[must_use]
    pub fn seen_beside(manifest: &Path) -> Option<Head> {
        serde_json::from_slice(&std::fs::read(manifest.with_file_name("seen.json")).ok()?).ok()
    }

    /// The manifest of the repository that was at `url` when it was used from below `base` last. Nothing is made, and it may not be there.
    #[must_use]
    pub fn manifest_below(base: &Path, url: &str) -> Option<PathBuf> {
        Some(base.join(Self::remembered(base, url)?.to_string()).join("manifest.db"))
    }

    /// Remembers that `head` was seen.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn set_seen(&self, head: &Head) -> Result<(), StateError> {
        self.replace("seen.json", &serde_json::to_string(head).unwrap_or_default())
    }

    /// Entries that open an epoch and that were written, or accepted, here: what they reject is no news.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn accepted_epochs(&self) -> Result<Vec<Sha256>, StateError> {
        Ok(self.read(ACCEPTED)?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Accepts the epoch that the entry with this SHA-256 opens.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn accept_epoch(&self, opening: Sha256) -> Result<(), StateError> {
        let mut accepted = self.accepted_epochs()?;
        if !accepted.contains(&opening) {
            accepted.push(opening);
            self.replace(ACCEPTED, &serde_json::to_string(&accepted).unwrap_or_default())?;
        }
        Ok(())
    }

    /// The bytes of `format.json`, as they were when the repository was opened from here.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn identity(&self) -> Result<Option<String>, StateError> {
        self.read(IDENTITY)
    }

    /// Keeps the bytes of `format.json`: nothing else could bring them back.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn keep_identity(&self, identity: &[u8]) -> Result<(), StateError> {
        match std::str::from_utf8(identity) {
            Ok(text) if self.identity()?.as_deref() != Some(text) => self.replace(IDENTITY, text),
            _ => Ok(()),
        }
    }

    /// The state folder of `repository` below `base`, if there is one.
    #[must_use]
    pub fn existing(base: &Path, repository: RepositoryId) -> Option<Self> {
        Some(Self { path: base.join(repository.to_string()) }).filter(|state| state.path.is_dir())
    }

    /// The folder itself.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    /// Where the manifest is.
    #[must_use]
    pub fn manifest(&self) -> PathBuf {
        self.path.join("manifest.db")
    }

    /// A path for something that nobody needs after a crash. One user of a `name` at a time.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.path.join(format!("scratch-{name}"))
    }

    /// Removes what processes that are no more left of [`Self::own_scratch`]. What cannot be removed stays for the next time.
    fn sweep(&self) {
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let rest = name.to_str().filter(|name| name.starts_with("scratch-")).and_then(|name| Some(name.rsplit_once(OWN)?.1));
            let pid = rest.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
            // This process has none yet: one of its number is of another that had it before.
            if pid.is_some_and(|pid| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists()) {
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }

    /// As [`Self::scratch`], and removed when it is not needed any more.
    #[must_use]
    pub fn file(&self, name: &str) -> ScratchFile {
        ScratchFile(self.scratch(name))
    }

    /// As [`Self::own_scratch`], and removed when it is not needed any more. Several of one name may be in use at once.
    #[must_use]
    pub fn own_file(&self, name: &str) -> ScratchFile {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        ScratchFile(self.own_scratch(&format!("{number}-{name}")))
    }

    /// A path for something that nobody needs after a crash, for this process alone.
    #[must_use]
    pub fn own_scratch(&self, name: &str) -> PathBuf {
        self.path.join(format!("scratch-{name}{OWN}{}", std::process::id()))
    }

    fn read(&self, name: &str) -> Result<Option<String>, StateError> {
        let path = self.path.join(name);
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError { action: "read", path, source }),
        }
    }

    fn replace(&self, name: &str, text: &str) -> Result<(), StateError> {
        let (path, temporary) = (self.path.join(name), self.path.join(format!("{name}.new")));
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            crash_point!("state file written, not named");
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|source| StateError { action: "write", path, source })
    }
}
