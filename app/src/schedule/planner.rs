//! Which job is to run now, and when to look again.

use super::Calendar;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The clock is looked at this often at least: it may be set, and a machine that slept does not count the time.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// A failed backup is tried again after this long at most.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(6 * 3_600);

/// A run was before the clock's time by no more than this: the clock was corrected a little, and nothing runs twice.
const SET_BACK_MAX: SignedDuration = SignedDuration::from_mins(10);

/// Times that were passed over are counted up to here.
const MISSED_MAX: u32 = 1_000;

/// What runs on a schedule, in the order in which they run where several are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Job {
    /// `backup`
    Backup,
    /// `verify`
    Verify,
    /// `drill`
    Drill,
    /// `prune`
    Prune,
}

impl Job {
    /// All, in their order.
    pub const ALL: [Self; 4] = [Self::Backup, Self::Verify, Self::Drill, Self::Prune];

    /// The command's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "backup",
            Self::Verify => "verify",
            Self::Drill => "drill",
            Self::Prune => "prune",
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a job runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Why {
    /// It is its time.
    Planned {
        /// The time that the schedule names.
        planned: Timestamp,
        /// So many times were passed over before it, at most 1,000: nobody was there, or the last run took so long.
        missed: u32,
        /// The last run of this job was still going on at the planned time.
        overrun: bool,
    },
    /// It failed, and is tried again.
    Retry {
        /// Which attempt after the first.
        attempt: u32,
    },
    /// Somebody asked for it.
    Asked,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Run this.
    Run(Job, Why),
    /// Look again after this long, at most [`LOOK_EVERY`].
    Wait(Duration),
}

/// How a run ended, as far as the schedule is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// There is nothing to try again.
    Done,
    /// It may go better next time.
    Failed,
}

/// What is remembered of a job from one start of the program to the next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The schedule that this was remembered for.
    pub schedule: String,
    /// All planned times up to here are done with.
    pub done_until: Timestamp,
    /// When the last run began.
    #[serde(default)]
    pub began_at: Option<Timestamp>,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<Timestamp>,
    /// Runs that failed since the last planned time.
    #[serde(default)]
    pub failures: u32,
}

impl Memory {
    /// Of a schedule that is new at `now`: what was before it is nobody's concern.
    #[must_use]
    pub fn new(schedule: &str, now: Timestamp) -> Self {
        Self { schedule: schedule.to_owned(), done_until: now, began_at: None, ended_at: None, failures: 0 }
    }

    /// A run that began and of which no end is known died with the program, or with the machine.
    fn with_a_dead_run_failed(self) -> Self {
        if self.began_at > self.ended_at { Self { ended_at: self.began_at, failures: self.failures.saturating_add(1), ..self } } else { self }
    }
}

#[derive(Debug)]
struct Entry {
    calendar: Calendar,
    memory: Memory,
    asked: bool,
}

/// The schedules of all jobs, and what has run.
#[derive(Debug)]
pub struct Planner {
    entries: BTreeMap<Job, Entry>,
    jitter: Duration,
    retry_after: Duration,
    last: Option<Job>,
    /// Makes the jitter of each planned time: by chance, and the same whenever it is asked for.
    chance: RandomState,
}

impl Planner {
    /// A planner of these schedules. What is remembered of another schedule than a job has now counts for nothing.
    #[must_use]
    pub fn new(calendars: BTreeMap<Job, Calendar>, mut remembered: BTreeMap<Job, Memory>, jitter: Duration, retry_after: Duration, now: Timestamp) -> Self {
        let entries = calendars.into_iter().map(|(job, calendar)| {
            let schedule = schedule_text(&calendar);
            let memory = remembered.remove(&job).map(|memory| match memory {
                memory if memory.schedule == schedule => memory,
                memory => Memory { began_at: memory.began_at, ended_at: memory.ended_at, ..Memory::new(&schedule, now) },
            });
            let memory = memory.map(Memory::with_a_dead_run_failed);
            (job, Entry { memory: memory.unwrap_or_else(|| Memory::new(&schedule, now)), calendar, asked: false })
        });
        Self { entries: entries.collect(), jitter, retry_after, last: None, chance: RandomState::new() }
    }

    /// What is to be remembered of each job.
    #[must_use]
    pub fn memory(&self) -> BTreeMap<Job, Memory> {
        self.entries.iter().map(|(job, entry)| (*job, entry.memory.clone())).collect()
    }

    /// Lets `job` run as soon as may be, where it has a schedule.
    pub fn ask(&mut self, job: Job) {
        if let Some(entry) = self.entries.get_mut(&job) {
            entry.asked = true;
        }
    }

    /// What to do at `now`. Only when nothing runs.
    pub fn decide(&mut self, now: Timestamp) -> Decision {
        for entry in self.entries.values_mut() {
            entry.notice_the_clock(now);
        }
        let backup = self.due(Job::Backup, now);
        let other = Job::ALL.into_iter().filter(|job| *job != Job::Backup).find_map(|job| Some((job, self.due(job, now)?)));
        // A backup that takes longer than its interval is always due: the others have their turn between two of them.
        let overrun = self.last == Some(Job::Backup) && matches!(backup, Some(Why::Planned { overrun: true, .. }));
        let next = match (backup, other) {
            (Some(why), other) if other.is_none() || !overrun => return Decision::Run(Job::Backup, why),
            // The backup of this very hour waits for its jitter: what is to look at it waits too.
            (None, Some(_)) if self.backup_is_pending(now) => self.next(Job::Backup, now),
            (_, Some((job, why))) => return Decision::Run(job, why),
            _ => self.entries.keys().filter_map(|job| self.next(*job, now)).min(),
        };
        let wait = next.map_or(LOOK_EVERY, |next| Duration::try_from(next.duration_since(now)).unwrap_or_default());
        // Not in circles, whatever the clock says.
        Decision::Wait(wait.clamp(Duration::from_millis(100), LOOK_EVERY))
    }

