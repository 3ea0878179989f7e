//! Finding assets by what they mean to people: album, person, owner, time.

use super::question::{NAMED_COLUMNS, Named, file_at, id_at, named, optional_id_at, sha1_at};
use super::{Inventory, InventoryError, page_rows};
use crate::model::{FilePath, Sha1};
use jiff::Timestamp;
use rusqlite::{OptionalExtension as _, params};
use uuid::Uuid;

/// What kind of asset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A picture.
    Image,
    /// A video.
    Video,
    /// Sound.
    Audio,
    /// Anything else.
    Other,
}

impl Kind {
    /// What Immich writes for it into `asset.type`.
    #[must_use]
    pub fn immich(self) -> &'static str {
        match self {
            Self::Image => "IMAGE",
            Self::Video => "VIDEO",
            Self::Audio => "AUDIO",
            Self::Other => "OTHER",
        }
    }
}

/// Which assets. What is empty or `None` does not matter; of several names in one list, one suffices. Names are compared as a whole and
/// without regard to case; `*` stands for anything. An id is taken for a name too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    /// In one of these albums.
    pub albums: Vec<String>,
    /// Owned by one of these users: e-mail address, name or storage label.
    pub users: Vec<String>,
    /// With one of these persons.
    pub persons: Vec<String>,
    /// Taken at this time or later: by the clock on the wall where it was taken, written as if that were UTC (as Immich does).
    pub since: Option<Timestamp>,
    /// Taken before this time.
    pub until: Option<Timestamp>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// In the trash, or not.
    pub trashed: Option<bool>,
}

/// An asset that was found. The video of a live photo is not found by itself: it belongs to its photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundAsset {
    /// Immich's id.
    pub id: Uuid,
    /// Whose it is.
    pub owner: Option<Uuid>,
    /// The owner's e-mail address.
    pub owner_email: Option<String>,
    /// The owner's name.
    pub owner_name: Option<String>,
    /// The name under which it was uploaded.
    pub original_name: String,
    /// What it is; `None` for what Immich has invented since.
    pub kind: Option<Kind>,
    /// When it was taken, as [`Meaning::since`] takes it.
    pub taken_at: Option<Timestamp>,
    /// Its original; `None` where that is outside of all that is backed up.
    pub file: Option<FilePath>,
    /// SHA-1 of its content, where Immich has one.
    pub sha1: Option<Sha1>,
    /// Whether it is in the trash.
    pub trashed: bool,
    /// Names of the albums that it is in.
    pub albums: Vec<String>,
}

/// After which asset a page begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundCursor {
    taken: i64,
    number: i64,
}

/// Albums of one asset that are named.
const ALBUMS_MAX: i64 = 100;

/// Whether `text` is what `pattern` describes: the same but for case, and `*` for anything.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut parts: Vec<_> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        rest = rest.get(found + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

impl Inventory {
    /// Makes what finding needs, the first time.
    pub(super) fn findable(&self) -> Result<(), InventoryError> {
        if self.findable.get().is_some() {
            return Ok(());
        }
        self.connection
            .execute_batch(
                "BEGIN;
                 CREATE INDEX IF NOT EXISTS asset_by_id ON asset(id);
                 CREATE INDEX IF NOT EXISTS asset_by_time ON asset(taken, number);
                 CREATE INDEX IF NOT EXISTS asset_by_live_video ON asset(live_video) WHERE live_video IS NOT NULL;
                 CREATE INDEX IF NOT EXISTS named_by_asset ON named(asset, thing) WHERE asset IS NOT NULL;
                 CREATE INDEX IF NOT EXISTS album_asset_by_asset ON album_asset(asset, album);
                 CREATE INDEX IF NOT EXISTS album_asset_by_album ON album_asset(album);
                 CREATE INDEX IF NOT EXISTS album_by_id ON album(id);
                 CREATE INDEX IF NOT EXISTS face_by_asset ON face(asset, person);
                 CREATE TABLE IF NOT EXISTS wanted(what TEXT NOT NULL, id BLOB NOT NULL, PRIMARY KEY (what, id)) STRICT, WITHOUT ROWID;
                 COMMIT;",
            )
            .map_err(self.failed())?;
        self.findable.get_or_init(|| ());
        Ok(())
    }

