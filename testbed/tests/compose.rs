//! A stack for tests is as Immich's own: found by Compose's labels, up in order, and its stand-in does what Immich's server does at its start.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stdout, reason = "how long a stack takes to start is worth knowing")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use immich_backup_testbed::compose::{DATABASE, MACHINE_LEARNING, REDIS, SERVER, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use immich_backup_testbed::fixture::IMMICH_1;

fn get(url: &str, path: &str) -> String {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_stack_is_up_with_what_immich_wrote_and_answers() {
    let began = Instant::now();
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(stack) = Stack::up(&engine, StackOptions::default()).unwrap() else { return };
    println!("The stack was up after {:?}", began.elapsed());
    assert_eq!(stack.running(), [DATABASE, MACHINE_LEARNING, SERVER, REDIS]);
    assert!(stack.states().values().all(|state| state.is_well()), "{:?}", stack.states());
    let healthy = Some("healthy".to_string());
    assert_eq!((stack.state(MACHINE_LEARNING).health, stack.state(SERVER).health, stack.state(DATABASE).health), (None, healthy.clone(), healthy));
    assert_eq!(stack.counts("immich").get("asset"), Some(&97));
    assert!(get(&stack.url(), "/api/server/ping").ends_with(r#"{"res":"pong"}"#));
    assert!(get(&stack.url(), "/api/server/version").ends_with(r#"{"major":3,"minor":1,"patch":0}"#));
    assert!(get(&stack.url(), "/api/server/other").starts_with("HTTP/1.1 404 "));
    assert!(stack.psql_as("postgres", Stack::PASSWORD, "immich", "SELECT 1").is_ok());
    assert!(stack.media().join("upload/00000000-0000-4000-8000-00000000000f/00/00/00000000-0000-4000-8000-000000000001.mp4").exists());
    assert_eq!(stack.env()["DB_PASSWORD"], Stack::PASSWORD);
    let mounts = engine.docker(&["inspect", "--format", "{{range .Mounts}}{{.Source}}:{{.Destination}}:{{.RW}} {{end}}", "immich_server"]);
    assert!(mounts.contains(&format!("{}:/data:true", stack.media().display())), "{mounts}");
    assert!(mounts.contains(&format!("{}:/mnt/external:false", stack.external().display())), "{mounts}");
    let version = engine.docker(&["inspect", "--format", "{{index .Config.Labels \"org.opencontainers.image.version\"}}", "immich_server"]);
    assert_eq!(version, "v3.1.0");

    // A marker that is gone: as Immich, it does not start.
    stack.compose(&["stop", SERVER]);
    assert_eq!((stack.state(SERVER).status.as_str(), stack.state(SERVER).exit_code), ("exited", 0));
    fs::remove_file(stack.media().join("thumbs/.immich")).unwrap();
    engine.docker(&["start", "immich_server"]);
    let began = Instant::now();
    while !stack.log(SERVER).contains("Failed to read: \"<UPLOAD_LOCATION>/thumbs/.immich\"") {
        assert!(began.elapsed().as_secs() < 30, "{}", stack.log(SERVER));
    }
    let folder = stack.folder();
    drop(stack);
    assert!(!folder.exists());
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]), "");
}

#[test]
fn two_stacks_are_on_one_engine_and_what_is_not_to_run_does_not() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let options = StackOptions { fixture: IMMICH_1.to_string(), running: [SERVER, REDIS, DATABASE].map(String::from).to_vec(), ..StackOptions::default() };
    let Some(stack) = Stack::up(&engine, options).unwrap() else { return };
    assert_eq!(stack.running(), [DATABASE, SERVER, REDIS]);
    assert_eq!(stack.state(MACHINE_LEARNING).status, "created");
    assert!(get(&stack.url(), "/api/server/version").ends_with(r#"{"major":1,"minor":135,"patch":3}"#));
    let empty = StackOptions {
        project: "family".to_string(),
        filled: false,
        running: Vec::new(),
        container_names: false,
        mounted: vec!["thumbs".to_string()],
        extra_services: "  watcher:\n    image: immich-app/sleeper\n    network_mode: none\n".to_string(),
        ..StackOptions::default()
    };
    let empty = Stack::up(&engine, empty).unwrap().unwrap();
    assert_eq!(empty.running(), [""; 0]);
    assert_eq!(empty.states().len(), 5);
    assert_eq!(stack.states().len(), 4);
    empty.compose(&["up", "--detach"]);
    empty.wait_until_well(&[DATABASE, MACHINE_LEARNING, SERVER, REDIS, "watcher"]).unwrap();
    // As Immich on an empty database: it has made tables and markers, where they are mounted.
    assert_eq!(empty.counts("immich").len(), 2);
    assert!(empty.elsewhere("thumbs").join(".immich").exists());
}

#[test]
fn an_engine_is_killed_and_started_again_on_the_same_data() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let options = StackOptions { running: [SERVER, REDIS, DATABASE].map(String::from).to_vec(), filled: false, ..StackOptions::default() };
    let Some(stack) = Stack::up(&engine, options).unwrap() else { return };
    let all = [SERVER, REDIS, DATABASE];
    stack.compose(&["stop", REDIS]);
    for bring_down in [Engine::kill, Engine::lose_power, Engine::kill] {
        bring_down(&engine);
        assert!(engine.try_docker(&["version"]).is_err());
        let began = Instant::now();
        engine.start_again().unwrap();
        println!("again after {:?}", began.elapsed());
        // `restart: always` starts them, also what somebody had stopped.
        stack.wait_until_well(&all).unwrap();
        println!("well after {:?}", began.elapsed());
        assert_eq!(stack.state(MACHINE_LEARNING).status, "created");
    }
    engine.lose_power();
    let folder = engine.folder().to_path_buf();
    drop(stack);
    drop(engine);
    assert!(!folder.exists());
}
