//! Opening a repository: its identity, and a manifest that is up to date with its log.

use super::cloud::{self, CloudStore, OpenStoreError};
use super::directory::DirectoryStore;
use super::key::{self, Key};
use super::later_copy;
use super::log::{self, Author, Chain, Entry, EpochFact, Fact, Head, LogError};
use super::manifest::{Manifest, ManifestError, unpack};
use super::place::Place;
use super::state::{StateError, StateFolder, StateLock};
use super::store::{Begin, Created, ObjectInfo, Store, StoreError, read_all};
use crate::budget::IDENTITY_BYTES_MAX;
use crate::crash::crash_point;
use crate::event::{Event, Monitor, Phase};
use crate::model::{RepositoryId, RunId, Sha256, Sha256Counter, WriterId, encode_segment};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The path without links and `..`, also where its end does not exist yet.
#[must_use]
pub fn without_links(path: &Path) -> Option<PathBuf> {
    let path = std::path::absolute(path).ok()?;
    let there = path.ancestors().find(|above| above.exists())?;
    Some(there.canonicalize().ok()?.join(path.strip_prefix(there).ok()?))
}

/// The store at `place`; `options` are for object stores.
///
/// # Errors
/// Credentials or a part of the address are missing.
pub fn open_store(place: &Place, options: cloud::Options) -> Result<Arc<dyn Store>, OpenStoreError> {
    match place {
        Place::Directory(path) => Ok(Arc::new(DirectoryStore::new(path))),
        _ => Ok(Arc::new(CloudStore::open(place, options)?)),
    }
}

/// Why a repository could not be opened, or its log not be continued.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there.
    #[error("there is no repository at `{url}`")]
    NoRepository {
        /// Where it was looked for.
        url: String,
    },
    /// Something there that is no repository of ours.
    #[error("`{url}` holds a repository of format {found}; this program knows format {} only", log::FORMAT)]
    UnknownFormat {
        /// Where.
        url: String,
        /// The format found.
        found: u32,
    },
    /// `format.json` is damaged.
    #[error("`format.json` of the repository at `{url}` cannot be understood")]
    DamagedIdentity {
        /// Where.
        url: String,
        /// Why.
        source: serde_json::Error,
    },
    /// What was read of `format.json` is not what the store gave back a second time, or has the checksum of.
    #[error("`format.json` of the repository at `{url}` has other bytes than were read of it")]
    UnsteadyIdentity {
        /// Where.
        url: String,
    },
    /// Another process has the state folder, and its manifest is behind the log.
    #[error("the local manifest is being brought up to date by another process")]
    Stale,
    /// The store failed.
    #[error("cannot reach the repository at `{url}`")]
    Store {
        /// Where.
        url: String,
        /// Why.
        source: StoreError,
    },
    /// The log is damaged, or went back.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The local manifest failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The state folder failed.
    #[error(transparent)]
    State(#[from] StateError),
}

impl From<StoreError> for OpenError {
    fn from(error: StoreError) -> Self {
        Self::Log(LogError::Store(error))
    }
}

impl OpenError {
    /// Whether it was only the writing that failed, or the store could not be asked any more: nothing speaks against what was read before.
    pub(crate) fn is_of_writing(&self) -> bool {
        matches!(self, Self::Store { .. } | Self::Log(LogError::Store(_)) | Self::UnsteadyIdentity { .. })
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoRepository { .. } => {
                Some("check the URL and that the disk is mounted; for a new repository run `immich-backup init`, or `backup --init`; where all is there but `format.json`, `repair` brings it back".to_owned())
            }
            Self::UnknownFormat { .. } => Some(
                "use the version of immich-backup that wrote it, or a newer one; if none did, `format.json` is damaged: bring it back from a second copy"
                    .to_owned(),
            ),
            Self::DamagedIdentity { .. } => Some("nothing else is lost: `immich-backup repair` says where its right bytes are; else bring `format.json` back from the store's versions or a second copy".to_owned()),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            Self::Log(error) => error.hint(),
            Self::State(error) => error.hint().map(str::to_owned),
            Self::Manifest(error) => error.hint().map(str::to_owned),
            Self::UnsteadyIdentity { .. } => Some("nothing was written; the store, or the line to it, gives back wrong bytes: see to that, and run again".to_owned()),
            Self::Stale => None,
        }
    }
}

