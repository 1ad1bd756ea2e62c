//! The course of a snapshot transfer: what is said when, and what each side makes of what the other says.

use std::future::{Future, pending};
use std::pin::pin;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    ACKED_BYTES_MAX, Chunk, OfferAnswer, PROGRESS_INTERVAL, PeerSession, ProgressCell, Refusal, SinkAnswer,
    SnapshotOffer, SnapshotReceipt, SnapshotRefusal, SnapshotSink, Transfer, TransferError, TransferProgress,
    Violation,
};

use super::link::ended;
use super::{FrameSink, FrameSource, detail};
use crate::error::WireError;
use crate::frames::kind_name;
use crate::pb::{self, frame::Kind};
use crate::snapshot::{frame, offer_frame, offer_of, outcome_frame};

/// Offers a snapshot on a stream whose peer said welcome, and keeps `deciding` current until it has answered. Must be
/// called inside a tokio runtime: what comes back is read by a task, which ends with the transfer.
///
/// # Errors
/// [`TransferError::Broken`].
pub async fn offer(
    mut sink: impl FrameSink,
    mut source: impl FrameSource,
    offer: &SnapshotOffer,
    deciding: &ProgressCell,
) -> Result<OfferAnswer, TransferError> {
    use pb::answer::Kind as Answer;
    sink.send(offer_frame(offer)).await.map_err(broken)?;
    let answer = loop {
        match next(&mut source, "without an answer to the offer").await?.kind {
            Some(Kind::Progress(progress)) => deciding.advance(progress.into()),
            Some(Kind::Answer(pb::Answer { kind: Some(answer) })) => break answer,
            other => return Err(unexpected("progress or an answer to the offer", other.as_ref())),
        }
    };
    let offset = match answer {
        Answer::Accepted(offset) => offset,
        Answer::AlreadyHave(commit) => return Ok(OfferAnswer::AlreadyHave { commit }),
        Answer::Refused(refused) => return Ok(OfferAnswer::Refused(refused.into())),
    };
    let progress = ProgressCell::new(offset);
    let (told, outcome) = oneshot::channel();
    let over = Over(progress.clone());
    let reader = tokio::spawn(async move {
        let _ = told.send(read_outcome(&mut source, &over.0).await);
        drop(over);
    });
    let sink = Some(Half { reader: reader.abort_handle(), sink });
    Ok(OfferAnswer::Accepted { offset, transfer: Box::new(Sending { sink, outcome, progress }) })
}

fn broken(detail: String) -> TransferError {
    TransferError::Broken { detail }
}

fn unexpected(expected: &'static str, got: Option<&Kind>) -> TransferError {
    broken(WireError::Unexpected { expected, got: kind_name(got) }.to_string())
}

/// The next frame where there must be one.
async fn next(source: &mut impl FrameSource, without: &str) -> Result<pb::Frame, TransferError> {
    let closed = match source.next().await {
        Ok(Some(pb::Frame { kind: Some(Kind::Refused(refused)) })) => ended(refused),
        Ok(Some(frame)) => return Ok(frame),
        Ok(None) => return Err(broken(format!("the stream ended {without}"))),
        Err(closed) => closed,
    };
    Err(broken(detail(closed)))
}

/// Closes a cell when the reader that keeps it current has ended, however it did.
struct Over(ProgressCell);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Keeps `cell` current until the last word is there.
async fn read_outcome(
    source: &mut impl FrameSource,
    cell: &ProgressCell,
) -> Result<SnapshotReceipt, TransferError> {
    use pb::outcome::Kind as Outcome;
    loop {
        match next(source, "without an outcome").await?.kind {
            Some(Kind::Progress(progress)) => cell.advance(progress.into()),
            Some(Kind::Outcome(pb::Outcome { kind: Some(Outcome::Commit(commit)) })) => {
                return Ok(SnapshotReceipt { commit });
            }
            Some(Kind::Outcome(pb::Outcome { kind: Some(Outcome::Refused(refused)) })) => {
                return Err(TransferError::Refused(refused.into()));
            }
            other => return Err(unexpected("progress or an outcome", other.as_ref())),
        }
    }
}

