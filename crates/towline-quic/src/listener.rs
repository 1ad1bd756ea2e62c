//! The listening side: accepts connections within bounds, and closes them.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{Inbound, Listener, Refusal, TransportError};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::{Verdict, accepting, alpn};
use towline_wire::streams::{Listening, Phase, Rate, StreamLimits, resolve};

use crate::codes;
use crate::config::{QuicConfig, SHUTDOWN_GRACE, endpoint_config};
use crate::connection::serve;
use crate::dial::SCHEME;
use crate::runtime::Tracked;

/// From this many handshakes under way, a dialler must prove its address before the listener computes a signature for it.
const UNPROVEN_MAX: usize = 16;
/// Bounds on first packets that wait to be accepted, and on the bytes that follow them.
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES_MAX: u64 = 16 << 10;
const INCOMING_BYTES_TOTAL_MAX: u64 = 1 << 20;

struct Acceptor {
    config: QuicConfig,
    tls: TlsConfig,
    server: ServerConfig,
    listening: Arc<Listening>,
    /// Cloned for each connection and for each handshake under way.
    open: Arc<()>,
    handshakes: Arc<()>,
}

/// The number of clones of a handle, without the original.
fn count(counted: &Arc<()>) -> usize {
    Arc::strong_count(counted).saturating_sub(1)
}

pub(crate) async fn listen(
    config: &QuicConfig,
    tls: &TlsConfig,
    at: &PeerAddr,
    inbound: Arc<dyn Inbound>,
) -> Result<Box<dyn Listener>, TransportError> {
    let sockets = resolve(at, SCHEME).await.map_err(|unusable| unusable.listening(at))?;
    let address = |detail| TransportError::Address { address: at.clone(), detail };
    let bind_error = |source| TransportError::Bind { address: at.clone(), source };
    let (rustls, _) = accepting(tls, &alpn()).map_err(|e| address(e.to_string()))?;
    let crypto = QuicServerConfig::try_from(rustls).map_err(|e| address(e.to_string()))?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(config.accepting())
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_TOTAL_MAX);

    let socket = UdpSocket::bind(sockets.as_slice()).map_err(bind_error)?;
    let (alive, all_gone) = mpsc::channel(1);
    let runtime = Arc::new(Tracked { alive });
    let endpoint =
        Endpoint::new(endpoint_config(), Some(server.clone()), socket, runtime).map_err(bind_error)?;
    let local_addr = endpoint.local_addr().map_err(bind_error)?;
    let limits = StreamLimits {
        handshake_timeout: config.handshake_timeout,
        connections_per_peer_max: config.connections_per_peer_max,
        streams_per_lane_max: config.streams_per_lane_max,
    };
    let listening = Listening::new(inbound, limits);
    let acceptor = Acceptor {
        config: config.clone(),
        tls: tls.clone(),
        server,
        listening: Arc::clone(&listening),
        open: Arc::default(),
        handshakes: Arc::default(),
    };
    tokio::spawn(accept(endpoint, acceptor));
    Ok(Box::new(QuicListener { local_addr, listening, all_gone }))
}

/// Accepts until the listener closes, then waits for its connections and closes the rest.
async fn accept(endpoint: Endpoint, acceptor: Acceptor) {
    let closing = acceptor.listening.reached(Phase::Closing);
    let closed = acceptor.listening.reached(Phase::Closed);
    tokio::pin!(closing);
    let mut connections = JoinSet::new();
    let mut rate = Rate::new(acceptor.config.handshakes_per_second_max);
    loop {
        tokio::select! {
            () = &mut closing => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => match incoming {
                None => break,
                Some(incoming) => {
                    if let Some(connection) = acceptor.accepted(incoming, &mut rate) {
                        connections.spawn(connection);
                    }
                }
            },
        }
    }
    endpoint.set_server_config(None);
    let in_order = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        () = closed => {}
        () = in_order => {}
    }
    endpoint.close(codes::SHUTTING_DOWN, codes::SHUTTING_DOWN_TEXT);
    // Dropping the remaining tasks aborts them; quinn's own tasks still close the connections.
    drop(connections);
    let _ = timeout(SHUTDOWN_GRACE, endpoint.wait_idle()).await;
}

impl Acceptor {
    fn server_config(&self) -> Result<(Arc<ServerConfig>, Verdict), Box<dyn std::error::Error>> {
        let (rustls, verdict) = accepting(&self.tls, &alpn())?;
        let mut server = self.server.clone();
        server.crypto = Arc::new(QuicServerConfig::try_from(rustls)?);
        Ok((Arc::new(server), verdict))
    }

    fn accepted(
        &self,
        incoming: quinn::Incoming,
        rate: &mut Rate,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        if count(&self.handshakes) >= UNPROVEN_MAX && incoming.may_retry() {
            // The dialler may return at once with a token. A forged source address never receives the token.
            let _ = incoming.retry();
            return None;
        }
        if count(&self.open) >= self.config.connections_max || !rate.admit(Instant::now()) {
            incoming.refuse();
            self.listening.refused(&Refusal::TooManyConnections);
            return None;
        }
        let (server, verdict) = match self.server_config() {
            Ok(made) => made,
            Err(error) => {
                tracing::error!(%error, "no connection can be accepted");
                incoming.refuse();
                return None;
            }
        };
        let (counted, handshake) = (Arc::clone(&self.open), Arc::clone(&self.handshakes));
        let (listening, config) = (Arc::clone(&self.listening), self.config.clone());
        let connecting = incoming.accept_with(server);
        Some(async move {
            let _counted = counted;
            let shaken = match connecting {
                Ok(connecting) => timeout(config.handshake_timeout, connecting).await,
                Err(error) => Ok(Err(error)),
            };
            drop(handshake);
            match shaken {
                Ok(Ok(connection)) => serve(&listening, &config, connection, verdict.identity()).await,
                Ok(Err(error)) => {
                    codes::learn(&verdict, &error);
                    let malformed = || Refusal::Malformed { detail: error.to_string() };
                    listening.refused(&verdict.listener_refusal().unwrap_or_else(malformed));
                }
                Err(_) => listening.refused(&Refusal::HandshakeTimeout),
            }
        })
    }
}

struct QuicListener {
    local_addr: SocketAddr,
    listening: Arc<Listening>,
    all_gone: mpsc::Receiver<Infallible>,
}

#[async_trait]
impl Listener for QuicListener {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    async fn shutdown(mut self: Box<Self>) {
        self.listening.enter(Phase::Closing);
        // `None` when quinn's last task has ended and the socket is closed.
        if timeout(SHUTDOWN_GRACE, self.all_gone.recv()).await.is_err() {
            self.listening.enter(Phase::Closed);
            if timeout(SHUTDOWN_GRACE * 2, self.all_gone.recv()).await.is_err() {
                tracing::warn!(address = %self.local_addr, "connections outlived the shutdown of their listener");
            }
        }
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        self.listening.enter(Phase::Closed);
    }
}
