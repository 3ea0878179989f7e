//! How `verify` looks: part by part, until it is stopped, and what it says of much damage, of none and of a store that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use bytes::Bytes;
use immich_backup_core::budget::{CHECKPOINT_FILES_MAX, NAMED_MAX};
use immich_backup_core::event::{Event, Monitor, Phase, Recorder, Silent};
use immich_backup_core::model::{Part, Sample, Sha256};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{DumpFact, Fact, LogError, Pruned};
use immich_backup_core::repository::store::{Attributes, Created, Kind};
use immich_backup_core::repository::{OpenError, Session};
use immich_backup_core::verify::{self, Depth, Plan, Report};
use jiff::Timestamp;
use std::time::Duration;
use support::{FaultyStore, Tampered, World, files, noise, workers};
use tokio_util::sync::CancellationToken;

fn plan(depth: Depth) -> Plan {
    Plan { depth, workers: workers(2), record: true }
}

async fn look(world: &World, plan: Plan) -> Report {
    let mut session = world.reading("state").await.unwrap();
    Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await.unwrap()
}

fn entries(world: &World) -> usize {
    files(&world.repository.join("log")).len()
}

/// The keys of all content.
fn content(world: &World) -> Vec<String> {
    files(&world.repository.join("library")).iter().map(|path| format!("library/{}", path.to_str().unwrap())).collect()
}

#[test]
fn a_report_with_something_lost_or_new_is_not_sound() {
    assert!(Report::default().is_sound());
    assert!(!Report { lost: 1, ..Report::default() }.is_sound());
    assert!(!Report { new: 1, ..Report::default() }.is_sound());
    assert!(Report { damaged: 1, ..Report::default() }.is_sound(), "known, and stored elsewhere as well");
}

#[tokio::test]
async fn successive_looks_read_one_part_after_the_other_and_then_all_was_read() {
    let world = World::with_files(40).await;
    world.back_up().await;
    let copies = files(&world.repository.join("manifests")).len() as u64;
    let first = world.reading("state").await.unwrap().manifest.head().sequence % 3;
    let mut read = 0;
    for number in 0..4 {
        let part = Part { of: 3, part: (first + number) % 3 };
        let expected = content(&world).iter().filter(|key| part.has(key)).count() as u64;
        assert!(expected > 0 && expected < 40);
        let recorder = Recorder::default();
        let mut session = world.reading("state").await.unwrap();
        let sampled = plan(Depth::Read(Some(Sample::OneOf(3))));
        let report = Box::pin(verify::run(&mut session, sampled, &recorder, &CancellationToken::new())).await.unwrap();
        assert_eq!((report.part, report.listed.files, report.read.files), (Some(part), 40, expected + copies), "look {number}");
        let announced = recorder.events().into_iter().find_map(|event| match event {
            Event::PhaseStarted { phase: Phase::ReadBack, total_files, total_bytes } => Some((total_files, total_bytes)),
            _ => None,
        });
        assert_eq!(announced, Some((Some(40 / 3), Some(report.listed.bytes / 3))), "look {number}");
        read += if number < 3 { expected } else { 0 };
    }
    assert_eq!(read, 40);
}

#[tokio::test]
async fn a_look_that_is_stopped_says_so_and_writes_nothing_down() {
    let world = World::with_files(10).await;
    world.back_up().await;
    let before = entries(&world);
    let stop = CancellationToken::new();
    stop.cancel();
    let mut session = world.reading("state").await.unwrap();
    let report = Box::pin(verify::run(&mut session, plan(Depth::Read(None)), &Silent, &stop)).await.unwrap();
    assert_eq!((report.interrupted, report.damaged, report.listed.files), (true, 0, 0));
    assert_eq!(entries(&world), before);
    let report = look(&world, plan(Depth::Read(None))).await;
    assert_eq!((report.interrupted, report.damaged, report.listed.files), (false, 0, 10));
    assert_eq!(entries(&world), before + 1);
    look(&world, Plan { record: false, ..plan(Depth::Read(None)) }).await;
    assert_eq!(entries(&world), before + 1, "who does not record writes nothing");
}

