#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::timeout;
use towline_engine::ids::GroupId;
use towline_engine::message::{Entry, LogId, Message, MessageKind};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{Chunk, DispatchError, Link, LinkClosed, Transfer};

use super::*;
use crate::cluster::{node_id as node, within};
use crate::doubles::{LinkLog, RecordingInbound, append, hello};
use crate::mem::{MemNet, MemTransport};

const NOT_YET: Duration = Duration::from_millis(100);

/// Node 1 dials node 2; each has its own faults.
struct FaultFixture {
    faults: [Faults; 2],
    transport: Arc<FaultyTransport<MemTransport>>,
    _listener: Box<dyn Listener>,
    inbound: RecordingInbound,
}

async fn fixture(seed: u64) -> FaultFixture {
    let net = MemNet::new();
    let (transport, ours) = FaultyTransport::new(net.transport(), seed);
    let (listening, theirs) = FaultyTransport::new(net.transport(), seed);
    let inbound = RecordingInbound::new(node(2));
    let listener = listening.listen(&peer().address, inbound.inbound()).await.unwrap();
    FaultFixture { faults: [ours, theirs], transport, _listener: listener, inbound }
}

fn peer() -> Peer {
    Peer { id: node(2), address: "mem://b:1".parse().unwrap() }
}

/// Messages of one group with ten zero bytes of payload each.
fn batch(indexes: impl IntoIterator<Item = u64>) -> Batch {
    let zeroed = |index| {
        let mut envelope = append(1, index, 0);
        envelope.message.context = Bytes::from_static(&[0; 10]);
        envelope
    };
    Batch { envelopes: indexes.into_iter().map(zeroed).collect() }
}

impl FaultFixture {
    async fn link(&self, lane: Lane) -> (Box<dyn Link>, LinkLog) {
        let (log, feedback) = LinkLog::new();
        let connected = self.transport.connect(&peer(), lane, &hello(1, 2), feedback).await.unwrap();
        (connected.link, log)
    }

    /// The next `count` messages.
    async fn messages(&self, count: usize) -> Vec<Message> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let batch = within(self.inbound.next_batch()).await.batch;
            messages.extend(batch.envelopes.into_iter().map(|envelope| envelope.message));
        }
        assert_eq!(messages.len(), count);
        messages
    }

    async fn indexes(&self, count: usize) -> Vec<u64> {
        self.messages(count).await.iter().map(|message| message.index).collect()
    }

    fn delivered(&self) -> usize {
        self.inbound.look(|log| log.delivered.len())
    }

    async fn transfer(&self) -> Box<dyn Transfer> {
        let head = SnapshotHead {
            founding: Default::default(),
            group: GroupId::DEFAULT,
            at: LogId { index: 7, term: 2 },
            conf_state: Default::default(),
            members: Default::default(),
        };
        let Trailer { length, content } = ContentHasher::new(&head).finish();
        let message = Message::new(MessageKind::Snapshot, node(1), node(2));
        let offer = SnapshotOffer { message, meta: SnapshotMeta { head, length, content }, attempt: 1 };
        match self.transport.offer(&peer(), &hello(1, 2), &offer, &ProgressCell::new(0)).await {
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
    let fixture = fixture(1).await;
    let (mut link, log) = fixture.link(Lane::Append).await;
    link.dispatch(batch(0..3)).await.unwrap();
    assert_eq!(fixture.indexes(3).await, [0, 1, 2]);
    drop(link);
    assert_eq!(within(log.closed()).await, LinkClosed::Abandoned);
    assert_eq!(fixture.faults[0].counts(), FaultCounts::default());
}

#[tokio::test]
async fn each_chance_of_a_message_works_in_both_directions() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        let fixture = fixture(1).await;
        let (mut link, _log) = fixture.link(Lane::Append).await;
        let faults = fixture.faults[number].clone();
        let set = |on: LaneFaults| faults.lane(Lane::Append, direction, on);

        set(LaneFaults { duplicate: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([1])).await.unwrap();
        assert_eq!(fixture.indexes(2).await, [1, 1]);

        set(LaneFaults { reorder: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([2])).await.unwrap();
        link.dispatch(batch([3])).await.unwrap();
        assert_eq!(fixture.indexes(2).await, [3, 2]);

        set(LaneFaults { truncate: 1.0, ..LaneFaults::default() });
        let mut whole = batch([4]);
        whole.envelopes[0].message.entries = vec![Entry::default(); 2];
        link.dispatch(whole).await.unwrap();
        assert_eq!(fixture.messages(1).await[0].entries.len(), 1);

        set(LaneFaults { corrupt: 1.0, ..LaneFaults::default() });
        link.dispatch(batch([5])).await.unwrap();
        let messages = fixture.messages(1).await;
        assert_eq!(messages[0].context.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);

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
        assert_eq!(fixture.indexes(1).await, [8]);
        let once =
            FaultCounts { duplicated: 1, reordered: 1, truncated: 1, corrupted: 1, ..Default::default() };
        assert_eq!(faults.counts(), FaultCounts { dropped: 2, ..once });
    }
}

#[tokio::test]
async fn a_fault_of_one_lane_leaves_the_other() {
    let fixture = fixture(1).await;
    fixture.faults[0].lane(
        Lane::Append,
        Direction::Out,
        LaneFaults { black_hole: true, ..LaneFaults::default() },
    );
    let ((mut control, _c), (mut append, _a)) =
        (fixture.link(Lane::Control).await, fixture.link(Lane::Append).await);
    append.dispatch(batch([1])).await.unwrap();
    control.dispatch(batch([2])).await.unwrap();
    let delivered = within(fixture.inbound.next_batch()).await;
    assert_eq!((delivered.lane, delivered.batch), (Lane::Control, batch([2])));
    assert_eq!(fixture.delivered(), 0);
}

#[tokio::test]
async fn the_same_seed_drops_the_same_messages() {
    let mut runs = Vec::new();
    for seed in [5, 5, 6] {
        let fixture = fixture(seed).await;
        let (mut link, _log) = fixture.link(Lane::Append).await;
        fixture.faults[0].lane(
            Lane::Append,
            Direction::Out,
            LaneFaults { drop: 0.5, ..LaneFaults::default() },
        );
        link.dispatch(batch(0..200)).await.unwrap();
        let count = 200 - fixture.faults[0].counts().dropped as usize;
        runs.push(fixture.indexes(count).await);
    }
    assert!((50..150).contains(&runs[0].len()));
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_dispatch_takes_the_delay_and_the_time_of_a_slow_reader() {
    let fixture = fixture(1).await;
    let (mut link, _log) = fixture.link(Lane::Append).await;
    let slow =
        LaneFaults { bytes_per_s: Some(100), delay: Duration::from_millis(50), ..LaneFaults::default() };
    fixture.faults[0].lane(Lane::Append, Direction::Out, slow);
    let since = Instant::now();
    link.dispatch(batch([1])).await.unwrap();
    assert!(since.elapsed() >= Duration::from_millis(150));
}

#[tokio::test]
async fn a_link_breaks_after_its_messages_or_bytes_and_closes_once() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        for on in [
            LaneFaults { kill_after_messages: Some(3), ..LaneFaults::default() },
            LaneFaults { kill_after_bytes: Some(30), ..LaneFaults::default() },
        ] {
            let fixture = fixture(1).await;
            let (mut link, log) = fixture.link(Lane::Append).await;
            fixture.faults[number].lane(Lane::Append, direction, on);
            link.dispatch(batch(0..3)).await.unwrap();
            assert_eq!(fixture.indexes(3).await, [0, 1, 2]);
            let killed = link.dispatch(batch([3])).await;
            match within(log.closed()).await {
                LinkClosed::Broken { detail } if direction == Direction::Out => {
                    assert_eq!(detail, "fault: killed");
                    assert!(matches!(killed, Err(DispatchError::Closed)));
                }
                LinkClosed::ByPeer { .. } if direction == Direction::In => {}
                other => panic!("{direction:?}: {other:?}"),
            }
            assert!(link.dispatch(batch([4])).await.is_err());
            assert_eq!(fixture.delivered(), 0);
            assert_eq!(fixture.faults[number].counts().killed, 1);
        }
    }
}

