//! What every [`StateMachine`] must do: each sentence of its contract that a test can see is a check here.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::state_machine::Fixture for Mine { .. }
//! towline_testkit::state_machine_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` a check. A machine that keeps files runs [`files`] too. A volatile machine passes
//! too: what is said of durable ones is asked of those that ever claim to have something durable.

#![allow(
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs // each check is named after what it asserts
)]

pub mod files;

use std::io::{self, Read, Write};

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::message::{ConfState, Entry, LogId, MemberTable};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, StateMachine};

/// A state machine under test and its disk.
pub trait Fixture {
    /// The machine.
    type Machine: StateMachine;

    /// Opens it on whatever the disk holds; a volatile one is empty. The one opened before was dropped.
    fn open(&mut self) -> Self::Machine;

    /// The power goes, and with it everything that is not durable, as far as the fixture can do that; at least the
    /// process ends. The machine was dropped.
    fn crash(&mut self);

    /// A command, never empty. Any two of numbers 0 to 99 must lead to different states, and the answers of some should
    /// depend on what was applied before.
    fn command(&self, number: u64) -> Bytes;

    /// All that readers can see: equal for equal states, different for different ones.
    fn contents(&self, view: &<Self::Machine as StateMachine>::View) -> Vec<u8>;

    /// What a reply says.
    fn reply(&self, reply: &<Self::Machine as StateMachine>::Response) -> Vec<u8>;
}

/// One `#[test]` for each check of the suite, in a module of its own. The second argument makes a new, empty fixture.
#[macro_export]
macro_rules! state_machine_suite {
    ($module:ident, $new:expr) => {
        $crate::state_machine_suite!(@tests $module, $new;
            every_command_gets_one_reply
            batches_of_any_size_give_the_same_state_and_replies
            an_entry_without_a_command_gets_no_reply_and_counts_for_the_place
            a_view_sees_what_is_applied_later
            what_is_durable_was_applied_and_never_less_again
            what_flush_says_is_durable_survives_a_crash
            after_a_crash_anywhere_the_rest_applied_again_gives_the_same_state
            a_snapshot_shows_the_moment_it_was_asked_for
            a_snapshot_of_nothing_restores_nothing
            a_restore_replaces_the_whole_state_for_views_too
            a_restored_machine_goes_on_like_its_origin
            a_restore_is_durable_when_it_returns
            a_body_that_breaks_off_is_fatal_and_a_crash_finds_the_old_state_or_nothing_of_the_new
            a_snapshot_that_cannot_be_written_is_an_error_of_its_writer_alone
        );
    };
    (@tests $module:ident, $new:expr; $($check:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $check() {
                    $crate::suites::state_machine::$check(&mut $new);
                }
            )*
        }
    };
}

const TERM: u64 = 3;
const COMMANDS: u64 = 12;

fn place(index: u64) -> LogId {
    if index == 0 { LogId::NONE } else { LogId { index, term: TERM } }
}

fn entry(fixture: &impl Fixture, index: u64) -> Entry {
    Entry { index, term: TERM, data: fixture.command(index), ..Entry::default() }
}

/// A fixture, its machine while it is open, and how far it is. The command at index *n* is number *n*.
struct Bench<F: Fixture> {
    fixture: F,
    machine: F::Machine,
    at: u64,
}

impl<F: Fixture> Bench<F> {
    fn new(new: &mut dyn FnMut() -> F) -> Self {
        let mut fixture = new();
        let machine = fixture.open();
        Self { fixture, machine, at: 0 }
    }

    /// Applies what comes next, up to an index, so many entries a batch. Gives the replies.
    fn apply(&mut self, to: u64, per_batch: u64) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while self.at < to {
            let end = to.min(self.at + per_batch);
            let entries: Vec<_> = (self.at + 1..=end).map(|index| entry(&self.fixture, index)).collect();
            let mut replies = Replies::with_capacity(entries.len());
            self.machine.apply(ApplyBatch::new(&entries, place(end)), &mut replies).unwrap();
            assert_eq!(replies.len(), entries.len(), "one reply a command");
            all.extend(replies.into_vec().iter().map(|reply| self.fixture.reply(reply)));
            self.at = end;
        }
        all
    }

    fn contents(&self) -> Vec<u8> {
        self.fixture.contents(&self.machine.view())
    }

    /// The machine is gone, the power too; it opens again wherever it was durable.
    fn crash(self) -> Self {
        let Self { mut fixture, machine, .. } = self;
        drop(machine);
        fixture.crash();
        let machine = fixture.open();
        let at = machine.durable().index;
        Self { fixture, machine, at }
    }

    fn snapshot(&mut self) -> (SnapshotMeta, Vec<u8>) {
        let source = self.machine.snapshot().unwrap();
        let mut body = Vec::new();
        source.write_to(&mut body).unwrap();
        (meta(self.at, &body), body)
    }

    fn restore(&mut self, (meta, body): &(SnapshotMeta, Vec<u8>)) -> Result<(), Fatal> {
        self.machine.restore(meta, &mut body.as_slice())?;
        self.at = meta.head.at.index;
        Ok(())
    }
}

