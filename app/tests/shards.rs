//! One run by several processes: one snapshot, each content stored once, the proof complete, whatever moves or dies meanwhile.

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

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stores;
mod support;

use immich::{Immich, address, proof};
use immich_backup_core::model::{RunId, Sha1, Sha256};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use immich_backup_testbed::proxy::{Action, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stores::Stand;
use support::{Ran, Random, Running, World, settle};

fn run_id() -> String {
    RunId::random().to_string()
}

/// The arguments that make a process one of `of` shards.
fn shard(index: usize, of: usize, run: &str) -> Vec<String> {
    vec!["--shard".to_owned(), format!("{index}/{of}"), "--run-id".to_owned(), run.to_owned()]
}

fn start(world: &World, index: usize, of: usize, run: &str, more: &[&str]) -> Running {
    let arguments = shard(index, of, run);
    let all: Vec<&str> = arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Running::start(world.backup_command(&all))
}

fn one(world: &World, index: usize, of: usize, run: &str) -> Ran {
    start(world, index, of, run, &[]).wait()
}

fn waiting(ran: &Ran) -> Vec<u64> {
    ran.summary()["waiting_for_shards"].as_array().unwrap().iter().map(|part| part.as_u64().unwrap()).collect()
}

/// Contents that lie in more than one object, but for markers.
#[track_caller]
fn assert_stored_once(contents: &BTreeMap<String, Sha256>) {
    let mut keys: BTreeMap<[u8; 32], Vec<&str>> = BTreeMap::new();
    for (key, sha256) in contents.iter().filter(|(key, _)| !key.ends_with("/.immich")) {
        keys.entry(sha256.0).or_default().push(key);
    }
    let twice: Vec<_> = keys.values().filter(|keys| keys.len() > 1).collect();
    assert!(twice.is_empty(), "stored under more than one key: {twice:?}");
}

#[test]
fn three_shards_one_after_the_other_make_one_snapshot_that_is_as_any() {
    let world = World::new();
    world.pictures(90);
    world.file("encoded-video/u/large.mp4", 20 << 20, 1);
    // The same content in many folders, which are many shards'.
    for folder in 0..12 {
        for (from, to) in [
            ("upload/u0/00/00000.jpg", format!("library/admin/{folder}/same.jpg")),
            ("encoded-video/u/large.mp4", format!("encoded-video/u{folder}/large.mp4")),
        ] {
            let to = world.library.join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            support::copy(&world.library.join(from), &to);
        }
    }
    settle();
    let (tree, run) = (world.tree(), run_id());

    let first = one(&world, 1, 3, &run).ended(0);
    assert_eq!(waiting(&first), [0, 2]);
    assert!(first.summary()["snapshot"].is_null());
    assert_eq!(world.snapshots(), Vec::<String>::new(), "a snapshot before all shards are done");
    // Started again it has nothing to do; and one with another number is refused.
    assert_eq!(waiting(&one(&world, 1, 3, &run).ended(0)), [0, 2]);
    one(&world, 1, 4, &run).ended(1).says("begun with 3 shards");
    assert_eq!(waiting(&one(&world, 0, 3, &run).ended(0)), [2]);
    let last = one(&world, 2, 3, &run).ended(0);
    assert_eq!(last.snapshot(), run);
    assert_eq!(world.snapshots(), [run.as_str()]);
    world.assert_restores("latest", &tree);
    // The summary of the last speaks for all: each file was seen once, and by one of them.
    assert_eq!(last.number("/files/seen"), tree.len() as u64);
    assert_eq!(last.number("/files/new") + last.number("/files/known"), tree.len() as u64);

    let mut objects = support::Objects::default();
    objects.look(&world.repository, true);
    let contents = objects.contents();
    let distinct: BTreeSet<_> = contents.iter().map(|sha256| sha256.0).collect();
    assert_eq!(contents.len(), distinct.len(), "content was stored twice");

    // Who comes late finds the snapshot made.
    assert_eq!(waiting(&one(&world, 2, 3, &run).ended(0)), Vec::<u64>::new());
    assert_eq!(world.snapshots().len(), 1);

    // The next run: something is gone, something new, something moved to another folder.
    support::remove(&world.at("library/upload/u1/01/00001.jpg"));
    fs::rename(world.at("library/upload/u2/02/00002.jpg"), world.library.join("library/admin/3/moved.jpg")).unwrap();
    world.file("library/admin/9/new.jpg", 4_000, 9);
    settle();
    let (tree, run) = (world.tree(), run_id());
    one(&world, 2, 3, &run).ended(0);
    one(&world, 0, 3, &run).ended(0);
    let last = one(&world, 1, 3, &run).ended(0);
    assert_eq!((last.number("/files/archived"), last.number("/files/sent"), last.number("/files/new")), (2, 1, 1), "{}", last.told());
    world.assert_restores("latest", &tree);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    // And one process alone goes on from there.
    let alone = world.backup(&[]).ended(0);
    assert_eq!(alone.number("/files/unchanged"), tree.len() as u64);
}

#[test]
fn a_shard_says_what_it_needs() {
    let world = World::new();
    world.pictures(5);
    let run = run_id();
    let refused = |more: &[&str], why: &str| drop(world.backup(more).ended(2).says(why));
    refused(&["--shard", "0/2"], "needs --run-id");
    refused(&["--run-id", &run], "goes with --shard");
    refused(&["--shard", "2/2", "--run-id", &run], "the shards of 2 are 0 to 1");
    refused(&["--shard", "2", "--run-id", &run], "JOB_COMPLETION_INDEX is not set");
    refused(&["--shard", "0/2", "--run-id", "tonight"], "tonight");
    refused(&["--shard", "0/2", "--run-id", &run, "--dry-run"], "does not go with --shard");
    // As an indexed Job of Kubernetes starts its pods.
    for index in 0..2 {
        let mut command = world.backup_command(&[]);
        command.env("IMMICH_BACKUP_SHARD", "2").env("IMMICH_BACKUP_RUN_ID", &run).env("JOB_COMPLETION_INDEX", index.to_string());
        Running::start(command).wait().ended(0);
    }
    assert_eq!(world.snapshots(), [run.as_str()]);
}

#[test]
fn a_snapshot_that_is_withheld_is_so_for_each_shard_until_a_person_accepts() {
    let world = World::new();
    world.pictures(60);
    settle();
    world.backup(&[]).ended(0);
    for number in 0..30 {
        support::remove(&world.library.join(format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16)));
    }
    let run = run_id();
    one(&world, 0, 2, &run).ended(0);
    one(&world, 1, 2, &run).ended(4).says("30 of 60 originals");
    // A pod that is started again says the same, and changes nothing.
    one(&world, 0, 2, &run).ended(4).says("30 of 60 originals");
    one(&world, 1, 2, &run).ended(4).says("30 of 60 originals");
    assert_eq!(world.snapshots().len(), 1);
    let again = run_id();
    start(&world, 1, 2, &again, &["--accept", &run]).wait().ended(0);
    start(&world, 0, 2, &again, &["--accept", &run]).wait().ended(0);
    assert_eq!(world.snapshots().len(), 2);
}

