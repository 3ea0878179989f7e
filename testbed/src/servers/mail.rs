//! aiosmtpd, a real server of mail: takes it, refuses it, or never answers.

use super::{ServerError, tools};
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

const PROGRAM: &str = include_str!("mail.py");

/// How the way to the server is encrypted. The last two ask for a user and a password, and have a certificate with its key in one file.
#[derive(Debug, Clone, Copy)]
pub enum MailWay<'a> {
    /// Not at all.
    Plain,
    /// From the client's STARTTLS on.
    StartTls(MailAccount<'a>),
    /// From the first byte.
    Smtps(MailAccount<'a>),
}

/// What a server with encryption needs.
#[derive(Debug, Clone, Copy)]
pub struct MailAccount<'a> {
    /// Certificate and key, as PEM.
    pub certificate: &'a Path,
    /// Who may send.
    pub user: &'a str,
    /// With this password.
    pub password: &'a str,
}

/// What the server does with mail.
#[derive(Debug, Clone, Copy)]
pub enum MailMode {
    /// Takes it, but for what is written to `refused@…`.
    Take,
    /// Knows nobody.
    Refuse,
    /// Takes it, and never says so.
    Hang,
    /// Takes it, and says of the first mail that it did not.
    Hesitate,
}

/// The server; ended when dropped.
pub struct MailServer {
    child: Child,
    port: u16,
    lines: Arc<Mutex<Vec<String>>>,
}

impl MailServer {
    /// Starts one on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// aiosmtpd is not installed, or does not start.
    pub fn start(way: MailWay<'_>, mode: MailMode) -> Result<Self, ServerError> {
        let program = tools().join("aiosmtpd/bin/python");
        if !program.exists() {
            return Err(ServerError::NotInstalled { program });
        }
        let mut command = Command::new(&program);
        let (name, account) = match way {
            MailWay::Plain => ("plain", None),
            MailWay::StartTls(account) => ("starttls", Some(account)),
            MailWay::Smtps(account) => ("smtps", Some(account)),
        };
        let mode = match mode {
            MailMode::Take => "ok",
            MailMode::Refuse => "refuse",
            MailMode::Hang => "hang",
            MailMode::Hesitate => "hesitate",
        };
        command.args(["-c", PROGRAM, name, mode]);
        if let Some(account) = account {
            command.arg(account.certificate).args([account.user, account.password]);
        }
        let failed = |cause| ServerError::Start { program: "aiosmtpd".to_owned(), cause };
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let mut out = BufReader::new(child.stdout.take().ok_or_else(|| failed(io::Error::other("it has no output")))?);
        let mut first = String::new();
        out.read_line(&mut first).map_err(failed)?;
        let port = first.trim().parse().map_err(|_| failed(io::Error::other("it did not say its port")))?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        });
        Ok(Self { child, port, lines })
    }

    /// Where it listens on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What has arrived so far: an object of JSON each, with `from`, `to`, `content`, `authenticated`, `encrypted`.
    #[must_use]
    pub fn received(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
