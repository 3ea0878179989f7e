//! `/healthz`, `/status` and `/metrics` over HTTP, for probes, for Prometheus and for people, and the page beside them; and the one who asks, for a container's
//! health check.

use super::board::Board;
use super::metrics::MetricsFile;
use crate::config::UsageError;
use crate::page::{self, Page};
use anyhow::{Context as _, bail};
use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

/// Connections at once.
const CONNECTIONS_MAX: usize = 32;
/// So many more, which are told whether the daemon lives and nothing else: who asks that must not wait behind all others. Still more wait.
const SPARE_MAX: usize = 4;
/// From the first byte of a request to the end of its headers.
const HEADERS_WITHIN: Duration = Duration::from_secs(5);
/// A connection lives so long, whatever it is used for; what is being answered then may end. Only what asks for longer gets it ([`Longer`]).
const CONNECTION_WITHIN: Duration = Duration::from_secs(30);
/// So long after that it is cut.
const CUT_AFTER: Duration = Duration::from_secs(10);
/// The metrics' file is waited for so long.
const METRICS_WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: usize = 16 << 10;
/// Headers of a request.
const HEADERS_MAX: usize = 64;
/// How long the check waits for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// After the system refused a connection (no more files, mostly), before the next is taken.
const AFTER_REFUSAL: Duration = Duration::from_millis(200);

/// The address of `--listen`.
///
/// # Errors
/// It is none.
pub fn address(text: &str) -> Result<SocketAddr, UsageError> {
    text.parse().map_err(|_| UsageError(format!("--listen takes an address and a port like `127.0.0.1:9300` or `[::]:9300`, not `{text}`")))
}

/// Takes the address for this process.
///
/// # Errors
/// Somebody has it, or it is none of this machine.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (--listen)"))
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Lets a connection live longer.
#[derive(Debug, Clone)]
pub struct Longer(watch::Sender<Duration>);

impl Longer {
    /// So long, from its beginning to now and on from there.
    pub fn until(&self, within: Duration) {
        self.0.send_modify(|limit| *limit = limit.saturating_add(within));
    }
}

#[derive(Clone)]
struct Metrics {
    board: Arc<Board>,
    file: MetricsFile,
    /// The file may lie on a disk that hangs: one thread waits for it, and no more.
    turn: Arc<Semaphore>,
}

fn routes(board: Arc<Board>, file: MetricsFile, page: Option<Arc<Page>>) -> Router {
    let metrics = Metrics { board: Arc::clone(&board), file, turn: Arc::new(Semaphore::new(1)) };
    let metrics = Router::new().route("/metrics", get(self::metrics)).with_state(metrics);
    let told = Router::new().route("/status", get(status)).with_state(Arc::clone(&board)).merge(metrics);
    let health = Router::new().route("/healthz", get(health)).with_state(board);
    match page {
        Some(page) => health.merge(page::guarded(told, &page)).merge(page::routes(page)),
        None => health.merge(told),
    }
}

async fn metrics(State(metrics): State<Metrics>) -> Response {
    let Metrics { board, file, turn } = metrics;
    let text = async {
        let turn = turn.acquire_owned().await.ok()?;
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            file.text(&board)
        });
        read.await.ok()
    };
    match tokio::time::timeout(METRICS_WITHIN, text).await {
        Ok(Some(text)) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"), (header::CACHE_CONTROL, "no-store")], text).into_response(),
        Ok(None) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the disk of the metrics' file does not answer\n").into_response(),
    }
}

async fn health(State(board): State<Arc<Board>>) -> Response {
    if board.is_turning() { "ok\n".into_response() } else { (StatusCode::SERVICE_UNAVAILABLE, "stuck\n").into_response() }
}

async fn busy() -> Response {
    let headers = [(header::RETRY_AFTER, "5"), (header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "too many connections\n").into_response()
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    let status = board.status(Timestamp::now());
    let code = if status.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(status)).into_response()
}

/// Answers whoever asks, for as long as the process lives; with a page, where there is one.
pub async fn serve(listener: TcpListener, board: Arc<Board>, file: MetricsFile, page: Option<Arc<Page>>) {
    let routes = routes(Arc::clone(&board), file, page);
    let spare_routes = Router::new().route("/healthz", get(health)).with_state(board).fallback(busy);
    let (room, spare) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Semaphore::new(SPARE_MAX)));
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(AFTER_REFUSAL).await;
            continue;
        };
        let (permit, routes) = tokio::select! {
            biased;
            Ok(permit) = Arc::clone(&room).acquire_owned() => (permit, &routes),
            Ok(permit) = Arc::clone(&spare).acquire_owned() => (permit, &spare_routes),
            else => return,
        };
        let routes = routes.clone();
        tokio::spawn(async move {
            // Whoever asks and goes away, or is too slow, gets nothing: that is no concern of ours.
            answer(stream, peer, routes).await;
            drop(permit);
        });
    }
}

async fn answer(stream: TcpStream, peer: SocketAddr, routes: Router) {
    let began = Instant::now();
    let (longer, mut limit) = watch::channel(CONNECTION_WITHIN);
    let service = TowerToHyperService::new(routes.layer(Extension(Peer(peer.ip()))).layer(Extension(Longer(longer))));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(HEADER_BYTES_MAX).max_headers(HEADERS_MAX);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    loop {
        let end = began + *limit.borrow_and_update();
        tokio::select! {
            _ = connection.as_mut() => return,
            Ok(()) = limit.changed() => {}
            () = tokio::time::sleep_until(end) => {
                connection.as_mut().graceful_shutdown();
                drop(tokio::time::timeout(CUT_AFTER, connection).await);
                return;
            }
        }
    }
}

