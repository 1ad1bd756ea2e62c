//! The workers over a scripted transport, in virtual time.

mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::Level;

use self::scripted::{Does, LaneKey, ScriptedTransport, UnreachableReport, append, message, node, peer};
use super::Lanes;
use super::policy::{Depth, DropReason};
use crate::config::Config;
use crate::ids::{GroupId, NodeId};
use crate::message::{Lane, LostEntries, MessageKind};
use crate::reporter::{Scope, UnreachableCause};
use crate::subscriber_double::OnEvent;
use crate::transport::{Nack, NackCause};
use crate::units::ByteSize;

const NODE_2: NodeId = match NodeId::new(2) {
    Some(id) => id,
    None => panic!(),
};
const APPENDS: LaneKey = (NODE_2, Lane::Append);
const CONTROL: LaneKey = (NODE_2, Lane::Control);

/// Moves the paused clock.
async fn pass(time: Duration) {
    sleep(time).await; // not synchronisation: moves the paused clock
}

/// Long enough, in virtual time, for anything that a worker still does.
async fn pass_quiet_time() {
    pass(Duration::from_millis(900)).await;
}

fn small() -> Config {
    Config { lane_append_messages_max: 4, append_inflight_max: 4, lane_reads_max: 2, ..Config::default() }
}

/// Connected lanes. The dispatch of an append to node 2 hangs.
async fn hanging_lanes(config: Config) -> (ScriptedTransport, Lanes) {
    let script = ScriptedTransport::dispatching(Does::Hang, &[APPENDS]);
    let lanes = script.connected(config).await;
    lanes.send_many([append(2, 1, 0)]);
    script.until(|s| s.batches.contains_key(&APPENDS)).await;
    (script, lanes)
}

/// A report that all messages to node 2 are lost.
fn node_lost(cause: UnreachableCause) -> UnreachableReport {
    (NODE_2, Scope::Node, cause)
}

