//! Nodes whose disk or state machine stands still: leadership goes where there is progress, and what ends heals by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

use crate::common::*;

/// Five of the longest election timeouts of `quick`.
const FIVE_ELECTIONS: Duration = Duration::from_millis(5 * 800);

/// Waits at most five elections for another leader than `old`.
async fn leader_besides(cluster: &Cluster, old: u64) -> u64 {
    let leads = |node: &u64| *node != old && cluster.group(*node, 1).state().role == Role::Leader;
    let found = eventually("another leader", async || {
        cluster.nodes().into_iter().find(leads).ok_or_else(|| cluster.states(1))
    });
    tokio::time::timeout(FIVE_ELECTIONS, found).await.expect("another leader")
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_while_the_leaders_disk_hangs_and_the_sick_node_follows_once_it_answers() {
    let cluster =
        Plan::new(3, 1).config(Config { proposal_timeout: Duration::from_secs(3), ..quick() }).start().await;
    let sick = cluster.leader(1).await;
    cluster.acked(1, "before").await;
    let hang = cluster.disks[&sick].log.hold_syncs();
    let stuck = cluster.group(sick, 1);
    let stuck = tokio::spawn(async move { stuck.propose("meanwhile").await });
    let healthy = leader_besides(&cluster, sick).await;
    within(cluster.group(healthy, 1).propose("after")).await.expect("the others serve");
    // The other two committed it; this node answers once it knows, or when the deadline of the proposal has passed.
    match within(stuck).await.unwrap() {
        Ok(_) => {}
        Err(error) => assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}"),
    }
    let state = cluster.group(sick, 1).state();
    assert!(state.role != Role::Leader && state.down.is_none(), "{state:?}");
    drop(hang);
    let commands = cluster.settled(1).await;
    assert_eq!(commands, ["before", "meanwhile", "after"].map(Bytes::from));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_leads_while_the_leaders_state_machine_is_stuck() {
    let config = Config {
        apply_stall_timeout: Duration::from_millis(800),
        proposal_timeout: Duration::from_secs(1),
        ..quick()
    };
    let cluster = Plan::new(3, 1).config(config).start().await;
    let sick = cluster.leader(1).await;
    cluster.acked(1, "before").await;
    let held = cluster.group(sick, 1).read(Consistency::Local).await.unwrap().hold();
    let error = within(cluster.group(sick, 1).propose("meanwhile")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}");
    let healthy = leader_besides(&cluster, sick).await;
    within(cluster.group(healthy, 1).propose("after")).await.expect("the others serve");
    drop(held);
    let commands = cluster.settled(1).await;
    assert_eq!(commands, ["before", "meanwhile", "after"].map(Bytes::from));
}

/// Leadership stays while `hold` keeps a quorum from committing.
async fn leadership_stays<H>(apply_stall_timeout: Duration, hold: impl AsyncFnOnce(&Cluster, u64) -> H) {
    let config = Config { apply_stall_timeout, proposal_timeout: Duration::from_secs(1), ..quick() };
    let cluster = Plan::new(3, 1).config(config).start().await;
    let leader = cluster.leader(1).await;
    cluster.acked(1, "before").await;
    let held = hold(&cluster, leader).await;
    let error = within(cluster.group(leader, 1).propose("stuck")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}");
    let term = cluster.group(leader, 1).state().term;
    tokio::time::sleep(FIVE_ELECTIONS).await; // not synchronisation: nothing may happen in this time
    let state = cluster.group(leader, 1).state();
    assert_eq!((state.role, state.term), (Role::Leader, term));
    drop(held);
    cluster.acked(1, "after").await;
    assert_eq!(cluster.group(leader, 1).state().term, term, "it serves again, without an election");
}

/// Two voters of three have a disk that hangs.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_stays_while_the_disks_of_a_quorum_hang() {
    leadership_stays(quick().apply_stall_timeout, async |cluster, leader| {
        [leader, leader % 3 + 1].map(|node| cluster.disks[&node].log.hold_syncs())
    })
    .await;
}

/// Each state machine is stuck at the same command.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_stays_while_every_state_machine_is_stuck() {
    leadership_stays(Duration::from_millis(800), async |cluster, _| {
        until("all have applied it", || {
            cluster.states(1).windows(2).all(|two| two[0].1.applied == two[1].1.applied)
        })
        .await;
        let mut held = Vec::new();
        for node in cluster.nodes() {
            held.push(cluster.group(node, 1).read(Consistency::Local).await.unwrap().hold());
        }
        held
    })
    .await;
}
