//! What is looked at before anything is touched.

use super::{BackupError, OpenSource, Plan, Source};
use crate::event::{Event, Monitor};
use crate::library::layout;
use crate::library::read::look;
use crate::library::tree::Tree;
use crate::model::{FilePath, Root, RootPath};
use crate::repository::{Session, without_links};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is wrong. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// A source cannot be opened.
    #[error("cannot open {root} at `{}`", .path.display())]
    Source {
        /// Which.
        root: Root,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder that is mounted inside a source cannot be opened.
    #[error("cannot open `{}`, where `{at}` of {root} lies", .path.display())]
    Mount {
        /// Of which.
        root: Root,
        /// Where in it.
        at: RootPath,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A source has no entry at all.
    #[error("{root} at `{}` is empty", .path.display())]
    Empty {
        /// Which.
        root: Root,
        /// Where.
        path: PathBuf,
    },
    /// Markers that stood in the last snapshot are not there.
    #[error("not mounted? {} stood below `{}` at the last backup and is missing now", list(.missing), .path.display())]
    MarkersMissing {
        /// Where.
        path: PathBuf,
        /// Which.
        missing: Vec<String>,
    },
    /// An external library of the last snapshot was not given.
    #[error("the external library `{name}` is part of the backup, and was not given this time")]
    ExternalMissing {
        /// Its name.
        name: String,
    },
    /// The repository or the state folder lies in what is backed up, or the other way round.
    #[error("{what} `{}` and {root} at `{}` lie within one another", .inner.display(), .path.display())]
    Nested {
        /// Repository or state folder.
        what: &'static str,
        /// Where it is.
        inner: PathBuf,
        /// What it overlaps with.
        root: Root,
        /// Where that is.
        path: PathBuf,
    },
    /// The stage lies in what is backed up, in the repository or in the state folder, or the other way round.
    #[error("{what} `{}` and the stage `{}` lie within one another", .inner.display(), .stage.display())]
    StageNested {
        /// With what.
        what: String,
        /// Where that is.
        inner: PathBuf,
        /// The stage.
        stage: PathBuf,
    },
    /// PostgreSQL's folder is to be read while PostgreSQL runs.
    #[error("PostgreSQL's folder `{}` cannot be backed up while PostgreSQL runs", .path.display())]
    PostgresRuns {
        /// The folder.
        path: PathBuf,
    },
    /// What is left out is named by the database.
    #[error("{count} files that Immich's database names would be left out of the backup, the first is `{first}`")]
    LosesAssets {
        /// How many.
        count: u64,
        /// The first.
        first: FilePath,
    },
    /// `--accept` names a run that withheld nothing, or was accepted before.
    #[error("there is nothing to accept from run `{run}`")]
    NothingToAccept {
        /// What was given.
        run: String,
    },
}

fn list(missing: &[String]) -> String {
    missing.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(", ")
}

impl PreflightError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Source { .. } | Self::Mount { .. } => {
                "check the path, the mount, and as whom this program runs (it needs to read and enter every folder)".to_owned()
            }
            Self::Empty { .. } => "check that it is mounted; nothing was changed".to_owned(),
            Self::MarkersMissing { .. } => "mount it and run again; if the folders were taken away on purpose, say --ignore-missing-markers".to_owned(),
            Self::ExternalMissing { name } => {
                format!("give --external {name}=PATH again; if it is gone for good, say --drop-external {name}: its files are archived then, not deleted")
            }
            Self::Nested { .. } => "put the repository and the state folder outside of what is backed up".to_owned(),
            Self::StageNested { .. } => "give --stage a folder of its own; nothing was changed".to_owned(),
            Self::PostgresRuns { .. } => "leave it out, the dump is what a restore needs; or say --stop-services".to_owned(),
            Self::LosesAssets { .. } => "mend --exclude: it may leave out what no asset needs; nothing was changed".to_owned(),
            Self::NothingToAccept { .. } => "take the run's id from the message of the run that withheld its snapshot; it can be accepted once".to_owned(),
        }
    }
}

pub(super) fn check(session: &Session, plan: &Plan, monitor: &dyn Monitor) -> Result<Vec<OpenSource>, BackupError> {
    let mut sources = Vec::new();
    if let Some(stage) = plan.stage.as_ref().filter(|_| plan.downtime.is_some()) {
        refuse_nested_stage(session, plan, stage)?;
    }
    for source in &plan.sources {
        if source.root == Root::Postgres && plan.downtime.is_none() {
            return Err(PreflightError::PostgresRuns { path: source.path.clone() }.into());
        }
        let failed = |error| PreflightError::Source { root: source.root.clone(), path: source.path.clone(), source: error };
        let tree = open(source)?;
        // What Immich has in other folders leaves its own one empty.
        if source.mounts.is_empty() && std::fs::read_dir(&source.path).map_err(failed)?.next().is_none() {
            return Err(PreflightError::Empty { root: source.root.clone(), path: source.path.clone() }.into());
        }
        for path in folders(source) {
            refuse_nested(session, &source.root, path)?;
        }
        if source.root == Root::Library {
            check_markers(session, plan, &source.path, &tree, monitor)?;
        }
        sources.push(OpenSource { source: source.clone(), tree: Arc::new(tree) });
    }
    for root in session.manifest.externals()? {
        let given = plan.sources.iter().any(|source| source.root == root);
        if let Root::External(name) = root
            && !given
            && !plan.drop_externals.contains(&name)
        {
            return Err(PreflightError::ExternalMissing { name: name.to_string() }.into());
        }
    }
    check_accept(session, plan)?;
    Ok(sources)
}

