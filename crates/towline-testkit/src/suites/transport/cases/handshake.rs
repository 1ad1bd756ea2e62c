//! Which diallers are admitted, and what the others get.

use towline_engine::transport::{CertIdentity, PROTOCOL_VERSION, TransportError};

use super::*;

pub(in super::super) async fn both_sides_get_the_identity_of_the_other(
    case: &TransportCase,
    host: ListeningNode,
) {
    for lane in Lane::ALL {
        let opened = case.open(&host, lane).await;
        case.equal("the welcome", &opened.welcome, &host.inbound.welcome());
    }
    let hellos: Vec<_> = host.inbound.look(|log| log.asked.iter().map(|(h, _)| h.clone()).collect());
    case.equal("what the listener was asked", &hellos, &vec![host.hello(1); 2]);
}

/// One of each kind.
fn refusals() -> Vec<Refusal> {
    let detail = || "the reason, ä".to_owned();
    vec![
        Refusal::WrongCluster { ours: "other".into() },
        Refusal::WrongNode { ours: 9 },
        Refusal::UnknownPeer { peer: 1, founded: Vec::new() },
        Refusal::WrongIncarnation { peer: 1 },
        Refusal::Version { ours: 7, theirs: PROTOCOL_VERSION },
        Refusal::Unauthenticated { detail: detail() },
        Refusal::Malformed { detail: detail() },
        Refusal::TooManyConnections,
        Refusal::HandshakeTimeout,
        Refusal::ShuttingDown,
    ]
}

/// On both lanes. The transport must not report the engine's own refusal to `refused` again.
pub(in super::super) async fn every_refusal_reaches_the_dialler_with_its_fields(
    case: &TransportCase,
    host: ListeningNode,
) {
    for (count, refusal) in refusals().into_iter().enumerate() {
        let ours = refusal.clone();
        host.inbound.on_admit(move |_, _| Err(ours.clone()));
        let (answer, _log) = case.connect(&host, Lane::ALL[count % 2]).await;
        refused(case, answer, &refusal);
        let seen = host.inbound.look(|log| Vec::from(log.refused.clone()));
        case.equal("what the engine refused", &seen, &refusals()[..=count].to_vec());
    }
    host.inbound.on_admit(|_, _| Ok(()));
    case.open(&host, Lane::Control).await;
    let seen = host.inbound.look(|log| (log.refused.len(), log.delivered.len()));
    case.equal("refusals and deliveries", &seen, &(refusals().len(), 0));
}

fn refused<T>(case: &TransportCase, answer: Result<T, ConnectError>, should: &Refusal) {
    match answer {
        Err(ConnectError::Refused(refusal)) => case.equal("the refusal", &refusal, should),
        Err(error) => case.fail(format_args!("`{should}` arrived as {}", chain(&error))),
        Ok(_) => case.fail(format_args!("a dialler that was refused (`{should}`) is admitted")),
    }
}

/// The transport may check the version itself or leave it to the engine.
pub(in super::super) async fn another_protocol_version_is_refused_on_both_sides(
    case: &TransportCase,
    host: ListeningNode,
) {
    for theirs in [PROTOCOL_VERSION + 1, u32::MAX] {
        let said = Hello { protocol: theirs, ..host.hello(1) };
        let (task, _log) = case.dial_as(said, host.peer(), Lane::Append);
        let answer = case.join("an answer to another version", task).await;
        let refusal = Refusal::Version { ours: PROTOCOL_VERSION, theirs };
        refused(case, answer, &refusal);
        let what = "the report of the other version";
        host.until(case, what, |log| log.refused.contains(&refusal)).await;
    }
}

pub(in super::super) async fn connect_waits_for_the_answer_of_the_peer(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.admit_gate.shut();
    let (mut task, _log) = case.dial(&host, Lane::Append);
    host.until(case, "the call of `admit`", |log| !log.asked.is_empty()).await;
    case.not_yet("`connect` returned before the peer answered", &mut task).await;
    host.inbound.admit_gate.open();
    if let Err(error) = case.join("an answer to connect", task).await {
        case.fail(format_args!("the admitted dialler gets {}", chain(&error)));
    }
}

/// A second dialler never uses the session of the first.
pub(in super::super) async fn each_connection_is_admitted_separately(
    case: &TransportCase,
    host: ListeningNode,
) {
    host.inbound.on_admit(|hello, _| match hello.from.as_u64() {
        1 => Ok(()),
        peer => Err(Refusal::UnknownPeer { peer, founded: Vec::new() }),
    });
    let mut first = case.open(&host, Lane::Append).await;
    let (task, _log) = case.dial_as(host.hello(3), host.peer(), Lane::Append);
    let answer = case.join("an answer to a stranger", task).await;
    refused(case, answer, &Refusal::UnknownPeer { peer: 3, founded: Vec::new() });
    case.dispatch(&mut first, batch(1, 10)).await;
    host.until(case, "the delivery of a member's batch", |log| log.delivered.len() == 1).await;
    // The engine must be able to refuse a removed member at its next call.
    host.inbound
        .on_admit(|hello, _| Err(Refusal::UnknownPeer { peer: hello.from.as_u64(), founded: Vec::new() }));
    let (answer, _log) = case.connect(&host, Lane::Append).await;
    refused(case, answer, &Refusal::UnknownPeer { peer: 1, founded: Vec::new() });
    case.equal("how often `admit` was asked", &host.inbound.look(|log| log.asked.len()), &3);
}

