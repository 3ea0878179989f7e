//! Runs that stop Immich: what is done while it is down, that it is up again on every way out, and what a stage is good for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

mod support;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use immich_backup_core::backup::stage::leftovers;
use immich_backup_core::backup::{self, BackupError, Downtime, DowntimeError, Ending, Plan, Source, Up};
use immich_backup_core::database::client::Client;
use immich_backup_core::database::compress::Compression;
use immich_backup_core::database::connection::Connection;
use immich_backup_core::event::{Event, Monitor, Recorder, Silent};
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{Root, RootPath};
use immich_backup_core::repository::Session;
use immich_backup_core::restore;
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use support::{Fault, FaultyStore, World, contents, files, noise, silent, workers};
use tokio_util::sync::CancellationToken;

/// Somebody does something at a moment of the stack's.
type Doing = Box<dyn Fn() + Send + Sync>;

/// A stack that notes what is asked of it, and does what it is told to at each step.
#[derive(Default)]
struct Stack {
    calls: Mutex<Vec<&'static str>>,
    down: Mutex<bool>,
    /// At which call something happens.
    doing: Mutex<Vec<(&'static str, Doing)>>,
    /// The call that fails.
    fails: Mutex<Option<&'static str>>,
    disturbed: bool,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("calls", &self.calls).finish_non_exhaustive()
    }
}

impl Stack {
    fn at(call: &'static str, doing: impl Fn() + Send + Sync + 'static) -> Self {
        let stack = Self::default();
        stack.doing.lock().unwrap().push((call, Box::new(doing)));
        stack
    }

    fn failing(call: &'static str) -> Self {
        let stack = Self::default();
        *stack.fails.lock().unwrap() = Some(call);
        stack
    }

    fn called(&self, call: &'static str) -> Result<(), DowntimeError> {
        self.calls.lock().unwrap().push(call);
        self.doing.lock().unwrap().iter().filter(|(at, _)| *at == call).for_each(|(_, doing)| doing());
        match *self.fails.lock().unwrap() {
            Some(fails) if fails == call => {
                Err(DowntimeError { what: format!("cannot do {call}"), hint: Some("try `docker compose up -d`".to_owned()), source: None })
            }
            _ => Ok(()),
        }
    }

    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn is_down(&self) -> bool {
        *self.down.lock().unwrap()
    }
}

#[async_trait]
impl Downtime for Stack {
    async fn database_alone(&self) -> Result<(), DowntimeError> {
        *self.down.lock().unwrap() = true;
        self.called("database alone")
    }

    async fn all_stopped(&self) -> Result<(), DowntimeError> {
        self.called("all stopped")
    }

    async fn still_down(&self) -> Result<bool, DowntimeError> {
        self.called("still down?")?;
        Ok(!self.disturbed)
    }

    async fn up_again(&self) -> Result<Up, DowntimeError> {
        self.called("up again")?;
        *self.down.lock().unwrap() = false;
        Ok(Up { downtime: Duration::from_millis(1_234) })
    }
}

/// How many files were copied, if that came to its end.
fn staged_files(events: &Recorder) -> Option<u64> {
    events.events().iter().find_map(|event| if let Event::StagingFinished { files, .. } = event { Some(*files) } else { None })
}

fn warnings(events: &Recorder) -> String {
    events.events().iter().filter_map(|event| if let Event::Warned { message } = event { Some(format!("{message}\n")) } else { None }).collect()
}

fn postgres(path: PathBuf) -> Source {
    Source { root: Root::Postgres, path, server_path: None, mounts: Vec::new() }
}

/// A folder like PostgreSQL's.
fn cluster(world: &World) -> PathBuf {
    let folder = world.beside("pgdata");
    for (path, content) in [("PG_VERSION", &b"18\n"[..]), ("global/pg_control", b"control"), ("base/1/112", b"rows"), ("pg_wal/1", b"wal")] {
        fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
        fs::write(folder.join(path), content).unwrap();
    }
    folder
}

fn stage_of(world: &World) -> PathBuf {
    let stage = world.beside("stage");
    fs::create_dir_all(&stage).unwrap();
    stage
}

