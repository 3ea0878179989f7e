//! A PostgreSQL server to throw away, made from the programs of this machine.
//!
//! It listens on a socket in a folder that its user alone may enter, and nowhere else; it keeps nothing safe from power loss. Whoever may enter the folder
//! is let in.
//!
//! No server outlives us, however we end: a shell watches the pipe that we hold, and ends the server when the pipe is closed, which the kernel sees
//! to. Should the shell be killed as well, the next one that starts finds the folder, whose lock nobody holds, and ends what runs there.

mod sweep;

use super::client::{Client, Version};
use super::connection::Connection;
use super::error::DatabaseError;
use crate::task::blocking;
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, ChildStdin, Command};

/// How the folders of these servers are called, before a random end.
const FOLDER: &str = "immich-backup-drill-";

/// A socket's path has room for 107 bytes, and `/.s.PGSQL.5432` and the random end take 21 of them.
const PARENT_BYTES_MAX: usize = 60;

/// How long `initdb` may take.
const INIT_WAIT: Duration = Duration::from_secs(120);
/// How long a server may take to begin, and to end.
const START_WAIT: Duration = Duration::from_secs(60);
const STOP_WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// The user `nobody`, as Linux has it.
const NOBODY: (u32, u32) = (65_534, 65_534);

const DATABASE: &str = "drill";
const USER: &str = "drill";
/// Who owns the database, and loads the dump.
const OWNER: &str = "immich";
const PORT: u16 = 5_432;

/// Runs the server `$1` on the data in `$2` for as long as stdin stays open, then removes `$3`. The rest are the server's arguments.
const WATCH: &str = r#"
program=$1 data=$2 folder=$3
shift 3
exec 3<&0
"$program" -D "$data" "$@" </dev/null 3<&- &
server=$!
( while read -r _ <&3; do :; done; kill -QUIT "$server" ) 2>/dev/null &
watch=$!
wait "$server"
kill "$watch" 2>/dev/null
rm -rf -- "$folder"
"#;

/// Why there is no such server.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No programs for it.
    #[error("there is no PostgreSQL server on this machine (looked for initdb and postgres in {folders})")]
    NoServer {
        /// Where was looked.
        folders: String,
    },
    /// The folder for it cannot be made.
    #[error("cannot {action} `{}` for a PostgreSQL server to throw away", .path.display())]
    Folder {
        /// What was being done.
        action: &'static str,
        /// Which folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its path is too long for a socket.
    #[error("the path `{}` is too long for a socket", .path.display())]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A program cannot be run.
    #[error("cannot run `{}`", .program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("`{}` failed: {said}", .program.display())]
    Failed {
        /// Which.
        program: PathBuf,
        /// The end of what it said.
        said: String,
    },
    /// The server does not answer as it should.
    #[error("the PostgreSQL server to throw away does not answer")]
    Database(#[from] DatabaseError),
}

impl ClusterError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoServer { .. } => Some(
                "install PostgreSQL's server with pgvector (Debian and Ubuntu: postgresql and postgresql-N-pgvector; it need not run), or give the URL of an \
                 empty database to load into",
            ),
            Self::Folder { source, .. } if source.kind() == io::ErrorKind::StorageFull => Some("make room there, or name another folder"),
            Self::Folder { .. } | Self::TooLong { .. } => Some("name a folder with a short path in which this user may make others, e.g. /tmp"),
            Self::Failed { .. } => Some("look whether there is room, and whether the server's user may read its programs and enter the folder"),
            Self::Start { .. } => None,
            Self::Database(_) => None,
        }
    }
}

/// What the server is to be like.
#[derive(Debug, Clone, Default)]
pub struct ClusterPlan {
    /// Where PostgreSQL's programs are looked for: the folders of several versions, in any order.
    pub folders: Vec<PathBuf>,
    /// Where a folder for its data is made.
    pub parent: PathBuf,
    /// User and group to run it, where this program runs as root; `nobody` where absent.
    pub owner: Option<(u32, u32)>,
    /// The major version of the server that the dump was taken from.
    pub major: Option<u32>,
    /// Extensions that the dump makes.
    pub extensions: BTreeSet<String>,
}

/// The programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Programs {
    folder: PathBuf,
    version: Version,
    /// How many of the extensions that are wanted it does not have, as far as can be seen without running it.
    lacks: usize,
    /// Extensions that have to be loaded when it starts.
    preload: Vec<&'static str>,
}

/// A running server. Dropped, it ends, and its folder goes.
#[derive(Debug)]
pub struct Cluster {
    client: Client,
    version: Version,
    folder: PathBuf,
    /// The pipe that the shell watches. Closed when dropped.
    pipe: Option<ChildStdin>,
    shell: Child,
    /// Says that somebody uses the folder.
    _lock: File,
}

