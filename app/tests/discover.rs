//! On a host with Immich's Compose stack a backup needs no argument but where it goes: a real engine, real containers, a real database.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

mod support;

use immich_backup_core::verdict::Proof;
use immich_backup_testbed::compose::{SERVER, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use immich_backup_testbed::postgres::Postgres;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use support::{Ran, Running, World};

/// The program in a world of its own that knows where the engine is, and nothing else.
fn world(engine: &Engine) -> World {
    let mut world = World::bare();
    world.environment.push(("DOCKER_HOST".to_owned(), engine.host()));
    world
}

fn proof(ran: &Ran) -> Proof {
    serde_json::from_value(ran.summary()["proof"].clone()).unwrap()
}

/// Whether any file below `folder` has these bytes in it, compressed or not.
fn has(folder: &Path, secret: &str) -> bool {
    let plain = Command::new("grep").args(["--recursive", "--quiet", "--fixed-strings", secret]).arg(folder).status().unwrap().success();
    let compressed =
        format!("find {} -name '*.zst' -exec zstd --quiet --decompress --stdout {{}} + | grep --quiet --fixed-strings -e '{secret}'", folder.display());
    plain || Command::new("sh").args(["-c", &compressed]).status().unwrap().success()
}

fn found(ran: &Ran, what: &str) -> Vec<(String, String)> {
    let text = |event: &serde_json::Value, name: &str| event[name].as_str().unwrap().to_owned();
    ran.events("found").iter().filter(|event| text(event, "what").starts_with(what)).map(|event| (text(event, "value"), text(event, "origin"))).collect()
}

#[test]
fn a_backup_of_a_compose_stack_needs_no_argument_but_where_it_goes() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let options = StackOptions { mounted: vec!["thumbs".to_owned()], writes_every_seconds: 0, ..StackOptions::default() };
    let Some(stack) = Stack::up(&engine, options).unwrap() else { return };
    let world = world(&engine);
    let backup = world.run(&["backup", "--init", "--json"]).ended(0);
    assert_eq!(proof(&backup).headline(), "proven 93 of 93, 4 external");
    assert_eq!(found(&backup, "library"), [(stack.media().display().to_string(), "mount of `immich_server` at /data".to_owned())]);
    assert_eq!(found(&backup, "external")[0].0, stack.external().display().to_string());
    assert_eq!(found(&backup, "database"), [("`immich` in the container `immich_postgres`".to_owned(), "environment of `immich_postgres`".to_owned())]);
    // What lies on another disk is below the library all the same, and the configuration beside it.
    let listed = world.run(&["ls", "--json"]).ended(0);
    let paths: Vec<_> = listed.events("file").iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect();
    for path in ["config/docker-compose.yml", "config/.env", "config/containers.json"] {
        assert!(paths.iter().any(|listed| listed == path), "{path} is not in {paths:?}");
    }
    assert!(paths.iter().any(|path| path.starts_with("thumbs/")) && paths.iter().any(|path| path.starts_with("external/mnt-external/")), "{paths:?}");
    // The password of the database is in what Compose reads, and nowhere in the repository or in the state folder.
    let password = stack.env()["DB_PASSWORD"].clone();
    assert!(fs::read_to_string(stack.folder().join(".env")).unwrap().contains(&password));
    assert!(!has(&world.repository, &password) && !has(&world.state, &password));
    assert!(has(&world.repository, "DB_DATABASE_NAME"), "the search finds nothing at all");
    // Again: nothing changed, nothing is sent, no version is made.
    let again = world.run(&["backup", "--json"]).ended(0);
    assert_eq!((again.number("/files/new"), again.number("/files/changed"), again.number("/files/archived")), (0, 0, 0));
    // And with the secrets, for who wants them.
    world.run(&["backup", "--json", "--with-secrets"]).ended(0);
    assert!(has(&world.repository, &password));
    // What is found is shown, with what told of it.
    let doctor = world.run(&["doctor"]).ended(0);
    for text in [
        "project `immich`, server `immich_server` (running)",
        "(mount of `immich_server` at /data)",
        "(environment of `immich_postgres`)",
        "external /mnt/external",
        "label of the image",
    ] {
        assert!(doctor.out.contains(text), "`{text}` is not said\n{}", doctor.told());
    }
    assert!(!doctor.out.contains(&password));
    // A server that is stopped is looked into all the same.
    stack.compose(&["stop", SERVER]);
    world.run(&["backup", "--json"]).ended(0);
    world.run(&["doctor"]).ended(0).says("(exited)");
    // What is said outweighs what would be found.
    let said = world.run(&["backup", "--json", "--no-database"]).ended(0);
    assert_eq!(found(&said, "database"), []);
    assert!(found(&said, "external")[0].0 == stack.external().display().to_string(), "known from the snapshot before");
    let other = world.at("other");
    fs::create_dir_all(other.join("upload")).unwrap();
    fs::write(other.join("upload/x.jpg"), "x").unwrap();
    let elsewhere = World::bare();
    let other = elsewhere.run(&["backup", "--init", "--json", "--library", other.to_str().unwrap(), "--docker-host", &engine.host()]).ended(0);
    assert_eq!(other.summary()["dump"], serde_json::Value::Null, "another library's database proves nothing");
    other.says("is left aside");
    // The containers under other names: by the image.
    for (old, new) in [("immich_server", "photos"), ("immich_postgres", "pg")] {
        engine.docker(&["rename", old, new]);
    }
    let renamed = world.run(&["backup", "--json"]).ended(0);
    assert_eq!(found(&renamed, "database")[0].1, "environment of `pg`");
}

