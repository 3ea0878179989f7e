//! What engines of killed tests leave behind: a folder each, and empty control groups. Their processes and mounts went with their namespaces.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const PREFIX: &str = "immich-backup-docker-";
/// A file in an engine's folder, locked as long as its test lives.
const ALIVE: &str = "alive";
/// The kernel ends an engine a moment after its test.
const GONE_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";

/// A new folder for an engine, and what tells others that it is in use.
pub(super) fn folder() -> io::Result<(TempDir, File)> {
    let folder = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    // Locked before it has its name: without that name nobody takes it for a leftover.
    let unnamed = folder.path().join("alive.new");
    let alive = File::create(&unnamed)?;
    alive.lock()?;
    fs::rename(unnamed, folder.path().join(ALIVE))?;
    Ok((folder, alive))
}

/// Removes what killed tests left in `within`. What cannot be removed stays for the next time.
pub(super) fn sweep(within: &Path) {
    for entry in fs::read_dir(within).into_iter().flatten().flatten() {
        if !entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX)) {
            continue;
        }
        let Ok(alive) = File::open(entry.path().join(ALIVE)) else { continue };
        // Held until all is gone: another test may sweep too.
        if matches!(alive.try_lock(), Err(TryLockError::WouldBlock | TryLockError::Error(_))) {
            continue;
        }
        // The folder last: as long as it is there, somebody will look for the rest.
        let began = Instant::now();
        while !remove_groups(&entry.path()) || (fs::remove_dir_all(entry.path()).is_err() && entry.path().exists()) {
            if began.elapsed() > GONE_WITHIN {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Removes the control groups of the engine in `folder`, and returns whether they are gone: as long as something runs in them, they stay.
pub(super) fn remove_groups(folder: &Path) -> bool {
    let Some(name) = folder.file_name() else { return true };
    // One tree (version 2), or one for each controller (version 1).
    let controllers = fs::read_dir(CONTROL_GROUPS).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = controllers.chain([PathBuf::from(CONTROL_GROUPS)]).map(|tree| tree.join(name));
    // Each, also after one that stays.
    let stay = groups.filter(|group| !remove_group(group)).count();
    stay == 0
}

fn remove_group(group: &Path) -> bool {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    // Its files are the kernel's, and go with it.
    fs::remove_dir(group).is_ok() || !group.exists()
}
