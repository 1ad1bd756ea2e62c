//! The listening side: accepts connections within bounds, and closes them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::Server;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::message::Lane;
use towline_engine::transport::{Inbound, Listener, Refusal, TransportError};
use towline_tls::TlsConfig;
use towline_wire::limits::FRAME_BYTES_MAX;
use towline_wire::{Places, Rate, Seats};

use crate::address::{Security, Unusable};
use crate::config::GrpcConfig;
use crate::connection::Watched;
use crate::lane::Lanes;
use crate::secured::Accepted;
use crate::service::transport_server::TransportServer;

/// Connections above `connections_max` that are let in to be told so; further ones are closed without a word.
const SURPLUS_MAX: usize = 16;
/// Requests a connection may have open. A dialler needs one.
const STREAMS_PER_CONNECTION_MAX: u32 = 4;
/// Bytes of an HTTP/2 frame that a dialler may send. The library's default, 16 KiB, is a call and a wakeup too often for
/// snapshots; a connection carries one stream, so that nobody waits behind a long frame.
const HTTP2_FRAME_BYTES: u32 = 128 << 10;
/// Bytes of the headers of a request.
const HEADERS_BYTES_MAX: u32 = 8 << 10;
/// Pause after the system refused to accept, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a shutdown waits for streams to end in order, and again for what it then cuts.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// How far a listener is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Open,
    /// Streams end, with a word to the peer.
    Closing,
    /// Connections are cut.
    Closed,
}

/// What the connections of a listener share.
pub(crate) struct Shared {
    pub(crate) config: GrpcConfig,
    pub(crate) inbound: Arc<dyn Inbound>,
    pub(crate) lanes: Arc<Seats<(NodeId, Lane), oneshot::Sender<Infallible>>>,
    pub(crate) peers: Arc<Places<NodeId, watch::Sender<()>>>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) connections: AtomicUsize,
}

pub(crate) async fn listen(
    config: &GrpcConfig,
    security: &Security,
    at: &PeerAddr,
    inbound: Arc<dyn Inbound>,
) -> Result<Box<dyn Listener>, TransportError> {
    let bind_error = |source| TransportError::Bind { address: at.clone(), source };
    let sockets = security.resolve(at).await.map_err(|unusable| match unusable {
        Unusable::Forbidden(detail) => TransportError::Address { address: at.clone(), detail },
        Unusable::Lookup(source) => bind_error(source),
    })?;
    let socket = TcpListener::bind(sockets.as_slice()).await.map_err(bind_error)?;
    let local_addr = socket.local_addr().map_err(bind_error)?;

    let shared = Arc::new(Shared {
        config: config.clone(),
        inbound,
        lanes: Seats::new(config.streams_per_lane_max),
        peers: Seats::new(config.connections_per_peer_max),
        phase: watch::Sender::new(Phase::Open),
        connections: AtomicUsize::new(0),
    });
    let (alive, all_gone) = mpsc::channel(1);
    let rate = Rate::new(config.connections_per_second_max);
    let tls = security.tls.clone();
    let incoming = Incoming { socket, tls, rate, shared: Arc::clone(&shared), alive, pause: None };
    let server = tokio::spawn(serve(incoming, Arc::clone(&shared)));
    Ok(Box::new(GrpcListener { local_addr, shared, server, all_gone }))
}

async fn serve(incoming: Incoming, shared: Arc<Shared>) {
    let config = &shared.config;
    let service = TransportServer::new(Lanes::new(Arc::clone(&shared)))
        .max_decoding_message_size(FRAME_BYTES_MAX)
        .max_encoding_message_size(FRAME_BYTES_MAX);
    let mut phase = shared.phase.subscribe();
    let closing = async move {
        let _ = phase.wait_for(|phase| *phase >= Phase::Closing).await;
    };
    let served = Server::builder()
        .initial_stream_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout))
        .http2_adaptive_window(Some(false))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, closing)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the listener failed");
    }
}

struct GrpcListener {
    local_addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
    all_gone: mpsc::Receiver<Infallible>,
}

#[async_trait]
impl Listener for GrpcListener {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    async fn shutdown(mut self: Box<Self>) {
        self.shared.phase.send_replace(Phase::Closing);
        let _ = timeout(SHUTDOWN_GRACE, &mut self.server).await;
        self.shared.phase.send_replace(Phase::Closed);
        self.server.abort();
        // Ends with `None` when the last connection and the last stream are gone.
        if timeout(SHUTDOWN_GRACE, self.all_gone.recv()).await.is_err() {
            tracing::warn!(address = %self.local_addr, "connections outlived the shutdown of their listener");
        }
    }
}

impl Drop for GrpcListener {
    fn drop(&mut self) {
        self.shared.phase.send_replace(Phase::Closed);
        self.server.abort();
    }
}

/// Accepted connections, within the bound.
struct Incoming {
    socket: TcpListener,
    tls: Option<TlsConfig>,
    rate: Rate,
    shared: Arc<Shared>,
    alive: mpsc::Sender<Infallible>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = Result<Accepted, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.socket.poll_accept(cx)) {
                Ok((socket, _)) => {
                    if let Some(accepted) = self.accepted(socket) {
                        return Poll::Ready(Some(Ok(accepted)));
                    }
                }
                // The peer was gone before we looked.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(sleep(ACCEPT_RETRY)));
                }
            }
        }
    }
}

impl Incoming {
    fn accepted(&mut self, socket: tokio::net::TcpStream) -> Option<Accepted> {
        let max = self.shared.config.connections_max;
        let open = self.shared.connections.fetch_add(1, Ordering::AcqRel);
        if open >= max.saturating_add(SURPLUS_MAX) || !self.rate.admit(Instant::now()) {
            self.shared.connections.fetch_sub(1, Ordering::AcqRel);
            self.shared.inbound.refused(&Refusal::TooManyConnections);
            return None;
        }
        // Without it the peer only waits longer; the connection works.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let watched = Watched::new(socket, open >= max, Arc::clone(&self.shared), self.alive.clone());
        Accepted::new(watched, self.tls.as_ref())
            .inspect_err(|error| tracing::error!(%error, "no connection can be accepted"))
            .ok()
    }
}
