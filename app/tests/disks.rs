//! Disks that fail: the power goes at any moment, and what was not flushed is gone in any order; a file cannot be read for a fault of the medium.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test may"
)]

#[path = "support/power.rs"]
mod power;
mod support;

use power::{Recording, can_trace, traced};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{Ran, Random, Running, Tree, World, clean, remove, settle};

/// What the power may be lost in: a run on a world, and what is known from before.
struct Scene {
    name: &'static str,
    recording: Recording,
    /// Snapshots that were announced before, and the one of this run.
    trees: BTreeMap<String, Tree>,
    /// Those from before: they are on disk whatever happens.
    before: Vec<String>,
    /// That of this run.
    own: String,
}

/// How files are made to last.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barrier {
    /// One call for all of the file system.
    Syncfs,
    /// Each file and each folder by itself, as on file systems whose `syncfs` is not known to be enough.
    EachFile,
}

/// Runs `command` as it is, and notes what it asks of the kernel.
fn record(world: &World, command: &Command, barrier: Barrier, name: &'static str, trees: &BTreeMap<String, Tree>) -> Scene {
    let mut recording = Recording::before(&[&world.repository, &world.state]);
    let trace = world.at("trace");
    let ran = Running::start(traced(command, &trace, barrier == Barrier::Syncfs)).wait().ended(0);
    recording.read(&trace);
    fs::remove_file(&trace).unwrap();
    assert_eq!(recording.has_barriers(), barrier == Barrier::Syncfs);
    assert!(recording.len() > 100 && recording.flushes() > 5, "the recording is blind: {} deeds, {} flushes", recording.len(), recording.flushes());
    let own = ran.snapshot();
    let before = trees.keys().cloned().collect();
    let mut trees = trees.clone();
    trees.insert(own.clone(), world.tree());
    Scene { name, recording, trees, before, own }
}

/// A first backup, one after changes, and one from a state folder that knows nothing.
fn scenes(world: &World, barrier: Barrier) -> Vec<Scene> {
    world.pictures(12);
    world.file("upload/u0/large.mov", (16 << 20) + 700, 0);
    settle();
    let first = record(world, &world.backup_command(&["--workers", "3"]), barrier, "a first backup", &BTreeMap::new());
    for number in 0..6 {
        world.file(&format!("upload/u1/new-{number}.jpg"), 700 + number * 300, 5);
    }
    fs::remove_file(world.library.join("upload/u0/00/00000.jpg")).unwrap();
    fs::rename(world.library.join("upload/u1/01/00001.jpg"), world.library.join("library/moved.jpg")).unwrap();
    let second = record(world, &world.backup_command(&[]), barrier, "a second backup", &first.trees);
    world.file("thumbs/u0/another.webp", 900, 0);
    remove(&world.state);
    let third = record(world, &world.backup_command(&["--take-over"]), barrier, "a backup from a new state folder", &second.trees);
    vec![first, second, third]
}

/// The power goes at `moment`: the crashed disks are used as if nothing had happened.
fn lose_power(world: &World, scene: &Scene, moment: usize, seed: u64) {
    let mut random = Random::new(seed);
    // In memory where there is some: what lasts on a disk is the model's to say.
    let place = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (repository, state) = (place.path().join("repository"), place.path().join("state"));
    scene.recording.crash(moment, &mut random, &[&repository, &state]);
    let run = |arguments: &[&str]| -> Ran {
        let mut command = support::program();
        command.args(arguments).arg("--repository").arg(&repository).arg("--state-dir").arg(&state);
        Running::start(command).wait()
    };
    // What was announced is there: to all snapshots before, and where the program had said so, to that of the run itself.
    let mut promised = scene.before.clone();
    if scene.recording.had_ended(moment) {
        promised.push(scene.own.clone());
    }
    if !promised.is_empty() {
        let listed = run(&["snapshots", "--json"]).ended(0);
        let ids: Vec<_> = listed.events("snapshot").iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
        assert!(promised.iter().all(|id| ids.contains(id)), "{promised:?} were announced, and {ids:?} are there");
    }
    // The next run completes, whatever is left of this one.
    let library = world.library.to_str().unwrap();
    let ran = run(&["backup", "--init", "--json", "--take-over", "--library", library]).ended(0);
    let mut trees = scene.trees.clone();
    trees.insert(ran.snapshot(), world.tree());
    let verified = run(&["verify", "--read-data", "--json"]).ended(0);
    assert_eq!(verified.number("/damaged"), 0, "{}", verified.told());
    // Every snapshot that the log announces, this run's too if it came so far, brings back what it saw.
    let listed = run(&["snapshots", "--json"]).ended(0);
    for line in listed.events("snapshot") {
        let id = line["id"].as_str().unwrap();
        let to = place.path().join("restored");
        run(&["restore", "--json", "--snapshot", id, "--to", to.to_str().unwrap()]).ended(0);
        // The library has gone on since the first scenes: what stood then is remembered.
        Tree::of(&to).without("backups").assert_is(&trees[id], &format!("snapshot {id}"));
        remove(&to);
    }
}

