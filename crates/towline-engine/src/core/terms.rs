//! How fast the term may rise because a peer says so.
//!
//! A term is a number any member may raise by naming a higher one, and it never falls. One message with a term near the
//! end of the numbers, forged or made of damaged memory, would leave no number for another election, for ever. So a
//! rise is bounded, in size and in how often it may happen.
//!
//! Honest terms rise slowly: before a node raises its own, a majority must have said in a pre-vote that it would vote
//! for it, so a node that is cut off does not raise its term at all, however long, and the others raise theirs by about
//! one an election. A node that was away while the others held [`RISE_MAX`] elections (twelve days of one a second) can
//! still be behind by more; and whoever forges could drive two honest nodes that far apart. Refusing such a term for
//! good would part them for ever. So a node takes it in steps: it raises its own term by [`RISE_MAX`], as it may at any
//! time without harm, refuses the message, and is nearer when the peer repeats it.

/// A rise up to this is taken as often as it comes.
const RISE_FREE: u64 = 1 << 10;

/// A rise in one step, of which there is one a tick. To use the numbers up takes 2^42 ticks then, 1,400 years of 10 ms;
/// in rises of [`RISE_FREE`] it takes 2^52 messages.
pub(super) const RISE_MAX: u64 = 1 << 20;

/// When the last large rise was.
#[derive(Debug, Default)]
pub(super) struct TermRises {
    last_tick: Option<u64>,
}

/// What to do with a message for its term's sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rise {
    /// Raft may see it.
    Take,
    /// Raft may not; and nothing else is to be done.
    Refuse,
    /// Raft may not; but its own term is to rise to this one.
    StepTo(u64),
}

impl TermRises {
    /// A message names the term `theirs` at `tick`, while this node is in `ours`.
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