#[tokio::test]
async fn all_damage_is_counted_a_bounded_part_is_named_and_few_entries_are_written() {
    let count = NAMED_MAX + 3;
    let world = World::with_files(count as u64 + 2).await;
    world.back_up().await;
    for key in content(&world).iter().take(count) {
        std::fs::remove_file(world.repository.join(key)).unwrap();
    }
    for number in 0..count {
        std::fs::write(world.repository.join(format!("library/upload/stray-{number}")), b"x").unwrap();
    }
    let before = entries(&world);
    let report = look(&world, plan(Depth::Listing)).await;
    assert_eq!((report.damaged, report.lost, report.new, report.listed.files), (count as u64, count as u64, count as u64, 2));
    assert_eq!((report.findings.len(), report.unannounced, report.unnamed.len()), (NAMED_MAX, count as u64, NAMED_MAX));
    assert_eq!(entries(&world) - before, 1 + count / CHECKPOINT_FILES_MAX);
    let again = look(&world, plan(Depth::Listing)).await;
    assert_eq!((again.damaged, again.lost, again.new), (count as u64, count as u64, 0), "what is known is no news");
}

#[tokio::test]
async fn a_store_that_fails_says_nothing_of_its_objects() {
    let world = World::with_files(10).await;
    world.back_up().await;
    let before = entries(&world);
    let store = FaultyStore::new(&world.repository);
    let (repository, state) = world.open(store.store(), "state").await.unwrap();
    let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
    store.forbid_reading("library/");
    let error = Box::pin(verify::run(&mut session, plan(Depth::Read(None)), &Silent, &CancellationToken::new())).await.expect_err("a store that fails");
    assert!(matches!(error, OpenError::Log(LogError::Store(_))), "{error:?}");
    assert_eq!(entries(&world), before);
    drop(session);
    assert!(look(&world, plan(Depth::Read(None))).await.is_sound());
}

#[tokio::test]
async fn a_reading_counts_as_damaged_what_it_read_and_not_what_the_listing_found() {
    let world = World::with_files(10).await;
    world.back_up().await;
    let keys = content(&world);
    std::fs::remove_file(world.repository.join(&keys[0])).unwrap();
    std::fs::remove_file(world.repository.join(&keys[1])).unwrap();
    Tampered::with(&world.repository.join(&keys[2]), |bytes| Some(bytes.into_iter().map(|byte| !byte).collect())).keep();
    assert_eq!(look(&world, plan(Depth::Read(None))).await.damaged, 3);
    let reading = world.reading("state").await.unwrap().manifest.last_reading_of(1).unwrap().unwrap();
    let copies = files(&world.repository.join("manifests")).len() as u64;
    assert_eq!((reading.damaged, reading.objects), (1, 7 + copies));
}

#[tokio::test]
async fn a_log_that_loses_its_end_under_a_look_went_back() {
    let world = World::with_files(3).await;
    world.back_up().await;
    let mut session = world.reading("state").await.unwrap();
    let last = files(&world.repository.join("log")).pop().unwrap();
    std::fs::remove_file(world.repository.join("log").join(last)).unwrap();
    let error = Box::pin(verify::run(&mut session, plan(Depth::Listing), &Silent, &CancellationToken::new())).await.expect_err("a log that was cut");
    assert!(matches!(error, OpenError::Log(LogError::WentBack { .. })), "{error:?}");
}

/// Asks to stop as soon as an object was read.
struct StopsAtTheFirst(CancellationToken);

impl Monitor for StopsAtTheFirst {
    fn emit(&self, event: Event) {
        if matches!(event, Event::ObjectChecked { size_bytes: 1.. }) {
            self.0.cancel();
        }
    }
}

#[tokio::test]
async fn a_reading_that_is_stopped_reads_no_more_than_what_was_begun() {
    let world = World::with_files(40).await;
    world.back_up().await;
    let stop = CancellationToken::new();
    let mut session = world.reading("state").await.unwrap();
    let report = Box::pin(verify::run(&mut session, plan(Depth::Read(None)), &StopsAtTheFirst(stop.clone()), &stop)).await.unwrap();
    let copies = files(&world.repository.join("manifests")).len() as u64;
    assert!(report.interrupted && report.listed.files == 40);
    assert!((1..=2 + copies).contains(&report.read.files), "{report:?}");
}

