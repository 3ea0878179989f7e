//! A snapshot comes back into a Compose project, until its server answers: on a new host, in the place of what is there, and after every death on the way.
//!
//! The server is the testbed's stand-in: no real Immich is booted.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, reason = "a test may")]

mod support;

use immich_backup_testbed::compose::{self, DATABASE, MACHINE_LEARNING, REDIS, SERVER, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::{Ran, Running, Tree, World};

/// What the stand-in of the server writes when it starts: an upload that does not end.
const UNFINISHED: &str = "upload/00000000-0000-4000-8000-00000000000f";

/// Whether an event is the one that is waited for.
type IsIt = fn(&Value) -> bool;

fn only(services: &[&str]) -> Vec<String> {
    services.iter().map(ToString::to_string).collect()
}

/// Files of a media location, without those that the server rewrites, and without Immich's own dumps.
fn tree(media: &Path) -> Tree {
    let mut tree = Tree::of(media).without("backups").without(UNFINISHED);
    tree.0.retain(|path, _| !path.ends_with(b"/.immich"));
    tree
}

/// A source with a snapshot, and an empty world beside it.
struct Source<'a> {
    stack: Stack<'a>,
    world: World,
    files: Tree,
    external: Tree,
    rows: BTreeMap<String, Vec<String>>,
}

impl<'a> Source<'a> {
    fn backed_up(engine: &'a Engine, options: StackOptions) -> Option<Self> {
        Self::backed_up_from(engine, options, |stack, _| stack.media())
    }

    /// From a copy of its library: nobody can tell then that the stack's configuration goes with it.
    fn backed_up_without_configuration(engine: &'a Engine, options: StackOptions) -> Option<Self> {
        Self::backed_up_from(engine, options, |stack, world| {
            support::tool("cp", &["-a".as_ref(), stack.media().as_os_str(), world.at("copy").as_os_str()]);
            world.at("copy")
        })
    }

    fn backed_up_from(engine: &'a Engine, options: StackOptions, library: impl FnOnce(&Stack<'_>, &World) -> PathBuf) -> Option<Self> {
        let stack = Stack::up(engine, options).unwrap()?;
        let world = World::bare();
        let library = library(&stack, &world);
        let external = format!("nas={}:/mnt/external", stack.external().display());
        let mut command = world.command(&["backup", "--init", "--json", "--external", &external, "--docker-host", &engine.host()]);
        command.args(["--database-container", "immich_postgres", "--library"]).arg(library);
        let ran = Running::start(command).wait().ended(0);
        assert_eq!(ran.summary()["proof"]["missing"], 0);
        let (files, external, rows) = (tree(&stack.media()), Tree::of(&stack.external()), stack.rows(Stack::DATABASE_NAME));
        Some(Self { stack, world, files, external, rows })
    }

    fn command(&self, engine: &Engine, project: &str, more: &[&str]) -> std::process::Command {
        let mut command = self.world.command(&["restore", "--json", "--compose-project", project, "--docker-host", &engine.host()]);
        command.args(more);
        command
    }

    fn restore(&self, engine: &Engine, project: &str, more: &[&str]) -> Ran {
        Running::start(self.command(engine, project, more)).wait()
    }

    /// Files and rows are those of the snapshot.
    fn assert_is_in(&self, stack: &Stack<'_>) {
        tree(&stack.media()).assert_is(&self.files, "the media location");
        Tree::of(&stack.external()).assert_is(&self.external, "the external library");
        self.assert_rows_are_in(stack);
    }

    fn assert_rows_are_in(&self, stack: &Stack<'_>) {
        let rows = stack.rows(Stack::DATABASE_NAME);
        assert_eq!(rows.keys().collect::<Vec<_>>(), self.rows.keys().collect::<Vec<_>>());
        for (table, rows) in &rows {
            assert!(*rows == self.rows[table], "the rows of {table} came back otherwise");
        }
    }
}

