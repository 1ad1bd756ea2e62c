//! A node that founded the group with another list neither votes nor leads here (trials T9 and T27).

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
fn every_message_that_begins_a_contact_shows_the_hash() {
    let mut group = founder(0);
    group.ticks(10);
    let mut sent = group.settle().messages;
    group.deliver(message(MessageKind::RequestPreVoteResponse, 2, 1));
    sent.extend(group.settle().messages);
    group.deliver(message(MessageKind::RequestVoteResponse, 2, 1));
    sent.extend(group.settle().messages);
    group.ticks(HEARTBEAT);
    sent.extend(group.settle().messages);
    for kind in
        [MessageKind::RequestPreVote, MessageKind::RequestVote, MessageKind::Append, MessageKind::Heartbeat]
    {
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
    group.founded_differently(id(3));
    let vote = showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, 1));
    assert_eq!(group.step(vote.clone()), Err(Reject::Withheld));
    group.ticks(10);
    assert_eq!(kinds(&group.settle()), [MessageKind::RequestPreVote; 2], "it goes on to ask");
    let won = message(MessageKind::RequestPreVoteResponse, 2, 1);
    assert_eq!(group.step(won), Err(Reject::Withheld));
    assert_eq!(group.state().term, 0);

    // The founder is stopped, or shows the right list.
    let mut silent = founder(0);
    silent.founded_differently(id(3));
    silent.ticks(MEMORY + 1);
    silent.deliver(vote.clone());
    group.deliver(showing(&[1, 2, 3], message(MessageKind::Heartbeat, 3, 1)));
    assert_eq!(group.other_founders().count(), 0);
    group.deliver(Message { term: 2, ..vote });
}

#[test]
fn an_established_group_goes_on_and_a_node_that_is_no_member_does_not_count() {
    let mut group = founder(1);
    group.founded_differently(id(3));
    let term = group.state().term + 1;
    group.deliver(showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, term)));
    let mut never_committed = founder(0);
    never_committed.founded_differently(id(9));
    never_committed.deliver(showing(&[1, 2, 3], message(MessageKind::RequestVote, 2, 1)));
}
