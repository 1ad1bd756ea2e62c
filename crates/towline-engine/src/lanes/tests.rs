//! The workers over a scripted transport, in virtual time.

mod scripted;
mod told;

use std::time::Duration;

use tokio::time::Instant;

use self::scripted::{Does, Script, append, message, node, peer};
use super::policy::{Depth, DropReason};
use crate::config::Config;
use crate::ids::GroupId;
use crate::message::{Lane, MessageKind};
use crate::reporter::{Scope, UnreachableCause};
use crate::transport::{Nack, NackCause};
use crate::units::ByteSize;

const KEY: (crate::ids::NodeId, Lane) = (
    match crate::ids::NodeId::new(2) {
        Some(id) => id,
        None => panic!(),
    },
    Lane::Append,
);

/// Long enough for anything a worker still does, in virtual time.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(900)).await; // not synchronisation: moves the paused clock
}

fn small() -> Config {
    Config { lane_append_messages_max: 4, append_inflight_max: 4, lane_reads_max: 2, ..Config::default() }
}

#[tokio::test(start_paused = true)]
async fn messages_of_a_lane_arrive_in_order_across_batches() {
    let script = Script::default();
    let lanes =
        script.connected(Config { lane_batch_bytes_max: ByteSize::bytes(500), ..Config::default() }).await;
    lanes.send_many((0..100).map(|term| append(2, term % 3, term)));
    script.until(|w| w.delivered.len() == 100).await;
    assert_eq!(script.terms(node(2), Lane::Append), (0..100).collect::<Vec<_>>());
    assert!(script.with(|w| w.batches[&KEY]) > 30);
    assert_eq!(script.with(|w| w.sent[&Lane::Append]), (100, 1_000));
    assert_eq!(script.with(|w| w.depth[&KEY]), Depth::default());
    assert!(script.reports().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_one_batch() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    lanes.send_many((0..100).map(|term| append(2, 1, term)));
    script.until(|w| w.delivered.len() == 100).await;
    assert_eq!(script.with(|w| w.batches[&KEY]), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_append_lane_drops_counts_and_reports_the_group() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(small()).await;
    lanes.send(append(2, 1, 0));
    script.until(|w| w.batches.contains_key(&KEY)).await;
    lanes.send_many((0..4).map(|term| append(2, 1, term)).chain([append(2, 7, 4), append(2, 7, 5)]));
    assert_eq!(script.dropped(Lane::Append, DropReason::QueueFull), 2);
    assert_eq!(
        script.reports(),
        [(node(2), Scope::Group(GroupId::new(7)), UnreachableCause::QueueFull)],
        "once a burst, for the group that lost something"
    );
    assert_eq!(script.with(|w| w.depth[&KEY].messages), 4);
}

#[tokio::test(start_paused = true)]
async fn an_idle_link_that_had_taken_a_batch_dies_as_one_incident() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 1), append(2, 2, 1)]);
    script.until(|w| w.delivered.len() == 2).await;
    script.with(|w| w.connect.insert(KEY, Does::Fail));
    script.kill(node(2), Lane::Append);
    quiet().await;
    assert!(script.with(|w| w.connect_failed) > 1, "it tries again, and that is no new incident");
    assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn an_unused_link_and_a_control_link_die_without_a_report() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    lanes.send(message(2, 1, MessageKind::Heartbeat, 1));
    script.until(|w| w.delivered.len() == 1).await;
    script.kill(node(2), Lane::Control);
    script.kill(node(3), Lane::Append);
    script.until(|w| w.connected.values().sum::<usize>() == 6).await;
    assert_eq!((script.reports(), script.with(|w| w.closed)), (vec![], 2));
}

