//! The integration tests that can share a process, in one binary: linking each file alone takes longer than most tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

mod eraftpb;
mod golden;
mod robust;
mod samples;
