//! Every way a link ends, and what it reports then.

use super::handshake::reconnect;
use super::*;

/// One link of each lane.
async fn both(case: &TransportCase, host: &ListeningNode) -> Vec<Opened> {
    vec![case.open(host, Lane::Control).await, case.open(host, Lane::Append).await]
}

/// Checks that a link reports an end by its peer or a break.
async fn ended_by_the_other_side(case: &TransportCase, opened: &Opened) {
    match case.closed(&opened.log).await {
        LinkClosed::ByPeer { .. } | LinkClosed::Broken { .. } => {}
        other => case.fail(format_args!("the cause is {other:?}, although the listening side ended it")),
    }
}

/// A dispatch on a dead link fails, at the latest once flow control is full.
async fn takes_nothing_more(case: &TransportCase, opened: &mut Opened) {
    let failing = async { while opened.link.dispatch(batch(9, 1 << 10)).await.is_ok() {} };
    case.within("the failure of a dispatch on a dead link", failing).await;
}

pub(in super::super) async fn a_dropped_link_closes_once_and_ends_the_session(
    case: &TransportCase,
    host: ListeningNode,
) {
    for opened in both(case, &host).await {
        drop(opened.link);
        let cause = case.closed(&opened.log).await;
        case.equal("the cause", &cause, &LinkClosed::Abandoned);
    }
    host.until(case, "the end of the sessions", |log| log.sessions == 0).await;
}

/// While a sender goes on: no batch is delivered after `shutdown` returned.
pub(in super::super) async fn shutdown_of_a_listener_ends_every_link(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    let mut links = both(case, &host).await;
    let mut sender = links.pop().unwrap();
    let sending = tokio::spawn(async move {
        let mut index = 0;
        while sender.link.dispatch(batch(index, 100)).await.is_ok() {
            index += 1;
            tokio::task::yield_now().await;
        }
        sender
    });
    host.until(case, "a delivery", |log| !log.delivered.is_empty()).await;
    host.shut_down(case).await;
    let delivered = host.inbound.look(|log| log.delivered.len());
    let sender = case.join("the failure of a dispatch after shutdown", sending).await;
    for opened in &links {
        ended_by_the_other_side(case, opened).await;
    }
    // Its own failure may have been first.
    case.closed(&sender.log).await;
    let after = host.inbound.look(|log| (log.delivered.len(), log.sessions));
    case.equal("deliveries and sessions after shutdown", &after, &(delivered, 0));
}

/// Without `shutdown`.
pub(in super::super) async fn a_dropped_listener_ends_every_link(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    let mut links = both(case, &host).await;
    host.drop_listener();
    for opened in &mut links {
        ended_by_the_other_side(case, opened).await;
        takes_nothing_more(case, opened).await;
    }
    host.until(case, "the end of the sessions", |log| log.sessions == 0).await;
    let refused = async { while case.connect(&host, Lane::Append).await.0.is_ok() {} };
    case.within("the failure of a connect to a dropped listener", refused).await;
}

/// The sender is idle, so only the feedback can report that its last batches are lost.
pub(in super::super) async fn a_link_with_batches_in_flight_reports_its_end(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    let mut opened = case.open(&host, Lane::Append).await;
    for index in 0..2 {
        case.dispatch(&mut opened, batch(index, 100)).await;
    }
    host.drop_listener();
    ended_by_the_other_side(case, &opened).await;
}

/// The other lane of the same peer stays open.
pub(in super::super) async fn a_violation_closes_one_lane_with_its_reason(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.on_deliver(|lane, _| match lane {
        Lane::Append => Err(Violation { detail: "five hundred".into() }),
        Lane::Control => Ok(Vec::new()),
    });
    let mut control = case.open(&host, Lane::Control).await;
    let mut opened = case.open(&host, Lane::Append).await;
    case.dispatch(&mut opened, batch(1, 10)).await;
    match case.closed(&opened.log).await {
        LinkClosed::ByPeer { detail } if detail.contains("five hundred") => {}
        other => case.fail(format_args!("the cause is {other:?}, not the violation")),
    }
    takes_nothing_more(case, &mut opened).await;
    case.dispatch(&mut control, heartbeat(1)).await;
    host.until(case, "a delivery on the other lane", |log| log.count(Lane::Control) == 1).await;
    case.hold(!control.log.is_closed(), "the other lane closed too");
    host.until(case, "the end of the session", |log| log.sessions == 1).await;
}

