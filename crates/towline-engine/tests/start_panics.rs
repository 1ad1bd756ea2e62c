//! Code of a user that panics while a group starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod common;

use std::io;

use common::{Alone, DEADLINE, address, id};
use towline_engine::config::Config;
use towline_engine::ids::GroupId;
use towline_engine::node::{Start, StartError};
use towline_engine::snapshot_store::SnapshotMeta;
use towline_engine::state_machine::{Applied, ApplyBatch, Fatal, Replies, SnapshotSource, StateMachine};

/// Panics in `durable`, if the flag is set.
struct Machine(bool);

impl StateMachine for Machine {
    type Response = ();
    type View = ();

    fn view(&self) {}

    fn durable(&self) -> Applied {
        assert!(!self.0, "no such index");
        Applied::NONE
    }

    fn apply(&mut self, batch: ApplyBatch<'_>, replies: &mut Replies<()>) -> Result<(), Fatal> {
        batch.commands().for_each(|_| replies.push(()));
        Ok(())
    }

    fn snapshot(&mut self) -> Result<Box<dyn SnapshotSource>, Fatal> {
        Err(Fatal::new("no snapshots"))
    }

    fn restore(&mut self, _: &SnapshotMeta, _: &mut dyn io::Read) -> Result<(), Fatal> {
        Err(Fatal::new("no snapshots"))
    }
}

/// It must not look like a node that has stopped; and the group can be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_panics_says_what_the_panic_said_and_may_be_tried_again() {
    let config = Config { election_ticks_min: 50, election_ticks_max: 80, ..Config::default() };
    let alone = Alone::start(config).await;
    let group = |machine| alone.node.group(GroupId::DEFAULT, machine);
    let members = vec![(id(1), address(1))];
    let error = group(Machine(true)).start(Start::Bootstrap(members)).await.unwrap_err();
    assert!(matches!(&error, StartError::Panicked { cause } if cause == "no such index"), "{error:?}");
    let group = group(Machine(false)).start(Start::Restart).await.unwrap();
    group.wait_leader(DEADLINE).await.unwrap();
    group.propose("x").await.unwrap();
}
