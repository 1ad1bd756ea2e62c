//! A panic in the core of a group. The only code of a caller that runs there is the subscriber of log lines, so the test
//! panics in it. Alone in its binary, because the subscriber is global.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr
)] // helpers of tests

use std::fmt::Debug;
use std::sync::Mutex;
use std::time::Duration;

use towline_engine::errors::ProposeError;
use towline_engine::ids::GroupId;
use towline_engine::node::{Consistency, Start};
use towline_engine::status::Role;
use towline_testkit::cluster::{Cluster, eventually, node_id, within};
use towline_testkit::list::ListMachine;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// The words of the log line that panics, once.
static TRAP: Mutex<Option<Vec<String>>> = Mutex::new(None);

struct Trap;

impl Subscriber for Trap {
    fn enabled(&self, of: &Metadata<'_>) -> bool {
        !of.is_span() && of.target() == "raft" && *of.level() <= tracing::Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        struct Text(String);
        impl Visit for Text {
            fn record_debug(&mut self, _: &Field, value: &dyn Debug) {
                self.0.push_str(&format!("{value:?} "));
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        let caught = {
            let mut trap = TRAP.lock().unwrap();
            let words: Vec<&str> = text.0.split_whitespace().collect();
            let caught = trap.as_ref().is_some_and(|of| of.iter().all(|word| words.contains(&&**word)));
            if caught {
                *trap = None;
            }
            caught
        };
        assert!(!caught, "trapped: {}", text.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_core_of_a_group_ends_that_group_on_that_node_and_no_other() {
    tracing::subscriber::set_global_default(Trap).unwrap();
    let (node, bad, good) = (1, 2, 1);
    let mut cluster = Cluster::start(3, 2).await;
    cluster.lead(good, node).await;
    cluster.lead(bad, node).await;
    let group = cluster.group(node, bad);
    assert_eq!(group.propose("before").await, Ok(1));
    let term = cluster.group(node, good).state().term;

    // The core panics when it transfers leadership.
    *TRAP.lock().unwrap() = Some(vec![format!("node={node}"), format!("group={bad}")]);
    let waiting: Vec<_> = (0..20).map(|n| group.submit(format!("{n}")).unwrap()).collect();
    eventually("quarantine", async || {
        // Raft logs nothing for a refused transfer, such as a second one at a time.
        let _ = within(group.transfer(node_id(2))).await;
        let state = group.state();
        if state.role == Role::Down { Ok(()) } else { Err(state) }
    })
    .await;
    let state = group.state();
    let cause = state.down.clone().unwrap();
    assert!(cause.starts_with("the group panicked: trapped: "), "{cause}");
    assert_eq!(state.leader, None);
    // Pending callers get an answer, and later ones an error.
    for proposal in waiting {
        let _ = within(proposal).await;
    }
    let late = within(group.propose("late")).await.unwrap_err();
    assert!(matches!(&late, ProposeError::Stopped { cause: reported } if *reported == cause), "{late:?}");
    assert!(within(group.read(Consistency::Linearizable)).await.is_err());

    // The other group on this node goes on.
    for n in 1..=20 {
        assert_eq!(within(cluster.group(node, good).propose("meanwhile")).await, Ok(n));
    }
    assert_eq!(cluster.group(node, good).state().role, Role::Leader);
    assert_eq!(cluster.group(node, good).state().term, term);

    // The group goes on elsewhere, and here after a restart.
    let next = within(cluster.leader(bad)).await;
    assert_ne!(next, node);
    cluster.acked(bad, "elsewhere").await;
    let again = cluster.up[&node].node.group(GroupId::new(bad), ListMachine::new());
    let again = within(again.start(Start::Restart)).await.unwrap();
    cluster.up.get_mut(&node).unwrap().groups.insert(bad, again);
    let commands = cluster.settled(bad).await;
    assert!(commands.contains(&"before".into()) && commands.contains(&"elsewhere".into()), "{commands:?}");
    assert!(!commands.contains(&"late".into()), "{commands:?}");
    cluster.stop(node, Duration::ZERO).await;
}
