//! The program's image, and its containers as a cluster starts them: the image is made of deploy/docker/Dockerfile, and what the pods are told is read from
//! the manifests that `kubectl kustomize` renders.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout, clippy::print_stderr, reason = "a test may")]

#[path = "support/kubelet.rs"]
mod kubelet;
#[path = "support/rendered.rs"]
mod rendered;
mod support;

use immich_backup_testbed::docker::Engine;
use immich_backup_testbed::fixture::{Files, Fixture, IMMICH_3};
use immich_backup_testbed::gcs::{self, Double, Permissions};
use immich_backup_testbed::postgres::{Options, Postgres};
use immich_backup_testbed::servers::{self, Credentials, SeaweedFs};
use kubelet::{Ended, Node};
use rendered::Objects;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use support::{Ran, Running, Tree};

/// An engine with the program's image, under the name that the manifests have for it, too.
fn engine() -> Option<Engine> {
    let engine = Engine::start().unwrap()?;
    let arguments = [("VERSION", "7.8.9"), ("REVISION", "0123abc"), ("CREATED", "2026-11-22T12:00:00Z")];
    engine.program_image(Path::new(env!("CARGO_BIN_EXE_immich-backup")), &arguments).unwrap();
    Some(engine)
}

/// Gives the image the names that pods have for it.
fn name_for_pods(engine: &Engine, objects: &Objects) {
    for (job, pod) in objects.pods() {
        let name = rendered::program_of(pod)["image"].as_str().unwrap();
        assert!(name.starts_with("ghcr.io/immich-backup/immich-backup:"), "{job}: {name}");
        engine.docker(&["tag", "immich-backup:latest", name]);
    }
}

/// An overlay of a user's own: on one of those that are shipped, with what every cluster has to say, and an external library.
fn overlay(on: &str, components: &[&str], config: &[(&str, &str)]) -> Objects {
    let mut data = String::new();
    for (name, value) in config {
        data.push_str(&format!("        {name}: {}\n", Value::from(*value)));
    }
    let components: String = components.iter().map(|name| format!("  - ../../components/{name}\n")).collect();
    let components = if components.is_empty() { String::new() } else { format!("components:\n{components}") };
    Objects::of(&format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: immich
resources:
  - ../{on}
{components}patches:
  - patch: |
      apiVersion: v1
      kind: ConfigMap
      metadata: {{ name: backup-config }}
      data:
{data}  - patch: |
      apiVersion: batch/v1
      kind: CronJob
      metadata: {{ name: immich-backup }}
      spec:
        jobTemplate:
          spec:
            template:
              spec:
                containers:
                  - name: immich-backup
                    env:
                      - name: IMMICH_BACKUP_EXTERNAL
                        value: nas=/external/nas:/mnt/external
                    volumeMounts:
                      - {{ name: nas, mountPath: /external/nas, readOnly: true }}
                volumes:
                  - name: nas
                    persistentVolumeClaim: {{ claimName: nas, readOnly: true }}
transformers:
  - ../../wiring
"
    ))
}

/// Immich, as a cluster has it: a database, and volumes.
struct Immich {
    server: Postgres,
    files: Files,
}

impl Immich {
    /// `None` where there are no fixtures.
    fn new(options: &Options) -> Option<Self> {
        let fixture = Fixture::open(IMMICH_3)?;
        let server = Postgres::start_with(options).unwrap();
        server.create_loaded("immich", fixture.dump());
        Some(Self { server, files: fixture.copy() })
    }

