//! What went out comes back: byte for byte, by the program and by hand, and never outside of the target.

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

use immich_backup_core::model::Sha256;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use support::{Random, Running, Tree, World, by_hand, copy, forge_entry, raw, remove, set_mtime, take_fixture, tool, write};

fn generation_comes_back(name: &str) {
    let world = World::bare();
    if !take_fixture(&world, &format!("{name}/media")) {
        return;
    }
    let tree = world.tree();
    assert!(tree.len() > 100, "the fixture has {} files", tree.len());
    let backup = world.backup(&[]).ended(0);
    assert_eq!(backup.number("/files/seen"), tree.len() as u64);
    world.assert_restores("latest", &tree);
    by_hand_from_manifest(&world, &tree);
    by_hand_from_log(&world, &tree);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    println!("{name}: {} files came back, byte for byte, three ways", tree.len());
}

#[test]
fn what_immich_3_1_0_wrote_comes_back_byte_for_byte() {
    generation_comes_back("immich-3.1.0");
}

#[test]
fn what_immich_1_135_3_wrote_comes_back_byte_for_byte() {
    generation_comes_back("immich-1.135.3");
}

fn by_hand_from_manifest(world: &World, tree: &Tree) {
    let to = world.at("by-hand");
    tool("bash", &[by_hand("restore-from-manifest.sh").as_os_str(), world.repository.as_os_str(), to.as_os_str()]);
    Tree::of(&to).assert_is_but_for_modes(tree, "restored by hand from the manifest");
    remove(&to);
}

fn by_hand_from_log(world: &World, tree: &Tree) {
    let to = world.at("by-hand");
    tool("python3", &[by_hand("restore-from-log.py").as_os_str(), world.repository.as_os_str(), to.as_os_str()]);
    Tree::of(&to).assert_is(tree, "restored by hand from the log");
    remove(&to);
}

#[test]
fn a_first_snapshot_without_odd_names_is_a_plain_copy() {
    let world = World::new();
    world.pictures(200);
    world.backup(&[]).ended(0);
    let to = world.at("copied");
    fs::create_dir(&to).unwrap();
    tool("cp", &["-a".as_ref(), world.repository.join("library/.").as_os_str(), to.as_os_str()]);
    Tree::of(&to).assert_is_but_for_modes(&world.tree(), "copied from library/");
}

/// Odd things that names are made of.
const PIECES: [&[u8]; 40] = [
    b"\n",
    b"%0A",
    b"%",
    b"%%",
    b"'",
    b"\"",
    b"#",
    b"~",
    b"\\",
    b" ",
    b".",
    b"..",
    b"...",
    b"-",
    b"--",
    b"*",
    b"?",
    b"[",
    b"$(x)",
    b"`",
    b";",
    b"&",
    b"|",
    b"<",
    b">",
    b"\x01",
    b"\x7F",
    b"\x1B[31m",
    b"\t",
    b"\r",
    b"\xFF",
    b"\xC3",
    b"\xED\xA0\x80",
    "📷".as_bytes(),
    "👨‍👩‍👧‍👦".as_bytes(),
    "é".as_bytes(),
    "e\u{301}".as_bytes(),
    "\u{85}".as_bytes(),
    "\u{FFFF}".as_bytes(),
    "\u{202E}".as_bytes(),
];

/// Names that mean something to somebody.
const NAMES: [&[u8]; 42] = [
    b"%hashed",
    b".immich-backup.x",
    b".immich",
    b".immich-backup.part",
    b"format.json",
    b"log",
    b"tmp",
    b"library",
    b"versions",
    b"external",
    b"manifests",
    b"-rf",
    b"--help",
    b"~",
    b"~root",
    b"#x#",
    b"a'b",
    b"100%.jpg",
    b"%0A",
    b"\n",
    b"%0A\n",
    b"\n%0A",
    b"%250A",
    b"%2E%2E",
    b"..%2F",
    b"...",
    b".hidden",
    b"x.",
    b"x..",
    b" x",
    b"x ",
    b" ",
    b"con",
    b"NUL",
    b"a:b",
    b"\xFF\xFE",
    b"\xC3\x28",
    b"null",
    b"0",
    b"x\ty",
    b"back\\slash",
    b"0000000001.ndjson.zst",
];

