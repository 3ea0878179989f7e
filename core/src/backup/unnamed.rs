//! What a run that died has stored and could not announce: objects that the log does not name. Their content may be wanted at another path by now,
//! or come first at another of several paths that hold it.

use super::Item;
use super::send::{Again, Failure, Material, Shared, compare_file, holds};
use crate::budget::{MANIFEST_PAGE_ROWS, UNNAMED_MAX};
use crate::event::{Event, Monitor};
use crate::library::read::ReadError;
use crate::model::{Class, Sha256, Sha256Counter};
use crate::repository::checksum::{Checksum, Comparison};
use crate::repository::key::{self, Key};
use crate::repository::store::{ObjectInfo, Store, StoreError};
use futures_util::TryStreamExt as _;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::OnceCell;

/// Found by a listing when the first file is to be stored: a run that stores nothing does not ask.
#[derive(Debug, Default)]
pub(super) struct Unnamed(OnceCell<Found>);

/// What a listing had, and the log has not.
#[derive(Debug, Default)]
pub(super) struct Found {
    objects: BTreeMap<Key, Object>,
    by_size: HashMap<u64, Vec<Key>>,
}

#[derive(Debug, Default)]
struct Object {
    /// What the store says of it.
    seen: OnceCell<Option<ObjectInfo>>,
    /// Hash of its bytes; `None` where they cannot be had.
    sha256: OnceCell<Option<Sha256>>,
    /// The run has found a file that holds this.
    is_taken: AtomicBool,
}

impl Unnamed {
    /// What there is. Nothing is created before this has returned: what the run itself stores is not among it.
    pub(super) async fn found(&self, shared: &Arc<Shared>) -> Result<&Found, Failure> {
        self.0.get_or_try_init(|| Found::list(shared)).await
    }

    /// Says what no file of the library holds any more: it stays where it is, and no snapshot has it.
    pub(super) fn report(&self, monitor: &dyn Monitor) {
        let Some(found) = self.0.get() else { return };
        let mut left = found.objects.iter().filter(|(_, object)| !object.is_taken.load(Ordering::Relaxed)).map(|(key, _)| key);
        let Some(first) = left.next() else { return };
        let message = format!(
            "{} objects of a run that died, `{first}` the first, hold what no file has any more that was to be stored; nothing needs them, and they stay (`verify --json` names them)",
            1 + left.count()
        );
        monitor.emit(Event::Warned { message });
    }
}

impl Found {
    async fn list(shared: &Arc<Shared>) -> Result<Self, Failure> {
        let mut found = Self::default();
        for prefix in key::CONTENT.into_iter().filter(|prefix| *prefix != key::DUMPS) {
            let mut pages = shared.store.list(prefix, None).try_chunks(MANIFEST_PAGE_ROWS);
            while let Some(page) = pages.try_next().await.map_err(|error| error.1)? {
                if shared.halt.is_cancelled() {
                    return Err(ReadError::Stopped.into());
                }
                let unnamed = shared.lookup(move |lookup| {
                    let mut unnamed = Vec::new();
                    for object in page {
                        if lookup.is_unnamed(&object.key)? {
                            unnamed.push(object);
                        }
                    }
                    Ok(unnamed)
                });
                for object in unnamed.await? {
                    if found.objects.len() >= UNNAMED_MAX {
                        return Ok(found);
                    }
                    found.by_size.entry(object.size_bytes).or_default().push(object.key.clone());
                    found.objects.insert(object.key, Object::default());
                }
            }
        }
        Ok(found)
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.objects.contains_key(key)
    }

    pub(super) fn has_size(&self, size_bytes: u64) -> bool {
        self.by_size.contains_key(&size_bytes)
    }

    /// Notes that a file holds what is in `key`.
    pub(super) fn take(&self, key: &Key) {
        if let Some(object) = self.objects.get(key) {
            object.is_taken.store(true, Ordering::Relaxed);
        }
    }

    /// Those of this size.
    pub(super) fn of_size(&self, size_bytes: u64) -> impl Iterator<Item = &Key> {
        self.by_size.get(&size_bytes).into_iter().flatten()
    }

    /// What the store says of the object; asked once.
    pub(super) async fn seen(&self, store: &dyn Store, key: &Key) -> Result<Option<&ObjectInfo>, StoreError> {
        let Some(object) = self.objects.get(key) else { return Ok(None) };
        Ok(object.seen.get_or_try_init(|| store.head(key)).await?.as_ref())
    }

    /// Hash of the object's bytes, which are read back for it, once; `None` where they cannot be had.
    pub(super) async fn sha256(&self, shared: &Shared, key: &Key) -> Result<Option<Sha256>, Failure> {
        let Some(object) = self.objects.get(key) else { return Ok(None) };
        object.sha256.get_or_try_init(|| read_back(shared, key)).await.copied()
    }
}

/// What a run that died has sent of this content: under a key that it could have here, or else under any. A marker has an object of its own.
pub(super) async fn adoptable(
    shared: &Arc<Shared>,
    unnamed: &Unnamed,
    item: &Arc<Item>,
    material: &Material,
    candidates: impl Iterator<Item = Key>,
) -> Result<Option<Key>, Failure> {
    let found = unnamed.found(shared).await?;
    for key in candidates.filter(|key| found.has(key)) {
        let again = material.bytes.as_ref().map_or(Again::File(item), Again::Bytes);
        if holds(shared, &key, &material.content, again).await? {
            found.take(&key);
            return Ok(Some(key));
        }
    }
    if item.class() == Class::Marker {
        return Ok(None);
    }
    for key in found.of_size(material.content.size_bytes) {
        if holds_too(shared, found, key, item, material).await? {
            found.take(key);
            return Ok(Some(key.clone()));
        }
    }
    Ok(None)
}

/// Whether an object that was stored for any path holds this content: by the store's SHA-256, or by its bytes. A weaker checksum, which one object in four
/// billion has as well, or which somebody can make, only says that it does not.
async fn holds_too(shared: &Arc<Shared>, found: &Found, key: &Key, item: &Arc<Item>, material: &Material) -> Result<bool, Failure> {
    let Some(checksum) = found.seen(shared.store.as_ref(), key).await?.map(|seen| seen.checksum) else { return Ok(false) };
    let compared = match (checksum, &material.bytes) {
        (Some(checksum), Some(bytes)) => checksum.compare(bytes),
        (Some(checksum), None) => compare_file(shared, item, &material.content, checksum).await?,
        (None, _) => Comparison::Unknown,
    };
    match (compared, checksum) {
        (Comparison::Different, _) => Ok(false),
        (Comparison::Same, Some(Checksum::Sha256(_) | Checksum::Sha256OfParts { .. })) => Ok(true),
        _ => Ok(found.sha256(shared, key).await? == Some(material.content.digests.sha256)),
    }
}

async fn read_back(shared: &Shared, key: &Key) -> Result<Option<Sha256>, Failure> {
    let mut pieces = match shared.store.get(key, None).await {
        Err(StoreError::Archived { .. } | StoreError::Denied { .. } | StoreError::Io { .. } | StoreError::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let mut hasher = Sha256Counter::default();
    while let Some(piece) = pieces.try_next().await? {
        if shared.halt.is_cancelled() {
            return Err(ReadError::Stopped.into());
        }
        hasher.update(&piece);
    }
    Ok(Some(hasher.finish().0))
}
