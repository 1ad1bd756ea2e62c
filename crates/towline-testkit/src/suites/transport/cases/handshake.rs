//! Who may come in, and what those who may not are told.

use towline_engine::message::Lane;
use towline_engine::transport::{
    CertIdentity, ConnectError, PROTOCOL_VERSION, Peer, Refusal, TransportError,
};

use super::super::bench::{Bench, chain, hello, node, numbered, run};
use super::super::engine::{Host, welcome};
use super::Fixture;

/// The listening engine gets the hello as it was sent, and the dialler the welcome.
pub fn both_sides_learn_who_the_other_is(fixture: Fixture) {
    run(fixture, "`connect` gives who answered, and `admit` gets the dialler's hello", async |bench| {
        let host = bench.host().await;
        for lane in Lane::ALL {
            let opened = bench.open(&host, lane).await;
            bench.equal("the welcome", &opened.welcome, &welcome(host.node));
        }
        let hellos: Vec<_> = host.engine.look(|log| log.asked.iter().map(|(h, _)| h.clone()).collect());
        bench.equal("what the listener was asked", &hellos, &vec![hello(1, host.node); 2]);
    });
}

/// One of each.
fn refusals() -> Vec<Refusal> {
    let detail = || "the reason, ä".to_owned();
    vec![
        Refusal::WrongCluster { ours: "other".into() },
        Refusal::WrongNode { ours: 9 },
        Refusal::UnknownPeer { peer: 1 },
        Refusal::WrongIncarnation { peer: 1 },
        Refusal::Version { ours: 7, theirs: PROTOCOL_VERSION },
        Refusal::Unauthenticated { detail: detail() },
        Refusal::Malformed { detail: detail() },
        Refusal::TooManyConnections,
        Refusal::HandshakeTimeout,
        Refusal::ShuttingDown,
    ]
}

/// Each with its fields, on both lanes; the engine is not told of its own refusal again.
pub fn every_refusal_reaches_the_dialler_as_itself(fixture: Fixture) {
    run(fixture, "a `Refusal` of `admit` is sent to the dialler, with its fields", async |bench| {
        let host = bench.host().await;
        for (count, refusal) in refusals().into_iter().enumerate() {
            let ours = refusal.clone();
            host.engine.admits(move |_, _| Err(ours.clone()));
            let (answer, _ear) = bench.connect(&host, Lane::ALL[count % 2]).await;
            refused(bench, answer, &refusal);
            // Only once the listener has let go of the connection could it still tell of it.
            let seen = host.engine.look(|log| log.refused.clone());
            bench.equal("what the engine refused", &seen, &refusals()[..=count].to_vec());
        }
        host.engine.admits(|_, _| Ok(()));
        bench.open(&host, Lane::Control).await;
        let seen = host.engine.look(|log| (log.refused.len(), log.delivered.len()));
        bench.equal("refusals and deliveries", &seen, &(refusals().len(), 0));
    });
}

fn refused<T>(bench: &Bench, answer: Result<T, ConnectError>, should: &Refusal) {
    match answer {
        Err(ConnectError::Refused(refusal)) => bench.equal("the refusal", &refusal, should),
        Err(error) => bench.fail(format_args!("`{should}` arrived as {}", chain(&error))),
        Ok(_) => bench.fail(format_args!("a dialler that was refused (`{should}`) is let in")),
    }
}

/// Whether the transport looks at the version itself or leaves it to the engine.
pub fn another_protocol_version_is_refused_on_both_sides(fixture: Fixture) {
    run(fixture, "a peer with another `PROTOCOL_VERSION` is refused in the handshake", async |bench| {
        let host = bench.host().await;
        for theirs in [PROTOCOL_VERSION + 1, u32::MAX] {
            let said = towline_engine::transport::Hello { protocol: theirs, ..hello(1, host.node) };
            let (task, _ear) = bench.dial_as(said, host.peer(), Lane::Append);
            let answer = bench.join("an answer to another version", task).await;
            let refusal = Refusal::Version { ours: PROTOCOL_VERSION, theirs };
            refused(bench, answer, &refusal);
            let what = "the listener's word of the other version";
            host.engine.until(bench, what, |log| log.refused.contains(&refusal)).await;
        }
    });
}

