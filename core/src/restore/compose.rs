//! Bringing a snapshot back into a Compose project: where its files go, whether its Immich fits the dump, what a restore that died had done.
//!
//! The order is: the database alone is up, the dump is loaded, the files are placed behind the mounts, the rest is started, Immich answers. From the first
//! byte that is changed until all of it is there, Immich's server does not run: it would work on a library and a database that do not agree, and what it
//! writes would be in the way of the next try. What is to be up in the end is written down before anything is stopped or started, as a journal of
//! services ([`journal`]): `services start` brings it up whatever happens.

mod progress;

pub use progress::{Progress, Step};

use super::{RestoreError, Targets};
use crate::database::Client;
use crate::database::load::{self, LoadError, RowsDiffer};
use crate::event::Monitor;
use crate::listing::{self, ListError};
use crate::model::{ExternalName, InvalidPath, RootPath, decode_text};
use crate::repository::Session;
use crate::repository::log::SourceRoot;
use crate::repository::manifest::SnapshotRow;
use crate::stack::discover::{Database, DiscoverError, Place, Site};
use crate::stack::engine::EngineError;
use crate::stack::own::{Here, NotMounted};
use crate::stack::project::{Container, State};
use crate::stack::ready::NotReady;
use crate::stack::services::ServicesError;
use crate::stack::services::journal::{self, By, Journal, JournalError, Kept, Phase, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tokio_util::sync::CancellationToken;

/// The table in which Immich keeps its maintenance mode.
const METADATA: &str = "system_metadata";

/// Why a snapshot cannot come back into a Compose project.
#[derive(Debug, thiserror::Error)]
pub enum IntoProjectError {
    /// The restore itself.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// It cannot be told what Immich is there.
    #[error(transparent)]
    Discover(#[from] DiscoverError),
    /// The engine cannot be asked, or refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Services cannot be stopped or started.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// What is to be up cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The database's container does not come up.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// The snapshot's dump cannot be read.
    #[error(transparent)]
    Listing(#[from] ListError),
    /// Containers without a project.
    #[error("the container `{server}` belongs to no Compose project")]
    NoProject {
        /// Immich's server.
        server: String,
    },
    /// The stack's database is elsewhere.
    #[error("the database of `{project}` is in no container of it: it is {target}")]
    DatabaseElsewhere {
        /// The project.
        project: String,
        /// The database.
        target: String,
    },
    /// The database's container is of no service of the project.
    #[error("the container `{container}` of the database belongs to another project than `{project}`")]
    DatabaseOfOthers {
        /// The project.
        project: String,
        /// The database's container.
        container: String,
    },
    /// Immich runs.
    #[error("Immich's server runs in `{project}`: {}", .containers.join(", "))]
    Running {
        /// The project.
        project: String,
        /// Containers that run.
        containers: Vec<String>,
    },
    /// Immich never migrates down.
    #[error("the stack's Immich is {image}, and the dump is of {dump}: an older Immich cannot use a newer one's database")]
    OlderImage {
        /// Version of the image.
        image: String,
        /// Version in the dump.
        dump: String,
    },
    /// An external library goes nowhere.
    #[error("nothing of the host is mounted in the server where the external library `{name}` was, `{server_path}`")]
    NoMount {
        /// The external library.
        name: ExternalName,
        /// Where Immich saw it, in canonical text.
        server_path: String,
    },
    /// A folder of the host is not where this program runs.
    #[error(transparent)]
    NotMounted(#[from] NotMounted),
    /// A folder mounted in the media location has a name that none can have.
    #[error("cannot restore into `{}`, which is mounted in the media location", .path.display())]
    MountPath {
        /// Its path below the media location.
        path: PathBuf,
        /// Why.
        source: InvalidPath,
    },
    /// What a restore had done cannot be read or written.
    #[error("cannot {action} `{}`, which says how far the restore has come", .path.display())]
    Progress {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A backup stopped the services and died.
    #[error("a backup stopped the services of `{project}` and has not started them again")]
    StoppedByRun {
        /// The project.
        project: String,
    },
    /// Immich does not answer.
    #[error("the snapshot is back, and Immich's server does not answer after {waited_s} s: {what}")]
    Silent {
        /// Its container.
        container: String,
        /// How long was waited, in seconds.
        waited_s: u64,
        /// What it said last, or what was tried.
        what: String,
    },
    /// Asked to stop.
    #[error("interrupted; the same command goes on from there")]
    Interrupted,
}

impl From<LoadError> for IntoProjectError {
    fn from(error: LoadError) -> Self {
        Self::Restore(error.into())
    }
}

impl IntoProjectError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Restore(RestoreError::Load(LoadError::NotEmpty { .. })) => Some(
                "nothing was changed; a database on which Immich never ran is empty. To put the snapshot's in its place say --replace: a dump of what is \
                 there is stored in the repository first"
                    .to_owned(),
            ),
            Self::Restore(error) => error.hint(),
            Self::Discover(error) => Some(error.hint()),
            Self::Engine(error) => error.hint().map(Into::into),
            Self::Services(error) => error.hint(),
            Self::Journal(error) => error.hint(),
            Self::NotReady(error) => error.hint(),
            Self::Listing(error) => error.hint(),
            Self::NoProject { .. } => Some("stop Immich's server, restore with --to DIR and --database-container NAME, and start it".to_owned()),
            Self::DatabaseElsewhere { .. } | Self::DatabaseOfOthers { .. } => {
                Some("stop Immich's server, restore with --to DIR and --database URL (or --database-container NAME), and start it".to_owned())
            }
            Self::Running { .. } => Some(
                "nothing was changed; restore into a project on which Immich never ran (`docker compose create`). To put the snapshot in the place of what is \
                 there, say --replace: the services are stopped, a dump of the database is stored in the repository, and files that differ are left alone \
                 unless --overwrite is said too"
                    .to_owned(),
            ),
            Self::OlderImage { dump, .. } => Some(format!(
                "nothing was changed; set IMMICH_VERSION=v{} in the stack's .env, make the containers anew (`docker compose pull && docker compose create`), and run again",
                dump.trim_start_matches('v')
            )),
            Self::NoMount { name, server_path } => Some(format!(
                "nothing was changed; add `- /folder/of/the/host:{server_path}` to the volumes of Immich's server and make it anew, or say --external {name}=DIR where its files go"
            )),
            Self::NotMounted(error) => Some(error.hint()),
            Self::MountPath { .. } => None,
            Self::Progress { path, .. } => Some(format!("see that `{}` can be written to", path.parent().unwrap_or(path).display())),
            Self::StoppedByRun { .. } => Some("run `immich-backup services recover` first".to_owned()),
            Self::Silent { container, .. } => Some(format!(
                "`docker logs {container}` says what it does (a first start may take long: --wait gives it more time); if it is reached elsewhere, say --immich-url URL"
            )),
            Self::Interrupted => None,
        }
    }

    /// Whether the user asked to end.
    #[must_use]
    pub fn is_interruption(&self) -> bool {
        match self {
            Self::Interrupted | Self::NotReady(NotReady::Interrupted { .. }) | Self::Listing(ListError::Interrupted) => true,
            Self::Restore(RestoreError::Load(LoadError::Stopped)) => true,
            Self::Services(error) => error.is_interruption(),
            _ => false,
        }
    }
}

/// Whether the stack's Immich can use a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fit {
    /// It is of that very version.
    Same,
    /// It is newer, and will migrate the database.
    Newer,
    /// It is older: it cannot.
    Older,
    /// One of the two versions is not known.
    Unknown,
}

/// The numbers of a version like `v3.1.0` or `2.5.0-rc.1`.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let core = version.trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(|number| number.parse().ok());
    let mut next = || numbers.next().unwrap_or(Some(0));
    Some([next()?, next()?, next()?])
}

