//! The bound of how fast a peer can raise the term of this node.
//!
//! A member raises the term of its peers by naming a higher one, and a term never falls. One message with the highest
//! accepted term, forged or from damaged memory, would leave no term for another election. So this module bounds the size
//! and the frequency of rises.
//!
//! Honest terms rise slowly, by about one in each election: a node raises its term only if a majority agreed in a pre-vote.
//! But a node may lag by more than [`RISE_MAX`], for two reasons. It may have been away for that number of elections, which
//! is twelve days at one election a second. Or forged messages may have raised the terms of its peers. If the node refused
//! their terms for ever, it could never follow them again. So the node catches up in steps: it raises its own term by
//! [`RISE_MAX`], which is always safe, and refuses the message. The peer sends it again.

/// A rise up to this is always accepted.
const RISE_FREE: u64 = 1 << 10;

/// The largest rise in a step; one step a tick. The highest accepted term, 2^62, is 2^42 steps away: 1,400 years of ticks
/// of 10 ms.
pub(super) const RISE_MAX: u64 = 1 << 20;

/// The tick of the last large rise.
#[derive(Debug, Default)]
pub(super) struct TermRises {
    last_tick: Option<u64>,
}

/// What to do about the term of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rise {
    /// Pass the message to raft.
    Take,
    /// Refuse the message.
    Refuse,
    /// Refuse the message, and raise raft's own term to this one.
    StepTo(u64),
}

impl TermRises {
    /// Judges a message of term `theirs` that arrives at `tick`, while this node is in term `ours`.
    pub(super) fn judge(&mut self, ours: u64, theirs: u64, tick: u64) -> Rise {
        let rise = theirs.saturating_sub(ours);
        if rise <= RISE_FREE {
            return Rise::Take;
        }
        if self.last_tick.replace(tick) == Some(tick) {
            return Rise::Refuse;
        }
        if rise <= RISE_MAX { Rise::Take } else { Rise::StepTo(ours + RISE_MAX) }
    }
}
