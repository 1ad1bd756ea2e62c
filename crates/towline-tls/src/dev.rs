//! An authority and node certificates for development and tests.
//!
//! Not for production: the authority's key lies beside the certificates, and nothing rotates them.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use towline_engine::ids::NodeId;
use towline_engine::transport::BoxError;

use crate::files::{PEM_BYTES_MAX, TlsFiles};
use crate::identity::node_uri;

/// Certificates are valid from this long before now, for machines whose clocks are behind.
const BACKDATED: Duration = Duration::from_secs(3600);
/// How long certificates are valid.
const VALID: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const AUTHORITY: &str = "Towline development authority";

/// Why development certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DevCertsError {
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Only one of a certificate and its key exists. It cannot be used without the other, and is not overwritten.
    #[error("{} is there, but {} is not: remove the first, or bring back the second", present.display(), missing.display())]
    Half {
        /// The existing file.
        present: PathBuf,
        /// The missing file.
        missing: PathBuf,
    },
    /// The certificate library failed. Likely a key file with other contents.
    #[error("{what}")]
    Make {
        /// What the call was making.
        what: String,
        /// The library's error.
        #[source]
        source: BoxError,
    },
}

/// What [`write()`] did with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The file is new.
    Created(PathBuf),
    /// The file existed and is unchanged.
    Kept(PathBuf),
}

/// An authority that signs node certificates.
pub struct DevAuthority {
    cert: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its private key, in PEM.
#[derive(Clone)]
pub struct DevCert {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl DevAuthority {
    /// A new authority with a new key.
    ///
    /// # Errors
    /// [`DevCertsError::Make`].
    pub fn new() -> Result<Self, DevCertsError> {
        let failed = |e| make("the authority", e);
        let key = KeyPair::generate().map_err(failed)?;
        let params = authority_params();
        let cert = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { cert, issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate in PEM: what nodes trust.
    pub fn ca_pem(&self) -> &str {
        &self.cert
    }

    /// A new certificate for a node.
    ///
    /// # Errors
    /// [`DevCertsError::Make`].
    pub fn issue(&self, node: NodeId) -> Result<DevCert, DevCertsError> {
        let from = now().saturating_sub(BACKDATED);
        self.issue_for(&[node_uri(node)], from..=from + VALID)
    }

    /// A new certificate with any URI names, valid between two times since the beginning of 1970. For tests of refusals.
    ///
    /// # Errors
    /// [`DevCertsError::Make`], also if a name is not ASCII.
    pub fn issue_for(
        &self,
        uris: &[String],
        valid: RangeInclusive<Duration>,
    ) -> Result<DevCert, DevCertsError> {
        let failed = |e| make("a node's certificate", e);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(uris.first().map_or("a node", String::as_str));
        let names = uris.iter().map(|uri| uri.as_str().try_into().map(SanType::URI));
        params.subject_alt_names = names.collect::<Result<_, _>>().map_err(failed)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        (params.not_before, params.not_after) = (epoch + *valid.start(), epoch + *valid.end());
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer).map_err(failed)?.pem();
        Ok(DevCert { cert, key: key.serialize_pem() })
    }

    /// Loads or makes the authority of a directory; its key is `ca.key`. Returns whether the authority is new.
    fn open(dir: &Path, written: &mut Vec<Written>) -> Result<Self, DevCertsError> {
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        if !both(&cert, &key)? {
            let authority = Self::new()?;
            create(&key, &authority.issuer.key().serialize_pem(), true)?;
            create(&cert, &authority.cert, false)?;
            written.extend([Written::Created(cert), Written::Created(key)]);
            return Ok(authority);
        }
        let pem = read(&key)?;
        let pair = KeyPair::from_pem(&pem).map_err(|e| make(&key.display().to_string(), e))?;
        // The parameters never change, so the loaded authority signs like the one that made the certificate.
        let authority = Self { cert: read(&cert)?, issuer: Issuer::new(authority_params(), pair) };
        written.extend([Written::Kept(cert), Written::Kept(key)]);
        Ok(authority)
    }
}

/// Writes an authority (`ca.pem`, `ca.key`) and, for nodes 1 to `nodes`, `node-N.pem` and `node-N.key` into `dir`. Makes
/// `dir` if it is missing. Keys have mode 0600 from the moment they exist. Existing files stay, so a later call with more
/// nodes adds them. Returns what it did with each file, in this order. Blocks.
///
/// # Errors
/// [`DevCertsError`]; files written before it stay.
pub fn write(dir: &Path, nodes: u64) -> Result<Vec<Written>, DevCertsError> {
    std::fs::create_dir_all(dir).map_err(|source| DevCertsError::File { path: dir.into(), source })?;
    let mut written = Vec::new();
    let authority = DevAuthority::open(dir, &mut written)?;
    for node in (1..=nodes).filter_map(NodeId::new) {
        let TlsFiles { cert, key, .. } = TlsFiles::in_dir(dir, node);
        if both(&cert, &key)? {
            written.extend([Written::Kept(cert), Written::Kept(key)]);
            continue;
        }
        let made = authority.issue(node)?;
        create(&key, &made.key, true)?;
        create(&cert, &made.cert, false)?;
        written.extend([Written::Created(cert), Written::Created(key)]);
    }
    Ok(written)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name(AUTHORITY);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let from = now().saturating_sub(BACKDATED);
    (params.not_before, params.not_after) = (epoch + from, epoch + from + VALID);
    params
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn make(what: &str, source: rcgen::Error) -> DevCertsError {
    DevCertsError::Make { what: what.into(), source: source.into() }
}

/// Whether both files exist. An error if only one does.
fn both(cert: &Path, key: &Path) -> Result<bool, DevCertsError> {
    let there =
        |path: &Path| path.try_exists().map_err(|source| DevCertsError::File { path: path.into(), source });
    let half = |present: &Path, missing: &Path| DevCertsError::Half {
        present: present.into(),
        missing: missing.into(),
    };
    match (there(cert)?, there(key)?) {
        (true, false) => Err(half(cert, key)),
        (false, true) => Err(half(key, cert)),
        (both, _) => Ok(both),
    }
}

fn read(path: &Path) -> Result<String, DevCertsError> {
    let failed = |source| DevCertsError::File { path: path.into(), source };
    let mut text = String::new();
    File::open(path).map_err(failed)?.take(PEM_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Writes a new file and never replaces one. A secret file has mode 0600 from the moment it exists.
fn create(path: &Path, text: &str, secret: bool) -> Result<(), DevCertsError> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(if secret { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = secret;
    let written = options.open(path).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|source| DevCertsError::File { path: path.into(), source })
}
