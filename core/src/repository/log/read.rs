//! Reading the log: which entries there are, and whether they form one chain.

use super::super::key::{self, Key};
use super::super::store::{Store, StoreError, read_all};
use super::entry::{DamagedEntry, Entry};
use crate::budget::LOG_ENTRY_BYTES_MAX;
use crate::model::Sha256;
use futures_util::TryStreamExt as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far the log goes: the last entry's number, and its SHA-256 as stored. Before entry 1: 0 and that of `format.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The entry's number.
    pub sequence: u64,
    /// Its SHA-256.
    pub sha256: Sha256,
}

/// The entries that a listing showed: their keys by number.
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
                    "two runs wrote at once, to a store that cannot keep them apart; see that only one ever does, then remove what the one that is to yield wrote to the log from that number on, which bears its run's id in its name (what it stored is taken up by the next backup); until then `restore`, `ls` and `verify` work on the part before with `--until {}`",
                    sequence.saturating_sub(1)
                ));
            }
            Self::Damaged { sequence, .. } | Self::Rewritten { sequence } => sequence.saturating_sub(1),
            Self::Chain { sequence, .. } => sequence.saturating_sub(2),
            Self::WentBack { seen, now } => {
                return Some(format!(
                    "bring the missing entries back (the store's versions, a second copy); or, if it is meant to be older, remove this repository's state folder and run again; entries up to {seen} were seen; `restore`, `ls` and `verify` work on what is there with `--until {now}`"
                ));
            }
        };
        Some(format!(
            "nothing was changed; `restore`, `ls` and `verify` work on the part before with `--until {good}`; bring the entry back from the store's versions or a second copy"
        ))
    }
}

/// The entries after number `after` that the store lists.
///
/// # Errors
/// A gap, a fork, or the store.
pub async fn listed_entries(store: &dyn Store, after: u64) -> Result<Heads, LogError> {
    match list_entries(store, after).await {
        // A listing that takes its time may show an entry that came after one that it has missed: both are there when it is asked again.
        Err(LogError::Gap { .. }) => list_entries(store, after).await,
        listed => listed,
    }
}

async fn list_entries(store: &dyn Store, after: u64) -> Result<Heads, LogError> {
    let start = (after > 0).then(|| Key::parse(&format!("{}{:010}", key::LOG, after))).transpose().map_err(StoreError::from)?;
    let mut listing = store.list(key::LOG, start.as_ref());
    let mut entries = Heads::new();
    while let Some(found) = listing.try_next().await? {
        let Some(sequence) = key::log_sequence(&found.key) else { continue };
        note(&mut entries, sequence, found.key)?;
    }
    let first = entries.keys().next().copied().filter(|_| after > 0).unwrap_or(1);
    if let Some((missing, next)) = (first..).zip(entries.keys()).find(|(expected, sequence)| expected != *sequence) {
        return Err(LogError::Gap { missing, next: *next });
    }
    Ok(entries)
}

/// The entries up to number `last` that the store lists, whatever comes after them. What is missing among them is not looked at here.
///
/// # Errors
/// A fork, or the store.
pub async fn listed_until(store: &dyn Store, last: u64) -> Result<Heads, LogError> {
    let mut listing = store.list(key::LOG, None);
    let mut entries = Heads::new();
    while let Some(found) = listing.try_next().await? {
        let Some(sequence) = key::log_sequence(&found.key).filter(|sequence| *sequence <= last) else { continue };
        note(&mut entries, sequence, found.key)?;
    }
    Ok(entries)
}

fn note(entries: &mut Heads, sequence: u64, key: Key) -> Result<(), LogError> {
    match entries.get(&sequence) {
        Some(first) => Err(LogError::Fork { sequence, first: first.to_string(), second: key.to_string() }),
        None => {
            entries.insert(sequence, key);
            Ok(())
        }
    }
}

/// Reads the entry `key`, numbered `sequence`.
///
/// # Errors
/// It is damaged or cannot be read.
pub async fn read_entry(store: &dyn Store, sequence: u64, key: &Key) -> Result<Entry, LogError> {
    let read = async || Ok::<_, LogError>(Entry::decode(&read_all(store, key, LOG_ENTRY_BYTES_MAX).await?));
    let decoded = match read().await? {
        // One bad transfer is no damage: the second reading decides.
        Err(_) => read().await?,
        good => good,
    };
    let entry = decoded.map_err(|source| LogError::Damaged { sequence, key: key.to_string(), source })?;
    if entry.header.sequence == sequence { Ok(entry) } else { Err(LogError::Chain { sequence, key: key.to_string() }) }
}

/// Reads the entry `key` and makes sure that it is the one after `head`.
///
/// # Errors
/// As [`read_entry`], or it does not follow.
pub async fn entry_after(store: &dyn Store, head: &Head, key: &Key) -> Result<Entry, LogError> {
    let sequence = head.sequence + 1;
    let entry = read_entry(store, sequence, key).await?;
    if entry.header.previous_sha256 == head.sha256 { Ok(entry) } else { Err(LogError::Chain { sequence, key: key.to_string() }) }
}
