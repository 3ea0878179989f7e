//! Azure Blob Storage: block blobs.

use super::super::checksum::Checksum;
use super::super::place::AzurePlace;
use super::answer::{Answer, Fault};
use super::provider::{About, Part, Provider, Put, Streaming, base64, created, encoded, md5_of, query, rfc3339};
use super::wire::{Line, Reader, Request, Signer, Wire, describe, for_tokens};
use super::{Access, OpenStoreError, Requests};
use crate::model::Sha256;
use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::{ClientOptions, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Azure {
    line: Line,
    base: String,
}

impl Azure {
    pub(super) fn open(place: &AzurePlace, access: &Access, idle: Duration, requests: &Arc<Requests>) -> Result<Self, OpenStoreError> {
        let failed = |error: object_store::Error| OpenStoreError::Client { problem: describe(&error) };
        let mut builder = MicrosoftAzureBuilder::new()
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(ClientOptions::new().with_allow_http(true));
        for (name, value) in &access.azure {
            // The names of its environment; what it does not know is not meant for it.
            if let Ok(key) = name.to_ascii_lowercase().parse::<AzureConfigKey>() {
                builder = builder.with_config(key, value);
            }
        }
        // Where it is, the URL alone says: what is read has to come from where it is written.
        builder = builder.with_container_name(&place.container).with_use_emulator(false);
        if let Some(account) = &place.account {
            builder = builder.with_account(account);
        }
        let account = builder.get_config_value(&AzureConfigKey::AccountName).ok_or(OpenStoreError::NoAccount)?;
        let endpoint = place.endpoint.clone().or_else(|| builder.get_config_value(&AzureConfigKey::Endpoint));
        let endpoint = endpoint.unwrap_or_else(|| format!("https://{account}.blob.core.windows.net"));
        builder = builder.with_endpoint(endpoint.clone());
        let credentials = Arc::clone(builder.clone().with_retry(for_tokens()).build().map_err(failed)?.credentials());
        let wire = Wire::new(Signer::Azure { credentials: Arc::clone(&credentials), account }, idle, Arc::clone(requests))
            .map_err(|source| OpenStoreError::Client { problem: source.to_string() })?;
        let wire = Arc::new(wire);
        let reading = builder.with_credentials(credentials).with_skip_signature(true).with_http_connector(Reader(Arc::clone(&wire)));
        let store = reading.build().map_err(failed)?;
        Ok(Self { line: Line::new(wire, store), base: format!("{}/{}", endpoint.trim_end_matches('/'), place.container) })
    }
}

/// A header's name for what is said of an object.
fn described(mut request: Request, about: &About) -> Request {
    if about.create_only {
        request = request.header("if-none-match", "*");
    }
    if let Some(class) = &about.class {
        request = request.header("x-ms-access-tier", class);
    }
    if let Some(sha256) = about.sha256 {
        request = request.header("x-ms-meta-sha256", sha256.to_string());
    }
    if let Some(mtime) = about.mtime_ns.and_then(rfc3339) {
        request = request.header("x-ms-meta-mtime", mtime);
    }
    request
}

/// All ids of the blocks of a blob have the same length.
fn block_id(id: &str, number: usize) -> String {
    base64(format!("{id}-{number:08}").as_bytes())
}

#[async_trait]
impl Provider for Azure {
    fn line(&self) -> &Line {
        &self.line
    }

    /// `startFrom` belongs to versions from 2026-02-06 on, and an earlier one is spoken here; some that do not know it list nothing
    /// (<https://github.com/apache/arrow-rs-object-store/issues/695>).
    fn lists_after(&self) -> bool {
        false
    }

    fn streaming(&self) -> Streaming {
        Streaming::Parts
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}", self.base, encoded(path))
    }

    /// <https://learn.microsoft.com/rest/api/storageservices/put-blob>: `Content-MD5` is verified as the bytes arrive.
    async fn put(&self, path: &str, content: &Bytes, about: &About) -> Result<Put, Fault> {
        let mut request = Request::new(Method::PUT, self.url(path))
            .header("x-ms-blob-type", "BlockBlob")
            .header("content-type", "application/octet-stream")
            .header("content-md5", md5_of([content]));
        request.in_lane = about.in_lane;
        let answer = self.send(described(request, about).body(vec![content.clone()]), "store", path).await?;
        created(self, &answer, "store", path)
    }

    /// Azure keeps an MD5 that it may have computed or may have been told by whoever wrote the blob, and does not say which.
    fn seen(&self, _: &Answer) -> Option<Checksum> {
        None
    }

    /// Blocks need no beginning, only a name that nobody else uses for his.
    async fn begin_parts(&self, _: &str, _: &About) -> Result<String, Fault> {
        Ok(uuid::Uuid::new_v4().simple().to_string())
    }

    /// <https://learn.microsoft.com/rest/api/storageservices/put-block>
    async fn put_part(&self, path: &str, id: &str, number: usize, content: &[Bytes], sha256: Sha256) -> Result<Part, Fault> {
        let tag = block_id(id, number);
        let url = format!("{}?comp=block&blockid={}", self.url(path), query(&tag));
        let mut request = Request::new(Method::PUT, url).header("content-md5", md5_of(content)).body(content.to_vec());
        request.in_lane = true;
        let answer = self.send(request, "store a part of", path).await?;
        if answer.is_success() { Ok(Part { number, sha256, tag }) } else { Err(answer.fault("store a part of", path)) }
    }

    /// <https://learn.microsoft.com/rest/api/storageservices/put-block-list>
    async fn complete(&self, path: &str, _: &str, parts: &[Part], about: &About) -> Result<Put, Fault> {
        let blocks: String = parts.iter().map(|part| format!("<Uncommitted>{}</Uncommitted>", part.tag)).collect();
        let body = Bytes::from(format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{blocks}</BlockList>"));
        let mut request = Request::new(Method::PUT, format!("{}?comp=blocklist", self.url(path)))
            .header("content-type", "application/xml")
            .header("x-ms-blob-content-type", "application/octet-stream")
            .header("content-md5", md5_of([&body]));
        request.long = true;
        let answer = self.send(described(request, about).body(vec![body]), "complete", path).await?;
        created(self, &answer, "complete", path)
    }
}
