//! What every implementation of a seam must do.

pub mod log_store;
pub mod snapshot_store;
pub mod state_machine;
pub mod transport;
