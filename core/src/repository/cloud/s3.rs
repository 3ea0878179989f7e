//! S3, and stores that speak it.

use super::super::checksum::Checksum;
use super::super::place::S3Place;
use super::answer::{Answer, Fault};
use super::provider::{About, Part, Provider, Put, Streaming, base64, created, encoded, from_base64, md5_of, query, seconds};
use super::wire::{Line, Reader, Request, Signer, Wire};
use super::{Access, OpenStoreError, Requests};
use crate::model::Sha256;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, StatusCode};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{ClientOptions, RetryConfig};
use serde::Deserialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The region that is named where a store has none.
const ANY_REGION: &str = "us-east-1";

pub(super) struct S3 {
    line: Line,
    base: String,
    /// Whether the store takes `x-amz-checksum-sha256`.
    checksum: AtomicBool,
    /// Whether it lets itself be asked for that.
    says_checksum: AtomicBool,
    metadata: bool,
}

/// Where the bucket is.
fn base(place: &S3Place, region: &str) -> String {
    let S3Place { bucket, endpoint, .. } = place;
    match endpoint {
        Some(endpoint) if place.virtual_hosted == Some(true) => match endpoint.split_once("://") {
            Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
            None => format!("{endpoint}/{bucket}"),
        },
        Some(endpoint) => format!("{endpoint}/{bucket}"),
        None => {
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            // A certificate for one level of names does not cover a bucket with a dot.
            if place.virtual_hosted.unwrap_or(!bucket.contains('.')) {
                format!("https://{bucket}.s3.{region}.{domain}")
            } else {
                format!("https://s3.{region}.{domain}/{bucket}")
            }
        }
    }
}

impl S3 {
    pub(super) fn open(place: &S3Place, access: &Access, idle: Duration, requests: &Arc<Requests>) -> Result<Self, OpenStoreError> {
        let credentials = access.aws.clone().ok_or(OpenStoreError::NoCredentials)?;
        let known = place.region.clone().or_else(|| access.aws_region.clone());
        let region = match (&place.endpoint, known) {
            (_, Some(region)) => region,
            (Some(_), None) => ANY_REGION.to_owned(),
            (None, None) => return Err(OpenStoreError::NoRegion),
        };
        let base = base(place, &region);
        let signer = Signer::Aws { credentials, region: region.clone(), payload: place.signed_payload };
        let wire = Arc::new(Wire::new(signer, idle, Arc::clone(requests)).map_err(|source| OpenStoreError::Client { problem: source.to_string() })?);
        let store = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_region(region)
            .with_endpoint(&base)
            .with_virtual_hosted_style_request(true)
            .with_allow_http(true)
            .with_config(AmazonS3ConfigKey::SkipSignature, "true")
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
            .with_client_options(ClientOptions::new().with_allow_http(true))
            .with_http_connector(Reader(Arc::clone(&wire)))
            .build()
            .map_err(|error| OpenStoreError::Client { problem: super::wire::describe(&error) })?;
        Ok(Self {
            line: Line::new(wire, store),
            base,
            checksum: AtomicBool::new(place.checksum),
            says_checksum: AtomicBool::new(true),
            metadata: place.metadata,
        })
    }

    fn has_checksum(&self) -> bool {
        self.checksum.load(Ordering::Relaxed)
    }

    /// What verifies the bytes as they arrive: SHA-256, which signs them as well, or MD5 where the store does not know that.
    fn verified(&self, mut request: Request, sha256: Sha256) -> Request {
        request.sha256 = Some(sha256);
        if self.has_checksum() {
            request.header("x-amz-checksum-sha256", base64(&sha256.0))
        } else {
            let md5 = md5_of(&request.body);
            request.header("content-md5", md5)
        }
    }

