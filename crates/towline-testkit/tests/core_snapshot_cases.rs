//! Single cases of snapshots in simulated clusters of cores, each with its control.

use crate::common::*;
use crate::snapshot_sim::{Sabotage, SnapshotSim};

/// Many times the longest wait between attempts.
const LONG_TICKS: usize = 400;

fn left_behind() -> (SnapshotSim, NodeId, NodeId) {
    SnapshotSim::left_behind(Sabotage::Nothing, true)
}

/// Drops the follower's acknowledgements and delivers its other messages.
fn lose_acks(sim: &mut SnapshotSim) {
    sim.script.lost = Some(|message| message.kind == MessageKind::AppendResponse);
}

fn catches_up(sim: &mut SnapshotSim, behind: NodeId) {
    sim.script.lost = None;
    sim.ticks(20);
    assert!(sim.is_level(behind));
    sim.assert_one_report_each();
}

/// The report is all that Raft gets from the follower.
#[test]
fn a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost() {
    let (mut sim, leader, behind) = left_behind();
    lose_acks(&mut sim);
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    assert_eq!((sim.reports.emitted, sim.reports.finished, sim.streamed), (1, 1, 1));
    let peer = sim.peer(leader, behind);
    assert_eq!((peer.progress, peer.pending_snapshot), (PeerProgress::Probe, 0));
    assert_eq!(peer.next, sim.status(leader).snapshot_index + 1);
    catches_up(&mut sim, behind);
}

/// The control: the follower is level and the network is sound, but the leader waits for ever.
#[test]
fn without_that_finish_the_peer_stays_latched_even_if_its_acknowledgements_arrive_again() {
    let (mut sim, leader, behind) = SnapshotSim::left_behind(Sabotage::Drops(1_000), false);
    lose_acks(&mut sim);
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    sim.script.lost = None;
    sim.ticks(LONG_TICKS);
    assert_eq!(sim.peer(leader, behind).progress, PeerProgress::Snapshot);
    assert!(sim.any_latched() && sim.reports.emitted == 1 && sim.reports.told == 0);
}

/// On an idle cluster the acknowledgement and the answer to the transfer are lost.
#[test]
fn a_retry_of_a_snapshot_that_the_follower_has_is_one_finish_and_no_second_transfer() {
    let (mut sim, leader, behind) = left_behind();
    lose_acks(&mut sim);
    sim.script.lose_answers = 1;
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    assert_eq!((sim.reports.emitted, sim.reports.told, sim.reports.finished, sim.streamed), (2, 2, 1, 1));
    assert_ne!(sim.peer(leader, behind).progress, PeerProgress::Snapshot);
    catches_up(&mut sim, behind);
    assert_eq!(sim.reports.emitted, 2);
}

/// The control: if the answer counts as a failure, the leader offers the snapshot after each backoff.
#[test]
fn a_snapshot_that_the_follower_has_is_offered_for_ever_if_that_counts_as_a_failure() {
    let (mut sim, leader, behind) = left_behind();
    lose_acks(&mut sim);
    sim.script.have_is_failure = true;
    sim.script.lose_answers = 1;
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    assert!(sim.reports.emitted > 8, "{}", sim.reports.emitted);
    assert_eq!((sim.reports.finished, sim.streamed), (0, 1));
    assert!(sim.peer(leader, behind).matched < sim.status(leader).first_index);
}

/// The follower has no snapshot, and rejects the appends after it.
#[test]
fn a_wrong_finish_is_followed_by_another_snapshot_and_converges() {
    let (mut sim, _, behind) = left_behind();
    sim.script.lie = 1;
    sim.start(behind);
    sim.ticks(40);
    assert_eq!((sim.reports.emitted, sim.reports.finished, sim.streamed), (2, 2, 1));
    catches_up(&mut sim, behind);
}

/// The control: the leader sends another snapshot only because the follower rejects the appends.
#[test]
fn a_wrong_finish_is_not_noticed_while_the_rejections_of_the_follower_are_lost() {
    let (mut sim, leader, behind) = left_behind();
    sim.script.lie = 1;
    lose_acks(&mut sim);
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    assert_eq!((sim.reports.emitted, sim.reports.finished, sim.streamed), (1, 1, 0));
    assert!(sim.peer(leader, behind).matched < sim.status(leader).first_index);
    catches_up(&mut sim, behind);
    assert_eq!(sim.reports.emitted, 2);
}

/// A learner, and a voter of only the outgoing half of a joint configuration.
#[test]
fn a_member_that_is_no_voter_of_the_next_configuration_gets_a_snapshot() {
    for seed in [1, 2] {
        let (mut sim, _, behind) = SnapshotSim::fourth_left_behind(seed);
        sim.start(behind);
        sim.ticks(20);
        assert_eq!((sim.reports.emitted, sim.reports.finished, sim.installed()), (1, 1, 1), "seed {seed}");
        catches_up(&mut sim, behind);
    }
}

