//! The requests that stopping and starting need, each with an end to its patience.

use super::super::engine::{Engine, EngineError, refused};
use super::super::project::{self, Container, State};
use super::{LOOKS, Patience};
use bollard::Docker;
use bollard::errors::Error;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::models::HealthConfig;
use bollard::query_parameters::{ListContainersOptions, StopContainerOptions};
use futures_util::{StreamExt as _, TryStreamExt as _};
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the engine lets a container stop where nobody says: Docker's default.
const STOP_DEFAULT: Duration = Duration::from_secs(10);

/// Docker's defaults for a healthcheck (`HEALTHCHECK` in the reference of Dockerfiles).
const CHECK_INTERVAL: Duration = Duration::from_secs(30);
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);
const CHECK_RETRIES: u32 = 3;

/// The longest that is waited for any healthcheck.
const CHECK_MAX: Duration = Duration::from_secs(30 * 60);

/// A container, and how long its healthcheck may take until it says something.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) container: Container,
    pub(super) health_wait: Duration,
}

/// The engine, asked with patience that ends.
#[derive(Debug, Clone)]
pub(super) struct Api {
    engine: Engine,
    answer_wait: Duration,
    last_answer: Arc<Mutex<Instant>>,
}

fn nanoseconds(value: Option<i64>, default: Duration) -> Duration {
    value.and_then(|nanoseconds| u64::try_from(nanoseconds).ok()).filter(|nanoseconds| *nanoseconds > 0).map_or(default, Duration::from_nanos)
}

/// The time after which a healthcheck has said what there is to say.
fn health_wait(check: Option<&HealthConfig>) -> Duration {
    let Some(check) = check else { return Duration::ZERO };
    let retries = check.retries.and_then(|retries| u32::try_from(retries).ok()).filter(|retries| *retries > 0).unwrap_or(CHECK_RETRIES);
    let once = nanoseconds(check.interval, CHECK_INTERVAL).saturating_add(nanoseconds(check.timeout, CHECK_TIMEOUT));
    let all = nanoseconds(check.start_period, Duration::ZERO).saturating_add(once.saturating_mul(retries));
    all.min(CHECK_MAX)
}

/// Whether the engine, or what stands before it, does not permit it.
pub(super) fn is_forbidden(error: &EngineError) -> bool {
    matches!(error, EngineError::Refused { source: Error::DockerResponseServerError { status_code: 401 | 403 | 405, .. }, .. })
}

impl Api {
    pub(super) fn new(engine: Engine, patience: Patience) -> Self {
        Self { engine, answer_wait: patience.answer, last_answer: Arc::new(Mutex::new(Instant::now())) }
    }

