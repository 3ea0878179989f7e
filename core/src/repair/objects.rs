//! Objects that are missing or damaged, as `verify` found them: what they held is stored again from the library, or lies in another object already.

use super::library::{LibrarySource, Roots};
use super::{RepairError, unread};
use crate::budget::{CHECKPOINT_FILES_MAX, CHUNKS_QUEUED_MAX, ONE_SHOT_BYTES_MAX};
use crate::event::{Event, Monitor, Phase};
use crate::library::layout::class_of;
use crate::library::read::{LiveFile, ReadError};
use crate::library::walk::{Visitor, walk};
use crate::model::{Content, FilePath, FileTimes, Root, RootPath, Sha256};
use crate::repository::Session;
use crate::repository::fetch::Fetcher;
use crate::repository::key::{self, Key};
use crate::repository::log::{Fact, Relocated, Sound};
use crate::repository::manifest::Held;
use crate::repository::store::{Attributes, Created, Kind, StoreError};
use crate::task::{blocking, joined};
use bytes::Bytes;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Where to look.
#[derive(Debug, Clone, Default)]
pub struct ObjectsOptions {
    /// The library, and external ones; none: only what other objects hold is looked for.
    pub sources: Vec<LibrarySource>,
}

/// Where the content of an object is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Found {
    /// The object is whole after all.
    Whole,
    /// Another object holds it.
    Object {
        /// Which.
        key: String,
    },
    /// A file of the library holds it.
    File {
        /// Which.
        path: FilePath,
    },
    /// Nothing there holds it.
    Nowhere {
        /// What that means, and what to do.
        remark: String,
    },
}

/// An object that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wanted {
    /// The object.
    pub key: String,
    /// What is wrong with it, as it was found.
    pub problem: String,
    /// Whether nothing has its name, so that it can be created again.
    pub is_missing: bool,
    /// Of what it should hold; absent for a dump, or a copy of the manifest.
    #[serde(skip)]
    pub content: Option<(Sha256, u64)>,
    /// Files whose content it is, the first of them.
    pub files: Vec<String>,
    /// Where that is to be had.
    pub found: Found,
    #[serde(skip)]
    file: Option<FilePath>,
}

/// What healing the store would do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectsPlan {
    /// Each object.
    pub objects: Vec<Wanted>,
    sources: Vec<LibrarySource>,
}

impl ObjectsPlan {
    /// Objects whose content is nowhere.
    pub fn lost(&self) -> impl Iterator<Item = &Wanted> {
        self.objects.iter().filter(|wanted| matches!(wanted.found, Found::Nowhere { .. }))
    }

    /// How many can be healed.
    #[must_use]
    pub fn healable(&self) -> usize {
        self.objects.len() - self.lost().count()
    }
}

/// What healing the store did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ObjectsReport {
    /// Objects that were created again under their own key.
    pub created: u64,
    /// Objects in whose place another one counts now.
    pub relocated: u64,
    /// Objects that were whole after all.
    pub whole: u64,
    /// Bytes that were sent.
    pub bytes: u64,
    /// What could not be done, in words: by key.
    pub failures: Vec<(String, String)>,
}

/// How many files of one object are named.
const FILES_NAMED: usize = 5;

