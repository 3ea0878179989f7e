//! The real program on large libraries: its memory stays within the budget, a run with nothing to do costs little more than looking.
//!
//! Slow: `scripts/test --slow` runs them, and docs/reliability.md keeps their figures. `IMMICH_BACKUP_SOAK_DIR` names the folder to work in
//! (else the one for temporary files), `IMMICH_BACKUP_SOAK_FILES` and `IMMICH_BACKUP_SOAK_GIB` make them smaller or larger.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a test may"
)]

use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The bound on anonymous memory, of every run.
const ANONYMOUS_KIB_MAX: u64 = 256 << 10;
/// The bound on a copy of the manifest, for each row of it.
const COPY_BYTES_PER_FILE_MAX: u64 = 252;
/// The bound on a run with nothing to do, against a bare walk.
const WALKS_MAX: f64 = 3.0;
/// How often memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Files younger than this are not trusted to stay as they are.
const YOUNG: Duration = Duration::from_secs(4);

#[test]
#[ignore = "slow: makes a million files"]
fn a_million_small_files_stay_within_the_memory_bound() {
    let files = number("IMMICH_BACKUP_SOAK_FILES", 1_000_000);
    let place = Place::new();
    let made = Instant::now();
    small_files(&place.library(), files);
    println!("{files} files made in {:.1} s", made.elapsed().as_secs_f64());
    std::thread::sleep(YOUNG);

    let first = place.backup(&["--init", "--quiet"]);
    println!("first run:     {first}");
    let (copy_bytes, rows) = place.newest_copy();
    println!("manifest copy: {copy_bytes} bytes for {rows} rows, {:.1} a row", copy_bytes as f64 / rows as f64);

    let (mut runs, mut walks, mut memory) = (Vec::new(), Vec::new(), first.anonymous_kib);
    for round in 1..=3 {
        let (walk, threads) = fastest_walk(&place.library());
        let again = place.backup(&["--json"]);
        println!("repeated run {round}: {again}; a bare walk by {threads} threads {walk:.2} s");
        let summary = again.summary();
        assert_eq!((&summary["files"]["unchanged"], &summary["files"]["sent"]), (&files.into(), &0.into()), "{summary}");
        runs.push(again.seconds);
        walks.push(walk);
        memory = memory.max(again.anonymous_kib);
    }
    let ratio = median(&mut runs) / median(&mut walks);
    println!("a run with nothing to do takes {ratio:.2} bare walks; at most {:.1} MiB of anonymous memory", memory as f64 / 1_024.0);

    assert_eq!(rows, files);
    assert!(memory < ANONYMOUS_KIB_MAX, "{memory} KiB of anonymous memory");
    assert!(copy_bytes <= rows * COPY_BYTES_PER_FILE_MAX, "{copy_bytes} bytes for {rows} rows");
    assert!(ratio <= WALKS_MAX, "{ratio:.2} bare walks");
}

#[test]
#[ignore = "slow: makes a file of 10 GiB and four copies of it"]
fn a_file_of_10_gib_stays_within_the_memory_bound() {
    let gib = number("IMMICH_BACKUP_SOAK_GIB", 10);
    let place = Place::new();
    let folder = place.library().join("upload/user/aa/bb");
    let (film, moved) = (folder.join("film.mov"), folder.join("film moved.mov"));
    random_file(&film, gib << 30, 1);
    std::thread::sleep(YOUNG);

    let mut memory = 0;
    let mut step = |what: &str, measured: Measured| {
        println!("{what:<14} {measured}");
        memory = memory.max(measured.anonymous_kib);
        measured.summary()
    };
    let first = step("first run:", place.backup(&["--init", "--json"]));
    assert_eq!(first["bytes"]["sent"], gib << 30, "{first}");
    let again = step("repeated run:", place.backup(&["--json"]));
    assert_eq!((&again["files"]["unchanged"], &again["files"]["sent"]), (&1.into(), &0.into()), "{again}");
    fs::rename(&film, &moved).unwrap();
    std::thread::sleep(YOUNG);
    let after = step("moved:", place.backup(&["--json"]));
    assert_eq!((&after["files"]["known"], &after["files"]["sent"]), (&1.into(), &0.into()), "{after}");
    let target = place.path("restored");
    step("restore:", place.program(&["restore", "--json", "--to", target.to_str().unwrap()]));

    assert!(same_bytes(&moved, &target.join("upload/user/aa/bb/film moved.mov")));
    assert!(memory < ANONYMOUS_KIB_MAX, "{memory} KiB of anonymous memory");
}

