//! What Prometheus is told: of every run, whatever its outcome, and by the daemon. `promtool` is what says whether it may be read so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

#[path = "support/immich.rs"]
mod immich;
#[path = "support/stores.rs"]
mod stores;
mod support;

use immich::installed;
use immich_backup_testbed::proxy::{Action, Rule};
use immich_backup_testbed::servers::promtool;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use stores::Stand;
use support::{Running, World};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Values by name and labels, as they stand in the text.
type Metrics = BTreeMap<String, f64>;

/// `text`, once `promtool` has found nothing to complain about in it.
#[track_caller]
fn checked(text: &str) -> Metrics {
    let mut child =
        Command::new(promtool().unwrap()).args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}\n{text}", String::from_utf8_lossy(&said));
    let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap()).collect();
    let metrics: Metrics = samples.iter().map(|(name, value)| ((*name).to_owned(), value.parse().unwrap())).collect();
    assert_eq!(metrics.len(), samples.len(), "a sample stands there twice\n{text}");
    metrics
}

#[track_caller]
fn read(path: &Path) -> Metrics {
    checked(&fs::read_to_string(path).unwrap())
}

/// The value of the one sample of `name` that has all these labels.
#[track_caller]
fn value(metrics: &Metrics, name: &str, labels: &[&str]) -> Option<f64> {
    let name = format!("immich_backup_{name}{{");
    let fits = |sample: &&String| sample.starts_with(&name) && labels.iter().all(|label| sample.contains(label));
    let found: Vec<_> = metrics.keys().filter(fits).collect();
    assert!(found.len() <= 1, "{found:?}");
    found.first().map(|sample| metrics[*sample])
}

fn with_metrics(mut world: World) -> (World, PathBuf) {
    let path = world.at("immich_backup.prom");
    world.environment.push(("IMMICH_BACKUP_METRICS_FILE".to_owned(), path.to_str().unwrap().to_owned()));
    (world, path)
}

const BACKUP: &str = "command=\"backup\"";

#[test]
fn each_command_writes_its_end_and_a_failed_backup_lets_the_older_times_stand() {
    let (world, path) = with_metrics(World::new());
    world.pictures(20);
    let before = jiff::Timestamp::now().as_second();
    world.backup(&[]).ended(0);
    let metrics = read(&path);
    let outcome = |metrics: &Metrics, command: &str, outcome: &str| {
        value(metrics, "last_run_outcome", &[&format!("command=\"{command}\""), &format!("outcome=\"{outcome}\"")])
    };
    let snapshot = value(&metrics, "last_snapshot_timestamp_seconds", &[]).unwrap();
    #[allow(clippy::cast_possible_truncation, reason = "a time")]
    let age = snapshot as i64 - before;
    assert!((0..60).contains(&age), "{metrics:?}");
    assert_eq!(value(&metrics, "last_success_timestamp_seconds", &[]), Some(snapshot));
    assert_eq!(value(&metrics, "last_proven_timestamp_seconds", &[]), None, "there is nothing to prove without a database");
    assert_eq!((outcome(&metrics, "backup", "done"), outcome(&metrics, "backup", "failed")), (Some(1.0), Some(0.0)));
    assert_eq!(value(&metrics, "last_run_files", &[BACKUP, "what=\"sent\""]), Some(25.0), "20 pictures and 5 markers: that of backups/ stays where it is");
    assert_eq!(value(&metrics, "snapshot_files", &["class=\"original\""]), Some(20.0));
    assert!(
        value(&metrics, "last_run_phase_seconds", &[BACKUP, "phase=\"store\""]).is_some()
            && value(&metrics, "last_run_duration_seconds", &[BACKUP]).unwrap() > 0.0
    );
    assert_eq!(value(&metrics, "damaged_objects", &[]), Some(0.0));

    world.run(&["verify", "--read-data"]).ended(0);
    world.run(&["prune"]).ended(0);
    world.run(&["prune", "--dry-run", "--keep-last", "0"]).ended(2);
    // The library is gone: the run fails before it can write to the log.
    fs::rename(&world.library, world.at("gone")).unwrap();
    world.backup(&[]).ended(1);
    world.run(&["status"]).ended(0);
    let metrics = read(&path);
    assert_eq!(outcome(&metrics, "backup", "failed"), Some(1.0), "the log does not know, and `status` leaves it as it is");
    assert_eq!(
        (outcome(&metrics, "verify", "done"), outcome(&metrics, "prune", "done"), outcome(&metrics, "status", "done")),
        (Some(1.0), Some(1.0), Some(1.0))
    );
    assert_eq!(value(&metrics, "last_snapshot_timestamp_seconds", &[]), Some(snapshot));
    assert!(value(&metrics, "last_read_timestamp_seconds", &[]).unwrap() >= snapshot);

    // What fails before the command begins, fails.
    world.backup(&["--notify-on", "sometimes"]).ended(2);
    assert_eq!(outcome(&read(&path), "backup", "usage"), Some(1.0));

    // Not even the repository is there.
    fs::rename(&world.repository, world.at("away")).unwrap();
    world.run(&["verify"]).ended(10);
    let metrics = read(&path);
    assert_eq!((outcome(&metrics, "verify", "no_repository"), value(&metrics, "last_snapshot_timestamp_seconds", &[])), (Some(1.0), Some(snapshot)));
}

