//! One file: read once, known or sent, and the fact that says so.

use super::claim::May;
use super::contents::{Claim, Contents, Looks};
use super::unnamed::{Unnamed, adoptable};
use super::{BackupError, Done, Item};
use crate::budget::{CHUNKS_QUEUED_MAX, CLAIM_HASHED_BYTES_MAX, LOOKUP_CONNECTIONS_MAX, ONE_SHOT_BYTES_MAX, STREAM_BYTES, TRANSFER_BYTES_MAX};
use crate::crash::crash_point;
use crate::database::inventory::{Inventory, InventoryError};
use crate::event::{Event, Monitor, Stored};
use crate::library::read::ReadError;
use crate::model::{Class, Content, FileTimes, Sha256Counter};
use crate::repository::checksum::{Checksum, Comparison};
use crate::repository::key::{self, Key};
use crate::repository::log::{Start, StoredFact, Subject};
use crate::repository::manifest::{Lookup, ManifestError, StoredContent};
use crate::repository::store::{Attributes, Created, Kind, Store, StoreError};
use crate::task::{blocking, joined};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// Reading a file that changes meanwhile is tried so often.
const TRIES_MAX: u32 = 3;
/// Keys under which the object of a claimed path is looked for: its home, its place under `versions/`, and the first hashed one.
const CLAIMED_KEYS_LOOKED_AT: usize = 3;
/// The wait before another try, times its number.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(300);
/// A change within this time of another may leave the same times behind (clocks of file systems are coarse, those of servers differ).
const TRUSTED_AGE_NS: i64 = 3_000_000_000;

/// A file that is in the repository, not yet in the log.
#[derive(Debug)]
pub(super) struct StoredFile {
    pub(super) fact: StoredFact,
    pub(super) how: Stored,
    pub(super) class: Class,
    /// The path held other content before.
    pub(super) changed: bool,
    /// It contradicts what Immich recorded, and what stands does not: it is kept beside, and what stands stays.
    pub(super) doubtful: bool,
}

/// What all workers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<dyn Store>,
    lookups: Vec<Mutex<Lookup>>,
    next_lookup: AtomicUsize,
    pub(super) contents: Arc<Contents>,
    there: Beyond,
    /// In KiB.
    memory: Arc<Semaphore>,
    pub(super) halt: CancellationToken,
    /// What the dump of this run says of each asset, where there is one.
    inventory: Option<Arc<Mutex<Inventory>>>,
}

/// What there may be in the store beside whole objects that the log names, as of the start: what there is not, is not asked for.
#[derive(Debug)]
pub(super) struct Beyond {
    /// Objects that the log does not name, where a run that died may have left some.
    pub(super) unnamed: Option<Arc<Unnamed>>,
    /// Objects that the log calls damaged.
    pub(super) damaged: bool,
    /// Objects that a shard was about to store: the log says for which path.
    pub(super) claimed: bool,
}

/// How one try ended other than well.
pub(super) enum Failure {
    Read(ReadError),
    Fatal(BackupError),
    /// It is new, and another shard's to store.
    Postponed,
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Fatal(error.into())
    }
}

impl From<InventoryError> for Failure {
    fn from(error: InventoryError) -> Self {
        Self::Fatal(error.into())
    }
}

impl From<ManifestError> for Failure {
    fn from(error: ManifestError) -> Self {
        Self::Fatal(error.into())
    }
}

/// What has been read of a file.
pub(super) struct Material {
    pub(super) content: Content,
    times: FileTimes,
    trusted: bool,
    /// The bytes, where the file is small.
    pub(super) bytes: Option<Bytes>,
}

/// Whether a later change would show in these times.
pub(super) fn is_trusted(times: &FileTimes) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX));
    times.mtime_ns.max(times.ctime_ns) <= now.saturating_sub(TRUSTED_AGE_NS)
}

