//! What ran before it was stopped, on disk: written before the first container is stopped, removed when everything in it is up again.
//!
//! A file for each project, `<folder>/<project>.json`, replaced as a whole: a crash leaves the older or the newer one. Beside it `<project>.lock`,
//! held by whoever is at it. The kernel frees it with its holder, so nothing has to be guessed from a process's number.

use super::super::project::{Dependency, Health, State};
use crate::model::encode_segment;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The format that is written, and the only one that is read.
const FORMAT: u32 = 1;

/// A journal is some kilobytes; one that is larger is none.
const BYTES_MAX: u64 = 4 << 20;

/// What is shown of who holds a lock.
const WHO_BYTES_MAX: u64 = 200;

/// Where the kernel says which start of the machine this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// How far it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// All but the database are being stopped.
    Stopping,
    /// The database alone is up.
    DatabaseAlone,
    /// The database is being stopped too.
    StoppingDatabase,
    /// Nothing is up.
    AllStopped,
    /// All that was up is being started.
    Starting,
}

impl Phase {
    /// In words.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Stopping => "being stopped",
            Self::DatabaseAlone => "stopped, but for the database",
            Self::StoppingDatabase => "the database is being stopped",
            Self::AllStopped => "stopped",
            Self::Starting => "being started again",
        }
    }
}

/// Who stopped them, and so: whether anybody but the user may start them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// A run. When it is dead, its services have to be up again.
    Run,
    /// The user, by `services stop`: they stay down until the user says otherwise.
    Hand,
}

/// A container as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The engine's name for it.
    pub id: String,
    /// People's.
    pub name: String,
    /// Which of its service.
    pub number: u32,
    /// What it did.
    pub state: State,
    /// What its healthcheck said.
    pub health: Option<Health>,
    /// Whether it has a healthcheck.
    pub has_healthcheck: bool,
    /// How long it may take to stop, in seconds, where that is said.
    pub stop_timeout_s: Option<u64>,
    /// Whether that was said by the Compose file alone, and the engine has to be told.
    pub tell_timeout: bool,
    /// When it had been started.
    pub started_at: Option<Timestamp>,
    /// Never to be stopped: this program runs in it, or reaches the engine through it.
    pub spared: bool,
}

impl Kept {
    /// Whether it is stopped, and started again. One that is frozen writes nothing, and whoever froze it will want it so.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        !self.spared && matches!(self.state, State::Running | State::Restarting)
    }
}

/// A service as it was before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name in the project.
    pub name: String,
    /// Whether it is Immich's database.
    pub is_database: bool,
    /// What it waits for.
    pub depends_on: Vec<Dependency>,
    /// Whether the engine may have been asked to stop it.
    pub asked: bool,
    /// Its containers, whatever they did.
    pub containers: Vec<Kept>,
}

impl Service {
    /// Its containers that are stopped, and started again.
    pub fn taken(&self) -> impl Iterator<Item = &Kept> {
        self.containers.iter().filter(|container| container.is_taken())
    }
}

/// What ran, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The format's number.
    pub format: u32,
    /// The Compose project.
    pub project: String,
    /// The engine's address.
    pub engine: String,
    /// Who stopped it.
    pub by: By,
    /// The run, where it is known.
    pub run: Option<String>,
    /// When this was written first: just before the first stop.
    pub begun_at: Timestamp,
    /// The start of the machine that this is of.
    pub boot_id: String,
    /// How far it has come.
    pub phase: Phase,
    /// The services: each after those that it waits for.
    pub services: Vec<Service>,
}

impl Journal {
    /// A journal of nothing yet, for this start of the machine.
    #[must_use]
    pub fn new(project: &str, engine: &str, by: By, services: Vec<Service>) -> Self {
        Self {
            format: FORMAT,
            project: project.to_owned(),
            engine: engine.to_owned(),
            by,
            run: None,
            begun_at: Timestamp::now(),
            boot_id: boot_id(),
            phase: Phase::Stopping,
            services,
        }
    }