fn meta(at: u64, body: &[u8]) -> SnapshotMeta {
    let head = SnapshotHead {
        group: GroupId::DEFAULT,
        at: place(at),
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    };
    let mut hasher = ContentHasher::new(&head);
    hasher.update(body);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head, length, content }
}

/// Makes a new, empty fixture.
pub type New<'a, F> = &'a mut dyn FnMut() -> F;

pub fn every_command_gets_one_reply<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    assert_eq!(bench.apply(COMMANDS, 5).len() as u64, COMMANDS);
}

pub fn batches_of_any_size_give_the_same_state_and_replies<F: Fixture>(new: New<'_, F>) {
    let mut first = Bench::new(new);
    let replies = first.apply(COMMANDS, 1);
    for per_batch in [2, 5, COMMANDS] {
        let mut other = Bench::new(new);
        assert_eq!(other.apply(COMMANDS, per_batch), replies, "{per_batch} a batch");
        assert_eq!(other.contents(), first.contents(), "{per_batch} a batch");
    }
}

pub fn an_entry_without_a_command_gets_no_reply_and_counts_for_the_place<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    bench.apply(2, 2);
    let before = bench.contents();
    let nothing = Entry { index: 3, term: TERM, ..Entry::default() };
    let mut replies = Replies::with_capacity(0);
    bench.machine.apply(ApplyBatch::new(&[nothing], place(3)), &mut replies).unwrap();
    assert!(replies.is_empty());
    assert_eq!(bench.contents(), before);
    let flushed = bench.machine.flush().unwrap();
    assert!([LogId::NONE, place(3)].contains(&flushed), "flushed through {flushed:?}");
}

pub fn a_view_sees_what_is_applied_later<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    let view = bench.machine.view();
    let mut seen = vec![bench.fixture.contents(&view)];
    for index in 1..=4 {
        bench.apply(index, 1);
        let contents = bench.fixture.contents(&view.clone());
        assert_eq!(contents, bench.contents());
        assert!(!seen.contains(&contents), "command {index} is not seen");
        seen.push(contents);
    }
}

pub fn what_is_durable_was_applied_and_never_less_again<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    let mut before = bench.machine.durable();
    assert_eq!(before, LogId::NONE, "an empty one has nothing durable");
    for index in 1..=COMMANDS {
        bench.apply(index, 1);
        if index % 5 == 0 {
            let flushed = bench.machine.flush().unwrap();
            assert_eq!(flushed, bench.machine.durable());
            assert!(
                [LogId::NONE, place(index)].contains(&flushed),
                "flush stopped at {flushed:?} of {index}"
            );
        }
        let now = bench.machine.durable();
        assert!(now >= before && now <= place(index), "durable at {now:?} after {before:?}, applied {index}");
        before = now;
    }
}

pub fn what_flush_says_is_durable_survives_a_crash<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    bench.apply(COMMANDS, 5);
    let (flushed, contents) = (bench.machine.flush().unwrap(), bench.contents());
    let mut bench = bench.crash();
    assert!(bench.machine.durable() >= flushed);
    bench.apply(COMMANDS, 5);
    assert_eq!(bench.contents(), contents);
}

pub fn after_a_crash_anywhere_the_rest_applied_again_gives_the_same_state<F: Fixture>(new: New<'_, F>) {
    let mut undisturbed = Bench::new(new);
    let replies = undisturbed.apply(COMMANDS, 1);
    for (crash_at, flush_at) in (0..=COMMANDS).flat_map(|at| [(at, None), (at, Some(at / 2))]) {
        let mut bench = Bench::new(new);
        if let Some(flush_at) = flush_at {
            bench.apply(flush_at, 3);
            bench.machine.flush().unwrap();
        }
        bench.apply(crash_at, 2);
        let claimed = bench.machine.durable().index;
        let mut bench = bench.crash();
        assert!((claimed..=crash_at).contains(&bench.at), "{} of {claimed} claimed survived", bench.at);
        let again = replies.len() - bench.at as usize;
        assert_eq!(bench.apply(COMMANDS, 2), replies[replies.len() - again..], "crash at {crash_at}");
        assert_eq!(bench.contents(), undisturbed.contents(), "crash at {crash_at}, flush at {flush_at:?}");
    }
}

