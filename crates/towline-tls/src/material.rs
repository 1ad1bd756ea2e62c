//! One generation of keys and authorities.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use rustls::sign::CertifiedKey;
use towline_engine::ids::NodeId;
use towline_engine::transport::CertRefusal;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::error::TlsError;
use crate::files::{PEM_BYTES_MAX, TlsFiles};
use crate::identity::node_of;

/// Certificates in one PEM at most.
const CERTIFICATES_MAX: usize = 64;

pub(crate) struct Material {
    pub(crate) node: NodeId,
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl Material {
    pub(crate) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        Self::from_pem(&bytes(&files.ca)?, &bytes(&files.cert)?, &bytes(&files.key)?)
            .map_err(|error| error.within(files))
    }

    pub(crate) fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let wrong_ca = |detail| TlsError::Authorities { file: None, detail };
        let anchors = certificates(ca)
            .and_then(|cas| {
                let anchor = |ca| anchor_from_trusted_cert(ca).map(|anchor| anchor.to_owned());
                cas.iter().map(anchor).collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())
            })
            .map_err(wrong_ca)?;

        let wrong_cert = |detail: String| TlsError::Certificate { file: None, detail };
        let chain = certificates(cert).map_err(wrong_cert)?;
        let end_entity = chain.first().ok_or_else(|| wrong_cert("no certificate".into()))?;
        let parsed = EndEntityCert::try_from(end_entity).map_err(|e| wrong_cert(e.to_string()))?;
        let node = node_of(&parsed).map_err(|refusal| TlsError::Identity { file: None, refusal })?;

        let wrong_key = |detail: String| TlsError::Key { file: None, detail };
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| wrong_key("no private key in PEM".into()))?;
        let key = provider.key_provider.load_private_key(key);
        let key = key.map_err(|_| wrong_key("of a kind that is not supported".into()))?;
        let certified = CertifiedKey::new(chain, key);
        // ring gives the public half of every key, so a key without one is not this certificate's.
        certified.keys_match().map_err(|_| wrong_key("not that of the certificate".into()))?;

        let material = Self { node, key: Arc::new(certified), anchors, provider };
        material.warn_if_worthless();
        Ok(material)
    }

    /// Checks certification path and time, then the node id.
    pub(crate) fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<NodeId, CertRefusal> {
        let cert = EndEntityCert::try_from(end_entity).map_err(refusal)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        cert.verify_for_usage(algorithms, &self.anchors, between, now, usage, None, None).map_err(refusal)?;
        node_of(&cert)
    }

    /// Warns if this node's own authorities or clock reject its certificate. Peers decide by their own, but will likely
    /// reject it too.
    fn warn_if_worthless(&self) {
        let Some((end_entity, between)) = self.key.cert.split_first() else { return };
        for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
            if let Err(refusal) = self.verify(end_entity, between, UnixTime::now(), usage) {
                tracing::warn!(node = %self.node, %refusal, "peers will probably refuse this node's certificate");
                return;
            }
        }
    }
}

fn refusal(error: webpki::Error) -> CertRefusal {
    use webpki::Error as E;
    match error {
        // A bad signature here means an authority of the same name with another key.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => CertRefusal::UnknownAuthority,
        E::CertExpired { .. } => CertRefusal::Expired,
        E::CertNotValidYet { .. } => CertRefusal::NotYetValid,
        other => CertRefusal::Invalid { detail: other.to_string() },
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    let failed = |source| TlsError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    Ok(bytes)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        certificates.push(certificate.map_err(|e| e.to_string())?);
        if certificates.len() > CERTIFICATES_MAX {
            return Err(format!("more than {CERTIFICATES_MAX} certificates"));
        }
    }
    if certificates.is_empty() { Err("no certificate in PEM".into()) } else { Ok(certificates) }
}
