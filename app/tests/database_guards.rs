//! What stands between a mistake and its damage: a database that collapsed, a restore over one that is in use, a dump that brings a trap along, a disk that
//! fills up, a program that dies.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{Immich, address, all, arguments, error, facts, flip, installed, numbers, programs, proof, restore_into};
use immich_backup_core::verdict::Proof;
use immich_backup_testbed::postgres::{Dump, Postgres};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use support::{Mount, Ran, Running, may_mount, settle, tool};

/// Dumps are named by the second.
fn next_second() {
    std::thread::sleep(Duration::from_millis(1_050));
}

/// `status --json`, which has to end so.
#[track_caller]
fn status(immich: &Immich, code: i32) -> Value {
    immich.world.run(&["status", "--json"]).ended(code).summary()
}

/// The key of the dump that a backup says it has.
#[track_caller]
fn key(ran: &Ran) -> String {
    ran.summary()["dump"]["key"].as_str().unwrap_or_else(|| panic!("no dump\n{}", ran.told())).to_owned()
}

/// Dumps in the repository, by key.
fn keys(immich: &Immich) -> BTreeSet<String> {
    immich.dumps().iter().map(|path| format!("database/{}", path.file_name().unwrap().to_str().unwrap())).collect()
}

/// Files of the state folder that are scratch.
fn scratch(immich: &Immich) -> Vec<String> {
    let names = fs::read_dir(immich.world.own_state()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.contains("scratch") || name.contains(".sql")).collect();
    names.sort();
    names
}

/// Words with which a database is named, and the folder of PostgreSQL's programs.
fn with_programs(server: &Postgres, database: &str, folder: &Path) -> Vec<String> {
    ["--database", &address(server, database), "--postgres-programs", folder.to_str().unwrap()].map(str::to_owned).to_vec()
}

/// The command line of a restore into the database that `named` names.
fn restore_words<'a>(named: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    std::iter::once("restore").chain(all(&[named], more)).collect()
}

/// A folder that everybody may enter, as /tmp is.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("g").tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

// A database that lost its rows.

/// Deletes assets that nothing else is in the way of.
fn delete_assets(server: &Postgres, count: u64) {
    let wanted = "SELECT id FROM asset a WHERE \"libraryId\" IS NULL AND NOT EXISTS (SELECT FROM stack s WHERE s.\"primaryAssetId\" = a.id) ORDER BY id";
    let before = assets(server);
    server.psql("immich", &format!("DELETE FROM asset WHERE id IN ({wanted} LIMIT {count})"));
    assert_eq!(assets(server), before - count);
}

fn assets(server: &Postgres) -> u64 {
    server.psql("immich", "SELECT count(*) FROM asset").parse().unwrap()
}

#[test]
fn a_database_that_lost_more_than_a_tenth_of_its_assets_withholds_the_snapshot_until_that_is_accepted_once() {
    let Some((mut immich, server)) = installed() else { return };
    immich.world.environment.push(("DB_BACKUP_RETENTION".to_owned(), "1".to_owned()));
    immich.backup(&[]).ended(0);
    // 9 of 97 are less than a tenth.
    delete_assets(&server, 9);
    next_second();
    let before = immich.backup(&[]).ended(0);
    let sound = key(&before);
    assert_eq!((keys(&immich), proof(&before).assets), (BTreeSet::from([sound.clone()]), 88));
    // 9 of 88 are more.
    delete_assets(&server, 9);
    let mut run = String::new();
    for withheld in 1..=2 {
        next_second();
        let ran = immich.backup(&[]).ended(4);
        let summary = ran.summary();
        let reason = "9 of the 88 assets that the database had at the last snapshot are gone from it, more than 10 %: is it the right one?";
        assert_eq!((&summary["withheld"], &summary["snapshot"], &summary["pruned_dumps"]), (&json!(reason), &Value::Null, &json!(0)), "{summary}");
        // Nothing is removed; what the run has dumped is kept as well.
        assert_eq!((keys(&immich).contains(&sound), keys(&immich).len()), (true, 1 + withheld));
        assert!(status(&immich, 4)["problems"].to_string().contains(&format!("the last run withheld: {reason}")));
        run = summary["run"].as_str().unwrap().to_owned();
    }
    assert_eq!(immich.world.snapshots().len(), 2);
    // One that says nothing of the database does not make it right.
    immich.world.backup(&all(&[&immich.external()], &["--no-database"])).ended(0);
    assert!(keys(&immich).contains(&sound), "the last dump that was proven is gone: {:?}", keys(&immich));
    next_second();
    let ran = immich.backup(&[]).ended(4).says("9 of the 88 assets");
    immich.backup(&["--accept", &run]).ended(1).says("nothing to accept");
    run = ran.summary()["run"].as_str().unwrap().to_owned();
    next_second();
    let accepted = immich.backup(&["--accept", &run]).ended(0);
    assert_eq!(proof(&accepted).assets, 79);
    assert_eq!(keys(&immich), BTreeSet::from([key(&accepted)]), "the policy holds again");
    immich.backup(&["--accept", &run]).ended(1).says("nothing to accept");
    next_second();
    immich.backup(&[]).ended(0);
    status(&immich, 0);
}

