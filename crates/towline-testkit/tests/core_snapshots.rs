//! Under any faults of transfers, tickets, nodes and the network, Raft gets exactly one report for each snapshot that
//! it emits. Exempt are snapshots whose leadership or node has ended. The simulator checks after each input that no Raft waits
//! for an attempt that is over. `common::seeds` explains the environment variables.

use std::sync::atomic::AtomicUsize;

use crate::common::*;
use crate::snapshot_sim::{Arrow, Faults, Sabotage, SnapshotSim};

const CASES: u64 = 150;
const STEPS: usize = 3_000;

#[test]
fn every_snapshot_that_raft_emits_gets_exactly_one_report_under_random_faults_and_crashes() {
    let sims = for_each_seed(CASES, |seed| {
        let mut sim = SnapshotSim::new(seed, Faults::rough());
        (0..STEPS).for_each(|_| sim.step());
        sim.converge();
        sim.assert_one_report_each();
        sim
    });
    let sum = |of: fn(&SnapshotSim) -> usize| sims.iter().map(of).sum::<usize>();
    let (emitted, told, leaked) =
        (sum(|sim| sim.reports.emitted), sum(|sim| sim.reports.told), sum(|sim| sim.synthesized));
    let (leadership_ended, node_ended) =
        (sum(|sim| sim.reports.leadership_ended), sum(|sim| sim.reports.node_ended));
    let (installed, by_learners) = (sum(SnapshotSim::installed), sum(SnapshotSim::installed_by_learner));
    let (joint, rotten) = (sum(SnapshotSim::installed_while_joint), sum(|sim| sim.rotten));
    let (crashes, shutdowns) = (sum(|sim| sim.crashes), sum(|sim| sim.shutdowns));
    println!(
        "{} runs: Raft emitted {emitted} snapshots and got {told} reports, {leaked} of them from the watchdog; \
         {leadership_ended} ended with their leadership, {node_ended} with their node; {installed} installed, {by_learners} by \
         learners, {joint} in joint configurations; {rotten} files rotten, {crashes} crashes, {shutdowns} shutdowns",
        sims.len()
    );
    assert_eq!(emitted, told + leadership_ended + node_ended);
    if !replays() {
        let runs = sims.len();
        assert!(emitted > 5 * runs && installed > runs && crashes > 3 * runs && shutdowns > runs);
        assert!(leaked > 10 && rotten > 10 && by_learners > 10 && joint > 10);
        assert!(leadership_ended > 2 && node_ended > 2 && told > 5 * (leadership_ended + node_ended));
    }
}

/// The control: the simulator finds a report that Raft gets twice, and one that is lost while no watchdog runs.
#[test]
fn the_simulator_finds_a_report_that_is_doubled_or_lost() {
    let found = |seed: u64, sabotage: Sabotage, watchdog: bool| {
        let faults = Faults { transfer_lost_permille: 300, watchdog, sabotage, ..Faults::snapshots_only() };
        let mut sim = SnapshotSim::new(seed, faults);
        (0..STEPS).for_each(|_| sim.step());
        if watchdog {
            sim.converge();
        } else {
            sim.heal();
            (0..STEPS).for_each(|_| sim.calm_step());
        }
        (!sim.misreported().is_empty(), sim.synthesized)
    };
    let runs = |sabotage, watchdog| (0..20).map(|seed| found(seed, sabotage, watchdog)).collect::<Vec<_>>();
    let wrong = |runs: &[(bool, usize)]| runs.iter().filter(|(wrong, _)| *wrong).count();
    assert!(wrong(&runs(Sabotage::Doubles(300), true)) > 10);
    assert!(wrong(&runs(Sabotage::Drops(600), false)) > 10);
    assert_eq!(wrong(&runs(Sabotage::Nothing, true)), 0);
    // The watchdog replaces lost reports, also its own, so these runs converge.
    let made_up: usize = runs(Sabotage::Drops(300), true).iter().map(|(_, made_up)| made_up).sum();
    assert!(made_up > 20, "{made_up}");
}

/// After all faults end, a peer that needs a snapshot waits at most its backoff and two heartbeats for an attempt.
#[test]
fn after_the_heal_a_peer_gets_a_snapshot_within_two_heartbeats_of_its_backoff() {
    let sims = for_each_seed(CASES, |seed| {
        let mut sim = SnapshotSim::new(seed, Faults { transfer_lost_permille: 300, ..Faults::rough() });
        (0..STEPS / 3).for_each(|_| sim.step());
        SENT.fetch_add(sim.promptly(150), Ordering::Relaxed);
        sim.converge();
        sim.assert_one_report_each();
        sim
    });
    let sent = SENT.load(Ordering::Relaxed);
    println!("{} runs, {sent} attempts after the healing", sims.len());
    if !replays() {
        assert!(sent > sims.len() / 4, "{sent} attempts: nothing was left to heal");
    }
}

static SENT: AtomicUsize = AtomicUsize::new(0);

/// The control: without any report, also from the watchdog, followers stay latched.
#[test]
fn without_reports_followers_are_latched() {
    let latched = (0..30).filter(|&seed| {
        let mut sim = SnapshotSim::new(
            seed,
            Faults { lose_reports: true, transfer_lost_permille: 300, ..Faults::snapshots_only() },
        );
        (0..STEPS).for_each(|_| sim.step());
        sim.heal();
        (0..STEPS).for_each(|_| sim.calm_step());
        sim.any_latched()
    });
    let latched = latched.count();
    assert!(latched > 10, "{latched} of 30 runs end with a latched follower");
}

/// The control: without the watchdog a leaked ticket alone latches a follower.
#[test]
fn without_the_watchdog_a_leaked_ticket_latches_a_follower() {
    let latched = (0..30).filter(|&seed| {
        let mut sim = SnapshotSim::new(
            seed,
            Faults { watchdog: false, leak_permille: 300, ..Faults::snapshots_only() },
        );
        (0..STEPS).for_each(|_| sim.step());
        sim.heal();
        (0..STEPS).for_each(|_| sim.calm_step());
        sim.any_latched()
    });
    let latched = latched.count();
    assert!(latched > 5, "{latched} of 30 runs end with a latched follower");
}

/// In the core: a crash between any two steps of an install, with durable and volatile state machines.
#[test]
fn a_crash_at_every_step_of_an_install_leaves_the_old_or_the_new_state() {
    let sims = for_each_seed(60, |seed| {
        let mut sim =
            SnapshotSim::new(seed, Faults { install_crash_permille: 300, ..Faults::snapshots_only() });
        (0..STEPS).for_each(|_| sim.step());
        sim.converge();
        sim.assert_one_report_each();
        sim
    });
    let installed: usize = sims.iter().map(SnapshotSim::installed).sum();
    let at = |arrow| sims.iter().map(|sim| sim.crashes_at(arrow)).sum::<usize>();
    let crashes = Arrow::ALL.map(|arrow| (arrow, at(arrow)));
    println!("{installed} installs, crashes: {crashes:?}");
    if !replays() {
        assert!(installed > 100 && crashes.iter().all(|&(_, count)| count > 20), "{installed} {crashes:?}");
    }
}
