//! What one Compose file says of services and volumes.

use super::{ComposeError, tidy};
use crate::stack::project::{Condition, Port};
use crate::stack::variables::{Variables, expanded};
use crate::stack::yaml::{self, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// What a file says of one service.
#[derive(Clone, Default)]
pub(super) struct Service {
    pub(super) image: Option<String>,
    pub(super) container_name: Option<String>,
    pub(super) environment: BTreeMap<String, Option<String>>,
    pub(super) environment_files: Vec<(PathBuf, bool)>,
    pub(super) mounts: BTreeMap<PathBuf, Source>,
    pub(super) depends_on: BTreeMap<String, Condition>,
    pub(super) stop_grace_period: Option<Duration>,
    pub(super) aliases: BTreeSet<String>,
    pub(super) networks: BTreeSet<String>,
    pub(super) network_mode: Option<String>,
    pub(super) ports: Vec<Port>,
    pub(super) restart: Option<String>,
    pub(super) has_healthcheck: bool,
}

/// Where a mount comes from.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) from: From,
    pub(super) is_writable: bool,
}

/// A folder of the host, or a volume by the name that services use.
#[derive(Debug, Clone)]
pub(super) enum From {
    Folder(PathBuf),
    Volume(String),
}

/// The items of a sequence, or the one that stands in its place.
pub(super) fn list<'a, 'b>(node: &'b Node<'a>) -> Vec<&'b Node<'a>> {
    yaml::items(node).map_or_else(|| vec![node], |items| items.iter().collect())
}

impl Service {
    /// This one with another laid over it, as Compose merges them.
    pub(super) fn with(mut self, over: Self) -> Self {
        self.image = over.image.or(self.image);
        self.container_name = over.container_name.or(self.container_name);
        self.environment.extend(over.environment);
        self.environment_files.extend(over.environment_files);
        self.mounts.extend(over.mounts);
        self.depends_on.extend(over.depends_on);
        self.stop_grace_period = over.stop_grace_period.or(self.stop_grace_period);
        self.aliases.extend(over.aliases);
        self.networks.extend(over.networks);
        self.network_mode = over.network_mode.or(self.network_mode);
        self.ports.extend(over.ports);
        self.restart = over.restart.or(self.restart);
        self.has_healthcheck |= over.has_healthcheck;
        self
    }
}

/// Reads values of one file.
#[derive(Clone)]
pub(super) struct Reader {
    pub(super) variables: Variables,
    pub(super) file: PathBuf,
    pub(super) folder: PathBuf,
}

impl Reader {
    pub(super) fn expand(&self, text: &str) -> Result<String, ComposeError> {
        expanded(text, &self.variables).map_err(|source| ComposeError::Variables { path: self.file.clone(), source })
    }

    /// The text of `key`, if it has one.
    pub(super) fn maybe(&self, node: &Node<'_>, key: &str) -> Result<Option<String>, ComposeError> {
        yaml::get(node, key).and_then(yaml::text).map(|text| self.expand(text)).transpose()
    }

    fn is_on(&self, node: &Node<'_>, key: &str) -> Result<bool, ComposeError> {
        Ok(self.maybe(node, key)?.is_some_and(|text| text.eq_ignore_ascii_case("true")))
    }

    fn path(&self, text: &str) -> PathBuf {
        tidy(&self.folder.join(text))
    }

    /// Where a volume's files are, where that is said, and the engine's name for it; empty where Compose makes one.
    pub(super) fn volume(&self, name: &str, node: &Node<'_>) -> Result<(Option<PathBuf>, String), ComposeError> {
        let said = self.maybe(node, "name")?;
        let is_external = self.is_on(node, "external")?;
        let options = yaml::get(node, "driver_opts");
        let bound = options.map(|options| self.maybe(options, "device")).transpose()?.flatten().filter(|device| device.starts_with('/'));
        let is_bind = options.map(|options| self.maybe(options, "o")).transpose()?.flatten().is_some_and(|o| o.split(',').any(|one| one == "bind"));
        let engine_name = said.or_else(|| is_external.then(|| name.to_owned())).unwrap_or_default();
        Ok((bound.filter(|_| is_bind).map(PathBuf::from), engine_name))
    }