fn hostile_name(random: &mut Random) -> Vec<u8> {
    let mut name = match random.below(20) {
        0 => random.pick(&NAMES).to_vec(),
        1 => vec![b'%'; 255],
        2 => vec![*random.pick(b"x%\xFF\n. ~"); 200 + random.below(56)],
        3 => {
            let mut name = "é".repeat(127).into_bytes();
            name.push(b'.');
            name
        }
        4 => random.bytes(255),
        5 => {
            let length = 1 + random.below(6);
            random.bytes(length)
        }
        _ => (0..=random.below(6))
            .flat_map(|_| if random.below(3) == 0 { random.pick(&PIECES).to_vec() } else { random.pick(&[&b"a"[..], b"IMG_1", b".jpg", b"z9"]).to_vec() })
            .collect(),
    };
    name.retain(|byte| !matches!(byte, 0 | b'/'));
    name.truncate(255);
    let temporary = name.starts_with(b".nfs") || name.starts_with(b".fuse_hidden") || (name.starts_with(b".immich-backup.") && name.ends_with(b".part"));
    if name.is_empty() || name == b"." || name == b".." || temporary { b"plain".to_vec() } else { name }
}

/// Makes files until there are `count`, in folders of hostile names, some very deep.
fn hostile_tree(root: &Path, count: usize, random: &mut Random) {
    let mut folders: Vec<(PathBuf, usize)> = vec![(root.join("upload"), 0), (root.join("library"), 0), (root.to_owned(), 0)];
    let mut taken: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut made = 0;
    while made < count {
        let (folder, depth) = random.pick(&folders).clone();
        let path = folder.join(raw(&hostile_name(random)));
        // Room for the folder of the restored tree, and for names that are longer there.
        if path.as_os_str().len() > 3_000 || depth > 30 || !taken.insert(path.as_os_str().as_bytes().to_vec()) || path.exists() {
            continue;
        }
        if random.below(8) == 0 {
            fs::create_dir(&path).unwrap();
            folders.push((path, depth + 1));
            continue;
        }
        let length = random.below(60);
        let bytes = random.bytes(length);
        write(&path, &bytes, random.below(2_000_000_000) as i64 - 1_000_000, random.below(1_000_000_000) as i64, *random.pick(&[0o644, 0o600, 0o777, 0o400]));
        made += 1;
    }
    // One path as deep as the system takes.
    let mut deep = root.join("upload");
    while deep.as_os_str().len() < 3_300 {
        deep.push(raw(&[b'd'; 100]));
    }
    write(&deep.join("bottom.jpg"), b"deep down", 1_600_000_000, 5, 0o640);
}

#[test]
fn ten_thousand_hostile_names_come_back_byte_for_byte() {
    let world = World::new();
    let mut clock = Instant::now();
    let mut lap = |what: &str| {
        eprintln!("{what}: {:.1?}", clock.elapsed());
        clock = Instant::now();
    };
    hostile_tree(&world.library, 9_995, &mut Random::new(20_261_121));
    lap("making the tree");
    for name in [".nfs0123456789", ".fuse_hidden00", ".immich-backup.0123456789abcdef.part"] {
        write(&world.library.join("upload").join(name), b"temporary", 1_600_000_000, 0, 0o644);
    }
    let mut tree = world.tree();
    tree.0.retain(|path, _| {
        ![&b"upload/.nfs0123456789"[..], b"upload/.fuse_hidden00", b"upload/.immich-backup.0123456789abcdef.part"].contains(&path.as_slice())
    });
    assert!(tree.len() >= 10_000, "only {} names", tree.len());
    let backup = world.backup(&[]).ended(0);
    assert_eq!(backup.number("/files/seen"), tree.len() as u64);
    lap("backup");
    world.assert_restores("latest", &tree);
    lap("restore");
    by_hand_from_manifest(&world, &tree);
    lap("by hand from the manifest");
    by_hand_from_log(&world, &tree);
    lap("by hand from the log");
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    lap("verify");
    println!("{} hostile names came back, byte for byte, three ways", tree.len());
}

