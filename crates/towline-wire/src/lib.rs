//! The wire protocol of Towline's transports: protobuf schema, limits, conversions to and from the engine's types, and the
//! rules of the handshake. [`streams`] implements what happens on each stream of a connection. A transport built on this
//! crate provides connections and speaks the same protocol as every other one.
//!
//! This crate opens no connection. Outside of [`streams`] it knows neither a runtime nor a clock. Payloads are
//! [`bytes::Bytes`]: converting a message between the engine's type and [`pb`] copies no payload. No input makes this crate
//! panic. A receiver bounds what a frame may allocate before it decodes the frame ([`limits`]).
//!
//! ```
//! use bytes::Bytes;
//! use prost::Message as _;
//! use towline_engine::ids::{GroupId, NodeId};
//! use towline_engine::message::{Batch, Envelope, Message, MessageKind};
//! use towline_wire::{Received, batch_of, decode_frame, frames};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let node = |id| NodeId::new(id).ok_or("zero");
//! let mut message = Message::new(MessageKind::Heartbeat, node(1)?, node(2)?);
//! message.term = 7;
//! let batch = Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] };
//!
//! for frame in frames(batch.clone())? {
//!     let bytes: Bytes = frame.encode_to_vec().into();
//!     let Received { batch: arrived, rejected } = batch_of(decode_frame(bytes)?)?;
//!     assert_eq!((arrived, rejected.len()), (batch.clone(), 0));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `docs/wire.md` describes the upgrade policy, the byte tables and the handshake.
#![forbid(unsafe_code)]

mod error;
mod frames;
mod handshake;
pub mod limits;
mod prefixed;
mod raft;
mod scan;
mod snapshot;
#[cfg(feature = "streams")]
pub mod streams;

/// The generated messages of `proto/towline/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod pb {
    include!("gen/towline.v1.rs");
}

pub use error::WireError;
pub use frames::{
    Received, Rejected, batch_of, decode_frame, encoded_len, frames, merge_nacks, nacks_frame, nacks_of,
};
pub use handshake::{Purpose, check_answer, check_first_frame, hello_frame, refused_frame, welcome_frame};
pub use prefixed::{Prefix, Prefixed, pieces, prefixed};
pub use snapshot::{offer_frame, offer_of};
