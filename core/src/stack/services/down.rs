//! Stopping: those that nothing waits for first, and each only once the disk says that it may be down.

use super::api::{Api, is_forbidden, runs};
use super::journal::{Journal, Kept, Phase, Service};
use super::{Outage, ServicesError};
use crate::event::Event;
use crate::stack::engine::EngineError;
use futures_util::future::join_all;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often stopping one container is asked for.
const STOPS: usize = 3;

/// The wait before it is asked for again.
const STOP_AGAIN: Duration = Duration::from_millis(500);

/// What a process gets that the engine killed, as its container's exit code.
const KILLED: i64 = 137;

impl Outage {
    /// Stops all services but the database.
    ///
    /// # Errors
    /// One does not stop, or the user asked to end. The caller has to call [`Outage::up_again`].
    pub async fn stop_all_but_database(&mut self, stop: &CancellationToken) -> Result<(), ServicesError> {
        if self.journal.is_none() {
            if stop.is_cancelled() {
                return Err(ServicesError::Interrupted);
            }
            // What counts is what runs now, not what ran when it was found out whether all of this can be done.
            let mut journal = Journal::new(&self.choice.project, self.api.engine().address(), self.by, self.look().await?);
            journal.run = self.run.clone();
            self.hold.write(&journal)?;
            self.first_stop = Some(Instant::now());
            self.tell_what_is_left(&journal);
            self.journal = Some(journal);
        }
        self.stop_some(false, stop).await?;
        self.enter(Phase::DatabaseAlone)
    }

    /// Stops the database too, and what else is up.
    ///
    /// # Errors
    /// As [`Outage::stop_all_but_database`].
    pub async fn stop_database(&mut self, stop: &CancellationToken) -> Result<(), ServicesError> {
        if self.journal.is_none() {
            self.stop_all_but_database(stop).await?;
        }
        self.enter(Phase::StoppingDatabase)?;
        self.stop_some(true, stop).await?;
        self.enter(Phase::AllStopped)
    }

    /// Services that are up though they were stopped, or were up in between: what is read of their files is not at rest.
    ///
    /// # Errors
    /// The engine's.
    pub async fn risen(&self) -> Result<Vec<String>, ServicesError> {
        let Some(journal) = &self.journal else { return Ok(Vec::new()) };
        let found = self.api.containers(&self.choice.project).await?;
        let mut risen = Vec::new();
        for service in journal.services.iter().filter(|service| service.asked) {
            let is_up = found.iter().filter(|container| container.service == service.name).any(|container| {
                match service.containers.iter().find(|kept| kept.id == container.id) {
                    Some(kept) if !kept.is_taken() => false,
                    // Down now, and started after it was stopped: somebody had it up for a while.
                    Some(kept) => container.state.is_up() || container.started_at != kept.started_at,
                    None => container.state.is_up(),
                }
            });
            if is_up {
                risen.push(service.name.clone());
            }
        }
        Ok(risen)
    }

    fn tell_what_is_left(&self, journal: &Journal) {
        for container in journal.services.iter().flat_map(|service| &service.containers) {
            if container.state == crate::stack::project::State::Paused && !container.spared {
                self.warn(format!("`{}` is paused: it is left as it is", container.name));
            }
        }
    }

    fn enter(&mut self, phase: Phase) -> Result<(), ServicesError> {
        if let Some(journal) = &mut self.journal {
            journal.phase = phase;
            self.hold.write(journal)?;
        }
        Ok(())
    }

    /// Stops what is not asked yet, step by step; the database only `with_database`.
    async fn stop_some(&mut self, with_database: bool, stop: &CancellationToken) -> Result<(), ServicesError> {
        loop {
            let Some(journal) = &mut self.journal else { return Ok(()) };
            let names = next_step(&journal.services, with_database);
            if names.is_empty() {
                break;
            }
            if stop.is_cancelled() {
                return Err(ServicesError::Interrupted);
            }
            for service in journal.services.iter_mut().filter(|service| names.contains(&service.name)) {
                service.asked = true;
            }
            // On disk first: a stop that was asked for may come at any time, also after this process.
            self.hold.write(journal)?;
            let services: Vec<_> = journal.services.iter().filter(|service| names.contains(&service.name)).cloned().collect();
            let work = join_all(services.iter().map(|service| self.stop_service(service)));
            let ended = tokio::select! {
                ended = work => ended,
                () = stop.cancelled() => return Err(ServicesError::Interrupted),
            };
            for ended in ended {
                ended?;
            }
        }
        // Made anew while the others were being stopped, or started by somebody at once: once more, by service.
        for name in self.risen().await? {
            self.stop_current(&name).await?;
        }
        Ok(())
    }

