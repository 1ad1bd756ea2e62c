//! The HTTP port: pages for operators and scripts.

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
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline::metrics::exporter::Exporter;
use towline::{ClusterId, NodeId, PeerStatus, Role, Wait, WaitCause};

use crate::accept::Acceptor;
use crate::cli::PeerSpec;
use crate::replica::Replica;

/// From the first byte of a request, or the answer before it, to the end of its headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the headers of a request, and of what is read ahead.
const BUFFER_BYTES_MAX: usize = 16 << 10;
/// After this time a connection takes no further request. After the same time again it is closed: a slow reader must not
/// keep other clients out.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
/// A digest reads the whole state, so one is computed at a time.
static DIGEST: Semaphore = Semaphore::const_new(1);
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 21\r\n\r\ntoo many connections\n";

/// Serves until it is dropped. Refuses and counts connections above `connections_max`.
pub(crate) async fn serve<R: Replica>(
    listener: TcpListener,
    pages: Pages<R>,
    connections_max: usize,
    [refused, accept_failures]: [Counter; 2],
) {
    let router = router(Arc::new(pages));
    let room = Arc::new(Semaphore::new(connections_max));
    let mut acceptor = Acceptor::new(listener, "HTTP", accept_failures);
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, from) = tokio::select! {
            accepted = acceptor.next() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            refused.increment(1);
            // The text fits in the socket's buffer, so this does not wait.
            let _ = stream.write_all(REFUSAL).await;
            continue;
        };
        let router = router.clone();
        connections.spawn(async move {
            if let Err(error) = connection(stream, router).await {
                tracing::debug!(%from, %error, "an HTTP connection ended");
            }
            drop(permit);
        });
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

pub(crate) struct Pages<R> {
    pub(crate) replica: R,
    pub(crate) exporter: Exporter,
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    pub(crate) peers: Vec<PeerSpec>,
    pub(crate) tick: Duration,
}

fn router<R: Replica>(pages: Arc<Pages<R>>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<R>))
        .route("/status", get(status::<R>))
        .route("/healthz", get(healthz::<R>))
        .route("/digest", get(digest::<R>))
        .with_state(pages)
}

fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

fn failed(error: impl std::fmt::Display) -> Response {
    json(StatusCode::INTERNAL_SERVER_ERROR, &json!({ "error": error.to_string() }))
}

async fn metrics<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    // Folding the histograms takes long if the last scrape was long ago.
    match tokio::task::spawn_blocking(move || pages.exporter.render()).await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => failed(error),
    }
}

async fn status<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let member = |p: &PeerSpec| json!({ "id": p.id, "raft": p.raft.as_str(), "redis": p.redis.to_string() });
    let status = pages.replica.status().await;
    let (first, last, snapshot) =
        status.as_ref().map_or((0, 0, 0), |s| (s.first_index, s.last_index, s.snapshot_index));
    let waits = pages.replica.explain().await;
    let waits_for_room =
        || waits.iter().any(|wait| wait.peer.is_none() && matches!(wait.cause, WaitCause::DiskFull { .. }));
    let disk_low = status.as_ref().map_or_else(waits_for_room, |status| status.disk_low);
    let refusals = status.as_ref().map(|status| json!(status.refusals)).unwrap_or(json!([]));
    let peers = status.map(|status| status.peers).unwrap_or_default();
    let value = json!({
        "node": pages.node,
        "cluster": pages.cluster,
        "state": pages.replica.state(),
        "log": { "first": first, "last": last, "snapshot": snapshot },
        "disk_low": disk_low,
        "refusals": refusals,
        "peers": peers.iter().map(|peer| progress(peer, last, pages.tick)).collect::<Vec<_>>(),
        "waits": waits.iter().map(wait).collect::<Vec<_>>(),
        "members": pages.peers.iter().map(member).collect::<Vec<_>>(),
    });
    json(StatusCode::OK, &value)
}

/// What a leader knows of a peer. `lag` counts the entries that the peer lacks.
fn progress(peer: &PeerStatus, last_index: u64, tick: Duration) -> Value {
    let ms = |ticks: u64| u64::try_from(tick.as_nanos() * u128::from(ticks) / 1_000_000).unwrap_or(u64::MAX);
    json!({
        "id": peer.id,
        "matched": peer.matched,
        "next": peer.next,
        "lag": last_index.saturating_sub(peer.matched),
        "applied": peer.applied,
        "disk_low": peer.disk_low,
        "lost": peer.lost,
        "progress": peer.progress,
        "progress_age_ms": ms(peer.progress_age_ticks),
        "recent_active": peer.recent_active,
        "attempt": peer.attempt,
        "last_attempt": peer.last_attempt,
        "backoff_ms": ms(peer.backoff_ticks),
    })
}

/// The fields of a wait, and the same as text.
fn wait(wait: &Wait) -> Value {
    let mut value = serde_json::to_value(wait).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("text".into(), wait.to_string().into());
    }
    value
}

async fn healthz<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let state = pages.replica.state();
    let is_healthy = state.leader.is_some() && state.role != Role::Down;
    let status = if is_healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &json!({ "ok": is_healthy, "role": state.role, "leader": state.leader, "down": state.down }))
}

async fn digest<R: Replica>(State(pages): State<Arc<Pages<R>>>) -> Response {
    let permit = DIGEST.acquire().await;
    let Some(view) = pages.replica.local() else {
        return json(StatusCode::SERVICE_UNAVAILABLE, &json!({ "error": "the group does not run" }));
    };
    let digest = move || {
        // The permit is held until the digest is done, even if the client disconnects.
        let _permit = permit;
        view.digest()
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
