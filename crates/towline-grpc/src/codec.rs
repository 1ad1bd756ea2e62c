//! Frames to and from gRPC messages. Not tonic's own protobuf codec, because what a frame makes us allocate is bounded
//! before it is decoded, and because its length is known before it is encoded, so that no buffer grows by doubling.

use std::sync::Arc;

use bytes::Buf;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use towline_wire::{WireError, decode_frame, pb};

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = pb::Frame;
    type Decode = pb::Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for FrameCodec {
    type Item = pb::Frame;
    type Error = Status;

    fn encode(&mut self, frame: pb::Frame, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(frame.encoded_len());
        frame.encode(to).map_err(|e| Status::internal(e.to_string()))
    }
}

impl Decoder for FrameCodec {
    type Item = pb::Frame;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<pb::Frame>, Status> {
        // No copy: the buffer is split, and payloads are slices of it.
        let bytes = from.copy_to_bytes(from.remaining());
        decode_frame(bytes).map(Some).map_err(violation)
    }
}

/// A status that says that the other side broke the protocol; [`is_violation`] knows it again.
pub(crate) fn violation(error: WireError) -> Status {
    let mut status = Status::invalid_argument(error.to_string());
    status.set_source(Arc::new(error));
    status
}

/// Whether reading failed because of what the other side sent.
pub(crate) fn is_violation(status: &Status) -> bool {
    use std::error::Error as _;
    // Tonic itself says `OutOfRange` of a message above the limit, before it reads its body.
    status.code() == tonic::Code::OutOfRange
        || status.source().is_some_and(|source| source.downcast_ref::<WireError>().is_some())
}
