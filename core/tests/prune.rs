//! A prune removes what nothing needs any more, says so in the log first, and leaves the rest as whole as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use immich_backup_core::event::Silent;
use immich_backup_core::library::layout::class_of;
use immich_backup_core::model::{Class, FilePath, RunId, Sha256};
use immich_backup_core::prune::{self, AfterRun, Options, PruneError, Report};
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{self, DumpFact, Fact, Pruned, RunStarted, SnapshotFact, StoredFact, Tally};
use immich_backup_core::repository::store::{
    Attributes, Begin, ByteStream, Created, Kind, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload,
};
use immich_backup_core::repository::{OpenError, Session};
use immich_backup_core::retention::Policy;
use immich_backup_core::verdict::Proof;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::{World, contents, files, noise, silent};
use tokio_util::sync::CancellationToken;

/// A store whose objects cannot be removed after a number of removals, and which says beforehand what it is told to say.
#[derive(Debug)]
struct Guarded {
    inner: DirectoryStore,
    says: Option<bool>,
    left: AtomicU64,
    /// Another machine, and what it writes into the log once the first object is gone.
    intruder: tokio::sync::Mutex<Option<(Session, Fact)>>,
}

impl Guarded {
    fn store(root: &Path, says: Option<bool>, left: u64) -> Arc<dyn Store> {
        Arc::new(Self { inner: DirectoryStore::new(root), says, left: AtomicU64::new(left), intruder: tokio::sync::Mutex::default() })
    }

    fn with_intruder(root: &Path, intruder: Session, fact: Fact) -> Arc<dyn Store> {
        let intruder = tokio::sync::Mutex::new(Some((intruder, fact)));
        Arc::new(Self { inner: DirectoryStore::new(root), says: None, left: AtomicU64::new(u64::MAX), intruder })
    }
}

#[async_trait]
impl Store for Guarded {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn capabilities(&self) -> StoreCapabilities {
        self.inner.capabilities()
    }

    async fn begin(&self, identity: &Bytes, what: Begin<'_>) -> Result<Created, StoreError> {
        self.inner.begin(identity, what).await
    }

    fn stream_bytes(&self, size_bytes: u64) -> usize {
        self.inner.stream_bytes(size_bytes)
    }

    async fn create(&self, key: &Key, content: Bytes, attributes: &Attributes) -> Result<Created, StoreError> {
        self.inner.create(key, content, attributes).await
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        self.inner.create_streamed(key, attributes).await
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
        if self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err() {
            return Err(StoreError::Denied { action: "delete", key: key.to_string(), source: io::Error::other("AccessDenied") });
        }
        self.inner.delete(key).await?;
        if let Some((mut session, fact)) = self.intruder.lock().await.take() {
            session.commit(None, &[fact], &Silent).await.unwrap();
        }
        Ok(())
    }

    async fn may_delete(&self) -> Option<bool> {
        self.says
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.inner.sync().await
    }
}

async fn writing(world: &World, state: &str) -> Session {
    world.writing(world.directory(), state).await.unwrap()
}

/// A run with a dump taken at `at`, and a snapshot of what stands.
async fn dump(session: &mut Session, at: &str, proof: Option<Proof>, label: Option<&str>) -> String {
    let at: Timestamp = at.parse().unwrap();
    let bytes = Bytes::from(noise(at.as_second().unsigned_abs(), 300));
    let key = Key::dump(at, "3.1.0", "sql.gz");
    let sha256 = Sha256::of(&bytes);
    let run = RunId::random();
    let started = RunStarted { at, host: "test".to_owned(), roots: Vec::new(), accepts: None, shard: None };
    session.commit(Some(run), &[Fact::RunStarted(started)], &Silent).await.unwrap();
    assert_eq!(session.store().create(&key, bytes, &Attributes::of(Kind::Manifest, sha256)).await.unwrap(), Created::New);
    let dump = DumpFact {
        key: key.to_string(),
        sha256,
        size: 300,
        plain_size: 1_000,
        taken_at: at,
        immich_version: None,
        server_version: None,
        program_version: None,
        rows: 1,
        before_restore: false,
        without_data: Vec::new(),
    };
    let snapshot = SnapshotFact {
        started_at: at,
        taken_at: at,
        label: label.map(str::to_owned),
        immich_version: None,
        totals: session.manifest.totals(),
        sent: Tally::default(),
        archived: 0,
        unread_count: 0,
        unread: Vec::new(),
        bit_rot_count: 0,
        bit_rot: Vec::new(),
        rehashed: None,
        originals_only: false,
        exclude: Vec::new(),
        dump: Some(key.to_string()),
        proof,
        ignored: 0,
        doubtful_count: 0,
        doubtful: Vec::new(),
    };
    session.commit(Some(run), &[Fact::Dump(dump), Fact::Snapshot(Box::new(snapshot))], &Silent).await.unwrap();
    key.to_string()
}