/// A project that was only made, beside the source.
fn empty(project: &str) -> StackOptions {
    StackOptions { project: project.to_string(), filled: false, running: Vec::new(), container_names: false, ..StackOptions::default() }
}

fn source_options() -> StackOptions {
    StackOptions { running: only(&[DATABASE]), ..StackOptions::default() }
}

fn message(ran: &Ran) -> (String, String) {
    let error = &ran.summary()["errors"][0];
    (error["message"].as_str().unwrap_or_default().to_string(), error["hint"].as_str().unwrap_or_default().to_string())
}

fn statuses(stack: &Stack<'_>) -> Vec<String> {
    stack.states().into_values().map(|state| state.status).collect()
}

#[test]
fn a_snapshot_comes_back_into_an_empty_project_until_its_server_answers_and_never_under_a_running_one() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up(&engine, source_options()) else { return };
    // An Immich that is older than the dump could do nothing with it.
    let old = Stack::up(&engine, StackOptions { version: Some("v3.0.2".to_string()), ..empty("old") }).unwrap().unwrap();
    let refused = source.restore(&engine, "old", &[]).ended(1);
    let (what, remedy) = message(&refused);
    assert!(what.contains("is 3.0.2") && what.contains("of 3.1.0") && remedy.contains("IMMICH_VERSION=v3.1.0"), "{what}: {remedy}");
    assert_eq!(statuses(&old), ["created"; 4]);
    drop(old);

    let family = Stack::up(&engine, StackOptions { mounted: vec!["thumbs".to_string()], ..empty("family") }).unwrap().unwrap();
    let planned = source.restore(&engine, "family", &["--dry-run"]).ended(0).summary();
    assert_eq!(planned["plan"]["write"]["files"], (source.files.len() + source.external.len() + 5) as u64, "{planned}");
    assert_eq!(planned["folders"]["media"], family.media().to_str().unwrap());
    assert_eq!((statuses(&family), Tree::of(&family.media()).len()), (vec!["created".to_string(); 4], 0));

    let restored = source.restore(&engine, "family", &[]).ended(0).summary();
    assert_eq!(restored["server"]["url"], family.url().as_str());
    assert_eq!(restored["server"]["version"], "3.1.0");
    assert_eq!(restored["started"].as_array().map(Vec::len), Some(3), "{restored}");
    family.wait_until_well(&[DATABASE, MACHINE_LEARNING, SERVER, REDIS]).unwrap();
    // What is mounted in the media location from elsewhere went there.
    assert_eq!(fs::read_dir(family.media().join("thumbs")).unwrap().count(), 0);
    fs::remove_dir(family.media().join("thumbs")).unwrap();
    support::copy(&family.elsewhere("thumbs"), &family.media().join("thumbs"));
    source.assert_is_in(&family);
    assert!(fs::read_dir(source.world.state.join("services")).unwrap().flatten().all(|entry| !entry.file_name().to_string_lossy().ends_with(".json")));

    let before: Vec<_> = family.states().into_values().collect();
    let (what, remedy) = message(&source.restore(&engine, "family", &[]).ended(1));
    assert!(what.contains("Immich's server runs in `family`") && remedy.contains("--replace"), "{what}: {remedy}");
    assert_eq!(family.states().into_values().collect::<Vec<_>>(), before);
}

#[test]
fn in_the_place_of_what_is_there_a_snapshot_comes_back_and_what_did_not_run_before_does_not_after() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up(&engine, source_options()) else { return };
    let stack = &source.stack;
    stack.compose(&["up", "--detach", "--no-deps", SERVER, REDIS]);
    stack.wait_until_well(&[DATABASE, SERVER, REDIS]).unwrap();
    // Somebody empties the library.
    stack.psql(Stack::DATABASE_NAME, "TRUNCATE asset CASCADE");
    let victim = source.files.0.keys().find(|path| path.starts_with(b"library/")).map(|path| String::from_utf8(path.clone()).unwrap()).unwrap();
    fs::write(stack.media().join(&victim), "not the photo").unwrap();

    let (what, _) = message(&source.restore(&engine, "immich", &["--replace"]).ended(1));
    assert!(what.contains("differ from the snapshot"), "{what}");
    assert_eq!(stack.running(), [DATABASE, SERVER, REDIS], "nothing was stopped for what cannot be");
    let restored = source.restore(&engine, "immich", &["--replace", "--overwrite"]).ended(0).summary();
    assert!(restored["database"]["saved"]["key"].as_str().unwrap().starts_with("database/"), "{restored}");
    source.assert_is_in(stack);
    assert_eq!(stack.running(), [DATABASE, SERVER, REDIS]);
    assert_eq!(stack.state(MACHINE_LEARNING).status, "created");
}

