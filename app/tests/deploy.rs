//! What lies in deploy/ works: units and Compose files are parsed by what they are for, command lines by the program, and the container is run as it is
//! shipped, but for its base: no image can be pulled for a test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr, reason = "a test may")]

mod support;

use immich_backup_testbed::compose::{DATABASE, Stack, StackOptions};
use immich_backup_testbed::docker::Engine;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{clean, program};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

fn units() -> Vec<(String, String)> {
    let mut units: Vec<_> = fs::read_dir(deploy("systemd")).unwrap().map(|entry| entry.unwrap().path()).collect();
    units.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    let found: Vec<_> = units.iter().filter(|path| !name(path).ends_with(".env")).map(|path| (name(path), fs::read_to_string(path).unwrap())).collect();
    assert!(found.len() >= 4, "{found:?}");
    found
}

/// The values of one setting of a unit.
fn values<'a>(unit: &'a str, name: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect()
}

/// The program's answer to a command line of a unit, when it is only asked what it would work with.
fn understood(arguments: &[&str], environment: &BTreeMap<String, String>) -> String {
    let output = clean(program()).args(arguments).arg("--show-config").envs(environment).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The lines of an environment file, those behind a `#` as well, as somebody would set them.
fn environment() -> BTreeMap<String, String> {
    let text = fs::read_to_string(deploy("systemd/immich-backup.env")).unwrap();
    let pairs = text.lines().filter_map(|line| line.trim_start_matches('#').split_once('=')).filter(|(name, _)| !name.contains(' '));
    let found: BTreeMap<_, _> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert!(found.len() >= 8, "{found:?}");
    found
}

#[test]
fn every_command_of_a_unit_is_one_of_the_program() {
    let mut seen = Vec::new();
    for (name, unit) in units() {
        for command in values(&unit, "ExecStart").into_iter().chain(values(&unit, "ExecStopPost")) {
            let arguments = command.strip_prefix("/usr/local/bin/immich-backup ").unwrap_or_else(|| panic!("{name}: {command}"));
            understood(&arguments.split(' ').collect::<Vec<_>>(), &environment());
            seen.push(arguments.to_owned());
        }
    }
    seen.sort();
    assert_eq!(seen, ["backup", "daemon", "services recover", "services recover", "services recover"]);
}

#[test]
fn every_name_of_the_environment_file_means_something_to_the_program() {
    let environment = environment();
    let told = understood(&["daemon"], &environment);
    for (name, value) in environment.iter().filter(|(name, _)| name.starts_with("IMMICH_BACKUP_")) {
        assert!(told.lines().any(|line| line.contains(&format!("environment: {name}"))), "{name}={value} is none of\n{told}");
    }
}

#[test]
fn systemd_understands_the_units_and_finds_them_closed() {
    let analyze = |arguments: &[&str]| Command::new("systemd-analyze").args(arguments).output();
    if analyze(&["--version"]).is_err() {
        eprintln!("NOT TESTED: systemd-analyze is not installed here");
        return;
    }
    // Verified is also whether the program is there: its place in the units is changed to where it is.
    let folder = tempfile::tempdir().unwrap();
    for (name, unit) in units() {
        let unit = unit.replace("/usr/local/bin/immich-backup", env!("CARGO_BIN_EXE_immich-backup"));
        // Its manual is on the web, and Docker may not be installed.
        let unit: String = unit.lines().filter(|line| !line.starts_with("Requires=docker")).map(|line| format!("{line}\n")).collect();
        fs::write(folder.path().join(name), unit).unwrap();
    }
    for (name, unit) in units() {
        let path = folder.path().join(&name);
        let verified = analyze(&["verify", "--man=no", path.to_str().unwrap()]).unwrap();
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        let ours: Vec<_> = said.lines().filter(|line| line.contains("immich-backup")).collect();
        assert!(verified.status.success() && ours.is_empty(), "{name}: {said}");
        if name.ends_with(".service") {
            // Out of a hundred: 30 is what systemd itself calls OK at most, with a reserve.
            let secure = analyze(&["security", "--offline=true", "--threshold=30", path.to_str().unwrap()]).unwrap();
            assert!(secure.status.success(), "{name}: {}", String::from_utf8_lossy(&secure.stdout));
            assert_eq!(values(&unit, "NoNewPrivileges"), ["yes"], "{name}");
        }
    }
}

/// What the test's engine has instead of a network of its own, and how the test reads what is said.
const OF_THE_TEST: &str = "services:
  immich-backup:
    network_mode: host
    environment:
      IMMICH_BACKUP_JSON: \"true\"
    healthcheck:
      interval: 1s
      start_period: 1s
";

/// A stack, and the program's container in it as deploy/ has it.
struct Deployed<'a> {
    stack: Stack<'a>,
    engine: &'a Engine,
}

