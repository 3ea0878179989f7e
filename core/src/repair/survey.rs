//! The whole log, read as far as it is good, and what stands in the way of the rest.

use super::Decision;
use crate::budget::{LOG_ENTRY_BYTES_MAX, REJECTED_NAMED_MAX};
use crate::model::{RunId, Sha256, WriterId};
use crate::repository::key::{self, Key, LogName};
use crate::repository::log::{self, Entry, Fact, Head, Listing, LogError, Opening, Rejected, entry_after};
use crate::repository::store::{Store, StoreError, read_all};
use jiff::Timestamp;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// One of several ways in which the log goes on: two writers at once, where the store cannot keep them apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Who wrote it: the run, or the state folder where no run spoke. What `--keep` names.
    pub name: String,
    /// Name of the machine, where the branch or what came before it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Its first object.
    pub key: String,
    /// When its first entry was written.
    pub first_at: Timestamp,
    /// When its last entry was written.
    pub last_at: Timestamp,
    /// Entries.
    pub entries: u64,
    /// What they state.
    pub told: Told,
    #[serde(skip)]
    path: Vec<(Key, Head)>,
}

/// What entries state, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Told {
    /// Files that were stored.
    pub stored: u64,
    /// Their size in bytes.
    pub bytes: u64,
    /// Files that were archived.
    pub archived: u64,
    /// Snapshots.
    pub snapshots: Vec<String>,
    /// Dumps of the database.
    pub dumps: u64,
    /// All facts.
    pub facts: u64,
}

impl Told {
    fn add(&mut self, entry: &Entry) {
        for fact in &entry.facts {
            self.facts += 1;
            match fact {
                Fact::Stored(stored) => {
                    self.stored += 1;
                    self.bytes = self.bytes.saturating_add(stored.size);
                }
                Fact::Archived(_) => self.archived += 1,
                Fact::Dump(_) => self.dumps += 1,
                Fact::Snapshot(_) => self.snapshots.extend(entry.header.run.map(|run| run.short())),
                _ => {}
            }
        }
    }
}

/// A run that may be writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastRun {
    pub(super) id: RunId,
    pub(super) host: String,
    pub(super) writer: WriterId,
    pub(super) last_entry_at: Timestamp,
    pub(super) is_over: bool,
}

/// The log as it is.
#[derive(Debug, Clone)]
pub struct Survey {
    /// The last good entry, as far as it was asked for.
    pub end: Head,
    /// Repairs that the good part has been through.
    pub openings: Vec<Opening>,
    /// What keeps the log from being read or continued as it is; empty where nothing does.
    pub problems: Vec<String>,
    /// What a new epoch would reject: all that is not part of the log up to `end`, and was not rejected before.
    pub rejected: Vec<Rejected>,
    /// How many these are.
    pub rejected_count: u64,
    /// What the intact ones among them state.
    pub told: Told,
    /// Ways in which the log goes on; where there are any, one has to be chosen.
    pub branches: Vec<Branch>,
    /// How many entries are missing, as far as later ones show.
    pub missing_count: u64,
    /// The newest epoch that has any object.
    pub newest_epoch: u32,
    pub(super) last_run: Option<LastRun>,
}

impl Survey {
    /// Whether the log is as it should be, and nothing was to be rejected.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.rejected_count == 0 && self.branches.is_empty()
    }
}

struct Walker<'a> {
    store: &'a dyn Store,
    decision: &'a Decision,
    listing: Listing,
    good: BTreeSet<String>,
    survey: Survey,
}

