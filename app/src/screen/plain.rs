//! Lines with times, for logs.

use super::progress::Progress;
use super::{human, print_timed};
use immich_backup_core::event::{Event, Monitor};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a long phase says how far it is.
const EVERY: Duration = Duration::from_secs(30);

pub(super) struct Plain {
    verbose: bool,
    progress: Mutex<(Progress, Instant)>,
}

impl Plain {
    pub(super) fn new(verbose: bool) -> Self {
        Self { verbose, progress: Mutex::new((Progress::default(), Instant::now())) }
    }
}

impl Monitor for Plain {
    fn emit(&self, event: Event) {
        let line = human::problem(&event).or_else(|| human::note(&event)).or_else(|| human::file(&event).filter(|_| self.verbose));
        if let Some(line) = line {
            print_timed(&line);
        }
        let mut guard = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (progress, said) = &mut *guard;
        progress.take(&event);
        if matches!(event, Event::PhaseStarted { .. }) {
            *said = Instant::now();
        }
        let finished = matches!(event, Event::PhaseFinished { .. }) && progress.files + progress.bytes > 0;
        if finished || said.elapsed() >= EVERY {
            *said = Instant::now();
            let line = progress.line();
            drop(guard);
            print_timed(&line);
        } else if let Event::RunStarted { run, .. } = event {
            drop(guard);
            print_timed(&format!("run {} began", run.short()));
        }
    }
}
