//! Going on after the log was damaged, and bringing back what is damaged in the store or in the library. A plan first; nothing is overwritten or removed.

mod error;
mod library;
mod objects;
mod survey;

pub use error::RepairError;
pub use library::{Heal, HealReport, Healing, LibraryOptions, LibrarySource, SourceFile, prepare_library};
pub use objects::{Found, ObjectsOptions, ObjectsPlan, ObjectsReport, Wanted, prepare_objects};
pub use survey::{Branch, Survey, Told, survey};

use crate::budget::{DEAD_AFTER, LOG_ENTRY_BYTES_MAX, REJECTED_NAMED_MAX, REPAIR_ROUNDS_MAX};
use crate::event::Monitor;
use crate::library::read::ReadError;
use crate::model::{RepositoryId, Sha256, WriterId, encode_segment};
use crate::repository::key::Key;
use crate::repository::log::{EpochFact, Fact, Head, Header, LogError, create, encode};
use crate::repository::state::{StateError, StateFolder};
use crate::repository::store::{Attributes, Created, Kind, Store, StoreError, read_all};
use crate::repository::{Repository, Session};
use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use std::path::PathBuf;

/// What the owner has decided of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// This entry and all after it are not to count, good as they may look.
    pub reject_from: Option<u64>,
    /// This epoch and all after it are not to count.
    pub reject_epoch: Option<u32>,
    /// Of several ways in which the log goes on, the one that this run (or state folder) wrote: the beginning of its id.
    pub keep: Option<String>,
    /// An epoch that somebody else began, and that is to count here.
    pub accept_epoch: Option<u32>,
}

/// Why a live file could not be read, in words.
fn unread(error: ReadError) -> String {
    match error {
        ReadError::Vanished => "it is not there any more".to_owned(),
        ReadError::NotRegular => "it is no regular file".to_owned(),
        ReadError::Changed => "it is not what it was a moment ago".to_owned(),
        ReadError::Stopped => "interrupted".to_owned(),
        ReadError::Io(error) => error.to_string(),
    }
}

/// What a repair of the log would do.
#[derive(Debug, Clone)]
pub struct LogPlan {
    /// The log as it is.
    pub survey: Survey,
    /// How far it was seen from here before.
    pub seen: Option<Head>,
    /// The epoch that would be opened; `None` where the log needs none.
    pub opens: Option<u32>,
    /// An epoch that somebody else has opened and that would be accepted: its number, machine and time, and the SHA-256 of what opens it.
    pub accepts: Option<(u32, String, Timestamp, Sha256)>,
    /// Why it will not be done, unless somebody decides.
    pub refused: Option<Refusal>,
}

/// Why a repair of the log is not made by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Somebody else's epoch cuts off what was seen here.
    Rejected(Box<Cut>),
    /// The log goes through another entry than was seen here.
    Rewritten(u64),
    /// [`RepairError::Intact`].
    Intact(u64, u64),
    /// [`RepairError::UnreadEpoch`].
    UnreadEpoch(u32, u64),
}

/// Whose epoch cuts off what, as [`LogError::Rejected`] has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    epoch: u32,
    base: u64,
    seen: u64,
    host: String,
    at: Timestamp,
    sha256: Sha256,
}

impl Refusal {
    /// The same as an error.
    #[must_use]
    pub fn error(&self) -> RepairError {
        match self {
            Self::Rejected(cut) => {
                let Cut { epoch, base, seen, host, at, sha256 } = (**cut).clone();
                LogError::Rejected { epoch, base, seen, host, at, sha256 }.into()
            }
            Self::Rewritten(sequence) => LogError::Rewritten { sequence: *sequence }.into(),
            Self::Intact(from, to) => RepairError::Intact { from: *from, to: *to },
            Self::UnreadEpoch(epoch, first) => RepairError::UnreadEpoch { epoch: *epoch, first: *first },
        }
    }
}

impl LogPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.opens.is_none() && self.accepts.is_none() && self.refused.is_none()
    }
}

