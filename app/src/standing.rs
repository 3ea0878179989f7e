//! How a repository stands, as its log says: what metrics, the stale guard and notifications go by, on whichever machine they are asked for.

use crate::exit::Exit;
use immich_backup_core::budget::DEAD_AFTER;
use immich_backup_core::repository::log::{DrillOutcome, SnapshotFact, Totals};
use immich_backup_core::repository::manifest::{Manifest, ManifestError, RunRow, SnapshotRow};
use immich_backup_core::verdict::Proof;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A backup that was not restored for so long may have stopped being one.
pub const DRILL_MAX_AGE: Duration = Duration::from_secs(35 * 86_400);

/// A drill that is overdue is told again after so long.
const DRILL_TOLD_EVERY: Duration = Duration::from_secs(7 * 86_400);

/// The clocks of two machines differ by so much without anybody minding.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(600);

/// What the log says of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The newest snapshot.
    pub snapshot: Option<String>,
    /// When the first snapshot was committed.
    pub first_snapshot_at: Option<Timestamp>,
    /// When the newest was committed.
    pub snapshot_at: Option<Timestamp>,
    /// When the one before it was committed.
    #[serde(skip)]
    pub before_at: Option<Timestamp>,
    /// When the newest snapshot was committed whose run had nothing to complain about.
    pub success_at: Option<Timestamp>,
    /// When the newest snapshot was committed in which each asset that should be there is proven.
    pub proven_at: Option<Timestamp>,
    /// The time that `--max-age` counts from: `proven_at`; where no snapshot ever had a database, so that there is nothing to prove, `snapshot_at`.
    pub guarded_at: Option<Timestamp>,
    /// Whether the newest snapshot has a database.
    pub has_database: bool,
    /// When the last drill began.
    pub drill_at: Option<Timestamp>,
    /// How it ended.
    pub drill: Option<DrillOutcome>,
    /// When the store was last listed and compared with the log.
    pub listed_at: Option<Timestamp>,
    /// When every object was last read back.
    pub read_at: Option<Timestamp>,
    /// When objects were last looked at in any way: listed, read, or a part of them read.
    pub verified_at: Option<Timestamp>,
    /// Objects that are known to be missing or damaged, and hold what is stored nowhere else.
    pub damaged_objects: u64,
    /// When the newest run last wrote to the log, and how it ended; absent while it may be running.
    pub last_backup: Option<LastBackup>,
    /// What the newest snapshot's proof says, without names.
    #[serde(skip)]
    pub proof: Option<Proof>,
    /// How many assets that lie outside were left out of it on purpose.
    #[serde(skip)]
    pub ignored: u64,
    /// What the newest snapshot holds.
    #[serde(skip)]
    pub totals: Option<Totals>,
}

/// How the newest run ended, in the words of a summary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastBackup {
    /// When it last wrote to the log.
    pub at: Timestamp,
    /// The word.
    pub outcome: String,
}

