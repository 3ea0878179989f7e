//! What Immich there is, read off what engines print of containers: recorded ones, and changes to them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use bollard::models::ContainerInspectResponse;
use immich_backup_core::model::ExternalName;
use immich_backup_core::stack::compose::Compose;
use immich_backup_core::stack::discover::{Choice, Database, DiscoverError, Known, Place, Site, Teller, choose, sites};
use immich_backup_core::stack::own::{Here, Signs, mark};
use immich_backup_core::stack::project::{Condition, Container};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What was recorded; folders of the host are moved below `place`, where they are made.
fn recorded(name: &str, place: &Path) -> Vec<Value> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/tests/recorded").join(name)).unwrap();
    let mut found: Vec<Value> = serde_json::from_str(&text).unwrap();
    for mount in found.iter_mut().flat_map(|container| container["Mounts"].as_array_mut().unwrap()) {
        if let Some(host) = mount["Source"].as_str().filter(|host| host.starts_with('/')) {
            let host = place.join(host.trim_start_matches('/'));
            fs::create_dir_all(&host).unwrap();
            mount["Source"] = json!(host);
        }
    }
    found
}

fn containers(found: &[Value]) -> Vec<Container> {
    found.iter().map(|one| serde_json::from_value::<ContainerInspectResponse>(one.clone()).unwrap().into()).collect()
}

fn chosen(found: &[Value]) -> Site {
    choose(&containers(found), &Choice::default(), &Here::Host).unwrap()
}

fn server(found: &mut [Value]) -> &mut Value {
    found.iter_mut().find(|one| one["Name"].as_str().unwrap().contains("server")).unwrap()
}

fn database(found: &mut [Value]) -> &mut Value {
    found.iter_mut().find(|one| one["Config"]["Image"].as_str().unwrap().contains("postgres")).unwrap()
}

/// Sets a variable of a container, or takes it away.
fn set(container: &mut Value, name: &str, value: Option<&str>) {
    let variables = container["Config"]["Env"].as_array_mut().unwrap();
    variables.retain(|one| !one.as_str().unwrap().starts_with(&format!("{name}=")));
    variables.extend(value.map(|value| json!(format!("{name}={value}"))));
}

fn without_labels(found: &mut [Value]) {
    for container in found {
        let labels = container["Config"]["Labels"].as_object_mut().unwrap();
        labels.retain(|name, _| !name.starts_with("com.docker.compose"));
    }
}

fn container_of(site: &Site) -> (String, Option<String>, Option<String>) {
    match site.database().unwrap().value {
        Database::InContainer { container, user, name, .. } => (container, user, name),
        Database::Elsewhere(connection) => panic!("elsewhere: {connection}"),
    }
}

#[test]
fn a_stack_of_compose_2_is_found_with_its_library_on_two_disks_and_its_database() {
    let place = tempfile::tempdir().unwrap();
    for name in ["compose-2.json", "compose-2-created.json", "compose-1.29.json"] {
        let found = recorded(name, place.path());
        let site = chosen(&found);
        assert_eq!((site.name(), site.server.service.as_str()), ("immich", "immich-server"), "{name}");
        let media = site.media(&Here::Host).unwrap();
        assert_eq!(media.value.server_path, Path::new("/data"), "{name}");
        assert!(media.value.path.starts_with(place.path()) && media.origin.starts_with("mount of `immich_server`"), "{media:?}");
        assert_eq!(container_of(&site).0, "immich_postgres", "{name}");
        assert!(site.version().unwrap().origin.contains("image"), "{name}");
    }
    let site = chosen(&recorded("compose-2.json", place.path()));
    let media = site.media(&Here::Host).unwrap().value;
    assert_eq!(media.mounts.iter().map(|(below, _)| below.to_str().unwrap()).collect::<Vec<_>>(), ["thumbs"]);
    // A password is in nothing that may be shown.
    assert!(!format!("{site:?}").to_lowercase().contains("password: \""));
}

