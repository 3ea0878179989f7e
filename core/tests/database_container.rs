//! PostgreSQL's programs inside the database's own container, through Docker's API, with none of them on this machine.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use immich_backup_core::database::client::{Client, Program};
use immich_backup_core::database::compress::Compression;
use immich_backup_core::database::container::ContainerOptions;
use immich_backup_core::database::dump::{Destination, DumpError, DumpPlan, SinkError, end_orphans, take};
use immich_backup_core::database::error::DatabaseError;
use immich_backup_core::database::stored::DumpText;
use immich_backup_core::event::{Monitor, Silent};
use immich_backup_core::model::Sha256;
use immich_backup_core::stack::engine::EngineError;
use immich_backup_testbed::docker::{self, Container, Engine};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Dump;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Longer than the program itself waits for Docker, so that its own error is what a test shows.
const LONG: Duration = Duration::from_secs(100);
const NAME: &str = "immich-backup of a test";

fn options(engine: &Engine, container: &str) -> ContainerOptions {
    ContainerOptions { docker: engine.host(), container: container.to_owned(), user: None, database: None, password: None, run_as: None }
}

fn plan(spool: &Path) -> DumpPlan {
    DumpPlan {
        application: NAME.to_owned(),
        compression: Compression::Gzip,
        destination: Destination::Spool(spool.to_owned()),
        lock_wait: LONG,
        estimated_bytes: None,
    }
}

/// A reader that keeps what it gets, and holds everything up while it is told to.
#[derive(Clone, Default)]
struct Reader {
    text: Arc<Mutex<Vec<u8>>>,
    hold: Arc<AtomicBool>,
}

impl Reader {
    fn sink(&self) -> Result<impl FnMut(&[u8]) -> Result<(), SinkError> + Send + 'static + use<>, SinkError> {
        let reader = self.clone();
        Ok(move |piece: &[u8]| {
            reader.text.lock().unwrap().extend_from_slice(piece);
            let began = Instant::now();
            while reader.hold.load(Ordering::SeqCst) && began.elapsed() < LONG {
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        })
    }

    async fn has_text(&self) {
        until("text", || !self.text.lock().unwrap().is_empty()).await;
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many processes of this name run in the container.
fn running(container: &Container<'_>, program: &str) -> usize {
    let count = "for file in /proc/[0-9]*/comm; do cat \"$file\" 2>/dev/null; done";
    container.exec(&["sh", "-c", count]).lines().filter(|name| *name == program).count()
}

fn connections(container: &Container<'_>) -> String {
    container.psql("immich", &format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{NAME}'"))
}

// One engine for all: it takes some seconds to start.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_a_container_is_dumped_and_asked_by_its_own_programs() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let container = engine.postgres("immich_postgres").unwrap();
    if let Some(fixture) = Fixture::open(IMMICH_3) {
        container.load("immich", fixture.dump());
    }
    let client = Client::in_container(options(&engine, "immich_postgres")).await.unwrap();
    assert_eq!(client.target(), "`immich` in the container `immich_postgres`");
    let server = client.server().await.unwrap();
    assert_eq!((server.major(), server.user.as_str(), client.psql_version().await.unwrap().0), (18, "postgres", 18));
    it_loads_again(&client, &container).await;
    input_is_read_to_its_end(&client).await;
    what_ends_early_ends_there_too(&engine, &client, &container).await;
    what_is_wrong_is_told(&engine, &client, &container).await;
}

async fn it_loads_again(client: &Client, container: &Container<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let (reader, monitor): (_, Arc<dyn Monitor>) = (Reader::default(), Arc::new(Silent));
    let plan = plan(&folder.path().join("spool"));
    let (dumped, _) = take(client, &plan, || reader.sink(), &monitor, &CancellationToken::new()).await.unwrap();
    let text = reader.text.lock().unwrap().clone();
    assert_eq!(dumped.sha256, Sha256::of(&std::fs::read(folder.path().join("spool")).unwrap()));
    assert!(text.windows(40).any(|window| window.starts_with(b"-- PostgreSQL database dump complete")) && !text.contains(&b'\r'));
    let mut stored = DumpText::of_file(&folder.path().join("spool"));
    let mut read = Vec::new();
    while let Some(piece) = stored.next().await.unwrap() {
        read.extend_from_slice(&piece);
    }
    assert!(read == text);
    container.psql("postgres", "CREATE DATABASE again");
    container.load("again", Dump::Text(&text));
    assert!(container.rows("again") == container.rows("immich"));
}

async fn input_is_read_to_its_end(client: &Client) {
    let arguments = ["--quiet", "--single-transaction", "--set=ON_ERROR_STOP=1", "--file=-"].map(str::to_owned);
    let mut process = client.start(Program::Psql, &arguments, NAME).await.unwrap();
    process.write("CREATE TABLE x (n int, t text);\nCOPY x FROM stdin;\n".into()).await.unwrap();
    for number in 0..5_000 {
        process.write(format!("{number}\t{}\n", "x".repeat(1_000)).into()).await.unwrap();
    }
    process.write("\\.\nSELECT 'the end';\n".into()).await.unwrap();
    process.close_input().await.unwrap();
    let said = process.read().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&said).contains("the end"));
    assert_eq!(process.finish().await.unwrap().code, 0);
    assert_eq!(client.query("SELECT count(*), sum(length(t)) FROM x").await.unwrap(), "5000\t5000000");
    // What answers while it is written to, much more than a pipe holds.
    let much = "SELECT repeat('y', 1000);\n".repeat(3_000);
    assert_eq!(client.query(&much).await.unwrap().len(), 3_000 * 1_001 - 1);
    let mut process = client.start(Program::Psql, &arguments, NAME).await.unwrap();
    process.write("DELETE FROM x;\nSELECT nonsense;\n".into()).await.unwrap();
    let exited = process.finish().await.unwrap();
    assert!(exited.code == 3 && exited.stderr.contains("nonsense") && !exited.stderr.contains("runs as"), "{exited:?}");
    assert_eq!(client.query("SELECT count(*) FROM x").await.unwrap(), "5000");
}

