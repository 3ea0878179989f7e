//! What lies beside the libraries, and libraries that lie in several folders.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::backup::{self, BackupError, Ending, Source};
use immich_backup_core::event::Silent;
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{Root, RootPath};
use immich_backup_core::repository::Session;
use immich_backup_core::restore::{self, RestoreError};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use support::{World, contents, files, noise, silent, workers};
use tokio_util::sync::CancellationToken;

fn write(folder: &Path, path: &str, content: &[u8]) {
    let path = folder.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn at(path: &str) -> RootPath {
    RootPath::parse(path).unwrap()
}

fn config(path: PathBuf) -> Source {
    Source { root: Root::Config, path, server_path: None, mounts: Vec::new() }
}

async fn back_up(world: &World, change: impl FnOnce(&mut backup::Plan)) -> Result<backup::Report, BackupError> {
    Box::pin(world.back_up_with(world.directory(), "state", &silent(), change)).await
}

fn standing(session: &Session) -> Vec<String> {
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let mut found = Vec::new();
    session
        .manifest
        .each_file::<immich_backup_core::repository::manifest::ManifestError>(snapshot.sequence, |row| {
            found.push(row.file.to_string());
            Ok(())
        })
        .unwrap();
    found
}

async fn restored(session: &Session, change: impl FnOnce(&mut restore::Plan)) -> Result<restore::Report, RestoreError> {
    let snapshot = session.manifest.latest_snapshot().unwrap().unwrap();
    let (to, externals) = (None, std::collections::BTreeMap::new());
    let mut plan = restore::Plan {
        snapshot,
        to,
        externals,
        mounts: Vec::new(),
        config_to: None,
        postgres_to: None,
        paths: Patterns::default(),
        chosen: None,
        overwrite: false,
        workers: workers(2),
    };
    change(&mut plan);
    let stop = CancellationToken::new();
    let prepared = restore::prepare(session, plan, &Silent, &stop).await?;
    Box::pin(prepared.run(session, &silent(), &stop)).await
}

fn patterns(texts: &[&str]) -> Patterns {
    Patterns::new(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
}

#[tokio::test]
async fn the_configuration_stands_until_another_one_is_given() {
    let world = World::with_files(5).await;
    let stack = world.beside("stack");
    write(&stack, "docker-compose.yml", b"services: 1");
    write(&stack, ".env", b"UPLOAD_LOCATION=./library");
    // Patterns are about the library.
    let exclude = |plan: &mut backup::Plan| plan.scope.exclude = patterns(&["config/**", "*.yml"]);
    back_up(&world, |plan| {
        plan.sources.push(config(stack.clone()));
        exclude(plan);
        plan.scope.originals_only = true;
    })
    .await
    .unwrap();
    let session = world.reading("reader").await.unwrap();
    assert_eq!(standing(&session).len(), 7);
    assert_eq!(fs::read(world.repository.join("config/docker-compose.yml")).unwrap(), b"services: 1");

    back_up(&world, |_| {}).await.unwrap();
    write(&stack, "docker-compose.yml", b"services: 2");
    fs::remove_file(stack.join(".env")).unwrap();
    let session = world.reading("reader").await.unwrap();
    assert_eq!(standing(&session).iter().filter(|file| file.starts_with("config/")).count(), 2, "a run that was given none leaves it standing");

    // Both of the two files changed or gone: nothing that trips a wire.
    let report = back_up(&world, |plan| plan.sources.push(config(stack.clone()))).await.unwrap();
    assert_eq!((report.ending, report.counts.archived.files, report.counts.changed.files), (Ending::Snapshot, 1, 1));
    let verified = world.verify("verifier", false).await.unwrap();
    assert!(verified.is_sound() && verified.unannounced == 0, "{verified:?}");
    assert_eq!(verified.listed.files, 8, "5 files, the configuration's two, and another content of one");
}

#[tokio::test]
async fn a_restore_leaves_the_configuration_alone_unless_it_is_asked_for() {
    let world = World::with_files(5).await;
    let stack = world.beside("stack");
    write(&stack, "docker-compose.yml", b"services: 1");
    fs::set_permissions(stack.join("docker-compose.yml"), fs::Permissions::from_mode(0o640)).unwrap();
    back_up(&world, |plan| plan.sources.push(config(stack.clone()))).await.unwrap();
    let session = world.reading("reader").await.unwrap();

    let all = world.beside("all");
    let report = restored(&session, |plan| plan.to = Some(all.clone())).await.unwrap();
    assert_eq!(contents(&all), contents(&world.library));
    assert_eq!(report.preview.config_left.files, 1);

    let elsewhere = world.beside("elsewhere");
    let report = restored(&session, |plan| plan.config_to = Some(elsewhere.clone())).await.unwrap();
    assert_eq!((report.written.files, report.markers, report.preview.config_left.files), (1, 0, 0));
    assert_eq!(files(&elsewhere), [PathBuf::from("docker-compose.yml")]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&elsewhere), mode(&elsewhere.join("docker-compose.yml"))), (0o700, 0o640));

    let part = world.beside("part");
    let report = restored(&session, |plan| (plan.to, plan.paths) = (Some(part.clone()), patterns(&["config/**"]))).await.unwrap();
    assert_eq!(report.preview.config_left.files, 0);
    // What is not asked for is not said to be left alone.
    let photos = restored(&session, |plan| (plan.to, plan.paths) = (Some(world.beside("photos")), patterns(&["upload/**"]))).await.unwrap();
    assert_eq!((photos.written.files, photos.preview.config_left.files), (5, 0));
    assert_eq!(files(&part), [PathBuf::from("config/docker-compose.yml")]);
}

