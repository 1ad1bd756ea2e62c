use std::sync::Arc;

use tokio::sync::watch;
use towline_engine::transport::{LinkClosed, LinkEvents, LinkFeedback, Nack};

use super::Gate;

/// What a link reported to its dialler: nacks, and why it ended.
#[derive(Debug, Clone)]
pub struct LinkLog {
    events: watch::Receiver<(Vec<Nack>, Vec<LinkClosed>)>,
    /// Blocks the reporting transport after each recorded nack.
    pub nack_gate: Gate,
}

impl LinkLog {
    /// An empty log, and the feedback for `Transport::connect` that fills it.
    pub fn new() -> (Self, LinkFeedback) {
        let (sender, events) = watch::channel(Default::default());
        let log = Self { events, nack_gate: Gate::default() };
        let recorder = LinkRecorder { sender, gate: log.nack_gate.clone() };
        (log, LinkFeedback::new(Arc::new(recorder)))
    }

    /// The nacks so far, in order.
    pub fn nacks(&self) -> Vec<Nack> {
        self.events.borrow().0.clone()
    }

    /// Waits for `count` nacks and returns all so far.
    pub async fn wait_nacks(&self, count: usize) -> Vec<Nack> {
        let _ = self.events.clone().wait_for(|(nacks, _)| nacks.len() >= count).await;
        self.nacks()
    }

    /// The causes that were reported so far. A correct transport reports one.
    pub fn causes(&self) -> Vec<LinkClosed> {
        self.events.borrow().1.clone()
    }

    /// Whether the transport reported an end.
    pub fn is_closed(&self) -> bool {
        !self.events.borrow().1.is_empty()
    }

    /// Waits until the transport drops the feedback, and returns the only cause.
    ///
    /// # Panics
    /// If the transport reported no cause, or more than one.
    #[allow(clippy::panic)]
    pub async fn closed(&self) -> LinkClosed {
        let causes = self.wait_causes().await;
        match &causes[..] {
            [cause] => cause.clone(),
            other => panic!("a link reports one cause, not {other:?}"),
        }
    }

    /// Waits until the transport drops the feedback, and returns all causes.
    pub async fn wait_causes(&self) -> Vec<LinkClosed> {
        let mut events = self.events.clone();
        while events.changed().await.is_ok() {}
        self.causes()
    }
}

struct LinkRecorder {
    sender: watch::Sender<(Vec<Nack>, Vec<LinkClosed>)>,
    gate: Gate,
}

impl LinkEvents for LinkRecorder {
    fn nack(&self, nack: Nack) {
        self.sender.send_modify(|(nacks, _)| nacks.push(nack));
        self.gate.pass_blocking();
    }

    fn closed(&self, cause: LinkClosed) {
        self.sender.send_modify(|(_, causes)| causes.push(cause));
    }
}
