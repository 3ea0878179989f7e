//! A Docker engine of a test's own, and containers as Immich's database runs in, without a registry.
//!
//! The engine lives in namespaces of its own: its processes and mounts are nobody else's, it leaves the machine's network alone, and all that it started
//! is gone with its first process, also when the test is killed. What a killed test leaves are folders; the next engine removes them.

#![allow(clippy::panic, reason = "for tests: what Docker refuses is shown")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use crate::servers::ServerError;
use crate::servers::process::{End, Launch, Process};

mod container;
mod image;
mod leftover;

pub use container::{Container, ContainerOptions};

/// A running engine.
pub struct Engine {
    socket: PathBuf,
    /// Loaded when it is first asked for.
    image: OnceLock<String>,
    process: Process,
    /// Locked as long as this engine is somebody's.
    _alive: File,
}

/// What starts the engine in its namespaces: `$0` is its folder, `$1` the name of the folder. Its data are in memory: to remove an image's thousands of
/// files would take longer than most tests.
const START: &str = r#"
mount -t tmpfs tmpfs /run
mkdir "$0/data" "$0/exec"
mount -t tmpfs tmpfs "$0/data"
mount -t tmpfs tmpfs "$0/exec"
exec dockerd --host="unix://$0/docker.sock" --data-root="$0/data" --exec-root="$0/exec" --pidfile="$0/docker.pid" --config-file="$0/daemon.json" \
  --bridge=none --iptables=false --ip-forward=false --ip-masq=false --exec-opt=native.cgroupdriver=cgroupfs --cgroup-parent="/$1"
"#;

/// What `unshare` makes for it. Whoever is first in a namespace of processes takes all others there with it.
const NAMESPACES: [&str; 5] = ["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"];

impl Engine {
    /// Starts one, without networks. `None`, and a word to whoever reads the test's output, where that cannot be: it needs root, and the right to mount;
    /// or where `IMMICH_BACKUP_WITHOUT_DOCKER=1` says that tests are to do without.
    ///
    /// # Errors
    ///
    /// If Docker is not installed, or does not become ready.
    pub fn start() -> Result<Option<Self>, ServerError> {
        if let Some(why) = impossible() {
            eprintln!("NOT TESTED: no Docker engine can be started here: {why}");
            return Ok(None);
        }
        for program in ["dockerd", "docker"] {
            if found(program).is_none() {
                return Err(ServerError::NotInstalled { program: PathBuf::from(program) });
            }
        }
        leftover::sweep(&env::temp_dir());
        let (folder, alive) = leftover::folder().map_err(cannot_start)?;
        fs::write(folder.path().join("daemon.json"), "{}").map_err(cannot_start)?;
        let socket = folder.path().join("docker.sock");
        let mut command = Command::new("unshare");
        command.args(NAMESPACES).args(["--", "sh", "-euc", START]).arg(folder.path()).arg(folder.path().file_name().unwrap_or_default());
        command.env("PATH", search_path()).env_remove("DOCKER_HOST");
        let launch = Launch { name: "dockerd".to_string(), command, privileges: Vec::new(), end: End::Terminate, folder };
        let (process, ()) = Process::launch(launch, || docker(&socket, &["version".to_string()]).map(drop))?;
        Ok(Some(Self { socket, image: OnceLock::new(), process, _alive: alive }))
    }

    /// Its socket: what `DOCKER_HOST` names after `unix://`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its address, as `DOCKER_HOST` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// What `docker` prints for these arguments.
    ///
    /// # Panics
    ///
    /// If it refuses.
    #[track_caller]
    pub fn docker(&self, arguments: &[&str]) -> String {
        match self.try_docker(arguments) {
            Ok(answer) => answer,
            Err(said) => panic!("{said}"),
        }
    }

    /// What `docker` prints for these arguments, or what it says against them.
    ///
    /// # Errors
    ///
    /// If it refuses.
    pub fn try_docker(&self, arguments: &[&str]) -> Result<String, String> {
        docker(&self.socket, &arguments.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    /// Name of the image of a database's container: the distribution that runs here in its smallest form, and PostgreSQL 18 with all that Immich needs.
    /// It is made once and kept with the test tools; that takes about a minute.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn image(&self) -> Result<&str, ServerError> {
        if let Some(image) = self.image.get() {
            return Ok(image);
        }
        let tar = image::made()?;
        let mut import = vec!["import".to_string()];
        import.extend(image::CHANGES.iter().flat_map(|change| ["--change".to_string(), change.to_string()]));
        import.extend([tar.display().to_string(), image::NAME.to_string()]);
        docker(&self.socket, &import).map_err(|said| cannot_start(io::Error::other(said)))?;
        Ok(self.image.get_or_init(|| image::NAME.to_string()))
    }

    /// Starts a container as that of Immich's database, with an empty database `immich`, and returns it when it answers.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or does not become ready.
    pub fn postgres(&self, name: &str) -> Result<Container<'_>, ServerError> {
        self.postgres_with(name, &ContainerOptions::default())
    }

    /// Starts a container as that of Immich's database, as `options` say, and returns it when it answers.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or does not become ready.
    pub fn postgres_with(&self, name: &str, options: &ContainerOptions) -> Result<Container<'_>, ServerError> {
        Container::start(self, name, options)
    }

    /// What the engine has printed so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// The engine's folder.
    pub fn folder(&self) -> &Path {
        self.process.folder()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.process.stop();
        leftover::remove_groups(self.process.folder());
    }
}

fn cannot_start(cause: io::Error) -> ServerError {
    ServerError::Start { program: "dockerd".to_string(), cause }
}

/// Why there cannot be an engine.
fn impossible() -> Option<String> {
    if env::var("IMMICH_BACKUP_WITHOUT_DOCKER").is_ok_and(|value| value == "1") {
        return Some("IMMICH_BACKUP_WITHOUT_DOCKER is set".to_string());
    }
    if !rustix::process::geteuid().is_root() {
        return Some("that takes root".to_string());
    }
    let probe = Command::new("unshare").args(NAMESPACES).args(["--", "mount", "-t", "tmpfs", "tmpfs", "/run"]).stdin(Stdio::null()).output();
    match probe {
        Ok(Output { status, .. }) if status.success() => None,
        Ok(Output { stderr, .. }) => Some(String::from_utf8_lossy(&stderr).trim().to_string()),
        Err(error) => Some(format!("there is no `unshare`: {error}")),
    }
}

/// `PATH` with the folders of what only root runs.
fn search_path() -> String {
    format!("{}:/usr/local/sbin:/usr/sbin:/sbin", env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".to_string()))
}

fn found(program: &str) -> Option<PathBuf> {
    search_path().split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// What `docker` prints when it is told to talk to the engine at `socket`.
fn docker(socket: &Path, arguments: &[String]) -> Result<String, String> {
    let [program, before @ ..] = client(socket);
    let mut command = Command::new(program);
    command.args(before).args(arguments).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("cannot start `docker`: {error}"))?;
    if !status.success() {
        return Err(format!("`docker {}` ended with {status}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr)));
    }
    Ok(String::from_utf8_lossy(&stdout).trim_end_matches('\n').to_string())
}

/// The command that talks to the engine at `socket`, whatever the user's own settings say.
fn client(socket: &Path) -> [String; 5] {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    ["docker", "--config", &folder.join("client").display().to_string(), "--host", &format!("unix://{}", socket.display())].map(ToString::to_string)
}
