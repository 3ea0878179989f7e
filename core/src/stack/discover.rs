//! Which of the containers are Immich's, and what they say of its library and its database.
//!
//! Nothing here asks an engine or a database: it is told of containers (by an engine, or by Compose's files) and concludes. Facts about Immich: its
//! documentation, "Environment Variables" and "Custom Locations", its `docker-compose.yml`, and the labels of its images. All of it is untrusted.

use super::own::{Here, NotMounted, through};
use super::project::{Container, Mount, Project, projects};
use crate::database::connection::{Connection, InvalidConnection, Password};
use std::fmt;
use std::path::{Path, PathBuf};

mod error;
mod external;

pub use error::DiscoverError;
pub use external::{External, Known, Place};

/// The service of Immich's server in its own Compose file, and the container's name there.
const SERVER: [&str; 2] = ["immich-server", "immich_server"];

/// Likewise for its database.
const DATABASE: [&str; 2] = ["database", "immich_postgres"];

/// Names that images of PostgreSQL have, without registry, owner and tag.
const DATABASE_IMAGES: [&str; 7] = ["postgres", "postgresql", "pgvecto-rs", "vectorchord", "vchord-postgres", "vchord-suite", "pgvector"];

/// Where Immich's server sees the media location if nothing says otherwise: since 1.137, and before.
const MEDIA_LOCATIONS: [&str; 2] = ["/data", "/usr/src/app/upload"];

/// Where the server looks for the database if nothing says otherwise.
const DATABASE_HOST: &str = "database";

const SOURCE_LABEL: &str = "org.opencontainers.image.source";
const VERSION_LABEL: &str = "org.opencontainers.image.version";

/// Something that was found, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found<T> {
    /// What.
    pub value: T,
    /// Where: "mount of `immich_server`", "environment of `immich_postgres`".
    pub origin: String,
}

/// Who told of the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller {
    /// An engine: they exist, and programs can be run in them.
    Engine,
    /// Compose's files: what would be there.
    Files,
}

/// One Immich: its server, and the containers that go with it.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its project; `None` where it was made without Compose.
    pub project: Option<Project>,
    /// The container of its server.
    pub server: Container,
    /// Who told of it.
    pub teller: Teller,
    /// The project's containers; without a project, all that have none.
    own: Vec<Container>,
    /// All others.
    others: Vec<Container>,
}

/// Immich's media location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// Where the server sees it.
    pub server_path: PathBuf,
    /// Its folder, where this program finds it.
    pub path: PathBuf,
    /// Folders below it that come from elsewhere: relative to it, and where this program finds them.
    pub mounts: Vec<(PathBuf, PathBuf)>,
    /// The volume's name, where it is one.
    pub volume: Option<String>,
}

/// Immich's database.
#[derive(Debug, Clone)]
pub enum Database {
    /// In a container of the same engine.
    InContainer {
        /// The container's name.
        container: String,
        /// The user, where the container's own environment does not say.
        user: Option<String>,
        /// The database's name, where Immich's server or the container says.
        name: Option<String>,
        /// The password, where the container's own environment does not say.
        password: Option<Password>,
    },
    /// On a server that is reached over the network.
    Elsewhere(Connection),
}

impl Database {
    /// What people call it.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::InContainer { container, name: Some(name), .. } => format!("`{name}` in the container `{container}`"),
            Self::InContainer { container, .. } => format!("the container `{container}`"),
            Self::Elsewhere(connection) => connection.target(),
        }
    }
}

/// Which Immich is meant.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// The name of its project, or of its server's container.
    pub project: Option<String>,
    /// The folder of its Compose file, as this program finds it.
    pub folder: Option<PathBuf>,
}

/// The image's name without registry, owner, tag and digest.
fn image_name(image: &str) -> &str {
    let image = image.split('@').next().unwrap_or_default();
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split(':').next().unwrap_or_default()
}

/// The image's tag, if it has one.
fn image_tag(image: &str) -> Option<&str> {
    let image = image.split('@').next()?;
    image.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag)
}

/// Whether this container runs Immich's server.
fn is_server(container: &Container) -> bool {
    if container.is_needed_here() || image_name(&container.image).ends_with("machine-learning") {
        return false;
    }
    let is_called_so = SERVER.iter().any(|name| container.service == *name || container.name == *name);
    image_name(&container.image) == "immich-server" || is_called_so || is_labelled_server(container)
}

/// The label of the source is that of the machine learning's image too; that one has no port of the server and a cache of its own.
fn is_labelled_server(container: &Container) -> bool {
    let source = container.labels.get(SOURCE_LABEL).map(|url| url.trim_end_matches('/').trim_end_matches(".git"));
    source.is_some_and(|url| url.ends_with("immich-app/immich"))
        && container.environment.get("MACHINE_LEARNING_CACHE_FOLDER").is_none()
        && !format!("{} {}", container.service, container.name).replace('_', "-").contains("machine-learning")
}

