//! What is told: made of a command's summary.

use crate::daemon::feed::Notice;
use crate::exit::Exit;
use crate::screen;
use crate::standing::Standing;
use immich_backup_core::verdict::{NamedVerdict, Proof};
use jiff::Timestamp;
use serde::{Deserialize as _, Serialize};
use serde_json::{Map, Value, json};
use std::str::FromStr;
use std::time::Duration;

/// Names of each kind that a message has; the summary has more.
const NAMED_MAX: usize = 10;
/// A line of a message is cut here: an error may quote what a server said.
const LINE_CHARACTERS_MAX: usize = 500;
/// Where lists of a summary are cut for a webhook.
const LIST_MAX: usize = 20;
/// And texts.
const TEXT_CHARACTERS_MAX: usize = 2_000;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A command began.
    Start,
    /// It did all that it should.
    Success,
    /// It is done, and something is missing.
    Partial,
    /// It failed.
    Failure,
    /// A tripwire withheld the snapshot.
    Tripwire,
    /// Files of the library, or objects of the repository, are damaged.
    BitRot,
    /// There was no drill for too long.
    DrillOverdue,
    /// The newest proven snapshot is too old, or the clock jumped.
    Stale,
    /// Somebody wants to see whether messages arrive.
    Test,
}

impl Kind {
    /// Those that can be asked for.
    const ALL: [Self; 8] = [Self::Start, Self::Success, Self::Partial, Self::Failure, Self::Tripwire, Self::BitRot, Self::DrillOverdue, Self::Stale];

    /// The word for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Success => "success",
            Self::Partial => "partial",
            Self::Failure => "failure",
            Self::Tripwire => "tripwire",
            Self::BitRot => "bit-rot",
            Self::DrillOverdue => "drill-overdue",
            Self::Stale => "stale",
            Self::Test => "test",
        }
    }

    /// Whether somebody has to do something.
    #[must_use]
    pub fn is_bad(self) -> bool {
        !matches!(self, Self::Start | Self::Success | Self::Test)
    }

    /// From 1 to 5, as ntfy has it.
    #[must_use]
    pub fn priority(self) -> u8 {
        match self {
            Self::Start => 1,
            Self::Success => 2,
            Self::DrillOverdue | Self::Test => 3,
            Self::Partial => 4,
            Self::Failure | Self::Tripwire | Self::BitRot | Self::Stale => 5,
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| format!("--notify-on knows no `{text}`; it takes {}", known()))
    }
}

/// What is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// What it is about.
    pub kind: Kind,
    /// Which command; `daemon` for what the daemon noticed by itself.
    pub command: String,
    /// What leads it, in one line.
    pub title: String,
    /// What follows.
    pub lines: Vec<String>,
    /// When the command began.
    pub began_at: Timestamp,
    /// When it ended; absent at its start.
    pub ended_at: Option<Timestamp>,
    /// The command's summary.
    pub summary: Map<String, Value>,
    /// The repository and the machine.
    pub origin: Origin,
}

/// Of whom a message is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The repository's URL, without secrets.
    pub repository: String,
    /// The machine's name.
    pub host: String,
}

impl Origin {
    /// This machine, with this repository.
    #[must_use]
    pub fn of(repository: String) -> Self {
        Self { repository, host: rustix::system::uname().nodename().to_string_lossy().into_owned() }
    }
}

impl Message {
    /// A command begins.
    #[must_use]
    pub fn start(command: &str, began_at: Timestamp, origin: &Origin) -> Self {
        let title = format!("Immich {command}: begins");
        Self { kind: Kind::Start, command: command.to_owned(), title, lines: Vec::new(), began_at, ended_at: None, summary: Map::new(), origin: origin.clone() }
    }

    /// A command has ended with this summary, as `--json` prints it. Of one that died, `died` says how.
    #[must_use]
    pub fn end(command: &str, times: (Timestamp, Timestamp), summary: Map<String, Value>, died: Option<&str>, origin: &Origin) -> Self {
        let (began_at, ended_at) = times;
        let read = Read(&summary);
        let kind = if died.is_some() { Kind::Failure } else { read.kind(command) };
        let took = Duration::try_from(ended_at.duration_since(began_at)).unwrap_or_default();
        let title = cut(read.title(command, kind, took, died));
        let lines = read.lines(died.is_some()).into_iter().map(cut).collect();
        Self { kind, command: command.to_owned(), title, lines, began_at, ended_at: Some(ended_at), summary, origin: origin.clone() }
    }