    /// Remembers the ids of all rows of `sql` (an id, and names) that one of `patterns` describes.
    fn want(&self, what: &str, patterns: &[String], sql: &str, names: usize) -> Result<(), InventoryError> {
        let failed = self.failed();
        let read = || {
            let mut query = self.connection.prepare_cached(sql)?;
            let mut insert = self.connection.prepare_cached("INSERT OR IGNORE INTO wanted(what, id) VALUES (?1, ?2)")?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                let id = id_at(row, 0)?;
                let mut known = vec![id.to_string()];
                for column in 1..=names {
                    known.extend(row.get::<_, Option<String>>(column)?);
                }
                if patterns.iter().any(|pattern| known.iter().any(|name| matches(pattern, name))) {
                    insert.execute(params![what, id.into_bytes()])?;
                }
            }
            Ok(())
        };
        read().map_err(failed)
    }

    /// The next assets that `meaning` describes, in the order of the time when they were taken: 1,000 a page. Give the last cursor for the next page;
    /// no cursor means that this was the last.
    ///
    /// # Errors
    /// SQLite's.
    pub fn find_page(&self, meaning: &Meaning, after: Option<FoundCursor>) -> Result<(Vec<FoundAsset>, Option<FoundCursor>), InventoryError> {
        self.findable()?;
        let failed = self.failed();
        self.connection.execute("DELETE FROM wanted", []).map_err(&failed)?;
        let mut conditions = vec![
            "(a.taken, a.number) > (?1, ?2)",
            "(?3 IS NULL OR a.taken >= ?3)",
            "(?4 IS NULL OR a.taken < ?4)",
            "(?5 IS NULL OR a.type = ?5)",
            "(?6 IS NULL OR (a.deleted_at IS NOT NULL) = ?6)",
            "NOT EXISTS (SELECT 1 FROM asset p WHERE p.live_video = a.id)",
        ];
        if !meaning.albums.is_empty() {
            self.want("album", &meaning.albums, "SELECT id, name FROM album", 1)?;
            conditions.push("EXISTS (SELECT 1 FROM album_asset l JOIN wanted w ON w.what = 'album' AND w.id = l.album WHERE l.asset = a.id)");
        }
        if !meaning.users.is_empty() {
            self.want("user", &meaning.users, "SELECT id, email, name, storage_label FROM user", 3)?;
            conditions.push("EXISTS (SELECT 1 FROM wanted w WHERE w.what = 'user' AND w.id = a.owner)");
        }
        if !meaning.persons.is_empty() {
            self.want("person", &meaning.persons, "SELECT id, name FROM person", 1)?;
            conditions.push("EXISTS (SELECT 1 FROM face f JOIN wanted w ON w.what = 'person' AND w.id = f.person WHERE f.asset = a.id)");
        }
        let sql = format!(
            "SELECT a.number, a.taken, a.id, a.owner, u.email, u.name, a.name, a.type, CASE WHEN a.of_content AND length(a.checksum) = 20 THEN a.checksum END,
                    a.deleted_at IS NOT NULL
               FROM asset a LEFT JOIN (SELECT id, email, name FROM user GROUP BY id) u ON u.id = a.owner
              WHERE {} ORDER BY a.taken, a.number LIMIT ?7",
            conditions.join(" AND ")
        );
        let start = after.unwrap_or(FoundCursor { taken: i64::MIN, number: 0 });
        let time = |time: Option<Timestamp>| time.map(Timestamp::as_microsecond);
        let values = params![start.taken, start.number, time(meaning.since), time(meaning.until), meaning.kind.map(Kind::immich), meaning.trashed, page_rows()];
        let found = self.list(&sql, values, |row| {
            let taken: i64 = row.get(1)?;
            let kind: Option<String> = row.get(7)?;
            let asset = FoundAsset {
                id: id_at(row, 2)?,
                owner: optional_id_at(row, 3)?,
                owner_email: row.get(4)?,
                owner_name: row.get(5)?,
                original_name: row.get(6)?,
                kind: [Kind::Image, Kind::Video, Kind::Audio, Kind::Other].into_iter().find(|known| Some(known.immich()) == kind.as_deref()),
                taken_at: (taken != i64::MIN).then(|| Timestamp::from_microsecond(taken).ok()).flatten(),
                sha1: sha1_at(row, 8)?,
                trashed: row.get(9)?,
                file: None,
                albums: Vec::new(),
            };
            Ok((asset, FoundCursor { taken, number: row.get(0)? }))
        })?;
        let more = found.len() as u64 >= page_rows().unsigned_abs();
        let cursor = found.last().map(|(_, cursor)| *cursor).filter(|_| more);
        let mut page = Vec::with_capacity(found.len());
        for (mut asset, _) in found {
            let id = asset.id.into_bytes();
            let sql = "SELECT f.external, f.path, n.name FROM named n JOIN folder f ON f.id = n.folder WHERE n.asset = ?1 AND n.thing = 0";
            let mut query = self.connection.prepare_cached(sql).map_err(&failed)?;
            asset.file = query.query_row([id], |row| file_at(row, 0)).optional().map_err(&failed)?;
            let sql = "SELECT b.name FROM album_asset l JOIN album b ON b.id = l.album WHERE l.asset = ?1 ORDER BY b.name LIMIT ?2";
            asset.albums = self.list(sql, params![id, ALBUMS_MAX], |row| row.get(0))?;
            page.push(asset);
        }
        Ok((page, cursor))
    }

    /// Whether there is an asset of this id, also as the video of a live photo.
    ///
    /// # Errors
    /// SQLite's.
    pub fn has_asset(&self, id: Uuid) -> Result<bool, InventoryError> {
        self.findable()?;
        let mut query = self.connection.prepare_cached("SELECT EXISTS (SELECT 1 FROM asset WHERE id = ?1)").map_err(self.failed())?;
        query.query_row([id.into_bytes()], |row| row.get(0)).map_err(self.failed())
    }

    /// The files of an asset: its original, its sidecars, what was derived from it, and all of that for its live photo's video.
    ///
    /// # Errors
    /// SQLite's.
    pub fn files_of(&self, asset: Uuid) -> Result<Vec<Named>, InventoryError> {
        self.findable()?;
        let sql = format!(
            "SELECT {NAMED_COLUMNS} FROM named n JOIN folder f ON f.id = n.folder
              WHERE n.asset = ?1 OR n.asset IN (SELECT live_video FROM asset WHERE id = ?1 AND live_video IS NOT NULL)
              ORDER BY n.asset <> ?1, n.thing, n.number LIMIT ?2"
        );
        self.list(&sql, params![asset.into_bytes(), page_rows()], named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_a_whole_without_case_and_with_stars() {
        for (pattern, text) in
            [("Été", "été"), ("sum*", "Summer 🌞"), ("*sea", "Summer 'n' sea"), ("*", ""), ("a*b*c", "a-b-b-c"), ("*b*", "abc"), ("[x]?", "[X]?")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("summer", "summer 2"), ("", "x"), ("a*a", "a"), ("a*b*c", "acb"), ("?", "x"), ("*b", "bc")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
