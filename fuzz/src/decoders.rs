//! Every decoder of bytes from the network. Each function takes any bytes; a panic or a failed assertion is a finding.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId, PeerAddr};
use towline_engine::message::{Batch, ConfState, Lane, LogId, MemberTable, Message, MessageKind};
use towline_engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline_engine::transport::{
    CertIdentity, Chunk, Hello, Inbound, LinkClosed, Nack, OfferAnswer, PROTOCOL_VERSION, PeerSession,
    ProgressCell, Refusal, SinkAnswer, SnapshotOffer, SnapshotReceipt, SnapshotRefusal, SnapshotSink,
    Violation, Welcome,
};
use towline_wire::limits::{ENVELOPES_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX, NACKS_MAX};
use towline_wire::streams::{
    ANSWERS_WAITING_MAX, Caller, FrameSink, FrameSource, Listening, StreamLimits, offer, serve,
};
use towline_wire::{
    Prefixed, Purpose, batch_of, check_answer, check_first_frame, decode_frame, encoded_len, hello_frame,
    merge_nacks, nacks_of, offer_frame, offer_of, pb,
};

fn node() -> NodeId {
    const { NodeId::new(1).unwrap() }
}

/// Decodes one frame as each kind. A decoded value must survive another round trip.
pub fn frame(bytes: &[u8]) {
    let Ok(frame) = decode_frame(Bytes::copy_from_slice(bytes)) else { return };
    if let Ok((hello, purpose)) = check_first_frame(frame.clone()) {
        assert_eq!(check_first_frame(hello_frame(&hello, purpose)), Ok((hello, purpose)));
    }
    if let Ok(address) = PeerAddr::new("any://host:1") {
        let _ = check_answer(&address, node(), frame.clone());
    }
    if let Ok(nacks) = nacks_of(frame.clone()) {
        assert!(nacks.len() <= NACKS_MAX);
    }
    if let Ok(offer) = offer_of(frame.clone()) {
        assert_eq!(offer_of(offer_frame(&offer)), Ok(offer));
    }
    if let Ok(received) = batch_of(frame) {
        assert!(received.batch.envelopes.len() + received.rejected.len() <= ENVELOPES_MAX);
        let _ = merge_nacks(Vec::new(), &received.rejected);
    }
}

/// Splits length-prefixed frames into pieces; the first byte gives the size. The size must not change the result.
pub fn stream(bytes: &[u8]) {
    let Some((&size, bytes)) = bytes.split_first() else { return };
    let (cut, whole) = (frames_of(bytes, usize::from(size) + 1), frames_of(bytes, usize::MAX));
    assert_eq!(cut, whole);
}

