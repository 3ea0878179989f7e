//! From rows of a dump to rows of the inventory, while the dump is read.

use super::place::Paths;
use super::tables::{self, Layout, Row, Table};
use super::{FORMAT, Inventory, InventoryError, Note, SCHEMA, Summary, connect, remove, section_of};
use crate::database::copy;
use crate::database::location::Locations;
use crate::database::text::{TableName, Visitor, Whole};
use crate::model::Sha1;
use crate::verdict::Thing;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use serde::Deserialize;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Notes that are kept; a dump with more of them is odd enough by these.
const NOTES_MAX: usize = 100;

/// What an `asset_file` row of this type is; `None` for a type that is not known: its place decides.
fn thing_of(file_type: Option<&[u8]>) -> Option<Thing> {
    match file_type? {
        b"sidecar" => Some(Thing::Sidecar),
        b"thumbnail" | b"preview" | b"fullsize" | b"encoded_video" => Some(Thing::Derived),
        _ => None,
    }
}

/// What was read of the section that is being read.
#[derive(Debug, Default)]
struct Found {
    summary: Summary,
    has_assets: bool,
    /// The time and the version of the newest row of `version_history`.
    version: Option<(Option<Timestamp>, String)>,
    media_location: Option<Vec<u8>>,
}

/// Receives the rows of a dump.
#[derive(Debug)]
pub(super) struct Fill {
    connection: Connection,
    path: PathBuf,
    paths: Paths,
    found: Found,
    /// The table being read, and rows of it that made no sense.
    layout: Option<Layout>,
    unreadable: u64,
    /// Immich's section was read: all others are of no interest.
    sated: bool,
    finished: bool,
}

impl Drop for Fill {
    fn drop(&mut self) {
        if !self.finished {
            drop(remove(&self.path));
        }
    }
}

/// Why a row was not taken.
enum Refused {
    Unreadable,
    Failed(InventoryError),
}

impl From<rusqlite::Error> for Refused {
    fn from(source: rusqlite::Error) -> Self {
        // The path is filled in where it is known.
        Self::Failed(InventoryError::Sqlite { action: "write", path: PathBuf::new(), source })
    }
}

impl From<InventoryError> for Refused {
    fn from(error: InventoryError) -> Self {
        Self::Failed(error)
    }
}

fn needed<T>(value: Option<T>) -> Result<T, Refused> {
    value.ok_or(Refused::Unreadable)
}

fn bytes_of(id: Option<Uuid>) -> Option<[u8; 16]> {
    id.map(Uuid::into_bytes)
}

fn microseconds(time: Option<Timestamp>) -> Option<i64> {
    time.map(Timestamp::as_microsecond)
}

impl Fill {
    pub(super) fn create(path: &Path) -> Result<Self, InventoryError> {
        remove(path)?;
        let make = || {
            let connection = connect(path)?;
            connection.execute_batch("BEGIN")?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        };
        let connection = make().map_err(|source| InventoryError::Sqlite { action: "make", path: path.to_owned(), source })?;
        let mut fill = Self {
            connection,
            path: path.to_owned(),
            paths: Paths::default(),
            found: Found::default(),
            layout: None,
            unreadable: 0,
            sated: false,
            finished: false,
        };
        // From here on, whatever fails takes the files with it.
        fill.paths = Paths::create(path)?;
        Ok(fill)
    }

    fn failed(&self) -> impl Fn(rusqlite::Error) -> InventoryError + use<> {
        let path = self.path.clone();
        move |source| InventoryError::Sqlite { action: "write", path: path.clone(), source }
    }

    fn note(&mut self, note: Note) {
        if self.found.summary.notes.len() < NOTES_MAX {
            self.found.summary.notes.push(note);
        }
    }

    /// Forgets what an earlier section had.
    fn reset(&mut self) -> Result<(), InventoryError> {
        self.found = Found::default();
        self.paths.clear()?;
        self.connection
            .execute_batch(
                "DELETE FROM asset; DELETE FROM person; DELETE FROM face; DELETE FROM library; DELETE FROM album; DELETE FROM album_owner;
                 DELETE FROM album_asset; DELETE FROM user;",
            )
            .map_err(self.failed())
    }