#[test]
fn hostile_names_moved_and_changed_and_made_folders_come_back_too() {
    let world = World::new();
    let mut random = Random::new(99);
    hostile_tree(&world.library, 600, &mut random);
    let first = world.tree();
    let one = world.backup(&[]).ended(0).snapshot();
    // Change, move, and exchange files for folders of the same name.
    let paths: Vec<_> = first.0.keys().filter(|path| !path.ends_with(b".immich") && path.len() < 1_000).cloned().collect();
    for path in paths.iter().step_by(3) {
        let whole = world.library.join(raw(path));
        match random.below(3) {
            0 => write(&whole, b"changed", 1_500_000_000, 7, 0o644),
            1 => fs::rename(&whole, world.library.join(format!("upload/moved-{}", random.next()))).unwrap(),
            _ => {
                fs::remove_file(&whole).unwrap();
                write(&whole.join(raw(&[b'%'; 200])), path, 1_500_000_000, 8, 0o600);
            }
        }
    }
    let second = world.tree();
    let ran = world.backup(&[]);
    // So much change trips the wire: it was meant.
    let two = if ran.code == 4 { world.backup(&["--accept", ran.summary()["run"].as_str().unwrap()]).ended(0) } else { ran.ended(0) }.snapshot();
    world.assert_restores(&one, &first);
    world.assert_restores(&two, &second);
    by_hand_from_log(&world, &second);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
}

fn parts(folder: &Path) -> Vec<PathBuf> {
    let found = tool("find", &[folder.as_os_str(), "-name".as_ref(), "*.part".as_ref()]);
    found.out.lines().map(PathBuf::from).collect()
}

fn files_below(folder: &Path) -> usize {
    if !folder.exists() {
        return 0;
    }
    // Folders and files come and go meanwhile.
    let found = std::process::Command::new("find").arg(folder).args(["-type", "f", "-not", "-name", "*.part"]).output().unwrap();
    found.stdout.iter().filter(|byte| **byte == b'\n').count()
}

#[test]
fn a_restore_that_was_killed_goes_on_where_it_was() {
    let world = World::new();
    for number in 0..400 {
        world.file(&format!("upload/u/{number:04}.jpg"), 60_000, 1);
    }
    let tree = world.tree();
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    let mut killed = 0;
    for enough in [20, 150] {
        let mut running = Running::start(world.restore_command(&to, &["--workers", "2"]));
        if running.until(|_| files_below(&to) >= enough) && !running.is_over() {
            running.signal("KILL");
            killed += 1;
        }
        drop(running);
    }
    assert!(killed > 0, "the restore was too fast to be killed");
    let there = files_below(&to) as u64;
    let again = world.restore(&to, &[]).ended(0);
    assert!(again.number("/plan/right/files") >= there.saturating_sub(2), "{there} files were there already\n{}", again.told());
    assert_eq!(again.number("/plan/right/files") + again.number("/written/files"), tree.len() as u64);
    assert_eq!(parts(&to), Vec::<PathBuf>::new());
    Tree::of(&to).without("backups").assert_is(&tree, "after a killed restore");
    let third = world.restore(&to, &[]).ended(0);
    assert_eq!(third.number("/written/files"), 0);
}

#[test]
fn a_file_that_differs_is_never_replaced_unless_asked() {
    let world = World::new();
    world.pictures(30);
    let tree = world.tree();
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    let file = fs::read_dir(to.join("upload/u1")).unwrap().next().unwrap().unwrap().path();
    let file = fs::read_dir(file).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "mine").unwrap();
    fs::remove_file(to.join("upload/u0/00/00000.jpg")).unwrap();
    let before = Tree::of(&to);
    world.restore(&to, &[]).ended(1).says("differ").says("--overwrite");
    Tree::of(&to).assert_is(&before, "a refused restore");
    let ran = world.restore(&to, &["--overwrite"]).ended(0);
    assert_eq!(ran.number("/plan/replace"), 1);
    Tree::of(&to).without("backups").assert_is(&tree, "overwritten");
}

