//! What happens in the daemon, told to all who watch.

use crate::exit::Exit;
use crate::schedule::planner::{Job, Why};
use crate::standing::Standing;
use immich_backup_core::event::Event;
use immich_backup_core::verdict::Proof;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How a run of a job ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Which job.
    pub job: Job,
    /// What is kept of it.
    pub last: LastRun,
    /// What may help.
    pub hint: Option<String>,
    /// How the repository stands, where the command could tell.
    pub standing: Option<Standing>,
    /// The command's own summary, as `--json` prints it; empty if it died before.
    pub summary: Map<String, Value>,
}

/// What is kept of a job's last run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// The exit code; that of a failure where a signal ended it.
    pub exit_code: u8,
    /// The word for it, as in a summary.
    pub outcome: String,
    /// What is to be said of it, in one line.
    pub message: String,
    /// The snapshot that it committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

impl LastRun {
    /// Whether all was well.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.exit_code == Exit::Done.code()
    }
}

impl Report {
    /// What a command's summary says of its run, and for one without a summary, what else is known: `died` in words.
    #[must_use]
    pub fn new(job: Job, began_at: Timestamp, ended_at: Timestamp, summary: Map<String, Value>, died: Option<String>) -> Self {
        let told = summary.get("exit_code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
        let (exit_code, outcome) = match (&died, told) {
            (None, Some(code)) => (code, summary.get("outcome").and_then(Value::as_str).unwrap_or_default().to_owned()),
            _ => (Exit::Failed.code(), Exit::Failed.outcome().to_owned()),
        };
        let error = |field: &str| summary.get("errors")?.get(0)?.get(field)?.as_str().map(str::to_owned);
        let message = died.or_else(|| error("message")).unwrap_or_else(|| headline(job, &summary));
        let snapshot = summary.get("snapshot").and_then(Value::as_str).filter(|_| job == Job::Backup).map(str::to_owned);
        let standing = summary.get("standing").and_then(|standing| Standing::deserialize(standing).ok());
        Self { job, standing, hint: error("hint"), last: LastRun { began_at, ended_at, exit_code, outcome, message, snapshot }, summary }
    }
}

/// What leads a summary that tells of no error.
fn headline(job: Job, summary: &Map<String, Value>) -> String {
    let text = |name: &str| summary.get(name).and_then(Value::as_str);
    let number = |name: &str| summary.get(name).and_then(Value::as_u64);
    let proof = || summary.get("proof").and_then(|proof| Proof::deserialize(proof).ok()).map(|proof| proof.headline());
    let parts: Vec<Option<String>> = match job {
        Job::Backup => vec![
            text("withheld").map(|reason| format!("no snapshot: {reason}")),
            proof(),
            summary.get("bytes").and_then(|bytes| bytes.get("sent")).and_then(Value::as_u64).map(|sent| format!("{} sent", crate::screen::bytes(sent))),
            number("unread_count").filter(|count| *count > 0).map(|count| format!("{count} files or folders could not be read")),
        ],
        Job::Verify => vec![
            number("damaged").map(|damaged| format!("{damaged} objects damaged")),
            number("lost").filter(|lost| *lost > 0).map(|lost| format!("{lost} of them hold what is stored nowhere else")),
        ],
        Job::Drill => vec![
            text("verdict").map(|verdict| format!("drill {verdict}")),
            summary.get("problems").and_then(|problems| problems.get(0)?.as_str()).map(str::to_owned),
        ],
        Job::Prune => vec![number("removed").map(|removed| format!("{removed} objects removed"))],
    };
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Happened<'a> {
    /// A job began.
    Began {
        /// Which.
        job: Job,
        /// Why.
        why: Why,
        /// When.
        at: Timestamp,
    },
    /// The job that runs said this.
    Emitted(&'a Event),
    /// The job that runs wrote this beside its events: what a crash leaves.
    Wrote(&'a str),
    /// A job ended.
    Ended(&'a Report),
    /// So it will go on, as things stand.
    Planned(&'a BTreeMap<Job, Timestamp>),
    /// The daemon itself has something to say, that stops nothing.
    Warned(&'a str),
    /// The daemon has noticed what no job tells.
    Noticed(&'a Notice),
}

/// What is so without anything having happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The snapshot that `--max-age` counts is too old, or there is none.
    Stale {
        /// When it was committed.
        guarded_at: Option<Timestamp>,
    },
    /// There was no drill for too long.
    DrillOverdue {
        /// When the last one was.
        drill_at: Option<Timestamp>,
    },
    /// The clock was set, or the machine slept.
    ClockJumped {
        /// By how much: back where it is less than nothing.
        by_s: i64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = |seconds: u64| if seconds < 7_200 { format!("{} min", seconds / 60) } else { format!("{} h", seconds / 3_600) };
        match self {
            Self::Stale { guarded_at: Some(at) } => write!(f, "the newest proven snapshot is too old: {} ({at:.0})", crate::screen::age(*at)),
            Self::Stale { guarded_at: None } => f.write_str("no snapshot was ever proven, for longer than --max-age"),
            Self::DrillOverdue { drill_at: Some(at) } => write!(f, "no drill for more than 35 days: the last one was {} ({at:.0})", crate::screen::age(*at)),
            Self::DrillOverdue { drill_at: None } => f.write_str("there was never a drill: `immich-backup drill` shows whether this backup comes back"),
            Self::ClockJumped { by_s: ..0 } => write!(f, "the clock was set back by {}: nothing runs twice for that", hours(self.jump_s())),
            Self::ClockJumped { .. } => {
                write!(f, "the clock went ahead by {}: it was set, or this machine slept; what was missed is made up for once", hours(self.jump_s()))
            }
        }
    }
}

impl Notice {
    fn jump_s(&self) -> u64 {
        if let Self::ClockJumped { by_s } = self { by_s.unsigned_abs() } else { 0 }
    }
}

/// Is told what happens; must return soon.
pub trait Watcher: Send + Sync {
    /// Takes notice.
    fn notice(&self, happened: &Happened<'_>);
}

/// Tells all watchers.
#[derive(Clone, Default)]
pub struct Feed {
    watchers: Vec<Arc<dyn Watcher>>,
}

impl Feed {
    /// Adds one who is told from now on.
    #[must_use]
    pub fn with(mut self, watcher: Arc<dyn Watcher>) -> Self {
        self.watchers.push(watcher);
        self
    }

    /// Tells everybody.
    pub fn tell(&self, happened: &Happened<'_>) {
        for watcher in &self.watchers {
            watcher.notice(happened);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(job: Job, summary: Value, died: Option<&str>) -> Report {
        let Value::Object(summary) = summary else { panic!("{summary}") };
        Report::new(job, Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH, summary, died.map(str::to_owned))
    }

    #[test]
    fn a_report_says_in_one_line_what_the_summary_says() {
        let proof = Proof { assets: 97, proven: 93, unprovable: 4, ..Proof::default() };
        let done = report(
            Job::Backup,
            json!({ "exit_code": 0, "outcome": "done", "proof": proof, "bytes": { "sent": 1_800_000_000_u64 }, "unread_count": 0, "snapshot": "5f", "errors": [] }),
            None,
        );
        assert_eq!((done.last.message.as_str(), done.last.exit_code, done.last.is_well()), ("proven 93 of 93, 4 external, 1.80 GB sent", 0, true));
        assert_eq!(done.last.snapshot.as_deref(), Some("5f"));
        let failed = report(Job::Backup, json!({ "exit_code": 10, "outcome": "no_repository", "errors": [{ "message": "m", "hint": "h" }] }), None);
        assert_eq!((failed.last.message.as_str(), failed.hint.as_deref(), failed.last.exit_code), ("m", Some("h"), 10));
        let drill =
            report(Job::Drill, json!({ "exit_code": 12, "outcome": "damaged", "verdict": "failed", "problems": ["rows are missing"], "snapshot": "5f" }), None);
        assert_eq!((drill.last.message.as_str(), drill.last.snapshot), ("drill failed, rows are missing", None));
        // What died is a failure, whatever it had said before.
        let died = report(Job::Verify, json!({ "exit_code": 0, "outcome": "done" }), Some("signal 9 ended it"));
        assert_eq!((died.last.message.as_str(), died.last.exit_code, died.last.outcome.as_str()), ("signal 9 ended it", 1, "failed"));
    }
}