/// Names in the folder `stage`, as seen now.
fn entries(stage: &Path) -> Vec<String> {
    fs::read_dir(stage).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

struct Done {
    result: Result<backup::Report, BackupError>,
    events: Arc<Recorder>,
    stack: Arc<Stack>,
}

impl Done {
    fn staged(&self) -> Option<u64> {
        staged_files(&self.events)
    }

    fn report(&self) -> &backup::Report {
        self.result.as_ref().unwrap()
    }
}

async fn run(world: &World, store: Option<&FaultyStore>, stack: Stack, change: impl FnOnce(&mut Plan)) -> Done {
    let (stack, events) = (Arc::new(stack), Arc::new(Recorder::default()));
    let monitor: Arc<dyn Monitor> = events.clone();
    let store = store.map_or_else(|| world.directory(), FaultyStore::store);
    let downtime: Arc<dyn Downtime> = stack.clone();
    let result = Box::pin(world.back_up_with(store, "state", &monitor, |plan| {
        plan.downtime = Some(downtime);
        change(plan);
    }))
    .await;
    Done { result, events, stack }
}

async fn staged(world: &World, stack: Stack) -> Done {
    let stage = stage_of(world);
    run(world, None, stack, |plan| plan.stage = Some(stage)).await
}

const ALL: [&str; 4] = ["database alone", "all stopped", "still down?", "up again"];
const WITHOUT_POSTGRES: [&str; 3] = ["database alone", "still down?", "up again"];

#[tokio::test]
async fn immich_is_down_until_all_is_stored_and_with_a_stage_only_until_it_is_copied() {
    for with_stage in [false, true] {
        let world = World::with_files(20).await;
        let (pgdata, stage, repository) = (cluster(&world), stage_of(&world), world.repository.clone());
        let stored = Arc::new(Mutex::new(0));
        let counted = Arc::clone(&stored);
        let stack = Stack::at("up again", move || *counted.lock().unwrap() = fs::read_dir(repository.join("library")).map_or(0, Iterator::count));
        let done = run(&world, None, stack, |plan| {
            plan.sources.push(postgres(pgdata));
            plan.stage = with_stage.then(|| stage.clone());
        })
        .await;
        let report = done.report();
        assert_eq!((&report.ending, report.downtime, &report.not_up), (&Ending::Snapshot, Some(Duration::from_millis(1_234)), &None));
        assert_eq!(done.stack.calls(), ALL, "and up again only once");
        assert_eq!(*stored.lock().unwrap() > 0, !with_stage, "with a stage nothing of the library is in the store while Immich is down");
        assert_eq!(staged_files(&done.events), with_stage.then_some(24));
        assert_eq!(entries(&stage), Vec::<String>::new());
        assert_eq!(fs::read(world.repository.join("postgres/base/1/112")).unwrap(), b"rows");
    }
}

#[tokio::test]
async fn what_was_staged_comes_back_as_what_was_read_live() {
    let world = World::with_files(30).await;
    world.write("upload/large.mov", &noise(7, 20 << 20));
    world.write("upload/empty.jpg", b"");
    let odd = world.library.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"upload/odd \xFF\n%.jpg"));
    fs::write(&odd, b"odd").unwrap();
    let done = staged(&world, Stack::default()).await;
    assert_eq!((done.report().counts.new.files, done.report().counts.unread), (33, 0));
    assert_eq!(done.stack.calls(), WITHOUT_POSTGRES);
    let restored = world.beside("restored");
    world.restore("reader", "latest", &restored).await.unwrap();
    assert!(contents(&restored) == contents(&world.library));
    for path in files(&world.library) {
        let times = |folder: &Path| fs::metadata(folder.join(&path)).unwrap().modified().unwrap();
        assert_eq!(times(&restored), times(&world.library), "{}", path.display());
    }
    assert!(world.verify("verifier", false).await.unwrap().is_sound());
    // A live run afterwards finds the facts of the live files, and nothing to do.
    let report = world.back_up().await;
    assert_eq!((report.counts.new.files, report.counts.changed.files, report.counts.sent.files), (0, 0, 0));
}

#[tokio::test]
async fn a_second_run_stages_only_what_is_new() {
    let world = World::with_files(30).await;
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    assert_eq!(staged(&world, Stack::default()).await.staged(), Some(30));
    assert_eq!(staged(&world, Stack::default()).await.staged(), Some(0));
    world.write("upload/new.jpg", b"new");
    world.write("upload/u0/photo-000.jpg", b"changed");
    world.remove("upload/u1/photo-001.jpg");
    let done = staged(&world, Stack::default()).await;
    assert_eq!(staged_files(&done.events), Some(2));
    let counts = &done.report().counts;
    assert_eq!((counts.new.files, counts.changed.files, counts.archived.files, counts.unchanged.files), (1, 1, 1, 28));
}

