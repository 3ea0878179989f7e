//! A bucket of S3, looked at and changed with the rights of an administrator.

use std::collections::BTreeMap;

use hyper::body::Bytes;
use hyper::{HeaderMap, Method, Response};

use crate::sign::{self, encoded, query};
use crate::wire::{Entry, WireError, entries, fetch, fetch_ok, text_of};

pub use crate::sign::Credentials;

/// A bucket and who may do everything in it.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Address of the server, `http://127.0.0.1:PORT`.
    pub endpoint: String,
    /// Its name.
    pub name: String,
    /// Of the administrator.
    pub credentials: Credentials,
}

impl Bucket {
    /// The answer to a signed request for a key, or for the bucket itself if the key is empty, whatever its status.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn send(&self, method: &str, key: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Bytes>, WireError> {
        fetch(self.request(method, key, parameters, headers, body)?)
    }

    /// Like [`Bucket::send`], but only an answer of 2xx is one.
    ///
    /// # Errors
    ///
    /// If there is no answer, or another.
    pub fn send_ok(&self, method: &str, key: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]) -> Result<Response<Bytes>, WireError> {
        fetch_ok(self.request(method, key, parameters, headers, body)?)
    }

    fn request(&self, method: &str, key: &str, parameters: &[(&str, &str)], headers: &[(&str, &str)], body: &[u8]) -> Result<hyper::Request<Bytes>, WireError> {
        let method = Method::from_bytes(method.as_bytes()).map_err(hyper::http::Error::from)?;
        let slash = if key.is_empty() { "" } else { "/" };
        let uri = format!("{}/{}{slash}{}{}", self.endpoint, self.name, encoded(key), query(parameters));
        sign::s3(method, &uri, &sign::headers(headers)?, Bytes::copy_from_slice(body), &self.credentials)
    }

    pub(super) fn create(&self) -> Result<(), WireError> {
        self.send_ok("PUT", "", &[], &[], b"").map(drop)
    }

    /// Has the bucket keep every version of each key from now on.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn keep_versions(&self) -> Result<(), WireError> {
        let wanted = b"<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status></VersioningConfiguration>";
        self.send_ok("PUT", "", &[("versioning", "")], &[], wanted).map(drop)
    }

    /// All keys that can be read, and their sizes.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn keys(&self) -> Result<BTreeMap<String, u64>, WireError> {
        self.keys_below("")
    }

    /// As [`Self::keys`], of those that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn keys_below(&self, prefix: &str) -> Result<BTreeMap<String, u64>, WireError> {
        let mut keys = BTreeMap::new();
        let first = vec![("list-type".to_string(), "2".to_string()), ("prefix".to_string(), prefix.to_string())];
        let mut page = first.clone();
        loop {
            let xml = self.list(&page)?;
            for entry in entries(&xml, &["Contents"])? {
                keys.insert(entry.leaf("Key").unwrap_or_default().to_string(), entry.leaf("Size").and_then(|size| size.parse().ok()).unwrap_or(0));
            }
            match text_of(&xml, "NextContinuationToken")? {
                Some(token) if !token.is_empty() => {
                    let next = [&first[..], &[("continuation-token".to_string(), token)]].concat();
                    if next == page {
                        return Err(WireError::Endless(self.name.clone()));
                    }
                    page = next;
                }
                _ => return Ok(keys),
            }
        }
    }

    /// How many versions each key has; delete markers are not among them.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn versions(&self) -> Result<BTreeMap<String, usize>, WireError> {
        self.versions_below("")
    }

    /// As [`Self::versions`], of the keys that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn versions_below(&self, prefix: &str) -> Result<BTreeMap<String, usize>, WireError> {
        self.history("Version", prefix)
    }

    /// How many delete markers each key has.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn delete_markers(&self) -> Result<BTreeMap<String, usize>, WireError> {
        self.delete_markers_below("")
    }

    /// As [`Self::delete_markers`], of the keys that begin with `prefix`.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn delete_markers_below(&self, prefix: &str) -> Result<BTreeMap<String, usize>, WireError> {
        self.history("DeleteMarker", prefix)
    }

    fn history(&self, kind: &str, prefix: &str) -> Result<BTreeMap<String, usize>, WireError> {
        let mut counts = BTreeMap::new();
        let first = vec![("versions".to_string(), String::new()), ("prefix".to_string(), prefix.to_string())];
        let mut page = first.clone();
        loop {
            let xml = self.list(&page)?;
            for entry in entries(&xml, &["Version", "DeleteMarker"])? {
                if entry.name == kind {
                    *counts.entry(entry.leaf("Key").unwrap_or_default().to_string()).or_insert(0) += 1;
                }
            }
            if text_of(&xml, "IsTruncated")?.as_deref() != Some("true") {
                return Ok(counts);
            }
            let mut next = first.clone();
            next.push(("key-marker".to_string(), text_of(&xml, "NextKeyMarker")?.unwrap_or_default()));
            next.push(("version-id-marker".to_string(), text_of(&xml, "NextVersionIdMarker")?.unwrap_or_default()));
            if next == page {
                return Err(WireError::Endless(self.name.clone()));
            }
            page = next;
        }
    }

    /// Keys of the multipart uploads that were begun and neither completed nor aborted, a key for each.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn uploads(&self) -> Result<Vec<String>, WireError> {
        Ok(self.uploads_with_ids()?.into_iter().map(|(key, _)| key).collect())
    }

    /// As [`Self::uploads`], each with what the server calls it.
    ///
    /// # Errors
    ///
    /// If the server refuses to list.
    pub fn uploads_with_ids(&self) -> Result<Vec<(String, String)>, WireError> {
        let xml = self.list(&[("uploads".to_string(), String::new())])?;
        let leaf = |entry: &Entry, name| entry.leaf(name).unwrap_or_default().to_string();
        Ok(entries(&xml, &["Upload"])?.iter().map(|entry| (leaf(entry, "Key"), leaf(entry, "UploadId"))).collect())
    }

    fn list(&self, parameters: &[(String, String)]) -> Result<Bytes, WireError> {
        let parameters: Vec<_> = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Ok(self.send_ok("GET", "", &parameters, &[], b"")?.into_body())
    }

    /// An object's content.
    ///
    /// # Errors
    ///
    /// If there is none, or it cannot be read.
    pub fn get(&self, key: &str) -> Result<Bytes, WireError> {
        Ok(self.send_ok("GET", key, &[], &[], b"")?.into_body())
    }

    /// What a HEAD says of an object, its checksums included.
    ///
    /// # Errors
    ///
    /// If there is none.
    pub fn head(&self, key: &str) -> Result<HeaderMap, WireError> {
        Ok(self.send_ok("HEAD", key, &[], &[("x-amz-checksum-mode", "ENABLED")], b"")?.into_parts().0.headers)
    }

    /// Writes an object, over what may be there.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn put_raw(&self, key: &str, content: &[u8]) -> Result<(), WireError> {
        self.send_ok("PUT", key, &[], &[], content).map(drop)
    }

    /// Removes an object.
    ///
    /// # Errors
    ///
    /// If the server refuses.
    pub fn delete_raw(&self, key: &str) -> Result<(), WireError> {
        self.send_ok("DELETE", key, &[], &[], b"").map(drop)
    }

    /// Whether the bucket takes and removes an object.
    pub(super) fn is_ready(&self) -> Result<(), WireError> {
        self.put_raw(PROBE, b"ready?")?;
        self.delete_raw(PROBE)
    }
}

const PROBE: &str = ".ready";
