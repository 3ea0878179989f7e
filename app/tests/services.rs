//! Stopping Immich's Compose project and starting it again, with a real engine: whatever happens in between, what ran before runs again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/host.rs"]
mod host;
mod support;

use host::{Host, ups};
use immich_backup_testbed::compose::{DATABASE, MACHINE_LEARNING, REDIS, SERVER, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Running;

fn with(extra: &str) -> StackOptions {
    StackOptions { extra_services: extra.to_owned(), ..StackOptions::default() }
}

/// A sleeper for each of these names.
fn sleepers(names: &[&str], more: &str) -> String {
    names.iter().map(|name| format!("  {name}:\n    image: immich-app/sleeper\n    network_mode: none\n{more}")).collect()
}

#[test]
fn what_ran_runs_again_and_what_did_not_does_not() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, with(&sleepers(&["idle", "frozen"], ""))).unwrap() else { return };
    let host = Host::new(&engine);
    stack.compose(&["up", "-d", "frozen", "idle"]);
    stack.compose(&["stop", "idle"]);
    stack.compose(&["pause", "frozen"]);
    let before = ups(&stack);
    let started_before = stack.states();

    let ran = host.services(&["stop"]).ended(0);
    assert_eq!(stack.running(), [""; 0]);
    assert_eq!(stack.state("frozen").status, "paused");
    let summary = ran.summary();
    assert_eq!(summary["stopped"].as_array().unwrap().len(), 4, "{summary}");
    let ran = ran.says("`immich_frozen_1` is paused");
    // The database was told after those that use it.
    let place = |services: &[String], name: &str| services.iter().position(|service| service == name).unwrap();
    let stopped = host.stopped(&ran);
    assert!(place(&stopped, SERVER) < place(&stopped, DATABASE) && place(&stopped, SERVER) < place(&stopped, REDIS), "{stopped:?}");
    assert_eq!(stack.state(DATABASE).exit_code, 0, "PostgreSQL did not end in order");

    // Who looks is told; who backs up is told, too.
    let status = host.services(&["status"]).ended(0).summary();
    assert_eq!((&status["journals"][0]["by"], &status["journals"][0]["phase"]), (&"hand".into(), &"all_stopped".into()), "{status}");
    host.services(&["stop"]).ended(1).says("are stopped already, by `services stop`").says("services start");
    // They were stopped by hand: only by hand they are started.
    host.services(&["recover"]).ended(0).says("by_hand");
    assert_eq!(stack.running(), [""; 0]);

    let ran = host.services(&["start"]).ended(0);
    assert_eq!(ups(&stack), before);
    let started = host.started(&ran);
    assert!(place(&started, DATABASE) < place(&started, SERVER) && place(&started, REDIS) < place(&started, SERVER), "{started:?}");
    assert!(ran.number("/downtime_ms") > 0);
    assert!(!host.journal().exists());
    assert_eq!((stack.state("idle").status.as_str(), &stack.state("frozen").started_at), ("exited", &started_before["frozen"].started_at));
    host.services(&["start"]).ended(0).says("\"started\":[]");
}

#[test]
fn the_database_can_be_left_up() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let host = Host::new(&engine);
    let before = stack.states();
    host.services(&["stop", "--keep-database"]).ended(0);
    assert_eq!(stack.running(), [DATABASE]);
    host.services(&["start"]).ended(0);
    assert_eq!(stack.running(), [DATABASE, MACHINE_LEARNING, SERVER, REDIS]);
    assert_eq!(stack.state(DATABASE).started_at, before[DATABASE].started_at);
}