/// What became of a dump that `end` ends; one that ended before, by itself, says why.
async fn ended_by<T>(end: impl Future<Output = ()>, mut take: impl Future<Output = Result<T, DumpError>> + Unpin) -> Result<(), DumpError> {
    tokio::select! {
        taken = &mut take => panic!("it ended by itself: {:?}", taken.map(drop)),
        () = end => {}
    }
    take.await.map(drop)
}

async fn what_ends_early_ends_there_too(engine: &Engine, client: &Client, container: &Container<'_>) {
    container.psql("immich", "CREATE TABLE noise AS SELECT repeat(md5(n::text), 32) FROM generate_series(1, 100000) AS n");
    let folder = tempfile::tempdir().unwrap();
    let (plan, monitor): (_, Arc<dyn Monitor>) = (plan(&folder.path().join("spool")), Arc::new(Silent));
    // Stopped: it has ended when `take` returns.
    let (reader, halt) = (Reader::default(), CancellationToken::new());
    reader.hold.store(true, Ordering::SeqCst);
    let stopped_at = Mutex::new(None);
    let stop = async {
        reader.has_text().await;
        assert_eq!((running(container, "pg_dump"), connections(container).as_str()), (1, "1"));
        *stopped_at.lock().unwrap() = Some(Instant::now());
        halt.cancel();
        reader.hold.store(false, Ordering::SeqCst);
    };
    let taken = ended_by(stop, Box::pin(take(client, &plan, || reader.sink(), &monitor, &halt))).await;
    assert!(matches!(taken, Err(DumpError::Stopped)));
    assert!(stopped_at.lock().unwrap().unwrap().elapsed() < Duration::from_secs(4), "it was waited for in vain");
    assert_eq!(running(container, "pg_dump"), 0);
    until("the end of the connection", || connections(container) == "0").await;
    // Dropped: it ends soon.
    let (reader, halt) = (Reader::default(), CancellationToken::new());
    reader.hold.store(true, Ordering::SeqCst);
    tokio::select! {
        taken = take(client, &plan, || reader.sink(), &monitor, &halt) => panic!("it is held, and ended: {:?}", taken.map(drop)),
        () = reader.has_text() => {}
    }
    reader.hold.store(false, Ordering::SeqCst);
    until("the end of pg_dump", || running(container, "pg_dump") == 0).await;
    until("the end of the connection", || connections(container) == "0").await;
    // Killed there, or its connection ended: never taken for whole.
    for is_orphan in [false, true] {
        let reader = Reader::default();
        reader.hold.store(true, Ordering::SeqCst);
        let end = async {
            reader.has_text().await;
            if is_orphan {
                assert_eq!(end_orphans(client, NAME).await.unwrap(), 1);
            } else {
                let kill = "for process in /proc/[0-9]*; do [ \"$(cat $process/comm 2>/dev/null)\" != pg_dump ] || kill -9 ${process#/proc/}; done";
                // Not waited for: Docker tells of no end in this container before what `pg_dump` said is taken, which is held up here.
                engine.docker(&["exec", "--detach", container.name(), "sh", "-c", kill]);
            }
            reader.hold.store(false, Ordering::SeqCst);
        };
        let error = ended_by(end, Box::pin(take(client, &plan, || reader.sink(), &monitor, &halt))).await.unwrap_err();
        let code = if is_orphan { 1 } else { 137 };
        assert!(matches!(&error, DumpError::Database(DatabaseError::Failed { code: found, .. }) if *found == code), "{error:?}");
    }
}

