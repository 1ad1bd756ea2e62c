//! Writes that make snapshots and compact logs.

use super::*;

/// Writes `count` commands of `bytes` bytes to group 1.
pub(crate) async fn load(cluster: &Cluster, count: usize, bytes: usize) {
    for n in 0..count {
        let mut command = format!("{n} ").into_bytes();
        command.resize(bytes, b'.');
        cluster.acked(1, Bytes::from(command)).await;
    }
}

/// The first entry that the leader of a group keeps, or zero while there is none.
pub(crate) async fn first_index<M: StateMachine>(cluster: &Cluster<M>, group: u64) -> u64 {
    let leader = cluster.leader(group).await;
    within(cluster.group(leader, group).status()).await.map_or(0, |status| status.first_index)
}

/// Writes small commands until the leader's log no longer holds the entry after `index`.
pub(crate) async fn compact_past(cluster: &Cluster, group: u64, index: u64) {
    eventually("the log is compacted", async || {
        cluster.acked(group, "more").await;
        let first = first_index(cluster, group).await;
        if first > index + 1 { Ok(()) } else { Err(first) }
    })
    .await;
}

/// Waits until the leader's log no longer holds the entry after `index`.
pub(crate) async fn compacted_past<M: StateMachine>(cluster: &Cluster<M>, index: u64) {
    eventually("the log is compacted", async || {
        let first = first_index(cluster, 1).await;
        if first > index + 1 { Ok(()) } else { Err(first) }
    })
    .await;
}

/// A cluster of five with two followers that need a snapshot and are down.
pub(crate) async fn five_with_two_behind(plan: impl FnOnce(Plan) -> Plan) -> (Cluster, u64, [u64; 2]) {
    let mut cluster = plan(Plan::new(5, 1)).start().await;
    let leader = cluster.leader(1).await;
    let mut followers = (1..=5).filter(|node| *node != leader);
    let behind = [(); 2].map(|()| followers.next().unwrap());
    behind.iter().for_each(|node| cluster.crash(*node));
    load(&cluster, 45, 20_000).await;
    compact_past(&cluster, 1, 9).await;
    (cluster, leader, behind)
}

/// The status that the leader of group 1 has of a peer.
pub(crate) async fn peer_status(cluster: &Cluster, leader: u64, peer: u64) -> PeerStatus {
    let status = within(cluster.group(leader, 1).status()).await.unwrap();
    status.peers.into_iter().find(|status| status.id == node_id(peer)).expect("a member")
}