#[test]
fn containers_without_labels_are_found_by_image_and_name_as_other_tools_make_them() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    without_labels(&mut found);
    let site = chosen(&found);
    assert_eq!((site.project.is_none(), site.name()), (true, "immich_server"));
    assert_eq!(container_of(&site).0, "immich_postgres");
    // Renamed: by the images alone. Podman says localhost/ before them, and a digest behind.
    server(&mut found)["Name"] = json!("/photo-server");
    server(&mut found)["Config"]["Image"] = json!("localhost:5000/immich-app/immich-server@sha256:0123");
    database(&mut found)["Name"] = json!("/pg");
    assert_eq!(container_of(&chosen(&found)).0, "pg");
    // By the image's label alone; the machine learning has the same.
    for container in &mut found {
        if !container["Config"]["Image"].as_str().unwrap().contains("immich-") {
            continue;
        }
        container["Config"]["Labels"]["org.opencontainers.image.source"] = json!("https://code.example/immich-app/immich");
    }
    server(&mut found)["Config"]["Image"] = json!("sha256:4567");
    assert_eq!(chosen(&found).server.name, "photo-server");
}

#[test]
fn of_several_it_asks_and_of_none_it_says_what_was_looked_at() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    let mut second = found.clone();
    for container in &mut second {
        container["Id"] = json!(container["Id"].as_str().unwrap().chars().rev().collect::<String>());
        container["Config"]["Labels"]["com.docker.compose.project"] = json!("second");
        container["Config"]["Labels"]["com.docker.compose.project.working_dir"] = json!(place.path());
    }
    found.extend(second);
    let all = containers(&found);
    let error = choose(&all, &Choice::default(), &Here::Host).unwrap_err();
    assert!(matches!(&error, DiscoverError::Several { found } if *found == ["immich", "second"]), "{error}");
    assert!(error.hint().contains("--compose-project"));
    let by_name = |name: &str| choose(&all, &Choice { project: Some(name.to_owned()), folder: None }, &Here::Host);
    assert_eq!(by_name("second").unwrap().name(), "second");
    let error = by_name("third").unwrap_err();
    assert!(error.hint().contains("`immich`, `second`"), "{}", error.hint());
    let by_folder = |folder: &Path| choose(&all, &Choice { project: None, folder: Some(folder.to_owned()) }, &Here::Host);
    assert_eq!(by_folder(&place.path().join(".")).unwrap().name(), "second");
    assert!(matches!(by_folder(Path::new("/nowhere")).unwrap_err(), DiscoverError::NotInFolder { .. }));
    let others: Vec<_> = all.into_iter().filter(|container| !container.image.contains("immich-server")).collect();
    let error = choose(&others, &Choice::default(), &Here::Host).unwrap_err();
    assert!(matches!(error, DiscoverError::NoImmich { .. }) && error.to_string().contains("`immich_postgres`"), "{error}");
}

#[test]
fn older_stacks_have_microservices_beside_and_see_their_library_elsewhere() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    for mount in server(&mut found)["Mounts"].as_array_mut().unwrap() {
        let inside = mount["Destination"].as_str().unwrap().replace("/data", "/usr/src/app/upload");
        mount["Destination"] = json!(inside);
    }
    let mut second = server(&mut found).clone();
    second["Id"] = json!("f".repeat(64));
    second["Name"] = json!("/immich_microservices");
    second["Config"]["Labels"]["com.docker.compose.service"] = json!("immich-microservices");
    found.insert(0, second);
    let site = chosen(&found);
    assert_eq!(site.server.name, "immich_server");
    assert_eq!(site.media(&Here::Host).unwrap().value.server_path, Path::new("/usr/src/app/upload"));
    without_labels(&mut found);
    assert_eq!(chosen(&found).server.name, "immich_server");
}

#[test]
fn a_media_location_that_is_no_mount_is_refused_and_one_below_a_mount_is_found() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    set(server(&mut found), "IMMICH_MEDIA_LOCATION", Some("/photos/immich"));
    let error = chosen(&found).media(&Here::Host).unwrap_err();
    assert!(error.to_string().contains("`/photos/immich`") && error.hint().contains("docker cp"), "{error}");
    let outer = place.path().join("disk");
    fs::create_dir_all(outer.join("immich")).unwrap();
    server(&mut found)["Mounts"].as_array_mut().unwrap().push(json!({ "Type": "bind", "Source": outer, "Destination": "/photos", "RW": true }));
    assert_eq!(chosen(&found).media(&Here::Host).unwrap().value.path, outer.join("immich"));
    // A volume whose folder is not on this machine.
    let volume = json!({ "Type": "volume", "Name": "photos", "Source": "/nowhere/volumes/photos/_data", "Destination": "/photos/immich", "RW": true });
    server(&mut found)["Mounts"].as_array_mut().unwrap().push(volume);
    let error = chosen(&found).media(&Here::Host).unwrap_err();
    assert!(matches!(&error, DiscoverError::Unreadable { volume: Some(name), .. } if name == "photos"), "{error}");
    assert!(error.hint().contains("Docker Desktop"), "{}", error.hint());
    set(server(&mut found), "IMMICH_MEDIA_LOCATION", Some("/photos/../etc"));
    assert!(matches!(chosen(&found).media(&Here::Host).unwrap_err(), DiscoverError::Unmounted { .. }));
}