/// A repository with a dump of each of the first `days` of 2026; that of the 2nd is proven, that of the 3rd has a label.
async fn with_dumps(days: u8) -> World {
    let world = World::with_files(20).await;
    world.back_up().await;
    let mut session = writing(&world, "state").await;
    for day in 1..=days {
        let proof = (day == 2).then(|| Proof { assets: 3, proven: 3, ..Proof::default() });
        dump(&mut session, &format!("2026-01-{day:02}T03:00:00Z"), proof, (day == 3).then_some("before the upgrade")).await;
    }
    world
}

fn last(number: &str) -> Options {
    Options { policy: Policy::from_retention_text(number).unwrap(), zone: TimeZone::UTC, copies: true, derived: false }
}

fn derived() -> Options {
    Options { policy: Policy::default(), zone: TimeZone::UTC, copies: false, derived: true }
}

async fn prune_with(world: &World, store: Arc<dyn Store>, state: &str, options: &Options) -> Result<Report, PruneError> {
    let (repository, state) = world.open(store, state).await?;
    let stop = CancellationToken::new();
    let mut session = prune::open(repository, state, Duration::ZERO, &Silent, &stop).await?;
    prune::prepare(&session, options).await?.run(&mut session, &Silent, &stop).await
}

async fn prune_from(world: &World, state: &str, options: &Options) -> Report {
    prune_with(world, world.directory(), state, options).await.unwrap()
}

fn objects(world: &World, prefix: &str) -> Vec<String> {
    let folder = world.repository.join(prefix);
    if folder.exists() { files(&folder).iter().map(|path| path.to_str().unwrap().to_owned()).collect() } else { Vec::new() }
}

fn days(world: &World) -> Vec<u8> {
    objects(world, "database").iter().map(|name| name[8..10].parse().unwrap()).collect()
}

fn entries(world: &World) -> usize {
    objects(world, "log").len()
}

/// All tables of the local manifest of a state folder, as text; but for times that differ by design.
fn tables(world: &World, state: &str) -> BTreeMap<String, Vec<String>> {
    let path = files(&world.beside(state)).into_iter().find(|path| path.ends_with("manifest.db")).unwrap();
    let connection = rusqlite::Connection::open(world.beside(state).join(path)).unwrap();
    let mut tables = BTreeMap::new();
    for table in ["version", "snapshot", "run", "verification", "damage", "dump", "drill", "pruned", "manifest_copy", "manifest_metadata"] {
        let mut query = connection
            .prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2, 3"))
            .unwrap_or_else(|_| connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap());
        let columns = query.column_count();
        let rows = query.query_map([], |row| Ok((0..columns).map(|column| format!("{:?}", row.get_ref(column).unwrap())).collect::<Vec<_>>().join("|")));
        tables.insert(table.to_owned(), rows.unwrap().map(Result::unwrap).collect());
    }
    tables
}

async fn is_sound(world: &World, state: &str) {
    let report = world.verify(state, false).await.unwrap();
    assert!(report.is_sound() && report.damaged == 0, "{:?}", report.findings);
}

#[tokio::test]
async fn dumps_go_by_policy_and_those_that_matter_stay() {
    let world = with_dumps(6).await;
    let before = entries(&world);
    let report = prune_from(&world, "state", &last("2")).await;
    assert_eq!(days(&world), [2, 3, 5, 6], "the proven one, that of the label, and the newest two");
    assert_eq!(report.removed, 2);
    assert_eq!(report.plan.removed(), Tally { files: 2, bytes: 600 });
    assert_eq!(entries(&world), before + 2, "one entry that says what goes, one that says that it is gone");
    is_sound(&world, "state").await;
    let session = writing(&world, "state").await;
    assert_eq!(session.manifest.count_given_up().unwrap(), 0);
    assert_eq!(session.manifest.dumps().unwrap().iter().filter(|dump| dump.pruned).count(), 2, "that they were there stays known");
    drop(session);
    let again = prune_from(&world, "state", &last("2")).await;
    assert!(again.plan.is_empty());
    assert_eq!(entries(&world), before + 2, "nothing to do writes nothing");
}

