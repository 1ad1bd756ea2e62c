//! Accepting connections: what the system refuses is tried again.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use metrics::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// The pause after the system gave no connection, such as for want of file descriptors: the clients wait in its queue.
const RETRY: Duration = Duration::from_millis(100);
/// A warning that each client may cause is logged once in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// A connection whose other side is silent is probed after this...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// ...then at this interval, and is closed when none of this number of probes is answered.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A listening socket that never fails.
pub(crate) struct Acceptor {
    listener: TcpListener,
    /// Whose connections these are, for the log.
    whose: &'static str,
    failures: Counter,
    warning: Throttle,
}

/// Lets one line into the log per [`WARNING_INTERVAL`], and counts the others.
#[derive(Default)]
pub(crate) struct Throttle {
    logged: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// The number of lines that were left out since the last one. `None`: leave this line out, too.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.logged.is_some_and(|logged| now < logged + WARNING_INTERVAL) {
            self.left_out += 1;
            return None;
        }
        self.logged = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

impl Acceptor {
    /// `failures` counts the times that the system gave no connection.
    pub(crate) fn new(listener: TcpListener, whose: &'static str, failures: Counter) -> Self {
        Self { listener, whose, failures, warning: Throttle::default() }
    }

    /// The next connection, with keep-alive, so that the end of the client's machine is noticed. Dropping the future
    /// loses no connection.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    // Without it the connection works, too.
                    if let Err(error) = keep_alive(&stream) {
                        tracing::debug!(%error, %from, "keep-alive could not be set");
                    }
                    return (stream, from);
                }
                // The client was gone before we looked.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    self.failures.increment(1);
                    if let Some(left_out) = self.warning.pass(Instant::now()) {
                        let whose = self.whose;
                        tracing::warn!(%error, whose, left_out, "no client can be accepted for now");
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }
}

fn keep_alive(stream: &TcpStream) -> rustix::io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_is_logged_and_tells_how_many_were_left_out() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.pass(start), Some(0));
        for _ in 0..1_000 {
            assert_eq!(throttle.pass(start + WARNING_INTERVAL / 2), None);
        }
        assert_eq!(throttle.pass(start + WARNING_INTERVAL), Some(1_000));
        assert_eq!(throttle.pass(start + WARNING_INTERVAL), None);
        assert_eq!(throttle.pass(start + 2 * WARNING_INTERVAL), Some(1));
    }
}
