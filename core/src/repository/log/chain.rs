//! Which entries make up the log: since a repair, not all that are there.
//!
//! A repair opens an *epoch*: an entry that names the last good one, and from which the log goes on under names of its own. What lies beyond that good entry
//! under the old names is not part of the log any more, whatever is added to it. So the log is found from its end: the newest epoch, the entry it builds on,
//! the epoch of that one.

use super::super::key::{self, Key, LogName};
use super::super::store::{Store, StoreError};
use super::entry::Entry;
use super::fact::{EpochFact, Fact};
use super::read::{Head, Heads, LogError, decode};
use futures_util::TryStreamExt as _;
use std::collections::{BTreeMap, BTreeSet};

/// Objects of one number: one, unless somebody did what must not be.
type Candidates = Vec<(Key, u64)>;

/// All that is named as log entries are, by what the names say, with sizes in bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Entries by epoch and number.
    pub entries: BTreeMap<u32, BTreeMap<u64, Candidates>>,
    /// Entries that open an epoch.
    pub openings: BTreeMap<u32, Candidates>,
}

impl Listing {
    /// What the store lists from the entry `from` on; all of it, where that is the beginning.
    ///
    /// # Errors
    /// The store's.
    pub async fn read(store: &dyn Store, from: &Head) -> Result<Self, StoreError> {
        let first = Key::log_entry_in(from.epoch, from.sequence, None);
        let start = first.as_str().strip_suffix(".ndjson.zst").filter(|_| from.sequence > 0).map(Key::parse).transpose()?;
        let mut objects = store.list(key::LOG, start.as_ref());
        let mut listing = Self::default();
        while let Some(found) = objects.try_next().await? {
            match key::log_name(&found.key) {
                Some(LogName::Entry { epoch, sequence }) => {
                    listing.entries.entry(epoch).or_default().entry(sequence).or_default().push((found.key, found.size_bytes));
                }
                Some(LogName::Opening { epoch }) => listing.openings.entry(epoch).or_default().push((found.key, found.size_bytes)),
                None => {}
            }
        }
        Ok(listing)
    }

    /// The newest epoch from `epoch` on. They follow one another without a gap, else whoever may write could use up their numbers with one object; what lies
    /// beyond a gap is nothing.
    #[must_use]
    pub fn newest_epoch(&self, epoch: u32) -> u32 {
        let is_there = |epoch: &u32| self.openings.contains_key(epoch) || self.entries.contains_key(epoch);
        (epoch..u32::MAX).take_while(|number| *number == epoch || is_there(number)).last().unwrap_or(epoch)
    }
}

/// The entry that opens an epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Opening {
    /// Its object.
    pub key: Key,
    /// All of it.
    pub entry: Entry,
    /// What it says of the repair.
    pub fact: EpochFact,
}

impl Opening {
    /// Which epoch it opens.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.entry.header.epoch
    }

    /// The entry that it builds on.
    #[must_use]
    pub fn base(&self) -> Head {
        Head { epoch: self.fact.base_epoch, sequence: self.entry.header.sequence.saturating_sub(1), sha256: self.entry.header.previous_sha256 }
    }

    /// The keys that are not part of the log since. It says nothing of its own epoch, or of later ones.
    pub fn rejected(&self) -> impl Iterator<Item = &str> {
        let epoch = self.epoch();
        let is_older = move |key: &&str| Key::parse(key).ok().and_then(|key| key::log_name(&key)).is_some_and(|name| name.epoch() < epoch);
        self.fact.rejected.iter().map(|rejected| rejected.key.as_str()).filter(is_older)
    }

    /// What is wrong with whoever has seen `head`.
    pub(crate) fn refusal(&self, head: &Head) -> LogError {
        let (epoch, base, seen) = (self.epoch(), self.base().sequence, head.sequence);
        LogError::Rejected { epoch, base, seen, host: self.fact.host.clone(), at: self.fact.at, sha256: self.entry.sha256 }
    }
}

