//! Services are stopped and started over Docker's API, and every request of it fails once: whatever the engine does, what ran before runs again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

#[path = "support/engine.rs"]
mod engine;

use engine::{Fake, Fault, State};
use immich_backup_core::event::{Event, Monitor, Silent};
use immich_backup_core::stack::engine::Engine;
use immich_backup_core::stack::services::journal::{By, Hold, Journal, JournalError, Phase};
use immich_backup_core::stack::services::{Choice, Outage, Patience, ServicesError, recover};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const PATIENCE: Patience = Patience { engine: Duration::from_secs(20), answer: Duration::from_millis(400), health: Duration::from_millis(800) };

fn choice() -> Choice {
    Choice { project: "immich".to_owned(), database: Some("database".to_owned()), ..Choice::default() }
}

fn silent() -> Arc<dyn Monitor> {
    Arc::new(Silent)
}

async fn prepare(fake: &Fake, folder: &Path) -> Result<Outage, ServicesError> {
    let hold = Hold::take(folder, "immich", "a test")?;
    let engine = Engine::connect(&fake.address()).await?;
    Outage::prepare(engine, choice(), By::Run, hold, PATIENCE, silent()).await
}

/// All is stopped, and started again. What goes wrong with stopping is no reason not to start.
async fn there_and_back(outage: &mut Outage) -> (Result<(), ServicesError>, Result<(), ServicesError>) {
    let stop = CancellationToken::new();
    let down = async {
        outage.stop_all_but_database(&stop).await?;
        outage.risen().await?;
        outage.stop_database(&stop).await?;
        outage.risen().await.map(drop)
    };
    let stopped = down.await;
    (stopped, outage.up_again().await.map(drop))
}

#[tokio::test]
async fn services_go_down_in_reverse_and_come_up_in_order_and_nothing_else_is_touched() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let before = fake.states();
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    let intent = outage.intent().await.unwrap();
    assert_eq!(intent.stopped.last().unwrap(), "database");
    assert_eq!(intent.left, [("immich-frozen-1".to_owned(), "it is paused"), ("immich-idle-1".to_owned(), "it is not up")]);
    assert_eq!(fake.states(), before);
    let stop = CancellationToken::new();
    outage.stop_all_but_database(&stop).await.unwrap();
    assert_eq!(fake.running(), ["database"]);
    let journal = Hold::take(folder.path(), "immich", "another").unwrap_err();
    assert!(matches!(journal, JournalError::Busy { .. }), "{journal}");
    outage.stop_database(&stop).await.unwrap();
    assert_eq!(fake.running(), [""; 0]);
    assert!(outage.risen().await.unwrap().is_empty());
    let up = outage.up_again().await.unwrap();
    assert!(up.downtime.is_some() && up.started.len() == 4, "{up:?}");
    assert_eq!(fake.states(), before);
    let changes = fake.changes();
    assert_eq!(changes.len(), 8, "{changes:?}");
    let position = |what: &str| changes.iter().position(|change| change == what).unwrap_or_else(|| panic!("no {what} in {changes:?}"));
    for (before, after) in [
        ("stop server", "stop redis"),
        ("stop redis", "stop database"),
        ("stop learning", "stop database"),
        ("start database", "start redis"),
        ("start database", "start learning"),
        ("start redis", "start server"),
    ] {
        assert!(position(before) < position(after), "{before} comes after {after}: {changes:?}");
    }
    assert!(!outage.journal_path().exists());
}

/// How many requests it takes when nothing fails.
async fn requests() -> usize {
    let (fake, folder) = (Fake::immich(), tempfile::tempdir().unwrap());
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    let (stopped, up) = there_and_back(&mut outage).await;
    stopped.and(up).unwrap();
    assert!(fake.requests() > 30, "{}", fake.requests());
    fake.requests()
}

#[tokio::test]
async fn whichever_request_fails_hangs_or_loses_its_answer_all_that_ran_runs_again() {
    let requests = requests().await;
    // Each request fails in one way here, and in each way in the slow one.
    let faults = FAULTS.into_iter().cycle();
    fail_each((0..requests).zip(faults).collect()).await;
}

#[tokio::test]
#[ignore = "slow: each of about 80 requests fails in each of five ways"]
async fn whichever_request_fails_in_whichever_way_all_that_ran_runs_again() {
    let requests = requests().await;
    fail_each(FAULTS.into_iter().flat_map(|fault| (0..requests).map(move |number| (number, fault))).collect()).await;
}

