//! How long the page takes for half a million assets, and what memory. Figures are for docs/benchmarks.md: no speed is asserted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a test may")]

mod support;

use immich_backup_core::model::{Digests, FilePath, FileTimes, RepositoryId, RootPath, RunId, Sha1, Sha256, WriterId};
use immich_backup_core::repository::key;
use immich_backup_core::repository::log::{Fact, Head, Header, StoredFact};
use immich_backup_core::repository::manifest::Manifest;
use immich_backup_core::repository::state::StateFolder;
use immich_backup_core::verdict::Proof;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};
use support::{Running, World};

const PASSWORD: &str = "correct horse battery";
const ASSETS: u64 = 500_000;
/// Snapshots of a year.
const SNAPSHOTS: u64 = 365;
/// Files that come with each.
const FACTS: usize = 1_000;
const LOOKS: usize = 50;
/// All that the daemon may have in memory.
const MEMORY_MIB_MAX: u64 = 300;

/// The same for the same number, and as if by chance.
fn id(number: u64) -> String {
    let digest = Sha256::of(&number.to_le_bytes()).to_string();
    format!("{}-{}-{}-{}-{}", &digest[..8], &digest[8..12], &digest[12..16], &digest[16..20], &digest[20..32])
}

/// Below the media location: original, preview, thumbnail.
fn paths(number: u64) -> [String; 3] {
    let (owner, id) = (id(u64::MAX - number % 4), id(number));
    let thumbs = format!("thumbs/{owner}/{}/{}/{id}", &id[..2], &id[2..4]);
    [format!("upload/{owner}/{}/{}/{id}.jpg", &id[..2], &id[2..4]), format!("{thumbs}_preview.jpeg"), format!("{thumbs}_thumbnail.webp")]
}

struct Writer {
    manifest: Manifest,
    writer: WriterId,
}

impl Writer {
    fn apply(&mut self, run: RunId, facts: &[Fact]) {
        let before = self.manifest.head();
        let sequence = before.sequence + 1;
        let header =
            Header { format: 1, epoch: 0, sequence, previous_sha256: before.sha256, run: Some(run), written_at: Timestamp::now(), writer: self.writer };
        let head = Head { epoch: 0, sequence, sha256: Sha256::of(&sequence.to_le_bytes()) };
        self.manifest.apply_parts(&header, facts, &head).unwrap();
    }

    fn fact(&mut self, run: RunId, fact: serde_json::Value) {
        self.apply(run, &[serde_json::from_value(fact).unwrap()]);
    }
}

/// A year of backups: most of it was there at the beginning.
fn make(world: &World) {
    let repository = RepositoryId::random();
    StateFolder::remember(&world.state, world.repository.to_str().unwrap(), repository).unwrap();
    let path = StateFolder::manifest_below(&world.state, world.repository.to_str().unwrap()).unwrap();
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let manifest = Manifest::create(&path, repository, &Head { epoch: 0, sequence: 0, sha256: Sha256([0; 32]) }).unwrap();
    let mut writer = Writer { manifest, writer: WriterId::random() };
    // As after a log that was read to its end.
    fs::write(path.with_file_name("seen.json"), serde_json::to_vec(&Head { epoch: 0, sequence: 1, sha256: Sha256([0; 32]) }).unwrap()).unwrap();
    let mut number = 0;
    for snapshot in 0..SNAPSHOTS {
        let run = RunId::random();
        let at = Timestamp::now() - SignedDuration::from_hours(24 * i64::try_from(SNAPSHOTS - snapshot - 1).unwrap());
        writer.fact(run, json!({ "fact": "run_started", "at": at, "host": "nas", "roots": [] }));
        let until = ASSETS / 2 + (ASSETS - ASSETS / 2) * (snapshot + 1) / SNAPSHOTS;
        let mut facts = Vec::new();
        while number < until {
            for (kind, path) in paths(number).into_iter().enumerate() {
                let file = FilePath::library(RootPath::parse(&path).unwrap());
                let content = (number * 3 + kind as u64).to_be_bytes();
                let times = FileTimes { size_bytes: 4_000_000 / (1 + 20 * kind as u64), mtime_ns: 1_700_000_000_000_000_000, ctime_ns: 1, mode: 0o644 };
                let home = key::home(&file).unwrap();
                facts.push(Fact::Stored(StoredFact::new(&file, Digests { sha256: Sha256::of(&content), sha1: Sha1::of(&content) }, &times, true, &home, None)));
            }
            number += 1;
            if facts.len() >= FACTS {
                writer.apply(run, &facts);
                facts.clear();
            }
        }
        // Each day a few are thrown away.
        for gone in 0..10 {
            let path = RootPath::parse(&paths(snapshot * 10 + gone)[0]).unwrap();
            facts.push(serde_json::from_value(json!({ "fact": "archived", "path": path })).unwrap());
        }
        writer.apply(run, &facts);
        let proof = Proof { assets: number, proven: number, ..Proof::default() };
        let totals = writer.manifest.totals();
        writer.fact(
            run,
            json!({
                "fact": "snapshot", "started_at": at, "taken_at": at, "totals": totals, "sent": { "files": 2_000, "bytes": 4_000_000_000_u64 }, "archived": 10,
                "unread_count": 0, "dump": "database/x.sql.gz", "proof": proof,
            }),
        );
    }
    assert_eq!(writer.manifest.count_versions().unwrap(), ASSETS * 3);
}

