//! The whole log, read as far as it is good, and what stands in the way of the rest.

use super::Decision;
use crate::budget::{LOG_ENTRY_BYTES_MAX, REJECTED_NAMED_MAX, REPAIR_ROUNDS_MAX};
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
    /// Objects that a prune was about to remove: they may be gone.
    pub pruned: u64,
    /// Objects that were found damaged, or missing.
    pub damaged: u64,
    /// Contents that were stored again in another object's place.
    pub relocated: u64,
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
                Fact::Pruned(pruned) => self.pruned = self.pruned.saturating_add(pruned.keys.len() as u64),
                Fact::Damaged(_) => self.damaged += 1,
                Fact::Relocated(_) => self.relocated += 1,
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
    /// Whether its beginning is there: a single entry that names a run is none.
    pub(super) has_begun: bool,
}

/// What `entry` says of the run that speaks, after what was known of it `before`.
fn run_of(entry: &Entry, before: Option<LastRun>) -> Option<LastRun> {
    let run = entry.header.run?;
    let before = before.filter(|before| before.id == run);
    let ended = entry.facts.iter().any(|fact| matches!(fact, Fact::Snapshot(_)) || matches!(fact, Fact::RunEnded(ended) if ended.shard.is_none()));
    let began = entry.facts.iter().find_map(|fact| if let Fact::RunStarted(started) = fact { Some(started.host.clone()) } else { None });
    let is_over = ended || before.as_ref().is_some_and(|before| before.is_over);
    let last_entry_at = before.as_ref().map_or(entry.header.written_at, |before| before.last_entry_at.max(entry.header.written_at));
    let has_begun = began.is_some() || before.as_ref().is_some_and(|before| before.has_begun);
    let host = began.or(before.map(|before| before.host)).unwrap_or_default();
    Some(LastRun { id: run, host, writer: entry.header.writer, last_entry_at, is_over, has_begun })
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
    /// An epoch that nobody asked to reject and that cannot be read, though entries of it are intact: its number, and the lowest number of these.
    pub unread_epoch: Option<(u32, u64)>,
    /// The entry at which a fork was decided, by who asked for this survey.
    pub(super) forked_at: Option<u64>,
    pub(super) last_run: Option<LastRun>,
    /// Runs whose entries are among what would be rejected.
    pub(super) rejected_runs: BTreeMap<RunId, LastRun>,
    /// The good entries by their numbers.
    heads: BTreeMap<u64, Head>,
    pub(super) listing: Listing,
}

impl Survey {
    /// Whether the log is as it should be, and nothing was to be rejected.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty() && self.rejected_count == 0 && self.branches.is_empty()
    }

    /// Whether the good part of the log goes through this entry.
    #[must_use]
    pub fn goes_through(&self, head: &Head) -> bool {
        head.sequence == 0 || self.heads.get(&head.sequence) == Some(head)
    }
}

/// How walking towards an entry ended.
enum Walked {
    /// There.
    There,
    /// Somebody decided that the log ends before, or has to decide.
    Decided,
    /// The log goes on, and not to there.
    Astray,
}

struct Walker<'a> {
    store: &'a dyn Store,
    decision: &'a Decision,
    listing: Listing,
    good: BTreeSet<String>,
    /// What claims to open an epoch, and does not.
    dropped: &'a BTreeSet<String>,
    /// Epochs that cannot be read, though nobody asked to reject them.
    unread: BTreeSet<u32>,
    survey: Survey,
}

/// Reads the log from its beginning, `start`.
///
/// # Errors
/// The store's. What is wrong with the log is no error.
pub async fn survey(store: &dyn Store, start: &Head, decision: &Decision) -> Result<Survey, StoreError> {
    let listing = Listing::read(store, start).await?;
    let found = longest(store, start, decision, &listing).await?;
    if found.is_sound() {
        return Ok(found);
    }
    // What one listing does not show is not gone: it may have been late.
    let again = Listing::read(store, start).await?;
    if again == listing { Ok(found) } else { longest(store, start, decision, &again).await }
}

/// The survey in which the log goes furthest: what claims to open an epoch, and does not build on the log, must not make it shorter.
async fn longest(store: &dyn Store, start: &Head, decision: &Decision, listing: &Listing) -> Result<Survey, StoreError> {
    let (mut dropped, mut remarks) = (BTreeSet::new(), Vec::new());
    let (mut best, mut astray) = once(store, start, decision, listing, &dropped, &remarks).await?;
    for _ in 0..REPAIR_ROUNDS_MAX {
        let Some(key) = astray else { break };
        remarks.push(format!("`{key}` opens an epoch, and does not build on the log"));
        dropped.insert(key);
        let (found, next) = once(store, start, decision, listing, &dropped, &remarks).await?;
        if found.end.sequence > best.end.sequence {
            best = found;
        }
        astray = next;
    }
    Ok(best)
}

