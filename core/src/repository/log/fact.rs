//! The facts that a log entry states, one a line.

use super::super::key::Key;
use crate::model::{Class, Digests, ExternalName, FilePath, FileTimes, Part, Root, RootPath, RunId, Sha1, Sha256};
use crate::verdict::Proof;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One fact. An unknown one was written by a newer program: it is passed over with a warning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fact", rename_all = "snake_case")]
pub enum Fact {
    /// A run began; the header says which.
    RunStarted(RunStarted),
    /// A path has this content now.
    Stored(StoredFact),
    /// A path is no longer in the library. Its object stays.
    Archived(PathFact),
    /// The header's run ended well: all that stands at this point is a snapshot.
    Snapshot(Box<SnapshotFact>),
    /// The header's run ended without a snapshot.
    RunEnded(Ended),
    /// A copy of the manifest exists.
    Manifest(ManifestCopy),
    /// A dump of the database is stored.
    Dump(DumpFact),
    /// A path has content in the library that contradicts what Immich recorded of it: kept beside what stands, which stays.
    Doubtful(StoredFact),
    /// A dump was restored into a throw-away database and checked.
    Drilled(Drilled),
    /// These objects are not needed any more and are being removed.
    Pruned(Pruned),
    /// The store was listed and compared.
    Listed(Listed),
    /// Objects were read back and compared.
    Read(Read),
    /// An object is missing or has wrong bytes.
    Damaged(Damaged),
    /// An object that was called damaged is whole after all.
    Sound(Sound),
    /// A shard of the header's run is about to store this, unless another one said so before.
    Claimed(Claimed),
    /// A shard leaves a path to the one that ends the run: it stood and was not seen any more, or its content is another shard's to store.
    Left(PathFact),
    /// A shard of the header's run has done its part.
    ShardDone(Box<ShardDone>),
    /// The log was repaired: it goes on from here, and what is named is not part of it.
    Epoch(Box<EpochFact>),
    /// All content that lay in one object lies in another from now on, for every snapshot.
    Relocated(Relocated),
    /// A fact of a kind that this program does not know.
    #[serde(other)]
    Unknown,
}

/// See [`Fact::RunStarted`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStarted {
    /// When, by the writer's clock.
    pub at: Timestamp,
    /// Name of the machine.
    pub host: String,
    /// What is backed up.
    pub roots: Vec<SourceRoot>,
    /// The run whose withheld snapshot this one was told to accept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<RunId>,
    /// Which of the run's shards begins, where there are several: each states this fact, and again when it is started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Part>,
}

/// A folder that a run backs up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRoot {
    /// The external library's name; absent for the media location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalName>,
    /// Which of the roots that are no libraries; absent for libraries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Beside>,
    /// Where it lies on that machine, in canonical text.
    pub path: String,
    /// For an external library: where Immich's server sees it, in canonical text, where that is elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_path: Option<String>,
}

/// See [`Fact::Stored`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFact {
    /// The path below its root, in canonical text.
    pub path: RootPath,
    /// The external library's name; absent for the media location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalName>,
    /// Which of the roots that are no libraries; absent for libraries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Beside>,
    /// Of the content.
    pub sha256: Sha256,
    /// Of the content.
    pub sha1: Sha1,
    /// Bytes.
    pub size: u64,
    /// Time of last modification, ns since 1970.
    pub mtime_ns: i64,
    /// Time of last change, ns since 1970; absent where it was too young to be trusted next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ctime_ns: Option<i64>,
    /// Permission bits.
    pub mode: u32,
    /// The object that holds the content; absent where it is the path's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The store's tag of the object, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etag: Option<String>,
}

impl StoredFact {
    /// The fact that `file` has this content, kept in the object `key`.
    #[must_use]
    pub fn new(file: &FilePath, digests: Digests, times: &FileTimes, trusted: bool, key: &Key, etag: Option<String>) -> Self {
        let is_home = super::super::key::home(file).is_some_and(|home| home == *key);
        Self {
            path: file.path.clone(),
            external: external(&file.root),
            root: Beside::of(&file.root),
            sha256: digests.sha256,
            sha1: digests.sha1,
            size: times.size_bytes,
            mtime_ns: times.mtime_ns,
            ctime_ns: trusted.then_some(times.ctime_ns),
            mode: times.mode,
            key: (!is_home).then(|| key.to_string()),
            etag,
        }
    }

    /// The file it is about.
    #[must_use]
    pub fn file(&self) -> FilePath {
        FilePath { root: root(self.external.as_ref(), self.root), path: self.path.clone() }
    }
}

