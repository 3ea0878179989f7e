//! A shard says in the log what it is about to store, and only then stores it: the log's order decides which of two shards does, and the other one
//! leaves the path to whoever ends the run. So a content that several folders hold, or that moves between them meanwhile, is stored once.

use super::send::Shared;
use super::{BackupError, Done, Item, Run};
use crate::budget::{CLAIM_BYTES_MAX, CLAIM_FILES_MAX, CLAIM_HASHED_BYTES_MAX, CLAIM_WAIT};
use crate::crash::crash_point;
use crate::library::read::{LiveFile, ReadError};
use crate::model::{Class, Content, Digests, Part};
use crate::repository::log::{Claimed, Fact, Start, Subject};
use crate::repository::manifest::ManifestError;
use crate::task::blocking;
use futures_util::{StreamExt as _, stream};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// What of a file may be stored, should the repository not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum May {
    /// Whatever is in it: nobody else stores anything.
    StoreAnything,
    /// This content, which is claimed.
    Store(Content),
    /// Any content of this size in bytes, which is claimed.
    StoreSize(u64),
    /// Nothing: the repository should have it.
    StoreNothing,
}

impl May {
    /// Whether this content may be stored.
    pub(super) fn store(self, content: &Content) -> bool {
        match self {
            Self::StoreAnything => true,
            Self::Store(claimed) => *content == claimed,
            Self::StoreSize(size_bytes) => content.size_bytes == size_bytes,
            Self::StoreNothing => false,
        }
    }

    /// Whether something of this size may be stored though it was not hashed yet.
    pub(super) fn store_unseen(self, size_bytes: u64) -> bool {
        match self {
            Self::StoreAnything => true,
            Self::StoreSize(claimed) => claimed == size_bytes,
            Self::Store(_) | Self::StoreNothing => false,
        }
    }
}

/// Claims to be written down, and who waits for the answer: which of them are this shard's.
#[derive(Debug)]
pub(super) struct Asked {
    claims: Vec<Claimed>,
    answer: oneshot::Sender<Vec<bool>>,
}

/// Claims what `items` hold, many at a time; what may be stored then goes to `queue`.
pub(super) async fn claim(
    shared: Arc<Shared>,
    shard: Part,
    workers: usize,
    mut items: mpsc::Receiver<Item>,
    queue: mpsc::Sender<Item>,
    done: mpsc::Sender<Done>,
) {
    let (batches, mut claimed) = mpsc::channel::<Vec<Item>>(1);
    // One batch is stored while the next one is read and claimed.
    let store = async move {
        while let Some(batch) = claimed.recv().await {
            for item in batch {
                if queue.send(item).await.is_err() {
                    return;
                }
            }
        }
    };
    let claim = async move {
        while let Some(batch) = next_batch(&mut items).await {
            match claim_batch(&shared, shard, workers, batch, &done).await {
                Ok(Some(batch)) => {
                    if batches.send(batch).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    // Where nobody listens any more, the run has failed already.
                    drop(done.send(Done::Fatal(error.into())).await);
                    return;
                }
            }
        }
    };
    tokio::join!(store, claim);
}

/// The next files, as many as come soon. `None` at the end.
async fn next_batch(items: &mut mpsc::Receiver<Item>) -> Option<Vec<Item>> {
    let first = items.recv().await?;
    let until = Instant::now() + CLAIM_WAIT;
    // What is claimed by its size is not read.
    let read = |item: &Item| if item.size_bytes > CLAIM_HASHED_BYTES_MAX { 0 } else { item.size_bytes };
    let mut bytes = read(&first);
    let mut batch = vec![first];
    while batch.len() < CLAIM_FILES_MAX
        && bytes < CLAIM_BYTES_MAX
        && let Ok(Some(item)) = tokio::time::timeout_at(until, items.recv()).await
    {
        bytes += read(&item);
        batch.push(item);
    }
    Some(batch)
}

