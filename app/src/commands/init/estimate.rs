use crate::app::App;
use crate::screen;
use crate::stack::{self, Findings};
use immich_backup_core::backup;
use immich_backup_core::estimate::{self, Amount, Estimate, GB, MeasureError, Measured, Row, Source};
use immich_backup_core::event::Event;
use immich_backup_core::library::scope::Scope;
use immich_backup_core::repository::log::Tally;
use immich_backup_core::repository::place::Place;
use immich_backup_core::repository::storage_class::StorageClass;
use immich_backup_core::repository::vendor::Vendor;
use serde_json::{Map, Value, json};
use std::num::NonZeroUsize;
use tokio_util::sync::CancellationToken;

/// As for a backup: walking is bound by the disk's latency, not by cores.
const WALKERS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(3);

/// What to measure, and at whose prices.
pub struct Plan {
    sources: Vec<Source>,
    scope: Scope,
    vendor: Vendor,
    class: Option<String>,
}

/// What was measured, and what it may cost.
pub struct Estimated {
    measured: Measured,
    vendor: Vendor,
    class: Option<String>,
    estimate: Option<Estimate>,
}

impl Plan {
    /// The plan that the settings make.
    pub async fn of(app: &App, place: &Place, class: Option<&StorageClass>) -> anyhow::Result<Self> {
        let is_library_said = app.settings.text("library").is_some_and(|path| !path.is_empty());
        let findings = if is_library_said { None } else { stack::find(app).await? };
        let library = super::super::library(app, findings.as_ref())?;
        let said: Vec<_> = super::super::externals(app)?.into_iter().map(super::super::External::source).collect();
        let found = match &findings {
            Some(findings) => found_externals(app, findings, &said).await?,
            None => Vec::new(),
        };
        let source = |source: backup::Source| Source { root: source.root, path: source.path, mounts: source.mounts };
        Ok(Self {
            sources: std::iter::once(library).chain(said).chain(found).map(source).collect(),
            scope: Scope {
                originals_only: app.settings.switch("originals-only")?,
                exclude: super::super::patterns(app.settings.texts("exclude"))?,
                include: super::super::patterns(app.settings.texts("include"))?,
                ..Scope::default()
            },
            vendor: Vendor::of(place),
            class: class.map(ToString::to_string),
        })
    }

    /// Measures the library; `None` where `stop` was set meanwhile.
    pub fn run(self, stop: &CancellationToken) -> Result<Option<Estimated>, MeasureError> {
        let measured = match estimate::measure(&self.sources, &self.scope, WALKERS, stop) {
            Err(MeasureError::Interrupted) => return Ok(None),
            other => other?,
        };
        let estimate = estimate::first_year(self.vendor, self.class.as_deref(), &measured.contents);
        Ok(Some(Estimated { measured, vendor: self.vendor, class: self.class, estimate }))
    }
}

/// External libraries that Immich's database names. It may be away: an estimate is made all the same.
async fn found_externals(app: &App, findings: &Findings, said: &[backup::Source]) -> anyhow::Result<Vec<backup::Source>> {
    let told = async {
        let client = findings.client(app).await?;
        findings.externals(app, client.as_ref()).await
    };
    match told.await {
        Ok(externals) => Ok(findings.external_sources(app, &externals, said, &[], Some(&[]))?),
        Err(error) => {
            app.monitor.emit(Event::Warned { message: format!("external libraries are not measured: {error:#}") });
            Ok(Vec::new())
        }
    }
}

fn tally(amount: &Amount) -> Tally {
    Tally { files: amount.files, bytes: amount.bytes }
}

impl Estimated {
    /// For people.
    pub fn text(&self) -> String {
        let contents = &self.measured.contents;
        let mut lines = vec![
            format!("originals   {}", screen::tally(tally(&contents.originals))),
            format!("the rest    {} (Immich could make them again)", screen::tally(tally(&contents.others))),
        ];
        if self.measured.unread > 0 {
            lines.push(format!("MISSING     {} folders or files could not be looked at: it will be more", screen::count(self.measured.unread)));
        }
        lines.push(String::new());
        match &self.estimate {
            Some(estimate) => lines.extend(self.table(estimate)),
            None if self.vendor == Vendor::Directory => {
                lines.push("A directory takes that much room, less what is there twice, and asks for no money.".to_owned());
            }
            None => {
                lines.push("What this store charges is not known. The first backup writes about".to_owned());
                let writes = contents.originals.writes + contents.others.writes;
                lines.push(format!(
                    "{} objects with {} requests; each night after it about 5 requests.",
                    screen::count(contents.originals.files + contents.others.files),
                    screen::count(writes)
                ));
            }
        }
        lines.join("\n")
    }

    fn table(&self, estimate: &Estimate) -> Vec<String> {
        let mut lines = vec![format!("The first year at {}, at prices of {}, in {}:", estimate.provider, estimate.region, estimate.currency), String::new()];
        lines.push(format!(
            "  {:<12}  {:>10}  {:>12}  {:>11}  {:>10}  {:>11}  {:>11}",
            "originals in", "storage", "first backup", "runs+checks", "FIRST YEAR", "later years", "one restore"
        ));
        for row in &estimate.classes {
            lines.push(format!(
                "{} {:<12}  {:>10}  {:>12}  {:>11}  {:>10}  {:>11}  {:>11}",
                if row.chosen { ">" } else { " " },
                row.class,
                row.storage.to_string(),
                row.first_backup.to_string(),
                row.upkeep.to_string(),
                row.first_year.to_string(),
                row.later_year.to_string(),
                row.restore.to_string(),
            ));
        }
        lines.push(String::new());
        lines.extend(estimate.classes.iter().filter_map(small_print));
        if let Some(standard) = estimate.classes.first().filter(|_| estimate.classes.len() > 1) {
            lines.push(format!("  All but originals stays in {}, whatever the class.", standard.class));
        }
        if let Some(class) = self.class.as_deref().filter(|_| !estimate.classes.iter().any(|row| row.chosen)) {
            lines.push(format!("  What {class} costs is not in the table."));
        }
        lines.push("  One restore: everything, once, to somewhere outside of the provider's network.".to_owned());
        if let Some(remark) = estimate.remark {
            lines.push(format!("  Mind: {remark}."));
        }
        lines.push(format!("  List prices of {} ({}), without taxes, discounts and free allowances,", estimate.prices_as_of, estimate.source));
        lines.push("  for a library that stays as it is; what is there twice is counted twice. For orientation only.".to_owned());
        lines
    }

    /// For programs.
    pub fn fields(&self) -> Map<String, Value> {
        let amount = |amount: &Amount| json!({ "files": amount.files, "bytes": amount.bytes, "write_requests": amount.writes, "read_requests": amount.reads });
        let named = [
            ("originals", amount(&self.measured.contents.originals)),
            ("others", amount(&self.measured.contents.others)),
            ("unread_count", json!(self.measured.unread)),
            ("estimate", json!(self.estimate)),
        ];
        named.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// What a class costs that no column shows.
fn small_print(row: &Row) -> Option<String> {
    let mut parts = Vec::new();
    if row.kept_days_min > 0 {
        parts.push(format!("removed or replaced before {0} days costs {0} days", row.kept_days_min));
    }
    if row.object_bytes_min > 0 {
        let added = if row.padding_bytes * 1_000 >= GB { format!(": {} more", screen::bytes(row.padding_bytes)) } else { String::new() };
        parts.push(format!("small files count as {} KiB{added}", row.object_bytes_min >> 10));
    }
    (!parts.is_empty()).then(|| format!("  {}: {}.", row.class, parts.join("; ")))
}
