//! Proposals of a group by age, so that each is answered in time wherever it is: in a queue, in the core, or in a call of
//! the state machine that does not return.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::waiter::Unanswered;

/// Answered proposals that are dropped with each new one: two keep up with one.
const DROPPED_AT_PUSH: usize = 2;

/// Below this length nothing is swept.
const SWEEP_MIN: usize = 1_024;

/// The oldest first.
#[derive(Default)]
pub(super) struct Deadlines {
    line: VecDeque<Arc<dyn Unanswered>>,
    /// What was left after the last sweep. The line is at most twice as long: one proposal that is never answered must
    /// not keep all that come after it in memory.
    swept: usize,
}

impl Deadlines {
    /// Gives back some that are answered, to be dropped without the lock that this is under.
    pub(super) fn push(
        &mut self,
        proposal: Arc<dyn Unanswered>,
    ) -> [Option<Arc<dyn Unanswered>>; DROPPED_AT_PUSH] {
        let answered = std::array::from_fn(|_| {
            if self.line.front().is_some_and(|oldest| oldest.is_open()) {
                None
            } else {
                self.line.pop_front()
            }
        });
        if self.line.len() >= SWEEP_MIN.max(2 * self.swept) {
            self.line.retain(|proposal| proposal.is_open());
            self.swept = self.line.len();
        }
        self.line.push_back(proposal);
        answered
    }

    /// Takes those that wait since `before` or longer.
    pub(super) fn take_late(&mut self, before: Instant) -> Vec<Arc<dyn Unanswered>> {
        let mut late = Vec::new();
        while let Some(oldest) = self.line.front() {
            let is_open = oldest.is_open();
            if is_open && oldest.since() > before {
                break;
            }
            late.extend(self.line.pop_front().filter(|_| is_open));
        }
        late
    }

    pub(super) fn take_all(&mut self) -> Vec<Arc<dyn Unanswered>> {
        self.swept = 0;
        self.line.drain(..).filter(|proposal| proposal.is_open()).collect()
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
    fn a_proposal_that_is_never_answered_does_not_keep_those_that_are() {
        let metrics = Arc::new(NodeMetrics::noop().group(1));
        let mut deadlines = Deadlines::default();
        let (stuck, _wanted) = Waiter::new::<()>(metrics.clone());
        deadlines.push(stuck.unanswered());
        for _ in 0..10 * SWEEP_MIN {
            let (waiter, _wanted) = Waiter::new::<()>(metrics.clone());
            deadlines.push(waiter.unanswered());
            waiter.answer((), Instant::now());
        }
        assert!(deadlines.line.len() <= SWEEP_MIN + 1, "{}", deadlines.line.len());
        assert_eq!(deadlines.take_late(Instant::now()).len(), 1);
    }

    #[test]
    fn only_what_is_late_and_not_answered_is_taken() {
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
        late.answer((), Instant::now()); // too late: no caller waits, nothing panics
        assert!(deadlines.take_late(Instant::now() - Duration::from_secs(60)).is_empty());
    }
}
