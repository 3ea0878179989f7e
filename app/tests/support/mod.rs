//! What the end-to-end tests share: a world of its own for each test, the program run in it with a deadline, trees compared.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    reason = "a test may"
)]

use immich_backup_core::model::Sha256;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// No child runs longer.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The folders of a media location.
pub const FOLDERS: [&str; 6] = ["backups", "encoded-video", "library", "profile", "thumbs", "upload"];

/// How a child ended, and what it said.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
    pub took: Duration,
    shown: String,
}

impl Ran {
    /// This, if it ended with `code`; else the test fails and shows all that was said.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert!(self.code == code, "exit code {} instead of {code}\n{}", self.code, self.told());
        self
    }

    /// All that was said.
    pub fn told(&self) -> String {
        let tail = |text: &str| text.lines().rev().take(60).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("$ {}\n--- stdout\n{}\n--- stderr\n{}", self.shown, tail(&self.out), tail(&self.err))
    }

    /// This, if `text` was said somewhere.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.out.contains(text) || self.err.contains(text), "does not say `{text}`\n{}", self.told());
        self
    }

    /// Each line of standard output as JSON.
    #[track_caller]
    pub fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}\n{}", self.told()))).collect()
    }

    /// Events of one type.
    #[track_caller]
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.lines().into_iter().filter(|line| line["type"] == kind).collect()
    }

    /// The last line of standard output.
    #[track_caller]
    pub fn summary(&self) -> Value {
        let last = self.out.lines().last().unwrap_or_else(|| panic!("no output\n{}", self.told()));
        let summary: Value = serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}\n{}", self.told()));
        assert_eq!(summary["type"], "summary", "{}", self.told());
        assert_eq!(summary["exit_code"], self.code, "{}", self.told());
        summary
    }

    /// A number in the summary, e.g. `/files/sent`.
    #[track_caller]
    pub fn number(&self, pointer: &str) -> u64 {
        let summary = self.summary();
        summary.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {pointer} in {summary}"))
    }

    /// The id of the snapshot that the summary names.
    #[track_caller]
    pub fn snapshot(&self) -> String {
        self.summary()["snapshot"].as_str().unwrap_or_else(|| panic!("no snapshot\n{}", self.told())).to_owned()
    }
}

/// A child that runs; killed when dropped.
pub struct Running {
    child: Child,
    folder: TempDir,
    began: Instant,
    shown: String,
}