/// Reads what opens `epoch`, but for `rejected` objects.
///
/// # Errors
/// There is no such entry, more than one, or one that cannot be.
pub async fn opening(store: &dyn Store, listing: &Listing, epoch: u32, rejected: &BTreeSet<String>) -> Result<Opening, LogError> {
    let refused = |problem: String| LogError::Epoch { epoch, problem };
    let all = listing.openings.get(&epoch).into_iter().flatten();
    let mut candidates = all.map(|(key, _)| key).filter(|key| !rejected.contains(key.as_str()));
    let Some(key) = candidates.next() else { return Err(refused("the entry that opens it is missing".to_owned())) };
    if let Some(second) = candidates.next() {
        return Err(refused(format!("both `{key}` and `{second}` open it")));
    }
    let read = async || decode(store, key).await;
    let decoded = match read().await? {
        Err(_) => read().await?,
        good => good,
    };
    let entry = decoded.map_err(|error| refused(format!("`{key}` is damaged: {error}")))?;
    let fact = match entry.facts.first() {
        Some(Fact::Epoch(fact)) if entry.header.epoch == epoch && entry.header.sequence > 0 && fact.base_epoch < epoch => (**fact).clone(),
        _ => return Err(refused(format!("`{key}` does not open it"))),
    };
    Ok(Opening { key: key.clone(), entry, fact })
}

/// What opens each epoch that the log goes through from `from` to `newest`, oldest first, and the objects that these reject. `from` may be of an epoch
/// that it does not go through.
///
/// # Errors
/// As [`opening`].
pub async fn openings(store: &dyn Store, listing: &Listing, from: u32, newest: u32) -> Result<(Vec<Opening>, BTreeSet<String>), LogError> {
    let (mut openings, mut rejected, mut epoch) = (Vec::new(), BTreeSet::new(), newest);
    while epoch > from {
        let opening = opening(store, listing, epoch, &rejected).await?;
        rejected.extend(opening.rejected().map(str::to_owned));
        epoch = opening.fact.base_epoch;
        openings.push(opening);
    }
    openings.reverse();
    Ok((openings, rejected))
}

/// The log from some entry on.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    /// Its entries: those after that entry, and that one itself where it is there.
    pub entries: Heads,
    /// What opens the epochs after that entry's, oldest first.
    pub openings: Vec<Opening>,
}

impl Chain {
    /// The number of the last entry.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.entries.keys().next_back().copied()
    }

    /// Whether the copy of the manifest that was made as of that entry can be of this log.
    #[must_use]
    pub fn has_position(&self, epoch: u32, sequence: u64) -> bool {
        self.entries.get(&sequence).and_then(key::log_name).is_some_and(|name| name.epoch() == epoch)
    }
}

/// The log from `after` on.
///
/// # Errors
/// A gap, a fork, an epoch that cannot be read or that does not build on `after`; or the store.
pub async fn chain_after(store: &dyn Store, after: &Head) -> Result<Chain, LogError> {
    match chain(store, after, None, u64::MAX).await {
        // A listing that takes its time may show an entry that came after one that it has missed: both are there when it is asked again.
        Err(LogError::Gap { .. } | LogError::Epoch { .. }) => chain(store, after, None, u64::MAX).await,
        read => read,
    }
}

/// The log from its beginning `start` up to entry `last`, whatever comes after that: as `epoch` has it, else as the newest one does that can be read.
///
/// # Errors
/// As [`chain_after`].
pub async fn chain_until(store: &dyn Store, start: &Head, epoch: Option<u32>, last: u64) -> Result<Chain, LogError> {
    chain(store, start, Some(epoch), last).await
}

