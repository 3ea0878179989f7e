//! From the paths that Immich's server writes into its database to files of the backup.

use crate::model::{ExternalName, FilePath, Root, RootPath};
use serde::{Deserialize, Serialize};

/// Media locations of the images that Immich has had (before and since 1.137), and what stands in the database of servers that write
/// paths relative to their own folder (before 1.136).
pub const USUAL_MEDIA_LOCATIONS: [&str; 3] = ["/data", "/usr/src/app/upload", "upload"];

/// Where a path of the database belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a root that is part of the backup.
    In(FilePath),
    /// Nowhere in the backup: an external library that was not included, or a path that makes no sense.
    Outside,
}

/// Where the server sees what is backed up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locations {
    /// Media locations, the likeliest first; no slash at the end.
    media: Vec<Vec<u8>>,
    /// External libraries, and where the server sees them; the longest path first, so that a library within another is found.
    externals: Vec<(Vec<u8>, ExternalName)>,
}

fn trimmed(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"./").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}

/// What follows `folder` and a slash.
fn below<'a>(path: &'a [u8], folder: &[u8]) -> Option<&'a [u8]> {
    path.strip_prefix(folder)?.strip_prefix(b"/")
}

impl Locations {
    /// Locations for external libraries that the server sees at these paths.
    #[must_use]
    pub fn new(externals: impl IntoIterator<Item = (ExternalName, Vec<u8>)>) -> Self {
        let mut externals: Vec<_> = externals.into_iter().map(|(name, path)| (trimmed(&path).to_vec(), name)).collect();
        externals.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self { media: USUAL_MEDIA_LOCATIONS.map(|path| path.as_bytes().to_vec()).to_vec(), externals }
    }

    /// Puts `path` before all other media locations: what the dump itself says, or the user.
    pub fn prefer_media(&mut self, path: &[u8]) {
        let path = trimmed(path).to_vec();
        if !path.is_empty() {
            self.media.retain(|known| *known != path);
            self.media.insert(0, path);
        }
    }

    /// Where `path`, as the database has it, belongs.
    #[must_use]
    pub fn place(&self, path: &[u8]) -> Place {
        let path = path.strip_prefix(b"./").unwrap_or(path);
        let in_external = self.externals.iter().find_map(|(folder, name)| Some((Root::External(name.clone()), below(path, folder)?)));
        let found = in_external.or_else(|| self.media.iter().find_map(|folder| Some((Root::Library, below(path, folder)?))));
        // Anything else that stands in the path is refused there: empty segments, `..`, NUL.
        found.and_then(|(root, rest)| Some(Place::In(FilePath { root, path: RootPath::from_bytes(rest).ok()? }))).unwrap_or(Place::Outside)
    }

    /// The path, as the server sees it, of a file of the backup: the inverse of [`Self::place`] for the likeliest media location.
    #[must_use]
    pub fn server_path(&self, file: &FilePath) -> Option<Vec<u8>> {
        let folder = match &file.root {
            Root::Library => self.media.first()?,
            Root::Config | Root::Postgres => return None,
            Root::External(name) => self.externals.iter().find_map(|(folder, known)| (known == name).then_some(folder))?,
        };
        let mut path = folder.clone();
        path.push(b'/');
        path.extend_from_slice(std::os::unix::ffi::OsStrExt::as_bytes(file.path.to_path().as_os_str()));
        Some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(locations: &Locations, path: &str) -> String {
        match locations.place(path.as_bytes()) {
            Place::In(file) => file.to_string(),
            Place::Outside => "outside".to_owned(),
        }
    }

    #[test]
    fn absolute_and_relative_paths_of_every_generation_are_found() {
        let locations = Locations::new([]);
        for path in ["/data/upload/u/x.jpg", "/usr/src/app/upload/upload/u/x.jpg", "upload/upload/u/x.jpg", "./upload/upload/u/x.jpg"] {
            assert_eq!(place(&locations, path), "upload/u/x.jpg", "{path}");
        }
        assert_eq!(place(&locations, "/mnt/photos/x.jpg"), "outside");
    }

    #[test]
    fn an_external_library_within_another_is_found_by_its_own_name() {
        let externals = [("all", "/mnt"), ("nas", "/mnt/nas/")].map(|(name, path)| (name.parse().unwrap(), path.as_bytes().to_vec()));
        let locations = Locations::new(externals);
        assert_eq!(place(&locations, "/mnt/nas/x.jpg"), "external/nas/x.jpg");
        assert_eq!(place(&locations, "/mnt/nasty/x.jpg"), "external/all/nasty/x.jpg");
        assert_eq!(place(&locations, "/mnt/nas/../../etc/passwd"), "outside");
    }

    #[test]
    fn what_the_dump_says_comes_first() {
        let mut locations = Locations::new([]);
        locations.prefer_media(b"/photos/");
        assert_eq!(place(&locations, "/photos/library/a.jpg"), "library/a.jpg");
        let file = FilePath::library(RootPath::parse("library/100%25.jpg").unwrap());
        assert_eq!(locations.server_path(&file).unwrap(), b"/photos/library/100%.jpg");
    }
}
