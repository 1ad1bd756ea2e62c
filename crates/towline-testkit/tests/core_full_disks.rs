//! Clusters of cores whose disks get low and have room again.

use towline_engine::core::{DiskRoom, Reject};
use towline_engine::errors::{ProposeError, ReadError};
use towline_engine::ids::NodeId;
use towline_engine::status::PeerProgress;
use towline_metrics::labels::WaitKind;
use towline_testkit::sim::{Chaos, NetOptions, ProposalResult, ReadResult, Sim, SimOptions};

use crate::common::seeds;

const TICKS: u64 = 500;
const HEARTBEAT: u64 = 2;

/// A cluster with ten acknowledged commands, whose delays are in ticks.
fn led(voters: u64) -> (Sim, NodeId) {
    let options = SimOptions {
        net: NetOptions { delay: 1..2, ..NetOptions::default() },
        sync_permille: 1_000,
        apply_permille: 1_000,
        ..SimOptions::default()
    };
    let mut sim = Sim::new(1, voters, options).unwrap();
    until(&mut sim, |sim| sim.leader().is_some_and(|leader| commit(sim, leader) > 0));
    let leader = sim.leader().unwrap();
    for _ in 0..10 {
        acked(&mut sim, leader);
    }
    (sim, leader)
}

fn others(sim: &Sim, leader: NodeId) -> Vec<NodeId> {
    sim.ids().into_iter().filter(|&id| id != leader).collect()
}

fn commit(sim: &Sim, node: NodeId) -> u64 {
    sim.status(node).unwrap().state.commit
}

fn term(sim: &Sim, node: NodeId) -> u64 {
    sim.status(node).unwrap().state.term
}

fn ticks(sim: &mut Sim, ticks: u64) {
    (0..ticks).for_each(|_| sim.tick().unwrap());
}

fn until(sim: &mut Sim, wanted: impl Fn(&Sim) -> bool) -> u64 {
    for tick in 0..TICKS {
        if wanted(sim) {
            return tick;
        }
        sim.tick().unwrap();
    }
    panic!("not within {TICKS} ticks");
}

/// Proposes a command, and waits until it is acknowledged.
fn acked(sim: &mut Sim, leader: NodeId) {
    let command = sim.propose(leader).unwrap();
    until(sim, |sim| matches!(sim.history().proposal(command), ProposalResult::Acked(_)));
}

/// Proposes a command, which must be refused because the disks of these nodes are low.
fn refused(sim: &mut Sim, leader: NodeId, low: &[NodeId]) {
    let command = sim.propose(leader).unwrap();
    let mut low = low.to_vec();
    low.sort();
    let error = ProposeError::DiskFull { low: low.into() };
    assert_eq!(*sim.history().proposal(command), ProposalResult::Failed(error));
}

fn read(sim: &mut Sim, node: NodeId) -> ReadResult {
    let read = sim.read(node).unwrap();
    until(sim, |sim| *sim.history().read(read) != ReadResult::Open);
    sim.history().read(read).clone()
}

fn set_low(sim: &mut Sim, nodes: &[NodeId], low: bool) {
    let room = if low { DiskRoom::Low } else { DiskRoom::Enough };
    nodes.iter().for_each(|&node| sim.set_disk_room(node, room).unwrap());
}

#[test]
fn leadership_stays_and_reads_go_on_where_all_disks_fill_together_until_there_is_room() {
    for voters in [1, 3, 5] {
        let (mut sim, leader) = led(voters);
        let (all, before) = (sim.ids(), term(&sim, leader));
        set_low(&mut sim, &all, true);
        for _ in 0..20 {
            ticks(&mut sim, 50);
            refused(&mut sim, leader, &all);
            for &node in &all {
                assert!(matches!(read(&mut sim, node), ReadResult::Saw(_)), "{voters} voters");
            }
        }
        // Room on fewer than a quorum changes nothing. The leader is the last of them.
        let mut low = all.clone();
        low.sort_by_key(|&id| id == leader);
        while low.len() > voters as usize / 2 + 1 {
            let node = low.remove(0);
            set_low(&mut sim, &[node], false);
            ticks(&mut sim, 50);
            refused(&mut sim, leader, &low);
        }
        assert_eq!((sim.leader(), term(&sim, leader)), (Some(leader), before), "{voters} voters");
        set_low(&mut sim, &[leader], false);
        ticks(&mut sim, 2 * HEARTBEAT);
        acked(&mut sim, leader);
        assert_eq!((sim.leader(), term(&sim, leader)), (Some(leader), before), "{voters} voters");
        sim.converge().unwrap();
    }
}

