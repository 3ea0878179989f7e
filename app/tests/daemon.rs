//! The daemon as a process: jobs on a schedule, signals, what it remembers, and what it tells over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use serde_json::Value;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Running, World};

/// A day when nothing is planned is never far: no test runs over the turn of the year.
const NEVER: &str = "@yearly";

fn daemon(world: &World, more: &[&str]) -> Command {
    let mut command = world.command(&["daemon", "--json"]);
    command.arg("--library").arg(&world.library).arg("--no-database").args(more).env("IMMICH_BACKUP_TIME_ZONE", "UTC");
    command
}

/// A port that nobody has.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn status(address: &str) -> (u16, Value) {
    let (code, body) = get(address, "/status");
    (code, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

/// Lines of this type that were said so far.
fn said(running: &Running, kind: &str) -> Vec<Value> {
    // The last line may not be whole yet.
    running.said().lines().filter_map(|line| serde_json::from_str(line).ok()).filter(|line: &Value| line["type"] == kind).collect()
}

/// The first job's end.
#[track_caller]
fn first_end(running: &mut Running) -> Value {
    nth_end(running, 0)
}

#[track_caller]
fn nth_end(running: &mut Running, number: usize) -> Value {
    assert!(running.until(|running| said(running, "job_ended").len() > number), "{}", running.said());
    said(running, "job_ended")[number].clone()
}

/// The process of the job that runs.
fn job_of(running: &Running) -> Option<i32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).ok()?;
    let children: String = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    children.split_whitespace().next()?.parse().ok()
}

