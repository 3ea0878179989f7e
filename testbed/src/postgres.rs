//! Real PostgreSQL servers, each on a free port of 127.0.0.1 in a temporary folder of its own, gone when dropped.
//!
//! What asks a server panics with what the server says where it refuses: these are for tests. Passwords are checked on every way in.

use std::fs;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::servers::ServerError;
use crate::servers::process::{self, End, Launch, Process};
use crate::servers::tools;

mod administrator;
mod dump;
mod psql;

pub use administrator::{Administrator, Connection};
pub use dump::Dump;

pub(crate) use psql::Psql;

/// Which server, and how it is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The distribution's own PostgreSQL, which lacks `vector`; otherwise 18, with all extensions that Immich's dumps name.
    pub plain: bool,
    /// Further settings, e.g. `("max_connections", "5")`.
    pub settings: Vec<(String, String)>,
}

/// A running PostgreSQL; what its [`Administrator`] may do can be done with it.
pub struct Postgres {
    programs: PathBuf,
    administrator: Administrator,
    port: u16,
    process: Process,
}

/// Folder of the data, in the server's folder.
const DATA: &str = "data";

impl Postgres {
    /// Its administrator.
    pub const USER: &str = "postgres";
    /// The administrator's password: a word that is nowhere else, so that a test can look whether it was told to somebody.
    pub const PASSWORD: &str = "Tr0ub4dor-of-the-testbed";

    /// Starts PostgreSQL 18 with all that Immich's dumps need; it has the database `postgres` only.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start() -> Result<Self, ServerError> {
        Self::start_with(&Options::default())
    }

    /// Starts the distribution's own PostgreSQL, which lacks the extension `vector`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start_plain() -> Result<Self, ServerError> {
        Self::start_with(&Options { plain: true, ..Options::default() })
    }

    /// Starts one that is as `options` say.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start_with(options: &Options) -> Result<Self, ServerError> {
        let programs = if options.plain { distribution() } else { installed() }?;
        let owner = Owner::for_servers().map_err(cannot_start)?;
        process::on_free_ports(1, |ports| {
            let port = ports.first().copied().unwrap_or_default();
            let folder = process::folder().map_err(cannot_start)?;
            prepare(&programs, folder.path(), owner.as_ref())?;
            let mut command = Command::new(programs.join("postgres"));
            command.args(["-D", DATA]);
            let folder_name = folder.path().display().to_string();
            let own = [
                ("listen_addresses", "127.0.0.1"),
                ("port", &port.to_string()),
                ("unix_socket_directories", &folder_name),
                // What is lost when the machine fails is of no worth.
                ("fsync", "off"),
                ("synchronous_commit", "off"),
                ("full_page_writes", "off"),
                ("wal_level", "minimal"),
                ("max_wal_senders", "0"),
                ("max_wal_size", "4GB"),
                // Many run at once.
                ("shared_buffers", "64MB"),
            ];
            let given = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            command.args(own.into_iter().chain(given).flat_map(|(name, value)| ["-c".to_string(), format!("{name}={value}")]));
            let name = format!("{}", programs.join("postgres").display());
            let privileges = owner.as_ref().map(Owner::privileges).unwrap_or_default();
            let psql = Psql::local(&programs, folder.path(), port);
            // Quit: its processes are in groups of their own, and end when it tells them.
            let launch = Launch { name, command: clean(command), privileges, end: End::Quit, folder };
            let (process, ()) = Process::launch(launch, || psql.run("postgres", "SELECT 1").map(drop))?;
            Ok(Self { programs: programs.clone(), administrator: Administrator::new(psql), port, process })
        })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of its socket, `.s.PGSQL.<port>`: what `PGHOST` may name.
    pub fn socket_folder(&self) -> &Path {
        self.process.folder()
    }

    /// The folder of its data.
    pub fn data(&self) -> PathBuf {
        self.process.folder().join(DATA)
    }

    /// The folder of its programs: `psql`, `pg_dump`, …
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Address of a database with the administrator's name and password.
    pub fn url(&self, database: &str) -> String {
        self.url_as(Self::USER, Self::PASSWORD, database)
    }

    /// Address of a database with somebody's name and password.
    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        let [user, password, database] = [user, password, database].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// What libpq's programs take from their environment: host, port, user, password.
    pub fn environment(&self) -> [(&'static str, String); 4] {
        [("PGHOST", "127.0.0.1".to_string()), ("PGPORT", self.port.to_string()), ("PGUSER", Self::USER.to_string()), ("PGPASSWORD", Self::PASSWORD.to_string())]
    }

    /// What the server has printed so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Ends the server as dropping it does: at once, whoever is connected. Its folder stays until it is dropped.
    pub fn stop(&mut self) {
        self.process.stop();
    }
}