#[tokio::test]
async fn the_newest_copy_of_the_manifest_is_replaced_by_no_older_one() {
    let world = World::with_files(3).await;
    world.back_up().await;
    world.write("upload/later.jpg", b"later");
    world.back_up().await;
    let copies = files(&world.repository.join("manifests"));
    assert_eq!(copies.len(), 2);
    for (copy, replaced) in copies.iter().zip([true, false]) {
        let _damaged = Tampered::with(&world.repository.join("manifests").join(copy), |_| Some(b"no database".to_vec()));
        let report = look(&world, Plan { record: false, ..plan(Depth::Read(None)) }).await;
        assert_eq!((report.damaged, report.lost, report.findings[0].replaced), (1, u64::from(!replaced), replaced), "{copy:?}");
    }
}

/// What is found by a look through `store` that writes nothing down.
async fn look_through(world: &World, store: &FaultyStore, record: bool, monitor: &dyn Monitor) -> Result<Report, OpenError> {
    let (repository, state) = world.open(store.store(), "state").await.unwrap();
    let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
    let plan = Plan { record, ..plan(Depth::Read(None)) };
    Box::pin(verify::run(&mut session, plan, monitor, &CancellationToken::new())).await
}

const LONG: Duration = Duration::from_millis(300);

#[tokio::test]
async fn what_is_lost_does_not_depend_on_which_reading_ends_first() {
    let world = World::with_files(6).await;
    world.back_up().await;
    let first = "library/upload/u0/photo-000.jpg";
    let good = Tampered::with(&world.repository.join(first), |_| None);
    look(&world, plan(Depth::Listing)).await;
    world.back_up().await;
    drop(good);
    assert!(look(&world, plan(Depth::Read(None))).await.is_sound());
    let second = format!("versions/{}", files(&world.repository.join("versions"))[0].display());
    for key in [first, second.as_str()] {
        let flipped = |mut bytes: Vec<u8>| {
            bytes[0] ^= 1;
            Some(bytes)
        };
        Tampered::with(&world.repository.join(key), flipped).keep();
    }
    for slow in [first, second.as_str()] {
        let store = FaultyStore::new(&world.repository);
        store.slow_reading(slow, LONG);
        let report = look_through(&world, &store, false, &Silent).await.unwrap();
        let found: Vec<_> = report.findings.iter().map(|finding| (finding.key.as_str(), finding.replaced)).collect();
        assert_eq!((found, report.lost), (vec![(first, true), (second.as_str(), false)], 1), "{slow} is slow");
    }
}

#[tokio::test]
async fn damage_is_told_though_the_look_fails_later() {
    let world = World::with_files(6).await;
    world.back_up().await;
    let keys = content(&world);
    Tampered::with(&world.repository.join(&keys[0]), |bytes| Some(vec![0; bytes.len()])).keep();
    let store = FaultyStore::new(&world.repository);
    store.slow_reading(&keys[5], LONG);
    store.forbid_reading(&keys[5]);
    let recorder = Recorder::default();
    look_through(&world, &store, true, &recorder).await.expect_err("a store that fails");
    let told: Vec<_> = recorder.events().into_iter().filter_map(|event| if let Event::ObjectDamaged { key, .. } = event { Some(key) } else { None }).collect();
    assert_eq!(told, keys[..1]);
}

#[tokio::test]
async fn nothing_is_written_to_a_log_that_was_not_read_to_its_end() {
    let count = CHECKPOINT_FILES_MAX + 3;
    let world = World::with_files(count as u64).await;
    world.back_up().await;
    for key in content(&world) {
        std::fs::remove_file(world.repository.join(key)).unwrap();
    }
    Tampered::with(&world.repository.join("log").join(&files(&world.repository.join("log"))[0]), |mut bytes| {
        bytes[20] ^= 1;
        Some(bytes)
    })
    .keep();
    let store = FaultyStore::new(&world.repository);
    store.slow_reading("log/", Duration::from_secs(1));
    let error = look_through(&world, &store, true, &Silent).await.expect_err("a damaged log");
    assert!(matches!(error, OpenError::Log(LogError::Damaged { sequence: 1, .. })), "{error:?}");
    assert_eq!(store.count("create", "log/"), 0);
}

