//! What stands in a snapshot, file by file in the order of paths, and where a content is kept: what a proof asks.

use super::question::{STANDS, StoredContent, converted, object_key};
use super::{Folders, Manifest, ManifestError, signed, unsigned};
use crate::budget::MANIFEST_PAGE_ROWS;
use crate::model::{FilePath, Root, RootPath, Sha1, Sha256};
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
    /// The object that holds it.
    pub key: String,
    /// Whether that object is known to be missing or damaged.
    pub damaged: bool,
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
        let rows = query.query_map(params![signed(self.sequence), id, last, signed(room as u64)], |row| {
            let name = row.get_ref(0)?.as_str()?;
            // What a copy of the manifest says is no more to be trusted than the log: parse, never assume.
            let path = if folder.is_empty() { RootPath::parse(name) } else { RootPath::parse(&format!("{folder}/{name}")) };
            let file = FilePath { root: root.clone(), path: converted(0, path)? };
            Ok(StandingFile { sha1: Sha1(row.get(1)?), since: unsigned(row.get(2)?), key: object_key(row.get(3)?, &file), damaged: row.get(4)?, file })
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
