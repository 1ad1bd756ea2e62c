//! The PEM files of an identity.

use std::path::{Path, PathBuf};

use towline_engine::ids::NodeId;

/// Bytes of one PEM file at most.
pub const PEM_BYTES_MAX: u64 = 1 << 20;

/// The PEM files of a node's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The trusted authorities. Several while one replaces another.
    pub ca: PathBuf,
    /// The node's certificate, followed by its intermediate certificates, if any.
    pub cert: PathBuf,
    /// The private key of the node's certificate: PKCS #8, SEC 1 or PKCS #1.
    pub key: PathBuf,
}

impl TlsFiles {
    /// The file names of development certificates: `ca.pem`, `node-N.pem`, `node-N.key`.
    pub fn in_dir(dir: &Path, node: NodeId) -> Self {
        Self {
            ca: dir.join("ca.pem"),
            cert: dir.join(format!("node-{node}.pem")),
            key: dir.join(format!("node-{node}.key")),
        }
    }
}
