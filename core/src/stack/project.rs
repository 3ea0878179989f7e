//! A Compose project as the engine describes it: its services in their order, and each of their containers.
//!
//! Facts about the labels: Compose's source, `pkg/api/labels.go` (2.x) and `compose/const.py` (1.29). Compose 1.29 writes no `depends_on`;
//! [`Project::depend`] adds what its file says.

use super::engine::{Engine, EngineError, refused};
use bollard::models::{ContainerInspectResponse, ContainerStateStatusEnum, HealthStatusEnum};
use bollard::query_parameters::ListContainersOptions;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const PROJECT: &str = "com.docker.compose.project";
pub(super) const SERVICE: &str = "com.docker.compose.service";
const NUMBER: &str = "com.docker.compose.container-number";
const ONE_OFF: &str = "com.docker.compose.oneoff";
const DEPENDS_ON: &str = "com.docker.compose.depends_on";
pub(super) const WORKING_DIR: &str = "com.docker.compose.project.working_dir";
pub(super) const CONFIG_FILES: &str = "com.docker.compose.project.config_files";
const ENVIRONMENT_FILE: &str = "com.docker.compose.project.environment_file";

/// Containers that are looked at at once.
const LOOKS: usize = 8;

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its process runs.
    Running,
    /// It runs and is frozen.
    Paused,
    /// Its process ended and is being started again.
    Restarting,
    /// It was made and never started.
    Created,
    /// Its process ended.
    Exited,
    /// It is being removed, or could not be.
    Dead,
}

impl State {
    /// Whether it is up, as users see it.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// What a container's healthcheck says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Not yet known.
    Starting,
    /// It is well.
    Healthy,
    /// It is not.
    Unhealthy,
}

/// What a service waits for before it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The other one was started.
    Started,
    /// The other one's healthcheck says that it is well.
    Healthy,
    /// The other one has done its work and ended well.
    Completed,
}

/// One line of a service's `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// The service that comes before.
    pub service: String,
    /// What of it is waited for.
    pub condition: Condition,
}

/// Where files of a container come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// On the host: a folder or file, or the folder of a volume.
    pub host: PathBuf,
    /// In the container.
    pub inside: PathBuf,
    /// The volume's name, where it is one.
    pub volume: Option<String>,
    /// Whether the container may write there.
    pub is_writable: bool,
}

/// The environment of a container. Its values hold secrets and are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The value of `name`, unless it is empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

impl Environment {
    /// All names and values. They are not to be shown.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A port that the host passes on to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// In the container.
    pub inside: u16,
    /// On the host.
    pub host: u16,
    /// The host's address that it is bound to; `None` for all.
    pub address: Option<String>,
}

/// One container.
#[derive(Debug, Clone)]
pub struct Container {
    /// The engine's name for it, for ever.
    pub id: String,
    /// People's.
    pub name: String,
    /// The project it belongs to.
    pub project: Option<String>,
    /// Its service; the container's name where it belongs to no project.
    pub service: String,
    /// Which of its service, from 1.
    pub number: u32,
    /// The image, as whoever made the container called it.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// What it is doing.
    pub state: State,
    /// What its healthcheck says; `None` where it has none.
    pub health: Option<Health>,
    /// Whether a healthcheck is configured; one of a container that does not run says nothing.
    pub has_healthcheck: bool,
    /// When its process was started last.
    pub started_at: Option<Timestamp>,
    /// How its process ended last.
    pub exit_code: Option<i64>,
    /// How long it may take to stop, where that was said.
    pub stop_timeout: Option<Duration>,
    /// Its environment.
    pub environment: Environment,
    /// Its labels, with those of its image.
    pub labels: BTreeMap<String, String>,
    /// Folders and files of the host in it.
    pub mounts: Vec<Mount>,
    /// Names by which other containers of its networks reach it.
    pub aliases: BTreeSet<String>,
    /// Its addresses in its networks.
    pub addresses: BTreeSet<String>,
    /// Names of its networks.
    pub networks: BTreeSet<String>,
    /// Ports that the host passes on.
    pub ports: Vec<Port>,
    /// `host`, `bridge`, the name of a network, `container:ID`.
    pub network_mode: String,
    /// When the engine starts it by itself: `always`, `unless-stopped`, `on-failure`, `no`.
    pub restart_policy: String,
    /// Whether this program runs in it; see [`super::own`].
    pub is_self: bool,
    /// Whether the engine is asked through it: a socket proxy.
    pub serves_engine: bool,
    pub(super) depends_on: Vec<Dependency>,
    pub(super) is_one_off: bool,
}

