//! What a broken transfer left is read again, which takes long if it is much.

use towline_engine::snapshot_store::{REREAD_BYTES_MAX, SnapshotStoreError};

use super::{New, Open, SEVERAL_MIB, body, head, meta_of};

pub fn what_is_read_again_is_told_of_and_may_be_left_for_later(new: New<'_>) {
    let mut open = Open::new(new);
    let bytes = body(SEVERAL_MIB + open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    let mut told = Vec::new();
    open.store().receive_while(&meta, &mut noting(&mut told)).unwrap();
    assert_eq!(told, [0; 0], "nothing is here yet");
    open.leave(&meta, &bytes, SEVERAL_MIB);
    for stops_after in [1, 2] {
        open.restart();
        let mut told = 0;
        let stopped = open.store().receive_while(&meta, &mut |_| {
            told += 1;
            told < stops_after
        });
        let is_stopped = |error: &SnapshotStoreError| matches!(error, SnapshotStoreError::Stopped { content } if *content == meta.content);
        assert!(stopped.is_err_and(|error| is_stopped(&error)), "it was told to stop");
        assert_eq!((told, open.fixture.files()), (stops_after, 1));
    }
    let writer = open.store().receive_while(&meta, &mut noting(&mut told)).unwrap();
    assert_eq!(writer.verified(), SEVERAL_MIB as u64);
    drop(writer);
    told.insert(0, 0);
    told.push(SEVERAL_MIB as u64);
    let steps: Vec<_> = told.windows(2).map(|pair| pair[1].checked_sub(pair[0])).collect();
    assert!(steps.iter().all(|step| step.is_some_and(|bytes| bytes <= REREAD_BYTES_MAX)), "{told:?}");
    assert_eq!(open.finish(&meta, &bytes), SEVERAL_MIB);
}

/// Notes what it is told, and goes on.
fn noting(told: &mut Vec<u64>) -> impl FnMut(u64) -> bool + '_ {
    |held| {
        told.push(held);
        true
    }
}