/// A root that is no library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beside {
    /// [`Root::Config`].
    Config,
    /// [`Root::Postgres`].
    Postgres,
}

impl Beside {
    fn of(root: &Root) -> Option<Self> {
        match root {
            Root::Library | Root::External(_) => None,
            Root::Config => Some(Self::Config),
            Root::Postgres => Some(Self::Postgres),
        }
    }
}

impl SourceRoot {
    /// The root that lies at `path`, in canonical text; where Immich's server sees it at `server_path`.
    #[must_use]
    pub fn new(root: &Root, path: String, server_path: Option<String>) -> Self {
        Self { external: external(root), root: Beside::of(root), path, server_path }
    }
}

fn external(root: &Root) -> Option<ExternalName> {
    match root {
        Root::External(name) => Some(name.clone()),
        Root::Library | Root::Config | Root::Postgres => None,
    }
}

fn root(external: Option<&ExternalName>, beside: Option<Beside>) -> Root {
    match (beside, external) {
        (Some(Beside::Config), _) => Root::Config,
        (Some(Beside::Postgres), _) => Root::Postgres,
        (None, Some(name)) => Root::External(name.clone()),
        (None, None) => Root::Library,
    }
}

/// A fact about a path alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathFact {
    /// The path below its root, in canonical text.
    pub path: RootPath,
    /// The external library's name; absent for the media location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalName>,
    /// Which of the roots that are no libraries; absent for libraries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Beside>,
}

impl PathFact {
    /// A fact about `file`.
    #[must_use]
    pub fn new(file: &FilePath) -> Self {
        Self { path: file.path.clone(), external: external(&file.root), root: Beside::of(&file.root) }
    }

    /// The file it is about.
    #[must_use]
    pub fn file(&self) -> FilePath {
        FilePath { root: root(self.external.as_ref(), self.root), path: self.path.clone() }
    }
}

/// How many, and how large together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// How many.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts one more of this size.
    pub fn add(&mut self, size_bytes: u64) {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size_bytes);
    }

    /// Counts all that `other` has.
    pub fn merge(&mut self, other: Self) {
        self.files = self.files.saturating_add(other.files);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// Counts one less of this size.
    pub fn remove(&mut self, size_bytes: u64) {
        self.files = self.files.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(size_bytes);
    }
}

/// What a snapshot holds, by class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// What Immich cannot make again.
    pub original: Tally,
    /// What it can.
    pub derived: Tally,
    /// Its marker files.
    pub marker: Tally,
}

impl Totals {
    /// The tally of one class.
    pub fn of_mut(&mut self, class: Class) -> &mut Tally {
        match class {
            Class::Original => &mut self.original,
            Class::Derived => &mut self.derived,
            Class::Marker => &mut self.marker,
        }
    }

    /// The tally of one class.
    #[must_use]
    pub fn of(&self, class: Class) -> Tally {
        match class {
            Class::Original => self.original,
            Class::Derived => self.derived,
            Class::Marker => self.marker,
        }
    }

    /// All classes together.
    #[must_use]
    pub fn all(&self) -> Tally {
        // A hostile log may say anything.
        let mut all = self.original;
        all.merge(self.derived);
        all.merge(self.marker);
        all
    }
}

/// A file or folder that a run could not read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// As people see it.
    pub path: String,
    /// What was wrong.
    pub problem: String,
}

/// See [`Fact::Snapshot`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotFact {
    /// When its run began.
    pub started_at: Timestamp,
    /// When its walk had ended and it was committed.
    pub taken_at: Timestamp,
    /// A name given by the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Immich's version, where anything told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immich_version: Option<String>,
    /// What stands in it.
    pub totals: Totals,
    /// What its run sent.
    pub sent: Tally,
    /// How many paths its run archived.
    pub archived: u64,
    /// How many files and folders could not be read: what stands in the snapshot for them is older, or nothing.
    pub unread_count: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
    /// How many files had other content though size and times were the same: damaged at the source, probably. The good version stands.
    #[serde(default)]
    pub bit_rot_count: u64,
    /// The first of them, as people see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bit_rot: Vec<String>,
    /// Which unchanged files were read again to find that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehashed: Option<Part>,
    /// Whether derived files were left out.
    #[serde(default)]
    pub originals_only: bool,
    /// Patterns left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
    /// The dump that belongs to it; absent where no database was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump: Option<String>,
    /// What the dump names, compared with what is stored; absent where the dump is not Immich's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// How many of the assets that lie outside were left out on purpose.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub ignored: u64,
    /// How many files of the library contradict what Immich recorded, while the right content stands.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub doubtful_count: u64,
    /// The first of them, as people see them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubtful: Vec<String>,
}