#[test]
fn a_container_that_was_made_anew_or_has_another_name_is_found() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    host.services(&["stop"]).ended(0);
    engine.docker(&["rename", "immich_redis", "another_name"]);
    engine.docker(&["rm", "immich_server"]);
    stack.compose(&["up", "--no-start", SERVER]);
    engine.docker(&["rm", "immich_machine_learning"]);
    let ran =
        host.services(&["start"]).ended(1).says("`immich-machine-learning` has no container any more").says("docker compose up -d immich-machine-learning");
    ran.says("services recover");
    // The others are up all the same, and the journal stays until the last one is.
    assert_eq!(stack.running(), [DATABASE, SERVER, REDIS]);
    assert!(host.journal().exists());
    stack.compose(&["up", "-d", MACHINE_LEARNING]);
    host.services(&["start"]).ended(0);
    stack.wait_until_well(&[SERVER, MACHINE_LEARNING, REDIS, DATABASE]).unwrap();
    assert_eq!(ups(&stack), before);
    assert!(!host.journal().exists());
}

#[test]
fn a_journal_that_is_damaged_is_told_and_not_passed_over() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let host = Host::new(&engine);
    host.services(&["stop", "--keep-database"]).ended(0);
    let text = fs::read_to_string(host.journal()).unwrap();
    fs::write(host.journal(), &text[..text.len() / 2]).unwrap();
    for action in ["start", "stop", "recover"] {
        host.services(&[action]).ended(1).says("is damaged").says("docker compose up -d");
    }
    host.services(&["status"]).ended(1).says("damaged");
    assert_eq!(stack.running(), [DATABASE]);
    fs::write(host.journal(), &text).unwrap();
    host.services(&["start"]).ended(0);
    assert_eq!(stack.running(), [DATABASE, MACHINE_LEARNING, SERVER, REDIS]);
}

/// What is up comes back within this, without anyone's help.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// Waits until everything is as it was, and how long that took.
#[track_caller]
fn back(stack: &Stack<'_>, before: &BTreeMap<String, (String, Option<String>)>, what: &str) -> Duration {
    let began = Instant::now();
    loop {
        let now = ups(stack);
        if now == *before {
            return began.elapsed();
        }
        assert!(began.elapsed() < BACK_WITHIN, "{what}: not back after {BACK_WITHIN:?}: {now:#?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until nobody is at the services, so that a journal that is left is nobody's any more.
#[track_caller]
fn let_go(host: &Host) {
    let began = Instant::now();
    while host.journal().exists() {
        assert!(began.elapsed() < BACK_WITHIN, "the journal is still there\n{}", host.watcher_log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_run_that_stops_services_is_proven_and_all_is_as_before() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, with(&sleepers(&["idle"], ""))).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let started = stack.states();

    let dry = host.backup(&stack, &["--dry-run"]);
    // There is no repository yet: a dry run makes none.
    assert_eq!(dry.code, 10, "{}", dry.told());
    assert_eq!(stack.states(), started);

    let ran = host.backup(&stack, &[]).ended(0);
    let summary = ran.summary();
    assert_eq!(summary["proof"]["missing"], 0, "{summary}");
    assert!(ran.number("/downtime_ms") > 500, "{summary}");
    assert_eq!(ups(&stack), before);
    let now = stack.states();
    assert!([SERVER, MACHINE_LEARNING, REDIS].iter().all(|service| now[*service].started_at != started[*service].started_at));
    // The database stays up for the dump; it need not be stopped.
    assert_eq!(now[DATABASE].started_at, started[DATABASE].started_at);
    assert!(!host.stopped(&ran).contains(&DATABASE.to_owned()) && host.stopped(&ran).len() == 3);
    assert!(!host.journal().exists());

    // A dry run says what it would stop, and stops nothing.
    let started = stack.states();
    let dry = host.backup(&stack, &["--dry-run"]).ended(0).summary();
    assert_eq!(dry["would_stop"].as_array().unwrap().len(), 4, "{dry}");
    assert_eq!(stack.states(), started);

    // With PostgreSQL's folder the database goes down too.
    let folder = stack.postgres_folder().display().to_string();
    let ran = host.backup(&stack, &["--postgres-dir", &folder]).ended(0);
    assert_eq!(host.stopped(&ran).last().map(String::as_str), Some(DATABASE));
    // What needs nothing is started at once, in any order; the server needs the database.
    let started = host.started(&ran);
    let place = |service: &str| started.iter().position(|name| name == service);
    assert!(place(DATABASE).is_some() && place(DATABASE) < place(SERVER), "{started:?}");
    assert_eq!(ups(&stack), before);
    let journals =
        fs::read_dir(host.world.state.join("services")).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|end| end == "json"));
    assert_eq!(journals.count(), 0);
}

#[test]
fn a_run_that_is_killed_in_any_phase_leaves_nothing_down() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 1, ..with(&sleepers(&["idle"], "")) }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let folder = stack.postgres_folder().display().to_string();
    for phase in ["stopping", "database_alone", "stopping_database", "all_stopped", "starting"] {
        let mut command = host.backup_command(&stack, &["--postgres-dir", &folder]);
        command.process_group(0);
        let mut running = Running::start(command);
        assert!(running.until(|_| host.phase().as_deref() == Some(phase)), "{phase}: {}", running.said());
        // Its whole group: as a terminal that closes, or an impatient supervisor.
        let group = rustix::process::Pid::from_raw(i32::try_from(running.pid()).unwrap()).unwrap();
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
        running.wait();
        let took = back(&stack, &before, phase);
        let_go(&host);
        // One that had been asked to stop may have run for a moment longer.
        assert_eq!(ups(&stack), before, "{phase}");
        println!("killed while {phase}: all up again after {took:?}");
    }
    // And a run after all of that is as any.
    host.backup(&stack, &[]).ended(0);
    assert_eq!(ups(&stack), before);
}

