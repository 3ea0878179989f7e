//! The drill: passed where all comes back, failed where anything does not, and nothing is left of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{Immich, address, all, arguments, assert_empty, error, facts, flip, installed, programs};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::{Options, Postgres};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::time::Duration;
use support::Running;

/// A folder for a drill's server, which belongs to another user, as /tmp is.
fn drill_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("d").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    folder
}

/// What is in a folder, and the processes that have to do with it.
fn left(folder: &Path) -> Vec<String> {
    let mut left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let said = String::from_utf8_lossy(&fs::read(process.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        if said.contains(folder.to_str().unwrap()) {
            left.push(said);
        }
    }
    left
}

#[track_caller]
fn assert_nothing_left(folder: &Path) {
    assert_eq!(left(folder), [] as [String; 0]);
}

#[test]
fn a_drill_passes_and_leaves_no_process_and_no_folder_and_touches_no_database_that_the_environment_names() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start_with(&Options { settings: vec![("log_connections".to_owned(), "on".to_owned())], ..Options::default() }).unwrap();
    let mut immich = Immich::new(fixture, &server);
    immich.backup(&[]).ended(0);
    let folder = drill_folder();
    let before = server.rows("immich");
    let told = || server.log().matches("connection received").count();
    let connections = told();
    assert!(connections > 0);
    // Where a drill might look by mistake, there is the live database.
    let live = server.url("immich");
    for (name, value) in [
        ("TMPDIR", folder.path().to_str().unwrap()),
        ("DB_URL", &live),
        ("IMMICH_BACKUP_DATABASE", &live),
        ("DB_HOSTNAME", "127.0.0.1"),
        ("DB_PORT", &server.port().to_string()),
        ("DB_USERNAME", Postgres::USER),
        ("DB_DATABASE_NAME", "immich"),
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &server.port().to_string()),
        ("PGUSER", Postgres::USER),
        ("PGDATABASE", "immich"),
        ("PGPASSWORD", Postgres::PASSWORD),
        ("PGSERVICE", "live"),
        ("PGHOSTADDR", "127.0.0.1"),
    ] {
        immich.world.environment.push((name.to_owned(), value.to_owned()));
    }
    let programs = server.programs().to_str().unwrap();
    let drill = immich.world.run(&["drill", "--json", "--sample", "100%", "--postgres-programs", programs]).ended(0).summary();
    assert_eq!(
        (&drill["verdict"], &drill["assets"], &drill["sampled"], &drill["not_checked"]),
        (&json!("passed"), &json!(93), &json!(93), &json!(0)),
        "{drill}"
    );
    assert_eq!(drill["rows"].as_u64(), Some(before.values().map(|rows| rows.len() as u64).sum()));
    assert_eq!(drill["tables"].as_u64(), Some(before.len() as u64));
    assert_nothing_left(folder.path());
    assert_eq!(told(), connections, "the live server was connected to:\n{}", server.log());
    assert_eq!(server.rows("immich"), before);
    // What was not looked at is said.
    let some = immich.world.run(&["drill", "--json", "--sample", "10", "--postgres-programs", programs]).ended(0).summary();
    assert_eq!((some["sampled"].as_u64().unwrap() + some["not_checked"].as_u64().unwrap(), &some["verdict"]), (93, &json!("passed")), "{some}");
    assert!(some["not_checked"].as_u64().unwrap() > 50);
    // Interrupted, it leaves nothing either, and says nothing in the log.
    let entries = immich.world.entries();
    for signal in ["INT", "KILL"] {
        let mut running = Running::start(immich.world.command(&["drill", "--json", "--sample", "100%", "--postgres-programs", programs]));
        assert!(running.until(|running| running.said().contains("\"load\"")), "{}", running.said());
        running.signal_quietly(signal);
        let ran = running.wait();
        assert!(ran.code == 130 || ran.code == -1, "{}", ran.told());
        // Killed, it cannot clean up itself: the server sees that it is alone.
        for _ in 0..200 {
            if left(folder.path()).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_nothing_left(folder.path());
    }
    assert_eq!(immich.world.entries(), entries);
    assert_eq!(facts(&immich, "drilled").len(), 2);
}

