//! Pending callers and their answers. The core only carries waiters; the apply worker and the shard answer them.
//!
//! An answer runs a caller's code on a thread of the engine: the waker, or the drop of the answer if the caller is gone. That
//! code may panic, and the thread serves other callers too, so [`contained`] runs it.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::oneshot;
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use crate::cause::catch;
use crate::errors::{ProposeError, ReadError};
use crate::sync::lock;

/// A pending proposal. The core and the shard do not know the type of its answer. Dropping it tells the caller that no answer
/// will come.
pub(crate) struct Waiter(Arc<dyn Unanswered>);

/// A pending proposal, as the check of deadlines sees it. The first answer counts; later ones have no effect.
pub(crate) trait Unanswered: Send + Sync {
    fn is_open(&self) -> bool;
    /// When the caller submitted it.
    fn since(&self) -> Instant;
    /// Answers with an error, unless it is answered.
    fn fail(&self, error: ProposeError);
    /// Tells the caller that no answer will come, unless one has come.
    fn lose(&self);
    /// For a downcast by the apply worker, which knows the type of the answer.
    fn as_any(&self) -> &dyn Any;
}

/// A pending proposal whose answer has type `R`.
struct PendingProposal<R> {
    /// `None` once the answer was given.
    answer: Mutex<Option<Answer<Result<R, ProposeError>>>>,
    /// Whether `answer` is still there. The check of deadlines reads it without the lock.
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
        (Self(Arc::new(PendingProposal { answer, is_open, since: Instant::now(), metrics })), answered)
    }

    /// Answers with the state machine's reply. `now` is the end of the call that applied the command.
    pub(crate) fn answer<R: Send + 'static>(self, reply: R, now: Instant) {
        let pending = self.0.as_any().downcast_ref::<PendingProposal<R>>();
        match pending.and_then(|pending| Some((pending, pending.take()?))) {
            Some((pending, answer)) => {
                pending.metrics.proposals(ProposalOutcome::Committed, 1);
                pending.metrics.proposal_time(now.saturating_duration_since(pending.since));
                answer.send(Ok(reply));
            }
            None => contained(|| drop(reply)),
        }
    }

    /// Answers with an error.
    pub(crate) fn fail(self, error: ProposeError) {
        self.0.fail(error);
    }

    pub(crate) fn since(&self) -> Instant {
        self.0.since()
    }

    /// A handle for the check of deadlines: the waiter itself may be inside a call that does not return.
    pub(crate) fn unanswered(&self) -> Arc<dyn Unanswered> {
        self.0.clone()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.0.lose();
    }
}

impl<R> PendingProposal<R> {
    fn take(&self) -> Option<Answer<Result<R, ProposeError>>> {
        self.is_open.store(false, Ordering::Release);
        lock(&self.answer).take()
    }
}

impl<R: Send + 'static> Unanswered for PendingProposal<R> {
    fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn fail(&self, error: ProposeError) {
        // After the lock is released: the answer runs the caller's waker.
        let Some(answer) = self.take() else { return };
        let outcome = match error {
            ProposeError::NotLeader { .. } => ProposalOutcome::NotLeader,
            ProposeError::Busy => ProposalOutcome::Busy,
            ProposeError::DiskFull { .. } => ProposalOutcome::DiskFull,
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

/// The waiter of a linearizable read. Once the shard answers it, the caller reads its view.
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

    /// Answers: everything that the read must see is applied.
    pub(crate) fn answer(self) {
        self.metrics.read_served(self.since.elapsed());
        self.answer.send(Ok(()));
    }

    pub(crate) fn fail(self, error: ReadError) {
        self.metrics.read_failed();
        self.answer.send(Err(error));
    }
}

/// Runs code that may run a caller's code. Catches and logs a panic.
pub(crate) fn contained(run: impl FnOnce()) {
    if let Err(cause) = catch(run) {
        tracing::error!(cause, "code of a caller panicked while the engine answered it");
    }
}

/// The sending half of one answer. Dropping it tells the caller that no answer will come.
pub(crate) struct Answer<T>(Option<oneshot::Sender<T>>);

/// Makes the two halves of an answer.
pub(crate) fn answer<T>() -> (Answer<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    (Answer(Some(sender)), receiver)
}

impl<T> Answer<T> {
    /// Sends the answer. The caller may be gone.
    pub(crate) fn send(mut self, value: T) {
        if let Some(sender) = self.0.take() {
            contained(|| drop(sender.send(value)));
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(sender) = self.0.take() {
            contained(|| drop(sender));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    struct PanicsOnDrop;

    impl Drop for PanicsOnDrop {
        fn drop(&mut self) {
            panic!("a drop")
        }
    }

    struct PanicsOnWake;

    impl Wake for PanicsOnWake {
        fn wake(self: Arc<Self>) {
            panic!("a waker")
        }
    }

    #[test]
    fn an_answer_arrives_although_the_waker_panics() {
        let waker = Waker::from(Arc::new(PanicsOnWake));
        for given in [Some(7), None] {
            let (answer, receiver) = answer();
            let mut receiver = pin!(receiver);
            assert!(receiver.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            match given {
                Some(value) => answer.send(value),
                None => drop(answer),
            }
            let polled = receiver.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(polled.map(Result::ok), Poll::Ready(given));
        }
    }

    #[test]
    fn an_answer_without_a_caller_may_panic_on_drop() {
        let (answer, receiver) = answer();
        drop(receiver);
        answer.send(PanicsOnDrop);
    }

    #[test]
    fn a_panic_payload_is_not_dropped() {
        contained(|| std::panic::panic_any(PanicsOnDrop));
    }
}