/// Reads the log from its beginning, `start`.
///
/// # Errors
/// The store's. What is wrong with the log is no error.
pub async fn survey(store: &dyn Store, start: &Head, decision: &Decision) -> Result<Survey, StoreError> {
    let listing = Listing::read(store, start).await?;
    let newest_epoch = listing.newest_epoch(0);
    let survey = Survey {
        end: *start,
        openings: Vec::new(),
        problems: Vec::new(),
        rejected: Vec::new(),
        rejected_count: 0,
        told: Told::default(),
        branches: Vec::new(),
        missing_count: 0,
        newest_epoch,
        last_run: None,
    };
    let mut walker = Walker { store, decision, listing, good: BTreeSet::new(), survey };
    let (openings, rejected) = walker.openings().await?;
    walker.walk(&openings, &rejected).await?;
    let old: BTreeSet<String> = walker.survey.openings.iter().flat_map(|opening| opening.rejected().map(str::to_owned).collect::<Vec<_>>()).collect();
    walker.reject_the_rest(&old).await?;
    Ok(walker.survey)
}

/// An error of the store, which says nothing of the log; else what is wrong with the log.
fn problem(error: LogError) -> Result<LogError, StoreError> {
    match error {
        LogError::Store(error) => Err(error),
        other => Ok(other),
    }
}

fn ends_run(entry: &Entry) -> bool {
    entry.facts.iter().any(|fact| matches!(fact, Fact::Snapshot(_)) || matches!(fact, Fact::RunEnded(ended) if ended.shard.is_none()))
}