/// Says what of the store can be healed. Changes nothing.
///
/// # Errors
/// The repository cannot be asked, or the library cannot be opened.
pub async fn prepare_objects(session: &Session, options: ObjectsOptions, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<ObjectsPlan, RepairError> {
    let roots = Roots::open(&options.sources)?;
    let fetcher = Fetcher::new(Arc::clone(&session.repository.store));
    let damaged = session.manifest.damaged_objects()?;
    let bad: BTreeSet<&str> = damaged.iter().map(|(key, _)| key.as_str()).collect();
    monitor.emit(Event::PhaseStarted { phase: Phase::ReadBack, total_files: Some(damaged.len() as u64), total_bytes: None });
    let mut objects = Vec::new();
    for (key, problem) in &damaged {
        if stop.is_cancelled() {
            return Err(RepairError::Interrupted);
        }
        if let Some(wanted) = look_at(session, &fetcher, &roots, (key, problem), &bad).await? {
            objects.push(wanted);
        }
        monitor.emit(Event::ObjectChecked { size_bytes: 0 });
    }
    monitor.emit(Event::PhaseFinished { phase: Phase::ReadBack });
    search(&roots, &mut objects, monitor, stop).await?;
    Ok(ObjectsPlan { objects, sources: options.sources })
}

async fn look_at(
    session: &Session,
    fetcher: &Fetcher,
    roots: &Arc<Roots>,
    (key, problem): (&String, &String),
    bad: &BTreeSet<&str>,
) -> Result<Option<Wanted>, RepairError> {
    let manifest = &session.manifest;
    let parsed = Key::parse(key).map_err(StoreError::from)?;
    let is_missing = session.store().head(&parsed).await?.is_none();
    let mut wanted = Wanted { key: key.clone(), problem: problem.clone(), is_missing, content: None, files: Vec::new(), found: Found::Whole, file: None };
    if let Some(dump) = manifest.dump(key)?.filter(|dump| !dump.pruned) {
        if !is_missing && holds(fetcher, &parsed, &dump.fact.sha256, dump.fact.size).await? {
            return Ok(Some(wanted));
        }
        let later = manifest.dumps()?.iter().any(|other| !other.pruned && other.fact.taken_at > dump.fact.taken_at && !bad.contains(other.fact.key.as_str()));
        let remark = if later {
            "a dump cannot be made again as of then; later ones are whole, and the snapshots that this one belongs to have lost their database"
        } else {
            "a dump cannot be made again as of then; the next `backup` makes a new one, and no earlier snapshot has this database"
        };
        wanted.found = Found::Nowhere { remark: remark.to_owned() };
        return Ok(Some(wanted));
    }
    let held = manifest.held_in(key)?;
    // A copy of the manifest is not used where it is damaged, and what another object took the place of is nobody's.
    let Some(first) = held.first() else { return Ok(None) };
    let (content, size_bytes) = (first.row.digests.sha256, first.row.size_bytes);
    wanted.content = Some((content, size_bytes));
    wanted.files = held.iter().map(|held| held.row.file.to_string()).collect::<BTreeSet<_>>().into_iter().take(FILES_NAMED).collect();
    wanted.file = Some(first.row.file.clone());
    if !is_missing && holds(fetcher, &parsed, &content, size_bytes).await? {
        return Ok(Some(wanted));
    }
    for other in manifest.objects_with(&content)? {
        if other.key != *key && holds(fetcher, &Key::parse(&other.key).map_err(StoreError::from)?, &content, size_bytes).await? {
            wanted.found = Found::Object { key: other.key };
            return Ok(Some(wanted));
        }
    }
    let versions = manifest.versions_of(&content)?;
    let paths: Vec<FilePath> = versions.into_iter().map(|Held { row, .. }| row.file).collect();
    let (looking, wanted_content) = (Arc::clone(roots), (content, size_bytes));
    let file = blocking(move || paths.into_iter().find(|file| looking.has(file, wanted_content))).await;
    wanted.found = match file {
        Some(path) => Found::File { path },
        None => Found::Nowhere { remark: "no file of the library has this content any more".to_owned() },
    };
    Ok(Some(wanted))
}

/// Whether the object holds this; one that cannot be read does not.
async fn holds(fetcher: &Fetcher, key: &Key, sha256: &Sha256, size_bytes: u64) -> Result<bool, RepairError> {
    match fetcher.hash(key, size_bytes, |content| content.digests.sha256 == *sha256).await {
        Ok(content) => Ok(content.digests.sha256 == *sha256 && content.size_bytes == size_bytes),
        Err(StoreError::NotFound { .. } | StoreError::Archived { .. }) => Ok(false),
        Err(error) if error.is_of_medium() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Contents that are looked for, by size, with what was found.
#[derive(Default)]
struct Sought {
    sizes: BTreeMap<u64, BTreeSet<Sha256>>,
    found: Mutex<BTreeMap<Sha256, FilePath>>,
    enough: AtomicBool,
}

struct Searcher<'a> {
    root: &'a Root,
    roots: &'a Roots,
    sought: &'a Sought,
    stop: &'a CancellationToken,
}

impl Visitor for Searcher<'_> {
    fn enter(&mut self, _folder: &str) -> bool {
        true
    }

    fn file(&mut self, folder: &str, name: &str, times: FileTimes) -> bool {
        if self.stop.is_cancelled() || self.sought.enough.load(Ordering::Relaxed) {
            return false;
        }
        let Some(contents) = self.sought.sizes.get(&times.size_bytes) else { return true };
        let file = FilePath { root: self.root.clone(), path: RootPath::in_folder(folder, name) };
        let Some(content) = self.roots.hash(&file) else { return true };
        if contents.contains(&content.digests.sha256) {
            let mut found = self.sought.found.lock().unwrap_or_else(PoisonError::into_inner);
            found.entry(content.digests.sha256).or_insert(file);
            let wanted: usize = self.sought.sizes.values().map(BTreeSet::len).sum();
            self.sought.enough.store(found.len() == wanted, Ordering::Relaxed);
        }
        true
    }

    fn special(&mut self, _folder: &str, _name: &str, _kind: &'static str) {}
    fn failed(&mut self, _folder: &str, _name: Option<&str>, _error: &io::Error) {}
    fn leave(&mut self, _folder: &str, _whole: bool) {}
}

/// Threads that walk the library.
const WALKERS: usize = 4;

/// Looks through the whole library for what is nowhere yet: files may have moved since the last backup.
async fn search(roots: &Arc<Roots>, objects: &mut [Wanted], monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), RepairError> {
    let mut sought = Sought::default();
    for wanted in objects.iter().filter(|wanted| matches!(wanted.found, Found::Nowhere { .. })) {
        if let Some((content, size_bytes)) = wanted.content {
            sought.sizes.entry(size_bytes).or_default().insert(content);
        }
    }
    if sought.sizes.is_empty() || roots.is_empty() {
        return Ok(());
    }
    monitor.emit(Event::PhaseStarted { phase: Phase::LookAgain, total_files: None, total_bytes: None });
    let (walking, stopping) = (Arc::clone(roots), stop.clone());
    let found = blocking(move || {
        for (root, tree) in walking.all() {
            let searcher = || Searcher { root, roots: &walking, sought: &sought, stop: &stopping };
            walk(tree, &mut (0..WALKERS).map(|_| searcher()).collect::<Vec<_>>());
        }
        sought.found.into_inner().unwrap_or_else(PoisonError::into_inner)
    })
    .await;
    monitor.emit(Event::PhaseFinished { phase: Phase::LookAgain });
    if stop.is_cancelled() {
        return Err(RepairError::Interrupted);
    }
    for wanted in objects {
        if let (Found::Nowhere { .. }, Some(path)) = (&wanted.found, wanted.content.and_then(|(content, _)| found.get(&content))) {
            wanted.found = Found::File { path: path.clone() };
        }
    }
    Ok(())
}

impl ObjectsPlan {
    /// Does it: what is missing is created under its own key, what is damaged gets another, which the log says for every snapshot.
    ///
    /// # Errors
    /// The repository failed. What was stored stays, and the next repair goes on.
    pub async fn run(&self, session: &mut Session, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<ObjectsReport, RepairError> {
        let mut report = ObjectsReport::default();
        if self.healable() == 0 {
            return Ok(report);
        }
        let roots = Roots::open(&self.sources)?;
        session.begin_writing().await?;
        let mut facts = Vec::new();
        for wanted in &self.objects {
            if stop.is_cancelled() {
                break;
            }
            match self.heal(session, &roots, wanted, &mut report).await {
                Ok(Some(fact)) => facts.push(fact),
                Ok(None) => {}
                Err(error @ RepairError::Read { .. }) => report.failures.push((wanted.key.clone(), error.to_string())),
                Err(error) => return Err(error),
            }
            if facts.len() >= CHECKPOINT_FILES_MAX {
                commit(session, &mut facts, monitor).await?;
            }
        }
        commit(session, &mut facts, monitor).await?;
        if stop.is_cancelled() { Err(RepairError::Interrupted) } else { Ok(report) }
    }

    async fn heal(&self, session: &Session, roots: &Arc<Roots>, wanted: &Wanted, report: &mut ObjectsReport) -> Result<Option<Fact>, RepairError> {
        let sound = || Some(Fact::Sound(Sound { key: wanted.key.clone() }));
        let Some((sha256, size)) = wanted.content else {
            return Ok(matches!(wanted.found, Found::Whole).then(|| {
                report.whole += 1;
                Fact::Sound(Sound { key: wanted.key.clone() })
            }));
        };
        let relocated = |to: String| Some(Fact::Relocated(Relocated { key: wanted.key.clone(), to, sha256, size }));
        match &wanted.found {
            Found::Nowhere { .. } => Ok(None),
            Found::Whole => {
                report.whole += 1;
                Ok(sound())
            }
            Found::Object { key } => {
                report.relocated += 1;
                Ok(relocated(key.clone()))
            }
            Found::File { path } => {
                let Some(owner) = &wanted.file else { return Ok(None) };
                let own = wanted.is_missing.then(|| Key::parse(&wanted.key)).transpose().map_err(StoreError::from)?;
                for key in own.into_iter().chain(key::candidates(owner, &sha256, false)) {
                    let is_own = key.as_str() == wanted.key;
                    if !is_own && session.manifest.damaged_objects()?.iter().any(|(damaged, _)| damaged == key.as_str()) {
                        continue;
                    }
                    if send(session, roots, &key, path, owner, (sha256, size)).await? {
                        report.bytes += size;
                        if is_own {
                            report.created += 1;
                            return Ok(sound());
                        }
                        report.relocated += 1;
                        return Ok(relocated(key.to_string()));
                    }
                }
                report.failures.push((wanted.key.clone(), "every key that its content could have is taken by something else".to_owned()));
                Ok(None)
            }
        }
    }
}

async fn commit(session: &mut Session, facts: &mut Vec<Fact>, monitor: &dyn Monitor) -> Result<(), RepairError> {
    if !facts.is_empty() {
        // No fact before what it speaks of is durable.
        session.store().sync().await?;
        session.commit(None, &std::mem::take(facts), monitor).await?;
    }
    Ok(())
}

/// Stores what `path` holds under `key`; `false` where that holds something else. Only these bytes are ever under that name: a file that is not what it was
/// a moment ago is no source.
async fn send(session: &Session, roots: &Arc<Roots>, key: &Key, path: &FilePath, owner: &FilePath, content: (Sha256, u64)) -> Result<bool, RepairError> {
    let (store, (sha256, size_bytes)) = (session.store(), content);
    let failed = |error| RepairError::Read { path: path.to_string(), problem: unread(error) };
    let opened = roots.open_file(path).map_err(failed)?;
    let attributes =
        Attributes { kind: Kind::File(class_of(owner)), sha256: Some(sha256), mtime_ns: Some(opened.times().mtime_ns), size_bytes: Some(size_bytes) };
    let created = if size_bytes <= ONE_SHOT_BYTES_MAX {
        let (bytes, read) = blocking(move || opened.read_whole()).await.map_err(failed)?;
        if (read.digests.sha256, read.size_bytes) != content {
            return Err(failed(ReadError::Changed));
        }
        store.create(key, bytes, &attributes).await
    } else {
        let is_taken = store.head(key).await?.is_some();
        if is_taken { Ok(Created::Exists) } else { stream(session, key, opened, &attributes, content).await.map_err(|error| error.of(path))? }
    };
    match created {
        Ok(Created::New) => Ok(true),
        Ok(Created::Unnameable) => Ok(false),
        // Somebody has it, or the answer was lost: what is there decides.
        Ok(Created::Exists) | Err(StoreError::Unanswered { .. }) => holds(&Fetcher::new(Arc::clone(&session.repository.store)), key, &sha256, size_bytes).await,
        Err(error) => Err(error.into()),
    }
}

enum Streaming {
    Store(StoreError),
    Read(ReadError),
}

impl Streaming {
    fn of(self, path: &FilePath) -> RepairError {
        match self {
            Self::Store(error) => error.into(),
            Self::Read(error) => RepairError::Read { path: path.to_string(), problem: unread(error) },
        }
    }
}

async fn stream(
    session: &Session,
    key: &Key,
    file: LiveFile,
    attributes: &Attributes,
    content: (Sha256, u64),
) -> Result<Result<Created, StoreError>, Streaming> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(CHUNKS_QUEUED_MAX);
    let reader = tokio::task::spawn_blocking(move || file.read_pieces(|piece| pieces.blocking_send(piece).is_ok()));
    let mut upload = session.store().create_streamed(key, attributes).await.map_err(Streaming::Store)?;
    while let Some(piece) = queue.recv().await {
        upload.write(piece).await.map_err(Streaming::Store)?;
    }
    let read: Content = joined(reader.await).map_err(Streaming::Read)?;
    if (read.digests.sha256, read.size_bytes) != content {
        // Dropped, it never was.
        return Err(Streaming::Read(ReadError::Changed));
    }
    Ok(upload.finish(&content.0).await)
}
