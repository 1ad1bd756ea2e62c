//! Peers that say what they like.

use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes};
use hyper_util::rt::TokioIo;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Uri;
use towline_engine::transport::Refusal;
use towline_testkit::cluster::within;
use towline_tls::dev::DevCert;
use towline_tls::rustls_config::SERVER_NAME;
use towline_wire::limits::FRAME_BYTES_MAX;
use towline_wire::{Prefixed, decode_frame, pb};

/// The first thing a dialler says once its connection is there.
#[derive(Debug, Clone)]
pub enum First {
    /// A stream begins with these bytes as its first frame.
    Frame(Bytes),
    /// A stream begins with a frame larger than any may be.
    Oversized,
    /// A stream begins, and no frame comes.
    Nothing,
    /// No stream begins.
    Silence,
}

/// What comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Refused(Refusal),
    /// An alert of TLS, by its number.
    Alert(u8),
    /// The stream or the connection ended with these words.
    Ended(String),
    Welcome,
}

/// TLS that checks nothing and shows `cert`, if any.
pub fn client(cert: Option<&DevCert>, alpn: &[u8]) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match cert {
        None => config.with_no_client_auth(),
        Some(cert) => {
            let chain = vec![CertificateDer::from_pem_slice(cert.cert.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(cert.key.as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Errors of TLS are its alerts from here on.
const CRYPTO_ERRORS: u64 = 0x100;

pub async fn quic(at: SocketAddr, tls: ClientConfig, first: First) -> Heard {
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = match within(endpoint.connect_with(client, at, SERVER_NAME).unwrap()).await {
        Ok(connection) => connection,
        Err(error) => return quic_end(&error),
    };
    let said = match first {
        First::Silence => return quic_end(&within(connection.closed()).await),
        First::Frame(frame) => [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat(),
        First::Oversized => (u32::try_from(FRAME_BYTES_MAX).unwrap() + 1).to_be_bytes().to_vec(),
        // The peer learns of a stream from its first byte.
        First::Nothing => vec![0],
    };
    let talk = async {
        let (mut say, mut hear) = connection.open_bi().await?;
        let _ = say.write_all(&said).await;
        let mut prefixed = Prefixed::default();
        loop {
            if let Some(frame) = prefixed.next_frame(FRAME_BYTES_MAX).unwrap() {
                return Ok(Some(frame));
            }
            match hear.read_chunk(usize::MAX, true).await {
                Ok(Some(piece)) => prefixed.push(piece.bytes),
                Ok(None) => return Ok(None),
                Err(quinn::ReadError::ConnectionLost(error)) => return Err(error),
                Err(_) => return Ok(None),
            }
        }
    };
    match within(talk).await {
        Ok(Some(frame)) => heard(frame),
        Ok(None) => Heard::Ended("the stream".into()),
        Err(error) => quic_end(&error),
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

pub async fn grpc(at: SocketAddr, tls: ClientConfig, first: First) -> Heard {
    let certain = tls.client_auth_cert_resolver.has_certs();
    let socket = within(TcpStream::connect(at)).await.unwrap();
    let connector = TlsConnector::from(Arc::new(tls));
    let mut stream = match within(connector.connect(SERVER_NAME.try_into().unwrap(), socket)).await {
        Ok(stream) => stream,
        Err(error) => return tls_end(&error),
    };
    // With TLS 1.3 a dialler believes that it is through before it hears.
    if !certain || matches!(first, First::Silence) {
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
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{at}")).unwrap();
    let channel = within(channel.connect_with_connector(One(Some(TokioIo::new(stream))))).await;
    let Ok(channel) = channel else { return Heard::Ended("the connection".into()) };
    let mut client = tonic::client::Grpc::new(channel);
    if within(client.ready()).await.is_err() {
        return Heard::Ended("the connection".into());
    }
    let (say, said) = tokio::sync::mpsc::channel(1);
    match first {
        First::Frame(frame) => say.send(frame).await.unwrap(),
        First::Oversized => say.send(vec![0; FRAME_BYTES_MAX + 1].into()).await.unwrap(),
        First::Nothing | First::Silence => {}
    }
    let path = "/towline.v1.Transport/Lane".parse().unwrap();
    let request = tonic::Request::new(tokio_stream::wrappers::ReceiverStream::new(said));
    let talk = async {
        let mut hear = client.streaming(request, path, Plain).await?.into_inner();
        hear.message().await
    };
    let answer = within(talk).await;
    drop(say);
    match answer {
        Ok(Some(bytes)) => heard(decode_frame(bytes).unwrap()),
        Ok(None) => Heard::Ended("the stream".into()),
        Err(status) => Heard::Ended(status.to_string()),
    }
}

fn tls_end(error: &io::Error) -> Heard {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::AlertReceived(alert)) => Heard::Alert(u8::from(*alert)),
        _ => Heard::Ended(error.to_string()),
    }
}

/// Messages as they are.
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

/// A connection that is there already, for a library that wants to make it.
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

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let provider = rustls::crypto::ring::default_provider();
        provider.signature_verification_algorithms.supported_schemes()
    }
}
