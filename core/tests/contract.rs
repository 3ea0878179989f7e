//! What every store promises (the words are those of `Store`), and what a directory promises besides. A new store has to pass the first part.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

mod support;

use bytes::Bytes;
use immich_backup_core::model::Sha256;
use immich_backup_core::repository::directory::DirectoryStore;
use immich_backup_core::repository::key::Key;
use immich_backup_core::repository::store::{Attributes, Created, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::memory::MemoryStore;
use support::promises::{self, create, each_promise, file, key, list};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// Memory where there is some for that: most promises do not need a disk, and thousands of flushes take their time on one.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

macro_rules! keeps {
    ($make:expr; $($promise:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let folder = scratch();
                // The root is made by the first write.
                promises::$promise(Arc::new($make(&folder.path().join("repository")))).await;
            }
        )*
    };
}

macro_rules! contract {
    ($store:ident, $make:expr) => {
        mod $store {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_listing_of_many_pages_shows_each_object_once() {
                let folder = scratch();
                promises::a_listing_of_many_pages_shows_each_object_once(Arc::new($make(&folder.path().join("repository"))), 23_000).await;
            }

            each_promise!(keeps, $make);
        }
    };
}

contract!(directory, DirectoryStore::new);
contract!(directory_without_links, DirectoryStore::without_links);
contract!(directory_without_links_and_renames, DirectoryStore::without_links_and_renames);
// What the schedules of faults run on.
contract!(memory, in_memory);

fn in_memory(_: &Path) -> MemoryStore {
    MemoryStore::new(true)
}

/// Looks at `name` all the time while objects of it are created; returns the sizes seen.
async fn sizes_seen_while_created(store: DirectoryStore, root: PathBuf) -> Vec<u64> {
    let target = root.join("library/large");
    let content = support::noise(5, 24 << 20);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watching = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let mut sizes = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                sizes.extend(std::fs::metadata(&target).map(|found| found.len()));
            }
            sizes.into_iter().collect()
        })
    };
    for _ in 0..5 {
        assert_eq!(create(&store, "library/large", &content).await, Created::New);
        store.delete(&key("library/large")).await.unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    watching.join().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_of_a_directory_appears_whole() {
    for make in [DirectoryStore::new, DirectoryStore::without_links, DirectoryStore::without_links_and_renames] {
        let folder = scratch();
        let sizes = sizes_seen_while_created(make(folder.path()), folder.path().to_owned()).await;
        assert!(sizes.iter().all(|size| *size == 24 << 20), "seen with {sizes:?} bytes");
    }
}

#[tokio::test]
async fn a_torn_object_of_a_dead_run_is_never_taken_for_whole() {
    // What a loss of power leaves of an object that no barrier covered: the name, and a part of the bytes.
    let world = support::World::with_files(3).await;
    let torn = world.repository.join("library/upload/u0/photo-000.jpg");
    std::fs::create_dir_all(torn.parent().unwrap()).unwrap();
    let whole = std::fs::read(world.library.join("upload/u0/photo-000.jpg")).unwrap();
    std::fs::write(&torn, &whole[..50]).unwrap();
    // As long as it should be, but never written: what a file system gives for blocks that did not make it.
    std::fs::write(world.repository.join("library/upload/u0/zeros"), "").unwrap();
    let zeros = world.repository.join("library/upload/u1/photo-001.jpg");
    std::fs::create_dir_all(zeros.parent().unwrap()).unwrap();
    std::fs::write(&zeros, vec![0; 201]).unwrap();
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::without_links_and_renames(&world.repository));
    let report = world.back_up_with(store, "state", &support::silent(), |_| {}).await.unwrap();
    assert_eq!((report.counts.sent.files, report.counts.adopted.files), (3, 0));
    assert!(world.verify("state", false).await.unwrap().is_sound());
    let target = world.beside("restored");
    world.restore("state", "latest", &target).await.unwrap();
    assert_eq!(support::contents(&target), support::contents(&world.library));
}

