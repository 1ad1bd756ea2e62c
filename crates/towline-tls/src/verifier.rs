//! Checks a peer's certificate: path, time, node id.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::verify_tls13_signature;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};
use towline_engine::ids::NodeId;
use towline_engine::transport::{CertIdentity, CertRefusal};
use webpki::{EndEntityCert, KeyUsage};

use crate::identity::node_of;
use crate::material::Material;
use crate::rustls_config::Verdict;

/// The certificate verifier of one connection. It records its result in the verdict.
pub(crate) struct Verifier {
    pub(crate) material: Arc<Material>,
    /// The node that a dialler expects.
    pub(crate) expected: Option<NodeId>,
    pub(crate) verdict: Verdict,
}

/// Checks certification path and time, then the node id.
pub(crate) fn verify(
    material: &Material,
    end_entity: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<NodeId, CertRefusal> {
    let cert = EndEntityCert::try_from(end_entity).map_err(|error| refusal(&error))?;
    let algorithms = material.provider.signature_verification_algorithms.all;
    cert.verify_for_usage(algorithms, &material.anchors, between, now, usage, None, None)
        .map_err(|error| refusal(&error))?;
    node_of(&cert)
}

fn refusal(error: &webpki::Error) -> CertRefusal {
    use webpki::Error as E;
    match error {
        // A bad signature here means an authority of the same name with another key.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertRefusal::UnknownAuthority,
        E::CertExpired { .. } => CertRefusal::Expired,
        E::CertNotValidYet { .. } => CertRefusal::NotYetValid,
        other => CertRefusal::Invalid { detail: other.to_string() },
    }
}

/// The error, and so the alert, that a refusal becomes. `rustls_config::refusal_of_alert` is its inverse.
fn tls_error(refusal: CertRefusal) -> Error {
    Error::InvalidCertificate(match refusal {
        CertRefusal::UnknownAuthority => CertificateError::UnknownIssuer,
        CertRefusal::Expired => CertificateError::Expired,
        CertRefusal::NotYetValid => CertificateError::NotValidYet,
        CertRefusal::NoNode => CertificateError::ApplicationVerificationFailure,
        CertRefusal::OtherNode { .. } => CertificateError::NotValidForName,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

impl Verifier {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let verified =
            verify(&self.material, end_entity, between, now, usage).and_then(|node| match self.expected {
                Some(expected) if expected != node => Err(CertRefusal::OtherNode { node: node.as_u64() }),
                _ => Ok(node),
            });
        match verified {
            Ok(node) => {
                self.verdict.verified(CertIdentity { node });
                Ok(())
            }
            Err(refusal) => {
                self.verdict.refuse(refusal.clone());
                Err(tls_error(refusal))
            }
        }
    }

    fn signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.material.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms).inspect_err(|_| {
            let detail = "the handshake is not signed by the certificate's key".into();
            self.verdict.refuse(CertRefusal::Invalid { detail });
        })
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.material.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Only TLS 1.3 is switched on.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// No hints: a node has one certificate and shows it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "dev-certs"))]
mod tests {
    use super::*;
    use crate::TlsConfig;
    use crate::dev::DevAuthority;
    use rustls::pki_types::pem::PemObject as _;
    use towline_engine::transport::CertRefusal;

    /// Mutated certificates are refused, and never verified as the node's.
    #[test]
    fn certificates_with_changed_bytes_are_refused_and_never_panic() {
        let authority = DevAuthority::new().unwrap();
        let made = authority.issue(NodeId::new(7).unwrap()).unwrap();
        let tls =
            TlsConfig::from_pem(authority.ca_pem().as_bytes(), made.cert.as_bytes(), made.key.as_bytes());
        let material = tls.unwrap().material();
        let good = CertificateDer::from_pem_slice(made.cert.as_bytes()).unwrap().to_vec();
        let check = |bytes: Vec<u8>, between: &[CertificateDer<'_>]| {
            let cert = CertificateDer::from(bytes);
            verify(&material, &cert, between, UnixTime::now(), KeyUsage::client_auth())
        };
        assert_eq!(check(good.clone(), &[]), Ok(NodeId::new(7).unwrap()));
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            usize::try_from(random % below as u64).unwrap()
        };
        for at in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=next(3) {
                let (place, bit) = (next(bytes.len()), next(8));
                bytes[place] ^= 1 << bit;
            }
            if at % 4 == 0 {
                bytes.truncate(next(bytes.len()));
            }
            if bytes != good {
                let between = [CertificateDer::from(bytes.clone())];
                let refused = check(bytes, &between);
                assert!(matches!(refused, Err(ref why) if *why != CertRefusal::Missing), "{refused:?}");
            }
        }
    }
}