/// Whether an Immich of version `image` can use a dump of version `dump`.
#[must_use]
pub fn fit(image: Option<&str>, dump: Option<&str>) -> Fit {
    match (image.and_then(numbers), dump.and_then(numbers)) {
        (Some(image), Some(dump)) => match image.cmp(&dump) {
            std::cmp::Ordering::Equal => Fit::Same,
            std::cmp::Ordering::Greater => Fit::Newer,
            std::cmp::Ordering::Less => Fit::Older,
        },
        _ => Fit::Unknown,
    }
}

/// Where a snapshot goes in a project.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The project.
    pub project: String,
    /// The folder of the media location, where this program finds it.
    pub media: PathBuf,
    /// Where Immich's server sees it.
    pub media_location: PathBuf,
    /// Folders that are mounted inside of it.
    pub mounts: Vec<(RootPath, PathBuf)>,
    /// Folders of external libraries.
    pub externals: BTreeMap<ExternalName, PathBuf>,
    /// The database.
    pub database: Database,
    /// Its container.
    pub database_container: Container,
    /// Immich's version as its image says, e.g. `3.1.0`.
    pub image_version: Option<String>,
}

impl Destination {
    /// Finds it in `site`: the media location and the external libraries of `roots` behind the mounts of Immich's server. What `said` names goes there.
    ///
    /// # Errors
    /// Something goes nowhere, or the database is in no container of the project.
    pub fn find(site: &Site, here: &Here, roots: &[SourceRoot], said: &BTreeMap<ExternalName, PathBuf>) -> Result<Self, IntoProjectError> {
        let Some(project) = site.project.as_ref().map(|project| project.name.clone()) else {
            return Err(IntoProjectError::NoProject { server: site.server.name.clone() });
        };
        let database = site.database()?.value;
        let Database::InContainer { container, .. } = &database else {
            return Err(IntoProjectError::DatabaseElsewhere { project, target: database.target() });
        };
        let of_others = || IntoProjectError::DatabaseOfOthers { project: project.clone(), container: container.clone() };
        let database_container = site.containers().iter().find(|found| found.name == *container).cloned().ok_or_else(of_others)?;
        let media = site.media_to_be(here)?.value;
        let at = |(path, folder): (PathBuf, PathBuf)| match RootPath::from_bytes(path.as_os_str().as_encoded_bytes()) {
            Ok(at) => Ok((at, folder)),
            Err(source) => Err(IntoProjectError::MountPath { path, source }),
        };
        let mounts = media.mounts.into_iter().map(at).collect::<Result<_, _>>()?;
        let mut externals = said.clone();
        for root in roots {
            let Some(name) = root.external.as_ref().filter(|name| !said.contains_key(name)) else { continue };
            externals.insert(name.clone(), external(site, here, name, root)?);
        }
        let image_version = site.version().map(|found| found.value);
        Ok(Self { project, media: media.path, media_location: media.server_path, mounts, externals, database, database_container, image_version })
    }

