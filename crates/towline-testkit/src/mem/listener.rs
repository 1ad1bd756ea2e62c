//! Where nodes are reached.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use tokio::runtime::Handle;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{Inbound, LinkClosed, Listener, TransportError};

use super::{Shared, Wire};

/// The listening end at one address.
pub(crate) struct Door {
    pub(crate) inbound: Arc<dyn Inbound>,
    /// Where the receiving end of links runs.
    pub(crate) runtime: Handle,
    pub(crate) wires: Mutex<Vec<Weak<Wire>>>,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn add_wire(&self, wire: &Arc<Wire>) {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        wires.retain(|wire| wire.strong_count() > 0);
        wires.push(Arc::downgrade(wire));
    }

    fn close(&self) {
        let wires = std::mem::take(&mut *self.wires.lock().unwrap_or_else(PoisonError::into_inner));
        for wire in wires.iter().filter_map(Weak::upgrade) {
            wire.close(LinkClosed::ByPeer { detail: "the listener is closed".into() });
        }
    }
}

pub(crate) fn listen(
    net: &Arc<Shared>,
    at: &PeerAddr,
    inbound: Arc<dyn Inbound>,
) -> Result<Box<dyn Listener>, TransportError> {
    let mut state = net.lock();
    let (host, port) = at.authority().rsplit_once(':').unwrap_or((at.authority(), "0"));
    let mut port: u16 = port.parse().unwrap_or(0);
    if port == 0 {
        state.ports += 1;
        port = state.ports;
    }
    let name = format!("{host}:{port}");
    if state.doors.contains_key(&name) {
        return Err(TransportError::Bind { address: at.clone(), source: io::ErrorKind::AddrInUse.into() });
    }
    let door = Arc::new(Door { inbound, runtime: Handle::current(), wires: Mutex::default() });
    state.doors.insert(name.clone(), door.clone());
    Ok(Box::new(MemListener { net: net.clone(), name, port, door }))
}

struct MemListener {
    net: Arc<Shared>,
    name: String,
    port: u16,
    door: Arc<Door>,
}

#[async_trait]
impl Listener for MemListener {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    async fn shutdown(self: Box<Self>) {}
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.net.lock().doors.remove(&self.name);
        self.door.close();
    }
}
