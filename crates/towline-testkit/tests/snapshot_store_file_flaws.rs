//! Snapshot stores that wrongly lose, show, keep or remove files, and the check of the suite that must find each. Flaws of bytes
//! and checksums are in `snapshot_store_flaws.rs`. A missing sync or rename is modelled by what a crash then leaves.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use towline_engine::ids::GroupId;
use towline_engine::snapshot_store::{
    BodyPart, ContentId, SnapshotHead, SnapshotMeta, SnapshotReader, SnapshotStore, SnapshotStoreError,
    SnapshotWriter, Trailer,
};
use towline_testkit::snapshots::MemSnapshots;
use towline_testkit::suites::snapshot_store::{self as suite, NewSnapshotStore, SnapshotStoreFixture};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileFlaw {
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
}

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
struct FileFlawStore {
    inner: MemSnapshots,
    flaw: FileFlaw,
    known: Arc<Mutex<Known>>,
}

impl FileFlawStore {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn groups(&self) -> BTreeSet<GroupId> {
        let known = self.known();
        known.committed.iter().chain(known.offers.values()).map(|meta| meta.head.group).collect()
    }

    fn writer(
        &self,
        inner: Box<dyn SnapshotWriter>,
        group: GroupId,
        offer: Option<SnapshotMeta>,
    ) -> FileFlawWriter {
        let removed = Arc::new(AtomicBool::new(false));
        self.known().writers.push((group, removed.clone()));
        FileFlawWriter {
            inner: Some(inner),
            store: self.clone(),
            offer,
            removed,
            verified: false,
            committed: None,
        }
    }
}

impl SnapshotStoreFixture for FileFlawStore {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.clone())
    }

    fn restart(&mut self) {
        self.inner =
            if self.flaw == FileFlaw::LosesPartials { self.inner.crash() } else { self.inner.restart() };
    }

    fn crash(&mut self) {
        self.inner = self.inner.crash();
        let Some(newest) = self.known().committed.last().cloned() else { return };
        match self.flaw {
            FileFlaw::LosesTheName => {
                let all = self.inner.complete(newest.head.group).unwrap();
                let kept = all.iter().map(|meta| meta.content).filter(|content| *content != newest.content);
                self.inner.retain(newest.head.group, &kept.collect::<Vec<_>>()).unwrap();
            }
            FileFlaw::LosesTheBytes => drop(self.inner.damage(&newest, 0)),
            _ => {}
        }
    }

    fn chunk_bytes(&self) -> usize {
        MemSnapshots::CHUNK_BYTES
    }

    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        if self.flaw == FileFlaw::TrustsThePrefix {
            self.known().damaged.insert(meta.content);
        } else {
            assert!(self.inner.damage(meta, offset));
        }
    }

    fn files(&self) -> usize {
        self.inner.files()
    }
}

