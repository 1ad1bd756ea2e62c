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
use webpki::KeyUsage;

use crate::material::Material;
use crate::verdict::Verdict;

/// The certificate verifier of one connection. It records its result in the verdict.
pub(crate) struct Verifier {
    pub(crate) material: Arc<Material>,
    /// The node that a dialler expects.
    pub(crate) expected: Option<NodeId>,
    pub(crate) verdict: Verdict,
}

/// The error, and so the alert, that a refusal becomes. `verdict::refusal_of_alert` is its inverse.
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
        let verified = self.material.verify(end_entity, between, now, usage);
        let expected = verified.and_then(|node| match self.expected {
            Some(expected) if expected != node => Err(CertRefusal::OtherNode { node: node.as_u64() }),
            _ => Ok(node),
        });
        match expected {
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
