//! One folder of a snapshot: folders and files in it, with sizes and state. Names only; no content leaves the repository this way.

use super::layout::{Tab, badge, encoded, shell};
use super::setup::Page;
use super::source::SourceError;
use super::verdict::Level;
use super::words::{bytes, count, counted, foreign, moment};
use immich_backup_core::library::layout::{class_of, is_checksummed_original};
use immich_backup_core::model::{Class, Root, RunId};
use immich_backup_core::repository::log::SnapshotFact;
use immich_backup_core::repository::manifest::{Below, ListedFile, SnapshotRow};
use immich_backup_core::verdict::Verdict as Asset;
use jiff::Timestamp;
use maud::{Markup, PreEscaped, html};
use std::collections::HashMap;

/// Rows of a page.
pub const ROWS_MAX: u64 = 500;

/// What an address asks for. All of it is somebody's text.
#[derive(Debug, Default, serde::Deserialize)]
pub struct Asked {
    /// The root's name as the manifest has it.
    #[serde(default)]
    root: String,
    /// The folder, as the manifest has it.
    #[serde(default)]
    path: String,
    /// Which page, from 1.
    #[serde(default)]
    page: Option<u64>,
    /// Whether what is gone is shown, too.
    #[serde(default)]
    gone: Option<u8>,
}

/// Where a folder is shown.
pub fn address(id: &RunId, root: &Root, path: &str, page: u64, gone: bool) -> String {
    let mut address = format!("/snapshots/{id}/files?root={}&path={}", encoded(root.name_in_manifest()), encoded(path));
    if page > 1 {
        address.push_str(&format!("&page={page}"));
    }
    if gone {
        address.push_str("&gone=1");
    }
    address
}

/// What a root is called.
pub fn root_name(root: &Root) -> Markup {
    match root {
        Root::Library => html! { "Library" },
        Root::External(name) => html! { "External library " (foreign(name.as_str())) },
        Root::Config => html! { "Configuration of the stack" },
        Root::Postgres => html! { "PostgreSQL's raw folder" },
    }
}

/// A sign for a folder or a file.
pub fn icon(is_folder: bool) -> Markup {
    let path = if is_folder {
        "M3 6.5c0-.8.7-1.5 1.5-1.5h4l2 2.2h9c.8 0 1.5.7 1.5 1.5v8.8c0 .8-.7 1.5-1.5 1.5h-15c-.8 0-1.5-.7-1.5-1.5v-11Z"
    } else {
        "M6 3.5h8l4 4v13H6v-17Zm8 0v4h4"
    };
    PreEscaped(format!(
        r#"<svg class="icon" viewBox="0 0 24 24" aria-hidden="true" focusable="false" fill="none" stroke="currentColor" stroke-width="1.6" stroke-linejoin="round"><path d="{path}"/></svg>"#
    ))
}

