//! Numbers and events in words.

use immich_backup_core::event::{Event, Phase, Stored};
use immich_backup_core::repository::log::Tally;
use indicatif::{DecimalBytes, HumanCount};
use jiff::Timestamp;

/// A size: `1.80 GB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    DecimalBytes(bytes).to_string()
}

/// A count: `23,033`.
#[must_use]
pub fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// `1 file`, `412 files`.
#[must_use]
pub fn files(files: u64) -> String {
    format!("{} {}", count(files), if files == 1 { "file" } else { "files" })
}

/// `412 files, 1.80 GB`.
#[must_use]
pub fn tally(tally: Tally) -> String {
    format!("{}, {}", files(tally.files), bytes(tally.bytes))
}

/// `3 min ago`, `2 h ago`, `5 d ago`.
#[must_use]
pub fn age(at: Timestamp) -> String {
    match Timestamp::now().duration_since(at).as_secs() {
        ..0 => "in the future".to_owned(),
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} d ago", seconds / 86_400),
    }
}

/// What a phase is called.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Refresh => "reading the log",
        Phase::Dump => "dumping the database",
        Phase::SendDump => "sending the dump",
        Phase::Store => "storing",
        Phase::LookAgain => "looking again for what was not seen",
        Phase::List => "listing",
        Phase::ReadBack => "reading back",
        Phase::Prove => "proving",
        Phase::ReadDump => "reading the dump",
        Phase::Load => "loading the database",
        Phase::CountRows => "counting rows",
        Phase::Compare => "comparing",
        Phase::Write => "restoring",
        Phase::Remove => "removing",
        Phase::CopyManifest => "copying the manifest",
    }
}

/// What went wrong, if the event says that something did.
pub(super) fn problem(event: &Event) -> Option<String> {
    Some(match event {
        Event::FileFailed { path, problem } => format!("cannot use `{path}`: {problem}"),
        Event::BitRotSuspected { path } => {
            format!("`{path}` has other content though its size and times are the same: probably damaged at the source; the stored version stays")
        }
        Event::FileDoubtful { path } => {
            format!("`{path}` is not what Immich recorded of it: damaged at the source; it is stored beside the good version, which stays")
        }
        Event::ObjectLost { key } => format!("the object `{key}` is not in the store any more; its content is sent again"),
        Event::ObjectDamaged { key, problem } => format!("object `{key}`: {problem}"),
        Event::SpecialSkipped { path, kind } => format!("passed over `{path}`: it is a {kind}"),
        Event::Retrying { action, key, retry, of, wait_ms, problem } => {
            format!(
                "could not {action} `{key}` ({problem}); trying again in {:.1} s ({retry} of {of})",
                std::time::Duration::from_millis(*wait_ms).as_secs_f64()
            )
        }
        Event::Warned { message } => format!("warning: {message}"),
        Event::Waiting { what } => format!("waiting: {what}"),
        Event::DeadRunFound { run } => format!("run {} died; this one goes on from there", run.short()),
        Event::EntryTaken { sequence, writer } => format!("another writer ({}) added log entry {sequence}", writer.short()),
        _ => return None,
    })
}

/// What is worth a line unless somebody wants to see only what is wrong: what nobody said and was found, and what happened to services.
pub(super) fn note(event: &Event) -> Option<String> {
    match event {
        Event::Found { what, value, origin } if origin.is_empty() => Some(format!("found {what}: {value}")),
        Event::Found { what, value, origin } => Some(format!("found {what}: {value} ({origin})")),
        Event::StagingFinished { files: count, bytes: size } => Some(format!("copied to the stage: {}, {}", files(*count), bytes(*size))),
        Event::ImmichUp { downtime_ms } => Some(format!("Immich is up again; it was down for {}", seconds(*downtime_ms))),
        Event::ServiceStopped { service, elapsed_ms } => Some(format!("stopped {service} ({})", seconds(*elapsed_ms))),
        Event::ServiceStarted { service } => Some(format!("started {service}")),
        _ => None,
    }
}

/// `12.3 s`.
#[must_use]
pub fn seconds(milliseconds: u64) -> String {
    format!("{:.1} s", std::time::Duration::from_millis(milliseconds).as_secs_f64())
}

/// What happened to one file, for those who want to see each.
pub(super) fn file(event: &Event) -> Option<String> {
    Some(match event {
        Event::FileStored { path, how, size_bytes, changed, .. } => {
            let what = match (how, changed) {
                (Stored::Touched, _) => "touched ",
                (_, true) => "changed ",
                (Stored::Known, _) => "known   ",
                (Stored::Adopted, _) => "adopted ",
                (Stored::Sent, _) => "new     ",
            };
            format!("{what} {path} ({})", bytes(*size_bytes))
        }
        Event::DumpStored { key, size_bytes } => format!("dump     {key} ({})", bytes(*size_bytes)),
        Event::FileArchived { path } => format!("archived {path}"),
        Event::FileRestored { path, size_bytes } => format!("restored {path} ({})", bytes(*size_bytes)),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!(count(23_033), "23,033");
        assert_eq!(bytes(1_800_000_000), "1.80 GB");
        assert_eq!(tally(Tally { files: 1, bytes: 12 }), "1 file, 12 B");
        let ago = |seconds: i64| age(Timestamp::now() - jiff::SignedDuration::from_secs(seconds));
        assert_eq!((ago(30).as_str(), ago(600).as_str(), ago(90_000).as_str()), ("30 s ago", "10 min ago", "25 h ago"));
        assert_eq!((ago(400_000).as_str(), ago(-60).as_str()), ("4 d ago", "in the future"));
    }
}
