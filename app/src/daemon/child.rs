//! A job as a process of its own: this same program, with `--json`. Its memory is returned, a panic or the kernel's memory killer ends it alone, and
//! what it says is read as the events that it was written from.

use super::board::Board;
use super::feed::{Feed, Happened, Report};
use crate::config::{Origin, Settings};
use crate::schedule::planner::Job;
use crate::settings::{COMMANDS, EVERYWHERE, Takes, setting};
use anyhow::Context as _;
use immich_backup_core::event::Event;
use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// The name under which a job is told the process that waits for it.
pub const PARENT: &str = "IMMICH_BACKUP_DAEMON_PROCESS";

/// This program, also after another version has been put in its place.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A summary names a thousand files of each kind at most; a longer line is not one of ours.
const LINE_BYTES_MAX: usize = 16 << 20;

/// The last lines that a job wrote beside its events, for who asks why it died.
const LAST_WORDS_MAX: usize = 5;

/// The daemon's loop is seen to turn this often while a job runs.
const TURN_EVERY: Duration = Duration::from_secs(20);

/// How long is waited for the rest of what an ended job has written: something that it started may hold its output open for longer.
const DRAIN: Duration = Duration::from_secs(2);

/// What the daemon was told on its command line, as a job is told: by the environment, where that has a name for it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told {
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Told {
    /// Tells this name of the environment as well.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: String) -> Self {
        self.environment.push((name, value));
        self
    }
}

/// What to tell `job`.
///
/// The environment serves better than flags: no password of a URL shows in a list of processes, and `drill` takes only what is said to it on its own
/// command line for its throw-away database.
#[must_use]
pub fn told(job: Job, settings: &Settings) -> Told {
    let own = COMMANDS.iter().find(|spec| spec.name == job.name()).map_or(&[][..], |spec| spec.settings);
    let mut told = Told::default();
    for setting in own.iter().chain(EVERYWHERE).filter_map(|name| setting(name)) {
        let Some(found) = settings.found(setting.name).filter(|found| found.origin == Origin::Flag && !["json", "show-config"].contains(&setting.name)) else {
            continue;
        };
        match (setting.takes, setting.environment.first(), found.values.as_slice()) {
            (Takes::Value(_) | Takes::Switch, Some(name), [value]) => told.environment.push((name, value.clone())),
            (Takes::Switch, None, [on]) if on == "true" => told.arguments.push(format!("--{}", setting.name)),
            (Takes::Switch, None, _) => {}
            (_, _, values) => told.arguments.extend(values.iter().map(|value| format!("--{}={value}", setting.name))),
        }
    }
    told
}

/// Runs `job` to its end. When `stop` is cancelled it is asked to end well, which it does after its checkpoint.
pub async fn run(job: Job, told: &Told, feed: &Feed, board: &Board, stop: &CancellationToken) -> Report {
    let began_at = Timestamp::now();
    let (summary, died) = match watched(job, told, feed, board, stop).await {
        Ok(ended) => ended,
        Err(error) => (Map::new(), Some(format!("{error:#}"))),
    };
    Report::new(job, began_at, Timestamp::now(), summary, died)
}

async fn watched(job: Job, told: &Told, feed: &Feed, board: &Board, stop: &CancellationToken) -> anyhow::Result<(Map<String, Value>, Option<String>)> {
    let mut command = Command::new(THIS_PROGRAM);
    command.arg0("immich-backup").arg(job.name()).arg("--json").args(&told.arguments);
    command.envs(told.environment.iter().map(|(name, value)| (OsStr::new(name), value))).env(PARENT, std::process::id().to_string());
    // Ctrl-C goes to all of a terminal's group at once: here it goes to the daemon, which tells the job.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().with_context(|| format!("cannot start a process for {job}"))?;
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    let mut out = child.stdout.take().map(|out| Lines::new(BufReader::new(out))).context("a process without output")?;
    let mut err = child.stderr.take().map(|err| Lines::new(BufReader::new(err))).context("a process without output for errors")?;
    let mut heard = Heard { feed, summary: Map::new(), last_words: VecDeque::new() };
    let mut turn = tokio::time::interval(TURN_EVERY);
    let mut asked = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.with_context(|| format!("cannot wait for the process of {job}"))?,
            line = out.next(), if !out.is_over => heard.line(line),
            line = err.next(), if !err.is_over => heard.word(line),
            _ = turn.tick() => board.turn(),
            () = stop.cancelled(), if !asked => {
                asked = true;
                if let Some(pid) = pid && let Err(error) = kill_process(pid, Signal::TERM) {
                    feed.tell(&Happened::Warned(&format!("cannot tell the process of {job} to end: {error}")));
                }
            }
        }
    };
    let rest = async {
        while !out.is_over {
            heard.line(out.next().await);
        }
        while !err.is_over {
            heard.word(err.next().await);
        }
    };
    // What was written is in the pipe by now: only somebody else can keep it open.
    if tokio::time::timeout(DRAIN, rest).await.is_err() && heard.summary.is_empty() {
        feed.tell(&Happened::Warned(&format!("the process of {job} has ended, and something that it started has not")));
    }
    let died = death(status, &heard.summary).map(|how| std::iter::once(how).chain(heard.last_words).collect::<Vec<_>>().join("; "));
    Ok((heard.summary, died))
}

