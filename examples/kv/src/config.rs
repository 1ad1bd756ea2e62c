//! The settings file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::StoreConfig;

/// Everything a file may set; what it leaves out keeps its default, and what it misspells is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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

impl Settings {
    /// Reads a file, or gives the defaults.
    pub(crate) fn load(file: Option<&Path>) -> Result<Self, String> {
        let Some(file) = file else { return Ok(Self::default()) };
        let text = std::fs::read_to_string(file)
            .map_err(|error| format!("settings file {} cannot be read: {error}", file.display()))?;
        let settings: Self =
            toml::from_str(&text).map_err(|error| format!("settings file {}: {error}", file.display()))?;
        settings
            .engine
            .clone()
            .validate()
            .map_err(|error| format!("settings file {}: {error}", file.display()))?;
        Ok(settings)
    }
}
