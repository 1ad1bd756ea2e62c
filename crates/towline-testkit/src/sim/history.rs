use std::collections::BTreeMap;

use towline_engine::errors::{Outcome, ProposeError, ReadError};
use towline_engine::ids::NodeId;
use towline_engine::message::{Entry, EntryKind};

/// The result of a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProposalResult {
    /// No answer so far.
    Open,
    /// Applied at this index.
    Acked(u64),
    /// An error; see [`ProposeError::outcome`].
    Failed(ProposeError),
}

/// The result of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadResult {
    /// No answer so far.
    Open,
    /// Answered from the state at this index.
    Saw(u64),
    /// An error.
    Failed(ReadError),
}

/// All calls of clients, and the log that all nodes applied. Each event is checked.
///
/// The state machine is a list, so the applied index names a view. A view is right if it is a prefix of the log and holds
/// everything acknowledged or seen before the read began.
#[derive(Debug, Default)]
pub struct History {
    proposals: Vec<ProposalResult>,
    reads: Vec<(u64, ReadResult)>,
    /// By index from 1: term and command of the entry that a node applied there first.
    log: Vec<(u64, Option<u64>)>,
    /// The index at which each command was applied.
    places: BTreeMap<u64, u64>,
    /// Without checks: see [`SimOptions::history_checked`](super::SimOptions::history_checked).
    unchecked: bool,
    /// The highest index acknowledged or seen so far. A read that begins now must see it.
    floor: u64,
}

impl History {
    pub(super) fn new(checked: bool) -> Self {
        Self { unchecked: !checked, ..Self::default() }
    }

    fn found(&self, detail: String) -> Result<(), String> {
        if self.unchecked { Ok(()) } else { Err(detail) }
    }

    pub(super) fn invoke_proposal(&mut self) -> u64 {
        self.proposals.push(ProposalResult::Open);
        self.proposals.len() as u64 - 1
    }

    pub(super) fn invoke_read(&mut self) -> u64 {
        self.reads.push((self.floor, ReadResult::Open));
        self.reads.len() as u64 - 1
    }

    /// A node applies an entry.
    pub(super) fn applied(&mut self, node: NodeId, entry: &Entry) -> Result<(), String> {
        let command = command_of(entry);
        let at = entry.index.saturating_sub(1) as usize;
        if let Some(&known) = self.log.get(at) {
            if known != (entry.term, command) {
                return self.found(format!(
                    "node {node} applied {command:?} of term {} at {}, but {known:?} was applied there before",
                    entry.term, entry.index
                ));
            }
            return Ok(());
        }
        if at != self.log.len() {
            return self.found(format!(
                "node {node} applied {} but the log has {}",
                entry.index,
                self.log.len()
            ));
        }
        self.log.push((entry.term, command));
        let Some(command) = command else { return Ok(()) };
        if let Some(before) = self.places.insert(command, entry.index) {
            return self
                .found(format!("command {command} was applied at {before} and again at {}", entry.index));
        }
        match self.proposal(command) {
            ProposalResult::Failed(error) if error.outcome() == Outcome::NeverHappened => {
                self.found(format!("command {command} was applied after its proposer got {error:?}"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn acked(&mut self, command: u64, index: u64) -> Result<(), String> {
        if self.places.get(&command) != Some(&index) {
            return self
                .found(format!("command {command} was acknowledged at {index} but not applied there"));
        }
        self.floor = self.floor.max(index);
        self.answer(command, ProposalResult::Acked(index))
    }

    pub(super) fn refused(&mut self, command: u64, error: ProposeError) -> Result<(), String> {
        if error.outcome() == Outcome::NeverHappened && self.places.contains_key(&command) {
            return self.found(format!("command {command} was applied, but its proposer gets {error:?}"));
        }
        self.answer(command, ProposalResult::Failed(error))
    }

    fn answer(&mut self, command: u64, result: ProposalResult) -> Result<(), String> {
        match self.proposals.get_mut(command as usize) {
            Some(open) if *open == ProposalResult::Open => {
                *open = result;
                Ok(())
            }
            before => {
                let detail = format!("command {command} was answered {before:?} and then {result:?}");
                self.found(detail)
            }
        }
    }

    pub(super) fn saw(&mut self, node: NodeId, read: u64, applied: u64) -> Result<(), String> {
        let Some((floor, open)) = self.reads.get_mut(read as usize) else {
            return self.found(format!("read {read} never began"));
        };
        if *open != ReadResult::Open {
            return self.found(format!("read {read} was answered twice"));
        }
        *open = ReadResult::Saw(applied);
        let floor = *floor;
        if applied < floor {
            return self.found(format!(
                "read {read} saw the state at {applied} on node {node}, but {floor} was known when it began"
            ));
        }
        self.floor = self.floor.max(applied);
        Ok(())
    }

    pub(super) fn unread(&mut self, read: u64, error: ReadError) {
        if let Some((_, open)) = self.reads.get_mut(read as usize) {
            *open = ReadResult::Failed(error);
        }
    }

    /// The result of proposal `command`.
    pub fn proposal(&self, command: u64) -> &ProposalResult {
        self.proposals.get(command as usize).unwrap_or(&ProposalResult::Open)
    }

    /// The result of read `read`.
    pub fn read(&self, read: u64) -> &ReadResult {
        self.reads.get(read as usize).map_or(&ReadResult::Open, |(_, result)| result)
    }

    /// The index at which `command` was applied.
    pub fn place(&self, command: u64) -> Option<u64> {
        self.places.get(&command).copied()
    }

    /// The number of acknowledged proposals.
    pub fn acked_count(&self) -> usize {
        self.proposals.iter().filter(|p| matches!(p, ProposalResult::Acked(_))).count()
    }

    /// The number of answered reads.
    pub fn seen_count(&self) -> usize {
        self.reads.iter().filter(|(_, r)| matches!(r, ReadResult::Saw(_))).count()
    }

    /// The highest applied index of any node.
    pub fn last_index(&self) -> u64 {
        self.log.len() as u64
    }
}

/// The number of the command in an entry.
fn command_of(entry: &Entry) -> Option<u64> {
    let number = entry.data.first_chunk::<8>()?;
    (entry.kind == EntryKind::Normal).then(|| u64::from_be_bytes(*number))
}
