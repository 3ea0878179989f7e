//! What stands in a snapshot, file by file in the order of paths, and where a content is kept: what a proof asks.

use super::question::{STANDS, StoredContent, converted, object_key};
use super::{Folders, Manifest, ManifestError, signed, unsigned};
use crate::budget::MANIFEST_PAGE_ROWS;
use crate::model::{FilePath, InvalidPath, Root, RootPath, Sha1, Sha256};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};
use std::collections::VecDeque;

/// A file that stands in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandingFile {
    /// Where.
    pub file: FilePath,
    /// Of its content.
    pub sha1: Sha1,
    /// The log entry that stored it.
    pub since: u64,
    /// The object that holds it, where that is not the path's home.
    pub key: Option<String>,
    /// Whether that object is known to be missing or damaged.
    pub damaged: bool,
}

impl StandingFile {
    /// The key of the object that holds it.
    #[must_use]
    pub fn object_key(&self) -> String {
        object_key(self.key.clone(), &self.file)
    }
}

/// Where a content is that is looked for by its SHA-1. Objects that are known to be missing or damaged hold nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whereabouts {
    /// It stands in the snapshot, at one path or more.
    Stands {
        /// The log entry that stored it at one of them.
        since: u64,
        /// The object that holds it there.
        key: String,
    },
    /// An object holds it, but no path of the snapshot: it is archived, was replaced, came later, or never stood.
    Kept,
    /// No object holds it.
    Nowhere,
}

/// An object that holds a content, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptContent {
    /// The object.
    pub object: StoredContent,
    /// Of the content.
    pub sha256: Sha256,
    /// Size of the content.
    pub size_bytes: u64,
    /// When a file with it was modified last.
    pub mtime_ns: i64,
    /// Permission bits of that file.
    pub mode: u32,
    /// Whether it stands at some path now.
    pub stands: bool,
}

/// So many objects of one content are told of; there is more than one only after damage, or where paths got the same content at the same time.
const KEPT_OBJECTS_MAX: usize = 8;

/// The files that stand in a snapshot, ordered by external library (the media location first), folder and name, each compared as bytes.
#[derive(Debug)]
pub struct StandingFiles<'a> {
    manifest: &'a Manifest,
    sequence: u64,
    folders: Folders<'a>,
    /// Folders to come.
    waiting: VecDeque<(i64, Root, String)>,
    /// The folder that is being read, and the last name read of it.
    current: Option<((i64, Root, String), String)>,
    page: std::vec::IntoIter<StandingFile>,
}

impl StandingFiles<'_> {
    /// The next files, [`MANIFEST_PAGE_ROWS`] at most; empty at the end.
    fn next_page(&mut self) -> Result<Vec<StandingFile>, ManifestError> {
        let mut page = Vec::new();
        while page.len() < MANIFEST_PAGE_ROWS {
            let (folder, last) = match self.current.take() {
                Some(current) => current,
                None => match self.next_folder()? {
                    Some(folder) => (folder, String::new()),
                    None => break,
                },
            };
            let room = MANIFEST_PAGE_ROWS - page.len();
            let before = page.len();
            self.read(&folder, &last, room, &mut page)?;
            if page.len() - before == room {
                let last = page.last().map_or(last, |end| end.file.path.split().1.to_owned());
                self.current = Some((folder, last));
            }
        }
        Ok(page)
    }

    fn next_folder(&mut self) -> Result<Option<(i64, Root, String)>, ManifestError> {
        if self.waiting.is_empty() {
            self.waiting = self.folders.next_page()?.into();
        }
        Ok(self.waiting.pop_front())
    }

    /// Adds at most `room` files of `folder` that come after the name `last`.
    fn read(&self, (id, root, folder): &(i64, Root, String), last: &str, room: usize, page: &mut Vec<StandingFile>) -> Result<(), ManifestError> {
        let failed = self.manifest.failed("read");
        let sql = format!(
            "SELECT v.name, v.sha1, v.since, v.key, v.damaged IS NOT NULL FROM version v WHERE v.folder = ?2 AND v.name > ?3 AND {STANDS} ORDER BY v.name LIMIT ?4"
        );
        let mut query = self.manifest.connection.prepare_cached(&sql).map_err(&failed)?;
        // What a copy of the manifest says is no more to be trusted than the log: parse, never assume. The folder once, names each.
        if !folder.is_empty() {
            converted(0, RootPath::parse(folder)).map_err(&failed)?;
        }
        let rows = query.query_map(params![signed(self.sequence), id, last, signed(room as u64)], |row| {
            let name = converted(0, RootPath::parse(row.get_ref(0)?.as_str()?))?;
            let path = match name.as_str() {
                text if text.contains('/') => return converted(0, Err(InvalidPath::NotCanonical(text.to_owned()))),
                text => RootPath::in_folder(folder, text),
            };
            let file = FilePath { root: root.clone(), path };
            Ok(StandingFile { file, sha1: Sha1(row.get(1)?), since: unsigned(row.get(2)?), key: row.get(3)?, damaged: row.get(4)? })
        });
        for row in rows.map_err(&failed)? {
            page.push(row.map_err(&failed)?);
        }
        Ok(())
    }
}

