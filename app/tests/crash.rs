//! A run may die at any instruction, or be asked to stop: nothing that was announced is lost, nothing is sent twice.

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
use std::time::{Duration, Instant};
use support::{Objects, Random, Running, Tree, World, raw, tool, twins, write};

/// Pairs of files of one content that each round has more.
const TWINS: usize = 25;

/// Adds, changes, moves and deletes; now and then exchanges a large file.
fn change(world: &World, random: &mut Random, round: usize) {
    for number in 0..25 {
        world.file(&format!("thumbs/u{}/new-{round}-{number}.webp", random.below(4)), random.below(20_000), random.next());
    }
    let paths: Vec<Vec<u8>> = world.tree().0.keys().filter(|path| path.starts_with(b"thumbs/u")).cloned().collect();
    for number in 0..15 {
        let path: &Vec<u8> = random.pick(&paths);
        let path = world.library.join(raw(path));
        match random.below(4) {
            _ if !path.exists() => {}
            0 => fs::rename(&path, world.library.join(format!("thumbs/u0/moved-{round}-{number}.webp"))).unwrap(),
            1 => fs::remove_file(&path).unwrap(),
            _ => {
                let length = random.below(20_000);
                write(&path, &random.bytes(length), 1_500_000_000 + random.below(1_000_000) as i64, 1, 0o644);
            }
        }
    }
    if round.is_multiple_of(4) {
        world.file(&format!("encoded-video/u/large{}.mp4", round % 2), (9 << 20) + random.below(6 << 20), random.next());
    }
}

struct Story {
    world: World,
    random: Random,
    objects: Objects,
    snapshots: Vec<(String, Tree)>,
    kills: usize,
}

impl Story {
    /// Notes snapshots that were announced since; they are of the library as it is.
    fn note_snapshots(&mut self) {
        let tree = self.world.tree();
        for snapshot in self.world.snapshots() {
            if self.snapshots.iter().all(|(known, _)| *known != snapshot) {
                self.snapshots.push((snapshot, tree.clone()));
            }
        }
    }

    fn contents(&self) -> BTreeSet<[u8; 32]> {
        self.objects.contents().iter().map(|content| content.0).collect()
    }

    /// Kills a run at a random moment of its life. Returns whether it was still alive.
    fn kill(&mut self, life: Duration) -> bool {
        let mut running = Running::start(self.world.backup_command(&[]));
        let moment = Duration::from_micros(self.random.below(life.as_micros() as usize) as u64);
        let began = Instant::now();
        while began.elapsed() < moment && !running.is_over() {
            std::thread::sleep(Duration::from_micros(500));
        }
        let alive = !running.is_over();
        running.signal_quietly("KILL");
        drop(running);
        self.objects.look(&self.world.repository, false);
        if alive {
            self.kills += 1;
        }
        alive
    }
}

fn die_and_go_on(kills: usize) {
    let world = World::new();
    for number in 0..400 {
        world.file(&format!("thumbs/u{}/{number}.webp", number % 4), 500 + (number * 37) % 15_000, 0);
    }
    world.file("encoded-video/u/large0.mp4", 12 << 20, 0);
    world.file("encoded-video/u/large1.mp4", 16 << 20, 1);
    twins(&world, TWINS, 0);
    let mut story = Story { world, random: Random::fresh(), objects: Objects::default(), snapshots: Vec::new(), kills: 0 };
    // The first run is long, those that follow are short.
    let mut life = Duration::from_millis(1_500);
    let mut round = 0;
    while story.kills < kills {
        let mut deaths = 0;
        let before = story.contents();
        for _ in 0..=story.random.below(4) {
            deaths += usize::from(story.kill(life));
            if story.world.repository.join("format.json").exists() {
                story.note_snapshots();
            }
        }
        let ran = story.world.backup(&[]).ended(0);
        life = (life + ran.took) / 2;
        story.note_snapshots();
        story.objects.look(&story.world.repository, false);
        // Each content that is new in the library has exactly one object, however often its run died.
        let contents = story.objects.contents();
        let distinct: BTreeSet<[u8; 32]> = contents.iter().map(|content| content.0).collect();
        let library: BTreeSet<[u8; 32]> = story.world.tree().0.values().map(|leaf| leaf.sha256.0).collect();
        assert_eq!(contents.len(), distinct.len(), "content was sent twice after {deaths} deaths");
        let new: BTreeSet<_> = distinct.difference(&before).copied().collect();
        assert!(new.is_subset(&library), "an object holds what the library never had");
        let verified = story.world.run(&["verify", "--json"]).ended(0);
        assert_eq!(verified.number("/unannounced"), 0, "objects that nothing names, after a whole run\n{}", verified.told());
        let (snapshot, tree) = story.random.pick(&story.snapshots).clone();
        story.world.assert_restores(&snapshot, &tree);
        round += 1;
        change(&story.world, &mut story.random, round);
        twins(&story.world, TWINS, round);
    }
    let last = story.world.backup(&[]).ended(0);
    drop(last);
    story.note_snapshots();
    story.objects.look(&story.world.repository, true);
    let all = story.snapshots.clone();
    let step = all.len().div_ceil(12).max(1);
    for (snapshot, tree) in all.iter().step_by(step) {
        story.world.assert_restores(snapshot, tree);
    }
    let verified = story.world.run(&["verify", "--read-data", "--json"]).ended(0);
    assert_eq!(verified.number("/unannounced"), 0);
    // A run that is killed before its folder bears its lock may be starting, for all others know: that folder is given an hour.
    let folders = fs::read_dir(story.world.repository.join("tmp")).into_iter().flatten().map(|entry| entry.unwrap().path());
    let left = folders.filter(|folder| folder.join("lock").exists()).count();
    assert_eq!(left, 0, "temporary files of dead runs are left");
    println!(
        "{} runs killed in {round} rounds, {} snapshots, {} objects: none rewritten, none sent twice, all restore",
        story.kills,
        story.snapshots.len(),
        story.objects.contents().len()
    );
}

