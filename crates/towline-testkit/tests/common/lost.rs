//! A reporter that loses what is said about snapshots, the watchdog's word too.

use std::sync::Arc;

use towline_engine::ids::NodeId;
use towline_engine::node::NodeBuilder;
use towline_engine::reporter::{Reporter, Scope, SnapshotAttempt, SnapshotStatus, UnreachableCause};

struct LosesOutcomes(Arc<dyn Reporter>);

impl Reporter for LosesOutcomes {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.0.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {}
}

/// For [`Plan::customise`](towline_testkit::cluster::Plan::customise): Raft never hears how a snapshot ended.
pub(crate) fn outcomes(_: NodeId, builder: NodeBuilder) -> NodeBuilder {
    builder.reporter(|own| Arc::new(LosesOutcomes(own)))
}
