//! Delivers a frame of a lane to the engine.

use towline_engine::message::Lane;
use towline_engine::transport::{PeerSession, Violation};

use crate::frames::{Received, batch_of, merge_nacks, nacks_frame};
use crate::pb;

/// Hands a frame that arrived on a lane to the session. Returns a frame of nacks for the dialler, if there are any. A
/// malformed message gives its group a nack; the stream stays open.
///
/// # Errors
/// [`Violation`]: the frame is no batch, or the session rejects it. The transport closes the lane.
pub(super) fn deliver(
    session: &dyn PeerSession,
    lane: Lane,
    frame: pb::Frame,
) -> Result<Option<pb::Frame>, Violation> {
    let Received { batch, rejected } =
        batch_of(frame).map_err(|error| Violation { detail: error.to_string() })?;
    for refused in &rejected {
        tracing::debug!(
            peer = %session.peer(), group = %refused.group, lane = lane.as_str(), error = %refused.error,
            "message rejected"
        );
    }
    let taken = if batch.envelopes.is_empty() { Vec::new() } else { session.deliver(lane, batch)? };
    let nacks = merge_nacks(taken, &rejected);
    Ok((!nacks.is_empty()).then(|| nacks_frame(nacks)))
}