#[test]
fn the_database_is_the_one_that_the_server_names() {
    let place = tempfile::tempdir().unwrap();
    let recorded = recorded("compose-2.json", place.path());
    // On a server of the network.
    let mut found = recorded.clone();
    for (name, value) in [("DB_HOSTNAME", "pg.example"), ("DB_PORT", "5433"), ("DB_USERNAME", "me"), ("DB_PASSWORD", "hunter2"), ("DB_DATABASE_NAME", "photos")]
    {
        set(server(&mut found), name, Some(value));
    }
    let outside = chosen(&found).database().unwrap();
    assert!(matches!(&outside.value, Database::Elsewhere(connection) if connection.target() == "`photos` at pg.example:5433"), "{outside:?}");
    assert!(outside.origin.contains("immich_server") && !format!("{outside:?}").contains("hunter2"));
    set(server(&mut found), "DB_PASSWORD", None);
    set(server(&mut found), "DB_PASSWORD_FILE", Some("/run/secrets/db"));
    assert_eq!(chosen(&found).files_of_secrets(), ["DB_PASSWORD_FILE"]);
    set(server(&mut found), "DB_URL", Some("postgres://me:hunter2@db.example/x"));
    assert_eq!(chosen(&found).database().unwrap().value.target(), "`x` at db.example");
    set(server(&mut found), "DB_URL", Some("mysql://me:hunter2@db.example/x"));
    let error = chosen(&found).database().unwrap_err();
    assert!(!format!("{error} {error:?} {}", error.hint()).contains("hunter2"), "{error}");
    // By the container's name, by a URL, and in another database than the container was made with.
    let mut found = recorded.clone();
    set(server(&mut found), "DB_URL", Some("postgresql://postgres:x@immich_postgres:5432/second"));
    assert_eq!(container_of(&chosen(&found)), ("immich_postgres".to_owned(), None, Some("second".to_owned())));
    // Another project's, reached over a network of both.
    let mut found = recorded.clone();
    set(server(&mut found), "DB_HOSTNAME", Some("shared-pg"));
    let mut shared = database(&mut found).clone();
    shared["Id"] = json!("e".repeat(64));
    shared["Name"] = json!("/shared-pg");
    shared["Config"]["Labels"]["com.docker.compose.project"] = json!("databases");
    shared["Config"]["Labels"]["com.docker.compose.service"] = json!("pg");
    found.push(shared);
    assert_eq!(container_of(&chosen(&found)).0, "shared-pg");
    // None at all.
    let mut found = recorded;
    found.retain(|one| !one["Config"]["Image"].as_str().unwrap().contains("postgres"));
    set(server(&mut found), "DB_HOSTNAME", None);
    set(server(&mut found), "DB_URL", None);
    assert!(matches!(chosen(&found).database().unwrap_err(), DiscoverError::NoDatabase { .. }));
}

