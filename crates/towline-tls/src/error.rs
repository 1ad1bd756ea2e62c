use std::path::PathBuf;

use towline_engine::ids::NodeId;
use towline_engine::transport::{BoxError, CertRefusal};

use crate::files::TlsFiles;

/// Why an identity could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// The authorities are not usable: the PEM has no certificate, or an invalid one.
    #[error("authorities{}: {detail}", of(file))]
    Authorities {
        /// The file, if there is one.
        file: Option<PathBuf>,
        /// What is wrong.
        detail: String,
    },
    /// The node's certificate is not usable.
    #[error("certificate{}: {detail}", of(file))]
    Certificate {
        /// The file, if there is one.
        file: Option<PathBuf>,
        /// What is wrong.
        detail: String,
    },
    /// The node's certificate names no node, or several.
    #[error("certificate{}: {refusal}: exactly one URI name such as towline://node/7 is needed", of(file))]
    Identity {
        /// The file, if there is one.
        file: Option<PathBuf>,
        /// What is wrong.
        #[source]
        refusal: CertRefusal,
    },
    /// The private key is not usable, or does not match the certificate.
    #[error("private key{}: {detail}", of(file))]
    Key {
        /// The file, if there is one.
        file: Option<PathBuf>,
        /// What is wrong. Never a part of the key.
        detail: String,
    },
    /// The files hold another node's certificate than before.
    #[error("the certificate is of node {theirs}, but this is node {ours}")]
    OtherNode {
        /// The node so far.
        ours: NodeId,
        /// The node in the file.
        theirs: NodeId,
    },
    /// There are no files to reload.
    #[error("made from bytes: there is no file to reload")]
    NotFromFiles,
    /// The TLS library does not accept the settings. Not expected.
    #[error("the TLS settings cannot be used")]
    Settings(#[source] BoxError),
}

impl TlsError {
    /// Adds the name of the file.
    pub(crate) fn within(mut self, files: &TlsFiles) -> Self {
        match &mut self {
            Self::Authorities { file, .. } => *file = Some(files.ca.clone()),
            Self::Certificate { file, .. } | Self::Identity { file, .. } => *file = Some(files.cert.clone()),
            Self::Key { file, .. } => *file = Some(files.key.clone()),
            _ => {}
        }
        self
    }
}

fn of(file: &Option<PathBuf>) -> String {
    file.as_ref().map_or_else(String::new, |path| format!(" in {}", path.display()))
}