    /// The name of the database's service.
    #[must_use]
    pub fn database_service(&self) -> &str {
        &self.database_container.service
    }
}

fn external(site: &Site, here: &Here, name: &ExternalName, root: &SourceRoot) -> Result<PathBuf, IntoProjectError> {
    let text = root.server_path.as_ref().unwrap_or(&root.path);
    let no_mount = || IntoProjectError::NoMount { name: name.clone(), server_path: text.clone() };
    let path = decode_text(text).and_then(|bytes| String::from_utf8(bytes.into_owned()).ok()).unwrap_or_else(|| text.clone());
    match site.externals(&[path], here).into_iter().next().map(|found| found.place) {
        Some(Place::Found { path, .. }) => Ok(path),
        Some(Place::NotHere(error)) => Err(error.into()),
        Some(Place::Unmounted) | None => Err(no_mount()),
    }
}

/// Containers that run Immich's server, which would be at its library and its database meanwhile: in older stacks there is another of the same image.
#[must_use]
pub fn running(site: &Site) -> Vec<Container> {
    let is_it = |container: &&Container| container.service == site.server.service || container.image_id == site.server.image_id;
    site.containers().iter().filter(|container| container.state.is_up() && !container.is_needed_here()).filter(is_it).cloned().collect()
}

/// What is to be up in the end where Immich did not run: all services, as `docker compose up` would have it. Containers that this program needs, and those
/// that somebody has paused, are left as they are.
#[must_use]
pub fn to_be_up(site: &Site, destination: &Destination, engine: &str, snapshot: &str) -> Journal {
    let services = site.project.iter().flat_map(|project| &project.services).map(|service| Service {
        name: service.name.clone(),
        is_database: service.name == destination.database_service(),
        depends_on: service.depends_on.clone(),
        asked: true,
        containers: service.containers.iter().map(kept).collect(),
    });
    let mut journal = Journal::new(&destination.project, engine, By::Hand, services.collect());
    journal.run = Some(run_of(snapshot));
    journal.phase = Phase::DatabaseAlone;
    journal
}

