//! One lane between two nodes.

use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    ConnectError, Connected, DispatchError, Hello, Link, LinkClosed, LinkFeedback, MESSAGE_BYTES_MAX, Peer,
    PeerSession, Welcome,
};

use super::listener::MemEndpoint;
use super::{Fault, LINK_BATCHES_MAX, MemNetShared, Wire};
use crate::sync::lock;

/// An admitted dialler.
pub(crate) struct Admitted {
    pub(crate) endpoint: Arc<MemEndpoint>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) session: Arc<dyn PeerSession>,
    pub(crate) welcome: Welcome,
}

/// The handshake. `lane` is `None` for a snapshot.
pub(crate) async fn handshake(
    net: &Arc<MemNetShared>,
    to: &Peer,
    hello: &Hello,
    lane: Option<Lane>,
) -> Result<Admitted, ConnectError> {
    let unreachable = |kind: io::ErrorKind| ConnectError::Unreachable {
        address: to.address.clone(),
        source: io::Error::from(kind).into(),
    };
    // The answer needs the way back.
    match net.fault(hello.from, to.id).or(net.fault(to.id, hello.from)) {
        Some(Fault::Cut) => return Err(unreachable(io::ErrorKind::ConnectionRefused)),
        Some(Fault::Swallow | Fault::Stall) => return pending().await,
        Some(Fault::Delay(time)) => sleep(time).await,
        None | Some(Fault::Rate(_)) => {}
    }
    let endpoint = net.lock().endpoints.get(to.address.authority()).cloned();
    let endpoint = endpoint.ok_or_else(|| unreachable(io::ErrorKind::ConnectionRefused))?;
    let wire = Arc::new(Wire { from: hello.from, to: to.id, lane, end: watch::Sender::new(None) });
    if let Err(refusal) = endpoint.add_wire(&wire) {
        endpoint.inbound.refused(&refusal);
        return Err(ConnectError::Refused(refusal));
    }
    // A task of the listener, so that a dialler that gives up does not wait for the answer.
    let (inbound, hello) = (endpoint.inbound.clone(), hello.clone());
    let admitted = endpoint.runtime.spawn(async move { inbound.admit(&hello, None) });
    let session = admitted.await.map_err(|_| unreachable(io::ErrorKind::ConnectionReset))?;
    let session = session.map_err(ConnectError::Refused)?;
    if wire.end.borrow().is_some() {
        return Err(unreachable(io::ErrorKind::ConnectionReset));
    }
    let welcome = session.welcome();
    if welcome.node != to.id {
        let detail = format!("node {} at {}, where node {} was expected", welcome.node, to.address, to.id);
        return Err(ConnectError::WrongPeer { detail });
    }
    net.add_wire(&wire);
    Ok(Admitted { endpoint, wire, session, welcome })
}

pub(crate) async fn connect(
    net: &Arc<MemNetShared>,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Result<Connected, ConnectError> {
    let Admitted { endpoint, wire, session, welcome } = handshake(net, to, hello, Some(lane)).await?;
    let (sender, batches) = mpsc::channel(LINK_BATCHES_MAX);
    let receiver = LinkReceiver { net: net.clone(), wire: wire.clone(), lane, session, batches };
    let running = endpoint.enter();
    let (over, here) = (ReceiverWire(wire.clone()), Arc::new(Mutex::new(Some(feedback))));
    // If the listener's runtime shuts down, dropping the task breaks the link.
    let back = Arc::downgrade(&here);
    endpoint.runtime.spawn(async move {
        let (_running, _over) = (running, over);
        receiver.run(&back).await;
    });
    // Reports the end of the link from the dialler's runtime, also while the receiver is blocked. If that runtime shuts
    // down, dropping the feedback reports it.
    let mut end = wire.end.subscribe();
    tokio::spawn(async move {
        let cause = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        if let Some(feedback) = lock(&here).take() {
            feedback.closed(cause.unwrap_or(LinkClosed::Abandoned));
        }
    });
    Ok(Connected { link: Box::new(MemLink { wire, sender: Some(sender) }), welcome })
}

/// Breaks the wire when the receiver ends.
struct ReceiverWire(Arc<Wire>);

impl Drop for ReceiverWire {
    fn drop(&mut self) {
        self.0.close(LinkClosed::Broken { detail: "the receiver is gone".into() });
    }
}

type WeakFeedback = Weak<Mutex<Option<LinkFeedback>>>;

struct MemLink {
    wire: Arc<Wire>,
    /// `None` once a dispatch failed or was dropped.
    sender: Option<mpsc::Sender<Batch>>,
}

#[async_trait]
impl Link for MemLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        let sender = self.sender.take().ok_or(DispatchError::Closed)?;
        let largest = batch.envelopes.iter().map(|e| e.message.payload_bytes()).max().unwrap_or(0);
        if largest > MESSAGE_BYTES_MAX {
            return Err(DispatchError::TooLarge { bytes: largest, bytes_max: MESSAGE_BYTES_MAX });
        }
        let mut end = self.wire.end.subscribe();
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => return Err(DispatchError::Closed),
            sent = sender.send(batch) => sent.map_err(|_| DispatchError::Closed)?,
        }
        self.sender = Some(sender);
        Ok(())
    }
}

impl Drop for MemLink {
    fn drop(&mut self) {
        self.wire.close(LinkClosed::Abandoned);
    }
}

/// The receiving end of a link.
struct LinkReceiver {
    net: Arc<MemNetShared>,
    wire: Arc<Wire>,
    lane: Lane,
    session: Arc<dyn PeerSession>,
    batches: mpsc::Receiver<Batch>,
}

impl LinkReceiver {
    async fn run(mut self, back: &WeakFeedback) {
        let mut end = self.wire.end.subscribe();
        let (wire, net) = (self.wire.clone(), self.net.clone());
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => {}
            () = net.silence(&wire) => wire.close(LinkClosed::Broken { detail: "keep-alive: no answer".into() }),
            cause = self.receive(back) => wire.close(cause),
        }
    }

    async fn receive(&mut self, back: &WeakFeedback) -> LinkClosed {
        loop {
            let batch = match self.net.next(&self.wire, &mut self.batches, Batch::payload_bytes).await {
                Ok(Some(batch)) => batch,
                Ok(None) => return LinkClosed::Abandoned,
                Err(detail) => return LinkClosed::Broken { detail: detail.into() },
            };
            match self.session.deliver(self.lane, batch) {
                Ok(nacks) => {
                    if let Some(here) = back.upgrade()
                        && let Some(feedback) = &*lock(&here)
                    {
                        nacks.into_iter().for_each(|nack| feedback.nack(nack));
                    }
                }
                Err(violation) => return LinkClosed::ByPeer { detail: violation.detail },
            }
        }
    }
}