impl Container {
    /// Whether it must not be stopped: this program runs in it, or speaks to the engine through it.
    #[must_use]
    pub fn is_needed_here(&self) -> bool {
        self.is_self || self.serves_engine
    }
}

/// Containers of one service.
#[derive(Debug, Clone)]
pub struct Service {
    /// Its name in the Compose file.
    pub name: String,
    /// What comes before it.
    pub depends_on: Vec<Dependency>,
    /// Its containers, in their order.
    pub containers: Vec<Container>,
}

/// A Compose project that has containers.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its name.
    pub name: String,
    /// The folder of its Compose file, on the machine where `docker compose` ran.
    pub working_dir: Option<PathBuf>,
    /// Its Compose files, absolute where the folder is known.
    pub config_files: Vec<PathBuf>,
    /// Files given by `--env-file`; without, Compose reads `.env` in the folder.
    pub environment_files: Vec<PathBuf>,
    /// Its services: each comes after those that it depends on.
    pub services: Vec<Service>,
}

/// All containers that the engine has, running or not, but for those of `docker compose run`.
///
/// # Errors
/// The engine's. A container that went away meanwhile is left out.
pub async fn containers(engine: &Engine) -> Result<Vec<Container>, EngineError> {
    let options = ListContainersOptions { all: true, ..ListContainersOptions::default() };
    let listed = engine.docker().list_containers(Some(options)).await.map_err(refused("list its containers"))?;
    let looks = listed.into_iter().filter_map(|summary| summary.id).map(|id| async move {
        match container(engine, &id).await {
            Ok(container) => Ok(Some(container)),
            Err(error) if error.is_unknown() => Ok(None),
            Err(error) => Err(error),
        }
    });
    let found: Vec<_> = futures_util::stream::iter(looks).buffered(LOOKS).try_collect().await?;
    Ok(found.into_iter().flatten().filter(|container| !container.is_one_off).collect())
}

/// The container of this id or name.
///
/// # Errors
/// The engine's; that there is none, too ([`EngineError::is_unknown`]).
pub async fn container(engine: &Engine, name: &str) -> Result<Container, EngineError> {
    let found = engine.docker().inspect_container(name, None).await.map_err(refused(format!("look at the container `{name}`")))?;
    Ok(Container::from(found))
}

/// The digests by which registries know the images of these containers, by the image's id. An image that is gone has none.
///
/// # Errors
/// The engine went away.
pub async fn image_digests(engine: &Engine, containers: &[Container]) -> Result<BTreeMap<String, Vec<String>>, EngineError> {
    let ids: BTreeSet<_> = containers.iter().map(|container| container.image_id.clone()).filter(|id| !id.is_empty()).collect();
    let mut digests = BTreeMap::new();
    for id in ids {
        match engine.docker().inspect_image(&id).await.map_err(refused(format!("look at the image `{id}`"))) {
            Ok(found) => drop(digests.insert(id, found.repo_digests.unwrap_or_default())),
            Err(error) if error.is_away() => return Err(error),
            // One that was removed, or that a socket proxy does not tell of.
            Err(_) => {}
        }
    }
    Ok(digests)
}

/// The projects that `containers` belong to, by name. Those that belong to none are left out.
#[must_use]
pub fn projects(containers: &[Container]) -> Vec<Project> {
    let mut by_name: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
    for container in containers {
        if let Some(name) = &container.project {
            by_name.entry(name).or_default().push(container);
        }
    }
    by_name.into_iter().map(|(name, containers)| Project::of(name, &containers)).collect()
}

