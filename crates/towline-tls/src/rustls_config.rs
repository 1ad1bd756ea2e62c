//! rustls settings of single connections, for transports. Users of Towline do not need this module.
//!
//! [`accepting`] and [`dialling`] make the settings of one connection from the current identity, and a [`Verdict`] in which
//! the verifier records its result. The transport therefore gets a typed refusal, even if a library in between changes
//! the error. Making settings is cheap, because connections share all large parts.
//!
//! The other side receives a refusal as a TLS alert; [`refusal_of_alert`] converts it back.

use std::fmt;
use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use towline_engine::ids::NodeId;
use towline_engine::transport::{CertRefusal, PROTOCOL_VERSION};
use webpki::KeyUsage;

pub use crate::verdict::{Verdict, is_version_alert, refusal_of_alert};
use crate::verifier::Verifier;
use crate::{TlsConfig, TlsError};

/// The prefix of Towline's application protocols; the protocol version follows.
pub const ALPN_PREFIX: &str = "towline/";

/// The host name for libraries that require one. It is neither sent nor checked: certificates name nodes by id.
pub const SERVER_NAME: &str = "node.invalid";

/// The application protocol of this build: `towline/1`.
pub fn alpn() -> Vec<u8> {
    format!("{ALPN_PREFIX}{PROTOCOL_VERSION}").into_bytes()
}

/// The settings for one connection that is accepted. The dialler must show a certificate.
///
/// # Errors
/// [`TlsError::Settings`], which is not expected.
pub fn accepting(tls: &TlsConfig, alpn: &[u8]) -> Result<(Arc<ServerConfig>, Verdict), TlsError> {
    let material = tls.material();
    let verdict = Verdict::new(tls.node());
    let verifier = Verifier { material: Arc::clone(&material), expected: None, verdict: verdict.clone() };
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&material.provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Settings(error.into()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(Certificate {
            key: Arc::clone(&material.key),
            verdict: verdict.clone(),
            versions: alpn.starts_with(ALPN_PREFIX.as_bytes()),
        }));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok((Arc::new(config), verdict))
}

/// The settings for one connection to `to`. Another node's certificate is refused.
///
/// # Errors
/// [`TlsError::Settings`], which is not expected.
pub fn dialling(tls: &TlsConfig, to: NodeId, alpn: &[u8]) -> Result<(Arc<ClientConfig>, Verdict), TlsError> {
    let material = tls.material();
    let verdict = Verdict::new(tls.node());
    let verifier = Verifier { material: Arc::clone(&material), expected: Some(to), verdict: verdict.clone() };
    let key = Certificate { key: Arc::clone(&material.key), verdict: verdict.clone(), versions: false };
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&material.provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| TlsError::Settings(error.into()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(key));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok((Arc::new(config), verdict))
}

/// The node that a certificate, in DER, belongs to, by the same checks as in a handshake that `tls` accepts: path, time,
/// purpose, name. Only a handshake shows whether a peer holds the key.
///
/// # Errors
/// [`CertRefusal`].
pub fn check_dialler(tls: &TlsConfig, end_entity: &[u8], between: &[&[u8]]) -> Result<NodeId, CertRefusal> {
    let between: Vec<_> = between.iter().map(|der| CertificateDer::from(*der)).collect();
    let end_entity = CertificateDer::from(end_entity);
    tls.material().verify(&end_entity, &between, UnixTime::now(), KeyUsage::client_auth())
}

/// A node has one certificate.
struct Certificate {
    key: Arc<CertifiedKey>,
    verdict: Verdict,
    /// Whether the application protocol names the protocol version.
    versions: bool,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls calls this before it compares application protocols, so the offered versions are visible here.
        if self.versions {
            let version =
                |name: &[u8]| std::str::from_utf8(name).ok()?.strip_prefix(ALPN_PREFIX)?.parse::<u32>().ok();
            let offered: Vec<u32> = hello.alpn().into_iter().flatten().filter_map(version).collect();
            // A dialler that offers this version among others is not refused for its version.
            let refused = !offered.contains(&PROTOCOL_VERSION);
            self.verdict.offered_version(offered.into_iter().max().filter(|_| refused));
        }
        Some(Arc::clone(&self.key))
    }
}

impl ResolvesClientCert for Certificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Certificate")
    }
}
