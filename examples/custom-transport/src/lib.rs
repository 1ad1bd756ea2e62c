//! A transport over Unix sockets: one socket for each lane and each snapshot, and on it frames of `towline-wire`.
//!
//! An address `unix://NAME:PORT` is the socket file `NAME-PORT` in the transport's directory.

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

/// How long a dialler may take for its hello.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that one listener holds; the next dialler is refused.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes read at once.
const PIECE_BYTES: usize = 64 << 10;

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
        // A file that nobody listens at was left behind by a process that was killed.
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
        // Each stream says its last word, for which it has not long.
        self.listening.deserted().await;
    }
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        self.accepting.abort();
        self.listening.enter(Phase::Closed);
        // Gone before anybody binds it anew.
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn accept(socket: UnixListener, listening: Arc<Listening>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Ok((stream, _)) = socket.accept().await {
        let seat = room.clone().try_acquire_owned(); // held by the task below
        let caller = Caller::new(&listening, seat.is_err());
        tokio::spawn(async move {
            let _seat = seat;
            let why = tokio::select! {
                () = serve(stream, caller.clone()) => Refusal::Malformed { detail: "no hello".into() },
                why = caller.unwanted() => why.refusal(),
            };
            caller.gone(&why);
        });
    }
}

/// Serves one connection, which is one stream, to its end.
async fn serve(stream: UnixStream, caller: Arc<Caller>) {
    let (read, write) = stream.into_split();
    let (answers, waiting) = mpsc::channel(streams::ANSWERS_WAITING_MAX);
    let serving = streams::serve(caller, Read::new(read), answers);
    let answering = answer(Write(write), waiting);
    tokio::pin!(serving, answering);
    tokio::select! {
        // The dialler has given it up.
        () = &mut answering => serving.await,
        // One that takes not even the last word will see the end of the stream.
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

/// Frames from a socket, each behind its length.
struct Read {
    socket: OwnedReadHalf,
    prefixed: Prefixed,
    /// What the next frame may have: a hello's worth at first.
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
                // Nobody ends a socket in order: a dialler waits for the last word, and a listener says one.
                0 => return Err(broken("the socket was closed".into())),
                _ => self.prefixed.push(piece.freeze()),
            }
        }
    }
}

/// Frames to a socket.
struct Write(OwnedWriteHalf);

impl FrameSink for Write {
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String> {
        self.0.write_all(&prefixed(&frame)).await.map_err(|error| error.to_string())
    }

    // The end of a socket that was not announced by a last frame is a reset, so there is nothing to say here.
    fn end(&mut self) {}
}
