//! Accepts Redis clients.

use std::sync::Arc;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::accept::{Acceptor, Throttle};
use crate::replica::Replica;

use super::connection;
use super::shared::Shared;

/// Serves clients until `stop` holds true.
pub(crate) async fn serve<R: Replica>(
    listener: TcpListener,
    shared: Shared<R>,
    mut stop: watch::Receiver<bool>,
) {
    let shared = Arc::new(shared);
    let connections_max = shared.limits.connections_max;
    let mut acceptor = Acceptor::new(listener, "Redis", shared.counters.accept_failures.clone());
    let room = Arc::new(Semaphore::new(connections_max));
    let mut warning = Throttle::default();
    let mut connections = JoinSet::new(); // its drop ends all connections
    for id in 1_u64.. {
        let (mut stream, from) = loop {
            tokio::select! {
                accepted = acceptor.next() => break accepted,
                Some(_) = connections.join_next() => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            shared.counters.refused.increment(1);
            if let Some(left_out) = warning.pass(Instant::now()) {
                tracing::warn!(%from, connections_max, left_out, "too many Redis clients");
            }
            // The text fits in the socket's buffer, so this does not wait.
            let _ = stream.write_all(b"-ERR max number of clients reached\r\n").await;
            continue;
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            if let Err(error) = connection::serve(stream, id, shared).await {
                tracing::debug!(%from, %error, "a Redis connection ended");
            }
            drop(permit);
        });
    }
}
