//! What is known is not read, what is stored is not sent, what is written is never written again.

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

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use support::{Mount, Objects, Random, Running, Tree, World, change, may_mount, opened, set_mtime, settle, tool};

#[test]
fn a_second_backup_reads_and_writes_no_file_content() {
    let world = World::new();
    world.pictures(300);
    world.file("upload/u/large.jpg", 20 << 20, 1);
    settle();
    let Some((count, first)) = opened(&world) else { return };
    first.ended(0);
    assert!(count >= 301, "strace saw {count} files opened by the first backup: the test itself is blind");
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    let logs = objects.count("log");

    let (count, second) = opened(&world).unwrap();
    let second = second.ended(0);
    assert_eq!(count, 0, "the second backup opened {count} files of the library");
    assert_eq!((second.number("/files/unchanged"), second.number("/files/sent")), (306, 0));
    let new = objects.look(&world.repository, true);
    assert_eq!(objects.count("log") - logs, new, "more than log entries was written");
    let sent: usize = second.events("bytes_sent").len();
    assert_eq!(sent, 0);
    println!("second backup of 306 files: 0 opened, {new} new objects, all of them log entries");
}

#[test]
fn a_moved_tree_sends_no_content() {
    let world = World::new();
    world.pictures(300);
    world.file("upload/u/large.jpg", 9 << 20, 1);
    world.backup(&[]).ended(0);
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    let contents = objects.contents().len();
    // Immich's storage template: all of upload/ goes to library/.
    fs::create_dir_all(world.library.join("library/admin")).unwrap();
    for folder in ["u", "u0", "u1", "u2"] {
        fs::rename(world.library.join("upload").join(folder), world.library.join("library/admin").join(folder)).unwrap();
    }
    let tree = world.tree();
    let moved = world.backup(&[]).ended(0);
    assert_eq!(moved.number("/files/sent"), 0, "{}", moved.told());
    assert_eq!((moved.number("/files/known"), moved.number("/files/archived")), (301, 301));
    objects.look(&world.repository, true);
    assert_eq!(objects.contents().len(), contents, "content was written again");
    world.assert_restores("latest", &tree);
}

#[test]
fn copies_and_hard_links_are_sent_once() {
    let world = World::new();
    let one = world.file("upload/u/one.jpg", 5_000, 1);
    for number in 0..50 {
        fs::hard_link(&one, world.library.join(format!("upload/u/link{number}.jpg"))).unwrap();
        tool("cp", &["-p".as_ref(), one.as_os_str(), world.library.join(format!("library/copy{number}.jpg")).as_os_str()]);
    }
    let backup = world.backup(&["--workers", "8"]).ended(0);
    // The picture and six markers.
    assert_eq!((backup.number("/files/sent"), backup.number("/files/known")), (6, 100), "{}", backup.told());
    world.assert_restores("latest", &world.tree());
}

#[test]
fn large_hard_links_are_sent_once() {
    let world = World::new();
    let one = world.file("upload/u/one.mov", 9 << 20, 1);
    for number in 0..3 {
        fs::hard_link(&one, world.library.join(format!("upload/u/link{number}.mov"))).unwrap();
    }
    let backup = world.backup(&["--workers", "4"]).ended(0);
    let objects = fs::read_dir(world.repository.join("library/upload/u")).unwrap().count();
    assert_eq!((backup.number("/bytes/sent") / (9 << 20), objects), (1, 1), "{}", backup.told());
}

#[test]
fn what_only_its_times_or_permissions_changed_is_read_and_not_sent() {
    let world = World::new();
    world.pictures(20);
    settle();
    world.backup(&[]).ended(0);
    set_mtime(&world.library.join("upload/u0/00/00000.jpg"), 1_600_000_000, 42);
    fs::set_permissions(world.library.join("upload/u1/01/00001.jpg"), fs::Permissions::from_mode(0o600)).unwrap();
    settle();
    let ran = world.backup(&[]).ended(0);
    assert_eq!((ran.number("/files/touched"), ran.number("/files/sent"), ran.number("/files/unchanged")), (2, 0, 23));
    world.assert_restores("latest", &world.tree());
    let again = world.backup(&[]).ended(0);
    assert_eq!(again.number("/files/unchanged"), 25);
}

