//! The settings file.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use towline::engine::units::duration;
use towline::{ByteSize, LogConfig};

use crate::machine::{FILES_MIN, JOURNAL_BYTES_MIN, StoreConfig, VALUE_BYTES_MAX};

/// More sockets than any system allows a process.
const CONNECTIONS_MAX: usize = 1_000_000;
/// A smaller memtable would be a file for every few writes.
const MEMTABLE_BYTES_MIN: ByteSize = ByteSize::kib(64);
const REPLY_BYTES_MAX: ByteSize = ByteSize::gib(1 << 10);
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
const WORKER_THREADS_MAX: usize = 64;

/// The settings. A missing field keeps its default; an unknown field is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) engine: towline::Config,
    pub(crate) log: LogConfig,
    pub(crate) store: StoreConfig,
    pub(crate) kv: KvConfig,
}

/// The limits of the ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct KvConfig {
    /// Redis connections at a time; more get an error. Default 4,096; fewer if the limit of file descriptors is too low.
    pub(crate) connections_max: usize,
    /// HTTP connections at a time. Default 64; fewer if the limit of file descriptors is too low.
    pub(crate) http_connections_max: usize,
    /// Commands over 32 KiB that all connections receive, or whose arguments are in use, at a time. Each may take as much
    /// memory as the longest command. Default 32.
    pub(crate) long_commands_max: usize,
    /// Bytes of large values that the replies of all connections hold. One half is for values that were read or answer a
    /// write; the other is for values that a reply of many keys keeps. Default 128 MiB, at least 32 MiB.
    pub(crate) reply_bytes_max: ByteSize,
    /// Time from the first byte of a command to its last. Default 1 min.
    #[serde(with = "duration")]
    pub(crate) command_timeout: Duration,
    /// Time in which a client must take 64 KiB of its replies, or all that wait. Default 30 s.
    #[serde(with = "duration")]
    pub(crate) write_timeout: Duration,
    /// Time in which a client must take one whole reply with a large value or many values. Default 5 min.
    #[serde(with = "duration")]
    pub(crate) reply_timeout: Duration,
    /// Time that a clean stop may take. Default 5 s.
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

impl Default for Settings {
    fn default() -> Self {
        // One group needs one network thread, and each more costs wake-ups. A read at a follower learns the commit index
        // from the heartbeat of its read round.
        let engine =
            towline::Config { network_workers: 1, commit_broadcast: false, ..towline::Config::default() };
        Self { engine, log: LogConfig::default(), store: StoreConfig::default(), kv: KvConfig::default() }
    }
}

impl Settings {
    /// Reads a file. Without one, returns the defaults.
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
        let Self { kv, store, .. } = self;
        for (field, value, min, max) in [
            ("http_connections_max", kv.http_connections_max, 1, CONNECTIONS_MAX),
            ("connections_max", kv.connections_max, 1, CONNECTIONS_MAX),
            ("long_commands_max", kv.long_commands_max, 1, CONNECTIONS_MAX),
            ("files_max", store.files_max, FILES_MIN, CONNECTIONS_MAX),
            ("worker_threads", store.worker_threads, 1, WORKER_THREADS_MAX),
        ] {
            within(field, value, min, Some(max))?;
        }
        for (field, value) in [
            ("command_timeout", kv.command_timeout),
            ("write_timeout", kv.write_timeout),
            ("reply_timeout", kv.reply_timeout),
        ] {
            within(field, value, TIMEOUT_MIN, Some(TIMEOUT_MAX))?;
        }
        // Each half must hold the longest value.
        let reply_bytes_min = ByteSize::bytes(2 * VALUE_BYTES_MAX as u64);
        within("reply_bytes_max", kv.reply_bytes_max, reply_bytes_min, Some(REPLY_BYTES_MAX))?;
        within("memtable_bytes", store.memtable_bytes, MEMTABLE_BYTES_MIN, None)?;
        within("journal_bytes_max", store.journal_bytes_max, JOURNAL_BYTES_MIN, None)
    }
}

/// Checks a setting. The error has the form of the engine's own.
fn within<T: PartialOrd + Debug>(field: &str, value: T, min: T, max: Option<T>) -> Result<(), String> {
    if value >= min && max.as_ref().is_none_or(|max| value <= *max) {
        return Ok(());
    }
    let upper = max.map(|max| format!(" and at most {max:?}")).unwrap_or_default();
    Err(format!("setting `{field}` is {value:?}, but must be at least {min:?}{upper}"))
}
