//! What gRPC and QUIC both promise beyond the suite, whose fixtures cannot send raw frames or hold nacks back.

use crate::common::*;
use crate::wires::{Bounds, Listening, Wire, of_node};
use towline_wire::{frames, hello_frame, pb};

async fn start(wire: Wire) -> Listening {
    Listening::start(wire, &Bounds::default()).await
}

#[tokio::test]
async fn an_oversized_frame_closes_the_lane_with_its_cause() {
    for wire in Wire::BOTH {
        let listening = start(wire).await;
        let mut lane = wire.raw_lane(listening.at()).await;
        lane.say(&hello_frame(&hello(1, 2), Lane::Append)).await;
        assert!(matches!(lane.hear().await.unwrap().kind, Some(pb::frame::Kind::Welcome(_))));
        lane.say_oversized().await;
        let refusal = lane.refused().await;
        let above = matches!(&refusal, Refusal::Malformed { detail } if detail.contains("above the limit"));
        assert!(above, "{wire:?}: {refusal}");
        assert!(lane.hear().await.is_none());
    }
}

#[tokio::test]
async fn a_message_no_peer_may_send_costs_its_group_a_nack_and_not_the_lane() {
    for wire in Wire::BOTH {
        let listening = start(wire).await;
        let mut lane = wire.raw_lane(listening.at()).await;
        lane.say(&hello_frame(&hello(1, 2), Lane::Append)).await;
        lane.hear().await.unwrap();
        let good = frames(batch(1, 0)).unwrap().next().unwrap();
        let mut proposal = good.clone();
        if let Some(pb::frame::Kind::Batch(batch)) = &mut proposal.kind {
            batch.envelopes[0].message.as_mut().unwrap().msg_type = pb::MessageType::Propose.into();
        }
        lane.say(&proposal).await;
        lane.say(&good).await;
        let nack = pb::Nack { group: 1, cause: pb::NackCause::Rejected.into(), ..pb::Nack::default() };
        let expected = pb::frame::Kind::Nacks(pb::Nacks { nacks: vec![nack] });
        assert_eq!(lane.hear().await.unwrap().kind, Some(expected), "{wire:?}");
        assert_eq!(listening.arrived().await, (Lane::Append, batch(1, 0)), "{wire:?}");
    }
}

/// The transports added each time to the time of now, which panicked.
#[tokio::test]
async fn the_longest_settings_do_not_overflow() {
    for wire in Wire::BOTH {
        let never = Bounds {
            keepalive_interval: Duration::MAX,
            idle_timeout: Duration::MAX,
            handshake_timeout: Duration::MAX,
            ..Bounds::default()
        };
        let listening = Listening::start(wire, &never).await;
        let dialler = wire.transport(&never, of_node(1));
        let (mut link, log) = listening.link(&*dialler, Lane::Append).await;
        for index in 0..3 {
            within(link.dispatch(batch(index, 100))).await.unwrap();
            assert_eq!(listening.arrived().await, (Lane::Append, batch(index, 100)), "{wire:?}");
        }
        assert_eq!(log.causes(), [], "{wire:?}");
    }
}

#[tokio::test]
async fn a_dropped_link_leaves_the_other_links_of_its_transport_open() {
    for wire in Wire::BOTH {
        let (listening, dialler) = (start(wire).await, wire.transport(&Bounds::default(), of_node(1)));
        let (dropped, dropped_log) = listening.link(&*dialler, Lane::Control).await;
        let (mut kept, kept_log) = listening.link(&*dialler, Lane::Append).await;
        drop(dropped);
        assert_eq!(within(dropped_log.closed()).await, LinkClosed::Abandoned);
        within(kept.dispatch(batch(1, 0))).await.unwrap();
        listening.arrived().await;
        assert_eq!(kept_log.causes(), [], "{wire:?}");
    }
}

#[tokio::test]
async fn a_link_reports_that_its_peer_shut_down() {
    for wire in Wire::BOTH {
        let (listening, dialler) = (start(wire).await, wire.transport(&Bounds::default(), of_node(1)));
        let (_link, log) = listening.link(&*dialler, Lane::Append).await;
        within(listening.listener.shutdown()).await;
        let LinkClosed::ByPeer { detail } = within(log.closed()).await else { panic!("{wire:?}: {log:?}") };
        assert!(wire == Wire::Grpc || detail == Refusal::ShuttingDown.to_string(), "{wire:?}: {detail}");
    }
}

#[tokio::test]
async fn the_newest_streams_of_a_lane_replace_older_ones() {
    for wire in Wire::BOTH {
        let bounds = Bounds { streams_per_lane_max: 2, ..Bounds::default() };
        let listening = Listening::start(wire, &bounds).await;
        let dialler = wire.transport(&bounds, of_node(1));
        let (_first, oldest) = listening.link(&*dialler, Lane::Append).await;
        let (_second, _) = listening.link(&*dialler, Lane::Append).await;
        let (mut third, newest) = listening.link(&*dialler, Lane::Append).await;
        let closed = within(oldest.closed()).await;
        assert!(matches!(closed, LinkClosed::ByPeer { .. }), "{wire:?}: {closed:?}");
        within(third.dispatch(batch(1, 0))).await.unwrap();
        listening.arrived().await;
        assert_eq!(newest.causes(), [], "{wire:?}");
    }
}

/// Nacks must not queue without bound for a dialler that does not read them, nor be lost without a trace.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nacks_a_dialler_does_not_read_are_dropped_and_counted() {
    const GROUPS: usize = 2_000;
    for wire in Wire::BOTH {
        let listening = start(wire).await;
        let nack = |group| Nack { group: GroupId::new(group), cause: NackCause::InboxFull };
        let nacks: Vec<_> = (0..GROUPS as u64).map(nack).collect();
        listening.inbound.on_deliver(move |_, _| Ok(nacks.clone()));
        let dialler = wire.transport(&Bounds::default(), of_node(1));
        let (mut link, log) = listening.link(&*dialler, Lane::Append).await;
        log.nack_gate.shut();
        let dropped = || listening.inbound.look(|log| log.nacks_dropped);
        let mut index = 0;
        while dropped() == 0 {
            within(link.dispatch(batch(index, 0))).await.unwrap();
            assert_eq!(listening.arrived().await, (Lane::Append, batch(index, 0)), "{wire:?}");
            index += 1;
        }
        until("the first nack", || !log.nacks().is_empty()).await;
        assert_eq!(log.nacks().len(), 1, "the dialler is held at its first nack");
        assert_eq!(dropped() % GROUPS, 0, "{wire:?}: whole frames");
        log.nack_gate.open();
    }
}