/// Of several servers of one project, the one that serves people: older stacks have the same image as `immich-microservices` too.
fn rank(container: &Container) -> (bool, bool, &str) {
    let is_called_so = SERVER.iter().any(|name| container.service == *name || container.name == *name);
    (!is_called_so, container.service.contains("microservices") || container.name.contains("microservices"), &container.name)
}

/// Every Immich among these containers.
#[must_use]
pub fn sites(containers: &[Container], teller: Teller) -> Vec<Site> {
    let mut sites = Vec::new();
    for project in projects(containers) {
        let own: Vec<_> = project.containers().cloned().collect();
        if let Some(server) = own.iter().filter(|container| is_server(container)).min_by_key(|container| rank(container)).cloned() {
            let others = containers.iter().filter(|container| container.project.as_ref() != Some(&project.name)).cloned().collect();
            sites.push(Site { project: Some(project), server, teller, own, others });
        }
    }
    let (others, lone): (Vec<_>, Vec<_>) = containers.iter().cloned().partition(|container| container.project.is_some());
    let is_second = |container: &Container| container.name.contains("microservices");
    for server in lone.iter().filter(|container| is_server(container) && !is_second(container)) {
        sites.push(Site { project: None, server: server.clone(), teller, own: lone.clone(), others: others.clone() });
    }
    sites
}

/// The Immich that is meant.
///
/// # Errors
/// There is none, or there are several and nothing says which.
pub fn choose(containers: &[Container], choice: &Choice, here: &Here) -> Result<Site, DiscoverError> {
    let mut sites = sites(containers, Teller::Engine);
    if let Some(name) = &choice.project {
        if let Some(found) = sites.iter().position(|site| site.name() == name) {
            return Ok(sites.swap_remove(found));
        }
        let services = |project: Project| project.services.into_iter().map(|service| service.name).collect();
        let project = projects(containers).into_iter().find(|project| project.name == *name);
        return Err(DiscoverError::NotThere { name: name.clone(), services: project.map(services), found: names(&sites) });
    }
    if let Some(folder) = &choice.folder {
        let is_there = |site: &Site| {
            let told = site.project.as_ref().and_then(|project| project.working_dir.as_ref());
            told.and_then(|told| here.path(told).ok()).is_some_and(|told| same_folder(&told, folder))
        };
        sites.retain(is_there);
        if sites.is_empty() {
            return Err(DiscoverError::NotInFolder { folder: folder.clone() });
        }
    }
    match (sites.pop(), sites.is_empty()) {
        (Some(site), true) => Ok(site),
        (None, _) => Err(DiscoverError::NoImmich { containers: containers.iter().map(|container| container.name.clone()).collect() }),
        (Some(last), false) => {
            sites.push(last);
            Err(DiscoverError::Several { found: names(&sites) })
        }
    }
}

fn names(sites: &[Site]) -> Vec<String> {
    sites.iter().map(|site| site.name().to_owned()).collect()
}

