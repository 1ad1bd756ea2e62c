//! Certificates and handshakes of strangers, random and mutated, with the memory of the process looked at before and after.
//! One test, so that no other test's memory is measured.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

#[path = "../../../fuzz/src/certificates.rs"]
#[allow(unreachable_pub, missing_docs)] // a crate of its own under cargo-fuzz
mod certificates;

use std::sync::Arc;

use certificates::OWN;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{ClientConnection, ServerConnection, SignatureScheme};
use towline_engine::transport::Refusal;
use towline_tls::rustls_config::{SERVER_NAME, Verdict, accepting, alpn, dialling};

const CERTIFICATES: usize = 60_000;
const FILES: usize = 5_000;
const FLIGHTS: usize = 35_000;
const HANDSHAKES: usize = 400;
/// What the allocator may still do after a tenth of it.
const GROWTH_BYTES_MAX: u64 = 8 << 20;

/// Resident memory of this process, where the system tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1_024)
}

fn mutated(random: &mut fastrand::Rng, good: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=random.usize(..4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..8) {
            0..4 => bytes[at] ^= 1 << random.u8(..8),
            4..6 => bytes[at] = random.u8(..),
            6 => bytes.truncate(at),
            _ => bytes.insert(at, random.u8(..)),
        }
    }
    bytes
}

fn random_bytes(random: &mut fastrand::Rng, below: usize) -> Vec<u8> {
    let length = random.usize(..below);
    std::iter::repeat_with(|| random.u8(..)).take(length).collect()
}

/// The first thing a dialler sends.
fn client_hello() -> Vec<u8> {
    let (config, _) = dialling(&OWN.tls, OWN.tls.node(), &alpn()).unwrap();
    let mut client = ClientConnection::new(config, SERVER_NAME.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// A listener that is sent these bytes: it never believes that it knows who it is.
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

/// A whole handshake by a dialler that shows `chain` and signs with its own key.
fn handshake(chain: Vec<CertificateDer<'static>>) -> Verdict {
    let (config, _) = dialling(&OWN.tls, OWN.tls.node(), &alpn()).unwrap();
    let mut config = config.as_ref().clone();
    let key = PrivateKeyDer::from_pem_slice(OWN.cert.key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    config.client_auth_cert_resolver = Arc::new(Shows(Arc::new(CertifiedKey::new(chain, key))));
    let mut client = ClientConnection::new(Arc::new(config), SERVER_NAME.try_into().unwrap()).unwrap();
    let (config, verdict) = accepting(&OWN.tls, &alpn()).unwrap();
    let mut server = ServerConnection::new(config).unwrap();
    for _ in 0..4 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() && server.read_tls(&mut bytes).is_ok() {
            if let Err(error) = server.process_new_packets() {
                verdict.learn(&error);
            }
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() && client.read_tls(&mut bytes).is_ok() {
            let _ = client.process_new_packets();
        }
    }
    verdict
}

fn round(random: &mut fastrand::Rng, good: &[u8], hello: &[u8], times: usize) {
    for _ in 0..CERTIFICATES / times {
        match random.u8(..8) {
            0 => certificates::certificate(&random_bytes(random, 600)),
            _ => certificates::certificate(&mutated(random, good)),
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
            _ => {
                let bytes = mutated(random, hello);
                flight(&bytes);
            }
        }
    }
    for _ in 0..HANDSHAKES / times {
        let bytes = mutated(random, good);
        if bytes == good {
            continue;
        }
        let verdict = handshake(vec![CertificateDer::from(bytes.clone())]);
        // By type; without a verdict it was no message of TLS at all.
        let refusal = verdict.listener_refusal();
        assert!(matches!(refusal, None | Some(Refusal::Certificate(_))), "{refusal:?}");
        assert_eq!(verdict.identity(), None, "{bytes:02x?}");
    }
}

#[test]
fn a_hundred_thousand_certificates_and_handshakes_of_strangers_leave_no_memory_behind() {
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
