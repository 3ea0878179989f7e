//! What stands in a snapshot, file by file in the order of paths, and where a content is kept: what a proof asks.

use super::question::{STANDS, StoredContent, converted, object_key};
use super::{Manifest, ManifestError, signed, unsigned};
use crate::budget::MANIFEST_PAGE_ROWS;
use crate::model::{FilePath, InvalidPath, Root, RootPath, Sha1, Sha256};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};

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
    /// The folder of the last file, which may have more.
    last: Option<Folder>,
    /// The name of the last file.
    last_name: String,
    page: std::vec::IntoIter<StandingFile>,
    ended: bool,
}

/// A folder of the manifest.
#[derive(Debug, Clone)]
struct Folder {
    id: i64,
    root: Root,
    path: String,
}

const COLUMNS: &str = "f.id, f.external, f.path, v.name, v.sha1, v.since, v.key, v.damaged IS NOT NULL";

/// Files of the folder `?2` after the name `?3`.
fn rest_of_folder() -> String {
    format!("SELECT {COLUMNS} FROM version v JOIN folder f ON f.id = v.folder WHERE v.folder = ?2 AND v.name > ?3 AND {STANDS} ORDER BY v.name LIMIT ?4")
}

/// Files of all folders, or of those after (`?2`, `?3`). One query for many folders: Immich makes 65,536 of them for each user, with few files in each.
fn next_folders(first: bool) -> String {
    // Not one query with `OR`: it would pass over all the folders before, on every page.
    let after = if first { "?2 IS NULL AND ?3 IS NULL" } else { "(f.external, f.path) > (?2, ?3)" };
    format!("SELECT {COLUMNS} FROM folder f CROSS JOIN version v ON v.folder = f.id WHERE {after} AND {STANDS} ORDER BY f.external, f.path, v.name LIMIT ?4")
}

impl StandingFiles<'_> {
    /// The next files, [`MANIFEST_PAGE_ROWS`] at most; fewer at the end.
    fn next_page(&mut self) -> Result<Vec<StandingFile>, ManifestError> {
        let mut page = Vec::with_capacity(MANIFEST_PAGE_ROWS);
        let sequence = signed(self.sequence);
        let room = |page: &Vec<StandingFile>| signed(MANIFEST_PAGE_ROWS.saturating_sub(page.len()) as u64);
        let last = self.last.clone();
        if let Some(Folder { id, .. }) = &last {
            let name = std::mem::take(&mut self.last_name);
            self.read(&rest_of_folder(), params![sequence, id, name, room(&page)], &mut page)?;
        }
        if page.len() < MANIFEST_PAGE_ROWS {
            let after = last.as_ref().map(|folder| (folder.root.name_in_manifest(), folder.path.as_str()));
            let (external, path) = after.unzip();
            self.read(&next_folders(after.is_none()), params![sequence, external, path, room(&page)], &mut page)?;
        }
        self.ended = page.len() < MANIFEST_PAGE_ROWS;
        if let Some(end) = page.last() {
            end.file.path.split().1.clone_into(&mut self.last_name);
        }
        Ok(page)
    }

    fn read(&mut self, sql: &str, values: impl rusqlite::Params, page: &mut Vec<StandingFile>) -> Result<(), ManifestError> {
        let failed = self.manifest.failed("read");
        let mut query = self.manifest.connection.prepare_cached(sql).map_err(&failed)?;
        let mut rows = query.query(values).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            page.push(file_in(row, &mut self.last).map_err(&failed)?);
        }
        Ok(())
    }
}

/// The file of a row of [`COLUMNS`]. `folder` is that of the row before, and becomes its own.
fn file_in(row: &rusqlite::Row<'_>, folder: &mut Option<Folder>) -> rusqlite::Result<StandingFile> {
    // What a copy of the manifest says is no more to be trusted than the log: parse, never assume. Folders once, names each.
    let id = row.get(0)?;
    let folder = match folder {
        Some(folder) if folder.id == id => folder,
        folder => {
            let (external, path): (String, String) = (row.get(1)?, row.get(2)?);
            if !path.is_empty() {
                converted(2, RootPath::parse(&path))?;
            }
            folder.insert(Folder { id, root: converted(1, Root::from_name_in_manifest(&external))?, path })
        }
    };
    let name = converted(3, RootPath::parse(row.get_ref(3)?.as_str()?))?;
    let path = match name.as_str() {
        text if text.contains('/') => return converted(3, Err(InvalidPath::NotCanonical(text.to_owned()))),
        text => RootPath::in_folder(&folder.path, text),
    };
    let file = FilePath { root: folder.root.clone(), path };
    Ok(StandingFile { file, sha1: Sha1(row.get(4)?), since: unsigned(row.get(5)?), key: row.get(6)?, damaged: row.get(7)? })
}