#[test]
fn a_new_database_in_place_of_the_old_one_withholds_the_snapshot_and_so_does_another_one() {
    let Some((mut immich, server)) = installed() else { return };
    immich.world.environment.push(("DB_BACKUP_RETENTION".to_owned(), "1".to_owned()));
    let first = immich.backup(&[]).ended(0);
    let mut schema = Command::new(server.programs().join("pg_dump"));
    let schema = schema.args(["--schema-only", &address(&server, "immich")]).env("PGPASSWORD", Postgres::PASSWORD).output().unwrap();
    assert!(schema.status.success(), "{}", String::from_utf8_lossy(&schema.stderr));
    server.create_loaded("new", Dump::Text(&schema.stdout));
    assert!(server.counts("new").len() > 50 && server.counts("new").values().all(|rows| *rows == 0));
    server.create_database("another");
    server.psql("another", "CREATE TABLE thing (id int); INSERT INTO thing SELECT generate_series(1, 1000)");
    for (number, database) in ["new", "another"].into_iter().enumerate() {
        immich.database = arguments(&server, database);
        next_second();
        let ran = immich.backup(&[]).ended(4);
        let reason = "97 of the 97 assets that the database had at the last snapshot are gone from it";
        assert!(ran.summary()["withheld"].as_str().unwrap().starts_with(reason), "{database}: {}", ran.told());
        assert!(status(&immich, 4)["problems"].to_string().contains(reason));
        assert_eq!((keys(&immich).contains(&key(&first)), keys(&immich).len()), (true, 2 + number), "{database}");
    }
    assert_eq!(immich.world.snapshots(), [first.snapshot()]);
    // What it was before comes back.
    server.create_database("back");
    restore_into(&immich, &server, "back", &[]).ended(0);
    assert_eq!(server.rows("back"), server.rows("immich"));
    immich.database = arguments(&server, "immich");
    next_second();
    immich.backup(&[]).ended(0);
    status(&immich, 0);
}

// A restore over a database that is there.

/// A database beside Immich's that has other rows.
fn make_target(server: &Postgres) {
    server.psql("postgres", "CREATE DATABASE target TEMPLATE immich");
    server
        .psql("target", "INSERT INTO system_metadata VALUES ('mark', '{\"old\": true}'); DELETE FROM album; UPDATE asset SET \"originalFileName\" = 'old.jpg'");
}

