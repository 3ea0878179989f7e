mod estimate;

use crate::access;
use crate::app::{App, Outcome};
use crate::exit::Exit;
use crate::privileges::{Privileges, quoted};
use immich_backup_core::repository::Repository;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::storage_class::StorageClass;
use serde_json::{Map, Value, json};

/// Makes a repository; or shows what it would need and cost, which asks nobody and needs no credentials.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let place = app.place()?;
    let class = access::storage_class(&app.settings, &place)?;
    let card = Card { place: &place, class: class.as_ref(), privileges: Privileges::of(&place) };
    let (only_show, with_estimate) = (app.settings.switch("dry-run")?, app.settings.switch("estimate")?);
    if !only_show && !with_estimate {
        let repository = app.make_repository().await?;
        return Ok(Outcome::new(Exit::Done, card.text(Some(&repository)), Value::Object(card.fields(Some(&repository)))));
    }
    let mut fields = card.fields(None);
    let mut texts = Vec::new();
    if with_estimate {
        let plan = estimate::Plan::of(app, &place, class.as_ref()).await?;
        let Some(estimated) = tokio::task::block_in_place(|| plan.run(&app.stop))? else {
            return Ok(Outcome::new(Exit::Interrupted, "interrupted".to_owned(), json!({})));
        };
        fields.extend(estimated.fields());
        texts.push(estimated.text());
    }
    if only_show {
        texts.push(card.text(None));
    }
    Ok(Outcome::new(Exit::Done, texts.join("\n\n"), Value::Object(fields)))
}

/// What to keep, and what to allow: on paper for the day when this machine is gone.
struct Card<'a> {
    place: &'a Place,
    class: Option<&'a StorageClass>,
    privileges: Privileges,
}

impl Card<'_> {
    fn text(&self, made: Option<&Repository>) -> String {
        let url = self.place.to_string();
        let first = made.map_or_else(
            || format!("dry run: nothing was done, and {url} was not looked at"),
            |repository| format!("made repository {} at {}", repository.id, repository.store.url()),
        );
        let class = self.class.map_or_else(String::new, |class| {
            let note = class.note().map_or_else(String::new, |note| format!("\n  Mind: {note}."));
            format!(
                "\n\nWhere originals go\n  To the storage class {class}, as long as each backup is told so: --storage-class {class}, \
                 IMMICH_BACKUP_STORAGE_CLASS,\n  or storage-class in the configuration file.{note}"
            )
        });
        let needed = match self.place {
            Place::Directory(_) => "this program and that folder",
            Place::S3(_) | Place::Gcs(_) | Place::Azure(_) => "this program, and credentials that may list and read there",
        };
        let id = made.map_or_else(String::new, |repository| format!(" (repository {})", repository.id));
        format!(
            "{first}

What it needs
{privileges}{class}

The bad day: print this, and keep it where the server is not{id}
  1. Do not start Immich on what is left of it. Delete nothing.
  2. What it takes: {needed}.
  3. What there is, and whether it was whole:
       immich-backup snapshots -r {url}
  4. All of it onto a machine with Docker, step by step, from the Compose files in the backup to the running server:
       immich-backup restore -r {url} --compose-project immich
     Or files and database alone, the latter into an empty one:
       immich-backup restore -r {url} --to NEW_MEDIA_LOCATION --database-container NAME
  5. Passwords are not in the backup, unless it was made --with-secrets. Those of Immich's users are; that of its database may be a new one.
  6. Stopped or failed on the way, the same command goes on. Without this program, see docs/format.md.",
            privileges = self.privileges.text(),
            url = quoted(&url),
        )
    }

    fn fields(&self, made: Option<&Repository>) -> Map<String, Value> {
        let named = [
            ("repository", json!(made.map(|repository| repository.id.to_string()))),
            ("url", json!(made.map_or_else(|| self.place.to_string(), |repository| repository.store.url().to_owned()))),
            ("dry_run", json!(made.is_none())),
            ("storage_class", json!(self.class.map(StorageClass::as_str))),
            ("privileges", self.privileges.fields()),
        ];
        named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