#[test]
fn a_run_that_another_one_has_replaced_is_over_for_its_shards() {
    let world = World::new();
    world.pictures(40);
    settle();
    let run = run_id();
    one(&world, 0, 2, &run).ended(0);
    // Nobody goes on with it; the next night comes.
    world.backup(&["--take-over"]).ended(0);
    one(&world, 1, 2, &run).ended(1).says("another run has begun since");
    assert_eq!(world.snapshots().len(), 1);
}

#[test]
fn a_store_that_cannot_keep_writers_apart_takes_no_shards() {
    let stand = Stand::s3();
    stand.proxy.add(Rule::any().then(Action::ignore_conditions(stand.resign())));
    let world = stand.lend("p", World::new());
    world.pictures(5);
    one(&world, 0, 2, &run_id()).ended(1).says("cannot keep several writers apart").says("without --shard");
}

/// Assets beside those of the fixture.
const ASSETS: usize = 1_500;
const MOVES_EVERY: Duration = Duration::from_millis(60);

/// Immich at its storage template: files move to other folders, and their rows say so.
struct Mover {
    psql: Child,
    to: ChildStdin,
    media: PathBuf,
    assets: Vec<(String, String)>,
    random: Random,
}

impl Drop for Mover {
    fn drop(&mut self) {
        drop(self.psql.kill());
        drop(self.psql.wait());
    }
}

