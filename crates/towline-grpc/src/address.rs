//! Which addresses may be used: plain text stays on loopback unless asked for. TLS goes anywhere.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use towline_engine::ids::PeerAddr;
use towline_tls::TlsConfig;

/// The scheme of the addresses of this transport.
pub(crate) const SCHEME: &str = "grpc";

#[derive(Debug)]
pub(crate) enum Unusable {
    /// It may not be used; why, and the way out.
    Forbidden(String),
    /// Its name does not resolve.
    Lookup(io::Error),
}

/// TLS, or what is decided about plain text. It warns once.
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

    /// The sockets of an address. The name is resolved here and only here, so that what was checked is what is used.
    pub(crate) async fn resolve(&self, address: &PeerAddr) -> Result<Vec<SocketAddr>, Unusable> {
        if address.scheme() != SCHEME {
            let detail = format!("the scheme is `{}`, this transport serves `{SCHEME}`", address.scheme());
            return Err(Unusable::Forbidden(detail));
        }
        let sockets: Vec<_> =
            tokio::net::lookup_host(address.authority()).await.map_err(Unusable::Lookup)?.collect();
        if sockets.is_empty() {
            return Err(Unusable::Lookup(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
        }
        if self.tls.is_none()
            && let Some(open) = sockets.iter().find(|s| !s.ip().is_loopback())
        {
            if !self.plaintext_off_loopback {
                return Err(Unusable::Forbidden(format!(
                    "{} is not a loopback address and this transport speaks plain text; give it certificates, or set \
                     `allow_plaintext_off_loopback` if everybody on that network may read and write the log",
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
