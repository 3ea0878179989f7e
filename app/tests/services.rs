//! Stopping Immich's Compose project and starting it again, with a real engine: whatever happens in between, what ran before runs again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/host.rs"]
mod host;
mod support;

use host::{Host, ups};
use immich_backup_testbed::compose::{DATABASE, MACHINE_LEARNING, REDIS, SERVER, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use std::fs;

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
    // The database was the last to be told.
    assert_eq!(host.stopped(&ran).last().map(String::as_str), Some(DATABASE));
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
    assert_eq!(host.started(&ran).first().map(String::as_str), Some(DATABASE));
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