pub(in super::super) async fn another_node_than_expected_is_a_wrong_peer(case: &TransportCase) {
    let host = case.host_of(3).await;
    let to = Peer { id: node(2), address: host.address.clone() };
    let (task, log) = case.dial_as(hello(1, 2), to, Lane::Control);
    match case.join("an answer to connect", task).await {
        Err(ConnectError::WrongPeer { .. }) => {}
        Err(error) => case.fail(format_args!("it gives {}", chain(&error))),
        Ok(_) => case.fail("node 3 passes for node 2"),
    }
    case.closed(&log).await;
}

pub(in super::super) async fn an_address_without_a_listener_is_unreachable(
    case: &TransportCase,
    mut host: ListeningNode,
) {
    host.shut_down(case).await;
    match case.connect(&host, Lane::Append).await {
        (Err(ConnectError::Unreachable { address, .. }), log) => {
            case.equal("the address in the error", &address, &host.address);
            case.closed(&log).await;
        }
        (Err(error), _) => case.fail(format_args!("it gives {}", chain(&error))),
        (Ok(_), _) => case.fail("a connect succeeds without a listener"),
    }
}

pub(in super::super) async fn listen_reports_an_address_in_use(case: &TransportCase, host: ListeningNode) {
    let inbound = case.host_of(3).await.inbound.inbound();
    let transport = case.transport(node(3));
    match case.within("listen", transport.listen(&host.address, inbound)).await {
        Err(TransportError::Bind { address, .. }) => {
            case.equal("the address in the error", &address, &host.address);
        }
        Err(error) => case.fail(format_args!("it gives {}", chain(&error))),
        Ok(_) => case.fail("two listeners have one address"),
    }
    case.open(&host, Lane::Append).await;
}

/// With authentication, `admit` gets the node of the certificate, which may differ from the hello. Otherwise it gets
/// none.
pub(in super::super) async fn the_certificate_reaches_admit(case: &TransportCase, host: ListeningNode) {
    case.open(&host, Lane::Append).await;
    let proven = case.can.authenticates;
    let should = proven.then(|| CertIdentity { node: node(1) });
    let cert = host.inbound.look(|log| log.asked[0].1.clone());
    case.equal("the certificate", &cert, &should);
    if !proven {
        return;
    }
    // Node 3 claims to be node 1, and the engine must be able to detect it.
    host.inbound.on_admit(|hello, cert| match cert {
        Some(cert) if cert.node == hello.from => Ok(()),
        _ => Err(Refusal::Unauthenticated { detail: "impostor".into() }),
    });
    let (log, feedback) = LinkLog::new();
    let impostor = case.transport(node(3));
    let (said, to) = (host.hello(1), host.peer());
    let dialling = impostor.connect(&to, Lane::Append, &said, feedback);
    let answer = case.within("an answer to an impostor", dialling).await;
    refused(case, answer, &Refusal::Unauthenticated { detail: "impostor".into() });
    case.closed(&log).await;
}

/// Connections above the maximum that a listener may hold to send them a refusal.
const SURPLUS_MAX: usize = 64;

/// Each dialler is another node. A closed connection makes room for the next.
pub(in super::super) async fn connections_are_bounded_and_the_next_dialler_is_refused(
    case: &TransportCase,
    host: ListeningNode,
) {
    let max = case.can.connections_max;
    let mut open = Vec::new();
    let error = loop {
        let from = open.len() as u64 + 10;
        case.hold(open.len() < max + SURPLUS_MAX, format_args!("{} connections are open", open.len()));
        let (task, _log) = case.dial_as(host.hello(from), host.peer(), Lane::Append);
        match case.join("an answer to connect", task).await {
            Ok(connected) => open.push(connected),
            Err(error) => break error,
        }
    };
    case.hold(open.len() <= max, format_args!("{} connections are open, not {max}", open.len()));
    refused::<()>(case, Err(error), &Refusal::TooManyConnections);
    let what = "the report of the refused dialler";
    host.until(case, what, |log| log.refused.contains(&Refusal::TooManyConnections)).await;
    drop(open);
    case.within("room for a dialler after others closed", reconnect(case, &host)).await;
}

/// Dials until it is admitted. The caller bounds the time.
pub(super) async fn reconnect(case: &TransportCase, host: &ListeningNode) -> Opened {
    loop {
        if let (Ok(connected), log) = case.connect(host, Lane::Append).await {
            let Connected { link, welcome } = connected;
            return Opened { link, log, welcome };
        }
        // not synchronisation: interval of the retries
        sleep(Duration::from_millis(20)).await;
    }
}

/// Both lanes of four nodes.
pub(in super::super) async fn simultaneous_diallers_are_all_admitted(
    case: &TransportCase,
    host: ListeningNode,
) {
    let mut tasks = Vec::new();
    for from in 10..14 {
        for lane in Lane::ALL {
            tasks.push((from, lane, case.dial_as(host.hello(from), host.peer(), lane)));
        }
    }
    for (from, lane, (task, _log)) in tasks {
        let connected = case.join("an answer to one of many diallers", task).await;
        let mut link = match connected {
            Ok(connected) => connected.link,
            Err(error) => case.fail(format_args!("one of many diallers gets {}", chain(&error))),
        };
        let dispatched = case.within("a dispatch", link.dispatch(batch(from, 10))).await;
        case.hold(dispatched.is_ok(), "a dispatch of one of many diallers fails");
        let arrived = |log: &InboundLog| {
            let mut of_lane = log.delivered.iter().filter(|d| d.lane == lane && d.peer == node(from));
            of_lane.any(|d| d.batch == batch(from, 10))
        };
        host.until(case, format_args!("the batch of node {from} on {lane:?}"), arrived).await;
    }
    case.equal("batches delivered", &host.inbound.look(|log| log.delivered.len()), &8);
}
