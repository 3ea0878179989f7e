//! Reading the log: its entries, and what can be wrong with them.

use super::super::key::{self, Key};
use super::super::store::{Store, StoreError, read_all};
use super::entry::{DamagedEntry, Entry};
use crate::budget::LOG_ENTRY_BYTES_MAX;
use crate::model::Sha256;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far the log goes: the last entry's number, and its SHA-256 as stored. Before entry 1: 0 and that of `format.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The entry's epoch: 0 until the log is first repaired.
    #[serde(default)]
    pub epoch: u32,
    /// The entry's number.
    pub sequence: u64,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// The entries of the log: their keys by number.
pub type Heads = BTreeMap<u64, Key>;

/// What is wrong with the log. All of it is exit code 11, but for `Store`.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An entry is missing in the middle.
    #[error("the log has a gap: entry {missing} is missing, and entry {next} is there")]
    Gap {
        /// The first missing entry.
        missing: u64,
        /// The next one there is.
        next: u64,
    },
    /// Two entries of one number: two writers at once on a store that did not keep them apart.
    #[error("the log forks at entry {sequence}: both `{first}` and `{second}` exist")]
    Fork {
        /// The number.
        sequence: u64,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// An entry's bytes are damaged.
    #[error("log entry {sequence} (`{key}`) is damaged")]
    Damaged {
        /// Its number.
        sequence: u64,
        /// Its object.
        key: String,
        /// How.
        source: DamagedEntry,
    },
    /// An entry says that another one stood before it: that one was changed, or this one belongs to another log.
    #[error("log entry {sequence} (`{key}`) does not follow the entry before it; one of the two was changed or exchanged")]
    Chain {
        /// The number of the one that does not follow.
        sequence: u64,
        /// Its object.
        key: String,
    },
    /// The repository is older than what was seen of it before.
    #[error("the repository went back in time: entry {seen} was seen before, and the log now ends at entry {now}")]
    WentBack {
        /// The highest entry ever seen.
        seen: u64,
        /// The last one there is.
        now: u64,
    },
    /// The repository has another past than the one that was seen.
    #[error("log entry {sequence} is not the one that was seen before; the log was replaced or rewritten")]
    Rewritten {
        /// The number.
        sequence: u64,
    },
    /// An epoch cannot be read.
    #[error("the log was repaired, and its epoch {epoch} cannot be read: {problem}")]
    Epoch {
        /// Which.
        epoch: u32,
        /// Why.
        problem: String,
    },
    /// The log was repaired by somebody, and what was seen of it before is not part of it any more.
    #[error("the log was repaired on `{host}` at {at:.0}: epoch {epoch} goes on after entry {base}, and entries up to {seen} were seen here before")]
    Rejected {
        /// The epoch that goes on.
        epoch: u32,
        /// The entry that it goes on after.
        base: u64,
        /// The highest entry ever seen.
        seen: u64,
        /// Name of the machine, as its entry says.
        host: String,
        /// When, as its entry says.
        at: Timestamp,
        /// Of the entry that opens the epoch.
        sha256: Sha256,
    },
}