    fn config(&self) -> [(&'static str, String); 4] {
        [
            ("db_hostname", "immich-database".to_owned()),
            ("db_port", self.server.port().to_string()),
            ("db_username", Postgres::USER.to_owned()),
            ("db_database_name", "immich".to_owned()),
        ]
    }

    fn join(&self, node: &mut Node<'_>) {
        node.hosts.push(("immich-database".to_owned(), "127.0.0.1".to_owned()));
        node.claims.insert("immich-library".to_owned(), self.files.media());
        node.claims.insert("nas".to_owned(), self.files.external());
    }
}

fn pairs<'a>(all: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    all.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// What a pod had, for whoever reads the test's output.
fn told(what: &str, ended: &Ended) {
    let mib = |bytes: u64| bytes >> 20;
    // Docker's own, which starts them, aside.
    let programs = ended.memory.own_bytes.iter().filter(|(name, _)| !name.starts_with("runc"));
    let programs: Vec<_> = programs.map(|(name, bytes)| format!("{name} {} MiB", mib(*bytes))).collect();
    let memory = format!(
        "{} of {} MiB at most, files in memory included; of their own: {}",
        mib(ended.memory.peak_bytes),
        mib(ended.memory.limit_bytes),
        programs.join(", ")
    );
    println!("{what}: {:.1} s, {memory}\n{}", ended.ran.took.as_secs_f64(), ended.ran.out);
}

/// Google's metadata server, as pods reach it, on an address of its own: it gives each pod the token of the service account that its `ServiceAccount` is tied to.
struct MetadataServer {
    address: String,
}

impl MetadataServer {
    /// `tokens` by the name of the pod's `ServiceAccount`. `None` where nobody may listen on port 80.
    fn start(tokens: BTreeMap<String, String>, account: Arc<Mutex<String>>) -> Option<Self> {
        let process = std::process::id();
        let listener = (0..200_u32).find_map(|try_| {
            let number = process.wrapping_add(try_);
            TcpListener::bind(format!("127.{}.{}.{}:80", 77 + try_ % 100, number / 250 % 250, 1 + number % 250)).ok()
        })?;
        let address = listener.local_addr().unwrap().ip().to_string();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let mut request = Vec::new();
                let mut piece = [0; 4096];
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    match connection.read(&mut piece) {
                        Ok(count) if count > 0 => request.extend(&piece[..count]),
                        _ => break,
                    }
                }
                let request = String::from_utf8_lossy(&request).to_ascii_lowercase();
                let asked =
                    request.starts_with("get /computemetadata/v1/instance/service-accounts/default/token") && request.contains("metadata-flavor: google");
                let token = tokens.get(&*account.lock().unwrap()).filter(|_| asked);
                let (status, body) = match token {
                    Some(token) => ("200 OK", format!("{{\"access_token\":\"{token}\",\"expires_in\":3599,\"token_type\":\"Bearer\"}}")),
                    None => ("404 Not Found", String::new()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nMetadata-Flavor: Google\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                connection.write_all(format!("{head}{body}").as_bytes()).ok();
            }
        });
        Some(Self { address })
    }
}

/// The PostgreSQL beside a drill, as its sidecar would be: on port 5432 of the pod's own address, where whoever is in the pod needs no password.
struct Sidecar {
    server: Postgres,
}

impl Sidecar {
    /// `None` where the port is somebody else's.
    fn start(sql: &str, folder: &Path) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:5432").ok()?;
        let access = folder.join("hba");
        fs::write(&access, "host drill drill 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n").unwrap();
        fs::set_permissions(&access, fs::Permissions::from_mode(0o644)).unwrap();
        let settings = vec![("hba_file".to_owned(), access.display().to_string())];
        let server = Postgres::start_with(&Options { settings, ..Options::default() }).unwrap();
        let mut psql = Command::new(server.programs().join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]).envs(server.environment()).stdin(Stdio::piped());
        let mut psql = psql.spawn().unwrap();
        psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
        assert!(psql.wait().unwrap().success());
        let to = SocketAddr::from(([127, 0, 0, 1], server.port()));
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (from, to) = (connection.unwrap(), TcpStream::connect(to).unwrap());
                let pass = |mut from: TcpStream, mut to: TcpStream| {
                    thread::spawn(move || {
                        std::io::copy(&mut from, &mut to).ok();
                        to.shutdown(std::net::Shutdown::Write).ok();
                    });
                };
                pass(from.try_clone().unwrap(), to.try_clone().unwrap());
                pass(to, from);
            }
        });
        Some(Self { server })
    }
}

