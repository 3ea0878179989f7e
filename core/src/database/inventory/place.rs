//! The paths that a dump names: written to a file as they come, and placed and put in order once the media location is known.

use super::sort::Sorter;
use super::{InventoryError, beside};
use crate::database::location::{Locations, Place};
use crate::library::layout::class_of;
use crate::model::{Class, FilePath, Sha1};
use crate::verdict::Thing;
use rusqlite::{Connection, params};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Media locations that are guessed at, at most: the first that paths begin with.
const GUESSES_MAX: usize = 16;

/// Buffer of the file of paths.
const BUFFER_BYTES: usize = 256 << 10;

const HAS_ASSET: u8 = 1;
const HAS_SHA1: u8 = 2;
const OFFLINE: u8 = 4;

/// What no type is known of: its place decides.
const BY_PLACE: u8 = 9;

pub(super) fn thing_number(thing: Thing) -> u8 {
    match thing {
        Thing::Asset => 0,
        Thing::Sidecar => 1,
        Thing::Profile => 2,
        Thing::Derived => 3,
    }
}

/// What is known of a path beside it. As bytes: thing, flags, asset, SHA-1.
#[derive(Debug, Clone, Copy)]
struct Tail {
    thing: u8,
    flags: u8,
    asset: [u8; 16],
    sha1: [u8; 20],
}

const TAIL_BYTES: usize = 38;

impl Tail {
    fn to_bytes(self) -> [u8; TAIL_BYTES] {
        let mut bytes = [0; TAIL_BYTES];
        let parts = [self.thing, self.flags].into_iter().chain(self.asset).chain(self.sha1);
        for (place, byte) in bytes.iter_mut().zip(parts) {
            *place = byte;
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; TAIL_BYTES]) -> Self {
        let [thing, flags, rest @ ..] = bytes;
        let (asset, sha1) = rest.split_at(16);
        Self { thing: *thing, flags: *flags, asset: asset.try_into().unwrap_or_default(), sha1: sha1.try_into().unwrap_or_default() }
    }

    fn asset(&self) -> Option<&[u8; 16]> {
        (self.flags & HAS_ASSET != 0).then_some(&self.asset)
    }

    fn sha1(&self) -> Option<&[u8; 20]> {
        (self.flags & HAS_SHA1 != 0).then_some(&self.sha1)
    }

    fn offline(&self) -> bool {
        self.flags & OFFLINE != 0
    }
}

/// The paths of a dump, in its order.
#[derive(Debug, Default)]
pub(super) struct Paths {
    path: PathBuf,
    writer: Option<BufWriter<File>>,
    count: u64,
    /// What paths of assets begin with before a folder of Immich, and how many.
    guesses: Vec<(Vec<u8>, u64)>,
}

fn create_file(path: &Path) -> Result<File, InventoryError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    file.map_err(|source| InventoryError::File { action: "make", path: path.to_owned(), source })
}

/// What `path` has before a folder of Immich that has a user's files: `<media location>/upload/<uuid of the user>/…`.
fn media_location(path: &[u8]) -> Option<&[u8]> {
    let mut end = path.len();
    // From behind: a media location may itself be called `upload`.
    while let Some(slash) = path.get(..end)?.iter().rposition(|byte| *byte == b'/') {
        let segment = path.get(slash + 1..end)?;
        if segment.len() == 36 && Uuid::try_parse_ascii(segment).is_ok() {
            let before = path.get(..slash)?;
            let folder = before.iter().rposition(|byte| *byte == b'/')?;
            if matches!(before.get(folder + 1..)?, b"upload" | b"library" | b"encoded-video" | b"thumbs" | b"profile") {
                return before.get(..folder).filter(|location| !location.is_empty());
            }
        }
        end = slash;
    }
    None
}

