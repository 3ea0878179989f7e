//! What happened, in the past tense. Bars, log lines, JSON lines and metrics all read this one stream.

use crate::model::{Class, FilePath, RepositoryId, RunId, WriterId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::sync::Mutex;

/// The stages that a person waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Reading the log into the local manifest.
    Refresh,
    /// Running `pg_dump`.
    Dump,
    /// Sending the dump.
    SendDump,
    /// Walking the library and storing what is new.
    Store,
    /// Looking again for what was not seen.
    LookAgain,
    /// Listing the store.
    List,
    /// Reading objects back.
    ReadBack,
    /// Comparing what the dump names with what is stored.
    Prove,
    /// Reading a stored dump, to verify it or to list what it names.
    ReadDump,
    /// Loading a dump into a database.
    Load,
    /// Counting the rows of a database.
    CountRows,
    /// Comparing a restore's target with the plan.
    Compare,
    /// Writing restored files.
    Write,
    /// Writing a copy of the manifest.
    CopyManifest,
    /// Removing objects that nothing needs any more.
    Remove,
}

/// Why a file is stored though nobody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stored {
    /// Bytes were sent under a new key.
    Sent,
    /// The bytes were found in the store: an earlier run had sent them and died before saying so.
    Adopted,
    /// The repository had this content already (a moved or copied file).
    Known,
    /// Only times or permissions differ from what the manifest knew.
    Touched,
}

/// One thing that happened. What one process wrote as JSON another can read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// A stage began. `total_bytes` and `total_files` are known for some stages only.
    PhaseStarted {
        /// Which stage.
        phase: Phase,
        /// Files or objects to come.
        total_files: Option<u64>,
        /// Bytes to come.
        total_bytes: Option<u64>,
    },
    /// A stage ended.
    PhaseFinished {
        /// Which stage.
        phase: Phase,
    },
    /// A run began.
    RunStarted {
        /// The run.
        run: RunId,
        /// Where it writes.
        repository: RepositoryId,
    },
    /// Files were seen by the walk (many at a time): counted for the bars.
    FilesSeen {
        /// How many since the last such event.
        files: u64,
        /// Their size.
        bytes: u64,
        /// How many of them need nothing.
        unchanged_files: u64,
        /// Size of those.
        unchanged_bytes: u64,
    },
    /// What there is was counted, ahead of the walk that stores it: so much is to come.
    Counted {
        /// Files.
        files: u64,
        /// Their size.
        bytes: u64,
    },
    /// The walk has seen everything: the totals of [`Phase::Store`] are known now.
    WalkFinished {
        /// Files seen.
        files: u64,
        /// Their size.
        bytes: u64,
    },
    /// A service of the Compose project was stopped.
    ServiceStopped {
        /// Its name.
        service: String,
        /// How long that took.
        elapsed_ms: u64,
    },
    /// A service of the Compose project was started again.
    ServiceStarted {
        /// Its name.
        service: String,
    },
    /// Text of the database's dump was read, from `pg_dump` or from the repository.
    DumpRead {
        /// How many bytes.
        bytes: u64,
    },
    /// Text of a dump was given to the database.
    DumpLoaded {
        /// How many bytes.
        bytes: u64,
    },
    /// What has to be sent is being copied, while Immich is stopped. A dump may be taken at the same time.
    StagingStarted {
        /// Files to come, about.
        files: u64,
        /// Their size.
        bytes: u64,
    },
    /// Bytes were copied.
    BytesStaged {
        /// How many.
        bytes: u64,
    },
    /// All that has to be sent is copied.
    StagingFinished {
        /// How many files.
        files: u64,
        /// Their size.
        bytes: u64,
    },
    /// Immich was stopped and is up again, and healthy.
    ImmichUp {
        /// For how long it was down.
        downtime_ms: u64,
    },
    /// A dump is in the repository now.
    DumpStored {
        /// Its key.
        key: String,
        /// Its size as stored.
        size_bytes: u64,
    },
    /// A file that contradicts what Immich recorded was stored beside the good one, which stays.
    FileDoubtful {
        /// The file.
        path: FilePath,
    },
    /// Bytes of a file were read, hashed and handed to the store.
    BytesSent {
        /// How many.
        bytes: u64,
    },
    /// A file is in the repository now.
    FileStored {
        /// The file.
        path: FilePath,
        /// What was done for it.
        how: Stored,
        /// Its size.
        size_bytes: u64,
        /// Whether Immich could make it again.
        class: Class,
        /// Whether the path held other content before.
        changed: bool,
    },
    /// A file that the last snapshot had is no longer there; its object stays.
    FileArchived {
        /// The file.
        path: FilePath,
    },
    /// A file or folder could not be read; what the repository has of it stays as it was.
    FileFailed {
        /// The file or folder; empty for the root itself.
        path: String,
        /// What was wrong.
        problem: String,
    },
    /// A symbolic link, socket, pipe or device was passed over.
    SpecialSkipped {
        /// Where it is.
        path: FilePath,
        /// What it is.
        kind: Cow<'static, str>,
    },
    /// A file's content differs although size and times do not: damaged at the source, probably.
    BitRotSuspected {
        /// The file.
        path: FilePath,
    },
    /// An object that the manifest names is not in the store, or not whole; its content is sent again.
    ObjectLost {
        /// The key.
        key: String,
    },
    /// An entry was added to the log.
    Checkpoint {
        /// Its number.
        sequence: u64,
        /// How many facts it has.
        facts: u64,
    },
    /// Another writer's entry was found and taken in.
    EntryTaken {
        /// Its number.
        sequence: u64,
        /// Its writer.
        writer: WriterId,
    },
    /// Log entries were read into the manifest.
    EntriesApplied {
        /// The last one's number.
        sequence: u64,
        /// The newest one's number.
        head: u64,
    },
    /// Another run has the repository; this one waits.
    Waiting {
        /// For whom, and how long at most.
        what: String,
    },
    /// An unfinished run was found dead, and this one goes on from there.
    DeadRunFound {
        /// The dead run.
        run: RunId,
    },
    /// An object was seen in a listing or read back.
    ObjectChecked {
        /// Its size.
        size_bytes: u64,
    },
    /// An object is missing or damaged.
    ObjectDamaged {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A file was restored.
    FileRestored {
        /// The file.
        path: FilePath,
        /// Its size.
        size_bytes: u64,
    },
    /// A copy of the manifest was stored.
    ManifestCopied {
        /// Its key.
        key: String,
        /// Its size before compression.
        size_bytes: u64,
    },
    /// An object that nothing needs any more is gone.
    ObjectRemoved {
        /// The key.
        key: String,
    },
    /// A request to the store failed and is tried again after a wait.
    Retrying {
        /// What is being done.
        action: Cow<'static, str>,
        /// To which object.
        key: String,
        /// Which retry this will be, from 1.
        retry: u32,
        /// How many there are at most.
        of: u32,
        /// The wait before it, in ms.
        wait_ms: u64,
        /// What was wrong.
        problem: String,
    },
    /// Something that nobody said was found.
    Found {
        /// What: the library, the database.
        what: String,
        /// Where it is, or what it is called. No secret.
        value: String,
        /// What told of it: a container's mount, its environment.
        origin: String,
    },
    /// Something worth knowing that stops nothing.
    Warned {
        /// What.
        message: String,
    },
}

