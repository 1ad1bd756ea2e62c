use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::*;

/// Records what is reported.
#[derive(Default)]
struct Posted(Mutex<Vec<SnapshotStatus>>);

impl Reporter for Posted {
    fn report_unreachable(&self, _: NodeId, _: Scope, _: UnreachableCause) {}

    fn report_snapshot(&self, _: SnapshotAttempt, status: SnapshotStatus) {
        self.0.lock().unwrap().push(status);
    }
}

impl Posted {
    /// What is reported of a ticket that is used like that.
    fn of(used: impl FnOnce(SnapshotTicket)) -> Vec<SnapshotStatus> {
        let posted = Arc::new(Self::default());
        let peer = NodeId::new(2).unwrap();
        let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer, term: 1, index: 10, number: 1 };
        used(SnapshotTicket::new(attempt, posted.clone()));
        let statuses = posted.0.lock().unwrap();
        statuses.clone()
    }
}

#[test]
fn a_ticket_reports_exactly_once() {
    assert_eq!(Posted::of(SnapshotTicket::finish), [SnapshotStatus::Finish]);
    let failed = Posted::of(|ticket| ticket.fail(SnapshotFailure::Timeout));
    assert_eq!(failed, [SnapshotStatus::Failure(SnapshotFailure::Timeout)]);
}

#[test]
fn a_dropped_ticket_reports_a_failure() {
    assert_eq!(Posted::of(drop), [SnapshotStatus::Failure(SnapshotFailure::Abandoned)]);
}

/// Whoever listens to the log panics, as standard error does once it is closed.
struct Panics;

impl tracing::Subscriber for Panics {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        panic!("a subscriber");
    }

    fn enter(&self, _: &tracing::Id) {}

    fn exit(&self, _: &tracing::Id) {}
}

/// The line came before the report: a panic in it took the report with it, and the follower was left to the watchdog.
#[test]
fn a_subscriber_that_panics_costs_no_report() {
    let finished = Posted::of(|ticket| {
        let finish = || tracing::subscriber::with_default(Panics, || ticket.finish());
        assert!(catch_unwind(AssertUnwindSafe(finish)).is_err(), "the line is told");
    });
    assert_eq!(finished, [SnapshotStatus::Finish]);
}