impl Deref for Postgres {
    type Target = Administrator;

    fn deref(&self) -> &Administrator {
        &self.administrator
    }
}

fn cannot_start(cause: io::Error) -> ServerError {
    ServerError::Start { program: "postgres".to_string(), cause }
}

/// Makes an Immich 3.1 database for measurements out of an empty one, at any address: `fixture` is the fixture's dump, and the assets are added to its own.
///
/// # Errors
///
/// If the server of the test tools is not installed, or what `psql` says against it.
pub fn fill_at(url: &str, fixture: Dump<'_>, assets: u64, vector_indexes: bool) -> Result<(), String> {
    let psql = Psql::anywhere(&installed().map_err(|error| error.to_string())?);
    psql.load(url, fixture)?;
    psql.fill(url, assets, vector_indexes)
}

/// The programs of the server in the folder of test tools.
fn installed() -> Result<PathBuf, ServerError> {
    let programs = tools().join("postgresql-18/bin");
    // Somebody else runs it, from another folder.
    let programs = programs.canonicalize().unwrap_or(programs);
    if programs.join("postgres").exists() { Ok(programs) } else { Err(ServerError::NotInstalled { program: programs.join("postgres") }) }
}

/// The programs of the distribution's newest server: Debian and Ubuntu keep each major apart.
pub(crate) fn distribution() -> Result<PathBuf, ServerError> {
    let all = Path::new("/usr/lib/postgresql");
    let majors = fs::read_dir(all).into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let programs = majors.map(|major| (major, all.join(major.to_string()).join("bin"))).filter(|(_, programs)| programs.join("postgres").exists());
    programs.max().map(|(_, programs)| programs).ok_or_else(|| ServerError::NotInstalled { program: all.join("*/bin/postgres") })
}

/// Makes the data in `folder`.
fn prepare(programs: &Path, folder: &Path, owner: Option<&Owner>) -> Result<(), ServerError> {
    let password = folder.join("password");
    fs::write(&password, Postgres::PASSWORD).map_err(cannot_start)?;
    if let Some(owner) = owner {
        for path in [folder, &password] {
            chown(path, Some(owner.user), Some(owner.group)).map_err(cannot_start)?;
        }
    }
    let mut command = Command::new("setpriv");
    command.args(owner.map(Owner::privileges).unwrap_or_default()).arg("--").arg(programs.join("initdb"));
    command.args(["-D", DATA, "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=scram-sha-256", "--pwfile=password"]);
    command.args(["--username", Postgres::USER]).current_dir(folder).stdin(Stdio::null());
    let Output { status, stdout, stderr } = clean(command).output().map_err(cannot_start)?;
    if status.success() {
        return Ok(());
    }
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Err(cannot_start(io::Error::other(format!("initdb ended with {status}: {said}"))))
}

/// Without the settings of whoever runs the tests.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(name);
        }
    }
    command.env("LC_ALL", "C.UTF-8").env("PGTZ", "UTC");
    command
}

/// Who a server runs as if the tests run as root, which PostgreSQL refuses to.
struct Owner {
    user: u32,
    group: u32,
}

impl Owner {
    /// `postgres` if there is one, else `nobody`; `None` if the tests do not run as root.
    fn for_servers() -> io::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let found = Command::new("getent").args(["passwd", "postgres", "nobody"]).output()?;
        let found = String::from_utf8_lossy(&found.stdout).into_owned();
        // name:password:user:group:…
        let owner = |line: &str| {
            let mut fields = line.split(':').skip(2).map(str::parse);
            Some(Self { user: fields.next()?.ok()?, group: fields.next()?.ok()? })
        };
        found.lines().find_map(owner).map(Some).ok_or_else(|| io::Error::other("there is neither a user `postgres` nor a user `nobody`"))
    }

    /// For `setpriv`. The right to pass by permissions stays, for `access(2)` too: the programs may be below a folder that only root may enter.
    fn privileges(&self) -> Vec<String> {
        let who = [format!("--reuid={}", self.user), format!("--regid={}", self.group), "--clear-groups".to_string()];
        who.into_iter().chain(["--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"].map(String::from)).collect()
    }
}
