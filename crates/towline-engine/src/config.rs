//! Settings: what serde loads ([`Config`]) and what the engine runs on ([`ValidConfig`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The ceiling of a command, in bytes: 2,031,616, just under 2 MiB. No setting admits a larger one.
///
/// It is the upper bound of `proposal_bytes_max` and of `append_bytes_max`. A message may carry one more entry than
/// `append_bytes_max` says, and must fit in what every transport carries
/// ([`MESSAGE_BYTES_MAX`](crate::transport::MESSAGE_BYTES_MAX)).
pub const COMMAND_BYTES_MAX: u64 = crate::transport::MESSAGE_BYTES_MAX as u64 / 2 - (64 << 10);

/// The upper bound of every setting in milliseconds, and of `tick_ms * election_ticks_max`: one year. The clock of a machine
/// cannot add every number.
pub const TIME_MS_MAX: u64 = 365 * 24 * 60 * 60 * 1_000;

/// The upper bound of `append_inflight_max`: raft reserves memory for as many messages, for each peer of each group.
pub const APPEND_INFLIGHT_MAX: usize = 65_536;

/// The upper bound of `apply_workers` and `network_workers`.
pub const WORKERS_MAX: usize = 1_024;

/// The settings of a node. Every field has a default that is meant for production; a file names only what differs.
///
/// A bound that is hit is a counter, an error the caller sees, or a report to Raft; never a silent loss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Length of a tick in milliseconds. Default 10. All other times of Raft are multiples of it. A smaller tick costs
    /// wake-ups of the shard thread.
    pub tick_ms: u64,
    /// Ticks between two heartbeats of a leader. Default 10, so 100 ms.
    pub heartbeat_ticks: u32,
    /// The shortest election timeout in ticks. Default 100, so 1 s. Must be above the pauses of your machines: a leader
    /// that is not scheduled for so long loses its office.
    pub election_ticks_min: u32,
    /// The longest election timeout in ticks. Default 200, so 2 s. Each node draws from the range anew at each election.
    pub election_ticks_max: u32,
    /// Payload bytes of one append message. Default 256 KiB.
    pub append_bytes_max: u64,
    /// Append messages under way to one peer before an answer. Default 64. Fewer over a slow link: no more than the peer
    /// acknowledges within two shortest election timeouts, but one. Together with `append_bytes_max` this must fit
    /// in `lane_append_bytes_max`, or a healthy peer would overflow its own lane.
    pub append_inflight_max: usize,
    /// Whether a leader tells its followers at once what it committed. Default true. If false they learn it with the next
    /// append or heartbeat: fewer messages where commands follow each other closely, but a follower applies a lone command
    /// up to a heartbeat later. What is acknowledged, and when, does not depend on it.
    pub commit_broadcast: bool,
    /// Payload bytes of one call of a state machine, unless a single entry is larger. Default 16 MiB. A call has at most
    /// 4,096 entries, and fewer if the state machine takes long: about as many as it applies in 50 ms.
    pub committed_bytes_max: u64,
    /// Bytes of one command. Default 1 MiB; at most [`COMMAND_BYTES_MAX`]. Larger proposals are rejected.
    pub proposal_bytes_max: usize,
    /// Milliseconds until a proposal that is not applied is answered `Uncertain`. Default 10,000. The command goes on.
    pub proposal_timeout_ms: u64,
    /// Proposals of one group that wait for the shard. Default 65,536. At the bound callers get `Busy`.
    pub proposal_queue_max: usize,
    /// Bytes of those proposals. Default 64 MiB.
    pub proposal_queue_bytes_max: usize,
    /// Bytes of entries of one group that are not applied yet. Default 64 MiB. At the bound proposals get `Busy` and
    /// appends from a leader are refused with a nack, until the apply worker has caught up.
    pub unapplied_bytes_max: usize,
    /// Bytes of applied entries of one group that stay in memory for followers which lag a little. Default 32 MiB.
    /// Colder entries are read from the log store.
    pub log_cache_bytes_max: usize,
    /// Reads of one group that wait for a barrier. Default 65,536. At the bound callers get `Busy`.
    pub read_queue_max: usize,
    /// Milliseconds until a read that cannot be confirmed fails. Default 5,000.
    pub read_timeout_ms: u64,
    /// Append messages of one peer that wait for its lane. Default 4,096. At the bound a message is dropped, counted and
    /// reported to Raft as unreachable.
    pub lane_append_messages_max: usize,
    /// Bytes of those messages. Default 32 MiB.
    pub lane_append_bytes_max: usize,
    /// Read-barrier messages of one peer that wait for its control lane. Default 1,024.
    pub lane_reads_max: usize,
    /// Bytes one dispatch carries at most, unless a single message is larger. Default 1 MiB.
    pub lane_batch_bytes_max: usize,
    /// Milliseconds a dispatch waits while no byte is taken, before the link is given up. Default 3,000. A slow link takes
    /// some in that time. Dead links are found by keep-alive, sooner.
    pub lane_dispatch_timeout_ms: u64,
    /// Milliseconds one attempt to connect may take. Default 1,000.
    pub lane_connect_timeout_ms: u64,
    /// The first wait before a reconnect, in milliseconds; it doubles, with jitter, up to the next field. Default 20.
    pub lane_backoff_min_ms: u64,
    /// The longest wait before a reconnect, in milliseconds. Default 400. Must be below the shortest election timeout, so
    /// that a peer that comes back is reached before anybody calls an election for want of it.
    pub lane_backoff_max_ms: u64,
    /// Append messages of one group that wait for the shard on the receiving side. Default 4,096. At the bound the sender
    /// gets a nack.
    pub inbox_messages_max: usize,
    /// Bytes of those messages. Default 64 MiB.
    pub inbox_bytes_max: usize,
    /// Appends and proposals of one group handled in one turn of the shard. Default 4,096: bounds how long other groups
    /// and the clock wait.
    pub turn_burst_max: usize,
    /// Applied entries after which a snapshot of a group is made. Default 1,000,000.
    pub snapshot_entries: u64,
    /// The same in bytes of entries. Default 256 MiB. Whichever comes first.
    pub snapshot_log_bytes: u64,
    /// Entries that stay in the log before the newest snapshot, so that a follower which lags a little needs none.
    /// Default 10,000.
    pub snapshot_trailing_entries: u64,
    /// Bytes the log may grow by while a transfer keeps it from being truncated; past that the transfer fails. Default
    /// 1 GiB.
    pub snapshot_pin_bytes_max: u64,
    /// Snapshots this node sends at a time, counted for all groups. Default 2.
    pub snapshot_sends_max: usize,
    /// Snapshots this node receives at a time. Default 2. An offer beyond is refused as busy.
    pub snapshot_receives_max: usize,
    /// Bytes of the largest snapshot this node takes. Default 64 GiB.
    pub snapshot_bytes_max: u64,
    /// Payload bytes of one chunk. Default 512 KiB; a slow transfer has smaller ones. At most [`CHUNK_BYTES_MAX`](crate::transport::CHUNK_BYTES_MAX).
    pub snapshot_chunk_bytes: usize,
    /// Payload bytes of snapshots this node sends in a second, all transfers together. Default 0: no limit. A limit must
    /// leave each of `snapshot_sends_max` transfers two chunks within `snapshot_progress_timeout_ms`, or a transfer would
    /// stall because it is slowed down.
    pub snapshot_bytes_per_second: u64,
    /// Milliseconds an offer may wait for a sign of the receiver. Default 5,000. One that reads a part of the snapshot again
    /// before it answers says so, and has `snapshot_phase_timeout_ms`.
    pub snapshot_offer_timeout_ms: u64,
    /// Milliseconds without a byte after which a transfer fails, on either side. Default 10,000. A receiver that waits for
    /// its disk in one write for longer than a quarter of its own says so, and has `snapshot_phase_timeout_ms`: all nodes
    /// should have the same.
    pub snapshot_progress_timeout_ms: u64,
    /// Milliseconds the receiver may take for each of one write of its disk, and checking, syncing and handing over what it
    /// received; and for reading again what it has of a snapshot, without a byte of that. Default 300,000.
    pub snapshot_phase_timeout_ms: u64,
    /// The longest wait after a failed attempt, in milliseconds; the first is one heartbeat, and it doubles. Default
    /// 10,000.
    pub snapshot_backoff_max_ms: u64,
    /// Raft groups on this node. Default 1,024.
    pub groups_max: usize,
    /// Threads that apply committed entries. Default 1. A group always uses the same one.
    pub apply_workers: usize,
    /// Threads of the node's own network runtime, and of the one that moves snapshots. Default 2 each.
    pub network_workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tick_ms: 10,
            heartbeat_ticks: 10,
            election_ticks_min: 100,
            election_ticks_max: 200,
            append_bytes_max: 256 << 10,
            append_inflight_max: 64,
            commit_broadcast: true,
            committed_bytes_max: 16 << 20,
            proposal_bytes_max: 1 << 20,
            proposal_timeout_ms: 10_000,
            proposal_queue_max: 65_536,
            proposal_queue_bytes_max: 64 << 20,
            unapplied_bytes_max: 64 << 20,
            log_cache_bytes_max: 32 << 20,
            read_queue_max: 65_536,
            read_timeout_ms: 5_000,
            lane_append_messages_max: 4_096,
            lane_append_bytes_max: 32 << 20,
            lane_reads_max: 1_024,
            lane_batch_bytes_max: 1 << 20,
            lane_dispatch_timeout_ms: 3_000,
            lane_connect_timeout_ms: 1_000,
            lane_backoff_min_ms: 20,
            lane_backoff_max_ms: 400,
            inbox_messages_max: 4_096,
            inbox_bytes_max: 64 << 20,
            turn_burst_max: 4_096,
            snapshot_entries: 1_000_000,
            snapshot_log_bytes: 256 << 20,
            snapshot_trailing_entries: 10_000,
            snapshot_pin_bytes_max: 1 << 30,
            snapshot_sends_max: 2,
            snapshot_receives_max: 2,
            snapshot_bytes_max: 64 << 30,
            snapshot_chunk_bytes: 512 << 10,
            snapshot_bytes_per_second: 0,
            snapshot_offer_timeout_ms: 5_000,
            snapshot_progress_timeout_ms: 10_000,
            snapshot_phase_timeout_ms: 300_000,
            snapshot_backoff_max_ms: 10_000,
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
        let at_least = |field: &'static str, value: u64, min: u64| {
            if value >= min { Ok(()) } else { Err(invalid(field, value, format!("a number from {min} on"))) }
        };
        at_least("tick_ms", self.tick_ms, 1)?;
        at_least("heartbeat_ticks", self.heartbeat_ticks.into(), 1)?;
        at_least("append_bytes_max", self.append_bytes_max, 1)?;
        at_least("append_inflight_max", self.append_inflight_max as u64, 1)?;
        at_least("committed_bytes_max", self.committed_bytes_max, 1)?;
        at_least("proposal_bytes_max", self.proposal_bytes_max as u64, 1)?;

        for (field, value) in [
            ("proposal_queue_max", self.proposal_queue_max),
            ("read_queue_max", self.read_queue_max),
            ("lane_append_messages_max", self.lane_append_messages_max),
            ("lane_reads_max", self.lane_reads_max),
            ("lane_batch_bytes_max", self.lane_batch_bytes_max),
            ("inbox_messages_max", self.inbox_messages_max),
            ("turn_burst_max", self.turn_burst_max),
            ("snapshot_sends_max", self.snapshot_sends_max),
            ("snapshot_receives_max", self.snapshot_receives_max),
            ("snapshot_chunk_bytes", self.snapshot_chunk_bytes),
            ("groups_max", self.groups_max),
            ("apply_workers", self.apply_workers),
            ("network_workers", self.network_workers),
        ] {
            at_least(field, value as u64, 1)?;
        }
        for (field, value) in [
            ("proposal_timeout_ms", self.proposal_timeout_ms),
            ("read_timeout_ms", self.read_timeout_ms),
            ("lane_dispatch_timeout_ms", self.lane_dispatch_timeout_ms),
            ("lane_connect_timeout_ms", self.lane_connect_timeout_ms),
            ("lane_backoff_min_ms", self.lane_backoff_min_ms),
            ("snapshot_entries", self.snapshot_entries),
            ("snapshot_log_bytes", self.snapshot_log_bytes),
            ("snapshot_offer_timeout_ms", self.snapshot_offer_timeout_ms),
            ("snapshot_progress_timeout_ms", self.snapshot_progress_timeout_ms),
            ("snapshot_phase_timeout_ms", self.snapshot_phase_timeout_ms),
        ] {
            at_least(field, value, 1)?;
        }
        for (field, value, max) in [
            ("append_bytes_max", self.append_bytes_max, COMMAND_BYTES_MAX),
            ("proposal_bytes_max", self.proposal_bytes_max as u64, COMMAND_BYTES_MAX),
            (
                "snapshot_chunk_bytes",
                self.snapshot_chunk_bytes as u64,
                crate::transport::CHUNK_BYTES_MAX as u64,
            ),
            ("append_inflight_max", self.append_inflight_max as u64, APPEND_INFLIGHT_MAX as u64),
            ("apply_workers", self.apply_workers as u64, WORKERS_MAX as u64),
            ("network_workers", self.network_workers as u64, WORKERS_MAX as u64),
            ("tick_ms", self.tick_ms, TIME_MS_MAX),
            ("proposal_timeout_ms", self.proposal_timeout_ms, TIME_MS_MAX),
            ("read_timeout_ms", self.read_timeout_ms, TIME_MS_MAX),
            ("lane_dispatch_timeout_ms", self.lane_dispatch_timeout_ms, TIME_MS_MAX),
            ("lane_connect_timeout_ms", self.lane_connect_timeout_ms, TIME_MS_MAX),
            ("lane_backoff_min_ms", self.lane_backoff_min_ms, TIME_MS_MAX),
            ("lane_backoff_max_ms", self.lane_backoff_max_ms, TIME_MS_MAX),
            ("snapshot_offer_timeout_ms", self.snapshot_offer_timeout_ms, TIME_MS_MAX),
            ("snapshot_progress_timeout_ms", self.snapshot_progress_timeout_ms, TIME_MS_MAX),
            ("snapshot_phase_timeout_ms", self.snapshot_phase_timeout_ms, TIME_MS_MAX),
            ("snapshot_backoff_max_ms", self.snapshot_backoff_max_ms, TIME_MS_MAX),
        ] {
            if value > max {
                return Err(invalid(field, value, format!("at most {max}")));
            }
        }
        self.validate_relations()?;
        Ok(ValidConfig { config: self })
    }

    fn validate_relations(&self) -> Result<(), ConfigError> {
        // Two missed heartbeats must not end a leader's office.
        let floor = self.heartbeat_ticks.saturating_mul(3);
        if self.election_ticks_min < floor {
            let form = format!("at least 3 x heartbeat_ticks, {floor}");
            return Err(invalid("election_ticks_min", self.election_ticks_min, form));
        }
        if self.election_ticks_max <= self.election_ticks_min {
            let form = format!("more than election_ticks_min, {}", self.election_ticks_min);
            return Err(invalid("election_ticks_max", self.election_ticks_max, form));
        }
        if self.tick_ms.saturating_mul(self.election_ticks_max.into()) > TIME_MS_MAX {
            let form = format!("at most {} with this tick_ms", TIME_MS_MAX / self.tick_ms);
            return Err(invalid("election_ticks_max", self.election_ticks_max, form));
        }
        let window =
            self.append_bytes_max.saturating_add(128).saturating_mul(self.append_inflight_max as u64);
        if window > self.lane_append_bytes_max as u64 {
            let form = format!("at least (append_bytes_max + 128) x append_inflight_max, {window}");
            return Err(invalid("lane_append_bytes_max", self.lane_append_bytes_max, form));
        }
        if self.append_inflight_max > self.lane_append_messages_max {
            let form = format!("at least append_inflight_max, {}", self.append_inflight_max);
            return Err(invalid("lane_append_messages_max", self.lane_append_messages_max, form));
        }
        if window > self.inbox_bytes_max as u64 {
            let form = format!("at least (append_bytes_max + 128) x append_inflight_max, {window}");
            return Err(invalid("inbox_bytes_max", self.inbox_bytes_max, form));
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
        if self.lane_backoff_min_ms > self.lane_backoff_max_ms {
            let form = format!("at least lane_backoff_min_ms, {}", self.lane_backoff_min_ms);
            return Err(invalid("lane_backoff_max_ms", self.lane_backoff_max_ms, form));
        }
        let rate_min = self.snapshot_rate_min();
        if self.snapshot_bytes_per_second != 0 && self.snapshot_bytes_per_second < rate_min {
            let form = format!(
                "0 or at least 2 x snapshot_chunk_bytes x snapshot_sends_max in snapshot_progress_timeout_ms, {rate_min}"
            );
            return Err(invalid("snapshot_bytes_per_second", self.snapshot_bytes_per_second, form));
        }
        let election_ms = self.tick_ms.saturating_mul(self.election_ticks_min.into());
        if self.lane_backoff_max_ms >= election_ms {
            let form = format!("below the shortest election timeout, {election_ms} ms");
            return Err(invalid("lane_backoff_max_ms", self.lane_backoff_max_ms, form));
        }
        Ok(())
    }
}