impl Paths {
    /// Keeps them beside the inventory at `inventory`.
    pub(super) fn create(inventory: &Path) -> Result<Self, InventoryError> {
        let path = beside(inventory, ".paths");
        let writer = BufWriter::with_capacity(BUFFER_BYTES, create_file(&path)?);
        Ok(Self { path, writer: Some(writer), count: 0, guesses: Vec::new() })
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> InventoryError + use<> {
        let path = self.path.clone();
        move |source| InventoryError::File { action, path: path.clone(), source }
    }

    /// Forgets them all.
    pub(super) fn clear(&mut self) -> Result<(), InventoryError> {
        self.count = 0;
        self.guesses.clear();
        // What the buffer holds goes with it.
        self.writer = None;
        self.writer = Some(BufWriter::with_capacity(BUFFER_BYTES, create_file(&self.path)?));
        Ok(())
    }

    pub(super) fn push(&mut self, thing: Option<Thing>, offline: bool, asset: Option<Uuid>, sha1: Option<Sha1>, path: &[u8]) -> Result<(), InventoryError> {
        let tail = Tail {
            thing: thing.map_or(BY_PLACE, thing_number),
            flags: (if asset.is_some() { HAS_ASSET } else { 0 }) | (if sha1.is_some() { HAS_SHA1 } else { 0 }) | (if offline { OFFLINE } else { 0 }),
            asset: asset.map(Uuid::into_bytes).unwrap_or_default(),
            sha1: sha1.map(|sha1| sha1.0).unwrap_or_default(),
        };
        let failed = self.failed("write");
        let length = u32::try_from(path.len()).map_err(|error| failed(io::Error::other(error)))?;
        self.count += 1;
        let Some(writer) = &mut self.writer else { return Ok(()) };
        writer.write_all(&tail.to_bytes()).and_then(|()| writer.write_all(&length.to_le_bytes())).and_then(|()| writer.write_all(path)).map_err(failed)
    }

    /// Learns from the path of an asset that Immich itself keeps.
    pub(super) fn guess(&mut self, path: &[u8]) {
        let Some(location) = media_location(path) else { return };
        if let Some((_, count)) = self.guesses.iter_mut().find(|(known, _)| known == location) {
            *count += 1;
        } else if self.guesses.len() < GUESSES_MAX {
            self.guesses.push((location.to_vec(), 1));
        }
    }

    /// The media location that most paths speak for.
    pub(super) fn guessed(&self) -> Option<Vec<u8>> {
        self.guesses.iter().max_by_key(|(_, count)| *count).map(|(location, _)| location.clone())
    }

    /// Places all paths, and writes them to `folder`, `named` and `outside`. Returns how many are named and outside.
    pub(super) fn place(mut self, connection: &Connection, inventory: &Path, locations: &Locations) -> Result<(u64, u64), InventoryError> {
        let Some(writer) = self.writer.take() else { return Ok((0, 0)) };
        let failed = self.failed("read");
        let mut file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
        file.rewind().map_err(&failed)?;
        let sorted_path = beside(inventory, ".sorted");
        let sort_failed = |source| InventoryError::File { action: "sort in", path: sorted_path.clone(), source };
        let sqlite_failed = |source| InventoryError::Sqlite { action: "write", path: inventory.to_owned(), source };
        let mut sorter = Sorter::new(create_file(&sorted_path)?);
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut outside = connection.prepare("INSERT INTO outside(thing, offline, asset, sha1, path) VALUES (?1, ?2, ?3, ?4, ?5)").map_err(sqlite_failed)?;
        let (mut path, mut record) = (Vec::new(), Vec::new());
        let mut outside_count = 0;
        for _ in 0..self.count {
            let tail = read_record(&mut reader, &mut path).map_err(&failed)?;
            match locations.place(&path) {
                Place::In(file) => {
                    record.clear();
                    let (folder, name) = file.path.split();
                    // Canonical text has no NUL, so this sorts as the three of them do.
                    for part in [file.root.name_in_manifest(), folder, name] {
                        record.extend_from_slice(part.as_bytes());
                        record.push(0);
                    }
                    record.extend_from_slice(&decided(tail, Some(&file)).to_bytes());
                    sorter.push(&record).map_err(sort_failed)?;
                }
                Place::Outside => {
                    outside_count += 1;
                    let tail = decided(tail, None);
                    outside.execute(params![tail.thing, tail.offline(), tail.asset(), tail.sha1(), path]).map_err(sqlite_failed)?;
                }
            }
        }
        drop(reader);
        std::fs::remove_file(&self.path).map_err(self.failed("remove"))?;
        let mut folders = FolderWriter::new(connection, sqlite_failed)?;
        let mut sorted = sorter.finish().map_err(sort_failed)?;
        while let Some(written) = sorted.next_with(|record| folders.write(record)).map_err(sort_failed)? {
            written.map_err(sqlite_failed)?;
        }
        folders.end().map_err(sqlite_failed)?;
        drop(sorted);
        std::fs::remove_file(&sorted_path).map_err(|source| InventoryError::File { action: "remove", path: sorted_path.clone(), source })?;
        Ok((folders.number.unsigned_abs(), outside_count))
    }
}

/// A file of unknown type is what its place makes it: it is better to ask for one that Immich could make again than to forget one that it cannot.
fn decided(mut tail: Tail, file: Option<&FilePath>) -> Tail {
    if tail.thing == BY_PLACE {
        let derived = file.is_some_and(|file| class_of(file) == Class::Derived);
        tail.thing = thing_number(if derived { Thing::Derived } else { Thing::Sidecar });
    }
    tail
}

fn read_record(reader: &mut impl io::Read, path: &mut Vec<u8>) -> io::Result<Tail> {
    let (mut tail, mut length) = ([0; TAIL_BYTES], [0; 4]);
    reader.read_exact(&mut tail)?;
    reader.read_exact(&mut length)?;
    path.clear();
    let length = u64::from(u32::from_le_bytes(length));
    if reader.by_ref().take(length).read_to_end(path)? as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Tail::from_bytes(&tail))
}

