//! What real Immich servers wrote: where it is, what it should be, and copies of it to work on.
//!
//! `IMMICH_BACKUP_FIXTURES` names their folder; without it they are looked for in `shared/fixtures` beside the workspace.

#![allow(clippy::panic, reason = "for tests: without its material there is no test")]
#![allow(clippy::print_stderr, reason = "a test that is skipped says so")]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, FileTimes};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tempfile::TempDir;

use crate::postgres::Dump;

/// Written by Immich 3.1.0 and `pg_dump`.
pub const IMMICH_3: &str = "immich-3.1.0";
/// Written by Immich 1.135.3 and `pg_dumpall`: tables in the plural, relative paths.
pub const IMMICH_1: &str = "immich-1.135.3";

/// A fixture's folder, e.g. `immich-3.1.0/media`. `None` where fixtures are not there and that was said to be meant.
///
/// # Panics
///
/// If it is not there and nobody said that this was meant.
pub fn folder(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures");
    let root = env::var_os("IMMICH_BACKUP_FIXTURES").map_or_else(beside, PathBuf::from);
    let path = root.join(name);
    if path.is_dir() {
        return Some(path);
    }
    let meant = env::var("IMMICH_BACKUP_WITHOUT_FIXTURES").is_ok_and(|value| value == "1");
    assert!(meant, "there is no `{}`: set IMMICH_BACKUP_FIXTURES, or IMMICH_BACKUP_WITHOUT_FIXTURES=1 to go on without", path.display());
    eprintln!("NOT TESTED: there is no `{}`", path.display());
    None
}

/// What one Immich server wrote.
#[derive(Debug, Clone)]
pub struct Fixture {
    folder: PathBuf,
    external: PathBuf,
    dump: PathBuf,
    /// What should be in it.
    pub expected: Expected,
}

/// A fixture's files, to work on; removed when dropped.
#[derive(Debug)]
pub struct Files {
    folder: TempDir,
}

impl Fixture {
    /// The fixture [`IMMICH_3`] or [`IMMICH_1`]. `None` where fixtures are not there and that was said to be meant.
    ///
    /// # Panics
    ///
    /// If it is not there and nobody said that this was meant, or if it cannot be read.
    pub fn open(name: &str) -> Option<Self> {
        let folder = folder(name)?;
        // Both servers had the same external library.
        let external = self::folder(IMMICH_3)?.join("external");
        let path = folder.join("expected.json");
        let expected = fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::from));
        let expected = expected.unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()));
        Some(Self { dump: folder.join("dump.sql.gz"), folder, external, expected })
    }

    /// Both fixtures, the newer first; none where they are not there and that was said to be meant.
    ///
    /// # Panics
    ///
    /// As [`Fixture::open`].
    pub fn all() -> Vec<Self> {
        [IMMICH_3, IMMICH_1].iter().filter_map(|name| Self::open(name)).collect()
    }

    /// Path of the dump, compressed by gzip.
    pub fn dump_path(&self) -> &Path {
        &self.dump
    }

    /// The dump, for [`crate::postgres::Administrator::load`].
    pub fn dump(&self) -> Dump<'_> {
        Dump::File(&self.dump)
    }

    /// The dump's text as it was written.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn dump_text(&self) -> Vec<u8> {
        self.dump().text().unwrap_or_else(|error| panic!("cannot read `{}`: {error}", self.dump.display()))
    }

    /// The media location, not to be written to.
    pub fn media(&self) -> PathBuf {
        self.folder.join("media")
    }

    /// The external library, `/mnt/external` on the server, not to be written to.
    pub fn external(&self) -> &Path {
        &self.external
    }

    /// Copies the media location and the external library, each file with a time in the past that only depends on its path.
    ///
    /// # Panics
    ///
    /// If they cannot be copied.
    pub fn copy(&self) -> Files {
        let copied = || {
            let folder = tempfile::Builder::new().prefix("immich-backup-library-").tempdir()?;
            copy(&self.media(), &folder.path().join("media"))?;
            copy(&self.external, &folder.path().join("external"))?;
            io::Result::Ok(Files { folder })
        };
        copied().unwrap_or_else(|error| panic!("cannot copy `{}`: {error}", self.folder.display()))
    }
}

impl Files {
    /// The media location.
    pub fn media(&self) -> PathBuf {
        self.folder.path().join("media")
    }

    /// The external library.
    pub fn external(&self) -> PathBuf {
        self.folder.path().join("external")
    }

    /// Where a path that the database names lies in this copy: absolute ones, and those of [`IMMICH_1`], which begin with `upload/`.
    pub fn find(&self, server_path: &str) -> Option<PathBuf> {
        let places = [("/data/", "media"), ("upload/", "media"), ("/mnt/external/", "external")];
        places.iter().find_map(|(prefix, folder)| server_path.strip_prefix(prefix).map(|rest| self.folder.path().join(folder).join(rest)))
    }
}