/// The survey without what was `dropped`, and what it went astray for.
async fn once(
    store: &dyn Store,
    start: &Head,
    decision: &Decision,
    listing: &Listing,
    dropped: &BTreeSet<String>,
    remarks: &[String],
) -> Result<(Survey, Option<String>), StoreError> {
    let mut walker = Walker::new(store, start, decision, listing, dropped);
    walker.survey.problems.extend_from_slice(remarks);
    let (openings, rejected) = walker.openings().await?;
    let astray = walker.walk(&openings, &rejected).await?;
    let old: BTreeSet<String> = walker.survey.openings.iter().flat_map(|opening| opening.rejected().map(str::to_owned).collect::<Vec<_>>()).collect();
    walker.reject_the_rest(&old).await?;
    Ok((walker.survey, astray))
}

/// An error of the store, which says nothing of the log; else what is wrong with the log.
fn problem(error: LogError) -> Result<LogError, StoreError> {
    match error {
        LogError::Store(error) if !is_of_object(&error) => Err(error),
        other => Ok(other),
    }
}

/// Whether the error is one of that object alone, and the next request may go well.
fn is_of_object(error: &StoreError) -> bool {
    matches!(error, StoreError::TooLarge { .. } | StoreError::NotFound { .. } | StoreError::Archived { .. }) || error.is_of_medium()
}

