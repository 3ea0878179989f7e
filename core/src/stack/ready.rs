//! A database's container: started alone, and waited for until Immich could use it.

use super::engine::{Engine, EngineError, refused};
use super::project::{self, Container, Health, State};
use crate::database::container::ContainerOptions;
use crate::database::{Client, DatabaseError};
use crate::event::{Event, Monitor};
use crate::told::told;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often a container is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How often it is said that something is waited for.
const SAY_EVERY: Duration = Duration::from_secs(20);

/// Why a container is not up.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The engine cannot be asked, or refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It ended again.
    #[error("the container `{name}` has ended right after its start{}", with(.exit_code))]
    Ended {
        /// Its name.
        name: String,
        /// What it ended with.
        exit_code: Option<i64>,
    },
    /// It is not well in time.
    #[error("the container `{name}` is not ready after {waited_s} s: {what}")]
    TooLong {
        /// Its name.
        name: String,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// What it is instead.
        what: String,
    },
    /// Asked to stop.
    #[error("interrupted while waiting for the container `{name}`")]
    Interrupted {
        /// Its name.
        name: String,
    },
}

fn with(exit_code: &Option<i64>) -> String {
    exit_code.map_or_else(String::new, |code| format!(" (exit status {code})"))
}

impl NotReady {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Engine(error) => error.hint().map(Into::into),
            Self::Ended { name, .. } => Some(format!("`docker logs {name}` says why")),
            Self::TooLong { name, .. } => Some(format!("`docker logs {name}` and `docker inspect {name}` say why; --wait gives it more time")),
            Self::Interrupted { .. } => None,
        }
    }
}

/// Something that is waited for, with an end.
pub struct Patience<'a> {
    began: Instant,
    limit: Duration,
    said: Option<Instant>,
    monitor: &'a dyn Monitor,
    stop: &'a CancellationToken,
}

/// The time is over, or somebody asked to stop.
pub enum Over {
    /// So many seconds have passed.
    TooLong(u64),
    /// Asked to stop.
    Interrupted,
}

impl<'a> Patience<'a> {
    /// So long, from now on.
    #[must_use]
    pub fn new(limit: Duration, monitor: &'a dyn Monitor, stop: &'a CancellationToken) -> Self {
        Self { began: Instant::now(), limit, said: None, monitor, stop }
    }

    /// Waits a moment; now and then says for what.
    ///
    /// # Errors
    /// It has taken too long, or somebody asked to stop.
    pub async fn wait(&mut self, what: impl FnOnce() -> String) -> Result<(), Over> {
        let waited = self.began.elapsed();
        if waited >= self.limit {
            return Err(Over::TooLong(waited.as_secs()));
        }
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            let left = self.limit.saturating_sub(waited).as_secs();
            self.monitor.emit(Event::Waiting { what: format!("{}; waiting at most {left} s more", what()) });
        }
        tokio::select! {
            () = self.stop.cancelled() => Err(Over::Interrupted),
            () = tokio::time::sleep(LOOK_EVERY) => Ok(()),
        }
    }
}

/// Starts a container. One that is up is left as it is.
///
/// # Errors
/// The engine's.
pub async fn start(engine: &Engine, container: &Container) -> Result<(), EngineError> {
    engine.docker().start_container(&container.id, None).await.map_err(refused(format!("start the container `{}`", container.name)))
}

/// What the container is doing that is not yet well; `None`: it runs, and its healthcheck, where it has one, does not say no.
fn not_well(container: &Container) -> Option<String> {
    match (container.state, container.health) {
        (State::Running, Some(Health::Unhealthy)) => Some("its healthcheck says that it is not well".to_owned()),
        (State::Running, _) => None,
        (State::Paused, _) => Some("it is paused".to_owned()),
        (State::Restarting, _) => Some("it ends and is started again and again".to_owned()),
        (State::Created | State::Exited | State::Dead, _) => Some("it does not run".to_owned()),
    }
}

/// Returns when the database in this container takes connections over the network, as Immich's server makes them, with what speaks to it from inside.
///
/// A healthcheck that says nothing yet is not waited for: Immich's own is asked every five minutes. But one that says no, is believed. While its image
/// makes a new database, a server that listens nowhere answers inside of the container; that one is not meant.
///
/// # Errors
/// It ended, or that does not happen in time.
pub async fn until_answers(
    engine: &Engine,
    container: &Container,
    options: ContainerOptions,
    limit: Duration,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<Client, NotReady> {
    let mut patience = Patience::new(limit, monitor, stop);
    loop {
        let now = look(engine, container).await?;
        let what = match not_well(&now) {
            Some(what) => what,
            None => match ask(options.clone()).await {
                Ok(Some(client)) => return Ok(client),
                Ok(None) => "it is being set up".to_owned(),
                Err(error) => told(&error),
            },
        };
        wait(&mut patience, container, what).await?;
    }
}

/// What speaks to the database, if it listens.
async fn ask(options: ContainerOptions) -> Result<Option<Client>, DatabaseError> {
    let client = Client::in_container(options).await?;
    let addresses = client.query("SELECT pg_catalog.current_setting('listen_addresses');\n").await?;
    Ok(Some(client).filter(|_| !addresses.trim().is_empty()))
}

async fn look(engine: &Engine, container: &Container) -> Result<Container, NotReady> {
    let now = project::container(engine, &container.id).await?;
    match now.state {
        State::Exited | State::Dead => Err(NotReady::Ended { name: now.name, exit_code: now.exit_code }),
        _ => Ok(now),
    }
}

async fn wait(patience: &mut Patience<'_>, container: &Container, what: String) -> Result<(), NotReady> {
    let name = &container.name;
    match patience.wait(|| format!("the container `{name}` is not ready yet ({what})")).await {
        Ok(()) => Ok(()),
        Err(Over::TooLong(waited_s)) => Err(NotReady::TooLong { name: name.clone(), waited_s, what }),
        Err(Over::Interrupted) => Err(NotReady::Interrupted { name: name.clone() }),
    }
}
