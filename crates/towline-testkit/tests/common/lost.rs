//! A reporter that loses every outcome of a snapshot, also those that the watchdog reports.

use super::*;

struct LosesOutcomes(Arc<dyn Reporter>);

impl Reporter for LosesOutcomes {
    fn report_unreachable(&self, peer: NodeId, scope: Scope, cause: UnreachableCause) {
        self.0.report_unreachable(peer, scope, cause);
    }

    fn report_snapshot(&self, _: SnapshotAttempt, _: SnapshotStatus) {}
}

/// For [`Plan::customise`](towline_testkit::cluster::Plan::customise): Raft never gets the outcome of a snapshot.
pub(crate) fn outcomes(_: NodeId, builder: NodeBuilder) -> NodeBuilder {
    builder.reporter(|own| Arc::new(LosesOutcomes(own)))
}