#[test]
fn the_image_is_what_the_dockerfile_says_and_its_entry_point_needs_no_shell() {
    let Some(engine) = engine() else { return };
    let inspected: Value = serde_json::from_str(&engine.docker(&["image", "inspect", "immich-backup:latest"])).unwrap();
    let config = &inspected[0]["Config"];
    assert_eq!((&config["User"], &config["WorkingDir"]), (&"1000:1000".into(), &"/".into()));
    assert_eq!((&config["Entrypoint"], &config["Cmd"]), (&serde_json::json!(["tini", "--", "immich-backup"]), &serde_json::json!(["daemon"])));
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap_or_default().to_owned();
    assert_eq!(["version", "revision", "created"].map(label), ["7.8.9", "0123abc", "2026-11-22T12:00:00Z"]);
    assert_eq!((label("title").as_str(), label("licenses").as_str()), ("immich-backup", "Apache-2.0"));
    assert!(label("source").starts_with("https://github.com/") && !label("description").is_empty());
    let inside = |program: &str, arguments: &[&str]| {
        let entry = format!("--entrypoint={program}");
        engine.docker(&[["run", "--rm", "--network=none", "--read-only", &entry, "immich-backup:latest"].as_slice(), arguments].concat())
    };
    assert_eq!(inside("immich-backup", &["--version"]), format!("immich-backup {}", env!("CARGO_PKG_VERSION")));
    // A drill's server wants to know the name of who runs it.
    assert!(inside("id", &[]).starts_with("uid=1000(immich-backup) gid=1000(immich-backup) groups=1000(immich-backup)"));
    assert!(inside("ls", &["/etc/ssl/certs/ca-certificates.crt"]).ends_with(".crt"));
    // Of the distribution, and the one that stands for the packages that cannot be had for a test.
    let versions: Vec<String> = inside("ls", &["/usr/lib/postgresql"]).lines().map(str::to_owned).collect();
    assert!(versions.len() >= 2 && versions.contains(&"18".to_owned()), "{versions:?}");
    for version in &versions {
        for program in ["pg_dump", "psql", "postgres", "initdb"] {
            let said = inside(&format!("/usr/lib/postgresql/{version}/bin/{program}"), &["--version"]);
            assert!(said.contains(&format!(" {version}.")), "{version}: {said}");
        }
    }
    // Nothing runs that nobody started, and who comes in cannot become root.
    assert_eq!(inside("find", &["/etc/postgresql", "-name", "postgresql.conf"]), "");
    assert_eq!(inside("ls", &["-A", "/var/lib/immich-backup", "/library"]), "/library:\n\n/var/lib/immich-backup:");
}