    /// The daemon has noticed something.
    #[must_use]
    pub fn noticed(notice: &Notice, at: Timestamp, origin: &Origin) -> Self {
        let kind = match notice {
            Notice::DrillOverdue { .. } => Kind::DrillOverdue,
            Notice::Stale { .. } | Notice::ClockJumped { .. } => Kind::Stale,
        };
        let title = format!("Immich backup: {notice}");
        Self { kind, command: "daemon".to_owned(), title, lines: Vec::new(), began_at: at, ended_at: Some(at), summary: Map::new(), origin: origin.clone() }
    }

    /// A trial.
    #[must_use]
    pub fn test(at: Timestamp, origin: &Origin) -> Self {
        let title = "Immich backup: this is a test, all is well".to_owned();
        Self {
            kind: Kind::Test,
            command: "notify".to_owned(),
            title,
            lines: Vec::new(),
            began_at: at,
            ended_at: Some(at),
            summary: Map::new(),
            origin: origin.clone(),
        }
    }

    /// What else there is to say, where it is also said that a drill is due: for a command that no daemon watches over.
    #[must_use]
    pub fn with_drill(mut self, standing: Option<&Standing>, now: Timestamp) -> Self {
        let Some(standing) = standing.filter(|standing| self.command == "backup" && standing.drill_is_overdue(now)) else { return self };
        self.lines.push("no drill for more than 35 days: `immich-backup drill` shows whether this backup comes back".to_owned());
        if self.kind == Kind::Success && standing.drill_is_to_be_told() {
            self.kind = Kind::DrillOverdue;
        }
        self
    }

    /// All of it as text, without the title.
    #[must_use]
    pub fn body(&self) -> String {
        let origin = [&self.origin.repository, &self.origin.host].into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(", on ");
        self.lines.iter().cloned().chain([origin]).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
    }

    /// All of it as JSON: docs/monitoring.md has the fields.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut summary = Value::Object(self.summary.clone());
        trim(&mut summary);
        json!({
            "version": 1,
            "kind": self.kind,
            "command": self.command,
            "title": self.title,
            "text": self.body(),
            "outcome": self.summary.get("outcome"),
            "exit_code": self.summary.get("exit_code"),
            "repository": self.origin.repository,
            "host": self.origin.host,
            "began_at": self.began_at,
            "ended_at": self.ended_at,
            "summary": if self.summary.is_empty() { Value::Null } else { summary },
        })
    }
}