const FAULTS: [Fault; 5] = [Fault::Refused, Fault::Closed, Fault::Lost, Fault::Hangs, Fault::Late];

async fn fail_each(tries: Vec<(usize, Fault)>) {
    // Each on an engine of its own, some at a time.
    let mut failed = Vec::new();
    for some in tries.chunks(90) {
        let all = some.iter().map(|(number, fault)| async move {
            let (fake, folder) = (Fake::immich(), tempfile::tempdir().unwrap());
            let before = fake.states();
            fake.fail(*number, *fault);
            let Ok(mut outage) = prepare(&fake, folder.path()).await else {
                return (fake.states() != before || !fake.changes().is_empty()).then(|| format!("{fault:?} {number}: prepared, and something was changed"));
            };
            let (stopped, up) = there_and_back(&mut outage).await;
            fake.settle().await;
            let wrong = fake.states() != before || up.is_err() || outage.journal_path().exists();
            wrong.then(|| format!("{fault:?} {number}: {stopped:?} {up:?} {:?} {:?}", fake.states(), fake.changes()))
        });
        failed.extend(futures_util::future::join_all(all).await.into_iter().flatten());
    }
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), tries.len(), failed.join("\n"));
}

#[tokio::test]
async fn whenever_the_one_who_stops_dies_another_brings_everything_back() {
    let requests = requests().await;
    let mut phases = std::collections::BTreeSet::new();
    let mut failed = Vec::new();
    // How many requests there are depends on how often something is looked at, which depends on the machine: it goes on until nobody dies any more.
    let mut numbers = 0..90;
    while numbers.start < requests * 10 {
        let all = numbers.clone().map(|number| async move {
            let (fake, folder) = (Fake::immich(), tempfile::tempdir().unwrap());
            let before = fake.states();
            let Ok(mut outage) = prepare(&fake, folder.path()).await else { return (true, None, None) };
            // This request is the last that is sent; what it asks for is done a while after its sender is gone.
            let dies = fake.dies_at(number);
            let died = tokio::select! {
                _ = there_and_back(&mut outage) => false,
                () = dies => true,
            };
            drop(outage);
            let hold = Hold::take(folder.path(), "immich", "another").unwrap();
            let phase = hold.read().unwrap().map(|journal| journal.phase);
            let recovered = recover(&hold, PATIENCE, &silent()).await;
            fake.settle().await;
            let wrong = fake.states() != before || recovered.is_err() || hold.path().exists();
            (died, phase, wrong.then(|| format!("{number} {phase:?}: {recovered:?} {:?} {:?}", fake.states(), fake.changes())))
        });
        let mut somebody_died = false;
        for (died, phase, wrong) in futures_util::future::join_all(all).await {
            somebody_died |= died;
            phases.extend(phase);
            failed.extend(wrong);
        }
        if !somebody_died {
            break;
        }
        numbers = numbers.end..numbers.end + 90;
    }
    assert!(failed.is_empty(), "{}:\n{}", failed.len(), failed.join("\n"));
    let all = [Phase::Stopping, Phase::DatabaseAlone, Phase::StoppingDatabase, Phase::AllStopped, Phase::Starting];
    assert!(all.iter().all(|phase| phases.contains(phase)), "only {phases:?} were hit");
}

#[tokio::test]
async fn an_engine_that_forbids_stopping_is_found_out_before_anything_is_stopped() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    for forbidden in ["/stop", "/start"] {
        fake.forbid(forbidden);
        let error = prepare(&fake, folder.path()).await.unwrap_err();
        assert!(matches!(error, ServicesError::Forbidden { .. }), "{error}");
        assert!(error.hint().unwrap().contains("/containers/*/stop"));
        assert!(fake.changes().is_empty());
    }
    fake.forbid("/json");
    assert!(matches!(prepare(&fake, folder.path()).await.unwrap_err(), ServicesError::Engine(_)));
}

#[tokio::test]
async fn a_container_that_does_not_stop_is_named_and_the_others_come_up_again() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let before = fake.states();
    fake.change("learning", |container| container.stops = false);
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    let (stopped, up) = there_and_back(&mut outage).await;
    let error = stopped.unwrap_err();
    assert!(error.to_string().contains("`immich-learning-1`") && error.hint().unwrap().contains("docker logs"), "{error}");
    up.unwrap();
    assert_eq!(fake.states(), before);
}

