//! After damage the log goes on, and what is damaged is brought back: nothing is overwritten or removed for it, and nobody is led back unseen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::backup::{BackupError, Ending};
use immich_backup_core::event::{Event, Recorder, Silent};
use immich_backup_core::model::{FilePath, RootPath};
use immich_backup_core::model::{Root, RunId, Sha256, WriterId};
use immich_backup_core::repair::{
    self, Decision, Found, Healing, LibraryOptions, LibrarySource, LogPlan, LogReport, ObjectsOptions, ObjectsPlan, ObjectsReport, RepairError,
};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{self, Author, EpochFact, Fact, Head, Header, LogError, PathFact};
use immich_backup_core::repository::{OpenError, Session, Until};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use support::{Fault, FaultyStore, Tampered, World, copy_folder, noise, silent};
use tokio_util::sync::CancellationToken;

fn log_file(world: &World, key: &Key) -> PathBuf {
    world.repository.join(key.as_str())
}

/// Numbers of entries of the first epoch.
fn entries(world: &World) -> u64 {
    let names = std::fs::read_dir(world.repository.join("log")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('9')).filter_map(|name| name[..10].parse::<u64>().ok()).max().unwrap_or(0)
}

/// Every object's name, bytes and inode.
fn objects(world: &World) -> BTreeMap<PathBuf, (Vec<u8>, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fn collect(folder: &Path, found: &mut BTreeMap<PathBuf, (Vec<u8>, u64)>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else {
                found.insert(path.clone(), (std::fs::read(&path).unwrap(), path.metadata().unwrap().ino()));
            }
        }
    }
    let mut found = BTreeMap::new();
    collect(&world.repository, &mut found);
    found
}

fn nothing_was_changed(before: &BTreeMap<PathBuf, (Vec<u8>, u64)>, world: &World) {
    let after = objects(world);
    for (path, object) in before {
        assert!(after.get(path) == Some(object), "{} was changed or removed", path.display());
    }
}

async fn plan(world: &World, state: &str, decision: &Decision) -> Result<LogPlan, RepairError> {
    let (repository, state) = world.open(world.directory(), state).await?;
    repair::prepare_log(&repository, &state, decision).await
}

async fn repair_with(world: &World, state: &str, decision: &Decision) -> Result<LogReport, RepairError> {
    let before = objects(world);
    let (repository, state) = world.open(world.directory(), state).await?;
    let _lock = state.try_lock().unwrap().unwrap();
    let report = repair::repair_log(&repository, &state, decision, "mender", |_| {}).await;
    nothing_was_changed(&before, world);
    report
}

async fn repair_log(world: &World, state: &str) -> LogReport {
    repair_with(world, state, &Decision::default()).await.unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, OpenError>) -> LogError {
    match result {
        Err(OpenError::Log(error)) => error,
        other => panic!("no error of the log: {other:?}"),
    }
}

/// Two snapshots, and what the library held at each.
async fn two_snapshots() -> (World, [BTreeMap<PathBuf, Vec<u8>>; 2]) {
    let world = World::with_files(60).await;
    world.back_up().await;
    let first = support::contents(&world.library);
    world.write("upload/u0/photo-000.jpg", b"another content");
    world.write("upload/new.jpg", &noise(77, 900));
    world.back_up().await;
    let second = support::contents(&world.library);
    (world, [first, second])
}

/// The snapshots come back as they were, from a state folder of its own, and all is whole.
async fn all_is_well(world: &World, state: &str, contents: &[BTreeMap<PathBuf, Vec<u8>>]) {
    let session = world.reading(state).await.unwrap();
    let snapshots = session.manifest.snapshots().unwrap();
    assert!(snapshots.len() >= contents.len(), "{} snapshots", snapshots.len());
    for (number, expected) in contents.iter().enumerate() {
        let to = world.beside(&format!("restored-{state}-{number}"));
        drop(std::fs::remove_dir_all(&to));
        let report = support::restore_from(&session, &snapshots[number].id.to_string(), &to).await.unwrap();
        assert_eq!(report.failed, 0, "{:?}", report.failures);
        assert!(support::contents(&to) == *expected, "snapshot {number}");
    }
    drop(session);
    let verified = world.verify(state, false).await.unwrap();
    assert_eq!((verified.damaged, verified.lost), (0, 0), "{:?}", verified.findings);
}

#[tokio::test]
async fn after_junk_at_the_next_number_the_log_goes_on_and_everything_before_stands() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    let junk = log_file(&world, &Key::log_entry(last + 1));
    std::fs::write(&junk, b"no entry at all").unwrap();
    let error = refused(world.reading("state").await);
    assert!(matches!(error, LogError::Damaged { sequence, .. } if sequence == last + 1), "{error}");
    assert!(error.hint().unwrap().contains("immich-backup repair"));
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    assert_eq!((planned.opens, planned.survey.end.sequence, planned.survey.rejected_count), (Some(1), last, 1));
    let rejected = &planned.survey.rejected[0];
    assert_eq!((&*rejected.key, rejected.size, rejected.sha256), (Key::log_entry(last + 1).as_str(), 15, Some(Sha256::of(b"no entry at all"))));
    assert!(rejected.why.contains("no entry"), "{}", rejected.why);
    assert_eq!(repair_log(&world, "state").await.opened.len(), 1);
    assert!(log_file(&world, &Key::log_opening(1, None)).is_file());
    assert!(plan(&world, "state", &Decision::default()).await.unwrap().is_empty(), "it is repaired");
    assert!(repair_log(&world, "state").await.opened.is_empty(), "and needs nothing more");
    all_is_well(&world, "state", &contents).await;
    all_is_well(&world, "fresh", &contents).await;
    // It goes on from there, in files of its own.
    world.write("upload/later.jpg", &noise(5, 400));
    world.back_up().await;
    assert!(log_file(&world, &Key::log_entry_in(1, last + 2, None)).is_file());
    assert_eq!(std::fs::read(&junk).unwrap(), b"no entry at all");
    let third = support::contents(&world.library);
    all_is_well(&world, "fresh-again", &[contents[0].clone(), contents[1].clone(), third]).await;
    let session = world.reading("state").await.unwrap();
    let repairs = session.manifest.epochs().unwrap();
    assert_eq!((repairs.len(), repairs[0].number, repairs[0].sequence, &*repairs[0].fact.host), (1, 1, last + 1, "mender"));
    assert_eq!(repairs[0].fact.rejected, planned.survey.rejected);
    // As it stood after the repair, by numbers of which the epoch is said or not; there is no more than that.
    let head = session.manifest.head();
    for epoch in [None, Some(1)] {
        let (repository, state) = world.open(world.directory(), &format!("until-{epoch:?}")).await.unwrap();
        let then = Session::open_until(repository, state, Until { epoch, sequence: last + 2 }, &Silent).await.unwrap();
        assert_eq!((then.manifest.head().epoch, then.manifest.head().sequence < head.sequence), (1, true));
        let snapshots = then.manifest.snapshots().unwrap().len();
        assert_eq!((snapshots, session.manifest.snapshots().unwrap().len()), (2, 3));
    }
    let (repository, state) = world.open(world.directory(), "until-2").await.unwrap();
    let beyond = refused(Session::open_until(repository, state, Until { epoch: Some(2), sequence: last + 2 }, &Silent).await.map(drop));
    assert!(matches!(&beyond, LogError::Epoch { epoch: 2, problem } if problem == "there is no such epoch"), "{beyond}");
}

