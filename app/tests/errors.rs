//! What gets a clear error, and loses nothing.

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

mod support;

use rustix::fs::FlockOperation;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;
use support::{Mount, Objects, Ran, Running, Tree, World, changed_while_read, may_mount, program, remove, settle, tool, write, write_entry};

// The library.

#[test]
fn a_library_that_is_not_mounted_is_refused_and_nothing_is_archived() {
    let world = World::new();
    world.pictures(20);
    world.backup(&[]).ended(0);
    let entries = world.entries();
    let away = world.at("away");
    // One folder's disk is away: its mount point is there, empty.
    fs::rename(world.library.join("upload"), &away).unwrap();
    fs::create_dir(world.library.join("upload")).unwrap();
    world.backup(&[]).ended(1).says("upload/.immich").says("not mounted?").says("--ignore-missing-markers");
    assert_eq!(world.entries(), entries, "a refused run wrote to the log");
    // All of it is away.
    let whole = world.at("whole");
    fs::rename(&world.library, &whole).unwrap();
    fs::create_dir(&world.library).unwrap();
    world.backup(&[]).ended(1).says("is empty").says("mounted");
    fs::remove_dir(&world.library).unwrap();
    world.backup(&[]).ended(1).says("cannot open").says(world.library.to_str().unwrap());
    assert_eq!(world.entries(), entries);
    fs::rename(&whole, &world.library).unwrap();
    fs::remove_dir(world.library.join("upload")).unwrap();
    fs::rename(&away, world.library.join("upload")).unwrap();
    assert_eq!(world.backup(&[]).ended(0).number("/files/archived"), 0);
    // Meant: the folder was taken away, marker and all.
    remove(&world.library.join("profile"));
    world.backup(&[]).ended(1);
    assert_eq!(world.backup(&["--ignore-missing-markers"]).ended(0).number("/files/archived"), 1);
    world.backup(&[]).ended(0);
}

#[test]
fn an_empty_library_and_one_without_files_are_refused() {
    let world = World::bare();
    world.backup(&[]).ended(1).says("is empty");
    fs::create_dir_all(world.library.join("upload/u")).unwrap();
    world.backup(&[]).ended(1).says("holds no file");
    assert_eq!(world.snapshots().len(), 0);
    remove(&world.library.join("upload"));
    write(&world.library.join("file"), b"x", 1, 0, 0o644);
    world.backup(&[]).ended(0).says("none of the folders of an Immich media location");
    world.run(&["backup", "--library", world.library.join("file").to_str().unwrap()]).ended(1).says("cannot open");
}

/// The program as a user who may not read everything, in a world that this user owns.
struct Nobody {
    world: World,
    copy: std::path::PathBuf,
}

