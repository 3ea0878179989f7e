//! One barrier for many files: `syncfs` where it can be trusted, else each file and its folder.

use crate::durable::syncfs_is_enough;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// What has been created since the last barrier.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    files: Mutex<Vec<PathBuf>>,
    /// Opened before the first write: Linux reports an error of writing back once to each descriptor that was open by then.
    folder: OnceLock<File>,
    /// A barrier failed: what was written may be lost, and no later one can say otherwise.
    failed: AtomicBool,
}

/// Threads that flush single files at once, where `syncfs` does not serve.
const FLUSHERS: usize = 8;

impl Barrier {
    /// Makes ready, before anything is written below `root`.
    pub(super) fn open(&self, root: &Path) -> io::Result<()> {
        let folder = File::open(root)?;
        self.folder.get_or_init(|| folder);
        Ok(())
    }

    pub(super) fn add(&self, file: PathBuf) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).push(file);
    }

    pub(super) fn wait(&self, root: &Path) -> io::Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("an earlier flush failed; what was written since the last checkpoint is not relied on"));
        }
        let flushed = self.flush(root);
        if flushed.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        flushed
    }

    fn flush(&self, root: &Path) -> io::Result<()> {
        let files = std::mem::take(&mut *self.files.lock().unwrap_or_else(PoisonError::into_inner));
        if files.is_empty() {
            return Ok(());
        }
        self.open(root)?;
        if let Some(folder) = self.folder.get()
            && syncfs_is_enough(folder)?
        {
            return Ok(rustix::fs::syncfs(folder)?);
        }
        flush_each(&files, root)
    }
}

fn flush_each(files: &[PathBuf], root: &Path) -> io::Result<()> {
    in_parallel(files)?;
    let mut folders = BTreeSet::new();
    for file in files {
        let mut folder = file.parent();
        while let Some(path) = folder.filter(|path| path.starts_with(root)) {
            if !folders.insert(path.to_owned()) {
                break;
            }
            folder = path.parent();
        }
    }
    in_parallel(&folders.into_iter().collect::<Vec<_>>())
}

fn in_parallel(paths: &[PathBuf]) -> io::Result<()> {
    let share = paths.len().div_ceil(FLUSHERS).max(1);
    std::thread::scope(|scope| {
        let flush = |paths: &[PathBuf]| paths.iter().try_for_each(|path| File::open(path)?.sync_all());
        let threads: Vec<_> = paths.chunks(share).map(|paths| scope.spawn(move || flush(paths))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a flushing thread panicked"))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_and_every_folder_up_to_the_root_is_flushed() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        let files: Vec<_> = (0..20).map(|n| deep.join(n.to_string())).collect();
        files.iter().for_each(|file| std::fs::write(file, "x").unwrap());
        flush_each(&files, folder.path()).unwrap();
        assert!(flush_each(&[deep.join("missing")], folder.path()).is_err());
    }
}
