//! What was not seen: looked at again, weighed, and only then archived.

use super::checkpoint::Feed;
use super::{BackupError, Done, Item, Run};
use crate::budget::CHECKPOINT_FILES_MAX;
use crate::event::{Event, Phase};
use crate::library::layout::{class_of, is_checksummed_original};
use crate::library::read::look;
use crate::library::tree::Tree;
use crate::model::{Class, FilePath, Root, Sha256};
use crate::repository::log::{Fact, PathFact};
use crate::repository::manifest::{Lookup, Unseen};
use std::collections::BTreeMap;
use std::sync::Arc;

/// More than this share of the originals gone withholds the snapshot.
const GONE_PERCENT_MAX: u64 = 10;
/// More than this share of the assets gone from the database withholds the snapshot: it may be a new one, or another one.
const ROWS_GONE_PERCENT_MAX: u64 = 10;
/// More than this share of the checksummed originals changed withholds the snapshot: Immich never changes one.
const CHANGED_PERCENT_MAX: u64 = 5;

/// Why a snapshot is withheld.
#[derive(Debug)]
pub(super) struct Tripped {
    /// In words.
    pub(super) reason: String,
    /// Originals gone.
    pub(super) gone: u64,
    /// Checksummed originals changed.
    pub(super) changed: u64,
}

