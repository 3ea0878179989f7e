//! A container as that of Immich's database: whoever is inside is trusted.

use std::ops::Deref;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use super::{Engine, cannot_start, client};
use crate::postgres::{Administrator, Psql};
use crate::servers::ServerError;

/// A loaded machine is slow; one that is not needs two seconds.
const READY_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a database's container is to be.
#[derive(Debug, Clone)]
pub struct ContainerOptions {
    /// `POSTGRES_USER`: its administrator.
    pub user: String,
    /// `POSTGRES_DB`: a database it has from the start.
    pub database: String,
    /// `POSTGRES_PASSWORD`: for who comes over the network, which nobody does here.
    pub password: String,
    /// Further arguments of `docker run` before the image, e.g. `--label` and `--env`.
    pub arguments: Vec<String>,
}

impl Default for ContainerOptions {
    /// As Immich's Compose file has it.
    fn default() -> Self {
        let labels = ["com.docker.compose.project=immich", "com.docker.compose.service=database"];
        Self {
            user: "postgres".to_string(),
            database: "immich".to_string(),
            password: "Tr0ub4dor-of-the-container".to_string(),
            arguments: labels.iter().map(|label| format!("--label={label}")).collect(),
        }
    }
}

/// A running container; what its [`Administrator`] may do can be done with it. It is removed when dropped.
pub struct Container<'a> {
    engine: &'a Engine,
    name: String,
    database: String,
    administrator: Administrator,
}

impl<'a> Container<'a> {
    pub(super) fn start(engine: &'a Engine, name: &str, options: &ContainerOptions) -> Result<Self, ServerError> {
        let image = engine.image()?;
        let mut run = vec!["run".to_string(), "--detach".to_string(), "--network=none".to_string(), format!("--name={name}")];
        // The official image says so itself; `docker import` cannot.
        run.push("--stop-signal=SIGINT".to_string());
        let variables = [("POSTGRES_USER", &options.user), ("POSTGRES_DB", &options.database), ("POSTGRES_PASSWORD", &options.password)];
        run.extend(variables.iter().map(|(name, value)| format!("--env={name}={value}")));
        run.extend(options.arguments.iter().cloned());
        run.push(image.to_string());
        super::docker(engine.socket(), &run).map_err(|said| cannot_start(std::io::Error::other(said)))?;
        let mut inside = client(engine.socket()).to_vec();
        inside.extend(["exec", "--interactive", name, "psql", "--username", &options.user].map(ToString::to_string));
        let administrator = Administrator::new(Psql::through(inside));
        let container = Self { engine, name: name.to_string(), database: options.database.clone(), administrator };
        container.wait()?;
        Ok(container)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database it had from the start.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// What a program inside prints, run as root.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn exec(&self, command: &[&str]) -> String {
        self.engine.docker(&[&["exec", &self.name], command].concat())
    }

    /// What it has printed so far, errors too; empty if Docker does not tell.
    pub fn log(&self) -> String {
        let [program, before @ ..] = client(self.engine.socket());
        let output = Command::new(program).args(before).args(["logs", &self.name]).output();
        // Docker keeps the two streams apart; the server uses the second.
        output.map(|output| [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()).unwrap_or_default()
    }

    /// `running`, `paused`, `exited`, …
    ///
    /// # Panics
    ///
    /// If Docker does not tell.
    #[track_caller]
    pub fn state(&self) -> String {
        self.engine.docker(&["inspect", "--format", "{{.State.Status}}", &self.name])
    }

    /// Stops it in an orderly way; it can be started again.
    ///
    /// # Panics
    ///
    /// If Docker refuses.
    #[track_caller]
    pub fn stop(&self) {
        self.engine.docker(&["stop", &self.name]);
    }

    /// Starts it again, and returns when it answers.
    ///
    /// # Errors
    ///
    /// If it does not.
    ///
    /// # Panics
    ///
    /// If Docker refuses.
    #[track_caller]
    pub fn start_again(&self) -> Result<(), ServerError> {
        self.engine.docker(&["start", &self.name]);
        self.wait()
    }

    /// Kills it, as a lack of memory would.
    ///
    /// # Panics
    ///
    /// If Docker refuses.
    #[track_caller]
    pub fn kill(&self) {
        self.engine.docker(&["kill", &self.name]);
    }

    /// Freezes it: it answers nobody, and nothing in it goes on.
    ///
    /// # Panics
    ///
    /// If Docker refuses.
    #[track_caller]
    pub fn pause(&self) {
        self.engine.docker(&["pause", &self.name]);
    }

    /// Lets it go on.
    ///
    /// # Panics
    ///
    /// If Docker refuses.
    #[track_caller]
    pub fn unpause(&self) {
        self.engine.docker(&["unpause", &self.name]);
    }

    fn wait(&self) -> Result<(), ServerError> {
        let began = Instant::now();
        loop {
            let what = match self.administrator.try_psql(&self.database, "SELECT 1") {
                Ok(_) => return Ok(()),
                Err(said) if began.elapsed() > READY_WITHIN => format!("is not ready after {READY_WITHIN:?} ({said})"),
                Err(_) if self.state() == "exited" => "has ended".to_string(),
                Err(_) => {
                    thread::sleep(LOOK_EVERY);
                    continue;
                }
            };
            return Err(ServerError::NotReady { program: format!("container {}", self.name), what, last_words: self.log() });
        }
    }
}

impl Deref for Container<'_> {
    type Target = Administrator;

    fn deref(&self) -> &Administrator {
        &self.administrator
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        // The engine ends soon anyway: a container that cannot be removed ends with it.
        self.engine.try_docker(&["rm", "--force", "--volumes", &self.name]).ok();
    }
}
