//! What the tests of the core share: small libraries, runs on them, and a store that fails on purpose.
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod behind;
pub mod cloud;
pub mod immich;
pub mod memory;
pub mod promises;
pub mod story;
pub mod trouble;

use async_trait::async_trait;
use bytes::Bytes;
use immich_backup_core::backup::{self, BackupError, Plan, Source};
use immich_backup_core::event::{Monitor, Silent};
use immich_backup_core::library::scope::{Patterns, Scope};
use immich_backup_core::model::{Root, Sha256};
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::manifest::{Selector, SnapshotRow};
use immich_backup_core::repository::state::StateFolder;
use immich_backup_core::repository::store::{Attributes, Begin, ByteStream, Created, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload};
use immich_backup_core::repository::workers::Workers;
use immich_backup_core::repository::{OpenError, Repository, Session, init};
use immich_backup_core::restore::{self, RestoreError};
use immich_backup_core::verify::{self, Depth};
use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// A number of workers.
pub fn workers(count: usize) -> Workers {
    Workers::Exactly(NonZeroUsize::new(count).unwrap())
}

/// Bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A monitor that forgets.
pub fn silent() -> Arc<dyn Monitor> {
    Arc::new(Silent)
}

/// A library, a place for a repository and for state folders, all thrown away in the end.
pub struct World {
    folder: PathBuf,
    /// Removes it.
    _own: Option<TempDir>,
    /// Immich's media location.
    pub library: PathBuf,
    /// The repository's directory.
    pub repository: PathBuf,
}

impl World {
    /// An empty library, and nothing else.
    pub fn empty() -> Self {
        Self::of(tempfile::tempdir().unwrap())
    }

    /// The same, in memory where the machine has a place for that: for what is done thousands of times, and is not about disks.
    pub fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        Self::of(tempfile::tempdir_in(memory).unwrap_or_else(|_| tempfile::tempdir().unwrap()))
    }

    fn of(folder: TempDir) -> Self {
        let world = Self::at(folder.path());
        std::fs::create_dir(&world.library).unwrap();
        Self { _own: Some(folder), ..world }
    }

    /// The world that another process has made in `folder`, and that stays.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), _own: None, library: folder.join("library"), repository: folder.join("repository") }
    }

    /// Where all of it lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A library of `files` files, and an empty repository.
    pub async fn with_files(files: u64) -> Self {
        let world = Self::empty();
        for number in 0..files {
            world.write(&format!("upload/u{}/photo-{number:03}.jpg", number % 3), &noise(number, 200 + usize::try_from(number).unwrap()));
        }
        init(world.directory(), "test").await.unwrap();
        world
    }

    /// A path beside library and repository.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file of the library, modified long ago.
    pub fn write(&self, path: &str, content: &[u8]) {
        let path = self.library.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        let past = SystemTime::now() - Duration::from_secs(86_400);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(past).unwrap();
    }

    /// Removes a file of the library.
    pub fn remove(&self, path: &str) {
        std::fs::remove_file(self.library.join(path)).unwrap();
    }

    /// Moves a file of the library.
    pub fn rename(&self, from: &str, to: &str) {
        let to = self.library.join(to);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::rename(self.library.join(from), to).unwrap();
    }

    /// The repository's store, as it is.
    pub fn directory(&self) -> Arc<dyn Store> {
        Arc::new(DirectoryStore::new(&self.repository))
    }

    /// What a run is to do, where nothing special is wanted.
    pub fn plan(&self) -> Plan {
        Plan {
            sources: vec![Source { root: Root::Library, path: self.library.clone(), server_path: None, mounts: Vec::new() }],
            database: None,
            scope: Scope::default(),
            workers: workers(4),
            walkers: NonZeroUsize::new(2).unwrap(),
            rehash: None,
            accept: None,
            drop_externals: Vec::new(),
            ignore_missing_markers: false,
            label: None,
            immich_version: None,
            host: "test".to_owned(),
            wait: Duration::ZERO,
            take_over: false,
            shard: None,
            downtime: None,
            stage: None,
        }
    }

    /// The repository and the state folder `state`.
    pub async fn open(&self, store: Arc<dyn Store>, state: &str) -> Result<(Repository, StateFolder), OpenError> {
        let repository = Repository::open(store).await?;
        let state = StateFolder::open(&self.beside(state), repository.id)?;
        Ok((repository, state))
    }

    /// A session that writes, from the state folder `state`.
    pub async fn writing(&self, store: Arc<dyn Store>, state: &str) -> Result<Session, BackupError> {
        let (repository, state) = self.open(store, state).await?;
        backup::open(repository, state, Duration::ZERO, &Silent, &CancellationToken::new()).await
    }

    /// A session that reads, from the state folder `state`.
    pub async fn reading(&self, state: &str) -> Result<Session, OpenError> {
        let (repository, state) = self.open(self.directory(), state).await?;
        Session::open_for_reading(repository, state, &Silent).await
    }

    /// Backs up over `store` from `state`, with what `change` does to the plan.
    pub async fn back_up_with(
        &self,
        store: Arc<dyn Store>,
        state: &str,
        monitor: &Arc<dyn Monitor>,
        change: impl FnOnce(&mut Plan),
    ) -> Result<backup::Report, BackupError> {
        let mut plan = self.plan();
        change(&mut plan);
        let mut session = self.writing(store, state).await?;
        Box::pin(backup::run(&mut session, &plan, monitor, &CancellationToken::new())).await
    }

    /// Backs up from the state folder `state`; it must end in a snapshot.
    pub async fn back_up(&self) -> backup::Report {
        let report = self.back_up_with(self.directory(), "state", &silent(), |_| {}).await.unwrap();
        assert_eq!(report.ending, backup::Ending::Snapshot);
        assert!(report.is_complete(), "{:?}", report.unread);
        report
    }

    /// Reads back everything, from `state`.
    pub async fn verify(&self, state: &str, record: bool) -> Result<verify::Report, OpenError> {
        let mut session = self.reading(state).await?;
        let plan = verify::Plan { depth: Depth::Read(None), workers: workers(2), record };
        Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await
    }

    /// Restores the snapshot that `which` names to a new folder, from `state`.
    pub async fn restore(&self, state: &str, which: &str, to: &Path) -> Result<restore::Report, RestoreError> {
        let session = self.reading(state).await?;
        restore_from(&session, which, to).await
    }
}