#[tokio::test]
async fn of_a_repaired_log_the_entry_it_builds_on_is_missed_and_what_was_before_is_read_though_the_repair_is_damaged() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    std::fs::write(log_file(&world, &Key::log_entry(last + 1)), b"junk").unwrap();
    repair_log(&world, "state").await;
    // The entry on which the repair builds: nothing of its own epoch comes after it, and it is missed all the same.
    let base = log_file(&world, &Key::log_entry(last));
    let entry = std::fs::read(&base).unwrap();
    std::fs::remove_file(&base).unwrap();
    let error = refused(world.reading("newcomer").await.map(drop));
    assert!(matches!(error, LogError::Gap { missing, next } if missing == last && next == last + 1), "{error}");
    std::fs::write(&base, entry).unwrap();
    all_is_well(&world, "another", &contents).await;
    // As it stood before: as the newest epoch has it that can be read, where the epoch is not said.
    let opening = log_file(&world, &Key::log_opening(1, None));
    let right = std::fs::read(&opening).unwrap();
    std::fs::write(&opening, &right[..right.len() / 2]).unwrap();
    assert!(matches!(refused(world.reading("reader").await.map(drop)), LogError::Epoch { epoch: 1, .. } | LogError::Damaged { .. }));
    let (repository, state) = world.open(world.directory(), "until").await.unwrap();
    let then = Session::open_until(repository, state, Until { epoch: None, sequence: last }, &Silent).await.unwrap();
    assert_eq!((then.manifest.head().epoch, then.manifest.head().sequence, then.manifest.snapshots().unwrap().len()), (0, last, 2));
    // Who asks for that epoch is told of it.
    let (repository, state) = world.open(world.directory(), "until-1").await.unwrap();
    let error = refused(Session::open_until(repository, state, Until { epoch: Some(1), sequence: last + 1 }, &Silent).await.map(drop));
    assert!(matches!(error, LogError::Epoch { epoch: 1, .. }), "{error}");
}

#[tokio::test]
async fn whoever_reads_a_repaired_log_for_the_first_time_is_told_so() {
    let (world, _) = two_snapshots().await;
    std::fs::write(log_file(&world, &Key::log_entry(entries(&world) + 1)), b"junk").unwrap();
    repair_log(&world, "state").await;
    let told = async |state: &str| {
        let recorder = Recorder::default();
        let (repository, state) = world.open(world.directory(), state).await.unwrap();
        drop(Session::open_for_reading(repository, state, &recorder).await.unwrap());
        recorder.events().iter().filter(|event| matches!(event, Event::Warned { message } if message.contains("repaired on `mender`"))).count()
    };
    assert_eq!(told("fresh").await, 1);
    // Also where a copy of the manifest stands for the entries.
    for number in 0..8 {
        world.write(&format!("upload/more/{number}.jpg"), &noise(300 + number, 100));
    }
    world.back_up().await;
    assert!(
        world
            .repository
            .join(Key::manifest(1, entries(&world) + 1).as_str())
            .parent()
            .unwrap()
            .read_dir()
            .unwrap()
            .any(|copy| { copy.unwrap().file_name().to_str().unwrap().starts_with("9000000001-") })
    );
    assert_eq!(told("fresher").await, 1);
}

#[tokio::test]
async fn each_damaged_or_missing_entry_can_be_gone_on_from() {
    let (world, contents) = two_snapshots().await;
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    let (last, whole) = (entries(&world), world.beside("whole"));
    copy_folder(&world.repository, &whole);
    for number in 1..=last {
        for missing in [false, true] {
            std::fs::remove_dir_all(&world.repository).unwrap();
            copy_folder(&whole, &world.repository);
            drop(std::fs::remove_dir_all(world.beside("mending")));
            copy_folder(&world.beside("state"), &world.beside("mending"));
            Tampered::with(&log_file(&world, &Key::log_entry(number)), |mut bytes| {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 4;
                (!missing).then_some(bytes)
            })
            .keep();
            let planned = plan(&world, "mending", &Decision::default()).await.unwrap();
            assert_eq!((planned.opens, planned.survey.end.sequence), (Some(1), number - 1), "{number} {missing}: {:?}", planned.survey.problems);
            assert_eq!(planned.survey.rejected_count, last - number + u64::from(!missing), "{number} {missing}");
            // What was seen here and is intact is not given up unasked.
            let mut decision = Decision::default();
            if number < last {
                let ended = repair_with(&world, "mending", &decision).await;
                assert!(matches!(ended, Err(RepairError::Intact { from, to }) if (from, to) == (number, last)), "{number} {missing}: {ended:?}");
                assert!(ended.unwrap_err().hint().unwrap().contains(&format!("--reject-from {number}")));
                decision.reject_from = Some(number);
            }
            repair_with(&world, "mending", &decision).await.unwrap();
            // All that is there is adopted: nothing is sent again.
            let report = world.back_up_with(world.directory(), "mending", &silent(), |_| {}).await.unwrap();
            assert_eq!((report.ending, report.counts.sent.files), (Ending::Snapshot, 0), "{number} {missing}");
            let session = world.reading("fresh").await.unwrap();
            let to = world.beside("restored");
            drop(std::fs::remove_dir_all(&to));
            support::restore_from(&session, "latest", &to).await.unwrap();
            assert!(support::contents(&to) == contents[1], "{number} {missing}");
            drop(session);
            std::fs::remove_dir_all(world.beside("fresh")).unwrap();
        }
    }
}

/// Somebody with the writer's key adds entries that look good.
async fn forge(world: &World, facts: &[Fact]) -> u64 {
    let session = world.reading("thief").await.unwrap();
    let author = Author { run: Some(RunId::random()), writer: WriterId::random() };
    log::append(session.store(), &session.manifest.head(), author, facts).await.unwrap().head.sequence
}

fn archived(world: &World) -> Vec<Fact> {
    let files = support::contents(&world.library).into_keys();
    files.map(|path| Fact::Archived(PathFact::new(&FilePath::library(RootPath::from_path(&path).unwrap())))).collect()
}

#[tokio::test]
async fn a_forged_tail_that_looks_good_is_rejected_by_whoever_says_so() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    let forged = forge(&world, &archived(&world)).await;
    assert_eq!(forged, last + 1);
    let session = world.reading("state").await.unwrap();
    assert_eq!(session.manifest.totals().all().files, 0, "everything is said to be gone");
    drop(session);
    assert!(plan(&world, "state", &Decision::default()).await.unwrap().is_empty(), "nobody can tell but the owner");
    for wrong in [0, forged + 1, forged + 2] {
        let decision = Decision { reject_from: Some(wrong), ..Decision::default() };
        assert!(matches!(repair_with(&world, "state", &decision).await, Err(RepairError::NoEntry { .. })), "{wrong}");
    }
    let decision = Decision { reject_from: Some(forged), ..Decision::default() };
    let planned = plan(&world, "state", &decision).await.unwrap();
    assert_eq!((planned.survey.told.archived, planned.survey.rejected_count), (contents[1].len() as u64, 1));
    repair_with(&world, "state", &decision).await.unwrap();
    let session = world.reading("state").await.unwrap();
    assert_eq!(session.manifest.totals().all().files, contents[1].len() as u64, "the manifest was taken back");
    drop(session);
    all_is_well(&world, "state", &contents).await;
    all_is_well(&world, "fresh", &contents).await;
    // The rejected branch can be looked at still.
    let (repository, state) = world.open(world.directory(), "until").await.unwrap();
    let until: Until = format!("0:{forged}").parse().unwrap();
    let session = Session::open_until(repository, state, until, &Silent).await.unwrap();
    assert_eq!(session.manifest.totals().all().files, 0);
}

