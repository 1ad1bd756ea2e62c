//! One lane between two nodes.

use std::future::pending;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    ConnectError, Connected, DispatchError, Hello, Link, LinkClosed, LinkFeedback, MESSAGE_BYTES_MAX, Peer,
    PeerSession, Welcome,
};

use super::listener::Door;
use super::{Fault, LINK_BATCHES_MAX, Shared, Wire};

/// A dialler that was let in.
pub(crate) struct Knock {
    pub(crate) door: Arc<Door>,
    pub(crate) wire: Arc<Wire>,
    pub(crate) session: Arc<dyn PeerSession>,
    pub(crate) welcome: Welcome,
}

/// The handshake. `lane` is `None` for a snapshot.
pub(crate) async fn knock(
    net: &Arc<Shared>,
    to: &Peer,
    hello: &Hello,
    lane: Option<Lane>,
) -> Result<Knock, ConnectError> {
    let unreachable = |kind: io::ErrorKind| ConnectError::Unreachable {
        address: to.address.clone(),
        source: io::Error::from(kind).into(),
    };
    match net.wrong(hello.from, to.id).into_iter().chain(net.wrong(to.id, hello.from)).next() {
        // An answer has to come back too.
        Some(Fault::Cut) => return Err(unreachable(io::ErrorKind::ConnectionRefused)),
        Some(Fault::Swallow | Fault::Stall) => return pending().await,
        Some(Fault::Delay(time)) => sleep(time).await,
        None | Some(Fault::Rate(_)) => {}
    }
    let door = net.lock().doors.get(to.address.authority()).cloned();
    let door = door.ok_or_else(|| unreachable(io::ErrorKind::ConnectionRefused))?;
    let wire = Arc::new(Wire { from: hello.from, to: to.id, lane, end: watch::Sender::new(None) });
    if let Err(refusal) = door.add_wire(&wire) {
        door.inbound.refused(&refusal);
        return Err(ConnectError::Refused(refusal));
    }
    // Over there, so that a dialler that gives up does not have to wait for the answer.
    let (inbound, hello) = (door.inbound.clone(), hello.clone());
    let admitted = door.runtime.spawn(async move { inbound.admit(&hello, None) });
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
    Ok(Knock { door, wire, session, welcome })
}

pub(crate) async fn connect(
    net: &Arc<Shared>,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Result<Connected, ConnectError> {
    let Knock { door, wire, session, welcome } = knock(net, to, hello, Some(lane)).await?;
    let (sender, batches) = mpsc::channel(LINK_BATCHES_MAX);
    let receiver = Receiver { net: net.clone(), wire: wire.clone(), lane, session, batches };
    let inside = door.enter();
    let (over, here) = (Held(wire.clone()), Arc::new(Mutex::new(Some(feedback))));
    // The listener's runtime. If it is shut down, the link breaks with the task.
    let back = Arc::downgrade(&here);
    door.runtime.spawn(async move {
        let (_inside, _over) = (inside, over);
        receiver.run(&back).await;
    });
    // Ours: what the end of the link is told by, whatever keeps the receiver. If it is shut down, dropping tells.
    let mut end = wire.end.subscribe();
    tokio::spawn(async move {
        let cause = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        let feedback = here.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(feedback) = feedback {
            feedback.closed(cause.unwrap_or(LinkClosed::Abandoned));
        }
    });
    Ok(Connected { link: Box::new(MemLink { wire, sender: Some(sender) }), welcome })
}

/// The receiver's hold on the wire.
struct Held(Arc<Wire>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.close(LinkClosed::Broken { detail: "the receiver is gone".into() });
    }
}

type Back = Weak<Mutex<Option<LinkFeedback>>>;

struct MemLink {
    wire: Arc<Wire>,
    /// `None` once a dispatch failed or was dropped midway.
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

/// How long `bytes` take at a rate.
pub(crate) fn time_of(bytes: usize, rate: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

/// The receiving end.
struct Receiver {
    net: Arc<Shared>,
    wire: Arc<Wire>,
    lane: Lane,
    session: Arc<dyn PeerSession>,
    batches: mpsc::Receiver<Batch>,
}

impl Receiver {
    async fn run(mut self, back: &Back) {
        let mut end = self.wire.end.subscribe();
        let (wire, net) = (self.wire.clone(), self.net.clone());
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => {}
            () = net.silence(&wire) => wire.close(LinkClosed::Broken { detail: "keep-alive: no answer".into() }),
            cause = self.receive(back) => wire.close(cause),
        }
    }

    async fn receive(&mut self, back: &Back) -> LinkClosed {
        let mut changed = self.net.watch();
        let mut swallowed = false;
        loop {
            changed.borrow_and_update();
            let fault = self.net.wrong(self.wire.from, self.wire.to);
            match fault {
                // A stream cannot have a hole.
                None | Some(Fault::Delay(_) | Fault::Rate(_)) if swallowed => {
                    return LinkClosed::Broken { detail: "lost in a black hole".into() };
                }
                Some(Fault::Cut) => return LinkClosed::Broken { detail: "cut".into() },
                Some(Fault::Stall) => {
                    let _ = changed.changed().await;
                    continue;
                }
                _ => {}
            }
            let batch = tokio::select! {
                biased;
                _ = changed.changed() => continue,
                batch = self.batches.recv() => batch,
            };
            let Some(batch) = batch else { return LinkClosed::Abandoned };
            if fault == Some(Fault::Swallow) {
                swallowed = true;
                continue;
            }
            match fault {
                Some(Fault::Delay(time)) => sleep(time).await,
                Some(Fault::Rate(rate)) => sleep(time_of(batch.payload_bytes(), rate)).await,
                _ => {}
            }
            self.net.carry(&self.wire, batch.payload_bytes());
            match self.session.deliver(self.lane, batch) {
                Ok(nacks) => {
                    if let Some(here) = back.upgrade()
                        && let Some(feedback) = &*here.lock().unwrap_or_else(PoisonError::into_inner)
                    {
                        nacks.into_iter().for_each(|nack| feedback.nack(nack));
                    }
                }
                Err(violation) => return LinkClosed::ByPeer { detail: violation.detail },
            }
        }
    }
}