/// `format.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    repository: RepositoryId,
    created_at: Timestamp,
    created_by: String,
}

/// Why a repository could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one.
    #[error("there is a repository at `{url}` already")]
    Exists {
        /// Where.
        url: String,
    },
    /// There is something else.
    #[error("`{url}` is not empty: it holds `{found}`, which is no repository")]
    NotEmpty {
        /// Where.
        url: String,
        /// The first object found.
        found: String,
    },
    /// The store failed.
    #[error("cannot make a repository at `{url}`")]
    Store {
        /// Where.
        url: String,
        /// Why.
        source: StoreError,
    },
}

/// Makes a repository in an empty store.
///
/// # Errors
/// The store is not empty, or fails.
pub async fn init(store: Arc<dyn Store>, program: &str) -> Result<Repository, InitError> {
    let url = store.url().to_owned();
    let failed = |source| InitError::Store { url: url.clone(), source };
    if store.head(&Key::identity()).await.map_err(failed)?.is_some() {
        return Err(InitError::Exists { url });
    }
    if let Some(found) = store.list("", None).next().await {
        return Err(InitError::NotEmpty { found: found.map_err(failed)?.key.to_string(), url });
    }
    let identity = Identity { format: log::FORMAT, repository: RepositoryId::random(), created_at: Timestamp::now(), created_by: program.to_owned() };
    let mut text =
        serde_json::to_string(&identity).map_err(|error| failed(StoreError::Io { action: "write", key: Key::identity().to_string(), source: error.into() }))?;
    text.push('\n');
    let bytes = Bytes::from(text);
    let sha256 = Sha256::of(&bytes);
    let created = match store.begin(&bytes, Begin::Repository).await {
        // Somebody else was quicker.
        Err(StoreError::OtherContent { .. }) => Created::Exists,
        made => made.map_err(failed)?,
    };
    match created {
        Created::New => {
            crash_point!("identity created");
            Ok(Repository { store, id: identity.repository, start: Head { epoch: 0, sequence: 0, sha256 }, identity: bytes })
        }
        Created::Exists | Created::Unnameable => Err(InitError::Exists { url }),
    }
}

/// A repository whose identity has been read.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Where its objects are.
    pub store: Arc<dyn Store>,
    /// Which one it is.
    pub id: RepositoryId,
    /// The head of an empty log: what entry 1 names as the one before.
    pub start: Head,
    /// The bytes of `format.json`.
    pub identity: Bytes,
}

impl Repository {
    /// Reads the identity of the repository in `store`.
    ///
    /// # Errors
    /// There is none, or none that this program knows.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, OpenError> {
        let url = store.url().to_owned();
        let bytes = match read_all(store.as_ref(), &Key::identity(), IDENTITY_BYTES_MAX).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound { .. }) => return Err(OpenError::NoRepository { url }),
            Err(source) => return Err(OpenError::Store { url, source }),
        };
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = |source| OpenError::DamagedIdentity { url: url.clone(), source };
        let format: Format = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format.format != log::FORMAT {
            return Err(OpenError::UnknownFormat { url, found: format.format });
        }
        let identity: Identity = serde_json::from_slice(&bytes).map_err(damaged)?;
        Ok(Self { store, id: identity.repository, start: Head { epoch: 0, sequence: 0, sha256: Sha256::of(&bytes) }, identity: bytes })
    }

    /// Before the first write: finds out what the store can do, and ends the uploads of a dead run that `leftovers` lists.
    ///
    /// # Errors
    /// The store cannot be written to, or has another `format.json`, or none, since it was opened.
    pub(crate) async fn begin_writing(&self, leftovers: Option<&Path>) -> Result<(), OpenError> {
        let what = Begin::Writing { leftovers };
        let mut ready = self.store.begin(&self.identity, what).await;
        if let Err(StoreError::OtherContent { .. } | StoreError::NotFound { .. }) = ready {
            // It was there when this was opened. What came wrong is asked for a second time, and that decides.
            tokio::time::sleep(SECOND_LOOK_AFTER).await;
            ready = self.store.begin(&self.identity, what).await;
        }
        let url = || self.store.url().to_owned();
        ready.map(drop).map_err(|error| match error {
            StoreError::OtherContent { .. } => OpenError::UnsteadyIdentity { url: url() },
            StoreError::NotFound { .. } => OpenError::NoRepository { url: url() },
            error => error.into(),
        })
    }
}

