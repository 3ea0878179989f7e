//! Logging in and out.

use super::client::{is_https, is_own};
use super::layout::bare;
use super::password::{BYTES_MAX, Compared};
use super::routes::html_of;
use super::setup::Page;
use super::words::span;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The cookie's name, where the browser speaks HTTPS: it is refused by browsers then unless this very host has set it over HTTPS.
const COOKIE_HTTPS: &str = "__Host-immich-backup";
/// The cookie's name elsewhere.
const COOKIE: &str = "immich-backup";
/// A path to go back to has no more.
const NEXT_BYTES_MAX: usize = 2 << 10;

/// What a login sends.
#[derive(Deserialize)]
pub struct Login {
    #[serde(default)]
    password: String,
    #[serde(default)]
    next: String,
}

/// Where to go after a login: a path here, and nothing else.
pub fn local(next: &str) -> &str {
    let is_path = next.starts_with('/') && !next.starts_with("//") && next.len() <= NEXT_BYTES_MAX;
    let is_plain = next.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    if is_path && is_plain && !next.starts_with("/login") && !next.starts_with("/logout") && !next.starts_with("/now/") { next } else { "/" }
}

/// The tokens that a request brings. Whatever else the same host serves, on another port, may have set a cookie of the plain name beside ours: each is tried.
/// With HTTPS only that counts which nobody else can set.
pub fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let name = if is_https(headers) { COOKIE_HTTPS } else { COOKIE };
    let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    pairs.filter_map(|pair| pair.trim().split_once('=')).filter(move |(of, _)| *of == name).map(|(_, token)| token)
}

fn cookie(headers: &HeaderMap, token: &str, age_s: u64) -> Option<HeaderValue> {
    let (name, secure) = if is_https(headers) { (COOKIE_HTTPS, "; Secure") } else { (COOKIE, "") };
    HeaderValue::from_str(&format!("{name}={token}; Path=/; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}")).ok()
}

/// The page that asks for the password.
pub fn view(next: &str, problem: Option<&str>) -> Markup {
    bare(
        "Log in",
        &html! {
            section.login {
                (super::layout::mark())
                h1 { "Immich backup" }
                form method="post" action="/login" {
                    input type="hidden" name="next" value=(local(next));
                    // Password managers want a name to keep it under.
                    input type="text" name="user" value="immich-backup" autocomplete="username" hidden;
                    label for="password" { "Password" }
                    input #password type="password" name="password" required autofocus autocomplete="current-password" maxlength=(BYTES_MAX) aria-describedby=[problem.map(|_| "problem")] aria-invalid=[problem.map(|_| "true")];
                    @if let Some(problem) = problem { p.problem #problem role="alert" { (problem) } }
                    button type="submit" { "Log in" }
                }
            }
        },
    )
}

fn refused(code: StatusCode, next: &str, problem: &str, wait: Option<Duration>) -> Response {
    let mut answer = (code, html_of(view(next, Some(problem)))).into_response();
    if let Some(wait) = wait {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    answer
}

/// Tries a password.
pub async fn attempt(page: &Arc<Page>, peer: IpAddr, headers: &HeaderMap, login: Login) -> Response {
    if !is_own(headers) {
        return refused(StatusCode::FORBIDDEN, "/", "That came from another site. Log in here.", None);
    }
    let client = page.proxies.client(peer, headers);
    if let Err(wait) = page.limiter.begin(client, Instant::now()) {
        let problem = format!("Too many attempts. Try again in {}.", span(wait.as_secs() + 1));
        return refused(StatusCode::TOO_MANY_REQUESTS, &login.next, &problem, Some(wait));
    }
    // What is longer than any password needs no comparison.
    let compared = if login.password.len() > BYTES_MAX { Compared::Wrong } else { page.password.compare(login.password).await };
    match compared {
        Compared::Wrong => refused(StatusCode::FORBIDDEN, &login.next, "That is not the password.", None),
        Compared::Busy => {
            page.limiter.withdrawn(client);
            refused(StatusCode::SERVICE_UNAVAILABLE, &login.next, "Too many are logging in. Try again in a moment.", Some(Duration::from_secs(5)))
        }
        Compared::Right => {
            page.limiter.succeeded(client, Instant::now());
            page.get_ready();
            let begun = page.sessions.begin(Instant::now()).and_then(|token| cookie(headers, &token, super::sessions::LENGTH_MAX.as_secs()));
            let Some(cookie) = begun else { return StatusCode::INTERNAL_SERVER_ERROR.into_response() };
            let to = HeaderValue::from_str(local(&login.next)).unwrap_or(HeaderValue::from_static("/"));
            (StatusCode::SEE_OTHER, [(header::LOCATION, to), (header::SET_COOKIE, cookie)]).into_response()
        }
    }
}

/// Ends the session.
pub fn end(page: &Page, headers: &HeaderMap) -> Response {
    if !is_own(headers) {
        return StatusCode::FORBIDDEN.into_response();
    }
    for token in tokens(headers) {
        page.sessions.end(token);
    }
    let mut answer = (StatusCode::SEE_OTHER, [(header::LOCATION, "/login")]).into_response();
    if let Some(cookie) = cookie(headers, "", 0) {
        answer.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_back_to_where_one_was_and_never_elsewhere() {
        for path in ["/", "/timeline?before=9", "/snapshots/latest", "/snapshots/5f/files?root=&path=a%2Fb"] {
            assert_eq!(local(path), path);
        }
        for other in [
            "",
            "//evil.example",
            "https://evil.example",
            "/\\evil.example",
            "/a\r\nSet-Cookie: x",
            "javascript:alert(1)",
            "/login",
            "/logout",
            "/now/events",
            "/ä",
        ] {
            assert_eq!(local(other), "/", "{other}");
        }
    }

    #[test]
    fn a_cookie_that_something_else_on_the_same_host_has_set_hides_none() {
        let both = [(header::COOKIE, HeaderValue::from_static("immich-backup=theirs; a=b; immich-backup=ours; __Host-immich-backup=safe"))];
        let mut headers = HeaderMap::from_iter(both);
        assert_eq!(tokens(&headers).collect::<Vec<_>>(), ["theirs", "ours"]);
        headers.insert("x-forwarded-proto", HeaderValue::from_static("https"));
        assert_eq!(tokens(&headers).collect::<Vec<_>>(), ["safe"]);
    }

    #[test]
    fn a_cookie_is_out_of_reach_of_scripts_and_other_sites_and_of_plain_http_where_there_is_https() {
        let plain = cookie(&HeaderMap::new(), "t", 5).unwrap();
        assert_eq!(plain, "immich-backup=t; Path=/; Max-Age=5; HttpOnly; SameSite=Strict");
        let headers = HeaderMap::from_iter([(header::HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("https"))]);
        assert_eq!(cookie(&headers, "t", 5).unwrap(), "__Host-immich-backup=t; Path=/; Max-Age=5; HttpOnly; SameSite=Strict; Secure");
    }
}
