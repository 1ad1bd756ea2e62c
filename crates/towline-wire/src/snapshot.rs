//! Converts the frames of a snapshot transfer between the engine's types and the schema's.

use towline_engine::ids::{FoundingHash, GroupId, Incarnation, PeerAddr};
use towline_engine::message::{LogId, Member, MemberTable};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    Chunk, SnapshotOffer, SnapshotReceipt, SnapshotRefusal, TransferPhase, TransferProgress,
};

use crate::error::WireError;
use crate::frames::kind_name;
use crate::handshake::cut;
use crate::pb::{self, frame::Kind};
use crate::raft::node;

/// The frame that offers a snapshot, without any of its body.
pub fn offer_frame(offer: &SnapshotOffer) -> pb::Frame {
    let SnapshotHead { group, at, conf_state, members, founding } = &offer.meta.head;
    let members = members.iter().map(|(id, member)| pb::Member {
        node: id.as_u64(),
        address: member.address.as_str().into(),
        incarnation: member.incarnation.map_or(0, Incarnation::as_u64),
    });
    let head = pb::SnapshotHead {
        group: group.as_u64(),
        index: at.index,
        term: at.term,
        conf_state: Some(conf_state.clone().into()),
        members: members.collect(),
        founding: founding.as_u64(),
    };
    frame(Kind::Offer(pb::Offer {
        message: Some(offer.message.clone().into()),
        head: Some(head),
        length: offer.meta.length,
        content: content_bytes(offer.meta.content),
        attempt: offer.attempt,
    }))
}

/// The offer in a frame. This checks each field; the engine checks whether the fields fit together.
///
/// # Errors
/// [`WireError`]: the frame is of another kind, or malformed.
pub fn offer_of(frame: pb::Frame) -> Result<SnapshotOffer, WireError> {
    let offer = match frame.kind {
        Some(Kind::Offer(offer)) => offer,
        other => {
            return Err(WireError::Unexpected { expected: "an offer", got: kind_name(other.as_ref()) });
        }
    };
    let message = offer.message.ok_or(WireError::Missing { field: "offer.message" })?.try_into()?;
    let head = offer.head.ok_or(WireError::Missing { field: "offer.head" })?;
    let mut members = MemberTable::new();
    for member in head.members {
        let address = PeerAddr::new(&member.address).map_err(|error| malformed(&error))?;
        let incarnation = Incarnation::new(member.incarnation);
        members.insert(node(member.node, "members.node")?, Member { address, incarnation });
    }
    let head = SnapshotHead {
        founding: FoundingHash::new(head.founding),
        group: GroupId::new(head.group),
        at: LogId { index: head.index, term: head.term },
        conf_state: head.conf_state.unwrap_or_default().try_into()?,
        members,
    };
    let meta = SnapshotMeta { head, length: offer.length, content: content_of(&offer.content)? };
    Ok(SnapshotOffer { message, meta, attempt: offer.attempt })
}

pub(crate) fn frame(kind: Kind) -> pb::Frame {
    pb::Frame { kind: Some(kind) }
}

fn malformed(error: &dyn std::fmt::Display) -> WireError {
    WireError::Malformed { detail: error.to_string() }
}

fn content_bytes(content: ContentId) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&content.0)
}

fn content_of(bytes: &[u8]) -> Result<ContentId, WireError> {
    let content = <[u8; 16]>::try_from(bytes).map_err(|_| malformed(&"a content id has 16 bytes"))?;
    Ok(ContentId(content))
}

impl From<Chunk> for pb::Chunk {
    fn from(chunk: Chunk) -> Self {
        Self { offset: chunk.offset, data: chunk.data, crc32c: chunk.crc32c }
    }
}

impl From<pb::Chunk> for Chunk {
    fn from(chunk: pb::Chunk) -> Self {
        Self { offset: chunk.offset, data: chunk.data, crc32c: chunk.crc32c }
    }
}

impl From<Trailer> for pb::Trailer {
    fn from(trailer: Trailer) -> Self {
        Self { length: trailer.length, content: content_bytes(trailer.content) }
    }
}

impl TryFrom<pb::Trailer> for Trailer {
    type Error = WireError;

    fn try_from(trailer: pb::Trailer) -> Result<Self, WireError> {
        Ok(Self { length: trailer.length, content: content_of(&trailer.content)? })
    }
}