#[test]
fn a_database_that_is_written_to_while_it_is_saved_is_not_replaced_and_keeps_what_was_written() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    make_target(&server);
    let sql = immich.world.at("meanwhile.sql");
    let script = format!("REAL/pg_dump \"$@\" || exit\nPGAPPNAME=somebody REAL/psql -X -q -v ON_ERROR_STOP=1 -f {} </dev/null >/dev/null 2>&1", sql.display());
    let folder = programs(&immich.world, &server, &[("pg_dump", &script)]);
    let restore = |folder: &Path| immich.world.run(&restore_words(&with_programs(&server, "target", folder), &["--json", "--replace"]));
    let writes = [
        ("a row more", "INSERT INTO system_metadata VALUES ('meanwhile', '{}');"),
        ("a row changed", "UPDATE system_metadata SET value = '{\"old\": false}' WHERE key = 'mark';"),
        ("a row less and a row more", "DELETE FROM system_metadata WHERE key = 'meanwhile'; INSERT INTO system_metadata VALUES ('other', '{}');"),
    ];
    for (number, (what, write)) in writes.into_iter().enumerate() {
        let expected = format!("expected_{number}");
        server.psql("postgres", &format!("CREATE DATABASE {expected} TEMPLATE target"));
        server.psql(&expected, write);
        assert_ne!(server.rows(&expected), server.rows("target"));
        fs::write(&sql, write).unwrap();
        let (message, hint) = error(&restore(&folder).ended(1));
        assert!(message.contains("`target` at") && message.contains("was written to while it was dumped; nothing was changed"), "{what}: {message}");
        assert!(hint.contains("stop Immich's server") && hint.contains("run the same command again"), "{what}: {hint}");
        assert_eq!(server.rows("target"), server.rows(&expected), "{what}");
    }
    // Who came meanwhile and has written nothing yet is about to.
    let before = server.rows("target");
    let stays = "REAL/pg_dump \"$@\" || exit\nPGAPPNAME=somebody REAL/psql -X -q -c 'SELECT pg_sleep(300)' </dev/null >/dev/null 2>&1 &
for n in $(seq 100); do REAL/psql -X -A -t -c \"SELECT state FROM pg_stat_activity WHERE application_name = 'somebody'\" </dev/null 2>/dev/null | grep -q active && exit 0; sleep 0.05; done; exit 9";
    let staying = programs(&immich.world, &server, &[("pg_dump", stays)]);
    let (message, hint) = error(&restore(&staying).ended(1));
    server.psql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'somebody'");
    assert!(message.contains("others are connected to `target`") && message.contains("`somebody`"), "{message}");
    assert!(hint.contains("stop Immich first"), "{hint}");
    assert_eq!(server.rows("target"), before);
    server.wait_until_alone("target", Duration::from_secs(20));
    // Where nobody does, the same command does what it should.
    fs::write(&sql, "SELECT 1;").unwrap();
    restore(&folder).ended(0);
    assert_eq!(server.rows("target"), server.rows("immich"));
}

#[test]
fn the_dump_of_what_a_restore_replaced_outlives_every_rule_and_brings_it_back() {
    let Some((mut immich, server)) = installed() else { return };
    immich.world.environment.push(("DB_BACKUP_RETENTION".to_owned(), "1".to_owned()));
    immich.backup(&[]).ended(0);
    make_target(&server);
    let old = server.rows("target");
    next_second();
    let replaced = restore_into(&immich, &server, "target", &["--replace"]).ended(0).summary();
    assert_eq!(server.rows("target"), server.rows("immich"));
    let saved = replaced["database"]["saved"]["key"].as_str().unwrap_or_else(|| panic!("{replaced}")).to_owned();
    assert!(keys(&immich).contains(&saved), "{saved} is not among {:?}", keys(&immich));
    let mut last = String::new();
    for _ in 0..3 {
        next_second();
        last = key(&immich.backup(&[]).ended(0));
        assert_eq!(keys(&immich), BTreeSet::from([saved.clone(), last.clone()]));
    }
    let first = last;
    next_second();
    last = key(&immich.backup(&["--database-keep", "5"]).ended(0));
    assert_eq!(keys(&immich).len(), 3);
    let pruned = immich.world.run(&["prune", "--keep-last", "1", "--json"]).ended(0);
    assert_eq!(keys(&immich), BTreeSet::from([saved.clone(), last]), "{}", pruned.told());
    // A dump that is gone is not taken for a file.
    restore_into(&immich, &server, "target", &["--replace", "--dump-file", &first]).ended(2).says("no such dump in the repository");
    assert_eq!(server.rows("target"), server.rows("immich"));
    next_second();
    let back = restore_into(&immich, &server, "target", &["--replace", "--dump-file", &saved]).ended(0).summary();
    assert_eq!(back["database"]["differ"], json!([]));
    assert!(server.rows("target") == old, "what was replaced did not come back as it was");
    // What that replaced is kept in its turn, and the text says how to get at it.
    let again = back["database"]["saved"]["key"].as_str().unwrap();
    assert!(again != saved && keys(&immich).contains(again));
    let named = arguments(&server, "target");
    let told = immich.world.run(&restore_words(&named, &["--replace", "--dump-file", again])).ended(0);
    assert!(told.out.contains("restore --dump-file database/"), "{}", told.told());
    assert_eq!(server.rows("target"), server.rows("immich"));
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
}

