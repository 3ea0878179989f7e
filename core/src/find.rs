//! Finding assets by what they mean to people - album, person, owner, time - from a snapshot's dump and the log alone.

mod arrange;
mod names;

pub use arrange::{arrange, is_out_of_place};

use crate::budget::NAMED_MAX;
use crate::database::inventory::{FoundAsset, Inventory, InventoryError, Meaning, Named};
use crate::event::Monitor;
use crate::listing::{self, ListError, Listing};
use crate::model::{Digests, RunId};
use crate::repository::manifest::{Choosing, Chosen, FileRow, Manifest, ManifestError, SnapshotRow};
use crate::repository::{OpenError, Session};
use crate::verdict::Thing;
use globset::{GlobBuilder, GlobMatcher};
use names::Unknown;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

pub use names::What;

/// A part of a file's name, or a glob over all of it; case does not matter.
#[derive(Debug, Clone)]
pub enum FileName {
    /// The name has this in it.
    Part(String),
    /// The name is like this.
    Like(GlobMatcher),
}

impl FileName {
    /// What `text` means: with `*`, `?`, `[` or `{` in it a glob, else a part of the name.
    ///
    /// # Errors
    /// It is no glob, though it looks like one.
    pub fn new(text: &str) -> Result<Self, FindError> {
        if !text.contains(['*', '?', '[', '{']) {
            return Ok(Self::Part(text.to_lowercase()));
        }
        let glob = GlobBuilder::new(&text.to_lowercase()).build().map_err(|source| FindError::Pattern { pattern: text.to_owned(), source })?;
        Ok(Self::Like(glob.compile_matcher()))
    }

    fn matches(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        match self {
            Self::Part(part) => name.contains(part),
            Self::Like(glob) => glob.is_match(&name),
        }
    }
}

/// Which assets.
#[derive(Debug, Clone, Default)]
pub struct Query {
    /// By meaning.
    pub meaning: Meaning,
    /// By the name it was uploaded with, or that of its file.
    pub name: Option<FileName>,
    /// Those that an earlier snapshot's dump has, and the newest one's has not.
    pub deleted: bool,
}

impl Query {
    /// Whether any asset will do.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.meaning == Meaning::default() && self.name.is_none() && !self.deleted
    }

    fn takes(&self, asset: &FoundAsset) -> bool {
        let Some(name) = &self.name else { return true };
        name.matches(&asset.original_name) || asset.file.as_ref().is_some_and(|file| name.matches(file.path.split().1))
    }
}

/// Why nothing could be found out.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The repository failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the dump names is not known.
    #[error(transparent)]
    Listing(ListError),
    /// What it names could not be asked for.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// There is nothing to compare the newest dump with.
    #[error("there is no earlier snapshot with a dump: nothing tells what was deleted")]
    NothingEarlier,
    /// No such album, user or person.
    #[error("there is no {what} `{}`", .name.escape_debug())]
    Unknown {
        /// What was asked for.
        what: What,
        /// By which name.
        name: String,
        /// Names like it, the likest first.
        near: Vec<String>,
    },
    /// A file name that is no glob.
    #[error("cannot understand the pattern `{pattern}`")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Why.
        source: globset::Error,
    },
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<ListError> for FindError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Interrupted => Self::Interrupted,
            ListError::Manifest(error) => error.into(),
            other => Self::Listing(other),
        }
    }
}

impl From<ManifestError> for FindError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl FindError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::Listing(error) => error.hint(),
            Self::Inventory(error) => error.hint().map(str::to_owned),
            Self::NothingEarlier => Some("deleted assets are those that an earlier snapshot's dump has, and the newest one's has not".to_owned()),
            Self::Unknown { near, what, .. } if near.is_empty() => Some(format!(
                "names are compared as a whole, without regard to case; `*` stands for anything; the {what} may be in another snapshot (--snapshot)"
            )),
            Self::Unknown { near, .. } => Some(format!("names are compared as a whole, `*` stands for anything; did you mean {}?", listed(near))),
            Self::Pattern { .. } => Some("`*` stands for anything, `?` for one character, `[ab]` for one of these".to_owned()),
            Self::Interrupted => None,
        }
    }
}

fn listed(names: &[String]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
    quoted.join(", ")
}

