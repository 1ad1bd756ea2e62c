//! Checks on messages of a peer, before raft sees them.
//!
//! The raft crate checks the message type and, for responses, the sender. It trusts all other fields, and some values make
//! it panic or damage its log. Each check names what it prevents.

use super::raft::Replica;
use super::terms::RISE_MAX;
use crate::ids::{FoundingHash, NodeId};
use crate::message::{Entry, LostEntries, Message, MessageKind};
use crate::snapshot_store::SnapshotMeta;
use crate::transport::SnapshotRefusal;

/// The highest term or index accepted. No honest node reaches it, and raft has room for its arithmetic above it.
const NUMBER_MAX: u64 = 1 << 62;

/// The longest context of a read round or a campaign, in bytes.
const CONTEXT_BYTES_MAX: usize = 256;

/// Why raft did not get a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// The message is for another node, or from this node.
    WrongNode,
    /// The sender named in the message is not the peer that sent it.
    WrongSender,
    /// A response from a node that is no member.
    UnknownPeer,
    /// A snapshot outside of a transfer, a vote without a request, or a call to campaign from another node than the leader.
    KindNotAllowed,
    /// The term is missing or out of range.
    BadTerm,
    /// The term is too far above the term of this node.
    TermJump,
    /// Entries that are not contiguous, not of rising terms, or not expected in this kind.
    BadEntries,
    /// A commit index beyond the log, an acknowledgement of entries that do not exist, or a negative priority.
    BadIndex,
    /// A read round that is empty or too long.
    BadContext,
    /// A read round that is not newer than the sender's last one.
    RepeatedRound,
    /// A read round, but this node does not lead.
    NotLeader,
    /// A request for a vote soon after a restart, when the lease of a leader from before may still hold.
    Quiet,
    /// Too many entries wait to be applied.
    Full,
    /// An append that begins with a new command, but the disk of this node is low. Raft got it without its entries.
    DiskFull,
    /// A call to campaign before a received snapshot is applied.
    Installing,
    /// A call to campaign while this node's log does not keep up.
    Stalled,
    /// A heartbeat that proves the loss of entries, or any message after it.
    EntriesLost(LostEntries),
    /// The peer founded the group with another list of founders.
    FoundedDifferently,
    /// A vote, a request for one, or an append, while a founder of this never committed group objects to its first leader or
    /// has not shown its list.
    Withheld,
}

/// Checks a message from the connection of `from`.
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
    // Raft treats a message of term zero as its own. Only a read round has no term.
    if (m.term == 0) != (m.kind == MessageKind::ReadIndex) || m.term > NUMBER_MAX {
        return Err(Reject::BadTerm);
    }
    if [m.index, m.commit, m.log_term, m.commit_term, m.reject_hint, m.applied, m.acked]
        .iter()
        .any(|&n| n > NUMBER_MAX)
    {
        return Err(Reject::BadIndex);
    }
    match m.kind {
        MessageKind::Append => check_append(m),
        MessageKind::Heartbeat => check_heartbeat(replica, m),
        MessageKind::AppendResponse => check_append_response(replica, m),
        MessageKind::ReadIndex => check_read_index(replica, m),
        MessageKind::ReadIndexResponse => check_one_context(&m.entries),
        // The transfer of a snapshot steps its message once the file is durable.
        MessageKind::Snapshot => Err(Reject::KindNotAllowed),
        MessageKind::RequestVoteResponse => check_vote_response(replica, m),
        MessageKind::HeartbeatResponse | MessageKind::RequestPreVoteResponse => check_known(replica, m),
        // A node without a term grants every honest request, because its log is empty. It would refuse a candidate of low
        // priority, and raft panics on a refusal without a term.
        MessageKind::RequestVote | MessageKind::RequestPreVote if m.priority < 0 => Err(Reject::BadIndex),
        MessageKind::RequestVote | MessageKind::RequestPreVote => Ok(()),
        MessageKind::TimeoutNow => check_timeout_now(replica, m),
    }
}

