//! Reading a large object in several ranges at once, in order.

use super::key::Key;
use super::store::{ByteStream, Store, StoreError};
use crate::budget::{RANGE_BYTES, RANGES_IN_FLIGHT_MAX, TRANSFER_BYTES_MAX};
use crate::model::{Content, Hasher, Sha1, Sha1Counter, Sha256, Sha256Counter};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Reads whole objects of one store, several at once, within [`TRANSFER_BYTES_MAX`].
#[derive(Debug)]
pub struct Fetcher {
    store: Arc<dyn Store>,
    /// In KiB.
    memory: Arc<Semaphore>,
}

impl Fetcher {
    /// One for `store`.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, memory: Arc::new(Semaphore::new(TRANSFER_BYTES_MAX / 1_024)) }
    }

    /// What an object that should have `size_bytes` holds, by both digests; where one of them will do, [`Self::sha256`] takes half the time. One bad
    /// transfer is no damage: where it `is_right` not, a second reading decides.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn hash(&self, key: &Key, size_bytes: u64, is_right: impl Fn(&Content) -> bool) -> Result<Content, StoreError> {
        let first = self.count(key, size_bytes, Hasher::update).await?.finish();
        if is_right(&first) { Ok(first) } else { Ok(self.count(key, size_bytes, Hasher::update).await?.finish()) }
    }

    /// The SHA-256 and the size of an object that should have `size_bytes`. One bad transfer is no damage: where it is not the `right` one, a second
    /// reading decides.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn sha256(&self, key: &Key, size_bytes: u64, right: &Sha256) -> Result<(Sha256, u64), StoreError> {
        let first = self.count(key, size_bytes, Sha256Counter::update).await?.finish();
        if first.0 == *right { Ok(first) } else { Ok(self.count(key, size_bytes, Sha256Counter::update).await?.finish()) }
    }

    /// The same of its SHA-1, for what Immich itself recorded.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn sha1(&self, key: &Key, size_bytes: u64, right: &Sha1) -> Result<(Sha1, u64), StoreError> {
        let first = self.count(key, size_bytes, Sha1Counter::update).await?.finish();
        if first.0 == *right { Ok(first) } else { Ok(self.count(key, size_bytes, Sha1Counter::update).await?.finish()) }
    }

    async fn count<C: Default>(&self, key: &Key, size_bytes: u64, take: impl Fn(&mut C, &[u8])) -> Result<C, StoreError> {
        let mut pieces = self.fetch(key, size_bytes).await?;
        let mut counter = C::default();
        while let Some(piece) = pieces.try_next().await? {
            take(&mut counter, &piece);
        }
        Ok(counter)
    }

    /// The bytes of an object that should have `size_bytes`: a large one comes in ranges where the store gives them faster so. One that is
    /// larger is read a little further, so that it shows.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn fetch(&self, key: &Key, size_bytes: u64) -> Result<ByteStream, StoreError> {
        if !self.store.capabilities().parallel_ranges || size_bytes <= 2 * RANGE_BYTES {
            return self.store.get(key, None).await;
        }
        let kib = u32::try_from(RANGE_BYTES / 1_024).unwrap_or(u32::MAX).saturating_mul(RANGES_IN_FLIGHT_MAX + 1);
        // Those that come, and the one that is handed on. Never closed; and where it were, memory is bounded by the number of workers still.
        let memory = Arc::clone(&self.memory).acquire_many_owned(kib).await.ok();
        let ranges = (0..size_bytes.div_ceil(RANGE_BYTES)).map(move |number| {
            let end = (number + 1) * RANGE_BYTES;
            number * RANGE_BYTES..if end >= size_bytes { size_bytes + 1 } else { end }
        });
        let (store, key) = (Arc::clone(&self.store), key.clone());
        // The first is asked for here, so that a missing object is told as by `get`.
        let first = store.get(&key, Some(0..RANGE_BYTES)).await?;
        let rest = futures_util::stream::iter(ranges.skip(1))
            .map(move |range| {
                let (store, key) = (Arc::clone(&store), key.clone());
                async move { store.get(&key, Some(range)).await?.try_collect::<Vec<Bytes>>().await }
            })
            .buffered(usize::try_from(RANGES_IN_FLIGHT_MAX).unwrap_or(1))
            .map_ok(|pieces| futures_util::stream::iter(pieces.into_iter().map(Ok)))
            .try_flatten();
        Ok(first
            .chain(rest)
            .inspect(move |_| {
                // Held until the last byte is read, or nobody wants it any more.
                let _held = &memory;
            })
            .boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Class, Sha256};
    use crate::repository::directory::DirectoryStore;
    use crate::repository::store::{Attributes, Begin, Created, Kind, ObjectInfo, ObjectStream, StoreCapabilities, Upload};
    use async_trait::async_trait;
    use std::ops::Range;
    use std::sync::Mutex;

    /// A directory that wants to be read in ranges, and notes which.
    #[derive(Debug)]
    struct Ranged(DirectoryStore, Mutex<Vec<Option<Range<u64>>>>);

    #[async_trait]
    impl Store for Ranged {
        fn url(&self) -> &str {
            self.0.url()
        }
        fn capabilities(&self) -> StoreCapabilities {
            StoreCapabilities { parallel_ranges: true, ..self.0.capabilities() }
        }
        async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
            self.0.begin(identity, what).await
        }
        fn stream_bytes(&self, size_bytes: u64) -> usize {
            self.0.stream_bytes(size_bytes)
        }
        async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
            self.0.create(key, content, attributes).await
        }
        async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
            self.0.create_streamed(key, attributes).await
        }
        async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
            self.1.lock().unwrap().push(range.clone());
            self.0.get(key, range).await
        }
        async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
            self.0.head(key).await
        }
        fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
            self.0.list(prefix, after)
        }
        async fn delete(&self, key: &Key) -> Result<(), StoreError> {
            self.0.delete(key).await
        }
        async fn sync(&self) -> Result<(), StoreError> {
            self.0.sync().await
        }
    }

    async fn fetched(store: &Arc<dyn Store>, key: &Key, size_bytes: u64) -> Result<Vec<u8>, StoreError> {
        let pieces: Vec<_> = Fetcher::new(Arc::clone(store)).fetch(key, size_bytes).await?.try_collect().await?;
        Ok(pieces.concat())
    }

    #[tokio::test]
    async fn ranges_make_up_the_whole_object_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let ranged = Arc::new(Ranged(DirectoryStore::new(folder.path()), Mutex::default()));
        let store: Arc<dyn Store> = ranged.clone();
        let key = Key::parse("library/movie").unwrap();
        let content: Vec<u8> = (0..RANGE_BYTES * 3 + 12_345).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let attributes = Attributes { kind: Kind::File(Class::Original), sha256: Some(Sha256::of(&content)), mtime_ns: None, size_bytes: None };
        store.create(&key, Bytes::from(content.clone()), &attributes).await.unwrap();
        let size = content.len() as u64;
        assert!(fetched(&store, &key, size).await.unwrap() == content);
        assert_eq!(ranged.1.lock().unwrap().len(), 4);
        assert_eq!(fetched(&store, &key, size - 1).await.unwrap().len() as u64, size, "a larger object shows");
        assert!(fetched(&store, &key, size + 5).await.unwrap().len() as u64 == size, "and a shorter one");
        assert!(matches!(fetched(&store, &Key::parse("library/none").unwrap(), size).await, Err(StoreError::NotFound { .. })));
    }
}
