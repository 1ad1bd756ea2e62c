//! The integration tests in one binary, because linking each file takes longer than most tests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // helpers of tests

mod apply_calls;
mod callers;
mod common;
mod counted;
mod deadlines;
mod seams;
mod settings;
mod start_panics;
