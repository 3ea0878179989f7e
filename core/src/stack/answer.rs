//! Whether Immich's server answers, and where it can be asked.
//!
//! Facts: Immich's API reference (`GET /api/server/ping` answers `{"res":"pong"}` and takes no key), its documentation of `IMMICH_PORT`.

use super::own::Here;
use super::project::Container;
use serde::Deserialize;
use std::time::Duration;

/// How long one question may take.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// The answer is far smaller than this.
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// The server's port if nothing says otherwise.
const PORT: u16 = 2283;

#[derive(Deserialize)]
struct Pong {
    res: String,
}

/// Where the server in this container may be asked, the likeliest first: by the port that its host publishes, by the host's own network, by its address in
/// a network of the engine. `engine` is the engine's address. Empty where it has neither.
#[must_use]
pub fn addresses(server: &Container, here: &Here, engine: &str) -> Vec<String> {
    let port = server.environment.get("IMMICH_PORT").and_then(|port| port.parse().ok()).unwrap_or(PORT);
    let host = engine_host(engine);
    let on_host = matches!(here, Here::Host);
    let mut found = Vec::new();
    let mut add = |host: &str, port: u16| {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let url = format!("http://{host}:{port}");
        if !found.contains(&url) {
            found.push(url);
        }
    };
    // In a container of its own, this program has another 127.0.0.1 than the host.
    if on_host {
        for published in server.ports.iter().filter(|published| published.inside == port) {
            add(published.address.as_deref().unwrap_or(host), published.host);
        }
        if server.network_mode == "host" {
            add(host, port);
        }
    } else {
        // Those that are names: the engine's own resolver knows them in a network that both are in.
        add(&server.name, port);
    }
    for address in &server.addresses {
        add(address, port);
    }
    found
}

/// The machine that the engine runs on.
fn engine_host(engine: &str) -> &str {
    let remote = engine.strip_prefix("tcp://").or_else(|| engine.strip_prefix("http://"));
    let host = remote.map(|rest| rest.split('/').next().unwrap_or_default()).and_then(|rest| rest.rsplit_once(':')).map(|(host, _)| host);
    host.map(|host| host.trim_matches(['[', ']'])).filter(|host| !host.is_empty()).unwrap_or("127.0.0.1")
}

/// Whether the server at `base` answers as Immich's does; what it does instead, if not.
///
/// # Errors
/// In words, without a password that the address may have.
pub async fn ping(base: &str) -> Result<(), String> {
    let mut url = url::Url::parse(base).map_err(|error| error.to_string())?;
    let path = url.path().trim_end_matches('/').trim_end_matches("/api").to_owned();
    url.set_path(&format!("{path}/api/server/ping"));
    url.set_query(None);
    // Not through a proxy: the server is on this machine, or beside it.
    let client = reqwest::Client::builder().timeout(ANSWER_WAIT).no_proxy().build().map_err(|error| error.to_string())?;
    let failed = |error: reqwest::Error| told(&error.without_url());
    let mut response = client.get(url).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(format!("it answers with status {}", response.status().as_u16()));
    }
    let mut answer = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        answer.extend_from_slice(&piece);
        if answer.len() > ANSWER_BYTES_MAX {
            return Err("it answers too much".to_owned());
        }
    }
    match serde_json::from_slice::<Pong>(&answer) {
        Ok(Pong { res }) if res == "pong" => Ok(()),
        _ => Err("it answers something else than Immich".to_owned()),
    }
}

fn told(error: &reqwest::Error) -> String {
    // The innermost cause says it: "connection refused".
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::project::Container;
    use bollard::models::ContainerInspectResponse;
    use serde_json::json;

    fn server(more: serde_json::Value) -> Container {
        let mut found = json!({ "Id": "1", "Name": "/immich_server", "State": { "Status": "running" } });
        found.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<ContainerInspectResponse>(found).unwrap().into()
    }

    #[test]
    fn the_server_is_asked_at_its_published_port_then_at_its_own_address() {
        let recorded: Vec<ContainerInspectResponse> = serde_json::from_str(include_str!("../../../app/tests/recorded/compose-2.json")).unwrap();
        let recorded: Vec<Container> = recorded.into_iter().map(Container::from).collect();
        let server = recorded.iter().find(|container| container.name == "immich_server").unwrap();
        assert_eq!(addresses(server, &Here::Host, "/var/run/docker.sock"), ["http://127.0.0.1:2283", "http://172.18.0.5:2283"]);
        assert_eq!(addresses(server, &Here::Host, "tcp://nas:2375")[0], "http://nas:2283");
        let inside = Here::Container { name: "backup".to_owned(), mounts: Vec::new() };
        assert_eq!(addresses(server, &inside, "/var/run/docker.sock"), ["http://immich_server:2283", "http://172.18.0.5:2283"]);
    }

    #[test]
    fn a_server_on_the_hosts_network_is_asked_at_the_port_that_it_was_given() {
        let told = server(json!({ "Config": { "Env": ["IMMICH_PORT=3001"] }, "HostConfig": { "NetworkMode": "host" } }));
        assert_eq!(addresses(&told, &Here::Host, "unix:///run/docker.sock"), ["http://127.0.0.1:3001"]);
        let bound = server(
            json!({ "NetworkSettings": { "Ports": { "2283/tcp": [{ "HostIp": "::1", "HostPort": "80" }], "9/tcp": [{ "HostIp": "", "HostPort": "9" }] } } }),
        );
        assert_eq!(addresses(&bound, &Here::Host, "/s"), ["http://[::1]:80"]);
        assert_eq!(addresses(&server(json!({})), &Here::Host, "/s"), [""; 0]);
    }

    #[tokio::test]
    async fn only_pong_is_an_answer() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        for (status, body, well) in [("200 OK", r#"{"res":"pong"}"#, true), ("200 OK", "<html>", false), ("502 Bad Gateway", r#"{"res":"pong"}"#, false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/api/", listener.local_addr().unwrap());
            let asked = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4_096];
                let count = stream.read(&mut request).await.unwrap();
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
                String::from_utf8_lossy(&request[..count]).lines().next().unwrap().to_owned()
            });
            assert_eq!(ping(&url).await.is_ok(), well, "{body}");
            assert_eq!(asked.await.unwrap(), "GET /api/server/ping HTTP/1.1");
        }
        assert!(ping("http://me:hunter2@127.0.0.1:1").await.is_err_and(|told| !told.contains("hunter2")));
    }
}
