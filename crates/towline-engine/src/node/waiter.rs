//! Who waits for an answer. The core only carries them; the apply worker and the shard answer.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use super::answer::{Answer, answer, contained};
use crate::errors::{ProposeError, ReadError};

/// Waits for a proposal. The core and the shard do not know what type its answer has. Dropped, it tells its caller that there
/// will be none.
pub(crate) struct Waiter(Arc<dyn Unanswered>);

/// A proposal as its deadline sees it. The first answer counts; later ones have no effect.
pub(crate) trait Unanswered: Send + Sync {
    /// Whether it is not answered.
    fn is_open(&self) -> bool;
    /// When it began to wait.
    fn since(&self) -> Instant;
    /// Answers with an error, unless it is answered.
    fn fail(&self, error: ProposeError);
    /// Tells the caller that there will be no answer, unless there was one.
    fn lose(&self);
    /// For the apply worker, which knows the type.
    fn as_any(&self) -> &dyn Any;
}

/// The place of an answer that is an `R`.
struct Slot<R> {
    /// `None` once it was given.
    answer: Mutex<Option<Answer<Result<R, ProposeError>>>>,
    /// The same without the lock, for the one look that every proposal gets.
    is_open: AtomicBool,
    since: Instant,
    metrics: Arc<GroupMetrics>,
}

impl Waiter {
    pub(crate) fn new<R: Send + 'static>(
        metrics: Arc<GroupMetrics>,
    ) -> (Self, oneshot::Receiver<Result<R, ProposeError>>) {
        let (answer, answered) = answer();
        let (answer, is_open) = (Mutex::new(Some(answer)), AtomicBool::new(true));
        (Self(Arc::new(Slot { answer, is_open, since: Instant::now(), metrics })), answered)
    }

    /// The state machine has applied the command by `now`, and its answers have this type. The caller may be gone.
    pub(crate) fn answer<R: Send + 'static>(self, reply: R, now: Instant) {
        let slot = self.0.as_any().downcast_ref::<Slot<R>>();
        match slot.and_then(|slot| Some((slot, slot.take()?))) {
            Some((slot, answer)) => {
                slot.metrics.proposals(ProposalOutcome::Committed, 1);
                slot.metrics.proposal_time(now.saturating_duration_since(slot.since));
                answer.send(Ok(reply));
            }
            None => contained(|| drop(reply)),
        }
    }

    /// Answers with an error.
    pub(crate) fn fail(self, error: ProposeError) {
        self.0.fail(error);
    }

    /// When it began to wait.
    pub(crate) fn since(&self) -> Instant {
        self.0.since()
    }

    /// For the check of deadlines: the waiter itself may be inside a call that does not return.
    pub(crate) fn unanswered(&self) -> Arc<dyn Unanswered> {
        self.0.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.lose();
    }
}

impl<R> Slot<R> {
    fn take(&self) -> Option<Answer<Result<R, ProposeError>>> {
        self.is_open.store(false, Ordering::Release);
        self.answer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<R: Send + 'static> Unanswered for Slot<R> {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn fail(&self, error: ProposeError) {
        // Not under the lock: it runs the caller's waker.
        let Some(answer) = self.take() else { return };
        let outcome = match error {
            ProposeError::NotLeader { .. } => ProposalOutcome::NotLeader,
            ProposeError::Busy => ProposalOutcome::Busy,
            ProposeError::Uncertain { .. } => ProposalOutcome::Uncertain,
            ProposeError::Stopped { .. } => ProposalOutcome::Stopped,
            _ => ProposalOutcome::Rejected,
        };
        self.metrics.proposals(outcome, 1);
        answer.send(Err(error));
    }

    fn lose(&self) {
        if self.is_open() {
            drop(self.take());
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Waits for a read barrier; then the caller looks at its view.
pub(crate) struct ReadWaiter {
    answer: Answer<Result<(), ReadError>>,
    since: Instant,
    metrics: Arc<GroupMetrics>,
}

impl ReadWaiter {
    pub(crate) fn new(metrics: Arc<GroupMetrics>) -> (Self, oneshot::Receiver<Result<(), ReadError>>) {
        let (answer, answered) = answer();
        (Self { answer, since: Instant::now(), metrics }, answered)
    }

    /// Everything the read must see is applied.
    pub(crate) fn answer(self) {
        self.metrics.read_served(self.since.elapsed());
        self.answer.send(Ok(()));
    }

    pub(crate) fn fail(self, error: ReadError) {
        self.metrics.read_failed();
        self.answer.send(Err(error));
    }
}
