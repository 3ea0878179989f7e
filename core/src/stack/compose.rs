//! A Compose project as its files describe it, where no engine does; and what its containers' labels do not say.
//!
//! Facts: the Compose specification (services, volumes, `extends`, `include`, merging, interpolation) and Docker's documentation of `COMPOSE_FILE`
//! and of pre-defined variables. Only what says where Immich's files and its database are is understood; all else is passed over.

use super::project::{CONFIG_FILES, Condition, Container, Dependency, Environment, Health, Mount, PROJECT, Port, Project, SERVICE, State, WORKING_DIR};
use super::variables::{self, VariableError, Variables, expanded};
use super::yaml::{self, Node};
use saphyr::ScanError;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// What Compose calls its files, in the order in which it looks; the first that is there counts.
const FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];

/// What is laid over each of them where it is there.
const OVERRIDES: [&str; 4] = ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// The file of variables.
pub const VARIABLES_FILE: &str = ".env";

/// Where Docker keeps volumes.
const VOLUMES: &str = "/var/lib/docker/volumes";

/// How many files bring in one another.
const FILES_MAX: usize = 64;

/// The largest file of a project that is read.
pub(super) const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why a project's files say nothing.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// There is none.
    #[error("`{}` has no Compose file", .folder.display())]
    NoFile {
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read `{}`", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no YAML.
    #[error("cannot understand `{}`", .path.display())]
    Yaml {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ScanError,
    },
    /// Its variables are not understood.
    #[error("cannot understand the variables in `{}`", .path.display())]
    Variables {
        /// Which.
        path: PathBuf,
        /// Why.
        source: VariableError,
    },
}

impl ComposeError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoFile { .. } => "name the folder of Immich's docker-compose.yml and .env by --immich-dir (IMMICH_DIR)".to_owned(),
            Self::Read { .. } => "run as somebody who may read it".to_owned(),
            Self::Yaml { .. } | Self::Variables { .. } => "`docker compose config` in its folder says what is wrong with it".to_owned(),
        }
    }
}

/// What a file says of one service.
#[derive(Debug, Clone, Default)]
struct Service {
    image: Option<String>,
    container_name: Option<String>,
    environment: BTreeMap<String, Option<String>>,
    environment_files: Vec<(PathBuf, bool)>,
    mounts: BTreeMap<PathBuf, Source>,
    depends_on: BTreeMap<String, Condition>,
    stop_grace_period: Option<Duration>,
    aliases: BTreeSet<String>,
    networks: BTreeSet<String>,
    network_mode: Option<String>,
    ports: Vec<Port>,
    restart: Option<String>,
    has_healthcheck: bool,
}

/// Where a mount comes from.
#[derive(Debug, Clone)]
struct Source {
    from: From,
    is_writable: bool,
}

#[derive(Debug, Clone)]
enum From {
    Folder(PathBuf),
    Volume(String),
}

/// A project as its files describe it.
#[derive(Debug, Clone)]
pub struct Compose {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// The Compose files that were read, those that were brought in too.
    pub files: Vec<PathBuf>,
    /// Of these, those that make up the project by themselves.
    config_files: Vec<PathBuf>,
    /// Files of variables: `.env`, and those that services name.
    pub environment_files: Vec<PathBuf>,
    /// What was not read, in words, though a file names it.
    pub problems: Vec<String>,
    variables: Variables,
    services: BTreeMap<String, Service>,
    /// Volumes by the name that services use: their folder, where a driver's option says it, else the engine's name.
    volumes: BTreeMap<String, (Option<PathBuf>, String)>,
}

pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let size = std::fs::metadata(path)?;
    if !size.is_file() || size.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file of a few kilobytes"));
    }
    std::fs::read_to_string(path)
}

/// `path` without `.` and, as far as its text goes, `..`.
fn tidy(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => drop(out.pop()),
            other => out.push(other),
        }
    }
    out
}

impl Compose {
    /// The project of the Compose files in `folder`.
    ///
    /// # Errors
    /// There is none, or a file that makes it up is not understood.
    pub fn read(folder: &Path) -> Result<Self, ComposeError> {
        let environment = folder.join(VARIABLES_FILE);
        let (mut variables, mut environment_files) = (Variables::new(), Vec::new());
        if environment.exists() {
            read_variables(&environment, &mut variables)?;
            environment_files.push(environment);
        }
        let files = match variables.get("COMPOSE_FILE").filter(|files| !files.is_empty()) {
            Some(files) => {
                let separator = variables.get("COMPOSE_PATH_SEPARATOR").filter(|text| !text.is_empty()).map_or(":", String::as_str);
                files.split(separator).filter(|file| !file.is_empty()).map(|file| folder.join(file)).collect()
            }
            None => {
                let first = FILES.iter().map(|name| folder.join(name)).find(|path| path.exists());
                let first = first.ok_or_else(|| ComposeError::NoFile { folder: folder.to_owned() })?;
                let over = OVERRIDES.iter().map(|name| folder.join(name)).find(|path| path.exists());
                std::iter::once(first).chain(over).collect()
            }
        };
        Self::read_files(folder, files, variables, environment_files)
    }

