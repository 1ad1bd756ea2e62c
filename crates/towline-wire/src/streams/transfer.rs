//! The two sides of a snapshot transfer on a stream.

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

/// Offers a snapshot on a stream whose peer answered with a welcome. Updates `deciding` until the peer answers the offer.
/// Call it inside a tokio runtime: it spawns a task that reads the peer's frames and ends with the transfer.
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
    let (sender, outcome) = oneshot::channel();
    let over = Over(progress.clone());
    let reader = tokio::spawn(async move {
        let _ = sender.send(read_outcome(&mut source, &over.0).await);
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

/// The next frame, where the protocol requires one.
async fn next(source: &mut impl FrameSource, without: &str) -> Result<pb::Frame, TransferError> {
    let closed = match source.next().await {
        Ok(Some(pb::Frame { kind: Some(Kind::Refused(refused)) })) => ended(refused),
        Ok(Some(frame)) => return Ok(frame),
        Ok(None) => return Err(broken(format!("the stream ended {without}"))),
        Err(closed) => closed,
    };
    Err(broken(detail(closed)))
}

/// Closes a progress cell when the reader that updates it ends for any reason.
struct Over(ProgressCell);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Updates `cell` until the outcome arrives.
async fn read_outcome(source: &mut impl FrameSource, cell: &ProgressCell) -> TransferOutcome {
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

/// The sending half, and the task that reads the other half. Dropping it resets the stream in both directions.
struct Half<S> {
    reader: AbortHandle,
    sink: S,
}

impl<S> Drop for Half<S> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

struct Sending<S> {
    /// `None` once a send failed or was dropped midway.
    sink: Option<Half<S>>,
    /// The result of [`read_outcome`].
    outcome: oneshot::Receiver<TransferOutcome>,
    progress: ProgressCell,
}

type TransferOutcome = Result<SnapshotReceipt, TransferError>;

/// The outcome that the reader sent. A reader that was aborted sent none.
fn received(outcome: Result<TransferOutcome, oneshot::error::RecvError>) -> TransferOutcome {
    outcome.unwrap_or_else(|_| Err(broken("the transfer was given up".into())))
}

impl<S: FrameSink> Sending<S> {
    async fn say(&mut self, frame: pb::Frame) -> Result<Half<S>, TransferError> {
        let mut half = self.sink.take().ok_or_else(|| broken("an earlier send failed".into()))?;
        tokio::select! {
            biased;
            early = &mut self.outcome => {
                received(early)?;
                Err(broken("a receipt before the end of the body".into()))
            }
            sent = half.sink.send(frame) => match sent {
                Ok(()) => Ok(half),
                // The stream broke. A reason that the peer gave before is better than the library's error.
                Err(detail) => match received((&mut self.outcome).await) {
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

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> TransferOutcome {
        let mut half = self.say(frame(Kind::Trailer(trailer.into()))).await?;
        half.sink.end();
        let outcome = received((&mut self.outcome).await);
        // Kept until here: dropping it would reset a stream that the peer still reads.
        drop(half);
        outcome
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// Receives one transfer, from the offer to the outcome. Returns the refusal to send instead of an outcome if the dialler
/// broke the protocol or the stream broke. The sink is then dropped; it keeps the bytes that it verified.
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
    receiving.report_progress_of(deciding.clone());
    let (answer, accepted) = match receiving.during(session.offer(offer, &deciding)).await? {
        Ok(SinkAnswer::Accept { offset, sink }) => (Answer::Accepted(offset), Some(sink)),
        Ok(SinkAnswer::AlreadyHave { commit }) => (Answer::AlreadyHave(commit), None),
        Err(refusal) => (Answer::Refused((&refusal).into()), None),
    };
    let gone = |_| violation("the dialler no longer reads the answers".into());
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

/// The frames of a dialler. While the engine works on one frame, this reads the next one, so that a sender that is gone
/// ends a busy receiver. It also reports the receiver's progress to the sender meanwhile.
struct Receiving<'a, R> {
    source: R,
    ahead: Option<Option<pb::Frame>>,
    answers: &'a mpsc::Sender<pb::Frame>,
    progress: Option<Reporting>,
    due: Interval,
}

struct Reporting {
    cell: ProgressCell,
    /// Bytes acknowledged when reporting began.
    begun: u64,
    reported: TransferProgress,
    /// The dialler does not read: report at the interval only.
    stuck: bool,
}

/// Returns once enough bytes were acknowledged for a report before the interval ends: an eighth of all bytes acknowledged
/// so far, at most [`ACKED_BYTES_MAX`]. The first reports are small, because a sender begins with a small window.
async fn worth_reporting(reporting: Option<&Reporting>) {
    let Some(Reporting { cell, begun, reported, stuck: false }) = reporting else { return pending().await };
    let mut now = cell.now();
    loop {
        let share = now.acked.saturating_sub(*begun) / 8;
        if now.acked > reported.acked && now.acked - reported.acked >= share.min(ACKED_BYTES_MAX) {
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
        self.report_progress_of(body.progress());
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
                _ = self.due.tick() => self.report(),
                () = worth_reporting(self.progress.as_ref()) => self.report(),
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
                _ = self.due.tick() => self.report(),
                done = &mut work => return Ok(done),
                () = worth_reporting(self.progress.as_ref()) => self.report(),
                frame = self.source.next(), if self.ahead.is_none() => {
                    self.ahead = Some(frame.map_err(|closed| violation(detail(closed)))?);
                }
            }
        }
    }

    /// Reports the progress in `cell` to the dialler from now on.
    fn report_progress_of(&mut self, cell: ProgressCell) {
        let reported = cell.now();
        self.progress = Some(Reporting { cell, begun: reported.acked, reported, stuck: false });
    }

    /// Reports progress. Does not wait for room: each later report covers this one.
    fn report(&mut self) {
        let Some(reporting) = &mut self.progress else { return };
        let now = reporting.cell.now();
        if now != reporting.reported {
            reporting.stuck = self.answers.try_send(frame(Kind::Progress(now.into()))).is_err();
            if !reporting.stuck {
                reporting.reported = now;
            }
        }
    }
}