#[test]
#[ignore = "slow: 30 runs are killed"]
fn a_run_that_is_killed_at_any_of_30_moments_leaves_nothing_down() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 1, ..with(&sleepers(&["idle"], "")) }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let folder = stack.postgres_folder().display().to_string();
    let whole = host.backup(&stack, &["--postgres-dir", &folder]).ended(0).took;
    let (mut phases, mut worst) = (BTreeMap::<String, u32>::new(), Duration::ZERO);
    for moment in 0..30_u32 {
        let began = Instant::now();
        let mut running = Running::start(host.backup_command(&stack, &["--postgres-dir", &folder]));
        running.until(|_| began.elapsed() >= whole * moment / 30);
        let phase = host.phase().unwrap_or_else(|| "nothing is down".to_owned());
        running.signal_quietly("KILL");
        running.wait();
        let took = back(&stack, &before, &format!("moment {moment}, {phase}"));
        let_go(&host);
        assert_eq!(ups(&stack), before, "moment {moment}, {phase}");
        worst = worst.max(took);
        *phases.entry(phase).or_default() += 1;
    }
    println!("30 moments of {whole:?}: {phases:?}; all up again after {worst:?} at most");
    assert!(phases.len() >= 4, "{phases:?}");
}

#[test]
fn recover_removes_a_copy_that_was_not_done_and_keeps_one_that_is_for_the_next_run_to_send() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 1, ..StackOptions::default() }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let stage = host.world.at("stage");
    fs::create_dir(&stage).unwrap();
    let folder = stage.display().to_string();
    let left = || fs::read_dir(&stage).unwrap().count();
    for (event, result, remain) in [("\"staging_started\"", "removed", 0), ("\"immich_up\"", "kept", 1)] {
        let mut running = Running::start(host.backup_command(&stack, &["--stage", &folder]));
        assert!(running.until(|running| running.said().contains(event)), "{}", running.said());
        // Once it is up, what is copied is declared complete before anything is sent.
        if remain == 1 {
            assert!(running.until(|running| running.said().contains("\"store\"")), "{}", running.said());
        }
        running.signal("KILL");
        running.wait();
        back(&stack, &before, event);
        let_go(&host);
        assert_eq!(left(), 1, "{event}: the test is blind");
        let ran = host.services(&["recover", "--stage", &folder]).ended(0).summary();
        assert_eq!((&ran["stages"][0]["result"], ran["stages"].as_array().unwrap().len(), left()), (&result.into(), 1, remain), "{ran}");
        // Without the folder nothing is looked for.
        assert_eq!(host.services(&["recover"]).ended(0).summary()["stages"], serde_json::json!([]));
    }
    host.backup(&stack, &["--stage", &folder]).ended(0).says("that is sent first");
    assert_eq!((left(), ups(&stack)), (0, before));
}