#[tokio::test]
async fn a_folder_of_the_library_that_is_called_config_keeps_its_place() {
    let world = World::with_files(5).await;
    world.write("config/docker-compose.yml", b"a file of the library");
    let stack = world.beside("stack");
    write(&stack, "docker-compose.yml", b"services: 1");
    back_up(&world, |plan| plan.sources.push(config(stack.clone()))).await.unwrap();
    let session = world.reading("reader").await.unwrap();
    let (to, config_to) = (world.beside("to"), world.beside("config-to"));
    let refused = restored(&session, |plan| (plan.to, plan.paths) = (Some(to.clone()), patterns(&["config"]))).await.unwrap_err();
    assert!(matches!(refused, RestoreError::SameFolder { root: Root::Config, .. }), "{refused}");
    restored(&session, |plan| (plan.to, plan.config_to) = (Some(to.clone()), Some(config_to.clone()))).await.unwrap();
    assert_eq!(fs::read(to.join("config/docker-compose.yml")).unwrap(), b"a file of the library");
    assert_eq!(fs::read(config_to.join("docker-compose.yml")).unwrap(), b"services: 1");
}

#[tokio::test]
async fn an_empty_library_is_refused_though_there_is_a_configuration() {
    let world = World::with_files(0).await;
    fs::create_dir_all(world.library.join("upload")).unwrap();
    let stack = world.beside("stack");
    write(&stack, "docker-compose.yml", b"services: 1");
    let refused = back_up(&world, |plan| plan.sources.push(config(stack.clone()))).await.unwrap_err();
    assert!(matches!(refused, BackupError::Empty { root: Root::Library, .. }), "{refused}");
}

/// A library whose `thumbs` and `upload/u1` lie elsewhere; what the host has at their places is stale.
async fn scattered() -> (World, Vec<(RootPath, PathBuf)>) {
    let world = World::with_files(0).await;
    let mounts = vec![(at("thumbs"), world.beside("ssd/thumbs")), (at("upload/u1"), world.beside("nvme")), (at("profile"), world.beside("ssd/profile"))];
    for folder in ["library", "profile", "thumbs", "upload"] {
        world.write(&format!("{folder}/.immich"), b"1");
    }
    world.write("thumbs/stale.webp", b"stale");
    world.write("upload/u1/stale.jpg", b"stale too");
    world.write("upload/u0/0.jpg", &noise(1, 5_000));
    write(&world.beside("ssd/thumbs"), ".immich", b"2");
    write(&world.beside("ssd/thumbs"), "u/1.webp", &noise(2, 300));
    write(&world.beside("nvme"), "aa/2.jpg", &noise(3, 70_000));
    write(&world.beside("ssd/profile"), "u/3.png", &noise(4, 300));
    // Where nothing is mounted over.
    fs::remove_dir_all(world.library.join("profile")).unwrap();
    (world, mounts)
}