    /// A project of an engine as its files describe it: those that its containers name, as this program finds them.
    ///
    /// # Errors
    /// A file that makes it up cannot be read or is not understood.
    pub fn read_project(name: &str, folder: &Path, files: Vec<PathBuf>, environment: &[PathBuf]) -> Result<Self, ComposeError> {
        let mut variables = Variables::new();
        let usual = [folder.join(VARIABLES_FILE)];
        let (named, must_be) = if environment.is_empty() { (&usual[..], false) } else { (environment, true) };
        let mut environment_files = Vec::new();
        for path in named.iter().filter(|path| must_be || path.exists()) {
            read_variables(path, &mut variables)?;
            environment_files.push(path.clone());
        }
        variables.insert("COMPOSE_PROJECT_NAME".to_owned(), name.to_owned());
        Self::read_files(folder, files, variables, environment_files)
    }

    fn read_files(folder: &Path, files: Vec<PathBuf>, variables: Variables, environment_files: Vec<PathBuf>) -> Result<Self, ComposeError> {
        let folder_name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let folder_name = folder_name.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        let plain: String = folder_name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')).collect();
        let mut compose = Self {
            name: plain.trim_start_matches(['_', '-']).to_owned(),
            folder: folder.to_owned(),
            files: Vec::new(),
            config_files: files.clone(),
            environment_files,
            problems: Vec::new(),
            variables,
            services: BTreeMap::new(),
            volumes: BTreeMap::new(),
        };
        for file in files {
            compose.lay_over(&file, folder)?;
        }
        if let Some(name) = compose.variables.get("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty()) {
            compose.name.clone_from(name);
        }
        compose.read_environments();
        Ok(compose)
    }

    fn lay_over(&mut self, file: &Path, folder: &Path) -> Result<(), ComposeError> {
        let file = tidy(file);
        if self.files.contains(&file) || self.files.len() >= FILES_MAX {
            return Ok(());
        }
        let text = read_text(&file).map_err(|source| ComposeError::Read { path: file.clone(), source })?;
        self.files.push(file.clone());
        let documents = yaml::documents(&text).map_err(|source| ComposeError::Yaml { path: file.clone(), source })?;
        for document in &documents {
            self.lay_over_document(document, &file, folder)?;
        }
        Ok(())
    }

    fn lay_over_document(&mut self, document: &Node<'_>, file: &Path, folder: &Path) -> Result<(), ComposeError> {
        let reader = Reader { variables: self.variables.clone(), file: file.to_owned(), folder: folder.to_owned() };
        for included in yaml::get(document, "include").map(list).unwrap_or_default() {
            self.include(&reader, included)?;
        }
        if let Some(name) = reader.maybe(document, "name")?.filter(|name| !name.is_empty()) {
            self.name = name;
        }
        for (name, volume) in yaml::get(document, "volumes").map(yaml::pairs).unwrap_or_default() {
            let told = reader.volume(name, volume)?;
            self.volumes.insert(name.to_owned(), told);
        }
        for (name, service) in yaml::get(document, "services").map(yaml::pairs).unwrap_or_default() {
            let mut read = reader.service(service)?;
            if let Some(base) = yaml::get(service, "extends") {
                let base = self.extended(&reader, document, base, 0)?;
                read = base.with(read);
            }
            let earlier = self.services.remove(name).unwrap_or_default();
            self.services.insert(name.to_owned(), earlier.with(read));
        }
        Ok(())
    }

    fn include(&mut self, reader: &Reader, included: &Node<'_>) -> Result<(), ComposeError> {
        let paths: Vec<_> = match yaml::text(included) {
            Some(path) => vec![reader.expand(path)?],
            None => {
                let paths = yaml::get(included, "path").map(list).unwrap_or_default();
                paths.into_iter().filter_map(yaml::text).map(|path| reader.expand(path)).collect::<Result<_, _>>()?
            }
        };
        for path in paths {
            let path = tidy(&reader.folder.join(path));
            let folder = path.parent().map_or_else(|| reader.folder.clone(), Path::to_owned);
            if let Err(error) = self.lay_over(&path, &folder) {
                self.problems.push(crate::told::told(&error));
            }
        }
        Ok(())
    }

