//! The contract of a [`SnapshotStore`]: each sentence of its contract is a case.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::snapshot_store::SnapshotStoreFixture for Mine { .. }
//! towline_testkit::snapshot_store_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` for each case.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs // the name of a case is its sentence
)]

mod parts;
mod reading;
mod rereading;

pub use parts::*;
pub use reading::*;
pub use rereading::*;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc;

use towline_engine::ids::{FoundingHash, GroupId, Incarnation, NodeId};
use towline_engine::message::{ConfState, LogId, Member};
use towline_engine::snapshot_store::{
    BodyRead, ContentHasher, ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore,
    SnapshotStoreError, SnapshotWriter, Trailer,
};

/// A store under test and its disk.
pub trait SnapshotStoreFixture {
    /// Opens the store on its disk. The previous store was dropped.
    fn open(&mut self) -> Arc<dyn SnapshotStore>;

    /// Ends the process; the disk stays. No store is open.
    fn restart(&mut self);

    /// Loses all that is not durable. No store is open.
    fn crash(&mut self);

    /// Bytes under one checksum.
    fn chunk_bytes(&self) -> usize;

    /// Flips one bit of byte `offset` of a body on the disk: of the complete file, or else of the partial file. The
    /// file is not open.
    fn flip(&mut self, meta: &SnapshotMeta, offset: usize);

    /// The number of files on the disk: complete, partial, being written.
    fn files(&self) -> usize;
}

/// Makes a module with one `#[test]` for each case of the suite. The second argument makes an empty fixture.
#[macro_export]
macro_rules! snapshot_store_suite {
    ($module:ident, $new:expr) => {
        $crate::__suite!(snapshot_store, $module, $crate::suites::snapshot_store::OpenSnapshotStore::new(($new)());
            an_empty_store_has_no_snapshot
            a_created_snapshot_reads_back_at_every_length
            a_received_snapshot_reads_back_at_every_length
            a_commit_survives_a_crash
            a_snapshot_is_invisible_before_its_commit
            a_dropped_writer_of_a_created_snapshot_leaves_no_file
            a_discarded_writer_leaves_no_file
            a_commit_without_verify_fails_and_removes_the_file
            a_write_after_verify_voids_the_verification
            verify_makes_no_snapshot_visible
            a_wrong_digest_is_refused_and_removed
            a_short_body_is_refused_and_removed
            a_long_body_is_refused_and_removed
            a_created_snapshot_is_checked_against_a_trailer
            another_head_is_another_content
            flush_writes_buffered_bytes_to_the_file
            a_broken_transfer_resumes_where_it_broke
            a_broken_transfer_resumes_after_a_restart
            a_transfer_may_break_several_times
            a_complete_partial_file_needs_no_further_byte
            a_damaged_partial_file_is_cut_at_the_damage
            a_partial_file_with_a_damaged_start_begins_anew
            a_partial_file_of_another_offer_is_not_resumed
            rereading_a_partial_file_reports_progress_and_may_stop
            a_second_writer_of_one_content_is_busy
            writers_of_different_contents_are_independent
            latest_has_the_highest_index
            the_higher_term_breaks_a_tie
            complete_lists_every_snapshot_the_newest_first
            find_returns_every_complete_snapshot
            groups_are_independent
            a_read_begins_at_any_offset
            reads_of_any_size_give_the_same_bytes
            a_reader_detects_damage
            every_part_carries_its_own_checksum
            parts_end_before_damage
            parts_do_not_change_while_they_are_held
            a_body_may_be_written_in_parts_of_any_size
            a_broken_transfer_resumes_in_parts
            a_part_with_a_wrong_checksum_is_refused
            a_part_beyond_the_end_is_refused_and_removed
            a_part_after_verify_voids_the_verification
            an_absent_snapshot_is_missing
            retain_removes_other_snapshots
            retain_removes_partial_files
            retain_keeps_named_files
            retain_keeps_files_of_open_writers
            an_open_file_stays_until_its_last_reader_is_dropped
            a_file_that_is_retained_again_stays
            a_reader_is_not_disturbed_by_the_same_snapshot_again
            many_threads_write_and_read
        );
    };
}

