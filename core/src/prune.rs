//! Removing what is not needed any more: dumps by policy, old copies of the manifest, archived files that Immich can make again. A plan first.
//!
//! The log says so before any object goes. A prune that dies leaves objects that the log has given up, and the next one removes them.

use crate::budget::{CHECKPOINT_FILES_MAX, DEAD_AFTER, DELETES_IN_FLIGHT_MAX, NAMED_MAX};
use crate::crash::crash_point;
use crate::event::{Event, Monitor, Phase};
use crate::library::layout::class_of;
use crate::model::{Class, RunId, encode_segment};
use crate::repository::key::{self, Key};
use crate::repository::log::{Damaged, Fact, Pruned, Tally};
use crate::repository::manifest::{ManifestError, Removable};
use crate::repository::state::StateFolder;
use crate::repository::store::StoreError;
use crate::repository::{OpenError, Repository, Session};
use crate::retention::{self, Policy};
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What to remove.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which dumps stay.
    pub policy: Policy,
    /// Whose days, weeks, months and years those of the policy are.
    pub zone: TimeZone,
    /// Copies of the manifest too, but for the newest [`COPIES_KEPT`].
    pub copies: bool,
    /// The objects of archived files too, where Immich can make them again.
    pub derived: bool,
}

/// Copies of the manifest that stay: were the newest one damaged, the one before does.
pub const COPIES_KEPT: usize = 2;

/// How often one that waits looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What will be removed.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// The rules, as people write them.
    pub rule: String,
    /// What becomes of each dump.
    pub dumps: retention::Plan,
    /// Copies of the manifest that go; size in bytes, where the store has them.
    pub copies: Vec<(String, u64)>,
    /// What goes of derived files; `None` where that was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub derived: Option<Derived>,
    /// Objects that the log has given up already: an earlier prune did not come to its end.
    pub left_behind: u64,
}

/// What goes of archived derived files.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Derived {
    /// Objects.
    pub objects: Tally,
    /// Versions of files whose content lies in them.
    pub files: Tally,
    /// How many old snapshots will lack some of these files.
    pub snapshots: u64,
    /// The newest of them, newest first.
    pub lacking: Vec<LackingSnapshot>,
}

/// An old snapshot that will lack files.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LackingSnapshot {
    /// Which.
    pub id: RunId,
    /// When it was taken.
    pub taken_at: Timestamp,
    /// What it will lack.
    #[serde(flatten)]
    pub files: Tally,
}

impl Plan {
    /// Dumps that go.
    #[must_use]
    pub fn dumps_removed(&self) -> Tally {
        let mut tally = Tally::default();
        self.dumps.removed().for_each(|dump| tally.add(dump.size_bytes));
        tally
    }

    /// Copies of the manifest that go.
    #[must_use]
    pub fn copies_removed(&self) -> Tally {
        let mut tally = Tally::default();
        self.copies.iter().for_each(|(_, size_bytes)| tally.add(*size_bytes));
        tally
    }

    /// All objects that go, but for those that an earlier prune left behind.
    #[must_use]
    pub fn removed(&self) -> Tally {
        let derived = self.derived.as_ref().map_or(Tally::default(), |derived| derived.objects);
        let parts = [self.dumps_removed(), self.copies_removed(), derived];
        parts.iter().fold(Tally::default(), |sum, part| Tally { files: sum.files + part.files, bytes: sum.bytes.saturating_add(part.bytes) })
    }

    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.removed().files == 0 && self.left_behind == 0
    }
}

/// What a prune did.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// What it was to do.
    pub plan: Plan,
    /// Objects removed, or found to be gone.
    pub removed: u64,
    /// Objects that were to go and are needed after all: what stands lies in them again.
    pub needed: u64,
    /// Of these, objects that were gone by then: the log calls them damaged, and the next backup stores their content again.
    pub missed: u64,
    /// Asked to stop before the end, or a run began meanwhile: the next prune goes on.
    pub interrupted: bool,
}

/// What a prune at the end of a run did.
#[derive(Debug, Clone, PartialEq)]
pub enum AfterRun {
    /// All dumps stay.
    Nothing,
    /// Dumps would go, but these credentials may not remove anything, which is as it should be: `prune` with others does it.
    NotPermitted {
        /// What would go.
        dumps: Tally,
    },
    /// Another run is alive: this is left to the next one.
    Postponed {
        /// Who.
        who: String,
    },
    /// It removed something.
    Done(Box<Report>),
}

