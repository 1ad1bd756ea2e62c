use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use towline_engine::units::ByteSize;

/// How long a shutdown waits for lanes to end in order, and again for the last packets.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// The longest keep-alive: quinn can add it to the current time, and no process runs that long.
const KEEPALIVE_MAX: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// Settings of a [`QuicTransport`](crate::QuicTransport). The defaults are meant for production with the engine's own
/// defaults (an election timeout of 1 s at least). Give all nodes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuicConfig {
    /// Silence after which a connection is probed. Default 250 ms. Together with `idle_timeout` it bounds how long
    /// a dead peer goes unnoticed. The sum should stay below the shortest election timeout. Costs a packet each time.
    pub keepalive_interval: Duration,
    /// How long a peer may remain silent until the connection counts as dead. Default 500 ms. Must be above the keep-alive
    /// interval and the pauses of your machines. QUIC itself takes three probe timeouts where that is longer, about
    /// three to five round trips.
    pub idle_timeout: Duration,
    /// The deadline of a TLS handshake, and of the hello that follows it. Default 1 s. A connection that never opens a
    /// stream is closed after twice this time.
    pub handshake_timeout: Duration,
    /// Accepted connections open at once; usually one for each peer. Default 256. At the bound the listener refuses a dialler
    /// with `TooManyConnections`.
    pub connections_max: usize,
    /// Connections of one peer open at once. Default 2: a peer can reconnect before this node knows that its old connection
    /// is dead. Above the bound the oldest is closed, and counted as `Displaced` if it was admitted. Admitted and not yet admitted
    /// connections are counted separately, so that refused diallers never displace an admitted connection.
    pub connections_per_peer_max: usize,
    /// Handshakes a second, and as many at once after a pause. Default 200: their signatures take at most half of one core.
    /// At the bound the listener refuses a dialler with `TooManyConnections`.
    pub handshakes_per_second_max: u32,
    /// Streams of one peer and lane at once. Default 2. At the bound the oldest is closed.
    pub streams_per_lane_max: usize,
    /// Streams of one connection at once: lanes and snapshot transfers. Default 16.
    pub streams_max: u32,
    /// The flow-control window of one stream, in bytes. Default 2 MiB. The window of a connection is this times
    /// `streams_max`, so that a stream with a slow receiver never takes another stream's share.
    pub stream_window_bytes: ByteSize,
}

/// The assumed round-trip time before the first measurement. A lost first packet is sent again after about three times
/// this.
const INITIAL_RTT: Duration = Duration::from_millis(50);
/// Bytes of handshake data buffered out of order: room for the certificates of a long chain.
const CRYPTO_BUFFER_BYTES: usize = 32 << 10;
/// Bytes that a connection may send on all its streams before one of its hellos is accepted.
const CALLING_BYTES_MAX: u32 = 32 << 10;

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            keepalive_interval: Duration::from_millis(250),
            idle_timeout: Duration::from_millis(500),
            handshake_timeout: Duration::from_secs(1),
            connections_max: 256,
            connections_per_peer_max: 2,
            handshakes_per_second_max: 200,
            streams_per_lane_max: 2,
            streams_max: 16,
            stream_window_bytes: ByteSize::mib(2),
        }
    }
}

impl QuicConfig {
    /// The peer opens no streams: a lane's answers come back on the lane's stream.
    pub(crate) fn dialling(&self) -> Arc<TransportConfig> {
        let mut transport = self.transport();
        transport.max_concurrent_bidi_streams(0_u32.into()).receive_window(self.connection_window());
        Arc::new(transport)
    }

    /// A small window until a hello is accepted; then the connection gets [`connection_window`](Self::connection_window).
    pub(crate) fn accepting(&self) -> Arc<TransportConfig> {
        let mut transport = self.transport();
        transport
            .max_concurrent_bidi_streams(self.streams_max.into())
            .receive_window(CALLING_BYTES_MAX.into());
        Arc::new(transport)
    }

    /// The flow-control window of a connection, in bytes.
    pub(crate) fn connection_window(&self) -> VarInt {
        let window = self.stream_window_bytes.as_u64().saturating_mul(self.streams_max.max(1).into());
        VarInt::from_u64(window).unwrap_or(VarInt::MAX)
    }

    fn transport(&self) -> TransportConfig {
        let mut transport = TransportConfig::default();
        transport
            .max_idle_timeout(Some(IdleTimeout::try_from(self.idle_timeout).unwrap_or(VarInt::MAX.into())))
            .keep_alive_interval(Some(self.keepalive_interval.min(KEEPALIVE_MAX)))
            .max_concurrent_uni_streams(0_u32.into())
            .datagram_receive_buffer_size(None)
            .datagram_send_buffer_size(0)
            .stream_receive_window(VarInt::from_u64(self.stream_window_bytes.as_u64()).unwrap_or(VarInt::MAX))
            .send_window(self.connection_window().into_inner())
            .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
            .initial_rtt(INITIAL_RTT);
        transport
    }
}

/// Only QUIC version 1.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut endpoint = EndpointConfig::default();
    endpoint.supported_versions(vec![1]);
    endpoint
}
