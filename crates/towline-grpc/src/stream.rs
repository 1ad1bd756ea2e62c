//! The two halves of a call, and the service that accepts calls.

use std::error::Error as _;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::adapters::Map;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use towline_engine::transport::LinkClosed;
use towline_wire::pb;
use towline_wire::streams::{ANSWERS_WAITING_MAX, Caller, FrameSink, FrameSource, serve};

use crate::codec::is_violation;
use crate::service::transport_server::Transport;
use crate::tasks::Tasks;

/// What a dialler says. Dropping it closes the connection, whatever is under way.
pub(crate) struct Sink {
    /// Dropped to end the call in order.
    pub(crate) frames: Option<mpsc::Sender<pb::Frame>>,
    pub(crate) _tasks: Tasks,
}

impl FrameSink for Sink {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        let closed = || String::from("the stream is closed");
        self.frames.as_ref().ok_or_else(closed)?.send(frame).await.map_err(|_| closed())
    }

    fn end(&mut self) {
        self.frames = None;
    }
}

/// What the other side says.
pub(crate) struct Source(pub(crate) Streaming<pb::Frame>);

impl FrameSource for Source {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        self.0.message().await.map_err(|status| match detail(&status) {
            _ if is_violation(&status) => LinkClosed::Violation { detail: status.message().into() },
            // A status that the peer sent has no source here.
            detail if status.source().is_none() => LinkClosed::ByPeer { detail },
            detail => LinkClosed::Broken { detail },
        })
    }
}

/// The innermost cause says most: the outer ones are "h2 protocol error" and "transport error".
pub(crate) fn detail(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let inner = error.to_string();
        if !text.contains(&inner) {
            text.push_str(": ");
            text.push_str(&inner);
        }
        cause = error.source();
    }
    text
}

/// The gRPC service: each call is one stream.
pub(crate) struct Streams;

#[tonic::async_trait]
impl Transport for Streams {
    type LaneStream = Map<ReceiverStream<pb::Frame>, fn(pb::Frame) -> Result<pb::Frame, Status>>;

    async fn lane(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let caller = request.extensions().get::<Arc<Caller>>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("no connection"))?;
        let (answers, receiver) = mpsc::channel(ANSWERS_WAITING_MAX);
        tokio::spawn(serve(caller, Source(request.into_inner()), answers));
        Ok(Response::new(ReceiverStream::new(receiver).map(Ok)))
    }
}
