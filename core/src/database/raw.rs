//! PostgreSQL's folder, seen as files.

use std::io;
use std::path::Path;

/// Folders that PostgreSQL needs and that may be empty, which no list of files brings back: `subdirs` of `initdb` in PostgreSQL 14 to 18. One that a
/// version does not know does it no harm.
pub const FOLDERS: [&str; 16] = [
    "pg_commit_ts",
    "pg_dynshmem",
    "pg_logical/mappings",
    "pg_logical/snapshots",
    "pg_multixact/members",
    "pg_multixact/offsets",
    "pg_notify",
    "pg_replslot",
    "pg_serial",
    "pg_snapshots",
    "pg_stat",
    "pg_stat_tmp",
    "pg_tblspc",
    "pg_twophase",
    "pg_wal/archive_status",
    "pg_wal/summaries",
];

/// What only the folder of a cluster has, relative to it.
pub const CONTROL: &str = "global/pg_control";

/// Is there while PostgreSQL runs, and stays where it did not end in an orderly way.
const RUNNING: &str = "postmaster.pid";

/// Clusters may lie so deep: images of PostgreSQL 18 mount the folder above `18/docker`.
const DEPTH_MAX: u32 = 2;

/// Whether a server runs on `folder`, or did not end in an orderly way.
///
/// # Errors
/// The folder cannot be read.
pub fn is_running(folder: &Path) -> io::Result<bool> {
    look(folder, DEPTH_MAX)
}

fn look(folder: &Path, deeper: u32) -> io::Result<bool> {
    if folder.join(RUNNING).symlink_metadata().is_ok() {
        return Ok(true);
    }
    // Within a cluster there is no other.
    if deeper == 0 || folder.join(CONTROL).exists() {
        return Ok(false);
    }
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && look(&entry.path(), deeper - 1)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_server_is_seen_where_images_put_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = folder.path().join("18/docker");
        std::fs::create_dir_all(cluster.join("global")).unwrap();
        std::fs::write(cluster.join(CONTROL), "").unwrap();
        assert!(!is_running(folder.path()).unwrap() && !is_running(&cluster).unwrap());
        std::fs::write(cluster.join(RUNNING), "").unwrap();
        assert!(is_running(folder.path()).unwrap() && is_running(&cluster).unwrap());
        assert!(is_running(&folder.path().join("nowhere")).is_err());
    }
}