#[test]
fn a_restore_that_is_killed_again_and_again_goes_on_from_there() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up(&engine, source_options()) else { return };
    let family = Stack::up(&engine, empty("family")).unwrap().unwrap();
    let moments: [(&str, IsIt); 4] = [
        ("the load has begun", |event| event["type"] == "phase_started" && event["phase"] == "load"),
        ("the rows are counted: the load is committed", |event| event["type"] == "phase_started" && event["phase"] == "count_rows"),
        ("a file is back", |event| event["type"] == "file_restored"),
        ("the files are back", |event| event["type"] == "phase_finished" && event["phase"] == "write"),
    ];
    for (moment, is_it) in moments {
        let mut running = Running::start(source.command(&engine, "family", &[]));
        let came = running.until(|running| running.said().lines().filter_map(|line| serde_json::from_str(line).ok()).any(|event| is_it(&event)));
        assert!(came, "{moment}: {}", running.said());
        running.signal("KILL");
        running.wait();
        assert!(!family.running().contains(&SERVER.to_string()), "{moment}: Immich runs on half of a restore");
    }
    let restored = source.restore(&engine, "family", &[]).ended(0).summary();
    assert_eq!(restored["done_before"]["database"], true, "{restored}");
    assert_eq!(restored["server"]["version"], "3.1.0");
    source.assert_is_in(&family);
    family.wait_until_well(&[DATABASE, MACHINE_LEARNING, SERVER, REDIS]).unwrap();
}

#[test]
fn a_database_that_does_not_get_well_is_said_and_nothing_is_written() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up(&engine, source_options()) else { return };
    let ill = Stack::up(&engine, StackOptions { database_health: Some("exit 1".to_string()), ..empty("ill") }).unwrap().unwrap();
    // Its healthcheck has to have said so: one that says nothing yet is not waited for.
    ill.compose(&["up", "--detach", "--no-deps", DATABASE]);
    let began = std::time::Instant::now();
    while engine.docker(&["inspect", "--format", "{{.State.Health.Status}}", "ill_database_1"]).trim() != "unhealthy" {
        assert!(began.elapsed() < std::time::Duration::from_secs(60), "{}", ill.log(DATABASE));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let ran = source.restore(&engine, "ill", &["--wait", "8s"]).ended(1);
    let (what, remedy) = message(&ran);
    assert!(what.contains("`ill_database_1` is not ready after") && what.contains("healthcheck"), "{what}");
    assert!(remedy.contains("docker logs ill_database_1"), "{remedy}");
    assert_eq!(ill.running(), [DATABASE]);
    assert_eq!(Tree::of(&ill.media()).len(), 0);
    // Without a healthcheck, the database itself is asked.
    drop(ill);
    let plain = Stack::up(&engine, StackOptions { database_health: Some("NONE".to_string()), ..empty("plain") }).unwrap().unwrap();
    source.restore(&engine, "plain", &[]).ended(0);
    source.assert_is_in(&plain);
}

