//! What runs now, for whoever looks: the last state only. Whoever is slow misses what was in between, and nobody waits for them.

use crate::daemon::feed::{Happened, Watcher};
use crate::schedule::planner::Job;
use crate::screen::Progress;
use immich_backup_core::event::Event;
use jiff::Timestamp;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// Troubles of a run that are shown, the newest.
const TROUBLES_SHOWN: usize = 5;
/// Characters of one.
const TROUBLE_CHARACTERS_MAX: usize = 300;

/// A run, as far as it is.
#[derive(Debug, Clone)]
pub struct Running {
    /// Which job.
    pub job: Job,
    /// When it began.
    pub began_at: Timestamp,
    /// How far it is.
    pub progress: Progress,
    /// What was stored, checked or restored last.
    pub last_path: Option<String>,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// What went wrong, the newest last.
    pub troubles: VecDeque<String>,
    /// How much did.
    pub troubles_count: u64,
}

/// What is told at once.
#[derive(Debug, Clone, Default, Serialize, PartialEq, Eq)]
pub struct Now {
    /// Which run it is, counted since the daemon began: with another one, what is known of the repository may be new.
    pub run: u64,
    /// Whether something runs.
    pub running: bool,
    /// The job.
    pub job: &'static str,
    /// What it does.
    pub phase: String,
    /// How far that is: a number of 1,000, where the end is known.
    pub done: Option<u32>,
    /// `12,034 of 23,033`.
    pub files: String,
    /// `1.20 GB of 4.00 GB`.
    pub bytes: String,
    /// `12.0 MB/s`.
    pub rate: String,
    /// `about 3 minutes`.
    pub left: String,
    /// `for 2 minutes`.
    pub elapsed: String,
    /// What was stored last.
    pub path: String,
    /// What went wrong.
    pub troubles: Vec<String>,
    /// How much did.
    pub troubles_count: u64,
}

struct State {
    run: u64,
    running: Option<Running>,
}

/// Keeps what runs, and wakes who looks.
pub struct Live {
    state: Mutex<State>,
    woken: watch::Sender<()>,
}

impl Live {
    /// Nothing runs.
    #[must_use]
    pub fn new() -> Self {
        Self { state: Mutex::new(State { run: 0, running: None }), woken: watch::Sender::new(()) }
    }

    /// Is woken when something happens.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<()> {
        self.woken.subscribe()
    }

    /// What runs at `now`.
    #[must_use]
    pub fn now(&self, now: Timestamp) -> Now {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.running.as_ref().map_or_else(|| Now { run: state.run, ..Now::default() }, |running| told(state.run, running, now))
    }
}

fn told(run: u64, running: &Running, now: Timestamp) -> Now {
    use super::words::{bytes, count, phase, span};
    let progress = &running.progress;
    let of = |done: u64, total: Option<u64>, show: fn(u64) -> String| match total {
        Some(total) if total >= done => format!("{} of {}", show(done), show(total)),
        _ if done == 0 => String::new(),
        _ => show(done),
    };
    let rate = progress.rate();
    let bytes_left = progress.bytes_total.and_then(|total| total.checked_sub(progress.bytes));
    let left = bytes_left.filter(|left| *left > 0 && rate > 0).map(|left| format!("about {} left", span(left / rate + 1)));
    // Of the two, bytes say more: files differ in size by a million.
    let part = |done: u64, total: Option<u64>| total.filter(|total| *total > 0).map(|total| done.min(total).saturating_mul(1_000) / total);
    let done = part(progress.bytes, progress.bytes_total).or_else(|| part(progress.files, progress.files_total)).and_then(|done| u32::try_from(done).ok());
    let began = u64::try_from(now.duration_since(running.began_at).as_secs()).unwrap_or(0);
    Now {
        run,
        running: true,
        job: running.job.name(),
        phase: match (&running.waits_for, progress.phase) {
            (Some(what), _) => format!("Waiting: {}", super::words::visible(what)),
            (None, Some(at)) => phase(at).to_owned(),
            (None, None) => "Starting".to_owned(),
        },
        done,
        files: of(progress.files, progress.files_total, count),
        bytes: of(progress.bytes, progress.bytes_total, bytes),
        rate: if rate > 0 { format!("{}/s", bytes(rate)) } else { String::new() },
        left: left.unwrap_or_default(),
        elapsed: span(began),
        path: running.last_path.as_deref().map(super::words::visible).unwrap_or_default(),
        troubles: running.troubles.iter().map(|trouble| super::words::visible(trouble)).collect(),
        troubles_count: running.troubles_count,
    }
}

