//! Proving a snapshot: what its dump names is compared with what stands in it, from the stored dump and the log alone.

use crate::budget::{MANIFEST_PAGE_ROWS, STANDING_PAGES_AHEAD};
use crate::database::inventory::{Inventory, InventoryError, Summary};
use crate::event::{Event, Monitor, Phase};
use crate::listing::{self, ListError};
use crate::model::Part;
use crate::proof::{Looks, OutOfOrder, prove};
use crate::repository::Session;
use crate::repository::log::DumpFact;
use crate::repository::manifest::{Manifest, ManifestError, SnapshotRow, StandingFile};
use crate::task::blocking;
use crate::verdict::Proof;
use jiff::Timestamp;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use tokio_util::sync::CancellationToken;

/// Why a snapshot could not be proven at all. What is wrong with its files is in the proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// What the dump names is not known.
    #[error(transparent)]
    Listing(ListError),
    /// What it names could not be read again.
    #[error(transparent)]
    Listed(#[from] InventoryError),
    /// The manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Dump and snapshot do not come in the same order: this is a fault of the program.
    #[error(transparent)]
    OutOfOrder(#[from] OutOfOrder),
    /// Asked to stop.
    #[error("interrupted before the proof was done")]
    Interrupted,
}

impl From<ListError> for ProveError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Interrupted => Self::Interrupted,
            ListError::Manifest(error) => Self::Manifest(error),
            other => Self::Listing(other),
        }
    }
}

impl ProveError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Listing(error) => error.hint(),
            Self::Listed(error) => error.hint().map(str::to_owned),
            Self::Manifest(error) => error.hint().map(str::to_owned),
            Self::OutOfOrder(_) | Self::Interrupted => None,
        }
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Report {
    /// The proof, as it stands now.
    pub proof: Proof,
    /// The one that the snapshot was taken with.
    pub recorded: Option<Proof>,
    /// The counts that are not the same now.
    pub differences: Vec<Difference>,
    /// The dump.
    pub dump: DumpFact,
    /// What it names, in numbers.
    pub summary: Summary,
}

/// A count that differs from what the snapshot was taken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// Of what.
    pub what: &'static str,
    /// Then.
    pub recorded: u64,
    /// Now.
    pub now: u64,
}

/// The counts in which two proofs differ. Ages differ with every day, and names follow counts.
#[must_use]
pub fn differences(recorded: &Proof, now: &Proof) -> Vec<Difference> {
    let counts = |proof: &Proof| {
        [
            ("assets", proof.assets),
            ("proven", proof.proven),
            ("moved", proof.moved),
            ("unprovable", proof.unprovable),
            ("outside", proof.outside),
            ("offline", proof.offline),
            ("mismatched", proof.mismatched),
            ("missing", proof.missing),
            ("untracked", proof.untracked),
            ("sidecars and pictures present", proof.companions.present),
            ("sidecars and pictures missing", proof.companions.missing),
            ("derived files present", proof.derived.present),
            ("derived files missing", proof.derived.missing),
        ]
    };
    let pairs = counts(recorded).into_iter().zip(counts(now));
    pairs.map(|((what, recorded), (_, now))| Difference { what, recorded, now }).filter(|count| count.recorded != count.now).collect()
}

/// What the log tells of looks at objects; what no snapshot has yet is recorded `now`.
///
/// # Errors
/// SQLite's.
pub fn looks(manifest: &Manifest, now: Timestamp) -> Result<Looks, ManifestError> {
    let mut looks = Looks::new(manifest.snapshot_times()?, now);
    for look in manifest.verifications("listed")? {
        looks.add_listing(look.covers, look.at);
    }
    for look in manifest.verifications("read")? {
        looks.add_reading(look.covers, look.at, Part { of: look.parts, part: look.part });
    }
    Ok(looks)
}

/// Compares what `inventory` names with what stands as of log entry `sequence`. For a run: the last entry it has written, and its own time as `now`.
///
/// # Errors
/// The manifest or the inventory cannot be read, or `stop` was set.
pub fn prove_at(manifest: &Manifest, sequence: u64, now: Timestamp, inventory: &Inventory, stop: &CancellationToken) -> Result<Proof, ProveError> {
    std::thread::scope(|scope| {
        let (pages, files) = std::sync::mpsc::sync_channel(STANDING_PAGES_AHEAD);
        let path = manifest.path();
        scope.spawn(move || read_ahead(path, sequence, &pages));
        manifest.at_one_time(|| {
            let looks = looks(manifest, now)?;
            let named = Pages::new(|after| if stop.is_cancelled() { Err(ProveError::Interrupted) } else { Ok(inventory.named_page(after)?) });
            let outside = Pages::new(|after| Ok(inventory.outside_page(after)?));
            let files = files.into_iter().flat_map(|page: Result<Vec<_>, ManifestError>| {
                let (page, error) = page.map_or_else(|error| (Vec::new(), Some(error)), |page| (page, None));
                page.into_iter().map(Ok).chain(error.map(|error| Err(error.into())))
            });
            prove(named, outside, files, |sha1| Ok(manifest.content_with_sha1(sha1, sequence)?), &looks)
        })
    })
}