/// `until`: what is wrong with newer epochs than the one that is asked for does not matter.
async fn chain(store: &dyn Store, after: &Head, until: Option<Option<u32>>, last: u64) -> Result<Chain, LogError> {
    let listing = Listing::read(store, after).await?;
    let mut newest = listing.newest_epoch(after.epoch);
    if let Some(Some(asked)) = until {
        if asked > newest {
            return Err(LogError::Epoch { epoch: asked, problem: "there is no such epoch".to_owned() });
        }
        newest = asked;
    }
    let (openings, rejected) = loop {
        match openings(store, &listing, after.epoch, newest).await {
            Err(LogError::Epoch { .. }) if until == Some(None) && newest > after.epoch => newest -= 1,
            read => break read?,
        }
    };
    if let Some(first) = openings.first() {
        let base = first.base();
        if base.epoch != after.epoch || base.sequence < after.sequence || (base.sequence == after.sequence && base.sha256 != after.sha256) {
            return Err(first.refusal(after));
        }
    }
    let mut entries = Heads::new();
    if let Some(key) = own_key(store, &listing, after, &rejected).await? {
        entries.insert(after.sequence, key);
    }
    let (mut epoch, mut next) = (after.epoch, after.sequence + 1);
    for opening in openings.iter().map(Some).chain([None]) {
        let end = opening.map(|opening| opening.base().sequence);
        collect(&listing, epoch, next..=end.unwrap_or(u64::MAX).min(last), end, &rejected, &mut entries)?;
        let Some(opening) = opening else { break };
        epoch = opening.epoch();
        next = opening.entry.header.sequence + 1;
        if opening.entry.header.sequence <= last {
            entries.insert(opening.entry.header.sequence, opening.key.clone());
        }
    }
    Ok(Chain { entries, openings })
}

/// The object of the entry `head` itself, which may be the one that opens its epoch.
async fn own_key(store: &dyn Store, listing: &Listing, head: &Head, rejected: &BTreeSet<String>) -> Result<Option<Key>, LogError> {
    if head.sequence == 0 {
        return Ok(None);
    }
    let listed = listing.entries.get(&head.epoch).and_then(|entries| entries.get(&head.sequence));
    if let Some(candidates) = listed {
        return only(candidates, head.sequence, rejected);
    }
    if !listing.openings.contains_key(&head.epoch) {
        return Ok(None);
    }
    let opening = opening(store, listing, head.epoch, rejected).await?;
    Ok((opening.entry.header.sequence == head.sequence).then_some(opening.key))
}

/// Notes the keys of the entries of `epoch` with these numbers. `end`: all up to that one have to be there.
fn collect(
    listing: &Listing,
    epoch: u32,
    numbers: std::ops::RangeInclusive<u64>,
    end: Option<u64>,
    rejected: &BTreeSet<String>,
    entries: &mut Heads,
) -> Result<(), LogError> {
    let (mut expected, last) = (*numbers.start(), *numbers.end());
    if numbers.is_empty() {
        return Ok(());
    }
    for (sequence, candidates) in listing.entries.get(&epoch).into_iter().flat_map(|entries| entries.range(numbers.clone())) {
        let Some(key) = only(candidates, *sequence, rejected)? else { continue };
        if expected != *sequence {
            return Err(LogError::Gap { missing: expected, next: *sequence });
        }
        entries.insert(*sequence, key);
        expected += 1;
    }
    match end {
        Some(end) if end <= last && expected <= end => Err(LogError::Gap { missing: expected, next: end + 1 }),
        _ => Ok(()),
    }
}

/// The one object that has a number.
fn only(candidates: &Candidates, sequence: u64, rejected: &BTreeSet<String>) -> Result<Option<Key>, LogError> {
    let mut keys = candidates.iter().map(|(key, _)| key).filter(|key| !rejected.contains(key.as_str()));
    match (keys.next(), keys.next()) {
        (Some(first), Some(second)) => Err(LogError::Fork { sequence, first: first.to_string(), second: second.to_string() }),
        (key, _) => Ok(key.cloned()),
    }
}
