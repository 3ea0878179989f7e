//! What runs that died have left: content that is there and that the log does not name. It is taken up wherever it stands by now, and nothing is
//! stored twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::event::{Event, Monitor, Recorder};
use std::sync::Arc;
use std::time::Duration;
use support::{Fault, FaultyStore, World, contents, files, noise, silent};

/// A run that stores all files and dies before it can say so.
async fn die(world: &World) {
    let faulty = FaultyStore::new(&world.repository);
    // The first entry of a run says that it began.
    faulty.fail("log/", Fault::Hangs, 1, 1);
    let monitor = silent();
    let dying = world.back_up_with(faulty.store(), "state", &monitor, |_| {});
    let until_it_hangs = async {
        while faulty.count("create", "log/") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! { _ = dying => panic!("it hangs"), () = until_it_hangs => {} }
    assert_eq!(files(&world.repository.join("log")).len(), 1);
}

/// How many objects hold content of files.
fn objects(world: &World) -> u64 {
    ["library", "versions"].iter().map(|folder| world.repository.join(folder)).filter(|folder| folder.exists()).map(|folder| files(&folder).len() as u64).sum()
}

async fn assert_whole(world: &World) {
    let verified = world.verify("fresh", false).await.unwrap();
    assert!(verified.is_sound() && verified.unannounced == 0, "{verified:?}");
    let target = world.beside("restored");
    world.restore("state", "latest", &target).await.unwrap();
    assert_eq!(contents(&target), contents(&world.library));
}

#[tokio::test]
async fn what_was_moved_since_the_run_died_is_taken_up_where_it_stands_now() {
    let world = World::with_files(12).await;
    world.write("upload/film.mp4", &noise(9, 17 << 20));
    die(&world).await;
    let left = objects(&world);
    for (number, path) in files(&world.library).into_iter().enumerate() {
        if path.extension().is_some() {
            let to = format!("library/admin/{number}-{}", path.file_name().unwrap().to_str().unwrap());
            world.rename(path.to_str().unwrap(), &to);
        }
    }
    let report = world.back_up().await;
    assert_eq!((report.counts.sent.files, report.counts.adopted.files, objects(&world)), (0, left, left));
    assert_whole(&world).await;
}

#[tokio::test]
async fn of_several_files_of_one_content_any_may_come_first_to_the_next_run() {
    let world = World::with_files(0).await;
    let (small, large) = (noise(1, 50_000), noise(2, 17 << 20));
    world.write("upload/m/small.jpg", &small);
    world.write("upload/m/large.mp4", &large);
    die(&world).await;
    for number in 0..20 {
        world.write(&format!("upload/{number:02}/small.jpg"), &small);
    }
    for number in 0..4 {
        world.write(&format!("upload/{number:02}/large.mp4"), &large);
    }
    let report = world.back_up().await;
    assert_eq!((report.counts.sent.files, report.counts.adopted.files, report.counts.known.files, objects(&world)), (0, 2, 24, 2));
    assert_whole(&world).await;
}

#[tokio::test]
async fn what_no_file_holds_any_more_is_said_and_named_and_nothing_of_its_size_is_taken_for_it() {
    let world = World::with_files(0).await;
    world.write("upload/gone.jpg", &noise(1, 50_000));
    world.write("upload/changed.jpg", &noise(2, 50_000));
    die(&world).await;
    world.remove("upload/gone.jpg");
    world.write("upload/changed.jpg", &noise(3, 50_000));
    world.write("upload/new.jpg", &noise(4, 50_000));
    let recorder = Arc::new(Recorder::default());
    let monitor: Arc<dyn Monitor> = Arc::clone(&recorder) as _;
    let report = world.back_up_with(world.directory(), "state", &monitor, |_| {}).await.unwrap();
    assert_eq!((report.counts.sent.files, report.counts.adopted.files), (2, 0));
    let said = recorder.events().into_iter().find_map(|event| if let Event::Warned { message } = event { Some(message) } else { None }).unwrap();
    assert!(said.starts_with("2 objects of a run that died, `library/upload/changed.jpg` the first"), "{said}");
    let verified = world.verify("fresh", false).await.unwrap();
    assert_eq!(
        (verified.unannounced, verified.unnamed.as_slice()),
        (2, ["library/upload/changed.jpg", "library/upload/gone.jpg"].map(str::to_owned).as_slice())
    );
    let target = world.beside("restored");
    world.restore("state", "latest", &target).await.unwrap();
    assert_eq!(contents(&target), contents(&world.library));
    // It is said once.
    let recorder = Arc::new(Recorder::default());
    let monitor: Arc<dyn Monitor> = Arc::clone(&recorder) as _;
    world.back_up_with(world.directory(), "state", &monitor, |_| {}).await.unwrap();
    assert!(!recorder.events().iter().any(|event| matches!(event, Event::Warned { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_that_may_be_stored_already_is_not_stored_again_under_its_twins_name() {
    for (bytes, round) in [(500, 0), (17 << 20, 1)] {
        let world = World::with_files(0).await;
        for name in ["a", "b", "c"] {
            world.write(&format!("upload/{name}.jpg"), &noise(7, bytes));
        }
        // It is stored, its answer is lost, and it cannot be looked at: whoever waited for it must not take its place.
        let store = FaultyStore::new(&world.repository);
        store.fail("library/", Fault::AnswerLost, 0, 1);
        // Large ones are looked for before they are sent, too.
        store.blind("library/", round);
        let error = world.back_up_with(store.store(), "state", &silent(), |_| {}).await.unwrap_err();
        assert!(format!("{error:?}").contains("library/upload/"), "{error:?}");
        assert_eq!(objects(&world), 1, "round {round}");
        let report = world.back_up().await;
        assert_eq!((report.counts.sent.files, report.counts.adopted.files), (0, 1), "{:?}", report.counts);
        assert_eq!(world.verify("fresh", false).await.unwrap().unannounced, 0);
    }
}
