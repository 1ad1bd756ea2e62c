//! Peers that say what they like.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use quinn::rustls::pki_types::pem::PemObject as _;
use quinn::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use quinn::rustls::version::TLS13;
use quinn::rustls::{self, DigitallySignedStruct, SignatureScheme};
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use towline_engine::transport::Refusal;
use towline_tls::dev::DevCert;
use towline_tls::rustls_config::SERVER_NAME;
use towline_wire::limits::FRAME_BYTES_MAX;
use towline_wire::{Prefixed, pb, prefixed, welcome_frame};

use super::{AUTHORITY, node, within};

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A dialler that checks nothing and shows `cert`, if any.
pub async fn dial(at: SocketAddr, cert: Option<&DevCert>, alpn: &[u8]) -> Result<Raw, ConnectionError> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match cert {
        None => config.with_no_client_auth(),
        Some(cert) => config.with_client_auth_cert(chain(cert), key(cert)).unwrap(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let connection = within(endpoint.connect_with(client, at, SERVER_NAME).unwrap()).await?;
    Ok(Raw { connection })
}

/// A good dialler of node 1, by hand.
pub async fn good(at: SocketAddr) -> Raw {
    let cert = AUTHORITY.issue(node(1)).unwrap();
    dial(at, Some(&cert), b"towline/1").await.unwrap()
}

#[derive(Debug)]
pub struct Raw {
    pub connection: Connection,
}

pub struct RawLane {
    pub say: SendStream,
    pub hear: RecvStream,
    prefixed: Prefixed,
}

impl Raw {
    pub async fn lane(&self) -> RawLane {
        let (say, hear) = within(self.connection.open_bi()).await.unwrap();
        RawLane { say, hear, prefixed: Prefixed::default() }
    }
}

impl RawLane {
    pub async fn say(&mut self, frame: &pb::Frame) {
        within(self.say.write_chunk(prefixed(frame))).await.unwrap();
    }

    pub async fn hear(&mut self) -> Option<pb::Frame> {
        loop {
            if let Some(frame) = self.prefixed.next_frame(FRAME_BYTES_MAX).unwrap() {
                return Some(frame);
            }
            let piece = within(self.hear.read_chunk(usize::MAX, true)).await.unwrap();
            self.prefixed.push(piece?.bytes);
        }
    }

    pub async fn refused(&mut self) -> Refusal {
        match self.hear().await.unwrap().kind {
            Some(pb::frame::Kind::Refused(refused)) => refused.try_into().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// A listener that shows `cert`, with another application protocol if asked for.
pub fn server(cert: &DevCert, alpn: &[u8]) -> Endpoint {
    // Checks nothing about diallers: they refuse first.
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain(cert), key(cert))
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = QuicServerConfig::try_from(config).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap()
}

/// Lets one dialler and one lane of it in, whoever it is.
pub async fn welcome_one(server: &Endpoint) -> (Connection, RawLane) {
    let connection = within(server.accept()).await.unwrap().await.unwrap();
    let lane = welcome_lane(&connection).await;
    (connection, lane)
}

pub async fn welcome_lane(connection: &Connection) -> RawLane {
    let (say, hear) = within(connection.accept_bi()).await.unwrap();
    let mut lane = RawLane { say, hear, prefixed: Prefixed::default() };
    lane.hear().await.unwrap();
    lane.say(&welcome_frame(&super::welcome())).await;
    lane
}

fn chain(cert: &DevCert) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(cert.cert.as_bytes()).unwrap()]
}

fn key(cert: &DevCert) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_slice(cert.key.as_bytes()).unwrap()
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
        provider().signature_verification_algorithms.supported_schemes()
    }
}
