//! Taking a dump: `pg_dump` is run once, and its text goes to the one who reads it and, compressed, into a spool file or straight into the store.

use super::client::{Client, Program};
use super::compress::{Compression, compressed};
use super::error::DatabaseError;
use super::inventory::Builder;
use super::process::Process;
use super::server::{Server, no_answer};
use crate::budget::{DUMP_BLOCK_BYTES, DUMP_BLOCKS_QUEUED_MAX};
use crate::event::{Event, Monitor, Phase};
use crate::model::Sha256;
use crate::repository::key::Key;
use crate::repository::store::{Attributes, Store, StoreError, Upload};
use crate::task::joined;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use writer::Writer;

mod writer;

/// How long `pg_dump` waits for a table that another session has locked, where nothing else is asked for.
pub const LOCK_WAIT_DEFAULT: Duration = Duration::from_secs(120);

/// Tables with what models found in the pictures: a damaged database is damaged here as a rule, because they are written most, and Immich's jobs
/// make them again (Immich's documentation, "Backup and restore"; the names have not changed since 1.106).
pub const REMAKEABLE_TABLES: [&str; 2] = ["face_search", "smart_search"];

/// How long to wait for connections to go away that were told to.
const ORPHANS_WAIT: Duration = Duration::from_secs(5);

/// Receives the text of a dump, in order. Runs on a thread for blocking work.
pub trait TextSink: Send + 'static {
    /// Takes the next piece.
    ///
    /// # Errors
    /// It wants no more; the dump is given up.
    fn feed(&mut self, text: &[u8]) -> Result<(), SinkError>;
}

/// Why a [`TextSink`] wants no more.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

impl<F: FnMut(&[u8]) -> Result<(), SinkError> + Send + 'static> TextSink for F {
    fn feed(&mut self, text: &[u8]) -> Result<(), SinkError> {
        self(text)
    }
}

impl TextSink for Builder {
    fn feed(&mut self, text: &[u8]) -> Result<(), SinkError> {
        Ok(Self::feed(self, text)?)
    }
}

/// Where the compressed dump goes.
#[derive(Debug, Clone)]
pub enum Destination {
    /// Into this file, which may be there already.
    Spool(PathBuf),
    /// Into the store as it comes, where there is no room for a spool file. Nothing is to be seen of it before [`Upload::finish`] is called, which
    /// is for the caller to do, once it knows the dump for whole.
    Store {
        /// The store.
        store: Arc<dyn Store>,
        /// Under which key.
        key: Key,
        /// What goes along with it.
        attributes: Attributes,
    },
}

/// How a dump is to be taken.
#[derive(Debug, Clone)]
pub struct DumpPlan {
    /// What its connection is called: see [`application`].
    pub application: String,
    /// How it is compressed.
    pub compression: Compression,
    /// Where it goes.
    pub destination: Destination,
    /// How long to wait for a locked table.
    pub lock_wait: Duration,
    /// How large its text may become, for the bars.
    pub estimated_bytes: Option<u64>,
}

/// A dump that was taken. Whether its text is whole is for who read it to say: `pg_dump` ended well, which a text that ends too early contradicts.
pub struct Dumped {
    /// When `pg_dump` began: the database is as it was at some moment after.
    pub taken_at: Timestamp,
    /// Size of the text.
    pub plain_bytes: u64,
    /// Size of the compressed dump.
    pub size_bytes: u64,
    /// Of the compressed dump.
    pub sha256: Sha256,
    /// The server.
    pub server: Server,
    /// Of the `pg_dump` that was run, e.g. `15.20`.
    pub program_version: String,
    /// Whether it is of a newer major version than the server: the dump may not load into a server of the same version as this one.
    pub program_is_newer: bool,
    /// Tables whose rows are not in it, because the database is damaged there: all of [`REMAKEABLE_TABLES`], or none.
    pub without_data: Vec<String>,
    /// What [`Destination::Store`] asked for: to be finished, or dropped.
    pub upload: Option<Box<dyn Upload>>,
}

impl std::fmt::Debug for Dumped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Dumped");
        shown.field("taken_at", &self.taken_at).field("plain_bytes", &self.plain_bytes).field("size_bytes", &self.size_bytes);
        shown.field("sha256", &self.sha256).field("program_version", &self.program_version).field("without_data", &self.without_data);
        shown.finish_non_exhaustive()
    }
}