#[test]
fn external_libraries_are_found_behind_the_mounts_and_keep_their_names() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    let mount = |host: &str, inside: &str| {
        fs::create_dir_all(place.path().join(host)).unwrap();
        json!({ "Type": "bind", "Source": place.path().join(host), "Destination": inside, "RW": false })
    };
    let more = [mount("nas", "/mnt/media"), mount("usb", "/mnt/media/usb"), mount("a", "/several/a"), mount("b", "/several/b")];
    server(&mut found)["Mounts"].as_array_mut().unwrap().extend(more);
    let site = chosen(&found);
    let paths = ["/mnt/media/photos/", "/mnt/media/photos/2024", "/mnt/media", "/several", "/unmounted/x", "/data/inside", "relative", "/mnt/media/../../etc"];
    let externals = site.externals(&paths.map(str::to_owned), &Here::Host);
    let told: Vec<_> = externals.iter().map(|one| (one.server_path.to_str().unwrap(), matches!(one.place, Place::Found { .. }))).collect();
    assert_eq!(told, [("/mnt/media", true), ("/several/a", true), ("/several/b", true), ("/unmounted/x", false), ("relative", false)]);
    let inner = [("photos", "srv/photos"), ("usb", "usb")].map(|(below, host)| (PathBuf::from(below), place.path().join(host)));
    assert!(matches!(&externals[0].place, Place::Found { path, mounts } if *path == place.path().join("nas") && *mounts == inner));
    let name = |text: &str| text.parse::<ExternalName>().unwrap();
    let none = BTreeSet::new();
    assert_eq!(externals[0].name(&[], &none).unwrap(), name("mnt-media"));
    let known =
        [Known { name: name("nas"), server_path: PathBuf::from("/mnt/media/") }, Known { name: name("several-a"), server_path: PathBuf::from("/other") }];
    assert_eq!(externals[0].name(&known, &none).unwrap(), name("nas"));
    // Its own name is another one's: told apart for ever by a part of its hash.
    let other = externals[1].name(&known, &none).unwrap();
    assert!(other.as_str().starts_with("several-a-") && other == externals[1].name(&known, &none).unwrap(), "{other}");
    let long = site.externals(&[format!("/mnt/media/{}", "ü/".repeat(90))], &Here::Host).remove(0);
    assert!(long.name(&[], &none).unwrap().as_str().len() <= 64);
}

#[test]
fn a_container_of_our_own_is_known_and_sees_the_host_by_its_mounts() {
    let place = tempfile::tempdir().unwrap();
    let mut found = recorded("compose-2.json", place.path());
    let own = "ab".repeat(32);
    let media = chosen(&found).media(&Here::Host).unwrap().value.path;
    let inside = place.path().join("inside");
    fs::create_dir_all(&inside).unwrap();
    let mut backup = server(&mut found).clone();
    backup["Id"] = json!(own);
    backup["Name"] = json!("/immich_backup");
    backup["Config"]["Labels"]["com.docker.compose.service"] = json!("immich-backup");
    backup["Config"]["Image"] = json!("immich-backup:latest");
    backup["Mounts"] = json!([{ "Type": "bind", "Source": media, "Destination": inside, "RW": false }]);
    let mut proxy = backup.clone();
    proxy["Id"] = json!("cd".repeat(32));
    proxy["Name"] = json!("/socket-proxy");
    found.extend([backup, proxy]);
    let signs = [
        Signs { mountinfo: format!("1 2 0:1 /var/lib/docker/containers/{own}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"), ..Signs::default() },
        Signs { mountinfo: format!("1 2 0:1 /overlay-containers/{own}/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw\n"), ..Signs::default() },
        Signs { cgroup: format!("4:memory:/docker/{own}\n"), ..Signs::default() },
        Signs { cgroup: format!("0::/system.slice/docker-{own}.scope\n"), ..Signs::default() },
        Signs { hostname: own[..12].to_owned(), is_marked: true, ..Signs::default() },
    ];
    for signs in signs {
        let mut all = containers(&found);
        let here = mark(&mut all, &signs, "tcp://socket-proxy:2375");
        let needed: Vec<_> = all.iter().filter(|one| one.is_needed_here()).map(|one| one.name.as_str()).collect();
        assert_eq!(needed, ["immich_backup", "socket-proxy"], "{signs:?}");
        let site = choose(&all, &Choice::default(), &here).unwrap();
        // The library is mounted here; thumbs, on another disk, is not.
        let error = site.media(&here).unwrap_err();
        assert!(matches!(&error, DiscoverError::NotMounted(error) if error.container == "immich_backup"), "{error}");
        assert!(error.hint().contains(":ro` to the volumes"), "{}", error.hint());
        assert_eq!(here.path(&media.join("upload")).unwrap(), inside.join("upload"));
    }
    // On the host there are mounts of containers, too, and a name may be anybody's.
    let host = Signs {
        mountinfo: format!("1 2 0:1 / /var/lib/docker/containers/{own}/mounts/shm rw - tmpfs shm rw\n"),
        hostname: own[..12].to_owned(),
        ..Signs::default()
    };
    let mut all = containers(&found);
    assert!(matches!(mark(&mut all, &host, "unix:///var/run/docker.sock"), Here::Host));
    assert!(!all.iter().any(Container::is_needed_here));
}

