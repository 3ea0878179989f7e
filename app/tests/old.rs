//! Repositories that released versions wrote are kept in `app/tests/old`, and have to open for ever.
//!
//! `scripts/keep-format` keeps what this version writes. Each version that CHANGELOG.md calls released has to be there, and each that is there is
//! opened, verified, restored and continued.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

mod support;

use immich_backup_core::model::Sha256;
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};
use immich_backup_testbed::postgres::Postgres;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use support::{Leaf, Objects, Ran, Running, Tree, World, forge_entry, remove, settle, tool, write};

/// More than this does not belong into everybody's clone.
const KEPT_BYTES_MAX: u64 = 200 << 10;

fn kept_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old")
}

/// Versions of which a repository is kept.
fn kept() -> Vec<String> {
    let folders = fs::read_dir(kept_folder()).unwrap().map(|entry| entry.unwrap()).filter(|entry| entry.path().is_dir());
    let mut versions: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    versions.sort();
    versions
}

/// Makes a library and its database as they could be, backs up, changes, backs up again, and so on: one of each thing that a repository can hold.
/// Returns what each snapshot has to restore to.
fn make(world: &mut World) -> Value {
    let fixture = Fixture::open(IMMICH_3).filter(|_| fs::metadata(env!("CARGO_BIN_EXE_immich-backup")).is_ok());
    let server = fixture.as_ref().map(|_| Postgres::start().unwrap());
    let (nas, stack) = (world.at("nas"), world.at("stack"));
    let long = "%".repeat(200);
    for (number, path) in
        ["upload/u/aa/one.jpg", "upload/u/aa/one.jpg.xmp", "thumbs/u/one.webp", &format!("upload/u/{long}"), "library/admin/2024/Anna's 100% 📷 #1~..jpg"]
            .into_iter()
            .enumerate()
    {
        drop(world.file(path, 150 + number * 40, number as u64));
    }
    write(&world.library.join("upload/u/ab/no-access.jpg"), b"permissions come back", 1_400_000_000, 5, 0o600);
    write(&nas.join("2019/scan.tif"), b"an external picture", -5, 0, 0o640);
    write(&nas.join("end."), b"a name that ends in a dot", 1_400_000_000, 999_999_999, 0o644);
    write(
        &stack.join("docker-compose.yml"),
        b"services:\n  immich-server:\n    image: ghcr.io/immich-app/immich-server:v3.1.0\n    volumes: ['${UPLOAD_LOCATION}:/data']\n",
        1_400_000_000,
        0,
        0o644,
    );
    write(&stack.join(".env"), b"UPLOAD_LOCATION=../library\nDB_PASSWORD=not-to-be-kept-1\n", 1_400_000_000, 0, 0o600);
    // Two in fifty may change before a run asks whether that was meant.
    for number in 0..50 {
        drop(world.file(&format!("upload/u/ba/{number}.jpg"), 30 + number, 7));
    }
    let external = format!("nas={}:/mnt/external", nas.display());
    let mut arguments = vec!["--external".to_owned(), external, "--immich-dir".to_owned(), stack.display().to_string()];
    settle();
    let mut snapshots = Vec::new();
    let mut take = |world: &World, arguments: &[String], label: &str| {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).chain(["--label", label]).collect();
        let ran = of_stack(world, &arguments).ended(0);
        snapshots.push(json!({ "id": ran.snapshot(), "label": label, "library": told(&world.tree()), "nas": told(&Tree::of(&world.at("nas"))) }));
    };
    take(world, &[&arguments[..], &["--no-database".to_owned()]].concat(), "first");

    // A version, a version that is too long for its name, a move, a second copy, one that is gone, more for another copy of the manifest.
    drop(world.file("upload/u/aa/one.jpg", 260, 99));
    drop(world.file(&format!("upload/u/{long}"), 270, 99));
    let library = world.library.clone();
    let at = |path: &str| library.join(path);
    fs::create_dir_all(at("library/admin/2025")).unwrap();
    fs::rename(at("upload/u/ba/0.jpg"), at("library/admin/2025/0.jpg")).unwrap();
    fs::copy(at("upload/u/ba/1.jpg"), at("upload/u/ba/copy of 1.jpg")).unwrap();
    fs::remove_file(at("upload/u/ba/2.jpg")).unwrap();
    for number in 0..9 {
        drop(world.file(&format!("thumbs/u/more/{number}.webp"), 60 + number, 8));
    }
    if let (Some(fixture), Some(server)) = (&fixture, &server) {
        put_assets(world, fixture, server);
        arguments.extend(["--database".to_owned(), format!("postgresql://{}@127.0.0.1:{}/immich", Postgres::USER, server.port())]);
        arguments.extend(["--postgres-programs".to_owned(), server.programs().display().to_string()]);
    } else {
        arguments.push("--no-database".to_owned());
    }
    settle();
    take(world, &arguments, "second");

    // What was called damaged, and is whole after all; what was withheld.
    let object = world.repository.join("library/upload/u/ba/3.jpg");
    let before = fs::read(&object).unwrap();
    remove(&object);
    world.run(&["verify", "--json"]).ended(12);
    fs::write(&object, before).unwrap();
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    let aside = world.at("aside");
    fs::rename(at("upload"), &aside).unwrap();
    fs::create_dir(at("upload")).unwrap();
    fs::copy(aside.join(".immich"), at("upload/.immich")).unwrap();
    of_stack(world, &[&arguments[..4].iter().map(String::as_str).collect::<Vec<_>>()[..], &["--no-database"]].concat()).ended(4);
    remove(&at("upload"));
    fs::rename(aside, at("upload")).unwrap();
    json!({ "program": env!("CARGO_PKG_VERSION"), "dump": fixture.is_some(), "snapshots": snapshots })
}

