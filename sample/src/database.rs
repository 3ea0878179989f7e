//! What Immich's database would say of the files: SQL that `psql` loads into an empty database.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, Write, sink};
use std::path::Path;

use anyhow::Context;
use jiff::Timestamp;
use sha1::{Digest, Sha1};
use uuid::Uuid;

/// The tables.
const SCHEMA: &str = include_str!("schema.sql");

/// Where Immich's server sees the media location.
const MEDIA_LOCATION: &str = "/data";

/// The version whose database this is like.
const IMMICH_VERSION: &str = "3.1.0";

/// A photo or a video that somebody owns.
pub(crate) struct Asset<'a> {
    pub(crate) id: Uuid,
    pub(crate) owner: Uuid,
    /// Relative to the media location.
    pub(crate) path: &'a str,
    /// What the owner called it.
    pub(crate) name: &'a str,
    pub(crate) content: &'a [u8],
    pub(crate) taken: Timestamp,
    pub(crate) size: (u16, u16),
    pub(crate) kind: Kind,
    /// When it was put into the trash.
    pub(crate) trashed: Option<Timestamp>,
}

/// What an asset is.
pub(crate) enum Kind {
    /// A photo, and the video that belongs to it.
    Photo { video: Option<Uuid> },
    /// A video of so many milliseconds; one that belongs to a photo is hidden.
    Video { duration: u32, hidden: bool },
}

/// The SQL, as it is written.
pub(crate) struct Database(BufWriter<Box<dyn Write>>);

impl Database {
    /// Writes to the new file `path`; without one, nowhere.
    pub(crate) fn create(path: Option<&Path>) -> anyhow::Result<Database> {
        let out: Box<dyn Write> = match path {
            Some(path) => Box::new(File::create_new(path).with_context(|| format!("cannot make the file `{}`", path.display()))?),
            None => Box::new(sink()),
        };
        let mut database = Database(BufWriter::new(out));
        database.write(&format!("BEGIN;\n\n{SCHEMA}\n"))?;
        Ok(database)
    }

    /// What an installation has before anybody has uploaded anything.
    pub(crate) fn installation(&mut self, id: Uuid, installed: Timestamp) -> anyhow::Result<()> {
        self.insert("version_history", &[("id", &id), ("createdAt", &installed), ("version", &IMMICH_VERSION)])?;
        let location = format!(r#"{{"location": "{MEDIA_LOCATION}"}}"#);
        self.insert("system_metadata", &[("key", &"MediaLocation"), ("value", &location)])?;
        self.insert("system_metadata", &[("key", &"system-config"), ("value", &r#"{"storageTemplate": {"enabled": true}}"#)])
    }

    /// An asset's own row. Those that name it come later.
    pub(crate) fn asset(&mut self, asset: &Asset<'_>) -> anyhow::Result<()> {
        let (path, checksum) = (on_server(asset.path), format!("\\x{}", hex(&Sha1::digest(asset.content))));
        let (width, height) = asset.size;
        let mut row: Vec<(&str, &dyn Display)> = vec![
            ("id", &asset.id),
            ("ownerId", &asset.owner),
            ("originalPath", &path),
            ("originalFileName", &asset.name),
            ("checksum", &checksum),
            ("checksumAlgorithm", &"sha1"),
            ("fileCreatedAt", &asset.taken),
            ("fileModifiedAt", &asset.taken),
            ("localDateTime", &asset.taken),
            ("width", &width),
            ("height", &height),
        ];
        match &asset.kind {
            Kind::Photo { video } => {
                row.push(("type", &"IMAGE"));
                row.extend(video.as_ref().map(|video| ("livePhotoVideoId", video as &dyn Display)));
            }
            Kind::Video { duration, hidden } => {
                row.extend([("type", &"VIDEO" as &dyn Display), ("duration", duration)]);
                row.push(("visibility", if *hidden { &"hidden" } else { &"timeline" }));
            }
        }
        if let Some(trashed) = &asset.trashed {
            row.extend([("deletedAt", trashed as &dyn Display), ("status", &"trashed")]);
        }
        self.insert("asset", &row)
    }

    /// A file that Immich keeps beside an asset.
    pub(crate) fn file(&mut self, id: Uuid, asset: Uuid, kind: &str, path: &str) -> anyhow::Result<()> {
        self.insert("asset_file", &[("id", &id), ("assetId", &asset), ("type", &kind), ("path", &on_server(path))])
    }

    /// A row of `table`; columns that are not named have their default, which for most is NULL.
    pub(crate) fn insert(&mut self, table: &str, row: &[(&str, &dyn Display)]) -> anyhow::Result<()> {
        let columns: Vec<_> = row.iter().map(|(column, _)| format!("\"{column}\"")).collect();
        // Any value may be quoted as a text: PostgreSQL knows the type of the column.
        let values: Vec<_> = row.iter().map(|(_, value)| format!("'{}'", value.to_string().replace('\'', "''"))).collect();
        self.write(&format!("INSERT INTO \"{table}\" ({}) VALUES ({});\n", columns.join(", "), values.join(", ")))
    }

    /// The end, without which nothing of it is loaded.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.write("\nCOMMIT;\n")?;
        self.0.flush().context("cannot write the database")
    }

    fn write(&mut self, sql: &str) -> anyhow::Result<()> {
        self.0.write_all(sql.as_bytes()).context("cannot write the database")
    }
}

/// A file of the media location, as the database names it.
pub(crate) fn on_server(path: &str) -> String {
    format!("{MEDIA_LOCATION}/{path}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
