//! A double of Docker's engine with a Compose project in it: it fails the request it is told to fail. For faults only; all else is tested on a real one.

#![allow(dead_code, reason = "each test program uses its part of this")]

use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::Notify;

/// What becomes of the request that is to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// 500, and nothing is done.
    Refused,
    /// The connection is closed, and nothing is done.
    Closed,
    /// What was asked for is done, and the connection is closed.
    Lost,
    /// What was asked for is done, and nothing is ever said.
    Hangs,
    /// The connection is closed, and what was asked for is done a while later.
    Late,
}

/// How long later.
const LATE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Running,
    Paused,
    Exited,
}

#[derive(Debug, Clone)]
pub struct Container {
    pub service: &'static str,
    pub depends_on: &'static str,
    pub state: State,
    pub health: Option<&'static str>,
    /// Whether it ends when told to.
    pub stops: bool,
    pub stop_ms: u64,
    id: String,
    started: u64,
    /// When it will be down.
    down_at: Option<Instant>,
}

#[derive(Default)]
struct World {
    containers: Vec<Container>,
    requests: usize,
    fault: Option<(usize, Fault)>,
    dies_at: Option<usize>,
    forbidden: Option<String>,
    starts: u64,
    changes: Vec<String>,
    later: usize,
}

pub struct Fake {
    folder: TempDir,
    world: Arc<Mutex<World>>,
    dead: Arc<Notify>,
    over: Arc<AtomicBool>,
}

impl World {
    fn start(&mut self, index: usize) {
        self.starts += 1;
        let started = self.starts;
        let container = &mut self.containers[index];
        if container.state != State::Running {
            (container.state, container.started, container.down_at) = (State::Running, started, None);
            let change = format!("start {}", container.service);
            self.changes.push(change);
        }
    }

    fn stop(&mut self, index: usize) {
        let container = &mut self.containers[index];
        if container.state == State::Running && container.stops {
            container.state = State::Exited;
            let change = format!("stop {}", container.service);
            self.changes.push(change);
        }
    }

    fn inspect(&self, index: usize) -> Value {
        let container = &self.containers[index];
        let (status, running) = match container.state {
            State::Running => ("running", true),
            State::Paused => ("paused", true),
            State::Exited => ("exited", false),
        };
        let health = container.health.filter(|_| running).map(|health| json!({ "Status": health }));
        let check = container.health.map(|_| json!({ "Test": ["CMD", "true"], "Interval": 100_000_000, "Timeout": 100_000_000, "Retries": 1 }));
        json!({
            "Id": container.id,
            "Name": format!("/immich-{}-1", container.service),
            "Image": "sha256:0",
            "State": { "Status": status, "Running": running, "ExitCode": 0, "Health": health, "StartedAt": format!("2026-01-01T00:00:00.{:09}Z", container.started) },
            "Config": { "Image": "an image", "Healthcheck": check, "StopTimeout": 1, "Labels": {
                "com.docker.compose.project": "immich", "com.docker.compose.service": container.service, "com.docker.compose.depends_on": container.depends_on,
                "com.docker.compose.container-number": "1", "com.docker.compose.oneoff": "False",
            } },
            "HostConfig": { "NetworkMode": "none" },
        })
    }
}

enum Answer {
    Say(u16, Value),
    Close,
    Hang,
}

impl Fake {
    /// Immich as its Compose file has it, one service that does not run, and one that is paused.
    pub fn immich() -> Self {
        let container = |service: &'static str, depends_on, state, health| Container {
            service,
            depends_on,
            state,
            health,
            stops: true,
            stop_ms: 0,
            id: format!("{service:0>64}").replace(|c: char| !c.is_ascii_hexdigit(), "a"),
            started: 0,
            down_at: None,
        };
        let mut containers = vec![
            container("database", "", State::Running, Some("healthy")),
            container("redis", "database:service_started:false", State::Running, None),
            container("learning", "database:service_started:false", State::Running, None),
            container("server", "redis:service_started:false,database:service_healthy:false", State::Running, Some("healthy")),
            container("idle", "", State::Exited, None),
            container("frozen", "", State::Paused, None),
        ];
        for (number, container) in containers.iter_mut().enumerate() {
            container.id = format!("{number:0>64x}").replace('0', "b");
        }
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("docker.sock")).unwrap();
        let fake = Self { folder, world: Arc::new(Mutex::new(World { containers, ..World::default() })), dead: Arc::default(), over: Arc::default() };
        let (world, dead, over) = (Arc::clone(&fake.world), Arc::clone(&fake.dead), Arc::clone(&fake.over));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                let (world, dead, over) = (Arc::clone(&world), Arc::clone(&dead), Arc::clone(&over));
                std::thread::spawn(move || drop(serve(stream.unwrap(), &world, &dead, &over)));
            }
        });
        fake
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Requests that came so far.
    pub fn requests(&self) -> usize {
        self.world.lock().unwrap().requests
    }

    /// Fails the request with this number, once.
    pub fn fail(&self, number: usize, fault: Fault) {
        self.world.lock().unwrap().fault = Some((number, fault));
    }

    /// Ends once the request with this number has come, which is done late and answered never.
    pub async fn dies_at(&self, number: usize) {
        self.world.lock().unwrap().dies_at = Some(number);
        self.dead.notified().await;
    }

    /// Answers 403 to every path that ends so.
    pub fn forbid(&self, end: &str) {
        self.world.lock().unwrap().forbidden = Some(end.to_owned());
    }

    /// State of each container, by name.
    pub fn states(&self) -> BTreeMap<String, State> {
        self.world.lock().unwrap().containers.iter().map(|container| (format!("immich-{}-1", container.service), container.state)).collect()
    }

    pub fn running(&self) -> Vec<&'static str> {
        self.world.lock().unwrap().containers.iter().filter(|container| container.state == State::Running).map(|container| container.service).collect()
    }

    /// What was stopped and started, in order.
    pub fn changes(&self) -> Vec<String> {
        self.world.lock().unwrap().changes.clone()
    }

    pub fn change(&self, service: &str, how: impl FnOnce(&mut Container)) {
        how(self.world.lock().unwrap().containers.iter_mut().find(|container| container.service == service).unwrap());
    }

    fn index(&self, service: &str) -> usize {
        self.world.lock().unwrap().containers.iter().position(|container| container.service == service).unwrap()
    }

    /// As somebody else does it.
    pub fn start(&self, service: &str) {
        let index = self.index(service);
        self.world.lock().unwrap().start(index);
    }

    pub fn stop(&self, service: &str) {
        let index = self.index(service);
        self.world.lock().unwrap().stop(index);
    }

    /// Makes the container of a service anew, and does not start it.
    pub fn replace(&self, service: &str) {
        self.change(service, |container| {
            container.id = container.id.replace('b', "c");
            container.state = State::Exited;
            container.started = 0;
        });
    }

    /// Returns when nothing is on its way any more.
    pub async fn settle(&self) {
        while self.world.lock().unwrap().later > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Whoever waits for the next connection gets one and ends.
        drop(UnixStream::connect(self.socket()));
    }
}

