//! The core of Towline.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
pub mod errors;
pub mod identity;
pub mod ids;
pub(crate) mod lanes;
pub mod log_store;
pub mod message;
#[cfg(feature = "driver")]
pub mod node;
pub mod reporter;
pub mod snapshot_store;
pub mod state_machine;
pub mod status;
pub mod storage;
pub mod transport;
