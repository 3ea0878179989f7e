//! Shards that die at the worst of moments: between an upload and the entry that says so, and between their last upload and `shard_done`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use async_trait::async_trait;
use bytes::Bytes;
use immich_backup_core::backup::{BackupError, Ending, Plan, Report, Shard, run};
use immich_backup_core::event::Silent;
use immich_backup_core::model::{Part, RunId, Sha256};
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::log::{Ended, Fact, Outcome, RunStarted, SnapshotFact, Tally, Totals};
use immich_backup_core::repository::store::{Attributes, Begin, ByteStream, Created, ObjectInfo, ObjectStream, Store, StoreCapabilities, StoreError, Upload};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use support::{World, contents, silent};
use tokio_util::sync::CancellationToken;

/// A store whose user dies when it is about to write an entry of the log that has `fact` in it: that entry and all that follows never arrive.
#[derive(Debug)]
struct Dying {
    inner: Arc<dyn Store>,
    fact: &'static str,
    dead: AtomicBool,
    /// Objects of content that were created.
    created: AtomicUsize,
}

impl Dying {
    fn at(inner: Arc<dyn Store>, fact: &'static str) -> Arc<Self> {
        Arc::new(Self { inner, fact, dead: AtomicBool::new(false), created: AtomicUsize::new(0) })
    }

    fn check(&self) -> Result<(), StoreError> {
        if self.dead.load(Ordering::SeqCst) {
            return Err(StoreError::Io { action: "reach", key: String::new(), source: std::io::Error::other("it is dead") });
        }
        Ok(())
    }
}

#[async_trait]
impl Store for Dying {
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
        if key.as_str().starts_with("log/") {
            let text = String::from_utf8(zstd::decode_all(content.as_ref()).unwrap()).unwrap();
            if text.contains(&format!("\"fact\":\"{}\"", self.fact)) {
                self.dead.store(true, Ordering::SeqCst);
            }
        }
        self.check()?;
        let created = self.inner.create(key, content, attributes).await?;
        self.created.fetch_add(usize::from(key.as_str().starts_with("library/")), Ordering::SeqCst);
        Ok(created)
    }

    async fn create_streamed(&self, key: &Key, attributes: &Attributes) -> Result<Box<dyn Upload>, StoreError> {
        self.check()?;
        self.inner.create_streamed(key, attributes).await
    }

    async fn get(&self, key: &Key, range: Option<Range<u64>>) -> Result<ByteStream, StoreError> {
        self.check()?;
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<ObjectInfo>, StoreError> {
        self.check()?;
        self.inner.head(key).await
    }

    fn list(&self, prefix: &str, after: Option<&Key>) -> ObjectStream {
        self.inner.list(prefix, after)
    }

    async fn delete(&self, key: &Key) -> Result<(), StoreError> {
        self.check()?;
        self.inner.delete(key).await
    }

    async fn sync(&self) -> Result<(), StoreError> {
        self.check()?;
        self.inner.sync().await
    }
}

const OF: u64 = 4;

/// Folders of which each shard has several.
const FOLDERS: u64 = 24;

async fn world() -> World {
    let world = World::with_files(1).await;
    for folder in 0..FOLDERS {
        for number in 0..4_u64 {
            world.write(&format!("upload/{folder}/{number}.jpg"), &support::noise(folder * 100 + number, 3_000));
        }
    }
    world
}

fn plan(world: &World, run: RunId, part: u64) -> Plan {
    // What one of them says a moment before it dies is not waited for.
    Plan { take_over: true, shard: Some(Shard { part: Part { of: OF, part }, run }), ..world.plan() }
}

async fn shard(world: &World, store: Arc<dyn Store>, run_id: RunId, part: u64) -> Result<Report, BackupError> {
    let mut session = world.writing(store, &format!("state-{part}")).await?;
    run(&mut session, &plan(world, run_id, part), &silent(), &CancellationToken::new()).await
}

