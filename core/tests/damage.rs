//! Every object, entry and copy of a repository is broken, one after the other, in each way: what is broken is found and named, and heals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::backup::Ending;
use immich_backup_core::event::Silent;
use immich_backup_core::model::Sample;
use immich_backup_core::repository::log::LogError;
use immich_backup_core::repository::{OpenError, Session};
use immich_backup_core::verify::{self, Depth};
use std::path::Path;
use support::{Tampered, World, contents, noise, silent, workers};
use tokio_util::sync::CancellationToken;

/// A way to break a file.
type Damage = (&'static str, fn(Vec<u8>) -> Option<Vec<u8>>);

/// Flips a bit of the first, a middle and the last byte; cuts; empties; adds; removes.
const DAMAGES: [Damage; 7] = [
    ("first byte", |bytes| flip(bytes, 0)),
    ("middle byte", |bytes| {
        let at = bytes.len() / 2;
        flip(bytes, at)
    }),
    ("last byte", |bytes| {
        let at = bytes.len() - 1;
        flip(bytes, at)
    }),
    ("cut", |mut bytes| {
        bytes.pop();
        Some(bytes)
    }),
    ("emptied", |_| Some(Vec::new())),
    ("longer", |mut bytes| {
        bytes.push(0);
        Some(bytes)
    }),
    ("removed", |_| None),
];

#[expect(clippy::unnecessary_wraps, reason = "removing is one way to break a file")]
fn flip(mut bytes: Vec<u8>, at: usize) -> Option<Vec<u8>> {
    bytes[at] ^= 1;
    Some(bytes)
}

/// A repository with one of each: a streamed file, a version, a moved file, a hashed key, thumbnails, copies of the manifest, two snapshots.
async fn one_of_each() -> World {
    let world = World::with_files(25).await;
    world.write("upload/film.mp4", &noise(1, (8 << 20) + 1));
    world.write("thumbs/u/a.webp", &noise(2, 300));
    world.write("upload/.immich", b"1700000000000");
    world.write(&format!("upload/{}", "%".repeat(200)), &noise(3, 300));
    world.back_up().await;
    world.write("upload/u0/photo-000.jpg", b"a version");
    world.rename("upload/u1/photo-001.jpg", "library/admin/moved.jpg");
    for number in 0..8 {
        world.write(&format!("upload/later/{number}.jpg"), &noise(50 + number, 100));
    }
    world.back_up().await;
    let keys = support::files(&world.repository);
    for kind in ["library/upload/film.mp4", "versions/upload/u0/photo-000.jpg/", "versions/%hashed/", "manifests/"] {
        assert!(keys.iter().any(|key| key.to_str().unwrap().starts_with(kind)), "no {kind}");
    }
    assert!(!keys.contains(&"library/library/admin/moved.jpg".into()), "what moved is not sent again");
    world
}

/// What the program ends with code 11 for.
fn is_log_damage(error: &OpenError) -> bool {
    !matches!(error, OpenError::Log(LogError::Store(_))) && matches!(error, OpenError::Log(_) | OpenError::DamagedIdentity { .. })
}

/// Looks so closely, from the state folder that wrote all, and writes nothing down.
async fn verify_to(world: &World, depth: Depth) -> verify::Report {
    let mut session = world.reading("state").await.unwrap();
    let plan = verify::Plan { depth, workers: workers(2), record: false };
    verify::run(&mut session, plan, &Silent, &CancellationToken::new()).await.unwrap()
}

/// The repository's files below `folder`, as keys.
fn keys(world: &World, folder: &str) -> Vec<String> {
    let folder = Path::new(folder);
    support::files(&world.repository.join(folder)).iter().map(|path| folder.join(path).to_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_damaged_object_is_found_and_no_other_is_named() {
    let world = one_of_each().await;
    drop(world.reading("fresh").await.unwrap());
    let objects: Vec<_> = ["library", "versions"].iter().flat_map(|folder| keys(&world, folder)).collect();
    assert_eq!(objects.len(), 25 + 4 + 1 + 8);
    for key in objects {
        for (what, damage) in DAMAGES {
            // One of the ways is enough for a large one: it is read whole each time.
            if key.ends_with("film.mp4") && !matches!(what, "last byte" | "removed") {
                continue;
            }
            let _damaged = Tampered::with(&world.repository.join(&key), damage);
            let report = world.verify("state", false).await.unwrap();
            let named: Vec<_> = report.findings.iter().map(|finding| finding.key.as_str()).collect();
            assert_eq!(named, [key.as_str()], "{what}");
            assert_eq!((report.damaged, report.lost, report.is_sound()), (1, 1, false), "{what} of {key}");
        }
    }
    assert_eq!(world.verify("fresh", false).await.unwrap().damaged, 0);
}

#[tokio::test]
async fn a_listing_finds_what_is_missing_or_has_another_size() {
    let world = one_of_each().await;
    for key in ["library/upload/film.mp4", "library/upload/u0/photo-000.jpg"] {
        for (what, damage) in DAMAGES {
            let _damaged = Tampered::with(&world.repository.join(key), damage);
            let report = verify_to(&world, Depth::Listing).await;
            let found: Vec<_> = report.findings.iter().map(|finding| finding.key.as_str()).collect();
            let expected: &[&str] = if what.ends_with("byte") { &[] } else { &[key] };
            assert_eq!(found, expected, "{what}");
        }
    }
}

#[tokio::test]
async fn every_damaged_log_entry_is_refused() {
    let world = one_of_each().await;
    let entries = keys(&world, "log");
    assert!(entries.len() >= 6);
    for (index, key) in entries.iter().enumerate() {
        for (what, damage) in DAMAGES {
            let _damaged = Tampered::with(&world.repository.join(key), damage);
            drop(std::fs::remove_dir_all(world.beside("fresh")));
            let last_is_gone = what == "removed" && index + 1 == entries.len();
            for state in ["state", "fresh"] {
                match world.verify(state, false).await {
                    Err(error) => assert!(is_log_damage(&error), "{what} of {key}, {state}: {error}"),
                    // Who never saw the last entry cannot miss it.
                    Ok(_) => assert!(state == "fresh" && last_is_gone, "{what} of {key}, {state}"),
                }
            }
        }
    }
}

#[tokio::test]
async fn every_damage_of_the_identity_is_refused() {
    let world = one_of_each().await;
    let path = world.repository.join("format.json");
    let length = std::fs::read(&path).unwrap().len();
    for at in 0..length {
        let damaged = Tampered::with(&path, |bytes| flip(bytes, at));
        drop(std::fs::remove_dir_all(world.beside("fresh")));
        for state in ["state", "fresh"] {
            let error = world.verify(state, false).await.expect_err("a changed identity");
            // The one byte that says which format it is: then it is one of the future.
            assert!(is_log_damage(&error) || matches!(error, OpenError::UnknownFormat { .. }), "byte {at}, {state}: {error}");
        }
        drop(damaged);
    }
    for (what, damage) in DAMAGES {
        let _damaged = Tampered::with(&path, damage);
        let error = world.verify("state", false).await.expect_err(what);
        assert!(is_log_damage(&error) || (what == "removed" && matches!(error, OpenError::NoRepository { .. })), "{what}: {error}");
    }
}

#[tokio::test]
async fn every_damaged_copy_of_the_manifest_is_found_and_harms_no_restore() {
    let world = one_of_each().await;
    let copies = keys(&world, "manifests");
    assert_eq!(copies.len(), 2);
    for key in &copies {
        for (what, damage) in DAMAGES {
            let _damaged = Tampered::with(&world.repository.join(key), damage);
            drop(std::fs::remove_dir_all(world.beside("fresh")));
            for state in ["state", "fresh"] {
                let report = world.verify(state, false).await.unwrap();
                let named: Vec<_> = report.findings.iter().map(|finding| &finding.key).collect();
                assert_eq!(named, [key], "{what}, {state}");
            }
        }
        let _damaged = Tampered::with(&world.repository.join(key), |_| Some(noise(1, 1_000)));
        drop(std::fs::remove_dir_all(world.beside("fresh")));
        let target = world.beside(&format!("restored-{}", key.len() + usize::from(*key == copies[0])));
        world.restore("fresh", "latest", &target).await.unwrap();
        assert_eq!(contents(&target), contents(&world.library));
    }
}

#[tokio::test]
async fn a_damaged_copy_of_the_manifest_is_replaced_by_the_next_run() {
    let world = one_of_each().await;
    let newest = keys(&world, "manifests").pop().unwrap();
    Tampered::with(&world.repository.join(&newest), |_| Some(noise(1, 1_000))).keep();
    world.verify("state", true).await.unwrap();
    world.back_up().await;
    assert_eq!(keys(&world, "manifests").len(), 3);
    let report = world.verify("fresh", false).await.unwrap();
    assert!(report.is_sound() && report.findings[0].replaced, "{report:?}");
}

#[tokio::test]
async fn what_is_damaged_is_stored_again_elsewhere_and_every_snapshot_comes_back() {
    let world = World::with_files(25).await;
    world.write("upload/film.mp4", &noise(1, (8 << 20) + 1));
    world.write("upload/kept.jpg", &noise(77, 500));
    world.back_up().await;
    let first_library = contents(&world.library);
    let first = world.reading("state").await.unwrap().manifest.latest_snapshot().unwrap().unwrap().id.to_string();
    // A second snapshot, in which one of them has moved: both point to the same object.
    world.rename("upload/kept.jpg", "library/kept.jpg");
    world.back_up().await;
    let damaged = ["library/upload/film.mp4", "library/upload/kept.jpg", "library/upload/u0/photo-000.jpg", "library/upload/u1/photo-001.jpg"];
    let damages = [DAMAGES[2].1, DAMAGES[0].1, DAMAGES[6].1, DAMAGES[3].1];
    for (key, damage) in damaged.iter().zip(damages) {
        Tampered::with(&world.repository.join(key), damage).keep();
    }
    // Before it is known, a restore says so and brings all else back.
    let report = world.restore("state", "latest", &world.beside("early")).await.unwrap();
    assert_eq!((report.damaged, report.written.files), (4, 23));
    let found = world.verify("state", true).await.unwrap();
    assert_eq!((found.damaged, found.lost), (4, 4));

    let before = keys(&world, "library");
    let healed = world.back_up_with(world.directory(), "state", &silent(), |_| {}).await.unwrap();
    assert_eq!((healed.ending, healed.counts.sent.files, healed.counts.archived.files), (Ending::Snapshot, 4, 0));
    assert_eq!(keys(&world, "library"), before, "what is damaged is left as it is");
    assert_eq!(keys(&world, "versions").len(), 4);
    for state in ["state", "fresh"] {
        let report = world.verify(state, state == "state").await.unwrap();
        assert_eq!((report.damaged, report.lost), (4, 0), "{state}");
        assert!(report.is_sound() && report.findings.iter().all(|finding| finding.replaced));
    }
    let target = world.beside("old");
    let old = world.restore("fresh", &first, &target).await.unwrap();
    assert_eq!((old.failed, contents(&target)), (0, first_library));
    let target = world.beside("new");
    let new = world.restore("state", "latest", &target).await.unwrap();
    assert_eq!((new.failed, contents(&target)), (0, contents(&world.library)));
    // It is known: nothing is sent a second time.
    let again = world.back_up().await;
    assert_eq!(again.counts.sent.files, 0);
}

#[tokio::test]
async fn what_is_whole_again_is_no_longer_called_damaged() {
    let world = World::with_files(25).await;
    world.back_up().await;
    let key = "library/upload/u0/photo-000.jpg";
    let broken = Tampered::with(&world.repository.join(key), DAMAGES[0].1);
    assert_eq!(world.verify("state", true).await.unwrap().lost, 1);
    let damaged =
        async |state: &str| world.reading(state).await.unwrap().manifest.damaged_objects().unwrap().into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(damaged("state").await, [key]);
    // Said once: looking again adds no second fact.
    let entries = keys(&world, "log").len();
    world.verify("state", true).await.unwrap();
    assert_eq!((damaged("fresh").await, keys(&world, "log").len()), (vec![key.to_owned()], entries + 1));
    drop(broken);
    assert!(world.verify("fresh", true).await.unwrap().is_sound());
    assert!(damaged("state").await.is_empty() && damaged("fresh").await.is_empty());
    let target = world.beside("restored");
    assert_eq!(world.restore("state", "latest", &target).await.unwrap().failed, 0);
    // And nothing is stored twice for it.
    assert_eq!(world.back_up().await.counts.sent.files, 0);
}

#[tokio::test]
async fn damage_that_is_known_is_reported_by_every_look_until_it_has_healed() {
    let world = World::with_files(25).await;
    world.back_up().await;
    let key = "library/upload/u0/photo-000.jpg";
    Tampered::with(&world.repository.join(key), DAMAGES[0].1).keep();
    assert_eq!(world.verify("state", true).await.unwrap().lost, 1);
    let other_part = Depth::Read(Some(Sample::OneOf(1_000_000)));
    for depth in [Depth::Listing, other_part] {
        let report = verify_to(&world, depth).await;
        assert_eq!((report.damaged, report.lost, report.findings[0].key.as_str()), (1, 1, key), "{depth:?}");
    }
    world.back_up().await;
    for depth in [Depth::Listing, other_part] {
        let report = verify_to(&world, depth).await;
        assert_eq!((report.damaged, report.lost, report.findings[0].replaced), (1, 0, true), "{depth:?}");
    }
}

#[tokio::test]
async fn an_object_that_is_gone_is_sent_again_when_its_content_turns_up_elsewhere() {
    let world = World::with_files(25).await;
    world.back_up().await;
    Tampered::with(&world.repository.join("library/upload/u0/photo-000.jpg"), |_| None).keep();
    // Nobody has verified: the move alone asks for the object, and it is not there.
    world.rename("upload/u0/photo-000.jpg", "library/moved.jpg");
    let report = world.back_up().await;
    assert_eq!((report.counts.sent.files, report.counts.known.files), (1, 0));
    let target = world.beside("restored");
    assert_eq!(world.restore("state", "latest", &target).await.unwrap().failed, 0);
    assert_eq!(contents(&target), contents(&world.library));
}

#[tokio::test]
async fn two_copies_of_one_content_that_are_both_damaged_are_lost() {
    let world = World::with_files(25).await;
    world.back_up().await;
    let first = "library/upload/u0/photo-000.jpg";
    Tampered::with(&world.repository.join(first), DAMAGES[0].1).keep();
    world.verify("state", true).await.unwrap();
    world.back_up().await;
    let second = keys(&world, "versions").pop().unwrap();
    let gone = Tampered::with(&world.repository.join(&second), |_| None);
    let listed = verify_to(&world, Depth::Listing).await;
    assert_eq!((listed.damaged, listed.lost), (2, 2), "neither replaces the other");
    drop(gone);
    Tampered::with(&world.repository.join(&second), DAMAGES[0].1).keep();
    let report = world.verify("state", true).await.unwrap();
    assert!(!report.is_sound());
    assert_eq!((report.damaged, report.lost), (2, 1), "two objects, one content");
    let restored = world.restore("state", "latest", &world.beside("restored")).await.unwrap();
    assert_eq!((restored.damaged, restored.written.files), (1, 24));
    world.back_up().await;
    assert!(world.verify("state", true).await.unwrap().is_sound());
    assert_eq!(world.restore("state", "latest", &world.beside("healed")).await.unwrap().failed, 0);
}

#[tokio::test]
async fn what_nobody_names_is_counted_and_is_no_damage() {
    let world = World::with_files(25).await;
    world.back_up().await;
    std::fs::write(world.repository.join("library/upload/stray"), b"x").unwrap();
    let report = world.verify("state", false).await.unwrap();
    assert_eq!((report.unannounced, report.damaged), (1, 0));
    let session: Session = world.reading("state").await.unwrap();
    assert!(session.manifest.damaged_objects().unwrap().is_empty());
}
