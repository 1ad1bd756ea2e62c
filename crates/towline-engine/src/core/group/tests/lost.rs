//! A node that acknowledged entries and does not have them: the heartbeats of the leader prove it.

use super::*;
use crate::transport::{SnapshotOffer, SnapshotRefusal};

const LOST: LostEntries = LostEntries { last_index: 1, acknowledged: 3 };

/// Node 1 with one durable entry of term 5, which it got from node 2.
fn follower() -> TestGroup {
    let mut group = group(3);
    group.deliver(append(5, 0, vec![entry(1, 5)]));
    group.settle();
    group
}

/// The inputs that make a node vote, campaign, answer or send.
fn provoke(group: &mut TestGroup) -> Effects<u64, u64> {
    for kind in [MessageKind::RequestVote, MessageKind::RequestPreVote] {
        let request = Message { index: 9, log_term: 6, ..message(kind, 3, 7) };
        assert_eq!(group.step(request), Err(Reject::EntriesLost(LOST)));
    }
    assert_eq!(group.step(append(5, 1, vec![entry(2, 5)])), Err(Reject::EntriesLost(LOST)));
    group.ticks(100);
    group.settle()
}

#[test]
fn a_heartbeat_that_names_more_than_the_log_has_proves_that_entries_were_lost() {
    let heartbeat = |term| message(MessageKind::Heartbeat, 2, term);
    for proof in [
        Message { acked: 3, commit: 1, ..heartbeat(5) },
        // A leader of an older version does not say what was acknowledged.
        Message { commit: 3, ..heartbeat(5) },
        // The log lost the term as well.
        Message { acked: 3, ..heartbeat(6) },
    ] {
        let mut group = follower();
        assert_eq!(group.step(proof.clone()), Err(Reject::EntriesLost(LOST)), "{proof:?}");
        let fx = provoke(&mut group);
        assert_eq!((fx.lost, kinds(&fx)), (Some(LOST), vec![]), "{proof:?}");
        assert!(fx.write.is_none() && group.state().term == 5);
    }
    assert_eq!(LOST.to_string(), "synced entries were lost: log ends at 1, acknowledged 3");
}

#[test]
fn other_heartbeats_prove_nothing() {
    let heartbeat = |from, term| Message { acked: 3, ..message(MessageKind::Heartbeat, from, term) };
    for (no_proof, result) in [
        // A leader of a later term may have removed what an earlier leader knew to be acknowledged.
        (heartbeat(2, 4), Ok(())),
        (heartbeat(9, 5), Err(Reject::BadIndex)),
        // Node 2 leads in this term.
        (heartbeat(3, 5), Err(Reject::BadIndex)),
        (Message { term: 1 << 61, ..heartbeat(2, 0) }, Err(Reject::TermJump)),
        (Message { acked: 1, ..heartbeat(2, 5) }, Ok(())),
    ] {
        let mut group = follower();
        assert_eq!(group.step(no_proof.clone()), result, "{no_proof:?}");
        assert_eq!(group.settle().lost, None, "{no_proof:?}");
    }
}

/// A leader of a later term removes entries that an earlier leader knew to be acknowledged. The heartbeats of both still arrive.
#[test]
fn entries_that_a_later_leader_replaced_are_not_lost() {
    let mut group = follower();
    group.deliver(append(5, 1, vec![entry(2, 5), entry(3, 5)]));
    group.settle();
    let by_later_leader =
        Message { from: id(3), index: 1, log_term: 5, entries: vec![entry(2, 6)], ..append(6, 1, vec![]) };
    group.deliver(by_later_leader);
    group.settle();
    assert_eq!(group.last_index(), 2);
    group.deliver(Message { acked: 3, ..message(MessageKind::Heartbeat, 2, 5) });
    group.deliver(Message { acked: 2, ..message(MessageKind::Heartbeat, 3, 6) });
    assert_eq!(group.settle().lost, None);
}

/// A vote that waits for its write when the proof arrives must not leave afterwards.
#[test]
fn no_vote_leaves_after_the_proof() {
    let mut group = follower();
    let request = Message { index: 9, log_term: 5, ..message(MessageKind::RequestVote, 3, 6) };
    group.ticks(10);
    group.settle();
    group.deliver(request);
    let (number, write) = group.poll_write();
    assert_eq!(write.hard_state.and_then(|state| state.vote), Some(id(3)));
    assert!(group.step(Message { acked: 3, ..message(MessageKind::Heartbeat, 2, 6) }).is_err());
    group.written(number);
    assert_eq!(kinds(&group.settle()), []);
}

/// It would hide that entries and perhaps votes were lost.
#[test]
fn a_node_that_lost_entries_takes_no_snapshot() {
    let mut group = follower();
    assert!(group.step(Message { acked: 3, ..message(MessageKind::Heartbeat, 2, 5) }).is_err());
    let meta = SnapshotMeta {
        head: crate::snapshot_store::SnapshotHead {
            group: GroupId::DEFAULT,
            at: LogId { index: 9, term: 5 },
            conf_state: crate::message::ConfState::default(),
            members: BTreeMap::new(),
            founding: crate::ids::FoundingHash::default(),
        },
        length: 1,
        content: crate::snapshot_store::ContentId([0; 16]),
    };
    let offer = SnapshotOffer { message: message(MessageKind::Snapshot, 2, 5), meta, attempt: 1 };
    let refused = SnapshotRefusal::NotTaken { detail: LOST.to_string() };
    assert_eq!(group.offer(id(2), &offer), Err(refused.clone()));
    assert_eq!(group.receive(id(2), offer.message, offer.meta), Err(refused));
}

#[test]
fn heartbeats_of_a_leader_say_what_their_receiver_acknowledged() {
    let mut group = group(3);
    group.lead();
    group.acknowledge(2, 1);
    group.settle();
    group.ticks(HEARTBEAT);
    let acked = |fx: &Effects<u64, u64>| {
        let beats = fx.messages.iter().filter(|m| m.kind == MessageKind::Heartbeat);
        beats.map(|m| (m.to, m.acked)).collect::<Vec<_>>()
    };
    let mut beats = acked(&group.settle());
    beats.sort();
    assert_eq!(beats, [(id(2), 1), (id(3), 0)]);
}

#[test]
fn a_leader_shows_what_a_peer_lost_until_its_leadership_ends() {
    let mut group = group(3);
    assert!(!group.note_lost(id(2), LOST), "it does not lead");
    group.lead();
    assert!(group.note_lost(id(2), LOST));
    assert!(!group.note_lost(id(2), LOST), "known already");
    assert!(!group.note_lost(id(9), LOST), "no member");
    assert_eq!(group.status().peers.iter().map(|peer| peer.lost).collect::<Vec<_>>(), [Some(LOST), None]);
    group.deliver(message(MessageKind::Heartbeat, 3, 9));
    group.tick();
    group.settle();
    group.lead();
    assert!(group.note_lost(id(2), LOST), "another leadership");
}
