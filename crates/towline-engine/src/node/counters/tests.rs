use towline_metrics::exporter::Exporter;

use super::*;

#[test]
fn late_nacks_beyond_the_bound_are_counted_and_repeated_nacks_are_not() {
    let exporter = Exporter::new();
    let counters = Counters::new(NodeMetrics::new(1, Some(exporter.recorder())));
    let peer = NodeId::new(2).unwrap();
    let _lane = counters.lane(peer, "grpc", Lane::Append);
    let nack = |group: usize| Nack { group: GroupId::new(group as u64), cause: NackCause::InboxFull };
    for group in 0..LATE_NACKS_MAX + 2 {
        counters.nack_later(peer, nack(group));
    }
    counters.nack_later(peer, nack(0));
    assert_eq!(counters.take_late(peer, Lane::Append).len(), LATE_NACKS_MAX);
    let series = "towline_nacks_dropped_total{node=\"1\",peer=\"2\",transport=\"grpc\",lane=\"append\",\
                  reason=\"late_full\"} 2";
    let scrape = exporter.render();
    assert!(scrape.lines().any(|line| line == series), "{scrape}");
}