impl Mover {
    fn new(immich: &Immich, server: &Postgres) -> Self {
        let mut psql = Command::new(server.programs().join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &address(server, "immich")]).env("PGPASSWORD", Postgres::PASSWORD);
        let mut psql = psql.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let to = psql.stdin.take().unwrap();
        let model = immich.plain_asset(0);
        let (media, owner) = (immich.files.media(), model.owner.clone());
        let mut mover = Self { psql, to, media, assets: Vec::new(), random: Random::fresh() };
        for number in 0..ASSETS {
            let id = format!("00000000-0000-4000-8000-{number:012x}");
            let path = format!("upload/{owner}/{:02x}/{:02x}/{id}.jpg", number % 13, number % 7);
            let size = 500 + mover.random.below(30_000);
            let bytes = mover.random.bytes(size);
            let whole = mover.media.join(&path);
            fs::create_dir_all(whole.parent().unwrap()).unwrap();
            fs::write(&whole, &bytes).unwrap();
            let values = format!(
                "jsonb_build_object('id', '{id}', 'originalPath', '/data/{path}', 'originalFileName', '{number}.jpg', 'checksum', '\\x{}', 'status', 'active')",
                Sha1::of(&bytes)
            );
            mover.sql(&format!("INSERT INTO asset SELECT (jsonb_populate_record(a, {values})).* FROM asset a WHERE a.id = '{}';", model.id));
            mover.assets.push((id, path));
        }
        mover
    }

    fn sql(&mut self, text: &str) {
        writeln!(self.to, "{text}").unwrap();
        self.to.flush().unwrap();
    }

    /// Waits until the database has all that was sent.
    fn flush(&mut self, server: &Postgres) {
        let began = Instant::now();
        while server.psql("immich", "SELECT count(*) FROM asset WHERE id::text LIKE '00000000-0000-4000-8000-%'").trim() != ASSETS.to_string() {
            assert!(began.elapsed() < support::DEADLINE, "the rows are not there");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Moves files, each once, until `stop`; says how many.
    fn work(&mut self, stop: &AtomicBool) -> usize {
        let mut moved = 0;
        while !stop.load(Ordering::SeqCst) && !self.assets.is_empty() {
            let at = self.random.below(self.assets.len());
            let (id, from) = self.assets.swap_remove(at);
            let to = format!("library/admin/{}/{id}.jpg", 2000 + self.random.below(25));
            let whole = self.media.join(&to);
            fs::create_dir_all(whole.parent().unwrap()).unwrap();
            fs::rename(self.media.join(from), &whole).unwrap();
            self.sql(&format!("UPDATE asset SET \"originalPath\" = '/data/{to}' WHERE id = '{id}';"));
            moved += 1;
            std::thread::sleep(MOVES_EVERY);
        }
        moved
    }
}

/// Kills a shard once it has sent something, and starts it again.
fn kill_and_start_again(mut running: Running, again: impl FnOnce() -> Running) -> Running {
    assert!(running.until(|running| running.said().contains("\"type\":\"bytes_sent\"")), "{}", running.said());
    std::thread::sleep(Duration::from_millis(150));
    running.signal("KILL");
    running.wait();
    again()
}

#[test]
fn eight_shards_at_once_make_one_proven_snapshot_while_files_move_and_shards_die() {
    let Some(fixture) = Fixture::open(IMMICH_3) else { return };
    let server = Postgres::start().unwrap();
    let stand = Stand::s3().append_only(true);
    // As far away as a store in the same region is.
    stand.proxy.add(Rule::any().doing(|| std::thread::sleep(Duration::from_millis(15))).then(Action::Pass));
    let immich = Immich::new(fixture, &server).lent(|world| stand.lend("p", world));
    let mut mover = Mover::new(&immich, &server);
    mover.flush(&server);
    settle();
    let run = run_id();
    let begin = |index: usize| {
        let arguments = shard(index, 8, &run);
        Running::start(immich.backup_command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
    };
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let moving = std::thread::spawn(move || (mover.work(&stopped), mover));
    let mut shards: Vec<Option<Running>> = (0..8).map(|index| Some(begin(index))).collect();
    // Two die in the middle; a third one when it has nothing more to send.
    for index in [2, 5] {
        let running = shards[index].take().unwrap();
        shards[index] = Some(kill_and_start_again(running, || begin(index)));
    }
    let mut third = shards[7].take().unwrap();
    let walked = third.until(|running| running.said().contains("\"phase\":\"look_again\",\"type\":\"phase_finished\""));
    assert!(walked, "{}", third.said());
    third.signal_quietly("KILL");
    third.wait();
    shards[7] = Some(begin(7));
    let ended: Vec<Ran> = shards.into_iter().map(|running| running.unwrap().wait().ended(0)).collect();
    stop.store(true, Ordering::SeqCst);
    let (moved, _mover) = moving.join().unwrap();
    let took = began.elapsed();

    let snapshots: Vec<_> = ended.iter().filter(|ran| !ran.summary()["snapshot"].is_null()).collect();
    assert_eq!(snapshots.len(), 1, "one of them makes the snapshot");
    assert_eq!(immich.world.snapshots(), [run.as_str()]);
    let (proof, expected) = (proof(snapshots[0]), immich.expected());
    assert_eq!((proof.missing, proof.mismatched, proof.outside), (0, 0, 0), "{proof:?}");
    assert_eq!((proof.proven, proof.unprovable), (expected.proven + ASSETS as u64, expected.unprovable), "{proof:?}");
    let contents = stand.contents("p");
    assert_stored_once(&contents);
    stand.assert_written_once();
    immich.world.run(&["verify", "--read-data", "--proof", "--json"]).ended(0);
    // It comes back: each asset's bytes are there.
    let to = immich.place("restored");
    immich.restore(&to, &[], &[]).ended(0);
    let mut restored = BTreeSet::new();
    sha1s(&to.media, &mut restored);
    let listed = server.psql("immich", "SELECT encode(checksum, 'hex') FROM asset WHERE NOT \"isExternal\"");
    let missing: Vec<_> = listed.lines().filter(|sha1| !restored.contains(*sha1)).collect();
    assert!(missing.is_empty(), "{missing:?} did not come back");
    println!(
        "8 shards, 3 of them killed, {moved} files moved in {:.1} s: proven {} of {}, {} objects of content, none stored twice, {} log entries",
        took.as_secs_f64(),
        proof.proven,
        proof.assets,
        contents.len(),
        stand.keys("p").iter().filter(|key| key.starts_with("log/")).count()
    );
}

/// SHA-1 of each file below `folder`, in hexadecimal digits.
fn sha1s(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sha1s(&path, found);
        } else {
            found.insert(Sha1::of(&fs::read(path).unwrap()).to_string());
        }
    }
}

