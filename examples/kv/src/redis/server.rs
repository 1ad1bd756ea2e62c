//! Accepts Redis clients.

use std::io;
#[cfg(test)]
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::Counter;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::replica::Replica;

use super::cluster::Members;
use super::connection;

/// The wait after `accept` failed, such as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of one command, on the wire and in the log.
    pub(crate) command_bytes_max: usize,
    /// Connections at a time; more are told so and closed.
    pub(crate) connections_max: usize,
}

/// What all connections share.
pub(super) struct Shared<R> {
    pub(super) replica: R,
    pub(super) members: Members,
    pub(super) limits: Limits,
}

/// A bound Redis port.
pub(crate) struct Server {
    listener: TcpListener,
}

impl Server {
    pub(crate) async fn bind(at: &str) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(at).await? })
    }

    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` says so. `refused` counts connections past the bound.
    pub(crate) async fn run<R: Replica>(
        self,
        replica: R,
        members: Members,
        limits: Limits,
        refused: Counter,
        mut stop: watch::Receiver<bool>,
    ) {
        let shared = Arc::new(Shared { replica, members, limits });
        let room = Arc::new(Semaphore::new(limits.connections_max));
        for id in 1_u64.. {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                _ = stop.wait_for(|stop| *stop) => return,
            };
            let (mut stream, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a Redis client could not be accepted");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                refused.increment(1);
                tracing::warn!(%from, connections_max = limits.connections_max, "too many Redis clients");
                // It fits in the socket's buffer, so this does not wait.
                let _ = stream.write_all(b"-ERR max number of clients reached\r\n").await;
                continue;
            };
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            tokio::spawn(async move {
                if let Err(error) = connection::serve(stream, id, shared, stop).await {
                    tracing::debug!(%from, %error, "a Redis connection ended");
                }
                drop(permit);
            });
        }
    }
}