impl From<TransferProgress> for pb::Progress {
    fn from(progress: TransferProgress) -> Self {
        let phase = match progress.phase {
            TransferPhase::Receiving => pb::TransferPhase::Receiving,
            TransferPhase::Storing => pb::TransferPhase::Storing,
            TransferPhase::Verifying => pb::TransferPhase::Verifying,
            TransferPhase::Syncing => pb::TransferPhase::Syncing,
            TransferPhase::Stepping => pb::TransferPhase::Stepping,
        };
        Self { acked: progress.acked, phase: phase.into() }
    }
}

impl From<pb::Progress> for TransferProgress {
    fn from(progress: pb::Progress) -> Self {
        let phase = match pb::TransferPhase::try_from(progress.phase) {
            Ok(pb::TransferPhase::Receiving) => TransferPhase::Receiving,
            Ok(pb::TransferPhase::Storing) => TransferPhase::Storing,
            Ok(pb::TransferPhase::Verifying) => TransferPhase::Verifying,
            Ok(pb::TransferPhase::Syncing) => TransferPhase::Syncing,
            Ok(pb::TransferPhase::Stepping) | Err(_) => TransferPhase::Stepping,
        };
        Self { acked: progress.acked, phase }
    }
}

impl From<&SnapshotRefusal> for pb::SnapshotRefused {
    fn from(refusal: &SnapshotRefusal) -> Self {
        use pb::SnapshotRefusalCode as Code;
        let with =
            |code: Code| Self { code: code.into(), detail: cut(refusal.to_string()), ..Self::default() };
        let told = |code: Code, detail: &str| Self { detail: cut(detail.into()), ..with(code) };
        match refusal {
            SnapshotRefusal::Busy => with(Code::Busy),
            SnapshotRefusal::TooLarge { length, length_max } => {
                Self { ours: *length_max, theirs: *length, ..with(Code::TooLarge) }
            }
            SnapshotRefusal::WrongNode => with(Code::WrongNode),
            SnapshotRefusal::StaleTerm { ours, theirs } => {
                Self { ours: *ours, theirs: *theirs, ..with(Code::StaleTerm) }
            }
            SnapshotRefusal::Corrupt { detail } => told(Code::Corrupt, detail),
            SnapshotRefusal::Storage { detail } => told(Code::Storage, detail),
            SnapshotRefusal::NotTaken { detail } => told(Code::NotTaken, detail),
            SnapshotRefusal::Stalled { millis } => Self { ours: *millis, ..with(Code::Stalled) },
            SnapshotRefusal::Unsupported => with(Code::Unsupported),
            SnapshotRefusal::Superseded => with(Code::Superseded),
            // A refusal without a code in this version: its text still arrives.
            _ => with(Code::Unspecified),
        }
    }
}

impl From<pb::SnapshotRefused> for SnapshotRefusal {
    fn from(refused: pb::SnapshotRefused) -> Self {
        use pb::SnapshotRefusalCode as Code;
        let (ours, theirs, detail) = (refused.ours, refused.theirs, cut(refused.detail));
        match Code::try_from(refused.code) {
            Ok(Code::Busy) => Self::Busy,
            Ok(Code::TooLarge) => Self::TooLarge { length: theirs, length_max: ours },
            Ok(Code::WrongNode) => Self::WrongNode,
            Ok(Code::StaleTerm) => Self::StaleTerm { ours, theirs },
            Ok(Code::Corrupt) => Self::Corrupt { detail },
            Ok(Code::Storage) => Self::Storage { detail },
            Ok(Code::Stalled) => Self::Stalled { millis: ours },
            Ok(Code::Unsupported) => Self::Unsupported,
            Ok(Code::Superseded) => Self::Superseded,
            Ok(Code::NotTaken | Code::Unspecified) | Err(_) => Self::NotTaken { detail },
        }
    }
}

pub(crate) fn outcome_frame(outcome: &Result<SnapshotReceipt, SnapshotRefusal>) -> pb::Frame {
    use pb::outcome::Kind as Outcome;
    let kind = match outcome {
        Ok(receipt) => Outcome::Commit(receipt.commit),
        Err(refusal) => Outcome::Refused(refusal.into()),
    };
    frame(Kind::Outcome(pb::Outcome { kind: Some(kind) }))
}
