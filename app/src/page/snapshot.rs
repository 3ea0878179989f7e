//! One snapshot: what it holds, how well it is proven, what it lacks.

use super::folder::{self, root_name};
use super::layout::{Tab, shell};
use super::overview;
use super::setup::Page;
use super::source::SourceError;
use super::timeline::proof_badge;
use super::words::{bytes, count, counted, foreign, moment};
use immich_backup_core::model::RunId;
use immich_backup_core::repository::log::Tally;
use immich_backup_core::repository::manifest::SnapshotRow;
use jiff::Timestamp;
use maud::{Markup, html};

/// What is named of each kind: all that the log names.
const NAMED_SHOWN: usize = 1_000;

/// The snapshot `id` (`latest` for the newest); `None` where there is none.
pub async fn find(page: &Page, id: &str) -> Result<Option<SnapshotRow>, SourceError> {
    if id == "latest" {
        return Ok(page.source.known().await?.latest.clone());
    }
    let Ok(id) = id.parse::<RunId>() else { return Ok(None) };
    page.source.read(move |manifest| Ok(manifest.snapshot(id)?)).await
}

/// The snapshot's page.
pub async fn view(page: &Page, snapshot: &SnapshotRow) -> Result<Markup, SourceError> {
    let sequence = snapshot.sequence;
    let roots = match page.source.tree(sequence).await {
        Ok(tree) => tokio::task::spawn_blocking(move || tree.roots(sequence)).await.map_err(|_| SourceError::Failed),
        Err(error) => Err(error),
    };
    let fact = &snapshot.fact;
    let now = Timestamp::now();
    let class = |name: &str, tally: Tally| html! { div { dt { (name) } dd { (counted(tally.files, "file", "files")) ", " (bytes(tally.bytes)) } } };
    let content = html! {
        nav.crumbs aria-label="Where you are" { ol { li { a href="/timeline" { "Snapshots" } } li aria-current="page" { (snapshot.id.short()) } } }
        h1 { (moment(fact.taken_at, now, &page.zone)) }
        p.badges { (proof_badge(fact)) @if let Some(label) = &fact.label { span.label { (foreign(label)) } } }
        section aria-labelledby="files" {
            h2 #files { "Files" }
            @match &roots {
                Ok(roots) => {
                    div.scroll tabindex="0" role="region" aria-label="Folders of the snapshot" {
                        table.files {
                            thead { tr { th scope="col" { "Folder" } th.number scope="col" { "Files" } th.number scope="col" { "Size" } } }
                            tbody {
                                @for (root, below) in roots {
                                    tr {
                                        th scope="row" { (folder::icon(true)) a href=(folder::address(&snapshot.id, root, "", 1, false)) { (root_name(root)) } }
                                        td.number { (count(below.files)) }
                                        td.number { (bytes(below.bytes)) }
                                    }
                                }
                            }
                        }
                    }
                }
                Err(error) => p { (overview::of_error(error).sentence) " `immich-backup ls` shows the files." },
            }
        }
        section aria-labelledby="holds" {
            h2 #holds { "What it holds" }
            dl.facts {
                (class("Originals", fact.totals.original))
                (class("What Immich can make again", fact.totals.derived))
                div { dt { "Database" } dd { @match &fact.dump { Some(key) => code { (foreign(key)) }, None => span.never { "none" } } } }
                @if let Some(version) = &fact.immich_version { div { dt { "Immich" } dd { (foreign(version)) } } }
                div { dt { "Sent by its run" } dd { (counted(fact.sent.files, "file", "files")) ", " (bytes(fact.sent.bytes)) } }
                div { dt { "Snapshot" } dd { code { (snapshot.id.to_string()) } } }
            }
        }
        @if let Some(proof) = &fact.proof {
            section aria-labelledby="proof" {
                h2 #proof { "The proof" }
                dl.facts {
                    @for (number, name, meaning) in [
                        (proof.proven, "Proven", "the bytes have the checksum that Immich recorded"),
                        (proof.unprovable, "External", "stored; Immich has no checksum of them"),
                        (proof.mismatched, "Other content", "stored, with another checksum than Immich recorded"),
                        (proof.missing, "Missing", "Immich knows them, and they are nowhere"),
                        (proof.outside, "Outside", "in external libraries that are not backed up"),
                        (proof.offline, "Offline", "Immich itself says that they are gone"),
                        (proof.untracked, "Untracked", "files that Immich does not know"),
                        (proof.companions.missing, "Companions missing", "sidecars and profile pictures"),
                    ] {
                        @if number > 0 || name == "Proven" { div { dt { (name) } dd { strong { (count(number)) } " " (meaning) } } }
                    }
                }
            }
            (overview::named(proof, NAMED_SHOWN, None))
        }
        (names("Could not be read", fact.unread_count, fact.unread.iter().map(|unread| (unread.path.as_str(), unread.problem.as_str()))))
        (names("Probably damaged on the disk", fact.bit_rot_count, fact.bit_rot.iter().map(|path| (path.as_str(), "the stored version is kept"))))
        (names("Not what Immich recorded", fact.doubtful_count, fact.doubtful.iter().map(|path| (path.as_str(), "the good version is kept"))))
    };
    Ok(shell(page, Tab::Files, "Snapshot", &content))
}

fn names<'a>(title: &str, count: u64, names: impl ExactSizeIterator<Item = (&'a str, &'a str)>) -> Markup {
    let told = names.len() as u64;
    html! {
        @if count > 0 {
            section {
                h2 { (title) }
                ul.names { @for (path, note) in names { li { code { (foreign(path)) } " " (foreign(note)) } } }
                @if count > told { p { "and " (super::words::count(count - told)) " more" } }
            }
        }
    }
}
