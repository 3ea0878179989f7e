//! The database in a container, reached by its name alone: Docker's API is all that is needed on the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
mod support;

use immich::{Immich, numbers, proof};
use immich_backup_testbed::docker::{Container, Engine};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use support::{Ran, Running, clean, may_mount};

const CONTAINER: &str = "immich_postgres";

/// Arguments that name a database in the container.
fn arguments(engine: &Engine, database: &str) -> Vec<String> {
    ["--database-container", CONTAINER, "--docker-host", &engine.host(), "--database-name", database].map(str::to_owned).to_vec()
}

/// An installation whose database is in the container; the host's search path leads nowhere.
fn installed(fixture: Fixture, engine: &Engine, container: &Container<'_>, database: &str) -> Immich {
    container.create_loaded(database, fixture.dump());
    let mut immich = Immich::at(fixture, arguments(engine, database));
    immich.world.environment.push(("PATH".to_owned(), "/nonexistent".to_owned()));
    immich
}

/// Runs `program` in a world where the distribution's PostgreSQL is not installed, and asserts that it starts no other program at all.
fn alone_on_the_host(immich: &Immich, program: &Command) -> Ran {
    let trace = immich.world.at("programs");
    let strace = PathBuf::from("/usr/bin/strace");
    let traced = strace.exists() && Command::new(&strace).args(["-qq", "-o", "/dev/null", "/bin/true"]).status().is_ok_and(|status| status.success());
    let mut command = clean(Command::new("/usr/bin/unshare"));
    // Whatever is mounted in there is gone with the program.
    command.args([
        "--mount",
        "/bin/sh",
        "-c",
        "for folder in /usr/lib/postgresql /usr/share/postgresql; do [ ! -d $folder ] || /bin/mount -t tmpfs tmpfs $folder; done; exec \"$@\"",
        "-",
    ]);
    if traced {
        command.arg(&strace).args(["-f", "-qq", "-e", "trace=execve,execveat", "-o"]).arg(&trace);
    } else {
        eprintln!("NOT TESTED: strace cannot be used here; that no program is started is not seen");
    }
    command.arg(program.get_program()).args(program.get_args());
    command.envs(immich.world.environment.iter().map(|(name, value)| (name, value)));
    let ran = Running::start(command).wait();
    if traced {
        let started: Vec<_> = fs::read_to_string(&trace).unwrap().lines().filter(|line| line.contains("exec")).map(str::to_owned).collect();
        assert!(started.len() == 1 && started[0].contains("immich-backup"), "these were started: {started:#?}\n{}", ran.told());
    }
    ran
}

#[test]
fn both_generations_go_out_and_come_back_through_a_container_by_its_name_without_any_program_on_the_host() {
    if !may_mount("a host without PostgreSQL") {
        return;
    }
    let Some(engine) = Engine::start().unwrap() else { return };
    let container = engine.postgres(CONTAINER).unwrap();
    for fixture in Fixture::all() {
        let (source, back) = (format!("immich {}", fixture.expected.version), format!("back {}", fixture.expected.version));
        let immich = installed(fixture, &engine, &container, &source);
        let trees = immich.trees();
        let backup = alone_on_the_host(&immich, &immich.backup_command(&[])).ended(0);
        let proven = proof(&backup);
        assert_eq!((numbers(&proven), proven.named.len()), (immich.expected(), 0));
        let dump = &backup.summary()["dump"];
        assert!(dump["program_version"].as_str().unwrap().starts_with("18.") && dump["program_version"] == dump["server_version"], "{dump}");
        container.create_database(&back);
        let place = immich.place("back");
        let external = format!("nas={}", place.external.display());
        let more = [vec!["--external".to_owned(), external], arguments(&engine, &back)].concat();
        let restore = immich.world.restore_command(&place.media, &immich::all(&[&more], &[]));
        alone_on_the_host(&immich, &restore).ended(0);
        place.assert_is(&trees, "through the container");
        let (rows, restored) = (container.rows(&source), container.rows(&back));
        assert_eq!(rows.keys().collect::<Vec<_>>(), restored.keys().collect::<Vec<_>>());
        for (table, rows) in &rows {
            assert!(rows == &restored[table], "the rows of {table} came back otherwise");
        }
        assert!(rows.values().map(Vec::len).sum::<usize>() > 500);
        // And once more where something is: only if that was meant, and what was there is kept.
        let again = [vec!["restore".to_owned(), "--json".to_owned()], arguments(&engine, &back)].concat();
        let again = immich::all(&[&again], &[]);
        immich.world.run(&again).ended(1).says("is not empty");
        let replaced = immich.world.run(&[again, vec!["--replace"]].concat()).ended(0);
        assert!(replaced.summary()["database"]["saved"]["key"].as_str().unwrap().starts_with("database/"), "{}", replaced.told());
        assert_eq!(container.rows(&back), rows);
        // Nothing of ours stays in there.
        assert_eq!(container.connections(&source), []);
        assert_eq!(container.connections(&back), []);
    }
}

#[test]
fn a_container_that_is_unknown_stopped_or_out_of_reach_is_said_clearly_and_nothing_is_stored() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let container = engine.postgres(CONTAINER).unwrap();
    let mut immich = installed(fixture, &engine, &container, "photos");
    let refused = |immich: &Immich, says: &str, hint: &str| {
        let ran = immich.backup(&[]).ended(1);
        let errors = ran.summary()["errors"].clone();
        assert!(errors[0]["message"].as_str().unwrap().contains(says), "{errors}");
        assert!(errors[0]["hint"].as_str().unwrap().contains(hint), "{errors}");
        assert_eq!(immich.dumps(), [] as [PathBuf; 0]);
        assert!(!immich.world.repository.join("library").exists());
    };
    let good = immich.database.clone();
    immich.database[1] = "no_such_container".to_owned();
    refused(&immich, "there is no container `no_such_container`", "docker ps --all");
    immich.database = good.clone();
    immich.database[3] = "unix:///nonexistent/docker.sock".to_owned();
    refused(&immich, "cannot reach Docker", "there is no such socket: start Docker, or name its socket with --docker-host");
    immich.database = good.clone();
    immich.database[5] = "no such database".to_owned();
    refused(&immich, "does not exist", "check the database's name");
    immich.database = good;
    container.stop();
    refused(&immich, "does not run: it is exited", "start it");
    container.start_again().unwrap();
    assert_eq!(numbers(&proof(&immich.backup(&[]).ended(0))), immich.expected());
}

#[test]
fn a_container_that_is_killed_while_the_dump_runs_leaves_nothing_of_it_and_the_next_run_goes_on() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let container = engine.postgres(CONTAINER).unwrap();
    let immich = installed(fixture, &engine, &container, "photos");
    // pg_dump waits for this.
    container.exec(&["sh", "-c", "psql -U postgres photos -c 'BEGIN; LOCK TABLE asset; SELECT pg_sleep(100)' >/dev/null 2>&1 &"]);
    while !container.connections("photos").iter().any(|connection| connection.query.contains("pg_sleep")) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut running = Running::start(immich.backup_command(&[]));
    let waits = running.until(|_| container.connections("photos").iter().any(|connection| connection.query.starts_with("LOCK TABLE")));
    assert!(waits, "{}", running.said());
    container.kill();
    running.wait().ended(1);
    assert_eq!(immich.dumps(), [] as [PathBuf; 0]);
    container.start_again().unwrap();
    assert_eq!(numbers(&proof(&immich.backup(&[]).ended(0))), immich.expected());
    assert_eq!(immich.dumps().len(), 1);
}
