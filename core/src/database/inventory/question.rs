//! What an inventory is asked.

use super::{Inventory, InventoryError, page_rows};
use crate::model::{FilePath, Root, RootPath, Sha1};
use crate::verdict::Thing;
use rusqlite::types::Type;
use rusqlite::{OptionalExtension as _, Row, params};
use uuid::Uuid;

/// A file that the dump names, in a root of the backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// What it is.
    pub thing: Thing,
    /// Where.
    pub file: FilePath,
    /// The asset that it is, or belongs to; none for profile pictures and persons' thumbnails.
    pub asset: Option<Uuid>,
    /// SHA-1 of its content, where Immich has one.
    pub sha1: Option<Sha1>,
    /// Immich says that the file is gone.
    pub offline: bool,
}

/// After which file a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedCursor(i64);

/// A file that the dump names, outside of all that is backed up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outside {
    /// What it is.
    pub thing: Thing,
    /// Where, as the dump has it; what is no UTF-8 in it is replaced.
    pub path: String,
    /// As [`Named::asset`].
    pub asset: Option<Uuid>,
    /// As [`Named::sha1`].
    pub sha1: Option<Sha1>,
    /// As [`Named::offline`].
    pub offline: bool,
}

/// As [`NamedCursor`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutsideCursor(i64);

/// The asset that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AssetAt {
    /// Which.
    pub id: Uuid,
    /// SHA-1 of its content, where Immich has one.
    pub sha1: Option<Sha1>,
}

/// A user of Immich.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Immich's id.
    pub id: Uuid,
    /// The e-mail address.
    pub email: String,
    /// The name.
    pub name: String,
    /// The folder of `library/` that has this user's files, where it is not the id.
    pub storage_label: Option<String>,
    /// Whether this is an administrator.
    pub admin: bool,
    /// Deleted, and not purged yet: the files are there.
    pub deleted: bool,
}

/// An external library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Immich's id.
    pub id: Uuid,
    /// The name.
    pub name: String,
    /// Whose it is.
    pub owner: Option<Uuid>,
    /// Where the server sees it.
    pub import_paths: Vec<String>,
}

/// An album.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Album {
    /// Immich's id.
    pub id: Uuid,
    /// The name.
    pub name: String,
    /// Whose it is.
    pub owner: Option<Uuid>,
    /// Whether it was deleted.
    pub deleted: bool,
    /// How many assets are in it.
    pub assets: u64,
}

/// A person whom Immich recognises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Immich's id.
    pub id: Uuid,
    /// The name; empty where none was given.
    pub name: String,
    /// Whose collection the person is in.
    pub owner: Option<Uuid>,
}

fn odd(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, Box::new(error))
}

pub(super) fn id_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get(column).map(Uuid::from_bytes)
}

pub(super) fn optional_id_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Uuid>> {
    Ok(row.get::<_, Option<[u8; 16]>>(column)?.map(Uuid::from_bytes))
}

pub(super) fn sha1_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Sha1>> {
    Ok(row.get::<_, Option<[u8; 20]>>(column)?.map(Sha1))
}

fn thing_at(row: &Row<'_>, column: usize) -> rusqlite::Result<Thing> {
    let number: u8 = row.get(column)?;
    [Thing::Asset, Thing::Sidecar, Thing::Profile, Thing::Derived]
        .into_iter()
        .find(|thing| super::place::thing_number(*thing) == number)
        .ok_or(rusqlite::Error::IntegralValueOutOfRange(column, number.into()))
}

/// Columns of [`named`]: folder's external name and path, name, thing, offline, asset, SHA-1.
pub(super) const NAMED_COLUMNS: &str = "f.external, f.path, n.name, n.thing, n.offline, n.asset, n.sha1";

pub(super) fn file_at(row: &Row<'_>, column: usize) -> rusqlite::Result<FilePath> {
    let text = |column| -> rusqlite::Result<&str> { row.get_ref(column)?.as_str().map_err(|error| odd(column, error)) };
    let (external, folder, name) = (text(column)?, text(column + 1)?, text(column + 2)?);
    let root = Root::from_name_in_manifest(external).map_err(|error| odd(column, error))?;
    Ok(FilePath { root, path: RootPath::in_folder(folder, name) })
}

pub(super) fn named(row: &Row<'_>) -> rusqlite::Result<Named> {
    Ok(Named { file: file_at(row, 0)?, thing: thing_at(row, 3)?, offline: row.get(4)?, asset: optional_id_at(row, 5)?, sha1: sha1_at(row, 6)? })
}

impl Inventory {
    /// The next files, ordered by (name of the external library or empty, folder, name) as bytes: 1,000 a page. Give the last cursor for the next
    /// page; no cursor means that this was the last.
    ///
    /// # Errors
    /// SQLite's.
    pub fn named_page(&self, after: Option<NamedCursor>) -> Result<(Vec<Named>, Option<NamedCursor>), InventoryError> {
        let sql = format!("SELECT {NAMED_COLUMNS} FROM named n JOIN folder f ON f.id = n.folder WHERE n.number > ?1 ORDER BY n.number LIMIT ?2");
        let start = after.map_or(0, |cursor| cursor.0);
        let page = self.list(&sql, params![start, page_rows()], named)?;
        // They are numbered without gaps.
        let end = start + super::signed(page.len() as u64);
        let more = page.len() as u64 >= page_rows().unsigned_abs();
        Ok((page, more.then_some(NamedCursor(end))))
    }

