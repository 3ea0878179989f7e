//! Whoever is hostile beside a backup: one who swaps folders for links while it reads or restores, and one who writes to the repository what fills
//! memory or disk. SECURITY.md says what each kind of attacker can and cannot do, and which tests show it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a test may")]

mod support;

use immich_backup_core::model::Sha256;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::{Ran, Running, Tree, World, forge_entry, remove, tool, write, write_entry};

/// Stands in every file that nobody is to get at.
const SECRET: &[u8] = b"Tr0ub4dor & 3: for nobody's eyes";

/// No command may need more memory of its own, whatever it reads.
const ANONYMOUS_KIB_MAX: u64 = 256 << 10;

/// Swaps `here` and `there` again and again while `work` runs. Returns how often, and what came of the work.
fn swapping<T>(here: &Path, there: &Path, work: impl FnOnce() -> T) -> (u64, T) {
    let (stop, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                swaps.fetch_add(u64::from(renameat_with(CWD, here, CWD, there, RenameFlags::EXCHANGE).is_ok()), Ordering::Relaxed);
                // Each stands for a moment: else nobody would ever come as far as opening what is in it.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let done = work();
        stop.store(true, Ordering::Relaxed);
        (swaps.load(Ordering::Relaxed), done)
    })
}

/// Runs `command` and looks at its own memory meanwhile, in KiB.
fn watched(command: Command) -> (Ran, u64) {
    let mut running = Running::start(command);
    let status = format!("/proc/{}/status", running.pid());
    let mut most = 0;
    while !running.is_over() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or("0 kB");
        most = most.max(line.trim().trim_end_matches(" kB").parse().unwrap());
        std::thread::sleep(Duration::from_millis(2));
    }
    (running.wait(), most)
}

/// `bytes` zeros, or as many repetitions of `line`, as `zstd` packs them.
fn packed(world: &World, line: &[u8], bytes: u64) -> Vec<u8> {
    let path = world.at("packed.zst");
    let mut zstd = Command::new("zstd").args(["-q", "-f", "-o"]).arg(&path).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = zstd.stdin.take().unwrap();
    let block = line.repeat((1 << 20) / line.len());
    for _ in 0..bytes.div_ceil(block.len() as u64) {
        input.write_all(&block).unwrap();
    }
    drop(input);
    assert!(zstd.wait().unwrap().success());
    fs::read(&path).unwrap()
}

#[test]
fn a_folder_that_becomes_a_link_again_and_again_lets_no_restore_out() {
    let world = World::new();
    world.pictures(300);
    world.backup(&[]).ended(0);
    let (to, outside) = (world.at("restored"), world.at("outside"));
    for path in ["u0/00/00000.jpg", "u0/03/00003.jpg", "keep"] {
        write(&outside.join(path), SECRET, 1_500_000_000, 1, 0o644);
    }
    let before = Tree::of(&outside);
    let mut swaps = 0;
    for _ in 0..8 {
        remove(&to);
        fs::create_dir_all(to.join("upload/u0")).unwrap();
        let link = to.join("link");
        std::os::unix::fs::symlink(outside.join("u0"), &link).unwrap();
        let (swapped, ran) = swapping(&to.join("upload/u0"), &link, || world.restore(&to, &["--overwrite"]));
        assert!(matches!(ran.code, 0 | 1 | 3), "{}", ran.told());
        Tree::of(&outside).assert_is(&before, "outside of the target");
        swaps += swapped;
    }
    println!("swapped {swaps} times");
    assert!(swaps > 100, "nothing was attacked: {swaps} swaps");
    // In peace all comes back.
    remove(&to);
    world.restore(&to, &[]).ended(0);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "the restored tree");
}

#[test]
fn a_folder_that_becomes_a_link_again_and_again_lets_no_backup_out() {
    let world = World::new();
    world.pictures(300);
    let outside = world.at("outside");
    for (path, _) in world.tree().below("upload/u0").0 {
        write(&outside.join(support::raw(&path)), SECRET, 1_500_000_000, 1, 0o644);
    }
    let link = world.library.join("link");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let mut swaps = 0;
    for _ in 0..8 {
        remove(&world.repository);
        remove(&world.state);
        let (swapped, ran) = swapping(&world.library.join("upload/u0"), &link, || world.backup(&[]));
        assert!(matches!(ran.code, 0 | 1 | 3), "{}", ran.told());
        let stolen = Command::new("grep").args(["-rlaF", std::str::from_utf8(SECRET).unwrap()]).arg(&world.repository).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&stolen.stdout), "", "what lies outside is in the repository\n{}", ran.told());
        swaps += swapped;
    }
    println!("swapped {swaps} times");
    assert!(swaps > 100, "nothing was attacked: {swaps} swaps");
}