#[test]
fn another_machine_tells_the_same_from_the_log_and_a_file_that_cannot_be_written_stops_nothing() {
    let (mut world, path) = with_metrics(World::new());
    world.pictures(5);
    world.backup(&[]).ended(0);
    let here = read(&path);
    fs::remove_file(&path).unwrap();
    world.state = world.at("another-state");
    world.run(&["status"]).ended(0);
    let there = read(&path);
    for (name, value) in here.iter().filter(|(name, _)| !name.contains("last_run")) {
        assert_eq!(there.get(name), Some(value), "{name}");
    }
    assert_eq!(value(&there, "last_run_outcome", &[BACKUP, "outcome=\"done\""]), Some(1.0), "{there:?}");
    world.environment = vec![("IMMICH_BACKUP_METRICS_FILE".to_owned(), "/proc/nowhere/a.prom".to_owned())];
    world.run(&["status"]).ended(0).says("cannot write the metrics to `/proc/nowhere/a.prom`");
    // Nobody reads from there, and nobody waits for that.
    let fifo = world.at("fifo.prom");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    world.environment = vec![("IMMICH_BACKUP_METRICS_FILE".to_owned(), fifo.to_str().unwrap().to_owned())];
    world.run(&["status"]).ended(0).says("fifo.prom` (--metrics-file): it is no regular file");
}

#[test]
fn what_the_proof_finds_is_told_and_a_snapshot_that_lacks_something_does_not_count_as_proven() {
    let Some((mut immich, _server)) = installed() else { return };
    let path = immich.world.at("immich_backup.prom");
    immich.world.environment.push(("IMMICH_BACKUP_METRICS_FILE".to_owned(), path.to_str().unwrap().to_owned()));
    immich.backup(&[]).ended(0);
    let first = read(&path);
    let expected = immich.expected();
    let of = |metrics: &Metrics, verdict: &str| value(metrics, "assets", &[&format!("verdict=\"{verdict}\"")]);
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let number = |count: u64| Some(count as f64);
    assert_eq!((of(&first, "proven"), of(&first, "unprovable"), of(&first, "missing")), (number(expected.proven), number(expected.unprovable), Some(0.0)));
    let proven = value(&first, "last_proven_timestamp_seconds", &[]).unwrap();
    assert_eq!(value(&first, "proof_assets", &["look=\"recorded\""]), number(expected.proven + expected.unprovable));

    let asset = immich.plain_asset(0).clone();
    fs::remove_file(immich.original(&asset)).unwrap();
    // The clock of the log has whole seconds here.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    immich.backup(&[]).ended(3);
    let second = read(&path);
    assert_eq!((of(&second, "missing"), value(&second, "last_proven_timestamp_seconds", &[])), (Some(1.0), Some(proven)));
    assert!(value(&second, "last_snapshot_timestamp_seconds", &[]).unwrap() > proven);
    // The guard goes by the same.
    immich.world.run(&["status", "--max-age", "1h"]).ended(3);
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    let stale = immich.world.run(&["status", "--max-age", "2s", "--json"]).ended(1);
    assert!(stale.summary()["problems"].to_string().contains("older than 2s"), "{}", stale.told());
    fs::remove_file(&path).unwrap();
    immich.world.environment.retain(|(name, _)| name != "IMMICH_BACKUP_METRICS_FILE");
}

#[test]
fn requests_and_retries_are_those_that_the_store_sees() {
    let stand = Stand::gcs();
    let (world, path) = with_metrics(stand.lend("p", World::new()));
    world.pictures(10);
    let fired = stand.proxy.add(Rule::any().key("library/upload").nth(3).then(Action::status(http_503())));
    world.backup(&[]).ended(0);
    assert_eq!(fired.count(), 1);
    let metrics = read(&path);
    let told: f64 = ["create", "look", "read", "list", "remove"]
        .iter()
        .filter_map(|kind| value(&metrics, "last_run_requests", &[BACKUP, &format!("kind=\"{kind}\"")]))
        .sum();
    // Tokens are asked for at the store's address, too; they cost nothing.
    let seen = stand.proxy.count(|record| !record.path.contains("token"));
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let seen = seen as f64;
    assert_eq!(told, seen, "{metrics:?}");
    assert_eq!(value(&metrics, "last_run_retries", &[BACKUP]), Some(1.0));
}

fn http_503() -> hyper::StatusCode {
    hyper::StatusCode::SERVICE_UNAVAILABLE
}

fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