fn serve(stream: UnixStream, world: &Arc<Mutex<World>>, dead: &Notify, over: &AtomicBool) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        if over.load(Ordering::SeqCst) {
            return Ok(());
        }
        match answer(&method, &target, world, dead) {
            Answer::Close => return Ok(()),
            Answer::Hang => {
                // Until the other side goes.
                drop(reader.read_line(&mut String::new()));
                return Ok(());
            }
            Answer::Say(status, value) => {
                let text = if value.is_null() { String::new() } else { value.to_string() };
                write!(stream, "HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
            }
        }
    }
}

fn answer(method: &str, target: &str, world: &Arc<Mutex<World>>, dead: &Notify) -> Answer {
    let path = target.split('?').next().unwrap_or_default();
    let path = path.strip_prefix("/v1").and_then(|rest| rest.find('/').map(|slash| &rest[slash..])).filter(|_| path.starts_with("/v1.")).unwrap_or(path);
    let path = path.to_owned();
    let (fault, dies, stop_ms) = {
        let mut world = world.lock().unwrap();
        let number = world.requests;
        world.requests += 1;
        if world.forbidden.as_ref().is_some_and(|end| path.ends_with(end.as_str())) {
            return Answer::Say(403, json!({ "message": "forbidden by a proxy" }));
        }
        let fault = world.fault.filter(|(at, _)| *at == number).map(|(_, fault)| fault);
        let dies = world.dies_at.is_some_and(|at| number >= at);
        let id = path.trim_start_matches("/containers/").split('/').next().unwrap_or_default();
        let stop_ms = world.containers.iter().find(|container| container.id == id).filter(|_| path.ends_with("/stop")).map_or(0, |container| container.stop_ms);
        (fault, dies, stop_ms)
    };
    let method = method.to_owned();
    let later = |wait: Duration| {
        world.lock().unwrap().later += 1;
        let (world, method, path) = (Arc::clone(world), method.clone(), path.clone());
        std::thread::spawn(move || {
            std::thread::sleep(wait);
            let mut world = world.lock().unwrap();
            act(&method, &path, &mut world);
            world.later -= 1;
        });
    };
    if dies {
        let mut at = world.lock().unwrap();
        at.dies_at = None;
        drop(at);
        later(LATE);
        dead.notify_one();
        return Answer::Hang;
    }
    match fault {
        Some(Fault::Refused) => return Answer::Say(500, json!({ "message": "the engine is not itself" })),
        Some(Fault::Closed) => return Answer::Close,
        Some(Fault::Late) => {
            later(LATE);
            return Answer::Close;
        }
        _ => {}
    }
    if stop_ms > 0 {
        // As a real one: it goes on also when nobody waits for the answer.
        later(Duration::from_millis(stop_ms));
        std::thread::sleep(Duration::from_millis(stop_ms + 20));
        return Answer::Say(204, Value::Null);
    }
    let (status, value) = act(&method, &path, &mut world.lock().unwrap());
    match fault {
        Some(Fault::Lost) => Answer::Close,
        Some(Fault::Hangs) => Answer::Hang,
        _ => Answer::Say(status, value),
    }
}

/// What the engine does, and says.
fn act(method: &str, path: &str, world: &mut World) -> (u16, Value) {
    let unknown = (404, json!({ "message": "no such container" }));
    match (method, path) {
        ("GET", "/version") => (200, json!({ "ApiVersion": "1.41", "Version": "20.10" })),
        ("GET", "/containers/json") => (200, world.containers.iter().map(|container| json!({ "Id": container.id })).collect()),
        _ => {
            let mut parts = path.trim_start_matches("/containers/").split('/');
            let (id, action) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let Some(index) = world.containers.iter().position(|container| container.id == id) else { return unknown };
            match (method, action) {
                ("GET", "json") => (200, world.inspect(index)),
                ("POST", "stop") => {
                    world.stop(index);
                    (204, Value::Null)
                }
                ("POST", "start") => {
                    world.start(index);
                    (204, Value::Null)
                }
                ("POST", "exec") => (409, json!({ "message": "no programs here" })),
                _ => unknown,
            }
        }
    }
}
