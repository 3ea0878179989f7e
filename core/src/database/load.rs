//! Loading a dump into a database: all of it in one transaction, or nothing.
//!
//! What is committed was whole: `COMMIT` is sent only after the source has said that its bytes are those that were stored, and after two readers of the
//! text, which know nothing of each other, have found its end. A dump that is cut or damaged, a cancelled load, an error of the database, and the
//! death of this program all leave the database as it was.

mod preflight;
mod question;
mod report;

pub use preflight::{LoadOptions, LoadPlan, preflight};
pub use question::{RowsDiffer, clear, count_rows, differences};

use super::client::{APPLICATION, Client, Program};
use super::error::DatabaseError;
use super::filter::{Filter, FilterError, FilterOptions, Filtered, Head, MAINTENANCE_KEY};
use super::process::Process;
use super::stored::{DumpText, StoredDumpError};
use super::text::{NotWhole, Scanner};
use crate::event::{Event, Monitor, Phase};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use std::collections::{BTreeMap, BTreeSet};
use tokio_util::sync::CancellationToken;

/// Names of tables and the like that an error lists; the rest is counted.
const NAMED_IN_ERROR_MAX: usize = 5;

/// The oldest `psql` that tells statements apart as the filter does.
const PSQL_MAJOR_MIN: u32 = 14;

/// How long a lock on the target is waited for.
const LOCK_TIMEOUT: &str = "60s";

/// Lines that come before the dump's first.
const OWN_LINES: u64 = 2;

/// Why a dump was not loaded. Nothing was changed in the database, but where [`LoadError::Unknown`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The database cannot be spoken to.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The dump cannot be read, or is not what was stored.
    #[error("cannot read the dump to its end; nothing of it was loaded")]
    Text(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The dump has what is not let pass, or is cut.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The dump is cut.
    #[error(transparent)]
    NotWhole(#[from] NotWhole),
    /// `psql` does not tell statements apart as is needed.
    #[error("`psql` {major}.{minor} is too old to load a dump safely")]
    Psql {
        /// Its version.
        major: u32,
        /// Its version.
        minor: u32,
    },
    /// The target takes no writes.
    #[error("the server of {target} is a standby, which takes no writes")]
    Standby {
        /// Which database.
        target: String,
    },
    /// The target is in another encoding.
    #[error("{target} has the encoding {encoding}, and Immich needs UTF8")]
    Encoding {
        /// Which database.
        target: String,
        /// Its encoding.
        encoding: String,
    },
    /// Something is there already.
    #[error("{target} is not empty: it has {}", listed(.there))]
    NotEmpty {
        /// Which database.
        target: String,
        /// What is there.
        there: Vec<String>,
    },
    /// What would have to be replaced belongs to others.
    #[error("in {target} there is what belongs to another user: {}", listed(.there))]
    NotOwner {
        /// Which database.
        target: String,
        /// What that is.
        there: Vec<String>,
    },
    /// The server cannot make an extension that the dump needs.
    #[error("the server of {target} does not have {}", listed(.extensions))]
    Extensions {
        /// Which database.
        target: String,
        /// The extensions.
        extensions: Vec<String>,
    },
    /// The user may not make an extension that the dump needs.
    #[error("{user} may not make {} in {target}", listed(.extensions))]
    ExtensionRights {
        /// The user.
        user: String,
        /// Which database.
        target: String,
        /// The extensions.
        extensions: Vec<String>,
    },
    /// The user may not make tables.
    #[error("{user} may not make tables in the schema public of {target}")]
    Rights {
        /// The user.
        user: String,
        /// Which database.
        target: String,
    },
    /// Somebody uses what would be replaced.
    #[error("others are connected to {target}: {}", listed(.who))]
    InUse {
        /// Which database.
        target: String,
        /// What their connections are called.
        who: Vec<String>,
    },
    /// The database refused a statement.
    #[error("the database refused {}: {message}", place(.table.as_deref(), *.line))]
    Sql {
        /// What it said.
        message: String,
        /// The table, where it said so.
        table: Option<String>,
        /// Where in the dump the statement ends; absent where it was one of ours.
        line: Option<u64>,
    },
    /// `psql` ended otherwise.
    #[error("`psql` ended with exit status {code}: {said}")]
    Ended {
        /// Its exit status.
        code: i64,
        /// What it said.
        said: String,
    },
    /// The connection was lost while the transaction was being committed.
    #[error("the connection to {target} was lost while the load was being committed: it is there whole, or not at all")]
    Unknown {
        /// Which database.
        target: String,
    },
    /// Asked to stop.
    #[error("stopped; nothing was loaded")]
    Stopped,
}

fn listed(names: &[String]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED_IN_ERROR_MAX).map(|name| format!("`{}`", name.escape_debug())).collect();
    let more = names.len().saturating_sub(shown.len());
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn place(table: Option<&str>, line: Option<u64>) -> String {
    let line = line.map_or_else(|| "what was to come before or after the dump".to_owned(), |line| format!("line {line} of the dump"));
    table.map_or(line.clone(), |table| format!("{line} (table `{}`)", table.escape_debug()))
}

impl LoadError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Database(error) => return error.hint().map(std::borrow::Cow::into_owned),
            Self::Text(source) => return source.downcast_ref::<StoredDumpError>().and_then(StoredDumpError::hint).map(str::to_owned),
            Self::Filter(error) => error.hint().to_owned(),
            Self::NotWhole(_) => "take another snapshot's dump; `immich-backup snapshots` shows which there are".to_owned(),
            Self::Psql { .. } => "install PostgreSQL's client of the server's version, or name the database's container".to_owned(),
            Self::Standby { .. } => "give the address of the primary server".to_owned(),
            Self::Encoding { .. } => "make the database anew: CREATE DATABASE immich TEMPLATE template0 ENCODING 'UTF8'".to_owned(),
            Self::NotEmpty { .. } => {
                "load into a new database; or say --replace, which takes a dump of what is there first, then puts this in its place".to_owned()
            }
            Self::NotOwner { .. } => "connect as the user that Immich itself uses, or make a new database".to_owned(),
            Self::Extensions { extensions, .. } => extensions.iter().map(|name| preflight::remedy(name)).collect::<Vec<_>>().join("; "),
            Self::ExtensionRights { extensions, .. } => {
                let commands: Vec<_> = extensions.iter().map(|name| format!("CREATE EXTENSION \"{name}\";")).collect();
                format!("as a superuser, once, in that database: {}", commands.join(" "))
            }
            Self::Rights { user, .. } => format!("as the database's owner: GRANT CREATE ON SCHEMA public TO \"{user}\"; or connect as the owner"),
            Self::InUse { .. } => "stop Immich first (`docker compose stop immich-server`), and leave the database running".to_owned(),
            Self::Sql { message, .. } => return report::hint(message).map(str::to_owned),
            Self::Unknown { .. } => "look whether the tables are there; if not, load again".to_owned(),
            Self::Ended { .. } | Self::Stopped => return None,
        })
    }
}