#[test]
fn a_log_entry_that_unpacks_to_more_than_it_may_is_refused_in_little_memory() {
    for (line, bytes) in [(&b"\0"[..], 3 << 30), (b"{\"fact\":\"x\"}\n", 60 << 20)] {
        let world = World::new();
        world.pictures(3);
        world.backup(&[]).ended(0);
        let bad = world.entries() + 1;
        // A header that follows, and a bomb behind it: two frames are one text.
        forge_entry(&world, &[]);
        let forged = fs::read(world.entry(bad)).unwrap();
        let (header, _trailer) = forged.split_at(forged.len() - 40);
        let mut entry = [header, &packed(&world, line, bytes)].concat();
        let checksum = Sha256::of(&entry);
        entry.extend_from_slice(&[0x5D, 0x2A, 0x4D, 0x18, 32, 0, 0, 0]);
        entry.extend_from_slice(&checksum.0);
        assert!(entry.len() < 1 << 20, "a bomb is small");
        fs::remove_file(world.entry(bad)).unwrap();
        fs::write(world.entry(bad), entry).unwrap();
        let (ran, memory) = watched(world.command(&["snapshots", "--json"]));
        ran.ended(11).says("which this program never writes").says(&format!("--until {}", bad - 1));
        println!("{memory} KiB");
        assert!(memory < ANONYMOUS_KIB_MAX, "{memory} KiB");
    }
}

#[test]
fn a_copy_of_the_manifest_that_unpacks_to_more_than_it_may_is_passed_over_and_fills_no_disk() {
    let world = World::new();
    world.pictures(30);
    world.backup(&[]).ended(0);
    // Whoever may write can say that this is a copy of the manifest.
    let sequence = world.entries();
    let bomb = packed(&world, b"\0", 3 << 30);
    let key = format!("manifests/{sequence:010}.db.zst");
    assert!(!world.repository.join(&key).exists());
    fs::write(world.repository.join(&key), &bomb).unwrap();
    forge_entry(&world, &[&format!(r#"{{"fact":"manifest","key":"{key}","sha256":"{}","sequence":{sequence},"rows":30}}"#, Sha256::of(&bomb))]);
    let fresh = world.at("fresh");
    let mut command = support::program();
    command.args(["ls", "--json", "-r"]).arg(&world.repository).arg("--state-dir").arg(&fresh);
    let (ran, memory) = watched(command);
    let ran = ran.ended(0).says("and not used");
    assert!(ran.out.contains("upload/u0/00/00000.jpg"), "{}", ran.told());
    assert!(memory < ANONYMOUS_KIB_MAX, "{memory} KiB");
    let kept = tool("du", &["-sk".as_ref(), fresh.as_os_str()]).out;
    let kept: u64 = kept.split_whitespace().next().unwrap().parse().unwrap();
    assert!(kept < 20 << 10, "{kept} KiB were left");
}

#[test]
fn what_is_stored_and_remembered_can_be_read_by_its_owner_alone() {
    if !rustix::process::geteuid().is_root() {
        println!("NOT TESTED: what another user may read needs root");
        return;
    }
    let mut world = World::new();
    world.pictures(10);
    // Others may enter what is above.
    world.repository = world.at("open/repository");
    world.state = world.at("open/state");
    fs::create_dir(world.at("open")).unwrap();
    for path in ["", "open"] {
        fs::set_permissions(world.at(path), fs::Permissions::from_mode(0o755)).unwrap();
    }
    world.backup(&[]).ended(0);
    let seen = |user: &str| {
        let mut find = Command::new("setpriv");
        find.args(["--reuid", user, "--regid", user, "--clear-groups", "find"]).args([&world.repository, &world.state]);
        let found = find.args(["-type", "f", "-readable"]).stderr(Stdio::null()).output().unwrap();
        String::from_utf8(found.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(seen("0").len() > 20);
    // Which repository is at which address, whose name is a hash: a number, and no secret.
    let others: Vec<_> = seen("65534").into_iter().filter(|path| !path.contains("/state/places/")).collect();
    assert_eq!(others, [] as [String; 0]);
}

#[test]
fn a_log_entry_of_the_largest_size_is_read() {
    let world = World::new();
    world.pictures(3);
    world.backup(&[]).ended(0);
    let next = forge_entry(&world, &[]);
    let path = world.entry(next);
    let mut plain = Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let lines = folder.path().join("lines");
    tool("zstd", &["-d".as_ref(), "-q".as_ref(), path.as_os_str(), "-o".as_ref(), lines.as_os_str()]);
    File::open(&lines).unwrap().read_to_end(&mut plain).unwrap();
    // One fact that this version does not know, as long as an entry may be, and a byte more.
    let room = (64 << 20) - plain.len() - r#"{"fact":"x","y":""}"#.len() - 1;
    for (length, code) in [(room, 0), (room + 1, 11)] {
        let mut lines = plain.clone();
        lines.extend_from_slice(br#"{"fact":"x","y":""#);
        lines.resize(lines.len() + length, b'y');
        lines.extend_from_slice(b"\"}\n");
        write_entry(&path, &lines);
        let mut command = support::program();
        command.args(["snapshots", "--json", "-r"]).arg(&world.repository).arg("--state-dir").arg(world.at(&format!("state-{code}")));
        Running::start(command).wait().ended(code);
    }
}
