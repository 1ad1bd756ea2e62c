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
mod table;

#[cfg(test)]
mod tests;

pub(crate) use cluster::{Member, Members};
pub(crate) use server::{Counters, Limits, Server};
