//! Nodes whose disk or state machine stands still: leadership goes where there is progress, and what ends heals by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

use std::time::{Duration, Instant};

use bytes::Bytes;
use towline_engine::config::Config;
use towline_engine::errors::Outcome;
use towline_engine::node::Consistency;
use towline_engine::state_machine::StateMachine;
use towline_engine::status::Role;
use towline_testkit::cluster::{Cluster, Plan, quick, until, within};

/// Five of the longest election timeouts of `quick`.
const FIVE_ELECTIONS: Duration = Duration::from_millis(5 * 800);

async fn leader_besides<M: StateMachine>(cluster: &Cluster<M>, old: u64, within: Duration) -> u64 {
    let begun = Instant::now();
    let leads = |node: &u64| *node != old && cluster.group(*node, 1).state().role == Role::Leader;
    loop {
        if let Some(node) = cluster.nodes().into_iter().find(leads) {
            return node;
        }
        assert!(begun.elapsed() < within, "no other leader: {:?}", cluster.states(1));
        tokio::time::sleep(Duration::from_millis(2)).await; // not synchronisation: poll interval under a deadline
    }
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
    let healthy = leader_besides(&cluster, sick, FIVE_ELECTIONS).await;
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

/// Two voters of three have a disk that hangs: nothing can commit, and leadership does not travel.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_stays_while_the_disks_of_a_quorum_hang() {
    let cluster =
        Plan::new(3, 1).config(Config { proposal_timeout: Duration::from_secs(1), ..quick() }).start().await;
    let leader = cluster.leader(1).await;
    cluster.acked(1, "before").await;
    let follower = leader % 3 + 1;
    let hangs = [leader, follower].map(|node| cluster.disks[&node].log.hold_syncs());
    let error = within(cluster.group(leader, 1).propose("stuck")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}");
    let term = cluster.group(leader, 1).state().term;
    tokio::time::sleep(FIVE_ELECTIONS).await; // not synchronisation: nothing may happen in this time
    let state = cluster.group(leader, 1).state();
    assert_eq!((state.role, state.term), (Role::Leader, term));
    drop(hangs);
    within(cluster.group(leader, 1).propose("after")).await.expect("it serves again, without an election");
    assert_eq!(cluster.group(leader, 1).state().term, term);
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
    let healthy = leader_besides(&cluster, sick, FIVE_ELECTIONS).await;
    within(cluster.group(healthy, 1).propose("after")).await.expect("the others serve");
    drop(held);
    let commands = cluster.settled(1).await;
    assert_eq!(commands, ["before", "meanwhile", "after"].map(Bytes::from));
}

/// Each state machine is stuck at the same command.
#[tokio::test(flavor = "multi_thread")]
async fn leadership_stays_while_every_state_machine_is_stuck() {
    let config = Config {
        apply_stall_timeout: Duration::from_millis(800),
        proposal_timeout: Duration::from_secs(1),
        ..quick()
    };
    let cluster = Plan::new(3, 1).config(config).start().await;
    let leader = cluster.leader(1).await;
    cluster.acked(1, "before").await;
    until("all have applied it", || {
        cluster.states(1).windows(2).all(|two| two[0].1.applied == two[1].1.applied)
    })
    .await;
    let mut held = Vec::new();
    for node in cluster.nodes() {
        held.push(cluster.group(node, 1).read(Consistency::Local).await.unwrap().hold());
    }
    let error = within(cluster.group(leader, 1).propose("stuck")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::MayHaveHappened, "{error}");
    let term = cluster.group(leader, 1).state().term;
    tokio::time::sleep(FIVE_ELECTIONS).await; // not synchronisation: nothing may happen in this time
    let state = cluster.group(leader, 1).state();
    assert_eq!((state.role, state.term), (Role::Leader, term));
    drop(held);
    cluster.acked(1, "after").await;
    assert_eq!(cluster.group(leader, 1).state().term, term);
}
