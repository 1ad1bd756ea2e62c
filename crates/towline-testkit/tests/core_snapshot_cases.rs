//! Single cases of snapshots in simulated clusters of cores, each with its control.

use crate::snapshot_world::{Plant, World};
use towline_engine::ids::NodeId;
use towline_engine::message::MessageKind;
use towline_engine::status::PeerProgress;

/// Many times the longest wait between attempts.
const LONG_TICKS: usize = 400;

fn left_behind() -> (World, NodeId, NodeId) {
    World::left_behind(Plant::Nothing, true)
}

/// The follower's acknowledgements are lost, whatever else it says arrives.
fn lose_acks(world: &mut World) {
    world.twists.lost = Some(|message| message.kind == MessageKind::AppendResponse);
}

fn catches_up(world: &mut World, behind: NodeId) {
    world.twists.lost = None;
    world.ticks(20);
    assert!(world.is_level(behind));
    world.assert_one_report_each();
}

/// Case 2: Raft hears nothing of the follower but that the transfer ended well.
#[test]
fn a_finish_alone_moves_a_peer_on_whose_acknowledgement_was_lost() {
    let (mut world, leader, behind) = left_behind();
    lose_acks(&mut world);
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    assert_eq!((world.emitted(), world.told_finished(), world.streamed()), (1, 1, 1));
    let peer = world.peer(leader, behind);
    assert_eq!((peer.progress, peer.pending_snapshot), (PeerProgress::Probe, 0));
    assert_eq!(peer.next, world.status(leader).snapshot_index + 1);
    catches_up(&mut world, behind);
}

/// The control: the follower has all of it, the network is well again, and the leader waits for ever.
#[test]
fn without_that_finish_the_peer_is_latched_also_when_its_acknowledgements_arrive_again() {
    let (mut world, leader, behind) = World::left_behind(Plant::Drops(1_000), false);
    lose_acks(&mut world);
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    world.twists.lost = None;
    world.ticks(LONG_TICKS);
    assert_eq!(world.peer(leader, behind).progress, PeerProgress::Snapshot);
    assert!(world.any_latched() && world.emitted() == 1 && world.told() == 0);
}

/// Case 54: on an idle cluster the acknowledgement and the answer to the transfer are lost.
#[test]
fn a_retry_of_what_the_follower_has_already_is_one_finish_and_no_second_transfer() {
    let (mut world, leader, behind) = left_behind();
    lose_acks(&mut world);
    world.twists.lose_answers = 1;
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    assert_eq!((world.emitted(), world.told(), world.told_finished(), world.streamed()), (2, 2, 1, 1));
    assert_ne!(world.peer(leader, behind).progress, PeerProgress::Snapshot);
    catches_up(&mut world, behind);
    assert_eq!(world.emitted(), 2);
}

/// The control: as long as that is answered as a failure, it is offered again after each wait.
#[test]
fn what_the_follower_has_already_is_offered_for_ever_if_that_is_not_a_success() {
    let (mut world, leader, behind) = left_behind();
    lose_acks(&mut world);
    world.twists.have_is_failure = true;
    world.twists.lose_answers = 1;
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    assert!(world.emitted() > 8, "{}", world.emitted());
    assert_eq!((world.told_finished(), world.streamed()), (0, 1));
    assert!(world.peer(leader, behind).matched < world.status(leader).first_index);
}

/// Case 10: the follower has nothing of it, and says so when the leader goes on behind it.
#[test]
fn a_wrong_finish_is_followed_by_another_snapshot_and_converges() {
    let (mut world, _, behind) = left_behind();
    world.twists.lie = 1;
    world.comes_back(behind);
    world.ticks(40);
    assert_eq!((world.emitted(), world.told_finished(), world.streamed()), (2, 2, 1));
    catches_up(&mut world, behind);
}

/// The control: it is the follower's own word that makes the leader send another. While that does not arrive, nobody notices.
#[test]
fn a_wrong_finish_is_not_noticed_as_long_as_the_follower_is_not_heard() {
    let (mut world, leader, behind) = left_behind();
    world.twists.lie = 1;
    lose_acks(&mut world);
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    assert_eq!((world.emitted(), world.told_finished(), world.streamed()), (1, 1, 0));
    assert!(world.peer(leader, behind).matched < world.status(leader).first_index);
    catches_up(&mut world, behind);
    assert_eq!(world.emitted(), 2);
}

/// Case 24: it is a learner, or, in a joint configuration, a voter of the outgoing half alone.
#[test]
fn who_is_no_voter_of_the_next_configuration_is_sent_a_snapshot_like_any_other() {
    for seed in [1, 2] {
        let (mut world, _, behind) = World::fourth_left_behind(seed);
        world.comes_back(behind);
        world.ticks(20);
        assert_eq!((world.emitted(), world.told_finished(), world.installed()), (1, 1, 1), "seed {seed}");
        catches_up(&mut world, behind);
    }
}

