//! What the lanes are set to.

use std::time::Duration;

use crate::config::ValidConfig;

/// The bounds and times of the lanes. See [`Config`](crate::config::Config) for each.
#[derive(Debug, Clone)]
pub(crate) struct LaneSettings {
    pub(crate) append_messages_max: usize,
    pub(crate) append_bytes_max: usize,
    pub(crate) reads_max: usize,
    pub(crate) batch_bytes_max: usize,
    pub(crate) dispatch_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    /// A control message that waited longer for a link is dropped: one election timeout.
    pub(crate) control_age_max: Duration,
}

impl From<&ValidConfig> for LaneSettings {
    fn from(config: &ValidConfig) -> Self {
        Self {
            append_messages_max: config.lane_append_messages_max,
            append_bytes_max: config.lane_append_bytes_max,
            reads_max: config.lane_reads_max,
            batch_bytes_max: config.lane_batch_bytes_max,
            dispatch_timeout: Duration::from_millis(config.lane_dispatch_timeout_ms),
            connect_timeout: Duration::from_millis(config.lane_connect_timeout_ms),
            backoff_min: Duration::from_millis(config.lane_backoff_min_ms),
            backoff_max: Duration::from_millis(config.lane_backoff_max_ms),
            control_age_max: config.election_timeout_min(),
        }
    }
}
