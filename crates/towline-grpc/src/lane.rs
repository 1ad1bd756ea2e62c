//! One inbound lane: handshake, then batches in and nacks out.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use towline_engine::message::Lane;
use towline_engine::transport::{PeerSession, Refusal};
use towline_wire::{Purpose, check_first_frame, deliver, nacks_of, pb, refused_frame, welcome_frame};

use crate::connection::Connection;
use crate::listener::{Phase, Shared};
use crate::service::transport_server::Transport;
use crate::snapshot;

/// Frames that wait to go back to a dialler. At the bound nacks are dropped and counted; batches are read on.
const ANSWERS_WAITING_MAX: usize = 16;
/// How long the last word to a dialler may wait for room.
pub(crate) const FAREWELL: Duration = Duration::from_millis(250);

type Answers = mpsc::Sender<Result<pb::Frame, Status>>;

/// The gRPC service.
pub(crate) struct Lanes {
    shared: Arc<Shared>,
}

impl Lanes {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

#[tonic::async_trait]
impl Transport for Lanes {
    type LaneStream = ReceiverStream<Result<pb::Frame, Status>>;

    async fn lane(
        &self,
        request: Request<Streaming<pb::Frame>>,
    ) -> Result<Response<Self::LaneStream>, Status> {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let connection = connection.ok_or_else(|| Status::internal("no connection"))?;
        let (answers, receiver) = mpsc::channel(ANSWERS_WAITING_MAX);
        let lane = Inbound { shared: Arc::clone(&self.shared), connection, answers };
        tokio::spawn(lane.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A refusal, and whether the engine made it.
struct Refused {
    refusal: Refusal,
    by_engine: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, by_engine: false }
    }
}

struct Inbound {
    shared: Arc<Shared>,
    connection: Arc<Connection>,
    answers: Answers,
}

impl Inbound {
    async fn run(self, mut frames: Streaming<pb::Frame>) {
        let last = match self.handshake(&mut frames).await {
            Ok((session, purpose)) => {
                self.connection.admit(session.peer());
                if self.answers.send(Ok(welcome_frame(&session.welcome()))).await.is_err() {
                    return;
                }
                self.serve(frames, session, purpose).await.map(Err)
            }
            Err(Refused { refusal, by_engine }) => {
                if by_engine {
                    self.connection.refused_by_engine();
                } else {
                    self.connection.refuse(&refusal);
                }
                Some(Ok(refused_frame(&refusal)))
            }
        };
        if let Some(last) = last {
            let _ = timeout(FAREWELL, self.answers.send(last)).await;
        }
    }

    async fn handshake(
        &self,
        frames: &mut Streaming<pb::Frame>,
    ) -> Result<(Arc<dyn PeerSession>, Purpose), Refused> {
        if self.connection.surplus {
            return Err(Refusal::TooManyConnections.into());
        }
        let malformed = |detail: &str| Refusal::Malformed { detail: detail.into() };
        let first = timeout(self.shared.config.handshake_timeout, frames.message())
            .await
            .map_err(|_| Refusal::HandshakeTimeout)?
            .map_err(|status| malformed(status.message()))?
            .ok_or_else(|| malformed("the stream ended before a hello"))?;
        let (hello, purpose) = check_first_frame(first)?;
        if *self.shared.phase.borrow() != Phase::Open {
            return Err(Refusal::ShuttingDown.into());
        }
        // At first contact the engine may write down whom it met.
        let (inbound, connection) = (Arc::clone(&self.shared.inbound), Arc::clone(&self.connection));
        let admitted =
            tokio::task::spawn_blocking(move || inbound.admit(&hello, connection.identity())).await;
        // The task can only fail by a panic of the engine or the end of the runtime.
        let session = admitted
            .map_err(|_| Refusal::ShuttingDown)?
            .map_err(|refusal| Refused { refusal, by_engine: true })?;
        Ok((session, purpose))
    }

    /// Serves the stream until it ends. Gives what the dialler is told last, if it is still there.
    async fn serve(
        &self,
        frames: Streaming<pb::Frame>,
        session: Arc<dyn PeerSession>,
        purpose: Purpose,
    ) -> Option<Status> {
        let (keeps, lost) = oneshot::channel();
        // The engine bounds transfers, and a later one of another group is no reason to end an earlier one.
        let _seat = match purpose {
            Purpose::Lane(lane) => Ok(self.shared.lanes.take((session.peer(), lane), keeps)),
            Purpose::Snapshot => Err(keeps),
        };
        let mut phase = self.shared.phase.subscribe();
        // Dropping the rest of it, a snapshot's sink for instance, is how it is told.
        tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Open) => Some(Status::unavailable("shutting down")),
            _ = lost => Some(Status::aborted("a newer stream of this peer took the place")),
            () = self.connection.replaced() => {
                Some(Status::aborted("a newer connection of this peer took the place"))
            }
            () = self.answers.closed() => None,
            last = async {
                match purpose {
                    Purpose::Lane(lane) => self.batches(frames, session, lane).await,
                    Purpose::Snapshot => snapshot::receive(frames, &self.answers, session.as_ref()).await,
                }
            } => last,
        }
    }

    async fn batches(
        &self,
        mut frames: Streaming<pb::Frame>,
        session: Arc<dyn PeerSession>,
        lane: Lane,
    ) -> Option<Status> {
        let peer = session.peer();
        loop {
            let taken = match frames.message().await {
                Ok(Some(frame)) => deliver(session.as_ref(), lane, frame)
                    .map_err(|violation| Status::invalid_argument(violation.detail)),
                Ok(None) => return None,
                Err(status) => Err(status),
            };
            let nacks = match taken {
                Ok(nacks) => nacks,
                Err(status) => {
                    tracing::debug!(%peer, lane = lane.as_str(), %status, "lane closed");
                    // The words, but not the cause, which is ours.
                    return Some(Status::new(status.code(), status.message()));
                }
            };
            // Never waits: whoever does not read its nacks must not stop the batches of its groups. The sender finds out
            // by Raft's own probing then.
            if let Some(frame) = nacks
                && let Err(refused) = self.answers.try_send(Ok(frame))
            {
                let dropped = refused.into_inner().map_or(0, |frame| nacks_of(frame).map_or(0, |n| n.len()));
                session.nacks_dropped(lane, dropped);
                tracing::debug!(%peer, lane = lane.as_str(), dropped, "no room for nacks");
            }
        }
    }
}
