//! Snapshot transfers: each on a stream of its own, of the lowest priority.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use towline_engine::transport::{
    Hello, OfferAnswer, Peer, PeerSession, ProgressCell, Refusal, SnapshotOffer, TransferError,
};
use towline_wire::{
    Begun, FrameSink, FrameSource, Purpose, Sending, Timer, begin, offer_frame, pb, prefixed, read_outcome,
    serve,
};

use crate::dial::Dialled;
use crate::lane::Answers;
use crate::link::{Opened, ended_by_refusal, open};
use crate::stream::{Incoming, Outgoing};

pub(crate) async fn offer(
    dialled: Arc<Dialled>,
    to: &Peer,
    hello: &Hello,
    offer: &SnapshotOffer,
) -> Result<OfferAnswer, TransferError> {
    let opened = open(&dialled, to, Purpose::Snapshot, hello).await;
    let Opened { mut send, receive, .. } = opened.map_err(TransferError::Connect)?;
    let broken = |error: quinn::WriteError| TransferError::Broken { detail: error.to_string() };
    send.stream.write_chunk(prefixed(&offer_frame(offer))).await.map_err(broken)?;
    let mut source = Source(receive);
    let offset = match begin(&mut source).await? {
        Begun::Answered(answer) => return Ok(answer),
        Begun::Accepted { offset } => offset,
    };
    let progress = ProgressCell::new(offset);
    let (told, outcome) = oneshot::channel();
    let cell = progress.clone();
    let reader = tokio::spawn(async move {
        let _ = told.send(read_outcome(&mut source, &cell).await);
    });
    let outcome = Box::pin(async move {
        let gone = |_| Err(TransferError::Broken { detail: "the transfer was given up".into() });
        outcome.await.unwrap_or_else(gone)
    });
    let sink = DialSink { send, reader: reader.abort_handle(), _dialled: dialled };
    Ok(OfferAnswer::Accepted { offset, transfer: Box::new(Sending::new(sink, outcome, progress)) })
}

/// Dropping it resets the stream both ways, after its end, too: a listener that is still at it then gives up. Once the
/// outcome is here, the listener has read everything.
struct DialSink {
    send: Outgoing,
    reader: AbortHandle,
    _dialled: Arc<Dialled>,
}

impl Drop for DialSink {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[async_trait]
impl FrameSink for DialSink {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.send.stream.write_chunk(prefixed(&frame)).await.map_err(|error| error.to_string())
    }

    fn end(&mut self) {
        let _ = self.send.stream.finish();
    }
}

struct Source(Incoming);

#[async_trait]
impl FrameSource for Source {
    async fn next(&mut self) -> Result<Option<pb::Frame>, String> {
        match self.0.next(towline_wire::limits::FRAME_BYTES_MAX).await {
            // The last word of a listener that ends a stream.
            Ok(Some(pb::Frame { kind: Some(pb::frame::Kind::Refused(refused)) })) => {
                Err(ended_by_refusal(refused))
            }
            Ok(frame) => Ok(frame),
            Err(ended) => Err(ended.to_string()),
        }
    }
}

/// Takes one transfer. Gives what the dialler is told last instead of an ordinary end.
pub(crate) async fn receive(
    receive: Incoming,
    send: &mut Outgoing,
    answers: &mut Answers,
    session: &dyn PeerSession,
) -> Option<Refusal> {
    // The welcome: the dialler says nothing before it.
    answers.flush(&mut send.stream).await.ok()?;
    let mut sink = AcceptSink { send, answers };
    let served = serve(session, &mut Source(receive), &mut sink, &TokioTimer).await;
    served.err().map(|violation| {
        tracing::debug!(peer = %session.peer(), %violation, "snapshot stream closed");
        Refusal::Malformed { detail: violation.detail }
    })
}

struct AcceptSink<'a> {
    send: &'a mut Outgoing,
    answers: &'a mut Answers,
}

#[async_trait]
impl FrameSink for AcceptSink<'_> {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.answers.waiting.push_back(prefixed(&frame));
        self.answers.flush(&mut self.send.stream).await.map_err(|error| error.to_string())
    }

    fn end(&mut self) {
        self.send.finish();
    }
}

struct TokioTimer;

#[async_trait]
impl Timer for TokioTimer {
    async fn wait(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