/// As Immich's own, with what people add to it.
const COMPOSE: &str = r#"
name: immich
services:
  immich-server:
    container_name: immich_server
    extends:
      file: hwaccel.transcoding.yml
      service: quicksync
    image: immich-app/immich-server:${IMMICH_VERSION:-release}
    volumes:
      - ${UPLOAD_LOCATION}:/data
      - type: bind
        source: ${FAST:-./fast}/thumbs
        target: /data/thumbs
      - photos:/mnt/photos:ro
      - /etc/localtime:/etc/localtime:ro
    env_file:
      - .env
      - path: more.env
        required: false
    depends_on: [redis, database]
    stop_grace_period: 1m30s
  redis:
    image: valkey:9
  database:
    container_name: immich_postgres
    image: immich-app/postgres:14
    environment: &env
      POSTGRES_PASSWORD: ${DB_PASSWORD}
      POSTGRES_USER: ${DB_USERNAME:?say who}
      POSTGRES_DB: ${DB_DATABASE_NAME:-immich}
    ports: ["127.0.0.1:5433:5432"]
volumes:
  photos:
    external: true
"#;

#[test]
fn without_an_engine_the_files_say_the_same() {
    let place = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(place.path().join(name), text).unwrap();
    write("docker-compose.yml", COMPOSE);
    write("docker-compose.override.yml", "services:\n  immich-server:\n    depends_on: {database: {condition: service_healthy}}\n");
    write("hwaccel.transcoding.yml", "services:\n  quicksync:\n    devices: [/dev/dri:/dev/dri]\n    environment: {LIBVA: x}\n");
    write(".env", "UPLOAD_LOCATION=./library # here\nDB_USERNAME=me\nDB_PASSWORD='hun ter2'\nIMMICH_VERSION=v3.1.0\n");
    for folder in ["library", "fast/thumbs"] {
        fs::create_dir_all(place.path().join(folder)).unwrap();
    }
    let compose = Compose::read(place.path()).unwrap();
    assert_eq!((compose.name.as_str(), compose.problems.as_slice()), ("immich", &[][..]));
    let all = compose.containers();
    let site = sites(&all, Teller::Files).remove(0);
    let media = site.media(&Here::Host).unwrap().value;
    assert_eq!(media.path, place.path().join("library"));
    assert_eq!(media.mounts, [(PathBuf::from("thumbs"), place.path().join("fast/thumbs"))]);
    assert_eq!(site.version().unwrap().value, "3.1.0");
    let database = site.database().unwrap();
    assert_eq!((database.value.target().as_str(), database.origin.as_str()), ("`immich` at 127.0.0.1:5433", "environment of `immich_postgres`"));
    assert!(!format!("{compose:?}{database:?}").contains("hun ter2"));
    let externals = site.externals(&["/mnt/photos/old".to_owned()], &Here::Host);
    assert!(matches!(&externals[0].place, Place::Found { path, .. } if path == Path::new("/var/lib/docker/volumes/photos/_data/old")), "{externals:?}");
    let before = &compose.depends_on()["immich-server"];
    assert_eq!(
        before.iter().map(|one| (one.service.as_str(), one.condition)).collect::<Vec<_>>(),
        [("database", Condition::Healthy), ("redis", Condition::Started)]
    );
    assert_eq!(compose.stop_timeouts()["immich-server"].as_secs(), 90);
    let names: Vec<_> = compose.files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["docker-compose.yml", "hwaccel.transcoding.yml", "docker-compose.override.yml"]);
    // What has to be said and is not is named.
    write(".env", "UPLOAD_LOCATION=./library\n");
    let error = Compose::read(place.path()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("`DB_USERNAME`"), "{error:?}");
    assert!(matches!(Compose::read(&place.path().join("library")).unwrap_err(), immich_backup_core::stack::compose::ComposeError::NoFile { .. }));
}

#[test]
fn labels_that_compose_1_does_not_write_are_made_up_for_by_its_file() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("docker-compose.yml"), COMPOSE.replace("${DB_USERNAME:?say who}", "me")).unwrap();
    let mut site = chosen(&recorded("compose-1.29.json", place.path()));
    let compose = Compose::read(place.path()).unwrap();
    let project = site.project.as_mut().unwrap();
    compose.complete(project);
    let names: Vec<_> = project.services.iter().map(|service| service.name.as_str()).collect();
    let at = |name: &str| names.iter().position(|one| *one == name).unwrap();
    assert!(at("database") < at("immich-server") && at("redis") < at("immich-server"), "{names:?}");
    let server = project.service("immich-server").unwrap();
    assert!(server.containers[0].stop_timeout.is_some());
}
