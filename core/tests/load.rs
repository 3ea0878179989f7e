//! Loading dumps of real Immich servers into real PostgreSQL servers: whole, or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use bytes::Bytes;
use futures_util::stream;
use immich_backup_core::database::filter::{Filter, FilterError, FilterOptions, Head};
use immich_backup_core::database::load::{LoadError, LoadOptions, LoadPlan, Loaded, clear, count_rows, differences, load, preflight, survey};
use immich_backup_core::database::{Client, Connection};
use immich_backup_core::event::{Event, Phase, Recorder, Silent};
use immich_backup_testbed::fixture::{Fixture, IMMICH_1, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What a piece of a dump has in these tests.
const PIECE: usize = 40_000;

fn client(server: &Postgres, database: &str) -> Client {
    Client::local(Connection::parse(&server.url(database)).unwrap(), vec![server.programs().to_owned()])
}

fn client_as(server: &Postgres, user: &str, database: &str) -> Client {
    Client::local(Connection::parse(&server.url_as(user, "secret", database)).unwrap(), vec![server.programs().to_owned()])
}

fn pieces(text: &[u8]) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> + Unpin + use<> {
    stream::iter(text.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect::<Vec<_>>())
}

async fn planned(client: &Client, text: &[u8], options: &LoadOptions) -> Result<LoadPlan, LoadError> {
    let head = survey(pieces(text), None).await?;
    preflight(client, &head, options).await
}

async fn loaded_with(client: &Client, text: &[u8], options: &LoadOptions) -> Result<Loaded, LoadError> {
    let plan = planned(client, text, options).await?;
    load(client, &plan, pieces(text), &Silent, &CancellationToken::new()).await
}

async fn loaded(client: &Client, text: &[u8]) -> Result<Loaded, LoadError> {
    loaded_with(client, text, &LoadOptions::default()).await
}

fn as_text() -> LoadOptions {
    LoadOptions { vectors_as_text: true, ..LoadOptions::default() }
}

/// The rows of Immich's database as the dump has them, sorted, table by table.
fn rows_of(text: &[u8], database: Option<&str>) -> BTreeMap<String, Vec<String>> {
    let text = String::from_utf8(text.to_vec()).unwrap();
    let text = match database {
        Some(name) => text.rsplit_once(&format!("\\connect {name}\n")).unwrap().1,
        None => &text,
    };
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(rest) = line.strip_prefix("COPY public.") {
            let name = rest.split(" (").next().unwrap().trim_matches('"').to_owned();
            let mut rows: Vec<String> = lines.by_ref().take_while(|line| *line != "\\.").map(str::to_owned).collect();
            rows.sort_unstable();
            tables.insert(name, rows);
        }
        if line.starts_with("\\connect") {
            break;
        }
    }
    tables
}

fn same_rows(expected: &BTreeMap<String, Vec<String>>, found: &BTreeMap<String, Vec<String>>) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (table, rows) in expected {
        assert!(rows == &found[table], "`{table}` differs: {} and {} rows", rows.len(), found[table].len());
    }
}

/// A path that a program started by the dump would make.
fn trap() -> PathBuf {
    let folder = tempfile::tempdir().unwrap().keep();
    std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    folder.join("sprung")
}

