//! Tests of the real program, in one binary: linking one for each file would take longer than most tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

mod cluster;
mod common;
mod damage;
mod expiry;
mod full_disk;
mod hostile;
mod limits;
mod refusals;
mod snapshots;
mod stalls;
mod supervisor;
mod transports;
