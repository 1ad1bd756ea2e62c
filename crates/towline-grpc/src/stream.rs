//! The two halves of a call, and the service that accepts calls.
//!
//! This module frames and decodes messages itself instead of using tonic's codec. It bounds the allocations of a frame before
//! it decodes the frame, and allocates no more than the frame's length. The payload of a snapshot's chunk goes from the file
//! to the socket without a copy.

use std::array;
use std::convert::Infallible;
use std::error::Error as _;
use std::future::{self, Ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::StatusCode;
use hyper::{Request, Response};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tonic::body::Body;
use tonic::metadata::GRPC_CONTENT_TYPE;
use tonic::server::NamedService;
use tonic::{Code, Status};
use towline_engine::transport::{BytesTaken, LinkClosed};
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use towline_wire::pb::frame::Kind;
use towline_wire::streams::{ANSWERS_WAITING_MAX, Caller, FrameSink, FrameSource, serve};
use towline_wire::{Prefix, Prefixed, pb, pieces};

use crate::alive::KEEPALIVE_GAVE_UP;
use crate::secured::WireEnd;
use crate::tasks::Tasks;

/// The one method of the service in the schema.
pub(crate) const LANE: &str = "/towline.v1.Transport/Lane";

/// The text of h2's error for a stream whose connection has ended, on either side.
const CONNECTION_GONE: &str = "stream closed because of a broken pipe";

/// An empty message: a listener's sign of life, because a dialler's own keep-alive may wait behind its bytes. HTTP/2 has no
/// such frame: implementations cut a connection after a hundred empty DATA frames. A listener that has received bytes since
/// the last beat reports their number instead: HTTP/2 itself reports in steps of half a window, which takes 8 s at 1 Mbit/s.
const BEAT: &[u8] = &[0; 5];

/// Bytes passed to HTTP/2 at once; [`BytesTaken`] advances with each piece. Pieces of 128 KiB cost a quarter of the
/// throughput on loopback.
const PIECE_BYTES_MAX: usize = 512 << 10;

/// The dialler's sending half. Dropping it closes the connection at once.
pub(crate) struct Sink {
    /// Dropped to end the call in order.
    pub(crate) frames: Option<mpsc::Sender<pb::Frame>>,
    pub(crate) taken: BytesTaken,
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

    fn taken(&self) -> BytesTaken {
        self.taken.clone()
    }
}

/// The body of a request or a response, made of frames.
pub(crate) struct Outgoing {
    frames: mpsc::Receiver<pb::Frame>,
    pieces: array::IntoIter<Bytes, 3>,
    piece: Bytes,
    taken: BytesTaken,
    trailers: Option<HeaderMap>,
    /// The interval of [`BEAT`]s of a response, after its first frame.
    beat: Option<Duration>,
    beats: Option<Interval>,
    received: BytesTaken,
    /// The last reported number of received bytes.
    reported: u64,
}

impl Outgoing {
    pub(crate) fn request(frames: mpsc::Receiver<pb::Frame>, taken: BytesTaken) -> Body {
        Body::new(Self::new(frames, taken))
    }

    fn response(frames: mpsc::Receiver<pb::Frame>, beat: Duration, received: BytesTaken) -> Body {
        let mut trailers = HeaderMap::with_capacity(1);
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::Ok as i32));
        let new = Self::new(frames, BytesTaken::default());
        Body::new(Self { trailers: Some(trailers), beat: Some(beat), received, ..new })
    }

    fn new(frames: mpsc::Receiver<pb::Frame>, taken: BytesTaken) -> Self {
        let pieces = <[Bytes; 3]>::default().into_iter();
        let (piece, received) = (Bytes::new(), BytesTaken::default());
        Self { frames, pieces, piece, taken, trailers: None, beat: None, beats: None, received, reported: 0 }
    }

    fn begin_to_beat(&mut self) {
        if let (Some(beat), None) = (self.beat, &self.beats) {
            let mut beats = interval_at(Instant::now() + beat, beat);
            beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
            self.beats = Some(beats);
        }
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
            if !self.piece.is_empty() {
                let bytes = self.piece.len().min(PIECE_BYTES_MAX);
                self.taken.add(bytes);
                return Poll::Ready(Some(Ok(Frame::data(self.piece.split_to(bytes)))));
            }
            if let Some(piece) = self.pieces.next() {
                self.piece = piece;
                continue;
            }
            match self.frames.poll_recv(cx) {
                Poll::Ready(Some(frame)) => {
                    self.pieces = pieces(&frame, Prefix::Grpc).into_iter();
                    self.begin_to_beat();
                }
                Poll::Ready(None) => {
                    return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
                }
                Poll::Pending => {
                    let Some(beats) = &mut self.beats else { return Poll::Pending };
                    ready!(beats.poll_tick(cx));
                    let bytes = self.received.now();
                    if bytes == self.reported {
                        return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(BEAT)))));
                    }
                    self.reported = bytes;
                    let taken = pb::Frame { kind: Some(Kind::Taken(pb::Taken { bytes })) };
                    self.pieces = pieces(&taken, Prefix::Grpc).into_iter();
                }
            }
        }
    }
}

