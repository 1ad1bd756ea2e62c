//! The settings file.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towline::ByteSize;
use towline::engine::units::duration;

use crate::machine::{JOURNAL_BYTES_MIN, StoreConfig, VALUE_BYTES_MAX};
use crate::redis::Limits;

/// More than a process may have sockets anywhere.
const CONNECTIONS_MAX: usize = 1_000_000;
/// A smaller memtable would be a file for every few writes.
const MEMTABLE_BYTES_MIN: ByteSize = ByteSize::kib(64);
const REPLY_BYTES_MAX: ByteSize = ByteSize::gib(1 << 10);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// A year: more is meant for never.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// The least that fjall accepts.
const STORE_FILES_MIN: usize = 10;
const WORKER_THREADS_MAX: usize = 64;

/// Everything a file may set; what it leaves out keeps its default, and what it misspells is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) engine: towline::Config,
    pub(crate) store: StoreConfig,
    pub(crate) kv: KvConfig,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KvConfig {
    /// Redis connections at a time. Default 4,096; fewer if the limit of file descriptors is too low.
    pub(crate) connections_max: usize,
    /// HTTP connections at a time. Default 64; fewer if the limit of file descriptors is too low.
    pub(crate) http_connections_max: usize,
    /// Commands of more than 32 KiB that are received at a time, over all connections. Each takes as much memory as the
    /// longest command may. Default 32.
    pub(crate) long_commands_max: usize,
    /// Bytes of large values that replies of all connections hold: half for values that were read or are the answer of a
    /// write, half for those that a reply of many keys keeps from memory. Default 128 MiB, at least 32 MiB.
    pub(crate) reply_bytes_max: ByteSize,
    /// Time from the first byte of a command to its last. Default 1 min.
    #[serde(with = "duration")]
    pub(crate) command_timeout: Duration,
    /// Time in which a client takes at least 64 KiB of its replies, or all that wait. Default 30 s.
    #[serde(with = "duration")]
    pub(crate) write_timeout: Duration,
    /// Time in which a client takes the whole of one reply that is a large value, or has many values. Default 5 min.
    #[serde(with = "duration")]
    pub(crate) reply_timeout: Duration,
    /// Time a clean stop may take. Default 5 s.
    #[serde(with = "duration")]
    pub(crate) shutdown_timeout: Duration,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            http_connections_max: 64,
            long_commands_max: 32,
            reply_bytes_max: ByteSize::mib(128),
            command_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            reply_timeout: Duration::from_secs(300),
            shutdown_timeout: Duration::from_secs(5),
        }
    }
}

impl KvConfig {
    /// What the Redis port keeps to.
    pub(crate) fn limits(&self, command_bytes_max: usize) -> Limits {
        Limits {
            command_bytes_max,
            connections_max: self.connections_max,
            long_commands_max: self.long_commands_max,
            reply_bytes_max: self.reply_bytes_max.as_usize(),
            command_timeout: self.command_timeout,
            write_timeout: self.write_timeout,
            reply_timeout: self.reply_timeout,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        // One group needs no more than one thread for its network, and each that is woken costs.
        // Most reads go to the leader. A follower that reads learns the commit index with the read round's own
        // heartbeat.
        let engine =
            towline::Config { network_workers: 1, commit_broadcast: false, ..towline::Config::default() };
        Self { engine, store: StoreConfig::default(), kv: KvConfig::default() }
    }
}

impl Settings {
    /// Reads a file, or gives the defaults.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, String> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("settings file {} cannot be read: {error}", file.display()))?;
        let settings: Self =
            toml::from_str(&text).map_err(|error| format!("settings file {}: {error}", file.display()))?;
        settings.validate().map_err(|error| format!("settings file {}: {error}", file.display()))?;
        Ok(settings)
    }

    fn validate(&self) -> Result<(), String> {
        self.engine.clone().validate().map_err(|error| error.to_string())?;
        let StoreConfig { cache_bytes: _, memtable_bytes, journal_bytes_max, worker_threads, files_max } =
            self.store;
        let KvConfig { connections_max, http_connections_max, long_commands_max, reply_bytes_max, .. } =
            self.kv;
        within("http_connections_max", http_connections_max, 1, Some(CONNECTIONS_MAX))?;
        within("connections_max", connections_max, 1, Some(CONNECTIONS_MAX))?;
        within("long_commands_max", long_commands_max, 1, Some(CONNECTIONS_MAX))?;
        // Each half holds the longest value.
        let reply_bytes_min = ByteSize::bytes(2 * VALUE_BYTES_MAX as u64);
        within("reply_bytes_max", reply_bytes_max, reply_bytes_min, Some(REPLY_BYTES_MAX))?;
        let KvConfig { command_timeout, write_timeout, reply_timeout, .. } = self.kv;
        within("command_timeout", command_timeout, TIMEOUT_MIN, Some(TIMEOUT_MAX))?;
        within("write_timeout", write_timeout, TIMEOUT_MIN, Some(TIMEOUT_MAX))?;
        within("reply_timeout", reply_timeout, TIMEOUT_MIN, Some(TIMEOUT_MAX))?;
        within("memtable_bytes", memtable_bytes, MEMTABLE_BYTES_MIN, None)?;
        within("journal_bytes_max", journal_bytes_max, JOURNAL_BYTES_MIN, None)?;
        within("files_max", files_max, STORE_FILES_MIN, Some(CONNECTIONS_MAX))?;
        within("worker_threads", worker_threads, 1, Some(WORKER_THREADS_MAX))
    }
}

fn within<T: PartialOrd + Debug>(field: &str, value: T, min: T, max: Option<T>) -> Result<(), String> {
    if value >= min && max.as_ref().is_none_or(|max| value <= *max) {
        return Ok(());
    }
    let upper = max.map(|max| format!(" and at most {max:?}")).unwrap_or_default();
    Err(format!("setting `{field}` is {value:?}, but must be at least {min:?}{upper}"))
}
