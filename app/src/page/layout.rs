//! What all pages share: head, navigation, icons, and how a name becomes a part of an address.

use super::setup::Page;
use super::verdict::Level;
use super::words;
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

/// Where one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    /// *Is it safe?*
    Overview,
    /// What happened when.
    Timeline,
    /// What is in the backup.
    Files,
    /// What runs.
    Now,
}

/// A text as a part of an address.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// A page for who is logged in.
pub fn shell(page: &Page, tab: Tab, title: &str, content: &Markup) -> Markup {
    let entry = |of: Tab, href: &str, name: &str| {
        html! { li { a href=(href) aria-current=[(tab == of).then_some("page")] { (name) } } }
    };
    let header = html! {
        nav aria-label="Main" {
            ul {
                (entry(Tab::Overview, "/", "Overview"))
                (entry(Tab::Timeline, "/timeline", "Timeline"))
                (entry(Tab::Files, "/snapshots/latest", "Files"))
                (entry(Tab::Now, "/now", "Now"))
            }
        }
        form method="post" action="/logout" { button type="submit" class="quiet" { "Log out" } }
    };
    let clock = |at: Timestamp| html! { time datetime=(format!("{at:.0}")) { (words::clock(at, &page.zone)) } };
    let footer = html! {
        p { "Repository " (words::foreign(&page.repository)) }
        p {
            "immich-backup " (env!("CARGO_PKG_VERSION"))
            @match page.source.reading().map(|reading| reading.at) {
                None => { " · as of " (clock(Timestamp::now())) }
                Some(Some(at)) => { " · as of " (clock(at)) ", when the log was last read" }
                Some(None) => { " · the log was not read yet" }
            }
        }
    };
    document(title, Some(&header), content, &footer)
}

/// A page for anybody: to log in, and what went wrong with that.
pub fn bare(title: &str, content: &Markup) -> Markup {
    document(title, None, content, &html! {})
}

fn document(title: &str, header: Option<&Markup>, content: &Markup, footer: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · Immich backup" }
                link rel="icon" href="/assets/icon.svg" type="image/svg+xml";
                link rel="stylesheet" href="/assets/page.css";
                script src="/assets/page.js" defer {}
            }
            // By this page.js knows by how much the clock of whoever looks is wrong.
            body class=[header.is_none().then_some("bare")] data-made=(Timestamp::now()) {
                a.skip href="#main" { "Skip to the content" }
                @if let Some(header) = header {
                    header.top {
                        div.inner {
                            a.brand href="/" { (mark()) span { "Immich backup" } }
                            (header)
                        }
                    }
                }
                main #main tabindex="-1" { (content) }
                @if header.is_some() { footer { (footer) } }
            }
        }
    }
}

/// The mark of the program: a shield with a photo's hill in it.
pub fn mark() -> Markup {
    PreEscaped(
        r#"<svg class="mark" viewBox="0 0 24 24" aria-hidden="true" focusable="false"><path d="M12 2.2 4.2 5v6.3c0 4.7 3.2 8.7 7.8 10.5 4.6-1.8 7.8-5.8 7.8-10.5V5L12 2.2Z" fill="currentColor" opacity=".16"/><path d="M12 2.2 4.2 5v6.3c0 4.7 3.2 8.7 7.8 10.5 4.6-1.8 7.8-5.8 7.8-10.5V5L12 2.2Z" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linejoin="round"/><path d="m6.8 14.6 3.3-4 2.6 3 1.9-2 2.6 3" fill="none" stroke="currentColor" stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round"/><circle cx="14.6" cy="8.1" r="1.3" fill="currentColor"/></svg>"#.to_owned(),
    )
}

/// A sign for a level: its shape says what its colour says.
pub fn sign(level: Level) -> Markup {
    let inner = match level {
        Level::Safe => r#"<circle cx="12" cy="12" r="10"/><path d="m7.5 12.4 3 3 6-6.6"/>"#,
        Level::Attention => r#"<path d="M12 2.8 22 20.4H2L12 2.8Z"/><path d="M12 9.4v4.8M12 17.3v.1"/>"#,
        Level::NotSafe => r#"<path d="M8 2.2h8L21.8 8v8L16 21.8H8L2.2 16V8L8 2.2Z"/><path d="m8.8 8.8 6.4 6.4m0-6.4-6.4 6.4"/>"#,
        Level::Unknown => {
            r#"<circle cx="12" cy="12" r="10" stroke-dasharray="3.2 2.4"/><path d="M9.4 9.4a2.7 2.7 0 1 1 3.9 2.5c-.9.5-1.3 1-1.3 2M12 17.1v.1"/>"#
        }
    };
    PreEscaped(format!(
        r#"<svg class="sign" viewBox="0 0 24 24" aria-hidden="true" focusable="false" fill="none" stroke="currentColor" stroke-width="1.9" stroke-linecap="round" stroke-linejoin="round">{inner}</svg>"#
    ))
}

/// A word with a colour and a sign of its own.
pub fn badge(level: Level, word: &str) -> Markup {
    html! { span.badge.(level.class()) { (sign(level)) (word) } }
}

/// What is shown in place of a view that there is nothing for.
pub fn empty(title: &str, text: &str) -> Markup {
    html! { section.card.empty { (mark()) h2 { (title) } p { (text) } } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_an_address_is_nothing_but_a_name() {
        assert_eq!(encoded("a&b=c#d/../ü\"<"), "a%26b%3Dc%23d%2F%2E%2E%2F%C3%BC%22%3C");
        let shown = bare("<script>", &html! { p { (words::foreign("\"><img src=x onerror=alert(1)>")) } }).into_string();
        assert!(!shown.contains("<img") && !shown.contains("<title><script>"), "{shown}");
    }
}
