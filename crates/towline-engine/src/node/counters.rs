//! Adapts the engine's counters to the metrics crate, with cached handles.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use towline_metrics::labels::{self, NackDropReason, RejectCause, ReportKind, ReportOutcome};
use towline_metrics::{NodeMetrics, PeerMetrics, RecordTotal};

use crate::core::Reject;
use crate::ids::{GroupId, NodeId};
use crate::lanes::policy::{Depth, DropReason};
use crate::lanes::{LaneCounter, LaneCounters};
use crate::message::Lane;
use crate::reporter::ReportCounter;
use crate::sync::lock;
use crate::transport::{CertRefusal, Nack, NackCause, Refusal};

/// The counters of a node.
pub(crate) struct Counters {
    pub(crate) metrics: NodeMetrics,
    /// Made with the transport that the peer's lanes use, because reports name no transport.
    peers: Mutex<BTreeMap<NodeId, PeerMetrics>>,
    /// Nacks for messages that the shard refused after the lane had taken them. The lane's next answer carries them.
    late: Mutex<BTreeMap<NodeId, Vec<Nack>>>,
}

/// The most late nacks of one peer. More are dropped and counted.
const LATE_NACKS_MAX: usize = 64;

impl Counters {
    pub(crate) fn new(metrics: NodeMetrics) -> Self {
        Self { metrics, peers: Mutex::default(), late: Mutex::default() }
    }

    fn peer(&self, peer: NodeId, scheme: Option<&str>) -> PeerMetrics {
        let mut peers = lock(&self.peers);
        match (peers.get(&peer), scheme) {
            (Some(known), _) => known.clone(),
            (None, None) => self.metrics.other_peers().clone(),
            (None, Some(scheme)) => {
                let made = self.metrics.peer(peer.as_u64(), static_scheme(scheme));
                peers.insert(peer, made.clone());
                made
            }
        }
    }

    /// The metrics of a connection that a peer made over the transport of this scheme.
    pub(crate) fn inbound(&self, peer: NodeId, scheme: &str) -> PeerMetrics {
        self.metrics.peer(peer.as_u64(), static_scheme(scheme))
    }

    /// The byte counter for a snapshot to the peer.
    pub(crate) fn snapshot_sent(&self, peer: NodeId) -> impl RecordTotal + use<> {
        self.peer(peer, None).snapshot_record(labels::Direction::Sent)
    }

    pub(crate) fn rejected(&self, reject: Reject) {
        self.metrics.rejected(match reject {
            Reject::WrongNode => RejectCause::WrongNode,
            Reject::WrongSender | Reject::UnknownPeer => RejectCause::UnknownPeer,
            Reject::KindNotAllowed => RejectCause::NotAllowedKind,
            Reject::BadTerm => RejectCause::BadTerm,
            Reject::TermJump => RejectCause::TermJump,
            Reject::BadEntries => RejectCause::BadEntries,
            Reject::BadIndex | Reject::EntriesLost(_) => RejectCause::BadCommit,
            Reject::BadContext => RejectCause::EmptyReadIndex,
            Reject::RepeatedRound => RejectCause::RepeatedReadIndex,
            Reject::NotLeader => RejectCause::NotLeader,
            Reject::Quiet | Reject::Withheld => RejectCause::Quiet,
            Reject::FoundedDifferently => RejectCause::FoundedDifferently,
            Reject::Full => RejectCause::InboxFull,
            Reject::DiskFull => RejectCause::DiskFull,
            Reject::Installing | Reject::Stalled => RejectCause::NotAllowedKind,
        });
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.metrics.rejected(match refusal {
            Refusal::WrongCluster { .. } => RejectCause::WrongCluster,
            Refusal::WrongNode { .. } => RejectCause::WrongNode,
            Refusal::UnknownPeer { .. } => RejectCause::UnknownPeer,
            Refusal::WrongIncarnation { .. } => RejectCause::WrongIncarnation,
            Refusal::Version { .. } => RejectCause::Version,
            Refusal::Unauthenticated { .. } => RejectCause::Unauthenticated,
            Refusal::Certificate(refusal) => match refusal {
                CertRefusal::Missing => RejectCause::CertificateMissing,
                CertRefusal::UnknownAuthority => RejectCause::CertificateUnknownAuthority,
                CertRefusal::Expired | CertRefusal::NotYetValid => RejectCause::CertificateExpired,
                CertRefusal::NoNode | CertRefusal::OtherNode { .. } => RejectCause::CertificateNode,
                _ => RejectCause::CertificateInvalid,
            },
            Refusal::OwnCertificate(_) => RejectCause::OwnCertificate,
            Refusal::TooManyConnections | Refusal::Displaced => RejectCause::TooManyConnections,
            Refusal::HandshakeTimeout => RejectCause::HandshakeTimeout,
            Refusal::ShuttingDown => RejectCause::ShuttingDown,
            Refusal::Malformed { .. } => RejectCause::Malformed,
        });
    }

