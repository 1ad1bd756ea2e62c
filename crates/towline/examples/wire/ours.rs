//! Sends a snapshot over a transport, from memory to a sink that only checks.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use towline::engine::message::{Batch, ConfState, Lane, MemberTable, Message, MessageKind};
use towline::engine::snapshot_store::{ContentId, SnapshotHead, SnapshotMeta, Trailer};
use towline::engine::transport::*;
use towline::{ClusterId, GroupId, Incarnation, LogId, NodeId, PeerAddr};

use crate::bare_tonic::{Error, pieces};

/// Sends one snapshot of `bytes`, and returns the time from the offer to the receipt.
pub(crate) async fn transfer(
    dialler: &dyn Transport,
    accepter: &dyn Transport,
    piece: &Bytes,
    bytes: u64,
) -> Result<Duration, Error> {
    let scheme = accepter.scheme();
    let listener =
        accepter.listen(&PeerAddr::new(&format!("{scheme}://127.0.0.1:0"))?, Arc::new(AdmitAll)).await?;
    let at: SocketAddr = listener.local_addr();
    let peer = Peer { id: node(2)?, address: PeerAddr::new(&format!("{scheme}://{at}"))? };
    let hello = Hello {
        cluster: ClusterId::new("wire")?,
        from: node(1)?,
        to: peer.id,
        incarnation: incarnation()?,
        protocol: PROTOCOL_VERSION,
    };
    let trailer = Trailer { length: bytes, content: ContentId([7; 16]) };
    let began = Instant::now();
    let answer = dialler.offer(&peer, &hello, &offer(&trailer)?, &ProgressCell::new(0)).await?;
    let OfferAnswer::Accepted { mut transfer, .. } = answer else { return Err("not accepted".into()) };
    let mut offset = 0;
    for data in pieces(piece, bytes) {
        let length = data.len() as u64;
        transfer.send(Chunk { offset, crc32c: crc32c::crc32c(&data), data }).await?;
        offset += length;
    }
    let receipt = transfer.finish(trailer).await?;
    let took = began.elapsed();
    listener.shutdown().await;
    match receipt.commit == bytes {
        true => Ok(took),
        false => Err("bytes were lost".into()),
    }
}

fn node(id: u64) -> Result<NodeId, Error> {
    NodeId::new(id).ok_or_else(|| "zero".into())
}

fn incarnation() -> Result<Incarnation, Error> {
    Incarnation::new(1).ok_or_else(|| "zero".into())
}

fn offer(trailer: &Trailer) -> Result<SnapshotOffer, Error> {
    let head = SnapshotHead {
        founding: Default::default(),
        group: GroupId::DEFAULT,
        at: LogId { index: 9, term: 1 },
        conf_state: ConfState::default(),
        members: MemberTable::new(),
    };
    let mut message = Message::new(MessageKind::Snapshot, node(1)?, node(2)?);
    message.term = head.at.term;
    let meta = SnapshotMeta { head, length: trailer.length, content: trailer.content };
    Ok(SnapshotOffer { message, meta, attempt: 1 })
}

struct AdmitAll;

impl Inbound for AdmitAll {
    fn admit(&self, hello: &Hello, _: Option<&CertIdentity>) -> Result<Arc<dyn PeerSession>, Refusal> {
        Ok(Arc::new(AcceptingSession(hello.from, hello.to)))
    }
}

struct AcceptingSession(NodeId, NodeId);

#[async_trait]
impl PeerSession for AcceptingSession {
    fn peer(&self) -> NodeId {
        self.0
    }

    fn welcome(&self) -> Welcome {
        let incarnation = Incarnation::new(2).unwrap_or_else(|| unreachable!("two is not zero"));
        Welcome { node: self.1, incarnation, protocol: PROTOCOL_VERSION }
    }

    fn deliver(&self, _: Lane, _: Batch) -> Result<Vec<Nack>, Violation> {
        Ok(Vec::new())
    }

    async fn offer(&self, _: SnapshotOffer, _: &ProgressCell) -> Result<SinkAnswer, SnapshotRefusal> {
        Ok(SinkAnswer::Accept { offset: 0, sink: Box::new(Checking(ProgressCell::new(0))) })
    }
}

/// A sink that checks each piece as the engine does, and drops it.
struct Checking(ProgressCell);

#[async_trait]
impl SnapshotSink for Checking {
    async fn write(&mut self, chunk: Chunk) -> Result<(), SnapshotRefusal> {
        if chunk.offset != self.0.now().acked || crc32c::crc32c(&chunk.data) != chunk.crc32c {
            return Err(SnapshotRefusal::Corrupt { detail: "wrong offset or checksum".into() });
        }
        let acked = chunk.offset + chunk.data.len() as u64;
        self.0.advance(TransferProgress { acked, phase: TransferPhase::Receiving });
        Ok(())
    }

    async fn finish(self: Box<Self>, _: Trailer) -> Result<SnapshotReceipt, SnapshotRefusal> {
        Ok(SnapshotReceipt { commit: self.0.now().acked })
    }

    fn progress(&self) -> ProgressCell {
        self.0.clone()
    }
}
