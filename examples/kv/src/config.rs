//! The settings file.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::machine::{JOURNAL_BYTES_MIN, StoreConfig, VALUE_BYTES_MAX};
use crate::redis::Limits;

/// More than a process may have sockets anywhere.
const CONNECTIONS_MAX: u64 = 1_000_000;
/// A smaller memtable would be a file for every few writes.
const MEMTABLE_BYTES_MIN: u64 = 64 << 10;
const REPLY_BYTES_MAX: u64 = 1 << 40;
/// A year: more is meant for never.
const TIMEOUT_MS_MAX: u64 = 365 * 24 * 3_600 * 1_000;
/// The least that fjall accepts.
const STORE_FILES_MIN: u64 = 10;
const WORKER_THREADS_MAX: u64 = 64;

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
    pub(crate) reply_bytes_max: usize,
    /// Milliseconds from the first byte of a command to its last. Default 60,000.
    pub(crate) command_timeout_ms: u64,
    /// Milliseconds in which a client takes at least 64 KiB of its replies, or all that wait. Default 30,000.
    pub(crate) write_timeout_ms: u64,
    /// Milliseconds in which a client takes the whole of one reply that is a large value, or has many values.
    /// Default 300,000.
    pub(crate) reply_timeout_ms: u64,
    /// Milliseconds a clean stop may take. Default 5,000.
    pub(crate) shutdown_ms: u64,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            http_connections_max: 64,
            long_commands_max: 32,
            reply_bytes_max: 128 << 20,
            command_timeout_ms: 60_000,
            write_timeout_ms: 30_000,
            reply_timeout_ms: 300_000,
            shutdown_ms: 5_000,
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
            reply_bytes_max: self.reply_bytes_max,
            command_timeout: Duration::from_millis(self.command_timeout_ms),
            write_timeout: Duration::from_millis(self.write_timeout_ms),
            reply_timeout: Duration::from_millis(self.reply_timeout_ms),
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
        within("http_connections_max", self.kv.http_connections_max as u64, 1, CONNECTIONS_MAX)?;
        let KvConfig { connections_max, long_commands_max, reply_bytes_max, .. } = self.kv;
        within("connections_max", connections_max as u64, 1, CONNECTIONS_MAX)?;
        within("long_commands_max", long_commands_max as u64, 1, CONNECTIONS_MAX)?;
        // Each half holds the longest value.
        within("reply_bytes_max", reply_bytes_max as u64, 2 * VALUE_BYTES_MAX as u64, REPLY_BYTES_MAX)?;
        let KvConfig { command_timeout_ms, write_timeout_ms, reply_timeout_ms, .. } = self.kv;
        within("command_timeout_ms", command_timeout_ms, 1, TIMEOUT_MS_MAX)?;
        within("write_timeout_ms", write_timeout_ms, 1, TIMEOUT_MS_MAX)?;
        within("reply_timeout_ms", reply_timeout_ms, 1, TIMEOUT_MS_MAX)?;
        within("memtable_bytes", memtable_bytes, MEMTABLE_BYTES_MIN, u64::MAX)?;
        within("journal_bytes_max", journal_bytes_max, JOURNAL_BYTES_MIN, u64::MAX)?;
        within("files_max", files_max as u64, STORE_FILES_MIN, CONNECTIONS_MAX)?;
        within("worker_threads", worker_threads as u64, 1, WORKER_THREADS_MAX)
    }
}

/// In the words of the engine's own settings.
fn within(field: &str, value: u64, min: u64, max: u64) -> Result<(), String> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let upper = if max == u64::MAX { " on".to_owned() } else { format!(" to {max}") };
    Err(format!("setting `{field}` is {value}, but must be a number from {min}{upper}"))
}
