//! What is read out of dumps: those of real servers, of every generation, and of hostile ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use immich_backup_core::database::inventory::{Builder, Inventory, Meaning, Named};
use immich_backup_core::database::location::Locations;
use immich_backup_core::verdict::Thing;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

fn fixture(version: &str) -> PathBuf {
    let folder = std::env::var_os("IMMICH_BACKUP_FIXTURES").map_or_else(
        || {
            let here = Path::new(env!("CARGO_MANIFEST_DIR"));
            let found = here.ancestors().map(|folder| folder.join("../shared/fixtures")).chain(here.ancestors().map(|folder| folder.join("shared/fixtures")));
            found.into_iter().find(|folder| folder.is_dir()).expect("no fixtures: set IMMICH_BACKUP_FIXTURES")
        },
        PathBuf::from,
    );
    folder.join(format!("immich-{version}"))
}

const VERSIONS: [&str; 2] = ["3.1.0", "1.135.3"];

fn dump_of(version: &str) -> Vec<u8> {
    let mut text = Vec::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(fixture(version).join("dump.sql.gz")).unwrap()).read_to_end(&mut text).unwrap();
    text
}

fn expected_of(version: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(version).join("expected.json")).unwrap()).unwrap()
}

fn nas() -> Locations {
    Locations::new([("nas".parse().unwrap(), b"/mnt/external".to_vec())])
}

fn inventory_of(text: &[u8], locations: Locations) -> (tempfile::TempDir, Inventory) {
    let folder = tempfile::tempdir().unwrap();
    let mut builder = Builder::create(&folder.path().join("inventory.db"), locations).unwrap();
    for piece in text.chunks(70_001) {
        builder.feed(piece).unwrap();
    }
    let inventory = builder.finish().unwrap();
    (folder, inventory)
}

fn all_named(inventory: &Inventory) -> Vec<Named> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = inventory.named_page(cursor).unwrap();
        all.extend(page);
        cursor = next;
        if cursor.is_none() {
            return all;
        }
    }
}

/// The path of the fixture, as people see it.
fn seen(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    match path.strip_prefix("/mnt/external/") {
        Some(rest) => format!("external/nas/{rest}"),
        None => path.strip_prefix("/data/").or_else(|| path.strip_prefix("upload/")).unwrap().to_owned(),
    }
}

#[test]
fn every_asset_and_file_of_a_real_server_is_named() {
    for version in VERSIONS {
        let expected = expected_of(version);
        let (_folder, inventory) = inventory_of(&dump_of(version), nas());
        let mut wanted = BTreeSet::new();
        for asset in expected["assets"].as_array().unwrap() {
            let id = asset["id"].as_str().unwrap();
            let sha1 = if asset["isExternal"] == true { "" } else { asset["sha1"].as_str().unwrap() };
            wanted.insert((seen(asset["originalPath"].as_str().unwrap()), Thing::Asset, id.to_owned(), sha1.to_owned()));
            for file in asset["files"].as_array().unwrap() {
                let thing = if file["type"] == "sidecar" { Thing::Sidecar } else { Thing::Derived };
                wanted.insert((seen(file["path"].as_str().unwrap()), thing, id.to_owned(), String::new()));
            }
            for (column, thing) in [("sidecarPath", Thing::Sidecar), ("encodedVideoPath", Thing::Derived)] {
                if let Some(path) = asset[column].as_str().filter(|path| !path.is_empty()) {
                    wanted.insert((seen(path), thing, id.to_owned(), String::new()));
                }
            }
        }
        for (list, column, thing) in [("users", "profileImagePath", Thing::Profile), ("people", "thumbnailPath", Thing::Derived)] {
            for row in expected[list].as_array().unwrap() {
                if let Some(path) = row[column].as_str().filter(|path| !path.is_empty()) {
                    wanted.insert((seen(path), thing, String::new(), String::new()));
                }
            }
        }
        let named = all_named(&inventory);
        let found: BTreeSet<_> = named
            .iter()
            .map(|named| {
                let text = |text: Option<String>| text.unwrap_or_default();
                (named.file.to_string(), named.thing, text(named.asset.map(|id| id.to_string())), text(named.sha1.map(|sha1| sha1.to_string())))
            })
            .collect();
        assert_eq!(found.len(), named.len());
        assert_eq!(found, wanted, "{version}");
        let summary = inventory.summary();
        assert_eq!((summary.assets, summary.trashed, summary.external), (97, 2, 4));
        assert_eq!(summary.immich_version.as_deref(), Some(version));
        assert!(summary.is_immich && summary.notes.is_empty());
        drop((BTreeMap::<u8, u8>::new(), Meaning::default()));
    }
}
