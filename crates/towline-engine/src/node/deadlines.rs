//! The deadlines of a group's proposals, wherever they are: in a queue, in the core, or in a state machine call that does
//! not return.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::waiter::Unanswered;

/// Answered proposals dropped per push. Two keep up with one new proposal.
const DROPPED_AT_PUSH: usize = 2;

/// Shorter queues are not swept.
const SWEEP_MIN: usize = 1_024;

/// The proposals by age, the oldest first.
#[derive(Default)]
pub(super) struct Deadlines {
    queue: VecDeque<Arc<dyn Unanswered>>,
    /// The length after the last sweep. The queue grows to twice of it, so one proposal that is never answered does not
    /// keep all later ones in memory.
    swept: usize,
}

impl Deadlines {
    /// Returns some answered proposals, which the caller drops outside of the lock.
    pub(super) fn push(
        &mut self,
        proposal: Arc<dyn Unanswered>,
    ) -> [Option<Arc<dyn Unanswered>>; DROPPED_AT_PUSH] {
        let answered = std::array::from_fn(|_| {
            if self.queue.front().is_some_and(|oldest| oldest.is_open()) {
                None
            } else {
                self.queue.pop_front()
            }
        });
        if self.queue.len() >= SWEEP_MIN.max(2 * self.swept) {
            self.queue.retain(|proposal| proposal.is_open());
            self.swept = self.queue.len();
        }
        self.queue.push_back(proposal);
        answered
    }

    /// Takes the open proposals that were made at `before` or earlier.
    pub(super) fn take_late(&mut self, before: Instant) -> Vec<Arc<dyn Unanswered>> {
        let mut late = Vec::new();
        while let Some(oldest) = self.queue.front() {
            let is_open = oldest.is_open();
            if is_open && oldest.since() > before {
                break;
            }
            late.extend(self.queue.pop_front().filter(|_| is_open));
        }
        late
    }

    pub(super) fn take_all(&mut self) -> Vec<Arc<dyn Unanswered>> {
        self.swept = 0;
        self.queue.drain(..).filter(|proposal| proposal.is_open()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towline_metrics::NodeMetrics;

    use super::*;
    use crate::errors::{ProposeError, UncertainCause};
    use crate::node::waiter::Waiter;

    #[test]
    fn an_unanswered_proposal_does_not_keep_answered_ones() {
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        let mut deadlines = Deadlines::default();
        let (stuck, _wanted) = Waiter::new::<()>(metrics.clone());
        deadlines.push(stuck.unanswered());
        for _ in 0..10 * SWEEP_MIN {
            let (waiter, _wanted) = Waiter::new::<()>(metrics.clone());
            deadlines.push(waiter.unanswered());
            waiter.answer((), Instant::now());
        }
        assert!(deadlines.queue.len() <= SWEEP_MIN + 1, "{}", deadlines.queue.len());
        assert_eq!(deadlines.take_late(Instant::now()).len(), 1);
    }

    #[test]
    fn only_late_open_proposals_are_taken() {
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        let waiters: Vec<_> = (0..4).map(|_| Waiter::new::<()>(metrics.clone())).collect();
        let mut deadlines = Deadlines::default();
        waiters.iter().for_each(|(waiter, _)| drop(deadlines.push(waiter.unanswered())));
        let mut waiters = waiters.into_iter();
        let (answered, _wanted) = waiters.next().unwrap();
        answered.answer((), Instant::now());
        drop(waiters.next().unwrap());
        let (late, mut wanted) = waiters.next().unwrap();
        let taken = deadlines.take_late(late.since());
        assert!(taken.iter().all(|proposal| proposal.since() <= late.since()) && !taken.is_empty());
        let error = ProposeError::Uncertain { cause: UncertainCause::Down("late".into()) };
        taken.iter().for_each(|proposal| proposal.fail(error.clone()));
        assert_eq!(wanted.try_recv().unwrap(), Err(error));
        late.answer((), Instant::now()); // without effect
        assert!(deadlines.take_late(Instant::now() - Duration::from_secs(60)).is_empty());
    }
}
