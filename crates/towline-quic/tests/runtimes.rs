//! Which runtime does the work of a connection.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

use crate::common::*;
use tokio::runtime::{Builder, Runtime};
use towline_engine::ids::GroupId;
use towline_engine::message::{Lane, LogId, Message, MessageKind};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta};
use towline_engine::transport::{OfferAnswer, ProgressCell, SnapshotOffer, Transport};
use towline_quic::QuicConfig;

fn offer() -> SnapshotOffer {
    let at = LogId { index: 1, term: 1 };
    let head = SnapshotHead {
        group: GroupId::new(1),
        at,
        conf_state: Default::default(),
        members: Default::default(),
    };
    let message = Message { term: 1, ..Message::new(MessageKind::Snapshot, node(1), node(2)) };
    SnapshotOffer { message, meta: SnapshotMeta { head, length: 1, content: ContentId([7; 16]) }, attempt: 1 }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The most tasks that this runtime had at a time while it offered a snapshot, which itself is none.
fn tasks_of_an_offer(
    bulk: &Runtime,
    transport: &towline_quic::QuicTransport,
    at: std::net::SocketAddr,
) -> usize {
    bulk.block_on(async {
        let (peer, hello, offer, cell) = (peer(at), hello(), offer(), ProgressCell::new(0));
        let mut most = 0;
        let sample = async {
            loop {
                most = most.max(bulk.metrics().num_alive_tasks());
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            answer = within(transport.offer(&peer, &hello, &offer, &cell)) => {
                assert!(matches!(answer, Ok(OfferAnswer::Refused(_))), "refused by the double");
            }
            () = sample => {}
        }
        most
    })
}

/// A connection lives on the runtime it was made on. When a transfer made it, after the last one broke, the heartbeats of
/// that peer went through the threads that stand back behind everything else.
#[test]
fn a_snapshot_that_needs_a_connection_has_it_made_where_the_lanes_are() {
    let (listening, lanes, bulk) = (runtime(), runtime(), runtime());
    let (fake, _seen) = accepting();
    let listener = listening.block_on(listen(QuicConfig::default(), fake));
    let at = listener.local_addr();
    // Control: where there was no lane yet, the one who dials does the work.
    assert!(tasks_of_an_offer(&bulk, &dialler(QuicConfig::default()), at) > 0);

    let transport = dialler(QuicConfig::default());
    let (connected, _ear) = lanes.block_on(connect(&transport, at, Lane::Control));
    lanes.block_on(async { drop(connected.unwrap()) });
    let idle = std::time::Instant::now();
    while bulk.metrics().num_alive_tasks() + lanes.metrics().num_alive_tasks() > 0 {
        assert!(idle.elapsed() < std::time::Duration::from_secs(20), "the connections do not end");
        std::thread::yield_now();
    }
    assert_eq!(tasks_of_an_offer(&bulk, &transport, at), 0);

    // And where the lanes' runtime has ended, the transport still works.
    drop(lanes);
    assert!(tasks_of_an_offer(&bulk, &transport, at) > 0);
    listening.block_on(listener.shutdown());
}