impl Running {
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let shown = format!("{command:?}");
        let (out, err) = (File::create(folder.path().join("out")).unwrap(), File::create(folder.path().join("err")).unwrap());
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        Self { child, folder, began: Instant::now(), shown }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = rustix::process::Pid::from_child(&self.child);
        let signal = match name {
            "INT" => rustix::process::Signal::INT,
            "TERM" => rustix::process::Signal::TERM,
            "STOP" => rustix::process::Signal::STOP,
            "CONT" => rustix::process::Signal::CONT,
            _ => rustix::process::Signal::KILL,
        };
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Sends a signal, though it may have ended meanwhile.
    pub fn signal_quietly(&mut self, name: &str) {
        if !self.is_over() {
            self.signal(name);
        }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        ["out", "err"].map(|name| String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap()).into_owned()).join("\n")
    }

    /// Waits until `what` holds; `false` where the child ended first.
    #[track_caller]
    pub fn until(&mut self, mut what: impl FnMut(&Self) -> bool) -> bool {
        loop {
            if what(self) {
                return true;
            }
            if self.is_over() {
                return what(self);
            }
            assert!(self.began.elapsed() < DEADLINE, "waited too long for {}\n{}", self.shown, self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for its end, at most [`DEADLINE`].
    #[track_caller]
    pub fn wait(self) -> Ran {
        self.wait_within(DEADLINE)
    }

    /// Waits for its end, at most so long.
    #[track_caller]
    pub fn wait_within(mut self, limit: Duration) -> Ran {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.began.elapsed() > limit {
                let said = self.said();
                drop(self.child.kill());
                panic!("HANGS after {limit:?}: {}\n{said}", self.shown);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let read = |name: &str| String::from_utf8_lossy(&fs::read(self.folder.path().join(name)).unwrap()).into_owned();
        Ran { code: status.code().unwrap_or(-1), out: read("out"), err: read("err"), took: self.began.elapsed(), shown: self.shown.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Runs a program that is not ours; it has to succeed.
#[track_caller]
pub fn tool(program: &str, arguments: &[impl AsRef<OsStr>]) -> Ran {
    let mut command = Command::new(program);
    command.args(arguments);
    Running::start(command).wait().ended(0)
}

/// The compiled program, in an environment that says nothing.
pub fn program() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_immich-backup")))
}

/// `command` in an environment that says nothing.
pub fn clean(mut command: Command) -> Command {
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", "/nonexistent").current_dir("/");
    if let Some(folder) = std::env::var_os("TMPDIR") {
        command.env("TMPDIR", folder);
    }
    command
}

/// A library, a repository, a state folder: a world for one test.
pub struct World {
    folder: TempDir,
    /// Where the library is.
    pub library: PathBuf,
    /// Where the repository is.
    pub repository: PathBuf,
    /// Where state is kept.
    pub state: PathBuf,
    /// What the program finds in its environment, besides nothing.
    pub environment: Vec<(String, String)>,
}

impl World {
    /// A world with an empty media location: six folders, six markers.
    pub fn new() -> Self {
        let world = Self::bare();
        world.markers();
        world
    }

    /// Makes the six folders and their markers.
    pub fn markers(&self) {
        for (number, folder) in FOLDERS.iter().enumerate() {
            write(&self.library.join(folder).join(".immich"), format!("178000000000{number}").as_bytes(), 1_500_000_000 + number as i64, 111_111_111, 0o644);
        }
    }

    /// A world with nothing in it.
    pub fn bare() -> Self {
        Self::at_folder(tempfile::tempdir().unwrap())
    }

    /// The same, in memory where the system has a folder for that: for tests of many small worlds, which would wait for a disk most of the time.
    pub fn in_memory() -> Self {
        Self::at_folder(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    fn at_folder(folder: TempDir) -> Self {
        let at = |name: &str| folder.path().join(name);
        let world = Self { library: at("library"), repository: at("repository"), state: at("state"), environment: Vec::new(), folder };
        fs::create_dir(&world.library).unwrap();
        world
    }

    /// A path beside the library.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the library, with contents that its path and `seed` decide, and a time in the past.
    pub fn file(&self, path: &str, size: usize, seed: u64) -> PathBuf {
        let whole = self.library.join(path);
        let mut random = Random::new(seed ^ Random::seed_of(path));
        let ns = random.below(1_000_000_000) as i64;
        write(&whole, &random.bytes(size), 1_400_000_000 + random.below(300_000_000) as i64, ns, 0o644);
        whole
    }

    /// `count` small pictures in `upload/`.
    pub fn pictures(&self, count: usize) {
        for number in 0..count {
            self.file(&format!("upload/u{}/{:02x}/{number:05}.jpg", number % 3, number % 16), 100 + number % 3_000, 0);
        }
    }

    /// The program with `arguments`, this repository and this state folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.args(arguments).arg("--repository").arg(&self.repository).arg("--state-dir").arg(&self.state);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Ran {
        Running::start(self.command(arguments)).wait()
    }

    pub fn backup_command(&self, more: &[&str]) -> Command {
        let mut command = self.command(&["backup", "--init", "--json"]);
        command.arg("--library").arg(&self.library).args(more);
        command
    }

    /// `backup --init --json --library …`.
    #[track_caller]
    pub fn backup(&self, more: &[&str]) -> Ran {
        Running::start(self.backup_command(more)).wait()
    }

    pub fn restore_command(&self, to: &Path, more: &[&str]) -> Command {
        let mut command = self.command(&["restore", "--json"]);
        command.arg("--to").arg(to).args(more);
        command
    }

    /// `restore --json --to …`.
    #[track_caller]
    pub fn restore(&self, to: &Path, more: &[&str]) -> Ran {
        Running::start(self.restore_command(to, more)).wait()
    }

    /// The tree of the library, without what is never backed up.
    pub fn tree(&self) -> Tree {
        Tree::of(&self.library).without("backups")
    }

    /// Restores `snapshot` to a new folder and compares.
    #[track_caller]
    pub fn assert_restores(&self, snapshot: &str, expected: &Tree) {
        let to = self.at("restored-to-compare");
        self.restore(&to, &["--snapshot", snapshot]).ended(0);
        Tree::of(&to).without("backups").assert_is(expected, &format!("snapshot {snapshot}"));
        remove(&to);
    }

    /// The state folder of this repository.
    pub fn own_state(&self) -> PathBuf {
        let identity: Value = serde_json::from_slice(&fs::read(self.repository.join("format.json")).unwrap()).unwrap();
        self.state.join(identity["repository"].as_str().unwrap())
    }

    /// Log entries there are.
    pub fn entries(&self) -> u64 {
        fs::read_dir(self.repository.join("log")).map_or(0, |entries| entries.count() as u64)
    }

    pub fn entry(&self, sequence: u64) -> PathBuf {
        self.repository.join(format!("log/{sequence:010}.ndjson.zst"))
    }

    /// All ids of snapshots, oldest first.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<String> {
        let ran = self.run(&["snapshots", "--json"]).ended(0);
        ran.events("snapshot").iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect()
    }

    /// What `sqlite3` answers about the local manifest.
    #[track_caller]
    pub fn ask(&self, sql: &str) -> String {
        let database = self.own_state().join("manifest.db");
        tool("sqlite3", &["-batch".as_ref(), database.as_os_str(), OsStr::new(&format!("\n{sql}"))]).out.trim().to_owned()
    }
}

/// Makes a file with these bytes, time and permissions, and the folders above it.
pub fn write(path: &Path, bytes: &[u8], seconds: i64, nanoseconds: i64, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set_mtime(path, seconds, nanoseconds);
}

pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    utimensat(CWD, path, &Timestamps { last_access: time, last_modification: time }, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Removes a tree, however its permissions are.
pub fn remove(path: &Path) {
    tool("rm", &["-rf".as_ref(), path.as_os_str()]);
}

/// Copies a tree with its times.
pub fn copy(from: &Path, to: &Path) {
    tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// Waits until what was written before is old enough for its times to be trusted.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(3_200));
}

/// One file of a tree.
#[derive(Clone, PartialEq, Eq)]
pub struct Leaf {
    pub sha256: Sha256,
    pub size: u64,
    pub mtime_ns: i128,
    pub mode: u32,
    /// What it is, where it is no regular file.
    pub kind: &'static str,
    pub inode: u64,
}

/// All files below a folder, by raw names.
#[derive(Clone, Default)]
pub struct Tree(pub BTreeMap<Vec<u8>, Leaf>);

fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

impl Tree {
    pub fn of(root: &Path) -> Self {
        let mut tree = Self::default();
        tree.add(root, Vec::new());
        tree
    }

    fn add(&mut self, folder: &Path, prefix: Vec<u8>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let entry = entry.unwrap();
            let mut name = prefix.clone();
            name.extend_from_slice(entry.file_name().as_bytes());
            let found = entry.path().symlink_metadata().unwrap();
            if found.is_dir() {
                name.push(b'/');
                self.add(&entry.path(), name);
                continue;
            }
            let (kind, sha256) = if found.is_file() { ("", Sha256::of(&fs::read(entry.path()).unwrap())) } else { ("special", Sha256::of(b"")) };
            let mtime_ns = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
            let leaf = Leaf { sha256, size: found.len(), mtime_ns, mode: found.mode() & 0o777, kind, inode: found.ino() };
            self.0.insert(name, leaf);
        }
    }

    /// Without what is below `folder`.
    pub fn without(mut self, folder: &str) -> Self {
        let start = format!("{folder}/");
        self.0.retain(|path, _| !path.starts_with(start.as_bytes()));
        self
    }

    /// Only what is below `folder`, as seen from there.
    pub fn below(&self, folder: &str) -> Self {
        let start = format!("{folder}/");
        Self(self.0.iter().filter_map(|(path, leaf)| Some((path.strip_prefix(start.as_bytes())?.to_vec(), leaf.clone()))).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Names, contents, mtimes to the nanosecond, permissions.
    #[track_caller]
    pub fn assert_is(&self, expected: &Self, what: &str) {
        self.compare(expected, what, true);
    }

    /// Names, contents, mtimes to the nanosecond.
    #[track_caller]
    pub fn assert_is_but_for_modes(&self, expected: &Self, what: &str) {
        self.compare(expected, what, false);
    }

    #[track_caller]
    fn compare(&self, expected: &Self, what: &str, modes: bool) {
        let mut wrong = Vec::new();
        for (path, leaf) in &expected.0 {
            match self.0.get(path) {
                None => wrong.push(format!("missing: {}", shown(path))),
                Some(found) if found.sha256 != leaf.sha256 || found.size != leaf.size || found.kind != leaf.kind => {
                    wrong.push(format!("other content ({} instead of {} bytes): {}", found.size, leaf.size, shown(path)));
                }
                Some(found) if found.mtime_ns != leaf.mtime_ns => wrong.push(format!("mtime {} instead of {}: {}", found.mtime_ns, leaf.mtime_ns, shown(path))),
                Some(found) if modes && found.mode != leaf.mode => wrong.push(format!("mode {:o} instead of {:o}: {}", found.mode, leaf.mode, shown(path))),
                Some(_) => {}
            }
        }
        wrong.extend(self.0.keys().filter(|path| !expected.0.contains_key(*path)).map(|path| format!("not expected: {}", shown(path))));
        let first = wrong.iter().take(15).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(wrong.is_empty(), "{what}: {} of {} files are wrong\n  {first}", wrong.len(), expected.0.len());
    }
}

/// Every object of a repository as it was when first seen: it may never change.
#[derive(Default)]
pub struct Objects(BTreeMap<PathBuf, (u64, i128, u64, Sha256)>);

impl Objects {
    /// Looks at every object. Those seen before must be the same file with the same time, size and bytes; `read` asks for the bytes. Returns
    /// how many are new.
    #[track_caller]
    pub fn look(&mut self, repository: &Path, read: bool) -> usize {
        let mut met = 0;
        let mut new = 0;
        let mut folders = vec![repository.to_owned()];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else { continue };
            for path in entries.map(|entry| entry.unwrap().path()) {
                if path == repository.join("tmp") {
                    continue;
                }
                let found = path.symlink_metadata().unwrap();
                if found.is_dir() {
                    folders.push(path);
                    continue;
                }
                let mtime = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
                let key = path.strip_prefix(repository).unwrap().to_owned();
                match self.0.get(&key) {
                    None => {
                        new += 1;
                        self.0.insert(key, (found.ino(), mtime, found.len(), Sha256::of(&fs::read(&path).unwrap())));
                    }
                    Some((inode, time, size, sha256)) => {
                        met += 1;
                        assert_eq!((*inode, *time, *size), (found.ino(), mtime, found.len()), "{} was written again", key.display());
                        assert!(!read || *sha256 == Sha256::of(&fs::read(&path).unwrap()), "{} has other bytes", key.display());
                    }
                }
            }
        }
        assert_eq!(met + new, self.0.len(), "an object is gone");
        new
    }

    /// Objects whose keys begin so.
    pub fn count(&self, start: &str) -> usize {
        self.0.keys().filter(|key| key.starts_with(start)).count()
    }

    /// Objects that hold content of files.
    pub fn contents(&self) -> Vec<Sha256> {
        let content = |key: &&PathBuf| ["library", "versions", "external"].iter().any(|start| key.starts_with(start));
        self.0.iter().filter(|(key, _)| content(key)).map(|(_, (.., sha256))| *sha256).collect()
    }
}

/// Random numbers that are the same each time (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another seed for each run of the test, said on standard error; `IMMICH_BACKUP_TEST_SEED` gives it back.
    pub fn fresh() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("IMMICH_BACKUP_TEST_SEED").map_or(now, |text| text.parse().unwrap());
        eprintln!("IMMICH_BACKUP_TEST_SEED={seed}");
        Self(seed)
    }

    fn seed_of(text: &str) -> u64 {
        text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }
}

pub use immich_backup_testbed::fixture::folder as fixture;

/// Copies a fixture into the world's library, each file with a time of its own in the past.
pub fn take_fixture(world: &World, name: &str) -> bool {
    let Some(fixture) = fixture(name) else { return false };
    fs::remove_dir_all(&world.library).unwrap();
    tool("cp", &["-r".as_ref(), fixture.as_os_str(), world.library.as_os_str()]);
    spread_times(&world.library, &mut Random::new(7));
    true
}

fn spread_times(folder: &Path, random: &mut Random) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            spread_times(&path, random);
        } else {
            set_mtime(&path, 1_300_000_000 + random.below(400_000_000) as i64, random.below(1_000_000_000) as i64);
            let mode = *random.pick(&["0644", "0600", "0664", "0755", "0444"]);
            fs::set_permissions(&path, fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap())).unwrap();
        }
    }
}

