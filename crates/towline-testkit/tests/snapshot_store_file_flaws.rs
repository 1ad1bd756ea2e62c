//! Snapshot stores that lose, show, keep or remove files as they should not, and the checks of the suite that must find
//! them. What is wrong with bytes and their checksums is in `snapshot_store_flaws.rs`; syncs and renames that are left out
//! stand here as what a crash then leaves.

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
use towline_testkit::suites::snapshot_store::{self as suite, Fixture, New};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// None: the control.
    Sound,

    /// The directory is not synced: a crash takes the newest name.
    LosesTheName,
    /// The file is not synced before its rename: a crash leaves the name over bytes that were never written.
    LosesTheBytes,
    /// A restart takes what broken transfers left.
    LosesPartials,

    /// What is being written is listed.
    ListsWhatIsWritten,
    /// What is verified is visible.
    CommitsAtVerify,
    /// In the order in which they came.
    ListsAsTheyCame,
    /// Of two at one index that of the lower term comes first.
    ListsLowerTermsFirst,
    /// Older files are not listed.
    ListsTheNewestOnly,
    /// Any file will do.
    FindsAnother,
    /// A content is found in whatever group it is.
    FindsInAnyGroup,

    /// A received body is taken as one of this node's own: nothing is compared with the offer.
    ForgetsTheOffer,
    /// What the sender says at the end is not looked at.
    IgnoresTheTrailer,
    /// A commit verifies by itself.
    CommitsUnverified,
    /// What is written after a verification counts as verified.
    VerifiedForGood,

    /// A resume does not go over the bytes that are there.
    TrustsThePrefix,
    /// A resume does not compare the offers.
    ResumesAnotherOffer,
    /// It claims to have one byte more.
    ClaimsMore,
    /// It claims to have nothing.
    ClaimsNothing,
    /// A broken transfer leaves nothing behind.
    KeepsNoPrefix,
    /// A file of this node's own stays behind when its writer is dropped.
    LeavesItsOwn,
    /// What is discarded is kept for a resume.
    DiscardsNothing,
    /// Two writers of one content at a time.
    NeverBusy,

    /// A file goes under its readers.
    RemovesWhatIsOpen,
    /// A file that was open when it should have gone stays for good.
    KeepsWhatWasOpen,
    /// A file that should have gone goes with its last reader, though it is wanted again.
    NeverForgives,
    /// A file goes under its writer.
    RemovesWhatIsWritten,
    /// What broken transfers left stays.
    KeepsPartials,
    /// What is to be kept goes, too.
    KeepsNothing,
    /// Other groups' files go, too.
    RemovesOfEveryGroup,

    /// What is not there is empty.
    OpensNothing,
    /// The length that is asked for is not looked at.
    OpensAnyLength,
}

/// What the store knows beside what the sound store under it does.
#[derive(Default)]
struct Known {
    /// In the order in which they came.
    committed: Vec<SnapshotMeta>,
    /// The first offer of each content.
    offers: BTreeMap<ContentId, SnapshotMeta>,
    /// What is received now.
    receiving: Vec<SnapshotMeta>,
    /// Prefixes that are damaged, if nobody looks.
    damaged: BTreeSet<ContentId>,
    readers: Vec<(GroupId, ContentId, Arc<AtomicBool>)>,
    writers: Vec<(GroupId, Arc<AtomicBool>)>,
    unwanted: BTreeSet<ContentId>,
}

#[derive(Clone)]
struct Store {
    inner: MemSnapshots,
    flaw: Flaw,
    known: Arc<Mutex<Known>>,
}

impl Store {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn groups(&self) -> BTreeSet<GroupId> {
        let known = self.known();
        known.committed.iter().chain(known.offers.values()).map(|meta| meta.head.group).collect()
    }

    fn writer(&self, inner: Box<dyn SnapshotWriter>, group: GroupId, offer: Option<SnapshotMeta>) -> Writer {
        let removed = Arc::new(AtomicBool::new(false));
        self.known().writers.push((group, removed.clone()));
        Writer { inner: Some(inner), store: self.clone(), offer, removed, verified: false, committed: None }
    }
}

