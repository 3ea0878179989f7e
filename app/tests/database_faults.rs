//! A dump that is cut, damaged or has no room is refused, named, and never taken for one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stand;
mod support;

use immich::{Immich, address, assert_empty, assert_no_dump, error, facts, find_in, gzip, installed, named, numbers, programs, proof, restore_into, text_of};
use immich_backup_core::model::Sha256;
use immich_backup_core::verdict::Verdict;
use serde_json::json;
use stand::Stand;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use support::{Mount, forge_entry, may_mount};

// A dump that is cut.

/// Where to cut a dump: at its ends, in the middle of a line, at the ends of lines inside and around a COPY block, and before, in and after the closing line.
fn cuts(text: &[u8]) -> BTreeMap<usize, &'static str> {
    let find = |what: &str, from: usize| find_in(&text[from..], what.as_bytes()).map(|at| from + at).unwrap();
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
    assert_eq!(named(&proof(&ran), Verdict::Missing), [] as [&str; 0]);
}
