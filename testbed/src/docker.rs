//! A Docker engine of a test's own, and containers as Immich's database runs in, without a registry.
//!
//! The engine lives in namespaces of its own: its processes and mounts are nobody else's, it leaves the machine's network alone, and all that it started
//! is gone with its first process, also when the test is killed. What a killed test leaves are folders; the next engine removes them.

#![allow(clippy::panic, reason = "for tests: what Docker refuses is shown")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::servers::ServerError;
use crate::servers::process::{End, Launch, Process};

mod container;
pub(crate) mod image;
mod leftover;
mod program;

pub use container::{Container, ContainerOptions};
pub use program::dockerfile;

/// A running engine.
pub struct Engine {
    socket: PathBuf,
    /// Loaded when it is first asked for.
    image: OnceLock<String>,
    process: Process,
    /// Whether it was killed, and not started again.
    is_down: AtomicBool,
    /// Locked as long as this engine is somebody's.
    _alive: File,
}

/// What starts the engine in its namespaces, and does with it what [`Order`] says: `$0` is its folder, `$1` the name of the folder.
const START: &str = include_str!("docker/supervise.sh");

/// What a test does to an engine that is to live on: a line for whoever started it in its namespaces.
#[derive(Clone, Copy)]
enum Order {
    Kill,
    Outage,
    Start,
    End,
}

impl Order {
    fn line(self) -> &'static str {
        match self {
            Self::Kill => "kill\n",
            Self::Outage => "outage\n",
            Self::Start => "start\n",
            Self::End => "end\n",
        }
    }
}

/// A loaded machine is slow; one that is not needs a second or two.
const READY_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(20);

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
        Ok(Some(Self { socket, image: OnceLock::new(), process, is_down: AtomicBool::new(false), _alive: alive }))
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

    /// Makes the image that `deploy/docker/Dockerfile` describes, with this compiled program in it, and returns its name. `arguments` are further ones of the
    /// build, e.g. `("VERSION", "1.2.3")`. All but the program is made once, from packages of the distribution, and kept with the test tools.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn program_image(&self, program: &Path, arguments: &[(&str, &str)]) -> Result<&'static str, ServerError> {
        program::make(self, program, arguments)
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

    /// Kills the engine's process (SIGKILL), as a lack of memory would. Its containers run on, but nobody can reach them through it any more.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn kill(&self) {
        self.bring_down(Order::Kill);
    }

    /// Kills the engine and all that runs in its containers at once, and takes away what would not survive a reboot: the machine lost its power.
    ///
    /// # Panics
    ///
    /// If it does not end.
    pub fn lose_power(&self) {
        self.bring_down(Order::Outage);
    }

    /// Starts it again on the same data after [`Engine::kill`] or [`Engine::lose_power`], and returns when it answers. Containers come back as their restart
    /// policies say; of those that ran on, none stays: an engine that finds them kills them first.
    ///
    /// # Errors
    ///
    /// If it does not become ready.
    pub fn start_again(&self) -> Result<(), ServerError> {
        self.order(Order::Start).map_err(cannot_start)?;
        self.is_down.store(false, Ordering::Relaxed);
        let began = Instant::now();
        loop {
            match docker(&self.socket, &["version".to_string()]) {
                Ok(_) => return Ok(()),
                Err(said) if began.elapsed() > READY_WITHIN => {
                    let what = format!("is not ready again after {READY_WITHIN:?} ({said})");
                    return Err(ServerError::NotReady { program: "dockerd".to_string(), what, last_words: self.log() });
                }
                Err(_) => thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn bring_down(&self, order: Order) {
        self.is_down.store(true, Ordering::Relaxed);
        if let Err(error) = self.order(order) {
            panic!("cannot reach who started the engine: {error}");
        }
        let began = Instant::now();
        // Gone when nobody listens any more: its socket's file stays.
        while UnixStream::connect(&self.socket).is_ok() {
            assert!(began.elapsed() < READY_WITHIN, "the engine does not end: {}", self.log());
            thread::sleep(LOOK_EVERY);
        }
    }

    fn order(&self, order: Order) -> io::Result<()> {
        // Both ways: to open it for writing alone would wait for ever where nobody reads.
        File::options().read(true).write(true).open(self.folder().join("orders"))?.write_all(order.line().as_bytes())
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
        if self.is_down.load(Ordering::Relaxed) {
            // Its namespaces have nothing to wait for: a signal would not reach their first process.
            self.order(Order::End).ok();
        }
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
    // The builder that is a part of each engine: the other one is a program of its own, which a client may lack.
    command.args(before).args(arguments).env("DOCKER_BUILDKIT", "0").stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("cannot start `docker`: {error}"))?;
    if !status.success() {
        return Err(format!("`docker {}` ended with {status}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr)));
    }
    Ok(String::from_utf8_lossy(&stdout).trim_end_matches('\n').to_string())
}

/// The command that talks to the engine at `socket`, whatever the user's own settings say.
pub(crate) fn client(socket: &Path) -> [String; 5] {
    let folder = socket.parent().unwrap_or(Path::new("/"));
    ["docker", "--config", &folder.join("client").display().to_string(), "--host", &format!("unix://{}", socket.display())].map(ToString::to_string)
}
