//! Why it cannot be told what Immich is here.

use crate::database::connection::InvalidConnection;
use crate::stack::own::NotMounted;
use std::io;
use std::path::PathBuf;

/// How many names a message has at most.
const NAMES_MAX: usize = 12;

/// Why something of Immich was not found.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// No container is Immich's server.
    #[error("no Immich is here: {}", none(.containers))]
    NoImmich {
        /// The containers that there are.
        containers: Vec<String>,
    },
    /// There are several.
    #[error("there are several Immich here: {}", list(.found))]
    Several {
        /// What they are called.
        found: Vec<String>,
    },
    /// None is called so.
    #[error("{}", not_there(.name, .services.as_deref()))]
    NotThere {
        /// What was said.
        name: String,
        /// Services of the project that is called so, where there is one.
        services: Option<Vec<String>>,
        /// What there is.
        found: Vec<String>,
    },
    /// None belongs to this folder.
    #[error("no container of an Immich was made from `{}`", .folder.display())]
    NotInFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// The media location is in the container itself.
    #[error("the media location `{}` of the container `{container}` is no mount: the photos are in the container itself, and gone when it is made anew{}", .path.display(), beneath(.below))]
    Unmounted {
        /// The server's container.
        container: String,
        /// The media location, as the server sees it.
        path: PathBuf,
        /// What is mounted below it.
        below: Vec<String>,
    },
    /// A folder of the host cannot be looked at.
    #[error("cannot look at `{}`, which the container `{container}` has as `{}`", .path.display(), .inside.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Where the container has it.
        inside: PathBuf,
        /// The container.
        container: String,
        /// The volume, where it is one.
        volume: Option<String>,
        /// Why.
        source: io::Error,
    },
    /// A folder of the host is not where this program runs.
    #[error(transparent)]
    NotMounted(NotMounted),
    /// `DB_URL` is none.
    #[error("cannot understand DB_URL of the container `{container}`")]
    Url {
        /// The container.
        container: String,
        /// Why.
        source: InvalidConnection,
    },
    /// Which container has the database cannot be told.
    #[error("several containers may have the database: {}", list(.found))]
    SeveralDatabases {
        /// Their names.
        found: Vec<String>,
    },
    /// There is no container of a database.
    #[error("no container has the database of `{server}`, and its environment names no other")]
    NoDatabase {
        /// The server's container.
        server: String,
    },
}

fn list(names: &[String]) -> String {
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut shown: Vec<_> = names.iter().take(NAMES_MAX).map(|name| format!("`{name}`")).collect();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    shown.join(", ")
}

fn none(containers: &[String]) -> String {
    if containers.is_empty() { "the engine has no container".to_owned() } else { format!("none of the containers is its server ({})", list(containers)) }
}

fn not_there(name: &str, services: Option<&[String]>) -> String {
    match services {
        Some(services) => format!("the project `{name}` has no Immich server (its services: {})", list(services)),
        None => format!("there is no project `{name}`"),
    }
}

fn beneath(below: &[String]) -> String {
    if below.is_empty() { String::new() } else { format!(" (only {} are mounted)", list(below)) }
}

impl DiscoverError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NoImmich { .. } => {
                "make its containers (`docker compose create`); or say --library DIR, and --database-container NAME or --database URL; or name another engine \
                 with --docker-host"
                    .to_owned()
            }
            Self::Several { .. } => "say which with --compose-project NAME".to_owned(),
            Self::NotThere { found, .. } if found.is_empty() => "no Immich is here: `docker compose ls --all` shows which projects there are".to_owned(),
            Self::NotThere { found, .. } => format!("say --compose-project with one of {}", list(found)),
            Self::NotInFolder { .. } => {
                "see that IMMICH_DIR (--immich-dir) is the folder of the Compose file that the containers were made from, or leave it out".to_owned()
            }
            Self::Unmounted { .. } => {
                "give the server a folder of the host: `${UPLOAD_LOCATION}:/data` in its volumes (copy the files out first, with `docker cp`); or say \
                 --library DIR if they are elsewhere"
                    .to_owned()
            }
            Self::Unreadable { volume: Some(_), .. } => {
                "a volume's folder can be read by root, on the machine of the engine: run as root; with a rootless engine, Docker Desktop or an engine elsewhere, run \
                 this program in a container that has the volume mounted"
                    .to_owned()
            }
            Self::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or as a user that may read and enter every folder of it".to_owned()
            }
            Self::Unreadable { .. } => {
                "is the engine on another machine, is a disk not mounted, or is this program in a container that the engine does not know? Run it where the \
                 folder is, or say --library DIR"
                    .to_owned()
            }
            Self::NotMounted(error) => error.hint(),
            Self::Url { source, .. } => {
                format!("{}; or say --database URL", source.hint().unwrap_or("mend it"))
            }
            Self::SeveralDatabases { .. } => "say which with --database-container NAME".to_owned(),
            Self::NoDatabase { .. } => {
                "make it (`docker compose create`), or say --database-container NAME or --database URL; --no-database backs up the files alone".to_owned()
            }
        }
    }
}
