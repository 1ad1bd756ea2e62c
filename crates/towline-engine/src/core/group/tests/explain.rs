//! What a group waits for. Half of the shortest election timeout is five ticks.

use std::time::Duration;

use towline_metrics::labels::WaitKind::{
    self, Apply, CatchingUp, Commit, DiskFull, Election, LogWrite, NoLeader, NoQuorum, Redundancy, Silent,
    Transfer,
};

use super::stalls::DrivenNode;
use super::*;
use crate::explain::{HeardVoter, Wait, WaitCause};

const TICK: Duration = Duration::from_millis(1);

/// Subject, kind and age in ticks of each wait.
fn waits(group: &GroupCore<u64, u64>) -> Vec<(u64, WaitKind, u64)> {
    let short = |wait: Wait| {
        let age = wait.age.as_millis() as u64;
        (wait.peer.map_or(0, |peer| peer.as_u64()), wait.cause.kind(), age)
    };
    group.explain(TICK).into_iter().map(short).collect()
}

/// Each case makes one cause. The age that a wait shows is exact where the core knows the beginning, and otherwise counts from
/// the next heartbeat interval, of two ticks.
#[test]
fn each_cause_is_named_with_its_age() {
    let leader = |change: &dyn Fn(&mut DrivenNode), ticks| {
        let mut node = DrivenNode::leader(3);
        node.propose();
        node.ticks(20);
        assert_eq!(node.group.explain(TICK), [], "healthy");
        change(&mut node);
        node.propose();
        node.ticks(ticks);
        waits(&node.group)
    };
    type Case<'a> = (&'a [(u64, WaitKind, u64)], &'a dyn Fn(&mut DrivenNode), u64);
    let cases: [Case<'_>; 10] = [
        (&[(0, DiskFull, 8)], &|node| node.group.set_disk_low(true), 8),
        (&[(0, Redundancy, 8), (3, DiskFull, 8)], &|node| node.peers[1].low = true, 10),
        (
            &[(0, DiskFull, 8), (2, DiskFull, 8), (3, DiskFull, 8)],
            &|node| node.peers.iter_mut().for_each(|peer| peer.low = true),
            10,
        ),
        (&[(0, LogWrite, 8)], &|node| node.disk_works = false, 8),
        (&[(0, Apply, 8)], &|node| node.applies = false, 8),
        (
            &[(0, Commit, 8), (2, CatchingUp, 8), (3, CatchingUp, 8)],
            &|node| node.peers.iter_mut().for_each(|peer| peer.appends = false),
            8,
        ),
        (&[(0, Redundancy, 8), (3, CatchingUp, 8)], &|node| node.peers[1].appends = false, 8),
        (&[(0, Redundancy, 12), (3, Silent, 12)], &|node| node.peers.truncate(1), 12),
        (&[(0, NoQuorum, 8), (2, Silent, 8), (3, Silent, 8)], &|node| node.peers.clear(), 8),
        (&[(0, Transfer, 9)], &|node| node.group.transfer(id(2)).unwrap(), 9),
    ];
    for (expected, change, ticks) in cases {
        let seen = leader(change, ticks);
        let close = |(a, b): (&(u64, WaitKind, u64), &(u64, WaitKind, u64))| {
            (a.0, a.1) == (b.0, b.1) && a.2.abs_diff(b.2) <= HEARTBEAT
        };
        assert!(
            seen.len() == expected.len() && seen.iter().zip(expected).all(close),
            "{seen:?} instead of {expected:?}"
        );
    }
}

#[test]
fn a_node_without_a_leader_names_the_election_and_then_the_missing_quorum() {
    let mut group = group(3);
    for (ticks, kind) in [(9, NoLeader), (10, Election), (5, NoQuorum)] {
        group.ticks(ticks);
        group.settle();
        let seen = waits(&group);
        assert!(matches!(seen[..], [(0, seen, _)] if seen == kind), "{seen:?} instead of {kind}");
    }
    group.deliver(message(MessageKind::RequestPreVoteResponse, 2, 1));
    let heard =
        vec![HeardVoter { id: id(2), heard: Some(Duration::ZERO) }, HeardVoter { id: id(3), heard: None }];
    let cause = WaitCause::NoQuorum { needed: 2, voters: heard };
    let age = 24 * TICK;
    let wait = Wait { peer: None, age, cause };
    assert_eq!(group.explain(TICK), std::slice::from_ref(&wait));
    assert_eq!(
        wait.to_string(),
        "this node: 2 voters are needed, this node included; heard of node 2 0.0 s ago, node 3 never; for 0.0 s; \
         ends when enough of these voters run and can be reached"
    );
}

