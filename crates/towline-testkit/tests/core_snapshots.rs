//! Case 12: whatever happens to transfers, tickets, nodes and the network, each snapshot that Raft emits is reported to
//! Raft exactly once, or its leadership or its node is over. Whole clusters of cores run under random faults. After each
//! input the world checks Raft's own state: no Raft waits for an attempt that is over. `TOWLINE_SIM_SEED` replays one seed,
//! `TOWLINE_SIM_CASES` runs more.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::snapshot_world::{Arrow, Faults, Plant, World};

const CASES: u64 = 150;
const STEPS: usize = 3_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs every seed; a failure, also a panic inside, names its seed.
fn for_each_seed(cases: u64, run: impl Fn(u64) -> World) -> Vec<World> {
    let cases = number("TOWLINE_SIM_CASES").unwrap_or(cases);
    let seeds = number("TOWLINE_SIM_SEED").map_or(0..cases, |seed| seed..seed + 1);
    let worlds = seeds.map(|seed| match catch_unwind(AssertUnwindSafe(|| run(seed))) {
        Ok(world) => world,
        Err(panic) => {
            eprintln!("panicked; replay with TOWLINE_SIM_SEED={seed}");
            resume_unwind(panic);
        }
    });
    worlds.collect()
}

#[test]
fn every_snapshot_that_raft_emits_gets_exactly_one_report_under_random_faults_and_crashes() {
    let worlds = for_each_seed(CASES, |seed| {
        let mut world = World::new(seed, Faults::rough());
        (0..STEPS).for_each(|_| world.step());
        world.converge();
        world.assert_one_report_each();
        world
    });
    let sum = |of: fn(&World) -> usize| worlds.iter().map(of).sum::<usize>();
    let (emitted, told, leaked) = (sum(World::emitted), sum(World::told), sum(World::synthesized));
    let (out_of_office, out_of_life) = (sum(|world| world.excused().0), sum(|world| world.excused().1));
    let (installed, by_learners) = (sum(World::installed), sum(World::installed_by_learner));
    let (joint, rotten) = (sum(World::installed_while_joint), sum(World::rotten));
    let (crashes, shutdowns) = (sum(World::crashes), sum(World::shutdowns));
    println!(
        "{} runs: Raft emitted {emitted} snapshots and was told of {told}, {leaked} times by the watchdog; {out_of_office} \
         were over with their leadership, {out_of_life} with their node; {installed} installed, {by_learners} by learners, \
         {joint} in joint configurations; {rotten} files rotten, {crashes} crashes, {shutdowns} shutdowns",
        worlds.len()
    );
    assert_eq!(emitted, told + out_of_office + out_of_life);
    if number("TOWLINE_SIM_SEED").is_none() {
        let runs = worlds.len();
        assert!(emitted > 5 * runs && installed > runs && crashes > 3 * runs && shutdowns > runs);
        assert!(leaked > 10 && rotten > 10 && by_learners > 10 && joint > 10);
        assert!(out_of_office > 2 && out_of_life > 2 && told > 5 * (out_of_office + out_of_life));
    }
}

/// The control of the books: they find a report that is entered twice, and one that is lost while no watchdog runs.
#[test]
fn the_books_find_a_report_that_is_doubled_or_lost() {
    let found = |seed: u64, plant: Plant, watchdog: bool| {
        let faults = Faults { transfer_lost_permille: 300, watchdog, plant, ..Faults::snapshots_only() };
        let mut world = World::new(seed, faults);
        (0..STEPS).for_each(|_| world.step());
        if watchdog {
            world.converge();
        } else {
            world.heal();
            (0..STEPS).for_each(|_| world.calm_step());
        }
        (!world.misreported().is_empty(), world.synthesized())
    };
    let runs = |plant, watchdog| (0..20).map(|seed| found(seed, plant, watchdog)).collect::<Vec<_>>();
    let wrong = |runs: &[(bool, usize)]| runs.iter().filter(|(wrong, _)| *wrong).count();
    assert!(wrong(&runs(Plant::Doubles(300), true)) > 10);
    assert!(wrong(&runs(Plant::Drops(600), false)) > 10);
    assert_eq!(wrong(&runs(Plant::Nothing, true)), 0);
    // The watchdog makes up for lost ones, those of its own too, so that these runs converge.
    let made_up: usize = runs(Plant::Drops(300), true).iter().map(|(_, made_up)| made_up).sum();
    assert!(made_up > 20, "{made_up}");
}

/// What was wrong heals; from then on nobody who needs a snapshot is without an attempt for longer than its backoff and two
/// heartbeats.
#[test]
fn once_all_is_well_a_peer_that_needs_a_snapshot_is_sent_one_within_two_heartbeats_of_its_backoff() {
    let worlds = for_each_seed(CASES, |seed| {
        let mut world = World::new(seed, Faults { transfer_lost_permille: 300, ..Faults::rough() });
        (0..STEPS / 3).for_each(|_| world.step());
        SENT.fetch_add(world.promptly(150), Ordering::Relaxed);
        world.converge();
        world.assert_one_report_each();
        world
    });
    let sent = SENT.load(Ordering::Relaxed);
    println!("{} runs, {sent} attempts after the healing", worlds.len());
    if number("TOWLINE_SIM_SEED").is_none() {
        assert!(sent > worlds.len() / 4, "{sent} attempts: nothing was left to heal");
    }
}

static SENT: AtomicUsize = AtomicUsize::new(0);

/// The control: without any report, also of the watchdog, followers are latched.
#[test]
fn without_reports_followers_are_latched() {
    let latched = (0..30).filter(|&seed| {
        let mut world = World::new(
            seed,
            Faults { lose_reports: true, transfer_lost_permille: 300, ..Faults::snapshots_only() },
        );
        (0..STEPS).for_each(|_| world.step());
        world.heal();
        (0..STEPS).for_each(|_| world.calm_step());
        world.any_latched()
    });
    let latched = latched.count();
    assert!(latched > 10, "{latched} of 30 runs end with a latched follower");
}

/// The control of the watchdog: leaked tickets alone latch followers too, when nobody looks after them.
#[test]
fn without_the_watchdog_a_leaked_ticket_latches_a_follower() {
    let latched = (0..30).filter(|&seed| {
        let mut world =
            World::new(seed, Faults { watchdog: false, leak_permille: 300, ..Faults::snapshots_only() });
        (0..STEPS).for_each(|_| world.step());
        world.heal();
        (0..STEPS).for_each(|_| world.calm_step());
        world.any_latched()
    });
    let latched = latched.count();
    assert!(latched > 5, "{latched} of 30 runs end with a latched follower");
}

/// Cases 15, 33, 40 and 68 in the core, with durable and with volatile state machines: every boundary of the install order is a place to crash.
#[test]
fn a_crash_at_every_step_of_an_install_leaves_the_old_or_the_new_state() {
    let worlds = for_each_seed(60, |seed| {
        let mut world = World::new(seed, Faults { install_crash_permille: 300, ..Faults::snapshots_only() });
        (0..STEPS).for_each(|_| world.step());
        world.converge();
        world.assert_one_report_each();
        world
    });
    let installed: usize = worlds.iter().map(World::installed).sum();
    let at = |arrow| worlds.iter().map(|world| world.crashes_at(arrow)).sum::<usize>();
    let crashes = Arrow::ALL.map(|arrow| (arrow, at(arrow)));
    println!("{installed} installs, crashes: {crashes:?}");
    if number("TOWLINE_SIM_SEED").is_none() {
        assert!(installed > 100 && crashes.iter().all(|&(_, count)| count > 20), "{installed} {crashes:?}");
    }
}
