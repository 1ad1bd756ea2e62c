//! One case: a runtime, a deadline on everything, and a sentence to fail with.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use towline_engine::ids::{ClusterId, GroupId, Incarnation, NodeId};
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::transport::{
    ConnectError, Connected, Hello, Link, PROTOCOL_VERSION, Peer, Transport, Welcome,
};

use super::engine::{Ear, Host};
use super::{Capabilities, TransportFixture};

/// How long to look whether something happens that must not.
pub(super) const NOT_YET: Duration = Duration::from_millis(150);

/// Threads of a case's runtime: two may be held and the rest still work.
const WORKERS: usize = 4;

/// Waits that one case may string together.
const WAITS_MAX: u32 = 6;

/// The tools of one case.
pub(super) struct Bench {
    pub(super) fixture: Arc<dyn TransportFixture>,
    pub(super) can: Capabilities,
    /// A node has one.
    transports: Mutex<HashMap<NodeId, Arc<dyn Transport>>>,
    scheme: &'static str,
    sentence: &'static str,
}

/// Runs a case that holds `sentence`.
pub(super) fn run(
    fixture: Arc<dyn TransportFixture>,
    sentence: &'static str,
    case: impl AsyncFnOnce(&Bench),
) {
    let threads = Threads::new();
    let name = threads.name.clone();
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).thread_name(name).enable_all().build();
    // Also when the case panics: whatever it left behind must not keep the test.
    let runtime = EndsInTime(Some(runtime.unwrap()));
    runtime.0.as_ref().unwrap().block_on(async {
        let first = fixture.transport(node(1));
        let (scheme, can) = (first.scheme(), fixture.capabilities());
        let transports = Mutex::new(HashMap::from([(node(1), first)]));
        let bench = Bench { fixture, can, transports, scheme, sentence };
        let whole = bench.fixture.deadline() * WAITS_MAX;
        if timeout(whole, case(&bench)).await.is_err() {
            bench.fail("the case as a whole did not end in time");
        }
    });
    drop(runtime);
    if let Some(panic) = threads.panicked() {
        panic!("a transport never panics, whatever happens\n  a thread of the runtime did: {panic}");
    }
}

struct EndsInTime(Option<Runtime>);

impl Drop for EndsInTime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(Duration::from_secs(2));
        }
    }
}

/// Panics on threads that a suite started, by the threads' name.
static PANICS: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);

/// The threads of one case, by their name.
struct Threads {
    name: String,
}

impl Threads {
    fn new() -> Self {
        static HOOK: Once = Once::new();
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                let thread = thread::current();
                if let Some(name) = thread.name().filter(|name| name.starts_with("suite-")) {
                    let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
                    panics.get_or_insert_default().insert(name.to_owned(), info.to_string());
                }
                before(info);
            }));
        });
        Self { name: format!("suite-{}", NUMBER.fetch_add(1, Ordering::Relaxed)) }
    }

    fn panicked(&self) -> Option<String> {
        PANICS.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&self.name)
    }
}

/// A link that was opened, and what it tells.
pub(super) struct Opened {
    pub(super) link: Box<dyn Link>,
    pub(super) ear: Ear,
    pub(super) welcome: Welcome,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("welcome", &self.welcome).finish_non_exhaustive()
    }
}

impl Bench {
    /// The transport of a node.
    pub(super) fn transport(&self, node: NodeId) -> Arc<dyn Transport> {
        let mut transports = self.transports.lock().unwrap_or_else(PoisonError::into_inner);
        transports.entry(node).or_insert_with(|| self.fixture.transport(node)).clone()
    }

    /// Fails the case.
    pub(super) fn fail(&self, what: impl Display) -> ! {
        panic!("{}: the contract says: {}\n  but {what}", self.scheme, self.sentence)
    }

    /// Fails the case unless `holds`.
    pub(super) fn hold(&self, holds: bool, otherwise: impl Display) {
        if !holds {
            self.fail(otherwise);
        }
    }

    /// Fails the case unless both are equal.
    pub(super) fn equal<T: PartialEq + fmt::Debug>(&self, what: &str, is: &T, should: &T) {
        self.hold(is == should, format_args!("{what} is {}, not {}", cut(is), cut(should)));
    }

