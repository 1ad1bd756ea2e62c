//! What happens on a stream, the same for every transport that has streams: links, snapshot transfers, the serving of
//! lanes, and the bounds on what a peer may open. Needs tokio; feature `streams`, on by default.
//!
//! A transport brings connections, and for each stream two halves: a [`FrameSink`] and a [`FrameSource`].
//! * To dial: open a stream, say [`hello_frame`](crate::hello_frame), look at what comes back with
//!   [`check_answer`](crate::check_answer), then [`link`] or [`offer`].
//! * To listen: one [`Listening`] for a listener, one [`Caller`] for each connection, [`serve`] for each of its streams.
//!
//! `examples/custom-transport` is the shortest transport that does so.

mod address;
mod deliver;
mod feedback;
mod link;
mod listening;
mod rate;
mod seats;
mod serve;
mod transfer;

use std::future::Future;
use std::time::Duration;

use towline_engine::transport::{BytesTaken, LinkClosed};

use crate::pb;

pub use address::{Unusable, resolve};
pub use link::link;
pub use listening::{Caller, Listening, Phase, StreamLimits, Unwanted};
pub use rate::Rate;
pub use serve::serve;
pub use transfer::offer;

/// Frames that wait to go back to a dialler: the bound of the channel that [`serve`] answers on. At the bound nacks are
/// dropped and counted, and progress is told later; batches are read on.
pub const ANSWERS_WAITING_MAX: usize = 16;

/// How long the last word to a dialler may take.
pub const FAREWELL: Duration = Duration::from_millis(250);

/// The sending half of a stream. Dropping it without [`end`](Self::end) resets the stream: the peer must not take it for
/// an ordinary end.
pub trait FrameSink: Send + 'static {
    /// Hands a frame to flow control. Need not be cancel-safe: the stream is of no further use when the future is
    /// dropped.
    ///
    /// # Errors
    /// What broke.
    fn send(&mut self, frame: pb::Frame) -> impl Future<Output = Result<(), String>> + Send;

    /// Nothing more will be sent.
    fn end(&mut self);

    /// Counts what flow control takes of the frames, in pieces of at most 128 KiB or so: see
    /// [`Link::taken`](towline_engine::transport::Link::taken).
    fn taken(&self) -> BytesTaken {
        BytesTaken::default()
    }
}

/// The receiving half of a stream. Dropping it tells the peer that nobody reads any more.
pub trait FrameSource: Send + 'static {
    /// The next frame; `None` at an end in order. Cancel-safe. The first frame of a stream is at most
    /// [`HELLO_BYTES_MAX`](crate::limits::HELLO_BYTES_MAX), which [`serve`] and [`check_answer`](crate::check_answer) hold
    /// to be safe; a source that can refuse it sooner should.
    ///
    /// # Errors
    /// Why there will be none, a reset included.
    fn next(&mut self) -> impl Future<Output = Result<Option<pb::Frame>, LinkClosed>> + Send;
}

/// What was said of an end, without who caused it.
fn detail(closed: LinkClosed) -> String {
    match closed {
        LinkClosed::ByPeer { detail } | LinkClosed::Broken { detail } | LinkClosed::Violation { detail } => {
            detail
        }
        _ => "given up by this side".into(),
    }
}
