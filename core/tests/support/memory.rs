//! A store in memory: as an object store keeps its promises, without a server or a disk. `core/tests/contract.rs` holds it to them.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use immich_backup_core::model::Sha256;
use immich_backup_core::repository::checksum::Checksum;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::store::{
    Attributes, Begin, ByteStream, Created, Kind, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// As many bytes as a read hands out at once.
pub const PIECE_BYTES: usize = 64 << 10;

/// Objects in memory. Clones are the same store.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    /// Names in the order in which they came.
    order: Arc<Mutex<Vec<String>>>,
    /// Whether it says what it computed over an object's bytes.
    says_checksums: bool,
    /// How long it takes to answer who reads.
    answer_time: Duration,
    /// Names of what was read, in that order.
    reads: Arc<Mutex<Vec<String>>>,
}

impl MemoryStore {
    /// One that says SHA-256 of objects, as some stores do, or nothing, as a directory does.
    pub fn new(says_checksums: bool) -> Self {
        Self { says_checksums, ..Self::default() }
    }

    /// The same, and so far away that who reads waits so long for each answer.
    pub fn far(self, answer_time: Duration) -> Self {
        Self { answer_time, ..self }
    }

    /// How often the object `key` was read.
    pub fn reads(&self, key: &Key) -> usize {
        self.reads.lock().unwrap().iter().filter(|read| *read == key.as_str()).count()
    }

    /// What it holds, by key.
    pub fn objects(&self) -> BTreeMap<String, Bytes> {
        self.objects.lock().unwrap().clone()
    }

    /// The names of the `count` objects that were created last.
    pub fn newest(&self, count: usize) -> Vec<String> {
        self.order.lock().unwrap().iter().rev().take(count).cloned().collect()
    }

    fn put(&self, key: &Key, content: Bytes) -> Created {
        let mut objects = self.objects.lock().unwrap();
        if objects.contains_key(key.as_str()) {
            return Created::Exists;
        }
        objects.insert(key.to_string(), content);
        self.order.lock().unwrap().push(key.to_string());
        Created::New
    }
}

struct MemoryUpload {
    store: MemoryStore,
    key: Key,
    content: BytesMut,
}

#[async_trait]
impl Upload for MemoryUpload {
    async fn write(&mut self, piece: Bytes) -> Result<(), StoreError> {
        self.content.extend_from_slice(&piece);
        Ok(())
    }

    async fn finish(self: Box<Self>, _: &Sha256) -> Result<Created, StoreError> {
        Ok(self.store.put(&self.key, self.content.freeze()))
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn url(&self) -> &str {
        "memory://store"
    }

    fn capabilities(&self) -> StoreCapabilities {
        StoreCapabilities { conditional_create: true, parallel_ranges: true, round_trip: None }
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        let (there, key) = (self.objects.lock().unwrap().get(Key::identity().as_str()).cloned(), Key::identity().to_string());
        match (there, what) {
            (Some(there), _) if there != *identity => return Err(StoreError::OtherContent { key }),
            (None, Begin::Writing { .. }) => return Err(StoreError::NotFound { key }),
            _ => {}
        }
        self.create(&Key::identity(), identity.clone(), &Attributes::of(Kind::Identity, Sha256::of(identity))).await
    }

    fn stream_bytes(&self, _: u64) -> usize {
        0
    }

    async fn create(&self, key: &Key, content: Bytes, _: &Attributes) -> Result<Created, StoreError> {
        Ok(self.put(key, content))
    }

    async fn create_streamed(&self, key: &Key, _: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.clone(), content: BytesMut::new() }))
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        self.reads.lock().unwrap().push(key.to_string());
        if !self.answer_time.is_zero() {
            tokio::time::sleep(self.answer_time).await;
        }
        let content = self.objects.lock().unwrap().get(key.as_str()).cloned();
        let mut content = content.ok_or_else(|| StoreError::NotFound { key: key.to_string() })?;
        if let Some(range) = range {
            let at = |place: u64| usize::try_from(place).unwrap_or(usize::MAX).min(content.len());
            content = content.slice(at(range.start)..at(range.end.max(range.start)));
        }
        let pieces: Vec<_> = content.chunks(PIECE_BYTES).map(|piece| Ok(content.slice_ref(piece))).collect();
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        let found = self.objects.lock().unwrap().get(key.as_str()).cloned();
        Ok(found.map(|content| ObjectInfo {
            key: key.clone(),
            size_bytes: content.len() as u64,
            checksum: self.says_checksums.then(|| Checksum::Sha256(Sha256::of(&content))),
        }))
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        let objects = self.objects.lock().unwrap();
        let wanted = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after.as_str());
        let info = |(key, content): (&String, &Bytes)| Ok(ObjectInfo { key: Key::parse(key).unwrap(), size_bytes: content.len() as u64, checksum: None });
        let found: Vec<_> = objects.iter().filter(|(key, _)| wanted(key)).map(info).collect();
        futures_util::stream::iter(found).boxed()
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(key.as_str());
        Ok(())
    }

    async fn sync(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