#[test]
fn on_google_every_cronjob_does_its_work_as_the_cluster_starts_it_each_with_its_own_identity() {
    let Some(engine) = engine() else { return };
    let Some(immich) = Immich::new(&Options::default()) else { return };
    // Which account of Google's a pod is, says the annotation of its ServiceAccount.
    let shipped = Objects::of_overlay("gke");
    let account = |name: &str| {
        let email = shipped.get("ServiceAccount", name)["metadata"]["annotations"]["iam.gke.io/gcp-service-account"].as_str().unwrap();
        email.split('@').next().unwrap().to_owned()
    };
    let rights = [("immich-backup", Permissions::NO_DELETE), ("immich-backup-prune", Permissions::ALL)];
    let identities = rights.iter().map(|(name, permissions)| gcs::Identity::new(account(name), *permissions)).collect();
    let double = Double::start(gcs::Options { identities, ..gcs::Options::default() });
    let repository = format!("gs://{}/immich?endpoint={}", double.bucket(), double.url());
    let config = [immich.config().as_slice(), &[("repository", repository), ("db_backup_retention", "1".to_owned())]].concat();
    let objects = overlay("gke", &[], &pairs(&config));
    name_for_pods(&engine, &objects);
    let mut node = Node::new(&engine, objects);
    immich.join(&mut node);
    node.secret("backup-secrets", &[("DB_PASSWORD", Postgres::PASSWORD)]);
    let tokens = rights.iter().map(|(name, _)| ((*name).to_owned(), double.access_token(&account(name)))).collect();
    let Some(metadata) = MetadataServer::start(tokens, Arc::clone(&node.account)) else {
        eprintln!("NOT TESTED: nobody may listen on port 80 here");
        return;
    };
    node.hosts.push(("metadata.google.internal".to_owned(), metadata.address));

    // What a pod is and may do, seen from inside.
    let inside = node.probe(
        "immich-backup",
        &["sh", "-c", "cat /proc/self/status; id; touch /x /library/x /external/nas/x /usr/bin/x; touch /tmp/x /var/lib/immich-backup/x; ls /tmp"],
    );
    let inside = inside.ended(0).says("CapEff:\t0000000000000000").says("CapBnd:\t0000000000000000").says("NoNewPrivs:\t1").says("Seccomp:\t2");
    let inside = inside.says("uid=1000(immich-backup) gid=1000(immich-backup)");
    assert_eq!(inside.ran.err.matches("Read-only file system").count(), 4, "{}", inside.ran.told());
    assert_eq!(inside.ran.out.lines().last(), Some("x"), "{}", inside.ran.told());

    let first = node.run("immich-backup").ended(0).says("proven 93 of 93");
    told("the first backup", &first);
    let stored = double.keys().iter().filter(|key| key.starts_with("immich/library/")).count();
    assert!(stored > 93 && first.memory.peak_bytes > 0, "{stored} {:?}", first.memory);
    // Another pod has nothing of the first one's: its state comes out of the repository, and nothing is sent again.
    let second = node.run("immich-backup").ended(0).says("proven 93 of 93");
    told("the second backup", &second);
    assert_eq!(double.keys().iter().filter(|key| key.starts_with("immich/library/")).count(), stored);
    assert!(double.keys().iter().all(|key| double.versions(key) == 1));
    assert!(double.keys().iter().any(|key| key.starts_with("immich/external/nas/")));
    told("verify", &node.run("immich-backup-verify").ended(0).says("sound").says("proven 93 of 93"));
    let dumps = || double.keys().iter().filter(|key| key.starts_with("immich/database/")).count();
    assert_eq!(dumps(), 2);
    // Only this one's account may delete.
    told("prune", &node.run("immich-backup-prune").ended(0));
    assert_eq!(dumps(), 1);

    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let spec = &node.objects.get("CronJob", "immich-backup-drill")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let map = spec["volumes"].as_array().unwrap().iter().find_map(|volume| volume["configMap"]["name"].as_str()).expect("the sidecar's SQL is in a ConfigMap");
    let sql = node.objects.get("ConfigMap", map)["data"].as_object().unwrap().values().next().unwrap().as_str().unwrap().to_owned();
    let Some(sidecar) = Sidecar::start(&sql, folder.path()) else {
        eprintln!("NOT TESTED: the drill with a PostgreSQL beside it: port 5432 of 127.0.0.1 is somebody else's");
        return;
    };
    node.played.push("postgres".to_owned());
    told("drill", &node.run("immich-backup-drill").ended(0).says("it comes back").says("93 of 93 fetched"));
    assert_eq!(sidecar.server.counts("drill"), BTreeMap::new(), "a drill leaves nothing");
}

