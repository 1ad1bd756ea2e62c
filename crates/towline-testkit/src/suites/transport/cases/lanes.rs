//! What a healthy lane carries, and what comes back.

use bytes::Bytes;
use towline_engine::ids::GroupId;
use towline_engine::message::{
    Batch, ConfState, Entry, EntryKind, Envelope, Lane, Message, MessageKind, SnapshotRecord,
};
use towline_engine::transport::{DispatchError, MESSAGE_BYTES_MAX, Nack, NackCause};

use super::super::bench::{append, chain, node, numbered, run};
use super::Fixture;

/// What an encoding may add to the payload of one message.
const ENCODING_BYTES_MAX: usize = 4 << 10;

/// Hundreds of batches of mixed sizes.
pub fn batches_arrive_in_order_and_equal(fixture: Fixture) {
    run(fixture, "a link is one ordered stream", async |bench| {
        const BATCHES: u64 = 300;
        let host = bench.host().await;
        let mut random = fastrand::Rng::with_seed(1);
        let mut link = bench.open(&host, Lane::Append).await;
        let mut sent = Vec::new();
        for batch in 0..BATCHES {
            let count = random.u64(1..8);
            let envelopes = (0..count).map(|n| {
                let bytes = if random.u8(..) < 8 { 100_000 } else { random.usize(0..500) };
                append(1 + n % 3, batch * 10 + n, bytes)
            });
            let batch = Batch { envelopes: envelopes.collect() };
            sent.extend(batch.envelopes.iter().cloned());
            bench.dispatch(&mut link, batch).await;
        }
        host.engine
            .until(bench, "the delivery of all batches", |log| log.count(Lane::Append) >= sent.len())
            .await;
        let came = host.engine.look(|log| log.indexes(Lane::Append));
        let should: Vec<_> = sent.iter().map(|envelope| envelope.message.index).collect();
        bench.equal("the order of the messages", &came, &should);
        bench.hold(host.engine.look(|log| log.envelopes(Lane::Append)) == sent, "a message arrived changed");
        bench.hold(!link.ear.is_closed(), "the link closed by itself");
    });
}

/// Every kind there is, each with every field set to a value of its own, on the lane of its kind.
pub fn every_kind_and_field_of_a_message_arrives(fixture: Fixture) {
    run(fixture, "a transport moves frames and decides nothing", async |bench| {
        let host = bench.host().await;
        for lane in Lane::ALL {
            let of_lane = MessageKind::ALL.into_iter().filter(|kind| kind.lane() == Some(lane));
            let envelopes: Vec<_> = of_lane.enumerate().map(|(n, kind)| full(n as u64, kind)).collect();
            let mut link = bench.open(&host, lane).await;
            // An empty batch is nothing, and no error.
            bench.dispatch(&mut link, Batch::default()).await;
            bench.dispatch(&mut link, Batch { envelopes: envelopes.clone() }).await;
            let what = format_args!("the delivery of every kind on {lane:?}");
            host.engine.until(bench, what, |log| log.count(lane) >= envelopes.len()).await;
            let came = host.engine.look(|log| log.envelopes(lane));
            bench.equal("what arrived", &came, &envelopes);
        }
    });
}

fn full(n: u64, kind: MessageKind) -> Envelope {
    // A read barrier carries its round in ordinary entries that have no place in the log.
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
        snapshot: Some(SnapshotRecord { index: 55, term: 37, conf_state }),
        request_snapshot: 36,
        reject: true,
        reject_hint: 35,
        context: Bytes::from_static(b"\0round\xff"),
        priority: -5,
        ..Message::new(kind, node(1), node(2))
    };
    Envelope { group: GroupId::new(u64::MAX - n), message }
}

/// Three equal answers in one batch, and one that names another sender: all the engine's affair.
pub fn equal_messages_are_all_delivered(fixture: Fixture) {
    run(
        fixture,
        "a transport keeps no queue, conflates nothing and judges nobody's message",
        async |bench| {
            let host = bench.host().await;
            let mut link = bench.open(&host, Lane::Control).await;
            let mut answer = full(0, MessageKind::ReadIndexResponse);
            let mut envelopes = vec![answer.clone(); 3];
            answer.message.from = node(3);
            envelopes.push(answer);
            bench.dispatch(&mut link, Batch { envelopes: envelopes.clone() }).await;
            host.engine
                .until(bench, "the delivery of equal messages", |log| log.count(Lane::Control) >= 4)
                .await;
            bench.hold(
                host.engine.look(|log| log.envelopes(Lane::Control)) == envelopes,
                "they arrived changed",
            );
            bench.hold(!link.ear.is_closed(), "the link closed");
        },
    );
}

/// Larger than a frame may be, of messages that are not; and one of very many messages.
pub fn a_large_batch_arrives_whole(fixture: Fixture) {
    run(fixture, "`dispatch` takes a batch of any size, in order", async |bench| {
        let host = bench.host().await;
        let mut link = bench.open(&host, Lane::Append).await;
        let large = (0..12).map(|index| append(1, index, 1 << 20));
        let many = (12..10_012).map(|index| append(1, index, 8));
        for envelopes in [large.collect::<Vec<_>>(), many.collect()] {
            bench.dispatch(&mut link, Batch { envelopes }).await;
        }
        host.engine.until(bench, "the whole delivery", |log| log.count(Lane::Append) >= 10_012).await;
        let came = host.engine.look(|log| log.envelopes(Lane::Append));
        let in_order = came.iter().zip(0..).all(|(envelope, index)| envelope.message.index == index);
        bench.hold(in_order && came.len() == 10_012, "it arrived in another order");
        bench.hold(came[11].message.context.len() == 1 << 20, "it arrived cut");
    });
}

