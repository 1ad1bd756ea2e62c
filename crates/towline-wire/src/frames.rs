//! Converts batches to frames within all limits, and frames back to batches.

use std::collections::HashSet;

use bytes::Bytes;
use prost::Message as _;
use prost::encoding::encoded_len_varint;
use towline_engine::ids::GroupId;
use towline_engine::message::{Batch, Envelope, LostEntries};
use towline_engine::transport::{Nack, NackCause};

use crate::error::WireError;
use crate::limits::{
    ENTRIES_MAX, ENVELOPES_MAX, FRAME_BYTES_MAX, FRAME_BYTES_TARGET, MESSAGE_BYTES_MAX, NACKS_MAX,
};
use crate::pb::{self, frame::Kind};
use crate::scan;

/// Decodes a frame whose length the transport knows. Payloads are slices of `bytes`, which they keep alive.
///
/// # Errors
/// [`WireError::FrameTooLarge`], [`WireError::TooMany`] before anything is allocated, or [`WireError::Malformed`].
pub fn decode_frame(bytes: Bytes) -> Result<pb::Frame, WireError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(WireError::FrameTooLarge { bytes: bytes.len(), bytes_max: FRAME_BYTES_MAX });
    }
    scan::check(&bytes)?;
    pb::Frame::decode(bytes).map_err(|e| WireError::Malformed { detail: e.to_string() })
}

/// Length of a frame on the wire.
pub fn encoded_len(frame: &pb::Frame) -> usize {
    frame.encoded_len()
}

/// Splits a batch into frames within every limit. A frame ends at [`FRAME_BYTES_TARGET`] unless one message alone is
/// larger; most batches become one frame. No payload is copied. All messages are checked before the first frame is made.
///
/// # Errors
/// [`WireError::MessageTooLarge`] or [`WireError::TooMany`] if a message does not fit in a frame.
pub fn frames(batch: Batch) -> Result<std::vec::IntoIter<pb::Frame>, WireError> {
    let mut frames = Vec::with_capacity(1);
    let mut current = Vec::with_capacity(batch.envelopes.len().min(ENVELOPES_MAX));
    let (mut bytes, mut entries) = (0, 0);
    for envelope in batch.envelopes {
        let group = envelope.group.as_u64();
        let envelope = pb::Envelope { group, message: Some(envelope.message.into()) };
        let count = envelope.message.as_ref().map_or(0, |m| m.entries.len());
        let length = envelope.encoded_len();
        if length > MESSAGE_BYTES_MAX {
            return Err(WireError::MessageTooLarge { bytes: length, bytes_max: MESSAGE_BYTES_MAX });
        }
        if count > ENTRIES_MAX {
            return Err(WireError::TooMany { what: "entries", count_max: ENTRIES_MAX });
        }
        let length = 1 + encoded_len_varint(length as u64) + length;
        let full = bytes + length > FRAME_BYTES_TARGET
            || current.len() == ENVELOPES_MAX
            || entries + count > ENTRIES_MAX;
        if full && !current.is_empty() {
            frames.push(batch_frame(std::mem::take(&mut current)));
            (bytes, entries) = (0, 0);
        }
        current.push(envelope);
        bytes += length;
        entries += count;
    }
    if !current.is_empty() {
        frames.push(batch_frame(current));
    }
    Ok(frames.into_iter())
}

fn batch_frame(envelopes: Vec<pb::Envelope>) -> pb::Frame {
    pb::Frame { kind: Some(Kind::Batch(pb::Batch { envelopes })) }
}

/// The messages of a batch frame.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Received {
    /// The well-formed messages, in order.
    pub batch: Batch,
    /// The malformed messages. Each affects only its group: the lane goes on, and the sender gets a nack.
    pub rejected: Vec<Rejected>,
}

/// A message that no peer may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// Its group.
    pub group: GroupId,
    /// Why.
    pub error: WireError,
}

/// Converts a batch frame.
///
/// # Errors
/// [`WireError::Unexpected`] if the frame is no batch, [`WireError::TooMany`] as in [`decode_frame`].
pub fn batch_of(frame: pb::Frame) -> Result<Received, WireError> {
    match frame.kind {
        Some(Kind::Batch(batch)) => batch.try_into(),
        other => Err(WireError::Unexpected { expected: "a batch", got: kind_name(other.as_ref()) }),
    }
}

impl TryFrom<pb::Batch> for Received {
    type Error = WireError;

    fn try_from(batch: pb::Batch) -> Result<Self, WireError> {
        if batch.envelopes.len() > ENVELOPES_MAX {
            return Err(WireError::TooMany { what: "envelopes", count_max: ENVELOPES_MAX });
        }
        let mut received = Self::default();
        received.batch.envelopes.reserve_exact(batch.envelopes.len());
        for envelope in batch.envelopes {
            let group = GroupId::new(envelope.group);
            let message = envelope.message.ok_or(WireError::Missing { field: "message" });
            match message.and_then(TryInto::try_into) {
                Ok(message) => received.batch.envelopes.push(Envelope { group, message }),
                Err(error) => received.rejected.push(Rejected { group, error }),
            }
        }
        Ok(received)
    }
}