#[test]
fn without_a_project_it_is_said_what_to_do_and_when_that_is_done_it_goes_on() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up_without_configuration(&engine, source_options()) else { return };
    let told = source.restore(&engine, "family", &[]).ended(3).summary();
    let steps: Vec<_> = told["steps"].as_array().unwrap().iter().map(|step| step.as_str().unwrap().to_string()).collect();
    assert!(steps.iter().any(|step| step.contains("IMMICH_VERSION=v3.1.0")), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains("docker-compose --project-name family up --no-start")), "{steps:?}");

    let mut waiting = Running::start(source.command(&engine, "family", &["--wait", "100s"]));
    assert!(waiting.until(|running| running.said().contains("there is no Compose project `family`")));
    let family = Stack::up(&engine, empty("family")).unwrap().unwrap();
    let restored = waiting.wait().ended(0).summary();
    assert_eq!(restored["server"]["url"], family.url().as_str());
    source.assert_is_in(&family);
    assert_eq!(compose::states(&engine, "family").len(), 4);
}

#[test]
fn a_server_that_does_not_answer_is_said_and_the_same_command_looks_again() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(source) = Source::backed_up(&engine, source_options()) else { return };
    let family = Stack::up(&engine, empty("family")).unwrap().unwrap();
    let (what, remedy) = message(&source.restore(&engine, "family", &["--wait", "15s", "--immich-url", "http://127.0.0.1:1"]).ended(1));
    assert!(what.contains("the snapshot is back, and Immich's server does not answer") && remedy.contains("--immich-url"), "{what}: {remedy}");
    let again = source.restore(&engine, "family", &[]).ended(0).summary();
    assert_eq!((&again["done_before"]["files"], &again["server"]["version"]), (&Value::from(true), &Value::from("3.1.0")), "{again}");
    source.assert_is_in(&family);
}

#[test]
fn what_burnt_with_its_host_is_laid_from_the_snapshot_made_as_the_steps_say_and_filled() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, source_options()).unwrap() else { return };
    let world = World::bare();
    let host = engine.host();
    // Found, all of it: the configuration too.
    world.run(&["backup", "--init", "--json", "--docker-host", &host]).ended(0);
    let (files, folder, external) = (tree(&stack.media()), stack.folder(), stack.external());
    drop(stack);
    assert!(!folder.exists() && !external.exists());

    let command = ["restore", "--json", "--compose-project", "immich", "--docker-host", &host];
    let planned = world.run(&[&command[..], &["--dry-run"]].concat()).ended(0).summary();
    assert_eq!((planned["compose_dir"].as_str(), folder.exists()), (folder.to_str(), false), "{planned}");
    let told = world.run(&command).ended(3).summary();
    let steps: Vec<_> = told["steps"].as_array().unwrap().iter().map(|step| step.as_str().unwrap().to_string()).collect();
    assert_eq!(told["compose_dir"].as_str(), folder.to_str());
    assert!(steps[0].contains("DB_PASSWORD (line ") && steps[0].contains(".env"), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains(&format!("mkdir -p {}", external.display()))), "{steps:?}");
    assert!(steps.iter().any(|step| step.contains(&format!("cd {} && docker compose", folder.display()))), "{steps:?}");

    // What a person does then. What was written is not overwritten.
    let env = fs::read_to_string(folder.join(".env")).unwrap();
    assert!(!env.contains(Stack::PASSWORD));
    let filled: Vec<_> = env.lines().map(|line| if line.starts_with("DB_PASSWORD=") { "DB_PASSWORD=AnotherOne" } else { line }).collect();
    fs::write(folder.join(".env"), filled.join("\n")).unwrap();
    fs::create_dir_all(&external).unwrap();
    world.run(&command).ended(3);
    assert!(fs::read_to_string(folder.join(".env")).unwrap().contains("AnotherOne"));
    compose::compose(&engine, &folder, &["--project-name", "immich", "up", "--no-start"]).unwrap();
    let restored = world.run(&command).ended(0).summary();
    assert_eq!(restored["server"]["version"], "3.1.0");
    tree(&folder.join("library")).assert_is(&files, "the media location");
    assert!(Tree::of(&external).len() > 0);
    let rows = engine.docker(&["exec", "immich_postgres", "psql", "-U", "postgres", "-d", "immich", "-Atc", "SELECT count(*) FROM asset"]);
    assert_eq!(rows, "97");
}
