mod stack;

use crate::access;
use crate::app::{App, Outcome};
use crate::database::{self, Said, Wanted};
use crate::exit::{Exit, Failure};
use crate::screen;
use immich_backup_core::database::client::Client;
use immich_backup_core::library::{layout, walk};
use immich_backup_core::model::RootPath;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::store::Begin;
use immich_backup_core::repository::{Repository, Session};
use jiff::Timestamp;
use serde_json::{Value, json};
use stack::Looked;
use std::path::{Path, PathBuf};

/// One requirement, looked at.
struct Check {
    name: String,
    state: State,
    detail: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    Doubtful,
    Bad(Exit),
}

impl Check {
    fn good(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Good, detail: detail.into() }
    }

    fn doubtful(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Doubtful, detail: detail.into() }
    }

    fn bad(name: impl Into<String>, error: impl Into<anyhow::Error>) -> Self {
        let failure = Failure::from(error.into());
        let hint = failure.hint.map_or_else(String::new, |hint| format!("\n           {hint}"));
        Self { name: name.into(), state: State::Bad(failure.exit), detail: format!("{}{hint}", failure.message) }
    }

    /// For an error that [`Failure`] does not know.
    fn bad_with_hint(name: impl Into<String>, error: &dyn std::error::Error, hint: String) -> Self {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        Self { name: name.into(), state: State::Bad(Exit::Failed), detail: format!("{error}{cause}\n           {hint}") }
    }

    /// With a word on what told of it.
    fn told_by(mut self, origin: Option<&str>) -> Self {
        if let (State::Good | State::Doubtful, Some(origin)) = (self.state, origin) {
            self.detail = format!("{} ({origin})", self.detail);
        }
        self
    }

    fn line(&self) -> String {
        let mark = match self.state {
            State::Good => "ok  ",
            State::Doubtful => "?   ",
            State::Bad(_) => "BAD ",
        };
        format!("{mark} {:<14} {}", self.name, self.detail)
    }

    fn object(&self) -> Value {
        let state = match self.state {
            State::Good => "ok",
            State::Doubtful => "doubtful",
            State::Bad(_) => "bad",
        };
        json!({ "name": self.name, "state": state, "detail": self.detail })
    }
}

/// Checks every requirement.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let mut checks = vec![Check::good("program", concat!("immich-backup ", env!("CARGO_PKG_VERSION")))];
    let looked = Looked::at(app, &mut checks).await;
    match (app.settings.text("library").filter(|path| !path.is_empty()), &looked) {
        (Some(library), _) => checks.extend(check_library(Path::new(library), &super::media_mounts(app)?, None)),
        (None, Some(looked)) => match looked.check_media() {
            Ok(media) => checks.extend(check_library(&media.value.path, &looked.mounts(), Some(&media.origin))),
            Err(check) => checks.push(check),
        },
        (None, None) => checks.push(Check::doubtful("library", "not given, and not found: say --library (IMMICH_BACKUP_LIBRARY, UPLOAD_LOCATION)")),
    }
    for external in super::externals(app)? {
        checks.push(check_folder(&format!("external {}", external.name), &external.path));
    }
    let (of_database, client) = check_database(app, looked.as_ref()).await;
    checks.extend(of_database);
    if let Some(looked) = &looked {
        checks.extend(looked.check_externals(app, client.as_deref()).await);
    }
    checks.extend(check_repository(app).await);
    let exit = checks.iter().find_map(|check| if let State::Bad(exit) = check.state { Some(exit) } else { None }).unwrap_or(Exit::Done);
    let text: Vec<_> = checks.iter().map(Check::line).collect();
    let objects: Vec<_> = checks.iter().map(Check::object).collect();
    Ok(Outcome::new(exit, text.join("\n"), json!({ "checks": objects })))
}

fn check_folder(name: &str, path: &Path) -> Check {
    let shown = path.display();
    match walk::open_root(path).and_then(|_| Ok(std::fs::read_dir(path)?.next().is_some())) {
        Ok(true) => Check::good(name, shown.to_string()),
        Ok(false) => Check::bad(name, anyhow::anyhow!("`{shown}` is empty; is it mounted?")),
        Err(error) => Check::bad(name, anyhow::Error::from(error).context(format!("cannot open `{shown}`"))),
    }
}

/// `origin` says what told of it, where nobody said it; `mounts` are folders below it that are elsewhere.
fn check_library(library: &Path, mounts: &[(RootPath, PathBuf)], origin: Option<&str>) -> Vec<Check> {
    let mut checks = vec![check_folder("library", library).told_by(origin)];
    for (at, folder) in mounts {
        checks.push(check_folder(&format!("its {at}"), folder));
    }
    if checks.iter().any(|check| check.state != State::Good) {
        return checks;
    }
    let is_there = |marker: &String| {
        let mounted = mounts.iter().find_map(|(at, folder)| Some(folder.join(Path::new(marker).strip_prefix(at.to_path()).ok()?)));
        mounted.unwrap_or_else(|| library.join(marker)).exists()
    };
    let missing: Vec<_> = layout::markers().filter(|marker| !is_there(marker)).collect();
    checks.push(if missing.is_empty() {
        Check::good("markers", "all six folders have their .immich marker")
    } else {
        Check::doubtful("markers", format!("missing: {}; Immich since 1.115 writes them at start: is all of it mounted?", missing.join(", ")))
    });
    checks
}

