//! The listening side: accepts connections within bounds, and closes them.

use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Endpoint, ServerConfig};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{Inbound, Listener, Refusal, TransportError};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::{Verdict, accepting, alpn};
use towline_wire::{Places, Rate, Seats};

use crate::address::{Unusable, resolve};
use crate::codes;
use crate::config::{QuicConfig, endpoint_config};
use crate::connection::serve;
use crate::runtime::Tracked;

/// Handshakes under way from which on a dialler must show that its address is its own, before it costs a signature.
const UNPROVEN_MAX: usize = 16;
/// First packets that wait to be looked at, and the bytes that may come behind them.
const INCOMING_MAX: usize = 256;
const INCOMING_BYTES_MAX: u64 = 16 << 10;
const INCOMING_BYTES_TOTAL_MAX: u64 = 1 << 20;
/// How long a shutdown waits for lanes to end in order, and again for the last packets.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// What a connection is closed with then.
pub(crate) const SHUTTING_DOWN: &[u8] = b"shutting down";

/// How far a listener is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Lanes end, with a word to the peer.
    Closing,
    /// Connections are closed.
    Closed,
}

/// What the connections of a listener share.
pub(crate) struct Shared {
    pub(crate) config: QuicConfig,
    tls: TlsConfig,
    server: ServerConfig,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) lanes: Arc<Seats<(NodeId, Lane), oneshot::Sender<Infallible>>>,
    pub(crate) peers: Arc<Places<NodeId, oneshot::Sender<Infallible>>>,
    pub(crate) phase: watch::Sender<Phase>,
    connections: AtomicUsize,
    handshakes: AtomicUsize,
}

impl Shared {
    /// The transport refused: the engine is told.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        tracing::debug!(%refusal, "connection refused");
        self.inbound.refused(refusal);
    }

    /// Settings of one connection: the certificates of this moment, and a verdict of its own.
    fn server_config(&self) -> Result<(Arc<ServerConfig>, Verdict), Box<dyn std::error::Error>> {
        let (rustls, verdict) = accepting(&self.tls, &alpn())?;
        let mut server = self.server.clone();
        server.crypto = Arc::new(QuicServerConfig::try_from(rustls)?);
        Ok((Arc::new(server), verdict))
    }
}

pub(crate) async fn listen(
    config: &QuicConfig,
    tls: &TlsConfig,
    at: &PeerAddr,
    inbound: Arc<dyn Inbound>,
) -> Result<Box<dyn Listener>, TransportError> {
    let address = |detail| TransportError::Address { address: at.clone(), detail };
    let bind_error = |source| TransportError::Bind { address: at.clone(), source };
    let sockets = resolve(at).await.map_err(|unusable| match unusable {
        Unusable::Forbidden(detail) => address(detail),
        Unusable::Lookup(source) => bind_error(source),
    })?;
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
    let shared = Arc::new(Shared {
        config: config.clone(),
        tls: tls.clone(),
        server,
        inbound,
        lanes: Seats::new(config.streams_per_lane_max),
        peers: Seats::new(config.connections_per_peer_max),
        phase: watch::Sender::new(Phase::Open),
        connections: AtomicUsize::new(0),
        handshakes: AtomicUsize::new(0),
    });
    tokio::spawn(accept(endpoint, Arc::clone(&shared)));
    Ok(Box::new(QuicListener { local_addr, shared, all_gone }))
}

/// Accepts until the listener closes, then waits for its connections and closes the rest.
async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut phase = shared.phase.subscribe();
    let mut connections = JoinSet::new();
    let mut rate = Rate::new(shared.config.handshakes_per_second_max);
    loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase > Phase::Open) => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            incoming = endpoint.accept() => match incoming {
                None => break,
                Some(incoming) => {
                    if let Some(connection) = accepted(&shared, incoming, &mut rate) {
                        connections.spawn(connection);
                    }
                }
            },
        }
    }
    endpoint.set_server_config(None);
    let in_order = async { while connections.join_next().await.is_some() {} };
    tokio::select! {
        _ = phase.wait_for(|phase| *phase == Phase::Closed) => {}
        () = in_order => {}
    }
    endpoint.close(codes::SHUTTING_DOWN, SHUTTING_DOWN);
    // Dropping what is left of them aborts them; the library's own tasks still say goodbye.
    drop(connections);
    let _ = timeout(SHUTDOWN_GRACE, endpoint.wait_idle()).await;
}

/// Counts one of something while it is there.
struct Count(Arc<Shared>, fn(&Shared) -> &AtomicUsize);

impl Count {
    fn new(shared: &Arc<Shared>, of: fn(&Shared) -> &AtomicUsize) -> Self {
        of(shared).fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(shared), of)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::AcqRel);
    }
}

fn accepted(
    shared: &Arc<Shared>,
    incoming: quinn::Incoming,
    rate: &mut Rate,
) -> Option<impl Future<Output = ()> + Send + 'static> {
    let unproven = shared.handshakes.load(Ordering::Acquire) >= UNPROVEN_MAX;
    if unproven && incoming.may_retry() {
        // It may come again at once, with a token; a forged address never gets it.
        let _ = incoming.retry();
        return None;
    }
    let full = shared.connections.load(Ordering::Acquire) >= shared.config.connections_max;
    if full || !rate.admit(Instant::now()) {
        incoming.refuse();
        shared.refused(&Refusal::TooManyConnections);
        return None;
    }
    let (config, verdict) = match shared.server_config() {
        Ok(made) => made,
        Err(error) => {
            tracing::error!(%error, "no connection can be accepted");
            incoming.refuse();
            return None;
        }
    };
    let counted = Count::new(shared, |shared| &shared.connections);
    let handshake = Count::new(shared, |shared| &shared.handshakes);
    let shared = Arc::clone(shared);
    let connecting = incoming.accept_with(config);
    Some(async move {
        let _counted = counted;
        let shaken = match connecting {
            Ok(connecting) => timeout(shared.config.handshake_timeout, connecting).await,
            Err(error) => Ok(Err(error)),
        };
        drop(handshake);
        match shaken {
            Ok(Ok(connection)) => serve(shared, connection, verdict.identity()).await,
            Ok(Err(error)) => {
                codes::learn(&verdict, &error);
                let malformed = || Refusal::Malformed { detail: error.to_string() };
                shared.refused(&verdict.listener_refusal().unwrap_or_else(malformed));
            }
            Err(_) => shared.refused(&Refusal::HandshakeTimeout),
        }
    })
}

struct QuicListener {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    all_gone: mpsc::Receiver<Infallible>,
}

#[async_trait]
impl Listener for QuicListener {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    async fn shutdown(mut self: Box<Self>) {
        self.shared.phase.send_replace(Phase::Closing);
        // Ends with `None` when the library's last task is gone, and the socket with it.
        if timeout(SHUTDOWN_GRACE, self.all_gone.recv()).await.is_err() {
            self.shared.phase.send_replace(Phase::Closed);
            if timeout(SHUTDOWN_GRACE * 2, self.all_gone.recv()).await.is_err() {
                tracing::warn!(address = %self.local_addr, "connections outlived the shutdown of their listener");
            }
        }
    }
}

impl Drop for QuicListener {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Closed);
    }
}