impl SnapshotFact {
    /// Whether each asset that should be in it is proven: there is a proof, and nothing lacks but what was left out on purpose.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.is_complete_inside() && proof.outside <= self.ignored)
    }

    /// Whether its run had nothing to complain about.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        // A dump that is not Immich's proves nothing.
        let proven = self.dump.is_none() || self.is_proven();
        self.unread_count == 0 && self.bit_rot_count == 0 && self.doubtful_count == 0 && proven
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// See [`Fact::Dump`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DumpFact {
    /// Its object.
    pub key: String,
    /// Of the object as stored.
    pub sha256: Sha256,
    /// Of the object as stored, in bytes.
    pub size: u64,
    /// Of the text, in bytes.
    pub plain_size: u64,
    /// When `pg_dump` began.
    pub taken_at: Timestamp,
    /// Immich's version, where anything told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immich_version: Option<String>,
    /// Of the server that it was taken from, e.g. `15.20`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// Of the program that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_version: Option<String>,
    /// Rows in all tables together.
    pub rows: u64,
    /// It was taken of what a restore was about to replace.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub before_restore: bool,
    /// Tables whose rows could not be dumped, because the database is damaged there; Immich can make them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_data: Vec<String>,
}

/// See [`Fact::Drilled`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drilled {
    /// When it began.
    pub at: Timestamp,
    /// The snapshot.
    pub snapshot: RunId,
    /// How it ended.
    pub outcome: DrillOutcome,
    /// Tables whose rows were counted.
    pub tables: u64,
    /// Rows in them.
    pub rows: u64,
    /// Assets with a checksum in the restored database.
    pub assets: u64,
    /// Of these, assets whose bytes were fetched and compared.
    pub sampled: u64,
    /// Which part of the assets that was; the next drill takes the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// What was wrong, in words: the first of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// Tables that were loaded without their own column types, because the throw-away server lacks an extension.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub as_text: Vec<String>,
}

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DrillOutcome {
    /// All was as it should be.
    Passed,
    /// All that was checked was as it should be, but some tables were loaded as text.
    Partial,
    /// Something was not as it should be.
    Failed,
}

/// See [`Fact::Pruned`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// When.
    pub at: Timestamp,
    /// The objects. Written down before they are removed: what a prune that died left is removed by the next.
    pub keys: Vec<String>,
    /// By which rule, as people wrote it.
    pub rule: String,
    /// Everything that was to be removed by the log entries up to this one has been removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed_up_to: Option<u64>,
}

/// See [`Fact::Epoch`]. The entry before, on which the epoch builds, is the one that the header names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochFact {
    /// When.
    pub at: Timestamp,
    /// Name of the machine.
    pub host: String,
    /// The epoch of the entry before.
    pub base_epoch: u32,
    /// Why the log did not go on as it was, in words.
    pub reason: String,
    /// How many objects are not part of the log any more.
    pub rejected_count: u64,
    /// The first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// How many entries were known, or had to be there, and were not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub missing_count: u64,
}

/// An object that a repair found in the log and that is not part of it any more. It stays where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Its key.
    pub key: String,
    /// Its size, in bytes.
    pub size: u64,
    /// Of the bytes that were found; absent where they could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Why, in words.
    pub why: String,
}

/// See [`Fact::Relocated`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relocated {
    /// The object that is missing or damaged.
    pub key: String,
    /// The one that has its content.
    pub to: String,
    /// Of the content.
    pub sha256: Sha256,
    /// Of the content, in bytes.
    pub size: u64,
}

/// See [`Fact::Claimed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claimed {
    /// Which shard says so.
    pub shard: Part,
    /// The path that has it, below its root, in canonical text: its object may be there though no fact says so, if the shard died.
    pub path: RootPath,
    /// The external library's name; absent for the media location.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalName>,
    /// Which of the roots that are no libraries; absent for libraries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Beside>,
    /// What is claimed.
    #[serde(flatten)]
    pub what: Subject,
}

/// What a shard is about to store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// This content: the first 8 bytes of its SHA-256, big-endian, in 16 hexadecimal digits. More would make the log longer, and two contents of one
    /// beginning are stored all the same, only later.
    Content(Start),
    /// Any content of this size in bytes: a large file is hashed while it is sent.
    Size(u64),
}

/// The first 8 bytes of a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Start(pub u64);

impl From<&Sha256> for Start {
    fn from(whole: &Sha256) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = whole.0;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl From<Start> for String {
    fn from(start: Start) -> Self {
        format!("{:016x}", start.0)
    }
}

impl TryFrom<String> for Start {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&text, 16).map(Self)
    }
}

