//! What a group waits for. Half of the shortest election timeout is five ticks.

use std::time::Duration;

use towline_metrics::labels::WaitKind::{
    self, Apply, CatchingUp, Commit, DiskFull, Election, LogWrite, NoLeader, NoQuorum, Redundancy, Refused,
    Silent, Transfer,
};

use super::stalls::DrivenNode;
use super::*;
use crate::core::DiskRoom;
use crate::explain::{HeardVoter, Wait, WaitCause};
use crate::message::ConfState;
use crate::reporter::{Report, UnreachableCause};

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
    let cases: [Case<'_>; 11] = [
        (&[(0, DiskFull, 8)], &|node| node.group.set_disk_room(DiskRoom::Low), 8),
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
        // It has the log, so no failure less is tolerated.
        (&[(3, Apply, 14)], &|node| node.peers[1].applied = Some(node.group.state().applied), 14),
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
    let heard = |peer, heard| HeardVoter { id: id(peer), heard, refused: None };
    let heard = vec![heard(2, Some(Duration::ZERO)), heard(3, None)];
    let cause = WaitCause::NoQuorum { needed: 2, voters: heard };
    let age = 24 * TICK;
    let wait = Wait { peer: None, age, cause };
    assert_eq!(group.explain(TICK), std::slice::from_ref(&wait));
    assert_eq!(
        wait.to_string(),
        "this node: a quorum needs 2 voters; heard of node 2 0.0 s ago, node 3 never; for 0.0 s; \
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

#[test]
fn a_silent_peer_that_refuses_or_is_refused_is_explained_by_the_refusal() {
    let report = |node: &mut DrivenNode, cause| {
        let report = Report::Unreachable { group: GroupId::DEFAULT, peer: id(3), cause };
        assert!(node.group.take_report(report));
    };
    let lost = LostEntries { last_index: 55, acknowledged: 61 };
    type Case<'a> = (&'a dyn Fn(&mut DrivenNode), Option<&'a str>);
    let cases: [Case<'_>; 4] = [
        (&|node| node.group.note_refusal(id(3)), None),
        (
            &|node| report(node, UnreachableCause::Nack(NackCause::GroupDown)),
            Some("the group is out of service there"),
        ),
        (&|node| report(node, UnreachableCause::EntriesLost(lost)), Some("log ends at 55, acknowledged 61")),
        (&|node| node.group.note_objection(id(3), Objection::OtherList), Some("founded with another list")),
    ];
    for (refuse, why) in cases {
        let mut node = DrivenNode::leader(3);
        node.ticks(20);
        let acked = node.group.last_index();
        node.peers.truncate(1);
        for _ in 0..12 {
            refuse(&mut node);
            node.ticks(1);
        }
        let seen = waits(&node.group);
        assert!(matches!(seen[..], [(0, Redundancy, _), (3, Refused, 10..=13)]), "{seen:?}");
        let WaitCause::Refused { acked: at, why: seen } = node.group.explain(TICK).remove(1).cause else {
            panic!("{seen:?}")
        };
        assert_eq!((at, seen.is_some()), (acked, why.is_some()));
        assert!(seen.unwrap_or_default().contains(why.unwrap_or_default()));
        // Then it stops.
        node.ticks(20);
        let seen = waits(&node.group);
        assert!(matches!(seen[..], [(0, Redundancy, _), (3, Silent, 30..)]), "{seen:?}");
    }
}

/// The link to node 3 is cut and the one from it works.
#[test]
fn a_peer_that_asks_for_votes_and_answers_nothing_is_silent_to_its_leader() {
    let mut node = DrivenNode::leader(3);
    node.peers.truncate(1);
    let term = node.group.state().term;
    for _ in 0..12 {
        node.group.step(id(3), message(MessageKind::RequestPreVote, 3, term + 1)).unwrap();
        node.ticks(1);
    }
    let seen = waits(&node.group);
    assert!(matches!(seen[..], [(0, Redundancy, _), (3, Silent, _)]), "{seen:?}");
}

/// Both halves need a quorum, and a learner belongs to none.
#[test]
fn a_joint_configuration_is_counted_by_halves_and_learners_not_at_all() {
    let conf = |voters: &[u64], outgoing: &[u64], learners: &[u64]| {
        let ids = |raw: &[u64]| raw.iter().copied().map(id).collect();
        let (voters, voters_outgoing, learners) = (ids(voters), ids(outgoing), ids(learners));
        ConfState { voters, voters_outgoing, learners, ..ConfState::default() }
    };
    let lost = |missing: &[u64], tolerated| {
        Some(WaitCause::Redundancy { missing: missing.iter().copied().map(id).collect(), tolerated })
    };
    let no_quorum = |needed, heard: &[u64]| Some((needed, heard.iter().copied().map(id).collect::<Vec<_>>()));
    let halves = conf(&[1, 2, 3], &[1, 4, 5], &[6]);
    // The silent peers; then what is lost, or the half without a quorum.
    type Case<'a> = (&'a ConfState, &'a [u64], Option<WaitCause>, Option<(usize, Vec<NodeId>)>);
    let cases: [Case<'_>; 8] = [
        (&halves, &[6], None, None),
        (&halves, &[2], lost(&[2], 0), None),
        (&halves, &[4], lost(&[4], 0), None),
        (&halves, &[2, 4], lost(&[2, 4], 0), None),
        (&halves, &[4, 5], None, no_quorum(2, &[4, 5])),
        (&halves, &[2, 3], None, no_quorum(2, &[2, 3])),
        (&conf(&[1, 2, 3, 4, 5], &[1, 2, 3], &[]), &[4], lost(&[4], 1), None),
        (&conf(&[1, 2], &[], &[3, 4, 5]), &[3, 4, 5], None, None),
    ];
    for (conf, silent, redundancy, quorum) in cases {
        let mut node = DrivenNode::leads(conf.clone());
        node.ticks(20);
        assert_eq!(node.group.explain(TICK), [], "healthy");
        node.peers.retain(|peer| !silent.contains(&peer.id().as_u64()));
        node.ticks(8);
        let mut seen = node.group.explain(TICK);
        let of_peers = seen.split_off(usize::from(seen[0].peer.is_none()));
        assert!(of_peers.iter().all(|wait| wait.cause.kind() == Silent) && of_peers.len() == silent.len());
        match seen.pop().map(|wait| wait.cause) {
            Some(WaitCause::NoQuorum { needed, voters }) => {
                let voters = voters.into_iter().map(|voter| voter.id).collect();
                assert_eq!(Some((needed, voters)), quorum, "{silent:?} of {conf:?}");
            }
            cause => assert_eq!((cause, None), (redundancy, quorum), "{silent:?} of {conf:?}"),
        }
    }
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