/// What a journal says that a restore of this snapshot left.
#[must_use]
pub fn run_of(snapshot: &str) -> String {
    format!("restore of {snapshot}")
}

fn kept(container: &Container) -> Kept {
    Kept {
        id: container.id.clone(),
        name: container.name.clone(),
        number: container.number,
        state: if container.state == State::Paused { State::Paused } else { State::Running },
        // What it said before is nothing to go by.
        health: None,
        has_healthcheck: container.has_healthcheck,
        stop_timeout_s: container.stop_timeout.map(|timeout| timeout.as_secs()),
        tell_timeout: false,
        started_at: container.started_at,
        spared: container.is_needed_here(),
    }
}

/// In the journal that an outage has left: Immich's server and its database are to be up, whatever they did before.
pub fn add_needed(journal: &mut Journal, site: &Site, destination: &Destination, snapshot: &str) {
    journal.run = Some(run_of(snapshot));
    for service in &mut journal.services {
        if service.name == site.server.service || service.name == destination.database_service() {
            for container in service.containers.iter_mut().filter(|container| matches!(container.state, State::Created | State::Exited | State::Dead)) {
                container.state = State::Running;
            }
        }
    }
}

/// Which database it is, on which server: the same text means the same database.
///
/// # Errors
/// It cannot be asked.
pub async fn identity(client: &Client) -> Result<String, IntoProjectError> {
    let sql =
        "SELECT c.system_identifier || '/' || d.oid FROM pg_catalog.pg_control_system() c, pg_catalog.pg_database d WHERE d.datname = current_database();\n";
    Ok(client.query(sql).await.map_err(LoadError::from)?)
}

/// Whether the database holds the dump of `snapshot`, as far as counting the rows of each table tells.
///
/// # Errors
/// The dump or the database cannot be read.
pub async fn holds_dump(
    session: &Session,
    snapshot: &SnapshotRow,
    client: &Client,
    monitor: &dyn Monitor,
    stop: &CancellationToken,
) -> Result<bool, IntoProjectError> {
    let listed = listing::list(session, snapshot, monitor, stop).await?;
    let rows = listed.inventory.rows();
    let differ = load::differences(rows, &load::count_rows(client, rows).await?);
    // A load ends Immich's maintenance mode, which is one row.
    let is_maintenance = |rows: &RowsDiffer| rows.table == METADATA && rows.expected == rows.found.map(|found| found + 1);
    Ok(differ.iter().all(is_maintenance))
}

/// Makes the `.immich` markers that are missing in a media location, and returns how many.
///
/// # Errors
/// A folder cannot be made or written to.
pub fn make_markers(media: &Path, mounts: &[(RootPath, PathBuf)]) -> Result<u64, RestoreError> {
    let targets = Targets::of_media(media, mounts);
    let made = targets.make_markers()?;
    targets.sync()?;
    Ok(made)
}

/// Services of a journal that are to be up, by name.
#[must_use]
pub fn services_of(journal: &Journal) -> BTreeSet<String> {
    journal.services.iter().filter(|service| service.taken().next().is_some()).map(|service| service.name.clone()).collect()
}

/// The folder of journals below the program's folder of state.
#[must_use]
pub fn journals(state_base: &Path) -> PathBuf {
    state_base.join("services")
}

/// Whether the journal is one that a restore may take over: one of `services stop`, or of an earlier restore.
///
/// # Errors
/// A backup stopped the services: they have to be started first.
pub fn may_take(journal: &Journal) -> Result<(), IntoProjectError> {
    if journal.by == By::Run { Err(IntoProjectError::StoppedByRun { project: journal.project.clone() }) } else { Ok(()) }
}

/// The journal of a project, held.
///
/// # Errors
/// Somebody else is at the project's services.
pub fn hold(state_base: &Path, project: &str) -> Result<journal::Hold, IntoProjectError> {
    Ok(journal::Hold::take(&journals(state_base), project, "a restore")?)
}

#[cfg(test)]
mod tests;
