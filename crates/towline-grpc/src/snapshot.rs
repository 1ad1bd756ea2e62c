//! Snapshot transfers: each on a connection and a stream of its own, which is reset by closing the connection.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};
use towline_engine::transport::{
    Hello, OfferAnswer, Peer, PeerSession, ProgressCell, SnapshotOffer, TransferError,
};
use towline_wire::{
    Begun, FrameSink, FrameSource, Purpose, Sending, Timer, begin, offer_frame, pb, read_outcome, serve,
};

use crate::address::Security;
use crate::config::GrpcConfig;
use crate::link::{Opened, Tasks, detail, open};

pub(crate) async fn offer(
    config: &GrpcConfig,
    security: &Security,
    to: &Peer,
    hello: &Hello,
    offer: &SnapshotOffer,
) -> Result<OfferAnswer, TransferError> {
    let opened = open(config, security, to, Purpose::Snapshot, hello).await;
    let Opened { sender, answers, tasks, .. } = opened.map_err(TransferError::Connect)?;
    let broken = || TransferError::Broken { detail: "the stream ended before the offer".into() };
    sender.send(offer_frame(offer)).await.map_err(|_| broken())?;
    let mut answers = Source(answers);
    let offset = match begin(&mut answers).await? {
        Begun::Answered(answer) => return Ok(answer),
        Begun::Accepted { offset } => offset,
    };
    let progress = ProgressCell::new(offset);
    let (told, outcome) = oneshot::channel();
    let cell = progress.clone();
    tasks.spawn(async move {
        let _ = told.send(read_outcome(&mut answers, &cell).await);
    });
    let outcome = Box::pin(async move {
        let gone = |_| Err(TransferError::Broken { detail: "the connection was closed".into() });
        outcome.await.unwrap_or_else(gone)
    });
    let sink = DialSink { sender: Some(sender), _tasks: tasks };
    Ok(OfferAnswer::Accepted { offset, transfer: Box::new(Sending::new(sink, outcome, progress)) })
}

struct DialSink {
    /// Dropped to end the stream in order.
    sender: Option<mpsc::Sender<pb::Frame>>,
    /// Dropped to close the connection, whatever is under way.
    _tasks: Tasks,
}

#[async_trait]
impl FrameSink for DialSink {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        let closed = || String::from("the stream is closed");
        self.sender.as_ref().ok_or_else(closed)?.send(frame).await.map_err(|_| closed())
    }

    fn end(&mut self) {
        self.sender = None;
    }
}

struct Source(Streaming<pb::Frame>);

#[async_trait]
impl FrameSource for Source {
    async fn next(&mut self) -> Result<Option<pb::Frame>, String> {
        self.0.message().await.map_err(|status| detail(&status))
    }
}

/// Takes one transfer. Gives what the dialler is told last instead of an ordinary end.
pub(crate) async fn receive(
    frames: Streaming<pb::Frame>,
    answers: &mpsc::Sender<Result<pb::Frame, Status>>,
    session: &dyn PeerSession,
) -> Option<Status> {
    let mut sink = AcceptSink { answers: answers.clone() };
    let served = serve(session, &mut Source(frames), &mut sink, &TokioTimer).await;
    served.err().map(|violation| {
        tracing::debug!(peer = %session.peer(), %violation, "snapshot stream closed");
        Status::invalid_argument(violation.detail)
    })
}

struct AcceptSink {
    answers: mpsc::Sender<Result<pb::Frame, Status>>,
}

#[async_trait]
impl FrameSink for AcceptSink {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.answers.send(Ok(frame)).await.map_err(|_| "the stream is closed".into())
    }

    // The stream of answers ends when the last sender of it is dropped, which is when this call is over.
    fn end(&mut self) {}
}

struct TokioTimer;

#[async_trait]
impl Timer for TokioTimer {
    async fn wait(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}