#[tokio::test(start_paused = true)]
async fn appends_while_the_link_is_down_are_dropped_and_reported() {
    let script = Script::default();
    script.with(|w| w.connect.insert(KEY, Does::Fail));
    let lanes = script.lanes(Config::default());
    lanes.set_peer(peer(2, 1));
    script.until(|w| w.connect_failed > 2).await;
    assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::ConnectFailed)]);
    lanes.send_many([append(2, 5, 1), append(2, 5, 2)]);
    assert_eq!(script.dropped(Lane::Append, DropReason::LinkDown), 2);
    assert_eq!(script.reports()[1..], [(node(2), Scope::Group(GroupId::new(5)), UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn a_black_holed_peer_delays_nobody_else() {
    let script = Script::default();
    for lane in Lane::ALL {
        script.with(|w| w.dispatch.insert((node(2), lane), Does::Hang));
    }
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 0), message(2, 1, MessageKind::Heartbeat, 0)]);
    let start = Instant::now();
    for term in 1..50 {
        lanes.send_many([
            append(2, 1, term),
            append(3, 1, term),
            message(3, 1, MessageKind::Heartbeat, term),
        ]);
        script.until(|w| w.delivered.len() as u64 == 2 * term).await;
    }
    assert!(start.elapsed() < Duration::from_millis(150), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_does_not_wait_for_an_append() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(Config::default()).await;
    lanes.send_many([append(2, 1, 0), message(2, 1, MessageKind::Heartbeat, 7)]);
    script.until(|w| !w.delivered.is_empty()).await;
    assert_eq!(script.terms(node(2), Lane::Control), [7]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_restarts_is_back_within_the_backoff_cap() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    for lane in Lane::ALL {
        script.with(|w| w.connect.insert((node(2), lane), Does::Fail));
        script.kill(node(2), lane);
    }
    tokio::time::sleep(Duration::from_secs(60)).await; // not synchronisation: moves the paused clock
    script.with(|w| w.connect.clear());
    let start = Instant::now();
    script.until(|w| w.connected[&KEY] == 2 && w.connected[&(node(2), Lane::Control)] == 2).await;
    let (cap, election) = (Duration::from_millis(400), Duration::from_secs(1));
    assert!(start.elapsed() <= cap + Duration::from_millis(2) && start.elapsed() < election);
    lanes.send(append(2, 1, 3));
    script.until(|w| w.delivered.len() == 1).await;
}

/// A node that comes back calls its peers at once. A peer that waited for its own next attempt was up to 400 ms late with
/// the snapshot it needed.
#[tokio::test(start_paused = true)]
async fn a_peer_that_calls_is_called_back_at_once() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    for lane in Lane::ALL {
        script.with(|w| w.connect.insert((node(2), lane), Does::Fail));
        script.kill(node(2), lane);
    }
    for _ in 0..20 {
        let failed = script.with(|w| w.connect_failed);
        // Just behind a failed attempt, long after the waits have reached their cap.
        tokio::time::sleep(Duration::from_secs(5)).await; // not synchronisation: moves the paused clock
        script.until(|w| w.connect_failed > failed).await;
        lanes.notify_peer_connected(node(3));
        let (failed, start) = (script.with(|w| w.connect_failed), Instant::now());
        lanes.notify_peer_connected(node(2));
        script.until(|w| w.connect_failed >= failed + 2).await;
        assert!(start.elapsed() <= Duration::from_millis(2), "{:?}", start.elapsed());
    }
    script.with(|w| w.connect.clear());
    tokio::time::sleep(Duration::from_secs(1)).await; // not synchronisation: moves the paused clock
    script.until(|w| w.connected[&KEY] == 2 && w.connected[&(node(2), Lane::Control)] == 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_calls_all_the_time_is_not_called_all_the_time() {
    let attempts_of = async |calls: bool| {
        let script = Script::default();
        for lane in Lane::ALL {
            script.with(|w| w.connect.insert((node(2), lane), Does::Fail));
        }
        let lanes = script.lanes(Config::default());
        lanes.set_peer(peer(2, 1));
        for _ in 0..20_000 {
            tokio::time::sleep(Duration::from_millis(1)).await; // not synchronisation: moves the paused clock
            if calls {
                lanes.notify_peer_connected(node(2));
            }
        }
        script.with(|w| w.attempts)
    };
    let (quiet, called) = (attempts_of(false).await, attempts_of(true).await);
    // One more in `lane_backoff_max` for each lane.
    assert!(called <= quiet + 2 * (20_000 / 400 + 1), "{called}, {quiet} without calls");
}

#[tokio::test(start_paused = true)]
async fn a_nack_reports_its_group_alone_and_leaves_the_link() {
    let script = Script::default();
    let lanes = script.connected(Config::default()).await;
    let nack = Nack { group: GroupId::new(4), cause: NackCause::InboxFull };
    for lane in Lane::ALL {
        let (address, feedback) = script.with(|w| w.links.remove(&(node(2), lane)).unwrap());
        feedback.nack(nack);
        script.with(|w| w.links.insert((node(2), lane), (address, feedback)));
    }
    assert_eq!(script.reports(), [(node(2), Scope::Group(GroupId::new(4)), UnreachableCause::Nack)]);
    lanes.send(append(2, 5, 1));
    script.until(|w| w.delivered.len() == 1).await;
    assert_eq!(script.with(|w| (w.nacks, w.closed)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dispatch_that_does_not_end_well_costs_the_link_and_its_batch() {
    for (does, reason) in [
        (Does::Hang, DropReason::DispatchTimeout),
        (Does::Fail, DropReason::DispatchFailed),
        (Does::Panic, DropReason::DispatchFailed),
    ] {
        let script = Script::default();
        script.with(|w| w.dispatch.insert(KEY, does));
        let lanes = script.connected(Config::default()).await;
        lanes.send_many([append(2, 1, 1), append(2, 2, 2)]);
        script.until(|w| w.connected[&KEY] == 2).await;
        assert_eq!(script.dropped(Lane::Append, reason), 2);
        assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::LinkLost)]);
        script.with(|w| w.dispatch.clear());
        lanes.send_many([append(2, 1, 3), append(3, 1, 4)]);
        script.until(|w| w.delivered.len() == 2).await;
        assert_eq!(script.with(|w| w.sent[&Lane::Append]), (2, 20));
    }
}

#[tokio::test(start_paused = true)]
async fn a_link_that_closes_under_a_dispatch_is_one_incident() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(Config::default()).await;
    lanes.send(append(2, 1, 1));
    script.until(|w| w.batches.contains_key(&KEY)).await;
    lanes.send_many([append(2, 1, 2), append(2, 2, 3)]);
    script.kill(node(2), Lane::Append);
    script.until(|w| w.connected[&KEY] == 2).await;
    assert_eq!(script.dropped(Lane::Append, DropReason::LinkDown), 3);
    assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::LinkLost)]);
}