#[test]
fn a_drill_fails_on_a_damaged_original_in_its_sample_and_names_it() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let asset = immich.plain_asset(5);
    let shown = immich.shown(&asset.original_path);
    let object = immich.world.repository.join("library").join(&shown);
    flip(&object);
    let drill = |sample: &str| immich.world.run(&["drill", "--json", "--sample", sample, "--postgres-programs", server.programs().to_str().unwrap()]);
    let failed = drill("100%").ended(12).summary();
    assert_eq!((&failed["verdict"], &failed["problem_count"]), (&json!("failed"), &json!(1)), "{failed}");
    assert!(failed["problems"][0].as_str().unwrap().contains(&shown), "{failed}");
    let status = immich.world.run(&["status", "--json"]).ended(12).summary();
    assert!(status["problems"].to_string().contains("the last drill failed"), "{status}");
    // The library still has it: it is stored again, and the next drill is passed.
    immich.backup(&[]).ended(0);
    assert_eq!(drill("100%").ended(0).summary()["verdict"], "passed");
    immich.world.run(&["status", "--json"]).ended(0);
    // One that is gone is no better.
    let other = immich.shown(&immich.plain_asset(6).original_path);
    fs::remove_file(immich.world.repository.join("library").join(&other)).unwrap();
    let failed = drill("100%").ended(12).summary();
    assert!(failed["problems"].to_string().contains(&other), "{failed}");
}

#[test]
fn a_drill_fails_on_a_row_that_did_not_come_back() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    // A psql that loses one row on the way; nothing refers to it.
    let script = "case \" $* \" in *\" -c \"*|*--command*) exec REAL/psql \"$@\";; esac
awk 'lose { lose = 0; next } /^COPY public.asset_exif / { lose = 1 } { print; fflush() }' | REAL/psql \"$@\"";
    let folder = programs(&immich.world, &server, &[("psql", script)]);
    server.create_database("scratch");
    let drill = |folder: &Path| {
        let named = ["drill", "--json", "--database", &address(&server, "scratch"), "--postgres-programs", folder.to_str().unwrap()].map(str::to_owned);
        immich.world.run(&all(&[&named], &[]))
    };
    let failed = drill(&folder).ended(12).summary();
    assert_eq!(failed["verdict"], "failed", "{failed}");
    assert!(failed["problems"][0].as_str().unwrap().contains("asset_exif"), "{failed}");
    assert_empty(&server, "scratch", "after the drill");
    let passed = drill(server.programs()).ended(0).summary();
    assert_eq!((&passed["verdict"], &passed["problem_count"]), (&json!("passed"), &json!(0)));
    assert_empty(&server, "scratch", "after the drill");
}

#[test]
fn a_drill_in_a_database_that_is_not_empty_is_refused_and_changes_nothing() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let before = server.rows("immich");
    let named = [vec!["drill".to_owned(), "--json".to_owned()], arguments(&server, "immich")].concat();
    let (message, hint) = error(&immich.world.run(&all(&[&named], &[])).ended(1));
    assert!(message.contains("is not empty") && hint.contains("never Immich's"), "{message}; {hint}");
    assert_eq!(server.rows("immich"), before);
}

#[test]
fn a_drill_where_postgresql_lacks_vector_is_partial_and_says_what_was_left_as_text() {
    let Some((mut immich, _server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let folder = drill_folder();
    immich.world.environment.push(("TMPDIR".to_owned(), folder.path().to_str().unwrap().to_owned()));
    let plain = Postgres::start_plain().unwrap();
    let programs = plain.programs().to_str().unwrap().to_owned();
    let local = immich.world.run(&["drill", "--json", "--sample", "100%", "--postgres-programs", &programs]).ended(0).summary();
    assert_nothing_left(folder.path());
    plain.create_database("scratch");
    let named = [vec!["drill".to_owned(), "--json".to_owned(), "--sample".to_owned(), "100%".to_owned()], arguments(&plain, "scratch")].concat();
    let scratch = immich.world.run(&all(&[&named], &[])).ended(0).summary();
    assert_empty(&plain, "scratch", "after the drill");
    for drill in [local, scratch] {
        assert_eq!((&drill["verdict"], &drill["sampled"], &drill["problem_count"]), (&json!("partial"), &json!(93), &json!(0)), "{drill}");
        assert!(drill["as_text"].to_string().contains("smart_search"), "{drill}");
    }
}
