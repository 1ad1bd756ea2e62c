//! A member that lies about a snapshot in its offer, its chunks or its trailer. A real node refuses by type, restores and keeps
//! nothing, and has its receive slot free for the next offer.

use crate::common::*;

const CHUNK: usize = 16 << 10;

/// The lying member, node 1, in a cluster with a real node 2.
struct LyingPeer {
    cluster: Cluster,
    counts: Counts,
    transport: Arc<dyn Transport>,
    hello: Hello,
    attempts: u64,
}

impl LyingPeer {
    async fn new() -> Self {
        let counts = Counts::default();
        let config = Config { snapshot_receives_max: 1, snapshot_bytes_max: ByteSize::mib(8), ..quick() };
        let mut cluster = Plan::new(2, 1).config(config).customise(counts.on()).start().await;
        cluster.acked(1, "the truth").await;
        cluster.settled(1).await;
        let incarnation = cluster.disks[&1].identity.load().unwrap().unwrap().incarnation;
        cluster.crash(1);
        cluster.net.revive(node_id(1));
        let hello = Hello {
            cluster: cluster_id(),
            from: node_id(1),
            to: node_id(2),
            incarnation,
            protocol: PROTOCOL_VERSION,
        };
        let transport: Arc<dyn Transport> = cluster.net.transport();
        Self { cluster, counts, transport, hello, attempts: 0 }
    }

    async fn offer(&mut self, mut offer: SnapshotOffer) -> OfferAnswer {
        self.attempts += 1;
        offer.attempt = self.attempts;
        let to = Peer { id: node_id(2), address: self.cluster.address(2) };
        within(self.transport.offer(&to, &self.hello, &offer, &ProgressCell::new(0))).await.unwrap()
    }

    fn received(&self, outcome: &str) -> u64 {
        self.counts.sum(TRANSFERS, &format!("node=2 direction=received outcome={outcome}"))
    }

    /// The node keeps nothing of the snapshot and serves as before.
    async fn assert_untouched(&self, about: &str) {
        let state = self.cluster.group(2, 1).state();
        assert_eq!(state.down, None, "{about}");
        assert_eq!(self.cluster.commands(2, 1).await, ["the truth", "settled"], "{about}");
        until(&format!("{about}: the partial file is removed"), || {
            self.cluster.disks[&2].snapshots.files() == 0
        })
        .await;
    }
}

/// A body of `length` bytes, and an honest offer of it.
fn honest(length: usize) -> (Bytes, SnapshotOffer) {
    let body: Bytes = (0..length).map(|n| (n / 7) as u8).collect::<Vec<_>>().into();
    let conf_state = ConfState { voters: [node_id(1), node_id(2)].into(), ..ConfState::default() };
    let at = LogId { index: 1_000, term: 9 };
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at,
        conf_state: conf_state.clone(),
        members: MemberTable::new(),
    };
    let mut hasher = ContentHasher::new(&head);
    hasher.update(&body);
    let Trailer { length, content } = hasher.finish();
    let mut message = Message::new(MessageKind::Snapshot, node_id(1), node_id(2));
    message.term = 9;
    message.snapshot = Some(Box::new(SnapshotRecord { index: at.index, term: at.term, conf_state }));
    (body, SnapshotOffer { message, meta: SnapshotMeta { head, length, content }, attempt: 0 })
}

fn is_corrupt(refusal: &SnapshotRefusal) -> bool {
    matches!(refusal, SnapshotRefusal::Corrupt { .. })
}

/// Changes an honest offer.
type Lie = fn(&mut SnapshotOffer);
type Expected = fn(&SnapshotRefusal) -> bool;

