//! Group commit: commands that come while others are on their way enter the log together, as one entry.
//!
//! A round of the cluster costs about the same for one command as for a hundred: a synced write on each node, a message
//! to each follower and back, and the threads that are woken for it. So only few entries are under way at a time, and
//! what comes meanwhile gathers for the next. A command that comes alone goes at once.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use towline::{Group, Proposal};

use crate::machine::{Answer, KvMachine, pack};
use crate::node::write_error;
use crate::replica::WriteError;

/// Commands that wait to enter the log, and their bytes. More are refused.
const QUEUE_COMMANDS_MAX: usize = 64 << 10;
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Commands of one entry.
const ENTRY_COMMANDS_MAX: usize = 1_024;
/// Bytes of one entry, unless a single command has more: what one append message carries by default.
const ENTRY_BYTES_MAX: usize = 256 << 10;

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
        let next = Vec::new();
        tokio::spawn(
            Proposer { group, queued, bytes: Arc::clone(&bytes), next, under_way: VecDeque::new() }.run(),
        );
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
    next: Vec<Queued>,
    under_way: VecDeque<Entry>,
}

struct Entry {
    proposal: Proposal<Vec<Answer>>,
    waiting: Vec<oneshot::Sender<Result<Answer, WriteError>>>,
}

impl Proposer {
    async fn run(mut self) {
        let knob = |name: &str, default: usize| {
            std::env::var(name).map_or(default, |v| v.parse().unwrap_or(default))
        };
        let depth = knob("KV_DEPTH", 2);
        let yields = knob("KV_YIELD", 1);
        let mut open = true;
        while open || !self.under_way.is_empty() {
            while !self.next.is_empty() && self.under_way.len() < depth {
                self.propose();
            }
            let room = self.next.is_empty() && self.under_way.len() < depth;
            tokio::select! {
                biased;
                () = poll_fn(|cx| poll_first(&mut self.under_way, cx)), if !self.under_way.is_empty() => {}
                count = self.queued.recv_many(&mut self.next, ENTRY_COMMANDS_MAX), if open && room => {
                    open = count != 0;
                    for _ in 0..yields {
                        // Connections that are ready too get their turn before the entry is closed.
                        tokio::task::yield_now().await;
                    }
                    while self.next.len() < ENTRY_COMMANDS_MAX && let Ok(more) = self.queued.try_recv() {
                        self.next.push(more);
                    }
                }
            }
        }
    }

    /// As many of what waits as one entry holds.
    fn propose(&mut self) {
        let (mut entry, mut count) = (Vec::new(), 0);
        for Queued { command, .. } in &self.next {
            if count > 0 && entry.len() + command.len() > ENTRY_BYTES_MAX {
                break;
            }
            pack(&mut entry, command);
            self.bytes.fetch_sub(command.len(), Ordering::Relaxed);
            count += 1;
        }
        let waiting = self.next.drain(..count).map(|queued| queued.answer).collect();
        match self.group.submit(entry) {
            Ok(proposal) => self.under_way.push_back(Entry { proposal, waiting }),
            Err(error) => refuse(waiting, &write_error(error)),
        }
    }
}

/// Answers everybody in the first entry once it is applied: entries are applied in order.
fn poll_first(under_way: &mut VecDeque<Entry>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(first) = under_way.front_mut() else { return Poll::Pending };
    let result = ready!(Pin::new(&mut first.proposal).poll(cx));
    let waiting = under_way.pop_front().map(|first| first.waiting).unwrap_or_default();
    match result {
        Ok(answers) => {
            for (waiting, answer) in waiting.into_iter().zip(answers) {
                // Its connection may be gone.
                let _ = waiting.send(Ok(answer));
            }
        }
        Err(error) => refuse(waiting, &write_error(error)),
    }
    Poll::Ready(())
}

fn refuse(waiting: Vec<oneshot::Sender<Result<Answer, WriteError>>>, error: &WriteError) {
    for waiting in waiting {
        let _ = waiting.send(Err(error.clone()));
    }
}
