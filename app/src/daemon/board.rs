//! How the daemon is, for whoever asks over HTTP: the jobs, what runs, how old the newest snapshot is.

use super::feed::{Happened, LastRun, Watcher};
use super::memory::{Remembered, Snapshot};
use crate::schedule::planner::Job;
use crate::screen::Progress;
use crate::standing::{Standing, is_older};
use immich_backup_core::event::Phase;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The daemon's loop turns at least once a minute; one that has not for so long is stuck.
pub const TURN_MAX: Duration = Duration::from_secs(180);

/// A message longer than this is cut: an error may quote what a server said.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// One job, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
struct JobStatus {
    #[serde(flatten)]
    last: Option<LastRun>,
    next: Option<Timestamp>,
}

/// The job that runs, as `/status` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct RunningStatus {
    job: Job,
    began_at: Timestamp,
    phase: Option<Phase>,
    files: u64,
    files_total: Option<u64>,
    bytes: u64,
    bytes_total: Option<u64>,
}

/// What `/status` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Whether there is nothing to complain about.
    pub ok: bool,
    problems: Vec<String>,
    version: &'static str,
    snapshot: Option<Snapshot>,
    snapshot_age_s: Option<i64>,
    standing: Option<Standing>,
    /// What runs.
    pub running: Option<RunningStatus>,
    jobs: BTreeMap<Job, JobStatus>,
}

impl Status {
    /// What there is to complain about.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// When each job runs next.
    pub fn next_runs(&self) -> impl Iterator<Item = (Job, Timestamp)> {
        self.jobs.iter().filter_map(|(job, status)| Some((*job, status.next?)))
    }

    /// How each job ended last.
    #[must_use]
    pub fn last_runs(&self) -> BTreeMap<Job, LastRun> {
        self.jobs.iter().filter_map(|(job, status)| Some((*job, status.last.clone()?))).collect()
    }

    /// Each job, and whether it runs.
    pub fn jobs_running(&self) -> impl Iterator<Item = (Job, bool)> {
        let running = self.running.as_ref().map(|running| running.job);
        let jobs = self.jobs.keys().copied().chain(running.filter(|job| !self.jobs.contains_key(job)));
        jobs.map(move |job| (job, Some(job) == running))
    }
}

struct State {
    since: Timestamp,
    last: BTreeMap<Job, LastRun>,
    next: BTreeMap<Job, Timestamp>,
    snapshot: Option<Snapshot>,
    standing: Option<Standing>,
    /// Why the repository could not be read, where nothing runs that would say so.
    unread: Option<String>,
    running: Option<(Job, Timestamp, Progress)>,
}

/// Keeps what was told last.
pub struct Board {
    state: Mutex<State>,
    turned: Mutex<Instant>,
    max_age: Option<Duration>,
}

impl Board {
    /// A board that begins with what is remembered. A snapshot older than `max_age` is something to complain about.
    #[must_use]
    pub fn new(remembered: &Remembered, max_age: Option<Duration>) -> Self {
        let Remembered { since, last, snapshot, standing, .. } = remembered.clone();
        let state = State { since, last, next: BTreeMap::new(), snapshot, standing, unread: None, running: None };
        Self { state: Mutex::new(state), turned: Mutex::new(Instant::now()), max_age }
    }

    /// Notes that the loop turns.
    pub fn turn(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Notes how the repository stands and its newest snapshot, where no job tells; or why that could not be read.
    pub fn looked(&self, found: Result<(Standing, Option<Snapshot>), String>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Ok((standing, snapshot)) => (state.standing, state.snapshot, state.unread) = (Some(standing), snapshot, None),
            Err(message) => state.unread = Some(cut(message)),
        }
    }

    /// Whether the loop turns.
    #[must_use]
    pub fn is_turning(&self) -> bool {
        self.turned.lock().unwrap_or_else(PoisonError::into_inner).elapsed() <= TURN_MAX
    }

