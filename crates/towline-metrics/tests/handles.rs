//! Counting through the handles, as the engine does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test may stop at once")]

use std::time::Duration;

use crate::common::Memory;
use towline_metrics::labels::*;
use towline_metrics::{CountingReader, GROUPS_MAX, NodeMetrics, PEERS_MAX};

const MS: Duration = Duration::from_millis(1);

#[test]
fn each_label_value_has_its_own_series() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let (peer, group) = (node.peer(2, "grpc"), node.group(9));
    let number = |position: usize| position as u64 + 1;
    for (i, cause) in RejectCause::ALL.iter().enumerate() {
        (0..number(i)).for_each(|_| node.rejected(*cause));
    }
    for (i, outcome) in ProposalOutcome::ALL.iter().enumerate() {
        group.proposals(*outcome, number(i));
    }
    for (i, lane) in Lane::ALL.iter().enumerate() {
        for (j, reason) in DropReason::ALL.iter().enumerate() {
            peer.lane(*lane).dropped(*reason, number(10 * i + j));
        }
    }
    for (i, kind) in ReportKind::ALL.iter().enumerate() {
        for (j, outcome) in ReportOutcome::ALL.iter().enumerate() {
            peer.reports(*kind, *outcome, number(10 * i + j));
        }
    }
    for (i, direction) in Direction::ALL.iter().enumerate() {
        for (j, outcome) in SnapshotOutcome::ALL.iter().enumerate() {
            peer.snapshot_ended(*direction, *outcome, number(10 * i + j));
        }
    }

    for (i, cause) in RejectCause::ALL.iter().enumerate() {
        let series = format!("towline_inbound_rejects_total{{node=1,cause={cause}}}");
        assert_eq!(memory.value(&series), number(i) as f64, "{series}");
    }
    for (i, outcome) in ProposalOutcome::ALL.iter().enumerate() {
        let series = format!("towline_proposals_total{{node=1,group=9,outcome={outcome}}}");
        assert_eq!(memory.value(&series), number(i) as f64, "{series}");
    }
    for (i, lane) in Lane::ALL.iter().enumerate() {
        for (j, reason) in DropReason::ALL.iter().enumerate() {
            let labels = format!("node=1,peer=2,transport=grpc,lane={lane},reason={reason}");
            let series = format!("towline_messages_dropped_total{{{labels}}}");
            assert_eq!(memory.value(&series), number(10 * i + j) as f64, "{series}");
        }
    }
    for (i, kind) in ReportKind::ALL.iter().enumerate() {
        for (j, outcome) in ReportOutcome::ALL.iter().enumerate() {
            let series = format!("towline_reports_total{{node=1,peer=2,kind={kind},outcome={outcome}}}");
            assert_eq!(memory.value(&series), number(10 * i + j) as f64, "{series}");
        }
    }
    for (i, direction) in Direction::ALL.iter().enumerate() {
        for (j, outcome) in SnapshotOutcome::ALL.iter().enumerate() {
            let labels = format!("{{node=1,peer=2,transport=grpc,direction={direction},outcome={outcome}}}");
            let bytes = memory.value(&format!("towline_snapshot_payload_bytes_total{labels}"));
            assert_eq!(bytes, number(10 * i + j) as f64, "{labels}");
            assert_eq!(memory.value(&format!("towline_snapshot_transfers_total{labels}")), 1.0, "{labels}");
        }
    }
}

