//! What the page knows of the repository: the local manifest, opened anew for each view, and what takes longer to ask, kept while the log stays as it is.

use super::words;
use crate::exit::Exit;
use crate::standing::Standing;
use immich_backup_core::model::RunId;
use immich_backup_core::repository::log::Head;
use immich_backup_core::repository::manifest::{Changes, DrillRow, FolderTree, Manifest, ManifestError, RunRow, SizeAt, SnapshotRow, TimelineRow, TreeError};
use immich_backup_core::repository::state::StateFolder;
use jiff::Timestamp;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Views that read the manifest at once; more wait.
const READERS_MAX: usize = 3;
/// A view waits no longer for the disk.
const READ_WITHIN: Duration = Duration::from_secs(20);
/// Nor for the folders of the snapshots: a pass over all rows.
const TREE_WITHIN: Duration = Duration::from_secs(120);
/// Runs on a page of the timeline.
pub const TIMELINE_ROWS: u32 = 30;
/// Damaged objects that are named.
const DAMAGED_NAMED_MAX: u32 = 50;
/// Differences between snapshots that are kept.
const CHANGES_KEPT: usize = 4_096;

/// How a page without a daemon has read the repository's log.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Where the manifest is, once the log was read.
    pub path: Option<PathBuf>,
    /// When it was last read.
    pub at: Option<Timestamp>,
    /// Why it could not be read since.
    pub failed: Option<(Exit, String)>,
}

/// Where the manifest is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In the state folder of the repository that was at this URL when it was used from below this base last.
    Remembered {
        /// The folder of state folders.
        base: PathBuf,
        /// The repository.
        url: String,
    },
    /// Where a page without a daemon has read the log to.
    Told(Arc<Mutex<Reading>>),
}

impl Place {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Remembered { base, url } => StateFolder::manifest_below(base, url),
            Self::Told(told) => locked(told).path.clone(),
        }
    }
}

/// Why a view cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// There is no manifest here yet, or none that this version understands.
    #[error("nothing is known of the repository here yet")]
    Nothing,
    /// The log is being read into it.
    #[error("the log is being read: entry {}{}", words::count(*.at), .of.map(|of| format!(" of {}", words::count(of))).unwrap_or_default())]
    Behind {
        /// How far it is.
        at: u64,
        /// How far it was once; unknown while it is read for the first time.
        of: Option<u64>,
    },
    /// No answer in time.
    #[error("the local manifest gives no answer in time")]
    Slow,
    /// A view failed at it.
    #[error("this cannot be shown: the program failed at it")]
    Failed,
    /// It cannot be read.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its folders cannot be shown.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// What the log says, as far as every view needs it.
#[derive(Debug)]
pub struct Known {
    /// As of which entry.
    pub head: Head,
    /// How the repository stands.
    pub standing: Standing,
    /// The newest snapshot.
    pub latest: Option<SnapshotRow>,
    /// The newest runs.
    pub recent: Vec<TimelineRow>,
    /// The newest run that was withheld, while no snapshot follows it.
    pub withheld: Option<RunRow>,
    /// The last drill.
    pub drill: Option<DrillRow>,
    /// How large each snapshot was.
    pub sizes: Vec<SizeAt>,
    /// The first objects that are damaged, and how many there are.
    pub damaged: (Vec<(String, String)>, u64),
}

impl Known {
    fn of(manifest: &Manifest) -> Result<Self, ManifestError> {
        Ok(Self {
            head: manifest.head(),
            standing: Standing::of(manifest)?,
            latest: manifest.latest_snapshot()?,
            recent: manifest.timeline(u64::MAX, TIMELINE_ROWS)?,
            withheld: manifest.standing_withheld()?,
            drill: manifest.last_drill()?,
            sizes: manifest.sizes()?,
            damaged: manifest.first_damaged(DAMAGED_NAMED_MAX)?,
        })
    }
}

/// The folders of all snapshots up to a log entry.
struct KeptTree {
    path: PathBuf,
    head: Head,
    /// What was damaged then, which may change for old snapshots too.
    damage: (u64, u64),
    tree: Arc<FolderTree>,
}

#[derive(Default)]
struct Kept {
    known: Mutex<Option<(PathBuf, Arc<Known>)>>,
    tree: Mutex<Option<KeptTree>>,
    changes: Mutex<HashMap<RunId, Changes>>,
}

