//! What a repair asks: whose content lies in an object, and which paths ever had some content.

use super::question::{FILE_COLUMNS, STANDS, converted, file_row};
use super::{FileRow, Manifest, ManifestError, signed};
use crate::model::{FilePath, Root, RootPath, Sha1, Sha256};
use crate::repository::manifest::apply::file_at_home;
use rusqlite::params;

/// Versions of one object, and paths of one content, that are looked at: what is true of them is true of all.
const LOOKED_AT_MAX: i64 = 256;

/// A version of a path whose content lies in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The version.
    pub row: FileRow,
    /// Whether it stands now.
    pub stands: bool,
}

impl Manifest {
    /// Versions whose content lies in the object `key`, the first of them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn held_in(&self, key: &str) -> Result<Vec<Held>, ManifestError> {
        let columns = format!("SELECT {FILE_COLUMNS}, v.until IS NULL, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder");
        let mut held = self.held(&format!("{columns} WHERE v.key = ?1 ORDER BY v.until IS NOT NULL, v.since DESC LIMIT ?2"), params![key, LOOKED_AT_MAX])?;
        if let Some(home) = file_at_home(key) {
            let (folder, name) = home.path.split();
            let sql = format!("{columns} WHERE v.key IS NULL AND f.external = ?1 AND f.path = ?2 AND v.name = ?3 ORDER BY v.since DESC LIMIT ?4");
            held.splice(0..0, self.held(&sql, params![home.root.name_in_manifest(), folder, name, LOOKED_AT_MAX])?);
        }
        Ok(held)
    }

    /// Versions that ever had this content, at any path, the newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn versions_of(&self, content: &Sha256) -> Result<Vec<Held>, ManifestError> {
        let sql = format!(
            "SELECT {FILE_COLUMNS}, v.until IS NULL, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder
              WHERE substr(v.sha256, 1, 8) = substr(?1, 1, 8) AND v.sha256 = ?1 ORDER BY v.until IS NOT NULL, v.since DESC LIMIT ?2"
        );
        self.held(&sql, params![content.0, LOOKED_AT_MAX])
    }

    /// Versions that ever had content with this SHA-1, at any path, the newest first.
    ///
    /// # Errors
    /// SQLite's.
    pub fn versions_with_sha1(&self, sha1: &Sha1) -> Result<Vec<Held>, ManifestError> {
        let sql = format!(
            "SELECT {FILE_COLUMNS}, v.until IS NULL, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder
              WHERE substr(v.sha1, 1, 8) = substr(?1, 1, 8) AND v.sha1 = ?1 ORDER BY v.damaged IS NOT NULL, v.until IS NOT NULL, v.since DESC LIMIT ?2"
        );
        self.held(&sql, params![sha1.0, LOOKED_AT_MAX])
    }

    /// What `file` held last, whether it stands or is archived.
    ///
    /// # Errors
    /// SQLite's.
    pub fn last_version(&self, file: &FilePath) -> Result<Option<Held>, ManifestError> {
        let (folder, name) = file.path.split();
        let sql = format!(
            "SELECT {FILE_COLUMNS}, v.until IS NULL, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder
              WHERE f.external = ?1 AND f.path = ?2 AND v.name = ?3 AND (v.until IS NULL OR v.until > v.since) ORDER BY v.since DESC LIMIT 1"
        );
        Ok(self.held(&sql, params![file.root.name_in_manifest(), folder, name])?.pop())
    }

    /// What stands in the folder `path` of `root` in the snapshot of log entry `sequence`, in the order of names.
    ///
    /// # Errors
    /// SQLite's.
    pub fn standing_in(&self, root: &Root, path: &str, sequence: u64) -> Result<Vec<FileRow>, ManifestError> {
        let sql = format!(
            "SELECT {FILE_COLUMNS}, v.until IS NULL, f.external, f.path FROM version v JOIN folder f ON f.id = v.folder
              WHERE {STANDS} AND f.external = ?2 AND f.path = ?3 ORDER BY v.name"
        );
        let rows = self.held(&sql, params![signed(sequence), root.name_in_manifest(), path])?;
        Ok(rows.into_iter().map(|held| held.row).collect())
    }

    fn held(&self, sql: &str, values: impl rusqlite::Params) -> Result<Vec<Held>, ManifestError> {
        let failed = self.failed("read");
        let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
        let rows = query.query_map(values, |row| {
            let (external, folder): (String, String) = (row.get(9)?, row.get(10)?);
            if !folder.is_empty() {
                converted(10, RootPath::parse(&folder))?;
            }
            Ok(Held { row: file_row(row, &converted(9, Root::from_name_in_manifest(&external))?, &folder)?, stands: row.get(8)? })
        });
        rows.and_then(Iterator::collect).map_err(&failed)
    }
}
