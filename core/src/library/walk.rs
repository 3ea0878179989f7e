//! A parallel walk that holds a bounded number of folders in memory and follows no link.

use super::tree::Tree;
use crate::budget::WALK_FOLDERS_QUEUED_MAX;
use crate::model::{FileTimes, RootPath, encode_segment};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat};
use rustix::io::Errno;
use std::borrow::Cow;
use std::ffi::{CStr, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Receives what one walking thread finds. All names and folders are canonical text; the root's folder is empty.
pub trait Visitor: Send {
    /// A folder is about to be read. `false` passes over it and all below it.
    fn enter(&mut self, folder: &str) -> bool;
    /// Whether what is in the folder being read is wanted, or its subfolders alone.
    fn wants_files(&self) -> bool {
        true
    }
    /// A regular file. `false` ends the whole walk.
    fn file(&mut self, folder: &str, name: &str, times: FileTimes) -> bool;
    /// Something that is neither file nor folder.
    fn special(&mut self, folder: &str, name: &str, kind: &'static str);
    /// A folder, or an entry of it, could not be read.
    fn failed(&mut self, folder: &str, name: Option<&str>, error: &io::Error);
    /// All entries of a folder have been shown; `whole` is false where reading it failed. Its subfolders come on their own.
    fn leave(&mut self, folder: &str, whole: bool);
    /// There is nothing to do for now: other threads are reading, and may find more.
    fn idle(&mut self) {}
}

/// Opens the root of a walk.
///
/// # Errors
/// It is not there, no folder, or not readable.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens `path` below `root`; no link on the way is followed, not even in the middle.
///
/// # Errors
/// `ELOOP` where a link is on the way, else the file system's.
pub fn open_below(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS) {
        // Kernels before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => step_below(root, path, flags),
        other => Ok(other?),
    }
}

/// The same, a segment at a time.
fn step_below(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let mut folder = None;
    for segment in path.parent().into_iter().flat_map(Path::components) {
        let above = folder.as_ref().unwrap_or(root);
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        folder = Some(rustix::fs::openat(above, segment.as_os_str(), step, Mode::empty())?);
    }
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(rustix::fs::openat(folder.as_ref().unwrap_or(root), name, flags, Mode::empty())?)
}

/// What `stat` says of a regular file, in our units.
#[must_use]
pub fn file_times(stat: &Stat) -> FileTimes {
    let nanoseconds = |seconds: i64, rest: u64| seconds.saturating_mul(1_000_000_000).saturating_add(i64::try_from(rest).unwrap_or(0));
    FileTimes {
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
        ctime_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        mode: stat.st_mode & 0o7777,
    }
}

struct Pending {
    /// Folders to read: raw path below the root (empty for the root).
    folders: Vec<Vec<u8>>,
    /// Threads that read a folder now and may find more.
    busy: usize,
    /// Threads that wait for a folder: where there is none, nobody is woken. There are tens of thousands of folders, and waking asks the kernel.
    waiting: usize,
}

struct Shared<'a> {
    tree: &'a Tree,
    pending: Mutex<Pending>,
    changed: Condvar,
    stop: AtomicBool,
    threads: usize,
}

/// Folders that a thread takes at a time. They are neighbours, and lie beside one another in the manifest: taken one by one, each thread would read nearly
/// all of its pages.
const FOLDERS_TAKEN_MAX: usize = 16;

/// Walks everything in `tree` with one thread for each visitor. Returns once all has been shown or a visitor ended it. A folder that is mounted inside is
/// walked in the place of what lies under it, and also where nothing does.
pub fn walk<V: Visitor>(tree: &Tree, visitors: &mut [V]) {
    let mounted = tree.mounts().map(|at| at.to_path().into_os_string().into_encoded_bytes());
    let folders = std::iter::once(Vec::new()).chain(mounted).collect();
    let pending = Mutex::new(Pending { folders, busy: 0, waiting: 0 });
    let shared = Shared { tree, pending, changed: Condvar::new(), stop: AtomicBool::new(false), threads: visitors.len().max(1) };
    std::thread::scope(|scope| {
        for visitor in visitors {
            let shared = &shared;
            scope.spawn(move || shared.work(visitor));
        }
    });
}

