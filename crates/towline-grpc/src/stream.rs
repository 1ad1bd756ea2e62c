//! The two halves of a call, and the service that accepts calls.
//!
//! Messages are framed and taken apart here and not by tonic's codec: what a frame makes us allocate is bounded before it
//! is decoded, its memory is as long as it is, and the payload of a snapshot's chunk goes to the socket as it came from
//! the file.

use std::array;
use std::convert::Infallible;
use std::error::Error as _;
use std::future::{self, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::StatusCode;
use hyper::{Request, Response};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Code, Status};
use towline_engine::transport::LinkClosed;
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use towline_wire::streams::{ANSWERS_WAITING_MAX, Caller, FrameSink, FrameSource, serve};
use towline_wire::{Prefix, Prefixed, pb, pieces};

use crate::secured::WireEnd;
use crate::tasks::Tasks;

/// The one method of the service in the schema.
pub(crate) const LANE: &str = "/towline.v1.Transport/Lane";

/// What h2 says on a stream whose connection is gone, whoever ended it.
const CONNECTION_GONE: &str = "stream closed because of a broken pipe";

/// The only way a connection goes that neither side closed and no task of ours ended.
const KEEPALIVE_GAVE_UP: &str = "keep-alive: the peer did not answer in time";

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

/// Frames on their way out, as the body of a request or a response.
pub(crate) struct Outgoing {
    frames: mpsc::Receiver<pb::Frame>,
    pieces: array::IntoIter<Bytes, 3>,
    /// What ends a response.
    trailers: Option<HeaderMap>,
}

impl Outgoing {
    pub(crate) fn request(frames: mpsc::Receiver<pb::Frame>) -> Body {
        Body::new(Self { frames, pieces: <[Bytes; 3]>::default().into_iter(), trailers: None })
    }

    fn response(frames: mpsc::Receiver<pb::Frame>) -> Body {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Ok as i32));
        Body::new(Self { frames, pieces: <[Bytes; 3]>::default().into_iter(), trailers: Some(trailers) })
    }
}

impl HttpBody for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.by_ref().find(|piece| !piece.is_empty()) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            match ready!(self.frames.poll_recv(cx)) {
                Some(frame) => self.pieces = pieces(&frame, Prefix::Grpc).into_iter(),
                None => {
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
            }
        }
    }
}

/// What the other side says.
pub(crate) struct Source {
    body: Body,
    prefixed: Prefixed,
    /// What the next frame may have: a hello's worth until the first was there.
    bytes_max: usize,
    /// Of a response. It ends with a status; one that does not was cut.
    end: Option<WireEnd>,
}

impl Source {
    /// What the listener says on a connection of ours, which knows how it ended.
    pub(crate) fn response(body: Body, end: WireEnd) -> Self {
        Self { end: Some(end), ..Self::request(body) }
    }

    fn request(body: Body) -> Self {
        let prefixed = Prefixed::new(Prefix::Grpc);
        Self { body, prefixed, bytes_max: HELLO_BYTES_MAX, end: None }
    }

    /// The next frame; `None` at an end in order.
    pub(crate) async fn frame(&mut self) -> Result<Option<pb::Frame>, Ended> {
        loop {
            let frame = self.prefixed.next_frame(self.bytes_max);
            if let Some(frame) = frame.map_err(|error| Ended::Violation(error.to_string()))? {
                self.bytes_max = FRAME_BYTES_MAX;
                return Ok(Some(frame));
            }
            match future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(Ok(frame)) => match frame.into_data().map_err(Frame::into_trailers) {
                    Ok(bytes) => self.prefixed.push(bytes),
                    Err(Ok(trailers)) => return self.end(Status::from_header_map(&trailers)),
                    // A kind of frame that is neither says nothing to us.
                    Err(Err(_)) => {}
                },
                Some(Err(status)) => return Err(Ended::Status(status)),
                None if self.end.is_some() => {
                    return Err(Ended::Status(Status::unknown("the stream ended without a status")));
                }
                None => return self.end(None),
            }
        }
    }

    /// Why the connection broke, which the library does not tell apart.
    fn broken(&self, status: &Status) -> String {
        let said = detail(status);
        match &self.end {
            Some(end) if said.contains(CONNECTION_GONE) => end.seen().unwrap_or(KEEPALIVE_GAVE_UP).to_owned(),
            _ => said,
        }
    }

    fn end(&self, status: Option<Status>) -> Result<Option<pb::Frame>, Ended> {
        match status {
            Some(status) if status.code() != Code::Ok => Err(Ended::Status(status)),
            _ if self.prefixed.is_empty() => Ok(None),
            _ => Err(Ended::Violation("the stream ended within a frame".into())),
        }
    }
}

/// Why there is no further frame.
pub(crate) enum Ended {
    Violation(String),
    Status(Status),
}

impl FrameSource for Source {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        self.frame().await.map_err(|ended| match ended {
            Ended::Violation(detail) => LinkClosed::Violation { detail },
            // A status that the peer sent has no source here.
            Ended::Status(status) if status.source().is_none() => {
                LinkClosed::ByPeer { detail: detail(&status) }
            }
            Ended::Status(status) => LinkClosed::Broken { detail: self.broken(&status) },
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
#[derive(Debug, Clone)]
pub(crate) struct Streams;

impl NamedService for Streams {
    const NAME: &'static str = "towline.v1.Transport";
}

impl tower_service::Service<Request<Body>> for Streams {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        future::ready(Ok(accept(request)))
    }
}

fn accept(request: Request<Body>) -> Response<Body> {
    let grpc = |value: &HeaderValue| value.as_bytes().starts_with(GRPC_CONTENT_TYPE.as_bytes());
    if !request.headers().get(CONTENT_TYPE).is_some_and(grpc) {
        let mut refused = Response::new(Body::empty());
        *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return refused;
    }
    if request.uri().path() != LANE {
        return Status::unimplemented("there is no such method").into_http();
    }
    let Some(caller) = request.extensions().get::<Arc<Caller>>().cloned() else {
        return Status::internal("no connection").into_http();
    };
    let (answers, receiver) = mpsc::channel(ANSWERS_WAITING_MAX);
    tokio::spawn(serve(caller, Source::request(request.into_body()), answers));
    let mut response = Response::new(Outgoing::response(receiver));
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}
