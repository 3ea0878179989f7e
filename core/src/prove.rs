//! Proving a snapshot: what its dump names is compared with what stands in it, from the stored dump and the log alone.

use crate::database::inventory::{Builder, Inventory, InventoryError, Summary};
use crate::database::location::Locations;
use crate::database::stored::{DumpText, StoredDumpError};
use crate::event::{Event, Monitor, Phase};
use crate::model::{Part, decode_text};
use crate::proof::{Looks, OutOfOrder, prove};
use crate::repository::Session;
use crate::repository::fetch::Fetcher;
use crate::repository::log::{DumpFact, SourceRoot};
use crate::repository::manifest::{Manifest, ManifestError, SnapshotRow};
use crate::task::blocking;
use crate::verdict::Proof;
use jiff::Timestamp;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// Why a snapshot could not be proven at all. What is wrong with its files is in the proof.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// It was taken without a database.
    #[error("the snapshot {snapshot} has no dump of the database")]
    NoDump {
        /// The first digits of its id.
        snapshot: String,
    },
    /// The log never said what is in the dump.
    #[error("the log says nothing of the dump `{key}`, which it names for the snapshot {snapshot}")]
    UnknownDump {
        /// The first digits of the snapshot's id.
        snapshot: String,
        /// The dump's key.
        key: String,
    },
    /// It was removed by `prune`.
    #[error("the dump `{key}` of the snapshot {snapshot} was pruned")]
    Pruned {
        /// The first digits of the snapshot's id.
        snapshot: String,
        /// The dump's key.
        key: String,
    },
    /// It is damaged, or cannot be read.
    #[error(transparent)]
    Dump(#[from] StoredDumpError),
    /// It is not whole, or what it names could not be kept.
    #[error("cannot list what the dump `{key}` names")]
    Inventory {
        /// The dump's key.
        key: String,
        /// Why.
        source: Box<InventoryError>,
    },
    /// What it names could not be read again.
    #[error(transparent)]
    Listed(#[from] InventoryError),
    /// It is of another database.
    #[error("the dump `{key}` is not one of Immich")]
    NotImmich {
        /// The dump's key.
        key: String,
    },
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

impl ProveError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoDump { .. } => Some("give `backup` the database too; `immich-backup snapshots` shows which snapshots have a dump".to_owned()),
            Self::UnknownDump { .. } | Self::Pruned { .. } => {
                Some("choose another snapshot with --snapshot; `immich-backup snapshots` shows which have a dump".to_owned())
            }
            Self::Dump(error) => error.hint().map(str::to_owned),
            Self::Inventory { source, .. } => source.hint().map(str::to_owned),
            Self::Listed(error) => error.hint().map(str::to_owned),
            Self::NotImmich { .. } => Some("check which database `backup` is given: its name is `immich`, unless you chose another".to_owned()),
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

/// Where Immich's server saw what a run backed up, as its `run_started` fact says.
#[must_use]
pub fn locations(roots: &[SourceRoot]) -> Locations {
    let bytes = |text: &String| decode_text(text).map_or_else(|| text.as_bytes().to_vec(), std::borrow::Cow::into_owned);
    let externals = roots.iter().filter_map(|root| Some((root.external.clone()?, bytes(root.server_path.as_ref().unwrap_or(&root.path)))));
    let mut locations = Locations::new(externals);
    for path in roots.iter().filter(|root| root.external.is_none()).filter_map(|root| root.server_path.as_ref()) {
        locations.prefer_media(&bytes(path));
    }
    locations
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
    manifest.at_one_time(|| {
        let looks = looks(manifest, now)?;
        let named = Pages::new(|after| if stop.is_cancelled() { Err(ProveError::Interrupted) } else { Ok(inventory.named_page(after)?) });
        let outside = Pages::new(|after| Ok(inventory.outside_page(after)?));
        let files = manifest.standing_files(sequence).map(|file| Ok(file?));
        prove(named, outside, files, |sha1| Ok(manifest.content_with_sha1(sha1, sequence)?), &looks)
    })
}

/// Proves `snapshot` from its stored dump and the log alone.
///
/// # Errors
/// See [`ProveError`].
pub async fn prove_snapshot(session: &Session, snapshot: &SnapshotRow, monitor: &Arc<dyn Monitor>, stop: &CancellationToken) -> Result<Report, ProveError> {
    let manifest = &session.manifest;
    let fact = dump_of(manifest, snapshot)?;
    let locations = locations(&manifest.run_started(snapshot.id)?.map(|started| started.roots).unwrap_or_default());
    let scratch = Scratch(session.state.own_scratch("inventory.db"));
    let fetcher = Arc::new(Fetcher::new(Arc::clone(&session.repository.store)));
    let (manifest, sequence, taken_at) = (manifest.path().to_owned(), snapshot.sequence, snapshot.fact.taken_at);
    let (monitor, stop, runtime) = (Arc::clone(monitor), stop.clone(), Handle::current());
    let recorded = snapshot.fact.proof.clone();
    blocking(move || {
        let inventory = {
            let builder = Builder::create(&scratch.0, locations)?;
            read_dump(fetcher, &fact, builder, &runtime, monitor.as_ref(), &stop)?
        };
        let summary = inventory.summary().clone();
        if !summary.is_immich {
            return Err(ProveError::NotImmich { key: fact.key });
        }
        monitor.emit(Event::PhaseStarted { phase: Phase::Prove, total_files: Some(summary.assets), total_bytes: None });
        let manifest = Manifest::open_for_reading(&manifest)?;
        let proof = prove_at(&manifest, sequence, taken_at, &inventory, &stop)?;
        monitor.emit(Event::PhaseFinished { phase: Phase::Prove });
        let differences = recorded.as_ref().map(|recorded| differences(recorded, &proof)).unwrap_or_default();
        drop(inventory);
        drop(scratch);
        Ok(Report { proof, recorded, differences, dump: fact, summary })
    })
    .await
}

/// What the log says of a snapshot's dump.
///
/// # Errors
/// There is none, or not any more.
pub fn dump_of(manifest: &Manifest, snapshot: &SnapshotRow) -> Result<DumpFact, ProveError> {
    let id = || snapshot.id.short();
    let key = snapshot.fact.dump.as_ref().ok_or_else(|| ProveError::NoDump { snapshot: id() })?;
    match manifest.dump(key)? {
        None => Err(ProveError::UnknownDump { snapshot: id(), key: key.clone() }),
        Some(row) if row.pruned => Err(ProveError::Pruned { snapshot: id(), key: key.clone() }),
        Some(row) => Ok(row.fact),
    }
}

/// Reads a stored dump into `builder`, on a thread that may block.
fn read_dump(
    fetcher: Arc<Fetcher>,
    fact: &DumpFact,
    mut builder: Builder,
    runtime: &Handle,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<Inventory, ProveError> {
    let failed = |source| ProveError::Inventory { key: fact.key.clone(), source: Box::new(source) };
    monitor.emit(Event::PhaseStarted { phase: Phase::ReadDump, total_files: None, total_bytes: Some(fact.plain_size) });
    let mut text = {
        // It starts tasks of its own.
        let _entered = runtime.enter();
        DumpText::of_object(fetcher, fact)
    };
    let mut not_whole = None;
    while let Some(piece) = runtime.block_on(text.next())? {
        if stop.is_cancelled() {
            return Err(ProveError::Interrupted);
        }
        monitor.emit(Event::DumpRead { bytes: piece.len() as u64 });
        if not_whole.is_none() {
            match builder.feed(&piece) {
                Ok(()) => {}
                // It may be no dump any more because it is damaged, and what is damaged shows at its end only.
                Err(error @ InventoryError::NotWhole(_)) => not_whole = Some(error),
                Err(error) => return Err(failed(error)),
            }
        }
    }
    let inventory = not_whole.map_or_else(|| builder.finish(), Err).map_err(failed)?;
    monitor.emit(Event::PhaseFinished { phase: Phase::ReadDump });
    Ok(inventory)
}

/// A file that nobody needs afterwards.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Where it cannot be removed, the next one is made in its place.
        drop(crate::repository::manifest::remove(&self.0));
    }
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
    use crate::database::location::Place;
    use crate::verdict::Presence;

    fn root(external: Option<&str>, path: &str, server_path: Option<&str>) -> SourceRoot {
        SourceRoot { external: external.map(|name| name.parse().unwrap()), path: path.to_owned(), server_path: server_path.map(str::to_owned) }
    }

    fn place(locations: &Locations, path: &str) -> String {
        match locations.place(path.as_bytes()) {
            Place::In(file) => file.to_string(),
            Place::Outside => "outside".to_owned(),
        }
    }

    #[test]
    fn the_log_says_where_the_server_saw_external_libraries() {
        let roots = [root(None, "/srv/immich", None), root(Some("nas"), "/mnt/nas", Some("/external/100%25")), root(Some("usb"), "/mnt/usb", None)];
        let locations = locations(&roots);
        let places = ["/external/100%/a", "/mnt/usb/a", "/mnt/nas/a", "/data/a", "/srv/immich/a"].map(|path| place(&locations, path));
        assert_eq!(places, ["external/nas/a", "external/usb/a", "outside", "a", "outside"]);
    }

    #[test]
    fn the_log_may_say_where_the_server_saw_the_media_location() {
        let locations = locations(&[root(None, "/srv/immich", Some("/photos"))]);
        assert_eq!(["/photos/a", "/data/a"].map(|path| place(&locations, path)), ["a", "a"]);
    }

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
