//! Addresses: `quic://host:port`.

use std::io;
use std::net::SocketAddr;

use towline_engine::ids::PeerAddr;

/// The scheme of the addresses of this transport.
pub(crate) const SCHEME: &str = "quic";

#[derive(Debug)]
pub(crate) enum Unusable {
    /// It is not for this transport.
    Forbidden(String),
    /// Its name does not resolve.
    Lookup(io::Error),
}

pub(crate) async fn resolve(address: &PeerAddr) -> Result<Vec<SocketAddr>, Unusable> {
    if address.scheme() != SCHEME {
        let detail = format!("the scheme is `{}`, this transport serves `{SCHEME}`", address.scheme());
        return Err(Unusable::Forbidden(detail));
    }
    let sockets = tokio::net::lookup_host(address.authority()).await.map_err(Unusable::Lookup)?;
    let sockets: Vec<_> = sockets.collect();
    if sockets.is_empty() {
        return Err(Unusable::Lookup(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(sockets)
}
