//! Checks on messages of a peer, before raft sees them.
//!
//! The raft crate looks at the message type and, for responses, at the sender, and trusts the rest: on several of the
//! fields below it would panic or damage its log. Each check names what it prevents.

use super::raft::Replica;
use super::terms::RISE_MAX;
use crate::ids::NodeId;
use crate::message::{Entry, Message, MessageKind};
use crate::snapshot_store::SnapshotMeta;
use crate::transport::SnapshotRefusal;

/// Terms and indices above this are nobody's honest ones, and leave room for the arithmetic of raft.
const NUMBER_MAX: u64 = 1 << 62;

/// Bytes of the context of a read round or a campaign.
const CONTEXT_BYTES_MAX: usize = 256;

/// Why a message was not given to raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// Not addressed to this node, or from itself.
    WrongNode,
    /// The sender named in the message is not the peer that sent it.
    WrongSender,
    /// A response of somebody who is no member.
    UnknownPeer,
    /// A kind that cannot come now: a snapshot outside of a transfer, a vote that was not asked for yet, a campaign
    /// asked for by somebody who does not lead.
    KindNotAllowed,
    /// No term, or one out of range.
    BadTerm,
    /// A term further above this node's than is taken at once.
    TermJump,
    /// Entries that are not contiguous, not of rising terms, or not expected in this kind.
    BadEntries,
    /// A commit index beyond the log, an acknowledgement of entries that do not exist, or a priority that nobody has.
    BadIndex,
    /// A read round that is empty or too long.
    BadContext,
    /// A read round that its sender asked for before, or that is older than one it asked for.
    RepeatedRound,
    /// A read round for a leader, and this node leads not.
    NotLeader,
    /// A request for a vote soon after a restart: this node may have promised its vote to a leader's lease before.
    Quiet,
    /// Too much is waiting to be applied.
    Full,
    /// A call to campaign while a received snapshot waits to be applied.
    Installing,
}

/// `from` is the peer whose connection brought the message.
pub(super) fn check(replica: &Replica, me: NodeId, from: NodeId, m: &Message) -> Result<(), Reject> {
    if m.to != me || m.from == me {
        return Err(Reject::WrongNode);
    }
    if m.from != from {
        return Err(Reject::WrongSender);
    }
    if m.context.len() > CONTEXT_BYTES_MAX {
        return Err(Reject::BadContext);
    }
    // A term of zero makes raft treat the message as its own; only a read round travels without a term.
    if (m.term == 0) != (m.kind == MessageKind::ReadIndex) || m.term > NUMBER_MAX {
        return Err(Reject::BadTerm);
    }
    if [m.index, m.commit, m.log_term, m.commit_term, m.reject_hint].iter().any(|&n| n > NUMBER_MAX) {
        return Err(Reject::BadIndex);
    }
    match m.kind {
        MessageKind::Append => check_append(m),
        MessageKind::Heartbeat => check_heartbeat(replica, m),
        MessageKind::AppendResponse => check_append_response(replica, m),
        MessageKind::ReadIndex => check_read_index(replica, m),
        MessageKind::ReadIndexResponse => check_one_context(&m.entries),
        // Its bytes come by a transfer, which steps the message itself once they are durable.
        MessageKind::Snapshot => Err(Reject::KindNotAllowed),
        MessageKind::RequestVoteResponse => check_vote_response(replica, m),
        MessageKind::HeartbeatResponse | MessageKind::RequestPreVoteResponse => check_known(replica, m),
        // A node that has no term yet grants every honest request: its log is empty. A candidate of low priority it
        // would refuse, and raft panics on an answer without a term.
        MessageKind::RequestVote | MessageKind::RequestPreVote if m.priority < 0 => Err(Reject::BadIndex),
        MessageKind::RequestVote | MessageKind::RequestPreVote => Ok(()),
        MessageKind::TimeoutNow => check_timeout_now(replica, m),
    }
}

