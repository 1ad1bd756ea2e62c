//! Mutual TLS: who comes in, and each refusal by type on both sides.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{self, DigitallySignedStruct, SignatureScheme};
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::{
    CertRefusal, ConnectError, Connected, LinkClosed, Listener, Refusal, Transport,
};
use towline_grpc::{GrpcConfig, GrpcTransport};
use towline_tls::dev::{DevAuthority, DevCert};
use towline_tls::{TlsConfig, node_uri};

static AUTHORITY: LazyLock<DevAuthority> = LazyLock::new(|| DevAuthority::new().unwrap());

const DAY: Duration = Duration::from_secs(24 * 3600);

fn identity(trusts: &DevAuthority, cert: &DevCert) -> TlsConfig {
    TlsConfig::from_pem(trusts.ca_pem().as_bytes(), cert.cert.as_bytes(), cert.key.as_bytes()).unwrap()
}

fn of_node(id: u64) -> TlsConfig {
    identity(&AUTHORITY, &AUTHORITY.issue(node(id)).unwrap())
}

fn expired(id: u64) -> TlsConfig {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let cert = AUTHORITY.issue_for(&[node_uri(node(id))], now - DAY * 2..=now - DAY).unwrap();
    identity(&AUTHORITY, &cert)
}

async fn listen_as(tls: TlsConfig, inbound: Arc<Fake>) -> Box<dyn Listener> {
    let at = PeerAddr::new("grpc://127.0.0.1:0").unwrap();
    GrpcTransport::with_tls(GrpcConfig::default(), tls).listen(&at, inbound).await.unwrap()
}

async fn connect_as(tls: TlsConfig, at: SocketAddr) -> (Result<Connected, ConnectError>, Ear) {
    let (ear, feedback) = Ear::new();
    let transport = GrpcTransport::with_tls(GrpcConfig::default(), tls);
    (within(transport.connect(&peer(at), Lane::Append, &hello(), feedback)).await, ear)
}

#[tokio::test]
async fn a_lane_works_and_the_engine_learns_whose_certificate_it_is() {
    let (fake, mut seen) = accepting();
    let listener = listen_as(of_node(2), fake.clone()).await;
    let (connected, _ear) = connect_as(of_node(7), listener.local_addr()).await;
    let mut link = connected.unwrap().link;
    for index in 0..20 {
        within(link.dispatch(batch(index, index as usize * 10_000))).await.unwrap();
    }
    for index in 0..20 {
        let arrived = within(seen.delivered.recv()).await.unwrap();
        assert_eq!(arrived, (Lane::Append, batch(index, index as usize * 10_000)));
    }
    // Whatever the hello says.
    assert_eq!(fake.certs.lock().unwrap()[0].as_ref().unwrap().node, node(7));
}

/// Node 1 with one identity calls node 2 with another: what the dialler and the listener each learn.
async fn call(dialler: TlsConfig, listener: TlsConfig) -> (ConnectError, Refusal) {
    let (fake, mut seen) = accepting();
    let listening = listen_as(listener, fake).await;
    let (connected, ear) = connect_as(dialler, listening.local_addr()).await;
    let refusal = within(seen.refused.recv()).await.unwrap();
    assert_eq!(ear.closed().await, LinkClosed::Abandoned);
    assert!(seen.delivered.try_recv().is_err());
    within(listening.shutdown()).await;
    assert!(seen.refused.try_recv().is_err(), "counted twice");
    (connected.unwrap_err(), refusal)
}

/// The listener refuses the dialler's certificate.
async fn dialler_refused(dialler: TlsConfig) -> CertRefusal {
    match call(dialler, of_node(2)).await {
        (ConnectError::Refused(Refusal::Certificate(theirs)), Refusal::Certificate(ours)) => {
            assert_eq!(theirs, ours);
            ours
        }
        other => panic!("{other:?}"),
    }
}