#[test]
fn a_restore_leaves_alone_what_somebody_else_has_in_another_schema() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    server.create_role("keeper", Postgres::PASSWORD, "");
    server.psql("postgres", "CREATE DATABASE target OWNER keeper");
    for extension in server.psql("immich", "SELECT extname FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY extname = 'earthdistance'").lines() {
        server.psql("target", &format!("CREATE EXTENSION IF NOT EXISTS \"{extension}\" SCHEMA public CASCADE"));
    }
    server.psql("target", "CREATE SCHEMA closed; CREATE TABLE closed.secret (id int); INSERT INTO closed.secret SELECT generate_series(1, 7)");
    let refused = server.psql_as("keeper", Postgres::PASSWORD, "target", "SELECT count(*) FROM closed.secret").unwrap_err();
    assert!(refused.contains("permission denied"), "{refused}");
    let url = format!("postgresql://keeper@127.0.0.1:{}/target", server.port());
    let named = ["restore", "--json", "--database", &url, "--postgres-programs", server.programs().to_str().unwrap()];
    let restored = immich.world.run(&named).ended(0).summary();
    assert_eq!(restored["database"]["differ"], json!([]), "{restored}");
    let counts = server.counts("immich");
    assert_eq!((restored["database"]["tables"].as_u64(), restored["database"]["rows"].as_u64()), (Some(counts.len() as u64), Some(counts.values().sum())));
    assert_eq!(server.rows("target"), server.rows("immich"));
    assert_eq!(server.psql("target", "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"), "keeper");
    assert_eq!(server.psql("target", "SELECT count(*) FROM closed.secret"), "7");
}

