//! Snapshot stores with one flaw each in bytes and checksums, and the check of the suite that must find it. The sound store under
//! them passes the same checks (`snapshot_store.rs`).

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    BodyPart, ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError,
    SnapshotWriter, Trailer,
};
use towline_testkit::snapshots::MemSnapshots;
use towline_testkit::suites::snapshot_store::{self as suite, NewSnapshotStore, SnapshotStoreFixture};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteFlaw {
    /// The control.
    Sound,
    /// The checksum of a part also covers its offset.
    SumOfMore,
    /// The checksum of a shortened part covers the whole part.
    SumOfUncut,
    /// Parts ignore `bytes_max`.
    Oversized,
    /// An offset is rounded down to its chunk.
    Aligned,
    /// Damage looks like the end of the body.
    DamageIsTheEnd,
    /// Damage has another error kind.
    DamageIsEio,
    /// The reader goes on after damage.
    GoesOn,
    /// The body ends with an empty part.
    EmptyAtTheEnd,
    /// The checksum of a part is ignored.
    Unchecked,
    /// Only parts of one chunk are checked.
    CheckedInPart,
    /// A part with a wrong checksum is written by half.
    TakesFirst,
    /// A refused part ends the writer.
    RefusesForGood,
    /// A reread of a partial file reports no progress.
    RereadsSilently,
    /// A reread reports too seldom.
    RereadsNearlySilently,
    /// A reread cannot be stopped.
    RereadsToTheEnd,
    /// A stopped reread removes the partial file.
    StopsForGood,
}

struct ByteFlawFixture {
    inner: MemSnapshots,
    flaw: ByteFlaw,
}

impl SnapshotStoreFixture for ByteFlawFixture {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        Arc::new(ByteFlawStore { inner: self.inner.clone(), flaw: self.flaw })
    }

    fn restart(&mut self) {
        self.inner = self.inner.restart();
    }

    fn crash(&mut self) {
        self.inner = self.inner.crash();
    }

    fn chunk_bytes(&self) -> usize {
        MemSnapshots::CHUNK_BYTES
    }

    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        assert!(self.inner.damage(meta, offset));
    }

    fn files(&self) -> usize {
        self.inner.files()
    }
}

struct ByteFlawStore {
    inner: MemSnapshots,
    flaw: ByteFlaw,
}

impl SnapshotStore for ByteFlawStore {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        self.inner.complete(group)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        self.inner.find(group, content)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(Box::new(ByteFlawWriter { inner: self.inner.create(head)?, flaw: self.flaw, refused: false }))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let mut told = 0;
        let inner = self.inner.receive_while(meta, &mut |held| {
            told += 1;
            match self.flaw {
                ByteFlaw::RereadsSilently => true,
                ByteFlaw::RereadsNearlySilently => told % 20 != 0 || goes_on(held),
                ByteFlaw::RereadsToTheEnd => {
                    goes_on(held);
                    true
                }
                _ => goes_on(held),
            }
        });
        if self.flaw == ByteFlaw::StopsForGood && matches!(inner, Err(SnapshotStoreError::Stopped { .. })) {
            self.inner.receive(meta)?.discard();
        }
        Ok(Box::new(ByteFlawWriter { inner: inner?, flaw: self.flaw, refused: false }))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let at = match self.flaw {
            ByteFlaw::Aligned => offset - offset % MemSnapshots::CHUNK_BYTES as u64,
            _ => offset,
        };
        let again = (self.inner.clone(), meta.clone());
        Ok(Box::new(ByteFlawReader {
            inner: self.inner.open(meta, at)?,
            flaw: self.flaw,
            at,
            again,
            ended: false,
        }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        self.inner.retain(group, keep)
    }
}

struct ByteFlawReader {
    inner: Box<dyn SnapshotReader>,
    flaw: ByteFlaw,
    at: u64,
    again: (MemSnapshots, SnapshotMeta),
    ended: bool,
}

impl SnapshotReader for ByteFlawReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        let wanted = match self.flaw {
            ByteFlaw::Oversized => bytes_max.max(5000),
            ByteFlaw::SumOfUncut => bytes_max.saturating_add(1),
            _ => bytes_max,
        };
        let part = match (self.inner.next_part(wanted), self.flaw) {
            (Err(_), ByteFlaw::DamageIsTheEnd) => return Ok(None),
            (Err(_), ByteFlaw::DamageIsEio) => return Err(io::Error::from_raw_os_error(5)),
            (Err(error), ByteFlaw::GoesOn) => {
                // Continue after the damaged chunk.
                let chunk = MemSnapshots::CHUNK_BYTES as u64;
                self.at = (self.at / chunk + 1) * chunk;
                let (store, meta) = &self.again;
                self.inner = store.open(meta, self.at.min(meta.length)).map_err(io::Error::other)?;
                return Err(error);
            }
            (part, _) => part?,
        };
        let Some(mut part) = part else {
            let empty = BodyPart { bytes: Bytes::new(), crc32c: 0 };
            let first = !std::mem::replace(&mut self.ended, true);
            return Ok((self.flaw == ByteFlaw::EmptyAtTheEnd && first).then_some(empty));
        };
        match self.flaw {
            ByteFlaw::SumOfMore => {
                let place = crc32c::crc32c(&self.at.to_le_bytes());
                part.crc32c = crc32c::crc32c_append(place, &part.bytes);
            }
            ByteFlaw::SumOfUncut if part.bytes.len() > bytes_max => {
                part.bytes.truncate(bytes_max);
                let (store, meta) = &self.again;
                let at = self.at + part.bytes.len() as u64;
                self.inner = store.open(meta, at).map_err(io::Error::other)?;
            }
            _ => {}
        }
        self.at += part.bytes.len() as u64;
        Ok(Some(part))
    }
}