#[tokio::test]
async fn the_snapshot_is_that_of_the_stopped_library_whatever_happens_once_it_is_up() {
    let world = World::with_files(30).await;
    let library = world.library.clone();
    let before = contents(&library);
    let stack = Stack::at("up again", move || {
        fs::remove_file(library.join("upload/u0/photo-003.jpg")).unwrap();
        fs::rename(library.join("upload/u1/photo-001.jpg"), library.join("upload/u1/moved.jpg")).unwrap();
        fs::write(library.join("upload/u2/photo-002.jpg"), b"changed").unwrap();
        fs::write(library.join("upload/u2/uploaded.jpg"), b"uploaded").unwrap();
    });
    assert_eq!(staged(&world, stack).await.report().ending, Ending::Snapshot);
    let restored = world.beside("restored");
    world.restore("reader", "latest", &restored).await.unwrap();
    assert!(contents(&restored) == before);
    // The next run takes what came afterwards.
    assert_eq!(staged(&world, Stack::default()).await.report().ending, Ending::Snapshot);
    let restored = world.beside("restored-later");
    world.restore("reader", "latest", &restored).await.unwrap();
    assert!(contents(&restored) == contents(&world.library));
}

#[tokio::test]
async fn immich_is_up_again_whatever_cannot_be_stopped_or_asked() {
    for (call, calls) in [("database alone", &["database alone", "up again"][..]), ("all stopped", &["database alone", "all stopped", "up again"])] {
        for with_stage in [false, true] {
            let world = World::with_files(5).await;
            let (pgdata, stage) = (cluster(&world), stage_of(&world));
            let done = run(&world, None, Stack::failing(call), |plan| {
                plan.sources.push(postgres(pgdata));
                plan.stage = with_stage.then(|| stage.clone());
            })
            .await;
            let error = done.result.unwrap_err();
            assert!(matches!(error, BackupError::Downtime(_)) && error.hint().unwrap().contains("docker compose up"), "{error}");
            assert_eq!(done.stack.calls(), calls);
            assert!(!done.stack.is_down() && entries(&stage).is_empty());
        }
    }
}

#[tokio::test]
async fn an_immich_that_does_not_come_up_costs_no_backup_and_is_told() {
    for with_stage in [false, true] {
        let world = World::with_files(5).await;
        let stage = stage_of(&world);
        let done = run(&world, None, Stack::failing("up again"), |plan| plan.stage = with_stage.then(|| stage.clone())).await;
        assert_eq!(done.report().ending, Ending::Snapshot);
        let not_up = done.report().not_up.clone().unwrap();
        assert_eq!((not_up.problem.as_str(), not_up.hint.as_deref()), ("cannot do up again", Some("try `docker compose up -d`")));
        assert!(warnings(&done.events).contains("IMMICH IS NOT UP AGAIN"));
        assert_eq!(done.stack.calls(), ["database alone", "still down?", "up again", "up again"], "it is tried once more at the end");
    }
}

#[tokio::test]
async fn a_run_that_is_stopped_brings_immich_up_first() {
    for (at, with_stage) in [("database alone", false), ("database alone", true), ("all stopped", true), ("still down?", true)] {
        let world = World::with_files(50).await;
        let (pgdata, stage, stop) = (cluster(&world), stage_of(&world), CancellationToken::new());
        let stopping = stop.clone();
        let stack = Arc::new(Stack::at(at, move || stopping.cancel()));
        let mut plan = world.plan();
        plan.sources.push(postgres(pgdata));
        plan.downtime = Some(stack.clone());
        plan.stage = with_stage.then(|| stage.clone());
        let mut session = world.writing(world.directory(), "state").await.unwrap();
        let report = Box::pin(backup::run(&mut session, &plan, &silent(), &stop)).await.unwrap();
        assert_eq!((&report.ending, stack.is_down()), (&Ending::Interrupted, false), "{at}");
        assert_eq!(report.downtime, Some(Duration::from_millis(1_234)));
        drop(session);
        // What had all been copied is taken up, what had not is gone.
        assert_eq!(entries(&stage).len(), usize::from(at == "still down?"), "{at}");
        assert_eq!(staged(&world, Stack::default()).await.report().ending, Ending::Snapshot);
        assert!(entries(&stage).is_empty());
    }
}

/// Panics when it hears of a certain event.
#[derive(Debug)]
struct Panics(fn(&Event) -> bool);

impl Monitor for Panics {
    fn emit(&self, event: Event) {
        assert!(!self.0(&event), "injected");
    }
}

#[tokio::test]
async fn a_panic_while_immich_is_down_brings_it_up_and_goes_on() {
    let copying: fn(&Event) -> bool = |event| matches!(event, Event::BytesStaged { .. });
    let storing: fn(&Event) -> bool = |event| matches!(event, Event::BytesSent { .. });
    for (when, with_stage) in [(copying, true), (storing, false)] {
        let world = World::with_files(200).await;
        let (stage, stack) = (stage_of(&world), Arc::new(Stack::default()));
        let (store, downtime, staging): (_, Arc<dyn Downtime>, _) = (world.directory(), stack.clone(), stage.clone());
        let monitor: Arc<dyn Monitor> = Arc::new(Panics(when));
        let change = |plan: &mut Plan| (plan.downtime, plan.stage) = (Some(downtime), with_stage.then_some(staging));
        let running = Box::pin(world.back_up_with(store, "state", &monitor, change));
        let ended = std::panic::AssertUnwindSafe(running).catch_unwind().await;
        assert!(ended.is_err(), "it goes on");
        assert!(!stack.is_down(), "{:?}", stack.calls());
        assert_eq!(stack.calls().last(), Some(&"up again"));
        assert!(!stage.exists() || entries(&stage).is_empty());
    }
}