#[test]
fn an_engine_that_is_killed_in_any_phase_of_a_run_finds_everything_up_again() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 1, restart: "unless-stopped".to_owned(), ..StackOptions::default() }).unwrap() else {
        return;
    };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let folder = stack.postgres_folder().display().to_string();
    for phase in ["stopping", "database_alone", "stopping_database", "all_stopped", "starting"] {
        let mut running = Running::start(host.backup_command(&stack, &["--postgres-dir", &folder]));
        assert!(running.until(|_| host.phase().as_deref() == Some(phase)), "{phase}: {}", running.said());
        engine.kill();
        std::thread::sleep(Duration::from_millis(500));
        engine.start_again().unwrap();
        let took = back(&stack, &before, phase);
        let ran = running.wait();
        println!("the engine was killed while {phase}: all up again {took:?} after it was back, exit code {}", ran.code);
        assert!([0, 1, 3].contains(&ran.code), "{}", ran.told());
        let_go(&host);
        assert_eq!(ups(&stack), before);
    }
}

#[test]
fn a_machine_that_loses_its_power_in_the_middle_has_everything_up_after_recover() {
    let Some(engine) = Engine::start().unwrap() else { return };
    // `unless-stopped`: what was stopped stays so, also when the engine starts anew.
    let Some(stack) = Stack::up(&engine, StackOptions { restart: "unless-stopped".to_owned(), ..StackOptions::default() }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let folder = stack.postgres_folder().display().to_string();
    let mut running = Running::start(host.backup_command(&stack, &["--postgres-dir", &folder]));
    assert!(running.until(|_| host.phase().as_deref() == Some("all_stopped")), "{}", running.said());
    engine.lose_power();
    // The watcher, too, is gone with the machine.
    running.signal("KILL");
    running.wait();
    host.end_watcher();
    let text = fs::read_to_string(host.journal()).unwrap();
    let boot = text.lines().find(|line| line.contains("boot_id")).unwrap();
    fs::write(host.journal(), text.replace(boot, "  \"boot_id\": \"of another start\",")).unwrap();
    engine.start_again().unwrap();
    assert!(stack.running().len() < before.len());
    assert_eq!(host.services(&["status"]).ended(0).summary()["journals"][0]["older_boot"], true);
    host.services(&["recover"]).ended(0).says("before the machine was started anew");
    assert_eq!(ups(&stack), before);
    host.services(&["recover"]).ended(0).says("\"projects\":[]");
}

#[test]
fn the_next_run_of_any_kind_brings_back_what_a_dead_one_left() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let mut running = Running::start(host.backup_command(&stack, &[]));
    assert!(running.until(|_| host.phase().as_deref() == Some("database_alone")), "{}", running.said());
    host.end_watcher();
    running.signal("KILL");
    running.wait();
    assert_eq!(stack.running(), [DATABASE]);
    // One that stops nothing: as a user without knowledge of what went before would start it.
    let library = stack.media().display().to_string();
    let ran = host.world.run(&["backup", "--json", "--library", &library, "--no-database"]).says("a run that died left the services of `immich` down");
    assert!([0, 3].contains(&ran.code), "{}", ran.told());
    assert_eq!(ups(&stack), before);
}

