//! Libraries that change at random, runs that end and runs that die, shards, machines and prunes, against a model of a few lines.
//!
//! A case that fails is made smaller, and kept in `proptest-regressions`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use immich_backup_core::backup::{BackupError, Ending, Plan, Report, Shard, run};
use immich_backup_core::event::Silent;
use immich_backup_core::model::{Part, Root, RunId, Sha256};
use immich_backup_core::prune::{self, Options, PruneError};
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::init;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::manifest::FolderTree;
use immich_backup_core::repository::store::{Attributes, Begin, ByteStream, Created, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload};
use immich_backup_core::retention::Policy;
use jiff::tz::TimeZone;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};
use support::{World, files, noise, silent, workers};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Where files can be: originals, files that Immich can make again, and a name that has no key of its own.
const PATHS: usize = 16;

fn path(number: usize) -> String {
    match number % PATHS {
        15 => format!("upload/u/{}", "%".repeat(120)),
        number @ 0..6 => format!("upload/u{}/{number}.jpg", number % 2),
        number @ 6..9 => format!("library/admin/2024/a picture {number}.jpg"),
        number => format!("thumbs/u{}/{number}.webp", number % 3),
    }
}

/// Contents, of a few sizes; some of the same size.
fn content(number: usize) -> Vec<u8> {
    let sizes = [40, 40, 40, 300, 300, 5_000];
    let number = number % 12;
    noise(number as u64 + 1, sizes[number % sizes.len()])
}

/// What happens.
#[derive(Debug, Clone)]
enum Step {
    /// A file appears, or takes other content.
    Write {
        at: usize,
        content: usize,
    },
    /// Other content of the same size, with the same modification time.
    Replace {
        at: usize,
    },
    Move {
        from: usize,
        to: usize,
    },
    Copy {
        from: usize,
        to: usize,
    },
    Delete {
        at: usize,
    },
    Mode {
        at: usize,
        mode: u32,
    },
    Touch {
        at: usize,
    },
    /// A run from the state folder `machine`; `rehash` reads everything again.
    Backup {
        machine: usize,
        rehash: bool,
    },
    /// A run that stops dead before or after its request number `after`.
    Dying {
        machine: usize,
        after: i64,
        arrives: bool,
    },
    /// A run by `of` processes; `dying` stops dead before its request number `after`, and is started again.
    Shards {
        of: u64,
        dying: u64,
        after: i64,
    },
    Prune,
    Verify {
        machine: usize,
    },
    /// A state folder is lost.
    Forget {
        machine: usize,
    },
    /// An earlier snapshot is restored.
    Restore {
        snapshot: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..PATHS;
    let machine = 0..2_usize;
    prop_oneof![
        6 => (at.clone(), 0..12_usize).prop_map(|(at, content)| Step::Write { at, content }),
        1 => at.clone().prop_map(|at| Step::Replace { at }),
        3 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Move { from, to }),
        2 => (at.clone(), at.clone()).prop_map(|(from, to)| Step::Copy { from, to }),
        2 => at.clone().prop_map(|at| Step::Delete { at }),
        1 => (at.clone(), prop::sample::select(vec![0o600, 0o640, 0o755])).prop_map(|(at, mode)| Step::Mode { at, mode }),
        1 => at.prop_map(|at| Step::Touch { at }),
        4 => (machine.clone(), any::<bool>()).prop_map(|(machine, rehash)| Step::Backup { machine, rehash }),
        3 => (machine.clone(), 0..14_i64, any::<bool>()).prop_map(|(machine, after, arrives)| Step::Dying { machine, after, arrives }),
        1 => (2..4_u64, 0..3_u64, 0..8_i64).prop_map(|(of, dying, after)| Step::Shards { of, dying, after }),
        1 => Just(Step::Prune),
        1 => machine.clone().prop_map(|machine| Step::Verify { machine }),
        1 => machine.prop_map(|machine| Step::Forget { machine }),
        1 => (0..8_usize).prop_map(|snapshot| Step::Restore { snapshot }),
    ]
}

/// A file as a snapshot holds it: content, modification time, permissions.
type Leaf = (Vec<u8>, i64, u32);
type Tree = BTreeMap<String, Leaf>;

