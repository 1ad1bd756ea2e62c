//! Node identity and mutual TLS for Towline's transports.
//!
//! A node's certificate carries its id as a URI name among the subject alternative names: `towline://node/7`, in decimal,
//! exactly once. Other URIs and host names are ignored. One set of authorities is trusted in both directions. Connections
//! use TLS 1.3 with ring, without session resumption: each connection authenticates both sides anew, so renewed
//! certificates take effect with the next connection.
//!
//! This crate knows no revocation lists: the engine checks membership after the handshake. It opens no connection. No type
//! of rustls is public except in [`rustls_config`], which only transports use.
//!
//! ```no_run
//! use towline_tls::{TlsConfig, TlsFiles};
//!
//! # fn main() -> Result<(), towline_tls::TlsError> {
//! let files = TlsFiles { ca: "ca.pem".into(), cert: "node-1.pem".into(), key: "node-1.key".into() };
//! let tls = TlsConfig::from_files(files)?;
//! println!("this node is {}", tls.node());
//! // Later, when the files were renewed; connections made from now on use them.
//! tls.reload()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "dev-certs")]
pub mod dev;
mod error;
mod files;
mod identity;
mod material;
pub mod rustls_config;
mod verdict;
mod verifier;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use towline_engine::ids::NodeId;

pub use error::TlsError;
pub use files::{PEM_BYTES_MAX, TlsFiles};
pub use identity::{NODE_URI_PREFIX, node_uri};
use material::Material;

/// A node's identity and its trusted authorities. Clones share them: a [`reload`](Self::reload) affects all clones.
#[derive(Clone)]
pub struct TlsConfig {
    shared: Arc<Shared>,
}

struct Shared {
    files: Option<TlsFiles>,
    node: NodeId,
    material: RwLock<Arc<Material>>,
}

impl TlsConfig {
    /// Reads the files. Blocks.
    ///
    /// # Errors
    /// [`TlsError`] names the file. A certificate that is expired, or that none of the authorities has signed, is accepted
    /// with a warning in the log: peers decide, and they may trust other authorities and have other clocks.
    pub fn from_files(files: TlsFiles) -> Result<Self, TlsError> {
        let material = Material::read(&files)?;
        Ok(Self::new(material, Some(files)))
    }

    /// As [`from_files`](Self::from_files), from PEM bytes. Such an identity cannot be reloaded.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(ca: &[u8], cert: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        Ok(Self::new(Material::from_pem(ca, cert, key)?, None))
    }

    fn new(material: Material, files: Option<TlsFiles>) -> Self {
        let node = material.node;
        Self { shared: Arc::new(Shared { files, node, material: RwLock::new(Arc::new(material)) }) }
    }

    /// The node the certificate was issued to.
    pub fn node(&self) -> NodeId {
        self.shared.node
    }

    /// Reads the files again. New connections use their contents; existing connections go on unchanged. Blocks.
    ///
    /// # Errors
    /// [`TlsError`]; the old identity then stays in use. [`TlsError::NotFromFiles`] if this identity was made from bytes;
    /// [`TlsError::OtherNode`] if the files now name another node.
    pub fn reload(&self) -> Result<(), TlsError> {
        let files = self.shared.files.as_ref().ok_or(TlsError::NotFromFiles)?;
        let reloaded = Material::read(files).and_then(|material| {
            if material.node == self.shared.node {
                Ok(material)
            } else {
                Err(TlsError::OtherNode { ours: self.shared.node, theirs: material.node })
            }
        });
        match reloaded {
            Ok(material) => {
                *self.shared.material.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
                tracing::info!(node = %self.shared.node, "certificates reloaded");
                Ok(())
            }
            Err(error) => {
                tracing::error!(
                    node = %self.shared.node, error = &error as &dyn std::error::Error,
                    "certificates were not reloaded; those from before stay in use"
                );
                Err(error)
            }
        }
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.shared.material.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Never shows a key.
impl fmt::Debug for TlsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsConfig")
            .field("node", &self.shared.node)
            .field("files", &self.shared.files)
            .finish_non_exhaustive()
    }
}