#[tokio::test]
async fn a_database_that_does_not_get_well_is_named_and_the_others_are_started_all_the_same() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    let stop = CancellationToken::new();
    outage.stop_all_but_database(&stop).await.unwrap();
    outage.stop_database(&stop).await.unwrap();
    fake.change("database", |container| container.health = Some("unhealthy"));
    let error = outage.up_again().await.unwrap_err();
    assert!(error.to_string().contains("`database` runs, and its healthcheck says that it is not well"), "{error}");
    assert!(error.hint().unwrap().contains("docker logs immich-database-1") && error.hint().unwrap().contains("services recover"));
    assert_eq!(fake.running().len(), 4);
    // The journal stays, and whoever comes next looks again.
    assert!(outage.is_down() && outage.journal_path().exists());
    fake.change("database", |container| container.health = Some("healthy"));
    drop(outage);
    let hold = Hold::take(folder.path(), "immich", "another").unwrap();
    let up = recover(&hold, PATIENCE, &silent()).await.unwrap().unwrap();
    assert!(up.started.is_empty() && !hold.path().exists());
}

#[tokio::test]
async fn one_that_was_not_well_before_need_not_be_well_after() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    fake.change("server", |container| container.health = Some("unhealthy"));
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    let (stopped, up) = there_and_back(&mut outage).await;
    stopped.and(up).unwrap();
    assert_eq!(fake.running().len(), 4);
}

#[tokio::test]
async fn what_others_start_meanwhile_is_noticed_also_when_it_is_down_again() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    outage.stop_all_but_database(&CancellationToken::new()).await.unwrap();
    assert!(outage.risen().await.unwrap().is_empty());
    fake.start("redis");
    assert_eq!(outage.risen().await.unwrap(), ["redis"]);
    fake.stop("redis");
    assert_eq!(outage.risen().await.unwrap(), ["redis"]);
    fake.replace("server");
    assert_eq!(outage.risen().await.unwrap(), ["redis"]);
    fake.start("server");
    assert_eq!(outage.risen().await.unwrap(), ["redis", "server"]);
    outage.up_again().await.unwrap();
}

#[tokio::test]
async fn an_engine_that_does_not_come_back_is_given_up_in_time_and_the_journal_stays() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let hold = Hold::take(folder.path(), "immich", "a test").unwrap();
    let engine = Engine::connect(&fake.address()).await.unwrap();
    let waited = Arc::new(Told::default());
    let patience = Patience { engine: Duration::from_secs(2), ..PATIENCE };
    let mut outage = Outage::prepare(engine, choice(), By::Run, hold, patience, Arc::clone(&waited) as Arc<dyn Monitor>).await.unwrap();
    outage.stop_all_but_database(&CancellationToken::new()).await.unwrap();
    let path = outage.journal_path();
    drop(fake);
    let began = std::time::Instant::now();
    let error = outage.up_again().await.unwrap_err();
    assert!(matches!(error, ServicesError::Down { .. }) && error.hint().unwrap().contains("services recover"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8) && path.exists());
    assert!(waited.0.lock().unwrap().iter().any(|event| matches!(event, Event::Waiting { .. })));
}

#[derive(Default)]
struct Told(Mutex<Vec<Event>>);

impl Monitor for Told {
    fn emit(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

#[tokio::test]
async fn a_journal_of_an_older_start_of_the_machine_is_as_good() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let before = fake.states();
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    outage.stop_all_but_database(&CancellationToken::new()).await.unwrap();
    drop(outage);
    let hold = Hold::take(folder.path(), "immich", "another").unwrap();
    let journal = Journal { boot_id: "of another day".to_owned(), ..hold.read().unwrap().unwrap() };
    assert!(journal.is_of_an_older_boot());
    hold.write(&journal).unwrap();
    // What the engine starts by itself after a start of the machine.
    fake.start("redis");
    recover(&hold, PATIENCE, &silent()).await.unwrap().unwrap();
    assert_eq!(fake.states(), before);
}

#[tokio::test]
async fn stopping_ends_when_the_user_says_so_and_everything_comes_up() {
    let fake = Fake::immich();
    let folder = tempfile::tempdir().unwrap();
    let before = fake.states();
    let mut outage = prepare(&fake, folder.path()).await.unwrap();
    fake.change("redis", |container| container.stop_ms = 1_500);
    let stop = CancellationToken::new();
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        stop.cancel();
    };
    let (stopped, ()) = tokio::join!(outage.stop_all_but_database(&stop), cancel);
    assert!(stopped.unwrap_err().is_interruption());
    outage.up_again().await.unwrap();
    fake.settle().await;
    assert_eq!(fake.states(), before);
    assert!(!outage.is_down());
    assert_eq!(fake.states()["immich-idle-1"], State::Exited);
}
