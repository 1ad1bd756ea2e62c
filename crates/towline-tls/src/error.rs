use std::path::PathBuf;

use towline_engine::ids::NodeId;
use towline_engine::transport::{BoxError, CertRefusal};

use crate::TlsFiles;

/// An identity could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The authorities are not usable: no certificate in the PEM, or one that is none.
    #[error("authorities{}: {detail}", of(file))]
    Authorities {
        /// Where, if they came from a file.
        file: Option<PathBuf>,
        /// What is wrong.
        detail: String,
    },
    /// The node's certificate is not usable.
    #[error("certificate{}: {detail}", of(file))]
    Certificate {
        /// Where, if it came from a file.
        file: Option<PathBuf>,
        /// What is wrong.
        detail: String,
    },
    /// The node's certificate names no node, or several.
    #[error("certificate{}: {refusal}: exactly one URI name such as towline://node/7 is needed", of(file))]
    Identity {
        /// Where, if it came from a file.
        file: Option<PathBuf>,
        /// What is wrong.
        #[source]
        refusal: CertRefusal,
    },
    /// The private key is not usable, or not that of the certificate.
    #[error("private key{}: {detail}", of(file))]
    Key {
        /// Where, if it came from a file.
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
    #[error("TLS settings")]
    Settings(#[source] BoxError),
}

impl TlsError {
    /// With the file it happened in.
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
