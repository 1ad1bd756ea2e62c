//! What one call of a state machine gets, and how long others wait for it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::gated::{Gate, Gated, Opened};
use crate::common::{Alone, DEADLINE, address, id, wait};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::node::{Group, Start};
use towline_engine::units::ByteSize;

fn config() -> Config {
    Config {
        election_timeout_min: Duration::from_millis(500),
        election_timeout_max: Duration::from_millis(800),
        apply_workers: 1,
        ..Config::default()
    }
}

async fn group(alone: &Alone, number: u64, machine: Gated) -> Group<Gated> {
    let members = Start::Bootstrap(vec![(id(1), address(1))]);
    let group = alone.node.group(GroupId::new(number), machine).start(members).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group
}

/// A machine that is held in its first call while `commands` of `bytes` each come.
async fn held_with(config: Config, commands: usize, bytes: usize) -> (Alone, Group<Gated>, Opened) {
    let (alone, gate) = (Alone::start(config).await, Arc::new(Gate::default()));
    let group = group(&alone, 1, Gated::new(&gate)).await;
    gate.permit(0);
    drop(group.submit(vec![0; bytes]).unwrap());
    gate.wait_held();
    let last = group.state().commit;
    for _ in 0..commands {
        drop(group.submit(vec![0; bytes]).unwrap());
    }
    wait("the commit", || (group.state().commit >= last + commands as u64).then_some(())).await;
    (alone, group, Opened(gate))
}

/// Progress that is reported only at the end of the whole queue keeps proposals busy and reads waiting for as long.
#[tokio::test(flavor = "multi_thread")]
async fn the_applied_index_moves_with_each_call() {
    let (_alone, group, gate) = held_with(config(), 10_000, 10).await;
    for calls in 1..=4 {
        gate.0.permit(1);
        wait("a call", || {
            (gate.0.calls().iter().filter(|call| call.commands > 0).count() == calls).then_some(())
        })
        .await;
        gate.0.wait_held();
        let through = gate.0.calls().last().unwrap().through;
        wait("the applied index", || (group.state().applied == through).then_some(())).await;
    }
    assert!(group.state().applied < group.state().commit);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_has_no_more_bytes_than_the_setting_says_or_one_entry() {
    let config = Config { committed_bytes_max: ByteSize::bytes(10_000), ..config() };
    let (_alone, group, gate) = held_with(config.clone(), 2_000, 1_000).await;
    drop(group.submit(vec![0; 50_000]).unwrap());
    gate.0.open();
    assert!(group.propose("x").await.unwrap() > 2_000);
    let calls = gate.0.calls();
    assert!(calls.iter().all(|call| call.bytes <= 10_000 || call.commands == 1), "{calls:?}");
    assert!(calls.iter().any(|call| call.commands == 10), "{calls:?}");
    assert!(calls.iter().any(|call| call.bytes == 50_000), "{calls:?}");
}

/// Two groups of one apply worker: one has seconds of work queued.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_state_machine_delays_another_by_a_call_and_not_by_all_that_is_queued() {
    let alone = Alone::start(config()).await;
    let (slow_gate, gate) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
    let slow = Gated { cost: Duration::from_millis(5), ..Gated::new(&slow_gate) };
    let (slow, other) = (group(&alone, 1, slow).await, group(&alone, 2, Gated::new(&gate)).await);
    let queued = 4_000;
    for _ in 0..queued {
        drop(slow.submit("x").unwrap());
    }
    let began = Instant::now();
    other.propose("y").await.unwrap();
    let took = began.elapsed();
    assert!(slow.state().applied < queued / 2, "after {took:?} {} are applied", slow.state().applied);
}