/// The control: a receiver that looks for itself only among the voters.
#[test]
fn a_receiver_that_counts_only_voters_gets_no_snapshot_as_a_learner_or_in_a_joint_configuration() {
    for seed in [1, 2] {
        let (mut sim, leader, behind) = SnapshotSim::fourth_left_behind(seed);
        sim.script.voters_alone = true;
        sim.start(behind);
        sim.ticks(LONG_TICKS);
        assert!(sim.reports.emitted > 1, "seed {seed}: the leader tries again");
        assert_eq!((sim.reports.finished, sim.streamed, sim.installed()), (0, 0, 0), "seed {seed}");
        assert!(sim.peer(leader, behind).matched < sim.status(leader).first_index, "seed {seed}");
    }
}

/// The leader makes newer snapshots and compacts during a transfer. It dropped the log after the sent snapshot with the
/// report of its success, before the follower had got an entry of that log.
#[test]
fn a_follower_needs_no_second_snapshot_however_much_is_compacted_during_the_first() {
    let (mut sim, leader, behind) = left_behind();
    sim.script.held = true;
    sim.start(behind);
    sim.ticks(10);
    let sent = sim.status(leader).snapshot_index;
    sim.load(40);
    let status = sim.status(leader);
    assert!(status.snapshot_index > sent + 20, "newer ones were made: {status:?}");
    assert!(status.first_index <= sent + 1, "the log after it is kept: {status:?}");
    sim.script.held = false;
    sim.ticks(20);
    assert_eq!(sim.reports.emitted, 1);
    catches_up(&mut sim, behind);
    sim.load(8);
    assert!(sim.status(leader).first_index > sent + 1, "it is not kept any longer");
}

/// The control: the log after the snapshot is not kept.
#[test]
fn without_the_pin_a_follower_needs_a_second_snapshot() {
    let (mut sim, leader, behind) = left_behind();
    sim.script.held = true;
    sim.start(behind);
    sim.ticks(10);
    let sent = sim.status(leader).snapshot_index;
    sim.lose_the_pin(|sim| sim.load(40));
    assert!(sim.status(leader).first_index > sent + 1, "the log after it is gone");
    sim.script.held = false;
    sim.ticks(20);
    assert!(sim.reports.emitted > 1);
    assert!(sim.is_level(behind));
}

/// The leader makes newer snapshots between two attempts.
#[test]
fn a_transfer_that_broke_midway_is_resumed_though_there_is_a_newer_snapshot() {
    let (mut sim, leader, behind) = left_behind();
    let sent = break_midway(&mut sim, leader, behind);
    sim.load(20);
    assert!(sim.status(leader).snapshot_index > sent, "a newer one was made");
    sim.ticks(20);
    assert_eq!((sim.reports.emitted, sim.streamed, sim.resumed), (2, 2, 1));
    catches_up(&mut sim, behind);
    assert_eq!(sim.reports.emitted, 2);
}

/// The control: the leader does not keep the snapshot of the broken attempt.
#[test]
fn without_the_kept_snapshot_a_broken_transfer_starts_again_at_its_first_byte() {
    let (mut sim, leader, behind) = left_behind();
    let sent = break_midway(&mut sim, leader, behind);
    sim.force_compaction(leader);
    sim.load(20);
    assert!(sim.status(leader).snapshot_index > sent, "a newer one was made");
    sim.ticks(20);
    assert_eq!((sim.streamed, sim.resumed), (2, 0));
    catches_up(&mut sim, behind);
}

fn break_midway(sim: &mut SnapshotSim, leader: NodeId, behind: NodeId) -> u64 {
    sim.script.break_midway = 1;
    sim.start(behind);
    let sent = sim.status(leader).snapshot_index;
    while sim.reports.told == 0 {
        sim.ticks(1);
    }
    sent
}

/// A node with uncommitted entries took a snapshot and was closed before its next poll. The shutdown wrote the snapshot's commit
/// index, limited to the end of the old log, so the restart applied uncommitted entries.
#[test]
fn a_node_that_is_closed_as_it_takes_a_snapshot_applies_only_committed_entries() {
    let (mut sim, behind) = SnapshotSim::diverged();
    sim.script.close_as_it_receives = true;
    for _ in 0..LONG_TICKS {
        sim.ticks(1);
        if !sim.is_up(behind) {
            break;
        }
    }
    assert!(!sim.is_up(behind), "it is closed as it takes a snapshot");
    sim.start(behind);
    sim.ticks(LONG_TICKS);
    assert!(sim.is_level(behind));
}

/// A follower gave no vote while it restored a snapshot. If the leader died meanwhile, two of three voters elected no leader.
#[test]
fn a_leader_is_elected_while_a_follower_restores_a_snapshot() {
    let (mut sim, leader, behind) = left_behind();
    sim.script.restores_hang = true;
    sim.start(behind);
    for _ in 0..LONG_TICKS {
        sim.ticks(1);
        if sim.is_installing(behind) {
            break;
        }
    }
    assert!(sim.is_installing(behind));
    sim.crash(leader);
    sim.ticks(LONG_TICKS);
    let elected = sim.leader().expect("a leader");
    assert!(elected != leader && elected != behind);
    let commit = sim.status(elected).state.commit;
    sim.load(5);
    assert!(sim.status(elected).state.commit >= commit + 5, "it commits with the restoring follower");
    assert!(sim.is_installing(behind));
    sim.script.restores_hang = false;
    sim.start(leader);
    sim.ticks(LONG_TICKS);
    assert!(sim.is_level(behind) && sim.is_level(leader));
}