/// What a number of shards took.
struct Measured {
    seconds: f64,
    requests: usize,
    log_entries: usize,
}

/// As far away as a bucket in another region.
const AWAY: Duration = Duration::from_millis(60);

fn measure(of: usize, world: World, stand: &Stand) -> Measured {
    let run = run_id();
    stand.proxy.clear_log();
    let began = Instant::now();
    let running: Vec<_> = (0..of).map(|index| start(&world, index, of, &run, &["--workers", "4", "--no-database"])).collect();
    for one in running {
        one.wait().ended(0);
    }
    let seconds = began.elapsed().as_secs_f64();
    let requests = stand.proxy.log().len();
    assert_eq!(world.snapshots(), [run.as_str()]);
    let prefix = format!("shards{of}");
    assert_stored_once(&stand.contents(&prefix));
    let log_entries = stand.keys(&prefix).iter().filter(|key| key.starts_with("log/")).count();
    Measured { seconds, requests, log_entries }
}

#[test]
#[ignore = "slow: measures 1, 2, 4 and 8 shards"]
fn wall_time_and_requests_of_1_2_4_8_shards() {
    let stand = Stand::s3();
    stand.proxy.add(Rule::any().doing(|| std::thread::sleep(AWAY)).then(Action::Pass));
    let source = World::new();
    for number in 0..6_000_u64 {
        source.file(&format!("thumbs/u{}/{:02x}/{number}.webp", number % 3, number % 97), 20_000, number);
    }
    settle();
    println!("6,000 files of 20,000 bytes to SeaweedFS, each request {} ms away, 4 workers a shard", AWAY.as_millis());
    println!("| shards | wall | requests | log entries |");
    println!("|---|---|---|---|");
    let mut walls = Vec::new();
    for of in [1, 2, 4, 8] {
        let mut world = stand.lend(&format!("shards{of}"), World::bare());
        world.library.clone_from(&source.library);
        let measured = measure(of, world, &stand);
        println!("| {of} | {:.1} s | {} | {} |", measured.seconds, measured.requests, measured.log_entries);
        walls.push(measured.seconds);
    }
    assert!(walls[3] < walls[0], "eight are no faster than one: {walls:?}");
}