pub fn a_snapshot_shows_the_moment_it_was_asked_for<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    bench.apply(4, 2);
    let (then, source) = (bench.contents(), bench.machine.snapshot().unwrap());
    bench.apply(6, 1);
    let written = std::thread::spawn(move || {
        let mut body = Vec::new();
        source.write_to(&mut body).map(|()| body)
    });
    bench.apply(COMMANDS, 1);
    let body = written.join().unwrap().unwrap();
    let mut other = Bench::new(new);
    other.restore(&(meta(4, &body), body)).unwrap();
    assert_eq!(other.contents(), then);
}

pub fn a_snapshot_of_nothing_restores_nothing<F: Fixture>(new: New<'_, F>) {
    let mut empty = Bench::new(new);
    let (contents, (_, body)) = (empty.contents(), empty.snapshot());
    let mut other = Bench::new(new);
    other.apply(3, 1);
    other.restore(&(meta(9, &body), body)).unwrap();
    assert_eq!(other.contents(), contents);
}

pub fn a_restore_replaces_the_whole_state_for_views_too<F: Fixture>(new: New<'_, F>) {
    let mut origin = Bench::new(new);
    origin.apply(COMMANDS, 5);
    let snapshot = origin.snapshot();
    let mut other = Bench::new(new);
    other.apply(3, 1);
    let view = other.machine.view();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.contents(), origin.contents());
    assert_eq!(other.fixture.contents(&view), origin.contents(), "through a view that is older");
}

pub fn a_restored_machine_goes_on_like_its_origin<F: Fixture>(new: New<'_, F>) {
    let mut origin = Bench::new(new);
    origin.apply(5, 5);
    let snapshot = origin.snapshot();
    let mut other = Bench::new(new);
    other.restore(&snapshot).unwrap();
    assert_eq!(other.apply(COMMANDS, 2), origin.apply(COMMANDS, 3));
    assert_eq!(other.contents(), origin.contents());
    let (again, mut third) = (other.snapshot(), Bench::new(new));
    third.restore(&again).unwrap();
    assert_eq!(third.contents(), origin.contents(), "a snapshot of a restored machine");
}

pub fn a_restore_is_durable_when_it_returns<F: Fixture>(new: New<'_, F>) {
    let mut origin = Bench::new(new);
    origin.apply(COMMANDS, 5);
    let snapshot = origin.snapshot();
    let mut other = Bench::new(new);
    other.apply(2, 1);
    let volatile = other.machine.flush().unwrap() == LogId::NONE;
    other.restore(&snapshot).unwrap();
    if volatile {
        return;
    }
    assert_eq!(other.machine.durable(), place(COMMANDS));
    let other = other.crash();
    assert_eq!((other.at, other.contents()), (COMMANDS, origin.contents()));
}

/// Fails after so many bytes.
struct BreaksOff<'a>(&'a [u8]);

impl Read for BreaksOff<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::InvalidData.into()) } else { self.0.read(out) }
    }
}

pub fn a_body_that_breaks_off_is_fatal_and_a_crash_finds_the_old_state_or_nothing_of_the_new<F: Fixture>(
    new: New<'_, F>,
) {
    let mut origin = Bench::new(new);
    origin.apply(COMMANDS, 5);
    let (meta, body) = origin.snapshot();
    for cut in [0, 1, body.len() / 2, body.len().saturating_sub(1)] {
        let mut old = Bench::new(new);
        old.apply(3, 1);
        let (flushed, contents) = (old.machine.flush().unwrap(), old.contents());
        let ended = old.machine.restore(&meta, &mut BreaksOff(&body[..cut.min(body.len())]));
        assert!(ended.is_err(), "cut at {cut} of {}", body.len());
        let mut old = old.crash();
        assert_eq!(old.machine.durable(), flushed, "cut at {cut}");
        old.apply(3, 1);
        assert_eq!(old.contents(), contents, "cut at {cut}");
    }
}

/// Takes so many bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.0);
        self.0 -= fits;
        if fits == 0 && !bytes.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn a_snapshot_that_cannot_be_written_is_an_error_of_its_writer_alone<F: Fixture>(new: New<'_, F>) {
    let mut bench = Bench::new(new);
    bench.apply(4, 2);
    let (_, body) = bench.snapshot();
    for room in [0, body.len() / 2, body.len().saturating_sub(1)] {
        let source = bench.machine.snapshot().unwrap();
        let written = source.write_to(&mut Full(room));
        assert_eq!(written.is_err(), room < body.len(), "room for {room} of {}", body.len());
    }
    let mut other = Bench::new(new);
    other.apply(COMMANDS, 5);
    bench.apply(COMMANDS, 5);
    assert_eq!(bench.contents(), other.contents());
}
