use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tokio::sync::watch;
use towline_engine::ids::NodeId;
use towline_engine::message::{Batch, Envelope, Lane};
use towline_engine::transport::{
    CertIdentity, Hello, Inbound, Nack, PROTOCOL_VERSION, PeerSession, ProgressCell, Refusal, SinkAnswer,
    SnapshotOffer, SnapshotRefusal, SnapshotSink, TransferPhase, TransferProgress, Violation, Welcome,
};

use super::sink::{RecordingSink, SinkLog, SinkScript};
use super::{Gate, incarnation};
use crate::sync::lock;

/// What a [`RecordingInbound`] recorded.
#[derive(Debug, Default)]
pub struct InboundLog {
    /// Calls of `admit`, whatever their outcome.
    pub asked: Vec<(Hello, Option<CertIdentity>)>,
    /// What `admit` refused, and what the transport reported to `refused`.
    pub refused: VecDeque<Refusal>,
    /// Delivered batches.
    pub delivered: VecDeque<Delivered>,
    /// Nacks that the transport reported as dropped.
    pub nacks_dropped: usize,
    /// Sessions that the transport still holds.
    pub sessions: usize,
    /// Offers, with their sender.
    pub offers: Vec<(NodeId, SnapshotOffer)>,
    /// Offers that have no answer yet and were not cancelled.
    pub deciding: usize,
    /// Accepted transfers.
    pub transfers: Vec<SinkLog>,
}

/// A batch that arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    /// The peer of the session.
    pub peer: NodeId,
    /// Where it arrived.
    pub lane: Lane,
    /// What arrived.
    pub batch: Batch,
}

impl InboundLog {
    fn messages(&self, lane: Lane) -> impl Iterator<Item = &Envelope> {
        let batches = self.delivered.iter().filter(move |delivered| delivered.lane == lane);
        batches.flat_map(|delivered| &delivered.batch.envelopes)
    }

    /// The messages of a lane, in order.
    pub fn envelopes(&self, lane: Lane) -> Vec<Envelope> {
        self.messages(lane).cloned().collect()
    }

    /// The indexes of the messages of a lane, in order.
    pub fn indexes(&self, lane: Lane) -> Vec<u64> {
        self.messages(lane).map(|envelope| envelope.message.index).collect()
    }

    /// The number of messages of a lane.
    pub fn count(&self, lane: Lane) -> usize {
        self.messages(lane).count()
    }
}

/// How a [`RecordingInbound`] answers an offer.
pub enum OfferReply {
    /// Takes the snapshot into a recording sink.
    Accept(SinkScript),
    /// Takes the snapshot into another sink, from its start.
    Into(Box<dyn SnapshotSink>),
    /// Has applied a newer state, up to this commit index.
    AlreadyHave(u64),
    /// Refuses.
    Refuse(SnapshotRefusal),
}

type OnAdmit = dyn Fn(&Hello, Option<&CertIdentity>) -> Result<(), Refusal> + Send + Sync;
type OnDeliver = dyn Fn(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send + Sync;
type OnOffer = dyn Fn(&SnapshotOffer) -> OfferReply + Send + Sync;

struct InboundHooks {
    admit: Arc<OnAdmit>,
    deliver: Arc<OnDeliver>,
    offer: Arc<OnOffer>,
}

/// The progress that a [`RecordingInbound`] shows for each offer before it answers.
pub const DECIDING: TransferProgress = TransferProgress { acked: 3, phase: TransferPhase::Verifying };

/// The engine's side of a listener: records every call, and answers as its hooks and gates say.
///
/// By default it admits each peer that speaks [`PROTOCOL_VERSION`], takes every batch and accepts every offer. Clones
/// share one log.
#[derive(Clone)]
pub struct RecordingInbound {
    node: NodeId,
    log: watch::Sender<InboundLog>,
    hooks: Arc<Mutex<InboundHooks>>,
    /// Blocks `admit`.
    pub admit_gate: Gate,
    /// Blocks `deliver` on the append lane, before the hook.
    pub append_gate: Gate,
    /// Holds the answers to offers.
    pub offer_gate: Gate,
}

impl fmt::Debug for RecordingInbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordingInbound").field("node", &self.node).finish_non_exhaustive()
    }
}

impl RecordingInbound {
    /// The inbound of `node`.
    pub fn new(node: NodeId) -> Self {
        let hooks = InboundHooks {
            admit: Arc::new(|_, _| Ok(())),
            deliver: Arc::new(|_, _| Ok(Vec::new())),
            offer: Arc::new(|_| OfferReply::Accept(SinkScript::default())),
        };
        Self {
            node,
            log: watch::Sender::default(),
            hooks: Arc::new(Mutex::new(hooks)),
            admit_gate: Gate::default(),
            append_gate: Gate::default(),
            offer_gate: Gate::default(),
        }
    }

    /// The argument for `Transport::listen`.
    pub fn inbound(&self) -> Arc<dyn Inbound> {
        Arc::new(self.clone())
    }

    /// What an admitted dialler gets as the answer to its hello.
    pub fn welcome(&self) -> Welcome {
        let incarnation = incarnation(self.node.as_u64());
        Welcome { node: self.node, incarnation, protocol: PROTOCOL_VERSION }
    }

