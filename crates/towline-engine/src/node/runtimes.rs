//! The runtimes that a node owns, unless the caller brings one.

use std::io;
use std::time::Instant;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::config::ValidConfig;
use crate::snapshots::step_back;

/// The names of the runtimes' threads.
const NET: &str = "towline-net";
const BULK: &str = "towline-bulk";

/// Where a node's tasks run. A snapshot keeps processors busy for as long as it moves: on the threads of the lanes it
/// would delay heartbeats, whatever connection those have.
#[derive(Clone)]
pub(crate) struct Handles {
    /// Lanes, links and listeners.
    pub(crate) net: Handle,
    /// Snapshots: what is sent, and the files of what is sent and received.
    pub(crate) bulk: Handle,
}

/// Dropped without [`wait`](Self::wait) they end in the background: a start that fails drops them inside the caller's
/// runtime, where waiting is forbidden.
#[derive(Default)]
pub(crate) struct Runtimes(Vec<(&'static str, Runtime)>);

impl Runtimes {
    /// Two of the node's own, or the caller's for everything.
    pub(crate) fn start(config: &ValidConfig, callers: Option<Handle>) -> io::Result<(Self, Handles)> {
        if let Some(handle) = callers {
            return Ok((Self(Vec::new()), Handles { net: handle.clone(), bulk: handle }));
        }
        let named = |name: &'static str| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(config.network_workers).thread_name(name).enable_all();
            builder
        };
        let mut own = Self(Vec::with_capacity(2));
        own.0.push((NET, named(NET).build()?));
        own.0.push((BULK, named(BULK).on_thread_start(step_back).build()?));
        let [(_, net), (_, bulk)] = own.0.as_slice() else { return Err(io::ErrorKind::NotFound.into()) };
        let handles = Handles { net: net.handle().clone(), bulk: bulk.handle().clone() };
        Ok((own, handles))
    }

    /// Whether there is nothing to wait for.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Blocks until their tasks have ended, or `until`; names those that have not. Not to be called inside a runtime.
    pub(crate) fn wait(&mut self, until: Instant) -> Vec<String> {
        let mut left = Vec::new();
        for (name, runtime) in self.0.drain(..) {
            runtime.shutdown_timeout(until.saturating_duration_since(Instant::now()));
            if Instant::now() >= until {
                left.push(name.to_owned());
            }
        }
        left
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|(_, runtime)| runtime.shutdown_background());
    }
}