/// One line, not too long.
fn cut(text: String) -> String {
    let mut text = text.replace(['\r', '\n'], " ");
    if let Some((end, _)) = text.char_indices().nth(LINE_CHARACTERS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Cuts what a receiver would not take.
fn trim(value: &mut Value) {
    match value {
        Value::Array(list) => {
            list.truncate(LIST_MAX);
            list.iter_mut().for_each(trim);
        }
        Value::Object(fields) => fields.values_mut().for_each(trim),
        Value::String(text) => {
            if let Some((end, _)) = text.char_indices().nth(TEXT_CHARACTERS_MAX) {
                text.truncate(end);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// `3 min`, `45 s`, `2 h`.
fn duration(took: Duration) -> String {
    match took.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
    }
}

/// A summary, asked for what matters.
struct Read<'a>(&'a Map<String, Value>);

impl Read<'_> {
    fn at(&self, pointer: &str) -> Option<&Value> {
        let mut parts = pointer.split('/');
        let first = self.0.get(parts.next()?)?;
        parts.try_fold(first, |value, part| part.parse::<usize>().map_or_else(|_| value.get(part), |index| value.get(index)))
    }

    fn text(&self, pointer: &str) -> Option<&str> {
        self.at(pointer)?.as_str()
    }

    fn number(&self, pointer: &str) -> u64 {
        self.at(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    fn is(&self, exit: Exit) -> bool {
        self.at("exit_code").and_then(Value::as_u64) == Some(exit.code().into())
    }

    fn proof(&self) -> Option<Proof> {
        let proof = self.at("proof")?;
        // `verify --proof` has it one deeper.
        Proof::deserialize(proof.get("now").unwrap_or(proof)).ok()
    }

    fn kind(&self, command: &str) -> Kind {
        let rotten = self.number("bit_rot_count") + self.number("doubtful_count") > 0;
        match () {
            () if self.is(Exit::Done) => Kind::Success,
            () if self.is(Exit::Incomplete) && rotten => Kind::BitRot,
            () if self.is(Exit::Incomplete) => Kind::Partial,
            () if self.is(Exit::Withheld) => Kind::Tripwire,
            () if self.is(Exit::Damaged) && command == "verify" => Kind::BitRot,
            () => Kind::Failure,
        }
    }

    /// What leads: `Immich backup: proven 23,033 of 23,033 · 412 new · 1.80 GB sent · 3 min`.
    fn title(&self, command: &str, kind: Kind, took: Duration, died: Option<&str>) -> String {
        let name = format!("Immich {command}");
        let error = died.or_else(|| self.text("errors/0/message"));
        let word = match kind {
            Kind::Tripwire => " WITHHELD",
            Kind::Failure if self.is(Exit::Interrupted) && died.is_none() => " INTERRUPTED",
            Kind::Failure => " FAILED",
            Kind::BitRot => " found DAMAGE",
            Kind::Partial => " INCOMPLETE",
            _ => "",
        };
        let mut parts: Vec<_> = error.map(str::to_owned).into_iter().collect();
        if error.is_none() {
            parts.extend(self.parts(command));
            parts.push(duration(took));
        }
        format!("{name}{word}: {}", parts.join(" · "))
    }

    fn parts(&self, command: &str) -> Vec<String> {
        let some = |count: u64, what: &str| (count > 0).then(|| format!("{} {what}", screen::count(count)));
        let parts: Vec<Option<String>> = match command {
            "backup" => vec![
                self.text("withheld").map(str::to_owned),
                self.proof().map(|proof| headline(&proof)),
                some(self.number("unread_count"), "unreadable"),
                some(self.number("bit_rot_count"), "probably damaged in the library"),
                some(self.number("doubtful_count"), "not what Immich recorded"),
                Some(format!("{} new", screen::count(self.number("files/new")))),
                some(self.number("files/changed"), "changed"),
                Some(format!("{} sent", screen::bytes(self.number("bytes/sent")))),
            ],
            "verify" => vec![
                self.proof().map(|proof| headline(&proof)),
                some(self.number("lost"), "objects lost"),
                some(self.number("damaged"), "objects damaged"),
                Some(format!("{} listed", screen::count(self.number("listed/files")))),
                some(self.number("read/files"), "read back"),
            ],
            "drill" => vec![
                self.text("verdict").map(str::to_owned),
                self.text("problems/0").map(str::to_owned),
                Some(format!("{} of {} originals compared", screen::count(self.number("sampled")), screen::count(self.number("assets")))),
            ],
            "prune" => vec![Some(format!("{} objects removed", screen::count(self.number("removed"))))],
            _ => Vec::new(),
        };
        parts.into_iter().flatten().collect()
    }

    fn lines(&self, died: bool) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(hint) = self.text("errors/0/hint").filter(|_| !died) {
            lines.push(hint.to_owned());
        }
        if self.text("withheld").is_some()
            && let Some(run) = self.text("run")
        {
            lines.push(format!("everything new is stored; if this was meant, run the same command with --accept {run}"));
        }
        let proof = self.proof();
        let named = proof.iter().flat_map(|proof| &proof.named).filter(|named| named.verdict != immich_backup_core::verdict::Verdict::Untracked);
        lines.extend(named.take(NAMED_MAX).map(|NamedVerdict { verdict, path, .. }| format!("{}: {path}", word(*verdict))));
        for (list, field, what) in [
            ("unread", "path", "unreadable"),
            ("bit_rot", "", "damaged in the library"),
            ("doubtful", "", "damaged in the library"),
            ("findings", "key", "damaged"),
        ] {
            let items = self.at(list).and_then(Value::as_array).into_iter().flatten().take(NAMED_MAX);
            lines.extend(
                items.filter_map(|item| if field.is_empty() { item.as_str() } else { item.get(field)?.as_str() }).map(|name| format!("{what}: {name}")),
            );
        }
        let problems = self.at("problems").and_then(Value::as_array).into_iter().flatten().skip(1).take(NAMED_MAX);
        lines.extend(problems.filter_map(Value::as_str).map(str::to_owned));
        lines
    }
}

/// A proof's headline with its counts as people write them.
fn headline(proof: &Proof) -> String {
    let text = proof.headline();
    let grouped = text.split(' ').map(|word| {
        let (digits, rest) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
        digits.parse().map_or_else(|_| word.to_owned(), |count| format!("{}{rest}", screen::count(count)))
    });
    grouped.collect::<Vec<_>>().join(" ")
}

fn word(verdict: immich_backup_core::verdict::Verdict) -> String {
    serde_json::to_value(verdict).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