#[tokio::test]
async fn a_plan_changes_nothing() {
    let world = with_dumps(4).await;
    let before = contents(&world.repository);
    let session = world.reading("state").await.unwrap();
    let prepared = prune::prepare(&session, &Options { derived: true, ..last("1") }).await.unwrap();
    assert_eq!(prepared.plan.dumps_removed().files, 1);
    drop((prepared, session));
    assert_eq!(contents(&world.repository), before);
}

#[tokio::test]
async fn where_the_credentials_may_not_delete_nothing_is_written() {
    let world = with_dumps(4).await;
    let before = contents(&world.repository);
    let error = prune_with(&world, Guarded::store(&world.repository, Some(false), 9), "state", &last("1")).await.unwrap_err();
    assert!(matches!(error, PruneError::NotPermitted { .. }), "{error}");
    assert!(error.hint().unwrap().contains("credentials"));
    assert_eq!(contents(&world.repository), before);
}

#[tokio::test]
async fn what_a_prune_left_behind_is_removed_by_the_next() {
    let world = with_dumps(6).await;
    let error = prune_with(&world, Guarded::store(&world.repository, None, 1), "state", &last("2")).await.unwrap_err();
    assert!(matches!(error, PruneError::Remove(StoreError::Denied { .. })), "{error}");
    assert_eq!(days(&world).len(), 5, "one was removed before the store refused");
    // Whoever comes next need not be on the same machine, nor have the same policy.
    let report = prune_from(&world, "elsewhere", &last("10")).await;
    assert_eq!((report.plan.left_behind, report.plan.removed().files, report.removed), (2, 0, 2));
    assert_eq!(days(&world), [2, 3, 5, 6]);
    is_sound(&world, "state").await;
    assert!(prune_from(&world, "state", &last("2")).await.plan.is_empty());
}

#[tokio::test]
async fn a_prune_that_is_asked_to_stop_leaves_what_the_next_finishes() {
    let world = with_dumps(6).await;
    let (repository, state) = world.open(world.directory(), "state").await.unwrap();
    let stop = CancellationToken::new();
    let mut session = prune::open(repository, state, Duration::ZERO, &Silent, &stop).await.unwrap();
    let prepared = prune::prepare(&session, &last("2")).await.unwrap();
    stop.cancel();
    let report = prepared.run(&mut session, &Silent, &stop).await.unwrap();
    assert!(report.interrupted && report.removed == 0);
    drop(session);
    assert_eq!(days(&world).len(), 6);
    assert_eq!(prune_from(&world, "state", &last("2")).await.removed, 2);
    assert_eq!(days(&world), [2, 3, 5, 6]);
}

#[tokio::test]
async fn a_fresh_state_folder_comes_to_the_same() {
    let world = with_dumps(6).await;
    world.write("thumbs/u/a.webp", b"a");
    world.back_up().await;
    world.remove("thumbs/u/a.webp");
    world.back_up().await;
    prune_from(&world, "state", &Options { derived: true, ..last("2") }).await;
    world.verify("state", true).await.unwrap();
    // From the newest copy and the log after it, and, without any copy, from the log alone.
    drop(world.reading("from-copy").await.unwrap());
    assert_eq!(tables(&world, "from-copy"), tables(&world, "state"));
    std::fs::remove_dir_all(world.repository.join("manifests")).unwrap();
    drop(world.reading("from-log").await.unwrap());
    assert_eq!(tables(&world, "from-log"), tables(&world, "state"));
}