#[tokio::test]
async fn a_machine_that_saw_what_was_rejected_stops_until_it_is_told_and_one_that_did_not_goes_on() {
    let (world, contents) = two_snapshots().await;
    drop(world.reading("behind").await.unwrap());
    let forged = forge(&world, &[]).await;
    drop(world.reading("saw").await.unwrap());
    repair_with(&world, "state", &Decision { reject_from: Some(forged), ..Decision::default() }).await.unwrap();
    drop(world.reading("behind").await.unwrap());
    for without_manifest in [false, true] {
        if without_manifest {
            let state = world.open(world.directory(), "saw").await.unwrap().1;
            std::fs::remove_file(state.manifest()).unwrap();
        }
        let error = refused(world.reading("saw").await);
        assert!(
            matches!(&error, LogError::Rejected { epoch: 1, base, seen, host, .. } if *base == forged - 1 && *seen == forged && host == "mender"),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("--accept-epoch 1"), "{error}");
        let backup = world.back_up_with(world.directory(), "saw", &silent(), |_| {}).await;
        assert!(matches!(backup, Err(BackupError::Open(OpenError::Log(LogError::Rejected { .. })))));
        let planned = plan(&world, "saw", &Decision::default()).await.unwrap();
        assert!(planned.refused.is_some() && planned.opens.is_none());
        assert!(repair_with(&world, "saw", &Decision::default()).await.is_err(), "not by itself");
    }
    // With a manifest that knows the rejected entry.
    copy_folder(&world.beside("thief"), &world.beside("told"));
    let (_, state) = world.open(world.directory(), "told").await.unwrap();
    std::fs::remove_dir_all(state.folder()).unwrap();
    let (repository, state) = world.open(world.directory(), "told").await.unwrap();
    drop(Session::open_until(repository, state.clone(), Until { epoch: Some(0), sequence: forged }, &Silent).await.unwrap());
    let seen = Head { epoch: 0, sequence: forged, sha256: log::read_entry(world.directory().as_ref(), forged, &Key::log_entry(forged)).await.unwrap().sha256 };
    state.set_seen(&seen).unwrap();
    assert!(matches!(refused(world.reading("told").await), LogError::Rejected { epoch: 1, .. }));
    let wrong = Decision { accept_epoch: Some(2), ..Decision::default() };
    assert!(matches!(repair_with(&world, "told", &wrong).await, Err(RepairError::NoEpoch { epoch: 2 })));
    for state in ["saw", "told"] {
        let report = repair_with(&world, state, &Decision { accept_epoch: Some(1), ..Decision::default() }).await.unwrap();
        assert_eq!((report.accepted, report.opened.len()), (Some(1), 0));
        all_is_well(&world, state, &contents).await;
    }
}

/// An entry that opens `epoch` after entry `base`, as somebody with the writer's key could write it.
async fn forge_epoch(world: &World, epoch: u32, base: u64) {
    let read = log::read_entry(world.directory().as_ref(), base, &Key::log_entry(base)).await.unwrap();
    forge_opening(world, epoch, read.head(), &[]);
}

/// The same, with any base, and with keys that it says are rejected.
fn forge_opening(world: &World, epoch: u32, base: Head, rejected: &[&Key]) {
    let fact = EpochFact { rejected_count: rejected.len() as u64, rejected: rejected.iter().map(|key| rejection(key)).collect(), ..thiefs_fact(base.epoch) };
    forge_entry(world, epoch, &opening_header(epoch, base), &[Fact::Epoch(Box::new(fact))]);
}

fn rejection(key: &Key) -> log::Rejected {
    log::Rejected { key: key.to_string(), size: 1, sha256: None, why: "so".to_owned() }
}

fn thiefs_fact(base_epoch: u32) -> EpochFact {
    let (host, reason) = ("thief".to_owned(), "trust me".to_owned());
    EpochFact { at: Timestamp::now(), host, base_epoch, reason, rejected_count: 0, rejected: Vec::new(), missing_count: 0 }
}

fn opening_header(epoch: u32, base: Head) -> Header {
    let (written_at, writer) = (Timestamp::now(), WriterId::random());
    Header { format: log::FORMAT, epoch, sequence: base.sequence + 1, previous_sha256: base.sha256, run: None, written_at, writer }
}

/// Under the name of what opens `epoch`.
fn forge_entry(world: &World, epoch: u32, header: &Header, facts: &[Fact]) {
    std::fs::write(log_file(world, &Key::log_opening(epoch, None)), log::encode(header, facts).unwrap()).unwrap();
}

#[tokio::test]
async fn what_opens_an_epoch_says_which_and_builds_on_an_older_one() {
    let (world, _) = two_snapshots().await;
    let base = log::read_entry(world.directory().as_ref(), 2, &Key::log_entry(2)).await.unwrap().head();
    let (header, fact) = (opening_header(3, base), |base_epoch| vec![Fact::Epoch(Box::new(thiefs_fact(base_epoch)))]);
    let opened = async |header: &Header, facts: &[Fact]| {
        forge_entry(&world, 3, header, facts);
        let listing = log::Listing::read(world.directory().as_ref(), &base).await.unwrap();
        log::opening(world.directory().as_ref(), &listing, 3, &BTreeSet::new()).await
    };
    for older in [0, 2] {
        assert_eq!(opened(&header, &fact(older)).await.unwrap().fact.base_epoch, older);
    }
    let wrong = [
        (Header { epoch: 2, ..header.clone() }, fact(0)),
        (Header { epoch: 4, ..header.clone() }, fact(0)),
        (Header { sequence: 0, ..header.clone() }, fact(0)),
        (header.clone(), fact(3)),
        (header.clone(), fact(4)),
        (header.clone(), archived(&world)),
        (header.clone(), Vec::new()),
    ];
    for (header, facts) in &wrong {
        let error = opened(header, facts).await.unwrap_err();
        assert!(matches!(&error, LogError::Epoch { epoch: 3, problem } if problem.ends_with("does not open it")), "{header:?}, {facts:?}: {error}");
    }
}