#[test]
fn on_s3_every_cronjob_does_its_work_as_the_cluster_starts_it_each_with_its_own_keys() {
    let Some(engine) = engine() else { return };
    let Some(immich) = Immich::new(&Options::default()) else { return };
    let may = |key: &str, actions: &[&str]| {
        let credentials = Credentials::new(key, &format!("secret-of-{key}"));
        servers::Identity { credentials, actions: actions.iter().map(ToString::to_string).collect() }
    };
    let identities = vec![may("AKWRITER", &["Read", "List", "Write"]), may("AKPRUNER", &["Read", "List", "Write"])];
    let server = SeaweedFs::start(servers::Options { versioning: true, identities }).unwrap();
    let repository = format!("s3://{}/immich?endpoint={}&region=us-east-1", server.bucket().name, server.endpoint());
    let config =
        [immich.config().as_slice(), &[("repository", repository), ("db_backup_retention", "1".to_owned()), ("verify_sample", "100%".to_owned())]].concat();
    let objects = overlay("s3", &["drill-own-server", "state-claim"], &pairs(&config));
    name_for_pods(&engine, &objects);
    let mut node = Node::new(&engine, objects);
    immich.join(&mut node);
    // New claims are root's.
    let volumes = tempfile::tempdir().unwrap();
    for (claim, folder) in [("immich-backup-state", "state"), ("restored", "restored")] {
        fs::create_dir(volumes.path().join(folder)).unwrap();
        node.claims.insert(claim.to_owned(), volumes.path().join(folder));
    }
    let keys = |key: &str| [("AWS_ACCESS_KEY_ID", key.to_owned()), ("AWS_SECRET_ACCESS_KEY", format!("secret-of-{key}"))];
    node.secret("backup-secrets", &[pairs(&keys("AKWRITER")).as_slice(), &[("DB_PASSWORD", Postgres::PASSWORD)]].concat());
    node.secret("prune-secrets", &pairs(&keys("AKPRUNER")));
    told("the first backup", &node.run("immich-backup").ended(0).says("proven 93 of 93"));
    assert!(fs::read_dir(volumes.path().join("state")).unwrap().count() > 0, "the state is kept");
    told("the second backup", &node.run("immich-backup").ended(0).says("proven 93 of 93"));
    let versions = server.bucket().versions().unwrap();
    assert!(versions.iter().all(|(key, count)| *count == 1 || key == ".ready"), "{versions:?}");
    told("verify", &node.run("immich-backup-verify").ended(0).says("sound"));
    told("drill", &node.run("immich-backup-drill").ended(0).says("it comes back"));
    told("prune", &node.run("immich-backup-prune").ended(0));
    let keys = server.bucket().keys().unwrap();
    assert_eq!(keys.keys().filter(|key| key.starts_with("immich/database/")).count(), 1, "{keys:?}");

    // The bad day: an empty claim, an empty database.
    immich.server.create_database("back");
    let config: Vec<_> = config
        .into_iter()
        .filter(|(name, _)| *name != "db_database_name")
        .chain([("db_database_name", "back".to_owned()), ("library_claim", "restored".to_owned())])
        .collect();
    node.objects = overlay("s3", &[], &pairs(&config));
    told("restore", &node.run("immich-backup-restore").ended(0));
    let restored = Tree::of(&volumes.path().join("restored"));
    restored.below("external/nas").assert_is_but_for_modes(&Tree::of(&immich.files.external()), "the external library");
    restored.without("external").without("backups").assert_is_but_for_modes(&Tree::of(&immich.files.media()).without("backups"), "the media location");
    assert_eq!(immich.server.rows("back"), immich.server.rows("immich"));
}

#[test]
fn the_pods_of_an_indexed_job_make_one_proven_snapshot() {
    let Some(engine) = engine() else { return };
    let Some(immich) = Immich::new(&Options::default()) else { return };
    let server = SeaweedFs::start(servers::Options { versioning: true, ..servers::Options::default() }).unwrap();
    let repository = format!("s3://{}/immich?endpoint={}&region=us-east-1", server.bucket().name, server.endpoint());
    let config = [immich.config().as_slice(), &[("repository", repository), ("shards", "3".to_owned())]].concat();
    let objects = overlay("s3", &["sharded"], &pairs(&config));
    let job = &objects.get("CronJob", "immich-backup")["spec"]["jobTemplate"]["spec"];
    assert_eq!((&job["completionMode"], &job["completions"], &job["parallelism"]), (&"Indexed".into(), &3.into(), &3.into()), "{job}");
    name_for_pods(&engine, &objects);
    let mut node = Node::new(&engine, objects);
    immich.join(&mut node);
    let keys = [("AWS_ACCESS_KEY_ID", server.credentials().access_key.as_str()), ("AWS_SECRET_ACCESS_KEY", server.credentials().secret_key.as_str())];
    node.secret("backup-secrets", &[keys.as_slice(), &[("DB_PASSWORD", Postgres::PASSWORD)]].concat());
    // The first has the dump, which the others need before they walk.
    for (index, said) in [(0, "shards 1, 2 are done"), (2, "shards 1 are done"), (2, "shards 1 are done"), (1, "proven 93 of 93")] {
        node.index.set(Some(index));
        told(&format!("shard {index}"), &node.run("immich-backup").ended(0).says(said));
    }
    let versions = server.bucket().versions().unwrap();
    assert!(versions.iter().all(|(key, count)| *count == 1 || key == ".ready"), "{versions:?}");
    node.index.set(None);
    told("verify", &node.run("immich-backup-verify").ended(0).says("sound").says("proven 93 of 93"));
}