/// How much of the log is read: up to an entry, as the newest epoch has it or as an earlier one has. Written `NUMBER` or `EPOCH:NUMBER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Until {
    /// The epoch; `None`: the newest.
    pub epoch: Option<u32>,
    /// The last entry.
    pub sequence: u64,
}

impl From<u64> for Until {
    fn from(sequence: u64) -> Self {
        Self { epoch: None, sequence }
    }
}

impl std::str::FromStr for Until {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((epoch, sequence)) => Ok(Self { epoch: Some(epoch.parse()?), sequence: sequence.parse()? }),
            None => text.parse().map(|sequence| Self { epoch: None, sequence }),
        }
    }
}

/// What a store says of `format.json` and cannot be is asked for again after this.
const SECOND_LOOK_AFTER: Duration = Duration::from_millis(500);

/// How often, and after which wait, a reader looks whether the one who has the state folder has brought the manifest up to date.
const READER_TRIES_MAX: u32 = 20;
const READER_WAIT: Duration = Duration::from_millis(250);

/// A repository with its manifest.
#[derive(Debug)]
pub struct Session {
    /// The repository.
    pub repository: Repository,
    /// Its state folder.
    pub state: StateFolder,
    /// Its manifest, up to date as of opening and all that was committed since.
    pub manifest: Manifest,
    /// Who writes.
    pub writer: WriterId,
    lock: Option<StateLock>,
    /// Whether the store has been told that writing begins.
    begun: bool,
}

