//! A process that dies at any of the named places in the code: nothing that was announced is lost, nothing is written again, and the next one goes on.
//!
//! The tests start themselves as a process that dies (`a_process_that_dies`); `core/src/crash.rs` has the places.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

mod support;

use async_trait::async_trait;
use immich_backup_core::backup::{self, Downtime, DowntimeError, Ending, Shard, Up};
use immich_backup_core::crash;
use immich_backup_core::database::client::Client;
use immich_backup_core::database::compress::Compression;
use immich_backup_core::database::connection::Connection;
use immich_backup_core::event::Silent;
use immich_backup_core::model::{Part, RunId};
use immich_backup_core::prune::{self, Options};
use immich_backup_core::repository::{Session, init};
use immich_backup_core::retention::Policy;
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use immich_backup_testbed::servers::{self, Bucket, Credentials, SeaweedFs};
use jiff::tz::TimeZone;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::RefUnwindSafe;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use support::behind::Behind;
use support::story::{Objects, Random, Story, fresh_seed, given_seed, repeat_with};
use support::{World, contents, files, silent};
use tokio_util::sync::CancellationToken;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Makes the repository.
    Init,
    /// Backs up.
    BackUp,
    /// Backs up a library with a large file.
    BackUpFilm,
    /// Backs up while Immich is down, from a stage.
    Staged,
    /// Backs up with a database.
    Dump,
    /// Two shards, one after the other.
    Shards,
    /// Reads the repository with a state folder that knows nothing.
    CatchUp,
    /// Reads everything back.
    Verify,
    /// Removes old copies of the manifest.
    Prune,
    /// Restores the newest snapshot.
    Restore,
}

impl Act {
    const ALL: [Self; 10] =
        [Self::Init, Self::BackUp, Self::BackUpFilm, Self::Staged, Self::Dump, Self::Shards, Self::CatchUp, Self::Verify, Self::Prune, Self::Restore];
}

/// Each place, and an act that comes to it.
const PLACES: [(&str, Act); 43] = [
    ("identity created", Act::Init),
    ("state file written, not named", Act::Init),
    ("store made ready", Act::BackUp),
    ("before the entry", Act::BackUp),
    ("entry acknowledged", Act::BackUp),
    ("entry acknowledged, manifest not applied", Act::BackUp),
    ("manifest applied, head not noted", Act::BackUp),
    ("run started", Act::BackUp),
    ("file read, not stored", Act::BackUp),
    ("temporary file written, not named", Act::BackUp),
    ("object named, temporary file not removed", Act::BackUp),
    ("object named, not durable", Act::BackUp),
    ("object stored, not logged", Act::BackUp),
    ("before the barrier", Act::BackUp),
    ("barrier done", Act::BackUp),
    ("checkpoint in the log", Act::BackUp),
    ("what is gone archived", Act::BackUp),
    ("before the snapshot", Act::BackUp),
    ("after the snapshot", Act::BackUp),
    ("manifest packed, not sent", Act::BackUp),
    ("manifest copy created, not logged", Act::BackUp),
    ("large object half sent", Act::BackUpFilm),
    ("large object sent, not finished", Act::BackUpFilm),
    ("large object stored, not logged", Act::BackUpFilm),
    ("all copied, Immich not up again", Act::Staged),
    ("dump spooled", Act::Dump),
    ("dump stored, not logged", Act::Dump),
    ("dump in the log", Act::Dump),
    ("claimed, nothing stored", Act::Shards),
    ("before a shard is done", Act::Shards),
    ("all shards done, run not ended", Act::Shards),
    ("manifest copy fetched, not unpacked", Act::CatchUp),
    ("manifest copy half unpacked", Act::CatchUp),
    ("manifest copy unpacked, not opened", Act::CatchUp),
    ("entry of the log applied while catching up", Act::CatchUp),
    ("caught up, head not noted", Act::CatchUp),
    ("verified, not recorded", Act::Verify),
    ("prune: given up, nothing removed", Act::Prune),
    ("prune: an object removed", Act::Prune),
    ("prune: all removed, not said", Act::Prune),
    ("restore: written, not durable", Act::Restore),
    ("restore: durable, not named", Act::Restore),
    ("restore: a file named", Act::Restore),
];

/// Hit by whatever restores; last, so that nothing comes after it.
const LAST_PLACE: (&str, Act) = ("restore: all named", Act::Restore);

fn places() -> Vec<(&'static str, Act)> {
    PLACES.into_iter().chain([LAST_PLACE]).collect()
}