fn asked(address: &str, request: &str) -> (Duration, String) {
    let began = Instant::now();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    (began.elapsed(), answer)
}

fn memory_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1_024
}

#[test]
#[ignore = "makes a manifest of 1.5 million files, which takes minutes"]
fn half_a_million_assets_stay_within_the_memory_and_the_times_are_told() {
    let world = World::new();
    let began = Instant::now();
    make(&world);
    println!("a manifest of {ASSETS} assets and {SNAPSHOTS} snapshots, made in {:.0} s", began.elapsed().as_secs_f64());
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let password = world.at("password");
    fs::write(&password, PASSWORD).unwrap();
    let mut command = world.command(&["daemon", "--json", "--schedule", "@yearly", "--listen", &address, "--no-database"]);
    command.arg("--library").arg(&world.library).arg("--page-password-file").arg(&password);
    let mut running = Running::start(command);
    assert!(running.until(|_| TcpStream::connect(&address).is_ok()), "{}", running.said());
    let body = format!("password={}", PASSWORD.replace(' ', "+"));
    let login = format!(
        "POST /login HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (_, answer) = asked(&address, &login);
    let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap_or_else(|| panic!("{answer}")).split(';').next().unwrap().to_owned();
    println!("memory before the first view: {} MiB", memory_mib(running.pid()));
    let get = |path: &str| {
        let (took, answer) = asked(&address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: {cookie}\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {}", answer.lines().next().unwrap_or_default());
        (took, answer)
    };
    let (took, overview) = get("/");
    assert!(overview.contains("of 500,000") && overview.contains("How it grew"), "{overview}");
    println!("overview, the first time: {:.1} ms", took.as_secs_f64() * 1_000.0);
    let (took, snapshot) = get("/snapshots/latest");
    println!("the newest snapshot, right after it: {:.1} ms", took.as_secs_f64() * 1_000.0);
    let mut addresses = snapshot.split("/snapshots/").skip(1).filter_map(|rest| rest.split_once("/files?"));
    let newest = addresses.find_map(|(id, _)| id.parse::<RunId>().ok()).unwrap().to_string();
    let owner = id(u64::MAX);
    let folder = |newest: &str, path: &str| format!("/snapshots/{newest}/files?root=&path={}", path.replace('/', "%2F"));
    let leaf = paths(ASSETS - 4)[0].rsplit_once('/').unwrap().0.to_owned();
    let pages = [
        ("overview", "/".to_owned()),
        ("timeline", "/timeline".into()),
        ("snapshot", "/snapshots/latest".into()),
        ("folder of 2 folders, `` ", folder(&newest, "")),
        ("folder of 256 folders, `upload/<user>`", folder(&newest, &format!("upload/{owner}"))),
        ("folder of files, `upload/<user>/aa/bb`", folder(&newest, &leaf)),
        ("now", "/now".into()),
    ];
    for (name, path) in &pages {
        let mut times: Vec<_> = (0..LOOKS).map(|_| get(path).0).collect();
        times.sort();
        let ms = |at: usize| times[at].as_secs_f64() * 1_000.0;
        println!("{name}: median {:.1} ms, longest {:.1} ms of {LOOKS}", ms(LOOKS / 2), ms(LOOKS - 1));
    }
    println!("memory with the newest snapshot's folders: {} MiB", memory_mib(running.pid()));
    // An old one, and another: what is kept does not grow.
    let (_, timeline) = get("/timeline");
    let mut old: Vec<_> =
        timeline.split("href=\"/snapshots/").skip(1).filter_map(|rest| rest.split('"').next()).filter(|id| *id != newest && *id != "latest").collect();
    old.dedup();
    for old in &old[..3] {
        let (took, _) = get(&folder(old, "upload"));
        println!("a folder of an old snapshot, the first time: {:.1} ms; memory then: {} MiB", took.as_secs_f64() * 1_000.0, memory_mib(running.pid()));
    }
    let memory = memory_mib(running.pid());
    assert!(memory < MEMORY_MIB_MAX, "{memory} MiB");
}
