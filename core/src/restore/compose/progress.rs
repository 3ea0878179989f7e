//! How far a restore into a Compose project has come, on disk: so that the same command goes on from there, also after the program was killed.

use super::IntoProjectError;
use crate::model::{RunId, encode_segment};
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The format that is written, and the only one that is gone on from.
const FORMAT: u32 = 1;

/// One is some hundred bytes.
const BYTES_MAX: u64 = 64 << 10;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The load of the dump has begun; whether it was committed, only the database knows.
    Loading,
    /// The database is loaded.
    Loaded,
    /// The files are placed too: Immich may run.
    Placed,
}

/// How far a restore has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    format: u32,
    /// The snapshot.
    pub snapshot: RunId,
    /// The database: see [`super::identity`].
    pub database: String,
    /// What was done.
    pub step: Step,
}

fn path(state_base: &Path, project: &str) -> PathBuf {
    // A project's name is a label of a container, so it may be anything.
    let name = encode_segment(project.as_bytes()).replace('/', "%2F");
    state_base.join("restore").join(format!("into-{name}.json"))
}

impl Progress {
    /// That `step` of `snapshot` was done.
    #[must_use]
    pub fn new(snapshot: RunId, database: String, step: Step) -> Self {
        Self { format: FORMAT, snapshot, database, step }
    }

    /// What is known of a restore into `project`. One that is damaged or of another program is as good as none: the restore begins anew.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(state_base: &Path, project: &str) -> Result<Option<Self>, IntoProjectError> {
        let path = path(state_base, project);
        match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Ok(found) if found.len() > BYTES_MAX => return Ok(None),
            _ => {}
        }
        let bytes = fs::read(&path).map_err(|source| IntoProjectError::Progress { action: "read", path, source })?;
        Ok(serde_json::from_slice(&bytes).ok().filter(|progress: &Self| progress.format == FORMAT))
    }

    /// Writes it down; it is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, state_base: &Path, project: &str) -> Result<(), IntoProjectError> {
        let path = path(state_base, project);
        let folder = path.parent().unwrap_or(state_base).to_owned();
        let temporary = path.with_extension("new");
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&folder)?.sync_all()
        };
        write().map_err(|source| IntoProjectError::Progress { action: "write", path: path.clone(), source })
    }

    /// Forgets it: the restore is done.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(state_base: &Path, project: &str) -> Result<(), IntoProjectError> {
        let path = path(state_base, project);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(IntoProjectError::Progress { action: "remove", path, source }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_remembered_and_forgotten() {
        let base = tempfile::tempdir().unwrap();
        let of = |project| Progress::read(base.path(), project).unwrap();
        assert_eq!(of("immich"), None);
        let done = Progress::new(RunId::random(), "7/16384".to_owned(), Step::Loaded);
        done.write(base.path(), "immich").unwrap();
        done.write(base.path(), "../../etc").unwrap();
        assert_eq!((of("immich"), of("../../etc"), of("other")), (Some(done.clone()), Some(done), None));
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "a project's name leads nowhere else");
        let file = base.path().join("restore/into-immich.json");
        let text = fs::read_to_string(&file).unwrap();
        let padded = |bytes: u64| format!("{text}{}", " ".repeat(usize::try_from(bytes).unwrap() - text.len()));
        for other in ["", "{", &text.replace("\"format\": 1", "\"format\": 2"), &padded(BYTES_MAX + 1)] {
            fs::write(&file, other).unwrap();
            assert_eq!(of("immich"), None, "{other:.20}");
        }
        fs::write(&file, padded(BYTES_MAX)).unwrap();
        assert!(of("immich").is_some());
        Progress::remove(base.path(), "immich").unwrap();
        Progress::remove(base.path(), "immich").unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn what_cannot_be_looked_at_or_removed_is_not_taken_for_nothing() {
        let base = tempfile::tempdir().unwrap();
        let (folder, blocked) = (base.path().join("restore/into-immich.json"), base.path().join("file"));
        fs::write(&blocked, "").unwrap();
        assert!(matches!(Progress::read(&blocked, "immich"), Err(IntoProjectError::Progress { action: "read", .. })));
        fs::create_dir_all(&folder).unwrap();
        assert!(matches!(Progress::remove(base.path(), "immich"), Err(IntoProjectError::Progress { action: "remove", path, .. }) if path == folder));
        assert!(folder.is_dir());
    }
}