impl LoadError {
    /// Whether the database did not let this user do what a line of the dump asks for.
    #[must_use]
    pub fn is_of_rights(&self) -> bool {
        matches!(self, Self::Sql { message, .. } if report::is_of_rights(message))
    }
}

/// What was loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Text that was read, in bytes.
    pub bytes: u64,
    /// Tables (with their schema, where that is not `public`) and the rows that they have to have now: those of the dump, without the one that says that
    /// Immich is in maintenance mode.
    pub rows: BTreeMap<String, u64>,
    /// The dump was taken in maintenance mode, which is over.
    pub maintenance_cleared: bool,
    /// Tables with columns that were loaded as text.
    pub as_text: BTreeSet<String>,
    /// Things of the dump that were left out and are worth naming; the first of them.
    pub left_out: Vec<String>,
}

/// The text of a stored dump as a stream.
pub fn stream(text: DumpText) -> impl Stream<Item = Result<Bytes, StoredDumpError>> + Send + Unpin {
    Box::pin(futures_util::stream::try_unfold(text, |mut text| async move { Ok(text.next().await?.map(|piece| (piece, text))) }))
}

/// Reads the beginning of a dump: what [`preflight`] has to know. `database` is the one that is wanted, where the dump is of a whole server.
///
/// # Errors
/// It cannot be read; it has no tables; it has what is not let pass.
pub async fn survey<S, E>(mut text: S, database: Option<&str>) -> Result<Head, LoadError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut filter = Filter::new(FilterOptions { database: database.map(str::to_owned), ..FilterOptions::default() });
    let mut passed = Vec::new();
    while let Some(piece) = text.next().await {
        let piece = piece.map_err(|error| LoadError::Text(error.into()))?;
        // In small steps: what comes after the beginning is not to be judged yet.
        for step in piece.chunks(SURVEY_STEP_BYTES) {
            if let Err(error) = filter.feed(step, &mut passed) {
                return Err(damage(&mut text).await.unwrap_or_else(|| error.into()));
            }
            passed.clear();
            if let Some(head) = filter.head() {
                return Ok(head.clone());
            }
        }
    }
    Ok(filter.finish()?.head)
}

