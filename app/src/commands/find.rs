use crate::app::{App, Outcome};
use crate::config::{Origin, UsageError};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::database::inventory::{Kind, Meaning};
use immich_backup_core::find::{self, FileName, Hit, Query};
use immich_backup_core::repository::Until;
use immich_backup_core::repository::manifest::{Manifest, Selector, SnapshotRow};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// Shows the assets that fit.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let mut query = query(app)?;
    query.name = app.argument.as_deref().filter(|text| !text.is_empty()).map(FileName::new).transpose()?;
    let deleted = query.deleted;
    let reading = app.reading_until(log_end(app)?).await?;
    let manifest = &reading.session.manifest;
    let snapshot = snapshot(app, manifest, deleted)?;
    let mut show = |hit: Hit| {
        if app.json {
            screen::print_json(&object(&hit));
        } else {
            screen::print_line(&line(&hit, deleted));
        }
    };
    let count = find::find(&reading.session, &query, snapshot.as_ref(), app.monitor.as_ref(), &app.stop, &mut show).await?;
    let assets = if count == 1 { "asset" } else { "assets" };
    let of = match (&snapshot, deleted) {
        (Some(snapshot), false) => format!(" in snapshot {}", snapshot.id.short()),
        (Some(snapshot), true) => format!(" deleted since snapshot {}", snapshot.id.short()),
        (None, true) => " deleted, of all earlier snapshots that have their dump".to_owned(),
        (None, false) => String::new(),
    };
    let fields = json!({ "snapshot": snapshot.map(|snapshot| snapshot.id), "deleted": deleted, "assets": count, "errors": [] });
    Ok(Outcome::new(Exit::Done, format!("{} {assets}{of}", screen::count(count)), fields))
}

/// The snapshot that is asked: for what was deleted, the one that was named; `None` asks all.
///
/// # Errors
/// None fits.
pub fn snapshot(app: &App, manifest: &Manifest, deleted: bool) -> anyhow::Result<Option<SnapshotRow>> {
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let said = app.settings.found("snapshot").is_some_and(|found| found.origin != Origin::Default);
    let snapshot = manifest.select(&selector)?;
    Ok((said || !deleted).then_some(snapshot))
}

/// What `--album`, `--user`, `--person`, `--since`, `--until`, `--type`, `--trashed` and `--deleted` mean together.
///
/// # Errors
/// One of them cannot be understood.
pub fn query(app: &App) -> Result<Query, UsageError> {
    let texts = |name| app.settings.texts(name).to_vec();
    let kind = match app.settings.text("type").map(str::to_ascii_lowercase).as_deref() {
        None => None,
        Some("image" | "photo" | "picture") => Some(Kind::Image),
        Some("video") => Some(Kind::Video),
        Some("audio") => Some(Kind::Audio),
        Some("other") => Some(Kind::Other),
        Some(other) => return Err(UsageError(format!("--type cannot be `{other}`: write image, video, audio or other"))),
    };
    let until = app.settings.text("until").filter(|text| !is_entry(text));
    let meaning = Meaning {
        albums: texts("album"),
        users: texts("user"),
        persons: texts("person"),
        since: app.settings.text("since").map(|text| moment("since", text, false)).transpose()?,
        until: until.map(|text| moment("until", text, true)).transpose()?,
        kind,
        trashed: app.settings.switch("trashed")?.then_some(true),
    };
    Ok(Query { meaning, name: None, deleted: app.settings.switch("deleted")? })
}

/// Whether `--until` means an entry of the log.
fn is_entry(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once(':').map_or_else(|| is_number(text), |(epoch, sequence)| is_number(epoch) && is_number(sequence))
}

/// The entry of the log that `--until` means, if it means one and not a time.
///
/// # Errors
/// A number too large.
pub fn log_end(app: &App) -> Result<Option<Until>, UsageError> {
    if app.settings.text("until").is_some_and(is_entry) { app.settings.parsed("until") } else { Ok(None) }
}

