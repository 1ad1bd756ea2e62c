//! What a group waits for around snapshots.

use std::time::Duration;

use towline_metrics::labels::WaitKind;

use super::*;
use crate::explain::WaitCause;
use crate::reporter::Report;

/// What node 2, or node 1 for `None`, is waited for.
fn cause(group: &TestGroup, peer: Option<u64>) -> Option<WaitCause> {
    let waits = group.explain(Duration::from_millis(1));
    waits.into_iter().find(|wait| wait.peer == peer.map(id)).map(|wait| wait.cause)
}

#[test]
fn a_running_transfer_is_named_and_then_the_wait_for_the_next_one() {
    let mut group = leader(|setup| setup.policy.retry.wait_ticks_min = 80);
    let transfer = group.begin();
    group.heartbeats(8);
    let Some(WaitCause::Snapshot { attempt }) = cause(&group, Some(2)) else {
        panic!("{:?}", group.explain(Duration::ZERO))
    };
    assert_eq!((attempt.number, attempt.bytes), (transfer.ticket.attempt().number, 100));
    group.fail(transfer, SnapshotFailure::Transfer);
    group.heartbeats(8);
    let Some(WaitCause::Backoff { remaining, last_attempt }) = cause(&group, Some(2)) else {
        panic!("{:?}", group.explain(Duration::ZERO))
    };
    assert!(remaining >= Duration::from_millis(80 - 8 * HEARTBEAT), "{remaining:?}");
    assert_eq!(last_attempt.unwrap().outcome, AttemptOutcome::Failed(SnapshotFailure::Transfer));
}

#[test]
fn a_peer_that_refuses_messages_is_named() {
    let mut group = lead(group(|_| ()), LAST);
    group.propose([vec![1]]);
    group.heartbeats(8);
    let kind = |group: &TestGroup| cause(group, Some(2)).map(|cause| cause.kind());
    assert_eq!(kind(&group), Some(WaitKind::CatchingUp));
    for _ in 0..8 {
        let cause = UnreachableCause::Nack(NackCause::InboxFull);
        assert!(group.take_report(Report::Unreachable { group: GroupId::DEFAULT, peer: id(2), cause }));
        group.heartbeats(1);
    }
    assert_eq!(kind(&group), Some(WaitKind::Refused));
}

#[test]
fn a_snapshot_that_is_not_restored_is_named() {
    let mut group = group(|_| ());
    let offer = super::installs::offer(50, 3);
    assert_eq!(group.receive(id(2), offer.message, offer.meta), Ok(50));
    let number = group.poll_write().0;
    group.written(number);
    group.ticks(14);
    assert_eq!(cause(&group, None), Some(WaitCause::Install { index: 50 }));
    group.applied(50);
    assert_eq!(cause(&group, None), None);
}
