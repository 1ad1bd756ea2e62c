//! The listening side: what its connections share, and what is known of each.

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
use super::seats::{Place, Places, Seats, Standing};

/// Hellos of one connection that are refused until it is cut, if none was accepted.
const REFUSED_MAX: usize = 8;

/// How far a listener is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// It accepts.
    Open,
    /// Streams end, with a word to the peer.
    Closing,
    /// Connections are cut.
    Closed,
}

/// Bounds on what a peer may open.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// How long a dialler may take for its hello. A connection without one is [`Unwanted`] at twice of it.
    pub handshake_timeout: Duration,
    /// Connections of one peer; at the bound the oldest is [`Unwanted`]. Those that were let in and those that were not
    /// (yet) are bounded each for themselves.
    pub connections_per_peer_max: usize,
    /// Streams of one peer and lane; at the bound the oldest ends.
    pub streams_per_lane_max: usize,
}

/// What the connections of a listener share.
pub struct Listening {
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) limits: StreamLimits,
    pub(super) lanes: Arc<Seats<(NodeId, Lane), oneshot::Sender<Infallible>>>,
    peers: Arc<Places<NodeId, watch::Sender<()>>>,
    phase: watch::Sender<Phase>,
}

impl Listening {
    /// Open.
    pub fn new(inbound: Arc<dyn Inbound>, limits: StreamLimits) -> Arc<Self> {
        Arc::new(Self {
            inbound,
            limits,
            lanes: Seats::new(limits.streams_per_lane_max),
            peers: Seats::new(limits.connections_per_peer_max),
            phase: watch::Sender::new(Phase::Open),
        })
    }

    /// Moves on, and never back.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    /// Returns when the phase is `phase` or later.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + 'static {
        let mut now = self.phase.subscribe();
        async move {
            // It fails when the listener itself is gone, which is later than every phase.
            let _ = now.wait_for(|now| *now >= phase).await;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        *self.phase.borrow() == Phase::Open
    }

    /// Returns when every [`Caller`] and everybody who waits for a phase is gone.
    pub async fn deserted(&self) {
        self.phase.closed().await;
    }

    /// The transport refused a connection: the engine is told.
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
    heard: watch::Sender<Heard>,
    place: Place<NodeId, watch::Sender<()>>,
    kept: watch::Receiver<()>,
    _alive: watch::Receiver<Phase>,
}

/// What became of its hellos.
#[derive(Debug, Clone, Copy, Default)]
struct Heard {
    admitted: bool,
    refused: usize,
    /// The connection has ended: what streams say of that is no news.
    gone: bool,
}

/// Why a connection is to be cut. The engine was told where it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwanted {
    /// No hello was accepted in time.
    Late,
    /// Newer connections of the same peer took its place.
    Replaced,
    /// Too many hellos were refused.
    Stubborn,
}

impl Unwanted {
    /// As a refusal, for [`Caller::gone`].
    pub fn refusal(self) -> Refusal {
        match self {
            Self::Late => Refusal::HandshakeTimeout,
            Self::Replaced => Refusal::TooManyConnections,
            Self::Stubborn => Refusal::Malformed { detail: self.to_string() },
        }
    }

    /// For whoever is cut.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Late => "no hello within the handshake timeout",
            Self::Replaced => "a newer connection of this peer took the place",
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
    /// Accepted. One that is `surplus` is beyond a bound of the transport, and gets `TooManyConnections` for an answer.
    pub fn new(listening: &Arc<Listening>, surplus: bool) -> Arc<Self> {
        // Nothing is ever sent: what counts is when the sender is dropped.
        let (keeps, kept) = watch::channel(());
        Arc::new(Self {
            listening: Arc::clone(listening),
            surplus,
            identity: OnceLock::new(),
            heard: watch::Sender::default(),
            place: Place::new(keeps),
            kept,
            _alive: listening.phase.subscribe(),
        })
    }

    /// Its certificate says who it is.
    pub fn identify(&self, identity: CertIdentity) {
        self.place.take(&self.listening.peers, identity.node, Standing::Calling);
        let _ = self.identity.set(identity);
    }

    /// Who its certificate says it is. Nobody before TLS has ended, and without TLS.
    pub fn identity(&self) -> Option<&CertIdentity> {
        self.identity.get()
    }

    /// Whether a hello was accepted: the bounds for strangers no longer apply.
    pub fn is_admitted(&self) -> bool {
        self.heard.borrow().admitted
    }

    /// Returns when a hello was accepted.
    pub fn admitted(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut heard = self.heard.subscribe();
        async move {
            if heard.wait_for(|heard| heard.admitted).await.is_err() {
                std::future::pending().await
            }
        }
    }

    pub(super) fn admit(&self, peer: NodeId) {
        self.place.take(&self.listening.peers, peer, Standing::Admitted);
        self.heard.send_modify(|heard| heard.admitted = true);
    }

    /// The transport refused a hello, or what should have been one: the engine is told.
    pub fn refuse(&self, refusal: &Refusal) {
        if !self.heard.borrow().gone {
            self.refused_by_engine();
            self.listening.refused(refusal);
        }
    }

    /// The engine itself refused; it knows.
    pub(super) fn refused_by_engine(&self) {
        self.heard.send_modify(|heard| heard.refused = heard.refused.saturating_add(1));
    }

    /// Returns when newer connections of the same peer took its place.
    pub(super) async fn replaced(&self) {
        let mut kept = self.kept.clone();
        while kept.changed().await.is_ok() {}
    }

    /// Returns when the connection is to be cut, whatever it carries. Its streams have been told by then.
    pub async fn unwanted(&self) -> Unwanted {
        let mut heard = self.heard.subscribe();
        let late = async {
            sleep(self.listening.limits.handshake_timeout * 2).await;
            // Asked when it is due, not when the wait begins.
            if self.is_admitted() {
                std::future::pending().await
            }
        };
        let unwanted = tokio::select! {
            () = late => return Unwanted::Late,
            () = self.replaced() => {
                // Counted whether or not it ever got as far as a hello: a bound was hit.
                self.refuse(&Refusal::TooManyConnections);
                Unwanted::Replaced
            }
            _ = heard.wait_for(|heard| !heard.admitted && heard.refused >= REFUSED_MAX) => Unwanted::Stubborn,
        };
        sleep(FAREWELL).await;
        unwanted
    }

    /// The connection has ended: its place is free, though its streams may live a moment longer. If no hello of it was
    /// answered, the engine is told why.
    pub fn gone(&self, why: &Refusal) {
        let mut before = Heard::default();
        self.heard.send_modify(|heard| {
            before = *heard;
            heard.gone = true;
        });
        if !before.admitted && before.refused == 0 && !before.gone {
            self.listening.refused(why);
        }
        self.place.give_up();
    }
}