#[tokio::test(start_paused = true)]
async fn a_connect_that_hangs_or_panics_is_tried_again() {
    for does in [Does::Hang, Does::Panic] {
        let script = Script::default();
        script.with(|w| w.connect.insert(KEY, does));
        let lanes = script.lanes(Config::default());
        lanes.set_peer(peer(2, 1));
        script.until(|w| w.connect_failed == 3).await;
        script.with(|w| w.connect.clear());
        script.until(|w| w.connected.contains_key(&KEY)).await;
        assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::ConnectFailed)]);
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_before_the_gate_says_yes() {
    let script = Script::default();
    script.with(|w| w.gate_refuses = true);
    let lanes = script.lanes(Config::default());
    lanes.set_peer(peer(2, 1));
    lanes.send(message(2, 1, MessageKind::Heartbeat, 1));
    script.until(|w| w.connect_failed > 4).await;
    assert!(script.with(|w| w.batches.is_empty() && w.connected.is_empty()));
    script.with(|w| w.gate_refuses = false);
    lanes.send(message(2, 1, MessageKind::Heartbeat, 2));
    script.until(|w| w.delivered.len() == 1).await;
    assert_eq!(script.terms(node(2), Lane::Control), [2]);
}

#[tokio::test(start_paused = true)]
async fn control_messages_conflate_while_the_link_is_down_and_expire() {
    let script = Script::default();
    let control = (node(2), Lane::Control);
    script.with(|w| w.connect.insert(control, Does::Fail));
    let lanes = script.lanes(small());
    lanes.set_peer(peer(2, 1));
    lanes.send(message(2, 1, MessageKind::RequestVote, 1));
    tokio::time::sleep(Duration::from_secs(5)).await; // not synchronisation: moves the paused clock
    lanes.send_many((1..=9).map(|term| message(2, 1, MessageKind::Heartbeat, term)));
    lanes.send_many((1..=3).map(|term| message(2, 1, MessageKind::ReadIndexResponse, term)));
    script.with(|w| w.connect.clear());
    script.until(|w| w.delivered.len() == 3).await;
    quiet().await;
    assert_eq!(script.terms(node(2), Lane::Control), [9, 1, 2]);
    assert_eq!(script.dropped(Lane::Control, DropReason::Superseded), 8);
    assert_eq!(script.dropped(Lane::Control, DropReason::QueueFull), 1);
    assert_eq!(script.dropped(Lane::Control, DropReason::LinkDown), 1, "the old vote");
}