/// Says what a repair of the log would do. Changes nothing.
///
/// # Errors
/// The store or the state folder fail; or what was decided does not fit the log.
pub async fn prepare_log(repository: &Repository, state: &StateFolder, decision: &Decision) -> Result<LogPlan, RepairError> {
    let store = repository.store.as_ref();
    let mut survey = survey(store, &repository.start, decision).await?;
    let is_named = |epoch: u32| epoch > 0 && epoch <= survey.newest_epoch;
    if let Some(epoch) = decision.reject_epoch.filter(|epoch| !is_named(*epoch)) {
        return Err(RepairError::NoEpoch { epoch });
    }
    if let Some(sequence) = decision.reject_from.filter(|sequence| *sequence == 0 || *sequence > survey.end.sequence + 1 || survey.rejected_count == 0) {
        return Err(RepairError::NoEntry { sequence, last: survey.end.sequence });
    }
    let seen = state.seen()?.filter(|seen| seen.sequence > 0);
    let accepted = state.accepted_epochs()?;
    let mut plan = LogPlan { seen, opens: None, accepts: None, refused: None, survey: Survey::clone(&survey) };
    if let Some(epoch) = decision.accept_epoch {
        let Some(opening) = survey.openings.iter().find(|opening| opening.epoch() == epoch) else { return Err(RepairError::NoEpoch { epoch }) };
        plan.accepts = Some((epoch, opening.fact.host.clone(), opening.fact.at, opening.entry.sha256));
    } else if survey.branches.is_empty() {
        plan.refused = refusal(store, &survey, seen, &accepted, decision).await?;
        let is_cut = seen.is_some_and(|seen| survey.openings.iter().any(|opening| opening.epoch() > seen.epoch));
        if let Some(seen) = seen.filter(|seen| !survey.goes_through(seen) && !is_cut)
            && plan.refused.is_none()
            && survey.is_sound()
        {
            // Nothing is there that could be rejected; what was there is gone.
            survey.missing_count = seen.sequence.saturating_sub(survey.end.sequence).max(1);
            survey.problems.push(LogError::WentBack { seen: seen.sequence, now: survey.end.sequence }.to_string());
            plan.survey = survey.clone();
        }
    }
    if !survey.is_sound() {
        plan.opens = Some(survey.newest_epoch + 1);
    }
    Ok(plan)
}

/// Why the log must not go on after the end of `survey`, as far as this machine knows: what was seen from here, is there still, and would not count.
async fn refusal(store: &dyn Store, survey: &Survey, seen: Option<Head>, accepted: &[Sha256], decision: &Decision) -> Result<Option<Refusal>, RepairError> {
    // The owner has said that exactly what comes now is not to count.
    let is_named = decision.reject_from == Some(survey.end.sequence + 1);
    if let Some((epoch, first)) = survey.unread_epoch.filter(|_| !is_named) {
        return Ok(Some(Refusal::UnreadEpoch(epoch, first)));
    }
    let Some(seen) = seen.filter(|seen| !survey.goes_through(seen)) else { return Ok(None) };
    // An epoch that cuts off what was seen here.
    if let Some(cut) = survey.openings.iter().find(|opening| opening.epoch() > seen.epoch) {
        let (epoch, base, host, at, sha256) = (cut.epoch(), cut.base().sequence, cut.fact.host.clone(), cut.fact.at, cut.entry.sha256);
        let is_known = accepted.contains(&sha256);
        return Ok((!is_known).then(|| Refusal::Rejected(Box::new(Cut { epoch, base, seen: seen.sequence, host, at, sha256 }))));
    }
    let is_named = is_named || decision.reject_epoch.is_some_and(|epoch| epoch <= seen.epoch) || survey.forked_at.is_some_and(|fork| fork <= seen.sequence);
    if is_named {
        return Ok(None);
    }
    if is_there(store, survey, &seen).await? {
        return Ok(Some(Refusal::Intact(seen.sequence.min(survey.end.sequence + 1), seen.sequence)));
    }
    let is_another = seen.epoch == survey.end.epoch && seen.sequence <= survey.end.sequence;
    Ok(is_another.then_some(Refusal::Rewritten(seen.sequence)))
}

