//! The metrics of a daemon: what its jobs have written, and what only it knows.

use super::board::Board;
use super::feed::{Happened, Watcher};
use crate::metrics::{self, COMMAND, REPOSITORY, Run, Sample};
use jiff::Timestamp;
use std::path::PathBuf;
use std::time::Duration;

/// The file where nobody has named one, below the base of the state folders.
pub const NAME: &str = "metrics.prom";

/// The file that jobs write, and whose repository it is about.
#[derive(Debug, Clone)]
pub struct MetricsFile {
    /// Where it is.
    pub path: PathBuf,
    /// The repository, as its samples name it.
    pub repository: String,
}

impl MetricsFile {
    /// All that there is to know, as text.
    #[must_use]
    pub fn text(&self, board: &Board) -> String {
        // What a job could not write is not there; that it could not, it has said.
        let mut samples = metrics::read(&self.path).unwrap_or_default();
        samples.extend(self.of_daemon(board));
        metrics::render(&samples)
    }

    fn of_daemon(&self, board: &Board) -> Vec<Sample> {
        let status = board.status(Timestamp::now());
        let plain = [(REPOSITORY, self.repository.as_str())];
        let of = |name: &'static str, command: &str, value| Sample::new(name, &[plain.as_slice(), &[(COMMAND, command)]].concat(), value);
        let mut samples = vec![
            Sample::new("build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
            Sample::new("problems", &plain, metrics::number(status.problems().len() as u64)),
        ];
        samples.extend(status.next_runs().map(|(job, at)| of("next_run_timestamp_seconds", job.name(), metrics::seconds(at))));
        samples.extend(status.jobs_running().map(|(job, runs)| of("running", job.name(), f64::from(u8::from(runs)))));
        samples
    }
}

impl Watcher for MetricsFile {
    fn notice(&self, happened: &Happened<'_>) {
        // A job that died has written nothing.
        if let Happened::Ended(report) = happened
            && report.summary.is_empty()
        {
            let (file, job, last) = (self.clone(), report.job, report.last.clone());
            // The disk may hang, and the daemon must not. There is nobody to tell: the job has said that it cannot be written, or will.
            drop(std::thread::Builder::new().name("metrics".to_owned()).spawn(move || {
                let took = Duration::try_from(last.ended_at.duration_since(last.began_at)).unwrap_or_default();
                let run = Run { command: job.name(), outcome: (&last.outcome, last.exit_code), ended_at: last.ended_at, took };
                metrics::update(&file.path, &file.repository, &run, None, None).unwrap_or_default();
            }));
        }
    }
}
