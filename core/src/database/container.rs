//! Running PostgreSQL's programs inside the database's own container, through Docker's API.

use super::connection::{Connection, Password};
use super::error::DatabaseError;
use super::process::{Process, Purpose, Tail};
use crate::stack::engine::Engine;
use bollard::Docker;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWrite;

/// How long a program may take until it runs, or until Docker says that it ended after its output did.
const TURN_WAIT: Duration = Duration::from_secs(60);

/// How often Docker is asked whether a program has ended.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What is read of Docker's connection at a time: one of its pieces is 32 KiB.
const PIPE_BYTES: usize = 64 << 10;

/// The longest first line of stderr, which says the process's number.
const NUMBER_BYTES_MAX: usize = 256;

/// Pieces of stdout that may come before that line: Docker does not keep the order of the two.
const EARLY_PIECES_MAX: usize = 64;

/// Says its number, then becomes the program: Docker tells the number on its own machine only, where we may have no say.
const WRAPPER: &str = r#"echo "immich-backup runs as $$" >&2; exec "$0" "$@""#;
const NUMBER_PREFIX: &str = "immich-backup runs as ";

/// Asks a process to end, and ends it 3 seconds later.
const KILLER: &str = r#"kill -TERM "$0" || exit 0; for i in 1 2 3; do sleep 1; kill -0 "$0" || exit 0; done; kill -KILL "$0""#;

/// Which container, and as whom to speak to the database in it.
#[derive(Debug, Clone)]
pub struct ContainerOptions {
    /// Docker's socket (a path or `unix://…`), or `tcp://host:port`.
    pub docker: String,
    /// The container's name or id.
    pub container: String,
    /// The database's user; `POSTGRES_USER` of the container's environment if absent, else `postgres`.
    pub user: Option<String>,
    /// The database; `POSTGRES_DB` if absent, else `immich`.
    pub database: Option<String>,
    /// The password; `POSTGRES_PASSWORD` if absent.
    pub password: Option<Password>,
    /// As which user of the container's system programs run; its own default if absent.
    pub run_as: Option<String>,
}

/// A running container with PostgreSQL's programs in it.
#[derive(Debug)]
pub(super) struct Container {
    docker: Docker,
    /// As the user calls it.
    pub(super) name: String,
    /// As Docker does: another container of the same name would not be this one.
    id: String,
    run_as: Option<String>,
}

fn is_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

