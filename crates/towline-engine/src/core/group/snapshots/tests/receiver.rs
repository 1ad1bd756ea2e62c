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

/// The node closed the group in the turn in which a snapshot was received, and wrote the commit index of that snapshot, but
/// nothing of the snapshot itself. It refused to start again.
#[test]
fn a_group_that_is_closed_before_a_received_snapshot_is_in_a_write_does_not_write_its_commit_index() {
    let mut group = group(|_| ());
    receive(&mut group, &offer(50, 3)).unwrap();
    assert_eq!(group.unwritten_hard_state().map(|h| (h.term, h.commit)), Some((3, LAST)));
    group.poll(&mut TestEffects::default());
    assert_eq!(group.unwritten_hard_state(), None, "it is in a write");
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