fn with_causes(error: &LogError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl Walker<'_> {
    /// The epochs that can be read and are not to be rejected, oldest first, and what they reject.
    async fn openings(&mut self) -> Result<(Vec<Opening>, BTreeSet<String>), StoreError> {
        let mut newest = self.survey.newest_epoch;
        if let Some(epoch) = self.decision.reject_epoch
            && epoch <= newest
        {
            self.survey.problems.push(format!("epoch {epoch} is to be rejected"));
            newest = epoch.saturating_sub(1);
        }
        let (mut openings, mut rejected, mut epoch) = (Vec::new(), BTreeSet::new(), newest);
        while epoch > 0 {
            match self.opening(epoch, &rejected).await? {
                Some(opening) => {
                    rejected.extend(opening.rejected().map(str::to_owned));
                    epoch = opening.fact.base_epoch;
                    openings.push(opening);
                }
                None => {
                    // What builds on it cannot be read either.
                    openings.clear();
                    rejected.clear();
                    epoch -= 1;
                }
            }
        }
        openings.reverse();
        Ok((openings, rejected))
    }

    /// What opens `epoch`; `None` where nothing does, or more than one.
    async fn opening(&mut self, epoch: u32, rejected: &BTreeSet<String>) -> Result<Option<Opening>, StoreError> {
        let all: Vec<String> = self.listing.openings.get(&epoch).into_iter().flatten().map(|(key, _)| key.to_string()).collect();
        let candidates: Vec<&String> = all.iter().filter(|key| !rejected.contains(*key)).collect();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for key in &candidates {
            let others = all.iter().filter(|other| other != key).cloned().collect();
            match log::opening(self.store, &self.listing, epoch, &others).await {
                Ok(opening) => good.push(opening),
                Err(error) => bad.push(with_causes(&problem(error)?)),
            }
        }
        if candidates.is_empty() {
            bad.push(LogError::Epoch { epoch, problem: "the entry that opens it is missing".to_owned() }.to_string());
        }
        self.survey.problems.extend(bad);
        if good.len() > 1 {
            let keep = self.decision.keep.as_deref().filter(|keep| !keep.is_empty());
            let of = |opening: &Opening| opening.entry.header.writer.to_string();
            self.survey.problems.push(format!("{} entries open epoch {epoch}: two machines repaired the log at once", good.len()));
            if !good.iter().any(|opening| keep.is_some_and(|keep| of(opening).starts_with(keep))) {
                for opening in good {
                    let Opening { key, entry, fact } = opening;
                    let (name, host) = (entry.header.writer.to_string(), Some(fact.host));
                    let branch = self.follow(key, entry).await?;
                    self.survey.branches.push(Branch { name, host, ..branch });
                }
                return Ok(None);
            }
            good.retain(|opening| keep.is_some_and(|keep| of(opening).starts_with(keep)));
        }
        Ok(good.pop().filter(|_| good.is_empty()))
    }

    async fn walk(&mut self, openings: &[Opening], rejected: &BTreeSet<String>) -> Result<(), StoreError> {
        for opening in openings.iter().map(Some).chain([None]) {
            let base = opening.map(Opening::base);
            if !self.walk_epoch(base.as_ref(), rejected).await? {
                return Ok(());
            }
            let Some(opening) = opening else { return Ok(()) };
            if base != Some(self.survey.end) {
                self.survey.problems.push(format!("epoch {} does not follow entry {}", opening.epoch(), self.survey.end.sequence));
                return Ok(());
            }
            if self.is_enough(opening.entry.header.sequence) {
                return Ok(());
            }
            self.take(&opening.key, &opening.entry);
            self.survey.openings.push(opening.clone());
        }
        Ok(())
    }

    /// Whether what is to be rejected begins with this entry.
    fn is_enough(&mut self, next: u64) -> bool {
        let is_enough = self.decision.reject_from == Some(next);
        if is_enough {
            self.survey.problems.push(format!("what comes from entry {next} on is to be rejected"));
        }
        is_enough
    }

    fn take(&mut self, key: &Key, entry: &Entry) {
        self.good.insert(key.to_string());
        self.survey.end = entry.head();
        let Some(run) = entry.header.run else { return };
        let ended = ends_run(entry);
        let began = entry.facts.iter().find_map(|fact| if let Fact::RunStarted(started) = fact { Some(started.host.clone()) } else { None });
        let before = self.survey.last_run.take().filter(|before| before.id == run);
        let is_over = ended || before.as_ref().is_some_and(|before| before.is_over);
        let host = began.or(before.map(|before| before.host)).unwrap_or_default();
        self.survey.last_run = Some(LastRun { id: run, host, writer: entry.header.writer, last_entry_at: entry.header.written_at, is_over });
    }

    /// Goes on within the epoch of the last good entry, up to `base` where there is one; `false` where it did not get there.
    async fn walk_epoch(&mut self, base: Option<&Head>, rejected: &BTreeSet<String>) -> Result<bool, StoreError> {
        let epoch = self.survey.end.epoch;
        loop {
            let next = self.survey.end.sequence + 1;
            if base.is_some_and(|base| next > base.sequence) {
                return Ok(true);
            }
            if self.is_enough(next) {
                return Ok(false);
            }
            let listed = self.listing.entries.get(&epoch);
            let all = listed.and_then(|entries| entries.get(&next)).cloned().unwrap_or_default();
            let candidates: Vec<Key> = all.into_iter().map(|(key, _)| key).filter(|key| !rejected.contains(key.as_str())).collect();
            if candidates.is_empty() {
                let later = listed.and_then(|entries| entries.range(next..).next()).map(|(sequence, _)| *sequence);
                let later = base.map(|base| base.sequence + 1).or(later);
                if let Some(later) = later {
                    self.survey.problems.push(with_causes(&LogError::Gap { missing: next, next: later }));
                    self.survey.missing_count = later - next;
                }
                return Ok(later.is_none());
            }
            let (mut good, mut bad) = (Vec::new(), Vec::new());
            for key in candidates {
                match entry_after(self.store, &self.survey.end, &key).await {
                    Ok(entry) => good.push((key, entry)),
                    Err(error) => bad.push(with_causes(&problem(error)?)),
                }
            }
            // The same bytes under two names are one entry.
            let before = good.len();
            good.sort_by_key(|(_, entry)| entry.sha256);
            good.dedup_by_key(|(_, entry)| entry.sha256);
            if good.len() < before {
                self.survey.problems.push(format!("the log forks at entry {next}: it is there {before} times, and the same"));
            }
            if good.len() > 1 {
                match self.choose(good, base).await? {
                    Some(path) => self.take_path(path).await?,
                    None => return Ok(false),
                }
                continue;
            }
            self.survey.problems.extend(bad);
            let Some((key, entry)) = good.pop() else { return Ok(false) };
            self.take(&key, &entry);
        }
    }

    async fn take_path(&mut self, path: Vec<(Key, Head)>) -> Result<(), StoreError> {
        for (key, _) in path {
            if self.is_enough(self.survey.end.sequence + 1) {
                return Ok(());
            }
            match entry_after(self.store, &self.survey.end, &key).await {
                Ok(entry) => self.take(&key, &entry),
                Err(error) => {
                    self.survey.problems.push(with_causes(&problem(error)?));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Of several entries that follow the last good one: what leads to `base`, else what was decided.
    async fn choose(&mut self, first: Vec<(Key, Entry)>, base: Option<&Head>) -> Result<Option<Vec<(Key, Head)>>, StoreError> {
        let sequence = self.survey.end.sequence + 1;
        let mut branches = Vec::new();
        for (key, entry) in first {
            branches.push(self.follow(key, entry).await?);
        }
        let named: Vec<_> = branches.iter().map(|branch| format!("`{}`", branch.key)).collect();
        self.survey.problems.push(format!("the log forks at entry {sequence}: {} all follow the entry before", named.join(", ")));
        let chosen = match base {
            Some(base) => branches.iter().position(|branch| branch.path.iter().any(|(_, head)| head == base)),
            None => {
                let keep = self.decision.keep.as_deref().filter(|keep| !keep.is_empty());
                let mut named = branches.iter().enumerate().filter(|(_, branch)| keep.is_some_and(|keep| branch.name.starts_with(keep) || branch.key == keep));
                named.next().map(|(index, _)| index).filter(|_| named.next().is_none())
            }
        };
        match chosen {
            Some(chosen) => Ok(Some(branches.swap_remove(chosen).path)),
            None => {
                self.survey.branches = branches;
                Ok(None)
            }
        }
    }

    /// What was built on `entry`. Where that forks again, the branch ends: the next fork is asked about once this one is decided.
    async fn follow(&self, key: Key, entry: Entry) -> Result<Branch, StoreError> {
        let name = entry.header.run.map_or_else(|| entry.header.writer.to_string(), |run| run.to_string());
        let mut branch = Branch {
            name,
            host: self.survey.last_run.as_ref().filter(|run| Some(run.id) == entry.header.run).map(|run| run.host.clone()),
            key: key.to_string(),
            first_at: entry.header.written_at,
            last_at: entry.header.written_at,
            entries: 0,
            told: Told::default(),
            path: Vec::new(),
        };
        let (mut key, mut entry) = (key, entry);
        loop {
            branch.entries += 1;
            branch.last_at = entry.header.written_at;
            branch.told.add(&entry);
            for fact in &entry.facts {
                if let Fact::RunStarted(started) = fact {
                    branch.host = Some(started.host.clone());
                }
            }
            let head = entry.head();
            branch.path.push((key, head));
            let listed = self.listing.entries.get(&head.epoch).and_then(|entries| entries.get(&(head.sequence + 1)));
            let mut next = Vec::new();
            for (candidate, _) in listed.into_iter().flatten() {
                match entry_after(self.store, &head, candidate).await {
                    Ok(entry) => next.push((candidate.clone(), entry)),
                    Err(error) => drop(problem(error)?),
                }
            }
            match (next.pop(), next.is_empty()) {
                (Some(found), true) => (key, entry) = found,
                _ => return Ok(branch),
            }
        }
    }

    /// Everything else that is named as an entry, unless an earlier repair has rejected it.
    async fn reject_the_rest(&mut self, old: &BTreeSet<String>) -> Result<(), StoreError> {
        let end = self.survey.end;
        let opened: BTreeMap<u32, u64> = self.survey.openings.iter().map(|opening| (opening.epoch(), opening.entry.header.sequence)).collect();
        let mut rest: Vec<(Key, u64)> = Vec::new();
        for (epoch, numbers) in self.listing.entries.range(..=self.survey.newest_epoch) {
            for (number, objects) in numbers {
                // Of an epoch that another one followed: what lies beyond its end was dead before. Below: two objects of one number, one of them good.
                let is_good = |key: &Key| self.good.contains(key.as_str());
                let counts =
                    if *epoch >= end.epoch { opened.get(epoch).is_none_or(|opening| number > opening) } else { objects.iter().any(|(key, _)| is_good(key)) };
                rest.extend(objects.iter().filter(|(key, _)| counts && !is_good(key)).cloned());
            }
        }
        for (_, objects) in self.listing.openings.range(..=self.survey.newest_epoch) {
            rest.extend(objects.iter().filter(|(key, _)| !self.good.contains(key.as_str())).cloned());
        }
        // An epoch that nothing of the good part went through was rejected as a whole before, if a later one is good.
        let is_dead = |key: &Key| {
            key::log_name(key).is_some_and(|name| matches!(name, LogName::Opening { .. }) && name.epoch() < end.epoch && !opened.contains_key(&name.epoch()))
        };
        rest.retain(|(key, _)| !old.contains(key.as_str()) && !is_dead(key));
        if !self.survey.problems.is_empty() || !self.survey.branches.is_empty() || self.is_beyond(&rest) {
            for (key, size) in rest {
                self.reject(key, size).await?;
            }
        }
        Ok(())
    }

    /// Whether there is anything that should not be, though the walk met nothing.
    fn is_beyond(&mut self, rest: &[(Key, u64)]) -> bool {
        if let Some((key, _)) = rest.first() {
            self.survey.problems.push(format!("`{key}` has the name of an entry, and is no part of the log"));
        }
        !rest.is_empty()
    }

    async fn reject(&mut self, key: Key, size: u64) -> Result<(), StoreError> {
        self.survey.rejected_count += 1;
        if self.survey.rejected.len() >= REJECTED_NAMED_MAX {
            return Ok(());
        }
        let read = match read_all(self.store, &key, LOG_ENTRY_BYTES_MAX).await {
            Ok(bytes) => Ok(bytes),
            Err(error @ (StoreError::TooLarge { .. } | StoreError::NotFound { .. } | StoreError::Archived { .. })) => Err(error.to_string()),
            Err(error) if error.is_of_medium() => Err(error.to_string()),
            Err(error) => return Err(error),
        };
        let (sha256, why) = match read {
            Ok(bytes) => {
                let why = match Entry::decode(&bytes) {
                    Err(error) => {
                        format!("no entry: {}", std::error::Error::source(&error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")))
                    }
                    Ok(entry) => {
                        self.survey.told.add(&entry);
                        // What it ended with is not to count; that it has ended is so all the same.
                        if let Some(run) = self.survey.last_run.as_mut().filter(|run| Some(run.id) == entry.header.run) {
                            run.is_over |= ends_run(&entry);
                        }
                        self.why(&key, &entry)
                    }
                };
                (Some(Sha256::of(&bytes)), why)
            }
            Err(why) => (None, why),
        };
        self.survey.rejected.push(Rejected { key: key.to_string(), size, sha256, why });
        Ok(())
    }

    fn why(&self, key: &Key, entry: &Entry) -> String {
        let who = entry.header.run.map_or_else(|| format!("state folder {}", entry.header.writer.short()), |run| format!("run {}", run.short()));
        let at = entry.header.written_at;
        let next = self.survey.end.sequence + 1;
        let is_next = entry.header.sequence == next && entry.header.previous_sha256 == self.survey.end.sha256;
        let why = if is_next { "follows the last good entry, and is not to count" } else { "does not follow the last good entry" };
        let place = if key::log_name(key).is_some_and(|name| name.epoch() == entry.header.epoch) { "" } else { ", under a name that is not its own" };
        format!("written by {who} at {at:.0}; {why}{place}")
    }
}