/// The control: a receiver that looks for itself among the voters alone.
#[test]
fn a_receiver_that_counts_voters_alone_never_gets_its_snapshot_as_a_learner_or_in_a_joint_configuration() {
    for seed in [1, 2] {
        let (mut world, leader, behind) = World::fourth_left_behind(seed);
        world.twists.voters_alone = true;
        world.comes_back(behind);
        world.ticks(LONG_TICKS);
        assert!(world.emitted() > 1, "seed {seed}: it is tried again");
        assert_eq!((world.told_finished(), world.streamed(), world.installed()), (0, 0, 0), "seed {seed}");
        assert!(world.peer(leader, behind).matched < world.status(leader).first_index, "seed {seed}");
    }
}

/// Case 22: the leader makes further snapshots and compacts while a transfer is under way. The log behind the one that was
/// sent was let go as soon as its success was reported, before the follower had been sent a single entry of it.
#[test]
fn a_follower_needs_no_second_snapshot_however_much_is_compacted_during_the_first() {
    let (mut world, leader, behind) = left_behind();
    world.twists.held = true;
    world.comes_back(behind);
    world.ticks(10);
    let sent = world.status(leader).snapshot_index;
    world.load(40);
    let status = world.status(leader);
    assert!(status.snapshot_index > sent + 20, "others were made: {status:?}");
    assert!(status.first_index <= sent + 1, "the log after it is kept: {status:?}");
    world.twists.held = false;
    world.ticks(20);
    assert_eq!(world.emitted(), 1);
    catches_up(&mut world, behind);
    world.load(8);
    assert!(world.status(leader).first_index > sent + 1, "it is not kept any longer");
}

/// The control: the log behind it is not kept.
#[test]
fn without_the_pin_a_follower_needs_a_second_snapshot() {
    let (mut world, leader, behind) = left_behind();
    world.twists.held = true;
    world.comes_back(behind);
    world.ticks(10);
    let sent = world.status(leader).snapshot_index;
    world.lose_the_pin(|world| world.load(40));
    assert!(world.status(leader).first_index > sent + 1, "the log after it is gone");
    world.twists.held = false;
    world.ticks(20);
    assert!(world.emitted() > 1);
    assert!(world.is_level(behind));
}

/// The leader makes newer snapshots between two attempts.
#[test]
fn a_transfer_that_broke_midway_is_resumed_though_there_is_a_newer_snapshot() {
    let (mut world, leader, behind) = left_behind();
    let sent = break_midway(&mut world, leader, behind);
    world.load(20);
    assert!(world.status(leader).snapshot_index > sent, "a newer one was made");
    world.ticks(20);
    assert_eq!((world.emitted(), world.streamed(), world.resumed()), (2, 2, 1));
    catches_up(&mut world, behind);
    assert_eq!(world.emitted(), 2);
}

/// The control: nothing is kept of the attempt that broke.
#[test]
fn without_what_is_kept_a_transfer_that_broke_midway_begins_again_at_nothing() {
    let (mut world, leader, behind) = left_behind();
    let sent = break_midway(&mut world, leader, behind);
    world.keep_nothing(leader);
    world.load(20);
    assert!(world.status(leader).snapshot_index > sent, "a newer one was made");
    world.ticks(20);
    assert_eq!((world.streamed(), world.resumed()), (2, 0));
    catches_up(&mut world, behind);
}

fn break_midway(world: &mut World, leader: NodeId, behind: NodeId) -> u64 {
    world.twists.break_midway = 1;
    world.comes_back(behind);
    let sent = world.status(leader).snapshot_index;
    while world.told() == 0 {
        world.ticks(1);
    }
    sent
}

/// A node with entries that were never committed took a snapshot and was closed before its next poll. The shutdown wrote the
/// snapshot's commit index, cut down to the end of the old log: the restart applied entries that were never committed.
#[test]
fn a_node_that_is_closed_as_it_takes_a_snapshot_applies_nothing_that_was_not_committed() {
    let (mut world, behind) = World::diverged();
    world.twists.close_as_it_receives = true;
    for _ in 0..LONG_TICKS {
        world.ticks(1);
        if !world.is_up(behind) {
            break;
        }
    }
    assert!(!world.is_up(behind), "it was closed as it took a snapshot");
    world.comes_back(behind);
    world.ticks(LONG_TICKS);
    assert!(world.is_level(behind));
}

/// A follower that restored a snapshot gave no vote: when the leader died meanwhile, two of three voters elected no leader.
#[test]
fn another_leader_is_elected_while_a_follower_restores_a_snapshot_for_long() {
    let (mut world, leader, behind) = left_behind();
    world.twists.restores_hang = true;
    world.comes_back(behind);
    for _ in 0..LONG_TICKS {
        world.ticks(1);
        if world.is_installing(behind) {
            break;
        }
    }
    assert!(world.is_installing(behind));
    world.dies(leader);
    world.ticks(LONG_TICKS);
    let elected = world.leads().expect("a leader");
    assert!(elected != leader && elected != behind);
    let commit = world.status(elected).state.commit;
    world.load(5);
    assert!(world.status(elected).state.commit >= commit + 5, "it commits with the follower that restores");
    assert!(world.is_installing(behind));
    world.twists.restores_hang = false;
    world.comes_back(leader);
    world.ticks(LONG_TICKS);
    assert!(world.is_level(behind) && world.is_level(leader));
}