/// Checks an offered or received snapshot for everything that raft would ignore silently or panic on.
pub(super) fn check_snapshot(
    replica: &Replica,
    me: NodeId,
    founding: FoundingHash,
    from: NodeId,
    m: &Message,
    meta: &SnapshotMeta,
) -> Result<(), SnapshotRefusal> {
    let contradiction = |detail: &str| SnapshotRefusal::Corrupt { detail: detail.into() };
    if founding.contradicts(meta.head.founding) {
        return Err(contradiction("its group was founded with another list of founders"));
    }
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
    // Other messages of the group raise the term in steps.
    if m.term.saturating_sub(replica.term()) > RISE_MAX {
        return Err(contradiction("its term is too far ahead of this node's"));
    }
    Ok(())
}

/// Prevents that raft reads past the end of its log, or stores entries under wrong indices.
fn check_append(m: &Message) -> Result<(), Reject> {
    // For raft an index past the end has term zero. Entries from there on would match, and leave a gap.
    if (m.log_term == 0) != (m.index == 0) {
        return Err(Reject::BadEntries);
    }
    let mut term = m.log_term;
    for (entry, expected) in m.entries.iter().zip(m.index + 1..) {
        if entry.index != expected || entry.term < term || entry.term > m.term || entry.term == 0 {
            return Err(Reject::BadEntries);
        }
        term = entry.term;
    }
    Ok(())
}

/// Finds a log that lost entries. Raft itself would panic when it commits past the end of its log.
///
/// A follower acknowledges only durable entries, and gives them up only to a leader of a later term. That leader raises the
/// follower's term before it removes anything, so the check ignores the heartbeats of the leader before. A leader stamps
/// what the follower acknowledged in the same term. A leader of an older version stamps nothing; its commit index is not above
/// what the follower acknowledged.
fn check_heartbeat(replica: &Replica, m: &Message) -> Result<(), Reject> {
    let (last_index, acknowledged) = (replica.last_index(), m.commit.max(m.acked));
    if m.term < replica.term() || acknowledged <= last_index {
        return Ok(());
    }
    let other_leads = m.term == replica.term() && replica.leader().is_some_and(|leader| leader != m.from);
    if other_leads || !replica.is_member(m.from) {
        return Err(Reject::BadIndex);
    }
    Err(Reject::EntriesLost(LostEntries { last_index, acknowledged }))
}

/// Prevents that raft believes a peer to have entries that do not exist, and then reads past the end of the log.
fn check_append_response(replica: &Replica, m: &Message) -> Result<(), Reject> {
    check_known(replica, m)?;
    let beyond = m.term == replica.term() && replica.is_leader() && m.index > replica.last_index();
    // The engine never requests a snapshot this way. Raft would send no entries to the peer until it had sent a snapshot.
    if beyond || (m.reject && m.reject_hint > m.index) || m.request_snapshot != 0 {
        return Err(Reject::BadIndex);
    }
    Ok(())
}

/// Prevents a panic of raft: a candidate that wins asserts that its whole log is durable. An honest vote cannot come before,
/// because the candidate requests votes only when its log is durable.
fn check_vote_response(replica: &Replica, m: &Message) -> Result<(), Reject> {
    check_known(replica, m)?;
    if replica.is_log_persisted() { Ok(()) } else { Err(Reject::KindNotAllowed) }
}

/// Allows only the leader to make this node campaign past the leader's lease. Any other peer could end a healthy leadership.
fn check_timeout_now(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if m.term == replica.term() && replica.leader() == Some(m.from) {
        Ok(())
    } else {
        Err(Reject::KindNotAllowed)
    }
}

/// Refuses read rounds on a node that does not lead: raft would forward them to the leader under another sender's name.
fn check_read_index(replica: &Replica, m: &Message) -> Result<(), Reject> {
    if !replica.is_leader() {
        return Err(Reject::NotLeader);
    }
    // Raft would send heartbeats and an answer for any sender.
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
