//! The settings file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::{JOURNAL_BYTES_MIN, StoreConfig};

/// More than a process may have sockets anywhere.
const CONNECTIONS_MAX: u64 = 1_000_000;
/// A smaller memtable would be a file for every few writes.
const MEMTABLE_BYTES_MIN: u64 = 64 << 10;
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
    /// Redis connections at a time. Default 4,096.
    pub(crate) connections_max: usize,
    /// Milliseconds a clean stop may take. Default 5,000.
    pub(crate) shutdown_ms: u64,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self { connections_max: 4_096, shutdown_ms: 5_000 }
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
        let StoreConfig { cache_bytes: _, memtable_bytes, journal_bytes_max, worker_threads } = self.store;
        within("connections_max", self.kv.connections_max as u64, 1, CONNECTIONS_MAX)?;
        within("memtable_bytes", memtable_bytes, MEMTABLE_BYTES_MIN, u64::MAX)?;
        within("journal_bytes_max", journal_bytes_max, JOURNAL_BYTES_MIN, u64::MAX)?;
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
