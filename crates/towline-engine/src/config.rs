//! Settings: what serde loads ([`Config`]) and what the engine runs on ([`ValidConfig`]).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{ByteSize, text};

/// The ceiling of a command, in bytes: 2,031,616, just under 2 MiB. No setting admits a larger one.
///
/// It is the upper bound of `proposal_bytes_max` and of `append_bytes_max`. A message may carry one more entry than
/// `append_bytes_max` says, and must fit in what every transport carries
/// ([`MESSAGE_BYTES_MAX`](crate::transport::MESSAGE_BYTES_MAX)).
pub const COMMAND_BYTES_MAX: u64 = crate::transport::MESSAGE_BYTES_MAX as u64 / 2 - (64 << 10);

/// The upper bound of every time: one year. The clock of a machine cannot add every duration.
pub const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The upper bound of `append_inflight_max`: raft reserves memory for as many messages, for each peer of each group.
pub const APPEND_INFLIGHT_MAX: usize = 65_536;

/// The upper bound of `apply_workers` and `network_workers`.
pub const WORKERS_MAX: usize = 1_024;

/// The upper bound of `disk_low`: 1 TiB.
const DISK_LOW_MAX: ByteSize = ByteSize::gib(1_024);

/// The settings of a node. Every field has a default that is meant for production; a file names only what differs.
///
/// In a file, a time or a size is text with a unit: `"100ms"`, `"64MiB"`. See [`units`](crate::units).
///
/// A full queue is never a silent loss: the engine counts it, returns an error to the caller, or reports it to Raft.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Length of a tick. Default 10 ms. The heartbeat interval and the election timeouts are multiples of the tick. A
    /// smaller tick wakes the shard thread more often.
    #[serde(with = "named::tick")]
    pub tick: Duration,
    /// Time between two heartbeats of a leader. Default 100 ms.
    #[serde(with = "named::heartbeat_interval")]
    pub heartbeat_interval: Duration,
    /// The shortest election timeout. Default 1 s. Must be above the pauses of your machines: a leader that pauses for
    /// longer loses its leadership.
    #[serde(with = "named::election_timeout_min")]
    pub election_timeout_min: Duration,
    /// The longest election timeout. Default 2 s. Each node draws from the range anew at each election.
    #[serde(with = "named::election_timeout_max")]
    pub election_timeout_max: Duration,
    /// Payload bytes of one append message. Default 256 KiB.
    #[serde(with = "named::append_bytes_max")]
    pub append_bytes_max: ByteSize,
    /// The most unacknowledged append messages to one peer. Default 64. Over a slow link the leader sends fewer: what
    /// the peer acknowledges within two shortest election timeouts, but at least one. This number of messages of
    /// `append_bytes_max` must fit in `lane_append_bytes_max`: otherwise a healthy peer would overflow its lane.
    pub append_inflight_max: usize,
    /// Whether a leader sends each new commit index to its followers at once. Default true. If false, followers get it
    /// with the next append or heartbeat. That saves messages if commands follow each other closely. A follower then
    /// applies a lone command up to one heartbeat interval later. Acknowledgements to callers do not depend on this
    /// setting.
    pub commit_broadcast: bool,
    /// Payload bytes of one call of a state machine, unless a single entry is larger. Default 16 MiB. A call has at
    /// most 4,096 entries, and fewer if the state machine takes long: about as many as it applies in 50 ms.
    #[serde(with = "named::committed_bytes_max")]
    pub committed_bytes_max: ByteSize,
    /// Bytes of one command. Default 1 MiB; at most [`COMMAND_BYTES_MAX`]. Larger proposals are rejected.
    #[serde(with = "named::proposal_bytes_max")]
    pub proposal_bytes_max: ByteSize,
    /// Time after which the shard answers an unapplied proposal with `Uncertain`. Default 10 s. The command may still
    /// be applied later.
    #[serde(with = "named::proposal_timeout")]
    pub proposal_timeout: Duration,
    /// Proposals of one group that wait for the shard. Default 65,536. At the bound callers get `Busy`.
    pub proposal_queue_max: usize,
    /// Bytes of the proposals of one group that wait for the shard. Default 64 MiB. At the bound callers get `Busy`.
    #[serde(with = "named::proposal_queue_bytes_max")]
    pub proposal_queue_bytes_max: ByteSize,
    /// Bytes of entries of one group that are not applied yet. Default 64 MiB. At the bound proposals get `Busy` and
    /// appends from a leader are refused with a nack, until the apply worker has caught up.
    #[serde(with = "named::unapplied_bytes_max")]
    pub unapplied_bytes_max: ByteSize,
    /// Bytes of applied entries of one group that stay in memory for followers that lag a little. Default 32 MiB. The
    /// log reader reads older entries from the log store.
    #[serde(with = "named::log_cache_bytes_max")]
    pub log_cache_bytes_max: ByteSize,
    /// Unanswered linearizable reads of one group. Default 65,536. At the bound callers get `Busy`.
    pub read_queue_max: usize,
    /// Time after which an unanswered linearizable read fails. Default 5 s.
    #[serde(with = "named::read_timeout")]
    pub read_timeout: Duration,
    /// Append messages of one peer that wait for its lane. Default 4,096. At the bound the lane drops the message,
    /// counts it, and reports the peer to Raft as unreachable.
    pub lane_append_messages_max: usize,
    /// Bytes of the append messages of one peer that wait for its lane. Default 32 MiB. At the bound the lane drops the
    /// message, counts it, and reports the peer to Raft as unreachable.
    #[serde(with = "named::lane_append_bytes_max")]
    pub lane_append_bytes_max: ByteSize,
    /// Read-index messages of one peer that wait for its control lane. Default 1,024. At the bound the lane drops and
    /// counts the message; the next read round replaces it. The same number bounds the read-index messages that wait in
    /// the inbox of one group.
    pub lane_reads_max: usize,
    /// The most bytes of one dispatch, unless a single message is larger. Default 1 MiB.
    #[serde(with = "named::lane_batch_bytes_max")]
    pub lane_batch_bytes_max: ByteSize,
    /// Time without a byte taken by flow control after which the worker drops the link. Default 3 s. A slow link takes
    /// some bytes in that time. The transport's keep-alive finds a dead link sooner.
    #[serde(with = "named::lane_dispatch_timeout")]
    pub lane_dispatch_timeout: Duration,
    /// The deadline of one attempt to connect. Default 1 s.
    #[serde(with = "named::lane_connect_timeout")]
    pub lane_connect_timeout: Duration,
    /// The first wait before a reconnect. Default 20 ms. The wait doubles, with jitter, up to `lane_backoff_max`.
    #[serde(with = "named::lane_backoff_min")]
    pub lane_backoff_min: Duration,
    /// The longest wait before a reconnect. Default 400 ms. Must be below the shortest election timeout: the leader
    /// then reaches a restarted peer before that peer starts an election.
    #[serde(with = "named::lane_backoff_max")]
    pub lane_backoff_max: Duration,
    /// Received append messages of one group that wait for the shard. Default 4,096. At the bound the sender gets a
    /// nack.
    pub inbox_messages_max: usize,
    /// Bytes of the received append messages of one group that wait for the shard. Default 64 MiB. At the bound the
    /// sender gets a nack. An empty inbox takes one larger message.
    #[serde(with = "named::inbox_bytes_max")]
    pub inbox_bytes_max: ByteSize,
    /// The most appends, and the most proposals, of one group in one turn of the shard. Default 4,096. This bounds how
    /// long other groups and the next tick wait.
    pub turn_burst_max: usize,
    /// Applied entries after which a group makes a snapshot. Default 1,000,000.
    pub snapshot_entries: u64,
    /// Bytes of new log entries after which a group makes a snapshot, even before `snapshot_entries`. Default 256 MiB.
    #[serde(with = "named::snapshot_log_bytes")]
    pub snapshot_log_bytes: ByteSize,
    /// Time by which a log write of a leader may be later than those of a quorum of the other voters. Default 0 s: the
    /// shortest election timeout. The leader then hands over. At least three heartbeat intervals.
    #[serde(with = "named::log_stall_timeout")]
    pub log_stall_timeout: Duration,
    /// Time without progress of a leader's state machine while committed entries wait for it. Default 5 s; counts as
    /// at least the longest election timeout. The leader then hands over to a voter that has applied the command.
    #[serde(with = "named::apply_stall_timeout")]
    pub apply_stall_timeout: Duration,
    /// The disk of the log is low while fewer bytes are free than this plus the log's reserve
    /// ([`DiskSpace::reserve`](crate::log_store::DiskSpace::reserve)). Default 128 MiB; zero disables; at most 1 TiB. A node with
    /// a low disk takes no commands, and hands its leaderships over to nodes with room. The disk has room again from 5/4 of that
    /// sum on.
    ///
    /// Half of these bytes is also for commands that a new leader inherits and needs for its first commit: at most
    /// `unapplied_bytes_max` of each group. Below the other half a node takes no command at all.
    ///
    /// These bytes are for commands already accepted, and for the state machine: `2 x 16 MiB + groups x unapplied_bytes_max`
    /// covers the log alone. A smaller value is safe. A disk that fills up anyway delays writes until there is room.
    #[serde(with = "named::disk_low")]
    pub disk_low: ByteSize,
    /// Log entries kept before the newest snapshot. Default 10,000. A follower that lags by fewer needs no snapshot.
    pub snapshot_trailing_entries: u64,
    /// Bytes of these entries. Default 64 MiB. The bound with fewer entries counts. Entries from before the start of the
    /// process count as nothing.
    #[serde(with = "named::snapshot_trailing_bytes")]
    pub snapshot_trailing_bytes: ByteSize,
    /// Bytes by which the log may grow during a transfer, which delays its truncation. Default 1 GiB. Past this bound
    /// the transfer fails.
    #[serde(with = "named::snapshot_pin_bytes_max")]
    pub snapshot_pin_bytes_max: ByteSize,
    /// Snapshots that this node sends at a time, over all groups. Default 2.
    pub snapshot_sends_max: usize,
    /// Snapshots that this node receives at a time, over all groups. Default 2. The node refuses further offers as
    /// busy.
    pub snapshot_receives_max: usize,
    /// Bytes of the largest snapshot that this node receives. Default 64 GiB.
    #[serde(with = "named::snapshot_bytes_max")]
    pub snapshot_bytes_max: ByteSize,
    /// The most payload bytes of one chunk. Default 512 KiB; at most
    /// [`CHUNK_BYTES_MAX`](crate::transport::CHUNK_BYTES_MAX). A slow transfer sends smaller chunks.
    #[serde(with = "named::snapshot_chunk_bytes")]
    pub snapshot_chunk_bytes: ByteSize,
    /// Payload bytes of snapshots that this node sends per second, over all transfers. Default 0 B: no limit. A limit
    /// must leave each of `snapshot_sends_max` transfers two chunks within `snapshot_progress_timeout`. With less, a
    /// healthy transfer would fail as stalled.
    #[serde(with = "named::snapshot_bytes_per_second")]
    pub snapshot_bytes_per_second: ByteSize,
    /// Time without an answer to an offer after which the attempt fails. Default 5 s. A receiver that first verifies
    /// its partial file reports that phase; the sender then waits for `snapshot_phase_timeout`.
    #[serde(with = "named::snapshot_offer_timeout")]
    pub snapshot_offer_timeout: Duration,
    /// Time without a byte after which a transfer fails, on either side. Default 10 s. A receiver reports a disk write
    /// that takes longer than a quarter of this time; the sender then waits for `snapshot_phase_timeout`. The receiver
    /// uses its own setting, so give all nodes the same value.
    #[serde(with = "named::snapshot_progress_timeout")]
    pub snapshot_progress_timeout: Duration,
    /// The longest time that a receiver may spend in one phase without progress. Default 5 min. The phases are: one
    /// slow write, verifying, syncing, and the step of Raft. Each verified piece of a partial file counts as progress.
    #[serde(with = "named::snapshot_phase_timeout")]
    pub snapshot_phase_timeout: Duration,
    /// The longest wait after a failed attempt to send a snapshot. Default 10 s. The first wait is one heartbeat
    /// interval; each further failure doubles the wait. The core adds up to a quarter at random.
    #[serde(with = "named::snapshot_backoff_max")]
    pub snapshot_backoff_max: Duration,
    /// Raft groups on this node. Default 1,024.
    pub groups_max: usize,
    /// Threads that run state machines. Default 1. A group always uses the same thread.
    pub apply_workers: usize,
    /// Threads of the node's network runtime, and as many of its runtime for snapshots. Default 2 each.
    pub network_workers: usize,
}

