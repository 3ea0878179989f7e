//! What may stand in a run's way - passwords, versions, locks, dead runs - and what may be left out of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{Immich, address, assert_no_dump, error, find_in, installed, numbers, programs, proof, restore_into, text_of};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Ran, Running, clean, may_mount};

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
        assert!(find_in(&text_of(&path), SECRET.as_bytes()).is_none());
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
    let same = immich.backup(&[]).ended(3);
    let dump = same.summary()["dump"].clone();
    assert_eq!(dump["program_version"], dump["server_version"], "{dump}");
    // Not Immich's: kept all the same, and said; it proves nothing, so the backup is not complete.
    assert!(same.says("is not a database of Immich").summary()["proof"].is_null());
    if !may_mount("a host without the server's own pg_dump") {
        return;
    }
    let mut command = clean(Command::new("unshare"));
    command.args(["--mount", "sh", "-c", "mount -t tmpfs tmpfs /usr/lib/postgresql && exec \"$@\"", "-"]);
    let program = immich.backup_command(&[]);
    command.arg(program.get_program()).args(program.get_args()).envs(immich.world.environment.iter().map(|(name, value)| (name, value)));
    let ran = Running::start(command).wait().ended(3);
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
    assert_eq!(immich.dumps(), [] as [PathBuf; 0]);
    let mut next = Running::start(immich.backup_command(&["--take-over"]));
    assert!(next.until(|next| next.said().contains("left by a run that died, were ended")), "{}", next.said());
    drop(lock);
    assert_eq!(numbers(&proof(&next.wait().ended(0))), immich.expected());
    assert_eq!((ours(&server), immich.dumps().len()), (0, 1));
}