struct ByteFlawWriter {
    inner: Box<dyn SnapshotWriter>,
    flaw: ByteFlaw,
    refused: bool,
}

impl Write for ByteFlawWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl SnapshotWriter for ByteFlawWriter {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        let holds = crc32c::crc32c(bytes) == crc32c;
        match self.flaw {
            ByteFlaw::Unchecked => self.inner.write_all(bytes),
            ByteFlaw::CheckedInPart if bytes.len() > MemSnapshots::CHUNK_BYTES => self.inner.write_all(bytes),
            ByteFlaw::TakesFirst if !holds => {
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
                self.inner.write_part(bytes, crc32c)
            }
            ByteFlaw::RefusesForGood if self.refused => Err(io::Error::other("it was refused")),
            _ => {
                self.refused |= !holds;
                self.inner.write_part(bytes, crc32c)
            }
        }
    }

    fn verified(&self) -> u64 {
        self.inner.verified()
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        self.inner.verify(expected)
    }

    fn commit(self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        self.inner.commit()
    }

    fn discard(self: Box<Self>) {
        self.inner.discard();
    }
}

type ByteCheck = fn(NewSnapshotStore<'_>);

fn finds(check: ByteCheck, flaw: ByteFlaw) -> bool {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check(&mut || Box::new(ByteFlawFixture { inner: MemSnapshots::new(), flaw }));
    }));
    checked.is_err()
}

#[test]
fn each_flaw_is_found_by_the_check_that_is_for_it_and_the_sound_store_by_none() {
    let sums: ByteCheck = suite::every_part_carries_its_own_checksum;
    let damage: ByteCheck = suite::parts_end_before_damage;
    let rereading: ByteCheck = suite::rereading_a_partial_file_reports_progress_and_may_stop;
    let refusal: ByteCheck = suite::a_part_with_a_wrong_checksum_is_refused;
    for (flaw, check) in [
        (ByteFlaw::SumOfMore, sums),
        (ByteFlaw::SumOfUncut, sums),
        (ByteFlaw::Oversized, sums),
        (ByteFlaw::Aligned, sums),
        (ByteFlaw::EmptyAtTheEnd, sums),
        (ByteFlaw::DamageIsTheEnd, damage),
        (ByteFlaw::DamageIsEio, damage),
        (ByteFlaw::GoesOn, damage),
        (ByteFlaw::Unchecked, refusal),
        (ByteFlaw::CheckedInPart, refusal),
        (ByteFlaw::TakesFirst, refusal),
        (ByteFlaw::RefusesForGood, refusal),
        (ByteFlaw::RereadsSilently, rereading),
        (ByteFlaw::RereadsNearlySilently, rereading),
        (ByteFlaw::RereadsToTheEnd, rereading),
        (ByteFlaw::StopsForGood, rereading),
    ] {
        assert!(finds(check, flaw), "{flaw:?} was not found");
        assert!(!finds(check, ByteFlaw::Sound), "{flaw:?}: its check refuses the sound store");
    }
}