const SCATTERED: [&str; 7] =
    ["library/.immich", "profile/u/3.png", "thumbs/.immich", "thumbs/u/1.webp", "upload/.immich", "upload/u0/0.jpg", "upload/u1/aa/2.jpg"];

#[tokio::test]
async fn files_of_mounted_folders_are_taken_from_there_and_what_they_hide_is_not() {
    let (world, mounts) = scattered().await;
    let mounted = |plan: &mut backup::Plan| plan.sources[0].mounts.clone_from(&mounts);
    let report = back_up(&world, mounted).await.unwrap();
    assert_eq!((report.ending.clone(), report.counts.unread, report.counts.new.files), (Ending::Snapshot, 0, 7));
    let session = world.reading("reader").await.unwrap();
    assert_eq!(standing(&session), SCATTERED);
    assert_eq!(fs::read(world.repository.join("library/thumbs/.immich")).unwrap(), b"2", "the mounted folder's, not the one it hides");

    // Nothing moves while nothing changes; a change, a new file and a loss in mounted folders are seen there.
    tokio::time::sleep(std::time::Duration::from_millis(3_100)).await;
    back_up(&world, mounted).await.unwrap();
    let report = back_up(&world, mounted).await.unwrap();
    assert_eq!((report.counts.unchanged.files, report.counts.sent.files, report.counts.archived.files), (7, 0, 0));
    write(&world.beside("nvme"), "aa/5.jpg", &noise(5, 100));
    fs::remove_file(world.beside("ssd/thumbs/u/1.webp")).unwrap();
    world.write("upload/u1/aa/2.jpg", b"hidden, and not looked at");
    let report = back_up(&world, mounted).await.unwrap();
    assert_eq!((report.counts.new.files, report.counts.changed.files, report.counts.archived.files), (1, 0, 1));

    let (to, thumbs) = (world.beside("to"), world.beside("to-thumbs"));
    let session = world.reading("reader").await.unwrap();
    restored(&session, |plan| (plan.to, plan.mounts) = (Some(to.clone()), vec![(at("thumbs"), thumbs.clone())])).await.unwrap();
    assert_eq!(files(&thumbs), [PathBuf::from(".immich")]);
    assert_eq!(fs::read(to.join("upload/u1/aa/2.jpg")).unwrap(), noise(3, 70_000));
    assert!(!to.join("thumbs").exists(), "its files and its marker went to its own folder");
    assert!(to.join("backups/.immich").is_file());
}

#[tokio::test]
async fn a_mounted_folder_that_is_not_there_stops_the_run_before_it_begins() {
    let (world, mounts) = scattered().await;
    fs::remove_dir_all(world.beside("nvme")).unwrap();
    let error = back_up(&world, |plan| plan.sources[0].mounts.clone_from(&mounts)).await.unwrap_err();
    assert!(error.to_string().contains("`upload/u1` of the library"), "{error}");
    let within = vec![(at("thumbs"), world.beside("repository"))];
    let error = back_up(&world, |plan| plan.sources[0].mounts = within).await.unwrap_err();
    assert!(error.to_string().contains("lie within one another"), "{error}");
}

#[tokio::test]
async fn a_marker_that_is_missing_in_a_mounted_folder_means_that_it_is_not_mounted() {
    let (world, mounts) = scattered().await;
    back_up(&world, |plan| plan.sources[0].mounts.clone_from(&mounts)).await.unwrap();
    fs::remove_file(world.beside("ssd/thumbs/.immich")).unwrap();
    let error = back_up(&world, |plan| plan.sources[0].mounts.clone_from(&mounts)).await.unwrap_err();
    assert!(error.to_string().contains("not mounted? `thumbs/.immich`"), "{error}");
}
