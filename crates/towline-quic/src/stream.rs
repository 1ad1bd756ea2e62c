//! Frames on one QUIC stream.

use std::fmt;

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream};
use towline_engine::message::Lane;
use towline_wire::{Prefixed, Purpose, WireError, pb};

use crate::codes::ABANDONED;

/// Pieces taken from the library at once; each is about a packet.
const PIECES_MAX: usize = 32;

/// QUIC sends the highest first, whatever waits on the others.
pub(crate) fn priority(purpose: Purpose) -> i32 {
    match purpose {
        Purpose::Lane(Lane::Control) => 2,
        Purpose::Lane(Lane::Append) => 1,
        Purpose::Snapshot => 0,
    }
}

/// The receiving half.
pub(crate) struct Incoming {
    stream: RecvStream,
    prefixed: Prefixed,
}

/// Why there is no further frame.
#[derive(Debug)]
pub(crate) enum Ended {
    Violation(WireError),
    Lost(ReadError),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(error) => error.fmt(f),
            Self::Lost(ReadError::ConnectionLost(error)) => error.fmt(f),
            Self::Lost(error) => error.fmt(f),
        }
    }
}

impl Incoming {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, prefixed: Prefixed::default() }
    }

    /// The next frame, of at most `bytes_max`, or `None` at an end in order. Cancel-safe.
    pub(crate) async fn next(&mut self, bytes_max: usize) -> Result<Option<pb::Frame>, Ended> {
        loop {
            if let Some(frame) = self.prefixed.next_frame(bytes_max).map_err(Ended::Violation)? {
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

/// The sending half. The library would *finish* a stream that is dropped, which tells the peer that all is said; so
/// dropping this one resets it, unless [`finish`](Self::finish) said before that it is.
pub(crate) struct Outgoing {
    pub(crate) stream: SendStream,
    finished: bool,
}

impl Outgoing {
    pub(crate) fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    /// All is said, and arrives even if this is dropped now.
    pub(crate) fn finish(&mut self) {
        // It fails where the stream has ended already.
        let _ = self.stream.finish();
        self.finished = true;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.finished {
            // It fails where the stream has ended already: then there is nothing to abandon.
            let _ = self.stream.reset(ABANDONED);
        }
    }
}
