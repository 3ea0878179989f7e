//! A Docker engine for tests starts, runs a database as Immich's runs, and leaves nothing behind, also when its test is killed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]
#![allow(clippy::print_stdout, reason = "how long an engine takes to start is worth knowing")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use immich_backup_testbed::docker::{ContainerOptions, Engine};
use immich_backup_testbed::fixture::{Fixture, IMMICH_3};

/// Processes, mounts and control groups that have to do with a folder.
fn traces(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let mut traces: Vec<String> = fs::read_to_string("/proc/mounts").unwrap().lines().filter(|line| line.contains(folder)).map(ToString::to_string).collect();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        // Our own is not one of them: it names the folder nowhere.
        if String::from_utf8_lossy(&command).contains(folder) {
            traces.push(String::from_utf8_lossy(&command).replace('\0', " "));
        }
    }
    let name = Path::new(folder).file_name().unwrap();
    let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|tree| tree.path().join(name));
    traces.extend(trees.chain([Path::new("/sys/fs/cgroup").join(name)]).filter(|group| group.exists()).map(|group| group.display().to_string()));
    traces
}

#[test]
fn a_database_in_a_container_holds_what_immich_wrote_and_nothing_is_left_behind() {
    let began = Instant::now();
    let Some(engine) = Engine::start().unwrap() else { return };
    println!("The engine was ready after {:?}", began.elapsed());
    engine.image().unwrap();
    println!("and had its image after {:?}", began.elapsed());
    let container = engine.postgres("immich_postgres").unwrap();
    println!("and the container answered after {:?}", began.elapsed());
    assert_eq!(container.psql("immich", "SELECT current_user"), "postgres");
    assert!(container.exec(&["pg_dump", "--version"]).starts_with("pg_dump (PostgreSQL) 18."));
    assert_eq!(container.exec(&["cat", "/proc/1/comm"]), "postgres");
    assert_eq!(engine.docker(&["ps", "--filter", "label=com.docker.compose.service=database", "--format", "{{.Names}}"]), "immich_postgres");
    if let Some(fixture) = Fixture::open(IMMICH_3) {
        container.load("immich", fixture.dump());
        assert_eq!(container.counts("immich").get("asset"), Some(&97));
        assert_eq!(container.rows("immich")["asset"].len(), 97);
        container.pause();
        assert_eq!(container.state(), "paused");
        container.unpause();
        container.stop();
        assert!(container.try_psql("immich", "SELECT 1").is_err());
        container.start_again().unwrap();
        assert_eq!(container.counts("immich").get("asset"), Some(&97));
    }
    assert!(container.log().contains("database system is ready"));
    drop(container);
    assert_eq!(engine.docker(&["ps", "--all", "--quiet"]), "");
    assert_eq!(engine.docker(&["volume", "ls", "--quiet"]), "");

    let options = ContainerOptions { user: "immich".into(), database: "photos".into(), ..ContainerOptions::default() };
    let other = engine.postgres_with("other", &options).unwrap();
    assert_eq!(other.psql(other.database(), "SELECT current_user"), "immich");
    drop(other);

    let folder = engine.folder().to_path_buf();
    assert!(!traces(&folder).is_empty());
    drop(engine);
    assert_eq!(traces(&folder), [""; 0]);
    assert!(!folder.exists());
}

const AS_VICTIM: &str = "IMMICH_BACKUP_TESTBED_VICTIM";

/// Not a test: what the next one starts and kills.
#[test]
fn victim() {
    if env::var_os(AS_VICTIM).is_none() {
        return;
    }
    let engine = Engine::start().unwrap();
    let Some(engine) = engine else {
        println!("\nengine in ");
        return;
    };
    let container = engine.postgres("immich_postgres").unwrap();
    println!("\nengine in {}", engine.folder().display());
    container.try_psql("immich", "SELECT pg_sleep(60)").unwrap();
}

#[test]
fn a_killed_test_leaves_a_folder_that_the_next_engine_removes() {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "victim", "--nocapture"]).env(AS_VICTIM, "1").stdout(Stdio::piped());
    let mut victim = command.spawn().unwrap();
    let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    let folder = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("engine in ").map(PathBuf::from)).unwrap();
    if folder.as_os_str().is_empty() {
        victim.wait().unwrap();
        return;
    }
    let living = Engine::start().unwrap().unwrap();
    assert!(folder.join("docker.sock").exists(), "an engine in use was taken for a leftover");
    drop(living);
    victim.kill().unwrap();
    victim.wait().unwrap();
    let began = Instant::now();
    while traces(&folder).iter().any(|trace| !trace.starts_with("/sys")) {
        assert!(began.elapsed() < Duration::from_secs(10), "left behind: {:?}", traces(&folder));
        thread::sleep(Duration::from_millis(20));
    }
    drop(Engine::start().unwrap());
    assert!(!folder.exists());
    assert_eq!(traces(&folder), [""; 0]);
}
