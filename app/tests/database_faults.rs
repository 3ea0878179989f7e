//! What goes wrong around the database is refused, named and survived: cut dumps, damaged objects, wrong passwords, dead runs, locks, no room.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stand;
mod support;

use immich::{Immich, address, all, arguments, facts, flip, gzip, named, numbers, programs, proof, text_of};
use immich_backup_core::model::Sha256;
use immich_backup_core::verdict::Verdict;
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::{Options, Postgres};
use serde_json::{Value, json};
use stand::Stand;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Mount, Ran, Running, clean, forge_entry, may_mount, settle};

fn installed() -> Option<(Immich, Postgres)> {
    let fixture = Fixture::open(IMMICH_3)?;
    let server = Postgres::start().unwrap();
    Some((Immich::new(fixture, &server), server))
}

/// The first error of a summary: message and hint.
#[track_caller]
fn error(ran: &Ran) -> (String, String) {
    let error = ran.summary()["errors"][0].clone();
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    assert!(!text("message").is_empty(), "no error\n{}", ran.told());
    (text("message"), text("hint"))
}

/// Nothing of a dump is in the repository, nor left in the state folder.
#[track_caller]
fn assert_no_dump(immich: &Immich, what: &str) {
    assert_eq!(immich.dumps(), [] as [PathBuf; 0], "{what}");
    let mut folders = vec![immich.world.state.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(!name.contains(".sql"), "{what}: {} was left", path.display());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
}

/// The database has nothing in it.
#[track_caller]
fn assert_empty(server: &Postgres, database: &str, what: &str) {
    assert_eq!(server.counts(database), BTreeMap::new(), "{what}");
    let types = server.psql(database, "SELECT count(*) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = 'public'");
    assert_eq!(types, "0", "{what}");
}

/// `restore --json` of the database alone.
#[track_caller]
fn restore_into(immich: &Immich, server: &Postgres, database: &str, more: &[&str]) -> Ran {
    let arguments = arguments(server, database);
    immich.world.run(&[&["restore", "--json"], all(&[&arguments], more).as_slice()].concat())
}

// A dump that is cut.

/// Where to cut a dump: at its ends, in the middle of a line, at the ends of lines inside and around a COPY block, and before, in and after the closing line.
fn cuts(text: &[u8]) -> BTreeMap<usize, &'static str> {
    let find = |what: &str, from: usize| memchr(&text[from..], what.as_bytes()).map(|at| from + at).unwrap();
    let copy = find("\nCOPY public.asset (", 0) + 1;
    let first_row = find("\n", copy) + 1;
    let second_row = find("\n", first_row) + 1;
    let third_row = find("\n", second_row) + 1;
    let end = find("\n\\.\n", third_row) + 1;
    let closing = find("\n-- PostgreSQL database dump complete", 0) + 1;
    let unrestrict = find("\n\\unrestrict ", closing) + 1;
    BTreeMap::from([
        (0, "nothing at all"),
        (1, "one byte"),
        (find("\nSET ", 0) + 1, "before the first statement"),
        (copy + 7, "in a COPY statement"),
        (first_row, "after the COPY statement"),
        (second_row, "at the end of a row"),
        (third_row, "at the end of another row"),
        (third_row + 20, "in a row"),
        (third_row - 1, "before a row's line feed"),
        (end, "after the last row"),
        (end + 1, "in the line that ends a COPY block"),
        (end + 2, "before the line feed of that"),
        (end + 3, "after a COPY block"),
        (text.len() / 2, "in the middle"),
        (closing, "before the closing line"),
        (closing + 20, "in the closing line"),
        (unrestrict, "before \\unrestrict"),
    ])
}

