//! The send buffer of a connection.

use std::io::{self, IoSlice};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::pool::Room;
use super::reply::Reply;

/// The connection adds no reply while this many bytes of small replies wait for the client.
const SMALL_BYTES_HIGH: usize = 32 << 10;
/// A larger buffer is freed once it is empty.
const SMALL_BYTES_KEPT: usize = 64 << 10;
/// Values from this size on are sent without a copy, one at a time, and need room in a pool.
pub(super) const LARGE_BYTES_MIN: usize = 16 << 10;

/// Small replies in one buffer, then at most one large value.
#[derive(Default)]
pub(super) struct Outgoing {
    small: BytesMut,
    large: Option<Large>,
}

struct Large {
    value: Bytes,
    since: Instant,
    room: Option<Room>,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        self.large.is_none() && self.small.len() < SMALL_BYTES_HIGH
    }

    pub(super) fn large_since(&self) -> Option<Instant> {
        self.large.as_ref().map(|large| large.since)
    }

    /// The room of the large value that the connection sends.
    pub(super) fn large_room(&mut self) -> Option<&mut Room> {
        self.large.as_mut()?.room.as_mut()
    }

    /// Adds the header of an array. The caller adds the elements.
    pub(super) fn array_header(&mut self, length: usize) {
        self.small.put_slice(format!("*{length}\r\n").as_bytes());
    }

    /// Adds a reply, and frees its `room` once it is sent.
    pub(super) fn reply(&mut self, reply: Reply, resp3: bool, room: Option<Room>) {
        match reply {
            Reply::Bulk(value) if value.len() >= LARGE_BYTES_MIN => {
                self.small.put_slice(format!("${}\r\n", value.len()).as_bytes());
                self.large = Some(Large { value, since: Instant::now(), room });
            }
            reply => reply.encode(resp3, &mut self.small),
        }
    }

    /// Writes as much as the socket takes, and returns the number of bytes.
    pub(super) fn flush(&mut self, stream: &TcpStream) -> io::Result<usize> {
        let mut flushed = 0;
        while !self.is_empty() {
            // A vectored write of one slice costs more than a plain write.
            let written = match &self.large {
                None => stream.try_write(&self.small),
                Some(large) => {
                    stream.try_write_vectored(&[IoSlice::new(&self.small), IoSlice::new(&large.value)])
                }
            };
            let taken = match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(flushed),
                Err(error) => return Err(error),
            };
            flushed += taken;
            let of_small = taken.min(self.small.len());
            self.small.advance(of_small);
            if let Some(large) = &mut self.large {
                large.value.advance(taken - of_small);
                if large.value.is_empty() {
                    self.large = None;
                    self.small.put_slice(b"\r\n");
                }
            }
        }
        if self.small.capacity() > SMALL_BYTES_KEPT {
            self.small = BytesMut::new();
        }
        Ok(flushed)
    }
}