#[tokio::test]
async fn files_that_cannot_be_copied_are_named_and_the_rest_is_kept() {
    let world = World::with_files(20).await;
    std::os::unix::fs::symlink("/etc/passwd", world.library.join("upload/link.jpg")).unwrap();
    let library = world.library.clone();
    // Gone between the walk that measures and the one that copies.
    let done = staged(&world, Stack::at("database alone", move || fs::remove_file(library.join("upload/u0/photo-000.jpg")).unwrap())).await;
    let report = done.report();
    assert_eq!((&report.ending, report.counts.unread, report.counts.new.files), (&Ending::Snapshot, 1, 19));
    assert_eq!(report.unread[0].path, "upload/link.jpg");
}

/// A run whose uploads fail once Immich is up again: it leaves a complete stage.
async fn leave_a_stage(world: &World, pgdata: Option<PathBuf>) -> PathBuf {
    let stage = stage_of(world);
    let faulty = FaultyStore::new(&world.repository);
    faulty.fail("library/", Fault::Refused, 3, 1_000);
    let done = run(world, Some(&faulty), Stack::default(), |plan| {
        plan.stage = Some(stage.clone());
        plan.sources.extend(pgdata.map(postgres));
    })
    .await;
    assert!(matches!(done.result, Err(BackupError::Store(_))), "{:?}", done.result);
    assert!(!done.stack.is_down());
    let left = leftovers(&stage).unwrap();
    assert_eq!(left.iter().map(|left| left.is_complete()).collect::<Vec<_>>(), [true]);
    drop(left);
    stage
}

#[tokio::test]
async fn a_stage_of_a_dead_run_is_sent_first_then_removed() {
    let world = World::with_files(40).await;
    let before = contents(&world.library);
    let stage = leave_a_stage(&world, Some(cluster(&world))).await;
    // The copies are all that is left of these.
    world.remove("upload/u1/photo-034.jpg");
    world.write("upload/u2/photo-035.jpg", b"changed since");
    let done = staged(&world, Stack::default()).await;
    assert_eq!(done.report().ending, Ending::Snapshot);
    assert!(warnings(&done.events).contains("died after it had copied"), "{}", warnings(&done.events));
    assert!(entries(&stage).is_empty());
    let restored = world.beside("restored");
    world.restore("reader", "latest", &restored).await.unwrap();
    assert!(contents(&restored) == contents(&world.library), "the snapshot is of now");
    for path in ["upload/u1/photo-034.jpg", "upload/u2/photo-035.jpg"] {
        assert!(fs::read(world.repository.join("library").join(path)).unwrap() == before[Path::new(path)], "what {path} held is kept");
    }
    assert!(!world.repository.join("postgres").exists(), "a raw folder of another time is not taken up");
}

#[tokio::test]
async fn stages_of_others_and_what_is_no_stage_are_left_alone() {
    let world = World::with_files(10).await;
    let other = World::with_files(10).await;
    let stage = leave_a_stage(&other, None).await;
    let foreign = entries(&stage).pop().unwrap();
    let like = "immich-backup-stage-00000000-0000-4000-8000-000000000000";
    fs::create_dir_all(stage.join(like)).unwrap();
    fs::write(stage.join(like).join("photos"), b"mine").unwrap();
    fs::write(stage.join("photos"), b"mine too").unwrap();
    let done = run(&world, None, Stack::default(), |plan| plan.stage = Some(stage.clone())).await;
    assert_eq!(done.report().ending, Ending::Snapshot);
    let mut left = entries(&stage);
    left.sort();
    let mut expected = [foreign, like.to_owned(), "photos".to_owned()];
    expected.sort();
    assert_eq!(left, expected);
}

/// Changes a stage.
type Tamper = fn(&Path);