    /// Last runs, the newest snapshot and how the repository stands, to be remembered.
    #[must_use]
    pub fn kept(&self) -> (BTreeMap<Job, LastRun>, Option<Snapshot>, Option<Standing>) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (state.last.clone(), state.snapshot.clone(), state.standing.clone())
    }

    /// How the repository stands, as the last job that could tell has told.
    #[must_use]
    pub fn standing(&self) -> Option<Standing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).standing.clone()
    }

    /// How everything is at `now`.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> Status {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems: Vec<_> = state
            .last
            .iter()
            .filter(|(_, last)| !last.is_well())
            .map(|(job, last)| format!("the last {job} ended with exit code {} ({}): {}", last.exit_code, last.outcome, last.message))
            .collect();
        problems.extend(state.unread.iter().map(|message| format!("the repository could not be read: {message}")));
        let age = |at: Timestamp| now.duration_since(at);
        if let Some(max_age) = self.max_age {
            // What an older version remembered says nothing of proofs.
            let counted = state.standing.as_ref().map_or_else(|| state.snapshot.as_ref().map(|snapshot| snapshot.at), |standing| standing.guarded_at);
            match counted {
                Some(at) if is_older(at, max_age, now) => problems.push("the newest proven snapshot is older than --max-age".to_owned()),
                // The first one has its time, too.
                None if is_older(state.since, max_age, now) => problems.push("there is no proven snapshot, for longer than --max-age".to_owned()),
                _ => {}
            }
        }
        let jobs = state.last.keys().chain(state.next.keys()).map(|job| {
            let last = state.last.get(job).cloned();
            (*job, JobStatus { last, next: state.next.get(job).copied() })
        });
        let running = state.running.as_ref().map(|(job, began_at, progress)| RunningStatus {
            job: *job,
            began_at: *began_at,
            phase: progress.phase,
            files: progress.files,
            files_total: progress.files_total,
            bytes: progress.bytes,
            bytes_total: progress.bytes_total,
        });
        Status {
            ok: problems.is_empty(),
            problems,
            version: env!("CARGO_PKG_VERSION"),
            snapshot: state.snapshot.clone(),
            snapshot_age_s: state.snapshot.as_ref().map(|snapshot| age(snapshot.at).as_secs()),
            standing: state.standing.clone(),
            running,
            jobs: jobs.collect(),
        }
    }
}

fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARACTERS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}

