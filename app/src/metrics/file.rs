//! The file: what was written before is read, what is known better now takes its place, and the whole is put under its name at once.

use super::text::{Sample, parse, render};
use super::{COMMAND, REPOSITORY, Run, Scope, Tally, metric, run, seconds, standing};
use crate::metrics::regular;
use crate::standing::Standing;
use rustix::fs::FlockOperation;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

/// What was written has some kilobytes for each repository.
const SIZE_MAX: u64 = 1 << 20;

/// Several commands may write at once: each waits so often for the others.
const TURNS_MAX: u32 = 50;
/// And so long.
const TURN: Duration = Duration::from_millis(20);

/// What was written to `path`; nothing where there is no such file, or where it is none of ours.
///
/// # Errors
/// It cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<Sample>> {
    let mut bytes = Vec::new();
    match regular::open(path).and_then(|file| file.take(SIZE_MAX).read_to_end(&mut bytes)) {
        Ok(_) => Ok(parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Writes down how `run` went, what `tally` counted of it, and how the repository stands, where that is known and what was written before is not newer: whoever
/// reads `path` finds the old text or the new.
///
/// # Errors
/// It cannot be written, or something else than a file is there.
pub fn update(path: &Path, repository: &str, run: &Run<'_>, tally: Option<&Tally>, standing: Option<&Standing>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(regular::none());
    }
    let lock = File::open(folder)?;
    // The folder itself is what is locked: nothing is left lying in it. Who waits too long goes on: then the last one wins.
    for _ in 0..TURNS_MAX {
        if !matches!(rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK)) {
            break;
        }
        std::thread::sleep(TURN);
    }
    // What cannot be read is replaced.
    let before = read(path).unwrap_or_default();
    let mut file = tempfile::Builder::new().prefix(".immich-backup-metrics-").tempfile_in(folder)?;
    file.write_all(render(&merged(before, repository, run, tally, standing)).as_bytes())?;
    // Who reads it is somebody else, and there is no secret in it.
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    drop(lock);
    Ok(())
}

/// Whether `before` has a time of the repository that the samples of a standing do not have yet: another command has written since that standing was noted.
fn knows_more(before: &[Sample], repository: &str, noted: &[Sample]) -> bool {
    let is_time = |sample: &&Sample| sample.name.starts_with("last_") && metric(&sample.name).is_some_and(|metric| metric.scope == Scope::Repository);
    let times = before.iter().filter(|sample| sample.label(REPOSITORY) == Some(repository)).filter(is_time).filter(|sample| sample.name.ends_with("_seconds"));
    times.into_iter().any(|time| noted.iter().find(|sample| sample.name == time.name).is_none_or(|sample| sample.value < time.value))
}

