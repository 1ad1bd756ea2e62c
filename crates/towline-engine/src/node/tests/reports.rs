//! On a running node: posts to its reporter while its shard is held, while it stops, and afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::common::{DEADLINE, TestNode, counter, id, wait};
use super::fixture::{BEHIND, LeaderFixture};
use super::hooks::HeldShard;
use crate::config::Config;
use crate::errors::{ProposeError, ReadError};
use crate::ids::{GroupId, NodeId};
use crate::node::Consistency;
use crate::reporter::{
    Report, Reporter, Scope, SnapshotAttempt, SnapshotFailure, SnapshotStatus, UnreachableCause,
};
use crate::status::{AttemptOutcome, PeerProgress, Role};

const THREADS: u64 = 8;
const POSTS: u64 = 10_000;
const GROUPS: u64 = 4;
const PEERS: u64 = 4;
const STRANGER: u64 = 99;
/// One of each kind of [`Storm::post`].
const KINDS: u64 = 5;
const OF_A_KIND: u64 = POSTS / KINDS;

/// The longest post on a busy machine. No post waits for another thread.
const POST_MAX: Duration = Duration::from_secs(1);

fn config() -> Config {
    Config {
        heartbeat_interval: Duration::from_millis(20),
        election_timeout_min: Duration::from_millis(300),
        election_timeout_max: Duration::from_millis(500),
        lane_backoff_max: Duration::from_millis(100),
        snapshot_sends_max: 8,
        snapshot_offer_timeout: Duration::from_secs(60),
        snapshot_backoff_max: Duration::from_millis(400),
        ..Config::default()
    }
}

/// A leader of [`GROUPS`] groups with offers to two peers of each, which do not answer.
async fn sending() -> (LeaderFixture, Vec<SnapshotAttempt>) {
    let mut fixture = LeaderFixture::new(config()).await;
    fixture.played.answers.send_replace(false);
    fixture.lead(GROUPS).await;
    let attempts = fixture.attempts().await;
    assert_eq!(attempts.len() as u64, GROUPS * BEHIND.len() as u64);
    (fixture, attempts)
}

/// Posts of all kinds, chosen by a number.
#[derive(Clone)]
struct Storm {
    reporter: Arc<dyn Reporter>,
    attempts: Vec<SnapshotAttempt>,
}

/// What a thread measured of its posts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct PostCosts {
    slowest: Duration,
    allocations: u64,
}

impl Storm {
    fn post(&self, n: u64) {
        let (kind, n) = (n % KINDS, n / KINDS);
        let group = GroupId::new(1 + n % GROUPS);
        let peer = id(2 + n / GROUPS % PEERS);
        let attempt = self.attempts[n as usize % self.attempts.len()];
        match kind {
            0 => self.reporter.report_unreachable(peer, Scope::Group(group), UnreachableCause::QueueFull),
            1 => self.reporter.report_unreachable(peer, Scope::Node, UnreachableCause::LinkLost),
            2 => self.reporter.report_unreachable(id(STRANGER), Scope::Node, UnreachableCause::NoRoute),
            3 => self.reporter.report_snapshot(attempt, SnapshotStatus::Finish),
            _ => {
                let old = SnapshotAttempt { number: attempt.number + 1_000, ..attempt };
                self.reporter.report_snapshot(old, SnapshotStatus::Failure(SnapshotFailure::Transfer));
            }
        }
    }

    /// Makes all posts from all threads. Each thread sends its costs at its end.
    fn rage(&self) -> Receiver<PostCosts> {
        let (done, all) = mpsc::channel();
        for thread in 0..THREADS {
            let (storm, done) = (self.clone(), done.clone());
            std::thread::spawn(move || {
                let mut costs = PostCosts::default();
                for n in (thread..POSTS).step_by(THREADS as usize) {
                    let started = Instant::now();
                    let allocated = allocation_counter::measure(|| storm.post(n));
                    costs.slowest = costs.slowest.max(started.elapsed());
                    costs.allocations += allocated.count_total;
                }
                let _ = done.send(costs);
            });
        }
        all
    }
}

