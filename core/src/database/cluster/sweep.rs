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

/// A program that was just killed may hold its lock for a moment more.
const LOCK_WAIT: Duration = Duration::from_secs(1);

const POLL: Duration = Duration::from_millis(100);

/// How long a server may take to end.
const END_WAIT: Duration = Duration::from_secs(10);

/// Ends the servers, and removes the folders, that begin with `prefix` in `parent` and that no program holds. What belongs to others stays.
pub(super) fn sweep(parent: &Path, prefix: &str) {
    let Ok(entries) = std::fs::read_dir(parent) else { return };
    let left = entries.flatten().filter(|entry| entry.file_name().as_bytes().starts_with(prefix.as_bytes()));
    for entry in left.take(SWEPT_MAX) {
        // A link could lead anywhere.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_abandoned(&entry.path()) {
            // Its folder is all that tells the next one of a server that goes on.
            if end_server(&entry.path()) {
                std::fs::remove_dir_all(entry.path()).ok();
            }
        }
    }
}

/// Whether it is ours and nobody holds its lock. One without a lock is being made or removed right now.
fn is_abandoned(folder: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let Ok(lock) = rustix::fs::open(folder.join(LOCK), flags, Mode::empty()) else { return false };
    let is_ours = rustix::fs::fstat(&lock).is_ok_and(|stat| stat.st_uid == rustix::process::geteuid().as_raw());
    if !is_ours {
        return false;
    }
    let begun = Instant::now();
    loop {
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return true;
        }
        if begun.elapsed() > LOCK_WAIT {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Ends the server that runs on the data in `folder`, if one does. Returns whether none is left.
fn end_server(folder: &Path) -> bool {
    let data = folder.join("data");
    let begun = Instant::now();
    loop {
        let servers = servers(&data);
        if servers.is_empty() || begun.elapsed() > END_WAIT {
            return servers.is_empty();
        }
        let signal = if begun.elapsed() > END_WAIT / 2 { Signal::KILL } else { Signal::QUIT };
        for server in servers {
            kill_process(server, signal).ok();
        }
        std::thread::sleep(POLL);
    }
}

/// The processes that are a PostgreSQL server on `data`. They are asked for, not read from the file that the server keeps: its number may be another's by
/// now.
fn servers(data: &Path) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let is_server = |process: &Path| {
        let program = std::fs::read_link(process.join("exe")).unwrap_or_default();
        let line = std::fs::read(process.join("cmdline")).unwrap_or_default();
        program.file_name().is_some_and(|name| name == "postgres") && line.split(|byte| *byte == 0).any(|argument| argument == data.as_os_str().as_bytes())
    };
    let pid = |process: &Path| process.file_name()?.to_str()?.parse().ok().and_then(Pid::from_raw);
    processes.flatten().filter_map(|process| pid(&process.path()).filter(|_| is_server(&process.path()))).collect()
}
