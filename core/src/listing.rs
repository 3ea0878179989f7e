//! What the dump of a snapshot names, listed: read from the store, compared with what was stored, and kept in a scratch file for as long as it is asked.

use crate::database::inventory::{Builder, Inventory, InventoryError};
use crate::database::location::Locations;
use crate::database::stored::{DumpText, StoredDumpError};
use crate::event::{Event, Monitor, Phase};
use crate::model::decode_text;
use crate::repository::fetch::Fetcher;
use crate::repository::log::{DumpFact, SourceRoot};
use crate::repository::manifest::{Manifest, ManifestError, SnapshotRow};
use crate::repository::store::Store;
use crate::repository::{ScratchFile, Session};
use crate::task::blocking;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why nothing is known of what a snapshot's dump names.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
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
    /// It is of another database.
    #[error("the dump `{key}` is not one of Immich")]
    NotImmich {
        /// The dump's key.
        key: String,
    },
    /// The manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Asked to stop.
    #[error("interrupted while reading the dump")]
    Interrupted,
}

impl ListError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoDump { .. } | Self::UnknownDump { .. } | Self::Pruned { .. } => Some(
                "choose a snapshot that has its dump with --snapshot (`immich-backup snapshots` shows which have one); `backup --database …` stores one"
                    .to_owned(),
            ),
            Self::Dump(error) => error.hint().map(str::to_owned),
            Self::Inventory { source, .. } => source.hint().map(str::to_owned),
            Self::NotImmich { .. } => Some("check which database `backup` is given: its name is `immich`, unless you chose another".to_owned()),
            Self::Manifest(error) => error.hint().map(str::to_owned),
            Self::Interrupted => None,
        }
    }

    /// Whether the dump itself is not what it should be.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Dump(error) => error.is_damage(),
            Self::Inventory { source, .. } => matches!(**source, InventoryError::NotWhole(_)),
            _ => false,
        }
    }
}

/// What a dump names. Its file goes with it.
#[derive(Debug)]
pub struct Listing {
    /// To be asked.
    pub inventory: Inventory,
    /// The dump.
    pub dump: DumpFact,
    file: ScratchFile,
}

impl Listing {
    /// The inventory, the dump, and the file that goes with what holds it.
    pub(crate) fn into_parts(self) -> (Inventory, DumpFact, ScratchFile) {
        (self.inventory, self.dump, self.file)
    }
}

/// What the log says of a snapshot's dump.
///
/// # Errors
/// There is none, or not any more.
pub fn dump_of(manifest: &Manifest, snapshot: &SnapshotRow) -> Result<DumpFact, ListError> {
    let id = || snapshot.id.short();
    let key = snapshot.fact.dump.as_ref().ok_or_else(|| ListError::NoDump { snapshot: id() })?;
    match manifest.dump(key)? {
        None => Err(ListError::UnknownDump { snapshot: id(), key: key.clone() }),
        Some(row) if row.pruned => Err(ListError::Pruned { snapshot: id(), key: key.clone() }),
        Some(row) => Ok(row.fact),
    }
}

/// Where Immich's server saw what a run backed up, as its `run_started` fact says.
#[must_use]
pub fn locations(roots: &[SourceRoot]) -> Locations {
    let bytes = |text: &String| decode_text(text).map_or_else(|| text.as_bytes().to_vec(), std::borrow::Cow::into_owned);
    let externals = roots.iter().filter_map(|root| Some((root.external.clone()?, bytes(root.server_path.as_ref().unwrap_or(&root.path)))));
    let mut locations = Locations::new(externals);
    for path in roots.iter().filter(|root| root.external.is_none() && root.root.is_none()).filter_map(|root| root.server_path.as_ref()) {
        locations.prefer_media(&bytes(path));
    }
    locations
}

/// Reads the dump of `snapshot` and lists what it names: its object has to be what was stored, whole, and of Immich.
///
/// # Errors
/// See [`ListError`].
pub async fn list(session: &Session, snapshot: &SnapshotRow, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Listing, ListError> {
    let dump = dump_of(&session.manifest, snapshot)?;
    let roots = session.manifest.run_started(snapshot.id)?.map(|started| started.roots).unwrap_or_default();
    let (store, file) = (Arc::clone(&session.repository.store), session.state.own_file("inventory.db"));
    let listing = list_dump(store, file, dump, locations(&roots), monitor, stop).await?;
    if listing.inventory.summary().is_immich { Ok(listing) } else { Err(ListError::NotImmich { key: listing.dump.key }) }
}

/// Reads a stored dump and lists in `file` what it names; its object has to be what was stored, and whole. It may be of something else than Immich.
///
/// # Errors
/// See [`ListError`].
pub async fn list_dump(
    store: Arc<dyn Store>,
    file: ScratchFile,
    dump: DumpFact,
    locations: Locations,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<Listing, ListError> {
    let failed = |source| ListError::Inventory { key: dump.key.clone(), source: Box::new(source) };
    monitor.emit(Event::PhaseStarted { phase: Phase::ReadDump, total_files: None, total_bytes: Some(dump.plain_size) });
    let mut text = DumpText::of_object(Arc::new(Fetcher::new(store)), &dump);
    let mut reading = Ok(Builder::create(&file, locations).map_err(failed)?);
    while let Some(piece) = text.next().await? {
        if stop.is_cancelled() {
            return Err(ListError::Interrupted);
        }
        monitor.emit(Event::DumpRead { bytes: piece.len() as u64 });
        reading = match reading {
            Ok(mut builder) => match blocking(move || builder.feed(&piece).map(|()| builder)).await {
                // It may be no dump any more because it is damaged, and what is damaged shows at its end only.
                fed @ (Ok(_) | Err(InventoryError::NotWhole(_))) => fed,
                Err(error) => return Err(failed(error)),
            },
            not_whole => not_whole,
        };
    }
    let builder = reading.map_err(failed)?;
    let inventory = blocking(move || builder.finish()).await.map_err(failed)?;
    monitor.emit(Event::PhaseFinished { phase: Phase::ReadDump });
    Ok(Listing { inventory, dump, file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::location::Place;
    use crate::model::Root;

    fn root(external: Option<&str>, path: &str, server_path: Option<&str>) -> SourceRoot {
        let root = external.map_or(Root::Library, |name| Root::External(name.parse().unwrap()));
        SourceRoot::new(&root, path.to_owned(), server_path.map(str::to_owned))
    }

    fn place(locations: &Locations, path: &str) -> String {
        match locations.place(path.as_bytes()) {
            Place::In(file) => file.to_string(),
            Place::Outside => "outside".to_owned(),
        }
    }

    #[test]
    fn the_log_says_where_the_server_saw_external_libraries() {
        let beside = SourceRoot::new(&Root::Postgres, "/srv/postgres".to_owned(), Some("/data".to_owned()));
        let roots = [root(None, "/srv/immich", None), beside, root(Some("nas"), "/mnt/nas", Some("/external/100%25")), root(Some("usb"), "/mnt/usb", None)];
        let locations = locations(&roots);
        let places = ["/external/100%/a", "/mnt/usb/a", "/mnt/nas/a", "/data/a", "/srv/immich/a"].map(|path| place(&locations, path));
        assert_eq!(places, ["external/nas/a", "external/usb/a", "outside", "a", "outside"]);
    }

    #[test]
    fn the_log_may_say_where_the_server_saw_the_media_location() {
        let locations = locations(&[root(None, "/srv/immich", Some("/photos"))]);
        assert_eq!(["/photos/a", "/data/a"].map(|path| place(&locations, path)), ["a", "a"]);
    }
}
