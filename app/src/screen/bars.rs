//! Bars with percent, rate, bytes and time left, on a terminal.

use super::human;
use immich_backup_core::event::{Event, Monitor, Phase};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const BYTES: &str = "{prefix:>12} {wide_bar:.cyan/black} {percent:>3}%  {decimal_bytes} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left";
const FILES: &str = "{prefix:>12} {wide_bar:.cyan/black} {percent:>3}%  {human_pos} of {human_len}  {eta} left";
const MOVING: &str = "{prefix:>12} {spinner:.cyan} {decimal_bytes}  {decimal_bytes_per_sec}";
const COUNTING: &str = "{prefix:>12} {spinner:.cyan} {human_pos} files, {msg}";

pub(super) struct Bars {
    verbose: bool,
    screen: MultiProgress,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// Counts files of a walk.
    walk: Option<ProgressBar>,
    bar: Option<ProgressBar>,
    /// What is copied while the dump is taken.
    staging: Option<ProgressBar>,
    by_bytes: bool,
    seen_bytes: u64,
}

impl Current {
    /// Only now is it known how much there is: percent and time left mean something.
    fn know_bytes(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_style(style(BYTES));
            bar.set_length(bytes);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants; a wrong one shows as the plain default.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    pub(super) fn new(verbose: bool) -> Self {
        Self { verbose, screen: MultiProgress::new(), current: Mutex::new(Current::default()) }
    }

    fn begin(&self, current: &mut Current, phase: Phase, files: Option<u64>, bytes: Option<u64>) {
        self.end(current);
        current.by_bytes = bytes.is_some() || matches!(phase, Phase::Store | Phase::Dump | Phase::ReadDump | Phase::Load);
        current.seen_bytes = 0;
        if phase == Phase::Store {
            let walk = self.screen.add(ProgressBar::no_length().with_style(style(COUNTING)).with_prefix("looking"));
            walk.enable_steady_tick(Duration::from_millis(120));
            current.walk = Some(walk);
        }
        let name = human::phase(phase).split(' ').next().unwrap_or_default();
        let bar = match (current.by_bytes, bytes.or(files)) {
            (true, Some(length)) => ProgressBar::new(length).with_style(style(BYTES)),
            (true, None) => ProgressBar::no_length().with_style(style(MOVING)),
            (false, Some(files)) => ProgressBar::new(files).with_style(style(FILES)),
            (false, None) => ProgressBar::no_length().with_style(style("{prefix:>12} {spinner:.cyan} {elapsed}")),
        };
        let bar = self.screen.add(bar.with_prefix(name));
        bar.enable_steady_tick(Duration::from_millis(250));
        current.bar = Some(bar);
    }

    fn end(&self, current: &mut Current) {
        for bar in current.walk.take().into_iter().chain(current.bar.take()) {
            bar.finish_and_clear();
        }
    }
}

impl Monitor for Bars {
    fn emit(&self, event: Event) {
        let line = human::problem(&event).or_else(|| human::note(&event)).or_else(|| human::file(&event).filter(|_| self.verbose));
        if let Some(line) = line {
            // Above the bars; a terminal that went away ends nothing.
            self.screen.println(super::harmless(&line)).unwrap_or_default();
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::PhaseStarted { phase, total_files, total_bytes } => self.begin(&mut current, phase, total_files, total_bytes),
            Event::PhaseFinished { .. } => self.end(&mut current),
            Event::FilesSeen { files, bytes, unchanged_bytes, .. } => {
                current.seen_bytes += bytes;
                if let Some(walk) = &current.walk {
                    walk.inc(files);
                    walk.set_message(super::bytes(current.seen_bytes));
                }
                if let Some(bar) = &current.bar {
                    bar.inc(unchanged_bytes);
                }
            }
            Event::Counted { files, bytes } => {
                if let Some(walk) = &current.walk {
                    walk.set_style(style(FILES));
                    walk.set_length(files);
                }
                current.know_bytes(bytes);
            }
            Event::WalkFinished { bytes, .. } => {
                if let Some(walk) = current.walk.take() {
                    walk.finish_and_clear();
                }
                current.know_bytes(bytes);
            }
            Event::StagingStarted { bytes, .. } => {
                let bar = self.screen.add(ProgressBar::new(bytes).with_style(style(BYTES)).with_prefix("copying"));
                bar.enable_steady_tick(Duration::from_millis(250));
                current.staging = Some(bar);
            }
            Event::BytesStaged { bytes } => drop(current.staging.as_ref().map(|bar| bar.inc(bytes))),
            Event::StagingFinished { .. } => drop(current.staging.take().map(|bar| bar.finish_and_clear())),
            Event::BytesSent { bytes } | Event::DumpRead { bytes } | Event::DumpLoaded { bytes } if current.by_bytes => {
                if let Some(bar) = &current.bar {
                    bar.inc(bytes);
                }
            }
            Event::ObjectChecked { size_bytes } => drop(current.bar.as_ref().map(|bar| bar.inc(if current.by_bytes { size_bytes } else { 1 }))),
            Event::EntriesApplied { .. } => drop(current.bar.as_ref().map(|bar| bar.inc(1))),
            _ => {}
        }
    }
}