    /// The service that another one extends, with what that one extends. What cannot be read adds nothing: it is seldom more than a device.
    fn extended(&mut self, reader: &Reader, document: &Node<'_>, base: &Node<'_>, depth: usize) -> Result<Service, ComposeError> {
        let (file, name) = match yaml::text(base) {
            Some(name) => (None, Some(reader.expand(name)?)),
            None => (reader.maybe(base, "file")?, reader.maybe(base, "service")?),
        };
        let Some(name) = name.filter(|_| depth < FILES_MAX) else { return Ok(Service::default()) };
        let Some(file) = file else {
            let found = yaml::get(document, "services").and_then(|services| yaml::get(services, &name));
            return found.map_or_else(|| Ok(Service::default()), |service| self.with_base(reader, document, service, depth));
        };
        let path = tidy(&reader.folder.join(file));
        let other = Reader { file: path.clone(), ..reader.clone() };
        let text = match read_text(&path) {
            Ok(text) => text,
            Err(error) => {
                self.problems.push(format!("cannot read `{}`: {error}", path.display()));
                return Ok(Service::default());
            }
        };
        if !self.files.contains(&path) {
            self.files.push(path.clone());
        }
        let documents = yaml::documents(&text).map_err(|source| ComposeError::Yaml { path, source })?;
        for document in &documents {
            if let Some(service) = yaml::get(document, "services").and_then(|services| yaml::get(services, &name)) {
                return self.with_base(&other, document, service, depth);
            }
        }
        Ok(Service::default())
    }

    fn with_base(&mut self, reader: &Reader, document: &Node<'_>, service: &Node<'_>, depth: usize) -> Result<Service, ComposeError> {
        let read = reader.service(service)?;
        match yaml::get(service, "extends") {
            Some(base) => Ok(self.extended(reader, document, base, depth + 1)?.with(read)),
            None => Ok(read),
        }
    }

    /// Adds what files of variables say to the services that name them: what the service itself says outweighs it.
    fn read_environments(&mut self) {
        for service in self.services.values_mut() {
            let mut from_files = Variables::new();
            for (path, is_required) in &service.environment_files {
                let path = tidy(path);
                match read_text(&path) {
                    Ok(text) => {
                        let mut all = self.variables.clone();
                        // In these, too, variables of the project may stand.
                        match variables::assignments(&text).and_then(|names| variables::read(&text, &mut all).map(|()| names)) {
                            Ok(names) => from_files.extend(names.into_iter().filter_map(|one| Some((one.name.clone(), all.get(&one.name)?.clone())))),
                            Err(error) => self.problems.push(format!("cannot understand the variables in `{}`: {error}", path.display())),
                        }
                        if !self.environment_files.contains(&path) {
                            self.environment_files.push(path);
                        }
                    }
                    Err(error) if *is_required => self.problems.push(format!("cannot read `{}`: {error}", path.display())),
                    Err(_) => {}
                }
            }
            for (name, value) in from_files {
                service.environment.entry(name).or_insert(Some(value));
            }
        }
    }

    /// The containers that Compose makes of it, as far as that is known without an engine: nothing tells what they are doing.
    #[must_use]
    pub fn containers(&self) -> Vec<Container> {
        self.services.iter().map(|(name, service)| self.container(name, service)).collect()
    }

    fn container(&self, name: &str, service: &Service) -> Container {
        let value = |name: &String, value: &Option<String>| Some((name.clone(), value.clone().or_else(|| self.variables.get(name).cloned())?));
        let mount = |(inside, source): (&PathBuf, &Source)| {
            let (host, volume) = match &source.from {
                From::Folder(path) => (path.clone(), None),
                From::Volume(name) => {
                    let (folder, engine_name) = self.volumes.get(name).cloned().unwrap_or_else(|| (None, String::new()));
                    let engine_name = if engine_name.is_empty() { format!("{}_{name}", self.name) } else { engine_name };
                    (folder.unwrap_or_else(|| Path::new(VOLUMES).join(&engine_name).join("_data")), Some(engine_name))
                }
            };
            Mount { host, inside: inside.clone(), volume, is_writable: source.is_writable }
        };
        let shown = |paths: &[PathBuf]| paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
        let labels = [
            (PROJECT, self.name.clone()),
            (SERVICE, name.to_owned()),
            (WORKING_DIR, self.folder.display().to_string()),
            (CONFIG_FILES, shown(&self.config_files)),
        ];
        let container_name = service.container_name.clone().unwrap_or_else(|| format!("{}-{name}-1", self.name));
        let mut networks = service.networks.clone();
        if networks.is_empty() && service.network_mode.is_none() {
            networks.insert("default".to_owned());
        }
        Container {
            id: format!("{}/{name}", self.name),
            project: Some(self.name.clone()),
            service: name.to_owned(),
            number: 1,
            image: service.image.clone().unwrap_or_default(),
            image_id: String::new(),
            state: State::Created,
            health: None::<Health>,
            has_healthcheck: service.has_healthcheck,
            started_at: None,
            exit_code: None,
            stop_timeout: service.stop_grace_period,
            environment: service.environment.iter().filter_map(|(name, told)| value(name, told)).collect::<Environment>(),
            labels: labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            mounts: service.mounts.iter().map(mount).collect(),
            aliases: service.aliases.iter().cloned().chain([name.to_owned(), container_name.clone()]).collect(),
            addresses: BTreeSet::new(),
            networks,
            ports: service.ports.clone(),
            network_mode: service.network_mode.clone().unwrap_or_default(),
            restart_policy: service.restart.clone().unwrap_or_default(),
            is_self: false,
            serves_engine: false,
            depends_on: dependencies(service),
            is_one_off: false,
            name: container_name,
        }
    }

