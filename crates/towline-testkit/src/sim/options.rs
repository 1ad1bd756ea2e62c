use std::ops::Range;

use towline_engine::core::StallPolicy;

use super::NetOptions;

/// The settings of a [`Sim`](super::Sim). Chances are in parts of a thousand.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// The network.
    pub net: NetOptions,
    /// Faults and load.
    pub chaos: Chaos,
    /// The number of learners.
    pub learners: u64,
    /// Each node draws its election timeout from this range at each start.
    pub election_ticks: Range<usize>,
    /// Ticks between two heartbeats.
    pub heartbeat_ticks: usize,
    /// Whether a restarted node gives no vote for the shortest election timeout. Switch it off only in controls.
    pub quiet_after_restart: bool,
    /// Ticks until a read fails.
    pub read_timeout_ticks: u64,
    /// After how many ticks without progress a leader hands over.
    pub stall: StallPolicy,
    /// Bytes that may wait to be applied.
    pub unapplied_bytes_max: usize,
    /// Bytes of one append message.
    pub append_bytes_max: u64,
    /// Append messages in flight to one peer.
    pub append_inflight_max: usize,
    /// Bytes of committed entries in one ready.
    pub committed_bytes_max: u64,
    /// Bytes of applied entries in memory; few, so that the log store is read.
    pub cache_bytes_max: usize,
    /// The chance of a turn in which the disk completes writes.
    pub sync_permille: u32,
    /// Steps of a sync. Later writes wait for the next sync.
    pub sync_steps: u64,
    /// The chance of a turn in which the state machine applies.
    pub apply_permille: u32,
    /// The chance of a turn in which the clock ticks.
    pub tick_permille: u32,
    /// The chance that an apply becomes durable. Zero makes a volatile state machine.
    pub flush_permille: u32,
    /// Whether the disk reports writes as durable before they are. Only for controls.
    pub sync_lies: bool,
    /// Whether the history is checked. Tests that forge messages switch it off: they check only that a node survives.
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
            stall: StallPolicy { log_ticks: 10, apply_ticks: 50 },
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

/// The chances of faults and load in each step, in parts of a thousand; none by default.
#[derive(Debug, Clone, Default)]
pub struct Chaos {
    /// A few proposals on one node.
    pub propose_permille: u32,
    /// A read on one node.
    pub read_permille: u32,
    /// A transfer of leadership.
    pub transfer_permille: u32,
    /// A crash of one node.
    pub crash_permille: u32,
    /// A crash at a sync: before it, before its report, or after its report.
    pub crash_at_sync_permille: u32,
    /// A restart of one node.
    pub restart_permille: u32,
    /// A network partition: of one node, or in one direction between two nodes.
    pub partition_permille: u32,
    /// The end of all partitions.
    pub heal_permille: u32,
    /// The disk of one node gets low.
    pub disk_low_permille: u32,
    /// The disk of one node has room again.
    pub disk_room_permille: u32,
}

impl Chaos {
    /// Load without faults.
    pub fn load() -> Self {
        Self { propose_permille: 100, read_permille: 60, ..Self::default() }
    }

    /// Load with a small chance of each fault.
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