/// Stores what `item` holds now.
pub(super) async fn store_one(shared: Arc<Shared>, item: Item, monitor: Arc<dyn Monitor>) -> Done {
    let item = Arc::new(item);
    let mut size_bytes = item.size_bytes;
    for attempt in 1.. {
        let small = size_bytes <= ONE_SHOT_BYTES_MAX;
        let bytes = if small { usize::try_from(size_bytes).unwrap_or(STREAM_BYTES) } else { STREAM_BYTES + shared.store.stream_bytes(size_bytes) };
        let permits = u32::try_from((bytes / 1_024 + 1).min(TRANSFER_BYTES_MAX / 1_024)).unwrap_or(u32::MAX);
        // One permit for the whole of a file, never a second: nothing can wait for itself.
        let Ok(_memory) = shared.memory.acquire_many(permits).await else { return Done::Left };
        let tried = if small { store_small(&shared, &item, size_bytes, &monitor).await } else { store_large(&shared, &item, attempt == 1, &monitor).await };
        match tried {
            Ok(done) => return done,
            Err(Failure::Fatal(BackupError::Store(StoreError::UploadLost { key, source }))) if attempt < TRIES_MAX && !shared.halt.is_cancelled() => {
                let (wait, of) = (TRY_AGAIN_AFTER * attempt, TRIES_MAX - 1);
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
                monitor.emit(Event::Retrying { action: "store".into(), key, retry: attempt, of, wait_ms, problem: source.to_string() });
                tokio::time::sleep(wait).await;
            }
            Err(Failure::Fatal(error)) => return Done::Fatal(error),
            Err(Failure::Postponed) => return Done::Postponed(item.file.clone()),
            Err(Failure::Read(ReadError::Vanished | ReadError::NotRegular)) => return Done::Vanished(item.file.clone()),
            Err(Failure::Read(ReadError::Stopped)) => return Done::Left,
            Err(Failure::Read(ReadError::Io(error))) => return Done::Unread { path: item.file.to_string(), problem: error.to_string() },
            Err(Failure::Read(ReadError::Changed)) if attempt < TRIES_MAX && !shared.halt.is_cancelled() => {
                tokio::time::sleep(TRY_AGAIN_AFTER * attempt).await;
                let looking = Arc::clone(&item);
                let look = move || {
                    let (folder, path) = looking.tree.at(&looking.file.path);
                    crate::library::read::look(folder, &path)
                };
                if let (true, Ok(Some(now))) = (item.copied.is_none(), blocking(look).await) {
                    size_bytes = now.size_bytes;
                }
            }
            Err(Failure::Read(ReadError::Changed)) => break,
        }
    }
    Done::Unread { path: item.file.to_string(), problem: format!("it changed each of the {TRIES_MAX} times it was read; the next run tries again") }
}

/// Reads the whole file into memory, and sends that.
async fn store_small(shared: &Arc<Shared>, item: &Arc<Item>, size_bytes: u64, monitor: &Arc<dyn Monitor>) -> Result<Done, Failure> {
    let reading = Arc::clone(item);
    let material = blocking(move || {
        let (live, trusted) = reading.open()?;
        let times = live.times();
        if times.size_bytes > size_bytes {
            // More memory than was asked for: try again with its size now.
            return Err(ReadError::Changed);
        }
        live.read_whole().map(|(bytes, content)| Material { content, times, trusted, bytes: Some(bytes) })
    })
    .await?;
    monitor.emit(Event::BytesSent { bytes: material.content.size_bytes });
    resolve(shared, item, material, monitor).await
}