impl Config {
    /// The least rate at which no transfer stalls while all of them wait for each other's chunks.
    fn snapshot_rate_min(&self) -> u64 {
        let round = (self.snapshot_chunk_bytes as u64).saturating_mul(self.snapshot_sends_max as u64);
        round.saturating_mul(2_000).div_ceil(self.snapshot_progress_timeout_ms.max(1))
    }
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
    /// Length of a tick.
    pub fn tick(&self) -> Duration {
        Duration::from_millis(self.config.tick_ms)
    }

    /// The shortest election timeout.
    pub fn election_timeout_min(&self) -> Duration {
        self.tick() * self.config.election_ticks_min
    }

    /// Time between two heartbeats.
    pub fn heartbeat(&self) -> Duration {
        self.tick() * self.config.heartbeat_ticks
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
        let config: Config = toml::from_str("heartbeat_ticks = 5").unwrap();
        assert_eq!(config, Config { heartbeat_ticks: 5, ..Config::default() });
        let error = toml::from_str::<Config>("heartbeat_tick = 5").unwrap_err().to_string();
        assert!(error.contains("heartbeat_tick"), "{error}");
    }

    #[test]
    fn a_window_that_overflows_its_lane_is_refused_by_name() {
        let config = Config { append_inflight_max: 256, append_bytes_max: 1 << 20, ..Config::default() };
        assert_eq!(config.validate().unwrap_err().field, "lane_append_bytes_max");
    }