#[test]
fn a_restore_goes_where_the_command_line_says_and_takes_neither_name_nor_user_nor_port_from_the_environment() {
    let Some((mut immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    server.psql("postgres", "ALTER DATABASE immich RENAME TO live");
    let live = server.rows("live");
    let me = tool("id", &["-un"]).out.trim().to_owned();
    for role in [me.as_str(), "live_user"].into_iter().filter(|role| *role != Postgres::USER) {
        server.create_role(role, Postgres::PASSWORD, "SUPERUSER");
    }
    for database in ["immich", "scratch"] {
        server.create_database(database);
    }
    let decoy = Postgres::start_plain().unwrap().port().to_string();
    for (name, value) in [
        ("IMMICH_BACKUP_DATABASE_NAME", "live"),
        ("DB_DATABASE_NAME", "live"),
        ("DB_NAME", "live"),
        ("PGDATABASE", "live"),
        ("IMMICH_BACKUP_DATABASE_USER", "live_user"),
        ("DB_USERNAME", "live_user"),
        ("PGUSER", "live_user"),
        ("DB_HOSTNAME", "127.0.0.2"),
        ("PGHOST", "127.0.0.2"),
        ("IMMICH_BACKUP_DATABASE_PORT", &decoy),
        ("DB_PORT", &decoy),
        ("PGPORT", &decoy),
    ] {
        immich.world.environment.push((name.to_owned(), value.to_owned()));
    }
    let folder = server.programs().to_str().unwrap().to_owned();
    let port = server.port();
    let url = format!("postgresql://127.0.0.1:{port}");
    let run = |more: &[&str]| immich.world.run(&[&["restore", "--database", &url, "--postgres-programs", &folder][..], more].concat());
    for (more, database) in [(&[][..], "immich"), (&["--database-name", "scratch", "--database-user", "postgres"], "scratch")] {
        let dry = run(&[more, &["--dry-run"]].concat()).ended(0);
        assert!(dry.err.contains(&format!("into `{database}` at 127.0.0.1:{port} ")), "{}", dry.told());
        assert!(!dry.err.contains("live") && !dry.out.contains("live"), "{}", dry.told());
        assert_eq!(server.counts(database), BTreeMap::new(), "{database}: a dry run");
        run(more).ended(0);
        assert_eq!(server.rows(database), live, "{database}");
        let owner = if database == "immich" { me.as_str() } else { Postgres::USER };
        assert_eq!(server.psql(database, "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"), owner);
    }
    // Not even where all else was said.
    run(&["--replace", "--dry-run"]).ended(0).says("into `immich` at 127.0.0.1");
    assert_eq!(server.rows("live"), live);
}

// A drill of what is not to be trusted.

/// The users of all processes of this name that have to do with a folder.
fn users_of(program: &str, folder: &Path) -> BTreeSet<u32> {
    let mut users = BTreeSet::new();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let said = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let mut words = said.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let is_program = words.next().is_some_and(|first| first.rsplit('/').next() == Some(program));
        if is_program && words.any(|word| word.contains(folder.to_str().unwrap())) {
            users.extend(process.metadata().ok().map(|found| found.uid()));
        }
    }
    users
}

#[test]
fn a_drill_as_root_is_run_by_nobody_and_passes() {
    let Some((mut immich, server)) = installed() else { return };
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT TESTED: who runs a drill that root has started");
        return;
    }
    immich.backup(&[]).ended(0);
    let folder = open_folder();
    immich.world.environment.push(("TMPDIR".to_owned(), folder.path().to_str().unwrap().to_owned()));
    let drill = ["drill", "--json", "--sample", "100%", "--postgres-programs", server.programs().to_str().unwrap()];
    let mut running = Running::start(immich.world.command(&drill));
    let mut users = BTreeSet::new();
    while !running.is_over() {
        users.extend(users_of("postgres", folder.path()));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running.wait().ended(0).summary()["verdict"], "passed");
    assert_eq!(users, BTreeSet::from([65_534]), "who ran the server");
}

#[test]
fn a_drill_does_not_run_what_a_dump_brings_along_as_a_superuser() {
    let Some((mut immich, server)) = installed() else { return };
    let folder = open_folder();
    immich.world.environment.push(("TMPDIR".to_owned(), folder.path().to_str().unwrap().to_owned()));
    let sprung = folder.path().join("sprung");
    // Harmless while the row is written, and a trap when it comes back.
    let function =
        |body: &str| format!("CREATE OR REPLACE FUNCTION public.check_it(n int) RETURNS boolean LANGUAGE plpgsql AS $f$ BEGIN {body} RETURN true; END $f$;");
    let table = "CREATE TABLE public.trap (n int CHECK (public.check_it(n))); INSERT INTO public.trap VALUES (1);";
    let trap = format!("EXECUTE 'COPY (SELECT 1) TO PROGRAM ''touch {}''';", sprung.display());
    server.psql("immich", &format!("{} {table} {}", function(""), function(&trap)));
    immich.backup(&[]).ended(0);
    assert!(!sprung.exists(), "a dump runs no function");
    let programs = server.programs().to_str().unwrap();
    let drill = immich.world.run(&["drill", "--json", "--postgres-programs", programs]).ended(12);
    assert!(!sprung.exists(), "the drill ran it\n{}", drill.told());
    let summary = drill.summary();
    assert_eq!((&summary["verdict"], &summary["problem_count"]), (&json!("failed"), &json!(1)), "{summary}");
    let problem = summary["problems"][0].as_str().unwrap();
    assert!(problem.contains("refused line") && problem.contains("permission denied to COPY to or from an external program"), "{problem}");
    assert!(status(&immich, 12)["problems"].to_string().contains("the last drill failed"));
    // The trap is one: a superuser who restores the dump springs it.
    server.create_database("sprung");
    restore_into(&immich, &server, "sprung", &[]).ended(0);
    assert!(sprung.exists(), "the test is blind");
    // Without it, the same database passes.
    server.psql("immich", "DROP TABLE public.trap; DROP FUNCTION public.check_it");
    next_second();
    immich.backup(&[]).ended(0);
    let drill = immich.world.run(&["drill", "--json", "--postgres-programs", programs]).ended(0).summary();
    assert_eq!(drill["verdict"], "passed");
}