/// The serde functions of each time and size. Their errors name the field.
mod named {
    macro_rules! named {
        ($($field:ident)*) => {$(
            pub(super) mod $field {
                use crate::units::{self, Quantity};

                pub(crate) fn serialize<T: Quantity, S: serde::Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
                    units::serialize(value, to)
                }

                pub(crate) fn deserialize<'de, T: Quantity, D: serde::Deserializer<'de>>(from: D) -> Result<T, D::Error> {
                    units::deserialize(Some(stringify!($field)), from)
                }
            }
        )*};
    }
    named! {
        tick heartbeat_interval election_timeout_min election_timeout_max append_bytes_max
        committed_bytes_max proposal_bytes_max proposal_timeout proposal_queue_bytes_max unapplied_bytes_max
        log_cache_bytes_max read_timeout lane_append_bytes_max lane_batch_bytes_max lane_dispatch_timeout
        lane_connect_timeout lane_backoff_min lane_backoff_max inbox_bytes_max snapshot_log_bytes
        snapshot_pin_bytes_max snapshot_bytes_max snapshot_chunk_bytes snapshot_bytes_per_second
        snapshot_offer_timeout snapshot_progress_timeout snapshot_phase_timeout snapshot_backoff_max
        log_stall_timeout apply_stall_timeout disk_low snapshot_trailing_bytes
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(10),
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_secs(1),
            election_timeout_max: Duration::from_secs(2),
            append_bytes_max: ByteSize::kib(256),
            append_inflight_max: 64,
            commit_broadcast: true,
            committed_bytes_max: ByteSize::mib(16),
            proposal_bytes_max: ByteSize::mib(1),
            proposal_timeout: Duration::from_secs(10),
            proposal_queue_max: 65_536,
            proposal_queue_bytes_max: ByteSize::mib(64),
            unapplied_bytes_max: ByteSize::mib(64),
            log_cache_bytes_max: ByteSize::mib(32),
            read_queue_max: 65_536,
            read_timeout: Duration::from_secs(5),
            lane_append_messages_max: 4_096,
            lane_append_bytes_max: ByteSize::mib(32),
            lane_reads_max: 1_024,
            lane_batch_bytes_max: ByteSize::mib(1),
            lane_dispatch_timeout: Duration::from_secs(3),
            lane_connect_timeout: Duration::from_secs(1),
            lane_backoff_min: Duration::from_millis(20),
            lane_backoff_max: Duration::from_millis(400),
            inbox_messages_max: 4_096,
            inbox_bytes_max: ByteSize::mib(64),
            turn_burst_max: 4_096,
            snapshot_entries: 1_000_000,
            snapshot_log_bytes: ByteSize::mib(256),
            log_stall_timeout: Duration::ZERO,
            apply_stall_timeout: Duration::from_secs(5),
            disk_low: ByteSize::mib(128),
            snapshot_trailing_entries: 10_000,
            snapshot_trailing_bytes: ByteSize::mib(64),
            snapshot_pin_bytes_max: ByteSize::gib(1),
            snapshot_sends_max: 2,
            snapshot_receives_max: 2,
            snapshot_bytes_max: ByteSize::gib(64),
            snapshot_chunk_bytes: ByteSize::kib(512),
            snapshot_bytes_per_second: ByteSize::bytes(0),
            snapshot_offer_timeout: Duration::from_secs(5),
            snapshot_progress_timeout: Duration::from_secs(10),
            snapshot_phase_timeout: Duration::from_secs(300),
            snapshot_backoff_max: Duration::from_secs(10),
            groups_max: 1_024,
            apply_workers: 1,
            network_workers: 2,
        }
    }
}

