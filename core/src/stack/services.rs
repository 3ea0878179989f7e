//! Stopping a Compose project's services and starting them again, whatever happens in between.
//!
//! What ran is on the disk ([`journal`]) before the first container is stopped, and stays there until all of it is up again and was looked at. Whoever
//! finds a journal that nobody holds can bring everything back ([`recover`]): the journal says what, the engine says what is so now.

mod api;
mod down;
pub mod journal;
mod up;

pub use up::{Problem, Up, recover};

use super::engine::{Engine, EngineError};
use super::own;
use super::project::{Condition, Container, Dependency, Project, State, containers, projects};
use crate::event::{Event, Monitor};
use crate::task::blocking;
use api::Api;
use journal::{By, Hold, Journal, JournalError, Kept, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Containers that are asked for at once.
const LOOKS: usize = 8;

/// Which services are meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The Compose project.
    pub project: String,
    /// The service that Immich's database runs in.
    pub database: Option<String>,
    /// What the Compose file says of dependencies, for services whose containers do not say it.
    pub depends_on: BTreeMap<String, Vec<Dependency>>,
    /// What the Compose file says of the time to stop, for services whose containers do not say it.
    pub stop_timeouts: BTreeMap<String, Duration>,
}

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For an engine that is away, until starting is given up.
    pub engine: Duration,
    /// For the answer to one request; stopping a container takes its own time besides.
    pub answer: Duration,
    /// For a healthcheck, beyond its own times; for what has none, until it runs.
    pub health: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { engine: Duration::from_secs(15 * 60), answer: Duration::from_secs(30), health: Duration::from_secs(30) }
    }
}

/// What would be stopped, and what would be left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Services that would be stopped, in this order.
    pub stopped: Vec<String>,
    /// Containers that would not be, and why.
    pub left: Vec<(String, &'static str)>,
}

/// Why services cannot be stopped or started.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The engine cannot be asked, or refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// There is no such project.
    #[error("Docker at {engine} has no Compose project `{project}`")]
    NoProject {
        /// Its name.
        project: String,
        /// Where it was looked for.
        engine: String,
    },
    /// Somebody stopped them before and has not started them again.
    #[error("the services of `{project}` are stopped already, {by}, since {since}")]
    Standing {
        /// Whose services.
        project: String,
        /// By whom.
        by: &'static str,
        /// When.
        since: jiff::Timestamp,
    },
    /// The engine, or a proxy before it, does not permit it.
    #[error("it is not permitted to stop and start containers")]
    Forbidden {
        /// What it said.
        source: EngineError,
    },
    /// A container runs on.
    #[error("the container `{container}` of `{service}` does not stop")]
    RunsOn {
        /// The service.
        service: String,
        /// The container.
        container: String,
        /// What the engine said, where it said something.
        source: Option<Box<EngineError>>,
    },
    /// Asked to end meanwhile.
    #[error("interrupted while services were being stopped")]
    Interrupted,
    /// Not all that ran is up again.
    #[error("not all services are up again: {}", told(.problems))]
    NotUp {
        /// What is wrong.
        problems: Vec<Problem>,
        /// The journal, which stays.
        journal: PathBuf,
    },
    /// The engine did not come back.
    #[error("the services of `{project}` are down, and cannot be started")]
    Down {
        /// Whose services.
        project: String,
        /// What the engine said last.
        source: EngineError,
    },
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ServicesError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Journal(error) => error.hint(),
            Self::Engine(error) => error.hint().map(|hint| hint.into_owned()),
            Self::NoProject { .. } => Some("`docker compose ls --all` shows the projects there are; name yours with --compose-project".to_owned()),
            Self::Standing { .. } => Some("start them first: `immich-backup services start`".to_owned()),
            Self::Forbidden { .. } => {
                Some("a proxy before Docker's socket has to allow POST to /containers/*/stop and /start; or leave --stop-services out".to_owned())
            }
            Self::RunsOn { container, .. } => Some(format!("see what it does: `docker logs {container}`; `docker stop {container}` should stop it")),
            Self::Interrupted => None,
            Self::NotUp { problems, journal } => {
                let mut hints: Vec<String> = problems.iter().map(|problem| problem.hint.clone()).collect();
                hints.dedup();
                Some(format!(
                    "{}; then run `immich-backup services recover`, which looks at everything once more. What ran is written down in `{}`: of what is gone for good, nothing is lost by removing that file. \
                     A backup without --stop-services can be made meanwhile",
                    hints.join("; "),
                    journal.display()
                ))
            }
            Self::Down { .. } => Some("once Docker runs again: `immich-backup services recover`".to_owned()),
        }
    }

    /// Whether the user asked to end.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        matches!(self, Self::Interrupted)
    }
}