#[tokio::test]
async fn each_generation_is_loaded_whole_with_the_same_rows_in_every_table() {
    let server = Postgres::start().unwrap();
    for (name, database) in [(IMMICH_3, None), (IMMICH_1, Some("immich"))] {
        let Some(fixture) = Fixture::open(name) else { return };
        let text = fixture.dump_text();
        server.create_database(name);
        let client = client(&server, name);
        let recorder = Recorder::default();
        let plan = planned(&client, &text, &LoadOptions::default()).await.unwrap();
        assert!(plan.makes.contains("vector") && plan.replaces.is_empty() && plan.warnings.is_empty(), "{plan:?}");
        let loaded = load(&client, &plan, pieces(&text), &recorder, &CancellationToken::new()).await.unwrap();
        same_rows(&rows_of(&text, database), &server.rows(name));
        let counted = count_rows(&client, &loaded.rows).await.unwrap();
        assert_eq!(differences(&loaded.rows, &counted), []);
        assert_eq!(counted, server.counts(name));
        assert_eq!((loaded.bytes, loaded.as_text.len(), loaded.left_out.len(), loaded.maintenance_cleared), (text.len() as u64, 0, 0, false));
        let read: u64 = recorder.events().iter().map(|event| if let Event::DumpLoaded { bytes } = event { *bytes } else { 0 }).sum();
        assert_eq!(read, text.len() as u64);
        assert_eq!(recorder.events().last(), Some(&Event::PhaseFinished { phase: Phase::Load }));
        // Indexes, constraints and triggers are there too: as many as the dump has.
        let text = String::from_utf8(text).unwrap();
        let made = text.matches("\nCREATE INDEX ").count()
            + text.matches("\nCREATE UNIQUE INDEX ").count()
            + text.matches(" PRIMARY KEY (").count()
            + text.matches(" UNIQUE (").count();
        let indexes = server.psql(name, "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public'");
        assert_eq!(indexes.trim().parse::<usize>().unwrap(), made, "{name}");
    }
}

