//! The log is the truth: what is wrong with it is found and refused, what is right is enough to make everything else anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use bytes::Bytes;
use immich_backup_core::backup::{self, BackupError, Ending};
use immich_backup_core::budget::LOG_AHEAD_BYTES_MAX;
use immich_backup_core::event::{Event, Monitor, Recorder, Silent};
use immich_backup_core::model::{Class, RunId, Sha256, WriterId};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{self, Author, Damaged, Fact, Head, Header, Listed, LogError, Outcome, RunStarted, Sound};
use immich_backup_core::repository::store::{Attributes, Created, Kind, Store, StoreError};
use immich_backup_core::repository::{OpenError, Repository, Session};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rusqlite::types::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::memory::MemoryStore;
use support::{Fault, FaultyStore, Tampered, World, copy_folder, noise, silent};
use tokio_util::sync::CancellationToken;

fn entry_path(world: &World, sequence: u64) -> PathBuf {
    world.repository.join(Key::log_entry(sequence).as_str())
}

fn entries(world: &World) -> u64 {
    std::fs::read_dir(world.repository.join("log")).unwrap().count() as u64
}

fn log_error<T: std::fmt::Debug>(result: Result<T, OpenError>) -> LogError {
    match result {
        Err(OpenError::Log(error)) => error,
        other => panic!("no error of the log: {other:?}"),
    }
}

/// What opening says, from a fresh state folder and from the one that wrote all.
async fn refusals(world: &World) -> [LogError; 2] {
    let fresh = world.beside("fresh");
    drop(std::fs::remove_dir_all(&fresh));
    // Not even a copy of the manifest helps to look away.
    [log_error(world.reading("fresh").await), log_error(world.verify("state", false).await)]
}

/// Three snapshots; copies of the manifest are out of the way.
async fn three_snapshots() -> World {
    let world = World::with_files(12).await;
    for number in 0..3 {
        world.write(&format!("upload/new/{number}.jpg"), &noise(100 + number, 500));
        world.back_up().await;
    }
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    world
}

const START: Head = Head { epoch: 0, sequence: 0, sha256: Sha256([0; 32]) };

/// Adds an entry for each of `problems`, which it tells.
async fn told(store: &MemoryStore, problems: impl Iterator<Item = Vec<String>>) {
    let author = Author { run: None, writer: WriterId::random() };
    let mut head = START;
    for problems in problems {
        let facts: Vec<_> = problems.into_iter().map(|problem| Fact::Damaged(Damaged { key: "library/a".to_owned(), problem })).collect();
        head = log::append(store, &head, author, &facts).await.unwrap().head;
    }
}

/// What a walk over `count` entries comes to.
async fn walk(store: &MemoryStore, count: u64) -> Result<Vec<usize>, LogError> {
    let store: Arc<dyn Store> = Arc::new(store.clone());
    let mut walk = log::Walk::new(&store, START, (1..=count).map(Key::log_entry));
    let mut facts = Vec::new();
    while let Some(entry) = walk.next().await? {
        facts.push(entry.facts.len());
        assert_eq!((walk.head().sequence, walk.head()), (facts.len() as u64, entry.head()));
    }
    Ok(facts)
}

#[tokio::test(start_paused = true)]
async fn entries_far_away_are_fetched_while_others_are_looked_at() {
    let store = MemoryStore::new(true).far(Duration::from_millis(20));
    told(&store, (0..160).map(|number| vec![number.to_string()])).await;
    let began = tokio::time::Instant::now();
    assert_eq!(walk(&store, 160).await.unwrap(), [1; 160]);
    // Sixteen at a time; one by one, it would be 3.2 seconds.
    assert!(began.elapsed() <= Duration::from_millis(220), "{:?}", began.elapsed());
    assert!((1..=160).all(|number| store.reads(&Key::log_entry(number)) == 1));
}

#[tokio::test]
async fn a_large_entry_is_not_held_while_others_are_looked_at() {
    let store = MemoryStore::new(true);
    let hex = |seed| noise(seed, 400).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    told(&store, (0..5).map(|number| if number == 3 { (0..4_000).map(hex).collect() } else { vec![hex(number)] })).await;
    let size = store.objects()[Key::log_entry(4).as_str()].len() as u64;
    assert!(size > LOG_AHEAD_BYTES_MAX, "{size}");
    assert_eq!(walk(&store, 5).await.unwrap(), [1, 1, 1, 4_000, 1]);
    let reads: Vec<_> = (1..=5).map(|number| store.reads(&Key::log_entry(number))).collect();
    assert_eq!(reads, [1, 1, 1, 2, 1], "the large one is begun, let go, and read when its turn comes");
}