    fn take(&mut self, table: Table, row: &Row<'_>) -> Result<(), Refused> {
        match table {
            Table::Asset => self.asset(row),
            Table::AssetFile => {
                use tables::asset_file::{ASSET, PATH, TYPE};
                let asset = needed(row.uuid(ASSET))?;
                self.found.summary.asset_files += 1;
                if let Some(path) = row.path(PATH) {
                    self.paths.push(thing_of(row.bytes(TYPE).as_deref()), false, Some(asset), None, &path)?;
                }
                Ok(())
            }
            Table::User => {
                use tables::user::{ADMIN, DELETED_AT, EMAIL, ID, NAME, PROFILE, STORAGE_LABEL};
                let id = needed(row.uuid(ID))?.into_bytes();
                let deleted_at = microseconds(row.time(DELETED_AT)).or_else(|| row.is_set(DELETED_AT).then_some(i64::MAX));
                self.insert(
                    "INSERT INTO user(id, email, name, storage_label, admin, deleted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![id, row.text(EMAIL).unwrap_or_default(), row.text(NAME).unwrap_or_default(), row.text(STORAGE_LABEL), row.is(ADMIN), deleted_at],
                )?;
                self.found.summary.users += 1;
                if let Some(path) = row.path(PROFILE) {
                    self.paths.push(Some(Thing::Profile), false, None, None, &path)?;
                }
                Ok(())
            }
            Table::Person => {
                use tables::person::{ID, NAME, OWNER, THUMBNAIL};
                let id = needed(row.uuid(ID))?.into_bytes();
                let values = params![id, bytes_of(row.uuid(OWNER)), row.text(NAME).unwrap_or_default()];
                self.insert("INSERT INTO person(id, owner, name) VALUES (?1, ?2, ?3)", values)?;
                self.found.summary.persons += 1;
                if let Some(path) = row.path(THUMBNAIL) {
                    self.paths.push(Some(Thing::Derived), false, None, None, &path)?;
                }
                Ok(())
            }
            Table::Face => {
                use tables::face::{ASSET, DELETED_AT, PERSON};
                let asset = needed(row.uuid(ASSET))?.into_bytes();
                // A face that nobody was recognised in, or that was taken away.
                if !row.is_set(PERSON) || row.is_set(DELETED_AT) {
                    return Ok(());
                }
                let person = needed(row.uuid(PERSON))?.into_bytes();
                self.insert("INSERT INTO face(asset, person) VALUES (?1, ?2)", params![asset, person])
            }
            Table::Library => {
                use tables::library::{ID, IMPORT_PATHS, NAME, OWNER};
                let id = needed(row.uuid(ID))?.into_bytes();
                let paths = row.bytes(IMPORT_PATHS).and_then(|value| copy::array(&value)).unwrap_or_default();
                let paths: Vec<_> = paths.iter().map(|path| String::from_utf8_lossy(path)).collect();
                let paths = serde_json::to_string(&paths).unwrap_or_default();
                let values = params![id, row.text(NAME).unwrap_or_default(), bytes_of(row.uuid(OWNER)), paths];
                self.insert("INSERT INTO library(id, name, owner, import_paths) VALUES (?1, ?2, ?3, ?4)", values)?;
                self.found.summary.libraries += 1;
                Ok(())
            }
            Table::Album => {
                use tables::album::{DELETED_AT, ID, NAME, OWNER};
                let id = needed(row.uuid(ID))?.into_bytes();
                let values = params![id, row.text(NAME).unwrap_or_default(), bytes_of(row.uuid(OWNER)), row.is_set(DELETED_AT)];
                self.insert("INSERT INTO album(id, name, owner, deleted) VALUES (?1, ?2, ?3, ?4)", values)?;
                self.found.summary.albums += 1;
                Ok(())
            }
            Table::AlbumUser => {
                use tables::album_user::{ALBUM, ROLE, USER};
                if row.bytes(ROLE).as_deref() != Some(tables::ROLE_OWNER) {
                    return Ok(());
                }
                let (album, user) = (needed(row.uuid(ALBUM))?.into_bytes(), needed(row.uuid(USER))?.into_bytes());
                self.insert("INSERT INTO album_owner(album, owner) VALUES (?1, ?2)", params![album, user])
            }
            Table::AlbumAsset => {
                use tables::album_asset::{ALBUM, ASSET};
                let (album, asset) = (needed(row.uuid(ALBUM))?.into_bytes(), needed(row.uuid(ASSET))?.into_bytes());
                self.insert("INSERT INTO album_asset(album, asset) VALUES (?1, ?2)", params![album, asset])
            }
            Table::SystemMetadata => self.system_metadata(row),
            Table::VersionHistory => {
                use tables::version_history::{CREATED_AT, VERSION};
                let (time, version) = (row.time(CREATED_AT), needed(row.text(VERSION))?);
                // Of rows without a time, the last.
                if self.found.version.as_ref().is_none_or(|(known, _)| time >= *known) {
                    self.found.version = Some((time, version));
                }
                Ok(())
            }
        }
    }

