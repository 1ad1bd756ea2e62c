//! One feedback between a link and the task that reads its answers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_engine::transport::{LinkClosed, LinkFeedback, Nack};

/// A [`LinkFeedback`] that two hold: the link, and whoever reads what comes back. Whoever ends first says why. So a link
/// that is dropped is abandoned, even if its reader, on another thread, sees the end of the connection at that moment.
#[derive(Debug, Clone)]
pub(super) struct SharedFeedback {
    feedback: Arc<Mutex<Option<LinkFeedback>>>,
}

impl SharedFeedback {
    /// Held by one so far; clone it for the other.
    pub(super) fn new(feedback: LinkFeedback) -> Self {
        Self { feedback: Arc::new(Mutex::new(Some(feedback))) }
    }

    /// As [`LinkFeedback::nack`], until the link has ended.
    pub(super) fn nack(&self, nack: Nack) {
        if let Some(feedback) = self.lock().as_ref() {
            feedback.nack(nack);
        }
    }

    /// As [`LinkFeedback::closed`], unless somebody was faster.
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
    struct Heard(Mutex<Vec<LinkClosed>>);

    impl LinkEvents for Heard {
        fn nack(&self, _: Nack) {}

        fn closed(&self, cause: LinkClosed) {
            self.0.lock().unwrap().push(cause);
        }
    }

    #[test]
    fn the_first_to_end_says_why_and_nobody_else() {
        let heard = Arc::new(Heard::default());
        let link = SharedFeedback::new(LinkFeedback::new(heard.clone()));
        let reader = link.clone();
        link.closed(LinkClosed::Abandoned);
        reader.closed(LinkClosed::ByPeer { detail: "later".into() });
        drop((link, reader));
        assert_eq!(*heard.0.lock().unwrap(), [LinkClosed::Abandoned]);
    }
}