const A: GroupId = GroupId::DEFAULT;
const B: GroupId = GroupId::new(77);
const SEVERAL_MIB: usize = 5 * 1024 * 1024 + 321;

/// A fixture with the store open.
pub struct OpenSnapshotStore {
    fixture: Box<dyn SnapshotStoreFixture>,
    store: Option<Arc<dyn SnapshotStore>>,
}

/// A head at this index, term 3, of the default group.
pub fn head(index: u64) -> SnapshotHead {
    head_of(A, index, 3)
}

fn head_of(group: GroupId, index: u64, term: u64) -> SnapshotHead {
    let id = |n| NodeId::new(n).unwrap();
    let member = |n| Member { address: "grpc://h:1".parse().unwrap(), incarnation: Incarnation::new(n) };
    SnapshotHead {
        group,
        founding: FoundingHash::new(index + 1),
        at: LogId { index, term },
        conf_state: ConfState { voters: vec![id(1), id(2)], learners: vec![id(3)], ..ConfState::default() },
        members: [(id(1), member(5)), (id(2), member(0))].into(),
    }
}

/// Random bytes from a seed.
fn body(length: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

fn meta_of(head: &SnapshotHead, body: &[u8]) -> SnapshotMeta {
    let mut hasher = ContentHasher::new(head);
    hasher.update(body);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head: head.clone(), length, content }
}

fn trailer(meta: &SnapshotMeta) -> Trailer {
    Trailer { length: meta.length, content: meta.content }
}

fn corrupt<T>(outcome: Result<T, SnapshotStoreError>) -> bool {
    matches!(outcome, Err(SnapshotStoreError::Corrupt { .. }))
}

impl OpenSnapshotStore {
    pub fn new(mut fixture: impl SnapshotStoreFixture + 'static) -> Self {
        let store = Some(fixture.open());
        Self { fixture: Box::new(fixture), store }
    }

    fn store(&self) -> &dyn SnapshotStore {
        self.store.as_deref().unwrap()
    }

    fn restart(&mut self) {
        self.store = None;
        self.fixture.restart();
        self.store = Some(self.fixture.open());
    }

    /// Damages a byte of a body while the store is closed.
    fn damage(&mut self, meta: &SnapshotMeta, at: usize) {
        self.store = None;
        self.fixture.flip(meta, at);
        self.fixture.restart();
        self.store = Some(self.fixture.open());
    }

    fn crash(&mut self) {
        self.store = None;
        self.fixture.crash();
        self.store = Some(self.fixture.open());
    }

    fn chunk(&self) -> usize {
        self.fixture.chunk_bytes()
    }

    fn lengths(&self) -> [usize; 7] {
        let chunk = self.chunk();
        [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, SEVERAL_MIB]
    }

    fn put(&self, head: &SnapshotHead, body: &[u8]) -> SnapshotMeta {
        let mut writer = self.store().create(head).unwrap();
        writer.write_all(body).unwrap();
        writer.verify(None).unwrap();
        writer.commit().unwrap()
    }

    fn receive(&self, meta: &SnapshotMeta) -> Box<dyn SnapshotWriter> {
        self.store().receive(meta).unwrap()
    }

    /// Leaves a partial file of `length` bytes.
    fn leave(&self, meta: &SnapshotMeta, body: &[u8], length: usize) {
        let mut writer = self.receive(meta);
        let from = writer.verified() as usize;
        writer.write_all(&body[from..length]).unwrap();
        writer.flush().unwrap();
        assert_eq!(writer.verified(), length as u64);
    }

    /// Resumes a transfer, finishes it, and returns where it resumed.
    fn finish(&self, meta: &SnapshotMeta, body: &[u8]) -> usize {
        let mut writer = self.receive(meta);
        let from = writer.verified() as usize;
        writer.write_all(&body[from..]).unwrap();
        writer.verify(Some(&trailer(meta))).unwrap();
        assert_eq!(writer.commit().unwrap(), *meta);
        assert_eq!(self.read(meta, 0), body);
        from
    }

