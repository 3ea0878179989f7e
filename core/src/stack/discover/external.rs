//! External libraries: from the import paths that Immich's database names to folders of the host.

use super::{Site, is_plain};
use crate::model::{ExternalName, InvalidPath};
use crate::stack::own::{Here, NotMounted, through};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The longest name that is made of a path; an [`ExternalName`] has 64 characters.
const NAME_MAX: usize = 48;

/// A folder of an external library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Where Immich's server sees it.
    pub server_path: PathBuf,
    /// Where this program finds it.
    pub place: Place,
}

/// Where an external library is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Here, with folders below that come from elsewhere (relative, and where they are).
    Found {
        /// The folder.
        path: PathBuf,
        /// What is mounted below it.
        mounts: Vec<(PathBuf, PathBuf)>,
    },
    /// Nothing of the host is mounted there: it is in the container itself, or nowhere.
    Unmounted,
    /// On the host, and not where this program runs.
    NotHere(NotMounted),
}

/// An external library that an earlier snapshot has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// What it is kept under.
    pub name: ExternalName,
    /// Where Immich's server saw it.
    pub server_path: PathBuf,
}

/// The folders that hold these import paths, the outer ones alone, by path. What lies in the media location is not among them.
pub(super) fn find(site: &Site, paths: &[String], here: &Here) -> Vec<External> {
    let media = site.media_location().value;
    let mut wanted: BTreeSet<PathBuf> = BTreeSet::new();
    for path in paths {
        // Components drop a slash at the end, and doubled ones.
        let path: PathBuf = Path::new(path).components().collect();
        if path.starts_with(&media) {
            continue;
        }
        let is_mounted = is_plain(&path) && through(&site.server.mounts, &path, true).is_some();
        let below: Vec<_> = site.server.mounts.iter().filter(|mount| mount.inside.starts_with(&path)).map(|mount| mount.inside.clone()).collect();
        if is_mounted || below.is_empty() || !is_plain(&path) {
            wanted.insert(path);
        } else {
            // A folder of the container in which several are mounted.
            wanted.extend(below.into_iter().filter(|inside| !inside.starts_with(&media)));
        }
    }
    let mut found: Vec<External> = Vec::new();
    // Sorted, an outer folder comes before what lies in it.
    for path in wanted {
        if found.iter().any(|outer| path.starts_with(&outer.server_path)) {
            continue;
        }
        let place = place(site, &path, here);
        found.push(External { server_path: path, place });
    }
    found
}

fn place(site: &Site, path: &Path, here: &Here) -> Place {
    let Some((host, _)) = Some(path).filter(|path| is_plain(path)).and_then(|path| through(&site.server.mounts, path, true)) else { return Place::Unmounted };
    let path_here = match here.path(&host) {
        Ok(path) => path,
        Err(error) => return Place::NotHere(error),
    };
    let mut mounts = Vec::new();
    for mount in &site.server.mounts {
        let Some(below) = mount.inside.strip_prefix(path).ok().filter(|below| !below.as_os_str().is_empty()) else { continue };
        match here.path(&mount.host) {
            Ok(path) => mounts.push((below.to_owned(), path)),
            Err(error) => return Place::NotHere(error),
        }
    }
    mounts.sort();
    Place::Found { path: path_here, mounts }
}

impl External {
    /// The name to keep it under: the one that an earlier snapshot has for this path, else one made of the path (`/mnt/media/photos` →
    /// `mnt-media-photos`). It is none of `taken`.
    ///
    /// # Errors
    /// None that is known: what is made of a path is a name.
    pub fn name(&self, known: &[Known], taken: &BTreeSet<ExternalName>) -> Result<ExternalName, InvalidPath> {
        let server_path: PathBuf = self.server_path.components().collect();
        if let Some(earlier) = known.iter().find(|known| known.server_path.components().collect::<PathBuf>() == server_path && !taken.contains(&known.name)) {
            return Ok(earlier.name.clone());
        }
        let text = server_path.to_string_lossy();
        let clean = |text: &str| {
            let mut name = String::new();
            for character in text.chars() {
                match character {
                    character if character.is_ascii_alphanumeric() || matches!(character, '.' | '_') => name.push(character),
                    _ if name.ends_with('-') => {}
                    _ => name.push('-'),
                }
            }
            name.trim_matches(['-', '.', '_']).to_owned()
        };
        let plain = clean(&text);
        let others: BTreeSet<_> = known.iter().map(|known| &known.name).collect();
        let hash = hex::encode(Sha256::digest(server_path.as_os_str().as_encoded_bytes()));
        let hash = hash.get(..8).unwrap_or_default();
        // Names that people or earlier runs gave to something else are theirs.
        let is_free = |name: &ExternalName| !taken.contains(name) && !others.contains(name);
        let short: String = plain.chars().take(NAME_MAX).collect();
        let hashed = || format!("{}-{hash}", short.trim_matches(['-', '.', '_'])).trim_start_matches('-').to_owned();
        let first = if plain.len() <= NAME_MAX && !plain.is_empty() { plain } else { hashed() };
        let tries = [first, hashed()];
        let free = tries.iter().filter_map(|name| name.parse().ok()).find(is_free);
        free.map_or_else(|| format!("external-{hash}").parse(), Ok)
    }
}
