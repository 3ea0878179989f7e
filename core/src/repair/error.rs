//! Why something was not repaired, and what the user can do about it.

use crate::budget::REPAIR_ROUNDS_MAX;
use crate::library::tree::TreeError;
use crate::repository::OpenError;
use crate::repository::log::LogError;
use crate::repository::manifest::ManifestError;
use crate::repository::state::StateError;
use crate::repository::store::StoreError;
use std::path::PathBuf;

/// Why the log was not repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The repository failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Somebody writes.
    #[error("{who}: the log is not repaired under a run")]
    Busy {
        /// Who.
        who: String,
    },
    /// Nobody said which of several ways counts.
    #[error("the log goes on in {branches} ways, and nobody but you can say which is to count")]
    Undecided {
        /// How many.
        branches: usize,
    },
    /// Another machine was faster.
    #[error("epoch {epoch} was begun by another machine at this moment; nothing was changed here")]
    Yielded {
        /// Which.
        epoch: u32,
    },
    /// There is no such epoch.
    #[error("the log has no epoch {epoch} that goes on from what was seen here")]
    NoEpoch {
        /// Which.
        epoch: u32,
    },
    /// There is no such entry.
    #[error("there is no entry {sequence} to reject: the log ends at {last}")]
    NoEntry {
        /// What was asked for.
        sequence: u64,
        /// The last one.
        last: u64,
    },
    /// What was seen here is there, and would not count.
    #[error("entries {from} to {to} are intact as far as they were seen here, and would not count any more")]
    Intact {
        /// The first one.
        from: u64,
        /// The highest that was seen.
        to: u64,
    },
    /// An epoch that entries were written in cannot be read.
    #[error("epoch {epoch} of the log cannot be read, and intact entries of it are there, from {first} on")]
    UnreadEpoch {
        /// Which.
        epoch: u32,
        /// Its lowest intact entry.
        first: u64,
    },
    /// What was found after a repair is not what it has made.
    #[error("epoch {epoch} was opened, and the log does not end with it: {problem}")]
    NotAsPlanned {
        /// Which.
        epoch: u32,
        /// What is there.
        problem: String,
    },
    /// It does not come to an end.
    #[error("after {REPAIR_ROUNDS_MAX} epochs the log is still not as it should be")]
    Endless,
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// The library cannot be opened.
    #[error(transparent)]
    Library(#[from] TreeError),
    /// A file of the library cannot be read.
    #[error("cannot read `{path}`: {problem}")]
    Read {
        /// Which.
        path: String,
        /// Why, in words.
        problem: String,
    },
    /// A folder cannot be used.
    #[error("cannot {action} `{}`", .path.display())]
    Folder {
        /// What was being done.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Damaged bytes would be kept where they are backed up, or where the good ones are.
    #[error("`{}` lies in {what}", .path.display())]
    Nested {
        /// The folder.
        path: PathBuf,
        /// Where it lies.
        what: String,
    },
}

impl From<StoreError> for RepairError {
    fn from(error: StoreError) -> Self {
        Self::Open(error.into())
    }
}

impl From<LogError> for RepairError {
    fn from(error: LogError) -> Self {
        Self::Open(error.into())
    }
}

impl From<StateError> for RepairError {
    fn from(error: StateError) -> Self {
        Self::Open(error.into())
    }
}

impl From<ManifestError> for RepairError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl RepairError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Open(error) => return error.hint(),
            Self::Busy { .. } => "nothing was changed; wait until it has ended, or has been silent for three minutes".to_owned(),
            Self::Undecided { .. } => "nothing was changed; the plan shows each with its machine, times and what it holds: say --keep and the beginning of the name of the one that counts (what the others stored is taken up by the next backup)".to_owned(),
            Self::Yielded { .. } => "look what it did: `immich-backup repair` shows the log as it is now".to_owned(),
            Self::NoEpoch { .. } => "`immich-backup repair` shows the epochs".to_owned(),
            Self::NoEntry { .. } => "`immich-backup repair` shows how far the log goes".to_owned(),
            Self::Intact { from, .. } => format!(
                "nothing was changed; bring back what is damaged or missing before them from the store's versions or a second copy, or reject what claims that they do not count (--reject-epoch); if there is no other way, `immich-backup repair --reject-from {from}` goes on without them"
            ),
            Self::UnreadEpoch { epoch, first } => format!(
                "nothing was changed; bring back what opens it from the store's versions or a second copy; else `immich-backup repair --reject-from {}` goes on from what stood before it, and leaves out what it rejected, or `--reject-epoch {epoch}` takes all that was there before it for good",
                first.saturating_sub(1)
            ),
            Self::NotAsPlanned { .. } => "what was planned is done, and nothing more; `immich-backup repair` shows the log as it is now".to_owned(),
            Self::Endless => "somebody is writing to the log as fast as it is repaired: change the writer's credentials, then repair again".to_owned(),
            Self::Interrupted | Self::Library(_) | Self::Read { .. } => return None,
            Self::Folder { .. } => "check that it is mounted, and that this user may write there".to_owned(),
            Self::Nested { .. } => "nothing was changed; give --keep-damaged another folder".to_owned(),
        })
    }
}
