//! Stages that runs left behind.

use super::{FILES, FORMAT, LIST, MARKER, MARKER_BYTES_MAX, Marker, PREFIX, StageError, lock, remove};
use crate::library::walk::open_root;
use crate::model::{RepositoryId, RunId};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A stage that nobody uses. Held until it is dropped.
#[derive(Debug)]
pub struct Leftover {
    path: PathBuf,
    marker: Marker,
    /// Its handle, which holds the lock.
    folder: OwnedFd,
}

/// The stages in the folder `stage` that runs left behind and nobody uses: folders of this user that bear the marker of the run that they are named after.
/// Nothing else there is looked at. None, where there is no such folder.
///
/// # Errors
/// The folder cannot be read.
pub fn leftovers(stage: &Path) -> Result<Vec<Leftover>, StageError> {
    let failed = |source| StageError::Io { action: "read", path: stage.to_owned(), source };
    let entries = match std::fs::read_dir(stage) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let run = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|run| run.parse::<RunId>().ok().filter(|id| id.to_string() == run));
        // What cannot be looked at, or is not as we make it, is not ours.
        if let Some(run) = run
            && let Ok(Some(leftover)) = Leftover::open(entry.path(), run)
        {
            found.push(leftover);
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

impl Leftover {
    fn open(path: PathBuf, run: RunId) -> io::Result<Option<Self>> {
        let stat = path.symlink_metadata()?;
        if !stat.is_dir() || stat.uid() != rustix::process::geteuid().as_raw() || stat.mode() & 0o022 != 0 {
            return Ok(None);
        }
        let Some(lock) = lock(&path)? else { return Ok(None) };
        let mut text = Vec::new();
        open_file(&lock, MARKER)?.take(MARKER_BYTES_MAX).read_to_end(&mut text)?;
        let marker: Marker = serde_json::from_slice(&text)?;
        Ok((marker.format == FORMAT && marker.run == run).then_some(Self { path, marker, folder: lock }))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whose.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.marker.run
    }

    /// For which repository.
    #[must_use]
    pub fn repository(&self) -> RepositoryId {
        self.marker.repository
    }

    /// Whether it holds all that its run was to send: the next run with this stage takes it up. One that is not complete is of no use.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.marker.complete
    }

    /// Its list, and its copies.
    pub(super) fn open_list(&self) -> io::Result<(File, OwnedFd)> {
        Ok((open_file(&self.folder, LIST)?, open_root(&self.path.join(FILES))?))
    }

    /// Removes it, but for what is not ours.
    ///
    /// # Errors
    /// Something cannot be removed, or something else lies in it.
    pub fn remove(self) -> Result<(), StageError> {
        remove(&self.path).map_err(|source| StageError::Io { action: "remove", path: self.path.clone(), source })
    }
}

/// A regular file of a stage's folder; no link is followed.
fn open_file(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(folder, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}
