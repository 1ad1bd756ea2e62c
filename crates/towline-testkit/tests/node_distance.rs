//! Linearizable reads on nodes with a long round trip.

use crate::common::*;

/// One heartbeat interval.
const ROUND_TRIP: Duration = Duration::from_millis(100);

/// At this distance every read failed: the readers had begun the next round before the answers of a round arrived.
#[tokio::test(flavor = "multi_thread")]
async fn reads_at_the_leader_and_at_a_follower_succeed_at_a_round_trip_of_a_heartbeat_interval() {
    let distant = DistantCluster::start(ROUND_TRIP).await;
    for (node, round_trips) in [(distant.cluster.leader(1).await, 1), (distant.follower().await, 2)] {
        let latencies = distant.read(node, 100).await;
        assert!(latencies.failed.is_empty(), "{} of 100: {:?}", latencies.failed.len(), latencies.failed[0]);
        let median = latencies.percentile(50);
        assert!(median >= round_trips * ROUND_TRIP, "{median:?}: no read is faster than its round");
    }
}