/// Reads the manifest for views.
#[derive(Clone)]
pub struct Source {
    place: Place,
    readers: Arc<Semaphore>,
    /// One tree is made at a time.
    planters: Arc<Semaphore>,
    kept: Arc<Kept>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Source {
    /// Of the manifest at `place`.
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, readers: Arc::new(Semaphore::new(READERS_MAX)), planters: Arc::new(Semaphore::new(1)), kept: Arc::default() }
    }

    /// How the log was read; `None` with a daemon, whose jobs read it.
    #[must_use]
    pub fn reading(&self) -> Option<Reading> {
        match &self.place {
            Place::Told(told) => Some(locked(told).clone()),
            Place::Remembered { .. } => None,
        }
    }

    /// Asks the manifest, beside whoever writes it; all questions see one state.
    ///
    /// # Errors
    /// See [`SourceError`], or what `ask` returns.
    pub async fn read<T: Send + 'static>(&self, ask: impl FnOnce(&Manifest) -> Result<T, SourceError> + Send + 'static) -> Result<T, SourceError> {
        self.read_within(READ_WITHIN, ask).await
    }

    async fn read_within<T: Send + 'static>(
        &self,
        within: Duration,
        ask: impl FnOnce(&Manifest) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let place = self.place.clone();
        let readers = Arc::clone(&self.readers);
        let read = async {
            let turn = readers.acquire_owned().await.map_err(|_| SourceError::Failed)?;
            let read = tokio::task::spawn_blocking(move || {
                // A disk that hangs takes these few threads and no more.
                let _turn = turn;
                let path = place.path().ok_or(SourceError::Nothing)?;
                let manifest = Manifest::open_if_there(&path)?.ok_or(SourceError::Nothing)?;
                manifest.hold_still()?;
                let (at, seen) = (manifest.head().sequence, StateFolder::seen_beside(&path).map(|seen| seen.sequence));
                // What was seen is noted when all was read, before that there is nothing; made anew from the log, it was further once. An entry may be seen before
                // it is applied.
                match seen {
                    Some(seen) if seen <= at + 1 => ask(&manifest),
                    of => Err(SourceError::Behind { at, of }),
                }
            });
            read.await.map_err(|_| SourceError::Failed)?
        };
        tokio::time::timeout(within, read).await.map_err(|_| SourceError::Slow)?
    }

    /// What every view needs.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn known(&self) -> Result<Arc<Known>, SourceError> {
        let kept = Arc::clone(&self.kept);
        self.read(move |manifest| {
            let (path, head) = (manifest.path().to_owned(), manifest.head());
            let found = locked(&kept.known).as_ref().filter(|(of, known)| *of == path && known.head == head).map(|(_, known)| Arc::clone(known));
            if let Some(known) = found {
                return Ok(known);
            }
            let known = Arc::new(Known::of(manifest)?);
            *locked(&kept.known) = Some((path, Arc::clone(&known)));
            Ok(known)
        })
        .await
    }

    /// A page of the timeline: runs that began before this log entry.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn timeline(&self, before: u64) -> Result<Vec<TimelineRow>, SourceError> {
        self.read(move |manifest| Ok(manifest.timeline(before, TIMELINE_ROWS)?)).await
    }

    /// How each of these snapshots differs from the one before it.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn changes(&self, snapshots: Vec<(RunId, u64)>) -> Result<HashMap<RunId, (SizeAt, Changes)>, SourceError> {
        let kept = Arc::clone(&self.kept);
        self.read(move |manifest| {
            let mut found = HashMap::new();
            for (id, sequence) in snapshots {
                let Some(before) = manifest.size_before(sequence)? else { continue };
                let known = locked(&kept.changes).get(&id).copied();
                let changes = match known {
                    Some(changes) => changes,
                    None => {
                        let changes = manifest.changes_between(before.sequence, sequence)?;
                        let mut kept = locked(&kept.changes);
                        if kept.len() >= CHANGES_KEPT {
                            kept.clear();
                        }
                        kept.insert(id, changes);
                        changes
                    }
                };
                found.insert(id, (before, changes));
            }
            Ok(found)
        })
        .await
    }

    /// The folders of all snapshots, that of log entry `sequence` among them.
    ///
    /// # Errors
    /// See [`SourceError`].
    pub async fn tree(&self, sequence: u64) -> Result<Arc<FolderTree>, SourceError> {
        if let Some(tree) = self.kept_tree(sequence).await? {
            return Ok(tree);
        }
        let turn = Arc::clone(&self.planters).acquire_owned().await.map_err(|_| SourceError::Failed)?;
        // Whoever was before may have made it.
        if let Some(tree) = self.kept_tree(sequence).await? {
            return Ok(tree);
        }
        let kept = Arc::clone(&self.kept);
        self.read_within(TREE_WITHIN, move |manifest| {
            let _turn = turn;
            // Gone before the next is made: there is room for one.
            *locked(&kept.tree) = None;
            let tree = Arc::new(FolderTree::of(manifest)?);
            let (path, head, damage) = (manifest.path().to_owned(), manifest.head(), manifest.damage_state()?);
            *locked(&kept.tree) = Some(KeptTree { path, head, damage, tree: Arc::clone(&tree) });
            Ok(tree)
        })
        .await
    }

    /// The tree, if the one that is kept has this snapshot as it is.
    async fn kept_tree(&self, sequence: u64) -> Result<Option<Arc<FolderTree>>, SourceError> {
        let kept = Arc::clone(&self.kept);
        self.read(move |manifest| {
            let damage = manifest.damage_state()?;
            let kept = locked(&kept.tree);
            let has_it = |kept: &&KeptTree| {
                kept.path == manifest.path() && kept.head.epoch == manifest.head().epoch && kept.head.sequence >= sequence && kept.damage == damage
            };
            Ok(kept.as_ref().filter(has_it).map(|kept| Arc::clone(&kept.tree)))
        })
        .await
    }

    /// Whether folders are kept.
    #[cfg(test)]
    pub fn has_folders(&self) -> bool {
        locked(&self.kept.tree).is_some()
    }

    /// Makes the folders of the newest snapshot ahead, so that nobody waits for them. To be called where tokio runs.
    pub fn plant(&self) {
        let source = self.clone();
        tokio::spawn(async move {
            if let Ok(known) = source.known().await
                && let Some(latest) = &known.latest
            {
                drop(source.tree(latest.sequence).await);
            }
        });
    }
}
