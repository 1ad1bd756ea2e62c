//! Accepts connections, and tries again after an error of the system.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use metrics::Counter;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

/// The pause after an error, such as a lack of file descriptors. Clients wait in the system's queue.
const RETRY: Duration = Duration::from_millis(100);
/// The shortest time between two log lines of a warning that any client can cause.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a connection is silent before the system probes it.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// The system closes a connection after this number of probes without an answer.
const KEEPALIVE_PROBES: u32 = 4;
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// A listening socket that retries after every error.
pub(crate) struct Acceptor {
    listener: TcpListener,
    whose: &'static str,
    failures: Counter,
    warning: Throttle,
}

/// Lets one log line pass in each [`WARNING_INTERVAL`], and counts the others.
#[derive(Default)]
pub(crate) struct Throttle {
    logged: Option<Instant>,
    left_out: u64,
}

impl Throttle {
    /// The number of lines left out since the last one. `None`: leave out this line too.
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
    /// `failures` counts the errors of the system.
    pub(crate) fn new(listener: TcpListener, whose: &'static str, failures: Counter) -> Self {
        Self { listener, whose, failures, warning: Throttle::default() }
    }

    /// The next connection, with keep-alive to notice a dead machine. Dropping the future loses no connection.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    if let Err(error) = keep_alive(&stream) {
                        tracing::debug!(%error, %from, "keep-alive could not be set");
                    }
                    return (stream, from);
                }
                // The client had closed the connection before `accept`.
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
    fn one_line_per_interval_passes_with_the_count_of_the_others() {
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