    async fn stop_service(&self, service: &Service) -> Result<(), ServicesError> {
        let began = Instant::now();
        let stopped = join_all(service.taken().map(|container| self.stop_container(&service.name, container))).await;
        let count = stopped.len();
        for stopped in stopped {
            stopped?;
        }
        if count > 0 {
            let elapsed_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
            self.monitor.emit(Event::ServiceStopped { service: service.name.clone(), elapsed_ms });
        }
        Ok(())
    }

    async fn stop_container(&self, service: &str, kept: &Kept) -> Result<(), ServicesError> {
        let mut said = None;
        for attempt in 0..STOPS {
            if attempt > 0 {
                tokio::time::sleep(STOP_AGAIN).await;
            }
            match stop_kept(&self.api, kept).await {
                Ok(()) => {}
                // Removed, or made anew: what runs of the service in its place is seen at the end.
                Err(error) if error.is_unknown() => return Ok(()),
                Err(error) if is_forbidden(&error) => return Err(ServicesError::Forbidden { source: error }),
                Err(error) => said = Some(error),
            }
            match self.api.look(&kept.id).await {
                Ok(None) => return Ok(()),
                Ok(Some(seen)) if !seen.container.state.is_up() => {
                    if seen.container.exit_code == Some(KILLED) && runs_well(kept) {
                        self.warn(format!("`{}` did not end in the time that it is given (stop_grace_period) and was killed", kept.name));
                    }
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Err(error) => said = Some(error),
            }
        }
        Err(ServicesError::RunsOn { service: service.to_owned(), container: kept.name.clone(), source: said.map(Box::new) })
    }

    /// Stops whatever runs of a service now.
    async fn stop_current(&self, service: &str) -> Result<(), ServicesError> {
        for container in self.api.containers(&self.choice.project).await? {
            if container.service != service || !runs(&container) || self.spared.contains(&container.id) {
                continue;
            }
            let stopped = self.api.stop(&container.id, &container.name, container.stop_timeout, false).await;
            let is_down = self.api.look(&container.id).await?.is_none_or(|seen| !seen.container.state.is_up());
            if !is_down {
                return Err(ServicesError::RunsOn { service: service.to_owned(), container: container.name, source: stopped.err().map(Box::new) });
            }
        }
        Ok(())
    }
}

/// A container that was killed in a crash loop is nothing to tell of.
fn runs_well(kept: &Kept) -> bool {
    kept.state == crate::stack::project::State::Running
}

/// Asks the engine to stop a container as it was found, with its own time.
pub(super) async fn stop_kept(api: &Api, kept: &Kept) -> Result<(), EngineError> {
    api.stop(&kept.id, &kept.name, kept.stop_timeout_s.map(Duration::from_secs), kept.tell_timeout).await
}

/// Services not asked yet that nothing waits for which is not asked yet; in a circle, all that is left.
fn next_step(services: &[Service], with_database: bool) -> Vec<String> {
    let left: Vec<_> = services.iter().filter(|service| !service.asked && (with_database || !service.is_database)).collect();
    let is_waited_for = |service: &Service| {
        let waits = |other: &&Service| other.name != service.name && other.depends_on.iter().any(|before| before.service == service.name);
        left.iter().any(waits)
    };
    let free: Vec<_> = left.iter().filter(|service| !is_waited_for(service)).map(|service| service.name.clone()).collect();
    if free.is_empty() { left.iter().map(|service| service.name.clone()).collect() } else { free }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::project::{Condition, Dependency};

    fn service(name: &str, depends_on: &[&str]) -> Service {
        let on = |name: &&str| Dependency { service: (*name).to_owned(), condition: Condition::Started };
        let is_database = name == "database";
        Service { name: name.to_owned(), is_database, depends_on: depends_on.iter().map(on).collect(), asked: false, containers: Vec::new() }
    }

    #[test]
    fn those_that_nothing_waits_for_go_first_and_the_database_last_or_not_at_all() {
        let mut all = [
            service("redis", &[]),
            service("database", &[]),
            service("learning", &[]),
            service("server", &["redis", "database"]),
            service("proxy", &["server"]),
        ];
        let mut steps = |with_database| {
            let mut steps = Vec::new();
            loop {
                let step = next_step(&all, with_database);
                if step.is_empty() {
                    return steps;
                }
                all.iter_mut().filter(|service| step.contains(&service.name)).for_each(|service| service.asked = true);
                steps.push(step.join(" "));
            }
        };
        assert_eq!(steps(false), ["learning proxy", "server", "redis"]);
        assert_eq!(steps(true), ["database"]);
        assert_eq!(next_step(&[service("a", &["b"]), service("b", &["a"])], false), ["a", "b"]);
    }
}