/// Not before, or nobody would be refused.
pub fn connect_returns_only_once_the_peer_has_answered(fixture: Fixture) {
    run(fixture, "`connect` returns once the peer has answered the handshake", async |bench| {
        let host = bench.host().await;
        host.engine.admit.shut();
        let (mut task, _ear) = bench.dial(&host, Lane::Append);
        host.engine.until(bench, "the question to the listener", |log| !log.asked.is_empty()).await;
        bench.not_yet("`connect` returned while the peer had not answered", &mut task).await;
        host.engine.admit.open();
        if let Err(error) = bench.join("an answer to connect", task).await {
            bench.fail(format_args!("the dialler that was let in gets {}", chain(&error)));
        }
    });
}

/// A second dialler never gets in on the first one's session.
pub fn every_connection_is_admitted_for_itself(fixture: Fixture) {
    run(
        fixture,
        "nobody's frames reach `deliver` before `admit` accepted that peer's hello",
        async |bench| {
            let host = bench.host().await;
            host.engine.admits(|hello, _| match hello.from.as_u64() {
                1 => Ok(()),
                peer => Err(Refusal::UnknownPeer { peer }),
            });
            let mut first = bench.open(&host, Lane::Append).await;
            let (task, _ear) = bench.dial_as(hello(3, host.node), host.peer(), Lane::Append);
            let answer = bench.join("an answer to a stranger", task).await;
            refused(bench, answer, &Refusal::UnknownPeer { peer: 3 });
            bench.dispatch(&mut first, numbered(1, 10)).await;
            host.engine
                .until(bench, "the delivery of a member's batch", |log| log.delivered.len() == 1)
                .await;
            // A member that is a member no longer is asked again when it calls again.
            host.engine.admits(|hello, _| Err(Refusal::UnknownPeer { peer: hello.from.as_u64() }));
            let (answer, _ear) = bench.connect(&host, Lane::Append).await;
            refused(bench, answer, &Refusal::UnknownPeer { peer: 1 });
            bench.equal("how often `admit` was asked", &host.engine.look(|log| log.asked.len()), &3);
        },
    );
}

/// An address that leads to another machine.
pub fn another_node_than_expected_is_the_wrong_peer(fixture: Fixture) {
    run(fixture, "`connect` gives `WrongPeer` if another node answered than was expected", async |bench| {
        let host = bench.host_of(3).await;
        let to = Peer { id: node(2), address: host.address.clone() };
        let (task, ear) = bench.dial_as(hello(1, node(2)), to, Lane::Control);
        match bench.join("an answer to connect", task).await {
            Err(ConnectError::WrongPeer { .. }) => {}
            Err(error) => bench.fail(format_args!("it gives {}", chain(&error))),
            Ok(_) => bench.fail("node 3 passes for node 2"),
        }
        ear.closed(bench).await;
    });
}

/// The address of a listener that is gone.
pub fn nobody_there_is_unreachable(fixture: Fixture) {
    run(fixture, "`connect` gives `Unreachable` if nobody answered", async |bench| {
        let mut host = bench.host().await;
        host.shut_down(bench).await;
        match bench.connect(&host, Lane::Append).await {
            (Err(ConnectError::Unreachable { address, .. }), ear) => {
                bench.equal("the address in the error", &address, &host.address);
                ear.closed(bench).await;
            }
            (Err(error), _) => bench.fail(format_args!("it gives {}", chain(&error))),
            (Ok(_), _) => bench.fail("somebody answered for a listener that is gone"),
        }
    });
}

/// Two listeners at one address.
pub fn an_address_in_use_is_named(fixture: Fixture) {
    run(fixture, "`listen` gives `Bind` with the address if it is in use", async |bench| {
        let host = bench.host().await;
        let inbound = bench.host_of(3).await.engine.inbound();
        let transport = bench.transport(node(3));
        match bench.within("listen", transport.listen(&host.address, inbound)).await {
            Err(TransportError::Bind { address, .. }) => {
                bench.equal("the address in the error", &address, &host.address);
            }
            Err(error) => bench.fail(format_args!("it gives {}", chain(&error))),
            Ok(_) => bench.fail("two listeners have one address"),
        }
        bench.open(&host, Lane::Append).await;
    });
}