impl Shared<'_> {
    fn work<V: Visitor>(&self, visitor: &mut V) {
        while let Some(folders) = self.next(visitor) {
            for folder in folders.into_iter().rev() {
                if !self.stop.load(Ordering::Relaxed) {
                    self.read_folder(&folder, visitor);
                }
            }
            let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
            pending.busy -= 1;
            let is_over = self.stop.load(Ordering::Relaxed) || (pending.busy == 0 && pending.folders.is_empty());
            let wakes = is_over && pending.waiting > 0;
            drop(pending);
            if wakes {
                self.changed.notify_all();
            }
        }
    }

    /// The next folders, the last one first; `None` once no thread can find another one.
    fn next<V: Visitor>(&self, visitor: &mut V) -> Option<Vec<Vec<u8>>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut told = false;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if !pending.folders.is_empty() {
                pending.busy += 1;
                // All that is left for one alone would keep the others waiting.
                let share = (pending.folders.len() / (2 * self.threads)).clamp(1, FOLDERS_TAKEN_MAX);
                let first = pending.folders.len() - share;
                return Some(pending.folders.split_off(first));
            }
            if pending.busy == 0 {
                return None;
            }
            if !told {
                // Not while others wait for the list.
                drop(pending);
                visitor.idle();
                told = true;
                pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            pending.waiting += 1;
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
            pending.waiting -= 1;
        }
    }

    fn queue(&self, folder: Vec<u8>) -> Result<(), Vec<u8>> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.folders.len() >= WALK_FOLDERS_QUEUED_MAX {
            return Err(folder);
        }
        pending.folders.push(folder);
        let wakes = pending.waiting > 0;
        drop(pending);
        if wakes {
            self.changed.notify_one();
        }
        Ok(())
    }

    fn read_folder<V: Visitor>(&self, raw: &[u8], visitor: &mut V) {
        let text = canonical(raw);
        if !visitor.enter(&text) {
            return;
        }
        let whole = match self.read_entries(raw, &text, visitor) {
            Ok(whole) => whole,
            Err(error) => {
                visitor.failed(&text, None, &error);
                false
            }
        };
        if !self.stop.load(Ordering::Relaxed) {
            visitor.leave(&text, whole);
        }
    }

    fn read_entries<V: Visitor>(&self, raw: &[u8], text: &str, visitor: &mut V) -> io::Result<bool> {
        let (root, below) = if self.tree.has_mounts() { self.tree.folder(text) } else { (self.tree.root(), PathBuf::from(OsStr::from_bytes(raw))) };
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { &below };
        let fd = open_below(root, below, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut whole = true;
        let mut buffer = [const { MaybeUninit::uninit() }; 32 << 10];
        let mut entries = RawDir::new(&fd, &mut buffer);
        while let Some(entry) = entries.next() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            whole &= self.show(&fd, name, entry.file_type(), raw, text, visitor);
        }
        Ok(whole)
    }

    /// Shows one entry; `false` where it could not be looked at.
    fn show<V: Visitor>(&self, fd: &OwnedFd, name: &CStr, kind: FileType, raw: &[u8], text: &str, visitor: &mut V) -> bool {
        let shown = encode_segment(name.to_bytes());
        if self.tree.has_mounts() && self.tree.is_mounted_over(RootPath::in_folder(text, &shown).as_str()) {
            // What lies here is hidden, whatever it is.
            return true;
        }
        let wanted = visitor.wants_files();
        if !wanted && !matches!(kind, FileType::Directory | FileType::Unknown) {
            return true;
        }
        let mut kind = kind;
        if matches!(kind, FileType::RegularFile | FileType::Unknown) {
            match rustix::fs::statat(fd.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => {
                    kind = FileType::from_raw_mode(stat.st_mode);
                    if kind == FileType::RegularFile {
                        if wanted && !visitor.file(text, &shown, file_times(&stat)) {
                            self.stop.store(true, Ordering::Relaxed);
                            self.changed.notify_all();
                        }
                        return true;
                    }
                }
                // Gone between reading the folder and looking: what that means is the visitor's to say.
                Err(error @ Errno::NOENT) => {
                    visitor.failed(text, Some(&shown), &error.into());
                    return true;
                }
                Err(error) => {
                    visitor.failed(text, Some(&shown), &error.into());
                    return false;
                }
            }
        }
        if kind != FileType::Directory {
            if wanted {
                visitor.special(text, &shown, describe(kind));
            }
            return true;
        }
        let mut folder = Vec::with_capacity(raw.len() + 1 + name.count_bytes());
        folder.extend_from_slice(raw);
        if !raw.is_empty() {
            folder.push(b'/');
        }
        folder.extend_from_slice(name.to_bytes());
        if let Err(folder) = self.queue(folder) {
            self.read_folder(&folder, visitor);
        }
        true
    }
}

