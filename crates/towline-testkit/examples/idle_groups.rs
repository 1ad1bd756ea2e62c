//! The processor time of idle groups: each has three cores in a simulator, with default times, and no calls.
//!
//! `cargo run --release -p towline-testkit --example idle_groups -- [GROUPS] [TICKS]`. The time includes the simulator. For the
//! share of a part of the core, run it with few groups below `valgrind --tool=callgrind`.
#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program that talks to a person

use std::time::Instant;

use towline_testkit::sim::{NetOptions, Sim, SimOptions};

const NODES: u64 = 3;
/// Ticks until every node knows the leader.
const WARM_UP: usize = 500;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|number| number.parse().unwrap());
    let (groups, ticks) = (arguments.next().unwrap_or(1_024), arguments.next().unwrap_or(1_000));
    let options = SimOptions {
        net: NetOptions { delay: 1..2, ..NetOptions::default() },
        heartbeat_ticks: 10,
        election_ticks: 100..200,
        ..SimOptions::default()
    };
    let mut sims: Vec<_> = (0..groups).map(|seed| Sim::new(seed, NODES, options.clone()).unwrap()).collect();
    let run = |sims: &mut Vec<Sim>, ticks| {
        (0..ticks).for_each(|_| sims.iter_mut().for_each(|sim| sim.tick().unwrap()));
    };
    for sim in &mut sims {
        // Clocks in step could split the votes for ever.
        sim.run_until("a leader", 100_000, |sim| sim.leader().is_some()).unwrap();
    }
    run(&mut sims, WARM_UP);
    let begun = Instant::now();
    run(&mut sims, ticks as usize);
    let each = begun.elapsed().as_nanos() / u128::from((groups * NODES * ticks).max(1));
    println!("{groups} idle groups of {NODES} nodes, {ticks} ticks: {each} ns for a tick of one core");
}
