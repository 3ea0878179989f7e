//! PostgreSQL servers for tests start, load what real Immich servers wrote, refuse wrong passwords, and are gone afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stdout, reason = "how long a server takes to start is worth knowing")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::{Dump, Options, Postgres};

fn listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn both_fixtures_load_whole_and_a_copy_of_one_has_the_same_rows() {
    let began = Instant::now();
    let server = Postgres::start().unwrap();
    println!("PostgreSQL was ready after {:?}", began.elapsed());
    for fixture in Fixture::all() {
        let database = fixture.expected.version.as_str();
        server.create_loaded(database, fixture.dump());
        let counts = server.counts(database);
        let table = |singular: &str, plural: &str| counts.get(singular).or(counts.get(plural)).copied();
        assert_eq!((table("asset", "assets"), fixture.expected.assets.len()), (Some(97), 97));
        assert_eq!(table("asset_file", "asset_files"), Some(fixture.expected.counts.asset_files));
        assert_eq!(table("user", "users"), Some(fixture.expected.users.len() as u64));
        let rows = server.rows(database);
        assert_eq!(rows.iter().map(|(table, rows)| (table.clone(), rows.len() as u64)).collect::<BTreeMap<_, _>>(), counts);
        server.wait_until_alone(database, Duration::from_secs(20));

        let dump = Command::new(server.programs().join("pg_dump")).arg(server.url(database)).output().unwrap();
        assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
        server.create_loaded("copy", Dump::Text(&dump.stdout));
        assert_eq!(server.rows("copy"), rows);
        server.psql("copy", "DELETE FROM version_history");
        assert_ne!(server.rows("copy"), rows);
        server.psql("postgres", "DROP DATABASE copy");
    }
    let (port, folder) = (server.port(), server.socket_folder().to_path_buf());
    drop(server);
    assert!(!listens(port));
    assert!(!folder.exists());
}

#[test]
fn a_wrong_password_is_refused_on_every_way_in() {
    let server = Postgres::start().unwrap();
    server.create_role("o'reilly \"x\"", "p@ss/w:örd", "CREATEDB");
    let address = |password: &str| server.url_as("o'reilly \"x\"", password, "postgres");
    let asked = |arguments: &[&str], password: &str| {
        let mut psql = Command::new(server.programs().join("psql"));
        psql.args(["-X", "-A", "-t", "-w", "-c", "SELECT current_user"]).args(arguments).env("PGPASSWORD", password).output().unwrap()
    };
    assert_eq!(asked(&[&address("p@ss/w:örd")], "").stdout, b"o'reilly \"x\"\n");
    assert!(String::from_utf8_lossy(&asked(&[&address("wrong")], "").stderr).contains("password authentication failed"));
    let (folder, port) = (server.socket_folder().to_str().unwrap(), server.port().to_string());
    let socket = ["-h", folder, "-p", &port, "-U", "postgres", "postgres"];
    assert_eq!(asked(&socket, Postgres::PASSWORD).stdout, b"postgres\n");
    assert!(!asked(&socket, "wrong").status.success());
    assert!(server.psql_as("postgres", "wrong", "postgres", "SELECT 1").unwrap_err().contains("password authentication failed"));
    assert!(server.log().contains("password authentication failed"));
}

#[test]
fn who_is_connected_is_seen_and_a_stopped_server_answers_nobody() {
    let mut server = Postgres::start_with(&Options { settings: vec![("max_connections".into(), "17".into())], ..Options::default() }).unwrap();
    assert_eq!(server.psql("postgres", "SHOW max_connections"), "17");
    server.create_database("a b");
    assert_eq!(server.databases(), ["a b", "postgres"]);
    let mut sleeper = Command::new(server.programs().join("psql"));
    sleeper.args(["-X", "-c", "SELECT pg_sleep(600)"]).arg(server.url("a b")).env("PGAPPNAME", "sleeper").stderr(Stdio::null());
    let mut sleeper = sleeper.spawn().unwrap();
    let began = Instant::now();
    while server.connections("a b").is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20));
        thread::sleep(Duration::from_millis(20));
    }
    let connections = server.connections("a b");
    assert_eq!((connections.len(), connections[0].application.as_str()), (1, "sleeper"));
    server.stop();
    assert!(!sleeper.wait().unwrap().success());
    assert!(server.try_psql("postgres", "SELECT 1").is_err());
    assert!(server.log().contains("shut down"));
}