impl Config {
    /// Checks every rule between the fields.
    ///
    /// # Errors
    /// [`ConfigError`] names the field, its value and the accepted form.
    pub fn validate(self) -> Result<ValidConfig, ConfigError> {
        for (field, value, max) in [
            ("append_inflight_max", self.append_inflight_max, APPEND_INFLIGHT_MAX),
            ("proposal_queue_max", self.proposal_queue_max, usize::MAX),
            ("read_queue_max", self.read_queue_max, usize::MAX),
            ("lane_append_messages_max", self.lane_append_messages_max, usize::MAX),
            ("lane_reads_max", self.lane_reads_max, usize::MAX),
            ("inbox_messages_max", self.inbox_messages_max, usize::MAX),
            ("turn_burst_max", self.turn_burst_max, usize::MAX),
            ("snapshot_sends_max", self.snapshot_sends_max, usize::MAX),
            ("snapshot_receives_max", self.snapshot_receives_max, usize::MAX),
            ("groups_max", self.groups_max, usize::MAX),
            ("apply_workers", self.apply_workers, WORKERS_MAX),
            ("network_workers", self.network_workers, WORKERS_MAX),
        ] {
            within(field, value, 1, max)?;
        }
        within("snapshot_entries", self.snapshot_entries, 1, u64::MAX)?;
        let (byte, command) = (ByteSize::bytes(1), ByteSize::bytes(COMMAND_BYTES_MAX));
        let chunk = ByteSize::bytes(crate::transport::CHUNK_BYTES_MAX as u64);
        for (field, value, max) in [
            ("append_bytes_max", self.append_bytes_max, command),
            ("committed_bytes_max", self.committed_bytes_max, ByteSize::MAX),
            ("proposal_bytes_max", self.proposal_bytes_max, command),
            ("lane_batch_bytes_max", self.lane_batch_bytes_max, ByteSize::MAX),
            ("snapshot_log_bytes", self.snapshot_log_bytes, ByteSize::MAX),
            ("snapshot_chunk_bytes", self.snapshot_chunk_bytes, chunk),
        ] {
            within(field, value, byte, max)?;
        }
        within("disk_low", self.disk_low, ByteSize::bytes(0), DISK_LOW_MAX)?;
        for (field, value) in [
            ("tick", self.tick),
            ("heartbeat_interval", self.heartbeat_interval),
            ("election_timeout_min", self.election_timeout_min),
            ("election_timeout_max", self.election_timeout_max),
            ("proposal_timeout", self.proposal_timeout),
            ("read_timeout", self.read_timeout),
            ("apply_stall_timeout", self.apply_stall_timeout),
            ("lane_dispatch_timeout", self.lane_dispatch_timeout),
            ("lane_connect_timeout", self.lane_connect_timeout),
            ("lane_backoff_min", self.lane_backoff_min),
            ("lane_backoff_max", self.lane_backoff_max),
            ("snapshot_offer_timeout", self.snapshot_offer_timeout),
            ("snapshot_progress_timeout", self.snapshot_progress_timeout),
            ("snapshot_phase_timeout", self.snapshot_phase_timeout),
            ("snapshot_backoff_max", self.snapshot_backoff_max),
        ] {
            within(field, Shown(value), Shown(Duration::from_millis(1)), Shown(TIME_MAX))?;
        }
        self.validate_relations()?;
        Ok(ValidConfig { config: self })
    }

