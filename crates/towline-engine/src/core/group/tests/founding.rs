//! A node that founded the group with another list neither votes nor leads here, and keeps a new group from electing a leader
//! (trials T9 and T27).

use super::*;
use crate::ids::FoundingHash;

const MEMORY: u64 = 80;

fn of(founders: &[u64]) -> FoundingHash {
    FoundingHash::of(GroupId::DEFAULT, founders.iter().map(|raw| id(*raw)))
}

/// Node 1 of the founders 1 to 3, with a commit index of `commit`.
fn founder(commit: u64) -> TestGroup {
    let log = match commit {
        0 => GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, 1 << 20),
        _ => GroupLog::new(LogId::NONE, vec![(1, 1)], commit, Vec::new(), commit, 1 << 20),
    };
    let mut setup = setup(3, log, 10);
    setup.conf.founding = of(&[1, 2, 3]);
    setup.founding_memory_ticks = MEMORY;
    TestGroup::new(setup)
}

fn showing(founders: &[u64], message: Message) -> Message {
    Message { founding: of(founders), ..message }
}

#[test]
fn the_hash_is_of_the_group_and_the_set_of_founders() {
    assert_eq!(of(&[3, 1, 2, 1]), of(&[1, 2, 3]));
    assert!(of(&[1, 3]).contradicts(of(&[1, 2, 3])));
    assert!(
        FoundingHash::of(GroupId::new(2), [id(1)]).contradicts(FoundingHash::of(GroupId::new(3), [id(1)]))
    );
    assert!(!of(&[1]).contradicts(FoundingHash::default()), "not stated");
}

#[test]
fn every_message_that_begins_a_contact_or_answers_a_campaign_shows_the_hash() {
    let mut group = founder(0);
    group.ticks(10);
    let mut sent = group.settle().messages;
    for peer in [2, 3] {
        group.deliver(showing(&[1, 2, 3], message(MessageKind::RequestPreVoteResponse, peer, 1)));
    }
    sent.extend(group.settle().messages);
    group.deliver(message(MessageKind::RequestVoteResponse, 2, 1));
    sent.extend(group.settle().messages);
    group.ticks(HEARTBEAT);
    sent.extend(group.settle().messages);
    let mut voter = founder(0);
    for kind in [MessageKind::RequestPreVote, MessageKind::RequestVote] {
        voter.deliver(showing(&[1, 2, 3], message(kind, 2, 1)));
        sent.extend(voter.settle().messages);
    }
    for kind in [
        MessageKind::RequestPreVote,
        MessageKind::RequestPreVoteResponse,
        MessageKind::RequestVote,
        MessageKind::RequestVoteResponse,
        MessageKind::Append,
        MessageKind::Heartbeat,
    ] {
        let of_kind: Vec<_> = sent.iter().filter(|message| message.kind == kind).collect();
        assert!(!of_kind.is_empty(), "no {kind:?}");
        assert!(of_kind.iter().all(|message| message.founding == of(&[1, 2, 3])), "{of_kind:?}");
    }
}

#[test]
fn a_stranger_gets_no_vote_no_term_and_no_leadership() {
    let mut group = founder(1);
    let term = group.state().term;
    for kind in
        [MessageKind::RequestVote, MessageKind::RequestPreVote, MessageKind::Heartbeat, MessageKind::Append]
    {
        let refused = group.step(showing(&[1, 3], message(kind, 3, term + 1)));
        assert_eq!(refused, Err(Reject::FoundedDifferently), "{kind:?}");
    }
    assert_eq!((group.state().term, group.state().leader), (term, None));
    assert_eq!(group.other_founders().map(|(peer, _)| peer).collect::<Vec<_>>(), [id(3)]);
    group.deliver(showing(&[1, 2, 3], message(MessageKind::Heartbeat, 2, term + 1)));
    assert_eq!(group.state().leader, Some(id(2)), "the control");
}

/// Two lists must not give two leaders that both acknowledge.
#[test]
fn a_group_that_never_committed_neither_votes_nor_leads_while_a_founder_shows_another_list() {
    let mut group = founder(0);
    group.note_objection(id(3), Objection::OtherList);
    let vote = showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, 1));
    for kind in [MessageKind::RequestPreVote, MessageKind::RequestVote] {
        let asked = |commit| Message { kind, commit, ..vote.clone() };
        assert_eq!(group.step(asked(0)), Err(Reject::Withheld), "{kind:?}");
        let mut asked_by_established = founder(0);
        asked_by_established.note_objection(id(3), Objection::OtherList);
        asked_by_established.deliver(asked(1));
    }
    group.ticks(10);
    assert_eq!(kinds(&group.settle()), [MessageKind::RequestPreVote; 2], "it goes on to ask");
    let won = message(MessageKind::RequestPreVoteResponse, 2, 1);
    assert_eq!(group.step(won), Err(Reject::Withheld));
    assert_eq!(group.state().term, 0);

    // The founder is stopped, or shows the right list.
    let mut silent = founder(0);
    silent.note_objection(id(3), Objection::OtherList);
    silent.ticks(MEMORY + 1);
    silent.deliver(vote.clone());
    group.deliver(showing(&[1, 2, 3], message(MessageKind::Heartbeat, 3, 1)));
    assert_eq!(group.other_founders().count(), 0);
    group.deliver(Message { term: 2, ..vote });
}

