//! A Compose stack as Immich's own, on a Docker engine of the test's own: four services, made by the real `docker-compose`.
//!
//! What runs in it is not Immich: the database is a real PostgreSQL, the server a stand-in that does with database, markers and files what Immich's server
//! does at its start and answers `/api/server/ping` and `/api/server/version`, the others only are there. The engine has no networks: all services
//! are on the machine's own (`network_mode: host`), each stack with ports of its own.
//!
//! A stack's folder is in the engine's: it goes with it, also when the test is killed.

#![allow(clippy::panic, reason = "for tests: what Docker or Compose refuses is shown")]

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::docker::{Engine, client};
use crate::fixture::{self, Fixture, IMMICH_3};
use crate::postgres::{Administrator, Psql};
use crate::servers::ServerError;
use crate::servers::process::free_ports;

mod file;
mod image;

pub use file::{DATABASE, DATABASE_IMAGE, MACHINE_LEARNING, REDIS, SERVER, SERVER_IMAGE};

/// A loaded machine is slow; one that is not needs a few seconds.
const READY_WITHIN: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a stack is to be.
#[derive(Debug, Clone)]
pub struct StackOptions {
    /// Name of the project.
    pub project: String,
    /// Which Immich it is: [`IMMICH_3`] (media at `/data`) or [`crate::fixture::IMMICH_1`] (at `/usr/src/app/upload`).
    pub fixture: String,
    /// Whether it has what that Immich wrote: media, external library, database. Otherwise its folders are made and empty, and so is its database.
    pub filled: bool,
    /// The services that run when [`Stack::up`] returns, each healthy; the others are made and do not run, none also means: made and nothing more.
    pub running: Vec<String>,
    /// Version of the server's image, e.g. `v3.1.0`; the fixture's if `None`.
    pub version: Option<String>,
    /// `restart` of each of the four.
    pub restart: String,
    /// Whether the four have the `container_name` that Immich gives them; only one such stack fits an engine.
    pub container_names: bool,
    /// How long the server takes to end once it is told to.
    pub stop_seconds: u64,
    /// How long it is given (`stop_grace_period`): ten seconds if `None`, as Compose has it.
    pub stop_grace_seconds: Option<u64>,
    /// Seconds between two writes of the server to an upload that does not end; 0 for a single write.
    pub writes_every_seconds: u64,
    /// Names of folders of the media location that are mounted from elsewhere: `thumbs` from `<stack's folder>/elsewhere/thumbs`.
    pub mounted: Vec<String>,
    /// Whether the server has the external library, read-only, at `/mnt/external`.
    pub external: bool,
    /// Command of the database's healthcheck; the image's (`pg_isready`) if `None`. `NONE` for no healthcheck at all.
    pub database_health: Option<String>,
    /// Further services as YAML, two spaces before each name. `immich-app/sleeper` is an image that is there for them: it sleeps, and ends when told to.
    pub extra_services: String,
}

impl Default for StackOptions {
    /// As Immich's own Compose file has it: filled with what Immich 3.1 wrote, all services up.
    fn default() -> Self {
        Self {
            project: "immich".to_string(),
            fixture: IMMICH_3.to_string(),
            filled: true,
            running: [SERVER, MACHINE_LEARNING, REDIS, DATABASE].map(ToString::to_string).to_vec(),
            version: None,
            restart: "always".to_string(),
            container_names: true,
            stop_seconds: 0,
            stop_grace_seconds: None,
            writes_every_seconds: 1,
            mounted: Vec::new(),
            external: true,
            database_health: None,
            extra_services: String::new(),
        }
    }
}

/// How a service's container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// `created`, `running`, `paused`, `restarting`, `exited`, `dead`.
    pub status: String,
    /// `starting`, `healthy`, `unhealthy`; `None` if nobody asks for its health.
    pub health: Option<String>,
    /// When it was started last, as Docker writes it; another text means: it was started again.
    pub started_at: String,
    /// What it ended with.
    pub exit_code: i32,
}

impl State {
    /// Whether it runs, and nobody doubts its health.
    pub fn is_well(&self) -> bool {
        self.status == "running" && self.health.as_deref().is_none_or(|health| health == "healthy")
    }
}

/// A stack; what the [`Administrator`] of its database may do can be done with it. Its containers are removed when it is dropped, and its folder.
pub struct Stack<'a> {
    engine: &'a Engine,
    folder: PathBuf,
    options: StackOptions,
    media_location: String,
    ports: Ports,
    administrator: Administrator,
}