#[tokio::test]
async fn a_copy_of_the_manifest_keeps_what_was_pruned() {
    let world = with_dumps(6).await;
    prune_with(&world, Guarded::store(&world.repository, None, 1), "state", &last("2")).await.unwrap_err();
    // The log has grown by a tenth: this run stores a copy.
    for number in 0..5 {
        world.write(&format!("upload/u0/more-{number}.jpg"), &noise(77 + number, 900));
    }
    world.back_up().await;
    let copies = objects(&world, "manifests");
    drop(world.reading("fresh").await.unwrap());
    assert_eq!(tables(&world, "fresh"), tables(&world, "state"));
    assert_eq!(tables(&world, "fresh")["pruned"].len(), 2);
    assert!(copies.len() >= 2, "{copies:?}");
}

#[tokio::test]
async fn of_the_copies_of_the_manifest_the_newest_two_stay() {
    let world = World::with_files(4).await;
    for number in 0..4 {
        world.write(&format!("upload/new/{number}.jpg"), &noise(100 + number, 500));
        world.back_up().await;
    }
    let copies = objects(&world, "manifests");
    assert_eq!(copies.len(), 4);
    // Left by a run that died before it could name it.
    std::fs::write(world.repository.join("manifests/0000000001.db.zst"), b"half").unwrap();
    let report = prune_from(&world, "state", &last("5")).await;
    assert_eq!(objects(&world, "manifests"), copies[2..]);
    assert_eq!(report.plan.copies.len(), 3);
    assert!(report.plan.copies_removed().bytes > 4);
    is_sound(&world, "state").await;
    drop(world.reading("fresh").await.unwrap());
    assert!(prune_from(&world, "fresh", &last("5")).await.plan.is_empty());
}

#[tokio::test]
async fn a_damaged_copy_of_the_manifest_is_not_one_of_the_two() {
    let world = World::with_files(4).await;
    for number in 0..3 {
        world.write(&format!("upload/new/{number}.jpg"), &noise(100 + number, 500));
        world.back_up().await;
    }
    let copies = objects(&world, "manifests");
    support::Tampered::with(&world.repository.join("manifests").join(&copies[2]), |_| Some(b"rot".to_vec())).keep();
    world.verify("state", true).await.unwrap();
    let report = prune_from(&world, "state", &last("5")).await;
    assert!(report.plan.is_empty(), "{:?}", report.plan);
    assert_eq!(objects(&world, "manifests"), copies);
}

/// A library in which derived files were made, changed, moved and removed; each name says what has to become of its object.
async fn with_derived() -> World {
    let world = World::with_files(4).await;
    world.write("thumbs/u/goes.webp", b"archived, and nothing else has it");
    world.write("thumbs/u/goes-too.webp", b"archived under two names");
    world.write("thumbs/u/goes-as-well.webp", b"archived under two names");
    world.write("thumbs/u/moves.webp", b"moved, so the object at its home is needed");
    world.write("thumbs/u/twin.webp", b"the same stands elsewhere");
    world.write("thumbs/u/stays-twin.webp", b"the same stands elsewhere");
    world.write("thumbs/u/changes.webp", b"first");
    world.write("thumbs/u/as-original.webp", b"an original had this once");
    world.write("upload/u0/original-gone.jpg", b"an original had this once");
    world.write("upload/u0/gone.jpg", b"an archived original");
    world.write("encoded-video/u/aa/bb/x-MP.mp4", b"the video of a motion photo is an original");
    world.write("encoded-video/u/aa/bb/goes.mp4", b"a transcoded video");
    world.back_up().await;
    world.write("thumbs/u/changes.webp", b"second");
    world.back_up().await;
    world.write("thumbs/u/changes.webp", b"third");
    world.rename("thumbs/u/moves.webp", "thumbs/u/moved.webp");
    for path in [
        "thumbs/u/goes.webp",
        "thumbs/u/goes-too.webp",
        "thumbs/u/goes-as-well.webp",
        "thumbs/u/twin.webp",
        "thumbs/u/as-original.webp",
        "upload/u0/original-gone.jpg",
        "upload/u0/gone.jpg",
        "encoded-video/u/aa/bb/x-MP.mp4",
        "encoded-video/u/aa/bb/goes.mp4",
    ] {
        world.remove(path);
    }
    let accept = |report: immich_backup_core::backup::Report| report.run;
    let run = accept(world.back_up_with(world.directory(), "state", &silent(), |_| {}).await.unwrap());
    // So many are gone that a tripwire asks.
    world.back_up_with(world.directory(), "state", &silent(), |plan| plan.accept = Some(run)).await.unwrap();
    world
}