#[test]
fn the_plain_one_has_no_vector() {
    let server = Postgres::start_plain().unwrap();
    assert_eq!(server.psql("postgres", "SELECT count(*) FROM pg_available_extensions WHERE name IN ('vector', 'vchord', 'vectors')"), "0");
    let refusal = server.try_psql("postgres", "CREATE EXTENSION vector").unwrap_err();
    assert!(refusal.contains("vector"), "{refusal}");
    assert!(server.programs().starts_with("/usr/lib/postgresql"));
}

#[test]
fn a_copy_of_a_fixture_has_all_its_files_with_times_in_the_past_that_stay() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let (one, other) = (fixture.copy(), fixture.copy());
    for asset in &fixture.expected.assets {
        let [one, other] = [&one, &other].map(|files| fs::metadata(files.find(&asset.original_path).unwrap()).unwrap());
        assert_eq!(one.len(), asset.size);
        assert_eq!(one.modified().unwrap(), other.modified().unwrap());
        assert!(one.modified().unwrap().duration_since(UNIX_EPOCH).unwrap() < Duration::from_secs(1_700_000_001));
    }
    let count = |folder: &Path| {
        let found = Command::new("find").arg(folder).args(["-type", "f", "-printf", "x"]).output().unwrap();
        found.stdout.len() as u64
    };
    assert_eq!(count(&one.media()), fixture.expected.counts.files_on_disk);
}

const AS_VICTIM: &str = "IMMICH_BACKUP_TESTBED_VICTIM";

/// Not a test: what the next one starts and kills.
#[test]
fn victim() {
    if env::var_os(AS_VICTIM).is_none() {
        return;
    }
    let server = thread::spawn(|| Postgres::start().unwrap()).join().unwrap();
    println!("\nlistens at {}", server.port());
    server.try_psql("postgres", "SELECT pg_sleep(60)").unwrap();
}

#[test]
fn a_killed_test_leaves_no_server_behind() {
    let mut command = Command::new(env::current_exe().unwrap());
    // It cannot remove its folders either.
    let folder = tempfile::tempdir().unwrap();
    command.args(["--exact", "victim", "--nocapture"]).env(AS_VICTIM, "1").env("TMPDIR", folder.path()).stdout(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let port = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("listens at ").map(|port| port.parse().unwrap())).unwrap();
    assert!(listens(port));
    victim.kill().unwrap();
    victim.wait().unwrap();
    let began = Instant::now();
    while listens(port) {
        assert!(began.elapsed() < Duration::from_secs(20), "the server on port {port} has outlived its test");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_database_for_measurements_has_the_assets_asked_for_and_can_be_dumped_and_loaded() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    server.create_loaded("immich", fixture.dump());
    let before = server.counts("immich");
    let indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public' AND indexdef NOT LIKE '% USING hnsw %'";
    let indexes_before = server.psql("immich", indexes);
    server.fill("immich", 2_000);
    let added = |table: &str| server.counts("immich")[table] - before[table];
    assert_eq!(["asset", "asset_exif", "asset_face", "smart_search", "face_search"].map(added), [2_000; 5]);
    assert_eq!(added("asset_file"), 4_000);
    assert_eq!(server.psql("immich", indexes), indexes_before);
    // With all its foreign keys and unique indexes.
    let dump = Command::new(server.programs().join("pg_dump")).arg(server.url("immich")).output().unwrap();
    server.create_loaded("copy", Dump::Text(&dump.stdout));
    assert_eq!(server.counts("copy"), server.counts("immich"));
}