    /// Keeps a nack until the peer's lane delivers again.
    pub(crate) fn nack_later(&self, peer: NodeId, nack: Nack) {
        let mut late = lock(&self.late);
        let nacks = late.entry(peer).or_default();
        if nacks.contains(&nack) {
            return;
        }
        if nacks.len() < LATE_NACKS_MAX {
            return nacks.push(nack);
        }
        drop(late);
        self.peer(peer, None).lane(labels::Lane::Append).nacks_dropped(NackDropReason::LateFull, 1);
    }

    /// The late nacks for this lane of the peer. A candidate sends no appends, so the control lane too tells it that it
    /// founded the group with another list.
    pub(crate) fn take_late(&self, peer: NodeId, lane: Lane) -> Vec<Nack> {
        let mut late = lock(&self.late);
        let Some(nacks) = late.get_mut(&peer) else { return Vec::new() };
        let of_lane = |nack: &Nack| lane == Lane::Append || nack.cause == NackCause::FoundedDifferently;
        let (taken, left) = std::mem::take(nacks).into_iter().partition(of_lane);
        *nacks = left;
        taken
    }
}

/// The nack for a message that the group refused after its lane had taken it. `None` if probing does not help the peer.
pub(crate) fn late_nack(group: GroupId, reject: Reject) -> Option<Nack> {
    match reject {
        Reject::Full => Some(Nack { group, cause: NackCause::InboxFull }),
        Reject::DiskFull => Some(Nack { group, cause: NackCause::DiskFull }),
        Reject::BadEntries => Some(Nack { group, cause: NackCause::Rejected }),
        Reject::FoundedDifferently => Some(Nack { group, cause: NackCause::FoundedDifferently }),
        _ => None,
    }
}

/// Metric labels are static, so only known schemes get their own.
fn static_scheme(scheme: &str) -> &'static str {
    match scheme {
        "grpc" => "grpc",
        "quic" => "quic",
        "mem" => "mem",
        _ => labels::OTHER,
    }
}

pub(super) fn lane_label(lane: Lane) -> labels::Lane {
    match lane {
        Lane::Control => labels::Lane::Control,
        Lane::Append => labels::Lane::Append,
    }
}

fn drop_label(reason: DropReason) -> labels::DropReason {
    match reason {
        DropReason::QueueFull => labels::DropReason::QueueFull,
        DropReason::Superseded => labels::DropReason::Superseded,
        DropReason::LinkDown => labels::DropReason::LinkDown,
        DropReason::DispatchFailed => labels::DropReason::DispatchFailed,
        DropReason::DispatchTimeout => labels::DropReason::DispatchTimeout,
        DropReason::UnknownPeer => labels::DropReason::UnknownPeer,
        DropReason::Shutdown => labels::DropReason::Shutdown,
    }
}

impl ReportCounter for Counters {
    fn count(&self, peer: NodeId, kind: ReportKind, outcome: ReportOutcome, n: u64) {
        if outcome == ReportOutcome::AfterClose {
            self.metrics.reports_after_close(n);
        }
        self.peer(peer, None).reports(kind, outcome, n);
    }
}

impl LaneCounters for Counters {
    fn lane(&self, peer: NodeId, scheme: &str, lane: Lane) -> Arc<dyn LaneCounter> {
        Arc::new(LaneHandle { peer: self.peer(peer, Some(scheme)), lane: lane_label(lane) })
    }

    fn unrouted(&self, peer: NodeId, lane: Lane, reason: DropReason) {
        self.peer(peer, None).lane(lane_label(lane)).dropped(drop_label(reason), 1);
    }
}

struct LaneHandle {
    peer: PeerMetrics,
    lane: labels::Lane,
}

impl LaneCounter for LaneHandle {
    fn sent(&self, messages: usize, bytes: usize) {
        let lane = self.peer.lane(self.lane);
        lane.messages_sent(messages as u64);
        lane.payload_bytes_sent(bytes as u64);
        lane.batches_sent(1);
    }

    fn dropped(&self, reason: DropReason, messages: usize) {
        self.peer.lane(self.lane).dropped(drop_label(reason), messages as u64);
    }

    fn connected(&self) {
        self.peer.lane(self.lane).connected();
    }

    fn connect_failed(&self) {
        self.peer.lane(self.lane).connect_failed();
    }

    fn closed(&self) {
        self.peer.lane(self.lane).link_closed();
    }

    fn nack(&self) {
        self.peer.lane(self.lane).nacks_received(1);
    }

    fn depth(&self, depth: Depth) {
        let lane = self.peer.lane(self.lane);
        lane.queue_messages(depth.messages as u64);
        lane.queue_bytes(depth.bytes as u64);
        lane.queue_age(std::time::Duration::from_millis(depth.age_ms));
    }
}

#[cfg(test)]
mod tests;
