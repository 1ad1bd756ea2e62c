//! The contract of a [`StateMachine`]: each sentence that a test can observe is a case.
//!
//! ```text
//! struct Mine { .. }
//! impl towline_testkit::suites::state_machine::StateMachineFixture for Mine { .. }
//! towline_testkit::state_machine_suite!(mine, Mine::new);
//! ```
//!
//! makes a module `mine` with one `#[test]` for each case. Cases about durability apply to machines that report a
//! durable log position. For a machine that keeps files, see also [`files`].

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs // the name of a case is its sentence
)]

pub mod files;

use std::io::{self, Read, Write};

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::message::{ConfState, Entry, LogId, MemberTable};
use towline_engine::snapshot_store::{ContentHasher, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::state_machine::{ApplyBatch, Fatal, Replies, StateMachine};

/// A state machine under test and its disk.
pub trait StateMachineFixture {
    /// The machine.
    type Machine: StateMachine;

    /// Opens the machine on its disk; a volatile machine is empty. The previous machine was dropped.
    fn open(&mut self) -> Self::Machine;

    /// Loses all that is not durable, or at least all that ends with the process. The machine was dropped.
    fn crash(&mut self);

    /// A command, never empty. Numbers 0 to 99 must lead to different states, and some replies should depend on earlier
    /// commands.
    fn command(&self, number: u64) -> Bytes;

    /// All that readers can see. Equal states give equal bytes, different states different bytes.
    fn contents(&self, view: &<Self::Machine as StateMachine>::View) -> Vec<u8>;

    /// The bytes of a reply.
    fn reply(&self, reply: &<Self::Machine as StateMachine>::Response) -> Vec<u8>;
}

/// Makes a module with one `#[test]` for each case of the suite. The second argument makes an empty fixture.
#[macro_export]
macro_rules! state_machine_suite {
    ($module:ident, $new:expr) => {
        $crate::__suite!(state_machine, $module, &mut $new;
            every_command_gets_one_reply
            batches_of_any_size_give_the_same_state_and_replies
            an_entry_without_a_command_gets_no_reply_and_moves_the_log_position
            a_view_sees_later_applies
            the_durable_position_never_falls_or_passes_the_applied_one
            a_flushed_state_survives_a_crash
            applying_again_after_any_crash_gives_the_same_state
            a_snapshot_shows_the_state_at_its_request
            a_snapshot_of_an_empty_machine_restores_an_empty_machine
            a_restore_replaces_the_whole_state_for_views_too
            a_restored_machine_continues_like_its_origin
            a_restore_is_durable_when_it_returns
            a_truncated_body_is_fatal_and_keeps_the_old_state
            a_failed_snapshot_write_leaves_the_machine_intact
        );
    };
}

const TERM: u64 = 3;
const COMMANDS: u64 = 12;

fn position(index: u64) -> LogId {
    if index == 0 { LogId::NONE } else { LogId { index, term: TERM } }
}

fn entry(fixture: &impl StateMachineFixture, index: u64) -> Entry {
    Entry { index, term: TERM, data: fixture.command(index), ..Entry::default() }
}

/// An open machine and its applied index. The command at index *n* has number *n*.
struct MachineHarness<F: StateMachineFixture> {
    fixture: F,
    machine: F::Machine,
    at: u64,
}

impl<F: StateMachineFixture> MachineHarness<F> {
    fn new(new: &mut dyn FnMut() -> F) -> Self {
        let mut fixture = new();
        let machine = fixture.open();
        Self { fixture, machine, at: 0 }
    }

    /// Applies entries through index `to` and returns the replies.
    fn apply(&mut self, to: u64, per_batch: u64) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while self.at < to {
            let end = to.min(self.at + per_batch);
            let entries: Vec<_> = (self.at + 1..=end).map(|index| entry(&self.fixture, index)).collect();
            let mut replies = Replies::with_capacity(entries.len());
            self.machine.apply(ApplyBatch::new(&entries, position(end)), &mut replies).unwrap();
            assert_eq!(replies.len(), entries.len(), "one reply a command");
            all.extend(replies.into_vec().iter().map(|reply| self.fixture.reply(reply)));
            self.at = end;
        }
        all
    }

    fn contents(&self) -> Vec<u8> {
        self.fixture.contents(&self.machine.view())
    }

    /// Crashes the machine and opens it again.
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
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: position(at),
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    };
    let mut hasher = ContentHasher::new(&head);
    hasher.update(body);
    let Trailer { length, content } = hasher.finish();
    SnapshotMeta { head, length, content }
}