fn memchr(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[test]
fn a_dump_that_is_cut_anywhere_is_refused_by_backup_and_was_never_stored() {
    let Some((mut immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let text = text_of(&immich.dumps()[0]);
    let (good, repository, state) = (immich.database.clone(), immich.world.repository.clone(), immich.world.state.clone());
    let cut = immich.world.at("cut");
    let script = format!("REAL/pg_dump \"$@\" | head -c $(cat {}); exit 0", cut.display());
    let folder = programs(&immich.world, &server, &[("pg_dump", &script)]);
    immich.database = ["--database", &address(&server, "immich"), "--postgres-programs", folder.to_str().unwrap()].map(str::to_owned).to_vec();
    immich.world.repository = immich.world.at("repository-2");
    immich.world.state = immich.world.at("state-2");
    for (at, what) in cuts(&text) {
        fs::write(&cut, at.to_string()).unwrap();
        let (message, _) = error(&immich.backup(&[]).ended(1));
        let told = if at == 0 { "the dump is empty" } else { "the dump is cut" };
        assert!(message.contains(told), "cut {what}: {message}");
        if what.contains("row") && what != "after the COPY statement" {
            assert!(message.contains("in table `asset`") || message.contains("in table `public.asset`"), "cut {what}: {message}");
        }
        println!("cut {what}, at byte {at}: {message}");
        assert_no_dump(&immich, what);
        assert!(!immich.world.repository.join("library").exists(), "cut {what}: files were stored");
    }
    assert_eq!(immich.world.snapshots(), [] as [String; 0]);
    // The tests would be blind if this failed too.
    fs::write(&cut, text.len().to_string()).unwrap();
    assert_eq!(numbers(&proof(&immich.backup(&[]).ended(0))), immich.expected());
    // A snapshot that is there stays the newest.
    (immich.world.repository, immich.world.state) = (repository, state);
    fs::write(&cut, (text.len() / 2).to_string()).unwrap();
    immich.backup(&[]).ended(1);
    assert_eq!((immich.dumps().len(), immich.world.snapshots().len()), (1, 1));
    let status = immich.world.run(&["status", "--json"]).ended(1).summary();
    assert!(status["problems"].to_string().contains("the dump is cut"), "{status}");
    immich.database = good;
    immich.backup(&[]).ended(0);
    immich.world.run(&["status", "--json"]).ended(0);
}

#[test]
fn a_pg_dump_that_fails_or_is_killed_after_all_was_said_is_no_dump() {
    let Some((mut immich, server)) = installed() else { return };
    let good = immich.database.clone();
    for (what, script, says) in [
        ("it fails at its end", "REAL/pg_dump \"$@\"; echo 'pg_dump: error: the disk is on fire' >&2; exit 1", "the disk is on fire"),
        ("it is killed half-way", "REAL/pg_dump \"$@\" | head -c 100000; kill -KILL $$", "137"),
        ("it is killed at its end", "REAL/pg_dump \"$@\"; kill -KILL $$", "137"),
        ("it is told to end at its end", "REAL/pg_dump \"$@\"; kill -TERM $$", "143"),
        ("it says something else", "echo Hello; exit 0", "dump"),
    ] {
        let folder = programs(&immich.world, &server, &[("pg_dump", script)]);
        immich.database = ["--database", &address(&server, "immich"), "--postgres-programs", folder.to_str().unwrap()].map(str::to_owned).to_vec();
        let (message, _) = error(&immich.backup(&[]).ended(1));
        assert!(message.contains(says), "{what}: {message}");
        assert_no_dump(&immich, what);
    }
    assert_eq!(immich.world.snapshots(), [] as [String; 0]);
    immich.database = good;
    immich.backup(&[]).ended(0);
}

#[test]
fn a_dump_that_is_cut_anywhere_is_refused_by_restore_and_nothing_of_it_is_committed() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let text = text_of(&immich.dumps()[0]);
    server.create_database("target");
    let restore = |file: &Path| restore_into(&immich, &server, "target", &["--dump-file", file.to_str().unwrap()]);
    for (number, (at, what)) in cuts(&text).into_iter().enumerate() {
        let file = immich.world.at(if number % 2 == 0 { "cut.sql" } else { "cut.sql.gz" });
        fs::write(&file, if number % 2 == 0 { text[..at].to_vec() } else { gzip(&text[..at]) }).unwrap();
        let ran = restore(&file);
        assert!([1, 12].contains(&ran.code), "cut {what}\n{}", ran.told());
        let (message, _) = error(&ran);
        assert!(at < 2 || message.contains("the dump is cut"), "cut {what}: {message}");
        assert_empty(&server, "target", what);
    }
    // The file itself is cut, or has other bytes.
    let whole = gzip(&text);
    for (what, bytes) in [("half", whole[..whole.len() / 2].to_vec()), ("all but a byte", whole[..whole.len() - 1].to_vec())] {
        let file = immich.world.at("cut.sql.gz");
        fs::write(&file, bytes).unwrap();
        let ran = restore(&file);
        assert!([1, 12].contains(&ran.code), "{what} of the file\n{}", ran.told());
        assert_empty(&server, "target", what);
    }
    let file = immich.world.at("whole.sql.gz");
    fs::write(&file, whole).unwrap();
    restore(&file).ended(0);
    assert_eq!(server.rows("target"), server.rows("immich"));
}

/// Puts a dump of this text into the repository as if a run had stored it, and a snapshot that it belongs to; hashes and sizes are right.
fn forge_dump(immich: &Immich, text: &[u8]) {
    let bytes = gzip(text);
    let key = "database/2026-01-15T03-00-00Z-immich-v3.1.0.sql.gz";
    let path = immich.world.repository.join(key);
    drop(fs::remove_file(&path));
    fs::write(&path, &bytes).unwrap();
    let mut dump = facts(immich, "dump").pop().unwrap();
    dump["key"] = json!(key);
    dump["sha256"] = json!(Sha256::of(&bytes).to_string());
    dump["size"] = json!(bytes.len());
    dump["plain_size"] = json!(text.len());
    let mut snapshot = facts(immich, "snapshot").pop().unwrap();
    snapshot["dump"] = json!(key);
    forge_entry(&immich.world, &[&dump.to_string(), &snapshot.to_string()]);
}

#[test]
fn a_stored_dump_that_is_cut_is_refused_by_restore_and_drill_though_its_hash_is_right() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let text = text_of(&immich.dumps()[0]);
    server.create_database("target");
    let (copy, state) = (immich.world.at("copy"), immich.world.at("state-copy"));
    support::copy(&immich.world.repository, &copy);
    support::copy(&immich.world.state, &state);
    for (at, what) in cuts(&text).into_iter().filter(|(_, what)| ["at the end of a row", "after a COPY block", "before the closing line"].contains(what)) {
        for (from, to) in [(&copy, &immich.world.repository), (&state, &immich.world.state)] {
            support::remove(to);
            support::copy(from, to);
        }
        forge_dump(&immich, &text[..at]);
        let drill = immich.world.run(&["drill", "--json", "--postgres-programs", server.programs().to_str().unwrap()]).ended(12);
        assert!(drill.summary()["problems"].to_string().contains("the dump is cut"), "cut {what}\n{}", drill.told());
        let (message, _) = error(&restore_into(&immich, &server, "target", &[]).ended(12));
        assert!(message.contains("the dump is cut"), "{message}");
        assert_empty(&server, "target", what);
        immich.world.run(&["status", "--json"]).ended(12);
        for command in [&["find", "--json"][..], &["verify", "--proof", "--json"]] {
            assert!(error(&immich.world.run(command).ended(12)).0.contains("the dump is cut"), "cut {what}: {command:?}");
        }
    }
}

#[test]
fn a_stored_dump_with_a_flipped_byte_or_cut_short_is_found_by_verify_and_refused_by_all_that_read_it() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let path = immich.dumps().remove(0);
    let good = fs::read(&path).unwrap();
    server.create_database("target");
    let (copy, state) = (immich.world.at("copy"), immich.world.at("state-copy"));
    support::copy(&immich.world.repository, &copy);
    support::copy(&immich.world.state, &state);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let mut early = good.clone();
    early[40] ^= 0x20;
    let mut last = good.clone();
    *last.last_mut().unwrap() ^= 0x80;
    let more = [good.clone(), gzip(b"more")].concat();
    let damages =
        [("flipped", flipped), ("flipped early", early), ("flipped in its last byte", last), ("cut", good[..good.len() - 100].to_vec()), ("longer", more)];
    for (what, bytes) in damages {
        for (from, to) in [(&copy, &immich.world.repository), (&state, &immich.world.state)] {
            support::remove(to);
            support::copy(from, to);
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        restore_into(&immich, &server, "target", &[]).ended(12);
        assert_empty(&server, "target", what);
        let drill = immich.world.run(&["drill", "--json", "--postgres-programs", server.programs().to_str().unwrap()]).ended(12);
        assert_eq!(drill.summary()["verdict"], "failed", "{what}\n{}", drill.told());
        immich.world.run(&["find", "--json"]).ended(12);
        immich.world.run(&["verify", "--proof", "--json"]).ended(12);
        let verified = immich.world.run(&["verify", "--read-data", "--json"]).ended(12);
        assert!(verified.summary()["findings"][0]["key"].as_str().unwrap().starts_with("database/"), "{what}\n{}", verified.told());
        immich.world.run(&["status", "--json"]).ended(12);
        // The next run takes another.
        immich.backup(&[]).ended(0);
        restore_into(&immich, &server, "target", &[]).ended(0);
        assert_eq!(server.rows("target"), server.rows("immich"), "{what}");
        server.psql("postgres", "DROP DATABASE target");
        server.create_database("target");
    }
}

// The drill.

/// A folder for a drill's server, which belongs to another user, as /tmp is.
fn drill_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("d").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    folder
}

