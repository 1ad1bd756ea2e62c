//! A transport over Unix sockets: one socket for each lane and each snapshot, and on it frames of `towline-wire`.
//!
//! An address `unix://NAME:PORT` is the socket file `NAME-PORT` in the transport's directory.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use towline_engine::ids::PeerAddr;
use towline_engine::message::{Batch, Lane};
use towline_engine::transport::*;
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX, MESSAGE_BYTES_MAX};
use towline_wire::pb::{self, frame::Kind};
use towline_wire::{self as wire, Begun, FrameSink, FrameSource, Purpose, Sending, Timer, WireError};

/// How long a dialler may take for its hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that one listener holds; the next dialler is refused.
pub const CONNECTIONS_MAX: usize = 64;

/// The transport.
#[derive(Debug, Clone)]
pub struct UnixTransport {
    /// Where the socket files are.
    pub directory: PathBuf,
}

impl UnixTransport {
    fn path(&self, address: &PeerAddr) -> PathBuf {
        self.directory.join(address.authority().replace(':', "-"))
    }

    /// Dials, says hello and waits for the answer.
    async fn open(&self, to: &Peer, hello: pb::Frame) -> Result<(Read, Write, Welcome), ConnectError> {
        let address = &to.address;
        let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
        let stream = UnixStream::connect(self.path(address)).await.map_err(|e| unreachable(e.into()))?;
        let (read, write) = stream.into_split();
        let (mut read, mut write) = (Read(read), Write(JoinSet::new(), write));
        write.send(hello).await.map_err(|e| unreachable(e.into()))?;
        let answer = read.frame(HELLO_BYTES_MAX).await.map_err(|e| unreachable(e.into()))?;
        let welcome = wire::check_answer(address, to.id, answer.unwrap_or_default())?;
        Ok((read, write, welcome))
    }
}

#[async_trait]
impl Transport for UnixTransport {
    fn scheme(&self) -> &'static str {
        "unix"
    }

    async fn listen(
        &self,
        at: &PeerAddr,
        inbound: Arc<dyn Inbound>,
    ) -> Result<Box<dyn Listener>, TransportError> {
        let path = self.path(at);
        // A file that nobody listens at was left behind by a process that was killed.
        if path.exists() && UnixStream::connect(&path).await.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        let bind = |source| TransportError::Bind { address: at.clone(), source };
        let socket = UnixListener::bind(&path).map_err(bind)?;
        let closed = watch::Sender::new(false);
        let accepting = tokio::spawn(accept(socket, inbound, closed.subscribe())).abort_handle();
        Ok(Box::new(UnixSockets { path, closed, accepting }))
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let (read, mut write, welcome) = self.open(to, wire::hello_frame(hello, lane)).await?;
        // Ends with the link, whatever the peer does; dropping its feedback tells so.
        write.0.spawn(listen_to_answers(read, feedback));
        Ok(Connected { link: Box::new(UnixLink(Some(write))), welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
    ) -> Result<OfferAnswer, TransferError> {
        let broken = |detail| TransferError::Broken { detail };
        let opened = self.open(to, wire::hello_frame(hello, Purpose::Snapshot)).await;
        let (mut read, mut write, _) = opened.map_err(TransferError::Connect)?;
        write.send(wire::offer_frame(offer)).await.map_err(broken)?;
        let offset = match wire::begin(&mut read).await? {
            Begun::Answered(answer) => return Ok(answer),
            Begun::Accepted { offset } => offset,
        };
        let (progress, (told, outcome)) = (ProgressCell::new(offset), oneshot::channel());
        let cell = progress.clone();
        write.0.spawn(async move {
            let _ = told.send(wire::read_outcome(&mut read, &cell).await);
        });
        let outcome = Box::pin(async move { outcome.await.unwrap_or_else(|e| Err(broken(e.to_string()))) });
        Ok(OfferAnswer::Accepted { offset, transfer: Box::new(Sending::new(write, outcome, progress)) })
    }
}

/// `None` once a dispatch failed or was dropped midway.
struct UnixLink(Option<Write>);

#[async_trait]
impl Link for UnixLink {
    async fn dispatch(&mut self, batch: Batch) -> Result<(), DispatchError> {
        // Taken out and put back at the end: if this future is dropped in between, so is the socket.
        let mut write = self.0.take().ok_or(DispatchError::Closed)?;
        let frames = wire::frames(batch).map_err(|error| match error {
            WireError::MessageTooLarge { bytes, bytes_max } => DispatchError::TooLarge { bytes, bytes_max },
            _ => DispatchError::TooLarge { bytes: usize::MAX, bytes_max: MESSAGE_BYTES_MAX },
        })?;
        for frame in frames {
            write.send(frame).await.map_err(|_| DispatchError::Closed)?;
        }
        self.0 = Some(write);
        Ok(())
    }
}

/// Tells what comes back until the socket ends, then that it has ended.
async fn listen_to_answers(mut read: Read, feedback: LinkFeedback) {
    let cause = loop {
        match read.next().await {
            Ok(Some(pb::Frame { kind: Some(Kind::Refused(last)) })) => {
                break LinkClosed::ByPeer { detail: last.detail };
            }
            Ok(Some(frame)) => match wire::nacks_of(frame) {
                Ok(nacks) => nacks.into_iter().for_each(|nack| feedback.nack(nack)),
                Err(error) => break LinkClosed::Violation { detail: error.to_string() },
            },
            Ok(None) => break LinkClosed::ByPeer { detail: "end of the stream".into() },
            Err(detail) => break LinkClosed::Broken { detail },
        }
    };
    feedback.closed(cause);
}

struct UnixSockets {
    path: PathBuf,
    /// Heard by every task that serves a connection.
    closed: watch::Sender<bool>,
    accepting: AbortHandle,
}

#[async_trait]
impl Listener for UnixSockets {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    async fn shutdown(self: Box<Self>) {
        self.accepting.abort();
        self.closed.send_replace(true);
        self.closed.closed().await;
    }
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        self.accepting.abort();
        self.closed.send_replace(true);
        // Gone before anybody binds it anew.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(socket: UnixListener, inbound: Arc<dyn Inbound>, closed: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, _)) = socket.accept().await {
        let (read, write) = stream.into_split();
        let (read, mut write) = (Read(read), Write(JoinSet::new(), write));
        let seat = room.clone().try_acquire_owned(); // held by the task below
        let (inbound, mut closed) = (inbound.clone(), closed.clone());
        tokio::spawn(async move {
            let last = tokio::select! {
                biased;
                _ = closed.wait_for(|closed| *closed) => Err(Refusal::ShuttingDown),
                last = serve(read, &mut write, &*inbound, seat.is_err()) => last,
            };
            if let Err(last) = last {
                // A dialler that takes not even that will see the end of the stream.
                let _ = timeout(HANDSHAKE_TIMEOUT / 4, write.send(wire::refused_frame(&last))).await;
            }
        });
    }
}

