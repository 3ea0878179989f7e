//! Where the files of a root lie: below one folder, or, where other folders are mounted inside of it, below those.

use super::walk::open_root;
use crate::model::RootPath;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The folders of a root. What another folder is mounted over is hidden, whatever lies there: Immich's custom locations put `thumbs`, `encoded-video` or
/// `upload` on other disks, and Docker mounts them inside the container alone, so that the host's folder of that name is empty or stale.
#[derive(Debug)]
pub struct Tree {
    root: OwnedFd,
    /// The deepest first.
    mounts: Vec<Mount>,
}

/// A folder mounted inside of a root.
#[derive(Debug)]
struct Mount {
    at: RootPath,
    folder: OwnedFd,
}

/// A folder of a tree could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{}`", .path.display())]
pub struct TreeError {
    /// Which.
    pub path: PathBuf,
    /// Where it is mounted; `None` for the root itself.
    pub at: Option<RootPath>,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Tree {
    /// Opens the folder at `path`, and those that are mounted inside of it.
    ///
    /// # Errors
    /// One of them is not there, no folder, or not readable.
    pub fn open(path: &Path, mounts: &[(RootPath, PathBuf)]) -> Result<Self, TreeError> {
        let root = open_root(path).map_err(|source| TreeError { path: path.to_owned(), at: None, source })?;
        let open = |(at, path): &(RootPath, PathBuf)| {
            let folder = open_root(path).map_err(|source| TreeError { path: path.clone(), at: Some(at.clone()), source })?;
            Ok(Mount { at: at.clone(), folder })
        };
        let mut mounts: Vec<_> = mounts.iter().map(open).collect::<Result<_, _>>()?;
        mounts.sort_by_key(|mount| std::cmp::Reverse(mount.at.as_str().len()));
        Ok(Self { root, mounts })
    }

    /// The folder below which the file `path` lies, and its path there as the file system knows it.
    #[must_use]
    pub fn at(&self, path: &RootPath) -> (&OwnedFd, PathBuf) {
        let found = self.mounts.iter().find_map(|mount| Some((&mount.folder, path.below(&mount.at)?.to_path())));
        found.unwrap_or_else(|| (&self.root, path.to_path()))
    }

    /// The folder that the walk reads as `folder` (canonical text, empty for the root), and what remains of its path there; nothing where it is the root
    /// or a mounted folder itself.
    pub(super) fn folder(&self, folder: &str) -> (&OwnedFd, PathBuf) {
        match RootPath::parse(folder) {
            // Only the root has no path.
            Err(_) => (&self.root, PathBuf::new()),
            Ok(path) => match self.mounts.iter().find(|mount| mount.at == path) {
                Some(mount) => (&mount.folder, PathBuf::new()),
                None => self.at(&path),
            },
        }
    }

    /// Whether another folder is mounted over `path` (canonical text).
    #[must_use]
    pub fn is_mounted_over(&self, path: &str) -> bool {
        self.mounts.iter().any(|mount| mount.at.as_str() == path)
    }

    pub(super) fn has_mounts(&self) -> bool {
        !self.mounts.is_empty()
    }

    pub(super) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// Where folders are mounted.
    pub fn mounts(&self) -> impl Iterator<Item = &RootPath> {
        self.mounts.iter().map(|mount| &mount.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::library::read::LiveFile;
    use std::fs;

    fn path(text: &str) -> RootPath {
        RootPath::parse(text).unwrap()
    }

    fn text(tree: &Tree, at: &str) -> String {
        let (folder, rest) = tree.at(&path(at));
        let (bytes, _) = LiveFile::open(folder, &rest).unwrap().read_whole().unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn a_file_lies_in_the_deepest_folder_that_is_mounted_above_it() {
        let folder = tempfile::tempdir().unwrap();
        for (at, content) in [("root/thumbs/a", "hidden"), ("root/thumbsup/a", "root"), ("ssd/a", "ssd"), ("ssd/u/a", "hidden too"), ("nvme/a", "nvme")] {
            let file = folder.path().join(at);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, content).unwrap();
        }
        let mounts = [(path("thumbs"), folder.path().join("ssd")), (path("thumbs/u"), folder.path().join("nvme"))];
        let tree = Tree::open(&folder.path().join("root"), &mounts).unwrap();
        assert_eq!(["thumbs/a", "thumbsup/a", "thumbs/u/a"].map(|at| text(&tree, at)), ["ssd", "root", "nvme"]);
        assert!(tree.is_mounted_over("thumbs/u") && !tree.is_mounted_over("thumbs/u/a") && !tree.is_mounted_over("thumbsup"));
        let missing = Tree::open(&folder.path().join("root"), &[(path("upload"), folder.path().join("gone"))]).unwrap_err();
        assert_eq!((missing.at, missing.path), (Some(path("upload")), folder.path().join("gone")));
    }
}
