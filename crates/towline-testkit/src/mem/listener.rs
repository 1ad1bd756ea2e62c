//! Where nodes are reached.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::watch;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{Inbound, LinkClosed, Listener, Refusal, TransportError};

use super::{LISTENER_LINKS_MAX, Shared, Wire};

/// The listening end at one address.
pub(crate) struct Door {
    pub(crate) inbound: Arc<dyn Inbound>,
    /// Where the receiving end of links runs.
    pub(crate) runtime: Handle,
    /// `None` once the listener is gone.
    wires: Mutex<Option<Vec<Weak<Wire>>>>,
    /// How many receiving ends still run.
    inside: watch::Sender<usize>,
}

/// A receiving end that runs: a shutdown waits for it.
pub(crate) struct Inside(Arc<Door>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.send_modify(|count| *count -= 1);
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

impl Door {
    /// Refuses if there is no room for one more, or no listener.
    pub(crate) fn add_wire(&self, wire: &Arc<Wire>) -> Result<(), Refusal> {
        let mut wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        let wires = wires.as_mut().ok_or(Refusal::ShuttingDown)?;
        wires.retain(|wire| wire.upgrade().is_some_and(|wire| wire.end.borrow().is_none()));
        if wires.len() >= LISTENER_LINKS_MAX {
            return Err(Refusal::TooManyConnections);
        }
        wires.push(Arc::downgrade(wire));
        Ok(())
    }

    pub(crate) fn enter(self: &Arc<Self>) -> Inside {
        self.inside.send_modify(|count| *count += 1);
        Inside(self.clone())
    }

    fn close(&self) {
        let wires = self.wires.lock().unwrap_or_else(PoisonError::into_inner).take();
        for wire in wires.iter().flatten().filter_map(Weak::upgrade) {
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
    let door = Arc::new(Door {
        inbound,
        runtime: Handle::current(),
        wires: Mutex::new(Some(Vec::new())),
        inside: watch::Sender::new(0),
    });
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

    async fn shutdown(self: Box<Self>) {
        let mut inside = self.door.inside.subscribe();
        drop(self);
        // The door outlives its listener as long as somebody is inside.
        let _ = inside.wait_for(|count| *count == 0).await;
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.net.lock().doors.remove(&self.name);
        self.door.close();
    }
}
