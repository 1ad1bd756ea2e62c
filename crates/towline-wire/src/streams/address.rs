//! Resolves a peer's address to sockets.

use std::io;
use std::net::SocketAddr;

use towline_engine::ids::PeerAddr;
use towline_engine::transport::{ConnectError, TransportError};

/// Why there is no socket for an address.
#[derive(Debug)]
pub enum Unusable {
    /// The address may not be used. The text says why, and what to do.
    Forbidden(String),
    /// Its name does not resolve.
    Lookup(io::Error),
}

/// Resolves an address to at least one socket address. Its scheme must be `scheme`. A transport uses the result for its
/// checks and for the connection; resolving twice could give two results.
///
/// # Errors
/// [`Unusable`].
pub async fn resolve(address: &PeerAddr, scheme: &str) -> Result<Vec<SocketAddr>, Unusable> {
    if address.scheme() != scheme {
        let detail = format!("the scheme is `{}`, this transport serves `{scheme}`", address.scheme());
        return Err(Unusable::Forbidden(detail));
    }
    let sockets = tokio::net::lookup_host(address.authority()).await.map_err(Unusable::Lookup)?;
    let sockets: Vec<_> = sockets.collect();
    if sockets.is_empty() {
        return Err(Unusable::Lookup(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(sockets)
}

impl Unusable {
    /// Converts to the error of a dialler.
    pub fn dialling(self, address: &PeerAddr) -> ConnectError {
        let address = address.clone();
        match self {
            Self::Forbidden(detail) => ConnectError::Address { address, detail },
            Self::Lookup(source) => ConnectError::Unreachable { address, source: source.into() },
        }
    }

    /// Converts to the error of a listener.
    pub fn listening(self, address: &PeerAddr) -> TransportError {
        let address = address.clone();
        match self {
            Self::Forbidden(detail) => TransportError::Address { address, detail },
            Self::Lookup(source) => TransportError::Bind { address, source },
        }
    }
}
