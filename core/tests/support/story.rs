//! A library that changes from run to run, and what each snapshot has to bring back: an in-memory record beside the repository.

use super::{World, contents, noise, restore_from};
use immich_backup_core::model::{RunId, Sha256};
use immich_backup_core::repository::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Repeats one test: its random numbers begin with this.
const SEED: &str = "IMMICH_BACKUP_TEST_SEED";

/// The seed that a person gave, to see a failure once more.
pub fn given_seed() -> Option<u64> {
    std::env::var(SEED).ok().map(|text| text.parse().unwrap())
}

/// A seed that no run of the tests had before.
pub fn fresh_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos() & u128::from(u32::MAX)).unwrap() << 16
}

/// How a person repeats what failed.
pub fn repeat_with(seed: u64) -> String {
    format!("{SEED}={seed}")
}

/// Random numbers that are the same for the same seed (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// Whether something happens that does so once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// The files of a library: path and content.
pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// What each run has seen.
pub struct Story {
    /// Where it happens.
    pub world: World,
    /// What the library holds now.
    tree: Tree,
    /// What it held when the run of that id was made.
    runs: BTreeMap<RunId, Tree>,
    /// How often it changed: names and contents of new files.
    changes: u64,
}

impl Story {
    /// Originals, files that Immich can make again, some of one content.
    pub fn begin(world: World) -> Self {
        for number in 0..12 {
            world.write(&format!("upload/u{}/photo-{number:02}.jpg", number % 3), &noise(number + 1, 300 + usize::try_from(number).unwrap() * 40));
        }
        for number in 0..8 {
            world.write(&format!("thumbs/u{}/thumb-{number:02}.webp", number % 2), &noise(100 + number, 150));
        }
        world.write("upload/u0/twin.jpg", &noise(1, 300));
        let tree = contents(&world.library);
        Self { world, tree, runs: BTreeMap::new(), changes: 0 }
    }

    /// Adds, moves, removes and changes files, as Immich and its users do: nothing that would trip a wire.
    pub fn change(&mut self, random: &mut Random) {
        self.changes += 1;
        let round = self.changes;
        for number in 0..1 + random.below(4) {
            let (folder, seed) = (random.below(4), random.next());
            let name =
                if random.once_in(3) { format!("thumbs/u{folder}/new-{round}-{number}.webp") } else { format!("upload/u{folder}/new-{round}-{number}.jpg") };
            self.world.write(&name, &noise(seed, 100 + random.below(3_000)));
        }
        if random.once_in(3) {
            // Content that is stored already, under a new name.
            let twin = random.pick(&self.tree.values().collect::<Vec<_>>()).to_vec();
            self.world.write(&format!("upload/u5/twin-{round}.jpg"), &twin);
        }
        for number in 0..random.below(4) {
            let paths: Vec<_> = contents(&self.world.library).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect();
            let path = random.pick(&paths);
            if random.once_in(2) {
                let extension = if path.starts_with("thumbs") { "webp" } else { "jpg" };
                let folder = if path.starts_with("thumbs") { "thumbs/u9" } else { "library/admin/2024" };
                self.world.rename(path, &format!("{folder}/moved-{round}-{number}.{extension}"));
            } else if path.starts_with("thumbs") && random.once_in(2) {
                self.world.remove(path);
            } else if path.starts_with("thumbs") {
                self.world.write(path, &noise(random.next(), 100 + random.below(500)));
            }
        }
        self.tree = contents(&self.world.library);
    }

    /// A file larger than what is sent in one request.
    pub fn add_film(&mut self, seed: u64) {
        self.world.write(&format!("upload/u1/film-{seed}.mp4"), &noise(seed, (16 << 20) + 4_321));
        self.tree = contents(&self.world.library);
    }

    /// What the library holds now.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What the snapshot of that run has to bring back.
    pub fn tree_of(&self, run: RunId) -> &Tree {
        self.runs.get(&run).unwrap_or_else(|| panic!("nobody began the run {run}"))
    }

    /// A run has begun, on the library as it is.
    pub fn note(&mut self, run: RunId) {
        self.runs.entry(run).or_insert_with(|| self.tree.clone());
    }

    /// Runs whose snapshots `session` knows and nobody has noted: they are of the library as it is.
    pub fn note_snapshots(&mut self, session: &Session) {
        for snapshot in session.manifest.snapshots().unwrap() {
            self.note(snapshot.id);
        }
    }

    /// Every snapshot that the log announces brings back what its run saw, byte for byte. Returns how many there are.
    pub async fn assert_all_restore(&self, session: &Session) -> usize {
        let snapshots = session.manifest.snapshots().unwrap();
        for snapshot in &snapshots {
            let to = self.world.beside("restored-to-compare");
            let report = restore_from(session, &snapshot.id.to_string(), &to).await.unwrap();
            assert_eq!((report.failed, report.damaged), (0, 0), "snapshot {}: {:?}", snapshot.id, report.failures);
            assert_same(&contents(&to), self.tree_of(snapshot.id), &format!("snapshot {}", snapshot.id));
            std::fs::remove_dir_all(&to).unwrap();
        }
        snapshots.len()
    }
}

/// Both have the same files with the same bytes; else it names those that differ.
pub fn assert_same(found: &Tree, expected: &Tree, what: &str) {
    let wrong: Vec<_> = expected.iter().filter(|(path, content)| found.get(*path) != Some(*content)).map(|(path, _)| path).collect();
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(wrong.is_empty() && more.is_empty(), "{what}: missing or different {wrong:?}, too many {more:?}");
}

/// Objects of a directory, to see that none is ever written again.
#[derive(Default)]
pub struct Objects(BTreeMap<PathBuf, (u64, i64, i64, u64, Sha256)>);

impl Objects {
    /// Looks at all objects below `repository`: those that were there before are the same files still, with the same times and bytes.
    pub fn look(&mut self, repository: &Path, may_go: &str) {
        let mut gone: BTreeSet<PathBuf> = self.0.keys().cloned().collect();
        if !repository.exists() {
            return;
        }
        for path in super::files(repository).into_iter().filter(|path| !path.starts_with("tmp")) {
            let whole = repository.join(&path);
            let found = whole.metadata().unwrap();
            let now = (found.ino(), found.mtime(), found.mtime_nsec(), found.len(), Sha256::of(&std::fs::read(&whole).unwrap()));
            gone.remove(&path);
            let before = self.0.entry(path.clone()).or_insert(now);
            assert_eq!(*before, now, "{} was written again", path.display());
        }
        for path in gone {
            assert!(!may_go.is_empty() && path.starts_with(may_go), "{} is gone", path.display());
            self.0.remove(&path);
        }
    }

    /// Contents of files that lie under more than one key.
    pub fn stored_twice(&self) -> Vec<PathBuf> {
        let mut met = BTreeSet::new();
        let content = |path: &&PathBuf| path.starts_with("library") || path.starts_with("versions");
        self.0.keys().filter(content).filter(|path| !met.insert(self.0[*path].4)).cloned().collect()
    }
}
