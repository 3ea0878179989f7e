//! Which address shows what, and to whom. Everything but the login, its style and its script needs a session; nothing changes anything but sessions.

use super::assets;
use super::folder::{self, Asked};
use super::layout::{Tab, encoded, shell};
use super::login::{self, Login, tokens};
use super::now;
use super::overview;
use super::setup::Page;
use super::snapshot;
use super::source::SourceError;
use super::timeline;
use crate::daemon::http::{Longer, Peer};
use axum::extract::rejection::{FormRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Extension, Form, FromRequest as _, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, http};
use maud::{Markup, html};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a login sends has no more.
const BODY_BYTES_MAX: usize = 8 << 10;

/// What every answer says of itself.
const SAID: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    // Without any a browser hides which page a form was on, and a login could not tell ours from another's.
    ("referrer-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// A header by which page.js says that nobody has asked.
const BY_ITSELF: &str = "x-page-refresh";
/// What a login sends is waited for so long.
const LOGIN_WITHIN: Duration = Duration::from_secs(5);

type Shared = State<Arc<Page>>;

/// All of the page.
pub fn routes(page: Arc<Page>) -> Router {
    let guarded = Router::new()
        .route("/", get(|State(page): Shared| async move { html_of(overview::view(&page).await) }))
        .route("/timeline", get(show_timeline))
        .route("/snapshots/{id}", get(show_snapshot))
        .route("/snapshots/{id}/files", get(show_folder))
        .route("/now", get(|State(page): Shared| async move { html_of(now::view(&page)) }))
        .route(now::EVENTS, get(show_events))
        .fallback(|State(page): Shared| async move { nothing(&page) })
        .layer(middleware::from_fn_with_state(Arc::clone(&page), guard));
    let open = Router::new()
        .route("/login", get(ask).post(log_in))
        .route("/logout", post(log_out))
        .route("/assets/page.css", get(|| async { assets::style() }))
        .route("/assets/page.js", get(|| async { assets::script() }))
        .route("/assets/icon.svg", get(|| async { assets::icon() }));
    open.merge(guarded).layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).layer(middleware::map_response(say)).with_state(page)
}

/// `routes` (of how the daemon is) for who has logged in alone, where that is asked for.
pub fn guarded(routes: Router, page: &Arc<Page>) -> Router {
    if page.guards_status { routes.layer(middleware::from_fn_with_state(Arc::clone(page), guard)) } else { routes }
}

