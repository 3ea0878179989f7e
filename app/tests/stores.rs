//! What holds for a directory holds for object stores that let nobody overwrite or delete: SeaweedFS with versions, and the double of Google Cloud
//! Storage, both behind a proxy that answers 403 to any DELETE and to any unconditional PUT of an object.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test may"
)]

#[path = "support/stores.rs"]
mod stand;
mod support;

use immich_backup_testbed::proxy::{Action, Policy, Rule};
use stand::{Stand, is_content};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};
use support::{Random, Running, Tree, World, change, opened, settle, take_fixture, twins};

fn s3() -> Stand {
    Stand::s3().append_only(true)
}

fn gcs() -> Stand {
    Stand::gcs().append_only(false)
}

// Restore is backup.

fn both_generations_come_back(stand: &Stand) {
    for name in ["immich-3.1.0", "immich-1.135.3"] {
        let world = stand.lend(name, World::bare());
        if !take_fixture(&world, &format!("{name}/media")) {
            continue;
        }
        let tree = world.tree();
        let backup = world.backup(&[]).ended(0);
        assert_eq!(backup.number("/files/seen"), tree.len() as u64);
        world.assert_restores("latest", &tree);
        let copy = world.at("copy");
        stand.mirror(name, &copy);
        world.assert_restores_by_hand(&copy, &tree);
        // On a machine that knows nothing.
        support::remove(&world.state);
        world.assert_restores("latest", &tree);
        world.run(&["verify", "--read-data", "--json"]).ended(0);
        println!("{name}: {} files came back, byte for byte, three ways", tree.len());
    }
    println!("{} keys, one version each", stand.assert_written_once());
}

#[test]
fn both_generations_come_back_byte_for_byte_from_s3() {
    both_generations_come_back(&s3());
}

#[test]
fn both_generations_come_back_byte_for_byte_from_google() {
    both_generations_come_back(&gcs());
}

// What is known is not read, what is stored is not sent.

fn a_second_backup_reads_nothing_and_sends_log_entries_only(stand: &Stand) {
    let world = stand.lend("p", World::new());
    world.pictures(300);
    world.file("upload/u/large.jpg", 20 << 20, 1);
    settle();
    let Some((count, first)) = opened(&world) else { return };
    first.ended(0);
    assert!(count >= 301, "strace saw {count} files opened by the first backup: the test itself is blind");
    stand.proxy.clear_log();
    let (count, second) = opened(&world).unwrap();
    let second = second.ended(0);
    assert_eq!(count, 0, "the second backup opened {count} files of the library");
    assert_eq!((second.number("/files/unchanged"), second.number("/files/sent")), (306, 0));
    assert_eq!(second.events("bytes_sent").len(), 0);
    let writes = stand.writes("p");
    let taken: Vec<_> = writes.iter().filter(|write| write.taken).map(|write| write.key.as_str()).collect();
    assert!(taken.len() == 2 && taken.iter().all(|key| key.starts_with("log/")), "{writes:?}");
    // Whether the store refuses what exists is asked with the one object whose bytes are always the same.
    assert!(writes.iter().filter(|write| !write.taken).all(|write| write.key == "format.json"), "{writes:?}");
    let asked = stand.proxy.count(|record| record.path.contains("/p/library/"));
    assert_eq!(asked, 0, "the second backup asked the store about content");
    let all = stand.proxy.log().len();
    stand.assert_written_once();
    println!("second backup of 306 files: 0 opened, {all} requests, of these {} writes that were taken, all of them log entries", taken.len());
}

#[test]
fn a_second_backup_to_s3_reads_nothing_and_sends_log_entries_only() {
    a_second_backup_reads_nothing_and_sends_log_entries_only(&s3());
}

#[test]
fn a_second_backup_to_google_reads_nothing_and_sends_log_entries_only() {
    a_second_backup_reads_nothing_and_sends_log_entries_only(&gcs());
}

fn a_moved_tree_sends_no_content(stand: &Stand) {
    let world = stand.lend("moved", World::new());
    world.pictures(100);
    world.file("upload/u/large.jpg", 17 << 20, 1);
    world.backup(&[]).ended(0);
    fs::create_dir_all(world.library.join("library/admin")).unwrap();
    for folder in ["u", "u0", "u1", "u2"] {
        fs::rename(world.library.join("upload").join(folder), world.library.join("library/admin").join(folder)).unwrap();
    }
    let tree = world.tree();
    stand.proxy.clear_log();
    let moved = world.backup(&[]).ended(0);
    assert_eq!((moved.number("/files/sent"), moved.number("/files/known"), moved.number("/files/archived")), (0, 101, 101), "{}", moved.told());
    let sent: Vec<_> =
        stand.writes("moved").into_iter().filter(|write| !["format.json", "log/", "manifests/"].iter().any(|start| write.key.starts_with(start))).collect();
    assert!(sent.is_empty(), "{sent:?}");
    world.assert_restores("latest", &tree);
}