/// Whether the entry `head` is in the store, part of the log or not. One that has to be thawed first may be it.
async fn is_there(store: &dyn Store, survey: &Survey, head: &Head) -> Result<bool, RepairError> {
    let entries = survey.listing.entries.get(&head.epoch).and_then(|entries| entries.get(&head.sequence));
    let openings = survey.listing.openings.get(&head.epoch);
    let listed = entries.into_iter().chain(openings).flatten().map(|(key, _)| key.clone());
    // Also where a listing does not show it.
    let usual = [Key::log_entry_in(head.epoch, head.sequence, None)];
    for key in usual.into_iter().chain(listed) {
        match read_all(store, &key, LOG_ENTRY_BYTES_MAX).await {
            Ok(bytes) if Sha256::of(&bytes) == head.sha256 => return Ok(true),
            Err(StoreError::Archived { .. }) => return Ok(true),
            Ok(_) | Err(StoreError::NotFound { .. } | StoreError::TooLarge { .. }) => {}
            Err(error) if error.is_of_medium() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// What a repair of the log did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogReport {
    /// The epochs that were opened, with the SHA-256 of what opens them.
    pub opened: Vec<(u32, Sha256)>,
    /// The epoch of somebody else that was accepted.
    pub accepted: Option<u32>,
}

/// Repairs the log: opens a new epoch, by an entry that is created where nothing is. May be run again after it died at any point. Whoever calls it holds the
/// lock of the state folder.
///
/// # Errors
/// See [`RepairError`]; nothing was changed then but what `LogReport` would have said, and the next repair goes on.
pub async fn repair_log(
    repository: &Repository,
    state: &StateFolder,
    decision: &Decision,
    host: &str,
    mut opened: impl FnMut(&LogPlan),
) -> Result<LogReport, RepairError> {
    let mut report = LogReport::default();
    let mut decision = decision.clone();
    let mut written: Option<(u32, Head)> = None;
    for _ in 0..REPAIR_ROUNDS_MAX {
        let plan = prepare_log(repository, state, &decision).await?;
        if let Some((epoch, _, _, sha256)) = &plan.accepts {
            state.accept_epoch(*sha256)?;
            report.accepted = Some(*epoch);
            decision.accept_epoch = None;
            continue;
        }
        if let Some(refused) = &plan.refused {
            return Err(refused.error());
        }
        let Some(epoch) = plan.opens else { return Ok(report) };
        // Nobody has been shown what comes now: it may concern nothing but what lies beyond what was written a moment ago.
        if let Some((opened, head)) = &written
            && *head != plan.survey.end
        {
            return Err(RepairError::NotAsPlanned { epoch: *opened, problem: plan.survey.problems.first().cloned().unwrap_or_default() });
        }
        if !plan.survey.branches.is_empty() {
            return Err(RepairError::Undecided { branches: plan.survey.branches.len() });
        }
        let writer = state.writer()?;
        if let Some(who) = alive(&plan.survey, writer) {
            return Err(RepairError::Busy { who });
        }
        opened(&plan);
        let sha256 = open_epoch(repository, state, &plan, epoch, host, writer).await?;
        // Back to the last good entry: what was made of the others is made anew.
        state.set_seen(&plan.survey.end)?;
        crate::repository::manifest::remove(&state.manifest())?;
        report.opened.push((epoch, sha256));
        written = Some((epoch, Head { epoch, sequence: plan.survey.end.sequence + 1, sha256 }));
        // What was decided is done; a further round looks at what was prepared for this epoch.
        decision = Decision::default();
    }
    Err(RepairError::Endless)
}

/// The run of another machine that may be writing, in words.
fn alive(survey: &Survey, writer: WriterId) -> Option<String> {
    let runs = survey.last_run.iter().chain(survey.rejected_runs.values().filter(|run| run.has_begun));
    runs.filter(|run| !run.is_over && run.writer != writer).find_map(|run| {
        let silent_for = Timestamp::now().duration_since(run.last_entry_at);
        // A clock may be some minutes ahead; whoever writes from further in the future would keep the log from being repaired until then.
        let is_near = silent_for.unsigned_abs() <= DEAD_AFTER;
        let seconds = silent_for.as_secs().max(0);
        is_near.then(|| format!("run {} on `{}` wrote {seconds} s ago", run.id.short(), encode_segment(run.host.as_bytes())))
    })
}

async fn open_epoch(repository: &Repository, state: &StateFolder, plan: &LogPlan, epoch: u32, host: &str, writer: WriterId) -> Result<Sha256, RepairError> {
    let (store, survey) = (repository.store.as_ref(), &plan.survey);
    repository.begin_writing(Some(&state.uploads())).await?;
    let is_conditional = store.capabilities().conditional_create;
    let fact = EpochFact {
        at: Timestamp::now(),
        host: host.to_owned(),
        base_epoch: survey.end.epoch,
        reason: survey.problems.first().cloned().unwrap_or_default(),
        rejected_count: survey.rejected_count,
        rejected: survey.rejected.iter().take(REJECTED_NAMED_MAX).cloned().collect(),
        missing_count: survey.missing_count,
    };
    let header = Header {
        format: crate::repository::log::FORMAT,
        epoch,
        sequence: survey.end.sequence + 1,
        previous_sha256: survey.end.sha256,
        run: None,
        written_at: fact.at,
        writer,
    };
    let key = Key::log_opening(epoch, (!is_conditional).then_some(&writer as &dyn std::fmt::Display));
    let encoded = encode(&header, &[Fact::Epoch(Box::new(fact))]).map_err(|source| StoreError::Io { action: "compress", key: key.to_string(), source })?;
    let bytes = Bytes::from(encoded);
    let sha256 = Sha256::of(&bytes);
    // First: who dies right after the entry has to know its own repair.
    state.accept_epoch(sha256)?;
    if !create(store, &key, &bytes, sha256).await? {
        return Err(RepairError::Yielded { epoch });
    }
    store.sync().await?;
    Ok(sha256)
}

/// What became of a `format.json` that is missing or damaged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityRepair {
    /// It can be created again, byte for byte, or has been.
    Restorable(RepositoryId),
    /// Something else has its name, and nothing may be overwritten: its right bytes are kept in this file.
    Taken(PathBuf),
    /// It is missing, and so is all of the log: what is there is another place than the repository's.
    Nothing,
    /// No state folder here has its bytes.
    Unknown,
}

/// Brings `format.json` back from a state folder of this machine: where it is missing, it is created again; with `apply` false nothing is changed.
///
/// # Errors
/// The store or the state folder fail.
pub async fn repair_identity(store: &dyn Store, state: Option<&StateFolder>, apply: bool) -> Result<IdentityRepair, RepairError> {
    #[derive(serde::Deserialize)]
    struct Identity {
        repository: RepositoryId,
    }
    let Some((state, text)) = state.map(|state| Ok::<_, StateError>((state, state.identity()?))).transpose()? else { return Ok(IdentityRepair::Unknown) };
    let Some((text, identity)) = text.and_then(|text| serde_json::from_str::<Identity>(&text).ok().map(|identity| (text, identity))) else {
        return Ok(IdentityRepair::Unknown);
    };
    let key = Key::identity();
    if store.head(&key).await?.is_some() {
        let found = read_all(store, &key, crate::budget::IDENTITY_BYTES_MAX).await;
        return Ok(match found {
            Ok(found) if *found == *text.as_bytes() => IdentityRepair::Restorable(identity.repository),
            _ => IdentityRepair::Taken(state.folder().join(crate::repository::state::IDENTITY)),
        });
    }
    // A disk that is not mounted, or a new bucket, looks so; a second repository must not begin there.
    if store.list(crate::repository::key::LOG, None).next().await.transpose()?.is_none() {
        return Ok(IdentityRepair::Nothing);
    }
    if apply {
        let bytes = Bytes::from(text);
        let created = store.create(&key, bytes.clone(), &Attributes::of(Kind::Identity, Sha256::of(&bytes))).await?;
        if created != Created::New && read_all(store, &key, crate::budget::IDENTITY_BYTES_MAX).await? != bytes {
            return Ok(IdentityRepair::Taken(state.folder().join(crate::repository::state::IDENTITY)));
        }
        store.sync().await?;
    }
    Ok(IdentityRepair::Restorable(identity.repository))
}

/// Opens the repository for a repair that writes.
///
/// # Errors
/// Another process writes from this state folder; or see [`crate::repository::OpenError`].
pub async fn open(repository: Repository, state: StateFolder, monitor: &dyn Monitor) -> Result<Session, RepairError> {
    let Some(lock) = state.try_lock()? else { return Err(RepairError::Busy { who: "another process on this machine holds its state folder".to_owned() }) };
    Ok(Session::open(repository, state, lock, monitor).await?)
}
