//! What a kubelet does with the pods of rendered manifests, by a Docker engine: command, environment, user, mounts and limits are those of the manifest, and what
//! this does not know how to treat ends the test, so that nothing in a manifest is passed over.
//!
//! What differs from a node: all pods are on the machine's own network, as the test's engine has no other, and `ephemeral-storage` is not enforced.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::rendered::{Objects, arguments, environment, program_of, texts};
use super::support::{Ran, Running};
use immich_backup_testbed::docker::Engine;
use serde_json::{Map, Value};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A node of a cluster.
pub struct Node<'a> {
    engine: &'a Engine,
    /// What the manifests say.
    pub objects: Objects,
    /// By name, what is in the secrets that the manifests name and do not hold.
    pub secrets: BTreeMap<String, BTreeMap<String, String>>,
    /// Where the volumes of claims lie.
    pub claims: BTreeMap<String, PathBuf>,
    /// Names that the cluster's DNS knows, and addresses.
    pub hosts: Vec<(String, String)>,
    /// Containers that start before a pod's own, and that the test plays.
    pub played: Vec<String>,
    /// The `ServiceAccount` of the pod that runs: who asks the cloud for a token.
    pub account: Arc<Mutex<String>>,
    /// Of an indexed Job: which of its pods runs next.
    pub index: Cell<Option<u32>>,
    folder: TempDir,
    pods: Cell<u32>,
}

/// What was seen of a pod's memory.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// What the manifest allows.
    pub limit_bytes: u64,
    /// The most that its control group had, files that the kernel keeps in memory included.
    pub peak_bytes: u64,
    /// The most that was its own (anonymous), for each program.
    pub own_bytes: BTreeMap<String, u64>,
    /// Whether the kernel ended a process for want of memory.
    pub is_killed: bool,
}

/// A pod that has ended.
pub struct Ended {
    /// How, and what it said.
    pub ran: Ran,
    /// What has changed on its root file system: lines of `docker diff`.
    pub changed: Vec<String>,
    /// What it took.
    pub memory: Memory,
    /// Its volumes of type `emptyDir`, by name.
    pub volumes: BTreeMap<String, PathBuf>,
    folder: TempDir,
}

impl Ended {
    /// This, if the program ended so and left nothing behind outside of its volumes.
    #[track_caller]
    pub fn ended(self, code: i32) -> Self {
        assert!(!self.memory.is_killed, "ended for want of memory: {:?}\n{}", self.memory, self.ran.told());
        assert!(self.ran.code == code, "exit code {} instead of {code}\n{}", self.ran.code, self.ran.told());
        assert_eq!(self.changed, [] as [String; 0], "left on the root file system\n{}", self.ran.told());
        self
    }

    /// This, if `text` was said.
    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.ran.out.contains(text) || self.ran.err.contains(text), "does not say `{text}`\n{}", self.ran.told());
        self
    }
}

impl<'a> Node<'a> {
    /// A node of a cluster that holds these objects. Their images have to be in the engine.
    pub fn new(engine: &'a Engine, objects: Objects) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            engine,
            objects,
            secrets: BTreeMap::new(),
            claims: BTreeMap::new(),
            hosts: Vec::new(),
            played: Vec::new(),
            account: Arc::default(),
            index: Cell::new(None),
            folder,
            pods: Cell::new(0),
        }
    }

    /// Gives a secret what it holds.
    pub fn secret(&mut self, name: &str, pairs: &[(&str, &str)]) {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.secrets.insert(name.to_owned(), pairs);
    }

    /// Runs the pod of a job that is made of this `CronJob`, until it ends.
    #[track_caller]
    pub fn run(&self, cronjob: &str) -> Ended {
        self.run_as(cronjob, None)
    }

    /// Runs it with another command in the place of its own; all else is the same.
    #[track_caller]
    pub fn probe(&self, cronjob: &str, command: &[&str]) -> Ended {
        self.run_as(cronjob, Some(command))
    }

    #[track_caller]
    fn run_as(&self, cronjob: &str, command: Option<&[&str]>) -> Ended {
        let spec = &self.objects.get("CronJob", cronjob)["spec"]["jobTemplate"]["spec"]["template"];
        let pod = Pod::new(self, cronjob, spec);
        spec["spec"]["serviceAccountName"].as_str().expect("a pod has an identity").clone_into(&mut self.account.lock().unwrap());
        pod.run(command)
    }
}