#[tokio::test]
async fn a_stage_that_somebody_tampered_with_harms_nothing() {
    let hostile: [(&str, Tamper); 5] = [
        ("a path that leads outside", |stage| {
            fs::write(
                stage.join("list.ndjson"),
                br#"{"found":"staged","root":"","path":"../../x","number":0,"size":1,"mtime_ns":0,"ctime_ns":0,"mode":0,"trusted":true}"#,
            )
            .unwrap();
        }),
        ("a list that is a link", |stage| {
            fs::remove_file(stage.join("list.ndjson")).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", stage.join("list.ndjson")).unwrap();
        }),
        ("copies that are links", |stage| {
            for file in files(&stage.join("files")) {
                let file = stage.join("files").join(file);
                fs::remove_file(&file).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", file).unwrap();
            }
        }),
        ("copies of another size", |stage| {
            for file in files(&stage.join("files")) {
                fs::write(stage.join("files").join(file), b"x").unwrap();
            }
        }),
        ("no text at all", |stage| fs::write(stage.join("list.ndjson"), vec![0xFF; 1 << 20]).unwrap()),
    ];
    for (what, tamper) in hostile {
        let world = World::with_files(30).await;
        let stage = leave_a_stage(&world, None).await;
        tamper(&stage.join(entries(&stage).pop().unwrap()));
        let done = staged(&world, Stack::default()).await;
        assert_eq!(done.report().ending, Ending::Snapshot, "{what}");
        let restored = world.beside("restored");
        world.restore("reader", "latest", &restored).await.unwrap();
        assert!(contents(&restored) == contents(&world.library), "{what}");
        assert!(entries(&stage).is_empty(), "{what}");
        assert!(world.verify("verifier", false).await.unwrap().is_sound(), "{what}");
    }
}

#[tokio::test]
async fn a_marker_that_is_not_ours_makes_no_stage() {
    let world = World::with_files(10).await;
    let stage = leave_a_stage(&world, None).await;
    let folder = stage.join(entries(&stage).pop().unwrap());
    let marker = fs::read_to_string(folder.join("stage.json")).unwrap();
    for (what, text) in [
        ("another run", marker.replace("\"run\":\"", "\"run\":\"0")),
        ("another format", marker.replace("\"format\":1", "\"format\":2")),
        ("more than we write", marker.replace('{', "{\"more\":1,")),
        ("nothing", String::new()),
        ("without end", "[".repeat(1 << 20)),
    ] {
        fs::write(folder.join("stage.json"), text).unwrap();
        assert!(leftovers(&stage).unwrap().is_empty(), "{what}");
    }
    fs::write(folder.join("stage.json"), &marker).unwrap();
    let left = leftovers(&stage).unwrap();
    assert_eq!((left.len(), left[0].path()), (1, folder.as_path()));
    assert!(leftovers(&stage).unwrap().is_empty(), "it is in use");
    drop(left);
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(leftovers(&stage).unwrap().is_empty(), "others may write there");
    fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let left = leftovers(&stage).unwrap().pop().unwrap();
    fs::write(folder.join("photos"), b"mine").unwrap();
    left.remove().unwrap_err();
    assert_eq!(entries(&folder), ["photos"], "what is not ours stays, and the folder with it");
    assert!(leftovers(&world.beside("nowhere")).unwrap().is_empty());
}

#[tokio::test]
async fn a_stack_that_was_disturbed_gives_no_raw_folder() {
    for with_stage in [false, true] {
        let world = World::with_files(10).await;
        let (pgdata, stage) = (cluster(&world), stage_of(&world));
        let with_raw = |plan: &mut Plan| {
            plan.sources.push(postgres(pgdata.clone()));
            plan.stage = with_stage.then(|| stage.clone());
        };
        run(&world, None, Stack::default(), with_raw).await.result.unwrap();
        let raw = |session: &Session| session.manifest.has_files(&Root::Postgres).unwrap();
        assert!(raw(&world.reading("reader").await.unwrap()));
        let done = run(&world, None, Stack { disturbed: true, ..Stack::default() }, with_raw).await;
        assert_eq!(done.report().ending, Ending::Snapshot);
        assert!(warnings(&done.events).contains("was started by somebody else"), "{}", warnings(&done.events));
        assert!(!raw(&world.reading("reader").await.unwrap()), "neither this one nor that of another day");
        // One that runs, or did not end in an orderly way.
        fs::write(pgdata.join("postmaster.pid"), b"1").unwrap();
        let done = run(&world, None, Stack::default(), with_raw).await;
        assert!(warnings(&done.events).contains("postmaster.pid"), "{}", warnings(&done.events));
        assert!(!raw(&world.reading("reader").await.unwrap()));
        fs::remove_file(pgdata.join("postmaster.pid")).unwrap();
        run(&world, None, Stack::default(), with_raw).await.result.unwrap();
        assert!(raw(&world.reading("reader").await.unwrap()));
        // A run without it.
        run(&world, None, Stack::default(), |_| {}).await.result.unwrap();
        assert!(!raw(&world.reading("reader").await.unwrap()));
    }
}