impl<'a> Deployed<'a> {
    fn new(engine: &'a Engine, environment: &[(&str, &str)]) -> Option<Self> {
        let running = vec![DATABASE.to_owned()];
        let stack = Stack::up(engine, StackOptions { running, ..StackOptions::default() }).unwrap()?;
        let deployed = Self { stack, engine };
        engine.program_image(Path::new(env!("CARGO_BIN_EXE_immich-backup")), &[]).unwrap();
        let folder = deployed.stack.folder();
        for name in ["immich-backup.yml", "immich-backup.socket.yml"] {
            fs::copy(deploy("compose").join(name), folder.join(name)).unwrap();
        }
        fs::write(folder.join("test.yml"), format!("version: \"3.8\"\n{OF_THE_TEST}")).unwrap();
        // Compose 1.29 wants to be told which language it is; Compose 2 warns of that line.
        for name in ["immich-backup.yml", "immich-backup.socket.yml"] {
            let text = fs::read_to_string(folder.join(name)).unwrap();
            fs::write(folder.join(name), format!("version: \"3.8\"\n{text}")).unwrap();
        }
        fs::create_dir(folder.join("backup")).unwrap();
        chown(folder.join("backup"), Some(1000), Some(1000)).unwrap();
        let lines: String = environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        let env = fs::read_to_string(folder.join(".env")).unwrap();
        fs::write(folder.join(".env"), format!("{env}{lines}")).unwrap();
        Some(deployed)
    }

    fn compose(&self, files: &[&str], arguments: &[&str]) -> String {
        let mut all = vec!["-f", "docker-compose.yml", "-f", "immich-backup.yml"];
        all.extend(files.iter().flat_map(|file| ["-f", file]));
        all.extend(["-f", "test.yml"]);
        all.extend(arguments);
        self.stack.compose(&all)
    }

    fn inspect(&self, format: &str) -> String {
        self.engine.docker(&["inspect", "--format", format, "immich_backup"])
    }

    fn log(&self) -> String {
        self.stack.log("immich-backup")
    }

    #[track_caller]
    fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < Duration::from_secs(60), "waited for {what}:\n{}\n{}", self.log(), self.inspect("{{json .State}}"));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn a_container_beside_immich_without_rights_or_a_socket_makes_a_proven_snapshot_and_is_healthy() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(deployed) = Deployed::new(&engine, &[("IMMICH_BACKUP_RUN_NOW", "true"), ("TZ", "Europe/Berlin")]) else { return };
    deployed.compose(&[], &["up", "-d", "--no-deps", "immich-backup"]);
    deployed.until("the end of a backup", |deployed| deployed.log().contains("job_ended"));
    let log = deployed.log();
    let end = log.lines().find(|line| line.contains("job_ended")).unwrap();
    let end: serde_json::Value = serde_json::from_str(end).unwrap();
    // Its external library is not mounted: said, and exit code 3.
    let proof = &end["summary"]["proof"];
    assert_eq!((&end["exit_code"], &proof["proven"], &proof["outside"], &proof["missing"]), (&3.into(), &93.into(), &4.into(), &0.into()), "{end}");
    deployed.until("health", |deployed| deployed.inspect("{{.State.Health.Status}}") == "healthy");
    // As it is meant to be.
    assert_eq!(
        deployed.inspect("{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.Config.User}}"),
        "true [ALL] [no-new-privileges:true] 1000:1000"
    );
    let status = engine.docker(&["exec", "immich_backup", "cat", "/proc/1/status"]);
    assert!(status.contains("CapEff:\t0000000000000000") && status.contains("CapBnd:\t0000000000000000") && status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(engine.try_docker(&["exec", "immich_backup", "touch", "/library/x"]).is_err());
    assert!(engine.try_docker(&["exec", "immich_backup", "touch", "/x"]).is_err());
    assert_eq!(fs::metadata(deployed.stack.folder().join("backup/format.json")).unwrap().uid(), 1000);
    // And it ends when it is told to: nothing runs, so with 0.
    let began = Instant::now();
    deployed.compose(&[], &["stop", "immich-backup"]);
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!(deployed.inspect("{{.State.ExitCode}}"), "0", "{}", deployed.log());
}

