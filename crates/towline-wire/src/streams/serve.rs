//! The listening side of one stream: handshake, then a lane or a snapshot transfer.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use towline_engine::message::Lane;
use towline_engine::transport::{LinkClosed, PeerSession, Refusal};

use super::deliver::deliver;
use super::listening::{Caller, Phase};
use super::{FAREWELL, FrameSource, detail, transfer};
use crate::frames::nacks_of;
use crate::handshake::{Purpose, check_first_frame, refused_frame, welcome_frame};
use crate::pb;

/// Serves a stream from its hello to its end. What goes back goes to `answers`, a channel with room for
/// [`ANSWERS_WAITING_MAX`](super::ANSWERS_WAITING_MAX) that the transport empties into the other half of the stream: when
/// it ends, the stream ends in order; when the transport drops its receiver, the dialler has given the stream up.
pub async fn serve(caller: Arc<Caller>, mut source: impl FrameSource, answers: mpsc::Sender<pb::Frame>) {
    let last = match handshake(&caller, &mut source).await {
        Ok((session, purpose)) => {
            caller.admit(session.peer());
            if answers.send(welcome_frame(&session.welcome())).await.is_err() {
                return;
            }
            converse(&caller, source, &answers, session.as_ref(), purpose).await
        }
        Err(Refused { refusal, by_engine }) => {
            if by_engine {
                caller.refused_by_engine();
            } else {
                caller.refuse(&refusal);
            }
            Some(refusal)
        }
    };
    if let Some(last) = last {
        let _ = timeout(FAREWELL, answers.send(refused_frame(&last))).await;
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

async fn handshake(
    caller: &Arc<Caller>,
    source: &mut impl FrameSource,
) -> Result<(Arc<dyn PeerSession>, Purpose), Refused> {
    let listening = &caller.listening;
    let malformed = |detail: String| Refusal::Malformed { detail };
    let first = timeout(listening.limits.handshake_timeout, source.next())
        .await
        .map_err(|_| Refusal::HandshakeTimeout)?
        .map_err(|closed| malformed(detail(closed)))?
        .ok_or_else(|| malformed("the stream ended before a hello".into()))?;
    let (hello, purpose) = check_first_frame(first)?;
    // Not before, or the dialler would still be writing and hear of a broken stream.
    if caller.surplus {
        return Err(Refusal::TooManyConnections.into());
    }
    if !listening.is_open() {
        return Err(Refusal::ShuttingDown.into());
    }
    // At first contact the engine may write down whom it met.
    let admitting = Arc::clone(caller);
    let admitted =
        tokio::task::spawn_blocking(move || admitting.listening.inbound.admit(&hello, admitting.identity()));
    // The task can only fail by a panic of the engine or the end of the runtime.
    let session = admitted
        .await
        .map_err(|_| Refusal::ShuttingDown)?
        .map_err(|refusal| Refused { refusal, by_engine: true })?;
    Ok((session, purpose))
}

/// Serves a stream that was welcomed until it ends. Gives what the dialler is told last, if it is still there.
async fn converse(
    caller: &Caller,
    source: impl FrameSource,
    answers: &mpsc::Sender<pb::Frame>,
    session: &dyn PeerSession,
    purpose: Purpose,
) -> Option<Refusal> {
    let displaced =
        |by: &str| Some(Refusal::Malformed { detail: format!("{by} of this peer took the place") });
    let (keeps, lost) = oneshot::channel();
    // The engine bounds transfers, and a later one of another group is no reason to end an earlier one.
    let _seat = match purpose {
        Purpose::Lane(lane) => Ok(caller.listening.lanes.take((session.peer(), lane), keeps)),
        Purpose::Snapshot => Err(keeps),
    };
    // Dropping the rest of it, a snapshot's sink for instance, is how it is told.
    tokio::select! {
        biased;
        () = caller.listening.reached(Phase::Closing) => Some(Refusal::ShuttingDown),
        _ = lost => displaced("a newer stream"),
        () = caller.replaced() => displaced("a newer connection"),
        () = answers.closed() => None,
        last = async {
            match purpose {
                Purpose::Lane(lane) => batches(source, answers, session, lane).await,
                Purpose::Snapshot => transfer::receive(source, answers, session).await,
            }
        } => last,
    }
}

async fn batches(
    mut source: impl FrameSource,
    answers: &mpsc::Sender<pb::Frame>,
    session: &dyn PeerSession,
    lane: Lane,
) -> Option<Refusal> {
    let detail = loop {
        let nacks = match source.next().await {
            Ok(Some(frame)) => match deliver(session, lane, frame) {
                Ok(nacks) => nacks,
                Err(violation) => break violation.detail,
            },
            Err(LinkClosed::Violation { detail }) => break detail,
            Ok(None) | Err(_) => return None,
        };
        // Never waits: whoever does not read its nacks must not stop the batches of its groups. The sender finds out by
        // Raft's own probing then.
        if let Some(frame) = nacks
            && let Err(refused) = answers.try_send(frame)
        {
            let dropped = nacks_of(refused.into_inner()).map_or(0, |nacks| nacks.len());
            session.nacks_dropped(lane, dropped);
            tracing::debug!(peer = %session.peer(), lane = lane.as_str(), dropped, "no room for nacks");
        }
    };
    tracing::debug!(peer = %session.peer(), lane = lane.as_str(), detail, "lane closed");
    Some(Refusal::Malformed { detail })
}
