//! A Redis-protocol key-value cluster on Towline.
#![allow(dead_code)]
mod machine;
fn main() {}
