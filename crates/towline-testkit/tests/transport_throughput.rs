//! Speeds of the transports on this machine. Alone in its binary, because it measures.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout
)] // helpers of tests

mod wires;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use towline_engine::message::{Batch, Lane};
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::*;
use towline_quic::{QuicConfig, QuicTransport};
use towline_testkit::cluster::{node_id, within};
use towline_testkit::doubles::{OfferReply, batch, hello};
use wires::raw::{self, quic_server};
use wires::{AUTHORITY, Bounds, Listening, Wire, of_node};

#[tokio::test]
async fn a_hundred_thousand_small_messages_cross_one_lane_on_one_core() {
    const BATCHES: u64 = 200;
    const PER_BATCH: usize = 500;
    for wire in Wire::BOTH {
        let listening = Listening::start(wire, &Bounds::default()).await;
        let dialler = wire.transport(&Bounds::default(), of_node(1));
        let (mut link, _log) = listening.link(&*dialler, Lane::Append).await;
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
                messages += listening.arrived().await.1.envelopes.len();
            }
            messages
        };
        let ((), messages) = within(async { tokio::join!(send, receive) }).await;
        let per_second = messages as f64 / start.elapsed().as_secs_f64();
        println!("{wire:?}: {messages} messages, {per_second:.0} a second, unoptimised build");
    }
}

const SNAPSHOT_BYTES: u64 = 64 << 20;

/// Counts the bytes and drops them.
struct CountingSink(Arc<AtomicU64>);

#[async_trait]
impl SnapshotSink for CountingSink {
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

/// Megabytes a second of a transfer to a sink that only counts.
async fn transfer() -> f64 {
    let taken = Arc::new(AtomicU64::new(0));
    let listening = Listening::on(&QuicTransport::new(QuicConfig::default(), of_node(2))).await;
    let counted = taken.clone();
    listening.inbound.on_offer(move |_| OfferReply::Into(Box::new(CountingSink(counted.clone()))));
    let offer = wires::offer(SNAPSHOT_BYTES);
    let dialler = QuicTransport::new(QuicConfig::default(), of_node(1));
    let (to, said, cell) = (listening.peer(), hello(1, 2), ProgressCell::new(0));
    let answer = dialler.offer(&to, &said, &offer, &cell).await.unwrap();
    let OfferAnswer::Accepted { mut transfer, .. } = answer else { panic!("not accepted") };
    let start = Instant::now();
    let data = Bytes::from(vec![7; 256 << 10]);
    for offset in (0..SNAPSHOT_BYTES).step_by(data.len()) {
        within(transfer.send(Chunk { offset, data: data.clone(), crc32c: 0 })).await.unwrap();
    }
    let trailer = Trailer { length: SNAPSHOT_BYTES, content: offer.meta.content };
    within(transfer.finish(trailer)).await.unwrap();
    assert_eq!(taken.load(Ordering::Relaxed), SNAPSHOT_BYTES);
    SNAPSHOT_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Megabytes a second of a bare stream of the library, with the same certificates and windows.
async fn bare() -> f64 {
    let server = quic_server(&AUTHORITY.issue(node_id(2)).unwrap(), b"towline/1");
    let at = server.local_addr().unwrap();
    let tls = raw::client(Some(&AUTHORITY.issue(node_id(1)).unwrap()), b"towline/1");
    let accept = async { server.accept().await.unwrap().await.unwrap() };
    let (dialled, served) = tokio::join!(raw::quic_connect(at, tls), accept);
    let dialled = dialled.unwrap();
    let start = Instant::now();
    let send = async {
        let mut send = dialled.open_uni().await.unwrap();
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
