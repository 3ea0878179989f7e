//! The tables and columns of Immich that are read, by the names of every generation from 1.113 to 3.1. No other module knows one.

use crate::database::copy;
use crate::database::text::TableName;
use jiff::Timestamp;
use std::borrow::Cow;
use uuid::Uuid;

/// What Immich keeps in a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Asset,
    AssetFile,
    User,
    Person,
    Face,
    Library,
    Album,
    AlbumUser,
    AlbumAsset,
    SystemMetadata,
    VersionHistory,
}

/// A column: its names, the newest first, and whether the table is of no use without it.
type Column = (&'static [&'static str], bool);

const NEEDED: bool = true;
const OPTIONAL: bool = false;

/// Columns that are read of one table at most.
const COLUMNS_MAX: usize = 20;

macro_rules! columns {
    ($module:ident: $($constant:ident = $names:expr, $needed:expr;)*) => {
        pub(super) mod $module {
            use super::{Column, NEEDED, OPTIONAL};
            // Numbers the columns.
            #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "only their order is of interest")]
            enum Order { $($constant),* }
            $(pub(in super::super) const $constant: usize = Order::$constant as usize;)*
            pub(super) const ALL: &[Column] = &[$((&$names, $needed)),*];
            // Both are used, or the table would have no columns.
            const _: (bool, bool) = (NEEDED, OPTIONAL);
        }
    };
}

columns! { asset:
    ID = ["id"], NEEDED;
    PATH = ["originalPath"], NEEDED;
    OWNER = ["ownerId"], OPTIONAL;
    TYPE = ["type"], OPTIONAL;
    NAME = ["originalFileName"], OPTIONAL;
    CHECKSUM = ["checksum"], OPTIONAL;
    ALGORITHM = ["checksumAlgorithm"], OPTIONAL; // since 2.7
    LIVE_VIDEO = ["livePhotoVideoId"], OPTIONAL;
    LIBRARY = ["libraryId"], OPTIONAL;
    EXTERNAL = ["isExternal"], OPTIONAL;
    OFFLINE = ["isOffline"], OPTIONAL;
    DELETED_AT = ["deletedAt"], OPTIONAL;
    STATUS = ["status"], OPTIONAL; // since 1.116
    VISIBILITY = ["visibility"], OPTIONAL; // since 1.133
    LOCAL_TIME = ["localDateTime"], OPTIONAL;
    CREATED_AT = ["fileCreatedAt"], OPTIONAL;
    SIDECAR = ["sidecarPath"], OPTIONAL; // before 2.4
    ENCODED_VIDEO = ["encodedVideoPath"], OPTIONAL; // before 2.6
}
columns! { asset_file:
    ASSET = ["assetId"], NEEDED;
    PATH = ["path"], NEEDED;
    TYPE = ["type"], OPTIONAL;
}
columns! { user:
    ID = ["id"], NEEDED;
    EMAIL = ["email"], OPTIONAL;
    NAME = ["name"], OPTIONAL;
    STORAGE_LABEL = ["storageLabel"], OPTIONAL;
    ADMIN = ["isAdmin"], OPTIONAL;
    DELETED_AT = ["deletedAt"], OPTIONAL;
    PROFILE = ["profileImagePath"], OPTIONAL;
}
columns! { person:
    ID = ["id"], NEEDED;
    OWNER = ["ownerId"], OPTIONAL;
    NAME = ["name"], OPTIONAL;
    THUMBNAIL = ["thumbnailPath"], OPTIONAL;
}
columns! { face:
    ASSET = ["assetId"], NEEDED;
    PERSON = ["personId"], NEEDED;
    DELETED_AT = ["deletedAt"], OPTIONAL;
}
columns! { library:
    ID = ["id"], NEEDED;
    NAME = ["name"], OPTIONAL;
    OWNER = ["ownerId"], OPTIONAL;
    IMPORT_PATHS = ["importPaths"], OPTIONAL;
}
columns! { album:
    ID = ["id"], NEEDED;
    NAME = ["albumName"], OPTIONAL;
    OWNER = ["ownerId"], OPTIONAL; // before 3.0
    DELETED_AT = ["deletedAt"], OPTIONAL;
}
columns! { album_user:
    ALBUM = ["albumId", "albumsId"], NEEDED;
    USER = ["userId", "usersId"], NEEDED;
    ROLE = ["role"], NEEDED;
}
columns! { album_asset:
    ALBUM = ["albumId", "albumsId"], NEEDED;
    ASSET = ["assetId", "assetsId"], NEEDED;
}
columns! { system_metadata:
    KEY = ["key"], NEEDED;
    VALUE = ["value"], NEEDED;
}
columns! { version_history:
    VERSION = ["version"], NEEDED;
    CREATED_AT = ["createdAt"], OPTIONAL;
}