fn ten_runs_with_changes_write_no_key_twice(stand: &Stand) {
    let world = stand.lend("ten", World::new());
    for number in 0..80 {
        world.file(&format!("thumbs/u{}/{number}.webp", number % 4), 50 + number * 7, 0);
    }
    let mut random = Random::new(11);
    let mut snapshots: Vec<(String, Tree)> = Vec::new();
    for round in 0..11 {
        let tree = world.tree();
        snapshots.push((world.backup(&[]).ended(0).snapshot(), tree));
        change(&world, &mut random, round);
    }
    // From the log alone, on a machine that knows nothing.
    support::remove(&world.state);
    for (snapshot, tree) in &snapshots {
        world.assert_restores(snapshot, tree);
    }
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    let contents = stand.contents("ten");
    // Markers have objects of their own, though they may be alike.
    let distinct: BTreeSet<_> = contents.values().map(|sha256| sha256.0).collect();
    assert_eq!(contents.len(), distinct.len(), "the same content was stored under two keys");
    println!("11 snapshots, {} objects of content, {} keys with one version each", contents.len(), stand.assert_written_once());
}

#[test]
fn a_moved_tree_and_ten_runs_with_changes_write_no_content_twice_to_s3() {
    let stand = s3();
    a_moved_tree_sends_no_content(&stand);
    ten_runs_with_changes_write_no_key_twice(&stand);
}

#[test]
fn a_moved_tree_and_ten_runs_with_changes_write_no_content_twice_to_google() {
    let stand = gcs();
    a_moved_tree_sends_no_content(&stand);
    ten_runs_with_changes_write_no_key_twice(&stand);
}

// Runs that die.

/// What `backup` has by default.
const WORKERS: usize = 4;

/// Pairs of files of one content that each round has more.
const TWINS: usize = 25;

struct Story<'a> {
    stand: &'a Stand,
    world: World,
    random: Random,
    snapshots: Vec<(String, Tree)>,
    kills: usize,
}

impl Story<'_> {
    /// Notes snapshots that were announced since; they are of the library as it is.
    fn note_snapshots(&mut self) {
        let tree = self.world.tree();
        for snapshot in self.world.snapshots() {
            if self.snapshots.iter().all(|(known, _)| *known != snapshot) {
                self.snapshots.push((snapshot, tree.clone()));
            }
        }
    }

    /// Kills a run at a random moment of its life, if it lives that long.
    fn kill(&mut self, life: Duration) {
        let mut running = Running::start(self.world.backup_command(&[]));
        let moment = Duration::from_micros(self.random.below(life.as_micros() as usize) as u64);
        let began = Instant::now();
        while began.elapsed() < moment && !running.is_over() {
            std::thread::sleep(Duration::from_micros(500));
        }
        self.kills += usize::from(!running.is_over());
        running.signal_quietly("KILL");
    }
}

fn runs_die(stand: &Stand, kills: usize) {
    let world = stand.lend("p", World::new());
    for number in 0..150 {
        world.file(&format!("thumbs/u{}/{number}.webp", number % 4), 500 + (number * 37) % 15_000, 0);
    }
    for number in 0..2 {
        world.file(&format!("encoded-video/u/large{number}.mp4"), (33 << 20) + number as usize, number);
    }
    twins(&world, TWINS, 0);
    let mut story = Story { stand, world, random: Random::fresh(), snapshots: Vec::new(), kills: 0 };
    let mut life = Duration::from_millis(2_500);
    let mut round = 0;
    while story.kills < kills {
        for _ in 0..2 + story.random.below(4) {
            story.kill(life);
        }
        let ran = story.world.backup(&[]).ended(0);
        life = (life + ran.took) / 2;
        story.note_snapshots();
        let (snapshot, tree) = story.snapshots[story.random.below(story.snapshots.len())].clone();
        story.world.assert_restores(&snapshot, &tree);
        round += 1;
        change(&story.world, &mut story.random, round);
        twins(&story.world, TWINS, round);
        if round % 3 == 0 {
            let number = story.random.next();
            story.world.file("encoded-video/u/large0.mp4", 17 << 20, number);
        }
    }
    story.world.backup(&[]).ended(0);
    story.note_snapshots();
    let verified = story.world.run(&["verify", "--read-data", "--json"]).ended(0);
    assert_eq!(verified.number("/unannounced"), 0, "objects that nothing names, after a whole run\n{}", verified.told());
    let contents = stand.contents("p");
    let distinct: BTreeSet<_> = contents.values().map(|sha256| sha256.0).collect();
    assert_eq!(contents.len(), distinct.len(), "content was stored twice");
    // Each key was taken once, and what was sent to no avail was on its way when a run died: a file of each worker, in parts or whole.
    // (A session at Google bears no key in its URL, and is not counted.)
    let mut sent: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for write in stand.writes("p").into_iter().filter(|write| is_content(&write.key) && write.bytes > 0) {
        let (taken, refused) = sent.entry(write.key).or_default();
        *if write.taken { taken } else { refused } += 1;
    }
    let again: usize = sent.values().map(|(_, refused)| refused).sum();
    assert!(again <= story.kills * WORKERS, "{again} bodies were sent to no avail: {sent:?}");
    println!(
        "{} runs killed in {round} rounds, {} snapshots, {} objects of content, none stored twice; {again} bodies were on their way when a run died; {} keys with one version each",
        story.kills,
        story.snapshots.len(),
        contents.len(),
        story.stand.assert_written_once()
    );
}

