//! Certificates: each refusal by type on both sides.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::common::*;
use towline_engine::message::Lane;
use towline_engine::transport::{CertRefusal, ConnectError, Refusal, Transport};
use towline_quic::{QuicConfig, QuicTransport};
use towline_tls::dev::{DevAuthority, DevCert};
use towline_tls::{TlsConfig, TlsFiles, node_uri};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn expired(id: u64) -> DevCert {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    AUTHORITY.issue_for(&[node_uri(node(id))], now - DAY * 2..=now - DAY).unwrap()
}

/// Node 1 with one identity calls node 2 with another: what the dialler and the listener each learn.
async fn call(dialler: TlsConfig, listener: TlsConfig) -> (ConnectError, Refusal) {
    let (fake, mut seen) = accepting();
    let listening = listen_as(QuicConfig::default(), listener, fake).await;
    let dialler = QuicTransport::new(QuicConfig::default(), dialler);
    let (connected, ear) = connect(&dialler, listening.local_addr(), Lane::Control).await;
    let refusal = within(seen.refused.recv()).await.unwrap();
    ear.closed().await;
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
    assert_eq!(dialler_refused(identity(&AUTHORITY, &expired(1))).await, CertRefusal::Expired);
    assert_eq!(listener_refused(identity(&AUTHORITY, &expired(2))).await, CertRefusal::Expired);
}

#[tokio::test]
async fn another_node_than_called_is_the_wrong_peer_and_hears_of_it() {
    let (error, refusal) = call(of_node(1), of_node(3)).await;
    assert!(matches!(error, ConnectError::WrongPeer { .. }), "{error}");
    assert_eq!(refusal, Refusal::OwnCertificate(CertRefusal::OtherNode { node: 3 }));
}

#[tokio::test]
async fn a_dialler_without_a_certificate_or_without_a_node_is_refused_by_type() {
    let (fake, mut seen) = accepting();
    let listener = listen(QuicConfig::default(), fake).await;
    let nobody = AUTHORITY.issue_for(&["urn:nobody".into()], Duration::ZERO..=DAY * 365 * 200).unwrap();
    for (cert, refusal) in [(None, CertRefusal::Missing), (Some(&nobody), CertRefusal::NoNode)] {
        // With TLS 1.3 a dialler believes that it is through before it hears.
        if let Ok(raw) = raw::dial(listener.local_addr(), cert, b"towline/1").await {
            within(raw.connection.closed()).await;
        }
        assert_eq!(within(seen.refused.recv()).await, Some(Refusal::Certificate(refusal)));
    }
}

#[tokio::test]
async fn certificates_that_were_reloaded_count_for_the_next_connection() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::in_dir(dir.path(), node(2));
    let put = |ca: &DevAuthority| {
        let cert = ca.issue(node(2)).unwrap();
        std::fs::write(&files.ca, ca.ca_pem()).unwrap();
        std::fs::write(&files.cert, cert.cert).unwrap();
        std::fs::write(&files.key, cert.key).unwrap();
    };
    put(&AUTHORITY);
    let tls = TlsConfig::from_files(files.clone()).unwrap();
    let (fake, mut seen) = accepting();
    let listener = listen_as(QuicConfig::default(), tls.clone(), fake).await;
    let at = listener.local_addr();
    let old = dialler(QuicConfig::default());
    let (mut link, _ear) = link(&old, at, Lane::Append).await;

    let other = DevAuthority::new().unwrap();
    put(&other);
    tls.reload().unwrap();
    let new = QuicTransport::new(QuicConfig::default(), identity(&other, &other.issue(node(1)).unwrap()));
    let (connected, _) = connect(&new, at, Lane::Control).await;
    connected.unwrap();
    let (refused, _) = connect(&dialler(QuicConfig::default()), at, Lane::Control).await;
    assert!(matches!(refused, Err(ConnectError::Certificate { .. })), "{refused:?}");
    // The connection from before goes on.
    within(link.dispatch(batch(1, 0))).await.unwrap();
    within(seen.delivered.recv()).await.unwrap();
}

/// A dialler that names the wrong node in its hello proves nothing by it: the engine sees whose certificate it is.
#[tokio::test]
async fn the_engine_sees_the_node_of_the_certificate_whatever_the_hello_says() {
    let (fake, _seen) = accepting();
    let listener = listen(QuicConfig::default(), fake.clone()).await;
    let dialler = QuicTransport::new(QuicConfig::default(), of_node(7));
    let (_, feedback) = Ear::new();
    // Says that it is node 1.
    within(dialler.connect(&peer(listener.local_addr()), Lane::Control, &hello(), feedback)).await.unwrap();
    assert_eq!(fake.certs.lock().unwrap().first().unwrap().as_ref().unwrap().node, node(7));
}
