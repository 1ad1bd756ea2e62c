//! The typed result of a TLS handshake.

use std::error::Error as StdError;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::AlertDescription;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::transport::{CertIdentity, CertRefusal, ConnectError, PROTOCOL_VERSION, Refusal};

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
    pub(crate) fn new(own: NodeId) -> Self {
        Self { own, found: Arc::default() }
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

    pub(crate) fn offered_version(&self, version: Option<u32>) {
        self.lock().other_version = version;
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