    pub(super) fn service(&self, node: &Node<'_>) -> Result<Service, ComposeError> {
        let mut service = Service {
            image: self.maybe(node, "image")?,
            container_name: self.maybe(node, "container_name")?,
            network_mode: self.maybe(node, "network_mode")?,
            restart: self.maybe(node, "restart")?,
            stop_grace_period: self.maybe(node, "stop_grace_period")?.and_then(|text| text.parse::<jiff::SignedDuration>().ok()?.try_into().ok()),
            ..Service::default()
        };
        if let Some(check) = yaml::get(node, "healthcheck") {
            service.has_healthcheck = !self.is_on(check, "disable")?;
        }
        if let Some(environment) = yaml::get(node, "environment") {
            for item in yaml::items(environment).unwrap_or_default().iter().filter_map(yaml::text) {
                let item = self.expand(item)?;
                let (name, value) = item.split_once('=').map_or((item.as_str(), None), |(name, value)| (name, Some(value.to_owned())));
                service.environment.insert(name.to_owned(), value);
            }
            for (name, value) in yaml::pairs(environment) {
                // A name without a value takes that of whoever calls Compose.
                let value = yaml::text(value).filter(|text| !text.is_empty() && *text != "~" && *text != "null").map(|text| self.expand(text)).transpose()?;
                service.environment.insert(name.to_owned(), value);
            }
        }
        for file in yaml::get(node, "env_file").map(list).unwrap_or_default() {
            let (path, required) = match yaml::text(file) {
                Some(path) => (Some(self.expand(path)?), true),
                None => (self.maybe(file, "path")?, self.maybe(file, "required")?.is_none_or(|text| text != "false")),
            };
            service.environment_files.extend(path.map(|path| (self.path(&path), required)));
        }
        for volume in yaml::get(node, "volumes").map(list).unwrap_or_default() {
            service.mounts.extend(self.mount(volume)?);
        }
        if let Some(before) = yaml::get(node, "depends_on") {
            let names = yaml::items(before).unwrap_or_default().iter().filter_map(yaml::text).map(|name| (name.to_owned(), Condition::Started));
            service.depends_on.extend(names);
            for (name, how) in yaml::pairs(before) {
                let condition = match self.maybe(how, "condition")?.as_deref() {
                    Some("service_healthy") => Condition::Healthy,
                    Some("service_completed_successfully") => Condition::Completed,
                    _ => Condition::Started,
                };
                service.depends_on.insert(name.to_owned(), condition);
            }
        }
        if let Some(networks) = yaml::get(node, "networks") {
            service.networks.extend(yaml::items(networks).unwrap_or_default().iter().filter_map(yaml::text).map(str::to_owned));
            for (name, network) in yaml::pairs(networks) {
                service.networks.insert(name.to_owned());
                let aliases = yaml::get(network, "aliases").map(list).unwrap_or_default();
                service.aliases.extend(aliases.into_iter().filter_map(yaml::text).map(str::to_owned));
            }
        }
        for port in yaml::get(node, "ports").map(list).unwrap_or_default() {
            service.ports.extend(self.port(port)?);
        }
        Ok(service)
    }

    fn mount(&self, node: &Node<'_>) -> Result<Option<(PathBuf, Source)>, ComposeError> {
        let (source, inside, is_writable) = match yaml::text(node) {
            Some(text) => {
                let text = self.expand(text)?;
                let mut parts = text.splitn(3, ':');
                let (Some(source), Some(inside)) = (parts.next(), parts.next()) else { return Ok(None) };
                let is_read_only = parts.next().is_some_and(|modes| modes.split(',').any(|mode| mode == "ro"));
                (source.to_owned(), inside.to_owned(), !is_read_only)
            }
            None => {
                let is_known = matches!(self.maybe(node, "type")?.as_deref(), Some("bind" | "volume"));
                let (source, inside) = (self.maybe(node, "source")?, self.maybe(node, "target")?);
                let (Some(source), Some(inside)) = (source.filter(|_| is_known), inside) else { return Ok(None) };
                (source, inside, !self.is_on(node, "read_only")?)
            }
        };
        let from = if source.starts_with(['/', '.']) {
            From::Folder(self.path(&source))
        } else if source.starts_with('~') || source.is_empty() {
            // Whose home that is, nobody knows here.
            return Ok(None);
        } else {
            From::Volume(source)
        };
        Ok(Some((PathBuf::from(inside), Source { from, is_writable })))
    }

    /// `[ADDRESS:]HOST:INSIDE[/tcp]`, or its long form. What the engine chooses, and ranges, are passed over.
    fn port(&self, node: &Node<'_>) -> Result<Option<Port>, ComposeError> {
        let Some(text) = yaml::text(node) else {
            let (host, inside) = (self.maybe(node, "published")?, self.maybe(node, "target")?);
            let address = self.maybe(node, "host_ip")?;
            let numbers = host.and_then(|host| host.parse().ok()).zip(inside.and_then(|inside| inside.parse().ok()));
            return Ok(numbers.map(|(host, inside)| Port { inside, host, address }));
        };
        let text = self.expand(text)?;
        let Some((rest, inside)) = text.trim_end_matches("/tcp").rsplit_once(':') else { return Ok(None) };
        let (address, host) = rest.rsplit_once(':').map_or((None, rest), |(address, host)| (Some(address), host));
        let address = address.filter(|address| !matches!(*address, "0.0.0.0" | "[::]" | "::")).map(str::to_owned);
        Ok(inside.parse().ok().zip(host.parse().ok()).map(|(inside, host)| Port { inside, host, address }))
    }
}