    fn read(&self, meta: &SnapshotMeta, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.reader(meta, offset).read_to_end(&mut bytes).unwrap();
        bytes
    }

    fn reader(&self, meta: &SnapshotMeta, offset: u64) -> BodyRead {
        BodyRead::new(self.store().open(meta, offset).unwrap())
    }

    fn assert_nothing_of(&self, meta: &SnapshotMeta) {
        let group = meta.head.group;
        assert_eq!(self.store().find(group, meta.content).unwrap(), None);
        assert!(!self.store().complete(group).unwrap().contains(meta));
        assert!(matches!(self.store().open(meta, 0), Err(SnapshotStoreError::Missing { .. })));
    }

    fn assert_gone(&self, meta: &SnapshotMeta) {
        self.assert_nothing_of(meta);
        assert_eq!(self.fixture.files(), 0, "a file is left");
        assert_eq!(self.receive(meta).verified(), 0, "the refused bytes are resumed");
    }
}

pub fn an_empty_store_has_no_snapshot(open: OpenSnapshotStore) {
    assert_eq!(open.store().latest(A).unwrap(), None);
    assert_eq!(open.store().find(A, ContentId([7; 16])).unwrap(), None);
    open.store().retain(A, &[]).unwrap();
    assert_eq!(open.fixture.files(), 0);
}

pub fn a_created_snapshot_reads_back_at_every_length(open: OpenSnapshotStore) {
    for (number, length) in open.lengths().into_iter().enumerate() {
        let (head, body) = (head(1 + number as u64), body(length, number as u64));
        let meta = open.put(&head, &body);
        assert_eq!(meta, meta_of(&head, &body), "{length}");
        assert_eq!(open.read(&meta, 0), body, "{length}");
        assert_eq!(open.store().latest(A).unwrap(), Some(meta), "{length}");
    }
}

pub fn a_received_snapshot_reads_back_at_every_length(open: OpenSnapshotStore) {
    for (number, length) in open.lengths().into_iter().enumerate() {
        let body = body(length, number as u64);
        let meta = meta_of(&head(1 + number as u64), &body);
        let mut writer = open.receive(&meta);
        for part in body.chunks(10_007) {
            writer.write_all(part).unwrap();
        }
        writer.flush().unwrap();
        assert_eq!(writer.verified(), length as u64);
        writer.verify(Some(&trailer(&meta))).unwrap();
        assert_eq!(writer.commit().unwrap(), meta);
        assert_eq!(open.read(&meta, 0), body, "{length}");
        assert_eq!(open.store().latest(A).unwrap(), Some(meta), "{length}");
    }
}

pub fn a_commit_survives_a_crash(mut open: OpenSnapshotStore) {
    let (ours, theirs) = (body(SEVERAL_MIB, 1), body(open.chunk() + 9, 2));
    let own = open.put(&head(4), &ours);
    let received = meta_of(&head(9), &theirs);
    open.finish(&received, &theirs);
    for _ in 0..2 {
        open.crash();
        assert_eq!(open.store().latest(A).unwrap().as_ref(), Some(&received));
        assert_eq!(open.store().find(A, own.content).unwrap().as_ref(), Some(&own));
        assert_eq!(open.read(&own, 0), ours);
        assert_eq!(open.read(&received, 0), theirs);
        open.restart();
    }
}

pub fn a_snapshot_is_invisible_before_its_commit(mut open: OpenSnapshotStore) {
    let older = open.put(&head(1), b"older");
    let bytes = body(2 * open.chunk(), 1);
    let (ours, theirs) = (meta_of(&head(2), &bytes), meta_of(&head(3), &bytes));
    let mut own = open.store().create(&ours.head).unwrap();
    let mut received = open.receive(&theirs);
    for writer in [&mut own, &mut received] {
        writer.write_all(&bytes).unwrap();
        writer.flush().unwrap();
    }
    for meta in [&ours, &theirs] {
        open.assert_nothing_of(meta);
    }
    assert_eq!(open.store().latest(A).unwrap().as_ref(), Some(&older));
    drop((own, received));
    open.crash();
    for meta in [&ours, &theirs] {
        open.assert_nothing_of(meta);
    }
    assert_eq!(open.store().latest(A).unwrap(), Some(older));
}