/// With authentication `admit` gets the certificate's node, which need not be the one in the hello; without, none.
pub fn a_proven_identity_reaches_the_engine(fixture: Fixture) {
    run(
        fixture,
        "`cert` is what the dialler's certificate says, where the transport checked one",
        async |bench| {
            let host = bench.host().await;
            bench.open(&host, Lane::Append).await;
            let proven = bench.can.authenticates;
            let should = proven.then(|| CertIdentity { node: node(1) });
            let cert = host.engine.look(|log| log.asked[0].1.clone());
            bench.equal("the certificate", &cert, &should);
            if !proven {
                return;
            }
            // Node 3 says that it is node 1: the engine must be able to see that.
            host.engine.admits(|hello, cert| match cert {
                Some(cert) if cert.node == hello.from => Ok(()),
                _ => Err(Refusal::Unauthenticated { detail: "impostor".into() }),
            });
            let (ear, feedback) = super::super::engine::Ear::new();
            let impostor = bench.transport(node(3));
            let (said, to) = (hello(1, host.node), host.peer());
            let dialling = impostor.connect(&to, Lane::Append, &said, feedback);
            let answer = bench.within("an answer to an impostor", dialling).await;
            refused(bench, answer, &Refusal::Unauthenticated { detail: "impostor".into() });
            ear.closed(bench).await;
        },
    );
}

/// Room that a listener may have for diallers which are only there to hear that they are too many.
const SURPLUS_MAX: usize = 64;

/// More diallers than there is room for, each another node; one that goes makes room.
pub fn connections_are_bounded_and_the_one_too_many_is_told(fixture: Fixture) {
    run(fixture, "a node has as many connections as it allows, and says so to the next", async |bench| {
        let host = bench.host().await;
        let max = bench.can.connections_max;
        let mut open = Vec::new();
        let told = loop {
            let from = open.len() as u64 + 10;
            bench.hold(open.len() < max + SURPLUS_MAX, format_args!("{} connections are open", open.len()));
            let (task, _ear) = bench.dial_as(hello(from, host.node), host.peer(), Lane::Append);
            match bench.join("an answer to connect", task).await {
                Ok(connected) => open.push(connected),
                Err(error) => break error,
            }
        };
        bench.hold(open.len() <= max, format_args!("{} connections are open, not {max}", open.len()));
        refused::<()>(bench, Err(told), &Refusal::TooManyConnections);
        let what = "the listener's word of the dialler too many";
        host.engine.until(bench, what, |log| log.refused.contains(&Refusal::TooManyConnections)).await;
        drop(open);
        bench.within("room for a dialler after others have gone", reconnect(bench, &host)).await;
    });
}

/// Dials until it is let in. The caller bounds the time.
pub(super) async fn reconnect(bench: &Bench, host: &Host) -> super::super::bench::Opened {
    loop {
        if let (Ok(connected), ear) = bench.connect(host, Lane::Append).await {
            let towline_engine::transport::Connected { link, welcome } = connected;
            return super::super::bench::Opened { link, ear, welcome };
        }
        // not synchronisation: between two attempts of the loop
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Both lanes of four nodes, all at the same moment.
pub fn diallers_at_once_all_come_in(fixture: Fixture) {
    run(fixture, "a session is the peer that passed the handshake", async |bench| {
        let host = bench.host().await;
        let mut tasks = Vec::new();
        for from in 10..14 {
            for lane in Lane::ALL {
                tasks.push((from, lane, bench.dial_as(hello(from, host.node), host.peer(), lane)));
            }
        }
        for (from, lane, (task, _ear)) in tasks {
            let connected = bench.join("an answer to one of many diallers", task).await;
            let mut link = match connected {
                Ok(connected) => connected.link,
                Err(error) => bench.fail(format_args!("one of many diallers gets {}", chain(&error))),
            };
            let dispatched = bench.within("a dispatch", link.dispatch(numbered(from, 10))).await;
            bench.hold(dispatched.is_ok(), "a dispatch of one of many diallers fails");
            let arrived = |log: &super::super::engine::Log| {
                let mut of_lane = log.delivered.iter().filter(|d| d.lane == lane && d.peer == node(from));
                of_lane.any(|d| d.batch == numbered(from, 10))
            };
            host.engine.until(bench, format_args!("the batch of node {from} on {lane:?}"), arrived).await;
        }
        bench.equal("batches delivered", &host.engine.look(|log| log.delivered.len()), &8);
    });
}
