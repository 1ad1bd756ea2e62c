//! The integration tests that can share a process, in one binary: linking each file alone takes longer than most tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)] // helpers of tests

mod common;
mod core_cases;
mod core_chaos;
mod core_full_disks;
mod core_fuzz;
mod core_latch;
mod core_reads;
mod core_snapshot_cases;
mod core_snapshots;
mod core_waits;
mod flaws;
mod log_store;
mod node_attempts;
mod node_disk;
mod node_distance;
mod node_explains;
mod node_faults;
mod node_founding;
mod node_full_disks;
mod node_handshake;
mod node_heals;
mod node_lengths;
mod node_liars;
mod node_lost;
mod node_mixed;
mod node_refusals;
mod node_replication;
mod node_restores;
mod node_resumes;
mod node_rivals;
mod node_slow_disks;
mod node_snapshot_disks;
mod node_stalls;
mod node_start;
mod node_stops;
mod node_stray_files;
mod node_transfers;
mod node_unreadable;
mod snapshot_faults;
mod snapshot_sim;
mod snapshot_store;
mod snapshot_store_flaws;
mod state_machine;
mod state_machine_files;
mod transport_bounds;
mod transport_flaws;
mod transport_grpc;
mod transport_peers;
mod transport_quic;
mod transport_suite;
mod wires;
