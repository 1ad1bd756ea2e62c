//! Snapshot stores with one flaw each, and the check of the suite that must find it. A missing sync or rename is modelled by what a
//! crash then leaves.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::MutexGuard;

use crate::common::*;
use towline_testkit::suites::snapshot_store::{self as suite, OpenSnapshotStore, SnapshotStoreFixture};

const CHUNK: u64 = MemSnapshots::CHUNK_BYTES as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StoreFlaw {
    /// The control.
    Sound,

    /// The directory is not synced: a crash takes the newest name.
    LosesTheName,
    /// The file is not synced before its rename: a crash leaves the name with wrong bytes.
    LosesTheBytes,
    /// A restart removes partial files.
    LosesPartials,

    /// Open files are listed.
    ListsWhatIsWritten,
    /// Verified files are visible before the commit.
    CommitsAtVerify,
    /// Files are listed in the order of their commits.
    ListsAsTheyCame,
    /// Of two files at one index, the lower term comes first.
    ListsLowerTermsFirst,
    /// Older files are not listed.
    ListsTheNewestOnly,
    /// Finds the newest file for any content.
    FindsAnother,
    /// Finds a content in any group.
    FindsInAnyGroup,

    /// A received body is not compared with its offer.
    ForgetsTheOffer,
    /// The trailer is ignored.
    IgnoresTheTrailer,
    /// A commit verifies an unverified file.
    CommitsUnverified,
    /// Bytes written after a verification count as verified.
    VerifiedForGood,

    /// A resume does not read the partial file again.
    TrustsThePrefix,
    /// A resume does not compare the offers.
    ResumesAnotherOffer,
    /// A resume claims one byte too many.
    ClaimsMore,
    /// A resume claims no byte.
    ClaimsNothing,
    /// A broken transfer leaves nothing behind.
    KeepsNoPrefix,
    /// A dropped writer of an own snapshot leaves its file.
    LeavesItsOwn,
    /// A discarded file is kept for a resume.
    DiscardsNothing,
    /// Two writers may have one content.
    NeverBusy,

    /// An open file is removed under its readers.
    RemovesWhatIsOpen,
    /// A file that was open at its removal stays for good.
    KeepsWhatWasOpen,
    /// A file goes with its last reader, although a later `retain` keeps it.
    NeverForgives,
    /// A file is removed under its writer.
    RemovesWhatIsWritten,
    /// Partial files stay.
    KeepsPartials,
    /// Files that `retain` keeps are removed too.
    KeepsNothing,
    /// Files of other groups are removed too.
    RemovesOfEveryGroup,

    /// A missing file opens as an empty one.
    OpensNothing,
    /// The requested length is ignored.
    OpensAnyLength,

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
use StoreFlaw::*;

/// What the flawed store records besides the sound store under it.
#[derive(Default)]
struct Known {
    /// In the order of their commits.
    committed: Vec<SnapshotMeta>,
    /// The first offer of each content.
    offers: BTreeMap<ContentId, SnapshotMeta>,
    /// Open transfers.
    receiving: Vec<SnapshotMeta>,
    /// Damaged partial files.
    damaged: BTreeSet<ContentId>,
    readers: Vec<(GroupId, ContentId, Arc<AtomicBool>)>,
    writers: Vec<(GroupId, Arc<AtomicBool>)>,
    unwanted: BTreeSet<ContentId>,
}

#[derive(Clone)]
struct FlawedStore {
    inner: MemSnapshots,
    flaw: StoreFlaw,
    known: Arc<Mutex<Known>>,
}

impl FlawedStore {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn groups(&self) -> BTreeSet<GroupId> {
        let known = self.known();
        known.committed.iter().chain(known.offers.values()).map(|meta| meta.head.group).collect()
    }

    /// Removes one complete file.
    fn remove(&self, group: GroupId, content: ContentId) {
        let all = self.inner.complete(group).unwrap();
        let kept = all.iter().map(|meta| meta.content).filter(|kept| *kept != content);
        self.inner.retain(group, &kept.collect::<Vec<_>>()).unwrap();
    }

    fn writer(
        &self,
        inner: Box<dyn SnapshotWriter>,
        group: GroupId,
        offer: Option<SnapshotMeta>,
    ) -> Box<dyn SnapshotWriter> {
        let removed = Arc::new(AtomicBool::new(false));
        self.known().writers.push((group, removed.clone()));
        let (inner, store) = (Some(inner), self.clone());
        let (verified, refused, committed) = (false, false, None);
        Box::new(FlawedWriter { inner, store, offer, removed, verified, refused, committed })
    }
}

impl SnapshotStoreFixture for FlawedStore {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.clone())
    }

    fn restart(&mut self) {
        self.inner = if self.flaw == LosesPartials { self.inner.crash() } else { self.inner.restart() };
    }

    fn crash(&mut self) {
        self.inner = self.inner.crash();
        let Some(newest) = self.known().committed.last().cloned() else { return };
        match self.flaw {
            LosesTheName => self.remove(newest.head.group, newest.content),
            LosesTheBytes => drop(self.inner.damage(&newest, 0)),
            _ => {}
        }
    }

    fn chunk_bytes(&self) -> usize {
        MemSnapshots::CHUNK_BYTES
    }

    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        if self.flaw == TrustsThePrefix {
            self.known().damaged.insert(meta.content);
        } else {
            assert!(self.inner.damage(meta, offset));
        }
    }

    fn files(&self) -> usize {
        self.inner.files()
    }
}

