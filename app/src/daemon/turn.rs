//! The loop: asks the planner, runs what it says, remembers.

use super::board::Board;
use super::child::{self, Told};
use super::feed::{Feed, Happened, LastRun};
use super::memory::{MemoryFile, Remembered};
use crate::exit::Exit;
use crate::schedule::planner::{Decision, Ended, Job, Planner};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What the loop works with.
pub struct Loop {
    /// Which job is to run when.
    pub planner: Planner,
    /// What each job is told.
    pub told: BTreeMap<Job, Told>,
    /// Who is told what happens.
    pub feed: Feed,
    /// What was told last, and whether the loop turns.
    pub board: Arc<Board>,
    /// What outlives the process.
    pub file: MemoryFile,
    /// What was found there, or the beginning of it.
    pub remembered: Remembered,
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped {
    /// Jobs that ran to an end.
    pub runs: u64,
    /// Whether one was interrupted.
    pub interrupted: bool,
}

impl Loop {
    /// Turns until `stop` is cancelled; a job that runs then ends after its checkpoint.
    pub async fn run(mut self, stop: &CancellationToken) -> Stopped {
        let mut runs = 0;
        while !stop.is_cancelled() {
            self.board.turn();
            let now = Timestamp::now();
            let decision = self.planner.decide(now);
            self.tell_plan(now);
            match decision {
                Decision::Wait(wait) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = stop.cancelled() => {}
                    }
                }
                Decision::Run(job, why) => {
                    self.planner.began(job, now, why);
                    self.keep();
                    self.feed.tell(&Happened::Began { job, why, at: now });
                    let nothing = Told::default();
                    let report = child::run(job, self.told.get(&job).unwrap_or(&nothing), &self.feed, &self.board, stop).await;
                    self.planner.ended(job, report.last.ended_at, ended(&report.last));
                    self.feed.tell(&Happened::Ended(&report));
                    self.tell_plan(report.last.ended_at);
                    self.keep();
                    // What ended by itself just then was not interrupted, whatever came of it.
                    let interrupted = report.last.exit_code == Exit::Interrupted.code() || report.summary.is_empty();
                    if stop.is_cancelled() && interrupted {
                        return Stopped { runs, interrupted };
                    }
                    runs += 1;
                }
            }
        }
        Stopped { runs, interrupted: false }
    }

    fn tell_plan(&self, now: Timestamp) {
        let next = Job::ALL.into_iter().filter_map(|job| Some((job, self.planner.next(job, now)?))).collect();
        self.feed.tell(&Happened::Planned(&next));
    }

    /// What cannot be written down costs a run too many after the next start: no reason to stop.
    fn keep(&mut self) {
        let remembered = &mut self.remembered;
        (remembered.last, remembered.snapshot, remembered.standing) = self.board.kept();
        self.remembered.schedules = self.planner.memory();
        if let Err(error) = self.file.write(&self.remembered) {
            let message = format!("cannot write `{}`, so a start of the daemon may make up for what was done: {error}", self.file.path().display());
            self.feed.tell(&Happened::Warned(&message));
        }
    }
}

/// Whether it helps to try a backup again. What was stored without a snapshot was withheld on purpose, and what is missing from the library stays missing.
fn ended(last: &LastRun) -> Ended {
    let done = [Exit::Done, Exit::Incomplete, Exit::Withheld];
    if done.iter().any(|exit| exit.code() == last.exit_code) { Ended::Done } else { Ended::Failed }
}