async fn what_is_wrong_is_told(engine: &Engine, client: &Client, container: &Container<'_>) {
    let open = async |options: ContainerOptions| Client::in_container(options).await;
    let error = open(options(engine, "immich_posgres")).await.unwrap_err();
    assert!(
        matches!(&error, DatabaseError::NoContainer { container } if container == "immich_posgres") && error.hint().unwrap().contains("docker ps"),
        "{error}"
    );
    let nowhere = ContainerOptions { docker: "unix:///nowhere/docker.sock".to_owned(), ..options(engine, "immich_postgres") };
    let error = open(nowhere).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::Engine(EngineError::Socket { .. })) && error.hint().unwrap().contains("socket"), "{error}");
    let ssh = ContainerOptions { docker: "ssh://me@there".to_owned(), ..options(engine, "immich_postgres") };
    assert!(matches!(open(ssh).await, Err(DatabaseError::Engine(EngineError::Address { .. }))));
    let missing = client.with_database("nothing").server().await.unwrap_err();
    assert!(missing.to_string().contains("database \"nothing\" does not exist"), "{missing}");
    let stranger = Client::in_container(ContainerOptions { run_as: Some("stranger".to_owned()), ..options(engine, "immich_postgres") }).await.unwrap();
    let error = stranger.server().await.unwrap_err();
    assert!(error.to_string().contains("stranger"), "{error:?}");

    // Another user and database, by the container's own environment; and no `pg_dump` in it.
    let given = docker::ContainerOptions { user: "immich".into(), database: "photos".into(), ..docker::ContainerOptions::default() };
    let other = engine.postgres_with("other", &given).unwrap();
    let in_other = Client::in_container(options(engine, "other")).await.unwrap();
    assert_eq!(in_other.query("SELECT current_user, current_database()").await.unwrap(), "immich\tphotos");
    assert!(!format!("{in_other:?}").contains(&given.password));
    other.exec(&["sh", "-c", "rm \"$(command -v pg_dump)\""]);
    let error = in_other.pg_dump_version().await.unwrap_err();
    assert!(matches!(&error, DatabaseError::NotInContainer { program: "pg_dump", .. }), "{error:?}");
    drop(other);

    container.pause();
    let error = open(options(engine, "immich_postgres")).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::NotRunning { status, .. } if status == "paused"), "{error}");
    let error = client.server().await.unwrap_err();
    assert!(matches!(&error, DatabaseError::NotRunning { .. }), "{error:?}");
    container.unpause();
    // Stopped while it is dumped.
    let folder = tempfile::tempdir().unwrap();
    let (plan, monitor): (_, Arc<dyn Monitor>) = (plan(&folder.path().join("spool")), Arc::new(Silent));
    let (reader, halt) = (Reader::default(), CancellationToken::new());
    reader.hold.store(true, Ordering::SeqCst);
    let kill = async {
        reader.has_text().await;
        tokio::task::block_in_place(|| container.kill());
        reader.hold.store(false, Ordering::SeqCst);
    };
    let (taken, ()) = tokio::join!(take(client, &plan, || reader.sink(), &monitor, &halt), kill);
    let error = taken.map(drop).unwrap_err();
    assert!(matches!(&error, DumpError::Database(_)) && !folder.path().join("spool").exists(), "{error:?}");
    until("the container's end", || container.state() == "exited").await;
    let error = open(options(engine, "immich_postgres")).await.unwrap_err();
    assert!(matches!(&error, DatabaseError::NotRunning { status, .. } if status == "exited") && error.hint().is_some(), "{error}");
}