/// Why no dump was taken.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The database, or the program.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Another session has a table, and kept it.
    #[error("a table of {target} stayed locked by another session for {} s: {stderr}", .wait.as_secs())]
    Locked {
        /// Which database.
        target: String,
        /// How long was waited.
        wait: Duration,
        /// What `pg_dump` said.
        stderr: String,
    },
    /// The spool file.
    #[error("cannot write the dump to `{}`", .path.display())]
    Spool {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No room for the spool file.
    #[error("no space left for the dump in the folder `{}`", .folder.display())]
    SpoolFull {
        /// Where the spool file is.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store.
    #[error("cannot send the dump")]
    Store(#[from] StoreError),
    /// Compressing.
    #[error("cannot compress the dump")]
    Compress(#[source] io::Error),
    /// Who reads the text.
    #[error("cannot read what is in the dump of {target}")]
    Sink {
        /// Which database.
        target: String,
        /// Why.
        source: SinkError,
    },
    /// It was asked to stop.
    #[error("taking the dump was interrupted")]
    Stopped,
}

impl DumpError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Database(error) => error.hint(),
            Self::Store(error) => error.hint().map(Cow::Borrowed),
            Self::Locked { .. } => Some(Cow::Borrowed(
                "something holds a lock for long: a migration of Immich, a VACUUM FULL, a restore, a forgotten session (see pg_stat_activity); run again when \
                 it has ended",
            )),
            Self::SpoolFull { .. } => {
                Some(Cow::Borrowed("make room there, or choose another state folder by --state-dir; the dump is only there until it is sent"))
            }
            Self::Spool { .. } => Some(Cow::Borrowed("check who owns that folder and as whom this program runs")),
            Self::Compress(_) | Self::Sink { .. } | Self::Stopped => None,
        }
    }
}

/// What the connection of a dump is called: by it the next run of the same writer knows what a dead one left. PostgreSQL keeps 63 bytes.
#[must_use]
pub fn application(writer: &dyn std::fmt::Display) -> String {
    format!("{} {writer}", super::client::APPLICATION)
}

