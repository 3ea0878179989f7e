//! Whether this program runs in a container itself, in which, and where a folder of the host is there.
//!
//! Facts: an engine mounts `/etc/hostname` of a container from a folder that is named after the container's id (Docker: `containers/ID/`, Podman:
//! `overlay-containers/ID/userdata/`), with every kind of network; `/.dockerenv` and `/run/.containerenv` are there in containers alone. The fields of
//! `/proc/self/mountinfo` are in proc(5).

use super::project::{Container, Mount};
use std::net::ToSocketAddrs as _;
use std::path::{Path, PathBuf};

/// Length of a container's id.
const ID_LENGTH: usize = 64;

/// Files that the engine mounts from the folder of the container.
const MOUNTED: [&str; 3] = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];

/// What a process can see of the container that it is in.
#[derive(Debug, Clone, Default)]
pub struct Signs {
    /// `/proc/self/mountinfo`.
    pub mountinfo: String,
    /// `/proc/self/cgroup`.
    pub cgroup: String,
    /// The name of the machine, as it sees itself.
    pub hostname: String,
    /// Whether there is a file that only containers have.
    pub is_marked: bool,
}

/// Where this program runs.
#[derive(Debug, Clone, Default)]
pub enum Here {
    /// On the host, as far as one can tell.
    #[default]
    Host,
    /// In a container of the engine that was asked.
    Container {
        /// Its name.
        name: String,
        /// What of the host is in it.
        mounts: Vec<Mount>,
    },
}

/// A folder of the host is not mounted where this program runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` of the host is not mounted in the container `{container}`, in which this program runs", .host.display())]
pub struct NotMounted {
    /// The folder, on the host.
    pub host: PathBuf,
    /// The container.
    pub container: String,
}

impl NotMounted {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        let host = self.host.display();
        format!("add `- {host}:{host}:ro` to the volumes of the container `{}`, and make it anew", self.container)
    }
}

/// Where a line of `mountinfo` has what it mounts from, if that is one of [`MOUNTED`].
fn root_of(line: &str) -> Option<&str> {
    // number, parent, device, root, where it is mounted
    let mut fields = line.split(' ').skip(3);
    let (root, place) = (fields.next()?, fields.next()?);
    // On the host there are mounts that belong to containers; none of them is one of these files.
    MOUNTED.contains(&place).then_some(root)
}

impl Signs {
    /// Those of this process. What cannot be read is empty.
    #[must_use]
    pub fn look() -> Self {
        let read = |path: &str| std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Self {
            mountinfo: read("/proc/self/mountinfo"),
            cgroup: read("/proc/self/cgroup"),
            hostname: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            is_marked: ["/.dockerenv", "/run/.containerenv"].iter().any(|path| Path::new(path).exists()),
        }
    }

    /// Ids of containers that this process may be in.
    fn ids(&self) -> Vec<&str> {
        // With control groups of the first version: 4:memory:/docker/ID, or …/docker-ID.scope.
        let groups = self.cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter_map(|path| path.rsplit('/').next());
        let mut ids: Vec<_> = self.mountinfo.lines().filter_map(root_of).flat_map(|root| root.split('/')).collect();
        ids.extend(groups.map(|name| name.trim_end_matches(".scope").rsplit('-').next().unwrap_or(name)));
        ids.retain(|text| text.len() == ID_LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit()));
        ids
    }

    /// Which of these containers this process is in.
    fn find<'a>(&self, containers: &'a mut [Container]) -> Option<&'a mut Container> {
        let ids = self.ids();
        let by_id = containers.iter().position(|container| ids.contains(&container.id.as_str()));
        // Its name, unless it was given another, is the beginning of its id.
        let by_name = || {
            let is_name = |container: &Container| self.hostname.len() >= 12 && container.id.starts_with(&self.hostname);
            containers.iter().position(is_name).filter(|_| self.is_marked)
        };
        let found = by_id.or_else(by_name)?;
        containers.get_mut(found)
    }
}

/// Marks the container that this program runs in and the one through which the engine at `address` is asked, and says where this program runs.
pub fn mark(containers: &mut [Container], signs: &Signs, address: &str) -> Here {
    if let Some(host) = address.strip_prefix("tcp://").or_else(|| address.strip_prefix("http://")) {
        let host = host.split('/').next().unwrap_or_default().rsplit_once(':').map_or(host, |(name, _)| name).trim_matches(['[', ']']);
        // By name inside of a network, by address where somebody wrote that.
        let resolved: Vec<_> = (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip().to_string()).collect()).unwrap_or_default();
        let is_it = |container: &&mut Container| {
            container.name == host || container.aliases.contains(host) || resolved.iter().any(|address| container.addresses.contains(address))
        };
        containers.iter_mut().filter(is_it).for_each(|container| container.serves_engine = true);
    }
    match signs.find(containers) {
        Some(own) => {
            own.is_self = true;
            Here::Container { name: own.name.clone(), mounts: own.mounts.clone() }
        }
        None => Here::Host,
    }
}

/// The place of `path` by the mount that is nearest above it, from inside a container to the host (`outwards`) or the other way.
pub(super) fn through<'a>(mounts: &'a [Mount], path: &Path, outwards: bool) -> Option<(PathBuf, &'a Mount)> {
    let sides = |mount: &'a Mount| if outwards { (mount.inside.as_path(), mount.host.as_path()) } else { (mount.host.as_path(), mount.inside.as_path()) };
    let above = mounts.iter().filter(|mount| path.starts_with(sides(mount).0));
    let mount = above.max_by_key(|mount| sides(mount).0.components().count())?;
    let (from, to) = sides(mount);
    let rest = path.strip_prefix(from).ok()?;
    Some((if rest.as_os_str().is_empty() { to.to_owned() } else { to.join(rest) }, mount))
}

impl Here {
    /// Where this program finds a folder of the host.
    ///
    /// # Errors
    /// It is not mounted here.
    pub fn path(&self, host: &Path) -> Result<PathBuf, NotMounted> {
        match self {
            Self::Host => Ok(host.to_owned()),
            Self::Container { name, mounts } => {
                through(mounts, host, false).map(|(path, _)| path).ok_or_else(|| NotMounted { host: host.to_owned(), container: name.clone() })
            }
        }
    }
}
