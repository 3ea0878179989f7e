//! The database in a run: dumped before the walk, kept once it is whole, and compared with what is stored at the end.

use super::preflight::PreflightError;
use super::{BackupError, Item, Run, Settled};
use crate::budget::SCOPE_ASSETS_MAX;
use crate::crash::crash_point;
use crate::database::compress::Compression;
use crate::database::dump::{self, Destination, DumpError, DumpPlan};
use crate::database::inventory::{Builder, Inventory};
use crate::database::keep::Whole;
use crate::database::location::Locations;
use crate::database::{Client, Server, version};
use crate::event::{Event, Phase};
use crate::library::layout::class_of;
use crate::library::read::look;
use crate::library::tree::Tree;
use crate::listing::Listing;
use crate::model::{Class, FilePath, Root, RootPath};
use crate::prove;
use crate::repository::ScratchFile;
use crate::repository::key::Key;
use crate::repository::log::{DumpFact, Fact};
use crate::repository::manifest::{Lookup, Manifest, Unseen};
use crate::repository::store::{Attributes, Kind, Upload};
use crate::task::blocking;
use crate::told::told;
use crate::verdict::{NamedVerdict, Proof, Thing, Verdict};
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The database of a run.
#[derive(Debug, Clone)]
pub struct Database {
    /// How it is reached.
    pub client: Client,
    /// How the dump is compressed.
    pub compression: Compression,
    /// How long `pg_dump` waits for a lock.
    pub lock_wait: Duration,
    /// Where Immich's server sees the library, if the dump does not say.
    pub media_location: Option<String>,
    /// External libraries of Immich (by their name there, or a path above their files) that are left out on purpose.
    pub external_ignore: Vec<String>,
    /// Immich's own address, asked for its version where nothing else tells.
    pub immich_url: Option<String>,
}

/// What a dump names, for as long as the run asks.
pub(super) struct Names {
    is_immich: bool,
    pub(super) assets: u64,
    pub(super) inventory: Arc<Mutex<Inventory>>,
    _file: ScratchFile,
}

/// A whole dump that is in hand, and not yet in the repository.
pub(super) struct InHand {
    whole: Whole,
    form: Form,
    pub(super) names: Names,
}

/// Where the compressed bytes are.
enum Form {
    /// In a file of the state folder.
    Spool(ScratchFile),
    /// On their way to the store, under this key: there was no room for a spool.
    Streamed(Key, Box<dyn Upload>),
}

/// A dump that is in the repository.
pub(super) struct Kept {
    fact: DumpFact,
    pub(super) names: Names,
}

impl Kept {
    /// A dump that the run has stored before, as it was read back.
    pub(super) fn read_back(listing: Listing) -> Self {
        let (inventory, fact, file) = listing.into_parts();
        let summary = inventory.summary();
        let (is_immich, assets) = (summary.is_immich, summary.assets);
        Self { fact, names: Names { is_immich, assets, inventory: Arc::new(Mutex::new(inventory)), _file: file } }
    }
}

/// A compressed dump takes at most one in so many bytes of the database: it has no indexes. Only for a first dump; later ones go by the last.
const COMPRESSED_SHARE: u64 = 2;
/// Room that is left free beside a spool.
const ROOM_KEPT_BYTES: u64 = 64 << 20;

