//! The type of each refusal on both sides of a real handshake; reload; development certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

mod common;
#[path = "common/raw_client.rs"]
mod raw_client;

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::{ClientConfig, ClientConnection, ServerConfig, ServerConnection};
use towline_engine::ids::NodeId;
use towline_engine::transport::{CertRefusal, ConnectError, PROTOCOL_VERSION, Refusal};
use towline_tls::dev::{DevAuthority, DevCert, Written, write};
use towline_tls::rustls_config::{SERVER_NAME, Verdict, accepting, alpn, dialling};
use towline_tls::{TlsConfig, TlsError, TlsFiles, node_uri};

use raw_client::client;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn identity(trusts: &DevAuthority, cert: &DevCert) -> TlsConfig {
    TlsConfig::from_pem(trusts.ca_pem().as_bytes(), cert.cert.as_bytes(), cert.key.as_bytes()).unwrap()
}

fn of_node(ca: &DevAuthority, id: u64) -> TlsConfig {
    identity(ca, &ca.issue(node(id)).unwrap())
}

/// Both sides of a handshake in memory: the errors each ended with, if any.
fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> [Option<rustls::Error>; 2] {
    let mut client = ClientConnection::new(client, SERVER_NAME.try_into().unwrap()).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let errors = common::shake(&mut client, &mut server);
    assert!(errors != [None, None] || !client.is_handshaking() && !server.is_handshaking());
    errors
}

/// Node 1 dials node 2. Returns the verdicts of dialler and listener.
fn call(dialler: &TlsConfig, listener: &TlsConfig) -> (Verdict, Verdict) {
    let (client, dialled) = dialling(dialler, node(2), &alpn()).unwrap();
    let (server, accepted) = accepting(listener, &alpn()).unwrap();
    let [client, server] = shake(client, server);
    if let Some(error) = client {
        dialled.learn(&error);
    }
    if let Some(error) = server {
        accepted.learn(&io::Error::other(error));
    }
    (dialled, accepted)
}

fn dialler_error(verdict: &Verdict) -> ConnectError {
    verdict.dialler_error(&"quic://127.0.0.1:1".parse().unwrap(), node(2)).expect("a refusal")
}

#[test]
fn members_of_one_authority_identify_each_other() {
    let ca = DevAuthority::new().unwrap();
    let (dialled, accepted) = call(&of_node(&ca, 1), &of_node(&ca, 2));
    assert_eq!(accepted.identity().unwrap().node, node(1));
    assert_eq!(dialled.identity().unwrap().node, node(2));
    assert!(accepted.listener_refusal().is_none());
    assert!(dialled.dialler_error(&"quic://127.0.0.1:1".parse().unwrap(), node(2)).is_none());
}

/// The listener refuses the dialler's certificate. `here` is its own refusal, `there` the dialler's.
fn dialler_is_refused(cert: &DevCert, ca: &DevAuthority, here: CertRefusal, there: CertRefusal) {
    let (dialled, accepted) = call(&identity(ca, cert), &of_node(ca, 2));
    assert_eq!(accepted.listener_refusal(), Some(Refusal::Certificate(here)));
    match dialler_error(&dialled) {
        ConnectError::Refused(Refusal::Certificate(refusal)) => assert_eq!(refusal, there),
        other => panic!("{other:?}"),
    }
}

/// The dialler refuses the listener's certificate. `here` is its own refusal, `there` the listener's.
fn listener_is_refused(cert: &DevCert, ca: &DevAuthority, here: CertRefusal, there: CertRefusal) {
    let (dialled, accepted) = call(&of_node(ca, 1), &identity(ca, cert));
    match dialler_error(&dialled) {
        ConnectError::Certificate { refusal, .. } => assert_eq!(refusal, here),
        other => panic!("{other:?}"),
    }
    assert_eq!(accepted.listener_refusal(), Some(Refusal::OwnCertificate(there)));
}

#[test]
fn both_sides_report_an_unknown_authority() {
    let (ours, foreign) = (DevAuthority::new().unwrap(), DevAuthority::new().unwrap());
    let unknown = CertRefusal::UnknownAuthority;
    dialler_is_refused(&foreign.issue(node(1)).unwrap(), &ours, unknown.clone(), unknown.clone());
    listener_is_refused(&foreign.issue(node(2)).unwrap(), &ours, unknown.clone(), unknown);
}

