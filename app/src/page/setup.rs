//! What the page is made of, from the settings.

use super::client::Proxies;
use super::limiter::Limiter;
use super::live::Live;
use super::password::Password;
use super::sessions::Sessions;
use super::source::{Place, Source};
use crate::config::{Settings, UsageError};
use crate::daemon::board::Board;
use crate::daemon::feed::{Happened, Watcher};
use jiff::tz::TimeZone;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Streams of what runs, at once.
const STREAMS_MAX: usize = 8;
/// A page without a daemon reads the repository's log so often.
pub const REFRESHED_EVERY: Duration = Duration::from_secs(5 * 60);

/// The page.
pub struct Page {
    pub(super) password: Password,
    pub(super) sessions: Sessions,
    pub(super) limiter: Limiter,
    pub(super) proxies: Proxies,
    pub(super) source: Source,
    /// What runs; none where no daemon does.
    pub(super) live: Option<Arc<Live>>,
    pub(super) board: Arc<Board>,
    pub(super) max_age: Option<Duration>,
    pub(super) zone: TimeZone,
    /// The repository, without secrets.
    pub(super) repository: String,
    pub(super) streams: Arc<Semaphore>,
    /// Whether `/status` and `/metrics` need a login, too.
    pub(super) guards_status: bool,
}

impl Page {
    /// The log may have gone on: makes ready what a view would wait for. To be called where tokio runs.
    pub fn get_ready(&self) {
        self.source.plant();
    }
}

impl Watcher for Page {
    fn notice(&self, happened: &Happened<'_>) {
        if matches!(happened, Happened::Ended(_)) {
            self.get_ready();
        }
    }
}

/// What the settings say of the page; `None` where no password is set, so that there is none.
///
/// # Errors
/// A setting that cannot be understood, or a password that is no good.
pub fn of_settings(
    settings: &Settings,
    place: Place,
    live: Option<Arc<Live>>,
    board: Arc<Board>,
    zone: TimeZone,
    repository: String,
) -> Result<Option<Arc<Page>>, UsageError> {
    let proxies = Proxies::of(settings.texts("page-trusted-proxy"))?;
    let guards_status = settings.switch("status-needs-login")?;
    let max_age = settings.time("max-age")?;
    let Some(password) = Password::of(settings)? else {
        if guards_status {
            return Err(UsageError("--status-needs-login needs a password: say --page-password-file".to_owned()));
        }
        return Ok(None);
    };
    let page = Page {
        password,
        sessions: Sessions::default(),
        limiter: Limiter::new(Instant::now()),
        proxies,
        source: Source::new(place),
        live,
        board,
        max_age,
        zone,
        repository,
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        guards_status,
    };
    Ok(Some(Arc::new(page)))
}
