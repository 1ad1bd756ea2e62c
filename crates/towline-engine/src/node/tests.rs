//! A node that runs, looked at from inside: what reaches its mailbox, and what its shard does about it.

#[path = "../../tests/common/mod.rs"]
mod common;
mod leaks;
mod pauses;
mod reports;
mod seams;
mod stage;
mod stops;