/// `None` where nobody answers any more.
async fn claim_batch(
    shared: &Arc<Shared>,
    shard: Part,
    workers: usize,
    batch: Vec<Item>,
    done: &mpsc::Sender<Done>,
) -> Result<Option<Vec<Item>>, ManifestError> {
    let mut looked: Vec<_> = stream::iter(batch).map(|item| look(shared, item)).buffered(workers).collect().await;
    let mut claims = Vec::new();
    for (item, wanted) in &looked {
        let what = match wanted {
            May::Store(content) => Subject::Content(Start::from(&content.digests.sha256)),
            May::StoreSize(size_bytes) => Subject::Size(*size_bytes),
            May::StoreAnything | May::StoreNothing => continue,
        };
        claims.push(Claimed::new(shard, &item.file, what));
    }
    let mut mine = Vec::new();
    if !claims.is_empty() {
        let (answer, answered) = oneshot::channel();
        if done.send(Done::Claim(Asked { claims, answer })).await.is_err() {
            return Ok(None);
        }
        let Ok(answered) = answered.await else { return Ok(None) };
        mine = answered;
    }
    let mut mine = mine.into_iter();
    let mut claimed = Vec::with_capacity(looked.len());
    for (mut item, mut may) in looked.drain(..) {
        if matches!(may, May::Store(_) | May::StoreSize(_)) && mine.next() != Some(true) {
            // Another shard has it: what it has stored by now is known, and all else waits until it has.
            if !is_known(shared, may).await? {
                if done.send(Done::Postponed(item.file)).await.is_err() {
                    return Ok(None);
                }
                continue;
            }
            may = May::StoreNothing;
        }
        item.may = may;
        claimed.push(item);
    }
    Ok(Some(claimed))
}

async fn is_known(shared: &Arc<Shared>, may: May) -> Result<bool, ManifestError> {
    let May::Store(Content { digests: Digests { sha256, .. }, .. }) = may else { return Ok(false) };
    Ok(!shared.lookup(move |lookup| lookup.objects_with(&sha256)).await?.is_empty())
}

/// What has to be claimed for this file. What cannot be read now is looked at again by who stores it, and stores nothing new.
async fn look(shared: &Arc<Shared>, item: Item) -> (Item, May) {
    let may = if item.class() == Class::Marker {
        // Each is stored at its own place, whatever else is like it.
        May::StoreAnything
    } else if item.rehash {
        // It should not have changed.
        May::StoreNothing
    } else if item.size_bytes > CLAIM_HASHED_BYTES_MAX {
        May::StoreSize(item.size_bytes)
    } else {
        look_into(shared, &item).await.unwrap_or(May::StoreNothing)
    };
    (item, may)
}

async fn look_into(shared: &Arc<Shared>, item: &Item) -> Result<May, ReadError> {
    let (tree, path, halt) = (Arc::clone(&item.tree), item.file.path.clone(), shared.halt.clone());
    let content = blocking(move || {
        let (folder, path) = tree.at(&path);
        LiveFile::open(folder, &path)?.hash(|| !halt.is_cancelled())
    })
    .await?;
    let sha256 = content.digests.sha256;
    let stands = item.current.as_ref().is_some_and(|current| !current.damaged && current.digests.sha256 == sha256);
    // A manifest that cannot be asked ends the run when the file is stored.
    let nothing = stands || is_known(shared, May::Store(content)).await.unwrap_or(false);
    Ok(if nothing { May::StoreNothing } else { May::Store(content) })
}

impl Run<'_> {
    /// Writes claims down, and says which of them are this shard's.
    pub(super) async fn claim(&mut self, asked: Asked) -> Result<(), BackupError> {
        let Some(shard) = self.shard else { return Ok(()) };
        let (mut new, mut met) = (Vec::new(), BTreeSet::new());
        for claim in &asked.claims {
            if met.insert(claim.what) && self.session.manifest.claimed_by(claim.what)?.is_none() {
                new.push(Fact::Claimed(claim.clone()));
            }
        }
        if !new.is_empty() {
            self.commit(&new).await?;
            crash_point!("claimed, nothing stored");
        }
        // The others' claims that came before are in the manifest now.
        let by = |claim: &Claimed| Ok(self.session.manifest.claimed_by(claim.what)? == Some(shard.part));
        let mine = asked.claims.iter().map(by).collect::<Result<_, BackupError>>()?;
        // Where nobody waits any more, the run is ending.
        drop(asked.answer.send(mine));
        Ok(())
    }
}
