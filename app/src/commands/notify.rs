use crate::app::{App, Outcome};
use crate::config::UsageError;
use crate::exit::Exit;
use crate::notify::{Message, Notifiers, Origin};
use jiff::Timestamp;
use serde_json::json;

/// Shows which ways there are to tell somebody, or tries them.
pub async fn run(app: &App) -> anyhow::Result<Outcome> {
    let notifiers = Notifiers::of(&app.settings)?;
    if notifiers.is_empty() {
        return Err(UsageError("there is nobody to tell: say --notify-ping, --notify-webhook or --notify-mail-to (docs/monitoring.md)".to_owned()).into());
    }
    if !app.settings.switch("test")? {
        let ways = notifiers.described();
        let lines: Vec<_> = ways.iter().map(|(way, what)| format!("  {way:<8} {what}")).collect();
        let ways: Vec<_> = ways.iter().map(|(way, what)| json!({ "way": way, "tells": what })).collect();
        return Ok(Outcome::new(Exit::Done, lines.join("\n"), json!({ "ways": ways, "errors": [] })));
    }
    let message = Message::test(Timestamp::now(), &Origin::of(app.repository_name().unwrap_or_default()));
    let told = notifiers.tell_all(&message).await;
    let lines: Vec<_> = told.iter().map(|(way, told)| told.as_ref().map_or_else(Clone::clone, |()| format!("told by {way}"))).collect();
    let ways: Vec<_> = told.iter().map(|(way, told)| json!({ "way": way, "delivered": told.is_ok() })).collect();
    let errors: Vec<_> = told.iter().filter_map(|(_, told)| told.as_ref().err()).map(|problem| json!({ "message": problem })).collect();
    let exit = if errors.is_empty() { Exit::Done } else { Exit::Failed };
    Ok(Outcome::new(exit, lines.join("\n"), json!({ "ways": ways, "errors": errors })))
}
