//! What one peer or stranger may cost a gRPC or QUIC listener: connections of one peer, handshakes a second.

use crate::common::*;
use crate::wires::{AUTHORITY, Bounds, First, Listening, Wire, connect, of_node};

/// Dials from a node on a connection of its own.
async fn dial(wire: Wire, listening: &Listening, from: u64) -> (Result<Connected, ConnectError>, LinkLog) {
    let transport = wire.transport(&Bounds::default(), of_node(from));
    connect(&*transport, &listening.peer(), Lane::Control, &hello(from, 2)).await
}

/// Waits until the listener has refused `count` connections, all of them for this cause.
async fn refused(wire: Wire, listening: &Listening, count: usize, cause: Refusal) {
    until("the refusals", || listening.inbound.look(|log| log.refused.len() >= count)).await;
    let refused = listening.inbound.look(|log| log.refused.clone());
    assert_eq!(refused, vec![cause; count], "{wire:?}");
}

/// Six connections of one node that send nothing. Returns once the listener has cut four of them.
async fn six_silent(wire: Wire, listening: &Listening, node: u64) -> Vec<tokio::task::JoinHandle<()>> {
    let (at, cert) = (listening.at(), AUTHORITY.issue(node_id(node)).unwrap());
    let silent: Vec<_> = (0..6)
        .map(|_| {
            let cert = cert.clone();
            tokio::spawn(async move { drop(wire.say(at, Some(&cert), First::Silence).await) })
        })
        .collect();
    refused(wire, listening, 4, Refusal::TooManyConnections).await;
    until("four ends", || silent.iter().filter(|task| task.is_finished()).count() == 4).await;
    silent
}

async fn says(listening: &Listening, connected: &mut Connected, from: u64, index: u64) {
    let mut message = Message::new(MessageKind::Append, node_id(from), node_id(2));
    (message.term, message.index) = (1, index);
    let batch = Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] };
    within(connected.link.dispatch(batch.clone())).await.unwrap();
    within(listening.inbound.until(|log| log.delivered.iter().any(|delivered| delivered.batch == batch)))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_connections_of_a_peer_replace_older_ones() {
    for wire in Wire::BOTH {
        let max = 3;
        let listening = Listening::start(wire, &Bounds { per_peer_max: max, ..Bounds::default() }).await;
        let (other, other_log) = dial(wire, &listening, 3).await;
        let mut other = other.unwrap();
        let mut open = Vec::new();
        for n in 1..=8_usize {
            let (connected, log) = dial(wire, &listening, 1).await;
            open.push((connected.unwrap(), log));
            let lost = n.saturating_sub(max);
            until(&format!("{wire:?}: the oldest of {n} connections to go"), || {
                open[..lost].iter().all(|(_, log)| !log.causes().is_empty())
            })
            .await;
            assert!(open[lost..].iter().all(|(_, log)| log.causes().is_empty()), "{wire:?}: of {n}");
            refused(wire, &listening, lost, Refusal::Displaced).await;
        }
        for (_, log) in &open[..5] {
            let closed = within(log.closed()).await;
            let named = matches!(&closed, LinkClosed::ByPeer { detail } if detail.contains("newer"));
            assert!(named, "{wire:?}: {closed:?}");
        }
        // The newest connections work, and other peers keep theirs.
        for (index, (connected, _)) in (10..).zip(&mut open[5..]) {
            says(&listening, connected, 1, index).await;
        }
        says(&listening, &mut other, 3, 1).await;
        assert_eq!(other_log.causes(), []);
        within(listening.listener.shutdown()).await;
    }
}

/// A removed node still has its certificate. The bound on its connections holds before any hello is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_leave_room_for_other_peers() {
    for wire in Wire::BOTH {
        let handshake_timeout = Duration::from_secs(10);
        let bounds = Bounds { per_peer_max: 2, connections_max: 8, handshake_timeout, ..Bounds::default() };
        let listening = Listening::start(wire, &bounds).await;
        let silent = six_silent(wire, &listening, 9).await;
        // With all six there would be room for two.
        let mut open = Vec::new();
        for from in [1, 3, 4, 5, 6, 7] {
            open.push(dial(wire, &listening, from).await.0.unwrap());
        }
        silent.iter().for_each(|silent| silent.abort());
    }
}

/// Two machines have one certificate, and one of them is refused and dials again and again. It must not take the connections
/// of the admitted one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_callers_with_the_certificate_of_an_admitted_peer_do_not_replace_its_connection() {
    for wire in Wire::BOTH {
        let handshake_timeout = Duration::from_secs(10);
        let bounds = Bounds { per_peer_max: 2, handshake_timeout, ..Bounds::default() };
        let listening = Listening::start(wire, &bounds).await;
        let (good, log) = dial(wire, &listening, 1).await;
        let mut good = good.unwrap();
        let silent = six_silent(wire, &listening, 1).await;
        assert_eq!(log.causes(), [], "{wire:?}");
        says(&listening, &mut good, 1, 1).await;
        silent.iter().for_each(|silent| silent.abort());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_beyond_the_rate_are_refused_and_counted() {
    for wire in Wire::BOTH {
        let per_second_max = 5;
        let listening = Listening::start(wire, &Bounds { per_second_max, ..Bounds::default() }).await;
        let (started, mut admitted, mut cut) = (Instant::now(), 0_u32, 0_usize);
        for from in 3..33 {
            match dial(wire, &listening, from).await.0 {
                Ok(_) => admitted += 1,
                Err(ConnectError::Refused(Refusal::TooManyConnections)) if wire == Wire::Quic => cut += 1,
                // gRPC sends no cause: that would cost the TLS handshake that the bound saves.
                Err(ConnectError::Unreachable { .. }) if wire == Wire::Grpc => cut += 1,
                Err(error) => panic!("{wire:?}: {error:?}"),
            }
        }
        // A burst for one second, and what the rate allowed since.
        let due = started.elapsed().as_secs_f64() * f64::from(per_second_max);
        let most = f64::from(per_second_max) + due + 1.0;
        assert!(admitted >= per_second_max && f64::from(admitted) <= most, "{wire:?}: {admitted} of {due}");
        assert!(cut > 0, "{wire:?}");
        refused(wire, &listening, cut, Refusal::TooManyConnections).await;
    }
}
