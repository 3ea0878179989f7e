//! A line to a server that fails in the ways lines and servers fail, as a test's rules say.
//!
//! It passes requests on as they came, `Host` included, so that what a client signed for the proxy's address holds at the server. A request meets the policy
//! first, then the first rule that it fits; the log keeps what became of it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

mod body;
mod log;
mod policy;
mod rule;
mod serve;

pub use log::{Record, Upstream};
pub use policy::{Dialect, Policy};
pub use rule::{Action, Fired, Resign, Rule};

pub use crate::sign::Credentials;

/// A running proxy; its thread and its connections end when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What all connections look at.
struct Shared {
    /// `host:port` of the server.
    upstream: String,
    address: SocketAddr,
    policy: Mutex<Policy>,
    rules: Mutex<Vec<Arc<rule::Armed>>>,
    log: log::Log,
}

impl Proxy {
    /// A proxy before the server at `upstream` (`http://host:port`; what follows in that address is left out).
    ///
    /// # Errors
    ///
    /// If the address is none, or no port can be had.
    pub fn start(upstream: &str) -> io::Result<Self> {
        let uri: hyper::Uri = upstream.parse().map_err(io::Error::other)?;
        let upstream = uri.authority().ok_or_else(|| io::Error::other(format!("`{upstream}` is no address")))?.to_string();
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { upstream, address, policy: Mutex::new(Policy::Everything), rules: Mutex::new(Vec::new()), log: log::Log::default() });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("proxy".to_string()).spawn({
            let shared = Arc::clone(&shared);
            // Dropping the runtime drops all connections.
            move || runtime.block_on(serve::serve(listener, shared, stopped))
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Its address, `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, `policy` says who may do what.
    pub fn set_policy(&self, policy: Policy) {
        *locked(&self.shared.policy) = policy;
    }

    /// Adds a rule behind the others; the result counts how often it fires.
    pub fn add(&self, rule: Rule) -> Fired {
        let armed = Arc::new(rule::Armed::new(rule));
        locked(&self.shared.rules).push(Arc::clone(&armed));
        Fired(armed)
    }

    /// Takes all rules away. Requests that one of them holds stay held.
    pub fn clear_rules(&self) {
        locked(&self.shared.rules).clear();
    }

    /// All requests so far, in the order of their arrival, with what is known of them by now.
    pub fn log(&self) -> Vec<Record> {
        self.shared.log.records()
    }

    /// How many requests so far are such.
    pub fn count(&self, such: impl Fn(&Record) -> bool) -> usize {
        self.log().iter().filter(|record| such(record)).count()
    }

    /// Forgets all requests so far.
    pub fn clear_log(&self) {
        self.shared.log.clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Its thread may have ended already.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Nothing here is left half-changed by a panic, so that a poisoned lock is as good as any.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
