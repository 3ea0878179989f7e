//! Lines with times, for logs.

use super::{bytes, count, human, print_error};
use immich_backup_core::event::{Event, Monitor, Phase};
use jiff::Timestamp;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a long phase says how far it is.
const EVERY: Duration = Duration::from_secs(30);

pub(super) struct Plain {
    verbose: bool,
    progress: Mutex<Progress>,
}

struct Progress {
    phase: Option<Phase>,
    started: Instant,
    said: Instant,
    files: u64,
    files_total: Option<u64>,
    bytes: u64,
    bytes_moved: u64,
    bytes_total: Option<u64>,
}

impl Progress {
    fn new(phase: Option<Phase>, files_total: Option<u64>, bytes_total: Option<u64>) -> Self {
        Self { phase, started: Instant::now(), said: Instant::now(), files: 0, files_total, bytes: 0, bytes_moved: 0, bytes_total }
    }

    fn line(&self) -> String {
        let of = |total: Option<u64>, show: fn(u64) -> String| total.map_or_else(String::new, |total| format!(" of {}", show(total)));
        let seconds = self.started.elapsed().as_secs().max(1);
        let phase = self.phase.map_or("", human::phase);
        format!(
            "{phase}: {}{} files, {}{}, {}/s",
            count(self.files),
            of(self.files_total, count),
            bytes(self.bytes),
            of(self.bytes_total, bytes),
            bytes(self.bytes_moved / seconds)
        )
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, total_files, total_bytes } => *self = Self::new(Some(*phase), *total_files, *total_bytes),
            Event::FilesSeen { files, unchanged_bytes, .. } => {
                self.files += files;
                self.bytes += unchanged_bytes;
            }
            Event::Counted { bytes, .. } | Event::WalkFinished { bytes, .. } => self.bytes_total = Some(*bytes),
            Event::BytesSent { bytes } | Event::DumpRead { bytes } | Event::DumpLoaded { bytes } => {
                self.bytes += bytes;
                self.bytes_moved += bytes;
            }
            Event::ObjectChecked { size_bytes } => {
                self.files += 1;
                self.bytes += size_bytes;
                self.bytes_moved += size_bytes;
            }
            Event::FileRestored { .. } => self.files += 1,
            Event::EntriesApplied { .. } => self.files += 1,
            _ => {}
        }
    }
}

fn say(text: &str) {
    print_error(&format!("{:.0}  {text}", Timestamp::now()));
}

impl Plain {
    pub(super) fn new(verbose: bool) -> Self {
        Self { verbose, progress: Mutex::new(Progress::new(None, None, None)) }
    }
}

impl Monitor for Plain {
    fn emit(&self, event: Event) {
        let line = human::problem(&event).or_else(|| human::note(&event)).or_else(|| human::file(&event).filter(|_| self.verbose));
        if let Some(line) = line {
            say(&line);
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.take(&event);
        let finished = matches!(event, Event::PhaseFinished { .. }) && progress.files + progress.bytes > 0;
        if finished || progress.said.elapsed() >= EVERY {
            progress.said = Instant::now();
            let line = progress.line();
            drop(progress);
            say(&line);
        } else if let Event::RunStarted { run, .. } = event {
            drop(progress);
            say(&format!("run {} began", run.short()));
        }
    }
}