#[test]
fn docker_stop_lets_a_run_write_its_checkpoint_and_the_next_start_goes_on_from_there() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let Some(deployed) = Deployed::new(&engine, &[("IMMICH_BACKUP_RUN_NOW", "true")]) else { return };
    let many = deployed.stack.media().join("library/many");
    fs::create_dir(&many).unwrap();
    for number in 0..12_000 {
        fs::write(many.join(number.to_string()), format!("{number}")).unwrap();
    }
    deployed.compose(&[], &["up", "-d", "--no-deps", "immich-backup"]);
    deployed.until("the first files", |deployed| deployed.log().contains("file_stored"));
    // Compose 1.29 takes a second to come to the point.
    engine.docker(&["stop", "--time=120", "immich_backup"]);
    let ends = |deployed: &Deployed<'_>| -> Vec<serde_json::Value> {
        let log = deployed.log();
        log.lines().filter(|line| line.contains("\"job_ended\"")).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(deployed.inspect("{{.State.ExitCode}}"), "130", "{}", deployed.log());
    let first = ends(&deployed).remove(0);
    assert_eq!((&first["outcome"], &first["summary"]["snapshot"]), (&"interrupted".into(), &serde_json::Value::Null), "{first}");
    let stored = first["summary"]["files"]["sent"].as_u64().unwrap();
    assert!(stored > 0);
    deployed.compose(&[], &["start", "immich-backup"]);
    deployed.until("the end of the second run", |deployed| ends(deployed).len() == 2);
    let second = ends(&deployed).remove(1);
    assert_eq!((&second["exit_code"], &second["summary"]["proof"]["proven"]), (&3.into(), &93.into()), "{second}");
    assert!(second["summary"]["files"]["unchanged"].as_u64().unwrap() > 0 && second["summary"]["adopted"]["files"] == 0, "{second}");
}

#[test]
fn with_the_socket_the_database_is_dumped_in_its_container_by_somebody_who_is_not_root() {
    let Some(engine) = Engine::start().unwrap() else { return };
    let socket = engine.socket().display().to_string();
    let more = [("IMMICH_BACKUP_RUN_NOW", "true"), ("DOCKER_SOCKET", socket.as_str()), ("DOCKER_GID", "4321")];
    let Some(deployed) = Deployed::new(&engine, &more) else { return };
    chown(engine.socket(), None, Some(4_321)).unwrap();
    deployed.compose(&["immich-backup.socket.yml"], &["up", "-d", "--no-deps", "immich-backup"]);
    deployed.until("the end of a backup", |deployed| deployed.log().contains("job_ended"));
    let log = deployed.log();
    let end: serde_json::Value = serde_json::from_str(log.lines().find(|line| line.contains("job_ended")).unwrap()).unwrap();
    assert_eq!((&end["exit_code"], &end["summary"]["proof"]["proven"]), (&3.into(), &93.into()), "{end}");
}
