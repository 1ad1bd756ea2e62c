//! The course of a snapshot transfer, the same for every transport: what is said when, and what each side makes of what
//! the other says. A transport brings two halves of a stream and a timer.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use towline_engine::snapshot_store::Trailer;
use towline_engine::transport::{
    Chunk, OfferAnswer, PROGRESS_INTERVAL, PeerSession, ProgressCell, SinkAnswer, SnapshotReceipt,
    SnapshotRefusal, SnapshotSink, Transfer, TransferError, Violation,
};

use crate::error::WireError;
use crate::frames::kind_name;
use crate::pb::{self, frame::Kind};
use crate::snapshot::{frame, offer_of, outcome_frame};

/// The sending half of a stream. Dropping it without [`end`](Self::end) resets the stream: the peer must not take it for
/// an ordinary end.
#[async_trait]
pub trait FrameSink: Send {
    /// Hands a frame to flow control. Not cancel-safe: the stream is of no further use when the future is dropped.
    ///
    /// # Errors
    /// What broke.
    async fn send(&mut self, frame: pb::Frame) -> Result<(), String>;

    /// Nothing more will be sent.
    fn end(&mut self);
}

/// The receiving half of a stream.
#[async_trait]
pub trait FrameSource: Send {
    /// The next frame; `None` at an ordinary end. Cancel-safe.
    ///
    /// # Errors
    /// What broke, a reset included.
    async fn next(&mut self) -> Result<Option<pb::Frame>, String>;
}

/// Waits.
#[async_trait]
pub trait Timer: Send + Sync {
    /// Returns after `duration`.
    async fn wait(&self, duration: Duration);
}

/// The dialler's first part: what comes back for the offer.
///
/// # Errors
/// [`TransferError::Broken`].
pub async fn begin(source: &mut dyn FrameSource) -> Result<Begun, TransferError> {
    use pb::answer::Kind as Answer;
    let broken = |detail: String| TransferError::Broken { detail };
    let frame = source.next().await.map_err(broken)?;
    let frame = frame.ok_or_else(|| broken("the stream ended without an answer to the offer".into()))?;
    match frame.kind {
        Some(Kind::Answer(pb::Answer { kind: Some(answer) })) => Ok(match answer {
            Answer::Accepted(offset) => Begun::Accepted { offset },
            Answer::AlreadyHave(commit) => Begun::Answered(OfferAnswer::AlreadyHave { commit }),
            Answer::Refused(refused) => Begun::Answered(OfferAnswer::Refused(refused.into())),
        }),
        other => {
            let error =
                WireError::Unexpected { expected: "an answer to the offer", got: kind_name(other.as_ref()) };
            Err(broken(error.to_string()))
        }
    }
}

/// What an offer led to.
pub enum Begun {
    /// The peer takes the bytes from there on.
    Accepted {
        /// Where.
        offset: u64,
    },
    /// It is over.
    Answered(OfferAnswer),
}

/// The dialler's reading side, to be run beside the sending one: keeps `cell` current until the last word is there.
///
/// # Errors
/// [`TransferError::Refused`] with the peer's reason, or [`TransferError::Broken`].
pub async fn read_outcome(
    source: &mut dyn FrameSource,
    cell: &ProgressCell,
) -> Result<SnapshotReceipt, TransferError> {
    use pb::outcome::Kind as Outcome;
    let broken = |detail: String| TransferError::Broken { detail };
    loop {
        let frame = source.next().await.map_err(broken)?;
        let frame = frame.ok_or_else(|| broken("the stream ended without an outcome".into()))?;
        match frame.kind {
            Some(Kind::Progress(progress)) => cell.advance(progress.into()),
            Some(Kind::Outcome(pb::Outcome { kind: Some(Outcome::Commit(commit)) })) => {
                return Ok(SnapshotReceipt { commit });
            }
            Some(Kind::Outcome(pb::Outcome { kind: Some(Outcome::Refused(refused)) })) => {
                return Err(TransferError::Refused(refused.into()));
            }
            other => {
                let error = WireError::Unexpected {
                    expected: "progress or an outcome",
                    got: kind_name(other.as_ref()),
                };
                return Err(broken(error.to_string()));
            }
        }
    }
}

/// A [`Transfer`] on the sending half of a stream. `outcome` resolves with what [`read_outcome`] gave.
pub struct Sending<S, O> {
    /// `None` once a send failed or was dropped midway, which resets the stream.
    sink: Option<S>,
    outcome: O,
    progress: ProgressCell,
}

impl<S, O> Sending<S, O>
where
    S: FrameSink,
    O: Future<Output = Result<SnapshotReceipt, TransferError>> + Send + Unpin,
{
    /// After [`begin`] said accepted.
    pub fn new(sink: S, outcome: O, progress: ProgressCell) -> Self {
        Self { sink: Some(sink), outcome, progress }
    }

    async fn say(&mut self, frame: pb::Frame) -> Result<S, TransferError> {
        let gone = || TransferError::Broken { detail: "an earlier send failed".into() };
        let mut sink = self.sink.take().ok_or_else(gone)?;
        match race(&mut self.outcome, sink.send(frame)).await {
            Raced::Left(outcome) => Err(early(outcome)),
            Raced::Right(Ok(())) => Ok(sink),
            Raced::Right(Err(detail)) => {
                // The stream broke; if the peer gave a reason before, it is better than what the library says.
                match (&mut self.outcome).await {
                    Err(error @ TransferError::Refused(_)) => Err(error),
                    _ => Err(TransferError::Broken { detail }),
                }
            }
        }
    }
}

