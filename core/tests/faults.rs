//! Whole runs on stores that get into trouble, by random schedules: whatever goes wrong, what was announced comes back as it was, errors name what they are
//! about, nothing is stored again without need, and the next clean run completes.
//!
//! Each schedule has a seed, which is said where it fails; `IMMICH_BACKUP_TEST_SEED=seed` repeats that one alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

mod support;

use bytes::Bytes;
use http::StatusCode;
use immich_backup_core::backup::{BackupError, Ending};
use immich_backup_core::event::{Event, Monitor, Recorder, Silent};
use immich_backup_core::repository::log::LogError;
use immich_backup_core::repository::store::Store;
use immich_backup_core::repository::{OpenError, Session, init};
use immich_backup_core::restore::RestoreError;
use immich_backup_core::told::told;
use immich_backup_core::verify::{self, Depth};
use immich_backup_testbed::proxy::{Action, Fired, Proxy, Record, Rule};
use immich_backup_testbed::servers::{self, SeaweedFs};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::behind::{Behind, Line};
use support::memory::MemoryStore;
use support::story::{Random, Story, fresh_seed, given_seed, repeat_with};
use support::trouble::{Fault, Troubled};
use support::{World, contents, restore_from, workers};
use tokio_util::sync::CancellationToken;

/// What a schedule is played on: a store that gets into trouble, and the same one without.
trait Ground {
    /// The store that gets into trouble, as a new process opens it.
    fn troubled(&self, random: &mut Random) -> Arc<dyn Store>;
    /// The same, and nothing goes wrong.
    fn direct(&self) -> Arc<dyn Store>;
    /// Returns once somebody waits for ever.
    fn hangs(&self) -> impl Future<Output = ()> + Send;
    /// The keys, or what they begin with, of what went wrong so far.
    fn keys_of_trouble(&self) -> BTreeSet<String>;
    /// Whether anything made the program see something else than there is.
    fn deceived(&self) -> bool;
    /// What it holds, by key.
    fn objects(&self) -> BTreeMap<String, Bytes>;
    /// Nothing goes wrong from now on.
    fn calm(&self);
    /// Which faults happened, for the figures.
    fn faults(&self) -> Vec<String>;
}

/// How an operation may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    Well,
    /// With files that could not be restored, or objects that seem damaged.
    Incomplete,
    Failed,
    /// The log seemed damaged.
    LogDamaged,
    /// It was killed while it waited for ever.
    Killed,
}