    /// What each service waits for.
    #[must_use]
    pub fn depends_on(&self) -> BTreeMap<String, Vec<Dependency>> {
        self.services.iter().map(|(name, service)| (name.clone(), dependencies(service))).collect()
    }

    /// How long the containers of each service may take to stop, where that is said.
    #[must_use]
    pub fn stop_timeouts(&self) -> BTreeMap<String, Duration> {
        self.services.iter().filter_map(|(name, service)| Some((name.clone(), service.stop_grace_period?))).collect()
    }

    /// Tells a project what its containers' labels do not: dependencies, and how long a container may take to stop.
    pub fn complete(&self, project: &mut Project) {
        project.depend(&self.depends_on());
        for service in &mut project.services {
            let told = self.services.get(&service.name).and_then(|service| service.stop_grace_period);
            for container in service.containers.iter_mut().filter(|container| container.stop_timeout.is_none()) {
                container.stop_timeout = told;
            }
        }
    }

    /// PostgreSQL's folder on the host: `DB_DATA_LOCATION`, as Immich's own file has it.
    #[must_use]
    pub fn database_folder(&self) -> Option<PathBuf> {
        let told = self.variables.get("DB_DATA_LOCATION").filter(|path| path.starts_with(['/', '.']))?;
        Some(tidy(&self.folder.join(told)))
    }
}

fn dependencies(service: &Service) -> Vec<Dependency> {
    service.depends_on.iter().map(|(service, condition)| Dependency { service: service.clone(), condition: *condition }).collect()
}

fn read_variables(path: &Path, into: &mut Variables) -> Result<(), ComposeError> {
    let text = read_text(path).map_err(|source| ComposeError::Read { path: path.to_owned(), source })?;
    variables::read(&text, into).map_err(|source| ComposeError::Variables { path: path.to_owned(), source })
}

/// The items of a sequence, or the one that stands in its place.
fn list<'a, 'b>(node: &'b Node<'a>) -> Vec<&'b Node<'a>> {
    yaml::items(node).map_or_else(|| vec![node], |items| items.iter().collect())
}

impl Service {
    /// This one with another laid over it, as Compose merges them.
    fn with(mut self, over: Self) -> Self {
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
#[derive(Debug, Clone)]
struct Reader {
    variables: Variables,
    file: PathBuf,
    folder: PathBuf,
}

impl Reader {
    fn expand(&self, text: &str) -> Result<String, ComposeError> {
        expanded(text, &self.variables).map_err(|source| ComposeError::Variables { path: self.file.clone(), source })
    }

    /// The text of `key`, if it has one.
    fn maybe(&self, node: &Node<'_>, key: &str) -> Result<Option<String>, ComposeError> {
        yaml::get(node, key).and_then(yaml::text).map(|text| self.expand(text)).transpose()
    }

    fn is_on(&self, node: &Node<'_>, key: &str) -> Result<bool, ComposeError> {
        Ok(self.maybe(node, key)?.is_some_and(|text| text.eq_ignore_ascii_case("true")))
    }

    fn path(&self, text: &str) -> PathBuf {
        tidy(&self.folder.join(text))
    }

    /// Where a volume's files are, where that is said, and the engine's name for it; empty where Compose makes one.
    fn volume(&self, name: &str, node: &Node<'_>) -> Result<(Option<PathBuf>, String), ComposeError> {
        let said = self.maybe(node, "name")?;
        let is_external = self.is_on(node, "external")?;
        let options = yaml::get(node, "driver_opts");
        let bound = options.map(|options| self.maybe(options, "device")).transpose()?.flatten().filter(|device| device.starts_with('/'));
        let is_bind = options.map(|options| self.maybe(options, "o")).transpose()?.flatten().is_some_and(|o| o.split(',').any(|one| one == "bind"));
        let engine_name = said.or_else(|| is_external.then(|| name.to_owned())).unwrap_or_default();
        Ok((bound.filter(|_| is_bind).map(PathBuf::from), engine_name))
    }

    fn service(&self, node: &Node<'_>) -> Result<Service, ComposeError> {
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