#[tokio::test]
async fn raw_files_that_are_gone_do_not_come_back_with_the_running_database() {
    for with_stage in [false, true] {
        let world = World::with_files(10).await;
        let (pgdata, stage) = (cluster(&world), stage_of(&world));
        let with_raw = |plan: &mut Plan| {
            plan.sources.push(postgres(pgdata.clone()));
            plan.stage = with_stage.then(|| stage.clone());
        };
        run(&world, None, Stack::default(), with_raw).await.result.unwrap();
        fs::remove_file(pgdata.join("pg_wal/1")).unwrap();
        let wal = pgdata.join("pg_wal/1");
        let stack = Stack::at("up again", move || fs::write(&wal, b"written by the database that is up").unwrap());
        let done = run(&world, None, stack, with_raw).await;
        assert_eq!((done.report().counts.archived.files, done.report().counts.new.files), (1, 0), "with a stage: {with_stage}");
    }
}

#[tokio::test]
async fn a_stage_must_be_a_folder_of_its_own() {
    let world = World::with_files(5).await;
    let elsewhere = world.beside("ssd");
    fs::create_dir_all(elsewhere.join("stage")).unwrap();
    fs::create_dir_all(world.library.join("upload/stage")).unwrap();
    std::os::unix::fs::symlink(&world.library, world.beside("link")).unwrap();
    let inner = [
        world.library.join("upload/stage"),
        world.library.parent().unwrap().to_owned(),
        world.repository.join("stage"),
        world.beside("state"),
        world.beside("link"),
        elsewhere.join("stage"),
    ];
    for stage in inner {
        let mounts = vec![(RootPath::parse("thumbs").unwrap(), elsewhere.clone())];
        let done = run(&world, None, Stack::default(), |plan| {
            plan.stage = Some(stage.clone());
            plan.sources[0].mounts = mounts;
        })
        .await;
        let error = done.result.unwrap_err();
        assert!(error.to_string().contains("lie within one another"), "{}: {error}", stage.display());
        assert_eq!(done.stack.calls(), Vec::<&str>::new(), "nothing was stopped");
    }
    let done = run(&world, None, Stack::default(), |plan| plan.stage = Some(world.beside("no/such/folder"))).await;
    assert!(matches!(done.result, Err(BackupError::Stage(_))) && done.stack.calls().is_empty(), "{:?}", done.result);
    let error = world.back_up_with(world.directory(), "state", &silent(), |plan| plan.sources.push(postgres(cluster(&world)))).await.unwrap_err();
    assert!(error.to_string().contains("while PostgreSQL runs"), "{error}");
}

#[tokio::test]
async fn old_files_are_trusted_when_they_were_copied_and_young_ones_are_not() {
    let world = World::with_files(3).await;
    tokio::time::sleep(Duration::from_millis(3_100)).await;
    world.write("upload/young.jpg", b"young");
    // It is sent long after it was copied; what counts is when it was copied.
    let stack = Stack::at("up again", || std::thread::sleep(Duration::from_millis(3_200)));
    assert_eq!(staged(&world, stack).await.staged(), Some(4));
    let path = world.library.join("upload/young.jpg");
    let modified = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"YOUNG").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(modified < SystemTime::now());
    assert_eq!(staged(&world, Stack::default()).await.report().counts.changed.files, 1);
}

/// A small disk at `at`; `None` where this user may not mount one.
struct Disk(PathBuf);

impl Disk {
    fn of(at: PathBuf, size: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).stderr(Stdio::null()).status().is_ok_and(|done| done.success());
        if !mounted {
            eprintln!("NOT TESTED: a full disk needs root and the right to mount");
        }
        mounted.then_some(Self(at))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status());
    }
}

#[tokio::test]
async fn a_stage_without_room_stops_nothing_and_one_that_fills_up_brings_immich_up() {
    let world = World::with_files(3).await;
    for number in 0..10 {
        world.write(&format!("upload/{number}.mov"), &noise(number, 2 << 20));
    }
    let Some(small) = Disk::of(world.beside("small"), "32m") else { return };
    let done = run(&world, None, Stack::default(), |plan| plan.stage = Some(small.0.clone())).await;
    let error = done.result.unwrap_err();
    assert!(error.to_string().contains("bytes left") && error.hint().unwrap().contains("nothing was stopped"), "{error}");
    assert_eq!((done.stack.calls(), entries(&small.0)), (Vec::new(), Vec::new()));

    let Some(filling) = Disk::of(world.beside("filling"), "100m") else { return };
    let filler = filling.0.join("filler");
    let stack = Stack::at("database alone", move || fs::write(&filler, noise(99, 92 << 20)).unwrap());
    let done = run(&world, None, stack, |plan| plan.stage = Some(filling.0.clone())).await;
    let error = done.result.unwrap_err();
    assert!(error.to_string().contains("is full") && error.hint().unwrap().contains("Immich is up again"), "{error}");
    assert_eq!(done.stack.calls(), ["database alone", "up again"]);
    assert_eq!(entries(&filling.0), ["filler"]);
    // With room again the same command does it.
    fs::remove_file(filling.0.join("filler")).unwrap();
    let done = run(&world, None, Stack::default(), |plan| plan.stage = Some(filling.0.clone())).await;
    assert_eq!((&done.report().ending, entries(&filling.0)), (&Ending::Snapshot, Vec::new()));
}

