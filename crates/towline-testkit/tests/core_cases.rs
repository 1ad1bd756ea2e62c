//! Cases that every release must survive, one a test, on a simulated cluster of cores.

use crate::common::*;
use towline_engine::core::{Reject, StallPolicy};

const STEPS: u64 = 5_000;

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// A cluster whose leader has committed in its term and is known to all nodes.
fn led(voters: u64, options: SimOptions) -> (Sim, NodeId) {
    let mut sim = Sim::new(1, voters, options).unwrap();
    sim.run_until("a leader known to all", STEPS, |sim| {
        let statuses: Vec<_> = sim.ids().into_iter().filter_map(|id| sim.status(id)).collect();
        let leader = sim.leader();
        leader.is_some() && statuses.iter().all(|s| s.state.leader == leader && s.state.commit > 0)
    })
    .unwrap();
    let leader = sim.leader().unwrap();
    (sim, leader)
}

fn others(sim: &Sim, leader: NodeId) -> Vec<NodeId> {
    sim.ids().into_iter().filter(|&id| id != leader).collect()
}

fn is_acked(sim: &Sim, command: u64) -> bool {
    matches!(sim.history().proposal(command), ProposalResult::Acked(_))
}

fn is_settled(sim: &Sim, command: u64) -> bool {
    *sim.history().proposal(command) != ProposalResult::Open
}

#[test]
fn one_voter_with_a_learner_does_not_diverge_when_it_crashes_before_its_term_is_durable() {
    let options = SimOptions { learners: 1, ..SimOptions::default() };
    let (voter, learner) = (id(1), id(2));
    let mut sim = Sim::new(1, 1, options).unwrap();
    sim.hold_writes(voter, true);
    sim.run_until("leadership", STEPS, |sim| sim.leader() == Some(voter)).unwrap();
    sim.propose(voter).unwrap();
    sim.run(300).unwrap();
    assert_eq!(sim.durable(learner), (0, 0), "no message of a term that is not durable may leave");
    assert_eq!(sim.status(learner).unwrap().state.term, 0);
    sim.crash(voter);
    sim.hold_writes(voter, false);
    sim.restart(voter).unwrap();
    sim.run_until("leadership", STEPS, |sim| sim.leader() == Some(voter)).unwrap();
    sim.converge().unwrap();
    assert_eq!(sim.durable(voter), sim.durable(learner));
}

/// An isolated leader with an uncommitted command, while the others elect another leader.
fn deposed() -> (Sim, NodeId, NodeId, u64) {
    let (mut sim, old) = led(3, SimOptions::default());
    sim.run(200).unwrap();
    sim.isolate(old);
    let command = sim.propose(old).unwrap();
    sim.run_until("another leader", STEPS, |sim| sim.leader().is_some_and(|l| l != old)).unwrap();
    let new = sim.leader().unwrap();
    (sim, old, new, command)
}

#[test]
fn a_new_leaders_entry_at_the_same_index_does_not_acknowledge_the_old_leaders_command() {
    let (mut sim, old, new, lost) = deposed();
    let index = sim.status(old).unwrap().last_index;
    // The new leader's first entry takes that index. Its own commands follow.
    let won = sim.propose_many(new, 3, 0).unwrap();
    sim.run_until("the new leader's commits", STEPS, |sim| won.clone().all(|c| is_acked(sim, c))).unwrap();
    assert!(sim.applied(new) >= index);
    sim.heal();
    sim.converge().unwrap();
    assert_eq!(sim.history().place(lost), None);
    match sim.history().proposal(lost) {
        ProposalResult::Failed(ProposeError::Uncertain { .. } | ProposeError::Superseded { .. }) => {}
        other => panic!("{other:?}"),
    }
}

/// An uncertain command may also happen.
#[test]
fn a_command_of_a_deposed_leader_that_is_applied_later_was_answered_as_uncertain() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let followers = others(&sim, leader);
    sim.run(200).unwrap();
    // The followers get the command, and their answers are lost.
    followers.iter().for_each(|&f| sim.cut(f, leader));
    let command = sim.propose(leader).unwrap();
    sim.run_until("another leader", STEPS, |sim| sim.leader().is_some_and(|l| l != leader)).unwrap();
    sim.heal();
    sim.converge().unwrap();
    assert!(sim.history().place(command).is_some(), "it was replicated before");
    match sim.history().proposal(command) {
        ProposalResult::Failed(error) => assert_eq!(error.outcome(), Outcome::MayHaveHappened),
        other => panic!("{other:?}"),
    }
}