/// Asserts that no process has to do with a folder, and nothing is in it.
#[track_caller]
fn assert_nothing_left(folder: &Path) {
    assert_eq!(fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>(), [] as [PathBuf; 0]);
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let said = String::from_utf8_lossy(&fs::read(process.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
        assert!(!said.contains(folder.to_str().unwrap()), "still runs: {said}");
    }
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
            if fs::read_dir(folder.path()).unwrap().next().is_none() {
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

// Passwords.

/// A text of the testbed's password that stands in every way to write it.
const SECRET: &str = "Tr0ub4dor";

#[track_caller]
fn assert_silent(ran: &Ran, secret: &str) {
    assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "the password was told\n{}", ran.told());
}

#[test]
fn a_database_that_cannot_be_used_is_said_clearly_with_a_remedy_and_nothing_is_stored() {
    let Some((mut immich, mut server)) = installed() else { return };
    server.create_role("reader", "hunter2-of-the-test", "");
    let port = server.port();
    let programs = server.programs().to_str().unwrap().to_owned();
    let refused = |immich: &mut Immich, url: String, password: &str, message_says: &str, hint_says: &str| {
        immich.world.environment.retain(|(name, _)| name != "DB_PASSWORD");
        immich.world.environment.push(("DB_PASSWORD".to_owned(), password.to_owned()));
        immich.database = vec!["--database".to_owned(), url.clone(), "--postgres-programs".to_owned(), programs.clone()];
        let ran = immich.backup(&[]).ended(1);
        let (message, hint) = error(&ran);
        assert!(message.contains(message_says), "{url}: {message}");
        assert!(hint.contains(hint_says), "{url}: {hint}");
        assert_silent(&ran, password);
        assert_no_dump(immich, &url);
        assert!(!immich.world.repository.join("library").exists());
        if immich.world.entries() > 0 {
            assert!(!immich.log().contains(password));
        }
    };
    let at = |user: &str, database: &str| format!("postgresql://{user}@127.0.0.1:{port}/{database}");
    refused(&mut immich, at("postgres", "immich"), "wrong-Xyzzy", "password authentication failed", "DB_PASSWORD");
    refused(&mut immich, at("nobody-here", "immich"), Postgres::PASSWORD, "authentication failed", "user");
    refused(&mut immich, at("postgres", "no such database"), Postgres::PASSWORD, "does not exist", "DB_DATABASE_NAME");
    refused(&mut immich, at("reader", "immich"), "hunter2-of-the-test", "permission denied", "use the database's user that Immich itself uses");
    server.stop();
    refused(&mut immich, at("postgres", "immich"), Postgres::PASSWORD, "Connection refused", "check that the database runs");
    refused(
        &mut immich,
        "postgresql://postgres@no-such-host.invalid/immich".to_owned(),
        Postgres::PASSWORD,
        "no-such-host.invalid",
        "check that the database runs",
    );
    assert_eq!(immich.world.snapshots_or_none(), [] as [String; 0]);
}

impl support::World {
    /// Snapshots, also where there may be no repository yet.
    fn snapshots_or_none(&self) -> Vec<String> {
        if self.repository.join("format.json").exists() { self.snapshots() } else { Vec::new() }
    }
}

#[test]
fn the_password_is_told_to_nobody() {
    let Some((mut immich, server)) = installed() else { return };
    // Slow, so that it can be looked at.
    let folder = programs(&immich.world, &server, &[("pg_dump", "sleep 0.7; REAL/pg_dump \"$@\"; exit $?"), ("psql", "sleep 0.1; exec REAL/psql \"$@\"")]);
    let folder = folder.to_str().unwrap().to_owned();
    immich.world.environment.retain(|(name, _)| name != "DB_PASSWORD");
    immich.world.environment.push(("DB_URL".to_owned(), server.url("immich")));
    immich.database = vec!["--postgres-programs".to_owned(), folder.clone()];
    server.create_database("back");
    let mut looks = 0;
    let mut watched = |command: Command| {
        let mut running = Running::start(command);
        let mut seen = BTreeSet::new();
        while !running.is_over() {
            for process in fs::read_dir("/proc").unwrap().flatten() {
                let said = String::from_utf8_lossy(&fs::read(process.path().join("cmdline")).unwrap_or_default()).replace('\0', " ");
                assert!(!said.contains(SECRET), "on a command line: {said}");
                if said.contains("pg_dump") || said.contains("psql") {
                    seen.insert(said);
                }
            }
            looks += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
        let ran = running.wait();
        assert!(!seen.is_empty(), "no program of PostgreSQL was seen: the test is blind\n{}", ran.told());
        assert_silent(&ran, SECRET);
        ran
    };
    watched(immich.backup_command(&[])).ended(0);
    watched(immich.backup_command(&["--verbose"])).ended(0);
    let restore = immich.world.command(&["restore", "--json", "--database", &address(&server, "back"), "--postgres-programs", &folder]);
    immich.world.environment.push(("PGPASSWORD".to_owned(), Postgres::PASSWORD.to_owned()));
    let mut restore = restore;
    restore.env("PGPASSWORD", Postgres::PASSWORD);
    watched(restore).ended(0);
    for command in [&["backup", "--show-config"][..], &["doctor", "--json"], &["restore", "--show-config"], &["drill", "--show-config"], &["status"]] {
        let ran = immich.world.run(command);
        assert_silent(&ran, SECRET);
    }
    let shown = immich.world.run(&["backup", "--show-config"]).ended(0);
    assert!(shown.out.contains("DB_URL"), "{}", shown.told());
    // In a file of the configuration, and on our own command line, it is somebody's own doing; still it is not repeated.
    let config = immich.world.at("immich-backup.toml");
    fs::write(&config, format!("database = \"{}\"\n", server.url("immich"))).unwrap();
    immich.world.environment.clear();
    for more in [&["--config", config.to_str().unwrap()][..], &["--database", &server.url("immich")]] {
        let arguments = [&["--postgres-programs", folder.as_str()][..], more].concat();
        let ran = immich.world.backup(&[&arguments[..], &["--external", &immich.external()[1]]].concat()).ended(0);
        assert_silent(&ran, SECRET);
        let shown = immich.world.run(&[&["backup", "--show-config"][..], more].concat()).ended(0);
        assert_silent(&shown, SECRET);
        // Wrong ones neither.
        let wrong = server.url("immich").replace(SECRET, "Wr0ngOne");
        let ran = immich.world.backup(&["--database", &wrong, "--postgres-programs", &folder, "--external", &immich.external()[1]]).ended(1);
        assert_silent(&ran, "Wr0ngOne");
    }
    // Neither is it in the repository, nor in the state folder.
    assert!(!immich.log().contains(SECRET));
    for path in immich.dumps() {
        assert!(memchr(&text_of(&path), SECRET.as_bytes()).is_none());
    }
    let grep = Command::new("grep").args(["-rlaF", SECRET]).args([&immich.world.repository, &immich.world.state]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "");
    println!("looked {looks} times at all processes");
}

// Versions.

#[test]
fn a_pg_dump_older_than_the_server_is_refused_with_a_remedy() {
    let Some((mut immich, server)) = installed() else { return };
    let plain = Postgres::start_plain().unwrap();
    immich.database = ["--database", &address(&server, "immich"), "--postgres-programs", plain.programs().to_str().unwrap()].map(str::to_owned).to_vec();
    let (message, hint) = error(&immich.backup(&[]).ended(1));
    assert!(message.contains("no `pg_dump` here is new enough for the server's PostgreSQL 18"), "{message}");
    assert!(hint.contains("postgresql-client-18"), "{hint}");
    assert_no_dump(&immich, "too old");
}

#[test]
fn of_several_programs_that_of_the_servers_version_is_taken_and_a_newer_one_with_a_warning() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let (newer, plain) = (Postgres::start().unwrap(), Postgres::start_plain().unwrap());
    plain.create_database("other");
    plain.psql("other", "CREATE TABLE thing (id int); INSERT INTO thing SELECT generate_series(1, 10)");
    let programs = newer.programs().to_str().unwrap();
    let immich = Immich::at(fixture, ["--database", &address(&plain, "other"), "--postgres-programs", programs].map(str::to_owned).to_vec());
    let same = immich.backup(&[]).ended(0);
    let dump = same.summary()["dump"].clone();
    assert_eq!(dump["program_version"], dump["server_version"], "{dump}");
    // Not Immich's: kept all the same, and said.
    assert!(same.says("is not a database of Immich").summary()["proof"].is_null());
    if !may_mount("a host without the server's own pg_dump") {
        return;
    }
    let mut command = clean(Command::new("unshare"));
    command.args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /usr/lib/postgresql && exec \"$@\"", "-"]);
    let program = immich.backup_command(&[]);
    command.arg(program.get_program()).args(program.get_args()).envs(immich.world.environment.iter().map(|(name, value)| (name, value)));
    let ran = Running::start(command).wait().ended(0);
    assert!(ran.summary()["dump"]["program_version"].as_str().unwrap().starts_with("18."), "{}", ran.told());
    assert!(ran.events("warned").iter().any(|event| event["message"].as_str().unwrap().contains("is newer than the server")), "{}", ran.told());
}

