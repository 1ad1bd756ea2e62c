//! Every way a link ends, and what is told of it.

use std::time::Instant;

use tokio::time::timeout;
use towline_engine::message::Lane;
use towline_engine::transport::{LinkClosed, Peer, Refusal, Violation};

use super::super::bench::{Bench, NOT_YET, Opened, heartbeat, hello, numbered, run};
use super::super::engine::Host;
use super::Fixture;
use super::handshake::reconnect;

const ONCE: &str = "when a link dies, `LinkFeedback::closed` is called exactly once";

/// One link of each lane.
async fn both(bench: &Bench, host: &Host) -> Vec<Opened> {
    vec![bench.open(host, Lane::Control).await, bench.open(host, Lane::Append).await]
}

/// What the listening side did not end by itself, it ended as a peer or broke.
async fn ended_by_the_other_side(bench: &Bench, opened: &Opened) {
    match opened.ear.closed(bench).await {
        LinkClosed::ByPeer { .. } | LinkClosed::Broken { .. } => {}
        other => bench.fail(format_args!("the cause is {other:?}, where the peer went")),
    }
}

/// A dead link takes nothing for long: at the latest once its flow control is full, a dispatch fails.
async fn takes_nothing_more(bench: &Bench, opened: &mut Opened) {
    let failing = async { while opened.link.dispatch(numbered(9, 1 << 10)).await.is_ok() {} };
    bench.within("the failure of a dispatch on a dead link", failing).await;
}

/// Both ends let go of everything.
pub fn a_dropped_link_is_told_once_and_lets_go_of_the_session(fixture: Fixture) {
    run(fixture, ONCE, async |bench| {
        let host = bench.host().await;
        for opened in both(bench, &host).await {
            drop(opened.link);
            let cause = opened.ear.closed(bench).await;
            bench.equal("the cause", &cause, &LinkClosed::Abandoned);
        }
        host.engine.until(bench, "the end of the sessions", |log| log.sessions == 0).await;
    });
}

/// While a sender goes on: nothing is delivered once `shutdown` has returned.
pub fn a_listener_shut_down_ends_every_link(fixture: Fixture) {
    run(fixture, "`shutdown` closes what was accepted and returns when that is done", async |bench| {
        let mut host = bench.host().await;
        let mut links = both(bench, &host).await;
        let mut sender = links.pop().unwrap();
        let sending = tokio::spawn(async move {
            let mut index = 0;
            while sender.link.dispatch(numbered(index, 100)).await.is_ok() {
                index += 1;
                tokio::task::yield_now().await;
            }
            sender
        });
        host.engine.until(bench, "a delivery", |log| !log.delivered.is_empty()).await;
        host.shut_down(bench).await;
        let delivered = host.engine.look(|log| log.delivered.len());
        let sender = bench.join("the failure of a dispatch after shutdown", sending).await;
        for opened in &links {
            ended_by_the_other_side(bench, opened).await;
        }
        // Its own failure may have been first.
        sender.ear.closed(bench).await;
        let after = host.engine.look(|log| (log.delivered.len(), log.sessions));
        bench.equal("deliveries and sessions after shutdown", &after, &(delivered, 0));
    });
}

/// The same without a word of farewell.
pub fn a_dropped_listener_ends_every_link(fixture: Fixture) {
    run(fixture, "dropping a listener stops accepting and closes what was accepted", async |bench| {
        let mut host = bench.host().await;
        let mut links = both(bench, &host).await;
        host.drop_listener();
        for opened in &mut links {
            ended_by_the_other_side(bench, opened).await;
            takes_nothing_more(bench, opened).await;
        }
        host.engine.until(bench, "the end of the sessions", |log| log.sessions == 0).await;
        let refused = async { while bench.connect(&host, Lane::Append).await.0.is_ok() {} };
        bench.within("the failure of a connect to a dropped listener", refused).await;
    });
}

/// The sender has nothing more to say and only waits: it still hears that what it handed over is lost.
pub fn a_link_with_a_batch_under_way_tells_of_its_end(fixture: Fixture) {
    run(fixture, ONCE, async |bench| {
        let mut host = bench.host().await;
        let mut opened = bench.open(&host, Lane::Append).await;
        for index in 0..2 {
            bench.dispatch(&mut opened, numbered(index, 100)).await;
        }
        host.drop_listener();
        ended_by_the_other_side(bench, &opened).await;
    });
}

