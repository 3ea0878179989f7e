//! A line that takes only so many bytes a second in one direction, as an upload at home does.

#![allow(clippy::print_stderr, reason = "for tests: a connection that breaks says so")]

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What is passed on at a time: small enough that a slow line does not come in jolts.
const PIECE_BYTES: usize = 16 << 10;

/// Passes connections on to a server on this machine.
pub struct Line {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
}

impl Line {
    /// Before the server at `upstream` (`http://127.0.0.1:PORT`); all connections together send it at most so many bytes a second. What it answers is not held up.
    ///
    /// # Errors
    ///
    /// If no port can be had, or `upstream` is no such address.
    pub fn start(upstream: &str, bytes_per_second: u64) -> io::Result<Self> {
        let upstream: SocketAddr = upstream.trim_start_matches("http://").parse().map_err(io::Error::other)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, ended) = (listener.local_addr()?, Arc::new(AtomicBool::new(false)));
        let (over, free_at) = (Arc::clone(&ended), Arc::new(Mutex::new(Instant::now())));
        thread::spawn(move || {
            for connection in listener.incoming() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let free_at = Arc::clone(&free_at);
                thread::spawn(move || {
                    if let Err(error) = connection.and_then(|connection| pass(&connection, upstream, bytes_per_second, &free_at)) {
                        eprintln!("a connection of the slow line broke: {error}");
                    }
                });
            }
        });
        Ok(Self { address, ended })
    }

    /// Its address, as a client has it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes whoever waits for the next connection.
        drop(TcpStream::connect(self.address));
    }
}

fn pass(client: &TcpStream, upstream: SocketAddr, bytes_per_second: u64, free_at: &Mutex<Instant>) -> io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    for end in [client, &server] {
        end.set_nodelay(true)?;
    }
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    let answers = thread::spawn(move || {
        let copied = io::copy(&mut from_server, &mut to_client);
        // Whoever is gone needs no farewell.
        to_client.shutdown(Shutdown::Both).unwrap_or_default();
        copied
    });
    let (mut from_client, mut to_server) = (client, &server);
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(count @ 1..) = from_client.read(&mut piece) {
        let takes = Duration::from_secs_f64(count as f64 / bytes_per_second as f64);
        let wait = {
            let mut free_at = free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let begins = (*free_at).max(Instant::now());
            *free_at = begins + takes;
            begins.saturating_duration_since(Instant::now())
        };
        thread::sleep(wait);
        if to_server.write_all(piece.get(..count).unwrap_or_default()).is_err() {
            break;
        }
    }
    server.shutdown(Shutdown::Both).unwrap_or_default();
    drop(answers.join());
    Ok(())
}
