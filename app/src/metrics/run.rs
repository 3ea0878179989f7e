//! How a run of a command went, as samples.

use super::text::Sample;
use super::{COMMAND, OUTCOMES, REPOSITORY, Tally, number, seconds};
use crate::exit::Exit;
use jiff::Timestamp;
use std::time::Duration;

/// A run that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Which command.
    pub command: &'a str,
    /// The word for how it ended, and its exit code.
    pub outcome: (&'a str, u8),
    /// When it ended.
    pub ended_at: Timestamp,
    /// How long it took.
    pub took: Duration,
}

impl<'a> Run<'a> {
    /// A run that ended now.
    #[must_use]
    pub fn new(command: &'a str, exit: Exit, took: Duration) -> Self {
        Self { command, outcome: (exit.outcome(), exit.code()), ended_at: Timestamp::now(), took }
    }

    /// Whether it came to its end, and knows how the repository stands there.
    pub(super) fn is_done(&self) -> bool {
        [Exit::Done, Exit::Incomplete, Exit::Withheld].iter().any(|exit| exit.code() == self.outcome.1)
    }

    /// Its samples, with what `tally` has counted.
    pub(super) fn samples(&self, repository: &str, tally: Option<&Tally>) -> Vec<Sample> {
        let labels = [(REPOSITORY, repository), (COMMAND, self.command)];
        let mut samples = ended(repository, self.command, self.outcome.0, self.ended_at);
        samples.push(Sample::new("last_run_exit_code", &labels, number(self.outcome.1.into())));
        samples.push(Sample::new("last_run_duration_seconds", &labels, self.took.as_secs_f64()));
        samples.extend(tally.map(|tally| tally.samples(&labels)).unwrap_or_default());
        samples
    }
}

/// What is known of any run, also of one that another machine made.
pub(super) fn ended(repository: &str, command: &str, outcome: &str, at: Timestamp) -> Vec<Sample> {
    let labels = [(REPOSITORY, repository), (COMMAND, command)];
    let of = |exit: Exit| {
        let labels = [labels.as_slice(), &[("outcome", exit.outcome())]].concat();
        Sample::new("last_run_outcome", &labels, f64::from(u8::from(exit.outcome() == outcome)))
    };
    OUTCOMES.into_iter().map(of).chain([Sample::new("last_run_timestamp_seconds", &labels, seconds(at))]).collect()
}
