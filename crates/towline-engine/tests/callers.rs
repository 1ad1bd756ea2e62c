//! Panics in a caller's code on the engine's threads: in a waker, the drop of a reply, or the drop of a state machine. They
//! must not end other groups. Also: stopping a group.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use crate::common::{DEADLINE, MemLog, TestNode, steady, wait};
use towline_engine::config::Config;
use towline_engine::errors::{ProposeError, ReadError, StatusError, WaitLeaderError};
use towline_engine::ids::GroupId;
use towline_engine::log_store::LogStore as _;
use towline_engine::message::LogId;
use towline_engine::node::{Consistency, Group, Start, StartError};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::status::Role;

/// Replies with the length of the command. The reply to `drop` panics on drop. The command `fail` fails the machine, whose
/// drop then panics.
#[derive(Default)]
struct PanickyMachine {
    failed: bool,
}

#[derive(Debug)]
struct Reply {
    bytes: usize,
    panics: bool,
}

impl Drop for Reply {
    fn drop(&mut self) {
        assert!(!std::mem::take(&mut self.panics), "a reply is dropped");
    }
}

impl Drop for PanickyMachine {
    fn drop(&mut self) {
        assert!(!std::mem::take(&mut self.failed), "a machine is dropped");
    }
}

impl StateMachine for PanickyMachine {
    type Response = Reply;
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> LogId {
        LogId::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<Reply>) -> Result<(), Fatal> {
        for command in batch.commands() {
            replies.push(Reply { bytes: command.data.len(), panics: command.data == "drop" });
            self.failed |= command.data == "fail";
        }
        if self.failed { Err(Fatal::new("the command fails")) } else { Ok(()) }
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Err(Fatal::new("no snapshots"))
    }

    fn restore(&mut self, _meta: &SnapshotMeta, _body: &mut dyn io::Read) -> Result<(), Fatal> {
        Err(Fatal::new("no snapshots"))
    }
}

/// Counts its wakes, and panics at each.
#[derive(Default)]
struct PanickyWaker(AtomicUsize);

impl Wake for PanickyWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("a waker");
    }
}

/// Polls a future with a waker that panics, and waits for the wake.
async fn polled_and_woken<F: Future>(mut ask: impl FnMut() -> F, meanwhile: impl FnOnce()) {
    let panics = Arc::new(PanickyWaker::default());
    let waker = Waker::from(panics.clone());
    // Repeated, because the answer may come before the poll.
    let _pending: Pin<Box<F>> = wait("a pending future", || {
        let mut future = Box::pin(ask());
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        polled.is_pending().then_some(future)
    })
    .await;
    meanwhile();
    wait("the wake", || (panics.0.load(Ordering::SeqCst) > 0).then_some(())).await;
}

/// Two groups on one shard thread and one apply worker.
async fn two_groups() -> (TestNode, Group<PanickyMachine>, Group<PanickyMachine>) {
    let test = TestNode::start(steady()).await;
    let one = test.lead(1, PanickyMachine::default()).await;
    let other = test.lead(2, PanickyMachine::default()).await;
    (test, one, other)
}

