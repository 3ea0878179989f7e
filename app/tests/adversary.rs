//! What someone who tried to break the program found, and cannot do any more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use support::{Objects, Running, Tree, World, settle, write};

fn external(name: &str, folder: &std::path::Path) -> String {
    format!("{name}={}", folder.display())
}

#[test]
fn a_folder_of_the_library_and_an_external_library_never_share_a_place() {
    let world = World::new();
    world.file("external/nas/x.jpg", 100, 1);
    let nas = world.at("nas");
    write(&nas.join("x.jpg"), b"another", 1_500_000_000, 0, 0o644);
    world.backup(&["--external", &external("nas", &nas)]).ended(0);
    let to = world.at("to");
    world.restore(&to, &[]).ended(1).says("external/nas").says("--external nas=");
    assert!(!to.join("external").exists(), "something was written");
    let elsewhere = world.at("elsewhere");
    world.restore(&to, &["--external", &external("nas", &elsewhere)]).ended(0);
    assert_eq!(fs::read(elsewhere.join("x.jpg")).unwrap(), b"another");
    assert_eq!(fs::read(to.join("external/nas/x.jpg")).unwrap().len(), 100);
}

#[test]
fn one_name_for_two_external_libraries_is_refused() {
    let world = World::new();
    world.pictures(3);
    let (a, b) = (external("nas", &world.at("a")), external("nas", &world.at("b")));
    world.backup(&["--external", &a, "--external", &b]).ended(2).says("twice");
}

#[test]
fn a_link_in_the_middle_of_a_path_leads_nothing_into_the_repository() {
    let world = World::new();
    world.pictures(30);
    world.file("upload/k/id", 100, 7);
    world.backup(&[]).ended(0);
    let secret = world.at("secret");
    write(&secret.join("id"), b"the key of the house", 1_500_000_000, 0, 0o600);
    fs::rename(world.library.join("upload/k"), world.at("moved")).unwrap();
    symlink(&secret, world.library.join("upload/k")).unwrap();
    world.backup(&[]).ended(3).says("symbolic link");
    for (path, _) in Tree::of(&world.repository).0 {
        let object = world.repository.join(support::raw(&path));
        assert_ne!(fs::read(&object).unwrap(), b"the key of the house", "{}", object.display());
    }
}

#[test]
fn a_restore_stays_out_of_the_repository_and_of_links_to_elsewhere() {
    let world = World::new();
    world.pictures(10);
    let nas = world.at("nas");
    write(&nas.join("x.jpg"), b"nas", 1_500_000_000, 0, 0o644);
    world.backup(&["--external", &external("nas", &nas)]).ended(0);
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    world.restore(&world.repository.join("library"), &["--overwrite"]).ended(1).says("the repository");
    world.restore(&world.state, &[]).ended(1).says("the state folder");
    objects.look(&world.repository, true);
    let (to, outside) = (world.at("to"), world.at("outside"));
    fs::create_dir_all(&to).unwrap();
    fs::create_dir_all(&outside).unwrap();
    symlink(&outside, to.join("external")).unwrap();
    let ran = world.restore(&to, &[]);
    assert_ne!(ran.told(), "");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "written outside of the target");
}

#[test]
fn two_restores_do_not_write_to_one_target() {
    let world = World::new();
    world.file("upload/large.mp4", 120 << 20, 3);
    world.backup(&[]).ended(0);
    let to = world.at("to");
    let mut first = Running::start(world.restore_command(&to, &[]));
    assert!(first.until(|_| to.join("upload").is_dir()), "the first restore never began");
    first.signal("STOP");
    world.restore(&to, &[]).ended(1).says("another restore");
    first.signal("CONT");
    first.wait().ended(0);
    assert_eq!(fs::metadata(to.join("upload/large.mp4")).unwrap().len(), 120 << 20);
}

#[test]
fn a_small_root_that_is_gone_does_not_hide_behind_a_large_one() {
    let world = World::new();
    world.pictures(200);
    let nas = world.at("nas");
    for number in 0..15 {
        write(&nas.join(format!("{number}.jpg")), format!("nas {number}").as_bytes(), 1_500_000_000, 0, 0o644);
    }
    let nas_is = external("nas", &nas);
    world.backup(&["--external", &nas_is]).ended(0);
    for number in 0..15 {
        fs::remove_file(nas.join(format!("{number}.jpg"))).unwrap();
    }
    fs::create_dir(nas.join("lost+found")).unwrap();
    world.backup(&["--external", &nas_is]).ended(4).says("15 of 15").says("nas");
}