fn merged(mut samples: Vec<Sample>, repository: &str, run: &Run<'_>, tally: Option<&Tally>, standing: Option<&Standing>) -> Vec<Sample> {
    // What a command that failed knows, it may have noted hours ago, at its start.
    let standing = standing.filter(|standing| run.is_done() || !knows_more(&samples, repository, &standing::samples(repository, standing)));
    let is_ours = |sample: &Sample| sample.label(REPOSITORY) == Some(repository);
    let is_of_run = |sample: &Sample, command: &str| is_ours(sample) && sample.label(COMMAND) == Some(command);
    samples.retain(|sample| match metric(&sample.name).map(|metric| metric.scope) {
        Some(Scope::Repository) => !is_ours(sample) || standing.is_none(),
        Some(Scope::Run) => !is_of_run(sample, run.command),
        Some(Scope::Daemon) | None => false,
    });
    samples.extend(run.samples(repository, tally));
    if let Some(standing) = standing {
        samples.extend(standing::samples(repository, standing));
        // The log knows of backups that other machines made. Of those made here this file may know more: that a run failed before it could write to the log.
        if let Some(last) = &standing.last_backup
            && run.command != "backup"
        {
            let known = samples.iter().find(|sample| sample.name == "last_run_timestamp_seconds" && is_of_run(sample, "backup"));
            if known.is_none_or(|known| known.value < seconds(last.at)) {
                samples.retain(|sample| !is_of_run(sample, "backup"));
                samples.extend(run::ended(repository, "backup", &last.outcome, last.at));
            }
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;
    use crate::standing::LastBackup;
    use jiff::Timestamp;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn run(command: &'static str, exit: Exit, ended: &str) -> Run<'static> {
        Run { ended_at: at(ended), ..Run::new(command, exit, Duration::from_secs(3)) }
    }

    fn standing(snapshot: &str, last: Option<(&str, &str)>) -> Standing {
        let last_backup = last.map(|(when, outcome)| LastBackup { at: at(when), outcome: outcome.into() });
        Standing { last_backup, ..crate::standing::tests::standing(Some(snapshot)) }
    }

    fn value(path: &Path, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |sample: &Sample| sample.name == name && labels.iter().all(|(name, value)| sample.label(name) == Some(value));
        let found: Vec<_> = read(path).unwrap().into_iter().filter(fits).collect();
        assert!(found.len() <= 1, "{found:?}");
        found.first().map(|sample| sample.value)
    }

    #[test]
    fn a_failed_run_leaves_what_was_known_and_says_that_it_failed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.prom");
        update(&path, "r", &run("backup", Exit::Done, "2026-05-01T03:00Z"), None, Some(&standing("2026-05-01T03:00Z", None))).unwrap();
        update(&path, "r", &run("verify", Exit::Damaged, "2026-05-01T05:00Z"), None, None).unwrap();
        update(&path, "other", &run("backup", Exit::Withheld, "2026-05-01T06:00Z"), None, None).unwrap();
        let snapshot = value(&path, "last_snapshot_timestamp_seconds", &[("repository", "r")]);
        assert_eq!(snapshot, Some(seconds(at("2026-05-01T03:00Z"))));
        update(&path, "r", &run("backup", Exit::Failed, "2026-05-02T03:00Z"), None, None).unwrap();
        assert_eq!(value(&path, "last_snapshot_timestamp_seconds", &[("repository", "r")]), snapshot, "an old time ages by itself");
        let outcome = |repository: &str, command: &str, outcome: &str| {
            value(&path, "last_run_outcome", &[("repository", repository), ("command", command), ("outcome", outcome)])
        };
        assert_eq!((outcome("r", "backup", "failed"), outcome("r", "backup", "done")), (Some(1.0), Some(0.0)));
        assert_eq!((outcome("r", "verify", "damaged"), outcome("other", "backup", "withheld")), (Some(1.0), Some(1.0)), "others keep theirs");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644, "somebody else reads it");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside it");
    }

    #[test]
    fn a_backup_that_another_machine_made_counts_and_one_that_failed_here_later_counts_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.prom");
        let status = run("status", Exit::Done, "2026-05-01T09:00Z");
        let outcome = |word: &str| value(&path, "last_run_outcome", &[("command", "backup"), ("outcome", word)]);
        update(&path, "r", &status, None, Some(&standing("2026-05-01T03:00Z", Some(("2026-05-01T03:00Z", "incomplete"))))).unwrap();
        assert_eq!(outcome("incomplete"), Some(1.0));
        update(&path, "r", &run("backup", Exit::Failed, "2026-05-01T10:00Z"), None, None).unwrap();
        update(&path, "r", &status, None, Some(&standing("2026-05-01T03:00Z", Some(("2026-05-01T03:00Z", "incomplete"))))).unwrap();
        assert_eq!(outcome("failed"), Some(1.0), "the log does not know of it");
        update(&path, "r", &status, None, Some(&standing("2026-05-01T12:00Z", Some(("2026-05-01T12:00Z", "done"))))).unwrap();
        assert_eq!((outcome("done"), outcome("failed")), (Some(1.0), Some(0.0)));
    }

    #[test]
    fn a_failed_run_does_not_take_back_what_another_one_wrote_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.prom");
        let (old, new) = (standing("2026-05-01T03:00Z", None), standing("2026-05-02T03:00Z", None));
        let snapshot = |path: &Path| value(path, "last_snapshot_timestamp_seconds", &[]);
        update(&path, "r", &run("verify", Exit::Failed, "2026-05-01T04:00Z"), None, Some(&old)).unwrap();
        assert_eq!(snapshot(&path), Some(seconds(at("2026-05-01T03:00Z"))), "where nothing is known, it serves");
        update(&path, "r", &run("backup", Exit::Done, "2026-05-02T03:00Z"), None, Some(&new)).unwrap();
        update(&path, "r", &run("verify", Exit::Failed, "2026-05-02T04:00Z"), None, Some(&old)).unwrap();
        assert_eq!(snapshot(&path), Some(seconds(at("2026-05-02T03:00Z"))));
        assert_eq!(value(&path, "last_run_outcome", &[("command", "verify"), ("outcome", "failed")]), Some(1.0));
        update(&path, "r", &run("verify", Exit::Failed, "2026-05-02T05:00Z"), None, Some(&Standing { damaged_objects: 3, ..new })).unwrap();
        assert_eq!(value(&path, "damaged_objects", &[]), Some(3.0), "what is no older counts");
        update(&path, "r", &run("status", Exit::Done, "2026-05-02T06:00Z"), None, Some(&old)).unwrap();
        assert_eq!(snapshot(&path), Some(seconds(at("2026-05-01T03:00Z"))), "a log that was made anew");
    }

    #[test]
    fn a_file_of_somebody_else_is_replaced_and_a_fifo_or_a_folder_that_is_not_there_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.prom");
        std::fs::write(&path, [0xff, 0x00, b'\n', b'x']).unwrap();
        update(&path, "r", &run("prune", Exit::Done, "2026-05-01T03:00Z"), None, None).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().starts_with("# HELP immich_backup_last_run_outcome "));
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
        assert!(read(&path).is_err() && update(&path, "r", &run("prune", Exit::Done, "2026-05-01T03:00Z"), None, None).is_err());
        assert!(update(&folder.path().join("nowhere/a.prom"), "r", &run("prune", Exit::Done, "2026-05-01T03:00Z"), None, None).is_err());
    }
}
