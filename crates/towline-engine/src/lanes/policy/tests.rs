use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::ids::{GroupId, NodeId};
use crate::message::{Message, MessageKind};

fn envelope(group: u64, kind: MessageKind, term: u64, context: &'static str) -> Envelope {
    let (from, to) = (NodeId::new(1).unwrap(), NodeId::new(2).unwrap());
    let mut message = Message::new(kind, from, to);
    message.term = term;
    message.context = Bytes::from_static(context.as_bytes());
    Envelope { group: GroupId::new(group), message }
}

fn beats(queue: &mut ControlQueue) -> Vec<(u64, Bytes)> {
    let batch = queue.take_batch(usize::MAX).unwrap_or_default();
    batch.envelopes.into_iter().map(|e| (e.message.term, e.message.context)).collect()
}

/// A newer heartbeat, or its response, keeps the round that it supersedes, unless it has a round or another term.
#[test]
fn a_superseded_round_stays_in_its_term_and_kind() {
    const BEATS: [MessageKind; 2] = [MessageKind::Heartbeat, MessageKind::HeartbeatResponse];
    for (kinds, older, newer, kept) in [
        (&BEATS[..], (3, "r1"), (3, ""), "r1"),
        (&BEATS[..], (3, "r1"), (3, "r2"), "r2"),
        (&BEATS[..], (3, "r1"), (4, ""), ""),
        (&[MessageKind::RequestVote][..], (4, "CampaignTransfer"), (4, ""), ""),
    ] {
        for &kind in kinds {
            let mut queue = ControlQueue::new(1);
            assert_eq!(queue.push(envelope(1, kind, older.0, older.1), 0), Pushed::Queued);
            assert_eq!(queue.push(envelope(1, kind, newer.0, newer.1), 0), Pushed::Superseded);
            assert_eq!(beats(&mut queue), [(newer.0, Bytes::from_static(kept.as_bytes()))]);
        }
    }
}

#[test]
fn reads_are_never_conflated_and_are_bounded() {
    let mut queue = ControlQueue::new(2);
    let read = |context| envelope(1, MessageKind::ReadIndexResponse, 3, context);
    assert_eq!(queue.push(read("a"), 0), Pushed::Queued);
    assert_eq!(queue.push(read("b"), 0), Pushed::Queued);
    assert_eq!(queue.push(read("c"), 0), Pushed::ReadsFull);
    assert_eq!(beats(&mut queue), [(3, Bytes::from_static(b"a")), (3, Bytes::from_static(b"b"))]);
}

#[test]
fn every_batch_takes_a_read_although_many_groups_send_heartbeats() {
    let mut queue = ControlQueue::new(2);
    for group in 0..100 {
        queue.push(envelope(group, MessageKind::Heartbeat, 1, ""), 0);
    }
    queue.push(envelope(1, MessageKind::ReadIndex, 0, "a"), 0);
    let batch = queue.take_batch(4 * MESSAGE_OVERHEAD_BYTES).unwrap();
    assert!(batch.envelopes.iter().any(|e| e.message.kind == MessageKind::ReadIndex), "{batch:?}");
    assert!(batch.envelopes.len() <= 4);
}

#[test]
fn old_control_messages_expire() {
    let mut queue = ControlQueue::new(2);
    queue.push(envelope(1, MessageKind::Heartbeat, 1, ""), 10);
    queue.push(envelope(1, MessageKind::ReadIndex, 0, "a"), 10);
    queue.push(envelope(2, MessageKind::Heartbeat, 2, ""), 20);
    assert_eq!(queue.expire(20), 2);
    assert_eq!(queue.depth(25), Depth { messages: 1, bytes: MESSAGE_OVERHEAD_BYTES, age_ms: 5 });
    assert_eq!(queue.push(envelope(2, MessageKind::Heartbeat, 3, ""), 30), Pushed::Superseded);
    assert_eq!(beats(&mut queue), [(3, Bytes::new())]);
}

#[test]
fn an_append_queue_is_bounded_in_bytes_yet_takes_a_large_message_alone() {
    let mut queue = AppendQueue::new(10, 2 * MESSAGE_OVERHEAD_BYTES);
    let large = || {
        let mut large = envelope(7, MessageKind::Append, 1, "");
        large.message.context = vec![0; 1_000].into();
        large
    };
    assert_eq!((queue.push(large(), 5), queue.push(large(), 6)), (true, false));
    assert_eq!((queue.depth(9).age_ms, queue.clear()), (4, 1));
    assert_eq!(queue.depth(9), Depth::default());
}