/// The total of all threads. `None` if a thread does not end in time.
fn total(all: &Receiver<PostCosts>, timeout: Duration) -> Option<PostCosts> {
    let mut total = PostCosts::default();
    for _ in 0..THREADS {
        let costs = all.recv_timeout(timeout).ok()?;
        total.slowest = total.slowest.max(costs.slowest);
        total.allocations += costs.allocations;
    }
    Some(total)
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_to_a_held_shard_neither_wait_nor_allocate_nor_lose_an_outcome() {
    let (fixture, mut attempts) = sending().await;
    let reporter = fixture.reporter.clone();
    // The first report about a stranger allocates the counters of all strangers.
    reporter.report_unreachable(id(STRANGER), Scope::Node, UnreachableCause::NoRoute);
    let outcomes = |kind| {
        ["applied", "stale", "coalesced", "unknown_peer", "after_close", "synthesized"]
            .map(|outcome| (outcome, fixture.reports(kind, outcome)))
    };
    let kinds = ["unreachable", "snapshot_finish", "snapshot_failure"];
    let before = kinds.map(outcomes);
    let turns = || fixture.test.counter("towline_shard_turns_total", "");
    let held = HeldShard::new(&fixture.hooks);
    let turns_before = turns();

    let last = attempts.pop().unwrap();
    let storm = Storm { reporter, attempts };
    let costs = total(&storm.rage(), DEADLINE).expect("every post returns while the shard is held");
    // An outcome after all other posts.
    storm.reporter.report_snapshot(last, SnapshotStatus::Failure(SnapshotFailure::Corrupt));
    assert_eq!(turns(), turns_before, "the shard was held all the time");
    assert!(costs.slowest < POST_MAX, "{costs:?}");
    assert_eq!(costs.allocations, 0);

    fixture.groups.iter().for_each(|group| fixture.played.have(group.id(), BEHIND));
    drop(held);
    let ended = |attempt: &SnapshotAttempt| match *attempt == last {
        true => AttemptOutcome::Failed(SnapshotFailure::Corrupt),
        false => AttemptOutcome::Finished,
    };
    wait("every outcome", || {
        let applied =
            fixture.reports("snapshot_finish", "applied") + fixture.reports("snapshot_failure", "applied");
        (applied >= GROUPS * 2).then_some(())
    })
    .await;
    let peers: BTreeMap<(GroupId, NodeId), _> =
        fixture.peers().await.into_iter().map(|(group, peer)| ((group, peer.id), peer)).collect();
    for attempt in storm.attempts.iter().chain([&last]) {
        let last_attempt = peers[&(attempt.group, attempt.peer)].last_attempt.unwrap();
        assert_eq!((last_attempt.number, last_attempt.outcome), (attempt.number, ended(attempt)));
    }

    let finishes = storm.attempts.len() as u64;
    let lost = OF_A_KIND + OF_A_KIND * GROUPS; // a node-wide report counts once for each group
    let cells = GROUPS * PEERS;
    let expected = [
        [cells, 0, lost - cells, OF_A_KIND, 0, 0],
        [finishes, 0, OF_A_KIND - finishes, 0, 0, 0],
        [1, OF_A_KIND, 0, 0, 0, 0],
    ];
    for ((kind, before), expected) in kinds.into_iter().zip(before).zip(expected) {
        let counted = std::array::from_fn::<_, 6, _>(|n| outcomes(kind)[n].1 - before[n].1);
        assert_eq!(
            counted, expected,
            "{kind}: applied, stale, coalesced, unknown peer, after close, synthesized"
        );
    }

    // The tickets report the outcomes that were posted already.
    fixture.played.answers.send_replace(true);
    wait("the tickets' own reports", || {
        (fixture.reports("snapshot_finish", "stale") == GROUPS * 2).then_some(())
    })
    .await;
    fixture.when_behind("served", |peer| peer.progress == PeerProgress::Replicate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_during_and_after_a_shutdown_return_at_once_and_are_counted() {
    let (fixture, attempts) = sending().await;
    let (over, posted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reporter = fixture.reporter.clone();
    let threads = (0..THREADS).map(|_| {
        let (reporter, attempts) = (reporter.clone(), attempts.clone());
        let (over, posted) = (over.clone(), posted.clone());
        std::thread::spawn(move || {
            let (mut slowest, mut left) = (Duration::ZERO, 100);
            // A hundred more rounds after the shutdown.
            while left > 0 {
                left -= u32::from(over.load(Ordering::SeqCst));
                for attempt in &attempts {
                    let started = Instant::now();
                    reporter.report_snapshot(*attempt, SnapshotStatus::Finish);
                    slowest = slowest.max(started.elapsed());
                    posted.fetch_add(1, Ordering::SeqCst);
                }
                std::thread::sleep(Duration::from_millis(1)); // not synchronisation: leaves the machine to others
            }
            slowest
        })
    });
    let threads: Vec<_> = threads.collect();
    let LeaderFixture { test: TestNode { node, exporter, .. }, played: _played, groups, .. } = fixture;
    let counted = |outcome: &str| {
        let label = format!("kind=\"snapshot_finish\",outcome=\"{outcome}\"");
        counter(&exporter, "towline_reports_total", &label)
    };
    wait("posts before the end", || (counted("applied") == GROUPS * 2 && counted("stale") > 0).then_some(()))
        .await;
    drop(groups);
    tokio::time::timeout(DEADLINE, node.shutdown(Duration::from_millis(200))).await.expect("it goes down");
    over.store(true, Ordering::SeqCst);
    for thread in threads {
        let slowest = thread.join().unwrap();
        assert!(slowest < POST_MAX, "{slowest:?}");
    }
    let after_close = counted("after_close");
    assert!(after_close >= THREADS * 100 * GROUPS * 2, "{after_close}");
    let sum: u64 =
        ["applied", "stale", "coalesced", "unknown_peer", "after_close"].into_iter().map(counted).sum();
    assert_eq!(sum, posted.load(Ordering::SeqCst));
}

/// After a panic only the end of the shard's thread can close the mailbox.
#[tokio::test(flavor = "multi_thread")]
async fn posts_after_a_panic_of_the_shard_are_counted_as_after_close() {
    let (fixture, attempts) = sending().await;
    let reporter = fixture.reporter.clone();
    // The first report about a stranger allocates the counters of all strangers.
    reporter.report_unreachable(id(STRANGER), Scope::Node, UnreachableCause::NoRoute);
    fixture.panic_shard().await;
    let kinds = ["unreachable", "snapshot_finish", "snapshot_failure"];
    let after_close = || kinds.map(|kind| fixture.reports(kind, "after_close"));
    // The panic cancels the transfers, and a ticket reports before its task ends.
    let sends = &fixture.test.node.inner.sends;
    wait("the end of the tasks", || {
        (!attempts.iter().any(|attempt| sends.is_running(attempt))).then_some(())
    })
    .await;
    assert_eq!(after_close()[2], attempts.len() as u64);

    let all = || fixture.test.counter("towline_reports_total", "");
    let (before, all_before) = (after_close(), all());
    let storm = Storm { reporter, attempts: attempts.clone() };
    let costs = total(&storm.rage(), DEADLINE).expect("every post returns");
    assert!(costs.slowest < POST_MAX, "{costs:?}");
    assert_eq!(costs.allocations, 0);
    let counted = std::array::from_fn::<_, 3, _>(|kind| after_close()[kind] - before[kind]);
    assert_eq!(counted, [3 * OF_A_KIND, OF_A_KIND, OF_A_KIND]);
    assert_eq!(all() - all_before, POSTS, "and with no other outcome");
}

/// The shard dropped its groups silently: pending proposals waited for ever, and the published state still named a leader.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_shard_takes_its_groups_out_of_service_and_the_node_still_stops() {
    let mut fixture = LeaderFixture::new(config()).await;
    fixture.lead(2).await;
    let held = HeldShard::new(&fixture.hooks);
    // In the queue of the shard, or in the core.
    let early = fixture.groups.iter().map(|group| group.submit("early").unwrap()).collect::<Vec<_>>();
    drop(held);
    fixture.panic_shard().await;
    for proposal in early {
        let _ = tokio::time::timeout(DEADLINE, proposal).await.expect("an answer");
    }
    for group in &fixture.groups {
        let state = group.state();
        assert_eq!((state.role, state.leader), (Role::Down, None));
        assert!(state.down.is_some_and(|cause| cause.contains("panicked")));
        let late = tokio::time::timeout(DEADLINE, group.propose("late")).await.expect("an answer");
        assert!(matches!(&late, Err(ProposeError::Stopped { .. })), "{late:?}");
        let read = tokio::time::timeout(DEADLINE, group.read(Consistency::Linearizable)).await;
        assert!(matches!(read.expect("an answer"), Err(ReadError::Stopped { .. })));
    }
    let LeaderFixture { test: TestNode { node, .. }, groups, played: _played, .. } = fixture;
    drop(groups);
    tokio::time::timeout(DEADLINE, node.shutdown(Duration::from_millis(200))).await.expect("it goes down");
}

/// Other designs of a reporter. The tests above would fail with each of them.
mod controls {
    use super::*;

    /// A reporter that passes each report to a queue.
    struct QueueReporter<F>(F);

    impl<F: Fn(Report) + Send + Sync + 'static> Reporter for QueueReporter<F> {
        fn report_unreachable(&self, peer: NodeId, _: Scope, cause: UnreachableCause) {
            (self.0)(Report::Unreachable { group: GroupId::new(1), peer, cause });
        }

        fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
            (self.0)(Report::Snapshot { attempt, status });
        }
    }

    fn storm(queue: impl Fn(Report) + Send + Sync + 'static) -> Storm {
        let attempt = SnapshotAttempt { group: GroupId::new(1), peer: id(4), term: 1, index: 10, number: 1 };
        Storm { reporter: Arc::new(QueueReporter(queue)), attempts: vec![attempt] }
    }

    #[tokio::test]
    async fn posts_to_a_bounded_queue_wait_for_the_loop() {
        let (queue, stalled) = mpsc::sync_channel(1_024);
        let waiting = Arc::new(AtomicUsize::new(0));
        let waits = waiting.clone();
        let storm = storm(move |report| {
            if let Err(TrySendError::Full(report)) = queue.try_send(report) {
                waits.fetch_add(1, Ordering::SeqCst);
                let _ = queue.send(report);
            }
        });
        let all = storm.rage();
        wait("all threads to wait", || (waiting.load(Ordering::SeqCst) as u64 == THREADS).then_some(()))
            .await;
        assert_eq!(total(&all, Duration::ZERO), None, "no thread has ended");
        drop(stalled);
        assert!(total(&all, DEADLINE).is_some(), "the threads waited for the loop");
    }

    #[test]
    fn posts_to_an_unbounded_queue_allocate() {
        let (queue, stalled) = mpsc::channel();
        let queue = Mutex::new(queue);
        let storm = storm(move |report| queue.lock().unwrap().send(report).unwrap());
        let costs = total(&storm.rage(), DEADLINE).unwrap();
        assert!(costs.allocations > 100, "{costs:?}");
        drop(storm);
        assert_eq!(stalled.iter().count() as u64, POSTS);
    }

    #[test]
    fn posts_to_a_queue_that_drops_lose_the_last_outcome() {
        let (queue, stalled) = mpsc::sync_channel(1_024);
        let storm = storm(move |report| {
            let _ = queue.try_send(report);
        });
        total(&storm.rage(), DEADLINE).unwrap();
        let last = SnapshotAttempt { number: 2, ..storm.attempts[0] };
        storm.reporter.report_snapshot(last, SnapshotStatus::Finish);
        drop(storm);
        let is_last = |report| matches!(report, Report::Snapshot { attempt, .. } if attempt == last);
        assert!(!stalled.iter().any(is_last));
    }
}