    /// Whether the machine was started anew since.
    #[must_use]
    pub fn is_of_an_older_boot(&self) -> bool {
        self.boot_id != boot_id()
    }
}

/// Empty where the kernel does not say.
fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refuses.
    #[error("cannot {action} `{}`", .path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is there, and not as it was written.
    #[error("the journal of stopped services at `{}` is damaged", .path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// How.
        source: serde_json::Error,
    },
    /// It is there, and says what this program does not understand.
    #[error("the journal of stopped services at `{}` {what}", .path.display())]
    Foreign {
        /// Where.
        path: PathBuf,
        /// What is strange.
        what: String,
    },
    /// Somebody is at it.
    #[error("the services of `{project}` are in the hands of another process: {who}")]
    Busy {
        /// Whose services.
        project: String,
        /// What that process says of itself.
        who: String,
    },
}

impl JournalError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some("run as the user who stopped them, or give --state-dir (IMMICH_BACKUP_STATE_DIR) a folder that this user may write to".to_owned())
                }
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("make room there, or give --state-dir another folder".to_owned()),
                _ => None,
            },
            Self::Damaged { path, .. } | Self::Foreign { path, .. } => {
                Some(format!("nobody knows any more what ran: start what is down with `docker compose up -d`, then remove `{}` and run again", path.display()))
            }
            Self::Busy { .. } => Some("wait for it to end; if it hangs, end it: what it stopped is then started again by itself".to_owned()),
        }
    }
}

/// The one who is at a project's services. Freed when dropped, and when the process dies in any way.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
    folder: PathBuf,
    project: String,
}

/// The name of a project's files. A project's name is a label of a container, so it may be anything.
fn name(project: &str) -> String {
    // `.` and `..` come out encoded; a leading dot would hide the file, and `.new` is what is being written.
    let encoded = encode_segment(project.as_bytes()).replace('/', "%2F");
    encoded.strip_prefix('.').map_or_else(|| encoded.clone(), |rest| format!("%2E{rest}"))
}

fn journal_path(folder: &Path, project: &str) -> PathBuf {
    folder.join(format!("{}.json", name(project)))
}

fn lock_path(folder: &Path, project: &str) -> PathBuf {
    folder.join(format!("{}.lock", name(project)))
}

/// Where the process that watches over a run says what it does.
#[must_use]
pub fn watcher_log(folder: &Path, project: &str) -> PathBuf {
    folder.join(format!("{}.watcher.log", name(project)))
}

/// Makes the folder of journals.
///
/// # Errors
/// It cannot be made.
pub fn make_folder(folder: &Path) -> Result<(), JournalError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|source| JournalError::Io { action: "make", path: folder.to_owned(), source })
}

fn lock_file(folder: &Path, project: &str) -> Result<(PathBuf, File), JournalError> {
    make_folder(folder)?;
    let path = lock_path(folder, project);
    let opened = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
    let file = opened.map_err(|source| JournalError::Io { action: "open", path: path.clone(), source })?;
    Ok((path, file))
}