/// A plan to restore all of a snapshot, to nowhere yet.
pub fn restore_plan(snapshot: SnapshotRow) -> restore::Plan {
    restore::Plan {
        snapshot,
        to: None,
        externals: BTreeMap::new(),
        mounts: Vec::new(),
        config_to: None,
        postgres_to: None,
        paths: Patterns::default(),
        chosen: None,
        overwrite: false,
        workers: workers(2),
    }
}

/// Restores the snapshot that `which` names to a new folder.
pub async fn restore_from(session: &Session, which: &str, to: &Path) -> Result<restore::Report, RestoreError> {
    let selector: Selector = which.parse().unwrap();
    let plan = restore::Plan { to: Some(to.to_owned()), ..restore_plan(session.manifest.select(&selector).unwrap()) };
    let stop = CancellationToken::new();
    let prepared = restore::prepare(session, plan, &Silent, &stop).await?;
    Box::pin(prepared.run(session, &silent(), &stop)).await
}

/// Every file below `folder`: its path and content. Immich's markers, which a restore makes, are left out.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files(folder).into_iter().filter(|path| !path.ends_with(".immich")).map(|path| (path.clone(), std::fs::read(folder.join(path)).unwrap())).collect()
}

/// Every file below `folder`, as path below it, in order.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    fn collect(root: &Path, folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(root, &path, found);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_owned());
            }
        }
    }
    let mut found = Vec::new();
    collect(folder, folder, &mut found);
    found.sort();
    found
}

