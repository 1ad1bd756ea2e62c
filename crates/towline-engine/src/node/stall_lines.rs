//! Log lines about stalls.

use std::time::Duration;

use crate::core::StallNotice;
use crate::ids::GroupId;

/// Ticks are turned into time here: the core knows no clock.
pub(super) fn log_stall(group: GroupId, notice: StallNotice, tick: Duration) {
    let elapsed = |ticks: u64| tick.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX));
    match notice {
        StallNotice::LogHandsOver { ticks, target } => tracing::warn!(
            %group, age = ?elapsed(ticks), %target,
            "a log write has not completed: this leader hands over to a voter whose log has the entry"
        ),
        StallNotice::LogStays { ticks } => tracing::warn!(
            %group, age = ?elapsed(ticks),
            "a log write has not completed, and no quorum of the other voters has the entry: this node stays leader"
        ),
        StallNotice::LogStepsDown => tracing::warn!(
            %group, "the hand-over failed: this leader steps down"
        ),
        StallNotice::LogRecovered => tracing::info!(%group, "the log completes its writes in time again"),
        StallNotice::ApplyHandsOver { ticks, target } => tracing::warn!(
            %group, age = ?elapsed(ticks), %target,
            "the state machine makes no progress: this leader hands over to a voter that applied the command"
        ),
        StallNotice::ApplyStays { ticks } => tracing::warn!(
            %group, age = ?elapsed(ticks),
            "the state machine makes no progress, and no other voter has applied the command: this node stays leader"
        ),
        StallNotice::ApplyRecovered => tracing::info!(%group, "the state machine makes progress again"),
        StallNotice::DiskHandsOver { target } => tracing::warn!(
            %group, %target, "the disk is low: this leader hands over to a voter with room"
        ),
        StallNotice::DiskStays => tracing::warn!(
            %group, "the disk is low, and no voter with room can take over: this node stays leader and refuses commands"
        ),
        StallNotice::DiskRecovered => {
            tracing::info!(%group, "the disk has room again: this leader takes commands")
        }
    }
}