impl Session {
    /// Opens the repository for writing: `lock` says that nobody else writes from this state folder.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(repository: Repository, state: StateFolder, lock: StateLock, monitor: &dyn Monitor) -> Result<Self, OpenError> {
        let writer = state.writer()?;
        state.keep_identity(&repository.identity)?;
        let manifest = local_manifest(&repository, &state, monitor).await?;
        let mut session = Self { repository, state, manifest, writer, lock: Some(lock), begun: false };
        session.refresh(monitor).await.inspect_err(|error| session.discard_if_damaged(error))?;
        Ok(session)
    }

    /// Opens the repository for reading. Beside a run that writes from this state folder, it sees what that run has committed.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_for_reading(repository: Repository, state: StateFolder, monitor: &dyn Monitor) -> Result<Self, OpenError> {
        for _ in 0..READER_TRIES_MAX {
            if let Some(lock) = state.try_lock()? {
                let mut session = Self::open(repository, state, lock, monitor).await?;
                session.lock = None;
                return Ok(session);
            }
            // Whoever has the lock may be making the manifest right now: it is used only if it ends where the log does.
            if let Ok(manifest) = Manifest::open_for_reading(&state.manifest()) {
                let chain = log::chain_after(repository.store.as_ref(), &manifest.head()).await?;
                if chain.last().is_none_or(|last| last <= manifest.head().sequence) {
                    let writer = state.writer()?;
                    return Ok(Self { repository, state, manifest, writer, lock: None, begun: false });
                }
            }
            tokio::time::sleep(READER_WAIT).await;
        }
        Err(OpenError::Stale)
    }

    /// Opens the repository as it stood at the log entry `until`, reading nothing after it; `state` is thrown away afterwards.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open_until(repository: Repository, state: StateFolder, until: Until, monitor: &dyn Monitor) -> Result<Self, OpenError> {
        let writer = state.writer()?;
        let manifest = Manifest::create(&state.manifest(), repository.id, &repository.start)?;
        let mut session = Self { repository, state, manifest, writer, lock: None, begun: false };
        let Until { epoch, sequence: last } = until;
        monitor.emit(Event::PhaseStarted { phase: Phase::Refresh, total_files: Some(last), total_bytes: None });
        let entries = log::chain_until(session.store(), &session.repository.start, epoch, last).await?.entries;
        // One that is not listed is said to be missing by its usual name.
        let keys = (1..=last).map(|sequence| entries.get(&sequence).cloned().unwrap_or_else(|| Key::log_entry(sequence)));
        let mut walk = log::Walk::new(&session.repository.store, session.manifest.head(), keys);
        while let Some(entry) = walk.next().await? {
            session.apply(&entry, monitor)?;
        }
        monitor.emit(Event::PhaseFinished { phase: Phase::Refresh });
        Ok(session)
    }

    /// Throws the local manifest away if `error` says that it is damaged: who opens it next makes it anew from the log.
    pub fn discard_if_damaged(&self, error: &OpenError) {
        if matches!(error, OpenError::Manifest(error) if error.is_damage()) {
            // Where it cannot be removed, the next error says the same.
            drop(std::fs::remove_file(self.state.manifest()));
        }
    }

    /// The repository or the state folder, if one of them and `path` lie within one another.
    #[must_use]
    pub fn overlapping(&self, path: &Path) -> Option<(&'static str, PathBuf)> {
        let path = without_links(path)?;
        let repository = Some(PathBuf::from(self.store().url())).filter(|url| url.is_dir());
        let state = self.state.manifest().parent().map(Path::to_owned);
        let places = [("the repository", repository), ("the state folder", state)];
        let found = places.into_iter().filter_map(|(what, inner)| Some((what, without_links(&inner?)?)));
        found.into_iter().find(|(_, inner)| inner.starts_with(&path) || path.starts_with(inner))
    }

    /// Where the objects are.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        self.repository.store.as_ref()
    }

    fn apply(&mut self, entry: &Entry, monitor: &dyn Monitor) -> Result<(), OpenError> {
        let applied = self.manifest.apply(entry)?;
        if let Some(Fact::Epoch(repair)) = entry.facts.first() {
            tell_of_repair(entry.header.epoch, entry.header.sequence, repair, monitor);
        }
        if applied.unknown_facts > 0 {
            monitor.emit(Event::Warned {
                message: format!(
                    "log entry {} states {} facts of a kind that this version does not know; they are passed over",
                    entry.header.sequence, applied.unknown_facts
                ),
            });
        }
        Ok(())
    }

    /// Applies what others have added to the log, and makes sure that it is the log that was seen before.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn refresh(&mut self, monitor: &dyn Monitor) -> Result<(), OpenError> {
        let seen = self.state.seen()?;
        let chain = match self.chain_from_here().await {
            Err(error) => {
                self.accept(error)?;
                // Back to before what is not part of the log any more.
                // SQLite removes what lies beside a file when it is closed, by name: the old one has to be closed before the new one is made.
                let between = self.state.own_file("between.db");
                self.manifest = Manifest::create(&between, self.repository.id, &self.repository.start)?;
                self.manifest = new_manifest(&self.repository, &self.state, monitor).await?;
                self.chain_from_here().await?
            }
            Ok(chain) => chain,
        };
        let start = self.manifest.head();
        let last = chain.last().unwrap_or(start.sequence);
        if let Some(seen) = seen.filter(|seen| *seen != start && seen.sequence > 0) {
            self.check_seen(&seen, last).await?;
        }
        let new = chain.entries.range(start.sequence + 1..);
        let count = new.clone().count() as u64;
        if count > 0 {
            monitor.emit(Event::PhaseStarted { phase: Phase::Refresh, total_files: Some(count), total_bytes: None });
        }
        let mut walk = log::Walk::new(&self.repository.store, start, new.map(|(_, key)| key.clone()));
        while let Some(entry) = walk.next().await? {
            self.apply(&entry, monitor)?;
            crash_point!("entry of the log applied while catching up");
            monitor.emit(Event::EntriesApplied { sequence: entry.header.sequence, head: last });
        }
        if count > 0 {
            monitor.emit(Event::PhaseFinished { phase: Phase::Refresh });
        }
        let head = self.manifest.head();
        if seen != Some(head) {
            crash_point!("caught up, head not noted");
            self.state.set_seen(&head)?;
        }
        Ok(())
    }

    /// The log from the manifest's last entry on, which is in it.
    async fn chain_from_here(&self) -> Result<Chain, OpenError> {
        let head = self.manifest.head();
        let chain = log::chain_after(self.store(), &head).await?;
        self.check_is_there(&head, &chain).await?;
        Ok(chain)
    }

    /// Passes over `error` if it says that the log was repaired, and that repair is known here.
    fn accept(&self, error: OpenError) -> Result<(), OpenError> {
        match error {
            OpenError::Log(LogError::Rejected { sha256, .. }) if self.state.accepted_epochs()?.contains(&sha256) => Ok(()),
            error => Err(error),
        }
    }

    /// The log that ends with entry `last` must go through what was seen of it before.
    async fn check_seen(&self, seen: &Head, last: u64) -> Result<(), OpenError> {
        match log::chain_after(self.store(), seen).await {
            Ok(chain) if chain.entries.is_empty() => Err(LogError::WentBack { seen: seen.sequence, now: last }.into()),
            Ok(chain) => self.check_is_there(seen, &chain).await.or_else(|error| self.accept(error)),
            Err(error) => self.accept(error.into()),
        }
    }

    /// The entry `head` must be in the store, in the log `chain` that goes on from it, and be that one.
    async fn check_is_there(&self, head: &Head, chain: &Chain) -> Result<(), OpenError> {
        if head.sequence == 0 {
            return Ok(());
        }
        let Some(key) = chain.entries.get(&head.sequence) else {
            return Err(match chain.entries.keys().next() {
                Some(next) => LogError::Gap { missing: head.sequence, next: *next },
                None => {
                    let all = log::chain_after(self.store(), &self.repository.start).await?;
                    LogError::WentBack { seen: head.sequence, now: all.last().unwrap_or(0) }
                }
            }
            .into());
        };
        let entry = log::read_entry(self.store(), head.sequence, key).await?;
        if entry.sha256 == head.sha256 {
            return Ok(());
        }
        // Of a fork the other branch may have been kept: then a repair has decided so.
        let error = chain.openings.first().map_or(LogError::Rewritten { sequence: head.sequence }, |opening| opening.refusal(head));
        Err(error.into())
    }

    /// Makes ready for objects that are written beside the log. [`Self::commit`] and [`Self::note`] do it by themselves.
    ///
    /// # Errors
    /// The store cannot be written to.
    pub async fn begin_writing(&mut self) -> Result<(), OpenError> {
        self.begin().await
    }

    /// Before the first write: finds out what the store can do, and ends what a dead run of this state folder began.
    async fn begin(&mut self) -> Result<(), OpenError> {
        if !self.begun {
            // Whoever holds the lock is the only one who has uploads under way from here.
            let leftovers = self.lock.is_some().then(|| self.state.uploads());
            self.repository.begin_writing(leftovers.as_deref()).await?;
            crash_point!("store made ready");
            self.begun = true;
        }
        Ok(())
    }

    /// Adds an entry to the log, and applies it.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is applied that is not in the log.
    pub async fn commit(&mut self, run: Option<RunId>, facts: &[Fact], monitor: &dyn Monitor) -> Result<Head, OpenError> {
        self.begin().await?;
        if facts.iter().any(|fact| matches!(fact, Fact::Snapshot(_))) {
            // Nobody is told of a snapshot in a log that does not count any more: somebody may have repaired it under this run.
            log::chain_after(self.store(), &self.manifest.head()).await?;
        }
        let author = Author { run, writer: self.writer };
        let appended = log::append(self.store(), &self.manifest.head(), author, facts).await?;
        crash_point!("entry acknowledged, manifest not applied");
        for entry in &appended.taken {
            self.apply(entry, monitor)?;
            monitor.emit(Event::EntryTaken { sequence: entry.header.sequence, writer: entry.header.writer });
        }
        self.manifest.apply_parts(&appended.header, facts, &appended.head)?;
        crash_point!("manifest applied, head not noted");
        self.state.set_seen(&appended.head)?;
        monitor.emit(Event::Checkpoint { sequence: appended.head.sequence, facts: facts.len() as u64 });
        Ok(appended.head)
    }

    /// Where the disk went away meanwhile, there is no log that could have lost anything. What came wrong is read a second time, and that decides.
    pub(crate) async fn is_still_there(&self) -> Result<(), OpenError> {
        let look = || Repository::open(Arc::clone(&self.repository.store));
        let is_same = |again: &Repository| again.start == self.repository.start;
        if look().await.is_ok_and(|again| is_same(&again)) {
            return Ok(());
        }
        tokio::time::sleep(SECOND_LOOK_AFTER).await;
        if is_same(&look().await?) { Ok(()) } else { Err(LogError::Rewritten { sequence: 0 }.into()) }
    }

    /// Adds facts from beside a run, which finds them in its way and takes them in: nothing is applied here unless nobody else writes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn note(&mut self, facts: &[Fact], monitor: &dyn Monitor) -> Result<(), OpenError> {
        if facts.is_empty() {
            return Ok(());
        }
        self.is_still_there().await?;
        if self.lock.is_some() {
            // This session is the one that writes.
            return self.commit(None, facts, monitor).await.map(drop);
        }
        if let Some(lock) = self.state.try_lock()? {
            self.lock = Some(lock);
            let noted = async {
                // A run may have written from this state folder since the manifest was opened, and it may be open for reading only.
                self.manifest = local_manifest(&self.repository, &self.state, monitor).await?;
                self.refresh(monitor).await?;
                self.commit(None, facts, monitor).await.map(drop)
            }
            .await;
            self.lock = None;
            return noted;
        }
        self.begin().await?;
        if !self.store().capabilities().conditional_create {
            // Two writers would not be kept apart there, and what was found is found again.
            let message = "what was found is not written to the log: a run is writing, and this store cannot keep two writers apart".to_owned();
            monitor.emit(Event::Warned { message });
            return Ok(());
        }
        let author = Author { run: None, writer: self.writer };
        log::append(self.store(), &self.manifest.head(), author, facts).await?;
        Ok(())
    }
}

