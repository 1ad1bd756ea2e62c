//! A runtime wrapper that knows when a listener's socket is closed.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::sync::mpsc;

/// Tokio's runtime, with a signal for the end of all tasks of an endpoint. These tasks own its socket.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) alive: mpsc::Sender<Infallible>,
}

impl Runtime for Tracked {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let alive = self.alive.clone();
        TokioRuntime.spawn(Box::pin(async move {
            future.await;
            drop(alive);
        }));
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}