// What a run says, and what is said of it later.

#[test]
fn a_file_that_was_found_doubtful_stays_so_in_a_run_that_says_nothing_of_the_database() {
    let Some((immich, _server)) = installed() else { return };
    let trees = immich.trees();
    immich.backup(&[]).ended(0);
    settle();
    let asset = immich.plain_asset(3);
    let shown = immich.shown(&asset.original_path);
    flip(&immich.original(asset));
    let files_alone = all(&[], &["--no-database"]);
    let runs: [(&str, &dyn Fn() -> Ran); 4] = [
        ("with the database", &|| immich.backup(&[])),
        ("files alone", &|| immich.world.backup(&all(&[&immich.external()], &files_alone))),
        ("files alone, again", &|| immich.world.backup(&all(&[&immich.external()], &files_alone))),
        ("with the database, again", &|| immich.backup(&[])),
    ];
    for (number, (what, backup)) in runs.into_iter().enumerate() {
        next_second();
        let ran = backup().ended(3);
        let summary = ran.summary();
        assert_eq!((&summary["doubtful_count"], &summary["doubtful"]), (&json!(1), &json!([shown])), "{what}: {summary}");
        if what.starts_with("with") {
            assert_eq!(numbers(&proof(&ran)), immich.expected(), "{what}");
        }
        assert!(status(&immich, 3)["problems"].to_string().contains("1 file of the library with content that is not what Immich recorded"), "{what}");
        let place = immich.place(&format!("good-{number}"));
        immich.restore(&place, &[], &[]).ended(0);
        place.assert_is(&trees, what);
    }
    let doubtful = facts(&immich, "doubtful");
    let keys: BTreeSet<_> = doubtful.iter().map(|fact| fact["key"].as_str().unwrap()).collect();
    assert_eq!(keys.len(), 1, "stored once");
}

#[test]
fn assets_outside_that_nobody_meant_to_leave_out_are_said_by_backup_status_and_verify_alike() {
    let Some((immich, _server)) = installed() else { return };
    let codes = |more: &[&str]| {
        next_second();
        let backup = immich.backup_without_external(more);
        assert_eq!(proof(&backup).outside, 4);
        let status = immich.world.run(&["status", "--json"]);
        let verify = immich.world.run(&["verify", "--proof", "--json"]);
        ([backup.code, status.code, verify.code], status.summary()["problems"].clone())
    };
    let (unsaid, problems) = codes(&[]);
    assert_eq!(unsaid, [3, 3, 3]);
    assert!(problems.to_string().contains("lacks something") && problems.to_string().contains("4 outside"), "{problems}");
    assert_eq!(codes(&["--external-ignore", "NAS photos"]), ([0, 0, 0], json!([])));
    assert_eq!(codes(&["--external-ignore", "/mnt/external"]), ([0, 0, 0], json!([])));
    // What was meant once is not meant for ever.
    assert_eq!(codes(&["--external-ignore", "/mnt/other"]).0, [3, 3, 3]);
    // An older snapshot is weighed by what was said then.
    let snapshots = immich.world.snapshots();
    for (snapshot, code) in snapshots.iter().zip([3, 0, 0, 3]) {
        immich.world.run(&["verify", "--proof", "--json", "--snapshot", snapshot]).ended(code);
    }
}

