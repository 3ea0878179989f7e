//! SeaweedFS, the nearest to S3 that runs here: it checks signatures, conditions and checksums.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::bucket::{Bucket, Credentials};
use super::process::Process;
use super::{ServerError, WireError};

/// How a SeaweedFS is to be.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Whether its buckets keep every version of each key.
    pub versioning: bool,
    /// Who may do something, besides the administrator.
    pub identities: Vec<Identity>,
}

/// Somebody who may do some things.
#[derive(Debug, Clone)]
pub struct Identity {
    /// What this one signs with.
    pub credentials: Credentials,
    /// `Read`, `Write`, `List`, `Tagging`, `Admin`, each for all buckets, or for one as in `Read:bucket`.
    ///
    /// `Write` includes to overwrite and to delete: for less, put a [`crate::proxy::Proxy`] with a policy in front.
    pub actions: Vec<String>,
}

impl Identity {
    /// Somebody who may read and list all buckets.
    pub fn reader(access_key: &str, secret_key: &str) -> Self {
        Self { credentials: Credentials::new(access_key, secret_key), actions: vec!["Read".to_string(), "List".to_string()] }
    }
}

/// A running SeaweedFS.
pub struct SeaweedFs {
    bucket: Bucket,
    versioning: bool,
    process: Process,
}

/// Ports of S3, master, volume server and filer, each for HTTP and for gRPC.
const PORTS: usize = 8;

impl SeaweedFs {
    /// Starts one with an empty bucket `test`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start(options: Options) -> Result<Self, ServerError> {
        let admin = Credentials::new("AKADMIN", "SKADMIN");
        let config = config(&admin, &options.identities);
        let arguments = |folder: &std::path::Path, ports: &[u16]| {
            fs::write(folder.join("s3.json"), config.to_string())?;
            fs::create_dir(folder.join("data"))?;
            let names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"];
            let mut command = Command::new("weed");
            command.args(["-logtostderr", "mini", "-dir=data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=s3.json"]);
            command.args(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")));
            // Only what is needed, and nothing outside of its folder or of this machine.
            command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]);
            command.args(["-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"]);
            Ok(command)
        };
        let (process, bucket) = Process::start("weed", PORTS, arguments, |ports| {
            let port = ports.first().copied().unwrap_or_default();
            let bucket = Bucket { endpoint: format!("http://127.0.0.1:{port}"), name: "test".to_string(), credentials: admin.clone() };
            made_ready(&bucket, options.versioning)?;
            Ok(bucket)
        })?;
        Ok(Self { bucket, versioning: options.versioning, process })
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.bucket.endpoint
    }

    /// What the administrator signs with.
    pub fn credentials(&self) -> &Credentials {
        &self.bucket.credentials
    }

    /// The bucket `test`, which is there from the start.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    /// Makes one more bucket.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn another_bucket(&self, name: &str) -> Result<Bucket, ServerError> {
        let bucket = Bucket { name: name.to_string(), ..self.bucket.clone() };
        made_ready(&bucket, self.versioning)?;
        Ok(bucket)
    }

    /// The folder it keeps its data in.
    pub fn folder(&self) -> &std::path::Path {
        self.process.folder()
    }
}

/// Makes a bucket if it is not there, and sees that it takes objects: only then are its volumes there.
fn made_ready(bucket: &Bucket, versioning: bool) -> Result<(), WireError> {
    match bucket.create() {
        // From the attempt before, whose probe failed.
        Err(WireError::Refused { status, .. }) if status == hyper::StatusCode::CONFLICT => {}
        other => other?,
    }
    bucket.is_ready()?;
    if versioning {
        bucket.keep_versions()?;
    }
    Ok(())
}

fn config(admin: &Credentials, identities: &[Identity]) -> serde_json::Value {
    let identity = |by: &Credentials, actions: &[String]| {
        json!({
            "name": by.access_key,
            "credentials": [{ "accessKey": by.access_key, "secretKey": by.secret_key }],
            "actions": actions,
        })
    };
    let all = ["Admin", "Read", "Write", "List", "Tagging"].map(String::from);
    let mut listed = vec![identity(admin, &all)];
    listed.extend(identities.iter().map(|other| identity(&other.credentials, &other.actions)));
    json!({ "identities": listed })
}