#[tokio::test]
async fn an_epoch_of_a_thief_stops_who_knows_better_warns_newcomers_and_can_be_rejected() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    // A copy of the manifest knows what the thief's epoch cuts off.
    assert!(world.repository.join(Key::manifest(0, 3).as_str()).is_file());
    forge_epoch(&world, 1, 2).await;
    let error = refused(world.reading("state").await);
    assert!(matches!(error, LogError::Rejected { epoch: 1, base: 2, seen, .. } if seen == last), "{error}");
    assert!(error.hint().unwrap().contains("--reject-epoch 1"));
    // Who never saw more has the thief's word for it, and is told whose.
    let recorder = Recorder::default();
    let (repository, state) = world.open(world.directory(), "fresh").await.unwrap();
    let session = Session::open_for_reading(repository.clone(), state, &recorder).await.unwrap();
    assert_eq!(session.manifest.head().sequence, 3);
    drop(session);
    assert!(recorder.events().iter().any(|event| matches!(event, Event::Warned { message } if message.contains("`thief`"))));
    // It can be read as it was before, without writing anything.
    let state = world.open(world.directory(), "before").await.unwrap().1;
    let session = Session::open_until(repository, state, Until { epoch: Some(0), sequence: last }, &Silent).await.unwrap();
    assert_eq!(session.manifest.snapshots().unwrap().len(), 2);
    drop(session);
    for wrong in [0, 2] {
        let decision = Decision { reject_epoch: Some(wrong), ..Decision::default() };
        assert!(matches!(plan(&world, "state", &decision).await, Err(RepairError::NoEpoch { .. })), "{wrong}");
    }
    let decision = Decision { reject_epoch: Some(1), ..Decision::default() };
    let planned = plan(&world, "state", &decision).await.unwrap();
    assert_eq!((planned.opens, planned.survey.end.sequence, planned.survey.rejected_count), (Some(2), last, 1));
    // The owner has seen all of the log, and yet the repair can be made from a machine that lost its state.
    repair_with(&world, "without-state", &decision).await.unwrap();
    all_is_well(&world, "newcomer", &contents).await;
    // For the owner, nothing was rejected that was ever seen.
    all_is_well(&world, "state", &contents).await;
    assert!(matches!(refused(world.reading("fresh").await), LogError::Rejected { epoch: 2, .. }), "who followed the thief has to be told");
    world.back_up().await;
}

#[tokio::test]
async fn junk_at_the_names_of_epochs_is_repaired_too_and_uses_up_no_numbers() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    let junk = |key: Key| std::fs::write(log_file(&world, &key), format!("junk at {key}")).unwrap();
    // Nobody listens to an epoch that does not follow: the last number there is would be the end of all repairs.
    junk(Key::log_opening(999_999_999, None));
    junk(Key::log_opening(7, None));
    assert!(plan(&world, "state", &Decision::default()).await.unwrap().is_empty());
    all_is_well(&world, "state", &contents).await;
    // Now the next one, the one after that, and an entry of it.
    junk(Key::log_opening(1, None));
    junk(Key::log_opening(3, None));
    junk(Key::log_entry_in(3, last + 2, None));
    let error = refused(world.reading("state").await);
    assert!(matches!(error, LogError::Epoch { epoch: 1, .. }), "{error}");
    assert!(error.hint().unwrap().contains("immich-backup repair"), "{error}");
    let report = repair_log(&world, "state").await;
    assert_eq!(report.opened.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [2, 4], "the second round finds what was prepared for the first");
    all_is_well(&world, "state", &contents).await;
    all_is_well(&world, "fresh", &contents).await;
    // Junk in a number of the epoch itself, a second entry that opens it, and a number before its first.
    world.write("upload/u1/photo-001.jpg", b"changed");
    world.back_up().await;
    let head = world.reading("state").await.unwrap().manifest.head();
    assert_eq!(head.epoch, 4);
    junk(Key::log_entry_in(4, 1, None));
    drop(world.reading("fresh").await.unwrap());
    junk(Key::log_entry_in(4, head.sequence + 1, None));
    junk(Key::log_opening(4, Some(&"junk")));
    assert!(world.reading("another").await.is_err());
    let report = repair_log(&world, "state").await;
    assert_eq!(report.opened.iter().map(|(epoch, _)| *epoch).collect::<Vec<_>>(), [5]);
    assert_eq!(world.reading("another").await.unwrap().manifest.head().sequence, head.sequence + 1);
    let third = support::contents(&world.library);
    for state in ["state", "yet-another"] {
        all_is_well(&world, state, &[contents[0].clone(), contents[1].clone(), third.clone()]).await;
    }
}

#[tokio::test]
async fn what_claims_to_open_an_epoch_and_does_not_build_on_the_log_makes_it_no_shorter() {
    let (world, contents) = two_snapshots().await;
    let (last, whole) = (entries(&world), world.beside("whole"));
    copy_folder(&world.repository, &whole);
    copy_folder(&world.beside("state"), &world.beside("state-before"));
    let wrong = |sequence| Head { epoch: 0, sequence, sha256: Sha256::of(b"nothing there") };
    let end = log::read_entry(world.directory().as_ref(), last, &Key::log_entry(last)).await.unwrap().head();
    let another = |number| Key::log_entry_in(0, number, Some(&"another"));
    for case in 0..6 {
        for folder in [&world.repository, &world.beside("state"), &world.beside("nobody"), &world.beside("fresh")] {
            drop(std::fs::remove_dir_all(folder));
        }
        copy_folder(&whole, &world.repository);
        copy_folder(&world.beside("state-before"), &world.beside("state"));
        match case {
            0 => forge_opening(&world, 1, wrong(0), &[]),
            1 => forge_opening(&world, 1, wrong(2), &[]),
            2 => forge_opening(&world, 1, wrong(last + 7), &[]),
            // The right base, and a hole below it.
            3 => forge_opening(&world, 1, end, &[&Key::log_entry(2)]),
            4 => {
                std::fs::write(log_file(&world, &another(2)), b"junk").unwrap();
                forge_opening(&world, 1, end, &[&Key::log_entry(2)]);
            }
            // A base that is there, and no part of the log.
            _ => {
                std::fs::copy(log_file(&world, &Key::log_entry(3)), log_file(&world, &another(2))).unwrap();
                let sha256 = Sha256::of(&std::fs::read(log_file(&world, &another(2))).unwrap());
                forge_opening(&world, 1, Head { epoch: 0, sequence: 2, sha256 }, &[]);
            }
        }
        // Where a copy of the manifest stands for what is below, a reader has no need of it.
        assert!(case == 4 || world.reading("fresh").await.is_err(), "{case}");
        drop(std::fs::remove_dir_all(world.beside("fresh")));
        for state in ["nobody", "state"] {
            let planned = plan(&world, state, &Decision::default()).await.unwrap();
            assert_eq!((planned.opens, planned.survey.end), (Some(2), end), "{case}: {:?}", planned.survey.problems);
            assert_eq!((planned.refused, planned.survey.told.facts > 1), (None, case == 5), "{case}");
        }
        repair_log(&world, "state").await;
        all_is_well(&world, "state", &contents).await;
        all_is_well(&world, "fresh", &contents).await;
    }
}

