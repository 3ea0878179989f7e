//! Servers of S3 that do one thing SeaweedFS does not.

use std::fs;
use std::process::Command;

use super::bucket::{Bucket, Credentials};
use super::process::Process;
use super::{ServerError, WireError};

/// A running s3s-fs: it compares each body with the SHA-256 its signature names.
pub struct S3sFs {
    bucket: Bucket,
    _process: Process,
}

impl S3sFs {
    /// Starts one with an empty bucket `test`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start() -> Result<Self, ServerError> {
        let admin = Credentials::new("AKADMIN", "SKADMIN");
        let arguments = |folder: &std::path::Path, ports: &[u16]| {
            fs::create_dir(folder.join("data"))?;
            let mut command = Command::new("s3s-fs");
            command.args(["--host", "127.0.0.1", "--access-key", &admin.access_key, "--secret-key", &admin.secret_key]);
            command.args(ports.iter().map(|port| format!("--port={port}"))).arg("data");
            Ok(command)
        };
        let (process, bucket) = Process::start("s3s-fs", 1, arguments, |ports| started(ports, &admin))?;
        Ok(Self { bucket, _process: process })
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.bucket.endpoint
    }

    /// The bucket `test`, which is there from the start.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }
}

/// A running moto: it plays S3's archive classes, which the others only store; it asks for no credentials, and takes any.
pub struct Moto {
    bucket: Bucket,
    _process: Process,
}

impl Moto {
    /// Starts one with an empty bucket `test`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start() -> Result<Self, ServerError> {
        let arguments = |_: &std::path::Path, ports: &[u16]| {
            let mut command = Command::new("moto_server");
            command.args(["-H", "127.0.0.1"]).args(ports.iter().map(|port| format!("-p{port}")));
            Ok(command)
        };
        let (process, bucket) = Process::start("moto_server", 1, arguments, |ports| started(ports, &Credentials::new("AKADMIN", "SKADMIN")))?;
        Ok(Self { bucket, _process: process })
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.bucket.endpoint
    }

    /// The bucket `test`, which is there from the start.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }
}

fn started(ports: &[u16], admin: &Credentials) -> Result<Bucket, WireError> {
    let port = ports.first().copied().unwrap_or_default();
    let bucket = Bucket { endpoint: format!("http://127.0.0.1:{port}"), name: "test".to_string(), credentials: admin.clone() };
    match bucket.create() {
        Err(WireError::Refused { status, .. }) if status == hyper::StatusCode::CONFLICT => {}
        other => other?,
    }
    bucket.is_ready()?;
    Ok(bucket)
}