pub fn a_dropped_writer_of_a_created_snapshot_leaves_no_file(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk() + 5, 1);
    let mut writer = open.store().create(&head(1)).unwrap();
    writer.write_all(&bytes).unwrap();
    assert_eq!(open.fixture.files(), 1);
    drop(writer);
    open.assert_gone(&meta_of(&head(1), &bytes));
}

pub fn a_discarded_writer_leaves_no_file(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk() + 5, 1);
    let meta = meta_of(&head(1), &bytes);
    for mut writer in [open.store().create(&meta.head).unwrap(), open.receive(&meta)] {
        writer.write_all(&bytes).unwrap();
        writer.verify(None).unwrap();
        writer.discard();
    }
    open.assert_gone(&meta);
}

pub fn a_commit_without_verify_fails_and_removes_the_file(open: OpenSnapshotStore) {
    let bytes = body(open.chunk() + 5, 1);
    let meta = meta_of(&head(1), &bytes);
    for mut writer in [open.store().create(&meta.head).unwrap(), open.receive(&meta)] {
        writer.write_all(&bytes).unwrap();
        assert!(corrupt(writer.commit()));
    }
    open.assert_gone(&meta);
}

pub fn a_write_after_verify_voids_the_verification(open: OpenSnapshotStore) {
    let mut writer = open.store().create(&head(1)).unwrap();
    writer.write_all(b"one").unwrap();
    writer.verify(None).unwrap();
    writer.write_all(b"two").unwrap();
    assert!(corrupt(writer.commit()));
    open.assert_gone(&meta_of(&head(1), b"onetwo"));
    let mut writer = open.store().create(&head(1)).unwrap();
    writer.write_all(b"one").unwrap();
    writer.verify(None).unwrap();
    writer.write_all(b"two").unwrap();
    writer.verify(None).unwrap();
    assert_eq!(writer.commit().unwrap(), meta_of(&head(1), b"onetwo"));
}

pub fn verify_makes_no_snapshot_visible(open: OpenSnapshotStore) {
    let bytes = body(open.chunk() + 5, 1);
    let meta = meta_of(&head(1), &bytes);
    let mut writer = open.receive(&meta);
    writer.write_all(&bytes).unwrap();
    writer.verify(Some(&trailer(&meta))).unwrap();
    open.assert_nothing_of(&meta);
    writer.verify(Some(&trailer(&meta))).unwrap();
    assert_eq!(writer.commit().unwrap(), meta);
}

/// Checks that `verify` refuses what `write` writes, and so does a `commit` that ignores it.
fn assert_refused(open: &OpenSnapshotStore, meta: &SnapshotMeta, write: impl Fn(&mut dyn SnapshotWriter)) {
    for commit in [false, true] {
        let mut writer = open.receive(meta);
        assert_eq!(writer.verified(), 0);
        write(&mut *writer);
        assert!(writer.verify(Some(&trailer(meta))).is_err());
        if commit {
            assert!(writer.commit().is_err());
        } else {
            drop(writer);
        }
        open.assert_gone(meta);
    }
}

pub fn a_wrong_digest_is_refused_and_removed(open: OpenSnapshotStore) {
    let good = body(2 * open.chunk() + 7, 1);
    let meta = meta_of(&head(1), &good);
    for at in [0, open.chunk(), good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert_refused(&open, &meta, |writer| writer.write_all(&bad).unwrap());
    }
    let mut writer = open.receive(&meta);
    writer.write_all(&good).unwrap();
    let other = Trailer { content: ContentId([1; 16]), ..trailer(&meta) };
    assert!(corrupt(writer.verify(Some(&other))), "the trailer is not what was offered");
}