/// A script that restores without this program.
pub fn by_hand(script: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/by-hand").join(script)
}

/// Whether this test may mount; says so loudly where it may not.
pub fn may_mount(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let probe = tempfile::tempdir().unwrap();
    let mounted = root
        && Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(probe.path()).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
    if mounted {
        tool("umount", &[probe.path()]);
    } else {
        eprintln!("NOT TESTED: {test} needs root and the right to mount");
    }
    mounted
}

/// Something mounted; unmounted when dropped.
pub struct Mount(pub PathBuf);

impl Mount {
    /// A tmpfs of this size.
    pub fn tmpfs(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        tool("mount", &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), OsStr::new(&format!("size={size},mode=755")), "tmpfs".as_ref(), at.as_os_str()]);
        Self(at.to_owned())
    }

    /// An image of a file system.
    pub fn image(image: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        tool("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), at.as_os_str()]);
        Self(at.to_owned())
    }

    pub fn remount(&self, options: &str) {
        tool("mount", &["-o".as_ref(), OsStr::new(&format!("remount,{options}")), self.0.as_os_str()]);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).stderr(Stdio::null()).status());
    }
}

/// Whether strace can be used; says so loudly where it cannot.
fn may_trace() -> bool {
    let usable = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success());
    if !usable {
        eprintln!("NOT TESTED: strace cannot be used here");
    }
    usable
}