#[tokio::test]
async fn a_walk_stops_at_what_is_missing_damaged_or_does_not_follow_and_names_it() {
    let store = MemoryStore::new(true);
    told(&store, (0..5).map(|number| vec![number.to_string()])).await;
    let good = store.objects();
    let (third, fourth) = (Key::log_entry(3), Key::log_entry(4));
    let attributes = Attributes::of(Kind::Log, Sha256([0; 32]));
    store.delete(&third).await.unwrap();
    assert!(matches!(walk(&store, 5).await, Err(LogError::Store(StoreError::NotFound { key })) if key == third.as_str()));
    let mut bytes = good[third.as_str()].to_vec();
    bytes[20] ^= 1;
    store.create(&third, bytes.into(), &attributes).await.unwrap();
    assert!(matches!(walk(&store, 5).await, Err(LogError::Damaged { sequence: 3, .. })));
    assert_eq!(store.reads(&third), 3, "one that was missing; one bad reading, and the second that decides");
    store.delete(&third).await.unwrap();
    store.create(&third, good[fourth.as_str()].clone(), &attributes).await.unwrap();
    assert!(matches!(walk(&store, 5).await, Err(LogError::Chain { sequence: 3, .. })));
}

#[tokio::test]
async fn a_missing_entry_is_named_as_a_gap() {
    let world = three_snapshots().await;
    for missing in 1..entries(&world) {
        let _gone = Tampered::with(&entry_path(&world, missing), |_| None);
        for error in refusals(&world).await {
            assert!(matches!(error, LogError::Gap { missing: named, next } if named == missing && next == missing + 1), "{missing}: {error}");
            assert!(error.hint().unwrap().contains(&format!("--until {}", missing - 1)));
        }
    }
    assert_eq!(world.verify("fresh", false).await.unwrap().entries, entries(&world), "all is there again");
}

#[tokio::test]
async fn two_entries_of_one_number_are_a_fork() {
    let world = three_snapshots().await;
    let second = world.repository.join("log/0000000003-6fa459ea-ee8a-3ca4-894e-db77e160355e.ndjson.zst");
    std::fs::copy(entry_path(&world, 3), &second).unwrap();
    for error in refusals(&world).await {
        assert!(matches!(error, LogError::Fork { sequence: 3, .. }), "{error}");
        assert!(error.to_string().contains("-6fa459ea"), "{error}");
    }
}

#[tokio::test]
async fn a_changed_entry_is_named() {
    let world = three_snapshots().await;
    let last = entries(&world);
    for changed in [1, 3, last] {
        let _changed = Tampered::with(&entry_path(&world, changed), |mut bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Some(bytes)
        });
        for error in refusals(&world).await {
            assert!(matches!(error, LogError::Damaged { sequence, .. } if sequence == changed), "{changed}: {error}");
        }
    }
}

