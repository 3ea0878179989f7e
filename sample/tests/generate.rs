//! What a generated library promises to those who try a backup on it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use exif::{In, Reader, Tag};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use sha1::{Digest, Sha1};

type Files = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;
type Row = BTreeMap<String, String>;

fn run(folder: &Path, database: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sample-library")).arg(folder).args(["--photos", "6", "--database"]).arg(database).output().unwrap()
}

fn generate() -> Files {
    generate_both().0
}

/// The files, and the SQL.
fn generate_both() -> (Files, String) {
    let (folder, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let database = beside.path().join("database.sql");
    let output = run(folder.path(), &database);
    assert!(output.status.success(), "{output:?}");
    let mut files = Files::new();
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else {
                let modified = entry.metadata().unwrap().modified().unwrap();
                let path = entry.path().strip_prefix(folder.path()).unwrap().to_owned();
                files.insert(path, (fs::read(entry.path()).unwrap(), modified));
            }
        }
    }
    (files, fs::read_to_string(database).unwrap())
}

/// What is inserted into `table`.
fn rows(sql: &str, table: &str) -> Vec<Row> {
    let statements = sql.lines().filter_map(|line| line.strip_prefix(&format!("INSERT INTO \"{table}\" (\"")));
    let row = |statement: &str| {
        let (columns, values) = statement.strip_suffix("');").unwrap().split_once("\") VALUES ('").unwrap();
        let (columns, values): (Vec<_>, Vec<_>) = (columns.split("\", \"").collect(), values.split("', '").collect());
        assert_eq!(columns.len(), values.len(), "{statement}");
        columns.into_iter().zip(values).map(|(column, value)| (column.to_owned(), value.replace("''", "'"))).collect()
    };
    statements.map(row).collect()
}

fn all<'a>(rows: &'a [Row], column: &str) -> Vec<&'a str> {
    rows.iter().map(|row| row[column].as_str()).collect()
}

/// The file of the media location that the database names so.
fn file(path: &str) -> PathBuf {
    PathBuf::from(path.strip_prefix("/data/").unwrap())
}

#[test]
fn the_database_has_the_sha1_of_each_original() {
    let (files, sql) = generate_both();
    let assets = rows(&sql, "asset");
    // Six photos, the videos of two of them, and one video.
    assert_eq!(assets.len(), 9);
    for asset in assets {
        let (content, _) = &files[&file(&asset["originalPath"])];
        let sha1: String = Sha1::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((asset["checksum"].as_str(), asset["checksumAlgorithm"].as_str()), (format!("\\x{sha1}").as_str(), "sha1"), "{asset:?}");
    }
}

#[test]
fn the_database_names_every_file_but_the_markers_once() {
    let (files, sql) = generate_both();
    let mut named = Vec::new();
    for (table, column) in [("asset", "originalPath"), ("asset_file", "path"), ("user", "profileImagePath"), ("person", "thumbnailPath")] {
        named.extend(all(&rows(&sql, table), column).into_iter().map(file));
    }
    named.sort();
    let there: Vec<_> = files.into_keys().filter(|path| !path.ends_with(".immich")).collect();
    assert_eq!(named, there);
}

#[test]
fn the_database_has_what_files_alone_do_not_tell() {
    let (_, sql) = generate_both();
    let [assets, users, albums, persons] = ["asset", "user", "album", "person"].map(|table| rows(&sql, table));
    assert_eq!(all(&users, "name"), ["Ole", "Anna"]);
    assert_eq!(all(&albums, "albumName"), ["Baltic coast", "Summer of 2024", "Anna's walks"]);
    assert_eq!(all(&persons, "name"), ["Grandma Grete"]);
    assert_eq!(assets.iter().filter(|asset| asset.contains_key("deletedAt")).count(), 1);
    // All that is named is there, as the schema demands.
    let ids = all(&assets, "id");
    for table in ["asset_file", "asset_exif", "asset_face", "album_asset", "smart_search"] {
        let rows = rows(&sql, table);
        assert!(!rows.is_empty(), "{table}");
        assert!(all(&rows, "assetId").iter().all(|id| ids.contains(id)), "{table}");
    }
    for album in all(&albums, "id") {
        assert!(rows(&sql, "album_asset").iter().any(|row| row["albumId"] == album));
        assert!(rows(&sql, "album_user").iter().any(|row| row["albumId"] == album && row["role"] == "owner"));
    }
}

#[test]
fn a_file_in_the_place_of_the_database_is_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let mine = folder.path().join("mine.sql");
    fs::write(&mine, "mine").unwrap();
    let output = run(&folder.path().join("library"), &mine);
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot make the file"));
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
}

#[test]
fn two_generations_are_identical_in_names_bytes_times_and_rows() {
    let (first, second) = (generate_both(), generate_both());
    assert!(first == second);
    assert!(first.0.values().all(|(_, modified)| *modified < SystemTime::now()));
}

#[test]
fn every_photo_says_in_its_exif_when_it_was_taken_and_the_file_has_that_time() {
    let files = generate();
    let photos: Vec<_> = files
        .iter()
        .filter(|(path, _)| (path.starts_with("library") || path.starts_with("upload")) && path.extension().is_some_and(|extension| extension == "jpg"))
        .collect();
    assert_eq!(photos.len(), 6);
    for (path, (content, modified)) in photos {
        let exif = Reader::new().read_from_container(&mut Cursor::new(content)).unwrap();
        let taken = exif.get_field(Tag::DateTimeOriginal, In::PRIMARY).unwrap();
        let modified = Timestamp::try_from(*modified).unwrap().to_zoned(TimeZone::UTC);
        assert_eq!(taken.display_value().to_string(), modified.strftime("%Y-%m-%d %H:%M:%S").to_string(), "{}", path.display());
        assert!(exif.get_field(Tag::Make, In::PRIMARY).is_some());
        assert!(exif.get_field(Tag::Model, In::PRIMARY).is_some());
    }
}

#[test]
fn all_six_folders_have_the_marker_without_which_immich_does_not_start() {
    let files = generate();
    for folder in ["upload", "thumbs", "encoded-video", "library", "profile", "backups"] {
        let (content, _) = files.get(&Path::new(folder).join(".immich")).expect(folder);
        let milliseconds: i64 = String::from_utf8(content.clone()).unwrap().parse().unwrap();
        assert!(Timestamp::from_millisecond(milliseconds).is_ok());
    }
}

#[test]
fn a_folder_with_something_in_it_is_refused_and_left_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let output = run(folder.path(), &folder.path().join("database.sql"));
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not empty"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
