//! Cases 8 and 9 on a node that runs: posts through the reporter that its lanes and transfers have, while its shard is held,
//! while it goes down, and afterwards.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::common::{Alone, DEADLINE, counter, id, wait};
use super::seams::Held;
use super::stage::{BEHIND, Stage};
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

/// No post waits for anybody: what it may take is what a busy machine keeps a thread from running.
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

/// Leads [`GROUPS`] groups; two peers of each are to be sent a snapshot, and do not answer.
async fn sending() -> (Stage, Vec<SnapshotAttempt>) {
    let mut stage = Stage::node(config()).await;
    stage.script.answers.send_replace(false);
    stage.lead(GROUPS).await;
    let attempts = stage.attempts().await;
    assert_eq!(attempts.len() as u64, GROUPS * BEHIND.len() as u64);
    (stage, attempts)
}

/// What is posted, by a number.
#[derive(Clone)]
struct Storm {
    reporter: Arc<dyn Reporter>,
    attempts: Vec<SnapshotAttempt>,
}

/// What a thread saw of its posts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
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

    /// All posts from all threads; each tells what it saw when it is through.
    fn rage(&self) -> Receiver<Seen> {
        let (done, all) = mpsc::channel();
        for thread in 0..THREADS {
            let (storm, done) = (self.clone(), done.clone());
            std::thread::spawn(move || {
                let mut seen = Seen::default();
                for n in (thread..POSTS).step_by(THREADS as usize) {
                    let started = Instant::now();
                    let allocated = allocation_counter::measure(|| storm.post(n));
                    seen.slowest = seen.slowest.max(started.elapsed());
                    seen.allocations += allocated.count_total;
                }
                let _ = done.send(seen);
            });
        }
        all
    }
}