#[test]
fn proposals_during_a_transfer_are_busy_and_none_is_lost() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let target = others(&sim, leader)[0];
    sim.run(200).unwrap();
    let before = sim.propose(leader).unwrap();
    assert_eq!(sim.transfer(leader, target).unwrap(), Some(Ok(())));
    assert_eq!(sim.transfer(leader, target).unwrap(), Some(Err(TransferLeaderError::Busy)));
    let during = sim.propose(leader).unwrap();
    assert_eq!(*sim.history().proposal(during), ProposalResult::Failed(ProposeError::Busy));
    sim.run_until("the transfer", STEPS, |sim| sim.leader() == Some(target)).unwrap();
    sim.run_until("the command before", STEPS, |sim| is_settled(sim, before)).unwrap();
    sim.converge().unwrap();
    assert!(sim.history().place(before).is_some() && sim.history().place(during).is_none());
}

/// At each election timeout Raft forgot which peers are active until they answered the next heartbeat. In between, it
/// refused a transfer of leadership, and a leader that shut down found no successor.
#[test]
fn a_peer_that_answers_stays_active_and_a_silent_one_does_not() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let active = |sim: &Sim, of: NodeId| {
        sim.status(leader).unwrap().peers.iter().find(|p| p.id == of).unwrap().recent_active
    };
    let others = others(&sim, leader);
    sim.run_until("answers", STEPS, |sim| others.iter().all(|&of| active(sim, of))).unwrap();
    for step in 0..STEPS {
        sim.step().unwrap();
        assert_eq!(sim.leader(), Some(leader));
        assert!(others.iter().all(|&of| active(&sim, of)), "in step {step}");
    }
    let (gone, stays) = (others[0], others[1]);
    sim.isolate(gone);
    sim.run_until("its silence", STEPS, |sim| !active(sim, gone)).unwrap();
    assert!(active(&sim, stays));
}

#[test]
fn a_transfer_to_a_target_that_falls_silent_ends_and_proposals_resume() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let target = others(&sim, leader)[0];
    sim.run(200).unwrap();
    assert_eq!(sim.transfer(leader, target).unwrap(), Some(Ok(())));
    sim.isolate(target);
    sim.run(1_000).unwrap();
    let leader = sim.leader().unwrap();
    let command = sim.propose(leader).unwrap();
    sim.run_until("the acknowledgement", STEPS, |sim| is_acked(sim, command)).unwrap();
}

#[test]
fn an_isolated_leader_answers_no_read_while_another_acknowledges() {
    let (mut sim, old, new, _) = deposed();
    let command = sim.propose(new).unwrap();
    sim.run_until("the acknowledgement", STEPS, |sim| is_acked(sim, command)).unwrap();
    let stale = sim.read(old).unwrap();
    let fresh = sim.read(new).unwrap();
    sim.run_until("both answers", STEPS, |sim| {
        [stale, fresh].iter().all(|&read| *sim.history().read(read) != ReadResult::Open)
    })
    .unwrap();
    assert!(matches!(sim.history().read(stale), ReadResult::Failed(_)), "{:?}", sim.history().read(stale));
    assert!(matches!(sim.history().read(fresh), ReadResult::Saw(_)), "{:?}", sim.history().read(fresh));
}

/// A confirmed read on a node that never gets the entries had no deadline and stayed for ever. Enough of them made every later
/// read busy.
#[test]
fn a_confirmed_read_whose_entries_never_come_fails_at_its_deadline() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let follower = others(&sim, leader)[0];
    sim.run(200).unwrap();
    let read = sim.read(follower).unwrap();
    sim.turn(follower, false).unwrap();
    let mut sent = sim.in_flight().into_iter().filter(|m| m.kind == MessageKind::ReadIndex);
    let round = sent.next().expect("the round in flight");
    // The leader's answer names an entry whose append is lost, and then the follower is isolated.
    sim.isolate(follower);
    let status = sim.status(follower).unwrap();
    let answer = Message {
        term: status.state.term,
        index: status.last_index + 1,
        entries: round.entries,
        ..Message::new(MessageKind::ReadIndexResponse, leader, follower)
    };
    sim.deliver(follower, leader, answer).unwrap().unwrap();
    sim.turn(follower, false).unwrap();
    sim.run(2_000).unwrap();
    assert!(matches!(sim.history().read(read), ReadResult::Failed(_)), "{:?}", sim.history().read(read));
    let reads = sim.with(follower, |group, _| group.reads_waiting()).unwrap();
    assert_eq!(reads, Some(0));
}

#[test]
fn nodes_whose_writes_hang_for_many_election_timeouts_do_not_panic() {
    for (voters, learners) in [(1, 0), (1, 1), (3, 0), (2, 0)] {
        let options = SimOptions { learners, ..SimOptions::default() };
        let (mut sim, leader) = led(voters, options);
        sim.propose_many(leader, 5, 0).unwrap();
        sim.ids().into_iter().for_each(|id| sim.hold_writes(id, true));
        for round in 0..40 {
            sim.run(200).unwrap();
            // Complete a write now and then, so that votes and appends meet unpersisted entries.
            let ids = sim.ids();
            sim.complete_writes(ids[round % ids.len()]).unwrap();
            if let Some(leader) = sim.leader() {
                sim.propose(leader).unwrap();
            }
        }
        sim.converge().unwrap();
    }
}

