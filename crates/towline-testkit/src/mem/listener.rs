//! Listeners of the network.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::watch;
use towline_engine::ids::PeerAddr;
use towline_engine::transport::{Inbound, LinkClosed, Listener, Refusal, TransportError};

use super::{LISTENER_LINKS_MAX, MemNetShared, Wire};
use crate::sync::lock;

/// The listening end at one address.
pub(crate) struct MemEndpoint {
    pub(crate) inbound: Arc<dyn Inbound>,
    /// Runs the receiving ends.
    pub(crate) runtime: Handle,
    /// `None` once the listener was dropped.
    wires: Mutex<Option<Vec<Weak<Wire>>>>,
    /// The number of running receiving ends.
    running: watch::Sender<usize>,
}

/// A running receiving end, for which a shutdown waits.
pub(crate) struct RunningReceiver(Arc<MemEndpoint>);

impl Drop for RunningReceiver {
    fn drop(&mut self) {
        self.0.running.send_modify(|count| *count -= 1);
    }
}

impl fmt::Debug for MemEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemEndpoint").finish_non_exhaustive()
    }
}

impl MemEndpoint {
    /// Adds a link, unless the listener is full or was dropped.
    pub(crate) fn add_wire(&self, wire: &Arc<Wire>) -> Result<(), Refusal> {
        let mut wires = lock(&self.wires);
        let wires = wires.as_mut().ok_or(Refusal::ShuttingDown)?;
        wires.retain(|wire| wire.upgrade().is_some_and(|wire| wire.end.borrow().is_none()));
        if wires.len() >= LISTENER_LINKS_MAX {
            return Err(Refusal::TooManyConnections);
        }
        wires.push(Arc::downgrade(wire));
        Ok(())
    }

    pub(crate) fn enter(self: &Arc<Self>) -> RunningReceiver {
        self.running.send_modify(|count| *count += 1);
        RunningReceiver(self.clone())
    }

    fn close(&self) {
        let wires = lock(&self.wires).take();
        for wire in wires.iter().flatten().filter_map(Weak::upgrade) {
            wire.close(LinkClosed::ByPeer { detail: "the listener is closed".into() });
        }
    }
}

pub(crate) fn listen(
    net: &Arc<MemNetShared>,
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
    if state.endpoints.contains_key(&name) {
        return Err(TransportError::Bind { address: at.clone(), source: io::ErrorKind::AddrInUse.into() });
    }
    let endpoint = Arc::new(MemEndpoint {
        inbound,
        runtime: Handle::current(),
        wires: Mutex::new(Some(Vec::new())),
        running: watch::Sender::new(0),
    });
    state.endpoints.insert(name.clone(), endpoint.clone());
    Ok(Box::new(MemListener { net: net.clone(), name, port, endpoint }))
}

struct MemListener {
    net: Arc<MemNetShared>,
    name: String,
    port: u16,
    endpoint: Arc<MemEndpoint>,
}

#[async_trait]
impl Listener for MemListener {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    async fn shutdown(self: Box<Self>) {
        let mut running = self.endpoint.running.subscribe();
        drop(self);
        let _ = running.wait_for(|count| *count == 0).await;
    }
}

impl Drop for MemListener {
    fn drop(&mut self) {
        self.net.lock().endpoints.remove(&self.name);
        self.endpoint.close();
    }
}
