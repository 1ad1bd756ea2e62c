//! Decoding of peer certificates and of a node's own files. Each function takes any bytes; a panic or a failed assertion is
//! a finding.

use std::sync::LazyLock;

use towline_engine::ids::NodeId;
use towline_engine::transport::CertRefusal;
use towline_tls::dev::{DevAuthority, DevCert};
use towline_tls::rustls_config::check_dialler;
use towline_tls::{TlsConfig, TlsError};

/// The checking node and its files.
pub struct Own {
    pub authority: DevAuthority,
    pub cert: DevCert,
    pub tls: TlsConfig,
}

pub static OWN: LazyLock<Own> = LazyLock::new(|| own().expect("development certificates"));

fn own() -> Option<Own> {
    let authority = DevAuthority::new().ok()?;
    let cert = authority.issue(NodeId::new(7)?).ok()?;
    let ca = authority.ca_pem().as_bytes();
    let tls = TlsConfig::from_pem(ca, cert.cert.as_bytes(), cert.key.as_bytes()).ok()?;
    Some(Own { authority, cert, tls })
}

/// Uses a certificate in DER as a peer's, as an intermediate, and as this node's own. The name in the last is read before any
/// signature is checked.
pub fn certificate(der: &[u8]) {
    let own = &*OWN;
    for between in [&[][..], &[der]] {
        match check_dialler(&own.tls, der, between) {
            // The authority has signed only this node's certificate.
            Ok(node) => assert_eq!(node, own.tls.node()),
            Err(refusal) => assert_ne!(refusal, CertRefusal::Missing),
        }
    }
    let loaded = load(pem(der).as_bytes());
    if let Ok(tls) = loaded {
        assert_ne!(tls.node().as_u64(), 0);
    }
}

/// Uses text as a node's certificate, as its authorities and as its key.
pub fn file(text: &[u8]) {
    let _ = load(text);
    let _ = TlsConfig::from_pem(text, OWN.cert.cert.as_bytes(), OWN.cert.key.as_bytes());
    let key = TlsConfig::from_pem(OWN.authority.ca_pem().as_bytes(), OWN.cert.cert.as_bytes(), text);
    if let Err(error) = key {
        assert!(matches!(error, TlsError::Key { .. }), "{error}");
    }
}

fn load(cert: &[u8]) -> Result<TlsConfig, TlsError> {
    TlsConfig::from_pem(OWN.authority.ca_pem().as_bytes(), cert, OWN.cert.key.as_bytes())
}

/// Encodes a certificate as PEM.
pub fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    for (at, three) in der.chunks(3).enumerate() {
        let bits = (0..3).fold(0, |bits, at| bits << 8 | u32::from(three.get(at).copied().unwrap_or(0)));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit > three.len() { '=' } else { char::from(DIGITS[index]) });
        }
        if at % 16 == 15 {
            text.push('\n');
        }
    }
    text + "\n-----END CERTIFICATE-----\n"
}