// What is left out.

#[test]
fn an_exclude_that_would_lose_an_asset_stops_the_run_and_nothing_is_stored() {
    let Some((immich, _server)) = installed() else { return };
    for (pattern, count) in [("library", true), ("**/*.jpg", true), ("upload/**", true), ("profile", true), ("**/*.xmp", true)] {
        let (message, hint) = error(&immich.backup(&["--exclude", pattern]).ended(1));
        assert!(message.contains("would be left out of the backup") == count, "{pattern}: {message}");
        assert!(hint.contains("--exclude"), "{hint}");
        assert_no_dump(&immich, pattern);
        assert!(!immich.world.repository.join("library").exists(), "{pattern}");
    }
    // What no asset needs may go.
    immich.world.file("upload/tmp/half-an-upload.part", 1_000, 1);
    let backup = immich.backup(&["--exclude", "upload/tmp", "--exclude", "thumbs"]).ended(0);
    let proof = proof(&backup);
    // The transcoded videos are not among them.
    let videos = immich.fixture.expected.assets.iter().flat_map(|asset| &asset.files).filter(|file| file.r#type == "encoded_video").count() as u64;
    let thumbs = immich.expected().derived.present - videos;
    assert_eq!((proof.proven, proof.untracked, proof.derived.present, proof.derived.missing), (93, 0, videos, thumbs));
}

#[test]
fn originals_only_leaves_out_what_immich_makes_again_but_no_asset_that_lies_among_it() {
    let Some((immich, server)) = installed() else { return };
    // As Immich keeps the video of a motion photo of Android's.
    let asset = immich.plain_asset(2);
    let path = format!("/data/encoded-video/{}/aa/bb/{}-MP.mp4", asset.owner, asset.id);
    let to = immich.files.find(&path).unwrap();
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    fs::rename(immich.original(asset), &to).unwrap();
    server.psql("immich", &format!("UPDATE asset SET \"originalPath\" = '{path}' WHERE id = '{}'", asset.id));
    let backup = immich.backup(&["--originals-only"]).ended(0);
    let proof = proof(&backup);
    assert_eq!((proof.proven, proof.missing, proof.derived.present, proof.untracked), (93, 0, 0, 0));
    assert_eq!(proof.companions, immich.expected().companions);
    let totals = &backup.summary()["totals"];
    assert_eq!(totals["derived"]["files"].as_u64().unwrap() + totals["original"]["files"].as_u64().unwrap(), 97 + proof.companions.present, "{totals}");
    assert!(immich.world.repository.join("library").join(immich.path(&path)).exists());
}

#[test]
fn no_database_is_said_unless_it_was_meant_and_files_are_backed_up_all_the_same() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let immich = Immich::at(fixture, Vec::new());
    let trees = immich.trees();
    let run = |more: &[&str]| {
        let mut command = immich.world.command(&["backup", "--init"]);
        command.arg("--library").arg(&immich.world.library).args(immich.external()).args(more);
        Running::start(command).wait().ended(0)
    };
    let unsaid = run(&[]);
    assert!(unsaid.out.contains("NO DATABASE") && unsaid.out.contains("--no-database"), "{}", unsaid.told());
    let meant = run(&["--no-database"]);
    assert!(!meant.out.contains("NO DATABASE"), "{}", meant.told());
    let status = immich.world.run(&["status", "--json"]).ended(0).summary();
    assert!(status["warnings"].to_string().contains("no database"), "{status}");
    let place = immich.place("files");
    immich.restore(&place, &[], &[]).ended(0);
    place.assert_is(&trees, "files alone");
    immich.world.run(&["verify", "--proof", "--json"]).ended(1);
    immich.world.run(&["drill", "--json"]).ended(1);
    // Two ways to name it contradict each other.
    immich.world.backup(&["--no-database", "--database", "postgresql://x/y"]).ended(2);
}

