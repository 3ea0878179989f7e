//! Telling people: pings of a service that notices silence, a webhook, mail.
//!
//! What is told is made of a command's summary ([`message`]), so that a command that cron runs and a job of the daemon tell the same. However a delivery ends, it
//! ends soon, and changes nothing of what it tells of: it is tried a few times, within a time that is bounded, and what went wrong is a warning.

mod http;
mod mail;
mod message;
mod telling;

pub use message::{Message, Origin};
pub use telling::Telling;

use crate::config::{Settings, UsageError};
use crate::metrics::regular;
use http::{Ping, Style, Webhook};
use mail::Mail;
use message::Kind;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Attempts for one delivery.
const ATTEMPTS_MAX: u32 = 3;
/// The wait before the second attempt; it doubles.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// An attempt takes no longer.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(8);
/// A delivery takes no longer, with all its attempts.
const DELIVERY_WITHIN: Duration = Duration::from_secs(15);
/// A secret in a file is no longer.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What a way tells where nobody says: what asks somebody to do something.
const USUAL: [Kind; 6] = [Kind::Partial, Kind::Failure, Kind::Tripwire, Kind::BitRot, Kind::DrillOverdue, Kind::Stale];

/// Why something could not be delivered, in words without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Undelivered {
    problem: String,
    /// Whether another attempt may help.
    passes: bool,
}

impl Undelivered {
    fn passing(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), passes: true }
    }

    fn for_good(problem: impl Into<String>) -> Self {
        Self { problem: problem.into(), passes: false }
    }
}

/// A text that may be a secret: given itself, or as `@FILE`, which is read when it is needed.
#[derive(Clone, PartialEq, Eq)]
enum Secret {
    Text(String),
    File(PathBuf),
}

impl Secret {
    fn new(text: &str) -> Self {
        text.strip_prefix('@').map_or_else(|| Self::Text(text.to_owned()), |path| Self::File(PathBuf::from(path)))
    }

    async fn read(&self) -> Result<String, Undelivered> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::File(path) => read_secret(path).await,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("…"),
            Self::File(path) => write!(f, "@{}", path.display()),
        }
    }
}

/// The secret in a file, without the end of its line.
async fn read_secret(path: &Path) -> Result<String, Undelivered> {
    use std::io::Read as _;
    let named = path.to_owned();
    // The file may lie on a disk that hangs.
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        regular::open(&named)?.take(SECRET_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text.trim().to_owned())
    });
    let read = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    read.map_err(|error| Undelivered::for_good(format!("cannot read `{}`: {error}", path.display())))
}

/// One way to tell.
#[derive(Debug)]
enum Way {
    Ping(Ping),
    Webhook(Webhook),
    Mail(Box<Mail>),
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Ping(_) => "ping",
            Self::Webhook(_) => "webhook",
            Self::Mail(_) => "mail",
        }
    }

    async fn attempt(&self, message: &Message) -> Result<(), Undelivered> {
        match self {
            Self::Ping(ping) => ping.send(message).await,
            Self::Webhook(webhook) => webhook.send(message).await,
            Self::Mail(mail) => mail.send(message).await,
        }
    }

    async fn attempts(&self, message: &Message) -> Result<(), Undelivered> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            let sent = tokio::time::timeout(ATTEMPT_WITHIN, self.attempt(message)).await;
            let undelivered = match sent.unwrap_or_else(|_| Err(Undelivered::passing(format!("no answer within {} s", ATTEMPT_WITHIN.as_secs())))) {
                Ok(()) => return Ok(()),
                Err(undelivered) if !undelivered.passes || attempt >= ATTEMPTS_MAX => return Err(undelivered),
                Err(undelivered) => undelivered,
            };
            drop(undelivered);
            tokio::time::sleep(wait).await;
            (wait, attempt) = (wait.saturating_mul(2), attempt + 1);
        }
    }

    /// Delivers, or says why not.
    async fn deliver(&self, message: &Message) -> Result<(), String> {
        let delivered = tokio::time::timeout(DELIVERY_WITHIN, self.attempts(message)).await;
        let undelivered = match delivered {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(undelivered)) => undelivered.problem,
            Err(_) => format!("not delivered within {} s", DELIVERY_WITHIN.as_secs()),
        };
        Err(format!("cannot tell by {}: {undelivered}", self.name()))
    }
}

/// How telling went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// What could not be told, in words.
    pub problems: Vec<String>,
    /// Whether it was to be told, and has reached nobody.
    pub in_vain: bool,
}

/// All ways to tell, and what of.
#[derive(Debug)]
pub struct Notifiers {
    ways: Vec<Way>,
    kinds: Vec<Kind>,
}

