//! A node whose disk lost entries that it had acknowledged: found, named on both sides, and kept out.

use crate::common::*;

const GROUP: GroupId = GroupId::DEFAULT;

/// Three nodes of which one has lost its last six entries while it was down: leader, that node, and what it lost.
async fn with_a_loss() -> (Cluster, u64, u64, LostEntries) {
    let mut cluster = Cluster::start(3, 1).await;
    let leader = cluster.leader(1).await;
    let sick = leader % 3 + 1;
    for number in 0..20 {
        cluster.acked(1, format!("before {number}")).await;
    }
    let last = cluster.group(leader, 1).status().await.unwrap().last_index;
    eventually("the node has all entries", async || {
        let peer = peer_status(&cluster, leader, sick).await;
        if peer.matched < last { Err(peer) } else { Ok(()) }
    })
    .await;
    cluster.crash(sick);
    cluster.disks[&sick].log.lose_last(GROUP, 6);
    (cluster, leader, sick, LostEntries { last_index: last - 6, acknowledged: last })
}

async fn until_shown(cluster: &Cluster, leader: u64, peer: u64, lost: LostEntries) {
    eventually("the leader shows the loss", async || {
        let peer = peer_status(cluster, leader, peer).await;
        if peer.lost == Some(lost) { Ok(()) } else { Err(peer) }
    })
    .await;
}

/// T8. The follower stayed in `probe` for ever, held elections, and only a log line about an interrupted write hinted at it.
#[tokio::test(flavor = "multi_thread")]
async fn lost_entries_are_found_and_named_and_the_node_stays_out() {
    let (mut cluster, leader, sick, lost) = with_a_loss().await;
    assert_eq!(peer_status(&cluster, leader, sick).await.lost, None);
    cluster.restart(sick).await;
    let down = || cluster.group(sick, 1).state().down;
    until("the group is out of service", || down().is_some()).await;
    assert_eq!(down().unwrap().as_ref(), lost.to_string());
    assert_eq!(cluster.group(sick, 1).state().role, Role::Down);
    let recorded = || cluster.disks[&sick].storage().identity.lost().unwrap();
    until("the loss is recorded", || recorded() == [(GROUP, lost)].into()).await;
    until_shown(&cluster, leader, sick, lost).await;
    cluster.acked(1, "after").await;
    let term = cluster.group(leader, 1).state().term;

    // Neither a start of the group in this process nor one of the node undoes it.
    let again = cluster.up[&sick].node.group(GROUP, ListMachine::default()).start(Start::Restart).await;
    assert!(matches!(again, Err(StartError::EntriesLost { group: GROUP, lost: l }) if l == lost));
    cluster.stop(sick, Duration::from_secs(1)).await;
    let again = cluster.try_restart(sick).await.unwrap_err();
    assert!(matches!(again, StartError::EntriesLost { group: GROUP, lost: l } if l == lost), "{again}");
    assert!(
        again.to_string().contains(&lost.to_string()) && again.to_string().contains("Keep the group stopped")
    );
    cluster.acked(1, "at the end").await;
    assert_eq!(cluster.group(leader, 1).state().term, term, "the sick node held no election");
    let commands = cluster.commands(leader, 1).await;
    assert_eq!(commands.len(), 22, "{commands:?}");
}

/// The node runs other groups, or waits for an operator, and the group did not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_group_may_not_start_says_so_to_the_next_leader() {
    let (cluster, leader, sick, lost) = with_a_loss().await;
    cluster.disks[&sick].storage().identity.record_lost(GROUP, lost).unwrap();
    cluster.net.revive(node_id(sick));
    let node = Node::builder(node_id(sick), cluster_id())
        .config(quick())
        .storage(cluster.disks[&sick].storage())
        .transport(cluster.net.transport(), cluster.address(sick));
    let node = node.start().await.unwrap();
    let refused = node.group(GROUP, ListMachine::default()).start(Start::Restart).await.unwrap_err();
    assert!(matches!(refused, StartError::EntriesLost { .. }), "{refused}");
    until_shown(&cluster, leader, sick, lost).await;
    let next = cluster.nodes().into_iter().find(|node| ![leader, sick].contains(node)).unwrap();
    within(cluster.group(leader, 1).transfer(node_id(next))).await.unwrap();
    assert_eq!(cluster.leader(1).await, next);
    until_shown(&cluster, next, sick, lost).await;
    within(cluster.group(next, 1).read(Consistency::Linearizable)).await.unwrap();
    within(node.shutdown(Duration::ZERO)).await;
}
