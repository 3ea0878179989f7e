use super::daemon::zone;
use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::daemon::board::Board;
use crate::daemon::http;
use crate::daemon::memory::{Remembered, Snapshot};
use crate::daemon::metrics::{self, MetricsFile};
use crate::exit::{Exit, Failure};
use crate::page::{self, Page, Place, REFRESHED_EVERY, Reading};
use crate::standing::Standing;
use immich_backup_core::event::Event;
use jiff::Timestamp;
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The board is told that this turns as often as that.
const TURN_EVERY: Duration = Duration::from_secs(30);

/// Serves the page until it is asked to stop.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let settings = &app.settings;
    let address = http::address(settings.required("listen")?)?;
    let repository = app.repository_name()?;
    let board = Arc::new(Board::new(&Remembered::new(Timestamp::now()), settings.time("max-age")?));
    let place = Arc::new(Mutex::new(Reading::default()));
    let page = page::of_settings(settings, Place::Told(Arc::clone(&place)), None, Arc::clone(&board), zone(app)?, repository.clone())?;
    let page = page.ok_or_else(|| {
        UsageError("say --page-password-file (or IMMICH_BACKUP_PAGE_PASSWORD_FILE in the environment): there is no page without a password".to_owned())
    })?;
    let listener = http::listen(address).await?;
    let file = MetricsFile { path: app.state_base().join(metrics::NAME), repository };
    let served = tokio::spawn(http::serve(listener, Arc::clone(&board), file, Some(Arc::clone(&page))));
    tokio::select! {
        () = keep_up(app, &place, &board, &page) => {}
        () = keep_turning(&board) => {}
        () = app.stop.cancelled() => {}
    }
    served.abort();
    Ok(Outcome::new(Exit::Done, "stopped".to_owned(), json!({ "errors": [] })))
}

async fn keep_turning(board: &Board) {
    loop {
        board.turn();
        tokio::time::sleep(TURN_EVERY).await;
    }
}

/// Reads what the log has got, now and then. What goes wrong is told, here, on the page and to whoever asks for `/status`.
async fn keep_up(app: &App, place: &Mutex<Reading>, board: &Board, page: &Page) {
    // A temporary state folder, where one is used, has to last until there is another.
    let mut _kept = None;
    loop {
        let read = async {
            let reading = app.reading().await?;
            let manifest = &reading.session.manifest;
            let standing = Standing::of(manifest)?;
            let snapshot = manifest.latest_snapshot()?.map(|row| Snapshot { id: row.id.to_string(), at: row.fact.started_at });
            anyhow::Ok((reading, standing, snapshot))
        };
        match read.await {
            Ok((reading, standing, snapshot)) => {
                let path = Some(reading.session.manifest.path().to_owned());
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Reading { path, at: Some(Timestamp::now()), failed: None };
                board.looked(Ok((standing, snapshot)));
                page.get_ready();
                _kept = reading.at_rest();
            }
            Err(error) => {
                let failure = Failure::from(error);
                let hint = failure.hint.map_or_else(String::new, |hint| format!(" ({hint})"));
                board.looked(Err(failure.message.clone()));
                app.monitor.emit(Event::Warned { message: format!("{}{hint}; the page shows what was known before", failure.message) });
                place.lock().unwrap_or_else(PoisonError::into_inner).failed = Some((failure.exit, failure.message));
            }
        }
        tokio::time::sleep(REFRESHED_EVERY).await;
    }
}
