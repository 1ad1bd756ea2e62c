//! The listening side: state shared by the connections of a listener, and the state of each connection.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use towline_engine::ids::NodeId;
use towline_engine::message::Lane;
use towline_engine::transport::{CertIdentity, Inbound, Refusal};

use super::FAREWELL;
use super::slots::{ConnectionSlot, ConnectionSlots, Slots, Standing};

/// After this many refused hellos a connection with no accepted hello is closed.
const REFUSED_MAX: usize = 8;

/// The phases of a listener's shutdown, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// The listener accepts connections.
    Open,
    /// Streams end with a final frame to the peer.
    Closing,
    /// Connections are closed.
    Closed,
}

/// Bounds on what a peer may open.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// How long a dialler may take for its hello. A connection without an accepted hello is [`Unwanted`] after twice this
    /// time.
    pub handshake_timeout: Duration,
    /// Connections of one peer; above the bound the oldest is [`Unwanted`]. Admitted and not yet admitted connections are
    /// counted separately.
    pub connections_per_peer_max: usize,
    /// Streams of one peer and lane; above the bound the oldest ends.
    pub streams_per_lane_max: usize,
}

/// State shared by all connections of one listener.
pub struct Listening {
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) limits: StreamLimits,
    pub(super) lanes: Arc<Slots<(NodeId, Lane), oneshot::Sender<Infallible>>>,
    peers: Arc<ConnectionSlots<NodeId, watch::Sender<()>>>,
    phase: watch::Sender<Phase>,
}

impl Listening {
    /// Creates a listener's shared state, in [`Phase::Open`].
    pub fn new(inbound: Arc<dyn Inbound>, limits: StreamLimits) -> Arc<Self> {
        Arc::new(Self {
            inbound,
            limits,
            lanes: Slots::new(limits.streams_per_lane_max),
            peers: Slots::new(limits.connections_per_peer_max),
            phase: watch::Sender::new(Phase::Open),
        })
    }

    /// Enters `phase`. Does nothing if the listener is already in a later phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Returns when the listener is in `phase` or a later one.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + 'static {
        let mut now = self.phase.subscribe();
        async move {
            // An error means that the listener was dropped, which is later than every phase.
            let _ = now.wait_for(|now| *now >= phase).await;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.phase.borrow() == Phase::Open
    }

    /// Returns when every [`Caller`] and every future of [`reached`](Self::reached) was dropped.
    pub async fn deserted(&self) {
        self.phase.closed().await;
    }

    /// Reports a connection that the transport refused to the engine.
    pub fn refused(&self, refusal: &Refusal) {
        tracing::debug!(%refusal, "connection refused");
        self.inbound.refused(refusal);
    }
}

/// One accepted connection.
pub struct Caller {
    pub(super) listening: Arc<Listening>,
    pub(super) surplus: bool,
    identity: OnceLock<CertIdentity>,
    hellos: watch::Sender<Hellos>,
    slot: ConnectionSlot<NodeId, watch::Sender<()>>,
    kept: watch::Receiver<()>,
    _alive: watch::Receiver<Phase>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Hellos {
    admitted: bool,
    refused: usize,
    /// The connection has ended, so later errors of its streams are not reported.
    gone: bool,
}

/// Why the transport must close a connection. Where the engine needs a report, it already has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// No hello was accepted in time.
    Late,
    /// Newer connections of the same peer took its slot.
    Replaced,
    /// Too many hellos were refused.
    Stubborn,
}

impl Unwanted {
    /// The matching refusal, for [`Caller::gone`].
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Late => Refusal::HandshakeTimeout,
            Self::Replaced => Refusal::TooManyConnections,
            Self::Stubborn => Refusal::Malformed { detail: self.to_string() },
        }
    }

    /// The reason text that the transport sends to the peer when it closes the connection.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Late => "no hello within the handshake timeout",
            Self::Replaced => "a newer connection of this peer displaced this one",
            Self::Stubborn => "too many hellos were refused",
        }
    }
}