/// Why a prune did nothing, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The repository failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The credentials may not remove anything.
    #[error("the credentials in use may not remove objects from `{url}`")]
    NotPermitted {
        /// Where.
        url: String,
    },
    /// An object could not be removed.
    #[error("could not remove what is not needed any more")]
    Remove(#[source] StoreError),
    /// A run is alive.
    #[error("{who}")]
    Busy {
        /// Who.
        who: String,
    },
    /// Asked to stop while it waited.
    #[error("interrupted while waiting for a run")]
    Interrupted,
}

impl From<ManifestError> for PruneError {
    fn from(error: ManifestError) -> Self {
        Self::Open(error.into())
    }
}

impl From<StoreError> for PruneError {
    fn from(error: StoreError) -> Self {
        Self::Open(error.into())
    }
}

impl PruneError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open(error) => error.hint(),
            Self::NotPermitted { .. } => Some(
                "nothing was changed; a backup's credentials should not be able to do this: give `prune` others, which may delete (docs/stores.md), and keep them elsewhere"
                    .to_owned(),
            ),
            Self::Remove(StoreError::Denied { .. }) => {
                Some("give `prune` credentials that may delete (docs/stores.md), or wait until the store's retention lock has ended; the next prune goes on where this one stopped".to_owned())
            }
            Self::Remove(error) => error.hint().map(str::to_owned).or_else(|| Some("run `prune` again: it goes on where this one stopped".to_owned())),
            Self::Busy { .. } => Some("nothing was changed; run `prune` when the run has ended, or let it wait longer with --wait".to_owned()),
            Self::Interrupted => None,
        }
    }
}

/// The run of another machine that is alive, in words.
fn alive(session: &Session) -> Result<Option<String>, ManifestError> {
    let Some(run) = session.manifest.runs(1)?.into_iter().find(|run| run.outcome.is_none()) else { return Ok(None) };
    // A clock that is ahead makes no run older.
    let silent_for = Duration::try_from(Timestamp::now().duration_since(run.last_entry_at)).unwrap_or_default();
    // One's own unfinished run is dead: its lock is ours.
    if run.writer == session.writer || silent_for > DEAD_AFTER {
        return Ok(None);
    }
    Ok(Some(format!("run {} on `{}` wrote {} s ago", run.id.short(), encode_segment(run.started.host.as_bytes()), silent_for.as_secs())))
}

/// Opens the repository for a prune: waits, for `wait` at most, until no run of this or another machine is alive.
///
/// # Errors
/// Still busy after `wait`, or see [`OpenError`].
pub async fn open(repository: Repository, state: StateFolder, wait: Duration, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Session, PruneError> {
    let until = Instant::now() + wait;
    let lock = loop {
        if let Some(lock) = state.try_lock().map_err(OpenError::from)? {
            break lock;
        }
        wait_a_little("another process on this machine holds its state folder".to_owned(), until, monitor, stop).await?;
    };
    let mut session = Session::open(repository, state, lock, monitor).await?;
    while let Some(who) = alive(&session)? {
        wait_a_little(who, until, monitor, stop).await?;
        session.refresh(monitor).await?;
    }
    Ok(session)
}

async fn wait_a_little(who: String, until: Instant, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), PruneError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(PruneError::Busy { who });
    }
    monitor.emit(Event::Waiting { what: format!("{who}; waiting at most {} s more", left.as_secs()) });
    tokio::select! {
        () = stop.cancelled() => Err(PruneError::Interrupted),
        () = tokio::time::sleep(LOOK_EVERY.min(left)) => Ok(()),
    }
}

/// A prune that has been planned and can be done.
#[derive(Debug)]
pub struct Prepared {
    /// What it will do.
    pub plan: Plan,
    derived: Option<Removable>,
}

