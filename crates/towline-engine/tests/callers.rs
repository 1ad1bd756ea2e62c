//! A caller's code that panics where the engine runs it: its waker, the drop of an answer, the drop of a machine. The
//! threads of a node serve other callers and other groups, so it must end nothing but itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use crate::common::{Alone, DEADLINE, Log, address, id, wait};
use towline_engine::config::Config;
use towline_engine::errors::{ProposeError, ReadError, StatusError, WaitLeaderError};
use towline_engine::ids::GroupId;
use towline_engine::log_store::LogStore as _;
use towline_engine::message::LogId;
use towline_engine::node::{Consistency, Group, Start, StartError};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};
use towline_engine::status::Role;

/// Answers each command with its length; the answer to `drop` panics when it is dropped, and so does the machine of a
/// group that is told to `fail`.
#[derive(Default)]
struct Machine {
    failed: bool,
}

#[derive(Debug)]
struct Reply {
    bytes: usize,
    panics: bool,
}

impl Drop for Reply {
    fn drop(&mut self) {
        assert!(!std::mem::take(&mut self.panics), "an answer is dropped");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        assert!(!std::mem::take(&mut self.failed), "a machine is dropped");
    }
}

impl StateMachine for Machine {
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
        if self.failed { Err(Fatal::new("told to")) } else { Ok(()) }
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
struct Panics(AtomicUsize);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        panic!("a waker");
    }
}

/// Polls a future once with a waker that panics, and waits until it was woken.
async fn polled_and_woken<F: Future>(mut ask: impl FnMut() -> F, meanwhile: impl FnOnce()) {
    let panics = Arc::new(Panics::default());
    let waker = Waker::from(panics.clone());
    // An answer may be there before it is polled for.
    let _asked: Pin<Box<F>> = wait("a question that waits", || {
        let mut future = Box::pin(ask());
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        polled.is_pending().then_some(future)
    })
    .await;
    meanwhile();
    wait("the wake", || (panics.0.load(Ordering::SeqCst) > 0).then_some(())).await;
}

/// Two groups on one shard thread and one apply worker.
async fn two_groups() -> (Alone, Group<Machine>, Group<Machine>) {
    let config = Config {
        election_timeout_min: Duration::from_millis(500),
        election_timeout_max: Duration::from_millis(800),
        ..Config::default()
    };
    let alone = Alone::start(Config { apply_workers: 1, ..config }).await;
    let start = |group| {
        let members = Start::Bootstrap(vec![(id(1), address(1))]);
        alone.node.group(GroupId::new(group), Machine::default()).start(members)
    };
    let (one, other) = (start(1).await.unwrap(), start(2).await.unwrap());
    one.wait_leader(DEADLINE).await.unwrap();
    other.wait_leader(DEADLINE).await.unwrap();
    (alone, one, other)
}

async fn serves(group: &Group<Machine>) {
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
    serves(&other).await;
    serves(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waker_that_panics_at_a_change_of_state_ends_no_group() {
    let (_alone, one, other) = two_groups().await;
    let change = || {
        let mut watch = one.watch();
        watch.mark_unchanged();
        async move { watch.changed().await.is_ok() }
    };
    polled_and_woken(change, || drop(one.submit("four"))).await;
    serves(&other).await;
    serves(&one).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_panics_when_it_is_dropped_ends_no_group() {
    let (_alone, one, other) = two_groups().await;
    // An answer that comes before the proposal is dropped panics here, so the next one is tried.
    wait("an answer that the engine drops", || {
        let proposal = one.submit("drop").unwrap();
        catch_unwind(AssertUnwindSafe(|| drop(proposal))).ok()
    })
    .await;
    serves(&other).await;
    serves(&one).await;
}

/// The end of a group answers everybody who waits in it, lets go of its machine, and is told to who follows it.
#[tokio::test(flavor = "multi_thread")]
async fn callers_that_panic_while_their_group_goes_down_end_no_other_group() {
    let (alone, one, other) = two_groups().await;
    let down = || {
        let mut watch = one.watch();
        async move { watch.wait_for(|state| state.role == Role::Down).await.is_ok() }
    };
    polled_and_woken(down, || drop(one.submit("fail"))).await;
    wait("the quarantine", || (one.state().role == Role::Down).then_some(())).await;
    assert!(matches!(one.propose("x").await.unwrap_err(), ProposeError::Stopped { .. }));
    serves(&other).await;
    tokio::time::timeout(DEADLINE, alone.node.shutdown(DEADLINE)).await.expect("the node stops");
}

/// The node and its other groups go on, and the group starts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_stopped_ends_typed_and_may_be_started_again() {
    let (alone, one, other) = two_groups().await;
    let copy = one.clone();
    one.stop().await.unwrap();
    assert_eq!(one.stop().await, Ok(()), "it has stopped already");
    let cause: Arc<str> = "the group was stopped on this node".into();
    let group = GroupId::new(1);
    assert_eq!(copy.propose("four").await.err(), Some(ProposeError::Stopped { cause: cause.clone() }));
    assert_eq!(copy.status().await, Err(StatusError::Stopped { group, cause: cause.clone() }));
    let waited = copy.wait_leader(DEADLINE).await;
    assert_eq!(waited, Err(WaitLeaderError::Stopped { group, cause }));
    assert!(matches!(copy.read(Consistency::Linearizable).await, Err(ReadError::Stopped { .. })));
    serves(&other).await;

    let again = alone.node.group(group, Machine::default()).start(Start::Restart).await.unwrap();
    again.wait_leader(DEADLINE).await.unwrap();
    copy.stop().await.unwrap();
    serves(&again).await;
}

/// A stop wrote its last commit index when its future was polled again. By then the next generation could have voted in a
/// newer term, and the old hard state replaced that vote.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_is_polled_late_leaves_the_term_of_the_next_generation() {
    let log = Arc::new(Log::default());
    let config = Config {
        election_timeout_min: Duration::from_millis(500),
        election_timeout_max: Duration::from_millis(800),
        ..Config::default()
    };
    let alone = Alone::start_on(log.clone(), config).await;
    let (group, members) = (GroupId::new(1), Start::Bootstrap(vec![(id(1), address(1))]));
    let mut running = alone.node.group(group, Machine::default()).start(members).await.unwrap();
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
        running = alone.node.group(group, Machine::default()).start(Start::Restart).await.unwrap();
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
    let alone = Alone::start(config).await;
    let start = |group| {
        let members = Start::Bootstrap(vec![(id(1), address(1))]);
        alone.node.group(GroupId::new(group), Machine::default()).start(members)
    };
    let one = start(1).await.unwrap();
    one.wait_leader(DEADLINE).await.unwrap();
    drop(one.submit("fail").unwrap());
    wait("the quarantine", || (one.state().role == Role::Down).then_some(())).await;
    let Err(refused) = start(2).await else { panic!("no place is free") };
    assert!(matches!(refused, StartError::TooManyGroups { groups_max: 1 }), "{refused}");
    one.stop().await.unwrap();
    start(2).await.unwrap();
}