#[test]
fn lane_handles_reach_their_own_metrics() {
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
fn group_and_node_handles_reach_their_own_metrics() {
    let memory = Memory::new();
    let node = NodeMetrics::new(1, Some(memory.shared()));
    let group = node.group(9);
    group.term(1);
    group.role(GroupRole::Quarantined);
    group.commit(2);
    group.applied(3);
    group.last_index(5);
    (0..6).for_each(|_| group.leader_changed());
    (0..7).for_each(|_| group.campaigned());
    (0..8).for_each(|_| group.unreadable());
    group.proposal_bytes(8);
    group.proposal_time(MS);
    group.commit_time(2 * MS);
    group.apply(3 * MS, 64);
    group.read_served(4 * MS);
    (0..2).for_each(|_| group.read_failed());
    let value = |name: &str| memory.value(&format!("towline_{name}{{node=1,group=9}}"));
    let values = ["group_term", "group_role", "group_commit_index", "group_applied_index"].map(value);
    assert_eq!(values, [1.0, 4.0, 2.0, 3.0]);
    let values = ["group_last_index", "group_leader_changes_total", "campaigns_total"].map(value);
    assert_eq!(values, [5.0, 6.0, 7.0]);
    assert_eq!(value("proposal_payload_bytes_total"), 8.0);
    assert_eq!(value("group_unreadable_total"), 8.0);
    let sample = |name: &str| memory.samples(&format!("towline_{name}{{node=1,group=9}}"));
    assert_eq!(sample("proposal_seconds"), [0.001]);
    assert_eq!(sample("commit_seconds"), [0.002]);
    assert_eq!(sample("apply_seconds"), [0.003]);
    assert_eq!(sample("apply_batch_entries"), [64.0]);
    assert_eq!(sample("read_seconds"), [0.004]);
    assert_eq!(memory.value("towline_reads_total{node=1,group=9,outcome=served}"), 1.0);
    assert_eq!(memory.value("towline_reads_total{node=1,group=9,outcome=failed}"), 2.0);

    node.log_write(5 * MS, 4096, 3);
    node.log_poisoned();
    node.shard_turn(6 * MS);
    node.ticks_skipped(4);
    node.reports_after_close(1);
    assert_eq!(memory.value("towline_log_writes_total{node=1}"), 1.0);
    assert_eq!(memory.samples("towline_log_write_seconds{node=1}"), [0.005]);
    assert_eq!(memory.samples("towline_log_write_bytes{node=1}"), [4096.0]);
    assert_eq!(memory.samples("towline_log_write_batches{node=1}"), [3.0]);
    assert_eq!(memory.value("towline_log_poisoned_total{node=1}"), 1.0);
    assert_eq!(memory.value("towline_shard_turns_total{node=1}"), 1.0);
    assert_eq!(memory.samples("towline_shard_turn_seconds{node=1}"), [0.006]);
    assert_eq!(memory.value("towline_ticks_skipped_total{node=1}"), 4.0);
    assert_eq!(memory.value("towline_reports_after_close_total{node=1}"), 1.0);
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
    assert!(!memory.recorded().values.contains_key(gauge), "a gauge shared by many would lie");
    node.peer(3, "grpc").lane(Lane::Append).messages_sent(4);
    assert_eq!(memory.value(overflow), 3.0, "those within the bound keep their own");
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
fn a_snapshot_reader_records_into_its_peer() {
    let memory = Memory::new();
    let peer = NodeMetrics::new(1, Some(memory.shared())).peer(2, "grpc");
    let mut reader = CountingReader::new(&[0; 100][..], peer.snapshot_record(Direction::Sent));
    std::io::copy(&mut reader, &mut std::io::sink()).unwrap();
    let labels = "{node=1,peer=2,transport=grpc,direction=sent,outcome=finished}";
    assert_eq!(memory.value(&format!("towline_snapshot_payload_bytes_total{labels}")), 0.0);
    assert_eq!(reader.finish(SnapshotOutcome::Finished), 100);
    assert_eq!(memory.value(&format!("towline_snapshot_payload_bytes_total{labels}")), 100.0);
    assert_eq!(memory.value(&format!("towline_snapshot_transfers_total{labels}")), 1.0);
}

#[test]
fn handles_cross_threads() {
    fn shareable<T: Clone + Send + Sync + 'static>() {}
    shareable::<NodeMetrics>();
    shareable::<towline_metrics::PeerMetrics>();
    shareable::<towline_metrics::GroupMetrics>();
    shareable::<towline_metrics::ByteCount>();
}