#[test]
fn changed_originals_are_weighed_against_originals_that_could_have_changed() {
    let world = World::new();
    world.pictures(40);
    let nas = world.at("nas");
    for number in 0..400 {
        write(&nas.join(format!("{number}.jpg")), format!("nas {number}").as_bytes(), 1_500_000_000, 0, 0o644);
    }
    let nas_is = external("nas", &nas);
    world.backup(&["--external", &nas_is]).ended(0);
    for number in 0..10_u64 {
        world.file(&format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16), 900, 1_000 + number);
    }
    world.backup(&["--external", &nas_is]).ended(4).says("10 of 40");
}

#[test]
fn what_was_accepted_is_what_was_seen() {
    let world = World::new();
    world.pictures(100);
    world.backup(&[]).ended(0);
    let remove = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            fs::remove_file(world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16))).unwrap();
        }
    };
    remove(0..12);
    let run = world.backup(&[]).ended(4).summary()["run"].as_str().unwrap().to_owned();
    remove(12..90);
    let again = world.backup(&["--accept", &run]).ended(4).says("90 of 100");
    assert_eq!(again.number("/files/archived"), 0);
}

#[test]
fn a_new_file_that_moves_behind_the_walk_is_in_the_snapshot() {
    let world = World::new();
    for number in 0..400 {
        world.file(&format!("upload/u/{number:05}.jpg"), 300_000, number);
    }
    let mut running = Running::start(world.backup_command(&["--workers", "1"]));
    // Slowed down so that the queue is full while a file far behind moves to a folder that was walked.
    assert!(running.until(|_| world.repository.join("library/upload/u").is_dir()), "nothing was stored");
    running.signal("STOP");
    let still_there: Vec<_> =
        (0..400).rev().map(|number| format!("{number:05}.jpg")).filter(|name| !world.repository.join("library/upload/u").join(name).exists()).collect();
    fs::create_dir_all(world.library.join("library/u")).unwrap();
    for name in still_there.iter().take(20) {
        fs::rename(world.library.join("upload/u").join(name), world.library.join("library/u").join(name)).unwrap();
    }
    running.signal("CONT");
    let snapshot = running.wait().ended(0).snapshot();
    world.assert_restores(&snapshot, &world.tree());
}

#[test]
fn a_barrier_that_failed_announces_nothing() {
    let traced = |more: &[&str], program: &Command| {
        let mut command = support::clean(Command::new("strace"));
        command.args(["-f", "-qq", "-o", "/dev/null"]).args(more).arg(program.get_program()).args(program.get_args());
        command
    };
    if !Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success()) {
        eprintln!("NOT TESTED: strace cannot be used here");
        return;
    }
    let world = World::new();
    world.pictures(50);
    world.run(&["init"]).ended(0);
    settle();
    let fails = ["-e", "trace=syncfs", "-e", "inject=syncfs:error=EIO"];
    let ran = Running::start(traced(&fails, &world.backup_command(&[]))).wait();
    ran.ended(1).says("flush");
    assert_eq!(world.entries(), 2, "only that the run began, and that it failed, may be in the log");
    // Everything is found again, compared, and said.
    world.backup(&[]).ended(0);
    world.run(&["verify", "--read-data"]).ended(0);
}

#[test]
fn verify_takes_its_own_failures_for_failures() {
    let world = World::new();
    world.pictures(60);
    world.backup(&[]).ended(0);
    let entries = world.entries();
    let verify = world.command(&["verify", "--read-data", "--workers", "200"]);
    let mut limited = support::clean(Command::new("prlimit"));
    limited.arg("--nofile=24").arg(verify.get_program()).args(verify.get_args());
    let ran = Running::start(limited).wait();
    assert_eq!(ran.code, 1, "{}", ran.told());
    assert_eq!(world.entries(), entries, "a failure of its own was written down as damage");
    world.run(&["verify", "--read-data"]).ended(0);
}

#[test]
fn many_alike_that_are_gone_are_weighed_at_once() {
    let world = World::new();
    world.pictures(20);
    for number in 0..4_000 {
        write(&world.library.join(format!("upload/same/{number}.xmp")), b"", 1_500_000_000, 0, 0o644);
    }
    world.backup(&[]).ended(0);
    fs::remove_dir_all(world.library.join("upload/same")).unwrap();
    // Asking for each of them whether another one stands took minutes.
    world.backup(&[]).ended(4).says("4000 of 4020");
}

#[test]
fn a_place_has_one_name_however_it_is_written() {
    let world = World::new();
    world.pictures(3);
    world.backup(&[]).ended(0);
    fs::rename(&world.repository, world.at("unmounted")).unwrap();
    let slashed = format!("{}//", world.repository.display());
    let library = world.library.to_str().unwrap().to_owned();
    let mut command = support::program();
    command.args(["backup", "--init", "-r", &slashed, "--state-dir", world.state.to_str().unwrap(), "--library", &library]);
    Running::start(command).wait().ended(10).says("was at");
    assert!(!world.repository.exists(), "a new repository was made where one was");
}
