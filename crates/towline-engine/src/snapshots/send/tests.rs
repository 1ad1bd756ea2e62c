use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Duration, Instant};

use super::*;
use crate::ids::{ClusterId, GroupId, Incarnation, PeerAddr};
use crate::message::{ConfState, Lane, LogId, MemberTable, Message, MessageKind};
use crate::reporter::{Reporter, Scope, SnapshotStatus, UnreachableCause};
use crate::snapshot_store::{ContentId, SnapshotHead, SnapshotReader, SnapshotStoreError, SnapshotWriter};
use crate::transport::{
    ConnectError, Connected, Inbound, LinkFeedback, Listener, PROTOCOL_VERSION, SnapshotReceipt,
    TransportError,
};

/// Of every file. Not more chunks than are read ahead: a paused clock waits for a thread that reads.
const LENGTH: u64 = (READ_AHEAD_CHUNKS * CHUNK_BYTES) as u64;
const CHUNK_BYTES: usize = 4;

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

/// Whatever is sent is so many zeroes.
struct Zeroes;

impl SnapshotStore for Zeroes {
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
        Ok(Box::new(Left(meta.length as usize)))
    }

    fn retain(&self, _: GroupId, _: &[ContentId]) -> Result<(), SnapshotStoreError> {
        Ok(())
    }
}

struct Left(usize);

impl SnapshotReader for Left {
    fn next_part(&mut self, most: usize) -> std::io::Result<Option<BodyPart>> {
        let length = most.min(self.0);
        self.0 -= length;
        let part = BodyPart { bytes: Bytes::from(vec![0; length]), crc32c: 0 };
        Ok(Some(part).filter(|_| length > 0))
    }
}

/// To peers that take everything at once, or never answer an offer.
struct Scripted {
    seen: Arc<Seen>,
    takes: bool,
}

struct Taken;

#[async_trait]
impl Transfer for Taken {
    async fn send(&mut self, _: Chunk) -> Result<(), TransferError> {
        Ok(())
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, TransferError> {
        Ok(SnapshotReceipt { commit: 7 })
    }

    fn progress(&self) -> ProgressCell {
        ProgressCell::new(0)
    }
}

#[async_trait]
impl Transport for Scripted {
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
        self.seen.offers.fetch_add(1, Ordering::Relaxed);
        match self.takes {
            true => Ok(OfferAnswer::Accepted { offset: 0, transfer: Box::new(Taken) }),
            false => std::future::pending().await,
        }
    }
}

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

fn meta(head: SnapshotHead) -> SnapshotMeta {
    SnapshotMeta { head, length: LENGTH, content: ContentId([7; 16]) }
}

struct Bench {
    runtime: Runtime,
    sends: Sends,
    seen: Arc<Seen>,
}

/// To peers that never answer.
fn bench() -> Bench {
    bench_with(false, 0)
}

/// On a runtime that does nothing until it is told to, and whose clock moves only when there is nothing else to do.
fn bench_with(takes: bool, bytes_per_second: u64) -> Bench {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let seen: Arc<Seen> = Arc::default();
    let recorded = seen.clone();
    let time = Duration::from_secs(20);
    let transport: Arc<dyn Transport> = Arc::new(Scripted { seen: seen.clone(), takes });
    let sends = Sends::new(SendsDeps {
        node: id(1),
        settings: TransferSettings {
            chunk_bytes: CHUNK_BYTES,
            bytes_max: 100,
            receives_max: 1,
            bytes_per_second,
            offer_timeout: time,
            progress_timeout: time,
            phase_timeout: time,
        },
        store: Arc::new(Zeroes),
        transports: BTreeMap::from([("mem".into(), transport)]),
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
    for peer in [2, 3] {
        sends.set_peer(Peer { id: id(peer), address: "mem://b:1".parse().unwrap() });
    }
    Bench { runtime, sends, seen }
}

impl Bench {
    fn start(&self) -> SnapshotAttempt {
        self.start_to(2)
    }

    fn start_to(&self, peer: u64) -> SnapshotAttempt {
        let attempt =
            SnapshotAttempt { group: GroupId::DEFAULT, peer: id(peer), term: 3, index: 7, number: peer };
        let head = SnapshotHead {
            group: attempt.group,
            at: LogId { index: 7, term: 2 },
            conf_state: ConfState::default(),
            members: MemberTable::new(),
        };
        let message = Message::new(MessageKind::Snapshot, id(1), attempt.peer);
        let send = SnapshotSend { attempt, message, meta: meta(head) };
        self.sends.start(send, SnapshotTicket::new(attempt, self.seen.clone()));
        attempt
    }

    /// One report and one record, and nothing is left.
    fn assert_cancelled(&self) {
        let abandoned = SnapshotStatus::Failure(SnapshotFailure::Abandoned);
        assert_eq!(self.seen.ended(), (vec![abandoned], vec![(SnapshotOutcome::Cancelled, 0)]));
        assert_eq!(self.sends.count(), 0, "its slot is free");
    }

    /// How long transfers to these peers take that begin together.
    fn time(&self, peers: &[u64]) -> Duration {
        self.runtime.block_on(async {
            let begun = Instant::now();
            let attempts: Vec<_> = peers.iter().map(|&peer| self.start_to(peer)).collect();
            assert_eq!(self.sends.count(), peers.len());
            while attempts.iter().any(|attempt| self.sends.is_running(attempt)) {
                tokio::time::sleep(Duration::from_millis(1)).await; // not synchronisation: the clock is the test's own
            }
            begun.elapsed()
        })
    }
}

/// Its books were opened by a task that there never was: it had no line and no record.
#[test]
fn a_transfer_that_comes_when_the_node_stops_is_in_the_books() {
    let bench = bench();
    bench.sends.close();
    bench.start();
    bench.assert_cancelled();
}

/// The same of a task that was given up before it was polled for the first time.
#[test]
fn a_transfer_that_is_cancelled_before_it_begins_is_in_the_books_and_offers_nothing() {
    let bench = bench();
    let attempt = bench.start();
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
    bench.start();
    bench.runtime = Builder::new_current_thread().build().unwrap();
    bench.assert_cancelled();
}

#[test]
fn a_transfer_that_is_cancelled_while_it_waits_is_in_the_books() {
    let bench = bench();
    let attempt = bench.start();
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

/// Each with a rate of its own would take what one takes alone.
#[test]
fn the_transfers_of_a_node_go_at_its_rate_together() {
    let bench = |bytes_per_second| bench_with(true, bytes_per_second);
    // A file takes a second; its last chunk goes a quarter before that is over.
    let (chunk, late) = (Duration::from_millis(250), Duration::from_millis(50));
    let alone = bench(LENGTH).time(&[2]);
    assert!(alone >= 3 * chunk && alone <= 3 * chunk + late, "one: {alone:?}");
    let shared = bench(LENGTH);
    let both = shared.time(&[2, 3]);
    assert!(both >= 7 * chunk && both <= 7 * chunk + late, "two: {both:?}");
    let (reports, records) = shared.seen.ended();
    assert_eq!(reports, [SnapshotStatus::Finish; 2]);
    assert_eq!(records, [(SnapshotOutcome::Finished, LENGTH); 2]);
    let unlimited = bench(0).time(&[2, 3]);
    assert!(unlimited <= late, "without a limit: {unlimited:?}");
}
