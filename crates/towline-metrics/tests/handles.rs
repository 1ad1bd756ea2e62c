//! Counting through the handles.

use std::fmt::Display;
use std::time::Duration;

use crate::common::Memory;
use towline_metrics::labels::*;
use towline_metrics::{ByteTally, GROUPS_MAX, NodeMetrics, PEERS_MAX};

const MS: Duration = Duration::from_millis(1);

/// Calls `add` with each pair of labels and another number. Returns the expected value of each series.
fn pairs<A: Copy + Display, B: Copy + Display>(
    all: (&[A], &[B]),
    add: impl Fn(A, B, u64),
    series: impl Fn(A, B) -> String,
) -> Vec<(String, f64)> {
    let pairs = all.0.iter().flat_map(|a| all.1.iter().map(move |b| (*a, *b)));
    let numbered = pairs.zip(1..).map(|((a, b), number)| {
        add(a, b, number);
        (series(a, b), number as f64)
    });
    numbered.collect()
}

#[test]
fn each_label_value_has_its_own_series() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let (peer, group) = (node.peer(2, "grpc"), node.group(9));
    let link = "node=1,peer=2,transport=grpc";
    let expected = [
        pairs(
            (RejectCause::ALL, &[""]),
            |cause, _, n| (0..n).for_each(|_| node.rejected(cause)),
            |cause, _| format!("towline_inbound_rejects_total{{node=1,cause={cause}}}"),
        ),
        pairs(
            (ProposalOutcome::ALL, &[""]),
            |outcome, _, n| group.proposals(outcome, n),
            |outcome, _| format!("towline_proposals_total{{node=1,group=9,outcome={outcome}}}"),
        ),
        pairs(
            (Lane::ALL, DropReason::ALL),
            |lane, reason, n| peer.lane(lane).dropped(reason, n),
            |lane, reason| format!("towline_messages_dropped_total{{{link},lane={lane},reason={reason}}}"),
        ),
        pairs(
            (ReportKind::ALL, ReportOutcome::ALL),
            |kind, outcome, n| peer.reports(kind, outcome, n),
            |kind, outcome| format!("towline_reports_total{{node=1,peer=2,kind={kind},outcome={outcome}}}"),
        ),
        pairs(
            (Direction::ALL, SnapshotOutcome::ALL),
            |direction, outcome, n| peer.snapshot_ended(direction, outcome, n),
            |to, outcome| {
                format!("towline_snapshot_payload_bytes_total{{{link},direction={to},outcome={outcome}}}")
            },
        ),
    ];
    for (series, value) in expected.concat() {
        assert_eq!(memory.value(&series), value, "{series}");
        let transfers = series.replace("payload_bytes", "transfers");
        assert!(transfers == series || memory.value(&transfers) == 1.0, "{transfers}");
    }
}

#[test]
fn each_lane_handle_updates_its_metric() {
    let memory = Memory::new();
    let peer = NodeMetrics::new(1, Some(memory.shared())).peer(2, "quic");
    let lane = peer.lane(Lane::Append);
    lane.messages_sent(1);
    lane.messages_received(2);
    lane.payload_bytes_sent(3);
    lane.payload_bytes_received(4);
    lane.batches_sent(5);
    lane.nacks_received(6);
    lane.nacks_sent(7);
    (0..8).for_each(|_| lane.connected());
    (0..9).for_each(|_| lane.connect_failed());
    (0..10).for_each(|_| lane.link_closed());
    lane.queue_messages(11);
    lane.queue_bytes(12);
    lane.queue_age(13 * MS);
    lane.queue_messages(14);
    let expected = [
        ("messages_sent_total", 1.0),
        ("messages_received_total", 2.0),
        ("payload_sent_bytes_total", 3.0),
        ("payload_received_bytes_total", 4.0),
        ("batches_sent_total", 5.0),
        ("nacks_received_total", 6.0),
        ("nacks_sent_total", 7.0),
        ("link_connects_total", 8.0),
        ("link_connect_failures_total", 9.0),
        ("links_closed_total", 10.0),
        ("queue_messages", 14.0),
        ("queue_bytes", 12.0),
        ("queue_age_seconds", 0.013),
    ];
    for (name, value) in expected {
        let labels = |lane: Lane| format!("towline_{name}{{node=1,peer=2,transport=quic,lane={lane}}}");
        assert_eq!(memory.value(&labels(Lane::Append)), value, "{name}");
        assert_eq!(memory.value(&labels(Lane::Control)), 0.0, "{name}");
    }
}

