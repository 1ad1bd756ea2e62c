//! Is what clients saw of each key the same as if one copy had answered one call after the other?
//!
//! Clients note when they called, when they were answered and what they were told (`clients`, `history`); `check` looks
//! for an order of the calls of one key that explains all answers and never puts a call before one that had returned
//! when it was made. Keys are independent, so that each is judged alone.

pub(crate) mod check;
pub(crate) mod clients;
pub(crate) mod history;
mod keys;
pub(crate) mod report;
mod sizes;
#[cfg(test)]
mod tests;