/// Merges the messages that the conversion rejected and those that the session did not accept into one nack for each group.
/// The session's cause wins, because the session knows the group.
pub fn merge_nacks(mut taken: Vec<Nack>, rejected: &[Rejected]) -> Vec<Nack> {
    if !rejected.is_empty() {
        let mut seen: HashSet<GroupId> = taken.iter().map(|nack| nack.group).collect();
        let new = rejected.iter().filter(|r| seen.insert(r.group));
        taken.extend(new.map(|r| Nack { group: r.group, cause: NackCause::Rejected }));
    }
    taken
}

/// The frame that carries the first [`NACKS_MAX`] of `nacks`.
pub fn nacks_frame(nacks: impl IntoIterator<Item = Nack>) -> pb::Frame {
    let nacks = nacks.into_iter().take(NACKS_MAX).map(Into::into).collect();
    pb::Frame { kind: Some(Kind::Nacks(pb::Nacks { nacks })) }
}

/// The nacks of a frame.
///
/// # Errors
/// [`WireError::Unexpected`] if the frame is of another kind, [`WireError::TooMany`] as in [`decode_frame`].
pub fn nacks_of(frame: pb::Frame) -> Result<Vec<Nack>, WireError> {
    match frame.kind {
        Some(Kind::Nacks(nacks)) if nacks.nacks.len() > NACKS_MAX => {
            Err(WireError::TooMany { what: "nacks", count_max: NACKS_MAX })
        }
        Some(Kind::Nacks(nacks)) => Ok(nacks.nacks.into_iter().map(Into::into).collect()),
        other => Err(WireError::Unexpected { expected: "nacks", got: kind_name(other.as_ref()) }),
    }
}

impl From<Nack> for pb::Nack {
    fn from(nack: Nack) -> Self {
        let cause = match nack.cause {
            NackCause::InboxFull => pb::NackCause::InboxFull,
            NackCause::UnknownGroup => pb::NackCause::UnknownGroup,
            NackCause::GroupDown => pb::NackCause::GroupDown,
            NackCause::EntriesLost(LostEntries { last_index, acknowledged }) => {
                let cause = pb::NackCause::EntriesLost.into();
                return Self { group: nack.group.as_u64(), cause, last_index, acknowledged };
            }
            NackCause::FoundedDifferently => pb::NackCause::FoundedDifferently,
            NackCause::DiskFull => pb::NackCause::DiskFull,
            // Also for a cause that this crate does not know yet: the peer did not accept the messages.
            _ => pb::NackCause::Rejected,
        };
        Self { group: nack.group.as_u64(), cause: cause.into(), last_index: 0, acknowledged: 0 }
    }
}

impl From<pb::Nack> for Nack {
    fn from(nack: pb::Nack) -> Self {
        let cause = match pb::NackCause::try_from(nack.cause) {
            Ok(pb::NackCause::InboxFull) => NackCause::InboxFull,
            Ok(pb::NackCause::UnknownGroup) => NackCause::UnknownGroup,
            Ok(pb::NackCause::GroupDown) => NackCause::GroupDown,
            Ok(pb::NackCause::EntriesLost) if nack.last_index < nack.acknowledged => {
                NackCause::EntriesLost(LostEntries {
                    last_index: nack.last_index,
                    acknowledged: nack.acknowledged,
                })
            }
            Ok(pb::NackCause::EntriesLost | pb::NackCause::Rejected | pb::NackCause::Unspecified)
            | Err(_) => NackCause::Rejected,
            Ok(pb::NackCause::FoundedDifferently) => NackCause::FoundedDifferently,
            Ok(pb::NackCause::DiskFull) => NackCause::DiskFull,
        };
        Self { group: GroupId::new(nack.group), cause }
    }
}

pub(crate) fn kind_name(kind: Option<&Kind>) -> &'static str {
    match kind {
        None => "an empty or unknown frame",
        Some(Kind::Hello(_)) => "a hello",
        Some(Kind::Welcome(_)) => "a welcome",
        Some(Kind::Refused(_)) => "a refusal",
        Some(Kind::Batch(_)) => "a batch",
        Some(Kind::Nacks(_)) => "nacks",
        Some(Kind::Offer(_)) => "an offer",
        Some(Kind::Answer(_)) => "an answer to an offer",
        Some(Kind::Chunk(_)) => "a chunk",
        Some(Kind::Trailer(_)) => "a trailer",
        Some(Kind::Progress(_)) => "progress",
        Some(Kind::Outcome(_)) => "the outcome of a transfer",
        Some(Kind::Taken(_)) => "what was taken",
    }
}
