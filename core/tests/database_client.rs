//! PostgreSQL's programs on real servers: what they are told, what they say, and dumps taken by them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use immich_backup_core::budget::DUMP_BLOCK_BYTES;
use immich_backup_core::database::client::{APPLICATION, Client, Program};
use immich_backup_core::database::compress::Compression;
use immich_backup_core::database::connection::{Connection, Password};
use immich_backup_core::database::dump::{Destination, DumpError, DumpPlan, Dumped, REMAKEABLE_TABLES, SinkError, application, end_orphans, take};
use immich_backup_core::database::error::DatabaseError;
use immich_backup_core::database::stored::{DumpText, StoredDumpError};
use immich_backup_core::event::{Event, Monitor, Phase, Recorder};
use immich_backup_core::model::{Class, Sha256, WriterId};
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::fetch::Fetcher;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::DumpFact;
use immich_backup_core::repository::store::{Attributes, Created, Kind, Store};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::{Dump, Postgres};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// How long anything here may take at most.
const LONG: Duration = Duration::from_secs(60);

fn client(server: &Postgres, database: &str) -> Client {
    Client::local(Connection::parse(&server.url(database)).unwrap(), vec![server.programs().to_owned()])
}

/// A dump that is being tried.
struct Try {
    folder: TempDir,
    plan: DumpPlan,
    recorder: Arc<Recorder>,
    halt: CancellationToken,
    text: Arc<Mutex<Vec<u8>>>,
    /// While it is set, the reader of the text holds everything up.
    hold: Arc<AtomicBool>,
}

