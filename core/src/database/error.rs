//! Why PostgreSQL's programs could not do what was asked.

use crate::stack::engine::EngineError;
use std::borrow::Cow;
use std::io;

/// Why a database could not be spoken to. No password is in it.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No such program.
    #[error("there is no `{program}` here (looked in {folders})")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        folders: String,
    },
    /// Only programs older than the server.
    #[error("no `{program}` here is new enough for the server's PostgreSQL {server_major} (found: {found})")]
    TooOld {
        /// Its name.
        program: &'static str,
        /// The server's major version.
        server_major: u32,
        /// The versions there are.
        found: String,
    },
    /// It cannot be run.
    #[error("cannot run `{program}`")]
    Start {
        /// Name or path.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Reading what it writes, or waiting for it, failed.
    #[error("cannot read what `{program}` says")]
    Read {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It takes no more input: it has ended, and its exit says why.
    #[error("`{program}` has ended and takes no more input")]
    InputClosed {
        /// Its name.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("`{program}` failed at {target} (exit status {code}): {stderr}")]
    Failed {
        /// Its name.
        program: &'static str,
        /// Which database.
        target: String,
        /// Its exit status; 128 and the signal's number where one ended it.
        code: i64,
        /// The end of what it said.
        stderr: String,
    },
    /// It says more than there is room for.
    #[error("`{program}` says more than {limit_bytes} bytes at {target}")]
    TooMuch {
        /// Its name.
        program: &'static str,
        /// Which database.
        target: String,
        /// The limit.
        limit_bytes: usize,
    },
    /// Its answer makes no sense.
    #[error("`{program}` answered something else than {wanted}: `{answer}`")]
    Answer {
        /// Its name.
        program: &'static str,
        /// What was asked for.
        wanted: &'static str,
        /// What came; its first 200 characters.
        answer: String,
    },
    /// Docker's API does not answer.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// No such container.
    #[error("there is no container `{container}`")]
    NoContainer {
        /// Its name.
        container: String,
    },
    /// The container does not run.
    #[error("the container `{container}` does not run: it is {status}")]
    NotRunning {
        /// Its name.
        container: String,
        /// What Docker says.
        status: String,
    },
    /// The container has no such program.
    #[error("the container `{container}` has no `{program}` that can be run: {stderr}")]
    NotInContainer {
        /// Its name.
        container: String,
        /// The program.
        program: &'static str,
        /// What was said.
        stderr: String,
    },
    /// Docker could not do what was asked.
    #[error("cannot {action} the container `{container}`")]
    Docker {
        /// What was being done.
        action: &'static str,
        /// Which container.
        container: String,
        /// Why.
        source: bollard::errors::Error,
    },
    /// It did not begin or end in time.
    #[error("`{program}` did not {action} in the container `{container}` within {seconds} s")]
    Slow {
        /// The program.
        program: &'static str,
        /// `begin` or `end`.
        action: &'static str,
        /// The container.
        container: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl DatabaseError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::NoProgram { .. } => {
                "install PostgreSQL's client of the server's version (on Debian and Ubuntu the package `postgresql-client-N`, with N the server's \
                 major version), or name the database's container"
            }
            Self::TooOld { server_major, .. } => {
                return Some(Cow::Owned(format!(
                    "install the package `postgresql-client-{server_major}` (Debian and Ubuntu: from apt.postgresql.org where the distribution has an older \
                     one), or name the database's container"
                )));
            }
            Self::Failed { stderr, .. } => return said(stderr).map(Cow::Borrowed),
            Self::Engine(error) => return error.hint(),
            Self::NoContainer { .. } => "`docker ps --all` shows which containers there are; Immich's own is called `immich_postgres`",
            Self::NotRunning { .. } => "start it, e.g. by `docker compose up -d database`",
            Self::NotInContainer { .. } => "name the container that PostgreSQL itself runs in, or reach the database by its URL",
            Self::Slow { .. } => "look whether the container and its disk are well, and run again",
            Self::Start { .. } | Self::Read { .. } | Self::InputClosed { .. } | Self::TooMuch { .. } | Self::Answer { .. } | Self::Docker { .. } => {
                return None;
            }
        }))
    }
}

/// What can be done about what a program said. PostgreSQL's own words, as its programs say them in the locale C; a server that is set to another
/// language says its part otherwise, and then nothing is known here.
fn said(stderr: &str) -> Option<&'static str> {
    let says = |text: &str| stderr.contains(text);
    Some(if says("password authentication failed") || says("no password supplied") || says("Peer authentication failed") {
        "check the database's user and password (Immich's are DB_USERNAME and DB_PASSWORD in its .env)"
    } else if says("database \"") && says("does not exist") {
        "check the database's name (Immich's is DB_DATABASE_NAME in its .env, `immich` if not set)"
    } else if says("role \"") && says("does not exist") {
        "check the database's user (Immich's is DB_USERNAME in its .env, `postgres` if not set)"
    } else if says("no pg_hba.conf entry") {
        "the server lets nobody in from here: mend its pg_hba.conf, or ask for TLS by ?sslmode=require"
    } else if says("Connection refused") || says("could not translate host name") || says("timeout expired") || says("No such file or directory") {
        "check that the database runs and can be reached from here (a Compose stack's database often cannot: name its container instead)"
    } else if says("starting up") || says("shutting down") {
        "wait until the database has started, and run again"
    } else if says("too many clients") || says("remaining connection slots") {
        "let other connections end, and run again"
    } else if says("permission denied") {
        "use the database's user that Immich itself uses: it owns what is in there"
    } else {
        return None;
    })
}
