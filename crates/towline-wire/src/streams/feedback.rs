//! The feedback that a link shares with the task that reads its answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_engine::transport::{LinkClosed, LinkFeedback, Nack};

/// A [`LinkFeedback`] held by a link and by its reader task. The first of them to end reports the cause. A dropped link
/// therefore reports `Abandoned` even if its reader sees the end of the connection at that moment on another thread.
#[derive(Debug, Clone)]
pub(super) struct SharedFeedback {
    feedback: Arc<Mutex<Option<LinkFeedback>>>,
}

impl SharedFeedback {
    /// Wraps the feedback; clone the result for the second holder.
    pub(super) fn new(feedback: LinkFeedback) -> Self {
        Self { feedback: Arc::new(Mutex::new(Some(feedback))) }
    }

    /// As [`LinkFeedback::nack`], until the link has ended.
    pub(super) fn nack(&self, nack: Nack) {
        if let Some(feedback) = self.lock().as_ref() {
            feedback.nack(nack);
        }
    }

    /// As [`LinkFeedback::closed`], unless the other holder already reported a cause.
    pub(super) fn closed(&self, cause: LinkClosed) {
        let feedback = self.lock().take();
        if let Some(feedback) = feedback {
            feedback.closed(cause);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<LinkFeedback>> {
        self.feedback.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towline_engine::transport::LinkEvents;

    #[derive(Default)]
    struct Causes(Mutex<Vec<LinkClosed>>);

    impl LinkEvents for Causes {
        fn nack(&self, _: Nack) {}

        fn closed(&self, cause: LinkClosed) {
            self.0.lock().unwrap().push(cause);
        }
    }

    #[test]
    fn only_the_first_holder_to_end_reports_the_cause() {
        let causes = Arc::new(Causes::default());
        let link = SharedFeedback::new(LinkFeedback::new(causes.clone()));
        let reader = link.clone();
        link.closed(LinkClosed::Abandoned);
        reader.closed(LinkClosed::ByPeer { detail: "later".into() });
        drop((link, reader));
        assert_eq!(*causes.0.lock().unwrap(), [LinkClosed::Abandoned]);
    }
}
