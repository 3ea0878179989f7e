//! PostgreSQL's own programs, run where the database can be reached: here, or inside its container.

use super::connection::Connection;
use super::container::{Container, ContainerOptions};
use super::error::DatabaseError;
use super::process::{Process, Purpose};
use super::server::{self, Server};
use crate::task::blocking;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::process::Command;
use tokio::sync::OnceCell;

/// What our connections are called where no run has them, as `pg_stat_activity` shows it.
pub const APPLICATION: &str = "immich-backup";

/// How long a connection may take to come about, in seconds.
const CONNECT_SECONDS: &str = "15";

/// Where a program's own programs are looked for (Debian's `pg_dump` in /usr/bin is a Perl script).
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which of PostgreSQL's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// `pg_dump`, of the server's major version, or else the next newer one.
    PgDump,
    /// `psql`, the newest.
    Psql,
}

impl Program {
    /// The program's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PgDump => "pg_dump",
            Self::Psql => "psql",
        }
    }
}

/// A version as (major, minor), e.g. (15, 20); minor is 0 for one that was not released yet.
pub type Version = (u32, u32);

/// A program that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    path: PathBuf,
    version: Version,
}

/// The programs there are.
#[derive(Debug, Default)]
struct Programs {
    pg_dump: OnceCell<Vec<Found>>,
    psql: OnceCell<Vec<Found>>,
}

#[derive(Debug, Clone)]
enum Place {
    /// In these folders, the first ones first.
    Local(Arc<Vec<PathBuf>>),
    Container(Arc<Container>),
}

/// How a database is spoken to. Clones share what was found out of the programs and the server; the password is never shown.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Connection,
    place: Place,
    programs: Arc<Programs>,
    /// The server's version as a number, e.g. 150020.
    version_num: Arc<OnceCell<u32>>,
}

/// The version in what `--version` says, e.g. `pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)`.
fn version_in(said: &str) -> Option<Version> {
    let (_, rest) = said.split_once("(PostgreSQL) ")?;
    let mut numbers = rest.split('.').map(|text| text.chars().take_while(char::is_ascii_digit).collect::<String>());
    let major = numbers.next()?.parse().ok()?;
    // 18beta1 has no minor version.
    let has_minor = rest.trim_start_matches(|c: char| c.is_ascii_digit()).starts_with('.');
    Some((major, numbers.next().filter(|_| has_minor).and_then(|text| text.parse().ok()).unwrap_or(0)))
}

/// Of the programs there are, the one to dump a server of this major version with: that version's newest, else the nearest newer one's.
fn choose(found: &[Found], server_major: u32) -> Option<&Found> {
    let fitting = found.iter().filter(|program| program.version.0 >= server_major);
    fitting.min_by_key(|program| (program.version.0, std::cmp::Reverse(program.version.1)))
}