fn lose_power_often(times: usize) {
    if !can_trace() {
        eprintln!("NOT TESTED: strace cannot be used here, and losses of power cannot be told");
        return;
    }
    let worlds = [(World::new(), Barrier::Syncfs), (World::new(), Barrier::EachFile)];
    let mut random = Random::fresh();
    let first_seed = random.next();
    let scenes: Vec<_> = worlds.iter().flat_map(|(world, barrier)| scenes(world, *barrier).into_iter().map(move |scene| (world, scene))).collect();
    for (_, scene) in &scenes {
        println!("{}: {} deeds, {} of them flushes", scene.name, scene.recording.len(), scene.recording.flushes());
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= times {
                        return;
                    }
                    let (world, scene) = &scenes[number % scenes.len()];
                    let seed = first_seed.wrapping_add(number as u64);
                    let moments = scene.recording.len();
                    // At the very end, too: then all of it was announced.
                    let moment = if number < 2 * scenes.len() { moments } else { Random::new(!seed).below(moments + 1) };
                    let lost = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| lose_power(world, scene, moment, seed)));
                    if lost.is_err() {
                        failed.lock().unwrap().push(format!("{}, moment {moment} of {moments}, seed {seed}", scene.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {times} losses of power: {failed:#?}", failed.len());
    println!("{times} losses of power: every snapshot that was announced comes back");
}

#[test]
fn the_power_goes_at_40_moments_and_what_was_announced_comes_back() {
    lose_power_often(40);
}

#[test]
#[ignore = "slow: scripts/test --slow"]
fn the_power_goes_at_3_000_moments_and_what_was_announced_comes_back() {
    lose_power_often(3_000);
}

/// The program, of which these calls on `path` fail with EIO: the kernel's own answer where a disk cannot read a sector.
fn with_bad_sectors(path: &Path, calls: &str, command: &Command) -> Command {
    let mut all = clean(Command::new("strace"));
    all.args(["-f", "-qq", "-o", "/dev/null", "-P"]).arg(path).args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:error=EIO"), "--"]);
    all.arg(command.get_program()).args(command.get_args());
    all
}

#[test]
fn a_file_on_bad_sectors_is_named_the_rest_is_stored_and_what_was_stored_of_it_stays() {
    if !can_trace() {
        eprintln!("NOT TESTED: strace cannot be used here");
        return;
    }
    let world = World::new();
    world.pictures(8);
    settle();
    world.backup(&[]).ended(0);
    let before = world.tree();
    // It was stored; now it looks changed, and cannot be read. Another one is new.
    let (known, new) = ("upload/u0/00/00000.jpg", "upload/u0/new.jpg");
    support::set_mtime(&world.library.join(known), 1_600_000_000, 0);
    world.file(new, 500, 0);
    world.file("upload/u0/good.jpg", 600, 0);
    let bad = |path: &str| with_bad_sectors(&world.library.join(path), "read,pread64", &world.backup_command(&[]));
    let ran = Running::start(bad(new)).wait().ended(3).says(new).says("Input/output error");
    assert_eq!((ran.number("/unread_count"), ran.number("/files/archived")), (1, 0), "{}", ran.told());
    let ran = Running::start(bad(known)).wait().ended(3).says(known).says("Input/output error");
    assert_eq!((ran.number("/unread_count"), ran.number("/files/archived"), ran.number("/files/sent")), (1, 0, 1), "{}", ran.told());
    // Its content of before is in that snapshot.
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    let restored = Tree::of(&to);
    assert!(restored.0[known.as_bytes()].sha256 == before.0[known.as_bytes()].sha256);
    remove(&to);
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn an_object_on_bad_sectors_is_damage_that_is_named_and_mended_by_the_next_run() {
    if !can_trace() {
        eprintln!("NOT TESTED: strace cannot be used here");
        return;
    }
    let world = World::new();
    world.pictures(8);
    settle();
    world.backup(&[]).ended(0);
    let key = "library/upload/u1/01/00001.jpg";
    let object = world.repository.join(key);
    let bad = |command: Command| Running::start(with_bad_sectors(&object, "read,pread64", &command)).wait();
    let to = world.at("restored");
    bad(world.restore_command(&to, &[])).ended(12).says("upload/u1/01/00001.jpg");
    remove(&to);
    bad(world.command(&["verify", "--read-data", "--json"])).ended(12).says(key);
    // Known to be damaged now: its content is stored again, under another key, and the bad one is left alone.
    assert_eq!(world.backup(&[]).ended(0).number("/files/sent"), 1);
    world.assert_restores("latest", &world.tree());
    bad(world.restore_command(&to, &[])).ended(0);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "past the bad sectors");
}

#[test]
fn a_state_folder_on_bad_sectors_is_a_clear_error_and_the_repository_stays_as_it_is() {
    if !can_trace() {
        eprintln!("NOT TESTED: strace cannot be used here");
        return;
    }
    let world = World::new();
    world.pictures(8);
    settle();
    world.backup(&[]).ended(0);
    world.file("upload/u0/new.jpg", 500, 0);
    let manifest = world.own_state().join("manifest.db");
    let ran = Running::start(with_bad_sectors(&manifest, "read,pread64", &world.backup_command(&[]))).wait().ended(1);
    assert!(ran.told().contains("manifest.db"), "{}", ran.told());
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
    world.run(&["verify", "--read-data", "--json"]).ended(0);
}
