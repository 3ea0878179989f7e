//! Ending what servers of dead programs left.

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::process::{Pid, Signal, kill_process};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The file in a server's folder that its program holds locked.
pub(super) const LOCK: &str = "lock";

/// Folders that are looked at.
const SWEPT_MAX: usize = 100;

/// How long a server may take to end.
const END_WAIT: Duration = Duration::from_secs(10);

/// Ends the servers, and removes the folders, that begin with `prefix` in `parent` and that no program holds. What belongs to others stays.
pub(super) fn sweep(parent: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    let left = entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(prefix.as_bytes()));
    for entry in left.take(SWEPT_MAX) {
        // A link could lead anywhere.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_abandoned(&entry.path()) {
            end_server(&entry.path());
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Whether it is ours and nobody holds its lock. One without a lock is being made or removed right now.
fn is_abandoned(folder: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(lock) = rustix::fs::open(folder.join(LOCK), flags, Mode::empty()) else { return false };
    let is_ours = rustix::fs::fstat(&lock).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
    is_ours && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Ends the server that runs on the data in `folder`, if one does.
fn end_server(folder: &Path) {
    let data = folder.join("data");
    let Ok(state) = std::fs::read_to_string(data.join("postmaster.pid")) else { return };
    let Some(pid) = state.lines().next().and_then(|line| line.trim().parse().ok()).and_then(Pid::from_raw) else { return };
    // The number may be another's by now: its command line has to name these data.
    let is_server = || {
        let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_bytes())
    };
    let begun = Instant::now();
    let mut signal = Signal::QUIT;
    while is_server() && begun.elapsed() < END_WAIT {
        kill_process(pid, signal).ok();
        if begun.elapsed() > END_WAIT / 2 {
            signal = Signal::KILL;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
