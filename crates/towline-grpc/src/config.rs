use std::time::Duration;

use towline_engine::units::ByteSize;

/// The longest keep-alive: no process runs that long, and hyper can add it to the time of now.
const KEEPALIVE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Settings of a [`GrpcTransport`](crate::GrpcTransport). The defaults are meant for production with the engine's own
/// defaults (an election timeout of 1 s at least).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcConfig {
    /// Silence after which a connection is probed. Default 250 ms. Together with the next field it bounds how long a dead
    /// peer goes unnoticed, and should stay below the shortest election timeout. Costs a ping each time.
    pub keepalive_interval: Duration,
    /// How much longer the peer may remain silent until the connection counts as dead. Default 500 ms. Must be above the
    /// pauses of your machines. Any byte of the peer counts, so a slow link is not silent.
    pub keepalive_timeout: Duration,
    /// How long a dialler may take for its hello. Default 1 s. A connection that never gets as far as a stream is cut at
    /// twice of it.
    pub handshake_timeout: Duration,
    /// Connections accepted at once, two a peer in the usual case. Default 256. At the bound a dialler is refused with
    /// `TooManyConnections`.
    pub connections_max: usize,
    /// Connections of one peer at once. Default 16: both lanes, before and after a reconnect, and a dozen snapshot transfers.
    /// At the bound the oldest is closed and `TooManyConnections` is counted, so that a peer that reconnects is let in and
    /// one that connects for ever takes no other's room. Those that were let in and those that were not
    /// (yet) are bounded each for themselves, so that a caller that is refused takes no place of one that was let in.
    pub connections_per_peer_max: usize,
    /// Connections a second, each a TLS handshake where there is TLS, and as many at once after a pause. Default 400. At the
    /// bound a dialler is cut without a word, and `TooManyConnections` is counted.
    pub connections_per_second_max: u32,
    /// Streams of one peer and lane at once. Default 2: a peer that reconnects is let in before its old stream is known
    /// to be dead. At the bound the oldest is closed.
    pub streams_per_lane_max: usize,
    /// Bytes of one lane under way before the receiver must have taken some. Default 2 MiB.
    pub stream_window_bytes: ByteSize,
    /// The same for a connection. Default 4 MiB.
    pub connection_window_bytes: ByteSize,
    /// Allows plain text beyond loopback: everybody on that network can read the log and write to it. Default false.
    pub allow_plaintext_off_loopback: bool,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            keepalive_interval: Duration::from_millis(250),
            keepalive_timeout: Duration::from_millis(500),
            handshake_timeout: Duration::from_secs(1),
            connections_max: 256,
            connections_per_peer_max: 16,
            connections_per_second_max: 400,
            streams_per_lane_max: 2,
            stream_window_bytes: ByteSize::mib(2),
            connection_window_bytes: ByteSize::mib(4),
            allow_plaintext_off_loopback: false,
        }
    }
}

impl GrpcConfig {
    /// The same settings, with a keep-alive of [`KEEPALIVE_MAX`] at most.
    pub(crate) fn bounded(self) -> Self {
        Self {
            keepalive_interval: self.keepalive_interval.min(KEEPALIVE_MAX),
            keepalive_timeout: self.keepalive_timeout.min(KEEPALIVE_MAX),
            ..self
        }
    }
}

/// A flow-control window of HTTP/2, which has 31 bits.
pub(crate) fn window(size: ByteSize) -> u32 {
    size.as_u64().min(i32::MAX as u64) as u32
}
