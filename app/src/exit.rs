//! Exit codes, and errors as people and programs see them.

use crate::app::GoneAway;
use crate::config::UsageError;
use crate::stack::Unfound;
use immich_backup_core::backup::{BackupError, StageError};
use immich_backup_core::database::DatabaseError;
use immich_backup_core::database::filter::FilterError;
use immich_backup_core::database::load::LoadError;
use immich_backup_core::drill::DrillError;
use immich_backup_core::find::FindError;
use immich_backup_core::listing::ListError;
use immich_backup_core::prove::ProveError;
use immich_backup_core::prune::PruneError;
use immich_backup_core::repair::RepairError;
use immich_backup_core::repository::cloud::OpenStoreError;
use immich_backup_core::repository::log::LogError;
use immich_backup_core::repository::manifest::SelectError;
use immich_backup_core::repository::{InitError, OpenError};
use immich_backup_core::restore::RestoreError;
use immich_backup_core::restore::compose::IntoProjectError;
use immich_backup_core::stack::discover::DiscoverError;
use immich_backup_core::stack::engine::EngineError;
use immich_backup_core::stack::services::ServicesError;
use immich_backup_core::stack::services::journal::JournalError;
use serde::Serialize;
use std::process::ExitCode;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// Done, but something is missing from it.
    Incomplete = 3,
    /// A tripwire withheld the snapshot.
    Withheld = 4,
    /// There is no repository.
    NoRepository = 10,
    /// The log is damaged, or went back.
    LogDamaged = 11,
    /// Damage was found.
    Damaged = 12,
    /// Interrupted.
    Interrupted = 130,
}

impl Exit {
    /// The word in the summary.
    #[must_use]
    pub fn outcome(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::Incomplete => "incomplete",
            Self::Withheld => "withheld",
            Self::NoRepository => "no_repository",
            Self::LogDamaged => "log_damaged",
            Self::Damaged => "damaged",
            Self::Interrupted => "interrupted",
        }
    }

    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error as it is shown: what, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What, and the chain of causes.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The exit code.
    #[serde(skip)]
    pub exit: Exit,
}

fn of_open(error: &OpenError) -> (Exit, Option<String>) {
    let exit = match error {
        OpenError::NoRepository { .. } => Exit::NoRepository,
        OpenError::Log(LogError::Store(_)) => Exit::Failed,
        // A flipped digit of the version looks like a format of the future; log entries of another format end alike.
        OpenError::Log(_) | OpenError::DamagedIdentity { .. } | OpenError::UnknownFormat { .. } | OpenError::UnsteadyIdentity { .. } => Exit::LogDamaged,
        _ => Exit::Failed,
    };
    (exit, error.hint())
}

fn of_restore(error: &RestoreError) -> (Exit, Option<String>) {
    match error {
        RestoreError::Open(open) => of_open(open),
        RestoreError::Load(LoadError::Stopped) => (Exit::Interrupted, None),
        RestoreError::Load(LoadError::Text(_) | LoadError::NotWhole(_) | LoadError::Filter(FilterError::Cut { .. })) => (Exit::Damaged, error.hint()),
        other => (Exit::Failed, other.hint()),
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let (exit, hint) = if let Some(error) = error.downcast_ref::<OpenError>() {
            of_open(error)
        } else if let Some(error) = error.downcast_ref::<BackupError>() {
            match error {
                BackupError::Open(open) => of_open(open),
                BackupError::Interrupted => (Exit::Interrupted, None),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<IntoProjectError>() {
            match error {
                error if error.is_interruption() => (Exit::Interrupted, None),
                IntoProjectError::Restore(restore) => (of_restore(restore).0, error.hint()),
                IntoProjectError::Listing(listing) if listing.is_damage() => (Exit::Damaged, error.hint()),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<RestoreError>() {
            of_restore(error)
        } else if let Some(error) = error.downcast_ref::<FindError>() {
            match error {
                FindError::Open(open) => of_open(open),
                FindError::Interrupted => (Exit::Interrupted, None),
                FindError::Pattern { .. } => (Exit::Usage, error.hint()),
                FindError::Listing(listing) if listing.is_damage() => (Exit::Damaged, error.hint()),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<PruneError>() {
            match error {
                PruneError::Open(open) => of_open(open),
                PruneError::Interrupted => (Exit::Interrupted, None),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<RepairError>() {
            match error {
                RepairError::Open(open) => of_open(open),
                RepairError::Interrupted => (Exit::Interrupted, None),
                RepairError::NoEpoch { .. } | RepairError::NoEntry { .. } | RepairError::Nested { .. } => (Exit::Usage, error.hint()),
                RepairError::Undecided { .. }
                | RepairError::Yielded { .. }
                | RepairError::Intact { .. }
                | RepairError::UnreadEpoch { .. }
                | RepairError::NotAsPlanned { .. }
                | RepairError::Endless => (Exit::LogDamaged, error.hint()),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<ProveError>() {
            match error {
                ProveError::Listing(listing) if listing.is_damage() => (Exit::Damaged, error.hint()),
                ProveError::Interrupted => (Exit::Interrupted, None),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<DrillError>() {
            match error {
                DrillError::Open(open) => of_open(open),
                DrillError::Load(LoadError::Stopped) => (Exit::Interrupted, None),
                other => (Exit::Failed, other.hint()),
            }
        } else if let Some(error) = error.downcast_ref::<ServicesError>() {
            (if error.is_interruption() { Exit::Interrupted } else { Exit::Failed }, error.hint())
        } else if let Some(error) = error.downcast_ref::<JournalError>() {
            (Exit::Failed, error.hint())
        } else if let Some(error) = error.downcast_ref::<StageError>() {
            (Exit::Failed, Some(error.hint().to_owned()))
        } else if let Some(error) = error.downcast_ref::<Unfound>() {
            (if error.is_usage() { Exit::Usage } else { Exit::Failed }, error.hint())
        } else if let Some(error) = error.downcast_ref::<EngineError>() {
            (Exit::Failed, error.hint().map(Into::into))
        } else if let Some(error) = error.downcast_ref::<DiscoverError>() {
            (Exit::Failed, Some(error.hint()))
        } else if let Some(error) = error.downcast_ref::<ListError>() {
            (Exit::Failed, error.hint())
        } else if let Some(error) = error.downcast_ref::<DatabaseError>() {
            (Exit::Failed, error.hint().map(Into::into))
        } else if let Some(error) = error.downcast_ref::<SelectError>() {
            (Exit::Failed, error.hint().map(str::to_owned))
        } else if let Some(InitError::Store { source, .. }) = error.downcast_ref::<InitError>() {
            (Exit::Failed, source.hint().map(str::to_owned))
        } else if let Some(error) = error.downcast_ref::<GoneAway>() {
            (Exit::NoRepository, Some(error.hint()))
        } else if let Some(error) = error.downcast_ref::<OpenStoreError>() {
            let exit = if matches!(error, OpenStoreError::NoRegion | OpenStoreError::NoAccount) { Exit::Usage } else { Exit::Failed };
            (exit, error.hint().map(str::to_owned))
        } else if error.downcast_ref::<UsageError>().is_some() {
            (Exit::Usage, None)
        } else {
            (Exit::Failed, None)
        };
        Self { message: chain(&error), hint, exit }
    }
}

/// An error that stops nothing, as one line: what, why, and what to do.
pub fn told_with_hint(error: anyhow::Error) -> String {
    let failure = Failure::from(error);
    let hint = failure.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
    format!("{}{hint}", failure.message)
}

/// The message and its causes, each said once.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}
