//! How long Immich is down for a run that stops it, where the line to the store is slow.
//!
//! Slow: `scripts/test --slow` runs it, and docs/reliability.md keeps its figures. `IMMICH_BACKUP_SOAK_MB` makes the library smaller or larger.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test may"
)]

#[path = "support/host.rs"]
mod host;
mod support;

use host::{Host, ups};
use immich_backup_testbed::compose::{Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use immich_backup_testbed::line::Line;
use immich_backup_testbed::servers::{Options, SeaweedFs};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Random, Running, World};

const LINE_BYTES_PER_SECOND: u64 = 20_000_000;
const FILE_BYTES: usize = 50_000_000;

/// Videos in `folder`, `megabytes` in all, none like another.
fn fill(folder: &Path, megabytes: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut bytes = Random::new(7).bytes(FILE_BYTES);
    for number in 0..megabytes * 1_000_000 / FILE_BYTES {
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        File::create(folder.join(format!("{number:04}.mp4"))).unwrap().write_all(&bytes).unwrap();
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[test]
#[ignore = "slow: sends 10 GB at 20 MB/s"]
fn a_staged_run_is_down_for_a_local_copy_and_no_longer() {
    let megabytes = std::env::var("IMMICH_BACKUP_SOAK_MB").map_or(5_000, |text| text.parse().unwrap());
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    fill(&stack.media().join("upload/videos"), megabytes);
    let store = SeaweedFs::start(Options::default()).unwrap();
    let line = Line::start(store.endpoint(), LINE_BYTES_PER_SECOND).unwrap();
    let before = ups(&stack);
    // Four times as long as the line needs.
    let limit = Duration::from_mins(1) + Duration::from_secs(4 * megabytes as u64 * 1_000_000 / LINE_BYTES_PER_SECOND);
    let run = |name: &str, staged: bool| {
        let mut host = Host { world: World::new(), docker: engine.host() };
        host.world.repository = PathBuf::from(format!("s3://{}/{name}?endpoint={}", store.bucket().name, line.endpoint()));
        let keys = store.credentials();
        let named = [("AWS_ACCESS_KEY_ID", keys.access_key.as_str()), ("AWS_SECRET_ACCESS_KEY", &keys.secret_key), ("AWS_REGION", "us-east-1")];
        host.world.environment = named.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let stage = host.world.at("stage");
        fs::create_dir(&stage).unwrap();
        let stage = stage.display().to_string();
        let began = Instant::now();
        let more: Vec<&str> = if staged { vec!["--stage", &stage] } else { Vec::new() };
        let ran = Running::start(host.backup_command(&stack, &more)).wait_within(limit).ended(0);
        assert_eq!(ups(&stack), before);
        (Duration::from_millis(ran.number("/downtime_ms")), began.elapsed())
    };
    let host = Host::new(&engine);
    let began = Instant::now();
    host.services(&["stop"]).ended(0);
    host.services(&["start"]).ended(0);
    let stop_and_start = began.elapsed();
    let copy = tempfile::tempdir().unwrap();
    let began = Instant::now();
    assert!(Command::new("cp").arg("-a").arg(stack.media()).arg(copy.path().join("copy")).status().unwrap().success());
    let copied = began.elapsed();
    drop(copy);
    let (staged, staged_run) = run("staged", true);
    let (plain, plain_run) = run("plain", false);
    println!(
        "{megabytes} MB to a store at 20 MB/s: down for {} with --stop-services (run of {}), for {} with --stage (run of {}); stop and start take {}, `cp -a` {}",
        seconds(plain),
        seconds(plain_run),
        seconds(staged),
        seconds(staged_run),
        seconds(stop_and_start),
        seconds(copied)
    );
    assert!(staged < plain / 2, "a stage that is of no use");
}
