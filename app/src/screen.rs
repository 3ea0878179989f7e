//! What a person, a log or a program sees of the events.

mod bars;
mod human;
mod plain;
mod progress;

pub use human::{age, bytes, count, files, seconds, tally};
pub use progress::Progress;

use immich_backup_core::event::{Event, Monitor, Silent};
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;

/// How much is shown, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// One JSON object a line.
    pub json: bool,
    /// Only what is wrong.
    pub quiet: bool,
    /// Every file.
    pub verbose: bool,
}

/// The monitor for this style: JSON lines, nothing, bars on a terminal, lines with times elsewhere.
#[must_use]
pub fn monitor(style: Style) -> Arc<dyn Monitor> {
    if !style.json && !style.quiet && std::io::stderr().is_terminal() { Arc::new(bars::Bars::new(style.verbose)) } else { lines(style) }
}

/// The monitor for this style without bars: JSON lines, nothing, or lines with times, also on a terminal.
#[must_use]
pub fn lines(style: Style) -> Arc<dyn Monitor> {
    if style.json {
        Arc::new(JsonLines)
    } else if style.quiet {
        Arc::new(OnlyWrong)
    } else {
        Arc::new(plain::Plain::new(style.verbose))
    }
}

/// What came from a store or another machine must not steer the terminal.
fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

/// Prints a line to standard output. A reader that went away (`| head`) ends nothing but the printing.
pub fn print_line(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(harmless(text).as_bytes()).and_then(|()| out.write_all(b"\n")).unwrap_or_default();
}

/// Prints a line to standard error.
pub fn print_error(text: &str) {
    let mut out = std::io::stderr().lock();
    out.write_all(harmless(text).as_bytes()).and_then(|()| out.write_all(b"\n")).unwrap_or_default();
}

/// Prints a line to standard error, after the time.
pub fn print_timed(text: &str) {
    print_error(&format!("{:.0}  {text}", jiff::Timestamp::now()));
}

/// Prints one JSON object.
pub fn print_json(value: &serde_json::Value) {
    print_line(&value.to_string());
}

struct JsonLines;

impl Monitor for JsonLines {
    fn emit(&self, event: Event) {
        if let Ok(serde_json::Value::Object(mut object)) = serde_json::to_value(&event) {
            object.insert("at".to_owned(), jiff::Timestamp::now().to_string().into());
            print_json(&serde_json::Value::Object(object));
        }
    }
}

struct OnlyWrong;

impl Monitor for OnlyWrong {
    fn emit(&self, event: Event) {
        if let Some(line) = human::problem(&event) {
            print_error(&line);
        } else {
            Silent.emit(event);
        }
    }
}
