//! Going on after the log was damaged, and bringing back what is damaged in the store or in the library. A plan first; nothing is overwritten or removed.

mod library;
mod objects;
mod survey;

pub use library::{Heal, HealReport, Healing, LibraryOptions, LibrarySource, SourceFile, prepare_library};
pub use objects::{Found, ObjectsOptions, ObjectsPlan, ObjectsReport, Wanted, prepare_objects};
pub use survey::{Branch, Survey, Told, survey};

use crate::budget::{CHECKPOINT_INTERVAL, REJECTED_NAMED_MAX, REPAIR_ROUNDS_MAX};
use crate::event::Monitor;
use crate::library::read::ReadError;
use crate::library::tree::TreeError;
use crate::model::{RepositoryId, Sha256, WriterId, encode_segment};
use crate::repository::key::Key;
use crate::repository::log::{EpochFact, Fact, Head, Header, LogError, create, encode};
use crate::repository::manifest::ManifestError;
use crate::repository::state::{StateError, StateFolder};
use crate::repository::store::{Attributes, Created, Kind, Store, StoreError, read_all};
use crate::repository::{OpenError, Repository, Session};
use bytes::Bytes;
use jiff::Timestamp;
use std::path::PathBuf;
use std::time::Duration;

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
            Self::Endless => "somebody is writing to the log as fast as it is repaired: change the writer's credentials, then repair again".to_owned(),
            Self::Interrupted | Self::Library(_) | Self::Read { .. } => return None,
            Self::Folder { .. } => "check that it is mounted, and that this user may write there".to_owned(),
            Self::Nested { .. } => "nothing was changed; give --keep-damaged another folder".to_owned(),
        })
    }
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

/// A run that wrote so recently may be alive: three heartbeats.
const DEAD_AFTER: Duration = CHECKPOINT_INTERVAL.saturating_mul(3);

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
    /// What stands between this machine and the log, though the log itself is good.
    pub refused: Option<(String, Option<String>)>,
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
    let mut plan = LogPlan { seen, opens: None, accepts: None, refused: None, survey: survey.clone() };
    // An epoch that cuts off what was seen here.
    let cut = seen.and_then(|seen| survey.openings.iter().find(|opening| opening.epoch() > seen.epoch && opening.base().sequence < seen.sequence));
    if let Some(epoch) = decision.accept_epoch {
        let Some(opening) = survey.openings.iter().find(|opening| opening.epoch() == epoch) else { return Err(RepairError::NoEpoch { epoch }) };
        plan.accepts = Some((epoch, opening.fact.host.clone(), opening.fact.at, opening.entry.sha256));
    } else if let (Some(cut), Some(seen)) = (cut.filter(|cut| !accepted.contains(&cut.entry.sha256)), seen) {
        let refused = LogError::Rejected {
            epoch: cut.epoch(),
            base: cut.base().sequence,
            seen: seen.sequence,
            host: cut.fact.host.clone(),
            at: cut.fact.at,
            sha256: cut.entry.sha256,
        };
        plan.refused = Some((refused.to_string(), refused.hint()));
    } else if let Some(seen) = seen.filter(|seen| cut.is_none() && seen.sequence > survey.end.sequence && seen.epoch >= survey.end.epoch)
        && survey.is_sound()
    {
        // Nothing is there that could be rejected; what was there is gone.
        survey.missing_count = seen.sequence - survey.end.sequence;
        survey.problems.push(LogError::WentBack { seen: seen.sequence, now: survey.end.sequence }.to_string());
        plan.survey = survey.clone();
    }
    if !survey.is_sound() {
        plan.opens = Some(survey.newest_epoch + 1);
    }
    Ok(plan)
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
    for _ in 0..REPAIR_ROUNDS_MAX {
        let plan = prepare_log(repository, state, &decision).await?;
        if let Some((epoch, _, _, sha256)) = &plan.accepts {
            state.accept_epoch(*sha256)?;
            report.accepted = Some(*epoch);
            decision.accept_epoch = None;
            continue;
        }
        let Some(epoch) = plan.opens else {
            return match plan.refused {
                Some(_) => Err(refusal(&plan)),
                None => Ok(report),
            };
        };
        if plan.refused.is_some() {
            return Err(refusal(&plan));
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
        // What was decided is done; a further round looks at what was prepared for this epoch.
        decision = Decision::default();
    }
    Err(RepairError::Endless)
}

fn refusal(plan: &LogPlan) -> RepairError {
    let seen = plan.seen.map_or(0, |seen| seen.sequence);
    let cut = plan.survey.openings.iter().find(|opening| plan.seen.is_some_and(|seen| opening.epoch() > seen.epoch && opening.base().sequence < seen.sequence));
    match cut {
        Some(cut) => {
            LogError::Rejected { epoch: cut.epoch(), base: cut.base().sequence, seen, host: cut.fact.host.clone(), at: cut.fact.at, sha256: cut.entry.sha256 }
                .into()
        }
        None => LogError::WentBack { seen, now: plan.survey.end.sequence }.into(),
    }
}

/// The run of another machine that may be writing, in words.
fn alive(survey: &Survey, writer: WriterId) -> Option<String> {
    let run = survey.last_run.as_ref().filter(|run| !run.is_over && run.writer != writer)?;
    let silent_for = Duration::try_from(Timestamp::now().duration_since(run.last_entry_at)).unwrap_or_default();
    (silent_for <= DEAD_AFTER).then(|| format!("run {} on `{}` wrote {} s ago", run.id.short(), encode_segment(run.host.as_bytes()), silent_for.as_secs()))
}

async fn open_epoch(repository: &Repository, state: &StateFolder, plan: &LogPlan, epoch: u32, host: &str, writer: WriterId) -> Result<Sha256, RepairError> {
    let (store, survey) = (repository.store.as_ref(), &plan.survey);
    // Before the first write: what can the store do.
    store.begin(&repository.identity, Some(&state.uploads())).await?;
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
/// Another process writes from this state folder; or see [`OpenError`].
pub async fn open(repository: Repository, state: StateFolder, monitor: &dyn Monitor) -> Result<Session, RepairError> {
    let Some(lock) = state.try_lock()? else { return Err(RepairError::Busy { who: "another process on this machine holds its state folder".to_owned() }) };
    Ok(Session::open(repository, state, lock, monitor).await?)
}