/// First second of the times that copies get, in 2011; they end in 2023.
const TIMES_BEGIN: u64 = 1_300_000_000;
const TIMES_SPAN: u64 = 400_000_000;

pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    let mut entries = fs::read_dir(from)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
            continue;
        }
        // The content only: fixtures may be read-only.
        io::copy(&mut File::open(entry.path())?, &mut File::create_new(&target)?)?;
        let seed = entry.path().as_os_str().as_encoded_bytes().iter().fold(7_u64, |sum, byte| sum.wrapping_mul(1_099_511_628_211) ^ u64::from(*byte));
        let time = SystemTime::UNIX_EPOCH + Duration::new(TIMES_BEGIN + (seed >> 32) % TIMES_SPAN, u32::try_from(seed % 1_000_000_000).unwrap_or_default());
        File::options().write(true).open(&target)?.set_times(FileTimes::new().set_modified(time))?;
    }
    Ok(())
}

/// What should be in a fixture (`expected.json`).
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Expected {
    /// Immich's version.
    pub version: String,
    /// The media location as the server names it.
    pub media_location: String,
    /// All users, the removed one too.
    pub users: Vec<User>,
    /// All named faces.
    pub people: Vec<Person>,
    /// All albums.
    pub albums: Vec<Album>,
    /// How many there are.
    pub counts: Counts,
    /// Files of the media location that the database does not name.
    pub untracked_files: Vec<String>,
    /// All assets.
    pub assets: Vec<Asset>,
}

/// A user.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// UUID.
    pub id: String,
    /// Address.
    pub email: String,
    /// For people.
    pub name: String,
    /// Name of the folder below `library`, if it is not the id.
    pub storage_label: Option<String>,
    /// Whether this one administers.
    pub is_admin: bool,
    /// When this one was removed.
    pub deleted_at: Option<String>,
    /// As the server names it; empty if there is none.
    pub profile_image_path: String,
}

/// A named face.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Person {
    /// UUID.
    pub id: String,
    /// For people.
    pub name: String,
    /// UUID of the user.
    pub owner_id: String,
    /// As the server names it; empty if there is none.
    pub thumbnail_path: String,
}

/// An album.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Album {
    /// UUID.
    pub id: String,
    /// For people.
    pub album_name: String,
    /// How many assets are in it.
    pub assets: usize,
    /// Their UUIDs.
    pub asset_ids: Vec<String>,
}

/// How many there are.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Assets, the trashed and the external ones too.
    pub assets: u64,
    /// Assets in the trash.
    pub trashed: u64,
    /// Assets of the external library.
    pub external: u64,
    /// Rows of `asset_file` or `asset_files`.
    pub asset_files: u64,
    /// Files in the media location.
    pub files_on_disk: u64,
}

/// An asset.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Asset {
    /// UUID.
    pub id: String,
    /// UUID of the user.
    pub owner: String,
    /// Address of the user.
    pub owner_email: String,
    /// Whether the user was removed.
    pub owner_deleted: bool,
    /// As the server names it.
    pub original_path: String,
    /// As it was called where it came from.
    pub original_file_name: String,
    /// Hexadecimal: SHA-1 of the content, or, of external ones, of the path.
    pub checksum: String,
    /// `sha1` or `sha1-path`; `None` before Immich 2.7.
    pub checksum_algorithm: Option<String>,
    /// `IMAGE` or `VIDEO`.
    pub r#type: String,
    /// `active` or `trashed`.
    pub status: String,
    /// Whether it is in the trash.
    pub is_trashed: bool,
    /// Whether it is in the external library.
    pub is_external: bool,
    /// Whether the server misses its file.
    pub is_offline: bool,
    /// `timeline`, `archive`, `hidden`, `locked`.
    pub visibility: String,
    /// UUID of the video that belongs to this picture.
    pub live_photo_video_id: Option<String>,
    /// UUID of the external library.
    pub library_id: Option<String>,
    /// As the server names it, before Immich 2.4.
    pub sidecar_path: Option<String>,
    /// As the server names it, before Immich 2.6; empty if there is none.
    pub encoded_video_path: Option<String>,
    /// Bytes of the original.
    pub size: u64,
    /// Hexadecimal, of the original's content.
    pub sha1: String,
    /// What belongs to it.
    pub files: Vec<AssetFile>,
    /// Whether `checksum` is that of the content.
    pub content_matches_checksum: bool,
}

/// What belongs to an asset.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssetFile {
    /// `preview`, `thumbnail`, `sidecar`, `fullsize`, `encoded_video`.
    pub r#type: String,
    /// As the server names it.
    pub path: String,
    /// Whether it shows an edited picture.
    #[serde(default)]
    pub is_edited: bool,
    /// Whether it is there.
    pub exists: bool,
    /// Its bytes, if it is there.
    pub size: Option<u64>,
}

impl Expected {
    /// The assets by UUID.
    pub fn by_id(&self) -> BTreeMap<&str, &Asset> {
        self.assets.iter().map(|asset| (asset.id.as_str(), asset)).collect()
    }
}
