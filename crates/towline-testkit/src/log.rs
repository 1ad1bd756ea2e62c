//! A log store and an identity store in memory that survive a simulated crash.

mod identity;
mod image;
mod store;

pub use identity::MemIdentity;
pub use store::{AppendFault, MemLog, SyncGate};