impl Claimed {
    /// The fact that `shard` is about to store `what`, as the content of `file`.
    #[must_use]
    pub fn new(shard: Part, file: &FilePath, what: Subject) -> Self {
        Self { shard, path: file.path.clone(), external: external(&file.root), root: Beside::of(&file.root), what }
    }

    /// The file it is about.
    #[must_use]
    pub fn file(&self) -> FilePath {
        FilePath { root: root(self.external.as_ref(), self.root), path: self.path.clone() }
    }
}

/// See [`Fact::ShardDone`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardDone {
    /// Which.
    pub shard: Part,
    /// What it did.
    pub counts: Counts,
    /// How many of the files that it saw are Immich's own.
    pub seen_of_immich: u64,
    /// New files and folders that went away while it looked at them: they may have moved to where another shard had been.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub slipped: u64,
    /// Which unchanged files it read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehashed: Option<Part>,
    /// The first files and folders that it could not read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
    /// The first files that are damaged at the source, probably.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bit_rot: Vec<PathFact>,
    /// The first files that contradict what Immich recorded of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubtful: Vec<PathFact>,
}

/// What a run did, or a shard of it. The one tally: screen, JSON and log all show these numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Files that belong to the backup and were seen.
    pub seen: Tally,
    /// Of these, files that needed nothing.
    pub unchanged: Tally,
    /// Files of which only times or permissions differed.
    pub touched: Tally,
    /// New paths whose content was new.
    pub new: Tally,
    /// Paths that have other content now.
    pub changed: Tally,
    /// New paths whose content the repository had (moved or copied files).
    pub known: Tally,
    /// Content that went to the store.
    pub sent: Tally,
    /// Content that was found in the store, sent by a run that died.
    pub adopted: Tally,
    /// Paths that are gone.
    pub archived: Tally,
    /// Symbolic links, sockets, pipes, devices.
    pub special: u64,
    /// Files and folders that could not be read.
    pub unread: u64,
    /// Files whose content differs though size and times do not.
    pub bit_rot: u64,
    /// Files whose content contradicts what Immich recorded, while the right content stands: stored beside it.
    pub doubtful: u64,
}

impl Counts {
    /// Adds what another shard did.
    pub fn merge(&mut self, other: &Self) {
        let tallies = [
            (&mut self.seen, other.seen),
            (&mut self.unchanged, other.unchanged),
            (&mut self.touched, other.touched),
            (&mut self.new, other.new),
            (&mut self.changed, other.changed),
            (&mut self.known, other.known),
            (&mut self.sent, other.sent),
            (&mut self.adopted, other.adopted),
            (&mut self.archived, other.archived),
        ];
        for (mine, theirs) in tallies {
            mine.merge(theirs);
        }
        let numbers =
            [(&mut self.special, other.special), (&mut self.unread, other.unread), (&mut self.bit_rot, other.bit_rot), (&mut self.doubtful, other.doubtful)];
        for (mine, theirs) in numbers {
            *mine = mine.saturating_add(theirs);
        }
    }
}

/// See [`Fact::RunEnded`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Where a tripwire withheld the snapshot: how many originals were gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
    /// And how many had other content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// Only this shard ended: the run goes on, and it may be started again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Part>,
}

/// How a run without a snapshot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A signal asked it to.
    Interrupted,
    /// A tripwire withheld the snapshot until a person accepts it.
    Withheld,
    /// An error stopped it.
    Failed,
}

/// See [`Fact::Manifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestCopy {
    /// Its object.
    pub key: String,
    /// Of the object as stored.
    pub sha256: Sha256,
    /// The last log entry that it knows.
    pub sequence: u64,
    /// Rows that it has.
    pub rows: u64,
}

/// See [`Fact::Listed`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// When the listing began: what it saw was there then.
    pub at: Timestamp,
    /// The last log entry whose objects were looked for.
    pub sequence: u64,
    /// Objects that were as they should be.
    pub objects: u64,
    /// Objects that were not.
    pub damaged: u64,
}

/// See [`Fact::Read`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// When reading began.
    pub at: Timestamp,
    /// The last log entry whose objects were read.
    pub sequence: u64,
    /// Which objects: those whose key is in this part.
    pub sample: Part,
    /// Objects whose bytes were right.
    pub objects: u64,
    /// Their size.
    pub bytes: u64,
    /// Objects that were not right.
    pub damaged: u64,
}

/// See [`Fact::Damaged`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    /// The object.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// See [`Fact::Sound`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sound {
    /// The object.
    pub key: String,
}
