//! A node whose disk is low. The shortest election timeout is ten ticks.

use super::stalls::DrivenNode;
use super::*;
use crate::core::{DiskRoom, StallNotice};

fn no_op(index: u64, term: u64) -> Entry {
    Entry { data: Bytes::new(), ..entry(index, term) }
}

/// A follower whose log has an empty entry and a command, of term 1.
fn low_follower() -> TestGroup {
    let mut group = group(3);
    group.deliver(append(1, 0, vec![no_op(1, 1), entry(2, 1)]));
    group.settle();
    group.set_disk_room(DiskRoom::Low);
    group
}

#[test]
fn a_follower_with_a_low_disk_takes_everything_but_new_commands() {
    let mut group = low_follower();
    let change = Entry { kind: EntryKind::ConfChange, ..entry(4, 1) };
    let of_term_2 = Message { log_term: 1, ..append(2, 5, vec![entry(6, 2)]) };
    let inherited = |commit| Message { log_term: 1, commit, ..append(2, 5, vec![entry(6, 1)]) };
    let cases = [
        ("commands that it has", append(1, 0, vec![no_op(1, 1), entry(2, 1)]), Ok(()), 2),
        ("up to the first new command", append(1, 2, vec![no_op(3, 1), change, entry(5, 1)]), Ok(()), 4),
        ("none", Message { commit: 3, ..append(1, 4, vec![entry(5, 1)]) }, Err(Reject::DiskFull), 4),
        ("a new one of its own", append(1, 4, vec![no_op(5, 1)]), Ok(()), 5),
        ("none of a new term", of_term_2, Err(Reject::DiskFull), 5),
        ("none of an old term", append(1, 5, vec![entry(6, 1)]), Ok(()), 0),
        ("none that the leader has committed", inherited(6), Err(Reject::DiskFull), 5),
        ("those of an old term that a new leader has not committed", inherited(5), Ok(()), 6),
    ];
    for (what, message, result, acknowledged) in cases {
        assert_eq!(group.step(message), result, "{what}");
        let answers = group.settle().messages;
        assert!(
            matches!(answers[..], [Message { index, reject: false, .. }] if index == acknowledged),
            "{answers:?}"
        );
    }
    assert_eq!((group.state().commit, group.last_index()), (5, 6), "the commit index of a cut append counts");
    group.set_disk_room(DiskRoom::Enough);
    group.deliver(Message { log_term: 1, ..append(2, 5, vec![entry(6, 2)]) });
    assert_eq!(group.last_index(), 6);
}

#[test]
fn a_leader_with_a_low_disk_hands_over_to_one_voter_after_another_with_longer_and_longer_waits() {
    let mut node = DrivenNode::leader(3);
    node.group.set_disk_room(DiskRoom::Low);
    node.ticks(10);
    assert_eq!(
        (node.called(), &node.notices[..]),
        (vec![], &[][..]),
        "the others may fill up at the same time"
    );
    node.ticks(1_002);
    // The tries are 22, 44, 88, 176 and 352 ticks apart.
    let called = node.called();
    let notices: Vec<_> = called.iter().map(|&target| StallNotice::DiskHandsOver { target }).collect();
    assert_eq!((called.len(), &node.notices[..]), (6, &notices[..]));
    assert!(called.windows(2).all(|pair| pair[0] != pair[1]), "{called:?}");
    node.refused.clear();
    node.propose();
    assert_eq!(node.refused, [ProposeError::DiskFull { low: [id(1)].into() }]);
}

#[test]
fn leadership_stays_unless_a_quorum_has_room() {
    for peers_low in [[true, true], [true, false]] {
        let mut node = DrivenNode::leader(3);
        node.group.set_disk_room(DiskRoom::Low);
        node.peers.iter_mut().zip(peers_low).for_each(|(peer, low)| peer.low = low);
        node.ticks(1_000);
        assert_eq!(
            (node.called(), &node.notices[..]),
            (vec![], &[StallNotice::DiskStays][..]),
            "{peers_low:?}"
        );
        node.group.set_disk_room(DiskRoom::Enough);
        node.ticks(1);
        assert_eq!(node.notices.last(), Some(&StallNotice::DiskRecovered));
        node.propose();
        assert_eq!(node.refused.is_empty(), !peers_low[1], "{:?}", node.refused);
    }
}

