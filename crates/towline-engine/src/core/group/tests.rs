mod explain;
pub(super) mod fixture;
mod founding;
mod full_disk;
mod lost;
mod slow;
mod stalls;

use self::fixture::*;
use super::*;
use crate::core::GroupLog;
use crate::core::terms::RISE_MAX;
use crate::status::Role;

fn new_setup(voters: u64) -> GroupSetup {
    setup(voters, GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, 1 << 20), 10)
}

/// A new group with an election timeout of exactly ten ticks.
fn group(voters: u64) -> TestGroup {
    TestGroup::new(new_setup(voters))
}

fn append(term: u64, after: u64, entries: Vec<Entry>) -> Message {
    let log_term = if after == 0 { 0 } else { term };
    Message { index: after, log_term, entries, ..message(MessageKind::Append, 2, term) }
}

fn kinds(fx: &Effects<u64, u64>) -> Vec<MessageKind> {
    fx.messages.iter().map(|m| m.kind).collect()
}

#[test]
fn a_response_or_a_vote_leaves_only_after_the_write() {
    for (request, response, vote) in [
        (append(1, 0, vec![entry(1, 1)]), MessageKind::AppendResponse, None),
        (message(MessageKind::RequestVote, 2, 1), MessageKind::RequestVoteResponse, Some(id(2))),
    ] {
        let mut group = group(3);
        group.deliver(request.clone());
        let (number, write) = group.poll_write();
        assert_eq!(write.hard_state, Some(HardState { term: 1, vote, commit: 0 }));
        assert_eq!((write.entries, kinds(&group.fx)), (request.entries, vec![]));
        group.written(number);
        assert!(group.replica.is_log_persisted(), "raft knows it before a message leaves");
        assert_eq!(kinds(&group.fx), [response]);
    }
}

