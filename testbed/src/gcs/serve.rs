//! Connections, and which request goes where.

use super::Shared;
use super::http::{Call, Response};
use super::{json, xml};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// Requests that are remembered.
const LOGGED_MAX: usize = 100_000;

/// How long the last requests may take when the double is dropped.
const STOP_TIME_MAX: Duration = Duration::from_millis(200);

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedRequest {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// The path as it was sent.
    pub path: String,
    /// The query as it was sent, without its question mark; empty if there was none.
    pub query: String,
    /// What was answered.
    pub status: u16,
    /// The identity whose bearer came with it, if it was good.
    pub identity: Option<String>,
}

/// The requests so far.
#[derive(Default)]
pub(super) struct Log(VecDeque<LoggedRequest>);

impl Log {
    fn push(&mut self, request: LoggedRequest) {
        if self.0.len() == LOGGED_MAX {
            self.0.pop_front();
        }
        self.0.push_back(request);
    }

    pub(super) fn requests(&self) -> Vec<LoggedRequest> {
        self.0.iter().cloned().collect()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The running server.
pub(super) struct Server {
    /// Gone once it was shut down.
    runtime: Option<Runtime>,
}

impl Server {
    pub(super) fn start(listener: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("gcs-double").enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            TcpListener::from_std(listener)?
        };
        runtime.spawn(accept(listener, shared));
        Ok(Self { runtime: Some(runtime) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime may not wait for another within an asynchronous test: a thread does.
            let stop = std::thread::spawn(move || runtime.shutdown_timeout(STOP_TIME_MAX));
            drop(stop.join());
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files, most likely; some are about to be closed.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Small answers would wait for the acknowledgement of their headers. Without it they are only slower.
        drop(stream.set_nodelay(true));
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                // In a task of its own: a request goes on to its end when its connection is lost.
                let answer = tokio::spawn(async move { answer(&shared, request).await });
                async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|_| super::http::status(hyper::StatusCode::INTERNAL_SERVER_ERROR))) }
            });
            // A connection that breaks is the client's to notice.
            drop(http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

async fn answer(shared: &Shared, request: hyper::Request<Incoming>) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let mut call = Call::new(request);
    let path = call.path.clone();
    let parts = |prefix: &str| path.strip_prefix(prefix);
    let response = if path == "/token" && call.method == hyper::Method::POST {
        shared.desk.token(&mut call, &shared.url).await
    } else if let Some(rest) = parts("/upload/storage/v1/b/") {
        json::upload(shared, &mut call, rest).await
    } else if let Some(rest) = parts("/storage/v1/b/").or_else(|| parts("/download/storage/v1/b/")) {
        json::answer(shared, &call, rest)
    } else {
        xml::answer(shared, &mut call).await
    };
    call.drain().await;
    let identity = shared.caller(&call).ok().map(|caller| caller.name);
    let logged = LoggedRequest { method: call.method.to_string(), path, query, status: response.status().as_u16(), identity };
    shared.log().push(logged);
    response
}