#[test]
fn a_healthy_group_explains_nothing_idle_or_under_load_and_a_follower_nothing_about_others() {
    let mut node = DrivenNode::leader(3);
    node.waits.clear();
    for _ in 0..200 {
        node.propose();
        node.ticks(1);
        assert_eq!(node.group.explain(TICK), []);
    }
    // Acknowledgements that are always behind, and never by much.
    node.peers.iter_mut().for_each(|peer| peer.appends = false);
    for _ in 0..100 {
        let (term, index) = (node.group.state().term, node.group.last_index());
        node.propose();
        node.ticks(1);
        for peer in 2..=3 {
            let answer = Message { index, ..message(MessageKind::AppendResponse, peer, term) };
            node.group.step(id(peer), answer).unwrap();
        }
        assert_eq!(node.group.explain(TICK), []);
    }
    node.peers.iter_mut().for_each(|peer| peer.appends = true);
    node.ticks(200);
    assert_eq!((node.group.explain(TICK), &node.waits[..], &node.waiting[..]), (vec![], &[][..], &[][..]));
    node.new_leader(2);
    let term = node.group.state().term;
    node.peers.clear();
    for _ in 0..100 {
        node.group.step(id(2), heartbeat(term)).unwrap();
        node.ticks(1);
        assert_eq!(node.group.explain(TICK), []);
    }
    assert_eq!(node.waits, []);
}

/// An index that needs long for each stretch lags from the beginning of the first one.
#[test]
fn a_peer_that_takes_entries_slowly_lags_since_it_began_to() {
    let mut node = DrivenNode::leader(3);
    node.ticks(20);
    node.peers[1].appends = false;
    for _ in 0..10 {
        node.propose();
        node.ticks(8);
        // It has what existed eight ticks ago, and no more.
        let (term, index) = (node.group.state().term, node.group.last_index() - 1);
        let answer = Message { index, ..message(MessageKind::AppendResponse, 3, term) };
        node.group.step(id(3), answer).unwrap();
    }
    node.ticks(2);
    let seen = waits(&node.group);
    assert!(matches!(seen[..], [(0, Redundancy, 60..), (3, CatchingUp, 60..)]), "{seen:?}");
}

#[test]
fn a_wait_is_logged_once_it_is_longer_than_an_election_timeout_and_again_when_it_ends() {
    let mut node = DrivenNode::leader(3);
    node.ticks(20);
    node.waits.clear();
    let silent = node.peers.pop().unwrap();
    node.ticks(8);
    assert_eq!((&node.waits[..], &node.waiting[..]), (&[][..], &[Redundancy, Silent][..]));
    node.ticks(500);
    let notices: Vec<_> = node.waits.drain(..).map(|n| (n.peer, n.kind, n.ended)).collect();
    assert_eq!(notices, [(Some(id(3)), Silent, false)]);
    node.peers.push(silent);
    node.ticks(8);
    let notices: Vec<_> = node.waits.drain(..).map(|n| (n.peer, n.kind, n.ended, n.ticks > 500)).collect();
    assert_eq!((&notices[..], &node.waiting[..]), (&[(Some(id(3)), Silent, true, true)][..], &[][..]));
}

/// The lines of a stall name the disk and the state machine of a leader. A follower has no such lines.
#[test]
fn a_stall_that_has_lines_of_its_own_is_not_logged_twice() {
    let mut node = DrivenNode::leader(3);
    node.waits.clear();
    node.peers.iter_mut().for_each(|peer| peer.appends = false);
    node.disk_works = false;
    node.propose();
    node.ticks(100);
    let about_node =
        |node: &DrivenNode| node.waits.iter().filter(|n| n.peer.is_none()).map(|n| n.kind).collect();
    assert_eq!((about_node(&node), node.notices.len()), (Vec::<WaitKind>::new(), 1), "{:?}", node.notices);
    node.new_leader(2);
    node.ticks(4);
    assert_eq!(about_node(&node), [LogWrite], "it still hangs");
}
