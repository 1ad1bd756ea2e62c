//! One inbound lane: handshake, then batches in and nacks out.

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
use towline_wire::{check_first_frame, deliver, prefixed, refused_frame, welcome_frame};

use crate::listener::{Peer, Phase};
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
    let (mut send, mut receive) = (Outgoing(send), Incoming::new(receive));
    let mut answers = Answers::default();
    let last = match handshake(&peer, &mut receive).await {
        Ok((session, lane)) => {
            peer.admitted.store(true, Ordering::Release);
            peer.answered.store(true, Ordering::Release);
            let _ = send.0.set_priority(priority(lane));
            serve(&peer, &mut send, &mut answers, receive, session, lane).await
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
            while !answers.waiting.is_empty() {
                answers.write(&mut send.0).await.ok()?;
            }
            send.0.finish().ok()?;
            // Heard: the connection may be closed behind it.
            send.0.stopped().await.ok()
        };
        let _ = timeout(FAREWELL, farewell).await;
    }
}

async fn handshake(peer: &Peer, receive: &mut Incoming) -> Result<(Arc<dyn PeerSession>, Lane), Refused> {
    let malformed = |detail: String| Refusal::Malformed { detail };
    let first = timeout(peer.shared.config.handshake_timeout, receive.next(HELLO_BYTES_MAX))
        .await
        .map_err(|_| Refusal::HandshakeTimeout)?
        .map_err(|ended| match ended {
            Ended::Violation(error) => malformed(error.to_string()),
            Ended::Lost(error) => malformed(error.to_string()),
        })?
        .ok_or_else(|| malformed("the stream ended before a hello".into()))?;
    let (hello, lane) = check_first_frame(first)?;
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
    Ok((session, lane))
}

/// Reads batches until the lane ends. Gives what the dialler is told last, if it is still there.
async fn serve(
    peer: &Peer,
    send: &mut Outgoing,
    answers: &mut Answers,
    mut receive: Incoming,
    session: Arc<dyn PeerSession>,
    lane: Lane,
) -> Option<Refusal> {
    let (keeps, mut lost) = oneshot::channel();
    let _seat = peer.shared.lanes.take((session.peer(), lane), keeps);
    let mut phase = peer.shared.phase.subscribe();
    answers.waiting.push_back(prefixed(&welcome_frame(&session.welcome())));
    let detail = loop {
        let frame = tokio::select! {
            biased;
            _ = phase.wait_for(|phase| *phase != Phase::Open) => return Some(Refusal::ShuttingDown),
            _ = &mut lost => break "a newer stream of this peer took the place".into(),
            written = answers.write(&mut send.0), if !answers.waiting.is_empty() => match written {
                Ok(()) => continue,
                // The dialler has given the lane up.
                Err(_) => return None,
            },
            frame = receive.next(FRAME_BYTES_MAX) => frame,
        };
        match frame {
            Ok(Some(frame)) => match deliver(session.as_ref(), lane, frame) {
                // Never waits: whoever does not read its nacks must not stop the batches of its groups. The sender
                // finds out by Raft's own probing then.
                Ok(Some(nacks)) => answers.push(prefixed(&nacks)),
                Ok(None) => {}
                Err(violation) => break violation.detail,
            },
            Ok(None) => return None,
            Err(Ended::Violation(error)) => break error.to_string(),
            Err(Ended::Lost(_)) => return None,
        }
    };
    tracing::debug!(peer = %session.peer(), lane = lane.as_str(), detail, "lane closed");
    Some(Refusal::Malformed { detail })
}

/// What goes back.
#[derive(Default)]
struct Answers {
    waiting: VecDeque<Bytes>,
    dropped: u64,
}

impl Answers {
    fn push(&mut self, nacks: Bytes) {
        if self.waiting.len() < ANSWERS_WAITING_MAX {
            self.waiting.push_back(nacks);
        } else {
            self.dropped += 1;
            tracing::debug!(dropped = self.dropped, "no room for nacks");
        }
    }

    /// Writes some of what waits. Cancel-safe.
    async fn write(&mut self, send: &mut SendStream) -> Result<(), WriteError> {
        let written = send.write_chunks(self.waiting.make_contiguous()).await?;
        self.waiting.drain(..written.chunks.min(self.waiting.len()));
        Ok(())
    }
}
