//! What is read out of dumps: those of real servers, of every generation of Immich, and odd ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use immich_backup_core::database::inventory::{Album, Builder, FoundAsset, Inventory, InventoryError, Kind, Meaning, Named, Note};
use immich_backup_core::database::location::Locations;
use immich_backup_core::database::text::NotWhole;
use immich_backup_core::model::{FilePath, RootPath};
use immich_backup_core::verdict::Thing;
use immich_backup_testbed::fixture::Fixture;
use immich_backup_testbed::postgres::Postgres;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

fn nas() -> Locations {
    Locations::new([("nas".parse().unwrap(), b"/mnt/external".to_vec())])
}

/// An inventory in a folder of its own.
struct Read {
    inventory: Inventory,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Read {
    type Target = Inventory;

    fn deref(&self) -> &Inventory {
        &self.inventory
    }
}

fn try_read(text: &[u8], locations: Locations) -> Result<Read, InventoryError> {
    let folder = tempfile::tempdir().unwrap();
    let read = || {
        let mut builder = Builder::create(&folder.path().join("inventory.db"), locations)?;
        text.chunks(70_001).try_for_each(|piece| builder.feed(piece))?;
        builder.finish()
    };
    let read = read();
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    // What helps to make it is gone, and all of it where it failed.
    assert_eq!(left, if read.is_ok() { vec![std::ffi::OsString::from("inventory.db")] } else { vec![] });
    Ok(Read { inventory: read?, _folder: folder })
}

fn read(text: &[u8], locations: Locations) -> Read {
    try_read(text, locations).unwrap()
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

fn find(inventory: &Inventory, meaning: &Meaning) -> Vec<FoundAsset> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let (page, next) = inventory.find_page(meaning, cursor).unwrap();
        all.extend(page);
        cursor = next;
        if cursor.is_none() {
            return all;
        }
    }
}

fn text<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// Path as people see it, what it is, its asset, its SHA-1.
type Line = (String, Thing, String, String);

fn lines(named: &[Named]) -> Vec<Line> {
    named.iter().map(|named| (named.file.to_string(), named.thing, text(named.asset), text(named.sha1))).collect()
}

/// A path of a fixture's server, as people see it.
fn seen(path: &str) -> String {
    let canonical = |text: &str| RootPath::from_bytes(text.as_bytes()).unwrap().to_string();
    match path.strip_prefix("/mnt/external/") {
        Some(rest) => format!("external/nas/{}", canonical(rest)),
        None => canonical(path.strip_prefix("/data/").or_else(|| path.strip_prefix("upload/")).unwrap()),
    }
}

fn same<T: Ord + std::fmt::Debug>(found: impl IntoIterator<Item = T>, wanted: impl IntoIterator<Item = T>) {
    let (found, wanted): (BTreeSet<_>, BTreeSet<_>) = (found.into_iter().collect(), wanted.into_iter().collect());
    assert_eq!((found.difference(&wanted).collect::<Vec<_>>(), wanted.difference(&found).collect::<Vec<_>>()), (vec![], vec![]));
}