/// Asks the daemon that listens on `address` whether it is alive.
///
/// # Errors
/// It is not, or nobody answers.
pub async fn check(address: SocketAddr) -> anyhow::Result<()> {
    let address = reachable(address);
    let asked = tokio::time::timeout(ANSWER_WITHIN, ask(address)).await;
    match asked.map_err(|_| anyhow::anyhow!("no answer from {address} within {} s", ANSWER_WITHIN.as_secs()))?? {
        StatusCode::OK => Ok(()),
        other => bail!("the daemon on {address} is not well: it answers {other}"),
    }
}

/// An address that stands for all of them is reached by the machine's own.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

async fn ask(address: SocketAddr) -> anyhow::Result<StatusCode> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("nobody answers on {address}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("cannot speak HTTP")?;
    let driven = tokio::spawn(connection);
    let request = hyper::Request::get("/healthz").header(header::HOST, address.to_string()).body(Empty::<Bytes>::new()).context("cannot ask")?;
    let answer = sender.send_request(request).await.with_context(|| format!("no answer from {address}"))?;
    driven.abort();
    Ok(answer.status())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::memory::Remembered;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn served() -> (SocketAddr, Arc<Board>) {
        let listener = listen(address("127.0.0.1:0").unwrap()).await.unwrap();
        let place = listener.local_addr().unwrap();
        let board = Arc::new(Board::new(&Remembered::new(Timestamp::now()), None));
        let file = MetricsFile { path: "/nowhere/metrics.prom".into(), repository: "r".into() };
        tokio::spawn(serve(listener, Arc::clone(&board), file, None));
        (place, board)
    }

    async fn said(place: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(place).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // Refused while it is still being sent, a request ends with a reset.
        drop(tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an end"));
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn it_answers_what_it_has_and_nothing_else() {
        let (place, _board) = served().await;
        check(place).await.unwrap();
        let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").into_bytes();
        assert!(said(place, &get("/status")).await.starts_with("HTTP/1.1 200"));
        let metrics = said(place, &get("/metrics")).await;
        assert!(metrics.starts_with("HTTP/1.1 200") && metrics.contains("immich_backup_problems{repository=\"r\"} 0\n"), "{metrics}");
        assert!(said(place, &get("/")).await.starts_with("HTTP/1.1 404"));
        assert!(said(place, b"DELETE /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert!(check(address("127.0.0.1:1").unwrap()).await.unwrap_err().to_string().contains("nobody answers"));
        let unspecified = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), place.port());
        check(unspecified).await.unwrap();
    }

    #[tokio::test]
    async fn a_disk_that_hangs_keeps_one_thread_and_nobody_waits_for_it() {
        let board = Arc::new(Board::new(&Remembered::new(Timestamp::now()), None));
        let file = MetricsFile { path: "/nowhere/metrics.prom".into(), repository: "r".into() };
        // As while the one thread waits.
        let stuck = Metrics { board, file, turn: Arc::new(Semaphore::new(0)) };
        let answer = metrics(State(stuck.clone())).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        stuck.turn.add_permits(1);
        assert_eq!(metrics(State(stuck)).await.status(), StatusCode::OK);
    }

    #[tokio::test]
    async fn a_connection_that_nobody_uses_ends_and_one_that_asks_for_longer_gets_it() {
        let (longer, limit) = watch::channel(CONNECTION_WITHIN);
        Longer(longer).until(Duration::from_secs(600));
        assert_eq!(*limit.borrow(), CONNECTION_WITHIN + Duration::from_secs(600));
        let (place, _board) = served().await;
        let mut stream = TcpStream::connect(place).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // It is kept for another request, and ended when none comes.
        drop(tokio::time::timeout((CONNECTION_WITHIN + CUT_AFTER) * 3, stream.read_to_end(&mut answer)).await.expect("an end"));
        assert!(String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn who_sends_too_much_or_too_slowly_is_dropped_and_others_are_served() {
        let (place, _board) = served().await;
        let began = Instant::now();
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(place).await.unwrap();
            stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
            slow.push(stream);
        }
        // All room is taken, but for who asks whether it lives.
        check(place).await.unwrap();
        let page = said(place, b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(page.starts_with("HTTP/1.1 503") && page.contains("too many connections"), "{page}");
        let huge = [b"GET /healthz HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; HEADER_BYTES_MAX * 2], b"\r\n\r\n".to_vec()].concat();
        assert!(!said(place, &huge).await.starts_with("HTTP/1.1 200"));
        let many = [b"GET /healthz HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(HEADERS_MAX + 1), b"\r\n".to_vec()].concat();
        assert!(!said(place, &many).await.starts_with("HTTP/1.1 200"));
        for mut stream in slow {
            let mut answer = Vec::new();
            drop(tokio::time::timeout(HEADERS_WITHIN * 3, stream.read_to_end(&mut answer)).await.expect("is dropped"));
            assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"));
        }
        assert!(began.elapsed() < HEADERS_WITHIN * 3);
        check(place).await.unwrap();
    }
}