#[test]
fn a_change_in_the_tick_of_the_backup_is_not_missed() {
    let world = World::new();
    let file = world.file("upload/u/a.jpg", 1_000, 1);
    world.backup(&[]).ended(0);
    // The same size and the same mtime, right after: only that young times are not trusted brings it out.
    for seed in 2..6 {
        let modified = fs::metadata(&file).unwrap().modified().unwrap();
        let bytes = Random::new(seed).bytes(1_000);
        fs::write(&file, bytes).unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
        let ran = world.backup(&[]);
        // One of one original changed: the tripwire answers, which shows as well that it was seen.
        assert_eq!(ran.number("/files/changed"), 1, "{}", ran.told());
        ran.ended(4);
    }
}

#[test]
fn after_ten_runs_with_changes_no_object_was_written_twice_and_every_snapshot_restores() {
    let world = World::new();
    for number in 0..200 {
        world.file(&format!("thumbs/u{}/{number}.webp", number % 4), 50 + number * 7, 0);
    }
    let mut random = Random::new(11);
    let mut objects = Objects::default();
    let mut snapshots: Vec<(String, Tree)> = Vec::new();
    for round in 0..11 {
        let tree = world.tree();
        let snapshot = world.backup(&[]).ended(0).snapshot();
        objects.look(&world.repository, true);
        snapshots.push((snapshot, tree));
        change(&world, &mut random, round);
    }
    objects.look(&world.repository, true);
    let mut contents = objects.contents();
    let all = contents.len();
    contents.sort_by_key(|content| content.0);
    contents.dedup();
    assert_eq!(contents.len(), all, "the same content was stored under two keys");
    for (snapshot, tree) in &snapshots {
        world.assert_restores(snapshot, tree);
    }
    // And from the log alone, on a machine that knows nothing.
    support::remove(&world.state);
    for (snapshot, tree) in &snapshots {
        world.assert_restores(snapshot, tree);
    }
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    println!("11 snapshots, {all} objects, none written twice");
}

#[test]
fn a_lost_state_folder_costs_time_and_sends_nothing() {
    let world = World::new();
    world.pictures(100);
    settle();
    world.backup(&[]).ended(0);
    support::remove(&world.state);
    let again = world.backup(&[]).ended(0);
    assert_eq!((again.number("/files/unchanged"), again.number("/files/sent")), (105, 0));
    // A damaged manifest is made anew as well.
    fs::write(world.own_state().join("manifest.db"), "no database at all, but long enough to look like one".repeat(100)).unwrap();
    let again = world.backup(&[]).ended(0).says("made anew");
    assert_eq!((again.number("/files/unchanged"), again.number("/files/sent")), (105, 0));
}

#[test]
fn what_is_excluded_or_derived_is_left_out_and_what_is_taken_out_of_scope_is_archived() {
    let world = World::new();
    world.pictures(10);
    world.file("thumbs/u/a.webp", 100, 1);
    world.file("encoded-video/u/b.mp4", 100, 1);
    world.file("encoded-video/u/c-MP.mp4", 100, 1);
    let ran = world.backup(&["--originals-only", "--exclude", "**/00003.jpg"]).ended(0);
    // Ten pictures but one, the motion video, five markers (that of backups/ is left out with it).
    assert_eq!(ran.number("/files/seen"), 15, "{}", ran.told());
    assert_eq!(world.backup(&[]).ended(0).number("/files/new"), 3);
    let ran = world.backup(&["--originals-only"]).ended(0);
    assert_eq!(ran.number("/files/archived"), 2);
}

