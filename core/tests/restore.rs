//! Restores into folders that hold something already, that are somebody else's, or of which only a part is wanted; and restores that do not get everything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::backup::{self, Source};
use immich_backup_core::event::{Event, Monitor, Recorder, Silent};
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{ExternalName, Root, RootPath};
use immich_backup_core::repository::Session;
use immich_backup_core::restore::{self, Plan, Prepared, RestoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use support::{World, contents, files, noise, silent};
use tokio_util::sync::CancellationToken;

/// How many files or failures are named at most.
const NAMED_MAX: usize = 1_000;

async fn prepared(session: &Session, to: &Path, change: impl FnOnce(&mut Plan)) -> Result<Prepared, RestoreError> {
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let mut plan = Plan { to: Some(to.to_owned()), ..support::restore_plan(snapshot) };
    change(&mut plan);
    restore::prepare(session, plan, &Silent, &CancellationToken::new()).await
}

async fn restored(session: &Session, to: &Path, change: impl FnOnce(&mut Plan)) -> Result<restore::Report, RestoreError> {
    let prepared = prepared(session, to, change).await?;
    Box::pin(prepared.run(session, &silent(), &CancellationToken::new())).await
}

fn patterns(texts: &[&str]) -> Patterns {
    Patterns::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn bytes_of<'a>(world: &World, paths: impl IntoIterator<Item = &'a PathBuf>) -> u64 {
    paths.into_iter().map(|path| world.library.join(path).metadata().unwrap().len()).sum()
}

/// What nobody has touched is the same file, written once.
fn identities(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let identity = |path: &PathBuf| {
        let about = folder.join(path).metadata().unwrap();
        (about.ino(), about.ctime(), about.ctime_nsec())
    };
    files(folder).into_iter().map(|path| (path.clone(), identity(&path))).collect()
}

#[tokio::test]
async fn what_is_right_stays_what_is_missing_is_written_and_what_differs_waits_for_permission() {
    let world = World::with_files(150).await;
    let all = files(&world.library);
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let to = world.beside("restored");
    let first = restored(&session, &to, |_| {}).await.unwrap();
    assert_eq!((first.preview.write.files, first.preview.write.bytes), (150, bytes_of(&world, &all)));
    assert_eq!((first.written, first.preview.right.files, first.preview.differ, first.failed), (first.preview.write, 0, 0, 0));
    assert!(first.preview.free_bytes > 0 && !first.interrupted);
    assert_eq!(first.markers, 6);
    assert_eq!(contents(&to), contents(&world.library));

    // Some are missing, of some the time is another one, of some the permissions. The rest is right.
    let missing: BTreeSet<_> = all.iter().step_by(7).cloned().collect();
    let touched: BTreeSet<_> = all.iter().skip(3).step_by(11).filter(|path| !missing.contains(*path)).cloned().collect();
    for (number, path) in touched.iter().enumerate() {
        let path = to.join(path);
        match number % 2 {
            0 => fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now()).unwrap(),
            _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
        }
    }
    for path in &missing {
        fs::remove_file(to.join(path)).unwrap();
    }
    let before = identities(&to);
    let second = restored(&session, &to, |_| {}).await.unwrap();
    assert_eq!((second.preview.write.files, second.preview.write.bytes), (missing.len() as u64, bytes_of(&world, &missing)));
    let right: Vec<_> = all.iter().filter(|path| !missing.contains(*path)).collect();
    assert_eq!((second.preview.right.files, second.preview.right.bytes), (right.len() as u64, bytes_of(&world, right.iter().copied())));
    assert_eq!((second.written, second.preview.differ, second.preview.replace, second.failed, second.markers), (second.preview.write, 0, 0, 0, 0));
    assert_eq!(contents(&to), contents(&world.library));
    let after = identities(&to);
    for path in &all {
        let (live, back) = (world.library.join(path).metadata().unwrap(), to.join(path).metadata().unwrap());
        assert_eq!((back.mtime(), back.mtime_nsec(), back.mode() & 0o777), (live.mtime(), live.mtime_nsec(), live.mode() & 0o777), "{}", path.display());
        match before.get(path) {
            // Its bytes are the old ones.
            Some(before) if touched.contains(path) => assert_eq!(after[path].0, before.0, "{}", path.display()),
            Some(before) => assert_eq!(after[path], *before, "{} was right, and was written to", path.display()),
            None => assert!(missing.contains(path), "{}", path.display()),
        }
    }

    // Other bytes in the place of three; nothing is changed before somebody says so, what is missing included.
    let differing: BTreeSet<_> = [&all[2], &all[64], &all[149]].into_iter().cloned().collect();
    for path in &differing {
        let content = fs::read(to.join(path)).unwrap();
        fs::write(to.join(path), noise(77, content.len())).unwrap();
    }
    fs::remove_file(to.join(&all[100])).unwrap();
    let (before, held) = (identities(&to), contents(&to));
    let error = restored(&session, &to, |_| {}).await.unwrap_err();
    let RestoreError::Differs { count: 3, first } = &error else { panic!("{error:?}") };
    assert!(differing.contains(Path::new(first.path.as_str())) && error.to_string().contains(first.path.as_str()), "{error}");
    assert_eq!((identities(&to), contents(&to)), (before.clone(), held));
    let third = restored(&session, &to, |plan| plan.overwrite = true).await.unwrap();
    assert_eq!((third.preview.differ, third.preview.replace, third.written.files, third.preview.right.files), (3, 3, 4, 146));
    let named: BTreeSet<_> = third.preview.differing.iter().map(|file| PathBuf::from(file.path.as_str())).collect();
    assert_eq!(named, differing);
    assert_eq!(contents(&to), contents(&world.library));
    let kept = identities(&to).into_iter().filter(|(path, identity)| before.get(path) == Some(identity)).count();
    assert_eq!(kept, 146 + 6, "what was right and the markers");
}

