//! Which content is being stored right now, or is stored but not yet in the manifest: nothing is sent twice in one run.

use crate::model::Sha256;
use crate::repository::manifest::StoredContent;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedMutexGuard, watch};

type Slot = watch::Receiver<Option<StoredContent>>;

/// Content between being read and being in the manifest: at most the files of one checkpoint and those in the workers' hands.
#[derive(Debug, Default)]
pub(super) struct Contents {
    slots: Mutex<HashMap<Sha256, Slot>>,
    /// Large files between being met and being in the manifest.
    large: Mutex<HashMap<Looks, Arc<tokio::sync::Mutex<bool>>>>,
}

/// What two large files have in common that may be the same, without reading them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Looks {
    pub(super) size_bytes: u64,
    /// Of how it begins and how it ends.
    pub(super) ends: Sha256,
}

/// Who stores some content.
pub(super) enum Claim {
    /// The caller does, and says so by [`Mine::stored`]; dropped, someone else may.
    Mine(Mine),
    /// It is stored already.
    Stored(StoredContent),
}

/// The right and duty to store some content.
pub(super) struct Mine {
    contents: Arc<Contents>,
    content: Sha256,
    announce: watch::Sender<Option<StoredContent>>,
    kept: bool,
}

impl Contents {
    /// Claims `content`; waits while another worker stores it.
    pub(super) async fn claim(self: &Arc<Self>, content: Sha256) -> Claim {
        loop {
            let mut slot = {
                let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
                match slots.get(&content) {
                    Some(slot) => slot.clone(),
                    None => {
                        let (announce, slot) = watch::channel(None);
                        slots.insert(content, slot);
                        return Claim::Mine(Mine { contents: Arc::clone(self), content, announce, kept: false });
                    }
                }
            };
            // An error means that the one who had it gave up: try to claim it.
            if let Ok(stored) = slot.wait_for(Option::is_some).await
                && let Some(stored) = &*stored
            {
                return Claim::Stored(stored.clone());
            }
        }
    }

    /// Waits for the turn of a large file that looks like this: files that may be the same (hard links) are not sent blindly side by side. What is
    /// guarded says whether one that looks like it was sent already; its content is claimed then.
    pub(super) async fn turn(&self, looks: Looks) -> OwnedMutexGuard<bool> {
        let turn = Arc::clone(self.large.lock().unwrap_or_else(PoisonError::into_inner).entry(looks).or_default());
        turn.lock_owned().await
    }

    /// Forgets turns that nobody has or waits for, of sizes that the manifest knows now: whoever comes with such a size reads the file first.
    pub(super) fn committed_sizes(&self, sizes: &HashSet<u64>) {
        let mut turns = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|looks, turn| Arc::strong_count(turn) > 1 || !sizes.contains(&looks.size_bytes));
    }

    /// Forgets what the manifest knows now.
    pub(super) fn committed(&self, contents: impl Iterator<Item = Sha256>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for content in contents {
            slots.remove(&content);
        }
    }
}

impl Mine {
    /// Tells the others where the content is.
    pub(super) fn stored(mut self, stored: StoredContent) {
        self.kept = true;
        // Nobody may be waiting.
        self.announce.send_replace(Some(stored));
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        if !self.kept {
            self.contents.committed(std::iter::once(self.content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(key: &str) -> StoredContent {
        StoredContent { key: key.to_owned(), etag: None }
    }

    #[tokio::test]
    async fn only_one_worker_stores_a_content_and_the_others_point_to_it() {
        let contents = Arc::new(Contents::default());
        let content = Sha256::of(b"x");
        let Claim::Mine(mine) = contents.claim(content).await else { panic!("not mine") };
        let waiting = tokio::spawn({
            let contents = Arc::clone(&contents);
            async move { matches!(contents.claim(content).await, Claim::Stored(stored) if stored == at("library/a")) }
        });
        tokio::task::yield_now().await;
        mine.stored(at("library/a"));
        assert!(waiting.await.unwrap());
        assert!(matches!(contents.claim(content).await, Claim::Stored(_)));
        contents.committed(std::iter::once(content));
        assert!(matches!(contents.claim(content).await, Claim::Mine(_)));
    }

    #[tokio::test]
    async fn a_worker_that_gives_up_leaves_the_content_to_the_next() {
        let contents = Arc::new(Contents::default());
        let content = Sha256::of(b"x");
        let Claim::Mine(mine) = contents.claim(content).await else { panic!("not mine") };
        let waiting = tokio::spawn({
            let contents = Arc::clone(&contents);
            async move { matches!(contents.claim(content).await, Claim::Mine(_)) }
        });
        tokio::task::yield_now().await;
        drop(mine);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn large_files_wait_for_those_that_look_alike_until_the_manifest_knows_them() {
        let contents = Contents::default();
        let [film, other] = [b"film", b"else"].map(|ends| Looks { size_bytes: 1 << 30, ends: Sha256::of(ends) });
        let mut turn = contents.turn(film).await;
        let taken = |looks| {
            let turn = contents.turn(looks);
            async { tokio::time::timeout(std::time::Duration::from_millis(20), turn).await.is_err() }
        };
        assert!(taken(film).await && !taken(other).await && !taken(Looks { size_bytes: 1, ..film }).await);
        // Its size is known by another file's checkpoint: whoever has the turn keeps it.
        contents.committed_sizes(&HashSet::from([1 << 30]));
        assert!(taken(film).await);
        *turn = true;
        drop(turn);
        assert!(*contents.turn(film).await);
        contents.committed_sizes(&HashSet::from([1]));
        assert!(*contents.turn(film).await);
        contents.committed_sizes(&HashSet::from([1 << 30]));
        assert!(!*contents.turn(film).await);
    }
}
