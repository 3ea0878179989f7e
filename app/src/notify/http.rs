//! Pings and webhooks.

use super::message::{Kind, Message};
use super::{Secret, Undelivered, read_secret};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde_json::json;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Whoever does not even answer the phone is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A ping's body: what services keep of it.
const PING_BYTES_MAX: usize = 10_000;
/// What Discord takes.
const DISCORD_CHARACTERS_MAX: usize = 2_000;

/// What ntfy takes as a message, of 4,096 bytes, and leaves room for what it adds: a longer one becomes an attachment.
const NTFY_BODY_BYTES_MAX: usize = 3_500;
/// And as its title.
const NTFY_TITLE_BYTES_MAX: usize = 500;

/// `text`, cut where it is longer than so many bytes: at the end of a line, where there is one.
fn shortened(text: &str, max_bytes: usize) -> String {
    const SIGN: &str = "…";
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max_bytes.saturating_sub("\n".len() + SIGN.len()));
    let kept = text.get(..end).unwrap_or_default();
    kept.rsplit_once('\n').map_or_else(|| format!("{kept}{SIGN}"), |(lines, _)| format!("{lines}\n{SIGN}"))
}

fn client() -> Result<Client, Undelivered> {
    // A redirect would carry a token to somebody else.
    let client = Client::builder().user_agent("immich-backup").connect_timeout(CONNECT_WITHIN).redirect(reqwest::redirect::Policy::none());
    client.build().map_err(|error| Undelivered::for_good(in_words(error)))
}

/// The error and its causes, without the address, which may be a secret.
fn in_words(error: reqwest::Error) -> String {
    immich_backup_core::told::told(&error.without_url())
}

async fn url(secret: &Secret) -> Result<Url, Undelivered> {
    let url = secret.read().await?.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| Undelivered::for_good("its address is none: write it like https://…"))
}

/// Sends a request, and looks at nothing of the answer but its status.
async fn send(request: RequestBuilder) -> Result<(), Undelivered> {
    let answer = request.send().await.map_err(|error| Undelivered::passing(in_words(error)))?;
    match answer.status() {
        status if status.is_success() => Ok(()),
        status @ (StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) => Err(Undelivered::passing(format!("it answers {status}"))),
        status if status.is_server_error() => Err(Undelivered::passing(format!("it answers {status}"))),
        status => Err(Undelivered::for_good(format!("it answers {status}"))),
    }
}

/// A service that notices silence, as Healthchecks has it: `/start`, the address itself, `/fail`.
#[derive(Debug)]
pub(super) struct Ping {
    pub(super) url: Secret,
}

impl Ping {
    /// What is pinged: the backup. A verification that went well must not stand for a backup that did not run; what fails counts.
    pub(super) fn wants(message: &Message) -> bool {
        match message.kind {
            Kind::Test => true,
            // The daemon's own: the service has noticed by itself that nothing came, and a drill is no failure.
            Kind::DrillOverdue | Kind::Stale if message.command == "daemon" => false,
            _ if message.command == "backup" => true,
            kind => kind.is_bad(),
        }
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), Undelivered> {
        let mut url = url(&self.url).await?;
        let end = match message.kind {
            Kind::Start => "start",
            Kind::Success | Kind::DrillOverdue => "",
            // Noted, and no sign of life.
            Kind::Test => "log",
            _ => "fail",
        };
        if !end.is_empty() {
            let mut path = url.path_segments_mut().map_err(|()| Undelivered::for_good("its address is none: write it like https://…"))?;
            path.pop_if_empty().push(end);
        }
        let mut body = format!("{}\n{}", message.title, message.body());
        body.truncate(body.floor_char_boundary(PING_BYTES_MAX));
        send(client()?.post(url).body(body)).await
    }
}

/// What a webhook expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Style {
    /// All there is, as our own JSON.
    #[default]
    Json,
    Ntfy,
    Gotify,
    Discord,
    Slack,
}

impl FromStr for Style {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "json" => Ok(Self::Json),
            "ntfy" => Ok(Self::Ntfy),
            "gotify" => Ok(Self::Gotify),
            "discord" => Ok(Self::Discord),
            "slack" => Ok(Self::Slack),
            _ => Err("say json, ntfy, gotify, discord or slack"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) url: Secret,
    pub(super) style: Style,
    pub(super) token: Option<PathBuf>,
}

impl Webhook {
    pub(super) async fn send(&self, message: &Message) -> Result<(), Undelivered> {
        let mut url = url(&self.url).await?;
        let both = |bold: &str| format!("{bold}{}{bold}\n{}", message.title, message.body());
        let body = match self.style {
            Style::Json => message.json(),
            // What stands in angle brackets would call somebody, or be a link.
            Style::Slack => json!({ "text": both("*").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;") }),
            Style::Discord => {
                let content: String = both("**").chars().take(DISCORD_CHARACTERS_MAX).collect();
                // A file's name must not call anybody.
                json!({ "content": content, "allowed_mentions": { "parse": [] } })
            }
            Style::Gotify => {
                let is_whole = url.path().ends_with("/message");
                let mut path = url.path_segments_mut().map_err(|()| Undelivered::for_good("its address is none: write it like https://…"))?;
                if !is_whole {
                    path.pop_if_empty().push("message");
                }
                drop(path);
                // From 0 to 10 there.
                json!({ "title": message.title, "message": message.body(), "priority": message.kind.priority() * 2 })
            }
            Style::Ntfy => {
                let topic = url.path_segments().and_then(|mut segments| segments.rfind(|segment| !segment.is_empty())).map(str::to_owned);
                let topic = topic.ok_or_else(|| Undelivered::for_good("the address names no topic: write it like https://ntfy.sh/topic"))?;
                let mut path = url.path_segments_mut().map_err(|()| Undelivered::for_good("its address is none: write it like https://…"))?;
                path.pop_if_empty().pop();
                drop(path);
                let tag = if message.kind.is_bad() { "warning" } else { "white_check_mark" };
                let (title, body) = (shortened(&message.title, NTFY_TITLE_BYTES_MAX), shortened(&message.body(), NTFY_BODY_BYTES_MAX));
                json!({ "topic": topic, "title": title, "message": body, "priority": message.kind.priority(), "tags": [tag] })
            }
        };
        let mut request = client()?.post(url).header("content-type", "application/json").body(body.to_string());
        if let Some(file) = &self.token {
            let token = read_secret(file).await?;
            request = if self.style == Style::Gotify { request.header("x-gotify-key", token) } else { request.bearer_auth(token) };
        }
        send(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_cut_at_a_line_and_between_characters() {
        let lines = "a line of some length\n".repeat(1_000);
        let cut = shortened(&lines, NTFY_BODY_BYTES_MAX);
        assert!((NTFY_BODY_BYTES_MAX - 30..=NTFY_BODY_BYTES_MAX).contains(&cut.len()), "{}", cut.len());
        assert!(cut.ends_with("\na line of some length\n…"), "{cut}");
        let title = shortened(&"ü".repeat(1_000), NTFY_TITLE_BYTES_MAX);
        assert!((NTFY_TITLE_BYTES_MAX - 5..=NTFY_TITLE_BYTES_MAX).contains(&title.len()) && title.ends_with("ü…"), "{title}");
        assert_eq!(shortened(&"x".repeat(500), NTFY_TITLE_BYTES_MAX), "x".repeat(500));
    }
}