#[test]
fn each_group_and_node_handle_updates_its_metric() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let group = node.group(9);
    group.term(1);
    group.role(GroupRole::Quarantined);
    group.commit(2);
    group.applied(3);
    group.last_index(5);
    group.waiting(&[WaitKind::Apply, WaitKind::Silent]);
    group.waiting(&[WaitKind::Silent]);
    (0..6).for_each(|_| group.leader_changed());
    (0..7).for_each(|_| group.campaigned());
    (0..9).for_each(|_| group.unreadable());
    group.proposal_bytes(8);
    group.proposal_time(MS);
    group.commit_time(2 * MS);
    group.apply(3 * MS, 64);
    group.read_served(4 * MS);
    (0..2).for_each(|_| group.read_failed());
    node.log_write(5 * MS, 4096, 3);
    node.log_poisoned();
    node.disk(4_096, true);
    (0..3).for_each(|_| node.disk_look_failed());
    node.shard_turn(6 * MS);
    node.ticks_skipped(4);
    node.reports_after_close(1);
    for (series, value) in [
        ("group_term{node=1,group=9}", 1.0),
        ("group_role{node=1,group=9}", 4.0),
        ("group_commit_index{node=1,group=9}", 2.0),
        ("group_applied_index{node=1,group=9}", 3.0),
        ("group_last_index{node=1,group=9}", 5.0),
        ("group_waiting{node=1,group=9,cause=apply}", 0.0),
        ("group_waiting{node=1,group=9,cause=silent}", 1.0),
        ("group_leader_changes_total{node=1,group=9}", 6.0),
        ("campaigns_total{node=1,group=9}", 7.0),
        ("group_unreadable_total{node=1,group=9}", 9.0),
        ("proposal_payload_bytes_total{node=1,group=9}", 8.0),
        ("reads_total{node=1,group=9,outcome=served}", 1.0),
        ("reads_total{node=1,group=9,outcome=failed}", 2.0),
        ("log_writes_total{node=1}", 1.0),
        ("log_poisoned_total{node=1}", 1.0),
        ("disk_free_bytes{node=1}", 4_096.0),
        ("disk_low{node=1}", 1.0),
        ("disk_looks_failed_total{node=1}", 3.0),
        ("shard_turns_total{node=1}", 1.0),
        ("ticks_skipped_total{node=1}", 4.0),
        ("reports_after_close_total{node=1}", 1.0),
    ] {
        assert_eq!(memory.value(&format!("towline_{series}")), value, "{series}");
    }
    for (series, sample) in [
        ("proposal_seconds{node=1,group=9}", 0.001),
        ("commit_seconds{node=1,group=9}", 0.002),
        ("apply_seconds{node=1,group=9}", 0.003),
        ("apply_batch_entries{node=1,group=9}", 64.0),
        ("read_seconds{node=1,group=9}", 0.004),
        ("log_write_seconds{node=1}", 0.005),
        ("log_write_bytes{node=1}", 4096.0),
        ("log_write_batches{node=1}", 3.0),
        ("shard_turn_seconds{node=1}", 0.006),
    ] {
        assert_eq!(memory.samples(&format!("towline_{series}")), [sample], "{series}");
    }
}

#[test]
fn handles_are_made_once() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let (first, group) = (node.peer(2, "grpc"), node.group(1));
    let made = memory.recorded().registrations;
    first.lane(Lane::Control).messages_sent(1);
    node.clone().peer(2, "grpc").lane(Lane::Control).messages_sent(1);
    group.campaigned();
    node.group(1).campaigned();
    assert_eq!(memory.recorded().registrations, made);
    let series = "towline_messages_sent_total{node=1,peer=2,transport=grpc,lane=control}";
    assert_eq!(memory.value(series), 2.0);
    let _ = node.peer(2, "quic");
    assert!(memory.recorded().registrations > made, "another transport has handles of its own");
}

#[test]
fn nodes_of_one_process_stay_apart() {
    let (shared, own) = (Memory::new(), Memory::new());
    let one = NodeMetrics::new(1, Some(shared.shared()));
    let two = NodeMetrics::new(2, Some(shared.shared()));
    let three = NodeMetrics::new(3, Some(own.shared()));
    one.ticks_skipped(1);
    two.ticks_skipped(2);
    three.ticks_skipped(3);
    assert_eq!(shared.value("towline_ticks_skipped_total{node=1}"), 1.0);
    assert_eq!(shared.value("towline_ticks_skipped_total{node=2}"), 2.0);
    assert_eq!(own.value("towline_ticks_skipped_total{node=3}"), 3.0);
    assert!(!shared.recorded().values.keys().any(|series| series.contains("node=3")));
}

