//! *Now*: what runs, as it runs.

use super::layout::{Tab, empty, shell};
use super::live::{Live, Now};
use super::setup::Page;
use super::words::time;
use crate::daemon::http::Longer;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use jiff::Timestamp;
use maud::{Markup, html};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, watch};

/// A stream of what runs ends after so long; the browser asks for another.
const STREAM_WITHIN: Duration = Duration::from_secs(600);
/// Where it is told.
pub const EVENTS: &str = "/now/events";
/// What runs is told so often at most ...
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// ... and so often at least while something runs: time passes, too.
const TOLD_AT_LEAST: Duration = Duration::from_secs(5);
/// How long nothing has to be told before the connection is tried.
const TRIED_EVERY: Duration = Duration::from_secs(15);

/// The page.
pub fn view(page: &Page) -> Markup {
    let content = match &page.live {
        None => html! {
            h1 { "Now" }
            (empty("Runs are shown where the daemon runs", "This page only looks at the repository. The page of `immich-backup daemon` shows what its runs do while they do it."))
        },
        Some(live) => {
            let now = live.now(Timestamp::now());
            let status = page.board.status(Timestamp::now());
            html! {
                h1 { "Now" }
                p.stale role="status" data-stale {}
                (progress(&now, true))
                @if !now.running {
                    @for (job, at) in status.next_runs() { p.next { "Next " (job.name()) " " (time(at, Timestamp::now(), &page.zone)) } }
                }
                noscript { p.note { "Without JavaScript this is how it was when the page was made; load it again for the state of now." } }
            }
        }
    };
    shell(page, Tab::Now, "Now", &content)
}

/// What runs, on top of another page; there, though hidden, while nothing runs.
pub fn strip(page: &Page) -> Markup {
    match &page.live {
        Some(live) => progress(&live.now(Timestamp::now()), false),
        None => html! {},
    }
}

/// What page.js keeps up to date: each text by its name.
fn progress(now: &Now, is_whole: bool) -> Markup {
    let troubles = !now.troubles.is_empty();
    html! {
        section.live.whole[is_whole] data-live data-run=(now.run) data-whole[is_whole] hidden[!is_whole && !now.running] aria-label="What runs now" {
            div.idle hidden[now.running] { p { "Nothing runs." } }
            div.busy hidden[!now.running] {
                p.head {
                    span.dot aria-hidden="true" {}
                    strong data-text="job" { (now.job) }
                    // Only this is read out when it changes: numbers would never end.
                    span role="status" data-text="phase" { (now.phase) }
                }
                progress max="1000" value=[now.done] data-done aria-label="Done" {}
                dl {
                    div { dt { "Files" } dd data-text="files" { (now.files) } }
                    div { dt { "Bytes" } dd data-text="bytes" { (now.bytes) } }
                    div { dt { "Rate" } dd data-text="rate" { (now.rate) } }
                    div { dt { "Time" } dd { span data-text="elapsed" { (now.elapsed) } span.left data-text="left" { (now.left) } } }
                }
                @if is_whole {
                    p.last { span.note { "Last: " } bdi data-text="path" { (now.path) } }
                    div.troubles hidden[!troubles] data-troubles {
                        h2 { "What went wrong" }
                        ul { @for trouble in &now.troubles { li { bdi { (trouble) } } } }
                    }
                } @else {
                    p.more { a href="/now" { "See more" } }
                }
            }
        }
    }
}

/// Who is told, and what they were told last.
struct Told {
    watch: watch::Receiver<()>,
    live: Arc<Live>,
    page: Arc<Page>,
    token: String,
    before: Option<Now>,
    said: Instant,
    _room: OwnedSemaphorePermit,
}

/// What runs, told as it changes, for as long as the session lasts.
pub fn events(page: &Arc<Page>, token: String, longer: Option<&Longer>) -> Response {
    let Some(live) = page.live.clone() else { return StatusCode::NOT_FOUND.into_response() };
    let Ok(room) = Arc::clone(&page.streams).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "15")]).into_response();
    };
    if let Some(longer) = longer {
        longer.until(STREAM_WITHIN + Duration::from_secs(10));
    }
    let ends = Instant::now() + STREAM_WITHIN;
    let told = Told { watch: live.watch(), live, page: Arc::clone(page), token, before: None, said: Instant::now(), _room: room };
    let told = stream::unfold(told, move |mut told| async move {
        loop {
            if Instant::now() >= ends || !told.page.sessions.lasts(&told.token, Instant::now()) {
                return None;
            }
            told.watch.mark_unchanged();
            let now = told.live.now(Timestamp::now());
            // Also that nothing changed, now and then: by silence page.js knows that nobody is there.
            if told.before.as_ref() != Some(&now) || told.said.elapsed() >= TRIED_EVERY {
                let event = Event::default().json_data(&now).unwrap_or_default();
                (told.before, told.said) = (Some(now), Instant::now());
                return Some((Ok::<_, Infallible>(event), told));
            }
            drop(tokio::time::timeout(TOLD_AT_LEAST, told.watch.changed()).await);
            // What happens meanwhile is told at once, then: who is slow misses it.
            tokio::time::sleep(TOLD_EVERY).await;
        }
    });
    Sse::new(told).keep_alive(KeepAlive::new().interval(TRIED_EVERY)).into_response()
}