    /// What the future gives, before the deadline.
    pub(super) async fn within<T>(&self, what: impl Display, future: impl Future<Output = T>) -> T {
        match timeout(self.fixture.deadline(), future).await {
            Ok(value) => value,
            Err(_) => self.fail(format_args!("{what} did not happen within {:?}", self.fixture.deadline())),
        }
    }

    /// Fails the case if the task ends.
    pub(super) async fn not_yet<T>(&self, what: impl Display, task: &mut JoinHandle<T>) {
        self.hold(timeout(NOT_YET, task).await.is_err(), what);
    }

    /// What a task gives.
    pub(super) async fn join<T>(&self, what: impl Display, task: JoinHandle<T>) -> T {
        match self.within(&what, task).await {
            Ok(value) => value,
            Err(_) => self.fail(format_args!("{what}: the task panicked")),
        }
    }

    /// A listening node 2.
    pub(super) async fn host(&self) -> Host {
        self.host_of(2).await
    }

    pub(super) async fn host_of(&self, raw: u64) -> Host {
        Host::listen(self, node(raw), &self.fixture.address()).await
    }

    /// Dials from node 1 as a task of its own.
    pub(super) fn dial(&self, host: &Host, lane: Lane) -> (JoinHandle<Result<Connected, ConnectError>>, Ear) {
        self.dial_as(hello(1, host.node), host.peer(), lane)
    }

    pub(super) fn dial_as(
        &self,
        hello: Hello,
        to: Peer,
        lane: Lane,
    ) -> (JoinHandle<Result<Connected, ConnectError>>, Ear) {
        let (ear, feedback) = Ear::new();
        let transport = self.transport(hello.from);
        (tokio::spawn(async move { transport.connect(&to, lane, &hello, feedback).await }), ear)
    }

    /// Dials from node 1 and waits for the answer.
    pub(super) async fn connect(&self, host: &Host, lane: Lane) -> (Result<Connected, ConnectError>, Ear) {
        let (task, ear) = self.dial(host, lane);
        (self.join("an answer to connect", task).await, ear)
    }

    /// A link from node 1.
    pub(super) async fn open(&self, host: &Host, lane: Lane) -> Opened {
        self.open_as(hello(1, host.node), host.peer(), lane).await
    }

    pub(super) async fn open_as(&self, hello: Hello, to: Peer, lane: Lane) -> Opened {
        let (task, ear) = self.dial_as(hello, to, lane);
        match self.join("an answer to connect", task).await {
            Ok(Connected { link, welcome }) => Opened { link, ear, welcome },
            Err(error) => self.fail(format_args!("a dialler that is welcome gets {}", chain(&error))),
        }
    }

    /// Dispatches on a link that should take it.
    pub(super) async fn dispatch(&self, to: &mut Opened, batch: Batch) {
        if let Err(error) = self.within("a dispatch", to.link.dispatch(batch)).await {
            self.fail(format_args!("a dispatch on a healthy link gets {}", chain(&error)));
        }
    }
}

/// An error and its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// A value for a message of failure, at a length that can be read.
fn cut(value: &impl fmt::Debug) -> String {
    const CHARS_MAX: usize = 2_000;
    let text = format!("{value:?}");
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(super) fn node(raw: u64) -> NodeId {
    NodeId::new(raw).unwrap()
}

pub(super) fn hello(from: u64, to: NodeId) -> Hello {
    Hello {
        cluster: ClusterId::new("conformance").unwrap(),
        from: node(from),
        to,
        incarnation: Incarnation::new(0xABCD_0000 + from).unwrap(),
        protocol: PROTOCOL_VERSION,
    }
}

/// An append of one group, told apart by its index, with that much payload.
pub(super) fn append(group: u64, index: u64, bytes: usize) -> Envelope {
    let mut message = Message::new(MessageKind::Append, node(1), node(2));
    (message.term, message.index, message.context) = (3, index, Bytes::from(vec![index as u8; bytes]));
    Envelope { group: GroupId::new(group), message }
}

/// A batch of one such append.
pub(super) fn numbered(index: u64, bytes: usize) -> Batch {
    Batch { envelopes: vec![append(1, index, bytes)] }
}

/// A batch of one heartbeat.
pub(super) fn heartbeat(index: u64) -> Batch {
    let mut message = Message::new(MessageKind::Heartbeat, node(1), node(2));
    (message.term, message.index) = (3, index);
    Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] }
}
