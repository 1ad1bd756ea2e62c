//! What a healthy lane carries in both directions.

use std::sync::Mutex;

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::message::{
    ConfState, Entry, EntryKind, Envelope, LostEntries, Message, MessageKind, SnapshotRecord,
};
use towline_engine::transport::{DispatchError, MESSAGE_BYTES_MAX, Nack, NackCause};

use super::*;

/// Bytes that an encoding may add to the payload of one message.
const ENCODING_BYTES_MAX: usize = 4 << 10;

pub(in super::super) async fn batches_arrive_in_order_and_unchanged(case: &TransportCase) {
    const BATCHES: u64 = 300;
    let host = case.host_of(2).await;
    let mut random = fastrand::Rng::with_seed(1);
    let mut link = case.open(&host, Lane::Append).await;
    let mut sent = Vec::new();
    for batch in 0..BATCHES {
        let count = random.u64(1..8);
        let envelopes = (0..count).map(|n| {
            let bytes = if random.u8(..) < 8 { 100_000 } else { random.usize(0..500) };
            append(1 + n % 3, batch * 10 + n, bytes)
        });
        let batch = Batch { envelopes: envelopes.collect() };
        sent.extend(batch.envelopes.iter().cloned());
        case.dispatch(&mut link, batch).await;
    }
    host.until(case, "the delivery of all batches", |log| log.count(Lane::Append) >= sent.len()).await;
    let came = host.inbound.look(|log| log.indexes(Lane::Append));
    let should: Vec<_> = sent.iter().map(|envelope| envelope.message.index).collect();
    case.equal("the order of the messages", &came, &should);
    case.hold(host.inbound.look(|log| log.envelopes(Lane::Append)) == sent, "a message arrived changed");
    case.hold(!link.log.is_closed(), "the link closed by itself");
}

/// Each kind on its lane, with a distinct value in each field.
pub(in super::super) async fn every_kind_and_field_of_a_message_arrives(
    case: &TransportCase,
    host: ListeningNode,
) {
    for lane in Lane::ALL {
        let of_lane = MessageKind::ALL.into_iter().filter(|kind| kind.lane() == Some(lane));
        let envelopes: Vec<_> = of_lane.enumerate().map(|(n, kind)| full(n as u64, kind)).collect();
        let mut link = case.open(&host, lane).await;
        // An empty batch is no error.
        case.dispatch(&mut link, Batch::default()).await;
        case.dispatch(&mut link, Batch { envelopes: envelopes.clone() }).await;
        let what = format_args!("the delivery of every kind on {lane:?}");
        host.until(case, what, |log| log.count(lane) >= envelopes.len()).await;
        let came = host.inbound.look(|log| log.envelopes(lane));
        case.equal("what arrived", &came, &envelopes);
    }
}

fn full(n: u64, kind: MessageKind) -> Envelope {
    // Read messages carry their round in entries without a log position.
    let barrier = matches!(kind, MessageKind::ReadIndex | MessageKind::ReadIndexResponse);
    let entry = |kind, at| {
        let (kind, term, index) =
            if barrier { (EntryKind::Normal, 0, 0) } else { (kind, 40 + at, 1_000 + n + at) };
        let (data, context) = (format!("command {at}").into(), format!("context {at}").into());
        Entry { kind, term, index, data, context }
    };
    let kinds = [EntryKind::Normal, EntryKind::ConfChange, EntryKind::ConfChangeV2];
    let entries = kinds.into_iter().zip(1..).map(|(kind, at)| entry(kind, at));
    let conf_state = ConfState {
        voters: vec![node(1), node(u64::MAX)],
        learners: vec![node(7)],
        voters_outgoing: vec![node(8), node(9)],
        learners_next: vec![node(10)],
        auto_leave: true,
    };
    let message = Message {
        term: 41,
        log_term: 39,
        index: 1_000 + n,
        entries: entries.collect(),
        commit: u64::MAX - n,
        commit_term: 38,
        snapshot: Some(Box::new(SnapshotRecord { index: 55, term: 37, conf_state })),
        request_snapshot: 36,
        reject: true,
        reject_hint: 35,
        context: Bytes::from_static(b"\0round\xff"),
        priority: -5,
        ..Message::new(kind, node(1), node(2))
    };
    Envelope { group: GroupId::new(u64::MAX - n), message }
}

/// Three equal messages, and one from another sender: the engine judges them, not the transport.
pub(in super::super) async fn equal_messages_are_all_delivered(case: &TransportCase, host: ListeningNode) {
    let mut link = case.open(&host, Lane::Control).await;
    let mut answer = full(0, MessageKind::ReadIndexResponse);
    let mut envelopes = vec![answer.clone(); 3];
    answer.message.from = node(3);
    envelopes.push(answer);
    case.dispatch(&mut link, Batch { envelopes: envelopes.clone() }).await;
    host.until(case, "the delivery of equal messages", |log| log.count(Lane::Control) >= 4).await;
    case.hold(host.inbound.look(|log| log.envelopes(Lane::Control)) == envelopes, "they arrived changed");
    case.hold(!link.log.is_closed(), "the link closed");
}

