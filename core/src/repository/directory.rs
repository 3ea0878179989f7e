//! A directory as store: files below a root, written once, never changed.
//!
//! An object is written to a temporary file and gets its name by `link`, which fails where the name exists; where the file system has no hard links, by
//! `renameat2(RENAME_NOREPLACE)`; where it has not that either, by a look and a rename under a lock. Temporary files lie in `tmp/<id>/`, a folder
//! that its process holds locked: what a dead one left is removed by the next.

mod list;
mod sync;

use super::key::Key;
use super::store::{Attributes, Begin, ByteStream, Created, Kind, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload, read_all};
use crate::budget::{CHUNK_BYTES, IDENTITY_BYTES_MAX};
use crate::crash::crash_point;
use crate::model::Sha256;
use crate::task::blocking;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use sync::Barrier;

const TEMPORARY: &str = "tmp";
/// Held while a name is given, where the file system cannot do that at once.
const NAMING_LOCK: &str = "naming.lock";

/// A directory as store.
#[derive(Debug, Clone)]
pub struct DirectoryStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    url: String,
    naming: AtomicU8,
    barrier: Barrier,
    temporary: Mutex<Option<Arc<Temporary>>>,
}

/// This process's own folder for temporary files; removed with it.
#[derive(Debug)]
struct Temporary {
    folder: PathBuf,
    /// Held locked for as long as the folder is in use.
    _lock: File,
    next: AtomicU64,
}

/// How a finished file gets its name. Each is tried once; what the file system does not know is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Naming {
    Link = 0,
    Rename = 1,
    UnderLock = 2,
}

impl Naming {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Link,
            1 => Self::Rename,
            _ => Self::UnderLock,
        }
    }
}

fn error(action: &'static str, key: &impl ToString, source: io::Error) -> StoreError {
    let key = key.to_string();
    match source.kind() {
        io::ErrorKind::NotFound => StoreError::NotFound { key },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::Denied { action, key, source },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { action, key, source },
        _ => StoreError::Io { action, key, source },
    }
}

/// Errors that say: this file system has no way to write that name.
fn is_unnameable(error: &io::Error) -> bool {
    let raw = error.raw_os_error();
    [Errno::NOTDIR, Errno::ISDIR, Errno::NAMETOOLONG, Errno::INVAL, Errno::ILSEQ].iter().any(|errno| raw == Some(errno.raw_os_error()))
}

impl DirectoryStore {
    /// A store in `root`, which need not exist yet. Nothing is touched before the first write.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self::with_naming(root, Naming::Link)
    }

    fn with_naming(root: &Path, naming: Naming) -> Self {
        let inner = Inner {
            root: root.to_owned(),
            url: root.display().to_string(),
            naming: AtomicU8::new(naming as u8),
            barrier: Barrier::default(),
            temporary: Mutex::new(None),
        };
        Self(Arc::new(inner))
    }

    /// As [`Self::new`], but as on a file system without hard links.
    #[must_use]
    pub fn without_links(root: &Path) -> Self {
        Self::with_naming(root, Naming::Rename)
    }

    /// As [`Self::new`], but as on a file system with neither hard links nor `RENAME_NOREPLACE`.
    #[must_use]
    pub fn without_links_and_renames(root: &Path) -> Self {
        Self::with_naming(root, Naming::UnderLock)
    }
}

impl Inner {
    fn path(&self, key: &Key) -> PathBuf {
        self.root.join(key.as_str())
    }

    fn temporary(&self) -> io::Result<Arc<Temporary>> {
        let mut held = self.temporary.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(temporary) = &*held {
            return Ok(Arc::clone(temporary));
        }
        let parent = self.root.join(TEMPORARY);
        create_folders(&parent, &self.root)?;
        self.barrier.open(&self.root)?;
        remove_dead(&parent);
        let temporary = Arc::new(Temporary::make(&parent)?);
        *held = Some(Arc::clone(&temporary));
        Ok(temporary)
    }

