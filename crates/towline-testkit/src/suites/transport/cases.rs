//! The cases, by what they are about.

pub(super) mod ends;
pub(super) mod handshake;
pub(super) mod lanes;
pub(super) mod pressure;
pub(super) mod slow;
pub(super) mod snapshot_ends;
pub(super) mod snapshots;
pub(super) mod strangers;

/// What every case gets.
type Fixture = std::sync::Arc<dyn super::TransportFixture>;