fn class_of_open(error: &OpenError) -> Ended {
    match error {
        OpenError::Log(LogError::Store(_)) | OpenError::Store { .. } => Ended::Failed,
        OpenError::Log(_) | OpenError::DamagedIdentity { .. } | OpenError::UnknownFormat { .. } | OpenError::UnsteadyIdentity { .. } => Ended::LogDamaged,
        other => panic!("nothing can cause this: {}", told(other)),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// One schedule, being played.
struct Play<'a, G: Ground> {
    ground: &'a G,
    story: Story,
    random: Random,
    state: u32,
    ends: Vec<Ended>,
}

impl<G: Ground + Sync> Play<'_, G> {
    fn state(&self) -> String {
        format!("state-{}", self.state)
    }

    /// What `operation` came to; nothing where it would wait for ever: then the process is killed.
    fn unless_it_hangs<T>(&self, operation: impl Future<Output = T>) -> Option<T> {
        let runtime = runtime();
        let ended = runtime.block_on(async {
            tokio::select! {
                ended = operation => Some(ended),
                () = self.ground.hangs() => None,
            }
        });
        runtime.shutdown_background();
        ended
    }

    /// An error that went wrong for a reason names what it is about.
    fn check(&self, error: &(dyn std::error::Error + 'static), ended: Ended) {
        let text = told(error);
        // Shown where the schedule fails.
        eprintln!("{ended:?}: {text}");
        let keys = self.ground.keys_of_trouble();
        assert!(!keys.is_empty(), "nothing went wrong, and yet: {text}");
        // Where a listing is not what it should be, entries are named by their numbers.
        let number = |key: &str| key.strip_prefix("log/").and_then(|rest| rest.get(..10)).map(|digits| digits.trim_start_matches('0').to_owned());
        let names = |key: &String| text.contains(key.as_str()) || number(key).is_some_and(|number| text.contains(&format!("entry {number}")));
        let url = self.ground.direct().url().to_owned();
        assert!(keys.iter().any(names) || text.contains(&url) || ended == Ended::LogDamaged && text.contains("entry "), "`{text}` names none of {keys:?}");
        assert!(ended != Ended::LogDamaged || self.ground.deceived(), "a log that is whole is called damaged: {text}");
    }

    fn back_up(&mut self) -> Ended {
        let recorder = Arc::new(Recorder::default());
        let monitor: Arc<dyn Monitor> = recorder.clone();
        let (store, state, count) = (self.ground.troubled(&mut self.random), self.state(), 1 + self.random.below(4));
        let ended = self.unless_it_hangs(self.story.world.back_up_with(store, &state, &monitor, |plan| {
            plan.workers = workers(count);
            plan.walkers = std::num::NonZeroUsize::MIN;
            // Its own state folder may have been lost, and then a dead run is somebody else's.
            plan.take_over = true;
        }));
        for event in recorder.events() {
            if let Event::RunStarted { run, .. } = event {
                self.story.note(run);
            }
        }
        match ended {
            None => Ended::Killed,
            Some(Ok(report)) => {
                assert_eq!((&report.ending, report.counts.unread, report.counts.bit_rot), (&Ending::Snapshot, 0, 0), "{:?}", report.unread);
                Ended::Well
            }
            Some(Err(error)) => {
                let ended = match &error {
                    BackupError::Open(error) => class_of_open(error),
                    BackupError::Store(_) => Ended::Failed,
                    other => panic!("nothing can cause this: {}", told(other)),
                };
                self.check(&error, ended);
                ended
            }
        }
    }

    fn verify(&mut self) -> Ended {
        let (store, state) = (self.ground.troubled(&mut self.random), self.state());
        let world = &self.story.world;
        let ended = self.unless_it_hangs(async {
            let (repository, state) = world.open(store, &state).await?;
            let mut session = Session::open_for_reading(repository, state, &Silent).await?;
            let plan = verify::Plan { depth: Depth::Read(None), workers: workers(2), record: true };
            Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await
        });
        match ended {
            None => Ended::Killed,
            Some(Ok(report)) if report.damaged > 0 => {
                // What it says of an object is true of what it was shown.
                assert!(self.ground.deceived() || !self.ground.keys_of_trouble().is_empty(), "{:?}", report.findings);
                Ended::Incomplete
            }
            Some(Ok(_)) => Ended::Well,
            Some(Err(error)) => {
                let ended = class_of_open(&error);
                self.check(&error, ended);
                ended
            }
        }
    }

    fn restore(&mut self) -> Ended {
        let (store, state) = (self.ground.troubled(&mut self.random), self.state());
        let world = &self.story.world;
        // One that is killed may go on for a moment, which a process that dies does not: nobody looks at its folder, nor uses it again.
        let to = world.beside(&format!("restored-in-trouble-{}", self.ends.len()));
        let ended = self.unless_it_hangs(async {
            let (repository, state) = world.open(store, &state).await?;
            let session = Session::open_for_reading(repository, state, &Silent).await?;
            let Some(latest) = session.manifest.latest_snapshot()? else { return Ok(None) };
            restore_from(&session, &latest.id.to_string(), &to).await.map(|report| Some((latest.id, report)))
        });
        let Some(ended) = ended else { return Ended::Killed };
        let found = if to.exists() { contents(&to) } else { BTreeMap::new() };
        drop(std::fs::remove_dir_all(&to));
        match ended {
            Ok(None) => Ended::Well,
            Ok(Some((id, report))) => {
                let expected = self.story.tree_of(id);
                // What is under its name is right, each time.
                let wrong: Vec<_> = found.iter().filter(|(path, content)| expected.get(*path) != Some(*content)).map(|(path, _)| path).collect();
                assert!(wrong.is_empty(), "restored with other bytes: {wrong:?}");
                assert_eq!(found.len() as u64 + report.failed, expected.len() as u64, "neither restored nor named: {:?}", report.failures);
                if report.failed > 0 {
                    assert!(!self.ground.keys_of_trouble().is_empty());
                    return Ended::Incomplete;
                }
                Ended::Well
            }
            Err(error) => {
                let ended = match &error {
                    RestoreError::Open(error) => class_of_open(error),
                    other => panic!("nothing can cause this: {}", told(other)),
                };
                self.check(&error, ended);
                ended
            }
        }
    }

    fn play(&mut self) {
        for _ in 0..3 + self.random.below(3) {
            let ended = match self.random.below(6) {
                0 => self.verify(),
                1 => self.restore(),
                _ => {
                    let ended = self.back_up();
                    self.story.change(&mut self.random);
                    ended
                }
            };
            eprintln!("{ended:?}, on {}, after {:?}", self.state(), self.ground.faults());
            self.ends.push(ended);
            if self.random.once_in(5) {
                // The machine is a new one.
                self.state += 1;
            }
        }
        self.ground.calm();
        let last = self.back_up();
        assert_eq!(last, Ended::Well, "the next clean run");
        self.ends.push(last);
        // What was called damaged has been stored again; what was not is sound.
        assert_ne!(self.verify(), Ended::Failed);
        runtime().block_on(async {
            let (repository, state) = self.story.world.open(self.ground.direct(), "onlooker").await.unwrap();
            let mut session = Session::open_for_reading(repository, state, &Silent).await.unwrap();
            let plan = verify::Plan { depth: Depth::Read(None), workers: workers(2), record: true };
            let verified = Box::pin(verify::run(&mut session, plan, &Silent, &CancellationToken::new())).await.unwrap();
            assert!(verified.is_sound() && verified.lost == 0, "{:?}", verified.findings);
            self.check_unnamed(&verified.unnamed);
            assert!(self.story.assert_all_restore(&session).await > 0);
        });
        self.check_stored_once();
    }

    /// What nothing names holds what the library does not have any more, or is a copy of a copy.
    fn check_unnamed(&self, unnamed: &[String]) {
        if self.ground.deceived() {
            return;
        }
        let objects = self.ground.objects();
        let contents: BTreeSet<_> = self.story.tree().values().map(Vec::as_slice).collect();
        let left: Vec<_> = unnamed.iter().filter(|key| objects.get(*key).is_some_and(|content| contents.contains(&content[..]))).collect();
        assert!(left.is_empty(), "stored, needed, and named by nothing: {left:?}");
    }

    /// No content of files is there twice, unless the program was made to believe that it is lost.
    fn check_stored_once(&self) {
        let objects = self.ground.objects();
        let mut keys: BTreeMap<&[u8], Vec<&str>> = BTreeMap::new();
        for (key, content) in objects.iter().filter(|(key, _)| key.starts_with("library/") || key.starts_with("versions/")) {
            keys.entry(content).or_default().push(key);
        }
        let twice: Vec<_> = keys.values().filter(|keys| keys.len() > 1).collect();
        assert!(twice.is_empty() || self.ground.deceived(), "stored twice without need: {twice:?}");
    }
}

/// What all schedules of a test came to.
#[derive(Default)]
struct Tally {
    schedules: AtomicU64,
    faults: Mutex<BTreeMap<String, u64>>,
    ends: Mutex<BTreeMap<Ended, u64>>,
}

impl Tally {
    fn add<G: Ground>(&self, play: &Play<'_, G>) {
        self.schedules.fetch_add(1, Ordering::Relaxed);
        for fault in play.ground.faults() {
            *self.faults.lock().unwrap().entry(fault).or_default() += 1;
        }
        for end in &play.ends {
            *self.ends.lock().unwrap().entry(*end).or_default() += 1;
        }
    }

    fn tell(&self) {
        eprintln!("{} schedules; {:?}; faults: {:?}", self.schedules.load(Ordering::Relaxed), self.ends.lock().unwrap(), self.faults.lock().unwrap());
    }
}

/// A schedule that is not over after so long hangs: the longest take some 20 s, and a busy machine is ten times as slow.
const HANGS: Duration = Duration::from_secs(240);

/// Tells where something is.
type Where = Box<dyn Fn() -> String + Send>;

/// What is being played: since when, and where it is, by seed.
type Playing = Arc<Mutex<BTreeMap<u64, (Instant, Option<Where>)>>>;

/// Ends the test and tells of the schedule that hangs, before somebody ends it who cannot tell which one that was.
struct Watch(Playing);

impl Watch {
    fn new() -> Self {
        let playing = Playing::default();
        let watched = Arc::downgrade(&playing);
        std::thread::spawn(move || {
            while let Some(playing) = watched.upgrade() {
                if let Some((seed, (_, place))) = playing.lock().unwrap().iter().find(|(_, (begun, _))| begun.elapsed() > HANGS) {
                    let place = place.as_ref().map(|place| place()).unwrap_or_default();
                    // What is printed would be held back until the test ends, which it does not.
                    let told = format!("hangs: {}\n{place}\n", repeat_with(*seed));
                    std::io::stderr().write_all(told.as_bytes()).unwrap();
                    std::process::exit(101);
                }
                drop(playing);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Self(playing)
    }

    fn begin(&self, seed: u64) {
        self.0.lock().unwrap().insert(seed, (Instant::now(), None));
    }

    /// Where `seed` is is told by this.
    fn is_at(&self, seed: u64, place: Where) {
        if let Some(playing) = self.0.lock().unwrap().get_mut(&seed) {
            playing.1 = Some(place);
        }
    }

    fn end(&self, seed: u64) {
        self.0.lock().unwrap().remove(&seed);
    }
}

/// Plays schedules until `enough` says so of how many there were, several at once; those that fail are named by their seeds.
fn each(at_once: usize, enough: impl Fn(u64) -> bool + Sync, play: impl Fn(u64, &Watch) + Sync) {
    let (first, one) = given_seed().map_or_else(|| (fresh_seed(), false), |seed| (seed, true));
    let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    let watch = Watch::new();
    std::thread::scope(|scope| {
        for _ in 0..if one { 1 } else { at_once } {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if (one && number > 0) || (!one && enough(number)) || failed.lock().unwrap().len() > 5 {
                        return;
                    }
                    let seed = first + number;
                    watch.begin(seed);
                    if std::panic::catch_unwind(AssertUnwindSafe(|| play(seed, &watch))).is_err() {
                        eprintln!("failed: {}", repeat_with(seed));
                        failed.lock().unwrap().push(repeat_with(seed));
                    }
                    watch.end(seed);
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "these failed: {failed:?}");
}

/// A store in memory, in trouble as the trait shows it.
struct InMemory {
    store: MemoryStore,
    troubled: Troubled,
}

impl Ground for InMemory {
    fn troubled(&self, random: &mut Random) -> Arc<dyn Store> {
        // Mostly somebody has made room and renewed the credentials.
        if !random.once_in(4) {
            self.troubled.renew();
        }
        Arc::new(self.troubled.clone())
    }

    fn direct(&self) -> Arc<dyn Store> {
        Arc::new(self.store.clone())
    }

    async fn hangs(&self) {
        self.troubled.hangs().await;
    }

    fn keys_of_trouble(&self) -> BTreeSet<String> {
        self.troubled.happened().into_iter().map(|(_, key)| key).collect()
    }

    fn deceived(&self) -> bool {
        self.troubled.happened().iter().any(|(fault, _)| fault.deceives())
    }

    fn objects(&self) -> BTreeMap<String, Bytes> {
        self.store.objects()
    }

    fn calm(&self) {
        self.troubled.calm();
    }

    fn faults(&self) -> Vec<String> {
        self.troubled.happened().into_iter().map(|(fault, _)| format!("{fault:?}")).collect()
    }
}

fn in_memory(seed: u64, tally: &Tally) {
    let mut random = Random::new(seed);
    // One kind, or a few, or all; seldom or often. Only some schedules deceive: the others have to leave everything stored once.
    let honest: Vec<_> = Fault::ALL.into_iter().filter(|fault| !fault.deceives()).collect();
    let kinds = match random.below(4) {
        0 => vec![*random.pick(&Fault::ALL)],
        1 => honest,
        2 => (0..3).map(|_| *random.pick(&honest)).collect(),
        _ => Fault::ALL.to_vec(),
    };
    let one_in = *random.pick(&[5, 15, 40, 100]);
    let store = MemoryStore::new(random.once_in(2));
    let troubled = Troubled::new(store.clone(), random.next(), &kinds, one_in);
    let ground = InMemory { store, troubled };
    let mut story = Story::begin(World::in_memory());
    if random.once_in(20) {
        story.add_film(random.next());
    }
    runtime().block_on(async { init(ground.direct(), "test").await.unwrap() });
    let mut play = Play { ground: &ground, story, random, state: 0, ends: Vec::new() };
    play.play();
    tally.add(&play);
}

fn schedules_of_the_trait(count: u64) {
    let tally = Tally::default();
    each(3, |number| number >= count, |seed, _| in_memory(seed, &tally));
    tally.tell();
    if given_seed().is_none() {
        // Some are rare: of thousands of schedules each has its share.
        let faults = tally.faults.lock().unwrap().len();
        let expected = if count >= 5_000 { Fault::ALL.len() } else { Fault::ALL.len() / 2 };
        assert!(faults >= expected, "only {faults} kinds of faults ever happened");
    }
}

#[test]
fn whatever_goes_wrong_between_runs_and_a_store_every_snapshot_comes_back_200_schedules() {
    schedules_of_the_trait(200);
}

#[test]
#[ignore = "slow: scripts/test --slow"]
fn whatever_goes_wrong_between_runs_and_a_store_every_snapshot_comes_back_10_000_schedules() {
    schedules_of_the_trait(10_000);
}

/// A real SeaweedFS behind a line that fails.
struct OnTheWire {
    behind: Behind,
    line: Line,
    prefix: String,
    /// What was to go wrong, whether that deceives, and how often it did.
    rules: Mutex<Vec<(&'static str, bool, Fired)>>,
    is_calm: AtomicBool,
}

/// A line that is silent for so long is given up; long enough for a busy machine, and where one is given up all the same, nothing is lost either.
const IDLE: Duration = Duration::from_secs(3);

impl OnTheWire {
    /// Something that goes wrong with one of the requests to come, or from one on; and whether it may deceive.
    fn add_rule(&self, random: &mut Random) {
        let error = |code: StatusCode, error: &str| Action::s3_error(code, error);
        let after_bytes = u64::try_from(random.below(400)).unwrap();
        let (name, deceives, method, action) = match random.below(17) {
            0 => ("refused", false, None, Action::Refuse),
            1 => ("reset before", false, None, Action::ResetBefore { after_bytes }),
            2 | 3 => ("reset after", false, None, Action::ResetAfter),
            4 => ("hang before", false, None, Action::HangBefore),
            5 => ("hang after", false, None, Action::HangAfter),
            6 => ("500", false, None, error(StatusCode::INTERNAL_SERVER_ERROR, "InternalError")),
            7 => ("503", false, None, error(StatusCode::SERVICE_UNAVAILABLE, "SlowDown")),
            8 => ("409", false, Some("PUT"), error(StatusCode::CONFLICT, "ConditionalRequestConflict")),
            9 => ("200 with an error", false, Some("PUT"), Action::OkWithError { error: "InternalError", forwarded: random.once_in(2) }),
            10 => ("altered on the way there", false, Some("PUT"), Action::CorruptRequest { offset: after_bytes % 100 }),
            11 => ("altered on the way back", true, Some("GET"), Action::CorruptResponse { offset: after_bytes % 100 }),
            12 => ("cut on the way back", true, Some("GET"), Action::TruncateResponse { after_bytes }),
            13 => ("the clock is off", false, None, error(StatusCode::FORBIDDEN, "RequestTimeTooSkewed")),
            14 => ("another ETag", false, None, Action::AnswerHeader { name: "etag", value: "\"00112233445566778899aabbccddeeff\"" }),
            15 => ("credentials are over", false, None, error(StatusCode::BAD_REQUEST, "ExpiredToken")),
            _ => ("full", false, Some("PUT"), error(StatusCode::INSUFFICIENT_STORAGE, "QuotaExceeded")),
        };
        let rule = method.map_or_else(Rule::any, Rule::on).after(u64::try_from(random.below(60)).unwrap());
        // Once, as often as it is tried, or from then on. What hangs takes its time, and does so once.
        let times = if name.starts_with("hang") { 1 } else { *random.pick(&[1, 1, 1, 2, 7, u64::MAX]) };
        let fired = self.line.proxy.add(rule.times(times).then(action));
        self.rules.lock().unwrap().push((name, deceives, fired));
    }
}

impl Ground for OnTheWire {
    fn troubled(&self, random: &mut Random) -> Arc<dyn Store> {
        self.line.proxy.clear_rules();
        if !self.is_calm.load(Ordering::Relaxed) {
            for _ in 0..1 + random.below(3) {
                self.add_rule(random);
            }
        }
        self.line.store_with(|options| options.idle = IDLE)
    }

    fn direct(&self) -> Arc<dyn Store> {
        self.behind.direct(&self.prefix)
    }

    async fn hangs(&self) {
        std::future::pending().await
    }

    fn keys_of_trouble(&self) -> BTreeSet<String> {
        let before = format!("/{}/", self.prefix);
        // 404 and 412 are answers. A success may be one that was said too early, or is cut, or has other bytes.
        let is_answer = |status: StatusCode| [StatusCode::NOT_FOUND, StatusCode::PRECONDITION_FAILED].contains(&status);
        let disguised = ["200 with an error", "altered on the way there", "altered on the way back", "cut on the way back", "another ETag"];
        let any = self.rules.lock().unwrap().iter().any(|(name, _, fired)| disguised.contains(name) && fired.count() > 0);
        let failed = |record: &Record| any || record.answered.is_none_or(|status| !status.is_success() && !is_answer(status));
        let mut keys = BTreeSet::new();
        for record in self.line.proxy.log().iter().filter(|record| failed(record)) {
            match record.path.split_once(&before) {
                Some((_, key)) => drop(keys.insert(key.to_owned())),
                // A listing names what it is of in its query.
                None => {
                    let query = record.query.replace("%2F", "/");
                    let listed = query.split('&').filter_map(|part| part.strip_prefix("prefix="));
                    keys.extend(listed.map(str::to_owned));
                }
            }
        }
        keys
    }

    fn deceived(&self) -> bool {
        self.rules.lock().unwrap().iter().any(|(_, deceives, fired)| *deceives && fired.count() > 0)
    }

    fn objects(&self) -> BTreeMap<String, Bytes> {
        let Behind::S3(bucket) = &self.behind else { panic!("not S3") };
        self.behind.keys(&self.prefix).into_iter().map(|key| (key.clone(), bucket.get(&format!("{}/{key}", self.prefix)).unwrap())).collect()
    }

    fn calm(&self) {
        self.is_calm.store(true, Ordering::Relaxed);
        self.line.proxy.clear_rules();
    }

    fn faults(&self) -> Vec<String> {
        let of = |(name, _, fired): &(&'static str, bool, Fired)| (0..fired.count()).map(|_| (*name).to_owned()).collect::<Vec<_>>();
        self.rules.lock().unwrap().iter().flat_map(of).collect()
    }
}

/// What was asked last, and what became of it.
fn last_requests(line: &Proxy) -> String {
    let told = |record: &Record| format!("{} {}?{}: {:?}, {:?}", record.method, record.path, record.query, record.upstream, record.answered);
    let records = line.log();
    records.iter().skip(records.len().saturating_sub(30)).map(told).collect::<Vec<_>>().join("\n")
}

fn on_the_wire(behind: &Behind, seed: u64, tally: &Tally, watch: &Watch) {
    let mut random = Random::new(seed);
    let prefix = format!("schedule-{seed}");
    let ground = OnTheWire { line: Line::to(behind, &prefix), behind: behind.clone(), prefix, rules: Mutex::default(), is_calm: AtomicBool::new(false) };
    let line = Arc::clone(&ground.line.proxy);
    watch.is_at(seed, Box::new(move || last_requests(&line)));
    let mut story = Story::begin(World::in_memory());
    if random.once_in(4) {
        story.add_film(random.next());
    }
    runtime().block_on(async { init(ground.direct(), "test").await.unwrap() });
    let mut play = Play { ground: &ground, story, random, state: 0, ends: Vec::new() };
    play.play();
    behind.assert_nothing_was_replaced(&ground.prefix);
    tally.add(&play);
}

fn schedules_of_the_wire(count: u64) {
    let server = SeaweedFs::start(servers::Options { versioning: true, ..Default::default() }).unwrap();
    let behind = Behind::S3(server.bucket().clone());
    let tally = Tally::default();
    let begun = Instant::now();
    each(4, |number| number >= count, |seed, watch| on_the_wire(&behind, seed, &tally, watch));
    eprintln!("in {} s", begun.elapsed().as_secs());
    tally.tell();
}

#[test]
fn whatever_goes_wrong_on_the_line_to_a_real_store_every_snapshot_comes_back_24_schedules() {
    schedules_of_the_wire(24);
}

#[test]
#[ignore = "slow: scripts/test --slow"]
fn whatever_goes_wrong_on_the_line_to_a_real_store_every_snapshot_comes_back_400_schedules() {
    schedules_of_the_wire(400);
}