fn frames_of(bytes: &[u8], piece: usize) -> (Vec<pb::Frame>, bool) {
    let (mut prefixed, mut frames) = (Prefixed::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        prefixed.push(Bytes::copy_from_slice(piece));
        loop {
            // The first frame is a hello, with a lower limit.
            let bytes_max = if frames.is_empty() { HELLO_BYTES_MAX } else { FRAME_BYTES_MAX };
            match prefixed.next_frame(bytes_max) {
                Ok(Some(frame)) => {
                    assert!(encoded_len(&frame) <= FRAME_BYTES_MAX);
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(_) => return (frames, false),
            }
        }
    }
    (frames, true)
}

/// Sends frames to a listener, without and with an accepted hello. There must be no receipt without a trailer.
pub fn listener(bytes: &[u8]) {
    let Script(frames) = Script::new(bytes);
    let ended = frames.iter().any(|frame| matches!(frame.kind, Some(pb::frame::Kind::Trailer(_))));
    let accepted = |purpose| hello_frame(&hello(), purpose);
    for first in [None, Some(accepted(Purpose::Snapshot)), Some(accepted(Lane::Append.into()))] {
        let script = Script(first.into_iter().chain(frames.iter().cloned()).collect());
        let said = run(heard(script));
        let receipt = said.iter().any(|frame| match &frame.kind {
            Some(pb::frame::Kind::Outcome(outcome)) => {
                matches!(outcome.kind, Some(pb::outcome::Kind::Commit(_)))
            }
            _ => false,
        });
        assert!(ended || !receipt);
        for frame in said {
            assert_eq!(decode_frame(frame.encode_to_vec().into()), Ok(frame), "answers are well-formed");
        }
    }
}

async fn heard(script: Script) -> Vec<pb::Frame> {
    let limits = StreamLimits {
        handshake_timeout: Duration::from_secs(60),
        connections_per_peer_max: 1,
        streams_per_lane_max: 1,
    };
    let (answers, mut waiting) = mpsc::channel(ANSWERS_WAITING_MAX);
    let caller = Caller::new(&Listening::new(Arc::new(Anybody), limits), false);
    let serving = tokio::spawn(serve(caller, script, answers));
    let mut said = Vec::new();
    while let Some(frame) = waiting.recv().await {
        said.push(frame);
    }
    serving.await.unwrap();
    said
}

/// Sends the listener's frames of a snapshot transfer to a dialler.
pub fn dialler(bytes: &[u8]) {
    let script = Script::new(bytes);
    run(async {
        let Ok(OfferAnswer::Accepted { offset, transfer }) =
            offer(Silent, script, &an_offer(), &ProgressCell::new(0)).await
        else {
            return;
        };
        let progress = transfer.progress();
        let _ = transfer.finish(Trailer { length: 0, content: ContentId([0; 16]) }).await;
        assert!(progress.now().acked >= offset);
    });
}

fn run<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
    }
    RUNTIME.with(|runtime| runtime.block_on(future))
}

fn hello() -> Hello {
    Hello {
        cluster: ClusterId::new("fuzz").unwrap(),
        from: node(),
        to: node(),
        incarnation: const { Incarnation::new(1).unwrap() },
        protocol: PROTOCOL_VERSION,
    }
}

fn an_offer() -> SnapshotOffer {
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index: 1, term: 1 },
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    };
    SnapshotOffer {
        message: Message::new(MessageKind::Snapshot, node(), node()),
        meta: SnapshotMeta { head, length: 0, content: ContentId([0; 16]) },
        attempt: 1,
    }
}

struct Script(VecDeque<pb::Frame>);

impl Script {
    fn new(bytes: &[u8]) -> Self {
        // A stream of frames, or a single frame.
        let (mut frames, _) = frames_of(bytes, usize::MAX);
        frames.extend(decode_frame(Bytes::copy_from_slice(bytes)));
        Self(frames.into())
    }
}

impl FrameSource for Script {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        Ok(self.0.pop_front())
    }
}

/// A sink that drops every frame.
struct Silent;

impl FrameSink for Silent {
    async fn send(&mut self, _: pb::Frame) -> Result<(), String> {
        Ok(())
    }

    fn end(&mut self) {}
}

/// Admits every peer and accepts every message.
struct Anybody;

impl Inbound for Anybody {
    fn admit(&self, _: &Hello, _: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(Self))
    }
}

#[async_trait]
impl PeerSession for Anybody {
    fn peer(&self) -> NodeId {
        node()
    }

    fn welcome(&self) -> Welcome {
        let incarnation = const { Incarnation::new(1).unwrap() };
        Welcome { node: node(), incarnation, protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, _: Lane, _: Batch) -> Result<Vec<Nack>, Violation> {
        Ok(Vec::new())
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(SinkAnswer::Accept { offset: 0, sink: Box::new(Anything) })
    }
}

struct Anything;

#[async_trait]
impl SnapshotSink for Anything {
    async fn write(&mut self, _: Chunk) -> Result<(), SnapshotRefusal> {
        Ok(())
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        Ok(SnapshotReceipt { commit: 1 })
    }

    fn progress(&self) -> ProgressCell {
        ProgressCell::new(0)
    }
}
