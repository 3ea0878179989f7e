//! What was not seen: looked at again, weighed, and only then archived.

use super::checkpoint::Feed;
use super::{BackupError, Done, Item, Run};
use crate::budget::CHECKPOINT_FILES_MAX;
use crate::event::{Event, Phase};
use crate::library::layout::{class_of, is_checksummed_original};
use crate::library::read::look;
use crate::model::{Class, Root};
use crate::repository::log::{Archived, Fact};
use crate::repository::manifest::Unseen;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// More than this share of the originals gone withholds the snapshot.
const GONE_PERCENT_MAX: u64 = 10;
/// More than this share of the checksummed originals changed withholds the snapshot: Immich never changes one.
const CHANGED_PERCENT_MAX: u64 = 5;

impl Run<'_> {
    /// Looks up each unseen path once more. What is there after all is stored; what cannot be looked at stays as it was.
    pub(super) async fn look_again(&mut self, unseen: Unseen) -> Result<Unseen, BackupError> {
        self.monitor.emit(Event::PhaseStarted { phase: Phase::LookAgain, total_files: None, total_bytes: None });
        let mut found = Vec::new();
        let mut last = None;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { break };
            last = Some(end.clone());
            for (file, ..) in page {
                let Some(folder) = self.folder_of(&file.root) else { continue };
                if !self.plan.scope.takes(&file) {
                    continue;
                }
                match look(&folder, &file.path.to_path()) {
                    Ok(None) => {}
                    Ok(Some(times)) => {
                        unseen.remove(&file)?;
                        found.push(Item { file, folder, current: None, size_bytes: times.size_bytes, rehash: false });
                    }
                    Err(error) => {
                        unseen.remove(&file)?;
                        self.note_unread(file.to_string(), error.to_string());
                    }
                }
                if found.len() >= CHECKPOINT_FILES_MAX {
                    self.store_found(std::mem::take(&mut found), &unseen).await?;
                }
            }
        }
        self.store_found(found, &unseen).await?;
        self.monitor.emit(Event::PhaseFinished { phase: Phase::LookAgain });
        Ok(unseen)
    }

    fn folder_of(&self, root: &Root) -> Option<Arc<OwnedFd>> {
        self.sources.iter().find(|open| open.source.root == *root).map(|open| Arc::clone(&open.folder))
    }

    async fn store_found(&mut self, found: Vec<Item>, unseen: &Unseen) -> Result<(), BackupError> {
        if found.is_empty() {
            return Ok(());
        }
        let feed: Feed<()> = Box::new(move |items, _done: tokio::sync::mpsc::Sender<Done>| {
            for item in found {
                // Halted: the next run looks at what is left.
                if items.blocking_send(item).is_err() {
                    break;
                }
            }
            Ok(())
        });
        self.store(feed, self.stop.child_token(), unseen).await
    }

    /// How many originals are gone, and their content stands nowhere else: not moved, but lost to the library.
    pub(super) fn lost_originals(&self, unseen: &Unseen) -> Result<u64, BackupError> {
        let manifest = &self.session.manifest;
        let mut gone = 0_u64;
        let mut after = None;
        loop {
            let page = unseen.page(after.as_ref())?;
            let Some((end, ..)) = page.last() else { break };
            after = Some(end.clone());
            for (file, _, content) in page {
                let dropped = matches!(&file.root, Root::External(name) if self.plan.drop_externals.contains(name));
                // A moved file is not gone: its content stands elsewhere.
                if class_of(&file) == Class::Original && !dropped && !manifest.stands_elsewhere(&content, |other| unseen.has(other).unwrap_or(false))? {
                    gone += 1;
                }
            }
        }
        Ok(gone)
    }

    /// What withholds the snapshot, in words.
    pub(super) fn tripwire(&self, unseen: &Unseen) -> Result<Option<String>, BackupError> {
        let manifest = &self.session.manifest;
        let Some(last) = manifest.latest_snapshot()? else { return Ok(None) };
        let originals = last.fact.totals.of(Class::Original).files;
        let gone = self.lost_originals(unseen)?;
        if gone * 100 > originals * GONE_PERCENT_MAX {
            return Ok(Some(format!("{gone} of {originals} originals of the last snapshot are gone, more than {GONE_PERCENT_MAX} %")));
        }
        let mut lost = 0_u64;
        manifest.each_changed_since::<BackupError>(last.sequence, |file, before| {
            // Two files that changed names have not changed.
            if is_checksummed_original(&file) && !manifest.stands_elsewhere(&before, |other| unseen.has(other).unwrap_or(false))? {
                lost += 1;
            }
            Ok(())
        })?;
        if lost * 100 > originals * CHANGED_PERCENT_MAX {
            return Ok(Some(format!(
                "{lost} of {originals} originals have other content than in the last snapshot, more than {CHANGED_PERCENT_MAX} %; Immich never changes an original"
            )));
        }
        Ok(None)
    }

    /// Says in the log that these paths are gone. Their objects stay.
    pub(super) async fn archive(&mut self, unseen: &Unseen) -> Result<(), BackupError> {
        let mut last = None;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { return Ok(()) };
            last = Some(end.clone());
            let facts: Vec<_> = page.iter().map(|(file, ..)| Fact::Archived(Archived::new(file))).collect();
            self.commit(&facts).await?;
            for (file, size_bytes, _) in page {
                self.counts.archived.add(size_bytes);
                self.monitor.emit(Event::FileArchived { path: file });
            }
        }
    }
}
