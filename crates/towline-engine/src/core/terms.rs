//! The bound of how fast a peer can raise the term of this node.
//!
//! Any member raises a term by naming a higher one, and a term never falls. One message with a term near the end of the
//! numbers, forged or from damaged memory, would leave no number for another election. So the size and the frequency of
//! rises are bounded.
//!
//! Honest terms rise slowly, by about one in each election: a node raises its term only if a majority agreed in a pre-vote.
//! But a node that was away for more than [`RISE_MAX`] elections (twelve days of one a second) lags by more, and forged
//! messages could drive two honest nodes that far apart. Refusing such a term would separate them for ever. So a node catches
//! up in steps: it raises its own term by [`RISE_MAX`], which is always safe, and refuses the message. The peer repeats it.

/// A rise up to this is always accepted.
const RISE_FREE: u64 = 1 << 10;

/// The largest rise in a step; one step a tick. 2^42 ticks of 10 ms use up the numbers: 1,400 years.
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