impl SnapshotStore for FileFlawStore {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        let mut metas = self.inner.complete(group)?;
        let known = self.known();
        match self.flaw {
            FileFlaw::ListsWhatIsWritten => {
                metas.extend(known.receiving.iter().filter(|meta| meta.head.group == group).cloned());
            }
            FileFlaw::ListsAsTheyCame => {
                let came = |meta: &SnapshotMeta| known.committed.iter().position(|known| known == meta);
                metas.sort_by_key(|meta| Reverse(came(meta)));
            }
            FileFlaw::ListsLowerTermsFirst => {
                metas.sort_by_key(|meta| (Reverse(meta.head.at.index), meta.head.at.term));
            }
            FileFlaw::ListsTheNewestOnly => metas.truncate(1),
            _ => {}
        }
        Ok(metas)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        match self.flaw {
            FileFlaw::FindsAnother => self.inner.latest(group),
            FileFlaw::FindsInAnyGroup => {
                let found =
                    self.groups().into_iter().find_map(|group| self.inner.find(group, content).ok()?);
                Ok(found)
            }
            _ => self.inner.find(group, content),
        }
    }

    fn create(&self, head: &SnapshotHead) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        Ok(Box::new(self.writer(self.inner.create(head)?, head.group, None)))
    }

    fn receive_while(
        &self,
        meta: &SnapshotMeta,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Box<dyn SnapshotWriter>, SnapshotStoreError> {
        let first = self.known().offers.entry(meta.content).or_insert_with(|| meta.clone()).clone();
        let inner = match self.flaw {
            FileFlaw::ForgetsTheOffer => self.inner.create(&meta.head)?,
            FileFlaw::ResumesAnotherOffer => self.inner.receive_while(&first, goes_on)?,
            _ => match self.inner.receive_while(meta, goes_on) {
                Err(SnapshotStoreError::Busy { .. }) if self.flaw == FileFlaw::NeverBusy => {
                    self.inner.create(&meta.head)?
                }
                inner => inner?,
            },
        };
        self.known().receiving.push(meta.clone());
        Ok(Box::new(self.writer(inner, meta.head.group, Some(meta.clone()))))
    }

    fn open(&self, meta: &SnapshotMeta, offset: u64) -> Result<Box<dyn SnapshotReader>, SnapshotStoreError> {
        let (group, content) = (meta.head.group, meta.content);
        let inner = match self.inner.open(meta, offset) {
            Err(SnapshotStoreError::Missing { .. }) if self.flaw == FileFlaw::OpensNothing => {
                return Ok(Box::new(EmptyReader));
            }
            Err(SnapshotStoreError::Missing { content }) if self.flaw == FileFlaw::OpensAnyLength => {
                let found = self.inner.find(group, content)?;
                self.inner.open(&found.ok_or(SnapshotStoreError::Missing { content })?, offset)?
            }
            inner => inner?,
        };
        let removed = Arc::new(AtomicBool::new(false));
        self.known().readers.push((group, content, removed.clone()));
        Ok(Box::new(FileFlawReader { inner: Some(inner), store: self.clone(), group, content, removed }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let mut keep = keep.to_vec();
        let groups = if self.flaw == FileFlaw::RemovesOfEveryGroup { self.groups() } else { [group].into() };
        let mut known = self.known();
        match self.flaw {
            FileFlaw::RemovesWhatIsOpen => {
                let readers =
                    known.readers.iter().filter(|(of, content, _)| *of == group && !keep.contains(content));
                readers.for_each(|(_, _, removed)| removed.store(true, Ordering::Relaxed));
            }
            FileFlaw::RemovesWhatIsWritten => {
                let writers = known.writers.iter().filter(|(of, _)| *of == group);
                writers.for_each(|(_, removed)| removed.store(true, Ordering::Relaxed));
            }
            FileFlaw::KeepsWhatWasOpen => keep.extend(known.readers.iter().map(|(_, content, _)| *content)),
            FileFlaw::NeverForgives => {
                let open = known.readers.iter().map(|(_, content, _)| *content);
                let unwanted: Vec<_> = open.filter(|content| !keep.contains(content)).collect();
                known.unwanted.extend(unwanted);
            }
            FileFlaw::KeepsPartials => keep.extend(known.offers.keys()),
            FileFlaw::KeepsNothing => keep.clear(),
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

struct FileFlawReader {
    inner: Option<Box<dyn SnapshotReader>>,
    store: FileFlawStore,
    group: GroupId,
    content: ContentId,
    removed: Arc<AtomicBool>,
}

impl SnapshotReader for FileFlawReader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.inner.as_mut().unwrap().next_part(bytes_max)
    }
}

impl Drop for FileFlawReader {
    fn drop(&mut self) {
        self.inner = None;
        let unwanted = {
            let mut known = self.store.known();
            known.readers.retain(|(.., removed)| !Arc::ptr_eq(removed, &self.removed));
            known.unwanted.contains(&self.content)
        };
        if unwanted {
            let all = self.store.inner.complete(self.group).unwrap();
            let kept = all.iter().map(|meta| meta.content).filter(|content| *content != self.content);
            self.store.inner.retain(self.group, &kept.collect::<Vec<_>>()).unwrap();
        }
    }
}

struct FileFlawWriter {
    /// `None` after a commit or discard.
    inner: Option<Box<dyn SnapshotWriter>>,
    store: FileFlawStore,
    offer: Option<SnapshotMeta>,
    removed: Arc<AtomicBool>,
    verified: bool,
    committed: Option<SnapshotMeta>,
}

impl FileFlawWriter {
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

impl Write for FileFlawWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl SnapshotWriter for FileFlawWriter {
    fn verified(&self) -> u64 {
        let verified = self.inner.as_ref().map_or(0, |inner| inner.verified());
        match self.store.flaw {
            FileFlaw::ClaimsMore if verified > 0 => verified + 1,
            FileFlaw::ClaimsNothing => 0,
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
        let expected = match self.store.flaw {
            FileFlaw::ForgetsTheOffer | FileFlaw::IgnoresTheTrailer => None,
            _ => expected,
        };
        self.inner.as_mut().unwrap().verify(expected)?;
        self.verified = true;
        if self.store.flaw == FileFlaw::CommitsAtVerify {
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
        let again = match self.store.flaw {
            FileFlaw::CommitsUnverified => true,
            FileFlaw::VerifiedForGood => self.verified,
            _ => false,
        };
        if again {
            inner.verify(None)?;
        }
        let meta = inner.commit()?;
        Ok(self.committed(meta))
    }

    fn discard(mut self: Box<Self>) {
        match self.inner.take() {
            Some(inner) if self.store.flaw == FileFlaw::DiscardsNothing => drop(inner),
            Some(inner) => inner.discard(),
            None => {}
        }
    }
}

impl Drop for FileFlawWriter {
    fn drop(&mut self) {
        let mut known = self.store.known();
        known.writers.retain(|(_, removed)| !Arc::ptr_eq(removed, &self.removed));
        let at = known.receiving.iter().position(|meta| Some(meta) == self.offer.as_ref());
        at.map(|at| known.receiving.swap_remove(at));
        drop(known);
        match (self.inner.take(), self.store.flaw, self.offer.is_some()) {
            (Some(inner), FileFlaw::LeavesItsOwn, false) => std::mem::forget(inner),
            (Some(inner), FileFlaw::KeepsNoPrefix, true) => inner.discard(),
            _ => {}
        }
    }
}

type FileCheck = fn(NewSnapshotStore<'_>);

fn finds(check: FileCheck, flaw: FileFlaw) -> bool {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check(&mut || Box::new(FileFlawStore { inner: MemSnapshots::new(), flaw, known: Arc::default() }));
    }));
    checked.is_err()
}

#[test]
fn each_flaw_is_found_by_the_check_that_is_for_it_and_the_sound_store_by_none() {
    for (flaw, check) in [
        (FileFlaw::LosesTheName, suite::a_commit_survives_a_crash as FileCheck),
        (FileFlaw::LosesTheBytes, suite::a_commit_survives_a_crash),
        (FileFlaw::LosesPartials, suite::a_broken_transfer_resumes_after_a_restart),
        (FileFlaw::ListsWhatIsWritten, suite::a_snapshot_is_invisible_before_its_commit),
        (FileFlaw::CommitsAtVerify, suite::verify_makes_no_snapshot_visible),
        (FileFlaw::CommitsAtVerify, suite::a_discarded_writer_leaves_no_file),
        (FileFlaw::ListsAsTheyCame, suite::latest_has_the_highest_index),
        (FileFlaw::ListsLowerTermsFirst, suite::the_higher_term_breaks_a_tie),
        (FileFlaw::ListsTheNewestOnly, suite::complete_lists_every_snapshot_the_newest_first),
        (FileFlaw::FindsAnother, suite::find_returns_every_complete_snapshot),
        (FileFlaw::FindsInAnyGroup, suite::groups_are_independent),
        (FileFlaw::ForgetsTheOffer, suite::a_wrong_digest_is_refused_and_removed),
        (FileFlaw::ForgetsTheOffer, suite::a_short_body_is_refused_and_removed),
        (FileFlaw::ForgetsTheOffer, suite::a_long_body_is_refused_and_removed),
        (FileFlaw::ForgetsTheOffer, suite::another_head_is_another_content),
        (FileFlaw::IgnoresTheTrailer, suite::a_created_snapshot_is_checked_against_a_trailer),
        (FileFlaw::IgnoresTheTrailer, suite::a_wrong_digest_is_refused_and_removed),
        (FileFlaw::CommitsUnverified, suite::a_commit_without_verify_fails_and_removes_the_file),
        (FileFlaw::VerifiedForGood, suite::a_write_after_verify_voids_the_verification),
        (FileFlaw::VerifiedForGood, suite::a_part_after_verify_voids_the_verification),
        (FileFlaw::TrustsThePrefix, suite::a_damaged_partial_file_is_cut_at_the_damage),
        (FileFlaw::TrustsThePrefix, suite::a_partial_file_with_a_damaged_start_begins_anew),
        (FileFlaw::ResumesAnotherOffer, suite::a_partial_file_of_another_offer_is_not_resumed),
        (FileFlaw::ClaimsMore, suite::flush_writes_buffered_bytes_to_the_file),
        (FileFlaw::ClaimsMore, suite::a_complete_partial_file_needs_no_further_byte),
        (FileFlaw::ClaimsNothing, suite::a_transfer_may_break_several_times),
        (FileFlaw::KeepsNoPrefix, suite::a_broken_transfer_resumes_where_it_broke),
        (FileFlaw::KeepsNoPrefix, suite::a_broken_transfer_resumes_in_parts),
        (FileFlaw::LeavesItsOwn, suite::a_dropped_writer_of_a_created_snapshot_leaves_no_file),
        (FileFlaw::DiscardsNothing, suite::a_discarded_writer_leaves_no_file),
        (FileFlaw::NeverBusy, suite::a_second_writer_of_one_content_is_busy),
        (FileFlaw::RemovesWhatIsOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (FileFlaw::KeepsWhatWasOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (FileFlaw::NeverForgives, suite::a_file_that_is_retained_again_stays),
        (FileFlaw::NeverForgives, suite::a_reader_is_not_disturbed_by_the_same_snapshot_again),
        (FileFlaw::RemovesWhatIsWritten, suite::retain_keeps_files_of_open_writers),
        (FileFlaw::KeepsPartials, suite::retain_removes_partial_files),
        (FileFlaw::KeepsNothing, suite::retain_keeps_named_files),
        (FileFlaw::KeepsNothing, suite::retain_removes_other_snapshots),
        (FileFlaw::RemovesOfEveryGroup, suite::groups_are_independent),
        (FileFlaw::OpensNothing, suite::an_absent_snapshot_is_missing),
        (FileFlaw::OpensAnyLength, suite::an_absent_snapshot_is_missing),
    ] {
        assert!(finds(check, flaw), "{flaw:?} was not found");
        assert!(!finds(check, FileFlaw::Sound), "{flaw:?}: its check refuses the sound store");
    }
}