/// Makes an empty fixture.
pub type NewStateMachine<'a, F> = &'a mut dyn FnMut() -> F;

pub fn every_command_gets_one_reply<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut harness = MachineHarness::new(new);
    assert_eq!(harness.apply(COMMANDS, 5).len() as u64, COMMANDS);
}

pub fn batches_of_any_size_give_the_same_state_and_replies<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut first = MachineHarness::new(new);
    let replies = first.apply(COMMANDS, 1);
    for per_batch in [2, 5, COMMANDS] {
        let mut other = MachineHarness::new(new);
        assert_eq!(other.apply(COMMANDS, per_batch), replies, "{per_batch} a batch");
        assert_eq!(other.contents(), first.contents(), "{per_batch} a batch");
    }
}

pub fn an_entry_without_a_command_gets_no_reply_and_moves_the_log_position<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut harness = MachineHarness::new(new);
    harness.apply(2, 2);
    let before = harness.contents();
    let nothing = Entry { index: 3, term: TERM, ..Entry::default() };
    let mut replies = Replies::with_capacity(0);
    harness.machine.apply(ApplyBatch::new(&[nothing], position(3)), &mut replies).unwrap();
    assert!(replies.is_empty());
    assert_eq!(harness.contents(), before);
    let flushed = harness.machine.flush().unwrap();
    assert!([LogId::NONE, position(3)].contains(&flushed), "flushed through {flushed:?}");
}

pub fn a_view_sees_later_applies<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut harness = MachineHarness::new(new);
    let view = harness.machine.view();
    let mut seen = vec![harness.fixture.contents(&view)];
    for index in 1..=4 {
        harness.apply(index, 1);
        let contents = harness.fixture.contents(&view.clone());
        assert_eq!(contents, harness.contents());
        assert!(!seen.contains(&contents), "command {index} is not seen");
        seen.push(contents);
    }
}

pub fn the_durable_position_never_falls_or_passes_the_applied_one<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut harness = MachineHarness::new(new);
    let mut before = harness.machine.durable();
    assert_eq!(before, LogId::NONE, "an empty machine reports a durable log position");
    for index in 1..=COMMANDS {
        harness.apply(index, 1);
        if index % 5 == 0 {
            let flushed = harness.machine.flush().unwrap();
            assert_eq!(flushed, harness.machine.durable());
            assert!(
                [LogId::NONE, position(index)].contains(&flushed),
                "flush stopped at {flushed:?} of {index}"
            );
        }
        let now = harness.machine.durable();
        assert!(
            now >= before && now <= position(index),
            "durable at {now:?} after {before:?}, applied {index}"
        );
        before = now;
    }
}

pub fn a_flushed_state_survives_a_crash<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut harness = MachineHarness::new(new);
    harness.apply(COMMANDS, 5);
    let (flushed, contents) = (harness.machine.flush().unwrap(), harness.contents());
    let mut harness = harness.crash();
    assert!(harness.machine.durable() >= flushed);
    harness.apply(COMMANDS, 5);
    assert_eq!(harness.contents(), contents);
}

pub fn applying_again_after_any_crash_gives_the_same_state<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut undisturbed = MachineHarness::new(new);
    let replies = undisturbed.apply(COMMANDS, 1);
    for (crash_at, flush_at) in (0..=COMMANDS).flat_map(|at| [(at, None), (at, Some(at / 2))]) {
        let mut harness = MachineHarness::new(new);
        if let Some(flush_at) = flush_at {
            harness.apply(flush_at, 3);
            harness.machine.flush().unwrap();
        }
        harness.apply(crash_at, 2);
        let claimed = harness.machine.durable().index;
        let mut harness = harness.crash();
        assert!((claimed..=crash_at).contains(&harness.at), "{} of {claimed} claimed survived", harness.at);
        let again = replies.len() - harness.at as usize;
        assert_eq!(harness.apply(COMMANDS, 2), replies[replies.len() - again..], "crash at {crash_at}");
        assert_eq!(harness.contents(), undisturbed.contents(), "crash at {crash_at}, flush at {flush_at:?}");
    }
}

pub fn a_snapshot_shows_the_state_at_its_request<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut harness = MachineHarness::new(new);
    harness.apply(4, 2);
    let (then, source) = (harness.contents(), harness.machine.snapshot().unwrap());
    harness.apply(6, 1);
    let written = std::thread::spawn(move || {
        let mut body = Vec::new();
        source.write_to(&mut body).map(|()| body)
    });
    harness.apply(COMMANDS, 1);
    let body = written.join().unwrap().unwrap();
    let mut other = MachineHarness::new(new);
    other.restore(&(meta(4, &body), body)).unwrap();
    assert_eq!(other.contents(), then);
}

