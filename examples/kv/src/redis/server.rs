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
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::accept::{Acceptor, Throttle};
use crate::replica::Replica;

use super::cluster::Members;
use super::connection;
use super::pool::Pool;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of one command, on the wire and in the log.
    pub(crate) command_bytes_max: usize,
    /// Connections at a time; more are told so and closed.
    pub(crate) connections_max: usize,
    /// Commands longer than 32 KiB that are received, or whose arguments are in use, at a time.
    pub(crate) long_commands_max: usize,
    /// Bytes of values from 16 KiB on, and of values that long replies keep, of all connections together.
    pub(crate) reply_bytes_max: usize,
    /// For a command from its first byte to its last.
    pub(crate) command_timeout: Duration,
    /// For a client to take some of what waits for it.
    pub(crate) write_timeout: Duration,
    /// For a client to take the whole of one long reply.
    pub(crate) reply_timeout: Duration,
}

/// What is counted.
#[derive(Clone)]
pub(crate) struct Counters {
    /// Connections past the bound.
    pub(crate) refused: Counter,
    /// Times that the system gave no connection.
    pub(crate) accept_failures: Counter,
    /// Times that a connection had to wait for room for a long command, and for a large reply.
    pub(crate) command_waits: Counter,
    pub(crate) reply_waits: Counter,
    pub(crate) command_timeouts: Counter,
    pub(crate) write_timeouts: Counter,
    pub(crate) reply_timeouts: Counter,
}

impl Counters {
    /// Of the connections that were closed for `cause`.
    pub(super) fn closed(&self, cause: CloseCause) -> &Counter {
        match cause {
            CloseCause::Command => &self.command_timeouts,
            CloseCause::Write => &self.write_timeouts,
            CloseCause::Reply => &self.reply_timeouts,
        }
    }
}

/// The timeout at which a connection was closed that the client had left open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseCause {
    Command,
    Write,
    Reply,
}

impl CloseCause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command_timeout",
            Self::Write => "write_timeout",
            Self::Reply => "reply_timeout",
        }
    }
}

/// Memory that all connections share.
///
/// One connection asks for it in the order of the fields, and what it got last depends on its client alone, which has
/// deadlines, or on the answer of a write. So no two connections wait for each other.
pub(super) struct Pools {
    pub(super) commands: Pool,
    /// Values that replies of many keys keep from the time of the read on.
    pub(super) kept: Pool,
    /// Values that were read from the store, or are the answer of a write.
    pub(super) values: Pool,
}

impl Pools {
    fn new(limits: &Limits, counters: &Counters) -> Self {
        let half = limits.reply_bytes_max / 2;
        Self {
            commands: Pool::new(
                limits.command_bytes_max.saturating_mul(limits.long_commands_max),
                counters.command_waits.clone(),
            ),
            kept: Pool::new(half, counters.reply_waits.clone()),
            values: Pool::new(half, counters.reply_waits.clone()),
        }
    }
}

/// What all connections share.
pub(super) struct Shared<R> {
    pub(super) replica: R,
    pub(super) members: Members,
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    pub(super) pools: Pools,
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

    /// Serves until `stop` says so.
    pub(crate) async fn run<R: Replica>(
        self,
        replica: R,
        members: Members,
        limits: Limits,
        counters: Counters,
        mut stop: watch::Receiver<bool>,
    ) {
        let pools = Pools::new(&limits, &counters);
        let shared = Arc::new(Shared { replica, members, limits, counters, pools });
        let failures = shared.counters.accept_failures.clone();
        let mut acceptor = Acceptor::new(self.listener, "Redis", failures);
        let room = Arc::new(Semaphore::new(limits.connections_max));
        let mut warning = Throttle::default();
        // Dropping the set at the end ends the connections.
        let mut connections = JoinSet::new();
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
                    let connections_max = limits.connections_max;
                    tracing::warn!(%from, connections_max, left_out, "too many Redis clients");
                }
                // It fits in the socket's buffer, so this does not wait.
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
}
