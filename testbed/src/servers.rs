//! Real servers, each on free ports of 127.0.0.1 and in a temporary folder of its own, ready when its `start` returns, gone when it is dropped.
//!
//! `scripts/servers.sh` installs them. What these types offer beside an address looks at a store, or changes it, behind the back of the code under test.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

mod azurite;
mod bucket;
mod mail;
pub(crate) mod process;
mod seaweedfs;
mod small;

pub use azurite::{Azurite, Container};
pub use bucket::{Bucket, Credentials};
pub use mail::{MailAccount, MailMode, MailServer, MailWay};
pub use seaweedfs::{Identity, Options, SeaweedFs};
pub use small::{Moto, S3sFs};

pub use crate::wire::WireError;

/// Why a server is not there.
#[derive(thiserror::Error)]
pub enum ServerError {
    /// It is not installed.
    #[error("there is no `{program}`; `scripts/test` installs it, or name the folder that has it below `bin` in IMMICH_BACKUP_TEST_TOOLS")]
    NotInstalled {
        /// Where it was looked for.
        program: PathBuf,
    },
    /// No folder, no port or no process could be had for it.
    #[error("cannot start `{program}`")]
    Start {
        /// The server.
        program: String,
        /// What the system says.
        #[source]
        cause: io::Error,
    },
    /// It ended, or did not become ready in time.
    #[error("`{program}` {what}; its last words:\n{last_words}")]
    NotReady {
        /// The server.
        program: String,
        /// What it did instead.
        what: String,
        /// The end of what it printed.
        last_words: String,
    },
    /// It answers, but cannot be prepared.
    #[error("cannot prepare a server")]
    Prepare(#[from] WireError),
}

impl std::fmt::Debug for ServerError {
    /// As people read it: this is what a test that unwraps shows.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{self}")?;
        match std::error::Error::source(self) {
            Some(cause) => write!(formatter, ": {cause:?}"),
            None => Ok(()),
        }
    }
}

/// The folder that `scripts/servers.sh` installs into.
pub(crate) fn tools() -> PathBuf {
    env::var_os("IMMICH_BACKUP_TEST_TOOLS").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-tools"), PathBuf::from)
}

/// Path of a program that `scripts/servers.sh` installs and that is no server.
///
/// # Errors
/// It is not installed.
pub fn installed(name: &str) -> Result<PathBuf, ServerError> {
    tool(name)
}

/// Prometheus' own checker of metrics and rules.
///
/// # Errors
/// It is not installed.
pub fn promtool() -> Result<PathBuf, ServerError> {
    tool("promtool")
}

/// Path of an installed server.
fn tool(name: &str) -> Result<PathBuf, ServerError> {
    let program = tools().join("bin").join(name);
    if program.exists() { Ok(program) } else { Err(ServerError::NotInstalled { program }) }
}