#[tokio::test]
async fn an_entry_that_was_forged_whole_does_not_follow() {
    let world = three_snapshots().await;
    let read = log::read_entry(world.directory().as_ref(), 3, &Key::log_entry(3)).await.unwrap();
    let _forged = Tampered::with(&entry_path(&world, 3), |_| Some(log::encode(&read.header, &[]).unwrap()));
    for error in refusals(&world).await {
        assert!(matches!(error, LogError::Chain { sequence: 4, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_forged_last_entry_is_refused_where_the_real_one_was_seen() {
    let world = three_snapshots().await;
    let last = entries(&world);
    let read = log::read_entry(world.directory().as_ref(), last, &Key::log_entry(last)).await.unwrap();
    let _forged = Tampered::with(&entry_path(&world, last), |_| Some(log::encode(&read.header, &[]).unwrap()));
    let error = log_error(world.reading("state").await);
    assert!(matches!(error, LogError::Rewritten { sequence } if sequence == last), "{error}");
    std::fs::remove_file(world.beside("state").join(world.id().await).join("manifest.db")).unwrap();
    let error = log_error(world.reading("state").await);
    assert!(matches!(error, LogError::Rewritten { sequence } if sequence == last), "without a manifest: {error}");
}

impl World {
    async fn id(&self) -> String {
        Repository::open(self.directory()).await.unwrap().id.to_string()
    }

    async fn manifest(&self, state: &str) -> PathBuf {
        self.beside(state).join(self.id().await).join("manifest.db")
    }
}

#[tokio::test]
async fn exchanged_entries_do_not_follow() {
    let world = three_snapshots().await;
    let [third, fourth] = [3, 4].map(|sequence| std::fs::read(entry_path(&world, sequence)).unwrap());
    let _third = Tampered::with(&entry_path(&world, 3), |_| Some(fourth));
    let _fourth = Tampered::with(&entry_path(&world, 4), |_| Some(third));
    for error in refusals(&world).await {
        assert!(matches!(error, LogError::Chain { sequence: 3, .. }), "{error}");
    }
}

#[tokio::test]
async fn another_repositorys_log_does_not_follow_this_identity() {
    let (world, other) = (three_snapshots().await, three_snapshots().await);
    copy_folder(&other.repository.join("log"), &world.repository.join("log"));
    let error = log_error(world.reading("fresh").await);
    assert!(matches!(error, LogError::Chain { sequence: 1, .. }), "{error}");
    let error = log_error(world.reading("state").await);
    assert!(matches!(error, LogError::Rewritten { .. }), "{error}");
}

#[tokio::test]
async fn a_repository_that_went_back_is_refused_by_who_saw_it_later() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let before = world.beside("before");
    copy_folder(&world.repository, &before);
    let old = entries(&world);
    world.write("upload/new.jpg", b"new");
    world.back_up().await;
    let now = entries(&world);
    copy_folder(&before, &world.repository);
    for without_manifest in [false, true] {
        if without_manifest {
            std::fs::remove_file(world.manifest("state").await).unwrap();
        }
        let error = log_error(world.reading("state").await);
        assert!(matches!(error, LogError::WentBack { seen, now: then } if seen == now && then == old), "{error}");
        let refused = world.back_up_with(world.directory(), "state", &silent(), |_| {}).await;
        assert!(matches!(refused, Err(BackupError::Open(OpenError::Log(LogError::WentBack { .. })))));
    }
    // Nobody who did not see it can know.
    assert!(world.verify("fresh", false).await.unwrap().is_sound());
    // It went on from there: the same numbers, another past.
    world.write("upload/other.jpg", b"other");
    world.back_up_with(world.directory(), "fresh", &silent(), |_| {}).await.unwrap();
    world.write("upload/more.jpg", b"more");
    world.back_up_with(world.directory(), "fresh", &silent(), |_| {}).await.unwrap();
    let error = log_error(world.reading("state").await);
    assert!(matches!(error, LogError::Rewritten { sequence } if sequence == now), "{error}");
}

#[tokio::test]
async fn the_newest_entries_cannot_be_taken_away_unseen() {
    let world = three_snapshots().await;
    let last = entries(&world);
    let _last = Tampered::with(&entry_path(&world, last), |_| None);
    let _before = Tampered::with(&entry_path(&world, last - 1), |_| None);
    let error = log_error(world.reading("state").await);
    assert!(matches!(error, LogError::WentBack { seen, now } if seen == last && now == last - 2), "{error}");
}

#[tokio::test]
async fn a_log_that_ends_before_a_copy_of_the_manifest_was_cut_and_is_refused_by_newcomers_too() {
    let world = World::with_files(12).await;
    world.back_up().await;
    assert_eq!(std::fs::read_dir(world.repository.join("manifests")).unwrap().count(), 1);
    for sequence in 2..=entries(&world) {
        Tampered::with(&entry_path(&world, sequence), |_| None).keep();
    }
    let error = log_error(world.reading("fresh").await);
    assert!(matches!(error, LogError::WentBack { now: 1, .. }), "{error}");
}

#[tokio::test]
async fn the_part_before_a_damage_can_be_read_and_restored() {
    let world = World::with_files(30).await;
    world.back_up().await;
    let (good, library) = (entries(&world), support::contents(&world.library));
    world.write("upload/u0/photo-000.jpg", b"changed");
    world.back_up().await;
    Tampered::with(&entry_path(&world, good + 1), |_| None).keep();
    let (repository, state) = world.open(world.directory(), "until").await.unwrap();
    let session = Session::open_until(repository.clone(), state.clone(), good.into(), &Silent).await.unwrap();
    assert_eq!(session.manifest.head().sequence, good);
    let target = world.beside("restored");
    support::restore_from(&session, "latest", &target).await.unwrap();
    assert_eq!(support::contents(&target), library);
    drop(session);
    assert!(Session::open_until(repository, state, (good + 1).into(), &Silent).await.is_err());
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_stores_nothing_twice_and_goes_on() {
    let world = World::with_files(12).await;
    let faulty = FaultyStore::new(&world.repository);
    for entry in ["log/0000000001", "log/0000000002", "log/0000000003"] {
        faulty.fail(entry, Fault::AnswerLost, 0, 1);
    }
    let report = world.back_up_with(faulty.store(), "state", &silent(), |_| {}).await.unwrap();
    assert_eq!((report.ending, report.counts.sent.files), (Ending::Snapshot, 12));
    assert_eq!((faulty.count("create", "log/0000000001"), faulty.count("create", "log/0000000002")), (1, 1));
    let verified = world.verify("fresh", false).await.unwrap();
    assert_eq!((verified.entries, verified.damaged, verified.unannounced), (entries(&world), 0, 0));
    let session = world.reading("fresh").await.unwrap();
    assert_eq!(session.manifest.snapshots().unwrap().len(), 1);
}

#[tokio::test]
async fn a_commit_that_stays_unanswered_ends_the_run_and_the_next_goes_on() {
    let world = World::with_files(12).await;
    let faulty = FaultyStore::new(&world.repository);
    faulty.fail("log/0000000002", Fault::RequestLost, 0, 1);
    let error = world.back_up_with(faulty.store(), "state", &silent(), |_| {}).await.unwrap_err();
    assert!(matches!(error, BackupError::Open(OpenError::Log(LogError::Store(_)))), "{error}");
    // What had been sent is found and taken up.
    let report = world.back_up().await;
    assert_eq!((report.counts.sent.files, report.counts.adopted.files), (0, 12));
    assert_eq!(world.reading("state").await.unwrap().manifest.runs(10).unwrap()[1].outcome.as_deref(), Some("failed"));
}

#[tokio::test]
async fn a_file_whose_answer_is_lost_is_stored_once() {
    let world = World::with_files(12).await;
    world.write("upload/film.mp4", &noise(9, 9 << 20));
    let faulty = FaultyStore::new(&world.repository);
    faulty.fail("library/upload/u0", Fault::AnswerLost, 0, 2);
    let report = world.back_up_with(faulty.store(), "state", &silent(), |_| {}).await.unwrap();
    assert_eq!((report.ending, report.counts.sent.files), (Ending::Snapshot, 13));
    assert_eq!(support::files(&world.repository.join("library")).len(), 13);
    assert!(!world.repository.join("versions").exists());
}

#[tokio::test]
async fn a_run_that_dies_loses_no_upload() {
    let world = World::with_files(12).await;
    world.write("upload/film.mp4", &noise(9, 9 << 20));
    let faulty = FaultyStore::new(&world.repository);
    faulty.fail("log/0000000002", Fault::Hangs, 0, 1);
    let monitor = silent();
    let dying = world.back_up_with(faulty.store(), "state", &monitor, |_| {});
    assert!(tokio::time::timeout(Duration::from_secs(3), dying).await.is_err());
    assert_eq!(entries(&world), 1);
    let recorder = Arc::new(Recorder::default());
    let monitor: Arc<dyn Monitor> = Arc::clone(&recorder) as _;
    let report = world.back_up_with(world.directory(), "state", &monitor, |_| {}).await.unwrap();
    assert_eq!((report.counts.sent.files, report.counts.adopted.files), (0, 13));
    assert!(recorder.events().iter().any(|event| matches!(event, Event::DeadRunFound { .. })));
    let runs = world.reading("state").await.unwrap().manifest.runs(10).unwrap();
    assert_eq!(runs.iter().map(|run| run.outcome.as_deref().unwrap()).collect::<Vec<_>>(), ["snapshot", "died"]);
}

#[tokio::test]
async fn another_writers_entry_in_between_is_taken_in_and_chained_on() {
    let world = World::with_files(3).await;
    let mut first = world.writing(world.directory(), "first").await.unwrap();
    let mut second = world.writing(world.directory(), "second").await.unwrap();
    let damaged = |key: &str| Fact::Damaged(Damaged { key: key.to_owned(), problem: "p".to_owned() });
    second.commit(None, &[damaged("library/b")], &Silent).await.unwrap();
    second.commit(None, &[damaged("library/c")], &Silent).await.unwrap();
    let recorder = Recorder::default();
    let head = first.commit(None, &[damaged("library/a")], &recorder).await.unwrap();
    assert_eq!(head.sequence, 3);
    let taken: Vec<_> = recorder
        .events()
        .into_iter()
        .filter_map(|event| if let Event::EntryTaken { sequence, writer } = event { Some((sequence, writer)) } else { None })
        .collect();
    assert_eq!(taken, [(1, second.writer), (2, second.writer)]);
    assert_eq!(first.manifest.damaged_objects().unwrap().len(), 3);
    second.refresh(&Silent).await.unwrap();
    assert_eq!(second.manifest.head(), head);
    drop((first, second));
    assert_eq!(world.reading("fresh").await.unwrap().manifest.head(), head);
    assert!(world.reading("first").await.is_ok() && world.reading("second").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_at_once_make_one_chain() {
    let world = World::with_files(3).await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..6 {
        let mut session = world.writing(world.directory(), &format!("state-{writer}")).await.unwrap();
        writing.spawn(async move {
            for number in 0..5 {
                let fact = Fact::Damaged(Damaged { key: format!("library/{writer}-{number}"), problem: "p".to_owned() });
                session.commit(None, &[fact], &Silent).await.unwrap();
            }
        });
    }
    writing.join_all().await;
    let session = world.reading("fresh").await.unwrap();
    assert_eq!((session.manifest.head().sequence, session.manifest.damaged_objects().unwrap().len()), (30, 30));
}

/// Writes the entry after the last one as some other machine would: that its run began, `ago`.
async fn foreign_run(world: &World, ago: SignedDuration) -> RunId {
    let repository = Repository::open(world.directory()).await.unwrap();
    let last = entries(world);
    let read = log::read_entry(world.directory().as_ref(), last, &Key::log_entry(last)).await.unwrap();
    let (run, at) = (RunId::random(), Timestamp::now() - ago);
    let header =
        Header { format: log::FORMAT, epoch: 0, sequence: last + 1, previous_sha256: read.sha256, run: Some(run), written_at: at, writer: WriterId::random() };
    let fact = Fact::RunStarted(RunStarted { at, host: "elsewhere".to_owned(), roots: Vec::new(), accepts: None, shard: None });
    let bytes = Bytes::from(log::encode(&header, &[fact]).unwrap());
    let attributes = Attributes::of(Kind::Log, Sha256::of(&bytes));
    assert_eq!(repository.store.create(&Key::log_entry(last + 1), bytes, &attributes).await.unwrap(), Created::New);
    run
}

#[tokio::test]
async fn another_writers_young_run_is_waited_for_and_can_be_taken_over() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let other = foreign_run(&world, SignedDuration::from_secs(100)).await;
    let recorder = Arc::new(Recorder::default());
    let monitor: Arc<dyn Monitor> = Arc::clone(&recorder) as _;
    let began = Instant::now();
    let before = entries(&world);
    let busy = world.back_up_with(world.directory(), "state", &monitor, |plan| plan.wait = Duration::from_millis(300)).await;
    let Err(BackupError::Busy { who }) = busy else { panic!("not busy: {busy:?}") };
    assert!(who.contains(&other.short()) && who.contains("elsewhere"), "{who}");
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert!(recorder.events().iter().any(|event| matches!(event, Event::Waiting { .. })));
    assert_eq!(entries(&world), before, "who waits writes nothing");
    let report = world.back_up_with(world.directory(), "state", &silent(), |plan| plan.take_over = true).await.unwrap();
    assert_eq!(report.ending, Ending::Snapshot);
    let runs = world.reading("state").await.unwrap().manifest.runs(10).unwrap();
    assert_eq!(runs.iter().find(|run| run.id == other).unwrap().outcome.as_deref(), Some("died"));
}

#[tokio::test]
async fn another_writers_run_that_was_silent_for_three_minutes_is_dead() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let other = foreign_run(&world, SignedDuration::from_secs(181)).await;
    let recorder = Arc::new(Recorder::default());
    let monitor: Arc<dyn Monitor> = Arc::clone(&recorder) as _;
    assert_eq!(world.back_up_with(world.directory(), "state", &monitor, |_| {}).await.unwrap().ending, Ending::Snapshot);
    assert!(recorder.events().contains(&Event::DeadRunFound { run: other }));
}

#[tokio::test]
async fn a_run_that_ends_while_it_is_waited_for_lets_the_next_begin() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let mut other = world.writing(world.directory(), "other").await.unwrap();
    let run = RunId::random();
    let started = Fact::RunStarted(RunStarted { at: Timestamp::now(), host: "elsewhere".to_owned(), roots: Vec::new(), accepts: None, shard: None });
    other.commit(Some(run), &[started], &Silent).await.unwrap();
    let monitor = silent();
    let waiting = world.back_up_with(world.directory(), "state", &monitor, |plan| plan.wait = Duration::from_secs(30));
    let ending = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let ended = log::Ended { outcome: Outcome::Interrupted, reason: None, gone: None, changed: None, shard: None };
        other.commit(Some(run), &[Fact::RunEnded(ended)], &Silent).await.unwrap();
    };
    let (report, ()) = tokio::join!(waiting, ending);
    assert_eq!(report.unwrap().ending, Ending::Snapshot);
}

#[tokio::test]
async fn from_one_state_folder_only_one_run_writes() {
    let world = World::with_files(12).await;
    let held = world.writing(world.directory(), "state").await.unwrap();
    let second = world.back_up_with(world.directory(), "state", &silent(), |_| {}).await;
    assert!(matches!(second, Err(BackupError::Busy { .. })));
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let stop = CancellationToken::new();
    let recorder = Recorder::default();
    let waiting = backup::open(repository, state, Duration::from_secs(30), &recorder, &stop);
    let letting_go = async {
        while !recorder.events().iter().any(|event| matches!(event, Event::Waiting { .. })) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(held);
    };
    let (opened, ()) = tokio::join!(waiting, letting_go);
    assert!(opened.is_ok());
}

#[tokio::test]
async fn what_is_found_beside_a_run_is_noted_after_it() {
    let world = World::with_files(12).await;
    world.back_up().await;
    // Two readers: one that began while nobody wrote, one beside a run.
    let mut before = world.reading("state").await.unwrap();
    let writer = world.writing(world.directory(), "state").await.unwrap();
    let mut beside = world.reading("state").await.unwrap();
    drop(writer);
    world.write("upload/new.jpg", b"new");
    world.back_up().await;
    let sound = |key: &str| [Fact::Damaged(Damaged { key: key.to_owned(), problem: "p".to_owned() })];
    before.note(&sound("library/a"), &Silent).await.unwrap();
    beside.note(&sound("library/b"), &Silent).await.unwrap();
    before.note(&[Fact::Sound(Sound { key: "library/a".to_owned() })], &Silent).await.unwrap();
    let damaged = world.reading("state").await.unwrap().manifest.damaged_objects().unwrap();
    assert_eq!(damaged.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["library/b"]);
    assert_eq!(tables(&world.manifest("state").await), tables_from_log(&world, "from-log").await);
}

/// All rows of all tables, in an order of their own.
fn tables(path: &Path) -> Vec<(String, Vec<Vec<Value>>)> {
    let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name").unwrap();
    let names: Vec<String> = names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(names.len() >= 8, "{names:?}");
    let rows = |name: &String| {
        let mut query = connection.prepare(&format!("SELECT * FROM {name}")).unwrap();
        let columns = query.column_count();
        let rows = query.query_map([], |row| (0..columns).map(|column| row.get::<_, Value>(column)).collect());
        let mut rows: Vec<Vec<Value>> = rows.unwrap().map(Result::unwrap).collect();
        rows.sort_by_key(|row| format!("{row:?}"));
        rows
    };
    names.iter().map(|name| (name.clone(), rows(name))).collect()
}

/// The tables of a manifest made from the log alone, by the new state folder `state`.
async fn tables_from_log(world: &World, state: &str) -> Vec<(String, Vec<Vec<Value>>)> {
    let aside = world.beside("manifests-aside");
    let manifests = world.repository.join("manifests");
    let there = manifests.exists();
    if there {
        std::fs::rename(&manifests, &aside).unwrap();
    }
    drop(std::fs::remove_dir_all(world.beside(state)));
    drop(world.reading(state).await.unwrap());
    if there {
        std::fs::rename(&aside, &manifests).unwrap();
    }
    tables(&world.manifest(state).await)
}

fn copies(world: &World) -> Vec<PathBuf> {
    let folder = world.repository.join("manifests");
    support::files(&folder).into_iter().map(|path| folder.join(path)).collect()
}

#[tokio::test]
async fn a_damaged_copy_of_the_manifest_is_not_used_and_the_log_gives_the_same() {
    let world = World::with_files(12).await;
    world.back_up().await;
    world.write("upload/new.jpg", b"new");
    world.rename("upload/u1/photo-001.jpg", "library/moved.jpg");
    world.back_up().await;
    let original = tables(&world.manifest("state").await);
    let newest = copies(&world).pop().unwrap();
    let rebuilt = async |what: &str| {
        drop(std::fs::remove_dir_all(world.beside("fresh")));
        let recorder = Recorder::default();
        let (repository, state) = world.open(world.directory(), "fresh").await.unwrap();
        drop(Session::open_for_reading(repository, state, &recorder).await.unwrap());
        assert!(tables(&world.manifest("fresh").await) == original, "{what}");
        recorder.events()
    };
    let applied = |events: &[Event]| events.iter().filter(|event| matches!(event, Event::EntriesApplied { .. })).count() as u64;
    assert!(applied(&rebuilt("whole").await) < entries(&world), "the copy saves work");
    for (what, change) in [
        (
            "a byte",
            Box::new(|mut bytes: Vec<u8>| {
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                Some(bytes)
            }) as Box<dyn Fn(Vec<u8>) -> Option<Vec<u8>>>,
        ),
        (
            "cut",
            Box::new(|mut bytes: Vec<u8>| {
                bytes.truncate(bytes.len() / 2);
                Some(bytes)
            }),
        ),
        ("empty", Box::new(|_| Some(Vec::new()))),
        // Whole, and sound as a database, but not what the log names.
        ("forged", Box::new(|bytes: Vec<u8>| zstd::encode_all(&*zstd::decode_all(&*bytes).unwrap(), 1).ok())),
    ] {
        let _damaged = Tampered::with(&newest, change);
        let events = rebuilt(what).await;
        assert!(events.iter().any(|event| matches!(event, Event::Warned { message } if message.contains("manifests/"))), "{what}");
    }
    for copy in copies(&world) {
        Tampered::with(&copy, |_| None).keep();
    }
    assert_eq!(applied(&rebuilt("without any").await), entries(&world));
}

#[tokio::test]
async fn a_local_manifest_of_garbage_is_made_anew() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let path = world.manifest("state").await;
    let whole = tables(&path);
    for (what, garbage) in [("noise", noise(1, 100_000)), ("nothing", Vec::new()), ("text", b"not a database".to_vec()), ("another's", other_database(&world))]
    {
        for end in ["-wal", "-shm"] {
            drop(std::fs::remove_file(format!("{}{end}", path.display())));
        }
        std::fs::write(&path, garbage).unwrap();
        drop(world.reading("state").await.unwrap());
        assert!(tables(&path) == whole, "{what}");
    }
    world.back_up().await;
    assert!(world.verify("state", false).await.unwrap().is_sound());
}

/// A database with a table of the same name and nothing that fits.
fn other_database(world: &World) -> Vec<u8> {
    let path = world.beside("other.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection.execute_batch("CREATE TABLE manifest_metadata(version INTEGER); INSERT INTO manifest_metadata VALUES (99);").unwrap();
    drop(connection);
    std::fs::read(path).unwrap()
}

#[tokio::test]
async fn a_state_folder_of_another_schema_is_made_anew() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let path = world.manifest("state").await;
    let whole = tables(&path);
    rusqlite::Connection::open(&path).unwrap().execute_batch("UPDATE manifest_metadata SET version = version + 1").unwrap();
    drop(world.reading("state").await.unwrap());
    assert!(tables(&path) == whole);
}

/// One thing that happens to a library between two backups.
#[derive(Debug, Clone)]
enum Change {
    Write(u8, u8),
    Remove(u8),
    Rename(u8, u8),
    BackUp,
    Verify,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (0..8_u8, 0..4_u8).prop_map(|(file, content)| Change::Write(file, content)),
        1 => (0..8_u8).prop_map(Change::Remove),
        2 => (0..8_u8, 0..8_u8).prop_map(|(from, to)| Change::Rename(from, to)),
        3 => Just(Change::BackUp),
        1 => Just(Change::Verify),
    ]
}

fn name(file: u8) -> String {
    format!("upload/{}/{file}.jpg", file % 3)
}

impl Change {
    async fn make(self, world: &World) {
        let there = |file: u8| world.library.join(name(file)).exists();
        match self {
            Self::Write(file, content) => world.write(&name(file), &noise(u64::from(content) + 1, 300 + usize::from(content))),
            Self::Remove(file) if there(file) => world.remove(&name(file)),
            Self::Rename(from, to) if there(from) && from != to => world.rename(&name(from), &name(to)),
            Self::Remove(_) | Self::Rename(..) => {}
            Self::BackUp => {
                world.back_up().await;
            }
            Self::Verify => assert!(world.verify("state", true).await.unwrap().damaged == 0),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 30, ..ProptestConfig::default() })]
    #[test]
    fn a_copy_and_the_tail_of_the_log_make_the_same_manifest_as_the_log(changes in prop::collection::vec(change(), 1..25)) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(Box::pin(async {
            // Enough files that never change: tripwires are not what is tested.
            let world = World::with_files(120).await;
            world.back_up().await;
            for change in changes {
                change.make(&world).await;
            }
            world.back_up().await;
            let local = tables(&world.manifest("state").await);
            drop(world.reading("from-copy").await.unwrap());
            prop_assert!(local == tables(&world.manifest("from-copy").await), "from a copy");
            prop_assert!(local == tables_from_log(&world, "from-log").await, "from the log");
            let verified = world.verify("from-copy", false).await.unwrap();
            prop_assert_eq!((verified.damaged, verified.unannounced), (0, 0));
            let target = world.beside("restored");
            world.restore("from-copy", "latest", &target).await.unwrap();
            prop_assert!(support::contents(&target) == support::contents(&world.library), "restored");
            Ok(())
        }))?;
    }
}

