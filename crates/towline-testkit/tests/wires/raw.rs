//! Peers without the checks of a transport: they send any bytes and trust any certificate.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

pub(crate) use super::raw_client::{chain_and_key, client};
use bytes::{Buf as _, BufMut as _, Bytes};
use hyper_util::rt::TokioIo;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Uri;
use towline_engine::transport::{Refusal, Welcome};
use towline_testkit::cluster::within;
use towline_tls::dev::DevCert;
use towline_tls::rustls_config::SERVER_NAME;
use towline_wire::limits::FRAME_BYTES_MAX;
use towline_wire::{Prefixed, decode_frame, pb, prefixed, welcome_frame};

/// What a raw dialler sends first once it is connected.
#[derive(Debug, Clone)]
pub enum First {
    /// A stream with these bytes as its first frame.
    Frame(Bytes),
    /// A stream with a frame above the limit.
    Oversized,
    /// A stream without a frame.
    Nothing,
    /// No stream.
    Silence,
}

/// The answer to a raw dialler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Refused(Refusal),
    /// A TLS alert, by its number.
    Alert(u8),
    /// The stream or the connection ended with this text.
    Ended(String),
    Welcome,
}

/// QUIC error codes of TLS alerts start here.
const CRYPTO_ERRORS: u64 = 0x100;

pub async fn quic_connect(at: SocketAddr, tls: ClientConfig) -> Result<Connection, ConnectionError> {
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    within(endpoint.connect_with(client, at, SERVER_NAME).unwrap()).await
}

pub async fn quic(at: SocketAddr, tls: ClientConfig, first: First) -> Heard {
    let connection = match quic_connect(at, tls).await {
        Ok(connection) => connection,
        Err(error) => return quic_end(&error),
    };
    let said = match first {
        First::Silence => return quic_end(&within(connection.closed()).await),
        First::Frame(frame) => [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat(),
        First::Oversized => OVERSIZED.to_vec(),
        // The peer learns of a stream from its first byte.
        First::Nothing => vec![0],
    };
    let talk = async {
        let (mut say, mut hear) = connection.open_bi().await?;
        let _ = say.write_all(&said).await;
        quic_frame(&mut hear, &mut Prefixed::default()).await
    };
    match within(talk).await {
        Ok(Some(frame)) => heard(frame),
        Ok(None) => Heard::Ended("the stream".into()),
        Err(error) => quic_end(&error),
    }
}

/// The length prefix of a frame one byte above the limit.
const OVERSIZED: [u8; 4] = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();

/// The next frame of a stream, or `None` if the stream ended.
async fn quic_frame(
    hear: &mut RecvStream,
    prefixed: &mut Prefixed,
) -> Result<Option<pb::Frame>, ConnectionError> {
    loop {
        if let Some(frame) = prefixed.next_frame(FRAME_BYTES_MAX).unwrap() {
            return Ok(Some(frame));
        }
        match hear.read_chunk(usize::MAX, true).await {
            Ok(Some(piece)) => prefixed.push(piece.bytes),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(error),
            Ok(None) | Err(_) => return Ok(None),
        }
    }
}

fn quic_end(error: &ConnectionError) -> Heard {
    if let ConnectionError::ConnectionClosed(close) = error
        && let Some(Ok(alert)) = u64::from(close.error_code).checked_sub(CRYPTO_ERRORS).map(u8::try_from)
    {
        return Heard::Alert(alert);
    }
    Heard::Ended(error.to_string())
}

fn heard(frame: pb::Frame) -> Heard {
    match frame.kind {
        Some(pb::frame::Kind::Refused(refused)) => Heard::Refused(refused.try_into().unwrap()),
        Some(pb::frame::Kind::Welcome(_)) => Heard::Welcome,
        other => panic!("{other:?}"),
    }
}

pub async fn grpc_connect(at: SocketAddr, tls: ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let socket = within(TcpStream::connect(at)).await.unwrap();
    within(TlsConnector::from(Arc::new(tls)).connect(SERVER_NAME.try_into().unwrap(), socket)).await
}

pub async fn grpc(at: SocketAddr, tls: ClientConfig, first: First) -> Heard {
    let has_cert = tls.client_auth_cert_resolver.has_certs();
    let mut stream = match grpc_connect(at, tls).await {
        Ok(stream) => stream,
        Err(error) => return tls_end(&error),
    };
    // In TLS 1.3 the dialler's handshake ends before the listener has checked its certificate.
    if !has_cert || matches!(first, First::Silence) {
        let mut bytes = [0; 256];
        loop {
            match within(stream.read(&mut bytes)).await {
                // The settings of HTTP/2.
                Ok(read) if read > 0 => {}
                Ok(_) => return Heard::Ended("the connection".into()),
                Err(error) => return tls_end(&error),
            }
        }
    }
    let talk = async {
        let RawLane::Grpc { say, mut hear } = grpc_lane(at, stream).await? else { unreachable!() };
        match first {
            First::Frame(frame) => say.send(frame).await.unwrap(),
            First::Oversized => say.send(vec![0; FRAME_BYTES_MAX + 1].into()).await.unwrap(),
            First::Nothing | First::Silence => {}
        }
        hear.message().await
    };
    match within(talk).await {
        Ok(Some(bytes)) => heard(decode_frame(bytes).unwrap()),
        Ok(None) => Heard::Ended("the stream".into()),
        Err(status) => Heard::Ended(status.to_string()),
    }
}

pub async fn grpc_lane(at: SocketAddr, stream: TlsStream<TcpStream>) -> Result<RawLane, Status> {
    let ended = |_| Status::unavailable("the connection ended");
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{at}")).unwrap();
    let channel = endpoint.connect_with_connector(One(Some(TokioIo::new(stream)))).await.map_err(ended)?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(ended)?;
    let (say, said) = mpsc::channel(8);
    let path = "/towline.v1.Transport/Lane".parse().unwrap();
    let request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(said));
    let hear = client.streaming(request, path, Plain).await?.into_inner();
    Ok(RawLane::Grpc { say, hear })
}