/// Ends the server on `data` in an orderly way.
fn shut_down(data: &Path) {
    let pid = fs::read_to_string(data.join("postmaster.pid")).unwrap().lines().next().unwrap().to_owned();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let ended = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        !data.join("postmaster.pid").exists()
    });
    assert!(ended, "the server has not ended");
}

#[tokio::test]
async fn a_real_server_starts_on_the_raw_folder_that_came_back() {
    for with_stage in [false, true] {
        let server = Postgres::start().unwrap();
        server.psql("postgres", "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number");
        let (world, data) = (World::with_files(3).await, server.data());
        let stage = stage_of(&world);
        let stopping = data.clone();
        let stack = Stack::at("all stopped", move || shut_down(&stopping));
        let done = run(&world, None, stack, |plan| {
            plan.sources.push(postgres(data.clone()));
            plan.stage = with_stage.then(|| stage.clone());
        })
        .await;
        assert_eq!((&done.report().ending, done.report().counts.unread), (&Ending::Snapshot, 0), "{:?}", done.report().unread);

        let back = world.beside("back");
        let session = world.reading("reader").await.unwrap();
        let report = restore_raw(&session, &back).await;
        assert_eq!((report.failed, report.markers), (0, 0));
        let owner = fs::metadata(&data).unwrap();
        for path in [world.beside(""), world.beside("back").parent().unwrap().to_owned()] {
            fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        assert_eq!(fs::metadata(&back).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(Command::new("chown").arg("-R").arg(format!("{}:{}", owner.uid(), owner.gid())).arg(&back).status().unwrap().success());
        let mut again = Command::new(server.programs().join("postgres"))
            .arg("-D")
            .arg(&back)
            .args(["-c", "listen_addresses=", "-c"])
            .arg(format!("unix_socket_directories={}", back.display()))
            .uid(owner.uid())
            .gid(owner.gid())
            .current_dir("/")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let ask = || {
            let mut psql = Command::new(server.programs().join("psql"));
            psql.args(["-XAtc", "SELECT count(*), sum(number) FROM kept", "-U", Postgres::USER, "-h"]).arg(&back).arg("postgres");
            psql.env("PGPASSWORD", Postgres::PASSWORD).output().unwrap()
        };
        let answer = (0..200).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            Some(ask()).filter(|answer| answer.status.success())
        });
        again.kill().unwrap();
        let said = again.wait_with_output().unwrap();
        let answer = answer.unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&said.stderr)));
        assert_eq!(String::from_utf8(answer.stdout).unwrap().trim(), "1000|500500");
    }
}

#[tokio::test]
async fn each_cluster_that_came_back_has_the_folders_without_which_its_server_does_not_start() {
    let world = World::with_files(3).await;
    let data = cluster(&world);
    for path in ["18/docker/global/pg_control", "notes/global/pg_control.old"] {
        fs::create_dir_all(data.join(path).parent().unwrap()).unwrap();
        fs::write(data.join(path), b"control").unwrap();
    }
    // Of the media location, and no cluster.
    world.write("upload/global/pg_control", b"a photo with an odd name");
    let done = run(&world, None, Stack::default(), |plan| plan.sources.push(postgres(data.clone()))).await;
    assert_eq!(done.report().ending, Ending::Snapshot);
    let session = world.reading("reader").await.unwrap();
    let back = world.beside("back");
    let report = restore_raw(&session, &back).await;
    assert_eq!((report.failed, report.preview.postgres_left.files), (0, 0));
    assert!(contents(&back) == contents(&data));
    for folder in ["pg_notify", "pg_tblspc", "pg_wal/archive_status"] {
        assert!(back.join(folder).is_dir() && back.join("18/docker").join(folder).is_dir(), "{folder}");
        assert!(!back.join("notes").join(folder).exists() && !back.join("upload").exists(), "{folder}");
    }
    // Where nobody asks for it, it is said to be left alone.
    let report = world.restore("reader", "latest", &world.beside("restored")).await.unwrap();
    assert_eq!(report.preview.postgres_left.files, 6);
}