fn held(world: &World) -> Vec<Vec<u8>> {
    let mut held: Vec<_> = ["library", "versions"].iter().flat_map(|folder| contents_of(&world.repository.join(folder))).collect();
    held.sort();
    held
}

fn contents_of(folder: &Path) -> Vec<Vec<u8>> {
    if folder.exists() { contents(folder).into_values().collect() } else { Vec::new() }
}

#[tokio::test]
async fn only_archived_files_that_immich_can_make_again_and_nothing_needs_are_removed() {
    let world = with_derived().await;
    let (before, restored) = (held(&world), world.beside("newest-before"));
    world.restore("state", "latest", &restored).await.unwrap();
    let report = prune_from(&world, "state", &derived()).await;
    let gone: Vec<_> = before.iter().filter(|content| !held(&world).contains(content)).map(|content| String::from_utf8_lossy(content).into_owned()).collect();
    assert_eq!(gone, ["a transcoded video", "archived under two names", "archived, and nothing else has it", "first", "second"]);
    let plan = report.plan.derived.unwrap();
    assert_eq!(plan.objects.files, report.removed);
    assert_eq!((report.removed, plan.files.files), (5, 6), "two names of one content lie in one object");
    is_sound(&world, "state").await;
    is_sound(&world, "fresh").await;
    for state in ["state", "fresh"] {
        let again = world.beside(&format!("newest-{state}"));
        let report = world.restore(state, "latest", &again).await.unwrap();
        assert_eq!(report.failed, 0);
        assert_eq!(contents(&again), contents(&restored));
    }
}

#[tokio::test]
async fn old_snapshots_come_back_but_for_what_was_removed_and_the_plan_says_so() {
    let world = with_derived().await;
    let session = world.reading("state").await.unwrap();
    let snapshots = session.manifest.snapshots().unwrap();
    drop(session);
    assert_eq!(snapshots.len(), 3);
    let ids: Vec<_> = snapshots.iter().map(|snapshot| snapshot.id.to_string()).collect();
    let mut before = Vec::new();
    for id in &ids {
        let to = world.beside(&format!("before-{id}"));
        world.restore("state", id, &to).await.unwrap();
        before.push(contents(&to));
    }
    let report = prune_from(&world, "state", &derived()).await;
    let plan = report.plan.derived.unwrap();
    assert_eq!(plan.snapshots, 2);
    assert_eq!(
        plan.lacking.iter().map(|lacking| (lacking.id.to_string(), lacking.files.files)).collect::<Vec<_>>(),
        [(ids[1].clone(), 5), (ids[0].clone(), 5)]
    );
    let mut lost = 0;
    for (id, before) in ids.iter().zip(before) {
        let to = world.beside(&format!("after-{id}"));
        let report = world.restore("state", id, &to).await.unwrap();
        assert_eq!((report.failed, report.damaged), (0, 0));
        let after = contents(&to);
        for (path, content) in &before {
            let file = FilePath::library(immich_backup_core::model::RootPath::from_path(path).unwrap());
            match after.get(path) {
                Some(found) => assert_eq!(found, content, "{}", path.display()),
                None => {
                    assert_eq!(class_of(&file), Class::Derived, "{}", path.display());
                    lost += 1;
                }
            }
        }
    }
    assert_eq!(lost, 10);
}

#[tokio::test]
async fn a_file_that_comes_back_after_a_prune_is_stored_again() {
    let world = with_derived().await;
    prune_from(&world, "state", &derived()).await;
    world.write("thumbs/u/goes.webp", b"archived, and nothing else has it");
    world.write("thumbs/u/changes.webp", b"first");
    for state in ["state", "fresh"] {
        world.back_up_with(world.directory(), state, &silent(), |_| {}).await.unwrap();
        is_sound(&world, state).await;
    }
    let to = world.beside("restored");
    world.restore("fresh", "latest", &to).await.unwrap();
    assert_eq!(std::fs::read(to.join("thumbs/u/goes.webp")).unwrap(), b"archived, and nothing else has it");
    assert_eq!(std::fs::read(to.join("thumbs/u/changes.webp")).unwrap(), b"first");
}