impl Try {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = DumpPlan {
            application: application(&"00000000-1111-2222-3333-444444444444".parse::<WriterId>().unwrap()),
            compression: Compression::Gzip,
            destination: Destination::Spool(folder.path().join("spool")),
            lock_wait: LONG,
            estimated_bytes: Some(12_345),
        };
        Self { folder, plan, recorder: Arc::default(), halt: CancellationToken::new(), text: Arc::default(), hold: Arc::default() }
    }

    async fn take(&self, client: &Client) -> Result<Dumped, DumpError> {
        let sinks = || {
            self.text.lock().unwrap().clear();
            let (text, hold) = (Arc::clone(&self.text), Arc::clone(&self.hold));
            Ok(move |piece: &[u8]| -> Result<(), SinkError> {
                text.lock().unwrap().extend_from_slice(piece);
                let began = Instant::now();
                while hold.load(Ordering::SeqCst) && began.elapsed() < LONG {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        };
        let monitor: Arc<dyn Monitor> = self.recorder.clone();
        take(client, &self.plan, sinks, &monitor, &self.halt).await.map(|(dumped, _)| dumped)
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    fn warnings(&self) -> Vec<String> {
        let warning = |event| if let Event::Warned { message } = event { Some(message) } else { None };
        self.recorder.events().into_iter().filter_map(warning).collect()
    }
}

/// All that is said of an error, and its Debug.
fn told(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = format!("{error:?}\n{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        told.push_str(&format!("\n{cause}"));
        source = cause.source();
    }
    told
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Children of this process that run `program` on `server`, by their numbers: other tests run at the same time.
fn children(server: &Postgres, program: &str) -> Vec<u32> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let (name, rest) = stat.split_once(") ").unwrap_or_default();
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let is_here = environment.split(|byte| *byte == 0).any(|entry| entry == format!("PGPORT={}", server.port()).as_bytes());
        is_here && name.ends_with(&format!("({program}")) && rest.split(' ').nth(1) == Some(own.as_str())
    };
    processes.filter(is_child).collect()
}

/// A session that does what `sql` says and stays until it is dropped.
struct Session(Child);

impl Session {
    fn begin(server: &Postgres, database: &str, application: &str, sql: &str) -> Self {
        let mut command = Command::new(server.programs().join("psql"));
        command
            .envs(server.environment())
            .env("PGAPPNAME", application)
            .args(["-X", "-q", "-d", database])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        // Its stdin stays open, and so does the session.
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), sql.as_bytes()).unwrap();
        Self(child)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A database with a table of `rows` rows of noise, 1 kB each.
fn with_noise(server: &Postgres, database: &str, rows: u32) {
    server.create_database(database);
    let noise = format!(
        "CREATE TABLE noise AS SELECT n, (SELECT string_agg(md5((n * 32 + m)::text), '') FROM generate_series(1, 32) AS m) AS text
         FROM generate_series(1, {rows}) AS n"
    );
    server.psql(database, &noise);
}

fn fact(dumped: &Dumped) -> DumpFact {
    DumpFact {
        key: "database/a.sql.gz".to_owned(),
        sha256: dumped.sha256,
        size: dumped.size_bytes,
        plain_size: dumped.plain_bytes,
        taken_at: dumped.taken_at,
        immich_version: dumped.server.immich_version.clone(),
        server_version: Some(dumped.server.short_version().to_owned()),
        program_version: Some(dumped.program_version.clone()),
        rows: 0,
        before_restore: false,
        without_data: dumped.without_data.clone(),
    }
}

async fn all(mut text: DumpText) -> Result<Vec<u8>, StoredDumpError> {
    let mut found = Vec::new();
    while let Some(piece) = text.next().await? {
        found.extend_from_slice(&piece);
    }
    Ok(found)
}

fn attributes() -> Attributes {
    Attributes { kind: Kind::File(Class::Original), sha256: None, mtime_ns: None, size_bytes: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_what_immich_wrote_loads_again_with_the_same_rows() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    server.create_loaded("immich", fixture.dump());
    let client = client(&server, "immich");
    let known = client.server().await.unwrap();
    assert_eq!((known.major(), known.immich_version.as_deref(), known.is_superuser), (18, Some("3.1.0"), true));
    assert!(known.extensions_installed.contains("vector") && known.extensions_available.contains("cube"), "{known:?}");
    assert_eq!(usize::try_from(known.tables_in_public), Ok(server.rows("immich").len()));
    assert!(known.database_bytes > 1 << 20 && known.may_create_in_database && known.owns_public && !known.is_standby);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let mut tried = Try::new();
        tried.plan.compression = compression;
        let dumped = tried.take(&client).await.unwrap();
        let (text, stored) = (tried.text.lock().unwrap().clone(), std::fs::read(tried.spool()).unwrap());
        assert_eq!((dumped.plain_bytes, dumped.size_bytes, dumped.sha256), (text.len() as u64, stored.len() as u64, Sha256::of(&stored)));
        assert!(dumped.size_bytes < dumped.plain_bytes / 2 && dumped.without_data.is_empty() && !dumped.program_is_newer && dumped.upload.is_none());
        assert!(dumped.program_version.starts_with("18."));
        assert!(all(DumpText::of_file(&tried.spool())).await.unwrap() == text);
        let text = String::from_utf8(text).unwrap();
        for wanted in ["DROP TABLE IF EXISTS public.asset;", "SET client_encoding = 'UTF8';", "-- PostgreSQL database dump complete"] {
            assert!(text.contains(wanted), "{wanted}");
        }
        assert!(!text.contains("OWNER TO") && !text.contains("\nGRANT "));
        let copy = format!("copy_{}", compression.extension());
        server.create_loaded(&copy, Dump::Text(text.as_bytes()));
        assert!(server.rows(&copy) == server.rows("immich"));
        // As programs other than ours read it.
        let tool = if compression == Compression::Gzip { "gzip" } else { "zstd" };
        let read = Command::new(tool).args(["-dc"]).stdin(std::fs::File::open(tried.spool()).unwrap()).output().unwrap();
        assert!(read.status.success() && read.stdout == text.as_bytes(), "{tool}");
        let events = tried.recorder.events();
        assert_eq!(events[0], Event::PhaseStarted { phase: Phase::Dump, total_files: None, total_bytes: Some(12_345) });
        assert_eq!(events.last(), Some(&Event::PhaseFinished { phase: Phase::Dump }));
        let read: u64 = events.iter().map(|event| if let Event::DumpRead { bytes } = event { *bytes } else { 0 }).sum();
        assert_eq!(read, dumped.plain_bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_goes_straight_into_the_store_and_is_there_once_it_is_finished() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 5_000);
    let mut tried = Try::new();
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::new(tried.folder.path()));
    let key = Key::parse("database/a.sql.gz").unwrap();
    tried.plan.destination = Destination::Store { store: Arc::clone(&store), key: key.clone(), attributes: attributes() };
    let mut dumped = tried.take(&client(&server, "immich")).await.unwrap();
    assert!(store.head(&key).await.unwrap().is_none());
    assert!(dumped.plain_bytes > 4 * DUMP_BLOCK_BYTES as u64);
    let created = dumped.upload.take().unwrap().finish(&dumped.sha256).await.unwrap();
    assert_eq!((created, store.head(&key).await.unwrap().unwrap().size_bytes), (Created::New, dumped.size_bytes));
    let text = all(DumpText::of_object(Arc::new(Fetcher::new(store)), &fact(&dumped))).await.unwrap();
    assert!(text == *tried.text.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_us_out_is_told_with_its_remedy_and_without_the_password() {
    let mut server = Postgres::start_plain().unwrap();
    server.create_database("immich");
    let programs = server.programs().to_owned();
    let at = |url: &str| Client::local(Connection::parse(url).unwrap().with_variable("PGCONNECT_TIMEOUT", "2"), vec![programs.clone()]);
    let wrong = server.url_as(Postgres::USER, "wrong-hunter2", "immich");
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let cases = [
        (wrong.clone(), "password authentication failed", "DB_PASSWORD"),
        (server.url("nothing"), "database \"nothing\" does not exist", "DB_DATABASE_NAME"),
        (server.url_as("nobody", "wrong-hunter2", "immich"), "password authentication failed", "DB_PASSWORD"),
        (format!("postgresql://postgres@127.0.0.1:{}/immich", server.port()), "no password supplied", "DB_PASSWORD"),
        ("postgresql://me:wrong-hunter2@127.0.0.1:1/immich".to_owned(), "Connection refused", "check that the database runs"),
        ("postgresql://me:wrong-hunter2@/immich?host=/nowhere".to_owned(), "No such file or directory", "check that the database runs"),
        (format!("postgresql://me:wrong-hunter2@{}/immich", deaf.local_addr().unwrap()), "timeout expired", "check that the database runs"),
    ];
    for (url, says, remedy) in cases {
        let (client, tried) = (at(&url), Try::new());
        for error in [client.server().await.map(drop).unwrap_err().into(), tried.take(&client).await.map(drop).unwrap_err()] {
            let told = format!("{} {client:?}", told(&error));
            assert!(told.contains(says) && error.hint().unwrap().contains(remedy), "{told}");
            assert!(!told.contains("hunter2") && !told.contains(Postgres::PASSWORD), "{told}");
            assert!(told.contains(&client.target()));
        }
        assert!(!tried.spool().exists());
    }
    let refused = client(&server, "immich").query("SELECT 1/0").await.unwrap_err();
    assert!(refused.to_string().contains("division by zero"), "{refused}");
    server.stop();
    assert!(told(&at(&server.url("immich")).server().await.unwrap_err()).contains("Connection refused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_known_for_one_and_a_dump_fails_for_want_of_them() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 10);
    server.create_role("poor", "poor-password", "");
    let url = server.url_as("poor", "poor-password", "immich");
    let client = Client::local(Connection::parse(&url).unwrap(), vec![server.programs().to_owned()]);
    let known = client.server().await.unwrap();
    assert_eq!((known.user.as_str(), known.is_superuser, known.may_create_in_database, known.may_create_databases), ("poor", false, false, false));
    assert!(!known.owns_public && known.immich_version.is_none() && known.tables_in_public == 1);
    let error = Try::new().take(&client).await.unwrap_err();
    assert!(error.to_string().contains("permission denied") && error.hint().unwrap().contains("Immich itself"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_comes_as_it_is_and_another_database_is_asked_by_its_name() {
    let server = Postgres::start_plain().unwrap();
    server.create_database("it's \"odd\" = x");
    let client = client(&server, "postgres");
    assert_eq!(client.query("SELECT 1, 'a b'; SELECT NULL, E'ä\\\\'").await.unwrap(), "1\ta b\n\tä\\");
    assert_eq!(client.query("").await.unwrap(), "");
    let odd = client.with_database("it's \"odd\" = x");
    assert_eq!(odd.query("SELECT current_database(), current_setting('application_name')").await.unwrap(), format!("it's \"odd\" = x\t{APPLICATION}"));
    assert_eq!(odd.target(), format!("`it's \"odd\" = x` at 127.0.0.1:{}", server.port()));
    let socket = format!("postgresql://postgres:{}@/postgres?host={}&port={}", Postgres::PASSWORD, server.socket_folder().display(), server.port());
    let by_socket = Client::local(Connection::parse(&socket).unwrap(), vec![server.programs().to_owned()]);
    assert_eq!(by_socket.query("SELECT inet_server_addr() IS NULL").await.unwrap(), "t");
    let much = client.query("SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await;
    assert!(matches!(much, Err(DatabaseError::TooMuch { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_read_to_its_end_and_its_first_error_ends_it() {
    let server = Postgres::start_plain().unwrap();
    let client = client(&server, "postgres");
    let arguments = ["--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file=-"].map(str::to_owned);
    let mut process = client.start(Program::Psql, &arguments, "test").await.unwrap();
    process.write("CREATE TABLE x (n int, t text);\nCOPY x FROM stdin;\n".into()).await.unwrap();
    for number in 0..2_000 {
        process.write(format!("{number}\t{}\n", "x".repeat(1_000)).into()).await.unwrap();
    }
    process.write("\\.\n".into()).await.unwrap();
    process.close_input().await.unwrap();
    assert_eq!(process.finish().await.unwrap().code, 0);
    assert_eq!(client.query("SELECT count(*) FROM x").await.unwrap(), "2000");
    let mut process = client.start(Program::Psql, &arguments, "test").await.unwrap();
    process.write("DELETE FROM x;\nSELECT nonsense;\n".into()).await.unwrap();
    let exited = process.finish().await.unwrap();
    assert!(exited.code == 3 && exited.stderr.contains("nonsense"), "{exited:?}");
    assert_eq!(client.query("SELECT count(*) FROM x").await.unwrap(), "2000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_older_than_the_server_is_refused_and_a_newer_one_is_told() {
    let (old, new) = (Postgres::start_plain().unwrap(), Postgres::start().unwrap());
    let (old_major, new_major) = (client(&old, "postgres").server().await.unwrap().major(), client(&new, "postgres").server().await.unwrap().major());
    assert!(old_major < new_major, "this needs two majors");
    let at = |server: &Postgres, folders: &[&Path]| {
        Client::local(Connection::parse(&server.url("postgres")).unwrap(), folders.iter().map(|folder| (*folder).to_owned()).collect())
    };
    let error = Try::new().take(&at(&new, &[old.programs()])).await.unwrap_err();
    let expected = (new_major, old_major.to_string());
    assert!(matches!(&error, DumpError::Database(DatabaseError::TooOld { server_major, found, .. }) if (*server_major, found.clone()) == expected), "{error}");
    assert!(error.hint().unwrap().contains(&format!("postgresql-client-{new_major}")));
    let dumped = Try::new().take(&at(&old, &[new.programs()])).await.unwrap();
    assert!(dumped.program_is_newer && dumped.program_version.starts_with(&format!("{new_major}.")));
    let empty = tempfile::tempdir().unwrap();
    let both = at(&old, &[empty.path(), new.programs(), old.programs()]);
    let dumped = Try::new().take(&both).await.unwrap();
    assert!(!dumped.program_is_newer && dumped.program_version.starts_with(&format!("{old_major}.")));
    assert_eq!(both.psql_version().await.unwrap().0, new_major);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pg_dump_that_was_killed_midway_is_never_taken_for_whole() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 60_000);
    let (tried, client) = (Try::new(), client(&server, "immich"));
    tried.hold.store(true, Ordering::SeqCst);
    let kill = async {
        until("text", || !tried.text.lock().unwrap().is_empty()).await;
        let [pid] = children(&server, "pg_dump")[..] else { panic!("there is one pg_dump") };
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(), rustix::process::Signal::KILL).unwrap();
        tried.hold.store(false, Ordering::SeqCst);
    };
    let (taken, ()) = tokio::join!(tried.take(&client), kill);
    let error = taken.unwrap_err();
    assert!(matches!(&error, DumpError::Database(DatabaseError::Failed { code: 137, .. })), "{error:?}");
    assert!(!tried.spool().exists());
    // The same where the server ends the connection.
    let tried = Try::new();
    tried.hold.store(true, Ordering::SeqCst);
    let end = async {
        until("text", || !tried.text.lock().unwrap().is_empty()).await;
        assert_eq!(end_orphans(&client, &tried.plan.application).await.unwrap(), 1);
        tried.hold.store(false, Ordering::SeqCst);
    };
    let (taken, ()) = tokio::join!(tried.take(&client), end);
    let error = taken.unwrap_err();
    // Whether the server's farewell still came through is a matter of luck.
    assert!(matches!(&error, DumpError::Database(DatabaseError::Failed { code: 1, .. })) && !tried.spool().exists(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_stays_locked_is_waited_for_only_so_long() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 10);
    let session = Session::begin(&server, "immich", "holder", "BEGIN; LOCK TABLE noise IN ACCESS EXCLUSIVE MODE;\n");
    until("the lock", || server.psql("immich", "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'noise'::regclass") == "1")
        .await;
    let (mut tried, client) = (Try::new(), client(&server, "immich"));
    tried.plan.lock_wait = Duration::from_millis(700);
    let began = Instant::now();
    let error = tried.take(&client).await.unwrap_err();
    assert!(matches!(&error, DumpError::Locked { stderr, .. } if stderr.contains("noise")), "{error:?}");
    assert!(error.hint().unwrap().contains("pg_stat_activity") && began.elapsed() < Duration::from_secs(20));
    drop(session);
    until("the end of the session", || server.connections("immich").is_empty()).await;
    tried.take(&client).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stopped_leaves_no_program_no_connection_and_no_file_behind() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 60_000);
    let client = client(&server, "immich");
    // Once while it reads, once while it waits for a lock.
    for is_locked in [false, true] {
        let tried = Try::new();
        let session = is_locked.then(|| Session::begin(&server, "immich", "holder", "BEGIN; LOCK TABLE noise IN ACCESS EXCLUSIVE MODE;\n"));
        tried.hold.store(!is_locked, Ordering::SeqCst);
        if is_locked {
            until("the lock", || server.connections("immich").iter().any(|one| one.application == "holder" && one.state == "idle in transaction")).await;
        }
        let stop = async {
            let is_there = || server.connections("immich").iter().any(|one| one.application == tried.plan.application);
            until("pg_dump", || is_there() && (is_locked || !tried.text.lock().unwrap().is_empty())).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            tried.halt.cancel();
            tokio::time::sleep(Duration::from_millis(200)).await;
            tried.hold.store(false, Ordering::SeqCst);
        };
        let (taken, ()) = tokio::join!(tried.take(&client), stop);
        assert!(matches!(taken, Err(DumpError::Stopped)), "{taken:?}");
        assert!(children(&server, "pg_dump").is_empty() && !tried.spool().exists());
        until("the end of the connection", || server.connections("immich").iter().all(|one| one.application != tried.plan.application)).await;
        drop(session);
    }
    // A future that is dropped kills the program too.
    let tried = Try::new();
    tried.hold.store(true, Ordering::SeqCst);
    let until_text = until("text", || !tried.text.lock().unwrap().is_empty());
    tokio::select! { _ = tried.take(&client) => panic!("it is held"), () = until_text => {} }
    tried.hold.store(false, Ordering::SeqCst);
    until("the end of pg_dump", || children(&server, "pg_dump").is_empty()).await;
    until("the end of the connection", || server.connections("immich").is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_that_very_name_are_ended_and_no_others() {
    let server = Postgres::start_plain().unwrap();
    server.create_database("immich");
    server.create_database("other");
    let name = application(&"00000000-1111-2222-3333-444444444444".parse::<WriterId>().unwrap());
    let sessions = [
        Session::begin(&server, "immich", &name, "BEGIN; SELECT 1;\n"),
        Session::begin(&server, "immich", &name, "SELECT pg_sleep(600);\n"),
        Session::begin(&server, "immich", "immich-backup 99999999-1111-2222-3333-444444444444", ""),
        Session::begin(&server, "other", &name, ""),
    ];
    until("sessions", || server.connections("immich").len() == 3 && server.connections("other").len() == 1).await;
    let client = client(&server, "immich");
    assert_eq!(end_orphans(&client, "o'r 1=1 --\\").await.unwrap(), 0);
    assert_eq!(end_orphans(&client, &name).await.unwrap(), 2);
    // Our own questions were connections too, and the server takes a moment to forget one that has gone.
    let left: Vec<_> = server.connections("immich").into_iter().map(|one| one.application).filter(|one| one != APPLICATION).collect();
    assert_eq!((left.as_slice(), server.connections("other").len()), (["immich-backup 99999999-1111-2222-3333-444444444444".to_owned()].as_slice(), 1));
    assert_eq!(end_orphans(&client, &name).await.unwrap(), 0);
    drop(sessions);
}

/// Takes away the chunks of a table's large values, as a damaged disk does.
fn damage(server: &Postgres, database: &str, table: &str) {
    let toast = server.psql(database, &format!("SELECT reltoastrelid::regclass FROM pg_class WHERE oid = '{table}'::regclass"));
    // An ordinary table for a moment: the rows of another cannot be deleted.
    server.psql(
        database,
        &format!(
            "SET allow_system_table_mods = on; UPDATE pg_class SET relkind = 'r' WHERE oid = '{toast}'::regclass;
             DELETE FROM {toast}; UPDATE pg_class SET relkind = 't' WHERE relname = split_part('{toast}', '.', 2);"
        ),
    );
    // Chunks that are deleted are still found by who has their number.
    server.psql(database, &format!("VACUUM {table}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_what_immich_can_make_again_is_left_out_loudly_and_other_damage_is_an_error() {
    let server = Postgres::start_plain().unwrap();
    server.create_database("immich");
    for table in ["face_search", "smart_search", "asset"] {
        server.psql(
            "immich",
            &format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, embedding text); ALTER TABLE {table} ALTER embedding SET STORAGE EXTERNAL;
                 INSERT INTO {table} SELECT n, repeat('{table} value ', 1000) FROM generate_series(1, 20) AS n"
            ),
        );
    }
    damage(&server, "immich", "face_search");
    let (tried, client) = (Try::new(), client(&server, "immich"));
    let dumped = tried.take(&client).await.unwrap();
    assert_eq!(dumped.without_data, REMAKEABLE_TABLES);
    let [warning] = &tried.warnings()[..] else { panic!("it is said once") };
    assert!(warning.contains("missing chunk number") && warning.contains("face_search") && warning.contains("smart_search"), "{warning}");
    let text = String::from_utf8(tried.text.lock().unwrap().clone()).unwrap();
    assert!(text.contains("CREATE TABLE public.face_search") && !text.contains("COPY public.face_search") && !text.contains("smart_search value"));
    assert_eq!(text.matches("COPY public.asset").count(), 1, "the reader of the second try starts anew");
    assert_eq!(dumped.plain_bytes, text.len() as u64);
    assert!(all(DumpText::of_file(&tried.spool())).await.unwrap() == text.as_bytes());
    damage(&server, "immich", "asset");
    let tried = Try::new();
    let error = tried.take(&client).await.unwrap_err();
    assert!(error.to_string().contains("missing chunk number") && !tried.spool().exists(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_password_stands_on_no_command_line_and_no_variable_of_ours_reaches_the_program() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 60_000);
    let (tried, client) = (Try::new(), client(&server, "immich"));
    tried.hold.store(true, Ordering::SeqCst);
    let look = async {
        until("text", || !tried.text.lock().unwrap().is_empty()).await;
        let [pid] = children(&server, "pg_dump")[..] else { panic!("there is one pg_dump") };
        let read = |name: &str| String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned();
        let (arguments, environment) = (read("cmdline"), read("environ"));
        assert!(!arguments.contains(Postgres::PASSWORD) && arguments.contains("--no-password"), "{arguments}");
        let names: BTreeSet<_> = environment.split('\0').filter_map(|entry| Some(entry.split_once('=')?.0)).collect();
        let expected = ["LC_ALL", "PATH", "PGAPPNAME", "PGCLIENTENCODING", "PGCONNECT_TIMEOUT", "PGDATABASE", "PGHOST", "PGPASSWORD", "PGPORT", "PGUSER"];
        assert_eq!(names, BTreeSet::from(expected));
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&arguments).contains(Postgres::PASSWORD));
        }
        tried.hold.store(false, Ordering::SeqCst);
    };
    let (taken, ()) = tokio::join!(tried.take(&client), look);
    let shown = format!("{client:?} {:?} {:?} {}", taken.unwrap(), tried.recorder.events(), Password::new(Postgres::PASSWORD));
    assert!(!shown.contains(Postgres::PASSWORD), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_wants_no_more_and_a_spool_that_cannot_be_written_end_the_dump() {
    let server = Postgres::start_plain().unwrap();
    with_noise(&server, "immich", 20_000);
    let client = client(&server, "immich");
    let mut tried = Try::new();
    let monitor: Arc<dyn Monitor> = tried.recorder.clone();
    let sinks = || Ok(|_: &[u8]| -> Result<(), SinkError> { Err("that is no SQL".into()) });
    let refused = take(&client, &tried.plan, sinks, &monitor, &tried.halt).await.map(|(dumped, _)| dumped).unwrap_err();
    assert!(matches!(&refused, DumpError::Sink { .. }) && told(&refused).contains("that is no SQL"), "{refused:?}");
    assert!(children(&server, "pg_dump").is_empty() && !tried.spool().exists());
    tried.plan.destination = Destination::Spool(tried.folder.path().join("none/spool"));
    let error = tried.take(&client).await.unwrap_err();
    assert!(matches!(&error, DumpError::Spool { .. }), "{error:?}");
    // A disk that is full; it is this link that goes away again.
    std::os::unix::fs::symlink("/dev/full", tried.spool()).unwrap();
    tried.plan.destination = Destination::Spool(tried.spool());
    let error = tried.take(&client).await.unwrap_err();
    assert!(matches!(&error, DumpError::SpoolFull { folder, .. } if folder == tried.folder.path()), "{error:?}");
    assert!(!tried.spool().exists() && Path::new("/dev/full").exists());
    until("the end of the connections", || server.connections("immich").is_empty()).await;
}