#[test]
fn a_byte_that_rots_at_the_source_is_named_and_does_not_replace_the_good_one() {
    if !may_mount("bit rot") {
        return;
    }
    let world = World::bare();
    let image = world.at("disk.img");
    fs::File::create(&image).unwrap().set_len(24 << 20).unwrap();
    tool("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_os_str()]);
    let mount = Mount::image(&image, &world.library);
    fs::remove_dir(world.library.join("lost+found")).unwrap();
    world.markers();
    world.pictures(20);
    let tree = world.tree();
    let large = "upload/u0/00/00000.jpg";
    world.file(large, 9_000, 3);
    let good = world.tree();
    settle();
    world.backup(&[]).ended(0);
    drop(mount);
    // The byte is changed on the disk below: neither size nor any time tells of it.
    let blocks = tool("debugfs", &["-R".as_ref(), format!("blocks /{large}").as_ref(), image.as_os_str()]);
    let block: u64 = blocks.out.split_whitespace().next().unwrap().parse().unwrap();
    let size = tool("dumpe2fs", &["-h".as_ref(), image.as_os_str()]);
    let size: u64 = size.out.lines().find_map(|line| line.strip_prefix("Block size:")).unwrap().trim().parse().unwrap();
    flip(&image, block * size + 5);
    let mount = Mount::image(&image, &world.library);
    let rotten = world.tree();
    assert!(rotten.0[large.as_bytes()] != good.0[large.as_bytes()] && tree.len() == rotten.len(), "the byte was not flipped");

    assert_eq!(world.backup(&[]).ended(0).number("/files/unchanged"), 25, "without --rehash nothing is read");
    let ran = world.backup(&["--rehash", "100%"]).ended(3).says(large);
    assert_eq!(ran.number("/bit_rot_count"), 1);
    assert_eq!(ran.summary()["bit_rot"][0], large);
    assert_eq!(ran.number("/files/sent"), 0);
    world.assert_restores("latest", &good);
    // For people, too.
    let mut command = world.command(&["backup", "--rehash", "1/1"]);
    command.arg("--library").arg(&world.library);
    Running::start(command).wait().ended(3).says("DAMAGED?").says(large);
    // And it is brought back as told.
    world.restore(&world.library, &["--path", large, "--overwrite"]).ended(0);
    settle();
    assert_eq!(world.backup(&["--rehash", "100%"]).ended(0).number("/bit_rot_count"), 0);
    drop(mount);
}

fn flip(image: &Path, at: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn damage_in_the_repository_is_found_named_and_mended_from_the_library() {
    let world = World::new();
    world.pictures(30);
    settle();
    world.backup(&[]).ended(0);
    let tree = world.tree();
    let object = world.repository.join("library/upload/u0/00/00000.jpg");
    fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
    flip(&object, 7);
    // Its size is right, so the listing cannot see it.
    world.run(&["verify", "--json"]).ended(0);
    let found = world.run(&["verify", "--read-data", "--json"]).ended(12).says("library/upload/u0/00/00000.jpg");
    assert_eq!(found.number("/lost"), 1);
    world.run(&["status", "--json"]).ended(12);
    let to = world.at("while-damaged");
    let ran = world.restore(&to, &[]).ended(12).says("upload/u0/00/00000.jpg");
    assert_eq!((ran.number("/failed"), ran.number("/written/files")), (1, tree.len() as u64 - 1));
    // The next backup stores it again, under another key: the same run command, nothing to be known.
    let mended = world.backup(&[]).ended(0);
    assert_eq!(mended.number("/files/sent"), 1, "{}", mended.told());
    world.assert_restores("latest", &tree);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    // An object that is gone: the same.
    fs::remove_file(world.repository.join("library/upload/u1/01/00001.jpg")).unwrap();
    world.run(&["verify", "--json"]).ended(12).says("library/upload/u1/01/00001.jpg").says("missing");
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &tree);
    world.run(&["status", "--json"]).ended(0);
}
