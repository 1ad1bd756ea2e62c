//! One lane between two nodes.

use std::future::pending;
use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    ConnectError, Connected, DispatchError, Hello, Link, LinkClosed, LinkFeedback, MESSAGE_BYTES_MAX, Peer,
    PeerSession,
};

use super::{Fault, LINK_BATCHES_MAX, Shared, Wire};

pub(crate) async fn connect(
    net: &Arc<Shared>,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Result<Connected, ConnectError> {
    let unreachable = |kind: io::ErrorKind| ConnectError::Unreachable {
        address: to.address.clone(),
        source: io::Error::from(kind).into(),
    };
    match net.wrong(hello.from, to.id).into_iter().chain(net.wrong(to.id, hello.from)).next() {
        // An answer has to come back too.
        Some(Fault::Cut) => return Err(unreachable(io::ErrorKind::ConnectionRefused)),
        Some(Fault::Swallow | Fault::Stall) => return pending().await,
        Some(Fault::Delay(time)) => sleep(time).await,
        None => {}
    }
    let door = net.lock().doors.get(to.address.authority()).cloned();
    let door = door.ok_or_else(|| unreachable(io::ErrorKind::ConnectionRefused))?;
    let session = door.inbound.admit(hello, None).map_err(ConnectError::Refused)?;
    let welcome = session.welcome();
    let wire = Arc::new(Wire { from: hello.from, to: to.id, end: watch::Sender::new(None) });
    net.add_wire(&wire);
    door.add_wire(&wire);
    let (sender, batches) = mpsc::channel(LINK_BATCHES_MAX);
    let receiver = Receiver { net: net.clone(), wire: wire.clone(), lane, session, batches };
    door.runtime.spawn(async move {
        // Owned by the task, so that a runtime that is shut down tells of the end by dropping it.
        let feedback = feedback;
        let cause = receiver.run(&feedback).await;
        feedback.closed(cause);
    });
    Ok(Connected { link: Box::new(MemLink { wire, sender: Some(sender) }), welcome })
}

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

/// The receiving end.
struct Receiver {
    net: Arc<Shared>,
    wire: Arc<Wire>,
    lane: Lane,
    session: Arc<dyn PeerSession>,
    batches: mpsc::Receiver<Batch>,
}

impl Receiver {
    async fn run(mut self, feedback: &LinkFeedback) -> LinkClosed {
        let mut end = self.wire.end.subscribe();
        let over = async { end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone()) };
        let wire = self.wire.clone();
        let cause = tokio::select! {
            biased;
            cause = over => cause,
            cause = self.receive(feedback) => Some(cause),
        };
        let cause = cause.unwrap_or(LinkClosed::Abandoned);
        wire.close(cause.clone());
        cause
    }

    async fn receive(&mut self, feedback: &LinkFeedback) -> LinkClosed {
        let mut changed = self.net.watch();
        let mut swallowed = false;
        loop {
            changed.borrow_and_update();
            let fault = self.net.wrong(self.wire.from, self.wire.to);
            match fault {
                // A stream cannot have a hole.
                None | Some(Fault::Delay(_)) if swallowed => {
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
            if let Some(Fault::Delay(time)) = fault {
                sleep(time).await;
            }
            match self.session.deliver(self.lane, batch) {
                Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
                Err(violation) => return LinkClosed::Violation { detail: violation.detail },
            }
        }
    }
}
