//! What a follower does with a snapshot that is offered to it.

use super::*;

fn offer(index: u64, term: u64) -> SnapshotOffer {
    let meta = meta(index, 1);
    let record = SnapshotRecord { index, term: 1, conf_state: conf_state() };
    let message =
        Message { term, snapshot: Some(record), ..Message::new(MessageKind::Snapshot, id(2), id(1)) };
    SnapshotOffer { message, meta, attempt: 1 }
}

fn receive(group: &mut TestGroup, offer: &SnapshotOffer) -> Result<u64, SnapshotRefusal> {
    group.receive(id(2), offer.message.clone(), offer.meta.clone())
}

#[test]
fn a_received_snapshot_is_written_before_it_is_restored_and_acknowledged_after() {
    let mut group = group(|_| ());
    let offer = offer(50, 3);
    assert_eq!(group.offer(id(2), &offer), Ok(OfferVerdict::Wanted));
    assert_eq!(receive(&mut group, &offer), Ok(50));
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    let (number, write) = fx.write.take().unwrap();
    let install = write.install.unwrap();
    assert_eq!((install.at.index, install.installing), (50, offer.meta.content));
    assert_eq!(write.hard_state.map(|h| (h.term, h.commit)), Some((3, 50)));
    assert_eq!(write.conf.map(|c| c.index), Some(50));
    assert!(fx.apply.is_empty() && fx.messages.is_empty(), "nothing before the write is durable");
    group.written(number, &mut fx);
    assert!(matches!(&fx.apply[..], [Apply::Restore(meta)] if *meta == offer.meta));
    assert!(fx.messages.iter().any(|m| m.kind == MessageKind::AppendResponse && m.index == 50));
    group.applied(50);
    group.poll(&mut fx);
    assert_eq!(fx.retain, Some(vec![offer.meta.content]));
    assert!(fx.write.take().unwrap().1.installed);
    assert_eq!((group.state().applied, group.status().snapshot_index), (50, 50));
}

/// The node has entries 13 and 14 of term 1, which are not committed.
fn group_with_a_tail() -> TestGroup {
    let mut group = group(|_| ());
    let append =
        Message { term: 1, index: LAST, log_term: 1, ..Message::new(MessageKind::Append, id(2), id(1)) };
    group.step(id(2), Message { entries: vec![entry(13, 1), entry(14, 1)], ..append }).unwrap();
    turn(&mut group, &mut TestEffects::default());
    assert_eq!((group.last_index(), group.state().commit), (14, LAST));
    group
}

/// The node closed the group in the turn in which a snapshot was received. It wrote the commit index of the snapshot, but
/// nothing of the snapshot itself: at the next start it applied the old log up to that commit index.
#[test]
fn a_group_that_is_closed_before_a_received_snapshot_is_in_a_write_does_not_write_its_commit_index() {
    let mut group = group_with_a_tail();
    receive(&mut group, &offer(50, 3)).unwrap();
    assert_eq!(group.state().commit, 50);
    assert_eq!(group.unwritten_hard_state(), None, "entries 13 and 14 are not committed");
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    let write = fx.write.take().unwrap().1;
    assert_eq!((write.install.map(|i| i.at.index), write.hard_state.map(|h| h.commit)), (Some(50), Some(50)));
    assert_eq!(group.unwritten_hard_state(), None, "it is in a write");
}

/// The same with entries in place of a snapshot: they take the place of entries 13 and 14, but are in no write.
#[test]
fn a_group_that_is_closed_before_received_entries_are_in_a_write_does_not_write_their_commit_index() {
    let mut group = group_with_a_tail();
    let append =
        Message { term: 3, index: LAST, log_term: 1, ..Message::new(MessageKind::Append, id(3), id(1)) };
    let entries = vec![entry(13, 3), entry(14, 3), entry(15, 3)];
    group.step(id(3), Message { entries, commit: 15, ..append }).unwrap();
    assert_eq!(group.state().commit, 15);
    assert_eq!(group.unwritten_hard_state(), None, "the stored entries 13 and 14 are not committed");
    group.poll(&mut TestEffects::default());
    assert_eq!(group.unwritten_hard_state(), None, "it is in a write");
}