#[tokio::test]
async fn what_was_hidden_behind_the_next_epoch_takes_nothing_with_it_that_nobody_was_shown() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    std::fs::write(log_file(&world, &Key::log_entry(last + 1)), b"junk").unwrap();
    forge_opening(&world, 2, Head { epoch: 0, sequence: 0, sha256: Sha256::of(b"x") }, &[]);
    forge_epoch(&world, 4, 2).await;
    let mut planned = Vec::new();
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let ended = repair::repair_log(&repository, &state, &Decision::default(), "mender", |plan| planned.push(plan.survey.end.sequence)).await;
    assert!(matches!(&ended, Err(RepairError::Open(OpenError::Log(LogError::Rejected { epoch: 4, base: 2, .. })))), "{ended:?}");
    assert_eq!(planned, [last, last + 1], "each plan is shown, and each goes on from the one before");
    repair_with(&world, "state", &Decision { reject_epoch: Some(4), ..Decision::default() }).await.unwrap();
    all_is_well(&world, "state", &contents).await;
    all_is_well(&world, "fresh", &contents).await;
}

#[tokio::test]
async fn a_log_that_changes_under_a_repair_is_not_repaired_twice() {
    let (world, _) = two_snapshots().await;
    let last = entries(&world);
    std::fs::write(log_file(&world, &Key::log_entry(last + 1)), b"junk").unwrap();
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let damage = |_: &LogPlan| Tampered::with(&log_file(&world, &Key::log_entry(last)), |_| Some(b"the disk".to_vec())).keep();
    let ended = repair::repair_log(&repository, &state, &Decision::default(), "mender", damage).await;
    assert!(matches!(ended, Err(RepairError::NotAsPlanned { epoch: 1, .. })), "{ended:?}");
    assert!(!log_file(&world, &Key::log_opening(2, None)).exists());
}

#[tokio::test]
async fn damage_to_what_opened_an_epoch_brings_nothing_back_that_it_rejected() {
    let (world, contents) = two_snapshots().await;
    let forged = forge(&world, &archived(&world)).await;
    repair_with(&world, "state", &Decision { reject_from: Some(forged), ..Decision::default() }).await.unwrap();
    world.write("upload/third.jpg", &noise(3, 300));
    world.back_up().await;
    let third = [contents[0].clone(), contents[1].clone(), support::contents(&world.library)];
    let (head, opening) = (world.reading("state").await.unwrap().manifest.head(), log_file(&world, &Key::log_opening(1, None)));
    let good = std::fs::read(&opening).unwrap();
    // Damaged.
    Tampered::with(&opening, |mut bytes| {
        bytes[20] ^= 1;
        Some(bytes)
    })
    .keep();
    for state in ["state", "nobody"] {
        let ended = repair_with(&world, state, &Decision::default()).await;
        assert!(matches!(ended, Err(RepairError::UnreadEpoch { epoch: 1, first }) if first == forged + 1), "{ended:?}");
        let hint = ended.unwrap_err().hint().unwrap();
        assert!(hint.contains(&format!("--reject-from {forged}`")) && hint.contains("--reject-epoch 1"), "{hint}");
    }
    let before = world.beside("before");
    copy_folder(&world.repository, &before);
    repair_with(&world, "nobody", &Decision { reject_from: Some(forged), ..Decision::default() }).await.unwrap();
    all_is_well(&world, "nobody", &contents).await;
    std::fs::remove_dir_all(&world.repository).unwrap();
    copy_folder(&before, &world.repository);
    // There twice.
    Tampered::with(&opening, |_| Some(good.clone())).keep();
    std::fs::write(log_file(&world, &Key::log_opening(1, Some(&"x"))), &good).unwrap();
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    assert_eq!((planned.survey.end, planned.survey.rejected_count, planned.refused), (head, 1, None), "{:?}", planned.survey.problems);
    // Rejected by somebody who says that he builds on it.
    forge_opening(&world, 2, head, &[&Key::log_opening(1, None), &Key::log_opening(1, Some(&"x"))]);
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    assert_eq!((planned.opens, planned.survey.end, planned.survey.rejected_count, planned.refused), (Some(3), head, 2, None), "{:?}", planned.survey.problems);
    repair_log(&world, "state").await;
    all_is_well(&world, "state", &third).await;
    all_is_well(&world, "fresh", &third).await;
}

#[tokio::test]
async fn an_object_too_large_for_an_entry_is_damage_that_can_be_repaired() {
    let (world, contents) = two_snapshots().await;
    let junk = log_file(&world, &Key::log_entry(entries(&world) + 1));
    std::fs::File::create(&junk).unwrap().set_len(immich_backup_core::budget::LOG_ENTRY_BYTES_MAX + 1).unwrap();
    let error = refused(world.reading("state").await);
    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    assert_eq!(repair_log(&world, "state").await.opened.len(), 1);
    all_is_well(&world, "state", &contents).await;
}

#[tokio::test]
async fn entries_that_are_gone_are_gone_on_from_and_the_machine_that_saw_them_says_so() {
    let (world, contents) = two_snapshots().await;
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    let last = entries(&world);
    for gone in [last - 1, last] {
        std::fs::remove_file(log_file(&world, &Key::log_entry(gone))).unwrap();
    }
    assert!(matches!(refused(world.reading("state").await), LogError::WentBack { .. }));
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    assert_eq!((planned.opens, planned.survey.missing_count, planned.survey.rejected_count), (Some(1), 2, 0), "{:?}", planned.survey.problems);
    assert!(plan(&world, "nobody", &Decision::default()).await.unwrap().is_empty(), "nobody else can know");
    repair_log(&world, "state").await;
    let report = world.back_up().await;
    assert_eq!(report.counts.sent.files, 0, "what the lost entries spoke of is taken up");
    let session = world.reading("fresh").await.unwrap();
    assert_eq!(session.manifest.epochs().unwrap()[0].fact.missing_count, 2);
    let to = world.beside("restored");
    support::restore_from(&session, "latest", &to).await.unwrap();
    assert!(support::contents(&to) == contents[1]);
}

#[tokio::test]
async fn of_two_machines_that_repair_at_once_one_yields() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    std::fs::write(log_file(&world, &Key::log_entry(last + 1)), b"junk").unwrap();
    // What another machine would write, made on a copy.
    let other = World::empty();
    copy_folder(&world.repository, &other.repository);
    repair_log(&other, "other").await;
    let opening = Key::log_opening(1, None);
    let bytes = std::fs::read(log_file(&other, &opening)).unwrap();
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let racing = repair::repair_log(&repository, &state, &Decision::default(), "late", |_| std::fs::write(log_file(&world, &opening), &bytes).unwrap()).await;
    assert!(matches!(racing, Err(RepairError::Yielded { epoch: 1 })), "{racing:?}");
    assert_eq!(std::fs::read(log_file(&world, &opening)).unwrap(), bytes);
    // Nothing that was seen here was rejected: it goes on by the other one's repair.
    all_is_well(&world, "state", &contents).await;
    world.back_up().await;
}

#[tokio::test]
async fn a_repair_that_dies_at_any_request_is_gone_on_with() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    std::fs::write(log_file(&world, &Key::log_entry(last + 1)), b"junk").unwrap();
    for (fault, is_there) in [(Fault::Refused, false), (Fault::AnswerLost, true)] {
        let faulty = FaultyStore::new(&world.repository);
        faulty.fail("log/9000000001", fault, 0, 99);
        let (repository, state) = world.open(faulty.store(), "state").await.unwrap();
        let ended = repair::repair_log(&repository, &state, &Decision::default(), "mender", |_| {}).await;
        assert_eq!(log_file(&world, &Key::log_opening(1, None)).is_file(), is_there, "{ended:?}");
        assert_eq!(ended.is_ok(), is_there, "{ended:?}");
    }
    let again = repair_log(&world, "state").await;
    assert!(again.opened.is_empty(), "a lost answer opens no second epoch");
    all_is_well(&world, "state", &contents).await;
}