fn signal(pid: i32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn is_there(pid: i32) -> bool {
    // A process that ended and was not waited for yet is no more.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

fn memory(world: &World) -> PathBuf {
    world.state.join("schedule.json")
}

/// A world where a backup takes a while.
fn world_with_a_slow_backup() -> World {
    let world = World::new();
    world.pictures(4_000);
    world
}

#[test]
fn a_backup_runs_at_the_start_when_asked_and_the_daemon_tells_how_it_is_until_it_is_stopped() {
    let world = World::new();
    world.pictures(10);
    let address = free_address();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--init", "--listen", &address, "--max-age", "1h"]));
    let end = first_end(&mut running);
    assert_eq!((&end["job"], &end["exit_code"]), (&Value::from("backup"), &Value::from(0)), "{end}");
    let snapshots = world.snapshots();
    assert_eq!(end["summary"]["snapshot"], snapshots[0].as_str());
    assert_eq!(said(&running, "job_began")[0]["reason"]["why"], "asked");
    // What the job said is told as it said it.
    assert!(!said(&running, "file_stored").is_empty());
    assert!(running.until(|_| status(&address).1["jobs"]["backup"]["next"].is_string()));
    let (code, told) = status(&address);
    assert_eq!((code, &told["ok"], &told["snapshot"]["id"]), (200, &Value::from(true), &Value::from(snapshots[0].as_str())), "{told}");
    assert!(told["snapshot_age_s"].as_u64().unwrap() < 60 && told["jobs"]["backup"]["next"].as_str().unwrap().contains("-01-01T00:00:00Z"), "{told}");
    assert_eq!(get(&address, "/healthz"), (200, "ok\n".to_owned()));
    world.run(&["daemon", "--check", "--listen", &address]).ended(0);
    running.signal("TERM");
    let ran = running.wait().ended(0);
    assert_eq!(ran.summary()["runs"], 1);
    world.run(&["daemon", "--check", "--listen", &address]).ended(1).says("nobody answers");
}

#[test]
fn what_was_missed_while_nobody_was_there_is_made_up_for_once_and_what_was_done_is_remembered() {
    let world = World::new();
    world.pictures(5);
    let arguments = ["--schedule", "0 3 * * *", "--verify-schedule", "0 4 * * *", "--init"];
    // New: nothing is made up for.
    let mut running = Running::start(daemon(&world, &arguments));
    assert!(running.until(|running| !said(running, "planned").is_empty()));
    running.signal("TERM");
    let ran = running.wait().ended(0);
    assert!(ran.events("job_began").is_empty());
    // Nothing ran, so nothing was written yet: three days ago, something was.
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(3 * 24);
    let schedule = |text: &str| serde_json::json!({ "schedule": text, "done_until": then, "failures": 0 });
    let remembered =
        serde_json::json!({ "version": 1, "since": then, "schedules": { "backup": schedule("0 3 * * * UTC"), "verify": schedule("0 4 * * * UTC") } });
    fs::write(memory(&world), remembered.to_string()).unwrap();
    let mut running = Running::start(daemon(&world, &arguments));
    assert_eq!((first_end(&mut running)["job"].as_str(), nth_end(&mut running, 1)["job"].as_str()), (Some("backup"), Some("verify")));
    let began = said(&running, "job_began");
    assert!((2..=3).contains(&began[0]["reason"]["missed"].as_u64().unwrap()), "{began:?}");
    running.signal("TERM");
    running.wait().ended(0);
    // Both are done with.
    let mut running = Running::start(daemon(&world, &arguments));
    assert!(running.until(|running| !said(running, "planned").is_empty()));
    std::thread::sleep(Duration::from_millis(500));
    running.signal("TERM");
    assert!(running.wait().ended(0).events("job_began").is_empty());
    assert_eq!(world.snapshots().len(), 1);
}

#[test]
fn a_stop_in_the_middle_of_a_run_writes_its_checkpoint_and_the_next_start_goes_on_from_there() {
    let world = world_with_a_slow_backup();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--init", "--retry-after", "1s"]));
    assert!(running.until(|running| running.said().contains("file_stored")));
    running.signal("TERM");
    let ran = running.wait().ended(130);
    let end = &ran.events("job_ended")[0];
    assert_eq!((&end["exit_code"], &end["outcome"]), (&Value::from(130), &Value::from("interrupted")), "{end}");
    let stored = end["summary"]["files"]["sent"].as_u64().unwrap();
    assert!(stored > 0 && world.snapshots().is_empty());
    // Nobody asks for a run: it is the failed one that is tried again.
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--retry-after", "1s"]));
    let end = first_end(&mut running);
    assert_eq!(end["exit_code"], 0, "{end}");
    assert_eq!(said(&running, "job_began")[0]["reason"]["why"], "retry");
    assert_eq!(end["summary"]["files"]["sent"].as_u64().unwrap() + stored, 4_005, "{end}");
    running.signal("INT");
    running.wait().ended(0);
}

#[test]
fn a_second_signal_ends_the_daemon_at_once_and_the_job_with_it() {
    let world = world_with_a_slow_backup();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--init"]));
    assert!(running.until(|running| running.said().contains("file_stored")));
    let job = job_of(&running).unwrap();
    // It does not end by itself.
    signal(job, rustix::process::Signal::STOP);
    running.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(!running.is_over());
    let began = Instant::now();
    running.signal("TERM");
    running.wait().ended(130);
    assert!(began.elapsed() < Duration::from_secs(5));
    signal(job, rustix::process::Signal::CONT);
    while is_there(job) {
        assert!(began.elapsed() < Duration::from_secs(30), "the job outlives the daemon");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_daemon_that_is_killed_takes_its_job_along_and_the_next_one_tries_again() {
    let world = world_with_a_slow_backup();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--init"]));
    assert!(running.until(|running| running.said().contains("file_stored")));
    let job = job_of(&running).unwrap();
    running.signal("KILL");
    let began = Instant::now();
    while is_there(job) {
        assert!(began.elapsed() < Duration::from_secs(30), "the job outlives the daemon");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--retry-after", "1s"]));
    assert_eq!(first_end(&mut running)["exit_code"], 0, "{}", running.said());
    running.signal("TERM");
    running.wait().ended(0);
}

#[test]
fn a_job_that_is_killed_is_told_and_tried_again() {
    let world = world_with_a_slow_backup();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--init", "--retry-after", "1s"]));
    assert!(running.until(|running| running.said().contains("file_stored")));
    signal(job_of(&running).unwrap(), rustix::process::Signal::KILL);
    let end = first_end(&mut running);
    assert_eq!((&end["exit_code"], &end["outcome"]), (&Value::from(1), &Value::from("failed")));
    assert!(end["message"].as_str().unwrap().contains("signal 9 ended it"), "{end}");
    assert_eq!(nth_end(&mut running, 1)["exit_code"], 0, "{}", running.said());
    assert_eq!(said(&running, "job_began")[1]["reason"], serde_json::json!({ "why": "retry", "attempt": 1 }));
    running.signal("TERM");
    running.wait().ended(0);
}

#[test]
fn a_backup_that_fails_is_told_with_its_remedy_and_succeeds_once_the_repository_is_there() {
    let world = World::new();
    world.pictures(5);
    let address = free_address();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--run-now", "--retry-after", "1s", "--listen", &address]));
    let end = first_end(&mut running);
    assert_eq!(end["exit_code"], 10, "{end}");
    assert!(end["hint"].as_str().unwrap().contains("init"), "{end}");
    assert!(running.until(|_| !status(&address).1["jobs"]["backup"]["exit_code"].is_null()));
    let (code, told) = status(&address);
    // The first retry may be on its way already: the last one that ended failed all the same.
    assert_eq!((code, &told["jobs"]["backup"]["exit_code"]), (503, &Value::from(10)), "{told}");
    assert_eq!(get(&address, "/healthz").0, 200, "it is alive all the same");
    world.run(&["init"]).ended(0);
    assert!(running.until(|_| status(&address).0 == 200));
    assert_eq!(world.snapshots().len(), 1);
    running.signal("TERM");
    running.wait().ended(0);
}

#[test]
fn a_damaged_memory_is_said_to_be_and_a_backup_runs_since_one_may_have_been_missed() {
    let world = World::new();
    world.pictures(5);
    fs::create_dir_all(&world.state).unwrap();
    fs::write(memory(&world), "{\"version\":1,\"since\":\"20").unwrap();
    let mut running = Running::start(daemon(&world, &["--schedule", NEVER, "--init"]));
    assert_eq!(first_end(&mut running)["exit_code"], 0);
    let warned: Vec<_> = said(&running, "warned");
    assert!(warned[0]["message"].as_str().unwrap().contains("schedule.json` cannot be understood"), "{warned:?}");
    running.signal("TERM");
    running.wait().ended(0);
    let whole: Value = serde_json::from_slice(&fs::read(memory(&world)).unwrap()).unwrap();
    assert_eq!(whole["last"]["backup"]["exit_code"], 0);
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let world = World::new();
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let ran = Running::start(daemon(&world, arguments)).wait().ended(code).says(says);
        assert!(ran.events("job_began").is_empty());
    };
    refused(&[], 2, "--schedule");
    refused(&["--schedule", "0 3 * *"], 2, "--schedule `0 3 * *`");
    refused(&["--schedule", "0 3 31 2 *"], 2, "no time ever fits it");
    refused(&["--schedule", NEVER, "--drill-schedule", "soon"], 2, "--drill-schedule");
    refused(&["--schedule", NEVER, "--time-zone", "Europe/Atlantis"], 2, "Europe/Atlantis");
    refused(&["--schedule", NEVER, "--jitter", "much"], 2, "--jitter");
    refused(&["--schedule", NEVER, "--retry-after", "0"], 2, "--retry-after");
    refused(&["--schedule", NEVER, "--listen", "9300"], 2, "127.0.0.1:9300");
    refused(&["--check"], 2, "--listen");
    // The system's zone is misspelt.
    let mut command = world.command(&["daemon", "--schedule", NEVER]);
    command.env("TZ", "Europe/Atlantis");
    Running::start(command).wait().ended(2).says("Europe/Atlantis");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refused(&["--schedule", NEVER, "--run-now", "--listen", &address], 1, &format!("cannot listen on {address}"));
    // One state folder, one daemon.
    let mut first = Running::start(daemon(&world, &["--schedule", NEVER]));
    assert!(first.until(|running| !said(running, "planned").is_empty()));
    refused(&["--schedule", NEVER, "--run-now"], 1, "a daemon runs already");
    first.signal("TERM");
    first.wait().ended(0);
}

#[test]
fn people_read_what_runs_and_when_the_next_run_is() {
    let world = World::new();
    world.pictures(5);
    let mut command = world.command(&["daemon", "--schedule", NEVER, "--run-now", "--init", "--no-database", "--prune-schedule", "@yearly"]);
    command.arg("--library").arg(&world.library).env("TZ", "Europe/Berlin");
    let mut running = Running::start(command);
    assert!(running.until(|running| running.said().contains("ended")));
    running.signal("TERM");
    let ran = running.wait().ended(0);
    ran.says("backup begins, as was asked for").says("backup ended well after").says(" sent").says("-01-01 00:00:00").says("(Europe/Berlin)").says("stopped");
}

#[test]
#[ignore = "slow: waits for the next full minute, twice"]
fn a_schedule_of_each_minute_runs_each_minute() {
    let world = World::new();
    world.pictures(5);
    let mut running = Running::start(daemon(&world, &["--schedule", "* * * * *", "--init"]));
    nth_end(&mut running, 1);
    for began in said(&running, "job_began") {
        let (at, planned): (jiff::Timestamp, jiff::Timestamp) =
            (began["at"].as_str().unwrap().parse().unwrap(), began["reason"]["planned"].as_str().unwrap().parse().unwrap());
        assert!((0..3).contains(&at.duration_since(planned).as_secs()) && planned.as_second() % 60 == 0, "{began}");
    }
    running.signal("TERM");
    running.wait().ended(0);
    assert_eq!(world.snapshots().len(), 2);
}
