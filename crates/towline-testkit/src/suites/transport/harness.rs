//! What each case runs in: a runtime, a deadline for every wait, and the sentence of the contract to fail with.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::panic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use towline_engine::ids::{GroupId, NodeId, PeerAddr};
use towline_engine::message::{Batch, Envelope, Lane, Message, MessageKind};
use towline_engine::transport::{
    ConnectError, Connected, Hello, Link, LinkClosed, Listener, Nack, Peer, Transport, Welcome,
};

use super::cases::snapshots::carries;
use super::{Capabilities, TransportFixture};
use crate::cluster::node_id as node;
use crate::doubles::{self, InboundLog, LinkLog, RecordingInbound};

/// How long a case watches for something that must not happen.
pub(super) const NOT_YET: Duration = Duration::from_millis(150);

/// Threads of a case's runtime. A case may block two of them.
const WORKERS: usize = 4;

/// Deadlines that one case may use up.
const WAITS_MAX: u32 = 6;

/// The tools of one case.
pub(super) struct TransportCase {
    pub(super) fixture: Arc<dyn TransportFixture>,
    pub(super) can: Capabilities,
    /// One for each node.
    transports: Mutex<HashMap<NodeId, Arc<dyn Transport>>>,
    scheme: &'static str,
    sentence: &'static str,
}

/// Runs a case that holds `sentence`.
pub(super) fn run(
    fixture: Arc<dyn TransportFixture>,
    sentence: &'static str,
    body: impl AsyncFnOnce(&TransportCase),
) {
    let threads = Threads::new();
    let name = threads.name.clone();
    let runtime = Builder::new_multi_thread().worker_threads(WORKERS).thread_name(name).enable_all().build();
    let runtime = BoundedRuntime(Some(runtime.unwrap()));
    runtime.0.as_ref().unwrap().block_on(async {
        let first = fixture.transport(node(1));
        let (scheme, can) = (first.scheme(), fixture.capabilities());
        let transports = Mutex::new(HashMap::from([(node(1), first)]));
        let case = TransportCase { fixture, can, transports, scheme, sentence };
        let whole = case.fixture.deadline() * WAITS_MAX;
        if timeout(whole, body(&case)).await.is_err() {
            case.fail("the case as a whole did not end in time");
        }
    });
    drop(runtime);
    if let Some(panic) = threads.panicked() {
        panic!("a transport never panics, whatever happens\n  a thread of the runtime did: {panic}");
    }
}

/// Runs a case that needs node 2 to listen.
pub(super) fn with_host(
    fixture: Arc<dyn TransportFixture>,
    sentence: &'static str,
    body: impl AsyncFnOnce(&TransportCase, ListeningNode),
) {
    run(fixture, sentence, async |case| body(case, case.host_of(2).await).await);
}

/// Runs a case that needs node 2 to listen and the transport to carry snapshots.
pub(super) fn with_snapshots(
    fixture: Arc<dyn TransportFixture>,
    sentence: &'static str,
    body: impl AsyncFnOnce(&TransportCase, ListeningNode),
) {
    with_host(fixture, sentence, async |case, host| {
        if carries(case, &host).await {
            body(case, host).await;
        }
    });
}

/// A runtime whose shutdown is bounded, also after a panic of the case.
struct BoundedRuntime(Option<Runtime>);

impl Drop for BoundedRuntime {
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

/// An open link, what it reported, and the answer to its hello.
pub(super) struct Opened {
    pub(super) link: Box<dyn Link>,
    pub(super) log: LinkLog,
    pub(super) welcome: Welcome,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("welcome", &self.welcome).finish_non_exhaustive()
    }
}

impl TransportCase {
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

    pub(super) async fn host_of(&self, raw: u64) -> ListeningNode {
        ListeningNode::listen(self, node(raw), &self.fixture.address()).await
    }

    /// Dials from node 1 as a task of its own.
    pub(super) fn dial(
        &self,
        host: &ListeningNode,
        lane: Lane,
    ) -> (JoinHandle<Result<Connected, ConnectError>>, LinkLog) {
        self.dial_as(host.hello(1), host.peer(), lane)
    }

