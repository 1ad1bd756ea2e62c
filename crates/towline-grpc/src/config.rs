use std::time::Duration;

use towline_engine::units::ByteSize;

/// The longest keep-alive: hyper can add it to the current time, and no process runs that long.
const KEEPALIVE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Settings of a [`GrpcTransport`](crate::GrpcTransport). The defaults are meant for production with the engine's own
/// defaults (an election timeout of 1 s at least).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcConfig {
    /// Silence after which a connection is probed. Default 250 ms. Together with `keepalive_timeout` it bounds how long
    /// a dead peer goes unnoticed. The sum should stay below the shortest election timeout. Costs a ping each time.
    pub keepalive_interval: Duration,
    /// How much longer the peer may remain silent until the connection counts as dead. Default 500 ms. Must be above the
    /// pauses of your machines. Any byte of the peer counts, so a slow link is not silent.
    pub keepalive_timeout: Duration,
    /// The deadline for a dialler's hello. Default 1 s. A connection without a stream is cut after twice this time.
    pub handshake_timeout: Duration,
    /// Accepted connections open at once, usually two for each peer. Default 256. At the bound the listener refuses a dialler
    /// with `TooManyConnections`.
    pub connections_max: usize,
    /// Connections of one peer open at once. Default 16: both lanes, before and after a reconnect, and a dozen snapshot
    /// transfers. Above the bound the oldest is closed, and counted as `Displaced` if it was admitted. Admitted and not yet admitted
    /// connections are counted separately, so that refused diallers never displace an admitted connection.
    pub connections_per_peer_max: usize,
    /// Connections a second, and as many at once after a pause. With TLS each costs a handshake. Default 400. At the bound
    /// the listener closes a connection without an answer and counts `TooManyConnections`.
    pub connections_per_second_max: u32,
    /// Streams of one peer and lane at once. Default 2: a peer can reconnect before this node knows that its old stream is
    /// dead. Above the bound the oldest is closed.
    pub streams_per_lane_max: usize,
    /// The flow-control window of one stream. Default 2 MiB.
    pub stream_window_bytes: ByteSize,
    /// The flow-control window of a connection. Default 4 MiB.
    pub connection_window_bytes: ByteSize,
    /// Allows plain text beyond loopback: every host on that network can read and write the log. Default false.
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
    /// Limits the keep-alive to [`KEEPALIVE_MAX`].
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
