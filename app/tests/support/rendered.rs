//! What kustomize makes of deploy/kubernetes, as values that a test can look into.

#![allow(dead_code, reason = "each test program uses its part of this")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may")]

use super::support::{Running, copy};
use immich_backup_testbed::servers::installed;
use saphyr::{LoadableYamlNode as _, Scalar, Yaml};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A path below `deploy`.
pub fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("deploy").join(path)
}

/// The names of the folders in a folder of `deploy/kubernetes`.
pub fn folders(name: &str) -> Vec<String> {
    let entries = fs::read_dir(deploy("kubernetes").join(name)).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<_> = entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name().to_str().unwrap().to_owned()).collect();
    names.sort();
    assert!(names.len() >= 4, "{names:?}");
    names
}

/// What YAML says, in as many documents as it has.
pub fn documents(text: &str) -> Vec<Value> {
    Yaml::load_from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}")).iter().map(value).collect()
}

fn value(yaml: &Yaml<'_>) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(boolean)) => (*boolean).into(),
        Yaml::Value(Scalar::Integer(integer)) => (*integer).into(),
        Yaml::Value(Scalar::FloatingPoint(float)) => float.into_inner().into(),
        Yaml::Value(Scalar::String(text)) => text.as_ref().into(),
        Yaml::Sequence(items) => items.iter().map(value).collect(),
        Yaml::Mapping(pairs) => Value::Object(pairs.iter().map(|(key, item)| (key.as_str().expect("a key is text").to_owned(), value(item))).collect::<Map<_, _>>()),
        other => panic!("this is not in manifests: {other:?}"),
    }
}

/// The objects of a cluster.
pub struct Objects(pub Vec<Value>);

impl Objects {
    /// Those of an overlay.
    pub fn of_overlay(name: &str) -> Self {
        Self::at(&deploy("kubernetes/overlays").join(name))
    }

    /// Those of a folder with a `kustomization.yaml`.
    pub fn at(folder: &Path) -> Self {
        let mut command = Command::new(installed("kubectl").unwrap());
        command.arg("kustomize").arg(folder);
        Self(documents(&Running::start(command).wait().ended(0).out))
    }

    /// Those of a kustomization of one's own, which lies beside the overlays.
    pub fn of(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let all = folder.path().join("kubernetes");
        copy(&deploy("kubernetes"), &all);
        let own = all.join("overlays/own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("kustomization.yaml"), text).unwrap();
        Self::at(&own)
    }

    /// Those of `overlay` with a component on top.
    pub fn with_component(overlay: &str, component: &str) -> Self {
        Self::of(&format!("namespace: immich\nresources: [../{overlay}]\ncomponents: [../../components/{component}]\ntransformers: [../../wiring]\n"))
    }

    pub fn of_kind(&self, kind: &str) -> Vec<&Value> {
        self.0.iter().filter(|object| object["kind"] == kind).collect()
    }

    #[track_caller]
    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.of_kind(kind).into_iter().find(|object| object["metadata"]["name"] == name).unwrap_or_else(|| panic!("there is no {kind} {name}"))
    }

    /// What `backup-config` says.
    pub fn config(&self) -> BTreeMap<String, String> {
        let data = self.get("ConfigMap", "backup-config")["data"].as_object().unwrap();
        data.iter().map(|(key, value)| (key.clone(), value.as_str().expect("text").to_owned())).collect()
    }

    /// Each job's name, and what its pods are made from.
    pub fn pods(&self) -> Vec<(String, &Value)> {
        let jobs = self.of_kind("CronJob").into_iter().map(|job| (job, "/spec/jobTemplate/spec/template"));
        let services = self.of_kind("Deployment").into_iter().map(|object| (object, "/spec/template"));
        jobs.chain(services).map(|(object, path)| (object["metadata"]["name"].as_str().unwrap().to_owned(), object.pointer(path).unwrap())).collect()
    }
}

/// The container of a pod that is this program.
#[track_caller]
pub fn program_of(pod: &Value) -> &Value {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    assert_eq!(containers.len(), 1, "{containers:?}");
    assert_eq!(containers[0]["name"], "immich-backup");
    assert!(containers[0].get("command").is_none(), "the image's entry point is kept");
    &containers[0]
}

/// What stands in a list of texts.
pub fn texts(list: &Value) -> Vec<&str> {
    list.as_array().map_or_else(Vec::new, |items| items.iter().map(|item| item.as_str().expect("text")).collect())
}

/// The environment that a kubelet gives a container: what `config` and `secrets` hold, and what of a secret is not there and may be missing left out.
pub fn environment(container: &Value, config: &BTreeMap<String, String>, secrets: &BTreeMap<String, BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    for item in container["env"].as_array().unwrap() {
        let name = item["name"].as_str().unwrap();
        let from = &item["valueFrom"];
        let value = if let Some(value) = item["value"].as_str() {
            Some(value.to_owned())
        } else if let Some(key) = from["configMapKeyRef"]["key"].as_str() {
            assert_eq!(from["configMapKeyRef"]["name"], "backup-config");
            Some(config.get(key).unwrap_or_else(|| panic!("{name}: backup-config has no {key}")).clone())
        } else if let Some(key) = from["secretKeyRef"]["key"].as_str() {
            let found = secrets.get(from["secretKeyRef"]["name"].as_str().unwrap()).and_then(|secret| secret.get(key)).cloned();
            assert!(found.is_some() || from["secretKeyRef"]["optional"] == true, "{name}: no secret has {key}");
            found
        } else {
            assert_eq!(from["fieldRef"]["fieldPath"], "metadata.labels['batch.kubernetes.io/controller-uid']", "{name}");
            Some("2f6b1f0e-7f0c-4b52-9a5e-0c3e7f3c9d11".to_owned())
        };
        if let Some(value) = value {
            assert!(environment.insert(name.to_owned(), value).is_none(), "{name} twice");
        }
    }
    environment
}

/// The arguments, with `$(NAME)` as Kubernetes fills it in.
pub fn arguments(container: &Value, environment: &BTreeMap<String, String>) -> Vec<String> {
    let fill = |text: &str| environment.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value));
    let filled: Vec<_> = texts(&container["args"]).into_iter().map(fill).collect();
    assert!(filled.iter().all(|argument| !argument.contains("$(")), "{filled:?}");
    filled
}
