//! The folders that there ever were, with every version of every file, in memory: what lies below one, in any snapshot, is then a pass over what ever lay there.
//! A manifest itself knows only folders that hold files, and of each snapshot no sums.

use super::{Manifest, ManifestError};
use crate::model::Root;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

/// Folders of a tree; what has more is not shown as one. So many take about 60 MB.
pub const TREE_FOLDERS_MAX: usize = 1_000_000;
/// Versions in a tree. So many take about 100 MB, and 160 MB while the tree is made.
pub const TREE_VERSIONS_MAX: usize = 8_000_000;

/// Why there is no tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// More than [`TREE_FOLDERS_MAX`], or than [`TREE_VERSIONS_MAX`].
    #[error("there are more than {TREE_FOLDERS_MAX} folders or {TREE_VERSIONS_MAX} versions of files")]
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

    fn is_nothing(&self) -> bool {
        self.files + self.gone == 0
    }
}

/// A version of a file that stood once.
pub(super) struct Version {
    pub folder: i64,
    /// The log entry that stored it.
    pub since: u64,
    /// The log entry with which it stood no more; `None` where it stands to this day.
    pub until: Option<u64>,
    /// The log entry with which its path held a file again.
    pub next: Option<u64>,
    pub size_bytes: u64,
    pub is_damaged: bool,
}

/// Those that stand to this day and are whole, as nearly all do: no more is kept of them than is needed.
#[derive(Debug, Default)]
struct Standing {
    since: Vec<u32>,
    size_bytes: Vec<u64>,
}

/// Any other.
#[derive(Debug, Clone, Copy)]
struct Other {
    since: u32,
    until: u32,
    next: u32,
    is_damaged: bool,
    size_bytes: u64,
}

/// Later than every log entry.
const NEVER: u32 = u32::MAX;

/// Where versions begin: among those that stand, among the others.
#[derive(Debug, Clone, Copy, Default)]
struct Starts {
    standing: u32,
    others: u32,
}

/// One folder. Those below it follow it, up to `end`; so do their versions.
#[derive(Debug)]
struct Node {
    name: (u32, u32),
    end: u32,
    starts: Starts,
}

