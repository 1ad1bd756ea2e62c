//! Nodes that say what their groups wait for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

use crate::common::*;

/// Its leader keeps its leadership whatever stalls.
async fn cluster() -> Cluster {
    let config = Config { log_stall_timeout: DEADLINE, apply_stall_timeout: DEADLINE, ..quick() };
    let cluster = Plan::new(3, 1).config(config).start().await;
    cluster.acked(1, "before").await;
    cluster
}

/// Waits until a node explains this.
async fn explained(cluster: &Cluster, node: u64, what: &str, is: impl Fn(&[Wait]) -> bool) -> Vec<Wait> {
    eventually(what, async || {
        let waits = within(cluster.group(node, 1).explain()).await.unwrap();
        if is(&waits) { Ok(waits) } else { Err((node, waits)) }
    })
    .await
}

fn node_waits_for(waits: &[Wait]) -> Option<&WaitCause> {
    waits.iter().find(|wait| wait.peer.is_none()).map(|wait| &wait.cause)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_write_that_does_not_complete_is_named_until_it_does() {
    let cluster = cluster().await;
    let leader = cluster.leader(1).await;
    let hang = cluster.disks[&leader].log.hold_syncs();
    let begun = Instant::now();
    let _proposal = cluster.group(leader, 1).submit("stuck").unwrap();
    let is = |waits: &[Wait]| matches!(node_waits_for(waits), Some(WaitCause::LogWrite { .. }));
    let waits = explained(&cluster, leader, "log_write", is).await;
    assert!(waits[0].age <= begun.elapsed() + Duration::from_millis(10), "{waits:?}");
    drop(hang);
    explained(&cluster, leader, "nothing", <[Wait]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_machine_that_does_not_return_is_named_with_its_call() {
    let cluster = cluster().await;
    let leader = cluster.leader(1).await;
    let hold = cluster.group(leader, 1).read(Consistency::Local).await.unwrap().hold();
    let _proposal = cluster.group(leader, 1).submit("stuck").unwrap();
    let is = |waits: &[Wait]| match node_waits_for(waits) {
        Some(WaitCause::Apply { applied, commit, call: Some(call) }) => {
            applied < commit && call.contains("has been in `apply`")
        }
        _ => false,
    };
    explained(&cluster, leader, "apply with its call", is).await;
    drop(hold);
    explained(&cluster, leader, "nothing", <[Wait]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_state_machine_hangs_too_is_named_without_the_call_of_the_leader() {
    let cluster = cluster().await;
    cluster.settled(1).await;
    let leader = cluster.leader(1).await;
    let mut held = Vec::new();
    for node in cluster.nodes() {
        held.push(cluster.group(node, 1).read(Consistency::Local).await.unwrap().hold());
    }
    let _proposal = cluster.group(leader, 1).submit("stuck").unwrap();
    let calls = |waits: &[Wait]| -> Vec<(bool, bool)> {
        let of = |wait: &Wait| match &wait.cause {
            WaitCause::Apply { call, .. } => Some((wait.peer.is_some(), call.is_some())),
            _ => None,
        };
        waits.iter().filter_map(of).collect()
    };
    let is = |waits: &[Wait]| calls(waits).len() == 3;
    let waits = explained(&cluster, leader, "three state machines", is).await;
    assert_eq!(calls(&waits), [(false, true), (true, false), (true, false)], "{waits:?}");
    drop(held);
    explained(&cluster, leader, "nothing", <[Wait]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_peer_is_named_with_the_failures_still_tolerated_and_a_dead_quorum_too() {
    let mut cluster = cluster().await;
    let leader = cluster.leader(1).await;
    let (second, third) = (leader % 3 + 1, (leader + 1) % 3 + 1);
    cluster.crash(second);
    let lost = WaitCause::Redundancy { missing: vec![node_id(second)], tolerated: 0 };
    let is = |waits: &[Wait]| node_waits_for(waits) == Some(&lost);
    let waits = explained(&cluster, leader, "redundancy", is).await;
    assert!(matches!(waits[1].cause, WaitCause::Silent { .. }), "{waits:?}");
    assert_eq!(waits[1].peer, Some(node_id(second)));
    assert_eq!(within(cluster.group(third, 1).explain()).await.unwrap(), [], "its leader is fine");
    cluster.crash(third);
    let is = |waits: &[Wait]| matches!(node_waits_for(waits), Some(WaitCause::NoQuorum { needed: 2, .. }));
    explained(&cluster, leader, "no_quorum", is).await;
    cluster.restart(second).await;
    cluster.restart(third).await;
    let leader = cluster.leader(1).await;
    explained(&cluster, leader, "nothing", <[Wait]>::is_empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_group_is_down_on_its_node_and_refused_to_its_leader() {
    let machine = |node, _| match node == node_id(1) {
        true => ListMachine::new().failing("boom", Trouble::Fatal),
        false => ListMachine::new(),
    };
    let cluster = Plan::new(3, 1).machine(machine).start().await;
    cluster.acked(1, "boom").await;
    let down = |waits: &[Wait]| matches!(node_waits_for(waits), Some(WaitCause::Down { .. }));
    let waits = explained(&cluster, 1, "down", down).await;
    assert!(waits.len() == 1 && waits[0].to_string().contains("told to fail"), "{waits:?}");
    let leader = cluster.leader(1).await;
    explained(&cluster, leader, "refused", |waits| refusal_by(waits, 1, "out of service there")).await;
}

/// Whether the peer is explained as refused, with this in the cause.
fn refusal_by(waits: &[Wait], peer: u64, why: &str) -> bool {
    waits.iter().any(|wait| match &wait.cause {
        WaitCause::Refused { why: Some(text), .. } => wait.peer == Some(node_id(peer)) && text.contains(why),
        _ => false,
    })
}

/// Neither the leader nor the wiped node said why they did not hear each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_connections_are_refused_is_explained_by_the_refusal_on_both_sides() {
    let mut cluster = cluster().await;
    let leader = cluster.leader(1).await;
    let wiped = leader % 3 + 1;
    for (from, to) in [(1, 2), (2, 1), (2, 3), (3, 2), (1, 3), (3, 1)] {
        until("links", || cluster.net.links(node_id(from), node_id(to)) == 2).await;
    }
    cluster.crash(wiped);
    cluster.disks.insert(wiped, Disk::default());
    cluster.restart(wiped).await;
    let is = |waits: &[Wait]| refusal_by(waits, wiped, "came with another incarnation");
    explained(&cluster, leader, "refused", is).await;
    let is = |waits: &[Wait]| match node_waits_for(waits) {
        Some(WaitCause::NoQuorum { voters, .. }) => voters.iter().all(|voter| {
            let why = voter.refused.as_deref().unwrap_or_default();
            why.contains("it refuses this node") && why.contains("emptied or exchanged")
        }),
        _ => false,
    };
    explained(&cluster, wiped, "no_quorum with the refusals", is).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_cluster_waits_for_nothing_idle_or_under_load() {
    // Half of the shortest election timeout must be longer than the pauses of the machine.
    let (min, max) = (Duration::from_secs(1), Duration::from_secs(2));
    let config = Config { election_timeout_min: min, election_timeout_max: max, ..quick() };
    let cluster = Plan::new(3, 1).config(config).start().await;
    cluster.acked(1, "before").await;
    let leader = cluster.leader(1).await;
    for node in cluster.nodes() {
        explained(&cluster, node, "nothing", <[Wait]>::is_empty).await;
    }
    let begun = Instant::now();
    while begun.elapsed() < min {
        within(cluster.group(leader, 1).propose("load")).await.expect("it leads");
        for node in cluster.nodes() {
            assert_eq!(within(cluster.group(node, 1).explain()).await.unwrap(), [], "node {node}");
        }
    }
    tokio::time::sleep(min).await; // not synchronisation: nothing may happen in this time
    for node in cluster.nodes() {
        assert_eq!(within(cluster.group(node, 1).explain()).await.unwrap(), [], "node {node}");
    }
}