#[test]
fn thirty_runs_to_s3_die_at_random_moments_and_nothing_is_lost_or_stored_twice() {
    let stand = s3();
    runs_die(&stand, 30);
    // What a death left unfinished, the next run has ended; but for what the store had begun and not answered for when it came. Nobody was told its name,
    // so no request ever bore it.
    let left = stand.bucket().uploads_with_ids().unwrap();
    let told: Vec<_> = left.iter().filter(|(_, id)| stand.proxy.count(|record| record.query.contains(id)) > 0).collect();
    assert!(told.is_empty(), "unfinished uploads are left: {told:?} of {left:?}");
}

#[test]
fn fifteen_runs_to_google_die_at_random_moments_and_nothing_is_lost_or_stored_twice() {
    runs_die(&gcs(), 15);
}

/// A run that dies where the upload of a large file stands so.
fn dies_where(stand: &Stand, rule: Rule) -> World {
    let world = stand.lend("p", World::new());
    world.file("upload/u/large.mov", 40 << 20, 1);
    let hang = stand.proxy.add(rule);
    let running = Running::start(world.backup_command(&[]));
    assert!(hang.within(Duration::from_secs(60)), "no such request was sent\n{}", running.said());
    running.signal("KILL");
    drop(running);
    stand.proxy.clear_rules();
    assert_eq!(stand.bucket().uploads().unwrap(), ["p/library/upload/u/large.mov"]);
    world
}

#[test]
fn an_upload_that_died_before_its_first_part_came_is_ended_by_the_next_run() {
    let stand = s3();
    let world = dies_where(&stand, Rule::on("PUT").query("partNumber").then(Action::HangBefore));
    world.backup(&[]).ended(0);
    assert_eq!(stand.bucket().uploads().unwrap(), Vec::<String>::new());
    world.assert_restores("latest", &world.tree());
}

#[test]
fn an_upload_that_died_before_its_name_was_told_stays_and_holds_nothing() {
    let stand = s3();
    let world = dies_where(&stand, Rule::on("POST").query("uploads").then(Action::HangAfter));
    let [(key, id)] = &stand.bucket().uploads_with_ids().unwrap()[..] else { panic!("one is left") };
    world.backup(&[]).ended(0);
    world.assert_restores("latest", &world.tree());
    // It may be another writer's for all that anybody knows, and is not touched; the bucket's rule ends it.
    assert_eq!(stand.bucket().uploads_with_ids().unwrap(), [(key.clone(), id.clone())]);
    assert_eq!(stand.proxy.count(|record| record.query.contains(id)), 0, "nothing was sent to it");
}