fn tree(folder: &Path) -> Tree {
    let leaf = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (fs::read(path).unwrap(), found.mtime() * 1_000_000_000 + found.mtime_nsec(), found.mode() & 0o777)
    };
    let paths = files(folder).into_iter().filter(|path| !path.ends_with(".immich"));
    paths.map(|path| (path.to_str().unwrap().to_owned(), leaf(&folder.join(&path)))).collect()
}

/// A directory whose user stops dead at a request: that request and all that follow are never answered.
#[derive(Debug)]
struct Mortal {
    inner: DirectoryStore,
    left: AtomicI64,
    /// Whether the last request still arrives.
    arrives: bool,
    dead: Arc<Notify>,
}

impl Mortal {
    fn store(root: &Path, after: i64, arrives: bool) -> (Arc<dyn Store>, Arc<Notify>) {
        let dead = Arc::new(Notify::new());
        (Arc::new(Self { inner: DirectoryStore::new(root), left: AtomicI64::new(after), arrives, dead: Arc::clone(&dead) }), dead)
    }

    async fn request<T>(&self, request: impl Future<Output = T>) -> T {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            return request.await;
        }
        if left == 0 && self.arrives {
            drop(request.await);
        }
        self.dead.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Store for Mortal {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        self.request(self.inner.begin(identity, what)).await
    }

    fn stream_bytes(&self, size_bytes: u64) -> usize {
        self.inner.stream_bytes(size_bytes)
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        self.request(self.inner.create(key, content, attributes)).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        self.request(self.inner.create_streamed(key, attributes)).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        self.inner.list(prefix, after)
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.request(self.inner.sync()).await
    }
}

/// How a run ended, or that it died.
async fn until_dead<T>(running: impl Future<Output = T>, dead: &Notify) -> Option<T> {
    tokio::select! {
        biased;
        () = dead.notified() => None,
        ended = running => Some(ended),
    }
}

/// The world, and what is known of it.
struct Model {
    world: World,
    snapshots: Vec<(RunId, Tree)>,
    /// Each object that was seen: its inode, and its bytes' SHA-256.
    objects: BTreeMap<String, (u64, Sha256)>,
    /// Objects of dead runs whose content no file held any more when the next run came: the log names none of them (decision 50).
    orphans: BTreeSet<String>,
    /// Whether a run has died since the last snapshot: what stands in the log then is between two libraries.
    uncertain: bool,
    clock: u64,
}

impl Model {
    async fn new() -> Self {
        let world = World::in_memory();
        // Enough that stays: of few files none may go before a run asks whether that was meant.
        for number in 0..6 {
            world.write(&format!("upload/stays/{number}.jpg"), &noise(100 + number, 50));
        }
        init(world.directory(), "test").await.unwrap();
        Self { world, snapshots: Vec::new(), objects: BTreeMap::new(), orphans: BTreeSet::new(), uncertain: false, clock: 0 }
    }

    fn at(&self, number: usize) -> Option<String> {
        let path = path(number);
        self.world.library.join(&path).exists().then_some(path)
    }

    fn state(machine: usize) -> String {
        format!("machine-{machine}")
    }

    fn take_over(&self) -> Plan {
        Plan { take_over: true, workers: workers(3), ..self.world.plan() }
    }

    /// Whether the run that is about to be will withhold its snapshot: more than 10 % of the originals are gone with their content, or more than 5 % hold
    /// other content, and the old one stands nowhere.
    fn trips(&self, now: &Tree) -> bool {
        let Some((_, before)) = self.snapshots.last() else { return false };
        let originals = before.iter().filter(|(path, _)| !path.starts_with("thumbs/"));
        let stands: BTreeSet<_> = now.values().map(|leaf| &leaf.0).collect();
        let (mut all, mut gone, mut changed) = (0, 0, 0);
        for (path, (content, ..)) in originals {
            all += 1;
            match now.get(path) {
                _ if stands.contains(content) => {}
                None => gone += 1,
                Some(_) => changed += 1,
            }
        }
        gone * 100 > all * 10 || changed * 100 > all * 5
    }