impl LogError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let good = match self {
            Self::Store(error) => return error.hint().map(str::to_owned),
            Self::Gap { missing, .. } => missing.saturating_sub(1),
            Self::Fork { sequence, .. } => {
                return Some(format!(
                    "two runs wrote at once, to a store that cannot keep them apart; see that only one ever does, then let `immich-backup repair` show both, and go on with one (--keep RUN): what the other one stored is taken up by the next backup; until then `restore`, `ls` and `verify` work on the part before with `--until {}`",
                    sequence.saturating_sub(1)
                ));
            }
            Self::Epoch { epoch, .. } => {
                return Some(format!(
                    "`immich-backup repair` shows what is wrong, and goes on from the last good entry; `restore`, `ls` and `verify` work on an earlier epoch with `--until {}:NUMBER`",
                    epoch.saturating_sub(1)
                ));
            }
            Self::Rejected { epoch, base, .. } => {
                return Some(format!(
                    "if you, or somebody you trust, repaired it, run `immich-backup repair --accept-epoch {epoch} --apply` here; if nobody did, somebody has your writer's credentials: change them, then `immich-backup repair --reject-epoch {epoch}` shows how the log goes on without it; `--until {base}` reads what both agree on"
                ));
            }
            Self::Rewritten { sequence } => {
                return Some(format!(
                    "nothing was changed; bring the log back from the store's versions or a second copy; where its last entries are somebody else's, `immich-backup repair --reject-from {sequence}` goes on without them; if it was replaced on purpose, remove this repository's state folder; `restore`, `ls` and `verify` work on the part before with `--until {}`",
                    sequence.saturating_sub(1)
                ));
            }
            Self::Damaged { sequence, .. } => sequence.saturating_sub(1),
            Self::Chain { sequence, .. } => sequence.saturating_sub(2),
            Self::WentBack { seen, now } => {
                return Some(format!(
                    "bring the missing entries back (the store's versions, a second copy), entries up to {seen} were seen; or let `immich-backup repair` show what is lost, and go on from what is there; `restore`, `ls` and `verify` work on that with `--until {now}`"
                ));
            }
        };
        Some(format!(
            "nothing was changed; `restore`, `ls` and `verify` work on the part before with `--until {good}`; bring the entry back from the store's versions or a second copy, or let `immich-backup repair` show what is lost, and go on from there"
        ))
    }
}

/// What `key` holds as an entry. That the object cannot be read, or is too large for one, is damage.
///
/// # Errors
/// The store's, where they say nothing of this object.
pub(super) async fn decode(store: &dyn Store, key: &Key) -> Result<Result<Entry, DamagedEntry>, StoreError> {
    decoded(read_all(store, key, LOG_ENTRY_BYTES_MAX).await)
}

fn decoded(read: Result<Bytes, StoreError>) -> Result<Result<Entry, DamagedEntry>, StoreError> {
    match read {
        Ok(bytes) => Ok(Entry::decode(&bytes)),
        Err(error @ StoreError::TooLarge { .. }) => Ok(Err(DamagedEntry::Unreadable(Box::new(error)))),
        Err(error) if error.is_of_medium() => Ok(Err(DamagedEntry::Unreadable(Box::new(error)))),
        Err(error) => Err(error),
    }
}

/// Reads the entry `key`, numbered `sequence`.
///
/// # Errors
/// It is damaged or cannot be read.
pub async fn read_entry(store: &dyn Store, sequence: u64, key: &Key) -> Result<Entry, LogError> {
    numbered(store, sequence, key, None).await
}

/// Reads the entry `key` and makes sure that it is the one after `head`.
///
/// # Errors
/// As [`read_entry`], or it does not follow.
pub async fn entry_after(store: &dyn Store, head: &Head, key: &Key) -> Result<Entry, LogError> {
    entry_from(store, head, key, None).await
}

/// As [`entry_after`], where what a first reading brought may be at hand.
pub(super) async fn entry_from(store: &dyn Store, head: &Head, key: &Key, read: Option<Result<Bytes, StoreError>>) -> Result<Entry, LogError> {
    let sequence = head.sequence + 1;
    let entry = numbered(store, sequence, key, read).await?;
    if entry.header.previous_sha256 == head.sha256 { Ok(entry) } else { Err(LogError::Chain { sequence, key: key.to_string() }) }
}

async fn numbered(store: &dyn Store, sequence: u64, key: &Key, read: Option<Result<Bytes, StoreError>>) -> Result<Entry, LogError> {
    let first = match read {
        Some(read) => decoded(read)?,
        None => decode(store, key).await?,
    };
    let entry = match first {
        // One bad transfer is no damage: the second reading decides.
        Err(_) => decode(store, key).await?,
        good => good,
    };
    let entry = entry.map_err(|source| LogError::Damaged { sequence, key: key.to_string(), source })?;
    let epoch = key::log_name(key).map_or(0, key::LogName::epoch);
    if (entry.header.epoch, entry.header.sequence) == (epoch, sequence) { Ok(entry) } else { Err(LogError::Chain { sequence, key: key.to_string() }) }
}
