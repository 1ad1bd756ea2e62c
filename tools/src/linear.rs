//! Checks that the history of each key is linearizable.
//!
//! Clients note the time of each call, the time of its answer, and the answer (`clients`, `history`). `check` searches an
//! order of the calls to one key that explains all answers. No call may precede another that had returned before it
//! began. Keys are independent, so each key is checked alone.

pub(crate) mod check;
pub(crate) mod clients;
pub(crate) mod history;
mod keys;
pub(crate) mod report;
mod sizes;
#[cfg(test)]
mod tests;