const AT: &str = "IMMICH_BACKUP_TEST_CRASH_AT";
const DOES: &str = "IMMICH_BACKUP_TEST_CRASH_DOES";
const IN: &str = "IMMICH_BACKUP_TEST_CRASH_IN";
const DATABASE: &str = "IMMICH_BACKUP_TEST_CRASH_DATABASE";
const BUCKET: &str = "IMMICH_BACKUP_TEST_CRASH_BUCKET";

/// The name of the place where this process dies.
static DIES_AT: OnceLock<String> = OnceLock::new();

/// Ends this process without another instruction of its own: nothing is unwound, dropped or flushed.
fn die(place: &'static str) {
    if DIES_AT.get().is_some_and(|at| at == place) {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
        // The signal may take a moment; what this thread would do next must not happen.
        loop {
            std::thread::park();
        }
    }
}

/// A stack that can always be stopped and started.
#[derive(Debug)]
struct Willing;

#[async_trait]
impl Downtime for Willing {
    async fn database_alone(&self) -> Result<(), DowntimeError> {
        Ok(())
    }

    async fn all_stopped(&self) -> Result<(), DowntimeError> {
        Ok(())
    }

    async fn still_down(&self) -> Result<bool, DowntimeError> {
        Ok(true)
    }

    async fn up_again(&self) -> Result<Up, DowntimeError> {
        Ok(Up::default())
    }
}

/// A bucket, as a process tells another of it.
fn bucket() -> Option<(Bucket, String)> {
    let told = std::env::var(BUCKET).ok()?;
    let mut parts = told.split('\n').map(str::to_owned);
    let mut part = || parts.next().unwrap();
    let (endpoint, name) = (part(), part());
    let credentials = Credentials { access_key: part(), secret_key: part() };
    Some((Bucket { endpoint, name, credentials }, part()))
}

/// Where this world's repository is: its directory, or what this process was told.
fn store_of(world: &World) -> Arc<dyn immich_backup_core::repository::store::Store> {
    bucket().map_or_else(|| world.directory(), |(bucket, prefix)| Behind::S3(bucket).direct(&prefix))
}

/// The state folder that acts use.
const STATE: &str = "state";

async fn back_up(world: &World, change: impl FnOnce(&mut backup::Plan)) {
    let take_over = |plan: &mut backup::Plan| {
        // What died may have been another writer, whose silence nobody has to wait for here.
        plan.take_over = true;
        change(plan);
    };
    let report = world.back_up_with(store_of(world), STATE, &silent(), take_over).await.unwrap();
    assert_eq!((report.ending.clone(), report.counts.unread), (Ending::Snapshot, 0), "{:?}", report.unread);
}

async fn perform(act: Act, world: &World) {
    match act {
        Act::Init => {
            // As `backup --init` does: what is there is used.
            if immich_backup_core::repository::Repository::open(store_of(world)).await.is_err() {
                init(store_of(world), "test").await.unwrap();
            }
            drop(world.writing(store_of(world), STATE).await.unwrap());
        }
        Act::BackUp | Act::BackUpFilm => back_up(world, |_| {}).await,
        Act::Staged => {
            let stage = world.beside("stage");
            std::fs::create_dir_all(&stage).unwrap();
            back_up(world, |plan| {
                plan.downtime = Some(Arc::new(Willing));
                plan.stage = Some(stage);
            })
            .await;
        }
        Act::Dump => {
            let told = std::env::var(DATABASE).unwrap();
            back_up(world, |plan| plan.database = Some(database(&told))).await;
        }
        Act::Shards => {
            // The same run again and again, until it is over.
            let file = world.beside("run");
            let run: RunId = match std::fs::read_to_string(&file) {
                Ok(text) => text.parse().unwrap(),
                Err(_) => {
                    let run = RunId::random();
                    std::fs::write(&file, run.to_string()).unwrap();
                    run
                }
            };
            for part in [0, 1] {
                let change = |plan: &mut backup::Plan| {
                    plan.take_over = true;
                    plan.shard = Some(Shard { part: Part { of: 2, part }, run });
                };
                world.back_up_with(store_of(world), &format!("state-{part}"), &silent(), change).await.unwrap();
            }
        }
        Act::CatchUp => drop(world.reading("other").await.unwrap()),
        Act::Verify => {
            let report = world.verify(STATE, true).await.unwrap();
            assert!(report.is_sound(), "{:?}", report.findings);
        }
        Act::Prune => {
            let mut session = world.writing(store_of(world), STATE).await.unwrap();
            let options = Options { policy: Policy::default(), zone: TimeZone::UTC, copies: true, derived: false };
            let report = prune::prepare(&session, &options).await.unwrap().run(&mut session, &Silent, &CancellationToken::new()).await.unwrap();
            assert!(!report.interrupted);
        }
        Act::Restore => {
            let report = world.restore(STATE, "latest", &world.beside("to")).await.unwrap();
            assert_eq!(report.failed, 0, "{:?}", report.failures);
        }
    }
}

