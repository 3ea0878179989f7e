//! Storage classes: originals go where they were told to go, and what lies in an archive is not relied on.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/stores.rs"]
mod stand;
mod support;

use immich_backup_testbed::servers::Moto;
use stand::{Stand, keys};
use std::collections::BTreeMap;
use std::path::PathBuf;
use support::World;

fn library(world: &World) {
    world.pictures(20);
    world.file("library/anna/2014/a.jpg", 3_000, 1);
    world.file("upload/u/in-parts.mov", 33 << 20, 1);
    world.file("thumbs/u/aa/bb/thumbnail.webp", 900, 1);
    world.file("thumbs/u/aa/bb/in-parts.webp", 17 << 20, 1);
    world.file("encoded-video/u/aa/bb/c.mp4", 900, 1);
    world.file("profile/u/me.jpg", 900, 1);
}

/// Originals, and they alone, are in `class`.
fn originals_are_in(stand: &Stand, class: &str, class_of: impl Fn(&str) -> String) {
    let world = stand.lend("p", World::new());
    library(&world);
    world.backup(&["--storage-class", class]).ended(0);
    // A second version of an original is one as well.
    world.file("upload/u0/00/00000.jpg", 800, 9);
    world.backup(&["--storage-class", class]).ended(0);
    let mut counts: BTreeMap<(bool, String), usize> = BTreeMap::new();
    for key in stand.keys("p") {
        let path = key.strip_prefix("library/").or_else(|| key.strip_prefix("versions/")).unwrap_or_default();
        let original = ["upload/", "library/", "profile/"].iter().any(|start| path.starts_with(start)) && !key.ends_with(".immich");
        let found = class_of(&format!("p/{key}"));
        assert_eq!(found == class, original, "{key} is in {found}");
        *counts.entry((original, found)).or_default() += 1;
    }
    println!("{counts:?}");
    assert!(counts.len() == 2 && counts[&(true, class.to_owned())] == 24, "{counts:?}");
    world.assert_restores("latest", &world.tree());
}

#[test]
fn originals_go_to_the_class_they_were_told_to_at_s3() {
    let stand = Stand::s3().append_only(true);
    originals_are_in(&stand, "GLACIER_IR", |key| {
        let head = stand.bucket().head(key).unwrap();
        head.get("x-amz-storage-class").map_or("STANDARD", |class| class.to_str().unwrap()).to_owned()
    });
    stand.assert_written_once();
}

#[test]
fn originals_go_to_the_class_they_were_told_to_at_google() {
    let stand = Stand::gcs().append_only(false);
    originals_are_in(&stand, "ARCHIVE", |key| stand.double().object(key).unwrap().description.storage_class);
    stand.assert_written_once();
}

#[test]
fn a_class_that_has_to_be_thawed_is_refused() {
    let world = World::new();
    world.pictures(1);
    for (url, class, instead) in [("s3://b/p?region=eu-central-1", "GLACIER", "GLACIER_IR"), ("az://c/p?account=a", "Archive", "Cold")] {
        let mut world = World::new();
        world.repository = PathBuf::from(url);
        world.backup(&["--storage-class", class]).ended(2).says("thawed").says(instead);
    }
}

/// What somebody put there in two parts, and let cool down: the store's checksum says nothing of the whole, and the bytes cannot be read.
fn plant_archived(bucket: &immich_backup_testbed::servers::Bucket, key: &str, content: &[u8]) {
    let begun = bucket.send_ok("POST", key, &[("uploads", "")], &[("x-amz-storage-class", "GLACIER")], b"").unwrap();
    let text = String::from_utf8(begun.body().to_vec()).unwrap();
    let id = text.split("<UploadId>").nth(1).unwrap().split("</UploadId>").next().unwrap();
    let mut list = String::new();
    for (number, part) in [&content[..5 << 20], &content[5 << 20..]].into_iter().enumerate() {
        let number = (number + 1).to_string();
        let put = bucket.send_ok("PUT", key, &[("partNumber", &number), ("uploadId", id)], &[], part).unwrap();
        let tag = put.headers()["etag"].to_str().unwrap().to_owned();
        list.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{}</ETag></Part>", tag.replace('"', "&quot;")));
    }
    let body = format!("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{list}</CompleteMultipartUpload>");
    bucket.send_ok("POST", key, &[("uploadId", id)], &[], body.as_bytes()).unwrap();
    let got = bucket.send("GET", key, &[], &[], b"").unwrap();
    assert_eq!(got.status().as_u16(), 403, "it can be read: the test itself is blind");
}

#[test]
fn what_lies_in_an_archive_and_cannot_be_compared_is_not_taken_for_ours() {
    let server = Moto::start().unwrap();
    let mut world = World::new();
    world.repository = PathBuf::from(format!("s3://test/p?endpoint={}", server.endpoint()));
    world.environment = keys(&server.bucket().credentials);
    world.run(&["init"]).ended(0);
    let one = world.file("upload/u/one.jpg", 6 << 20, 1);
    let large = world.file("upload/u/large.mov", 20 << 20, 2);
    for (path, name) in [(one, "one.jpg"), (large, "large.mov")] {
        plant_archived(server.bucket(), &format!("p/library/upload/u/{name}"), &std::fs::read(path).unwrap());
    }
    let ran = world.backup(&[]).ended(0);
    assert_eq!(ran.number("/adopted/files"), 0, "{}", ran.told());
    let versions: Vec<_> = server.bucket().keys().unwrap().into_keys().filter(|key| key.starts_with("p/versions/upload/u/")).collect();
    assert_eq!(versions.len(), 2, "{versions:?}");
    world.assert_restores("latest", &world.tree());
    world.run(&["verify", "--read-data"]).ended(0);
}