#[test]
fn messages_wait_for_their_own_write_and_leave_in_order() {
    let mut group = group(3);
    let numbers = [1, 2, 3].map(|index| {
        group.deliver(append(1, index - 1, vec![entry(index, 1)]));
        group.poll_write().0
    });
    assert!(group.fx.messages.is_empty());
    group.written(numbers[0]);
    assert_eq!(group.fx.messages.drain(..).map(|m| m.index).collect::<Vec<_>>(), [1]);
    // A log that made two writes durable at once reports only the second.
    group.written(numbers[2]);
    assert_eq!(group.fx.messages.iter().map(|m| m.index).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_leader_sends_entries_before_they_are_durable_but_only_in_a_durable_term() {
    let mut group = group(3);
    group.campaign();
    group.settle();
    group.deliver(message(MessageKind::RequestVoteResponse, 2, 1));
    group.poll();
    let sent = [MessageKind::Append, MessageKind::Append, MessageKind::Heartbeat, MessageKind::Heartbeat];
    assert_eq!(kinds(&group.fx), sent, "its term is durable since it requested votes");
    assert!(group.fx.write.is_some() && group.state().commit == 0);
}

/// A candidate with an entry that is not durable, whose request for votes therefore did not leave.
fn hasty_candidate() -> TestGroup {
    let mut group = group(3);
    group.deliver(append(1, 0, vec![entry(1, 1)]));
    group.poll();
    group.ticks(10);
    group.poll();
    group.deliver(message(MessageKind::RequestPreVoteResponse, 3, 2));
    assert_eq!((group.state().role, group.state().term), (Role::Candidate, 2));
    group
}

/// The table names the reason to refuse each message, and the panic of raft if it gets the message.
#[test]
fn messages_that_would_make_raft_panic_or_stall_are_refused() {
    let follower = || group(3);
    let sole_leader = || {
        let mut group = group(1);
        group.ticks(10);
        group.settle();
        group
    };
    let past_the_end = || Message { log_term: 0, ..append(1, 8, vec![entry(9, 1)]) };
    let request_snapshot =
        Message { reject: true, request_snapshot: 1, ..message(MessageKind::AppendResponse, 2, 1) };
    let low_priority = Message { priority: -1, ..message(MessageKind::RequestPreVote, 2, 1) };
    let stranger = Message { entries: vec![entry(0, 0)], ..message(MessageKind::ReadIndex, 9, 0) };
    let lost = Reject::EntriesLost(LostEntries { last_index: 0, acknowledged: 3 });
    type Case<'a> = (&'a dyn Fn() -> TestGroup, Message, Reject, Option<&'a str>);
    let cases: [Case<'_>; 7] = [
        // Raft asserts that its log is persisted when it wins.
        (
            &hasty_candidate,
            message(MessageKind::RequestVoteResponse, 3, 2),
            Reject::KindNotAllowed,
            Some("assertion"),
        ),
        // For raft an index past the end has term zero.
        (&follower, past_the_end(), Reject::BadEntries, Some("out of bound")),
        (&follower, Message { entries: vec![], commit: 8, ..past_the_end() }, Reject::BadEntries, None),
        (&follower, Message { commit: 3, ..heartbeat(1) }, lost, Some("out of range")),
        // A node without a term has no term for its refusal.
        (&follower, low_priority, Reject::BadIndex, Some("term should be set")),
        // Raft would stop sending entries until it had sent a snapshot.
        (&follower, request_snapshot, Reject::BadIndex, None),
        (&sole_leader, stranger, Reject::UnknownPeer, None),
    ];
    for (group, message, reject, panic) in cases {
        assert_eq!(group().step(message.clone()), Err(reject), "{message:?}");
        if let Some(expected) = panic {
            let text = panic_of(|| group().replica.step(message.clone()));
            assert!(text.contains(expected), "the control: {text} at {message:?}");
        }
    }
}

#[test]
fn committed_entries_come_in_pieces_of_limited_size() {
    let mut setup = new_setup(3);
    setup.replica.committed_bytes_max = 250;
    let mut group = TestGroup::new(setup);
    let entries = (1..=5).map(|index| entry(index, 1)).collect();
    group.deliver(Message { commit: 5, ..append(1, 0, entries) });
    let (number, _) = group.poll_write();
    group.written(number);
    group.poll();
    let through = group.fx.apply.iter().map(|task| match task {
        Apply::Entries { through, .. } => through.index,
        other => panic!("{other:?}"),
    });
    assert_eq!(through.collect::<Vec<_>>(), [2, 4, 5]);
}

/// Entries arrived and were not polled when the clock ticked. A sole voter wins within that tick.
#[test]
fn a_sole_voter_with_entries_in_no_write_does_not_campaign() {
    let mut group = group(1);
    group.deliver(append(1, 0, vec![entry(1, 1)]));
    group.ticks(30);
    assert_eq!(group.state().role, Role::Follower);
    group.settle();
    group.ticks(10);
    assert_eq!(group.state().role, Role::Leader);
}

fn heartbeat(term: u64) -> Message {
    message(MessageKind::Heartbeat, 2, term)
}

/// A forged term near the end of the numbers would leave none for another election.
#[test]
fn a_forged_term_does_not_use_up_the_numbers() {
    let mut group = group(3);
    for forged in [
        heartbeat(1 << 61),
        message(MessageKind::RequestVote, 2, 1 << 61),
        message(MessageKind::AppendResponse, 2, 1 << 61),
        append(1 << 61, 0, vec![entry(1, 1)]),
    ] {
        assert_eq!(group.step(forged), Err(Reject::TermJump));
    }
    let term = group.state().term;
    assert!(term <= RISE_MAX, "it rises by one step only, to {term}");
    group.settle();
    group.campaign();
    assert_eq!((group.state().role, group.state().term), (Role::Candidate, term + 1));
}

/// Otherwise two forged messages would separate two honest nodes for ever.
#[test]
fn terms_rise_by_one_large_step_a_tick() {
    let mut group = group(3);
    group.deliver(heartbeat(RISE_MAX));
    assert_eq!(group.step(heartbeat(2 * RISE_MAX)), Err(Reject::TermJump));
    assert_eq!(group.state().term, RISE_MAX);
    group.deliver(heartbeat(RISE_MAX + 1));
    group.tick();
    group.deliver(heartbeat(2 * RISE_MAX));
    assert_eq!(group.state().term, 2 * RISE_MAX);
}

#[test]
fn a_node_that_missed_very_many_elections_catches_up_in_steps() {
    let mut group = group(3);
    let theirs = 5 * RISE_MAX + 7;
    let mut ticks = 0;
    while group.step(heartbeat(theirs)).is_err() {
        group.tick();
        ticks += 1;
    }
    assert_eq!((group.state().term, group.state().leader, ticks), (theirs, Some(id(2)), 5));
}

/// The node hosts other groups, whose members must not influence this one.
#[test]
fn a_forged_term_of_a_node_that_is_no_member_changes_nothing() {
    let mut group = group(3);
    assert_eq!(group.step(message(MessageKind::Heartbeat, 9, 1 << 61)), Err(Reject::TermJump));
    assert_eq!(group.state().term, 0);
}

#[test]
fn followers_get_a_new_commit_index_at_once_only_with_commit_broadcast() {
    for commit_broadcast in [true, false] {
        let mut setup = new_setup(3);
        setup.replica.commit_broadcast = commit_broadcast;
        let mut group = TestGroup::new(setup);
        group.lead();
        group.acknowledge(2, 1);
        let fx = group.settle();
        assert_eq!(group.state().commit, 1);
        let commits = fx.messages.iter().filter(|m| m.kind == MessageKind::Append && m.commit == 1);
        let count = commits.filter(|m| m.to == id(2)).count();
        assert_eq!(count, usize::from(commit_broadcast), "{:?}", fx.messages);
    }
}

/// A leader whose heartbeats are due every five ticks and have just left.
fn leader_between_heartbeats() -> TestGroup {
    let mut setup = new_setup(3);
    setup.replica.heartbeat_ticks = 5;
    let mut group = TestGroup::new(setup);
    group.lead();
    group.acknowledge(2, 1);
    group.acknowledge(3, 1);
    group.settle();
    assert_eq!(ticks_with_heartbeats(&mut group, 5), [5]);
    group
}

/// The ticks, from 1 to `ticks`, after which heartbeats leave. Node 2 answers each.
fn ticks_with_heartbeats(group: &mut TestGroup, ticks: u64) -> Vec<u64> {
    let beats = |&tick: &u64| {
        group.tick();
        let kinds = kinds(&group.settle());
        assert!(kinds.is_empty() || kinds == [MessageKind::Heartbeat; 2], "{kinds:?} after {tick}");
        group.deliver(message(MessageKind::HeartbeatResponse, 2, 1));
        !kinds.is_empty()
    };
    (1..=ticks).filter(beats).collect()
}

/// With the skipped ticks, heartbeats are at most five ticks apart.
#[test]
fn heartbeats_are_not_late_after_skipped_ticks() {
    for (skipped, beats) in
        [(0, vec![5]), (1, vec![4, 5]), (3, vec![2, 5]), (4, vec![1, 5]), (999, vec![1, 5])]
    {
        let mut group = leader_between_heartbeats();
        group.skip_ticks(skipped);
        assert_eq!(ticks_with_heartbeats(&mut group, 7), beats, "{skipped} skipped");
        assert_eq!(ticks_with_heartbeats(&mut group, 8), [3, 8], "skipped ticks count once");
    }
    // Every second tick is skipped: 40 pass. A busy node must not send more heartbeats than that.
    let mut group = leader_between_heartbeats();
    let mut beats = Vec::new();
    for tick in 1..=20 {
        group.skip_ticks(1);
        beats.extend(ticks_with_heartbeats(&mut group, 1).first().map(|_| tick));
    }
    assert_eq!(beats, [3, 5, 8, 10, 13, 15, 18, 20]);
    let mut group = leader_between_heartbeats();
    for skipped in [1, 0, 1] {
        group.skip_ticks(skipped);
        group.tick();
    }
    assert_eq!(kinds(&group.settle()).len(), 2, "three ticks and two skipped ones are five");
}

#[test]
fn heartbeats_that_are_due_anyway_leave_once_after_skipped_ticks() {
    let mut group = leader_between_heartbeats();
    assert_eq!(ticks_with_heartbeats(&mut group, 4), []);
    group.skip_ticks(3);
    assert_eq!(ticks_with_heartbeats(&mut group, 9), [1, 6]);
}

/// Replaying them would end an election timeout, or a leader's time to hear of a quorum, at once.
#[test]
fn skipped_ticks_end_no_timeout() {
    let mut follower = group(3);
    follower.skip_ticks(1_000);
    follower.tick();
    assert_eq!((kinds(&follower.settle()), follower.state().term), (vec![], 0));
    follower.ticks(9);
    assert_eq!(kinds(&follower.settle()), [MessageKind::RequestPreVote; 2], "the control");

    let mut leader = leader_between_heartbeats();
    leader.skip_ticks(1_000);
    ticks_with_heartbeats(&mut leader, 1);
    assert_eq!(leader.state().role, Role::Leader);
    leader.ticks(15);
    assert_ne!(leader.state().role, Role::Leader, "the control: no peer answered");
}