#[test]
fn a_leader_whose_disk_alone_is_low_hands_over_and_leads_again_when_it_has_room() {
    let (mut sim, old) = led(3);
    set_low(&mut sim, &[old], true);
    refused(&mut sim, old, &[old]);
    until(&mut sim, |sim| sim.leader().is_some_and(|leader| leader != old));
    let new = sim.leader().unwrap();
    let behind = sim.durable(old).0;
    for _ in 0..10 {
        acked(&mut sim, new);
        ticks(&mut sim, 20);
    }
    assert_eq!(sim.leader(), Some(new));
    assert_eq!(sim.durable(old).0, behind + 1, "the first entry of the new leader, and no command");
    set_low(&mut sim, &[old], false);
    until(&mut sim, |sim| sim.applied(old) == sim.history().last_index());
    assert_eq!(sim.transfer(new, old).unwrap(), Some(Ok(())));
    until(&mut sim, |sim| sim.leader() == Some(old));
    sim.converge().unwrap();
}

/// A peer whose disk is low refuses the same entry at each heartbeat interval. It must not get a whole window each time.
#[test]
fn a_low_follower_costs_one_entry_a_heartbeat_and_takes_entries_within_a_few_heartbeats_of_room() {
    let (mut sim, leader) = led(3);
    let follower = others(&sim, leader)[0];
    ticks(&mut sim, 20);
    set_low(&mut sim, &[follower], true);
    let padding = 100;
    for _ in 0..20 {
        sim.propose_many(leader, 5, padding).unwrap();
        ticks(&mut sim, 5);
    }
    let (at, last) = (sim.durable(follower).0, sim.status(leader).unwrap().last_index);
    assert!(last >= at + 100 && sim.applied(leader) == last, "the others go on: {at} of {last}");
    assert!(sim.rejected(Reject::DiskFull) > 0);
    let stuck = read(&mut sim, follower);
    assert_eq!(stuck, ReadResult::Failed(ReadError::DiskFull), "a read that needs an entry that it lacks");

    let (count, bytes) = sim.appends_sent(leader, follower);
    let beats = 100;
    ticks(&mut sim, beats * HEARTBEAT);
    let (count, bytes) = {
        let (count_now, bytes_now) = sim.appends_sent(leader, follower);
        (count_now - count, bytes_now - bytes)
    };
    println!(
        "{count} appends with {bytes} bytes in {beats} heartbeat intervals, while {} entries are missing",
        last - at
    );
    // The leader skips some ticks, and then sends heartbeats by the clock.
    assert!(
        (beats / 4..=beats + beats / 10).contains(&count),
        "{count} appends in {beats} heartbeat intervals"
    );
    assert_eq!(bytes, count * (8 + padding as u64), "one entry each");

    set_low(&mut sim, &[follower], false);
    let resumed = until(&mut sim, |sim| sim.durable(follower).0 > at);
    // Messages of a KiB, in a window that begins with one.
    let caught_up = resumed + until(&mut sim, |sim| sim.applied(follower) == last);
    println!("it takes entries {resumed} ticks after it has room, and has all after {caught_up}");
    assert!(resumed <= 3 * HEARTBEAT && caught_up <= 25 * HEARTBEAT, "{resumed}, {caught_up}");
    let peers = sim.status(leader).unwrap().peers;
    assert!(peers.iter().all(|peer| peer.progress == PeerProgress::Replicate && !peer.disk_low), "{peers:?}");
    assert_eq!(sim.leader(), Some(leader));
}

#[test]
fn low_nodes_elect_a_leader_that_serves_reads_and_stays() {
    let (mut sim, old) = led(3);
    let (all, left) = (sim.ids(), others(&sim, old));
    set_low(&mut sim, &all, true);
    ticks(&mut sim, 50);
    sim.crash(old);
    until(&mut sim, |sim| left.iter().any(|&id| sim.leader() == Some(id) && commit(sim, id) > 11));
    let new = sim.leader().unwrap();
    let elected = term(&sim, new);
    for _ in 0..10 {
        ticks(&mut sim, 50);
        for &node in &left {
            assert!(matches!(read(&mut sim, node), ReadResult::Saw(_)));
        }
        refused(&mut sim, new, &left);
    }
    assert_eq!((sim.leader(), term(&sim, new)), (Some(new), elected));
    sim.restart(old).unwrap();
    ticks(&mut sim, 100);
    set_low(&mut sim, &[old, new], false);
    ticks(&mut sim, 2 * HEARTBEAT);
    acked(&mut sim, new);
    sim.converge().unwrap();
}