/// A backup during which `change` is made at least once between any two times that the file at `path` is read from: after each read the program is
/// stopped, until `change` was made. `None` where strace cannot be used.
pub fn changed_while_read(world: &World, path: &Path, mut change: impl FnMut()) -> Option<Ran> {
    if !may_trace() {
        return None;
    }
    let mut command = clean(Command::new("strace"));
    // -D: the program is our child, and strace beside it.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=read", "-e", "inject=read:signal=STOP", "-P"]).arg(path);
    let program = world.backup_command(&[]);
    command.arg(program.get_program()).args(program.get_args()).envs(world.environment.iter().map(|(name, value)| (name, value)));
    let mut running = Running::start(command);
    while !running.is_over() && running.began.elapsed() < DEADLINE {
        change();
        running.signal("CONT");
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(running.wait())
}

/// Files of the library that `backup` opens, seen by strace. `None` where strace cannot be used.
pub fn opened(world: &World) -> Option<(usize, Ran)> {
    let trace = world.at("trace");
    if !may_trace() {
        return None;
    }
    let mut command = clean(Command::new("strace"));
    command.args(["-f", "-qq", "-e", "trace=open,openat,openat2,creat", "-o"]).arg(&trace);
    let program = world.backup_command(&[]);
    command.arg(program.get_program()).args(program.get_args()).envs(world.environment.iter().map(|(name, value)| (name, value)));
    let ran = Running::start(command).wait();
    let count = fs::read_to_string(&trace).unwrap().lines().filter(|line| line.contains(".jpg") || line.contains(".immich\"")).count();
    Some((count, ran))
}

/// Adds, changes, moves, copies, touches and deletes thumbnails.
pub fn change(world: &World, random: &mut Random, round: usize) {
    let paths: Vec<Vec<u8>> = world.tree().0.keys().filter(|path| path.starts_with(b"thumbs/u")).cloned().collect();
    for number in 0..30 {
        let path = random.pick(&paths).clone();
        let whole = world.library.join(raw(&path));
        let other = world.library.join(format!("thumbs/u{}/{round}-{number}.webp", random.below(4)));
        fs::create_dir_all(other.parent().unwrap()).unwrap();
        let gone = !whole.exists();
        match random.below(8) {
            0 | 1 => drop(world.file(&format!("thumbs/u{}/new-{round}-{number}.webp", random.below(4)), random.below(5_000), random.next())),
            _ if gone => {}
            2 => {
                let length = random.below(4_000);
                write(&whole, &random.bytes(length), 1_500_000_000 + random.below(1_000_000) as i64, 1, 0o644);
            }
            3 => fs::remove_file(&whole).unwrap(),
            4 => fs::rename(&whole, &other).unwrap(),
            5 => drop(fs::copy(&whole, &other).unwrap()),
            6 => set_mtime(&whole, 1_550_000_000 + random.below(1_000_000) as i64, 9),
            _ => fs::set_permissions(&whole, fs::Permissions::from_mode(*random.pick(&[0o600, 0o640, 0o755]))).unwrap(),
        }
    }
    // A file that comes back to what it held before: a, b, a.
    write(&world.library.join("thumbs/u0/flip.webp"), if round.is_multiple_of(2) { b"even" } else { b"odd!" }, 1_500_000_000 + round as i64, 0, 0o644);
}

/// New content, each under two names: of a pair, a run that dies may have stored the one, while the next comes to the other first.
pub fn twins(world: &World, pairs: usize, round: usize) {
    for number in 0..pairs {
        let first = world.file(&format!("thumbs/u{}/twin-{round}-{number}.webp", number % 4), 300 + number, round as u64);
        let second = world.library.join(format!("thumbs/u{}/again-{round}-{number}.webp", (number + 1) % 4));
        fs::copy(&first, &second).unwrap();
    }
}

/// Writes a log entry by hand, as docs/format.md tells: header and facts, and the frame with the checksum. Returns its number.
pub fn forge_entry(world: &World, facts: &[&str]) -> u64 {
    let sequence = world.entries() + 1;
    let previous = Sha256::of(&fs::read(world.entry(sequence - 1)).unwrap());
    let header = format!(
        r#"{{"format":1,"sequence":{sequence},"previous_sha256":"{previous}","run":"6fa459ea-ee8a-4ca4-894e-db77e160355e","written_at":"2026-01-15T03:00:00Z","writer":"16fd2706-8baf-433b-82eb-8c7fada847da"}}"#
    );
    let lines = std::iter::once(header.as_str()).chain(facts.iter().copied()).map(|line| format!("{line}\n")).collect::<String>();
    write_entry(&world.entry(sequence), lines.as_bytes());
    sequence
}

/// Compresses and seals the lines of a log entry.
pub fn write_entry(path: &Path, lines: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let (plain, packed) = (folder.path().join("e"), folder.path().join("e.zst"));
    fs::write(&plain, lines).unwrap();
    tool("zstd", &["-q".as_ref(), plain.as_os_str(), "-o".as_ref(), packed.as_os_str()]);
    let mut bytes = fs::read(&packed).unwrap();
    let checksum = Sha256::of(&bytes);
    bytes.extend_from_slice(&[0x5D, 0x2A, 0x4D, 0x18, 32, 0, 0, 0]);
    bytes.extend_from_slice(&checksum.0);
    drop(fs::remove_file(path));
    fs::write(path, bytes).unwrap();
}

/// A name of raw bytes.
pub fn raw(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}