/// A project's services, in the hands of one who may stop them.
///
/// Dropped without [`Outage::up_again`], it leaves the journal, and frees it: who watches over it starts them again.
pub struct Outage {
    api: Api,
    choice: Choice,
    patience: Patience,
    monitor: Arc<dyn Monitor>,
    hold: Hold,
    by: By,
    run: Option<String>,
    /// Ids of containers that are never stopped: the one that this program runs in, the one through which it reaches the engine.
    spared: BTreeSet<String>,
    journal: Option<Journal>,
    first_stop: Option<Instant>,
}

impl fmt::Debug for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outage").field("choice", &self.choice).field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Outage {
    /// Finds out whether the services can be stopped and started, and changes nothing.
    ///
    /// # Errors
    /// There is no such project, the engine does not permit it, or they are stopped already.
    pub async fn prepare(engine: Engine, choice: Choice, by: By, hold: Hold, patience: Patience, monitor: Arc<dyn Monitor>) -> Result<Self, ServicesError> {
        if let Some(standing) = hold.read()? {
            let by = match standing.by {
                By::Run => "by a backup",
                By::Hand => "by `services stop`",
            };
            return Err(ServicesError::Standing { project: standing.project, by, since: standing.begun_at });
        }
        let spared = spared(&engine).await?;
        let api = Api::new(engine, patience);
        let outage = Self { api, choice, patience, monitor, hold, by, run: None, spared, journal: None, first_stop: None };
        outage.look().await?;
        outage.api.rights().await.map_err(|error| match api::is_forbidden(&error) {
            true => ServicesError::Forbidden { source: error },
            false => error.into(),
        })?;
        Ok(outage)
    }

    /// Which run it is for, to be shown with the journal.
    pub fn set_run(&mut self, run: String) {
        self.run = Some(run);
    }

    /// The Compose project.
    #[must_use]
    pub fn project(&self) -> &str {
        &self.choice.project
    }

    /// Where the journal is, once something is stopped.
    #[must_use]
    pub fn journal_path(&self) -> PathBuf {
        self.hold.path()
    }

    /// Whether something was stopped and may not be up again.
    #[must_use]
    pub fn is_down(&self) -> bool {
        self.journal.is_some()
    }

    /// What would be stopped now.
    ///
    /// # Errors
    /// The engine's; or there is no such project any more.
    pub async fn intent(&self) -> Result<Intent, ServicesError> {
        let services = self.look().await?;
        let mut stopped: Vec<_> =
            layers(&services).into_iter().flatten().filter(|service| service.taken().next().is_some()).map(|service| service.name.clone()).collect();
        stopped.reverse();
        let left = services.iter().flat_map(|service| &service.containers).filter_map(|container| {
            let why = match container.state {
                _ if container.spared => "this program needs it",
                State::Paused => "it is paused",
                State::Running | State::Restarting => return None,
                State::Created | State::Exited | State::Dead => "it is not up",
            };
            Some((container.name.clone(), why))
        });
        Ok(Intent { left: left.collect(), stopped })
    }

    /// The project's services as they are now.
    async fn look(&self) -> Result<Vec<Service>, ServicesError> {
        let found = self.api.containers(&self.choice.project).await?;
        let mut project = projects(&found)
            .pop()
            .ok_or_else(|| ServicesError::NoProject { project: self.choice.project.clone(), engine: self.api.engine().address().to_owned() })?;
        project.depend(&self.choice.depends_on);
        Ok(self.kept(&project))
    }

    fn kept(&self, project: &Project) -> Vec<Service> {
        let of = |container: &Container| {
            let from_file = self.choice.stop_timeouts.get(&container.service).copied().filter(|_| container.stop_timeout.is_none());
            Kept {
                id: container.id.clone(),
                name: container.name.clone(),
                number: container.number,
                state: container.state,
                health: container.health,
                has_healthcheck: container.has_healthcheck,
                stop_timeout_s: container.stop_timeout.or(from_file).map(|timeout| timeout.as_secs()),
                tell_timeout: from_file.is_some(),
                started_at: container.started_at,
                spared: self.spared.contains(&container.id),
            }
        };
        // Where nothing is said of any order (Compose 1.29 writes no such labels), what everybody knows holds: the database comes before those who use it.
        let database = self.choice.database.as_ref().filter(|_| project.services.iter().all(|service| service.depends_on.is_empty()));
        let services = project.services.iter().map(|service| {
            let known = database.filter(|name| **name != service.name);
            let known = known.map(|name| Dependency { service: name.clone(), condition: Condition::Started });
            Service {
                name: service.name.clone(),
                is_database: self.choice.database.as_ref() == Some(&service.name),
                depends_on: service.depends_on.iter().cloned().chain(known).collect(),
                asked: false,
                containers: service.containers.iter().map(of).collect(),
            }
        });
        let mut services: Vec<_> = services.collect();
        // Those before come first, here too.
        services.sort_by_key(|service| database.is_some() && !service.is_database);
        services
    }

    /// Starts all that was stopped, waits until it is well, and removes the journal. Nothing is done where nothing was stopped.
    ///
    /// An engine that is away is waited for. Whatever goes wrong, as much as can be is started.
    ///
    /// # Errors
    /// The engine does not come back ([`ServicesError::Down`]), or something is not up ([`ServicesError::NotUp`]). The journal stays.
    pub async fn up_again(&mut self) -> Result<Up, ServicesError> {
        let Some(journal) = &mut self.journal else { return Ok(Up::default()) };
        let mut up = up::bring_up(Some(&self.api), journal, &self.hold, self.patience, &self.monitor).await?;
        self.journal = None;
        up.downtime = self.first_stop.take().map(|first| first.elapsed());
        Ok(up)
    }

    /// Gives the services out of hand as they are: they stay down, and the journal says what ran.
    pub fn leave(self) {
        drop(self.hold);
    }

    fn warn(&self, message: String) {
        self.monitor.emit(Event::Warned { message });
    }
}