fn open(source: &Source) -> Result<Tree, PreflightError> {
    Tree::open(&source.path, &source.mounts).map_err(|error| match error.at {
        None => PreflightError::Source { root: source.root.clone(), path: error.path, source: error.source },
        Some(at) => PreflightError::Mount { root: source.root.clone(), at, path: error.path, source: error.source },
    })
}

/// The folders in which a source lies and nothing else may. The configuration is copied by this program itself, to where it keeps its own.
fn folders(source: &Source) -> impl Iterator<Item = &Path> {
    let folders = std::iter::once(&source.path).chain(source.mounts.iter().map(|(_, path)| path));
    folders.map(PathBuf::as_path).filter(|_| source.root != Root::Config)
}

fn check_markers(session: &Session, plan: &Plan, library: &Path, tree: &Tree, monitor: &dyn Monitor) -> Result<(), BackupError> {
    let mut missing = Vec::new();
    for marker in layout::markers() {
        let Ok(path) = RootPath::parse(&marker) else { continue };
        let there = {
            let (folder, path) = tree.at(&path);
            look(folder, &path).is_ok_and(|found| found.is_some())
        };
        let stood = session.manifest.standing(&FilePath::library(path))?.is_some();
        if stood && !there {
            missing.push(marker);
        }
    }
    if !missing.is_empty() && !plan.ignore_missing_markers {
        return Err(PreflightError::MarkersMissing { path: library.to_owned(), missing }.into());
    }
    if !layout::FOLDERS.iter().any(|folder| library.join(folder).is_dir() || tree.is_mounted_over(folder)) {
        let message = format!("`{}` has none of the folders of an Immich media location (upload, library, thumbs, …); is it the right one?", library.display());
        monitor.emit(Event::Warned { message });
    }
    Ok(())
}

/// Refuses a repository (where it is a directory) or a state folder within what is backed up, before either is made: the library is never written to.
///
/// # Errors
/// [`PreflightError::Nested`].
pub fn refuse_overlap(plan: &Plan, repository: Option<&Path>, state: &Path) -> Result<(), BackupError> {
    for source in &plan.sources {
        for outer in folders(source).filter_map(|path| path.canonicalize().ok()) {
            let places = repository.map(|path| ("the repository", path)).into_iter().chain([("the state folder", state)]);
            for (what, inner) in places {
                if let Some(inner) = without_links(inner).filter(|inner| inner.starts_with(&outer)) {
                    return Err(PreflightError::Nested { what, inner, root: source.root.clone(), path: outer }.into());
                }
            }
        }
    }
    Ok(())
}

fn refuse_nested(session: &Session, root: &Root, path: &Path) -> Result<(), PreflightError> {
    match session.overlapping(path) {
        Some((what, inner)) => Err(PreflightError::Nested { what, inner, root: root.clone(), path: path.to_owned() }),
        None => Ok(()),
    }
}

/// A stage is written to and removed: it must be nothing else, also where the same folder is mounted at two places.
fn refuse_nested_stage(session: &Session, plan: &Plan, stage: &Path) -> Result<(), PreflightError> {
    let nested = |what: String, inner: PathBuf| PreflightError::StageNested { what, inner, stage: stage.to_owned() };
    if let Some((what, inner)) = session.overlapping(stage) {
        return Err(nested(what.to_owned(), inner));
    }
    for source in &plan.sources {
        for folder in std::iter::once(&source.path).chain(source.mounts.iter().map(|(_, path)| path)) {
            if lies_in(stage, folder) || lies_in(folder, stage) {
                return Err(nested(source.root.to_string(), folder.clone()));
            }
        }
    }
    Ok(())
}

/// Whether `inner` is `outer` or lies below it, by what they are and not by what they are called.
fn lies_in(inner: &Path, outer: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|stat| (stat.dev(), stat.ino()));
    let (Some(inner), Some(outer)) = (without_links(inner), identity(outer)) else { return false };
    inner.ancestors().any(|above| identity(above) == Some(outer))
}

/// Only the newest run that ended withheld can be accepted, and only until a snapshot came after it.
fn check_accept(session: &Session, plan: &Plan) -> Result<(), BackupError> {
    let Some(accepted) = plan.accept else { return Ok(()) };
    for run in session.manifest.runs(RUNS_LOOKED_AT)? {
        match run.outcome.as_deref() {
            Some("snapshot") => break,
            Some("withheld") if run.id == accepted => return Ok(()),
            Some("withheld") => break,
            _ => {}
        }
    }
    Err(PreflightError::NothingToAccept { run: accepted.to_string() }.into())
}

/// Runs that died or were interrupted may lie between the withheld one and now.
pub(super) const RUNS_LOOKED_AT: u32 = 1_000;