#[test]
fn a_leader_with_room_refuses_commands_and_stays_while_too_few_voters_have_room() {
    let mut node = DrivenNode::leader(3);
    node.peers.iter_mut().for_each(|peer| peer.low = true);
    node.ticks(100);
    node.propose();
    let refused = ProposeError::DiskFull { low: [id(2), id(3)].into() };
    assert_eq!((node.called(), &node.refused[..]), (vec![], std::slice::from_ref(&refused)));
    assert_eq!(
        refused.to_string(),
        "the disk is full: too little room on node 2, node 3; the command was not appended"
    );
    node.peers[0].low = false;
    node.ticks(2);
    node.propose();
    assert_eq!(node.refused.len(), 1, "two of three have room");
    // With the other one silent, nothing would be committed.
    node.peers.remove(0);
    node.ticks(20);
    node.propose();
    assert_eq!(node.refused.last(), Some(&ProposeError::DiskFull { low: [id(3)].into() }));
    node.peers[0].low = false;
    node.ticks(2);
    node.propose();
    assert_eq!(node.refused.len(), 2);
}

/// All of this happens between two ticks.
#[test]
fn a_leader_of_a_new_term_does_not_count_what_peers_said_in_the_term_before() {
    let mut group = group(3);
    group.lead();
    for peer in [2, 3] {
        let answer = message(MessageKind::HeartbeatResponse, peer, 1);
        group.deliver(Message { disk_low: true, ..answer });
    }
    group.propose([vec![1]]);
    assert!(matches!(group.settle().refused[..], [(_, ProposeError::DiskFull { .. })]));
    group.deliver(heartbeat(2));
    group.deliver(message(MessageKind::TimeoutNow, 2, 2));
    group.settle();
    group.deliver(message(MessageKind::RequestVoteResponse, 2, 3));
    group.settle();
    group.propose([vec![1]]);
    assert_eq!((group.state().role, group.settle().refused), (Role::Leader, vec![]));
}

/// It took commands for a heartbeat interval that a quorum without room then refused.
#[test]
fn a_new_leader_asks_at_once_whose_disks_are_low() {
    let mut group = group(3);
    group.campaign();
    group.settle();
    group.deliver(group.answer(MessageKind::RequestVoteResponse));
    let sent = group.settle().messages;
    let beats = sent.iter().filter(|message| message.kind == MessageKind::Heartbeat);
    assert_eq!(beats.map(|message| message.to).collect::<Vec<_>>(), [id(2), id(3)]);
}

#[test]
fn a_read_that_a_full_disk_keeps_from_being_served_says_so() {
    /// The error of a read. Node 2 answers the heartbeats of `leads`, and has no entry of its term.
    fn read(low: bool, peer_low: bool, leads: bool) -> ReadError {
        let mut group = group(3);
        if leads {
            group.lead();
        }
        group.set_disk_room(if low { DiskRoom::Low } else { DiskRoom::Enough });
        group.read(1);
        let answer = group.answer(MessageKind::HeartbeatResponse);
        for _ in 0..200 {
            if leads {
                for peer in [2, 3] {
                    group.deliver(Message { from: id(peer), disk_low: peer_low, ..answer.clone() });
                }
            }
            group.tick();
            if let Some((_, error)) = group.settle().unread.pop() {
                return error;
            }
        }
        panic!("the read has no answer");
    }
    let (low, peer_low, leads) = (true, true, true);
    assert_eq!(read(!low, !peer_low, !leads), ReadError::NoLeader);
    assert_eq!(read(low, !peer_low, !leads), ReadError::DiskFull);
    assert_eq!(read(!low, !peer_low, leads), ReadError::Timeout);
    assert_eq!(read(low, !peer_low, leads), ReadError::DiskFull);
    assert_eq!(read(!low, peer_low, leads), ReadError::DiskFull);
}