#[tokio::test]
async fn what_a_store_lists_in_another_order_is_neither_missing_nor_new() {
    let world = World::with_files(12).await;
    world.back_up().await;
    let keys = content(&world);
    let at = |key: &String| world.repository.join(key);
    std::fs::remove_file(at(&keys[2])).unwrap();
    std::fs::write(at(&keys[7]), b"cut").unwrap();
    std::fs::write(at(&keys[3]).with_file_name("stranger.jpg"), b"nobody's").unwrap();
    let mut seen = Vec::new();
    for backwards in [false, true] {
        let store = FaultyStore::new(&world.repository);
        let (repository, state) = world.open(store.store(), "state").await.unwrap();
        let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
        if backwards {
            store.list_backwards();
        }
        let plan = Plan { record: false, ..plan(Depth::Listing) };
        let report = Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await.unwrap();
        let mut found: Vec<_> = report.findings.iter().map(|finding| finding.key.clone()).collect();
        found.sort();
        assert_eq!(found, [keys[2].clone(), keys[7].clone()], "backwards: {backwards}");
        assert_eq!((report.damaged, report.unannounced, report.listed.files), (2, 1, 10), "backwards: {backwards}");
        // What came after all is not asked for by its name; what is missing is.
        seen.push(store.count("head", "library/"));
    }
    assert_eq!(seen, [1, 1]);
}

/// A dump of that day, as a run stores it.
async fn dump(session: &mut Session, day: u8) -> String {
    let taken_at: Timestamp = format!("2026-01-{day:02}T03:00:00Z").parse().unwrap();
    let (bytes, key) = (Bytes::from(noise(day.into(), 300)), Key::dump(taken_at, "3.1.0", "sql.gz"));
    let sha256 = Sha256::of(&bytes);
    let created = session.repository.store.create(&key, bytes, &Attributes::of(Kind::Manifest, sha256)).await.unwrap();
    assert_eq!(created, Created::New);
    let dump = DumpFact {
        key: key.to_string(),
        sha256,
        size: 300,
        plain_size: 1_000,
        taken_at,
        immich_version: None,
        server_version: None,
        program_version: None,
        rows: 1,
        before_restore: false,
        without_data: Vec::new(),
    };
    session.commit(None, &[Fact::Dump(dump)], &Silent).await.unwrap();
    key.to_string()
}

#[tokio::test]
async fn a_damaged_dump_is_replaced_by_a_later_one_that_is_sound_and_was_not_pruned() {
    let world = World::with_files(3).await;
    world.back_up().await;
    let mut session = world.writing(world.directory(), "state").await.unwrap();
    let mut keys = Vec::new();
    for day in 1..=4 {
        keys.push(dump(&mut session, day).await);
    }
    drop(session);
    let flipped = |number: usize| {
        Tampered::with(&world.repository.join(&keys[number]), |mut bytes| {
            bytes[9] ^= 1;
            Some(bytes)
        })
    };
    let found = async |record: bool| {
        let report = look(&world, Plan { record, ..plan(Depth::Read(None)) }).await;
        let found: Vec<_> = report.findings.iter().map(|finding| (keys.iter().position(|key| *key == finding.key).unwrap(), finding.replaced)).collect();
        (found, report.lost)
    };
    assert_eq!(found(false).await, (vec![], 0));
    for (number, replaced) in [(0, true), (2, true), (3, false)] {
        let _damaged = flipped(number);
        assert_eq!(found(false).await, (vec![(number, replaced)], u64::from(!replaced)), "{number}");
    }
    // Of two that are found at once the last is lost, and the one before is not: it says less.
    {
        let _damaged = (flipped(2), flipped(3));
        assert_eq!(found(false).await, (vec![(2, true), (3, false)], 1));
    }
    // One that was known to be damaged replaces nothing.
    flipped(3).keep();
    assert_eq!(found(true).await, (vec![(3, false)], 1));
    {
        let _damaged = flipped(2);
        assert_eq!(found(false).await, (vec![(2, false), (3, false)], 2));
        let _earlier = flipped(1);
        assert_eq!(found(false).await, (vec![(1, true), (2, false), (3, false)], 2));
    }
    // Nor does one that a rule has removed.
    let mut session = world.writing(world.directory(), "state").await.unwrap();
    let pruned = Pruned { at: Timestamp::now(), keys: keys[2..].to_vec(), rule: "keep 2".to_owned(), removed_up_to: None };
    session.commit(None, &[Fact::Pruned(pruned)], &Silent).await.unwrap();
    drop(session);
    assert_eq!(found(false).await, (vec![], 0));
    let _damaged = flipped(1);
    assert_eq!(found(false).await, (vec![(1, false)], 1));
}
