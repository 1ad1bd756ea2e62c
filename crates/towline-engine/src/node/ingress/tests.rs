use super::*;
use crate::config::Config;
use crate::message::Entry;
use crate::node::inbox::ShardInbox;
use crate::units::ByteSize;

fn append(bytes: usize) -> Message {
    let (from, to) = (NodeId::new(2).unwrap(), NodeId::new(1).unwrap());
    let entry = Entry { index: 1, term: 1, data: vec![0; bytes].into(), ..Entry::default() };
    Message { entries: vec![entry], ..Message::new(MessageKind::Append, from, to) }
}

/// A leader whose `proposal_bytes_max` is higher may have committed an entry that is larger than this inbox. To refuse it
/// would stop replication to this node for ever.
#[test]
fn an_append_larger_than_the_inbox_is_taken_when_nothing_waits() {
    let config = Config {
        append_bytes_max: ByteSize::kib(1),
        append_inflight_max: 1,
        inbox_bytes_max: ByteSize::kib(2),
        ..Config::default()
    };
    let config = config.validate().unwrap();
    let ingress = Ingress::new(GroupId::DEFAULT, &config, ShardInbox::new().scheduled.clone());
    let from = NodeId::new(2).unwrap();
    let mut taken = Taken::default();
    for _ in 0..2 {
        assert_eq!(ingress.deliver(from, append(1 << 20)), Ok(Delivered::Queued));
        assert_eq!(ingress.deliver(from, append(1)), Err(NackCause::InboxFull), "one at a time");
        ingress.take(10, &mut taken);
    }
    assert_eq!(taken.appends.len(), 2);
    assert_eq!(ingress.deliver(from, append(1)), Ok(Delivered::Queued));
    assert_eq!(ingress.deliver(from, append(1 << 20)), Err(NackCause::InboxFull), "something waits");
}
