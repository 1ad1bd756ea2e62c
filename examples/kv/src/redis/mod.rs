//! The Redis port.

mod cluster;
mod commands;
mod connection;
mod decode;
mod health;
mod outgoing;
mod pipeline;
mod pool;
mod reply;
mod server;
mod session;
mod shared;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use cluster::Members;
pub(crate) use health::Member;
pub(crate) use server::serve;
pub(crate) use shared::{Counters, Shared};