#[tokio::test]
async fn objects_can_only_be_read_and_folders_only_be_entered_by_their_owner() {
    use std::os::unix::fs::MetadataExt as _;
    for make in [DirectoryStore::new, DirectoryStore::without_links, DirectoryStore::without_links_and_renames] {
        let folder = scratch();
        let store = make(&folder.path().join("deep/repository"));
        create(&store, "library/a/b", b"x").await;
        let mut upload = store.create_streamed(&key("library/streamed"), &file(b"x")).await.unwrap();
        upload.write(Bytes::from_static(b"x")).await.unwrap();
        upload.finish(&Sha256::of(b"x")).await.unwrap();
        let stat = |name: &str| std::fs::metadata(folder.path().join("deep/repository").join(name)).unwrap();
        for name in ["library/a/b", "library/streamed"] {
            assert_eq!(stat(name).mode() & 0o7777, 0o400, "{name}");
            assert_eq!((stat(name).mtime(), stat(name).mtime_nsec()), (1_234_567_890, 123_456_789), "{name}");
        }
        for name in ["", "library", "library/a", "tmp"] {
            assert_eq!(stat(name).mode() & 0o7777, 0o700, "{name}");
        }
    }
}

#[tokio::test]
async fn times_before_1970_are_kept() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = scratch();
    let store = DirectoryStore::new(folder.path());
    let attributes = Attributes { mtime_ns: Some(-1_500_000_000), ..file(b"x") };
    store.create(&key("library/old"), Bytes::from_static(b"x"), &attributes).await.unwrap();
    let stat = std::fs::metadata(folder.path().join("library/old")).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 500_000_000));
}

fn lock(path: &Path) -> std::fs::File {
    let lock = std::fs::File::create(path).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    lock
}

