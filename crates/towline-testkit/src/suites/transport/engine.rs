//! The engine on both ends, played by the suite: it remembers everything and does what the case asks for.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;
use towline_engine::ids::{Incarnation, NodeId, PeerAddr};
use towline_engine::message::{Batch, Envelope, Lane};
use towline_engine::transport::{
    CertIdentity, Hello, Inbound, LinkClosed, LinkEvents, LinkFeedback, Listener, Nack, PROTOCOL_VERSION,
    Peer, PeerSession, ProgressCell, Refusal, SinkAnswer, SnapshotOffer, SnapshotRefusal, TransferPhase,
    TransferProgress, Violation, Welcome,
};

use super::bench::Bench;
use super::spool::{Spool, SpoolScript, TransferLog};

/// Holds whoever passes while it is shut.
#[derive(Clone)]
pub(super) struct Gate(watch::Sender<bool>);

impl Gate {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(true))
    }

    pub(super) fn shut(&self) {
        self.0.send_replace(false);
    }

    pub(super) fn open(&self) {
        self.0.send_replace(true);
    }

    pub(super) async fn pass(&self) {
        let _ = self.0.subscribe().wait_for(|open| *open).await;
    }

    /// For where the contract allows no waiting. The thread's other tasks go to another thread meanwhile, or a held
    /// receiver would hold whatever else the runtime had put behind it.
    fn pass_blocking(&self) {
        let shut = !*self.0.borrow();
        if shut {
            block_in_place(|| Handle::current().block_on(self.pass()));
        }
    }
}

/// What happened at a listening engine.
#[derive(Default)]
pub(super) struct Log {
    /// Calls of `admit`, whatever their outcome.
    pub(super) asked: Vec<(Hello, Option<CertIdentity>)>,
    /// What `admit` refused, and what the transport refused itself and told.
    pub(super) refused: Vec<Refusal>,
    pub(super) delivered: Vec<Delivered>,
    /// Sessions that the transport still holds.
    pub(super) sessions: usize,
    pub(super) offers: Vec<(NodeId, SnapshotOffer)>,
    /// Offers that are being thought about.
    pub(super) thinking: usize,
    pub(super) transfers: Vec<TransferLog>,
}

pub(super) struct Delivered {
    pub(super) peer: NodeId,
    pub(super) lane: Lane,
    pub(super) batch: Batch,
}

impl Log {
    /// The messages of a lane, in order.
    pub(super) fn envelopes(&self, lane: Lane) -> Vec<Envelope> {
        let batches = self.delivered.iter().filter(|delivered| delivered.lane == lane);
        batches.flat_map(|delivered| delivered.batch.envelopes.iter().cloned()).collect()
    }

    /// The indexes of the messages of a lane, in order.
    pub(super) fn indexes(&self, lane: Lane) -> Vec<u64> {
        self.envelopes(lane).iter().map(|envelope| envelope.message.index).collect()
    }

    pub(super) fn count(&self, lane: Lane) -> usize {
        let batches = self.delivered.iter().filter(|delivered| delivered.lane == lane);
        batches.map(|delivered| delivered.batch.envelopes.len()).sum()
    }
}