fn with_causes(error: &LogError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

impl<'a> Walker<'a> {
    fn new(store: &'a dyn Store, start: &Head, decision: &'a Decision, listing: &Listing, dropped: &'a BTreeSet<String>) -> Self {
        let survey = Survey {
            end: *start,
            openings: Vec::new(),
            problems: Vec::new(),
            rejected: Vec::new(),
            rejected_count: 0,
            told: Told::default(),
            branches: Vec::new(),
            missing_count: 0,
            newest_epoch: listing.newest_epoch(0),
            unread_epoch: None,
            forked_at: None,
            last_run: None,
            rejected_runs: BTreeMap::new(),
            heads: BTreeMap::new(),
            listing: listing.clone(),
        };
        Self { store, decision, listing: listing.clone(), good: BTreeSet::new(), dropped, unread: BTreeSet::new(), survey }
    }

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
                    self.unread.extend(openings.iter().map(Opening::epoch));
                    openings.clear();
                    if rejected.is_empty() {
                        self.unread.insert(epoch);
                        epoch -= 1;
                    }
                    // Else a later one may have rejected what it builds on: it is looked at once more, by itself.
                    rejected.clear();
                }
            }
        }
        openings.reverse();
        Ok((openings, rejected))
    }

    /// What opens `epoch`; `None` where nothing does, or more than one.
    async fn opening(&mut self, epoch: u32, rejected: &BTreeSet<String>) -> Result<Option<Opening>, StoreError> {
        let all: Vec<String> = self.listing.openings.get(&epoch).into_iter().flatten().map(|(key, _)| key.to_string()).collect();
        let candidates: Vec<&String> = all.iter().filter(|key| !rejected.contains(*key) && !self.dropped.contains(*key)).collect();
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for key in &candidates {
            let others = all.iter().filter(|other| other != key).cloned().collect();
            match log::opening(self.store, &self.listing, epoch, &others).await {
                Ok(opening) => good.push(opening),
                Err(error) => bad.push(with_causes(&problem(error)?)),
            }
        }
        if candidates.is_empty() && !all.iter().any(|key| self.dropped.contains(key)) {
            let problem = if all.is_empty() { "the entry that opens it is missing" } else { "the entry that opens it is rejected by one that builds on it" };
            bad.push(LogError::Epoch { epoch, problem: problem.to_owned() }.to_string());
        }
        self.survey.problems.extend(bad);
        // The same bytes under two names are one entry; the shorter name is the one that this program gives.
        good.sort_by_key(|opening| (opening.entry.sha256, opening.key.as_str().len()));
        good.dedup_by_key(|opening| opening.entry.sha256);
        if good.len() > 1 {
            let keep = self.decision.keep.as_deref().filter(|keep| !keep.is_empty());
            self.survey.problems.push(format!("{} entries open epoch {epoch}: two machines repaired the log at once", good.len()));
            let is_kept =
                |opening: &Opening| keep.is_some_and(|keep| opening.entry.header.writer.to_string().starts_with(keep) || opening.key.as_str() == keep);
            if good.iter().filter(|opening| is_kept(opening)).count() != 1 {
                for opening in good {
                    let Opening { key, entry, fact } = opening;
                    let (name, host) = (entry.header.writer.to_string(), Some(fact.host));
                    let branch = self.follow(key, entry).await?;
                    self.survey.branches.push(Branch { name, host, ..branch });
                }
                return Ok(None);
            }
            good.retain(is_kept);
            self.survey.forked_at = good.first().map(|opening| opening.entry.header.sequence);
        }
        Ok(good.pop().filter(|_| good.is_empty()))
    }

    /// Goes through the log as these epochs have it. The one that the log does not lead to, where there is one.
    async fn walk(&mut self, openings: &[Opening], rejected: &BTreeSet<String>) -> Result<Option<String>, StoreError> {
        for opening in openings.iter().map(Some).chain([None]) {
            let base = opening.map(Opening::base);
            let walked = self.walk_epoch(base.as_ref(), rejected).await?;
            let Some(opening) = opening else { return Ok(None) };
            match walked {
                Walked::There => {}
                Walked::Decided => return Ok(None),
                Walked::Astray => return Ok(Some(opening.key.to_string())),
            }
            if base != Some(self.survey.end) {
                self.survey.problems.push(format!("epoch {} does not follow entry {}", opening.epoch(), self.survey.end.sequence));
                return Ok(Some(opening.key.to_string()));
            }
            if self.is_enough(opening.entry.header.sequence) {
                return Ok(None);
            }
            self.take(&opening.key, &opening.entry);
            self.survey.openings.push(opening.clone());
        }
        Ok(None)
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
        self.survey.heads.insert(self.survey.end.sequence, self.survey.end);
        if let Some(run) = run_of(entry, self.survey.last_run.clone()) {
            self.survey.last_run = Some(run);
        }
    }

    /// Goes on within the epoch of the last good entry, up to `base` where there is one.
    async fn walk_epoch(&mut self, base: Option<&Head>, rejected: &BTreeSet<String>) -> Result<Walked, StoreError> {
        let epoch = self.survey.end.epoch;
        loop {
            let next = self.survey.end.sequence + 1;
            if base.is_some_and(|base| next > base.sequence) {
                return Ok(Walked::There);
            }
            if self.is_enough(next) {
                return Ok(Walked::Decided);
            }
            let listed = self.listing.entries.get(&epoch);
            let all = listed.and_then(|entries| entries.get(&next)).cloned().unwrap_or_default();
            let mut candidates: Vec<Key> = all.into_iter().map(|(key, _)| key).filter(|key| !rejected.contains(key.as_str())).collect();
            if candidates.is_empty()
                && let Some(late) = self.late(epoch, next, rejected).await?
            {
                candidates.push(late);
            }
            if candidates.is_empty() {
                let listed = self.listing.entries.get(&epoch);
                let later = listed.and_then(|entries| entries.range(next..).next()).map(|(sequence, _)| *sequence);
                let later = base.map(|base| base.sequence + 1).or(later);
                if let Some(later) = later {
                    self.survey.problems.push(with_causes(&LogError::Gap { missing: next, next: later }));
                    self.survey.missing_count = later - next;
                }
                return Ok(if later.is_some() { Walked::Astray } else { Walked::There });
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
                    None => return Ok(Walked::Decided),
                }
                continue;
            }
            self.survey.problems.extend(bad);
            let Some((key, entry)) = good.pop() else { return Ok(Walked::Astray) };
            self.take(&key, &entry);
        }
    }

    /// The entry of this number, where no listing shows it and it is there all the same.
    async fn late(&mut self, epoch: u32, sequence: u64, rejected: &BTreeSet<String>) -> Result<Option<Key>, StoreError> {
        let key = Key::log_entry_in(epoch, sequence, None);
        if rejected.contains(key.as_str()) {
            return Ok(None);
        }
        let Some(found) = self.store.head(&key).await? else { return Ok(None) };
        self.listing.entries.entry(epoch).or_default().entry(sequence).or_default().push((key.clone(), found.size_bytes));
        Ok(Some(key))
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
            Some(chosen) => {
                if base.is_none() {
                    self.survey.forked_at = Some(sequence);
                }
                Ok(Some(branches.swap_remove(chosen).path))
            }
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
            Err(error) if is_of_object(&error) => Err(error.to_string()),
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
                        self.note_rejected(&key, &entry);
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

    /// Notes who spoke in an intact entry that would be rejected, and whether it is of an epoch that cannot be read.
    fn note_rejected(&mut self, key: &Key, entry: &Entry) {
        if let Some(run) = entry.header.run.and_then(|id| run_of(entry, self.survey.rejected_runs.remove(&id))) {
            // What it ended with is not to count; that it has ended is so all the same.
            if let Some(last) = self.survey.last_run.as_mut().filter(|last| last.id == run.id) {
                last.is_over |= run.is_over;
                last.last_entry_at = last.last_entry_at.max(run.last_entry_at);
            }
            self.survey.rejected_runs.insert(run.id, run);
        }
        if let Some(LogName::Entry { epoch, sequence }) = key::log_name(key)
            && (epoch, sequence) == (entry.header.epoch, entry.header.sequence)
            && self.unread.contains(&epoch)
        {
            let before = self.survey.unread_epoch.filter(|(before, _)| *before <= epoch);
            self.survey.unread_epoch =
                Some(before.map_or((epoch, sequence), |(before, lowest)| (before, if before == epoch { lowest.min(sequence) } else { lowest })));
        }
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