#[tokio::test]
async fn of_many_that_differ_and_of_many_that_are_gone_a_part_is_named() {
    let count = u64::try_from(NAMED_MAX).unwrap() + 30;
    let world = World::with_files(count).await;
    world.write("upload/u0/still-there.jpg", &noise(1, 3));
    world.back_up().await;
    let session = world.reading("state").await.unwrap();

    // So many come back batch by batch: what is on disk has its name before the last is read, and all that is held at once is bounded.
    let (whole, recorder) = (world.beside("whole"), Arc::new(Recorder::default()));
    let monitor: Arc<dyn Monitor> = recorder.clone();
    let planned = prepared(&session, &whole, |_| {}).await.unwrap();
    let report = Box::pin(planned.run(&session, &monitor, &CancellationToken::new())).await.unwrap();
    assert_eq!((report.written.files, contents(&whole) == contents(&world.library)), (count + 1, true));
    let (mut read, mut waiting) = (0, 0);
    for event in recorder.events() {
        match event {
            Event::BytesSent { .. } => read += 1,
            Event::FileRestored { .. } => read -= 1,
            _ => {}
        }
        waiting = waiting.max(read);
    }
    assert!((1..1_000).contains(&waiting), "{waiting} files waited for their names at once");

    let to = world.beside("restored");
    for path in files(&world.library) {
        let path = to.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"another file").unwrap();
    }
    fs::remove_file(to.join("upload/u0/still-there.jpg")).unwrap();
    let preview = prepared(&session, &to, |plan| plan.overwrite = true).await.unwrap().preview;
    assert_eq!((preview.differ, preview.differing.len(), preview.write.files, preview.replace), (count, NAMED_MAX, count + 1, count));

    // All objects but one are gone: all else comes back, what failed is counted, and named up to the limit.
    for path in files(&world.library).iter().filter(|path| !path.ends_with("still-there.jpg")) {
        fs::remove_file(world.repository.join("library").join(path)).unwrap();
    }
    let report = restored(&session, &to, |plan| plan.overwrite = true).await.unwrap();
    assert_eq!((report.failed, report.damaged, report.failures.len(), report.written.files), (count, count, NAMED_MAX, 1));
    assert!(report.failures.iter().all(|failure| failure.problem.contains("is missing") && failure.path.contains("photo-")), "{:?}", report.failures[0]);
    // What could not be replaced is as it was.
    assert_eq!(fs::read(to.join("upload/u0/photo-000.jpg")).unwrap(), b"another file");
}

