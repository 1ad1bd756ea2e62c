//! Nodes whose disks have too little room: they say so, serve what they can, and go on by themselves once there is room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

use std::time::Duration;

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::errors::ProposeError;
use towline_engine::log_store::DiskSpace;
use towline_engine::node::{Consistency, Group};
use towline_engine::status::Role;
use towline_engine::units::ByteSize;
use towline_testkit::cluster::{Cluster, Plan, node_id, quick, until, within};
use towline_testkit::list::ListMachine;

const NODES: u64 = 3;
const RESERVE: u64 = 300;
const DISK_LOW: u64 = 100;
const ROOM: u64 = 10_000;
/// Two of the longest election timeouts of `quick`.
const TWO_ELECTIONS: Duration = Duration::from_millis(2 * 800);

async fn start() -> Cluster {
    let config = Config { disk_low: ByteSize::bytes(DISK_LOW), ..quick() };
    let cluster = Plan::new(NODES, 1).config(config).start().await;
    cluster.acked(1, "before").await;
    cluster
}

/// Sets the free bytes of a node's disk.
fn set_free(cluster: &Cluster, node: u64, free: u64) {
    cluster.disks[&node].log.set_space(Some(DiskSpace { free, reserve: RESERVE }));
}

/// Waits until a node says whether its disk is low.
async fn until_low(group: &Group<ListMachine>, low: bool) {
    let end = tokio::time::Instant::now() + towline_testkit::cluster::DEADLINE;
    while within(group.status()).await.unwrap().disk_low != low {
        assert!(tokio::time::Instant::now() < end, "disk_low is not {low}");
        tokio::time::sleep(Duration::from_millis(2)).await; // not synchronisation: poll interval under a deadline
    }
}

/// An idle node notices, a node that starts knows at once, and leadership does not travel.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_whose_disks_are_all_low_refuse_commands_and_serve_reads_until_there_is_room() {
    let mut cluster = start().await;
    let leader = cluster.leader(1).await;
    let term = cluster.group(leader, 1).state().term;
    for node in 1..=NODES {
        set_free(&cluster, node, RESERVE + DISK_LOW - 1);
        until_low(&cluster.group(node, 1), true).await;
    }
    let refused = within(cluster.group(leader, 1).propose("refused")).await.unwrap_err();
    assert!(
        matches!(&refused, ProposeError::DiskFull { low } if low.contains(&node_id(leader))),
        "{refused}"
    );
    let follower = leader % NODES + 1;
    cluster.stop(follower, Duration::ZERO).await;
    cluster.restart(follower).await;
    assert!(within(cluster.group(follower, 1).status()).await.unwrap().disk_low, "from its start on");
    tokio::time::sleep(TWO_ELECTIONS).await; // not synchronisation: nothing may happen in this time
    let state = cluster.group(leader, 1).state();
    assert_eq!((state.role, state.term), (Role::Leader, term));
    for node in 1..=NODES {
        let list = within(cluster.group(node, 1).read(Consistency::Linearizable)).await.unwrap();
        assert_eq!(list.commands(), ["before"]);
    }
    // Less than a quarter more is no room.
    (1..=NODES).for_each(|node| set_free(&cluster, node, (RESERVE + DISK_LOW) * 5 / 4 - 1));
    tokio::time::sleep(Duration::from_millis(600)).await; // not synchronisation: nothing may happen in this time
    assert!(within(cluster.group(leader, 1).propose("refused")).await.is_err());
    (1..=NODES).for_each(|node| set_free(&cluster, node, ROOM));
    cluster.acked(1, "after").await;
    assert_eq!(cluster.group(leader, 1).state().term, term);
    assert_eq!(cluster.settled(1).await, ["before", "after"].map(Bytes::from));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_while_only_the_disk_of_the_leader_is_low() {
    let cluster = start().await;
    let sick = cluster.leader(1).await;
    set_free(&cluster, sick, 0);
    until("another node leads", || {
        cluster.states(1).iter().any(|(node, state)| *node != sick && state.role == Role::Leader)
    })
    .await;
    cluster.acked(1, "meanwhile").await;
    let leader = cluster.leader(1).await;
    assert_ne!(leader, sick);
    let status = within(cluster.group(leader, 1).status()).await.unwrap();
    assert!(status.peers.iter().any(|peer| peer.id == node_id(sick) && peer.disk_low), "{status:?}");
    set_free(&cluster, sick, ROOM);
    assert_eq!(cluster.settled(1).await, ["before", "meanwhile"].map(Bytes::from));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_to_a_voter_with_room() {
    let mut cluster = start().await;
    let leader = cluster.leader(1).await;
    cluster.settled(1).await;
    let others: Vec<_> = (1..=NODES).filter(|&node| node != leader).collect();
    // Both have the whole log. Of equals the one with the higher id takes over.
    let (roomy, low) = (others[0], others[1]);
    set_free(&cluster, low, 0);
    let knows = async |cluster: &Cluster| {
        let peers = within(cluster.group(leader, 1).status()).await.unwrap().peers;
        peers.iter().any(|peer| peer.id == node_id(low) && peer.disk_low)
    };
    let end = tokio::time::Instant::now() + towline_testkit::cluster::DEADLINE;
    while !knows(&cluster).await {
        assert!(tokio::time::Instant::now() < end, "the leader does not know");
        tokio::time::sleep(Duration::from_millis(2)).await; // not synchronisation: poll interval under a deadline
    }
    let term = cluster.group(leader, 1).state().term;
    cluster.stop(leader, Duration::from_secs(5)).await;
    let new = cluster.leader(1).await;
    assert_eq!((new, cluster.group(new, 1).state().term), (roomy, term + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_disk_is_low_catches_up_once_it_has_room() {
    let cluster = start().await;
    let leader = cluster.leader(1).await;
    let sick = leader % NODES + 1;
    set_free(&cluster, sick, 0);
    until_low(&cluster.group(sick, 1), true).await;
    for command in ["one", "two"] {
        within(cluster.group(leader, 1).propose(command)).await.expect("a quorum has room");
    }
    let commands = within(cluster.group(sick, 1).read(Consistency::Local)).await.unwrap().commands();
    assert_eq!(commands, ["before"]);
    set_free(&cluster, sick, ROOM);
    assert_eq!(cluster.settled(1).await, ["before", "one", "two"].map(Bytes::from));
    assert_eq!(cluster.leader(1).await, leader);
}