impl SnapshotStore for FlawedStore {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        let mut metas = self.inner.complete(group)?;
        let known = self.known();
        match self.flaw {
            ListsWhatIsWritten => {
                metas.extend(known.receiving.iter().filter(|meta| meta.head.group == group).cloned());
            }
            ListsAsTheyCame => {
                let came = |meta: &SnapshotMeta| known.committed.iter().position(|known| known == meta);
                metas.sort_by_key(|meta| Reverse(came(meta)));
            }
            ListsLowerTermsFirst => {
                metas.sort_by_key(|meta| (Reverse(meta.head.at.index), meta.head.at.term));
            }
            ListsTheNewestOnly => metas.truncate(1),
            _ => {}
        }
        Ok(metas)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        let in_any = || self.groups().into_iter().find_map(|group| self.inner.find(group, content).ok()?);
        match self.flaw {
            FindsAnother => self.inner.latest(group),
            FindsInAnyGroup => Ok(in_any()),
            _ => self.inner.find(group, content),
        }
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(self.writer(self.inner.create(head)?, head.group, None))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let mut told = 0;
        let goes_on = &mut |held| {
            told += 1;
            match self.flaw {
                RereadsSilently => true,
                RereadsNearlySilently => told % 20 != 0 || goes_on(held),
                flaw => goes_on(held) || flaw == RereadsToTheEnd,
            }
        };
        let first = self.known().offers.entry(meta.content).or_insert_with(|| meta.clone()).clone();
        let inner = match self.flaw {
            ForgetsTheOffer => self.inner.create(&meta.head),
            ResumesAnotherOffer => self.inner.receive_while(&first, goes_on),
            _ => self.inner.receive_while(meta, goes_on),
        };
        let inner = match (inner, self.flaw) {
            (Err(SnapshotStoreError::Busy { .. }), NeverBusy) => self.inner.create(&meta.head)?,
            (Err(stopped @ SnapshotStoreError::Stopped { .. }), StopsForGood) => {
                self.inner.receive(meta)?.discard();
                return Err(stopped);
            }
            (inner, _) => inner?,
        };
        self.known().receiving.push(meta.clone());
        Ok(self.writer(inner, meta.head.group, Some(meta.clone())))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let at = if self.flaw == Aligned { offset - offset % CHUNK } else { offset };
        let (inner, meta) = match (self.inner.open(meta, at), self.flaw) {
            (Err(SnapshotStoreError::Missing { .. }), OpensNothing) => return Ok(Box::new(EmptyReader)),
            (Err(SnapshotStoreError::Missing { content }), OpensAnyLength) => {
                let found = self.inner.find(meta.head.group, content)?;
                let found = found.ok_or(SnapshotStoreError::Missing { content })?;
                (self.inner.open(&found, at)?, found)
            }
            (inner, _) => (inner?, meta.clone()),
        };
        let removed = Arc::new(AtomicBool::new(false));
        self.known().readers.push((meta.head.group, meta.content, removed.clone()));
        let (inner, store) = (Some(inner), self.clone());
        Ok(Box::new(FlawedReader { inner, store, meta, at, ended: false, removed }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let mut keep = keep.to_vec();
        let groups = if self.flaw == RemovesOfEveryGroup { self.groups() } else { [group].into() };
        let mut known = self.known();
        match self.flaw {
            RemovesWhatIsOpen => {
                let readers =
                    known.readers.iter().filter(|(of, content, _)| *of == group && !keep.contains(content));
                readers.for_each(|(_, _, removed)| removed.store(true, Ordering::Relaxed));
            }
            RemovesWhatIsWritten => {
                let writers = known.writers.iter().filter(|(of, _)| *of == group);
                writers.for_each(|(_, removed)| removed.store(true, Ordering::Relaxed));
            }
            KeepsWhatWasOpen => keep.extend(known.readers.iter().map(|(_, content, _)| *content)),
            NeverForgives => {
                let open = known.readers.iter().map(|(_, content, _)| *content);
                let unwanted: Vec<_> = open.filter(|content| !keep.contains(content)).collect();
                known.unwanted.extend(unwanted);
            }
            KeepsPartials => keep.extend(known.offers.keys()),
            KeepsNothing => keep.clear(),
            _ => {}
        }
        drop(known);
        groups.into_iter().try_for_each(|group| self.inner.retain(group, &keep))
    }
}

/// A reader of an empty body.
struct EmptyReader;

impl SnapshotReader for EmptyReader {
    fn next_part(&mut self, _: usize) -> io::Result<Option<BodyPart>> {
        Ok(None)
    }
}

struct FlawedReader {
    inner: Option<Box<dyn SnapshotReader>>,
    store: FlawedStore,
    meta: SnapshotMeta,
    at: u64,
    ended: bool,
    removed: Arc<AtomicBool>,
}

impl FlawedReader {
    fn seek(&mut self, at: u64) -> io::Result<()> {
        let inner = self.store.inner.open(&self.meta, at.min(self.meta.length)).map_err(io::Error::other)?;
        self.inner = Some(inner);
        Ok(())
    }
}

impl SnapshotReader for FlawedReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        let flaw = self.store.flaw;
        if self.removed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let wanted = match flaw {
            Oversized => bytes_max.max(5000),
            SumOfUncut => bytes_max.saturating_add(1),
            _ => bytes_max,
        };
        let part = match (self.inner.as_mut().unwrap().next_part(wanted), flaw) {
            (Err(_), DamageIsTheEnd) => return Ok(None),
            (Err(_), DamageIsEio) => return Err(io::Error::from_raw_os_error(5)),
            (Err(error), GoesOn) => {
                // Continue after the damaged chunk.
                self.at = (self.at / CHUNK + 1) * CHUNK;
                self.seek(self.at)?;
                return Err(error);
            }
            (part, _) => part?,
        };
        let Some(mut part) = part else {
            let empty = BodyPart { bytes: Bytes::new(), crc32c: 0 };
            let first = !std::mem::replace(&mut self.ended, true);
            return Ok((flaw == EmptyAtTheEnd && first).then_some(empty));
        };
        match flaw {
            SumOfMore => {
                let place = crc32c::crc32c(&self.at.to_le_bytes());
                part.crc32c = crc32c::crc32c_append(place, &part.bytes);
            }
            SumOfUncut if part.bytes.len() > bytes_max => {
                part.bytes.truncate(bytes_max);
                self.seek(self.at + part.bytes.len() as u64)?;
            }
            _ => {}
        }
        self.at += part.bytes.len() as u64;
        Ok(Some(part))
    }
}

