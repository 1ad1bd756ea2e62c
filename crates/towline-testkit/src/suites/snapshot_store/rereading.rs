//! Reading a large partial file again.

use towline_engine::snapshot_store::{REREAD_BYTES_MAX, SnapshotStoreError};

use super::{OpenSnapshotStore, SEVERAL_MIB, body, head, meta_of};

pub fn rereading_a_partial_file_reports_progress_and_may_stop(mut open: OpenSnapshotStore) {
    let bytes = body(SEVERAL_MIB + open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    let mut reported = Vec::new();
    open.store().receive_while(&meta, &mut recording(&mut reported)).unwrap();
    assert_eq!(reported, [0; 0], "there is no partial file yet");
    open.leave(&meta, &bytes, SEVERAL_MIB);
    for stops_after in [1, 2] {
        open.restart();
        let mut reported = 0;
        let stopped = open.store().receive_while(&meta, &mut |_| {
            reported += 1;
            reported < stops_after
        });
        let is_stopped = |error: &SnapshotStoreError| matches!(error, SnapshotStoreError::Stopped { content } if *content == meta.content);
        assert!(stopped.is_err_and(|error| is_stopped(&error)), "the caller asked to stop");
        assert_eq!((reported, open.fixture.files()), (stops_after, 1));
    }
    let writer = open.store().receive_while(&meta, &mut recording(&mut reported)).unwrap();
    assert_eq!(writer.verified(), SEVERAL_MIB as u64);
    drop(writer);
    reported.insert(0, 0);
    reported.push(SEVERAL_MIB as u64);
    let steps: Vec<_> = reported.windows(2).map(|pair| pair[1].checked_sub(pair[0])).collect();
    assert!(steps.iter().all(|step| step.is_some_and(|bytes| bytes <= REREAD_BYTES_MAX)), "{reported:?}");
    assert_eq!(open.finish(&meta, &bytes), SEVERAL_MIB);
}

/// Records the progress and continues.
fn recording(reported: &mut Vec<u64>) -> impl FnMut(u64) -> bool + '_ {
    |held| {
        reported.push(held);
        true
    }
}
