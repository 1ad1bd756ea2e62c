use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;

use super::*;
use crate::subscriber_double::OnEvent;

#[derive(Default)]
struct RecordedStatuses(Mutex<Vec<SnapshotStatus>>);

impl Reporter for RecordedStatuses {
    fn report_unreachable(&self, _: NodeId, _: Scope, _: UnreachableCause) {}

    fn report_snapshot(&self, _: SnapshotAttempt, status: SnapshotStatus) {
        self.0.lock().unwrap().push(status);
    }
}

/// The reports of a ticket that `consume` consumes.
fn reports_of(consume: impl FnOnce(SnapshotTicket)) -> Vec<SnapshotStatus> {
    let recorded = Arc::new(RecordedStatuses::default());
    let peer = NodeId::new(2).unwrap();
    let attempt = SnapshotAttempt { group: GroupId::DEFAULT, peer, term: 1, index: 10, number: 1 };
    consume(SnapshotTicket::new(attempt, recorded.clone()));
    let statuses = recorded.0.lock().unwrap();
    statuses.clone()
}

#[test]
fn a_ticket_reports_exactly_once_and_a_dropped_one_reports_a_failure() {
    assert_eq!(reports_of(SnapshotTicket::finish), [SnapshotStatus::Finish]);
    let failed = reports_of(|ticket| ticket.fail(SnapshotFailure::Timeout));
    assert_eq!(failed, [SnapshotStatus::Failure(SnapshotFailure::Timeout)]);
    assert_eq!(reports_of(drop), [SnapshotStatus::Failure(SnapshotFailure::Abandoned)]);
}

/// The log line once came before the report. A subscriber that panicked, as standard error does once it is closed, then left
/// the follower latched until the watchdog reported.
#[test]
fn a_subscriber_that_panics_loses_no_report() {
    let finished = reports_of(|ticket| {
        let panics = OnEvent(|_: &tracing::Event<'_>| panic!("a subscriber"));
        let finish = || tracing::subscriber::with_default(panics, || ticket.finish());
        assert!(catch_unwind(AssertUnwindSafe(finish)).is_err(), "the line reaches the subscriber");
    });
    assert_eq!(finished, [SnapshotStatus::Finish]);
}