#[test]
fn every_file_that_a_real_server_names_is_named() {
    for fixture in Fixture::all() {
        let expected = &fixture.expected;
        let inventory = read(&fixture.dump_text(), nas());
        let mut wanted: Vec<Line> = Vec::new();
        for asset in &expected.assets {
            let sha1 = if asset.is_external { String::new() } else { asset.sha1.clone() };
            wanted.push((seen(&asset.original_path), Thing::Asset, asset.id.clone(), sha1));
            let mut file = |path: &str, thing| wanted.push((seen(path), thing, asset.id.clone(), String::new()));
            for found in &asset.files {
                file(&found.path, if found.r#type == "sidecar" { Thing::Sidecar } else { Thing::Derived });
            }
            asset.sidecar_path.iter().for_each(|path| file(path, Thing::Sidecar));
            asset.encoded_video_path.iter().filter(|path| !path.is_empty()).for_each(|path| file(path, Thing::Derived));
        }
        let profiles = expected.users.iter().map(|user| (&user.profile_image_path, Thing::Profile));
        let faces = expected.people.iter().map(|person| (&person.thumbnail_path, Thing::Derived));
        wanted.extend(profiles.chain(faces).filter(|(path, _)| !path.is_empty()).map(|(path, thing)| (seen(path), thing, String::new(), String::new())));

        let named = all_named(&inventory);
        assert_eq!((named.len() as u64, named.len()), (inventory.summary().named, wanted.len()));
        same(lines(&named), wanted);
        assert_eq!((inventory.summary().outside, named.iter().filter(|named| named.offline).count()), (0, 0));
        // In the order of the manifest, which compares bytes.
        let keys: Vec<_> = named
            .iter()
            .map(|named| {
                let (folder, name) = named.file.path.split();
                (named.file.root.name_in_manifest().to_owned(), folder.to_owned(), name.to_owned())
            })
            .collect();
        assert!(keys.is_sorted());
    }
}

#[test]
fn the_summary_of_a_real_server_is_right() {
    for fixture in Fixture::all() {
        let expected = &fixture.expected;
        let text = fixture.dump_text();
        let inventory = read(&text, nas());
        let summary = inventory.summary();
        assert!(summary.is_immich && !summary.maintenance && summary.notes.is_empty(), "{summary:?}");
        let counts = (summary.assets, summary.trashed, summary.external, summary.asset_files);
        assert_eq!(counts, (expected.counts.assets, expected.counts.trashed, expected.counts.external, expected.counts.asset_files));
        let counts = (summary.users, summary.albums, summary.persons, summary.libraries);
        assert_eq!(counts, (expected.users.len() as u64, expected.albums.len() as u64, expected.people.len() as u64, 1));
        assert_eq!(summary.immich_version.as_deref(), Some(expected.version.as_str()));
        assert_eq!(summary.media_location.as_deref(), Some(expected.media_location.trim_start_matches("./")));
        assert_eq!(summary.server_version.as_deref(), Some("15.20 (Debian 15.20-0+deb12u1)"));
        assert_eq!(summary.program_version, summary.server_version);
        let old = expected.version.starts_with("1.");
        assert_eq!((summary.cluster, summary.media_location_guessed, summary.database.as_deref()), (old, old, old.then_some("immich")));
        assert_eq!((summary.rows_total, summary.text_bytes), (inventory.rows().values().sum(), text.len() as u64));

        // Opened again, it says the same.
        let again = Inventory::open(inventory.path()).unwrap();
        assert_eq!((again.summary(), again.rows(), again.locations()), (summary, inventory.rows(), inventory.locations()));
        assert_eq!(all_named(&again), all_named(&inventory));
        let path = again.path().to_owned();
        again.remove().unwrap();
        assert!(Inventory::open(&path).is_err());
    }
}

#[test]
fn users_persons_albums_and_assets_of_a_real_server_are_found_by_meaning() {
    for fixture in Fixture::all() {
        let expected = &fixture.expected;
        let inventory = read(&fixture.dump_text(), nas());
        let users = inventory.users().unwrap();
        let user_line =
            |id: &str, email: &str, name: &str, label: Option<&str>, admin: bool, deleted: bool| format!("{id} {email} {name} {label:?} {admin} {deleted}");
        same(
            users.iter().map(|user| user_line(&user.id.to_string(), &user.email, &user.name, user.storage_label.as_deref(), user.admin, user.deleted)),
            expected
                .users
                .iter()
                .map(|user| user_line(&user.id, &user.email, &user.name, user.storage_label.as_deref(), user.is_admin, user.deleted_at.is_some())),
        );
        same(
            inventory.persons_page(0).unwrap().iter().map(|person| (person.id.to_string(), person.name.clone(), text(person.owner))),
            expected.people.iter().map(|person| (person.id.clone(), person.name.clone(), person.owner_id.clone())),
        );
        let libraries = inventory.libraries().unwrap();
        assert_eq!(
            libraries.iter().map(|library| (library.name.as_str(), library.import_paths.clone())).collect::<Vec<_>>(),
            [("NAS photos", vec!["/mnt/external".to_owned()])]
        );

        let albums = inventory.albums_page(0).unwrap();
        let mut with_owner = 0;
        for album in &expected.albums {
            let Album { name, owner, deleted, assets, .. } = albums.iter().find(|known| known.id.to_string() == album.id).unwrap();
            assert_eq!((name, *deleted, *assets), (&album.album_name, false, album.assets as u64));
            with_owner += usize::from(users.iter().any(|user| Some(user.id) == *owner));
            for wanted in [name.to_uppercase(), album.id.clone(), format!("{}*", &name[..3])] {
                let found = find(&inventory, &Meaning { albums: vec![wanted], ..Meaning::default() });
                same(found.iter().map(|asset| asset.id.to_string()), album.asset_ids.clone());
                assert!(found.iter().all(|asset| asset.albums.contains(name)));
            }
        }
        assert_eq!((albums.len(), with_owner), (expected.albums.len(), albums.len()));

        let all = find(&inventory, &Meaning::default());
        assert!(all.is_sorted_by_key(|asset| asset.taken_at));
        let live: BTreeSet<_> = expected.assets.iter().filter_map(|asset| asset.live_photo_video_id.as_deref()).collect();
        let visible: Vec<_> = expected.assets.iter().filter(|asset| !live.contains(asset.id.as_str())).collect();
        assert_eq!((live.len(), all.len()), (1, 96));
        let line = |asset: &FoundAsset| {
            let kind = asset.kind.map(Kind::immich).unwrap();
            (
                asset.id.to_string(),
                text(asset.owner),
                text(asset.owner_email.as_ref()),
                asset.original_name.clone(),
                kind.to_owned(),
                asset.trashed,
                text(asset.file.as_ref()),
                text(asset.sha1),
            )
        };
        same(
            all.iter().map(line),
            visible.iter().map(|asset| {
                let sha1 = if asset.is_external { String::new() } else { asset.sha1.clone() };
                let (owner, email, name) = (asset.owner.clone(), asset.owner_email.clone(), asset.original_file_name.clone());
                (asset.id.clone(), owner, email, name, asset.r#type.clone(), asset.is_trashed, seen(&asset.original_path), sha1)
            }),
        );
        let ids = |meaning: &Meaning| find(&inventory, meaning).iter().map(|asset| asset.id.to_string()).collect::<Vec<_>>();
        for name in ["ANNA", "anna@lab.test", "Anna O'Lab*"] {
            let owned = visible.iter().filter(|asset| asset.owner_email == "anna@lab.test").map(|asset| asset.id.clone());
            same(ids(&Meaning { users: vec![name.to_owned()], ..Meaning::default() }), owned);
        }
        let trashed = visible.iter().filter(|asset| asset.is_trashed).map(|asset| asset.id.clone());
        same(ids(&Meaning { trashed: Some(true), ..Meaning::default() }), trashed);
        let videos = visible.iter().filter(|asset| asset.r#type == "VIDEO" && !asset.is_trashed).map(|asset| asset.id.clone());
        same(ids(&Meaning { kind: Some(Kind::Video), trashed: Some(false), ..Meaning::default() }), videos);
        assert_eq!(ids(&Meaning { persons: vec!["grandma*".to_owned()], ..Meaning::default() }).len(), 1);
        assert_eq!(ids(&Meaning { persons: vec!["nobody".to_owned()], ..Meaning::default() }).len(), 0);
        let (since, until) = ("2019-01-01T00:00:00Z".parse().unwrap(), "2020-01-01T00:00:00Z".parse().unwrap());
        let of_2019 = all.iter().filter(|asset| asset.taken_at.unwrap() >= since && asset.taken_at.unwrap() < until).map(|asset| asset.id.to_string());
        let found = ids(&Meaning { since: Some(since), until: Some(until), ..Meaning::default() });
        assert!(!found.is_empty() && found.len() < 96);
        same(found, of_2019);

        for asset in &visible {
            let files = inventory.files_of(asset.id.parse().unwrap()).unwrap();
            let video = asset.live_photo_video_id.as_deref();
            let both = expected.assets.iter().filter(|known| known.id == asset.id || Some(known.id.as_str()) == video);
            let wanted = both.flat_map(|asset| {
                let own = [Some(&asset.original_path), asset.sidecar_path.as_ref(), asset.encoded_video_path.as_ref().filter(|path| !path.is_empty())];
                own.into_iter().flatten().chain(asset.files.iter().map(|file| &file.path)).map(|path| seen(path)).collect::<Vec<_>>()
            });
            assert_eq!(files[0].file.to_string(), seen(&asset.original_path));
            same(files.iter().map(|file| file.file.to_string()), wanted);
        }
        for asset in &expected.assets {
            let named = all_named(&inventory).into_iter().find(|named| named.thing == Thing::Asset && text(named.asset) == asset.id).unwrap();
            let at = inventory.asset_at(&named.file).unwrap().unwrap();
            assert_eq!((at.id.to_string(), at.sha1), (asset.id.clone(), named.sha1));
        }
        for nothing in ["upload/none.jpg", "none", "thumbs/x", "library/admin/zzz"] {
            assert_eq!(inventory.asset_at(&FilePath::library(RootPath::parse(nothing).unwrap())).unwrap(), None);
        }
        let derived = all_named(&inventory).into_iter().find(|named| named.thing == Thing::Derived).unwrap();
        assert_eq!(inventory.asset_at(&derived.file).unwrap(), None);
    }
}

#[test]
fn rows_are_those_of_a_real_postgresql() {
    let server = Postgres::start().unwrap();
    for (number, fixture) in Fixture::all().iter().enumerate() {
        let database = format!("loaded{number}");
        server.create_loaded(&database, fixture.dump());
        let inventory = read(&fixture.dump_text(), nas());
        let counts = server.counts(&database);
        assert_eq!(counts.get("asset").or(counts.get("assets")), Some(&97));
        // Tables that belong to an extension are loaded with it, not by rows.
        let rows: BTreeMap<_, _> = inventory.rows().iter().filter(|(table, _)| !table.contains('.')).map(|(table, rows)| (table.clone(), *rows)).collect();
        assert_eq!(rows, counts);
    }
}

#[test]
fn a_cut_dump_leaves_nothing_behind() {
    let fixture = Fixture::all().remove(0);
    let dump = fixture.dump_text();
    let place = dump.windows(16).position(|bytes| bytes == b"COPY public.asse").unwrap();
    for end in [0, 3, 100, place + 3_000, dump.len() - 200] {
        assert!(matches!(try_read(&dump[..end], nas()), Err(InventoryError::NotWhole(_))), "{end}");
    }
    let Err(error) = try_read(&dump[..place + 3_000], nas()) else { panic!("taken") };
    assert!(matches!(&error, InventoryError::NotWhole(NotWhole::InCopy { table, .. }) if table.name == "asset"), "{error}");
}

const USER: &str = "11111111-0000-4000-8000-000000000001";
const GONE: &str = "11111111-0000-4000-8000-000000000002";
const PERSON: &str = "22222222-0000-4000-8000-000000000001";
const LIBRARY: &str = "33333333-0000-4000-8000-000000000001";
const ALBUM: &str = "44444444-0000-4000-8000-000000000001";
const PHOTO: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const VIDEO: &str = "aaaaaaaa-0000-4000-8000-000000000002";
const EXTERNAL: &str = "aaaaaaaa-0000-4000-8000-000000000003";
const MOTION: &str = "aaaaaaaa-0000-4000-8000-000000000004";
const SHA1: &str = "000102030405060708090a0b0c0d0e0f10111213";

/// How Immich's database looked at a version; see `IMMICH.md` of the project for what changed when.
#[derive(Debug, Clone, Copy)]
struct Generation {
    version: &'static str,
    number: u32,
    /// `pg_dumpall`.
    cluster: bool,
}

const GENERATIONS: [Generation; 10] = [
    Generation { version: "1.113.0", number: 1_113, cluster: true },
    Generation { version: "1.120.2", number: 1_120, cluster: true },
    Generation { version: "1.132.3", number: 1_132, cluster: true },
    Generation { version: "1.136.0", number: 1_136, cluster: true },
    Generation { version: "2.0.0", number: 2_000, cluster: true },
    Generation { version: "2.4.1", number: 2_400, cluster: true },
    Generation { version: "2.6.0", number: 2_600, cluster: false },
    Generation { version: "2.7.3", number: 2_700, cluster: false },
    Generation { version: "3.1.0", number: 3_100, cluster: false },
    Generation { version: "3.9.9", number: 3_900, cluster: false },
];

/// A table: name, columns, rows.
struct Table {
    name: &'static str,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(name: &'static str, rows: Vec<Vec<(&'static str, String)>>) -> Self {
        let columns = rows.first().map(|row| row.iter().map(|(column, _)| *column).collect()).unwrap_or_default();
        Self { name, columns, rows: rows.into_iter().map(|row| row.into_iter().map(|(_, value)| value).collect()).collect() }
    }

    /// As `pg_dump` writes it, with the columns turned by `turn`: their order is not to matter.
    fn write(mut self, to: &mut String, turn: usize) {
        let quoted =
            |name: &str| if name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && name != "user" { name.to_owned() } else { format!("\"{name}\"") };
        let turn = turn % self.columns.len();
        self.columns.rotate_left(turn);
        let columns: Vec<_> = self.columns.iter().map(|column| quoted(column)).collect();
        writeln!(
            to,
            "--\n-- Data for Name: {0}; Type: TABLE DATA; Schema: public; Owner: postgres\n--\n\nCOPY public.{1} ({2}) FROM stdin;",
            self.name,
            quoted(self.name),
            columns.join(", ")
        )
        .unwrap();
        for mut row in self.rows {
            row.rotate_left(turn);
            writeln!(to, "{}", row.join("\t")).unwrap();
        }
        to.push_str("\\.\n\n\n");
    }
}

impl Generation {
    fn since(self, number: u32) -> bool {
        self.number >= number
    }

    fn name(self, old: &'static str, new: &'static str) -> &'static str {
        if self.since(1_136) { new } else { old }
    }

    /// A path below the media location, as the server has it.
    fn path(self, path: &str) -> String {
        let location = if self.since(2_000) { "/data" } else { self.name("upload", "/usr/src/app/upload") };
        format!("{location}/{path}")
    }

    fn asset(self, id: &str, kind: &str, path: String, more: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
        let external = id == EXTERNAL;
        let time = "2024-03-27 17:10:10.5+00".to_owned();
        let mut row = vec![
            ("id", id.to_owned()),
            ("ownerId", USER.to_owned()),
            ("type", kind.to_owned()),
            ("originalPath", path),
            ("isFavorite", "f".to_owned()),
            ("checksum", format!("\\\\x{SHA1}")),
            ("livePhotoVideoId", if id == PHOTO { MOTION.to_owned() } else { "\\N".to_owned() }),
            ("originalFileName", "a\\tb\\\\c.jpg".to_owned()),
            ("isOffline", if external { "t" } else { "f" }.to_owned()),
            ("libraryId", if external { LIBRARY.to_owned() } else { "\\N".to_owned() }),
            ("isExternal", if external { "t" } else { "f" }.to_owned()),
            ("deletedAt", if external { time.clone() } else { "\\N".to_owned() }),
            ("fileCreatedAt", time.clone()),
            ("localDateTime", time),
        ];
        if self.since(1_116) {
            row.push(("status", "active".to_owned()));
        }
        if self.since(1_133) {
            row.push(("visibility", "timeline".to_owned()));
        } else {
            row.push(("isVisible", "t".to_owned()));
        }
        let value = |column: &str| more.iter().find(|(known, _)| *known == column).map_or("\\N".to_owned(), |(_, path)| path.clone());
        if !self.since(2_400) {
            row.push(("sidecarPath", value("sidecar")));
        }
        if !self.since(2_600) {
            // Empty, not NULL, where there is none.
            row.push(("encodedVideoPath", value("encoded_video").replace("\\N", "")));
        }
        if self.since(2_700) {
            row.push(("checksumAlgorithm", if external { "sha1-path" } else { "sha1" }.to_owned()));
        }
        row
    }

    fn dump(self) -> String {
        let photo = [("sidecar", self.path("library/admin/2024/a.jpg.xmp"))];
        let video = [("encoded_video", self.path(&format!("encoded-video/{USER}/aa/bb/{VIDEO}.mp4")))];
        let assets = vec![
            self.asset(PHOTO, "IMAGE", self.path("library/admin/2024/a.jpg"), &photo),
            self.asset(VIDEO, "VIDEO", self.path(&format!("upload/{USER}/aa/bb/v.mov")), &video),
            self.asset(EXTERNAL, "IMAGE", "/mnt/external/x y.jpg".to_owned(), &[]),
            self.asset(MOTION, "VIDEO", self.path(&format!("encoded-video/{USER}/aa/bb/{MOTION}-MP.mp4")), &[]),
        ];
        let mut files = vec![
            (PHOTO, "thumbnail", self.path(&format!("thumbs/{USER}/aa/bb/a-thumbnail.webp"))),
            (VIDEO, "preview", self.path(&format!("thumbs/{USER}/aa/bb/v-preview.jpeg"))),
        ];
        if self.since(2_400) {
            files.push((PHOTO, "sidecar", photo[0].1.clone()));
        }
        if self.since(2_600) {
            files.push((VIDEO, "encoded_video", video[0].1.clone()));
        }
        if self.since(3_900) {
            // What nobody knows yet.
            files.push((PHOTO, "hologram", self.path("library/admin/2024/a.jpg.holo")));
            files.push((PHOTO, "sketch", self.path("thumbs/a-sketch.svg")));
        }
        let files = files.into_iter().map(|(asset, kind, path)| vec![("assetId", asset.to_owned()), ("type", kind.to_owned()), ("path", path)]).collect();
        let mut album = vec![("id", ALBUM.to_owned()), ("albumName", "Été".to_owned()), ("deletedAt", "\\N".to_owned())];
        if !self.since(3_000) {
            album.push(("ownerId", USER.to_owned()));
        }
        let links = if self.since(2_000) { ["albumId", "assetId"] } else { ["albumsId", "assetsId"] };
        let user = |id: &str, label: &str, deleted: &str, profile: String| {
            vec![
                ("id", id.to_owned()),
                ("email", format!("{label}@lab.test")),
                ("name", "A B".to_owned()),
                ("storageLabel", label.to_owned()),
                ("isAdmin", "t".to_owned()),
                ("deletedAt", deleted.to_owned()),
                ("profileImagePath", profile),
            ]
        };
        let mut metadata = vec![vec![("key", "system-config".to_owned()), ("value", "{\"a\": \"\\\\n\"}".to_owned())]];
        if self.since(2_000) {
            metadata.push(vec![("key", "MediaLocation".to_owned()), ("value", "{\"location\": \"/data\"}".to_owned())]);
        }
        let mut tables = vec![
            Table::new(self.name("albums", "album"), vec![album]),
            Table::new(self.name("albums_assets_assets", "album_asset"), vec![vec![(links[0], ALBUM.to_owned()), (links[1], PHOTO.to_owned())]]),
            Table::new(self.name("assets", "asset"), assets),
            Table::new(
                self.name("asset_faces", "asset_face"),
                vec![vec![("id", USER.to_owned()), ("assetId", PHOTO.to_owned()), ("personId", PERSON.to_owned()), ("deletedAt", "\\N".to_owned())]],
            ),
            Table::new(self.name("asset_files", "asset_file"), files),
            Table::new(
                self.name("libraries", "library"),
                vec![vec![
                    ("id", LIBRARY.to_owned()),
                    ("name", "NAS".to_owned()),
                    ("ownerId", USER.to_owned()),
                    ("importPaths", "{\"/mnt/external\"}".to_owned()),
                ]],
            ),
            Table::new(
                "person",
                vec![vec![
                    ("id", PERSON.to_owned()),
                    ("ownerId", USER.to_owned()),
                    ("name", "Oma".to_owned()),
                    ("thumbnailPath", self.path(&format!("thumbs/{USER}/p.jpeg"))),
                ]],
            ),
            Table::new("system_metadata", metadata),
            Table::new(
                self.name("users", "user"),
                vec![user(USER, "admin", "\\N", String::new()), user(GONE, "gone", "2024-01-01 00:00:00+00", self.path(&format!("profile/{GONE}/x.png")))],
            ),
        ];
        if self.since(3_000) {
            let row = |user: &str, role: &str| vec![("albumId", ALBUM.to_owned()), ("userId", user.to_owned()), ("role", role.to_owned())];
            tables.push(Table::new("album_user", vec![row(GONE, "editor"), row(USER, "owner")]));
        }
        if self.since(1_117) {
            let row = |version: &str, time: &str| vec![("id", USER.to_owned()), ("createdAt", time.to_owned()), ("version", version.to_owned())];
            // Not in the order of time.
            tables.push(Table::new("version_history", vec![row(self.version, "2024-05-01 00:00:00+00"), row("1.117.0", "2024-04-01 00:00:00+02")]));
        }
        if self.since(3_900) {
            tables.insert(0, Table::new("a_table_of_the_future", vec![vec![("id", "1".to_owned()), ("asset", "2".to_owned())]]));
        }
        let mut body = String::new();
        for (turn, table) in tables.into_iter().enumerate() {
            table.write(&mut body, turn + 1);
        }
        let one = |body: &str| {
            format!(
                "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 14.19\n-- Dumped by pg_dump version 14.19\n\n{body}--\n-- PostgreSQL database dump complete\n--\n\n"
            )
        };
        if !self.cluster {
            return one(&body);
        }
        // Another database stands before, with a table of the same name as one of Immich's.
        let other = "\\connect other\n\nCOPY public.users (id, name) FROM stdin;\n1\tbob\n\\.\n\n";
        format!(
            "--\n-- PostgreSQL database cluster dump\n--\n\n{}{}{}--\n-- PostgreSQL database cluster dump complete\n--\n\n",
            one(other),
            one(&format!("\\connect immich\n\n{body}")),
            one("\\connect postgres\n\nCOPY public.albums (id, \"albumName\") FROM stdin;\n1\tx\n\\.\n\n")
        )
    }
}

#[test]
fn every_generation_names_the_same() {
    for generation in GENERATIONS {
        let inventory = read(generation.dump().as_bytes(), nas());
        let line = |path: &str, thing, asset: &str, sha1: &str| (path.replace("USER", USER).replace("GONE", GONE), thing, asset.to_owned(), sha1.to_owned());
        let mut wanted = vec![
            line(&format!("encoded-video/USER/aa/bb/{MOTION}-MP.mp4"), Thing::Asset, MOTION, SHA1),
            line(&format!("encoded-video/USER/aa/bb/{VIDEO}.mp4"), Thing::Derived, VIDEO, ""),
            line("library/admin/2024/a.jpg", Thing::Asset, PHOTO, SHA1),
            line("library/admin/2024/a.jpg.xmp", Thing::Sidecar, PHOTO, ""),
            line("profile/GONE/x.png", Thing::Profile, "", ""),
            line("thumbs/USER/p.jpeg", Thing::Derived, "", ""),
            line("thumbs/USER/aa/bb/a-thumbnail.webp", Thing::Derived, PHOTO, ""),
            line("thumbs/USER/aa/bb/v-preview.jpeg", Thing::Derived, VIDEO, ""),
            line("upload/USER/aa/bb/v.mov", Thing::Asset, VIDEO, SHA1),
            line("external/nas/x y.jpg", Thing::Asset, EXTERNAL, ""),
        ];
        if generation.since(3_900) {
            wanted.push(line("library/admin/2024/a.jpg.holo", Thing::Sidecar, PHOTO, ""));
            wanted.push(line("thumbs/a-sketch.svg", Thing::Derived, PHOTO, ""));
        }
        let named = all_named(&inventory);
        same(lines(&named), wanted);
        let offline: Vec<_> = named.iter().filter(|named| named.offline).map(|named| text(named.asset)).collect();
        assert_eq!(offline, [EXTERNAL]);
        let summary = inventory.summary();
        assert_eq!(summary.immich_version.as_deref(), generation.since(1_117).then_some(generation.version), "{generation:?}");
        assert_eq!(
            (summary.assets, summary.external, summary.trashed, summary.users, summary.albums, summary.persons, summary.libraries),
            (4, 1, 1, 2, 1, 1, 1)
        );
        assert!(summary.is_immich && summary.notes.is_empty(), "{:?}", summary.notes);
        assert_eq!(summary.database.as_deref(), generation.cluster.then_some("immich"));
        let location = if generation.since(2_000) { "/data" } else { generation.name("upload", "/usr/src/app/upload") };
        assert_eq!((summary.media_location.as_deref(), summary.media_location_guessed), (Some(location), !generation.since(2_000)));
        let found = find(
            &inventory,
            &Meaning { albums: vec!["été".to_owned()], persons: vec!["oma".to_owned()], users: vec!["ADMIN".to_owned()], ..Meaning::default() },
        );
        assert_eq!(found.len(), 1);
        assert_eq!(
            (text(Some(found[0].id)), found[0].original_name.as_str(), found[0].albums.clone()),
            (PHOTO.to_owned(), "a\tb\\c.jpg", vec!["Été".to_owned()])
        );
        assert_eq!(text(found[0].taken_at), "2024-03-27T17:10:10.5Z");
        assert_eq!(text(inventory.albums_page(0).unwrap()[0].owner), USER);
        // The motion video comes with its photo.
        assert!(inventory.files_of(PHOTO.parse().unwrap()).unwrap().iter().any(|file| text(file.asset) == MOTION));
        assert_eq!(inventory.locations().server_path(&named[0].file).unwrap(), format!("{location}/{}", named[0].file).into_bytes());
    }
}

fn plain(body: &str) -> String {
    format!("--\n-- PostgreSQL database dump\n--\n\n{body}\n--\n-- PostgreSQL database dump complete\n--\n\n")
}

#[test]
fn what_lies_outside_is_kept_apart() {
    let body = format!(
        "COPY public.asset (id, \"originalPath\", \"isExternal\", checksum) FROM stdin;\n\
         {PHOTO}\t/mnt/photos/x.jpg\tt\t\\\\x{SHA1}\n{VIDEO}\t/data/../etc/passwd\tf\t\\\\x{SHA1}\n{MOTION}\t\tf\t\\\\x{SHA1}\n{EXTERNAL}\t/data/upload/100%.jpg\tf\t\\\\x00\n\\.\n\
         COPY public.asset_file (\"assetId\", type, path) FROM stdin;\n{PHOTO}\tsidecar\t/mnt/photos/x.xmp\n{PHOTO}\tpreview\t\n\\.\n"
    );
    let inventory = read(plain(&body).as_bytes(), nas());
    let (outside, next) = inventory.outside_page(None).unwrap();
    assert_eq!(next, None);
    let outside: Vec<_> = outside.into_iter().map(|outside| (outside.path, outside.thing, text(outside.asset), outside.sha1.is_some())).collect();
    let line = |path: &str, thing, asset: &str, sha1| (path.to_owned(), thing, asset.to_owned(), sha1);
    let wanted = [
        line("/mnt/photos/x.jpg", Thing::Asset, PHOTO, false),
        line("/data/../etc/passwd", Thing::Asset, VIDEO, true),
        line("", Thing::Asset, MOTION, true),
        line("/mnt/photos/x.xmp", Thing::Sidecar, PHOTO, false),
    ];
    assert_eq!(outside, wanted);
    // A checksum that is none proves nothing.
    assert_eq!(lines(&all_named(&inventory)), [("upload/100%25.jpg".to_owned(), Thing::Asset, EXTERNAL.to_owned(), String::new())]);
    assert_eq!((inventory.summary().assets, inventory.summary().named, inventory.summary().outside), (4, 1, 4));
}

#[test]
fn pages_go_on_where_the_last_one_ended() {
    let mut body = "COPY public.assets (id, \"originalPath\", \"localDateTime\") FROM stdin;\n".to_owned();
    for number in 0..2_500 {
        // Names whose order as bytes is not that of their numbers; all taken at the same second.
        writeln!(body, "aaaaaaaa-0000-4000-8000-{number:012}\t/data/upload/f{}/n{}\t2024-01-01 00:00:00+00", number % 3, (number * 7) % 2_500).unwrap();
        writeln!(body, "bbbbbbbb-0000-4000-8000-{number:012}\t/elsewhere/{number}\t\\N").unwrap();
    }
    body.push_str("\\.\n");
    let inventory = read(plain(&body).as_bytes(), nas());
    let named = all_named(&inventory);
    assert_eq!(named.len(), 2_500);
    let keys: Vec<_> = named
        .iter()
        .map(|named| {
            let (folder, name) = named.file.path.split();
            (folder.to_owned(), name.to_owned())
        })
        .collect();
    assert!(keys.is_sorted());
    for named in &named {
        assert_eq!(inventory.asset_at(&named.file).unwrap().map(|at| at.id), named.asset);
    }
    let (mut outside, mut cursor) = (0, None);
    loop {
        let (page, next) = inventory.outside_page(cursor).unwrap();
        outside += page.len();
        cursor = next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(outside, 2_500);
    let found = find(&inventory, &Meaning::default());
    assert_eq!(found.iter().map(|asset| asset.id).collect::<BTreeSet<_>>().len(), 5_000);
    assert!(found.iter().take(2_500).all(|asset| asset.taken_at.is_none() && asset.file.is_none()));
}

#[test]
fn a_dump_that_is_not_immichs_is_read_all_the_same() {
    let inventory = read(plain("COPY public.posts (id, body) FROM stdin;\n1\tx\n2\ty\n\\.\nCOPY blog.users (id) FROM stdin;\n1\n\\.\n").as_bytes(), nas());
    let summary = inventory.summary();
    assert!(!summary.is_immich && summary.notes.is_empty());
    assert_eq!((summary.assets, summary.named, summary.rows_total), (0, 0, 3));
    assert_eq!(inventory.rows().iter().map(|(table, rows)| format!("{table} {rows}")).collect::<Vec<_>>(), ["blog.users 1", "posts 2"]);
    assert!(all_named(&inventory).is_empty() && find(&inventory, &Meaning::default()).is_empty());
}

#[test]
fn what_cannot_be_used_is_noted_and_the_rest_is_read() {
    let good = format!("{PHOTO}\t/data/upload/x.jpg\n");
    let body = format!(
        "COPY public.asset (id, \"originalPath\") FROM stdin;\n{good}not-an-id\t/data/a\n{VIDEO}\n{VIDEO}\tx\ty\n\\.\n\
         COPY public.asset_file (\"assetId\", place) FROM stdin;\n{PHOTO}\tx\n\\.\n\
         COPY public.system_metadata (key, value) FROM stdin;\nMediaLocation\tnull\nmaintenance-mode\t{{\"isMaintenanceMode\": true, \"secret\": \"s\"}}\n\\.\n"
    );
    let inventory = read(plain(&body).as_bytes(), nas());
    let summary = inventory.summary();
    assert!(summary.is_immich && summary.maintenance);
    assert_eq!((summary.assets, inventory.rows()["asset"]), (1, 4));
    let unreadable = |table: &str, rows| Note::UnreadableRows { table: table.to_owned(), rows };
    let missing = Note::MissingColumn { table: "asset_file".to_owned(), column: "path".to_owned() };
    assert_eq!(summary.notes, [unreadable("asset", 3), missing, unreadable("system_metadata", 1)]);
    let over = body.replace("\"isMaintenanceMode\": true", "\"isMaintenanceMode\": false");
    assert!(!read(plain(&over).as_bytes(), nas()).summary().maintenance);
    let none = read(plain("COPY public.asset (id, path) FROM stdin;\n\\.\n").as_bytes(), nas());
    assert!(!none.summary().is_immich && none.summary().notes.len() == 1);
}

#[test]
fn names_of_every_kind_come_out_as_they_went_in() {
    let long = "n".repeat(10_000);
    let names = [
        "COPY public.asset (id) FROM stdin;",
        "\\\\.",
        "tab\\there",
        "back\\\\slash",
        "line\\nend",
        "\\x41\\101",
        "'; DROP TABLE asset; --",
        "$$",
        long.as_str(),
    ];
    let mut body = "COPY public.asset (id, \"originalPath\", \"originalFileName\") FROM stdin;\n".to_owned();
    for (number, name) in names.iter().enumerate() {
        writeln!(body, "aaaaaaaa-0000-4000-8000-{number:012}\t/data/upload/{number}/{name}\t{name}").unwrap();
    }
    body.push_str("\\.\n");
    let inventory = read(plain(&body).as_bytes(), nas());
    let wanted = ["COPY public.asset (id) FROM stdin;", "\\.", "tab\there", "back\\slash", "line\nend", "AA", "'; DROP TABLE asset; --", "$$", long.as_str()];
    let found = find(&inventory, &Meaning::default());
    assert_eq!(found.iter().map(|asset| asset.original_name.as_str()).collect::<Vec<_>>(), wanted);
    for (asset, name) in found.iter().zip(wanted) {
        let path = asset.file.as_ref().unwrap().path.to_path();
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), name);
    }
}
