//! A server's process: started on free ports, watched until it is ready, killed with all it started.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::{ServerError, WireError, tool};

/// Below the ports that Linux hands out for outgoing connections, which a busy machine could take between the choice and the start.
const PORTS: std::ops::Range<u16> = 10_240..32_768;
/// Somebody else may take a port between its choice and the server's start.
const ATTEMPTS: usize = 3;
/// A loaded machine is slow; one that is not needs a second or two.
const READY_WITHIN: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(50);
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
pub(super) struct Process {
    child: Child,
    folder: TempDir,
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
        let cannot_start = |cause| ServerError::Start { program: name.to_string(), cause };
        let mut attempt = 1;
        loop {
            let folder = tempfile::Builder::new().prefix("immich-backup-server-").tempdir().map_err(cannot_start)?;
            let free = free_ports(ports).map_err(cannot_start)?;
            let wanted = arguments(folder.path(), &free).map_err(cannot_start)?;
            let output = File::create(folder.path().join(OUTPUT)).map_err(cannot_start)?;
            let mut command = Command::new("setpriv");
            // A test that is killed cannot stop anything; the kernel does.
            command.args(["--pdeathsig", "KILL", "--"]).arg(&program).args(wanted.get_args());
            for (key, value) in wanted.get_envs() {
                match value {
                    Some(value) => command.env(key, value),
                    None => command.env_remove(key),
                };
            }
            command.current_dir(folder.path()).stdin(Stdio::null()).process_group(0);
            command.stdout(output.try_clone().map_err(cannot_start)?).stderr(output);
            let mut process = Self { child: spawn(command).map_err(cannot_start)?, folder };
            match process.wait_until(|| ready(&free)) {
                Ok(value) => return Ok((process, value)),
                Err(what) if attempt == ATTEMPTS => {
                    return Err(ServerError::NotReady { program: name.to_string(), what, last_words: process.last_words() });
                }
                Err(_) => attempt += 1,
            }
        }
    }

    /// Where the server keeps its data.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn wait_until<T>(&mut self, ready: impl Fn() -> Result<T, WireError>) -> Result<T, String> {
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
        let read = || {
            let mut output = File::open(self.folder().join(OUTPUT))?;
            if output.seek(SeekFrom::End(-LAST_WORDS_BYTES)).is_err() {
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
        // The group, not the process: some servers start others. It is this process's as long as nobody has waited for its first.
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process_group(group, Signal::KILL).ok();
        }
        self.child.wait().ok();
    }
}

fn spawn(command: Command) -> io::Result<Child> {
    let (answer, started) = mpsc::channel();
    STARTER.send((command, answer)).map_err(|_| io::Error::other("the thread that starts servers is gone"))?;
    started.recv().map_err(|_| io::Error::other("the thread that starts servers is gone"))?
}

/// That many different ports nobody listens on.
fn free_ports(count: usize) -> io::Result<Vec<u16>> {
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