#[tokio::test]
async fn what_a_dead_process_left_is_removed_and_what_a_live_one_uses_is_not() {
    let folder = scratch();
    let tmp = folder.path().join("tmp");
    for name in ["dead", "live", "just-made"] {
        std::fs::create_dir_all(tmp.join(name)).unwrap();
        std::fs::write(tmp.join(name).join("0"), "half an object").unwrap();
    }
    std::fs::write(tmp.join("dead/lock"), "").unwrap();
    let _held = lock(&tmp.join("live/lock"));
    let other = DirectoryStore::new(folder.path());
    let mut upload = other.create_streamed(&key("library/b"), &file(b"b")).await.unwrap();
    upload.write(Bytes::from_static(b"b")).await.unwrap();
    assert!(!tmp.join("dead").exists());
    create(&DirectoryStore::new(folder.path()), "library/a", b"a").await;
    assert!(tmp.join("live/0").exists() && tmp.join("just-made/0").exists());
    assert_eq!(upload.finish(&Sha256::of(b"b")).await.unwrap(), Created::New);
    drop(other);
    // Both stores are gone, and their folders with them.
    assert_eq!(std::fs::read_dir(&tmp).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_start_at_once_do_not_take_each_other_for_dead() {
    let folder = scratch();
    for round in 0..20 {
        let mut starting = JoinSet::new();
        for number in 0..16 {
            let store = DirectoryStore::new(folder.path());
            starting.spawn(async move { store.create(&key(&format!("library/{round}/{number}")), Bytes::from_static(b"x"), &file(b"x")).await });
        }
        for created in starting.join_all().await {
            assert_eq!(created.unwrap(), Created::New);
        }
    }
}

#[tokio::test]
async fn temporary_files_are_no_objects_and_none_stays() {
    let folder = scratch();
    let store = DirectoryStore::new(folder.path());
    for name in ["library/a", "library/a", "library"] {
        create(&store, name, b"x").await;
    }
    let upload = store.create_streamed(&key("library/b"), &file(b"")).await.unwrap();
    assert_eq!(list(&store, "", None).await, ["library/a"]);
    drop(upload);
    let left: Vec<_> = support::files(&folder.path().join("tmp")).into_iter().filter(|path| !path.ends_with("lock")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn pages_of_a_listing_end_and_begin_where_they_should() {
    // One below, exactly, and one above what the listing holds of one folder; and the last name of a page is a folder.
    for names in [16_383, 16_384, 16_385, 32_768] {
        let folder = scratch();
        std::fs::create_dir(folder.path().join("log")).unwrap();
        let mut expected: Vec<_> = (0..names).map(|n| format!("log/{n:06}")).collect();
        for name in &expected {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let last = expected[16_382].clone();
        std::fs::remove_file(folder.path().join(&last)).unwrap();
        std::fs::create_dir(folder.path().join(&last)).unwrap();
        std::fs::write(folder.path().join(&last).join("below"), "").unwrap();
        expected[16_382] = format!("{last}/below");
        assert!(list(&DirectoryStore::new(folder.path()), "log/", None).await == expected, "{names} names");
    }
}

#[test]
fn a_segment_that_no_file_system_takes_makes_no_key() {
    assert!(Key::parse(&"x".repeat(255)).is_ok());
    assert!(Key::parse(&"x".repeat(256)).is_err());
    assert!(Key::parse(&format!("library/{}/a", "é".repeat(128))).is_err());
}

/// A FAT file system in a file, mounted.
struct Fat {
    folder: TempDir,
}

impl Fat {
    /// `None`, said aloud, where this machine cannot.
    fn mount() -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("SKIPPED: a repository on FAT was not tested: {why}");
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("only root may mount");
        }
        let folder = tempfile::tempdir().unwrap();
        let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
        std::fs::create_dir(&place).unwrap();
        std::fs::File::create(&image).unwrap().set_len(200 << 20).unwrap();
        let run = |program: &str, arguments: &[&std::ffi::OsStr]| match std::process::Command::new(program).args(arguments).output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("{program}: {error}")),
        };
        let made = run("mkfs.vfat", &[image.as_os_str()]);
        let options = std::ffi::OsStr::new("loop,iocharset=utf8");
        match made.and_then(|()| run("mount", &["-o".as_ref(), options, image.as_os_str(), place.as_os_str()])) {
            Ok(()) => Some(Self { folder }),
            Err(error) => skip(&error),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }
}

impl Drop for Fat {
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg(self.path()).status());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_on_fat_takes_every_name_and_gives_it_back() {
    let Some(fat) = Fat::mount() else { return };
    let mut world = support::World::empty();
    world.repository = fat.path().join("repository");
    immich_backup_core::repository::init(world.directory(), "test").await.unwrap();
    for (number, name) in
        ["upload/a:b?.jpg", "upload/A.jpg", "upload/a.jpg", "upload/CON", "upload/tail ", "upload/日本.heic", "upload/q?/x"].iter().enumerate()
    {
        world.write(name, &support::noise(number as u64 + 1, 1_000));
    }
    world.write("library/film.mp4", &support::noise(99, 9 << 20));
    let report = world.back_up().await;
    assert_eq!(report.counts.sent.files, 8);
    assert!(world.verify("state", true).await.unwrap().damaged == 0);
    let target = world.beside("restored");
    world.restore("state", "latest", &target).await.unwrap();
    assert_eq!(support::contents(&target), support::contents(&world.library));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_name_that_fat_refuses_objects_still_appear_whole() {
    let Some(fat) = Fat::mount() else { return };
    let store = DirectoryStore::new(&fat.path());
    assert_eq!(create(&store, "library/a:b?.jpg", b"x").await, Created::Unnameable);
    let sizes = sizes_seen_while_created(store, fat.path()).await;
    assert!(sizes.iter().all(|size| *size == 24 << 20), "seen with {sizes:?} bytes");
}