/// The worst of all threads; `None` if one of them does not come back.
fn worst(all: &Receiver<Seen>, patience: Duration) -> Option<Seen> {
    let mut worst = Seen::default();
    for _ in 0..THREADS {
        let seen = all.recv_timeout(patience).ok()?;
        worst.slowest = worst.slowest.max(seen.slowest);
        worst.allocations += seen.allocations;
    }
    Some(worst)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_posts_against_a_shard_that_is_held_neither_wait_nor_allocate_nor_lose_an_outcome() {
    let (stage, mut attempts) = sending().await;
    let reporter = stage.reporter.clone();
    // What counts reports about strangers is made with the first of them, once for all.
    reporter.report_unreachable(id(STRANGER), Scope::Node, UnreachableCause::NoRoute);
    let outcomes = |kind| {
        ["applied", "stale", "coalesced", "unknown_peer", "after_close", "synthesized"]
            .map(|outcome| (outcome, stage.reports(kind, outcome)))
    };
    let kinds = ["unreachable", "snapshot_finish", "snapshot_failure"];
    let before = kinds.map(outcomes);
    let turns = || stage.alone.counter("towline_shard_turns_total", "");
    let held = Held::shard(&stage.acts);
    let turns_before = turns();

    let last = attempts.pop().unwrap();
    let storm = Storm { reporter, attempts };
    let seen = worst(&storm.rage(), DEADLINE).expect("every post returns while the shard is held");
    // The outcome that comes after all of them.
    storm.reporter.report_snapshot(last, SnapshotStatus::Failure(SnapshotFailure::Corrupt));
    assert_eq!(turns(), turns_before, "the shard was held all the time");
    assert!(seen.slowest < POST_MAX, "{seen:?}");
    assert_eq!(seen.allocations, 0);

    stage.groups.iter().for_each(|group| stage.script.have(group.id(), BEHIND));
    drop(held);
    let ended = |attempt: &SnapshotAttempt| match *attempt == last {
        true => AttemptOutcome::Failed(SnapshotFailure::Corrupt),
        false => AttemptOutcome::Finished,
    };
    wait("every outcome", || {
        let applied =
            stage.reports("snapshot_finish", "applied") + stage.reports("snapshot_failure", "applied");
        (applied >= GROUPS * 2).then_some(())
    })
    .await;
    let peers: BTreeMap<(GroupId, NodeId), _> =
        stage.peers().await.into_iter().map(|(group, peer)| ((group, peer.id), peer)).collect();
    for attempt in storm.attempts.iter().chain([&last]) {
        let told = peers[&(attempt.group, attempt.peer)].last_attempt.unwrap();
        assert_eq!((told.number, told.outcome), (attempt.number, ended(attempt)));
    }

    let finishes = storm.attempts.len() as u64;
    let lost = OF_A_KIND + OF_A_KIND * GROUPS; // a node-wide one is one for each group
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

    // The tickets come with what was posted in their place.
    stage.script.answers.send_replace(true);
    wait("the tickets' own reports", || {
        (stage.reports("snapshot_finish", "stale") == GROUPS * 2).then_some(())
    })
    .await;
    stage.when_behind("served", |peer| peer.progress == PeerProgress::Replicate).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn posts_while_a_node_goes_down_and_after_it_return_at_once_and_are_all_counted() {
    let (stage, attempts) = sending().await;
    let (over, posted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let reporter = stage.reporter.clone();
    let threads = (0..THREADS).map(|_| {
        let (reporter, attempts) = (reporter.clone(), attempts.clone());
        let (over, posted) = (over.clone(), posted.clone());
        std::thread::spawn(move || {
            let (mut slowest, mut left) = (Duration::ZERO, 100);
            // A hundred rounds more once it is over.
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
    let Stage { alone: Alone { node, exporter, .. }, script: _script, groups, .. } = stage;
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

/// No order to stop comes before a panic: only the end of the shard itself can close the mailbox then.
#[tokio::test(flavor = "multi_thread")]
async fn posts_after_a_panic_of_the_shard_are_counted_as_after_close_and_do_not_pile_up() {
    let (stage, attempts) = sending().await;
    let reporter = stage.reporter.clone();
    // What counts reports about strangers is made with the first of them, once for all.
    reporter.report_unreachable(id(STRANGER), Scope::Node, UnreachableCause::NoRoute);
    stage.panic_shard().await;
    let kinds = ["unreachable", "snapshot_finish", "snapshot_failure"];
    let after_close = || kinds.map(|kind| stage.reports(kind, "after_close"));
    // Nobody goes on sending for a group that does not run, and a ticket reports before its task is over.
    let sends = &stage.alone.node.inner.sends;
    wait("the end of the tasks", || {
        (!attempts.iter().any(|attempt| sends.is_running(attempt))).then_some(())
    })
    .await;
    assert_eq!(after_close()[2], attempts.len() as u64);

    let all = || stage.alone.counter("towline_reports_total", "");
    let (before, all_before) = (after_close(), all());
    let storm = Storm { reporter, attempts: attempts.clone() };
    let seen = worst(&storm.rage(), DEADLINE).expect("every post returns");
    assert!(seen.slowest < POST_MAX, "{seen:?}");
    assert_eq!(seen.allocations, 0);
    let counted = std::array::from_fn::<_, 3, _>(|kind| after_close()[kind] - before[kind]);
    assert_eq!(counted, [3 * OF_A_KIND, OF_A_KIND, OF_A_KIND]);
    assert_eq!(all() - all_before, POSTS, "and as nothing else");
}

/// Its groups were dropped without a word: whoever proposed waited for ever, and a leader that was none was shown as one.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_shard_takes_its_groups_out_of_service_and_the_node_still_goes_down() {
    let mut stage = Stage::node(config()).await;
    stage.lead(2).await;
    let held = Held::shard(&stage.acts);
    // Queued where the shard has not looked yet, or in the core: answered either way.
    let early = stage.groups.iter().map(|group| group.submit("early").unwrap()).collect::<Vec<_>>();
    drop(held);
    stage.panic_shard().await;
    for proposal in early {
        // Its fate depends on how far it came.
        let _ = tokio::time::timeout(DEADLINE, proposal).await.expect("an answer");
    }
    for group in &stage.groups {
        let state = group.state();
        assert_eq!((state.role, state.leader), (Role::Down, None));
        assert!(state.down.is_some_and(|cause| cause.contains("panicked")));
        let late = tokio::time::timeout(DEADLINE, group.propose("late")).await.expect("an answer");
        assert!(matches!(&late, Err(ProposeError::Stopped { .. })), "{late:?}");
        let read = tokio::time::timeout(DEADLINE, group.read(Consistency::Linearizable)).await;
        assert!(matches!(read.expect("an answer"), Err(ReadError::Stopped { .. })));
    }
    let Stage { alone: Alone { node, .. }, groups, script: _script, .. } = stage;
    drop(groups);
    tokio::time::timeout(DEADLINE, node.shutdown(Duration::from_millis(200))).await.expect("it goes down");
}

/// Three reporters that one might write instead, and what the test above would say of them.
mod controls {
    use super::*;

    fn storm(reporter: Arc<dyn Reporter>) -> Storm {
        let attempt = SnapshotAttempt { group: GroupId::new(1), peer: id(4), term: 1, index: 10, number: 1 };
        Storm { reporter, attempts: vec![attempt] }
    }

    fn unreachable(peer: NodeId, cause: UnreachableCause) -> Report {
        Report::Unreachable { group: GroupId::new(1), peer, cause }
    }

    /// Blocks when it is full.
    struct Blocks {
        queue: SyncSender<Report>,
        waiting: AtomicUsize,
    }

    impl Blocks {
        fn send(&self, report: Report) {
            if let Err(TrySendError::Full(report)) = self.queue.try_send(report) {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                let _ = self.queue.send(report);
            }
        }
    }

    impl Reporter for Blocks {
        fn report_unreachable(&self, peer: NodeId, _: Scope, cause: UnreachableCause) {
            self.send(unreachable(peer, cause));
        }

        fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
            self.send(Report::Snapshot { attempt, status });
        }
    }

    #[tokio::test]
    async fn posts_to_a_bounded_queue_wait_for_the_loop() {
        let (queue, stalled) = mpsc::sync_channel(1_024);
        let blocks = Arc::new(Blocks { queue, waiting: AtomicUsize::new(0) });
        let all = storm(blocks.clone()).rage();
        wait("all threads to wait", || {
            (blocks.waiting.load(Ordering::SeqCst) as u64 == THREADS).then_some(())
        })
        .await;
        assert_eq!(worst(&all, Duration::ZERO), None, "none of them came back");
        drop(stalled);
        assert!(worst(&all, DEADLINE).is_some(), "they did wait for the loop");
    }

    /// Grows.
    struct Grows(Mutex<Sender<Report>>);

    impl Reporter for Grows {
        fn report_unreachable(&self, peer: NodeId, _: Scope, cause: UnreachableCause) {
            let _ = self.0.lock().unwrap().send(unreachable(peer, cause));
        }

        fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
            let _ = self.0.lock().unwrap().send(Report::Snapshot { attempt, status });
        }
    }

    #[test]
    fn posts_to_an_unbounded_queue_allocate() {
        let (queue, stalled) = mpsc::channel();
        let seen = worst(&storm(Arc::new(Grows(Mutex::new(queue)))).rage(), DEADLINE).unwrap();
        assert!(seen.allocations > 100, "{seen:?}");
        assert_eq!(stalled.iter().count() as u64, POSTS);
    }

    /// Drops when it is full.
    struct Drops(SyncSender<Report>);

    impl Reporter for Drops {
        fn report_unreachable(&self, peer: NodeId, _: Scope, cause: UnreachableCause) {
            let _ = self.0.try_send(unreachable(peer, cause));
        }

        fn report_snapshot(&self, attempt: SnapshotAttempt, status: SnapshotStatus) {
            let _ = self.0.try_send(Report::Snapshot { attempt, status });
        }
    }

    #[test]
    fn posts_to_a_queue_that_drops_lose_the_outcome_that_comes_last() {
        let (queue, stalled) = mpsc::sync_channel(1_024);
        let storm = storm(Arc::new(Drops(queue)));
        worst(&storm.rage(), DEADLINE).unwrap();
        let last = SnapshotAttempt { number: 2, ..storm.attempts[0] };
        storm.reporter.report_snapshot(last, SnapshotStatus::Finish);
        drop(storm);
        let kept = stalled
            .iter()
            .any(|report| matches!(report, Report::Snapshot { attempt, .. } if attempt == last));
        assert!(!kept);
    }
}
