//! Connections and requests.

use std::convert::Infallible;
use std::future::pending;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, TRANSFER_ENCODING, UPGRADE};
use hyper::http::{request, response};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::set_socket_linger;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::body::Relay;
use super::log::{Open, Seen, Upstream};
use super::rule::{Action, Resign, s3_error_body};
use super::{Shared, locked};
use crate::servers::Azurite;
use crate::{sign, wire};

type Answer = Response<BoxBody<Bytes, hyper::Error>>;

/// Why a request gets no answer.
enum Unanswered {
    /// Its connection is reset.
    Reset,
    /// It waits until its client gives up.
    Hung,
}

/// Accepts connections until `stopped`.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(connection(stream, Arc::clone(&shared)))),
                // No more descriptors, for now.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::select! {
        () = accept => {}
        _ = stopped => {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    use std::os::fd::AsFd;
    stream.set_nodelay(true).ok();
    // A second handle, since the first disappears in the connection.
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let reset = CancellationToken::new();
    let service = service_fn(|request| answer(Arc::clone(&shared), request, reset.clone()));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // A client that broke off is no matter of the proxy.
        _ = connection => {}
        () = reset.cancelled() => {
            // Closing then sends a reset, not an end.
            set_socket_linger(&socket, Some(Duration::ZERO)).ok();
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>, reset: CancellationToken) -> Result<Answer, Infallible> {
    match Box::pin(decided(&shared, request, &reset)).await {
        Ok(answer) => Ok(answer),
        Err(Unanswered::Reset) => {
            reset.cancel();
            pending().await
        }
        Err(Unanswered::Hung) => pending().await,
    }
}

async fn decided(shared: &Shared, request: Request<Incoming>, reset: &CancellationToken) -> Result<Answer, Unanswered> {
    let (parts, body) = request.into_parts();
    let seen = Seen::new(&parts);
    let open = shared.log.open(&seen);
    let body = Relay::new(body).counted(open.bytes_in());
    let policy = *locked(&shared.policy);
    if let Some(denial) = policy.denies(&seen) {
        read_all(body).await?;
        return own(&open, denial.status, &denial.headers, denial.body);
    }
    let rule = locked(&shared.rules).iter().find(|rule| rule.fires(&seen)).cloned();
    let Some(rule) = rule else { return through(shared, &open, parts, body).await };
    if let Some(hook) = rule.hook() {
        // It may well send requests through this proxy.
        tokio::task::spawn_blocking(move || hook()).await.ok();
    }
    match rule.action() {
        Action::Pass => through(shared, &open, parts, body).await,
        Action::Refuse => Err(Unanswered::Reset),
        Action::ResetBefore { after_bytes } => {
            read(body, *after_bytes, &open).await?;
            Err(Unanswered::Reset)
        }
        Action::ResetAfter => {
            read_answer(passed(shared, &open, parts, body).await?.1).await;
            Err(Unanswered::Reset)
        }
        Action::HangBefore => {
            read_all(body).await?;
            Err(Unanswered::Hung)
        }
        Action::HangAfter => {
            read_answer(passed(shared, &open, parts, body).await?.1).await;
            Err(Unanswered::Hung)
        }
        Action::Status { code, headers, body: text } => {
            read_all(body).await?;
            own(&open, *code, headers, text.clone())
        }
        Action::OkWithError { error, forwarded } => {
            if *forwarded {
                read_answer(passed(shared, &open, parts, body).await?.1).await;
            } else {
                read_all(body).await?;
            }
            own(&open, StatusCode::OK, &[("content-type", "application/xml".to_string())], s3_error_body(error))
        }
        Action::CorruptRequest { offset } => through(shared, &open, parts, body.flipped(*offset)).await,
        Action::CorruptResponse { offset } => {
            let (head, body) = passed(shared, &open, parts, body).await?;
            Ok(reply(&open, head, Relay::new(body).flipped(*offset)))
        }
        Action::TruncateResponse { after_bytes } => {
            let (head, body) = passed(shared, &open, parts, body).await?;
            Ok(reply(&open, head, Relay::new(body).cut(*after_bytes, reset.clone())))
        }
        Action::AnswerHeader { name, value } => {
            let (mut head, body) = passed(shared, &open, parts, body).await?;
            head.headers.insert(*name, HeaderValue::from_static(value));
            Ok(reply(&open, head, Relay::new(body)))
        }
        Action::StripHeaders { names, resign } => match stripped(parts, names, resign.as_ref()) {
            Ok(parts) => through(shared, &open, parts, body).await,
            Err(error) => {
                read_all(body).await?;
                own(&open, StatusCode::INTERNAL_SERVER_ERROR, &[], format!("the proxy of a test cannot sign this: {error:?}"))
            }
        },
        Action::Slow { bytes_per_second } => through(shared, &open, parts, body.paced(*bytes_per_second)).await,
    }
}

/// The server's answer, as it comes.
async fn through(shared: &Shared, open: &Open, parts: request::Parts, body: Relay) -> Result<Answer, Unanswered> {
    let (head, body) = passed(shared, open, parts, body).await?;
    Ok(reply(open, head, Relay::new(body)))
}

fn reply(open: &Open, head: response::Parts, body: Relay) -> Answer {
    open.answered(head.status);
    Response::from_parts(head, body.boxed())
}

/// The server's answer. Where it gives none, neither does the proxy: a server that is gone looks like a broken connection, not like an answer.
async fn passed(shared: &Shared, open: &Open, mut parts: request::Parts, body: Relay) -> Result<(response::Parts, Incoming), Unanswered> {
    without_hops(&mut parts.headers);
    let request = Request::from_parts(parts, body);
    open.upstream(Upstream::Asked);
    let answer = wire::forward(&shared.upstream, request).await.map_err(|_| Unanswered::Reset)?;
    open.upstream(Upstream::Answered(answer.status()));
    let (mut head, body) = answer.into_parts();
    without_hops(&mut head.headers);
    relocate(shared, &mut head.headers);
    Ok((head, body))
}

/// What follows goes through the proxy too, a session of an upload above all.
fn relocate(shared: &Shared, headers: &mut HeaderMap) {
    let from = format!("http://{}", shared.upstream);
    let rest = headers.get(LOCATION).and_then(|location| location.to_str().ok()).and_then(|location| location.strip_prefix(&from));
    if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
        && let Ok(location) = format!("http://{}{rest}", shared.address).parse()
    {
        headers.insert(LOCATION, location);
    }
}

/// Removes what is a matter of two neighbours alone.
fn without_hops(headers: &mut HeaderMap) {
    for hop in [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive")] {
        headers.remove(hop);
    }
}

fn stripped(mut parts: request::Parts, names: &[&'static str], resign: Option<&Resign>) -> Result<request::Parts, wire::WireError> {
    for name in names {
        parts.headers.remove(*name);
    }
    if let Some(by) = resign {
        without_hops(&mut parts.headers);
        let host = parts.headers.get(HOST).cloned();
        let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or_default();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let absolute: Uri = format!("http://{authority}{path}").parse()?;
        parts.headers = match by {
            Resign::S3(by) => sign::s3_again(parts.method.clone(), absolute, &parts.headers, by)?,
            Resign::Azurite => sign::azure_again(parts.method.clone(), absolute, &parts.headers, Azurite::ACCOUNT, Azurite::KEY)?,
        };
        if let Some(host) = host {
            parts.headers.insert(HOST, host);
        }
    }
    Ok(parts)
}

/// An answer of the proxy's own.
fn own(open: &Open, status: StatusCode, headers: &[(&'static str, String)], body: String) -> Result<Answer, Unanswered> {
    let mut answer = Response::builder().status(status);
    for (name, value) in headers {
        answer = answer.header(*name, value);
    }
    // Headers that a test made up may be none.
    let answer = answer.body(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed()).map_err(|_| Unanswered::Reset)?;
    open.answered(status);
    Ok(answer)
}

/// Reads a body to its end: a server that answers before it has read all leaves clients with a broken connection instead of the answer.
async fn read_all(mut body: Relay) -> Result<(), Unanswered> {
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Unanswered::Reset)?;
    }
    Ok(())
}

async fn read_answer(body: Incoming) {
    // What is to be lost may as well break.
    body.collect().await.ok();
}

async fn read(mut body: Relay, bytes: u64, open: &Open) -> Result<(), Unanswered> {
    while open.bytes_in().load(Ordering::SeqCst) < bytes {
        match body.frame().await {
            Some(frame) => drop(frame.map_err(|_| Unanswered::Reset)?),
            None => break,
        }
    }
    Ok(())
}
