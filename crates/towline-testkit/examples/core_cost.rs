//! The instructions of the core alone: three cores in one thread exchange messages directly, and a write is durable and an entry
//! applied one turn later. The program counts nothing itself. Count its instructions for N and for 2N, and divide the difference
//! by N:
//!
//! `valgrind --tool=callgrind target/release/examples/core_cost wait|stream|idle BATCH N`
//!
//! `wait`: each batch of proposals of 100 B waits until all cores are quiet. `stream`: one batch each turn. `idle`: N ticks.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)] // a program that talks to a person

use std::hint::black_box;

use bytes::Bytes;
use towline_engine::core::{
    Apply, Effects, GroupCore, GroupLog, GroupSetup, ReplicaSetup, SendBudget, SnapshotSetup, StallPolicy,
};
use towline_engine::ids::{FoundingHash, GroupId, NodeId};
use towline_engine::log_store::ConfRecord;
use towline_engine::message::{ConfState, HardState, LogId, Message};
use towline_engine::status::Role;
use towline_testkit::cluster::node_id;

struct Member {
    core: GroupCore<u64, u64>,
    fx: Effects<u64, u64>,
    inbox: Vec<Message>,
    written: Option<u64>,
    applied: Option<u64>,
    is_dirty: bool,
    refused: u64,
    commands: u64,
}

fn setup(node: NodeId) -> GroupSetup {
    let conf_state = ConfState { voters: (1..=3).map(node_id).collect(), ..ConfState::default() };
    // Node 1 leads, and all timeouts are certain: two runs differ in nothing.
    let election = if node == node_id(1) { 100 } else { 150 };
    let replica = ReplicaSetup {
        node,
        group: GroupId::DEFAULT,
        log: GroupLog::new(LogId::NONE, Vec::new(), 0, Vec::new(), 0, 32 << 20),
        hard_state: HardState::default(),
        conf_state: conf_state.clone(),
        heartbeat_ticks: 10,
        election_ticks: election..election + 1,
        election_ticks_min: 100,
        append_bytes_max: 256 << 10,
        append_inflight_max: 64,
        commit_broadcast: true,
        uncommitted_bytes_max: 64 << 20,
        committed_bytes_max: 16 << 20,
    };
    GroupSetup {
        replica,
        origin: [node.as_u64() as u8; 16],
        quiet_ticks: 0,
        read_timeout_ticks: 500,
        read_retry_ticks: 10,
        unapplied_bytes_max: 64 << 20,
        stall: StallPolicy::default(),
        founding_memory_ticks: 800,
        conf: ConfRecord { conf_state, founding: FoundingHash::new(1), ..ConfRecord::default() },
        snapshots: SnapshotSetup::default(),
    }
}

impl Member {
    fn new(node: NodeId) -> Self {
        Self {
            core: GroupCore::new(setup(node)).unwrap(),
            fx: Effects::default(),
            inbox: Vec::new(),
            written: None,
            applied: None,
            is_dirty: true,
            refused: 0,
            commands: 0,
        }
    }

    fn tick(&mut self) {
        self.core.lend(SendBudget { slots: 2, ..self.core.budget() });
        self.core.tick(&mut self.fx);
        self.is_dirty = true;
    }

    fn is_quiet(&self) -> bool {
        !self.is_dirty && self.inbox.is_empty() && self.written.is_none() && self.applied.is_none()
    }

    /// A turn in the order of the shard.
    fn turn(&mut self, out: &mut Vec<Message>) {
        if self.is_quiet() {
            return;
        }
        self.is_dirty = false;
        if let Some(number) = self.written.take() {
            self.core.written(number, &mut self.fx);
        }
        if let Some(index) = self.applied.take() {
            self.core.applied(index);
        }
        for message in self.inbox.drain(..) {
            self.refused += u64::from(self.core.step(message.from, message).is_err());
        }
        self.core.poll(&mut self.fx);
        if let Some((number, write)) = self.fx.write.take() {
            self.written = Some(number);
            drop(black_box(write));
        }
        for work in self.fx.apply.drain(..) {
            if let Apply::Entries { waiters, through, .. } = black_box(work) {
                self.commands += waiters.len() as u64;
                self.applied = Some(through.index);
            }
        }
        assert!(self.fx.refused.is_empty() && self.fx.fatal.is_none());
        out.append(&mut self.fx.messages);
    }
}

struct Cores {
    members: [Member; 3],
    out: Vec<Message>,
}

impl Cores {
    fn turn(&mut self) {
        self.members.iter_mut().for_each(|member| member.turn(&mut self.out));
        for message in self.out.drain(..) {
            self.members[message.to.as_u64() as usize - 1].inbox.push(message);
        }
    }

    fn settle(&mut self) {
        while !self.members.iter().all(Member::is_quiet) {
            self.turn();
        }
    }

    fn ticks(&mut self, count: u64) {
        for _ in 0..count {
            self.members.iter_mut().for_each(Member::tick);
            self.settle();
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, mode, batch, count] = &args[..] else { panic!("usage: core_cost wait|stream|idle BATCH N") };
    let (batch, count): (u64, u64) = (batch.parse().unwrap(), count.parse().unwrap());
    let mut cores = Cores { members: [1, 2, 3].map(|raw| Member::new(node_id(raw))), out: Vec::new() };
    cores.ticks(120);
    assert_eq!(cores.members[0].core.state().role, Role::Leader);
    cores.members.iter_mut().for_each(|member| member.refused = 0);
    if mode == "idle" {
        return cores.ticks(count);
    }
    let command = Bytes::from(vec![7; 100]);
    for _ in 0..count / batch {
        let leader = &mut cores.members[0];
        leader.core.propose((0..batch).map(|waiter| (command.clone(), waiter)).collect(), &mut leader.fx);
        leader.is_dirty = true;
        if mode == "wait" { cores.settle() } else { cores.turn() }
    }
    cores.settle();
    cores.ticks(20);
    for member in &cores.members {
        assert_eq!((member.refused, member.commands), (0, count / batch * batch));
    }
}