#[tokio::test]
async fn a_snapshot_is_cut_at_a_chunk_or_its_end_and_drops_the_sink() {
    for on in [
        SnapshotFaults { cut_at_chunk: Some(1), ..SnapshotFaults::default() },
        SnapshotFaults { drop_trailer: true, ..SnapshotFaults::default() },
    ] {
        let fixture = fixture(1).await;
        fixture.faults[0].snapshots(Direction::Out, on);
        let mut transfer = fixture.transfer().await;
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
        within(fixture.inbound.until(|log| log.transfers[0].dropped)).await;
        assert!(fixture.inbound.look(|log| log.transfers[0].trailer.is_none()));
        assert_eq!(fixture.faults[0].counts().transfers_cut, 1);
    }
}

#[tokio::test]
async fn a_chunk_is_corrupted_and_keeps_its_checksum_in_both_directions() {
    for (number, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
        let fixture = fixture(1).await;
        let on = SnapshotFaults { corrupt_chunk: Some(1), ..SnapshotFaults::default() };
        fixture.faults[number].snapshots(direction, on);
        let mut transfer = fixture.transfer().await;
        transfer.send(chunk(0)).await.unwrap();
        transfer.send(chunk(10)).await.unwrap();
        within(transfer.finish(trailer())).await.unwrap();
        fixture.inbound.look(|log| {
            let [first, second] = &log.transfers[0].chunks[..] else { panic!("two chunks") };
            assert_eq!((first, second.crc32c), (&chunk(0), chunk(10).crc32c));
            assert_ne!(second.crc32c, crc32c::crc32c(&second.data));
        });
    }
}

#[tokio::test]
async fn a_stalled_snapshot_goes_on_when_the_fault_is_cleared() {
    let fixture = fixture(1).await;
    let on = SnapshotFaults { stall_at_chunk: Some(1), ..SnapshotFaults::default() };
    fixture.faults[0].snapshots(Direction::Out, on);
    let mut transfer = fixture.transfer().await;
    transfer.send(chunk(0)).await.unwrap();
    let mut sending = tokio::spawn(async move {
        transfer.send(chunk(10)).await?;
        transfer.finish(trailer()).await
    });
    assert!(timeout(NOT_YET, &mut sending).await.is_err());
    fixture.faults[0].clear();
    within(sending).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_full_disk_of_the_receiver_is_a_typed_refusal() {
    let fixture = fixture(1).await;
    let on = SnapshotFaults { cut_at_chunk: Some(1), ..SnapshotFaults::default() };
    fixture.faults[1].snapshots(Direction::In, on);
    let mut transfer = fixture.transfer().await;
    let failing = async {
        loop {
            if let Err(error) = transfer.send(chunk(0)).await {
                return error;
            }
        }
    };
    let refused = within(failing).await;
    assert!(matches!(&refused, TransferError::Refused(SnapshotRefusal::Storage { .. })), "{refused:?}");
}