#[tokio::test]
async fn more_objects_than_one_fact_can_name_go_in_several() {
    let world = World::with_files(2).await;
    for number in 0..1_100 {
        world.write(&format!("thumbs/u/{number}.webp"), &noise(number + 5_000, 20));
    }
    world.back_up().await;
    std::fs::remove_dir_all(world.library.join("thumbs")).unwrap();
    world.back_up().await;
    let before = entries(&world);
    let report = prune_from(&world, "state", &derived()).await;
    assert_eq!(report.removed, 1_100);
    assert_eq!(entries(&world), before + 3);
    let session = writing(&world, "state").await;
    for sequence in before as u64 + 1..=session.manifest.head().sequence {
        let entry = log::read_entry(session.store(), sequence, &Key::log_entry(sequence)).await.unwrap();
        assert!(entry.facts.iter().all(|fact| matches!(fact, Fact::Pruned(Pruned { keys, .. }) if keys.len() <= 1_000)));
    }
    drop(session);
    is_sound(&world, "state").await;
}

#[tokio::test]
async fn a_run_of_another_machine_that_is_alive_is_waited_for_and_then_refused() {
    let world = with_dumps(4).await;
    let mut other = writing(&world, "other").await;
    let started = RunStarted { at: Timestamp::now(), host: "nas".to_owned(), roots: Vec::new(), accepts: None, shard: None };
    other.commit(Some(RunId::random()), &[Fact::RunStarted(started)], &Silent).await.unwrap();
    let before = contents(&world.repository);
    let error = prune_with(&world, world.directory(), "state", &last("1")).await.unwrap_err();
    assert!(matches!(&error, PruneError::Busy { who } if who.contains("`nas`")), "{error}");
    assert_eq!(contents(&world.repository), before);
    // Its own state folder's unfinished run is dead: the lock tells.
    drop(other);
    assert_eq!(prune_from(&world, "other", &last("1")).await.removed, 1);
}

#[tokio::test]
async fn a_process_that_holds_the_state_folder_is_not_disturbed() {
    let world = with_dumps(4).await;
    let holder = writing(&world, "state").await;
    let error = prune_with(&world, world.directory(), "state", &last("1")).await.unwrap_err();
    assert!(matches!(error, PruneError::Busy { .. }), "{error}");
    drop(holder);
    assert_eq!(prune_from(&world, "state", &last("1")).await.removed, 1);
}

/// What the log says of a file: that it lies in the object `key`.
fn stored_in(session: &Session, from: &str, to: &str, key: &str) -> Fact {
    let file = |path: &str| FilePath::library(immich_backup_core::model::RootPath::parse(path).unwrap());
    let row = session.manifest.standing(&file(from)).unwrap().unwrap();
    Fact::Stored(StoredFact {
        path: file(to).path,
        external: None,
        root: None,
        sha256: row.digests.sha256,
        sha1: row.digests.sha1,
        size: row.size_bytes,
        mtime_ns: row.mtime_ns,
        ctime_ns: None,
        mode: row.mode,
        key: Some(key.to_owned()),
        etag: None,
    })
}

#[tokio::test]
async fn no_log_entry_can_make_a_prune_remove_what_is_needed() {
    let world = with_dumps(2).await;
    let mut session = writing(&world, "state").await;
    let head = session.manifest.head().sequence;
    let original = "library/upload/u0/photo-000.jpg".to_owned();
    // An archived original, and a name that leads elsewhere.
    world.write("upload/u0/old.jpg", b"old");
    drop(session);
    world.back_up().await;
    world.remove("upload/u0/old.jpg");
    world.back_up().await;
    session = writing(&world, "state").await;
    let keys = vec![original, "library/upload/u0/old.jpg".to_owned(), Key::log_entry(head).to_string(), "format.json".to_owned(), "../outside".to_owned()];
    let hostile = Pruned { at: Timestamp::now(), keys, rule: "evil".to_owned(), removed_up_to: None };
    session.commit(None, &[Fact::Pruned(hostile)], &Silent).await.unwrap();
    drop(session);
    let before = contents(&world.repository);
    let report = prune_from(&world, "state", &last("9")).await;
    assert_eq!((report.removed, report.needed), (0, 5));
    for (path, content) in before {
        assert_eq!(std::fs::read(world.repository.join(&path)).unwrap(), content, "{}", path.display());
    }
    is_sound(&world, "state").await;
    assert_eq!(writing(&world, "state").await.manifest.count_given_up().unwrap(), 0);
}