/// The folder; `None` where the snapshot has none of that name.
pub async fn view(page: &Page, snapshot: &SnapshotRow, asked: Asked) -> Result<Option<Markup>, SourceError> {
    let Ok(root) = Root::from_name_in_manifest(&asked.root) else { return Ok(None) };
    let tree = page.source.tree(snapshot.sequence).await?;
    // There may be millions of versions below it: nobody else waits while they are counted.
    let (sequence, of, path) = (snapshot.sequence, root.clone(), asked.path.clone());
    let found = tokio::task::spawn_blocking(move || tree.folder(sequence, &of, &path)).await.map_err(|_| SourceError::Failed)?;
    let Some(found) = found else { return Ok(None) };
    let gone = asked.gone.is_some_and(|gone| gone > 0);
    let folders: Vec<_> = found.folders.iter().filter(|(_, below)| gone || below.files > 0).collect();
    let folders_count = folders.len() as u64;
    let rows = folders_count + found.own.0 + if gone { found.own.1 } else { 0 };
    let pages = rows.div_ceil(ROWS_MAX).max(1);
    let number = asked.page.unwrap_or(1).clamp(1, pages);
    let first = (number - 1) * ROWS_MAX;
    let of_folders: Vec<_> =
        folders.into_iter().skip(usize::try_from(first).unwrap_or(usize::MAX)).take(usize::try_from(ROWS_MAX).unwrap_or(usize::MAX)).collect();
    let limit = u32::try_from(ROWS_MAX - of_folders.len() as u64).unwrap_or(0);
    let (of_root, path) = (root.clone(), asked.path.clone());
    let skip = first.saturating_sub(folders_count);
    let files = page.source.read(move |manifest| Ok(manifest.files_in(sequence, &of_root, &path, gone, skip, limit)?)).await?;

    let path = asked.path.as_str();
    let link = |number| address(&snapshot.id, &root, path, number, gone);
    let name = path.rsplit('/').next().filter(|name| !name.is_empty());
    let states = States::of(&snapshot.fact);
    let content = html! {
        (crumbs(page, snapshot, &root, path))
        h1 { @match name { Some(name) => (foreign(name)), None => (root_name(&root)) } }
        p.lead {
            (counted(found.below.files, "file", "files")) ", " (bytes(found.below.bytes)) " below here"
            @if found.below.gone > 0 {
                " · " a href=(address(&snapshot.id, &root, path, 1, !gone)) { @if gone { "Hide" } @else { "Show" } " what was here before (" (count(found.below.gone)) ")" }
            }
        }
        @if rows == 0 {
            p.note { "No file stands here in this snapshot." }
        } @else {
            div.scroll tabindex="0" role="region" aria-label="Folders and files" {
                table.files {
                    caption.unseen { "Rows " (count(first + 1)) " to " (count((first + ROWS_MAX).min(rows))) " of " (count(rows)) }
                    thead { tr { th scope="col" { "Name" } th scope="col" { "State" } th.number scope="col" { "Size" } th.number.when scope="col" { "Modified" } } }
                    tbody {
                        @for (folder, below) in of_folders {
                            @let inner = if path.is_empty() { folder.clone() } else { format!("{path}/{folder}") };
                            tr.gone[below.files == 0] {
                                th scope="row" { (icon(true)) a href=(address(&snapshot.id, &root, &inner, 1, gone)) { (foreign(folder)) } }
                                td { (of_folder(below)) }
                                td.number { (bytes(below.bytes)) }
                                td.number.when {}
                            }
                        }
                        @for file in &files {
                            @let (level, word, meaning) = states.of_file(file);
                            tr.gone[!file.stands] {
                                th scope="row" { (icon(false)) span { (foreign(file.file.file.path.split().1)) } }
                                td title=(meaning) { (badge(level, word)) }
                                td.number { (bytes(file.file.size_bytes)) }
                                td.number.when { @if let Some(at) = modified(file) { (moment(at, Timestamp::now(), &page.zone)) } }
                            }
                        }
                    }
                }
            }
            @if pages > 1 {
                nav.pages aria-label="Pages" {
                    @if number > 1 { a.button rel="prev" href=(link(number - 1)) { "Back" } }
                    span { "Page " (count(number)) " of " (count(pages)) }
                    @if number < pages { a.button rel="next" href=(link(number + 1)) { "Next" } }
                }
            }
        }
        (legend(&states, &files))
    };
    Ok(Some(shell(page, Tab::Files, name.unwrap_or("Files"), &content)))
}

fn crumbs(page: &Page, snapshot: &SnapshotRow, root: &Root, path: &str) -> Markup {
    let ends = path.char_indices().filter(|(_, c)| *c == '/').map(|(at, _)| at).chain((!path.is_empty()).then_some(path.len()));
    let above: Vec<_> = ends.filter_map(|end| path.get(..end)).collect();
    html! {
        nav.crumbs aria-label="Where you are" {
            ol {
                li { a href=(format!("/snapshots/{}", snapshot.id)) { (moment(snapshot.fact.taken_at, Timestamp::now(), &page.zone)) } }
                li { @if path.is_empty() { span aria-current="page" { (root_name(root)) } } @else { a href=(address(&snapshot.id, root, "", 1, false)) { (root_name(root)) } } }
                @for part in above {
                    @let name = part.rsplit('/').next().unwrap_or(part);
                    li { @if part.len() == path.len() { span aria-current="page" { (foreign(name)) } } @else { a href=(address(&snapshot.id, root, part, 1, false)) { (foreign(name)) } } }
                }
            }
        }
    }
}

fn of_folder(below: &Below) -> Markup {
    html! {
        @if below.damaged > 0 { (badge(Level::NotSafe, &format!("{} damaged", count(below.damaged)))) }
        @else if below.files == 0 { (badge(Level::Unknown, "Archived")) }
        @else { span.note { (counted(below.files, "file", "files")) } }
    }
}

fn modified(file: &ListedFile) -> Option<Timestamp> {
    Timestamp::from_nanosecond(file.file.mtime_ns.into()).ok()
}

/// What a state is, how it looks, and what it means.
type State = (Level, &'static str, &'static str);

const DAMAGED: State = (Level::NotSafe, "Damaged", "Its object in the repository is known to be missing or damaged.");
const OTHER: State = (Level::NotSafe, "Other content", "Its checksum is not the one that Immich recorded.");
const ARCHIVED: State = (Level::Unknown, "Archived", "It is not in the library any more; the backup keeps it.");
const PROVEN: State = (Level::Safe, "Proven", "Its bytes have the checksum that Immich recorded.");
const STORED: State = (Level::Safe, "Stored", "Its bytes are in the repository; Immich has no checksum to compare them with, or was not asked.");
const EXTERNAL: State = (Level::Safe, "Unprovable", "Of an external library: stored; Immich has no checksum of its content.");
const UNTRACKED: State = (Level::Attention, "Untracked", "Stored, and no row of Immich's database names it.");
const DERIVED: State = (Level::Safe, "Can be made again", "Immich made it of an original, and can make it again.");

/// What is known of files from the snapshot that they are in.
struct States<'a> {
    has_proof: bool,
    /// Whether all that is not well is named, so that what is not named is well.
    is_whole: bool,
    named: HashMap<&'a str, Asset>,
}