/// Says what a prune would do. Changes nothing.
///
/// # Errors
/// The repository cannot be asked.
pub async fn prepare(session: &Session, options: &Options) -> Result<Prepared, PruneError> {
    let manifest = &session.manifest;
    let damaged: BTreeSet<String> = manifest.damaged_objects()?.into_iter().map(|(key, _)| key).collect();
    let dumps = retention::plan(&manifest.dumps()?, &manifest.snapshots()?, &damaged, &options.policy, &options.zone);
    let copies = if options.copies { old_copies(session, &damaged).await? } else { Vec::new() };
    let is_derived = |file: &_| class_of(file) == Class::Derived;
    let scratch = session.state.own_scratch("removable.db");
    let removable = if options.derived { Some(Removable::collect(manifest, &scratch, is_derived)?) } else { None };
    let derived = match &removable {
        Some(removable) => {
            let lacking = removable.lacking(manifest)?;
            let named = lacking.iter().rev().take(NAMED_MAX);
            let named = named.map(|lacking| LackingSnapshot { id: lacking.snapshot.id, taken_at: lacking.snapshot.fact.taken_at, files: lacking.files });
            Some(Derived { objects: removable.objects()?, files: removable.files()?, snapshots: lacking.len() as u64, lacking: named.collect() })
        }
        None => None,
    };
    let rule = if options.derived { format!("{}, derived", options.policy) } else { options.policy.to_string() };
    Ok(Prepared { plan: Plan { rule, dumps, copies, derived, left_behind: manifest.count_given_up()? }, derived: removable })
}

/// Copies of the manifest that are older than the newest [`COPIES_KEPT`] whole ones which the log names; named or not, there or not.
async fn old_copies(session: &Session, damaged: &BTreeSet<String>) -> Result<Vec<(String, u64)>, PruneError> {
    let named = session.manifest.copies()?;
    let kept = named.iter().rev().filter(|(key, ..)| !damaged.contains(key)).nth(COPIES_KEPT - 1);
    let Some((_, _, oldest_kept, _)) = kept else { return Ok(Vec::new()) };
    let mut old: Vec<(String, u64)> = named.iter().filter(|(_, _, sequence, _)| sequence < oldest_kept).map(|(key, ..)| (key.clone(), 0)).collect();
    let mut listing = session.store().list(key::MANIFESTS, None);
    while let Some(found) = listing.try_next().await? {
        if key::manifest_position(&found.key).is_none_or(|(_, sequence)| sequence >= *oldest_kept) {
            continue;
        }
        match old.iter_mut().find(|(key, _)| key == found.key.as_str()) {
            Some((_, size_bytes)) => *size_bytes = found.size_bytes,
            None => old.push((found.key.to_string(), found.size_bytes)),
        }
    }
    Ok(old)
}