/// Streams a file that is large, unless something speaks for the repository knowing its content: then it is hashed first.
async fn store_large(shared: &Arc<Shared>, item: &Arc<Item>, first: bool, monitor: &Arc<dyn Monitor>) -> Result<Done, Failure> {
    let home = key::home(&item.file);
    let (size_bytes, file) = (item.size_bytes, item.file.clone());
    let is_left = match &shared.there.unnamed {
        Some(unnamed) => unnamed.found(shared).await?.has_size(size_bytes),
        None => false,
    };
    let looking = Arc::clone(item);
    let ends = blocking(move || looking.open()?.0.ends()).await?;
    let mut sent_before = shared.contents.turn(Looks { size_bytes, ends }).await;
    if shared.halt.is_cancelled() {
        // As in `resolve`.
        return Ok(Done::Left);
    }
    let claimed = shared.there.claimed;
    let (known, has_history) = shared
        .lookup(move |lookup| {
            // Claimed for another path, it may have been stored there by a shard that died.
            let elsewhere = claimed && lookup.claimed_for(Subject::Size(size_bytes))?.is_some_and(|path| path != file);
            Ok((elsewhere || lookup.knows_size(size_bytes)?, lookup.has_history(&file)?))
        })
        .await?;
    if let (false, false, None, Some(home)) = (known || is_left || *sent_before, has_history, &item.current, home)
        && item.may.store_unseen(size_bytes)
        && shared.store.head(&home).await?.is_none()
    {
        let sent = stream(shared, item, &home, None, monitor).await.map_err(|failure| shared.given_up(failure))?;
        if let Some((content, times, trusted)) = sent {
            crash_point!("large object stored, not logged");
            let stored = StoredContent { key: home.to_string(), etag: None };
            if let Claim::Mine(mine) = shared.contents.claim(content.digests.sha256).await {
                mine.stored(stored.clone());
            }
            *sent_before = true;
            return Ok(done(item, &Material { content, times, trusted, bytes: None }, stored, Stored::Sent));
        }
        // The name is taken after all: what is there decides.
    }
    drop(sent_before);
    let (reading, halt) = (Arc::clone(item), shared.halt.clone());
    let material = blocking(move || {
        let (live, trusted) = reading.open()?;
        let times = live.times();
        if let (May::Store(content), true) = (reading.may, first)
            && content.size_bytes == times.size_bytes
        {
            // Hashed a moment ago, when it was claimed: what is sent is compared with that.
            return Ok(Material { content, times, trusted, bytes: None });
        }
        live.hash(|| !halt.is_cancelled()).map(|content| Material { content, times, trusted, bytes: None })
    })
    .await?;
    resolve(shared, item, material, monitor).await
}

/// What the file's content means: nothing new, known content, or something to send.
async fn resolve(shared: &Arc<Shared>, item: &Arc<Item>, material: Material, monitor: &Arc<dyn Monitor>) -> Result<Done, Failure> {
    let sha256 = material.content.digests.sha256;
    if let Some(current) = &item.current {
        let same = current.digests.sha256 == sha256;
        if item.rehash && !same && current.is_unchanged(&material.times) {
            return Ok(Done::BitRot(item.file.clone()));
        }
        if same && !current.damaged {
            let nothing_to_say = current.mtime_ns == material.times.mtime_ns
                && current.mode == material.times.mode
                && current.ctime_ns == material.trusted.then_some(material.times.ctime_ns);
            if nothing_to_say {
                return Ok(Done::Same { file: item.file.clone(), size_bytes: material.content.size_bytes });
            }
            let home = key::home(&item.file).map(|home| home.to_string());
            let stored = StoredContent { key: current.key.clone().or(home).unwrap_or_default(), etag: current.etag.clone() };
            return Ok(done(item, &material, stored, Stored::Touched));
        }
    }
    if item.class() == Class::Marker {
        // A few bytes, and several alike: each at its own place, a plain copy of the repository has them all, as Immich demands.
        let (stored, how) = place(shared, item, &material, monitor).await?;
        return Ok(done(item, &material, stored, how));
    }
    let beside = is_doubtful(shared, item, &material).await?;
    let ended = |stored, how| {
        let done = done(item, &material, stored, how);
        if beside { doubtful(done) } else { done }
    };
    let mine = match shared.contents.claim(sha256).await {
        Claim::Stored(stored) => return Ok(ended(stored, Stored::Known)),
        Claim::Mine(mine) => mine,
    };
    if shared.halt.is_cancelled() {
        // Whoever had it before may have stored it and not have heard so: under another name it would be there twice.
        return Ok(Done::Left);
    }
    let (stored, how) = store_new(shared, item, &material, monitor).await.map_err(|failure| shared.given_up(failure))?;
    crash_point!("object stored, not logged");
    mine.stored(stored.clone());
    Ok(ended(stored, how))
}

/// Where content that nobody has in hand is, or is now.
async fn store_new(shared: &Arc<Shared>, item: &Arc<Item>, material: &Material, monitor: &Arc<dyn Monitor>) -> Result<(StoredContent, Stored), Failure> {
    if let Some(stored) = known(shared, material, monitor).await? {
        return Ok((stored, Stored::Known));
    }
    match claimed_before(shared, item, material).await? {
        Some(stored) => Ok((stored, Stored::Adopted)),
        None if !item.may.store(&material.content) => Err(Failure::Postponed),
        None => place(shared, item, material, monitor).await,
    }
}

