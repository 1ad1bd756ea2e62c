//! The suite for state machines: the machines of the testkit pass it, and it finds each machine with a flaw.

use std::io::{self, Read, Write};

use crate::common::*;
use towline_testkit::state_machine_suite;
use towline_testkit::suites::state_machine::{self as suite, StateMachineFixture};

/// The list, with a disk or without.
#[derive(Default)]
struct Lists {
    disk: Option<ListDisk>,
}

impl Lists {
    fn on_a_disk() -> Self {
        Self { disk: Some(ListDisk::default()) }
    }
}

impl StateMachineFixture for Lists {
    type Machine = ListMachine;

    fn open(&mut self) -> ListMachine {
        match &self.disk {
            Some(disk) => ListMachine::new().stored_in(disk),
            None => ListMachine::new(),
        }
    }

    fn crash(&mut self) {
        self.disk = self.disk.as_ref().map(ListDisk::crash);
    }

    fn command(&self, number: u64) -> Bytes {
        number.to_be_bytes().to_vec().into()
    }

    fn contents(&self, view: &List) -> Vec<u8> {
        view.commands().concat()
    }

    fn reply(&self, reply: &u64) -> Vec<u8> {
        reply.to_be_bytes().to_vec()
    }
}

state_machine_suite!(a_volatile_list, Lists::default);
state_machine_suite!(a_durable_list, Lists::on_a_disk);

/// What a machine does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MachineFlaw {
    None,
    TwoReplies,
    RepliesByBatch,
    ForgetsEmptyEntries,
    ViewIsACopy,
    ClaimsWhatIsNotStored,
    FlushStopsShort,
    StoresThePositionApart,
    SnapshotIsLate,
    EmptySnapshotKeepsState,
    RestoreAdds,
    RestoreGivesANewView,
    RestoreForgetsAnswers,
    RestoreIsNotStored,
    TakesABrokenBody,
    HidesWriteErrors,
}

type MachineDisk = Arc<Mutex<(Vec<u8>, LogId)>>;

/// Keeps one byte a command and stores them at a flush.
struct FlawedMachine {
    flaw: MachineFlaw,
    state: Arc<Mutex<Vec<u8>>>,
    applied: LogId,
    /// Commands in the state.
    answered: u64,
    disk: MachineDisk,
}

impl FlawedMachine {
    fn store(&self) {
        *self.disk.lock().unwrap() = (self.state.lock().unwrap().clone(), self.applied);
    }
}

struct FlawedSource {
    flaw: MachineFlaw,
    then: Vec<u8>,
    now: Arc<Mutex<Vec<u8>>>,
}

impl SnapshotSource for FlawedSource {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        let body = if self.flaw == MachineFlaw::SnapshotIsLate {
            self.now.lock().unwrap().clone()
        } else {
            self.then
        };
        let written = out.write_all(&body);
        if self.flaw == MachineFlaw::HidesWriteErrors { Ok(()) } else { written }
    }
}

impl StateMachine for FlawedMachine {
    type Response = u64;
    type View = Arc<Mutex<Vec<u8>>>;

    fn view(&self) -> Self::View {
        match self.flaw {
            MachineFlaw::ViewIsACopy => Arc::new(Mutex::new(self.state.lock().unwrap().clone())),
            _ => self.state.clone(),
        }
    }