/// The local manifest; else one from a copy in the repository; else an empty one.
async fn local_manifest(repository: &Repository, state: &StateFolder, monitor: &dyn Monitor) -> Result<Manifest, OpenError> {
    let path = state.manifest();
    match Manifest::open(&path, repository.id) {
        Ok(Some(manifest)) if manifest.head().sequence > 0 || manifest.head() == repository.start => return Ok(manifest),
        // One that knows no entry yet, and was made when `format.json` was read wrong: entry 1 would name those bytes.
        Ok(Some(_) | None) => {}
        Err(error) if error.is_damage() => {
            monitor.emit(Event::Warned { message: format!("the local manifest is damaged and is made anew from the log ({})", path.display()) });
        }
        Err(error) => return Err(error.into()),
    }
    new_manifest(repository, state, monitor).await
}

/// A manifest from a copy in the repository; else an empty one.
async fn new_manifest(repository: &Repository, state: &StateFolder, monitor: &dyn Monitor) -> Result<Manifest, OpenError> {
    let Some(manifest) = from_copy(repository, state, monitor).await? else {
        return Ok(Manifest::create(&state.manifest(), repository.id, &repository.start)?);
    };
    for repair in manifest.epochs()? {
        tell_of_repair(repair.number, repair.sequence, &repair.fact, monitor);
    }
    Ok(manifest)
}