    fn described(&self, mut request: Request, about: &About) -> Request {
        request = request.header("content-type", "application/octet-stream");
        if let Some(class) = &about.class {
            request = request.header("x-amz-storage-class", class);
        }
        if self.metadata {
            if let Some(mtime_ns) = about.mtime_ns {
                request = request.header("x-amz-meta-mtime", seconds(mtime_ns));
            }
            if let Some(sha256) = about.sha256 {
                request = request.header("x-amz-meta-sha256", sha256.to_string());
            }
            if let Some(part_bytes) = about.part_bytes {
                request = request.header("x-amz-meta-part-bytes", part_bytes.to_string());
            }
        }
        request
    }
}

fn conditional(request: Request, about: &About) -> Request {
    if about.create_only { request.header("if-none-match", "*") } else { request }
}

#[async_trait]
impl Provider for S3 {
    fn line(&self) -> &Line {
        &self.line
    }

    fn streaming(&self) -> Streaming {
        Streaming::Parts
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{}", self.base, encoded(path))
    }

    /// HEAD says the checksum only if it is asked for; some (Backblaze B2) refuse to be asked, and cannot say so, as there is no body.
    async fn ask_head(&self, path: &str) -> Result<Answer, Fault> {
        let request = || Request::new(Method::HEAD, self.url(path));
        if !self.has_checksum() || !self.says_checksum.load(Ordering::Relaxed) {
            return self.send(request(), "look at", path).await;
        }
        let refused = |answer: &Answer| matches!(answer.status, StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED);
        let answer = self.send(request().header("x-amz-checksum-mode", "ENABLED"), "look at", path).await?;
        if !refused(&answer) {
            return Ok(answer);
        }
        let plain = self.send(request(), "look at", path).await?;
        if !refused(&plain) {
            self.says_checksum.store(false, Ordering::Relaxed);
        }
        Ok(plain)
    }

    fn without_checksums(&self) -> bool {
        self.checksum.swap(false, Ordering::Relaxed)
    }

    async fn put(&self, path: &str, content: &Bytes, about: &About) -> Result<Put, Fault> {
        let sha256 = about.sha256.unwrap_or_else(|| Sha256::of(content));
        let mut request = Request::new(Method::PUT, self.url(path)).body(vec![content.clone()]);
        request.in_lane = about.in_lane;
        let request = conditional(self.described(self.verified(request, sha256), about), about);
        let answer = self.send(request, "store", path).await?;
        created(self, &answer, "store", path)
    }

    /// <https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html>: the checksum of what came in parts ends in `-` and their number.
    fn seen(&self, answer: &Answer) -> Option<Checksum> {
        let part_bytes = answer.header("x-amz-meta-part-bytes").and_then(|text| text.parse().ok());
        match answer.header("x-amz-checksum-sha256").map(|text| (text, text.split_once('-'))) {
            Some((_, Some((whole, _)))) => {
                if let (Some(sha256), Some(part_bytes)) = (from_base64(whole), part_bytes) {
                    return Some(Checksum::Sha256OfParts { sha256: Sha256(sha256), part_bytes });
                }
            }
            Some((whole, None)) => {
                if answer.header("x-amz-checksum-type") != Some("COMPOSITE")
                    && let Some(sha256) = from_base64(whole)
                {
                    return Some(Checksum::Sha256(Sha256(sha256)));
                }
            }
            None => {}
        }
        let etag = answer.header("etag")?.trim_start_matches("W/").trim_matches('"');
        Some(Checksum::PerhapsMd5(hex::decode(etag).ok()?.try_into().ok()?))
    }

    async fn begin_parts(&self, path: &str, about: &About) -> Result<String, Fault> {
        #[derive(Deserialize)]
        struct Begun {
            #[serde(rename = "UploadId")]
            upload_id: String,
        }
        let request = self.described(Request::new(Method::POST, format!("{}?uploads=", self.url(path))), about);
        let request = if self.has_checksum() { request.header("x-amz-checksum-algorithm", "SHA256") } else { request };
        let answer = self.send(request, "begin to store", path).await?;
        if !answer.is_success() {
            return Err(answer.fault("begin to store", path));
        }
        let begun: Begun = quick_xml::de::from_reader(answer.body.as_ref()).map_err(|error| Fault::Passing {
            problem: format!("the store's answer cannot be understood: {error}"),
            wait: None,
            perhaps_done: false,
        })?;
        Ok(begun.upload_id)
    }

