//! Snapshot stores that break one sentence of the contract each, and the checks of the suite that must find them. The
//! sound store under them passes the same checks: `snapshot_store.rs`.

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
use towline_testkit::suites::snapshot_store::{self as suite, Fixture, New};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// None: the control.
    Sound,
    /// The checksum with a part covers something else, too: the part's place.
    SumOfMore,
    /// The checksum of a part that is cut short is that of what it was cut from.
    SumOfUncut,
    /// Parts are as large as it suits the store.
    Oversized,
    /// An offset within a chunk is taken for the chunk's begin.
    Aligned,
    /// Damage ends the body quietly.
    DamageIsTheEnd,
    /// Damage is an error of another kind.
    DamageIsEio,
    /// After damage the reader goes on.
    GoesOn,
    /// An empty part stands at the end.
    EmptyAtTheEnd,
    /// A part is written whatever its checksum.
    Unchecked,
    /// Only the first half of a part is checked.
    CheckedInPart,
    /// What was taken before the checksum was seen to be wrong stays.
    TakesFirst,
    /// A part that is refused ends the writer.
    RefusesForGood,
    /// What is left of a transfer is read again without a word,
    SaysNothingOfARereading,
    /// with few,
    SaysSeldomOfARereading,
    /// and to its end whatever the answer is.
    RereadsToTheEnd,
    /// What was not read to its end is removed.
    StopsForGood,
}

struct Flawed {
    inner: MemSnapshots,
    flaw: Flaw,
}

impl Fixture for Flawed {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        Arc::new(Store { inner: self.inner.clone(), flaw: self.flaw })
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

struct Store {
    inner: MemSnapshots,
    flaw: Flaw,
}

impl SnapshotStore for Store {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        self.inner.complete(group)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        self.inner.find(group, content)
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(Box::new(Writer { inner: self.inner.create(head)?, flaw: self.flaw, refused: false }))
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
                Flaw::SaysNothingOfARereading => true,
                Flaw::SaysSeldomOfARereading => told % 20 != 0 || goes_on(held),
                Flaw::RereadsToTheEnd => {
                    goes_on(held);
                    true
                }
                _ => goes_on(held),
            }
        });
        if self.flaw == Flaw::StopsForGood && matches!(inner, Err(SnapshotStoreError::Stopped { .. })) {
            self.inner.receive(meta)?.discard();
        }
        Ok(Box::new(Writer { inner: inner?, flaw: self.flaw, refused: false }))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let at = match self.flaw {
            Flaw::Aligned => offset - offset % MemSnapshots::CHUNK_BYTES as u64,
            _ => offset,
        };
        let again = (self.inner.clone(), meta.clone());
        Ok(Box::new(Reader { inner: self.inner.open(meta, at)?, flaw: self.flaw, at, again, ended: false }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        self.inner.retain(group, keep)
    }
}

struct Reader {
    inner: Box<dyn SnapshotReader>,
    flaw: Flaw,
    at: u64,
    again: (MemSnapshots, SnapshotMeta),
    ended: bool,
}

impl SnapshotReader for Reader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        let wanted = match self.flaw {
            Flaw::Oversized => bytes_max.max(5000),
            Flaw::SumOfUncut => bytes_max.saturating_add(1),
            _ => bytes_max,
        };
        let part = match (self.inner.next_part(wanted), self.flaw) {
            (Err(_), Flaw::DamageIsTheEnd) => return Ok(None),
            (Err(_), Flaw::DamageIsEio) => return Err(io::Error::from_raw_os_error(5)),
            (Err(error), Flaw::GoesOn) => {
                // Behind the chunk that is damaged.
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
            return Ok((self.flaw == Flaw::EmptyAtTheEnd && first).then_some(empty));
        };
        match self.flaw {
            Flaw::SumOfMore => {
                let place = crc32c::crc32c(&self.at.to_le_bytes());
                part.crc32c = crc32c::crc32c_append(place, &part.bytes);
            }
            Flaw::SumOfUncut if part.bytes.len() > bytes_max => {
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

struct Writer {
    inner: Box<dyn SnapshotWriter>,
    flaw: Flaw,
    refused: bool,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl SnapshotWriter for Writer {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        let holds = crc32c::crc32c(bytes) == crc32c;
        match self.flaw {
            Flaw::Unchecked => self.inner.write_all(bytes),
            // As one that trusts the rest of a part of several chunks.
            Flaw::CheckedInPart if bytes.len() > MemSnapshots::CHUNK_BYTES => self.inner.write_all(bytes),
            Flaw::TakesFirst if !holds => {
                self.inner.write_all(&bytes[..bytes.len() / 2])?;
                self.inner.write_part(bytes, crc32c)
            }
            Flaw::RefusesForGood if self.refused => Err(io::Error::other("it was refused")),
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

type Check = fn(New<'_>);

fn finds(check: Check, flaw: Flaw) -> bool {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check(&mut || Box::new(Flawed { inner: MemSnapshots::new(), flaw }));
    }));
    checked.is_err()
}

#[test]
fn each_flaw_is_found_by_the_check_that_is_for_it_and_the_sound_store_by_none() {
    let sums: Check = suite::every_part_carries_its_own_checksum;
    let damage: Check = suite::parts_end_before_damage_and_nothing_comes_behind_it;
    let rereading: Check = suite::what_is_read_again_is_told_of_and_may_be_left_for_later;
    let refusal: Check = suite::a_part_whose_checksum_does_not_hold_is_not_taken;
    for (flaw, check) in [
        (Flaw::SumOfMore, sums),
        (Flaw::SumOfUncut, sums),
        (Flaw::Oversized, sums),
        (Flaw::Aligned, sums),
        (Flaw::EmptyAtTheEnd, sums),
        (Flaw::DamageIsTheEnd, damage),
        (Flaw::DamageIsEio, damage),
        (Flaw::GoesOn, damage),
        (Flaw::Unchecked, refusal),
        (Flaw::CheckedInPart, refusal),
        (Flaw::TakesFirst, refusal),
        (Flaw::RefusesForGood, refusal),
        (Flaw::SaysNothingOfARereading, rereading),
        (Flaw::SaysSeldomOfARereading, rereading),
        (Flaw::RereadsToTheEnd, rereading),
        (Flaw::StopsForGood, rereading),
    ] {
        assert!(finds(check, flaw), "{flaw:?} was not found");
        assert!(!finds(check, Flaw::Sound), "{flaw:?}: its check refuses the sound store");
    }
}