    fn asset(&mut self, row: &Row<'_>) -> Result<(), Refused> {
        use tables::asset::*;
        let id = needed(row.uuid(ID))?;
        // Empty: a row that lost its file. It counts, and lies nowhere.
        let path = needed(row.bytes(PATH))?;
        let checksum = row.bytes(CHECKSUM).and_then(|value| copy::bytea(&value));
        let external = row.is(EXTERNAL);
        // Before 2.7 that of an external asset is of its path; see IMMICH.md.
        let of_content = match self.layout.as_ref().is_some_and(|layout| layout.has(ALGORITHM)) {
            true => row.bytes(ALGORITHM).as_deref() == Some(tables::ALGORITHM_OF_CONTENT),
            false => !external,
        };
        let sha1 = checksum.as_deref().filter(|_| of_content).and_then(Sha1::from_slice);
        let offline = row.is(OFFLINE);
        let deleted_at = microseconds(row.time(DELETED_AT)).or_else(|| row.is_set(DELETED_AT).then_some(i64::MAX));
        let (local_time, created_at) = (microseconds(row.time(LOCAL_TIME)), microseconds(row.time(CREATED_AT)));
        let text = |column| row.bytes(column);
        let (asset_type, status, visibility) = (text(TYPE), text(STATUS), text(VISIBILITY));
        let name = row.bytes(NAME).unwrap_or_else(|| path.rsplit(|byte| *byte == b'/').next().unwrap_or_default().to_vec().into());
        self.insert(
            "INSERT INTO asset(id, owner, type, name, checksum, of_content, live_video, library, external, offline, deleted_at, status, visibility,
                               local_time, created_at, taken)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
            params![
                id.into_bytes(),
                bytes_of(row.uuid(OWNER)),
                asset_type.as_deref().map(String::from_utf8_lossy),
                String::from_utf8_lossy(&name),
                checksum,
                of_content,
                bytes_of(row.uuid(LIVE_VIDEO)),
                bytes_of(row.uuid(LIBRARY)),
                external,
                offline,
                deleted_at,
                status.as_deref().map(String::from_utf8_lossy),
                visibility.as_deref().map(String::from_utf8_lossy),
                local_time,
                created_at,
                local_time.or(created_at).unwrap_or(i64::MIN),
            ],
        )?;
        let summary = &mut self.found.summary;
        summary.assets += 1;
        summary.trashed += u64::from(deleted_at.is_some());
        summary.external += u64::from(external);
        self.paths.push(Some(Thing::Asset), offline, Some(id), sha1, &path)?;
        if !external {
            self.paths.guess(&path);
        }
        for (column, thing) in [(SIDECAR, Thing::Sidecar), (ENCODED_VIDEO, Thing::Derived)] {
            if let Some(path) = row.path(column) {
                self.paths.push(Some(thing), false, Some(id), None, &path)?;
            }
        }
        Ok(())
    }

    fn system_metadata(&mut self, row: &Row<'_>) -> Result<(), Refused> {
        use tables::system_metadata::{KEY, VALUE};
        #[derive(Deserialize)]
        struct MediaLocation {
            location: String,
        }
        #[derive(Deserialize)]
        struct Maintenance {
            #[serde(rename = "isMaintenanceMode")]
            is_maintenance_mode: bool,
        }
        let key = needed(row.bytes(KEY))?;
        let value = row.bytes(VALUE).unwrap_or_default();
        if key.as_ref() == tables::MEDIA_LOCATION {
            let MediaLocation { location } = needed(serde_json::from_slice(&value).ok())?;
            self.found.media_location = Some(location.into_bytes());
        } else if key.as_ref() == tables::MAINTENANCE {
            // The row stays, and says that it is over.
            let over = matches!(serde_json::from_slice(&value), Ok(Maintenance { is_maintenance_mode: false }));
            self.found.summary.maintenance = !over;
        }
        Ok(())
    }

    fn insert(&self, sql: &str, values: impl rusqlite::Params) -> Result<(), Refused> {
        self.connection.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    /// Places all paths, and gives the inventory away.
    pub(super) fn finish(mut self, whole: Whole, mut locations: Locations) -> Result<Inventory, InventoryError> {
        let section = section_of(&whole);
        let mut summary = std::mem::take(&mut self.found.summary);
        let guessed = self.paths.guessed();
        summary.media_location_guessed = self.found.media_location.is_none() && guessed.is_some();
        if let Some(location) = self.found.media_location.take().or(guessed) {
            summary.media_location = Some(String::from_utf8_lossy(&location).into_owned());
            locations.prefer_media(&location);
        }
        (summary.named, summary.outside) = std::mem::take(&mut self.paths).place(&self.connection, &self.path, &locations)?;
        summary.immich_version = self.found.version.take().map(|(_, version)| version);
        summary.database = section.database;
        summary.server_version = section.server_version;
        summary.program_version = section.program_version;
        summary.cluster = whole.cluster;
        summary.rows_total = section.tables.values().sum();
        summary.text_bytes = whole.text_bytes;
        let mut rows = std::collections::BTreeMap::new();
        for (table, count) in &section.tables {
            *rows.entry(table.to_string()).or_insert(0) += count;
        }
        let json = |value: Result<String, serde_json::Error>| value.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)));
        let write = || {
            self.connection.execute(
                "INSERT INTO summary(format, summary, rows, locations) VALUES (?1, ?2, ?3, ?4)",
                params![FORMAT, json(serde_json::to_string(&summary))?, json(serde_json::to_string(&rows))?, json(serde_json::to_string(&locations))?],
            )?;
            // Owners of albums, where they stand in a table of their own.
            self.connection.execute_batch(
                "CREATE INDEX album_owner_by_album ON album_owner(album, owner);
                 UPDATE album SET owner = (SELECT o.owner FROM album_owner o WHERE o.album = album.id LIMIT 1)
                  WHERE EXISTS (SELECT 1 FROM album_owner o WHERE o.album = album.id);
                 DROP TABLE album_owner;
                 COMMIT;",
            )
        };
        let failed = self.failed();
        write().map_err(&failed)?;
        let connection = std::mem::replace(&mut self.connection, Connection::open_in_memory().map_err(&failed)?);
        self.finished = true;
        connection.flush_prepared_statement_cache();
        Ok(Inventory { connection, path: self.path.clone(), summary, rows, locations, findable: OnceCell::new() })
    }
}