#[test]
fn thirty_runs_die_at_random_moments_and_nothing_is_lost() {
    die_and_go_on(30);
}

#[test]
#[ignore = "slow: scripts/test --slow"]
fn three_hundred_runs_die_at_random_moments_and_nothing_is_lost() {
    die_and_go_on(300);
}

fn objects_below(world: &World) -> usize {
    let folder = world.repository.join("library/upload");
    let found = std::process::Command::new("find").arg(folder).args(["-type", "f"]).output().unwrap();
    found.stdout.iter().filter(|byte| **byte == b'\n').count()
}

fn stop_by(signal: &str) {
    let world = World::new();
    for number in 0..3_000 {
        world.file(&format!("upload/u/{:02}/{number:05}.jpg", number % 50), 2_000, 0);
    }
    for number in 0..6 {
        world.file(&format!("upload/u/{number}.mov"), 16 << 20, number);
    }
    let mut running = Running::start(world.backup_command(&["--workers", "2"]));
    assert!(running.until(|_| objects_below(&world) >= 300) && !running.is_over(), "the run was over too soon\n{}", running.said());
    let asked = Instant::now();
    running.signal(signal);
    let ran = running.wait().ended(130);
    assert!(asked.elapsed() < Duration::from_secs(10), "it took {:?} to stop", asked.elapsed());
    assert_eq!(ran.summary()["outcome"], "interrupted");
    assert!(ran.summary()["snapshot"].is_null());
    let stored = ran.number("/files/sent");
    assert!(stored >= 300, "only {stored} files are in the last checkpoint\n{}", ran.told());
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    assert_eq!(objects.contents().len() as u64, stored, "what was stored is in the log, all of it");
    assert_eq!(world.snapshots().len(), 0);
    world.run(&["snapshots"]).ended(0).says("interrupted");
    // Nobody waits for it.
    let next = world.backup(&["--wait", "0"]).ended(0);
    assert_eq!(next.number("/files/sent") + stored, 3_000 + 6 + 5);
    assert_eq!(next.summary()["adopted"]["files"], 0, "{}", next.told());
    objects.look(&world.repository, true);
    world.assert_restores("latest", &world.tree());
}

#[test]
fn ctrl_c_writes_a_last_checkpoint_and_the_next_run_goes_on() {
    stop_by("INT");
}

#[test]
fn sigterm_writes_a_last_checkpoint_and_the_next_run_goes_on() {
    stop_by("TERM");
}

#[test]
fn ctrl_c_stops_a_restore_and_the_next_one_goes_on() {
    let world = World::new();
    for number in 0..1_500 {
        world.file(&format!("upload/u/{number:05}.jpg"), 4_000, 0);
    }
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    let mut running = Running::start(world.restore_command(&to, &["--workers", "1"]));
    let folder = to.join("upload/u");
    assert!(running.until(|_| fs::read_dir(&folder).is_ok_and(|entries| entries.count() > 100)));
    running.signal("INT");
    let ran = running.wait().ended(130);
    let written = ran.number("/written/files");
    let again = world.restore(&to, &[]).ended(0);
    assert!(again.number("/plan/right/files") >= written);
    Tree::of(&to).without("backups").assert_is(&world.tree(), "after Ctrl-C");
}

#[test]
fn ctrl_c_while_waiting_ends_at_once() {
    let world = World::new();
    world.pictures(3);
    world.backup(&[]).ended(0);
    let lock = fs::File::options().write(true).open(world.own_state().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let mut running = Running::start(world.backup_command(&[]));
    assert!(running.until(|running| running.said().contains("waiting")));
    let asked = Instant::now();
    running.signal("INT");
    running.wait().ended(130);
    assert!(asked.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_torn_temporary_file_is_never_taken_for_an_object() {
    let world = World::new();
    world.pictures(20);
    world.backup(&[]).ended(0);
    let torn = world.repository.join("tmp/0123456789abcdef0123456789abcdef");
    write(&torn.join("0"), b"torn", 1_500_000_000, 0, 0o600);
    write(&torn.join("lock"), b"", 1_500_000_000, 0, 0o600);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    world.file("upload/u0/new.jpg", 100, 1);
    world.backup(&[]).ended(0);
    assert!(!torn.exists(), "what a dead run left is removed by the next");
    let bytes = Sha256::of(&fs::read(world.library.join("upload/u0/new.jpg")).unwrap());
    assert_eq!(bytes, Sha256::of(&fs::read(world.repository.join("library/upload/u0/new.jpg")).unwrap()));
    tool("test", &["-r", world.repository.join("format.json").to_str().unwrap()]);
}
