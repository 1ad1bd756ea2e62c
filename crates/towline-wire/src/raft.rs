//! Converts Raft's messages between the engine's types and the schema's.

use towline_engine::ids::{FoundingHash, NodeId};
use towline_engine::message::{ConfState, Entry, EntryKind, Message, MessageKind, SnapshotRecord};

use crate::error::WireError;
use crate::pb;

/// Implements both conversions from one list of pairs.
macro_rules! kinds {
    ($($ours:ident = $theirs:ident),+ $(,)?) => {
        impl From<MessageKind> for pb::MessageType {
            fn from(kind: MessageKind) -> Self {
                match kind {
                    $(MessageKind::$ours => Self::$theirs,)+
                }
            }
        }

        impl TryFrom<pb::MessageType> for MessageKind {
            type Error = WireError;

            fn try_from(kind: pb::MessageType) -> Result<Self, WireError> {
                match kind {
                    $(pb::MessageType::$theirs => Ok(Self::$ours),)+
                    local => Err(WireError::ForbiddenKind { kind: local.as_str_name() }),
                }
            }
        }
    };
}

kinds! {
    Append = Append,
    AppendResponse = AppendResponse,
    RequestVote = RequestVote,
    RequestVoteResponse = RequestVoteResponse,
    RequestPreVote = RequestPreVote,
    RequestPreVoteResponse = RequestPreVoteResponse,
    Heartbeat = Heartbeat,
    HeartbeatResponse = HeartbeatResponse,
    Snapshot = Snapshot,
    TimeoutNow = TimeoutNow,
    ReadIndex = ReadIndex,
    ReadIndexResponse = ReadIndexResp,
}

impl From<Entry> for pb::Entry {
    fn from(entry: Entry) -> Self {
        let kind = match entry.kind {
            EntryKind::Normal => pb::EntryType::Normal,
            EntryKind::ConfChange => pb::EntryType::ConfChange,
            EntryKind::ConfChangeV2 => pb::EntryType::ConfChangeV2,
        };
        Self {
            entry_type: kind.into(),
            term: entry.term,
            index: entry.index,
            data: entry.data,
            sync_log: false,
            context: entry.context,
        }
    }
}

impl TryFrom<pb::Entry> for Entry {
    type Error = WireError;

    fn try_from(entry: pb::Entry) -> Result<Self, WireError> {
        let kind = match pb::EntryType::try_from(entry.entry_type) {
            Ok(pb::EntryType::Normal) => EntryKind::Normal,
            Ok(pb::EntryType::ConfChange) => EntryKind::ConfChange,
            Ok(pb::EntryType::ConfChangeV2) => EntryKind::ConfChangeV2,
            Err(_) => return Err(WireError::Unknown { what: "entry kind", number: entry.entry_type }),
        };
        if entry.term == 0 {
            return Err(WireError::Zero { field: "entries.term" });
        }
        if entry.index == 0 {
            return Err(WireError::Zero { field: "entries.index" });
        }
        // The index after the entry's index must exist.
        if entry.index == u64::MAX {
            return Err(WireError::IndexOverflow { index: entry.index, entries: 1 });
        }
        Ok(Self { kind, term: entry.term, index: entry.index, data: entry.data, context: entry.context })
    }
}

impl From<Message> for pb::Message {
    fn from(message: Message) -> Self {
        Self {
            msg_type: pb::MessageType::from(message.kind).into(),
            to: message.to.as_u64(),
            from: message.from.as_u64(),
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries: message.entries.into_iter().map(Into::into).collect(),
            commit: message.commit,
            snapshot: message.snapshot.map(|record| (*record).into()),
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context,
            request_snapshot: message.request_snapshot,
            deprecated_priority: 0,
            commit_term: message.commit_term,
            priority: message.priority,
            applied: message.applied,
            acked: message.acked,
            founding: message.founding.as_u64(),
            disk_low: message.disk_low,
        }
    }
}

impl TryFrom<pb::Message> for Message {
    type Error = WireError;