/// A backup of the library that the stack's files name: so these belong to it.
fn of_stack(world: &World, arguments: &[&str]) -> Ran {
    Running::start(world.command(&[&["backup", "--init", "--json"], arguments].concat())).wait()
}

/// Two assets of a real server, in a database that knows no others.
fn put_assets(world: &mut World, fixture: &Fixture, server: &Postgres) {
    server.create_loaded("immich", fixture.dump());
    let files = fixture.copy();
    let plain = fixture
        .expected
        .assets
        .iter()
        .filter(|asset| !asset.is_external && asset.live_photo_video_id.is_none() && asset.r#type == "IMAGE" && asset.sidecar_path.is_none());
    let mut plain: Vec<_> = plain.collect();
    plain.sort_by_key(|asset| asset.size + asset.files.iter().filter_map(|file| file.size).sum::<u64>());
    let chosen = &plain[..2];
    let ids: Vec<_> = chosen.iter().map(|asset| format!("'{}'", asset.id)).collect();
    server.psql("immich", &format!("UPDATE asset SET \"stackId\" = NULL; DELETE FROM stack; DELETE FROM asset WHERE id NOT IN ({}); DELETE FROM person; UPDATE \"user\" SET \"profileImagePath\" = ''; VACUUM FULL;", ids.join(",")));
    for path in chosen.iter().flat_map(|asset| asset.files.iter().map(|file| &file.path).chain([&asset.original_path])) {
        let from = files.find(path).unwrap();
        let to = world.library.join(path.strip_prefix("/data/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, &to).unwrap();
        support::set_mtime(&to, 1_450_000_000, 1);
    }
    world.environment.push(("DB_PASSWORD".to_owned(), Postgres::PASSWORD.to_owned()));
}

/// A tree, written down.
fn told(tree: &Tree) -> Value {
    let leaf = |leaf: &Leaf| json!({ "sha256": leaf.sha256.to_string(), "size": leaf.size, "mtime_ns": leaf.mtime_ns.to_string(), "mode": leaf.mode });
    Value::Object(tree.0.iter().map(|(path, found)| (String::from_utf8(path.clone()).unwrap(), leaf(found))).collect::<Map<_, _>>())
}

/// A tree that was written down.
fn meant(told: &Value) -> Tree {
    let leaf = |told: &Value| Leaf {
        sha256: serde_json::from_value(told["sha256"].clone()).unwrap(),
        size: told["size"].as_u64().unwrap(),
        mtime_ns: told["mtime_ns"].as_str().unwrap().parse().unwrap(),
        mode: told["mode"].as_u64().unwrap().try_into().unwrap(),
        kind: "",
        inode: 0,
    };
    Tree(told.as_object().unwrap().iter().map(|(path, told)| (path.clone().into_bytes(), leaf(told))).collect())
}

/// A world with a copy of a kept repository, with the permissions that git does not keep.
fn opened(folder: &Path) -> World {
    let world = World::bare();
    tool("cp", &["-r".as_ref(), folder.join("repository").as_os_str(), world.repository.as_os_str()]);
    for path in tool("find", &[world.repository.as_os_str(), "-type".as_ref(), "f".as_ref()]).out.lines() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o400)).unwrap();
    }
    world
}

