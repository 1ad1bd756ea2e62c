//! Batches are what moves: a lane carries far more small messages than a Raft group makes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

mod common;

use std::time::Instant;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use towline_engine::message::{Batch, Lane, Message, MessageKind};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::*;
use towline_quic::{QuicConfig, QuicTransport};

#[tokio::test]
async fn a_hundred_thousand_small_messages_cross_one_lane_on_one_core() {
    const BATCHES: u64 = 200;
    const PER_BATCH: usize = 500;
    let (fake, mut seen) = accepting();
    let listener = listen(QuicConfig::default(), fake).await;
    let (mut link, _ear) = link(&dialler(QuicConfig::default()), listener.local_addr(), Lane::Append).await;
    let start = Instant::now();
    let send = async {
        for index in 0..BATCHES {
            let envelopes = vec![batch(index, 64).envelopes.remove(0); PER_BATCH];
            link.dispatch(Batch { envelopes }).await.unwrap();
        }
    };
    let receive = async {
        let mut messages = 0;
        while messages < BATCHES as usize * PER_BATCH {
            messages += seen.delivered.recv().await.unwrap().1.envelopes.len();
        }
        messages
    };
    let ((), messages) = within(async { tokio::join!(send, receive) }).await;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{messages} messages in {seconds:.3} s: {:.0} a second, unoptimised build",
        messages as f64 / seconds
    );
}

const SNAPSHOT_BYTES: u64 = 64 << 20;

/// Counts and forgets.
struct Counts(Arc<AtomicU64>);

struct Sink(Arc<AtomicU64>);

#[async_trait]
impl SnapshotSink for Sink {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        self.0.fetch_add(chunk.data.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        Ok(SnapshotReceipt { commit: 1 })
    }

    fn progress(&self) -> ProgressCell {
        ProgressCell::new(self.0.load(Ordering::Relaxed))
    }
}

#[async_trait]
impl PeerSession for Counts {
    fn peer(&self) -> towline_engine::ids::NodeId {
        node(1)
    }

    fn welcome(&self) -> Welcome {
        welcome()
    }

    fn deliver(&self, _: Lane, _: Batch) -> Result<Vec<Nack>, Violation> {
        Ok(Vec::new())
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(SinkAnswer::Accept { offset: 0, sink: Box::new(Sink(Arc::clone(&self.0))) })
    }
}

impl Inbound for Counts {
    fn admit(&self, _: &Hello, _: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

/// Megabytes a second of a transfer to a sink that only counts.
async fn transfer() -> f64 {
    let taken = Arc::new(AtomicU64::new(0));
    let at = "quic://127.0.0.1:0".parse().unwrap();
    let listening = QuicTransport::new(QuicConfig::default(), of_node(2));
    let listener = listening.listen(&at, Arc::new(Counts(Arc::clone(&taken)))).await.unwrap();
    let head = SnapshotHead {
        group: towline_engine::ids::GroupId::new(1),
        at: towline_engine::message::LogId { index: 1, term: 1 },
        conf_state: Default::default(),
        members: Default::default(),
    };
    let content = ContentId([7; 16]);
    let mut message = Message::new(MessageKind::Snapshot, node(1), node(2));
    message.term = 1;
    let meta = SnapshotMeta { head, length: SNAPSHOT_BYTES, content };
    let offer = SnapshotOffer { message, meta, attempt: 1 };
    let dialler = dialler(QuicConfig::default());
    let answer =
        dialler.offer(&peer(listener.local_addr()), &hello(), &offer, &ProgressCell::new(0)).await.unwrap();
    let OfferAnswer::Accepted { mut transfer, .. } = answer else { panic!("not accepted") };
    let start = Instant::now();
    let data = Bytes::from(vec![7; 256 << 10]);
    for offset in (0..SNAPSHOT_BYTES).step_by(data.len()) {
        within(transfer.send(Chunk { offset, data: data.clone(), crc32c: 0 })).await.unwrap();
    }
    within(transfer.finish(Trailer { length: SNAPSHOT_BYTES, content })).await.unwrap();
    assert_eq!(taken.load(Ordering::Relaxed), SNAPSHOT_BYTES);
    SNAPSHOT_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// The same bytes on a bare stream of the same library, with the same certificates and windows.
async fn bare() -> f64 {
    let server = raw::server(&AUTHORITY.issue(node(2)).unwrap(), b"towline/1");
    let at = server.local_addr().unwrap();
    let (raw, served) = tokio::join!(raw::good(at), async { server.accept().await.unwrap().await.unwrap() });
    let start = Instant::now();
    let send = async {
        let mut send = raw.connection.open_uni().await.unwrap();
        let data = Bytes::from(vec![7; 256 << 10]);
        for _ in (0..SNAPSHOT_BYTES).step_by(data.len()) {
            send.write_chunk(data.clone()).await.unwrap();
        }
        send.finish().unwrap();
        send.stopped().await.unwrap();
    };
    let receive = async {
        let (mut receive, mut taken) = (served.accept_uni().await.unwrap(), 0);
        while let Some(piece) = receive.read_chunk(usize::MAX, true).await.unwrap() {
            taken += piece.bytes.len() as u64;
        }
        taken
    };
    let ((), taken) = within(async { tokio::join!(send, receive) }).await;
    assert_eq!(taken, SNAPSHOT_BYTES);
    SNAPSHOT_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_is_nearly_as_fast_as_a_bare_stream() {
    let mut best = 0.0_f64;
    for _ in 0..5 {
        let (ours, theirs) = (transfer().await, bare().await);
        println!("transfer {ours:.0} MB/s, bare stream {theirs:.0} MB/s, unoptimised build");
        best = best.max(ours / theirs);
    }
    assert!(best > 0.7, "{:.0}% at best", best * 100.0);
}