impl<'a> States<'a> {
    fn of(fact: &'a SnapshotFact) -> Self {
        let Some(proof) = &fact.proof else { return Self { has_proof: false, is_whole: false, named: HashMap::new() } };
        let count = |verdict| proof.named.iter().filter(|named| named.verdict == verdict).count() as u64;
        let is_whole = count(Asset::Mismatched) >= proof.mismatched && count(Asset::Untracked) >= proof.untracked;
        Self { has_proof: true, is_whole, named: proof.named.iter().map(|named| (named.path.as_str(), named.verdict)).collect() }
    }

    fn of_file(&self, file: &ListedFile) -> State {
        let path = &file.file.file;
        if file.file.damaged {
            return DAMAGED;
        }
        if !file.stands {
            return ARCHIVED;
        }
        match self.named.get(path.to_string().as_str()) {
            Some(Asset::Mismatched) => return OTHER,
            Some(Asset::Untracked) => return UNTRACKED,
            _ => {}
        }
        match (&path.root, class_of(path)) {
            (Root::External(_), _) if self.has_proof => EXTERNAL,
            (Root::Library, Class::Derived) => DERIVED,
            // A file that the proof saw, that has a checksum, and that is not among those that were not well.
            _ if self.has_proof && self.is_whole && is_checksummed_original(path) => PROVEN,
            _ => STORED,
        }
    }
}

/// The states on this page, explained for whoever has no pointer to hold over them.
fn legend(states: &States<'_>, files: &[ListedFile]) -> Markup {
    let mut seen: Vec<State> = Vec::new();
    for file in files {
        let state = states.of_file(file);
        if !seen.iter().any(|other| other.1 == state.1) {
            seen.push(state);
        }
    }
    html! {
        @if !seen.is_empty() {
            dl.legend { @for (level, word, meaning) in seen { div { dt { (badge(level, word)) } dd { (meaning) } } } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use immich_backup_core::model::{Digests, FilePath, RootPath, Sha1, Sha256};
    use immich_backup_core::repository::manifest::FileRow;
    use immich_backup_core::verdict::{NamedVerdict, Proof};

    fn file(root: Root, path: &str) -> ListedFile {
        let file = FilePath { root, path: RootPath::parse(path).unwrap() };
        let digests = Digests { sha256: Sha256([0; 32]), sha1: Sha1([0; 20]) };
        ListedFile { file: FileRow { file, digests, size_bytes: 1, mtime_ns: 0, mode: 0, key: String::new(), damaged: false }, stands: true, stands_now: true }
    }

    fn fact(proof: Option<Proof>) -> SnapshotFact {
        serde_json::from_value(serde_json::json!({
            "started_at": "2026-05-02T03:00:00Z", "taken_at": "2026-05-02T03:10:00Z", "totals": immich_backup_core::repository::log::Totals::default(),
            "sent": { "files": 0, "bytes": 0 }, "archived": 0, "unread_count": 0, "proof": proof,
        }))
        .unwrap()
    }

    fn named(verdict: Asset, path: &str) -> NamedVerdict {
        NamedVerdict { verdict, thing: None, path: path.to_owned(), asset: None, kept: false }
    }

    #[test]
    fn a_file_is_called_proven_only_where_the_proof_says_so() {
        let proof = Proof {
            assets: 9,
            proven: 8,
            mismatched: 1,
            untracked: 1,
            named: vec![named(Asset::Mismatched, "upload/u/b.jpg"), named(Asset::Untracked, "upload/u/c.jpg")],
            ..Proof::default()
        };
        let nas = || Root::External("nas".parse().unwrap());
        let state = |proof: &Option<Proof>, file: &ListedFile| States::of(&fact(proof.clone())).of_file(file).1;
        let with = Some(proof.clone());
        for (path, word) in [
            ("upload/u/a.jpg", "Proven"),
            ("upload/u/b.jpg", "Other content"),
            ("upload/u/c.jpg", "Untracked"),
            ("upload/u/a.jpg.xmp", "Stored"),
            ("profile/u/a.jpg", "Stored"),
            ("thumbs/u/a.webp", "Can be made again"),
            ("encoded-video/u/a-MP.mp4", "Proven"),
        ] {
            assert_eq!(state(&with, &file(Root::Library, path)), word, "{path}");
        }
        assert_eq!(state(&with, &file(nas(), "a.jpg")), "Unprovable");
        // Nobody compared.
        assert_eq!(state(&None, &file(Root::Library, "upload/u/a.jpg")), "Stored");
        assert_eq!(state(&None, &file(nas(), "a.jpg")), "Stored");
        // More untracked files than are named: any may be one.
        let cut = Some(Proof { untracked: 500, ..proof });
        assert_eq!(state(&cut, &file(Root::Library, "upload/u/a.jpg")), "Stored");
        let mut bad = file(Root::Library, "upload/u/a.jpg");
        bad.stands = false;
        assert_eq!(state(&with, &bad), "Archived");
        bad.file.damaged = true;
        assert_eq!(state(&with, &bad), "Damaged");
    }
}