/// Writes folders and what is in them, in their order.
struct FolderWriter<'c> {
    named: rusqlite::Statement<'c>,
    folder: rusqlite::Statement<'c>,
    /// `external NUL path NUL` of the folder being written.
    current: Vec<u8>,
    id: i64,
    first: i64,
    number: i64,
}

impl<'c> FolderWriter<'c> {
    fn new(connection: &'c Connection, failed: impl Fn(rusqlite::Error) -> InventoryError) -> Result<Self, InventoryError> {
        let named = "INSERT INTO named(number, folder, name, thing, offline, asset, sha1) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let folder = "INSERT INTO folder(id, external, path, first, last) VALUES (?1, ?2, ?3, ?4, ?5)";
        Ok(Self {
            named: connection.prepare(named).map_err(&failed)?,
            folder: connection.prepare(folder).map_err(&failed)?,
            current: Vec::new(),
            id: 0,
            first: 1,
            number: 0,
        })
    }

    fn write(&mut self, record: &[u8]) -> rusqlite::Result<()> {
        let Some((key, tail)) = record.split_last_chunk::<TAIL_BYTES>() else { return Ok(()) };
        let tail = Tail::from_bytes(tail);
        let key = key.strip_suffix(&[0]).unwrap_or(key);
        let name_start = key.iter().rposition(|byte| *byte == 0).map_or(0, |nul| nul + 1);
        let (folder, name) = key.split_at_checked(name_start).unwrap_or_default();
        if self.id == 0 || folder != self.current {
            self.end()?;
            self.id += 1;
            self.first = self.number + 1;
            folder.clone_into(&mut self.current);
        }
        self.number += 1;
        self.named.execute(params![self.number, self.id, text(name), tail.thing, tail.offline(), tail.asset(), tail.sha1()])?;
        Ok(())
    }

    fn end(&mut self) -> rusqlite::Result<()> {
        if self.id > 0 {
            let mut parts = self.current.split(|byte| *byte == 0);
            let (external, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            self.folder.execute(params![self.id, text(external), text(path), self.first, self.number])?;
        }
        Ok(())
    }
}

/// Canonical text is UTF-8.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_location_is_guessed_from_paths_with_a_user_in_them() {
        const USER: &str = "37945eee-c0ab-4a4f-8f78-fa767add6fb7";
        for (path, location) in [
            (format!("upload/upload/{USER}/aa/bb/x.jpg"), Some("upload")),
            (format!("/usr/src/app/upload/upload/{USER}/aa/bb/x.jpg"), Some("/usr/src/app/upload")),
            (format!("/data/library/{USER}/2024/{USER}/x.jpg"), Some("/data")),
            (format!("/photos/of/me/encoded-video/{USER}/aa/bb/x-MP.mp4"), Some("/photos/of/me")),
            ("/data/library/admin/2024/x.jpg".to_owned(), None),
            (format!("/mnt/{USER}/x.jpg"), None),
            (format!("/upload/{USER}/x.jpg"), None),
            (format!("upload/{USER}/x.jpg"), None),
        ] {
            assert_eq!(media_location(path.as_bytes()), location.map(str::as_bytes), "{path}");
        }
    }
}