/// Where a stack's services listen, on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
struct Ports {
    server: u16,
    database: u16,
}

impl<'a> Stack<'a> {
    /// Makes a stack, fills it and starts what is to run. `None` where fixtures are not there and that was said to be meant.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or does not become ready.
    pub fn up(engine: &'a Engine, options: StackOptions) -> Result<Option<Self>, ServerError> {
        let Some(fixture) = Fixture::open(&options.fixture) else { return Ok(None) };
        let version = options.version.clone().unwrap_or_else(|| format!("v{}", fixture.expected.version.trim_start_matches('v')));
        image::load(engine, &version)?;
        let folder = (0_u32..).map(|number| engine.folder().join(format!("stack-{number}"))).find(|path| !path.exists());
        let folder = folder.ok_or_else(|| cannot_make("a folder", "there is no number left"))?;
        fs::create_dir(&folder).map_err(|error| cannot_make("a folder", &error.to_string()))?;
        let ports = free_ports(2).map_err(|error| cannot_make("ports", &error.to_string()))?;
        let ports = Ports { server: ports.first().copied().unwrap_or_default(), database: ports.get(1).copied().unwrap_or_default() };
        let media_location = match options.fixture.as_str() {
            IMMICH_3 => "/data",
            _ => "/usr/src/app/upload",
        };
        let container = if options.container_names { "immich_postgres".to_string() } else { format!("{}_{DATABASE}_1", options.project) };
        let mut inside = client(engine.socket()).to_vec();
        inside.extend(["exec", "--interactive", &container, "psql", "--username", Self::USER].map(ToString::to_string));
        let administrator = Administrator::new(Psql::through(inside));
        let stack = Self { engine, folder, media_location: media_location.to_string(), options, ports, administrator };
        stack.write(&fixture, &version).map_err(|error| cannot_make("its files", &error.to_string()))?;
        stack.start(&fixture)?;
        Ok(Some(stack))
    }

    /// The database's administrator: `DB_USERNAME`.
    pub const USER: &'static str = "postgres";
    /// `DB_DATABASE_NAME`.
    pub const DATABASE_NAME: &'static str = "immich";
    /// `DB_PASSWORD`: a word that is nowhere else, so that a test can look whether it was told to somebody.
    pub const PASSWORD: &'static str = "Tr0ub4dorOfTheStack";

    /// Name of the project.
    pub fn project(&self) -> &str {
        &self.options.project
    }

    /// Folder of `docker-compose.yml` and `.env`.
    pub fn folder(&self) -> PathBuf {
        self.folder.join("immich-app")
    }

    /// `UPLOAD_LOCATION`: the media location on the host.
    pub fn media(&self) -> PathBuf {
        self.folder().join("library")
    }

    /// Where the server has the media location.
    pub fn media_location(&self) -> &str {
        &self.media_location
    }

    /// Where a folder of the media location lies that is mounted from elsewhere.
    pub fn elsewhere(&self, name: &str) -> PathBuf {
        self.folder.join("elsewhere").join(name)
    }

    /// The external library on the host, `/mnt/external` on the server.
    pub fn external(&self) -> PathBuf {
        self.folder.join("photos")
    }

    /// `DB_DATA_LOCATION`.
    pub fn postgres_folder(&self) -> PathBuf {
        self.folder().join("postgres")
    }

