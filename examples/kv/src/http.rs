//! The HTTP port: what operators and scripts look at.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use towline::metrics::exporter::Exporter;

use crate::cli::PeerSpec;
use crate::replica::{Replica, Role};

/// What the pages show.
pub(crate) struct Pages<R> {
    pub(crate) replica: R,
    pub(crate) exporter: Exporter,
    pub(crate) node: u64,
    pub(crate) cluster: String,
    pub(crate) peers: Vec<PeerSpec>,
}

pub(crate) fn router<R: Replica>(pages: Arc<Pages<R>>) -> Router {
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
    match tokio::task::spawn_blocking(move || pages.replica.local().digest()).await {
        Ok(Ok(digest)) => {
            let hex = format!("{:016x}", digest.digest);
            json(StatusCode::OK, &json!({ "applied": digest.applied, "keys": digest.keys, "digest": hex }))
        }
        Ok(Err(error)) => failed(error),
        Err(error) => failed(error),
    }
}
