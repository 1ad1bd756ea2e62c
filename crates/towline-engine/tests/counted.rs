//! The counters of inbound messages and refusals.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use crate::common::{EmptyMachine, TestNode, address, id, wait};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::node::Start;
use towline_engine::transport::Refusal;

async fn follower() -> TestNode {
    let test = TestNode::start(Config::default()).await;
    let members = (1..=3).map(|peer| (id(peer), address(peer))).collect();
    let group = test.node.group(GroupId::DEFAULT, EmptyMachine::default());
    group.start(Start::Bootstrap(members)).await.unwrap();
    test
}

fn heartbeats(term: u64, count: usize) -> Batch {
    let message = Message { term, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }; count] }
}

#[tokio::test(flavor = "multi_thread")]
async fn superseded_messages_are_counted() {
    let test = follower().await;
    let session = test.session(2);
    // Repeated, because the shard may take each message before the next one comes.
    wait("superseded messages", || {
        session.deliver(Lane::Control, heartbeats(1, 64)).unwrap();
        (test.counter("towline_received_superseded_total", "lane=\"control\"") > 0).then_some(())
    })
    .await;
    assert_eq!(test.counter("towline_received_superseded_total", "lane=\"append\""), 0);
    let (superseded, received) = (
        test.counter("towline_received_superseded_total", ""),
        test.counter("towline_messages_received", ""),
    );
    assert!(superseded < received, "{superseded} of {received}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nacks_that_a_transport_drops_are_counted() {
    let test = follower().await;
    test.session(2).nacks_dropped(Lane::Append, 3);
    let label = "peer=\"2\",transport=\"other\",lane=\"append\",reason=\"no_room\"";
    assert_eq!(test.counter("towline_nacks_dropped_total", label), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_at_shutdown_is_not_counted_as_malformed() {
    let test = follower().await;
    test.inbound().refused(&Refusal::ShuttingDown);
    let rejects = |cause: &str| test.counter("towline_inbound_rejects_total", cause);
    assert_eq!(rejects("cause=\"shutting_down\""), 1);
    assert_eq!(rejects("cause=\"malformed\""), 0);
}
