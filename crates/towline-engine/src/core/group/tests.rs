mod slow;

use super::*;
use crate::core::GroupLog;
use crate::core::terms::RISE_MAX;
use crate::message::ConfState;

type TestGroup = GroupCore<u64, u64>;
type TestEffects = Effects<u64, u64>;

fn id(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

/// Node 1 of a group with so many voters, at an election timeout of exactly ten ticks.
fn group(voters: u64) -> TestGroup {
    group_with(voters, Vec::new())
}

/// The same with what is in its log already, all of it of term 1 and committed up to the entry before the last.
fn group_with(voters: u64, entries: Vec<Entry>) -> TestGroup {
    GroupCore::new(setup(voters, entries)).unwrap()
}

fn setup(voters: u64, entries: Vec<Entry>) -> GroupSetup {
    let last_index = entries.len() as u64;
    let terms = if entries.is_empty() { Vec::new() } else { vec![(1, 1)] };
    let term = u64::from(last_index > 0);
    GroupSetup {
        replica: ReplicaSetup {
            node: id(1),
            group: GroupId::DEFAULT,
            log: GroupLog::new(LogId::NONE, terms, last_index, entries, 0, 1 << 20),
            hard_state: HardState { term, vote: None, commit: last_index.saturating_sub(1) },
            conf_state: ConfState { voters: (1..=voters).map(id).collect(), ..ConfState::default() },
            heartbeat_ticks: 2,
            election_ticks: 10..11,
            election_ticks_min: 10,
            append_bytes_max: 1 << 20,
            append_inflight_max: 16,
            commit_broadcast: true,
            uncommitted_bytes_max: 1 << 20,
            committed_bytes_max: 1 << 20,
        },
        origin: [1; 16],
        quiet_ticks: 0,
        read_timeout_ticks: 20,
        read_retry_ticks: 2,
        unapplied_bytes_max: 1 << 20,
        conf: ConfRecord::default(),
        snapshots: SnapshotSetup::default(),
    }
}

fn entry(index: u64, term: u64) -> Entry {
    Entry { index, term, data: vec![1].into(), ..Entry::default() }
}

fn append(term: u64, after: u64, entries: Vec<Entry>) -> Message {
    let log_term = if after == 0 { 0 } else { term };
    Message { term, index: after, log_term, entries, ..Message::new(MessageKind::Append, id(2), id(1)) }
}

fn kinds(fx: &TestEffects) -> Vec<MessageKind> {
    fx.messages.iter().map(|m| m.kind).collect()
}

/// Polls and says that everything is durable at once.
fn settle(group: &mut TestGroup) -> TestEffects {
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    if let Some((number, _)) = fx.write.take() {
        group.written(number, &mut fx);
    }
    fx
}

/// Ticks until the group asks for votes of a real election, answering the round before; its request is let go.
fn campaign(group: &mut TestGroup) {
    for _ in 0..10 {
        group.tick(&mut TestEffects::default());
    }
    settle(group);
    let grant = Message {
        term: group.state().term + 1,
        ..Message::new(MessageKind::RequestPreVoteResponse, id(2), id(1))
    };
    group.step(id(2), grant).unwrap();
}

#[test]
fn a_followers_answer_to_an_append_leaves_only_after_the_write() {
    let mut group = group(3);
    let mut fx = TestEffects::default();
    group.step(id(2), append(1, 0, vec![entry(1, 1)])).unwrap();
    group.poll(&mut fx);
    let (number, write) = fx.write.take().unwrap();
    assert_eq!((write.entries.len(), write.hard_state.map(|h| h.term)), (1, Some(1)));
    assert!(fx.messages.is_empty(), "{:?}", fx.messages);
    assert!(!group.replica.is_log_persisted());
    group.written(number, &mut fx);
    assert!(group.replica.is_log_persisted(), "raft is told before anything leaves");
    assert_eq!(kinds(&fx), [MessageKind::AppendResponse]);
}

#[test]
fn a_vote_leaves_only_after_the_write() {
    let mut group = group(3);
    let mut fx = TestEffects::default();
    let request = Message { term: 1, ..Message::new(MessageKind::RequestVote, id(2), id(1)) };
    group.step(id(2), request).unwrap();
    group.poll(&mut fx);
    let (number, write) = fx.write.take().unwrap();
    assert_eq!(write.hard_state.and_then(|h| h.vote), Some(id(2)));
    assert!(fx.messages.is_empty(), "{:?}", fx.messages);
    group.written(number, &mut fx);
    assert_eq!(kinds(&fx), [MessageKind::RequestVoteResponse]);
}

#[test]
fn messages_wait_for_their_own_write_and_leave_in_order() {
    let mut group = group(3);
    let (mut numbers, mut fx) = (Vec::new(), TestEffects::default());
    for index in 1..=3 {
        group.step(id(2), append(1, index - 1, vec![entry(index, 1)])).unwrap();
        group.poll(&mut fx);
        numbers.push(fx.write.take().unwrap().0);
    }
    assert!(fx.messages.is_empty());
    group.written(numbers[0], &mut fx);
    assert_eq!(fx.messages.drain(..).map(|m| m.index).collect::<Vec<_>>(), [1]);
    // A disk that made two writes durable at once says so once.
    group.written(numbers[2], &mut fx);
    assert_eq!(fx.messages.iter().map(|m| m.index).collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_leader_sends_entries_before_they_are_durable_but_not_in_a_term_that_is_not() {
    let mut group = group(3);
    campaign(&mut group);
    settle(&mut group);
    let grant = Message { term: 1, ..Message::new(MessageKind::RequestVoteResponse, id(2), id(1)) };
    group.step(id(2), grant).unwrap();
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    assert_eq!(kinds(&fx), [MessageKind::Append; 2], "its term is durable since it asked for votes");
    assert!(fx.write.is_some() && group.state().commit == 0);
}

/// Case 36, in the small: raft commits for a single voter when the write is durable, not before.
#[test]
fn a_single_voter_hands_nothing_out_before_its_write() {
    let mut group = group(1);
    for _ in 0..10 {
        group.tick(&mut TestEffects::default());
    }
    let mut fx = TestEffects::default();
    group.poll(&mut fx);
    group.propose(vec![(Bytes::from_static(b"a"), 7)], &mut fx);
    group.poll(&mut fx);
    assert!(fx.apply.is_empty() && group.state().role == crate::status::Role::Leader);
    group.written(group.writes, &mut fx);
    group.poll(&mut fx);
    assert!(!fx.apply.is_empty());
}

/// A candidate with an entry that is not durable, whose request for votes therefore did not leave.
fn hasty_candidate() -> (TestGroup, Message) {
    let mut group = group(3);
    group.step(id(2), append(1, 0, vec![entry(1, 1)])).unwrap();
    group.poll(&mut TestEffects::default());
    for _ in 0..10 {
        group.tick(&mut TestEffects::default());
    }
    group.poll(&mut TestEffects::default());
    let grant = Message { term: 2, ..Message::new(MessageKind::RequestPreVoteResponse, id(3), id(1)) };
    group.step(id(3), grant).unwrap();
    assert_eq!((group.state().role, group.state().term), (crate::status::Role::Candidate, 2));
    (group, Message { term: 2, ..Message::new(MessageKind::RequestVoteResponse, id(3), id(1)) })
}

/// Case 31: raft asserts that its log is persisted when it wins; a vote that nobody asked for would make it win early.
#[test]
fn a_vote_that_was_not_asked_for_yet_is_refused() {
    let (mut group, vote) = hasty_candidate();
    assert_eq!(group.step(id(3), vote), Err(Reject::KindNotAllowed));
}

/// The control.
#[test]
#[should_panic(expected = "assertion")]
fn raft_panics_on_a_vote_that_was_not_asked_for_yet() {
    let (mut group, vote) = hasty_candidate();
    group.replica.step(vote);
}

/// Case 31: entries came in and were not polled yet when the clock ticked, and a sole voter wins within that tick.
#[test]
fn a_sole_voter_with_entries_that_were_not_given_out_does_not_campaign() {
    let mut group = group(1);
    group.step(id(2), append(1, 0, vec![entry(1, 1)])).unwrap();
    for _ in 0..30 {
        group.tick(&mut TestEffects::default());
    }
    assert_eq!(group.state().role, crate::status::Role::Follower);
    settle(&mut group);
    for _ in 0..10 {
        group.tick(&mut TestEffects::default());
    }
    assert_eq!(group.state().role, crate::status::Role::Leader);
}

/// Raft would stop sending entries to the peer until it had sent it a snapshot, which there is none of.
#[test]
fn a_request_for_a_snapshot_is_refused() {
    let mut group = group(3);
    let ask = Message {
        term: 1,
        reject: true,
        request_snapshot: 1,
        ..Message::new(MessageKind::AppendResponse, id(2), id(1))
    };
    assert_eq!(group.step(id(2), ask), Err(Reject::BadIndex));
}

/// Case 31: raft takes the term of an index past its end to be zero.
fn append_past_the_end() -> Message {
    Message { log_term: 0, ..append(1, 8, vec![entry(9, 1)]) }
}

#[test]
fn an_append_past_the_end_of_the_log_that_names_no_term_is_refused() {
    assert_eq!(group(3).step(id(2), append_past_the_end()), Err(Reject::BadEntries));
    let no_entries = Message { entries: Vec::new(), commit: 8, ..append_past_the_end() };
    assert_eq!(group(3).step(id(2), no_entries), Err(Reject::BadEntries));
}

/// The control.
#[test]
#[should_panic(expected = "out of bound")]
fn raft_panics_on_an_append_past_the_end_of_the_log_that_names_no_term() {
    group(3).replica.step(append_past_the_end());
}

#[test]
fn a_heartbeat_that_commits_past_the_end_of_the_log_is_refused() {
    let mut group = group_with(3, vec![entry(1, 1), entry(2, 1)]);
    let heartbeat = Message { term: 1, commit: 3, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) };
    assert_eq!(group.step(id(2), heartbeat), Err(Reject::BadIndex));
}

#[test]
fn a_read_round_of_somebody_who_is_no_member_is_refused() {
    let mut group = group(1);
    for _ in 0..10 {
        group.tick(&mut TestEffects::default());
    }
    settle(&mut group);
    let mut round = Message::new(MessageKind::ReadIndex, id(9), id(1));
    round.entries = vec![entry(0, 0)];
    assert_eq!(group.step(id(9), round), Err(Reject::UnknownPeer));
}

/// Case 31: a node without a term has no term to refuse a vote in.
#[test]
fn a_request_of_low_priority_is_refused_before_raft_refuses_it() {
    let mut group = group(3);
    let request =
        Message { term: 1, priority: -1, ..Message::new(MessageKind::RequestPreVote, id(2), id(1)) };
    assert_eq!(group.step(id(2), request), Err(Reject::BadIndex));
}

/// The control.
#[test]
#[should_panic(expected = "term should be set")]
fn raft_panics_on_a_request_of_low_priority_when_it_has_no_term() {
    let request =
        Message { term: 1, priority: -1, ..Message::new(MessageKind::RequestPreVote, id(2), id(1)) };
    group(3).replica.step(request);
}

fn heartbeat(term: u64) -> Message {
    Message { term, ..Message::new(MessageKind::Heartbeat, id(2), id(1)) }
}

/// An authenticated member that forges a term near the end of the numbers would leave none for another election.
#[test]
fn a_forged_term_does_not_use_the_numbers_up() {
    let mut group = group(3);
    for message in [
        heartbeat(1 << 61),
        Message { term: 1 << 61, ..Message::new(MessageKind::RequestVote, id(2), id(1)) },
        Message { term: 1 << 61, ..Message::new(MessageKind::AppendResponse, id(2), id(1)) },
        append(1 << 61, 0, vec![entry(1, 1)]),
    ] {
        assert_eq!(group.step(id(2), message), Err(Reject::TermJump));
    }
    let term = group.state().term;
    assert!(term <= RISE_MAX, "at once it rises by one step, to {term}");
    settle(&mut group);
    campaign(&mut group);
    assert_eq!((group.state().role, group.state().term), (crate::status::Role::Candidate, term + 1));
}

/// Else two forged messages would part two honest nodes for ever.
#[test]
fn terms_rise_by_one_large_step_a_tick() {
    let mut group = group(3);
    group.step(id(2), heartbeat(RISE_MAX)).unwrap();
    assert_eq!(group.step(id(2), heartbeat(2 * RISE_MAX)), Err(Reject::TermJump));
    assert_eq!(group.state().term, RISE_MAX);
    group.step(id(2), heartbeat(RISE_MAX + 1)).unwrap();
    group.tick(&mut TestEffects::default());
    group.step(id(2), heartbeat(2 * RISE_MAX)).unwrap();
    assert_eq!(group.state().term, 2 * RISE_MAX);
}

#[test]
fn a_node_that_was_away_for_very_many_elections_catches_up_in_steps() {
    let mut group = group(3);
    let theirs = 5 * RISE_MAX + 7;
    let mut ticks = 0;
    while group.step(id(2), heartbeat(theirs)).is_err() {
        group.tick(&mut TestEffects::default());
        ticks += 1;
    }
    assert_eq!((group.state().term, group.state().leader, ticks), (theirs, Some(id(2)), 5));
}

/// The node hosts other groups, whose members have no say in this one.
#[test]
fn a_forged_term_of_somebody_who_is_no_member_changes_nothing() {
    let mut group = group(3);
    let forged = Message { from: id(9), ..heartbeat(1 << 61) };
    assert_eq!(group.step(id(9), forged), Err(Reject::TermJump));
    assert_eq!(group.state().term, 0);
}

#[test]
fn followers_are_told_of_a_commit_at_once_unless_the_setup_says_later() {
    for told in [true, false] {
        let mut setup = setup(3, Vec::new());
        setup.replica.commit_broadcast = told;
        let mut group = GroupCore::new(setup).unwrap();
        campaign(&mut group);
        settle(&mut group);
        let term = group.state().term;
        let from = |kind| Message { term, ..Message::new(kind, id(2), id(1)) };
        group.step(id(2), from(MessageKind::RequestVoteResponse)).unwrap();
        settle(&mut group);
        group.step(id(2), Message { index: 1, ..from(MessageKind::AppendResponse) }).unwrap();
        let fx = settle(&mut group);
        assert_eq!(group.state().commit, 1, "what is committed does not depend on who is told");
        let commits = fx.messages.iter().filter(|m| m.kind == MessageKind::Append && m.commit == 1);
        assert_eq!(commits.filter(|m| m.to == id(2)).count(), usize::from(told), "{:?}", fx.messages);
    }
}

/// A leader whose heartbeats are due every five ticks and have just left.
fn leader_between_heartbeats() -> TestGroup {
    let mut setup = setup(3, Vec::new());
    setup.replica.heartbeat_ticks = 5;
    let mut group = GroupCore::new(setup).unwrap();
    campaign(&mut group);
    settle(&mut group);
    let vote = Message { term: 1, ..Message::new(MessageKind::RequestVoteResponse, id(2), id(1)) };
    group.step(id(2), vote).unwrap();
    settle(&mut group);
    for peer in [2, 3] {
        let has = Message::new(MessageKind::AppendResponse, id(peer), id(1));
        group.step(id(peer), Message { term: 1, index: 1, ..has }).unwrap();
    }
    settle(&mut group);
    assert_eq!(ticks_that_beat(&mut group, 5), [5]);
    group
}

/// After which of so many ticks heartbeats leave. They are answered.
fn ticks_that_beat(group: &mut TestGroup, ticks: u64) -> Vec<u64> {
    let beats = |&tick: &u64| {
        group.tick(&mut TestEffects::default());
        let kinds = kinds(&settle(group));
        assert!(kinds.is_empty() || kinds == [MessageKind::Heartbeat; 2], "{kinds:?} after {tick}");
        let answer = Message::new(MessageKind::HeartbeatResponse, id(2), id(1));
        group.step(id(2), Message { term: 1, ..answer }).unwrap();
        !kinds.is_empty()
    };
    (1..=ticks).filter(beats).collect()
}

/// With the ticks that were skipped counted in, no two heartbeats are further apart than five ticks.
#[test]
fn heartbeats_do_not_come_later_for_ticks_that_were_skipped() {
    for (skipped, beats) in
        [(0, vec![5]), (1, vec![4, 5]), (3, vec![2, 5]), (4, vec![1, 5]), (999, vec![1, 5])]
    {
        let mut group = leader_between_heartbeats();
        group.skip_ticks(skipped);
        assert_eq!(ticks_that_beat(&mut group, 7), beats, "{skipped} skipped");
        assert_eq!(ticks_that_beat(&mut group, 8), [3, 8], "it is made up for once");
    }
    // However often: a busy node is not to be kept busy with heartbeats.
    let mut group = leader_between_heartbeats();
    let mut beats = Vec::new();
    for tick in 1..=20 {
        group.skip_ticks(1);
        beats.extend(ticks_that_beat(&mut group, 1).first().map(|_| tick));
    }
    assert_eq!(beats, [3, 5, 8, 10, 13, 15, 18, 20], "every second tick was skipped: 40 have passed");
    let mut group = leader_between_heartbeats();
    for skipped in [1, 0, 1] {
        group.skip_ticks(skipped);
        group.tick(&mut TestEffects::default());
    }
    assert!(
        kinds(&settle(&mut group)).len() == 2,
        "two skipped here and there and three that were not are five"
    );
}

/// Skipped before the tick with which they are due anyway: they leave once.
#[test]
fn heartbeats_that_are_due_anyway_leave_once() {
    let mut group = leader_between_heartbeats();
    assert_eq!(ticks_that_beat(&mut group, 4), []);
    group.skip_ticks(3);
    assert_eq!(ticks_that_beat(&mut group, 9), [1, 6], "and what was skipped before does not count on");
}

/// Whoever replays them ends an election timeout, or a leader's time to hear of a quorum, in one go.
#[test]
fn skipped_ticks_end_no_timeout() {
    let mut follower = group(3);
    follower.skip_ticks(1_000);
    follower.tick(&mut TestEffects::default());
    assert_eq!((kinds(&settle(&mut follower)), follower.state().term), (vec![], 0));
    (0..9).for_each(|_| follower.tick(&mut TestEffects::default()));
    assert_eq!(kinds(&settle(&mut follower)), [MessageKind::RequestPreVote; 2], "the control");

    let mut leader = leader_between_heartbeats();
    leader.skip_ticks(1_000);
    ticks_that_beat(&mut leader, 1);
    assert_eq!(leader.state().role, crate::status::Role::Leader);
    (0..15).for_each(|_| leader.tick(&mut TestEffects::default()));
    assert_ne!(leader.state().role, crate::status::Role::Leader, "the control: it heard of nobody");
}
