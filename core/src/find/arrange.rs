//! A whole snapshot, each file where its dump expects it.

use super::{Chooser, FindError, Selection};
use crate::budget::NAMED_MAX;
use crate::database::inventory::Inventory;
use crate::event::Monitor;
use crate::listing;
use crate::model::FilePath;
use crate::repository::Session;
use crate::repository::manifest::{FileRow, SnapshotRow};
use crate::verdict::Thing;
use std::collections::BTreeSet;
use tokio_util::sync::CancellationToken;

/// Whether files of `snapshot` lie elsewhere than its dump says, or are kept though they do not stand in it: the database would not find them.
#[must_use]
pub fn is_out_of_place(snapshot: &SnapshotRow) -> bool {
    snapshot.fact.proof.as_ref().is_some_and(|proof| proof.moved + proof.missing + proof.mismatched > 0)
}

/// All files of `snapshot`, each asset at the path that the dump names: what Immich moved while the snapshot was taken, and what is only kept (archived, an
/// earlier version), are found by their SHA-1.
///
/// # Errors
/// It has no dump, or none that can be read.
pub async fn arrange(session: &Session, snapshot: &SnapshotRow, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Selection, FindError> {
    let listing = listing::list(session, snapshot, monitor, stop).await?;
    let mut chooser = Chooser::new(session)?;
    let moved = take_assets(&mut chooser, snapshot.sequence, &listing.inventory, stop)?;
    session.manifest.each_file::<FindError>(snapshot.sequence, |row| {
        if stop.is_cancelled() {
            return Err(FindError::Interrupted);
        }
        if !moved.contains(&row.file) {
            chooser.choosing.add(&row)?;
        }
        Ok(())
    })?;
    chooser.finish()
}

/// Whether a file system can have such a file (Linux: 255 bytes a name, 4,096 a path).
fn can_be_made(file: &FilePath) -> bool {
    let path = file.path.to_path();
    path.as_os_str().len() < 3_072 && path.iter().all(|name| name.len() <= 255)
}

/// Takes what the dump names and is not simply there. Returns where moved assets stand now, if nothing of the dump is there: the first of them, the others are
/// restored at both places, which costs room and nothing else.
fn take_assets(chooser: &mut Chooser<'_>, sequence: u64, inventory: &Inventory, stop: &CancellationToken) -> Result<BTreeSet<FilePath>, FindError> {
    let (mut moved, mut cursor) = (BTreeSet::new(), None);
    loop {
        let (page, next) = inventory.named_page(cursor)?;
        for named in page.iter().filter(|named| named.thing == Thing::Asset) {
            if stop.is_cancelled() {
                return Err(FindError::Interrupted);
            }
            chooser.assets += 1;
            let Some(sha1) = named.sha1 else { continue };
            let standing = chooser.manifest.file_in(sequence, &named.file)?;
            if standing.as_ref().is_some_and(|row| row.digests.sha1 == sha1 && !row.damaged) {
                continue;
            }
            match chooser.by_content(sequence, named)? {
                Some(row) => {
                    chooser.by_content += 1;
                    if row.file != named.file && moved.len() < NAMED_MAX && can_be_made(&named.file) && inventory.asset_at(&row.file)?.is_none() {
                        moved.insert(row.file.clone());
                    }
                    chooser.choosing.add(&FileRow { file: named.file.clone(), ..row })?;
                }
                None if standing.is_some() => chooser.mismatch(&named.file.to_string()),
                None => chooser.miss(&named.file.to_string()),
            }
        }
        if next.is_none() {
            return Ok(moved);
        }
        cursor = next;
    }
}