impl Fixture for Store {
    fn open(&mut self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.clone())
    }

    fn restart(&mut self) {
        self.inner = if self.flaw == Flaw::LosesPartials { self.inner.crash() } else { self.inner.restart() };
    }

    fn crash(&mut self) {
        self.inner = self.inner.crash();
        let Some(newest) = self.known().committed.last().cloned() else { return };
        match self.flaw {
            Flaw::LosesTheName => {
                let all = self.inner.complete(newest.head.group).unwrap();
                let kept = all.iter().map(|meta| meta.content).filter(|content| *content != newest.content);
                self.inner.retain(newest.head.group, &kept.collect::<Vec<_>>()).unwrap();
            }
            Flaw::LosesTheBytes => drop(self.inner.damage(&newest, 0)),
            _ => {}
        }
    }

    fn chunk_bytes(&self) -> usize {
        MemSnapshots::CHUNK_BYTES
    }

    fn flip(&mut self, meta: &SnapshotMeta, offset: usize) {
        if self.flaw == Flaw::TrustsThePrefix {
            self.known().damaged.insert(meta.content);
        } else {
            assert!(self.inner.damage(meta, offset));
        }
    }

    fn files(&self) -> usize {
        self.inner.files()
    }
}

impl SnapshotStore for Store {
    fn complete(&self, group: GroupId) -> Result<Vec<SnapshotMeta>, SnapshotStoreError> {
        let mut metas = self.inner.complete(group)?;
        let known = self.known();
        match self.flaw {
            Flaw::ListsWhatIsWritten => {
                metas.extend(known.receiving.iter().filter(|meta| meta.head.group == group).cloned());
            }
            Flaw::ListsAsTheyCame => {
                let came = |meta: &SnapshotMeta| known.committed.iter().position(|known| known == meta);
                metas.sort_by_key(|meta| Reverse(came(meta)));
            }
            Flaw::ListsLowerTermsFirst => {
                metas.sort_by_key(|meta| (Reverse(meta.head.at.index), meta.head.at.term));
            }
            Flaw::ListsTheNewestOnly => metas.truncate(1),
            _ => {}
        }
        Ok(metas)
    }

