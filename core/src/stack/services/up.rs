//! Starting: what the journal says ran, as the engine has it now, in order; looked at until it is well.

use super::api::{Api, Seen, is_forbidden};
use super::down::stop_kept;
use super::journal::{Hold, Journal, Kept, Phase, Service};
use super::{Patience, ServicesError, layers};
use crate::event::{Event, Monitor};
use crate::stack::engine::{Engine, EngineError};
use crate::stack::project::{Condition, Container, Health, State};
use crate::told::told;
use bollard::errors::Error;
use futures_util::future::join_all;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a container is looked at that is to become well.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One without a healthcheck is well when it has run for so long.
const STEADY: Duration = Duration::from_secs(1);

/// One that has ended for so long is not started anew by the engine.
const ENDED: Duration = Duration::from_secs(5);

/// Waits before starting a container is tried again: a port or a mount of the one before may not be free yet.
const START_AGAIN: [Duration; 4] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// The waits while the engine is away: short, so that services are up soon after it is back.
const AWAY_FIRST: Duration = Duration::from_millis(250);
const AWAY_MAX: Duration = Duration::from_secs(2);

/// How often everything is looked at anew because containers were made anew meanwhile.
const ANEW_MAX: usize = 5;

/// How long PostgreSQL may take to answer where no healthcheck says so: it may have to recover first.
const DATABASE_WAIT: Duration = Duration::from_secs(120);

/// How long connecting to the database may take.
const CONNECT_WAIT: Duration = Duration::from_secs(2);

const POSTGRES_PORT: u16 = 5432;

/// Something that ran and is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The service.
    pub service: String,
    /// What is wrong.
    pub what: String,
    /// What the user can do about it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` {}", self.service, self.what)
    }
}

/// Everything that ran is up again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Up {
    /// Services that had to be started.
    pub started: Vec<String>,
    /// From the first stop until all was up and well; `None` where nothing was stopped.
    pub downtime: Option<Duration>,
}

/// Starts what the journal in `hold` says ran, if there is one, and removes it. `None` where there is none.
///
/// # Errors
/// As [`super::Outage::up_again`]; and the journal cannot be read.
pub async fn recover(hold: &Hold, patience: Patience, monitor: &Arc<dyn Monitor>) -> Result<Option<Up>, ServicesError> {
    let Some(mut journal) = hold.read()? else { return Ok(None) };
    let mut up = bring_up(None, &mut journal, hold, patience, monitor).await?;
    up.downtime = Duration::try_from(Timestamp::now().duration_since(journal.begun_at)).ok();
    Ok(Some(up))
}

/// Starts what `journal` says ran, waits until it is well, and removes the journal.
pub(super) async fn bring_up(
    api: Option<&Api>,
    journal: &mut Journal,
    hold: &Hold,
    patience: Patience,
    monitor: &Arc<dyn Monitor>,
) -> Result<Up, ServicesError> {
    if journal.phase != Phase::Starting {
        journal.phase = Phase::Starting;
        // A disk that is full must not keep anything from starting: what the journal says of what ran holds in any phase.
        if let Err(error) = hold.write(journal) {
            monitor.emit(Event::Warned { message: told(&error) });
        }
    }
    let mut raise = Raise { journal, patience, monitor, started: BTreeSet::new() };
    let problems = raise.until_answered(api.cloned()).await?;
    let started = std::mem::take(&mut raise.started).into_iter().collect();
    if !problems.is_empty() {
        return Err(ServicesError::NotUp { problems, journal: hold.path() });
    }
    hold.remove()?;
    Ok(Up { started, downtime: None })
}

/// A container that is to be up, and how it was.
struct Target<'a> {
    seen: Seen,
    /// `None` where it was made anew since.
    was: Option<&'a Kept>,
}

/// What the engine has of a service that ran.
struct Found<'a> {
    service: &'a Service,
    targets: Vec<Target<'a>>,
    /// Names of containers that are gone, with nothing in their place.
    gone: Vec<&'a str>,
}

/// What came of one go.
#[derive(Default)]
struct Went {
    problems: Vec<Problem>,
    started: BTreeSet<String>,
    /// Containers went away while they were looked at.
    anew: bool,
}

struct Raise<'a> {
    journal: &'a Journal,
    patience: Patience,
    monitor: &'a Arc<dyn Monitor>,
    started: BTreeSet<String>,
}

/// Whether what went wrong may pass by itself: the engine is away, or is just starting or ending.
fn passes(error: &EngineError) -> bool {
    error.is_away() || matches!(error, EngineError::Refused { source: Error::DockerResponseServerError { status_code: 500.., .. }, .. })
}