/// A report that messages of one group to a node are lost.
fn group_lost(to: u64, group: u64, cause: UnreachableCause) -> UnreachableReport {
    (node(to), Scope::Group(GroupId::new(group)), cause)
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_lane_arrive_in_order_across_batches() {
    let small = Config { lane_batch_bytes_max: ByteSize::bytes(500), ..Config::default() };
    // A burst is one batch, if it fits.
    for (config, batches) in [(small, 31..=100), (Config::default(), 1..=1)] {
        let script = ScriptedTransport::default();
        let lanes = script.connected(config).await;
        lanes.send_many((0..100).map(|term| append(2, term % 3, term)));
        script.until_delivered(100).await;
        assert_eq!(script.terms(APPENDS), (0..100).collect::<Vec<_>>());
        assert!(batches.contains(&script.with(|s| s.batches[&APPENDS])));
        assert_eq!(script.with(|s| s.sent[&Lane::Append]), (100, 1_000));
        assert_eq!(script.with(|s| s.depth[&APPENDS]), Depth::default());
        assert!(script.reports().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_append_lane_drops_counts_and_reports_the_group_once_a_burst() {
    let (script, lanes) = hanging_lanes(small()).await;
    lanes.send_many((0..4).map(|term| append(2, 1, term)).chain([append(2, 7, 4), append(2, 7, 5)]));
    assert_eq!(script.dropped(Lane::Append, DropReason::QueueFull), 2);
    assert_eq!(script.reports(), [group_lost(2, 7, UnreachableCause::QueueFull)]);
    assert_eq!(script.with(|s| s.depth[&APPENDS].messages), 4);
}

#[tokio::test(start_paused = true)]
async fn the_death_of_an_idle_link_that_took_a_batch_is_one_incident() {
    let script = ScriptedTransport::default();
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 1), append(2, 2, 1)]);
    script.until_delivered(2).await;
    script.with(|s| s.connect.insert(APPENDS, Does::Fail));
    script.kill(APPENDS);
    pass_quiet_time().await;
    assert!(script.with(|s| s.connect_failed) > 1, "it tries again, which is no new incident");
    assert_eq!(script.reports(), [node_lost(UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn the_death_of_an_unused_link_or_a_control_link_is_not_reported() {
    let script = ScriptedTransport::default();
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([message(2, 1, MessageKind::Heartbeat, 1)]);
    script.until_delivered(1).await;
    script.kill(CONTROL);
    script.kill((node(3), Lane::Append));
    script.until(|s| s.connected.values().sum::<usize>() == 6).await;
    assert_eq!((script.reports(), script.with(|s| s.closed)), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn appends_without_a_link_are_dropped_and_reported() {
    let script = ScriptedTransport::connecting(Does::Fail, &[APPENDS]);
    let lanes = script.lanes_to_one_peer(Config::default());
    script.until(|s| s.connect_failed > 2).await;
    assert_eq!(script.reports(), [node_lost(UnreachableCause::ConnectFailed)]);
    lanes.send_many([append(2, 5, 1), append(2, 5, 2)]);
    assert_eq!(script.dropped(Lane::Append, DropReason::LinkDown), 2);
    assert_eq!(script.reports()[1..], [group_lost(2, 5, UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn a_black_holed_peer_delays_no_other_peer() {
    let script = ScriptedTransport::dispatching(Does::Hang, &[APPENDS, CONTROL]);
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 0), message(2, 1, MessageKind::Heartbeat, 0)]);
    let start = Instant::now();
    for term in 1..50 {
        let heartbeat = message(3, 1, MessageKind::Heartbeat, term);
        lanes.send_many([append(2, 1, term), append(3, 1, term), heartbeat]);
        script.until_delivered(2 * term as usize).await;
    }
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_does_not_wait_for_an_append() {
    let script = ScriptedTransport::dispatching(Does::Hang, &[APPENDS]);
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 0), message(2, 1, MessageKind::Heartbeat, 7)]);
    script.until_delivered(1).await;
    assert_eq!(script.terms(CONTROL), [7]);
}

/// Connected lanes whose links to node 2 died. Node 2 cannot be reached again.
async fn lanes_to_dead_peer(script: &ScriptedTransport) -> Lanes {
    let lanes = script.connected(Config::default()).await;
    for key in [APPENDS, CONTROL] {
        script.with(|s| s.connect.insert(key, Does::Fail));
        script.kill(key);
    }
    lanes
}

#[tokio::test(start_paused = true)]
async fn the_lanes_to_a_restarted_peer_are_back_within_the_longest_backoff() {
    let script = ScriptedTransport::default();
    let lanes = lanes_to_dead_peer(&script).await;
    pass(Duration::from_secs(60)).await;
    script.with(|s| s.connect.clear());
    let start = Instant::now();
    script.until_connected(APPENDS, 2).await;
    script.until_connected(CONTROL, 2).await;
    assert!(start.elapsed() <= Duration::from_millis(402), "{:?}", start.elapsed());
    lanes.send_many([append(2, 1, 3)]);
    script.until_delivered(1).await;
}

/// A restarted node connects to its peers at once. A peer in its backoff once sent a needed snapshot up to 400 ms late.
#[tokio::test(start_paused = true)]
async fn a_connection_from_a_peer_ends_the_backoff() {
    let script = ScriptedTransport::default();
    let lanes = lanes_to_dead_peer(&script).await;
    for _ in 0..20 {
        let failed = script.with(|s| s.connect_failed);
        // Long after the waits have reached their cap, just behind a failed attempt.
        pass(Duration::from_secs(5)).await;
        script.until(|s| s.connect_failed > failed).await;
        lanes.notify_peer_connected(node(3));
        let (failed, start) = (script.with(|s| s.connect_failed), Instant::now());
        lanes.notify_peer_connected(NODE_2);
        script.until(|s| s.connect_failed >= failed + 2).await;
        assert!(start.elapsed() <= Duration::from_millis(2), "{:?}", start.elapsed());
    }
    script.with(|s| s.connect.clear());
    pass(Duration::from_secs(1)).await;
    script.until_connected(APPENDS, 2).await;
    script.until_connected(CONTROL, 2).await;
}

#[tokio::test(start_paused = true)]
async fn connections_from_a_peer_all_the_time_do_not_disable_the_backoff() {
    let attempts = async |peer_connects: bool| {
        let script = ScriptedTransport::connecting(Does::Fail, &[APPENDS, CONTROL]);
        let lanes = script.lanes_to_one_peer(Config::default());
        for _ in 0..20_000 {
            pass(Duration::from_millis(1)).await;
            if peer_connects {
                lanes.notify_peer_connected(NODE_2);
            }
        }
        script.with(|s| s.attempts)
    };
    let (without, with) = (attempts(false).await, attempts(true).await);
    // One more in `lane_backoff_max` for each lane.
    assert!(with <= without + 2 * (20_000 / 400 + 1), "{with}, {without} without connections");
}

#[tokio::test(start_paused = true)]
async fn a_nack_on_the_append_lane_reports_its_group_and_leaves_the_link() {
    let script = ScriptedTransport::default();
    let lanes = script.connected(Config::default()).await;
    let nack = |cause| {
        for key in [APPENDS, CONTROL] {
            let (address, feedback) = script.with(|s| s.links.remove(&key).unwrap());
            feedback.nack(Nack { group: GroupId::new(4), cause });
            script.with(|s| s.links.insert(key, (address, feedback)));
        }
    };
    nack(NackCause::InboxFull);
    assert_eq!(script.reports(), [group_lost(2, 4, UnreachableCause::Nack(NackCause::InboxFull))]);
    // From each lane: a peer that answers nothing may get only heartbeats.
    let lost = LostEntries { last_index: 55, acknowledged: 61 };
    nack(NackCause::EntriesLost(lost));
    assert_eq!(script.reports()[1..], [group_lost(2, 4, UnreachableCause::EntriesLost(lost)); 2]);
    lanes.send_many([append(2, 5, 1)]);
    script.until_delivered(1).await;
    assert_eq!(script.with(|s| (s.nacks, s.closed)), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_failed_dispatch_costs_the_link_and_its_batch() {
    for (does, reason) in [
        (Does::Hang, DropReason::DispatchTimeout),
        (Does::Fail, DropReason::DispatchFailed),
        (Does::Panic, DropReason::DispatchFailed),
    ] {
        let script = ScriptedTransport::dispatching(does, &[APPENDS]);
        let lanes = script.connected(Config::default()).await;
        lanes.send_many([append(2, 1, 1), append(2, 2, 2)]);
        script.until_connected(APPENDS, 2).await;
        assert_eq!(script.dropped(Lane::Append, reason), 2);
        assert_eq!(script.reports(), [node_lost(UnreachableCause::LinkLost)]);
        script.with(|s| s.dispatch.clear());
        lanes.send_many([append(2, 1, 3), append(3, 1, 4)]);
        script.until_delivered(2).await;
        assert_eq!(script.with(|s| s.sent[&Lane::Append]), (2, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_closes_during_a_dispatch_is_one_incident() {
    let (script, lanes) = hanging_lanes(Config::default()).await;
    lanes.send_many([append(2, 1, 2), append(2, 2, 3)]);
    script.kill(APPENDS);
    script.until_connected(APPENDS, 2).await;
    assert_eq!(script.dropped(Lane::Append, DropReason::LinkDown), 3);
    assert_eq!(script.reports(), [node_lost(UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_or_panics_is_tried_again() {
    for does in [Does::Hang, Does::Panic] {
        let script = ScriptedTransport::connecting(does, &[APPENDS]);
        let _lanes = script.lanes_to_one_peer(Config::default());
        script.until(|s| s.connect_failed == 3).await;
        script.with(|s| s.connect.clear());
        script.until_connected(APPENDS, 1).await;
        assert_eq!(script.reports(), [node_lost(UnreachableCause::ConnectFailed)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lane_sends_nothing_before_the_gate_accepts_the_peer() {
    let script = ScriptedTransport::default();
    script.with(|s| s.gate_refuses = true);
    let lanes = script.lanes_to_one_peer(Config::default());
    lanes.send_many([message(2, 1, MessageKind::Heartbeat, 1)]);
    script.until(|s| s.connect_failed > 4).await;
    assert!(script.with(|s| s.batches.is_empty() && s.connected.is_empty()));
    script.with(|s| s.gate_refuses = false);
    lanes.send_many([message(2, 1, MessageKind::Heartbeat, 2)]);
    script.until_delivered(1).await;
    assert_eq!(script.terms(CONTROL), [2]);
}

#[tokio::test(start_paused = true)]
async fn control_messages_without_a_link_conflate_and_expire() {
    let script = ScriptedTransport::connecting(Does::Fail, &[CONTROL]);
    let lanes = script.lanes_to_one_peer(small());
    lanes.send_many([message(2, 1, MessageKind::RequestVote, 1)]);
    pass(Duration::from_secs(5)).await;
    lanes.send_many((1..=9).map(|term| message(2, 1, MessageKind::Heartbeat, term)));
    lanes.send_many((1..=3).map(|term| message(2, 1, MessageKind::ReadIndexResponse, term)));
    script.with(|s| s.connect.clear());
    script.until_delivered(3).await;
    pass_quiet_time().await;
    assert_eq!(script.terms(CONTROL), [9, 1, 2]);
    assert_eq!(script.dropped(Lane::Control, DropReason::Superseded), 8);
    assert_eq!(script.dropped(Lane::Control, DropReason::QueueFull), 1);
    assert_eq!(script.dropped(Lane::Control, DropReason::LinkDown), 1, "the old request for a vote");
}

#[tokio::test(start_paused = true)]
async fn a_message_to_an_unknown_peer_is_counted_and_an_append_reported() {
    let script = ScriptedTransport::default();
    let lanes = script.lanes(Config::default());
    lanes.send_many([append(9, 1, 1), message(9, 1, MessageKind::Heartbeat, 1)]);
    for lane in Lane::ALL {
        assert_eq!(script.dropped(lane, DropReason::UnknownPeer), 1);
    }
    assert_eq!(script.reports(), [group_lost(9, 1, UnreachableCause::NoRoute)]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_may_be_removed_during_a_dispatch() {
    let (script, lanes) = hanging_lanes(Config::default()).await;
    lanes.send_many([append(2, 1, 2)]);
    lanes.remove_peer(NODE_2);
    script.until(|s| s.closed == 2).await;
    assert_eq!(script.dropped(Lane::Append, DropReason::UnknownPeer), 2);
    let attempts = script.with(|s| s.attempts);
    pass(Duration::from_secs(10)).await;
    assert_eq!((script.with(|s| s.attempts), script.reports()), (attempts, vec![]));
}

#[tokio::test(start_paused = true)]
async fn only_a_new_address_starts_the_lanes_anew() {
    let (script, lanes) = hanging_lanes(Config::default()).await;
    lanes.set_peer(peer(2, 1));
    pass(Duration::from_millis(10)).await;
    assert_eq!(script.with(|s| s.attempts), 4);
    script.with(|s| s.dispatch.clear());
    lanes.set_peer(peer(2, 77));
    script.until_connected(APPENDS, 2).await;
    assert_eq!(script.reports(), [node_lost(UnreachableCause::LinkLost)]);
    assert_eq!(script.with(|s| s.links[&APPENDS].0.as_str().to_owned()), "mem://host:77");
    lanes.send_many([append(2, 1, 2)]);
    script.until_delivered(1).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_drops_queued_messages_joins_the_workers_and_counts_later_sends() {
    let (script, lanes) = hanging_lanes(Config::default()).await;
    lanes.send_many([append(2, 1, 2), append(2, 1, 3)]);
    lanes.shutdown().await;
    assert_eq!(script.with(|s| s.closed), 4, "all links are closed when it returns");
    assert_eq!(script.dropped(Lane::Append, DropReason::Shutdown), 3);
    lanes.send_many([append(2, 1, 4), message(3, 1, MessageKind::Heartbeat, 1)]);
    lanes.set_peer(peer(4, 1));
    pass_quiet_time().await;
    assert_eq!(script.dropped(Lane::Append, DropReason::Shutdown), 4);
    assert_eq!(script.dropped(Lane::Control, DropReason::Shutdown), 1);
    assert_eq!((script.reports(), script.with(|s| s.attempts)), (vec![], 4));
}

/// At the default level the log once showed nothing of a wrong address: every failed attempt was a debug line.
#[tokio::test(start_paused = true)]
async fn an_unreachable_peer_is_warned_about_once_an_incident() {
    let count = Arc::new(AtomicUsize::new(0));
    let subscriber = || {
        let count = count.clone();
        OnEvent(move |event: &tracing::Event<'_>| {
            count.fetch_add((*event.metadata().level() == Level::WARN).into(), Ordering::Relaxed);
        })
    };
    // With a single subscriber, tracing lets the first thread that reaches a line decide whether the line is ever shown.
    let _second = tracing::Dispatch::new(subscriber());
    let _guard = tracing::subscriber::set_default(subscriber());
    let warnings = || count.load(Ordering::Relaxed);
    let script = ScriptedTransport::connecting(Does::Fail, &[APPENDS]);
    let _lanes = script.lanes_to_one_peer(Config::default());
    for incident in 1..=2 {
        let before = script.with(|s| s.connect_failed);
        script.until(|s| s.connect_failed == before + 4).await;
        assert_eq!(warnings(), incident - 1, "the peer may only be starting");
        script.until(|s| s.connect_failed == before + 30).await;
        assert_eq!(warnings(), incident);
        script.with(|s| s.connect.clear());
        script.until_connected(APPENDS, incident).await;
        script.with(|s| s.connect.insert(APPENDS, Does::Fail));
        script.kill(APPENDS);
    }
}
