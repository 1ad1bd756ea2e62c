//! Checks addresses: plain text is limited to loopback unless the settings allow more. TLS works on any address.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use towline_engine::ids::PeerAddr;
use towline_tls::TlsConfig;
use towline_wire::streams::{Unusable, resolve};

pub(crate) const SCHEME: &str = "grpc";

/// The TLS settings, or the policy for plain text. Warns once about plain text beyond loopback.
#[derive(Debug)]
pub(crate) struct Security {
    pub(crate) tls: Option<TlsConfig>,
    plaintext_off_loopback: bool,
    warned: AtomicBool,
}

impl Security {
    pub(crate) fn new(tls: Option<TlsConfig>, plaintext_off_loopback: bool) -> Self {
        Self { tls, plaintext_off_loopback, warned: AtomicBool::new(false) }
    }

    /// Resolves an address, if it may be used.
    pub(crate) async fn resolve(&self, address: &PeerAddr) -> Result<Vec<SocketAddr>, Unusable> {
        let sockets = resolve(address, SCHEME).await?;
        if self.tls.is_none()
            && let Some(open) = sockets.iter().find(|s| !s.ip().is_loopback())
        {
            if !self.plaintext_off_loopback {
                return Err(Unusable::Forbidden(format!(
                    "{} is not a loopback address and this transport speaks plain text; give it certificates, or set \
                     `allow_plaintext_off_loopback` if every host on that network may read and write the log",
                    open.ip()
                )));
            }
            if !self.warned.swap(true, Ordering::Relaxed) {
                tracing::warn!(%address, "plain text beyond loopback: traffic is neither private nor authenticated");
            }
        }
        Ok(sockets)
    }
}
