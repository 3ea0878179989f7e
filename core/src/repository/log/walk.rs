//! Reading many entries, one after the other: while one is looked at, the next ones are fetched.

use super::super::key::Key;
use super::super::store::{Store, StoreError, read_all};
use super::entry::Entry;
use super::read::{Head, LogError, entry_from};
use crate::budget::{LOG_AHEAD_BYTES_MAX, LOG_ENTRIES_AHEAD_MAX};
use crate::task::joined;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// What was fetched of an entry; `None` where it is so large that it has to wait for its turn.
type Fetched = Option<Result<Bytes, StoreError>>;

/// The entries after `head`, each of which has to follow the one before.
pub struct Walk<'a> {
    store: Arc<dyn Store>,
    head: Head,
    ahead: BoxStream<'a, (Key, Fetched)>,
}

impl<'a> Walk<'a> {
    /// Begins after `head`, with the entries `keys`.
    pub fn new(store: &Arc<dyn Store>, head: Head, keys: impl Iterator<Item = Key> + Send + 'a) -> Self {
        let from = Arc::clone(store);
        let fetches = futures_util::stream::iter(keys).map(move |key| {
            let (store, wanted) = (Arc::clone(&from), key.clone());
            let fetching = AbortOnDropHandle::new(tokio::spawn(async move { fetch(&*store, &wanted).await }));
            async move { (key, joined(fetching.await)) }
        });
        Self { store: Arc::clone(store), head, ahead: fetches.buffered(LOG_ENTRIES_AHEAD_MAX).boxed() }
    }

    /// The next entry; `None` after the last one.
    ///
    /// # Errors
    /// It is damaged, cannot be read, or does not follow. It is the end then.
    pub async fn next(&mut self) -> Result<Option<Entry>, LogError> {
        let Some((key, fetched)) = self.ahead.next().await else { return Ok(None) };
        let entry = entry_from(&*self.store, &self.head, &key, fetched).await?;
        self.head = entry.head();
        Ok(Some(entry))
    }

    /// The last entry that was read.
    pub fn head(&self) -> Head {
        self.head
    }
}

async fn fetch(store: &dyn Store, key: &Key) -> Fetched {
    match read_all(store, key, LOG_AHEAD_BYTES_MAX).await {
        Err(StoreError::TooLarge { .. }) => None,
        read => Some(read),
    }
}