impl Project {
    fn of(name: &str, containers: &[&Container]) -> Self {
        let label = |name: &str| containers.iter().find_map(|container| container.labels.get(name)).filter(|value| !value.is_empty());
        let working_dir = label(WORKING_DIR).map(PathBuf::from);
        let files = |text: Option<&String>| {
            let files = text.into_iter().flat_map(|text| text.split(',')).filter(|file| !file.is_empty()).map(Path::new);
            files.map(|file| working_dir.as_ref().map_or_else(|| file.to_owned(), |folder| folder.join(file))).collect()
        };
        let (config_files, environment_files) = (files(label(CONFIG_FILES)), files(label(ENVIRONMENT_FILE)));
        let mut services: BTreeMap<&str, Service> = BTreeMap::new();
        for container in containers {
            let empty = || Service { name: container.service.clone(), depends_on: container.depends_on.clone(), containers: Vec::new() };
            services.entry(&container.service).or_insert_with(empty).containers.push((*container).clone());
        }
        let mut services: Vec<_> = services.into_values().collect();
        for service in &mut services {
            service.containers.sort_by_key(|container| container.number);
        }
        let mut project = Self { name: name.to_owned(), working_dir, config_files, environment_files, services };
        project.order();
        project
    }

    /// Adds what the Compose file says of dependencies, for services whose containers do not say it.
    pub fn depend(&mut self, known: &BTreeMap<String, Vec<Dependency>>) {
        for service in self.services.iter_mut().filter(|service| service.depends_on.is_empty()) {
            service.depends_on = known.get(&service.name).cloned().unwrap_or_default();
        }
        self.order();
    }

    /// The service called so.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// All containers, service by service in their order.
    pub fn containers(&self) -> impl Iterator<Item = &Container> {
        self.services.iter().flat_map(|service| &service.containers)
    }

    /// Each service after those that it depends on; in a circle, and where nothing is said, by name.
    fn order(&mut self) {
        let mut left = std::mem::take(&mut self.services);
        left.sort_by(|one, other| one.name.cmp(&other.name));
        while !left.is_empty() {
            let waits = |service: &Service| {
                service.depends_on.iter().any(|before| before.service != service.name && left.iter().any(|other| other.name == before.service))
            };
            let next = left.iter().position(|service| !waits(service)).unwrap_or(0);
            self.services.push(left.remove(next));
        }
    }
}

/// `database:service_healthy:false,redis:service_started:false`, as Compose 2 writes it; versions before 2.3 wrote the names alone.
fn dependencies(label: &str) -> Vec<Dependency> {
    let one = |text: &str| {
        let mut parts = text.split(':');
        let service = parts.next().filter(|name| !name.is_empty())?.to_owned();
        let condition = match parts.next() {
            Some("service_healthy") => Condition::Healthy,
            Some("service_completed_successfully") => Condition::Completed,
            _ => Condition::Started,
        };
        Some(Dependency { service, condition })
    };
    label.split(',').filter_map(one).collect()
}

