//! A tally records its total once on every exit.

use std::sync::{Arc, Mutex};

use towline_metrics::labels::SnapshotOutcome::{self, *};
use towline_metrics::{ByteTally, RecordTotal};

#[derive(Clone, Default)]
struct Totals(Arc<Mutex<Vec<(SnapshotOutcome, u64)>>>);

impl Totals {
    fn record(&self) -> impl RecordTotal + use<> {
        let totals = self.clone();
        move |outcome, bytes| totals.0.lock().unwrap().push((outcome, bytes))
    }

    fn all(&self) -> Vec<(SnapshotOutcome, u64)> {
        self.0.lock().unwrap().clone()
    }
}

#[test]
fn a_tally_records_its_total_once_on_drop_finish_and_settle() {
    let totals = Totals::default();
    drop(ByteTally::new(totals.record()));
    let tally = ByteTally::new(totals.record());
    tally.add(3);
    tally.add(4);
    assert_eq!(
        (tally.bytes(), totals.all()),
        (7, vec![(Cancelled, 0)]),
        "nothing is recorded before the end"
    );
    assert_eq!(tally.finish(AlreadyHad), 7);
    let mut tally = ByteTally::new(totals.record());
    tally.add(5);
    assert_eq!((tally.settle(Refused), tally.settle(Failed)), (5, 5));
    drop(tally);
    assert_eq!(totals.all(), [(Cancelled, 0), (AlreadyHad, 7), (Refused, 5)]);
}

#[test]
fn a_panic_of_the_owner_records_the_transfer_as_cancelled() {
    let totals = Totals::default();
    let record = totals.record();
    let owner = std::thread::spawn(move || {
        let tally = ByteTally::new(record);
        tally.add(60);
        panic!("a fault of the owner");
    });
    assert!(owner.join().is_err());
    assert_eq!(totals.all(), [(Cancelled, 60)]);
}