impl Hold {
    /// Takes a project's services in hand; `who` is said to others meanwhile.
    ///
    /// # Errors
    /// Somebody has them ([`JournalError::Busy`]), or the folder cannot be written to.
    pub fn take(folder: &Path, project: &str, who: &str) -> Result<Self, JournalError> {
        let (path, mut file) = lock_file(folder, project)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::Busy { project: project.to_owned(), who: said(&mut file) }),
            Err(TryLockError::Error(source)) => return Err(JournalError::Io { action: "lock", path, source }),
        }
        Self::made(file, folder, project, who)
    }

    /// As [`Hold::take`], but waits until nobody has them. Blocks the thread for as long as that takes.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn wait(folder: &Path, project: &str, who: &str) -> Result<Self, JournalError> {
        let (path, file) = lock_file(folder, project)?;
        file.lock().map_err(|source| JournalError::Io { action: "lock", path, source })?;
        Self::made(file, folder, project, who)
    }

    fn made(mut lock: File, folder: &Path, project: &str, who: &str) -> Result<Self, JournalError> {
        // For people only: where it cannot be written, the lock holds all the same.
        drop(lock.set_len(0).and_then(|()| lock.write_all(format!("{who}, since {}\n", Timestamp::now()).as_bytes())));
        Ok(Self { _lock: lock, folder: folder.to_owned(), project: project.to_owned() })
    }

    /// Whose services.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.project
    }

    /// Where the journal is, if there is one.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        journal_path(&self.folder, &self.project)
    }

    /// The journal, if there is one.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn read(&self) -> Result<Option<Journal>, JournalError> {
        read(&self.folder, &self.project)
    }

    /// Puts `journal` in the place of the one that is there. It is on the disk when this returns.
    ///
    /// # Errors
    /// It cannot be written; the one that was there is still there.
    pub fn write(&self, journal: &Journal) -> Result<(), JournalError> {
        let path = self.path();
        let temporary = self.folder.join(format!(".{}.new", name(&self.project)));
        let write = || {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(journal)?)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| JournalError::Io { action: "write", path: path.clone(), source })
    }

    /// Removes the journal.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(&self) -> Result<(), JournalError> {
        let path = self.path();
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(JournalError::Io { action: "remove", path, source }),
            _ => {
                // A journal that comes back after a loss of power says what is so: everything is up.
                drop(File::open(&self.folder).and_then(|folder| folder.sync_all()));
                Ok(())
            }
        }
    }
}

/// What the holder of a lock wrote into its file, as one short line.
fn said(file: &mut File) -> String {
    let mut text = Vec::new();
    drop(file.take(WHO_BYTES_MAX).read_to_end(&mut text));
    let line: String = String::from_utf8_lossy(&text).chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    if line.trim().is_empty() { "it has not said who it is".to_owned() } else { line.trim().to_owned() }
}

/// Who holds a project's services, if anybody does.
///
/// # Errors
/// That cannot be found out.
pub fn holder(folder: &Path, project: &str) -> Result<Option<String>, JournalError> {
    let path = lock_path(folder, project);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(JournalError::Io { action: "open", path, source }),
    };
    // Shared, so that two who look do not take each other for a holder; it is free again at once.
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(said(&mut file))),
        Err(TryLockError::Error(source)) => Err(JournalError::Io { action: "lock", path, source }),
    }
}

/// The journal of a project, if there is one; whoever is at it may change it at any time.
///
/// # Errors
/// It cannot be read or understood.
pub fn read(folder: &Path, project: &str) -> Result<Option<Journal>, JournalError> {
    let journal = read_file(&journal_path(folder, project))?;
    match journal {
        Some(journal) if journal.project != project => {
            let what = format!("is of the project `{}`", journal.project);
            Err(JournalError::Foreign { path: journal_path(folder, project), what })
        }
        journal => Ok(journal),
    }
}