impl Iterator for StandingFiles<'_> {
    type Item = Result<StandingFile, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(file) = self.page.next() {
            return Some(Ok(file));
        }
        match self.next_page() {
            Ok(page) => {
                self.page = page.into_iter();
                self.page.next().map(Ok)
            }
            Err(error) => Some(Err(error)),
        }
    }
}

impl Manifest {
    /// The files that stand in the snapshot of log entry `sequence`, in order.
    #[must_use]
    pub fn standing_files(&self, sequence: u64) -> StandingFiles<'_> {
        StandingFiles { manifest: self, sequence, folders: self.folders(), waiting: VecDeque::new(), current: None, page: Vec::new().into_iter() }
    }

    /// The log entry of each snapshot, and when it was taken; oldest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn snapshot_times(&self) -> Result<Vec<(u64, Timestamp)>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached("SELECT sequence, taken_at FROM snapshot ORDER BY sequence").map_err(&failed)?;
        let rows = query.query_map([], |row| Ok((unsigned(row.get(0)?), converted(1, row.get::<_, String>(1)?.parse())?)));
        rows.and_then(Iterator::collect).map_err(&failed)
    }

    /// Where the content with this SHA-1 is, seen from the snapshot of log entry `sequence`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn content_with_sha1(&self, sha1: &Sha1, sequence: u64) -> Result<Whereabouts, ManifestError> {
        let failed = self.failed("read");
        // Where the same content stands at many paths, one of them will do: no order is asked for, which would mean to look at all of them.
        let sql = format!(
            "SELECT f.external, f.path, v.name, v.since, v.key FROM version v JOIN folder f ON f.id = v.folder
              WHERE substr(v.sha1, 1, 8) = substr(?2, 1, 8) AND v.sha1 = ?2 AND v.damaged IS NULL AND {STANDS} LIMIT 1"
        );
        let mut query = self.connection.prepare_cached(&sql).map_err(&failed)?;
        let found = query.query_row(params![signed(sequence), sha1.0], |row| {
            let file = file_of(row)?;
            Ok(Whereabouts::Stands { since: unsigned(row.get(3)?), key: object_key(row.get(4)?, &file) })
        });
        if let Some(found) = found.optional().map_err(&failed)? {
            return Ok(found);
        }
        let sql = "SELECT EXISTS (SELECT 1 FROM version v WHERE substr(v.sha1, 1, 8) = substr(?1, 1, 8) AND v.sha1 = ?1 AND v.damaged IS NULL)";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let kept = query.query_row([sha1.0], |row| row.get(0)).map_err(&failed)?;
        Ok(if kept { Whereabouts::Kept } else { Whereabouts::Nowhere })
    }

    /// The objects, not known to be damaged, that hold the content with this SHA-1: those of files that stand now come first. At most 8.
    ///
    /// # Errors
    /// SQLite's.
    pub fn each_content_with_sha1(&self, sha1: &Sha1) -> Result<Vec<KeptContent>, ManifestError> {
        let failed = self.failed("read");
        let mut found: Vec<KeptContent> = Vec::new();
        for (condition, stands) in [("v.until IS NULL", true), ("v.until IS NOT NULL", false)] {
            let sql = format!(
                "SELECT f.external, f.path, v.name, v.key, v.etag, v.sha256, v.size, v.mtime_ns, v.mode FROM version v JOIN folder f ON f.id = v.folder
                  WHERE substr(v.sha1, 1, 8) = substr(?1, 1, 8) AND v.sha1 = ?1 AND v.damaged IS NULL AND {condition}"
            );
            let mut query = self.connection.prepare_cached(&sql).map_err(&failed)?;
            let rows = query.query_map([sha1.0], |row| {
                let object = StoredContent { key: object_key(row.get(3)?, &file_of(row)?), etag: row.get(4)? };
                let (sha256, size_bytes) = (Sha256(row.get(5)?), unsigned(row.get(6)?));
                Ok(KeptContent { object, sha256, size_bytes, mtime_ns: row.get(7)?, mode: row.get(8)?, stands })
            });
            for kept in rows.map_err(&failed)? {
                let kept = kept.map_err(&failed)?;
                if !found.iter().any(|known| known.object.key == kept.object.key) {
                    found.push(kept);
                }
                if found.len() == KEPT_OBJECTS_MAX {
                    return Ok(found);
                }
            }
        }
        Ok(found)
    }
}