    async fn put_part(&self, path: &str, id: &str, number: usize, content: &[Bytes], sha256: Sha256) -> Result<Part, Fault> {
        let url = format!("{}?partNumber={number}&uploadId={}", self.url(path), query(id));
        let mut request = self.verified(Request::new(Method::PUT, url).body(content.to_vec()), sha256);
        request.in_lane = true;
        let answer = self.send(request, "store a part of", path).await?;
        match answer.header("etag") {
            Some(tag) if answer.is_success() => Ok(Part { number, sha256, tag: tag.to_owned() }),
            _ => Err(answer.fault("store a part of", path)),
        }
    }

    async fn complete(&self, path: &str, id: &str, parts: &[Part], about: &About) -> Result<Put, Fault> {
        let mut body = String::from("<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">");
        for part in parts {
            let tag = quick_xml::escape::escape(&part.tag);
            body.push_str(&format!("<Part><PartNumber>{}</PartNumber><ETag>{tag}</ETag>", part.number));
            if self.has_checksum() {
                body.push_str(&format!("<ChecksumSHA256>{}</ChecksumSHA256>", base64(&part.sha256.0)));
            }
            body.push_str("</Part>");
        }
        body.push_str("</CompleteMultipartUpload>");
        let body = Bytes::from(body);
        let mut request = Request::new(Method::POST, format!("{}?uploadId={}", self.url(path), query(id))).header("content-type", "application/xml");
        request.sha256 = Some(Sha256::of(&body));
        request.long = true;
        let answer = self.send(conditional(request.body(vec![body]), about), "complete", path).await?;
        created(self, &answer, "complete", path)
    }

    async fn abort(&self, path: &str, id: &str) -> Result<(), Fault> {
        let url = format!("{}?uploadId={}", self.url(path), query(id));
        let answer = self.send(Request::new(Method::DELETE, url), "end the upload of", path).await?;
        if answer.is_success() { Ok(()) } else { Err(answer.fault("end the upload of", path)) }
    }

    /// With a condition that nothing meets, no mark is left behind in a bucket that keeps versions.
    /// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html>
    async fn try_delete(&self, path: &str) -> Result<(), Fault> {
        let request = Request::new(Method::DELETE, self.url(path)).header("if-match", "\"00000000000000000000000000000000\"");
        let answer = self.send(request, "delete", path).await?;
        if answer.is_success() || matches!(answer.status.as_u16(), 404 | 412) { Ok(()) } else { Err(answer.fault("delete", path)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::place::Place;

    #[test]
    fn a_bucket_is_where_its_kind_of_store_has_it() {
        for (url, expected) in [
            ("s3://photos/p", "https://photos.s3.eu-west-1.amazonaws.com"),
            ("s3://my.photos/p", "https://s3.eu-west-1.amazonaws.com/my.photos"),
            ("s3://photos?style=path", "https://s3.eu-west-1.amazonaws.com/photos"),
            ("s3://photos?endpoint=http://nas:9000", "http://nas:9000/photos"),
            ("s3://photos?endpoint=https://s3.example.com&style=virtual", "https://photos.s3.example.com"),
        ] {
            let Place::S3(place) = Place::parse(url).unwrap() else { panic!("not S3") };
            assert_eq!(base(&place, "eu-west-1"), expected);
        }
        let Place::S3(place) = Place::parse("s3://photos").unwrap() else { panic!("not S3") };
        assert_eq!(base(&place, "cn-north-1"), "https://photos.s3.cn-north-1.amazonaws.com.cn");
    }
}
