//! A Redis-protocol key-value cluster on Towline.
#![allow(dead_code)]
mod machine;
mod redis;
mod replica;
fn main() {}