/// One batch above the size of a frame, and one of ten thousand messages.
pub(in super::super) async fn a_large_batch_arrives_whole(case: &TransportCase, host: ListeningNode) {
    let mut link = case.open(&host, Lane::Append).await;
    let large = (0..12).map(|index| append(1, index, 1 << 20));
    let many = (12..10_012).map(|index| append(1, index, 8));
    for envelopes in [large.collect::<Vec<_>>(), many.collect()] {
        case.dispatch(&mut link, Batch { envelopes }).await;
    }
    host.until(case, "the whole delivery", |log| log.count(Lane::Append) >= 10_012).await;
    let came = host.inbound.look(|log| log.envelopes(Lane::Append));
    let in_order = came.iter().zip(0..).all(|(envelope, index)| envelope.message.index == index);
    case.hold(in_order && came.len() == 10_012, "the messages arrived in another order");
    case.hold(came[11].message.context.len() == 1 << 20, "a message arrived cut");
}

/// The largest payload that fits in any encoding, as one field and as entries.
pub(in super::super) async fn the_largest_message_arrives(case: &TransportCase, host: ListeningNode) {
    let mut link = case.open(&host, Lane::Append).await;
    let bytes = MESSAGE_BYTES_MAX - ENCODING_BYTES_MAX;
    let mut in_entries = append(1, 2, 0);
    in_entries.message.entries = (0..16)
        .map(|n| Entry { term: 3, index: 3 + n, data: vec![n as u8; bytes / 16].into(), ..Entry::default() })
        .collect();
    let sent = vec![append(1, 1, bytes), in_entries];
    for envelope in &sent {
        case.dispatch(&mut link, Batch { envelopes: vec![envelope.clone()] }).await;
    }
    host.until(case, "the delivery of the largest messages", |log| log.count(Lane::Append) >= 2).await;
    case.hold(host.inbound.look(|log| log.envelopes(Lane::Append)) == sent, "they arrived changed");
}

/// The link reports its end. Messages before the oversized one arrive in order or are lost.
pub(in super::super) async fn an_oversized_message_is_too_large_and_ends_the_link(
    case: &TransportCase,
    host: ListeningNode,
) {
    let mut link = case.open(&host, Lane::Append).await;
    case.dispatch(&mut link, batch(1, 10)).await;
    let large = Batch { envelopes: vec![append(1, 2, 10), append(1, 3, MESSAGE_BYTES_MAX + 1)] };
    match case.within("a dispatch", link.link.dispatch(large)).await {
        Err(DispatchError::TooLarge { bytes, bytes_max }) => {
            case.hold(bytes > bytes_max, format_args!("{bytes} are not more than {bytes_max}"));
        }
        Err(error) => case.fail(format_args!("it gives {}", chain(&error))),
        Ok(()) => case.fail("a message above `MESSAGE_BYTES_MAX` is taken"),
    }
    let after = case.within("a dispatch after an error", link.link.dispatch(batch(4, 10))).await;
    case.hold(after.is_err(), "the link goes on after an error");
    drop(link.link);
    case.closed(&link.log).await;
    host.until(case, "the end of the session", |log| log.sessions == 0).await;
    let came = host.inbound.look(|log| log.indexes(Lane::Append));
    case.hold([&[][..], &[1], &[1, 2]].contains(&&came[..]), format_args!("{came:?} arrived"));
}

/// Each cause, for one of three groups.
pub(in super::super) async fn a_nack_concerns_one_group_and_the_lane_goes_on(case: &TransportCase) {
    let causes = [
        NackCause::InboxFull,
        NackCause::UnknownGroup,
        NackCause::GroupDown,
        NackCause::Rejected,
        NackCause::EntriesLost(LostEntries { last_index: 55, acknowledged: 61 }),
        NackCause::DiskFull,
    ];
    let host = case.host_of(2).await;
    let next = Mutex::new(causes.into_iter());
    host.inbound.on_deliver(move |_, batch| {
        let of_two = batch.envelopes.iter().filter(|envelope| envelope.group == GroupId::new(2));
        Ok(of_two
            .filter_map(|e| Some(Nack { group: e.group, cause: next.lock().unwrap().next()? }))
            .collect())
    });
    let mut link = case.open(&host, Lane::Append).await;
    for round in 0..causes.len() as u64 + 1 {
        let envelopes = (1..=3).map(|group| append(group, round, 10)).collect();
        case.dispatch(&mut link, Batch { envelopes }).await;
    }
    let nacks = case.nacks(&link.log, causes.len()).await;
    let should = causes.map(|cause| Nack { group: GroupId::new(2), cause });
    case.equal("the nacks", &nacks, &should.to_vec());
    let what = "the delivery of every group's messages";
    host.until(case, what, |log| log.count(Lane::Append) == 3 * (causes.len() + 1)).await;
    case.hold(!link.log.is_closed(), "the link closed");
}

pub(in super::super) async fn every_nack_of_a_batch_arrives(case: &TransportCase) {
    const GROUPS: u64 = 600;
    let host = case.host_of(2).await;
    host.inbound.on_deliver(|_, batch| {
        let nack = |e: &Envelope| Nack { group: e.group, cause: NackCause::InboxFull };
        Ok(batch.envelopes.iter().map(nack).collect())
    });
    let mut link = case.open(&host, Lane::Append).await;
    let envelopes = (1..=GROUPS).map(|group| append(group, group, 10)).collect();
    case.dispatch(&mut link, Batch { envelopes }).await;
    let nacks = case.nacks(&link.log, GROUPS as usize).await;
    let groups: Vec<_> = nacks.iter().map(|nack| nack.group.as_u64()).collect();
    case.equal("the groups that were named", &groups, &(1..=GROUPS).collect());
}
