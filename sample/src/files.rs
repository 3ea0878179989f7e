//! The one place that writes: into a folder that was empty, each file once, with a time in the past.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, bail};
use jiff::Timestamp;

/// The folder that is being filled, and what went into it.
pub(crate) struct Folder {
    root: PathBuf,
    /// Files written.
    pub(crate) files: u64,
    /// Their size.
    pub(crate) bytes: u64,
}

impl Folder {
    /// Makes `root`, or takes it if it is empty.
    pub(crate) fn create(root: &Path) -> anyhow::Result<Folder> {
        match fs::read_dir(root) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    bail!("`{}` is not empty: name a new or an empty folder", root.display());
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::create_dir_all(root).with_context(|| format!("cannot make the folder `{}`", root.display()))?
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot look into `{}`", root.display()));
            }
        }
        Ok(Folder { root: root.to_owned(), files: 0, bytes: 0 })
    }

    /// Writes one file, last modified at `modified`. `path` is relative to the folder and not taken yet.
    pub(crate) fn write(&mut self, path: &str, content: &[u8], modified: Timestamp) -> anyhow::Result<()> {
        let target = self.root.join(path);
        let write = || -> std::io::Result<()> {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut file = File::create_new(&target)?;
            file.write_all(content)?;
            file.set_modified(SystemTime::from(modified))
        };
        write().with_context(|| format!("cannot write `{}`", target.display()))?;
        self.files += 1;
        self.bytes += content.len() as u64;
        Ok(())
    }
}
