//! Counts what the events of a run say, and hands them on.

use super::number;
use super::text::Sample;
use immich_backup_core::event::{Event, Monitor, Phase, Stored};
use immich_backup_core::repository::cloud::{RequestKind, Requests};
use immich_backup_core::repository::log::Tally as Amount;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Counted {
    files: BTreeMap<&'static str, Amount>,
    retries: u64,
    phases: BTreeMap<&'static str, Duration>,
    open: BTreeMap<&'static str, Instant>,
}

impl Counted {
    fn add(&mut self, what: &'static str, files: u64, bytes: u64) {
        let amount = self.files.entry(what).or_default();
        amount.files = amount.files.saturating_add(files);
        amount.bytes = amount.bytes.saturating_add(bytes);
    }

    fn take(&mut self, event: &Event) {
        match event {
            Event::PhaseStarted { phase, .. } => {
                self.open.insert(name(*phase), Instant::now());
            }
            Event::PhaseFinished { phase } => {
                if let Some(began) = self.open.remove(name(*phase)) {
                    *self.phases.entry(name(*phase)).or_default() += began.elapsed();
                }
            }
            Event::FilesSeen { files, bytes, unchanged_files, unchanged_bytes } => {
                self.add("seen", *files, *bytes);
                self.add("unchanged", *unchanged_files, *unchanged_bytes);
            }
            Event::FileStored { how, size_bytes, .. } => {
                let what = match how {
                    Stored::Sent => "sent",
                    Stored::Adopted => "adopted",
                    Stored::Known => "known",
                    Stored::Touched => "touched",
                };
                self.add(what, 1, *size_bytes);
            }
            Event::DumpStored { size_bytes, .. } => self.add("dump", 1, *size_bytes),
            Event::FileArchived { .. } => self.add("archived", 1, 0),
            Event::FileFailed { .. } => self.add("unread", 1, 0),
            Event::FileDoubtful { .. } => self.add("doubtful", 1, 0),
            Event::BitRotSuspected { .. } => self.add("bit_rot", 1, 0),
            Event::ObjectChecked { size_bytes } => self.add("checked", 1, *size_bytes),
            Event::ObjectDamaged { .. } | Event::ObjectLost { .. } => self.add("damaged", 1, 0),
            Event::ObjectRemoved { .. } => self.add("removed", 1, 0),
            Event::Retrying { .. } => self.retries = self.retries.saturating_add(1),
            _ => {}
        }
    }
}

/// A phase as events name it.
fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Refresh => "refresh",
        Phase::Dump => "dump",
        Phase::SendDump => "send_dump",
        Phase::Store => "store",
        Phase::LookAgain => "look_again",
        Phase::List => "list",
        Phase::ReadBack => "read_back",
        Phase::Prove => "prove",
        Phase::ReadDump => "read_dump",
        Phase::Load => "load",
        Phase::CountRows => "count_rows",
        Phase::Compare => "compare",
        Phase::Write => "write",
        Phase::CopyManifest => "copy_manifest",
        Phase::Remove => "remove",
    }
}

/// A monitor that counts, before another one that shows.
pub struct Tally {
    shown: Arc<dyn Monitor>,
    counted: Mutex<Counted>,
    /// Requests to the object store are counted where they are sent.
    pub requests: Arc<Requests>,
}

impl Tally {
    /// Counts what `shown` is told.
    #[must_use]
    pub fn new(shown: Arc<dyn Monitor>) -> Self {
        Self { shown, counted: Mutex::default(), requests: Arc::default() }
    }

    /// What was counted so far, as samples with these labels.
    #[must_use]
    pub fn samples(&self, labels: &[(&str, &str)]) -> Vec<Sample> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let with = |label: &'static str, value: &'static str| [labels, &[(label, value)]].concat();
        let mut phases = counted.phases.clone();
        // What an error cut off took its time, too.
        for (phase, began) in &counted.open {
            *phases.entry(phase).or_default() += began.elapsed();
        }
        let mut samples: Vec<_> =
            phases.into_iter().map(|(phase, took)| Sample::new("last_run_phase_seconds", &with("phase", phase), took.as_secs_f64())).collect();
        for (what, amount) in &counted.files {
            samples.push(Sample::new("last_run_files", &with("what", what), number(amount.files)));
            if amount.bytes > 0 {
                samples.push(Sample::new("last_run_bytes", &with("what", what), number(amount.bytes)));
            }
        }
        let requests = RequestKind::ALL.into_iter().map(|kind| (kind, self.requests.count(kind))).filter(|(_, count)| *count > 0);
        samples.extend(requests.map(|(kind, count)| Sample::new("last_run_requests", &with("kind", kind.name()), number(count))));
        samples.push(Sample::new("last_run_retries", labels, number(counted.retries)));
        samples
    }
}

impl Monitor for Tally {
    fn emit(&self, event: Event) {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner).take(&event);
        self.shown.emit(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use immich_backup_core::event::Recorder;

    #[test]
    fn what_is_counted_is_shown_as_well_and_a_phase_that_was_cut_off_counts() {
        let recorder = Arc::new(Recorder::default());
        let tally = Tally::new(Arc::<Recorder>::clone(&recorder));
        tally.emit(Event::PhaseStarted { phase: Phase::Store, total_files: None, total_bytes: None });
        tally.emit(Event::FilesSeen { files: 3, bytes: 300, unchanged_files: 2, unchanged_bytes: 200 });
        tally.emit(Event::PhaseFinished { phase: Phase::Store });
        tally.emit(Event::PhaseStarted { phase: Phase::Prove, total_files: None, total_bytes: None });
        let retry = Event::Retrying { action: "store".into(), key: "k".into(), retry: 1, of: 5, wait_ms: 2_000, problem: "p".into() };
        tally.emit(retry);
        assert_eq!(recorder.events().len(), 5);
        let samples = tally.samples(&[("command", "backup")]);
        let value = |name: &str, label: &str, value: &str| {
            samples.iter().find(|sample| sample.name == name && sample.label(label) == Some(value)).map(|sample| sample.value)
        };
        assert_eq!((value("last_run_files", "what", "seen"), value("last_run_bytes", "what", "unchanged")), (Some(3.0), Some(200.0)));
        assert_eq!(value("last_run_retries", "command", "backup"), Some(1.0));
        assert!(value("last_run_phase_seconds", "phase", "store").is_some() && value("last_run_phase_seconds", "phase", "prove").is_some(), "{samples:?}");
        assert!(samples.iter().all(|sample| sample.label("command") == Some("backup")));
    }

    #[test]
    fn phases_are_called_as_in_events() {
        let all = [Phase::Refresh, Phase::SendDump, Phase::LookAgain, Phase::ReadBack, Phase::CountRows, Phase::CopyManifest, Phase::Remove];
        for phase in all {
            assert_eq!(serde_json::to_value(phase).unwrap(), name(phase));
        }
    }
}
