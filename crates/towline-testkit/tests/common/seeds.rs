//! Runs of simulators, one for each seed. `TOWLINE_SIM_SEED` replays one seed, `TOWLINE_SIM_CASES` sets the number of seeds.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Whether this run replays one seed, which then need not meet the totals of all seeds.
pub(crate) fn replays() -> bool {
    number("TOWLINE_SIM_SEED").is_some()
}

/// Runs every seed. A panic of a run prints its seed.
pub(crate) fn for_each_seed<T>(cases: u64, run: impl Fn(u64) -> T) -> Vec<T> {
    let cases = number("TOWLINE_SIM_CASES").unwrap_or(cases);
    let seeds = number("TOWLINE_SIM_SEED").map_or(0..cases, |seed| seed..seed + 1);
    let runs = seeds.map(|seed| {
        catch_unwind(AssertUnwindSafe(|| run(seed))).unwrap_or_else(|panic| {
            eprintln!("panicked; replay with TOWLINE_SIM_SEED={seed}");
            resume_unwind(panic)
        })
    });
    runs.collect()
}
