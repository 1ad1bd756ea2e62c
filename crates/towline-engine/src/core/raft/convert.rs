//! Converts between the engine's plain types and those of the raft crate. Moves payloads, never copies them.

use raft::eraftpb;

use crate::ids::{FoundingHash, NodeId};
use crate::message::{ConfState, Entry, EntryKind, HardState, Message, MessageKind, SnapshotRecord};

/// Converts a message. `None` for kinds that never cross the network.
pub(super) fn message_from_raft(mut m: eraftpb::Message) -> Option<Message> {
    Some(Message {
        kind: kind_from_raft(m.get_msg_type())?,
        to: NodeId::new(m.to)?,
        from: NodeId::new(m.from)?,
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        entries: entries_from_raft(m.take_entries().into_vec()),
        commit: m.commit,
        commit_term: m.commit_term,
        snapshot: m.snapshot.take().map(|s| Box::new(record_from_raft(s.get_metadata()))),
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        context: m.take_context(),
        priority: m.priority,
        applied: 0,
        acked: 0,
        founding: FoundingHash::default(),
        disk_low: false,
    })
}

pub(super) fn message_to_raft(m: Message) -> eraftpb::Message {
    let snapshot = m.snapshot.map(|record| snapshot_to_raft(record.index, record.term, &record.conf_state));
    eraftpb::Message {
        msg_type: kind_to_raft(m.kind),
        to: m.to.as_u64(),
        from: m.from.as_u64(),
        term: m.term,
        log_term: m.log_term,
        index: m.index,
        entries: m.entries.into_iter().map(entry_to_raft).collect::<Vec<_>>().into(),
        commit: m.commit,
        commit_term: m.commit_term,
        snapshot: snapshot.into(),
        request_snapshot: m.request_snapshot,
        reject: m.reject,
        reject_hint: m.reject_hint,
        context: m.context,
        priority: m.priority,
        ..Default::default()
    }
}

/// Makes raft's snapshot without its body, which a transfer carries.
pub(super) fn snapshot_to_raft(index: u64, term: u64, conf_state: &ConfState) -> eraftpb::Snapshot {
    let mut snapshot = eraftpb::Snapshot::default();
    let metadata = snapshot.mut_metadata();
    metadata.index = index;
    metadata.term = term;
    *metadata.mut_conf_state() = conf_state_to_raft(conf_state);
    snapshot
}

pub(super) fn entries_from_raft(entries: Vec<eraftpb::Entry>) -> Vec<Entry> {
    // Collecting in place would make the allocator shrink the vector.
    let mut out = Vec::with_capacity(entries.len());
    out.extend(entries.into_iter().map(entry_from_raft));
    out
}

fn entry_from_raft(e: eraftpb::Entry) -> Entry {
    let kind = match e.get_entry_type() {
        eraftpb::EntryType::EntryNormal => EntryKind::Normal,
        eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
        eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
    };
    Entry { kind, term: e.term, index: e.index, data: e.data, context: e.context }
}

pub(super) fn entry_to_raft(e: Entry) -> eraftpb::Entry {
    let entry_type = match e.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    };
    let (term, index, data, context) = (e.term, e.index, e.data, e.context);
    eraftpb::Entry { entry_type, term, index, data, context, ..Default::default() }
}

pub(super) fn hard_state_from_raft(hs: &eraftpb::HardState) -> HardState {
    HardState { term: hs.term, vote: NodeId::new(hs.vote), commit: hs.commit }
}

pub(super) fn hard_state_to_raft(hs: HardState) -> eraftpb::HardState {
    let vote = hs.vote.map_or(raft::INVALID_ID, NodeId::as_u64);
    eraftpb::HardState { term: hs.term, vote, commit: hs.commit, ..Default::default() }
}

fn record_from_raft(meta: &eraftpb::SnapshotMetadata) -> SnapshotRecord {
    SnapshotRecord {
        index: meta.index,
        term: meta.term,
        conf_state: conf_state_from_raft(meta.get_conf_state()),
    }
}

fn conf_state_from_raft(cs: &eraftpb::ConfState) -> ConfState {
    let ids = |raw: &[u64]| raw.iter().copied().filter_map(NodeId::new).collect();
    ConfState {
        voters: ids(cs.get_voters()),
        learners: ids(cs.get_learners()),
        voters_outgoing: ids(cs.get_voters_outgoing()),
        learners_next: ids(cs.get_learners_next()),
        auto_leave: cs.auto_leave,
    }
}

pub(super) fn conf_state_to_raft(cs: &ConfState) -> eraftpb::ConfState {
    let ids = |ids: &[NodeId]| ids.iter().map(|id| id.as_u64()).collect::<Vec<_>>();
    let mut out = eraftpb::ConfState::default();
    out.set_voters(ids(&cs.voters));
    out.set_learners(ids(&cs.learners));
    out.set_voters_outgoing(ids(&cs.voters_outgoing));
    out.set_learners_next(ids(&cs.learners_next));
    out.auto_leave = cs.auto_leave;
    out
}

macro_rules! kinds {
    ($($ours:ident = $theirs:ident,)*) => {
        fn kind_from_raft(kind: eraftpb::MessageType) -> Option<MessageKind> {
            match kind {
                $(eraftpb::MessageType::$theirs => Some(MessageKind::$ours),)*
                _ => None,
            }
        }

        fn kind_to_raft(kind: MessageKind) -> eraftpb::MessageType {
            match kind {
                $(MessageKind::$ours => eraftpb::MessageType::$theirs,)*
            }
        }
    };
}

kinds! {
    Append = MsgAppend,
    AppendResponse = MsgAppendResponse,
    RequestVote = MsgRequestVote,
    RequestVoteResponse = MsgRequestVoteResponse,
    RequestPreVote = MsgRequestPreVote,
    RequestPreVoteResponse = MsgRequestPreVoteResponse,
    Heartbeat = MsgHeartbeat,
    HeartbeatResponse = MsgHeartbeatResponse,
    Snapshot = MsgSnapshot,
    TimeoutNow = MsgTimeoutNow,
    ReadIndex = MsgReadIndex,
    ReadIndexResponse = MsgReadIndexResp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_and_field_survives_the_round_trip() {
        for kind in MessageKind::ALL {
            let entry = Entry {
                kind: EntryKind::ConfChangeV2,
                term: 3,
                index: 9,
                data: b"data".as_slice().into(),
                context: b"context".as_slice().into(),
            };
            let message = Message {
                term: 1,
                log_term: 2,
                index: 3,
                entries: vec![entry],
                commit: 4,
                commit_term: 5,
                request_snapshot: 6,
                reject: true,
                reject_hint: 7,
                context: b"ctx".as_slice().into(),
                priority: -8,
                snapshot: Some(Box::new(SnapshotRecord {
                    index: 10,
                    term: 11,
                    conf_state: ConfState { voters: vec![NodeId::new(1).unwrap()], ..ConfState::default() },
                })),
                ..Message::new(kind, NodeId::new(1).unwrap(), NodeId::new(2).unwrap())
            };
            assert_eq!(message_from_raft(message_to_raft(message.clone())), Some(message));
        }
    }

    #[test]
    fn a_payload_is_moved_and_not_copied() {
        let entry = Entry { data: vec![7; 100].into(), ..Entry::default() };
        let at = entry.data.as_ptr();
        assert_eq!(entry_from_raft(entry_to_raft(entry)).data.as_ptr(), at);
    }
}