/// Brings every snapshot back and compares.
fn assert_restores(world: &World, expected: &Value, what: &str) {
    for snapshot in expected["snapshots"].as_array().unwrap() {
        let (to, nas) = (world.at("restored"), world.at("restored-nas"));
        let external = format!("nas={}", nas.display());
        world.restore(&to, &["--snapshot", snapshot["id"].as_str().unwrap(), "--external", &external]).ended(0);
        let what = format!("{what}, {}", snapshot["label"]);
        Tree::of(&to).without("backups").assert_is(&meant(&snapshot["library"]), &what);
        Tree::of(&nas).assert_is(&meant(&snapshot["nas"]), &what);
        remove(&to);
        remove(&nas);
    }
}

/// All that has to be possible with a repository of any version.
fn open_verify_restore_and_go_on(folder: &Path) {
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut world = opened(folder);
    let mut objects = Objects::default();
    objects.look(&world.repository, true);
    let ids: Vec<_> = expected["snapshots"].as_array().unwrap().iter().map(|snapshot| snapshot["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(world.snapshots(), ids);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    if expected["dump"] == true {
        let proof = world.run(&["verify", "--proof", "--json"]).ended(0).summary()["proof"]["now"].clone();
        assert_eq!((proof["assets"].as_u64(), proof["proven"].as_u64()), (Some(2), Some(2)), "{proof}");
        assert_eq!(world.run(&["find", "--json"]).ended(0).lines().iter().filter(|line| line["type"] == "asset").count(), 2);
    }
    assert_restores(&world, &expected, "as it was kept");

    // On with it: what came back is known, and what is new goes on top.
    let last = expected["snapshots"].as_array().unwrap().last().unwrap();
    let (library, nas) = (world.at("back"), world.at("back-nas"));
    let external = format!("nas={}", nas.display());
    world.restore(&library, &["--external", &external]).ended(0);
    remove(&world.library);
    world.library = library;
    let arguments = ["--external", &external, "--no-database"];
    let again = world.backup(&arguments).ended(0);
    assert_eq!(again.number("/files/sent"), 0, "{}", again.told());
    assert_eq!(again.number("/files/archived"), 0, "{}", again.told());
    drop(world.file("upload/u/aa/one.jpg", 333, 12));
    drop(world.file("upload/new.jpg", 44, 12));
    let newest = world.backup(&arguments).ended(0);
    assert_eq!(newest.number("/files/sent"), 2);
    world.run(&["verify", "--read-data", "--json"]).ended(0);
    assert_restores(&world, &expected, "after two more runs");
    let tree = world.tree();
    let (to, to_nas) = (world.at("newest"), world.at("newest-nas"));
    world.restore(&to, &["--external", &format!("nas={}", to_nas.display())]).ended(0);
    Tree::of(&to).without("backups").assert_is(&tree, "the newest");
    Tree::of(&to_nas).assert_is(&meant(&last["nas"]), "the newest");
    // Nothing that was there has been touched.
    objects.look(&world.repository, true);
}

#[test]
fn every_repository_that_is_kept_opens_verifies_restores_and_goes_on() {
    let kept = kept();
    assert!(!kept.is_empty());
    for version in kept {
        println!("{version}");
        open_verify_restore_and_go_on(&kept_folder().join(version));
    }
}

#[test]
fn every_released_version_is_kept_under_its_own_name() {
    let changelog = fs::read_to_string(kept_folder().join("../../../CHANGELOG.md")).unwrap();
    let released: BTreeSet<_> =
        changelog.lines().filter_map(|line| Some(line.strip_prefix("## [")?.split_once(']')?.0)).filter(|name| *name != "Unreleased").collect();
    let kept = kept();
    let missing: Vec<_> = released.iter().filter(|version| !kept.iter().any(|kept| kept == *version)).collect();
    assert!(missing.is_empty(), "run scripts/keep-format: no repository of {missing:?} is kept in app/tests/old");
    for version in &kept {
        let folder = kept_folder().join(version);
        let of_this = *version == env!("CARGO_PKG_VERSION");
        assert!(released.contains(version.as_str()) || of_this, "{version} was never released, and is not what Cargo.toml says");
        let identity: Value = serde_json::from_slice(&fs::read(folder.join("repository/format.json")).unwrap()).unwrap();
        assert_eq!(identity["created_by"], format!("immich-backup {version}"));
        let size: u64 = Tree::of(&folder).0.values().map(|leaf| leaf.size).sum();
        assert!(size <= KEPT_BYTES_MAX, "{version} takes {size} bytes");
    }
}

#[test]
fn what_this_version_writes_can_be_kept_and_holds_one_of_each() {
    let mut world = World::new();
    let expected = make(&mut world);
    let folder = world.at("kept");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("expected.json"), expected.to_string() + "\n").unwrap();
    remove(&world.repository.join("tmp"));
    tool("cp", &["-r".as_ref(), world.repository.as_os_str(), folder.join("repository").as_os_str()]);
    let objects = Tree::of(&folder.join("repository"));
    let kinds = ["library/", "external/nas/", "config/", "versions/upload/u/aa/one.jpg/", "versions/%hashed/", "manifests/", "log/", "format.json"];
    for kind in kinds.into_iter().chain((expected["dump"] == true).then_some("database/")) {
        assert!(objects.0.keys().any(|key| key.starts_with(kind.as_bytes())), "no {kind}");
    }
    let mut said = String::new();
    for sequence in 1..=world.entries() {
        said.push_str(&tool("zstd", &["-dcq".as_ref(), world.entry(sequence).as_os_str()]).out);
    }
    for fact in ["run_started", "stored", "archived", "snapshot", "manifest", "listed", "read", "damaged", "sound", "run_ended"] {
        assert!(said.contains(&format!(r#"{{"fact":"{fact}""#)), "no fact {fact}");
    }
    assert!(!said.contains("not-to-be-kept"));
    open_verify_restore_and_go_on(&folder);
    if let Some(to) = std::env::var_os("IMMICH_BACKUP_KEEP_FORMAT") {
        assert!(expected["dump"] == true, "without a dump of the database it is not worth keeping");
        let to = PathBuf::from(to);
        remove(&to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        tool("cp", &["-r".as_ref(), folder.as_os_str(), to.as_os_str()]);
        tool("chmod", &["-R".as_ref(), "u+rwX,go+rX".as_ref(), to.as_os_str()]);
    }
}

/// Schemas of the manifest that earlier states of the program wrote, oldest first.
const SCHEMAS: [(i64, &str); 2] = [(2, include_str!("old/schema-2.sql")), (3, include_str!("old/schema-3.sql"))];

#[test]
fn a_copy_of_the_manifest_of_an_older_schema_is_passed_over_and_the_log_says_it_all() {
    let folder = kept_folder().join(kept().last().unwrap());
    let expected: Value = serde_json::from_slice(&fs::read(folder.join("expected.json")).unwrap()).unwrap();
    for (version, schema) in SCHEMAS {
        let world = opened(&folder);
        let sequence = world.entries();
        let database = world.at("old.db");
        let identity: Value = serde_json::from_slice(&fs::read(world.repository.join("format.json")).unwrap()).unwrap();
        let head = Sha256::of(&fs::read(world.entry(sequence)).unwrap());
        let filled = format!(
            "{schema}; INSERT INTO manifest_metadata(version, repository, last_sequence, last_sha256, totals) VALUES ({version}, '{}', {sequence}, x'{head}', '{{}}');",
            identity["repository"].as_str().unwrap()
        );
        tool("sqlite3", &["-batch".as_ref(), database.as_os_str(), std::ffi::OsStr::new(&format!("\n{filled}"))]);
        let copy = world.repository.join(format!("manifests/{sequence:010}.db.zst"));
        tool("zstd", &["-q".as_ref(), database.as_os_str(), "-o".as_ref(), copy.as_os_str()]);
        let sha256 = Sha256::of(&fs::read(&copy).unwrap());
        forge_entry(&world, &[&format!(r#"{{"fact":"manifest","key":"manifests/{sequence:010}.db.zst","sha256":"{sha256}","sequence":{sequence},"rows":0}}"#)]);
        let shown = world.run(&["snapshots"]).ended(0);
        assert!(shown.err.contains("another version"), "{}", shown.told());
        assert_restores(&world, &expected, &format!("schema {version}"));
    }
}