    pub(super) fn dial_as(
        &self,
        hello: Hello,
        to: Peer,
        lane: Lane,
    ) -> (JoinHandle<Result<Connected, ConnectError>>, LinkLog) {
        let (log, feedback) = LinkLog::new();
        let transport = self.transport(hello.from);
        (tokio::spawn(async move { transport.connect(&to, lane, &hello, feedback).await }), log)
    }

    /// Dials from node 1 and waits for the answer.
    pub(super) async fn connect(
        &self,
        host: &ListeningNode,
        lane: Lane,
    ) -> (Result<Connected, ConnectError>, LinkLog) {
        let (task, log) = self.dial(host, lane);
        (self.join("an answer to connect", task).await, log)
    }

    /// A link from node 1.
    pub(super) async fn open(&self, host: &ListeningNode, lane: Lane) -> Opened {
        self.open_as(host.hello(1), host.peer(), lane).await
    }

    pub(super) async fn open_as(&self, hello: Hello, to: Peer, lane: Lane) -> Opened {
        let (task, log) = self.dial_as(hello, to, lane);
        match self.join("an answer to connect", task).await {
            Ok(Connected { link, welcome }) => Opened { link, log, welcome },
            Err(error) => self.fail(format_args!("a dialler that is welcome gets {}", chain(&error))),
        }
    }

    /// Dispatches on a link that should take it.
    pub(super) async fn dispatch(&self, to: &mut Opened, batch: Batch) {
        if let Err(error) = self.within("a dispatch", to.link.dispatch(batch)).await {
            self.fail(format_args!("a dispatch on a healthy link gets {}", chain(&error)));
        }
    }
    /// The only cause of the end of a link.
    pub(super) async fn closed(&self, log: &LinkLog) -> LinkClosed {
        let causes = self.within("`LinkFeedback::closed`", log.wait_causes()).await;
        match &causes[..] {
            [cause] => cause.clone(),
            causes => self.fail(format_args!("`closed` was called {} times", causes.len())),
        }
    }

    /// All nacks of a link, once there are `count`.
    pub(super) async fn nacks(&self, log: &LinkLog, count: usize) -> Vec<Nack> {
        self.within(format_args!("the arrival of {count} nacks"), log.wait_nacks(count)).await
    }
}

/// A listening node.
pub(super) struct ListeningNode {
    pub(super) node: NodeId,
    pub(super) inbound: RecordingInbound,
    pub(super) address: PeerAddr,
    listener: Option<Box<dyn Listener>>,
}

impl ListeningNode {
    pub(super) async fn listen(case: &TransportCase, node: NodeId, at: &PeerAddr) -> Self {
        let inbound = RecordingInbound::new(node);
        let transport = case.transport(node);
        let listening = transport.listen(at, inbound.inbound());
        let listener = match case.within("listen", listening).await {
            Ok(listener) => listener,
            Err(error) => case.fail(format_args!("listening at {at} gets {}", chain(&error))),
        };
        let address = case.fixture.reach(at, listener.local_addr());
        Self { node, inbound, address, listener: Some(listener) }
    }

    pub(super) fn peer(&self) -> Peer {
        Peer { id: self.node, address: self.address.clone() }
    }

    /// The hello of a dialler of this node.
    pub(super) fn hello(&self, from: u64) -> Hello {
        doubles::hello(from, self.node.as_u64())
    }

    /// Waits until the log of the inbound meets a condition.
    pub(super) async fn until(
        &self,
        case: &TransportCase,
        what: impl Display,
        condition: impl FnMut(&InboundLog) -> bool,
    ) {
        case.within(what, self.inbound.until(condition)).await;
    }

    pub(super) async fn shut_down(&mut self, case: &TransportCase) {
        if let Some(listener) = self.listener.take() {
            case.within("the shutdown of the listener", listener.shutdown()).await;
        }
    }

    pub(super) fn drop_listener(&mut self) {
        self.listener = None;
    }
}

impl Drop for ListeningNode {
    fn drop(&mut self) {
        // Threads that wait at a gate would hold the shutdown of the runtime.
        self.inbound.open_gates();
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

/// A batch of one heartbeat.
pub(super) fn heartbeat(index: u64) -> Batch {
    let mut message = Message::new(MessageKind::Heartbeat, node(1), node(2));
    (message.term, message.index) = (3, index);
    Batch { envelopes: vec![Envelope { group: GroupId::DEFAULT, message }] }
}