impl Running {
    fn take(&mut self, event: &Event) {
        self.progress.take(event);
        let trouble = match event {
            Event::Waiting { what } => {
                self.waits_for = Some(what.clone());
                None
            }
            Event::FileStored { path, .. } | Event::FileRestored { path, .. } => {
                self.last_path = Some(path.to_string());
                None
            }
            Event::FileFailed { path, problem } => Some(format!("{path}: {problem}")),
            Event::FileDoubtful { path } => Some(format!("{path} is not what Immich recorded of it; the good version stays")),
            Event::BitRotSuspected { path } => Some(format!("{path} was changed though its times were not; the stored version stays")),
            Event::ObjectDamaged { key, problem } => Some(format!("{key}: {problem}")),
            Event::ObjectLost { key } => Some(format!("{key} is not in the store any more; it is sent again")),
            Event::Warned { message } => Some(message.clone()),
            _ => None,
        };
        if !matches!(event, Event::Waiting { .. }) {
            self.waits_for = None;
        }
        if let Some(trouble) = trouble {
            self.troubles_count += 1;
            if self.troubles.len() >= TROUBLES_SHOWN {
                self.troubles.pop_front();
            }
            self.troubles.push_back(trouble.chars().take(TROUBLE_CHARACTERS_MAX).collect());
        }
    }
}

impl Watcher for Live {
    fn notice(&self, happened: &Happened<'_>) {
        {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            match happened {
                Happened::Began { job, at, .. } => {
                    state.run += 1;
                    state.running = Some(Running {
                        job: *job,
                        began_at: *at,
                        progress: Progress::default(),
                        last_path: None,
                        waits_for: None,
                        troubles: VecDeque::new(),
                        troubles_count: 0,
                    });
                }
                Happened::Emitted(event) => match &mut state.running {
                    Some(running) => running.take(event),
                    None => return,
                },
                Happened::Ended(_) => {
                    state.run += 1;
                    state.running = None;
                }
                Happened::Wrote(_) | Happened::Planned(_) | Happened::Warned(_) | Happened::Noticed(_) => return,
            }
        }
        self.woken.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::feed::Report;
    use crate::schedule::planner::Why;
    use immich_backup_core::event::Phase;
    use serde_json::Map;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_run_is_told_with_how_far_it_is_until_it_ends() {
        let live = Live::new();
        let mut watch = live.watch();
        assert_eq!(live.now(at("2026-05-01T03:00Z")), Now::default());
        live.notice(&Happened::Began { job: Job::Backup, why: Why::Asked, at: at("2026-05-01T03:00Z") });
        live.notice(&Happened::Emitted(&Event::PhaseStarted { phase: Phase::Store, total_files: Some(10), total_bytes: Some(4_000_000) }));
        live.notice(&Happened::Emitted(&Event::FilesSeen { files: 3, bytes: 9, unchanged_files: 2, unchanged_bytes: 9 }));
        live.notice(&Happened::Emitted(&Event::BytesSent { bytes: 999_991 }));
        assert!(watch.has_changed().unwrap());
        watch.mark_unchanged();
        let now = live.now(at("2026-05-01T03:02Z"));
        assert_eq!((now.job, now.phase.as_str(), now.done, now.elapsed.as_str()), ("backup", "Storing what is new", Some(250), "2 minutes"));
        assert_eq!((now.files.as_str(), now.bytes.as_str()), ("3 of 10", "1.00 MB of 4.00 MB"));
        assert!(now.rate.ends_with("/s") && now.left.starts_with("about "), "{now:?}");
        for number in 0..20 {
            live.notice(&Happened::Emitted(&Event::FileFailed { path: format!("upload/{number}\u{202E}.jpg"), problem: "x".repeat(5_000) }));
        }
        let now = live.now(at("2026-05-01T03:02Z"));
        assert_eq!((now.troubles.len(), now.troubles_count), (TROUBLES_SHOWN, 20));
        assert!(now.troubles[4].starts_with("upload/19\u{FFFD}.jpg: x") && now.troubles[4].chars().count() == TROUBLE_CHARACTERS_MAX);
        let run = now.run;
        live.notice(&Happened::Ended(&Report::new(Job::Backup, at("2026-05-01T03:00Z"), at("2026-05-01T03:03Z"), Map::new(), None)));
        assert_eq!(live.now(at("2026-05-01T03:03Z")), Now { run: run + 1, ..Now::default() });
        // What comes after the end is of no run.
        watch.mark_unchanged();
        live.notice(&Happened::Emitted(&Event::BytesSent { bytes: 1 }));
        assert!(!watch.has_changed().unwrap());
    }
}