impl Cluster {
    /// Starts one: of the newest version that has all extensions that are wanted and is not older than the dump's server; else of what there is.
    ///
    /// # Errors
    /// See [`ClusterError`]; nothing is left then.
    pub async fn start(plan: &ClusterPlan) -> Result<Self, ClusterError> {
        let programs = choose(plan).await?;
        if plan.parent.as_os_str().len() > PARENT_BYTES_MAX {
            return Err(ClusterError::TooLong { path: plan.parent.clone() });
        }
        let parent = plan.parent.clone();
        blocking(move || sweep::sweep(&parent, FOLDER)).await;
        let owner = rustix::process::geteuid().is_root().then(|| plan.owner.unwrap_or(NOBODY));
        let (folder, lock) = make_folder(&plan.parent, owner)?;
        let started = async {
            initialise(&programs, folder.path(), owner).await?;
            serve(&programs, folder.path(), owner).await
        };
        let (shell, pipe) = started.await?;
        // From here on the shell removes it.
        let folder = folder.keep();
        let connection = Connection::new().with_host(folder.to_string_lossy()).with_port(PORT).with_user(USER).with_database(DATABASE);
        let client = Client::local(connection, vec![programs.folder.clone()]);
        let mut cluster = Self { client, version: programs.version, folder, pipe: Some(pipe), shell, _lock: lock };
        cluster.wait_until_ready(&programs.folder.join("postgres")).await?;
        match cluster.make_database(&plan.extensions).await {
            Ok(()) => {
                let owner = Connection::new().with_host(cluster.folder.to_string_lossy()).with_port(PORT).with_user(OWNER).with_database(DATABASE);
                cluster.client = Client::local(owner, vec![programs.folder.clone()]);
                Ok(cluster)
            }
            Err(error) => {
                cluster.stop().await;
                Err(error.into())
            }
        }
    }

    /// A database whose owner is no superuser: a dump brings functions along, which must not be able to run programs or read files here. The extensions
    /// that it needs, and that are there, take a superuser.
    async fn make_database(&self, extensions: &BTreeSet<String>) -> Result<(), DatabaseError> {
        let server = self.client.with_database("postgres");
        server.query(&format!("CREATE ROLE {OWNER} LOGIN;")).await?;
        server.query(&format!("CREATE DATABASE {DATABASE} OWNER {OWNER} TEMPLATE template0 ENCODING 'UTF8';")).await?;
        let available = self.client.server().await?.extensions_available;
        for extension in extensions.intersection(&available) {
            self.client.query(&format!("CREATE EXTENSION IF NOT EXISTS \"{}\" SCHEMA public CASCADE;", extension.replace('"', "\"\""))).await?;
        }
        Ok(())
    }

