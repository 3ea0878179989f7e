//! Reading many entries, one after the other: while one is looked at, the next ones are fetched.

use super::super::key::Key;
use super::super::store::{Store, StoreError, read_all};
use super::entry::Entry;
use super::read::{Head, LogError, entry_from};
use crate::budget::{LOG_AHEAD_BYTES_MAX, LOG_ENTRIES_AHEAD_MAX};
use crate::task::joined;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio_util::task::AbortOnDropHandle;

/// What was fetched of an entry; `None` where it is so large that it has to wait for its turn.
type Fetched = Option<Result<Bytes, StoreError>>;

/// The entries after `head`, each of which has to follow the one before.
pub struct Walk<I> {
    store: Arc<dyn Store>,
    head: Head,
    keys: I,
    ahead: VecDeque<(Key, AbortOnDropHandle<Fetched>)>,
}

impl<I: Iterator<Item = Key>> Walk<I> {
    /// Begins after `head`, with the entries `keys`. Has to be called within a runtime of tokio, as [`Self::next`].
    pub fn new(store: &Arc<dyn Store>, head: Head, keys: I) -> Self {
        Self { store: Arc::clone(store), head, keys, ahead: VecDeque::new() }
    }

    /// The next entry; `None` after the last one.
    ///
    /// # Errors
    /// It is damaged, cannot be read, or does not follow. It is the end then.
    pub async fn next(&mut self) -> Result<Option<Entry>, LogError> {
        while self.ahead.len() < LOG_ENTRIES_AHEAD_MAX
            && let Some(key) = self.keys.next()
        {
            let (store, wanted) = (Arc::clone(&self.store), key.clone());
            self.ahead.push_back((key, AbortOnDropHandle::new(tokio::spawn(async move { fetch(&*store, &wanted).await }))));
        }
        let Some((key, fetching)) = self.ahead.pop_front() else { return Ok(None) };
        let fetched = joined(fetching.await);
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