/// The other lane of the same peer goes on.
pub fn a_violation_ends_its_lane_alone_with_its_reason(fixture: Fixture) {
    run(fixture, "a `Violation` closes the lane; the sender hears why", async |bench| {
        let host = bench.host().await;
        host.engine.takes(|lane, _| match lane {
            Lane::Append => Err(Violation { detail: "five hundred".into() }),
            Lane::Control => Ok(Vec::new()),
        });
        let mut control = bench.open(&host, Lane::Control).await;
        let mut opened = bench.open(&host, Lane::Append).await;
        bench.dispatch(&mut opened, numbered(1, 10)).await;
        match opened.ear.closed(bench).await {
            // It is this side that did it, and the peer that said so.
            LinkClosed::ByPeer { detail } if detail.contains("five hundred") => {}
            other => bench.fail(format_args!("the cause is {other:?}, not the violation")),
        }
        takes_nothing_more(bench, &mut opened).await;
        bench.dispatch(&mut control, heartbeat(1)).await;
        host.engine.until(bench, "a delivery on the other lane", |log| log.count(Lane::Control) == 1).await;
        bench.hold(!control.ear.is_closed(), "the other lane closed too");
        host.engine.until(bench, "the end of the session", |log| log.sessions == 1).await;
    });
}

/// What was cut out of the middle of a stream must not be followed by anything.
pub fn a_dispatch_dropped_midway_poisons_the_link(fixture: Fixture) {
    run(
        fixture,
        "when the future of `dispatch` is dropped before it ended, the link is done",
        async |bench| {
            let host = bench.host().await;
            host.engine.appends.shut();
            let mut opened = bench.open(&host, Lane::Append).await;
            let mut index = 0;
            let filled = async {
                // Until one has to wait; its future is dropped with the timeout.
                while let Ok(dispatched) =
                    timeout(NOT_YET, opened.link.dispatch(numbered(index, 64 << 10))).await
                {
                    bench.hold(dispatched.is_ok(), "a dispatch on a healthy link fails");
                    index += 1;
                }
            };
            bench.within("the first dispatch that has to wait", filled).await;
            let after =
                bench.within("a dispatch after a dropped one", opened.link.dispatch(numbered(999_999, 10)));
            bench.hold(after.await.is_err(), "the link goes on after a dispatch was dropped midway");
            drop(opened.link);
            opened.ear.closed(bench).await;
            host.engine.appends.open();
            host.engine.until(bench, "the end of the session", |log| log.sessions == 0).await;
            let came = host.engine.look(|log| log.indexes(Lane::Append));
            let prefix = came.iter().copied().eq(0..came.len() as u64) && came.len() as u64 <= index + 1;
            bench.hold(prefix, format_args!("{came:?} arrived"));
        },
    );
}

/// The feedback belongs to the link from the moment of the call, also when there will be none.
pub fn a_failed_connect_is_told_once(fixture: Fixture) {
    run(fixture, ONCE, async |bench| {
        let host = bench.host().await;
        host.engine.admits(|_, _| Err(Refusal::ShuttingDown));
        let (answer, ear) = bench.connect(&host, Lane::Append).await;
        bench.hold(answer.is_err(), "a refused dialler is let in");
        ear.closed(bench).await;
    });
}

/// While the listener has not answered; nothing of it is left behind.
pub fn a_connect_dropped_midway_is_told_once_and_leaves_nothing(fixture: Fixture) {
    run(fixture, "dropping the future of `connect` gives the attempt up", async |bench| {
        let host = bench.host().await;
        host.engine.admit.shut();
        let (task, ear) = bench.dial(&host, Lane::Append);
        host.engine.until(bench, "the question to the listener", |log| !log.asked.is_empty()).await;
        task.abort();
        bench.within("the end of the task", task).await.ok();
        host.engine.admit.open();
        ear.closed(bench).await;
        let what = "the listener letting go of a dialler that gave up";
        host.engine.until(bench, what, |log| log.sessions == 0).await;
        bench.open(&host, Lane::Append).await;
    });
}