/// The sending half, and the reader of the other. Dropping it resets the stream both ways.
struct Half<S> {
    reader: AbortHandle,
    sink: S,
}

impl<S> Drop for Half<S> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A transfer that was accepted.
struct Sending<S> {
    /// `None` once a send failed or was dropped midway.
    sink: Option<Half<S>>,
    /// What [`read_outcome`] gave.
    outcome: oneshot::Receiver<Result<SnapshotReceipt, TransferError>>,
    progress: ProgressCell,
}

type Told = Result<Result<SnapshotReceipt, TransferError>, oneshot::error::RecvError>;

/// What was told; a reader that ended by itself told nothing.
fn told(told: Told) -> Result<SnapshotReceipt, TransferError> {
    told.unwrap_or_else(|_| Err(broken("the transfer was given up".into())))
}

impl<S: FrameSink> Sending<S> {
    async fn say(&mut self, frame: pb::Frame) -> Result<Half<S>, TransferError> {
        let mut half = self.sink.take().ok_or_else(|| broken("an earlier send failed".into()))?;
        tokio::select! {
            biased;
            early = &mut self.outcome => {
                told(early)?;
                Err(broken("a receipt before the end of the body".into()))
            }
            sent = half.sink.send(frame) => match sent {
                Ok(()) => Ok(half),
                // The stream broke; if the peer gave a reason before, it is better than what the library says.
                Err(detail) => match told((&mut self.outcome).await) {
                    Err(error @ TransferError::Refused(_)) => Err(error),
                    _ => Err(broken(detail)),
                },
            },
        }
    }
}

#[async_trait]
impl<S: FrameSink> Transfer for Sending<S> {
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        let half = self.say(frame(Kind::Chunk(chunk.into()))).await?;
        self.sink = Some(half);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let mut half = self.say(frame(Kind::Trailer(trailer.into()))).await?;
        half.sink.end();
        let outcome = told((&mut self.outcome).await);
        // Until here: dropping it would reset what the peer still reads.
        drop(half);
        outcome
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// Takes one transfer, from the offer to the last word. Gives what the dialler is told instead, if it broke the protocol
/// or the stream broke; whatever sink there was is dropped then, and keeps what it verified.
pub(super) async fn receive(
    source: impl FrameSource,
    answers: &mpsc::Sender<pb::Frame>,
    session: &dyn PeerSession,
) -> Option<Refusal> {
    let violation = take(source, answers, session).await.err()?;
    tracing::debug!(peer = %session.peer(), %violation, "snapshot stream closed");
    Some(Refusal::Malformed { detail: violation.detail })
}

async fn take(
    source: impl FrameSource,
    answers: &mpsc::Sender<pb::Frame>,
    session: &dyn PeerSession,
) -> Result<(), Violation> {
    use pb::answer::Kind as Answer;
    let mut receiving = Receiving::new(source, answers);
    let first = receiving.next().await?.ok_or_else(early_end)?;
    let offer = offer_of(first).map_err(|error| violation(error.to_string()))?;
    let deciding = ProgressCell::new(0);
    receiving.tell_of(deciding.clone());
    let (answer, accepted) = match receiving.during(session.offer(offer, &deciding)).await? {
        Ok(SinkAnswer::Accept { offset, sink }) => (Answer::Accepted(offset), Some(sink)),
        Ok(SinkAnswer::AlreadyHave { commit }) => (Answer::AlreadyHave(commit), None),
        Err(refusal) => (Answer::Refused((&refusal).into()), None),
    };
    let gone = |_| violation("nobody reads the answers".into());
    answers.send(frame(Kind::Answer(pb::Answer { kind: Some(answer) }))).await.map_err(gone)?;
    let Some(body) = accepted else { return Ok(()) };
    let outcome = receiving.body(body).await?;
    answers.send(outcome_frame(&outcome)).await.map_err(gone)
}

fn violation(detail: String) -> Violation {
    Violation { detail }
}

fn early_end() -> Violation {
    violation("the stream ended before its trailer".into())
}

/// What a dialler says. While something else takes its time the next frame is read, so that a sender that is gone ends a
/// receiver that is busy, and the sender is told how far its receiver is.
struct Receiving<'a, R> {
    source: R,
    /// The next frame, or the end.
    ahead: Option<Option<pb::Frame>>,
    answers: &'a mpsc::Sender<pb::Frame>,
    /// What to tell of, and what was told last.
    progress: Option<Telling>,
    due: Interval,
}

