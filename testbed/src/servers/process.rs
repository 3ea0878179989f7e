//! A server's process: started on free ports, watched until it is ready, killed with all it started.

use std::fmt::Debug;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use super::{ServerError, WireError, tool};

/// Below the ports that Linux hands out for outgoing connections, which a busy machine could take between the choice and the start.
const PORTS: std::ops::Range<u16> = 10_240..32_768;
/// Somebody else may take a port between its choice and the server's start.
const ATTEMPTS: usize = 3;
/// A loaded machine is slow; one that is not needs a second or two.
const READY_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
const END_LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a server that ends in its own way may take.
const ENDED_WITHIN: Duration = Duration::from_secs(30);
const LAST_WORDS_BYTES: i64 = 4_096;
/// File of a server's output, in its folder.
const OUTPUT: &str = "output.log";

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// The thread that starts all servers and never ends: the kernel kills them when the *thread* that started them dies, and threads of a test end before their test.
static STARTER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (orders, received) = mpsc::channel::<Order>();
    thread::spawn(move || {
        for (mut command, answer) in received {
            // Nobody waits for it any more: then the child must not be left.
            if let Err(mpsc::SendError(Ok(mut child))) = answer.send(command.spawn()) {
                child.kill().and_then(|()| child.wait()).ok();
            }
        }
    });
    orders
});

/// A running server and its folder.
pub(crate) struct Process {
    child: Child,
    end: End,
    stopped: bool,
    folder: TempDir,
}

/// What ends a server: when it is dropped, and, by the kernel, when its test is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGKILL, for it and all it started.
    Kill,
    /// SIGQUIT, and time to end what it started.
    Quit,
    /// SIGTERM for it and its group, and time to end; but SIGKILL when its test is killed.
    Terminate,
}

impl End {
    /// What the kernel sends when the test is killed, as `setpriv` names it.
    fn without_test(self) -> &'static str {
        match self {
            Self::Kill | Self::Terminate => "KILL",
            Self::Quit => "QUIT",
        }
    }
}

/// How a server is started and ended.
pub(crate) struct Launch {
    /// Name for people.
    pub name: String,
    /// Its program, arguments and environment.
    pub command: Command,
    /// Arguments of `setpriv`, e.g. who it runs as.
    pub privileges: Vec<String>,
    /// What ends it.
    pub end: End,
    /// Where it runs, and what is removed after it.
    pub folder: TempDir,
}

impl Process {
    /// Starts `name` with what `arguments` makes of a folder and of `ports` free ports, and returns it with what `ready` makes of these ports,
    /// once that succeeds.
    pub(super) fn start<T>(
        name: &str,
        ports: usize,
        arguments: impl Fn(&Path, &[u16]) -> io::Result<Command>,
        ready: impl Fn(&[u16]) -> Result<T, WireError>,
    ) -> Result<(Self, T), ServerError> {
        let program = tool(name)?;
        on_free_ports(ports, |free| {
            let cannot_start = |cause| ServerError::Start { program: name.to_string(), cause };
            let folder = folder().map_err(cannot_start)?;
            let wanted = arguments(folder.path(), free).map_err(cannot_start)?;
            let mut command = Command::new(&program);
            command.args(wanted.get_args());
            for (key, value) in wanted.get_envs() {
                match value {
                    Some(value) => command.env(key, value),
                    None => command.env_remove(key),
                };
            }
            let launch = Launch { name: name.to_string(), command, privileges: Vec::new(), end: End::Kill, folder };
            Self::launch(launch, || ready(free))
        })
    }

    /// Starts a server and returns it with what `ready` returns, once that succeeds.
    pub(crate) fn launch<T, E: Debug>(launch: Launch, ready: impl Fn() -> Result<T, E>) -> Result<(Self, T), ServerError> {
        let Launch { name, command: wanted, privileges, end, folder } = launch;
        let cannot_start = |cause| ServerError::Start { program: name.clone(), cause };
        let output = File::create(folder.path().join(OUTPUT)).map_err(cannot_start)?;
        let mut command = Command::new("setpriv");
        // A test that is killed cannot stop anything; the kernel does.
        command.args(["--pdeathsig", end.without_test()]).args(privileges).arg("--").arg(wanted.get_program()).args(wanted.get_args());
        for (key, value) in wanted.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        command.current_dir(folder.path()).stdin(Stdio::null()).process_group(0);
        command.stdout(output.try_clone().map_err(cannot_start)?).stderr(output);
        let mut process = Self { child: spawn(command).map_err(cannot_start)?, end, stopped: false, folder };
        match process.wait_until(ready) {
            Ok(value) => Ok((process, value)),
            Err(what) => Err(ServerError::NotReady { program: name, what, last_words: process.last_words() }),
        }
    }