impl Container {
    /// Looks at the container, and who speaks to its database how.
    pub(super) async fn open(options: ContainerOptions) -> Result<(Self, Connection), DatabaseError> {
        let name = options.container;
        let docker = Engine::connect(&options.docker).await?.docker().clone();
        let found = docker.inspect_container(&name, None).await.map_err(|source| match is_status(&source, 404) {
            true => DatabaseError::NoContainer { container: name.clone() },
            false => DatabaseError::Docker { action: "look at", container: name.clone(), source },
        })?;
        let state = found.state.unwrap_or_default();
        if state.running != Some(true) || state.paused == Some(true) {
            let status = state.status.map_or_else(|| "not running".to_owned(), |status| status.to_string());
            return Err(DatabaseError::NotRunning { container: name, status });
        }
        let environment = found.config.and_then(|config| config.env).unwrap_or_default();
        let variable = |name: &str| {
            let value = environment.iter().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()));
            value.filter(|value| !value.is_empty())
        };
        let user = options.user.or_else(|| variable("POSTGRES_USER")).unwrap_or_else(|| "postgres".to_owned());
        // Not PostgreSQL's own default, the user's name: Immich's.
        let database = options.database.or_else(|| variable("POSTGRES_DB"));
        let mut connection = Connection::new().with_user(user).with_database(database.unwrap_or_default());
        if let Some(password) = options.password.or_else(|| variable("POSTGRES_PASSWORD").map(Password::new)) {
            connection = connection.with_password(password);
        }
        let id = found.id.unwrap_or_else(|| name.clone());
        Ok((Self { docker, name, id, run_as: options.run_as }, connection))
    }

    fn failed(&self, action: &'static str) -> impl Fn(Error) -> DatabaseError + use<> {
        let container = self.name.clone();
        move |source| match is_status(&source, 409) {
            true => DatabaseError::NotRunning { container: container.clone(), status: "stopped or paused".to_owned() },
            false => DatabaseError::Docker { action, container: container.clone(), source },
        }
    }

    /// Starts a program in the container.
    pub(super) async fn start(
        self: &Arc<Self>,
        arguments: Vec<String>,
        variables: BTreeMap<String, String>,
        purpose: Purpose,
    ) -> Result<Process, DatabaseError> {
        let container = Arc::clone(self);
        // A task of its own, so that whoever drops this does not leave a program behind whose number nobody knows: the task goes on until it is
        // known, and what it then gives to nobody is ended.
        crate::task::joined(tokio::spawn(async move { container.start_now(arguments, variables, purpose).await }).await)
    }

    async fn start_now(self: Arc<Self>, arguments: Vec<String>, variables: BTreeMap<String, String>, purpose: Purpose) -> Result<Process, DatabaseError> {
        let command = ["sh", "-c", WRAPPER, purpose.program].map(str::to_owned).into_iter().chain(arguments).collect();
        let (mut exec, mut output, input) = self.attach(command, variables, purpose.has_input).await?;
        let program = purpose.program;
        let (tail, mut early, mut said) = (Tail::default(), Vec::new(), Vec::new());
        let slow = || DatabaseError::Slow { program, action: "begin", container: self.name.clone(), seconds: TURN_WAIT.as_secs() };
        let first_line = async {
            while let Some(piece) = output.next().await {
                match piece.map_err(self.failed("read from"))? {
                    LogOutput::StdOut { message } => early.push(message),
                    LogOutput::StdErr { message } | LogOutput::Console { message } | LogOutput::StdIn { message } => said.extend_from_slice(&message),
                }
                if said.contains(&b'\n') || said.len() > NUMBER_BYTES_MAX || early.len() > EARLY_PIECES_MAX {
                    break;
                }
            }
            Ok::<_, DatabaseError>(())
        };
        tokio::time::timeout(TURN_WAIT, first_line).await.map_err(|_| slow())??;
        let text = String::from_utf8_lossy(&said);
        let number = text.strip_prefix(NUMBER_PREFIX).and_then(|rest| rest.split_once('\n'));
        let Some((number, rest)) = number.filter(|(number, _)| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())) else {
            // No shell, or no such system user: what Docker itself says of it, on stdout.
            let words = [early.concat(), said].concat();
            let stderr = String::from_utf8_lossy(words.get(..NUMBER_BYTES_MAX * 4).unwrap_or(&words)).trim().to_owned();
            return Err(DatabaseError::NotInContainer { container: self.name.clone(), program, stderr });
        };
        tail.push(rest.as_bytes());
        number.clone_into(&mut exec.number);
        let (kept, failed) = (tail.clone(), self.failed("read from"));
        let later = output.filter_map(move |piece| {
            let piece = match piece {
                Ok(LogOutput::StdOut { message }) => Some(Ok(message)),
                Ok(LogOutput::StdErr { message } | LogOutput::Console { message } | LogOutput::StdIn { message }) => {
                    kept.push(&message);
                    None
                }
                Err(error) => Some(Err(failed(error))),
            };
            std::future::ready(piece)
        });
        let output = futures_util::stream::iter(early.into_iter().map(Ok)).chain(later).boxed();
        Ok(Process::exec(exec, output, input, tail, purpose))
    }

    async fn attach(
        self: &Arc<Self>,
        command: Vec<String>,
        variables: BTreeMap<String, String>,
        has_input: bool,
    ) -> Result<(Exec, BoxStream<'static, Result<LogOutput, Error>>, Option<Pin<Box<dyn AsyncWrite + Send>>>), DatabaseError> {
        let options = CreateExecOptions {
            attach_stdin: Some(has_input),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            // A terminal would change the ends of lines and mix stderr in.
            tty: Some(false),
            env: Some(variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()),
            cmd: Some(command),
            user: self.run_as.clone(),
            ..CreateExecOptions::default()
        };
        let created = self.docker.create_exec(&self.id, options).await.map_err(self.failed("prepare a program in"))?;
        let options = StartExecOptions { detach: false, tty: false, output_capacity: Some(PIPE_BYTES) };
        match self.docker.start_exec(&created.id, Some(options)).await.map_err(self.failed("start a program in"))? {
            StartExecResults::Attached { output, input } => {
                let exec = Exec { container: Arc::clone(self), id: created.id, number: String::new(), ended: false };
                Ok((exec, output, has_input.then_some(input)))
            }
            StartExecResults::Detached => Err(self.failed("start a program in")(Error::DockerStreamError { error: "it was not attached".to_owned() })),
        }
    }

    /// Asks the process with this number to end, by a program of its own; it is not waited for.
    async fn kill(&self, number: String) -> Result<(), Error> {
        let options = CreateExecOptions {
            cmd: Some(["sh", "-c", KILLER, number.as_str()].map(str::to_owned).to_vec()),
            user: self.run_as.clone(),
            ..CreateExecOptions::default()
        };
        let created = self.docker.create_exec(&self.id, options).await?;
        self.docker.start_exec(&created.id, Some(StartExecOptions { detach: true, ..StartExecOptions::default() })).await?;
        Ok(())
    }

    /// The exit status of a program; `None` while it runs.
    async fn exit_code(&self, exec: &str) -> Result<Option<i64>, DatabaseError> {
        let found = self.docker.inspect_exec(exec).await.map_err(self.failed("ask how a program ended in"))?;
        Ok(if found.running == Some(false) { found.exit_code } else { None })
    }
}