impl Watcher for Board {
    fn notice(&self, happened: &Happened<'_>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match happened {
            Happened::Began { job, at, .. } => {
                state.running = Some((*job, *at, Progress::default()));
                // What was its next time is now; the one after is told when this run has ended.
                state.next.remove(job);
            }
            Happened::Emitted(event) => {
                if let Some((.., progress)) = &mut state.running {
                    progress.take(event);
                }
            }
            Happened::Ended(report) => {
                state.running = None;
                let mut last = report.last.clone();
                last.message = cut(last.message);
                if let Some(id) = last.snapshot.clone() {
                    state.snapshot = Some(Snapshot { id, at: last.began_at });
                }
                if let Some(standing) = &report.standing {
                    state.standing = Some(standing.clone());
                }
                state.last.insert(report.job, last);
            }
            Happened::Planned(next) => (*next).clone_into(&mut state.next),
            Happened::Wrote(_) | Happened::Warned(_) | Happened::Noticed(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::feed::Report;
    use crate::schedule::planner::Why;
    use immich_backup_core::event::Event;
    use serde_json::{Map, Value, json};

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn report(job: Job, code: u8, began: &str, snapshot: Option<&str>) -> Report {
        let Value::Object(summary) = json!({ "exit_code": code, "outcome": "x", "snapshot": snapshot, "errors": [{ "message": "m".repeat(2_000) }] }) else {
            return Report::new(job, at(began), at(began), Map::new(), None);
        };
        Report::new(job, at(began), at(began), summary, None)
    }

    #[test]
    fn a_failed_job_and_an_old_snapshot_are_complained_about_until_it_is_better() {
        let begin = at("2026-05-01T00:00Z");
        let board = Board::new(&Remembered::new(begin), Some(Duration::from_secs(26 * 3_600)));
        assert!(board.status(at("2026-05-02T01:00Z")).ok);
        assert!(!board.status(at("2026-05-02T03:00Z")).ok, "there was time for a first one");
        board.notice(&Happened::Ended(&report(Job::Backup, 0, "2026-05-02T03:00Z", Some("5f"))));
        let status = board.status(at("2026-05-02T04:00Z"));
        assert!(status.ok);
        assert_eq!(status.snapshot_age_s, Some(3_600));
        board.notice(&Happened::Ended(&report(Job::Backup, 1, "2026-05-02T05:00Z", None)));
        let status = board.status(at("2026-05-02T05:00Z"));
        assert!(!status.ok);
        assert!(status.problems[0].chars().count() < 600, "a message is bounded");
        assert_eq!(status.snapshot.map(|snapshot| snapshot.id).as_deref(), Some("5f"), "a failure takes no snapshot away");
        board.notice(&Happened::Ended(&report(Job::Backup, 0, "2026-05-02T06:00Z", Some("60"))));
        assert!(board.status(at("2026-05-02T06:00Z")).ok);
        assert!(!board.status(at("2026-05-03T09:00Z")).ok, "too old");
        // A time in the future has no age.
        assert!(!board.status(at("2026-05-01T09:00Z")).ok);
        board.notice(&Happened::Ended(&report(Job::Drill, 12, "2026-05-02T06:00Z", None)));
        assert!(!board.status(at("2026-05-02T06:00Z")).ok);
    }

    #[test]
    fn a_snapshot_that_is_not_proven_does_not_make_the_last_proven_one_younger() {
        let board = Board::new(&Remembered::new(at("2026-05-01T00:00Z")), Some(Duration::from_secs(26 * 3_600)));
        let told = |guarded: &str, began: &str| {
            let standing = crate::standing::tests::standing(Some(guarded));
            Report { standing: Some(standing), ..report(Job::Backup, 0, began, Some("5f")) }
        };
        board.notice(&Happened::Ended(&told("2026-05-02T03:10Z", "2026-05-02T03:00Z")));
        board.notice(&Happened::Ended(&told("2026-05-02T03:10Z", "2026-05-03T03:00Z")));
        assert!(board.status(at("2026-05-03T05:00Z")).ok);
        let status = board.status(at("2026-05-03T06:00Z"));
        assert_eq!(status.problems, ["the newest proven snapshot is older than --max-age"]);
        assert_eq!(status.snapshot_age_s, Some(3 * 3_600));
    }

    #[test]
    fn where_no_job_tells_whoever_looks_does_and_says_when_it_cannot() {
        let board = Board::new(&Remembered::new(at("2026-05-01T00:00Z")), Some(Duration::from_secs(26 * 3_600)));
        let found = |guarded: &str| (crate::standing::tests::standing(Some(guarded)), Some(Snapshot { id: "5f".to_owned(), at: at(guarded) }));
        board.looked(Ok(found("2026-05-02T03:00Z")));
        let status = board.status(at("2026-05-03T04:00Z"));
        assert!(status.ok && status.standing.is_some(), "though this process is older than --max-age");
        assert_eq!(status.snapshot_age_s, Some(25 * 3_600));
        assert_eq!(board.status(at("2026-05-03T06:00Z")).problems, ["the newest proven snapshot is older than --max-age"]);
        board.looked(Err("m".repeat(2_000)));
        let status = board.status(at("2026-05-03T04:00Z"));
        assert!(!status.ok && status.standing.is_some() && status.problems[0].starts_with("the repository could not be read: mm"));
        assert!(status.problems[0].chars().count() < 600);
        board.looked(Ok(found("2026-05-03T03:00Z")));
        assert!(board.status(at("2026-05-03T04:00Z")).ok);
    }

    #[test]
    fn the_job_that_runs_is_shown_with_its_phase_and_counts_until_it_ends() {
        let board = Board::new(&Remembered::new(at("2026-05-01T00:00Z")), None);
        board.notice(&Happened::Began { job: Job::Backup, why: Why::Asked, at: at("2026-05-01T03:00Z") });
        board.notice(&Happened::Emitted(&Event::PhaseStarted { phase: Phase::Store, total_files: None, total_bytes: None }));
        board.notice(&Happened::Emitted(&Event::BytesSent { bytes: 77 }));
        let status = serde_json::to_value(board.status(at("2026-05-01T03:01Z"))).unwrap();
        assert_eq!((&status["running"]["phase"], &status["running"]["bytes"]), (&json!("store"), &json!(77)));
        board.notice(&Happened::Ended(&report(Job::Backup, 0, "2026-05-01T03:00Z", Some("5f"))));
        let status = serde_json::to_value(board.status(at("2026-05-01T03:01Z"))).unwrap();
        assert_eq!((&status["running"], &status["jobs"]["backup"]["exit_code"]), (&Value::Null, &json!(0)));
    }
}
