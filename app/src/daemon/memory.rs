//! `schedule.json` of the state folder: what was done, from one start of the daemon to the next. Losing it costs at most one run too many.

use super::feed::LastRun;
use crate::schedule::planner::{Job, Memory};
use crate::standing::Standing;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// The file's name, below the base of the state folders.
pub const NAME: &str = "schedule.json";

/// Written at the beginning; a file with another number is not understood.
const VERSION: u32 = 1;

/// A file that was written has a few hundred bytes for each job.
const SIZE_MAX: u64 = 1 << 20;

/// A snapshot that was committed by a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// When its run began: what the library got since is not in it.
    pub at: Timestamp,
}

/// All that is remembered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    version: u32,
    /// When the daemon first ran here.
    pub since: Timestamp,
    /// Of each job's schedule.
    #[serde(default)]
    pub schedules: BTreeMap<Job, Memory>,
    /// Each job's last run.
    #[serde(default)]
    pub last: BTreeMap<Job, LastRun>,
    /// The newest snapshot that a job committed.
    #[serde(default)]
    pub snapshot: Option<Snapshot>,
    /// How the repository stood when a job last told.
    #[serde(default)]
    pub standing: Option<Standing>,
}

impl Remembered {
    /// Nothing yet.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { version: VERSION, since: now, schedules: BTreeMap::new(), last: BTreeMap::new(), snapshot: None, standing: None }
    }
}

/// What was found of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This.
    Kept(Box<Remembered>),
    /// There is none.
    Nothing,
    /// It cannot be read or understood, for this reason.
    Damaged(String),
}

/// The file.
#[derive(Debug, Clone)]
pub struct MemoryFile {
    path: PathBuf,
}

impl MemoryFile {
    /// The file below this base of state folders.
    #[must_use]
    pub fn below(base: &Path) -> Self {
        Self { path: base.join(NAME) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads it.
    #[must_use]
    pub fn read(&self) -> Found {
        let mut text = String::new();
        match File::open(&self.path).and_then(|file| file.take(SIZE_MAX).read_to_string(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Damaged(error.to_string()),
        }
        match serde_json::from_str::<Remembered>(&text) {
            Ok(remembered) if remembered.version == VERSION => Found::Kept(Box::new(remembered)),
            Ok(remembered) => Found::Damaged(format!("it has version {}, and this program knows {VERSION}", remembered.version)),
            Err(error) => Found::Damaged(error.to_string()),
        }
    }

    /// Replaces it: whoever reads it finds the old or the new, also after a loss of power.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, remembered: &Remembered) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        let mut file = tempfile::Builder::new().prefix(".schedule-").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(remembered)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let file = MemoryFile::below(folder.path());
        assert_eq!(file.read(), Found::Nothing);
        let now = "2026-05-01T03:00:00Z".parse().unwrap();
        let mut remembered = Remembered::new(now);
        remembered.schedules.insert(Job::Backup, Memory::new("0 3 * * * UTC", now));
        remembered.snapshot = Some(Snapshot { id: "5f".into(), at: now });
        file.write(&remembered).unwrap();
        assert_eq!(file.read(), Found::Kept(Box::new(remembered.clone())));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside it");
        let whole = std::fs::read_to_string(file.path()).unwrap();
        let damaged =
            ["", "{", "[]", "\u{0}\u{0}\u{0}", &whole[..whole.len() / 2], &whole.replace("2026-05-01T03:00:00Z", "soon"), &whole.replacen('1', "7", 1)];
        for text in damaged {
            std::fs::write(file.path(), text).unwrap();
            assert!(matches!(file.read(), Found::Damaged(_)), "{text}");
        }
        std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
        assert!(matches!(file.read(), Found::Damaged(_)));
        file.write(&remembered).unwrap();
        assert_eq!(file.read(), Found::Kept(Box::new(remembered)));
    }
}
