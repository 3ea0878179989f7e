//! What Prometheus may ask: how the repository stands, and how the last run of each command went; as a file for node_exporter, and at the daemon's
//! `/metrics`.
//!
//! All is read off two things: [`crate::standing`], which is what the log says, and the events of a run ([`tally`]). The file is its own memory: what this
//! command knows nothing of is carried over from what was written before, so that one file serves all commands, and a run that could not even reach the
//! repository leaves the older times standing, where they age.

mod file;
pub mod regular;
mod run;
mod standing;
mod tally;
mod text;

pub use file::{read, update};
pub use run::Run;
pub use tally::Tally;
pub use text::{Sample, render};

use crate::exit::Exit;

/// What a metric speaks of; decides what takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The repository, as its log says.
    Repository,
    /// The last run of one command, on this machine.
    Run,
    /// The daemon; never in the file.
    Daemon,
}

/// One metric. All are gauges: a counter that begins anew with each process counts nothing.
#[derive(Debug)]
pub struct Metric {
    /// Its name, without `immich_backup_`.
    pub name: &'static str,
    /// What it speaks of.
    pub scope: Scope,
    /// One sentence.
    pub help: &'static str,
}

/// What every name begins with.
pub const PREFIX: &str = "immich_backup_";

/// The label that says which repository is meant: one machine may write into several.
pub const REPOSITORY: &str = "repository";
/// The label that says which command ran.
pub const COMMAND: &str = "command";

/// The commands whose ends are written down.
pub const COMMANDS: [&str; 5] = ["backup", "verify", "drill", "prune", "status"];

/// How runs end.
const OUTCOMES: [Exit; 9] =
    [Exit::Done, Exit::Failed, Exit::Usage, Exit::Incomplete, Exit::Withheld, Exit::NoRepository, Exit::LogDamaged, Exit::Damaged, Exit::Interrupted];

/// All metrics, in the order in which they are written.
pub const METRICS: &[Metric] = &[
    of_repository("last_success_timestamp_seconds", "When the newest snapshot was committed whose run had nothing to complain about."),
    of_repository("last_proven_timestamp_seconds", "When the newest snapshot was committed in which every asset that should be there is proven."),
    of_repository("last_snapshot_timestamp_seconds", "When the newest snapshot was committed."),
    of_repository("first_snapshot_timestamp_seconds", "When the first snapshot was committed."),
    of_repository("last_drill_timestamp_seconds", "When the last drill began."),
    of_repository("last_drill_outcome", "How the last drill ended: 1 for that outcome, 0 for the others."),
    of_repository("last_verify_timestamp_seconds", "When objects of the store were last looked at: listed, or read back as a whole or in part."),
    of_repository("last_listed_timestamp_seconds", "When the store was last listed and compared with the log."),
    of_repository("last_read_timestamp_seconds", "When every object was last read back and compared."),
    of_repository("assets", "Assets of the newest snapshot's database by what the proof says of them; untracked counts files that no row names."),
    of_repository("proof_oldest_timestamp_seconds", "When the asset was looked at that was looked at longest ago in this way, as of the newest snapshot."),
    of_repository("proof_assets", "Assets that were looked at in this way, as of the newest snapshot."),
    of_repository("snapshot_files", "Files in the newest snapshot by class."),
    of_repository("snapshot_bytes", "Size of the files in the newest snapshot by class."),
    of_repository("damaged_objects", "Objects known to be missing or damaged that hold what is stored nowhere else."),
    of_run("last_run_outcome", "How the last run of the command ended: 1 for that outcome, 0 for the others."),
    of_run("last_run_exit_code", "The exit code of the last run of the command."),
    of_run("last_run_timestamp_seconds", "When the last run of the command ended."),
    of_run("last_run_duration_seconds", "How long the last run of the command took."),
    of_run("last_run_phase_seconds", "How long each phase of the last run of the command took; phases may overlap."),
    of_run("last_run_files", "Files and objects of the last run of the command, by what was done with them."),
    of_run("last_run_bytes", "Size of the files and objects of the last run of the command, by what was done with them."),
    of_run("last_run_requests", "Requests to the object store in the last run of the command, each attempt counted."),
    of_run("last_run_retries", "Requests that were tried again in the last run of the command."),
    of_daemon("build_info", "The program's version."),
    of_daemon("next_run_timestamp_seconds", "When the daemon runs the command next."),
    of_daemon("running", "Whether the daemon runs the command now."),
    of_daemon("problems", "How many problems the daemon complains about in its status."),
];

const fn of_repository(name: &'static str, help: &'static str) -> Metric {
    Metric { name, scope: Scope::Repository, help }
}

const fn of_run(name: &'static str, help: &'static str) -> Metric {
    Metric { name, scope: Scope::Run, help }
}

const fn of_daemon(name: &'static str, help: &'static str) -> Metric {
    Metric { name, scope: Scope::Daemon, help }
}

/// The metric of this name.
fn metric(name: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.name == name)
}

/// A count as Prometheus takes it: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
pub fn number(count: u64) -> f64 {
    count as f64
}

/// Seconds since 1970.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
pub fn seconds(at: jiff::Timestamp) -> f64 {
    at.as_second() as f64
}