/// Serves one connection to its end. The error is what the dialler is told last.
async fn serve(
    mut read: Read,
    write: &mut Write,
    inbound: &dyn Inbound,
    surplus: bool,
) -> Result<(), Refusal> {
    let hello = hello(&mut read, surplus).await;
    let (hello, purpose) = hello.inspect_err(|refusal| inbound.refused(refusal))?;
    // What the engine refuses, it knows.
    let session = inbound.admit(&hello, None)?;
    write.send(wire::welcome_frame(&session.welcome())).await.map_err(malformed)?;
    let ended = |violation: Violation| malformed(violation.detail);
    let Purpose::Lane(lane) = purpose else {
        // Read beside the work, so that a sender that is gone ends a receiver that is busy.
        let (frames, source) = mpsc::channel(1);
        let (mut source, clock) = (Piped(source), Clock);
        return tokio::select! {
            served = wire::serve(&*session, &mut source, write, &clock) => served.map_err(ended),
            () = pipe(&mut read, frames) => Ok(()),
        };
    };
    while let Some(frame) = read.next().await.map_err(malformed)? {
        if let Some(nacks) = wire::deliver(&*session, lane, frame).map_err(ended)? {
            write.send(nacks).await.map_err(malformed)?;
        }
    }
    Ok(())
}

async fn pipe(read: &mut Read, frames: mpsc::Sender<pb::Frame>) {
    while let Ok(Some(frame)) = read.next().await {
        // The end of the receiver ends this too.
        let _ = frames.send(frame).await;
    }
}

async fn hello(read: &mut Read, surplus: bool) -> Result<(Hello, Purpose), Refusal> {
    let first = timeout(HANDSHAKE_TIMEOUT, read.frame(HELLO_BYTES_MAX)).await;
    let first = first.map_err(|_| Refusal::HandshakeTimeout)?.map_err(malformed)?;
    let hello = wire::check_first_frame(first.unwrap_or_default())?;
    // Not before, or the dialler would still be writing and hear of a broken pipe.
    if surplus { Err(Refusal::TooManyConnections) } else { Ok(hello) }
}

fn malformed(detail: String) -> Refusal {
    Refusal::Malformed { detail }
}

/// Frames from a socket, each behind its length.
struct Read(OwnedReadHalf);

impl Read {
    async fn frame(&mut self, bytes_max: usize) -> Result<Option<pb::Frame>, String> {
        let Ok(bytes) = self.0.read_u32().await else { return Ok(None) };
        let bytes = bytes as usize;
        if bytes > bytes_max {
            return Err(WireError::FrameTooLarge { bytes, bytes_max }.to_string());
        }
        let mut body = vec![0; bytes];
        self.0.read_exact(&mut body).await.map_err(|error| error.to_string())?;
        wire::decode_frame(Bytes::from(body)).map(Some).map_err(|error| error.to_string())
    }
}

#[async_trait]
impl FrameSource for Read {
    async fn next(&mut self) -> Result<Option<pb::Frame>, String> {
        self.frame(FRAME_BYTES_MAX).await
    }
}

/// Frames from a reader beside.
struct Piped(mpsc::Receiver<pb::Frame>);

#[async_trait]
impl FrameSource for Piped {
    async fn next(&mut self) -> Result<Option<pb::Frame>, String> {
        Ok(self.0.recv().await)
    }
}

/// Frames to a socket, and the task that reads what comes back, if there is one. It ends with this, and first: what the
/// peer answers to the end of a link that was given up is no cause of it.
struct Write(JoinSet<()>, OwnedWriteHalf);

#[async_trait]
impl FrameSink for Write {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.1.write_all(&wire::prefixed(&frame)).await.map_err(|error| error.to_string())
    }

    // The end of a socket that was not announced by a last frame is a reset, so there is nothing to say here.
    fn end(&mut self) {}
}

struct Clock;

#[async_trait]
impl Timer for Clock {
    async fn wait(&self, duration: Duration) {
        sleep(duration).await;
    }
}