pub(crate) struct Source {
    body: Body,
    prefixed: Prefixed,
    /// The limit of the next frame in bytes: that of a hello before the first frame.
    bytes_max: usize,
    /// Set for a response. A response without a final status was cut.
    end: Option<WireEnd>,
    /// For a request, the bytes received. For a response, the bytes that the peer reports as received.
    taken: BytesTaken,
    /// The peer's last report.
    reported: u64,
}

impl Source {
    /// The receiving half of a dialler. `end` tells how the connection ended.
    pub(crate) fn response(body: Body, end: WireEnd, taken: BytesTaken) -> Self {
        Self { end: Some(end), ..Self::request(body, taken) }
    }

    fn request(body: Body, received: BytesTaken) -> Self {
        let prefixed = Prefixed::new(Prefix::Grpc);
        Self { body, prefixed, bytes_max: HELLO_BYTES_MAX, end: None, taken: received, reported: 0 }
    }

    /// Whether a frame is only a sign of life. Applies its report of received bytes.
    fn is_beat(&mut self, frame: &pb::Frame) -> bool {
        match frame.kind {
            _ if self.end.is_none() => return false,
            None => {}
            Some(Kind::Taken(pb::Taken { bytes })) => {
                let more = usize::try_from(bytes.saturating_sub(self.reported)).unwrap_or(usize::MAX);
                self.reported = self.reported.max(bytes);
                self.taken.add(more);
            }
            Some(_) => return false,
        }
        true
    }

    pub(crate) async fn frame(&mut self) -> Result<Option<pb::Frame>, Ended> {
        loop {
            let frame = self.prefixed.next_frame(self.bytes_max);
            if let Some(frame) = frame.map_err(|error| Ended::Violation(error.to_string()))? {
                if self.is_beat(&frame) {
                    continue;
                }
                self.bytes_max = FRAME_BYTES_MAX;
                return Ok(Some(frame));
            }
            match future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(Ok(frame)) => match frame.into_data().map_err(Frame::into_trailers) {
                    Ok(bytes) => {
                        if self.end.is_none() {
                            self.taken.add(bytes.len());
                        }
                        self.prefixed.push(bytes);
                    }
                    Err(Ok(trailers)) => return self.end(Status::from_header_map(&trailers)),
                    // Other kinds of frames are ignored.
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

    /// The reason why the connection broke, which the library's error may lack.
    fn broken(&self, status: &Status) -> String {
        let said = detail(status);
        match self.end.as_ref().and_then(WireEnd::seen) {
            Some(seen) if said.contains(CONNECTION_GONE) || seen == KEEPALIVE_GAVE_UP => seen.to_owned(),
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

pub(crate) enum Ended {
    Violation(String),
    Status(Status),
}

impl FrameSource for Source {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        self.frame().await.map_err(|ended| match ended {
            Ended::Violation(detail) => LinkClosed::Violation { detail },
            // A status from the peer has no source.
            Ended::Status(status) if status.source().is_none() => {
                LinkClosed::ByPeer { detail: detail(&status) }
            }
            Ended::Status(status) => LinkClosed::Broken { detail: self.broken(&status) },
        })
    }
}

/// The status with all its causes. Often only the innermost cause is specific.
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
pub(crate) struct Streams {
    /// The interval of a stream's signs of life.
    pub(crate) beat: Duration,
}

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
        future::ready(Ok(accept(request, self.beat)))
    }
}

fn accept(request: Request<Body>, beat: Duration) -> Response<Body> {
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
    let received = BytesTaken::default();
    tokio::spawn(serve(caller, Source::request(request.into_body(), received.clone()), answers));
    let mut response = Response::new(Outgoing::response(receiver, beat, received));
    response.headers_mut().insert(CONTENT_TYPE, GRPC_CONTENT_TYPE);
    response
}
