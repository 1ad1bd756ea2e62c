//! The two halves of a QUIC stream.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use towline_engine::message::Lane;
use towline_engine::transport::{BytesTaken, ConnectError, Hello, LinkClosed, Peer, Welcome};
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use towline_wire::streams::{ANSWERS_WAITING_MAX, Caller, FAREWELL, FrameSink, FrameSource, serve};
use towline_wire::{Prefix, Prefixed, Purpose, WireError, check_answer, hello_frame, pb, pieces, prefixed};

use crate::codes::{self, ABANDONED};
use crate::dial::Dialled;

/// Pieces read from quinn at once; each is about one packet.
const PIECES_MAX: usize = 32;

/// Stream priorities. QUIC sends data of the highest priority first.
fn priority(purpose: Purpose) -> i32 {
    match purpose {
        Purpose::Lane(Lane::Control) => 2,
        Purpose::Lane(Lane::Append) => 1,
        Purpose::Snapshot => 0,
    }
}

/// Opens a stream and completes its handshake. Waits while the peer allows no more streams.
pub(crate) async fn open(
    dialled: Arc<Dialled>,
    to: &Peer,
    purpose: Purpose,
    hello: &Hello,
) -> Result<(StreamSink, Incoming, Welcome), ConnectError> {
    let (send, receive) = dialled.connection.open_bi().await.map_err(|error| dialled.error(error))?;
    let (mut send, mut receive) = (Outgoing::new(send), Incoming::new(receive));
    // Fails only on an ended stream, which the next write reports.
    let _ = send.stream.set_priority(priority(purpose));
    let said = send.stream.write_chunk(prefixed(&hello_frame(hello, purpose))).await;
    said.map_err(|error| dialled.error_or(codes::lost(error), "closed before the hello"))?;
    let protocol = |detail: String| ConnectError::Protocol { address: to.address.clone(), detail };
    let first = match receive.frame().await {
        Ok(Some(frame)) => frame,
        Ok(None) => return Err(protocol("closed without an answer to the hello".into())),
        Err(Ended::Violation(error)) => return Err(protocol(error.to_string())),
        Err(Ended::Lost(ReadError::ConnectionLost(error))) => return Err(dialled.error(error)),
        Err(Ended::Lost(error)) => return Err(dialled.error_or(None, &error.to_string())),
    };
    let welcome = check_answer(&to.address, to.id, first)?;
    Ok((StreamSink { send, taken: BytesTaken::default(), _dialled: dialled }, receive, welcome))
}

/// The dialler's sending half.
pub(crate) struct StreamSink {
    send: Outgoing,
    taken: BytesTaken,
    _dialled: Arc<Dialled>,
}

impl FrameSink for StreamSink {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        let mut pieces = pieces(&frame, Prefix::Length);
        let mut left = pieces.as_mut_slice();
        while !left.is_empty() {
            let written = self.send.stream.write_chunks(left).await.map_err(|error| error.to_string())?;
            self.taken.add(written.bytes);
            left = left.get_mut(written.chunks..).unwrap_or_default();
        }
        Ok(())
    }

    /// Ends the stream in order. Dropping this half afterwards still resets the stream, so that a listener that still
    /// reads gives up. Once the dialler knows the outcome, the listener has read everything.
    fn end(&mut self) {
        let _ = self.send.stream.finish();
    }

    fn taken(&self) -> BytesTaken {
        self.taken.clone()
    }
}

pub(crate) struct Incoming {
    stream: RecvStream,
    prefixed: Prefixed,
    /// The limit of the next frame in bytes: that of a hello before the first frame.
    bytes_max: usize,
}

enum Ended {
    Violation(WireError),
    Lost(ReadError),
}

impl Incoming {
    fn new(stream: RecvStream) -> Self {
        Self { stream, prefixed: Prefixed::default(), bytes_max: HELLO_BYTES_MAX }
    }

    async fn frame(&mut self) -> Result<Option<pb::Frame>, Ended> {
        loop {
            if let Some(frame) = self.prefixed.next_frame(self.bytes_max).map_err(Ended::Violation)? {
                self.bytes_max = FRAME_BYTES_MAX;
                return Ok(Some(frame));
            }
            let mut pieces = [const { Bytes::new() }; PIECES_MAX];
            match self.stream.read_chunks(&mut pieces).await.map_err(Ended::Lost)? {
                Some(_) => pieces.into_iter().for_each(|piece| self.prefixed.push(piece)),
                None if self.prefixed.is_empty() => return Ok(None),
                None => {
                    let detail = "the stream ended within a frame".into();
                    return Err(Ended::Violation(WireError::Malformed { detail }));
                }
            }
        }
    }
}

impl FrameSource for Incoming {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        self.frame().await.map_err(|ended| match ended {
            Ended::Violation(error) => LinkClosed::Violation { detail: error.to_string() },
            Ended::Lost(error) => codes::link_closed(&error),
        })
    }
}

/// A sending half that resets its stream when dropped, unless [`finish`](Self::finish) was called. quinn would *finish* a
/// dropped stream, which the peer would take for its orderly end.
struct Outgoing {
    stream: SendStream,
    finished: bool,
}

impl Outgoing {
    fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    /// Ends the stream in order. All data arrives even if this is dropped now.
    fn finish(&mut self) {
        // Fails if the stream has already ended.
        let _ = self.stream.finish();
        self.finished = true;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            // Fails if the stream has already ended; then there is nothing to abandon.
            let _ = self.stream.reset(ABANDONED);
        }
    }
}

/// Serves one stream that a dialler opened.
pub(crate) async fn accept(caller: Arc<Caller>, send: SendStream, receive: RecvStream) {
    let (answers, waiting) = mpsc::channel(ANSWERS_WAITING_MAX);
    let answering = answer(Outgoing::new(send), waiting);
    let serving = serve(caller, Incoming::new(receive), answers);
    tokio::pin!(answering, serving);
    tokio::select! {
        // The dialler abandoned the stream. `serve` notices it because the channel of its answers closes.
        () = &mut answering => serving.await,
        () = &mut serving => { let _ = timeout(FAREWELL, answering).await; }
    }
}

/// Writes answers until the last is acknowledged, or until the dialler stops reading.
async fn answer(mut send: Outgoing, mut waiting: mpsc::Receiver<pb::Frame>) {
    let stopped = send.stream.stopped();
    tokio::pin!(stopped);
    loop {
        let frame = tokio::select! {
            _ = &mut stopped => return,
            frame = waiting.recv() => frame,
        };
        let Some(frame) = frame else { break };
        if send.stream.write_chunk(prefixed(&frame)).await.is_err() {
            return;
        }
    }
    send.finish();
    // Wait for the acknowledgement: the connection may be closed right after.
    let _ = stopped.await;
}