#[test]
fn who_is_asked_to_end_brings_everything_up_first_and_who_is_asked_twice_leaves_it_to_the_watcher() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 2, ..StackOptions::default() }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    for phase in ["stopping", "database_alone"] {
        let mut running = Running::start(host.backup_command(&stack, &[]));
        assert!(running.until(|_| host.phase().as_deref() == Some(phase)), "{phase}: {}", running.said());
        running.signal("TERM");
        let ran = running.wait().ended(130);
        assert_eq!(ups(&stack), before, "{phase}: {}", ran.told());
        assert!(!host.journal().exists());
    }
    let mut running = Running::start(host.backup_command(&stack, &[]));
    assert!(running.until(|_| host.phase().as_deref() == Some("stopping")), "{}", running.said());
    running.signal("TERM");
    assert!(running.until(|running| running.said().contains("asked to stop")));
    running.signal_quietly("TERM");
    running.wait().ended(130);
    back(&stack, &before, "asked twice");
    let_go(&host);
    assert!(host.watcher_log().contains("the run that stopped `immich` is gone"), "{}", host.watcher_log());
}

#[test]
fn a_second_run_at_the_same_time_waits_and_is_told_who_has_the_services() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions { stop_seconds: 3, ..StackOptions::default() }).unwrap() else { return };
    let host = Host::new(&engine);
    let before = ups(&stack);
    let mut first = Running::start(host.backup_command(&stack, &[]));
    assert!(first.until(|_| host.phase().is_some()), "{}", first.said());
    // However fast it is: it has them until it may go on.
    first.signal("STOP");
    host.backup(&stack, &["--wait", "1s"]).ended(1).says("are in the hands of another process: a backup with --stop-services");
    // `services` keeps its hands off, too.
    host.services(&["recover"]).ended(0).says("in_hands");
    host.services(&["start"]).ended(1).says("a backup with --stop-services");
    first.signal("CONT");
    first.wait().ended(0);
    host.backup(&stack, &[]).ended(0);
    assert_eq!(ups(&stack), before);
}

#[test]
fn whoever_may_not_or_cannot_is_told_before_anything_is_stopped() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let mut host = Host::new(&engine);
    let before = stack.states();
    host.backup(&stack, &["--compose-project", "other"]).ended(2).says("there is no project `other`").says("`immich`");
    host.services(&["stop", "--compose-project", "other"]).ended(2).says("there is no project `other`");
    // Another user, who may not use the socket.
    let mut command = Command::new("setpriv");
    let program = host.services_command(&["stop"]);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]).arg(program.get_program()).args(program.get_args());
    Running::start(support::clean(command)).wait().ended(1).says("cannot reach Docker");
    host.docker = format!("unix://{}/nowhere.sock", host.world.at("").display());
    host.backup(&stack, &[]).ended(1).says("cannot reach Docker");
    host.services(&["stop"]).ended(1).says("there is no such socket");
    host.services(&["status"]).ended(1).says("cannot reach Docker");
    host.services(&["dance"]).ended(2).says("stop, start, recover or status");
    host.services(&[]).ended(2);
    assert_eq!(stack.states(), before);
    assert!(!host.journal().exists());
}

#[test]
fn a_database_that_does_not_get_well_is_named_and_the_rest_is_up() {
    let Some(engine) = Engine::start().unwrap() else { return };
    // It is well until somebody makes this file.
    let options = StackOptions { database_health: Some("test ! -e /var/lib/postgresql/data/ill".to_owned()), ..StackOptions::default() };
    let Some(stack) = Stack::up(&engine, options).unwrap() else { return };
    let host = Host::new(&engine);
    host.services(&["stop"]).ended(0);
    fs::write(stack.postgres_folder().join("ill"), "").unwrap();
    host.services(&["start"]).ended(1).says("`database` runs, and its healthcheck says that it is not well").says("docker logs immich_postgres");
    assert_eq!(stack.running(), [DATABASE, MACHINE_LEARNING, SERVER, REDIS]);
    assert!(host.journal().exists());
    fs::remove_file(stack.postgres_folder().join("ill")).unwrap();
    host.services(&["start"]).ended(0);
    assert!(!host.journal().exists());
}
