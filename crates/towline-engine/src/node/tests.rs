//! Tests of a running node that need its private parts: its mailbox, its shard's thread, and its snapshot transfers.

#[path = "../../tests/common/mod.rs"]
pub(super) mod common;
mod fixture;
mod hooks;
mod leaks;
mod pauses;
mod reports;
mod stops;