struct Telling {
    cell: ProgressCell,
    /// What was acknowledged when the telling began.
    begun: u64,
    told: TransferProgress,
    /// The dialler does not read: tell when it is due, and not before.
    stuck: bool,
}

/// Returns once so much was acknowledged that the dialler should be told before it is due. A share of what there was
/// first, so that a sender that begins with a few bytes under way need not wait.
async fn worth_telling(telling: Option<&Telling>) {
    let Some(Telling { cell, begun, told, stuck: false }) = telling else { return pending().await };
    let mut now = cell.now();
    loop {
        let share = now.acked.saturating_sub(*begun) / 8;
        if now.acked > told.acked && now.acked - told.acked >= share.min(ACKED_BYTES_MAX) {
            return;
        }
        now = cell.moved(now).await;
    }
}

impl<'a, R: FrameSource> Receiving<'a, R> {
    fn new(source: R, answers: &'a mpsc::Sender<pb::Frame>) -> Self {
        let mut due = interval_at(Instant::now() + PROGRESS_INTERVAL, PROGRESS_INTERVAL);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { source, ahead: None, answers, progress: None, due }
    }

    async fn body(
        &mut self,
        mut body: Box<dyn SnapshotSink>,
    ) -> Result<Result<SnapshotReceipt, SnapshotRefusal>, Violation> {
        self.tell_of(body.progress());
        loop {
            match self.next().await?.ok_or_else(early_end)?.kind {
                Some(Kind::Chunk(chunk)) => {
                    if let Err(refusal) = self.during(body.write(chunk.into())).await? {
                        return Ok(Err(refusal));
                    }
                }
                Some(Kind::Trailer(trailer)) => {
                    let trailer = Trailer::try_from(trailer).map_err(|error| violation(error.to_string()))?;
                    return self.during(body.finish(trailer)).await;
                }
                other => {
                    let (expected, got) = ("a chunk or a trailer", kind_name(other.as_ref()));
                    return Err(violation(WireError::Unexpected { expected, got }.to_string()));
                }
            }
        }
    }

    async fn next(&mut self) -> Result<Option<pb::Frame>, Violation> {
        while self.ahead.is_none() {
            tokio::select! {
                biased;
                _ = self.due.tick() => self.tell(),
                () = worth_telling(self.progress.as_ref()) => self.tell(),
                frame = self.source.next() => {
                    self.ahead = Some(frame.map_err(|closed| violation(detail(closed)))?);
                }
            }
        }
        Ok(self.ahead.take().flatten())
    }

    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Violation> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                _ = self.due.tick() => self.tell(),
                done = &mut work => return Ok(done),
                () = worth_telling(self.progress.as_ref()) => self.tell(),
                frame = self.source.next(), if self.ahead.is_none() => {
                    self.ahead = Some(frame.map_err(|closed| violation(detail(closed)))?);
                }
            }
        }
    }

    /// From now on the dialler is told of this.
    fn tell_of(&mut self, cell: ProgressCell) {
        let told = cell.now();
        self.progress = Some(Telling { cell, begun: told.acked, told, stuck: false });
    }

    /// Never waits: what is told later says as much.
    fn tell(&mut self) {
        let Some(telling) = &mut self.progress else { return };
        let now = telling.cell.now();
        if now != telling.told {
            telling.stuck = self.answers.try_send(frame(Kind::Progress(now.into()))).is_err();
            if !telling.stuck {
                telling.told = now;
            }
        }
    }
}