#[test]
fn without_a_recorder_handles_go_to_the_one_installed_when_they_are_made() {
    let memory = Memory::new();
    let early = NodeMetrics::new(1, None);
    let early_group = early.group(1);
    metrics::with_local_recorder(&memory, || {
        early.ticks_skipped(1);
        early_group.campaigned();
        assert!(memory.recorded().values.is_empty(), "a handle made before the recorder is a no-op for ever");
        early.group(2).campaigned();
        NodeMetrics::new(2, None).ticks_skipped(5);
    });
    assert_eq!(memory.value("towline_campaigns_total{node=1,group=2}"), 1.0);
    assert_eq!(memory.value("towline_ticks_skipped_total{node=2}"), 5.0);
}

#[test]
fn noop_metrics_reach_no_recorder() {
    let memory = Memory::new();
    metrics::with_local_recorder(&memory, || {
        let node = NodeMetrics::noop();
        node.ticks_skipped(1);
        node.peer(1, "grpc").lane(Lane::Append).messages_sent(1);
        node.group(1).campaigned();
    });
    assert_eq!(memory.recorded().registrations, 0);
}

#[test]
fn peers_past_the_bound_share_one_handle_and_are_counted() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let overflow = "towline_metrics_overflow_total{node=1,table=peers}";
    (0..PEERS_MAX as u64).for_each(|peer| drop(node.peer(peer, "grpc")));
    assert_eq!(memory.value(overflow), 0.0);
    let made = memory.recorded().registrations;
    for peer in [1_000, 1_001, 1_000] {
        let extra = node.peer(peer, "grpc");
        extra.lane(Lane::Append).messages_sent(1);
        extra.lane(Lane::Append).queue_messages(9);
    }
    let made = memory.recorded().registrations - made;
    assert!(made < 150, "one shared handle only, not {made} series");
    assert_eq!(memory.value(overflow), 3.0);
    let shared = "towline_messages_sent_total{node=1,peer=other,transport=other,lane=append}";
    assert_eq!(memory.value(shared), 3.0);
    let gauge = "towline_queue_messages{node=1,peer=other,transport=other,lane=append}";
    assert!(!memory.recorded().values.contains_key(gauge), "a gauge with several owners");
    node.peer(3, "grpc").lane(Lane::Append).messages_sent(4);
    assert_eq!(memory.value(overflow), 3.0, "peers within the bound keep their own handles");
    node.other_peers().lane(Lane::Append).messages_sent(1);
    assert_eq!(memory.value(shared), 4.0);
}

#[test]
fn groups_past_the_bound_share_one_handle_and_are_counted() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    (0..GROUPS_MAX as u64).for_each(|group| drop(node.group(group)));
    for group in [1_000_000, 1_000_001] {
        node.group(group).campaigned();
        node.group(group).term(7);
    }
    assert_eq!(memory.value("towline_metrics_overflow_total{node=1,table=groups}"), 4.0);
    assert_eq!(memory.value("towline_campaigns_total{node=1,group=other}"), 2.0);
    assert!(!memory.recorded().values.contains_key("towline_group_term{node=1,group=other}"));
}

#[test]
fn a_tally_records_into_its_peer() {
    let memory = Memory::new();
    let peer = NodeMetrics::new(1, Some(memory.shared())).peer(2, "grpc");
    let tally = ByteTally::new(peer.snapshot_record(Direction::Sent));
    tally.add(100);
    let labels = "{node=1,peer=2,transport=grpc,direction=sent,outcome=finished}";
    assert_eq!(memory.value(&format!("towline_snapshot_payload_bytes_total{labels}")), 0.0);
    assert_eq!(tally.finish(SnapshotOutcome::Finished), 100);
    assert_eq!(memory.value(&format!("towline_snapshot_payload_bytes_total{labels}")), 100.0);
    assert_eq!(memory.value(&format!("towline_snapshot_transfers_total{labels}")), 1.0);
}

#[test]
fn handles_are_shareable_between_threads() {
    fn shareable<T: Clone + Send + Sync + 'static>() {}
    shareable::<NodeMetrics>();
    shareable::<towline_metrics::PeerMetrics>();
    shareable::<towline_metrics::GroupMetrics>();
}