/// A database, told as its URL and the folder of PostgreSQL's programs.
fn database(told: &str) -> backup::Database {
    let (url, programs) = told.split_once('\n').unwrap();
    backup::Database {
        client: Client::local(Connection::parse(url).unwrap(), vec![programs.into()]),
        compression: Compression::Gzip,
        lock_wait: Duration::from_secs(60),
        media_location: None,
        external_ignore: Vec::new(),
        immich_url: None,
    }
}

/// Not a test: the process that the tests below let die.
#[test]
#[ignore = "it dies: the tests of this file start it"]
fn a_process_that_dies() {
    let Some(folder) = std::env::var_os(IN) else { return };
    let does = std::env::var(DOES).unwrap();
    let act = Act::ALL.into_iter().find(|act| format!("{act:?}") == does).unwrap();
    DIES_AT.set(std::env::var(AT).unwrap()).unwrap();
    crash::install(die);
    runtime().block_on(perform(act, &World::at(Path::new(&folder))));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A process that is being started has, for a moment, all that this one has open: also the locks of state folders that other cases have in use.
static STARTING: RwLock<()> = RwLock::new(());

/// Does this here, while no process is being started.
fn here<T>(doing: impl Future<Output = T>) -> T {
    let _none = STARTING.read().unwrap_or_else(PoisonError::into_inner);
    runtime().block_on(doing)
}

/// Lets a process do `act` until it comes to `place`. Whether it did.
fn dies(world: &World, act: Act, place: &str, told: &[(&str, String)]) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["a_process_that_dies", "--exact", "--ignored", "--nocapture"]);
    command.env(IN, world.folder()).env(DOES, format!("{act:?}")).env(AT, place).envs(told.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = {
        let _alone = STARTING.write().unwrap_or_else(PoisonError::into_inner);
        command.spawn().unwrap()
    };
    let ended = child.wait_with_output().unwrap();
    let died = ended.status.signal() == Some(9);
    assert!(died || ended.status.success(), "{act:?} ended by itself before `{place}`: {}", String::from_utf8_lossy(&ended.stderr));
    died
}

/// Several old snapshots, and a library that has changed since.
fn prepared(act: Act, random: &mut Random) -> Story {
    let mut story = Story::begin(World::in_memory());
    if act == Act::Init {
        return story;
    }
    here(async {
        init(story.world.directory(), "test").await.unwrap();
        // Each time the manifest grows by more than a tenth: there is a copy of each.
        let runs = if act == Act::Prune { 4 } else { 2 };
        for _ in 0..runs {
            let report = story.world.back_up().await;
            story.note(report.run);
            for _ in 0..3 {
                story.change(random);
            }
        }
        if act == Act::BackUpFilm {
            story.add_film(random.next());
        }
        if act == Act::Restore {
            let report = story.world.back_up().await;
            story.note(report.run);
        }
        if matches!(act, Act::CatchUp) {
            // What another machine knew.
            std::fs::remove_dir_all(story.world.beside("other")).unwrap_or_default();
        }
    });
    story
}

/// What was announced until now is of the library as it is; no object was written again.
fn look(story: &mut Story, objects: &mut Objects, act: Act) {
    // A prune removes copies of the manifest, nothing else ever removes anything.
    objects.look(&story.world.repository, if act == Act::Prune { "manifests" } else { "" });
    if !story.world.repository.join("format.json").exists() {
        return;
    }
    here(async {
        std::fs::remove_dir_all(story.world.beside("onlooker")).unwrap_or_default();
        let session = story.world.reading("onlooker").await.unwrap();
        story.note_snapshots(&session);
    });
}

