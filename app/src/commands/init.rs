use crate::app::{App, Outcome};
use crate::exit::Exit;
use immich_backup_core::repository::Repository;
use serde_json::json;

/// Makes a repository.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let repository = app.make_repository().await?;
    Ok(Outcome::new(Exit::Done, card(&repository), json!({ "repository": repository.id.to_string(), "url": repository.store.url() })))
}

/// What to keep, and what to allow: on paper for the day when this machine is gone.
fn card(repository: &Repository) -> String {
    let url = repository.store.url();
    format!(
        "made repository {id} at {url}

What it needs
  This program only ever adds files there. The user it runs as has to own the folder;
  give nobody else write access, and keep a second copy on another machine or medium
  (any copy tool will do: files are never changed once written).

On the bad day
  immich-backup restore -r {url} --to NEW_MEDIA_LOCATION
  Nothing but this program and that folder is needed; without this program, see docs/format.md.",
        id = repository.id
    )
}
