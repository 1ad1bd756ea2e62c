//! What a node counts of the messages that come in, read from its scrape.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use crate::common::{Alone, Machine, address, id, wait};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::node::Start;
use towline_engine::transport::Refusal;

async fn follower() -> Alone {
    let alone = Alone::start(Config::default()).await;
    let members = (1..=3).map(|peer| (id(peer), address(peer))).collect();
    let group = alone.node.group(GroupId::DEFAULT, Machine::default());
    group.start(Start::Bootstrap(members)).await.unwrap();
    alone
}

fn heartbeats(term: u64, count: usize) -> Batch {
    let message = Message { term, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }; count] }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_give_way_to_newer_ones_are_counted() {
    let alone = follower().await;
    let session = alone.session(2);
    // The shard may look between any two of them, so it takes luck to have some give way; not much.
    wait("superseded messages", || {
        session.deliver(Lane::Control, heartbeats(1, 64)).unwrap();
        (alone.counter("towline_received_superseded_total", "lane=\"control\"") > 0).then_some(())
    })
    .await;
    assert_eq!(alone.counter("towline_received_superseded_total", "lane=\"append\""), 0);
    let (superseded, received) = (
        alone.counter("towline_received_superseded_total", ""),
        alone.counter("towline_messages_received", ""),
    );
    assert!(superseded < received, "{superseded} of {received}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_a_transport_had_no_room_for_are_counted() {
    let alone = follower().await;
    alone.session(2).nacks_dropped(Lane::Append, 3);
    let label = "peer=\"2\",transport=\"other\",lane=\"append\",reason=\"no_room\"";
    assert_eq!(alone.counter("towline_nacks_dropped_total", label), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_because_of_the_end_of_the_node_is_no_malformed_hello() {
    let alone = follower().await;
    alone.inbound().refused(&Refusal::ShuttingDown);
    let rejects = |cause: &str| alone.counter("towline_inbound_rejects_total", cause);
    assert_eq!(rejects("cause=\"shutting_down\""), 1);
    assert_eq!(rejects("cause=\"malformed\""), 0);
}