/// Receives what happens. Called from many threads; must return soon and must not fail.
pub trait Monitor: Send + Sync {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// Forgets everything.
#[derive(Debug, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn emit(&self, _: Event) {}
}

/// Keeps everything, for tests.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Event>>);

impl Recorder {
    /// What has been emitted so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0.lock().map(|events| events.clone()).unwrap_or_default()
    }
}

impl Monitor for Recorder {
    fn emit(&self, event: Event) {
        if let Ok(mut events) = self.0.lock() {
            events.push(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::RootPath;

    #[test]
    fn what_was_written_as_json_is_read_as_the_same_event() {
        let path = |text: &str| FilePath::from_text(text).unwrap();
        let events = [
            Event::PhaseStarted { phase: Phase::Store, total_files: None, total_bytes: Some(7) },
            Event::RunStarted { run: RunId::random(), repository: RepositoryId::random() },
            Event::FileStored { path: path("upload/u/ä%0A.jpg"), how: Stored::Adopted, size_bytes: 1 << 40, class: Class::Original, changed: true },
            Event::FileArchived { path: path("external/nas/a.jpg") },
            Event::FileArchived { path: path("config/.env") },
            Event::FileArchived { path: path("postgres/PG_VERSION") },
            Event::SpecialSkipped { path: FilePath::library(RootPath::from_bytes(b"a").unwrap()), kind: "pipe".into() },
            Event::Retrying { action: "store".into(), key: "k".into(), retry: 1, of: 5, wait_ms: 2_000, problem: "p".into() },
            Event::Warned { message: "w".into() },
        ];
        for event in events {
            let text = serde_json::to_string(&event).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event, "{text}");
        }
        for text in ["", "/etc/passwd", "a/../b", "external/nas/..", "a//b"] {
            assert!(FilePath::from_text(text).is_err(), "{text}");
        }
        // Something is called `external` in the media location: it is shown alike, and read as what it looks like.
        assert_eq!(path("external/nas").root, crate::model::Root::Library);
    }
}