/// Whether the database can be reached and dumped, and whether a drill could be held here.
async fn check_database(app: &App, looked: Option<&Looked>) -> (Vec<Check>, Option<Box<Client>>) {
    let found = async || match database::wanted(app, Said::Anywhere).await {
        Ok(Wanted::Database(client)) => Ok((client, None)),
        Ok(Wanted::Refused) => Err(Check::doubtful("database", "left out (--no-database): files alone do not bring Immich back")),
        Ok(Wanted::Unsaid) => match looked {
            Some(looked) => looked.database(app).await,
            None => Err(Check::doubtful("database", "not given, and not found: say --database URL or --database-container NAME")),
        },
        Err(error) => Err(Check::bad("database", error)),
    };
    let (client, origin) = match found().await {
        Ok(found) => found,
        Err(check) => return (vec![check], None),
    };
    let server = match client.server().await {
        Ok(server) => server,
        Err(error) => return (vec![Check::bad("database", error)], None),
    };
    let immich = server.immich_version.as_ref().map_or_else(|| "no version of Immich in it".to_owned(), |version| format!("Immich {version}"));
    let size = screen::bytes(server.database_bytes);
    let found = format!("{}, PostgreSQL {}, {immich}, {size}", client.target(), server.short_version());
    let state = if server.immich_version.is_some() { Check::good("database", found) } else { Check::doubtful("database", found) };
    let mut checks = vec![state.told_by(origin.as_deref())];
    checks.push(match client.pg_dump_version().await {
        Ok((major, minor)) if major == server.major() => Check::good("pg_dump", format!("{major}.{minor}")),
        Ok((major, minor)) => {
            let remedy = format!("its dumps may not load into a server of version {0}; install postgresql-client-{0}", server.major());
            Check::doubtful("pg_dump", format!("{major}.{minor}, newer than the server: {remedy}"))
        }
        Err(error) => Check::bad("pg_dump", error),
    });
    (checks, Some(client))
}

async fn check_repository(app: &App) -> Vec<Check> {
    let mut checks = Vec::new();
    let place = match app.place() {
        Ok(place) => place,
        Err(error) => return vec![Check::bad("repository", error)],
    };
    if !matches!(place, Place::Directory(_)) {
        match access::describe(&place).await {
            Ok(text) => checks.push(Check::good("credentials", text)),
            Err(error) => checks.push(Check::bad("credentials", error)),
        }
    }
    let repository = match app.repository().await {
        Ok(repository) => repository,
        Err(error) => {
            checks.push(Check::bad("repository", error));
            return checks;
        }
    };
    checks.push(Check::good("repository", format!("{} ({})", repository.store.url(), repository.id)));
    match &place {
        Place::Directory(path) => checks.extend(check_directory(path)),
        _ => checks.extend(check_store(&repository).await),
    }
    let state = match app.state(&repository) {
        Ok(state) => state,
        Err(error) => {
            checks.push(Check::bad("state folder", error));
            return checks;
        }
    };
    checks.push(Check::good("state folder", app.state_base().display().to_string()));
    match Session::open_for_reading(repository, state, app.monitor.as_ref()).await {
        Ok(session) => checks.extend(check_session(&session)),
        Err(error) => checks.push(Check::bad("log", error)),
    }
    checks
}

fn check_directory(path: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Ok(stat) = rustix::fs::statvfs(path) {
        checks.push(Check::good("room", format!("{} left at the repository", screen::bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))));
    }
    checks.push(match rustix::fs::access(path, rustix::fs::Access::WRITE_OK) {
        Ok(()) => Check::good("rights", "may write to the repository"),
        Err(error) => Check::bad("rights", anyhow::Error::from(std::io::Error::from(error)).context(format!("may not write to `{}`", path.display()))),
    });
    checks
}

/// What the credentials may do, tried on the one object that always is the same.
async fn check_store(repository: &Repository) -> Vec<Check> {
    let store = &repository.store;
    let mut checks = vec![match store.begin(&repository.identity, Begin::Writing { leftovers: None }).await {
        Ok(_) => Check::good("rights", "may read, and create objects"),
        Err(error) => {
            let hint = error.hint();
            let error = anyhow::Error::from(error).context("may read, but not create objects");
            Check::bad("rights", hint.map_or_else(|| anyhow::anyhow!("{error:#}"), |hint| anyhow::anyhow!("{error:#}; {hint}")))
        }
    }];
    checks.push(if store.capabilities().conditional_create {
        Check::good("create-only", "the store refuses to replace what exists")
    } else {
        Check::doubtful("create-only", "the store cannot keep two writers apart: let one machine write at a time (docs/stores.md)")
    });
    checks.push(match store.may_delete().await {
        Some(false) => Check::good("deletion", "these credentials cannot delete"),
        Some(true) => Check::doubtful(
            "deletion",
            "these credentials may delete, and so may whoever gets hold of them; `immich-backup init --dry-run` shows what is needed",
        ),
        None => Check::doubtful("deletion", "could not be told: see that these credentials cannot delete"),
    });
    checks
}

fn check_session(session: &Session) -> Vec<Check> {
    let head = session.manifest.head();
    let mut checks = vec![Check::good("log", format!("{} entries", screen::count(head.sequence)))];
    match session.manifest.latest_snapshot() {
        Ok(Some(latest)) => {
            let taken = latest.fact.taken_at;
            let clock = taken > Timestamp::now();
            let text = format!("{} holds {}, taken {}", latest.id.short(), screen::tally(latest.fact.totals.all()), screen::age(taken));
            checks.push(if clock { Check::doubtful("snapshot", format!("{text}: a clock is wrong")) } else { Check::good("snapshot", text) });
        }
        Ok(None) => checks.push(Check::doubtful("snapshot", "none yet: run `immich-backup backup`")),
        Err(error) => checks.push(Check::bad("manifest", error)),
    }
    checks
}