/// Whoever reads a log that was repaired is told so: what they see is what somebody decided.
fn tell_of_repair(epoch: u32, sequence: u64, repair: &EpochFact, monitor: &dyn Monitor) {
    let base = sequence.saturating_sub(1);
    let host = encode_segment(repair.host.as_bytes());
    let message = format!(
        "the log was repaired on `{host}` at {:.0}: epoch {epoch} goes on after entry {base}, and {} objects are not part of it any more ({}); `immich-backup status` has more",
        repair.at, repair.rejected_count, repair.reason
    );
    monitor.emit(Event::Warned { message });
}

/// Entries after a copy's own in which the fact that names it is looked for; it comes right behind unless others wrote meanwhile.
const COPY_NAMED_WITHIN: u64 = 16;

/// Largest copy that is fetched: well above that of a hundred million files. A larger one would fill a disk.
const COPY_BYTES_MAX: u64 = 16 << 30;

/// A manifest made from the newest copy that the log vouches for.
async fn from_copy(repository: &Repository, state: &StateFolder, monitor: &dyn Monitor) -> Result<Option<Manifest>, OpenError> {
    let store = repository.store.as_ref();
    let copies: Vec<_> = store.list(key::MANIFESTS, None).try_collect().await?;
    let chain = if copies.is_empty() { return Ok(None) } else { log::chain_after(store, &repository.start).await? };
    let last = chain.last().unwrap_or(0);
    let newest_epoch = chain.openings.last().map_or(0, log::Opening::epoch);
    for copy in &copies {
        let Some((epoch, newer)) = key::manifest_position(&copy.key) else { continue };
        if epoch != newest_epoch || newer <= last {
            continue;
        }
        if later_copy::is_one(store, repository.id, state, copy, newer).await? {
            // It knows of entries that are not there: someone has seen them.
            return Err(LogError::WentBack { seen: newer, now: last }.into());
        }
        monitor.emit(Event::Warned { message: format!("`{}` is no copy of the manifest, and the log does not reach so far: somebody put it there", copy.key) });
    }
    for copy in copies.iter().rev() {
        let Some((epoch, sequence)) = key::manifest_position(&copy.key) else { continue };
        // Since a repair, some know what is not part of the log any more.
        if !chain.has_position(epoch, sequence) {
            continue;
        }
        let Some(expected) = named_by_log(store, &chain, &copy.key, sequence).await else { continue };
        let fetched = fetch_copy(repository, state, copy, expected).await;
        drop(std::fs::remove_file(scratch(state)));
        match fetched {
            Ok(Some(manifest)) if manifest.head().sequence == sequence && manifest.head().epoch == epoch => {
                // Only a copy that the log goes on from is worth anything.
                let follows = match chain.entries.get(&(sequence + 1)) {
                    Some(next) => follows(store, &manifest.head(), next).await,
                    None => false,
                };
                if follows {
                    return Ok(Some(manifest));
                }
            }
            Err(error @ (OpenError::State(_) | OpenError::Store { .. })) => return Err(error),
            _ => {}
        }
        monitor.emit(Event::Warned {
            message: format!(
                "the manifest's copy `{}` is damaged, or of another version of this program, and not used; the log has all that it says",
                copy.key
            ),
        });
    }
    Ok(None)
}

