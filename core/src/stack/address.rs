//! Where a container engine may be, in the order in which `docker` and Podman's tools look.
//!
//! Facts: Docker's documentation, "Docker contexts" and "Rootless mode"; Docker CLI's source, `cli/context/store` (the folder of a context is the
//! SHA-256 of its name); Podman's documentation, `podman-system-service`.

use super::engine::Address;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The socket of an engine that root runs.
const SYSTEM: &str = "unix:///var/run/docker.sock";

/// Podman's, run by root.
const PODMAN: &str = "unix:///run/podman/podman.sock";

/// A context's name that means: none.
const DEFAULT_CONTEXT: &str = "default";

/// What the caller's environment says; nothing here reads it.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// An address that was said, and by what: only that one is tried.
    pub said: Option<Address>,
    /// `DOCKER_CONTEXT`.
    pub context: Option<String>,
    /// `DOCKER_CONFIG`, else `.docker` in the user's home.
    pub config_folder: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_folder: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "currentContext")]
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "Endpoints", default)]
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(rename = "Host")]
    host: Option<String>,
}

/// Where an engine may be, the likeliest first; never empty.
#[must_use]
pub fn addresses(surroundings: &Surroundings) -> Vec<Address> {
    if let Some(said) = &surroundings.said {
        return vec![said.clone()];
    }
    let usual = |address: &str| Address { address: address.to_owned(), origin: "the usual place".to_owned() };
    let below_runtime = |name: &str| surroundings.runtime_folder.as_ref().map(|folder| usual(&format!("unix://{}", folder.join(name).display())));
    let rest = [Some(usual(SYSTEM)), below_runtime("docker.sock"), below_runtime("podman/podman.sock"), Some(usual(PODMAN))];
    let mut found: Vec<Address> = Vec::new();
    for address in context(surroundings).into_iter().chain(rest.into_iter().flatten()) {
        if found.iter().all(|earlier| earlier.address != address.address) {
            found.push(address);
        }
    }
    found
}

/// The engine of the context that `docker` uses. What cannot be read says nothing: `docker` itself would complain.
fn context(surroundings: &Surroundings) -> Option<Address> {
    let folder = surroundings.config_folder.as_ref()?;
    let name = match &surroundings.context {
        Some(name) => name.clone(),
        None => read::<Config>(&folder.join("config.json"))?.current_context?,
    };
    if name.is_empty() || name == DEFAULT_CONTEXT {
        return None;
    }
    let meta: Meta = read(&folder.join("contexts/meta").join(hex::encode(Sha256::digest(name.as_bytes()))).join("meta.json"))?;
    let address = meta.endpoints.get("docker")?.host.clone().filter(|host| !host.is_empty())?;
    Some(Address { address, origin: format!("Docker's context `{name}`") })
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(addresses: &[Address]) -> Vec<&str> {
        addresses.iter().map(|address| address.address.as_str()).collect()
    }

    #[test]
    fn what_is_said_is_the_only_one() {
        let said = Address { address: "tcp://proxy:2375".to_owned(), origin: "DOCKER_HOST".to_owned() };
        let surroundings = Surroundings { said: Some(said.clone()), runtime_folder: Some(PathBuf::from("/run/user/1000")), ..Surroundings::default() };
        assert_eq!(addresses(&surroundings), [said]);
    }

    #[test]
    fn the_usual_places_are_looked_at_in_order() {
        assert_eq!(plain(&addresses(&Surroundings::default())), [SYSTEM, PODMAN]);
        let rootless = Surroundings { runtime_folder: Some(PathBuf::from("/run/user/1000")), ..Surroundings::default() };
        assert_eq!(plain(&addresses(&rootless)), [SYSTEM, "unix:///run/user/1000/docker.sock", "unix:///run/user/1000/podman/podman.sock", PODMAN]);
    }

    #[test]
    fn the_context_of_docker_comes_first_and_a_broken_one_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let surroundings = Surroundings { config_folder: Some(folder.path().to_owned()), ..Surroundings::default() };
        std::fs::write(folder.path().join("config.json"), r#"{"auths":{},"currentContext":"nas"}"#).unwrap();
        assert_eq!(plain(&addresses(&surroundings)), [SYSTEM, PODMAN]);
        // sha256("nas"), as `docker context create nas` names the folder.
        let meta = folder.path().join("contexts/meta").join(hex::encode(Sha256::digest(b"nas")));
        std::fs::create_dir_all(&meta).unwrap();
        std::fs::write(meta.join("meta.json"), r#"{"Name":"nas","Metadata":{},"Endpoints":{"docker":{"Host":"tcp://nas:2375","SkipTLSVerify":false}}}"#)
            .unwrap();
        let found = addresses(&surroundings);
        assert_eq!(plain(&found), ["tcp://nas:2375", SYSTEM, PODMAN]);
        assert_eq!(found[0].origin, "Docker's context `nas`");
        // DOCKER_CONTEXT outweighs the file.
        let back = Surroundings { context: Some("default".to_owned()), ..surroundings };
        assert_eq!(plain(&addresses(&back)), [SYSTEM, PODMAN]);
    }
}