#[test]
fn a_database_that_is_not_immichs_is_no_complete_backup_and_status_asks_for_its_name() {
    let Some((mut immich, server)) = installed() else { return };
    server.create_database("other");
    server.psql("other", "CREATE TABLE thing (id int); INSERT INTO thing VALUES (1)");
    immich.database = arguments(&server, "other");
    immich.backup(&[]).ended(3).says("is not a database of Immich");
    let problems = status(&immich, 3)["problems"].to_string();
    assert!(problems.contains("the newest dump is not one of Immich: is the name of the database right?"), "{problems}");
    immich.database = arguments(&server, "immich");
    next_second();
    immich.backup(&[]).ended(0);
    status(&immich, 0);
}

#[test]
fn a_run_that_could_not_reach_its_database_shows_in_status() {
    let Some((immich, mut server)) = installed() else { return };
    let first = immich.backup(&[]).ended(0);
    status(&immich, 0);
    server.stop();
    let (message, _) = error(&immich.backup(&[]).ended(1));
    assert!(message.contains("Connection refused"), "{message}");
    let said = status(&immich, 1);
    assert!(said["problems"].to_string().contains("the last run failed: cannot dump the database: "), "{said}");
    assert!(said["problems"].to_string().contains("Connection refused"), "{said}");
    assert_eq!(said["snapshot"]["id"], first.snapshot().as_str());
}

