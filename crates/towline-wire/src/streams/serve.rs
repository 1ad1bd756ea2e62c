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

/// Serves a stream from its hello to its end. Frames for the dialler go to `answers`, a channel with room for
/// [`ANSWERS_WAITING_MAX`](super::ANSWERS_WAITING_MAX) frames. The transport writes them to the other half of the stream.
/// When the channel ends, the transport ends the stream in order. When the transport drops the receiver of `answers`, `serve`
/// treats the stream as abandoned by the dialler.
pub async fn serve(caller: Arc<Caller>, mut source: impl FrameSource, answers: mpsc::Sender<pb::Frame>) {
    let last = match handshake(&caller, &mut source).await {
        Ok((session, purpose)) => {
            caller.admit(session.peer());
            if answers.send(welcome_frame(&session.welcome())).await.is_err() {
                return;
            }
            converse(&caller, source, &answers, session.as_ref(), purpose).await
        }
        Err(RefusedHello { refusal, by_engine }) => {
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
struct RefusedHello {
    refusal: Refusal,
    by_engine: bool,
}

impl From<Refusal> for RefusedHello {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, by_engine: false }
    }
}

async fn handshake(
    caller: &Arc<Caller>,
    source: &mut impl FrameSource,
) -> Result<(Arc<dyn PeerSession>, Purpose), RefusedHello> {
    let listening = &caller.listening;
    let malformed = |detail: String| Refusal::Malformed { detail };
    let first = timeout(listening.limits.handshake_timeout, source.next())
        .await
        .map_err(|_| Refusal::HandshakeTimeout)?
        .map_err(|closed| malformed(detail(closed)))?
        .ok_or_else(|| malformed("the stream ended before a hello".into()))?;
    let (hello, purpose) = check_first_frame(first)?;
    // Not before the hello was read: a dialler that still writes would see a broken stream instead of the refusal.
    if caller.surplus {
        return Err(Refusal::TooManyConnections.into());
    }
    if !listening.is_open() {
        return Err(Refusal::ShuttingDown.into());
    }
    // `admit` may block: at first contact the engine persists the peer's incarnation.
    let admitting = Arc::clone(caller);
    let admitted =
        tokio::task::spawn_blocking(move || admitting.listening.inbound.admit(&hello, admitting.identity()));
    // The task fails only if the engine panics or the runtime ends.
    let session = admitted
        .await
        .map_err(|_| Refusal::ShuttingDown)?
        .map_err(|refusal| RefusedHello { refusal, by_engine: true })?;
    Ok((session, purpose))
}

/// Serves an accepted stream until it ends. Returns the refusal to send last, if the dialler still reads.
async fn converse(
    caller: &Caller,
    source: impl FrameSource,
    answers: &mpsc::Sender<pb::Frame>,
    session: &dyn PeerSession,
    purpose: Purpose,
) -> Option<Refusal> {
    let displaced =
        |by: &str| Some(Refusal::Malformed { detail: format!("{by} of this peer displaced this stream") });
    let (keeps, lost) = oneshot::channel();
    // Only lanes are bounded here. The engine bounds transfers, because transfers of several groups may run together.
    let _slot = match purpose {
        Purpose::Lane(lane) => Ok(caller.listening.lanes.take((session.peer(), lane), keeps)),
        Purpose::Snapshot => Err(keeps),
    };
    // Ending the select drops the other branch, for example a snapshot's sink, which ends the transfer.
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
        // Does not wait: a dialler that does not read its nacks must not stop the batches of its groups. Without the nack
        // the sender relies on Raft's own probing.
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