#[tokio::test]
async fn a_repair_that_died_right_after_its_entry_is_known_as_ones_own() {
    let (world, contents) = two_snapshots().await;
    let forged = forge(&world, &archived(&world)).await;
    drop(world.reading("state").await.unwrap());
    let before = world.beside("before");
    copy_folder(&world.beside("state"), &before);
    repair_with(&world, "state", &Decision { reject_from: Some(forged), ..Decision::default() }).await.unwrap();
    // All that was written of the state is that this epoch is its own.
    let state = world.open(world.directory(), "state").await.unwrap().1;
    let accepted = state.folder().join("accepted-epochs.json");
    let kept = std::fs::read(&accepted).unwrap();
    copy_folder(&before, &world.beside("state"));
    std::fs::write(&accepted, kept).unwrap();
    all_is_well(&world, "state", &contents).await;
}

#[tokio::test]
async fn a_log_is_not_repaired_under_a_run_that_may_be_alive() {
    let (world, _) = two_snapshots().await;
    let (run, writer) = (RunId::random(), WriterId::random());
    let started = |ago: i64| {
        let at = Timestamp::now() - SignedDuration::from_secs(ago);
        (at, Fact::RunStarted(log::RunStarted { at, host: "elsewhere".to_owned(), roots: Vec::new(), accepts: None, shard: None }))
    };
    for (ago, is_busy) in [(600, false), (1, true)] {
        let session = world.reading("reader").await.unwrap();
        let head = session.manifest.head();
        let (written_at, fact) = started(ago);
        let header = Header { format: 1, epoch: head.epoch, sequence: head.sequence + 1, previous_sha256: head.sha256, run: Some(run), written_at, writer };
        let bytes = log::encode(&header, &[fact]).unwrap();
        std::fs::write(log_file(&world, &Key::log_entry_in(head.epoch, head.sequence + 1, None)), bytes).unwrap();
        drop(session);
        std::fs::write(log_file(&world, &Key::log_entry_in(head.epoch, head.sequence + 2, None)), b"junk").unwrap();
        let ended = repair_with(&world, "state", &Decision::default()).await;
        assert_eq!(matches!(ended, Err(RepairError::Busy { .. })), is_busy, "{ended:?}");
        // Nor where all that it wrote is what is to be rejected.
        let decision = Decision { reject_from: Some(head.sequence + 1), ..Decision::default() };
        let ended = if is_busy { repair_with(&world, "state", &decision).await } else { ended };
        assert_eq!(matches!(ended, Err(RepairError::Busy { .. })), is_busy, "{ended:?}");
        drop(std::fs::remove_dir_all(world.beside("reader")));
    }
}

#[tokio::test]
async fn an_entry_that_is_there_twice_asks_for_no_choice() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    for number in [2, last] {
        std::fs::copy(log_file(&world, &Key::log_entry(number)), log_file(&world, &Key::log_entry_in(0, number, Some(&RunId::random())))).unwrap();
    }
    assert!(matches!(refused(world.reading("fresh").await), LogError::Fork { sequence: 2, .. }));
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    assert_eq!((planned.survey.branches.len(), planned.survey.end.sequence, planned.survey.rejected_count), (0, last, 2));
    repair_log(&world, "state").await;
    all_is_well(&world, "state", &contents).await;
    all_is_well(&world, "fresh", &contents).await;
}

#[tokio::test]
async fn a_run_under_which_the_log_was_repaired_announces_no_snapshot() {
    let (world, contents) = two_snapshots().await;
    let last = entries(&world);
    let mut session = world.writing(world.directory(), "state").await.unwrap();
    // Another machine, which knows nothing of the run that is about to end.
    repair_with(&world, "other", &Decision { reject_from: Some(last), ..Decision::default() }).await.unwrap();
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let told = session.commit(Some(RunId::random()), &[Fact::Snapshot(Box::new(snapshot.fact))], &Silent).await;
    assert!(matches!(refused(told), LogError::Rejected { epoch: 1, .. }));
    drop(session);
    assert_eq!(entries(&world), last, "nothing was written where it does not count");
    repair_with(&world, "state", &Decision { accept_epoch: Some(1), ..Decision::default() }).await.unwrap();
    all_is_well(&world, "state", &contents[..1]).await;
}

#[tokio::test]
async fn of_a_fork_both_branches_are_shown_and_the_chosen_one_goes_on() {
    let world = World::with_files(60).await;
    world.back_up().await;
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    let last = entries(&world);
    // Two machines that did not see one another: each in a copy, then all of it in one place, under the names of a store that refuses nobody.
    let mut names = Vec::new();
    let mut held = Vec::new();
    let both = world.beside("both");
    copy_folder(&world.repository, &both);
    for (machine, files) in [("a", 1_u64), ("b", 3)] {
        let copy = World::empty();
        copy_folder(&world.repository, &copy.repository);
        copy_folder(&world.library, &copy.library);
        for number in 0..files {
            copy.write(&format!("upload/{machine}/{number}.jpg"), &noise(1_000 * files + number, 300));
        }
        let report = copy.back_up_with(copy.directory(), machine, &silent(), |plan| plan.host = machine.to_owned()).await.unwrap();
        assert_eq!(report.ending, Ending::Snapshot);
        drop(std::fs::remove_dir_all(copy.repository.join("manifests")));
        for number in last + 1..=entries(&copy) {
            let to = Key::log_entry_in(0, number, Some(&report.run));
            std::fs::rename(log_file(&copy, &Key::log_entry(number)), copy.repository.join(to.as_str())).unwrap();
        }
        held.push(support::contents(&copy.library));
        names.push(report.run);
        merge(&copy.repository, &both);
    }
    std::fs::remove_dir_all(&world.repository).unwrap();
    std::fs::rename(&both, &world.repository).unwrap();
    let error = refused(world.reading("state").await);
    assert!(matches!(error, LogError::Fork { sequence, .. } if sequence == last + 1), "{error}");
    assert!(error.hint().unwrap().contains("--keep"), "{error}");
    let planned = plan(&world, "state", &Decision::default()).await.unwrap();
    let mut branches: Vec<_> = planned
        .survey
        .branches
        .iter()
        .map(|branch| (branch.host.clone().unwrap(), branch.name.clone(), branch.told.stored, branch.told.snapshots.len()))
        .collect();
    branches.sort();
    assert_eq!(branches, [("a".to_owned(), names[0].to_string(), 61, 1), ("b".to_owned(), names[1].to_string(), 63, 1)]);
    for keep in [None, Some(String::new()), Some("nobody".to_owned())] {
        let ended = repair_with(&world, "state", &Decision { keep, ..Decision::default() }).await;
        assert!(matches!(ended, Err(RepairError::Undecided { branches: 2 })), "{ended:?}");
    }
    let decision = Decision { keep: Some(names[1].short()), ..Decision::default() };
    repair_with(&world, "state", &decision).await.unwrap();
    // Who saw the other branch is told who decided, and can agree.
    let lost = Key::log_entry_in(0, last + 1, Some(&names[0]));
    let seen = log::read_entry(world.directory().as_ref(), last + 1, &lost).await.unwrap().head();
    world.open(world.directory(), "loser").await.unwrap().1.set_seen(&seen).unwrap();
    let error = refused(world.reading("loser").await);
    assert!(matches!(error, LogError::Rejected { epoch: 1, .. }), "{error}");
    assert!(plan(&world, "loser", &Decision::default()).await.unwrap().refused.is_some());
    repair_with(&world, "loser", &Decision { accept_epoch: Some(1), ..Decision::default() }).await.unwrap();
    drop(world.reading("loser").await.unwrap());
    let session = world.reading("fresh").await.unwrap();
    assert_eq!(session.manifest.latest_snapshot().unwrap().unwrap().id, names[1]);
    let to = world.beside("restored");
    support::restore_from(&session, "latest", &to).await.unwrap();
    assert!(support::contents(&to) == held[1]);
    drop(session);
    // What the other one stored is taken up where its files are seen again.
    std::fs::remove_dir_all(&world.library).unwrap();
    for files in &held {
        for (path, content) in files {
            world.write(path.to_str().unwrap(), content);
        }
    }
    let report = world.back_up().await;
    assert_eq!((report.counts.sent.files, report.counts.adopted.files), (0, 1));
    // The copies of the manifest were taken out of the way; nothing else is.
    let findings = world.verify("fresh", false).await.unwrap().findings;
    assert!(findings.iter().all(|finding| finding.key.starts_with("manifests/")), "{findings:?}");
}