impl From<ContainerInspectResponse> for Container {
    fn from(found: ContainerInspectResponse) -> Self {
        let id = found.id.unwrap_or_default();
        let name = found.name.unwrap_or_default().trim_start_matches('/').to_owned();
        let config = found.config.unwrap_or_default();
        let labels: BTreeMap<_, _> = config.labels.unwrap_or_default().into_iter().collect();
        let environment =
            config.env.unwrap_or_default().into_iter().filter_map(|entry| entry.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        let (state, host_config) = (found.state.unwrap_or_default(), found.host_config.unwrap_or_default());
        let health = state.health.and_then(|health| match health.status {
            Some(HealthStatusEnum::STARTING) => Some(Health::Starting),
            Some(HealthStatusEnum::HEALTHY) => Some(Health::Healthy),
            Some(HealthStatusEnum::UNHEALTHY) => Some(Health::Unhealthy),
            _ => None,
        });
        let has_healthcheck =
            config.healthcheck.and_then(|check| check.test).is_some_and(|test| !test.is_empty() && test.first().is_none_or(|first| first != "NONE"));
        let mount = |mount: bollard::models::MountPoint| {
            // What lies in memory, or is made by the engine, is nowhere on the host.
            let is_there = matches!(mount.typ.as_deref(), Some("bind" | "volume"));
            let (host, inside) = (mount.source.filter(|_| is_there)?, mount.destination?);
            let volume = mount.name.filter(|_| mount.typ.as_deref() == Some("volume"));
            Some(Mount { host: PathBuf::from(host), inside: PathBuf::from(inside), volume, is_writable: mount.rw.unwrap_or(true) })
        };
        let (mut aliases, mut addresses, mut networks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let network_settings = found.network_settings.unwrap_or_default();
        for (name, endpoint) in network_settings.networks.unwrap_or_default() {
            networks.insert(name);
            aliases.extend(endpoint.aliases.into_iter().chain(endpoint.dns_names).flatten());
            addresses.extend([endpoint.ip_address, endpoint.global_ipv6_address].into_iter().flatten().filter(|address| !address.is_empty()));
        }
        let mut ports = Vec::new();
        for (inside, bindings) in network_settings.ports.unwrap_or_default() {
            let inside = inside.split_once('/').filter(|(_, protocol)| *protocol == "tcp").and_then(|(port, _)| port.parse().ok());
            for binding in bindings.into_iter().flatten() {
                let host = binding.host_port.and_then(|port| port.parse().ok());
                let address = binding.host_ip.filter(|address| !matches!(address.as_str(), "" | "0.0.0.0" | "::"));
                if let (Some(inside), Some(host)) = (inside, host) {
                    let port = Port { inside, host, address };
                    // The same port is bound once for each generation of addresses.
                    if !ports.contains(&port) {
                        ports.push(port);
                    }
                }
            }
        }
        let label = |name: &str| labels.get(name).filter(|value| !value.is_empty());
        let project = label(PROJECT).cloned();
        Self {
            service: label(SERVICE).filter(|_| project.is_some()).unwrap_or(&name).clone(),
            number: label(NUMBER).and_then(|number| number.parse().ok()).unwrap_or(1),
            is_one_off: label(ONE_OFF).is_some_and(|value| value.eq_ignore_ascii_case("true")),
            depends_on: label(DEPENDS_ON).map(|text| dependencies(text)).unwrap_or_default(),
            project,
            id,
            name,
            image: config.image.unwrap_or_default(),
            image_id: found.image.unwrap_or_default(),
            state: match state.status {
                Some(ContainerStateStatusEnum::RUNNING) => State::Running,
                Some(ContainerStateStatusEnum::PAUSED) => State::Paused,
                Some(ContainerStateStatusEnum::RESTARTING) => State::Restarting,
                Some(ContainerStateStatusEnum::CREATED) => State::Created,
                Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::DEAD) => State::Dead,
                _ => State::Exited,
            },
            health,
            has_healthcheck,
            // Docker's zero time is of the year 1.
            started_at: state.started_at.and_then(|at| at.parse::<Timestamp>().ok()).filter(|at| *at > Timestamp::UNIX_EPOCH),
            exit_code: state.exit_code,
            stop_timeout: config.stop_timeout.and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs),
            environment: Environment(environment.collect()),
            labels,
            mounts: found.mounts.into_iter().flatten().filter_map(mount).collect(),
            aliases,
            addresses,
            networks,
            ports,
            restart_policy: host_config.restart_policy.and_then(|policy| policy.name).map(|name| name.to_string()).unwrap_or_default(),
            network_mode: host_config.network_mode.unwrap_or_default(),
            is_self: false,
            serves_engine: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(name: &str, more: Value) -> Container {
        let mut found = json!({ "Id": format!("id of {name}"), "Name": format!("/{name}"), "Image": "sha256:0", "State": { "Status": "running" }, "Config": {}, "HostConfig": {} });
        merge(&mut found, more);
        serde_json::from_value::<ContainerInspectResponse>(found).unwrap().into()
    }

    fn merge(into: &mut Value, from: Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => from.into_iter().for_each(|(name, value)| merge(into.entry(name).or_insert(Value::Null), value)),
            (into, from) => *into = from,
        }
    }

    fn of_service(project: &str, service: &str, depends_on: &str) -> Container {
        let labels =
            json!({ PROJECT: project, SERVICE: service, DEPENDS_ON: depends_on, WORKING_DIR: "/srv/immich", CONFIG_FILES: "docker-compose.yml,/etc/more.yml" });
        container(&format!("{project}-{service}-1"), json!({ "Config": { "Labels": labels } }))
    }

    fn names(project: &Project) -> Vec<&str> {
        project.services.iter().map(|service| service.name.as_str()).collect()
    }

    #[test]
    fn services_come_after_those_that_they_wait_for() {
        let server = of_service("immich", "immich-server", "redis:service_started:false,database:service_healthy:true");
        assert_eq!(
            server.depends_on,
            [("redis", Condition::Started), ("database", Condition::Healthy)].map(|(name, condition)| Dependency { service: name.to_owned(), condition })
        );
        let all = [
            server,
            of_service("immich", "redis", ""),
            of_service("other", "redis", ""),
            of_service("immich", "database", "redis"),
            container("lonely", json!({})),
        ];
        let found = projects(&all);
        assert_eq!(found.iter().map(|project| project.name.as_str()).collect::<Vec<_>>(), ["immich", "other"]);
        assert_eq!(names(&found[0]), ["redis", "database", "immich-server"]);
        assert_eq!(found[0].config_files, ["/srv/immich/docker-compose.yml", "/etc/more.yml"].map(PathBuf::from));
        assert_eq!(all[4].service, "lonely");
    }

    #[test]
    fn what_the_file_says_counts_where_labels_say_nothing_and_a_circle_ends() {
        let mut project = projects(&[of_service("p", "a", ""), of_service("p", "b", ""), of_service("p", "c", "a")]).remove(0);
        let on = |name: &str| vec![Dependency { service: name.to_owned(), condition: Condition::Started }];
        project.depend(&BTreeMap::from([("a".to_owned(), on("b")), ("c".to_owned(), on("nothing"))]));
        assert_eq!(names(&project), ["b", "a", "c"]);
        project.depend(&BTreeMap::from([("b".to_owned(), on("c"))]));
        assert_eq!(names(&project).len(), 3);
    }

    #[test]
    fn what_an_engine_says_of_a_container_is_read() {
        let read = container(
            "immich_server",
            json!({
                "State": { "Status": "running", "StartedAt": "2026-11-22T03:00:00.5Z", "Health": { "Status": "healthy" } },
                "Config": { "Env": ["DB_PASSWORD=se=cret", "EMPTY="], "StopTimeout": 30, "Healthcheck": { "Test": ["CMD", "true"] }, "Image": "immich-server:v3.1.0" },
                "Mounts": [
                    { "Type": "bind", "Source": "/srv/library", "Destination": "/data", "RW": true },
                    { "Type": "volume", "Name": "cache", "Source": "/var/lib/docker/volumes/cache/_data", "Destination": "/cache", "RW": false },
                    { "Type": "tmpfs", "Source": "", "Destination": "/tmp" },
                ],
                "NetworkSettings": {
                    "Networks": { "immich_default": { "Aliases": ["immich-server"], "DNSNames": ["immich_server"], "IPAddress": "172.18.0.5", "GlobalIPv6Address": "" } },
                    "Ports": { "2283/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "2283" }, { "HostIp": "::", "HostPort": "2283" }], "53/udp": [{ "HostIp": "", "HostPort": "53" }], "80/tcp": null },
                },
            }),
        );
        assert_eq!(
            (read.state, read.health, read.has_healthcheck, read.stop_timeout),
            (State::Running, Some(Health::Healthy), true, Some(Duration::from_secs(30)))
        );
        assert_eq!((read.environment.get("DB_PASSWORD"), read.environment.get("EMPTY")), (Some("se=cret"), None));
        assert!(!format!("{read:?}").contains("se=cret"));
        assert_eq!(
            read.mounts.iter().map(|mount| (mount.host.to_str().unwrap(), mount.volume.as_deref(), mount.is_writable)).collect::<Vec<_>>(),
            [("/srv/library", None, true), ("/var/lib/docker/volumes/cache/_data", Some("cache"), false)]
        );
        assert_eq!(read.ports, [Port { inside: 2283, host: 2283, address: None }]);
        assert_eq!(read.aliases.iter().map(String::as_str).collect::<Vec<_>>(), ["immich-server", "immich_server"]);
        let never = container("made", json!({ "State": { "Status": "created", "StartedAt": "0001-01-01T00:00:00Z" } }));
        assert_eq!((never.state, never.started_at, never.health), (State::Created, None, None));
    }
}
