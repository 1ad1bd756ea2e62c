#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::timeout;
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use towline_engine::message::{Entry, Envelope, LogId, Message, MessageKind};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    Chunk, DispatchError, Link, LinkClosed, LinkEvents, PROTOCOL_VERSION, ProgressCell, SnapshotReceipt,
    SnapshotSink, Transfer,
};

use super::*;
use crate::mem::{MemNet, MemTransport};

const DEADLINE: Duration = Duration::from_secs(10);
const NOT_YET: Duration = Duration::from_millis(100);

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(DEADLINE, future).await.expect("deadline")
}

fn node(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// Lets everybody in and shows what came.
struct Host(mpsc::UnboundedSender<(Lane, Envelope)>, mpsc::UnboundedSender<Piece>);

#[derive(Debug, PartialEq)]
enum Piece {
    Chunk(Chunk),
    End,
    Gone,
}

impl Inbound for Host {
    fn admit(&self, hello: &Hello, _: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(Session(hello.from, self.0.clone(), self.1.clone())))
    }
}

struct Session(NodeId, mpsc::UnboundedSender<(Lane, Envelope)>, mpsc::UnboundedSender<Piece>);

#[async_trait]
impl PeerSession for Session {
    fn peer(&self) -> NodeId {
        self.0
    }

    fn welcome(&self) -> Welcome {
        Welcome { node: node(2), incarnation: Incarnation::new(9).unwrap(), protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, lane: Lane, batch: Batch) -> Result<Vec<Nack>, Violation> {
        batch.envelopes.into_iter().for_each(|envelope| self.1.send((lane, envelope)).unwrap());
        Ok(Vec::new())
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(SinkAnswer::Accept { offset: 0, sink: Box::new(Sink(self.2.clone())) })
    }
}

struct Sink(mpsc::UnboundedSender<Piece>);

#[async_trait]
impl SnapshotSink for Sink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        let _ = self.0.send(Piece::Chunk(chunk));
        Ok(())
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        let _ = self.0.send(Piece::End);
        Ok(SnapshotReceipt { commit: 1 })
    }

    fn progress(&self) -> ProgressCell {
        ProgressCell::new(0)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let _ = self.0.send(Piece::Gone);
    }
}

struct Ear(mpsc::UnboundedSender<LinkClosed>);

impl LinkEvents for Ear {
    fn nack(&self, _: Nack) {}

    fn closed(&self, cause: LinkClosed) {
        let _ = self.0.send(cause);
    }
}

/// A network where node 1 and node 2 have faults of their own.
struct Ends {
    faults: [Faults; 2],
    transport: Arc<FaultyTransport<MemTransport>>,
    _listener: Box<dyn Listener>,
    came: mpsc::UnboundedReceiver<(Lane, Envelope)>,
    pieces: mpsc::UnboundedReceiver<Piece>,
}