impl Prepared {
    /// Does it: the log first, then the objects. Nothing is written where the credentials may not remove objects, or a run is alive.
    ///
    /// # Errors
    /// See [`PruneError`]. What was written down and not removed is removed by the next prune.
    pub async fn run(self, session: &mut Session, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<Report, PruneError> {
        let mut report = Report { plan: self.plan.clone(), ..Report::default() };
        if self.plan.is_empty() {
            return Ok(report);
        }
        if session.store().may_delete().await == Some(false) {
            return Err(PruneError::NotPermitted { url: session.store().url().to_owned() });
        }
        session.refresh(monitor).await?;
        if let Some(who) = alive(session)? {
            return Err(PruneError::Busy { who });
        }
        self.give_up(session, monitor, stop).await?;
        crash_point!("prune: given up, nothing removed");
        let last = session.manifest.head().sequence;
        // Another machine may have begun a run between the look and the entry. It may have seen what was given up: nothing is taken from under it.
        session.refresh(monitor).await?;
        if stop.is_cancelled() || alive(session)?.is_some() {
            report.interrupted = true;
            return Ok(report);
        }
        let before = report.plan.left_behind;
        monitor.emit(Event::PhaseStarted { phase: Phase::Remove, total_files: Some(report.plan.removed().files + before), total_bytes: None });
        remove(session, last, &mut report, monitor, stop).await?;
        monitor.emit(Event::PhaseFinished { phase: Phase::Remove });
        if stop.is_cancelled() {
            report.interrupted = true;
            return Ok(report);
        }
        conclude(session, last, &mut report, monitor).await?;
        Ok(report)
    }

    /// Writes down what goes, a checkpoint's worth at a time.
    async fn give_up(&self, session: &mut Session, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), PruneError> {
        let at = Timestamp::now();
        let fact = |keys: Vec<String>| [Fact::Pruned(Pruned { at, keys, rule: self.plan.rule.clone(), removed_up_to: None })];
        let of_dumps = self.plan.dumps.removed().map(|dump| dump.key.clone());
        let keys: Vec<String> = of_dumps.chain(self.plan.copies.iter().map(|(key, _)| key.clone())).collect();
        for keys in keys.chunks(CHECKPOINT_FILES_MAX) {
            session.commit(None, &fact(keys.to_vec()), monitor).await?;
        }
        let Some(derived) = &self.derived else { return Ok(()) };
        let mut page = derived.page("")?;
        while let Some(last) = page.last().cloned().filter(|_| !stop.is_cancelled()) {
            session.commit(None, &fact(page), monitor).await?;
            page = derived.page(&last)?;
        }
        Ok(())
    }
}

/// Whether a prune may ever remove such an object: never the identity, the log, or a file of an external library.
fn may_go(key: &Key) -> bool {
    [key::DUMPS, key::MANIFESTS, "library/", "versions/"].iter().any(|prefix| key.as_str().starts_with(prefix))
}

/// Removes what log entries up to `last` gave up, unless something is known to lie in it again.
async fn remove(session: &Session, last: u64, report: &mut Report, monitor: &dyn Monitor, stop: &CancellationToken) -> Result<(), PruneError> {
    let mut after = String::new();
    loop {
        let page = session.manifest.given_up(last, &after)?;
        let Some(end) = page.last() else { return Ok(()) };
        after.clone_from(end);
        let mut keys = Vec::with_capacity(page.len());
        for key in page {
            match Key::parse(&key) {
                Ok(key) if may_go(&key) && !session.manifest.needs(key.as_str())? => keys.push(key),
                // What the log cannot have meant stays.
                _ => report.needed += 1,
            }
        }
        let store = &session.repository.store;
        let mut removals = futures_util::stream::iter(keys)
            .map(|key| {
                let store = Arc::clone(store);
                async move { store.delete(&key).await.map(|()| key) }
            })
            .buffer_unordered(DELETES_IN_FLIGHT_MAX);
        while let Some(removed) = removals.next().await {
            let key = removed.map_err(PruneError::Remove)?;
            report.removed += 1;
            crash_point!("prune: an object removed");
            monitor.emit(Event::ObjectRemoved { key: key.to_string() });
            if stop.is_cancelled() {
                return Ok(());
            }
        }
    }
}

/// Writes down that all is removed. Where another machine stored something in a removed object meanwhile, against all rules, the log says that it is gone,
/// so that the next backup stores it again.
async fn conclude(session: &mut Session, last: u64, report: &mut Report, monitor: &dyn Monitor) -> Result<(), PruneError> {
    session.refresh(monitor).await?;
    let mut after = String::new();
    loop {
        let page = session.manifest.given_up(last, &after)?;
        let Some(end) = page.last() else { break };
        after.clone_from(end);
        let mut facts = Vec::new();
        for key in page {
            let Ok(key) = Key::parse(&key) else { continue };
            if may_go(&key) && session.manifest.needs(key.as_str())? && session.store().head(&key).await?.is_none() {
                facts.push(Fact::Damaged(Damaged { key: key.to_string(), problem: "it was removed by a prune, while a run stored a file in it".to_owned() }));
            }
        }
        if !facts.is_empty() {
            report.missed += facts.len() as u64;
            session.commit(None, &facts, monitor).await?;
        }
    }
    crash_point!("prune: all removed, not said");
    let done = Pruned { at: Timestamp::now(), keys: Vec::new(), rule: report.plan.rule.clone(), removed_up_to: Some(last) };
    session.commit(None, &[Fact::Pruned(done)], monitor).await?;
    Ok(())
}

/// At the end of a run: removes dumps by `policy`, where the credentials may.
///
/// # Errors
/// The repository failed. The run itself is whole by then.
pub async fn after_run(
    session: &mut Session,
    policy: &Policy,
    zone: &TimeZone,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<AfterRun, PruneError> {
    if policy.keeps_all() {
        return Ok(AfterRun::Nothing);
    }
    let prepared = prepare(session, &Options { policy: policy.clone(), zone: zone.clone(), copies: false, derived: false }).await?;
    if prepared.plan.is_empty() {
        return Ok(AfterRun::Nothing);
    }
    let dumps = prepared.plan.dumps_removed();
    match prepared.run(session, monitor, stop).await {
        Ok(report) => Ok(AfterRun::Done(Box::new(report))),
        Err(PruneError::NotPermitted { .. } | PruneError::Remove(StoreError::Denied { .. })) => Ok(AfterRun::NotPermitted { dumps }),
        Err(PruneError::Busy { who }) => Ok(AfterRun::Postponed { who }),
        Err(error) => Err(error),
    }
}