    /// Decides about diallers that speak [`PROTOCOL_VERSION`]; others are refused before.
    pub fn on_admit(
        &self,
        hook: impl Fn(&Hello, Option<&CertIdentity>) -> Result<(), Refusal> + Send + Sync + 'static,
    ) {
        lock(&self.hooks).admit = Arc::new(hook);
    }

    /// Answers batches.
    pub fn on_deliver(
        &self,
        hook: impl Fn(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send + Sync + 'static,
    ) {
        lock(&self.hooks).deliver = Arc::new(hook);
    }

    /// Answers offers.
    pub fn on_offer(&self, hook: impl Fn(&SnapshotOffer) -> OfferReply + Send + Sync + 'static) {
        lock(&self.hooks).offer = Arc::new(hook);
    }

    /// Accepts each offer with a recording sink that follows `script`, whose gates stay shared.
    pub fn accept_offers(&self, script: &SinkScript) {
        let script = script.clone();
        self.on_offer(move |_| OfferReply::Accept(script.clone()));
    }

    /// Opens all gates of the inbound.
    pub fn open_gates(&self) {
        [&self.admit_gate, &self.append_gate, &self.offer_gate].into_iter().for_each(Gate::open);
    }

    /// Reads the log.
    pub fn look<T>(&self, read: impl FnOnce(&InboundLog) -> T) -> T {
        read(&self.log.borrow())
    }

    /// Waits until the log meets a condition.
    pub async fn until(&self, mut condition: impl FnMut(&InboundLog) -> bool) {
        let _ = self.log.subscribe().wait_for(|log| condition(log)).await;
    }

    /// Waits for the oldest batch in the log and removes it.
    pub async fn next_batch(&self) -> Delivered {
        self.next(|log| log.delivered.pop_front()).await
    }

    /// Waits for the oldest refusal in the log and removes it.
    pub async fn next_refusal(&self) -> Refusal {
        self.next(|log| log.refused.pop_front()).await
    }

    async fn next<T>(&self, mut pop: impl FnMut(&mut InboundLog) -> Option<T>) -> T {
        let mut changes = self.log.subscribe();
        loop {
            let mut popped = None;
            self.log.send_if_modified(|log| {
                popped = pop(log);
                popped.is_some()
            });
            if let Some(popped) = popped {
                return popped;
            }
            let _ = changes.changed().await;
        }
    }
}

impl Inbound for RecordingInbound {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        self.log.send_modify(|log| log.asked.push((hello.clone(), cert.cloned())));
        self.admit_gate.pass_blocking();
        let hook = lock(&self.hooks).admit.clone();
        // Like the engine, for transports that leave the check to it.
        let decided = match hello.protocol {
            PROTOCOL_VERSION => hook(hello, cert),
            theirs => Err(Refusal::Version { ours: PROTOCOL_VERSION, theirs }),
        };
        self.log.send_modify(|log| match &decided {
            Ok(()) => log.sessions += 1,
            Err(refusal) => log.refused.push_back(refusal.clone()),
        });
        decided?;
        Ok(Arc::new(RecordingSession { peer: hello.from, inbound: self.clone() }))
    }

    fn refused(&self, refusal: &Refusal) {
        self.log.send_modify(|log| log.refused.push_back(refusal.clone()));
    }
}

struct RecordingSession {
    peer: NodeId,
    inbound: RecordingInbound,
}

#[async_trait]
impl PeerSession for RecordingSession {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn welcome(&self) -> Welcome {
        self.inbound.welcome()
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        if lane == Lane::Append {
            self.inbound.append_gate.pass_blocking();
        }
        let hook = lock(&self.inbound.hooks).deliver.clone();
        let answer = hook(lane, &batch);
        let delivered = Delivered { peer: self.peer, lane, batch };
        self.inbound.log.send_modify(|log| log.delivered.push_back(delivered));
        answer
    }

    fn nacks_dropped(&self, _: Lane, count: usize) {
        self.inbound.log.send_modify(|log| log.nacks_dropped += count);
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        let log = &self.inbound.log;
        let hook = lock(&self.inbound.hooks).offer.clone();
        let reply = hook(&offer);
        log.send_modify(|log| {
            log.offers.push((self.peer, offer));
            log.deciding += 1;
        });
        deciding.advance(DECIDING);
        let _deciding = Deciding(log);
        self.inbound.offer_gate.pass().await;
        match reply {
            OfferReply::Accept(script) => {
                let offset = script.offset;
                Ok(SinkAnswer::Accept { offset, sink: Box::new(RecordingSink::new(script, log.clone())) })
            }
            OfferReply::Into(sink) => Ok(SinkAnswer::Accept { offset: 0, sink }),
            OfferReply::AlreadyHave(commit) => Ok(SinkAnswer::AlreadyHave { commit }),
            OfferReply::Refuse(refusal) => Err(refusal),
        }
    }
}

impl Drop for RecordingSession {
    fn drop(&mut self) {
        self.inbound.log.send_modify(|log| log.sessions -= 1);
    }
}

/// Counts an offer as undecided until its future ends or is dropped.
struct Deciding<'a>(&'a watch::Sender<InboundLog>);

impl Drop for Deciding<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|log| log.deciding -= 1);
    }
}
