//! Every decoder that sees bytes of the network. Each function here takes any bytes; a panic or a broken assertion is a
//! finding.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use prost::Message as _;
use towline_engine::ids::{Incarnation, NodeId, PeerAddr};
use towline_engine::message::{Batch, Lane};
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, Nack, PROTOCOL_VERSION, PeerSession, ProgressCell, SinkAnswer, SnapshotOffer, SnapshotReceipt,
    SnapshotRefusal, SnapshotSink, Violation, Welcome,
};
use towline_wire::limits::{ENVELOPES_MAX, FRAME_BYTES_MAX, HELLO_BYTES_MAX, NACKS_MAX};
use towline_wire::{
    Begun, FrameSink, FrameSource, Prefixed, Timer, batch_of, begin, check_answer, check_first_frame,
    decode_frame, deliver, encoded_len, hello_frame, merge_nacks, nacks_of, offer_frame, offer_of, pb,
    read_outcome, serve,
};

fn node() -> NodeId {
    const { NodeId::new(1).unwrap() }
}

/// One frame, taken for each thing it may be. What was understood means the same when it is said again.
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
    let _ = deliver(&Anybody, Lane::Append, frame.clone());
    if let Ok(received) = batch_of(frame) {
        assert!(received.batch.envelopes.len() + received.rejected.len() <= ENVELOPES_MAX);
        let _ = merge_nacks(Vec::new(), &received.rejected);
    }
}

/// Frames behind their length, in pieces whose sizes come from the first bytes. However a stream is cut, the same comes
/// out.
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
            // The first is a hello, with a limit of its own.
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

/// A stranger's part of a snapshot transfer, at the listener: no receipt without a body that was ended.
pub fn listener(bytes: &[u8]) {
    let mut source = Script::new(bytes);
    let ended = source.0.iter().any(|frame| matches!(frame.kind, Some(pb::frame::Kind::Trailer(_))));
    let mut said = Said::default();
    let _ = run(serve(&Anybody, &mut source, &mut said, &Never));
    let receipt = said.0.iter().any(|frame| match &frame.kind {
        Some(pb::frame::Kind::Outcome(outcome)) => matches!(outcome.kind, Some(pb::outcome::Kind::Commit(_))),
        _ => false,
    });
    assert!(ended || !receipt);
}

/// A stranger's part of a snapshot transfer, at the dialler.
pub fn dialler(bytes: &[u8]) {
    let mut source = Script::new(bytes);
    if let Some(Ok(Begun::Accepted { offset })) = run(begin(&mut source)) {
        let progress = ProgressCell::new(offset);
        let _ = run(read_outcome(&mut source, &progress));
        assert!(progress.now().acked >= offset);
    }
}

/// What the future gives, if it does not have to wait for anybody.
fn run<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The other side.
struct Script(VecDeque<pb::Frame>);

impl Script {
    fn new(bytes: &[u8]) -> Self {
        // A whole stream of them, or one.
        let (mut frames, _) = frames_of(bytes, usize::MAX);
        frames.extend(decode_frame(Bytes::copy_from_slice(bytes)));
        Self(frames.into())
    }
}

#[async_trait]
impl FrameSource for Script {
    async fn next(&mut self) -> Result<Option<pb::Frame>, String> {
        Ok(self.0.pop_front())
    }
}

#[derive(Default)]
struct Said(Vec<pb::Frame>);

#[async_trait]
impl FrameSink for Said {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        let again = decode_frame(frame.encode_to_vec().into());
        assert_eq!(again.as_ref(), Ok(&frame), "what is said is well-formed");
        self.0.push(frame);
        Ok(())
    }

    fn end(&mut self) {}
}

struct Never;

#[async_trait]
impl Timer for Never {
    async fn wait(&self, _: Duration) {
        std::future::pending().await
    }
}

/// Takes everything.
struct Anybody;

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

    async fn offer(&self, _: SnapshotOffer) -> Result<SinkAnswer, SnapshotRefusal> {
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
