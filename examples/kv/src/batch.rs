//! Group commit: commands that arrive during one round through the cluster enter the log together, in the next round.
//!
//! A round costs about the same for one command as for a hundred: a synced write on each node, messages to each follower
//! and back, and the wake-ups of threads. So one round is under way at a time. Clients that just got their answers mostly
//! write again at once, so a round waits up to [`GATHER_TIME`] for them. Without this wait, they would split into halves
//! that wait for each other's rounds. A single writer does not wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use towline::{Group, Proposal, ProposeError, UncertainCause};

use crate::machine::{Answer, KvMachine, PACK_BYTES, pack};

/// Bounds of the commands that wait for the next round. More are refused as busy.
const QUEUE_COMMANDS_MAX: usize = 64 << 10;
const QUEUE_BYTES_MAX: usize = 64 << 20;
const ROUND_COMMANDS_MAX: usize = 512;
/// Bytes of one entry, unless a single command has more. One append message carries as much by default.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// How long a round waits for the expected commands.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// Takes the commands of all connections. All clones share one queue.
#[derive(Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
}

type Waiter = oneshot::Sender<Result<Answer, ProposeError>>;

struct Queued {
    command: Bytes,
    answer: Waiter,
}

/// Resolves once the command is applied.
pub(crate) struct Pending(oneshot::Receiver<Result<Answer, ProposeError>>);

impl Future for Pending {
    type Output = Result<Answer, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        let stopping = ProposeError::Uncertain { cause: UncertainCause::Down("the node stops".into()) };
        Poll::Ready(answer.unwrap_or(Err(stopping)))
    }
}

impl Batcher {
    /// Starts the task that proposes. It ends when the last clone is dropped.
    pub(crate) fn start(group: Group<KvMachine>) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let proposer = Proposer { group, queued, bytes: Arc::clone(&bytes), next: Vec::new(), expected: 0 };
        tokio::spawn(proposer.run());
        Self { queue, bytes }
    }

    /// Queues a command. Commands of one caller enter the log in the order of the calls.
    pub(crate) fn submit(&self, command: Bytes) -> Result<Pending, ProposeError> {
        let bytes = command.len();
        let (answer, pending) = oneshot::channel();
        let queued = if self.bytes.fetch_add(bytes, Ordering::Relaxed) < QUEUE_BYTES_MAX {
            self.queue.try_send(Queued { command, answer }).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
                mpsc::error::TrySendError::Closed(_) => {
                    ProposeError::Stopped { cause: "the node stops".into() }
                }
            })
        } else {
            Err(ProposeError::Busy)
        };
        if queued.is_err() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        queued.map(|()| Pending(pending))
    }
}

struct Proposer {
    group: Group<KvMachine>,
    queued: mpsc::Receiver<Queued>,
    bytes: Arc<AtomicUsize>,
    next: Vec<Queued>,
    /// The size of the last round and of the queue after it. As many are likely to come, as clients write again.
    expected: usize,
}

struct Entry {
    proposal: Proposal<Vec<Answer>>,
    waiting: Vec<Waiter>,
}

impl Proposer {
    async fn run(mut self) {
        while self.gather().await {
            let entries = self.propose();
            let mut answered = 0;
            for Entry { proposal, waiting } in entries {
                answered += waiting.len();
                match proposal.await {
                    Ok(answers) => {
                        for (waiting, answer) in waiting.into_iter().zip(answers) {
                            let _ = waiting.send(Ok(answer)); // the connection may be gone
                        }
                    }
                    Err(error) => refuse(waiting, &error),
                }
            }
            while self.next.len() < ROUND_COMMANDS_MAX
                && let Ok(queued) = self.queued.try_recv()
            {
                self.next.push(queued);
            }
            self.expected = (answered + self.next.len()).min(ROUND_COMMANDS_MAX);
        }
    }

    /// Waits for one command, then up to [`GATHER_TIME`] for the expected ones. False once the last [`Batcher`] is gone.
    async fn gather(&mut self) -> bool {
        let Self { queued, next, expected, .. } = self;
        if next.is_empty() && queued.recv_many(next, ROUND_COMMANDS_MAX).await == 0 {
            return false;
        }
        let all = async {
            while next.len() < *expected && queued.recv_many(next, *expected - next.len()).await > 0 {}
        };
        // After a timeout, `next` holds the commands that came in time.
        let _ = tokio::time::timeout(GATHER_TIME, all).await;
        true
    }

    /// Proposes the commands in `next`, in as few entries as their bytes allow.
    fn propose(&mut self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut round = std::mem::take(&mut self.next).into_iter().peekable();
        while round.peek().is_some() {
            let (mut entry, mut waiting) = (Vec::new(), Vec::new());
            let fits = |entry: &Vec<u8>, more: &Bytes| {
                entry.is_empty() || entry.len() + PACK_BYTES + more.len() <= ENTRY_BYTES_MAX
            };
            while let Some(Queued { command, answer }) = round.next_if(|next| fits(&entry, &next.command)) {
                self.bytes.fetch_sub(command.len(), Ordering::Relaxed);
                pack(&mut entry, &command);
                waiting.push(answer);
            }
            match self.group.submit(entry) {
                Ok(proposal) => entries.push(Entry { proposal, waiting }),
                Err(error) => refuse(waiting, &error),
            }
        }
        entries
    }
}

fn refuse(waiting: Vec<Waiter>, error: &ProposeError) {
    for waiting in waiting {
        let _ = waiting.send(Err(error.clone()));
    }
}