/// A follower refuses only what it does not have: otherwise a leader would never learn what a quorum has written.
#[test]
fn a_leader_commits_what_low_followers_have_although_their_acknowledgements_were_lost() {
    let (mut sim, leader) = led(3);
    let followers = others(&sim, leader);
    ticks(&mut sim, 20);
    followers.iter().for_each(|&follower| sim.cut(follower, leader));
    let commands = sim.propose_many(leader, 50, 100).unwrap();
    // No longer than a leader stays without answers.
    ticks(&mut sim, 5);
    let last = sim.status(leader).unwrap().last_index;
    let written: Vec<_> = followers.iter().map(|&follower| sim.durable(follower).0).collect();
    assert!(written.iter().all(|&written| written > commit(&sim, leader) + 5), "{written:?}");
    let all = sim.ids();
    set_low(&mut sim, &all, true);
    // The leader hears that its messages are lost, and begins again at what was acknowledged.
    followers.iter().for_each(|&follower| sim.cut(leader, follower));
    ticks(&mut sim, HEARTBEAT);
    sim.heal();
    let reachable = *written.iter().max().unwrap();
    until(&mut sim, |sim| commit(sim, leader) >= reachable);
    assert_eq!(sim.leader(), Some(leader));
    println!("committed up to {reachable} of {last}");
    set_low(&mut sim, &all, false);
    until(&mut sim, |sim| {
        commands.clone().all(|c| matches!(sim.history().proposal(c), ProposalResult::Acked(_)))
    });
}

#[test]
fn nothing_is_committed_differently_while_disks_get_low_and_have_room_again() {
    let sims = seeds::for_each_seed(50, |seed| {
        let lossy = 10 * (seed as u32 % 3);
        let options = SimOptions {
            net: NetOptions {
                delay: 1..12,
                drop_permille: lossy,
                silent_drop_permille: lossy,
                duplicate_permille: lossy,
                overtake_permille: lossy,
            },
            chaos: Chaos {
                disk_low_permille: 6,
                disk_room_permille: 4,
                ..if seed % 2 == 0 { Chaos::rough() } else { Chaos::load() }
            },
            learners: seed % 2,
            flush_permille: [0, 1000][seed as usize % 2],
            ..SimOptions::default()
        };
        let run = || {
            let mut sim = Sim::new(seed, if seed % 2 == 0 { 3 } else { 5 }, options)?;
            sim.run(3_000)?;
            sim.converge()?;
            Ok::<_, towline_testkit::sim::SimViolation>(sim)
        };
        run().unwrap_or_else(|violation| panic!("{violation}"))
    });
    let acked: usize = sims.iter().map(|sim| sim.history().acked_count()).sum();
    let seen: usize = sims.iter().map(|sim| sim.history().seen_count()).sum();
    let refused: u64 = sims.iter().map(|sim| sim.rejected(Reject::DiskFull)).sum();
    let full = |sim: &Sim| {
        let of = |c: &u64| {
            matches!(sim.history().proposal(*c), ProposalResult::Failed(ProposeError::DiskFull { .. }))
        };
        (0..10_000).filter(of).count()
    };
    let full: usize = sims.iter().map(full).sum();
    println!(
        "{} runs: {acked} commands acknowledged, {full} refused for a full disk, {refused} appends refused, {seen} reads",
        sims.len()
    );
    if !seeds::replays() {
        let runs = sims.len();
        assert!(acked > 10 * runs && seen > 10 * runs && full > 10 * runs && refused > runs as u64);
    }
}

/// A leader with commands that low followers refused did not commit its first entry behind them: no node could read.
#[test]
fn low_followers_take_the_commands_that_a_new_leader_needs_for_its_first_commit_and_short_ones_none() {
    for room in [DiskRoom::Low, DiskRoom::Short] {
        let (mut sim, leader) = led(3);
        let followers = others(&sim, leader);
        ticks(&mut sim, 20);
        // Accepted before the leader knows of the low disks.
        followers.iter().for_each(|&follower| sim.set_disk_room(follower, room).unwrap());
        sim.propose(leader).unwrap();
        until(&mut sim, |sim| sim.durable(leader).0 > commit(sim, leader));
        ticks(&mut sim, 20);
        assert_eq!(followers.iter().map(|&id| sim.durable(id).0).max(), Some(commit(&sim, leader)));
        followers.iter().for_each(|&follower| sim.crash(follower));
        sim.crash(leader);
        // Of these two only the one with the longer log can win.
        [leader, followers[0]].iter().for_each(|&node| sim.restart(node).unwrap());
        sim.set_disk_room(leader, room).unwrap();
        until(&mut sim, |sim| sim.leader() == Some(leader));
        sim.restart(followers[1]).unwrap();
        match room {
            DiskRoom::Low => {
                until(&mut sim, |sim| commit(sim, leader) == sim.status(leader).unwrap().last_index);
                assert!(matches!(read(&mut sim, leader), ReadResult::Saw(_)));
            }
            _ => {
                assert_eq!(read(&mut sim, leader), ReadResult::Failed(ReadError::DiskFull));
                let waits = sim.explain(leader);
                assert!(
                    waits.iter().any(|wait| wait.peer.is_none() && wait.cause.kind() == WaitKind::DiskFull)
                );
            }
        }
        let low = sim.ids();
        refused(&mut sim, leader, &low);
        assert_eq!(sim.leader(), Some(leader));
        set_low(&mut sim, &low, false);
        ticks(&mut sim, 50);
        sim.converge().unwrap();
    }
}
