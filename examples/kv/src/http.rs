//! The HTTP port: what operators and scripts look at.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::Counter;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline::metrics::exporter::Exporter;

use crate::accept::Acceptor;
use crate::cli::PeerSpec;
use crate::replica::{Replica, Role};

/// From the first byte of a request, or the answer before it, to the end of its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the headers of a request, and of what is read ahead. The library's least is half of it.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// A connection takes no further request after this long, and is closed after as long again: a client that reads slowly
/// keeps no other client out.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
/// What reads the whole state runs one at a time.
const DIGESTS_MAX: usize = 1;
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 21\r\n\r\ntoo many connections\n";

/// What the port keeps to, and counts.
pub(crate) struct Bounds {
    /// Connections at a time; more are refused and closed.
    pub(crate) connections_max: usize,
    /// Connections past the bound.
    pub(crate) refused: Counter,
    /// Times that the system gave no connection.
    pub(crate) accept_failures: Counter,
}

/// Serves until it is dropped.
pub(crate) async fn serve<R: Replica>(listener: TcpListener, pages: Pages<R>, bounds: Bounds) {
    let router = router(Arc::new(pages));
    let room = Arc::new(Semaphore::new(bounds.connections_max));
    let mut acceptor = Acceptor::new(listener, "HTTP", bounds.accept_failures);
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, from) = tokio::select! {
            accepted = acceptor.next() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => {
                let router = router.clone();
                connections.spawn(async move {
                    if let Err(error) = connection(stream, router).await {
                        tracing::debug!(%from, %error, "an HTTP connection ended");
                    }
                    drop(permit);
                });
            }
            Err(_) => {
                bounds.refused.increment(1);
                // It fits in the socket's buffer, so this does not wait.
                let _ = stream.write_all(REFUSAL).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router) -> Result<(), hyper::Error> {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADERS_TIMEOUT).max_buf_size(BUFFER_BYTES_MAX);
    let served = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    if let Ok(ended) = timeout(CONNECTION_TIME, served.as_mut()).await {
        return ended;
    }
    served.as_mut().graceful_shutdown();
    timeout(CONNECTION_TIME, served).await.unwrap_or(Ok(()))
}

/// What the pages show.
pub(crate) struct Pages<R> {
    replica: R,
    exporter: Exporter,
    node: u64,
    cluster: String,
    peers: Vec<PeerSpec>,
    digests: Arc<Semaphore>,
}

impl<R> Pages<R> {
    pub(crate) fn new(
        replica: R,
        exporter: Exporter,
        node: u64,
        cluster: String,
        peers: Vec<PeerSpec>,
    ) -> Self {
        Self { replica, exporter, node, cluster, peers, digests: Arc::new(Semaphore::new(DIGESTS_MAX)) }
    }
}

fn router<R: Replica>(pages: Arc<Pages<R>>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<R>))
        .route("/status", get(status::<R>))
        .route("/healthz", get(healthz::<R>))
        .route("/digest", get(digest::<R>))
        .with_state(pages)
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

fn failed(error: impl std::fmt::Display) -> Response {
    json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error.to_string() }))
}

async fn metrics<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    // Folding the histograms takes a while when nobody did for long.
    match tokio::task::spawn_blocking(move || pages.exporter.render()).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => failed(error),
    }
}

async fn status<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let addresses: Vec<_> = pages
        .peers
        .iter()
        .map(|p| json!({ "id": p.id, "raft": p.raft.as_str(), "redis": p.redis.to_string() }))
        .collect();
    let detail = pages.replica.detail().await;
    let value = json!({
        "node": pages.node,
        "cluster": pages.cluster,
        "state": pages.replica.state(),
        "log": { "first": detail.first_index, "last": detail.last_index, "snapshot": detail.snapshot_index },
        "peers": detail.peers,
        "members": addresses,
    });
    json(StatusCode::OK, &value)
}

async fn healthz<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let state = pages.replica.state();
    let well = state.leader.is_some() && state.role != Role::Down;
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &json!({ "ok": well, "role": state.role, "leader": state.leader, "down": state.down }))
}

async fn digest<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let turn = Arc::clone(&pages.digests).acquire_owned().await;
    let digest = move || {
        // Held until it is done, also if the client does not wait for it.
        let _turn = turn;
        pages.replica.local().digest()
    };
    match tokio::task::spawn_blocking(digest).await {
        Ok(Ok(digest)) => {
            let hex = format!("{:016x}", digest.digest);
            json(StatusCode::OK, &json!({ "applied": digest.applied, "keys": digest.keys, "digest": hex }))
        }
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}