/// An asset that was found.
#[derive(Debug, Clone)]
pub struct Hit {
    /// What the dump says of it.
    pub asset: FoundAsset,
    /// The snapshot whose dump says so: for a deleted asset, the newest that still had it.
    pub snapshot: RunId,
}

/// Shows each asset of `inventory` that `query` takes and `wanted` does.
fn each_in(
    inventory: &Inventory,
    query: &Query,
    wanted: impl Fn(&FoundAsset) -> Result<bool, FindError>,
    stop: &CancellationToken,
    show: &mut dyn FnMut(&Inventory, FoundAsset) -> Result<(), FindError>,
) -> Result<(), FindError> {
    let mut cursor = None;
    loop {
        let (page, next) = inventory.find_page(&query.meaning, cursor)?;
        for asset in page {
            if stop.is_cancelled() {
                return Err(FindError::Interrupted);
            }
            if query.takes(&asset) && wanted(&asset)? {
                show(inventory, asset)?;
            }
        }
        if next.is_none() {
            return Ok(());
        }
        cursor = next;
    }
}

/// Shows each asset that `query` means, in the order of time: those of `snapshot` (the newest with a dump, where there is none given); with
/// [`Query::deleted`] those that `snapshot` still had, or, where none is given, any earlier one, the newest first.
async fn each(
    session: &Session,
    query: &Query,
    snapshot: Option<&SnapshotRow>,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
    show: &mut dyn FnMut(&SnapshotRow, &Inventory, FoundAsset) -> Result<(), FindError>,
) -> Result<(), FindError> {
    let snapshots = session.manifest.snapshots()?;
    if !query.deleted {
        let Some(snapshot) = snapshot.or(snapshots.last()) else { return Ok(()) };
        let listing = listing::list(session, snapshot, monitor, stop).await?;
        names::unknown(&listing.inventory, &query.meaning)?.refuse()?;
        return each_in(&listing.inventory, query, |_| Ok(true), stop, &mut |inventory, asset| show(snapshot, inventory, asset));
    }
    let mut with_dump = Vec::new();
    for snapshot in &snapshots {
        match listing::dump_of(&session.manifest, snapshot) {
            Ok(_) => with_dump.push(snapshot),
            Err(ListError::Manifest(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    let Some(newest) = with_dump.pop() else { return Err(FindError::NothingEarlier) };
    let earlier: Vec<&SnapshotRow> = match snapshot {
        Some(snapshot) if snapshot.sequence >= newest.sequence => return Err(FindError::NothingEarlier),
        Some(snapshot) => vec![snapshot],
        None => with_dump.into_iter().rev().collect(),
    };
    if earlier.is_empty() {
        return Err(FindError::NothingEarlier);
    }
    let now = listing::list(session, newest, monitor, stop).await?;
    let mut later: Option<Listing> = None;
    let mut unknown: Option<Unknown> = None;
    for snapshot in earlier {
        let listing = listing::list(session, snapshot, monitor, stop).await?;
        let here = names::unknown(&listing.inventory, &query.meaning)?;
        unknown = Some(unknown.map_or(here.clone(), |before| before.and(&here)));
        let known_later = |asset: &FoundAsset| later.as_ref().map_or(Ok(false), |later| later.inventory.has_asset(asset.id));
        let wanted = |asset: &FoundAsset| Ok(!now.inventory.has_asset(asset.id)? && !known_later(asset)?);
        each_in(&listing.inventory, query, wanted, stop, &mut |inventory, asset| show(snapshot, inventory, asset))?;
        later = Some(listing);
    }
    unknown.map_or(Ok(()), Unknown::refuse)
}

/// Shows each asset that `query` means, as [`Hit`]; how many there are.
///
/// # Errors
/// See [`FindError`].
pub async fn find(
    session: &Session,
    query: &Query,
    snapshot: Option<&SnapshotRow>,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
    show: &mut dyn FnMut(Hit),
) -> Result<u64, FindError> {
    let mut count = 0;
    each(session, query, snapshot, monitor, stop, &mut |snapshot, _, asset| {
        count += 1;
        show(Hit { asset, snapshot: snapshot.id });
        Ok(())
    })
    .await?;
    Ok(count)
}

/// The files of assets that were found.
#[derive(Debug)]
pub struct Selection {
    /// The files that are there.
    pub chosen: Arc<Chosen>,
    /// Assets found.
    pub assets: u64,
    /// Files that lie elsewhere than the dump says, or stand no more: found by their SHA-1.
    pub by_content: u64,
    /// Files whose content is not the one that Immich recorded, and the right one is stored nowhere.
    pub mismatched: u64,
    /// Files that are stored nowhere, and assets that lie outside of the backup.
    pub missing: u64,
    /// The first of them.
    pub named: Vec<String>,
}

/// Chooses the files of each asset that `query` means - the original, its sidecars, the video of a live photo - for a restore: at the path where each
/// stands in the snapshot, else found by its SHA-1.
///
/// # Errors
/// See [`FindError`].
pub async fn choose(
    session: &Session,
    query: &Query,
    snapshot: Option<&SnapshotRow>,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<Selection, FindError> {
    let mut chooser = Chooser::new(session)?;
    each(session, query, snapshot, monitor, stop, &mut |snapshot, inventory, asset| chooser.take(snapshot.sequence, inventory, &asset)).await?;
    chooser.finish()
}

struct Chooser<'a> {
    manifest: &'a Manifest,
    choosing: Choosing,
    assets: u64,
    by_content: u64,
    mismatched: u64,
    missing: u64,
    named: Vec<String>,
}

impl<'a> Chooser<'a> {
    fn new(session: &'a Session) -> Result<Self, FindError> {
        let choosing = Choosing::new(&session.state.own_scratch("chosen.db"))?;
        Ok(Self { manifest: &session.manifest, choosing, assets: 0, by_content: 0, mismatched: 0, missing: 0, named: Vec::new() })
    }

    fn finish(self) -> Result<Selection, FindError> {
        let Self { choosing, assets, by_content, mismatched, missing, named, .. } = self;
        Ok(Selection { chosen: Arc::new(choosing.finish()?), assets, by_content, mismatched, missing, named })
    }

    fn take(&mut self, sequence: u64, inventory: &Inventory, asset: &FoundAsset) -> Result<(), FindError> {
        self.assets += 1;
        if asset.file.is_none() {
            self.miss(&asset.original_name);
        }
        for named in inventory.files_of(asset.id)? {
            if matches!(named.thing, Thing::Asset | Thing::Sidecar) {
                self.take_file(sequence, &named)?;
            }
        }
        Ok(())
    }

    fn take_file(&mut self, sequence: u64, named: &Named) -> Result<(), FindError> {
        let standing = self.manifest.file_in(sequence, &named.file)?;
        let right = |row: &FileRow| named.sha1.is_none_or(|sha1| sha1 == row.digests.sha1);
        if let Some(row) = standing.as_ref().filter(|row| right(row)) {
            self.choosing.add(row)?;
            return Ok(());
        }
        if let Some(row) = self.by_content(sequence, named)? {
            self.by_content += 1;
            self.choosing.add(&row)?;
        } else if let Some(row) = standing {
            // Better than nothing.
            self.mismatch(&named.file.to_string());
            self.choosing.add(&row)?;
        } else {
            self.miss(&named.file.to_string());
        }
        Ok(())
    }

    /// The file with the content that Immich recorded: where it stands in the snapshot, else, out of what is kept of it, at the dump's path.
    fn by_content(&self, sequence: u64, named: &Named) -> Result<Option<FileRow>, FindError> {
        let Some(sha1) = named.sha1 else { return Ok(None) };
        if let Some(row) = self.manifest.file_with_sha1(sequence, &sha1)? {
            return Ok(Some(row));
        }
        let kept = self.manifest.each_content_with_sha1(&sha1)?.into_iter().next();
        Ok(kept.map(|kept| FileRow {
            file: named.file.clone(),
            digests: Digests { sha256: kept.sha256, sha1 },
            size_bytes: kept.size_bytes,
            mtime_ns: kept.mtime_ns,
            mode: kept.mode,
            key: kept.object.key,
            damaged: false,
        }))
    }

    fn mismatch(&mut self, name: &str) {
        self.mismatched += 1;
        self.name(name);
    }

    fn miss(&mut self, name: &str) {
        self.missing += 1;
        self.name(name);
    }

    fn name(&mut self, name: &str) {
        if self.named.len() < NAMED_MAX {
            self.named.push(name.to_owned());
        }
    }
}