fn read_file(path: &Path) -> Result<Option<Journal>, JournalError> {
    let failed = |source| JournalError::Io { action: "read", path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    let damaged = |source| JournalError::Damaged { path: path.to_owned(), source };
    // The number first: what another format holds is not known.
    #[derive(Deserialize)]
    struct Numbered {
        format: u32,
    }
    let numbered: Numbered = serde_json::from_slice(&bytes).map_err(damaged)?;
    if numbered.format != FORMAT {
        let what = format!("has format {}, and this program knows format {FORMAT} only", numbered.format);
        return Err(JournalError::Foreign { path: path.to_owned(), what });
    }
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// A journal's file, and what it says.
pub type Filed = (PathBuf, Result<Journal, JournalError>);

/// All journals in the folder, each with what it says; in the order of their names.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn all(folder: &Path) -> Result<Vec<Filed>, JournalError> {
    let failed = |source| JournalError::Io { action: "read", path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let journal = read_file(&path).transpose()?;
        let journal = journal.and_then(|journal| match journal_path(folder, &journal.project) == path {
            true => Ok(journal),
            false => Err(JournalError::Foreign { path: path.clone(), what: format!("is of the project `{}`", journal.project) }),
        });
        Some((path, journal))
    };
    Ok(paths.into_iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn a_journal_comes_back_as_it_was_written_and_nobody_else_may_read_it() {
        let folder = folder();
        let base = folder.path().join("services");
        let hold = Hold::take(&base, "immich", "a test").unwrap();
        assert_eq!(hold.read().unwrap(), None);
        let mut journal = Journal::new("immich", "unix:///x", By::Run, Vec::new());
        hold.write(&journal).unwrap();
        journal.phase = Phase::AllStopped;
        hold.write(&journal).unwrap();
        assert_eq!(hold.read().unwrap(), Some(journal.clone()));
        assert!(!journal.is_of_an_older_boot());
        assert_eq!(fs::metadata(hold.path()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(all(&base).unwrap().len(), 1);
        hold.remove().unwrap();
        hold.remove().unwrap();
        assert!(hold.read().unwrap().is_none() && all(&base).unwrap().is_empty());
    }

    #[test]
    fn one_holds_it_and_others_are_told_who() {
        let folder = folder();
        assert_eq!(holder(folder.path(), "immich").unwrap(), None);
        let hold = Hold::take(folder.path(), "immich", "a backup, process 7").unwrap();
        let error = Hold::take(folder.path(), "immich", "another").unwrap_err();
        assert!(error.to_string().contains("a backup, process 7, since "), "{error}");
        assert!(holder(folder.path(), "immich").unwrap().unwrap().contains("process 7"));
        // Another project is nobody's concern.
        drop(Hold::take(folder.path(), "other", "another").unwrap());
        let (path, waits) = (folder.path().to_owned(), std::time::Instant::now());
        let waiting = std::thread::spawn(move || Hold::wait(&path, "immich", "a watcher").map(|_| waits.elapsed()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(hold);
        assert!(waiting.join().unwrap().unwrap().as_millis() >= 50);
        assert_eq!(holder(folder.path(), "immich").unwrap(), None);
    }

    #[test]
    fn a_damaged_a_newer_and_a_misplaced_journal_are_named_with_the_remedy() {
        let folder = folder();
        let hold = Hold::take(folder.path(), "immich", "a test").unwrap();
        for (text, says) in [
            ("", "is damaged"),
            ("{\"format\":1,\"project\":\"immich\"", "is damaged"),
            ("{\"format\":1,\"project\":\"immich\"}", "is damaged"),
            ("{\"format\":2}", "has format 2"),
        ] {
            fs::write(hold.path(), text).unwrap();
            let error = hold.read().unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            let hint = error.hint().unwrap();
            assert!(hint.contains("docker compose up -d") && hint.contains(hold.path().to_str().unwrap()), "{hint}");
            assert!(all(folder.path()).unwrap()[0].1.is_err());
        }
        fs::write(hold.path(), serde_json::to_vec(&Journal::new("other", "", By::Hand, Vec::new())).unwrap()).unwrap();
        assert!(hold.read().unwrap_err().to_string().contains("is of the project `other`"));
        assert!(all(folder.path()).unwrap()[0].1.is_err());
    }

    #[test]
    fn what_is_half_written_is_no_journal() {
        let folder = folder();
        let hold = Hold::take(folder.path(), "immich", "a test").unwrap();
        fs::write(folder.path().join(".immich.new"), "{\"form").unwrap();
        assert!(hold.read().unwrap().is_none() && all(folder.path()).unwrap().is_empty());
        hold.write(&Journal::new("immich", "", By::Run, Vec::new())).unwrap();
        assert!(hold.read().unwrap().is_some());
    }

    proptest! {
        #[test]
        fn whatever_a_project_is_called_its_files_stay_in_the_folder_and_are_its_own(one in ".{0,20}", other in ".{0,20}") {
            for name in [name(&one), name("."), name(".."), name("a/../../b"), name("\0")] {
                prop_assert!(!name.contains('/') && !name.starts_with('.') && !name.contains('\0'));
            }
            prop_assert_eq!(name(&one) == name(&other), one == other);
        }
    }
}
