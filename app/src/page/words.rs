//! Numbers, times and states as people read them.

use immich_backup_core::event::Phase;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use maud::{Markup, html};

pub use crate::screen::{bytes, count};

/// `1 photo`, `3 photos`.
pub fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A span as people say it: `45 seconds`, `3 hours`, `12 days`.
pub fn span(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..=89 => (seconds, "second"),
        90..=5_399 => ((seconds + 30) / 60, "minute"),
        5_400..=129_599 => ((seconds + 1_800) / 3_600, "hour"),
        129_600..=5_183_999 => ((seconds + 43_200) / 86_400, "day"),
        5_184_000..=63_071_999 => ((seconds + 1_314_900) / 2_629_800, "month"),
        _ => (seconds / 31_557_600, "year"),
    };
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// `3 hours ago`, `in 20 minutes`, `just now`.
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(at).as_secs();
    match seconds {
        -20..=20 => "just now".to_owned(),
        ..=-21 => format!("in {}", span(seconds.unsigned_abs())),
        _ => format!("{} ago", span(seconds.unsigned_abs())),
    }
}

/// The clock on the wall: `22 Nov 2026, 03:00`.
pub fn clock(at: Timestamp, zone: &TimeZone) -> String {
    at.to_zoned(zone.clone()).strftime("%-d %b %Y, %H:%M").to_string()
}

/// An age, with the exact time for who wants it.
pub fn time(at: Timestamp, now: Timestamp, zone: &TimeZone) -> Markup {
    html! { time datetime=(format!("{at:.0}")) title=(clock(at, zone)) data-ago { (ago(at, now)) } }
}

/// A date and a time, with the age for who wants it.
pub fn moment(at: Timestamp, now: Timestamp, zone: &TimeZone) -> Markup {
    html! { time datetime=(format!("{at:.0}")) title=(ago(at, now)) { (clock(at, zone)) } }
}

/// A text of a log, a dump or a library: shown as it is, in a direction of its own.
pub fn foreign(text: &str) -> Markup {
    html! { bdi { (visible(text)) } }
}

/// Without what is seen nowhere, or turns the text around: somebody who names a file may want it to look like another.
pub fn visible(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' | '\u{061C}' | '\u{2028}' | '\u{2029}')
    };
    text.chars().map(|c| if is_hidden(c) && c != '\u{200D}' && c != '\u{200C}' { '\u{FFFD}' } else { c }).collect()
}

/// What a phase of a job does.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Refresh => "Reading the log",
        Phase::Dump => "Dumping the database",
        Phase::SendDump => "Sending the dump",
        Phase::Store => "Storing what is new",
        Phase::LookAgain => "Looking again for what was not seen",
        Phase::List => "Listing the store",
        Phase::ReadBack => "Reading objects back",
        Phase::Prove => "Proving",
        Phase::ReadDump => "Reading the dump",
        Phase::Load => "Loading the database",
        Phase::CountRows => "Counting rows",
        Phase::Compare => "Comparing",
        Phase::Write => "Writing files",
        Phase::Remove => "Removing what is not needed",
        Phase::CopyManifest => "Copying the manifest",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_people_say_them() {
        let now: Timestamp = "2026-05-02T12:00:00Z".parse().unwrap();
        let said = |seconds: i64| ago(now - jiff::SignedDuration::from_secs(seconds), now);
        let all = [5, 60, 100, 3_600, 7_200, 90_000, 130_000, 40 * 86_400, 70 * 86_400, 800 * 86_400, -1_200].map(said);
        assert_eq!(
            all,
            [
                "just now",
                "60 seconds ago",
                "2 minutes ago",
                "60 minutes ago",
                "2 hours ago",
                "25 hours ago",
                "2 days ago",
                "40 days ago",
                "2 months ago",
                "2 years ago",
                "in 20 minutes"
            ]
        );
        assert_eq!((counted(1, "file", "files"), counted(23_033, "file", "files")), ("1 file".to_owned(), "23,033 files".to_owned()));
        assert_eq!(clock(now, &TimeZone::UTC), "2 May 2026, 12:00");
    }

    #[test]
    fn a_name_cannot_look_like_another() {
        assert_eq!(visible("photo\u{202E}gpj.exe"), "photo\u{FFFD}gpj.exe");
        assert_eq!(visible("a\nb\u{7}\u{200B}c"), "a\u{FFFD}b\u{FFFD}\u{FFFD}c");
        assert_eq!(visible("👨\u{200D}👩 größe שלום"), "👨\u{200D}👩 größe שלום");
        assert_eq!(foreign("<script>\"'&").into_string(), "<bdi>&lt;script&gt;&quot;'&amp;</bdi>");
    }
}