impl Drop for FlawedReader {
    fn drop(&mut self) {
        self.inner = None;
        let unwanted = {
            let mut known = self.store.known();
            known.readers.retain(|(.., removed)| !Arc::ptr_eq(removed, &self.removed));
            known.unwanted.contains(&self.meta.content)
        };
        if unwanted {
            self.store.remove(self.meta.head.group, self.meta.content);
        }
    }
}

struct FlawedWriter {
    /// `None` after a commit or discard.
    inner: Option<Box<dyn SnapshotWriter>>,
    store: FlawedStore,
    offer: Option<SnapshotMeta>,
    removed: Arc<AtomicBool>,
    verified: bool,
    /// Whether a part was refused.
    refused: bool,
    committed: Option<SnapshotMeta>,
}

impl FlawedWriter {
    fn inner(&mut self) -> io::Result<&mut Box<dyn SnapshotWriter>> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.inner.as_mut().ok_or_else(|| io::Error::other("it is committed"))
    }

    fn committed(&mut self, meta: SnapshotMeta) -> SnapshotMeta {
        self.store.known().committed.push(meta.clone());
        meta
    }
}

impl Write for FlawedWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl SnapshotWriter for FlawedWriter {
    fn write_part(&mut self, bytes: &[u8], crc32c: u32) -> io::Result<()> {
        let holds = crc32c::crc32c(bytes) == crc32c;
        match self.store.flaw {
            Unchecked => return self.write_all(bytes),
            CheckedInPart if bytes.len() > MemSnapshots::CHUNK_BYTES => return self.write_all(bytes),
            TakesFirst if !holds => self.write_all(&bytes[..bytes.len() / 2])?,
            RefusesForGood if self.refused => return Err(io::Error::other("it was refused")),
            _ => self.refused |= !holds,
        }
        self.inner()?.write_part(bytes, crc32c)
    }