    /// The time that a log write of a leader may take, with the default resolved.
    pub fn log_stall_timeout(&self) -> Duration {
        if self.log_stall_timeout.is_zero() { self.election_timeout_min } else { self.log_stall_timeout }
    }

    fn validate_relations(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("heartbeat_interval", self.heartbeat_interval),
            ("election_timeout_min", self.election_timeout_min),
            ("election_timeout_max", self.election_timeout_max),
        ] {
            let (value_ns, tick_ns) = (value.as_nanos(), self.tick.as_nanos());
            if value_ns % tick_ns != 0 || value_ns / tick_ns > u32::MAX.into() {
                let form = format!("a multiple of tick, {}, up to {} ticks", text(self.tick), u32::MAX);
                return Err(invalid(field, Shown(value), form));
            }
        }
        // Two missed heartbeats must not end a leadership.
        let floor = self.heartbeat_interval * 3;
        if self.election_timeout_min < floor {
            let form = format!("at least 3 x heartbeat_interval, {}", text(floor));
            return Err(invalid("election_timeout_min", Shown(self.election_timeout_min), form));
        }
        if self.election_timeout_max <= self.election_timeout_min {
            let form = format!("more than election_timeout_min, {}", text(self.election_timeout_min));
            return Err(invalid("election_timeout_max", Shown(self.election_timeout_max), form));
        }
        let window = self.append_bytes_max.as_u64().saturating_add(128);
        let window = ByteSize::bytes(window.saturating_mul(self.append_inflight_max as u64));
        for (field, value) in
            [("lane_append_bytes_max", self.lane_append_bytes_max), ("inbox_bytes_max", self.inbox_bytes_max)]
        {
            if value < window {
                let form = format!("at least (append_bytes_max + 128B) x append_inflight_max, {window}");
                return Err(invalid(field, value, form));
            }
        }
        if self.append_inflight_max > self.lane_append_messages_max {
            let form = format!("at least append_inflight_max, {}", self.append_inflight_max);
            return Err(invalid("lane_append_messages_max", self.lane_append_messages_max, form));
        }
        for (field, value) in [
            ("proposal_queue_bytes_max", self.proposal_queue_bytes_max),
            ("unapplied_bytes_max", self.unapplied_bytes_max),
        ] {
            if value < self.proposal_bytes_max {
                let form = format!("at least proposal_bytes_max, {}", self.proposal_bytes_max);
                return Err(invalid(field, value, form));
            }
        }
        // A write may take as long as a leader may be silent.
        within("log_stall_timeout", Shown(self.log_stall_timeout()), Shown(floor), Shown(TIME_MAX))?;
        if self.lane_backoff_min > self.lane_backoff_max {
            let form = format!("at least lane_backoff_min, {}", text(self.lane_backoff_min));
            return Err(invalid("lane_backoff_max", Shown(self.lane_backoff_max), form));
        }
        let (rate, rate_min) = (self.snapshot_bytes_per_second, self.snapshot_rate_min());
        if rate != ByteSize::bytes(0) && rate < rate_min {
            let form = format!(
                "0B or at least 2 x snapshot_chunk_bytes x snapshot_sends_max in snapshot_progress_timeout, {rate_min}"
            );
            return Err(invalid("snapshot_bytes_per_second", rate, form));
        }
        if self.lane_backoff_max >= self.election_timeout_min {
            let form = format!("below election_timeout_min, {}", text(self.election_timeout_min));
            return Err(invalid("lane_backoff_max", Shown(self.lane_backoff_max), form));
        }
        Ok(())
    }

    /// The least rate at which no transfer stalls while all of them wait for each other's chunks.
    fn snapshot_rate_min(&self) -> ByteSize {
        let round = u128::from(self.snapshot_chunk_bytes.as_u64()) * self.snapshot_sends_max as u128;
        let per_second =
            round.saturating_mul(2_000_000_000).div_ceil(self.snapshot_progress_timeout.as_nanos());
        ByteSize::bytes(u64::try_from(per_second).unwrap_or(u64::MAX))
    }
}

