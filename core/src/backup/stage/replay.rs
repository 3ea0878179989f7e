//! From a stage into the queue: what the walk of the stopped library found, as if it walked now.

use super::super::claim::May;
use super::leftover::Leftover;
use super::list::{self, Line, Lines};
use super::{Copied, Listed, StageError};
use crate::backup::scan::Seen;
use crate::backup::{BackupError, Done, Item, OpenSource};
use crate::event::{Event, Monitor};
use crate::library::tree::Tree;
use crate::model::{FilePath, Root};
use crate::repository::manifest::Lookup;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What a replay needs.
pub(in crate::backup) struct Replay {
    /// What was walked, and still counts: what the list says of other roots is passed over.
    pub(in crate::backup) sources: Vec<OpenSource>,
    pub(in crate::backup) manifest: PathBuf,
}

impl Replay {
    fn tree(&self, root: &Root) -> Option<Arc<Tree>> {
        self.sources.iter().find(|open| open.source.root == *root).map(|open| Arc::clone(&open.tree))
    }

    /// The file, and where its root lies, if that is one of ours.
    fn known(&self, root: &str, path: &crate::model::RootPath) -> Option<(FilePath, Arc<Tree>)> {
        let file = list::file(root, path)?;
        let tree = self.tree(&file.root)?;
        Some((file, tree))
    }

    fn item(&self, lookup: &Lookup, staged: &list::Staged, files: &Arc<OwnedFd>) -> Result<Option<Item>, BackupError> {
        let Some((file, tree)) = self.known(&staged.root, &staged.path) else { return Ok(None) };
        let current = lookup.current_of(&file)?;
        let copied = Copied { files: Arc::clone(files), number: staged.number, times: staged.times(), trusted: staged.trusted };
        Ok(Some(Item { file, tree, copied: Some(copied), current, size_bytes: staged.size, rehash: false, may: May::StoreAnything }))
    }
}

/// Puts into the queue what was found when Immich was stopped; `seen` is what the walk saw then.
pub(in crate::backup) fn replay(
    listed: &Listed,
    replay: &Replay,
    seen: Seen,
    items: &mpsc::Sender<Item>,
    done: &mpsc::Sender<Done>,
    monitor: &dyn Monitor,
) -> Result<Seen, BackupError> {
    monitor.emit(Event::FilesSeen {
        files: seen.files.files,
        bytes: seen.files.bytes,
        unchanged_files: seen.unchanged.files,
        unchanged_bytes: seen.unchanged.bytes,
    });
    monitor.emit(Event::WalkFinished { files: seen.files.files, bytes: seen.files.bytes });
    let failed = |source| StageError::Io { action: "read", path: listed.path.clone(), source };
    let lookup = Lookup::open(&replay.manifest)?;
    for line in Lines::of(File::open(&listed.path).map_err(failed)?) {
        let wanted = match line.map_err(failed)? {
            Line::Staged(staged) => replay.item(&lookup, &staged, &listed.files)?.is_none_or(|item| items.blocking_send(item).is_ok()),
            Line::Live { root, path, size, rehash } => match replay.known(&root, &path) {
                Some((file, tree)) => {
                    let current = lookup.current_of(&file)?;
                    items.blocking_send(Item { file, tree, copied: None, current, size_bytes: size, rehash, may: May::StoreAnything }).is_ok()
                }
                None => true,
            },
            Line::Vanished { root, path } => replay.known(&root, &path).is_none_or(|(file, _)| done.blocking_send(Done::Vanished(file)).is_ok()),
            Line::Special { root, path, kind } => {
                replay.known(&root, &path).is_none_or(|(file, _)| done.blocking_send(Done::Special { file, kind: list::kind(&kind) }).is_ok())
            }
            Line::Slipped {} => done.blocking_send(Done::Slipped).is_ok(),
            Line::Unread { path, problem } => done.blocking_send(Done::Unread { path, problem }).is_ok(),
        };
        if !wanted {
            break;
        }
    }
    Ok(seen)
}

/// Puts into the queue what a dead run copied of Immich's files and did not send: its copies may be all that is left of them.
pub(in crate::backup) fn take_up(leftover: &Leftover, replay: &Replay, items: &mpsc::Sender<Item>, monitor: &dyn Monitor) -> Result<(), BackupError> {
    let warn = |what: &Path, problem: &dyn std::fmt::Display| {
        monitor.emit(Event::Warned { message: format!("of the stage `{}` that a dead run left: {problem}; what is left of it is not used", what.display()) });
    };
    let (list, files) = match leftover.open_list() {
        Ok((list, files)) => (list, Arc::new(files)),
        Err(error) => {
            warn(leftover.path(), &error);
            return Ok(());
        }
    };
    let lookup = Lookup::open(&replay.manifest)?;
    for line in Lines::of(list) {
        let staged = match line {
            Ok(Line::Staged(staged)) => staged,
            Ok(_) => continue,
            Err(error) => {
                warn(leftover.path(), &error);
                return Ok(());
            }
        };
        let Some(item) = replay.item(&lookup, &staged, &files)? else { continue };
        let known = item.current.as_ref().is_some_and(|current| current.is_unchanged(&staged.times()));
        // A copy that is not as it was listed is none.
        let whole = item.copied.as_ref().is_some_and(|copied| copied.open().is_ok());
        if item.file.root.is_of_immich() && !known && whole && items.blocking_send(item).is_err() {
            break;
        }
    }
    Ok(())
}