#[tokio::test]
async fn a_part_of_a_snapshot_brings_that_and_no_markers() {
    let world = World::with_files(30).await;
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let to = world.beside("restored");
    let report = restored(&session, &to, |plan| plan.paths = patterns(&["upload/u1/**"])).await.unwrap();
    assert_eq!((report.written.files, report.preview.write.files, report.markers), (10, 10, 0));
    assert_eq!(files(&to), files(&world.library.join("upload/u1")).iter().map(|path| Path::new("upload/u1").join(path)).collect::<Vec<_>>());
    // All of it is there already: that is no lack of matches.
    let again = restored(&session, &to, |plan| plan.paths = patterns(&["upload/u1/**"])).await.unwrap();
    assert_eq!((again.written.files, again.preview.right.files, again.markers), (0, 10, 0));
    let error = restored(&session, &to, |plan| plan.paths = patterns(&["upload/u9/**"])).await.unwrap_err();
    assert!(matches!(error, RestoreError::NothingMatches) && error.hint().unwrap().contains("ls"), "{error:?}");
}

#[tokio::test]
async fn a_restore_that_is_stopped_says_so_and_the_next_one_goes_on() {
    let world = World::with_files(40).await;
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let to = world.beside("restored");
    let stop = CancellationToken::new();
    let planned = prepared(&session, &to, |_| {}).await.unwrap();
    stop.cancel();
    let report = Box::pin(planned.run(&session, &silent(), &stop)).await.unwrap();
    assert!(report.interrupted && report.written.files < 40, "{report:?}");
    assert_eq!((report.markers, report.failed), (0, 0), "Immich would start on a library that is not all there");
    // Under its name there is nothing that is not whole, and nothing without one.
    assert_eq!(files(&to).len() as u64, report.written.files);
    let next = restored(&session, &to, |_| {}).await.unwrap();
    assert_eq!((next.written.files + report.written.files, next.markers, next.interrupted), (40, 6, false));
    assert_eq!(contents(&to), contents(&world.library));
}

#[tokio::test]
async fn two_restores_do_not_write_to_one_folder_and_none_writes_into_the_repository() {
    let world = World::with_files(3).await;
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let to = world.beside("restored");
    fs::create_dir(&to).unwrap();
    let planned = prepared(&session, &to, |_| {}).await.unwrap();
    let held = fs::File::open(&to).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let error = Box::pin(planned.run(&session, &silent(), &CancellationToken::new())).await.unwrap_err();
    assert!(matches!(&error, RestoreError::Busy { path } if *path == to) && error.hint().is_some(), "{error:?}");
    assert_eq!(files(&to), Vec::<PathBuf>::new());
    drop(held);
    for inside in [world.repository.join("library"), world.beside("state"), world.folder().to_owned()] {
        let held = files(world.folder());
        let error = prepared(&session, &inside, |_| {}).await.unwrap_err();
        assert!(matches!(&error, RestoreError::Nested { .. }) && error.hint().is_some(), "{}: {error:?}", inside.display());
        assert_eq!(files(world.folder()), held);
    }
    restored(&session, &to, |_| {}).await.unwrap();
    assert_eq!(contents(&to), contents(&world.library));
}