fn canonical(raw: &[u8]) -> Cow<'_, str> {
    if raw.is_empty() {
        return Cow::Borrowed("");
    }
    let mut segments = raw.split(|byte| *byte == b'/').map(encode_segment);
    if let Ok(text) = std::str::from_utf8(raw)
        && segments.clone().all(|segment| matches!(segment, Cow::Borrowed(_)))
    {
        return Cow::Borrowed(text);
    }
    let mut text = segments.next().unwrap_or_default().into_owned();
    for segment in segments {
        text.push('/');
        text.push_str(&segment);
    }
    Cow::Owned(text)
}

/// What [`Visitor::special`] is told of a symbolic link.
pub const SYMBOLIC_LINK: &str = "symbolic link";

fn describe(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => SYMBOLIC_LINK,
        FileType::Socket => "socket",
        FileType::Fifo => "pipe",
        FileType::BlockDevice | FileType::CharacterDevice => "device",
        _ => "special file",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes what it is shown; ends the walk at a file called `end`.
    #[derive(Default)]
    struct Notes {
        files: Vec<String>,
        idle: u32,
    }

    impl Visitor for Notes {
        fn enter(&mut self, _: &str) -> bool {
            true
        }

        fn file(&mut self, folder: &str, name: &str, _: FileTimes) -> bool {
            self.files.push(format!("{folder}/{name}"));
            name != "end"
        }

        fn special(&mut self, _: &str, _: &str, _: &'static str) {}

        fn failed(&mut self, folder: &str, _: Option<&str>, error: &io::Error) {
            panic!("{folder}: {error}");
        }

        fn leave(&mut self, _: &str, _: bool) {}

        fn idle(&mut self) {
            self.idle += 1;
        }
    }

    fn walked(root: &Path, threads: usize) -> Vec<Notes> {
        let mut notes: Vec<_> = (0..threads).map(|_| Notes::default()).collect();
        walk(&Tree::open(root, &[]).unwrap(), &mut notes);
        notes
    }

    /// A chain of folders, on which all threads but one wait, with a bundle of folders at every link, for which they are woken.
    fn chain(root: &Path) -> Vec<String> {
        let (mut folder, mut made) = (String::new(), Vec::new());
        for link in 0..20 {
            folder = if link == 0 { "link".to_owned() } else { format!("{folder}/link") };
            for bundle in 0..10 {
                std::fs::create_dir_all(root.join(format!("{folder}/{bundle}"))).unwrap();
                made.push(format!("{folder}/{bundle}/file"));
            }
        }
        made.iter().for_each(|file| std::fs::write(root.join(file), "x").unwrap());
        made.sort_unstable();
        made
    }

    #[test]
    fn every_file_is_shown_once_however_many_threads_wait_for_folders() {
        let folder = tempfile::tempdir().unwrap();
        let made = chain(folder.path());
        for threads in [1, 2, 16] {
            for _ in 0..20 {
                let notes = walked(folder.path(), threads);
                let mut shown: Vec<_> = notes.into_iter().flat_map(|notes| notes.files).collect();
                shown.sort_unstable();
                assert_eq!(shown, made, "{threads} threads");
            }
        }
    }

    #[test]
    fn who_has_nothing_to_do_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("file"), "x").unwrap();
        // A thread that is alone never waits.
        assert_eq!(walked(folder.path(), 1).iter().map(|notes| notes.idle).sum::<u32>(), 0);
        let gate = Mutex::new(false);
        let opened = Condvar::new();
        // The one that has the only folder stays in it until the other has been told.
        struct Gated<'a>(&'a Mutex<bool>, &'a Condvar);
        impl Visitor for Gated<'_> {
            fn enter(&mut self, _: &str) -> bool {
                drop(self.1.wait_while(self.0.lock().unwrap(), |told| !*told).unwrap());
                true
            }
            fn file(&mut self, _: &str, _: &str, _: FileTimes) -> bool {
                true
            }
            fn special(&mut self, _: &str, _: &str, _: &'static str) {}
            fn failed(&mut self, _: &str, _: Option<&str>, _: &io::Error) {}
            fn leave(&mut self, _: &str, _: bool) {}
            fn idle(&mut self) {
                *self.0.lock().unwrap() = true;
                self.1.notify_all();
            }
        }
        walk(&Tree::open(folder.path(), &[]).unwrap(), &mut [Gated(&gate, &opened), Gated(&gate, &opened)]);
        assert!(*gate.lock().unwrap());
    }

    #[test]
    fn one_thread_that_has_seen_enough_ends_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        chain(folder.path());
        std::fs::write(folder.path().join("link/link/link/end"), "x").unwrap();
        for _ in 0..20 {
            let notes = walked(folder.path(), 16);
            assert_eq!(notes.iter().flat_map(|notes| &notes.files).filter(|file| file.ends_with("/end")).count(), 1);
        }
    }
}