fn done(item: &Item, material: &Material, stored: StoredContent, how: Stored) -> Done {
    let StoredContent { key, etag } = stored;
    let times = FileTimes { size_bytes: material.content.size_bytes, ..material.times };
    let fact = match Key::parse(&key) {
        Ok(key) => StoredFact::new(&item.file, material.content.digests, &times, material.trusted, &key, etag),
        Err(error) => return Done::Fatal(StoreError::from(error).into()),
    };
    let changed = item.current.as_ref().is_some_and(|current| current.digests != material.content.digests);
    Done::Stored(Box::new(StoredFile { fact, how, class: item.class(), changed, doubtful: false }))
}

/// Whether this content contradicts the SHA-1 that Immich recorded for the asset at this path, while what stands does not: Immich never changes an
/// original, so the live file is damaged, or was tampered with.
async fn is_doubtful(shared: &Arc<Shared>, item: &Arc<Item>, material: &Material) -> Result<bool, Failure> {
    let Some(current) = &item.current else { return Ok(false) };
    if current.damaged || current.digests.sha1 == material.content.digests.sha1 {
        return Ok(false);
    }
    let Some(inventory) = &shared.inventory else {
        // Without a database, what an earlier run found stays found.
        let (file, content) = (item.file.clone(), material.content.digests.sha256);
        return Ok(shared.lookup(move |lookup| lookup.is_doubtful(&file, &content)).await?);
    };
    let (inventory, file) = (Arc::clone(inventory), item.file.clone());
    let asset = blocking(move || inventory.lock().unwrap_or_else(PoisonError::into_inner).asset_at(&file)).await?;
    Ok(asset.and_then(|asset| asset.sha1) == Some(current.digests.sha1))
}

/// `done` of a doubtful file.
fn doubtful(done: Done) -> Done {
    match done {
        Done::Stored(stored) => Done::Stored(Box::new(StoredFile { doubtful: true, ..*stored })),
        other => other,
    }
}

/// An object that holds this content, seen in the store just now.
async fn known(shared: &Arc<Shared>, material: &Material, monitor: &Arc<dyn Monitor>) -> Result<Option<StoredContent>, Failure> {
    let sha256 = material.content.digests.sha256;
    for stored in shared.lookup(move |lookup| lookup.objects_with(&sha256)).await? {
        let key = Key::parse(&stored.key).map_err(StoreError::from)?;
        match shared.store.head(&key).await? {
            Some(found) if found.size_bytes == material.content.size_bytes => return Ok(Some(stored)),
            _ => monitor.emit(Event::ObjectLost { key: stored.key }),
        }
    }
    Ok(None)
}

/// An object that holds this content because a shard that died was about to store it, for another path.
async fn claimed_before(shared: &Arc<Shared>, item: &Arc<Item>, material: &Material) -> Result<Option<StoredContent>, Failure> {
    if !shared.there.claimed {
        return Ok(None);
    }
    let content = material.content;
    let sha256 = content.digests.sha256;
    let by_size = (content.size_bytes > CLAIM_HASHED_BYTES_MAX).then_some(Subject::Size(content.size_bytes));
    let claims = [Some(Subject::Content(Start::from(&sha256))), by_size];
    for claim in claims.into_iter().flatten() {
        let Some(file) = shared.lookup(move |lookup| lookup.claimed_for(claim)).await? else { continue };
        if file == item.file {
            continue;
        }
        for key in key::candidates(&file, &sha256, true).take(CLAIMED_KEYS_LOOKED_AT) {
            let again = material.bytes.as_ref().map_or(Again::File(item), Again::Bytes);
            if shared.store.head(&key).await?.is_some() && holds(shared, &key, &content, again).await? {
                return Ok(Some(StoredContent { key: key.to_string(), etag: None }));
            }
        }
    }
    Ok(None)
}

/// Sends the content under the first key that will have it.
async fn place(shared: &Arc<Shared>, item: &Arc<Item>, material: &Material, monitor: &Arc<dyn Monitor>) -> Result<(StoredContent, Stored), Failure> {
    let file = item.file.clone();
    let has_history = item.current.is_some() || shared.lookup(move |lookup| lookup.has_history(&file)).await?;
    let candidates = || key::candidates(&item.file, &material.content.digests.sha256, !has_history);
    crash_point!("file read, not stored");
    if let Some(unnamed) = &shared.there.unnamed
        && let Some(key) = adoptable(shared, unnamed, item, material, candidates()).await?
    {
        return Ok((StoredContent { key: key.to_string(), etag: None }, Stored::Adopted));
    }
    for key in candidates() {
        let asked = key.clone();
        if shared.there.damaged && shared.lookup(move |lookup| lookup.is_damaged(&asked)).await? {
            continue;
        }
        let how = match &material.bytes {
            Some(bytes) => create(shared, item, &key, bytes, material).await?,
            None => create_large(shared, item, &key, material, monitor).await?,
        };
        if let Some(how) = how {
            return Ok((StoredContent { key: key.to_string(), etag: None }, how));
        }
    }
    let source = std::io::Error::other("every key that this content could have is taken by something else");
    Err(StoreError::Io { action: "store", key: item.file.to_string(), source }.into())
}