/// Replaces a folder by a copy of another one.
pub fn copy_folder(from: &Path, to: &Path) {
    if to.exists() {
        std::fs::remove_dir_all(to).unwrap();
    }
    std::fs::create_dir_all(to).unwrap();
    for path in files(from) {
        let target = to.join(&path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(from.join(&path), target).unwrap();
    }
}

/// A file that was changed or removed; dropped, it is as it was.
pub struct Tampered {
    path: PathBuf,
    before: Vec<u8>,
    modified: SystemTime,
}

impl Tampered {
    /// Changes the bytes of the file at `path`; removes it where `change` returns `None`.
    pub fn with(path: &Path, change: impl FnOnce(Vec<u8>) -> Option<Vec<u8>>) -> Self {
        let before = std::fs::read(path).unwrap();
        let modified = std::fs::metadata(path).unwrap().modified().unwrap();
        let tampered = Self { path: path.to_owned(), before: before.clone(), modified };
        tampered.put(change(before));
        tampered
    }

    fn put(&self, content: Option<Vec<u8>>) {
        // Objects are read-only.
        drop(std::fs::remove_file(&self.path));
        if let Some(content) = content {
            std::fs::write(&self.path, content).unwrap();
            std::fs::File::options().write(true).open(&self.path).unwrap().set_modified(self.modified).unwrap();
        }
    }

    /// Leaves it as it is now.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Tampered {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.before);
        self.put(Some(before));
    }
}

/// How a create goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The store takes it, and the answer is lost.
    AnswerLost,
    /// The request never arrives, and nobody says so.
    RequestLost,
    /// The store refuses with an error.
    Refused,
    /// No answer ever comes.
    Hangs,
}

#[derive(Debug)]
struct Rule {
    prefix: String,
    fault: Fault,
    skip: u64,
    times: u64,
}

/// A directory whose creates go wrong as they are told to, and which counts calls.
#[derive(Debug, Clone)]
pub struct FaultyStore(Arc<Faulty>);

#[derive(Debug)]
struct Faulty {
    inner: DirectoryStore,
    rules: Mutex<Vec<Rule>>,
    /// Looks at keys that begin so fail.
    blind: Mutex<Option<(String, u64)>>,
    /// Reads of keys that begin so fail, and it is not the medium's fault.
    forbidden: Mutex<Option<String>>,
    /// Reads of keys that begin so take so long.
    slow: Mutex<Option<(String, Duration)>>,
    /// Listings begin with what comes last.
    lists_backwards: std::sync::atomic::AtomicBool,
    calls: Mutex<Vec<(&'static str, String)>>,
}

impl FaultyStore {
    /// A store over the directory `root`.
    pub fn new(root: &Path) -> Self {
        Self(Arc::new(Faulty {
            inner: DirectoryStore::new(root),
            rules: Mutex::default(),
            blind: Mutex::default(),
            forbidden: Mutex::default(),
            slow: Mutex::default(),
            lists_backwards: std::sync::atomic::AtomicBool::default(),
            calls: Mutex::default(),
        }))
    }

    /// Lets creates of keys below `prefix` go wrong: after `skip` good ones, `times` times.
    pub fn fail(&self, prefix: &str, fault: Fault, skip: u64, times: u64) {
        self.0.rules.lock().unwrap().push(Rule { prefix: prefix.to_owned(), fault, skip, times });
    }

    /// Nothing below `prefix` can be looked at, after `skip` good looks.
    pub fn blind(&self, prefix: &str, skip: u64) {
        *self.0.blind.lock().unwrap() = Some((prefix.to_owned(), skip));
    }

    /// Nothing below `prefix` can be read any more.
    pub fn forbid_reading(&self, prefix: &str) {
        *self.0.forbidden.lock().unwrap() = Some(prefix.to_owned());
    }

    /// Reads of what lies below `prefix` take `long` from now on, and of nothing else.
    pub fn slow_reading(&self, prefix: &str, long: Duration) {
        *self.0.slow.lock().unwrap() = Some((prefix.to_owned(), long));
    }

    /// What is listed comes in the opposite order from now on; no store does that, some show a few names late.
    pub fn list_backwards(&self) {
        self.0.lists_backwards.store(true, std::sync::atomic::Ordering::Relaxed);
    }

