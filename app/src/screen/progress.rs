//! How far the work is.

use super::{bytes, count, human};
use immich_backup_core::event::{Event, Phase};
use std::time::Instant;

/// How far a phase is, counted from events.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Which phase; none before the first.
    pub phase: Option<Phase>,
    /// Files or objects that are done with.
    pub files: u64,
    /// How many there are, where that is known.
    pub files_total: Option<u64>,
    /// Bytes that are done with.
    pub bytes: u64,
    /// How many there are, where that is known.
    pub bytes_total: Option<u64>,
    bytes_moved: u64,
    started: Instant,
}

impl Progress {
    fn new(phase: Option<Phase>, files_total: Option<u64>, bytes_total: Option<u64>) -> Self {
        Self { phase, files: 0, files_total, bytes: 0, bytes_total, bytes_moved: 0, started: Instant::now() }
    }

    /// All of it in one line.
    #[must_use]
    pub fn line(&self) -> String {
        let of = |total: Option<u64>, show: fn(u64) -> String| total.map_or_else(String::new, |total| format!(" of {}", show(total)));
        let phase = self.phase.map_or("", human::phase);
        format!(
            "{phase}: {}{} files, {}{}, {}/s",
            count(self.files),
            of(self.files_total, count),
            bytes(self.bytes),
            of(self.bytes_total, bytes),
            bytes(self.rate())
        )
    }

    /// Bytes that were moved a second, since the phase began.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.bytes_moved / self.started.elapsed().as_secs().max(1)
    }

    /// Counts what an event says.
    pub fn take(&mut self, event: &Event) {
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

impl Default for Progress {
    fn default() -> Self {
        Self::new(None, None, None)
    }
}
