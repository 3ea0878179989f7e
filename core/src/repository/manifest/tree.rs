//! The folders of a snapshot with all that lies below each, in memory: a manifest knows only folders that hold files themselves.

use super::browse::FolderSum;
use super::{Manifest, ManifestError};
use crate::model::Root;
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Folders of a tree; what has more is not shown as one. A tree of so many takes about 60 MB.
pub const TREE_FOLDERS_MAX: usize = 1_000_000;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// More than [`TREE_FOLDERS_MAX`].
    #[error("the snapshot has more than {TREE_FOLDERS_MAX} folders")]
    TooMany,
    /// SQLite failed.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// What lies below a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Below {
    /// Files that stand.
    pub files: u64,
    /// Their size.
    pub bytes: u64,
    /// Files whose object is known to be missing or damaged.
    pub damaged: u64,
    /// Paths that held a file before, and hold none.
    pub gone: u64,
}

impl Below {
    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.bytes += other.bytes;
        self.damaged += other.damaged;
        self.gone += other.gone;
    }
}

/// One folder. Those below it follow it, up to `end`.
#[derive(Debug)]
struct Node {
    name: (u32, u32),
    end: u32,
    own: (u32, u32),
    below: Below,
}

/// All folders of one root: the root itself first, each followed by those below it in the order of their names.
#[derive(Debug, Default)]
struct Nodes {
    names: String,
    nodes: Vec<Node>,
}

/// The folders of a snapshot.
#[derive(Debug)]
pub struct FolderTree {
    roots: BTreeMap<String, Nodes>,
}

/// A folder that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFolder {
    /// Files that stand in it itself, and those that did before.
    pub own: (u64, u64),
    /// All that lies below it.
    pub below: Below,
    /// Folders in it, by name.
    pub folders: Vec<(String, Below)>,
}

/// As the paths' segments compare: a folder is followed by what lies in it.
fn order(one: &str, other: &str) -> Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { byte };
    one.bytes().map(key).cmp(other.bytes().map(key))
}

fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn wide(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// What is known of the folders of one root before they are in order.
#[derive(Default)]
struct Gathered {
    paths: String,
    rows: Vec<(u32, u32, Below)>,
}

impl Gathered {
    fn path(&self, row: &(u32, u32, Below)) -> &str {
        self.paths.get(wide(row.0)..wide(row.1)).unwrap_or_default()
    }

    fn nodes(mut self) -> Nodes {
        let mut rows = std::mem::take(&mut self.rows);
        rows.sort_unstable_by(|one, other| order(self.path(one), self.path(other)));
        let mut made = Nodes::default();
        // The folders that are open: where their node is, and how much of the path they are.
        let mut open: Vec<(usize, usize)> = Vec::new();
        made.open(&mut open, "", 0);
        // Whose path begins with those of all folders that are open.
        let mut last = "";
        for row in &rows {
            let path = self.path(row);
            while let Some((_, length)) = open.last()
                && !is_within(path, last.get(..*length).unwrap_or_default())
            {
                made.close(&mut open);
            }
            last = path;
            let mut start = open.last().map_or(0, |(_, length)| if *length == 0 { 0 } else { length + 1 });
            while start < path.len() {
                let end = path.get(start..).and_then(|rest| rest.find('/')).map_or(path.len(), |slash| start + slash);
                made.open(&mut open, path.get(start..end).unwrap_or_default(), end);
                start = end + 1;
            }
            if let Some(node) = open.last().and_then(|(at, _)| made.nodes.get_mut(*at)) {
                node.own = (small(row.2.files), small(row.2.gone));
                node.below.add(&row.2);
            }
        }
        while !open.is_empty() {
            made.close(&mut open);
        }
        made.nodes.shrink_to_fit();
        made.names.shrink_to_fit();
        made
    }
}

fn is_within(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Nodes {
    fn name(&self, node: &Node) -> &str {
        self.names.get(wide(node.name.0)..wide(node.name.1)).unwrap_or_default()
    }

    fn open(&mut self, open: &mut Vec<(usize, usize)>, name: &str, length: usize) {
        let start = self.names.len();
        self.names.push_str(name);
        open.push((self.nodes.len(), length));
        self.nodes.push(Node { name: (short(start), short(self.names.len())), end: 0, own: (0, 0), below: Below::default() });
    }

    fn close(&mut self, open: &mut Vec<(usize, usize)>) {
        let Some((at, _)) = open.pop() else { return };
        let end = short(self.nodes.len());
        let Some(below) = self.nodes.get_mut(at).map(|node| {
            node.end = end;
            node.below
        }) else {
            return;
        };
        if let Some(above) = open.last().and_then(|(above, _)| self.nodes.get_mut(*above)) {
            above.below.add(&below);
        }
    }

    /// Where the folders directly below the one at `at` are.
    fn children(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        let end = self.nodes.get(at).map_or(0, |node| wide(node.end));
        let first = Some(at + 1).filter(|first| *first < end);
        std::iter::successors(first, move |child| self.nodes.get(*child).map(|node| wide(node.end)).filter(|next| *next < end))
    }

    fn find(&self, path: &str) -> Option<usize> {
        let mut at = 0;
        for segment in path.split('/').filter(|_| !path.is_empty()) {
            at = self.children(at).find(|child| self.nodes.get(*child).is_some_and(|node| self.name(node) == segment))?;
        }
        Some(at)
    }
}

impl FolderTree {
    /// The folders of the snapshot that log entry `sequence` commits: one pass over all files that there ever were.
    ///
    /// # Errors
    /// SQLite's, or too many folders.
    pub fn of(manifest: &Manifest, sequence: u64) -> Result<Self, TreeError> {
        let mut gathered: BTreeMap<String, Gathered> = BTreeMap::new();
        let mut count = 0;
        manifest.each_folder_sum(sequence, |sum: FolderSum<'_>| {
            if sum.files + sum.gone == 0 {
                return Ok(());
            }
            count += 1;
            if !gathered.contains_key(sum.root) {
                gathered.insert(sum.root.to_owned(), Gathered::default());
            }
            if let Some(root) = gathered.get_mut(sum.root) {
                let start = root.paths.len();
                root.paths.push_str(sum.path);
                if count > TREE_FOLDERS_MAX || u32::try_from(root.paths.len()).is_err() {
                    return Err(TreeError::TooMany);
                }
                let below = Below { files: sum.files, bytes: sum.bytes, damaged: sum.damaged, gone: sum.gone };
                root.rows.push((short(start), short(root.paths.len()), below));
            }
            Ok(())
        })?;
        Ok(Self { roots: gathered.into_iter().map(|(root, gathered)| (root, gathered.nodes())).collect() })
    }

    /// The roots that have files, or had, with all that lies below each.
    #[must_use]
    pub fn roots(&self) -> Vec<(Root, Below)> {
        let of = |(name, nodes): (&String, &Nodes)| Some((Root::from_name_in_manifest(name).ok()?, nodes.nodes.first()?.below));
        self.roots.iter().filter_map(of).collect()
    }

    /// The folder at `path` (canonical text; empty for the root itself); `None` where there is none.
    #[must_use]
    pub fn folder(&self, root: &Root, path: &str) -> Option<FoundFolder> {
        let nodes = self.roots.get(root.name_in_manifest())?;
        let at = nodes.find(path)?;
        let node = nodes.nodes.get(at)?;
        let child = |child| nodes.nodes.get(child).map(|node| (nodes.name(node).to_owned(), node.below));
        let folders = nodes.children(at).filter_map(child).collect();
        Some(FoundFolder { own: (node.own.0.into(), node.own.1.into()), below: node.below, folders })
    }

    /// How many folders there are, those between included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.roots.values().map(|nodes| nodes.nodes.len()).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(paths: &[(&str, u64)]) -> Nodes {
        let mut gathered = Gathered::default();
        for (path, files) in paths {
            let start = gathered.paths.len();
            gathered.paths.push_str(path);
            gathered.rows.push((short(start), short(gathered.paths.len()), Below { files: *files, bytes: files * 10, ..Below::default() }));
        }
        gathered.nodes()
    }

    #[test]
    fn a_folder_has_what_lies_below_it_and_neighbours_with_longer_names_do_not_count() {
        let tree =
            FolderTree { roots: [(String::new(), nodes(&[("a/b", 1), ("a-b", 2), ("a", 4), ("", 8), ("ab/c/d", 16), ("a/b/c", 32), ("x/y", 64)]))].into() };
        let found = |path: &str| tree.folder(&Root::Library, path).map(|folder| (folder.own.0, folder.below.files, folder.folders));
        let names = |path: &str| found(path).unwrap().2.into_iter().map(|(name, below)| format!("{name}:{}", below.files)).collect::<Vec<_>>();
        assert_eq!((found("").unwrap().0, found("").unwrap().1), (8, 127));
        assert_eq!(names(""), ["a:37", "a-b:2", "ab:16", "x:64"]);
        assert_eq!((found("a").unwrap().0, found("a").unwrap().1, names("a")), (4, 37, vec!["b:33".to_owned()]));
        assert_eq!((names("a/b"), names("a/b/c"), names("ab"), names("ab/c")), (vec!["c:32".into()], vec![], vec!["c:16".into()], vec!["d:16".into()]));
        for nowhere in ["b", "a/", "a/b/c/d", "/", "..", "a//b", "A"] {
            assert_eq!(found(nowhere), None, "{nowhere}");
        }
        assert_eq!(tree.roots(), [(Root::Library, Below { files: 127, bytes: 1_270, ..Below::default() })]);
    }
}