#[tokio::test]
async fn an_empty_log_starts_at_the_identity() {
    let world = World::with_files(3).await;
    let session = world.reading("state").await.unwrap();
    let identity = std::fs::read(world.repository.join("format.json")).unwrap();
    assert_eq!(session.manifest.head(), Head { epoch: 0, sequence: 0, sha256: Sha256::of(&identity) });
    assert_eq!(session.manifest.totals().of(Class::Original).files, 0);
}

#[tokio::test]
async fn a_local_manifest_that_is_damaged_within_fails_one_run_at_most() {
    let world = World::with_files(100).await;
    world.back_up().await;
    let path = world.manifest("state").await;
    let (mut page, mut failed) = (1, 0);
    loop {
        // All of it in one file.
        rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA journal_mode = DELETE").unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let Some(damaged) = bytes.get_mut(page * 4_096..(page + 1) * 4_096) else { break };
        damaged.copy_from_slice(&noise(page as u64, 4_096));
        std::fs::write(&path, bytes).unwrap();
        match world.back_up_with(world.directory(), "state", &silent(), |_| {}).await {
            Ok(report) => assert_eq!((report.ending, report.counts.sent.files), (Ending::Snapshot, 0), "page {page}"),
            Err(error) => {
                failed += 1;
                assert!(error.hint().is_some(), "page {page}: {error}");
                assert_eq!(world.back_up().await.counts.sent.files, 0, "page {page}");
            }
        }
        // What a run does not need (an index) may be damaged still.
        drop(std::fs::remove_file(&path));
        drop(world.reading("state").await.unwrap());
        page += 1;
    }
    assert!(failed > 5, "{failed} of {page} pages matter");
    assert!(world.verify("fresh", false).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_copy_knows_of_damage_and_of_how_runs_ended() {
    let world = World::with_files(30).await;
    world.back_up().await;
    Tampered::with(&world.repository.join("library/upload/u0/photo-000.jpg"), |_| None).keep();
    assert_eq!(world.verify("state", true).await.unwrap().lost, 1);
    let faulty = FaultyStore::new(&world.repository);
    faulty.fail("versions/", Fault::Refused, 0, 1);
    world.back_up_with(faulty.store(), "state", &silent(), |_| {}).await.unwrap_err();
    // Enough that is new for a copy.
    for number in 0..10 {
        world.write(&format!("upload/new/{number}.jpg"), &noise(200 + number, 100));
    }
    world.back_up().await;
    assert_eq!(copies(&world).len(), 2);
    let local = tables(&world.manifest("state").await);
    let recorder = Recorder::default();
    let (repository, state) = world.open(world.directory(), "fresh").await.unwrap();
    let session = Session::open_for_reading(repository, state, &recorder).await.unwrap();
    assert_eq!(session.manifest.damaged_objects().unwrap().len(), 1);
    assert!(recorder.events().iter().filter(|event| matches!(event, Event::EntriesApplied { .. })).count() == 1, "all but the last entry is in the copy");
    assert!(tables(&world.manifest("fresh").await) == local);
    assert!(tables_from_log(&world, "from-log").await == local);
}

#[tokio::test]
async fn no_entry_is_written_where_the_repository_went_away_since_it_was_opened() {
    let world = World::with_files(1).await;
    world.back_up().await;
    let mut session = world.writing(world.directory(), "state").await.unwrap();
    let aside = world.repository.with_extension("aside");
    std::fs::rename(&world.repository, &aside).unwrap();
    // The folder that a disk was mounted on.
    std::fs::create_dir(&world.repository).unwrap();
    let refused = session.commit(None, &[], &Silent).await;
    assert!(matches!(refused, Err(OpenError::NoRepository { .. })), "{refused:?}");
    drop(session);
    std::fs::remove_dir_all(&world.repository).unwrap();
    std::fs::rename(&aside, &world.repository).unwrap();
    // And one that has looked, and found nothing wrong.
    let mut session = world.reading("state").await.unwrap();
    std::fs::rename(&world.repository, &aside).unwrap();
    std::fs::create_dir(&world.repository).unwrap();
    let listed = Listed { at: Timestamp::now(), sequence: 1, objects: 1, damaged: 0 };
    let refused = session.note(&[Fact::Listed(listed)], &Silent).await;
    assert!(matches!(refused, Err(OpenError::NoRepository { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(&world.repository).unwrap().count(), 0);
    drop(session);
    std::fs::remove_dir_all(&world.repository).unwrap();
    std::fs::rename(&aside, &world.repository).unwrap();
    world.back_up().await;
}

/// Takes the repository away when the first file is in it.
struct TakesAway {
    repository: PathBuf,
    is_done: AtomicBool,
}

impl Monitor for TakesAway {
    fn emit(&self, event: Event) {
        if matches!(event, Event::FileStored { .. }) && !self.is_done.swap(true, Ordering::SeqCst) {
            std::fs::rename(&self.repository, self.repository.with_extension("aside")).unwrap();
            std::fs::create_dir(&self.repository).unwrap();
        }
    }
}

#[tokio::test]
async fn a_run_under_which_the_repository_goes_away_says_so_and_the_next_one_goes_on() {
    let world = World::with_files(200).await;
    let monitor: Arc<dyn Monitor> = Arc::new(TakesAway { repository: world.repository.clone(), is_done: AtomicBool::new(false) });
    let error = world.back_up_with(world.directory(), "state", &monitor, |_| {}).await.unwrap_err();
    assert!(matches!(error, BackupError::Open(OpenError::NoRepository { .. })), "{error:?}");
    std::fs::remove_dir(&world.repository).expect("nothing is written where the disk was mounted");
    std::fs::rename(world.repository.with_extension("aside"), &world.repository).unwrap();
    assert_eq!(world.back_up().await.ending, Ending::Snapshot);
}

#[tokio::test]
async fn no_log_is_begun_behind_an_identity_that_was_read_wrong() {
    let world = World::with_files(1).await;
    let mut session = {
        // As a bad line may give it back: understood, and not what is there.
        let _misread = Tampered::with(&world.repository.join("format.json"), |bytes| {
            let text = String::from_utf8(bytes).unwrap();
            Some(text.replacen("\"created_by\":\"", "\"created_by\":\"x", 1).into_bytes())
        });
        world.writing(world.directory(), "state").await.unwrap()
    };
    let refused = session.commit(None, &[], &Silent).await;
    assert!(matches!(refused, Err(OpenError::UnsteadyIdentity { .. })), "{refused:?}");
    assert!(!world.repository.join("log").exists());
    // What it had made of those bytes by then is not gone on from.
    drop(session);
    world.back_up().await;
    // A copy of the manifest would spare a newcomer the first entry.
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    drop(world.reading("fresh").await.unwrap());
}