// Several runs.

#[test]
fn a_second_run_at_once_has_a_dump_of_its_own_and_the_same_proof() {
    let Some((immich, server)) = installed() else { return };
    let first = immich.backup(&[]).ended(0);
    let second = immich.backup(&[]).ended(0);
    let key = |ran: &Ran| ran.summary()["dump"]["key"].as_str().unwrap().to_owned();
    assert_ne!(key(&first), key(&second));
    assert_eq!(immich.dumps().len(), 2);
    assert_eq!(numbers(&proof(&first)), numbers(&proof(&second)));
    assert_eq!(second.number("/files/sent"), 0);
    for (number, snapshot) in [first.snapshot(), second.snapshot()].into_iter().enumerate() {
        let database = format!("back-{number}");
        server.create_database(&database);
        restore_into(&immich, &server, &database, &["--snapshot", &snapshot]).ended(0);
        assert_eq!(server.rows(&database), server.rows("immich"));
    }
}

#[test]
fn of_five_dumps_the_newest_two_stay_as_immichs_own_setting_says() {
    let Some((mut immich, _server)) = installed() else { return };
    immich.world.environment.push(("DB_BACKUP_RETENTION".to_owned(), "2".to_owned()));
    let mut keys = Vec::new();
    let mut removed = 0;
    for _ in 0..5 {
        let ran = immich.backup(&[]).ended(0);
        keys.push(ran.summary()["dump"]["key"].as_str().unwrap().to_owned());
        removed += ran.number("/pruned_dumps");
        std::thread::sleep(Duration::from_millis(1_050));
    }
    let there: Vec<_> = immich.dumps().iter().map(|path| format!("database/{}", path.file_name().unwrap().to_str().unwrap())).collect();
    assert_eq!((there.as_slice(), removed), (&keys[3..], 3));
    // What was removed is no damage, and the older snapshots say what they lack.
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
    let snapshots = immich.world.snapshots();
    immich.world.run(&["verify", "--proof", "--snapshot", &snapshots[0], "--json"]).ended(1).says("pruned");
    immich.world.run(&["verify", "--proof", "--snapshot", &snapshots[3], "--json"]).ended(0);
}