impl Raise<'_> {
    /// Tries until the engine answers everything that has to be asked. Returns what is not well in the end.
    async fn until_answered(&mut self, mut api: Option<Api>) -> Result<Vec<Problem>, ServicesError> {
        let (mut pause, mut told_of_it, mut anew) = (AWAY_FIRST, false, 0);
        let mut last_answer = Instant::now();
        loop {
            let attempt = match &api {
                Some(api) => self.attempt(api).await,
                None => match Engine::connect(&self.journal.engine).await {
                    Ok(engine) => {
                        api = Some(Api::new(engine, self.patience));
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            last_answer = api.as_ref().map_or(last_answer, |api| api.last_answer().max(last_answer));
            match attempt {
                Ok(went) => {
                    self.started.extend(went.started);
                    anew += 1;
                    if !went.anew || anew >= ANEW_MAX {
                        return Ok(went.problems);
                    }
                }
                Err(error) if passes(&error) && last_answer.elapsed() < self.patience.engine => {
                    if !told_of_it {
                        told_of_it = true;
                        self.monitor.emit(Event::Waiting { what: format!("services are to be started: {}", told(&error)) });
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(AWAY_MAX);
                }
                Err(source) => return Err(ServicesError::Down { project: self.journal.project.clone(), source }),
            }
        }
    }

    /// One go: everything is started and waited for. An error is the engine's; what is wrong with a service is a [`Problem`].
    async fn attempt(&self, api: &Api) -> Result<Went, EngineError> {
        let mut went = Went::default();
        let found = self.find(api).await?;
        for step in layers(&self.journal.services) {
            let raised = join_all(step.into_iter().filter_map(|service| found.get(service.name.as_str())).map(|one| self.raise(api, one, &found))).await;
            for raised in raised {
                let raised = raised?;
                went.problems.extend(raised.problems);
                went.started.extend(raised.started);
                went.anew |= raised.anew;
            }
        }
        let checks = found.values().flat_map(|one| one.targets.iter().map(|target| self.check(api, one.service, target)));
        for checked in join_all(checks).await {
            match checked? {
                Checked::Well => {}
                Checked::Gone => went.anew = true,
                Checked::Problem(problem) => {
                    // What could not be started is not well either; once is enough.
                    if !went.problems.iter().any(|known| known.service == problem.service) {
                        went.problems.push(problem);
                    }
                }
            }
        }
        self.tell_of_paused(api).await?;
        Ok(went)
    }

    /// What there is now of all that ran: the same containers, else those that were made in their place.
    async fn find(&self, api: &Api) -> Result<BTreeMap<&str, Found<'_>>, EngineError> {
        let now = api.containers(&self.journal.project).await?;
        let mut found = BTreeMap::new();
        for service in &self.journal.services {
            let mut one = Found { service, targets: Vec::new(), gone: Vec::new() };
            let mut known = BTreeSet::new();
            let mut lost = Vec::new();
            for kept in service.taken() {
                match api.look(&kept.id).await? {
                    Some(seen) => {
                        known.insert(seen.container.id.clone());
                        one.targets.push(Target { seen, was: Some(kept) });
                    }
                    None => lost.push(kept),
                }
            }
            known.extend(service.containers.iter().map(|kept| kept.id.clone()));
            let mut new: Vec<&Container> = now.iter().filter(|container| container.service == service.name && !known.contains(&container.id)).collect();
            for kept in lost {
                // Of the same number, else any that is new, else whatever has its name: tools that know no Compose make containers anew, too.
                let position = new.iter().position(|container| container.number == kept.number).or_else(|| (!new.is_empty()).then_some(0));
                let id = position.map_or(kept.name.as_str(), |position| new.remove(position).id.as_str());
                match api.look(id).await? {
                    Some(seen) if known.insert(seen.container.id.clone()) => one.targets.push(Target { seen, was: None }),
                    _ => one.gone.push(&kept.name),
                }
            }
            if !one.targets.is_empty() || !one.gone.is_empty() {
                found.insert(service.name.as_str(), one);
            }
        }
        Ok(found)
    }

    /// Waits for what the service waits for, then starts what of it is not up.
    async fn raise(&self, api: &Api, one: &Found<'_>, found: &BTreeMap<&str, Found<'_>>) -> Result<Went, EngineError> {
        let mut went = Went::default();
        let service = one.service;
        let gone = one.gone.iter().map(|name| Problem {
            service: service.name.clone(),
            what: format!("has no container any more (`{name}` is gone)"),
            hint: format!("`docker compose up -d {}` makes it anew", service.name),
        });
        went.problems.extend(gone);
        for dependency in &service.depends_on {
            if let Some(before) = found.get(dependency.service.as_str())
                && dependency.service != service.name
                && let Some(problem) = self.wait_for(api, before, dependency.condition).await?
            {
                // It ran before, so it is started all the same: it may do better than nothing.
                went.problems.push(problem);
            }
        }
        for target in &one.targets {
            // Looked at again: waiting may have taken a while.
            let Some(seen) = api.look(&target.seen.container.id).await? else {
                went.anew = true;
                continue;
            };
            match self.start(api, service, &seen.container, target.was).await? {
                Started::Was => {}
                Started::Now => {
                    went.started.insert(service.name.clone());
                }
                Started::Gone => went.anew = true,
                Started::Not(problem) => went.problems.push(problem),
            }
        }
        if !went.started.is_empty() {
            self.monitor.emit(Event::ServiceStarted { service: service.name.clone() });
        }
        Ok(went)
    }

    async fn start(&self, api: &Api, service: &Service, container: &Container, was: Option<&Kept>) -> Result<Started, EngineError> {
        match container.state {
            State::Running | State::Restarting => {
                let Some(was) = was.filter(|was| service.asked && was.started_at == container.started_at) else { return Ok(Started::Was) };
                // It was asked to stop and has not stopped yet. To start it now would do nothing, and then it would stop: its end is waited for first.
                if let Err(error) = stop_kept(api, was).await
                    && (error.is_away() || is_forbidden(&error))
                {
                    return Err(error);
                }
            }
            State::Paused => return Ok(Started::Was),
            State::Created | State::Exited | State::Dead => {}
        }
        let mut waits = START_AGAIN.into_iter();
        loop {
            let Err(error) = api.start(&container.id, &container.name).await else { return Ok(Started::Now) };
            if error.is_away() || is_forbidden(&error) {
                return Err(error);
            }
            match api.look(&container.id).await? {
                None => return Ok(Started::Gone),
                Some(seen) if seen.container.state.is_up() => return Ok(Started::Now),
                Some(_) => {}
            }
            let Some(wait) = waits.next() else {
                return Ok(Started::Not(Problem {
                    service: service.name.clone(),
                    what: format!("cannot be started: {}", told(&error)),
                    hint: format!("`docker start {}` should start it", container.name),
                }));
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Waits until `before` is as `condition` says; not longer than that can take. What goes on too long is found by [`Raise::check`], too, but for a
    /// service that was to come to its end.
    async fn wait_for(&self, api: &Api, before: &Found<'_>, condition: Condition) -> Result<Option<Problem>, EngineError> {
        for target in &before.targets {
            match condition {
                Condition::Completed => {
                    if let Some(problem) = self.wait_for_end(api, before.service, target).await? {
                        return Ok(Some(problem));
                    }
                }
                Condition::Healthy => drop(self.check(api, before.service, target).await?),
                Condition::Started if before.service.is_database => self.wait_for_database(api, target).await?,
                Condition::Started => {}
            }
        }
        Ok(None)
    }

    async fn wait_for_end(&self, api: &Api, service: &Service, target: &Target<'_>) -> Result<Option<Problem>, EngineError> {
        let began = Instant::now();
        loop {
            let Some(seen) = api.look(&target.seen.container.id).await? else { return Ok(None) };
            let problem = |what: String| Problem { service: service.name.clone(), what, hint: format!("see `docker logs {}`", seen.container.name) };
            match (seen.container.state, seen.container.exit_code) {
                (State::Exited, Some(0)) => return Ok(None),
                (State::Exited, Some(code)) => return Ok(Some(problem(format!("was to do its work and end, and ended with code {code}")))),
                _ if began.elapsed() > self.patience.engine => return Ok(Some(problem("was to do its work and end, and does not end".to_owned()))),
                _ => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Waits until PostgreSQL answers: as its healthcheck says, else `pg_isready`, else who connects. A healthcheck alone would take minutes where it
    /// asks every five of them, as Immich's own Compose file had it.
    async fn wait_for_database(&self, api: &Api, target: &Target<'_>) -> Result<(), EngineError> {
        let id = &target.seen.container.id;
        let (began, mut down_since) = (Instant::now(), None);
        while began.elapsed() < DATABASE_WAIT {
            let Some(seen) = api.look(id).await? else { return Ok(()) };
            let container = &seen.container;
            if container.state == State::Running {
                down_since = None;
                if container.health == Some(Health::Healthy) {
                    return Ok(());
                }
                match api.run(id, &["pg_isready", "-q"]).await? {
                    Some(0) => return Ok(()),
                    Some(_) => {}
                    None if connects(container).await => return Ok(()),
                    None => {}
                }
            } else if down_since.get_or_insert_with(Instant::now).elapsed() > ENDED {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Looks at a container until it is well, or is not going to be.
    async fn check(&self, api: &Api, service: &Service, target: &Target<'_>) -> Result<Checked, EngineError> {
        let (began, mut since, mut down_since) = (Instant::now(), None, None);
        loop {
            let Some(seen) = api.look(&target.seen.container.id).await? else { return Ok(Checked::Gone) };
            let Seen { container, health_wait } = seen;
            let wait = health_wait.saturating_add(self.patience.health).max(STEADY * 2);
            let was = |state| target.was.is_some_and(|was| was.state == state);
            let was_unhealthy = target.was.is_some_and(|was| was.health == Some(Health::Unhealthy));
            let not_well = match container.state {
                State::Paused => return Ok(Checked::Well),
                State::Restarting if was(State::Restarting) => return Ok(Checked::Well),
                State::Running => {
                    down_since = None;
                    match container.health {
                        Some(Health::Healthy) => return Ok(Checked::Well),
                        Some(Health::Unhealthy) if was_unhealthy => return Ok(Checked::Well),
                        Some(Health::Unhealthy) => "runs, and its healthcheck says that it is not well".to_owned(),
                        Some(Health::Starting) => "runs, and its healthcheck does not say that it is well".to_owned(),
                        None => {
                            // The same start for a while: one that ends and is started anew all the time is not well.
                            let (seen_first, started_at) = *since.get_or_insert((Instant::now(), container.started_at));
                            if started_at != container.started_at {
                                since = None;
                            } else if seen_first.elapsed() >= STEADY {
                                return Ok(Checked::Well);
                            }
                            "does not run on".to_owned()
                        }
                    }
                }
                State::Restarting => {
                    since = None;
                    "ends and is started anew all the time".to_owned()
                }
                State::Created | State::Exited | State::Dead => {
                    since = None;
                    // One that was to come to its end, and did.
                    if container.exit_code == Some(0) && self.is_to_end(service) {
                        return Ok(Checked::Well);
                    }
                    let what = match container.exit_code {
                        Some(code) if container.state == State::Exited => format!("ended with code {code} after it was started"),
                        _ => "is not up".to_owned(),
                    };
                    if down_since.get_or_insert_with(Instant::now).elapsed() >= ENDED {
                        return Ok(Checked::Problem(problem(service, what, &container)));
                    }
                    what
                }
            };
            if began.elapsed() >= wait {
                return Ok(Checked::Problem(problem(service, not_well, &container)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Whether others wait for it to do its work and end.
    fn is_to_end(&self, service: &Service) -> bool {
        let mut dependencies = self.journal.services.iter().flat_map(|other| &other.depends_on);
        dependencies.any(|dependency| dependency.service == service.name && dependency.condition == Condition::Completed)
    }

    /// A frozen one is nobody's business, but that it is no longer frozen has to be said: an engine that died took it along.
    async fn tell_of_paused(&self, api: &Api) -> Result<(), EngineError> {
        for kept in self.journal.services.iter().flat_map(|service| &service.containers) {
            if kept.state == State::Paused && !kept.spared && api.look(&kept.id).await?.is_some_and(|seen| seen.container.state != State::Paused) {
                self.monitor.emit(Event::Warned { message: format!("`{}` was paused, and is not any more: it is left as it is", kept.name) });
            }
        }
        Ok(())
    }
}

enum Started {
    /// It was up.
    Was,
    /// It is now.
    Now,
    /// There is no such container any more.
    Gone,
    /// It could not be.
    Not(Problem),
}

enum Checked {
    Well,
    Gone,
    Problem(Problem),
}

fn problem(service: &Service, what: String, container: &Container) -> Problem {
    Problem { service: service.name.clone(), what, hint: format!("see `docker logs {}`", container.name) }
}

/// Whether something listens where PostgreSQL should. Where there is nowhere to connect to, that it runs has to do.
async fn connects(container: &Container) -> bool {
    let published = container.ports.iter().filter(|port| port.inside == POSTGRES_PORT);
    let mut places: Vec<(String, u16)> = published.map(|port| (port.address.clone().unwrap_or_else(|| "127.0.0.1".to_owned()), port.host)).collect();
    places.extend(container.addresses.iter().map(|address| (address.clone(), POSTGRES_PORT)));
    if container.network_mode == "host" {
        places.push(("127.0.0.1".to_owned(), POSTGRES_PORT));
    }
    if places.is_empty() {
        return true;
    }
    for (host, port) in places {
        if matches!(tokio::time::timeout(CONNECT_WAIT, tokio::net::TcpStream::connect((host.as_str(), port))).await, Ok(Ok(_))) {
            return true;
        }
    }
    false
}