pub fn a_short_body_is_refused_and_removed(open: OpenSnapshotStore) {
    let good = body(2 * open.chunk() + 7, 1);
    let meta = meta_of(&head(1), &good);
    for length in [0, 1, open.chunk(), good.len() - 1] {
        assert_refused(&open, &meta, |writer| writer.write_all(&good[..length]).unwrap());
    }
    let empty = meta_of(&head(2), b"");
    assert_refused(&open, &SnapshotMeta { length: 1, ..empty }, |_| {});
}

pub fn a_long_body_is_refused_and_removed(open: OpenSnapshotStore) {
    for length in [0, 1, open.chunk() - 1, open.chunk(), 2 * open.chunk() + 7] {
        let long = body(length + 1, 1);
        let meta = meta_of(&head(1), &long[..length]);
        assert_refused(&open, &meta, |writer| {
            // The write may fail at once.
            let _ = writer.write_all(&long);
        });
        assert_refused(&open, &meta, |writer| {
            writer.write_all(&long[..length]).unwrap();
            let _ = writer.write_all(&long[length..]);
        });
    }
}

pub fn a_created_snapshot_is_checked_against_a_trailer(open: OpenSnapshotStore) {
    let meta = meta_of(&head(1), b"body");
    let mut writer = open.store().create(&meta.head).unwrap();
    writer.write_all(b"bodY").unwrap();
    assert!(corrupt(writer.verify(Some(&trailer(&meta)))));
    assert!(corrupt(writer.commit()));
    open.assert_gone(&meta);
}

pub fn another_head_is_another_content(open: OpenSnapshotStore) {
    let bytes = body(100, 1);
    let meta = meta_of(&head(1), &bytes);
    let other = SnapshotMeta { head: head(2), ..meta };
    let mut writer = open.receive(&other);
    writer.write_all(&bytes).unwrap();
    assert!(corrupt(writer.verify(Some(&trailer(&other)))));
}