/// The folders that there ever were: of each root itself first, each followed by those below it in the order of their names.
#[derive(Debug, Default)]
pub struct FolderTree {
    /// By name: where the root's node is.
    roots: BTreeMap<String, usize>,
    names: String,
    nodes: Vec<Node>,
    standing: Standing,
    others: Vec<Other>,
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

fn is_within(path: &str, folder: &str) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn short(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn wide(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// A log entry. There are no four thousand million; a later one would count as one that never came.
fn entry(sequence: u64) -> u32 {
    u32::try_from(sequence).unwrap_or(NEVER)
}

/// What a manifest tells of one folder.
struct Gathered {
    root: u32,
    path: (u32, u32),
    standing: (u32, u32),
    others: (u32, u32),
}

/// What is known before the folders are in order.
#[derive(Default)]
struct Gathering {
    /// Each folder that has versions, by its number, and where these begin.
    folders: Vec<(i64, Starts)>,
    standing: Standing,
    others: Vec<Other>,
    roots: Vec<String>,
    paths: String,
    gathered: Vec<Gathered>,
}

impl Gathering {
    fn starts(&self) -> Starts {
        Starts { standing: short(self.standing.since.len()), others: short(self.others.len()) }
    }

    /// Takes the next version; all of a folder come one after another.
    fn take(&mut self, version: &Version) -> Result<(), TreeError> {
        if self.folders.last().is_none_or(|(folder, _)| *folder != version.folder) {
            self.folders.push((version.folder, self.starts()));
        }
        match version.until {
            None if !version.is_damaged => {
                self.standing.since.push(entry(version.since));
                self.standing.size_bytes.push(version.size_bytes);
            }
            until => self.others.push(Other {
                since: entry(version.since),
                until: until.map_or(NEVER, entry),
                next: version.next.map_or(NEVER, entry),
                is_damaged: version.is_damaged,
                size_bytes: version.size_bytes,
            }),
        }
        let is_too_many = self.folders.len() > TREE_FOLDERS_MAX || self.standing.since.len() + self.others.len() > TREE_VERSIONS_MAX;
        if is_too_many { Err(TreeError::TooMany) } else { Ok(()) }
    }

    /// Takes the name of the folder at this place of `folders`.
    fn name(&mut self, at: usize, root: &str, path: &str) -> Result<(), TreeError> {
        let root = match self.roots.iter().position(|known| known == root) {
            Some(known) => known,
            None => {
                self.roots.push(root.to_owned());
                self.roots.len() - 1
            }
        };
        let start = short(self.paths.len());
        self.paths.push_str(path);
        if u32::try_from(self.paths.len()).is_err() {
            return Err(TreeError::TooMany);
        }
        let end = self.folders.get(at + 1).map_or_else(|| self.starts(), |(_, starts)| *starts);
        if let Some((_, starts)) = self.folders.get(at) {
            let (standing, others) = ((starts.standing, end.standing), (starts.others, end.others));
            self.gathered.push(Gathered { root: short(root), path: (start, short(self.paths.len())), standing, others });
        }
        Ok(())
    }

    fn tree(mut self) -> FolderTree {
        self.folders = Vec::new();
        let mut gathered = std::mem::take(&mut self.gathered);
        let root_of = |folder: &Gathered| self.roots.get(wide(folder.root)).map(String::as_str).unwrap_or_default();
        let path_of = |folder: &Gathered| self.paths.get(wide(folder.path.0)..wide(folder.path.1)).unwrap_or_default();
        gathered.sort_unstable_by(|one, other| root_of(one).cmp(root_of(other)).then_with(|| order(path_of(one), path_of(other))));
        let mut tree = FolderTree::default();
        // The folders that are open: where their node is, and how much of the path they are.
        let mut open: Vec<(usize, usize)> = Vec::new();
        let mut starts = Starts::default();
        // Whose path begins with those of all folders that are open.
        let mut last = ("", "");
        for folder in &gathered {
            let (root, path) = (root_of(folder), path_of(folder));
            while let Some((_, length)) = open.last()
                && !(root == last.0 && is_within(path, last.1.get(..*length).unwrap_or_default()))
            {
                tree.close(&mut open);
            }
            last = (root, path);
            if open.is_empty() {
                tree.roots.insert(root.to_owned(), tree.nodes.len());
                tree.open(&mut open, "", 0, starts);
            }
            let mut start = open.last().map_or(0, |(_, length)| if *length == 0 { 0 } else { length + 1 });
            while start < path.len() {
                let end = path.get(start..).and_then(|rest| rest.find('/')).map_or(path.len(), |slash| start + slash);
                tree.open(&mut open, path.get(start..end).unwrap_or_default(), end, starts);
                start = end + 1;
            }
            // The folder that was opened last is this one.
            starts.standing += folder.standing.1 - folder.standing.0;
            starts.others += folder.others.1 - folder.others.0;
        }
        while !open.is_empty() {
            tree.close(&mut open);
        }
        tree.nodes.shrink_to_fit();
        tree.names.shrink_to_fit();
        // One after another, so that each is there twice only while it is put in order.
        let standing = std::mem::take(&mut self.standing);
        tree.standing.since = in_order(standing.since, &gathered, |folder| folder.standing);
        tree.standing.size_bytes = in_order(standing.size_bytes, &gathered, |folder| folder.standing);
        tree.others = in_order(std::mem::take(&mut self.others), &gathered, |folder| folder.others);
        tree
    }
}

/// What the folders have, in the folders' order.
fn in_order<T: Copy>(all: Vec<T>, folders: &[Gathered], of: impl Fn(&Gathered) -> (u32, u32)) -> Vec<T> {
    let mut ordered = Vec::with_capacity(all.len());
    for folder in folders {
        let (start, end) = of(folder);
        ordered.extend_from_slice(all.get(wide(start)..wide(end)).unwrap_or_default());
    }
    ordered
}

impl FolderTree {
    /// The folders of all snapshots that `manifest` knows: one pass over all files that there ever were.
    ///
    /// # Errors
    /// SQLite's, or too many folders or versions.
    pub fn of(manifest: &Manifest) -> Result<Self, TreeError> {
        let mut gathering = Gathering::default();
        manifest.each_version(|version| gathering.take(&version))?;
        let mut next = 0;
        // Both by the folders' numbers.
        manifest.each_folder(|id, root, path| {
            while gathering.folders.get(next).is_some_and(|(folder, _)| *folder < id) {
                next += 1;
            }
            match gathering.folders.get(next) {
                Some((folder, _)) if *folder == id => gathering.name(next, root, path),
                _ => Ok(()),
            }
        })?;
        Ok(gathering.tree())
    }

    fn name(&self, node: &Node) -> &str {
        self.names.get(wide(node.name.0)..wide(node.name.1)).unwrap_or_default()
    }

    fn open(&mut self, open: &mut Vec<(usize, usize)>, name: &str, length: usize, starts: Starts) {
        let start = self.names.len();
        self.names.push_str(name);
        open.push((self.nodes.len(), length));
        self.nodes.push(Node { name: (short(start), short(self.names.len())), end: 0, starts });
    }

    fn close(&mut self, open: &mut Vec<(usize, usize)>) {
        let end = short(self.nodes.len());
        if let Some(node) = open.pop().and_then(|(at, _)| self.nodes.get_mut(at)) {
            node.end = end;
        }
    }

    /// Where the folders directly below the one at `at` are.
    fn children(&self, at: usize) -> impl Iterator<Item = usize> + '_ {
        let end = self.end(at);
        let first = Some(at + 1).filter(|first| *first < end);
        std::iter::successors(first, move |child| Some(self.end(*child)).filter(|next| *next < end))
    }

    /// Where the first folder is that is not below the one at `at`.
    fn end(&self, at: usize) -> usize {
        self.nodes.get(at).map_or(usize::MAX, |node| wide(node.end))
    }

    fn find(&self, root: &Root, path: &str) -> Option<usize> {
        let mut at = *self.roots.get(root.name_in_manifest())?;
        for segment in path.split('/').filter(|_| !path.is_empty()) {
            at = self.children(at).find(|child| self.nodes.get(*child).is_some_and(|node| self.name(node) == segment))?;
        }
        Some(at)
    }

    fn starts(&self, at: usize) -> (usize, usize) {
        let end = (self.standing.since.len(), self.others.len());
        self.nodes.get(at).map_or(end, |node| (wide(node.starts.standing), wide(node.starts.others)))
    }

    /// What the folders at these places hold themselves, in the snapshot of log entry `sequence`.
    fn held(&self, folders: Range<usize>, sequence: u64) -> Below {
        let at = u32::try_from(sequence).unwrap_or(NEVER - 1);
        let (start, end) = (self.starts(folders.start), self.starts(folders.end));
        let mut held = Below::default();
        let since = self.standing.since.get(start.0..end.0).unwrap_or_default();
        let sizes = self.standing.size_bytes.get(start.0..end.0).unwrap_or_default();
        for (since, size) in since.iter().zip(sizes) {
            if *since <= at {
                held.files += 1;
                held.bytes += size;
            }
        }
        for other in self.others.get(start.1..end.1).unwrap_or_default().iter().filter(|other| other.since <= at) {
            if other.until > at {
                held.files += 1;
                held.bytes += other.size_bytes;
                held.damaged += u64::from(other.is_damaged);
            } else if other.next > at {
                held.gone += 1;
            }
        }
        held
    }

    /// The roots that have files in the snapshot of log entry `sequence`, or had before, with all that lies below each.
    #[must_use]
    pub fn roots(&self, sequence: u64) -> Vec<(Root, Below)> {
        let below = |(name, at): (&String, &usize)| Some((Root::from_name_in_manifest(name).ok()?, self.held(*at..self.end(*at), sequence)));
        self.roots.iter().filter_map(below).filter(|(_, below)| !below.is_nothing()).collect()
    }

    /// The folder at `path` (canonical text; empty for the root itself) in the snapshot of log entry `sequence`; `None` where nothing stands below it, or did.
    #[must_use]
    pub fn folder(&self, sequence: u64, root: &Root, path: &str) -> Option<FoundFolder> {
        let at = self.find(root, path)?;
        let own = self.held(at..at + 1, sequence);
        let mut below = own;
        let mut folders = Vec::new();
        for child in self.children(at) {
            let held = self.held(child..self.end(child), sequence);
            if let (false, Some(node)) = (held.is_nothing(), self.nodes.get(child)) {
                below.add(&held);
                folders.push((self.name(node).to_owned(), held));
            }
        }
        Some(FoundFolder { own: (own.files, own.gone), below, folders }).filter(|found| !found.below.is_nothing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(folder: i64, since: u64, until: Option<u64>, next: Option<u64>, size_bytes: u64) -> Version {
        Version { folder, since, until, next, size_bytes, is_damaged: false }
    }

    /// Folders with so many files each, of ten bytes, all of them of the first log entry.
    fn tree(folders: &[(&str, &str, u64)]) -> FolderTree {
        let mut gathering = Gathering::default();
        for (id, (_, _, files)) in (0..).zip(folders) {
            for _ in 0..*files {
                gathering.take(&version(id, 1, None, None, 10)).unwrap();
            }
        }
        for (at, (root, path, _)) in folders.iter().enumerate() {
            gathering.name(at, root, path).unwrap();
        }
        gathering.tree()
    }

    #[test]
    fn a_folder_has_what_lies_below_it_and_neighbours_with_longer_names_do_not_count() {
        let tree = tree(&[("nas", "a", 3), ("", "a/b", 1), ("", "a-b", 2), ("", "a", 4), ("", "", 8), ("", "ab/c/d", 16), ("", "a/b/c", 32), ("", "x/y", 64)]);
        let found = |path: &str| tree.folder(1, &Root::Library, path).map(|folder| (folder.own.0, folder.below.files, folder.folders));
        let names = |path: &str| found(path).unwrap().2.into_iter().map(|(name, below)| format!("{name}:{}", below.files)).collect::<Vec<_>>();
        assert_eq!((found("").unwrap().0, found("").unwrap().1), (8, 127));
        assert_eq!(names(""), ["a:37", "a-b:2", "ab:16", "x:64"]);
        assert_eq!((found("a").unwrap().0, found("a").unwrap().1, names("a")), (4, 37, vec!["b:33".to_owned()]));
        assert_eq!((names("a/b"), names("a/b/c"), names("ab"), names("ab/c")), (vec!["c:32".into()], vec![], vec!["c:16".into()], vec!["d:16".into()]));
        for nowhere in ["b", "a/", "a/b/c/d", "/", "..", "a//b", "A"] {
            assert_eq!(found(nowhere), None, "{nowhere}");
        }
        let below = |files| Below { files, bytes: files * 10, ..Below::default() };
        assert_eq!(tree.roots(1), [(Root::Library, below(127)), (Root::External("nas".parse().unwrap()), below(3))]);
        // Nothing was there yet.
        assert_eq!((tree.roots(0), tree.folder(0, &Root::Library, "a")), (vec![], None));
    }

    #[test]
    fn each_snapshot_has_what_stood_there_then() {
        let mut gathering = Gathering::default();
        // Replaced in entry 5; thrown away in 3 and back in 7; there from 6 on; damaged.
        for version in [
            version(1, 1, Some(5), Some(5), 10),
            version(1, 5, None, None, 20),
            version(1, 2, Some(3), Some(7), 100),
            version(1, 7, None, None, 100),
            version(2, 6, None, None, 1_000),
            Version { is_damaged: true, ..version(2, 4, None, None, 5_000) },
        ] {
            gathering.take(&version).unwrap();
        }
        gathering.name(0, "", "u").unwrap();
        gathering.name(1, "", "u/v").unwrap();
        let tree = gathering.tree();
        let found = |sequence| {
            let folder = tree.folder(sequence, &Root::Library, "u").unwrap();
            let Below { files, bytes, damaged, gone } = folder.below;
            (folder.own, (files, bytes, damaged, gone), folder.folders.len())
        };
        assert_eq!(found(1), ((1, 0), (1, 10, 0, 0), 0));
        assert_eq!(found(2), ((2, 0), (2, 110, 0, 0), 0));
        assert_eq!(found(3), ((1, 1), (1, 10, 0, 1), 0));
        assert_eq!(found(4), ((1, 1), (2, 5_010, 1, 1), 1));
        assert_eq!(found(5), ((1, 1), (2, 5_020, 1, 1), 1));
        assert_eq!(found(6), ((1, 1), (3, 6_020, 1, 1), 1));
        assert_eq!(found(7), ((2, 0), (4, 6_120, 1, 0), 1));
        assert_eq!(found(u64::MAX), found(7));
    }
}