#[test]
fn both_sides_report_a_certificate_outside_its_time() {
    let ca = DevAuthority::new().unwrap();
    let expired = |id| ca.issue_for(&[node_uri(node(id))], now() - DAY * 2..=now() - DAY).unwrap();
    let early = |id| ca.issue_for(&[node_uri(node(id))], now() + DAY..=now() + DAY * 2).unwrap();
    dialler_is_refused(&expired(1), &ca, CertRefusal::Expired, CertRefusal::Expired);
    listener_is_refused(&expired(2), &ca, CertRefusal::Expired, CertRefusal::Expired);
    // TLS has one alert for both, so only the refusing side knows which.
    dialler_is_refused(&early(1), &ca, CertRefusal::NotYetValid, CertRefusal::Expired);
    listener_is_refused(&early(2), &ca, CertRefusal::NotYetValid, CertRefusal::Expired);
}

#[test]
fn another_node_than_dialled_is_the_wrong_peer_and_learns_it() {
    let ca = DevAuthority::new().unwrap();
    let (dialled, accepted) = call(&of_node(&ca, 1), &of_node(&ca, 3));
    assert!(matches!(dialler_error(&dialled), ConnectError::WrongPeer { .. }));
    assert_eq!(dialled.refusal(), Some(CertRefusal::OtherNode { node: 3 }));
    let learned = Refusal::OwnCertificate(CertRefusal::OtherNode { node: 3 });
    assert_eq!(accepted.listener_refusal(), Some(learned));
}

/// As from a foreign program: a certificate of the right authority that names no node, or two.
#[test]
fn both_sides_report_a_certificate_without_one_node() {
    let ca = DevAuthority::new().unwrap();
    let valid = now() - DAY..=now() + DAY;
    for uris in [vec![], vec!["spiffe://elsewhere/7".into()], vec![node_uri(node(1)), node_uri(node(2))]] {
        let foreign = ca.issue_for(&uris, valid.clone()).unwrap();
        let pem = |text: &str| text.as_bytes().to_vec();
        // It cannot be loaded as an identity, so a raw client shows it.
        let refused = TlsConfig::from_pem(&pem(ca.ca_pem()), &pem(&foreign.cert), &pem(&foreign.key));
        assert!(matches!(refused, Err(TlsError::Identity { refusal: CertRefusal::NoNode, .. })), "{uris:?}");
        let (server, accepted) = accepting(&of_node(&ca, 2), &alpn()).unwrap();
        let [client, server] = shake(Arc::new(client(Some(&foreign), &alpn())), server);
        accepted.learn(&server.unwrap());
        assert_eq!(accepted.listener_refusal(), Some(Refusal::Certificate(CertRefusal::NoNode)));
        let (_, dialled) = dialling(&of_node(&ca, 1), node(2), &alpn()).unwrap();
        dialled.learn(&client.unwrap());
        assert_eq!(dialled.refusal_by_peer(), Some(CertRefusal::NoNode));
    }
}

#[test]
fn both_sides_report_a_missing_certificate() {
    let ca = DevAuthority::new().unwrap();
    let (server, accepted) = accepting(&of_node(&ca, 2), &alpn()).unwrap();
    let [client, server] = shake(Arc::new(client(None, &alpn())), server);
    accepted.learn(&io::Error::other(server.unwrap()));
    assert_eq!(accepted.listener_refusal(), Some(Refusal::Certificate(CertRefusal::Missing)));
    let (_, dialled) = dialling(&of_node(&ca, 1), node(2), &alpn()).unwrap();
    dialled.learn(&client.unwrap());
    assert_eq!(dialled.refusal_by_peer(), Some(CertRefusal::Missing));
}