fn majors(found: &[Found]) -> String {
    let mut majors: Vec<_> = found.iter().map(|program| program.version.0).collect();
    majors.sort_unstable();
    majors.dedup();
    majors.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl Client {
    /// One that runs programs of this machine. `folders` is where they are looked for.
    #[must_use]
    pub fn local(connection: Connection, folders: Vec<PathBuf>) -> Self {
        Self::new(connection, Place::Local(Arc::new(folders)))
    }

    /// One that runs the programs of the database's container, inside it.
    ///
    /// # Errors
    /// Docker cannot be reached; there is no such container, or it does not run.
    pub async fn in_container(options: ContainerOptions) -> Result<Self, DatabaseError> {
        let (container, connection) = Container::open(options).await?;
        Ok(Self::new(connection, Place::Container(Arc::new(container))))
    }

    fn new(connection: Connection, place: Place) -> Self {
        Self { connection, place, programs: Arc::default(), version_num: Arc::default() }
    }

    /// What people call the database: "`immich` at localhost:5432", "`immich` in the container `immich_postgres`".
    #[must_use]
    pub fn target(&self) -> String {
        match &self.place {
            Place::Local(_) => self.connection.target(),
            Place::Container(container) => format!("`{}` in the container `{}`", self.database(), container.name),
        }
    }

    /// The database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        self.connection.database()
    }

    /// The same for another database of the same server.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        Self { connection: self.connection.clone().with_database(name), ..self.clone() }
    }

    /// What is to be known of the server and the database.
    ///
    /// # Errors
    /// It cannot be reached, or lets nobody in.
    pub async fn server(&self) -> Result<Server, DatabaseError> {
        let server = server::parse(&self.query(server::QUESTIONS).await?)?;
        // Found out once is enough; another may have been quicker.
        self.version_num.set(server.version_num).ok();
        Ok(server)
    }

    /// The answer to `sql`, which `psql` reads as a script: rows by newline, columns by tab, nothing else. It ends at the first error.
    ///
    /// # Errors
    /// The database cannot be reached, or the SQL failed; the answer is larger than [`crate::budget::ANSWER_BYTES_MAX`].
    pub async fn query(&self, sql: &str) -> Result<String, DatabaseError> {
        let arguments = ["--no-align", "--tuples-only", "--quiet", "--field-separator=\t", "--set=ON_ERROR_STOP=1", "--file=-"].map(str::to_owned);
        let mut process = self.start(Program::Psql, &arguments, APPLICATION).await?;
        // One that ended before it read everything has a reason that its exit tells.
        if process.write(sql.to_owned().into()).await.is_ok() {
            process.close_input().await.ok();
        }
        let (answer, exited) = process.answer().await?;
        if exited.code != 0 {
            return Err(self.failed(Program::Psql, exited.code, exited.stderr));
        }
        let mut answer = String::from_utf8_lossy(&answer).into_owned();
        if answer.ends_with('\n') {
            answer.pop();
        }
        Ok(answer)
    }

    /// The error that a program ended with.
    pub(super) fn failed(&self, program: Program, code: i64, stderr: String) -> DatabaseError {
        DatabaseError::Failed { program: program.name(), target: self.target(), code, stderr }
    }

    /// Starts a program on the database, with a connection of this name. It is never asked for a password, and `psql` reads no start file.
    /// `psql` gets a stdin, `pg_dump` none.
    ///
    /// # Errors
    /// There is no such program, none new enough, or it cannot be run. That the database cannot be reached shows when it ends.
    pub async fn start(&self, program: Program, arguments: &[String], application: &str) -> Result<Process, DatabaseError> {
        let found = self.program(program).await?;
        let mut all = vec!["--no-password".to_owned()];
        if program == Program::Psql {
            all.push("--no-psqlrc".to_owned());
        }
        all.extend_from_slice(arguments);
        let mut variables = self.connection.variables();
        variables.entry("PGCONNECT_TIMEOUT".to_owned()).or_insert_with(|| CONNECT_SECONDS.to_owned());
        variables.extend([("PGAPPNAME", application), ("PGCLIENTENCODING", "UTF8"), ("LC_ALL", "C")].map(|(name, value)| (name.to_owned(), value.to_owned())));
        self.run(program, &found.path, all, variables, program == Program::Psql).await
    }

    async fn run(
        &self,
        program: Program,
        path: &Path,
        arguments: Vec<String>,
        variables: BTreeMap<String, String>,
        has_input: bool,
    ) -> Result<Process, DatabaseError> {
        // A password that is the user's name as well is no secret in a message that names the user.
        let secret = self.connection.password().filter(|password| !self.connection.is_known(password.reveal())).cloned();
        let purpose = Purpose { program: program.name(), target: self.target(), secret, has_input };
        match &self.place {
            Place::Local(_) => {
                let mut command = Command::new(path);
                command.args(arguments).env_clear().env("PATH", SYSTEM_PATH).envs(variables);
                Process::local(command, purpose)
            }
            Place::Container(container) => container.start(arguments, variables, purpose).await,
        }
    }

    /// The version of the `psql` that is run.
    ///
    /// # Errors
    /// There is none.
    pub async fn psql_version(&self) -> Result<Version, DatabaseError> {
        Ok(self.program(Program::Psql).await?.version)
    }

    /// The version of the `pg_dump` that is run for this server.
    ///
    /// # Errors
    /// There is none, or none new enough; the server cannot be asked for its version.
    pub async fn pg_dump_version(&self) -> Result<Version, DatabaseError> {
        Ok(self.program(Program::PgDump).await?.version)
    }

    /// The server's major version.
    async fn server_major(&self) -> Result<u32, DatabaseError> {
        if let Some(known) = self.version_num.get() {
            return Ok(known / 10_000);
        }
        Ok(self.server().await?.version_num / 10_000)
    }

    async fn program(&self, program: Program) -> Result<Found, DatabaseError> {
        let cell = match program {
            Program::PgDump => &self.programs.pg_dump,
            Program::Psql => &self.programs.psql,
        };
        let found = cell.get_or_try_init(|| self.look_for(program)).await?;
        let chosen = match program {
            Program::Psql => found.iter().max_by_key(|found| found.version),
            Program::PgDump => {
                let server_major = Box::pin(self.server_major()).await?;
                let too_old = || DatabaseError::TooOld { program: program.name(), server_major, found: majors(found) };
                Some(choose(found, server_major).ok_or_else(too_old)?)
            }
        };
        chosen.cloned().ok_or_else(|| self.none(program))
    }

    fn none(&self, program: Program) -> DatabaseError {
        let folders = match &self.place {
            Place::Local(folders) if !folders.is_empty() => folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
            Place::Local(_) => "no folder".to_owned(),
            Place::Container(container) => format!("the container `{}`", container.name),
        };
        DatabaseError::NoProgram { program: program.name(), folders }
    }

    /// Each program of this name, and what it says its version is.
    async fn look_for(&self, program: Program) -> Result<Vec<Found>, DatabaseError> {
        let paths = match &self.place {
            Place::Local(folders) => {
                let folders = Arc::clone(folders);
                blocking(move || folders.iter().map(|folder| folder.join(program.name())).filter(|path| path.is_file()).collect()).await
            }
            Place::Container(_) => vec![PathBuf::from(program.name())],
        };
        let mut all = Vec::new();
        let mut last = None;
        for path in paths {
            match self.version_of(program, &path).await {
                Ok(version) => all.push(Found { path, version }),
                // Another of that name may do: a wrapper without the program that it wraps, a file that is none.
                Err(error) => last = Some(error),
            }
        }
        if all.is_empty() { Err(last.unwrap_or_else(|| self.none(program))) } else { Ok(all) }
    }

    async fn version_of(&self, program: Program, path: &Path) -> Result<Version, DatabaseError> {
        let variables = BTreeMap::from([("LC_ALL".to_owned(), "C".to_owned())]);
        let process = self.run(program, path, vec!["--version".to_owned()], variables, false).await?;
        let (answer, exited) = process.answer().await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match (&self.place, exited.code) {
            (_, 0) => version_in(&answer).ok_or_else(|| server::no_answer(program.name(), "its version", &answer)),
            (Place::Container(container), _) => {
                Err(DatabaseError::NotInContainer { container: container.name.clone(), program: program.name(), stderr: exited.stderr })
            }
            (Place::Local(_), code) => Err(self.failed(program, code, exited.stderr)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_every_distribution_writes_them() {
        let cases = [
            ("pg_dump (PostgreSQL) 15.20 (Debian 15.20-0+deb12u1)\n", Some((15, 20))),
            ("psql (PostgreSQL) 18.4\n", Some((18, 4))),
            ("pg_dump (PostgreSQL) 19beta1\n", Some((19, 0))),
            ("pg_dump (PostgreSQL) 19devel (Debian 19~1.2)\n", Some((19, 0))),
            ("pg_dump (PostgreSQL) 9.6.24\n", Some((9, 6))),
            ("Error: You must install at least one postgresql-client-<version> package\n", None),
            ("", None),
        ];
        for (said, version) in cases {
            assert_eq!(version_in(said), version, "{said}");
        }
    }

    #[test]
    fn the_servers_own_major_is_chosen_else_the_next_newer_and_never_an_older_one() {
        let found: Vec<_> = [(15, 20), (18, 4), (16, 1), (16, 9), (17, 0)]
            .into_iter()
            .map(|version| Found { path: PathBuf::from(format!("/{}.{}", version.0, version.1)), version })
            .collect();
        for (server, chosen) in [(16, Some((16, 9))), (14, Some((15, 20))), (18, Some((18, 4))), (19, None)] {
            assert_eq!(choose(&found, server).map(|found| found.version), chosen, "{server}");
        }
        assert_eq!(majors(&found), "15, 16, 17, 18");
    }

    #[tokio::test]
    async fn a_machine_without_the_programs_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let client = Client::local(Connection::new(), vec![folder.path().to_owned()]);
        let error = client.query("SELECT 1").await.unwrap_err();
        assert!(matches!(&error, DatabaseError::NoProgram { program: "psql", folders } if *folders == folder.path().display().to_string()), "{error}");
        assert!(error.hint().unwrap().contains("postgresql-client-N"));
    }
}
