//! A transport over Unix sockets. Each lane and each snapshot has a socket, with frames of `towline-wire`.
//!
//! The address `unix://NAME:PORT` names the socket file `NAME-PORT` in the transport's directory.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use towline_engine::ids::PeerAddr;
use towline_engine::message::Lane;
use towline_engine::transport::*;
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use towline_wire::streams::{self, Caller, FrameSink, FrameSource, Listening, Phase, StreamLimits};
use towline_wire::{Prefixed, Purpose, check_answer, hello_frame, pb, prefixed};

/// The time limit for a dialler's hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that one listener holds; the next dialler is refused.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes read at once.
const PIECE_BYTES: usize = 64 << 10;

/// A transport over Unix sockets.
#[derive(Debug, Clone)]
pub struct UnixTransport {
    /// The directory of the socket files.
    pub directory: PathBuf,
}

impl UnixTransport {
    fn path(&self, address: &PeerAddr) -> PathBuf {
        self.directory.join(address.authority().replace(':', "-"))
    }

    /// Dials, says hello and waits for the answer.
    async fn open(
        &self,
        to: &Peer,
        hello: &Hello,
        purpose: Purpose,
    ) -> Result<(Write, Read, Welcome), ConnectError> {
        let address = &to.address;
        let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
        let stream = UnixStream::connect(self.path(address)).await.map_err(|e| unreachable(e.into()))?;
        let (read, write) = stream.into_split();
        let (mut read, mut write) = (Read::new(read), Write(write));
        write.send(hello_frame(hello, purpose)).await.map_err(|e| unreachable(e.into()))?;
        let answer = read.next().await.map_err(|closed| ConnectError::Protocol {
            address: address.clone(),
            detail: format!("{closed:?}"),
        })?;
        let welcome = check_answer(address, to.id, answer.unwrap_or_default())?;
        Ok((write, read, welcome))
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
        // A killed process left its socket file behind.
        if path.exists() && UnixStream::connect(&path).await.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        let bind = |source| TransportError::Bind { address: at.clone(), source };
        let socket = UnixListener::bind(&path).map_err(bind)?;
        let limits = StreamLimits {
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connections_per_peer_max: CONNECTIONS_MAX,
            streams_per_lane_max: 2,
        };
        let listening = Listening::new(inbound, limits);
        let accepting = tokio::spawn(accept(socket, listening.clone())).abort_handle();
        Ok(Box::new(UnixSockets { path, listening, accepting }))
    }

    async fn connect(
        &self,
        to: &Peer,
        lane: Lane,
        hello: &Hello,
        feedback: LinkFeedback,
    ) -> Result<Connected, ConnectError> {
        let (write, read, welcome) = self.open(to, hello, lane.into()).await?;
        Ok(Connected { link: streams::link(write, read, feedback), welcome })
    }

    async fn offer(
        &self,
        to: &Peer,
        hello: &Hello,
        offer: &SnapshotOffer,
        deciding: &ProgressCell,
    ) -> Result<OfferAnswer, TransferError> {
        let opened = self.open(to, hello, Purpose::Snapshot).await;
        let (write, read, _) = opened.map_err(TransferError::Connect)?;
        streams::offer(write, read, offer, deciding).await
    }
}

struct UnixSockets {
    path: PathBuf,
    listening: Arc<Listening>,
    accepting: AbortHandle,
}

#[async_trait]
impl Listener for UnixSockets {
    fn local_addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 1))
    }

    async fn shutdown(self: Box<Self>) {
        self.accepting.abort();
        self.listening.enter(Phase::Closing);
        // Each stream sends its last frame within a short time limit.
        self.listening.deserted().await;
    }
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        self.accepting.abort();
        self.listening.enter(Phase::Closed);
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(socket: UnixListener, listening: Arc<Listening>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, _)) = socket.accept().await {
        let permit = room.clone().try_acquire_owned();
        let caller = Caller::new(&listening, permit.is_err());
        tokio::spawn(async move {
            let _permit = permit;
            let why = tokio::select! {
                () = serve(stream, caller.clone()) => Refusal::Malformed { detail: "no hello".into() },
                why = caller.unwanted() => why.refusal(),
            };
            caller.gone(&why);
        });
    }
}

/// Serves one connection, which carries one stream.
async fn serve(stream: UnixStream, caller: Arc<Caller>) {
    let (read, write) = stream.into_split();
    let (answers, waiting) = mpsc::channel(streams::ANSWERS_WAITING_MAX);
    let serving = streams::serve(caller, Read::new(read), answers);
    let answering = answer(Write(write), waiting);
    tokio::pin!(serving, answering);
    tokio::select! {
        // The dialler closed the socket.
        () = &mut answering => serving.await,
        // If the dialler does not take the last frame, it sees the end of the stream.
        () = &mut serving => { let _ = timeout(streams::FAREWELL, answering).await; }
    }
}

async fn answer(mut write: Write, mut waiting: mpsc::Receiver<pb::Frame>) {
    while let Some(frame) = waiting.recv().await {
        if write.send(frame).await.is_err() {
            return;
        }
    }
}

/// Reads frames, each behind its length, from a socket.
struct Read {
    socket: OwnedReadHalf,
    prefixed: Prefixed,
    /// The bound of the next frame. The first one is a hello.
    bytes_max: usize,
}

impl Read {
    fn new(socket: OwnedReadHalf) -> Self {
        Self { socket, prefixed: Prefixed::default(), bytes_max: HELLO_BYTES_MAX }
    }
}

impl FrameSource for Read {
    async fn next(&mut self) -> Result<Option<pb::Frame>, LinkClosed> {
        let broken = |detail: String| LinkClosed::Broken { detail };
        loop {
            let next = self.prefixed.next_frame(self.bytes_max);
            if let Some(frame) = next.map_err(|error| LinkClosed::Violation { detail: error.to_string() })? {
                self.bytes_max = FRAME_BYTES_MAX;
                return Ok(Some(frame));
            }
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            match self.socket.read_buf(&mut piece).await.map_err(|error| broken(error.to_string()))? {
                // No side closes in order: the dialler waits for the last frame, and the listener sends one.
                0 => return Err(broken("the socket was closed".into())),
                _ => self.prefixed.push(piece.freeze()),
            }
        }
    }
}

/// Writes frames to a socket.
struct Write(OwnedWriteHalf);

impl FrameSink for Write {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.0.write_all(&prefixed(&frame)).await.map_err(|error| error.to_string())
    }

    // The drop closes the socket. An end without a last frame counts as a reset.
    fn end(&mut self) {}
}
