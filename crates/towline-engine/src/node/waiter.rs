//! Who waits for an answer. The core only carries them; the apply worker and the shard answer.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;
use towline_metrics::GroupMetrics;
use towline_metrics::labels::ProposalOutcome;

use super::answer::{Answer, answer};
use crate::errors::{ProposeError, ReadError};

/// Waits for a proposal. Knows what type its answer has; the core and the shard do not.
pub(crate) trait Waiter: Send {
    /// Answers with an error.
    fn fail(self: Box<Self>, error: ProposeError);
    /// When it began to wait.
    fn since(&self) -> Instant;
    /// For the apply worker, which knows the type.
    fn into_any(self: Box<Self>) -> Box<dyn Any + Send>;
}

/// A [`Waiter`] whose answer is an `R`.
pub(crate) struct ProposalWaiter<R> {
    answer: Answer<Result<R, ProposeError>>,
    since: Instant,
    metrics: Arc<GroupMetrics>,
}

impl<R: Send + 'static> ProposalWaiter<R> {
    pub(crate) fn new(metrics: Arc<GroupMetrics>) -> (Self, oneshot::Receiver<Result<R, ProposeError>>) {
        let (answer, answered) = answer();
        (Self { answer, since: Instant::now(), metrics }, answered)
    }

    /// The state machine has applied the command. Nobody may be there any more to hear it.
    pub(crate) fn answer(self, reply: R) {
        self.metrics.proposals(ProposalOutcome::Committed, 1);
        self.metrics.proposal_time(self.since.elapsed());
        self.answer.send(Ok(reply));
    }
}

impl<R: Send + 'static> Waiter for ProposalWaiter<R> {
    fn fail(self: Box<Self>, error: ProposeError) {
        let outcome = match error {
            ProposeError::NotLeader { .. } => ProposalOutcome::NotLeader,
            ProposeError::Busy => ProposalOutcome::Busy,
            ProposeError::Uncertain { .. } => ProposalOutcome::Uncertain,
            ProposeError::Stopped { .. } => ProposalOutcome::Stopped,
            _ => ProposalOutcome::Rejected,
        };
        self.metrics.proposals(outcome, 1);
        self.answer.send(Err(error));
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any + Send> {
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
