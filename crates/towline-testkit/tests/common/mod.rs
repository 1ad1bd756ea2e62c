//! Fixtures of several test files.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod addresses;
pub(crate) mod counts;
pub(crate) mod distance;
pub(crate) mod lagging;
pub(crate) mod load;
pub(crate) mod lost;
pub(crate) mod offers;
pub(crate) mod seeds;

pub(crate) use counts::{BYTES, Counts, REPORTS, TRANSFERS};
pub(crate) use lagging::{LaggingCluster, config};
#[allow(unused_imports, reason = "as above")]
pub(crate) use load::{compact_past, load};