#[test]
fn the_newest_dump_that_is_proven_stays_whatever_the_retention_says() {
    let Some((mut immich, _server)) = installed() else { return };
    immich.world.environment.push(("DB_BACKUP_RETENTION".to_owned(), "1".to_owned()));
    let proven = immich.backup(&[]).ended(0).summary()["dump"]["key"].as_str().unwrap().to_owned();
    fs::remove_file(immich.original(immich.plain_asset(1))).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1_050));
        immich.backup(&[]).ended(3);
    }
    let there: Vec<_> = immich.dumps().iter().map(|path| format!("database/{}", path.file_name().unwrap().to_str().unwrap())).collect();
    assert!(there.len() == 2 && there[0] == proven, "{there:?}, and {proven} is the proven one");
}

/// Somebody holds a table; ends with the server, or when told.
struct Lock<'a>(&'a Postgres, std::process::Child);

impl<'a> Lock<'a> {
    fn of(server: &'a Postgres, database: &str) -> Self {
        let mut psql = Command::new(server.programs().join("psql"));
        psql.args(["-X", "-q", &address(server, database), "-c", "BEGIN", "-c", "LOCK TABLE asset IN ACCESS EXCLUSIVE MODE", "-c", "SELECT pg_sleep(300)"]);
        let child =
            psql.env("PGPASSWORD", Postgres::PASSWORD).env("PGAPPNAME", "the one who locks").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while !server.connections(database).iter().any(|connection| connection.query.contains("pg_sleep")) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(server, child)
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        drop(self.0.try_psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'the one who locks'"));
        drop(self.1.wait());
    }
}

#[test]
fn a_table_that_stays_locked_ends_the_run_in_time_and_says_why() {
    let Some((immich, server)) = installed() else { return };
    let lock = Lock::of(&server, "immich");
    let (message, hint) = error(&immich.backup(&["--lock-wait", "1s"]).ended(1));
    assert!(message.contains("stayed locked by another session for 1 s"), "{message}");
    assert!(hint.contains("pg_stat_activity"), "{hint}");
    assert_no_dump(&immich, "locked");
    // Who asks to stop need not wait for it.
    let mut running = Running::start(immich.backup_command(&[]));
    assert!(running.until(|_| server.connections("immich").iter().any(|connection| connection.query.starts_with("LOCK TABLE"))));
    running.signal("INT");
    running.wait().ended(130);
    assert_no_dump(&immich, "interrupted");
    drop(lock);
    immich.backup(&[]).ended(0);
}

#[test]
fn what_a_killed_run_left_at_the_server_is_ended_by_the_next_which_goes_on() {
    let Some((immich, server)) = installed() else { return };
    let lock = Lock::of(&server, "immich");
    let mut running = Running::start(immich.backup_command(&[]));
    let ours = |server: &Postgres| server.connections("immich").iter().filter(|connection| connection.application.starts_with("immich-backup ")).count();
    assert!(running.until(|_| server.connections("immich").iter().any(|connection| connection.query.starts_with("LOCK TABLE"))), "{}", running.said());
    running.signal("KILL");
    assert_eq!(running.wait().code, -1);
    assert_eq!(ours(&server), 1, "what a dead run leaves is not there: {:?}", server.connections("immich"));
    assert_no_dump_stored(&immich);
    let mut next = Running::start(immich.backup_command(&["--take-over"]));
    assert!(next.until(|next| next.said().contains("left by a run that died, were ended")), "{}", next.said());
    drop(lock);
    assert_eq!(numbers(&proof(&next.wait().ended(0))), immich.expected());
    assert_eq!((ours(&server), immich.dumps().len()), (0, 1));
}

#[track_caller]
fn assert_no_dump_stored(immich: &Immich) {
    assert_eq!(immich.dumps(), [] as [PathBuf; 0]);
}

// No room.

#[test]
fn a_dump_that_has_no_room_in_the_state_folder_is_sent_while_it_is_taken_and_only_if_it_is_whole() {
    if !may_mount("a state folder without room") {
        return;
    }
    let Some((mut immich, server)) = installed() else { return };
    let _small = Mount::tmpfs(&immich.world.at("small"), "40m");
    immich.world.state = immich.world.at("small/state");
    let good = immich.database.clone();
    let folder = programs(&immich.world, &server, &[("pg_dump", "REAL/pg_dump \"$@\" | head -c 200000; exit 0")]);
    immich.database[3] = folder.to_str().unwrap().to_owned();
    let ran = immich.backup(&[]).ended(1).says("no room for the dump");
    assert!(error(&ran).0.contains("the dump is cut"), "{}", ran.told());
    assert_no_dump(&immich, "streamed and cut");
    immich.database = good;
    let ran = immich.backup(&[]).ended(0).says("no room for the dump");
    assert_eq!(numbers(&proof(&ran)), immich.expected());
    server.create_database("back");
    restore_into(&immich, &server, "back", &[]).ended(0);
    assert_eq!(server.rows("back"), server.rows("immich"));
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
}

#[test]
fn a_dump_that_has_no_room_is_sent_to_s3_while_it_is_taken_and_only_if_it_is_whole() {
    if !may_mount("a state folder without room") {
        return;
    }
    let Some((immich, server)) = installed() else { return };
    let stand = Stand::s3().append_only(true);
    let mut immich = immich.lent(|world| stand.lend("p", world));
    let _small = Mount::tmpfs(&immich.world.at("small"), "40m");
    immich.world.state = immich.world.at("small/state");
    let good = immich.database.clone();
    let folder = programs(&immich.world, &server, &[("pg_dump", "REAL/pg_dump \"$@\" | head -c 200000; exit 0")]);
    immich.database[3] = folder.to_str().unwrap().to_owned();
    immich.backup(&[]).ended(1).says("no room for the dump").says("the dump is cut");
    assert!(!stand.keys("p").iter().any(|key| key.starts_with("database/")));
    immich.database = good;
    let ran = immich.backup(&[]).ended(0).says("no room for the dump");
    assert_eq!(numbers(&proof(&ran)), immich.expected());
    assert_eq!(stand.keys("p").iter().filter(|key| key.starts_with("database/")).count(), 1);
    server.create_database("back");
    restore_into(&immich, &server, "back", &[]).ended(0);
    assert_eq!(server.rows("back"), server.rows("immich"));
    stand.assert_written_once();
}

// Damage in the database.

#[test]
fn rows_of_search_tables_that_cannot_be_read_are_left_out_loudly_and_all_else_is_dumped() {
    let Some((mut immich, server)) = installed() else { return };
    // As pg_dump fails where a value of smart_search is lost.
    let script = "case \" $* \" in *--exclude-table-data=public.smart_search*) exec REAL/pg_dump \"$@\";; esac
REAL/pg_dump \"$@\" | head -c 150000
echo 'pg_dump: error: Dumping the contents of table \"smart_search\" failed: PQgetResult() failed.' >&2
echo 'pg_dump: detail: Error message from server: ERROR:  missing chunk number 0 for toast value 16543 in pg_toast_16539' >&2
echo 'pg_dump: detail: Command was: COPY public.smart_search (\"assetId\", embedding) TO stdout;' >&2
exit 1";
    let folder = programs(&immich.world, &server, &[("pg_dump", script)]);
    immich.database[3] = folder.to_str().unwrap().to_owned();
    let ran = immich.backup(&[]);
    let dump = ran.summary()["dump"].clone();
    assert_eq!(dump["without_data"], json!(["face_search", "smart_search"]), "{}", ran.told());
    assert!(ran.events("warned").iter().any(|event| event["message"].as_str().unwrap().contains("is damaged")), "{}", ran.told());
    assert_eq!(facts(&immich, "dump").pop().unwrap()["without_data"], dump["without_data"]);
    assert_eq!(numbers(&proof(&ran)), immich.expected());
    assert_eq!(immich.dumps().len(), 1);
    let _: Value = dump;
    assert_eq!(named(&proof(&ran), Verdict::Missing), [] as [&str; 0]);
    settle();
}
