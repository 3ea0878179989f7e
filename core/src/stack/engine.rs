//! The connection to a container engine: Docker, rootless Docker, or Podman where it speaks Docker's API.

use bollard::Docker;
use bollard::errors::Error;
use std::borrow::Cow;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// How long the engine may take to answer a request, in seconds. Requests that wait by their nature (stopping a container) say how long themselves.
const ANSWER_SECONDS: u64 = 30;

/// Where an engine may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A path, `unix://PATH` or `tcp://HOST:PORT`.
    pub address: String,
    /// Who says so: `--docker-host`, `DOCKER_HOST`, "Docker's context `nas`", "the usual place".
    pub origin: String,
}

/// An engine that answers.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    address: String,
}

/// Why an engine cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No way to reach it that is understood.
    #[error("`{address}` is no address of Docker that is understood")]
    Address {
        /// The address.
        address: String,
    },
    /// There is no socket, or this user may not use it.
    #[error("cannot reach Docker at {address}")]
    Socket {
        /// Where.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// It does not answer.
    #[error("cannot reach Docker at {address}")]
    NoAnswer {
        /// Where.
        address: String,
        /// Why.
        source: Error,
    },
    /// None of the places where one may be has one.
    #[error("no container engine can be reached ({})", list(.tried))]
    Nowhere {
        /// What was tried, and what each said.
        tried: Vec<EngineError>,
    },
    /// It could not do what was asked.
    #[error("Docker cannot {action}")]
    Refused {
        /// What it was asked to do, and of what: "stop the container `immich_server`".
        action: String,
        /// Why.
        source: Error,
    },
}

fn list(tried: &[EngineError]) -> String {
    let tell = |error: &EngineError| match error {
        EngineError::Socket { address, source } => format!("{address}: {source}"),
        EngineError::NoAnswer { address, source } => format!("{address}: {source}"),
        other => other.to_string(),
    };
    tried.iter().map(tell).collect::<Vec<_>>().join("; ")
}

impl EngineError {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'static, str>> {
        Some(Cow::Borrowed(match self {
            Self::Address { .. } => "give the path of Docker's socket, unix://PATH or tcp://HOST:PORT; TLS and SSH are not spoken",
            Self::Socket { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or add this user to the group `docker` (which is as much as root) and log in again"
            }
            Self::Socket { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                "there is no such socket: start Docker, or name its socket with --docker-host (in a container: mount /var/run/docker.sock)"
            }
            Self::Socket { .. } | Self::NoAnswer { .. } => "check that Docker runs (`docker ps`), and that --docker-host (DOCKER_HOST) names it",
            Self::Nowhere { tried } => {
                // What somebody may not use is there; that is the one to mend.
                let denied = tried.iter().find(|error| matches!(error, Self::Socket { source, .. } if source.kind() == io::ErrorKind::PermissionDenied));
                return denied.or(tried.first()).and_then(Self::hint);
            }
            Self::Refused { .. } => return None,
        }))
    }

    /// Whether nothing speaks for an engine on this machine: no socket anywhere.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        match self {
            Self::Socket { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Nowhere { tried } => tried.iter().all(Self::is_absent),
            _ => false,
        }
    }

    /// Whether the engine is not there, or went away: what is asked of it again later may be answered.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            Self::Address { .. } => false,
            Self::Socket { .. } | Self::NoAnswer { .. } | Self::Nowhere { .. } => true,
            // An answer with a status is one.
            Self::Refused { source, .. } => !matches!(source, Error::DockerResponseServerError { .. }),
        }
    }

    /// Whether the engine answered that there is no such thing.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Refused { source: Error::DockerResponseServerError { status_code: 404, .. }, .. })
    }
}

impl Engine {
    /// Connects to the engine at `address` (a path, `unix://PATH`, `tcp://HOST:PORT`) and asks it for its version.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn connect(address: &str) -> Result<Self, EngineError> {
        let version = bollard::API_DEFAULT_VERSION;
        let no_answer = |source| EngineError::NoAnswer { address: address.to_owned(), source };
        let path = address.strip_prefix("unix://").or_else(|| address.starts_with('/').then_some(address));
        let docker = if let Some(path) = path {
            // Said in the file system's words; the client library has only its own.
            probe(Path::new(path)).map_err(|source| EngineError::Socket { address: address.to_owned(), source })?;
            Docker::connect_with_unix(address, ANSWER_SECONDS, version)
        } else if address.starts_with("tcp://") || address.starts_with("http://") {
            Docker::connect_with_http(address, ANSWER_SECONDS, version)
        } else {
            return Err(EngineError::Address { address: address.to_owned() });
        };
        // An old engine knows no new version of the API.
        let docker = docker.map_err(no_answer)?.negotiate_version().await.map_err(no_answer)?;
        Ok(Self { docker, address: address.to_owned() })
    }

    /// Connects to the first of these that answers.
    ///
    /// # Errors
    /// What the only one said; [`EngineError::Nowhere`] with what each of several said.
    pub async fn connect_to_first(addresses: &[Address]) -> Result<Self, EngineError> {
        let mut tried = Vec::new();
        for Address { address, .. } in addresses {
            match Self::connect(address).await {
                Ok(engine) => return Ok(engine),
                Err(error) => tried.push(error),
            }
        }
        Err(match (tried.pop(), tried.is_empty()) {
            (Some(only), true) => only,
            (last, _) => EngineError::Nowhere { tried: tried.into_iter().chain(last).collect() },
        })
    }

    /// Its API.
    #[must_use]
    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Names what was asked of the engine.
pub(crate) fn refused(action: impl Into<String>) -> impl FnOnce(Error) -> EngineError {
    move |source| EngineError::Refused { action: action.into(), source }
}

fn probe(path: &Path) -> io::Result<()> {
    UnixStream::connect(path).map(drop)
}