#[test]
#[ignore = "slow: writes 4 GiB"]
fn many_workers_and_large_files_stay_within_the_memory_bound() {
    let place = Place::new();
    for n in 0..200 {
        random_file(&place.library().join(format!("upload/user/aa/{n:03}.raw")), 8_283_750, n);
    }
    for n in 0..6 {
        random_file(&place.library().join(format!("upload/user/bb/{n}.mov")), 64 << 20, 1_000 + n);
    }
    let target = place.path("restored");
    for (what, measured) in [
        ("first run:", place.backup(&["--init", "--json", "--workers", "64"])),
        ("rehash all:", place.backup(&["--json", "--workers", "64", "--rehash", "100%"])),
        ("read back:", place.program(&["verify", "--json", "--read-data", "--workers", "64"])),
        ("restore:", place.program(&["restore", "--json", "--workers", "64", "--to", target.to_str().unwrap()])),
    ] {
        println!("{what:<14} {measured}");
        assert_eq!(measured.summary()["outcome"], "done");
        assert!(measured.anonymous_kib < ANONYMOUS_KIB_MAX, "{} KiB of anonymous memory", measured.anonymous_kib);
    }
}

/// A library, a repository and a state folder of one test, alone on the machine among the tests of this file.
struct Place {
    folder: TempDir,
    _turn: File,
}

impl Place {
    fn new() -> Self {
        let base = std::env::var_os("IMMICH_BACKUP_SOAK_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let turn = File::create(base.join("immich-backup-soak.lock")).unwrap();
        turn.lock().unwrap();
        let place = Self { folder: tempfile::Builder::new().prefix("immich-backup-soak-").tempdir_in(base).unwrap(), _turn: turn };
        fs::create_dir(place.library()).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn library(&self) -> PathBuf {
        self.path("library")
    }

    fn backup(&self, arguments: &[&str]) -> Measured {
        let library = self.library();
        self.program(&[&["backup", "--library", library.to_str().unwrap()], arguments].concat())
    }

    /// Runs the real program and looks at its memory meanwhile. It has to end with 0.
    fn program(&self, arguments: &[&str]) -> Measured {
        let (output, errors) = (self.path("output"), self.path("errors"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_immich-backup"));
        command.args(arguments).arg("--repository").arg(self.path("repository")).arg("--state-dir").arg(self.path("state"));
        command.stdin(Stdio::null()).stdout(File::create(&output).unwrap()).stderr(File::create(&errors).unwrap());
        let started = Instant::now();
        let mut child = command.spawn().unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut measured = Measured { seconds: 0.0, anonymous_kib: 0, resident_kib: 0, output };
        let ended = loop {
            // Between its end and the look there is nothing to be read any more.
            let text = fs::read_to_string(&status).unwrap_or_default();
            measured.anonymous_kib = measured.anonymous_kib.max(kib(&text, "RssAnon:"));
            measured.resident_kib = measured.resident_kib.max(kib(&text, "VmHWM:"));
            if let Some(ended) = child.try_wait().unwrap() {
                break ended;
            }
            std::thread::sleep(LOOK_EVERY);
        };
        measured.seconds = started.elapsed().as_secs_f64();
        assert!(ended.success(), "{arguments:?}: {ended}\n{}", fs::read_to_string(&errors).unwrap());
        measured
    }

    /// Size of the newest manifest copy after `zstd -d`, and its rows, one for each version of a file.
    fn newest_copy(&self) -> (u64, u64) {
        let folder = fs::read_dir(self.path("repository/manifests")).unwrap();
        let newest = folder.map(|entry| entry.unwrap().path()).max().unwrap();
        let plain = self.path("copy.db");
        let unpacked = Command::new("zstd").args(["-d", "-q", "-f", "-o"]).args([&plain, &newest]).status().unwrap();
        assert!(unpacked.success());
        let rows: i64 = rusqlite::Connection::open(&plain).unwrap().query_row("SELECT count(*) FROM version", [], |row| row.get(0)).unwrap();
        (fs::metadata(&plain).unwrap().len(), rows.try_into().unwrap())
    }
}

struct Measured {
    seconds: f64,
    anonymous_kib: u64,
    resident_kib: u64,
    output: PathBuf,
}

impl Measured {
    /// The last line of `--json`.
    fn summary(&self) -> Value {
        serde_json::from_str(fs::read_to_string(&self.output).unwrap().lines().last().unwrap()).unwrap()
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |kib: u64| kib as f64 / 1_024.0;
        write!(f, "{:.2} s, {:.1} MiB anonymous, {:.1} MiB resident", self.seconds, mib(self.anonymous_kib), mib(self.resident_kib))
    }
}

fn kib(status: &str, field: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Splitmix64: the same files on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let next = self.next().to_le_bytes();
            piece.copy_from_slice(&next[..piece.len()]);
        }
    }

    fn uuid(&mut self) -> String {
        let (a, b) = (self.next(), self.next());
        format!("{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}", a >> 32, (a >> 16) & 0xFFFF, a & 0xFFF, b >> 52, b & 0xFFFF_FFFF_FFFF)
    }
}

/// An Immich library of three users: for each asset an original and two thumbnails, of 100 to 600 bytes.
fn small_files(library: &Path, files: u64) {
    const MAKERS: u64 = 2;
    let users = [1, 2, 3].map(|seed| Random(seed).uuid());
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            let users = &users;
            scope.spawn(move || {
                let mut random = Random(maker << 32 | 100);
                let mut content = [0; 600];
                let mut asset = String::new();
                for n in 0..files / MAKERS + u64::from(maker < files % MAKERS) {
                    if n % 3 == 0 {
                        asset = random.uuid();
                    }
                    let user = &users[usize::try_from(n / 3 % 3).unwrap()];
                    let (folder, end) = [("upload", ".jpg"), ("thumbs", "_preview.jpeg"), ("thumbs", "_thumbnail.webp")][usize::try_from(n % 3).unwrap()];
                    let folder = library.join(folder).join(user).join(&asset[..2]).join(&asset[2..4]);
                    let bytes = &mut content[..usize::try_from(100 + random.next() % 501).unwrap()];
                    random.fill(bytes);
                    let path = folder.join(format!("{asset}{end}"));
                    if fs::write(&path, &*bytes).is_err() {
                        fs::create_dir_all(&folder).unwrap();
                        fs::write(&path, bytes).unwrap();
                    }
                }
            });
        }
    });
}

