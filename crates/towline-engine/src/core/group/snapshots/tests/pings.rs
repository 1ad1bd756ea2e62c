//! A peer that was told to wait for a snapshot is not left to the next heartbeat: it is pinged in the tick in which one
//! becomes possible.

use super::*;

/// Heartbeats that leave in the next tick, which nobody answers.
fn beats(group: &mut TestGroup) -> usize {
    let mut fx = TestEffects::default();
    group.tick(&mut fx);
    turn(group, &mut fx);
    fx.messages.iter().filter(|m| m.kind == MessageKind::Heartbeat).count()
}

/// The group just after regular heartbeats that were answered: none are due in the next tick.
fn between_heartbeats(group: &mut TestGroup) {
    while beats(group) == 0 {}
    group.step(id(2), answer(group, MessageKind::HeartbeatResponse)).unwrap();
    turn(group, &mut TestEffects::default());
}

/// Node 2 waits for what the group lacks and `cause` gives: it is pinged in the next tick, and its answer gets it the
/// snapshot.
fn assert_pinged(mut group: TestGroup, cause: impl FnOnce(&mut TestGroup)) {
    assert!(heartbeats(&mut group, 5).snapshots.is_empty(), "it has to wait");
    between_heartbeats(&mut group);
    assert_eq!(beats(&mut group), 0, "the control: nothing has changed");
    between_heartbeats(&mut group);
    cause(&mut group);
    assert_eq!(beats(&mut group), 2, "one to each of its two peers");
    group.step(id(2), answer(&group, MessageKind::HeartbeatResponse)).unwrap();
    begin(&mut group);
}

#[test]
fn a_peer_is_pinged_when_a_slot_came_free() {
    let without = TestGroup { slots: 0, ..group(|_| ()) };
    assert_pinged(lead(without, 0), |group| group.slots = 1);
}

#[test]
fn a_peer_is_pinged_when_a_file_appeared() {
    let made = |group: &mut TestGroup| {
        group.snapshot_made(Some((meta(LAST, 1), LogId::NONE)));
    };
    assert_pinged(leader(|setup| setup.available = None), made);
}

#[test]
fn a_peer_is_pinged_when_its_wait_is_over() {
    // Between two heartbeats, which the jitter of the wait gets to for some seed.
    let between = |seed: u64| {
        let mut group = leader(|setup| {
            setup.policy.retry.wait_ticks_min = 4 * HEARTBEAT;
            setup.seed = seed;
        });
        let send = begin(&mut group);
        send.ticket.fail(SnapshotFailure::Timeout);
        drop(send.slot);
        drain(&mut group);
        while group.status().peers[0].backoff_ticks > 1 {
            ticks(&mut group, 1);
        }
        (beats(&mut group), beats(&mut group))
    };
    // One to each of the two peers, by the ping; in the next tick the regular ones.
    assert!((0..20).any(|seed| between(seed) == (2, 2)));
}