    /// A new temporary file with the rights and the mtime that the object will have.
    fn begin(&self) -> io::Result<(PathBuf, File)> {
        let temporary = self.temporary()?;
        let path = temporary.folder.join(temporary.next.fetch_add(1, Ordering::Relaxed).to_string());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR)?;
        Ok((path, File::from(fd)))
    }

    /// Ends a temporary file: read-only, with its mtime, and on disk where `durable`.
    fn complete(file: &File, attributes: &Attributes, durable: bool) -> io::Result<()> {
        if let Some(mtime_ns) = attributes.mtime_ns {
            if_possible(rustix::fs::futimens(file, &timestamps(mtime_ns)))?;
        }
        if_possible(rustix::fs::fchmod(file, Mode::RUSR))?;
        if durable { file.sync_all() } else { Ok(()) }
    }

    /// Gives a finished temporary file its name, and removes it.
    fn publish(&self, temporary: &Path, key: &Key, durable: bool) -> io::Result<Created> {
        let target = self.path(key);
        crash_point!("temporary file written, not named");
        let parent = target.parent().unwrap_or(&self.root).to_owned();
        let named = self.name(temporary, &target).or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                return Err(error);
            }
            create_folders(&parent, &self.root)?;
            self.name(temporary, &target)
        });
        crash_point!("object named, temporary file not removed");
        // Where it was renamed it is gone already.
        remove_quietly(temporary);
        match named {
            Ok(()) if durable => {
                crash_point!("object named, not durable");
                sync_folders(&parent, &self.root)?;
                Ok(Created::New)
            }
            Ok(()) => {
                self.barrier.add(target);
                Ok(Created::New)
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => Ok(Created::Unnameable),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Whoever takes up what a dead run left relies on the next barrier as well.
                self.barrier.add(target);
                Ok(Created::Exists)
            }
            Err(error) if is_unnameable(&error) => Ok(Created::Unnameable),
            Err(error) => Err(error),
        }
    }

    /// A writer that finds an object may be about to rely on it, and a dead run may have left it unflushed.
    fn note_found(&self, path: &Path) {
        if self.temporary.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            self.barrier.add(path.to_owned());
        }
    }

    fn name(&self, temporary: &Path, target: &Path) -> io::Result<()> {
        loop {
            let naming = Naming::from_u8(self.naming.load(Ordering::Relaxed));
            let (result, next) = match naming {
                Naming::Link => (rustix::fs::linkat(CWD, temporary, CWD, target, AtFlags::empty()), Naming::Rename),
                Naming::Rename => (rustix::fs::renameat_with(CWD, temporary, CWD, target, RenameFlags::NOREPLACE), Naming::UnderLock),
                Naming::UnderLock => return name_under_lock(&self.root.join(TEMPORARY).join(NAMING_LOCK), temporary, target),
            };
            match result {
                Ok(()) => return Ok(()),
                // What file systems answer to what they do not know. A name they refuse fails again below, by its own error.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::MLINK) => self.naming.store(next as u8, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn create(&self, key: &Key, content: &[u8], attributes: &Attributes) -> io::Result<Created> {
        // Files wait for the barrier; what announces them does not.
        let durable = !matches!(attributes.kind, Kind::File(_));
        let (path, mut file) = self.begin()?;
        let written = file.write_all(content).and_then(|()| Self::complete(&file, attributes, durable));
        drop(file);
        if let Err(error) = written {
            remove_quietly(&path);
            return Err(error);
        }
        self.publish(&path, key, durable)
    }
}

fn remove_quietly(path: &Path) {
    // A leftover costs room until the next process removes it; the error that led here matters more.
    drop(std::fs::remove_file(path));
}

/// Some network and user-space file systems have neither times nor permissions to set; the log has both.
fn if_possible(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

fn timestamps(mtime_ns: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime_ns.div_euclid(1_000_000_000), tv_nsec: mtime_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: time, last_modification: time }
}

/// The last resort: look, then rename, while no other process does the same. Whole or not at all, as ever; where the file system has no locks
/// either, two writers at once could replace one another's object.
fn name_under_lock(lock: &Path, temporary: &Path, target: &Path) -> io::Result<()> {
    let lock = File::options().create(true).truncate(false).write(true).open(lock)?;
    match rustix::fs::flock(&lock, FlockOperation::LockExclusive) {
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {}
        Err(error) => return Err(error.into()),
    }
    match std::fs::symlink_metadata(target) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(temporary, target),
        Err(error) => Err(error),
    }
}