impl Standing {
    /// What `manifest` says.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(manifest: &Manifest) -> Result<Self, ManifestError> {
        let latest = manifest.latest_snapshot()?;
        let times = manifest.snapshot_times()?;
        let at = |row: Option<SnapshotRow>| row.map(|row| row.fact.taken_at);
        let proven_at = at(manifest.newest_snapshot_that(SnapshotFact::is_proven)?);
        let guarded_at = match (proven_at, manifest.newest_snapshot_that(|fact| fact.dump.is_some())?) {
            (Some(at), _) => Some(at),
            (None, Some(_)) => None,
            (None, None) => latest.as_ref().map(|row| row.fact.taken_at),
        };
        let drill = manifest.last_drill()?.map(|row| row.fact);
        let listed_at = manifest.last_verification("listed", 1)?.map(|look| look.at);
        let read_in_part = manifest.last_verification("read", u64::MAX >> 1)?.map(|look| look.at);
        Ok(Self {
            success_at: at(manifest.newest_snapshot_that(SnapshotFact::is_complete)?),
            proven_at,
            guarded_at,
            drill_at: drill.as_ref().map(|drill| drill.at),
            drill: drill.map(|drill| drill.outcome),
            listed_at,
            read_at: manifest.last_verification("read", 1)?.map(|look| look.at),
            verified_at: listed_at.max(read_in_part),
            damaged_objects: manifest.count_lost()?,
            last_backup: manifest.runs(1)?.pop().and_then(|run| last_backup(&run, latest.as_ref())),
            snapshot: latest.as_ref().map(|row| row.id.to_string()),
            first_snapshot_at: times.first().map(|(_, taken_at)| *taken_at),
            before_at: times.iter().rev().nth(1).map(|(_, taken_at)| *taken_at),
            snapshot_at: latest.as_ref().map(|row| row.fact.taken_at),
            has_database: latest.as_ref().is_some_and(|row| row.fact.dump.is_some()),
            proof: latest.as_ref().and_then(|row| row.fact.proof.clone()).map(|proof| Proof { named: Vec::new(), ..proof }),
            ignored: latest.as_ref().map_or(0, |row| row.fact.ignored),
            totals: latest.map(|row| row.fact.totals),
        })
    }

    /// Whether what `--max-age` counts is older than that.
    #[must_use]
    pub fn is_older_than(&self, max_age: Duration, now: Timestamp) -> bool {
        self.guarded_at.is_none_or(|at| is_older(at, max_age, now))
    }

    /// Whether there was no drill for too long; for a new repository that is so from its first snapshot on.
    #[must_use]
    pub fn lacks_drill(&self, now: Timestamp) -> bool {
        self.has_database && self.drill_at.is_none_or(|at| is_older(at, DRILL_MAX_AGE, now))
    }

    /// Whether there was no drill for too long; a new repository has its time for the first.
    #[must_use]
    pub fn drill_is_overdue(&self, now: Timestamp) -> bool {
        self.has_database && self.drill_at.or(self.first_snapshot_at).is_some_and(|at| is_older(at, DRILL_MAX_AGE, now))
    }

    /// Whether it is time to say so: the newest snapshot is the first one since the drill is overdue, or since one more week of that has begun. Nobody has to
    /// remember what was told, however seldom there are backups.
    #[must_use]
    pub fn drill_is_to_be_told(&self) -> bool {
        self.drill_weeks(self.snapshot_at) > self.drill_weeks(self.before_at)
    }

    /// In which week of being overdue the drill was at this time, from 1; 0 where it was not.
    fn drill_weeks(&self, at: Option<Timestamp>) -> u64 {
        let since = self.drill_at.or(self.first_snapshot_at).filter(|_| self.has_database);
        let age = at.zip(since).and_then(|(at, since)| Duration::try_from(at.duration_since(since)).ok());
        let over = age.and_then(|age| age.checked_sub(DRILL_MAX_AGE)).filter(|over| !over.is_zero());
        over.map_or(0, |over| 1 + over.as_secs() / DRILL_TOLD_EVERY.as_secs())
    }
}

/// A time in the future has no age: a clock is wrong, and nothing is known. What another machine wrote just now may be a little ahead.
#[must_use]
pub fn is_older(at: Timestamp, max_age: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(at)).map_or_else(|_| now.duration_until(at).unsigned_abs() > CLOCKS_DIFFER_MAX, |age| age > max_age)
}

fn last_backup(run: &RunRow, latest: Option<&SnapshotRow>) -> Option<LastBackup> {
    let exit = match run.outcome.as_deref() {
        Some("snapshot") if latest.is_some_and(|row| row.id == run.id && !row.fact.is_complete()) => Exit::Incomplete,
        Some("snapshot") => Exit::Done,
        Some("withheld") => Exit::Withheld,
        Some("interrupted") => Exit::Interrupted,
        Some(_) => Exit::Failed,
        None if is_older(run.last_entry_at, DEAD_AFTER, Timestamp::now()) => Exit::Failed,
        None => return None,
    };
    Some(LastBackup { at: run.last_entry_at, outcome: exit.outcome().to_owned() })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of a repository whose newest snapshot, without a database, is of this time, and counts.
    pub(crate) fn standing(guarded_at: Option<&str>) -> Standing {
        let at = guarded_at.map(|text| text.parse().unwrap());
        Standing {
            snapshot: Some("5f".into()),
            first_snapshot_at: at,
            snapshot_at: at,
            before_at: None,
            success_at: at,
            proven_at: None,
            guarded_at: at,
            has_database: false,
            drill_at: None,
            drill: None,
            listed_at: None,
            read_at: None,
            verified_at: None,
            damaged_objects: 0,
            last_backup: None,
            proof: None,
            ignored: 0,
            totals: None,
        }
    }

    #[test]
    fn a_snapshot_of_tomorrow_has_no_age_and_none_is_too_old() {
        let now = "2026-05-02T03:00Z".parse().unwrap();
        let too_old = |at| standing(at).is_older_than(Duration::from_secs(86_400), now);
        assert!(too_old(None) && too_old(Some("2026-05-01T02:59:59Z")) && too_old(Some("2026-05-03T03:00Z")));
        assert!(!too_old(Some("2026-05-01T03:00Z")) && !too_old(Some("2026-05-02T03:00Z")));
        assert!(!too_old(Some("2026-05-02T03:10Z")) && too_old(Some("2026-05-02T03:10:01Z")), "clocks differ a little");
    }
}