    fn durable(&self) -> LogId {
        if self.flaw == MachineFlaw::ClaimsWhatIsNotStored {
            self.applied
        } else {
            self.disk.lock().unwrap().1
        }
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<u64>) -> Result<(), Fatal> {
        for command in batch.commands() {
            self.state.lock().unwrap().push(*command.data.last().unwrap());
            self.answered += 1;
            replies.push(if self.flaw == MachineFlaw::RepliesByBatch {
                batch.len() as u64
            } else {
                self.answered
            });
            if self.flaw == MachineFlaw::TwoReplies {
                replies.push(0);
            }
        }
        if self.flaw != MachineFlaw::ForgetsEmptyEntries || !batch.is_empty() {
            self.applied = batch.through();
        }
        if self.flaw == MachineFlaw::StoresThePositionApart && self.applied.index % 2 == 0 {
            self.disk.lock().unwrap().0.clone_from(&self.state.lock().unwrap());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<LogId, Fatal> {
        if self.flaw == MachineFlaw::FlushStopsShort {
            let short = LogId { index: self.applied.index.saturating_sub(1), ..self.applied };
            let (state, before) = (self.state.lock().unwrap(), self.disk.lock().unwrap().1);
            let kept = state[..state.len().saturating_sub(1)].to_vec();
            *self.disk.lock().unwrap() = (kept, short.max(before));
        } else {
            self.store();
        }
        Ok(self.durable())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        let then = self.state.lock().unwrap().clone();
        Ok(Box::new(FlawedSource { flaw: self.flaw, then, now: self.state.clone() }))
    }

    fn restore(&mut self, meta: &SnapshotMeta, body: &mut dyn Read) -> Result<(), Fatal> {
        let mut state = Vec::new();
        let read = body.read_to_end(&mut state);
        if self.flaw != MachineFlaw::TakesABrokenBody {
            read?;
        }
        if self.flaw == MachineFlaw::EmptySnapshotKeepsState && state.is_empty() {
            return Ok(());
        }
        if self.flaw == MachineFlaw::RestoreGivesANewView {
            self.state = Arc::default();
        }
        let mut to = self.state.lock().unwrap();
        if self.flaw == MachineFlaw::RestoreAdds {
            state = [to.clone(), state].concat();
        }
        self.answered = if self.flaw == MachineFlaw::RestoreForgetsAnswers { 0 } else { state.len() as u64 };
        *to = state;
        drop(to);
        self.applied = meta.head.at;
        if self.flaw != MachineFlaw::RestoreIsNotStored {
            self.store();
        }
        Ok(())
    }
}

struct FlawedMachines {
    flaw: MachineFlaw,
    disk: MachineDisk,
}

impl FlawedMachines {
    fn of(flaw: MachineFlaw) -> Self {
        Self { flaw, disk: Arc::default() }
    }
}

impl StateMachineFixture for FlawedMachines {
    type Machine = FlawedMachine;

    fn open(&mut self) -> FlawedMachine {
        let (state, applied) = self.disk.lock().unwrap().clone();
        let answered = state.len() as u64;
        let state = Arc::new(Mutex::new(state));
        FlawedMachine { flaw: self.flaw, state, applied, answered, disk: self.disk.clone() }
    }

    fn crash(&mut self) {}

    fn command(&self, number: u64) -> Bytes {
        vec![number as u8 + 1].into()
    }

    fn contents(&self, view: &Arc<Mutex<Vec<u8>>>) -> Vec<u8> {
        view.lock().unwrap().clone()
    }

    fn reply(&self, reply: &u64) -> Vec<u8> {
        reply.to_be_bytes().to_vec()
    }
}

state_machine_suite!(without_a_flaw, || FlawedMachines::of(MachineFlaw::None));

/// The check that must find each flaw.
macro_rules! found {
    ($($flaw:ident: $check:ident)*) => {
        #[allow(non_snake_case)] // named after the flaw
        mod found {
            use super::*;
            $(
                #[test]
                #[should_panic]
                fn $flaw() {
                    suite::$check(&mut || FlawedMachines::of(MachineFlaw::$flaw));
                }
            )*
        }
    };
}

found! {
    TwoReplies: every_command_gets_one_reply
    RepliesByBatch: batches_of_any_size_give_the_same_state_and_replies
    ForgetsEmptyEntries: an_entry_without_a_command_gets_no_reply_and_moves_the_log_position
    ViewIsACopy: a_view_sees_later_applies
    ClaimsWhatIsNotStored: applying_again_after_any_crash_gives_the_same_state
    FlushStopsShort: the_durable_position_never_falls_or_passes_the_applied_one
    StoresThePositionApart: applying_again_after_any_crash_gives_the_same_state
    SnapshotIsLate: a_snapshot_shows_the_state_at_its_request
    EmptySnapshotKeepsState: a_snapshot_of_an_empty_machine_restores_an_empty_machine
    RestoreAdds: a_restore_replaces_the_whole_state_for_views_too
    RestoreGivesANewView: a_restore_replaces_the_whole_state_for_views_too
    RestoreForgetsAnswers: a_restored_machine_continues_like_its_origin
    RestoreIsNotStored: a_restore_is_durable_when_it_returns
    TakesABrokenBody: a_truncated_body_is_fatal_and_keeps_the_old_state
    HidesWriteErrors: a_failed_snapshot_write_leaves_the_machine_intact
}