    /// How often `call` was made for keys below `prefix`.
    pub fn count(&self, call: &str, prefix: &str) -> usize {
        self.0.calls.lock().unwrap().iter().filter(|(name, key)| *name == call && key.starts_with(prefix)).count()
    }

    /// Itself, as a store.
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::new(self.clone())
    }
}

impl Faulty {
    fn note(&self, call: &'static str, key: &str) {
        self.calls.lock().unwrap().push((call, key.to_owned()));
    }

    fn fault(&self, key: &Key) -> Option<Fault> {
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().find(|rule| key.as_str().starts_with(&rule.prefix) && rule.times > 0)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }

    fn is_blind(&self, key: &Key) -> bool {
        match &mut *self.blind.lock().unwrap() {
            Some((prefix, skip)) if key.as_str().starts_with(prefix.as_str()) => {
                let blind = *skip == 0;
                *skip = skip.saturating_sub(1);
                blind
            }
            _ => false,
        }
    }

    async fn disturb(&self, key: &Key, create: impl Future<Output = Result<Created, StoreError>>) -> Result<Created, StoreError> {
        let error = || io::Error::other("injected");
        match self.fault(key) {
            None => create.await,
            Some(Fault::AnswerLost) => {
                create.await?;
                Err(StoreError::Unanswered { action: "create", key: key.to_string(), source: error() })
            }
            Some(Fault::RequestLost) => Err(StoreError::Unanswered { action: "create", key: key.to_string(), source: error() }),
            Some(Fault::Refused) => Err(StoreError::Io { action: "create", key: key.to_string(), source: error() }),
            Some(Fault::Hangs) => std::future::pending().await,
        }
    }
}

struct FaultyUpload {
    store: Arc<Faulty>,
    key: Key,
    inner: Box<dyn Upload>,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.inner.write(piece).await
    }

    async fn finish(self: Box<Self>, sha256: &Sha256) -> Result<Created, StoreError> {
        let Self { store, key, inner } = *self;
        store.note("finish", key.as_str());
        store.disturb(&key, inner.finish(sha256)).await
    }
}

#[async_trait]
impl Store for FaultyStore {
    fn url(&self) -> &str {
        self.0.inner.url()
    }

    fn capabilities(&self) -> StoreCapabilities {
        self.0.inner.capabilities()
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        self.0.inner.begin(identity, what).await
    }

    fn stream_bytes(&self, size_bytes: u64) -> usize {
        self.0.inner.stream_bytes(size_bytes)
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        self.0.note("create", key.as_str());
        self.0.disturb(key, self.0.inner.create(key, content, attributes)).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        let inner = self.0.inner.create_streamed(key, attributes).await?;
        Ok(Box::new(FaultyUpload { store: Arc::clone(&self.0), key: key.clone(), inner }))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        self.0.note("get", key.as_str());
        let slow = self.0.slow.lock().unwrap().clone();
        if let Some((_, long)) = slow.filter(|(prefix, _)| key.as_str().starts_with(prefix)) {
            tokio::time::sleep(long).await;
        }
        if self.0.forbidden.lock().unwrap().as_deref().is_some_and(|prefix| key.as_str().starts_with(prefix)) {
            return Err(StoreError::Io { action: "read", key: key.to_string(), source: io::Error::other("injected") });
        }
        self.0.inner.get(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        self.0.note("head", key.as_str());
        if self.0.is_blind(key) {
            return Err(StoreError::Io { action: "look at", key: key.to_string(), source: io::Error::other("injected") });
        }
        self.0.inner.head(key).await
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        self.0.note("list", prefix);
        let listing = self.0.inner.list(prefix, after);
        if !self.0.lists_backwards.load(std::sync::atomic::Ordering::Relaxed) {
            return listing;
        }
        let backwards = async move {
            let mut all: Vec<_> = futures_util::StreamExt::collect(listing).await;
            all.reverse();
            futures_util::stream::iter(all)
        };
        Box::pin(futures_util::FutureExt::flatten_stream(backwards))
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.0.inner.delete(key).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.0.note("sync", "");
        self.0.inner.sync().await
    }
}
