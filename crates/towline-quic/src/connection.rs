//! One accepted connection, until it ends.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use quinn::Connection;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use towline_engine::ids::NodeId;
use towline_engine::transport::{CertIdentity, Refusal};
use towline_wire::{Place, Standing};

use crate::codes;
use crate::lane;
use crate::listener::{Phase, SHUTDOWN_GRACE, SHUTTING_DOWN, Shared};

/// Hellos of one connection that are refused until it is closed, if none was accepted.
const REFUSED_MAX: usize = 8;

/// What is known of one connection.
pub(crate) struct Peer {
    pub(crate) shared: Arc<Shared>,
    connection: Connection,
    place: Place<NodeId, oneshot::Sender<Infallible>>,
    pub(crate) identity: CertIdentity,
    /// Whether a hello was accepted: the bounds for strangers no longer apply.
    admitted: AtomicBool,
    /// Whether somebody counted why none was.
    pub(crate) answered: AtomicBool,
    /// Hellos that were refused.
    pub(crate) refused: AtomicUsize,
}

impl Peer {
    /// A hello was accepted.
    pub(crate) fn admit(&self) {
        self.answered.store(true, Ordering::Release);
        if !self.admitted.swap(true, Ordering::AcqRel) {
            self.place.take(&self.shared.peers, self.identity.node, Standing::Admitted);
            self.connection.set_receive_window(self.shared.config.connection_window());
        }
    }

    fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
    }
}

/// Serves the streams of a connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, connection: Connection, identity: Option<CertIdentity>) {
    let Some(identity) = identity else {
        connection.close(codes::UNAUTHENTICATED, b"no identity");
        return shared.refused(&Refusal::Unauthenticated { detail: "no identity".into() });
    };
    let (keeps, mut lost) = oneshot::channel();
    let place = Place::new(keeps);
    place.take(&shared.peers, identity.node, Standing::Calling);
    let mut phase = shared.phase.subscribe();
    let peer = Arc::new(Peer {
        shared: Arc::clone(&shared),
        connection: connection.clone(),
        place,
        identity,
        admitted: AtomicBool::new(false),
        answered: AtomicBool::new(false),
        refused: AtomicUsize::new(0),
    });
    let mut lanes = JoinSet::new();
    let late = sleep(shared.config.handshake_timeout * 2);
    tokio::pin!(late);
    let mut late_over = false;
    let unheard = loop {
        tokio::select! {
            _ = phase.wait_for(|phase| *phase > Phase::Open) => break Refusal::ShuttingDown,
            _ = &mut lost => {
                connection.close(codes::REPLACED, b"a newer connection of this peer took the place");
                // Counted whether or not it ever got as far as a hello: a bound was hit.
                peer.answered.store(true, Ordering::Release);
                shared.refused(&Refusal::TooManyConnections);
                break Refusal::TooManyConnections;
            }
            // Whether somebody was let in is asked when it is due, not when the wait begins.
            () = &mut late, if !late_over => {
                late_over = true;
                if !peer.is_admitted() {
                    connection.close(codes::NO_HELLO, b"no hello within the handshake timeout");
                    break Refusal::HandshakeTimeout;
                }
            }
            Some(_) = lanes.join_next(), if !lanes.is_empty() => {
                if !peer.is_admitted() && peer.refused.load(Ordering::Acquire) >= REFUSED_MAX {
                    connection.close(codes::UNAUTHENTICATED, b"too many hellos were refused");
                    break Refusal::Malformed { detail: "too many hellos were refused".into() };
                }
            }
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => { lanes.spawn(lane::run(Arc::clone(&peer), send, receive)); }
                Err(error) => {
                    tracing::debug!(peer = %peer.identity.node, %error, "connection ended");
                    break Refusal::Malformed { detail: format!("ended before a hello: {error}") };
                }
            },
        }
    };
    if unheard == Refusal::ShuttingDown {
        // Each says its last word and waits a moment until it was heard.
        let _ = timeout(SHUTDOWN_GRACE, async { while lanes.join_next().await.is_some() {} }).await;
        connection.close(codes::SHUTTING_DOWN, SHUTTING_DOWN);
    }
    lanes.shutdown().await;
    peer.place.give_up();
    if !peer.answered.load(Ordering::Acquire) {
        shared.refused(&unheard);
    }
}