/// The beginning of a day, month or year, or, with `end`, of the next one; or a time, as it stands. As Immich has them: by the clock where a picture was taken,
/// as if that were UTC.
fn moment(name: &str, text: &str, end: bool) -> Result<Timestamp, UsageError> {
    let wrong = || {
        UsageError(format!(
            "--{name} cannot be `{text}`: write a day, month or time like 2024-06-30, 2024-06 or 2024-06-30T18:00, by the clock where it was taken"
        ))
    };
    let text = text.trim();
    let day = |text: &str| text.parse::<Date>().ok().filter(|_| !text.contains([':', 'T', ' ']));
    let of = |date: Date, span: jiff::Span| if end { date.checked_add(span).ok() } else { Some(date) };
    let days = match text.len() {
        4 => day(&format!("{text}-01-01")).and_then(|date| of(date, jiff::Span::new().years(1))),
        7 => day(&format!("{text}-01")).and_then(|date| of(date, jiff::Span::new().months(1))),
        _ => day(text).and_then(|date| of(date, jiff::Span::new().days(1))),
    };
    let time = match days {
        Some(date) => date.at(0, 0, 0, 0),
        // With a zone it would be another time on that clock.
        None => {
            let zoned = text.get(10..).is_some_and(|time| time.contains(['Z', 'z', '+', '-', '[']));
            text.parse::<DateTime>().ok().filter(|_| text.contains(':') && !zoned).ok_or_else(wrong)?
        }
    };
    Ok(time.to_zoned(TimeZone::UTC).map_err(|_| wrong())?.timestamp())
}

fn taken_at(hit: &Hit) -> Option<DateTime> {
    hit.asset.taken_at.map(|time| TimeZone::UTC.to_datetime(time))
}

/// A name as part of a line.
fn in_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

fn line(hit: &Hit, deleted: bool) -> String {
    let asset = &hit.asset;
    let taken = taken_at(hit).map_or_else(|| "-".to_owned(), |time| format!("{time:.0}").replace('T', " "));
    let owner = asset.owner_email.as_deref().or(asset.owner_name.as_deref()).unwrap_or("-");
    let path = asset.file.as_ref().map_or_else(|| "(outside of the backup)".to_owned(), ToString::to_string);
    let mut parts = vec![format!("{taken:<19}"), in_line(owner), in_line(&asset.original_name), path];
    if !asset.albums.is_empty() {
        let albums: Vec<_> = asset.albums.iter().map(|album| in_line(album)).collect();
        parts.insert(3, format!("[{}]", albums.join(", ")));
    }
    if asset.trashed {
        parts.push("trashed".to_owned());
    }
    if deleted {
        parts.push(format!("last in snapshot {}", hit.snapshot.short()));
    }
    parts.join("  ")
}

fn object(hit: &Hit) -> Value {
    let asset = &hit.asset;
    json!({
        "type": "asset",
        "id": asset.id,
        "owner": asset.owner,
        "owner_email": asset.owner_email,
        "owner_name": asset.owner_name,
        "name": asset.original_name,
        "kind": asset.kind.map(|kind| kind.immich().to_ascii_lowercase()),
        "taken_at": taken_at(hit).map(|time| time.to_string()),
        "path": asset.file,
        "sha1": asset.sha1,
        "trashed": asset.trashed,
        "albums": asset.albums,
        "snapshot": hit.snapshot,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_meant_from_its_beginning_to_its_end() {
        for (text, since, until) in [
            ("2024-06-30", "2024-06-30T00:00:00Z", "2024-07-01T00:00:00Z"),
            ("2024-12", "2024-12-01T00:00:00Z", "2025-01-01T00:00:00Z"),
            ("2023", "2023-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
            ("2024-06-30T18:00", "2024-06-30T18:00:00Z", "2024-06-30T18:00:00Z"),
            ("2024-06-30 18:00:05", "2024-06-30T18:00:05Z", "2024-06-30T18:00:05Z"),
        ] {
            assert_eq!(moment("since", text, false).unwrap().to_string(), since, "{text}");
            assert_eq!(moment("until", text, true).unwrap().to_string(), until, "{text}");
        }
        for text in ["", "yesterday", "2024-13", "2024-02-30", "30.6.2024", "2024-06-30T18:00:00Z", "2024-06-30T18:00+02:00", "9999"] {
            assert!(moment("until", text, true).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn digits_alone_are_an_entry_of_the_log() {
        assert!(is_entry("42") && !is_entry("2024-06") && !is_entry(""));
    }
}