/// What makes no sense may be damage, which only shows at the text's end, where it is compared with what was stored: that is to be said then.
async fn damage<S, E>(text: &mut S) -> Option<LoadError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    while let Some(piece) = text.next().await {
        if let Err(error) = piece {
            return Some(LoadError::Text(error.into()));
        }
    }
    None
}

/// See [`survey`].
const SURVEY_STEP_BYTES: usize = 4 << 10;

/// A name that the dump cannot know, for `\restrict`.
fn restrict_key() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Loads the dump that `text` gives, as `plan` says.
///
/// # Errors
/// See [`LoadError`]; nothing was changed then.
pub async fn load<S, E>(client: &Client, plan: &LoadPlan, mut text: S, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Loaded, LoadError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    monitor.emit(Event::PhaseStarted { phase: Phase::Load, total_files: None, total_bytes: plan.text_bytes });
    // Lines are counted for errors only where psql knows that it reads a file.
    let arguments = ["--quiet", "--set=ON_ERROR_STOP=1", "--output=/dev/null", "--file=-"].map(str::to_owned);
    let mut psql = client.start(Program::Psql, &arguments, APPLICATION).await?;
    let fed = tokio::select! {
        fed = feed(&mut psql, plan, &mut text, monitor) => fed,
        () = stop.cancelled() => Err(LoadError::Stopped),
    };
    let (filtered, bytes) = match fed {
        Ok(fed) => fed,
        Err(LoadError::Database(DatabaseError::InputClosed { .. })) => {
            let exited = psql.finish().await?;
            let error = report::error(exited.code, &exited.stderr);
            return Err(tokio::select! { damage = damage(&mut text) => damage.unwrap_or(error), () = stop.cancelled() => LoadError::Stopped });
        }
        Err(error) => {
            // It never saw a COMMIT: whatever becomes of it, the server undoes all that it did.
            psql.end().await;
            if !matches!(error, LoadError::Filter(_) | LoadError::NotWhole(_)) {
                return Err(error);
            }
            return Err(tokio::select! { damage = damage(&mut text) => damage.unwrap_or(error), () = stop.cancelled() => LoadError::Stopped });
        }
    };
    let committed = psql.write(Bytes::from_static(b"COMMIT;\n")).await;
    if let Err(error) = committed
        && !matches!(error, DatabaseError::InputClosed { .. })
    {
        psql.end().await;
        return Err(LoadError::Unknown { target: client.target() });
    }
    let exited = psql.finish().await.map_err(|_| LoadError::Unknown { target: client.target() })?;
    if exited.code != 0 {
        let error = report::error(exited.code, &exited.stderr);
        return Err(if matches!(error, LoadError::Sql { .. }) { error } else { LoadError::Unknown { target: client.target() } });
    }
    monitor.emit(Event::PhaseFinished { phase: Phase::Load });
    let Filtered { mut rows, maintenance_rows, as_text, left_out, .. } = filtered;
    if let Some(rows) = rows.get_mut("system_metadata") {
        *rows = rows.saturating_sub(maintenance_rows);
    }
    Ok(Loaded { bytes, rows, maintenance_cleared: maintenance_rows > 0, as_text, left_out })
}

/// Everything but the `COMMIT`.
async fn feed<S, E>(psql: &mut Process, plan: &LoadPlan, text: &mut S, monitor: &dyn Monitor) -> Result<(Filtered, u64), LoadError>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin,
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    psql.write(plan.opening(&restrict_key()).into()).await?;
    let mut filter = Filter::new(plan.filter.clone());
    let mut scanner = Scanner::new();
    let mut bytes: u64 = 0;
    while let Some(piece) = text.next().await {
        let piece = piece.map_err(|error| LoadError::Text(error.into()))?;
        let mut passed = Vec::with_capacity(piece.len());
        filter.feed(&piece, &mut passed)?;
        scanner.feed(&piece)?;
        psql.write(passed.into()).await?;
        bytes = bytes.saturating_add(piece.len() as u64);
        monitor.emit(Event::DumpLoaded { bytes: piece.len() as u64 });
    }
    let filtered = filter.finish()?;
    scanner.finish()?;
    let clear = format!(
        "\nDO $immich_backup$ BEGIN IF to_regclass('public.system_metadata') IS NOT NULL THEN \
         DELETE FROM public.system_metadata WHERE key = '{MAINTENANCE_KEY}'; END IF; END $immich_backup$;\n"
    );
    psql.write(clear.into()).await?;
    Ok((filtered, bytes))
}