impl Visitor for Fill {
    type Error = InventoryError;

    fn section(&mut self, _database: Option<&str>) -> Result<(), InventoryError> {
        if self.found.has_assets {
            self.sated = true;
            return Ok(());
        }
        self.reset()
    }

    fn copy_began(&mut self, table: &TableName, columns: &[String]) -> Result<bool, InventoryError> {
        self.layout = None;
        let Some(known) = Table::of(table).filter(|_| !self.sated) else { return Ok(false) };
        let usable = Layout::new(known, columns);
        if known == Table::Asset {
            self.found.has_assets = true;
            self.found.summary.is_immich = usable.is_ok();
        }
        match usable {
            Ok(layout) => self.layout = Some(layout),
            Err(column) => self.note(Note::MissingColumn { table: table.to_string(), column: column.to_owned() }),
        }
        self.unreadable = 0;
        Ok(self.layout.is_some())
    }

    fn row(&mut self, row: &[u8]) -> Result<(), InventoryError> {
        let Some(layout) = &self.layout else { return Ok(()) };
        let table = layout.table;
        let taken = match layout.read(row) {
            Some(row) => self.take(table, &row),
            None => Err(Refused::Unreadable),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Refused::Unreadable) => {
                self.unreadable += 1;
                Ok(())
            }
            Err(Refused::Failed(InventoryError::Sqlite { source, .. })) => Err(self.failed()(source)),
            Err(Refused::Failed(error)) => Err(error),
        }
    }

    fn copy_ended(&mut self, table: &TableName, _rows: u64) -> Result<(), InventoryError> {
        let rows = std::mem::take(&mut self.unreadable);
        if self.layout.take().is_some() && rows > 0 {
            self.note(Note::UnreadableRows { table: table.to_string(), rows });
        }
        Ok(())
    }
}
