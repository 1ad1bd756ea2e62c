//! The listening side: accepts connections within bounds, and closes them.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Sleep, sleep, timeout};
use tokio_stream::Stream;
use tonic::transport::Server;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{Inbound, Listener, Refusal, TransportError};
use towline_tls::TlsConfig;
use towline_wire::streams::{Caller, Listening, Phase, Rate, StreamLimits};

use crate::address::Security;
use crate::alive::{ANSWER_WAIT, Alive};
use crate::config::{GrpcConfig, window};
use crate::connection::Watch;
use crate::secured::Accepted;
use crate::stream::Streams;

/// Connections above `connections_max` that are let in to be told so; further ones are closed without a word.
const SURPLUS_MAX: usize = 16;
/// Requests a connection may have open. A dialler needs one.
const STREAMS_PER_CONNECTION_MAX: u32 = 4;
/// Bytes of an HTTP/2 frame that a dialler may send: a snapshot's chunk. The library's default, 16 KiB, is a call and a
/// wakeup too often for snapshots; a connection carries one stream, so that nobody waits behind a long frame.
const HTTP2_FRAME_BYTES: u32 = 512 << 10;
/// Bytes of the headers of a request.
const HEADERS_BYTES_MAX: u32 = 8 << 10;
/// Pause after the system refused to accept, for instance for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);
/// How long a shutdown waits for streams to end in order, and again for what it then cuts.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

pub(crate) async fn listen(
    config: &GrpcConfig,
    security: &Security,
    at: &PeerAddr,
    inbound: Arc<dyn Inbound>,
) -> Result<Box<dyn Listener>, TransportError> {
    let sockets = security.resolve(at).await.map_err(|unusable| unusable.listening(at))?;
    let bind_error = |source| TransportError::Bind { address: at.clone(), source };
    let socket = TcpListener::bind(sockets.as_slice()).await.map_err(bind_error)?;
    let local_addr = socket.local_addr().map_err(bind_error)?;
    let listening = Listening::new(
        inbound,
        StreamLimits {
            handshake_timeout: config.handshake_timeout,
            connections_per_peer_max: config.connections_per_peer_max,
            streams_per_lane_max: config.streams_per_lane_max,
        },
    );
    let incoming = Incoming {
        socket,
        tls: security.tls.clone(),
        config: config.clone(),
        open: Arc::default(),
        rate: Rate::new(config.connections_per_second_max),
        listening: Arc::clone(&listening),
        pause: None,
    };
    let server = tokio::spawn(serve(incoming, config.clone(), listening.reached(Phase::Closing)));
    Ok(Box::new(GrpcListener { local_addr, listening, server }))
}

async fn serve(incoming: Incoming, config: GrpcConfig, closing: impl Future<Output = ()>) {
    let served = Server::builder()
        .initial_stream_window_size(window(config.stream_window_bytes))
        .initial_connection_window_size(window(config.connection_window_bytes))
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(ANSWER_WAIT))
        .http2_adaptive_window(Some(false))
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .add_service(Streams { beat: config.keepalive_interval })
        .serve_with_incoming_shutdown(incoming, closing)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the listener failed");
    }
}

struct GrpcListener {
    local_addr: SocketAddr,
    listening: Arc<Listening>,
    server: JoinHandle<()>,
}

#[async_trait]
impl Listener for GrpcListener {
    fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    async fn shutdown(mut self: Box<Self>) {
        self.listening.enter(Phase::Closing);
        let _ = timeout(SHUTDOWN_GRACE, &mut self.server).await;
        self.listening.enter(Phase::Closed);
        self.server.abort();
        if timeout(SHUTDOWN_GRACE, self.listening.deserted()).await.is_err() {
            tracing::warn!(address = %self.local_addr, "connections outlived the shutdown of their listener");
        }
    }
}

impl Drop for GrpcListener {
    fn drop(&mut self) {
        self.listening.enter(Phase::Closed);
        self.server.abort();
    }
}

/// Accepted connections, within the bound.
struct Incoming {
    socket: TcpListener,
    tls: Option<TlsConfig>,
    config: GrpcConfig,
    /// One more for each connection.
    open: Arc<()>,
    rate: Rate,
    listening: Arc<Listening>,
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
        let counted = Arc::clone(&self.open);
        let surplus = (Arc::strong_count(&self.open) - 2).checked_sub(self.config.connections_max);
        if surplus.is_some_and(|surplus| surplus >= SURPLUS_MAX) || !self.rate.admit(Instant::now()) {
            self.listening.refused(&Refusal::TooManyConnections);
            return None;
        }
        // Without it the peer only waits longer; the connection works.
        if let Err(error) = socket.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let caller = Caller::new(&self.listening, surplus.is_some());
        let watch = Watch::new(&caller, &self.listening, counted);
        Accepted::new(Alive::new(socket, Some(watch), &self.config), caller, self.tls.as_ref())
            .inspect_err(|error| tracing::error!(%error, "no connection can be accepted"))
            .ok()
    }
}