async fn create(shared: &Shared, item: &Item, key: &Key, bytes: &Bytes, material: &Material) -> Result<Option<Stored>, Failure> {
    let attributes = Attributes {
        kind: Kind::File(item.class()),
        sha256: Some(material.content.digests.sha256),
        mtime_ns: Some(material.times.mtime_ns),
        size_bytes: Some(material.content.size_bytes),
    };
    Ok(match shared.store.create(key, bytes.clone(), &attributes).await {
        Ok(Created::New) => Some(Stored::Sent),
        Ok(Created::Unnameable) => None,
        Ok(Created::Exists) => holds(shared, key, &material.content, Again::Bytes(bytes)).await?.then_some(Stored::Adopted),
        // It may have happened: what is there decides.
        Err(StoreError::Unanswered { .. }) if holds(shared, key, &material.content, Again::Bytes(bytes)).await? => Some(Stored::Sent),
        Err(error) => return Err(error.into()),
    })
}

async fn create_large(shared: &Arc<Shared>, item: &Arc<Item>, key: &Key, material: &Material, monitor: &Arc<dyn Monitor>) -> Result<Option<Stored>, Failure> {
    if shared.store.head(key).await?.is_some() {
        return Ok(holds(shared, key, &material.content, Again::File(item)).await?.then_some(Stored::Adopted));
    }
    let sent = stream(shared, item, key, Some(&material.content), monitor).await?;
    Ok(sent.map(|_| Stored::Sent))
}

