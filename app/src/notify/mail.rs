//! Mail, by SMTP.

use super::message::Message;
use super::{Undelivered, read_secret};
use crate::config::{Settings, UsageError};
use immich_backup_core::model::Sha256;
use immich_backup_core::told::told;
use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::AsyncSmtpTransportBuilder;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::extension::ClientId;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Tokio1Executor};
use std::path::PathBuf;
use std::time::Duration;

/// A server that says nothing for so long is down.
const SILENT_MAX: Duration = Duration::from_secs(6);

/// How the way to the server is kept secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    /// From the first byte.
    Always,
    /// Asked for, and insisted on.
    Upgraded,
    /// Not at all.
    None,
}

/// Who is written to, and by which server. Each has a mail of their own: an address that is refused keeps nobody else from theirs.
#[derive(Debug, Clone)]
pub(super) struct Mail {
    to: Mailbox,
    from: Mailbox,
    host: String,
    port: Option<u16>,
    tls: Tls,
    /// Name, and the file that has the password.
    account: Option<(String, PathBuf)>,
}

impl Mail {
    /// As the settings say, one for each who is to be written to.
    ///
    /// # Errors
    /// A setting that cannot be understood, or is missing.
    pub(super) fn of(settings: &Settings) -> Result<Vec<Self>, UsageError> {
        let text = |name: &str| settings.text(name).filter(|text| !text.is_empty());
        let mailbox =
            |name: &str, address: &str| address.parse::<Mailbox>().map_err(|error| UsageError(format!("--{name}: `{address}` is no address of mail: {error}")));
        let to = settings.texts("notify-mail-to").iter().map(|address| mailbox("notify-mail-to", address)).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = to.first() else { return Ok(Vec::new()) };
        let server = settings.required("notify-mail-server")?;
        let wrong = || {
            UsageError("--notify-mail-server takes smtps://HOST (TLS, port 465), smtp://HOST (STARTTLS, port 587) or smtp-plain://HOST (no encryption, port 25), each with :PORT if need be".to_owned())
        };
        let (scheme, rest) = server.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "smtps" => Tls::Always,
            "smtp" => Tls::Upgraded,
            "smtp-plain" => Tls::None,
            _ => return Err(wrong()),
        };
        let rest = rest.trim_end_matches('/');
        let (host, port) = match rest.rsplit_once(':').filter(|(host, _)| !host.ends_with(':') && (!host.contains(':') || host.ends_with(']'))) {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| wrong())?)),
            None => (rest, None),
        };
        if host.is_empty() || host.contains(['/', '@', '?']) {
            return Err(wrong());
        }
        let account = match (text("notify-mail-user"), text("notify-mail-password-file")) {
            (None, None) => None,
            (Some(_), Some(_)) if tls == Tls::None => {
                return Err(UsageError("--notify-mail-server smtp-plain:// would send the password for all to read: use smtps:// or smtp://".to_owned()));
            }
            (Some(user), Some(file)) => Some((user.to_owned(), PathBuf::from(file))),
            _ => return Err(UsageError("--notify-mail-user and --notify-mail-password-file go together".to_owned())),
        };
        let from = text("notify-mail-from").map(|address| mailbox("notify-mail-from", address)).transpose()?;
        let from = from.unwrap_or_else(|| Mailbox::new(Some("Immich backup".to_owned()), first.email.clone()));
        let one = |to: &Mailbox| Self { to: to.clone(), from: from.clone(), host: host.to_owned(), port, tls, account: account.clone() };
        Ok(to.iter().map(one).collect())
    }

    async fn transport(&self, hello: &str) -> Result<AsyncSmtpTransport<Tokio1Executor>, Undelivered> {
        let failed = |error: lettre::transport::smtp::Error| Undelivered::for_good(told(&error));
        let builder: AsyncSmtpTransportBuilder = match self.tls {
            Tls::Always => AsyncSmtpTransport::<Tokio1Executor>::relay(&self.host).map_err(failed)?,
            Tls::Upgraded => AsyncSmtpTransport::<Tokio1Executor>::starttls_relay(&self.host).map_err(failed)?,
            Tls::None => AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host),
        };
        let mut builder = builder.timeout(Some(SILENT_MAX)).hello_name(ClientId::Domain(hello.to_owned()));
        if let Some(port) = self.port {
            builder = builder.port(port);
        }
        if let Some((user, file)) = &self.account {
            builder = builder.credentials(Credentials::new(user.clone(), read_secret(file).await?));
        }
        Ok(builder.build())
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), Undelivered> {
        let failed = |error: lettre::error::Error| Undelivered::for_good(told(&error));
        let host = if message.origin.host.is_empty() { "localhost" } else { &message.origin.host };
        let mail = lettre::Message::builder().from(self.from.clone()).to(self.to.clone()).subject(message.title.clone());
        // Nobody answers a machine, and no machine should.
        let mail = mail.message_id(Some(format!("<{}@{host}>", name_of(message)))).header(AutoSubmitted);
        let mail = mail.header(ContentType::TEXT_PLAIN).body(format!("{}\n\n{}\n", message.title, message.body())).map_err(failed)?;
        let sent = self.transport(host).await?.send(mail).await;
        sent.map(drop).map_err(|error| {
            let problem = format!("{}: {}", self.to.email, told(&error));
            if error.is_permanent() || error.is_tls() || error.is_client() { Undelivered::for_good(problem) } else { Undelivered::passing(problem) }
        })
    }
}

/// The same for each try: where the server's answer was lost, the reader's program knows that it has the mail already.
fn name_of(message: &Message) -> String {
    let Message { kind, command, title, began_at, ended_at, origin, .. } = message;
    let what = format!("{} {command} {title} {began_at} {ended_at:?} {} {}", kind.name(), origin.repository, origin.host);
    Sha256::of(what.as_bytes()).to_string().chars().take(32).collect()
}

/// `Auto-Submitted: auto-generated`, RFC 3834.
#[derive(Clone)]
struct AutoSubmitted;

impl lettre::message::header::Header for AutoSubmitted {
    fn name() -> lettre::message::header::HeaderName {
        lettre::message::header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> lettre::message::header::HeaderValue {
        lettre::message::header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}
