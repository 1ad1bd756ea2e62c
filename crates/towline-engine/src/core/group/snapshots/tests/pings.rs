//! A peer that waits for a snapshot gets a ping in the tick in which one becomes possible, not at the next heartbeat.

use super::*;

/// The number of heartbeats that leave in the next tick. No peer answers them.
fn beats(group: &mut TestGroup) -> usize {
    group.fx.messages.clear();
    group.tick();
    group.turn();
    group.fx.messages.iter().filter(|m| m.kind == MessageKind::Heartbeat).count()
}

/// Advances to just after regular heartbeats that were answered: none are due in the next tick.
fn between_heartbeats(group: &mut TestGroup) {
    while beats(group) == 0 {}
    group.deliver(group.answer(MessageKind::HeartbeatResponse));
    group.turn();
}

#[test]
fn a_waiting_peer_gets_a_ping_when_a_slot_or_a_file_becomes_available() {
    let mut without_slot = group(|_| ());
    without_slot.slots = 0;
    let with_slot: fn(&mut TestGroup) = |group| group.slots = 1;
    let without_file = leader(|setup| setup.available = None);
    let with_file: fn(&mut TestGroup) = |group| group.snapshot_made(Some((meta(LAST, 1), LogId::NONE)));
    for (mut group, provide) in [(lead(without_slot, 0), with_slot), (without_file, with_file)] {
        group.heartbeats(5);
        assert!(group.transfers.is_empty(), "it has to wait");
        between_heartbeats(&mut group);
        assert_eq!(beats(&mut group), 0, "the control: nothing has changed");
        between_heartbeats(&mut group);
        provide(&mut group);
        assert_eq!(beats(&mut group), 2, "one to each of two peers");
        group.deliver(group.answer(MessageKind::HeartbeatResponse));
        group.begin();
    }
}

#[test]
fn a_waiting_peer_gets_a_ping_when_its_wait_ends() {
    // With some seed the jitter ends the wait between two heartbeats.
    let between = |seed: u64| {
        let mut group = leader(|setup| {
            setup.policy.retry.wait_ticks_min = 4 * HEARTBEAT;
            setup.seed = seed;
        });
        let transfer = group.begin();
        group.fail(transfer, SnapshotFailure::Timeout);
        while group.status().peers[0].backoff_ticks > 1 {
            group.turns(1);
        }
        (beats(&mut group), beats(&mut group))
    };
    // Pings to two peers, and in the next tick the regular heartbeats.
    assert!((0..20).any(|seed| between(seed) == (2, 2)));
}
