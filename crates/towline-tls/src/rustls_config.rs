//! rustls settings of single connections, for transports. Users of Towline do not need this module.
//!
//! [`accepting`] and [`dialling`] make the settings of one connection from the current identity, and a [`Verdict`] in which
//! the verifier records its result. The transport therefore gets a typed refusal, whatever a library in between makes of
//! the error. Making settings is cheap, because connections share all large parts.
//!
//! The other side receives a refusal as a TLS alert; [`refusal_of_alert`] converts it back.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{AlertDescription, ClientConfig, ServerConfig, SignatureScheme};
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::transport::{CertIdentity, CertRefusal, ConnectError, PROTOCOL_VERSION, Refusal};
use webpki::KeyUsage;

use crate::verifier::{Verifier, verify};
use crate::{TlsConfig, TlsError};

/// The prefix of Towline's application protocols; the protocol version follows.
pub const ALPN_PREFIX: &str = "towline/";

/// The host name for libraries that require one. It is neither sent nor checked: certificates name nodes by id.
pub const SERVER_NAME: &str = "node.invalid";

/// The application protocol of this build: `towline/1`.
pub fn alpn() -> Vec<u8> {
    format!("{ALPN_PREFIX}{PROTOCOL_VERSION}").into_bytes()
}

/// The result of one handshake. Clones share it.
#[derive(Debug, Clone)]
pub struct Verdict {
    own: NodeId,
    found: Arc<Mutex<Found>>,
}

#[derive(Debug, Default)]
struct Found {
    identity: Option<CertIdentity>,
    refusal: Option<CertRefusal>,
    by_peer: Option<CertRefusal>,
    other_version: Option<u32>,
}

impl Verdict {
    fn new(tls: &TlsConfig) -> Self {
        Self { own: tls.node(), found: Arc::default() }
    }

    /// Who the peer is, once its certificate was verified. Proven when the handshake has ended.
    pub fn identity(&self) -> Option<CertIdentity> {
        self.lock().identity.clone()
    }

    /// Why this side refused the peer's certificate.
    pub fn refusal(&self) -> Option<CertRefusal> {
        self.lock().refusal.clone()
    }

    /// Why the peer refused this side's certificate.
    pub fn refusal_by_peer(&self) -> Option<CertRefusal> {
        self.lock().by_peer.clone()
    }

    /// The refusal that a listener reports to the engine for a failed handshake.
    pub fn listener_refusal(&self) -> Option<Refusal> {
        let found = self.lock();
        let version = |theirs| Refusal::Version { ours: PROTOCOL_VERSION, theirs };
        let theirs = found.refusal.clone().map(Refusal::Certificate);
        theirs
            .or_else(|| found.by_peer.clone().map(Refusal::OwnCertificate))
            .or_else(|| found.other_version.map(version))
    }

    /// The dialler's error for a connection that failed because of a certificate.
    pub fn dialler_error(&self, address: &PeerAddr, to: NodeId) -> Option<ConnectError> {
        let found = self.lock();
        match (&found.refusal, &found.by_peer) {
            (Some(CertRefusal::OtherNode { node }), _) => {
                let detail =
                    format!("the certificate of node {node} at {address}, where node {to} was expected");
                Some(ConnectError::WrongPeer { detail })
            }
            (Some(refusal), _) => {
                Some(ConnectError::Certificate { address: address.clone(), refusal: refusal.clone() })
            }
            (None, Some(refusal)) => Some(ConnectError::Refused(Refusal::Certificate(refusal.clone()))),
            (None, None) => None,
        }
    }

    /// Records what a library's error says about a certificate, if the error comes from TLS.
    pub fn learn(&self, error: &(dyn StdError + 'static)) {
        match tls_error(error) {
            Some(rustls::Error::NoCertificatesPresented) => self.refuse(CertRefusal::Missing),
            Some(rustls::Error::AlertReceived(alert)) => self.learn_alert(u8::from(*alert)),
            _ => {}
        }
    }

    /// The same from an alert's number, which the peer sent.
    pub fn learn_alert(&self, alert: u8) {
        if let Some(refusal) = refusal_of_alert(alert, self.own) {
            self.lock().by_peer.get_or_insert(refusal);
        }
    }

    /// The same from an alert's number, which this side sent.
    pub fn learn_own_alert(&self, alert: u8) {
        if alert == u8::from(AlertDescription::CertificateRequired) {
            self.refuse(CertRefusal::Missing);
        }
    }

    pub(crate) fn verified(&self, identity: CertIdentity) {
        self.lock().identity = Some(identity);
    }

    pub(crate) fn refuse(&self, refusal: CertRefusal) {
        self.lock().refusal.get_or_insert(refusal);
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the certificate of node `own`, which received this alert, was refused for.
pub fn refusal_of_alert(alert: u8, own: NodeId) -> Option<CertRefusal> {
    use AlertDescription as A;
    let invalid = |detail: &str| CertRefusal::Invalid { detail: detail.into() };
    Some(match A::from(alert) {
        A::UnknownCA => CertRefusal::UnknownAuthority,
        A::CertificateExpired => CertRefusal::Expired,
        A::CertificateRequired => CertRefusal::Missing,
        A::AccessDenied => CertRefusal::NoNode,
        A::BadCertificate => CertRefusal::OtherNode { node: own.as_u64() },
        A::CertificateUnknown => invalid("the peer did not say why"),
        A::UnsupportedCertificate => invalid("not for this purpose, or of an unknown kind"),
        A::CertificateRevoked => invalid("revoked"),
        _ => return None,
    })
}

/// Whether this alert means that the peer speaks another version of the protocol.
pub fn is_version_alert(alert: u8) -> bool {
    alert == u8::from(AlertDescription::NoApplicationProtocol)
}

fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        // `source()` of an I/O error is the source of the wrapped error, not the wrapped error itself.
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// The settings for one connection that is accepted. The dialler must show a certificate.
///
/// # Errors
/// [`TlsError::Settings`], which is not expected.
pub fn accepting(tls: &TlsConfig, alpn: &[u8]) -> Result<(Arc<ServerConfig>, Verdict), TlsError> {
    let material = tls.material();
    let verdict = Verdict::new(tls);
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
    let verdict = Verdict::new(tls);
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
/// purpose, name. Whether a peer holds its key only a handshake shows.
///
/// # Errors
/// [`CertRefusal`].
pub fn check_dialler(tls: &TlsConfig, end_entity: &[u8], between: &[&[u8]]) -> Result<NodeId, CertRefusal> {
    let between: Vec<_> = between.iter().map(|der| CertificateDer::from(*der)).collect();
    let end_entity = CertificateDer::from(end_entity);
    verify(&tls.material(), &end_entity, &between, UnixTime::now(), KeyUsage::client_auth())
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
            self.verdict.lock().other_version = offered.into_iter().max().filter(|_| refused);
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