/// How a process died, where it did not end as a command ends: with a summary that tells its exit code.
fn death(status: ExitStatus, summary: &Map<String, Value>) -> Option<String> {
    let told = summary.get("exit_code").and_then(Value::as_i64);
    match (status.signal(), status.code()) {
        (Some(signal), _) => Some(format!("signal {signal} ended it{}", if signal == 9 { " (somebody did, or the memory was full)" } else { "" })),
        (None, Some(code)) if told == Some(i64::from(code)) => None,
        (None, code) => Some(format!("it died with exit code {} and no summary", code.unwrap_or(-1))),
    }
}

/// What a job says.
struct Heard<'a> {
    feed: &'a Feed,
    summary: Map<String, Value>,
    last_words: VecDeque<String>,
}

impl Heard<'_> {
    fn line(&mut self, line: Option<String>) {
        let Some(line) = line else { return };
        match serde_json::from_str(&line) {
            Ok(Value::Object(object)) if object.get("type").is_some_and(|kind| kind == "summary") => self.summary = object,
            // What else there is are results, such as the rows of a listing: who runs the command by hand wants them.
            Ok(value) => {
                if let Ok(event) = serde_json::from_value::<Event>(value) {
                    self.feed.tell(&Happened::Emitted(&event));
                }
            }
            Err(_) => self.word(Some(line)),
        }
    }

    fn word(&mut self, line: Option<String>) {
        let Some(line) = line.filter(|line| !line.is_empty()) else { return };
        self.feed.tell(&Happened::Wrote(&line));
        self.last_words.push_back(line.chars().take(300).collect());
        if self.last_words.len() > LAST_WORDS_MAX {
            self.last_words.pop_front();
        }
    }
}

/// Lines of a pipe, of which none is longer than [`LINE_BYTES_MAX`]: what is longer comes in pieces.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    is_over: bool,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(reader: R) -> Self {
        Self { reader, line: Vec::new(), is_over: false }
    }

    /// The next line, without its end; `None` where the pipe ends. Nothing is lost when the future is dropped.
    async fn next(&mut self) -> Option<String> {
        loop {
            let (taken, ends) = match self.reader.fill_buf().await {
                Ok([]) | Err(_) => {
                    self.is_over = true;
                    return (!self.line.is_empty()).then(|| self.take());
                }
                Ok(bytes) => {
                    let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let wanted = end.unwrap_or(bytes.len()).min(room);
                    self.line.extend(bytes.iter().take(wanted));
                    let at_end = end == Some(wanted);
                    (wanted + usize::from(at_end), at_end || self.line.len() >= LINE_BYTES_MAX)
                }
            };
            self.reader.consume(taken);
            if ends {
                return Some(self.take());
            }
        }
    }

    fn take(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(arguments: &[&str], environment: &[(&str, &str)]) -> Settings {
        let matches = crate::cli::command().get_matches_from([&["immich-backup", "daemon"], arguments].concat());
        let lookup = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve(matches.subcommand().unwrap().1, &lookup).unwrap()
    }

    #[test]
    fn a_job_is_told_what_it_takes_and_no_password_becomes_an_argument() {
        let arguments = [
            ["--schedule", "@daily", "--repository", "/r", "--database", "postgres://u:secret@h/d", "--external", "a=/x,y"].as_slice(),
            &["--external", "b=/z", "--read-data", "--sample", "5%", "--keep-last", "3", "--init", "--workers", "7", "-v"],
        ]
        .concat();
        let settings = settings(&arguments, &[("UPLOAD_LOCATION", "/library")]);
        let backup = told(Job::Backup, &settings);
        assert_eq!(backup.arguments, ["--external=a=/x,y", "--external=b=/z"]);
        let mut names: Vec<_> = backup.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        names.sort();
        assert_eq!(
            names,
            [
                "IMMICH_BACKUP_DATABASE=postgres://u:secret@h/d",
                "IMMICH_BACKUP_INIT=true",
                "IMMICH_BACKUP_REPOSITORY=/r",
                "IMMICH_BACKUP_VERBOSE=true",
                "IMMICH_BACKUP_WORKERS=7"
            ]
        );
        assert_eq!(told(Job::Verify, &settings).arguments, ["--read-data"]);
        assert!(told(Job::Verify, &settings).environment.contains(&("IMMICH_BACKUP_SAMPLE", "5%".to_owned())));
        let prune = told(Job::Prune, &settings);
        assert!(prune.environment.contains(&("IMMICH_BACKUP_KEEP_LAST", "3".to_owned())) && prune.arguments.is_empty());
        // The live database is nothing for a drill: from the environment it does not take it.
        assert!(told(Job::Drill, &settings).arguments.is_empty());
    }

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let long = "x".repeat(LINE_BYTES_MAX + 5);
        let text = format!("one\n\ntwo\n{long}\nlast");
        let mut lines = Lines::new(BufReader::new(text.as_bytes()));
        let mut found = Vec::new();
        while !lines.is_over {
            found.extend(lines.next().await);
        }
        assert_eq!(found.iter().map(String::len).collect::<Vec<_>>(), [3, 0, 3, LINE_BYTES_MAX, 5, 4]);
        assert_eq!((found[2].as_str(), found[5].as_str()), ("two", "last"));
    }
}