/// What stands in `album_user` for an album's owner, since 3.0.
pub(super) const ROLE_OWNER: &[u8] = b"owner";
/// What stands in `asset."checksumAlgorithm"` where the checksum is of the content.
pub(super) const ALGORITHM_OF_CONTENT: &[u8] = b"sha1";
/// Key of `system_metadata`: where the server sees the media location.
pub(super) const MEDIA_LOCATION: &[u8] = b"MediaLocation";
/// Key of `system_metadata`: the server was in maintenance mode.
pub(super) const MAINTENANCE: &[u8] = b"maintenance-mode";

impl Table {
    /// What Immich keeps in the table of this name.
    pub(super) fn of(table: &TableName) -> Option<Self> {
        if table.schema != "public" {
            return None;
        }
        Some(match table.name.as_str() {
            "asset" | "assets" => Self::Asset,
            "asset_file" | "asset_files" => Self::AssetFile,
            "user" | "users" => Self::User,
            "person" => Self::Person,
            "asset_face" | "asset_faces" => Self::Face,
            "library" | "libraries" => Self::Library,
            "album" | "albums" => Self::Album,
            "album_user" | "albums_shared_users_users" => Self::AlbumUser,
            "album_asset" | "albums_assets_assets" => Self::AlbumAsset,
            "system_metadata" => Self::SystemMetadata,
            "version_history" => Self::VersionHistory,
            _ => return None,
        })
    }

    fn columns(self) -> &'static [Column] {
        match self {
            Self::Asset => asset::ALL,
            Self::AssetFile => asset_file::ALL,
            Self::User => user::ALL,
            Self::Person => person::ALL,
            Self::Face => face::ALL,
            Self::Library => library::ALL,
            Self::Album => album::ALL,
            Self::AlbumUser => album_user::ALL,
            Self::AlbumAsset => album_asset::ALL,
            Self::SystemMetadata => system_metadata::ALL,
            Self::VersionHistory => version_history::ALL,
        }
    }
}

/// Where the columns of a table stand in the rows of one `COPY` block.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) table: Table,
    /// For each column of the dump up to the last that is wanted: which of ours it is.
    wanted: Vec<Option<usize>>,
    /// Columns of the dump.
    width: usize,
}

impl Layout {
    /// The layout of a block with these columns. `Err` names the needed column that it lacks.
    pub(super) fn new(table: Table, columns: &[String]) -> Result<Self, &'static str> {
        let mut wanted = vec![None; columns.len()];
        for (number, (names, needed)) in table.columns().iter().enumerate() {
            let position = names.iter().find_map(|name| columns.iter().position(|column| column == name));
            match position.and_then(|position| wanted.get_mut(position)) {
                Some(place) => *place = Some(number),
                None if *needed => return Err(names.first().copied().unwrap_or_default()),
                None => {}
            }
        }
        let last = wanted.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        wanted.truncate(last);
        Ok(Self { table, wanted, width: columns.len() })
    }

    /// Whether the block has this column.
    pub(super) fn has(&self, column: usize) -> bool {
        self.wanted.contains(&Some(column))
    }

    /// The columns of `row`. `None` where it has more or fewer than the block.
    pub(super) fn read<'a>(&self, row: &'a [u8]) -> Option<Row<'a>> {
        let mut values = [None; COLUMNS_MAX];
        let mut fields = copy::fields(row);
        for place in &self.wanted {
            let field = fields.next()?;
            if let Some(value) = place.and_then(|column| values.get_mut(column)) {
                *value = Some(field);
            }
        }
        (fields.count() + self.wanted.len() == self.width).then_some(Row { values })
    }
}

/// The columns of one row that are read; those that are NULL or not there are `None`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    values: [Option<&'a [u8]>; COLUMNS_MAX],
}

impl<'a> Row<'a> {
    pub(super) fn bytes(&self, column: usize) -> Option<Cow<'a, [u8]>> {
        let field = self.values.get(column).copied().flatten()?;
        (!copy::is_null(field)).then(|| copy::decode(field))
    }

    /// A path: none where it is empty.
    pub(super) fn path(&self, column: usize) -> Option<Cow<'a, [u8]>> {
        self.bytes(column).filter(|path| !path.is_empty())
    }

    /// A text; what is no UTF-8 in it is replaced.
    pub(super) fn text(&self, column: usize) -> Option<String> {
        self.bytes(column).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub(super) fn uuid(&self, column: usize) -> Option<Uuid> {
        copy::uuid(&self.bytes(column)?)
    }

    pub(super) fn is(&self, column: usize) -> bool {
        self.bytes(column).and_then(|value| copy::boolean(&value)).unwrap_or(false)
    }

    pub(super) fn time(&self, column: usize) -> Option<Timestamp> {
        copy::timestamp(&self.bytes(column)?)
    }

    /// Whether there is anything.
    pub(super) fn is_set(&self, column: usize) -> bool {
        self.values.get(column).copied().flatten().is_some_and(|field| !copy::is_null(field))
    }
}