/// Ids of the containers that this program needs.
async fn spared(engine: &Engine) -> Result<BTreeSet<String>, EngineError> {
    let mut all = containers(engine).await?;
    let address = engine.address().to_owned();
    // Looks up a name, perhaps.
    let all = blocking(move || {
        own::mark(&mut all, &own::Signs::look(), &address);
        all
    })
    .await;
    Ok(all.into_iter().filter(Container::is_needed_here).map(|container| container.id).collect())
}

/// The services in steps: each comes after those that it waits for, and those of one step do not wait for each other. A circle is one step.
fn layers(services: &[Service]) -> Vec<Vec<&Service>> {
    let mut left: Vec<&Service> = services.iter().collect();
    let mut steps = Vec::new();
    while !left.is_empty() {
        let waits =
            |service: &Service| service.depends_on.iter().any(|before| before.service != service.name && left.iter().any(|other| other.name == before.service));
        let (later, mut now): (Vec<_>, Vec<_>) = left.iter().copied().partition(|service| waits(service));
        left = later;
        if now.is_empty() {
            now = std::mem::take(&mut left);
        }
        steps.push(now);
    }
    steps
}

/// What `services status` shows of a project.
#[derive(Debug, Clone)]
pub struct Status {
    /// The service.
    pub service: String,
    /// The container's name.
    pub container: String,
    /// What it does.
    pub state: State,
    /// What its healthcheck says.
    pub health: Option<super::project::Health>,
}

/// What the containers of `project` do.
///
/// # Errors
/// The engine's.
pub async fn status(engine: &Engine, project: &str, patience: Patience) -> Result<Vec<Status>, ServicesError> {
    let found = Api::new(engine.clone(), patience).containers(project).await?;
    let project = projects(&found).pop();
    let of = |container: &Container| Status {
        service: container.service.clone(),
        container: container.name.clone(),
        state: container.state,
        health: container.health,
    };
    Ok(project.iter().flat_map(Project::containers).map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, depends_on: &[&str]) -> Service {
        let on = |name: &&str| Dependency { service: (*name).to_owned(), condition: Condition::Started };
        Service { name: name.to_owned(), is_database: false, depends_on: depends_on.iter().map(on).collect(), asked: false, containers: Vec::new() }
    }

    fn names<'a>(steps: &[Vec<&'a Service>]) -> Vec<Vec<&'a str>> {
        steps.iter().map(|step| step.iter().map(|service| service.name.as_str()).collect()).collect()
    }

    #[test]
    fn services_of_one_depth_go_together_and_a_circle_ends() {
        let all = [
            service("server", &["redis", "database"]),
            service("redis", &[]),
            service("learning", &["nowhere"]),
            service("database", &[]),
            service("proxy", &["server"]),
        ];
        assert_eq!(names(&layers(&all)), [vec!["redis", "learning", "database"], vec!["server"], vec!["proxy"]]);
        let circle = [service("a", &["b"]), service("b", &["a"]), service("c", &["c"])];
        assert_eq!(names(&layers(&circle)), [vec!["c"], vec!["a", "b"]]);
    }
}
