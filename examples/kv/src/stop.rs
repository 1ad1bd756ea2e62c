//! Being asked to stop.

use std::io::{ErrorKind, Read as _};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Resolves at Ctrl-C or SIGTERM. Heard from the call on, not from the first poll.
pub(crate) fn requested() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    async move {
        match signals {
            (Ok(mut interrupt), Ok(mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "signals cannot be heard; stopping");
            }
        }
    }
}

/// Resolves at the end of standard input, of which the parent holds the other end for as long as it lives: no signal
/// tells of a parent that was killed.
pub(crate) fn parent_gone() -> impl Future<Output = ()> {
    let (gone, seen) = oneshot::channel::<()>();
    // A thread of its own, not of the runtime, which would wait for the read to return before it ends.
    let watching = std::thread::Builder::new().name("parent".into()).spawn(move || {
        let (mut input, mut buffer) = (std::io::stdin().lock(), [0; 64]);
        loop {
            match input.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return drop(gone),
                Ok(_) => {}
            }
        }
    });
    async move {
        if let Err(error) = watching {
            tracing::error!(%error, "the parent cannot be watched; stopping");
        }
        let _ = seen.await;
    }
}