/// Where a file's bytes are to be had once more.
pub(super) enum Again<'a> {
    Bytes(&'a Bytes),
    File(&'a Arc<Item>),
}

/// Whether the object `key` holds this content: by what the store computed over it, or else by reading it back. What cannot be read (it lies in an
/// archive) does not: the content is stored elsewhere.
pub(super) async fn holds(shared: &Shared, key: &Key, content: &Content, again: Again<'_>) -> Result<bool, Failure> {
    let Some(found) = shared.store.head(key).await? else { return Ok(false) };
    if found.size_bytes != content.size_bytes {
        return Ok(false);
    }
    let compared = match (found.checksum, again) {
        (Some(Checksum::Sha256(sha256)), _) => return Ok(sha256 == content.digests.sha256),
        (Some(checksum), Again::Bytes(bytes)) => checksum.compare(bytes),
        (Some(checksum), Again::File(item)) => compare_file(shared, item, content, checksum).await?,
        (None, _) => Comparison::Unknown,
    };
    match compared {
        Comparison::Same => return Ok(true),
        Comparison::Different => return Ok(false),
        Comparison::Unknown => {}
    }
    let mut pieces = match shared.store.get(key, None).await {
        Err(StoreError::Archived { .. } | StoreError::Denied { .. } | StoreError::Io { .. }) => return Ok(false),
        other => other?,
    };
    let mut hasher = Sha256Counter::default();
    while let Some(piece) = pieces.try_next().await? {
        hasher.update(&piece);
    }
    Ok(hasher.finish() == (content.digests.sha256, content.size_bytes))
}

/// Reads the file once more, for a kind of checksum that was not computed the first time.
pub(super) async fn compare_file(shared: &Shared, item: &Arc<Item>, content: &Content, checksum: Checksum) -> Result<Comparison, Failure> {
    let (reading, halt, content) = (Arc::clone(item), shared.halt.clone(), *content);
    blocking(move || {
        let (live, _) = reading.open()?;
        let mut counter = checksum.counter();
        let read = live.read_pieces(|piece| {
            counter.update(&piece);
            !halt.is_cancelled()
        })?;
        // Another content than a moment ago: from the start.
        if read == content { Ok(counter.finish()) } else { Err(ReadError::Changed.into()) }
    })
    .await
}

/// Sends the file piece by piece as it is read, if it is what was `expected`. `None` where the name was taken or not possible.
async fn stream(
    shared: &Arc<Shared>,
    item: &Arc<Item>,
    key: &Key,
    expected: Option<&Content>,
    monitor: &Arc<dyn Monitor>,
) -> Result<Option<(Content, FileTimes, bool)>, Failure> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(CHUNKS_QUEUED_MAX);
    let (opened, times) = tokio::sync::oneshot::channel();
    let (reading, halt) = (Arc::clone(item), shared.halt.clone());
    let reader = tokio::task::spawn_blocking(move || {
        let (live, trusted) = reading.open()?;
        let times = live.times();
        if opened.send((times, trusted)).is_err() {
            return Err(ReadError::Stopped);
        }
        live.read_pieces(|piece| !halt.is_cancelled() && pieces.blocking_send(piece).is_ok())
    });
    let Ok((times, trusted)) = times.await else { return Ok(joined(reader.await).map(|_| None)?) };
    if expected.is_none() && !item.may.store_unseen(times.size_bytes) {
        // It was claimed with another size.
        return Err(Failure::Postponed);
    }
    let attributes = Attributes {
        kind: Kind::File(item.class()),
        sha256: expected.map(|expected| expected.digests.sha256),
        mtime_ns: Some(times.mtime_ns),
        size_bytes: Some(times.size_bytes),
    };
    let mut upload = shared.store.create_streamed(key, &attributes).await?;
    while let Some(piece) = queue.recv().await {
        let bytes = piece.len() as u64;
        upload.write(piece).await?;
        monitor.emit(Event::BytesSent { bytes });
        crash_point!("large object half sent");
    }
    let content = joined(reader.await)?;
    if expected.is_some_and(|expected| *expected != content) {
        // It is not what was hashed before: read again from the start. The upload, dropped, never was.
        return Err(ReadError::Changed.into());
    }
    crash_point!("large object sent, not finished");
    match upload.finish(&content.digests.sha256).await {
        Ok(Created::New) => Ok(Some((content, times, trusted))),
        Ok(Created::Exists | Created::Unnameable) => Ok(None),
        // It may have happened: what is there decides.
        Err(StoreError::Unanswered { .. }) if holds(shared, key, &content, Again::File(item)).await? => Ok(Some((content, times, trusted))),
        Err(error) => Err(error.into()),
    }
}

impl Shared {
    pub(super) fn new(
        store: Arc<dyn Store>,
        manifest: &Path,
        halt: CancellationToken,
        there: Beyond,
        inventory: Option<Arc<Mutex<Inventory>>>,
    ) -> Result<Self, ManifestError> {
        let lookups = (0..LOOKUP_CONNECTIONS_MAX).map(|_| Lookup::open(manifest).map(Mutex::new)).collect::<Result<_, _>>()?;
        Ok(Self {
            store,
            lookups,
            next_lookup: AtomicUsize::new(0),
            contents: Arc::new(Contents::default()),
            memory: Arc::new(Semaphore::new(TRANSFER_BYTES_MAX / 1_024)),
            halt,
            there,
            inventory,
        })
    }

    /// `failure`, and where it ends the run, nothing more is begun: said before anybody who waits for the same content can go on and store it again.
    fn given_up(&self, failure: Failure) -> Failure {
        match &failure {
            // Tried again.
            Failure::Fatal(BackupError::Store(StoreError::UploadLost { .. })) | Failure::Read(_) | Failure::Postponed => {}
            Failure::Fatal(_) => self.halt.cancel(),
        }
        failure
    }

    pub(super) async fn lookup<T: Send + 'static>(
        self: &Arc<Self>,
        ask: impl FnOnce(&Lookup) -> Result<T, ManifestError> + Send + 'static,
    ) -> Result<T, ManifestError> {
        let shared = Arc::clone(self);
        blocking(move || {
            let turn = shared.next_lookup.fetch_add(1, Ordering::Relaxed) % shared.lookups.len().max(1);
            match shared.lookups.get(turn) {
                Some(lookup) => ask(&lookup.lock().unwrap_or_else(PoisonError::into_inner)),
                None => std::panic::resume_unwind(Box::new("there are no connections")),
            }
        })
        .await
    }
}