#[test]
fn a_second_dump_that_fails_costs_its_explanation_and_not_the_snapshot() {
    let Some((mut immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    let calls = immich.world.at("calls");
    for (number, (what, failure, says)) in [
        ("it fails", "echo 'pg_dump: error: the disk is on fire' >&2; exit 1", "the disk is on fire"),
        ("it is cut", "REAL/pg_dump \"$@\" | head -c 100000; exit 0", "the dump is cut"),
        ("it is killed", "REAL/pg_dump \"$@\" | head -c 100000; kill -KILL $$", "137"),
    ]
    .into_iter()
    .enumerate()
    {
        let script = format!("echo one >> {0}\n[ $(wc -l < {0}) = 1 ] && exec REAL/pg_dump \"$@\"\n{failure}", calls.display());
        let folder = programs(&immich.world, &server, &[("pg_dump", &script)]);
        immich.database = with_programs(&server, "immich", &folder);
        fs::write(&calls, "").unwrap();
        // News each time.
        fs::remove_file(immich.original(immich.plain_asset(number))).unwrap();
        next_second();
        let ran = immich.backup(&[]).ended(3);
        assert_eq!(fs::read_to_string(&calls).unwrap().lines().count(), 2, "{what}: a second dump was wanted");
        let warnings: Vec<_> = ran.events("warned").iter().map(|event| event["message"].as_str().unwrap().to_owned()).collect();
        assert!(
            warnings.iter().any(|text| text.starts_with("one more dump, to explain what is missing, failed: ") && text.contains(says)),
            "{what}: {warnings:?}"
        );
        let missing = number as u64 + 1;
        let expected = immich.expected();
        assert_eq!(numbers(&proof(&ran)), Proof { proven: expected.proven - missing, missing, ..expected }, "{what}");
        assert_eq!((immich.world.snapshots().pop(), immich.dumps().len()), (Some(ran.snapshot()), number + 2), "{what}");
        assert_eq!(scratch(&immich), [] as [String; 0], "{what}");
    }
    server.create_database("back");
    restore_into(&immich, &server, "back", &[]).ended(0);
    assert_eq!(server.rows("back"), server.rows("immich"));
}

// The state folder.

#[test]
fn a_dump_that_outgrows_the_state_folder_is_taken_once_more_and_sent_as_it_comes() {
    if !may_mount("a state folder that fills up") {
        return;
    }
    let Some((mut immich, server)) = installed() else { return };
    let small = Mount::tmpfs(&immich.world.at("small"), "400m");
    immich.world.state = immich.world.at("small/state");
    let first = immich.backup(&[]).ended(0);
    assert!(!first.err.contains("no room") && !first.out.contains("no room"), "{}", first.told());
    // As much as the last dump and a reserve of 64 MiB want.
    small.remount("size=76m");
    // 80 MB that do not get smaller, where the last dump took less than one.
    let random = "decode((SELECT string_agg(md5(random()::text || g || h), '') FROM generate_series(1, 5000) h), 'hex')";
    server.psql(
        "immich",
        &format!("CREATE TABLE album_grown (g int, bytes bytea); ALTER TABLE album_grown ALTER bytes SET STORAGE EXTERNAL; INSERT INTO album_grown SELECT g, {random} FROM generate_series(1, 1000) g"),
    );
    assert_eq!(server.psql("immich", "SELECT sum(length(bytes)) FROM album_grown"), "80000000");
    next_second();
    let ran = immich.backup(&[]).ended(0);
    let warnings = ran.events("warned");
    let once_more = |event: &Value| event["message"].as_str().unwrap().contains("it is taken once more, and sent as it comes");
    assert!(warnings.iter().any(once_more), "{}", ran.told());
    assert_eq!(numbers(&proof(&ran)), immich.expected());
    assert_eq!(scratch(&immich), [] as [String; 0]);
    assert_eq!(immich.dumps().len(), 2);
    assert_eq!(fs::read_dir(immich.world.repository.join("tmp")).map_or(0, Iterator::count), 0);
    let stored = fs::metadata(immich.world.repository.join(key(&ran))).unwrap().len();
    assert!(stored > 76 << 20, "{stored} bytes would have had room");
    immich.world.run(&["verify", "--read-data", "--json"]).ended(0);
    server.create_database("back");
    restore_into(&immich, &server, "back", &[]).ended(0);
    assert_eq!(server.counts("back"), server.counts("immich"));
    let sum = "SELECT md5(string_agg(md5(bytes), '' ORDER BY g)) FROM album_grown";
    assert_eq!(server.psql("back", sum), server.psql("immich", sum));
    server.psql("postgres", "DROP DATABASE back");
}

#[test]
fn what_a_restore_that_was_killed_has_left_goes_with_the_next_command_and_what_a_living_one_uses_stays() {
    let Some((immich, server)) = installed() else { return };
    immich.backup(&[]).ended(0);
    make_target(&server);
    let before = server.rows("target");
    let go_on = immich.world.at("go-on");
    // Half of it, and the rest when that is wanted.
    let script = format!(
        "REAL/pg_dump \"$@\" > {0}.$$ || exit\nhead -c 300000 {0}.$$\nfor n in $(seq 1000); do [ -e {0} ] && break; sleep 0.03; done\ntail -c +300001 {0}.$$",
        go_on.display()
    );
    let folder = programs(&immich.world, &server, &[("pg_dump", &script)]);
    let command = || immich.world.command(&restore_words(&with_programs(&server, "target", &folder), &["--json", "--replace"]));
    let is_saving = |immich: &Immich| {
        let spool = |name: &&String| name.contains("before.sql");
        let found = scratch(immich).iter().find(spool).map(|name| immich.world.own_state().join(name));
        found.is_some() && scratch(immich).iter().any(|name| name.contains("before.db"))
    };
    assert_eq!(scratch(&immich), [] as [String; 0]);
    let mut killed = Running::start(command());
    assert!(killed.until(|_| is_saving(&immich)), "{}", killed.said());
    killed.signal("KILL");
    assert_eq!(killed.wait().code, -1);
    let left = scratch(&immich);
    assert!(left.len() >= 2, "nothing was left: the test is blind: {left:?}");
    status(&immich, 0);
    assert_eq!(scratch(&immich), [] as [String; 0], "of {left:?}");
    assert_eq!(server.rows("target"), before);
    // What is in use is not swept.
    server.wait_until_alone("target", Duration::from_secs(60));
    let mut living = Running::start(command());
    assert!(living.until(|_| is_saving(&immich)), "{}", living.said());
    let used = scratch(&immich);
    status(&immich, 0);
    assert_eq!(scratch(&immich), used);
    fs::write(&go_on, "").unwrap();
    living.wait().ended(0);
    assert_eq!(scratch(&immich), [] as [String; 0]);
    assert_eq!(server.rows("target"), server.rows("immich"));
    let saved: Vec<PathBuf> = immich.dumps();
    assert_eq!(saved.len(), 2);
}
