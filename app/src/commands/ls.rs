use crate::app::{App, Outcome};
use crate::exit::Exit;
use crate::screen;
use immich_backup_core::library::layout::class_of;
use immich_backup_core::library::scope::Patterns;
use immich_backup_core::model::{Class, Root};
use immich_backup_core::repository::log::Tally;
use immich_backup_core::repository::manifest::{FileRow, ManifestError, Selector};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What a summary counts: files of a top folder, by class.
type Groups = BTreeMap<(String, Class), Tally>;

/// Shows files.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let reading = app.reading().await?;
    let manifest = &reading.session.manifest;
    let wanted = super::patterns(app.argument.as_slice())?;
    let (archived, summary) = (app.settings.switch("archived")?, app.settings.switch("summary")?);
    let selector = app.settings.parsed::<Selector>("snapshot")?.unwrap_or(Selector::Latest);
    let snapshot = manifest.select(&selector)?;
    let mut total = Tally::default();
    let mut groups = Groups::new();
    let show = |row: FileRow| -> Result<(), ManifestError> {
        if takes(&wanted, &row) {
            total.add(row.size_bytes);
            if summary {
                groups.entry((group(&row), class_of(&row.file))).or_default().add(row.size_bytes);
            } else if app.json {
                screen::print_json(&object(&row));
            } else {
                screen::print_line(&line(&row));
            }
        }
        Ok(())
    };
    if archived {
        manifest.each_archived(snapshot.sequence, show)?
    } else {
        manifest.each_file(snapshot.sequence, show)?
    }
    let what = if archived { "archived" } else { "in snapshot" };
    let mut lines: Vec<_> = groups
        .iter()
        .map(|((folder, class), tally)| format!("{:>12}  {:>10}  {:<9} {folder}", screen::count(tally.files), screen::bytes(tally.bytes), class.name()))
        .collect();
    if summary {
        lines.push(format!("{:>12}  {:>10}  total {what} {}", screen::count(total.files), screen::bytes(total.bytes), snapshot.id.short()));
    }
    let groups: Vec<_> =
        groups.iter().map(|((folder, class), tally)| json!({ "folder": folder, "class": class, "files": tally.files, "bytes": tally.bytes })).collect();
    let fields = json!({ "snapshot": snapshot.id, "archived": archived, "files": total.files, "bytes": total.bytes, "groups": groups });
    Ok(Outcome::new(Exit::Done, lines.join("\n"), fields))
}

fn takes(wanted: &Patterns, row: &FileRow) -> bool {
    wanted.is_empty() || wanted.matches(&row.file.to_string())
}

/// The folder of the media location, or what lies beside it.
fn group(row: &FileRow) -> String {
    match &row.file.root {
        Root::Library => row.file.path.as_str().split_once('/').map_or(".", |(folder, _)| folder).to_owned(),
        Root::External(name) => format!("external/{name}"),
        Root::Config => "config".to_owned(),
        Root::Postgres => "postgres".to_owned(),
    }
}

fn time(mtime_ns: i64) -> String {
    Timestamp::from_nanosecond(mtime_ns.into()).map_or_else(|_| mtime_ns.to_string(), |time| format!("{time:.0}"))
}

fn line(row: &FileRow) -> String {
    let damaged = if row.damaged { "  DAMAGED" } else { "" };
    format!("{:>10}  {}  {}{damaged}", screen::bytes(row.size_bytes), time(row.mtime_ns), row.file)
}

fn object(row: &FileRow) -> Value {
    json!({
        "type": "file",
        "path": row.file,
        "size": row.size_bytes,
        "mtime": time(row.mtime_ns),
        "sha256": row.digests.sha256,
        "sha1": row.digests.sha1,
        "key": row.key,
        "class": class_of(&row.file),
        "damaged": row.damaged,
    })
}