/// The file of a row that begins with external library, folder and name.
fn file_of(row: &rusqlite::Row<'_>) -> rusqlite::Result<FilePath> {
    let (external, folder, name): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
    Ok(FilePath { root: converted(0, Root::from_external_or_empty(&external))?, path: converted(1, RootPath::parse(&path))? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digests, FileTimes, RepositoryId, WriterId};
    use crate::repository::key::Key;
    use crate::repository::log::{Archived, Damaged, Fact, Head, Header, Sound, StoredFact};

    struct World {
        manifest: Manifest,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let start = Head { sequence: 0, sha256: Sha256([0; 32]) };
            let manifest = Manifest::create(&folder.path().join("manifest.db"), RepositoryId::random(), &start).unwrap();
            Self { manifest, _folder: folder }
        }

        /// Applies the next log entry; its number.
        fn apply(&mut self, facts: &[Fact]) -> u64 {
            let before = self.manifest.head();
            let sequence = before.sequence + 1;
            let header =
                Header { format: 1, sequence, previous_sha256: before.sha256, run: None, written_at: Timestamp::UNIX_EPOCH, writer: WriterId::random() };
            self.manifest.apply_parts(&header, facts, &Head { sequence, sha256: Sha256([0; 32]) }).unwrap();
            sequence
        }

        /// What stands: path, log entry, key, whether it is damaged.
        fn standing(&self, sequence: u64) -> Vec<(String, u64, String, bool)> {
            let files = self.manifest.standing_files(sequence);
            files.map(|file| file.unwrap()).map(|file| (file.file.to_string(), file.since, file.object_key(), file.damaged)).collect()
        }

        fn find(&self, content: &str, sequence: u64) -> Whereabouts {
            self.manifest.content_with_sha1(&Sha1::of(content.as_bytes()), sequence).unwrap()
        }

        fn kept(&self, content: &str) -> Vec<(String, bool)> {
            let kept = self.manifest.each_content_with_sha1(&Sha1::of(content.as_bytes())).unwrap();
            kept.into_iter().inspect(|kept| assert_eq!(kept.sha256, Sha256::of(content.as_bytes()))).map(|kept| (kept.object.key, kept.stands)).collect()
        }
    }

    fn file(path: &str) -> FilePath {
        match path.split_once(':') {
            Some((name, path)) => FilePath { root: Root::External(name.parse().unwrap()), path: RootPath::parse(path).unwrap() },
            None => FilePath::library(RootPath::parse(path).unwrap()),
        }
    }

    fn stored_in(path: &str, content: &str, key: &str) -> StoredFact {
        let digests = Digests { sha256: Sha256::of(content.as_bytes()), sha1: Sha1::of(content.as_bytes()) };
        let times = FileTimes { size_bytes: content.len() as u64, mtime_ns: 7, ctime_ns: 8, mode: 0o644 };
        StoredFact::new(&file(path), digests, &times, true, &Key::parse(key).unwrap(), None)
    }

    fn home(path: &str) -> String {
        super::super::super::key::home(&file(path)).unwrap().to_string()
    }

    fn stored(path: &str, content: &str) -> Fact {
        Fact::Stored(stored_in(path, content, &home(path)))
    }

    fn archived(path: &str) -> Fact {
        Fact::Archived(Archived::new(&file(path)))
    }

    fn damaged(key: &str) -> Fact {
        Fact::Damaged(Damaged { key: key.to_owned(), problem: "test".to_owned() })
    }

    #[test]
    fn files_come_in_the_order_of_library_folder_and_name() {
        let mut world = World::new();
        let mut paths = vec!["nas:a", "a-b:z", "upload/a!", "upload/a/b", "upload/é", "z", "upload/a!/c", "upload", "Upload/a"];
        let facts: Vec<_> = paths.iter().map(|path| stored(path, path)).collect();
        let sequence = world.apply(&facts);
        let found: Vec<_> = world.standing(sequence).into_iter().map(|(path, ..)| path).collect();
        let parts = |path: &str| {
            let file = file(path);
            let (folder, name) = file.path.split();
            (file.root.external_or_empty().as_bytes().to_vec(), folder.as_bytes().to_vec(), name.as_bytes().to_vec())
        };
        paths.sort_by_key(|path| parts(path));
        assert_eq!(found, paths.iter().map(|path| file(path).to_string()).collect::<Vec<_>>());
    }

    #[test]
    fn pages_lose_and_repeat_nothing() {
        let mut world = World::new();
        // A folder that is exactly one page, one that is more than two, and many small ones.
        let mut paths: Vec<_> = (0..MANIFEST_PAGE_ROWS).map(|number| format!("a/{number:05}")).collect();
        paths.extend((0..2 * MANIFEST_PAGE_ROWS + 1).map(|number| format!("b/{number:05}")));
        paths.extend((0..MANIFEST_PAGE_ROWS + 7).map(|number| format!("c/{number:05}/x")));
        let facts: Vec<_> = paths.iter().map(|path| stored(path, "same")).collect();
        let sequence = world.apply(&facts);
        let found: Vec<_> = world.standing(sequence).into_iter().map(|(path, ..)| path).collect();
        assert!(found == paths, "{} of {}", found.len(), paths.len());
        assert_eq!(world.standing(0), []);
    }

    #[test]
    fn a_snapshot_has_what_stood_there_then() {
        let mut world = World::new();
        let first = world.apply(&[stored("a", "A"), stored("b", "B")]);
        let second = world.apply(&[Fact::Stored(stored_in("a", "A2", "versions/a/2")), archived("b")]);
        let third = world.apply(&[Fact::Doubtful(stored_in("a", "A3", "versions/a/3")), damaged("versions/a/2")]);
        let row = |path: &str, since, key: &str, damaged| (path.to_owned(), since, key.to_owned(), damaged);
        assert_eq!(world.standing(first), [row("a", first, "library/a", false), row("b", first, "library/b", false)]);
        assert_eq!(world.standing(second), [row("a", second, "versions/a/2", true)]);
        assert_eq!(world.standing(third), [row("a", second, "versions/a/2", true)]);
    }

    #[test]
    fn a_content_stands_or_is_kept_or_is_nowhere() {
        let mut world = World::new();
        let first = world.apply(&[stored("a", "A"), stored("nas:b", "B")]);
        let second = world.apply(&[archived("a"), Fact::Doubtful(stored_in("nas:b", "D", "versions/%external/nas/b/1"))]);
        let third = world.apply(&[stored("c", "C")]);
        let stands = |key: &str| Whereabouts::Stands { since: first, key: key.to_owned() };
        assert_eq!([first, second, third].map(|n| world.find("A", n)), [stands("library/a"), Whereabouts::Kept, Whereabouts::Kept]);
        assert_eq!(world.find("B", third), stands("external/nas/b"));
        assert_eq!(world.find("C", second), Whereabouts::Kept, "it came later");
        assert_eq!(world.find("D", third), Whereabouts::Kept, "it never stood");
        assert_eq!(world.find("E", third), Whereabouts::Nowhere);
    }

    #[test]
    fn damaged_objects_hold_nothing_until_they_are_sound() {
        let mut world = World::new();
        world.apply(&[stored("a", "A"), stored("b", "A")]);
        let sequence = world.apply(&[damaged("library/a")]);
        assert_eq!(world.find("A", sequence), Whereabouts::Stands { since: 1, key: "library/b".to_owned() });
        assert_eq!(world.kept("A"), [("library/b".to_owned(), true)]);
        let sequence = world.apply(&[damaged("library/b")]);
        assert_eq!(world.find("A", sequence), Whereabouts::Nowhere);
        assert_eq!(world.kept("A"), []);
        let sequence = world.apply(&[Fact::Sound(Sound { key: "library/b".to_owned() }), archived("b")]);
        assert_eq!(world.find("A", sequence), Whereabouts::Kept);
        assert_eq!(world.kept("A"), [("library/b".to_owned(), false)]);
    }

    #[test]
    fn what_stands_comes_first_and_an_object_once() {
        let mut world = World::new();
        world.apply(&[stored("a", "A"), stored("z", "A")]);
        world.apply(&[archived("a"), Fact::Stored(stored_in("y", "A", "library/z"))]);
        assert_eq!(world.kept("A"), [("library/z".to_owned(), true), ("library/a".to_owned(), false)]);
        let facts: Vec<_> = (0..20).map(|number| stored(&format!("many/{number}"), "M")).collect();
        world.apply(&facts);
        assert_eq!(world.kept("M").len(), KEPT_OBJECTS_MAX);
        let kept = world.manifest.each_content_with_sha1(&Sha1::of(b"A")).unwrap();
        assert_eq!((kept[0].size_bytes, kept[0].mtime_ns, kept[0].mode, &kept[0].object.etag), (1, 7, 0o644, &None));
    }

    #[test]
    fn looking_for_a_content_uses_the_index() {
        let world = World::new();
        let sql = format!(
            "EXPLAIN QUERY PLAN SELECT 1 FROM version v WHERE substr(v.sha1, 1, 8) = substr(?2, 1, 8) AND v.sha1 = ?2 AND v.damaged IS NULL AND {STANDS}"
        );
        let mut query = world.manifest.connection.prepare(&sql).unwrap();
        let plan: Vec<String> = query.query_map(params![1, [0_u8; 20]], |row| row.get(3)).unwrap().map(Result::unwrap).collect();
        assert!(plan.iter().any(|step| step.contains("version_by_sha1")), "{plan:?}");
    }

    #[test]
    fn a_path_that_leads_outside_is_refused() {
        let mut world = World::new();
        let sequence = world.apply(&[stored("a/b", "A")]);
        world.manifest.connection.execute_batch("UPDATE folder SET path = '../a'").unwrap();
        assert!(world.manifest.standing_files(sequence).next().unwrap().is_err());
        assert!(world.manifest.content_with_sha1(&Sha1::of(b"A"), sequence).is_err());
        assert!(world.manifest.each_content_with_sha1(&Sha1::of(b"A")).is_err());
        for name in ["..", "b/c", "%41"] {
            world.manifest.connection.execute_batch(&format!("UPDATE folder SET path = 'a'; UPDATE version SET name = '{name}'")).unwrap();
            assert!(world.manifest.standing_files(sequence).next().unwrap().is_err(), "{name}");
        }
    }
}