/// A program that runs in a container. Dropped before it ended, it is ended there.
pub(super) struct Exec {
    container: Arc<Container>,
    id: String,
    /// Its process's number, as the container sees it; empty where that is not known.
    number: String,
    ended: bool,
}

impl Exec {
    /// Its exit status, once its output has ended.
    pub(super) async fn wait(&mut self, program: &'static str) -> Result<i64, DatabaseError> {
        let deadline = tokio::time::Instant::now() + TURN_WAIT;
        loop {
            if let Some(code) = self.container.exit_code(&self.id).await? {
                self.ended = true;
                return Ok(code);
            }
            if tokio::time::Instant::now() >= deadline {
                let container = self.container.name.clone();
                return Err(DatabaseError::Slow { program, action: "end", container, seconds: TURN_WAIT.as_secs() });
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Asks it to end. `false` where it has ended, or cannot be asked.
    pub(super) async fn ask_to_end(&mut self) -> bool {
        // Only while it runs: its number may be another's later.
        let runs = matches!(self.container.exit_code(&self.id).await, Ok(None));
        self.ended = runs && self.container.kill(self.number.clone()).await.is_ok();
        self.ended
    }

    /// Waits for its end, but not longer than this.
    pub(super) async fn wait_for_end(&self, wait: Duration) {
        let deadline = tokio::time::Instant::now() + wait;
        while tokio::time::Instant::now() < deadline && matches!(self.container.exit_code(&self.id).await, Ok(None)) {
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        if self.ended || self.number.is_empty() {
            return;
        }
        let (container, id, number) = (Arc::clone(&self.container), std::mem::take(&mut self.id), std::mem::take(&mut self.number));
        // Without a runtime the program itself is ending; a connection that is left is ended by the next run.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if matches!(container.exit_code(&id).await, Ok(None)) {
                    container.kill(number).await.ok();
                }
            });
        }
    }
}
