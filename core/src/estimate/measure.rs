//! How much there is: a walk that looks at sizes alone.

use super::Contents;
use crate::library::layout;
use crate::library::scope::Scope;
use crate::library::tree::Tree;
use crate::library::walk::{self, Visitor};
use crate::model::{FilePath, FileTimes, Root, RootPath};
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Something to be measured: the library, or an external one.
#[derive(Debug, Clone)]
pub struct Source {
    /// Which.
    pub root: Root,
    /// Where.
    pub path: PathBuf,
    /// Folders that are mounted inside of it.
    pub mounts: Vec<(RootPath, PathBuf)>,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// A source cannot be opened.
    #[error("cannot open {root} at `{}`", .path.display())]
    Source {
        /// Which.
        root: Root,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What was found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Measured {
    /// Files that a backup would take.
    pub contents: Contents,
    /// Folders and files that could not be looked at: that much is missing.
    pub unread: u64,
}

struct Walker<'a> {
    root: &'a Root,
    scope: &'a Scope,
    stop: &'a CancellationToken,
    found: Measured,
}

impl Visitor for Walker<'_> {
    fn enter(&mut self, folder: &str) -> bool {
        let skipped = RootPath::parse(folder).is_ok_and(|path| !folder.is_empty() && self.scope.skips_folder(&FilePath { root: self.root.clone(), path }));
        !skipped && !self.stop.is_cancelled()
    }

    fn file(&mut self, folder: &str, name: &str, times: FileTimes) -> bool {
        let file = FilePath { root: self.root.clone(), path: RootPath::in_folder(folder, name) };
        if self.scope.takes(&file) {
            self.found.contents.add(layout::class_of(&file), times.size_bytes);
        }
        !self.stop.is_cancelled()
    }

    fn special(&mut self, _: &str, _: &str, _: &'static str) {}

    fn failed(&mut self, _: &str, _: Option<&str>, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            self.found.unread += 1;
        }
    }

    fn leave(&mut self, _: &str, _: bool) {}
}

/// Measures what a backup of `sources` within `scope` would take. Nothing is read but names and sizes.
///
/// # Errors
/// A source cannot be opened, or `stop` was set.
pub fn measure(sources: &[Source], scope: &Scope, walkers: NonZeroUsize, stop: &CancellationToken) -> Result<Measured, MeasureError> {
    let mut measured = Measured::default();
    for source in sources {
        let tree = Tree::open(&source.path, &source.mounts).map_err(|error| MeasureError::Source {
            root: source.root.clone(),
            path: error.path,
            source: error.source,
        })?;
        let mut visitors: Vec<_> = (0..walkers.get()).map(|_| Walker { root: &source.root, scope, stop, found: Measured::default() }).collect();
        walk::walk(&tree, &mut visitors);
        for visitor in visitors {
            measured.contents.merge(&visitor.found.contents);
            measured.unread += visitor.found.unread;
        }
    }
    if stop.is_cancelled() { Err(MeasureError::Interrupted) } else { Ok(measured) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn library() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, size) in [
            ("upload/u/aa/1.jpg", 1_000),
            ("library/anna/2.heic", 2_000),
            ("profile/u/3.png", 4_000),
            ("encoded-video/u/x-MP.mp4", 8_000),
            ("encoded-video/u/y.mp4", 16_000),
            ("thumbs/u/z.webp", 32_000),
            ("thumbs/.immich", 13),
            ("backups/dump.sql.gz", 64_000),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![0; size]).unwrap();
        }
        folder
    }

    fn measured(scope: &Scope, sources: &[Source]) -> Measured {
        measure(sources, scope, NonZeroUsize::new(3).unwrap(), &CancellationToken::new()).unwrap()
    }

    #[test]
    fn what_a_backup_would_take_is_measured_and_nothing_else() {
        let library = library();
        let sources = [Source { root: Root::Library, path: library.path().to_owned(), mounts: Vec::new() }];
        let all = measured(&Scope::default(), &sources);
        assert_eq!((all.contents.originals.files, all.contents.originals.bytes), (4, 15_000));
        assert_eq!((all.contents.others.files, all.contents.others.bytes), (3, 48_013));
        assert_eq!(all.unread, 0);
        let few = measured(&Scope { originals_only: true, ..Scope::default() }, &sources);
        assert_eq!((few.contents.originals.bytes, few.contents.others.bytes), (15_000, 13));
        let external = [Source { root: Root::External("dumps".parse().unwrap()), path: library.path().join("backups"), mounts: Vec::new() }];
        assert_eq!(measured(&Scope::default(), &external).contents.originals.bytes, 64_000);
    }

    #[test]
    fn a_source_that_is_not_there_is_an_error_and_a_stopped_walk_too() {
        let library = library();
        let stop = CancellationToken::new();
        let gone = [Source { root: Root::Library, path: library.path().join("nowhere"), mounts: Vec::new() }];
        assert!(matches!(measure(&gone, &Scope::default(), NonZeroUsize::MIN, &stop), Err(MeasureError::Source { .. })));
        stop.cancel();
        let there = [Source { root: Root::Library, path: library.path().to_owned(), mounts: Vec::new() }];
        assert!(matches!(measure(&there, &Scope::default(), NonZeroUsize::MIN, &stop), Err(MeasureError::Interrupted)));
    }
}
