//! The control run of the demo: what happens to a node whose reports about snapshots are lost.

use std::sync::Arc;

use towline::NodeId;
use towline::engine::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};

/// Passes on that messages were lost, and nothing about snapshots.
pub(crate) struct LosesOutcomes(pub(crate) Arc<dyn Reporter>);

impl Reporter for LosesOutcomes {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.0.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {}
}
