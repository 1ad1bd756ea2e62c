//! The protocol on each stream, shared by all transports that have streams: links, snapshot transfers, serving of lanes,
//! and bounds on what a peer may open. Needs tokio; feature `streams`, on by default.
//!
//! A transport provides connections, and for each stream two halves: a [`FrameSink`] and a [`FrameSource`].
//! * To dial: open a stream, send [`hello_frame`](crate::hello_frame), check the first frame that comes back with
//!   [`check_answer`](crate::check_answer), then call [`link`] or [`offer`].
//! * To listen: create one [`Listening`] for a listener and one [`Caller`] for each connection. Call [`serve`] for each
//!   stream.
//!
//! `examples/custom-transport` is the shortest transport that does this.

mod address;
mod deliver;
mod feedback;
mod link;
mod listening;
mod rate;
mod serve;
mod slots;
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

/// Frames that may wait to go back to a dialler: the capacity of the channel that [`serve`] answers on. When it is full,
/// nacks are dropped and counted, and progress is reported later. `serve` still reads batches.
pub const ANSWERS_WAITING_MAX: usize = 16;

/// The deadline for sending the final frame of a stream to a dialler.
pub const FAREWELL: Duration = Duration::from_millis(250);

/// The sending half of a stream. Dropping it without [`end`](Self::end) must reset the stream, so that the peer does not
/// mistake the drop for an orderly end.
pub trait FrameSink: Send + 'static {
    /// Hands a frame to flow control. Need not be cancel-safe: callers discard the stream when they drop the future.
    ///
    /// # Errors
    /// A description of what broke.
    fn send(&mut self, frame: pb::Frame) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends the stream in order: no frame follows.
    fn end(&mut self);

    /// Counts the bytes of frames that flow control has accepted, in steps of about 128 KiB at most: see
    /// [`Link::taken`](towline_engine::transport::Link::taken).
    fn taken(&self) -> BytesTaken {
        BytesTaken::default()
    }
}

/// The receiving half of a stream. Dropping it tells the peer that this side no longer reads.
pub trait FrameSource: Send + 'static {
    /// Returns the next frame, or `None` after an orderly end. Must be cancel-safe. [`serve`] and
    /// [`check_answer`](crate::check_answer) refuse a first frame longer than
    /// [`HELLO_BYTES_MAX`](crate::limits::HELLO_BYTES_MAX); a source should refuse it earlier if it can.
    ///
    /// # Errors
    /// Why no further frame will come; a reset is an error too.
    fn next(&mut self) -> impl Future<Output = Result<Option<pb::Frame>, LinkClosed>> + Send;
}

/// The reason text of a closed link, without the side that caused it.
fn detail(closed: LinkClosed) -> String {
    match closed {
        LinkClosed::ByPeer { detail } | LinkClosed::Broken { detail } | LinkClosed::Violation { detail } => {
            detail
        }
        _ => "given up by this side".into(),
    }
}
