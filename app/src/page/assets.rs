//! Style, script and icon: in the binary, and nowhere else.

use axum::http::header;
use axum::response::{IntoResponse, Response};

const STYLE: &str = include_str!("assets/page.css");
const SCRIPT: &str = include_str!("assets/page.js");
const ICON: &str = include_str!("assets/icon.svg");

fn asset(kind: &'static str, text: &'static str) -> Response {
    // Asked for again with each page: it is small, and never older than the page.
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

/// How it looks.
pub fn style() -> Response {
    asset("text/css; charset=utf-8", STYLE)
}

/// What is kept up to date while one looks.
pub fn script() -> Response {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

/// The mark, for the browser's tab.
pub fn icon() -> Response {
    asset("image/svg+xml", ICON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_it_is_fetched_from_elsewhere() {
        for text in [STYLE, SCRIPT, ICON.trim_start_matches(r#"<svg xmlns="http://www.w3.org/2000/svg""#)] {
            assert!(!text.contains("://") && !text.contains("@import") && !text.contains("url("), "{text}");
        }
    }
}