#[tokio::test(start_paused = true)]
async fn a_message_to_nobody_is_counted_and_an_append_reported() {
    let script = Script::default();
    let lanes = script.lanes(Config::default());
    lanes.send_many([append(9, 1, 1), message(9, 1, MessageKind::Heartbeat, 1)]);
    assert_eq!(script.dropped(Lane::Append, DropReason::UnknownPeer), 1);
    assert_eq!(script.dropped(Lane::Control, DropReason::UnknownPeer), 1);
    assert_eq!(script.reports(), [(node(9), Scope::Group(GroupId::new(1)), UnreachableCause::NoRoute)]);
}

#[tokio::test(start_paused = true)]
async fn a_peer_may_be_removed_while_a_dispatch_hangs() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(Config::default()).await;
    lanes.send(append(2, 1, 1));
    script.until(|w| w.batches.contains_key(&KEY)).await;
    lanes.send(append(2, 1, 2));
    lanes.remove_peer(node(2));
    script.until(|w| w.closed == 2).await;
    assert_eq!(script.dropped(Lane::Append, DropReason::UnknownPeer), 2);
    let attempts = script.with(|w| w.attempts);
    tokio::time::sleep(Duration::from_secs(10)).await; // not synchronisation: moves the paused clock
    assert_eq!((script.with(|w| w.attempts), script.reports()), (attempts, vec![]));
}

#[tokio::test(start_paused = true)]
async fn a_new_address_starts_the_lanes_anew_and_the_same_one_does_not() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(Config::default()).await;
    lanes.set_peer(peer(2, 1));
    lanes.send(append(2, 1, 1));
    script.until(|w| w.batches.contains_key(&KEY)).await;
    assert_eq!(script.with(|w| w.attempts), 4);
    script.with(|w| w.dispatch.clear());
    lanes.set_peer(peer(2, 77));
    script.until(|w| w.connected[&KEY] == 2).await;
    assert_eq!(script.reports(), [(node(2), Scope::Node, UnreachableCause::LinkLost)]);
    assert_eq!(script.with(|w| w.links[&KEY].0.as_str().to_owned()), "mem://host:77");
    lanes.send(append(2, 1, 2));
    script.until(|w| w.delivered.len() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn shutdown_drops_what_waits_and_joins_and_later_sends_are_counted() {
    let script = Script::default();
    script.with(|w| w.dispatch.insert(KEY, Does::Hang));
    let lanes = script.connected(Config::default()).await;
    lanes.send(append(2, 1, 1));
    script.until(|w| w.batches.contains_key(&KEY)).await;
    lanes.send_many([append(2, 1, 2), append(2, 1, 3)]);
    lanes.shutdown().await;
    assert_eq!(script.with(|w| w.closed), 4, "every link is gone when it returns");
    assert_eq!(script.dropped(Lane::Append, DropReason::Shutdown), 3);
    lanes.send_many([append(2, 1, 4), message(3, 1, MessageKind::Heartbeat, 1)]);
    lanes.set_peer(peer(4, 1));
    quiet().await;
    assert_eq!(script.dropped(Lane::Append, DropReason::Shutdown), 4);
    assert_eq!(script.dropped(Lane::Control, DropReason::Shutdown), 1);
    assert_eq!((script.reports(), script.with(|w| w.attempts)), (vec![], 4));
}