#[test]
fn a_listener_learns_the_offered_version() {
    let ca = DevAuthority::new().unwrap();
    let (server, accepted) = accepting(&of_node(&ca, 2), &alpn()).unwrap();
    let mine = ca.issue(node(1)).unwrap();
    let [client, server] = shake(Arc::new(client(Some(&mine), b"towline/9")), server);
    assert_eq!(server, Some(rustls::Error::NoApplicationProtocol));
    assert!(matches!(client, Some(rustls::Error::AlertReceived(_))));
    let version = Refusal::Version { ours: PROTOCOL_VERSION, theirs: 9 };
    assert_eq!(accepted.listener_refusal(), Some(version));
}

/// A later release may offer its own version and ours.
#[test]
fn a_dialler_that_also_offers_our_version_is_not_refused_for_it() {
    let ca = DevAuthority::new().unwrap();
    let (server, accepted) = accepting(&of_node(&ca, 2), &alpn()).unwrap();
    let mut both = client(Some(&ca.issue(node(1)).unwrap()), b"towline/9");
    both.alpn_protocols.push(alpn());
    assert_eq!(shake(Arc::new(both), server), [None, None]);
    assert_eq!(accepted.listener_refusal(), None);
}

#[test]
fn a_reload_affects_new_connections_and_a_failed_reload_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::in_dir(dir.path(), node(1));
    let put = |ca: &DevAuthority, cert: &DevCert| {
        std::fs::write(&files.ca, ca.ca_pem()).unwrap();
        std::fs::write(&files.cert, &cert.cert).unwrap();
        std::fs::write(&files.key, &cert.key).unwrap();
    };
    let (old, new) = (DevAuthority::new().unwrap(), DevAuthority::new().unwrap());
    put(&old, &old.issue(node(1)).unwrap());
    let tls = TlsConfig::from_files(files.clone()).unwrap();
    let works = |with: &DevAuthority| {
        let (dialled, accepted) = call(&tls, &of_node(with, 2));
        dialled.identity().is_some() && accepted.identity().is_some()
    };
    assert!(works(&old) && !works(&new));

    put(&new, &new.issue(node(9)).unwrap());
    assert!(matches!(tls.reload(), Err(TlsError::OtherNode { .. })));
    std::fs::write(&files.cert, "nothing").unwrap();
    let error = tls.reload().unwrap_err();
    assert!(error.to_string().contains("node-1.pem"), "{error}");
    std::fs::remove_file(&files.key).unwrap();
    assert!(matches!(tls.reload(), Err(TlsError::Read { .. })));
    assert!(works(&old) && !works(&new));

    put(&new, &new.issue(node(1)).unwrap());
    tls.clone().reload().unwrap();
    assert!(works(&new) && !works(&old));
    assert!(matches!(of_node(&old, 1).reload(), Err(TlsError::NotFromFiles)));
}

#[test]
fn a_key_of_another_certificate_is_refused_and_debug_shows_no_key() {
    let ca = DevAuthority::new().unwrap();
    let (one, two) = (ca.issue(node(1)).unwrap(), ca.issue(node(1)).unwrap());
    let error = TlsConfig::from_pem(ca.ca_pem().as_bytes(), one.cert.as_bytes(), two.key.as_bytes());
    assert!(matches!(error, Err(TlsError::Key { .. })));
    let shown = format!("{:?}", identity(&ca, &one));
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn development_certificates_are_private_and_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("certs");
    let first = write(&dir, 2).unwrap();
    assert_eq!(first.len(), 6);
    assert!(first.iter().all(|file| matches!(file, Written::Created(_))));
    #[cfg(unix)]
    for key in ["ca.key", "node-1.key", "node-2.key"] {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(dir.join(key)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let before = std::fs::read(dir.join("node-1.key")).unwrap();
    let second = write(&dir, 3).unwrap();
    assert_eq!(second.iter().filter(|file| matches!(file, Written::Created(_))).count(), 2);
    assert_eq!(std::fs::read(dir.join("node-1.key")).unwrap(), before);

    // The later node has the same authority.
    let load = |id| TlsConfig::from_files(TlsFiles::in_dir(&dir, node(id))).unwrap();
    let (dialled, accepted) = call(&load(3), &load(2));
    assert!(dialled.identity().is_some() && accepted.identity().is_some());

    std::fs::remove_file(dir.join("node-1.key")).unwrap();
    assert!(write(&dir, 3).unwrap_err().to_string().contains("node-1.pem is there"));
}