type Admission = dyn Fn(&Hello, Option<&CertIdentity>) -> Result<(), Refusal> + Send;
type Taking = dyn FnMut(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send;
type Answering = dyn FnMut(&SnapshotOffer) -> Answer + Send;

/// What becomes of an offer.
pub(super) enum Answer {
    Accept(SpoolScript),
    AlreadyHave(u64),
    Refuse(SnapshotRefusal),
}

/// The listening engine.
pub(super) struct Engine {
    node: NodeId,
    pub(super) log: watch::Sender<Log>,
    admission: Mutex<Box<Admission>>,
    taking: Mutex<Box<Taking>>,
    answering: Mutex<Box<Answering>>,
    /// Before `admit` answers.
    pub(super) admit: Gate,
    /// Before an append batch is taken.
    pub(super) appends: Gate,
    /// Before an offer is answered.
    pub(super) offers: Gate,
    /// Every gate of a transfer's script, so that none stays shut.
    spools: Mutex<Vec<SpoolScript>>,
}

impl Engine {
    fn new(node: NodeId) -> Arc<Self> {
        Arc::new(Self {
            node,
            log: watch::Sender::default(),
            admission: Mutex::new(Box::new(|_, _| Ok(()))),
            taking: Mutex::new(Box::new(|_, _| Ok(Vec::new()))),
            answering: Mutex::new(Box::new(|_| Answer::Accept(SpoolScript::default()))),
            admit: Gate::new(),
            appends: Gate::new(),
            offers: Gate::new(),
            spools: Mutex::default(),
        })
    }

    /// Decides about diallers that speak the right version.
    pub(super) fn admits(
        &self,
        admission: impl Fn(&Hello, Option<&CertIdentity>) -> Result<(), Refusal> + Send + 'static,
    ) {
        *lock(&self.admission) = Box::new(admission);
    }

    /// Answers batches.
    pub(super) fn takes(
        &self,
        taking: impl FnMut(Lane, &Batch) -> Result<Vec<Nack>, Violation> + Send + 'static,
    ) {
        *lock(&self.taking) = Box::new(taking);
    }

    /// Answers offers.
    pub(super) fn answers(&self, answering: impl FnMut(&SnapshotOffer) -> Answer + Send + 'static) {
        *lock(&self.answering) = Box::new(answering);
    }

    /// Waits until the log is as it should be.
    pub(super) async fn until(&self, bench: &Bench, what: impl Display, mut is: impl FnMut(&Log) -> bool) {
        let mut log = self.log.subscribe();
        let _ = bench.within(what, log.wait_for(|log| is(log))).await;
    }

    pub(super) fn look<T>(&self, at: impl FnOnce(&Log) -> T) -> T {
        at(&self.log.borrow())
    }

    pub(super) fn inbound(self: &Arc<Self>) -> Arc<dyn Inbound> {
        Arc::new(Door(self.clone()))
    }

    fn open_all(&self) {
        [&self.admit, &self.appends, &self.offers].into_iter().for_each(Gate::open);
        lock(&self.spools).iter().for_each(SpoolScript::open_all);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The transport's way in.
struct Door(Arc<Engine>);

impl Inbound for Door {
    fn admit(&self, hello: &Hello, cert: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        let engine = &self.0;
        engine.log.send_modify(|log| log.asked.push((hello.clone(), cert.cloned())));
        engine.admit.pass_blocking();
        // As the engine does, for transports that leave it to the engine.
        let version = match hello.protocol {
            PROTOCOL_VERSION => Ok(()),
            theirs => Err(Refusal::Version { ours: PROTOCOL_VERSION, theirs }),
        };
        let decided = version.and_then(|()| lock(&engine.admission)(hello, cert));
        engine.log.send_modify(|log| match &decided {
            Ok(()) => log.sessions += 1,
            Err(refusal) => log.refused.push(refusal.clone()),
        });
        decided
            .map(|()| Arc::new(Session { peer: hello.from, engine: engine.clone() }) as Arc<dyn PeerSession>)
    }

    fn refused(&self, refusal: &Refusal) {
        self.0.log.send_modify(|log| log.refused.push(refusal.clone()));
    }
}

/// How far the engine is with every offer before it answers.
pub(super) const DECIDING: TransferProgress = TransferProgress { acked: 3, phase: TransferPhase::Verifying };

struct Session {
    peer: NodeId,
    engine: Arc<Engine>,
}

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.peer
    }

    fn welcome(&self) -> Welcome {
        welcome(self.engine.node)
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        if lane == Lane::Append {
            self.engine.appends.pass_blocking();
        }
        let answer = lock(&self.engine.taking)(lane, &batch);
        let delivered = Delivered { peer: self.peer, lane, batch };
        self.engine.log.send_modify(|log| log.delivered.push(delivered));
        answer
    }

    async fn offer(
        &self,
        offer: SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<SinkAnswer, SnapshotRefusal> {
        let log = &self.engine.log;
        let answer = lock(&self.engine.answering)(&offer);
        log.send_modify(|log| {
            log.offers.push((self.peer, offer));
            log.thinking += 1;
        });
        deciding.advance(DECIDING);
        // Also when the future is dropped.
        let _thinking = Thinking(log);
        self.engine.offers.pass().await;
        match answer {
            Answer::Accept(script) => {
                lock(&self.engine.spools).push(script.clone());
                let offset = script.offset;
                Ok(SinkAnswer::Accept { offset, sink: Box::new(Spool::new(script, log.clone())) })
            }
            Answer::AlreadyHave(commit) => Ok(SinkAnswer::AlreadyHave { commit }),
            Answer::Refuse(refusal) => Err(refusal),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.log.send_modify(|log| log.sessions -= 1);
    }
}

struct Thinking<'a>(&'a watch::Sender<Log>);

impl Drop for Thinking<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|log| log.thinking -= 1);
    }
}