    fn find(&self, group: GroupId, content: ContentId) -> Result<Option<SnapshotMeta>, SnapshotStoreError> {
        match self.flaw {
            Flaw::FindsAnother => self.inner.latest(group),
            Flaw::FindsInAnyGroup => {
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
            Flaw::ForgetsTheOffer => self.inner.create(&meta.head)?,
            Flaw::ResumesAnotherOffer => self.inner.receive_while(&first, goes_on)?,
            _ => match self.inner.receive_while(meta, goes_on) {
                Err(SnapshotStoreError::Busy { .. }) if self.flaw == Flaw::NeverBusy => {
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
            Err(SnapshotStoreError::Missing { .. }) if self.flaw == Flaw::OpensNothing => {
                return Ok(Box::new(Nothing));
            }
            Err(SnapshotStoreError::Missing { content }) if self.flaw == Flaw::OpensAnyLength => {
                let found = self.inner.find(group, content)?;
                self.inner.open(&found.ok_or(SnapshotStoreError::Missing { content })?, offset)?
            }
            inner => inner?,
        };
        let removed = Arc::new(AtomicBool::new(false));
        self.known().readers.push((group, content, removed.clone()));
        Ok(Box::new(Reader { inner: Some(inner), store: self.clone(), group, content, removed }))
    }

    fn retain(&self, group: GroupId, keep: &[ContentId]) -> Result<(), SnapshotStoreError> {
        let mut keep = keep.to_vec();
        let groups = if self.flaw == Flaw::RemovesOfEveryGroup { self.groups() } else { [group].into() };
        let mut known = self.known();
        match self.flaw {
            Flaw::RemovesWhatIsOpen => {
                let readers =
                    known.readers.iter().filter(|(of, content, _)| *of == group && !keep.contains(content));
                readers.for_each(|(_, _, removed)| removed.store(true, Ordering::Relaxed));
            }
            Flaw::RemovesWhatIsWritten => {
                let writers = known.writers.iter().filter(|(of, _)| *of == group);
                writers.for_each(|(_, removed)| removed.store(true, Ordering::Relaxed));
            }
            Flaw::KeepsWhatWasOpen => keep.extend(known.readers.iter().map(|(_, content, _)| *content)),
            Flaw::NeverForgives => {
                let open = known.readers.iter().map(|(_, content, _)| *content);
                let unwanted: Vec<_> = open.filter(|content| !keep.contains(content)).collect();
                known.unwanted.extend(unwanted);
            }
            Flaw::KeepsPartials => keep.extend(known.offers.keys()),
            Flaw::KeepsNothing => keep.clear(),
            _ => {}
        }
        drop(known);
        groups.into_iter().try_for_each(|group| self.inner.retain(group, &keep))
    }
}

/// What is not there, read to its end.
struct Nothing;

impl SnapshotReader for Nothing {
    fn next_part(&mut self, _: usize) -> io::Result<Option<BodyPart>> {
        Ok(None)
    }
}

struct Reader {
    inner: Option<Box<dyn SnapshotReader>>,
    store: Store,
    group: GroupId,
    content: ContentId,
    removed: Arc<AtomicBool>,
}

impl SnapshotReader for Reader {
    fn next_part(&mut self, bytes_max: usize) -> io::Result<Option<BodyPart>> {
        if self.removed.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.inner.as_mut().unwrap().next_part(bytes_max)
    }
}

impl Drop for Reader {
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

struct Writer {
    /// `None` once it is committed or discarded.
    inner: Option<Box<dyn SnapshotWriter>>,
    store: Store,
    offer: Option<SnapshotMeta>,
    removed: Arc<AtomicBool>,
    verified: bool,
    committed: Option<SnapshotMeta>,
}

impl Writer {
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

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner()?.flush()
    }
}

impl SnapshotWriter for Writer {
    fn verified(&self) -> u64 {
        let verified = self.inner.as_ref().map_or(0, |inner| inner.verified());
        match self.store.flaw {
            Flaw::ClaimsMore if verified > 0 => verified + 1,
            Flaw::ClaimsNothing => 0,
            _ => verified,
        }
    }

    fn verify(&mut self, expected: Option<&Trailer>) -> Result<(), SnapshotStoreError> {
        let damaged = self.offer.as_ref().map(|offer| offer.content);
        if let Some(content) = damaged.filter(|content| self.store.known().damaged.contains(content)) {
            return Err(SnapshotStoreError::Corrupt {
                content,
                detail: "it was damaged before the resume".into(),
            });
        }
        if self.committed.is_some() {
            return Ok(());
        }
        let expected = match self.store.flaw {
            Flaw::ForgetsTheOffer | Flaw::IgnoresTheTrailer => None,
            _ => expected,
        };
        self.inner.as_mut().unwrap().verify(expected)?;
        self.verified = true;
        if self.store.flaw == Flaw::CommitsAtVerify {
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
            Flaw::CommitsUnverified => true,
            Flaw::VerifiedForGood => self.verified,
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
            Some(inner) if self.store.flaw == Flaw::DiscardsNothing => drop(inner),
            Some(inner) => inner.discard(),
            None => {}
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut known = self.store.known();
        known.writers.retain(|(_, removed)| !Arc::ptr_eq(removed, &self.removed));
        let at = known.receiving.iter().position(|meta| Some(meta) == self.offer.as_ref());
        at.map(|at| known.receiving.swap_remove(at));
        drop(known);
        match (self.inner.take(), self.store.flaw, self.offer.is_some()) {
            (Some(inner), Flaw::LeavesItsOwn, false) => std::mem::forget(inner),
            (Some(inner), Flaw::KeepsNoPrefix, true) => inner.discard(),
            _ => {}
        }
    }
}

type Check = fn(New<'_>);

fn finds(check: Check, flaw: Flaw) -> bool {
    let checked = catch_unwind(AssertUnwindSafe(|| {
        check(&mut || Box::new(Store { inner: MemSnapshots::new(), flaw, known: Arc::default() }));
    }));
    checked.is_err()
}

#[test]
fn each_flaw_is_found_by_the_check_that_is_for_it_and_the_sound_store_by_none() {
    for (flaw, check) in [
        (Flaw::LosesTheName, suite::what_was_committed_survives_a_crash as Check),
        (Flaw::LosesTheBytes, suite::what_was_committed_survives_a_crash),
        (Flaw::LosesPartials, suite::a_broken_transfer_goes_on_after_a_restart),
        (Flaw::ListsWhatIsWritten, suite::nothing_is_visible_before_the_commit),
        (Flaw::CommitsAtVerify, suite::verify_makes_nothing_visible),
        (Flaw::CommitsAtVerify, suite::a_writer_that_is_discarded_leaves_nothing),
        (Flaw::ListsAsTheyCame, suite::latest_has_the_highest_index),
        (Flaw::ListsLowerTermsFirst, suite::the_higher_term_breaks_a_tie),
        (Flaw::ListsTheNewestOnly, suite::complete_lists_every_snapshot_the_newest_first),
        (Flaw::FindsAnother, suite::find_knows_every_complete_snapshot),
        (Flaw::FindsInAnyGroup, suite::groups_are_apart),
        (Flaw::ForgetsTheOffer, suite::a_wrong_digest_is_refused_and_gone),
        (Flaw::ForgetsTheOffer, suite::a_short_body_is_refused_and_gone),
        (Flaw::ForgetsTheOffer, suite::a_long_body_is_refused_and_gone),
        (Flaw::ForgetsTheOffer, suite::another_head_is_another_content),
        (Flaw::IgnoresTheTrailer, suite::a_snapshot_of_its_own_is_held_to_what_is_expected_too),
        (Flaw::IgnoresTheTrailer, suite::a_wrong_digest_is_refused_and_gone),
        (Flaw::CommitsUnverified, suite::a_commit_without_verify_fails_and_the_file_is_gone),
        (Flaw::VerifiedForGood, suite::a_write_after_verify_takes_the_verification_back),
        (Flaw::VerifiedForGood, suite::a_part_after_verify_takes_the_verification_back),
        (Flaw::TrustsThePrefix, suite::a_damaged_prefix_is_cut_back_to_what_holds),
        (Flaw::TrustsThePrefix, suite::a_prefix_that_is_damaged_at_its_start_begins_anew),
        (Flaw::ResumesAnotherOffer, suite::a_prefix_of_another_offer_is_not_gone_on_with),
        (Flaw::ClaimsMore, suite::flush_puts_what_was_taken_into_the_file),
        (Flaw::ClaimsMore, suite::a_complete_prefix_needs_no_further_byte),
        (Flaw::ClaimsNothing, suite::a_transfer_may_break_at_any_chunk_and_again),
        (Flaw::KeepsNoPrefix, suite::a_broken_transfer_goes_on_where_it_was),
        (Flaw::KeepsNoPrefix, suite::a_broken_transfer_goes_on_in_parts),
        (Flaw::LeavesItsOwn, suite::a_writer_that_is_dropped_leaves_nothing_of_its_own),
        (Flaw::DiscardsNothing, suite::a_writer_that_is_discarded_leaves_nothing),
        (Flaw::NeverBusy, suite::a_second_writer_of_one_content_is_busy),
        (Flaw::RemovesWhatIsOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (Flaw::KeepsWhatWasOpen, suite::an_open_file_stays_until_its_last_reader_is_dropped),
        (Flaw::NeverForgives, suite::a_file_that_is_kept_after_all_stays),
        (Flaw::NeverForgives, suite::a_reader_is_not_disturbed_by_the_same_snapshot_again),
        (Flaw::RemovesWhatIsWritten, suite::retain_spares_what_is_being_written),
        (Flaw::KeepsPartials, suite::retain_removes_what_broken_transfers_left),
        (Flaw::KeepsNothing, suite::retain_keeps_what_is_named),
        (Flaw::KeepsNothing, suite::retain_removes_what_is_not_kept),
        (Flaw::RemovesOfEveryGroup, suite::groups_are_apart),
        (Flaw::OpensNothing, suite::what_is_not_here_is_missing),
        (Flaw::OpensAnyLength, suite::what_is_not_here_is_missing),
    ] {
        assert!(finds(check, flaw), "{flaw:?} was not found");
        assert!(!finds(check, Flaw::Sound), "{flaw:?}: its check refuses the sound store");
    }
}
