//! The dialling side: one connection for each peer, shared by its lanes and transfers and closed with the last of them.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TokioRuntime};
use tokio::runtime::Handle;
use tokio::time::timeout;
use towline_engine::ids::{NodeId, PeerAddr};
use towline_engine::transport::{ConnectError, Peer};
use towline_tls::TlsConfig;
use towline_tls::rustls_config::{SERVER_NAME, Verdict, alpn, dialling};
use towline_wire::streams::resolve;

use crate::codes;
use crate::config::{QuicConfig, endpoint_config};

pub(crate) const SCHEME: &str = "quic";

/// One connection. Dropping the last handle closes it.
pub(crate) struct Dialled {
    pub(crate) connection: Connection,
    address: PeerAddr,
    to: NodeId,
    verdict: Verdict,
}

impl Drop for Dialled {
    fn drop(&mut self) {
        self.connection.close(codes::DONE, b"no lane is left");
    }
}

impl Dialled {
    /// Converts the end of the connection to a dialler's error. With TLS 1.3 the dialler learns only here that the peer
    /// refused its certificate.
    pub(crate) fn error(&self, error: ConnectionError) -> ConnectError {
        codes::learn(&self.verdict, &error);
        self.verdict
            .dialler_error(&self.address, self.to)
            .unwrap_or_else(|| codes::connect_error(&self.address, error))
    }

    /// As [`error`](Self::error); a protocol error with `detail` if the connection is still open.
    pub(crate) fn error_or(&self, error: Option<ConnectionError>, detail: &str) -> ConnectError {
        match error.or_else(|| self.connection.close_reason()) {
            Some(error) => self.error(error),
            None => ConnectError::Protocol { address: self.address.clone(), detail: detail.into() },
        }
    }
}

type Slot = Arc<tokio::sync::Mutex<Weak<Dialled>>>;

#[derive(Default)]
pub(crate) struct Dials {
    slots: Mutex<HashMap<(NodeId, PeerAddr), Slot>>,
    /// The runtime of the lanes.
    home: Mutex<Option<Handle>>,
}

impl Dials {
    /// The connection to a peer, for a lane.
    pub(crate) async fn of_lane(
        &self,
        config: &QuicConfig,
        tls: &TlsConfig,
        to: &Peer,
    ) -> Result<Arc<Dialled>, ConnectError> {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = Some(Handle::current());
        self.connection(config, tls, to).await
    }

    /// The connection to a peer, for a snapshot. The runtime that makes a connection also moves the bytes of all its streams.
    /// So this function makes the connection on the runtime of the lanes: the caller's runtime may have a lower priority.
    pub(crate) async fn of_snapshot(
        self: &Arc<Self>,
        config: &QuicConfig,
        tls: &TlsConfig,
        to: &Peer,
    ) -> Result<Arc<Dialled>, ConnectError> {
        let home = self.home.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(home) = home {
            let (dials, config, tls, to) = (Arc::clone(self), config.clone(), tls.clone(), to.clone());
            let dialled = home.spawn(async move { dials.connection(&config, &tls, &to).await });
            if let Ok(dialled) = dialled.await {
                return dialled;
            }
            // The runtime of the lanes has ended, and the lanes with it.
        }
        self.connection(config, tls, to).await
    }

    /// Returns the open connection to a peer, or makes one. Callers that come meanwhile wait for the same connection.
    async fn connection(
        &self,
        config: &QuicConfig,
        tls: &TlsConfig,
        to: &Peer,
    ) -> Result<Arc<Dialled>, ConnectError> {
        let slot = self.slot(to);
        let mut slot = slot.lock().await;
        if let Some(dialled) = slot.upgrade()
            && dialled.connection.close_reason().is_none()
        {
            return Ok(dialled);
        }
        let dialled = Arc::new(dial(config, tls, to).await?);
        *slot = Arc::downgrade(&dialled);
        Ok(dialled)
    }

    /// Returns the slot of a peer. Removes unused slots first: at most one stays for each connection or attempt.
    fn slot(&self, to: &Peer) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|dialled| dialled.strong_count() > 0)
        });
        Arc::clone(slots.entry((to.id, to.address.clone())).or_default())
    }
}

async fn dial(config: &QuicConfig, tls: &TlsConfig, to: &Peer) -> Result<Dialled, ConnectError> {
    let address = &to.address;
    let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
    let unusable = |detail| ConnectError::Address { address: address.clone(), detail };
    let sockets = resolve(address, SCHEME).await.map_err(|unusable| unusable.dialling(address))?;
    let mut last = None;
    for socket in sockets {
        let (rustls, verdict) = dialling(tls, to.id, &alpn()).map_err(|e| unusable(e.to_string()))?;
        let crypto = QuicClientConfig::try_from(rustls).map_err(|e| unusable(e.to_string()))?;
        let mut client = ClientConfig::new(Arc::new(crypto));
        client.transport_config(config.dialling());
        let endpoint = endpoint(socket).map_err(|e| unreachable(e.into()))?;
        let connecting =
            endpoint.connect_with(client, socket, SERVER_NAME).map_err(|e| unusable(e.to_string()))?;
        let address = address.clone();
        match timeout(config.handshake_timeout, connecting).await {
            Ok(Ok(connection)) => return Ok(Dialled { connection, address, to: to.id, verdict }),
            Ok(Err(error)) => {
                codes::learn(&verdict, &error);
                let refused = verdict.dialler_error(&address, to.id);
                let error = refused.unwrap_or_else(|| codes::connect_error(&address, error));
                // A refusal is final: the other addresses of the same name lead to the same node.
                if !matches!(error, ConnectError::Unreachable { .. }) {
                    return Err(error);
                }
                last = Some(error);
            }
            Err(late) => last = Some(unreachable(late.into())),
        }
    }
    Err(last.unwrap_or_else(|| unreachable("no address".into())))
}

/// Opens a socket for one connection, as TCP does. No peer's packets wait behind another peer's, and the socket closes with
/// its connection.
fn endpoint(to: SocketAddr) -> io::Result<Endpoint> {
    let from: SocketAddr = match (to, to.ip().is_loopback()) {
        (SocketAddr::V4(_), true) => (Ipv4Addr::LOCALHOST, 0).into(),
        (SocketAddr::V4(_), false) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        (SocketAddr::V6(_), true) => (Ipv6Addr::LOCALHOST, 0).into(),
        (SocketAddr::V6(_), false) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    Endpoint::new(endpoint_config(), None, UdpSocket::bind(from)?, Arc::new(TokioRuntime))
}