#[tokio::test]
async fn an_external_library_goes_below_the_target_or_where_it_is_told_to() {
    let world = World::with_files(2).await;
    world.write("external/nas/mine.jpg", b"of the media location itself");
    let nas = world.beside("nas");
    fs::create_dir_all(nas.join("2019")).unwrap();
    fs::write(nas.join("2019/a.jpg"), noise(5, 900)).unwrap();
    let name = "nas".parse::<ExternalName>().unwrap();
    let external = Source { root: Root::External(name.clone()), path: nas.clone(), server_path: None, mounts: Vec::new() };
    world.back_up_with(world.directory(), "state", &silent(), |plan| plan.sources.push(external)).await.unwrap();
    let session = world.reading("state").await.unwrap();
    let to = world.beside("restored");
    let error = prepared(&session, &to, |_| {}).await.unwrap_err();
    assert!(matches!(&error, RestoreError::SamePlace { name } if name.as_str() == "nas"), "{error:?}");
    assert!(error.hint().unwrap().contains("--external nas=PATH") && !to.exists(), "{error:?}");
    let elsewhere = world.beside("elsewhere");
    let report = restored(&session, &to, |plan| drop(plan.externals.insert(name.clone(), elsewhere.clone()))).await.unwrap();
    assert_eq!((report.written.files, contents(&elsewhere)), (4, contents(&nas)));
    assert_eq!(contents(&to), contents(&world.library));
    // Another one, of whose name the media location has no folder, goes below the target.
    let other = world.beside("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("b.jpg"), noise(6, 900)).unwrap();
    let external = Source { root: Root::External("other".parse().unwrap()), path: other.clone(), server_path: None, mounts: Vec::new() };
    let sources = |plan: &mut backup::Plan| plan.sources.push(external);
    world
        .back_up_with(world.directory(), "state", &silent(), |plan| {
            plan.drop_externals = vec![name.clone()];
            sources(plan);
        })
        .await
        .unwrap();
    let session = world.reading("state").await.unwrap();
    let below = world.beside("below");
    restored(&session, &below, |plan| drop(plan.externals.insert(name, elsewhere))).await.unwrap();
    assert_eq!(contents(&below.join("external/other")), contents(&other));
}

#[tokio::test]
async fn a_folder_that_is_mounted_within_another_gets_its_own_files() {
    let world = World::with_files(0).await;
    for path in ["upload/a.jpg", "upload/u1/b.jpg", "upload/u1/fast/c.jpg", "upload/u10/d.jpg"] {
        world.write(path, path.as_bytes());
    }
    world.back_up().await;
    let session = world.reading("state").await.unwrap();
    let (to, outer, inner) = (world.beside("restored"), world.beside("outer"), world.beside("inner"));
    let at = |path: &str| RootPath::parse(path).unwrap();
    let mounts = vec![(at("upload/u1"), outer.clone()), (at("upload/u1/fast"), inner.clone())];
    restored(&session, &to, |plan| plan.mounts = mounts).await.unwrap();
    let named = |folder: &Path| contents(folder).into_values().map(|content| String::from_utf8(content).unwrap()).collect::<Vec<_>>();
    assert_eq!(named(&to), ["upload/a.jpg", "upload/u10/d.jpg"]);
    assert_eq!((named(&outer), named(&inner)), (vec!["upload/u1/b.jpg".to_owned()], vec!["upload/u1/fast/c.jpg".to_owned()]));
}

#[test]
fn a_full_disk_and_one_that_refuses_have_remedies_of_their_own() {
    let refused = |kind| RestoreError::Target { action: "write to", path: "/srv/immich".into(), source: io::Error::from(kind) };
    let (full, other) = (refused(io::ErrorKind::StorageFull).hint().unwrap(), refused(io::ErrorKind::PermissionDenied).hint().unwrap());
    assert!(full.contains("make room") && full.contains("skipped"), "{full}");
    assert!(other.contains("mounted"), "{other}");
    let none = RestoreError::NoRoom { free_bytes: 10, needed_bytes: 20 };
    assert!(none.to_string().contains("10 bytes left, and 20") && none.hint().unwrap().contains("make room"), "{none}");
}