    fn verified(&self) -> u64 {
        let verified = self.inner.as_ref().map_or(0, |inner| inner.verified());
        match self.store.flaw {
            ClaimsMore if verified > 0 => verified + 1,
            ClaimsNothing => 0,
            _ => verified,
        }
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        let damaged = self.offer.as_ref().map(|offer| offer.content);
        if let Some(content) = damaged.filter(|content| self.store.known().damaged.contains(content)) {
            return Err(SnapshotStoreError::Corrupt { content, detail: "damaged before the resume".into() });
        }
        if self.committed.is_some() {
            return Ok(());
        }
        let ignored = matches!(self.store.flaw, ForgetsTheOffer | IgnoresTheTrailer);
        self.inner.as_mut().unwrap().verify(expected.filter(|_| !ignored))?;
        self.verified = true;
        if self.store.flaw == CommitsAtVerify {
            let meta = self.inner.take().unwrap().commit()?;
            self.committed = Some(self.committed(meta));
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>) -> Result<SnapshotMeta, SnapshotStoreError> {
        if let Some(meta) = self.committed.clone() {
            return Ok(meta);
        }
        let mut inner = self.inner.take().unwrap();
        if self.store.flaw == CommitsUnverified || self.store.flaw == VerifiedForGood && self.verified {
            inner.verify(None)?;
        }
        let meta = inner.commit()?;
        Ok(self.committed(meta))
    }

    fn discard(mut self: Box<Self>) {
        match self.inner.take() {
            Some(inner) if self.store.flaw == DiscardsNothing => drop(inner),
            Some(inner) => inner.discard(),
            None => {}
        }
    }
}

impl Drop for FlawedWriter {
    fn drop(&mut self) {
        let mut known = self.store.known();
        known.writers.retain(|(_, removed)| !Arc::ptr_eq(removed, &self.removed));
        let at = known.receiving.iter().position(|meta| Some(meta) == self.offer.as_ref());
        at.map(|at| known.receiving.swap_remove(at));
        drop(known);
        match (self.inner.take(), self.store.flaw, self.offer.is_some()) {
            (Some(inner), LeavesItsOwn, false) => std::mem::forget(inner),
            (Some(inner), KeepsNoPrefix, true) => inner.discard(),
            _ => {}
        }
    }
}

type Check = fn(OpenSnapshotStore);

fn finds(check: Check, flaw: StoreFlaw) -> bool {
    let store = FlawedStore { inner: MemSnapshots::new(), flaw, known: Arc::default() };
    catch_unwind(AssertUnwindSafe(|| check(OpenSnapshotStore::new(store)))).is_err()
}

#[test]
fn each_flaw_is_found_by_the_check_that_is_for_it_and_the_sound_store_by_none() {
    let sums: Check = suite::every_part_carries_its_own_checksum;
    let damage: Check = suite::parts_end_before_damage;
    let rereading: Check = suite::rereading_a_partial_file_reports_progress_and_may_stop;
    let refusal: Check = suite::a_part_with_a_wrong_checksum_is_refused;
    for (flaw, check) in [
        (LosesTheName, suite::a_commit_survives_a_crash as Check),
        (LosesTheBytes, suite::a_commit_survives_a_crash),
        (LosesPartials, suite::a_broken_transfer_resumes_after_a_restart),
        (ListsWhatIsWritten, suite::a_snapshot_is_invisible_before_its_commit),
        (CommitsAtVerify, suite::verify_makes_no_snapshot_visible),
        (CommitsAtVerify, suite::a_discarded_writer_leaves_no_file),
        (ListsAsTheyCame, suite::latest_has_the_highest_index),
        (ListsLowerTermsFirst, suite::the_higher_term_breaks_a_tie),
        (ListsTheNewestOnly, suite::complete_lists_every_snapshot_the_newest_first),
        (FindsAnother, suite::find_returns_every_complete_snapshot),
        (FindsInAnyGroup, suite::groups_are_independent),
        (ForgetsTheOffer, suite::a_wrong_digest_is_refused_and_removed),
        (ForgetsTheOffer, suite::a_short_body_is_refused_and_removed),
        (ForgetsTheOffer, suite::a_long_body_is_refused_and_removed),
        (ForgetsTheOffer, suite::another_head_is_another_content),
        (IgnoresTheTrailer, suite::a_created_snapshot_is_checked_against_a_trailer),
        (IgnoresTheTrailer, suite::a_wrong_digest_is_refused_and_removed),
        (CommitsUnverified, suite::a_commit_without_verify_fails_and_removes_the_file),
        (VerifiedForGood, suite::a_write_after_verify_voids_the_verification),
        (VerifiedForGood, suite::a_part_after_verify_voids_the_verification),
        (TrustsThePrefix, suite::a_damaged_partial_file_is_cut_at_the_damage),
        (TrustsThePrefix, suite::a_partial_file_with_a_damaged_start_begins_anew),
        (ResumesAnotherOffer, suite::a_partial_file_of_another_offer_is_not_resumed),
        (ClaimsMore, suite::flush_writes_buffered_bytes_to_the_file),
        (ClaimsMore, suite::a_complete_partial_file_needs_no_further_byte),
        (ClaimsNothing, suite::a_transfer_may_break_several_times),
        (KeepsNoPrefix, suite::a_broken_transfer_resumes_where_it_broke),
        (KeepsNoPrefix, suite::a_broken_transfer_resumes_in_parts),
        (LeavesItsOwn, suite::a_dropped_writer_of_a_created_snapshot_leaves_no_file),
        (DiscardsNothing, suite::a_discarded_writer_leaves_no_file),
        (NeverBusy, suite::a_second_writer_of_one_content_is_busy),
        (RemovesWhatIsOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (KeepsWhatWasOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (NeverForgives, suite::a_file_that_is_retained_again_stays),
        (NeverForgives, suite::a_reader_is_not_disturbed_by_the_same_snapshot_again),
        (RemovesWhatIsWritten, suite::retain_keeps_files_of_open_writers),
        (KeepsPartials, suite::retain_removes_partial_files),
        (KeepsNothing, suite::retain_keeps_named_files),
        (KeepsNothing, suite::retain_removes_other_snapshots),
        (RemovesOfEveryGroup, suite::groups_are_independent),
        (OpensNothing, suite::an_absent_snapshot_is_missing),
        (OpensAnyLength, suite::an_absent_snapshot_is_missing),
        (SumOfMore, sums),
        (SumOfUncut, sums),
        (Oversized, sums),
        (Aligned, sums),
        (EmptyAtTheEnd, sums),
        (DamageIsTheEnd, damage),
        (DamageIsEio, damage),
        (GoesOn, damage),
        (Unchecked, refusal),
        (CheckedInPart, refusal),
        (TakesFirst, refusal),
        (RefusesForGood, refusal),
        (RereadsSilently, rereading),
        (RereadsNearlySilently, rereading),
        (RereadsToTheEnd, rereading),
        (StopsForGood, rereading),
    ] {
        assert!(finds(check, flaw), "{flaw:?} was not found");
        assert!(!finds(check, Sound), "{flaw:?}: its check refuses the sound store");
    }
}