#[test]
fn an_established_group_goes_on_and_a_node_that_is_no_member_does_not_count() {
    let mut group = founder(1);
    group.note_objection(id(3), Objection::OtherList);
    let term = group.state().term + 1;
    group.deliver(showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, term)));
    let mut never_committed = founder(0);
    never_committed.note_objection(id(9), Objection::OtherList);
    never_committed.deliver(showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, 1)));
}

/// Node 1 of a group that never committed, as a candidate of term 1: node 2 gave its pre-vote and showed the same list.
fn candidate() -> TestGroup {
    let mut group = founder(0);
    group.ticks(10);
    group.settle();
    group.deliver(showing(&[1, 2, 3], message(MessageKind::RequestPreVoteResponse, 2, 1)));
    assert_eq!(kinds(&group.settle()), [MessageKind::RequestVote; 2]);
    group
}

/// A founder of another list that shows it later than the others vote: both lists got a leader and committed.
#[test]
fn the_first_leader_waits_until_each_founder_has_shown_its_list() {
    let mut group = candidate();
    let vote = || showing(&[1, 2, 3], message(MessageKind::RequestVoteResponse, 2, 1));
    assert_eq!(group.step(vote()), Err(Reject::Withheld));
    group.note_objection(id(3), Objection::OtherList);
    assert_eq!(group.step(vote()), Err(Reject::Withheld));
    assert_eq!(group.state().role, Role::Candidate);

    let mut agreed = candidate();
    let late = message(MessageKind::RequestPreVoteResponse, 3, 1);
    agreed.deliver(showing(&[1, 2, 3], late));
    agreed.deliver(vote());
    assert_eq!(agreed.state().role, Role::Leader);
}

#[test]
fn a_founder_that_stays_silent_delays_the_first_leader_but_does_not_prevent_it() {
    let mut group = founder(0);
    group.ticks(MEMORY);
    group.settle();
    let mut term = group.state().term;
    for (tick, counts) in [(MEMORY, false), (MEMORY + 1, true)] {
        if tick > MEMORY {
            group.tick();
        }
        let pre_vote = message(MessageKind::RequestPreVoteResponse, 2, term + 1);
        group.deliver(showing(&[1, 2, 3], pre_vote));
        group.settle();
        term = group.state().term;
        let vote = message(MessageKind::RequestVoteResponse, 2, term);
        assert_eq!(group.step(showing(&[1, 2, 3], vote)).is_ok(), counts, "at tick {tick}");
    }
    assert_eq!(group.state().role, Role::Leader);
}

#[test]
fn a_leader_that_has_not_committed_steps_down_when_a_founder_objects() {
    for objection in [Objection::OtherList, Objection::Refusal] {
        let mut group = candidate();
        group.deliver(showing(&[1, 2, 3], message(MessageKind::RequestPreVoteResponse, 3, 1)));
        group.deliver(message(MessageKind::RequestVoteResponse, 2, 1));
        group.settle();
        assert_eq!(group.state().role, Role::Leader);
        group.note_objection(id(3), objection);
        assert_eq!(group.state().role, Role::Follower, "{objection:?}");
        group.deliver(Message { index: 1, ..message(MessageKind::AppendResponse, 2, 1) });
        group.settle();
        assert_eq!(group.state().commit, 0);
    }
    let mut established = founder(1);
    established.lead();
    established.note_objection(id(3), Objection::OtherList);
    assert_eq!(established.state().role, Role::Leader);
}

/// Otherwise a leader that has not heard of the other list commits with this node's help.
#[test]
fn a_founder_that_knows_of_an_objection_takes_no_entries_of_a_leader_that_has_not_committed() {
    let first = |commit| Message { commit, ..showing(&[1, 2, 3], append(1, 0, vec![entry(1, 1)])) };
    let mut group = founder(0);
    group.note_objection(id(3), Objection::Refusal);
    assert_eq!(group.step(first(0)), Err(Reject::Withheld));
    assert_eq!(group.last_index(), 0);
    group.deliver(first(1));
    assert_eq!(group.last_index(), 1, "the group is established");
}