/// A path to the host, and a link of each lane on it.
async fn over_a_path(bench: &Bench, host: &Host) -> Option<(Box<dyn super::super::Path>, Vec<Opened>)> {
    let path = bench.within("a path", bench.fixture.path(&host.address)).await?;
    let mut links = Vec::new();
    for lane in Lane::ALL {
        let to = Peer { id: host.node, address: path.address() };
        let mut opened = bench.open_as(hello(1, host.node), to, lane).await;
        bench.dispatch(&mut opened, heartbeat(1)).await;
        host.engine.until(bench, "a delivery over the path", |log| log.count(lane) == 1).await;
        links.push(opened);
    }
    Some((path, links))
}

/// Nothing is being sent. Needs [`TransportFixture::path`].
///
/// [`TransportFixture::path`]: super::super::TransportFixture::path
pub fn a_cut_idle_link_is_noticed(fixture: Fixture) {
    run(fixture, ONCE, async |bench| {
        let host = bench.host().await;
        let Some((path, links)) = over_a_path(bench, &host).await else { return };
        path.cut();
        for mut opened in links {
            ended_by_the_other_side(bench, &opened).await;
            takes_nothing_more(bench, &mut opened).await;
        }
        host.engine.until(bench, "the listener's end of the links", |log| log.sessions == 0).await;
    });
}

/// Within the bound the transport names, and not at once either. Needs [`TransportFixture::path`].
///
/// [`TransportFixture::path`]: super::super::TransportFixture::path
pub fn a_silent_idle_link_is_noticed(fixture: Fixture) {
    run(fixture, "a transport names the time after which an idle link is known to be dead", async |bench| {
        let Some(silence_max) = bench.can.silence_max else { return };
        let host = bench.host().await;
        let Some((path, links)) = over_a_path(bench, &host).await else { return };
        let since = Instant::now();
        path.black_hole();
        for opened in &links {
            ended_by_the_other_side(bench, opened).await;
        }
        let took = since.elapsed();
        bench.hold(took <= silence_max, format_args!("it took {took:?}, not {silence_max:?}"));
    });
}

/// Again and again.
pub fn after_a_restart_the_same_address_works(fixture: Fixture) {
    run(
        fixture,
        "the address of a listener that was shut down is free, and links can be made again",
        async |bench| {
            let mut host = bench.host().await;
            for round in 0..3 {
                let opened = bench.open(&host, Lane::Append).await;
                host.shut_down(bench).await;
                ended_by_the_other_side(bench, &opened).await;
                host = Host::listen(bench, host.node, &host.address).await;
                let mut again = bench.within("a link after a restart", reconnect(bench, &host)).await;
                bench.dispatch(&mut again, numbered(round, 10)).await;
                host.engine
                    .until(bench, "a delivery after a restart", |log| log.count(Lane::Append) == 1)
                    .await;
            }
        },
    );
}

/// Over links that come and go under a sender that never sends anything twice.
pub fn a_batch_is_never_delivered_twice(fixture: Fixture) {
    run(fixture, "a transport retries nothing", async |bench| {
        let host = bench.host().await;
        let mut index = 0;
        for round in 0..4 {
            let mut opened = bench.within("a link", reconnect(bench, &host)).await;
            for _ in 0..20 {
                bench.dispatch(&mut opened, numbered(index, 5_000)).await;
                index += 1;
            }
            // Two links in a row that deliver all they took: what the first delivered and the second sends again arrives
            // before the second's own. One that is dropped with batches under way could lose it.
            if round != 2 {
                let last = index - 1;
                let what = "the delivery of all a link took";
                host.engine.until(bench, what, |log| log.indexes(Lane::Append).contains(&last)).await;
            }
            // Whatever is still under way is lost or arrives, once.
            drop(opened);
        }
        host.engine.until(bench, "the end of the sessions", |log| log.sessions == 0).await;
        let mut came = host.engine.look(|log| log.indexes(Lane::Append));
        let count = came.len();
        came.sort_unstable();
        came.dedup();
        bench.equal("messages that arrived once", &came.len(), &count);
    });
}