#[test]
fn of_two_stacks_it_asks_which() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(_one) = Stack::up(&engine, StackOptions { running: Vec::new(), ..StackOptions::default() }).unwrap() else { return };
    let options = StackOptions { project: "second".to_owned(), container_names: false, ..StackOptions::default() };
    let Some(two) = Stack::up(&engine, options).unwrap() else { return };
    let world = world(&engine);
    let asked = world.run(&["backup", "--init", "--json"]).ended(2);
    let errors = asked.summary()["errors"].to_string();
    assert!(errors.contains("`immich`") && errors.contains("`second`") && errors.contains("--compose-project"), "{errors}");
    world.run(&["doctor"]).ended(2).says("--compose-project");
    let wrong = world.run(&["backup", "--init", "--json", "--compose-project", "third"]).ended(2);
    assert!(wrong.summary()["errors"].to_string().contains("there is no project `third`"), "{}", wrong.told());
    let chosen = world.run(&["backup", "--init", "--json", "--compose-project", "second"]).ended(0);
    assert_eq!(found(&chosen, "library")[0].0, two.media().display().to_string());
    // Or by its folder.
    let by_folder = world.run(&["backup", "--json", "--immich-dir", two.folder().to_str().unwrap()]).ended(0);
    assert_eq!(found(&by_folder, "library"), found(&chosen, "library"));
}

#[test]
fn a_wrong_socket_and_no_permission_are_named_with_the_remedy() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let world = World::bare();
    let missing = world.run(&["backup", "--init", "--json", "--docker-host", "unix:///nowhere/docker.sock"]).ended(2);
    let errors = missing.summary()["errors"].to_string();
    assert!(errors.contains("/nowhere/docker.sock") && errors.contains("--docker-host") && errors.contains("--library"), "{errors}");
    assert!(!world.repository.exists() && !world.state.exists(), "nothing is made");
    // Somebody who may not use the socket. The program is not in a folder that everybody may enter.
    let binary = world.at("immich-backup");
    fs::copy(env!("CARGO_BIN_EXE_immich-backup"), &binary).unwrap();
    fs::set_permissions(world.at(""), fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(engine.socket(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(engine.folder(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = support::clean(Command::new("setpriv"));
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    command
        .args(["backup", "--init", "--json", "--docker-host", &engine.host()])
        .arg("--repository")
        .arg(&world.repository)
        .arg("--state-dir")
        .arg(&world.state);
    let denied = Running::start(command).wait().ended(1);
    let errors = denied.summary()["errors"].to_string();
    assert!(errors.contains("Permission denied") && errors.contains("group `docker`"), "{errors}");
    // Nobody's Immich is here.
    let nobody = world.run(&["backup", "--init", "--json", "--docker-host", &engine.host()]).ended(2);
    assert!(nobody.summary()["errors"].to_string().contains("the engine has no container"), "{}", nobody.told());
}

#[test]
fn without_an_engine_the_compose_files_say_where_library_and_database_are() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    let mut world = World::bare();
    world.environment.push(("IMMICH_DIR".to_owned(), stack.folder().display().to_string()));
    world.environment.push(("DOCKER_HOST".to_owned(), "unix:///nowhere/docker.sock".to_owned()));
    // The network's way to the database takes programs of this machine.
    let programs = Postgres::start().unwrap();
    world.environment.push(("IMMICH_BACKUP_POSTGRES_PROGRAMS".to_owned(), programs.programs().display().to_string()));
    let backup = world.run(&["backup", "--init", "--json"]).ended(0);
    assert_eq!(proof(&backup).headline(), "proven 93 of 93, 4 external");
    assert_eq!(found(&backup, "library")[0].0, stack.media().display().to_string());
    backup.says("no engine tells of the stack");
    let paths: Vec<_> = world.run(&["ls", "--json"]).ended(0).events("file").iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect();
    assert!(paths.iter().any(|path| path == "config/.env") && !paths.iter().any(|path| path == "config/containers.json"), "{paths:?}");
}