    /// When the engine did what it was asked last; at first, when this was made.
    pub(super) fn last_answer(&self) -> Instant {
        *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The client, with so much patience for one request.
    fn docker(&self, wait: Duration) -> Docker {
        // Its own limit is in whole seconds; ours is inside of it.
        self.engine.docker().clone().with_timeout(wait.saturating_add(Duration::from_secs(1)))
    }

    async fn asked<T>(&self, action: String, wait: Duration, request: impl Future<Output = Result<T, Error>>) -> Result<T, EngineError> {
        match tokio::time::timeout(wait, request).await {
            Ok(Ok(answer)) => {
                *self.last_answer.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(answer)
            }
            Ok(Err(error)) => Err(refused(action)(error)),
            Err(_) => Err(refused(action)(Error::RequestTimeoutError)),
        }
    }

    /// The container of this id or name; `None` where there is none.
    pub(super) async fn look(&self, id: &str) -> Result<Option<Seen>, EngineError> {
        let docker = self.docker(self.answer_wait);
        let found = self.asked(format!("look at the container `{id}`"), self.answer_wait, docker.inspect_container(id, None)).await;
        match found {
            Ok(found) => {
                let health_wait = health_wait(found.config.as_ref().and_then(|config| config.healthcheck.as_ref()));
                Ok(Some(Seen { container: Container::from(found), health_wait }))
            }
            Err(error) if error.is_unknown() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ids of the containers of a project, running or not.
    async fn ids(&self, project: &str) -> Result<Vec<String>, EngineError> {
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={project}", project::PROJECT)])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let docker = self.docker(self.answer_wait);
        let listed = self.asked(format!("list the containers of `{project}`"), self.answer_wait, docker.list_containers(Some(options))).await?;
        Ok(listed.into_iter().filter_map(|summary| summary.id).collect())
    }

    /// The containers of a project, running or not, but for those of `docker compose run`.
    pub(super) async fn containers(&self, project: &str) -> Result<Vec<Container>, EngineError> {
        let ids = self.ids(project).await?;
        let looks = ids.into_iter().map(|id| async move { self.look(&id).await });
        let seen: Vec<_> = futures_util::stream::iter(looks).buffered(LOOKS).try_collect().await?;
        Ok(seen.into_iter().flatten().map(|seen| seen.container).filter(|container| !container.is_one_off).collect())
    }

    /// Stops a container and returns when it is down. `timeout` is what it may take before it is killed; `told` whether the engine does not know that.
    pub(super) async fn stop(&self, id: &str, name: &str, timeout: Option<Duration>, told: bool) -> Result<(), EngineError> {
        let wait = timeout.unwrap_or(STOP_DEFAULT).saturating_add(self.answer_wait);
        let t = timeout.filter(|_| told).and_then(|timeout| i32::try_from(timeout.as_secs()).ok());
        let options = StopContainerOptions { t, ..StopContainerOptions::default() };
        self.asked(format!("stop the container `{name}`"), wait, self.docker(wait).stop_container(id, Some(options))).await
    }

    /// Starts a container; one that runs is left as it is.
    pub(super) async fn start(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let docker = self.docker(self.answer_wait);
        self.asked(format!("start the container `{name}`"), self.answer_wait, docker.start_container(id, None)).await
    }

    /// Whether this engine lets us stop and start: asked of a container that cannot be there.
    pub(super) async fn rights(&self) -> Result<(), EngineError> {
        // A name of 64 hexadecimal digits is an id, and no container has this one.
        let nothing = "0".repeat(64);
        for (stops, action) in [(true, "stop containers"), (false, "start containers")] {
            let docker = self.docker(self.answer_wait);
            let answer = match stops {
                true => self.asked(action.to_owned(), self.answer_wait, docker.stop_container(&nothing, None)).await,
                false => self.asked(action.to_owned(), self.answer_wait, docker.start_container(&nothing, None)).await,
            };
            match answer {
                Err(error) if !error.is_unknown() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// How a program in a container ended; `None` where it cannot be run there.
    pub(super) async fn run(&self, id: &str, command: &[&str]) -> Result<Option<i64>, EngineError> {
        let action = || format!("run `{}` in the container `{id}`", command.join(" "));
        let docker = self.docker(self.answer_wait);
        let work = async {
            let options = CreateExecOptions {
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
                ..CreateExecOptions::default()
            };
            let exec = docker.create_exec(id, options).await?.id;
            if let StartExecResults::Attached { mut output, .. } = docker.start_exec(&exec, None::<StartExecOptions>).await? {
                // What it says does not matter; that it has ended does.
                while let Some(piece) = output.next().await {
                    piece?;
                }
            }
            Ok(docker.inspect_exec(&exec).await?.exit_code)
        };
        match self.asked(action(), self.answer_wait, work).await {
            // 126 and 127: it is not there, or cannot be run.
            Ok(code) => Ok(code.filter(|code| !matches!(code, 126 | 127))),
            Err(EngineError::Refused { source: Error::DockerResponseServerError { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether it is up, and its process is not one that was just started anew for having ended.
pub(super) fn runs(container: &Container) -> bool {
    container.state == State::Running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthcheck_is_waited_for_as_long_as_its_own_times_say_and_no_longer_than_half_an_hour() {
        let second = 1_000_000_000;
        let check = |interval, timeout, retries, start_period| HealthConfig { interval, timeout, retries, start_period, ..HealthConfig::default() };
        assert_eq!(health_wait(Some(&check(Some(second), Some(2 * second), Some(5), Some(10 * second)))).as_secs(), 10 + 5 * 3);
        assert_eq!(health_wait(Some(&check(None, Some(0), None, None))).as_secs(), 3 * 60);
        assert_eq!(health_wait(Some(&check(Some(i64::MAX), None, Some(i64::MAX), Some(-1)))), CHECK_MAX);
        assert_eq!(health_wait(None), Duration::ZERO);
    }
}
