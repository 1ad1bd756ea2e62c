//! The dialling side of a lane: a stream of the peer's connection.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::{
    ConnectError, Connected, DispatchError, Hello, Link, LinkClosed, LinkFeedback, Peer, Refusal, Welcome,
};
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, MESSAGE_BYTES_MAX};
use towline_wire::{
    Purpose, SharedFeedback, WireError, check_answer, frames, hello_frame, nacks_of, pb, prefixed,
};

use crate::codes;
use crate::dial::Dialled;
use crate::stream::{Ended, Incoming, Outgoing, priority};

/// How long a dispatch that failed waits for the reader to learn why, so that the link's end is told with its true cause.
const CAUSE_WAIT: Duration = Duration::from_millis(250);

pub(crate) async fn connect(
    dialled: Arc<Dialled>,
    to: &Peer,
    lane: Lane,
    hello: &Hello,
    feedback: LinkFeedback,
) -> Result<Connected, ConnectError> {
    let Opened { send, receive, welcome } = open(&dialled, to, lane.into(), hello).await?;
    let (alive, gone) = oneshot::channel();
    let feedback = SharedFeedback::new(feedback);
    let heard = feedback.clone();
    let reader = tokio::spawn(async move {
        read(receive, heard).await;
        drop(alive);
    });
    let stream = Stream { send, gone, feedback, reader: reader.abort_handle(), _dialled: dialled };
    Ok(Connected { link: Box::new(QuicLink { stream: Some(stream) }), welcome })
}

/// A stream whose peer has answered the handshake.
pub(crate) struct Opened {
    pub(crate) send: Outgoing,
    pub(crate) receive: Incoming,
    pub(crate) welcome: Welcome,
}

/// Waits while the peer allows no more streams.
pub(crate) async fn open(
    dialled: &Dialled,
    to: &Peer,
    purpose: Purpose,
    hello: &Hello,
) -> Result<Opened, ConnectError> {
    let (send, receive) = dialled.connection.open_bi().await.map_err(|error| dialled.error(error))?;
    let (mut send, mut receive) = (Outgoing::new(send), Incoming::new(receive));
    // It fails only on a stream that has ended, which the next write finds out.
    let _ = send.stream.set_priority(priority(purpose));
    let said = send.stream.write_chunk(prefixed(&hello_frame(hello, purpose))).await;
    said.map_err(|error| dialled.error_or(codes::lost(error), "closed before the hello"))?;
    let welcome = check_answer(&to.address, to.id, first(dialled, &mut receive, to).await?)?;
    Ok(Opened { send, receive, welcome })
}

/// The answer to a hello.
async fn first(dialled: &Dialled, receive: &mut Incoming, to: &Peer) -> Result<pb::Frame, ConnectError> {
    let protocol = |detail: String| ConnectError::Protocol { address: to.address.clone(), detail };
    match receive.next(HELLO_BYTES_MAX).await {
        Ok(Some(frame)) => Ok(frame),
        Ok(None) => Err(protocol("closed without an answer to the hello".into())),
        Err(Ended::Violation(error)) => Err(protocol(error.to_string())),
        Err(Ended::Lost(quinn::ReadError::ConnectionLost(error))) => Err(dialled.error(error)),
        Err(Ended::Lost(error)) => Err(dialled.error_or(None, &error.to_string())),
    }
}

/// Tells what comes back until the stream ends, then that it has ended.
async fn read(mut receive: Incoming, feedback: SharedFeedback) {
    let cause = loop {
        let frame = match receive.next(FRAME_BYTES_MAX).await {
            Ok(Some(frame)) => frame,
            Ok(None) => break LinkClosed::ByPeer { detail: "end of the stream".into() },
            Err(Ended::Violation(error)) => break LinkClosed::Violation { detail: error.to_string() },
            Err(Ended::Lost(error)) => break codes::link_closed(&error),
        };
        // The last word of a listener that ends a lane.
        if let Some(pb::frame::Kind::Refused(refused)) = frame.kind {
            break LinkClosed::ByPeer { detail: ended_by_refusal(refused) };
        }
        match nacks_of(frame) {
            Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
            Err(error) => break LinkClosed::Violation { detail: error.to_string() },
        }
    };
    feedback.closed(cause);
}

/// What a listener says when it ends a stream that it had welcomed.
pub(crate) fn ended_by_refusal(refused: pb::Refused) -> String {
    match Refusal::try_from(refused) {
        Ok(Refusal::Malformed { detail }) => detail,
        Ok(refusal) => refusal.to_string(),
        Err(error) => error.to_string(),
    }
}

struct QuicLink {
    /// `None` once a dispatch failed or was dropped midway.
    stream: Option<Stream>,
}

struct Stream {
    send: Outgoing,
    /// Resolves when the reader has ended.
    gone: oneshot::Receiver<()>,
    feedback: SharedFeedback,
    reader: AbortHandle,
    _dialled: Arc<Dialled>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.feedback.closed(LinkClosed::Abandoned);
        self.reader.abort();
    }
}

#[async_trait]
impl Link for QuicLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        // Taken out and put back at the end: if this future is dropped in between, so is the stream.
        let mut stream = self.stream.take().ok_or(DispatchError::Closed)?;
        let frames = frames(batch).map_err(|error| match error {
            WireError::MessageTooLarge { bytes, bytes_max } => DispatchError::TooLarge { bytes, bytes_max },
            // More entries than a frame may have: no message of that kind is within the limit.
            _ => DispatchError::TooLarge { bytes: MESSAGE_BYTES_MAX, bytes_max: MESSAGE_BYTES_MAX },
        })?;
        for frame in frames {
            tokio::select! {
                biased;
                _ = &mut stream.gone => return Err(DispatchError::Closed),
                sent = stream.send.stream.write_chunk(prefixed(&frame)) => {
                    if sent.is_err() {
                        let _ = timeout(CAUSE_WAIT, &mut stream.gone).await;
                        return Err(DispatchError::Closed);
                    }
                }
            }
        }
        self.stream = Some(stream);
        Ok(())
    }
}
