//! One inbound stream: handshake, then a lane (batches in and nacks out) or a snapshot transfer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, WriteError};
use tokio::sync::oneshot;
use tokio::time::timeout;
use towline_engine::message::Lane;
use towline_engine::transport::{PeerSession, Refusal};
use towline_wire::limits::{FRAME_BYTES_MAX, HELLO_BYTES_MAX};
use towline_wire::{Purpose, check_first_frame, deliver, nacks_of, prefixed, refused_frame, welcome_frame};

use crate::connection::Peer;
use crate::listener::Phase;
use crate::snapshot;
use crate::stream::{Ended, Incoming, Outgoing, priority};

/// Frames that wait to go back to a dialler. At the bound nacks are dropped and counted; batches are read on.
const ANSWERS_WAITING_MAX: usize = 16;
/// How long the last word to a dialler may take to be heard.
const FAREWELL: Duration = Duration::from_millis(250);

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

pub(crate) async fn run(peer: Arc<Peer>, send: SendStream, receive: RecvStream) {
    let (mut send, mut receive) = (Outgoing::new(send), Incoming::new(receive));
    let mut answers = Answers::default();
    let last = match handshake(&peer, &mut receive).await {
        Ok((session, purpose)) => {
            peer.admit();
            let _ = send.stream.set_priority(priority(purpose));
            answers.waiting.push_back(prefixed(&welcome_frame(&session.welcome())));
            serve(&peer, &mut send, &mut answers, receive, session, purpose).await
        }
        Err(Refused { refusal, by_engine }) => {
            peer.refused.fetch_add(1, Ordering::AcqRel);
            peer.answered.store(true, Ordering::Release);
            // The engine knows what it refused itself.
            if !by_engine {
                peer.shared.refused(&refusal);
            }
            Some(refusal)
        }
    };
    if let Some(last) = last {
        // Behind what waits, of which a part may be written.
        answers.waiting.push_back(prefixed(&refused_frame(&last)));
        let farewell = async {
            answers.flush(&mut send.stream).await.ok()?;
            send.finish();
            // Heard: the connection may be closed behind it.
            send.stream.stopped().await.ok()
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
}

async fn handshake(peer: &Peer, receive: &mut Incoming) -> Result<(Arc<dyn PeerSession>, Purpose), Refused> {
    let malformed = |detail: String| Refusal::Malformed { detail };
    let first = timeout(peer.shared.config.handshake_timeout, receive.next(HELLO_BYTES_MAX))
        .await
        .map_err(|_| Refusal::HandshakeTimeout)?
        .map_err(|ended| match ended {
            Ended::Violation(error) => malformed(error.to_string()),
            Ended::Lost(error) => malformed(error.to_string()),
        })?
        .ok_or_else(|| malformed("the stream ended before a hello".into()))?;
    let (hello, purpose) = check_first_frame(first)?;
    if *peer.shared.phase.borrow() != Phase::Open {
        return Err(Refusal::ShuttingDown.into());
    }
    // At first contact the engine may write down whom it met.
    let (inbound, identity) = (Arc::clone(&peer.shared.inbound), peer.identity.clone());
    let admitted = tokio::task::spawn_blocking(move || inbound.admit(&hello, Some(&identity))).await;
    // The task can only fail by a panic of the engine or the end of the runtime.
    let session = admitted
        .map_err(|_| Refusal::ShuttingDown)?
        .map_err(|refusal| Refused { refusal, by_engine: true })?;
    Ok((session, purpose))
}

/// Serves the stream until it ends. Gives what the dialler is told last, if it is still there.
async fn serve(
    peer: &Peer,
    send: &mut Outgoing,
    answers: &mut Answers,
    receive: Incoming,
    session: Arc<dyn PeerSession>,
    purpose: Purpose,
) -> Option<Refusal> {
    let (keeps, mut lost) = oneshot::channel();
    // The engine bounds transfers, and a later one of another group is no reason to end an earlier one.
    let _seat = match purpose {
        Purpose::Lane(lane) => Ok(peer.shared.lanes.take((session.peer(), lane), keeps)),
        Purpose::Snapshot => Err(keeps),
    };
    let mut phase = peer.shared.phase.subscribe();
    let stopped = send.stream.stopped();
    // Dropping the rest of it, a snapshot's sink for instance, is how it is told.
    tokio::select! {
        biased;
        _ = phase.wait_for(|phase| *phase != Phase::Open) => Some(Refusal::ShuttingDown),
        _ = &mut lost => {
            Some(Refusal::Malformed { detail: "a newer stream of this peer took the place".into() })
        }
        // The dialler has given it up.
        _ = stopped => None,
        last = async {
            match purpose {
                Purpose::Lane(lane) => batches(send, answers, receive, session.as_ref(), lane).await,
                Purpose::Snapshot => snapshot::receive(receive, send, answers, session.as_ref()).await,
            }
        } => last,
    }
}

async fn batches(
    send: &mut Outgoing,
    answers: &mut Answers,
    mut receive: Incoming,
    session: &dyn PeerSession,
    lane: Lane,
) -> Option<Refusal> {
    let detail = loop {
        let frame = tokio::select! {
            biased;
            written = answers.write(&mut send.stream), if !answers.waiting.is_empty() => match written {
                Ok(()) => continue,
                // The dialler has given the lane up.
                Err(_) => return None,
            },
            frame = receive.next(FRAME_BYTES_MAX) => frame,
        };
        match frame {
            Ok(Some(frame)) => match deliver(session, lane, frame) {
                // Never waits: whoever does not read its nacks must not stop the batches of its groups. The sender
                // finds out by Raft's own probing then.
                Ok(Some(nacks)) if answers.have_room() => answers.waiting.push_back(prefixed(&nacks)),
                Ok(Some(nacks)) => {
                    let dropped = nacks_of(nacks).map_or(0, |nacks| nacks.len());
                    session.nacks_dropped(lane, dropped);
                    tracing::debug!(peer = %session.peer(), lane = lane.as_str(), dropped, "no room for nacks");
                }
                Ok(None) => {}
                Err(violation) => break violation.detail,
            },
            Ok(None) | Err(Ended::Lost(_)) => return None,
            Err(Ended::Violation(error)) => break error.to_string(),
        }
    };
    tracing::debug!(peer = %session.peer(), lane = lane.as_str(), detail, "lane closed");
    Some(Refusal::Malformed { detail })
}

/// What goes back.
#[derive(Default)]
pub(crate) struct Answers {
    pub(crate) waiting: VecDeque<Bytes>,
}

impl Answers {
    fn have_room(&self) -> bool {
        self.waiting.len() < ANSWERS_WAITING_MAX
    }

    /// Writes some of what waits. Cancel-safe.
    async fn write(&mut self, send: &mut SendStream) -> Result<(), WriteError> {
        let written = send.write_chunks(self.waiting.make_contiguous()).await?;
        self.waiting.drain(..written.chunks.min(self.waiting.len()));
        Ok(())
    }

    /// Writes all that waits. Cancel-safe: what was not written waits on.
    pub(crate) async fn flush(&mut self, send: &mut SendStream) -> Result<(), WriteError> {
        while !self.waiting.is_empty() {
            self.write(send).await?;
        }
        Ok(())
    }
}