async fn ends(seed: u64) -> Ends {
    let net = MemNet::new();
    let (transport, ours) = FaultyTransport::new(net.transport(), seed);
    let (listening, theirs) = FaultyTransport::new(net.transport(), seed);
    let ((sender, came), (pieces_sender, pieces)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    let listener = listening.listen(&peer().address, Arc::new(Host(sender, pieces_sender))).await.unwrap();
    Ends { faults: [ours, theirs], transport, _listener: listener, came, pieces }
}

fn peer() -> Peer {
    Peer { id: node(2), address: "mem://b:1".parse().unwrap() }
}

fn hello() -> Hello {
    let (cluster, incarnation) = (ClusterId::new("test").unwrap(), Incarnation::new(7).unwrap());
    Hello { cluster, from: node(1), to: node(2), incarnation, protocol: PROTOCOL_VERSION }
}

fn numbered(index: u64) -> Envelope {
    let mut message = Message::new(MessageKind::Append, node(1), node(2));
    (message.index, message.context) = (index, Bytes::from_static(&[0; 10]));
    Envelope { group: GroupId::DEFAULT, message }
}

fn batch(indexes: impl IntoIterator<Item = u64>) -> Batch {
    Batch { envelopes: indexes.into_iter().map(numbered).collect() }
}

impl Ends {
    async fn link(&self, lane: Lane) -> (Box<dyn Link>, mpsc::UnboundedReceiver<LinkClosed>) {
        let (sender, closed) = mpsc::unbounded_channel();
        let feedback = LinkFeedback::new(Arc::new(Ear(sender)));
        let connected = self.transport.connect(&peer(), lane, &hello(), feedback).await.unwrap();
        (connected.link, closed)
    }

    async fn indexes(&mut self, count: usize) -> Vec<u64> {
        let mut came = Vec::new();
        for _ in 0..count {
            came.push(within(self.came.recv()).await.unwrap().1.message.index);
        }
        came
    }

    async fn transfer(&self) -> Box<dyn Transfer> {
        let head = SnapshotHead {
            group: GroupId::DEFAULT,
            at: LogId { index: 7, term: 2 },
            conf_state: Default::default(),
            members: Default::default(),
        };
        let Trailer { length, content } = ContentHasher::new(&head).finish();
        let message = Message::new(MessageKind::Snapshot, node(1), node(2));
        let offer = SnapshotOffer { message, meta: SnapshotMeta { head, length, content }, attempt: 1 };
        match self.transport.offer(&peer(), &hello(), &offer, &ProgressCell::new(0)).await {
            Ok(OfferAnswer::Accepted { transfer, .. }) => transfer,
            _ => panic!("not accepted"),
        }
    }
}

fn chunk(offset: u64) -> Chunk {
    Chunk { offset, data: Bytes::from_static(b"0123456789"), crc32c: crc32c::crc32c(b"0123456789") }
}

fn trailer() -> Trailer {
    Trailer { length: 20, content: towline_engine::snapshot_store::ContentId([7; 16]) }
}

#[tokio::test]
async fn without_faults_everything_passes() {
    let mut ends = ends(1).await;
    let (mut link, mut closed) = ends.link(Lane::Append).await;
    link.dispatch(batch(0..3)).await.unwrap();
    assert_eq!(ends.indexes(3).await, [0, 1, 2]);
    drop(link);
    assert_eq!(within(closed.recv()).await, Some(LinkClosed::Abandoned));
    assert!(within(closed.recv()).await.is_none());
    assert_eq!(ends.faults[0].counts(), FaultCounts::default());
}

#[tokio::test]
async fn chances_of_messages_do_what_they_say_in_both_directions() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        let mut ends = ends(1).await;
        let (mut link, _closed) = ends.link(Lane::Append).await;
        let faults = ends.faults[number].clone();
        let set = |on: LaneFaults| faults.lane(Lane::Append, direction, on);

        set(LaneFaults { duplicate: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([1])).await.unwrap();
        assert_eq!(ends.indexes(2).await, [1, 1]);

        set(LaneFaults { reorder: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([2])).await.unwrap();
        link.dispatch(batch([3])).await.unwrap();
        assert_eq!(ends.indexes(2).await, [3, 2]);

        set(LaneFaults { truncate: 1.0, ..LaneFaults::default() });
        let mut whole = batch([4]);
        whole.envelopes[0].message.entries = vec![Entry::default(); 2];
        link.dispatch(whole).await.unwrap();
        assert_eq!(within(ends.came.recv()).await.unwrap().1.message.entries.len(), 1);

        set(LaneFaults { corrupt: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([5])).await.unwrap();
        let message = within(ends.came.recv()).await.unwrap().1.message;
        assert_eq!(message.context.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);

        set(LaneFaults { drop: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([6])).await.unwrap();
        set(LaneFaults { black_hole: true, ..LaneFaults::default() });
        link.dispatch(batch([7])).await.unwrap();
        within(async {
            while faults.counts().dropped < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        faults.clear();
        link.dispatch(batch([8])).await.unwrap();
        assert_eq!(ends.indexes(1).await, [8]);
        let once =
            FaultCounts { duplicated: 1, reordered: 1, truncated: 1, corrupted: 1, ..Default::default() };
        assert_eq!(faults.counts(), FaultCounts { dropped: 2, ..once });
    }
}

#[tokio::test]
async fn a_fault_of_one_lane_leaves_the_other() {
    let mut ends = ends(1).await;
    ends.faults[0].lane(
        Lane::Append,
        Direction::Out,
        LaneFaults { black_hole: true, ..LaneFaults::default() },
    );
    let ((mut control, _c), (mut append, _a)) =
        (ends.link(Lane::Control).await, ends.link(Lane::Append).await);
    append.dispatch(batch([1])).await.unwrap();
    control.dispatch(batch([2])).await.unwrap();
    assert_eq!(within(ends.came.recv()).await.unwrap(), (Lane::Control, numbered(2)));
    assert!(ends.came.try_recv().is_err());
}

#[tokio::test]
async fn the_same_seed_drops_the_same_messages() {
    let mut runs = Vec::new();
    for seed in [5, 5, 6] {
        let mut ends = ends(seed).await;
        let (mut link, _closed) = ends.link(Lane::Append).await;
        ends.faults[0].lane(Lane::Append, Direction::Out, LaneFaults { drop: 0.5, ..LaneFaults::default() });
        link.dispatch(batch(0..200)).await.unwrap();
        let count = 200 - ends.faults[0].counts().dropped as usize;
        runs.push(ends.indexes(count).await);
    }
    assert!((50..150).contains(&runs[0].len()));
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_dispatch_takes_the_delay_and_the_time_of_a_slow_reader() {
    let ends = ends(1).await;
    let (mut link, _closed) = ends.link(Lane::Append).await;
    let slow =
        LaneFaults { bytes_per_s: Some(100), delay: Duration::from_millis(50), ..LaneFaults::default() };
    ends.faults[0].lane(Lane::Append, Direction::Out, slow);
    let since = Instant::now();
    link.dispatch(batch([1])).await.unwrap();
    assert!(since.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_link_dies_after_its_messages_or_bytes_and_its_end_is_told_once() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        for on in [
            LaneFaults { kill_after_messages: Some(3), ..LaneFaults::default() },
            LaneFaults { kill_after_bytes: Some(30), ..LaneFaults::default() },
        ] {
            let mut ends = ends(1).await;
            let (mut link, mut closed) = ends.link(Lane::Append).await;
            ends.faults[number].lane(Lane::Append, direction, on);
            link.dispatch(batch(0..3)).await.unwrap();
            assert_eq!(ends.indexes(3).await, [0, 1, 2]);
            let killed = link.dispatch(batch([3])).await;
            match within(closed.recv()).await.unwrap() {
                LinkClosed::Broken { detail } if direction == Direction::Out => {
                    assert_eq!(detail, "fault: killed");
                    assert!(matches!(killed, Err(DispatchError::Closed)));
                }
                LinkClosed::ByPeer { .. } if direction == Direction::In => {}
                other => panic!("{direction:?}: {other:?}"),
            }
            assert!(within(closed.recv()).await.is_none());
            assert!(link.dispatch(batch([4])).await.is_err());
            assert!(ends.came.try_recv().is_err());
            assert_eq!(ends.faults[number].counts().killed, 1);
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_cut_at_its_chunk_and_without_its_end_and_the_sink_goes() {
    for on in [
        SnapshotFaults { cut_at_chunk: Some(1), ..SnapshotFaults::default() },
        SnapshotFaults { drop_trailer: true, ..SnapshotFaults::default() },
    ] {
        let mut ends = ends(1).await;
        ends.faults[0].snapshots(Direction::Out, on);
        let mut transfer = ends.transfer().await;
        transfer.send(chunk(0)).await.unwrap();
        let second = transfer.send(chunk(10)).await;
        let end = match on.drop_trailer {
            true => transfer.finish(trailer()).await.unwrap_err(),
            false => {
                drop(transfer);
                second.unwrap_err()
            }
        };
        assert!(matches!(end, TransferError::Broken { .. }), "{end:?}");
        let mut last = Piece::End;
        while last != Piece::Gone {
            last = within(ends.pieces.recv()).await.unwrap();
            assert_ne!(last, Piece::End);
        }
        assert_eq!(ends.faults[0].counts().transfers_cut, 1);
    }
}

#[tokio::test]
async fn a_chunk_is_corrupted_and_keeps_its_checksum_in_both_directions() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        let mut ends = ends(1).await;
        let on = SnapshotFaults { corrupt_chunk: Some(1), ..SnapshotFaults::default() };
        ends.faults[number].snapshots(direction, on);
        let mut transfer = ends.transfer().await;
        transfer.send(chunk(0)).await.unwrap();
        transfer.send(chunk(10)).await.unwrap();
        assert_eq!(within(ends.pieces.recv()).await.unwrap(), Piece::Chunk(chunk(0)));
        let Piece::Chunk(second) = within(ends.pieces.recv()).await.unwrap() else { panic!() };
        assert_eq!(second.crc32c, chunk(10).crc32c);
        assert_ne!(second.crc32c, crc32c::crc32c(&second.data));
        within(transfer.finish(trailer())).await.unwrap();
    }
}

#[tokio::test]
async fn a_stalled_snapshot_goes_on_when_the_fault_is_over() {
    let ends = ends(1).await;
    let on = SnapshotFaults { stall_at_chunk: Some(1), ..SnapshotFaults::default() };
    ends.faults[0].snapshots(Direction::Out, on);
    let mut transfer = ends.transfer().await;
    transfer.send(chunk(0)).await.unwrap();
    let mut sending = tokio::spawn(async move {
        transfer.send(chunk(10)).await?;
        transfer.finish(trailer()).await
    });
    assert!(timeout(NOT_YET, &mut sending).await.is_err());
    ends.faults[0].clear();
    within(sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_receivers_full_disk_is_its_typed_refusal() {
    let ends = ends(1).await;
    let on = SnapshotFaults { cut_at_chunk: Some(1), ..SnapshotFaults::default() };
    ends.faults[1].snapshots(Direction::In, on);
    let mut transfer = ends.transfer().await;
    let failed = within(async {
        loop {
            if let Err(error) = transfer.send(chunk(0)).await {
                return error;
            }
        }
    });
    let refused = failed.await;
    assert!(matches!(&refused, TransferError::Refused(SnapshotRefusal::Storage { .. })), "{refused:?}");
}