/// Reads what stands as of log entry `sequence` while the other side is compared: each of the two takes half of the time. As of an entry that is written,
/// the answer is the same whenever it is asked. Ends when nobody wants more.
fn read_ahead(manifest: &Path, sequence: u64, pages: &SyncSender<Result<Vec<StandingFile>, ManifestError>>) {
    let read = || -> Result<(), ManifestError> {
        let manifest = Manifest::open_for_reading(manifest)?;
        manifest.at_one_time(|| {
            let mut files = manifest.standing_files(sequence);
            loop {
                let page = files.by_ref().take(MANIFEST_PAGE_ROWS).collect::<Result<Vec<_>, _>>()?;
                if page.is_empty() || pages.send(Ok(page)).is_err() {
                    return Ok(());
                }
            }
        })
    };
    if let Err(error) = read() {
        // Where nobody listens any more, the proof has failed already.
        drop(pages.send(Err(error)));
    }
}

/// Proves `snapshot` from its stored dump and the log alone.
///
/// # Errors
/// See [`ProveError`].
pub async fn prove_snapshot(session: &Session, snapshot: &SnapshotRow, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, ProveError> {
    let listing = listing::list(session, snapshot, monitor.as_ref(), stop).await?;
    let summary = listing.inventory.summary().clone();
    monitor.emit(Event::PhaseStarted { phase: Phase::Prove, total_files: Some(summary.assets), total_bytes: None });
    let (manifest, sequence, taken_at, stop) = (session.manifest.path().to_owned(), snapshot.sequence, snapshot.fact.taken_at, stop.clone());
    let (proof, dump) = blocking(move || {
        let manifest = Manifest::open_for_reading(&manifest)?;
        Ok::<_, ProveError>((prove_at(&manifest, sequence, taken_at, &listing.inventory, &stop)?, listing.dump.clone()))
    })
    .await?;
    monitor.emit(Event::PhaseFinished { phase: Phase::Prove });
    let recorded = snapshot.fact.proof.clone();
    let differences = recorded.as_ref().map(|recorded| differences(recorded, &proof)).unwrap_or_default();
    Ok(Report { proof, recorded, differences, dump, summary })
}

/// Things one by one, read a page at a time; `C` says where the next page begins.
struct Pages<T, C, F> {
    read: F,
    page: std::vec::IntoIter<T>,
    next: Option<C>,
    ended: bool,
}

impl<T, C, F> Pages<T, C, F> {
    fn new(read: F) -> Self {
        Self { read, page: Vec::new().into_iter(), next: None, ended: false }
    }
}

impl<T, C, F: FnMut(Option<C>) -> Result<(Vec<T>, Option<C>), ProveError>> Iterator for Pages<T, C, F> {
    type Item = Result<T, ProveError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(thing) = self.page.next() {
                return Some(Ok(thing));
            }
            if self.ended {
                return None;
            }
            match (self.read)(self.next.take()) {
                Ok((page, next)) => {
                    self.ended = next.is_none();
                    self.next = next;
                    self.page = page.into_iter();
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Presence;

    #[test]
    fn pages_are_read_to_the_last_and_no_further() {
        let pages = [vec![1, 2], vec![], vec![3]];
        let mut reads = Vec::new();
        let things = Pages::new(|after: Option<usize>| {
            let number = after.unwrap_or(0);
            reads.push(number);
            Ok((pages[number].clone(), (number < 2).then_some(number + 1)))
        });
        assert_eq!(things.map(Result::unwrap).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(reads, [0, 1, 2]);
        let mut failing = Pages::<u8, u8, _>::new(|_| Err(ProveError::Interrupted));
        assert!(matches!(failing.next(), Some(Err(ProveError::Interrupted))));
        assert!(failing.next().is_none(), "an error is the end");
    }

    #[test]
    fn every_count_that_differs_is_told() {
        let now = Proof { assets: 1, proven: 2, moved: 3, unprovable: 4, outside: 5, offline: 6, mismatched: 7, missing: 8, untracked: 9, ..Proof::default() };
        let now = Proof { companions: Presence { present: 10, missing: 11 }, derived: Presence { present: 12, missing: 13 }, ..now };
        let told: Vec<_> = differences(&Proof::default(), &now).into_iter().map(|difference| (difference.recorded, difference.now)).collect();
        assert_eq!(told, (1..=13).map(|number| (0, number)).collect::<Vec<_>>());
        assert_eq!(differences(&now, &now), []);
    }
}