#[test]
fn a_sole_voter_whose_first_write_hangs_does_not_panic() {
    let mut sim = Sim::new(3, 1, SimOptions::default()).unwrap();
    sim.hold_writes(id(1), true);
    sim.run(2_000).unwrap();
    sim.converge().unwrap();
}

#[test]
fn answers_to_several_read_rounds_of_one_peer_in_one_turn_all_arrive() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let followers = others(&sim, leader);
    sim.run(200).unwrap();
    let contexts: Vec<Vec<u8>> =
        (0..3).map(|round: u64| [&[9; 16][..], &round.to_be_bytes()].concat()).collect();
    let ask = |sim: &mut Sim, context: &[u8]| {
        let mut message = Message::new(MessageKind::ReadIndex, followers[0], leader);
        message.entries = vec![Entry { data: context.to_vec().into(), ..Entry::default() }];
        assert_eq!(sim.deliver(leader, followers[0], message).unwrap(), Ok(()));
    };
    contexts.iter().for_each(|context| ask(&mut sim, context));
    // An acknowledgement of the last round confirms all three.
    let term = sim.status(leader).unwrap().state.term;
    let ack = Message {
        term,
        context: contexts[2].clone().into(),
        ..Message::new(MessageKind::HeartbeatResponse, followers[1], leader)
    };
    sim.deliver(leader, followers[1], ack).unwrap().unwrap();
    sim.turn(leader, false).unwrap();
    let answers = sim.in_flight().into_iter().filter(|m| m.kind == MessageKind::ReadIndexResponse);
    let answered: Vec<Vec<u8>> = answers.map(|m| m.entries[0].data.to_vec()).collect();
    assert_eq!(answered, contexts);
}

#[test]
fn reads_of_two_followers_in_several_rounds_are_all_answered() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let mut reads = Vec::new();
    for _ in 0..30 {
        for follower in others(&sim, leader) {
            reads.push(sim.read(follower).unwrap());
        }
        sim.run(2).unwrap();
    }
    sim.run_until("all answers", STEPS, |sim| {
        reads.iter().all(|&read| matches!(sim.history().read(read), ReadResult::Saw(_)))
    })
    .unwrap();
}

#[test]
fn a_forwarded_read_round_is_refused_and_raft_never_sees_it() {
    let (mut sim, leader) = led(3, SimOptions::default());
    let followers = others(&sim, leader);
    let round = |from, to| {
        let mut message = Message::new(MessageKind::ReadIndex, from, to);
        message.entries = vec![Entry { data: b"round".as_slice().into(), ..Entry::default() }];
        message
    };
    let before = (sim.status(leader), sim.status(followers[0]));
    let (a, b) = (followers[0], followers[1]);
    assert_eq!(sim.deliver(leader, a, round(b, leader)).unwrap(), Err(Reject::WrongSender));
    let sent = sim.in_flight().len();
    assert_eq!(sim.deliver(a, b, round(b, a)).unwrap(), Err(Reject::NotLeader));
    sim.with(a, |group, fx| group.poll(fx)).unwrap();
    assert_eq!(sim.in_flight().len(), sent, "it was not forwarded");
    assert_eq!((sim.status(leader), sim.status(a)), before);
}

/// A follower restarts while its leader still counts on it, and the third node asks for its vote.
fn vote_inside_a_lease(quiet_after_restart: bool) -> (Sim, NodeId) {
    let options = SimOptions { quiet_after_restart, ..SimOptions::default() };
    let (mut sim, leader) = led(3, options);
    let followers = others(&sim, leader);
    sim.run(200).unwrap();
    sim.hold_writes(leader, false);
    // The third node hears nothing and campaigns soon. The restarted node does not know the leader yet.
    sim.isolate(followers[1]);
    for _ in 0..40 {
        sim.turn(followers[1], true).unwrap();
    }
    sim.heal();
    sim.crash(followers[0]);
    sim.restart(followers[0]).unwrap();
    let term = sim.status(leader).unwrap().state.term;
    let (index, log_term) = sim.durable(followers[1]);
    for kind in [MessageKind::RequestPreVote, MessageKind::RequestVote] {
        let request =
            Message { term: term + 1, index, log_term, ..Message::new(kind, followers[1], followers[0]) };
        let _ = sim.deliver(followers[0], followers[1], request).unwrap();
    }
    sim.turn(followers[0], false).unwrap();
    sim.complete_writes(followers[0]).unwrap();
    (sim, followers[0])
}