/// One process dies at each of these places; then the library changes, and all goes on until it is whole.
fn go_through(places: &[(&'static str, Act)], random: &mut Random, told: &[(&str, String)]) -> usize {
    let mut story = prepared(places[0].1, random);
    let mut objects = Objects::default();
    let mut deaths = 0;
    for (place, act) in places {
        look(&mut story, &mut objects, *act);
        let died = dies(&story.world, *act, place, told);
        deaths += usize::from(died);
        look(&mut story, &mut objects, *act);
        // A run of shards that is gone on with has seen some folders before, others after.
        if *act != Act::Shards && random.once_in(2) {
            story.change(random);
        }
    }
    let last = places[places.len() - 1].1;
    here(perform_to_the_end(last, &mut story, told));
    look(&mut story, &mut objects, last);
    here(async {
        // The state folder is usable as it is, and so is a new one.
        back_up(&story.world, |_| {}).await;
        let verified = story.world.verify(STATE, true).await.unwrap();
        // A dump whose fact was never written is nobody's: the next run takes one of its own. Nor is content that the library had no more when the next run came
        // (decision 50).
        let held: BTreeSet<Vec<u8>> = story.tree().values().cloned().collect();
        let is_held = |key: &str| std::fs::read(story.world.repository.join(key)).is_ok_and(|content| held.contains(&content));
        let unnamed: Vec<_> = verified.unnamed.iter().filter(|key| !key.starts_with("database/") && is_held(key)).collect();
        assert_eq!((verified.damaged, unnamed.len()), (0, 0), "{:?} {unnamed:?}", verified.findings);
        let session = story.world.reading("a-new-one").await.unwrap();
        story.note_snapshots(&session);
        assert!(story.assert_all_restore(&session).await > 0);
    });
    look(&mut story, &mut objects, last);
    assert_eq!(objects.stored_twice(), Vec::<std::path::PathBuf>::new(), "content was stored again");
    let left = story.world.repository.join("tmp");
    let left = std::fs::read_dir(left).into_iter().flatten().filter(|folder| folder.as_ref().unwrap().path().join("lock").exists()).count();
    assert_eq!(left, 0, "temporary files of dead processes are left");
    deaths
}

/// Does it once more, with nobody to stop it; and what it was to bring about is there.
async fn perform_to_the_end(act: Act, story: &mut Story, told: &[(&str, String)]) {
    let world = &story.world;
    match act {
        Act::Dump => {
            let (_, database_told) = told.iter().find(|(name, _)| *name == DATABASE).unwrap();
            back_up(world, |plan| plan.database = Some(database(database_told))).await;
        }
        other => perform(other, world).await,
    }
    if act == Act::Restore {
        let (to, session) = (world.beside("to"), world.reading(STATE).await.unwrap());
        let latest = session.manifest.latest_snapshot().unwrap().unwrap().id;
        support::story::assert_same(&contents(&to), story.tree_of(latest), "restored");
        assert!(files(&to).iter().all(|path| !path.to_str().unwrap().ends_with(".part")), "{:?}", files(&to));
    }
    if act == Act::Prune {
        let session = world.reading(STATE).await.unwrap();
        assert_eq!(session.manifest.count_given_up().unwrap(), 0);
    }
    let session: Session = world.reading("an-onlooker").await.unwrap();
    story.note_snapshots(&session);
}

/// Cases that are looked at at once.
const AT_ONCE: usize = 3;

/// Some at once, each on its own; those that fail are named with their seeds.
fn each<T: Sync + RefUnwindSafe>(at_once: usize, cases: &[T], name: impl Fn(&T) -> String + Sync, look: impl Fn(&T) + Sync + RefUnwindSafe) {
    let (next, failed) = (Mutex::new(cases.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let Some(case) = next.lock().unwrap().next() else { return };
                    if std::panic::catch_unwind(|| look(case)).is_err() {
                        failed.lock().unwrap().push(name(case));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), cases.len());
}

fn without_database() -> Vec<(&'static str, Act)> {
    places().into_iter().filter(|(_, act)| *act != Act::Dump).collect()
}

#[test]
fn every_place_in_the_sources_is_died_at() {
    fn collect(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            found.extend(code.filter_map(|line| Some(line.split_once("crash_point!(\"")?.1.split_once('"')?.0.to_owned())));
        }
    }
    let mut found = Vec::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.sort();
    let mut known: Vec<_> = places().into_iter().map(|(place, _)| place.to_owned()).collect();
    known.sort();
    assert_eq!(found, known, "each place has one name, and a case that dies at it");
}

#[test]
fn a_process_may_die_at_each_place() {
    let seed = given_seed().unwrap_or_else(fresh_seed);
    let cases: Vec<_> = without_database().into_iter().enumerate().collect();
    let seed_of = |number: usize| seed + number as u64;
    each(
        AT_ONCE,
        &cases,
        |(number, case)| format!("{case:?} ({})", repeat_with(seed_of(*number))),
        |(number, case)| assert_eq!(go_through(&[*case], &mut Random::new(seed_of(*number)), &[]), 1, "nothing came to `{}`", case.0),
    );
}

/// Pairs of places: what died at the first was gone on with, and died at the second.
fn pairs(random: &mut Random, all: bool) -> Vec<[(&'static str, Act); 2]> {
    let places: Vec<_> = without_database().into_iter().filter(|(_, act)| *act != Act::Init).collect();
    let with = |first: &(&'static str, Act)| places.iter().map(|second| [*first, *second]).collect::<Vec<_>>();
    places.iter().flat_map(|first| if all { with(first) } else { vec![*random.pick(&with(first))] }).collect()
}

/// All pairs take long: `IMMICH_BACKUP_TEST_PART=2/5` takes the second of five parts of them, each of which has some of every first place.
fn is_in_given_part(number: usize) -> bool {
    let Ok(text) = std::env::var("IMMICH_BACKUP_TEST_PART") else { return true };
    let (part, of) = text.split_once('/').unwrap();
    let (part, of): (usize, usize) = (part.parse().unwrap(), of.parse().unwrap());
    assert!((1..=of).contains(&part), "there is no part {text}");
    number % of == part - 1
}

fn die_twice(all: bool) {
    let seed = given_seed().unwrap_or_else(fresh_seed);
    let mut cases: Vec<_> = pairs(&mut Random::new(seed), all).into_iter().enumerate().collect();
    cases.retain(|(number, _)| !all || is_in_given_part(*number));
    let deaths = Mutex::new(0);
    each(
        AT_ONCE,
        &cases,
        |(number, case)| format!("{number}: {case:?} ({})", repeat_with(seed)),
        |(number, case)| *deaths.lock().unwrap() += go_through(case, &mut Random::new(seed + *number as u64), &[]),
    );
    let deaths = deaths.into_inner().unwrap();
    eprintln!("{} pairs of places, {deaths} deaths", cases.len());
    assert!(deaths > cases.len(), "second places are never come to");
}

#[test]
fn a_process_that_goes_on_from_a_death_may_die_in_turn() {
    die_twice(false);
}

#[test]
#[ignore = "slow: scripts/test --slow"]
fn a_process_that_goes_on_from_a_death_at_any_place_may_die_at_any_other() {
    die_twice(true);
}

#[test]
fn a_run_with_a_database_may_die_at_each_place() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    server.create_loaded("immich", fixture.dump());
    let told = vec![(DATABASE, format!("{}\n{}", server.url("immich"), server.programs().display()))];
    let seed = given_seed().unwrap_or_else(fresh_seed);
    let cases: Vec<_> = places().into_iter().filter(|(_, act)| *act == Act::Dump).collect();
    each(
        // Its runs start processes of their own.
        1,
        &cases,
        |case| format!("{case:?} ({})", repeat_with(seed)),
        |case| assert_eq!(go_through(&[*case], &mut Random::new(seed), &told), 1, "nothing came to `{}`", case.0),
    );
}

/// Places of the directory store, which an object store never comes to.
const OF_A_DIRECTORY: [&str; 3] = ["temporary file written, not named", "object named, temporary file not removed", "object named, not durable"];

#[test]
fn a_process_that_stores_in_a_bucket_may_die_at_each_place() {
    let server = SeaweedFs::start(servers::Options { versioning: true, ..Default::default() }).unwrap();
    let bucket = server.bucket().clone();
    let behind = Behind::S3(bucket.clone());
    let acts = [Act::BackUp, Act::BackUpFilm];
    let gone = ["what is gone archived"];
    let cases: Vec<_> = places().into_iter().filter(|(place, act)| acts.contains(act) && !OF_A_DIRECTORY.contains(place)).collect();
    let met: BTreeSet<_> = cases.iter().map(|(place, _)| *place).collect();
    assert!(met.len() > 15 && gone.iter().all(|place| met.contains(place)));
    each(
        AT_ONCE,
        &cases,
        |case| format!("{case:?}"),
        |(place, act)| {
            let prefix = place.replace([' ', ','], "-");
            let world = World::in_memory();
            for number in 0..6 {
                world.write(&format!("upload/u{number}/{number}.jpg"), &support::noise(number, 700));
            }
            if *act == Act::BackUpFilm {
                world.write("upload/u0/film.mp4", &support::noise(77, (17 << 20) + 7));
            }
            here(async { init(behind.direct(&prefix), "test").await.unwrap() });
            let told = format!("{}\n{}\n{}\n{}\n{prefix}", bucket.endpoint, bucket.name, bucket.credentials.access_key, bucket.credentials.secret_key);
            assert!(dies(&world, *act, place, &[(BUCKET, told)]), "nothing came to `{place}`");
            here(async {
                let report = world.back_up_with(behind.direct(&prefix), STATE, &silent(), |_| {}).await.unwrap();
                assert_eq!(report.ending, Ending::Snapshot);
                behind.assert_whole(&prefix, &world).await;
            });
        },
    );
}