#[tokio::test]
async fn what_was_stored_in_an_object_that_was_given_up_is_not_taken_away() {
    let world = World::with_files(2).await;
    world.write("thumbs/u/a.webp", b"a");
    world.back_up().await;
    let fact = stored_in(&writing(&world, "state").await, "thumbs/u/a.webp", "thumbs/u/b.webp", "library/thumbs/u/a.webp");
    world.remove("thumbs/u/a.webp");
    world.back_up().await;
    // It dies after the log, before the object; then another machine finds the object in its way and adopts it.
    prune_with(&world, Guarded::store(&world.repository, None, 0), "state", &derived()).await.unwrap_err();
    writing(&world, "other").await.commit(None, &[fact], &Silent).await.unwrap();
    let report = prune_from(&world, "state", &derived()).await;
    assert_eq!((report.removed, report.needed, report.missed), (0, 1, 0));
    assert!(world.repository.join("library/thumbs/u/a.webp").exists());
    is_sound(&world, "state").await;
}

#[tokio::test]
async fn what_another_machine_stored_in_an_object_while_it_was_removed_is_called_damaged_and_stored_again() {
    let world = World::with_files(2).await;
    world.write("thumbs/u/a.webp", b"a");
    world.back_up().await;
    let fact = stored_in(&writing(&world, "state").await, "thumbs/u/a.webp", "thumbs/u/b.webp", "library/thumbs/u/a.webp");
    world.remove("thumbs/u/a.webp");
    world.back_up().await;
    let store = Guarded::with_intruder(&world.repository, writing(&world, "other").await, fact);
    let report = prune_with(&world, store, "state", &derived()).await.unwrap();
    assert_eq!((report.removed, report.missed), (1, 1));
    let damaged = writing(&world, "state").await.manifest.damaged_objects().unwrap();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].0, "library/thumbs/u/a.webp");
    world.write("thumbs/u/b.webp", b"a");
    world.back_up().await;
    let to = world.beside("restored");
    assert_eq!(world.restore("fresh", "latest", &to).await.unwrap().failed, 0);
    assert_eq!(std::fs::read(to.join("thumbs/u/b.webp")).unwrap(), b"a");
    assert!(world.verify("state", false).await.unwrap().is_sound());
}

#[tokio::test]
async fn the_end_of_a_run_prunes_where_it_may_and_is_silent_where_it_may_not() {
    let world = with_dumps(6).await;
    let stop = CancellationToken::new();
    let policy = Policy::from_retention_text("2").unwrap();
    let mut session = world.writing(Guarded::store(&world.repository, Some(false), 9), "state").await.unwrap();
    let before = contents(&world.repository);
    let nothing = prune::after_run(&mut session, &Policy::default(), &TimeZone::UTC, &Silent, &stop).await.unwrap();
    assert_eq!(nothing, AfterRun::Nothing);
    let refused = prune::after_run(&mut session, &policy, &TimeZone::UTC, &Silent, &stop).await.unwrap();
    assert_eq!(refused, AfterRun::NotPermitted { dumps: Tally { files: 2, bytes: 600 } });
    assert_eq!(contents(&world.repository), before);
    drop(session);
    let mut session = writing(&world, "state").await;
    let done = prune::after_run(&mut session, &policy, &TimeZone::UTC, &Silent, &stop).await.unwrap();
    assert!(matches!(done, AfterRun::Done(report) if report.removed == 2));
    assert_eq!(days(&world), [2, 3, 5, 6]);
    assert_eq!(prune::after_run(&mut session, &policy, &TimeZone::UTC, &Silent, &stop).await.unwrap(), AfterRun::Nothing);
}

#[tokio::test]
async fn a_repository_that_is_gone_is_no_prune() {
    let world = with_dumps(1).await;
    std::fs::remove_file(world.repository.join("format.json")).unwrap();
    let error = prune_with(&world, world.directory(), "state", &last("1")).await.unwrap_err();
    assert!(matches!(error, PruneError::Open(OpenError::NoRepository { .. })), "{error}");
}