/// Makes `folder` and those above it, up to `root` and beyond, readable by their owner only.
fn create_folders(folder: &Path, root: &Path) -> io::Result<()> {
    if !root.exists() {
        create_root(root)?;
    }
    private_folders(folder)
}

fn private_folders(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes the repository's own folder. Its name lies in a folder that no barrier of the repository flushes where each file is flushed by itself: without it,
/// all of the repository would be gone after a loss of power.
fn create_root(root: &Path) -> io::Result<()> {
    let missing: Vec<_> = root.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    private_folders(root)?;
    for parent in missing.into_iter().filter_map(Path::parent) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        // A folder that may be written to and not be read cannot be flushed from here: the kernel does it, soon.
        drop(File::open(parent).and_then(|folder| folder.sync_all()));
    }
    Ok(())
}

/// Flushes `folder` and those above it up to `root`: names are as durable as the folders that hold them.
fn sync_folders(folder: &Path, root: &Path) -> io::Result<()> {
    let mut folder = folder;
    loop {
        File::open(folder)?.sync_all()?;
        match folder.parent() {
            Some(parent) if folder != root => folder = parent,
            _ => return Ok(()),
        }
    }
}

impl Temporary {
    fn make(parent: &Path) -> io::Result<Self> {
        let folder = parent.join(uuid::Uuid::new_v4().simple().to_string());
        create_folders(&folder, parent)?;
        // Locked before it has the name that others try to lock: in between it would look dead.
        let lock = File::create(folder.join("lock.new"))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            // Without locks nothing is ever taken for dead, and leftovers stay.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK) => {}
            Err(error) => return Err(error.into()),
        }
        std::fs::rename(folder.join("lock.new"), folder.join("lock"))?;
        Ok(Self { folder, _lock: lock, next: AtomicU64::new(0) })
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// Removes the folders of processes that are no more. What cannot be removed only costs room.
fn remove_dead(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    for folder in entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()) {
        // Made but not locked yet looks dead too: a folder without its lock is given an hour.
        let lock = File::open(folder.join("lock"));
        let dead = match &lock {
            Ok(lock) => rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            Err(_) => folder.metadata().and_then(|m| m.modified()).is_ok_and(|at| at.elapsed().is_ok_and(|age| age.as_secs() > 3_600)),
        };
        if dead {
            drop(std::fs::remove_dir_all(&folder));
        }
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn url(&self) -> &str {
        &self.0.url
    }

    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities { conditional_create: true, parallel_ranges: false, round_trip: None }
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        // A directory refuses what exists, whatever lies below: beside what is there, nothing has to be found out.
        match read_all(self, &Key::identity(), IDENTITY_BYTES_MAX).await {
            Ok(there) if there == *identity => Ok(Created::Exists),
            Ok(_) => Err(StoreError::OtherContent { key: Key::identity().to_string() }),
            Err(StoreError::NotFound { .. }) if matches!(what, Begin::Repository) => {
                self.create(&Key::identity(), identity.clone(), &Attributes::of(Kind::Identity, Sha256::of(identity))).await
            }
            Err(error) => Err(error),
        }
    }

