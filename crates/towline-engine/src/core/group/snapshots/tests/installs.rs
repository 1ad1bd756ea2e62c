//! A follower and the snapshots that peers offer to it.

use super::*;

pub(super) fn offer(index: u64, term: u64) -> SnapshotOffer {
    let meta = meta(index, 1);
    let record = SnapshotRecord { index, term: 1, conf_state: meta.head.conf_state.clone() };
    let message = Message { snapshot: Some(record.into()), ..message(MessageKind::Snapshot, 2, term) };
    SnapshotOffer { message, meta, attempt: 1 }
}

fn receive(group: &mut TestGroup, offer: &SnapshotOffer) -> Result<u64, SnapshotRefusal> {
    group.receive(id(2), offer.message.clone(), offer.meta.clone())
}

/// A follower that has received a snapshot of index 50 in term 3.
fn receiver() -> TestGroup {
    let mut group = group(|_| ());
    assert_eq!(receive(&mut group, &offer(50, 3)), Ok(50));
    group
}

#[test]
fn a_received_snapshot_is_written_before_it_is_restored_and_acknowledged_after() {
    let mut group = group(|_| ());
    let offer = offer(50, 3);
    assert_eq!(group.offer(id(2), &offer), Ok(OfferVerdict::Wanted));
    assert_eq!(receive(&mut group, &offer), Ok(50));
    let (number, write) = group.poll_write();
    let install = write.install.unwrap();
    assert_eq!((install.at.index, install.installing), (50, offer.meta.content));
    assert_eq!(write.hard_state.map(|h| (h.term, h.commit)), Some((3, 50)));
    assert_eq!(write.conf.map(|c| c.index), Some(50));
    assert!(group.fx.apply.is_empty() && group.fx.messages.is_empty(), "not before the write is durable");
    group.written(number);
    assert!(matches!(&group.fx.apply[..], [Apply::Restore(meta)] if *meta == offer.meta));
    assert!(group.fx.messages.iter().any(|m| m.kind == MessageKind::AppendResponse && m.index == 50));
    group.applied(50);
    assert!(group.poll_write().1.installed);
    assert_eq!(group.fx.retain, Some(vec![offer.meta.content]));
    assert_eq!((group.state().applied, group.status().snapshot_index), (50, 50));
}

fn append(from: u64, term: u64, entries: Vec<Entry>) -> Message {
    Message { index: LAST, log_term: 1, entries, ..message(MessageKind::Append, from, term) }
}

/// A follower with entries 13 and 14 of term 1, which are not committed.
fn group_with_a_tail() -> TestGroup {
    let mut group = group(|_| ());
    group.deliver(append(2, 1, vec![entry(13, 1), entry(14, 1)]));
    group.settle();
    assert_eq!((group.last_index(), group.state().commit), (14, LAST));
    group
}

/// The node stopped in the turn in which it received entries, or a snapshot. It wrote their commit index without them, and
/// after the restart it applied the old entries 13 and 14.
#[test]
fn the_commit_index_of_received_entries_is_not_written_without_the_entries() {
    let mut group = group_with_a_tail();
    let entries = vec![entry(13, 3), entry(14, 3), entry(15, 3)];
    group.deliver(Message { commit: 15, ..append(3, 3, entries) });
    assert_eq!(group.state().commit, 15);
    assert_eq!(group.unwritten_hard_state(), None, "the stored entries 13 and 14 are not committed");
    group.poll();
    assert_eq!(group.unwritten_hard_state(), None, "a write contains it");
}

#[test]
fn a_clean_shutdown_writes_a_commit_index_that_no_write_contains() {
    let mut group = group_with_a_tail();
    group.deliver(Message { commit: 14, ..message(MessageKind::Heartbeat, 2, 1) });
    assert_eq!(group.unwritten_hard_state(), None, "no ready contains it");
    group.poll();
    assert!(group.fx.write.is_none());
    assert_eq!(group.unwritten_hard_state().map(|h| (h.term, h.commit)), Some((1, 14)));
}

/// Its commit index would cover entries of the old log.
#[test]
fn a_snapshot_that_was_not_received_stops_the_group_and_writes_nothing() {
    let mut group = group_with_a_tail();
    group.replica.step(offer(50, 3).message);
    group.poll();
    assert!(group.fx.fatal.is_some());
    assert_eq!(group.fx.write, None);
}