impl Notifiers {
    /// Those that the settings name; there may be none.
    ///
    /// # Errors
    /// A setting that cannot be understood. What a file holds is looked at when it is needed: a backup does not fail for it.
    pub fn of(settings: &Settings) -> Result<Self, UsageError> {
        let text = |name: &str| settings.text(name).filter(|text| !text.is_empty());
        let mut ways = Vec::new();
        if let Some(url) = text("notify-ping") {
            ways.push(Way::Ping(Ping { url: address("notify-ping", url)? }));
        }
        if let Some(url) = text("notify-webhook") {
            let style: Style = settings.parsed("notify-webhook-as")?.unwrap_or_default();
            let token = text("notify-webhook-token-file").map(PathBuf::from);
            ways.push(Way::Webhook(Webhook { url: address("notify-webhook", url)?, style, token }));
        }
        ways.extend(Mail::of(settings)?.into_iter().map(|mail| Way::Mail(Box::new(mail))));
        let said = settings.texts("notify-on").iter().map(|word| word.parse().map_err(UsageError)).collect::<Result<Vec<Kind>, _>>()?;
        let kinds = if said.is_empty() { USUAL.to_vec() } else { said };
        Ok(Self { ways, kinds })
    }

    /// Whether there is nobody to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ways.is_empty()
    }

    /// Each way, and what it tells, in words.
    #[must_use]
    pub fn described(&self) -> Vec<(&'static str, String)> {
        let kinds: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        let told = |way: &Way| match way {
            Way::Ping(_) => "the start and the end of each backup, and what fails otherwise".to_owned(),
            Way::Webhook(_) | Way::Mail(_) => kinds.join(", "),
        };
        let mut ways: Vec<_> = self.ways.iter().map(|way| (way.name(), told(way))).collect();
        ways.dedup();
        ways
    }

    fn wants(&self, way: &Way, message: &Message) -> bool {
        match way {
            Way::Ping(_) => Ping::wants(message),
            Way::Webhook(_) | Way::Mail(_) => self.kinds.contains(&message.kind),
        }
    }

    /// Tells all who want to know, at once. Takes no longer than [`DELIVERY_WITHIN`].
    pub async fn tell(&self, message: &Message) -> Told {
        let wanted = self.ways.iter().filter(|way| self.wants(way, message));
        let told = self.told(wanted, message).await;
        let in_vain = !told.is_empty() && told.iter().all(|(_, told)| told.is_err());
        Told { problems: told.into_iter().filter_map(|(_, told)| told.err()).collect(), in_vain }
    }

    /// Tells everybody, whatever they want to know, and how that went.
    pub async fn tell_all(&self, message: &Message) -> Vec<(&'static str, Result<(), String>)> {
        self.told(self.ways.iter(), message).await
    }

    async fn told<'a>(&self, ways: impl Iterator<Item = &'a Way>, message: &Message) -> Vec<(&'static str, Result<(), String>)> {
        futures_util::future::join_all(ways.map(async |way| (way.name(), way.deliver(message).await))).await
    }
}

/// An address of HTTP, or the file that holds it.
fn address(name: &str, text: &str) -> Result<Secret, UsageError> {
    if text.starts_with('@') || text.starts_with("http://") || text.starts_with("https://") {
        return Ok(Secret::new(text));
    }
    // The text may be a secret.
    Err(UsageError(format!("--{name} takes an address like https://…, or @FILE, a file that holds it")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notifiers(arguments: &[&str]) -> Result<Notifiers, UsageError> {
        let matches = crate::cli::command().get_matches_from([&["immich-backup", "notify"], arguments].concat());
        Notifiers::of(&Settings::resolve(matches.subcommand().unwrap().1, &|_| None).unwrap())
    }

    #[test]
    fn what_cannot_be_understood_is_refused_without_telling_it_and_files_are_not_looked_at() {
        let refused = |arguments: &[&str]| notifiers(arguments).unwrap_err().to_string();
        assert!(!refused(&["--notify-ping", "hc-ping.com/Tr0ub4dor"]).contains("Tr0ub4dor"));
        assert!(refused(&["--notify-webhook", "https://x", "--notify-webhook-as", "pigeon"]).contains("ntfy"));
        assert!(refused(&["--notify-on", "always"]).contains("drill-overdue"));
        assert!(refused(&["--notify-mail-to", "a@example.org"]).contains("--notify-mail-server"));
        let mail = ["--notify-mail-to", "a@example.org", "--notify-mail-server"];
        assert!(refused(&[&mail[..], &["mail.example.org"]].concat()).contains("smtps://"));
        assert!(
            refused(&[&mail[..], &["smtp-plain://h", "--notify-mail-user", "u", "--notify-mail-password-file", "/nowhere"]].concat()).contains("smtp-plain")
        );
        assert!(refused(&["--notify-mail-to", "nobody", "--notify-mail-server", "smtps://h"]).contains("`nobody`"));
        let all = notifiers(&["--notify-ping", "@/nowhere", "--notify-webhook", "https://secret.example/Tr0ub4dor", "--notify-webhook-token-file", "/nowhere"])
            .unwrap();
        assert!(!format!("{all:?}").contains("Tr0ub4dor"), "{all:?}");
        assert_eq!(all.ways.len(), 2);
        assert!(notifiers(&[]).unwrap().is_empty());
    }
}