/// Adds all files below `from` that `to` has not.
fn merge(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        if path.is_dir() {
            merge(&path, &there);
        } else if !there.exists() {
            std::fs::copy(&path, &there).unwrap();
        }
    }
}

async fn sources(world: &World) -> Vec<LibrarySource> {
    vec![LibrarySource { root: Root::Library, path: world.library.clone(), mounts: Vec::new() }]
}

async fn heal(world: &World, with_library: bool) -> (ObjectsPlan, ObjectsReport) {
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let mut session = repair::open(repository, state, &Silent).await.unwrap();
    let sources = if with_library { sources(world).await } else { Vec::new() };
    let stop = CancellationToken::new();
    let planned = repair::prepare_objects(&session, ObjectsOptions { sources }, &Silent, &stop).await.unwrap();
    let before = objects(world);
    let report = planned.run(&mut session, &Silent, &stop).await.unwrap();
    nothing_was_changed(&before, world);
    (planned, report)
}

#[tokio::test]
async fn what_is_missing_or_damaged_in_the_store_is_stored_again_and_old_snapshots_have_it() {
    let (world, contents) = two_snapshots().await;
    let object = |name: &str| world.repository.join("library/upload").join(name);
    // Missing; damaged; damaged, and moved in the library since; damaged, and nowhere any more; whole again.
    std::fs::remove_file(object("u1/photo-001.jpg")).unwrap();
    let spoil = |name: &str| {
        Tampered::with(&object(name), |mut bytes| {
            bytes[5] ^= 1;
            Some(bytes)
        })
    };
    spoil("u2/photo-002.jpg").keep();
    spoil("u0/photo-003.jpg").keep();
    spoil("u0/photo-000.jpg").keep();
    let for_a_while = spoil("u1/photo-004.jpg");
    assert_eq!(world.verify("state", true).await.unwrap().damaged, 5);
    drop(for_a_while);
    world.rename("upload/u0/photo-003.jpg", "upload/moved/elsewhere.jpg");
    let (planned, report) = heal(&world, true).await;
    let found: BTreeMap<_, _> = planned.objects.iter().map(|wanted| (wanted.key.rsplit('/').next().unwrap(), &wanted.found)).collect();
    assert!(matches!(found["photo-001.jpg"], Found::File { .. }) && matches!(found["photo-002.jpg"], Found::File { .. }), "{found:?}");
    assert!(matches!(found["photo-003.jpg"], Found::File { path } if path.to_string() == "upload/moved/elsewhere.jpg"), "{found:?}");
    assert!(matches!(found["photo-000.jpg"], Found::Nowhere { .. }), "{found:?}");
    assert_eq!(found["photo-004.jpg"], &Found::Whole);
    let lost: Vec<_> = planned.lost().map(|wanted| wanted.files.clone()).collect();
    assert_eq!(lost, [vec!["upload/u0/photo-000.jpg".to_owned()]]);
    assert_eq!((report.created, report.relocated, report.whole, report.failures.len()), (1, 2, 1, 0), "{report:?}");
    // The second snapshot never had what is lost, and is whole; of the first, everything but that comes back.
    let session = world.reading("fresh").await.unwrap();
    let snapshots = session.manifest.snapshots().unwrap();
    let restored = async |number: usize| {
        let to = world.beside(&format!("restored-{number}"));
        let report = support::restore_from(&session, &snapshots[number].id.to_string(), &to).await.unwrap();
        (report.failed, support::contents(&to))
    };
    let mut first = contents[0].clone();
    first.remove(Path::new("upload/u0/photo-000.jpg")).unwrap();
    assert!(restored(0).await == (1, first));
    assert!(restored(1).await == (0, contents[1].clone()));
    // By the objects that the log names, without looking for others: as a script does.
    let mut wrong = Vec::new();
    session
        .manifest
        .each_file::<immich_backup_core::repository::manifest::ManifestError>(snapshots[0].sequence, |row| {
            let bytes = std::fs::read(world.repository.join(&row.key)).unwrap_or_default();
            if Sha256::of(&bytes) != row.digests.sha256 {
                wrong.push(row.file.to_string());
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(wrong, ["upload/u0/photo-000.jpg"]);
    drop(session);
    let verified = world.verify("state", true).await.unwrap();
    assert_eq!((verified.damaged, verified.lost, verified.new), (1, 1, 0), "{:?}", verified.findings);
    // Again: nothing but what is lost is left, and nothing is stored.
    let (planned, report) = heal(&world, true).await;
    assert_eq!((planned.objects.len(), planned.healable(), report), (1, 0, ObjectsReport::default()));
    // A backup sends nothing of it again.
    assert_eq!(world.back_up().await.counts.sent.files, 0);
}

#[tokio::test]
async fn only_the_right_bytes_are_stored_again() {
    let (world, _) = two_snapshots().await;
    std::fs::remove_file(world.repository.join("library/upload/u1/photo-001.jpg")).unwrap();
    world.verify("state", true).await.unwrap();
    let size = std::fs::metadata(world.library.join("upload/u1/photo-001.jpg")).unwrap().len();
    world.write("upload/u1/photo-001.jpg", &noise(4_711, usize::try_from(size).unwrap()));
    let (planned, report) = heal(&world, true).await;
    assert!(matches!(planned.objects[0].found, Found::Nowhere { .. }), "{:?}", planned.objects);
    assert_eq!(report, ObjectsReport::default());
    assert!(!world.repository.join("library/upload/u1/photo-001.jpg").exists());
    let (planned, _) = heal(&world, false).await;
    assert_eq!(planned.lost().count(), 1, "without a library");
}

#[tokio::test]
async fn a_damaged_live_file_gets_its_bytes_back_and_the_damaged_ones_are_kept() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let world = World::with_files(30).await;
    std::fs::set_permissions(world.library.join("upload/u1/photo-001.jpg"), std::fs::Permissions::from_mode(0o640)).unwrap();
    world.back_up().await;
    let good = support::contents(&world.library);
    let rot = |name: &str| {
        let path = world.library.join(name);
        let (mut bytes, at) = (std::fs::read(&path).unwrap(), path.metadata().unwrap().modified().unwrap());
        bytes[100] ^= 0x20;
        std::fs::write(&path, &bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
        bytes
    };
    let rotten = ["upload/u1/photo-001.jpg", "upload/u2/photo-002.jpg", "upload/u0/photo-003.jpg"].map(|name| (name, rot(name)));
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(world.library.join("upload/u1/photo-001.jpg"), Some(4_711), Some(4_712)).unwrap();
    }
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let session = repair::open(repository, state.clone(), &Silent).await.unwrap();
    let stop = CancellationToken::new();
    let options = LibraryOptions { sources: sources(&world).await, read_data: true, keep_damaged: None };
    let inside = LibraryOptions { keep_damaged: Some(world.library.join("kept")), ..options.clone() };
    assert!(matches!(repair::prepare_library(&session, inside, &Silent, &stop).await, Err(RepairError::Nested { .. })));
    let planned = repair::prepare_library(&session, options.clone(), &Silent, &stop).await.unwrap();
    let mut offered: Vec<_> = planned.files.iter().map(|file| (file.file.to_string(), file.why)).collect();
    offered.sort();
    assert_eq!(offered, ["upload/u0/photo-003.jpg", "upload/u1/photo-001.jpg", "upload/u2/photo-002.jpg"].map(|name| (name.to_owned(), Healing::BitRot)));
    assert!(support::contents(&world.library) != good, "a plan changes nothing");
    // One changes between the plan and its execution, by its ctime alone.
    let late = world.library.join("upload/u0/photo-003.jpg");
    std::fs::set_permissions(&late, std::fs::Permissions::from_mode(0o600)).unwrap();
    let owner = world.library.join("upload/u1/photo-001.jpg").metadata().unwrap().uid();
    // Somebody else writes there: nothing is begun.
    let other = std::fs::File::open(&world.library).unwrap();
    other.lock().unwrap();
    assert!(matches!(planned.run(&session, &Silent, &stop).await, Err(RepairError::Busy { .. })));
    drop(other);
    let report = planned.run(&session, &Silent, &stop).await.unwrap();
    assert_eq!((report.healed.len(), report.kept.len(), report.failures.len()), (2, 2, 1), "{report:?}");
    assert!(report.failures[0].0.ends_with("photo-003.jpg") && report.failures[0].1.contains("changed"), "{report:?}");
    for (name, bytes) in &rotten {
        let is_late = name.ends_with("photo-003.jpg");
        let live = std::fs::read(world.library.join(name)).unwrap();
        assert!(if is_late { live == *bytes } else { live == good[Path::new(name)] }, "{name}");
        let kept = report.kept.iter().any(|path| std::fs::read(path).unwrap() == *bytes);
        assert_eq!(kept, !is_late, "{name}");
    }
    let mended = world.library.join("upload/u1/photo-001.jpg").metadata().unwrap();
    assert_eq!((mended.mode() & 0o777, mended.uid()), (0o640, owner));
    assert!(report.kept.iter().all(|path| path.starts_with(state.folder())));
    let left: Vec<_> = std::fs::read_dir(world.library.join("upload/u1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_str().unwrap().starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    drop(session);
    let report = world.back_up_with(world.directory(), "state", &silent(), |_| {}).await.unwrap();
    assert_eq!(report.counts.sent.files, 1, "the one that was left alone has other permissions and content");
}

#[tokio::test]
async fn a_live_file_behind_a_link_is_left_alone() {
    let world = World::with_files(6).await;
    world.back_up().await;
    let outside = world.beside("outside");
    std::fs::create_dir(&outside).unwrap();
    copy_folder(&world.library.join("upload/u1"), &outside);
    let victim = outside.join("photo-001.jpg");
    let (mut bytes, at) = (std::fs::read(&victim).unwrap(), world.library.join("upload/u1/photo-001.jpg").metadata().unwrap().modified().unwrap());
    bytes[10] ^= 1;
    std::fs::write(&victim, &bytes).unwrap();
    std::fs::File::options().write(true).open(&victim).unwrap().set_modified(at).unwrap();
    std::fs::remove_dir_all(world.library.join("upload/u1")).unwrap();
    std::os::unix::fs::symlink(&outside, world.library.join("upload/u1")).unwrap();
    let session = world.reading("state").await.unwrap();
    let options = LibraryOptions { sources: sources(&world).await, read_data: true, keep_damaged: None };
    let stop = CancellationToken::new();
    let planned = repair::prepare_library(&session, options, &Silent, &stop).await.unwrap();
    assert!(planned.files.is_empty(), "{:?}", planned.files);
    planned.run(&session, &Silent, &stop).await.unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), bytes);
}

#[tokio::test]
async fn the_identity_is_kept_and_created_again_byte_for_byte() {
    use immich_backup_core::repair::IdentityRepair;
    let (world, contents) = two_snapshots().await;
    let (_, state) = world.open(world.directory(), "state").await.unwrap();
    let path = world.repository.join("format.json");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let store = world.directory();
    assert_eq!(repair::repair_identity(store.as_ref(), None, true).await.unwrap(), IdentityRepair::Unknown);
    assert!(matches!(repair::repair_identity(store.as_ref(), Some(&state), false).await.unwrap(), IdentityRepair::Restorable(_)));
    assert!(!path.exists(), "a plan changes nothing");
    // A disk that is not mounted: nothing begins there.
    let away = world.beside("away");
    std::fs::rename(&world.repository, &away).unwrap();
    std::fs::create_dir(&world.repository).unwrap();
    assert_eq!(repair::repair_identity(store.as_ref(), Some(&state), true).await.unwrap(), IdentityRepair::Nothing);
    assert!(objects(&world).is_empty(), "nothing was written to the empty folder");
    std::fs::remove_dir(&world.repository).unwrap();
    std::fs::rename(&away, &world.repository).unwrap();
    assert!(matches!(repair::repair_identity(store.as_ref(), Some(&state), true).await.unwrap(), IdentityRepair::Restorable(_)));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    all_is_well(&world, "state", &contents).await;
    Tampered::with(&path, |_| Some(b"{}".to_vec())).keep();
    let taken = repair::repair_identity(store.as_ref(), Some(&state), true).await.unwrap();
    let IdentityRepair::Taken(kept) = taken else { panic!("{taken:?}") };
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    assert_eq!(std::fs::read(&path).unwrap(), b"{}", "nothing is overwritten");
}

#[test]
fn a_log_position_is_a_number_or_an_epoch_and_a_number() {
    let until = |text: &str| text.parse::<Until>();
    assert_eq!((until("42"), until("1:42")), (Ok(Until { epoch: None, sequence: 42 }), Ok(Until { epoch: Some(1), sequence: 42 })));
    assert!(until("x").is_err() && until("1:").is_err() && until(":1").is_err() && until("-1").is_err());
}