/// `docker run` with nothing but these names in the environment.
fn run(engine: &Engine, options: &[String], environment: &[(&str, &str)], arguments: &[&str]) -> Ran {
    let mut command = Command::new("docker");
    command.args(["--host", &engine.host(), "run", "--rm", "--network=host"]).args(options);
    command.args(environment.iter().map(|(name, value)| format!("--env={name}={value}")));
    command.arg("immich-backup:latest").args(arguments);
    Running::start(command).wait()
}

#[test]
fn the_names_that_people_have_already_suffice_in_a_pod() {
    let Some(engine) = engine() else { return };
    let Some(immich) = Immich::new(&Options::default()) else { return };
    // Without an external library, as no name here says where one is.
    immich.server.psql("immich", "DELETE FROM asset WHERE \"isExternal\"");
    let double = Double::start(gcs::Options::default());
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key.json");
    fs::write(&key, double.key_json("owner")).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o444)).unwrap();
    let mount = |source: &Path, target: &str| format!("--mount=type=bind,source={},target={target},readonly", source.display());
    let options =
        [mount(&immich.files.media(), "/library"), mount(&key, "/secrets/key.json"), "--mount=type=volume,source=state,target=/var/lib/immich-backup".into()];
    let bucket = format!("{}?endpoint={}", double.bucket(), double.url());
    let (port, json) = (immich.server.port().to_string(), double.key_json("owner"));
    let database = [
        ("DB_HOSTNAME", "127.0.0.1"),
        ("DB_PORT", &port),
        ("DB_USERNAME", Postgres::USER),
        ("DB_PASSWORD", Postgres::PASSWORD),
        ("DB_DATABASE_NAME", "immich"),
    ];
    let names = [("GCS_BUCKET", bucket.as_str()), ("IMMICH_VERSION", "v3.1.0"), ("DB_BACKUP_RETENTION", "1"), ("UPLOAD_WORKERS", "3")];
    let as_text = [names.as_slice(), &database, &[("GCS_CREDENTIALS", json.as_str())]].concat();
    let as_file = [names.as_slice(), &database, &[("GOOGLE_APPLICATION_CREDENTIALS", "/secrets/key.json")]].concat();
    let first = run(&engine, &options, &as_text, &["backup", "--init", "--json"]).ended(0).summary();
    assert_eq!((&first["proof"]["proven"], &first["proof"]["missing"]), (&93.into(), &0.into()), "{first}");
    let dumps = || double.keys().into_iter().filter(|key| key.starts_with("database/")).collect::<Vec<_>>();
    assert!(dumps().len() == 1 && dumps()[0].contains("immich-v3.1.0"), "{:?}", dumps());
    let before = dumps();
    // And from the key's file; who may delete keeps one dump.
    let second = run(&engine, &options, &as_file, &["backup", "--json"]).ended(0).summary();
    assert_eq!((&second["proof"]["proven"], &second["files"]["sent"]), (&93.into(), &0.into()), "{second}");
    assert!(dumps().len() == 1 && dumps() != before, "{:?}", dumps());
    let shown = run(&engine, &options, &as_text, &["backup", "--show-config"]).ended(0);
    for (setting, value, name) in
        [("workers", "3", "UPLOAD_WORKERS"), ("immich-version", "v3.1.0", "IMMICH_VERSION"), ("database-keep", "1", "DB_BACKUP_RETENTION")]
    {
        let line = shown.out.lines().find(|line| line.trim_start().starts_with(setting)).unwrap_or_else(|| panic!("{}", shown.told()));
        assert!(line.contains(value) && line.contains(&format!("environment: {name}")), "{line}");
    }
    assert!(!shown.out.contains("PRIVATE KEY"), "{}", shown.told());
}