impl Run<'_> {
    /// Where Immich's server sees what this run backs up.
    pub(super) fn locations(&self, database: &Database) -> Locations {
        let externals = self.sources.iter().filter_map(|open| match &open.source.root {
            Root::Library | Root::Config | Root::Postgres => None,
            Root::External(name) => {
                let here = || open.source.path.as_os_str().as_bytes().to_vec();
                Some((name.clone(), open.source.server_path.clone().unwrap_or_else(here)))
            }
        });
        let mut locations = Locations::new(externals);
        if let Some(path) = &database.media_location {
            locations.prefer_media(path.as_bytes());
        }
        locations
    }

    /// Dumps the database, and reads what the dump names. `None` where the run was asked to stop meanwhile.
    pub(super) async fn take_dump(&mut self, database: &Database) -> Result<Option<InHand>, BackupError> {
        // The next run of this state folder ends what a dead one left: it is known by its name.
        let application = dump::application(&self.session.writer);
        let orphans = dump::end_orphans(&database.client, &application).await?;
        if orphans > 0 {
            self.monitor.emit(Event::Warned { message: format!("{orphans} connections to the database, left by a run that died, were ended") });
        }
        let server = database.client.server().await?;
        let last = self.session.manifest.dumps()?.pop().map(|dump| dump.fact);
        let (file, spool) = (self.session.state.own_file("inventory.db"), self.session.state.own_file("dump.sql.part"));
        let locations = self.locations(database);
        let mut plan = DumpPlan {
            application,
            compression: database.compression,
            destination: self.destination(database, &server, last.as_ref(), &spool).await,
            lock_wait: database.lock_wait,
            estimated_bytes: Some(last.map_or(server.database_bytes, |last| last.plain_size)),
        };
        let (mut dumped, names) = loop {
            let names = || Ok(Builder::create(&file, locations.clone())?);
            let taking = dump::take(&database.client, &plan, names, self.monitor, self.stop);
            match self.alive_while(Box::pin(taking)).await {
                Err(DumpError::Stopped) => return Ok(None),
                Err(DumpError::SpoolFull { folder, .. }) => {
                    // It is larger than the last one let expect. What is sent as it comes has no spool that could fill up.
                    let message = format!("no room left for the dump in `{}`: it is taken once more, and sent as it comes", folder.display());
                    self.monitor.emit(Event::Warned { message });
                    plan.destination = self.streamed(database, &server, server.database_bytes).await;
                }
                taken => break taken?,
            }
        };
        self.monitor.emit(Event::PhaseFinished { phase: Phase::Dump });
        // Whole, or an error that says where it was cut: then nothing of it was stored.
        let inventory = blocking(move || names.finish()).await?;
        let summary = inventory.summary().clone();
        if !summary.is_immich {
            let message = format!("{} is not a database of Immich: it is backed up, and nothing can be proven", database.client.target());
            self.monitor.emit(Event::Warned { message });
        }
        if dumped.program_is_newer {
            let message = format!(
                "pg_dump {} is newer than the server ({}): the dump may not load into a server of that version; install postgresql-client-{}",
                dumped.program_version,
                dumped.server.short_version(),
                dumped.server.major()
            );
            self.monitor.emit(Event::Warned { message });
        }
        let told = summary.immich_version.or_else(|| dumped.server.immich_version.clone());
        let immich_version = self.immich_version(database, told).await;
        let form = match (plan.destination, dumped.upload.take()) {
            (Destination::Store { key, .. }, Some(upload)) => Form::Streamed(key, upload),
            _ => Form::Spool(spool),
        };
        Ok(Some(InHand {
            whole: Whole { dumped, compression: database.compression, immich_version, rows: summary.rows_total },
            form,
            names: Names { is_immich: summary.is_immich, assets: summary.assets, inventory: Arc::new(Mutex::new(inventory)), _file: file },
        }))
    }

    /// Immich's version, where its database does not tell: as configured, else as its server says.
    async fn immich_version(&self, database: &Database, told: Option<String>) -> Option<String> {
        let configured = told.or_else(|| self.plan.immich_version.clone());
        let (None, Some(url)) = (&configured, &database.immich_url) else { return configured };
        match version::of_server(url).await {
            Ok(version) => Some(version),
            Err(error) => {
                self.monitor.emit(Event::Warned { message: format!("Immich's version is not known: {error}") });
                None
            }
        }
    }

    /// The file `spool` where there is room for it, else the store at once.
    async fn destination(&self, database: &Database, server: &Server, last: Option<&DumpFact>, spool: &Path) -> Destination {
        let wanted = last.map_or(server.database_bytes / COMPRESSED_SHARE, |last| last.size.saturating_add(last.size / 2));
        let free = spool.parent().map_or(u64::MAX, free_bytes);
        if free >= wanted.saturating_add(ROOM_KEPT_BYTES) {
            return Destination::Spool(spool.to_owned());
        }
        let message = format!("no room for the dump in the state folder ({free} bytes left, {wanted} wanted): it is sent while it is taken");
        self.monitor.emit(Event::Warned { message });
        self.streamed(database, server, wanted).await
    }

    /// The store, for a dump that is sent before it is known to be whole.
    async fn streamed(&self, database: &Database, server: &Server, size_bytes: u64) -> Destination {
        let version = self.immich_version(database, server.immich_version.clone()).await;
        let key = Key::dump(Timestamp::now(), version.as_deref().unwrap_or("unknown"), database.compression.extension());
        let attributes = Attributes { kind: Kind::Dump, sha256: None, mtime_ns: None, size_bytes: Some(size_bytes) };
        Destination::Store { store: Arc::clone(&self.session.repository.store), key, attributes }
    }

    /// Brings a dump into the repository, under a name of its own, and says so in the log.
    pub(super) async fn keep(&mut self, dump: InHand) -> Result<Kept, BackupError> {
        let InHand { whole, form, names } = dump;
        crash_point!("dump spooled");
        self.monitor.emit(Event::PhaseStarted { phase: Phase::SendDump, total_files: None, total_bytes: Some(whole.dumped.size_bytes) });
        let store = Arc::clone(&self.session.repository.store);
        let sending = async move {
            match form {
                Form::Spool(spool) => whole.send(store.as_ref(), &spool).await,
                Form::Streamed(key, upload) => whole.finish(store.as_ref(), &key, upload).await,
            }
        };
        let fact = self.alive_while(Box::pin(sending)).await?;
        crash_point!("dump stored, not logged");
        self.commit(&[Fact::Dump(fact.clone())]).await?;
        crash_point!("dump in the log");
        self.monitor.emit(Event::PhaseFinished { phase: Phase::SendDump });
        self.monitor.emit(Event::DumpStored { key: fact.key.clone(), size_bytes: fact.size });
        Ok(Kept { fact, names })
    }

    /// Proves what stands now. `None` where the dump is not Immich's.
    async fn prove_now(&mut self, names: &Names) -> Result<Option<Proof>, BackupError> {
        if !names.is_immich {
            return Ok(None);
        }
        self.monitor.emit(Event::PhaseStarted { phase: Phase::Prove, total_files: None, total_bytes: None });
        let (manifest, sequence, stop) = (self.session.manifest.path().to_owned(), self.session.manifest.head().sequence, self.stop.clone());
        let inventory = Arc::clone(&names.inventory);
        let proving = blocking(move || {
            let manifest = Manifest::open_for_reading(&manifest)?;
            let inventory = inventory.lock().unwrap_or_else(PoisonError::into_inner);
            prove::prove_at(&manifest, sequence, Timestamp::now(), &inventory, &stop)
        });
        let proof = self.alive_while(Box::pin(proving)).await?;
        self.monitor.emit(Event::PhaseFinished { phase: Phase::Prove });
        Ok(Some(proof))
    }

    /// Proves what stands now; what is missing is looked for on disk once more, and stored if it is there.
    async fn prove(&mut self, names: &Names) -> Result<Option<Proof>, BackupError> {
        let Some(proof) = self.prove_now(names).await? else { return Ok(None) };
        let lookup = Lookup::open(self.session.manifest.path())?;
        let mut found = Vec::new();
        for named in proof.named.iter().filter(|named| named.verdict == Verdict::Missing) {
            let Some((file, tree)) = self.file_named(&named.path) else { continue };
            // What cannot be looked at is missing.
            let (folder, path) = tree.at(&file.path);
            if self.scope.takes(&file)
                && let Ok(Some(times)) = look(folder, &path)
            {
                let current = lookup.current_of(&file)?;
                found.push(Item::found(file, tree, &times, current));
            }
        }
        if found.is_empty() {
            return Ok(Some(proof));
        }
        let unseen = Unseen::new(&self.session.state.scratch("unseen.db"))?;
        self.store_found(found, &unseen).await?;
        self.prove_now(names).await
    }

    /// The file that a report calls so, and its root.
    fn file_named(&self, path: &str) -> Option<(FilePath, Arc<Tree>)> {
        self.sources.iter().rev().find_map(|open| {
            let below = match &open.source.root {
                Root::Library => path,
                Root::Config | Root::Postgres => return None,
                Root::External(name) => path.strip_prefix("external/")?.strip_prefix(name.as_str())?.strip_prefix('/')?,
            };
            let file = FilePath { root: open.source.root.clone(), path: RootPath::parse(below).ok()? };
            Some((file, Arc::clone(&open.tree)))
        })
    }

    /// The proof of the snapshot that is about to be committed, and the dump it is about. Where something is missing that the last snapshot had,
    /// Immich may have deleted it since the dump: one more dump tells. `None` where the run was asked to stop.
    pub(super) async fn settle(&mut self, database: &Database, mut dump: Kept) -> Result<Option<Settled>, BackupError> {
        let mut proof = self.prove(&dump.names).await?;
        if let Some(first) = &proof
            && self.is_news(first)?
            && !self.stop.is_cancelled()
        {
            match Box::pin(self.take_dump(database)).await {
                Ok(Some(again)) => {
                    let second = self.prove(&again.names).await?;
                    if second.as_ref().is_some_and(|second| lacking(second) < lacking(first)) {
                        dump = self.keep(again).await?;
                        proof = second;
                    } else {
                        // What was found on disk for the other dump stands now too.
                        proof = self.prove_now(&dump.names).await?;
                    }
                }
                Ok(None) => return Ok(None),
                // The first dump and all files are here: what it would have explained stays unexplained.
                Err(error @ (BackupError::Database(_) | BackupError::NoDump(_) | BackupError::Dump(_))) => {
                    let message = format!("one more dump, to explain what is missing, failed: {}", told(&error));
                    self.monitor.emit(Event::Warned { message });
                }
                Err(error) => return Err(error),
            }
        }
        let ignored = self.count_ignored(database, &dump.names)?;
        Ok(Some(Settled { dump: Some(dump.fact), proof, ignored }))
    }

    /// Whether something is missing that was not missing in the last snapshot.
    fn is_news(&self, proof: &Proof) -> Result<bool, BackupError> {
        let last = self.session.manifest.latest_snapshot()?.and_then(|snapshot| snapshot.fact.proof).unwrap_or_default();
        let names = |proof: &Proof| -> BTreeSet<(Verdict, String)> {
            let lacking = |named: &&NamedVerdict| matches!(named.verdict, Verdict::Missing | Verdict::Mismatched);
            proof.named.iter().filter(lacking).map(|named| (named.verdict, named.path.clone())).collect()
        };
        // Not all names are kept; more of them than before are news whatever their names.
        Ok(lacking(proof) > lacking(&last) || !names(proof).is_subset(&names(&last)))
    }

    /// How many assets lie in external libraries that are left out on purpose.
    fn count_ignored(&self, database: &Database, names: &Names) -> Result<u64, BackupError> {
        if database.external_ignore.is_empty() {
            return Ok(0);
        }
        let inventory = names.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        let libraries = inventory.libraries()?;
        let mut prefixes = BTreeSet::new();
        for ignored in &database.external_ignore {
            let named: Vec<_> = libraries.iter().filter(|library| library.name == *ignored).flat_map(|library| library.import_paths.clone()).collect();
            if named.is_empty() && !ignored.starts_with('/') {
                let message = format!("--external-ignore `{ignored}`: Immich has no external library of this name");
                self.monitor.emit(Event::Warned { message });
            }
            let path = ignored.starts_with('/').then(|| ignored.clone());
            prefixes.extend(named.into_iter().chain(path).map(|path| format!("{}/", path.trim_end_matches('/'))));
        }
        let (mut ignored, mut after) = (0, None);
        loop {
            let (page, next) = inventory.outside_page(after)?;
            let is_ignored = |path: &str| prefixes.iter().any(|prefix| path.starts_with(prefix.as_str()));
            ignored += page.iter().filter(|thing| thing.thing == Thing::Asset && !thing.offline && is_ignored(&thing.path)).count() as u64;
            if next.is_none() {
                return Ok(ignored);
            }
            after = next;
        }
    }

    /// What is left out must not be what the database names: an exclude that would lose an asset stops the run. Assets that lie where derived files lie
    /// are taken in spite of `--originals-only`.
    pub(super) fn check_scope(&mut self, names: &Names) -> Result<(), BackupError> {
        if !self.scope.is_narrowed() || !names.is_immich {
            return Ok(());
        }
        let inventory = names.inventory.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut lost, mut first, mut after) = (0_u64, None, None);
        let mut assets = BTreeSet::new();
        loop {
            let (page, next) = inventory.named_page(after)?;
            for named in page {
                if named.thing == Thing::Derived {
                    continue;
                }
                if self.scope.originals_only && class_of(&named.file) == Class::Derived && assets.len() < SCOPE_ASSETS_MAX {
                    assets.insert(named.file.clone());
                }
                if !self.scope.takes(&named.file) && !assets.contains(&named.file) {
                    lost += 1;
                    first.get_or_insert(named.file);
                }
            }
            if next.is_none() {
                break;
            }
            after = next;
        }
        drop(inventory);
        if let Some(first) = first {
            return Err(PreflightError::LosesAssets { count: lost, first }.into());
        }
        self.scope.assets = assets;
        Ok(())
    }
}

/// Assets that the backup lacks.
fn lacking(proof: &Proof) -> u64 {
    proof.missing + proof.mismatched + proof.companions.missing
}

fn free_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(u64::MAX, |found| found.f_bavail.saturating_mul(found.f_frsize))
}
