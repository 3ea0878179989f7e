//! Azurite, the emulator of Azure's blob storage.

use std::collections::BTreeMap;
use std::process::Command;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Response};

use super::process::Process;
use super::{ServerError, WireError};
use crate::sign::{self, encoded, query};
use crate::wire::{entries, fetch, fetch_ok, text_of};

/// A running Azurite.
pub struct Azurite {
    container: Container,
    _process: Process,
}

impl Azurite {
    /// The account every Azurite has.
    pub const ACCOUNT: &str = "devstoreaccount1";
    /// That account's key: published with the emulator, and of no use elsewhere.
    pub const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

    /// Starts one with an empty container `test`.
    ///
    /// # Errors
    ///
    /// If it is not installed, or does not become ready.
    pub fn start() -> Result<Self, ServerError> {
        let arguments = |_: &std::path::Path, ports: &[u16]| {
            let mut command = Command::new("azurite-blob");
            command.args(["--silent", "--blobHost", "127.0.0.1", "--location", "data", "--skipApiVersionCheck", "--disableTelemetry"]);
            command.args(ports.iter().flat_map(|port| ["--blobPort".to_string(), port.to_string()]));
            Ok(command)
        };
        let (process, container) = Process::start("azurite-blob", 1, arguments, |ports| {
            let endpoint = format!("http://127.0.0.1:{}/{}", ports.first().copied().unwrap_or_default(), Self::ACCOUNT);
            let container = Container { endpoint, name: "test".to_string() };
            container.create()?;
            Ok(container)
        })?;
        Ok(Self { container, _process: process })
    }

    /// Its address with the account, `http://127.0.0.1:PORT/devstoreaccount1`.
    pub fn endpoint(&self) -> &str {
        &self.container.endpoint
    }

    /// The container `test`, which is there from the start.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Makes one more container.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn another_container(&self, name: &str) -> Result<Container, ServerError> {
        let container = Container { name: name.to_string(), ..self.container.clone() };
        container.create()?;
        Ok(container)
    }
}

/// A container, looked at and changed with the account's key.
#[derive(Debug, Clone)]
pub struct Container {
    /// Address of the server with the account.
    pub endpoint: String,
    /// Its name.
    pub name: String,
}

impl Container {
    /// The answer to a signed request for a blob, or for the container itself if `blob` is empty, whatever its status.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn send(&self, method: &str, blob: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Bytes>, WireError> {
        fetch(self.request(method, blob, parameters, headers, body)?)
    }

    /// Like [`Container::send`], but only an answer of 2xx is one.
    ///
    /// # Errors
    ///
    /// If there is no answer, or another.
    pub fn send_ok(&self, method: &str, blob: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Bytes>, WireError> {
        fetch_ok(self.request(method, blob, parameters, headers, body)?)
    }

    fn request(
        &self,
        method: &str,
        blob: &str,
        parameters: &[(&str, &str)],
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<hyper::Request<Bytes>, WireError> {
        let method = Method::from_bytes(method.as_bytes()).map_err(hyper::http::Error::from)?;
        let slash = if blob.is_empty() { "" } else { "/" };
        let uri = format!("{}/{}{slash}{}{}", self.endpoint, self.name, encoded(blob), query(parameters));
        sign::azure(method, &uri, &sign::headers(headers)?, Bytes::copy_from_slice(body), Azurite::ACCOUNT, Azurite::KEY)
    }

    fn create(&self) -> Result<(), WireError> {
        match self.send_ok("PUT", "", &[("restype", "container")], &[], b"") {
            Err(WireError::Refused { status, .. }) if status == hyper::StatusCode::CONFLICT => Ok(()),
            other => other.map(drop),
        }
    }

    /// All blobs and their sizes.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn blobs(&self) -> Result<BTreeMap<String, u64>, WireError> {
        self.list("")
    }

    /// Blobs that only have blocks nobody has committed.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn uncommitted(&self) -> Result<Vec<String>, WireError> {
        let committed = self.list("")?;
        Ok(self.list("uncommittedblobs")?.into_keys().filter(|name| !committed.contains_key(name)).collect())
    }

    fn list(&self, include: &str) -> Result<BTreeMap<String, u64>, WireError> {
        let mut blobs = BTreeMap::new();
        let mut marker = String::new();
        loop {
            let mut parameters = vec![("restype", "container"), ("comp", "list")];
            if !include.is_empty() {
                parameters.push(("include", include));
            }
            if !marker.is_empty() {
                parameters.push(("marker", &marker));
            }
            let xml = self.send_ok("GET", "", &parameters, &[], b"")?.into_body();
            for entry in entries(&xml, &["Blob"])? {
                let size_bytes = entry.leaf("Content-Length").and_then(|size| size.parse().ok()).unwrap_or(0);
                blobs.insert(entry.leaf("Name").unwrap_or_default().to_string(), size_bytes);
            }
            match text_of(&xml, "NextMarker")? {
                Some(next) if !next.is_empty() => marker = next,
                _ => return Ok(blobs),
            }
        }
    }

    /// A blob's content.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot be read.
    pub fn get(&self, blob: &str) -> Result<Bytes, WireError> {
        Ok(self.send_ok("GET", blob, &[], &[], b"")?.into_body())
    }

    /// A blob's properties and metadata, as headers.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn head(&self, blob: &str) -> Result<HeaderMap, WireError> {
        Ok(self.send_ok("HEAD", blob, &[], &[], b"")?.into_parts().0.headers)
    }

    /// Writes a blob, over what may be there.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn put_raw(&self, blob: &str, content: &[u8]) -> Result<(), WireError> {
        self.send_ok("PUT", blob, &[], &[("x-ms-blob-type", "BlockBlob")], content).map(drop)
    }

    /// Removes a blob.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn delete_raw(&self, blob: &str) -> Result<(), WireError> {
        self.send_ok("DELETE", blob, &[], &[], b"").map(drop)
    }
}