pub async fn quic_lane(connection: &Connection) -> RawLane {
    let (say, hear) = within(connection.open_bi()).await.unwrap();
    RawLane::Quic { say, hear, prefixed: Prefixed::default() }
}

/// One raw lane, by frames.
pub enum RawLane {
    Grpc { say: mpsc::Sender<Bytes>, hear: tonic::Streaming<Bytes> },
    Quic { say: SendStream, hear: RecvStream, prefixed: Prefixed },
}

impl RawLane {
    pub async fn say(&mut self, frame: &pb::Frame) {
        let bytes = prefixed(frame);
        match self {
            Self::Grpc { say, .. } => say.send(bytes.slice(OVERSIZED.len()..)).await.unwrap(),
            Self::Quic { say, .. } => within(say.write_chunk(bytes)).await.unwrap(),
        }
    }

    /// Sends a frame above the limit; over QUIC only its length.
    pub async fn say_oversized(&mut self) {
        match self {
            Self::Grpc { say, .. } => say.send(vec![0; FRAME_BYTES_MAX + 1].into()).await.unwrap(),
            Self::Quic { say, .. } => within(say.write_all(&OVERSIZED)).await.unwrap(),
        }
    }

    /// The next frame, or `None` once the lane has ended in order.
    pub async fn hear(&mut self) -> Option<pb::Frame> {
        match self {
            Self::Grpc { hear, .. } => {
                within(hear.message()).await.unwrap().map(|bytes| decode_frame(bytes).unwrap())
            }
            Self::Quic { hear, prefixed, .. } => within(quic_frame(hear, prefixed)).await.unwrap(),
        }
    }

    pub async fn refused(&mut self) -> Refusal {
        match heard(self.hear().await.unwrap()) {
            Heard::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }
}

/// A QUIC endpoint that shows `cert` and accepts any dialler.
pub fn quic_server(cert: &DevCert, alpn: &[u8]) -> Endpoint {
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let (chain, key) = chain_and_key(cert);
    let mut config = config
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Accepts one lane of a dialler and welcomes it.
pub async fn quic_welcome(connection: &Connection, welcome: &Welcome) -> (SendStream, RecvStream) {
    let (mut say, mut hear) = within(connection.accept_bi()).await.unwrap();
    within(quic_frame(&mut hear, &mut Prefixed::default())).await.unwrap().unwrap();
    within(say.write_chunk(prefixed(&welcome_frame(welcome)))).await.unwrap();
    (say, hear)
}

fn tls_end(error: &io::Error) -> Heard {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => Heard::Alert(u8::from(*alert)),
        _ => Heard::Ended(error.to_string()),
    }
}

/// A codec that leaves messages as they are.
#[derive(Debug, Clone, Copy)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(bytes);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// A connector that returns one existing connection.
struct One(Option<TokioIo<TlsStream<TcpStream>>>);

impl tower_service::Service<Uri> for One {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