/// A time that errors show as a settings file has it.
#[derive(PartialEq, PartialOrd)]
struct Shown(Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

fn within<T: PartialOrd + fmt::Display>(
    field: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), ConfigError> {
    if value < min {
        return Err(invalid(field, value, format!("at least {min}")));
    }
    if value > max {
        return Err(invalid(field, value, format!("at most {max}")));
    }
    Ok(())
}

fn invalid(field: &'static str, value: impl ToString, accepted: String) -> ConfigError {
    ConfigError { field, value: value.to_string(), accepted }
}

/// Settings that keep every rule. Made by [`Config::validate`] only.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ValidConfig {
    config: Config,
}

impl ValidConfig {
    /// The number of ticks that take at least this time.
    pub fn ticks(&self, time: Duration) -> u64 {
        let ticks = time.as_nanos().div_ceil(self.tick.as_nanos());
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

impl std::ops::Deref for ValidConfig {
    type Target = Config;

    fn deref(&self) -> &Config {
        &self.config
    }
}

/// A setting that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting `{field}` is {value}, but must be {accepted}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What is accepted.
    pub accepted: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_keep_every_rule() {
        assert_eq!(Config::default().validate(), Ok(ValidConfig::default()));
    }

    #[test]
    fn a_file_names_only_what_differs_and_nothing_unknown() {
        let config: Config = toml::from_str("heartbeat_interval = '50ms'").unwrap();
        assert_eq!(config, Config { heartbeat_interval: Duration::from_millis(50), ..Config::default() });
        let error = toml::from_str::<Config>("heartbeat = 5").unwrap_err().to_string();
        assert!(error.contains("`heartbeat`"), "{error}");
    }

    #[test]
    fn a_window_that_overflows_its_lane_is_refused_by_name() {
        let config =
            Config { append_inflight_max: 256, append_bytes_max: ByteSize::mib(1), ..Config::default() };
        assert_eq!(config.validate().unwrap_err().field, "lane_append_bytes_max");
    }

    #[test]
    fn a_rate_of_snapshots_that_leaves_two_chunks_in_the_time_of_a_stall_is_accepted() {
        let of = |rate| Config {
            snapshot_bytes_per_second: ByteSize::bytes(rate),
            snapshot_chunk_bytes: ByteSize::bytes(100),
            snapshot_sends_max: 3,
            snapshot_progress_timeout: Duration::from_secs(1),
            ..Config::default()
        };
        assert_eq!(of(599).validate().unwrap_err().field, "snapshot_bytes_per_second");
        assert!([0, 600].iter().all(|rate| of(*rate).validate().is_ok()));
    }

    #[test]
    fn each_broken_relation_is_refused_by_name() {
        let (d, ms) = (Config::default, Duration::from_millis);
        for (field, config) in [
            ("tick", Config { tick: ms(0), ..d() }),
            (
                "append_bytes_max",
                Config { append_bytes_max: ByteSize::mib(2), append_inflight_max: 1, ..d() },
            ),
            ("proposal_bytes_max", Config { proposal_bytes_max: ByteSize::mib(4), ..d() }),
            ("tick", Config { tick: ms(400 * 24 * 3_600 * 1_000), ..d() }),
            ("heartbeat_interval", Config { heartbeat_interval: ms(105), ..d() }),
            ("election_timeout_max", Config { tick: ms(1), election_timeout_max: TIME_MAX, ..d() }),
            ("election_timeout_min", Config { election_timeout_min: ms(290), ..d() }),
            ("election_timeout_max", Config { election_timeout_max: ms(1_000), ..d() }),
            ("lane_append_messages_max", Config { lane_append_messages_max: 63, ..d() }),
            ("inbox_bytes_max", Config { inbox_bytes_max: ByteSize::mib(1), ..d() }),
            ("unapplied_bytes_max", Config { unapplied_bytes_max: ByteSize::bytes(1), ..d() }),
            ("lane_backoff_max", Config { lane_backoff_max: ms(1_000), ..d() }),
            ("apply_workers", Config { apply_workers: 0, ..d() }),
            (
                "snapshot_bytes_per_second",
                Config { snapshot_bytes_per_second: ByteSize::bytes(200_000), ..d() },
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }
}