fn quoted(text: &str) -> String {
    // E'' so that a backslash is one whatever standard_conforming_strings says.
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Ends connections of exactly this name to this database, of this user: what a dead run left, and what may hold locks still. Says how many.
///
/// # Errors
/// The database cannot be asked.
pub async fn end_orphans(client: &Client, application: &str) -> Result<u64, DatabaseError> {
    let name = quoted(application.get(..63).unwrap_or(application));
    // CASE, because conditions side by side may be looked at in any order, and the last one kills.
    let kill = format!(
        "SELECT pg_catalog.count(*) FILTER (WHERE ended) FROM (SELECT CASE WHEN datname = pg_catalog.current_database() AND usename = session_user \
         AND pid <> pg_catalog.pg_backend_pid() AND application_name = {name} THEN pg_catalog.pg_terminate_backend(pid) END AS ended \
         FROM pg_catalog.pg_stat_activity) AS sessions;"
    );
    let ended = number(&client.query(&kill).await?)?;
    if ended == 0 {
        return Ok(0);
    }
    let left = format!(
        "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND usename = session_user \
         AND application_name = {name};"
    );
    let deadline = tokio::time::Instant::now() + ORPHANS_WAIT;
    while tokio::time::Instant::now() < deadline && number(&client.query(&left).await?)? > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(ended)
}

fn number(answer: &str) -> Result<u64, DatabaseError> {
    answer.trim().parse().map_err(|_| no_answer("psql", "a number", answer))
}

/// Takes a dump. `sinks` makes the reader of its text, again where a second try is needed; the reader of the dump that was taken is given back.
///
/// # Errors
/// See [`DumpError`]. `pg_dump` has ended then, and what was written is worthless; the spool file is gone.
pub async fn take<S: TextSink>(
    client: &Client,
    plan: &DumpPlan,
    mut sinks: impl FnMut() -> Result<S, SinkError>,
    monitor: &Arc<dyn Monitor>,
    halt: &CancellationToken,
) -> Result<(Dumped, S), DumpError> {
    let (server, version) = tokio::select! {
        () = halt.cancelled() => return Err(DumpError::Stopped),
        found = async {
            let server = client.server().await?;
            Ok::<_, DatabaseError>((server, client.pg_dump_version().await?))
        } => found?,
    };
    let mut without_data: Vec<String> = Vec::new();
    loop {
        monitor.emit(Event::PhaseStarted { phase: Phase::Dump, total_files: None, total_bytes: plan.estimated_bytes });
        let sink = sinks().map_err(|source| DumpError::Sink { target: client.target(), source })?;
        let taken_at = Timestamp::now();
        match attempt(client, plan, &without_data, sink, monitor, halt).await {
            Ok((written, sink)) => {
                monitor.emit(Event::PhaseFinished { phase: Phase::Dump });
                let Written { plain_bytes, size_bytes, sha256, upload } = written;
                let program_version = format!("{}.{}", version.0, version.1);
                let program_is_newer = version.0 > server.major();
                return Ok((Dumped { taken_at, plain_bytes, size_bytes, sha256, server, program_version, program_is_newer, without_data, upload }, sink));
            }
            Err(error) => {
                remove_spool(&plan.destination).await;
                monitor.emit(Event::PhaseFinished { phase: Phase::Dump });
                match &error {
                    DumpError::Database(DatabaseError::Failed { stderr, .. }) if without_data.is_empty() && is_remakeable_damage(stderr) => {
                        without_data = REMAKEABLE_TABLES.map(str::to_owned).to_vec();
                        monitor.emit(Event::Warned { message: damage_message(client, stderr) });
                    }
                    _ => return Err(error),
                }
            }
        }
    }
}

async fn remove_spool(destination: &Destination) {
    if let Destination::Spool(path) = destination {
        // Best effort: the next dump overwrites it.
        tokio::fs::remove_file(path).await.ok();
    }
}

fn damage_message(client: &Client, stderr: &str) -> String {
    let line = stderr.lines().find(|line| line.contains("for toast value")).unwrap_or(stderr);
    let [faces, smart] = REMAKEABLE_TABLES;
    format!(
        "the database {} is damaged ({}): it is dumped once more without the rows of `{faces}` and `{smart}`, which Immich's jobs \"Face Detection\" and \"Smart \
         Search\" can make again; check the database's disk",
        client.target(),
        line.trim()
    )
}

/// Whether `pg_dump` failed for a damaged value of a table that Immich can make again. The first message is PostgreSQL's own and never translated
/// (`toast_fetch_datum`, an internal error), the table stands in the command that `pg_dump` repeats, quoted or not, with its schema or not.
fn is_remakeable_damage(stderr: &str) -> bool {
    let is_damage = stderr.contains("for toast value") && (stderr.contains("missing chunk number") || stderr.contains("unexpected chunk number"));
    let mut words = stderr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    is_damage && words.any(|word| REMAKEABLE_TABLES.contains(&word))
}

/// Whether `pg_dump` gave up waiting for a lock: as it repeats the command, in no other language than SQL, whatever the server speaks.
fn is_lock_timeout(stderr: &str) -> bool {
    stderr.contains("LOCK TABLE") && (stderr.contains("lock timeout") || stderr.contains("statement timeout"))
}

fn arguments(plan: &DumpPlan, without_data: &[String]) -> Vec<String> {
    let fixed = ["--format=plain", "--clean", "--if-exists", "--no-owner", "--no-privileges", "--encoding=UTF8"].map(str::to_owned);
    let lock_wait = format!("--lock-wait-timeout={}", plan.lock_wait.as_millis());
    let excluded = without_data.iter().map(|table| format!("--exclude-table-data=public.{table}"));
    fixed.into_iter().chain([lock_wait]).chain(excluded).collect()
}

/// What became of one try.
struct Written {
    plain_bytes: u64,
    size_bytes: u64,
    sha256: Sha256,
    upload: Option<Box<dyn Upload>>,
}

async fn attempt<S: TextSink>(
    client: &Client,
    plan: &DumpPlan,
    without_data: &[String],
    sink: S,
    monitor: &Arc<dyn Monitor>,
    halt: &CancellationToken,
) -> Result<(Written, S), DumpError> {
    let mut writer = Writer::begin(&plan.destination).await?;
    let arguments = arguments(plan, without_data);
    let mut process = tokio::select! {
        () = halt.cancelled() => return Err(DumpError::Stopped),
        started = client.start(Program::PgDump, &arguments, &plan.application) => started?,
    };
    let piped = tokio::select! {
        () = halt.cancelled() => Err(DumpError::Stopped),
        piped = pipe(client, plan, &mut process, &mut writer, sink, monitor) => piped,
    };
    let (plain_bytes, sink) = match piped {
        Ok(piped) => piped,
        Err(error) => {
            process.end().await;
            return Err(error);
        }
    };
    let exited = tokio::select! {
        () = halt.cancelled() => return Err(DumpError::Stopped),
        exited = process.finish() => exited?,
    };
    if exited.code != 0 {
        if is_lock_timeout(&exited.stderr) {
            return Err(DumpError::Locked { target: client.target(), wait: plan.lock_wait, stderr: exited.stderr });
        }
        return Err(client.failed(Program::PgDump, exited.code, exited.stderr).into());
    }
    let (size_bytes, sha256, upload) = writer.end().await?;
    Ok((Written { plain_bytes, size_bytes, sha256, upload }, sink))
}

/// From the process to the sink and, compressed, to the writer, until its text ends.
async fn pipe<S: TextSink>(
    client: &Client,
    plan: &DumpPlan,
    process: &mut Process,
    writer: &mut Writer,
    mut sink: S,
    monitor: &Arc<dyn Monitor>,
) -> Result<(u64, S), DumpError> {
    let (to_sink, mut for_sink) = mpsc::channel::<Bytes>(DUMP_BLOCKS_QUEUED_MAX);
    let (to_compressor, for_compressor) = mpsc::channel::<Bytes>(DUMP_BLOCKS_QUEUED_MAX);
    let sinking = tokio::task::spawn_blocking(move || {
        while let Some(text) = for_sink.blocking_recv() {
            sink.feed(&text)?;
        }
        Ok(sink)
    });
    let read = async {
        let mut block = BytesMut::with_capacity(DUMP_BLOCK_BYTES);
        let mut plain_bytes = 0;
        loop {
            let piece = process.read().await?;
            if let Some(piece) = &piece {
                block.extend_from_slice(piece);
                plain_bytes += piece.len() as u64;
                monitor.emit(Event::DumpRead { bytes: piece.len() as u64 });
            }
            if block.len() >= DUMP_BLOCK_BYTES || (piece.is_none() && !block.is_empty()) {
                let text = std::mem::replace(&mut block, BytesMut::with_capacity(DUMP_BLOCK_BYTES)).freeze();
                // Whoever does not take it any more says why, below.
                if to_sink.send(text.clone()).await.is_err() || to_compressor.send(text).await.is_err() {
                    return Ok(None);
                }
            }
            if piece.is_none() {
                drop((to_sink, to_compressor));
                return Ok::<_, DumpError>(Some(plain_bytes));
            }
        }
    };
    let write = async {
        let mut blocks = pin!(compressed(for_compressor, plan.compression));
        while let Some(block) = blocks.next().await {
            writer.write(block.map_err(DumpError::Compress)?.into()).await?;
        }
        Ok::<_, DumpError>(())
    };
    let sunk = async { joined(sinking.await).map_err(|source| DumpError::Sink { target: client.target(), source }) };
    // The first error ends all three.
    let (plain_bytes, (), sink) = tokio::try_join!(read, write, sunk)?;
    match plain_bytes {
        Some(plain_bytes) => Ok((plain_bytes, sink)),
        // Both ends took everything that they were given, and one of them wanted no more.
        None => Err(DumpError::Sink { target: client.target(), source: "it wanted no more".into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_that_immich_can_repair_is_told_from_other_damage() {
        let said = |table: &str| {
            format!(
                "pg_dump: error: Dumping the contents of table \"x\" failed: PQgetResult() failed.\npg_dump: detail: Error message from server: ERROR:  missing \
                 chunk number 0 for toast value 16402 in pg_toast_16396\npg_dump: detail: Command was: COPY {table} (\"faceId\", embedding) TO stdout;"
            )
        };
        for table in ["public.face_search", "face_search", "\"public\".\"smart_search\"", "public.\"face_search\""] {
            assert!(is_remakeable_damage(&said(table)), "{table}");
        }
        for table in ["public.asset", "public.face_search_old", "public.my_smart_search", "public.exif"] {
            assert!(!is_remakeable_damage(&said(table)), "{table}");
        }
        assert!(!is_remakeable_damage("pg_dump: error: connection lost\npg_dump: detail: Command was: COPY public.face_search TO stdout;"));
    }

    #[test]
    fn a_name_cannot_leave_its_quotes() {
        assert_eq!(quoted(r"a'b\c\'"), r"E'a''b\\c\\'''");
        assert!(application(&uuid::Uuid::nil()).len() <= 63);
    }
}
