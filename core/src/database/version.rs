//! Immich's version, from its server.

use serde::Deserialize;
use std::time::Duration;

/// How long the server may take: it answers at once, or not at all.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// The answer is far smaller than this.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Why Immich's server did not tell its version.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// No URL.
    #[error("`{0}` is no URL of a server")]
    Url(String),
    /// It cannot be reached, or breaks off.
    #[error("cannot ask Immich's server for its version")]
    Unreachable(#[source] reqwest::Error),
    /// It answers something else.
    #[error("Immich's server does not tell its version: it answers {0}")]
    Answer(String),
}

/// `GET /api/server/version`, which needs no key (Immich's API reference, `getServerVersion`).
#[derive(Deserialize)]
struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The version of the Immich server at `base`, e.g. `http://immich-server:2283`, as `3.1.0`.
///
/// # Errors
/// It is not reached within 5 s, or is no Immich.
pub async fn of_server(base: &str) -> Result<String, VersionError> {
    let invalid = || VersionError::Url(without_user(base));
    let mut url = url::Url::parse(base).map_err(|_| invalid())?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(invalid());
    }
    let path = url.path().trim_end_matches('/').trim_end_matches("/api").to_owned();
    url.set_path(&format!("{path}/api/server/version"));
    url.set_query(None);
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).build().map_err(VersionError::Unreachable)?;
    // The URL may hold a password for a proxy in front; an error would repeat it.
    let failed = |error: reqwest::Error| VersionError::Unreachable(error.without_url());
    let mut response = client.get(url).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(VersionError::Answer(format!("with status {}", response.status().as_u16())));
    }
    let mut answer = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        answer.extend_from_slice(&piece);
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(VersionError::Answer("too much".to_owned()));
        }
    }
    let version: Version = serde_json::from_slice(&answer).map_err(|_| VersionError::Answer("something else".to_owned()))?;
    Ok(format!("{}.{}.{}", version.major, version.minor, version.patch))
}

/// `text` as far as it can hold no password.
fn without_user(text: &str) -> String {
    text.rsplit('@').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// A server that answers one request with `answer`; its URL, and the request's first line.
    async fn server(answer: Vec<u8>) -> (String, tokio::task::JoinHandle<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4_096];
            let count = stream.read(&mut request).await.unwrap();
            stream.write_all(&answer).await.ok();
            String::from_utf8_lossy(&request[..count]).lines().next().unwrap().to_owned()
        });
        (url, served)
    }

    fn answer(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[tokio::test]
    async fn the_version_is_what_the_server_says() {
        for suffix in ["", "/", "/api", "/api/"] {
            let (url, served) = server(answer("200 OK", r#"{"major":3,"minor":1,"patch":0,"prerelease":null}"#)).await;
            assert_eq!(of_server(&format!("{url}{suffix}")).await.unwrap(), "3.1.0");
            assert_eq!(served.await.unwrap(), "GET /api/server/version HTTP/1.1");
        }
    }

    #[tokio::test]
    async fn another_answer_is_an_error() {
        let huge = " ".repeat(ANSWER_BYTES_MAX + 1);
        for (status, body) in [("404 Not Found", "{}"), ("200 OK", "<html>"), ("200 OK", r#"{"major":"3"}"#), ("200 OK", huge.as_str())] {
            let (url, _served) = server(answer(status, body)).await;
            assert!(matches!(of_server(&url).await, Err(VersionError::Answer(_))), "{status}");
        }
    }

    #[tokio::test]
    async fn an_error_repeats_no_password() {
        for base in ["immich:hunter2@server", "ftp://me:hunter2@server", "http://me:hunter2@127.0.0.1:1"] {
            let error = of_server(base).await.unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