fn early(outcome: Result<SnapshotReceipt, TransferError>) -> TransferError {
    match outcome {
        Ok(_) => TransferError::Broken { detail: "a receipt before the end of the body".into() },
        Err(error) => error,
    }
}

#[async_trait]
impl<S, O> Transfer for Sending<S, O>
where
    S: FrameSink,
    O: Future<Output = Result<SnapshotReceipt, TransferError>> + Send + Unpin,
{
    async fn send(&mut self, chunk: Chunk) -> Result<(), TransferError> {
        let sink = self.say(frame(Kind::Chunk(chunk.into()))).await?;
        self.sink = Some(sink);
        Ok(())
    }

    async fn finish(mut self: Box<Self>, trailer: Trailer) -> Result<SnapshotReceipt, TransferError> {
        let mut sink = self.say(frame(Kind::Trailer(trailer.into()))).await?;
        sink.end();
        let outcome = (&mut self.outcome).await;
        // Until here: dropping it would reset what the peer still reads.
        drop(sink);
        outcome
    }

    fn progress(&self) -> ProgressCell {
        self.progress.clone()
    }
}

/// The listener's side of a transfer, after the welcome: from the offer to the last word.
///
/// # Errors
/// [`Violation`]: the dialler broke the protocol, or the stream broke. Whatever sink there was is dropped, and keeps what
/// it verified.
pub async fn serve(
    session: &dyn PeerSession,
    source: &mut dyn FrameSource,
    sink: &mut dyn FrameSink,
    timer: &dyn Timer,
) -> Result<(), Violation> {
    use pb::answer::Kind as Answer;
    let ended = || Violation { detail: "the stream ended before its trailer".into() };
    let first = source.next().await.map_err(broken)?.ok_or_else(ended)?;
    let offer = offer_of(first).map_err(|error| broken(error.to_string()))?;
    let (answer, accepted) = match session.offer(offer).await {
        Ok(SinkAnswer::Accept { offset, sink }) => (Answer::Accepted(offset), Some(sink)),
        Ok(SinkAnswer::AlreadyHave { commit }) => (Answer::AlreadyHave(commit), None),
        Err(refusal) => (Answer::Refused((&refusal).into()), None),
    };
    sink.send(frame(Kind::Answer(pb::Answer { kind: Some(answer) }))).await.map_err(broken)?;
    if let Some(body) = accepted {
        let (cell, due) = (body.progress(), timer.wait(PROGRESS_INTERVAL));
        let mut teller = Teller { told: cell.now(), cell, sink: &mut *sink, timer, due };
        let outcome = receive(body, source, &mut teller).await?;
        drop(teller);
        sink.send(outcome_frame(&outcome)).await.map_err(broken)?;
    }
    sink.end();
    Ok(())
}

fn broken(detail: String) -> Violation {
    Violation { detail }
}

async fn receive(
    mut body: Box<dyn SnapshotSink>,
    source: &mut dyn FrameSource,
    teller: &mut Teller<'_>,
) -> Result<Result<SnapshotReceipt, SnapshotRefusal>, Violation> {
    loop {
        let next = teller.during(source.next()).await?.map_err(broken)?;
        match next.and_then(|frame| frame.kind) {
            Some(Kind::Chunk(chunk)) => {
                if let Err(refusal) = teller.during(body.write(chunk.into())).await? {
                    return Ok(Err(refusal));
                }
            }
            Some(Kind::Trailer(trailer)) => {
                let trailer = Trailer::try_from(trailer).map_err(|error| broken(error.to_string()))?;
                return teller.during(body.finish(trailer)).await;
            }
            None => return Err(broken("the stream ended before its trailer".into())),
            other => {
                let error = WireError::Unexpected {
                    expected: "a chunk or a trailer",
                    got: kind_name(other.as_ref()),
                };
                return Err(broken(error.to_string()));
            }
        }
    }
}

/// Tells the dialler how far it is while something else takes its time.
struct Teller<'a> {
    cell: ProgressCell,
    told: towline_engine::transport::TransferProgress,
    sink: &'a mut dyn FrameSink,
    timer: &'a dyn Timer,
    /// When to tell next. It outlives the pieces of work, of which there may be many between two times.
    due: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

impl Teller<'_> {
    async fn during<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Violation> {
        let mut work = pin!(work);
        loop {
            match race(self.due.as_mut(), work.as_mut()).await {
                Raced::Left(()) => {
                    self.due = self.timer.wait(PROGRESS_INTERVAL);
                    self.tell().await?;
                }
                Raced::Right(done) => return Ok(done),
            }
        }
    }

    async fn tell(&mut self) -> Result<(), Violation> {
        let now = self.cell.now();
        if now == self.told {
            return Ok(());
        }
        self.told = now;
        self.sink.send(frame(Kind::Progress(now.into()))).await.map_err(broken)
    }
}

enum Raced<A, B> {
    Left(A),
    Right(B),
}

/// Whatever ends first; the left one if both have.
async fn race<A: Future, B: Future>(left: A, right: B) -> Raced<A::Output, B::Output> {
    let (mut left, mut right) = (pin!(left), pin!(right));
    poll_fn(|cx| {
        if let Poll::Ready(done) = Pin::as_mut(&mut left).poll(cx) {
            return Poll::Ready(Raced::Left(done));
        }
        Pin::as_mut(&mut right).poll(cx).map(Raced::Right)
    })
    .await
}