#[tokio::test]
async fn an_ordinary_owner_loads_a_dump_where_the_extensions_are_there() {
    let server = Postgres::start().unwrap();
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let text = fixture.dump_text();
    server.create_role("app", "secret", "NOSUPERUSER");
    server.psql("postgres", "CREATE DATABASE app OWNER app");
    let client = client_as(&server, "app", "app");
    // As CloudNativePG makes it: what is not trusted comes from a superuser.
    let refused = planned(&client, &text, &LoadOptions::default()).await;
    if let Err(error) = &refused {
        assert!(matches!(error, LoadError::ExtensionRights { extensions, .. } if extensions.contains(&"vector".to_owned())), "{error}");
        assert!(error.hint().unwrap().contains("CREATE EXTENSION \"vector\";"), "{:?}", error.hint());
    }
    for extension in ["cube", "earthdistance", "pg_trgm", "unaccent", "\"uuid-ossp\"", "vector"] {
        server.psql("app", &format!("CREATE EXTENSION {extension} SCHEMA public"));
    }
    let loaded = loaded(&client, &text).await.unwrap();
    assert_eq!(differences(&loaded.rows, &count_rows(&client, &loaded.rows).await.unwrap()), []);
    same_rows(&rows_of(&text, None), &server.rows("app"));
    let others = server.psql("app", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tableowner <> 'app'");
    assert_eq!(others.trim(), "0");

    server.create_role("guest", "secret", "NOSUPERUSER");
    server.create_database("foreign");
    let error = planned(&client_as(&server, "guest", "foreign"), b"", &LoadOptions::default()).await.unwrap_err();
    assert!(matches!(error, LoadError::Filter(FilterError::Cut { .. })), "{error}");
    let error = preflight(&client_as(&server, "guest", "foreign"), &Head::default(), &LoadOptions::default()).await.unwrap_err();
    assert!(matches!(error, LoadError::Rights { .. }), "{error}");
}

#[tokio::test]
async fn without_vectors_a_dump_is_refused_or_loaded_with_their_columns_as_text() {
    let server = Postgres::start_plain().unwrap();
    for (name, database) in [(IMMICH_3, None), (IMMICH_1, Some("immich"))] {
        let Some(fixture) = Fixture::open(name) else { return };
        let text = fixture.dump_text();
        server.create_database(name);
        let client = client(&server, name);
        let error = loaded(&client, &text).await.unwrap_err();
        assert!(matches!(&error, LoadError::Extensions { extensions, .. } if extensions == &["vector"]), "{error}");
        assert!(error.hint().unwrap().contains("pgvector"));
        assert_eq!(server.counts(name).len(), 0);
        let loaded = loaded_with(&client, &text, &as_text()).await.unwrap();
        assert_eq!(loaded.as_text.iter().map(String::as_str).collect::<Vec<_>>(), ["face_search", "smart_search"], "{name}");
        same_rows(&rows_of(&text, database), &server.rows(name));
        assert_eq!(differences(&loaded.rows, &count_rows(&client, &loaded.rows).await.unwrap()), []);
    }
}

#[tokio::test]
async fn a_database_that_is_not_empty_is_left_alone_or_replaced_in_one_transaction() {
    let server = Postgres::start().unwrap();
    let (Some(newer), Some(older)) = (Fixture::open(IMMICH_3), Fixture::open(IMMICH_1)) else { return };
    server.create_database("immich");
    let client = client(&server, "immich");
    loaded(&client, &older.dump_text()).await.unwrap();
    let before = server.rows("immich");
    let error = loaded(&client, &newer.dump_text()).await.unwrap_err();
    assert!(
        matches!(&error, LoadError::NotEmpty { there, .. } if there.contains(&"assets".to_owned()) && there.contains(&"system_metadata".to_owned())),
        "{error}"
    );
    assert!(error.to_string().contains(" more") && error.hint().unwrap().contains("--replace"), "{error}");

    let replace = LoadOptions { replace: true, ..LoadOptions::default() };
    let cut = newer.dump_text();
    let cut = &cut[..cut.len() - 100];
    assert!(loaded_with(&client, cut, &replace).await.is_err());
    assert_eq!(server.rows("immich"), before, "a load that failed has replaced nothing");

    let idle = client.clone();
    let mut immich = idle.start(immich_backup_core::database::Program::Psql, &["--quiet".to_owned()], "immich").await.unwrap();
    immich.write(Bytes::from_static(b"SELECT 1;\n")).await.unwrap();
    immich.read().await.unwrap();
    let error = loaded_with(&client, &newer.dump_text(), &replace).await.unwrap_err();
    assert!(matches!(&error, LoadError::InUse { who, .. } if who == &["immich"]), "{error}");
    assert!(error.hint().unwrap().contains("stop"));
    immich.end().await;
    for _ in 0..100 {
        if server.connections("immich").is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let plan = planned(&client, &newer.dump_text(), &replace).await.unwrap();
    assert!(plan.replaces.contains(&"assets".to_owned()), "{:?}", plan.replaces);
    let loaded = load(&client, &plan, pieces(&newer.dump_text()), &Silent, &CancellationToken::new()).await.unwrap();
    assert_eq!(differences(&loaded.rows, &count_rows(&client, &loaded.rows).await.unwrap()), []);
    same_rows(&rows_of(&newer.dump_text(), None), &server.rows("immich"));
    assert_eq!(loaded_with(&client, &older.dump_text(), &replace).await.unwrap().rows["assets"], 97, "and back again");
    let extension = server.psql("immich", "SELECT count(*) FROM pg_extension WHERE extname = 'vector'");
    assert_eq!(extension.trim(), "1", "extensions stay");
    clear(&client, &["vector".to_owned()].into()).await.unwrap();
    assert_eq!(server.counts("immich").len(), 0);
}

#[tokio::test]
async fn a_dump_that_is_cut_or_damaged_leaves_nothing() {
    let server = Postgres::start().unwrap();
    server.create_database("immich");
    let client = client(&server, "immich");
    for name in [IMMICH_3, IMMICH_1] {
        let Some(fixture) = Fixture::open(name) else { return };
        let text = fixture.dump_text();
        let plan = planned(&client, &text, &LoadOptions::default()).await.unwrap();
        let find = |what: &str| text.windows(what.len()).position(|window| window == what.as_bytes()).unwrap();
        let closing = text.windows(13).rposition(|window| window == b"dump complete").unwrap();
        let copy = find("COPY public.asset") + find("COPY public.asset") % 7;
        let row = copy + text[copy..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let second_row = row + text[row..].iter().position(|byte| *byte == b'\n').unwrap() + 1;
        let cuts = [10, text.len() / 4, row, second_row, second_row + 20, text.len() / 2, text.len() * 3 / 4, closing - 30, closing + 5];
        for cut in cuts {
            let error = load(&client, &plan, pieces(&text[..cut]), &Silent, &CancellationToken::new()).await.expect_err("a cut dump");
            assert!(matches!(error, LoadError::Filter(_) | LoadError::NotWhole(_)), "{name} cut at {cut}: {error}");
            assert_eq!(server.counts("immich").len(), 0, "{name} cut at {cut}");
        }
        // The source says so only at its end: all of it was read, and nothing of it counts.
        let damaged = pieces_then(&text, "the SHA-256 is another");
        let error = load(&client, &plan, damaged, &Silent, &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(&error, LoadError::Text(source) if source.to_string() == "the SHA-256 is another"), "{error}");
        assert_eq!(server.counts("immich").len(), 0);
        // A byte of a row that the database itself cannot take.
        let mut flipped = text.clone();
        flipped[row] = b'x';
        let error = load(&client, &plan, pieces(&flipped), &Silent, &CancellationToken::new()).await.unwrap_err();
        let LoadError::Sql { message, table, line } = &error else { panic!("{error}") };
        assert!(message.contains("uuid") && table.as_deref().is_some_and(|table| table.starts_with("asset")) && line.is_some(), "{error}");
        assert_eq!(server.counts("immich").len(), 0);
    }
    assert!(server.connections("immich").len() <= 1);
}

fn pieces_then(text: &[u8], problem: &'static str) -> impl futures_util::Stream<Item = Result<Bytes, io::Error>> + Unpin + use<> {
    let pieces: Vec<_> = text.chunks(PIECE).map(|piece| Ok(Bytes::copy_from_slice(piece))).chain([Err(io::Error::other(problem))]).collect();
    stream::iter(pieces)
}

#[tokio::test]
async fn a_load_that_is_stopped_leaves_nothing() {
    let server = Postgres::start().unwrap();
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    server.create_database("immich");
    let client = client(&server, "immich");
    let text = fixture.dump_text();
    let plan = planned(&client, &text, &LoadOptions::default()).await.unwrap();
    let stop = CancellationToken::new();
    // All but the last piece comes; then nothing, as of a store that hangs.
    let hanging = Box::pin(futures_util::StreamExt::chain(pieces(&text[..text.len() - 50]), stream::pending()));
    let halt = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(load(&client, &plan, hanging, &Silent, &stop), halt);
    assert!(matches!(ended, Err(LoadError::Stopped)), "{ended:?}");
    assert_eq!(server.counts("immich").len(), 0);
    for _ in 0..100 {
        if server.connections("immich").is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("somebody is still connected");
}

/// A folder with a `psql` that says that it is of this version.
fn pretending(server: &Postgres, version: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("psql");
    let real = server.programs().join("psql");
    std::fs::write(&program, format!("#!/bin/sh\n[ \"$1\" = --version ] && echo 'psql (PostgreSQL) {version}' && exit\nexec '{}' \"$@\"\n", real.display()))
        .unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

#[tokio::test]
async fn a_psql_that_is_too_old_to_tell_statements_apart_is_refused() {
    let server = Postgres::start_plain().unwrap();
    let old = pretending(&server, "13.22");
    let client = Client::local(Connection::parse(&server.url("postgres")).unwrap(), vec![old.path().to_owned()]);
    let error = preflight(&client, &Head::default(), &LoadOptions::default()).await.unwrap_err();
    assert!(matches!(error, LoadError::Psql { major: 13, minor: 22 }), "{error}");
}

#[tokio::test]
async fn commands_in_a_dump_do_nothing_whether_psql_knows_restrict_or_not() {
    for (server, version) in [(Postgres::start().unwrap(), None), (Postgres::start_plain().unwrap(), Some("15.13"))] {
        let Some(fixture) = Fixture::open(IMMICH_3) else { return };
        let text = String::from_utf8(fixture.dump_text()).unwrap();
        server.create_database("immich");
        let old = version.map(|version| pretending(&server, version));
        let client = match &old {
            Some(old) => Client::local(Connection::parse(&server.url("immich")).unwrap(), vec![old.path().to_owned()]),
            None => client(&server, "immich"),
        };
        let plan = planned(&client, text.as_bytes(), &as_text()).await.unwrap();
        let trap = trap();
        let touch = trap.display();
        let before = "SET default_tablespace = '';";
        for command in [
            format!("\\! touch {touch}"),
            format!("SET row_security = off; \\! touch {touch}"),
            format!("SELECT 1 \\g | touch {touch}"),
            format!("\\o | touch {touch}"),
            format!("\\copy (SELECT 1) TO PROGRAM 'touch {touch}'"),
            format!("\\unrestrict abc\n\\! touch {touch}"),
            format!("-- x\r\\! touch {touch}"),
            format!("COPY (SELECT 1) TO PROGRAM 'touch {touch}';"),
            format!("COMMIT; COPY (SELECT 1) TO PROGRAM 'touch {touch}';"),
            format!("DO $$ BEGIN EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {touch}'''; END $$;"),
            format!("COMMENT ON TABLE public.asset IS E'x'\n'\\'; \\! touch {touch}\n';"),
        ] {
            let hostile = text.replacen(before, &format!("{before}\n{command}"), 1);
            assert_ne!(hostile, text);
            let error = load(&client, &plan, pieces(hostile.as_bytes()), &Silent, &CancellationToken::new()).await.expect_err(&command);
            assert!(matches!(error, LoadError::Filter(_)), "{command}: {error}");
            assert_eq!(server.counts("immich").len(), 0, "{command}");
        }
        // Among rows it is a row like any other.
        let row = text.replacen(
            "COPY public.kysely_migrations (name, \"timestamp\") FROM stdin;\n",
            &format!("COPY public.kysely_migrations (name, \"timestamp\") FROM stdin;\n\\\\! touch {touch}\tx\n"),
            1,
        );
        assert_ne!(row, text);
        load(&client, &plan, pieces(row.as_bytes()), &Silent, &CancellationToken::new()).await.unwrap();
        assert_eq!(server.psql("immich", "SELECT count(*) FROM kysely_migrations WHERE name LIKE '%touch%'").trim(), "1");
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!trap.exists());
        std::fs::remove_dir_all(trap.parent().unwrap()).unwrap();
    }
}

#[tokio::test]
async fn maintenance_is_over_after_a_load() {
    let server = Postgres::start().unwrap();
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let text = String::from_utf8(fixture.dump_text()).unwrap();
    let head = "COPY public.system_metadata (key, value) FROM stdin;\n";
    let text = text.replacen(head, &format!("{head}maintenance-mode\t{{\"isMaintenanceMode\": true}}\n"), 1);
    server.create_database("immich");
    let client = client(&server, "immich");
    let loaded = loaded(&client, text.as_bytes()).await.unwrap();
    assert!(loaded.maintenance_cleared);
    assert_eq!(server.psql("immich", "SELECT count(*) FROM system_metadata WHERE key = 'maintenance-mode'").trim(), "0");
    assert_eq!(differences(&loaded.rows, &count_rows(&client, &loaded.rows).await.unwrap()), []);
    server.psql("immich", "DELETE FROM system_metadata WHERE key = 'system-flags'; DROP TABLE move_history; CREATE TABLE extra (a int)");
    let differ: Vec<_> = differences(&loaded.rows, &count_rows(&client, &loaded.rows).await.unwrap()).iter().map(ToString::to_string).collect();
    assert_eq!(
        differ,
        [
            "table `extra` has 0 rows, and the dump does not have it",
            "table `move_history` is not there, and the dump has 0 rows of it",
            "table `system_metadata` has 3 rows, and the dump has 4",
        ]
    );
}

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).unwrap() % limit
    }
}

/// What a hostile dump may be made of, to have `psql` and the filter disagree on what is in quotes.
const CRUMBS: [&str; 52] = [
    "E'x'\n'\\''",
    "E'x'--y\n'\\''",
    "E'x'/**/'\\''",
    "E'x'/**/\n'\\''",
    "E'x'\n'",
    "E'x'--\n'",
    "E'x'/**/\n'",
    "E'x' '",
    "'",
    "'",
    "'",
    "\"",
    "E'",
    "e'",
    "U&'",
    "N'",
    "B'",
    "xE'",
    "1E'",
    "$1E'",
    "''",
    "\\'",
    "\\\\",
    "\\",
    "$$",
    "$a$",
    "$b$",
    "$",
    "$1",
    "1$a$",
    "a$b$",
    "--",
    "-- x",
    "/*",
    "*/",
    "/",
    "*",
    "-",
    "\n",
    "\n",
    "\r",
    "\t",
    " ",
    " ",
    "(",
    ")",
    ";",
    "a",
    "é",
    "::text",
    "\u{c}",
    "||",
];
const BLOCKS: [&str; 7] = [" begin ", " atomic ", " end ", " case ", " select 1; ", " return 1 ", "; "];

#[tokio::test]
async fn whatever_the_filter_lets_pass_has_no_command_for_psql_in_it() {
    let servers = [Postgres::start().unwrap(), Postgres::start_plain().unwrap()];
    let trap = trap();
    let touch = format!("\\! touch {}", trap.display());
    let head = "--\n-- PostgreSQL database dump\n--\nCREATE TABLE public.asset (id uuid);\n";
    let end = "\n--\n-- PostgreSQL database dump complete\n--\n";
    let mut numbers = Numbers(0x5EED);
    let (mut passed, mut with_trap) = (String::new(), 0);
    for round in 0..400_000 {
        let beginning =
            ["COMMENT ON TABLE public.asset IS ", "CREATE FUNCTION f() RETURNS int LANGUAGE sql ", "CREATE OR REPLACE PROCEDURE f() ", ""][round % 4];
        let mut text = beginning.to_owned();
        for _ in 0..2 + numbers.below(12) {
            match numbers.below(12) {
                0 => text.push_str(&touch),
                1 if round % 4 != 0 => text.push_str(BLOCKS[numbers.below(BLOCKS.len())]),
                _ => text.push_str(CRUMBS[numbers.below(CRUMBS.len())]),
            }
        }
        let mut filter = Filter::new(FilterOptions { server_version_num: 180_000, ..FilterOptions::default() });
        let mut out = Vec::new();
        let whole = format!("{head}{text};\n{end}");
        if filter.feed(whole.as_bytes(), &mut out).is_ok() && filter.finish().is_ok() {
            let out = String::from_utf8(out).unwrap();
            let out = out.trim_start().strip_prefix("CREATE TABLE public.asset (id uuid);").unwrap().trim();
            with_trap += usize::from(out.contains("touch"));
            passed.push_str(out);
            passed.push('\n');
        }
    }
    assert!(with_trap > 500, "only {with_trap} of what passed has the trap in it");
    for server in servers {
        server.create_database("immich");
        server.psql("immich", "CREATE TABLE public.asset (id uuid)");
        let file = trap.with_file_name("passed.sql");
        std::fs::write(&file, &passed).unwrap();
        let run = || {
            let mut psql = std::process::Command::new(server.programs().join("psql"));
            psql.args(["--no-psqlrc", "--quiet", "--output=/dev/null", "--file"]).arg(&file).arg(server.url("immich"));
            psql.current_dir(file.parent().unwrap()).output().unwrap()
        };
        let ran = run();
        // Most of it is no SQL; what matters is that nothing of it was a command.
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(said.contains("ERROR:"));
        sprung(&file, &server);
        for sign in ["invalid command", "backslash", "unterminated"] {
            let line = said.lines().find(|line| line.contains(sign) && !line.contains("ERROR:"));
            assert_eq!(line, None);
        }
        // The last statement is one that must work: nothing before it was left open.
        std::fs::write(&file, format!("{passed}\nCREATE TABLE public.end_was_reached ();\n")).unwrap();
        run();
        assert_eq!(server.psql("immich", "SELECT count(*) FROM pg_tables WHERE tablename = 'end_was_reached'").trim(), "1");
        sprung(&file, &server);
    }
    std::fs::remove_dir_all(trap.parent().unwrap()).unwrap();
}

/// Nothing but the file that `psql` ran may be in its folder: where a trap is sprung, what follows it makes up names.
#[track_caller]
fn sprung(file: &std::path::Path, server: &Postgres) {
    let left: Vec<_> = std::fs::read_dir(file.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path != file).collect();
    assert!(left.is_empty(), "{}: {left:?}", server.programs().display());
}