    /// Where the server is asked: `http://127.0.0.1:<port>`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.server)
    }

    /// Address of the database over the network, with name and password.
    pub fn database_url(&self) -> String {
        format!("postgresql://{}:{}@127.0.0.1:{}/{}", Self::USER, Self::PASSWORD, self.ports.database, Self::DATABASE_NAME)
    }

    /// The variables of `.env`.
    ///
    /// # Panics
    ///
    /// If it cannot be read.
    pub fn env(&self) -> BTreeMap<String, String> {
        let path = self.folder().join(".env");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read `{}`: {error}", path.display()));
        let variable = |line: &str| line.split_once('=').map(|(name, value)| (name.to_string(), value.to_string()));
        text.lines().filter(|line| !line.starts_with('#')).filter_map(variable).collect()
    }

    /// What `docker-compose` prints for these arguments, run in the project's folder.
    ///
    /// # Panics
    ///
    /// If it fails.
    #[track_caller]
    pub fn compose(&self, arguments: &[&str]) -> String {
        self.try_compose(arguments).unwrap_or_else(|said| panic!("{said}"))
    }

    /// What `docker-compose` prints for these arguments, or what it says against them.
    ///
    /// # Errors
    ///
    /// If it fails.
    pub fn try_compose(&self, arguments: &[&str]) -> Result<String, String> {
        compose(self.engine, &self.folder(), arguments)
    }

    /// How the container of each service is, by the service's name. Services without a container are left out, and so are one-off containers.
    ///
    /// # Panics
    ///
    /// If Docker does not tell.
    #[track_caller]
    pub fn states(&self) -> BTreeMap<String, State> {
        states(self.engine, self.project())
    }

    /// How a service's container is.
    ///
    /// # Panics
    ///
    /// If it has none, or Docker does not tell.
    #[track_caller]
    pub fn state(&self, service: &str) -> State {
        self.states().remove(service).unwrap_or_else(|| panic!("the service `{service}` has no container"))
    }

    /// Names of the services that run, sorted.
    ///
    /// # Panics
    ///
    /// If Docker does not tell.
    #[track_caller]
    pub fn running(&self) -> Vec<String> {
        self.states().into_iter().filter(|(_, state)| state.status == "running").map(|(service, _)| service).collect()
    }

    /// Id of a service's container.
    ///
    /// # Panics
    ///
    /// If it has none.
    #[track_caller]
    pub fn container(&self, service: &str) -> String {
        let project = format!("label=com.docker.compose.project={}", self.project());
        let id = self.engine.docker(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &format!("label=com.docker.compose.service={service}")]);
        assert!(!id.is_empty(), "the service `{service}` has no container");
        id
    }

    /// What a service's container has printed so far.
    pub fn log(&self, service: &str) -> String {
        let [program, before @ ..] = client(self.engine.socket());
        let output = Command::new(program).args(before).args(["logs", &self.container(service)]).stdin(Stdio::null()).output();
        output.map(|output| [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat()).unwrap_or_default()
    }

    /// Returns when each of these services runs and is healthy.
    ///
    /// # Errors
    ///
    /// If that does not happen within two minutes; what the services printed is told.
    pub fn wait_until_well(&self, services: &[&str]) -> Result<(), ServerError> {
        let began = Instant::now();
        loop {
            let states = self.states();
            let Some(ill) = services.iter().find(|service| !states.get(**service).is_some_and(State::is_well)) else { return Ok(()) };
            if began.elapsed() > READY_WITHIN {
                let what = format!("of a stack is not well after {READY_WITHIN:?}: {:?}", states.get(*ill));
                return Err(ServerError::NotReady { program: (*ill).to_string(), what, last_words: self.log(ill) });
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn write(&self, fixture: &Fixture, version: &str) -> io::Result<()> {
        let folder = self.folder();
        fs::create_dir(&folder)?;
        fs::write(folder.join("docker-compose.yml"), file::compose(&self.options, &self.media_location, version))?;
        fs::write(folder.join(".env"), file::environment(&self.options, self.ports, version))?;
        for name in ["elsewhere", "photos"] {
            fs::create_dir(self.folder.join(name))?;
        }
        if self.options.filled {
            fixture::copy(&fixture.media(), &self.media())?;
            fs::remove_dir(self.external())?;
            fixture::copy(fixture.external(), &self.external())?;
        } else {
            fs::create_dir(self.media())?;
        }
        for name in &self.options.mounted {
            let (inside, outside) = (self.media().join(name), self.elsewhere(name));
            if inside.exists() {
                fs::rename(&inside, &outside)?
            } else {
                fs::create_dir(&outside)?
            }
            // What Docker would make to mount on.
            fs::create_dir(&inside)?;
        }
        fs::create_dir(self.postgres_folder())
    }

    fn start(&self, fixture: &Fixture) -> Result<(), ServerError> {
        let refused = |said: String| cannot_make("it", &said);
        self.try_compose(&["up", "--no-start"]).map_err(refused)?;
        if self.options.filled {
            self.try_compose(&["up", "--detach", "--no-deps", DATABASE]).map_err(refused)?;
            self.wait_until_database_answers()?;
            self.administrator.load(Self::DATABASE_NAME, fixture.dump());
            if !self.options.running.iter().any(|service| service == DATABASE) {
                self.try_compose(&["stop", DATABASE]).map_err(refused)?;
            }
        }
        let running: Vec<&str> = self.options.running.iter().map(String::as_str).collect();
        if running.is_empty() {
            return Ok(());
        }
        self.try_compose(&[["up", "--detach", "--no-deps"].as_slice(), &running].concat()).map_err(refused)?;
        if self.options.database_health.is_some() && running.contains(&DATABASE) {
            self.wait_until_database_answers()?;
        }
        let healthy: Vec<&str> = running.into_iter().filter(|service| *service != DATABASE || self.options.database_health.is_none()).collect();
        self.wait_until_well(&healthy)
    }

    /// Returns when the database answers, whatever its healthcheck says.
    ///
    /// # Errors
    ///
    /// If it does not within two minutes.
    pub fn wait_until_database_answers(&self) -> Result<(), ServerError> {
        let began = Instant::now();
        loop {
            match self.administrator.try_psql(Self::DATABASE_NAME, "SELECT 1") {
                Ok(_) => return Ok(()),
                Err(said) if began.elapsed() > READY_WITHIN => {
                    let what = format!("of a stack does not answer after {READY_WITHIN:?} ({said})");
                    return Err(ServerError::NotReady { program: DATABASE.to_string(), what, last_words: self.log(DATABASE) });
                }
                Err(_) => thread::sleep(LOOK_EVERY),
            }
        }
    }
}

/// How the container of each service of a project is, by the service's name; one-off containers are left out.
///
/// # Panics
///
/// If Docker does not tell.
#[track_caller]
pub fn states(engine: &Engine, project: &str) -> BTreeMap<String, State> {
    let filters = [format!("label=com.docker.compose.project={project}"), "label=com.docker.compose.oneoff=False".to_string()];
    let found = engine.docker(&["ps", "--all", "--quiet", "--filter", &filters[0], "--filter", &filters[1]]);
    let ids: Vec<&str> = found.lines().collect();
    if ids.is_empty() {
        return BTreeMap::new();
    }
    let format = "{{index .Config.Labels \"com.docker.compose.service\"}}\t{{.State.Status}}\t{{with .State.Health}}{{.Status}}{{end}}\t\
                  {{.State.StartedAt}}\t{{.State.ExitCode}}";
    let told = engine.docker(&[["inspect", "--format", format].as_slice(), &ids].concat());
    let state = |line: &str| {
        let mut fields = line.split('\t').map(ToString::to_string);
        let mut next = || fields.next().unwrap_or_default();
        let (service, status, health, started_at, exit_code) = (next(), next(), next(), next(), next());
        // `none` is what Docker says where an image's healthcheck was switched off.
        let health = Some(health).filter(|health| !health.is_empty() && health != "none");
        (service, State { status, health, started_at, exit_code: exit_code.parse().unwrap_or_default() })
    };
    told.lines().map(state).collect()
}

/// What the real `docker-compose` prints for these arguments, run in `folder`, or what it says against them.
///
/// # Errors
///
/// If it fails, or is not installed.
pub fn compose(engine: &Engine, folder: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new("docker-compose");
    command.args(["--no-ansi"]).args(arguments).current_dir(folder).stdin(Stdio::null());
    // Nothing of the user's own settings.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ["COMPOSE_", "DOCKER_", "DB_", "IMMICH_"].iter().any(|prefix| name.starts_with(prefix))) {
            command.env_remove(name);
        }
    }
    command.env("DOCKER_HOST", engine.host()).env("DOCKER_CONFIG", engine.folder().join("client")).env("COMPOSE_INTERACTIVE_NO_CLI", "1");
    let Output { status, stdout, stderr } = command.output().map_err(|error| format!("cannot start `docker-compose`: {error}; `scripts/test` installs it"))?;
    if !status.success() {
        return Err(format!("`docker-compose {}` ended with {status}: {}", arguments.join(" "), String::from_utf8_lossy(&stderr)));
    }
    Ok(String::from_utf8_lossy(&stdout).trim_end_matches('\n').to_string())
}

fn cannot_make(what: &str, said: &str) -> ServerError {
    ServerError::Start { program: format!("a stack ({what})"), cause: io::Error::other(said.to_string()) }
}

impl Deref for Stack<'_> {
    type Target = Administrator;

    fn deref(&self) -> &Administrator {
        &self.administrator
    }
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        // The engine ends soon anyway: what cannot be removed goes with it, or with the next one. By label: a test may have changed the Compose file.
        let project = format!("label=com.docker.compose.project={}", self.project());
        if let Ok(found) = self.engine.try_docker(&["ps", "--all", "--quiet", "--filter", &project]) {
            let ids: Vec<&str> = found.lines().collect();
            if !ids.is_empty() {
                self.engine.try_docker(&[["rm", "--force", "--volumes"].as_slice(), &ids].concat()).ok();
            }
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}
