use std::ops::Range;

use super::NetOptions;

/// How a cluster is made and what happens to it. Probabilities are in parts of a thousand.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// The network.
    pub net: NetOptions,
    /// Faults and load.
    pub chaos: Chaos,
    /// Members that do not vote, beside the voters.
    pub learners: u64,
    /// Each node draws its election timeout from here, anew at every restart.
    pub election_ticks: Range<usize>,
    /// Ticks between two heartbeats.
    pub heartbeat_ticks: usize,
    /// Whether a restarted node gives no vote for the shortest election timeout. Off is wrong; it is for controls.
    pub quiet_after_restart: bool,
    /// Ticks until a read fails.
    pub read_timeout_ticks: u64,
    /// Bytes that may wait to be applied.
    pub unapplied_bytes_max: usize,
    /// Bytes of one append message.
    pub append_bytes_max: u64,
    /// Append messages under way to one peer.
    pub append_inflight_max: usize,
    /// Bytes of committed entries given out at once.
    pub committed_bytes_max: u64,
    /// Bytes of applied entries in memory; little, so that reads of the log store happen.
    pub cache_bytes_max: usize,
    /// A turn in which the disk completes writes.
    pub sync_permille: u32,
    /// Steps that a sync takes. What is written while one is under way waits for the next.
    pub sync_steps: u64,
    /// A turn in which the state machine works.
    pub apply_permille: u32,
    /// A turn in which the clock ticks.
    pub tick_permille: u32,
    /// An apply after which the state machine is durable. Zero is a volatile one.
    pub flush_permille: u32,
    /// The disk says "durable" as soon as it is asked, and is not. Wrong, of course; it is for controls.
    pub sync_lies: bool,
    /// Whether the history is checked. Off for tests that forge messages, which can break any promise, and that ask only
    /// whether a node survives them.
    pub history_checked: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            net: NetOptions::default(),
            chaos: Chaos::default(),
            learners: 0,
            election_ticks: 10..20,
            heartbeat_ticks: 2,
            quiet_after_restart: true,
            read_timeout_ticks: 60,
            unapplied_bytes_max: 64 << 10,
            append_bytes_max: 1 << 10,
            append_inflight_max: 8,
            committed_bytes_max: 4 << 10,
            cache_bytes_max: 1 << 10,
            sync_permille: 700,
            sync_steps: 0,
            apply_permille: 700,
            tick_permille: 500,
            flush_permille: 0,
            sync_lies: false,
            history_checked: true,
        }
    }
}

/// What happens by itself in each step, in parts of a thousand. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Chaos {
    /// Some node gets a few proposals.
    pub propose_permille: u32,
    /// Some node gets a read.
    pub read_permille: u32,
    /// Some leader is asked to hand over.
    pub transfer_permille: u32,
    /// Some node crashes.
    pub crash_permille: u32,
    /// A sync is cut short by a crash: before it, after it but before anybody was told, or right after that.
    pub crash_at_sync_permille: u32,
    /// A node that is down starts again.
    pub restart_permille: u32,
    /// The network splits: in two, or in one direction between two nodes.
    pub partition_permille: u32,
    /// The network heals.
    pub heal_permille: u32,
}

impl Chaos {
    /// Load alone.
    pub fn load() -> Self {
        Self { propose_permille: 100, read_permille: 60, ..Self::default() }
    }

    /// Load, and a bit of everything that can go wrong.
    pub fn rough() -> Self {
        Self {
            transfer_permille: 2,
            crash_permille: 2,
            crash_at_sync_permille: 5,
            restart_permille: 20,
            partition_permille: 2,
            heal_permille: 6,
            ..Self::load()
        }
    }
}