#[test]
fn a_file_whose_time_or_mode_alone_differs_is_set_right_without_being_written() {
    let world = World::new();
    world.pictures(10);
    let tree = world.tree();
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    let touched = to.join("upload/u0/00/00000.jpg");
    set_mtime(&touched, 1_700_000_000, 3);
    fs::set_permissions(to.join("upload/u1/01/00001.jpg"), std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
    let ran = world.restore(&to, &[]).ended(0);
    assert_eq!(ran.number("/written/files"), 0);
    Tree::of(&to).without("backups").assert_is(&tree, "set right");
}

#[test]
fn a_part_of_a_snapshot_and_any_snapshot_can_be_restored() {
    let world = World::new();
    world.pictures(30);
    let first = world.tree();
    let one = world.backup(&["--label", "one"]).ended(0).snapshot();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let between = jiff_now();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    world.file("upload/new/später 'x'.jpg", 500, 2);
    let second = world.tree();
    let two = world.backup(&[]).ended(0).snapshot();
    world.assert_restores(&one[..8], &first);
    world.assert_restores(&between, &first);
    world.assert_restores(&two, &second);
    world.assert_restores("latest", &second);

    let to = world.at("part");
    world.restore(&to, &["--path", "upload/new", "--path", "upload/u1/**/*.jpg"]).ended(0);
    let part = Tree::of(&to);
    assert!(part.0.contains_key("upload/new/später 'x'.jpg".as_bytes()), "{:?}", part.0.keys().collect::<Vec<_>>());
    assert!(part.0.keys().all(|path| path.starts_with(b"upload/new/") || path.starts_with(b"upload/u1/")), "more was restored");
    assert_eq!(part.len(), 11);
    let nothing = world.at("nothing");
    world.restore(&nothing, &["--path", "no/such"]).ended(1).says("no file of the snapshot matches");
    world.restore(&nothing, &["--snapshot", "ffffffff"]).ended(1).says("no snapshot fits");
    world.restore(&nothing, &["--snapshot", "2001-01-01T00:00:00Z"]).ended(1).says("no snapshot fits");
}

fn jiff_now() -> String {
    tool("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).out.trim().to_owned()
}

#[test]
fn a_dry_run_of_a_restore_writes_nothing() {
    let world = World::new();
    world.pictures(5);
    world.backup(&[]).ended(0);
    let to = world.at("dry");
    let ran = world.restore(&to, &["--dry-run"]).ended(0);
    assert_eq!(ran.number("/plan/write/files"), world.tree().len() as u64);
    assert_eq!(files_below(&to), 0);
    assert!(!to.exists(), "a dry run made the target's folder");
}

#[test]
fn a_restore_makes_the_six_markers() {
    let world = World::bare();
    world.pictures(3);
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    let ran = world.restore(&to, &[]).ended(0);
    assert_eq!(ran.number("/markers_made"), 6);
    for folder in support::FOLDERS {
        let marker = fs::read_to_string(to.join(folder).join(".immich")).unwrap();
        assert!(marker.parse::<u64>().is_ok(), "{marker}");
    }
    assert_eq!(world.restore(&to, &[]).ended(0).number("/markers_made"), 0);
}

#[test]
fn nothing_is_written_through_a_link_that_leads_outside() {
    let world = World::new();
    world.pictures(20);
    world.file("profile/u/me.jpg", 300, 1);
    world.file("library/anna/2024/a.jpg", 300, 1);
    world.backup(&[]).ended(0);
    let (to, outside) = (world.at("restored"), world.at("outside"));
    write(&outside.join("keep"), b"outside", 1_500_000_000, 1, 0o644);
    write(&outside.join("u0/00/00000.jpg"), b"outside too", 1_500_000_000, 1, 0o644);
    fs::create_dir_all(to.join("profile/u")).unwrap();
    fs::create_dir_all(to.join("library/anna")).unwrap();
    // A folder, a file, a folder in the middle, and the temporary name of a file.
    std::os::unix::fs::symlink(&outside, to.join("upload")).unwrap();
    std::os::unix::fs::symlink(outside.join("keep"), to.join("profile/u/me.jpg")).unwrap();
    std::os::unix::fs::symlink("../../../outside", to.join("library/anna/2024")).unwrap();
    std::os::unix::fs::symlink(outside.join("keep"), to.join(format!("profile/u/.immich-backup.{}.part", &Sha256::of(b"me.jpg").to_string()[..16]))).unwrap();
    std::os::unix::fs::symlink(outside.join("marker"), to.join("thumbs")).unwrap();
    let before = Tree::of(&outside);
    let refused = world.restore(&to, &[]);
    assert!(matches!(refused.code, 1 | 3), "{}", refused.told());
    Tree::of(&outside).assert_is(&before, "outside, after a refused restore");
    let forced = world.restore(&to, &["--overwrite"]);
    assert!(matches!(forced.code, 0 | 1 | 3), "{}", forced.told());
    Tree::of(&outside).assert_is(&before, "outside, after a forced restore");
    assert!(fs::symlink_metadata(to.join("profile/u/me.jpg")).unwrap().is_file(), "the link itself is replaced where --overwrite is said\n{}", forced.told());
}

#[test]
fn a_path_in_the_log_that_leads_outside_is_refused() {
    for evil in ["../../evil", "/abs-evil", "a/../../evil", "..", "%2E%2E/evil", "a//evil", "upload/%2e%2e/%2e%2e/evil"] {
        let world = World::new();
        world.pictures(3);
        world.backup(&[]).ended(0);
        let content = Sha256::of(&fs::read(world.library.join("upload/u0/00/00000.jpg")).unwrap());
        let fact = format!(
            r#"{{"fact":"stored","path":"{evil}","sha256":"{content}","sha1":"{}","size":100,"mtime_ns":1,"mode":420,"key":"library/upload/u0/00/00000.jpg"}}"#,
            "0".repeat(40)
        );
        let bad = forge_entry(&world, &[&fact]);
        // Whoever knows the repository, and who sees it for the first time.
        for state in [world.state.clone(), world.at("fresh")] {
            let to = world.at("target/in");
            let mut command = support::program();
            command.args(["restore", "--json", "--to"]).arg(&to).arg("-r").arg(&world.repository).arg("--state-dir").arg(&state);
            Running::start(command).wait().ended(11).says(&format!("--until {}", bad - 1));
            assert!(!world.at("target/evil").exists() && !world.at("evil").exists() && !Path::new("/abs-evil").exists(), "{evil} was written");
            assert_eq!(files_below(&to), 0);
        }
        let to = world.at("until");
        world.restore(&to, &["--until", &(bad - 1).to_string()]).ended(0);
        Tree::of(&to).without("backups").assert_is(&world.tree(), "the part before");
    }
}

#[test]
fn an_object_key_in_the_log_that_leads_outside_is_refused() {
    for key in ["../../secret", "/etc/passwd", "library/../../secret"] {
        let world = World::new();
        world.pictures(3);
        world.backup(&[]).ended(0);
        fs::write(world.at("secret"), "secret").unwrap();
        let secret = Sha256::of(b"secret");
        let fact = format!(
            r#"{{"fact":"stored","path":"upload/x.jpg","sha256":"{secret}","sha1":"{}","size":6,"mtime_ns":1,"mode":420,"key":"{key}"}}"#,
            "0".repeat(40)
        );
        let totals =
            r#""totals":{"original":{"files":1,"bytes":1},"derived":{"files":0,"bytes":0},"marker":{"files":0,"bytes":0}},"sent":{"files":0,"bytes":0}"#;
        let snapshot =
            format!(r#"{{"fact":"snapshot","started_at":"2026-01-15T03:00:00Z","taken_at":"2026-01-15T03:00:00Z",{totals},"archived":0,"unread_count":0}}"#);
        let started = r#"{"fact":"run_started","at":"2026-01-15T03:00:00Z","host":"x","roots":[]}"#;
        forge_entry(&world, &[started, &fact, &snapshot]);
        let to = world.at("restored");
        let ran = world.restore(&to, &[]);
        assert!(matches!(ran.code, 11 | 12), "{}", ran.told());
        assert!(!to.join("upload/x.jpg").exists(), "the secret was taken in");
    }
}

#[test]
fn a_manifest_copy_that_leads_outside_is_refused() {
    let world = World::new();
    world.pictures(3);
    world.backup(&[]).ended(0);
    let copies: Vec<_> = fs::read_dir(world.repository.join("manifests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let database = world.at("evil.db");
    tool("zstd", &["-q".as_ref(), "-d".as_ref(), copies[0].as_os_str(), "-o".as_ref(), database.as_os_str()]);
    // What a careful forger would do: a copy as of the newest entry, named by an entry behind it.
    let head = world.entries();
    let last = Sha256::of(&fs::read(world.entry(head)).unwrap());
    tool("sqlite3", &[database.as_os_str(), format!("UPDATE folder SET path = '../../evil' WHERE path LIKE 'upload/u0%'; UPDATE manifest_metadata SET last_sequence = {head}, last_sha256 = x'{last}'").as_ref()]);
    let key = format!("manifests/{head:010}.db.zst");
    let packed = world.repository.join(&key);
    tool("zstd", &["-q".as_ref(), "-f".as_ref(), database.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
    let sha256 = Sha256::of(&fs::read(&packed).unwrap());
    forge_entry(&world, &[&format!(r#"{{"fact":"manifest","key":"{key}","sha256":"{sha256}","sequence":{head},"rows":9}}"#)]);
    remove(&world.state);
    let to = world.at("target/in");
    let ran = world.restore(&to, &[]);
    assert_ne!(ran.code, 0, "{}", ran.told());
    assert!(!world.at("evil").exists() && !world.at("target/evil").exists());
    println!("{}", ran.told());
}

#[test]
fn external_libraries_come_back_where_they_belong() {
    let world = World::new();
    world.pictures(5);
    let nas = world.at("nas");
    for number in 0..20 {
        write(&nas.join(format!("2024/{number} ü%.jpg")), format!("picture {number}").as_bytes(), 1_500_000_000 + number, 77, 0o640);
    }
    let (tree, external) = (world.tree(), Tree::of(&nas));
    let argument = format!("nas={}", nas.display());
    let backup = world.backup(&["--external", &argument]).ended(0);
    assert_eq!(backup.number("/files/seen"), (tree.len() + external.len()) as u64);

    let to = world.at("beside");
    world.restore(&to, &[]).ended(0);
    let all = Tree::of(&to).without("backups");
    all.below("external/nas").assert_is(&external, "external, below the target");
    all.without("external").assert_is(&tree, "the library beside an external");

    let (to, elsewhere) = (world.at("to"), world.at("elsewhere"));
    world.restore(&to, &["--external", &format!("nas={}", elsewhere.display())]).ended(0);
    Tree::of(&elsewhere).assert_is(&external, "external, elsewhere");
    Tree::of(&to).without("backups").assert_is(&tree, "the library alone");

    // Forgotten, it is not taken for gone.
    world.backup(&[]).ended(1).says("external library `nas`").says("--drop-external nas").says("--external nas=");
    fs::remove_file(nas.join("2024/3 ü%.jpg")).unwrap();
    let ran = world.backup(&["--external", &argument]).ended(0);
    assert_eq!(ran.number("/files/archived"), 1);
    let ran = world.backup(&["--drop-external", "nas"]).ended(0);
    assert_eq!(ran.number("/files/archived"), 19);
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &tree);
    // An empty mount point is refused.
    let empty = world.at("empty");
    fs::create_dir(&empty).unwrap();
    world.backup(&["--external", &format!("nas={}", empty.display())]).ended(1).says("is empty");
}

#[test]
fn a_repository_that_was_copied_elsewhere_restores_alike() {
    let world = World::new();
    world.pictures(30);
    world.backup(&[]).ended(0);
    let copied = world.at("second-copy");
    copy(&world.repository, &copied);
    remove(&world.repository);
    remove(&world.state);
    let to = world.at("restored");
    let mut command = support::program();
    command.args(["restore", "--json", "--to"]).arg(&to).arg("-r").arg(format!("file://{}", copied.display())).arg("--state-dir").arg(world.at("other-state"));
    Running::start(command).wait().ended(0);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "from a copy of the repository");
}