    /// Where the server keeps its data.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it, as dropping it does; its folder stays.
    pub(crate) fn stop(&mut self) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        let Some(id) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return };
        let told = matches!(self.child.try_wait(), Ok(None))
            && match self.end {
                End::Kill => false,
                End::Quit => kill_process(id, Signal::QUIT).is_ok(),
                End::Terminate => kill_process_group(id, Signal::TERM).is_ok(),
            };
        if told && self.ends() {
            return;
        }
        // The group, not the process: some servers start others. It is this process's as long as nobody has waited for its first.
        kill_process_group(id, Signal::KILL).ok();
        self.child.wait().ok();
    }

    /// Whether it ends in time.
    fn ends(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < ENDED_WITHIN {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return true;
            }
            thread::sleep(END_LOOK_EVERY);
        }
        false
    }

    fn wait_until<T, E: Debug>(&mut self, ready: impl Fn() -> Result<T, E>) -> Result<T, String> {
        let began = Instant::now();
        loop {
            match ready() {
                Ok(value) => return Ok(value),
                Err(error) if began.elapsed() > READY_WITHIN => return Err(format!("is not ready after {READY_WITHIN:?} ({error:?})")),
                Err(_) => {}
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("ended with {status}"));
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn last_words(&self) -> String {
        self.read_output(SeekFrom::End(-LAST_WORDS_BYTES))
    }

    /// All that it has printed.
    pub(crate) fn output(&self) -> String {
        self.read_output(SeekFrom::Start(0))
    }

    fn read_output(&self, from: SeekFrom) -> String {
        let read = || {
            let mut output = File::open(self.folder().join(OUTPUT))?;
            if output.seek(from).is_err() {
                output.rewind()?;
            }
            let mut words = Vec::new();
            output.read_to_end(&mut words)?;
            io::Result::Ok(String::from_utf8_lossy(&words).into_owned())
        };
        read().unwrap_or_else(|error| format!("(cannot be read: {error})"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `start` with `count` free ports, and with others if the server then does not become ready.
pub(crate) fn on_free_ports<T>(count: usize, start: impl Fn(&[u16]) -> Result<T, ServerError>) -> Result<T, ServerError> {
    let mut attempt = 1;
    loop {
        let free = free_ports(count).map_err(|cause| ServerError::Start { program: "a server".to_string(), cause })?;
        match start(&free) {
            Err(ServerError::NotReady { .. }) if attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

/// A new folder for a server.
pub(crate) fn folder() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("immich-backup-server-").tempdir()
}

fn spawn(command: Command) -> io::Result<Child> {
    let (answer, started) = mpsc::channel();
    STARTER.send((command, answer)).map_err(|_| io::Error::other("the thread that starts servers is gone"))?;
    started.recv().map_err(|_| io::Error::other("the thread that starts servers is gone"))?
}

/// That many different ports nobody listens on.
pub(crate) fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // Tests that start at the same time must not look in the same order.
    let span = u32::from(PORTS.end - PORTS.start);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let from = (std::process::id().wrapping_mul(2_654_435_761) ^ clock) % span;
    let mut held = Vec::new();
    for step in 0..span {
        if held.len() == count {
            break;
        }
        let port = u16::try_from((from + step) % span).map(|offset| PORTS.start + offset).unwrap_or(PORTS.start);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push(listener);
        }
    }
    let ports: Vec<u16> = held.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect::<io::Result<_>>()?;
    if ports.len() == count { Ok(ports) } else { Err(io::Error::new(io::ErrorKind::AddrInUse, "no port is free")) }
}
