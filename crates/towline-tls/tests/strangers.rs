//! Random and mutated certificates and handshakes of strangers. The test compares the memory of the process before and
//! after, so it has its own program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests

#[path = "../../../fuzz/src/certificates.rs"]
#[allow(unreachable_pub, missing_docs)] // its own crate under cargo-fuzz
mod certificates;
mod common;
#[path = "../../../fuzz/src/memory.rs"]
#[allow(unreachable_pub)] // its own crate under cargo-fuzz
mod memory;

use std::sync::Arc;

use certificates::OWN;
use memory::{mutated, random_bytes, resident_bytes};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, ServerConnection, SignatureScheme};
use towline_engine::transport::Refusal;
use towline_tls::rustls_config::{SERVER_NAME, Verdict, accepting, alpn, check_dialler, dialling};

const CERTIFICATES: usize = 60_000;
const FILES: usize = 5_000;
const FLIGHTS: usize = 35_000;
const HANDSHAKES: usize = 400;
/// The allocator may still grow this much after a tenth of the inputs.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// The first message of a dialler.
fn client_hello() -> Vec<u8> {
    let (config, _) = dialling(&OWN.tls, OWN.tls.node(), &alpn()).unwrap();
    let mut client = ClientConnection::new(config, SERVER_NAME.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// Sends bytes to a listener, which must not identify the peer.
fn flight(mut bytes: &[u8]) {
    let (config, verdict) = accepting(&OWN.tls, &alpn()).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    while !bytes.is_empty() {
        if server.read_tls(&mut bytes).is_err() || server.process_new_packets().is_err() {
            break;
        }
    }
    assert!(server.is_handshaking());
    assert_eq!(verdict.identity(), None);
}

/// Shows any bytes as its certificate.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// A whole handshake of a dialler that shows `chain` and signs with its own key.
fn handshake(chain: Vec<CertificateDer<'static>>) -> Verdict {
    let (config, _) = dialling(&OWN.tls, OWN.tls.node(), &alpn()).unwrap();
    let mut config = config.as_ref().clone();
    let key = PrivateKeyDer::from_pem_slice(OWN.cert.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    config.client_auth_cert_resolver = Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))));
    let mut client = ClientConnection::new(Arc::new(config), SERVER_NAME.try_into().unwrap()).unwrap();
    let (config, verdict) = accepting(&OWN.tls, &alpn()).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    let [_, error] = common::shake(&mut client, &mut server);
    if let Some(error) = error {
        verdict.learn(&error);
    }
    verdict
}

fn round(random: &mut fastrand::Rng, good: &[u8], hello: &[u8], times: usize) {
    for _ in 0..CERTIFICATES / times {
        match random.u8(..8) {
            0 => certificates::certificate(&random_bytes(random, 600)),
            _ => {
                let bytes = mutated(random, good);
                certificates::certificate(&bytes);
                assert!(bytes == good || check_dialler(&OWN.tls, &bytes, &[]).is_err(), "{bytes:02x?}");
            }
        }
    }
    for _ in 0..FILES / times {
        let texts = [&OWN.cert.cert, &OWN.cert.key, OWN.authority.ca_pem()];
        let text = texts[random.usize(..3)].as_bytes();
        certificates::file(&mutated(random, text));
    }
    for _ in 0..FLIGHTS / times {
        match random.u8(..4) {
            0 => flight(&random_bytes(random, 600)),
            1 => flight(&[&[22, 3, 1, 1, 0][..], &random_bytes(random, 300)].concat()),
            _ => flight(&mutated(random, hello)),
        }
    }
    for _ in 0..HANDSHAKES / times {
        let bytes = mutated(random, good);
        if bytes == good {
            continue;
        }
        let verdict = handshake(vec![CertificateDer::from(bytes.clone())]);
        // Without a refusal, the bytes were no TLS message at all.
        let refusal = verdict.listener_refusal();
        assert!(matches!(refusal, None | Some(Refusal::Certificate(_))), "{refusal:?}");
        assert_eq!(verdict.identity(), None, "{bytes:02x?}");
    }
}

#[test]
fn a_hundred_thousand_certificates_and_handshakes_of_strangers_leak_no_memory() {
    let good = CertificateDer::from_pem_slice(OWN.cert.cert.as_bytes()).unwrap();
    assert_eq!(certificates::pem(&good).replace('\n', ""), OWN.cert.cert.replace(['\n', '\r'], ""));
    certificates::certificate(&good);
    let verdict = handshake(vec![good.clone()]);
    assert_eq!(verdict.identity().unwrap().node, OWN.tls.node());
    let (hello, mut random) = (client_hello(), fastrand::Rng::with_seed(5));
    round(&mut random, &good, &hello, 10);
    let before = resident_bytes();
    round(&mut random, &good, &hello, 1);
    if let (Some(before), Some(after)) = (before, resident_bytes()) {
        let grown = after.saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
    }
}
