//! The dialling side of a lane.

use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use towline_engine::message::Batch;
use towline_engine::transport::{BytesTaken, DispatchError, Link, LinkClosed, LinkFeedback, Refusal};

use super::feedback::SharedFeedback;
use super::{FrameSink, FrameSource};
use crate::error::WireError;
use crate::frames::{frames, nacks_of};
use crate::limits::MESSAGE_BYTES_MAX;
use crate::pb::{self, frame::Kind};

/// How long a failed dispatch waits for the reader to learn the true cause of the link's end.
const CAUSE_WAIT: Duration = Duration::from_millis(250);

/// Makes a link of a stream whose peer answered with a welcome. Call it inside a tokio runtime: it spawns a task that
/// reads the answers and ends with the link.
pub fn link(sink: impl FrameSink + Sync, source: impl FrameSource, feedback: LinkFeedback) -> Box<dyn Link> {
    let feedback = SharedFeedback::new(feedback);
    let heard = feedback.clone();
    let (alive, gone) = oneshot::channel();
    let reader = tokio::spawn(async move {
        let cause = read(source, &heard).await;
        heard.closed(cause);
        drop(alive);
    });
    let taken = sink.taken();
    let stream = Stream { gone, feedback, reader: reader.abort_handle(), sink };
    Box::new(StreamLink { stream: Some(stream), taken })
}

/// Passes answers to `feedback` until the stream ends. Returns why it ended.
async fn read(mut source: impl FrameSource, feedback: &SharedFeedback) -> LinkClosed {
    loop {
        let nacks = match source.next().await {
            Ok(Some(pb::Frame { kind: Some(Kind::Refused(refused)) })) => return ended(refused),
            Ok(Some(frame)) => nacks_of(frame),
            Ok(None) => return LinkClosed::ByPeer { detail: "end of the stream".into() },
            Err(closed) => return closed,
        };
        match nacks {
            Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
            Err(error) => return LinkClosed::Violation { detail: error.to_string() },
        }
    }
}

/// The close cause for a refusal that a listener sends as the last frame of an accepted stream.
pub(super) fn ended(refused: pb::Refused) -> LinkClosed {
    let detail = match Refusal::try_from(refused) {
        Ok(Refusal::Malformed { detail }) => detail,
        Ok(refusal) => refusal.to_string(),
        Err(error) => error.to_string(),
    };
    LinkClosed::ByPeer { detail }
}

struct StreamLink<S> {
    /// `None` once a dispatch failed or was dropped midway.
    stream: Option<Stream<S>>,
    taken: BytesTaken,
}

struct Stream<S> {
    /// Resolves when the reader has ended.
    gone: oneshot::Receiver<Infallible>,
    feedback: SharedFeedback,
    reader: AbortHandle,
    sink: S,
}

impl<S> Drop for Stream<S> {
    fn drop(&mut self) {
        self.feedback.closed(LinkClosed::Abandoned);
        self.reader.abort();
    }
}

#[async_trait]
impl<S: FrameSink + Sync> Link for StreamLink<S> {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        // Taken out here and put back at the end: dropping this future in between drops the stream.
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
                sent = stream.sink.send(frame) => {
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

    fn taken(&self) -> BytesTaken {
        self.taken.clone()
    }
}