#[test]
fn the_daemon_answers_what_its_jobs_wrote_also_of_one_that_was_killed_and_after_a_new_start() {
    let world = World::new();
    world.pictures(3_000);
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = |more: &[&str]| {
        let mut command = world.command(&["daemon", "--json", "--schedule", "@yearly", "--no-database", "--listen", &address, "--retry-after", "1h"]);
        command.arg("--library").arg(&world.library).args(more);
        Running::start(command)
    };
    let ended = |running: &Running| running.said().contains("job_ended");
    let mut running = start(&["--run-now", "--init"]);
    assert!(running.until(|running| running.said().contains("file_stored")));
    let tasks = fs::read_dir(format!("/proc/{}/task", running.pid())).unwrap();
    let children: String = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok()).collect();
    let job = rustix::process::Pid::from_raw(children.split_whitespace().next().unwrap().parse().unwrap()).unwrap();
    let metrics = checked(&get(&address, "/metrics").1);
    assert_eq!(value(&metrics, "running", &[BACKUP]), Some(1.0), "{metrics:?}");
    rustix::process::kill_process(job, rustix::process::Signal::KILL).unwrap();
    assert!(running.until(ended));
    let failed = |metrics: &Metrics| value(metrics, "last_run_outcome", &[BACKUP, "outcome=\"failed\""]);
    assert!(running.until(|_| failed(&checked(&get(&address, "/metrics").1)) == Some(1.0)), "{}", running.said());
    running.signal("TERM");
    running.wait().ended(0);

    let mut running = start(&["--run-now"]);
    assert!(running.until(ended));
    assert!(running.until(|_| value(&checked(&get(&address, "/metrics").1), "running", &[BACKUP]) == Some(0.0)));
    running.signal("TERM");
    running.wait().ended(0);

    let mut running = start(&[]);
    assert!(running.until(|running| running.said().contains("planned")));
    let (head, body) = get(&address, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let metrics = checked(&body);
    assert_eq!((failed(&metrics), value(&metrics, "problems", &[])), (Some(0.0), Some(0.0)));
    assert!(value(&metrics, "last_snapshot_timestamp_seconds", &[]).is_some() && value(&metrics, "next_run_timestamp_seconds", &[BACKUP]).is_some());
    running.signal("TERM");
    running.wait().ended(0);
}

// What lies in deploy/.

#[track_caller]
fn told_by_promtool(arguments: &[&str]) -> String {
    let output = Command::new(promtool().unwrap()).args(arguments).current_dir(root().join("deploy/prometheus")).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn the_rules_are_rules_and_alert_when_they_should() {
    assert!(told_by_promtool(&["check", "rules", "immich-backup.rules.yml"]).contains("SUCCESS"));
    assert!(told_by_promtool(&["test", "rules", "immich-backup.rules.test.yml"]).contains("SUCCESS"));
}

/// Each alert's expression, of a file of rules in whatever kind of document.
fn alerts(path: &Path) -> BTreeMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    let mut alerts = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(found) = line.strip_prefix("- alert: ") {
            found.clone_into(&mut name);
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            // A cluster's rules may speak of one repository.
            let expression = expression.trim_matches(['"', '\'']).replace(" by (repository)", "").replace("(repository, ", "(");
            alerts.insert(name.clone(), expression);
        }
    }
    alerts
}

#[test]
fn the_rules_of_kubernetes_say_the_same_as_those_of_prometheus() {
    let ours = alerts(&root().join("deploy/prometheus/immich-backup.rules.yml"));
    assert!(ours.len() >= 10, "{ours:?}");
    let theirs = root().join("deploy/kubernetes/components/prometheus/rules.yaml");
    if !theirs.exists() {
        return;
    }
    // What kube-state-metrics tells is asked there only.
    let theirs: BTreeMap<_, _> = alerts(&theirs).into_iter().filter(|(_, expression)| !expression.contains("kube_")).collect();
    assert!(!theirs.is_empty());
    for (alert, expression) in &theirs {
        assert_eq!(ours.get(alert), Some(expression), "{alert}");
    }
}

/// Words of a text that begin as our metrics do.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter_map(|word| word.strip_prefix("immich_backup_")).map(str::to_owned).collect()
}

#[test]
fn dashboard_rules_and_documentation_know_the_metrics_that_there_are() {
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let source = text("app/src/metrics.rs");
    let known: BTreeSet<_> = ["of_repository(\"", "of_run(\"", "of_daemon(\""]
        .iter()
        .flat_map(|start| source.split(start).skip(1))
        .map(|rest| rest.split('"').next().unwrap().to_owned())
        .collect();
    assert!(known.len() >= 25, "{known:?}");
    let rows: BTreeSet<_> = text("docs/monitoring.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next().map(str::to_owned))
        .filter(|name| known.contains(name) || name.ends_with("_seconds"))
        .collect();
    assert_eq!(rows, known, "left: the table of docs/monitoring.md; right: app/src/metrics.rs");
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/immich-backup.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() >= 10);
    for used in [names(&dashboard.to_string()), names(&text("deploy/prometheus/immich-backup.rules.yml"))] {
        assert!(used.len() >= 5 && used.is_subset(&known), "{:?}", used.difference(&known));
    }
}