pub fn flush_writes_buffered_bytes_to_the_file(open: OpenSnapshotStore) {
    let bytes = body(3 * open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    let mut writer = open.receive(&meta);
    let mut taken = 0;
    for length in [1, 9, open.chunk(), 5, open.chunk() - 15, 100] {
        writer.write_all(&bytes[taken..taken + length]).unwrap();
        taken += length;
        assert!(writer.verified() <= taken as u64);
        writer.flush().unwrap();
        assert_eq!(writer.verified(), taken as u64);
        writer.flush().unwrap();
    }
    drop(writer);
    assert_eq!(open.finish(&meta, &bytes), taken);
}

pub fn a_broken_transfer_resumes_where_it_broke(open: OpenSnapshotStore) {
    let chunk = open.chunk();
    for (number, broken_at) in
        [1, chunk - 1, chunk, chunk + 1, 2 * chunk + 77, 3 * chunk].into_iter().enumerate()
    {
        let bytes = body(3 * chunk + 100, number as u64);
        let meta = meta_of(&head(1 + number as u64), &bytes);
        let mut writer = open.receive(&meta);
        writer.write_all(&bytes[..broken_at]).unwrap();
        let verified = writer.verified() as usize;
        drop(writer);
        open.assert_nothing_of(&meta);
        let from = open.finish(&meta, &bytes);
        assert!((verified..=broken_at).contains(&from), "{verified} bytes were verified, {from} are left");
    }
}

pub fn a_broken_transfer_resumes_after_a_restart(mut open: OpenSnapshotStore) {
    for length in [1, open.chunk(), 2 * open.chunk() + 77] {
        let bytes = body(3 * open.chunk(), length as u64);
        let meta = meta_of(&head(length as u64), &bytes);
        open.leave(&meta, &bytes, length);
        open.restart();
        open.assert_nothing_of(&meta);
        assert_eq!(open.finish(&meta, &bytes), length);
        open.restart();
        assert_eq!(open.read(&meta, 0), bytes);
    }
}

pub fn a_transfer_may_break_several_times(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let bytes = body(6 * chunk + 5, 1);
    let meta = meta_of(&head(1), &bytes);
    for step in 1..=12 {
        open.leave(&meta, &bytes, step * chunk / 2 + step % 3);
        if step % 4 == 0 {
            open.restart();
        }
    }
    assert_eq!(open.finish(&meta, &bytes), 6 * chunk);
    assert_eq!(open.fixture.files(), 1);
}

pub fn a_complete_partial_file_needs_no_further_byte(mut open: OpenSnapshotStore) {
    for length in [open.chunk(), 2 * open.chunk() + 5] {
        let bytes = body(length, 1);
        let meta = meta_of(&head(length as u64), &bytes);
        open.leave(&meta, &bytes, length);
        assert_eq!(open.receive(&meta).verified(), length as u64);
        open.restart();
        assert_eq!(open.finish(&meta, &bytes), length);
    }
}

pub fn a_damaged_partial_file_is_cut_at_the_damage(mut open: OpenSnapshotStore) {
    let chunk = open.chunk();
    let left = 3 * chunk + 50;
    for (number, at) in [3 * chunk + 49, 3 * chunk, 2 * chunk + 1, chunk].into_iter().enumerate() {
        let bytes = body(4 * chunk, number as u64);
        let meta = meta_of(&head(1 + number as u64), &bytes);
        open.leave(&meta, &bytes, left);
        open.fixture.flip(&meta, at);
        if number % 2 == 0 {
            open.restart();
        }
        assert_eq!(open.finish(&meta, &bytes), at - at % chunk);
    }
}

pub fn a_partial_file_with_a_damaged_start_begins_anew(mut open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    open.leave(&meta, &bytes, open.chunk() + 1);
    open.fixture.flip(&meta, 0);
    assert_eq!(open.finish(&meta, &bytes), 0);
}

pub fn a_partial_file_of_another_offer_is_not_resumed(open: OpenSnapshotStore) {
    let bytes = body(2 * open.chunk(), 1);
    let meta = meta_of(&head(1), &bytes);
    // A lying peer.
    for other in [
        SnapshotMeta { length: meta.length + 1, ..meta.clone() },
        SnapshotMeta { head: head(9), ..meta.clone() },
    ] {
        open.leave(&other, &bytes, open.chunk() + 1);
        assert_eq!(open.finish(&meta, &bytes), 0);
        open.store().retain(A, &[]).unwrap();
    }
}

pub fn a_second_writer_of_one_content_is_busy(open: OpenSnapshotStore) {
    let bytes = body(open.chunk() + 9, 1);
    let meta = meta_of(&head(1), &bytes);
    let mut writer = open.receive(&meta);
    let busy = || {
        let second = open.store().receive(&meta);
        matches!(second, Err(SnapshotStoreError::Busy { content }) if content == meta.content)
    };
    assert!(busy());
    writer.write_all(&bytes).unwrap();
    writer.verify(Some(&trailer(&meta))).unwrap();
    assert!(busy());
    drop(writer);
    let mut writer = open.receive(&meta);
    assert!(busy(), "a refused writer must not release the content");
    let from = writer.verified() as usize;
    writer.write_all(&bytes[from..]).unwrap();
    writer.verify(Some(&trailer(&meta))).unwrap();
    writer.commit().unwrap();
    open.receive(&meta).discard();
    assert_eq!(open.read(&meta, 0), bytes);
}

pub fn writers_of_different_contents_are_independent(open: OpenSnapshotStore) {
    let bodies = [body(open.chunk() * 2, 1), body(open.chunk() * 2, 2)];
    let metas = [meta_of(&head(1), &bodies[0]), meta_of(&head(1), &bodies[1])];
    let mut writers = [open.receive(&metas[0]), open.receive(&metas[1])];
    let mut own = [open.store().create(&head(5)).unwrap(), open.store().create(&head(5)).unwrap()];
    for at in (0..bodies[0].len()).step_by(1000) {
        for number in 0..2 {
            let part = &bodies[number][at..bodies[number].len().min(at + 1000)];
            writers[number].write_all(part).unwrap();
            own[number].write_all(part).unwrap();
        }
    }
    for ((mut writer, mut own), (meta, body)) in writers.into_iter().zip(own).zip(metas.iter().zip(&bodies)) {
        writer.verify(Some(&trailer(meta))).unwrap();
        writer.commit().unwrap();
        own.verify(None).unwrap();
        let own = own.commit().unwrap();
        assert_eq!(open.read(meta, 0), *body);
        assert_eq!(open.read(&own, 0), *body);
    }
}

pub fn latest_has_the_highest_index(mut open: OpenSnapshotStore) {
    let mut newest = None;
    for index in [5, 9, 3, 255, 16, 256, 0] {
        let meta = open.put(&head(index), &body(10, index));
        if newest.as_ref().is_none_or(|n: &SnapshotMeta| n.head.at.index < index) {
            newest = Some(meta);
        }
        assert_eq!(open.store().latest(A).unwrap(), newest);
    }
    open.restart();
    assert_eq!(open.store().latest(A).unwrap(), newest);
}

pub fn the_higher_term_breaks_a_tie(mut open: OpenSnapshotStore) {
    let newer = open.put(&head_of(A, 5, 4), b"x");
    open.put(&head_of(A, 5, 3), b"y");
    assert_eq!(open.store().latest(A).unwrap().as_ref(), Some(&newer));
    open.restart();
    assert_eq!(open.store().latest(A).unwrap(), Some(newer));
}

pub fn complete_lists_every_snapshot_the_newest_first(mut open: OpenSnapshotStore) {
    assert_eq!(open.store().complete(A).unwrap(), []);
    let places = [(5, 4), (300, 3), (5, 3), (2, 9)];
    let put = |(index, term): (u64, u64)| open.put(&head_of(A, index, term), &index.to_be_bytes());
    let [middle, newest, tied, oldest] = places.map(put);
    // A received snapshot, and one of another group.
    let received = meta_of(&head_of(A, 299, 3), b"received");
    open.finish(&received, b"received");
    open.put(&head_of(B, 7, 1), b"b");
    let expected = [newest, received, middle, tied, oldest];
    for _ in 0..2 {
        assert_eq!(open.store().complete(A).unwrap(), expected);
        open.restart();
    }
    open.store().retain(A, &[expected[2].content]).unwrap();
    assert_eq!(open.store().complete(A).unwrap(), expected[2..3]);
}

pub fn find_returns_every_complete_snapshot(mut open: OpenSnapshotStore) {
    let metas: Vec<_> = (1..=4).map(|index| open.put(&head(index), &body(10, index))).collect();
    for _ in 0..2 {
        for meta in &metas {
            assert_eq!(open.store().find(A, meta.content).unwrap().as_ref(), Some(meta));
        }
        assert_eq!(open.store().find(A, ContentId([9; 16])).unwrap(), None);
        open.restart();
    }
}

pub fn groups_are_independent(mut open: OpenSnapshotStore) {
    let (in_a, in_b) = (open.put(&head_of(A, 5, 1), b"a"), open.put(&head_of(B, 9, 1), b"b"));
    let bytes = body(open.chunk() * 2, 1);
    let left = meta_of(&head_of(B, 10, 1), &bytes);
    open.leave(&left, &bytes, open.chunk());
    for _ in 0..2 {
        assert_eq!(open.store().latest(A).unwrap().as_ref(), Some(&in_a));
        assert_eq!(open.store().latest(B).unwrap().as_ref(), Some(&in_b));
        assert_eq!(open.store().find(A, in_b.content).unwrap(), None);
        open.store().retain(A, &[in_a.content]).unwrap();
        open.restart();
    }
    open.store().retain(A, &[]).unwrap();
    assert_eq!(open.store().latest(A).unwrap(), None);
    assert_eq!(open.read(&in_b, 0), b"b");
    assert_eq!(open.finish(&left, &bytes), open.chunk());
}