#[test]
fn the_clients_are_those_of_the_servers_own_version() {
    let Some(engine) = engine() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let library = folder.path().join("library");
    fs::create_dir_all(library.join("upload")).unwrap();
    fs::write(library.join("upload/photo.jpg"), "photo").unwrap();
    let mut seen = Vec::new();
    for options in [Options::default(), Options { plain: true, ..Options::default() }] {
        let server = Postgres::start_with(&options).unwrap();
        server.create_database("immich");
        server.psql("immich", "CREATE TABLE something (id int)");
        let port = server.port().to_string();
        let database = [("DB_HOSTNAME", "127.0.0.1"), ("DB_PORT", port.as_str()), ("DB_USERNAME", Postgres::USER), ("DB_PASSWORD", Postgres::PASSWORD)];
        let options = [format!("--mount=type=bind,source={},target=/library,readonly", library.display())];
        // It is no database of Immich's, which is said by exit code 3; the dump is made all the same.
        let ran = run(&engine, &options, &database, &["backup", "--init", "--json", "-r", "/var/lib/immich-backup/repository"]).ended(3);
        let dump = ran.summary()["dump"].clone();
        let major = |name: &str| dump[name].as_str().unwrap_or_else(|| panic!("{dump}")).split('.').next().unwrap().to_owned();
        assert_eq!(major("program_version"), major("server_version"), "{dump}");
        seen.push(major("server_version"));
    }
    seen.dedup();
    assert_eq!(seen.len(), 2, "{seen:?}");
}

#[test]
#[ignore = "slow: 300,000 files"]
fn with_the_limits_of_the_manifest_300_000_files_are_backed_up() {
    let Some(engine) = engine() else { return };
    let Some(immich) = Immich::new(&Options::default()) else { return };
    let files: u32 = std::env::var("IMMICH_BACKUP_TEST_FILES").ok().and_then(|text| text.parse().ok()).unwrap_or(300_000);
    let began = Instant::now();
    for number in 0..files {
        // As Immich lays them: two levels of folders, and names of 36 letters.
        let folder = immich.files.media().join(format!("upload/7f3a2c1e-0000-4000-8000-000000000001/{:02x}/{:02x}", number % 256, number / 256 % 256));
        if number < 65_536 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("{number:08x}-1111-4222-8333-{number:012x}.jpg")), format!("photo {number} ").repeat(64)).unwrap();
    }
    println!("{files} files written in {:.0} s", began.elapsed().as_secs_f64());
    let double = Double::start(gcs::Options { identities: vec![gcs::Identity::new("writer", Permissions::NO_DELETE)], ..gcs::Options::default() });
    let repository = format!("gs://{}/immich?endpoint={}", double.bucket(), double.url());
    let config = [immich.config().as_slice(), &[("repository", repository)]].concat();
    let objects = overlay("gke", &["drill-own-server"], &pairs(&config));
    name_for_pods(&engine, &objects);
    let mut node = Node::new(&engine, objects);
    immich.join(&mut node);
    node.secret("backup-secrets", &[("DB_PASSWORD", Postgres::PASSWORD), ("GCS_CREDENTIALS", &double.key_json("writer"))]);
    for (what, cronjob) in [
        ("the first backup", "immich-backup"),
        ("nothing changed, and no state", "immich-backup"),
        ("verify", "immich-backup-verify"),
        ("drill", "immich-backup-drill"),
    ] {
        let ended = node.run(cronjob).ended(0);
        told(what, &ended);
        for (volume, path) in &ended.volumes {
            let used = support::tool("du", &[Path::new("-sh"), path]);
            println!("  {volume}: {}", used.out.split_whitespace().next().unwrap_or_default());
        }
        let own: u64 = ended.memory.own_bytes.values().sum();
        assert!(own < ended.memory.limit_bytes, "{:?}", ended.memory);
        thread::sleep(Duration::from_millis(10));
    }
    let stored = double.keys().iter().filter(|key| key.starts_with("immich/library/")).count();
    assert!(stored > files as usize, "{stored}");
}
