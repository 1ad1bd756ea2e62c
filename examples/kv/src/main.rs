//! A Redis-protocol key-value cluster on Towline.
// Until `serve` starts the ports.
#![allow(dead_code, unused_imports)]
mod machine;
mod redis;
mod replica;
fn main() {}