/// Ends the test if `object` has a field that is not treated.
#[track_caller]
fn only(object: &Value, known: &[&str]) {
    for name in object.as_object().into_iter().flat_map(Map::keys) {
        assert!(known.contains(&name.as_str()), "it is not known here what a kubelet does with `{name}`: {object}");
    }
}

struct Pod<'a> {
    node: &'a Node<'a>,
    name: String,
    container: &'a Value,
    /// Arguments of `docker create`.
    options: Vec<String>,
    variables: BTreeMap<String, String>,
    limit_bytes: u64,
    volumes: BTreeMap<String, PathBuf>,
    folder: TempDir,
}

impl<'a> Pod<'a> {
    #[track_caller]
    fn new(node: &'a Node<'a>, cronjob: &str, template: &'a Value) -> Self {
        let spec = &template["spec"];
        only(
            spec,
            &[
                // Where it is put, and what it is tried again for: there is one node here, and one try.
                "affinity",
                "topologySpreadConstraints",
                "restartPolicy",
                "automountServiceAccountToken",
                "enableServiceLinks",
                "serviceAccountName",
                "terminationGracePeriodSeconds",
                "containers",
                "initContainers",
                "securityContext",
                "volumes",
            ],
        );
        assert_eq!((&spec["automountServiceAccountToken"], &spec["enableServiceLinks"]), (&false.into(), &false.into()), "{spec}");
        let before: Vec<_> = spec["initContainers"].as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap()).collect();
        assert!(before.iter().all(|name| node.played.iter().any(|played| played == name)), "nobody plays {before:?}");
        let container = program_of(template);
        only(container, &["name", "image", "imagePullPolicy", "args", "env", "resources", "securityContext", "volumeMounts"]);
        node.pods.set(node.pods.get() + 1);
        let folder = tempfile::tempdir_in(node.folder.path()).unwrap();
        let mut pod = Self {
            node,
            name: format!("{cronjob}-{}", node.pods.get()),
            container,
            options: Vec::new(),
            variables: environment(container, &node.objects.config(), &node.secrets),
            limit_bytes: 0,
            volumes: BTreeMap::new(),
            folder,
        };
        pod.option(format!("--stop-timeout={}", spec["terminationGracePeriodSeconds"]));
        pod.context(&spec["securityContext"], &container["securityContext"]);
        pod.resources(&container["resources"]);
        pod.mounts(spec);
        // A kubelet says so to everybody.
        for (name, value) in [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")] {
            pod.variables.insert(name.to_owned(), value.to_owned());
        }
        if let Some(index) = node.index.get() {
            pod.variables.insert("JOB_COMPLETION_INDEX".to_owned(), index.to_string());
        }
        pod
    }

    fn option(&mut self, option: String) {
        self.options.push(option);
    }

    #[track_caller]
    fn context(&mut self, pod: &Value, container: &Value) {
        only(pod, &["runAsNonRoot", "runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy", "supplementalGroups", "seccompProfile"]);
        only(container, &["allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem", "runAsUser", "runAsGroup"]);
        let number = |name: &str| [container, pod].iter().find_map(|context| context[name].as_u64());
        let (user, group) = (number("runAsUser").expect("a user by number"), number("runAsGroup").expect("a group by number"));
        assert!(pod["runAsNonRoot"] != true || user != 0, "the kubelet refuses root: {pod}");
        self.option(format!("--user={user}:{group}"));
        let more = pod["supplementalGroups"].as_array().into_iter().flatten().chain(pod.get("fsGroup"));
        self.options.extend(more.map(|group| format!("--group-add={group}")));
        // Docker's own profile is what that means; without it there would be an option.
        assert_eq!(pod["seccompProfile"]["type"], "RuntimeDefault");
        if container["readOnlyRootFilesystem"] == true {
            self.option("--read-only".to_owned());
        }
        if container["allowPrivilegeEscalation"] == false {
            self.option("--security-opt=no-new-privileges".to_owned());
        }
        only(&container["capabilities"], &["drop"]);
        self.options.extend(texts(&container["capabilities"]["drop"]).into_iter().map(|name| format!("--cap-drop={name}")));
    }

    #[track_caller]
    fn resources(&mut self, resources: &Value) {
        only(resources, &["requests", "limits"]);
        only(&resources["limits"], &["cpu", "memory", "ephemeral-storage"]);
        self.limit_bytes = bytes(resources["limits"]["memory"].as_str().expect("a limit of memory"));
        // A node has no swap.
        self.options.extend(["memory", "memory-swap"].map(|name| format!("--{name}={}", self.limit_bytes)));
        let cores = std::thread::available_parallelism().unwrap().get();
        let limit = resources["limits"]["cpu"].as_str().map_or(cores as f64, |text| match text.strip_suffix('m') {
            Some(thousandths) => thousandths.parse::<f64>().unwrap() / 1000.0,
            None => text.parse().unwrap(),
        });
        // Docker refuses more than there are.
        self.option(format!("--cpus={}", limit.min(cores as f64)));
    }

    #[track_caller]
    fn mounts(&mut self, spec: &Value) {
        let group = spec["securityContext"]["fsGroup"].as_u64();
        let mut sources: BTreeMap<&str, (PathBuf, bool)> = BTreeMap::new();
        let mounts: Vec<_> = self.container["volumeMounts"].as_array().into_iter().flatten().collect();
        // Those of what the test plays are its own business.
        let is_mounted = |volume: &&Value| mounts.iter().any(|mount| mount["name"] == volume["name"]);
        for volume in spec["volumes"].as_array().into_iter().flatten().filter(is_mounted) {
            only(volume, &["name", "emptyDir", "persistentVolumeClaim"]);
            let name = volume["name"].as_str().unwrap();
            if let Some(claim) = volume.get("persistentVolumeClaim") {
                let claimed = claim["claimName"].as_str().unwrap();
                let path = self.node.claims.get(claimed).unwrap_or_else(|| panic!("nobody has given the claim `{claimed}` a volume"));
                let is_read_only = claim["readOnly"] == true;
                if let Some(group) = group.filter(|_| !is_read_only) {
                    give(path, u32::try_from(group).unwrap());
                }
                sources.insert(name, (path.clone(), is_read_only));
                continue;
            }
            only(&volume["emptyDir"], &["sizeLimit"]);
            let path = self.folder.path().join(name);
            fs::create_dir(&path).unwrap();
            // As a kubelet makes them.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            if let Some(group) = group {
                give(&path, u32::try_from(group).unwrap());
            }
            self.volumes.insert(name.to_owned(), path.clone());
            sources.insert(name, (path, false));
        }
        for mount in mounts {
            only(mount, &["name", "mountPath", "readOnly"]);
            let (source, is_read_only) = &sources[mount["name"].as_str().unwrap()];
            let how = if *is_read_only || mount["readOnly"] == true { ",readonly" } else { "" };
            let option = format!("--mount=type=bind,source={},target={}{how}", source.display(), mount["mountPath"].as_str().unwrap());
            self.option(option);
        }
    }

    #[track_caller]
    fn run(self, command: Option<&[&str]>) -> Ended {
        // The parent stays after its container, and so do its counters.
        let group = format!("/{}/{}", self.node.engine.folder().file_name().unwrap().to_str().unwrap(), self.name);
        let mut create: Vec<String> = vec!["create".into(), "--network=host".into(), "--no-healthcheck".into()];
        create.extend([format!("--name={}", self.name), format!("--cgroup-parent={group}")]);
        create.extend(self.options.iter().cloned());
        create.extend(self.node.hosts.iter().map(|(name, address)| format!("--add-host={name}:{address}")));
        create.extend(self.variables.iter().map(|(name, value)| format!("--env={name}={value}")));
        let (entry, arguments) = match command {
            // The image's own.
            None => (None, arguments(self.container, &self.variables)),
            Some([program, arguments @ ..]) => (Some(program), arguments.iter().map(|&word| word.to_owned()).collect()),
            Some([]) => panic!("no command"),
        };
        create.extend(entry.map(|program| format!("--entrypoint={program}")));
        create.push(self.container["image"].as_str().unwrap().to_owned());
        create.extend(arguments);
        self.node.engine.docker(&create.iter().map(String::as_str).collect::<Vec<_>>());
        let mut start = Command::new("docker");
        start.args(["--host", &self.node.engine.host(), "start", "--attach", &self.name]);
        let mut running = Running::start(start);
        let mut memory = Memory { limit_bytes: self.limit_bytes, ..Memory::default() };
        while !running.is_over() {
            memory.look(&group);
            std::thread::sleep(LOOK_EVERY);
        }
        memory.look(&group);
        let ran = running.wait();
        let inspected = self.node.engine.docker(&["inspect", "--format", "{{.State.OOMKilled}} {{.HostConfig.Memory}}", &self.name]);
        memory.is_killed = inspected.starts_with("true") || memory.is_killed;
        assert!(inspected.ends_with(&format!(" {}", self.limit_bytes)), "{inspected}");
        // What is mounted where the image has no folder is mounted on one that is made for it.
        let targets: Vec<_> = self.container["volumeMounts"].as_array().into_iter().flatten().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
        let is_for_a_mount = |line: &&str| line.split_once(' ').is_some_and(|(_, path)| targets.iter().any(|target| Path::new(target).starts_with(path)));
        let changed = self.node.engine.docker(&["diff", &self.name]).lines().filter(|line| !is_for_a_mount(line)).map(str::to_owned).collect();
        self.node.engine.docker(&["rm", &self.name]);
        Ended { ran, changed, memory, volumes: self.volumes, folder: self.folder }
    }
}