impl Nobody {
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("NOT TESTED: {test} needs root to become another user");
            return None;
        }
        let world = World::new();
        fs::set_permissions(world.at(""), fs::Permissions::from_mode(0o777)).unwrap();
        let copy = world.at("immich-backup");
        fs::copy(env!("CARGO_BIN_EXE_immich-backup"), &copy).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Self { world, copy })
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = support::clean(std::process::Command::new("setpriv"));
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&self.copy).args(arguments);
        command.arg("-r").arg(&self.world.repository).arg("--state-dir").arg(&self.world.state);
        Running::start(command).wait()
    }

    fn backup(&self) -> Ran {
        self.run(&["backup", "--init", "--json", "--library", self.world.library.to_str().unwrap()])
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_cannot_be_read_is_named_the_rest_is_stored_and_nothing_of_it_is_archived() {
    let Some(nobody) = Nobody::new("unreadable files") else { return };
    let world = &nobody.world;
    world.pictures(30);
    for number in 0..5 {
        world.file(&format!("library/closed/sub/{number}.jpg"), 100, 1);
    }
    let tree = world.tree();
    nobody.backup().ended(0);
    // A file and a folder that cannot be read any more, and a new file.
    chmod(&world.library.join("library/closed"), 0o000);
    let file = world.file("upload/u0/new-closed.jpg", 100, 2);
    chmod(&file, 0o000);
    world.file("upload/u0/new-open.jpg", 100, 3);
    let ran = nobody.backup().ended(3).says("library/closed").says("upload/u0/new-closed.jpg");
    let summary = ran.summary();
    assert_eq!((ran.number("/unread_count"), ran.number("/files/archived"), ran.number("/files/new")), (2, 0, 1), "{summary}");
    let named: Vec<_> = summary["unread"].as_array().unwrap().iter().map(|unread| unread["path"].as_str().unwrap()).collect();
    assert!(named.contains(&"library/closed") && named.contains(&"upload/u0/new-closed.jpg"), "{named:?}");
    assert_eq!(summary["outcome"], "incomplete");
    // What could not be read stands as it was.
    let to = world.at("restored");
    nobody.run(&["restore", "--json", "--to", to.to_str().unwrap()]).ended(0);
    let restored = Tree::of(&to);
    for path in tree.0.keys() {
        assert!(restored.0.contains_key(path), "{} was lost", path.escape_ascii());
    }
    nobody.run(&["status"]).ended(3).says("could not be read");
    nobody.run(&["snapshots"]).ended(0).says("2 unread");
    // Readable again: done.
    chmod(&world.library.join("library/closed"), 0o755);
    chmod(&file, 0o644);
    nobody.backup().ended(0);
    nobody.run(&["status"]).ended(0);
    // The library itself.
    chmod(&world.library, 0o000);
    nobody.backup().ended(1).says("cannot open").says("as whom this program runs");
    chmod(&world.library, 0o755);
}

#[test]
fn a_repository_that_may_not_be_written_to_is_a_clear_error_and_can_be_read() {
    let Some(nobody) = Nobody::new("a read-only repository") else { return };
    let world = &nobody.world;
    world.pictures(5);
    nobody.backup().ended(0);
    tool("chmod", &["-R".as_ref(), "a-w".as_ref(), world.repository.as_os_str()]);
    world.file("upload/u0/new.jpg", 100, 3);
    nobody.backup().ended(1).says("ermission");
    nobody.run(&["ls"]).ended(0).says("upload/u0/00/00000.jpg");
    nobody.run(&["verify", "--read-data"]).ended(0).says("could not be written to the log");
    nobody.run(&["doctor"]).ended(1).says("may not write");
    tool("chmod", &["-R".as_ref(), "u+w".as_ref(), world.repository.as_os_str()]);
    nobody.backup().ended(0);
}

#[test]
fn a_file_that_grows_all_the_time_is_named_and_stored_by_a_later_run() {
    let world = World::new();
    world.pictures(10);
    let path = world.file("upload/u/growing.mov", 3 << 20, 1);
    let mut file = fs::File::options().append(true).open(&path).unwrap();
    let Some(ran) = changed_while_read(&world, &path, || file.write_all(b"more").unwrap()) else { return };
    let ran = ran.ended(3).says("upload/u/growing.mov").says("changed each of the 3 times");
    assert_eq!(ran.number("/files/new"), 15);
    assert!(!world.repository.join("library/upload/u/growing.mov").exists());
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn a_large_file_that_grows_while_it_is_streamed_leaves_nothing_half_behind() {
    let world = World::new();
    let path = world.file("upload/u/growing.mov", 30 << 20, 1);
    let file = fs::File::options().write(true).open(&path).unwrap();
    // The same size, other bytes.
    let Some(ran) = changed_while_read(&world, &path, || file.write_all_at(b"other", 29 << 20).unwrap()) else { return };
    ran.ended(3).says("changed each of the 3 times");
    assert!(!world.repository.join("library/upload/u/growing.mov").exists());
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn files_that_vanish_during_the_run_are_no_error() {
    let world = World::new();
    for number in 0..2_000 {
        world.file(&format!("upload/u/{:02}/{number:05}.jpg", number % 40), 1_000, 0);
    }
    let before = world.tree();
    let mut running = Running::start(world.backup_command(&["--workers", "1"]));
    assert!(running.until(|running| running.said().contains("bytes_sent") || world.repository.join("library/upload/u").exists()));
    for number in (0..2_000).rev().step_by(5) {
        fs::remove_file(world.library.join(format!("upload/u/{:02}/{number:05}.jpg", number % 40))).unwrap();
    }
    let ran = running.wait().ended(0);
    let vanished = 2_005 - ran.number("/files/new");
    let after = world.tree();
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    let restored = Tree::of(&to);
    for (path, leaf) in &after.0 {
        assert!(restored.0.get(path).is_some_and(|found| found.sha256 == leaf.sha256), "{} is missing", path.escape_ascii());
    }
    assert!(restored.without("backups").0.keys().all(|path| before.0.contains_key(path)));
    // They were a fifth of all: the wire is tripped if they were seen, and answered for.
    let next = world.backup(&[]);
    if next.code == 4 {
        world.backup(&["--accept", next.summary()["run"].as_str().unwrap()]).ended(0);
    } else {
        next.ended(0);
    }
    world.assert_restores("latest", &after);
    println!("{vanished} of 400 vanished before they were read");
}

#[test]
fn a_file_becomes_a_folder_and_back_and_every_snapshot_restores() {
    let world = World::new();
    world.pictures(100);
    let place = world.library.join("upload/u/thing");
    let mut snapshots = Vec::new();
    for round in 0..4 {
        remove(&place);
        if round % 2 == 0 {
            write(&place, format!("file {round}").as_bytes(), 1_500_000_000 + round, 0, 0o644);
        } else {
            write(&place.join("inner/deep.jpg"), format!("folder {round}").as_bytes(), 1_500_000_000 + round, 0, 0o644);
            write(&place.join("a.jpg"), b"same", 1_500_000_000, 0, 0o644);
        }
        let tree = world.tree();
        snapshots.push((world.backup(&[]).ended(0).snapshot(), tree));
    }
    for (snapshot, tree) in &snapshots {
        world.assert_restores(snapshot, tree);
    }
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    // Over one another at the target, too: a folder where a file should be is not removed by force.
    let to = world.at("over");
    world.restore(&to, &["--snapshot", &snapshots[1].0]).ended(0);
    let before = Tree::of(&to);
    world.restore(&to, &["--snapshot", &snapshots[0].0]).ended(1).says("differ");
    Tree::of(&to).assert_is(&before, "refused");
    let forced = world.restore(&to, &["--snapshot", &snapshots[0].0, "--overwrite"]);
    assert!(matches!(forced.code, 1 | 3), "{}", forced.told());
}

#[test]
fn a_link_is_named_sockets_and_pipes_are_passed_over() {
    let world = World::new();
    world.pictures(5);
    std::os::unix::fs::symlink("00/00000.jpg", world.library.join("upload/u0/link.jpg")).unwrap();
    std::os::unix::fs::symlink("/etc", world.library.join("library/etc")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.library.join("upload/socket")).unwrap();
    tool("mkfifo", &[world.library.join("upload/pipe")]);
    let ran = world.backup(&[]).ended(3).says("upload/u0/link.jpg").says("library/etc").says("symbolic link");
    assert_eq!((ran.number("/special"), ran.number("/unread_count"), ran.number("/files/new")), (4, 2, 10));
    assert!(!world.repository.join("library/library/etc").exists(), "a link was followed");
    fs::remove_file(world.library.join("upload/u0/link.jpg")).unwrap();
    fs::remove_file(world.library.join("library/etc")).unwrap();
    let ran = world.backup(&[]).ended(0);
    assert_eq!(ran.events("special_skipped").len(), 2);
    // Meant: excluded.
    std::os::unix::fs::symlink("/etc", world.library.join("library/etc")).unwrap();
    world.backup(&["--exclude", "library/etc"]).ended(0);
}

#[test]
fn a_sparse_file_comes_back_with_its_bytes() {
    let world = World::new();
    let path = world.library.join("upload/u/sparse.mov");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let file = fs::File::create(&path).unwrap();
    file.set_len(40 << 20).unwrap();
    file.write_all_at(b"island", 20 << 20).unwrap();
    drop(file);
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn an_empty_file_comes_back() {
    let world = World::new();
    world.file("upload/u/empty.jpg", 0, 0);
    world.file("upload/u/empty-too.jpg", 0, 0);
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

// Room and rights.

#[test]
fn a_full_disk_under_the_repository_is_a_clear_error_and_more_room_is_all_it_takes() {
    if !may_mount("a full disk under the repository") {
        return;
    }
    let world = World::new();
    for number in 0..60 {
        world.file(&format!("upload/u/{number}.jpg"), 150_000, 0);
    }
    world.file("upload/u/large.mov", 12 << 20, 0);
    let mount = Mount::tmpfs(&world.repository, "4m");
    let ran = world.backup(&[]).ended(1).says("No space left");
    let hint = ran.summary()["errors"][0]["hint"].as_str().unwrap_or_else(|| panic!("no hint\n{}", ran.told())).to_owned();
    assert!(hint.contains("room"), "{hint}");
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    let stored = objects.contents().len();
    assert!(stored > 5, "only {stored} objects were stored");
    world.backup(&[]).ended(1).says("No space left");
    mount.remount("size=64m");
    let ran = world.backup(&[]).ended(0);
    objects.look(&world.repository, true);
    assert!(ran.number("/files/sent") < 66, "all was sent again\n{}", ran.told());
    world.assert_restores("latest", &world.tree());
    let verified = world.run(&["verify", "--read-data", "--json"]).ended(0);
    assert_eq!(verified.number("/unannounced"), 0);
    drop(mount);
}

#[test]
fn a_full_disk_under_the_state_folder_is_a_clear_error_and_more_room_is_all_it_takes() {
    if !may_mount("a full disk under the state folder") {
        return;
    }
    let world = World::new();
    for number in 0..1_500 {
        world.file(&format!("upload/{number}/{}.jpg", "long-name-".repeat(20)), 10, number);
    }
    let mount = Mount::tmpfs(&world.state, "400k");
    let ran = world.backup(&[]).ended(1);
    let summary = ran.summary();
    let error = &summary["errors"][0];
    assert!(error["message"].as_str().unwrap().contains(world.state.to_str().unwrap()), "the folder is not named\n{}", ran.told());
    let hint = error["hint"].as_str().unwrap_or_else(|| panic!("no hint\n{}", ran.told()));
    assert!(hint.contains("room") && hint.contains("--state-dir"), "{hint}");
    mount.remount("size=64m");
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
    drop(mount);
}

#[test]
fn a_full_disk_under_the_target_is_a_clear_error_and_more_room_is_all_it_takes() {
    if !may_mount("a full disk under the target") {
        return;
    }
    let world = World::new();
    for number in 0..60 {
        world.file(&format!("upload/u/{number}.jpg"), 150_000, 0);
    }
    world.backup(&[]).ended(0);
    let to = world.at("target");
    let mount = Mount::tmpfs(&to, "4m");
    let ran = world.restore(&to, &[]).ended(1).says("bytes left");
    assert!(ran.summary()["errors"][0]["hint"].as_str().unwrap().contains("make room"), "{}", ran.told());
    assert_eq!(Tree::of(&to).len(), 0, "nothing was begun");
    // Room for the bytes by count, not in fact: other files come to lie there, blocks are round.
    mount.remount("size=9100k");
    let ran = world.restore(&to, &[]);
    assert!(matches!(ran.code, 0 | 1), "{}", ran.told());
    if ran.code == 1 {
        assert!(ran.told().contains("make room"), "{}", ran.told());
    }
    mount.remount("size=64m");
    world.restore(&to, &[]).ended(0);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "after more room");
    let left = tool("find", &[to.as_os_str(), "-name".as_ref(), "*.part".as_ref()]).out;
    assert_eq!(left, "");
    drop(mount);
}

#[test]
fn a_read_only_state_folder_stops_a_backup_and_no_reading() {
    if !may_mount("a read-only state folder") {
        return;
    }
    let world = World::new();
    world.pictures(5);
    let mount = Mount::tmpfs(&world.state, "64m");
    world.backup(&[]).ended(0);
    mount.remount("ro");
    world.backup(&[]).ended(1).says(world.state.to_str().unwrap()).says("--state-dir");
    for arguments in [&["ls"][..], &["snapshots"], &["status"], &["ls", "--until", "3"], &["verify"]] {
        let ran = world.run(arguments).ended(0);
        assert!(arguments.contains(&"--until") || ran.err.contains("warning"), "{}", ran.told());
    }
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0).says("temporary");
    Tree::of(&to).without("backups").assert_is(&world.tree(), "with a read-only state folder");
    // And one that was never made.
    mount.remount("rw");
    remove(&world.own_state());
    mount.remount("ro");
    world.run(&["ls"]).ended(0).says("upload/u0/00/00000.jpg");
    world.backup(&[]).ended(1).says("--state-dir");
    drop(mount);
}

// The repository.

#[test]
fn a_repository_of_an_unknown_format_is_named_and_left_alone() {
    let world = World::new();
    world.pictures(5);
    world.backup(&[]).ended(0);
    let identity = world.repository.join("format.json");
    let text = fs::read_to_string(&identity).unwrap();
    fs::remove_file(&identity).unwrap();
    fs::write(&identity, text.replace("\"format\":1", "\"format\":7")).unwrap();
    for ran in [world.backup(&[]), world.run(&["ls", "--json"]), world.run(&["verify", "--json"])] {
        let ran = ran.ended(11).says("format 7").says("format 1");
        assert!(ran.summary()["errors"][0]["hint"].is_string());
    }
    fs::write(&identity, "no JSON").unwrap();
    world.run(&["ls"]).ended(11).says("format.json");
}

#[test]
fn a_log_entry_of_an_unknown_format_is_refused_and_the_part_before_can_be_read() {
    let world = World::new();
    world.pictures(5);
    world.backup(&[]).ended(0);
    let last = world.entries();
    write_entry(&world.entry(last + 1), b"{\"format\":2,\"sequence\":99}\n");
    world.run(&["ls"]).ended(11).says("format 2").says(&format!("--until {last}"));
    world.backup(&[]).ended(11);
    world.run(&["ls", "--until", &last.to_string()]).ended(0).says("upload/u0/00/00000.jpg");
}

#[test]
fn a_place_without_a_repository_is_exit_10() {
    let world = World::new();
    world.pictures(1);
    for arguments in
        [&["ls", "--json"][..], &["snapshots", "--json"], &["status", "--json"], &["verify", "--json"], &["restore", "--json", "--to", "/nonexistent/x"]]
    {
        world.run(arguments).ended(10).says("there is no repository");
    }
    world.run(&["backup", "--json", "--library", world.library.to_str().unwrap()]).ended(10).says("--init");
    assert!(!world.repository.exists(), "a failed command made the folder");
    // Not empty, and no repository: init refuses.
    write(&world.repository.join("holiday.jpg"), b"x", 1, 0, 0o644);
    world.run(&["init"]).ended(1).says("not empty");
    world.backup(&[]).ended(1).says("not empty");
    fs::remove_file(world.repository.join("holiday.jpg")).unwrap();
    world.run(&["init"]).ended(0);
    world.run(&["init"]).ended(1).says("already");
}

/// A world with at least six log entries.
fn with_log() -> World {
    let world = World::new();
    world.pictures(5);
    for round in 0..3 {
        world.file(&format!("thumbs/u/{round}.webp"), 100, round);
        world.backup(&[]).ended(0);
    }
    assert!(world.entries() >= 6);
    world
}

/// As a machine that sees the repository for the first time.
fn afresh(world: &World, arguments: &[&str]) -> Ran {
    let state = world.at("fresh-state");
    remove(&state);
    let mut command = program();
    command.args(arguments).arg("-r").arg(&world.repository).arg("--state-dir").arg(&state);
    Running::start(command).wait()
}

/// Refused with exit 11 whoever asks, and readable up to `good`.
#[track_caller]
fn refused_but_until(world: &World, good: u64, says: &str) {
    // Copies of the manifest would hide what lies before them.
    for file in fs::read_dir(world.repository.join("manifests")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    let entries = world.entries();
    let ran = afresh(world, &["ls", "--json"]).ended(11).says(says).says(&format!("--until {good}"));
    assert_eq!(ran.summary()["outcome"], "log_damaged");
    world.run(&["verify", "--json"]).ended(11).says(says);
    let library = world.library.to_str().unwrap();
    afresh(world, &["backup", "--library", library]).ended(11);
    assert_eq!(world.entries(), entries, "a refused run wrote to the log");
    afresh(world, &["snapshots", "--until", &good.to_string()]).ended(0);
    let to = world.at("until");
    afresh(world, &["restore", "--until", &good.to_string(), "--to", to.to_str().unwrap()]).ended(0);
    assert!(to.join("upload/u0/00/00000.jpg").exists());
    let ran = afresh(world, &["ls", "--until", "9999"]);
    assert_ne!(ran.code, 0, "there are not so many entries\n{}", ran.told());
}

#[test]
fn a_log_with_a_gap_is_refused_and_the_part_before_can_be_read() {
    let world = with_log();
    fs::remove_file(world.entry(5)).unwrap();
    refused_but_until(&world, 4, "gap");
}

#[test]
fn a_log_that_forks_is_refused_and_the_part_before_can_be_read() {
    let world = with_log();
    fs::copy(world.entry(5), world.repository.join("log/0000000005-6fa459ea-ee8a-4ca4-894e-db77e160355e.ndjson.zst")).unwrap();
    refused_but_until(&world, 4, "fork");
}

#[test]
fn a_log_entry_with_a_flipped_bit_is_refused_and_the_part_before_can_be_read() {
    let world = with_log();
    let path = world.entry(5);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    refused_but_until(&world, 4, "log entry 5");
}

#[test]
fn a_log_entry_that_was_changed_and_sealed_again_is_refused() {
    let world = with_log();
    let path = world.entry(5);
    let lines = tool("zstd", &["-dc".as_ref(), path.as_os_str()]).out;
    write_entry(&path, lines.replace("thumbs/u/", "thumbs/v/").replace("\"host\":\"", "\"host\":\"x").as_bytes());
    // One of 5 and 6 is wrong, nobody can say which.
    refused_but_until(&world, 4, "does not follow");
}

#[test]
fn a_repository_that_went_back_in_time_is_refused() {
    let world = with_log();
    let older = world.at("older");
    support::copy(&world.repository, &older);
    world.file("thumbs/u/new.webp", 100, 9);
    world.backup(&[]).ended(0);
    let seen = world.entries();
    remove(&world.repository);
    fs::rename(&older, &world.repository).unwrap();
    let now = world.entries();
    for ran in [world.backup(&[]), world.run(&["ls", "--json"]), world.run(&["verify", "--json"])] {
        ran.ended(11).says("went back in time").says(&format!("{seen}")).says(&format!("{now}"));
    }
    assert_eq!(world.entries(), now);
    // Restoring from what is left is possible, as told.
    let to = world.at("restored");
    world.restore(&to, &["--until", &now.to_string()]).ended(0);
    // It is meant to be older: without the state folder it goes on.
    remove(&world.own_state());
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn a_log_that_was_rewritten_is_refused() {
    let world = with_log();
    let older = world.at("older");
    support::copy(&world.repository, &older);
    world.file("thumbs/u/new.webp", 100, 9);
    world.backup(&[]).ended(0);
    let state = world.at("kept-state");
    support::copy(&world.state, &state);
    // Another past of the same length.
    remove(&world.repository);
    fs::rename(&older, &world.repository).unwrap();
    remove(&world.state);
    world.file("thumbs/u/other.webp", 100, 10);
    world.backup(&[]).ended(0);
    world.file("thumbs/u/another.webp", 100, 11);
    world.backup(&[]).ended(0);
    remove(&world.state);
    fs::rename(&state, &world.state).unwrap();
    world.run(&["ls", "--json"]).ended(11).says("not the one that was seen before");
}

#[test]
fn a_damaged_copy_of_the_manifest_is_found_and_the_log_is_read_instead() {
    let world = with_log();
    for file in fs::read_dir(world.repository.join("manifests")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    afresh(&world, &["ls"]).ended(0).says("upload/u0/00/00000.jpg");
    let to = world.at("restored");
    afresh(&world, &["restore", "--to", to.to_str().unwrap()]).ended(0);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "from the log");
    world.run(&["verify", "--read-data", "--json"]).ended(12).says("manifests/");
    // A new copy is made, and all is well again.
    world.backup(&[]).ended(0);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    world.run(&["status"]).ended(0);
}

// Two at once, and usage.

#[test]
fn a_second_run_waits_for_the_first_and_is_refused_with_wait_0() {
    let world = World::new();
    world.pictures(5);
    world.backup(&[]).ended(0);
    let lock = fs::File::options().write(true).open(world.own_state().join("lock")).unwrap();
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    let ran = world.backup(&["--wait", "0"]).ended(1).says("another run").says("--wait");
    assert!(ran.took < Duration::from_secs(5));
    // Those who only read need not wait.
    world.run(&["ls"]).ended(0);
    world.run(&["status"]).ended(0);
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    let mut second = Running::start(world.backup_command(&["--wait", "60s"]));
    assert!(second.until(|running| running.said().contains("waiting")), "{}", second.said());
    drop(lock);
    second.wait().ended(0);
}

#[test]
fn two_runs_at_once_both_end_well() {
    let world = World::new();
    world.pictures(300);
    world.run(&["init"]).ended(0);
    let runs = [0, 1, 2].map(|_| Running::start(world.backup_command(&[])));
    for run in runs {
        run.wait().ended(0);
    }
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn two_machines_at_once_keep_the_log_whole() {
    let world = World::new();
    world.pictures(300);
    world.run(&["init"]).ended(0);
    // Another state folder is another machine.
    let elsewhere = |state: &str, more: &[&str]| {
        let mut command = program();
        command.args(["backup", "--json", "--library"]).arg(&world.library).arg("-r").arg(&world.repository).arg("--state-dir").arg(world.at(state)).args(more);
        command
    };
    let runs = ["one", "two", "three"].map(|state| Running::start(elsewhere(state, &["--take-over"])));
    for run in runs {
        run.wait().ended(0);
    }
    let verified = world.run(&["verify", "--read-data", "--json"]).ended(0);
    assert_eq!(verified.number("/unannounced"), 0);
    for snapshot in world.snapshots() {
        world.assert_restores(&snapshot, &world.tree());
    }
    // One that died just now may be alive, as seen from another machine.
    for number in 0..500 {
        world.file(&format!("upload/more/{number}.jpg"), 5_000, 1);
    }
    let entries = world.entries();
    let mut dying = Running::start(elsewhere("one", &[]));
    assert!(dying.until(|_| world.entries() > entries));
    dying.signal_quietly("KILL");
    drop(dying);
    if world.run(&["snapshots"]).ended(0).out.contains("is running, or died") {
        Running::start(elsewhere("two", &["--wait", "0"])).wait().ended(1).says("another run has the repository").says("--take-over");
        Running::start(elsewhere("one", &["--wait", "0"])).wait().ended(0).says("dead_run_found");
    }
    Running::start(elsewhere("two", &["--wait", "0"])).wait().ended(0);
}

#[test]
fn wrong_usage_is_exit_2_and_says_what_is_wrong() {
    let world = World::new();
    world.pictures(1);
    world.backup(&[]).ended(0);
    let library = world.library.to_str().unwrap();
    for (arguments, says) in [
        (&["backup"][..], "--library"),
        (&["restore"], "--to"),
        (&["backup", "--library", library, "--workers", "0"], "--workers"),
        (&["backup", "--library", library, "--workers", "many"], "many"),
        (&["backup", "--library", library, "--wait", "soon"], "soon"),
        (&["backup", "--library", library, "--rehash", "lots"], "lots"),
        (&["backup", "--library", library, "--exclude", "a["], "a["),
        (&["backup", "--library", library, "--external", "nas"], "NAME=DIR"),
        (&["backup", "--library", library, "--external", "../x=/tmp"], "external library"),
        (&["backup", "--library", library, "--accept", "nonsense"], "--accept"),
        (&["verify", "--sample", "5%"], "--read-data"),
        (&["verify", "--listing", "--read-data"], "not both"),
        (&["ls", "--until", "x"], "--until"),
        (&["status", "--max-age", "26"], "--max-age"),
        (&["frobnicate"], "frobnicate"),
        (&["ls", "--frobnicate"], "frobnicate"),
        (&[], "Usage"),
    ] {
        let ran = world.run(arguments);
        assert_eq!(ran.code, 2, "{}", ran.told());
        assert!(ran.told().contains(says), "does not say `{says}`\n{}", ran.told());
    }
    let mut command = program();
    command.arg("ls");
    Running::start(command).wait().ended(2).says("--repository").says("IMMICH_BACKUP_REPOSITORY");
    let mut command = program();
    command.args(["ls", "-r", "s3://bucket/prefix"]);
    Running::start(command).wait().ended(2).says("s3://bucket/prefix");
    let mut command = program();
    command.args(["ls", "-r", "s3://key:secret@bucket/prefix?token=secret"]);
    let ran = Running::start(command).wait().ended(2);
    assert!(!ran.err.contains("secret"), "{}", ran.told());
    let mut command = program();
    // A bucket of the environment is one like any other: its region is missing, too.
    command.arg("ls").env("S3_BUCKET", "b");
    Running::start(command).wait().ended(2).says("no region").says("AWS_REGION");
}

#[test]
fn a_repository_or_state_folder_inside_the_library_is_refused() {
    let mut world = World::new();
    world.pictures(1);
    world.repository = world.library.join("backup");
    world.backup(&[]).ended(1).says("lie within one another").says("outside");
    let mut world = World::new();
    world.pictures(1);
    world.state = world.library.join("state");
    world.backup(&[]).ended(1).says("lie within one another");
    let mut world = World::new();
    world.pictures(1);
    world.repository = world.at("");
    let ran = world.backup(&[]);
    assert_eq!(ran.code, 1, "{}", ran.told());
}

#[test]
fn a_refused_nested_repository_leaves_nothing_in_the_library() {
    let mut world = World::new();
    world.pictures(1);
    let before = Tree::of(&world.library);
    world.repository = world.library.join("backup");
    world.backup(&[]).ended(1).says("lie within one another");
    Tree::of(&world.library).assert_is(&before, "the library is never written to");
    world.repository = world.at("repository");
    world.state = world.library.join("state/folder");
    world.backup(&[]).ended(1).says("lie within one another");
    Tree::of(&world.library).assert_is(&before, "the library is never written to");
    assert!(!world.library.join("state").exists() && !world.library.join("backup").exists());
}

#[test]
fn nothing_in_the_library_is_ever_changed() {
    let world = World::new();
    world.pictures(50);
    let look = || {
        let found = tool("find", &[world.library.as_os_str(), "-printf".as_ref(), "%P %i %m %U %s %T@ %C@\\n".as_ref()]);
        found.out
    };
    let before = look();
    world.backup(&[]).ended(0);
    world.backup(&["--rehash", "100%"]).ended(0);
    world.run(&["doctor", "--library", world.library.to_str().unwrap()]).ended(0);
    world.backup(&["--dry-run"]).ended(0);
    assert_eq!(look(), before);
}

// Tripwires.

#[test]
fn a_tenth_of_the_originals_gone_trips_the_wire_until_it_is_accepted_once() {
    let world = World::new();
    world.pictures(100);
    let tree = world.tree();
    let first = world.backup(&[]).ended(0).snapshot();
    for number in 0..10 {
        fs::remove_file(world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16))).unwrap();
    }
    assert_eq!(world.backup(&[]).ended(0).number("/files/archived"), 10, "a tenth is let pass");
    for number in 10..20 {
        fs::remove_file(world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16))).unwrap();
    }
    world.file("upload/u0/new.jpg", 500, 4);
    let ran = world.backup(&[]).ended(4).says("10 of 90");
    let run = ran.summary()["run"].as_str().unwrap().to_owned();
    assert_eq!(ran.number("/files/archived"), 0);
    assert_eq!(ran.number("/files/sent"), 1, "what is new is stored");
    assert!(ran.summary()["snapshot"].is_null());
    assert_eq!(world.snapshots().len(), 2);
    world.run(&["ls", "--archived"]).ended(0);
    world.run(&["status"]).says("withheld").says("10 of 90");
    // Said to people: what to do.
    let people = world.run(&["backup", "--library", world.library.to_str().unwrap()]).ended(4).says("--accept ");
    let newest = people.out.split("--accept ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    // An older one is not accepted any more, nor one that never was.
    world.backup(&["--accept", &run]).ended(1).says("nothing to accept");
    world.backup(&["--accept", &first]).ended(1).says("nothing to accept");
    let ran = world.backup(&["--accept", &newest]).ended(0);
    assert_eq!(ran.number("/files/archived"), 10);
    world.backup(&["--accept", &newest]).ended(1).says("nothing to accept");
    world.backup(&[]).ended(0);
    world.assert_restores(&first, &tree);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn originals_that_changed_trip_the_wire() {
    let world = World::new();
    world.pictures(100);
    let tree = world.tree();
    let first = world.backup(&[]).ended(0).snapshot();
    for number in 0..6 {
        let path = world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16));
        write(&path, format!("ransom {number}").as_bytes(), 1_700_000_000, 0, 0o644);
    }
    world.backup(&[]).ended(4).says("6 of 100");
    assert_eq!(world.snapshots(), std::slice::from_ref(&first));
    world.assert_restores("latest", &tree);
    // Again, and it is still withheld: the wire compares with the last snapshot.
    let ran = world.backup(&[]).ended(4);
    world.backup(&["--accept", ran.summary()["run"].as_str().unwrap()]).ended(0);
    world.assert_restores(&first, &tree);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn sidecars_and_thumbnails_may_change_and_all_may_move() {
    let world = World::new();
    world.pictures(50);
    for number in 0..50 {
        world.file(&format!("upload/u0/{number}.jpg.xmp"), 100, 0);
        world.file(&format!("thumbs/u0/{number}.webp"), 100, 0);
    }
    world.backup(&[]).ended(0);
    for number in 0..50 {
        world.file(&format!("upload/u0/{number}.jpg.xmp"), 110, 1);
        world.file(&format!("thumbs/u0/{number}.webp"), 110, 1);
    }
    assert_eq!(world.backup(&[]).ended(0).number("/files/changed"), 100);
    remove(&world.library.join("thumbs/u0"));
    world.backup(&[]).ended(0);
    fs::rename(world.library.join("upload/u1"), world.library.join("library/u1")).unwrap();
    fs::rename(world.library.join("upload/u0"), world.library.join("library/u0")).unwrap();
    fs::rename(world.library.join("upload/u2"), world.library.join("library/u2")).unwrap();
    assert_eq!(world.backup(&[]).ended(0).number("/files/sent"), 0);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn files_in_the_future_and_before_1970_are_kept() {
    let world = World::new();
    for (name, seconds) in [("future", 4_000_000_000), ("epoch", 0), ("before", -86_400 * 365)] {
        write(&world.library.join(format!("upload/u/{name}.jpg")), name.as_bytes(), seconds, 999_999_999, 0o644);
    }
    settle();
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
    let again = world.backup(&[]).ended(0);
    assert_eq!(again.number("/files/sent"), 0);
    assert_eq!(fs::metadata(world.library.join("upload/u/before.jpg")).unwrap().mtime(), -86_400 * 365);
}