/// A commit index alone is not worth a write of its own; a clean shutdown writes it.
#[test]
fn a_group_that_is_closed_writes_the_commit_index_of_what_is_written() {
    let mut group = group_with_a_tail();
    let beat = Message { term: 1, commit: 14, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    group.step(id(2), beat).unwrap();
    assert_eq!(group.unwritten_hard_state(), None, "raft has not given it out");
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    assert!(fx.write.is_none());
    assert_eq!(group.unwritten_hard_state().map(|h| (h.term, h.commit)), Some((1, 14)));
}

/// Its commit index would cover entries of the old log.
#[test]
fn a_snapshot_that_nobody_brought_ends_the_group_and_writes_nothing() {
    let mut group = group_with_a_tail();
    group.replica.step(offer(50, 3).message);
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    assert!(fx.fatal.is_some());
    assert_eq!(fx.write, None);
}

/// Case 55.
#[test]
fn neither_an_election_timeout_nor_a_call_to_campaign_disturbs_a_snapshot_that_is_not_applied() {
    let mut group = group(|_| ());
    let offer = offer(50, 3);
    receive(&mut group, &offer).unwrap();
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    (0..200).for_each(|_| group.tick(&mut fx));
    let call = Message { term: 3, ..Message::new(MessageKind::TimeoutNow, id(2), id(1)) };
    assert_eq!(group.step(id(2), call), Err(Reject::Installing));
    turn(&mut group, &mut fx);
    assert_eq!((group.state().term, group.state().role), (3, crate::status::Role::Follower));
    // It goes on answering heartbeats meanwhile.
    fx.messages.clear();
    let beat = Message { term: 3, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    group.step(id(2), beat).unwrap();
    turn(&mut group, &mut fx);
    assert_eq!(fx.messages.iter().map(|m| m.kind).collect::<Vec<_>>(), [MessageKind::HeartbeatResponse]);
}

/// Ticks were skipped during an install, so the lease of a leader that had died never ended: with two of three voters up
/// no leader was elected before the restore was over.
#[test]
fn a_follower_that_installs_a_snapshot_votes_once_the_lease_of_its_leader_is_over_and_not_before() {
    let mut group = group(|_| ());
    receive(&mut group, &offer(50, 3)).unwrap();
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    let asked = |group: &mut TestGroup, kind: MessageKind, term: u64| {
        let mut fx = TestEffects::default();
        let ask = Message { term, index: 50, log_term: 3, ..Message::new(kind, id(3), id(1)) };
        group.step(id(3), ask).unwrap();
        turn(group, &mut fx);
        fx.messages.iter().map(|m| (m.kind, m.reject)).collect::<Vec<_>>()
    };
    // The leader lives: its heartbeats keep the lease up for many election timeouts.
    for _ in 0..100 {
        let beat = Message { term: 3, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
        group.step(id(2), beat).unwrap();
        (0..HEARTBEAT).for_each(|_| group.tick(&mut fx));
        turn(&mut group, &mut fx);
        assert_eq!(asked(&mut group, MessageKind::RequestPreVote, 4), []);
    }
    // It falls silent.
    (HEARTBEAT..19).for_each(|_| group.tick(&mut fx));
    assert_eq!(asked(&mut group, MessageKind::RequestPreVote, 4), []);
    group.tick(&mut fx);
    let granted = |kind| [(kind, false)];
    assert_eq!(
        asked(&mut group, MessageKind::RequestPreVote, 4),
        granted(MessageKind::RequestPreVoteResponse)
    );
    assert_eq!(asked(&mut group, MessageKind::RequestVote, 4), granted(MessageKind::RequestVoteResponse));
    // It still does not campaign itself, and does so once the snapshot is applied.
    (0..200).for_each(|_| group.tick(&mut fx));
    assert_eq!((group.state().term, group.state().role), (4, crate::status::Role::Follower));
    group.applied(50);
    (0..20).for_each(|_| group.tick(&mut fx));
    assert_eq!(group.state().role, crate::status::Role::Candidate);
}

/// Case 54: the answer to a snapshot that is not needed any more is an acknowledgement, and the offer is a success.
#[test]
fn an_offer_of_what_is_committed_here_is_had_already_and_raft_acknowledges_it() {
    let mut group = group(|_| ());
    assert_eq!(group.offer(id(2), &offer(TRUNCATED, 3)), Ok(OfferVerdict::Have { commit: LAST }));
    let mut fx = TestEffects::default();
    turn(&mut group, &mut fx);
    let ack = fx.messages.iter().find(|m| m.kind == MessageKind::AppendResponse).unwrap();
    assert_eq!((ack.index, ack.reject), (LAST, false));
}

/// Case 59.
#[test]
fn a_snapshot_of_a_lower_term_or_that_does_not_name_this_node_is_refused_by_type() {
    let mut group = group(|_| ());
    let beat = Message { term: 7, ..Message::new(MessageKind::Heartbeat, id(3), id(1)) };
    group.step(id(3), beat).unwrap();
    let stale = Err(SnapshotRefusal::StaleTerm { ours: 7, theirs: 3 });
    assert_eq!(group.offer(id(2), &offer(50, 3)), stale);
    assert_eq!(receive(&mut group, &offer(50, 3)).map(|_| OfferVerdict::Wanted), stale);
    let mut others = offer(50, 7);
    others.meta.head.conf_state.voters.remove(0);
    others.message.snapshot.as_mut().unwrap().conf_state.voters.remove(0);
    assert_eq!(receive(&mut group, &others), Err(SnapshotRefusal::WrongNode));
    let mut contradiction = offer(50, 7);
    contradiction.meta.head.at.index = 51;
    assert!(matches!(receive(&mut group, &contradiction), Err(SnapshotRefusal::Corrupt { .. })));
    assert_eq!(group.state().commit, LAST);
}

/// The control of case 55, both ways in: a tick, and a call that gets past the group.
#[test]
fn raft_panics_when_it_campaigns_over_a_snapshot_that_is_not_applied() {
    let call = Message { term: 3, ..Message::new(MessageKind::TimeoutNow, id(2), id(1)) };
    let ways: [&dyn Fn(&mut TestGroup); 2] =
        [&|group| (0..200).for_each(|_| group.replica.tick()), &|group| group.replica.step(call.clone())];
    for way in ways {
        let mut group = group(|_| ());
        receive(&mut group, &offer(50, 3)).unwrap();
        turn(&mut group, &mut TestEffects::default());
        let campaign = std::panic::AssertUnwindSafe(|| way(&mut group));
        assert!(std::panic::catch_unwind(campaign).is_err());
    }
}

#[test]
fn another_snapshot_has_to_wait_until_the_first_is_installed() {
    let mut group = group(|_| ());
    receive(&mut group, &offer(50, 3)).unwrap();
    assert_eq!(group.offer(id(2), &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(receive(&mut group, &offer(60, 3)), Err(SnapshotRefusal::Busy));
    assert_eq!(group.offer(id(2), &offer(50, 3)), Ok(OfferVerdict::Have { commit: 50 }));
}