async fn restore_raw(session: &Session, to: &Path) -> restore::Report {
    let plan = restore::Plan {
        snapshot: session.manifest.latest_snapshot().unwrap().unwrap(),
        to: None,
        externals: BTreeMap::new(),
        mounts: Vec::new(),
        config_to: None,
        postgres_to: Some(to.to_owned()),
        paths: Patterns::default(),
        chosen: None,
        overwrite: false,
        workers: workers(4),
    };
    let stop = CancellationToken::new();
    let prepared = restore::prepare(session, plan, &Silent, &stop).await.unwrap();
    Box::pin(prepared.run(session, &silent(), &stop)).await.unwrap()
}

/// A world whose library and database are those of a real Immich.
struct Real {
    world: World,
    server: Postgres,
    _files: immich_backup_testbed::fixture::Files,
    external: Source,
    expected: u64,
}

async fn real() -> Option<Real> {
    let fixture = Fixture::open(IMMICH_3)?;
    let (server, files) = (Postgres::start().unwrap(), fixture.copy());
    server.create_loaded("immich", fixture.dump());
    let mut world = World::with_files(0).await;
    world.library = files.media();
    let external =
        Source { root: Root::External("nas".parse().unwrap()), path: files.external(), server_path: Some(b"/mnt/external".to_vec()), mounts: Vec::new() };
    let expected = fixture.expected.assets.iter().filter(|asset| !asset.is_external).count() as u64;
    Some(Real { world, server, _files: files, external, expected })
}

impl Real {
    fn database(&self) -> backup::Database {
        let connection = Connection::parse(&self.server.url("immich")).unwrap();
        backup::Database {
            client: Client::local(connection, vec![self.server.programs().to_owned()]),
            compression: Compression::Gzip,
            lock_wait: Duration::from_secs(60),
            media_location: None,
            external_ignore: Vec::new(),
            immich_url: None,
        }
    }

    async fn run(&self, stack: Stack, stage: &Path) -> Done {
        run(&self.world, None, stack, |plan| {
            plan.sources.push(self.external.clone());
            plan.database = Some(self.database());
            plan.stage = Some(stage.to_owned());
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_and_the_copy_of_the_same_moment_are_proven_though_immich_went_on() {
    let Some(real) = real().await else { return };
    let (stage, library) = (stage_of(&real.world), real.world.library.clone());
    let before = contents(&library);
    // Up again, Immich deletes what the dump names and files new things.
    let stack = Stack::at("up again", move || {
        fs::remove_dir_all(library.join("upload")).unwrap();
        fs::create_dir_all(library.join("upload")).unwrap();
        fs::write(library.join("upload/.immich"), b"1").unwrap();
        fs::write(library.join("library/new.jpg"), b"new").unwrap();
    });
    let done = real.run(stack, &stage).await;
    let proof = done.report().proof.clone().unwrap();
    assert_eq!((proof.proven, proof.missing, proof.mismatched, proof.moved), (real.expected, 0, 0, 0), "{:?}", proof.named);
    assert_eq!(done.stack.calls(), WITHOUT_POSTGRES);
    let restored = real.world.beside("restored");
    real.world.restore("reader", "latest", &restored).await.unwrap();
    let backups = |path: &PathBuf| !path.starts_with("backups") && !path.starts_with("external");
    let only = |all: std::collections::BTreeMap<PathBuf, Vec<u8>>| all.into_iter().filter(|(path, _)| backups(path)).collect::<BTreeMap<_, _>>();
    assert!(only(contents(&restored)) == only(before));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_ends_the_copy_and_a_copy_that_fails_ends_the_dump() {
    let Some(real) = real().await else { return };
    let stage = stage_of(&real.world);
    real.server.psql("postgres", "ALTER DATABASE immich RENAME TO elsewhere");
    let done = real.run(Stack::default(), &stage).await;
    assert!(matches!(done.result, Err(BackupError::Database(_) | BackupError::NoDump(_))), "{:?}", done.result);
    assert_eq!((done.stack.calls().last(), entries(&stage)), (Some(&"up again"), Vec::new()));
    real.server.psql("postgres", "ALTER DATABASE elsewhere RENAME TO immich");
    // The stage's own folder goes away under the copy.
    let going = stage.clone();
    let stack = Stack::at("database alone", move || {
        for entry in fs::read_dir(&going).unwrap() {
            fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    });
    let done = real.run(stack, &stage).await;
    assert!(matches!(done.result, Err(BackupError::Stage(_))), "{:?}", done.result);
    assert_eq!((done.stack.calls().last(), entries(&stage)), (Some(&"up again"), Vec::new()));
    assert!(real.server.connections("immich").is_empty(), "no pg_dump is left behind");
    assert_eq!(real.run(Stack::default(), &stage).await.report().proof.clone().unwrap().proven, real.expected);
}