/// A snapshot that a transfer brought, or would bring: everything raft would ignore without a word, or panic on.
pub(super) fn check_snapshot(
    replica: &Replica,
    me: NodeId,
    from: NodeId,
    m: &Message,
    meta: &SnapshotMeta,
) -> Result<(), SnapshotRefusal> {
    let contradiction = |detail: &str| SnapshotRefusal::Corrupt { detail: detail.into() };
    let at = meta.head.at;
    let record = m.snapshot.as_ref().ok_or_else(|| contradiction("the offer has no snapshot"))?;
    if m.kind != MessageKind::Snapshot || !m.entries.is_empty() || !m.context.is_empty() {
        return Err(contradiction("the offer's message is not of a snapshot"));
    }
    if (record.index, record.term) != (at.index, at.term) || record.conf_state != meta.head.conf_state {
        return Err(contradiction("the offer's message and its file differ"));
    }
    if at.index == 0 || at.term == 0 || at.term > m.term || m.term > NUMBER_MAX || at.index > NUMBER_MAX {
        return Err(contradiction("index or term out of range"));
    }
    if m.to != me || m.from != from || from == me || !meta.head.conf_state.contains(me) {
        return Err(SnapshotRefusal::WrongNode);
    }
    if m.term < replica.term() {
        return Err(SnapshotRefusal::StaleTerm { ours: replica.term(), theirs: m.term });
    }
    // The group's other messages bring the term nearer.
    if m.term.saturating_sub(replica.term()) > RISE_MAX {
        return Err(contradiction("its term is too far ahead of this node's"));
    }
    Ok(())
}

/// Raft would index past the end of its log, or store entries under indices they do not have.
fn check_append(m: &Message) -> Result<(), Reject> {
    // Raft takes the term of an index past its end to be zero: so entries that begin there would match, and leave a gap.
    if (m.log_term == 0) != (m.index == 0) {
        return Err(Reject::BadEntries);
    }
    let mut term = m.log_term;
    for (place, entry) in m.entries.iter().enumerate() {
        let expected = m.index + 1 + place as u64;
        if entry.index != expected || entry.term < term || entry.term > m.term || entry.term == 0 {
            return Err(Reject::BadEntries);
        }
        term = entry.term;
    }
    Ok(())
}

/// Raft panics when told to commit what is not in its log: so dies a follower that lost its disk.
fn check_heartbeat(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if m.term >= replica.term() && m.commit > replica.last_index() { Err(Reject::BadIndex) } else { Ok(()) }
}

/// Raft would take a peer to have entries that do not exist, and then read past the end of the log for it.
fn check_append_response(replica: &Replica, m: &Message) -> Result<(), Reject> {
    check_known(replica, m)?;
    let beyond = m.term == replica.term() && replica.is_leader() && m.index > replica.last_index();
    // Nobody asks for a snapshot this way; raft would stop to send entries to the peer until it had sent one.
    if beyond || (m.reject && m.reject_hint > m.index) || m.request_snapshot != 0 {
        return Err(Reject::BadIndex);
    }
    Ok(())
}

/// A request for a vote leaves when the candidate's whole log is durable. A vote that comes before was not asked for, and
/// raft, which insists on that at the moment it wins, would panic.
fn check_vote_response(replica: &Replica, m: &Message) -> Result<(), Reject> {
    check_known(replica, m)?;
    if replica.is_log_persisted() { Ok(()) } else { Err(Reject::KindNotAllowed) }
}

/// It makes this node campaign past the lease of the leader, so only that leader may ask for it: anybody else, such as a
/// member of another group of this node, could end a healthy leadership with it.
fn check_timeout_now(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if m.term == replica.term() && replica.leader() == Some(m.from) {
        Ok(())
    } else {
        Err(Reject::KindNotAllowed)
    }
}

/// A node that does not lead forwards a read round under its original sender's name; the leader would then see a
/// message whose sender is not the peer it came from.
fn check_read_index(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if !replica.is_leader() {
        return Err(Reject::NotLeader);
    }
    // Raft would send heartbeats for anybody, and answer him.
    check_known(replica, m)?;
    check_one_context(&m.entries)
}

fn check_one_context(entries: &[Entry]) -> Result<(), Reject> {
    match entries {
        [one] if (1..=CONTEXT_BYTES_MAX).contains(&one.data.len()) => Ok(()),
        _ => Err(Reject::BadContext),
    }
}

fn check_known(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if replica.is_member(m.from) { Ok(()) } else { Err(Reject::UnknownPeer) }
}