fn same_folder(one: &Path, other: &Path) -> bool {
    one == other || matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// What a container's variable is called in messages.
fn environment_of(container: &Container) -> String {
    format!("environment of `{}`", container.name)
}

impl Site {
    /// What `--compose-project` calls it: its project, else its server's container.
    #[must_use]
    pub fn name(&self) -> &str {
        self.project.as_ref().map_or(&self.server.name, |project| &project.name)
    }

    /// Its containers; without a project, all that have none.
    #[must_use]
    pub fn containers(&self) -> &[Container] {
        &self.own
    }

    /// Where the server sees its media location.
    #[must_use]
    pub fn media_location(&self) -> Found<PathBuf> {
        if let Some(said) = self.server.environment.get("IMMICH_MEDIA_LOCATION") {
            return Found { value: PathBuf::from(said), origin: environment_of(&self.server) };
        }
        let is_mounted = |path: &&&str| self.server.mounts.iter().any(|mount| mount.inside == Path::new(path));
        let path = MEDIA_LOCATIONS.iter().find(is_mounted).or(MEDIA_LOCATIONS.first()).copied().unwrap_or_default();
        Found { value: PathBuf::from(path), origin: format!("mount of `{}`", self.server.name) }
    }

    /// Immich's media location, its folder, and what is mounted below it from elsewhere.
    ///
    /// # Errors
    /// It is no mount, so that it is lost with the container; it is not mounted where this program runs, or cannot be read.
    pub fn media(&self, here: &Here) -> Result<Found<Media>, DiscoverError> {
        self.media_if(here, true)
    }

    /// Likewise for a host on which nothing is there yet: the folders need not be there, a restore makes them.
    ///
    /// # Errors
    /// It is no mount, so that what is written there would be lost with the container; it is not mounted where this program runs.
    pub fn media_to_be(&self, here: &Here) -> Result<Found<Media>, DiscoverError> {
        self.media_if(here, false)
    }

    fn media_if(&self, here: &Here, is_there: bool) -> Result<Found<Media>, DiscoverError> {
        let location = self.media_location();
        let unmounted = || {
            let below = self.server.mounts.iter().filter(|mount| mount.inside.starts_with(&location.value));
            let below = below.map(|mount| mount.inside.display().to_string()).collect();
            DiscoverError::Unmounted { container: self.server.name.clone(), path: location.value.clone(), below }
        };
        if !is_plain(&location.value) {
            return Err(unmounted());
        }
        let (host, mount) = through(&self.server.mounts, &location.value, true).ok_or_else(unmounted)?;
        let path = self.look(&host, mount, here, is_there)?;
        let mounts = self.mounts_below(&location.value, here, is_there)?;
        let origin = match &mount.volume {
            Some(volume) => format!("{}, volume `{volume}`", self.mount_origin(mount)),
            None => self.mount_origin(mount),
        };
        Ok(Found { value: Media { server_path: location.value, path, mounts, volume: mount.volume.clone() }, origin })
    }

    fn mount_origin(&self, mount: &Mount) -> String {
        format!("mount of `{}` at {}", self.server.name, mount.inside.display())
    }

    /// Folders that are mounted below `path`, relative to it.
    fn mounts_below(&self, path: &Path, here: &Here, is_there: bool) -> Result<Vec<(PathBuf, PathBuf)>, DiscoverError> {
        let mut found = Vec::new();
        for mount in &self.server.mounts {
            let Some(below) = mount.inside.strip_prefix(path).ok().filter(|below| !below.as_os_str().is_empty()) else { continue };
            found.push((below.to_owned(), self.look(&mount.host, mount, here, is_there)?));
        }
        found.sort();
        Ok(found)
    }

    /// Where this program finds a folder of the host; it can be read, if it is to be there.
    fn look(&self, host: &Path, mount: &Mount, here: &Here, is_there: bool) -> Result<PathBuf, DiscoverError> {
        let path = here.path(host)?;
        if !is_there {
            return Ok(path);
        }
        match std::fs::metadata(&path) {
            Ok(_) => Ok(path),
            Err(source) => {
                Err(DiscoverError::Unreadable { path, inside: mount.inside.clone(), container: self.server.name.clone(), volume: mount.volume.clone(), source })
            }
        }
    }

    /// Immich's version: as its image's label says, else its tag.
    #[must_use]
    pub fn version(&self) -> Option<Found<String>> {
        let number = |text: &str| {
            let text = text.strip_prefix('v').unwrap_or(text);
            let is_version = text.starts_with(|c: char| c.is_ascii_digit()) && text.contains('.');
            let is_clean = text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".+-".contains(&byte));
            (is_version && is_clean).then(|| text.to_owned())
        };
        let label = self.server.labels.get(VERSION_LABEL).and_then(|label| number(label));
        let labelled = label.map(|value| Found { value, origin: format!("label of the image of `{}`", self.server.name) });
        labelled.or_else(|| {
            let value = number(image_tag(&self.server.image)?)?;
            Some(Found { value, origin: format!("tag of the image of `{}`", self.server.name) })
        })
    }

    /// The database that Immich's server uses.
    ///
    /// # Errors
    /// It cannot be told which it is.
    pub fn database(&self) -> Result<Found<Database>, DiscoverError> {
        let (connection, host) = self.login()?;
        if let Some(container) = self.database_container(host.as_deref())? {
            if self.teller == Teller::Engine {
                let own = |name: &str| container.environment.get(name).map(str::to_owned);
                let has_user = own("POSTGRES_USER").is_some();
                // Which of the server's databases is Immich's, Immich knows best. As whom to speak to it, the container: whoever is inside is trusted
                // as its administrator.
                let name = connection.said_database().map(str::to_owned).or_else(|| own("POSTGRES_DB"));
                let user = connection.user().filter(|_| !has_user).map(str::to_owned);
                let password = connection.password().filter(|_| !has_user && own("POSTGRES_PASSWORD").is_none()).cloned();
                let database = Database::InContainer { container: container.name.clone(), user, name, password };
                return Ok(Found { value: database, origin: environment_of(container) });
            }
            // No program can be run in it: it is reached as the network has it.
            let port = container.ports.iter().find(|port| port.inside == 5432);
            let reached = match port {
                Some(port) => connection.clone().with_host(port.address.as_deref().unwrap_or("127.0.0.1")).with_port(port.host),
                None => connection.clone().with_host(host.as_deref().unwrap_or(DATABASE_HOST)),
            };
            let own = |name: &str| container.environment.get(name);
            let mut from_container = Connection::new().with_user(own("POSTGRES_USER").unwrap_or("postgres"));
            from_container = from_container.with_database(own("POSTGRES_DB").unwrap_or_default());
            if let Some(password) = own("POSTGRES_PASSWORD") {
                from_container = from_container.with_password(Password::new(password));
            }
            return Ok(Found { value: Database::Elsewhere(reached.or(from_container)), origin: environment_of(container) });
        }
        if host.is_none() {
            return Err(DiscoverError::NoDatabase { server: self.server.name.clone() });
        }
        let connection = connection.or(Connection::new().with_user("postgres"));
        Ok(Found { value: Database::Elsewhere(connection), origin: environment_of(&self.server) })
    }

    /// Variables of Immich's server that name a file inside of it, which is not read.
    #[must_use]
    pub fn files_of_secrets(&self) -> Vec<&'static str> {
        let names = [("DB_URL_FILE", "DB_URL"), ("DB_HOSTNAME_FILE", "DB_HOSTNAME"), ("DB_USERNAME_FILE", "DB_USERNAME"), ("DB_PASSWORD_FILE", "DB_PASSWORD")];
        let more = [("DB_DATABASE_NAME_FILE", "DB_DATABASE_NAME")];
        let is_there = |name: &str| self.server.environment.get(name).is_some();
        names.into_iter().chain(more).filter(|(file, plain)| is_there(file) && !is_there(plain)).map(|(file, _)| file).collect()
    }

    /// What the server's environment says of the database, and its host where that is said.
    fn login(&self) -> Result<(Connection, Option<String>), DiscoverError> {
        let said = |name: &str| self.server.environment.get(name);
        if let Some(url) = said("DB_URL") {
            let invalid = |source: InvalidConnection| DiscoverError::Url { container: self.server.name.clone(), source };
            let connection = Connection::parse(url).map_err(invalid)?;
            let host = connection.host().map(str::to_owned);
            return Ok((connection, host));
        }
        let mut connection = Connection::new().with_user(said("DB_USERNAME").unwrap_or_default()).with_database(said("DB_DATABASE_NAME").unwrap_or_default());
        if let Some(password) = said("DB_PASSWORD") {
            connection = connection.with_password(Password::new(password));
        }
        if let Some(port) = said("DB_PORT").and_then(|port| port.parse().ok()) {
            connection = connection.with_port(port);
        }
        if let Some(mode) = said("DB_SSL_MODE") {
            connection = connection.with_variable("PGSSLMODE", mode);
        }
        let host = said("DB_HOSTNAME").map(str::to_owned);
        if let Some(host) = &host {
            connection = connection.with_host(host);
        }
        Ok((connection, host))
    }

    /// The database's container, if it is one.
    fn database_container(&self, host: Option<&str>) -> Result<Option<&Container>, DiscoverError> {
        let name = host.unwrap_or(DATABASE_HOST);
        let is_called = |container: &&Container| container.service == name || container.name == name || container.aliases.contains(name);
        let has_address = |container: &&Container| container.addresses.contains(name);
        let meets = |container: &&Container| container.networks.intersection(&self.server.networks).next().is_some();
        let is_it = |container: &&Container| container.id != self.server.id && (is_called(container) || has_address(container));
        if let Some(found) = self.own.iter().find(is_it).or_else(|| self.others.iter().filter(meets).find(is_it)) {
            return Ok(Some(found));
        }
        // In a pod all share one network, and a server on the host's sees the database's port there.
        let is_near = host.is_none_or(|host| matches!(host, "localhost" | "127.0.0.1" | "::1"));
        if !is_near {
            return Ok(None);
        }
        let mut found: Vec<_> = self.own.iter().filter(|container| is_database(container)).collect();
        if found.len() > 1 && found.iter().any(|container| is_called_database(container)) {
            found.retain(|container| is_called_database(container));
        }
        match found.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => Err(DiscoverError::SeveralDatabases { found: several.iter().map(|container| container.name.clone()).collect() }),
        }
    }

    /// What is known of the files below `paths`, which are import paths of external libraries; see [`External`].
    #[must_use]
    pub fn externals(&self, paths: &[String], here: &Here) -> Vec<External> {
        external::find(self, paths, here)
    }
}

fn is_called_database(container: &Container) -> bool {
    DATABASE.iter().any(|name| container.service == *name || container.name == *name)
}

fn is_database(container: &Container) -> bool {
    DATABASE_IMAGES.contains(&image_name(&container.image)) || is_called_database(container)
}

/// Whether a path that somebody else wrote is absolute and goes nowhere but down.
fn is_plain(path: &Path) -> bool {
    use std::path::Component;
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

impl<T: fmt::Display> fmt::Display for Found<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.value, self.origin)
    }
}

impl From<NotMounted> for DiscoverError {
    fn from(error: NotMounted) -> Self {
        Self::NotMounted(error)
    }
}