/// A folder of the library that shard `part` has.
fn folder_of(part: u64) -> u64 {
    (0..FOLDERS).find(|folder| Part { of: OF, part }.has(&format!("/upload/{folder}"))).unwrap()
}

fn assert_stored_once(world: &World) -> usize {
    let mut keys: BTreeMap<[u8; 32], Vec<_>> = BTreeMap::new();
    for start in ["library", "versions"] {
        let folder = world.repository.join(start);
        if folder.is_dir() {
            for (path, bytes) in contents(&folder) {
                keys.entry(Sha256::of(&bytes).0).or_default().push(path);
            }
        }
    }
    let twice: Vec<_> = keys.values().filter(|keys| keys.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    keys.len()
}

async fn ends_whole(world: &World, run_id: RunId, parts: &[u64]) {
    for (number, part) in parts.iter().enumerate() {
        let report = shard(world, world.directory(), run_id, *part).await.unwrap();
        let last = number + 1 == parts.len();
        assert_eq!(report.ending == Ending::Snapshot, last, "{:?}", report.ending);
    }
    assert_eq!(assert_stored_once(world) as u64, FOLDERS * 4 + 1, "an object nobody needs, or one that is not there");
    let to = world.beside("restored");
    world.restore("reader", "latest", &to).await.unwrap();
    assert_eq!(contents(&to), contents(&world.library));
    assert_eq!(world.verify("reader", false).await.unwrap().unannounced, 0, "an object that nothing names");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_shard_sent_before_it_died_is_taken_up_though_its_files_moved_to_another_shard() {
    let world = world().await;
    let run_id = RunId::random();
    let dying = Dying::at(world.directory(), "stored");
    let error = shard(&world, Arc::clone(&dying) as Arc<dyn Store>, run_id, 1).await.unwrap_err();
    assert!(matches!(error, BackupError::Open(_) | BackupError::Store(_)), "{error:?}");
    let sent = dying.created.load(Ordering::SeqCst);
    assert!(sent >= 4, "{sent} objects were sent and not announced");
    // All files of one of its folders move to one that another shard has; one folder that it has goes as a whole.
    let (from, to) = (folder_of(1), folder_of(2));
    for number in 0..4 {
        world.rename(&format!("upload/{from}/{number}.jpg"), &format!("upload/{to}/moved-{number}.jpg"));
    }
    ends_whole(&world, run_id, &[2, 0, 3, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_dies_before_it_says_that_it_is_done_does_so_when_it_is_started_again() {
    let world = world().await;
    let run_id = RunId::random();
    for part in [3, 0, 2] {
        shard(&world, world.directory(), run_id, part).await.unwrap();
    }
    let dying = Dying::at(world.directory(), "shard_done");
    shard(&world, Arc::clone(&dying) as Arc<dyn Store>, run_id, 1).await.unwrap_err();
    assert!(dying.created.load(Ordering::SeqCst) >= 4);
    let (from, to) = (folder_of(1), folder_of(2));
    world.rename(&format!("upload/{from}/0.jpg"), &format!("upload/{to}/moved.jpg"));
    ends_whole(&world, run_id, &[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_ends_the_run_may_die_at_that_and_is_gone_on_from() {
    let world = world().await;
    let run_id = RunId::random();
    for part in [3, 0, 2] {
        shard(&world, world.directory(), run_id, part).await.unwrap();
    }
    let dying = Dying::at(world.directory(), "snapshot");
    shard(&world, Arc::clone(&dying) as Arc<dyn Store>, run_id, 1).await.unwrap_err();
    // Any of them sees that all are done.
    ends_whole(&world, run_id, &[3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_of_shards_that_died_had_sent_is_taken_up_by_the_next_run_of_any_kind() {
    let world = world().await;
    let dying = Dying::at(world.directory(), "stored");
    shard(&world, Arc::clone(&dying) as Arc<dyn Store>, RunId::random(), 1).await.unwrap_err();
    let (from, to) = (folder_of(1), folder_of(2));
    for number in 0..4 {
        world.rename(&format!("upload/{from}/{number}.jpg"), &format!("upload/{to}/moved-{number}.jpg"));
    }
    let mut session = world.writing(world.directory(), "state-alone").await.unwrap();
    let plan = Plan { take_over: true, ..world.plan() };
    let report = run(&mut session, &plan, &silent(), &CancellationToken::new()).await.unwrap();
    assert_eq!(report.ending, Ending::Snapshot);
    assert!(report.counts.adopted.files >= 4, "{:?}", report.counts);
    drop(session);
    assert_eq!(assert_stored_once(&world) as u64, FOLDERS * 4 + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_that_another_shard_has_the_content_of_is_one_that_changed() {
    let world = world().await;
    world.back_up().await;
    // The content that a file of shard 1 has now is new in a folder of shard 2, too, and that one is faster.
    let (changed, new) = (format!("upload/{}/0.jpg", folder_of(1)), format!("upload/{}/new.jpg", folder_of(2)));
    for path in [&changed, &new] {
        world.write(path, &support::noise(77, 4_000));
    }
    let run_id = RunId::random();
    let dying = Dying::at(world.directory(), "stored");
    shard(&world, Arc::clone(&dying) as Arc<dyn Store>, run_id, 2).await.unwrap_err();
    for part in [1, 0, 3] {
        shard(&world, world.directory(), run_id, part).await.unwrap();
    }
    let report = shard(&world, world.directory(), run_id, 2).await.unwrap();
    assert_eq!(report.ending, Ending::Snapshot);
    // It was left to the one that ends the run, who knows what stood there: else what contradicts Immich's checksum would replace what does not.
    assert_eq!((report.counts.changed.files, report.counts.new.files), (1, 1), "{:?}", report.counts);
    assert_stored_once(&world);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_a_run_that_was_taken_for_dead_takes_nothing_from_the_shards_of_the_next() {
    let world = world().await;
    let mut slow = world.writing(world.directory(), "state-slow").await.unwrap();
    let slow_id = RunId::random();
    let started = RunStarted { at: Timestamp::now(), host: "slow".to_owned(), roots: Vec::new(), accepts: None, shard: None };
    slow.commit(Some(slow_id), &[Fact::RunStarted(started)], &Silent).await.unwrap();
    let run_id = RunId::random();
    for part in [0, 2] {
        shard(&world, world.directory(), run_id, part).await.unwrap();
    }
    slow.commit(Some(slow_id), &[Fact::Snapshot(Box::new(nothing()))], &Silent).await.unwrap();
    drop(slow);
    ends_whole(&world, run_id, &[1, 3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_shards_that_failed_is_not_taken_up_again_once_another_has_begun() {
    let world = world().await;
    let run_id = RunId::random();
    for part in [0, 1, 2] {
        shard(&world, world.directory(), run_id, part).await.unwrap();
    }
    // The one that ends the run says that it failed.
    let mut session = world.writing(world.directory(), "state-3").await.unwrap();
    let ended = Ended { outcome: Outcome::Failed, reason: None, gone: None, changed: None, shard: None };
    session.commit(Some(run_id), &[Fact::RunEnded(ended)], &Silent).await.unwrap();
    drop(session);
    world.back_up().await;
    let error = shard(&world, world.directory(), run_id, 3).await.unwrap_err();
    assert!(matches!(error, BackupError::RunIsOver { .. }), "{error:?}");
    let session = world.reading("reader").await.unwrap();
    assert_eq!(session.manifest.snapshots().unwrap().len(), 1);
    assert!(session.manifest.runs(10).unwrap().iter().all(|run| run.outcome.is_some()), "a run that nobody ends");
}

/// A snapshot that says nothing.
fn nothing() -> SnapshotFact {
    serde_json::from_value(serde_json::json!({
        "started_at": Timestamp::now(), "taken_at": Timestamp::now(), "totals": Totals::default(), "sent": Tally::default(), "archived": 0, "unread_count": 0
    }))
    .unwrap()
}