    #[test]
    fn a_rate_of_snapshots_that_leaves_two_chunks_in_the_time_of_a_stall_is_accepted() {
        let of = |rate| Config {
            snapshot_bytes_per_second: rate,
            snapshot_chunk_bytes: 100,
            snapshot_sends_max: 3,
            snapshot_progress_timeout_ms: 1_000,
            ..Config::default()
        };
        assert_eq!(of(599).validate().unwrap_err().field, "snapshot_bytes_per_second");
        assert!([0, 600].iter().all(|rate| of(*rate).validate().is_ok()));
    }

    #[test]
    fn each_broken_relation_is_refused_by_name() {
        let d = Config::default;
        for (field, config) in [
            ("tick_ms", Config { tick_ms: 0, ..d() }),
            ("append_bytes_max", Config { append_bytes_max: 2 << 20, append_inflight_max: 1, ..d() }),
            ("proposal_bytes_max", Config { proposal_bytes_max: 4 << 20, ..d() }),
            ("election_ticks_min", Config { election_ticks_min: 29, ..d() }),
            ("election_ticks_max", Config { election_ticks_max: 100, ..d() }),
            ("lane_append_messages_max", Config { lane_append_messages_max: 63, ..d() }),
            ("inbox_bytes_max", Config { inbox_bytes_max: 1 << 20, ..d() }),
            ("unapplied_bytes_max", Config { unapplied_bytes_max: 1, ..d() }),
            ("lane_backoff_max_ms", Config { lane_backoff_max_ms: 1_000, ..d() }),
            ("apply_workers", Config { apply_workers: 0, ..d() }),
            ("snapshot_bytes_per_second", Config { snapshot_bytes_per_second: 200_000, ..d() }),
        ] {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }
}