async fn assert_serves(group: &Group<PanickyMachine>) {
    let served = async {
        assert_eq!(group.propose("four").await.unwrap().bytes, 4);
        group.read(Consistency::Linearizable).await.unwrap();
        group.status().await.unwrap();
    };
    tokio::time::timeout(DEADLINE, served).await.expect("the group serves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waker_that_panics_ends_no_group() {
    let (_alone, one, other) = two_groups().await;
    polled_and_woken(|| one.read(Consistency::Linearizable), || {}).await;
    polled_and_woken(|| one.propose("four"), || {}).await;
    polled_and_woken(|| one.status(), || {}).await;
    assert_serves(&other).await;
    assert_serves(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_whose_waker_panics_ends_no_group() {
    let (_alone, one, other) = two_groups().await;
    let change = || {
        let mut watch = one.watch();
        watch.mark_unchanged();
        async move { watch.changed().await.is_ok() }
    };
    polled_and_woken(change, || drop(one.submit("four"))).await;
    assert_serves(&other).await;
    assert_serves(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_panics_on_drop_ends_no_group() {
    let (_alone, one, other) = two_groups().await;
    // A reply that comes before the drop panics here, so another proposal follows.
    wait("a reply that the engine drops", || {
        let proposal = one.submit("drop").unwrap();
        catch_unwind(AssertUnwindSafe(|| drop(proposal))).ok()
    })
    .await;
    assert_serves(&other).await;
    assert_serves(&one).await;
}

/// The end of a group wakes its watchers and drops its machine.
#[tokio::test(flavor = "multi_thread")]
async fn panics_at_the_end_of_a_group_end_no_other_group() {
    let (test, one, other) = two_groups().await;
    let down = || {
        let mut watch = one.watch();
        async move { watch.wait_for(|state| state.role == Role::Down).await.is_ok() }
    };
    polled_and_woken(down, || drop(one.submit("fail"))).await;
    wait("the quarantine", || (one.state().role == Role::Down).then_some(())).await;
    assert!(matches!(one.propose("x").await.unwrap_err(), ProposeError::Stopped { .. }));
    assert_serves(&other).await;
    tokio::time::timeout(DEADLINE, test.node.shutdown(DEADLINE)).await.expect("the node stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_group_returns_stopped_and_may_start_again() {
    let (test, one, other) = two_groups().await;
    let copy = one.clone();
    one.stop().await.unwrap();
    assert_eq!(one.stop().await, Ok(()), "a second stop");
    let cause: Arc<str> = "the group was stopped on this node".into();
    let group = GroupId::new(1);
    assert_eq!(copy.propose("four").await.err(), Some(ProposeError::Stopped { cause: cause.clone() }));
    assert_eq!(copy.status().await, Err(StatusError::Stopped { group, cause: cause.clone() }));
    let waited = copy.wait_leader(DEADLINE).await;
    assert_eq!(waited, Err(WaitLeaderError::Stopped { group, cause }));
    assert!(matches!(copy.read(Consistency::Linearizable).await, Err(ReadError::Stopped { .. })));
    assert_serves(&other).await;

    let again = test.node.group(group, PanickyMachine::default()).start(Start::Restart).await.unwrap();
    again.wait_leader(DEADLINE).await.unwrap();
    copy.stop().await.unwrap();
    assert_serves(&again).await;
}

/// A stop wrote its last commit index when its future was polled again. By then the next generation could have voted in a
/// newer term, and the old hard state replaced that vote.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_polled_late_keeps_the_term_of_the_next_generation() {
    let log = Arc::new(MemLog::default());
    let test = TestNode::start_on(log.clone(), steady()).await;
    let group = GroupId::new(1);
    let mut running = test.lead(1, PanickyMachine::default()).await;
    for _ in 0..3 {
        running.wait_leader(DEADLINE).await.unwrap();
        running.propose("four").await.unwrap();
        let stopped = running.clone();
        let mut stop = Box::pin(stopped.stop());
        let has_ended = wait("the end of the group", || {
            let is_down = stopped.state().role == Role::Down;
            let polled = (!is_down).then(|| stop.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            let has_ended = polled.is_some_and(|polled| polled.is_ready());
            (is_down || has_ended).then_some(has_ended)
        })
        .await;
        running = test.node.group(group, PanickyMachine::default()).start(Start::Restart).await.unwrap();
        running.wait_leader(DEADLINE).await.unwrap();
        // Committed, so the term is durable.
        running.propose("four").await.unwrap();
        let term = running.status().await.unwrap().state.term;
        if !has_ended {
            stop.await.unwrap();
        }
        let stored = log.recover(group).unwrap().hard_state.unwrap();
        assert!(stored.term >= term, "term {} is stored, but the group is in term {term}", stored.term);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_after_a_quarantine_frees_the_place_of_the_group() {
    let config = Config { groups_max: 1, ..Config::default() };
    let test = TestNode::start(config).await;
    let one = test.lead(1, PanickyMachine::default()).await;
    drop(one.submit("fail").unwrap());
    wait("the quarantine", || (one.state().role == Role::Down).then_some(())).await;
    let Err(refused) = test.found(2, PanickyMachine::default()).await else { panic!("no place is free") };
    assert!(matches!(refused, StartError::TooManyGroups { groups_max: 1 }), "{refused}");
    one.stop().await.unwrap();
    test.found(2, PanickyMachine::default()).await.unwrap();
}