    /// The next of the things that belong to no root, in the order of the dump: 1,000 a page, as [`Self::named_page`].
    ///
    /// # Errors
    /// SQLite's.
    pub fn outside_page(&self, after: Option<OutsideCursor>) -> Result<(Vec<Outside>, Option<OutsideCursor>), InventoryError> {
        let sql = "SELECT path, thing, offline, asset, sha1 FROM outside WHERE number > ?1 ORDER BY number LIMIT ?2";
        let start = after.map_or(0, |cursor| cursor.0);
        let page = self.list(sql, params![start, page_rows()], |row| {
            let path = row.get_ref(0)?.as_blob().map_err(|error| odd(0, error))?;
            let path = String::from_utf8_lossy(path).into_owned();
            Ok(Outside { path, thing: thing_at(row, 1)?, offline: row.get(2)?, asset: optional_id_at(row, 3)?, sha1: sha1_at(row, 4)? })
        })?;
        let end = start + super::signed(page.len() as u64);
        let more = page.len() as u64 >= page_rows().unsigned_abs();
        Ok((page, more.then_some(OutsideCursor(end))))
    }

    /// The asset whose original is at `file`.
    ///
    /// # Errors
    /// SQLite's.
    pub fn asset_at(&self, file: &FilePath) -> Result<Option<AssetAt>, InventoryError> {
        let failed = self.failed();
        let (folder, name) = file.path.split();
        let sql = "SELECT id, first, last FROM folder WHERE external = ?1 AND path = ?2";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let range = query.query_row(params![file.root.name_in_manifest(), folder], |row| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?)));
        let Some((mut low, mut high)) = range.optional().map_err(&failed)? else { return Ok(None) };
        // The first in the folder whose name is not less: names are in order.
        let last = high;
        let mut name_at = self.connection.prepare_cached("SELECT name < ?2 FROM named WHERE number = ?1").map_err(&failed)?;
        while low <= high {
            let middle = low + (high - low) / 2;
            let less: bool = name_at.query_row(params![middle, name], |row| row.get(0)).map_err(&failed)?;
            if less {
                low = middle + 1;
            } else {
                high = middle - 1;
            }
        }
        // Assets come before all else of the same name.
        let sql = "SELECT asset, sha1 FROM named WHERE number = ?1 AND number <= ?2 AND name = ?3 AND thing = 0";
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        query.query_row(params![low, last, name], |row| Ok(AssetAt { id: id_at(row, 0)?, sha1: sha1_at(row, 1)? })).optional().map_err(&failed)
    }

    /// All users.
    ///
    /// # Errors
    /// SQLite's.
    pub fn users(&self) -> Result<Vec<User>, InventoryError> {
        self.list("SELECT id, email, name, storage_label, admin, deleted_at IS NOT NULL FROM user ORDER BY email, id", [], |row| {
            Ok(User { id: id_at(row, 0)?, email: row.get(1)?, name: row.get(2)?, storage_label: row.get(3)?, admin: row.get(4)?, deleted: row.get(5)? })
        })
    }

    /// All external libraries.
    ///
    /// # Errors
    /// SQLite's.
    pub fn libraries(&self) -> Result<Vec<Library>, InventoryError> {
        self.list("SELECT id, name, owner, import_paths FROM library ORDER BY name, id", [], |row| {
            let paths: String = row.get(3)?;
            let import_paths = serde_json::from_str(&paths).map_err(|error| odd(3, error))?;
            Ok(Library { id: id_at(row, 0)?, name: row.get(1)?, owner: optional_id_at(row, 2)?, import_paths })
        })
    }

    /// The next albums in the order of the dump: 1,000 a page, after `after` of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn albums_page(&self, after: u64) -> Result<Vec<Album>, InventoryError> {
        self.findable()?;
        let sql = "SELECT id, name, owner, deleted, (SELECT count(*) FROM album_asset l WHERE l.album = a.id) FROM album a WHERE number > ?1 ORDER BY number LIMIT ?2";
        self.list(sql, params![super::signed(after), page_rows()], |row| {
            let assets: i64 = row.get(4)?;
            Ok(Album { id: id_at(row, 0)?, name: row.get(1)?, owner: optional_id_at(row, 2)?, deleted: row.get(3)?, assets: assets.unsigned_abs() })
        })
    }

    /// The next persons in the order of the dump: 1,000 a page, after `after` of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn persons_page(&self, after: u64) -> Result<Vec<Person>, InventoryError> {
        let sql = "SELECT id, name, owner FROM person WHERE number > ?1 ORDER BY number LIMIT ?2";
        self.list(sql, params![super::signed(after), page_rows()], |row| Ok(Person { id: id_at(row, 0)?, name: row.get(1)?, owner: optional_id_at(row, 2)? }))
    }

    pub(super) fn list<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, InventoryError> {
        let failed = self.failed();
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        query.query_map(values, read).and_then(Iterator::collect).map_err(&failed)
    }
}