#[test]
fn backoff_doubles_within_its_bounds_and_starts_over() {
    let (min, max) = (Duration::from_millis(20), Duration::from_millis(400));
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut backoff = Backoff::new(min, max);
        let waits: Vec<_> = (0..20).map(|_| backoff.next(&mut rng)).collect();
        assert!(waits.iter().all(|wait| (min..=max).contains(wait)), "{waits:?}");
        assert!(waits[10] >= max / 2, "{waits:?}");
        backoff.reset();
        assert!(backoff.next(&mut rng) <= min * 2);
    }
}

proptest! {
    #[test]
    fn conflation_matches_a_list(ops in prop::collection::vec((0u8..8, 0u8..5, any::<u16>()), 0..200)) {
        let mut queue = ConflatingQueue::default();
        let mut model: VecDeque<(u8, u16)> = VecDeque::new();
        for (op, key, value) in ops {
            match op {
                0 => prop_assert_eq!(queue.pop(), model.pop_front().map(|(_, value)| value)),
                1 => {
                    let before = model.len();
                    model.retain(|(_, v)| *v % 3 != 0);
                    prop_assert_eq!(queue.retain(|v| *v % 3 != 0), before - model.len());
                }
                _ => {
                    let slot = model.iter_mut().find(|(k, _)| *k == key);
                    let older = slot.map(|(_, v)| std::mem::replace(v, value));
                    if older.is_none() {
                        model.push_back((key, value));
                    }
                    prop_assert_eq!(queue.push(key, value, |_, _| {}), older);
                }
            }
            prop_assert_eq!(queue.len(), model.len());
            prop_assert!(queue.iter().copied().eq(model.iter().map(|(_, value)| *value)));
        }
        let mut rest = Vec::new();
        queue.drain(&mut rest);
        prop_assert!(rest.into_iter().eq(model.into_iter().map(|(_, value)| value)));
    }

    #[test]
    fn appends_keep_order_and_bounds(ops in prop::collection::vec((any::<bool>(), 0usize..600), 0..200)) {
        let (messages_max, bytes_max) = (8, 1_500);
        let mut queue = AppendQueue::new(messages_max, bytes_max);
        let mut model: VecDeque<Envelope> = VecDeque::new();
        for (number, (push, size)) in (0u64..).zip(ops) {
            if push {
                let mut e = envelope(number % 3, MessageKind::Append, number, "");
                e.message.context = vec![0; size].into();
                let bytes: usize = model.iter().chain([&e]).map(cost).sum();
                let fits = model.is_empty() || (model.len() < messages_max && bytes <= bytes_max);
                prop_assert_eq!(queue.push(e.clone(), 0), fits);
                if fits {
                    model.push_back(e);
                }
            } else {
                let batch = queue.take_batch(size).unwrap_or_default().envelopes;
                let bytes: usize = batch.iter().map(cost).sum();
                prop_assert!(batch.len() <= 1 || bytes <= size);
                prop_assert_eq!(batch.is_empty(), model.is_empty());
                let expected: Vec<_> = model.drain(..batch.len()).collect();
                prop_assert_eq!(batch, expected);
            }
            let bytes = model.iter().map(cost).sum();
            prop_assert_eq!(queue.depth(0), Depth { messages: model.len(), bytes, age_ms: 0 });
        }
    }

    #[test]
    fn a_control_queue_counts_its_bytes(ops in prop::collection::vec((0u64..4, 0usize..3, any::<bool>()), 0..100)) {
        let mut queue = ControlQueue::new(4);
        for (group, kind, take) in ops {
            let kind = [MessageKind::Heartbeat, MessageKind::ReadIndex, MessageKind::RequestVote][kind];
            queue.push(envelope(group, kind, 1, if take { "round" } else { "" }), 0);
            let depth = queue.depth(0);
            if take {
                let batch = queue.take_batch(300).unwrap_or_default();
                let taken: usize = batch.envelopes.iter().map(cost).sum();
                prop_assert_eq!(queue.depth(0).bytes + taken, depth.bytes);
            }
        }
        let all = queue.take_batch(usize::MAX).map_or(0, |b| b.envelopes.iter().map(cost).sum::<usize>());
        prop_assert_eq!((queue.depth(0).bytes, queue.is_empty(), all < 100 * 1_000), (0, true, true));
    }
}