    /// Its one database, which is empty at first.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where its data are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    async fn wait_until_ready(&mut self, program: &Path) -> Result<(), ClusterError> {
        let failed = |said: String| ClusterError::Failed { program: program.to_owned(), said };
        let deadline = tokio::time::Instant::now() + START_WAIT;
        loop {
            // The last line of its file says so, once it is.
            let state = std::fs::read_to_string(self.folder.join("data/postmaster.pid")).unwrap_or_default();
            if state.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(());
            }
            if let Ok(Some(_)) = self.shell.try_wait() {
                return Err(failed("it ended at once".to_owned()));
            }
            if tokio::time::Instant::now() > deadline {
                return Err(failed(tail(&self.folder.join("log"))));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Ends it and waits until it has.
    pub async fn stop(mut self) {
        self.pipe = None;
        tokio::time::timeout(STOP_WAIT, self.shell.wait()).await.ok();
        let folder = self.folder.clone();
        // The shell has done so already, unless it was killed.
        blocking(move || std::fs::remove_dir_all(folder).ok()).await;
    }
}

/// The end of what a server said.
fn tail(path: &Path) -> String {
    const SAID_BYTES_MAX: usize = 1_000;
    let said = std::fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(said.get(said.len().saturating_sub(SAID_BYTES_MAX)..).unwrap_or_default()).trim().to_owned()
}

/// Where this version keeps the descriptions of its extensions: relative to its programs as it was built, or where Debian puts them.
fn extension_folders(programs: &Path, major: u32) -> [PathBuf; 4] {
    [
        programs.join("../share/extension"),
        programs.join("../share/postgresql/extension"),
        PathBuf::from(format!("/usr/share/postgresql/{major}/extension")),
        PathBuf::from(format!("/usr/share/postgresql{major}/extension")),
    ]
}

async fn choose(plan: &ClusterPlan) -> Result<Programs, ClusterError> {
    let mut found: Vec<Programs> = Vec::new();
    for folder in &plan.folders {
        let there = ["initdb", "postgres", "psql"].iter().all(|program| folder.join(program).is_file());
        let Some(version) = (if there { version_of(&folder.join("postgres")).await } else { None }) else { continue };
        let has = |extension: &str| extension_folders(folder, version.0).iter().any(|folder| folder.join(format!("{extension}.control")).is_file());
        let lacks = plan.extensions.iter().filter(|extension| !has(extension)).count();
        let preload = ["vchord", "vectors"].into_iter().filter(|extension| plan.extensions.contains(*extension) && has(extension)).collect();
        found.push(Programs { folder: folder.clone(), version, lacks, preload });
    }
    let best = found.into_iter().min_by_key(|programs| preference(programs, plan.major));
    best.ok_or_else(|| ClusterError::NoServer { folders: plan.folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ") })
}

/// The smaller, the better.
fn preference(programs: &Programs, major: Option<u32>) -> (usize, bool, std::cmp::Reverse<Version>) {
    (programs.lacks, major.is_some_and(|major| programs.version.0 < major), std::cmp::Reverse(programs.version))
}

async fn version_of(program: &Path) -> Option<Version> {
    let said = Command::new(program).arg("--version").env_clear().env("LC_ALL", "C").stdin(Stdio::null()).output().await.ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let (_, numbers) = said.split_once("(PostgreSQL) ")?;
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

fn make_folder(parent: &Path, owner: Option<(u32, u32)>) -> Result<(tempfile::TempDir, File), ClusterError> {
    let failed = |action| move |source| ClusterError::Folder { action, path: parent.to_owned(), source };
    let folder = tempfile::Builder::new().prefix(FOLDER).rand_bytes(6).tempdir_in(parent).map_err(failed("make a folder in"))?;
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o700)).map_err(failed("make a folder in"))?;
    let lock = File::create(folder.path().join(sweep::LOCK)).map_err(failed("make a file below"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| failed("lock a file below")(error.into()))?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(folder.path(), Some(user), Some(group)).map_err(failed("give away a folder in"))?;
    }
    Ok((folder, lock))
}

/// A command of the server's user, with nothing of our environment, in a group of its own: a Ctrl-C at the terminal reaches us alone.
fn command(program: &Path, folder: &Path, owner: Option<(u32, u32)>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("LC_ALL", "C").env("TZ", "UTC").current_dir(folder).process_group(0);
    if let Some((user, group)) = owner {
        command.uid(user).gid(group);
    }
    command
}

async fn initialise(programs: &Programs, folder: &Path, owner: Option<(u32, u32)>) -> Result<(), ClusterError> {
    let program = programs.folder.join("initdb");
    let mut initdb = command(&program, folder, owner);
    initdb.arg("--pgdata").arg(folder.join("data"));
    initdb.args(["--username", USER, "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"]);
    initdb.stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(INIT_WAIT, initdb.output()).await;
    let ended =
        ended.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten().map_err(|source| ClusterError::Start { program: program.clone(), source })?;
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().chars().take(1_000).collect();
    Err(ClusterError::Failed { program, said })
}

async fn serve(programs: &Programs, folder: &Path, owner: Option<(u32, u32)>) -> Result<(Child, ChildStdin), ClusterError> {
    let shell = Path::new("/bin/sh");
    let failed = |source| ClusterError::Start { program: shell.to_owned(), source };
    let log = File::create(folder.join("log")).map_err(failed)?;
    let mut command = command(shell, folder, owner);
    command.args(["-c", WATCH, "sh"]).arg(programs.folder.join("postgres")).arg(folder.join("data")).arg(folder);
    let settings = [
        ("listen_addresses", String::new()),
        ("port", PORT.to_string()),
        ("unix_socket_directories", folder.to_string_lossy().into_owned()),
        ("unix_socket_permissions", "0700".to_owned()),
        // What is lost when the machine fails is of no worth.
        ("fsync", "off".to_owned()),
        ("full_page_writes", "off".to_owned()),
        ("synchronous_commit", "off".to_owned()),
        ("wal_level", "minimal".to_owned()),
        ("max_wal_senders", "0".to_owned()),
        ("max_wal_size", "4GB".to_owned()),
        ("autovacuum", "off".to_owned()),
        ("shared_buffers", "64MB".to_owned()),
        ("max_connections", "20".to_owned()),
        ("shared_preload_libraries", programs.preload.join(",")),
    ];
    command.args(settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().map_err(failed)?;
    let pipe = child.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    Ok((child, pipe))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_with_all_extensions_is_taken_else_what_there_is() {
        let programs = |version, lacks| Programs { folder: PathBuf::new(), version, lacks, preload: Vec::new() };
        let best = |found: &[Programs], major| found.iter().min_by_key(|programs| preference(programs, major)).map(|programs| programs.version).unwrap();
        assert_eq!(best(&[programs((15, 20), 0), programs((18, 4), 0), programs((17, 1), 0)], Some(15)), (18, 4));
        assert_eq!(best(&[programs((15, 20), 0), programs((18, 4), 1)], Some(15)), (15, 20));
        assert_eq!(best(&[programs((15, 20), 0), programs((16, 4), 0)], Some(17)), (16, 4), "older ones, if there is nothing else");
        assert_eq!(best(&[programs((15, 20), 0), programs((17, 1), 0)], Some(16)), (17, 1));
    }
}
