//! Answers to callers.
//!
//! An answer runs a caller's code on a thread of the engine: the waker of whoever polls for it, and the drop of what it
//! carries if nobody does. That code may panic, and the thread serves others too. So it runs contained.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::oneshot;

use crate::cause::panic_text;

/// Runs something that may run a caller's code. A panic in there ends with it, and is told to the log.
pub(crate) fn contained(run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        tracing::error!(cause = panic_text(panic.as_ref()), "a caller's code panicked while it was answered");
        // Its drop may panic again; a few bytes a panic are lost instead.
        std::mem::forget(panic);
    }
}

/// The place of one answer. Dropping it tells whoever waits that there will be none.
pub(crate) struct Answer<T>(Option<oneshot::Sender<T>>);

/// An answer to be given, and where it is waited for.
pub(crate) fn answer<T>() -> (Answer<T>, oneshot::Receiver<T>) {
    let (sender, receiver) = oneshot::channel();
    (Answer(Some(sender)), receiver)
}

impl<T> Answer<T> {
    /// Gives it. Nobody may be there any more to hear it.
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

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker")
        }
    }

    impl Drop for Panics {
        fn drop(&mut self) {
            panic!("a drop")
        }
    }

    struct Wakes;

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            panic!("a waker")
        }
    }

    #[test]
    fn an_answer_survives_a_waker_that_panics_and_arrives() {
        let waker = Waker::from(Arc::new(Wakes));
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
    fn an_answer_nobody_waits_for_survives_its_drop() {
        let (answer, receiver) = answer();
        drop(receiver);
        answer.send(Panics);
    }

    #[test]
    fn what_a_panic_carries_is_not_dropped() {
        contained(|| std::panic::panic_any(Panics));
    }
}