    fn try_from(message: pb::Message) -> Result<Self, WireError> {
        let number = message.msg_type;
        let kind: MessageKind = pb::MessageType::try_from(number)
            .map_err(|_| WireError::Unknown { what: "message kind", number })?
            .try_into()?;
        // Raft treats a message of term zero as local, so only a read-index message may carry it.
        if message.term == 0 && kind != MessageKind::ReadIndex {
            return Err(WireError::Zero { field: "term" });
        }
        // A read-index message carries the context of its round in an entry without term and index.
        let entries: Vec<Entry> = match kind {
            MessageKind::ReadIndex | MessageKind::ReadIndexResponse => {
                message.entries.into_iter().map(barrier_entry).collect::<Result<_, _>>()?
            }
            _ => message.entries.into_iter().map(Entry::try_from).collect::<Result<_, _>>()?,
        };
        // `index + entries + 1` must be an index.
        if message.index.checked_add(entries.len() as u64).is_none_or(|last| last == u64::MAX) {
            return Err(WireError::IndexOverflow { index: message.index, entries: entries.len() });
        }
        Ok(Self {
            kind,
            to: node(message.to, "to")?,
            from: node(message.from, "from")?,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries,
            commit: message.commit,
            commit_term: message.commit_term,
            snapshot: message.snapshot.map(SnapshotRecord::try_from).transpose()?.map(Box::new),
            request_snapshot: message.request_snapshot,
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.context,
            priority: match message.priority {
                0 => i64::try_from(message.deprecated_priority).unwrap_or(i64::MAX),
                priority => priority,
            },
            applied: message.applied,
            acked: message.acked,
            founding: FoundingHash::new(message.founding),
            disk_low: message.disk_low,
        })
    }
}

fn barrier_entry(entry: pb::Entry) -> Result<Entry, WireError> {
    if entry.entry_type != i32::from(pb::EntryType::Normal) {
        return Err(WireError::Unknown { what: "entry kind", number: entry.entry_type });
    }
    let kind = EntryKind::Normal;
    Ok(Entry { kind, term: entry.term, index: entry.index, data: entry.data, context: entry.context })
}

impl From<SnapshotRecord> for pb::Snapshot {
    fn from(record: SnapshotRecord) -> Self {
        let conf_state = Some(record.conf_state.into());
        let metadata = pb::SnapshotMetadata { conf_state, index: record.index, term: record.term };
        Self { data: bytes::Bytes::new(), metadata: Some(metadata) }
    }
}

impl TryFrom<pb::Snapshot> for SnapshotRecord {
    type Error = WireError;

    fn try_from(snapshot: pb::Snapshot) -> Result<Self, WireError> {
        if !snapshot.data.is_empty() {
            return Err(WireError::InlineSnapshot { bytes: snapshot.data.len() });
        }
        let metadata = snapshot.metadata.ok_or(WireError::Missing { field: "snapshot.metadata" })?;
        Ok(Self {
            index: metadata.index,
            term: metadata.term,
            conf_state: metadata.conf_state.unwrap_or_default().try_into()?,
        })
    }
}

impl From<ConfState> for pb::ConfState {
    fn from(state: ConfState) -> Self {
        let raw = |ids: Vec<NodeId>| ids.into_iter().map(NodeId::as_u64).collect();
        Self {
            voters: raw(state.voters),
            learners: raw(state.learners),
            voters_outgoing: raw(state.voters_outgoing),
            learners_next: raw(state.learners_next),
            auto_leave: state.auto_leave,
        }
    }
}

impl TryFrom<pb::ConfState> for ConfState {
    type Error = WireError;

    fn try_from(state: pb::ConfState) -> Result<Self, WireError> {
        let nodes =
            |ids: Vec<u64>, field| ids.into_iter().map(|id| node(id, field)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            voters: nodes(state.voters, "conf_state.voters")?,
            learners: nodes(state.learners, "conf_state.learners")?,
            voters_outgoing: nodes(state.voters_outgoing, "conf_state.voters_outgoing")?,
            learners_next: nodes(state.learners_next, "conf_state.learners_next")?,
            auto_leave: state.auto_leave,
        })
    }
}

pub(crate) fn node(raw: u64, field: &'static str) -> Result<NodeId, WireError> {
    NodeId::new(raw).ok_or(WireError::Zero { field })
}
