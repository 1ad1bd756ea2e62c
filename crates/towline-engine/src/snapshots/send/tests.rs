use std::sync::Arc;

use async_trait::async_trait;
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::core::SendSlots;
use crate::ids::{ClusterId, GroupId, Incarnation, PeerAddr};
use crate::message::{ConfState, Lane, MemberTable, Message, MessageKind};
use crate::reporter::{Reporter, Scope, SnapshotStatus, SnapshotTicket, UnreachableCause};
use crate::snapshot_store::{ContentId, SnapshotHead, SnapshotReader, SnapshotStoreError, SnapshotWriter};
use crate::state_machine::Applied;
use crate::transport::{
    ConnectError, Connected, Inbound, LinkFeedback, Listener, PROTOCOL_VERSION, TransportError,
};

/// What was reported, what was recorded, and how often somebody was offered something.
#[derive(Default)]
struct Seen {
    reports: Mutex<Vec<SnapshotStatus>>,
    records: Mutex<Vec<(SnapshotOutcome, u64)>>,
    offers: AtomicU64,
}

impl Seen {
    fn ended(&self) -> (Vec<SnapshotStatus>, Vec<(SnapshotOutcome, u64)>) {
        (self.reports.lock().unwrap().clone(), self.records.lock().unwrap().clone())
    }
}

impl Reporter for Seen {
    fn report_unreachable(&self, _: NodeId, _: Scope, _: UnreachableCause) {}

    fn report_snapshot(&self, _: SnapshotAttempt, status: SnapshotStatus) {
        self.reports.lock().unwrap().push(status);
    }
}

struct Empty;

impl SnapshotStore for Empty {
    fn complete(&self, _: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        Ok(Vec::new())
    }

    fn find(&self, _: GroupId, _: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        Ok(None)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: meta(head.clone()).content })
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        _: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: meta.content })
    }

    fn open(&self, meta: &SnapshotMeta, _: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        Err(SnapshotStoreError::Missing { content: meta.content })
    }

    fn retain(&self, _: GroupId, _: &[ContentId]) -> Result<(), SnapshotStoreError> {
        Ok(())
    }
}

/// Its offers are never answered.
struct Silent(Arc<Seen>);

#[async_trait]
impl Transport for Silent {
    fn scheme(&self) -> &'static str {
        "mem"
    }

    async fn listen(&self, at: &PeerAddr, _: Arc<dyn Inbound>) -> Result<Box<dyn Listener>, TransportError> {
        Err(TransportError::Address { address: at.clone(), detail: "nowhere".into() })
    }

    async fn connect(
        &self,
        to: &Peer,
        _: Lane,
        _: &Hello,
        _: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        Err(ConnectError::Address { address: to.address.clone(), detail: "nowhere".into() })
    }

    async fn offer(
        &self,
        _: &Peer,
        _: &Hello,
        _: &SnapshotOffer,
        _: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        self.0.offers.fetch_add(1, Ordering::Relaxed);
        std::future::pending().await
    }
}

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

fn meta(head: SnapshotHead) -> SnapshotMeta {
    SnapshotMeta { head, length: 10, content: ContentId([7; 16]) }
}

struct Bench {
    runtime: Runtime,
    sends: Sends,
    slots: SendSlots,
    seen: Arc<Seen>,
}

/// On a runtime that does nothing until it is told to.
fn bench() -> Bench {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let seen: Arc<Seen> = Arc::default();
    let recorded = seen.clone();
    let time = std::time::Duration::from_secs(20);
    let sends = Sends::new(SendsDeps {
        node: id(1),
        settings: TransferSettings {
            chunk_bytes: 4,
            bytes_max: 100,
            receives_max: 1,
            bytes_per_second: 0,
            offer_timeout: time,
            progress_timeout: time,
            phase_timeout: time,
        },
        store: Arc::new(Empty),
        transports: BTreeMap::from([("mem".into(), Arc::new(Silent(seen.clone())) as Arc<dyn Transport>)]),
        hello: Arc::new(|to| Hello {
            cluster: ClusterId::new("test").unwrap(),
            from: id(1),
            to,
            incarnation: Incarnation::new(1).unwrap(),
            protocol: PROTOCOL_VERSION,
        }),
        runtime: runtime.handle().clone(),
        tally: Arc::new(move |_| {
            let seen = recorded.clone();
            ByteTally::new(move |outcome, bytes| seen.records.lock().unwrap().push((outcome, bytes)))
        }),
    });
    sends.set_peer(Peer { id: id(2), address: "mem://b:1".parse().unwrap() });
    Bench { runtime, sends, slots: SendSlots::new(1), seen }
}

impl Bench {
    fn attempt(&self) -> (SnapshotAttempt, SnapshotSend) {
        let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer: id(2), term: 3, index: 7, number: 1 };
        let head = SnapshotHead {
            group: attempt.group,
            at: Applied { index: 7, term: 2 },
            conf_state: ConfState::default(),
            members: MemberTable::new(),
        };
        let send = SnapshotSend {
            ticket: SnapshotTicket::new(attempt, self.seen.clone()),
            message: Message::new(MessageKind::Snapshot, id(1), id(2)),
            meta: meta(head),
            slot: self.slots.take().expect("a slot"),
        };
        (attempt, send)
    }

    /// One report and one record, and nothing is left.
    fn assert_cancelled(&self) {
        let abandoned = SnapshotStatus::Failure(SnapshotFailure::Abandoned);
        assert_eq!(self.seen.ended(), (vec![abandoned], vec![(SnapshotOutcome::Cancelled, 0)]));
        assert!(self.slots.any_free(), "the slot is free");
        assert!(self.sends.lock().running.is_empty());
    }
}

/// Its books were opened by a task that there never was: it had no line and no record.
#[test]
fn a_transfer_that_comes_when_the_node_stops_is_in_the_books() {
    let bench = bench();
    bench.sends.close();
    bench.sends.start(bench.attempt().1);
    bench.assert_cancelled();
}

/// The same of a task that was given up before it was polled for the first time.
#[test]
fn a_transfer_that_is_cancelled_before_it_begins_is_in_the_books_and_offers_nothing() {
    let bench = bench();
    let (attempt, send) = bench.attempt();
    bench.sends.start(send);
    bench.sends.cancel(&attempt, &"of no use".into());
    bench.runtime.block_on(async {
        while bench.sends.is_running(&attempt) {
            tokio::task::yield_now().await;
        }
    });
    bench.assert_cancelled();
    assert_eq!(bench.seen.offers.load(Ordering::Relaxed), 0);
}

#[test]
fn a_transfer_whose_runtime_ends_before_it_begins_is_in_the_books() {
    let mut bench = bench();
    bench.sends.start(bench.attempt().1);
    bench.runtime = Builder::new_current_thread().build().unwrap();
    bench.assert_cancelled();
}

#[test]
fn a_transfer_that_is_cancelled_while_it_waits_is_in_the_books() {
    let bench = bench();
    let (attempt, send) = bench.attempt();
    bench.sends.start(send);
    bench.runtime.block_on(async {
        while bench.seen.offers.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        bench.sends.close();
        while bench.sends.is_running(&attempt) {
            tokio::task::yield_now().await;
        }
    });
    bench.assert_cancelled();
}
