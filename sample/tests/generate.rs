//! What a generated library promises to those who try a backup on it.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says what went wrong by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use exif::{In, Reader, Tag};
use jiff::Timestamp;
use jiff::tz::TimeZone;

type Files = BTreeMap<PathBuf, (Vec<u8>, SystemTime)>;

fn run(folder: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sample-library")).arg(folder).args(["--photos", "6"]).output().unwrap()
}

fn generate() -> Files {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path());
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
    files
}

#[test]
fn two_generations_are_identical_in_names_bytes_and_times() {
    let (first, second) = (generate(), generate());
    assert!(first == second);
    assert!(first.values().all(|(_, modified)| *modified < SystemTime::now()));
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
    let output = run(folder.path());
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("is not empty"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
