//! What a link says back, and the two small futures that watching it needs.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use tokio::sync::oneshot;

use super::queue::LaneQueue;
use crate::message::Lane;
use crate::reporter::{Scope, UnreachableCause};
use crate::transport::{LinkClosed, LinkEvents, LinkFeedback, Nack, Welcome};

/// Decides whether the peer that answered is the one we know, by its incarnation.
pub(crate) trait PeerGate: Send + Sync + 'static {
    /// Runs on a thread that may block. Nothing is sent before it says yes.
    ///
    /// # Errors
    /// Why not, for the log. The link is dropped, and tried again after a backoff.
    fn welcome(&self, welcome: &Welcome) -> Result<(), String>;
}

/// Ends once, when the link's transport says that it is gone.
pub(crate) type Closed = oneshot::Receiver<LinkClosed>;

/// The ears of one link: nacks go to Raft at once, the end goes to the worker, which alone decides what it means.
struct Ears {
    queue: Arc<LaneQueue>,
    closed: Mutex<Option<oneshot::Sender<LinkClosed>>>,
}

/// A feedback for one attempt to connect, and its end.
pub(crate) fn feedback(queue: &Arc<LaneQueue>) -> (LinkFeedback, Closed) {
    let (sender, closed) = oneshot::channel();
    let ears = Ears { queue: Arc::clone(queue), closed: Mutex::new(Some(sender)) };
    (LinkFeedback::new(Arc::new(ears)), closed)
}

impl LinkEvents for Ears {
    fn nack(&self, nack: Nack) {
        let queue = &self.queue;
        queue.counter.nack();
        tracing::debug!(peer = %queue.peer, group = %nack.group, cause = ?nack.cause, "messages refused by the peer");
        if queue.lane == Lane::Append {
            queue.reporter.report_unreachable(queue.peer, Scope::Group(nack.group), UnreachableCause::Nack);
        }
    }

    fn closed(&self, cause: LinkClosed) {
        let sender = self.closed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // Fails when the worker has given the link up already: then it knows.
            let _ = sender.send(cause);
        }
    }
}

/// Which of two futures ended.
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Runs two futures until one ends and drops the other. When both could end, the first wins.
pub(crate) async fn race<A: Future, B: Future>(first: A, second: B) -> Either<A::Output, B::Output> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| {
        if let Poll::Ready(out) = first.as_mut().poll(cx) {
            return Poll::Ready(Either::First(out));
        }
        second.as_mut().poll(cx).map(Either::Second)
    })
    .await
}
