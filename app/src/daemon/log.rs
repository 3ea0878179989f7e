//! What the daemon says on the screen: lines with times, or JSON lines.

use super::feed::{Happened, Watcher};
use crate::schedule::planner::{Job, Why};
use crate::screen::{self, Style};
use immich_backup_core::event::{Event, Monitor};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Writes down what happens.
pub struct Log {
    monitor: Arc<dyn Monitor>,
    style: Style,
    zone: TimeZone,
    told: Mutex<BTreeMap<Job, Timestamp>>,
}

impl Log {
    /// A log in this style, with times of this zone.
    #[must_use]
    pub fn new(style: Style, zone: TimeZone) -> Self {
        Self { monitor: screen::lines(style), style, zone, told: Mutex::default() }
    }

    fn say(&self, text: &str, object: Value) {
        if self.style.json {
            let Value::Object(mut object) = object else { return };
            object.insert("at".to_owned(), json!(Timestamp::now()));
            screen::print_json(&Value::Object(object));
        } else {
            screen::print_timed(text);
        }
    }

    fn ended(&self, report: &super::feed::Report) {
        let last = &report.last;
        let seconds = last.ended_at.duration_since(last.began_at).as_secs();
        let message = if last.message.is_empty() { String::new() } else { format!(": {}", last.message) };
        let hint = report.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"));
        let verdict = if last.is_well() { "ended well".to_owned() } else { format!("ended with exit code {} ({})", last.exit_code, last.outcome) };
        let object = json!({
            "type": "job_ended",
            "job": report.job,
            "began_at": last.began_at,
            "ended_at": last.ended_at,
            "exit_code": last.exit_code,
            "outcome": last.outcome,
            "message": last.message,
            "hint": report.hint,
            "summary": report.summary,
        });
        if self.style.json || !self.style.quiet || !last.is_well() {
            self.say(&format!("{} {verdict} after {seconds} s{message}{hint}", report.job), object);
        }
    }

    fn planned(&self, next: &BTreeMap<Job, Timestamp>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == *next {
            return;
        }
        next.clone_into(&mut told);
        drop(told);
        let text: Vec<_> = next.iter().map(|(job, at)| format!("{job} {}", self.zone.to_datetime(*at).strftime("%Y-%m-%d %H:%M:%S"))).collect();
        let zone = self.zone.iana_name().unwrap_or("local time");
        self.say(&format!("next: {} ({zone})", text.join(", ")), json!({ "type": "planned", "next": next }));
    }
}

/// Why a job runs, in words; nothing where it is simply its time.
fn reason(why: Why) -> String {
    match why {
        Why::Planned { missed: 0, overrun: false, .. } => String::new(),
        Why::Planned { overrun: true, missed, .. } => {
            format!(", late: the last one took longer than the time between two{}", passed_over(missed))
        }
        Why::Planned { planned, missed, .. } => format!(", made up for: it was planned for {planned:.0}{}", passed_over(missed)),
        Why::Retry { attempt } => format!(", try {} after a failure", attempt.saturating_add(1)),
        Why::Asked => ", as was asked for".to_owned(),
    }
}

fn passed_over(missed: u32) -> String {
    match missed {
        0 => String::new(),
        1 => ", and one time was passed over".to_owned(),
        missed => format!(", and {missed} times were passed over"),
    }
}

impl Watcher for Log {
    fn notice(&self, happened: &Happened<'_>) {
        match happened {
            Happened::Began { job, why, .. } if self.style.json || !self.style.quiet => {
                let object = json!({ "type": "job_began", "job": job, "reason": why });
                self.say(&format!("{job} begins{}", reason(*why)), object);
            }
            Happened::Began { .. } => {}
            Happened::Emitted(event) => self.monitor.emit((*event).clone()),
            Happened::Wrote(line) => screen::print_error(line),
            Happened::Ended(report) => self.ended(report),
            Happened::Planned(next) if self.style.json || !self.style.quiet => self.planned(next),
            Happened::Planned(_) => {}
            Happened::Noticed(notice) => self.monitor.emit(Event::Warned { message: notice.to_string() }),
            Happened::Warned(message) => self.monitor.emit(Event::Warned { message: (*message).to_owned() }),
        }
    }
}