/// Nothing may follow a batch that was cut in the middle.
pub(in super::super) async fn a_dropped_dispatch_ends_the_link(case: &TransportCase, host: ListeningNode) {
    host.inbound.append_gate.shut();
    let mut opened = case.open(&host, Lane::Append).await;
    let mut index = 0;
    let filled = async {
        // The timeout drops the future of the first dispatch that waits.
        while let Ok(dispatched) = timeout(NOT_YET, opened.link.dispatch(batch(index, 64 << 10))).await {
            case.hold(dispatched.is_ok(), "a dispatch on a healthy link fails");
            index += 1;
        }
    };
    case.within("the first dispatch that waits", filled).await;
    let after = case.within("a dispatch after a dropped one", opened.link.dispatch(batch(999_999, 10)));
    case.hold(after.await.is_err(), "the link goes on after a dispatch was dropped");
    drop(opened.link);
    case.closed(&opened.log).await;
    host.inbound.append_gate.open();
    host.until(case, "the end of the session", |log| log.sessions == 0).await;
    let came = host.inbound.look(|log| log.indexes(Lane::Append));
    let prefix = came.iter().copied().eq(0..came.len() as u64) && came.len() as u64 <= index + 1;
    case.hold(prefix, format_args!("{came:?} arrived"));
}

/// `connect` owns the feedback from the call on, also when no link results.
pub(in super::super) async fn a_failed_connect_closes_once(case: &TransportCase, host: ListeningNode) {
    host.inbound.on_admit(|_, _| Err(Refusal::ShuttingDown));
    let (answer, log) = case.connect(&host, Lane::Append).await;
    case.hold(answer.is_err(), "a refused dialler is admitted");
    case.closed(&log).await;
}

/// The listener has not answered yet when the future is dropped.
pub(in super::super) async fn a_dropped_connect_closes_once_and_leaves_nothing(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.admit_gate.shut();
    let (task, log) = case.dial(&host, Lane::Append);
    host.until(case, "the call of `admit`", |log| !log.asked.is_empty()).await;
    task.abort();
    case.within("the end of the task", task).await.ok();
    host.inbound.admit_gate.open();
    case.closed(&log).await;
    let what = "the end of the abandoned session";
    host.until(case, what, |log| log.sessions == 0).await;
    case.open(&host, Lane::Append).await;
}

/// A path to the host, and one link of each lane over it.
async fn over_a_path(case: &TransportCase, host: &ListeningNode) -> Option<(Box<dyn Path>, Vec<Opened>)> {
    let path = case.within("a path", case.fixture.path(&host.address)).await?;
    let mut links = Vec::new();
    for lane in Lane::ALL {
        let to = Peer { id: host.node, address: path.address() };
        let mut opened = case.open_as(host.hello(1), to, lane).await;
        case.dispatch(&mut opened, heartbeat(1)).await;
        host.until(case, "a delivery over the path", |log| log.count(lane) == 1).await;
        links.push(opened);
    }
    Some((path, links))
}

/// Needs `TransportFixture::path`.
pub(in super::super) async fn a_cut_idle_link_is_noticed(case: &TransportCase, host: ListeningNode) {
    let Some((path, links)) = over_a_path(case, &host).await else { return };
    path.cut();
    for mut opened in links {
        ended_by_the_other_side(case, &opened).await;
        takes_nothing_more(case, &mut opened).await;
    }
    host.until(case, "the listener's end of the links", |log| log.sessions == 0).await;
}

/// Within `silence_max`. Needs `TransportFixture::path`.
pub(in super::super) async fn a_silent_idle_link_is_noticed(case: &TransportCase) {
    let Some(silence_max) = case.can.silence_max else { return };
    let host = case.host_of(2).await;
    let Some((path, links)) = over_a_path(case, &host).await else { return };
    let since = Instant::now();
    path.black_hole();
    for opened in &links {
        ended_by_the_other_side(case, opened).await;
    }
    let took = since.elapsed();
    case.hold(took <= silence_max, format_args!("it took {took:?}, not {silence_max:?}"));
}

pub(in super::super) async fn a_restarted_listener_reuses_its_address(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    for round in 0..3 {
        let opened = case.open(&host, Lane::Append).await;
        host.shut_down(case).await;
        ended_by_the_other_side(case, &opened).await;
        host = ListeningNode::listen(case, host.node, &host.address).await;
        let mut again = case.within("a link after a restart", reconnect(case, &host)).await;
        case.dispatch(&mut again, batch(round, 10)).await;
        host.until(case, "a delivery after a restart", |log| log.count(Lane::Append) == 1).await;
    }
}

/// Over links that open and end under a sender that never repeats a batch.
pub(in super::super) async fn a_batch_is_never_delivered_twice(case: &TransportCase, host: ListeningNode) {
    let mut index = 0;
    for round in 0..4 {
        let mut opened = case.within("a link", reconnect(case, &host)).await;
        for _ in 0..20 {
            case.dispatch(&mut opened, batch(index, 5_000)).await;
            index += 1;
        }
        // After a link that delivered everything, a repeated batch would arrive before those of the next link.
        // After a link that was dropped with batches in flight, a repeated batch could be the first delivery.
        if round != 2 {
            let last = index - 1;
            let what = "the delivery of every batch that a link took";
            host.until(case, what, |log| log.indexes(Lane::Append).contains(&last)).await;
        }
        drop(opened);
    }
    host.until(case, "the end of the sessions", |log| log.sessions == 0).await;
    let mut came = host.inbound.look(|log| log.indexes(Lane::Append));
    let count = came.len();
    came.sort_unstable();
    came.dedup();
    case.equal("messages that arrived once", &came.len(), &count);
}
