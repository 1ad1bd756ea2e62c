use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Duration, Instant};

use super::*;
use crate::ids::{ClusterId, Incarnation, PeerAddr};
use crate::message::{Lane, Message, MessageKind};
use crate::reporter::{Reporter, Scope, SnapshotStatus, UnreachableCause};
use crate::snapshot_store::SnapshotReader;
use crate::snapshots::fixture::{CHUNK_BYTES, CONTENT, TestStore, id, meta, settings};
use crate::transport::{
    ConnectError, Connected, Inbound, LinkFeedback, Listener, PROTOCOL_VERSION, SnapshotReceipt,
    TransportError,
};

/// The length of every file. It has no more chunks than are read ahead: a paused clock waits for a thread that reads.
const LENGTH: u64 = (READ_AHEAD_CHUNKS * CHUNK_BYTES) as u64;

/// The reports, transfer records and offers of a test.
#[derive(Default)]
struct SendTrace {
    reports: Mutex<Vec<SnapshotStatus>>,
    records: Mutex<Vec<(SnapshotOutcome, u64)>>,
    offers: AtomicU64,
}

impl SendTrace {
    fn ended(&self) -> (Vec<SnapshotStatus>, Vec<(SnapshotOutcome, u64)>) {
        (self.reports.lock().unwrap().clone(), self.records.lock().unwrap().clone())
    }
}

impl Reporter for SendTrace {
    fn report_unreachable(&self, _: NodeId, _: Scope, _: UnreachableCause) {}

    fn report_snapshot(&self, _: SnapshotAttempt, status: SnapshotStatus) {
        self.reports.lock().unwrap().push(status);
    }
}

/// A body of zeroes, with its remaining length.
struct ZeroBody(usize);

impl SnapshotReader for ZeroBody {
    fn next_part(&mut self, most: usize) -> std::io::Result<Option<BodyPart>> {
        let length = most.min(self.0);
        self.0 -= length;
        let part = BodyPart { bytes: Bytes::from(vec![0; length]), crc32c: 0 };
        Ok(Some(part).filter(|_| length > 0))
    }
}

/// A transport whose peers accept every snapshot, or never answer an offer.
struct TestTransport {
    trace: Arc<SendTrace>,
    accepts: bool,
}

struct AcceptedTransfer;

#[async_trait]
impl Transfer for AcceptedTransfer {
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
impl Transport for TestTransport {
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
        self.trace.offers.fetch_add(1, Ordering::Relaxed);
        match self.accepts {
            true => Ok(OfferAnswer::Accepted { offset: 0, transfer: Box::new(AcceptedTransfer) }),
            false => std::future::pending().await,
        }
    }
}

struct SendFixture {
    runtime: Runtime,
    sends: Sends,
    trace: Arc<SendTrace>,
}

impl SendFixture {
    /// With peers that never answer.
    fn silent() -> Self {
        Self::new(false, 0)
    }

    /// On a runtime that runs only inside `block_on`, with a paused clock.
    fn new(accepts: bool, bytes_per_second: u64) -> Self {
        let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let trace: Arc<SendTrace> = Arc::default();
        let recorded = trace.clone();
        let transport: Arc<dyn Transport> = Arc::new(TestTransport { trace: trace.clone(), accepts });
        let open = |meta: &SnapshotMeta, _| -> Result<Box<dyn SnapshotReader>, _> {
            Ok(Box::new(ZeroBody(meta.length as usize)))
        };
        let sends = Sends::new(SendsDeps {
            node: id(1),
            settings: settings(bytes_per_second),
            store: Arc::new(TestStore { open: Box::new(open), ..TestStore::default() }),
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
                let trace = recorded.clone();
                ByteTally::new(move |outcome, bytes| trace.records.lock().unwrap().push((outcome, bytes)))
            }),
        });
        for peer in [2, 3] {
            sends.set_peer(Peer { id: id(peer), address: "mem://b:1".parse().unwrap() });
        }
        Self { runtime, sends, trace }
    }

    fn start(&self) -> SnapshotAttempt {
        self.start_to(2)
    }

    fn start_to(&self, peer: u64) -> SnapshotAttempt {
        let meta = meta(LENGTH, CONTENT);
        let group = meta.head.group;
        let attempt = SnapshotAttempt { group, peer: id(peer), term: 3, index: 7, number: peer };
        let message = Message::new(MessageKind::Snapshot, id(1), attempt.peer);
        let send = SnapshotSend { attempt, message, meta };
        self.sends.start(send, SnapshotTicket::new(attempt, self.trace.clone()));
        attempt
    }

    /// Asserts one report, one transfer record, and no running transfer.
    fn assert_cancelled(&self) {
        let abandoned = SnapshotStatus::Failure(SnapshotFailure::Abandoned);
        assert_eq!(self.trace.ended(), (vec![abandoned], vec![(SnapshotOutcome::Cancelled, 0)]));
        assert_eq!(self.sends.count(), 0, "its slot is free");
    }

    fn wait_end(&self, attempt: &SnapshotAttempt) {
        self.runtime.block_on(async {
            while self.sends.is_running(attempt) {
                tokio::task::yield_now().await;
            }
        });
    }

    /// The time of concurrent transfers to these peers.
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

/// The task opened the transfer record, and in these cases no task ran.
#[test]
fn a_transfer_that_starts_during_shutdown_is_recorded() {
    let fixture = SendFixture::silent();
    fixture.sends.close();
    fixture.start();
    fixture.assert_cancelled();
}

#[test]
fn a_transfer_cancelled_before_its_first_poll_is_recorded_and_offers_nothing() {
    let fixture = SendFixture::silent();
    let attempt = fixture.start();
    fixture.sends.cancel(&attempt, &"not needed".into());
    fixture.wait_end(&attempt);
    fixture.assert_cancelled();
    assert_eq!(fixture.trace.offers.load(Ordering::Relaxed), 0);
}

#[test]
fn a_transfer_whose_runtime_ends_before_its_first_poll_is_recorded() {
    let mut fixture = SendFixture::silent();
    fixture.start();
    fixture.runtime = Builder::new_current_thread().build().unwrap();
    fixture.assert_cancelled();
}

#[test]
fn a_transfer_cancelled_during_its_offer_is_recorded() {
    let fixture = SendFixture::silent();
    let attempt = fixture.start();
    fixture.runtime.block_on(async {
        while fixture.trace.offers.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    });
    fixture.sends.close();
    fixture.wait_end(&attempt);
    fixture.assert_cancelled();
}

#[test]
fn the_transfers_of_a_node_share_its_rate_limit() {
    let fixture = |bytes_per_second| SendFixture::new(true, bytes_per_second);
    // A file takes a second, and its last chunk is sent a quarter before that.
    let (chunk, late) = (Duration::from_millis(250), Duration::from_millis(50));
    let one = fixture(LENGTH).time(&[2]);
    assert!(one >= 3 * chunk && one <= 3 * chunk + late, "one: {one:?}");
    let shared = fixture(LENGTH);
    let both = shared.time(&[2, 3]);
    assert!(both >= 7 * chunk && both <= 7 * chunk + late, "two: {both:?}");
    let (reports, records) = shared.trace.ended();
    assert_eq!(reports, [SnapshotStatus::Finish; 2]);
    assert_eq!(records, [(SnapshotOutcome::Finished, LENGTH); 2]);
    let unlimited = fixture(0).time(&[2, 3]);
    assert!(unlimited <= late, "without a limit: {unlimited:?}");
}