/// A file without holes that no one can compress.
fn random_file(path: &Path, size: u64, seed: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let (mut random, mut left) = (Random(seed), size);
    let mut piece = vec![0; 1 << 20];
    while left > 0 {
        let count = usize::try_from(left.min(1 << 20)).unwrap();
        random.fill(&mut piece[..count]);
        file.write_all(&piece[..count]).unwrap();
        left -= count as u64;
    }
    file.into_inner().unwrap().sync_all().unwrap();
}

fn same_bytes(one: &Path, other: &Path) -> bool {
    Command::new("cmp").args([one, other]).status().unwrap().success()
}

/// The yardstick: a walk that only reads folders and stats files, with as many threads as are fastest here. Seconds and threads.
fn fastest_walk(root: &Path) -> (f64, usize) {
    let timed = |threads| {
        let started = Instant::now();
        let found = bare_walk(root, threads);
        assert!(found > 0);
        (started.elapsed().as_secs_f64(), threads)
    };
    [2, 3, 4].map(timed).into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// Reads all folders and stats all files below `root`; returns how many files there are.
fn bare_walk(root: &Path, threads: usize) -> u64 {
    let pending = Mutex::new((vec![root.to_owned()], 0_usize));
    let changed = Condvar::new();
    let next = || {
        let mut guard = pending.lock().unwrap();
        loop {
            if let Some(folder) = guard.0.pop() {
                guard.1 += 1;
                return Some(folder);
            }
            if guard.1 == 0 {
                return None;
            }
            guard = changed.wait(guard).unwrap();
        }
    };
    let work = || {
        let (mut files, mut bytes) = (0, 0);
        while let Some(folder) = next() {
            let mut folders = Vec::new();
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    // `fstatat` on the open folder: cheaper than by the whole path.
                    bytes += entry.metadata().unwrap().size();
                    files += 1;
                }
            }
            let mut guard = pending.lock().unwrap();
            guard.0.append(&mut folders);
            guard.1 -= 1;
            drop(guard);
            changed.notify_all();
        }
        std::hint::black_box(bytes);
        files
    };
    std::thread::scope(|scope| (0..threads).map(|_| scope.spawn(work)).collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).sum())
}
