//! Telling of one command: that it begins, and how it ends.

use super::{DELIVERY_WITHIN, Message, Notifiers, Origin};
use crate::app::App;
use crate::config::UsageError;
use crate::exit::Exit;
use immich_backup_core::event::Event;
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::sync::Arc;
use tokio::task::JoinHandle;

/// The commands that are told of.
const COMMANDS: [&str; 4] = ["backup", "verify", "drill", "prune"];

/// A command that has begun, and of which somebody wants to know.
pub struct Telling {
    notifiers: Arc<Notifiers>,
    origin: Origin,
    command: String,
    began_at: Timestamp,
    start: Option<JoinHandle<Vec<String>>>,
}

impl Telling {
    /// Tells that `command` begins, while it does, unless it is a shard; nothing where nobody wants to know.
    ///
    /// # Errors
    /// A setting that cannot be understood.
    pub fn begin(app: &App, command: &str) -> Result<Option<Self>, UsageError> {
        if !COMMANDS.contains(&command) || app.settings.switch("dry-run")? {
            return Ok(None);
        }
        let notifiers = Arc::new(Notifiers::of(&app.settings)?);
        if notifiers.is_empty() {
            return Ok(None);
        }
        // What is wrong with the repository's name, the command will say.
        let origin = Origin::of(app.repository_name().unwrap_or_default());
        let began_at = Timestamp::now();
        // Most shards end without a word, and a service that was told of a start would wait for its end.
        let is_shard = command == "backup" && app.settings.text("shard").is_some();
        let start = (!is_shard).then(|| {
            let (notifiers, message) = (Arc::clone(&notifiers), Message::start(command, began_at, &origin));
            tokio::spawn(async move { notifiers.tell(&message).await.problems })
        });
        Ok(Some(Self { notifiers, origin, command: command.to_owned(), began_at, start }))
    }

    /// Tells that it has ended, with this summary. What could not be told is a warning.
    pub async fn end(self, app: &App, summary: Map<String, Value>) {
        // The end never overtakes the start.
        let mut problems = match self.start {
            // Whatever keeps it: the end is what matters.
            Some(start) => match tokio::time::timeout(DELIVERY_WITHIN, start).await {
                Ok(told) => told.unwrap_or_default(),
                Err(_) => vec![format!("cannot tell that it began: not delivered within {} s", DELIVERY_WITHIN.as_secs())],
            },
            None => Vec::new(),
        };
        let now = Timestamp::now();
        // A part of a run that others end: who commits the snapshot tells of it.
        let is_part = self.command == "backup" && is_done(&summary) && summary.get("snapshot").is_none_or(Value::is_null);
        if is_part {
            return tell(app, problems);
        }
        let message = Message::end(&self.command, (self.began_at, now), summary, None, &self.origin).with_drill(app.standing().as_ref(), now);
        problems.extend(self.notifiers.tell(&message).await.problems);
        tell(app, problems);
    }
}

fn is_done(summary: &Map<String, Value>) -> bool {
    summary.get("exit_code").and_then(Value::as_u64) == Some(Exit::Done.code().into())
}

fn tell(app: &App, mut problems: Vec<String>) {
    problems.dedup();
    for message in problems {
        app.monitor.emit(Event::Warned { message });
    }
}
