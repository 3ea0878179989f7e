//! A Compose project as its files describe it, where no engine does; and what its containers' labels do not say.
//!
//! Facts: the Compose specification (services, volumes, `extends`, `include`, merging, interpolation) and Docker's documentation of `COMPOSE_FILE`
//! and of pre-defined variables. Only what says where Immich's files and its database are is understood; all else is passed over.

use super::project::{CONFIG_FILES, Container, Dependency, Environment, Health, Mount, PROJECT, Project, SERVICE, State, WORKING_DIR};
use super::variables::{self, VariableError, Variables};
use super::yaml::{self, Node};
use saphyr::ScanError;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

mod service;

use service::{From, Reader, Service, Source, list};

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

/// A project as its files describe it. Its variables hold secrets and are not shown.
#[derive(Clone)]
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

impl fmt::Debug for Compose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compose").field("name", &self.name).field("folder", &self.folder).field("files", &self.files).finish_non_exhaustive()
    }
}

pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let size = std::fs::metadata(path)?;
    if !size.is_file() || size.len() > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file of a few kilobytes"));
    }
    std::fs::read_to_string(path)
}

/// `path` without `.` and, as far as its text goes, `..`.
#[must_use]
pub fn tidy(path: &Path) -> PathBuf {
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
        let folder = &tidy(folder);
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
