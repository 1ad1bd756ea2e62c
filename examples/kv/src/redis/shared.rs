//! The limits, counters and pools that all Redis connections share.

use metrics::Counter;

use crate::config::KvConfig;

use super::cluster::Members;
use super::pool::Pool;

#[derive(Clone)]
pub(crate) struct Counters {
    pub(crate) refused: Counter,
    /// Failed calls of `accept`.
    pub(crate) accept_failures: Counter,
    /// Waits for room for a long command, and for a large reply.
    pub(crate) command_waits: Counter,
    pub(crate) reply_waits: Counter,
    pub(crate) command_timeouts: Counter,
    pub(crate) write_timeouts: Counter,
    pub(crate) reply_timeouts: Counter,
}

impl Counters {
    /// The counter of the connections closed for `cause`.
    pub(super) fn closed(&self, cause: CloseCause) -> &Counter {
        match cause {
            CloseCause::Command => &self.command_timeouts,
            CloseCause::Write => &self.write_timeouts,
            CloseCause::Reply => &self.reply_timeouts,
        }
    }
}

/// The timeout at which the server closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseCause {
    Command,
    Write,
    Reply,
}

impl CloseCause {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command_timeout",
            Self::Write => "write_timeout",
            Self::Reply => "reply_timeout",
        }
    }
}

/// Memory that all connections share.
///
/// A connection asks the pools in the order of the fields. It holds what it got last until its client reads, which has a
/// deadline, or until a write is answered. So no two connections wait for each other.
pub(super) struct Pools {
    pub(super) commands: Pool,
    /// Values that a reply of many keys keeps from its read on.
    pub(super) kept: Pool,
    /// Values that were read from the store or answer a write.
    pub(super) values: Pool,
}

impl Pools {
    fn new(limits: &KvConfig, command_bytes_max: usize, counters: &Counters) -> Self {
        let half = limits.reply_bytes_max.as_usize() / 2;
        Self {
            commands: Pool::new(
                command_bytes_max.saturating_mul(limits.long_commands_max),
                counters.command_waits.clone(),
            ),
            kept: Pool::new(half, counters.reply_waits.clone()),
            values: Pool::new(half, counters.reply_waits.clone()),
        }
    }
}

pub(crate) struct Shared<R> {
    pub(super) replica: R,
    pub(super) members: Members,
    pub(super) limits: KvConfig,
    /// Bytes of one command, on the wire and in the log.
    pub(super) command_bytes_max: usize,
    pub(super) counters: Counters,
    pub(super) pools: Pools,
}

impl<R> Shared<R> {
    pub(crate) fn new(
        replica: R,
        members: Members,
        limits: KvConfig,
        command_bytes_max: usize,
        counters: Counters,
    ) -> Self {
        let pools = Pools::new(&limits, command_bytes_max, &counters);
        Self { replica, members, limits, command_bytes_max, counters, pools }
    }
}