async fn follows(store: &dyn Store, head: &Head, key: &Key) -> bool {
    log::entry_after(store, head, key).await.is_ok()
}

async fn named_by_log(store: &dyn Store, chain: &Chain, copy: &Key, sequence: u64) -> Option<Sha256> {
    for (number, key) in chain.entries.range(sequence + 1..).take(usize::try_from(COPY_NAMED_WITHIN).unwrap_or(usize::MAX)) {
        let entry = log::read_entry(store, *number, key).await.ok()?;
        for fact in entry.facts {
            if let Fact::Manifest(named) = fact
                && named.key == copy.as_str()
            {
                return Some(named.sha256);
            }
        }
    }
    None
}

/// Where a copy is kept while it is looked at.
fn scratch(state: &StateFolder) -> PathBuf {
    state.scratch("copy.db.zst")
}

/// Fetches a copy into the file `to`, and returns its SHA-256; `None` where it is larger than a copy can be.
pub(super) async fn fetch(store: &dyn Store, copy: &ObjectInfo, to: &Path) -> Result<Option<Sha256>, OpenError> {
    if copy.size_bytes > COPY_BYTES_MAX {
        return Ok(None);
    }
    let mut stream = store.get(&copy.key, None).await?;
    let mut hasher = Sha256Counter::default();
    let failed = |source| ManifestError::Copy { action: "write", path: to.to_owned(), source };
    let mut file = std::fs::File::create(to).map_err(failed)?;
    let mut bytes = 0_u64;
    while let Some(piece) = stream.try_next().await? {
        bytes = bytes.saturating_add(piece.len() as u64);
        if bytes > COPY_BYTES_MAX {
            return Ok(None);
        }
        hasher.update(&piece);
        file.write_all(&piece).map_err(failed)?;
    }
    Ok(Some(hasher.finish().0))
}

async fn fetch_copy(repository: &Repository, state: &StateFolder, copy: &ObjectInfo, expected: Sha256) -> Result<Option<Manifest>, OpenError> {
    let packed = scratch(state);
    let found = fetch(repository.store.as_ref(), copy, &packed).await?;
    crash_point!("manifest copy fetched, not unpacked");
    if found != Some(expected) {
        return Ok(None);
    }
    unpack(&packed, &state.manifest())?;
    crash_point!("manifest copy unpacked, not opened");
    Ok(Manifest::open(&state.manifest(), repository.id)?)
}