/// What every answer says of itself; nobody keeps what only some may see.
async fn say(mut answer: Response) -> Response {
    let headers = answer.headers_mut();
    for (name, value) in SAID {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

/// Lets through who has a session. A browser is led to the login, and back.
async fn guard(State(page): Shared, request: Request, next: Next) -> Response {
    // What an open tab asks for by itself is no use of the session: it ends, though nobody closes the tab.
    let is_asked_by_itself = request.uri().path() == now::EVENTS || request.headers().contains_key(BY_ITSELF);
    let now = Instant::now();
    let knows = |token| if is_asked_by_itself { page.sessions.lasts(token, now) } else { page.sessions.knows(token, now) };
    if tokens(request.headers()).any(knows) {
        return next.run(request).await;
    }
    let wants_page = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).is_some_and(|accept| accept.contains("text/html"));
    if wants_page && matches!(*request.method(), Method::GET | Method::HEAD) {
        let from = request.uri().path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let to = match login::local(from) {
            "/" => "/login".to_owned(),
            from => format!("/login?next={}", encoded(from)),
        };
        return (StatusCode::SEE_OTHER, [(header::LOCATION, to)]).into_response();
    }
    (StatusCode::UNAUTHORIZED, "log in first\n").into_response()
}

fn peer(peer: Option<Extension<Peer>>) -> IpAddr {
    peer.map_or(Ipv4Addr::UNSPECIFIED.into(), |Extension(Peer(address))| address)
}

#[derive(Default, Deserialize)]
struct From {
    #[serde(default)]
    next: String,
}

async fn ask(State(page): Shared, from: Result<Query<From>, QueryRejection>, headers: HeaderMap) -> Response {
    let next = from.map(|Query(from)| from.next).unwrap_or_default();
    if tokens(&headers).any(|token| page.sessions.knows(token, Instant::now())) {
        return (StatusCode::SEE_OTHER, [(header::LOCATION, login::local(&next).to_owned())]).into_response();
    }
    html_of(login::view(&next, None))
}

async fn log_in(State(page): Shared, who: Option<Extension<Peer>>, headers: HeaderMap, request: Request) -> Response {
    // Whoever sends it byte by byte holds a connection that somebody else wants.
    let Ok(form) = tokio::time::timeout(LOGIN_WITHIN, Form::<Login>::from_request(request, &())).await else {
        let close = (header::CONNECTION, HeaderValue::from_static("close"));
        return (StatusCode::REQUEST_TIMEOUT, [close], "too slow\n").into_response();
    };
    let form: Result<Form<Login>, FormRejection> = form;
    match form {
        Ok(Form(login)) => login::attempt(&page, peer(who), &headers, login).await,
        Err(rejection) => (rejection.status(), "this is no login\n").into_response(),
    }
}

async fn log_out(State(page): Shared, headers: HeaderMap) -> Response {
    login::end(&page, &headers)
}

#[derive(Default, Deserialize)]
struct Before {
    before: Option<u64>,
}

async fn show_timeline(State(page): Shared, before: Result<Query<Before>, QueryRejection>) -> Response {
    shown(&page, timeline::view(&page, before.ok().and_then(|Query(asked)| asked.before)).await.map(Some))
}

async fn show_snapshot(State(page): Shared, Path(id): Path<String>) -> Response {
    let view = async {
        let Some(snapshot) = snapshot::find(&page, &id).await? else { return Ok(None) };
        snapshot::view(&page, &snapshot).await.map(Some)
    };
    let view = view.await;
    if id == "latest" && matches!(view, Ok(None) | Err(SourceError::Nothing)) {
        let text = "After the first backup you can look through its folders here.";
        return html_of(shell(&page, Tab::Files, "Files", &html! { h1 { "Files" } (super::layout::empty("Nothing here yet", text)) }));
    }
    shown(&page, view)
}

async fn show_folder(State(page): Shared, Path(id): Path<String>, asked: Result<Query<Asked>, QueryRejection>) -> Response {
    let view = async {
        let Ok(Query(asked)) = asked else { return Ok(None) };
        let Some(snapshot) = snapshot::find(&page, &id).await? else { return Ok(None) };
        folder::view(&page, &snapshot, asked).await
    };
    shown(&page, view.await)
}

async fn show_events(State(page): Shared, headers: HeaderMap, longer: Option<Extension<Longer>>) -> Response {
    let token = tokens(&headers).find(|token| page.sessions.lasts(token, Instant::now())).unwrap_or_default().to_owned();
    now::events(&page, token, longer.as_ref().map(|Extension(longer)| longer))
}

/// A view as an answer.
pub(super) fn html_of(view: Markup) -> Response {
    Html(view.into_string()).into_response()
}

fn shown(page: &Page, view: Result<Option<Markup>, SourceError>) -> Response {
    match view {
        Ok(Some(view)) => html_of(view),
        Ok(None) => nothing(page),
        Err(error) => {
            let verdict = overview::of_error(&error);
            let advice = verdict.reasons.first().map_or("", |reason| reason.advice);
            let content = html! { section.card.empty { (super::layout::sign(verdict.level)) h1 { (verdict.sentence) } p { (advice) } p { a.button href="/" { "Overview" } } } };
            (StatusCode::SERVICE_UNAVAILABLE, html_of(shell(page, Tab::Overview, "Not now", &content))).into_response()
        }
    }
}

fn nothing(page: &Page) -> Response {
    let content = html! { section.card.empty { (super::layout::mark()) h1 { "There is nothing here" } p { "The backup has no such snapshot, folder or page." } p { a.button href="/" { "Overview" } } } };
    (StatusCode::NOT_FOUND, html_of(shell(page, Tab::Overview, "Nothing here", &content))).into_response()
}