    /// Notes that `job` begins at `now`.
    pub fn began(&mut self, job: Job, now: Timestamp, why: Why) {
        let Some(entry) = self.entries.get_mut(&job) else { return };
        entry.asked = false;
        entry.memory.began_at = Some(now);
        if let Some((last, _)) = entry.calendar.passed(entry.memory.done_until, now, MISSED_MAX) {
            entry.memory.done_until = last;
        }
        if !matches!(why, Why::Retry { .. }) {
            entry.memory.failures = 0;
        }
    }

    /// Notes that `job` ended at `now`.
    pub fn ended(&mut self, job: Job, now: Timestamp, ended: Ended) {
        self.last = Some(job);
        let Some(entry) = self.entries.get_mut(&job) else { return };
        entry.memory.ended_at = Some(now);
        entry.memory.failures = if ended == Ended::Failed { entry.memory.failures.saturating_add(1) } else { 0 };
    }

    /// When `job` will run next, as things stand; `now` if it waits for nothing but its turn.
    #[must_use]
    pub fn next(&self, job: Job, now: Timestamp) -> Option<Timestamp> {
        let entry = self.entries.get(&job)?;
        if entry.asked {
            return Some(now);
        }
        let planned = self.planned(job, entry).map(|(_, with_jitter)| with_jitter);
        let retry = self.retry_at(job, entry);
        planned.into_iter().chain(retry).min().map(|next| next.max(now))
    }

    /// The first planned time that is not done with, and when that is to be, with its jitter.
    fn planned(&self, job: Job, entry: &Entry) -> Option<(Timestamp, Timestamp)> {
        let planned = entry.calendar.next_after(entry.memory.done_until)?;
        if self.jitter.is_zero() {
            return Some((planned, planned));
        }
        // Up to the next planned time, not including it.
        let after = entry.calendar.next_after(planned);
        let interval = after.and_then(|after| Duration::try_from(after.duration_since(planned)).ok()).unwrap_or(Duration::MAX);
        let jitter_max_ms = u64::try_from(self.jitter.min(interval.saturating_sub(Duration::from_secs(1))).as_millis()).unwrap_or(u64::MAX);
        let jitter_ms = match jitter_max_ms {
            0 => 0,
            max => self.chance.hash_one((job, planned.as_nanosecond())) % (max.saturating_add(1)),
        };
        let with_jitter = SignedDuration::try_from(Duration::from_millis(jitter_ms)).ok().and_then(|jitter| planned.checked_add(jitter).ok());
        Some((planned, with_jitter.unwrap_or(planned)))
    }

    /// When a failed backup is tried again, unless its next planned time comes before.
    fn retry_at(&self, job: Job, entry: &Entry) -> Option<Timestamp> {
        if job != Job::Backup || entry.memory.failures == 0 {
            return None;
        }
        let doubled = 2_u32.saturating_pow(entry.memory.failures.saturating_sub(1).min(16));
        let wait = self.retry_after.saturating_mul(doubled).min(RETRY_AFTER_MAX.max(self.retry_after));
        let retry = entry.memory.ended_at?.checked_add(SignedDuration::try_from(wait).ok()?).ok()?;
        let planned = entry.calendar.next_after(entry.memory.done_until);
        Some(retry).filter(|retry| planned.is_none_or(|planned| *retry < planned))
    }

    fn due(&self, job: Job, now: Timestamp) -> Option<Why> {
        let entry = self.entries.get(&job)?;
        if entry.asked {
            return Some(Why::Asked);
        }
        if let Some((first, with_jitter)) = self.planned(job, entry)
            && with_jitter <= now
        {
            let (planned, count) = entry.calendar.passed(entry.memory.done_until, now, MISSED_MAX).unwrap_or((first, 1));
            let overrun = entry.memory.ended_at.is_some_and(|ended| first <= ended);
            return Some(Why::Planned { planned, missed: count.saturating_sub(1), overrun });
        }
        self.retry_at(job, entry).filter(|retry| *retry <= now).map(|_| Why::Retry { attempt: entry.memory.failures })
    }

    /// A planned time of the backup is here, and its jitter is not over.
    fn backup_is_pending(&self, now: Timestamp) -> bool {
        self.entries.get(&Job::Backup).is_some_and(|entry| entry.calendar.next_after(entry.memory.done_until).is_some_and(|planned| planned <= now))
    }
}

/// What a schedule says: the expression and its time zone.
fn schedule_text(calendar: &Calendar) -> String {
    format!("{} {}", calendar.text(), calendar.zone().iana_name().unwrap_or("local"))
}

impl Entry {
    /// What is done with lies in the future: the clock was wrong, then or now. Were that believed, nothing would run until then.
    fn notice_the_clock(&mut self, now: Timestamp) {
        let tolerated = now.checked_add(SET_BACK_MAX).unwrap_or(now);
        if self.memory.done_until > tolerated {
            self.memory.done_until = now;
        }
        if self.memory.ended_at.is_some_and(|ended| ended > tolerated) {
            self.memory.ended_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests;