#[test]
fn an_upload_that_died_and_may_not_be_ended_is_warned_of_and_stops_nothing() {
    let stand = Stand::s3().append_only(false);
    let world = stand.lend("p", World::new());
    world.file("upload/u/large.mov", 40 << 20, 1);
    let hang = stand.proxy.add(Rule::on("PUT").query("partNumber").after(1).then(Action::HangBefore));
    let running = Running::start(world.backup_command(&[]));
    assert!(hang.within(Duration::from_secs(60)), "no second part was sent\n{}", running.said());
    running.signal("KILL");
    drop(running);
    stand.proxy.clear_rules();
    let next = world.backup(&[]).ended(0).says("could not be ended").says("lifecycle rule");
    assert_eq!((next.number("/files/sent"), next.summary()["adopted"]["files"].as_u64()), (1, Some(5)), "{}", next.told());
    assert_eq!(stand.bucket().uploads().unwrap(), ["p/library/upload/u/large.mov"]);
    world.assert_restores("latest", &world.tree());
    let denied = stand.denied();
    assert!(denied.len() == 1 && denied[0].starts_with("DELETE") && denied[0].contains("uploadId="), "{denied:?}");
    // Permitted, it is ended, and not asked for again.
    stand.proxy.set_policy(Policy::Everything);
    let ended = world.backup(&[]).ended(0);
    assert!(!ended.out.contains("could not be ended"), "{}", ended.told());
    assert_eq!(stand.bucket().uploads().unwrap(), Vec::<String>::new());
    stand.proxy.clear_log();
    world.backup(&[]).ended(0);
    assert_eq!(stand.proxy.count(|record| record.method == "DELETE"), 0);
}

// A plain copy.

/// What `rclone copy` makes of `library/`.
fn copied(stand: &Stand, prefix: &str, world: &World) -> Tree {
    let bucket = stand.bucket();
    let to = world.at("copied");
    let mut command = support::clean(std::process::Command::new("rclone"));
    for (name, value) in
        [("TYPE", "s3"), ("PROVIDER", "Other"), ("ACCESS_KEY_ID", &bucket.credentials.access_key), ("SECRET_ACCESS_KEY", &bucket.credentials.secret_key)]
    {
        command.env(format!("RCLONE_CONFIG_STORE_{name}"), value);
    }
    command.env("RCLONE_CONFIG_STORE_ENDPOINT", &bucket.endpoint).env("RCLONE_CONFIG", world.at("no-rclone.conf"));
    command.args(["copy", "--s3-no-check-bucket", "--transfers", "16", &format!("store:{}/{prefix}/library", bucket.name)]).arg(&to);
    Running::start(command).wait().ended(0);
    let tree = Tree::of(&to);
    support::remove(&to);
    tree
}

#[test]
fn rclone_copies_a_first_snapshot_as_restore_brings_it_back() {
    let stand = s3();
    let world = stand.lend("plain", World::new());
    world.pictures(200);
    for name in ["Anna's birthday (1) #2 [x] & +.jpg", "Übergröße ñandú.jpg", "🎉 party 🎂.jpg", "日本の写真.heic", "~$ a=b;c,d.jpg"] {
        world.file(&format!("library/anna/2014/{name}"), 3_000, 1);
    }
    world.file("encoded-video/u/in-parts.mp4", (33 << 20) + 5, 1);
    world.backup(&[]).ended(0);
    let to = world.at("restored");
    world.restore(&to, &[]).ended(0);
    // The database's dumps are not backed up from there, and its marker is made by `restore`.
    let restored = Tree::of(&to).without("backups");
    let copied = copied(&stand, "plain", &world);
    copied.assert_is_but_for_modes(&restored, "copied by rclone");
    println!("{} files copied by rclone as restored, mtimes included", copied.len());
}

#[test]
fn what_rclone_copies_of_a_real_library_lacks_second_copies_alone() {
    let stand = s3();
    for name in ["immich-3.1.0", "immich-1.135.3"] {
        let world = stand.lend(name, World::bare());
        if !take_fixture(&world, &format!("{name}/media")) {
            continue;
        }
        world.backup(&[]).ended(0);
        let tree = world.tree();
        let mut copied = copied(&stand, name, &world);
        let contents: BTreeSet<_> = copied.0.values().map(|leaf| leaf.sha256.0).collect();
        let (mut same, mut second, mut respelt) = (0, 0, 0);
        for (path, leaf) in &tree.0 {
            // docs/format.md: a `%` in a name is written `%25`.
            let key = String::from_utf8(path.clone()).unwrap().replace('%', "%25").into_bytes();
            match copied.0.remove(&key) {
                Some(found) => {
                    assert!(found.sha256 == leaf.sha256 && found.mtime_ns == leaf.mtime_ns, "{}", path.escape_ascii());
                    *if key == *path { &mut same } else { &mut respelt } += 1;
                }
                None => {
                    assert!(contents.contains(&leaf.sha256.0), "{} was not copied, and nothing with its content", path.escape_ascii());
                    second += 1;
                }
            }
        }
        assert!(copied.0.is_empty(), "more was copied than the library has");
        println!(
            "{name}: of {} files rclone copies {same} as they are, {respelt} with a `%` in the name written `%25`; {second} are second copies of these",
            tree.len()
        );
    }
}
