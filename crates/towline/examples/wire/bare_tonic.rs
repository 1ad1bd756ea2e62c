//! The floor of gRPC: bare tonic streams the same pieces to a receiver that counts them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_stream::StreamExt as _;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{ClientStreamingService, NamedService};
use tonic::transport::{Endpoint, Server, server::TcpIncoming};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

pub(crate) type Error = Box<dyn std::error::Error>;

pub(crate) const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The windows of our transport, so that the comparison is fair.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;

/// `bytes` in pieces.
pub(crate) fn pieces(piece: &Bytes, bytes: u64) -> impl Iterator<Item = Bytes> + Send + 'static {
    let piece = piece.clone();
    (0..bytes / piece.len() as u64).map(move |_| piece.clone())
}

/// Streams messages of bytes with tonic's own codec.
pub(crate) async fn stream(piece: &Bytes, bytes: u64) -> Result<Duration, Error> {
    let incoming = TcpIncoming::bind(LOOPBACK)?.with_nodelay(Some(true));
    let at = incoming.local_addr()?;
    let server = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(Counter)
        .serve_with_incoming(incoming);
    let server = tokio::spawn(server);
    let channel = Endpoint::from_shared(format!("http://{at}"))?
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .tcp_nodelay(true)
        .connect()
        .await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let began = Instant::now();
    let body = tokio_stream::iter(pieces(piece, bytes));
    let codec = ProstCodec::<Bytes, u64>::default();
    let counted =
        client.client_streaming(Request::new(body), "/bare.Counter/Count".try_into()?, codec).await?;
    let took = began.elapsed();
    server.abort();
    match counted.into_inner() == bytes {
        true => Ok(took),
        false => Err("bare tonic lost bytes".into()),
    }
}

#[derive(Clone)]
struct Counter;

impl NamedService for Counter {
    const NAME: &'static str = "bare.Counter";
}

impl Service<http::Request<tonic::body::Body>> for Counter {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let codec = ProstCodec::<u64, Bytes>::default();
            let mut server = tonic::server::Grpc::new(codec);
            Ok(server.client_streaming(Counter, request).await)
        })
    }
}

impl ClientStreamingService<Bytes> for Counter {
    type Response = u64;
    type Future = BoxFuture<Response<u64>, Status>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        Box::pin(async move {
            let (mut body, mut bytes) = (request.into_inner(), 0);
            while let Some(piece) = body.next().await {
                bytes += piece?.len() as u64;
            }
            Ok(Response::new(bytes))
        })
    }
}