    /// What a run that ended says, against what it should; a withheld one is accepted, as a person would.
    async fn ended(&mut self, report: Report, machine: &str) {
        let now = tree(&self.world.library);
        let trips = self.trips(&now);
        let report = match report.ending {
            Ending::Snapshot => {
                assert!(!trips || self.uncertain, "a snapshot that should have been withheld");
                report
            }
            Ending::Withheld { .. } => {
                assert!(trips || self.uncertain, "{:?}", report.ending);
                let plan = Plan { accept: Some(report.run), ..self.take_over() };
                let mut session = self.world.writing(self.world.directory(), machine).await.unwrap();
                Box::pin(run(&mut session, &plan, &silent(), &CancellationToken::new())).await.unwrap()
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(report.ending, Ending::Snapshot);
        assert!(report.is_complete(), "{report:?}");
        self.snapshots.push((report.run, now));
        let after_a_death = std::mem::replace(&mut self.uncertain, false);
        self.assert_restores(self.snapshots.len() - 1, machine).await;
        // What a dead run left is named now, or held by no file any more.
        self.look();
        if after_a_death {
            let known: BTreeSet<_> = self.snapshots.iter().flat_map(|(_, tree)| tree.values()).map(|leaf| Sha256::of(&leaf.0).0).collect();
            let content = self.objects.iter().filter(|(key, _)| is_content(key));
            self.orphans.extend(content.filter(|(_, (_, sha256))| !known.contains(&sha256.0)).map(|(key, _)| key.clone()));
        }
    }

    async fn assert_restores(&self, snapshot: usize, machine: &str) {
        let (id, expected) = &self.snapshots[snapshot];
        let to = self.world.beside("restored");
        drop(fs::remove_dir_all(&to));
        let report = self.world.restore(machine, &id.to_string(), &to).await.unwrap();
        assert_eq!(report.failed, 0);
        let found = tree(&to);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        assert!(found == *expected, "snapshot {snapshot} came back otherwise");
    }

    /// The folders of each snapshot have the files and sizes of the model, and those that the manifest lists one by one.
    async fn assert_folders(&self) {
        let session = self.world.reading("newcomer").await.unwrap();
        let folders = FolderTree::of(&session.manifest).unwrap();
        for (id, expected) in &self.snapshots {
            let sequence = session.manifest.snapshot(*id).unwrap().unwrap().sequence;
            let mut ahead = vec![String::new()];
            while let Some(path) = ahead.pop() {
                let found = folders.folder(sequence, &Root::Library, &path).unwrap();
                let below = expected.iter().filter(|(name, _)| path.is_empty() || name.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/')));
                let (files, bytes) = below.fold((0, 0), |(files, bytes), (_, leaf)| (files + 1, bytes + leaf.0.len() as u64));
                assert_eq!((found.below.files, found.below.bytes, found.below.damaged), (files, bytes, 0), "`{path}` of {id}");
                let listed = |gone| session.manifest.files_in(sequence, &Root::Library, &path, gone, 0, u32::MAX).unwrap().len() as u64;
                assert_eq!((found.own.0, found.own.0 + found.own.1), (listed(false), listed(true)), "`{path}` of {id}");
                ahead.extend(found.folders.into_iter().map(|(name, _)| if path.is_empty() { name } else { format!("{path}/{name}") }));
            }
        }
    }

    /// No object is another one than it was, or gone (but for copies of the manifest, which a prune removes), and no content is there twice.
    fn look(&mut self) {
        let mut now = BTreeMap::new();
        for key in files(&self.world.repository) {
            let whole = self.world.repository.join(&key);
            let key = key.to_str().unwrap().to_owned();
            if !key.starts_with("tmp/") {
                now.insert(key, (fs::metadata(&whole).unwrap().ino(), Sha256::of(&fs::read(&whole).unwrap())));
            }
        }
        for (key, before) in &self.objects {
            match now.get(key) {
                Some(found) => assert_eq!(found, before, "{key} was written again"),
                None => assert!(key.starts_with("manifests/"), "{key} is gone"),
            }
        }
        let mut contents: BTreeMap<[u8; 32], &str> = BTreeMap::new();
        for (key, (_, sha256)) in now.iter().filter(|(key, _)| is_content(key) && !self.orphans.contains(*key)) {
            if let Some(other) = contents.insert(sha256.0, key) {
                panic!("{other} and {key} hold the same");
            }
        }
        self.objects = now;
    }

    fn change(&mut self, step: &Step) {
        self.clock += 1;
        let library = self.world.library.clone();
        let at = |path: &str| library.join(path);
        match step {
            Step::Write { at, content: number } => self.write(&path(*at), &content(*number)),
            Step::Replace { at: number } => {
                let Some(path) = self.at(*number) else { return };
                let modified = fs::metadata(at(&path)).unwrap().modified().unwrap();
                let length = fs::read(at(&path)).unwrap().len();
                fs::write(at(&path), noise(1_000 + self.clock, length)).unwrap();
                fs::File::options().write(true).open(at(&path)).unwrap().set_modified(modified).unwrap();
            }
            Step::Move { from, to } => {
                let (Some(from), to) = (self.at(*from), path(*to)) else { return };
                self.world.rename(&from, &to);
            }
            Step::Copy { from, to } => {
                let (Some(from), to) = (self.at(*from), path(*to)) else { return };
                if from != to {
                    let content = fs::read(at(&from)).unwrap();
                    self.write(&to, &content);
                }
            }
            Step::Delete { at: number } => {
                if let Some(path) = self.at(*number) {
                    self.world.remove(&path);
                }
            }
            Step::Mode { at: number, mode } => {
                if let Some(path) = self.at(*number) {
                    fs::set_permissions(at(&path), fs::Permissions::from_mode(*mode)).unwrap();
                }
            }
            Step::Touch { at: number } => {
                if let Some(path) = self.at(*number) {
                    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000 + self.clock);
                    // Whoever may not write it may still say when it was modified.
                    fs::set_permissions(at(&path), fs::Permissions::from_mode(0o644)).unwrap();
                    fs::File::options().write(true).open(at(&path)).unwrap().set_modified(time).unwrap();
                }
            }
            _ => {}
        }
    }

    fn write(&self, path: &str, content: &[u8]) {
        let whole = self.world.library.join(path);
        if whole.exists() {
            fs::set_permissions(&whole, fs::Permissions::from_mode(0o644)).unwrap();
        }
        self.world.write(path, content);
    }

    async fn back_up(&self, store: Arc<dyn Store>, machine: &str, plan: &Plan) -> Result<Report, BackupError> {
        let mut session = self.world.writing(store, machine).await?;
        Box::pin(run(&mut session, plan, &silent(), &CancellationToken::new())).await
    }

    async fn act(&mut self, step: &Step) {
        match step {
            Step::Backup { machine, rehash } => {
                let machine = Self::state(*machine);
                let plan = Plan { rehash: rehash.then_some(immich_backup_core::model::Sample::OneOf(1)), ..self.take_over() };
                let report = self.back_up(self.world.directory(), &machine, &plan).await.unwrap();
                self.ended(report, &machine).await;
            }
            Step::Dying { machine, after, arrives } => {
                let machine = Self::state(*machine);
                let (store, dead) = Mortal::store(&self.world.repository, *after, *arrives);
                let plan = self.take_over();
                match until_dead(self.back_up(store, &machine, &plan), &dead).await {
                    Some(ended) => self.ended(ended.unwrap(), &machine).await,
                    None => self.died(&machine).await,
                }
            }
            Step::Shards { of, dying, after } => self.act_in_shards(*of, *dying, *after).await,
            Step::Prune => {
                let options = Options { policy: Policy::default(), zone: TimeZone::UTC, copies: true, derived: false };
                let (repository, state) = self.world.open(self.world.directory(), &Self::state(0)).await.unwrap();
                let stop = CancellationToken::new();
                match prune::open(repository, state, Duration::ZERO, &Silent, &stop).await {
                    Ok(mut session) => drop(prune::prepare(&session, &options).await.unwrap().run(&mut session, &Silent, &stop).await.unwrap()),
                    // Another machine's run has died, and may be alive for all that is known here.
                    Err(PruneError::Busy { .. }) => assert!(self.uncertain),
                    Err(error) => panic!("{error:?}"),
                }
            }
            Step::Verify { machine } => {
                let report = self.world.verify(&Self::state(*machine), true).await.unwrap();
                assert!(report.is_sound() && report.damaged == 0, "{report:?}");
            }
            Step::Forget { machine } => drop(fs::remove_dir_all(self.world.beside(&Self::state(*machine)))),
            Step::Restore { snapshot } if !self.snapshots.is_empty() => self.assert_restores(*snapshot % self.snapshots.len(), &Self::state(1)).await,
            _ => self.change(step),
        }
    }

    /// A run that died may have said that it ended, a moment before: then there is one more snapshot, of the library as it is.
    async fn died(&mut self, machine: &str) {
        let session = self.world.reading(machine).await.unwrap();
        let found = session.manifest.snapshots().unwrap();
        assert!(found.len() == self.snapshots.len() || found.len() == self.snapshots.len() + 1);
        drop(session);
        self.uncertain = true;
        if let Some(new) = found.get(self.snapshots.len()) {
            self.snapshots.push((new.id, tree(&self.world.library)));
            self.uncertain = false;
            self.assert_restores(self.snapshots.len() - 1, machine).await;
        }
    }

    async fn act_in_shards(&mut self, of: u64, dying: u64, after: i64) {
        let (id, dying) = (RunId::random(), dying % of);
        let plan = |part: u64| Plan { shard: Some(Shard { part: Part { of, part }, run: id }), ..self.take_over() };
        let state = |part: u64| format!("shard-{part}");
        let (mortal, dead) = Mortal::store(&self.world.repository, after, true);
        let before = self.snapshots.len();
        // One dies in the middle of the others, which know nothing of it.
        let first = async { until_dead(self.back_up(mortal, &state(dying), &plan(dying)), &dead).await };
        let others = async {
            let mut endings = Vec::new();
            for part in (0..of).filter(|part| *part != dying) {
                endings.push(self.back_up(self.world.directory(), &state(part), &plan(part)).await.unwrap());
            }
            endings
        };
        let (first, mut endings) = tokio::join!(first, others);
        match first {
            Some(report) => endings.push(report.unwrap()),
            None => {
                let again = self.back_up(self.world.directory(), &state(dying), &plan(dying)).await;
                match again {
                    Ok(report) => endings.push(report),
                    // It had ended the run, and did not live to say so.
                    Err(BackupError::RunIsOver { .. }) => return self.died(&state(dying)).await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }
        assert_eq!(self.snapshots.len(), before);
        let last = endings.into_iter().find(|report| matches!(report.ending, Ending::Snapshot | Ending::Withheld { .. }));
        let machine = Self::state(0);
        match last {
            Some(report) => self.ended(report, &machine).await,
            None => self.died(&machine).await,
        }
    }
}

fn is_content(key: &str) -> bool {
    key.starts_with("library/") || key.starts_with("versions/")
}

fn hold(steps: &[Step]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut model = Model::new().await;
        for step in steps {
            Box::pin(model.act(step)).await;
            model.look();
        }
        // Whatever happened, a run ends well, and every snapshot comes back on a machine that has seen none of it.
        Box::pin(model.act(&Step::Backup { machine: 0, rehash: false })).await;
        for snapshot in 0..model.snapshots.len() {
            model.assert_restores(snapshot, "newcomer").await;
        }
        model.assert_folders().await;
        let report = model.world.verify("newcomer", false).await.unwrap();
        assert!(report.is_sound() && report.damaged == 0, "{report:?}");
    });
}

fn config(cases: u32) -> ProptestConfig {
    let kept = FileFailurePersistence::Direct("tests/model.proptest-regressions");
    ProptestConfig { cases, max_shrink_iters: 300, failure_persistence: Some(Box::new(kept)), ..ProptestConfig::default() }
}

#[test]
fn whatever_happens_every_snapshot_is_what_the_model_says() {
    proptest!(config(64), |(steps in prop::collection::vec(step(), 4..28))| hold(&steps));
}

#[test]
#[ignore = "slow: two thousand cases"]
fn whatever_happens_in_two_thousand_cases_every_snapshot_is_what_the_model_says() {
    proptest!(config(2_000), |(steps in prop::collection::vec(step(), 4..40))| hold(&steps));
}