    fn stream_bytes(&self, _size_bytes: u64) -> usize {
        0
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        let (inner, key, attributes) = (Arc::clone(&self.0), key.clone(), *attributes);
        blocking(move || inner.create(&key, &content, &attributes).map_err(|source| create_error(&key, source))).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        let (inner, key, attributes) = (Arc::clone(&self.0), key.clone(), *attributes);
        blocking(move || {
            let (path, file) = inner.begin().map_err(|source| create_error(&key, source))?;
            Ok(Box::new(FileUpload { store: inner, key, attributes, part: Some(Part { path, file: Some(file) }) }) as Box<dyn Upload>)
        })
        .await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        let path = self.0.path(key);
        let key = key.clone();
        let opened = {
            let key = key.clone();
            blocking(move || open_range(&path, range).map_err(|source| error("read", &key, source))).await?
        };
        let pieces = futures_util::stream::try_unfold(opened, move |(file, left)| {
            let key = key.clone();
            async move {
                if left == 0 {
                    return Ok(None);
                }
                blocking(move || {
                    let piece = read_piece(&file, left).map_err(|source| error("read", &key, source))?;
                    let left = left - piece.len() as u64;
                    Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, left))))
                })
                .await
            }
        });
        Ok(pieces.boxed())
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        let (path, key, inner) = (self.0.path(key), key.clone(), Arc::clone(&self.0));
        blocking(move || match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {
                inner.note_found(&path);
                Ok(Some(ObjectInfo { key, size_bytes: found.len(), checksum: None }))
            }
            Ok(_) => Ok(None),
            Err(source) if source.kind() == io::ErrorKind::NotFound || is_unnameable(&source) => Ok(None),
            Err(source) => Err(error("look at", &key, source)),
        })
        .await
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        list::list(self.0.root.clone(), prefix.to_owned(), after.map(|key| key.as_str().to_owned()))
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        let (path, key) = (self.0.path(key), key.clone());
        blocking(move || match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::NotFound || is_unnameable(&source) => Ok(()),
            Err(source) => Err(error("delete", &key, source)),
        })
        .await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        let inner = Arc::clone(&self.0);
        blocking(move || inner.barrier.wait(&inner.root).map_err(|source| error("flush", &inner.url, source))).await
    }
}

/// The directory itself may be missing on a read, never on a write: there "not found" means that the place went away.
fn create_error(key: &Key, source: io::Error) -> StoreError {
    match source.kind() {
        io::ErrorKind::NotFound => StoreError::Io { action: "store", key: key.to_string(), source },
        _ => error("store", key, source),
    }
}

fn open_range(path: &Path, range: Option<Range<u64>>) -> io::Result<(File, u64)> {
    // A name that no file can have here, because a file is its parent, is no object's.
    let mut file = File::open(path).map_err(|error| if is_unnameable(&error) { io::ErrorKind::NotFound.into() } else { error })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let Some(range) = range else { return Ok((file, found.len())) };
    let end = range.end.min(found.len());
    file.seek(SeekFrom::Start(range.start.min(end)))?;
    Ok((file, end.saturating_sub(range.start)))
}

/// The next piece of the `left` bytes; shorter only where the file is. It is not filled with zeros first.
fn read_piece(file: &File, left: u64) -> io::Result<Vec<u8>> {
    let wanted = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
    let mut piece = Vec::with_capacity(wanted);
    file.take(wanted as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// A temporary file, removed when dropped unless it was published.
struct Part {
    path: PathBuf,
    file: Option<File>,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.file.take().is_some() {
            remove_quietly(&self.path);
        }
    }
}

struct FileUpload {
    store: Arc<Inner>,
    key: Key,
    attributes: Attributes,
    part: Option<Part>,
}

#[async_trait]
impl Upload for FileUpload {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        let Some(mut part) = self.part.take() else {
            return Err(create_error(&self.key, io::Error::other("a piece before it was not written")));
        };
        let (part, written) = blocking(move || {
            let written = part.file.as_mut().map_or(Ok(()), |file| file.write_all(&piece));
            (part, written)
        })
        .await;
        written.map_err(|source| create_error(&self.key, source))?;
        self.part = Some(part);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, _: &Sha256) -> Result<Created, StoreError> {
        let Some(mut part) = self.part.take() else {
            return Err(create_error(&self.key, io::Error::other("a piece of it was not written")));
        };
        let (store, key, attributes) = (Arc::clone(&self.store), self.key.clone(), self.attributes);
        blocking(move || {
            if let Some(file) = &part.file {
                Inner::complete(file, &attributes, true).map_err(|source| create_error(&key, source))?;
            }
            // From here on `publish` removes the temporary file.
            drop(part.file.take());
            let durable = !matches!(attributes.kind, Kind::File(_));
            store.publish(&part.path, &key, durable).map_err(|source| create_error(&key, source))
        })
        .await
    }
}
