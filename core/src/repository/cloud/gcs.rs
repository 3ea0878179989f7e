//! Google Cloud Storage: objects in one request by its XML API, larger ones by a resumable session of its JSON API, which alone takes a condition.
//! Its XML multipart uploads take none, and overwrite: they are never used.

use super::super::checksum::Checksum;
use super::super::place::GcsPlace;
use super::answer::{Answer, Fault};
use super::provider::{About, Provider, Put, Streaming, base64, created, encoded, from_base64, query, rfc3339};
use super::wire::{Line, Reader, Request, Signer, Wire, describe, for_tokens};
use super::{Access, GcsCredentials, OpenStoreError, Requests};
use async_trait::async_trait;
use bytes::Bytes;
use http::Method;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, RetryConfig};
use std::sync::Arc;
use std::time::Duration;

const ENDPOINT: &str = "https://storage.googleapis.com";

pub(super) struct Gcs {
    line: Line,
    endpoint: String,
    bucket: String,
}

impl Gcs {
    pub(super) fn open(place: &GcsPlace, access: &Access, idle: Duration, requests: &Arc<Requests>) -> Result<Self, OpenStoreError> {
        let failed = |error: object_store::Error| OpenStoreError::Client { problem: describe(&error) };
        let endpoint = place.endpoint.clone().unwrap_or_else(|| ENDPOINT.to_owned());
        let builder = || {
            GoogleCloudStorageBuilder::new()
                .with_bucket_name(&place.bucket)
                .with_base_url(&endpoint)
                .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
                .with_client_options(ClientOptions::new().with_allow_http(true))
        };
        let identified = match &access.gcs {
            GcsCredentials::Key(json) => builder().with_service_account_key(json),
            GcsCredentials::File(path) => builder().with_application_credentials(path.to_string_lossy()),
            GcsCredentials::Ambient => builder(),
        };
        let credentials = Arc::clone(identified.with_retry(for_tokens()).build().map_err(|error| unusable(&access.gcs, &error))?.credentials());
        let wire = Wire::new(Signer::Gcs(Arc::clone(&credentials)), idle, Arc::clone(requests))
            .map_err(|source| OpenStoreError::Client { problem: source.to_string() })?;
        let wire = Arc::new(wire);
        let reading = builder().with_credentials(credentials).with_skip_signature(true).with_http_connector(Reader(Arc::clone(&wire)));
        let store = reading.build().map_err(failed)?;
        Ok(Self { line: Line::new(wire, store), endpoint, bucket: place.bucket.clone() })
    }
}

/// Which credentials cannot be used, and why; what stands in them is not repeated.
fn unusable(credentials: &GcsCredentials, error: &object_store::Error) -> OpenStoreError {
    let text = describe(error);
    let why = if text.contains("Unable to decode") { "it is not the JSON of a service account's key" } else { text.as_str() };
    OpenStoreError::Client {
        problem: match credentials {
            GcsCredentials::Key(_) => format!("the key in GCS_CREDENTIALS cannot be used: {why}"),
            GcsCredentials::File(path) => format!("the key in `{}` (GOOGLE_APPLICATION_CREDENTIALS) cannot be used: {why}", path.display()),
            GcsCredentials::Ambient => text,
        },
    }
}

#[async_trait]
impl Provider for Gcs {
    fn line(&self) -> &Line {
        &self.line
    }

    fn streaming(&self) -> Streaming {
        Streaming::Session
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}/{}", self.endpoint, self.bucket, encoded(path))
    }

    /// <https://cloud.google.com/storage/docs/xml-api/put-object-upload>
    async fn put(&self, path: &str, content: &Bytes, about: &About) -> Result<Put, Fault> {
        let mut request = Request::new(Method::PUT, self.url(path))
            .header("content-type", "application/octet-stream")
            .header("x-goog-hash", format!("crc32c={}", crc32c_of(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, content))));
        request.in_lane = about.in_lane;
        if about.create_only {
            request = request.header("x-goog-if-generation-match", "0");
        }
        if let Some(class) = &about.class {
            request = request.header("x-goog-storage-class", class);
        }
        if let Some(sha256) = about.sha256 {
            request = request.header("x-goog-meta-sha256", sha256.to_string());
        }
        if let Some(mtime) = about.mtime_ns.and_then(rfc3339) {
            request = request.header("x-goog-meta-mtime", mtime);
        }
        let answer = self.send(request.body(vec![content.clone()]), "store", path).await?;
        created(self, &answer, "store", path)
    }

    /// <https://cloud.google.com/storage/docs/xml-api/reference-headers#xgooghash>: CRC32C always, MD5 of what was not composed; in one header or two.
    fn seen(&self, answer: &Answer) -> Option<Checksum> {
        let md5 = hash(answer, "md5=").map(Checksum::Md5);
        md5.or_else(|| self.crc32c(answer).map(Checksum::Crc32c))
    }

    fn crc32c(&self, answer: &Answer) -> Option<u32> {
        hash(answer, "crc32c=").map(u32::from_be_bytes)
    }

    /// <https://cloud.google.com/storage/docs/performing-resumable-uploads>
    async fn begin_session(&self, path: &str, about: &About) -> Result<Result<String, Put>, Fault> {
        let condition = if about.create_only { "&ifGenerationMatch=0" } else { "" };
        let url = format!("{}/upload/storage/v1/b/{}/o?uploadType=resumable{condition}&name={}", self.endpoint, query(&self.bucket), query(path));
        let mut metadata = serde_json::Map::new();
        if let Some(mtime) = about.mtime_ns.and_then(rfc3339) {
            metadata.insert("mtime".to_owned(), mtime.into());
        }
        if let Some(sha256) = about.sha256 {
            metadata.insert("sha256".to_owned(), sha256.to_string().into());
        }
        let mut resource = serde_json::json!({ "contentType": "application/octet-stream", "metadata": metadata });
        if let (Some(class), Some(resource)) = (&about.class, resource.as_object_mut()) {
            resource.insert("storageClass".to_owned(), class.as_str().into());
        }
        let request = Request::new(Method::POST, url)
            .header("content-type", "application/json; charset=UTF-8")
            .header("x-upload-content-type", "application/octet-stream")
            .body(vec![Bytes::from(resource.to_string())]);
        let answer = self.send(request, "begin to store", path).await?;
        match answer.header("location") {
            Some(session) if answer.is_success() => Ok(Ok(session.to_owned())),
            _ => match created(self, &answer, "begin to store", path)? {
                Put::New => Err(Fault::Passing { problem: "the store began no session".to_owned(), wait: None, perhaps_done: false }),
                put => Ok(Err(put)),
            },
        }
    }
}

fn hash<const N: usize>(answer: &Answer, kind: &str) -> Option<[u8; N]> {
    let values = answer.headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).find_map(|hash| hash.trim().strip_prefix(kind)).and_then(from_base64)
}

/// A CRC32C as Google writes it.
pub(super) fn crc32c_of(crc: u64) -> String {
    base64(&u32::try_from(crc).unwrap_or_default().to_be_bytes())
}