fn gave_a_vote(sim: &Sim, node: NodeId) -> bool {
    sim.in_flight().iter().any(|m| {
        let votes = [MessageKind::RequestVoteResponse, MessageKind::RequestPreVoteResponse];
        m.from == node && votes.contains(&m.kind) && !m.reject
    })
}

#[test]
fn a_node_that_restarts_inside_a_leaders_lease_gives_no_vote() {
    let (sim, node) = vote_inside_a_lease(true);
    assert!(!gave_a_vote(&sim, node) && sim.rejected(Reject::Quiet) >= 2);
}

/// The control: without the quiet time the node votes although the leader's lease still holds.
#[test]
fn without_the_quiet_time_a_restarted_node_votes_inside_the_lease() {
    let (sim, node) = vote_inside_a_lease(false);
    assert!(gave_a_vote(&sim, node));
}

#[test]
fn the_quiet_time_ends_and_the_cluster_elects_after_a_restart_of_all_nodes() {
    let (mut sim, _) = led(3, SimOptions::default());
    for node in sim.ids() {
        sim.crash(node);
        sim.restart(node).unwrap();
    }
    sim.converge().unwrap();
}

#[test]
fn proposals_are_busy_while_too_much_is_unapplied_and_taken_again_afterwards() {
    // The leader stays.
    let stall = StallPolicy { apply_ticks: 1_000, ..SimOptions::default().stall };
    let options = SimOptions { unapplied_bytes_max: 2_000, stall, ..SimOptions::default() };
    let (mut sim, leader) = led(3, options);
    sim.run(200).unwrap();
    sim.hold_applies(leader, true);
    let mut commands = Vec::new();
    for _ in 0..10 {
        commands.extend(sim.propose_many(leader, 5, 100).unwrap());
        sim.run(100).unwrap();
    }
    let busy = |sim: &Sim, c: u64| *sim.history().proposal(c) == ProposalResult::Failed(ProposeError::Busy);
    let taken: Vec<_> = commands.iter().copied().filter(|&c| !busy(&sim, c)).collect();
    assert!(!taken.is_empty() && taken.len() < commands.len());
    assert!(sim.status(leader).unwrap().unapplied_bytes < 4_000);
    sim.hold_applies(leader, false);
    sim.run_until("what was taken", STEPS, |sim| taken.iter().all(|&c| is_acked(sim, c))).unwrap();
    let command = sim.propose(leader).unwrap();
    sim.run_until("a new one", STEPS, |sim| is_acked(sim, command)).unwrap();
}

#[test]
fn appends_are_refused_while_too_much_is_unapplied_and_taken_again_afterwards() {
    let options = SimOptions { unapplied_bytes_max: 2_000, ..SimOptions::default() };
    let (mut sim, leader) = led(3, options);
    let slow = others(&sim, leader)[0];
    sim.run(200).unwrap();
    sim.hold_applies(slow, true);
    for _ in 0..60 {
        sim.propose_many(leader, 3, 100).unwrap();
        sim.run(50).unwrap();
    }
    assert!(sim.rejected(Reject::Full) > 0);
    let status = sim.status(slow).unwrap();
    assert!(status.unapplied_bytes < 2 * 2_000 + 1_024, "{status:?}");
    assert_eq!(status.state.role, Role::Follower);
    assert_eq!(sim.leader(), Some(leader), "heartbeats get through");
    sim.hold_applies(slow, false);
    sim.converge().unwrap();
}

/// See `GroupCore::step`: only committed entries leave memory, so the bound must admit the entry that commits the rest.
#[test]
fn logs_full_of_uncommitted_entries_do_not_deadlock_a_new_leader() {
    // A long election timeout, so that the logs are full before a campaign. A message holds a whole log, because Raft sends
    // the next one only after an acknowledgement.
    let options = SimOptions {
        unapplied_bytes_max: 2_000,
        append_bytes_max: 4_096,
        election_ticks: 100..120,
        ..SimOptions::default()
    };
    let (mut sim, leader) = led(3, options);
    let followers = others(&sim, leader);
    sim.run(200).unwrap();
    // Acknowledgements are lost: all logs fill up, and nothing is committed.
    followers.iter().for_each(|&f| sim.cut(f, leader));
    for _ in 0..10 {
        sim.propose_many(leader, 5, 300).unwrap();
        sim.run(10).unwrap();
    }
    sim.run_until("full logs", STEPS, |sim| {
        followers.iter().all(|&f| sim.status(f).unwrap().unapplied_bytes >= 2_000)
    })
    .unwrap();
    sim.crash(leader);
    sim.heal();
    sim.run_until("another leader", STEPS, |sim| sim.leader().is_some()).unwrap();
    sim.converge().unwrap();
}
