//! Group commit: commands that come while others are on their way enter the log together, as one entry.
//!
//! A round through the cluster costs about the same for one command as for a hundred: a synced write on each node,
//! messages to each follower and back, and the threads that are woken for it. So one round is under way at a time, and
//! what comes meanwhile gathers for the next. Clients that were answered just now mostly write again at once, so a round
//! waits a moment for them: without that, they would split into halves that wait for each other's rounds. A client that
//! writes alone waits for nobody.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use towline::{Group, Proposal};

use crate::machine::{Answer, KvMachine, PACK_BYTES, pack};
use crate::node::write_error;
use crate::replica::WriteError;

/// Commands that wait to enter the log, and their bytes. More are refused.
const QUEUE_COMMANDS_MAX: usize = 64 << 10;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Commands of one round. What is past it can be read and answered while the round is under way.
const ROUND_COMMANDS_MAX: usize = 512;
/// Bytes of one entry, unless a single command has more: what one append message carries by default. A round has as
/// many entries as it takes.
const ENTRY_BYTES_MAX: usize = 256 << 10;
/// How long a round waits for commands that are expected.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// Takes the commands of all connections. Clones are the same.
#[derive(Clone)]
pub(crate) struct Batcher {
    queue: mpsc::Sender<Queued>,
    bytes: Arc<AtomicUsize>,
}

struct Queued {
    command: Bytes,
    answer: oneshot::Sender<Result<Answer, WriteError>>,
}

/// Resolves once the command is applied.
pub(crate) struct Pending(oneshot::Receiver<Result<Answer, WriteError>>);

impl Future for Pending {
    type Output = Result<Answer, WriteError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.0).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(WriteError::Uncertain { cause: "the node stops".into() })))
    }
}

impl Batcher {
    /// Starts the task that proposes; it ends when all clones are gone.
    pub(crate) fn start(group: Group<KvMachine>) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE_COMMANDS_MAX);
        let bytes = Arc::new(AtomicUsize::new(0));
        let proposer = Proposer { group, queued, bytes: Arc::clone(&bytes), next: Vec::new(), expected: 0 };
        tokio::spawn(proposer.run());
        Self { queue, bytes }
    }

    /// Commands of one caller enter the log in the order of the calls.
    pub(crate) fn submit(&self, command: Bytes) -> Result<Pending, WriteError> {
        let bytes = command.len();
        let (answer, pending) = oneshot::channel();
        let queued = if self.bytes.fetch_add(bytes, Ordering::Relaxed) < QUEUE_BYTES_MAX {
            self.queue.try_send(Queued { command, answer }).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => WriteError::Busy,
                mpsc::error::TrySendError::Closed(_) => {
                    WriteError::Stopped { cause: "the node stops".into() }
                }
            })
        } else {
            Err(WriteError::Busy)
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
    /// The next round.
    next: Vec<Queued>,
    /// The last round and what gathered meanwhile: so many are likely to come, if clients write again once answered.
    expected: usize,
}

struct Entry {
    proposal: Proposal<Vec<Answer>>,
    waiting: Vec<oneshot::Sender<Result<Answer, WriteError>>>,
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
                            // Its connection may be gone.
                            let _ = waiting.send(Ok(answer));
                        }
                    }
                    Err(error) => refuse(waiting, &write_error(error)),
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

    /// Waits for one command, and a moment for as many as are expected. False once nobody can bring one.
    async fn gather(&mut self) -> bool {
        let Self { queued, next, expected, .. } = self;
        if next.is_empty() && queued.recv_many(next, ROUND_COMMANDS_MAX).await == 0 {
            return false;
        }
        let all = async {
            while next.len() < *expected && queued.recv_many(next, *expected - next.len()).await > 0 {}
        };
        // Those that came in time are in `next`, whether all did or not.
        let _ = tokio::time::timeout(GATHER_TIME, all).await;
        true
    }

    /// Proposes what has gathered.
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
                Err(error) => refuse(waiting, &write_error(error)),
            }
        }
        entries
    }
}

fn refuse(waiting: Vec<oneshot::Sender<Result<Answer, WriteError>>>, error: &WriteError) {
    for waiting in waiting {
        let _ = waiting.send(Err(error.clone()));
    }
}