impl Run<'_> {
    /// Looks up each unseen path once more. What is there after all is stored; what cannot be looked at stays as it was.
    pub(super) async fn look_again(&mut self, unseen: Unseen) -> Result<Unseen, BackupError> {
        self.monitor.emit(Event::PhaseStarted { phase: Phase::LookAgain, total_files: None, total_bytes: None });
        let mut found = Vec::new();
        let mut last = None;
        let lookup = Lookup::open(self.session.manifest.path())?;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { break };
            last = Some(end.clone());
            for (file, ..) in page {
                let Some(tree) = self.tree_of(&file.root) else { continue };
                if !self.scope.takes(&file) {
                    continue;
                }
                let (folder, path) = tree.at(&file.path);
                match look(folder, &path) {
                    Ok(None) => {}
                    Ok(Some(times)) => {
                        unseen.remove(&file)?;
                        let current = lookup.current_of(&file)?;
                        if current.as_ref().is_some_and(|current| current.is_unchanged(&times)) {
                            self.counts.unchanged.add(times.size_bytes);
                            continue;
                        }
                        found.push(Item::found(file, tree, &times, current));
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

    pub(super) fn tree_of(&self, root: &Root) -> Option<Arc<Tree>> {
        self.sources.iter().find(|open| open.source.root == *root).map(|open| Arc::clone(&open.tree))
    }

    pub(super) async fn store_found(&mut self, found: Vec<Item>, unseen: &Unseen) -> Result<(), BackupError> {
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

    /// How many originals of each root are gone, and their content stands nowhere else: not moved, but lost to the library.
    pub(super) fn lost_originals(&self, unseen: &Unseen) -> Result<BTreeMap<Root, u64>, BackupError> {
        let mut lost = BTreeMap::new();
        let mut after = None;
        loop {
            let page = unseen.contents(after.as_ref())?;
            let Some(last) = page.last() else { return Ok(lost) };
            after = Some(*last);
            for content in page {
                if self.stands_elsewhere(&content, unseen)? {
                    continue;
                }
                for file in unseen.with_content(&content)? {
                    let dropped = matches!(&file.root, Root::External(name) if self.plan.drop_externals.contains(name));
                    if class_of(&file) == Class::Original && file.root.is_of_immich() && !dropped {
                        *lost.entry(file.root).or_default() += 1;
                    }
                }
            }
        }
    }

    /// Whether the content stands at a path that was seen: a moved file is not gone.
    fn stands_elsewhere(&self, content: &Sha256, unseen: &Unseen) -> Result<bool, BackupError> {
        Ok(self.session.manifest.count_standing(content)? > unseen.count_of(content)?)
    }

    /// How many checksummed originals have other content than in the snapshot of log entry `sequence`, and theirs stands nowhere else.
    fn changed_originals(&self, sequence: u64, unseen: &Unseen) -> Result<u64, BackupError> {
        let mut changed = 0_u64;
        let mut last = None;
        self.session.manifest.each_changed_since::<BackupError>(sequence, |file, before| {
            if is_checksummed_original(&file) {
                // Many files of one content are asked for once.
                let elsewhere = match last {
                    Some((content, elsewhere)) if content == before => elsewhere,
                    _ => self.stands_elsewhere(&before, unseen)?,
                };
                last = Some((before, elsewhere));
                // Two files that changed names have not changed.
                changed += u64::from(!elsewhere);
            }
            Ok(())
        })?;
        Ok(changed)
    }

    /// By how much there are fewer assets in the database than at the last snapshot that had one, and how many there were then.
    fn rows_gone(&self) -> Result<(u64, u64), BackupError> {
        let Some(assets) = self.assets else { return Ok((0, 0)) };
        let before = self.session.manifest.latest_with_proof()?.and_then(|snapshot| snapshot.fact.proof).map_or(0, |proof| proof.assets);
        Ok((before.saturating_sub(assets), before))
    }

    /// What withholds the snapshot.
    pub(super) fn tripwire(&self, unseen: &Unseen) -> Result<Option<Tripped>, BackupError> {
        let Some(last) = self.session.manifest.latest_snapshot()? else { return Ok(None) };
        let (rows, rows_before) = self.rows_gone()?;
        let gone = self.lost_originals(unseen)?;
        // What was stored beside the good content has changed as well, though the good content stands.
        let changed = self.changed_originals(last.sequence, unseen)? + self.session.manifest.count_doubtful_since(last.sequence)?;
        let rows_tripped = rows * 100 > rows_before * ROWS_GONE_PERCENT_MAX;
        if gone.is_empty() && changed == 0 && !rows_tripped {
            return Ok(None);
        }
        // Each root is weighed by itself: a small one that is gone must not hide behind a large one.
        let (mut originals, mut checksummed) = (BTreeMap::<Root, u64>::new(), 0_u64);
        self.session.manifest.each_file::<BackupError>(last.sequence, |row| {
            checksummed += u64::from(is_checksummed_original(&row.file));
            if class_of(&row.file) == Class::Original {
                *originals.entry(row.file.root).or_default() += 1;
            }
            Ok(())
        })?;
        let mut reasons = Vec::new();
        if rows_tripped {
            reasons.push(format!(
                "{rows} of the {rows_before} assets that the database had at the last snapshot are gone from it, more than {ROWS_GONE_PERCENT_MAX} %: is it the right one?"
            ));
        }
        for (root, gone) in &gone {
            let all = originals.get(root).copied().unwrap_or(0);
            if gone * 100 > all * GONE_PERCENT_MAX {
                let place = if *root == Root::Library { String::new() } else { format!(" in {root}") };
                reasons.push(format!("{gone} of {all} originals of the last snapshot{place} are gone, more than {GONE_PERCENT_MAX} %"));
            }
        }
        if changed * 100 > checksummed * CHANGED_PERCENT_MAX {
            reasons.push(format!(
                "{changed} of {checksummed} originals have other content than in the last snapshot, more than {CHANGED_PERCENT_MAX} %; Immich never changes an original"
            ));
        }
        let rows = if rows_tripped { rows } else { 0 };
        let tripped = Tripped { reason: reasons.join("; "), gone: gone.values().sum::<u64>() + rows, changed };
        Ok((!reasons.is_empty() && !self.is_accepted(&tripped)?).then_some(tripped))
    }

    /// Whether a person has seen as much, or nearly, and said that it was meant.
    fn is_accepted(&self, tripped: &Tripped) -> Result<bool, BackupError> {
        let Some(accepted) = self.plan.accept else { return Ok(false) };
        let runs = self.session.manifest.runs(super::preflight::RUNS_LOOKED_AT)?;
        let Some((gone, changed)) = runs.into_iter().find(|run| run.id == accepted).map(|run| run.withheld) else { return Ok(false) };
        let within = |now: u64, then: u64| now <= then + then / 100 + 1;
        Ok(within(tripped.gone, gone) && within(tripped.changed, changed))
    }

    /// As [`Self::archive`], for those of one root, which are taken out of `unseen`.
    pub(super) async fn archive_root(&mut self, root: &Root, unseen: &Unseen) -> Result<(), BackupError> {
        let mut last = None;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { return Ok(()) };
            last = Some(end.clone());
            let gone: Vec<_> = page.into_iter().filter(|(file, ..)| file.root == *root).collect();
            for (file, ..) in &gone {
                unseen.remove(file)?;
            }
            self.archive_page(gone).await?;
        }
    }

    async fn archive_page(&mut self, page: Vec<(FilePath, u64, Sha256)>) -> Result<(), BackupError> {
        if page.is_empty() {
            return Ok(());
        }
        let facts: Vec<_> = page.iter().map(|(file, ..)| Fact::Archived(PathFact::new(file))).collect();
        self.commit(&facts).await?;
        for (file, size_bytes, _) in page {
            self.counts.archived.add(size_bytes);
            self.monitor.emit(Event::FileArchived { path: file });
        }
        Ok(())
    }

    /// Says in the log that these paths are gone. Their objects stay.
    pub(super) async fn archive(&mut self, unseen: &Unseen) -> Result<(), BackupError> {
        let mut last = None;
        loop {
            let page = unseen.page(last.as_ref())?;
            let Some((end, ..)) = page.last() else { return Ok(()) };
            last = Some(end.clone());
            self.archive_page(page).await?;
        }
    }
}