/// What a node answers to a hello.
pub(super) fn welcome(node: NodeId) -> Welcome {
    let incarnation = Incarnation::new(0xEF00_0000 + node.as_u64()).unwrap();
    Welcome { node, incarnation, protocol: PROTOCOL_VERSION }
}

/// A listening node.
pub(super) struct Host {
    pub(super) node: NodeId,
    pub(super) engine: Arc<Engine>,
    pub(super) address: PeerAddr,
    listener: Option<Box<dyn Listener>>,
}

impl Host {
    pub(super) async fn listen(bench: &Bench, node: NodeId, at: &PeerAddr) -> Self {
        let engine = Engine::new(node);
        let transport = bench.transport(node);
        let listening = transport.listen(at, engine.inbound());
        let listener = match bench.within("listen", listening).await {
            Ok(listener) => listener,
            Err(error) => bench.fail(format_args!("listening at {at} gets {}", super::bench::chain(&error))),
        };
        let address = bench.fixture.reach(at, listener.local_addr());
        Self { node, engine, address, listener: Some(listener) }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer { id: self.node, address: self.address.clone() }
    }

    pub(super) async fn shut_down(&mut self, bench: &Bench) {
        if let Some(listener) = self.listener.take() {
            bench.within("the shutdown of the listener", listener.shutdown()).await;
        }
    }

    pub(super) fn drop_listener(&mut self) {
        self.listener = None;
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.engine.open_all();
    }
}

/// The dialling engine's ear at one link.
#[derive(Clone)]
pub(super) struct Ear {
    told: watch::Receiver<Told>,
}

#[derive(Default)]
struct Told {
    nacks: Vec<Nack>,
    closed: Vec<LinkClosed>,
}

struct Mouth(watch::Sender<Told>);

impl LinkEvents for Mouth {
    fn nack(&self, nack: Nack) {
        self.0.send_modify(|told| told.nacks.push(nack));
    }

    fn closed(&self, cause: LinkClosed) {
        self.0.send_modify(|told| told.closed.push(cause));
    }
}

impl Ear {
    pub(super) fn new() -> (Self, LinkFeedback) {
        let sender = watch::Sender::default();
        let ear = Self { told: sender.subscribe() };
        (ear, LinkFeedback::new(Arc::new(Mouth(sender))))
    }

    /// The cause of the end, which must be told once, after which nothing can be told any more.
    pub(super) async fn closed(&self, bench: &Bench) -> LinkClosed {
        let mut told = self.told.clone();
        let ended = async {
            let cause = told.wait_for(|told| !told.closed.is_empty()).await.ok()?.closed.first().cloned();
            while told.changed().await.is_ok() {}
            cause
        };
        let cause = bench.within("`LinkFeedback::closed`", ended).await;
        let times = self.told.borrow().closed.len();
        bench.hold(times == 1, format_args!("`closed` was told {times} times"));
        cause.unwrap_or_else(|| bench.fail("the feedback went without `closed`"))
    }

    pub(super) fn is_closed(&self) -> bool {
        !self.told.borrow().closed.is_empty()
    }

    /// That many nacks, once they have come.
    pub(super) async fn nacks(&self, bench: &Bench, count: usize) -> Vec<Nack> {
        let mut told = self.told.clone();
        let enough = told.wait_for(|told| told.nacks.len() >= count);
        let _ = bench.within(format_args!("the arrival of {count} nacks"), enough).await;
        self.told.borrow().nacks.clone()
    }
}
