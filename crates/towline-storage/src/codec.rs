//! Converts entries to the protobuf message of `raft`, in which they are stored. Only this module uses types of `raft`.
//! The field numbers are those of etcd and never change.

use raft::eraftpb;
use raft_engine::MessageExt;
use towline_engine::message::{Entry, EntryKind};

/// Tells raft-engine the index of an entry.
#[derive(Debug)]
pub(crate) struct Stored;

impl MessageExt for Stored {
    type Entry = eraftpb::Entry;

    fn index(entry: &eraftpb::Entry) -> u64 {
        entry.index
    }
}

/// Converts without copying payloads.
pub(crate) fn to_stored(entry: &Entry) -> eraftpb::Entry {
    let mut stored = eraftpb::Entry::default();
    stored.set_entry_type(match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::ConfChange => eraftpb::EntryType::EntryConfChange,
        EntryKind::ConfChangeV2 => eraftpb::EntryType::EntryConfChangeV2,
    });
    stored.term = entry.term;
    stored.index = entry.index;
    stored.data = entry.data.clone();
    stored.context = entry.context.clone();
    stored
}

pub(crate) fn from_stored(stored: eraftpb::Entry) -> Entry {
    Entry {
        kind: match stored.get_entry_type() {
            eraftpb::EntryType::EntryNormal => EntryKind::Normal,
            eraftpb::EntryType::EntryConfChange => EntryKind::ConfChange,
            eraftpb::EntryType::EntryConfChangeV2 => EntryKind::ConfChangeV2,
        },
        term: stored.term,
        index: stored.index,
        data: stored.data,
        context: stored.context,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protobuf::Message as _;

    use super::*;

    #[test]
    fn an_entry_keeps_its_released_bytes() {
        let entry = Entry {
            kind: EntryKind::ConfChangeV2,
            term: 5,
            index: 300,
            data: Bytes::from_static(b"data"),
            context: Bytes::from_static(b"ctx"),
        };
        let golden = [8, 2, 16, 5, 24, 172, 2, 34, 4, b'd', b'a', b't', b'a', 50, 3, b'c', b't', b'x'];
        assert_eq!(to_stored(&entry).write_to_bytes().unwrap(), golden);
        assert_eq!(from_stored(eraftpb::Entry::parse_from_bytes(&golden).unwrap()), entry);
    }
}