/// What a kubelet does to a volume for `fsGroup`: it becomes the group's, and so does what is made in it.
fn give(volume: &Path, group: u32) {
    chown(volume, None, Some(group)).unwrap();
    fs::set_permissions(volume, fs::Permissions::from_mode(fs::metadata(volume).unwrap().permissions().mode() | 0o2770)).unwrap();
}

/// `512Mi`, `2Gi`.
#[track_caller]
fn bytes(text: &str) -> u64 {
    let units = [("Ki", 10), ("Mi", 20), ("Gi", 30)];
    let found = units.iter().find_map(|(unit, shift)| Some(text.strip_suffix(unit)?.parse::<u64>().unwrap() << shift));
    found.unwrap_or_else(|| text.parse().unwrap())
}

impl Memory {
    /// Looks at the control group of a pod: in one tree (version 2), or in that of its controller (version 1).
    fn look(&mut self, group: &str) {
        let group = group.trim_start_matches('/');
        let (first, second) = (Path::new("/sys/fs/cgroup/memory").join(group), Path::new("/sys/fs/cgroup").join(group));
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let number = |path: PathBuf| read(path).and_then(|text| text.trim().parse::<u64>().ok());
        let peak = number(first.join("memory.max_usage_in_bytes")).or_else(|| number(second.join("memory.peak")));
        self.peak_bytes = self.peak_bytes.max(peak.unwrap_or(0));
        if let Some(events) = read(second.join("memory.events")) {
            self.is_killed |= events.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count.trim() != "0"));
        }
        for group in [&first, &second] {
            for container in fs::read_dir(group).into_iter().flatten().flatten() {
                for process in read(container.path().join("cgroup.procs")).unwrap_or_default().lines() {
                    self.look_at(process);
                }
            }
        }
    }

    fn look_at(&mut self, process: &str) {
        let Ok(status) = fs::read_to_string(format!("/proc/{process}/status")) else { return };
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        if let (Some(name), Some(now)) = (field("Name"), field("RssAnon")) {
            let kib: u64 = now.trim_end_matches("kB").trim().parse().unwrap_or(0);
            let most = self.own_bytes.entry(name.to_owned()).or_default();
            *most = (*most).max(kib << 10);
        }
    }
}