impl fmt::Display for Unwanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Caller {
    /// Registers an accepted connection. A `surplus` connection exceeds a bound of the transport; its hello is answered
    /// with `TooManyConnections`.
    pub fn new(listening: &Arc<Listening>, surplus: bool) -> Arc<Self> {
        // The channel carries no value; the receiver waits for the drop of the sender.
        let (keeps, kept) = watch::channel(());
        Arc::new(Self {
            listening: Arc::clone(listening),
            surplus,
            identity: OnceLock::new(),
            hellos: watch::Sender::default(),
            slot: ConnectionSlot::new(keeps),
            kept,
            _alive: listening.phase.subscribe(),
        })
    }

    /// Stores the identity that the peer's certificate states, and counts the connection for that peer.
    pub fn identify(&self, identity: CertIdentity) {
        self.slot.take(&self.listening.peers, identity.node, Standing::Pending);
        let _ = self.identity.set(identity);
    }

    /// The identity that the peer's certificate states. `None` until the TLS handshake ends, and without TLS.
    pub fn identity(&self) -> Option<&CertIdentity> {
        self.identity.get()
    }

    /// Whether a hello was accepted. The bounds for unknown peers then no longer apply.
    pub fn is_admitted(&self) -> bool {
        self.hellos.borrow().admitted
    }

    /// Returns when a hello was accepted.
    pub fn admitted(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut hellos = self.hellos.subscribe();
        async move {
            if hellos.wait_for(|hellos| hellos.admitted).await.is_err() {
                std::future::pending().await
            }
        }
    }

    pub(super) fn admit(&self, peer: NodeId) {
        self.slot.take(&self.listening.peers, peer, Standing::Admitted);
        self.hellos.send_modify(|hellos| hellos.admitted = true);
    }

    /// Reports to the engine that the transport refused a hello, or another frame in its place.
    pub fn refuse(&self, refusal: &Refusal) {
        if !self.hellos.borrow().gone {
            self.refused_by_engine();
            self.listening.refused(refusal);
        }
    }

    /// Counts a hello that the engine itself refused. The engine needs no report.
    pub(super) fn refused_by_engine(&self) {
        self.hellos.send_modify(|hellos| hellos.refused = hellos.refused.saturating_add(1));
    }

    /// Returns when newer connections of the same peer displaced this one.
    pub(super) async fn replaced(&self) {
        let mut kept = self.kept.clone();
        while kept.changed().await.is_ok() {}
    }

    /// Returns when the transport must close the connection. By then its streams have sent their final frames.
    pub async fn unwanted(&self) -> Unwanted {
        let mut hellos = self.hellos.subscribe();
        let late = async {
            sleep(self.listening.limits.handshake_timeout.saturating_mul(2)).await;
            // Checked after the wait: a hello may have been accepted meanwhile.
            if self.is_admitted() {
                std::future::pending().await
            }
        };
        let unwanted = tokio::select! {
            () = late => return Unwanted::Late,
            () = self.replaced() => {
                // Reported even if no hello ever came: a bound was hit.
                self.refuse(match self.is_admitted() {
                    true => &Refusal::Displaced,
                    false => &Refusal::TooManyConnections,
                });
                Unwanted::Replaced
            }
            _ = hellos.wait_for(|hellos| !hellos.admitted && hellos.refused >= REFUSED_MAX) => Unwanted::Stubborn,
        };
        sleep(FAREWELL).await;
        unwanted
    }

    /// Ends the connection and frees its slot; its streams may live a moment longer. Reports `why` to the engine if no
    /// hello of this connection was answered.
    pub fn gone(&self, why: &Refusal) {
        let mut before = Hellos::default();
        self.hellos.send_modify(|hellos| {
            before = *hellos;
            hellos.gone = true;
        });
        if !before.admitted && before.refused == 0 && !before.gone {
            self.listening.refused(why);
        }
        self.slot.release();
    }
}