/// The largest payload that fits into `MESSAGE_BYTES_MAX` in any encoding, in one piece and in entries.
pub fn the_largest_message_arrives(fixture: Fixture) {
    run(fixture, "every transport carries an encoded message of `MESSAGE_BYTES_MAX`", async |bench| {
        let host = bench.host().await;
        let mut link = bench.open(&host, Lane::Append).await;
        let bytes = MESSAGE_BYTES_MAX - ENCODING_BYTES_MAX;
        let mut in_entries = append(1, 2, 0);
        in_entries.message.entries = (0..16)
            .map(|n| Entry {
                term: 3,
                index: 3 + n,
                data: vec![n as u8; bytes / 16].into(),
                ..Entry::default()
            })
            .collect();
        let sent = vec![append(1, 1, bytes), in_entries];
        for envelope in &sent {
            bench.dispatch(&mut link, Batch { envelopes: vec![envelope.clone()] }).await;
        }
        host.engine
            .until(bench, "the delivery of the largest messages", |log| log.count(Lane::Append) >= 2)
            .await;
        bench.hold(host.engine.look(|log| log.envelopes(Lane::Append)) == sent, "they arrived changed");
    });
}

/// Alone or behind others: `TooLarge` with both sizes. What went before it is delivered or lost, never mixed up; the link
/// takes nothing more and its end is told.
pub fn an_oversized_message_is_an_error_of_its_own_and_ends_the_link(fixture: Fixture) {
    run(
        fixture,
        "`dispatch` gives `TooLarge` for a message no frame holds, and the link is done",
        async |bench| {
            let host = bench.host().await;
            let mut link = bench.open(&host, Lane::Append).await;
            bench.dispatch(&mut link, numbered(1, 10)).await;
            let batch = Batch { envelopes: vec![append(1, 2, 10), append(1, 3, MESSAGE_BYTES_MAX + 1)] };
            match bench.within("a dispatch", link.link.dispatch(batch)).await {
                Err(DispatchError::TooLarge { bytes, bytes_max }) => {
                    bench.hold(bytes > bytes_max, format_args!("{bytes} are not more than {bytes_max}"));
                }
                Err(error) => bench.fail(format_args!("it gives {}", chain(&error))),
                Ok(()) => bench.fail("a message above `MESSAGE_BYTES_MAX` is taken"),
            }
            let after = bench.within("a dispatch after an error", link.link.dispatch(numbered(4, 10))).await;
            bench.hold(after.is_err(), "the link goes on after an error");
            drop(link.link);
            link.ear.closed(bench).await;
            host.engine.until(bench, "the end of the session", |log| log.sessions == 0).await;
            let came = host.engine.look(|log| log.indexes(Lane::Append));
            bench.hold([&[][..], &[1], &[1, 2]].contains(&&came[..]), format_args!("{came:?} arrived"));
        },
    );
}

/// Each cause, for one group among three.
pub fn nacks_name_their_group_alone_and_the_lane_goes_on(fixture: Fixture) {
    run(fixture, "a nack concerns its group; other groups on the lane are not concerned", async |bench| {
        let causes =
            [NackCause::InboxFull, NackCause::UnknownGroup, NackCause::GroupDown, NackCause::Rejected];
        let host = bench.host().await;
        let mut next = causes.into_iter();
        host.engine.takes(move |_, batch| {
            let of_two = batch.envelopes.iter().filter(|envelope| envelope.group == GroupId::new(2));
            Ok(of_two.filter_map(|e| Some(Nack { group: e.group, cause: next.next()? })).collect())
        });
        let mut link = bench.open(&host, Lane::Append).await;
        for round in 0..causes.len() as u64 + 1 {
            let envelopes = (1..=3).map(|group| append(group, round, 10)).collect();
            bench.dispatch(&mut link, Batch { envelopes }).await;
        }
        let nacks = link.ear.nacks(bench, causes.len()).await;
        let should = causes.map(|cause| Nack { group: GroupId::new(2), cause });
        bench.equal("what the sender heard", &nacks, &should.to_vec());
        let what = "the delivery of every group's messages";
        host.engine.until(bench, what, |log| log.count(Lane::Append) == 3 * (causes.len() + 1)).await;
        bench.hold(!link.ear.is_closed(), "the link closed");
    });
}

/// A batch of hundreds of groups that none of them took.
pub fn every_nack_of_a_batch_arrives(fixture: Fixture) {
    run(fixture, "groups that could not take theirs come back as nacks", async |bench| {
        const GROUPS: u64 = 600;
        let host = bench.host().await;
        host.engine.takes(|_, batch| {
            let nack = |e: &Envelope| Nack { group: e.group, cause: NackCause::InboxFull };
            Ok(batch.envelopes.iter().map(nack).collect())
        });
        let mut link = bench.open(&host, Lane::Append).await;
        let envelopes = (1..=GROUPS).map(|group| append(group, group, 10)).collect();
        bench.dispatch(&mut link, Batch { envelopes }).await;
        let nacks = link.ear.nacks(bench, GROUPS as usize).await;
        let groups: Vec<_> = nacks.iter().map(|nack| nack.group.as_u64()).collect();
        bench.equal("the groups that were named", &groups, &(1..=GROUPS).collect());
    });
}