/// The dialler refuses the listener's certificate.
async fn listener_refused(listener: TlsConfig) -> CertRefusal {
    match call(of_node(1), listener).await {
        (ConnectError::Certificate { refusal: ours, .. }, Refusal::OwnCertificate(theirs)) => {
            assert_eq!(theirs, ours);
            ours
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_unknown_authority_is_refused_by_type_on_both_sides() {
    let foreign = DevAuthority::new().unwrap();
    let of_foreign = |id| identity(&AUTHORITY, &foreign.issue(node(id)).unwrap());
    assert_eq!(dialler_refused(of_foreign(1)).await, CertRefusal::UnknownAuthority);
    assert_eq!(listener_refused(of_foreign(2)).await, CertRefusal::UnknownAuthority);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_type_on_both_sides() {
    assert_eq!(dialler_refused(expired(1)).await, CertRefusal::Expired);
    assert_eq!(listener_refused(expired(2)).await, CertRefusal::Expired);
}

#[tokio::test]
async fn another_node_than_called_is_the_wrong_peer_and_hears_of_it() {
    let (error, refusal) = call(of_node(1), of_node(3)).await;
    assert!(matches!(error, ConnectError::WrongPeer { .. }), "{error}");
    assert_eq!(refusal, Refusal::OwnCertificate(CertRefusal::OtherNode { node: 3 }));
}

#[tokio::test]
async fn a_dialler_without_a_certificate_is_refused_by_type_and_told() {
    let (fake, mut seen) = accepting();
    let listener = listen_as(of_node(2), fake).await;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(listener.local_addr()).await.unwrap();
    let name = ServerName::try_from("node.invalid").unwrap();
    let mut stream = within(TlsConnector::from(Arc::new(config)).connect(name, socket)).await.unwrap();
    let alert = within(stream.read_u8()).await.unwrap_err();
    assert!(alert.to_string().contains("CertificateRequired"), "{alert}");
    drop(stream);
    let missing = Refusal::Certificate(CertRefusal::Missing);
    assert_eq!(within(seen.refused.recv()).await, Some(missing));
}

#[tokio::test]
async fn plain_text_and_tls_do_not_mix() {
    let (fake, mut seen) = accepting();
    let secure = listen_as(of_node(2), fake.clone()).await;
    let (plain_dialler, _) = connect(GrpcConfig::default(), secure.local_addr(), Lane::Control).await;
    plain_dialler.unwrap_err();
    assert!(matches!(within(seen.refused.recv()).await, Some(Refusal::Malformed { .. })));

    let plain = listen(GrpcConfig::default(), fake).await;
    let (secure_dialler, _) = connect_as(of_node(1), plain.local_addr()).await;
    secure_dialler.unwrap_err();
    assert!(matches!(within(seen.refused.recv()).await, Some(Refusal::Malformed { .. })));
    assert!(seen.delivered.try_recv().is_err());
}

#[tokio::test]
async fn a_tls_handshake_that_does_not_go_on_is_cut() {
    let (fake, mut seen) = accepting();
    let at = PeerAddr::new("grpc://127.0.0.1:0").unwrap();
    let quick = GrpcConfig { handshake_timeout: Duration::from_millis(100), ..GrpcConfig::default() };
    let listener = GrpcTransport::with_tls(quick, of_node(2)).listen(&at, fake).await.unwrap();
    let mut socket = TcpStream::connect(listener.local_addr()).await.unwrap();
    // The head of a TLS record of 512 bytes.
    socket.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let mut rest = Vec::new();
    let _ = within(socket.read_to_end(&mut rest)).await;
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::HandshakeTimeout));
}

#[tokio::test]
async fn tls_may_leave_loopback() {
    let (fake, _seen) = accepting();
    let at = PeerAddr::new("grpc://0.0.0.0:0").unwrap();
    let transport = GrpcTransport::with_tls(GrpcConfig::default(), of_node(2));
    within(transport.listen(&at, fake)).await.unwrap();
}

#[tokio::test]
async fn connections_beyond_the_rate_are_cut_and_counted() {
    let (fake, mut seen) = accepting();
    let config = GrpcConfig { connections_per_second_max: 1, ..GrpcConfig::default() };
    let listener = listen(config.clone(), fake).await;
    let (_first, _) = link(config.clone(), listener.local_addr(), Lane::Control).await;
    let (second, _) = connect(config, listener.local_addr(), Lane::Control).await;
    second.unwrap_err();
    assert_eq!(within(seen.refused.recv()).await, Some(Refusal::TooManyConnections));
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