impl Iterator for StandingFiles<'_> {
    type Item = Result<StandingFile, ManifestError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(file) = self.page.next() {
            return Some(Ok(file));
        }
        if self.ended {
            return None;
        }
        match self.next_page() {
            Ok(page) => {
                self.page = page.into_iter();
                self.page.next().map(Ok)
            }
            Err(error) => {
                self.ended = true;
                Some(Err(error))
            }
        }
    }
}

impl Manifest {
    /// The files that stand in the snapshot of log entry `sequence`, in order.
    #[must_use]
    pub fn standing_files(&self, sequence: u64) -> StandingFiles<'_> {
        StandingFiles { manifest: self, sequence, last: None, last_name: String::new(), page: Vec::new().into_iter(), ended: false }
    }

    /// What `read` returns, which sees the manifest as it is now, whatever others write meanwhile; and asks it faster than without.
    ///
    /// # Errors
    /// SQLite's, or what `read` returns.
    pub fn at_one_time<T, E: From<ManifestError>>(&self, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if !self.connection.is_autocommit() {
            return read();
        }
        let failed = self.failed("read");
        self.connection.execute_batch("BEGIN").map_err(&failed)?;
        let result = read();
        // Nothing was written: there is nothing to lose.
        self.connection.execute_batch("ROLLBACK").map_err(&failed)?;
        result
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
    Ok(FilePath { root: converted(0, Root::from_name_in_manifest(&external))?, path: converted(1, RootPath::parse(&path))? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digests, FileTimes, RepositoryId, WriterId};
    use crate::repository::key::Key;
    use crate::repository::log::{Damaged, Fact, Head, Header, PathFact, Sound, StoredFact};

    struct World {
        manifest: Manifest,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let start = Head { epoch: 0, sequence: 0, sha256: Sha256([0; 32]) };
            let manifest = Manifest::create(&folder.path().join("manifest.db"), RepositoryId::random(), &start).unwrap();
            Self { manifest, _folder: folder }
        }

        /// Applies the next log entry; its number.
        fn apply(&mut self, facts: &[Fact]) -> u64 {
            let before = self.manifest.head();
            let sequence = before.sequence + 1;
            let header = Header {
                format: 1,
                epoch: 0,
                sequence,
                previous_sha256: before.sha256,
                run: None,
                written_at: Timestamp::UNIX_EPOCH,
                writer: WriterId::random(),
            };
            self.manifest.apply_parts(&header, facts, &Head { epoch: 0, sequence, sha256: Sha256([0; 32]) }).unwrap();
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
        Fact::Archived(PathFact::new(&file(path)))
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
            (file.root.name_in_manifest().as_bytes().to_vec(), folder.as_bytes().to_vec(), name.as_bytes().to_vec())
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
        paths.extend((0..MANIFEST_PAGE_ROWS / 3).flat_map(|number| [0, 1, 2].map(|file| format!("d/{number:05}/{file}"))));
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
    fn files_are_read_in_order_and_not_sorted() {
        let world = World::new();
        for sql in [rest_of_folder(), next_folders(true), next_folders(false)] {
            let mut query = world.manifest.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let values: [rusqlite::types::Value; 4] = [1.into(), rusqlite::types::Value::Null, rusqlite::types::Value::Null, 1.into()];
            let plan: Vec<String> = query.query_map(values, |row| row.get(3)).unwrap().map(Result::unwrap).collect();
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
            assert!(plan.iter().any(|step| step.contains("SEARCH v USING PRIMARY KEY")), "{plan:?}");
        }
    }

    #[test]
    fn what_is_read_at_one_time_stays_as_it_was() {
        let mut world = World::new();
        let sequence = world.apply(&[stored("a", "A")]);
        let reader = Manifest::open_for_reading(world.manifest.path()).unwrap();
        let seen = reader.at_one_time(|| {
            let before = reader.standing_files(sequence + 1).count();
            world.apply(&[stored("b", "B")]);
            Ok::<_, ManifestError>((before, reader.standing_files(sequence + 1).count()))
        });
        assert_eq!(seen.unwrap(), (1, 1));
        assert_eq!(reader.standing_files(sequence + 1).count(), 2);
        let failed = reader.at_one_time(|| Err::<(), _>(ManifestError::Contradiction { sequence: 1, what: String::new() }));
        assert!(failed.is_err());
        assert!(reader.at_one_time(|| reader.at_one_time(|| Ok::<_, ManifestError>(()))).is_ok(), "it ended, and may be nested");
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