fn is_wrong_node(refusal: &SnapshotRefusal) -> bool {
    matches!(refusal, SnapshotRefusal::WrongNode)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_lies_is_refused_by_type_before_a_byte_moves() {
    let mut setup = LyingPeer::new().await;
    let lies: [(&str, Lie, Expected); 10] = [
        (
            "a group that does not run here, without this node as a member",
            |offer| {
                offer.meta.head.group = GroupId::new(99);
                offer.meta.head.conf_state.voters.retain(|id| *id != node_id(2));
            },
            is_wrong_node,
        ),
        (
            "a group that does not run here, with this node as a member",
            |offer| {
                offer.meta.head.group = GroupId::new(99);
            },
            |refusal| matches!(refusal, SnapshotRefusal::NotTaken { .. }) && !refusal.is_lasting(),
        ),
        ("another node's", |offer| offer.message.to = node_id(3), is_wrong_node),
        ("in another's name", |offer| offer.message.from = node_id(3), is_wrong_node),
        (
            "a membership without this node",
            |offer| {
                offer.meta.head.conf_state.voters.retain(|id| *id != node_id(2));
                offer.message.snapshot.as_mut().unwrap().conf_state.voters.retain(|id| *id != node_id(2));
            },
            is_wrong_node,
        ),
        (
            "index 0",
            |offer| {
                offer.meta.head.at.index = 0;
                offer.message.snapshot.as_mut().unwrap().index = 0;
            },
            is_corrupt,
        ),
        ("a term above its message's", |offer| offer.message.term = 8, is_corrupt),
        ("a file of another index than the message's", |offer| offer.meta.head.at.index = 999, is_corrupt),
        ("a message of another kind", |offer| offer.message.kind = MessageKind::Append, is_corrupt),
        (
            "a body that is too large",
            |offer| offer.meta.length = 9 << 20,
            |refusal| matches!(refusal, SnapshotRefusal::TooLarge { .. }),
        ),
    ];
    for (number, (about, lie, expected)) in (1..).zip(lies) {
        let (_, mut offer) = honest(10);
        lie(&mut offer);
        match setup.offer(offer).await {
            OfferAnswer::Refused(refusal) => assert!(expected(&refusal), "{about}: {refusal:?}"),
            OfferAnswer::Accepted { .. } => panic!("{about}: accepted"),
            OfferAnswer::AlreadyHave { .. } => panic!("{about}: had already"),
        }
        setup.assert_untouched(about).await;
        assert_eq!(setup.received("refused"), number, "{about}: counted");
    }
}

/// The chunks and the trailer that are sent.
type Course = fn(&Bytes, Trailer) -> (Vec<Chunk>, Trailer);

fn chunk(body: &Bytes, offset: usize, length: usize) -> Chunk {
    let data = body.slice(offset..(offset + length).min(body.len()));
    Chunk { offset: offset as u64, crc32c: crc32c::crc32c(&data), data }
}

fn all(body: &Bytes) -> Vec<Chunk> {
    (0..body.len()).step_by(CHUNK).map(|offset| chunk(body, offset, CHUNK)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_lies_is_refused_as_corrupt_and_leaves_nothing() {
    let mut setup = LyingPeer::new().await;
    // Each transfer is complete and honest apart from its lie.
    let courses: [(&str, Course); 11] = [
        ("a chunk that was sent before", |body, end| {
            let mut chunks = all(body);
            chunks.insert(1, chunk(body, 0, CHUNK));
            (chunks, end)
        }),
        ("a chunk out of its place", |body, end| {
            let mut chunks = all(body);
            chunks.swap(0, 1);
            (chunks, end)
        }),
        ("a chunk of no bytes", |body, end| {
            let mut chunks = all(body);
            chunks.insert(1, chunk(body, CHUNK, 0));
            (chunks, end)
        }),
        ("an oversized chunk", |body, end| {
            let large = CHUNK_BYTES_MAX + 1;
            (vec![chunk(body, 0, large), chunk(body, large, large)], end)
        }),
        ("a chunk past the end", |body, end| {
            let mut chunks = all(body);
            let data = Bytes::from_static(&[0; CHUNK]);
            let last = chunks.last_mut().unwrap();
            (last.crc32c, last.data) = (crc32c::crc32c(&data), data);
            (chunks, end)
        }),
        ("a chunk after the end", |body, end| {
            let mut chunks = all(body);
            chunks.push(Chunk { offset: body.len() as u64, ..chunk(body, 0, 1) });
            (chunks, end)
        }),
        ("a chunk whose checksum does not hold", |body, end| {
            let mut chunks = all(body);
            chunks[1].crc32c ^= 1;
            (chunks, end)
        }),
        ("an early end", |body, end| {
            let mut chunks = all(body);
            chunks.pop();
            (chunks, end)
        }),
        ("an end of another content", |body, end| {
            (all(body), Trailer { content: ContentId([1; 16]), ..end })
        }),
        ("an end of another length", |body, end| (all(body), Trailer { length: end.length - 1, ..end })),
        ("another body under its checksums", |body, end| {
            (all(&body.iter().map(|byte| !byte).collect::<Vec<_>>().into()), end)
        }),
    ];
    for (number, (about, course)) in (1..).zip(courses) {
        // Longer than any chunk may be, and no multiple of one.
        let (body, offer) = honest((2 << 20) + 100);
        let end = Trailer { length: offer.meta.length, content: offer.meta.content };
        let OfferAnswer::Accepted { offset, mut transfer } = setup.offer(offer).await else {
            panic!("{about}: the receive slot is not free");
        };
        assert_eq!(offset, 0, "{about}: the node kept a part of the last lie");
        let (chunks, end) = course(&body, end);
        let mut told = Ok(());
        for chunk in chunks {
            told = within(transfer.send(chunk)).await;
            if told.is_err() {
                break;
            }
        }
        let told = match told {
            Ok(()) => within(transfer.finish(end)).await.map(|_| ()),
            refused => refused,
        };
        match told {
            Err(TransferError::Refused(refusal)) => assert!(is_corrupt(&refusal), "{about}: {refusal:?}"),
            other => panic!("{about}: {other:?}"),
        }
        setup.assert_untouched(about).await;
        until(&format!("{about}: counted"), || setup.received("failed") == number).await;
    }
    assert_eq!(setup.received("finished"), 0);
}