pub fn a_snapshot_of_an_empty_machine_restores_an_empty_machine<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut empty = MachineHarness::new(new);
    let (contents, (_, body)) = (empty.contents(), empty.snapshot());
    let mut other = MachineHarness::new(new);
    other.apply(3, 1);
    other.restore(&(meta(9, &body), body)).unwrap();
    assert_eq!(other.contents(), contents);
}

pub fn a_restore_replaces_the_whole_state_for_views_too<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut origin = MachineHarness::new(new);
    origin.apply(COMMANDS, 5);
    let snapshot = origin.snapshot();
    let mut other = MachineHarness::new(new);
    other.apply(3, 1);
    let view = other.machine.view();
    other.restore(&snapshot).unwrap();
    assert_eq!(other.contents(), origin.contents());
    assert_eq!(other.fixture.contents(&view), origin.contents(), "through an older view");
}

pub fn a_restored_machine_continues_like_its_origin<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut origin = MachineHarness::new(new);
    origin.apply(5, 5);
    let snapshot = origin.snapshot();
    let mut other = MachineHarness::new(new);
    other.restore(&snapshot).unwrap();
    assert_eq!(other.apply(COMMANDS, 2), origin.apply(COMMANDS, 3));
    assert_eq!(other.contents(), origin.contents());
    let (again, mut third) = (other.snapshot(), MachineHarness::new(new));
    third.restore(&again).unwrap();
    assert_eq!(third.contents(), origin.contents(), "a snapshot of a restored machine");
}

pub fn a_restore_is_durable_when_it_returns<F: StateMachineFixture>(new: NewStateMachine<'_, F>) {
    let mut origin = MachineHarness::new(new);
    origin.apply(COMMANDS, 5);
    let snapshot = origin.snapshot();
    let mut other = MachineHarness::new(new);
    other.apply(2, 1);
    let volatile = other.machine.flush().unwrap() == LogId::NONE;
    other.restore(&snapshot).unwrap();
    if volatile {
        return;
    }
    assert_eq!(other.machine.durable(), position(COMMANDS));
    let other = other.crash();
    assert_eq!((other.at, other.contents()), (COMMANDS, origin.contents()));
}

/// Fails after its bytes.
struct TruncatedBody<'a>(&'a [u8]);

impl Read for TruncatedBody<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() { Err(io::ErrorKind::InvalidData.into()) } else { self.0.read(out) }
    }
}

pub fn a_truncated_body_is_fatal_and_keeps_the_old_state<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut origin = MachineHarness::new(new);
    origin.apply(COMMANDS, 5);
    let (meta, body) = origin.snapshot();
    for cut in [0, 1, body.len() / 2, body.len().saturating_sub(1)] {
        let mut old = MachineHarness::new(new);
        old.apply(3, 1);
        let (flushed, contents) = (old.machine.flush().unwrap(), old.contents());
        let ended = old.machine.restore(&meta, &mut TruncatedBody(&body[..cut.min(body.len())]));
        assert!(ended.is_err(), "cut at {cut} of {}", body.len());
        let mut old = old.crash();
        assert_eq!(old.machine.durable(), flushed, "cut at {cut}");
        old.apply(3, 1);
        assert_eq!(old.contents(), contents, "cut at {cut}");
    }
}

/// Takes this number of bytes.
struct FullDisk(usize);

impl Write for FullDisk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.0);
        self.0 -= fits;
        if fits == 0 && !bytes.is_empty() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn a_failed_snapshot_write_leaves_the_machine_intact<F: StateMachineFixture>(
    new: NewStateMachine<'_, F>,
) {
    let mut harness = MachineHarness::new(new);
    harness.apply(4, 2);
    let (_, body) = harness.snapshot();
    for room in [0, body.len() / 2, body.len().saturating_sub(1)] {
        let source = harness.machine.snapshot().unwrap();
        let written = source.write_to(&mut FullDisk(room));
        assert_eq!(written.is_err(), room < body.len(), "room for {room} of {}", body.len());
    }
    let mut other = MachineHarness::new(new);
    other.apply(COMMANDS, 5);
    harness.apply(COMMANDS, 5);
    assert_eq!(harness.contents(), other.contents());
}