#[test]
fn neither_an_election_timeout_nor_a_call_to_campaign_disturbs_an_install() {
    let mut group = receiver();
    group.turn();
    group.ticks(200);
    assert_eq!(group.step(message(MessageKind::TimeoutNow, 2, 3)), Err(Reject::Installing));
    group.settle();
    assert_eq!((group.state().term, group.state().role), (3, Role::Follower));
    group.deliver(message(MessageKind::Heartbeat, 2, 3));
    let kinds: Vec<_> = group.settle().messages.iter().map(|m| m.kind).collect();
    assert_eq!(kinds, [MessageKind::HeartbeatResponse], "it answers heartbeats meanwhile");
}

/// The lease of a dead leader never ended during an install: with two of three voters up there was no leader.
#[test]
fn a_follower_during_an_install_votes_after_the_lease_of_its_leader_and_not_before() {
    let mut group = receiver();
    group.settle();
    let answers = |group: &mut TestGroup, kind: MessageKind| {
        group.deliver(Message { index: 50, log_term: 3, ..message(kind, 3, 4) });
        group.settle().messages.iter().map(|m| (m.kind, m.reject)).collect::<Vec<_>>()
    };
    // The leader lives: its heartbeats keep the lease for many election timeouts.
    for _ in 0..100 {
        group.deliver(message(MessageKind::Heartbeat, 2, 3));
        group.ticks(HEARTBEAT);
        group.settle();
        assert_eq!(answers(&mut group, MessageKind::RequestPreVote), []);
    }
    // The leader falls silent.
    group.ticks(19 - HEARTBEAT);
    assert_eq!(answers(&mut group, MessageKind::RequestPreVote), []);
    group.tick();
    for (request, response) in [
        (MessageKind::RequestPreVote, MessageKind::RequestPreVoteResponse),
        (MessageKind::RequestVote, MessageKind::RequestVoteResponse),
    ] {
        assert_eq!(answers(&mut group, request), [(response, false)]);
    }
    // It campaigns only after the snapshot is applied.
    group.ticks(200);
    assert_eq!((group.state().term, group.state().role), (4, Role::Follower));
    group.applied(50);
    group.ticks(20);
    assert_eq!(group.state().role, Role::Candidate);
}

#[test]
fn a_snapshot_of_a_lower_term_or_without_this_node_is_refused_with_its_cause() {
    let mut group = group(|_| ());
    group.deliver(message(MessageKind::Heartbeat, 3, 7));
    let stale = SnapshotRefusal::StaleTerm { ours: 7, theirs: 3 };
    assert_eq!(group.offer(id(2), &offer(50, 3)), Err(stale.clone()));
    assert_eq!(receive(&mut group, &offer(50, 3)), Err(stale));
    let mut others = offer(50, 7);
    others.meta.head.conf_state.voters.remove(0);
    others.message.snapshot.as_mut().unwrap().conf_state.voters.remove(0);
    assert_eq!(receive(&mut group, &others), Err(SnapshotRefusal::WrongNode));
    let mut contradiction = offer(50, 7);
    contradiction.meta.head.at.index = 51;
    assert!(matches!(receive(&mut group, &contradiction), Err(SnapshotRefusal::Corrupt { .. })));
    assert_eq!(group.state().commit, LAST);
}

/// The control of case 55, both ways in: a tick, and a call to campaign.
#[test]
fn raft_panics_when_it_campaigns_during_an_install() {
    let ways: [fn(&mut TestGroup); 2] = [
        |group| (0..200).for_each(|_| group.replica.tick()),
        |group| group.replica.step(message(MessageKind::TimeoutNow, 2, 3)),
    ];
    for way in ways {
        let mut group = receiver();
        group.turn();
        panic_of(|| way(&mut group));
    }
}

#[test]
fn another_snapshot_is_refused_during_an_install() {
    let mut group = receiver();
    assert_eq!(group.offer(id(2), &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(receive(&mut group, &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(group.offer(id(2), &offer(50, 3)), Ok(OfferVerdict::Have { commit: 50 }));
}
